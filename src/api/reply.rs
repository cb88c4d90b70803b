//! An answer about rows before it is sent: its body is text, so that it can be kept, and put among
//! others.
//!
//! It does not know what was asked.

use std::sync::Arc;

use hyper::StatusCode;
use hyper::header::{
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
};

use crate::http::{Response, body};
use crate::rows::once::{self, Answered, Record, Recorded};
use crate::rows::response::Overrides;
use crate::share::Share;

/// Says that an answer was given before: `true`, or `true; body=omitted` when its body was too large
/// to be kept.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers, without those that only sending it shows.
    pub headers: HeaderMap,
    /// Its text; `None` where there is nothing to say.
    pub body: Option<String>,
    /// The room that its text has.
    pub share: Option<Share>,
}

impl Reply {
    /// Nothing to say.
    #[must_use]
    pub fn empty(status: StatusCode) -> Self {
        Self {
            status,
            headers: HeaderMap::new(),
            body: None,
            share: None,
        }
    }

    /// JSON text.
    #[must_use]
    pub fn json(text: String, media: HeaderValue) -> Self {
        let mut reply = Self::empty(StatusCode::OK);
        reply.headers.insert(CONTENT_TYPE, media);
        reply.body = Some(text);
        reply
    }

    /// The same, which nobody on the way may keep.
    #[must_use]
    pub fn secret(mut self) -> Self {
        let no_store = HeaderValue::from_static("no-store");
        self.headers.insert(CACHE_CONTROL, no_store);
        self
    }

    /// The same without what was to be said.
    pub fn hush(&mut self) {
        self.body = None;
        self.headers.remove(CONTENT_TYPE);
    }

    /// Lets a function in the database have its way with the answer.
    ///
    /// # Panics
    /// Never: `Overrides` are checked to be a status.
    pub fn apply(&mut self, overrides: &Overrides) {
        if let Some(status) = overrides.status {
            self.status = StatusCode::from_u16(status).expect("checked to be one");
            if is_bodiless(self.status) {
                self.hush();
            }
        }
        put(&mut self.headers, overrides);
    }

    /// The answer that was given now, which has its room in `share`, or the one that was given before.
    #[must_use]
    pub fn of(answered: Answered<Self>, share: Share) -> Self {
        match answered {
            Answered::Now(reply) => reply.sharing(share),
            Answered::Before(record) => record.into(),
        }
    }

    /// The same with the room that its text has.
    #[must_use]
    pub fn sharing(mut self, share: Share) -> Self {
        self.share = Some(share);
        self
    }

    /// As it is sent. What has taken some of the budget says so in the extensions.
    #[must_use]
    pub fn into_response(self) -> Response {
        let silent = self.body.is_none();
        let mut response = Response::new(self.body.map_or_else(body::empty, body::full));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        if let Some(share) = self.share.filter(|share| !share.is_small()) {
            response.extensions_mut().insert(Arc::new(share));
        }
        if silent && !is_bodiless(self.status) {
            let none = HeaderValue::from(0);
            response.headers_mut().insert(CONTENT_LENGTH, none);
        }
        response
    }
}

/// Puts a function's headers in place of those of the same names.
///
/// # Panics
/// Never: `Overrides` are checked to be headers.
pub(super) fn put(headers: &mut HeaderMap, overrides: &Overrides) {
    let named = overrides.headers.iter().map(|(name, value)| {
        (
            HeaderName::from_bytes(name.as_bytes()).expect("checked to be a name"),
            HeaderValue::from_str(value).expect("checked to be a value"),
        )
    });
    let named: Vec<(HeaderName, HeaderValue)> = named.collect();
    for (name, _) in &named {
        headers.remove(name);
    }
    for (name, value) in named {
        headers.append(name, value);
    }
}

impl Recorded for Reply {
    fn record(&self) -> Record {
        let body = self.body.as_deref().unwrap_or_default();
        let omitted = body.len() > once::LARGEST;
        let headers = self.headers.iter().filter_map(|(name, value)| {
            let value = value.to_str().ok()?;
            let kept = !(omitted && name == CONTENT_TYPE);
            kept.then(|| (name.as_str().to_owned(), value.to_owned()))
        });
        Record {
            status: self.status.as_u16(),
            headers: headers.collect(),
            body: if omitted {
                String::new()
            } else {
                body.to_owned()
            },
            omitted,
        }
    }
}

/// An answer that was given before.
impl From<Record> for Reply {
    fn from(record: Record) -> Self {
        let mut headers = HeaderMap::new();
        for (name, value) in &record.headers {
            let name = HeaderName::from_bytes(name.as_bytes());
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
                headers.append(name, value);
            }
        }
        let replayed = if record.omitted {
            "true; body=omitted"
        } else {
            "true"
        };
        headers.insert(REPLAYED, HeaderValue::from_static(replayed));
        Self {
            status: StatusCode::from_u16(record.status).unwrap_or(StatusCode::OK),
            headers,
            body: Some(record.body).filter(|body| !body.is_empty()),
            share: None,
        }
    }
}

/// These never have a body.
fn is_bodiless(status: StatusCode) -> bool {
    [
        StatusCode::NO_CONTENT,
        StatusCode::RESET_CONTENT,
        StatusCode::NOT_MODIFIED,
    ]
    .contains(&status)
}

/// `0-14/*`, or `*/*` without rows.
///
/// # Panics
/// Never: it is digits and signs.
#[must_use]
pub(super) fn content_range(offset: u64, rows: u64, total: Option<u64>) -> HeaderValue {
    let total = total.map_or_else(|| "*".to_owned(), |total| total.to_string());
    let text = match rows.checked_sub(1) {
        Some(before_last) => format!("{offset}-{}/{total}", offset + before_last),
        None => format!("*/{total}"),
    };
    HeaderValue::from_str(&text).expect("digits and signs are a header's")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::problem::JSON;

    #[test]
    fn an_answer_that_is_kept_comes_back_as_it_was_and_says_so() {
        let mut reply = Reply::json("[{\"n\":1e999}]".to_owned(), JSON);
        reply.status = StatusCode::CREATED;
        let value = HeaderValue::from_static("/rest/v1/tasks?id=eq.1");
        reply.headers.insert("location", value);
        let again = Reply::from(reply.record());
        assert_eq!(again.status, 201);
        assert_eq!(again.body, reply.body);
        assert_eq!(again.headers["location"], "/rest/v1/tasks?id=eq.1");
        assert_eq!(again.headers[CONTENT_TYPE], JSON);
        assert_eq!(again.headers[REPLAYED], "true");
    }

    #[test]
    fn a_body_that_is_too_large_to_be_kept_is_missed_aloud() {
        let reply = Reply::json("x".repeat(once::LARGEST + 1), JSON);
        let record = reply.record();
        assert!(record.body.is_empty());
        let again = Reply::from(record);
        assert_eq!(again.headers[REPLAYED], "true; body=omitted");
        assert!(!again.headers.contains_key(CONTENT_TYPE));
        assert_eq!(again.into_response().headers()[CONTENT_LENGTH], "0");
    }
}
