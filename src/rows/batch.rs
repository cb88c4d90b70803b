//! Several requests in one body: `[{"method","path","headers","body","expect"}]`.
//!
//! Syntax only: which table or function a path means is the edge's to say. Bodies keep their text as
//! it was written. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Error;

/// Most operations in one body.
pub const MOST: usize = 100;

/// Bytes of an operation's path and query at most: as many as a request's may have.
const LONGEST_PATH: usize = 8 << 10;

/// One of the requests.
#[derive(Debug)]
pub struct Asked<'a> {
    /// What is to be done.
    pub method: Method,
    /// The table, or `rpc/` and the function, still encoded.
    pub path: String,
    /// The query without `?`, still encoded.
    pub query: String,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
    /// JSON text, as it was written.
    pub body: Option<&'a str>,
    /// How many rows it must affect, or show.
    pub expect: Option<u64>,
}

/// The method of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// Reads inside the transaction, and so sees what the operations before it have done.
    Get,
    /// Inserts, or calls a function.
    Post,
    /// Puts one row in its place.
    Put,
    /// Updates.
    Patch,
    /// Deletes.
    Delete,
}

/// Headers that mean something for one operation. `Content-Type` is let pass, as it can only be what
/// the whole body is.
const HEADERS: [&str; 7] = [
    "accept",
    "content-type",
    "if-match",
    "if-none-match",
    "prefer",
    "range",
    "range-unit",
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    method: Method,
    path: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(borrow, default)]
    body: Option<&'a RawValue>,
    #[serde(default)]
    expect: Option<u64>,
}

/// Reads the operations of a body.
///
/// # Errors
/// [`Error::Operations`], inside of [`Error::Operation`] when it is one of them.
pub fn parse(body: &[u8]) -> Result<Vec<Asked<'_>>, Error> {
    let wrong = |reason: &str| Error::Operations(reason.to_owned());
    let text = std::str::from_utf8(body).map_err(|_| wrong("the body is not UTF-8"))?;
    let list: Vec<&RawValue> =
        serde_json::from_str(text).map_err(|_| wrong("the body is not a JSON array"))?;
    if list.len() > MOST {
        return Err(wrong("there are more than 100"));
    }
    list.into_iter()
        .enumerate()
        .map(|(index, operation)| {
            asked(operation).map_err(|source| Error::Operation {
                index,
                source: Box::new(source),
            })
        })
        .collect()
}

fn asked(operation: &RawValue) -> Result<Asked<'_>, Error> {
    let wrong = |reason: String| Error::Operations(reason);
    let written: Written<'_> =
        serde_json::from_str(operation.get()).map_err(|error| wrong(error.to_string()))?;
    let mut headers = BTreeMap::new();
    for (name, value) in written.headers {
        let name = name.to_ascii_lowercase();
        if !HEADERS.contains(&name.as_str()) {
            return Err(wrong(format!("an operation has no header \"{name}\"")));
        }
        if headers.contains_key(&name) {
            return Err(wrong(format!("the header \"{name}\" is given twice")));
        }
        headers.insert(name, value);
    }
    if written.path.len() > LONGEST_PATH {
        return Err(wrong(format!(
            "a path of {} bytes is longer than {LONGEST_PATH}",
            written.path.len()
        )));
    }
    let preferences = headers.get("prefer").map_or("", String::as_str).split(',');
    for preference in preferences.map(str::trim) {
        if preference.starts_with("tx=") || preference.starts_with("timezone=") {
            return Err(wrong(format!(
                "{preference} can only be said of all operations"
            )));
        }
    }
    // `null` is what a client without a body may write.
    let body = written
        .body
        .map(RawValue::get)
        .filter(|body| *body != "null");
    if body.is_some() && matches!(written.method, Method::Get | Method::Delete) {
        return Err(wrong("GET and DELETE have no body".to_owned()));
    }
    let path = written.path.strip_prefix("/rest/v1/");
    let path = path.or(written.path.strip_prefix('/'));
    let path = path.unwrap_or(&written.path);
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    Ok(Asked {
        method: written.method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body,
        expect: written.expect,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_a_request_whose_body_keeps_its_text() {
        let body = br#"[{"method":"PATCH","path":"/rest/v1/cards?id=eq.7","headers":{"Prefer":"return=minimal"},
            "body": {"n": 1e999,"s":"\u0000"},"expect":1},
            {"path":"rpc/f","method":"POST"},{"method":"DELETE","path":"/cards?id=eq.7","body":null}]"#;
        let asked = parse(body).unwrap();
        assert_eq!(asked[0].method, Method::Patch);
        assert_eq!(
            (asked[0].path.as_str(), asked[0].query.as_str()),
            ("cards", "id=eq.7")
        );
        assert_eq!(asked[0].headers["prefer"], "return=minimal");
        assert_eq!(asked[0].body, Some("{\"n\": 1e999,\"s\":\"\\u0000\"}"));
        assert_eq!(asked[0].expect, Some(1));
        assert_eq!((asked[1].path.as_str(), asked[1].body), ("rpc/f", None));
        assert_eq!((asked[2].path.as_str(), asked[2].body), ("cards", None));
        assert!(parse(b"[]").unwrap().is_empty());
    }

    #[test]
    fn what_is_no_operation_is_refused_with_its_place() {
        for body in ["", "{}", "7", "[", "\u{0}"] {
            assert!(matches!(parse(body.as_bytes()), Err(Error::Operations(_))));
        }
        let many = format!("[{}]", vec!["{}"; MOST + 1].join(","));
        assert!(matches!(parse(many.as_bytes()), Err(Error::Operations(_))));
        let good = r#"{"method":"GET","path":"a"}"#;
        for wrong in [
            "7",
            "{}",
            r#"{"method":"GET"}"#,
            r#"{"method":"OPTIONS","path":"a"}"#,
            r#"{"method":"get","path":"a"}"#,
            r#"{"method":"GET","path":"a","body":{}}"#,
            r#"{"method":"GET","path":"a","expect":-1}"#,
            r#"{"method":"GET","path":"a","expected":1}"#,
            r#"{"method":"GET","path":"a","headers":{"Authorization":"x"}}"#,
            r#"{"method":"GET","path":"a","headers":{"Prefer":1}}"#,
            r#"{"method":"GET","path":"a","headers":{"Prefer":"count=exact, tx=rollback"}}"#,
            r#"{"method":"GET","path":"a","headers":{"Prefer":"return=minimal","prefer":"count=exact"}}"#,
            &format!(
                r#"{{"method":"GET","path":"a?b=eq.{}"}}"#,
                "x".repeat(LONGEST_PATH)
            ),
        ] {
            let body = format!("[{good},{wrong}]");
            let refused = parse(body.as_bytes());
            assert!(
                matches!(refused, Err(Error::Operation { index: 1, .. })),
                "{wrong}: {refused:?}"
            );
        }
    }
}
