//! What went wrong, as PostgREST's clients read it: `{"code","message","details","hint"}`.
//!
//! What the errors of other rooms come to is known to [`rooms`] alone. The message tells what happened,
//! details what was found, hint what to try. SQLSTATEs pass through; `PGRST` codes are the
//! dialect's own, `RCH` codes the edge's, `RCA` codes those of `auth`, `RCR` codes those of `rows`
//! and `RCD` codes those of the demo's sign-in.

mod rooms;

use std::borrow::Cow;

use hyper::StatusCode;
use hyper::header::{
    ALLOW, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::reply;
use crate::auth::Identity;
use crate::causes::Causes;
use crate::http::refusal::PROXY_STATUS;
use crate::http::{Response, body};
use crate::rows::Error;
use crate::rows::response::Overrides;
use crate::subscription::{Trouble, Unavailable};

/// An error as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The status of the response.
    #[serde(skip)]
    pub status: StatusCode,
    /// SQLSTATE, or a code of ours.
    pub code: Cow<'static, str>,
    /// What happened.
    pub message: String,
    /// What was found.
    pub details: Option<String>,
    /// What to try.
    pub hint: Option<String>,
    /// What few problems have.
    #[serde(flatten)]
    more: Option<Box<More>>,
    /// The message is about the token that was sent.
    #[serde(skip)]
    token: bool,
}

/// What few problems have.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
struct More {
    /// The row as it is, where somebody was faster.
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<Current>,
    /// Which of several operations failed, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<usize>,
    /// The methods that the path has, where the status demands them.
    #[serde(skip)]
    allow: Option<&'static str>,
    /// How many rows there are, where none is in the range.
    #[serde(skip)]
    total: Option<u64>,
    /// Headers of the function that raised it.
    #[serde(skip)]
    raised: Overrides,
}

/// A row as JSON text; `None` when there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Current(Option<String>);

impl Serialize for Current {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let row: Option<&RawValue> = match &self.0 {
            Some(text) => Some(serde_json::from_str(text).map_err(serde::ser::Error::custom)?),
            None => None,
        };
        row.serialize(serializer)
    }
}

/// Content type of every JSON answer of the API.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

impl Problem {
    /// A problem without details or hint.
    #[must_use]
    pub fn new(
        status: StatusCode,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
            details: None,
            hint: None,
            more: None,
            token: false,
        }
    }

    fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    fn allow(mut self, methods: &'static str) -> Self {
        self.more().allow = Some(methods);
        self
    }

    fn total(mut self, rows: u64) -> Self {
        self.more().total = Some(rows);
        self
    }

    /// The same as said of one of several operations.
    #[must_use]
    pub fn at(mut self, operation: usize) -> Self {
        self.more().operation = Some(operation);
        self
    }

    /// The same with what was found.
    #[must_use]
    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = Some(details.into());
        self
    }

    /// The same with what to try.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same as somebody hears it who has said who he is, or has not: a missing permission is a
    /// 401 only where a token might help.
    #[must_use]
    pub fn seen_by(mut self, identity: &Identity) -> Self {
        if identity.verified && self.code == "42501" && self.status == StatusCode::UNAUTHORIZED {
            self.status = StatusCode::FORBIDDEN;
        }
        self
    }

    /// The same as an answer about the token that was sent: the message goes into a header too, and
    /// so must hold no byte of a client's.
    #[must_use]
    pub fn about_token(mut self) -> Self {
        self.token = true;
        self
    }

    /// `WWW-Authenticate` (RFC 6750 §3).
    fn challenge(&self) -> HeaderValue {
        let plain = HeaderValue::from_static("Bearer");
        if !self.token {
            return plain;
        }
        let description = self.message.replace(['"', '\\'], "'");
        let told = format!("Bearer error=\"invalid_token\", error_description=\"{description}\"");
        HeaderValue::try_from(told).unwrap_or(plain)
    }

    /// The path exists, the method does not. `allow` lists those that do, as the header does.
    #[must_use]
    pub fn verb(allow: &'static str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "PGRST117",
            "this path does not answer this method",
        )
        .hint(format!("it answers {allow}"))
        .allow(allow)
    }

    /// `Accept` names no media type that we have.
    #[must_use]
    pub fn not_acceptable() -> Self {
        Self::new(
            StatusCode::NOT_ACCEPTABLE,
            "PGRST107",
            "none of the accepted media types is available",
        )
        .hint(
            "accept application/json, application/vnd.pgrst.object+json, \
             or text/event-stream for a live view",
        )
    }

    /// The body is of a type that is not taken.
    #[must_use]
    pub fn media_type() -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "PGRST107",
            "the body's media type is not taken",
        )
        .hint("send JSON with Content-Type: application/json")
    }

    /// A schema that has no URLs here.
    #[must_use]
    pub fn schema(served: &[String]) -> Self {
        Self::new(
            StatusCode::NOT_ACCEPTABLE,
            "PGRST106",
            "the schema asked for is not served",
        )
        .hint(format!(
            "these schemas are served: {}; without a profile header it is the first",
            served.join(", ")
        ))
    }

    /// As the word of a stream that cannot be now. The status cannot be told there: an EventSource
    /// that meets anything but 200 gives up for ever.
    #[must_use]
    pub fn unavailable(&self) -> Unavailable {
        Unavailable {
            body: self.body(),
            passing: self.is_passing(),
            crowded: matches!(&*self.code, "RCH07" | "RCH08" | "RCH09" | "RCR03"),
        }
    }

    /// It may be over in a moment.
    fn is_passing(&self) -> bool {
        matches!(
            self.status,
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
        )
    }

    /// The JSON object, on one line.
    ///
    /// # Panics
    /// Never: strings always become JSON.
    #[must_use]
    pub fn body(&self) -> String {
        serde_json::to_string(self).expect("strings become JSON")
    }

    /// The response.
    #[must_use]
    pub fn into_response(self) -> Response {
        let mut response = Response::new(body::full(self.body()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, JSON);
        let more = self.more.as_deref();
        if let Some(allow) = more.and_then(|more| more.allow) {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        // A function's own code may be any text.
        let is_token = self.code.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let told = format!("Rowcast; error={}", self.code);
        if let Some(value) = HeaderValue::try_from(told).ok().filter(|_| is_token) {
            headers.insert(PROXY_STATUS, value);
        }
        if let Some(Current(Some(row))) = more.and_then(|more| more.current.as_ref()) {
            headers.insert(ETAG, etag(row));
        }
        if let Some(total) = more.and_then(|more| more.total) {
            headers.insert(CONTENT_RANGE, reply::content_range(0, 0, Some(total)));
        }
        if self.is_passing() || self.code == "RCR24" {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("2"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, self.challenge());
        }
        if let Some(more) = more {
            reply::put(headers, &more.raised);
        }
        response
    }
}

/// The `ETag` of a row.
///
/// # Panics
/// Never: it is digits in quotes.
#[must_use]
pub fn etag(row: &str) -> HeaderValue {
    let tag = format!("\"{}\"", crate::etag::of(row));
    HeaderValue::from_str(&tag).expect("digits and quotes are a header's")
}

/// What the outside hears of an error; the log hears its causes when the fault is ours.
#[must_use]
pub fn logged(error: &Error) -> Problem {
    let problem = Problem::of_rows(error);
    if problem.status.is_server_error() {
        tracing::warn!(
            code = &*problem.code,
            error = %Causes(error),
            "a request for rows failed"
        );
    }
    problem
}

/// Explains the relay's own trouble to a stream.
#[must_use]
pub fn explain(trouble: &Trouble) -> Unavailable {
    Problem::of_trouble(trouble).unavailable()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::ConditionError;

    #[test]
    fn a_body_has_four_members_and_nulls_where_nothing_is_to_say() {
        assert_eq!(
            Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "RCH04",
                "the request did not arrive in time"
            )
            .body(),
            "{\"code\":\"RCH04\",\"message\":\"the request did not arrive in time\",\
             \"details\":null,\"hint\":null}"
        );
    }

    #[test]
    fn every_refusal_of_rows_has_its_own_code_and_says_it_in_the_head() {
        let name = || "x".to_owned();
        for (error, status, code) in [
            (
                Error::Syntax {
                    parameter: name(),
                    reason: name(),
                },
                400,
                "PGRST100",
            ),
            (
                Error::Filter {
                    column: name(),
                    source: ConditionError::UnknownOperator(name()),
                },
                400,
                "PGRST100",
            ),
            (Error::Body("x"), 400, "PGRST102"),
            (Error::KeysDiffer, 400, "PGRST102"),
            (Error::Range("x"), 416, "PGRST103"),
            (
                Error::PastEnd {
                    offset: 2,
                    total: 1,
                },
                416,
                "PGRST103",
            ),
            (Error::NotOneKey, 405, "PGRST105"),
            (Error::ResponseHeaders("x"), 500, "PGRST111"),
            (Error::ResponseStatus(name()), 500, "PGRST112"),
            (Error::OtherKey, 400, "PGRST115"),
            (Error::UnknownType("nope".into()), 400, "42704"),
            (Error::NotSingle { rows: 2 }, 406, "PGRST116"),
            (Error::NotWritable(name()), 405, "PGRST117"),
            (Error::Preferences(vec![name()]), 400, "PGRST122"),
            (Error::TooManyAffected { rows: 2 }, 400, "PGRST124"),
            (
                Error::Precondition {
                    current: None,
                    holds: false,
                },
                412,
                "RCR20",
            ),
            (Error::SeveralInReach, 400, "RCR21"),
            (Error::Condition(name()), 400, "RCR21"),
            (Error::Key("x"), 400, "RCR22"),
            (Error::KeyReused, 422, "RCR23"),
            (Error::KeyBusy, 409, "RCR24"),
            (Error::Operations(name()), 400, "RCR25"),
            (
                Error::Unexpected {
                    expected: 1,
                    rows: 2,
                },
                409,
                "RCR26",
            ),
            (
                Error::Operation {
                    index: 1,
                    source: Box::new(Error::KeysDiffer),
                },
                400,
                "PGRST102",
            ),
            (Error::Unsupported("x"), 400, "PGRST127"),
            (
                Error::UnknownPayloadColumn {
                    table: name(),
                    column: name(),
                    near: None,
                },
                400,
                "PGRST204",
            ),
            (
                Error::UnknownTable {
                    schema: name(),
                    name: name(),
                    near: None,
                },
                404,
                "PGRST205",
            ),
        ] {
            let problem = Problem::of_rows(&error);
            assert_eq!(problem.code, code, "{error}");
            let response = problem.into_response();
            assert_eq!(response.status(), status, "{error}");
            assert_eq!(
                response.headers()[PROXY_STATUS],
                format!("Rowcast; error={code}")
            );
            let must_list = response.status() == StatusCode::METHOD_NOT_ALLOWED;
            assert_eq!(response.headers().contains_key(ALLOW), must_list, "{error}");
        }
    }

    #[test]
    fn a_table_is_made_live_in_the_schema_that_was_asked_for() {
        for (schema, name, command) in [
            ("public", "cards", "watch cards"),
            ("archive", "cards", "watch archive.cards"),
            ("public", "Order", "watch '\"Order\"'"),
        ] {
            let problem = Problem::of_rows(&Error::UnknownTable {
                schema: schema.to_owned(),
                name: name.to_owned(),
                near: None,
            });
            assert!(problem.hint.is_some_and(|hint| hint.ends_with(command)));
        }
    }

    #[test]
    fn a_url_that_is_nearly_right_is_told_how_to_be() {
        let hint = |column: &str, value: &str| {
            let source = crate::filter::Condition::parse(column, value).unwrap_err();
            let column = column.to_owned();
            let problem = Problem::of_rows(&Error::Filter { column, source });
            problem.hint.unwrap()
        };
        for (column, value, told) in [
            ("id", "7", "id=eq.7"),
            ("id", "equals.7", "eq neq gt"),
            ("id", "in.7,8", "id=in.(7,8)"),
            ("done", "is.yes", "eq"),
            ("ticket", "undefined", "POST /tickets"),
        ] {
            assert!(hint(column, value).contains(told), "{column}={value}");
        }
        let named = Problem::of_rows(&Error::UnknownTable {
            schema: "public".to_owned(),
            name: "archive.cards".to_owned(),
            near: None,
        });
        assert!(
            named
                .hint
                .is_some_and(|hint| hint.contains("Accept-Profile"))
        );
        let embedded = Problem::of_rows(&Error::Unsupported("embedded resources"));
        assert!(embedded.hint.is_some_and(|hint| hint.contains("view")));
    }

    #[test]
    fn nobody_is_told_to_send_an_array_where_one_object_is_taken() {
        let hint = |reason| Problem::of_rows(&Error::Body(reason)).hint;
        assert_eq!(
            hint("PUT takes one object").as_deref(),
            Some("send one JSON object")
        );
        assert!(hint("it is empty").is_some_and(|hint| hint.contains("array")));
    }

    #[test]
    fn a_row_that_was_changed_is_told_as_it_is_now() {
        let problem = |current: Option<&str>| {
            let error = Error::Precondition {
                current: current.map(str::to_owned),
                holds: false,
            };
            Problem::of_rows(&error)
        };
        let changed = problem(Some("{\"n\": 1e999}"));
        assert!(changed.body().ends_with(",\"current\":{\"n\": 1e999}}"));
        let tag = format!("\"{}\"", crate::etag::of("{\"n\": 1e999}"));
        assert_eq!(changed.into_response().headers()[ETAG], tag);
        let gone = problem(None).at(3);
        // There is no "current" to look at.
        assert_eq!(
            gone.hint.as_deref(),
            Some("it was deleted, or the filters do not reach it")
        );
        assert!(gone.body().ends_with(",\"current\":null,\"operation\":3}"));
        assert!(!gone.into_response().headers().contains_key(ETAG));
    }

    #[test]
    fn a_refused_verb_lists_those_that_are_answered() {
        let response = Problem::verb("GET, HEAD").into_response();
        assert_eq!(response.status(), 405);
        assert_eq!(response.headers()[ALLOW], "GET, HEAD");
        assert_eq!(
            response.headers()[CONTENT_TYPE],
            "application/json; charset=utf-8"
        );
    }
}
