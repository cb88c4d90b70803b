//! A request that is sent again after a lost answer writes once: `Idempotency-Key`
//! (draft-ietf-httpapi-idempotency-key-header).
//!
//! Promises that the key and the answer are kept in the transaction of the write itself, so that
//! either both hold or neither does, and that nobody meets the key of somebody else. The functions
//! it calls are SECURITY DEFINER and are told to one session login and role at a time. Pure: it
//! makes the statements, and `execute` runs them. It does not know what an answer means.

use std::fmt::Write;

use ring::digest::{Context, SHA256};

use super::Error;
use super::statement::Statement;

/// Longest key, in bytes.
pub const LONGEST: usize = 255;
/// Largest body that is kept, in bytes.
pub const LARGEST: usize = 1 << 20;

/// A key with whose it is and what request it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Once {
    caller: String,
    key: String,
    fingerprint: String,
}

/// An answer as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// Its status.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// Empty when there was none, or when it was too large to be kept.
    pub body: String,
    /// It was too large to be kept.
    pub omitted: bool,
}

/// What can be kept.
pub trait Recorded {
    /// As it is kept, if its body is no larger than [`LARGEST`].
    fn record(&self) -> Record;
}

/// An answer, or the one that was given before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered<A> {
    /// It was done now.
    Now(A),
    /// It was done before.
    Before(Record),
}

impl Once {
    /// `caller` is who asks, the same for all tokens of one person; `header` the key as it was sent;
    /// `request` what the request consists of, part by part.
    ///
    /// # Errors
    /// [`Error::Key`].
    pub fn of(caller: &str, header: &str, request: &[&[u8]]) -> Result<Self, Error> {
        Ok(Self {
            caller: digest(&[caller.as_bytes()]),
            key: key(header)?,
            fingerprint: digest(request),
        })
    }

    /// Claims the key. Waits while somebody else has claimed it and not ended. Answers one row of
    /// `known boolean, same boolean, status integer, headers text, body text, omitted boolean`.
    pub(super) fn begin(&self) -> Statement {
        let params = [&self.caller, &self.key, &self.fingerprint];
        Statement::untyped(
            "select * from rowcast.begin_idempotent($1, $2, $3)",
            params.map(Clone::clone).to_vec(),
        )
    }

    /// Keeps the answer.
    pub(super) fn end(&self, record: &Record) -> Statement {
        let headers = serde_json::to_string(&record.headers).expect("strings become JSON");
        Statement::untyped(
            "select rowcast.end_idempotent($1, $2, $3, $4, $5, $6)",
            vec![
                self.caller.clone(),
                self.key.clone(),
                record.status.to_string(),
                headers,
                record.body.clone(),
                record.omitted.to_string(),
            ],
        )
    }
}

/// A SHA-256 of parts that cannot run into each other.
fn digest(parts: &[&[u8]]) -> String {
    let mut hash = Context::new(&SHA256);
    for part in parts {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let mut text = String::with_capacity(64);
    for byte in hash.finish().as_ref() {
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}

/// A string of RFC 8941 §3.3.3 in its quotes, or the same without them.
fn key(header: &str) -> Result<String, Error> {
    let header = header.trim();
    let key = match header.strip_prefix('"') {
        Some(quoted) => unquoted(quoted)?,
        None if header.bytes().all(|byte| byte.is_ascii_graphic()) => header.to_owned(),
        None => return Err(Error::Key("it is not visible ASCII")),
    };
    match key.len() {
        0 => Err(Error::Key("it is empty")),
        1..=LONGEST => Ok(key),
        _ => Err(Error::Key("it is longer than 255 bytes")),
    }
}

/// What follows the opening quote, without the closing one.
fn unquoted(text: &str) -> Result<String, Error> {
    let mut key = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next() {
            None => return Err(Error::Key("its closing quote is missing")),
            Some('"') if chars.as_str().is_empty() => return Ok(key),
            Some('"') => return Err(Error::Key("something follows its closing quote")),
            Some('\\') => match chars.next() {
                Some(escaped @ ('"' | '\\')) => key.push(escaped),
                _ => return Err(Error::Key("a backslash escapes neither a quote nor itself")),
            },
            Some(plain @ ' '..='~') => key.push(plain),
            Some(_) => return Err(Error::Key("it is not visible ASCII")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(header: &str) -> Option<String> {
        Once::of("ann", header, &[]).ok().map(|once| once.key)
    }

    #[test]
    fn a_key_is_a_quoted_string_or_a_bare_word() {
        assert_eq!(read("\"8e03 9\""), Some("8e03 9".to_owned()));
        assert_eq!(read("\"a\\\"\\\\b\""), Some("a\"\\b".to_owned()));
        assert_eq!(read(" 8e03-97;x "), Some("8e03-97;x".to_owned()));
        assert_eq!(read("\"same\""), read("same"));
        assert!(read(&"k".repeat(LONGEST)).is_some());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let long = "k".repeat(LONGEST + 1);
        for wrong in [
            "",
            " ",
            "\"\"",
            "\"a",
            "\"a\" b",
            "\"a\",\"b\"",
            "\"\\n\"",
            "a b",
            "caf\u{e9}",
            "\"caf\u{e9}\"",
            &long,
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn requests_that_differ_anywhere_have_other_fingerprints() {
        let of = |parts: &[&[u8]]| Once::of("ann", "k", parts).unwrap().fingerprint;
        assert_eq!(of(&[b"POST", b"/a"]), of(&[b"POST", b"/a"]));
        assert_ne!(of(&[b"POST", b"/a"]), of(&[b"POST/", b"a"]));
        assert_ne!(of(&[b"POST", b""]), of(&[b"POST"]));
        let bob = Once::of("bob", "k", &[]).unwrap();
        assert_ne!(bob.caller, Once::of("ann", "k", &[]).unwrap().caller);
    }
}
