//! The one place that opens request transactions.
//!
//! Promises that every transaction runs as the role and under the time limits that end with it, and
//! that a connection returns to the pool only when its transaction is known to be over. Knows
//! nothing of what runs inside, except that it sends its statements when it is first polled.

use std::borrow::Cow;
use std::fmt::Write;
use std::pin::pin;
use std::time::Duration;

use futures::TryStreamExt;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, RowStream, SimpleQueryMessage};

use super::pool::{Lease, PINS};
use super::prepared::Prepared;
use super::quote::literal;
use super::turns::Caller;
use super::untyped::untyped;

/// Longest wait for a lock: a person at a screen is on the other end.
const LOCK: Duration = Duration::from_secs(2);
/// Longest time the server waits for our next message inside a transaction. We send it at once,
/// so only a relay that was frozen or cut off gets here.
const IDLE: Duration = Duration::from_secs(5);
/// How much longer than its statements a transaction may take before we stop listening.
const GRACE: Duration = Duration::from_secs(3);

/// A function may have set something for the session, `response.headers` for one, and the next request
/// on this connection is somebody else's.
const CLEAN: &str = "reset all; reset role";
/// What else one that is called may have left: temporary tables, which come before those of the schema, locks, open
/// cursors, LISTEN. Not after plain writes, where only a trigger could leave any: it costs 28 us, of 400.
const CLEAN_ALL: &str = "reset all; reset role; discard temp; close all; unlisten *; \
                         select pg_catalog.pg_advisory_unlock_all()";

/// What a transaction may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Repeatable read, so that all of its statements belong to one snapshot. [`Terms::tables`].
    ReadOnly,
    /// Read committed, for a single statement: it takes its snapshot when it has its locks.
    ReadOnce,
    /// Read only likewise, but it ends only once `work` has succeeded, as one that writes does: for
    /// statements that may have changed the session.
    Guarded,
    /// Read committed.
    ReadWrite,
    /// Likewise, and COMMIT is sent behind the statements: one round trip. For `work` that fails only
    /// where one of its statements does, and so the transaction; nothing else is left to keep it from
    /// being committed.
    WriteOnce,
}

/// As whom a transaction runs, and what its policies and functions can read of the request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Context {
    /// `set local role`; `None` leaves the login what it is.
    pub role: Option<String>,
    /// Settings by name, e.g. `request.jwt.claims`; the later of two counts.
    pub settings: Vec<(Cow<'static, str>, String)>,
    /// Called as the role before anything else: SQL of a function's name, quoted.
    pub before: Option<String>,
}

impl Context {
    /// Whoever has this role and these claims, whatever is asked.
    #[must_use]
    pub fn caller(&self) -> Caller {
        let settings = self.settings.iter();
        let mut claims = settings.filter(|(name, _)| name == "request.jwt.claims");
        Caller::of((&self.role, claims.next_back()))
    }

    /// By name, the role first.
    fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        let role = self.role.iter().map(|role| ("role", role.as_str()));
        let settings = self.settings.iter();
        role.chain(settings.map(|(name, value)| (name.as_ref(), value.as_str())))
    }
}

/// Sets what ends with the transaction: how values become text, its limits, who it is, what it can read of
/// the request. Sent when first polled, like everything inside.
async fn apply(client: &Client, prepared: &Prepared, terms: &Terms<'_>) -> Result<(), Error> {
    // Zero would mean no limit at all.
    let statement = terms.statement_timeout.as_millis().max(1).to_string();
    let (lock, idle) = (LOCK.as_millis().to_string(), IDLE.as_millis().to_string());
    let limits = [
        ("statement_timeout", statement.as_str()),
        ("lock_timeout", &lock),
        ("idle_in_transaction_session_timeout", &idle),
    ];
    let mut sql = String::new();
    let mut values = Vec::new();
    let first = PINS.into_iter().chain(limits);
    for (name, value) in first.chain(terms.context.settings()) {
        let separator = if sql.is_empty() { "select" } else { "," };
        values.extend([name, value]);
        let (name, value) = (values.len() - 1, values.len());
        let _infallible = write!(
            sql,
            "{separator} pg_catalog.set_config(${name}, ${value}, true)"
        );
    }
    let types = vec![Type::TEXT; values.len()];
    let settings = async { run_out(prepared.query(client, &sql, &types, &values).await?).await };
    let before = async {
        match &terms.context.before {
            Some(function) => {
                let call = format!("select {function}()");
                run_out(client.query_typed_raw(&call, untyped::<&str>(&[])).await?).await
            }
            None => Ok(()),
        }
    };
    let (settings, before) = futures::join!(settings, before);
    settings.and(before)
}

async fn run_out(rows: RowStream) -> Result<(), Error> {
    rows.try_for_each(async |_| Ok(())).await
}

/// Why a transaction did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum TransactionError {
    /// PostgreSQL refused, or the connection broke before the end was asked for.
    #[error("the transaction failed")]
    Failed(#[source] Error),
    /// COMMIT waited too long for what others hold, and nothing was committed: whoever notifies waits until all who did
    /// before have committed, and deferred constraints wait for rows.
    #[error("the commit waited too long for others")]
    Queued(#[source] Error),
    /// The connection broke, or fell silent, after COMMIT was sent: nobody knows whether it holds.
    #[error("it is unknown whether the transaction was committed")]
    InDoubt(#[source] Option<Error>),
    /// PostgreSQL did not answer in time.
    #[error("the database did not answer within {0:?}")]
    Silent(Duration),
    /// One of [`Terms::tables`] was truncated or rewritten; what was read of it is not what it was.
    #[error("a table was truncated or rewritten while it was read")]
    Moved,
}

/// How often a read is made again because of [`TransactionError::Moved`].
pub const MOVES: usize = 3;

/// Rows for tables whose file is another one than in the transaction's snapshot: the function looks at
/// the present. Not there at all, a table is some statement's error.
fn moved(tables: &[u32]) -> String {
    let tables: Vec<String> = tables.iter().map(u32::to_string).collect();
    format!(
        "with recursive t (oid) as (\
           select oid from pg_catalog.unnest('{{{}}}'::pg_catalog.oid[]) as t (oid) \
           union all \
           select i.inhrelid from pg_catalog.pg_inherits i join t on i.inhparent = t.oid) \
         select from t join pg_catalog.pg_class c on c.oid = t.oid \
         where c.relfilenode <> pg_catalog.pg_relation_filenode(c.oid); ",
        tables.join(",")
    )
}

/// How a transaction is to be.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// What it may do.
    pub access: Access,
    /// As whom.
    pub context: &'a Context,
    /// The id of an exported snapshot to read in, of a read only transaction.
    pub snapshot: Option<&'a str>,
    /// `pg_class.oid` of tables that are read under [`Access::ReadOnly`], each with its partitions. The
    /// snapshot is taken before they are locked, and one that was truncated or rewritten in
    /// between is empty in it (PostgreSQL, Caveats of Concurrency Control): [`TransactionError::Moved`].
    pub tables: &'a [u32],
    /// Longest time for one of its statements.
    pub statement_timeout: Duration,
    /// How it ends when all went well.
    pub end: End,
}

impl<'a> Terms<'a> {
    /// A transaction that reads, and ends.
    #[must_use]
    pub fn read(context: &'a Context, statement_timeout: Duration) -> Self {
        Self {
            access: Access::ReadOnly,
            context,
            snapshot: None,
            tables: &[],
            statement_timeout,
            end: End::Commit,
        }
    }

    /// A transaction that writes, and commits.
    #[must_use]
    pub fn write(context: &'a Context, statement_timeout: Duration) -> Self {
        Self {
            access: Access::ReadWrite,
            ..Self::read(context, statement_timeout)
        }
    }
}

/// How a transaction ends when all went well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It holds.
    Commit,
    /// It was only tried: `tx=rollback`.
    Rollback,
}

impl End {
    fn sql(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Rollback => "rollback",
        }
    }
}

/// Runs `work` in a transaction on `lease` and commits it when `work` succeeds.
///
/// The opening travels together with the first statements of `work`, and for a read, or a write of
/// which nothing is to be looked at before, the COMMIT does too: one round trip. Dropping this future
/// closes the connection.
///
/// # Errors
/// The error of `work`, or a [`TransactionError`]. Nothing is committed then, unless the error is
/// [`TransactionError::InDoubt`].
pub async fn run<T, E>(
    lease: Lease,
    terms: Terms<'_>,
    work: impl AsyncFnOnce(&Client) -> Result<T, E>,
) -> Result<T, E>
where
    E: From<TransactionError>,
{
    let deadline = terms.statement_timeout + GRACE;
    let silent = || E::from(TransactionError::Silent(deadline));
    let client: &Client = &lease;
    let prepared = lease.prepared();
    let opening = opening(&terms);
    let open = async {
        let (opened, applied) = futures::join!(
            client.batch_execute(&opening),
            Box::pin(apply(client, &prepared, &terms))
        );
        opened.and(applied)
    };
    match terms.access {
        Access::ReadOnly | Access::ReadOnce => {
            let moved = match terms.tables {
                [] => String::new(),
                tables => moved(tables),
            };
            // One message: what is cleaned costs no round trip, and not even a wake-up.
            let end = format!("{moved}{}; {CLEAN}", terms.end.sql());
            let all = async {
                // `futures::join` first polls in this order, and each sends when first polled.
                futures::join!(open, work(client), client.simple_query(&end))
            };
            let (opened, done, ended) = tokio::time::timeout(deadline, all)
                .await
                .map_err(|_elapsed| silent())?;
            // In a failed transaction COMMIT rolls back: when it answers, the connection is idle.
            if ended.is_ok() {
                lease.give_back();
            }
            opened.map_err(TransactionError::Failed)?;
            let value = done?;
            let ended = ended.map_err(TransactionError::Failed)?;
            let is_row = |message: &_| matches!(message, SimpleQueryMessage::Row(_));
            if ended.iter().any(is_row) {
                return Err(TransactionError::Moved.into());
            }
            Ok(value)
        }
        Access::WriteOnce => {
            let all = async { futures::join!(open, work(client), end(client, terms.end, CLEAN)) };
            let Ok((opened, done, ended)) = tokio::time::timeout(deadline, all).await else {
                return Err(TransactionError::InDoubt(None).into());
            };
            // Of a failed transaction it was a ROLLBACK.
            give_back(lease, ended)?;
            opened.map_err(TransactionError::Failed)?;
            done
        }
        Access::Guarded | Access::ReadWrite => {
            let all = async { futures::join!(open, work(client)) };
            let (opened, done) = tokio::time::timeout(deadline, all)
                .await
                .map_err(|_elapsed| silent())?;
            let done = match opened {
                Ok(()) => done,
                Err(error) => Err(TransactionError::Failed(error).into()),
            };
            let value = match done {
                Ok(value) => value,
                Err(error) => {
                    let undone = format!("rollback; {CLEAN_ALL}");
                    let rollback = client.batch_execute(&undone);
                    if let Ok(Ok(())) = tokio::time::timeout(GRACE, rollback).await {
                        lease.give_back();
                    }
                    return Err(error);
                }
            };
            // Deferred constraints and triggers run here, so COMMIT gets the whole time again.
            let ended =
                match tokio::time::timeout(deadline, end(client, terms.end, CLEAN_ALL)).await {
                    Ok(ended) => give_back(lease, ended),
                    Err(_elapsed) => Err(TransactionError::InDoubt(None)),
                };
            match ended {
                Ok(()) => Ok(value),
                // There is no doubt where nothing was to hold.
                Err(TransactionError::InDoubt(source))
                    if terms.end == End::Rollback || terms.access == Access::Guarded =>
                {
                    Err(source.map_or_else(silent, |error| TransactionError::Failed(error).into()))
                }
                Err(error) => Err(error.into()),
            }
        }
    }
}

/// The end of a transaction that writes, and of what it may have left in the session.
struct Ended {
    committed: Result<(), Error>,
    cleaned: Result<(), Error>,
}

/// One message, sent when it is first polled: each is a wake-up of both sides. (To answer before the
/// connection is clean made a write slower, measured: the next one takes another connection, and both are
/// busy. To clean it at the next opening would let a limit that was left there keep BEGIN from happening.)
async fn end(client: &Client, end: End, clean: &str) -> Ended {
    let both = format!("{}; {clean}", end.sql());
    let mut cleaned = Ok(());
    let committed = async {
        let mut answers = pin!(client.simple_query_raw(&both).await?);
        // Of the first of them; what fails after it is the cleaning.
        answers.try_next().await?;
        cleaned = answers.try_for_each(async |_| Ok(())).await;
        Ok(())
    };
    let committed = committed.await;
    Ended { committed, cleaned }
}

/// Gives the connection back, unless something may be left in it.
fn give_back(lease: Lease, ended: Ended) -> Result<(), TransactionError> {
    match ended.committed {
        Ok(()) => {
            if ended.cleaned.is_ok() {
                lease.give_back();
            }
            Ok(())
        }
        Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
            Err(TransactionError::Queued(error))
        }
        Err(error) if error.as_db_error().is_some_and(refused) => {
            Err(TransactionError::Failed(error))
        }
        Err(error) => Err(TransactionError::InDoubt(Some(error))),
    }
}

/// A COMMIT that failed with an ordinary error was rolled back. A session that was ended by an
/// administrator or a crash (class 57P) may have committed first.
fn refused(error: &tokio_postgres::error::DbError) -> bool {
    !error.code().code().starts_with("57P")
}

/// `begin` stands alone, for it cannot fail: an error in anything after it leaves a failed
/// transaction, in which the statements already under way do nothing.
fn opening(terms: &Terms<'_>) -> String {
    let mode = match terms.access {
        Access::ReadOnly | Access::Guarded => "isolation level repeatable read read only",
        Access::ReadOnce => "isolation level read committed read only",
        Access::ReadWrite | Access::WriteOnce => "isolation level read committed read write",
    };
    let mut sql = format!("begin; set transaction {mode}");
    if let Some(snapshot) = terms.snapshot {
        // It must come before anything that reads, and so before the role is set.
        let _infallible = write!(sql, "; set transaction snapshot {}", literal(snapshot));
    }
    sql
}
