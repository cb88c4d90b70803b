//! What a function in the database wants of the response: the settings `response.status` and
//! `response.headers`.
//!
//! Promises that what is taken is a status that ends a response and headers that are safe to send.
//! Pure: it does not know how responses are made.

use std::collections::BTreeMap;

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
        for (name, value) in member {
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
            headers.push((name, value));
        }
    }
    Ok(headers)
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
