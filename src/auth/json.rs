//! JSON as tokens and keys must be written: one meaning for every reader.
//!
//! Promises that no object in the text names a member twice, at any depth: two readers of such a
//! text can see two different things in it. Values stay the text they were, so that no number is
//! rounded on its way to a policy. It does not know what the members mean.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// The members of an object by name, each the text it was.
pub(super) type Members = BTreeMap<String, Box<RawValue>>;

/// Reads one object. Members named twice, anything after the object, nesting beyond 128 levels and
/// what is not JSON are errors; they are not told apart, since nobody may fix a token.
pub(super) fn object(bytes: &[u8]) -> Option<Members> {
    let text = std::str::from_utf8(bytes).ok()?;
    serde_json::from_str::<Unambiguous>(text).ok()?;
    serde_json::from_str(text).ok()
}

/// One member of an object as a type of its own; `None` also when it is of another type.
pub(super) fn typed<'a, T: Deserialize<'a>>(value: &'a RawValue) -> Option<T> {
    serde_json::from_str(value.get()).ok()
}

/// A text as the JSON value that says it.
pub(super) fn text(text: &str) -> Box<RawValue> {
    serde_json::value::to_raw_value(text).expect("a string becomes JSON")
}

/// The object as text, members in order of their names.
pub(super) fn write(members: &Members) -> String {
    serde_json::to_string(members).expect("texts and values become JSON")
}

/// Any value in which no object names a member twice. Nothing of it is kept.
struct Unambiguous;

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Look)
    }
}

struct Look;

impl<'de> DeserializeSeed<'de> for Look {
    type Value = Unambiguous;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Unambiguous, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Look {
    type Value = Unambiguous;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }

    fn visit_unit<E: Error>(self) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Unambiguous, A::Error> {
        while items.next_element_seed(Look)?.is_some() {}
        Ok(Unambiguous)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Unambiguous, A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = members.next_key::<String>()? {
            if !names.insert(name) {
                return Err(A::Error::custom("a member is named twice"));
            }
            members.next_value_seed(Look)?;
        }
        Ok(Unambiguous)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_is_named_twice_is_refused_at_any_depth_and_in_any_spelling() {
        for twice in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":1}"#,
            r#"{"x":{"a":1,"a":1}}"#,
            r#"{"x":[[{"a":1,"a":1}]]}"#,
        ] {
            assert!(object(twice.as_bytes()).is_none(), "{twice}");
        }
        assert!(object(br#"{"a":{"a":1},"b":{"a":1}}"#).is_some());
    }

    #[test]
    fn what_is_not_one_object_is_refused() {
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(200), "]".repeat(200));
        for wrong in ["", "7", "[]", "null", "{}x", "{} {}", "{\"a\":01}", &deep] {
            assert!(object(wrong.as_bytes()).is_none(), "{wrong}");
        }
        assert!(object(b"{\"a\":\"\xff\"}").is_none());
    }

    #[test]
    fn a_number_that_no_machine_word_holds_stays_what_it_was() {
        let members = object(br#"{"b":18446744073709551617,"a":0.10}"#).unwrap();
        assert_eq!(write(&members), r#"{"a":0.10,"b":18446744073709551617}"#);
    }
}
