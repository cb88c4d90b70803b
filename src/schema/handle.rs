//! The current [`Catalog`], and when it is read anew.
//!
//! A [`Handle`] promises that no picture which it gives is older than the question, that calls which overlap share one
//! read, and that the old picture serves where no new one can be had. It knows nothing of what is in one.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinError;
use tokio::time::{Instant, sleep_until};

use super::allowance::Allowance;
use super::catalog::Catalog;
use crate::metrics::Metrics;
use crate::postgres::pool::{Lease, Pool, PoolError};

/// The current catalogue and the way to renew it.
#[derive(Debug)]
pub struct Handle {
    pool: Pool,
    schemas: Vec<String>,
    metrics: Arc<Metrics>,
    current: watch::Sender<Arc<Catalog>>,
    reloading: Arc<tokio::sync::Mutex<()>>,
    reads: Mutex<Reads>,
}

/// Definitions are read while others change them, and nobody waits for whom. No function that somebody
/// made may be taken for one of PostgreSQL's: it would run as this login. PostgreSQL takes what a type is made
/// of for much more than it is, and would compile the query (measured: 0.5 s instead of 0.02). A limit that the
/// database has for statements is one for people's; ours is [`SILENCE`].
const NO_WAITING: &str = "set lock_timeout = '100ms'; set statement_timeout = 0; \
                          set search_path = pg_catalog, pg_temp; set jit = off";

/// Reads by number.
#[derive(Debug, Default)]
struct Reads {
    /// The latest that was begun.
    begun: u64,
    /// The latest that succeeded.
    done: u64,
    /// The first that begins after somebody last said that something has changed.
    changed: u64,
    /// What requests have used up.
    allowance: Allowance,
}

/// Why the catalogue could not be read. The old one keeps serving.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// No connection.
    #[error("no connection for reading the catalogue")]
    Connect(#[from] PoolError),
    /// The queries failed.
    #[error("the catalogue could not be read")]
    Query(#[from] tokio_postgres::Error),
    /// No answer, which ends by itself where the connection was lost and nobody said so.
    #[error("the catalogue did not come within {} seconds", SILENCE.as_secs())]
    Silent,
    /// The relay stops.
    #[error("the reading of the catalogue was broken off")]
    Stopped(#[from] JoinError),
}

/// A database that is silent for so long is gone.
const SILENCE: Duration = Duration::from_secs(10);

impl Handle {
    /// An empty catalogue of `schemas` that will be read through `pool`. Reads are counted in
    /// `metrics`.
    #[must_use]
    pub fn new(pool: Pool, schemas: Vec<String>, metrics: Arc<Metrics>) -> Self {
        Self {
            pool,
            schemas,
            metrics,
            current: watch::Sender::new(Arc::default()),
            reloading: Arc::default(),
            reads: Mutex::default(),
        }
    }

    /// The schemas that are served; the first is meant where a request names none.
    #[must_use]
    pub fn schemas(&self) -> &[String] {
        &self.schemas
    }

    /// The picture as it is now.
    #[must_use]
    pub fn current(&self) -> Arc<Catalog> {
        self.current.borrow().clone()
    }

    /// Follows the picture.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Catalog>> {
        self.current.subscribe()
    }

    /// Reads the catalogue anew and returns it. Calls that overlap share one read that began after
    /// the later of them was made, so the answer is never older than the question.
    ///
    /// # Errors
    /// See [`CatalogError`]; the old picture stays.
    pub async fn reload(&self) -> Result<Arc<Catalog>, CatalogError> {
        let asked = {
            let mut reads = self.reads();
            reads.changed = reads.begun + 1;
            reads.begun
        };
        // It began after we asked.
        self.read_unless(|reads| reads.done > asked).await
    }

    /// The same for somebody who was not there to hear of changes, and has heard of none. What it finds
    /// unchanged stays of the same edition.
    ///
    /// # Errors
    /// See [`CatalogError`]; the old picture stays.
    pub async fn catch_up(&self) -> Result<Arc<Catalog>, CatalogError> {
        let asked = self.reads().begun;
        self.read_unless(|reads| reads.done > asked).await
    }

    /// The same for a request that does not find what it names, or fails as if the table were another: mostly it is
    /// the request that is wrong. Waits a moment where others have just looked in vain.
    ///
    /// # Errors
    /// See [`CatalogError`]; the old picture stays.
    pub async fn look_again(self: &Arc<Self>) -> Result<Arc<Catalog>, CatalogError> {
        let asked = self.reads().begun;
        loop {
            let allowance = self.reads().allowance;
            if let Some(turn) = allowance.turn() {
                sleep_until(turn).await;
            }
            let one_at_a_time = Arc::clone(&self.reloading).lock_owned().await;
            if self.reads().done > asked {
                return Ok(self.current());
            }
            // Somebody had a read meanwhile that began before this was asked.
            if self.reads().allowance != allowance {
                continue;
            }
            // In a task of its own: who hangs up would break it off, with its connection, for all who wait, and would
            // have used up nothing.
            let handle = Arc::clone(self);
            let read = tokio::spawn(async move {
                let _one_at_a_time = one_at_a_time;
                let begun = Instant::now();
                let read = handle.read().await;
                handle.reads().allowance.took(begun, begun.elapsed());
                read
            });
            return read.await?;
        }
    }

    /// The picture, which is read where there is none yet: one read for all who have come meanwhile.
    ///
    /// # Errors
    /// See [`CatalogError`].
    pub async fn at_hand(&self) -> Result<Arc<Catalog>, CatalogError> {
        let is_there = |reads: &Reads| reads.done > 0;
        if is_there(&self.reads()) {
            return Ok(self.current());
        }
        self.read_unless(is_there).await
    }

    async fn read_unless(
        &self,
        serves: impl Fn(&Reads) -> bool,
    ) -> Result<Arc<Catalog>, CatalogError> {
        let _one_at_a_time = self.reloading.lock().await;
        if serves(&self.reads()) {
            return Ok(self.current());
        }
        self.read().await
    }

    /// Reads, while nobody else does.
    async fn read(&self) -> Result<Arc<Catalog>, CatalogError> {
        let number = {
            let mut reads = self.reads();
            reads.begun += 1;
            reads.begun
        };
        let lease = Lease::take(&self.pool).await?;
        let read = async {
            lease.batch_execute(NO_WAITING).await?;
            Catalog::load(lease.client(), &self.schemas).await
        };
        let read = tokio::time::timeout(SILENCE, read).await;
        let mut catalog = read.map_err(|_| CatalogError::Silent)??;
        lease.give_back();
        self.metrics.catalog_loads.inc();
        let before = self.current();
        let mut reads = self.reads();
        let said = reads.changed > before.edition();
        catalog.follow(&before, said, number);
        let catalog = Arc::new(catalog);
        self.current.send_replace(Arc::clone(&catalog));
        reads.done = number;
        Ok(catalog)
    }

    fn reads(&self) -> std::sync::MutexGuard<'_, Reads> {
        self.reads.lock().expect("no panic while held")
    }
}
