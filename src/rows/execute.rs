//! Runs planned operations and collects what they answer.
//!
//! Promises that an error means nothing was committed, unless it says that nobody knows, and that
//! an answer is bounded. An operation runs alike alone and among others. The only file of this room
//! that takes a connection.

use std::pin::pin;

use futures::TryStreamExt;
use serde::Deserialize;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Client, RowStream};

use super::Error;
use super::call::Call;
use super::once::{Answered, Once, Record, Recorded};
use super::response::Overrides;
use super::statement::Statement;
use crate::etag;
use crate::postgres::pool::{Lease, Pool};
use crate::postgres::transaction::{self, Access, End, Terms, TransactionError};
use crate::postgres::untyped::untyped;
use crate::schema::catalog::Returns;
use crate::share::Share;

/// Largest answer, in bytes.
pub const LARGEST: usize = 64 * 1024 * 1024;

/// What is between two rows.
const SEPARATOR: &str = ",\n";

/// Rows as JSON text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rows {
    /// Objects with commas between them; an array without its brackets.
    pub json: String,
    /// How many.
    pub count: u64,
}

/// One planned operation, ready to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Shows rows.
    Read(Reading),
    /// Changes rows.
    Write(Writing),
    /// Calls a function.
    Call(Box<Calling>),
}

impl Operation {
    /// The statement, if it can be committed whatever it answers.
    fn at_once(&self, terms: &Terms<'_>) -> Option<&Statement> {
        let Self::Write(writing) = self else {
            return None;
        };
        let plain = !writing.returning
            && writing.guard.is_none()
            && writing.check == Check::default()
            && terms.end == End::Commit
            // A function that is called before each request wants something of most responses.
            && terms.context.before.is_none();
        writing.statement.as_ref().filter(|_| plain)
    }
}

/// A read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// A statement of `select_rows`.
    pub select: Statement,
    /// How all rows that match are counted as well.
    pub counting: Option<Counting>,
}

/// A write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writing {
    /// A statement of `write_rows`; without one there is nothing to do.
    pub statement: Option<Statement>,
    /// The plan wants rows back.
    pub returning: bool,
    /// What must hold for it to be committed.
    pub check: Check,
    /// It depends on the row as it is.
    pub guard: Option<Guarded>,
}

/// What is asked besides when a write depends on the row as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarded {
    /// Counts the rows in reach, no further than two.
    pub reach: Statement,
    /// The row in reach, as its version is made of it.
    pub current: Statement,
    /// The versions it may have; `None` when any will do.
    pub versions: Option<Vec<String>>,
    /// There must be none.
    pub absent: bool,
    /// The payload names the row's key itself, and another one is the client's mistake.
    pub keyed: bool,
}

/// A call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calling {
    /// Of what, and how.
    pub call: Call,
    /// What must hold for it to be committed.
    pub check: Check,
}

/// What an operation did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// Of a read.
    Found(Found),
    /// Of a write.
    Written(Written),
    /// Of a call.
    Called(Called),
}

impl Done {
    /// Rows that were changed, or shown.
    #[must_use]
    pub fn rows(&self) -> u64 {
        match self {
            Self::Found(found) => found.rows.count,
            Self::Written(written) => written.affected,
            Self::Called(called) => called.rows.count,
        }
    }

    /// Whether a stream may tell something of it.
    fn may_be_seen(&self) -> bool {
        match self {
            Self::Found(_) => false,
            Self::Written(written) => written.affected > 0,
            Self::Called(_) => true,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Found(Found { rows, .. })
            | Self::Written(Written { rows, .. })
            | Self::Called(Called { rows, .. }) => rows.json.len(),
        }
    }
}

/// What is known of a transaction when all of its operations are done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ended {
    /// Its id, when it got one and will hold.
    pub txid: Option<String>,
    /// What functions want of the response.
    pub overrides: Overrides,
}

/// What a read found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The rows.
    pub rows: Rows,
    /// All rows that match, when they were counted or guessed.
    pub total: Option<u64>,
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
}

/// What a call gave.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Called {
    /// Its rows or values.
    pub rows: Rows,
    /// All of a set that match, when they were counted.
    pub total: Option<u64>,
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
    /// Adds a row, for which there must be room in `share`. To find out before anything is committed is
    /// what makes it harmless to refuse.
    fn push(&mut self, row: &str, share: &Share) -> Result<(), Error> {
        if self.json.len() + row.len() > LARGEST {
            return Err(Error::TooLarge { limit: LARGEST });
        }
        share.grow(row.len() + SEPARATOR.len())?;
        if self.count > 0 {
            self.json.push_str(SEPARATOR);
        }
        self.json.push_str(row);
        self.count += 1;
        Ok(())
    }
}

/// Runs a read alone, in one snapshot. What it shows has its room in `share`.
///
/// # Errors
/// [`Error::Pool`], [`Error::Database`], [`Error::Transaction`], [`Error::TooLarge`],
/// [`Error::Crowded`], and those of [`Overrides::parse`].
pub async fn read(
    pool: &Pool,
    mut terms: Terms<'_>,
    reading: &Reading,
    share: &Share,
) -> Result<(Found, Overrides), Error> {
    if reading.counting.is_none() {
        terms.access = Access::ReadOnce;
        terms.tables = &[];
    }
    let mut again = transaction::MOVES;
    loop {
        let lease = Lease::take_for(terms.context.caller(), pool).await?;
        let read = transaction::run(lease, terms, async |client: &Client| {
            let (found, last) = futures::join!(found(client, reading, share), last(client));
            // The read's own error first: the other only says that it happened.
            Ok((found?, last?.overrides()?))
        });
        match read.await {
            Err(Error::Transaction(TransactionError::Moved)) if again > 0 => again -= 1,
            read => return read,
        }
        share.clear();
    }
}

/// Runs one operation and commits it if all that must hold does and `answer` can be made of it.
/// With `once`, the answer is kept, or the one that was kept is given and nothing is done. What it
/// shows has its room in `share`.
///
/// # Errors
/// [`Error::Pool`], [`Error::Database`], [`Error::Transaction`], [`Error::TooLarge`],
/// [`Error::Crowded`], [`Error::RoleChanged`], [`Error::SeveralInReach`], [`Error::Precondition`],
/// [`Error::KeyReused`], [`Error::KeyBusy`], those of [`Check::holds`] and [`Overrides::parse`], and
/// that of `answer`.
pub async fn write<A: Recorded>(
    pool: &Pool,
    terms: Terms<'_>,
    operation: &Operation,
    once: Option<&Once>,
    share: &Share,
    answer: impl FnOnce(Done, Ended) -> Result<A, Error>,
) -> Result<Answered<A>, Error> {
    if once.is_none()
        && let Some(statement) = operation.at_once(&terms)
        && let Some((written, ended)) = write_at_once(pool, terms, statement, share).await?
    {
        return Ok(Answered::Now(answer(Done::Written(written), ended)?));
    }
    let lease = Lease::take_for(terms.context.caller(), pool).await?;
    transaction::run(lease, terms, async |client: &Client| {
        if let Some(record) = known(client, once).await? {
            return Ok(Answered::Before(record));
        }
        let (done, checked, last) = futures::join!(
            operate(client, operation, share),
            check_constraints(client, terms.end),
            last(client)
        );
        // The operation's own error first: the others only say that it failed.
        let done = done?;
        checked?;
        let ended = last?.ended(terms.end, once.is_none() || done.may_be_seen())?;
        let answer = answer(done, ended)?;
        keep(client, once, &answer).await?;
        Ok(Answered::Now(answer))
    })
    .await
}

/// A write of which nothing is to be looked at before it is committed. `None`, and nothing is done:
/// - where a trigger wants something of the response: what is no status or header must keep the write
///   from being committed, and only we can tell;
/// - where a prepared statement may be why it failed, so that what is wrong, if anything is, is told of
///   the statement as it is.
async fn write_at_once(
    pool: &Pool,
    terms: Terms<'_>,
    statement: &Statement,
    share: &Share,
) -> Result<Option<(Written, Ended)>, Error> {
    // The division is what makes the transaction fail then.
    const LAST: &str = "select pg_catalog.pg_current_xact_id_if_assigned()::text \
         from (select pg_catalog.concat(pg_catalog.current_setting('response.status', true), \
                                        pg_catalog.current_setting('response.headers', true)) \
              ) as wanted (response) \
         where 1 / (case wanted.response when '' then 1 else 0 end) = 1";
    let terms = Terms {
        access: Access::WriteOnce,
        ..terms
    };
    let lease = Lease::take_for(terms.context.caller(), pool).await?;
    let prepared = lease.prepared();
    let mut again = false;
    let done = transaction::run(lease, terms, async |client: &Client| {
        let last = async {
            let rows = prepared.query::<&str>(client, LAST, &[], &[]).await?;
            rows.try_collect::<Vec<_>>().await
        };
        let writing = async {
            if statement.is_typed() {
                let Statement { sql, types, params } = statement;
                let rows = prepared.query(client, sql, types, params).await;
                again = rows.as_ref().is_err_and(is_of_its_making);
                written(rows?, false, share).await
            } else {
                written(run(client, statement).await?, false, share).await
            }
        };
        let (written, last) = futures::join!(writing, last);
        // The write's own error first: the other only says that it happened.
        let written = written?;
        again = last.as_ref().is_err_and(is_of_its_making);
        let txid = last?.first().map(|row| row.try_get(0)).transpose()?;
        Ok::<_, Error>((written, txid.flatten()))
    })
    .await;
    if again {
        return Ok(None);
    }
    let (written, txid) = done?;
    let ended = Ended {
        txid,
        overrides: Overrides::default(),
    };
    Ok(Some((written, ended)))
}

/// Whether an error may come from how a statement was prepared, or is the division: not supported, data,
/// no such statement, syntax and access.
fn is_of_its_making(error: &tokio_postgres::Error) -> bool {
    const CLASSES: [&str; 4] = ["0A", "22", "26", "42"];
    let code = error.code().map(SqlState::code).unwrap_or_default();
    CLASSES.iter().any(|class| code.starts_with(class))
}

/// One of several operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What is done.
    pub operation: Operation,
    /// How many rows it must change, or show.
    pub expect: Option<u64>,
}

/// Runs several operations in their order, and commits all of them or none. Otherwise as [`write()`].
///
/// # Errors
/// Those of [`write()`], of an operation inside of [`Error::Operation`]; [`Error::Unexpected`].
pub async fn write_all<A: Recorded>(
    pool: &Pool,
    terms: Terms<'_>,
    steps: &[Step],
    once: Option<&Once>,
    share: &Share,
    answer: impl FnOnce(Vec<Done>, Ended) -> Result<A, Error>,
) -> Result<Answered<A>, Error> {
    let lease = Lease::take_for(terms.context.caller(), pool).await?;
    transaction::run(lease, terms, async |client: &Client| {
        if let Some(record) = known(client, once).await? {
            return Ok(Answered::Before(record));
        }
        let done = in_order(client, steps, share).await?;
        let seen = once.is_none() || done.iter().any(Done::may_be_seen);
        let ended = ended(client, terms.end, seen).await?;
        let answer = answer(done, ended)?;
        keep(client, once, &answer).await?;
        Ok(Answered::Now(answer))
    })
    .await
}

async fn in_order(client: &Client, steps: &[Step], share: &Share) -> Result<Vec<Done>, Error> {
    let mut all = Vec::with_capacity(steps.len());
    let mut bytes = 0;
    for (index, step) in steps.iter().enumerate() {
        let at = |source| Error::Operation {
            index,
            source: Box::new(source),
        };
        let done = operate(client, &step.operation, share).await.map_err(at)?;
        let rows = done.rows();
        if let Some(expected) = step.expect.filter(|expected| *expected != rows) {
            return Err(at(Error::Unexpected { expected, rows }));
        }
        bytes += done.bytes();
        if bytes > LARGEST {
            return Err(at(Error::TooLarge { limit: LARGEST }));
        }
        all.push(done);
    }
    Ok(all)
}

/// The answer that was given before under this key; nothing when the key is ours now.
///
/// # Errors
/// [`Error::KeyBusy`], [`Error::KeyReused`], [`Error::Database`].
pub async fn known(client: &Client, once: Option<&Once>) -> Result<Option<Record>, Error> {
    let Some(once) = once else {
        return Ok(None);
    };
    let claimed = async {
        let mut stream = pin!(run(client, &once.begin()).await?);
        let mut claimed = None;
        while let Some(row) = stream.try_next().await? {
            claimed = Some(row);
        }
        Ok(claimed)
    };
    let claimed = claimed.await.map_err(|error: tokio_postgres::Error| {
        // The first one holds the key until it ends, and we wait no longer than for a lock.
        match error.code() {
            Some(code) if *code == SqlState::LOCK_NOT_AVAILABLE => Error::KeyBusy,
            _ => Error::Database(error),
        }
    })?;
    let Some(row) = claimed.filter(|row| row.get(0)) else {
        return Ok(None);
    };
    if !row.try_get(1)? {
        return Err(Error::KeyReused);
    }
    let headers: &str = row.try_get(3)?;
    Ok(Some(Record {
        status: u16::try_from(row.try_get::<_, i32>(2)?).unwrap_or(200),
        headers: serde_json::from_str(headers).unwrap_or_default(),
        body: row.try_get(4)?,
        omitted: row.try_get(5)?,
    }))
}

/// Keeps an answer under its key, in the transaction that it is about.
///
/// # Errors
/// [`Error::Database`].
pub async fn keep<A: Recorded>(
    client: &Client,
    once: Option<&Once>,
    answer: &A,
) -> Result<(), Error> {
    if let Some(once) = once {
        let mut stream = pin!(run(client, &once.end(&answer.record())).await?);
        while stream.try_next().await?.is_some() {}
    }
    Ok(())
}

/// Runs one operation inside an open transaction. It sends all it can when it is first polled.
async fn operate(client: &Client, operation: &Operation, share: &Share) -> Result<Done, Error> {
    Ok(match operation {
        Operation::Read(reading) => Done::Found(found(client, reading, share).await?),
        Operation::Write(writing) => Done::Written(change(client, writing, share).await?),
        Operation::Call(calling) => Done::Called(result(client, calling, share).await?),
    })
}

async fn found(client: &Client, reading: &Reading, share: &Share) -> Result<Found, Error> {
    let counting = reading.counting.as_ref();
    let (rows, total) = futures::join!(
        rows(client, &reading.select, share),
        total(client, counting)
    );
    Ok(Found {
        rows: rows?,
        total: total?,
    })
}

async fn change(client: &Client, writing: &Writing, share: &Share) -> Result<Written, Error> {
    let written = match (&writing.statement, &writing.guard) {
        (None, None) => Written::default(),
        (None, Some(guard)) => {
            // Nothing is to be changed, and what was to hold is looked at all the same.
            let (reach, current) = futures::join!(
                counted(client, &guard.reach),
                rows(client, &guard.current, share)
            );
            if reach?.is_some_and(|rows| rows > 1) {
                return Err(Error::SeveralInReach);
            }
            match unmet(guard, current?) {
                Error::Precondition {
                    holds: true,
                    current: Some(_),
                } => Written::default(),
                unmet => return Err(unmet),
            }
        }
        (Some(statement), None) => {
            written(run(client, statement).await?, writing.returning, share).await?
        }
        (Some(statement), Some(guard)) => {
            let (reach, written) = futures::join!(counted(client, &guard.reach), async {
                written(run(client, statement).await?, writing.returning, share).await
            });
            if reach?.is_some_and(|rows| rows > 1) {
                return Err(Error::SeveralInReach);
            }
            let written = written?;
            // Between the two another one may have come into reach.
            if written.affected > 1 {
                return Err(Error::SeveralInReach);
            }
            if written.affected == 0 {
                return Err(unmet(guard, rows(client, &guard.current, share).await?));
            }
            written
        }
    };
    writing.check.holds(written.affected)?;
    Ok(written)
}

/// Why a guarded write changed nothing, by the row as it is now.
fn unmet(guard: &Guarded, current: Rows) -> Error {
    let current = (current.count > 0).then_some(current.json);
    let holds = match &current {
        None => guard.absent,
        Some(_) if guard.absent => false,
        Some(row) => guard
            .versions
            .as_ref()
            .is_none_or(|versions| versions.contains(&etag::of(row))),
    };
    if holds && guard.keyed {
        return Error::OtherKey;
    }
    Error::Precondition { current, holds }
}

async fn result(client: &Client, calling: &Calling, share: &Share) -> Result<Called, Error> {
    let Calling { call, check } = calling;
    let statement = call.statement();
    let (before, called, after) = futures::join!(
        current_role(client),
        called(client, &statement, call, share),
        current_role(client),
    );
    // The call's own error first: the later ones only say that it failed.
    let called = called?;
    if before? != after? {
        return Err(Error::RoleChanged(call.function.qualified()));
    }
    check.holds(called.rows.count)?;
    Ok(called)
}

async fn called(
    client: &Client,
    statement: &Statement,
    call: &Call,
    share: &Share,
) -> Result<Called, Error> {
    let mut stream = pin!(run(client, statement).await?);
    let mut called = Called::default();
    while let Some(row) = stream.try_next().await? {
        if call.function.returns == Returns::Nothing {
            continue;
        }
        if let Some(row) = row.try_get(0)? {
            called.rows.push(row, share)?;
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

async fn rows(client: &Client, select: &Statement, share: &Share) -> Result<Rows, Error> {
    let mut stream = pin!(run(client, select).await?);
    let mut rows = Rows::default();
    while let Some(row) = stream.try_next().await? {
        rows.push(row.try_get(0)?, share)?;
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
        let plan: Plan = row.try_get(0)?;
        rows = plan.rows();
    }
    Ok(rows)
}

/// What EXPLAIN answers, as far as somebody reads it: what lies below the first node may be very deep.
struct Plan(Vec<Explained>);

impl Plan {
    /// The rows that the planner expects.
    fn rows(&self) -> Option<u64> {
        let Self(plan) = self;
        let rows = &plan.first()?.node.rows;
        Some(rows.as_u64().unwrap_or(u64::MAX))
    }
}

#[derive(Deserialize)]
struct Explained {
    #[serde(rename = "Plan")]
    node: Node,
}

#[derive(Deserialize)]
struct Node {
    /// Of a product of many tables it may be more than fits into 64 bits.
    #[serde(rename = "Plan Rows")]
    rows: serde_json::Number,
}

impl<'a> FromSql<'a> for Plan {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(serde_json::from_slice(raw)?))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::JSON
    }
}

async fn written(rows: RowStream, returning: bool, share: &Share) -> Result<Written, Error> {
    let mut stream = pin!(rows);
    let mut written = Written::default();
    while let Some(row) = stream.try_next().await? {
        if returning {
            written.rows.push(row.try_get(0)?, share)?;
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
    /// Nothing of what is rolled back, and nothing of a transaction that wrote only for itself,
    /// will arrive in a stream.
    fn ended(self, end: End, seen: bool) -> Result<Ended, Error> {
        Ok(Ended {
            overrides: self.overrides()?,
            txid: self.txid.filter(|_| end == End::Commit && seen),
        })
    }

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

/// What is known of a transaction of which all is done. `seen` is whether it may be in a stream.
///
/// # Errors
/// [`Error::Database`], and those of [`Overrides::parse`].
pub async fn ended(client: &Client, end: End, seen: bool) -> Result<Ended, Error> {
    let (checked, last) = futures::join!(check_constraints(client, end), last(client));
    checked?;
    last?.ended(end, seen)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_may_be_as_deep_as_it_likes() {
        let mut below = "{}".to_owned();
        for _ in 0..500 {
            below = format!(r#"{{"Plan Rows":1,"Plans":[{below}]}}"#);
        }
        let told =
            format!(r#"[{{"Plan":{{"Node Type":"Limit","Plans":[{below}],"Plan Rows":42}}}}]"#);
        let plan = Plan::from_sql(&Type::JSON, told.as_bytes()).unwrap();
        assert_eq!(plan.rows(), Some(42));
    }

    #[test]
    fn a_plan_may_expect_more_rows_than_can_be_counted() {
        let told = br#"[{"Plan":{"Plan Rows":1000000000000000000000}}]"#;
        let plan = Plan::from_sql(&Type::JSON, told).unwrap();
        assert_eq!(plan.rows(), Some(u64::MAX));
    }
}
