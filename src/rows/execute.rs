//! Runs a statement and collects what it answers.
//!
//! Promises that an error means nothing was committed, unless it says that nobody knows, and that
//! an answer is bounded. The only file of this room that takes a connection.

use std::pin::pin;

use futures::TryStreamExt;
use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Client, RowStream};

use super::Error;
use super::call::Call;
use super::response::Overrides;
use super::statement::Statement;
use crate::postgres::pool::{Lease, Pool};
use crate::postgres::transaction::{self, End, Terms};
use crate::postgres::untyped::untyped;
use crate::schema::catalog::Returns;

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
    /// All rows that match, when they were counted or guessed.
    pub total: Option<u64>,
    /// What functions want of the response.
    pub overrides: Overrides,
}

/// How all rows that match are counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Counting {
    /// By a statement of `count_rows`.
    Exact(Statement),
    /// As the planner guesses in answer to a statement of `explain_rows`.
    Planned(Statement),
    /// By a statement of `count_some_rows` when they are no more than `most`, otherwise guessed.
    Estimated {
        /// Counts no further than `most + 1`.
        some: Statement,
        /// Guesses.
        planned: Statement,
        /// Rows that are still counted.
        most: u64,
    },
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
    /// The primary key of the row, when it was asked for and the row is the only one.
    pub key: Option<Vec<Option<String>>>,
    /// The transaction's id, when it got one and holds.
    pub txid: Option<String>,
    /// What functions want of the response.
    pub overrides: Overrides,
}

/// What a call gave.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Called {
    /// Its rows or values.
    pub rows: Rows,
    /// All of a set that match, when they were counted.
    pub total: Option<u64>,
    /// The transaction's id, when it got one.
    pub txid: Option<String>,
}

/// What must hold for a write to be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Check {
    /// Exactly one row was affected.
    pub single: bool,
    /// A row was affected: the one whose key a PUT names.
    pub keyed: bool,
    /// No more than this many rows were affected.
    pub most: Option<u64>,
}

impl Check {
    /// Whether a write of this many rows may be committed.
    ///
    /// # Errors
    /// [`Error::NotSingle`], [`Error::OtherKey`], [`Error::TooManyAffected`].
    pub fn holds(self, rows: u64) -> Result<(), Error> {
        if self.keyed && rows == 0 {
            return Err(Error::OtherKey);
        }
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

/// Runs a statement of `select_rows` and perhaps counts, all in one snapshot.
///
/// # Errors
/// [`Error::Pool`], [`Error::Database`], [`Error::Transaction`], [`Error::TooLarge`], and those of
/// [`Overrides::parse`].
pub async fn read(
    pool: &Pool,
    terms: Terms<'_>,
    select: &Statement,
    counting: Option<&Counting>,
) -> Result<Page, Error> {
    let lease = Lease::take(pool).await?;
    transaction::run(lease, terms, async |client: &Client| {
        let (rows, total, last) =
            futures::join!(rows(client, select), total(client, counting), last(client));
        // The first error first: the others only say that it happened.
        let (rows, total, last) = (rows?, total?, last?);
        Ok(Page {
            rows,
            total,
            overrides: last.overrides()?,
        })
    })
    .await
}

/// Runs a statement of `write_rows` and commits it if `check` holds. `returning` says whether the
/// plan wants rows back.
///
/// # Errors
/// [`Error::Pool`], [`Error::Database`], [`Error::Transaction`], [`Error::TooLarge`], and those
/// of [`Check::holds`] and [`Overrides::parse`].
pub async fn write(
    pool: &Pool,
    terms: Terms<'_>,
    statement: &Statement,
    returning: bool,
    check: Check,
) -> Result<Written, Error> {
    let lease = Lease::take(pool).await?;
    transaction::run(lease, terms, async |client: &Client| {
        let (written, checked, last) = futures::join!(
            written(client, statement, returning),
            check_constraints(client, terms.end),
            last(client)
        );
        // The write's own error first: the others only say that it failed.
        let mut written = written?;
        checked?;
        let last = last?;
        check.holds(written.affected)?;
        written.overrides = last.overrides()?;
        // Nothing of what is rolled back will arrive in a stream.
        written.txid = last.txid.filter(|_| terms.end == End::Commit);
        Ok(written)
    })
    .await
}

/// Calls a function and commits what it did if `check` holds and it left no other role behind than
/// it found.
///
/// # Errors
/// [`Error::Pool`], [`Error::Database`], [`Error::Transaction`], [`Error::TooLarge`],
/// [`Error::RoleChanged`], and those of [`Check::holds`].
pub async fn call(
    pool: &Pool,
    terms: Terms<'_>,
    call: &Call,
    check: Check,
) -> Result<Called, Error> {
    let statement = call.statement();
    let lease = Lease::take(pool).await?;
    transaction::run(lease, terms, async |client: &Client| {
        let (before, called, after, last) = futures::join!(
            current_role(client),
            called(client, &statement, call),
            current_role(client),
            last(client),
        );
        // The call's own error first: the later ones only say that it failed.
        let mut called = called?;
        if before? != after? {
            return Err(Error::RoleChanged(call.function.qualified()));
        }
        called.txid = last?.txid;
        check.holds(called.rows.count)?;
        Ok(called)
    })
    .await
}

async fn called(client: &Client, statement: &Statement, call: &Call) -> Result<Called, Error> {
    let mut stream = pin!(run(client, statement).await?);
    let mut called = Called::default();
    while let Some(row) = stream.try_next().await? {
        if call.function.returns == Returns::Nothing {
            continue;
        }
        if let Some(row) = row.try_get(0)? {
            called.rows.push(row)?;
        }
        if call.is_counted() {
            called.total = Some(number(row.try_get(1)?));
        }
    }
    Ok(called)
}

async fn current_role(client: &Client) -> Result<Option<String>, tokio_postgres::Error> {
    let rows = client.query_typed("select current_user::text", &[]).await?;
    rows.first().map(|row| row.try_get(0)).transpose()
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

async fn total(client: &Client, counting: Option<&Counting>) -> Result<Option<u64>, Error> {
    match counting {
        None => Ok(None),
        Some(Counting::Exact(count)) => counted(client, count).await,
        Some(Counting::Planned(explain)) => planned(client, explain).await,
        Some(Counting::Estimated {
            some,
            planned: explain,
            most,
        }) => {
            let (some, planned) = futures::join!(counted(client, some), planned(client, explain));
            let (some, planned) = (some?, planned?);
            Ok(some.filter(|some| some <= most).or(some.max(planned)))
        }
    }
}

async fn counted(client: &Client, count: &Statement) -> Result<Option<u64>, Error> {
    let mut stream = pin!(run(client, count).await?);
    let mut total = None;
    while let Some(row) = stream.try_next().await? {
        total = Some(number(row.try_get(0)?));
    }
    Ok(total)
}

async fn planned(client: &Client, explain: &Statement) -> Result<Option<u64>, Error> {
    let mut stream = pin!(run(client, explain).await?);
    let mut rows = None;
    while let Some(row) = stream.try_next().await? {
        let Plan(plan) = row.try_get(0)?;
        rows = plan[0]["Plan"]["Plan Rows"].as_u64();
    }
    Ok(rows)
}

/// What EXPLAIN answers.
struct Plan(serde_json::Value);

impl<'a> FromSql<'a> for Plan {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(serde_json::from_slice(raw)?))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::JSON
    }
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
            if row.len() > 2 && written.affected == 1 {
                let key: Option<&str> = row.try_get(2)?;
                written.key = key.and_then(|key| serde_json::from_str(key).ok());
            }
        }
    }
    Ok(written)
}

/// What is to be known at the end of a transaction.
#[derive(Default)]
struct Last {
    txid: Option<String>,
    status: Option<String>,
    headers: Option<String>,
}

impl Last {
    fn overrides(&self) -> Result<Overrides, Error> {
        Overrides::parse(self.status.as_deref(), self.headers.as_deref())
    }
}

/// Sent behind everything else, so it sees the id that a write got and what functions have set. A
/// write that found no row gets no id, and nothing of it will arrive in a stream.
async fn last(client: &Client) -> Result<Last, tokio_postgres::Error> {
    const LAST: &str = "select pg_catalog.pg_current_xact_id_if_assigned()::text, \
                        pg_catalog.current_setting('response.status', true), \
                        pg_catalog.current_setting('response.headers', true)";
    let rows = client.query_typed(LAST, &[]).await?;
    let Some(row) = rows.first() else {
        return Ok(Last::default());
    };
    Ok(Last {
        txid: row.try_get(0)?,
        status: row.try_get(1)?,
        headers: row.try_get(2)?,
    })
}

/// COMMIT would check what is deferred. A write that is only tried must fail where it would fail.
async fn check_constraints(client: &Client, end: End) -> Result<(), tokio_postgres::Error> {
    match end {
        End::Commit => Ok(()),
        End::Rollback => client.batch_execute("set constraints all immediate").await,
    }
}

fn number(count: i64) -> u64 {
    u64::try_from(count).unwrap_or_default()
}
