//! What a function in the database wants of the response: the settings `response.status` and
//! `response.headers`, and errors in its own words.
//!
//! Promises that what is taken is a status that ends a response and headers that are safe to send.
//! Pure: it does not know how responses are made.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Error;

/// A status and headers of a function's own choice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overrides {
    /// 200 to 599.
    pub status: Option<u16>,
    /// Names in lower case, and values; a name may come several times.
    pub headers: Vec<(String, String)>,
}

/// Where a message begins and ends is nobody's business but the edge's.
const FRAMING: [&str; 8] = [
    "connection",
    "content-length",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "proxy-connection",
];

impl Overrides {
    /// Reads the two settings. One that was never set is null, and one that another transaction of
    /// the same connection has set is empty.
    ///
    /// # Errors
    /// [`Error::ResponseStatus`], [`Error::ResponseHeaders`].
    pub fn parse(status: Option<&str>, headers: Option<&str>) -> Result<Self, Error> {
        let said = |text: &&str| !text.is_empty();
        Ok(Self {
            status: status.filter(said).map(self::status).transpose()?,
            headers: headers
                .filter(said)
                .map(self::headers)
                .transpose()?
                .unwrap_or_default(),
        })
    }
}

/// An error in a function's own words, raised with the SQLSTATE `PGRST`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raised {
    /// What is told.
    pub words: Words,
    /// How; it always has a status.
    pub overrides: Overrides,
}

/// What a function tells, as JSON in the error's message.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Words {
    /// A code of its own.
    pub code: String,
    /// What happened.
    pub message: String,
    /// What was found.
    pub details: Option<String>,
    /// What to try.
    pub hint: Option<String>,
}

/// How a function tells it, as JSON in the error's detail.
#[derive(Deserialize)]
struct Manner {
    status: u16,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

impl Raised {
    /// The SQLSTATE that says so.
    pub const SQLSTATE: &str = "PGRST";

    /// Reads an error's message and detail.
    ///
    /// # Errors
    /// Which of them cannot be read, and why.
    pub fn parse(message: &str, detail: Option<&str>) -> Result<Self, String> {
        let words = serde_json::from_str(message)
            .map_err(|error| format!("the message is no error as JSON: {error}"))?;
        let detail = detail.ok_or("there is no detail")?;
        let manner: Manner = serde_json::from_str(detail)
            .map_err(|error| format!("the detail is no status as JSON: {error}"))?;
        let wrong = |error: Error| error.to_string();
        Ok(Self {
            words,
            overrides: Overrides {
                status: Some(status(&manner.status.to_string()).map_err(wrong)?),
                headers: checked(manner.headers).map_err(wrong)?,
            },
        })
    }
}

/// An informational status would leave the request without an answer.
fn status(text: &str) -> Result<u16, Error> {
    let number = text.trim().parse().ok();
    number
        .filter(|status| (200..=599).contains(status))
        .ok_or_else(|| Error::ResponseStatus(text.chars().take(20).collect()))
}

fn headers(text: &str) -> Result<Vec<(String, String)>, Error> {
    let wrong = Error::ResponseHeaders;
    let members: Vec<BTreeMap<String, String>> =
        serde_json::from_str(text).map_err(|_| wrong("it is something else"))?;
    let mut headers = Vec::new();
    for member in members {
        if member.len() != 1 {
            return Err(wrong("an object has none or several"));
        }
        headers.extend(checked(member)?);
    }
    Ok(headers)
}

/// The same with names in lower case, if all of it is safe to send.
fn checked(headers: BTreeMap<String, String>) -> Result<Vec<(String, String)>, Error> {
    let wrong = Error::ResponseHeaders;
    let headers = headers.into_iter().map(|(name, value)| {
        let name = name.to_ascii_lowercase();
        if !is_name(&name) {
            return Err(wrong("a name is not a header's"));
        }
        if FRAMING.contains(&name.as_str()) {
            return Err(wrong(
                "a header of the connection is not the function's to set",
            ));
        }
        if !value
            .bytes()
            .all(|byte| matches!(byte, b' '..=b'~' | b'\t'))
        {
            return Err(wrong("a value has characters that a header may not have"));
        }
        Ok((name, value))
    });
    headers.collect()
}

/// A token of RFC 9110, section 5.6.2.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers_of(text: &str) -> Result<Vec<(String, String)>, Error> {
        Overrides::parse(None, Some(text)).map(|overrides| overrides.headers)
    }

    #[test]
    fn an_error_of_its_own_words_is_read_whole_or_not_at_all() {
        let words = r#"{"code":"A1","message":"pay","hint":"at the counter","more":1}"#;
        let manner = r#"{"status":402,"status_text":"Pay","headers":{"X-Due":"5"}}"#;
        let raised = Raised::parse(words, Some(manner)).unwrap();
        assert_eq!(raised.words.code, "A1");
        assert_eq!(raised.words.details, None);
        assert_eq!(raised.words.hint.as_deref(), Some("at the counter"));
        assert_eq!(raised.overrides.status, Some(402));
        assert_eq!(raised.overrides.headers, [("x-due".into(), "5".into())]);
        for (message, detail) in [
            ("pay", Some(manner)),
            (r#"{"message":"pay"}"#, Some(manner)),
            (words, None),
            (words, Some("402")),
            (words, Some(r#"{"status":102}"#)),
            (words, Some(r#"{"status":402,"headers":{"a b":"1"}}"#)),
            (words, Some(r#"{"status":402,"headers":{"a":"1\n"}}"#)),
            (
                words,
                Some(r#"{"status":402,"headers":{"Connection":"close"}}"#),
            ),
        ] {
            assert!(
                Raised::parse(message, detail).is_err(),
                "{message} {detail:?}"
            );
        }
    }

    #[test]
    fn what_was_not_set_changes_nothing() {
        assert_eq!(Overrides::parse(None, None).unwrap(), Overrides::default());
        let empty = Overrides::parse(Some(""), Some("")).unwrap();
        assert_eq!(empty, Overrides::default());
    }

    #[test]
    fn a_status_is_one_that_ends_a_response() {
        let status = |text| Overrides::parse(Some(text), None).map(|o| o.status);
        assert_eq!(status("418").unwrap(), Some(418));
        for wrong in ["101", "0", "600", "-1", "teapot", "200 OK"] {
            assert!(
                matches!(status(wrong), Err(Error::ResponseStatus(_))),
                "{wrong}"
            );
        }
    }

    #[test]
    fn headers_are_single_and_harmless() {
        let cookies = r#"[{"Set-Cookie":"a=1"},{"set-cookie":"b=2"},{"X-A":""}]"#;
        let names: Vec<_> = headers_of(cookies)
            .unwrap()
            .into_iter()
            .map(|(name, value)| format!("{name}:{value}"))
            .collect();
        assert_eq!(names, ["set-cookie:a=1", "set-cookie:b=2", "x-a:"]);
        for wrong in [
            "{}",
            "7",
            "[",
            r#"[{"a":1}]"#,
            r#"[{"a":"1","b":"2"}]"#,
            "[{}]",
            r#"[{"":"1"}]"#,
            r#"[{"a b":"1"}]"#,
            r#"[{"a":"1\r\nb: 2"}]"#,
            r#"[{"Content-Length":"0"}]"#,
            r#"[{"transfer-encoding":"chunked"}]"#,
        ] {
            assert!(
                matches!(headers_of(wrong), Err(Error::ResponseHeaders(_))),
                "{wrong}"
            );
        }
    }
}
