//! Conditions on columns, as a URL writes them: `col=op.value`, and groups of them.
//!
//! [`Condition`] and [`Filter`] are the syntax, shared by requests and views. [`Matcher`] decides
//! conditions on row images exactly as PostgreSQL would, for the types where that is possible, and
//! says for which it is not. Pure: no socket, no task, no catalogue.

mod matcher;
pub mod scanner;
mod tree;
mod value;

pub use matcher::{Equalities, Facts, Matcher, MissingColumn, Refusal, decidable};
pub use scanner::{Path, Step};
pub use tree::{Filter, Group, Joint};
pub use value::{Kind, Value};

use scanner::{Mistake, Scanner};

/// `column[->path]=[not.]operator.operand`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Condition {
    /// Column name, not yet looked up.
    pub column: String,
    /// Which place inside of its value.
    pub path: Path,
    /// Preceded by `not.`.
    pub negated: bool,
    /// The comparison.
    pub test: Test,
}

/// What a column is compared with. Values are text: PostgreSQL decides their type.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Test {
    /// `eq neq gt gte lt lte` and a value.
    Compare(Operator, String),
    /// `in.(a,b,"c,d")`; may be empty.
    In(Vec<String>),
    /// `is.null` and its siblings.
    Is(Truth),
    /// `isdistinct`: as `neq`, with null as a value like others.
    Distinct(String),
    /// `like ilike match imatch` and a pattern, `%` for any characters.
    Match(Pattern, String),
    /// `eq(any).{a,b}`: the array as PostgreSQL writes it.
    Each(Sign, Quantifier, String),
    /// `cs cd ov sl sr nxl nxr adj` and an array, a range or a JSON value.
    Relate(Relation, String),
    /// `fts plfts phfts wfts`.
    Search {
        /// How the words are read.
        words: Words,
        /// `(english)`: a text search configuration.
        language: Option<String>,
        /// The words.
        query: String,
    },
}

/// An operator that takes `(any)` and `(all)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sign {
    /// A comparison.
    Compare(Operator),
    /// A pattern.
    Match(Pattern),
}

impl Sign {
    /// The operator in SQL.
    #[must_use]
    pub fn sql(self) -> &'static str {
        match self {
            Self::Compare(operator) => operator.sql(),
            Self::Match(pattern) => pattern.sql(),
        }
    }
}

/// How many members of an array must agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quantifier {
    /// One.
    Any,
    /// Each.
    All,
}

impl Quantifier {
    /// The word in SQL.
    #[must_use]
    pub fn sql(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::All => "all",
        }
    }
}

/// A pattern operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// `like`
    Like,
    /// `ilike`
    Ilike,
    /// `~`
    Match,
    /// `~*`
    Imatch,
}

impl Pattern {
    /// The operator in SQL.
    #[must_use]
    pub fn sql(self) -> &'static str {
        match self {
            Self::Like => "like",
            Self::Ilike => "ilike",
            Self::Match => "~",
            Self::Imatch => "~*",
        }
    }

    /// A pattern of the URL as PostgreSQL reads it: `%` has to be escaped in a URL, so the dialect
    /// has `*` for it.
    fn text(self, operand: &str) -> String {
        match self {
            Self::Like | Self::Ilike => operand.replace('*', "%"),
            Self::Match | Self::Imatch => operand.to_owned(),
        }
    }
}

/// An operator of arrays, ranges and JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Relation {
    /// `@>`
    Contains,
    /// `<@`
    ContainedIn,
    /// `&&`
    Overlaps,
    /// `<<`
    StrictlyLeft,
    /// `>>`
    StrictlyRight,
    /// `&<`
    NotRight,
    /// `&>`
    NotLeft,
    /// `-|-`
    Adjacent,
}

impl Relation {
    /// The operator in SQL.
    #[must_use]
    pub fn sql(self) -> &'static str {
        match self {
            Self::Contains => "@>",
            Self::ContainedIn => "<@",
            Self::Overlaps => "&&",
            Self::StrictlyLeft => "<<",
            Self::StrictlyRight => ">>",
            Self::NotRight => "&<",
            Self::NotLeft => "&>",
            Self::Adjacent => "-|-",
        }
    }
}

/// How the words of a text search are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Words {
    /// `fts`: with operators.
    Query,
    /// `plfts`: all of them.
    Plain,
    /// `phfts`: in this order.
    Phrase,
    /// `wfts`: as in a web search.
    Web,
}

impl Words {
    /// The function in SQL.
    #[must_use]
    pub fn sql(self) -> &'static str {
        match self {
            Self::Query => "pg_catalog.to_tsquery",
            Self::Plain => "pg_catalog.plainto_tsquery",
            Self::Phrase => "pg_catalog.phraseto_tsquery",
            Self::Web => "pg_catalog.websearch_to_tsquery",
        }
    }
}

/// A comparison operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    /// `=`
    Eq,
    /// `<>`
    Neq,
    /// `>`
    Gt,
    /// `>=`
    Gte,
    /// `<`
    Lt,
    /// `<=`
    Lte,
}

impl Operator {
    /// The operator in SQL.
    #[must_use]
    pub fn sql(self) -> &'static str {
        match self {
            Self::Eq => "=",
            Self::Neq => "<>",
            Self::Gt => ">",
            Self::Gte => ">=",
            Self::Lt => "<",
            Self::Lte => "<=",
        }
    }
}

/// What `is` compares with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Truth {
    /// `is null`
    Null,
    /// `is not null`
    NotNull,
    /// `is true`
    True,
    /// `is false`
    False,
    /// `is unknown`
    Unknown,
}

impl Truth {
    /// The predicate in SQL, e.g. `is not null`.
    #[must_use]
    pub fn sql(self) -> &'static str {
        match self {
            Self::Null => "is null",
            Self::NotNull => "is not null",
            Self::True => "is true",
            Self::False => "is false",
            Self::Unknown => "is unknown",
        }
    }
}

/// Why a condition could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConditionError {
    /// No `operator.` in front of the value.
    #[error("\"{0}\" has no operator")]
    NoOperator(String),
    /// An operator nobody knows, or one that takes no such word in parentheses.
    #[error("operator \"{0}\" is unknown")]
    UnknownOperator(String),
    /// `in` without a well-formed list.
    #[error("\"{0}\" is not a list such as (1,2,\"three\")")]
    List(String),
    /// `is` with anything but its five words.
    #[error("\"is\" takes null, not_null, true, false or unknown, not \"{0}\"")]
    Is(String),
    /// A group that is not well formed.
    #[error("{0}")]
    Tree(#[from] Mistake),
}

impl Condition {
    /// Reads `text`, the value of the query parameter `column`, already percent-decoded.
    ///
    /// # Errors
    /// See [`ConditionError`].
    pub fn parse(column: &str, text: &str) -> Result<Self, ConditionError> {
        Self::parse_at(column, Path::default(), text)
    }

    /// The same of a place inside of the column.
    ///
    /// # Errors
    /// See [`ConditionError`].
    pub fn parse_at(column: &str, path: Path, text: &str) -> Result<Self, ConditionError> {
        let (negated, rest) = match text.strip_prefix("not.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (name, argument, operand) =
            parts(rest).ok_or_else(|| ConditionError::NoOperator(text.to_owned()))?;
        Ok(Self {
            column: column.to_owned(),
            path,
            negated,
            test: Test::parse(name, argument, operand)?,
        })
    }

    /// Every value the condition carries, in order.
    #[must_use]
    pub fn values(&self) -> &[String] {
        match &self.test {
            Test::In(values) => values,
            Test::Is(_) => &[],
            Test::Compare(_, value)
            | Test::Distinct(value)
            | Test::Match(_, value)
            | Test::Each(_, _, value)
            | Test::Relate(_, value)
            | Test::Search { query: value, .. } => std::slice::from_ref(value),
        }
    }

    /// Whether it compares a whole column by `eq neq gt gte lt lte in is`: of the kind that may be
    /// decided outside of PostgreSQL.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.path.is_empty() && matches!(self.test, Test::Compare(..) | Test::In(_) | Test::Is(_))
    }
}

/// `operator(argument).operand`
fn parts(text: &str) -> Option<(&str, Option<&str>, &str)> {
    let end = text.find(['.', '('])?;
    let (name, rest) = text.split_at(end);
    if let Some(operand) = rest.strip_prefix('.') {
        return Some((name, None, operand));
    }
    let (argument, operand) = rest.strip_prefix('(')?.split_once(").")?;
    Some((name, Some(argument), operand))
}

impl Test {
    /// The test of an operator, perhaps with a word in parentheses, and what follows its dot.
    fn parse(name: &str, argument: Option<&str>, operand: &str) -> Result<Self, ConditionError> {
        let unknown = || {
            ConditionError::UnknownOperator(match argument {
                Some(argument) => format!("{name}({argument})"),
                None => name.to_owned(),
            })
        };
        if let Some(words) = search(name) {
            return Ok(Self::Search {
                words,
                language: argument.map(str::to_owned),
                query: operand.to_owned(),
            });
        }
        let quantifier = match argument {
            None => None,
            Some("any") => Some(Quantifier::Any),
            Some("all") => Some(Quantifier::All),
            Some(_) => return Err(unknown()),
        };
        let text = operand.to_owned();
        match (sign(name), quantifier) {
            (Some(Sign::Compare(operator)), None) => Ok(Self::Compare(operator, text)),
            (Some(Sign::Match(pattern)), None) => Ok(Self::Match(pattern, pattern.text(operand))),
            (Some(sign), Some(quantifier)) => {
                let text = match sign {
                    Sign::Compare(_) => text,
                    Sign::Match(pattern) => pattern.text(operand),
                };
                Ok(Self::Each(sign, quantifier, text))
            }
            (None, Some(_)) => Err(unknown()),
            (None, None) => match (name, relation(name)) {
                (_, Some(relation)) => Ok(Self::Relate(relation, text)),
                ("in", _) => Ok(Self::In(list(operand)?)),
                ("is", _) => Ok(Self::Is(truth(operand)?)),
                ("isdistinct", _) => Ok(Self::Distinct(text)),
                _ => Err(unknown()),
            },
        }
    }
}

fn sign(name: &str) -> Option<Sign> {
    Some(match name {
        "eq" => Sign::Compare(Operator::Eq),
        "neq" => Sign::Compare(Operator::Neq),
        "gt" => Sign::Compare(Operator::Gt),
        "gte" => Sign::Compare(Operator::Gte),
        "lt" => Sign::Compare(Operator::Lt),
        "lte" => Sign::Compare(Operator::Lte),
        "like" => Sign::Match(Pattern::Like),
        "ilike" => Sign::Match(Pattern::Ilike),
        "match" => Sign::Match(Pattern::Match),
        "imatch" => Sign::Match(Pattern::Imatch),
        _ => return None,
    })
}

fn relation(name: &str) -> Option<Relation> {
    Some(match name {
        "cs" => Relation::Contains,
        "cd" => Relation::ContainedIn,
        "ov" => Relation::Overlaps,
        "sl" => Relation::StrictlyLeft,
        "sr" => Relation::StrictlyRight,
        "nxr" => Relation::NotRight,
        "nxl" => Relation::NotLeft,
        "adj" => Relation::Adjacent,
        _ => return None,
    })
}

fn search(name: &str) -> Option<Words> {
    Some(match name {
        "fts" => Words::Query,
        "plfts" => Words::Plain,
        "phfts" => Words::Phrase,
        "wfts" => Words::Web,
        _ => return None,
    })
}

fn truth(text: &str) -> Result<Truth, ConditionError> {
    match text.to_ascii_lowercase().as_str() {
        "null" => Ok(Truth::Null),
        "not_null" => Ok(Truth::NotNull),
        "true" => Ok(Truth::True),
        "false" => Ok(Truth::False),
        "unknown" => Ok(Truth::Unknown),
        _ => Err(ConditionError::Is(text.to_owned())),
    }
}

/// `(a,b,"c,\"d")`. Members in double quotes may hold commas and parentheses; a backslash inside
/// quotes takes the next character as it is. Quotes around less than a member are part of it. `()` is the
/// empty list. Blanks around either parenthesis outside, and behind the first, say nothing; all others are
/// part of a member, as in `PostgREST`.
fn list(text: &str) -> Result<Vec<String>, ConditionError> {
    let wrong = || ConditionError::List(text.to_owned());
    let inner = text
        .trim_matches(is_blank)
        .strip_prefix('(')
        .and_then(|rest| rest.strip_suffix(')'))
        .ok_or_else(wrong)?
        .trim_start_matches(is_blank);
    if inner.is_empty() {
        return Ok(Vec::new());
    }
    let mut members = Vec::new();
    let mut scanner = Scanner::of(inner);
    loop {
        let quoted = scanner.quoted_alone(",").unwrap_or_default();
        members.push(quoted.unwrap_or_else(|| scanner.until(",")));
        if scanner.bump().is_none() {
            return Ok(members);
        }
    }
}

/// What may stand around the dialect's parentheses.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Condition, ConditionError> {
        Condition::parse("c", text)
    }

    #[test]
    fn a_condition_is_an_operator_and_a_value() {
        assert_eq!(
            parse("eq.a.b").unwrap().test,
            Test::Compare(Operator::Eq, "a.b".into())
        );
        assert_eq!(parse("eq.").unwrap().values(), [""]);
        let not = parse("not.is.NULL").unwrap();
        assert!(not.negated);
        assert_eq!(not.test, Test::Is(Truth::Null));
    }

    #[test]
    fn each_operator_of_the_dialect_is_read() {
        let test = |text: &str| parse(text).unwrap().test;
        let eq = Sign::Compare(Operator::Eq);
        assert_eq!(
            test("eq(any).{a,*}"),
            Test::Each(eq, Quantifier::Any, "{a,*}".into())
        );
        assert_eq!(
            test("ilike(all).{a*,*b}"),
            Test::Each(
                Sign::Match(Pattern::Ilike),
                Quantifier::All,
                "{a%,%b}".into()
            )
        );
        assert_eq!(test("like.*a*"), Test::Match(Pattern::Like, "%a%".into()));
        assert_eq!(test("imatch.a*"), Test::Match(Pattern::Imatch, "a*".into()));
        assert_eq!(test("isdistinct.null"), Test::Distinct("null".into()));
        assert_eq!(
            test("wfts(pg_catalog.english).fat. cat"),
            Test::Search {
                words: Words::Web,
                language: Some("pg_catalog.english".into()),
                query: "fat. cat".into()
            }
        );
        for (name, sql) in [
            ("cs", "@>"),
            ("cd", "<@"),
            ("ov", "&&"),
            ("sl", "<<"),
            ("sr", ">>"),
            ("nxr", "&<"),
            ("nxl", "&>"),
            ("adj", "-|-"),
        ] {
            let Test::Relate(relation, value) = test(&format!("{name}.[1,2)")) else {
                panic!("{name}")
            };
            assert_eq!((relation.sql(), value.as_str()), (sql, "[1,2)"));
        }
    }

    #[test]
    fn only_comparisons_of_whole_columns_are_plain() {
        for plain in ["eq.1", "not.in.(1)", "is.null"] {
            assert!(parse(plain).unwrap().is_plain(), "{plain}");
        }
        for other in ["like.a", "eq(any).{1}", "isdistinct.1", "cs.{1}", "fts.a"] {
            assert!(!parse(other).unwrap().is_plain(), "{other}");
        }
        let path = scanner::Scanner::of("->a").path().unwrap();
        assert!(!Condition::parse_at("c", path, "eq.1").unwrap().is_plain());
    }

    #[test]
    fn lists_take_quoted_members() {
        let values = |text| parse(text).unwrap().values().to_vec();
        assert_eq!(values("in.(a,b c,\"d,)\\\"\")"), ["a", "b c", "d,)\""]);
        assert_eq!(values("in. ( a, b ,\"c\") "), ["a", " b ", "c"]);
        assert_eq!(values("in.()"), Vec::<String>::new());
        assert_eq!(values("in.( )"), Vec::<String>::new());
        assert_eq!(values("in.(,)"), ["", ""]);
        assert_eq!(values("in.(\"\")"), [""]);
        // A quote that no comma follows is one like any other character.
        assert_eq!(values("in.(\"a\" ,\"b\" c)"), ["a", "\"b\" c"]);
        assert_eq!(values("in.(\",\"a,b)"), ["\"", "\"a", "b"]);
        for wrong in ["in.a", "in.(a"] {
            assert!(
                matches!(parse(wrong), Err(ConditionError::List(_))),
                "{wrong}"
            );
        }
    }

    #[test]
    fn mistakes_are_told_apart() {
        assert!(matches!(parse("7"), Err(ConditionError::NoOperator(_))));
        assert!(matches!(
            parse("equals.7"),
            Err(ConditionError::UnknownOperator(_))
        ));
        for unknown in [
            "eq(some).{7}",
            "cs(any).{7}",
            "in(any).{7}",
            "isdistinct(all).7",
        ] {
            assert!(
                matches!(parse(unknown), Err(ConditionError::UnknownOperator(_))),
                "{unknown}"
            );
        }
        for cut in ["eq(any)", "eq(any{7}", "fts(english)x", "not", "not.eq"] {
            assert!(
                matches!(parse(cut), Err(ConditionError::NoOperator(_))),
                "{cut}"
            );
        }
        assert!(matches!(parse("is.7"), Err(ConditionError::Is(_))));
    }
}
