//! What the errors of other rooms come to: status, code, and words.
//!
//! The only file that knows them.

use std::borrow::Cow;

use deadpool_postgres::PoolError;
use hyper::StatusCode;
use tokio_postgres::error::{DbError, SqlState};

use super::{Current, Problem};
use crate::admission::Full;
use crate::filter::ConditionError;
use crate::postgres::quote;
use crate::postgres::transaction::TransactionError;
use crate::rows::Error;
use crate::rows::response::Raised;
use crate::schema::handle::CatalogError;
use crate::subscription::Trouble;
use crate::view::snapshot::SnapshotError;

impl Problem {
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
                        "look at \"current\", and try again with its ETag; one that begins with W/ never \
                         matches: a proxy that compresses has weakened it",
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
            Error::Unsupported(feature) => {
                let problem = Self::unsupported(feature);
                if feature.ends_with("embedded resources") || *feature == "aggregates" {
                    problem.hint(
                        "make a view of it, and give that a URL: select rowcast.expose('...')",
                    )
                } else {
                    problem
                }
            }
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
        let hint = match (error, source) {
            // One that has not the form of a ticket is a filter, on a column of that name: `undefined`, mostly.
            (Error::Filter { column, .. }, ConditionError::NoOperator(_)) if column == "ticket" => {
                "a ticket is the 43 letters that POST /tickets answers; \
                 a filter is column=operator.value, as in id=eq.7"
            }
            (_, ConditionError::NoOperator(_)) => {
                "a filter is column=operator.value, as in id=eq.7"
            }
            (_, ConditionError::UnknownOperator(_)) => {
                "the operators are eq neq gt gte lt lte in is isdistinct like ilike match imatch \
                 cs cd ov sl sr nxr nxl adj fts plfts phfts wfts, with not. before any"
            }
            (_, ConditionError::List(_)) => "the list stands in parentheses, as in id=in.(7,8)",
            (_, ConditionError::Is(_)) => "compare with any other value by eq, as in title=eq.yes",
            (_, ConditionError::Tree(_)) => {
                "a group is or=(id.eq.7,and(id.gt.8,id.lt.12)), with dots for equals signs"
            }
        };
        Self::new(StatusCode::BAD_REQUEST, "PGRST100", error.to_string())
            .details(source.to_string())
            .hint(hint)
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
            // As commands write it, and as streams tell it.
            (None, Error::UnknownTable { name, .. }) if name.contains('.') => Some(
                "a path names no schema: the headers Accept-Profile and Content-Profile do"
                    .to_owned(),
            ),
            (None, Error::UnknownTable { schema, name, .. }) => {
                let argument = quote::argument(schema, name);
                Some(format!(
                    "if it exists, make it live: rowcast watch {argument}"
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
            ))
            .total(*total),
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
            TransactionError::Queued(error) => Self {
                status: StatusCode::SERVICE_UNAVAILABLE,
                ..Self::of_database(error)
            }
            .details("the commit waited for others, and nothing was changed")
            .hint("try again in a moment; rowcast doctor tells of commits that wait for a standby"),
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
            CatalogError::Query(_) | CatalogError::Silent | CatalogError::Stopped(_) => Self::new(
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
        if error.code().code() == Raised::SQLSTATE {
            return Self::of_raised(error);
        }
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

    /// What a function raises in its own words.
    fn of_raised(error: &DbError) -> Self {
        match Raised::parse(error.message(), error.detail()) {
            Ok(Raised { words, overrides }) => {
                let status = overrides.status.map(StatusCode::from_u16);
                let mut problem = Self::new(
                    status
                        .and_then(Result::ok)
                        .unwrap_or(StatusCode::BAD_REQUEST),
                    words.code,
                    words.message,
                );
                problem.details = words.details;
                problem.hint = words.hint;
                problem.more().raised = overrides;
                problem
            }
            Err(found) => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "PGRST121",
                "what a function raised as PGRST cannot be read",
            )
            .details(found)
            .hint(
                "raise sqlstate 'PGRST' using message = '{\"code\":\"...\",\"message\":\"...\"}', \
                 detail = '{\"status\":402,\"headers\":{}}'",
            ),
        }
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
    use crate::auth::Identity;

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
            signed_by: None,
        };
        let denied = Problem::new(status_of("42501", ""), "42501", "");
        assert_eq!(denied.status, 401);
        assert_eq!(denied.seen_by(&verified).status, 403);
        let nobody = "role \"nobody\" does not exist";
        assert_eq!(status_of("22023", nobody), 401);
        let unsafe_ = "DELETE requires a WHERE clause";
        assert_eq!(status_of("21000", unsafe_), 400);
    }
}
