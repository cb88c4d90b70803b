//! The rows in a request's body: where each begins and ends, and which keys it has.
//!
//! Values are never converted: they go to PostgreSQL as they were written. Pure.

use std::collections::BTreeSet;
use std::fmt;

use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::Error;

/// The rows of one body.
#[derive(Debug)]
pub struct Payload<'a> {
    /// In the order of the body.
    pub rows: Vec<Row<'a>>,
}

/// One JSON object.
#[derive(Debug)]
pub struct Row<'a> {
    /// Its text.
    pub text: &'a str,
    /// Its keys.
    pub keys: BTreeSet<String>,
}

impl<'a> Payload<'a> {
    /// Reads an object or an array of objects.
    ///
    /// # Errors
    /// [`Error::Body`].
    pub fn parse(body: &'a [u8]) -> Result<Self, Error> {
        let text = std::str::from_utf8(body).map_err(|_| Error::Body("it is not UTF-8"))?;
        if text.trim().is_empty() {
            return Err(Error::Body("it is empty"));
        }
        let whole: &RawValue =
            serde_json::from_str(text).map_err(|_| Error::Body("it is not JSON"))?;
        let texts: Vec<&RawValue> = if whole.get().starts_with('[') {
            serde_json::from_str(whole.get()).map_err(|_| Error::Body("it is not JSON"))?
        } else {
            vec![whole]
        };
        let rows = texts
            .into_iter()
            .map(Row::parse)
            .collect::<Result<_, _>>()?;
        Ok(Self { rows })
    }
}

impl<'a> Row<'a> {
    fn parse(value: &'a RawValue) -> Result<Self, Error> {
        let Keys(keys) = serde_json::from_str(value.get())
            .map_err(|_| Error::Body("it is neither an object nor an array of objects"))?;
        Ok(Self {
            text: value.get(),
            keys,
        })
    }
}

/// A form as the text of one JSON object of strings; the later of two equal names counts.
///
/// # Errors
/// [`Error::Body`].
pub fn from_form(form: &[u8]) -> Result<Vec<u8>, Error> {
    let form = std::str::from_utf8(form).map_err(|_| Error::Body("it is not UTF-8"))?;
    // What programs send that are told nothing else, like curl -d. A form would have encoded it.
    if form.trim_start().starts_with(['{', '[']) {
        return Err(Error::Body(
            "it is sent as a form and looks like JSON: Content-Type: application/json is missing",
        ));
    }
    let mut object = serde_json::Map::new();
    for pair in form.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        object.insert(decoded(name)?, decoded(value)?.into());
    }
    Ok(serde_json::Value::from(object).to_string().into_bytes())
}

/// Bytes that are not UTF-8 are refused, for a replaced one would be another value.
fn decoded(text: &str) -> Result<String, Error> {
    let spaced = text.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8();
    decoded.map_or(Err(Error::Body("it is not UTF-8")), |text| {
        Ok(text.into_owned())
    })
}

/// The keys of an object, its values skipped.
struct Keys(BTreeSet<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = BTreeSet::new();
                while let Some((key, IgnoredAny)) = map.next_entry()? {
                    keys.insert(key);
                }
                Ok(Keys(keys))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_their_text_as_it_was_written() {
        let payload = Payload::parse(b" [ {\"a\": 1e999, \"b\":[1, 2]} ,{}] ").unwrap();
        assert_eq!(payload.rows[0].text, "{\"a\": 1e999, \"b\":[1, 2]}");
        assert!(payload.rows[0].keys.iter().eq(["a", "b"]));
        assert!(payload.rows[1].keys.is_empty());
        assert_eq!(Payload::parse(b"{\"a\":1}").unwrap().rows.len(), 1);
        assert!(Payload::parse(b"[]").unwrap().rows.is_empty());
    }

    #[test]
    fn what_is_not_rows_is_refused() {
        for body in [
            &b""[..],
            b" ",
            b"7",
            b"[1]",
            b"[{},null]",
            b"{\"a\":1",
            b"{} {}",
            b"\xff",
            b"\"a\"",
        ] {
            assert!(
                matches!(Payload::parse(body), Err(Error::Body(_))),
                "{body:?}"
            );
        }
    }

    #[test]
    fn a_form_is_one_row_of_texts() {
        let form =
            |text: &str| from_form(text.as_bytes()).map(|json| String::from_utf8(json).unwrap());
        assert_eq!(
            form("title=a+%22b%22%26&id=1&id=2&empty=&bare").unwrap(),
            r#"{"title":"a \"b\"&","id":"2","empty":"","bare":""}"#
        );
        assert_eq!(form("").unwrap(), "{}");
        assert!(matches!(form("a=%ff"), Err(Error::Body(_))));
        assert!(matches!(from_form(b"\xff"), Err(Error::Body(_))));
        for json in [&b"{\"a\":1}"[..], b" [{}]"] {
            let refused = from_form(json).unwrap_err().to_string();
            assert!(refused.contains("application/json"), "{refused}");
        }
        assert!(form("%7Ba=1").is_ok());
    }

    #[test]
    fn deep_nesting_is_no_danger_to_the_stack() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(Payload::parse(deep.as_bytes()).unwrap().rows.len(), 1);
    }
}
