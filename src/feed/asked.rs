//! Views that ask PostgreSQL: kept here, and asked again whenever something changed.
//!
//! One round: the log is read in a transaction whose snapshot is exported, and every view that is
//! concerned reads the keys that changed in that same snapshot, as its watcher and through another
//! login, which cannot read the log. So keys and rows belong to one state, and the end of each
//! round is a true one. A view that cannot be asked keeps what it has to ask for, and its token.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::StreamExt;
use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tracing::{debug, warn};

use super::{AbortOnDrop, DEFINITIONS, Feed, FeedError, Joined, NotYet, Position};
use crate::backoff::Backoff;
use crate::causes::Causes;
use crate::cursor::{Cursor, Name, Token};
use crate::event::Transaction;
use crate::log::{self, Batch, Bounds, LogError, Place};
use crate::metrics::Answer as Counted;
use crate::postgres::pool::{Lease, PINS, PoolError};
use crate::postgres::transaction::{self, Terms, TransactionError};
use crate::shutdown::Shutdown;
use crate::view::asking::{Answer, AskError, Asking, Digest, Pending, Shown};
use crate::view::{Check, Delivery, Event, Mark, View};

/// Views that ask, above which no more are taken: each costs queries with every change.
const MOST: usize = 1_000;
/// Views that are asked at the same time.
const AT_ONCE: usize = 4;
/// Longest time for one question.
const PATIENCE: Duration = Duration::from_secs(2);
/// Views whose policies read what nobody watches are compared this often.
const COMPARE: Duration = Duration::from_secs(5);
/// What a round reads at most, above which every view reads its state anew.
const ROUND: Bounds = Bounds {
    rows: 20_000,
    bytes: 16 << 20,
    batch: 32 << 20,
    total: 100_000,
};

/// The views that ask, and how far they have been told.
#[derive(Debug, Default)]
pub(super) struct Asked(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Up to here the log has been looked through; `None` while there are no views.
    at: Option<Position>,
    views: HashMap<Name, Entry>,
}

#[derive(Debug)]
struct Entry {
    view: Arc<View>,
    pending: Pending,
    /// What it shows, known once all of it had to be looked at.
    shown: Option<Shown>,
    /// When to ask again after asking in vain, and the pauses.
    retry: Option<(Instant, Backoff)>,
    /// When all of it was last compared, and where.
    compared: (Instant, Option<Arc<Cursor>>),
}

/// A view with what it is to be asked, taken out of its entry.
struct Question {
    view: Arc<View>,
    asking: Arc<Asking>,
    pending: Pending,
    shown: Option<Shown>,
}

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
            return matches!(self, Self::Ask(AskError::Anew));
        };
        error.code().is_some_and(|code| {
            *code == SqlState::INSUFFICIENT_PRIVILEGE
                || *code == SqlState::UNDEFINED_COLUMN
                || *code == SqlState::UNDEFINED_TABLE
                || *code == SqlState::INVALID_PARAMETER_VALUE
        })
    }
}

/// Why a view that asks cannot be joined now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unjoined {
    /// The feed has never reached the database.
    #[error(transparent)]
    NotYet(#[from] NotYet),
    /// There are so many already.
    #[error("{0} different views that ask the database are open, and more are not taken")]
    Crowded(usize),
}

impl Feed {
    /// Joins the view of that name which asks, registering `view` if there is none.
    ///
    /// # Errors
    /// [`Unjoined`].
    pub fn join_asking(&self, view: View) -> Result<(Arc<View>, Joined), Unjoined> {
        let live = self.lock();
        let at = live.at.as_ref().ok_or(NotYet)?;
        let mut state = self.asked.lock();
        let state = &mut *state;
        let known = state.views.get(&view.name());
        if known.is_some_and(|known| !known.view.is_defined_like(&view)) {
            self.reset_entry(state, view.name(), None);
        }
        if state.views.len() >= MOST && !state.views.contains_key(&view.name()) {
            return Err(Unjoined::Crowded(MOST));
        }
        let here = Position {
            epoch: at.epoch,
            cursor: Arc::clone(&at.cursor),
        };
        if state.at.as_ref().is_some_and(|at| at.epoch != here.epoch) {
            // No round has seen the new epoch yet, and none will find it new once this one is here.
            self.reset_asked(state, "epoch");
        }
        let told = &state.at.get_or_insert(here).cursor;
        let entry = state.views.entry(view.name()).or_insert_with(|| {
            view.set_told(Arc::clone(told));
            Entry {
                view: Arc::new(view),
                pending: Pending::default(),
                shown: None,
                retry: None,
                compared: (Instant::now(), None),
            }
        });
        let view = Arc::clone(&entry.view);
        let joined = Joined {
            place: at.place.clone(),
            epoch: at.epoch,
            cursor: Arc::clone(told),
            missed: None,
            subscriber: view.topic().subscribe(),
        };
        self.asked_anew.notify_one();
        Ok((view, joined))
    }

    /// Forgets views without subscribers.
    pub(super) fn leave_asked(&self) {
        let mut state = self.asked.lock();
        let views = &mut state.views;
        views.retain(|_, entry| entry.view.topic().subscribers() > 0);
        if views.is_empty() {
            state.at = None;
        }
    }

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
            for entry in self.asked.lock().views.values() {
                entry.view.set_failing();
            }
            tokio::time::sleep(backoff.delay()).await;
        }
    }

    async fn asking_session(
        &self,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, FeedError> {
        let mut position = self.position.subscribe();
        while self.asked.lock().views.is_empty() {
            self.asked_anew.notified().await;
        }
        let (client, connection) = self.parts.target.connect("rowcast asking").await?;
        let _stop_driver = AbortOnDrop(tokio::spawn(connection));
        let settings = format!("{PINS}; set search_path = pg_catalog, pg_temp");
        let settings = client.batch_execute(&settings).await;
        settings.map_err(LogError::from)?;
        let place = Place::of(&client).await?;
        loop {
            let here = position.borrow_and_update().clone();
            if let Some(here) = here {
                self.turn(&client, &place, here).await?;
                backoff.reset();
            }
            let wake = self.asked.lock().next_wake();
            tokio::select! {
                changed = position.changed() => if changed.is_err() { std::future::pending().await },
                () = sleep_until(wake) => {}
            }
        }
    }

    /// One round, or none where nothing that was published since concerns a view.
    async fn turn(&self, client: &Client, place: &Place, here: Position) -> Result<(), FeedError> {
        let from = {
            let mut state = self.asked.lock();
            match state.at.clone() {
                None => return Ok(()),
                Some(at) if at.epoch == here.epoch => at.cursor,
                Some(_) => {
                    // Another life of the transaction counter: nothing that was shown holds.
                    self.reset_asked(&mut state, "epoch");
                    return Ok(());
                }
            }
        };
        if self.is_quiet(&from) {
            let mut state = self.asked.lock();
            if !state.is_due() {
                state.move_to(&here);
                return Ok(());
            }
        }
        let Some((batch, snapshot)) = self.read(client, place, &from).await? else {
            let mut state = self.asked.lock();
            self.reset_asked(&mut state, "log");
            return Ok(());
        };
        let (epoch, end) = (here.epoch, Arc::new(batch.end.clone()));
        if batch.epoch != Some(epoch) {
            return Err(FeedError::EpochEnded);
        }
        let questions = self.questions(&batch, epoch, &end);
        self.put(questions, &snapshot, epoch, &end).await;
        client
            .batch_execute("commit")
            .await
            .map_err(LogError::from)?;
        Ok(())
    }

    /// Whether no transaction that the feed has published since `from` concerns any view here.
    fn is_quiet(&self, from: &Cursor) -> bool {
        let live = self.lock();
        let since = live.at.as_ref().and_then(|at| at.ring.since(from));
        let Some(since) = since else { return false };
        let state = self.asked.lock();
        since
            .iter()
            .all(|transaction| !state.is_touched(transaction))
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
                Err(LogError::TooMuch) => break,
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

    /// Goes on to the end of the batch, and takes what is to be asked. As one step: a view that is
    /// registered before gets all of the batch, and one registered after reads its state in a later
    /// snapshot than `end`.
    fn questions(&self, batch: &Batch, epoch: Name, end: &Arc<Cursor>) -> Vec<Question> {
        let mut state = self.asked.lock();
        let state = &mut *state;
        state.at = Some(Position {
            epoch,
            cursor: Arc::clone(end),
        });
        let now = Instant::now();
        let (mut questions, mut ended) = (Vec::new(), Vec::new());
        for (name, entry) in &mut state.views {
            let view = Arc::clone(&entry.view);
            let Some(asking) = view.asking().map(Arc::clone) else {
                continue;
            };
            let transactions = batch.transactions.iter().map(AsRef::as_ref);
            let pending = &mut entry.pending;
            pending.collect(view.table().oid, &asking, transactions);
            if asking.is_compared() && now.duration_since(entry.compared.0) >= COMPARE {
                pending.compare();
            }
            if pending.is_reset() {
                ended.push(*name);
            } else if pending.is_empty() {
                view.set_told(Arc::clone(end));
            } else if entry.retry.as_ref().is_none_or(|(at, _)| *at <= now) {
                if pending.is_whole() {
                    entry.compared.0 = now;
                }
                questions.push(Question {
                    asking,
                    pending: std::mem::take(pending),
                    shown: entry.shown.take(),
                    view,
                });
            }
        }
        for name in ended {
            self.reset_entry(state, name, Some(Mark::Batch(Arc::clone(end))));
        }
        questions
    }

    /// Puts the questions, and publishes each answer as soon as it is there.
    async fn put(&self, questions: Vec<Question>, snapshot: &str, epoch: Name, end: &Arc<Cursor>) {
        let asked = questions.into_iter().map(async |mut question| {
            let answer = self.answer(&mut question, snapshot).await;
            self.publish_answer(&mut question, answer, epoch, end);
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
        let terms = Terms {
            snapshot: Some(snapshot),
            ..Terms::read(view.context(), PATIENCE)
        };
        transaction::run(lease, terms, async |client| {
            let answer = view.ask(asking, pending, shown.as_mut(), client).await;
            answer.map_err(NoAnswer::from)
        })
        .await
    }

    fn publish_answer(
        &self,
        question: &mut Question,
        answer: Result<Answer, NoAnswer>,
        epoch: Name,
        end: &Arc<Cursor>,
    ) {
        let view = &question.view;
        let mut state = self.asked.lock();
        // It may have been reset, and even replaced, while it was asked.
        let Some(entry) = state.views.get_mut(&view.name()) else {
            return;
        };
        if !Arc::ptr_eq(&entry.view, view) {
            return;
        }
        let result = match &answer {
            Ok(_) => "told",
            Err(error) if error.is_final() => "anew",
            Err(_) => "failed",
        };
        let asked = &self.parts.metrics.asked;
        asked.get_or_create(&Counted { result }).inc();
        match answer {
            Ok(Answer { elements, whole }) => {
                entry.retry = None;
                if let Some(shown) = &whole {
                    // What policies read of tables that nobody watches changes between comparisons
                    // unseen; everything else is compared at once.
                    let last = if question.asking.is_compared() {
                        entry.compared.1.replace(Arc::clone(end))
                    } else {
                        view.told_until().until
                    };
                    let check = Check {
                        mark: Mark::Comparison(Arc::clone(end)),
                        since: last.filter(|_| question.shown.is_some()),
                        digest: Digest::of(shown),
                    };
                    view.topic().publish(Delivery::Check(Arc::new(check)), 0);
                }
                let compared = whole.is_some();
                entry.shown = whole.or(question.shown.take());
                if !elements.is_empty() {
                    let token = Token {
                        epoch,
                        view: view.name(),
                        cursor: (**end).clone(),
                    };
                    let at = question.pending.at().unwrap_or_else(jiff::Timestamp::now);
                    let body = view.encode(&elements);
                    let mark = if compared {
                        Mark::Comparison(Arc::clone(end))
                    } else {
                        Mark::Batch(Arc::clone(end))
                    };
                    let event = Event::new(mark, at, &token, Arc::clone(end), &body);
                    let weight = event.frame.len();
                    view.topic()
                        .publish(Delivery::Event(Arc::new(event)), weight);
                }
                // After the event: who reads this first finds every event up to it.
                view.set_told(Arc::clone(end));
            }
            Err(error) if error.is_final() => {
                debug!(error = %Causes(&error), "a view is to be made anew");
                self.reset_entry(&mut state, view.name(), None);
            }
            Err(error) => {
                warn!(error = %Causes(&error), "a view could not be asked for");
                view.set_failing();
                let pending = std::mem::take(&mut question.pending);
                entry.pending.put_back(pending);
                entry.shown = question.shown.take();
                let mut backoff = entry.retry.take().map_or_else(Backoff::new, |(_, b)| b);
                entry.retry = Some((Instant::now() + backoff.delay(), backoff));
            }
        }
    }

    fn reset_entry(&self, state: &mut State, name: Name, mark: Option<Mark>) {
        if let Some(entry) = state.views.remove(&name) {
            self.reset(entry.view.topic(), "table", mark);
        }
    }

    fn reset_asked(&self, state: &mut State, reason: &'static str) {
        for (_, entry) in state.views.drain() {
            self.reset(entry.view.topic(), reason, None);
        }
        state.at = None;
    }
}

impl Asked {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while held")
    }
}

impl State {
    fn is_touched(&self, transaction: &Transaction) -> bool {
        transaction.reset_all
            || transaction.deltas.iter().any(|delta| {
                self.views.values().any(|entry| {
                    let asking = entry.view.asking();
                    entry.view.table().oid == delta.table
                        || asking.is_some_and(|asking| asking.depends_on(delta.table))
                })
            })
    }

    /// Whether a view is to be asked though nothing was published.
    fn is_due(&self) -> bool {
        self.next_wake().is_some_and(|wake| wake <= Instant::now())
    }

    fn next_wake(&self) -> Option<Instant> {
        let wakes = self.views.values().flat_map(|entry| {
            let compared = entry
                .view
                .asking()
                .is_some_and(|asking| asking.is_compared());
            let compare = compared.then(|| entry.compared.0 + COMPARE);
            let retry = entry.retry.as_ref().map(|(at, _)| *at);
            [compare, retry].into_iter().flatten()
        });
        wakes.min()
    }

    /// Nothing that concerns any view happened up to here.
    fn move_to(&mut self, here: &Position) {
        if self
            .at
            .as_ref()
            .is_none_or(|at| !here.cursor.covers(&at.cursor))
        {
            return;
        }
        for entry in self.views.values() {
            if entry.pending.is_empty() {
                entry.view.set_told(Arc::clone(&here.cursor));
            }
        }
        self.at = Some(here.clone());
    }
}

async fn rollback(client: &Client) -> Result<(), LogError> {
    Ok(client.batch_execute("rollback").await?)
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}
