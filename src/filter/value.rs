//! Values of the types whose comparison the relay can repeat exactly.
//!
//! Both sides come as JSON text that PostgreSQL wrote under the same pinned settings: the column's
//! side from a row image, the filter's side from `to_json` of the cast literal.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};

/// How the values of a type compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `bool`
    Bool,
    /// `int2 int4 int8`
    Int,
    /// `numeric`
    Decimal,
    /// `float4 float8`
    Float,
    /// Equal as text, ordered as bytes: text under a byte-wise collation, `uuid`, `bytea`, `time`.
    Text,
    /// `bpchar`: as text without its trailing blanks.
    Blank,
    /// `date timestamp timestamptz`
    Instant,
}

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `true` or `false`.
    Bool(bool),
    /// Any integer type.
    Int(i64),
    /// A `numeric`, kept as digits.
    Decimal(Decimal),
    /// A binary floating point number.
    Float(f64),
    /// Text that compares as bytes.
    Text(String),
    /// A point in time: year (1 BC is 0) and the rest of its ISO text. Infinities are the largest
    /// and smallest years.
    Instant(i64, String),
}

/// A `numeric`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decimal {
    /// Below every number.
    NegativeInfinity,
    /// Sign, integer digits without leading zeros, fraction digits without trailing zeros.
    Finite(bool, String, String),
    /// Above every number.
    Infinity,
    /// Equal to itself and above everything, unlike in IEEE 754.
    NaN,
}

impl Value {
    /// Reads JSON text of a value of that kind. `None` for JSON null and for text that PostgreSQL
    /// does not write for the kind.
    #[must_use]
    pub fn read(kind: Kind, json: &str) -> Option<Self> {
        let text = || serde_json::from_str::<String>(json).ok();
        let bare = || text().unwrap_or_else(|| json.to_owned());
        match kind {
            _ if json == "null" => None,
            Kind::Bool => json.parse().ok().map(Self::Bool),
            Kind::Int => json.parse().ok().map(Self::Int),
            Kind::Decimal => Decimal::read(&bare()).map(Self::Decimal),
            Kind::Float => bare().parse().ok().map(Self::Float),
            Kind::Text => text().map(Self::Text),
            Kind::Blank => text().map(|text| Self::Text(text.trim_end_matches(' ').to_owned())),
            Kind::Instant => instant(&text()?),
        }
    }

    /// Adds the value to a hash: values of one kind that are equal, in the sense of [`Self::order`],
    /// add the same.
    pub fn mark(&self, hash: &mut impl Hasher) {
        match self {
            Self::Bool(value) => value.hash(hash),
            Self::Int(value) => value.hash(hash),
            Self::Decimal(Decimal::Finite(negative, whole, fraction)) => {
                (negative, whole, fraction).hash(hash);
            }
            Self::Decimal(Decimal::NegativeInfinity) => "-Infinity".hash(hash),
            Self::Decimal(Decimal::Infinity) => "Infinity".hash(hash),
            Self::Decimal(Decimal::NaN) => "NaN".hash(hash),
            Self::Float(value) if value.is_nan() => f64::NAN.to_bits().hash(hash),
            // Zeros are equal: adding one to the other gives the positive one.
            Self::Float(value) => (value + 0.0).to_bits().hash(hash),
            Self::Text(text) => text.hash(hash),
            Self::Instant(year, rest) => (year, rest).hash(hash),
        }
    }

    /// The order PostgreSQL gives two values of one type.
    ///
    /// Values of different kinds never meet, since both sides are read as the column's kind; they
    /// would be unordered.
    #[must_use]
    pub fn order(&self, other: &Self) -> Option<Ordering> {
        Some(match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            (Self::Int(a), Self::Int(b)) => a.cmp(b),
            (Self::Decimal(a), Self::Decimal(b)) => a.order(b),
            // NaN equals itself and lies above infinity; zeros are equal.
            (Self::Float(a), Self::Float(b)) => a
                .partial_cmp(b)
                .unwrap_or_else(|| a.is_nan().cmp(&b.is_nan())),
            (Self::Text(a), Self::Text(b)) => a.as_bytes().cmp(b.as_bytes()),
            (Self::Instant(a, rest), Self::Instant(b, other)) => {
                a.cmp(b).then_with(|| rest.cmp(other))
            }
            _ => return None,
        })
    }
}

impl Decimal {
    fn read(text: &str) -> Option<Self> {
        Some(match text {
            "NaN" => Self::NaN,
            "Infinity" => Self::Infinity,
            "-Infinity" => Self::NegativeInfinity,
            _ => {
                let (negative, digits) = match text.strip_prefix('-') {
                    Some(digits) => (true, digits),
                    None => (false, text),
                };
                let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
                let digits_only = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
                if whole.is_empty() || !digits_only(whole) || !digits_only(fraction) {
                    return None;
                }
                let whole = whole.trim_start_matches('0').to_owned();
                let fraction = fraction.trim_end_matches('0').to_owned();
                let zero = whole.is_empty() && fraction.is_empty();
                Self::Finite(negative && !zero, whole, fraction)
            }
        })
    }

    fn order(&self, other: &Self) -> Ordering {
        let rank = |decimal: &Self| match decimal {
            Self::NegativeInfinity => 0,
            Self::Finite(..) => 1,
            Self::Infinity => 2,
            Self::NaN => 3,
        };
        match (self, other) {
            (Self::Finite(a_negative, a, a_fraction), Self::Finite(b_negative, b, b_fraction)) => {
                let magnitude = || {
                    (a.len().cmp(&b.len()))
                        .then_with(|| a.cmp(b))
                        .then_with(|| a_fraction.cmp(b_fraction))
                };
                match (a_negative, b_negative) {
                    (false, false) => magnitude(),
                    (true, true) => magnitude().reverse(),
                    (true, false) => Ordering::Less,
                    (false, true) => Ordering::Greater,
                }
            }
            _ => rank(self).cmp(&rank(other)),
        }
    }
}

/// ISO text as `row_to_json` writes dates and timestamps in UTC: `2026-11-22`,
/// `12026-11-22T12:00:00.5+00:00`, `0044-03-15 BC`, `infinity`. What follows the year has fixed
/// width up to the fraction of a second, where more digits are later, so text order is time order.
fn instant(text: &str) -> Option<Value> {
    match text {
        "infinity" => return Some(Value::Instant(i64::MAX, String::new())),
        "-infinity" => return Some(Value::Instant(i64::MIN, String::new())),
        _ => {}
    }
    let (text, before_christ) = match text.strip_suffix(" BC") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let (year, rest) = text.split_once('-')?;
    let year: i64 = year.parse().ok()?;
    let rest = rest.strip_suffix("+00:00").unwrap_or(rest);
    let year = if before_christ { 1 - year } else { year };
    Some(Value::Instant(year, rest.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(value: &Value) -> u64 {
        let mut hash = std::hash::DefaultHasher::new();
        value.mark(&mut hash);
        hash.finish()
    }

    fn ascending(kind: Kind, values: &[&str]) {
        let values: Vec<Value> = values
            .iter()
            .map(|json| Value::read(kind, json).unwrap_or_else(|| panic!("{json}")))
            .collect();
        for (i, a) in values.iter().enumerate() {
            for (j, b) in values.iter().enumerate() {
                assert_eq!(a.order(b), Some(i.cmp(&j)), "{a:?} {b:?}");
                assert_eq!(marked(a) == marked(b), i == j, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn values_are_ordered_as_postgresql_orders_them() {
        ascending(Kind::Bool, &["false", "true"]);
        ascending(Kind::Int, &["-9223372036854775808", "-1", "0", "10"]);
        ascending(
            Kind::Decimal,
            &[
                "\"-Infinity\"",
                "-10.5",
                "-10.05",
                "-1",
                "0",
                "0.001",
                "0.01",
                "9",
                "10",
                "123456789012345678901234567890",
                "\"Infinity\"",
                "\"NaN\"",
            ],
        );
        ascending(
            Kind::Float,
            &[
                "\"-Infinity\"",
                "-1e+300",
                "-0.5",
                "0",
                "1e-07",
                "\"Infinity\"",
                "\"NaN\"",
            ],
        );
        ascending(
            Kind::Text,
            &[
                "\"\"",
                "\"A\"",
                "\"a\"",
                "\"ab\"",
                "\"é\"",
                "\"\u{ffff}\"",
                "\"\u{1f600}\"",
            ],
        );
        ascending(
            Kind::Instant,
            &[
                "\"-infinity\"",
                "\"0044-03-15 BC\"",
                "\"0001-01-01 BC\"",
                "\"0001-01-01\"",
                "\"2026-11-22T12:00:00+00:00\"",
                "\"2026-11-22T12:00:00.000001+00:00\"",
                "\"2026-11-22T12:00:00.1+00:00\"",
                "\"10000-01-01T00:00:00+00:00\"",
                "\"infinity\"",
            ],
        );
    }

    #[test]
    fn equal_values_may_be_written_differently() {
        let equal = |kind, a, b| {
            let (a, b) = (Value::read(kind, a).unwrap(), Value::read(kind, b).unwrap());
            assert_eq!(a.order(&b), Some(Ordering::Equal));
            assert_eq!(marked(&a), marked(&b), "{a:?} {b:?}");
        };
        equal(Kind::Decimal, "1.50", "1.5");
        equal(Kind::Decimal, "-0.00", "0");
        equal(Kind::Float, "-0", "0");
        equal(Kind::Blank, "\"ab   \"", "\"ab\"");
        assert_eq!(Value::read(Kind::Int, "null"), None);
    }
}
