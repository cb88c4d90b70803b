//! Asks PostgreSQL for the views that ask: the connection that [`round`] asks with.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tracing::{debug, warn};

use super::asked::{Question, Unanswered};
use super::round::{self, Asker};
use super::{Feed, FeedError, Parts};
use crate::backoff::Backoff;
use crate::causes::Causes;
use crate::cursor::Cursor;
use crate::log::{self, Batch, Bounds, LogError, Place, in_time};
use crate::postgres::pool::{Lease, PoolError, pinned};
use crate::postgres::transaction::{self, Terms, TransactionError};
use crate::schema::catalog::Catalog;
use crate::shutdown::{AbortOnDrop, Shutdown};
use crate::view::asking::{Answer, AskError};

/// Longest time for one question.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often it is told that views cannot be asked for: each is tried several times a second, and there are up to a
/// thousand.
const AGAIN: Duration = Duration::from_mins(1);

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error("no connection to ask with")]
    Pool(#[from] PoolError),
    #[error("the view could not be asked for")]
    Transaction(#[from] TransactionError),
    #[error(transparent)]
    Ask(#[from] AskError),
}

impl NoAnswer {
    /// Asking the same again is of no use: permissions or definitions have changed, a value is none that the view's
    /// own casts take, or a policy fails. A read is answered by the error then, and so is a stream that begins anew.
    fn is_final(&self) -> bool {
        match self {
            // From version 16 on a snapshot is an undefined object once the connection has ended that exported it. In a
            // policy or a filter it is a setting that nobody has made.
            Self::Transaction(TransactionError::Failed(error)) => error
                .code()
                .is_some_and(|code| !passes(code) && *code != SqlState::UNDEFINED_OBJECT),
            Self::Ask(AskError::Query(error)) => error.code().is_some_and(|code| !passes(code)),
            Self::Ask(AskError::Anew) | Self::Transaction(TransactionError::Moved) => true,
            Self::Transaction(_) | Self::Pool(_) => false,
        }
    }
}

/// Whether an error may be gone when the same is asked again: one of the connection, of others who were in the way, of
/// room, of a time limit, or of the server itself. What a policy or a filter makes of the rows has any other code.
fn passes(code: &SqlState) -> bool {
    let class = code.code().get(..2).unwrap_or_default();
    ["08", "25", "40", "53", "55", "57", "58", "XX"].contains(&class)
}

impl Feed {
    /// Asks until the stop signal. Losses of the database are survived.
    pub async fn ask(&self, shutdown: Shutdown) {
        let mut backoff = Backoff::new();
        loop {
            let ended = tokio::select! {
                () = async { shutdown.begun().await; } => return,
                ended = self.asking_session(&mut backoff) => ended,
            };
            let Err(error) = ended;
            debug!(error = %Causes(&error), "views that ask are behind");
            self.stage.set_asked_failing();
            tokio::time::sleep(backoff.delay()).await;
        }
    }

    async fn asking_session(&self, backoff: &mut Backoff) -> Result<Infallible, FeedError> {
        self.stage.until_asked().await;
        let (client, connection) = self.parts.target.connect("rowcast asking").await?;
        let _stop_driver = AbortOnDrop(tokio::spawn(connection));
        let settings = format!("{}; set search_path = pg_catalog, pg_temp", pinned());
        let settings = in_time(client.batch_execute(&settings)).await?;
        settings.map_err(LogError::from)?;
        let asker = Connection {
            parts: &self.parts,
            place: Place::of(&client).await?,
            client,
            in_vain: Mutex::default(),
        };
        round::ask(&asker, &self.stage, || backoff.reset()).await
    }
}

/// A connection that asks.
struct Connection<'a> {
    parts: &'a Parts,
    client: Client,
    place: Place,
    in_vain: Mutex<InVain>,
}

/// What was asked in vain.
#[derive(Default)]
struct InVain {
    /// How often, since that was told.
    times: u64,
    told: Option<Instant>,
}

impl InVain {
    fn tell(&mut self, error: &NoAnswer) {
        self.times += 1;
        let (error, times) = (Causes(error), self.times);
        if self.told.is_none_or(|told| told.elapsed() >= AGAIN) {
            warn!(%error, times, "views could not be asked for");
            *self = Self {
                times: 0,
                told: Some(Instant::now()),
            };
        } else {
            debug!(%error, "a view could not be asked for");
        }
    }
}

impl Connection<'_> {
    async fn put(&self, question: &mut Question, snapshot: &str) -> Result<Answer, NoAnswer> {
        let Question {
            view,
            asking,
            pending,
            shown,
            took: _,
        } = question;
        let lease = Lease::take(&self.parts.asking).await?;
        let tables = view.tables();
        let terms = Terms {
            snapshot: Some(snapshot),
            tables: &tables,
            ..Terms::read(view.context(), PATIENCE)
        };
        transaction::run(lease, terms, async |client| {
            let answer = view.ask(asking, pending, shown.as_mut(), client).await;
            answer.map_err(NoAnswer::from)
        })
        .await
    }

    async fn end(&self, how: &str) -> Result<(), FeedError> {
        let ended = in_time(self.client.batch_execute(how)).await?;
        Ok(ended.map_err(LogError::from)?)
    }
}

impl Asker for Connection<'_> {
    type Error = FeedError;

    fn catalog(&self) -> Arc<Catalog> {
        self.parts.catalog.current()
    }

    async fn reload(&self) -> Result<Arc<Catalog>, FeedError> {
        Ok(self.parts.catalog.reload().await?)
    }

    async fn open(
        &self,
        from: &Cursor,
        catalog: &Catalog,
        bounds: Bounds,
    ) -> Result<Option<Batch>, FeedError> {
        match log::open(&self.client, &self.place, from, catalog, bounds).await {
            Err(LogError::TooMuch(_)) => Ok(None),
            batch => Ok(Some(batch?)),
        }
    }

    async fn export(&self) -> Result<String, FeedError> {
        Ok(log::export(&self.client).await?)
    }

    async fn hold<T: Send>(&self, work: impl Future<Output = T> + Send) -> Result<T, FeedError> {
        Ok(log::hold(&self.client, work).await?)
    }

    async fn answer(&self, question: &mut Question, snapshot: &str) -> Result<Answer, Unanswered> {
        self.put(question, snapshot).await.map_err(|error| {
            if error.is_final() {
                debug!(error = %Causes(&error), "a view is to be made anew");
                Unanswered::Anew
            } else {
                let mut in_vain = self.in_vain.lock().expect("no panic while held");
                in_vain.tell(&error);
                Unanswered::Failed
            }
        })
    }

    async fn commit(&self) -> Result<(), FeedError> {
        self.end("commit").await
    }

    async fn roll_back(&self) -> Result<(), FeedError> {
        self.end("rollback").await
    }
}
