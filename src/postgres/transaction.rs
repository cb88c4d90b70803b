//! The one way in which requests and snapshots begin a transaction.
//!
//! Timeouts are set inside it, so that none leaks to the next user of the connection. A transaction
//! that was not ended properly takes its connection along: nobody else ever sees it.

use std::time::Duration;

use tokio_postgres::{Client, Error};

use super::pool::{Lease, Pool, PoolError};

/// What the transaction may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One statement that reads.
    Read,
    /// Several that read the same moment.
    Snapshot,
    /// Write.
    Write,
}

impl Mode {
    fn sql(self) -> &'static str {
        match self {
            Self::Read => "begin read only",
            Self::Snapshot => "begin isolation level repeatable read, read only",
            Self::Write => "begin read write",
        }
    }
}

/// Why a transaction could not begin.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] PoolError),
    /// `PostgreSQL`'s answer.
    #[error(transparent)]
    Database(#[from] Error),
}

/// An open transaction on a pooled connection. Dropping it rolls back by closing the connection.
#[derive(Debug)]
pub struct Transaction {
    lease: Lease,
}

impl Transaction {
    /// Begins, with this `statement_timeout`.
    ///
    /// # Errors
    /// [`BeginError`].
    pub async fn begin(pool: &Pool, mode: Mode, timeout: Duration) -> Result<Self, BeginError> {
        let lease = Lease::take(pool).await?;
        let begin = format!(
            "{}; set local statement_timeout = {}; set local lock_timeout = '2s'; \
             set local idle_in_transaction_session_timeout = '10s'",
            mode.sql(),
            timeout.as_millis()
        );
        lease.batch_execute(&begin).await?;
        Ok(Self { lease })
    }

    /// Commits and gives the connection back.
    ///
    /// # Errors
    /// `PostgreSQL`'s answer, e.g. of a deferred constraint.
    pub async fn commit(self) -> Result<(), Error> {
        self.lease.batch_execute("commit").await?;
        self.lease.give_back();
        Ok(())
    }
}

impl std::ops::Deref for Transaction {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.lease
    }
}
