//! Runs a statement and collects what it answers.
//!
//! Promises that an error means nothing was committed, unless it says that nobody knows, and that
//! an answer is bounded. The only file of this room that takes a connection.

use std::pin::pin;

use futures::TryStreamExt;
use tokio_postgres::{Client, RowStream};

use super::Error;
use super::statement::Statement;
use crate::postgres::pool::{Lease, Pool};
use crate::postgres::transaction::{self, Terms};
use crate::postgres::untyped::untyped;

/// Largest answer, in bytes.
pub const LARGEST: usize = 64 * 1024 * 1024;

/// Rows as JSON text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rows {
    /// Objects with commas between them; an array without its brackets.
    pub json: String,
    /// How many.
    pub count: u64,
}

/// What a read found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The rows.
    pub rows: Rows,
    /// All rows that match, when they were counted.
    pub total: Option<u64>,
}

/// What a write did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Written {
    /// The rows, when they were asked for; their count is 0 otherwise.
    pub rows: Rows,
    /// Rows inserted, updated or deleted.
    pub affected: u64,
    /// Rows of those that did not exist before.
    pub inserted: u64,
    /// The transaction's id, when it got one.
    pub txid: Option<String>,
}

/// What must hold for a write to be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Check {
    /// Exactly one row was affected.
    pub single: bool,
    /// No more than this many rows were affected.
    pub most: Option<u64>,
}

impl Check {
    /// Whether a write of this many rows may be committed.
    ///
    /// # Errors
    /// [`Error::NotSingle`], [`Error::TooManyAffected`].
    pub fn holds(self, rows: u64) -> Result<(), Error> {
        if self.single && rows != 1 {
            return Err(Error::NotSingle { rows });
        }
        if self.most.is_some_and(|most| rows > most) {
            return Err(Error::TooManyAffected { rows });
        }
        Ok(())
    }
}

impl Rows {
    fn push(&mut self, row: &str) -> Result<(), Error> {
        if self.json.len() + row.len() > LARGEST {
            return Err(Error::TooLarge { limit: LARGEST });
        }
        if self.count > 0 {
            self.json.push_str(",\n");
        }
        self.json.push_str(row);
        self.count += 1;
        Ok(())
    }
}

/// Runs a statement of `select_rows` and perhaps one of `count_rows`, both in one snapshot.
///
/// # Errors
/// [`Error::Pool`], [`Error::Database`], [`Error::Transaction`], [`Error::TooLarge`].
pub async fn read(
    pool: &Pool,
    terms: Terms<'_>,
    select: &Statement,
    count: Option<&Statement>,
) -> Result<Page, Error> {
    let lease = Lease::take(pool).await?;
    transaction::run(lease, terms, async |client: &Client| {
        let (rows, total) = futures::join!(rows(client, select), total(client, count));
        Ok(Page {
            rows: rows?,
            total: total?,
        })
    })
    .await
}

/// Runs a statement of `write_rows` and commits it if `check` holds. `returning` says whether the
/// plan wants rows back.
///
/// # Errors
/// [`Error::Pool`], [`Error::Database`], [`Error::Transaction`], [`Error::TooLarge`], and those
/// of [`Check::holds`].
pub async fn write(
    pool: &Pool,
    terms: Terms<'_>,
    statement: &Statement,
    returning: bool,
    check: Check,
) -> Result<Written, Error> {
    let lease = Lease::take(pool).await?;
    transaction::run(lease, terms, async |client: &Client| {
        let (written, txid) = futures::join!(written(client, statement, returning), txid(client));
        // The write's own error first: the other one only says that it failed.
        let mut written = written?;
        written.txid = txid?;
        check.holds(written.affected)?;
        Ok(written)
    })
    .await
}

async fn run(client: &Client, statement: &Statement) -> Result<RowStream, tokio_postgres::Error> {
    client
        .query_typed_raw(&statement.sql, untyped(&statement.params))
        .await
}

async fn rows(client: &Client, select: &Statement) -> Result<Rows, Error> {
    let mut stream = pin!(run(client, select).await?);
    let mut rows = Rows::default();
    while let Some(row) = stream.try_next().await? {
        rows.push(row.try_get(0)?)?;
    }
    Ok(rows)
}

async fn total(client: &Client, count: Option<&Statement>) -> Result<Option<u64>, Error> {
    let Some(count) = count else { return Ok(None) };
    let mut stream = pin!(run(client, count).await?);
    let mut total = None;
    while let Some(row) = stream.try_next().await? {
        total = Some(number(row.try_get(0)?));
    }
    Ok(total)
}

async fn written(
    client: &Client,
    statement: &Statement,
    returning: bool,
) -> Result<Written, Error> {
    let mut stream = pin!(run(client, statement).await?);
    let mut written = Written::default();
    while let Some(row) = stream.try_next().await? {
        if returning {
            written.rows.push(row.try_get(0)?)?;
            written.affected += 1;
            written.inserted += u64::from(row.try_get::<_, bool>(1)?);
        } else {
            written.affected = number(row.try_get(0)?);
            written.inserted = number(row.try_get(1)?);
        }
    }
    Ok(written)
}

/// Sent behind the write, so it sees the id that the write got. A write that found no row gets
/// none, and nothing of it will arrive in a stream.
async fn txid(client: &Client) -> Result<Option<String>, tokio_postgres::Error> {
    let rows = client
        .query_typed(
            "select pg_catalog.pg_current_xact_id_if_assigned()::text",
            &[],
        )
        .await?;
    match rows.first() {
        Some(row) => row.try_get(0),
        None => Ok(None),
    }
}

fn number(count: i64) -> u64 {
    u64::try_from(count).unwrap_or_default()
}
