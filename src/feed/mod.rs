//! The one reader of the log: hears the bell, reads, routes to views and channels, publishes.
//!
//! It promises that each committed transaction is published once to every view that was registered
//! before its batch, in an order of dependency, and that [`Feed::join_view`] and
//! [`Feed::join_channel`] see either none or all of a batch: what they return and what they will
//! deliver have neither gap nor overlap. It knows nothing of connections or HTTP.

mod asked;
mod ring;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_postgres::Client;
use tracing::{debug, info, warn};

use crate::backoff::Backoff;
use crate::causes::Causes;
use crate::cursor::{Cursor, Name, Steps, Token, Xid};
use crate::event::Transaction;
use crate::health::Health;
use crate::hub::{Subscriber, Topic};
use crate::log::{self, Batch, Bounds, LogError, Place};
use crate::metrics::{Metrics, Reason};
use crate::postgres::connect::{ConnectError, Target};
use crate::postgres::pool::{PINS, Pool};
use crate::schema::catalog::{CatalogError, Handle};
use crate::shutdown::Shutdown;
use crate::view::{Channel, Delivery, Event, Mark, Sight, View};
use asked::Asked;
pub use asked::Unjoined;
use ring::Ring;

/// A relay looks at the log this often even if no bell rings.
const SAFETY_POLL: Duration = Duration::from_secs(1);
/// Log rows that a starting relay reads for those who were connected to its predecessor.
const FIRST_READ: u64 = 200_000;
/// Definitions that change while the catalogue is read make it be read again, so many times.
const DEFINITIONS: usize = 8;
/// And this often when there is no bell.
const NO_BELL_POLL: Duration = Duration::from_millis(50);

/// What the feed needs of the rest.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Where the log is.
    pub target: Target,
    /// Connections of the login that may become the watchers' roles.
    pub asking: Pool,
    /// What the tables look like.
    pub catalog: Arc<Handle>,
    /// Rung when something was committed.
    pub bell: Arc<Notify>,
    /// Whether writers ring.
    pub rings: bool,
    /// Told how far it is.
    pub health: Arc<Health>,
    /// Told what it does.
    pub metrics: Arc<Metrics>,
}

/// The feed; shared by everybody who subscribes.
#[derive(Debug)]
pub struct Feed {
    parts: Parts,
    /// Held while a batch is published, so that whoever joins sees all of it or none. Publishing is
    /// pure computation: the lock is never held across an await.
    live: Mutex<Live>,
    asked: Asked,
    /// A view that asks was registered.
    asked_anew: Notify,
    position: watch::Sender<Option<Position>>,
    wanted: watch::Sender<Vec<String>>,
}

/// How far the feed is: everything up to here has been published.
#[derive(Debug, Clone)]
pub struct Position {
    /// The life of the transaction counter.
    pub epoch: Name,
    /// The end of the last batch.
    pub cursor: Arc<Cursor>,
}

#[derive(Debug)]
struct Live {
    at: Option<At>,
    views: HashMap<Name, Arc<View>>,
    channels: HashMap<String, Arc<Channel>>,
}

#[derive(Debug)]
struct At {
    place: Place,
    epoch: Name,
    cursor: Arc<Cursor>,
    ring: Ring,
}

/// Somebody's way in: what was, and what comes.
#[derive(Debug)]
pub struct Joined {
    /// Where the log is.
    pub place: Place,
    /// In which life of the transaction counter.
    pub epoch: Name,
    /// Everything up to here was published before; what comes after will be delivered.
    pub cursor: Arc<Cursor>,
    /// What was published up to `cursor` and is not in the cursor that was asked for. `None` when
    /// memory does not reach back so far, or the cursor is ahead of this relay: read the log.
    pub missed: Option<Vec<Arc<Transaction>>>,
    /// What comes.
    pub subscriber: Subscriber<Delivery>,
}

/// The feed has never reached the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the log has not been read yet")]
pub struct NotYet;

#[derive(Debug, thiserror::Error)]
enum FeedError {
    #[error("the database cannot be reached")]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("the database is a standby: it has no notifications and no epoch")]
    Standby,
    #[error("the database was restarted after a crash, or restored")]
    EpochEnded,
    #[error("asking for the state of recovery failed")]
    Recovery(#[source] tokio_postgres::Error),
}

impl Feed {
    /// A feed that has not begun.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            live: Mutex::new(Live {
                at: None,
                views: HashMap::new(),
                channels: HashMap::new(),
            }),
            asked: Asked::default(),
            asked_anew: Notify::new(),
            position: watch::Sender::new(None),
            wanted: watch::Sender::new(Vec::new()),
        }
    }

    /// How far it is.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.position.borrow().clone()
    }

    /// Channels that somebody subscribes to, for the doorbell to listen on.
    #[must_use]
    pub fn wanted(&self) -> watch::Receiver<Vec<String>> {
        self.wanted.subscribe()
    }

    /// Joins the view of that name, registering `view` if there is none, and looks up what somebody
    /// at `from` has missed.
    ///
    /// # Errors
    /// [`NotYet`].
    pub fn join_view(
        &self,
        view: View,
        from: Option<&Cursor>,
    ) -> Result<(Arc<View>, Joined), NotYet> {
        let mut live = self.lock();
        let live = &mut *live;
        let at = live.at.as_ref().ok_or(NotYet)?;
        if live
            .views
            .get(&view.name())
            .is_some_and(|known| known.table() != view.table())
        {
            // The table changed, and one of the two was made before: who shows the old one asks again.
            if let Some(old) = live.views.remove(&view.name()) {
                self.reset(old.topic(), "table", None);
            }
        }
        let view = live
            .views
            .entry(view.name())
            .or_insert_with(|| Arc::new(view));
        Ok((Arc::clone(view), at.join(view.topic().subscribe(), from)))
    }

    /// Joins a channel.
    ///
    /// # Errors
    /// [`NotYet`].
    pub fn join_channel(
        &self,
        channel: &str,
        from: Option<&Cursor>,
    ) -> Result<(Arc<Channel>, Joined), NotYet> {
        let mut live = self.lock();
        let live = &mut *live;
        let at = live.at.as_ref().ok_or(NotYet)?;
        let joined = live
            .channels
            .entry(channel.to_owned())
            .or_insert_with(|| Arc::new(Channel::new(channel)));
        let joined = (Arc::clone(joined), at.join(joined.topic.subscribe(), from));
        self.tell_wanted(live);
        Ok(joined)
    }

    /// Forgets views and channels without subscribers. Called by who leaves, after it has left.
    pub fn leave(&self) {
        let mut live = self.lock();
        live.views.retain(|_, view| view.topic().subscribers() > 0);
        live.channels
            .retain(|_, channel| channel.topic.subscribers() > 0);
        self.tell_wanted(&live);
        drop(live);
        self.leave_asked();
    }

    /// Delivers a bare NOTIFY to those who are there.
    pub fn notify(&self, channel: &str, payload: &str) {
        if let Some(channel) = self.lock().channels.get(channel) {
            let mut array = crate::sse::Array::new(&channel.channel);
            array.push(&crate::event::Element::Notify {
                payload: payload.to_owned(),
            });
            let body = array.finish();
            let weight = body.len();
            channel.topic.publish(Delivery::Notify(body), weight);
        }
    }

    fn tell_wanted(&self, live: &Live) {
        let mut wanted: Vec<String> = live.channels.keys().cloned().collect();
        wanted.sort_unstable();
        self.wanted.send_if_modified(|known| {
            let changed = *known != wanted;
            *known = wanted;
            changed
        });
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        self.live.lock().expect("publishing does not panic")
    }

    /// Reads the log until the stop signal. Losses of the database are reported and survived.
    pub async fn run(&self, shutdown: Shutdown) {
        let mut backoff = Backoff::new();
        loop {
            let ended = tokio::select! {
                () = async { shutdown.begun().await; } => return,
                ended = self.session(&mut backoff) => ended,
            };
            self.parts.health.lost();
            let Err(error) = ended;
            if backoff.is_fresh() {
                warn!(error = %Causes(&error), "the log is lost");
            } else {
                debug!(error = %Causes(&error), "the log is still lost");
            }
            tokio::time::sleep(backoff.delay()).await;
        }
    }

    /// One connection's life. Returns only with the reason of its end.
    async fn session(&self, backoff: &mut Backoff) -> Result<std::convert::Infallible, FeedError> {
        let (client, connection) = self.parts.target.connect("rowcast feed").await?;
        let driver = tokio::spawn(connection);
        let _stop_driver = AbortOnDrop(driver);
        // Rows that are read again must look like images, and no function of a table's owner may be
        // taken for one of PostgreSQL's.
        let settings = format!("{PINS}; set search_path = pg_catalog, pg_temp");
        client
            .batch_execute(&settings)
            .await
            .map_err(LogError::from)?;
        let recovery = client
            .query_one("select pg_is_in_recovery()", &[])
            .await
            .map_err(FeedError::Recovery)?;
        if recovery.get(0) {
            return Err(FeedError::Standby);
        }
        let place = Place::of(&client).await?;
        let start = log::start(&client).await?;
        self.parts.catalog.reload().await?;
        self.parts.health.set_catalog();
        let mut gap = Gap::default();
        let mut first = Some(start);
        loop {
            let from = match &self.lock().at {
                Some(at) => Arc::clone(&at.cursor),
                None => Arc::new(first.clone().unwrap_or_default()),
            };
            let beginning = self.lock().at.is_none();
            let bounds = Bounds {
                // Before anybody is here, history is a courtesy to those who come back.
                total: if beginning { FIRST_READ } else { u64::MAX },
                ..Bounds::default()
            };
            let batch = match self.poll(&client, &place, &from, bounds).await {
                Err(FeedError::Log(LogError::TooMuch)) if beginning => {
                    // Left open by the read that was given up.
                    client
                        .batch_execute("rollback")
                        .await
                        .map_err(LogError::from)?;
                    first = Some(log::present(&client).await?);
                    continue;
                }
                batch => batch?,
            };
            let epoch = batch.epoch.ok_or(FeedError::EpochEnded)?;
            if let Some(start) = first.take() {
                self.begin(&place, epoch, start, &from);
                info!(%epoch, "reading the log");
            }
            let known = self.lock().at.as_ref().map(|at| at.epoch);
            if known != Some(epoch) {
                return Err(FeedError::EpochEnded);
            }
            // A batch read from another cursor than the one we are at belongs to the epoch before.
            if self.lock().at.as_ref().is_some_and(|at| at.cursor != from) {
                continue;
            }
            if batch.is_trimmed_after(&from) {
                warn!("the log was trimmed before it was read; every screen reads its state anew");
                self.skip(&batch);
                continue;
            }
            let busy = !batch.transactions.is_empty();
            let settled = gap.look(&client, &batch).await?;
            self.publish(&batch, &from);
            backoff.reset();
            if settled {
                self.parts.health.polled();
            } else {
                self.parts.health.lost();
            }
            if !busy {
                let pause = if self.parts.rings {
                    SAFETY_POLL
                } else {
                    NO_BELL_POLL
                };
                let _either = tokio::time::timeout(pause, self.parts.bell.notified()).await;
            }
        }
    }

    /// Reads what came after `from`. Entries of tables that the catalogue does not have, and
    /// resets, make it read the catalogue first.
    async fn poll(
        &self,
        client: &Client,
        place: &Place,
        from: &Cursor,
        bounds: Bounds,
    ) -> Result<Batch, FeedError> {
        let metrics = &self.parts.metrics;
        metrics.polls.inc();
        let catalog = self.parts.catalog.current();
        let mut batch = log::read(client, place, from, &catalog, bounds).await?;
        let mut known = Cursor::default();
        for _ in 1..DEFINITIONS {
            if !batch.changed_definitions_after(&known) {
                break;
            }
            known = batch.end;
            let catalog = self.parts.catalog.reload().await?;
            batch = log::read(client, place, from, &catalog, bounds).await?;
        }
        metrics.log_rows.inc_by(batch.rows);
        Ok(batch)
    }

    /// The first batch of a connection: same epoch, go on; another, everybody starts over.
    fn begin(&self, place: &Place, epoch: Name, start: Cursor, from: &Cursor) {
        let mut live = self.lock();
        if live.at.as_ref().is_some_and(|at| at.epoch == epoch) {
            return;
        }
        // Before the first epoch `from` is `start` already, and its batch is good.
        let cursor = Arc::new(if live.at.is_none() {
            from.clone()
        } else {
            start
        });
        live.at = Some(At {
            place: place.clone(),
            epoch,
            ring: Ring::new(Arc::clone(&cursor)),
            cursor,
        });
        self.reset_all(&mut live, "epoch", None);
    }

    /// Moves on to the end of a batch that does not hold everything. Everybody starts over.
    fn skip(&self, batch: &Batch) {
        let mut live = self.lock();
        let end = Arc::new(batch.end.clone());
        let Some(at) = &mut live.at else { return };
        let epoch = at.epoch;
        at.ring = Ring::new(Arc::clone(&end));
        at.cursor = Arc::clone(&end);
        self.reset_all(&mut live, "log", None);
        self.position
            .send_replace(Some(Position { epoch, cursor: end }));
    }

    fn reset_all(&self, live: &mut Live, reason: &'static str, mark: Option<&Mark>) {
        for (_, view) in live.views.drain() {
            self.reset(view.topic(), reason, mark.cloned());
        }
        for (_, channel) in live.channels.drain() {
            self.reset(&channel.topic, reason, mark.cloned());
        }
    }

    fn reset(&self, topic: &Topic<Delivery>, reason: &'static str, mark: Option<Mark>) {
        self.parts
            .metrics
            .resets
            .get_or_create(&Reason { reason })
            .inc();
        topic.publish(Delivery::Reset(mark), 0);
    }

    /// Publishes a batch and moves on to its end, as one step for whoever joins.
    fn publish(&self, batch: &Batch, from: &Cursor) {
        let mut live = self.lock();
        let live = &mut *live;
        let Some(epoch) = live.at.as_ref().map(|at| at.epoch) else {
            return;
        };
        let xids = batch.transactions.iter().map(|transaction| transaction.xid);
        let mut steps = Steps::new(from, &batch.end, xids);
        for transaction in &batch.transactions {
            let cursor = Arc::new(steps.deliver(transaction.xid));
            self.route(live, epoch, transaction, &cursor);
            if let Some(at) = &mut live.at {
                at.ring.push(Arc::clone(transaction), cursor);
            }
        }
        let end = Arc::new(batch.end.clone());
        if let Some(at) = &mut live.at {
            at.cursor = Arc::clone(&end);
        }
        // After the events: who reads this position first finds every event up to it.
        self.position
            .send_replace(Some(Position { epoch, cursor: end }));
    }

    fn route(&self, live: &mut Live, epoch: Name, transaction: &Transaction, cursor: &Arc<Cursor>) {
        let mark = Mark::Transaction(transaction.xid);
        if transaction.reset_all {
            self.reset_all(live, "log", Some(&mark));
            return;
        }
        let token = |view| Token {
            epoch,
            view,
            cursor: (**cursor).clone(),
        };
        let publish = |topic: &Topic<Delivery>, name, body| {
            let cursor = Arc::clone(cursor);
            let event = Event::new(mark.clone(), transaction.at, &token(name), cursor, &body);
            let weight = event.frame.len();
            topic.publish(Delivery::Event(Arc::new(event)), weight);
        };
        for delta in &transaction.deltas {
            live.views.retain(|name, view| {
                if view.table().oid != delta.table {
                    return true;
                }
                let Sight::Images(images) = view.sight() else {
                    return true;
                };
                match images.elements(transaction.xid, delta) {
                    Ok(elements) if elements.is_empty() => true,
                    Ok(elements) => {
                        publish(view.topic(), *name, view.encode(&elements));
                        true
                    }
                    Err(_undecided) => {
                        self.reset(view.topic(), "table", Some(mark.clone()));
                        false
                    }
                }
            });
        }
        let mut told: Vec<&str> = Vec::new();
        for message in &transaction.messages {
            if told.contains(&message.channel.as_str()) {
                continue;
            }
            told.push(&message.channel);
            if let Some(channel) = live.channels.get(&message.channel)
                && let Some(body) = channel.encode(&[transaction])
            {
                publish(&channel.topic, channel.name, body);
            }
        }
    }
}

impl At {
    fn join(&self, subscriber: Subscriber<Delivery>, from: Option<&Cursor>) -> Joined {
        let within = from.filter(|from| self.cursor.covers(from));
        Joined {
            place: self.place.clone(),
            epoch: self.epoch,
            cursor: Arc::clone(&self.cursor),
            missed: within.and_then(|from| self.ring.since(from)),
            subscriber,
        }
    }
}

/// Changes that could not even be logged by key. The sequence moves before its writer commits, so
/// the reset is written only when no transaction is open any more that may have moved it.
#[derive(Debug, Default)]
struct Gap {
    told: Option<i64>,
    waiting: Option<(i64, Xid)>,
}

impl Gap {
    /// Whether nothing is missing as of this batch.
    async fn look(&mut self, client: &Client, batch: &Batch) -> Result<bool, LogError> {
        let told = self.told.get_or_insert(batch.gap_told);
        if let Some((value, barrier)) = self.waiting {
            if batch.end.xmin() < barrier {
                return Ok(false);
            }
            log::settle_gap(client, value).await?;
            warn!("changes could not be captured; every screen reads its state anew");
            *told = value;
            self.waiting = None;
        }
        if batch.gap > *told {
            self.waiting = Some((batch.gap, log::barrier(client).await?));
            return Ok(false);
        }
        Ok(true)
    }
}

/// Stops a task when the one that needs it is gone.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
