//! Reads and writes of rows in the PostgREST dialect.
//!
//! `request` reads the URL, `plan` looks its names up in the catalogue, `body` and `statement` make
//! SQL of it, `call` does both for functions, `batch` reads several
//! requests as one, `once` answers a repeated one as before, and only `execute` takes a connection. Rows are PostgreSQL's own JSON text from
//! end to end. Nothing here publishes a change, and no error knows an HTTP status.

pub mod batch;
pub mod body;
pub mod call;
pub mod execute;
pub mod once;
pub mod plan;
pub mod request;
pub mod response;
#[cfg(test)]
mod shape;
pub mod statement;

use tokio_postgres::error::{DbError, SqlState};

use crate::filter::ConditionError;
use crate::postgres::pool::PoolError;
use crate::postgres::transaction::TransactionError;
use crate::share::Crowded;

/// Why a request for rows was not answered with rows.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A parameter of the URL cannot be read.
    #[error("the parameter \"{parameter}\" cannot be read: {reason}")]
    Syntax {
        /// Its name.
        parameter: String,
        /// What is wrong with its value.
        reason: String,
    },
    /// A filter cannot be read.
    #[error("the filter on \"{column}\" cannot be read")]
    Filter {
        /// The column it names.
        column: String,
        /// What is wrong with it.
        source: ConditionError,
    },
    /// Something of the dialect that we do not have.
    #[error("{0} are not supported")]
    Unsupported(&'static str),
    /// A range without rows by its own words.
    #[error("the range holds no rows: {0}")]
    Range(&'static str),
    /// `handling=strict`, and these preferences will not be honoured.
    #[error("unknown preferences: {}", .0.join(", "))]
    Preferences(Vec<String>),
    /// No such table, as far as the API may know.
    #[error("the table \"{schema}.{name}\" is not served")]
    UnknownTable {
        /// The served schema.
        schema: String,
        /// The name asked for.
        name: String,
        /// A served table with a name like it.
        near: Option<String>,
    },
    /// No such column, in a URL.
    #[error("column {table}.{column} does not exist")]
    UnknownColumn {
        /// Table name.
        table: String,
        /// Column name.
        column: String,
        /// A column with a name like it.
        near: Option<String>,
    },
    /// No such column, in a body or in `columns`.
    #[error("the table \"{table}\" has no column \"{column}\"")]
    UnknownPayloadColumn {
        /// Table name.
        table: String,
        /// Column name.
        column: String,
        /// A column with a name like it.
        near: Option<String>,
    },
    /// A relation of a kind that nobody can write to.
    #[error("\"{0}\" is a materialized view and cannot be written to")]
    NotWritable(String),
    /// A cast to a type that is neither built in nor a column's.
    #[error("type \"{0}\" does not exist, or is none to cast to")]
    UnknownType(String),
    /// A PUT whose filters are not the primary key.
    #[error("PUT takes the whole primary key as eq filters and nothing else")]
    NotOneKey,
    /// A PUT whose row has another key than the URL.
    #[error("the row has another primary key than the URL")]
    OtherKey,
    /// A function set a status that is none.
    #[error("response.status is not a status: {0:?}")]
    ResponseStatus(String),
    /// A function set headers that are none.
    #[error("response.headers is not an array of objects with one header each: {0}")]
    ResponseHeaders(&'static str),
    /// No such function, as far as the API may know, or none that takes these arguments.
    #[error("no function \"{schema}.{name}\" that takes these arguments is served")]
    UnknownFunction {
        /// The schema it was looked for in.
        schema: String,
        /// The name asked for.
        name: String,
        /// The names of the arguments that were given.
        arguments: Vec<String>,
        /// A served function like it, with its arguments if it is one of that name.
        near: Option<String>,
    },
    /// `max-affected` for a function that does not return a set.
    #[error("the function \"{0}\" returns no set of rows, so max-affected means nothing")]
    NoSet(String),
    /// A function left another role behind than it was called as.
    #[error("the function \"{0}\" changed the role that it runs as")]
    RoleChanged(String),
    /// The body is not rows.
    #[error("the body cannot be read: {0}")]
    Body(&'static str),
    /// Rows of one body name different columns.
    #[error("All object keys must match")]
    KeysDiffer,
    /// One object was asked for, and there is another number of rows.
    #[error("the result is not one object")]
    NotSingle {
        /// How many there are.
        rows: u64,
    },
    /// More rows would have changed than `max-affected` allows.
    #[error("the request changes more rows than max-affected allows")]
    TooManyAffected {
        /// How many it would have changed.
        rows: u64,
    },
    /// The offset is past the last row.
    #[error("the offset is past the last row")]
    PastEnd {
        /// The offset asked for.
        offset: u64,
        /// How many rows there are.
        total: u64,
    },
    /// The rows are larger than one answer may be.
    #[error("the answer is larger than {limit} bytes")]
    TooLarge {
        /// The largest answer, in bytes.
        limit: usize,
    },
    /// Answers that their clients have not taken yet leave no room for this one.
    #[error("the relay keeps as many answers as it can that their clients have not taken yet")]
    Crowded(#[from] Crowded),
    /// `If-Match` or `If-None-Match` cannot be read, or cannot be honoured by such a request.
    #[error("the precondition cannot be used: {0}")]
    Condition(String),
    /// `If-Match` guards one row, and the filters reach more.
    #[error("If-Match guards one row, and the filters reach several")]
    SeveralInReach,
    /// The row is not as the precondition wants it.
    #[error("the row is not in the version that the request expects")]
    Precondition {
        /// The row as it is now, as JSON text; `None` when there is none.
        current: Option<String>,
        /// It has that version now, and was not written all the same.
        holds: bool,
    },
    /// `Idempotency-Key` cannot be read.
    #[error("the Idempotency-Key cannot be used: {0}")]
    Key(&'static str),
    /// The key was used before, for another request.
    #[error("the Idempotency-Key was used for another request")]
    KeyReused,
    /// The first request with this key has not ended.
    #[error("another request with this Idempotency-Key is still under way")]
    KeyBusy,
    /// The body is not a list of operations.
    #[error("the operations cannot be read: {0}")]
    Operations(String),
    /// An operation of several affected another number of rows than it said.
    #[error("the operation was to affect {expected} rows")]
    Unexpected {
        /// How many it was to affect.
        expected: u64,
        /// How many it affected.
        rows: u64,
    },
    /// An operation of several failed, and with it all of them.
    #[error("an operation failed")]
    Operation {
        /// Its place in the list, from 0.
        index: usize,
        /// Why.
        source: Box<Error>,
    },
    /// No connection.
    #[error("no connection to the database")]
    Pool(#[from] PoolError),
    /// The statement failed.
    #[error("the statement failed")]
    Database(#[from] tokio_postgres::Error),
    /// The transaction around it failed.
    #[error("the transaction failed")]
    Transaction(#[from] TransactionError),
}

impl Error {
    /// A catalogue that was read a moment later might answer otherwise.
    #[must_use]
    pub fn is_about_catalog(&self) -> bool {
        if let Self::Operation { source, .. } = self {
            return source.is_about_catalog();
        }
        matches!(
            self,
            Self::UnknownTable { .. }
                | Self::UnknownColumn { .. }
                | Self::UnknownPayloadColumn { .. }
                | Self::UnknownFunction { .. }
        )
    }

    /// What PostgreSQL said, when it refused and nothing was committed.
    fn refusal(&self) -> Option<&DbError> {
        match self {
            Self::Operation { source, .. } => source.refusal(),
            Self::Database(error) | Self::Transaction(TransactionError::Failed(error)) => {
                error.as_db_error()
            }
            _ => None,
        }
    }

    /// Whether the table may have changed since the statement was made, and in which way.
    #[must_use]
    pub fn drift(&self) -> Option<Drift> {
        let error = self.refusal()?;
        let code = error.code();
        if *code == SqlState::FEATURE_NOT_SUPPORTED && error.message().contains("cached plan") {
            return Some(Drift::Plan);
        }
        let other = [
            SqlState::UNDEFINED_COLUMN,
            SqlState::UNDEFINED_TABLE,
            SqlState::DATATYPE_MISMATCH,
            // `t.rank` is `rank(t)` where there is no such column.
            SqlState::WRONG_OBJECT_TYPE,
        ];
        other.contains(code).then_some(Drift::Table)
    }

    /// Whether it came in the way of another transaction, and may well succeed when made again.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.refusal().is_some_and(|error| {
            [
                SqlState::T_R_SERIALIZATION_FAILURE,
                SqlState::T_R_DEADLOCK_DETECTED,
            ]
            .contains(error.code())
        })
    }

    /// Whether PostgreSQL does not know the time zone that was asked for.
    #[must_use]
    pub fn is_about_time_zone(&self) -> bool {
        self.refusal().is_some_and(|error| {
            *error.code() == SqlState::INVALID_PARAMETER_VALUE
                && error.message().contains("\"TimeZone\"")
        })
    }
}

/// In which way a table may have changed under a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drift {
    /// A function's plan is from before the change, and is made anew when it is called again.
    Plan,
    /// A name or type is not what the catalogue said.
    Table,
}
