//! Conditions decided on row images, exactly as PostgreSQL decides them.

use std::cmp::Ordering;
use std::hash::{DefaultHasher, Hasher};

use super::value::{Kind, Value};
use super::{Condition, Operator, Test, Truth};

/// What decides whether conditions on a column can be decided here. Facts of the catalogue.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// `typname` of the built-in type behind the column's domains, `enum`, or empty.
    pub base: &'a str,
    /// The column's collation compares bytes.
    pub byte_ordered: bool,
    /// Equal text means equal bytes.
    pub deterministic: bool,
}

/// Why a condition cannot be decided from row images. The text completes "a stream cannot …".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No comparison of this type is repeated here.
    #[error(
        "compare column \"{0}\": values of its type cannot be compared outside the database yet"
    )]
    Type(String),
    /// Equality is, order is not.
    #[error("order column \"{0}\": its order depends on a collation or on an enum's definition")]
    Order(String),
    /// SQL null and JSON null look alike in an image.
    #[error("test column \"{0}\" for null: its images do not tell SQL null from other nulls")]
    Null(String),
    /// `is.true` on something that is not a boolean.
    #[error("test column \"{0}\" for truth: it is not a boolean")]
    Truth(String),
    /// An operator that is not repeated here, or a place inside of the column.
    #[error("test column \"{0}\" in this way outside the database")]
    Operator(String),
    /// `now`, `today` and the like.
    #[error(
        "filter by \"{0}\": the value moves with the clock, so rows would enter and leave without a change"
    )]
    Moving(String),
}

/// A filter over the images of one table: its conditions, `ANDed`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Matcher {
    tests: Vec<Typed>,
}

#[derive(Debug, Clone, PartialEq)]
struct Typed {
    column: String,
    negated: bool,
    kind: Kind,
    test: TypedTest,
}

#[derive(Debug, Clone, PartialEq)]
enum TypedTest {
    Compare(Operator, Value),
    /// In order, so that a long list costs a change little more than a short one.
    In(Vec<Value>),
    Is(Truth),
}

/// A column is missing from an image: the table's definition has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("row image lacks a filtered column")]
pub struct MissingColumn;

/// How the values of the condition's column compare, if the condition can be decided here.
///
/// # Errors
/// [`Refusal`] with the reason.
pub fn decidable(condition: &Condition, facts: Facts<'_>) -> Result<Kind, Refusal> {
    let column = || condition.column.clone();
    if !condition.is_plain() {
        return Err(Refusal::Operator(column()));
    }
    let kind = match facts.base {
        "bool" => Some(Kind::Bool),
        "int2" | "int4" | "int8" => Some(Kind::Int),
        "numeric" => Some(Kind::Decimal),
        "float4" | "float8" => Some(Kind::Float),
        "text" | "varchar" if facts.deterministic => Some(Kind::Text),
        "bpchar" if facts.deterministic => Some(Kind::Blank),
        "uuid" | "bytea" | "time" | "enum" => Some(Kind::Text),
        "date" | "timestamp" | "timestamptz" => Some(Kind::Instant),
        _ => None,
    };
    let tells_time = matches!(facts.base, "date" | "time" | "timestamp" | "timestamptz");
    let orderly = match facts.base {
        "text" | "varchar" | "bpchar" => facts.byte_ordered,
        "enum" => false,
        _ => true,
    };
    match &condition.test {
        Test::Is(Truth::Null | Truth::NotNull) => match facts.base {
            "" | "json" | "jsonb" => Err(Refusal::Null(column())),
            _ => Ok(kind.unwrap_or(Kind::Text)),
        },
        Test::Is(_) if kind == Some(Kind::Bool) => Ok(Kind::Bool),
        Test::Is(_) => Err(Refusal::Truth(column())),
        Test::Compare(Operator::Eq | Operator::Neq, _) | Test::In(_) => {
            kind.ok_or_else(|| Refusal::Type(column()))
        }
        _ => match kind {
            None => Err(Refusal::Type(column())),
            Some(_) if !orderly => Err(Refusal::Order(column())),
            Some(kind) => Ok(kind),
        },
    }
    .and_then(|kind| {
        match condition
            .values()
            .iter()
            .find(|value| tells_time && moves(value))
        {
            Some(value) => Err(Refusal::Moving(value.clone())),
            None => Ok(kind),
        }
    })
}

/// Date and time input that means another moment each time it is read.
fn moves(literal: &str) -> bool {
    let literal = literal.to_ascii_lowercase();
    ["now", "today", "tomorrow", "yesterday"]
        .iter()
        .any(|word| literal.contains(word))
}

/// What a row must be equal to for a filter to hold: columns, and one or more tuples of values for
/// them by their hash. A row whose own hash is not among them is not in the view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Equalities {
    /// Columns and how their values compare, by name.
    pub columns: Vec<(String, Kind)>,
    /// Hashes as [`Equalities::of_row`] makes them.
    pub hashes: Vec<u64>,
}

/// An `in` list longer than this is not looked up by its members.
const MEMBERS: usize = 64;

impl Equalities {
    /// The hash of a row's values in these columns; `column` gives the JSON text of one. `None` when
    /// one of them is null or not of its kind, so that nothing is equal to it.
    ///
    /// # Errors
    /// [`MissingColumn`].
    pub fn of_row<'a>(
        columns: &[(String, Kind)],
        column: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<Option<u64>, MissingColumn> {
        let mut hash = DefaultHasher::new();
        for (name, kind) in columns {
            let json = column(name).ok_or(MissingColumn)?;
            let Some(value) = Value::read(*kind, json) else {
                return Ok(None);
            };
            value.mark(&mut hash);
        }
        Ok(Some(hash.finish()))
    }
}

impl Matcher {
    /// What must be equal for it to hold; no columns when there is no such condition, or only one
    /// with many alternatives.
    #[must_use]
    pub fn equalities(&self) -> Equalities {
        let mut equal: Vec<(&Typed, &Value)> = Vec::new();
        let mut listed: Option<(&Typed, &[Value])> = None;
        for test in self.tests.iter().filter(|test| !test.negated) {
            match &test.test {
                // A second value for the same column is left to the matcher.
                TypedTest::Compare(Operator::Eq, value)
                    if equal.iter().all(|(known, _)| known.column != test.column) =>
                {
                    equal.push((test, value));
                }
                TypedTest::In(values) if values.len() <= MEMBERS => listed = Some((test, values)),
                _ => {}
            }
        }
        equal.sort_by_key(|(test, _)| test.column.as_str());
        let (columns, tuples): (Vec<&Typed>, Vec<Vec<&Value>>) = match listed {
            _ if !equal.is_empty() => {
                let (columns, values) = equal.into_iter().unzip();
                (columns, vec![values])
            }
            Some((test, values)) => (vec![test], values.iter().map(|v| vec![v]).collect()),
            None => {
                return Equalities {
                    columns: Vec::new(),
                    hashes: Vec::new(),
                };
            }
        };
        let hash = |values: Vec<&Value>| {
            let mut hash = DefaultHasher::new();
            for value in values {
                value.mark(&mut hash);
            }
            hash.finish()
        };
        let mut hashes: Vec<u64> = tuples.into_iter().map(hash).collect();
        hashes.sort_unstable();
        hashes.dedup();
        let columns = columns.into_iter();
        Equalities {
            columns: columns
                .map(|test| (test.column.clone(), test.kind))
                .collect(),
            hashes,
        }
    }

    /// The filter of `conditions`. Each comes with its kind, from [`decidable`], and its values as
    /// PostgreSQL reads them: JSON text of the literal cast to the column's type, in the order of
    /// [`Condition::values`]. `None` when such a text is not of the kind, or the counts differ.
    #[must_use]
    pub fn new<'a>(
        conditions: impl IntoIterator<Item = (&'a Condition, Kind, &'a [String])>,
    ) -> Option<Self> {
        let typed = |(condition, kind, json): (&Condition, Kind, &[String])| {
            let mut values = json
                .iter()
                .map(|json| Value::read(kind, json))
                .collect::<Option<Vec<Value>>>()?;
            if values.len() != condition.values().len() {
                return None;
            }
            let test = match &condition.test {
                Test::Compare(operator, _) => TypedTest::Compare(*operator, values.pop()?),
                Test::In(_) => {
                    values.sort_by(|a, b| a.order(b).unwrap_or(Ordering::Equal));
                    TypedTest::In(values)
                }
                Test::Is(truth) => TypedTest::Is(*truth),
                _ => return None,
            };
            Some(Typed {
                column: condition.column.clone(),
                negated: condition.negated,
                kind,
                test,
            })
        };
        let tests = conditions.into_iter().map(typed).collect::<Option<_>>()?;
        Some(Self { tests })
    }

    /// Whether there are no conditions.
    #[must_use]
    pub fn is_always(&self) -> bool {
        self.tests.is_empty()
    }

    /// Whether the row is in the view; `column` gives the JSON text of a column. As in a WHERE
    /// clause, a condition that is unknown keeps the row out.
    ///
    /// # Errors
    /// [`MissingColumn`].
    pub fn matches<'a>(
        &self,
        column: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<bool, MissingColumn> {
        // One condition that does not hold is enough, also where another cannot be looked at.
        let mut missing = false;
        for test in &self.tests {
            match column(&test.column) {
                Some(json) if test.holds(json) == Some(true) => {}
                Some(_) => return Ok(false),
                None => missing = true,
            }
        }
        if missing {
            return Err(MissingColumn);
        }
        Ok(true)
    }
}

impl Typed {
    /// Three-valued: `None` is unknown.
    fn holds(&self, json: &str) -> Option<bool> {
        let truth = match &self.test {
            TypedTest::Is(truth) => Some(match truth {
                Truth::Null | Truth::Unknown => json == "null",
                Truth::NotNull => json != "null",
                Truth::True => json == "true",
                Truth::False => json == "false",
            }),
            // `in ()` is false, also for null.
            TypedTest::In(values) if values.is_empty() => Some(false),
            _ => {
                let value = Value::read(self.kind, json)?;
                match &self.test {
                    TypedTest::Compare(operator, with) => Some(operator.holds(value.order(with)?)),
                    TypedTest::In(values) => {
                        let order = |with: &Value| with.order(&value).unwrap_or(Ordering::Less);
                        Some(values.binary_search_by(order).is_ok())
                    }
                    TypedTest::Is(_) => None,
                }
            }
        };
        truth.map(|truth| truth != self.negated)
    }
}

impl Operator {
    fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Eq => order.is_eq(),
            Self::Neq => order.is_ne(),
            Self::Gt => order.is_gt(),
            Self::Gte => order.is_ge(),
            Self::Lt => order.is_lt(),
            Self::Lte => order.is_le(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(condition: &str, base: &str, canonical: &[&str], json: &str) -> bool {
        let condition = Condition::parse("c", condition).unwrap();
        let facts = Facts {
            base,
            byte_ordered: true,
            deterministic: true,
        };
        let kind = decidable(&condition, facts).unwrap();
        let values: Vec<String> = canonical.iter().map(|v| (*v).to_owned()).collect();
        let matcher = Matcher::new([(&condition, kind, values.as_slice())]).unwrap();
        matcher.matches(|_| Some(json)).unwrap()
    }

    #[test]
    fn unknown_keeps_a_row_out_also_when_negated() {
        assert!(!matches("eq.1", "int4", &["1"], "null"));
        assert!(!matches("not.eq.1", "int4", &["1"], "null"));
        assert!(!matches("neq.1", "int4", &["1"], "null"));
        assert!(matches("not.in.()", "int4", &[], "null"));
        assert!(matches("is.null", "int4", &[], "null"));
        assert!(matches("not.is.null", "int4", &[], "0"));
        assert!(matches("is.unknown", "bool", &[], "null"));
        assert!(matches("not.is.true", "bool", &[], "null"));
    }

    #[test]
    fn comparisons_follow_the_type() {
        assert!(matches("gt.9", "int8", &["9"], "10"));
        assert!(matches("gt.9", "numeric", &["9"], "10.0"));
        assert!(!matches("gt.9", "text", &["\"9\""], "\"10\""));
        assert!(matches("in.(1,2)", "int4", &["1", "2"], "2"));
        assert!(matches("eq.x", "bpchar", &["\"x\""], "\"x    \""));
    }

    #[test]
    fn a_member_of_a_list_is_found_in_whatever_order_it_is_written() {
        let is_in = |listed: &[&str], base, json: &str| {
            let condition = format!("in.({})", listed.join(","));
            matches(&condition, base, listed, json)
        };
        let numbers = ["3", "NaN", "1.0", "-2", "Infinity", "10", "-Infinity", "3"];
        for json in [
            "3.00",
            "\"NaN\"",
            "1",
            "-2",
            "\"Infinity\"",
            "10",
            "\"-Infinity\"",
        ] {
            assert!(is_in(&numbers, "numeric", json), "{json}");
            assert!(is_in(&numbers, "float8", json), "{json}");
        }
        for json in ["2", "0", "1.01", "-3", "100", "null"] {
            assert!(!is_in(&numbers, "numeric", json), "{json}");
            assert!(!is_in(&numbers, "float8", json), "{json}");
        }
        let texts = ["\"b\"", "\"\"", "\"a\"", "\"B\""];
        for json in texts {
            assert!(is_in(&texts, "text", json), "{json}");
        }
        assert!(!is_in(&texts, "text", "\"A\""));
    }

    #[test]
    fn what_cannot_be_decided_is_refused() {
        let refused = |condition: &str, base, byte_ordered, deterministic| {
            let condition = Condition::parse("c", condition).unwrap();
            decidable(
                &condition,
                Facts {
                    base,
                    byte_ordered,
                    deterministic,
                },
            )
            .unwrap_err()
        };
        assert!(matches!(
            refused("eq.1", "jsonb", false, true),
            Refusal::Type(_)
        ));
        assert!(matches!(
            refused("is.null", "json", false, true),
            Refusal::Null(_)
        ));
        assert!(matches!(
            refused("lt.a", "text", false, true),
            Refusal::Order(_)
        ));
        assert!(matches!(
            refused("eq.a", "text", false, false),
            Refusal::Type(_)
        ));
        assert!(matches!(
            refused("gt.a", "enum", false, true),
            Refusal::Order(_)
        ));
        assert!(matches!(
            refused("like.a*", "text", true, true),
            Refusal::Operator(_)
        ));
        assert!(matches!(
            refused("is.true", "int4", false, true),
            Refusal::Truth(_)
        ));
        assert!(matches!(
            refused("gt.now", "time", false, true),
            Refusal::Moving(_)
        ));
        assert!(matches!(
            refused("gt.now", "timestamptz", false, true),
            Refusal::Moving(_)
        ));
    }
}
