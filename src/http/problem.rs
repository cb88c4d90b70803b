//! Errors of the rooms as responses: the one place that knows their statuses.
//!
//! The body has PostgREST's shape, `{"code","message","details","hint"}`; SQLSTATEs pass through.

use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use serde_json::json;
use tokio_postgres::error::DbError;

use super::{Response, body};
use crate::filter::Refusal;
use crate::postgres::pool::PoolError;
use crate::rows;
use crate::subscription::{Trouble, Unavailable};
use crate::view::snapshot::SnapshotError;

/// An error as the outside hears it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The status.
    pub status: StatusCode,
    /// A SQLSTATE or `PGRST…`.
    pub code: String,
    /// What happened.
    pub message: String,
    /// What was found.
    pub details: Option<String>,
    /// What to try.
    pub hint: Option<String>,
    /// It may be over in a moment.
    pub passing: bool,
}

impl Problem {
    /// A problem with its request.
    #[must_use]
    pub fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.to_owned(),
            message: message.into(),
            details: None,
            hint: None,
            passing: false,
        }
    }

    /// What was found.
    #[must_use]
    pub fn found(mut self, details: impl Into<String>) -> Self {
        self.details = Some(details.into());
        self
    }

    /// What to try.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn passing(mut self) -> Self {
        self.passing = true;
        self
    }

    /// The JSON text.
    #[must_use]
    pub fn body(&self) -> String {
        let Self {
            code,
            message,
            details,
            hint,
            ..
        } = self;
        json!({"code": code, "message": message, "details": details, "hint": hint}).to_string()
    }

    /// As a response.
    #[must_use]
    pub fn respond(&self) -> Response {
        let mut response = Response::new(body::full(self.body()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/json; charset=utf-8"),
        );
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response
    }

    /// As the word of a stream that cannot be now. Its status cannot be told there: an EventSource
    /// that meets anything but 200 gives up for ever.
    #[must_use]
    pub fn unavailable(&self) -> Unavailable {
        Unavailable {
            body: self.body(),
            passing: self.passing,
        }
    }

    /// The database's answer. `PostgREST`'s table of statuses (its `Error.hs`).
    #[must_use]
    pub fn of_database(error: &tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(error) => Self::of_sqlstate(error),
            None if error.is_closed()
                || std::error::Error::source(error)
                    .is_some_and(<dyn std::error::Error>::is::<std::io::Error>) =>
            {
                Self::away()
            }
            // A value that the client side of the protocol could not send or read.
            None => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "XX000",
                error.to_string(),
            ),
        }
    }

    fn of_sqlstate(error: &DbError) -> Self {
        let code = error.code().code();
        let status = match code {
            "42501" => 401,
            "23503" | "23505" => 409,
            "25006" => 405,
            "42883" | "42P01" => 404,
            "57P01" | "57P02" | "57P03" => 503,
            "42P17" | "21000" | "53400" => 500,
            "P0001" => 400,
            _ => match &code[..2] {
                "08" | "53" => 503,
                "0L" | "0P" | "28" => 403,
                "09" | "25" | "2D" | "38" | "39" | "3B" | "40" | "54" | "55" | "57" | "58"
                | "F0" | "HV" | "P0" | "XX" => 500,
                "PT" => code[2..].parse().unwrap_or(500),
                _ => 400,
            },
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self {
            status,
            code: code.to_owned(),
            message: error.message().to_owned(),
            details: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
            passing: status == StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn of_pool(error: &PoolError) -> Self {
        match error {
            PoolError::Timeout(deadpool_postgres::TimeoutType::Wait) => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "PGRST003",
                "timed out acquiring connection from connection pool",
            )
            .hint("the relay is busy; try again")
            .passing(),
            _ => Self::away(),
        }
    }

    fn away() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "PGRST001",
            "the database cannot be reached",
        )
        .hint("the relay keeps trying; try again in a moment")
        .passing()
    }

    /// A filter that no stream can follow from row images.
    #[must_use]
    pub fn of_refusal(refusal: &Refusal) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "PGRST127", "this filter cannot be live")
            .found(format!("a stream cannot {refusal}"))
            .hint("read it without text/event-stream, or stream with eq, neq, gt, gte, lt, lte, in and is on plain columns")
    }
}

impl From<&rows::Error> for Problem {
    fn from(error: &rows::Error) -> Self {
        use rows::Error;
        let bad = |code| Self::new(StatusCode::BAD_REQUEST, code, error.to_string());
        match error {
            Error::Syntax { details, .. } => bad("PGRST100").found(details),
            Error::Unsupported(feature) => Self::new(StatusCode::BAD_REQUEST, "PGRST127", "feature not implemented")
                .found(format!("{feature} is not supported by this version")),
            Error::Body(_) => bad("PGRST102"),
            Error::Range(details) => Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "PGRST103", error.to_string()).found(details),
            Error::Accept(_) => Self::new(StatusCode::NOT_ACCEPTABLE, "PGRST107", error.to_string())
                .hint("application/json, application/vnd.pgrst.object+json or text/event-stream"),
            Error::ContentType(_) => Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "PGRST102", error.to_string())
                .hint("send application/json"),
            Error::Schema(_, served) => Self::new(StatusCode::NOT_ACCEPTABLE, "PGRST106", error.to_string())
                .hint(format!("only the following schema is exposed: {served}")),
            Error::NoTable { schema, table, near } => Self::new(StatusCode::NOT_FOUND, "PGRST205", error.to_string())
                .found(format!("only tables that are watched or exposed are visible here; '{schema}.{table}' is neither"))
                .hint(near.as_ref().map_or_else(
                    || format!("make it live: rowcast watch {table}"),
                    |near| format!("perhaps you meant the table '{schema}.{near}'"),
                )),
            Error::NoColumn { .. } => bad("42703"),
            Error::NoPayloadColumn { .. } => bad("PGRST204"),
            Error::Singular(count) => Self::new(StatusCode::NOT_ACCEPTABLE, "PGRST116", error.to_string())
                .found(format!("The result contains {count} rows")),
            Error::TooLarge(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "54000", error.to_string())
                .hint("ask for fewer rows or columns"),
            Error::Connect(error) => Self::of_pool(error),
            Error::Database(error) => Self::of_database(error),
        }
    }
}

/// Explains the relay's own trouble to a stream.
#[must_use]
pub fn explain(trouble: Trouble) -> Unavailable {
    let problem = match trouble {
        Trouble::NotYet(_) => Problem::away(),
        Trouble::Snapshot(error) => match &*error {
            SnapshotError::Connect(error) => Problem::of_pool(error),
            SnapshotError::Query(error) => Problem::of_database(error),
            SnapshotError::NoSnapshot | SnapshotError::Changed(_) => {
                Problem::new(StatusCode::CONFLICT, "PGRST001", error.to_string()).passing()
            }
            SnapshotError::TooLarge(_) => Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "54000",
                error.to_string(),
            )
            .hint("narrow the filter or name fewer columns in select"),
        },
    };
    problem.unavailable()
}
