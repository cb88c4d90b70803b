//! The one place that opens request transactions.
//!
//! Promises that every transaction runs under time limits that end with it, and that a connection
//! returns to the pool only when its transaction is known to be over. Knows nothing of what runs
//! inside, except that it sends its statements when it is first polled.

use std::time::Duration;

use tokio_postgres::{Client, Error};

use super::pool::Lease;

/// Longest wait for a lock: a person at a screen is on the other end.
const LOCK: Duration = Duration::from_secs(2);
/// Longest time the server waits for our next message inside a transaction. We send it at once,
/// so only a relay that was frozen or cut off gets here.
const IDLE: Duration = Duration::from_secs(10);
/// How much longer than its statements a transaction may take before we stop listening.
const GRACE: Duration = Duration::from_secs(3);

/// What a transaction may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Repeatable read, so that rows and their count belong to one snapshot.
    ReadOnly,
    /// Read committed.
    ReadWrite,
}

/// Why a transaction did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum TransactionError {
    /// PostgreSQL refused, or the connection broke before the end was asked for.
    #[error("the transaction failed")]
    Failed(#[source] Error),
    /// The connection broke, or fell silent, after COMMIT was sent: nobody knows whether it holds.
    #[error("it is unknown whether the transaction was committed")]
    InDoubt(#[source] Option<Error>),
    /// PostgreSQL did not answer in time.
    #[error("the database did not answer within {0:?}")]
    Silent(Duration),
}

/// Runs `work` in a transaction on `lease` and commits it when `work` succeeds.
///
/// The opening travels together with the first statements of `work`, and for a read the COMMIT
/// does too: one round trip. Dropping this future closes the connection.
///
/// # Errors
/// The error of `work`, or a [`TransactionError`]. Nothing is committed then, unless the error is
/// [`TransactionError::InDoubt`].
pub async fn run<T, E>(
    lease: Lease,
    access: Access,
    statement_timeout: Duration,
    work: impl AsyncFnOnce(&Client) -> Result<T, E>,
) -> Result<T, E>
where
    E: From<TransactionError>,
{
    let deadline = statement_timeout + GRACE;
    let silent = || E::from(TransactionError::Silent(deadline));
    let client: &Client = &lease;
    let opening = opening(access, statement_timeout);
    match access {
        Access::ReadOnly => {
            let all = async {
                // `futures::join` first polls in this order, and each sends when first polled.
                futures::join!(
                    client.batch_execute(&opening),
                    work(client),
                    client.batch_execute("commit"),
                )
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
            ended.map_err(TransactionError::Failed)?;
            Ok(value)
        }
        Access::ReadWrite => {
            let all = async { futures::join!(client.batch_execute(&opening), work(client)) };
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
                    let rollback = client.batch_execute("rollback");
                    if let Ok(Ok(())) = tokio::time::timeout(GRACE, rollback).await {
                        lease.give_back();
                    }
                    return Err(error);
                }
            };
            // Deferred constraints and triggers run here, so COMMIT gets the whole time again.
            match tokio::time::timeout(deadline, client.batch_execute("commit")).await {
                Ok(Ok(())) => lease.give_back(),
                Ok(Err(error)) if error.as_db_error().is_some_and(refused) => {
                    return Err(TransactionError::Failed(error).into());
                }
                Ok(Err(error)) => return Err(TransactionError::InDoubt(Some(error)).into()),
                Err(_elapsed) => return Err(TransactionError::InDoubt(None).into()),
            }
            Ok(value)
        }
    }
}

/// A COMMIT that failed with an ordinary error was rolled back. A session that was ended by an
/// administrator or a crash (class 57P) may have committed first.
fn refused(error: &tokio_postgres::error::DbError) -> bool {
    !error.code().code().starts_with("57P")
}

/// `begin` stands alone, for it cannot fail: an error in anything after it leaves a failed
/// transaction, in which the statements already under way do nothing.
fn opening(access: Access, statement_timeout: Duration) -> String {
    let mode = match access {
        Access::ReadOnly => "isolation level repeatable read read only",
        Access::ReadWrite => "isolation level read committed read write",
    };
    format!(
        "begin; set transaction {mode}; \
         set local statement_timeout = {}; \
         set local lock_timeout = {}; \
         set local idle_in_transaction_session_timeout = {}",
        // Zero would mean no limit at all.
        statement_timeout.as_millis().max(1),
        LOCK.as_millis(),
        IDLE.as_millis(),
    )
}
