//! A condition on one column, as a URL writes it: `col=op.value`.
//!
//! [`Condition`] is the syntax, shared by requests and views. [`Matcher`] decides conditions on
//! row images exactly as PostgreSQL would, for the types where that is possible, and says for
//! which it is not. Pure: no socket, no task, no catalogue.

mod matcher;
mod value;

pub use matcher::{Facts, Matcher, MissingColumn, Refusal, decidable};
pub use value::{Kind, Value};

/// `column=[not.]operator.operand`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Condition {
    /// Column name, not yet looked up.
    pub column: String,
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
    /// An operator nobody knows.
    #[error("operator \"{0}\" is unknown")]
    UnknownOperator(String),
    /// An operator of the dialect that this version does not have.
    #[error("operator \"{0}\" is not supported yet")]
    NotYet(String),
    /// `in` without a well-formed list.
    #[error("\"{0}\" is not a list such as (1,2,\"three\")")]
    List(String),
    /// `is` with anything but its five words.
    #[error("\"is\" takes null, not_null, true, false or unknown, not \"{0}\"")]
    Is(String),
}

/// Operators of the PostgREST dialect that are recognised and refused.
const NOT_YET: [&str; 17] = [
    "like",
    "ilike",
    "match",
    "imatch",
    "isdistinct",
    "cs",
    "cd",
    "ov",
    "fts",
    "plfts",
    "phfts",
    "wfts",
    "sl",
    "sr",
    "nxl",
    "nxr",
    "adj",
];

impl Condition {
    /// Reads `text`, the value of the query parameter `column`, already percent-decoded.
    ///
    /// # Errors
    /// See [`ConditionError`].
    pub fn parse(column: &str, text: &str) -> Result<Self, ConditionError> {
        let (negated, rest) = match text.strip_prefix("not.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (name, operand) = rest
            .split_once('.')
            .ok_or_else(|| ConditionError::NoOperator(text.to_owned()))?;
        let compare = |operator| Test::Compare(operator, operand.to_owned());
        let test = match name {
            "eq" => compare(Operator::Eq),
            "neq" => compare(Operator::Neq),
            "gt" => compare(Operator::Gt),
            "gte" => compare(Operator::Gte),
            "lt" => compare(Operator::Lt),
            "lte" => compare(Operator::Lte),
            "in" => Test::In(list(operand)?),
            "is" => Test::Is(truth(operand)?),
            other => {
                let bare = other.split('(').next().unwrap_or(other);
                return Err(if NOT_YET.contains(&bare) || bare != other {
                    ConditionError::NotYet(other.to_owned())
                } else {
                    ConditionError::UnknownOperator(other.to_owned())
                });
            }
        };
        Ok(Self {
            column: column.to_owned(),
            negated,
            test,
        })
    }

    /// Every value the condition carries, in order.
    #[must_use]
    pub fn values(&self) -> &[String] {
        match &self.test {
            Test::Compare(_, value) => std::slice::from_ref(value),
            Test::In(values) => values,
            Test::Is(_) => &[],
        }
    }
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
/// quotes takes the next character as it is. `()` is the empty list.
fn list(text: &str) -> Result<Vec<String>, ConditionError> {
    let wrong = || ConditionError::List(text.to_owned());
    let inner = text
        .strip_prefix('(')
        .and_then(|rest| rest.strip_suffix(')'))
        .ok_or_else(wrong)?;
    if inner.is_empty() {
        return Ok(Vec::new());
    }
    let mut members = Vec::new();
    let mut chars = inner.chars().peekable();
    loop {
        let mut member = String::new();
        if chars.next_if_eq(&'"').is_some() {
            loop {
                match chars.next().ok_or_else(wrong)? {
                    '"' => break,
                    '\\' => member.push(chars.next().ok_or_else(wrong)?),
                    c => member.push(c),
                }
            }
        } else {
            while let Some(c) = chars.next_if(|c| *c != ',') {
                member.push(c);
            }
        }
        members.push(member);
        match chars.next() {
            None => return Ok(members),
            Some(',') => {}
            Some(_) => return Err(wrong()),
        }
    }
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
    fn lists_take_quoted_members() {
        let values = |text| parse(text).unwrap().values().to_vec();
        assert_eq!(values("in.(a,b c,\"d,)\\\"\")"), ["a", "b c", "d,)\""]);
        assert_eq!(values("in.()"), Vec::<String>::new());
        assert_eq!(values("in.(,)"), ["", ""]);
        assert_eq!(values("in.(\"\")"), [""]);
        for wrong in ["in.a", "in.(a", "in.(\"a)", "in.(\"a\"b)"] {
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
        assert!(matches!(parse("like.7"), Err(ConditionError::NotYet(_))));
        assert!(matches!(
            parse("eq(any).{7}"),
            Err(ConditionError::NotYet(_))
        ));
        assert!(matches!(parse("is.7"), Err(ConditionError::Is(_))));
    }
}
