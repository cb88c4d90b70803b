//! Asks PostgreSQL for the views that ask, whenever something changed.
//!
//! One round: the log is read in a transaction whose snapshot is exported, and every view that is
//! concerned reads the keys that changed in that same snapshot, as its watcher and through another
//! login, which cannot read the log. So keys and rows belong to one state, and the end of each
//! round is a true one. What is to be asked, and what an answer means, [`super::asked`] knows.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tracing::{debug, warn};

use super::asked::{Question, Unanswered};
use super::reading::DEFINITIONS;
use super::{AbortOnDrop, EpochEnded, Feed, FeedError, Position};
use crate::backoff::Backoff;
use crate::causes::Causes;
use crate::cursor::{Cursor, Name};
use crate::log::{self, Batch, Bounds, LogError, Place, in_time};
use crate::postgres::pool::{Lease, PINS, PoolError};
use crate::postgres::transaction::{self, Terms, TransactionError};
use crate::shutdown::Shutdown;
use crate::view::asking::{Answer, AskError};

/// Views that are asked at the same time.
const AT_ONCE: usize = 4;
/// Longest time for one question.
const PATIENCE: Duration = Duration::from_secs(2);
/// What a round reads at most, above which every view reads its state anew.
const ROUND: Bounds = Bounds {
    rows: 20_000,
    bytes: 16 << 20,
    batch: 32 << 20,
    total: 100_000,
};

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
    /// Asking the same again is of no use: permissions or definitions have changed.
    fn is_final(&self) -> bool {
        let (Self::Transaction(TransactionError::Failed(error))
        | Self::Ask(AskError::Query(error))) = self
        else {
            return matches!(
                self,
                Self::Ask(AskError::Anew) | Self::Transaction(TransactionError::Moved)
            );
        };
        error.code().is_some_and(|code| {
            *code == SqlState::INSUFFICIENT_PRIVILEGE
                || *code == SqlState::UNDEFINED_COLUMN
                || *code == SqlState::UNDEFINED_TABLE
                || *code == SqlState::INVALID_PARAMETER_VALUE
        })
    }
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

    async fn asking_session(
        &self,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, FeedError> {
        let mut position = self.stage.watch_position();
        while !self.stage.asks() {
            self.stage.asked_anew.notified().await;
        }
        let (client, connection) = self.parts.target.connect("rowcast asking").await?;
        let _stop_driver = AbortOnDrop(tokio::spawn(connection));
        let settings = format!("{PINS}; set search_path = pg_catalog, pg_temp");
        let settings = in_time(client.batch_execute(&settings)).await?;
        settings.map_err(LogError::from)?;
        let place = Place::of(&client).await?;
        loop {
            let here = position.borrow_and_update().clone();
            if let Some(here) = here {
                self.turn(&client, &place, here).await?;
                backoff.reset();
            }
            let wake = self.stage.next_wake();
            tokio::select! {
                changed = position.changed() => if changed.is_err() { std::future::pending().await },
                () = sleep_until(wake) => {}
            }
        }
    }

    /// One round, or none where nothing that was published since concerns a view.
    async fn turn(&self, client: &Client, place: &Place, here: Position) -> Result<(), FeedError> {
        let Some(from) = self.stage.round(&here) else {
            return Ok(());
        };
        let Some((batch, snapshot)) = self.read(client, place, &from).await? else {
            self.stage.skip_round();
            return Ok(());
        };
        let (epoch, end) = (here.epoch, Arc::new(batch.end.clone()));
        if batch.epoch != Some(epoch) {
            return Err(EpochEnded.into());
        }
        let questions = self.stage.questions(&batch, epoch, &end);
        log::hold(client, self.put(questions, &snapshot, epoch, &end)).await?;
        in_time(client.batch_execute("commit"))
            .await?
            .map_err(LogError::from)?;
        Ok(())
    }

    /// The log since `from`, in a transaction that stays open; `None` when it is too much, or not all
    /// there any more.
    async fn read(
        &self,
        client: &Client,
        place: &Place,
        from: &Cursor,
    ) -> Result<Option<(Batch, String)>, FeedError> {
        let mut catalog = self.parts.catalog.current();
        let mut known = Cursor::default();
        for _ in 0..DEFINITIONS {
            let batch = match log::open(client, place, from, &catalog, ROUND).await {
                Err(LogError::TooMuch(_)) => break,
                batch => batch?,
            };
            if batch.is_trimmed_after(from) {
                break;
            }
            if !batch.changed_definitions_after(&known) {
                return Ok(Some((batch, log::export(client).await?)));
            }
            rollback(client).await?;
            known = batch.end;
            catalog = self.parts.catalog.reload().await?;
        }
        // Outside of a transaction, after the last reading, it does nothing.
        rollback(client).await?;
        Ok(None)
    }

    /// Puts the questions, and publishes each answer as soon as it is there.
    async fn put(&self, questions: Vec<Question>, snapshot: &str, epoch: Name, end: &Arc<Cursor>) {
        let asked = questions.into_iter().map(async |mut question| {
            let answer = self.answer(&mut question, snapshot).await;
            let answer = answer.map_err(|error| {
                if error.is_final() {
                    debug!(error = %Causes(&error), "a view is to be made anew");
                    Unanswered::Anew
                } else {
                    warn!(error = %Causes(&error), "a view could not be asked for");
                    Unanswered::Failed
                }
            });
            self.stage.publish_answer(question, answer, epoch, end);
        });
        let asked = futures::stream::iter(asked).buffer_unordered(AT_ONCE);
        asked.collect::<()>().await;
    }

    async fn answer(&self, question: &mut Question, snapshot: &str) -> Result<Answer, NoAnswer> {
        let Question {
            view,
            asking,
            pending,
            shown,
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
}

async fn rollback(client: &Client) -> Result<(), LogError> {
    Ok(in_time(client.batch_execute("rollback")).await??)
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}
