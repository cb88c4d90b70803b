//! The one reader of the log: hears the bell, reads, routes to views and channels, publishes.
//!
//! It promises that each committed transaction is published once to every view that was registered
//! before its batch, in an order of dependency. What is decided is decided in rooms that know no
//! connection: [`reading`] says where to read and what a batch is good for, [`stage`] publishes and
//! lets screens join, [`routes`] finds the views that a change concerns, [`asked`] keeps the views that
//! ask, [`round`] asks for them, [`ring`] keeps recent transactions. This file and [`asking`] are the
//! shell around them: connections and waiting. It knows nothing of screens or HTTP.

mod asked;
mod asking;
mod reading;
mod ring;
mod round;
mod routes;
mod stage;
mod trace;

use std::sync::Arc;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tracing::{debug, warn};

use crate::backoff::Backoff;
use crate::bell::{self, Bell};
use crate::causes::Causes;
use crate::cursor::{Cursor, Name, Xid};
use crate::health::Health;
use crate::log::{self, Batch, Bounds, LogError, Place, Prepared, in_time};
use crate::metrics::Metrics;
use crate::postgres::connect::{ConnectError, Target};
use crate::postgres::pool::{OWN, Pool, notice_when_gone, pinned};
use crate::postgres::pooler::{PoolerError, Suspicion};
use crate::schema::catalog::Catalog;
use crate::schema::handle::{CatalogError, Handle};
use crate::schema::upkeep::is_unordered;
use crate::shutdown::{AbortOnDrop, Shutdown};
pub use asked::{Question, Unanswered, Unjoined};
pub use reading::{EpochEnded, Pace, Reading, Source, follow};
pub use round::{Asker, ask};
pub use stage::{Joined, Missed, NotYet, Position, Stage};
pub use trace::{Trace, Traced};

/// What the feed needs of the rest.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Where the log is.
    pub target: Target,
    /// Connections of the login that may become the watchers' roles.
    pub asking: Pool,
    /// What the tables look like.
    pub catalog: Arc<Handle>,
    /// Says when to look.
    pub bell: bell::Parts,
    /// Told how far it is.
    pub health: Arc<Health>,
    /// Told what it does.
    pub metrics: Arc<Metrics>,
}

/// The feed: the one that reads, and tells its stage.
#[derive(Debug)]
pub struct Feed {
    parts: Parts,
    stage: Arc<Stage>,
}

#[derive(Debug, thiserror::Error)]
enum FeedError {
    #[error("the database cannot be reached")]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(
        "the database is a standby: it has no notifications and no epoch (found: pg_is_in_recovery() is true; \
         try: the primary's address, or several with target_session_attrs=read-write)"
    )]
    Standby,
    #[error(
        "the sequence of the log gives out several ids at a time, which breaks the order of changes, \
         and cannot be repaired now (found: its CACHE is not 1; try: alter sequence rowcast.log_id_seq cache 1; \
         select rowcast.reset())"
    )]
    Unordered(#[source] LogError),
    #[error(
        "the schema rowcast is not there, or is not for this login (try: rowcast doctor, with the relay's settings)"
    )]
    Missing(#[source] tokio_postgres::Error),
    #[error(transparent)]
    Pooler(#[from] PoolerError),
    #[error(transparent)]
    EpochEnded(#[from] EpochEnded),
    #[error("asking for the state of recovery failed")]
    Recovery(#[source] tokio_postgres::Error),
}

impl FeedError {
    /// Whether the server answers and is none to be followed: a reason to tell operators, while an
    /// absent one is told by everybody who needs it.
    fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Standby
                | Self::Unordered(_)
                | Self::Missing(_)
                | Self::Pooler(PoolerError::Mixes(_))
                | Self::Connect(ConnectError::Behind { .. })
        )
    }
}

/// Whether somebody took away what was installed, or the right to it.
fn is_missing(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        [
            SqlState::UNDEFINED_FUNCTION,
            SqlState::UNDEFINED_TABLE,
            SqlState::INVALID_SCHEMA_NAME,
            SqlState::INSUFFICIENT_PRIVILEGE,
        ]
        .contains(code)
    })
}

impl Feed {
    /// A feed that has not begun.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let stage = Arc::new(Stage::new(Arc::clone(&parts.metrics)));
        Self { parts, stage }
    }

    /// Where screens join.
    #[must_use]
    pub fn stage(&self) -> &Arc<Stage> {
        &self.stage
    }

    /// Reads the log until the stop signal. Losses of the database are reported and survived.
    pub async fn run(&self, shutdown: Shutdown) {
        let stage = Arc::clone(&self.stage);
        let crier = tokio::spawn(async move { stage.cry().await });
        let _stop_crier = AbortOnDrop(crier);
        let mut backoff = Backoff::new();
        let mut is_first = true;
        let mut suspicion = Suspicion::default();
        loop {
            let ended = tokio::select! {
                () = async { shutdown.begun().await; } => return,
                ended = self.session(&mut backoff, &mut is_first, &mut suspicion) => ended,
            };
            self.parts.health.lost();
            let Err(error) = ended;
            suspicion.hear(&error);
            let refusal = error.is_refusal().then(|| Causes(&error).to_string());
            self.parts.health.refuse("feed", refusal);
            let error = Causes(&error).to_string();
            if backoff.is_news(&error) {
                warn!(error, "the log is lost");
            } else {
                debug!(error, "the log is still lost");
            }
            tokio::time::sleep(backoff.delay()).await;
        }
    }

    /// One connection's life. Returns only with the reason of its end.
    async fn session(
        &self,
        backoff: &mut Backoff,
        is_first: &mut bool,
        suspicion: &mut Suspicion,
    ) -> Result<std::convert::Infallible, FeedError> {
        suspicion.settle(&self.parts.target).await?;
        let (client, connection) = self.parts.target.connect("rowcast feed").await?;
        let mut driver = AbortOnDrop(tokio::spawn(connection));
        let Err(error) = self.read(client, backoff, is_first).await;
        // A statement is told that the connection is closed, and the connection why.
        Err(match error {
            FeedError::Log(LogError::Query(closed)) if closed.is_closed() => {
                let reason = in_time(&mut driver.0).await;
                let reason = reason.ok().and_then(Result::ok).and_then(Result::err);
                LogError::Query(reason.unwrap_or(closed)).into()
            }
            error => error,
        })
    }

    /// What is done with the connection. Returns only with the reason of its end.
    async fn read(
        &self,
        client: Client,
        backoff: &mut Backoff,
        is_first: &mut bool,
    ) -> Result<std::convert::Infallible, FeedError> {
        // Rows that are read again must look like images, and no function of a table's owner may be
        // taken for one of PostgreSQL's.
        let settings = format!("{}; set search_path = pg_catalog, pg_temp; {OWN}", pinned());
        in_time(client.batch_execute(&settings))
            .await?
            .map_err(LogError::from)?;
        in_time(notice_when_gone(&client)).await?;
        let recovery = in_time(client.query_one("select pg_is_in_recovery()", &[]))
            .await?
            .map_err(FeedError::Recovery)?;
        if recovery.get(0) {
            return Err(FeedError::Standby);
        }
        let fence = self.parts.target.fence();
        in_time(fence.learn(&client))
            .await?
            .map_err(LogError::from)?;
        match log::check_order(&client).await {
            Ok(None) => {}
            Ok(Some(found)) => warn!(finding = found, "the log was out of order"),
            Err(error) => {
                let unordered = in_time(is_unordered(&client)).await?;
                return Err(match (unordered.map_err(LogError::from)?, error) {
                    (true, error) => FeedError::Unordered(error),
                    (false, LogError::Query(error)) if is_missing(&error) => {
                        FeedError::Missing(error)
                    }
                    (false, error) => error.into(),
                });
            }
        }
        self.parts.health.refuse("feed", None);
        let place = Place::of(&client).await?;
        let start = log::start(&client).await?;
        // Later it may be another life of the transaction counter, in which no earlier edition counts.
        if std::mem::take(is_first) {
            self.parts.catalog.catch_up().await?;
        } else {
            self.parts.catalog.reload().await?;
        }
        self.parts.health.set_catalog();
        let connection = Connection {
            parts: &self.parts,
            prepared: log::prepare(&client).await?,
            client,
            place: place.clone(),
        };
        reading::follow(
            &connection,
            Reading::new(place, start),
            &self.stage,
            &self.parts.health,
            &mut Bell::open(self.parts.bell.clone()),
            || backoff.reset(),
        )
        .await
    }
}

impl Pace for Bell {
    async fn next(&mut self, read: bell::Read) {
        Self::next(self, read).await;
    }
}

/// A connection that reads the log.
struct Connection<'a> {
    parts: &'a Parts,
    client: Client,
    prepared: Prepared,
    place: Place,
}

impl Source for Connection<'_> {
    type Error = FeedError;

    fn catalog(&self) -> Arc<Catalog> {
        self.parts.catalog.current()
    }

    async fn reload(&self) -> Result<Arc<Catalog>, FeedError> {
        Ok(self.parts.catalog.reload().await?)
    }

    async fn read(
        &self,
        from: &Cursor,
        catalog: &Catalog,
        bounds: Bounds,
    ) -> Result<Option<Batch>, FeedError> {
        let metrics = &self.parts.metrics;
        metrics.polls.inc();
        let read = log::read(
            &self.client,
            &self.prepared,
            &self.place,
            from,
            catalog,
            bounds,
        );
        match read.await {
            Err(LogError::TooMuch(_)) => Ok(None),
            batch => {
                let batch = batch?;
                metrics.log_rows.inc_by(batch.rows);
                Ok(Some(batch))
            }
        }
    }

    async fn present(&self) -> Result<Cursor, FeedError> {
        Ok(log::present(&self.client).await?)
    }

    async fn barrier(&self) -> Result<Xid, FeedError> {
        Ok(log::barrier(&self.client).await?)
    }

    async fn end_epoch(&self, known: Name) -> Result<(), FeedError> {
        Ok(log::end_epoch(&self.client, &self.place, known).await?)
    }

    async fn settle_gap(&self, value: i64) -> Result<(), FeedError> {
        Ok(log::settle_gap(&self.client, value).await?)
    }
}
