//! Conditions put together: `and=(…)`, `or=(…)`, and groups inside of groups.

use super::scanner::{Mistake, Scanner};
use super::{Condition, ConditionError, Test, is_blank};

/// A condition, or several of them put together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Filter {
    /// One condition.
    One(Condition),
    /// Several filters.
    Group(Group),
}

/// `[not.]and(…)` or `[not.]or(…)`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Group {
    /// Preceded by `not.`.
    pub negated: bool,
    /// Whether all or one of the members must hold.
    pub joint: Joint,
    /// Never empty.
    pub members: Vec<Filter>,
}

/// What holds a group together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Joint {
    /// All members must hold.
    And,
    /// One member must hold.
    Or,
}

/// How groups begin, and whether they are negated.
const HEADS: [(&str, bool, Joint); 4] = [
    ("and", false, Joint::And),
    ("or", false, Joint::Or),
    ("not.and", true, Joint::And),
    ("not.or", true, Joint::Or),
];

/// Groups inside of groups; the parser recurses as deep, and PostgreSQL's does too.
const DEEPEST: usize = 32;

impl Filter {
    /// Reads the value of a parameter `and`, `or`, `not.and` or `not.or`. Nothing when `name` is
    /// none of these.
    ///
    /// # Errors
    /// See [`ConditionError`].
    #[must_use]
    pub fn parse_group(name: &str, value: &str) -> Option<Result<Self, ConditionError>> {
        let head = HEADS.into_iter().find(|(head, ..)| *head == name);
        let (_, negated, joint) = head?;
        let mut scanner = Scanner::of(value);
        let mut read = || {
            let members = members(&mut scanner, 1)?;
            if scanner.at_end() {
                Ok(Self::Group(Group {
                    negated,
                    joint,
                    members,
                }))
            } else {
                Err(tree("something follows the last parenthesis"))
            }
        };
        Some(read())
    }

    /// Every condition in it, from left to right.
    #[must_use]
    pub fn conditions(&self) -> Vec<&Condition> {
        let mut all = Vec::new();
        self.collect(&mut all);
        all
    }

    fn collect<'a>(&'a self, all: &mut Vec<&'a Condition>) {
        match self {
            Self::One(condition) => all.push(condition),
            Self::Group(group) => {
                for member in &group.members {
                    member.collect(all);
                }
            }
        }
    }

    /// The filters that must all hold for this one to hold: itself, or the members of an `and`.
    #[must_use]
    pub fn conjuncts(self) -> Vec<Self> {
        match self {
            Self::Group(Group {
                negated: false,
                joint: Joint::And,
                members,
            }) => members.into_iter().flat_map(Self::conjuncts).collect(),
            other => vec![other],
        }
    }
}

fn tree(reason: &str) -> ConditionError {
    ConditionError::Tree(Mistake::new(reason))
}

/// `(a.eq.1,or(b.eq.2,c.eq.3))`
fn members(scanner: &mut Scanner<'_>, depth: usize) -> Result<Vec<Filter>, ConditionError> {
    if depth > DEEPEST {
        return Err(tree("its groups are nested more than 32 deep"));
    }
    scanner.spaces();
    if !scanner.take('(') {
        return Err(tree("a group is a list in parentheses"));
    }
    let mut members = Vec::new();
    loop {
        scanner.spaces();
        members.push(member(scanner, depth)?);
        scanner.spaces();
        match scanner.bump() {
            Some(',') => {}
            Some(')') => return Ok(members),
            _ => return Err(tree("a comma or a closing parenthesis is missing")),
        }
    }
}

fn member(scanner: &mut Scanner<'_>, depth: usize) -> Result<Filter, ConditionError> {
    for (head, negated, joint) in HEADS {
        let mut ahead = scanner.clone();
        if ahead.take_all(head) {
            ahead.spaces();
            if ahead.peek() == Some('(') {
                *scanner = ahead;
                let members = members(scanner, depth + 1)?;
                return Ok(Filter::Group(Group {
                    negated,
                    joint,
                    members,
                }));
            }
        }
    }
    condition(scanner).map(Filter::One)
}

/// `column->path.[not.]operator.value`
fn condition(scanner: &mut Scanner<'_>) -> Result<Condition, ConditionError> {
    let column = scanner.name()?;
    let path = scanner.path()?;
    if !scanner.take('.') {
        return Err(tree("a condition is column.operator.value"));
    }
    let negated = scanner.take_all("not.");
    let operator = scanner.until(".(,)");
    let argument = scanner.take('(').then(|| {
        let argument = scanner.until(")");
        scanner.bump();
        argument
    });
    if !scanner.take('.') {
        return Err(ConditionError::NoOperator(operator));
    }
    let operand = operand(scanner, operator == "in")?;
    Ok(Condition {
        column,
        path,
        negated,
        test: Test::parse(&operator, argument.as_deref(), &operand)?,
    })
}

/// A value up to the comma or parenthesis behind it. Commas and parentheses of its own stand in
/// double quotes, in braces, or in the list of an `in`.
fn operand(scanner: &mut Scanner<'_>, is_list: bool) -> Result<String, ConditionError> {
    if is_list {
        scanner.spaces();
    }
    if let Some(text) = scanner.quoted_alone(",)")? {
        return Ok(text);
    }
    match scanner.peek() {
        Some('(') if is_list => enclosed(scanner, ')'),
        Some('{') => enclosed(scanner, '}'),
        _ => {
            let text = scanner.until(",)");
            Ok(text.trim_end().to_owned())
        }
    }
}

/// Everything through the bracket that closes the first one, as it is written.
fn enclosed(scanner: &mut Scanner<'_>, close: char) -> Result<String, ConditionError> {
    let mut text = String::new();
    let (mut depth, mut in_quotes) = (0_usize, false);
    let open = scanner.peek();
    // A member of a list may have quotes around it, and others are as they are. In an array's text each counts.
    let is_array = close == '}';
    let mut begins = false;
    // Blanks behind the first parenthesis are none of the member's.
    let mut opens = false;
    loop {
        let quotes = is_array || begins && scanner.clone().quoted_alone(",)")?.is_some();
        let c = scanner
            .bump()
            .ok_or_else(|| tree("a bracket is not closed"))?;
        text.push(c);
        match c {
            '\\' if in_quotes || is_array => text.extend(scanner.bump()),
            '"' if in_quotes => in_quotes = false,
            '"' => in_quotes = quotes,
            _ if in_quotes => {}
            // Lists do not nest, arrays do.
            c if Some(c) == open && (is_array || depth == 0) => depth += 1,
            c if c == close => {
                depth -= 1;
                if depth == 0 {
                    return Ok(text);
                }
            }
            _ => {}
        }
        begins = !in_quotes && (matches!(c, '(' | ',') || (opens && is_blank(c)));
        opens = begins && c != ',';
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, value: &str) -> Result<Filter, ConditionError> {
        Filter::parse_group(name, value).unwrap()
    }

    /// The tree as text, one way for each tree.
    fn told(filter: &Filter) -> String {
        match filter {
            Filter::One(condition) => {
                let not = if condition.negated { "not " } else { "" };
                format!("{not}{}:{:?}", condition.column, condition.values())
            }
            Filter::Group(group) => {
                let members: Vec<_> = group.members.iter().map(told).collect();
                let not = if group.negated { "not " } else { "" };
                format!("{not}{:?}({})", group.joint, members.join(", "))
            }
        }
    }

    #[test]
    fn groups_nest_and_are_negated() {
        for (name, value, tree) in [
            ("or", "(a.eq.1,b.eq.2)", "Or(a:[\"1\"], b:[\"2\"])"),
            (
                "not.and",
                " ( a.gt.1 , not.or(b.eq.2, c.not.is.null) , and(d.eq.x) ) ",
                "not And(a:[\"1\"], not Or(b:[\"2\"], not c:[]), And(d:[\"x\"]))",
            ),
            (
                "and",
                "(a.in.(1,\"2)\",3),b.eq.\"x,)\\\"y\",c.cs.{1,\"}\",{2}})",
                "And(a:[\"1\", \"2)\", \"3\"], b:[\"x,)\\\"y\"], c:[\"{1,\\\"}\\\",{2}}\"])",
            ),
            (
                "or",
                "(and.eq.1,not.eq.2,\"or\".eq.3,e.eq.,f.eq.a.b)",
                "Or(and:[\"1\"], not:[\"2\"], or:[\"3\"], e:[\"\"], f:[\"a.b\"])",
            ),
            // Blanks behind the first parenthesis say nothing, and all others are the member's.
            (
                "and",
                "(a.in. (  \"1)\",2, 3),b.in.(1, \"2))",
                "And(a:[\"1)\", \"2\", \" 3\"], b:[\"1\", \" \\\"2\"])",
            ),
            // A quote inside of a member is one like any other character.
            (
                "and",
                "(a.in.(5\",7),b.in.(6\",\\,\"x)\"))",
                "And(a:[\"5\\\"\", \"7\"], b:[\"6\\\"\", \"\\\\\", \"x)\"])",
            ),
            (
                "and",
                "(a.in.(\"x\" y,\"2\" ,\"),b.eq.\"x\" y,c.eq.\"z\" )",
                "And(a:[\"\\\"x\\\" y\", \"2\", \"\\\"\"], b:[\"\\\"x\\\" y\"], c:[\"z\"])",
            ),
            (
                "or",
                "(a.eq(any).{1,2},b.fts(english).cat)",
                "Or(a:[\"{1,2}\"], b:[\"cat\"])",
            ),
        ] {
            assert_eq!(told(&read(name, value).unwrap()), tree, "{value}");
        }
        assert!(Filter::parse_group("andy", "(a.eq.1)").is_none());
    }

    #[test]
    fn paths_are_read_inside_of_groups() {
        let Ok(Filter::Group(group)) = read("or", "(data->a->>\"b.c\".eq.1,b.eq.2)") else {
            panic!()
        };
        let conditions: Vec<_> = group.members.iter().flat_map(Filter::conditions).collect();
        assert_eq!(conditions[0].path.last_key(), Some("b.c"));
        assert!(conditions[0].path.text && conditions[1].path.is_empty());
    }

    #[test]
    fn what_is_no_tree_is_refused() {
        for wrong in [
            "",
            "a.eq.1",
            "()",
            "(a.eq.1",
            "(a.eq.1,)",
            "(a.eq.1))",
            "(a.eq.1)x",
            "(a)",
            "(a.eq)",
            "(a.eq.\"1)",
            "(a.in.(\"1),b.eq.2)",
            "(a.in.(1)",
            "(a.cs.{1)",
            "(a.nope.1)",
            "(rel.a.eq.1)",
            "(.eq.1)",
        ] {
            assert!(read("and", wrong).is_err(), "{wrong}");
        }
        let deep = |levels| format!("{}(a.eq.1){}", "(and".repeat(levels), ")".repeat(levels));
        assert!(read("or", &deep(31)).is_ok());
        assert!(read("or", &deep(32)).is_err());
        assert!(read("or", &deep(5000)).is_err());
    }

    #[test]
    fn an_and_at_the_top_is_several_filters() {
        let parts = read("and", "(a.eq.1,and(b.eq.2,c.eq.3),or(d.eq.4))").unwrap();
        let told: Vec<_> = parts.conjuncts().iter().map(told).collect();
        assert_eq!(
            told,
            ["a:[\"1\"]", "b:[\"2\"]", "c:[\"3\"]", "Or(d:[\"4\"])"]
        );
        assert_eq!(read("not.and", "(a.eq.1)").unwrap().conjuncts().len(), 1);
    }
}
