//! What went wrong, as PostgREST's clients read it: `{"code","message","details","hint"}`.
//!
//! The only file that knows the statuses of other rooms' errors. The message tells what happened,
//! details what was found, hint what to try. SQLSTATEs pass through; `PGRST` codes are the
//! dialect's own, `RCH` codes the edge's, `RCA` codes those of `auth`, `RCR` codes those of `rows`
//! and `RCD` codes those of the demo's sign-in.

use std::borrow::Cow;

use deadpool_postgres::PoolError;
use hyper::StatusCode;
use hyper::header::{ALLOW, CONTENT_TYPE, ETAG, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio_postgres::error::{DbError, SqlState};

use crate::admission::Full;
use crate::auth::Identity;
use crate::causes::Causes;
use crate::filter::ConditionError;
use crate::http::refusal::PROXY_STATUS;
use crate::http::{Response, body};
use crate::postgres::transaction::TransactionError;
use crate::rows::Error;
use crate::schema::catalog::CatalogError;
use crate::subscription::{Trouble, Unavailable};
use crate::view::snapshot::SnapshotError;

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

    /// An error of `rows`.
    #[must_use]
    pub fn of_rows(error: &Error) -> Self {
        match error {
            Error::Pool(error) => Self::of_pool(error),
            Error::Database(error) => Self::of_database(error),
            Error::Transaction(error) => Self::of_transaction(error),
            Error::UnknownTable { .. }
            | Error::UnknownColumn { .. }
            | Error::UnknownPayloadColumn { .. }
            | Error::NotWritable(_) => Self::of_names(error),
            Error::UnknownFunction { .. } | Error::NoSet(_) | Error::RoleChanged(_) => {
                Self::of_call(error)
            }
            Error::NotSingle { .. }
            | Error::OtherKey
            | Error::UnknownType(_)
            | Error::ResponseStatus(_)
            | Error::ResponseHeaders(_)
            | Error::TooManyAffected { .. }
            | Error::PastEnd { .. }
            | Error::TooLarge { .. }
            | Error::Crowded(_) => Self::of_outcome(error),
            Error::Condition(_)
            | Error::SeveralInReach
            | Error::Precondition { .. }
            | Error::Key(_)
            | Error::KeyReused
            | Error::KeyBusy => Self::of_guard(error),
            Error::Operations(_) => Self::new(StatusCode::BAD_REQUEST, "RCR25", error.to_string())
                .hint("send [{\"method\":\"PATCH\",\"path\":\"tasks?id=eq.7\",\"body\":{}}, ...]"),
            Error::Unexpected { rows, .. } => {
                Self::new(StatusCode::CONFLICT, "RCR26", error.to_string())
                    .details(format!("it would affect {rows} rows; nothing was changed"))
            }
            Error::Operation { index, source } => Self::of_rows(source).at(*index),
            _ => Self::of_request(error),
        }
    }

    /// What guards a write against somebody faster, or against itself.
    fn of_guard(error: &Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Precondition { current, holds } => {
                let look = "look at \"current\", and try again with its ETag";
                let (found, hint) = match (current, holds) {
                    (None, _) => (
                        "there is no such row",
                        "it was deleted, or the filters do not reach it",
                    ),
                    (Some(_), false) => (
                        "the row was changed by somebody else; nothing was written",
                        look,
                    ),
                    (Some(_), true) => (
                        "the row has that version, and was not written: a policy or a trigger \
                         kept it, or it was changed and changed back",
                        look,
                    ),
                };
                let mut problem = Self::new(StatusCode::PRECONDITION_FAILED, "RCR20", message)
                    .details(found)
                    .hint(hint);
                problem.more().current = Some(Current(current.clone()));
                problem
            }
            Error::SeveralInReach => Self::new(StatusCode::BAD_REQUEST, "RCR21", message)
                .details("nothing was changed")
                .hint("filter by the primary key"),
            Error::Condition(_) => Self::new(StatusCode::BAD_REQUEST, "RCR21", message).hint(
                "If-Match with the ETag of the row as it was read, in its quotes, on PUT, PATCH or \
                 DELETE; If-None-Match: * on PUT",
            ),
            Error::KeyReused => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "RCR23", message)
                .hint("use a new key for each new request"),
            Error::KeyBusy => Self::new(StatusCode::CONFLICT, "RCR24", message)
                .hint("send the same request again in a moment"),
            _ => Self::new(StatusCode::BAD_REQUEST, "RCR22", message)
                .hint("send 1 to 255 visible ASCII characters, such as a UUID, in double quotes"),
        }
    }

    /// What cannot be read.
    fn of_request(error: &Error) -> Self {
        let bad = |code| Self::new(StatusCode::BAD_REQUEST, code, error.to_string());
        match error {
            Error::Filter { source, .. } => Self::of_filter(error, source),
            Error::Unsupported(feature) => Self::unsupported(feature),
            Error::Range(reason) => Self::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "PGRST103",
                "Requested range not satisfiable",
            )
            .details(*reason),
            Error::Preferences(unknown) => Self::new(
                StatusCode::BAD_REQUEST,
                "PGRST122",
                "with handling=strict every preference must be known",
            )
            .details(format!("unknown: {}", unknown.join(", ")))
            .hint("leave them out, or use handling=lenient"),
            Error::Body(reason) => bad("PGRST102").hint(if reason.contains("one object") {
                "send one JSON object"
            } else {
                "send one JSON object or an array of objects"
            }),
            Error::NotOneKey => Self::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "PGRST105",
                error.to_string(),
            )
            .allow("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
            .hint("use PATCH for anything but one whole row"),
            Error::KeysDiffer => bad("PGRST102")
                .hint("give every object the same keys, or name the keys to use in columns="),
            _ => bad("PGRST100"),
        }
    }

    fn of_filter(error: &Error, source: &ConditionError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "PGRST100", error.to_string())
            .details(source.to_string())
            .hint("a filter is column=operator.value, as in id=eq.7")
    }

    /// A part of the dialect that we do not have.
    #[must_use]
    pub fn unsupported(feature: &str) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "PGRST127",
            "the request uses a feature that is not supported",
        )
        .details(feature)
    }

    /// Names that are not in the catalogue.
    fn of_names(error: &Error) -> Self {
        let message = error.to_string();
        let (status, code, near) = match error {
            Error::UnknownTable { near, .. } => (StatusCode::NOT_FOUND, "PGRST205", near),
            Error::UnknownColumn { near, .. } => (StatusCode::BAD_REQUEST, "42703", near),
            Error::UnknownPayloadColumn { near, .. } => (StatusCode::BAD_REQUEST, "PGRST204", near),
            _ => (StatusCode::METHOD_NOT_ALLOWED, "PGRST117", &None),
        };
        let mut problem = Self::new(status, code, message);
        problem.hint = match (near, error) {
            (Some(near), _) => Some(format!("perhaps \"{near}\" was meant")),
            (None, Error::UnknownTable { schema, name, .. }) => {
                let schema = match schema.as_str() {
                    "public" => String::new(),
                    schema => format!("{schema}."),
                };
                Some(format!(
                    "if it exists, make it live: rowcast watch {schema}{name}"
                ))
            }
            _ => None,
        };
        if let Error::NotWritable(_) = error {
            problem = problem.allow("GET, HEAD, OPTIONS");
        }
        problem
    }

    /// A function that cannot be called so.
    fn of_call(error: &Error) -> Self {
        let message = error.to_string();
        match error {
            Error::UnknownFunction {
                arguments, near, ..
            } => {
                let found = if arguments.is_empty() {
                    "it was called without arguments".to_owned()
                } else {
                    format!("it was called with: {}", arguments.join(", "))
                };
                let hint = match near {
                    Some(near) => format!("perhaps \"{near}\" was meant"),
                    None => "if it exists, let it be called: select rowcast.expose_function(...)"
                        .to_owned(),
                };
                Self::new(StatusCode::NOT_FOUND, "PGRST202", message)
                    .details(found)
                    .hint(hint)
            }
            Error::NoSet(_) => Self::new(StatusCode::BAD_REQUEST, "PGRST128", message)
                .hint("leave max-affected out, or call a function that returns a set of rows"),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "RCR10", message)
                .details("nothing that it did was committed"),
        }
    }

    /// Answers that are not what was asked for.
    fn of_outcome(error: &Error) -> Self {
        let message = error.to_string();
        match error {
            Error::NotSingle { rows } => Self::new(StatusCode::NOT_ACCEPTABLE, "PGRST116", message)
                .details(format!("The result contains {rows} rows")),
            Error::UnknownType(_) => Self::new(StatusCode::BAD_REQUEST, "42704", message)
                .hint("cast to a type of PostgreSQL's own, or to that of a column"),
            Error::OtherKey => Self::new(StatusCode::BAD_REQUEST, "PGRST115", message)
                .hint("send the row with the primary key that the URL names; or a trigger has left it out"),
            Error::ResponseHeaders(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "PGRST111", message)
                    .hint("a function set it: [{\"name\":\"value\"}, ...]")
            }
            Error::ResponseStatus(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "PGRST112", message)
                    .hint("a function set it: a number from 200 to 599")
            }
            Error::TooManyAffected { rows } => {
                Self::new(StatusCode::BAD_REQUEST, "PGRST124", message)
                    .details(format!("it would change {rows} rows; nothing was changed"))
            }
            Error::PastEnd { offset, total } => Self::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "PGRST103",
                "Requested range not satisfiable",
            )
            .details(format!(
                "the offset is {offset}, and there are {total} rows"
            )),
            Error::Crowded(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "RCH13", message)
                .details("nothing was changed")
                .hint("try again in a moment, or ask for fewer rows or columns at a time"),
            _ => Self::new(StatusCode::BAD_REQUEST, "RCR01", message)
                .hint("ask for fewer rows or columns at a time"),
        }
    }

    /// An error of a transaction.
    #[must_use]
    pub fn of_transaction(error: &TransactionError) -> Self {
        match error {
            TransactionError::Failed(error) => Self::of_database(error),
            TransactionError::InDoubt(_) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "RCR02",
                "the database was lost while it committed",
            )
            .details("the write may hold or not")
            .hint("read the rows again before writing them again"),
            TransactionError::Silent(_) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "PGRST001",
                "the database does not answer",
            )
            .details(error.to_string())
            .hint("try again in a moment"),
            TransactionError::Moved => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "RCR11",
                "the table is being truncated or rewritten again and again",
            )
            .details(error.to_string())
            .hint("try again in a moment"),
        }
    }

    /// No connection.
    #[must_use]
    pub fn of_pool(error: &PoolError) -> Self {
        match error {
            PoolError::Timeout(_) => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "PGRST003",
                "no database connection became free in time",
            )
            .hint("try again in a moment"),
            // What the server said to us is not for the outside: it names our login.
            PoolError::Backend(_) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "PGRST000",
                "the database cannot be reached",
            )
            .hint("try again in a moment"),
            _ => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "PGRST001",
                "the relay has no database connections",
            ),
        }
    }

    /// The catalogue could not be read.
    #[must_use]
    pub fn of_catalog(error: &CatalogError) -> Self {
        match error {
            CatalogError::Connect(error) => Self::of_pool(error),
            CatalogError::Query(_) | CatalogError::Silent => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "PGRST002",
                "the database's tables could not be read",
            )
            .hint("try again in a moment"),
        }
    }

    /// PostgreSQL refused, or the connection broke.
    #[must_use]
    pub fn of_database(error: &tokio_postgres::Error) -> Self {
        let Some(error) = error.as_db_error() else {
            return Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "PGRST001",
                "the connection to the database broke",
            )
            .hint("try again in a moment");
        };
        let problem = Self {
            status: status(error),
            code: Cow::Owned(error.code().code().to_owned()),
            message: error.message().to_owned(),
            details: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
            more: None,
            token: false,
        };
        if *error.code() == SqlState::READ_ONLY_SQL_TRANSACTION {
            return problem.allow("GET, HEAD, OPTIONS");
        }
        problem
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

    /// The relay's own trouble with a stream that was well asked for.
    #[must_use]
    pub fn of_trouble(trouble: &Trouble) -> Self {
        let snapshot = match trouble {
            Trouble::NotYet(_) => {
                return Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "PGRST001",
                    "the database cannot be reached",
                )
                .hint("the stream comes back by itself");
            }
            Trouble::Expired => {
                return Self::new(StatusCode::UNAUTHORIZED, "PGRST303", trouble.to_string())
                    .hint("open the stream again with a fresh token; nothing is missed");
            }
            Trouble::Crowded(_) => {
                return Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "RCR03",
                    "the relay has too many different views that ask the database",
                )
                .details(trouble.to_string())
                .hint("the stream tries again by itself; another relay may have room");
            }
            Trouble::Snapshot(error) => error,
        };
        let message = snapshot.to_string();
        match &**snapshot {
            SnapshotError::Connect(error) => Self::of_pool(error),
            SnapshotError::Transaction(error) => Self::of_transaction(error),
            SnapshotError::Query(error) => Self::of_database(error),
            SnapshotError::NoSnapshot | SnapshotError::Changed => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "PGRST001", message)
                    .hint("the stream comes back by itself")
            }
            SnapshotError::TooLarge(_) => Self::new(StatusCode::BAD_REQUEST, "RCR01", message)
                .hint("narrow the filter or name fewer columns in select"),
        }
    }

    /// There is no place for one more stream. An event stream hears it, with a status of 200.
    #[must_use]
    pub fn of_full(full: Full) -> Self {
        let (code, hint) = match full {
            Full::Total(_) => (
                "RCH07",
                "the stream tries again by itself; another relay may have room",
            ),
            Full::User(_) => (
                "RCH08",
                "close some pages; the operator raises --max-streams-per-user",
            ),
            Full::Address(_) => (
                "RCH08",
                "sign in, or close some pages; the operator raises --max-streams-per-address",
            ),
            Full::Memory => (
                "RCH09",
                "the stream tries again by itself; another relay may have room",
            ),
        };
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, full.to_string()).hint(hint)
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
        // A SQLSTATE may be anything that a function raises, but is always five letters or digits.
        if let Ok(value) = HeaderValue::from_str(&format!("Rowcast; error={}", self.code)) {
            headers.insert(PROXY_STATUS, value);
        }
        if let Some(Current(Some(row))) = more.and_then(|more| more.current.as_ref()) {
            headers.insert(ETAG, etag(row));
        }
        if self.is_passing() || self.code == "RCR24" {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("2"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, self.challenge());
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

/// The status of an SQLSTATE.
fn status(error: &DbError) -> StatusCode {
    status_of(error.code().code(), error.message())
}

fn status_of(code: &str, message: &str) -> StatusCode {
    // A function may raise `PT` and a status of its own choice.
    if let Some(chosen) = code.strip_prefix("PT") {
        return StatusCode::from_bytes(chosen.as_bytes())
            .ok()
            // An informational status would leave the request without an answer.
            .filter(|status| !status.is_informational())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    }
    match (code, &code[..code.len().min(2)]) {
        // Until it is known that a token would not help: see `seen_by`.
        ("42501", _) => StatusCode::UNAUTHORIZED,
        (_, "0L" | "0P" | "28") => StatusCode::FORBIDDEN,
        ("23503" | "23505", _) => StatusCode::CONFLICT,
        ("25006", _) => StatusCode::METHOD_NOT_ALLOWED,
        ("42883" | "42P01", _) => StatusCode::NOT_FOUND,
        // The extension that forbids writes without a filter says so in this code.
        ("21000", _) if message.ends_with("requires a WHERE clause") => StatusCode::BAD_REQUEST,
        ("22023", _) if message.starts_with("role \"") && message.ends_with("does not exist") => {
            StatusCode::UNAUTHORIZED
        }
        ("P0001", _) => StatusCode::BAD_REQUEST,
        ("57P01", _) | (_, "08") => StatusCode::SERVICE_UNAVAILABLE,
        ("21000" | "42P17" | "53400", _)
        | (
            _,
            "09" | "25" | "2D" | "38" | "39" | "3B" | "40" | "54" | "55" | "57" | "58" | "F0"
            | "HV" | "P0" | "XX",
        ) => StatusCode::INTERNAL_SERVER_ERROR,
        (_, "53") => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sqlstate_has_the_status_of_the_dialect() {
        for (code, expected) in [
            ("08006", 503),
            ("09000", 500),
            ("0A000", 400),
            ("2D000", 500),
            ("38000", 500),
            ("39000", 500),
            ("3B000", 500),
            ("28000", 403),
            ("42704", 400),
            ("53100", 503),
            ("57P03", 500),
            ("0LP01", 403),
            ("0P000", 403),
            ("28P01", 403),
            ("23503", 409),
            ("23505", 409),
            ("23502", 400),
            ("25006", 405),
            ("25P02", 500),
            ("21000", 500),
            ("22023", 400),
            ("22P02", 400),
            ("40001", 500),
            ("42501", 401),
            ("42883", 404),
            ("42P01", 404),
            ("42703", 400),
            ("42P17", 500),
            ("53400", 500),
            ("53300", 503),
            ("54001", 500),
            ("55P03", 500),
            ("57014", 500),
            ("57P01", 503),
            ("58030", 500),
            ("P0001", 400),
            ("P0002", 500),
            ("PT402", 402),
            ("PT101", 500),
            ("PTABC", 500),
            ("XX000", 500),
            ("HV000", 500),
            ("F0000", 500),
        ] {
            let status = status_of(code, "");
            assert_eq!(status.as_u16(), expected, "{code}");
        }
        let verified = Identity {
            role: None,
            claims: "{}".into(),
            expires: None,
            verified: true,
        };
        let denied = Problem::new(status_of("42501", ""), "42501", "");
        assert_eq!(denied.status, 401);
        assert_eq!(denied.seen_by(&verified).status, 403);
        let nobody = "role \"nobody\" does not exist";
        assert_eq!(status_of("22023", nobody), 401);
        let unsafe_ = "DELETE requires a WHERE clause";
        assert_eq!(status_of("21000", unsafe_), 400);
    }

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
        for (schema, command) in [
            ("public", "watch cards"),
            ("archive", "watch archive.cards"),
        ] {
            let problem = Problem::of_rows(&Error::UnknownTable {
                schema: schema.to_owned(),
                name: "cards".to_owned(),
                near: None,
            });
            assert!(problem.hint.is_some_and(|hint| hint.ends_with(command)));
        }
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
