//! Reading and writing rows in the `PostgREST` dialect.
//!
//! request (what a URL says) → plan (what it means in this catalogue) → statement (SQL) → execute
//! (in a transaction). It writes and never publishes: subscribers see what was committed, and
//! nothing else. It knows no statuses; `http::problem` does.

pub mod execute;
pub mod plan;
pub mod request;
pub mod statement;

use crate::postgres::pool::PoolError;
use crate::postgres::transaction::BeginError;

/// Why a request cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The query string cannot be read.
    #[error("{message}")]
    Syntax {
        /// What is wrong.
        message: String,
        /// Where, or what is expected.
        details: String,
    },
    /// A part of the dialect that this version does not have.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// The body cannot be read.
    #[error("{0}")]
    Body(String),
    /// `Range`, `limit` or `offset` outside the rows.
    #[error("requested range not satisfiable")]
    Range(String),
    /// None of the media types in `Accept` can be produced.
    #[error("none of these media types are available: {0}")]
    Accept(String),
    /// The body has a media type that is not read.
    #[error("a body of type {0} cannot be read")]
    ContentType(String),
    /// A schema that is not served.
    #[error("invalid schema: {0}")]
    Schema(String, String),
    /// No such table, or nobody made it visible.
    #[error("could not find the table '{schema}.{table}' in the schema cache")]
    NoTable {
        /// The served schema.
        schema: String,
        /// The name in the URL.
        table: String,
        /// A name that looks like it.
        near: Option<String>,
    },
    /// No such column, in a filter, `select` or `order`.
    #[error("column {table}.{column} does not exist")]
    NoColumn {
        /// The table.
        table: String,
        /// The name in the URL.
        column: String,
    },
    /// No such column, in a body or in `columns`.
    #[error("could not find the '{column}' column of '{table}' in the schema cache")]
    NoPayloadColumn {
        /// The table.
        table: String,
        /// The name in the body.
        column: String,
    },
    /// One row was asked for, and this many came.
    #[error("cannot coerce the result to a single JSON object")]
    Singular(usize),
    /// More than may be answered at once.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// No connection.
    #[error("no connection to the database")]
    Connect(#[from] PoolError),
    /// `PostgreSQL`'s answer.
    #[error("the database refused")]
    Database(#[from] tokio_postgres::Error),
}

impl From<BeginError> for Error {
    fn from(error: BeginError) -> Self {
        match error {
            BeginError::Connect(error) => Self::Connect(error),
            BeginError::Database(error) => Self::Database(error),
        }
    }
}
