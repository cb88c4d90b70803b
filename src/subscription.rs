//! One screen's stream: history, then live.
//!
//! A [`Subscription`] is pulled by the connection when its socket is ready, and keeps no more than
//! one answer's worth of frames. It promises that what it hands out is a snapshot or the net effect
//! of everything missed, then every later event once, each under a token from which any relay can
//! go on. It knows events and tokens, not HTTP.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_postgres::Client;
use tracing::debug;

use crate::backoff::Backoff;
use crate::cursor::{Cursor, Name, START, Token};
use crate::event::{Element, Transaction};
use crate::feed::{Feed, Joined, NotYet, Unjoined};
use crate::health::Health;
use crate::hub::{Lagged, Subscriber};
use crate::log::{self, Batch, Bounds};
use crate::metrics::{Answer, Metrics, Reason};
use crate::postgres::pool::{Lease, Pool};
use crate::postgres::transaction::{self, Terms};
use crate::schema::catalog::Handle;
use crate::shutdown::{Guard, Shutdown};
use crate::sse;
use crate::view::asking::{Asking, Digest, Pending};
use crate::view::image::Images;
use crate::view::snapshot::{self, SnapshotError};
use crate::view::{Channel, Delivery, Sight, Told, View};

/// A screen that hears nothing for 12 s calls itself stale, so two of these may get lost.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Reconnection time told at the start, in milliseconds.
const RETRY: u64 = 1000;
/// A screen that missed more than this reads its state anew.
const CATCH_UP_BYTES: usize = 4 << 20;
/// How long a stream that lost its view tries to get it back. Less than the 12 s of silence after
/// which a screen calls itself stale.
const PATIENCE: Duration = Duration::from_secs(8);
/// A view that is made while definitions change is made again, so many times.
const DEFINITIONS: usize = 4;
/// What is read from the log for one screen at most.
const CATCH_UP: Bounds = Bounds {
    rows: 20_000,
    bytes: CATCH_UP_BYTES,
    batch: 16 << 20,
    total: 50_000,
};
/// Items taken from a topic at a time.
const TAKE: usize = 8;
/// Bytes taken out of a topic ahead of the socket.
const MOUTHFUL: usize = 256 << 10;
/// The member of a control that says that the relay stops.
const CLOSING: &str = r#","closing":true"#;

/// Makes the view of a stream from its request, also when the table has changed meanwhile.
pub type Opener = Arc<dyn Fn() -> BoxFuture<'static, Result<View, Unavailable>> + Send + Sync>;

/// When a stream ends, unless that moves on.
pub type End = watch::Receiver<SystemTime>;

/// Why a stream cannot show anything now, though it may later.
#[derive(Debug, Clone)]
pub struct Unavailable {
    /// The body of an error in `PostgREST`'s shape, as JSON.
    pub body: String,
    /// It may be over in a moment: worth trying again within the same stream.
    pub passing: bool,
}

/// What a subscription needs of the rest.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Where events come from.
    pub feed: Arc<Feed>,
    /// Connections of the login that reads the log.
    pub log: Pool,
    /// Connections of the login that may become the watchers' roles, for reading states.
    pub states: Pool,
    /// What the tables look like.
    pub catalog: Arc<Handle>,
    /// Whether the feed has the log in hand.
    pub health: Arc<Health>,
    /// Told what is handed out.
    pub metrics: Arc<Metrics>,
    /// Ends every stream.
    pub shutdown: Shutdown,
    /// How snapshots are read.
    pub snapshots: snapshot::Limits,
    /// Formats an error of the relay's own for the `error` member of a control.
    pub explain: fn(&Trouble) -> Unavailable,
}

/// What can be wrong with a stream that was well asked for.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The feed has never reached the database.
    #[error(transparent)]
    NotYet(#[from] NotYet),
    /// Whoever opened it may not see it any more.
    #[error("the token has expired")]
    Expired,
    /// Too many views that ask the database.
    #[error("{0} different views that ask the database are open")]
    Crowded(usize),
    /// The state could not be read.
    #[error(transparent)]
    Snapshot(#[from] Arc<SnapshotError>),
}

impl From<Unjoined> for Trouble {
    fn from(error: Unjoined) -> Self {
        match error {
            Unjoined::NotYet(error) => Self::NotYet(error),
            Unjoined::Crowded(most) => Self::Crowded(most),
        }
    }
}

/// What is streamed.
pub enum Source {
    /// Rows of a view, which this makes.
    View(Opener),
    /// Messages of a channel.
    Channel(String),
}

/// A stream of frames for one connection.
pub struct Subscription {
    parts: Parts,
    source: Source,
    queue: VecDeque<Bytes>,
    phase: Phase,
    fresh: watch::Receiver<bool>,
    heartbeat: Interval,
    columns: Option<String>,
    /// When whoever opened it may not see it any more, unless that moves on.
    end: Option<End>,
    present: Present,
}

enum Phase {
    /// Nothing is shown yet. The token that the client brought, and the view if it was made already.
    Opening(Option<String>, Option<Box<View>>),
    Live(Live),
    Ended,
}

struct Live {
    shown: Shown,
    epoch: Name,
    subscriber: Subscriber<Delivery>,
    /// What the connection was given so far.
    sent: Arc<Cursor>,
    /// Where the state was read that everything since was added to, and the digest of that state if
    /// it is a view's that asks.
    read: (Arc<Cursor>, Option<Digest>),
    /// `sent` is the feed's own cursor after some transaction, so its frames can be shared.
    in_step: bool,
}

enum Shown {
    View(Arc<View>),
    Channel(Arc<Channel>),
}

impl Shown {
    /// How far what it shows is, if that is not how far the feed is.
    fn told(&self) -> Option<Told> {
        match self {
            Self::View(view) if view.asking().is_some() => Some(view.told_until()),
            _ => None,
        }
    }

    fn name(&self) -> Name {
        match self {
            Self::View(view) => view.name(),
            Self::Channel(channel) => channel.name,
        }
    }
}

/// Counts the stream while it is there, and tidies up behind it.
struct Present {
    metrics: Arc<Metrics>,
    feed: Arc<Feed>,
    _guard: Guard,
}

impl Drop for Present {
    fn drop(&mut self) {
        self.metrics.subscribers.dec();
        self.feed.leave();
    }
}

impl Subscription {
    /// A stream of `source` for a client that brought `token`. `view` is the first thing the opener
    /// would make, where the caller has made it already.
    #[must_use]
    pub fn new(parts: Parts, source: Source, token: Option<String>, view: Option<View>) -> Self {
        parts.metrics.subscribers.inc();
        parts.metrics.subscriptions.inc();
        let mut heartbeat = tokio::time::interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let present = Present {
            metrics: Arc::clone(&parts.metrics),
            feed: Arc::clone(&parts.feed),
            _guard: parts.shutdown.guard(),
        };
        let mut fresh = parts.health.watch_fresh();
        fresh.mark_unchanged();
        Self {
            queue: VecDeque::from([Bytes::from_static(sse::COMMENT.as_bytes())]),
            phase: Phase::Opening(token, view.map(Box::new)),
            fresh,
            heartbeat,
            columns: None,
            end: None,
            present,
            parts,
            source,
        }
    }

    /// The same, which says so and ends at a time that may move on.
    #[must_use]
    pub fn until(self, end: Option<End>) -> Self {
        Self { end, ..self }
    }

    /// A stream that only says why it cannot be, and ends. `token` stays the client's.
    #[must_use]
    pub fn unavailable(token: Option<&str>, why: &Unavailable) -> Bytes {
        let mut frame = sse::COMMENT.to_owned();
        let id = token.filter(|token| is_id(token)).unwrap_or(START);
        let retry = fastrand::u64(2000..5000);
        let body = sse::control(
            Some(retry),
            id,
            &format!(r#"{{"upToDate":false,"error":{}}}"#, why.body),
        );
        frame.push_str(&String::from_utf8_lossy(&body));
        frame.into()
    }

    /// The next bytes to write; `None` at the end. Cancel safe only as far as a body needs it: a
    /// call that was dropped is not followed by another.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.queue.pop_front() {
                self.parts.metrics.events.inc();
                self.parts.metrics.event_bytes.inc_by(frame.len() as u64);
                return Some(frame);
            }
            match std::mem::replace(&mut self.phase, Phase::Ended) {
                Phase::Opening(token, view) => {
                    let shutdown = self.parts.shutdown.clone();
                    tokio::select! {
                        biased;
                        opened = self.open(token.as_deref(), view.map(|view| *view), Some(RETRY)) => match opened {
                            Ok(live) => self.phase = Phase::Live(live),
                            Err(why) => {
                                let frame = Self::unavailable(token.as_deref(), &why);
                                self.queue.push_back(frame.slice(sse::COMMENT.len()..));
                            }
                        },
                        _grace = shutdown.begun() => {}
                    }
                }
                Phase::Live(live) => self.live(live).await,
                Phase::Ended => return None,
            }
        }
    }

    /// Waits for one thing to happen and queues what there is to say of it.
    async fn live(&mut self, mut live: Live) {
        let shutdown = self.parts.shutdown.clone();
        tokio::select! {
            biased;
            grace = shutdown.begun() => return self.close(live, grace).await,
            () = expired(self.end.as_mut()) => return self.expire(&live),
            () = live.subscriber.changed() => {
                if let Some((live, _)) = self.deliver(live).await {
                    self.phase = Phase::Live(live);
                }
                return;
            }
            changed = self.fresh.changed() => if changed.is_err() { return },
            _tick = self.heartbeat.tick() => {}
        }
        // The position first, then everything that came before it was set: a control never
        // overtakes an event.
        let told = match live.shown.told() {
            // Its epoch is its topic's: another one ends it.
            Some(told) => told.until,
            None => self
                .parts
                .feed
                .position()
                .filter(|position| position.epoch == live.epoch)
                .map(|position| position.cursor),
        };
        let Some((mut live, everything)) = self.deliver(live).await else {
            return;
        };
        if let Some(told) = told.filter(|_| everything) {
            live.sent = merge(&live.sent, &told);
        }
        self.queue.push_back(self.control(&live, None, ""));
        self.phase = Phase::Live(live);
    }

    /// Queues what waits, and says whether that was everything: no more than a mouthful is taken out
    /// of the shared buffer, so that a slow screen costs a position and not memory. `None` when the
    /// stream is over.
    async fn deliver(&mut self, mut live: Live) -> Option<(Live, bool)> {
        loop {
            if self.queue.iter().map(Bytes::len).sum::<usize>() > MOUTHFUL {
                return Some((live, false));
            }
            let items = match live.subscriber.take(TAKE) {
                Ok(items) if items.is_empty() => return Some((live, true)),
                Ok(items) => items,
                Err(Lagged) => {
                    self.count_drop("lagged");
                    let token = token(&live).to_string();
                    return Some((self.reopen(live, token).await?, false));
                }
            };
            for item in items {
                match item {
                    Delivery::Event(event) => {
                        if event.mark.is_in(&live.sent) {
                            continue;
                        }
                        self.observe(event.at);
                        // Then the token of the event is this connection's own as well.
                        if live.in_step || event.cursor.covers(&live.sent) {
                            live.in_step = true;
                            live.sent = Arc::clone(&event.cursor);
                            self.queue.push_back(event.frame.clone());
                        } else {
                            live.sent = merge(&live.sent, &event.cursor);
                            let head = sse::head(None, "data", &token(&live).to_string());
                            self.queue.push_back(head.into());
                            self.queue.push_back(event.frame.slice(event.body..));
                        }
                    }
                    Delivery::Check(check) => {
                        let (read, digest) = &live.read;
                        if check.mark.is_in(&live.sent) || check.holds_for(read, *digest) {
                            continue;
                        }
                        debug!("the state was read between two comparisons, and is read again");
                        return Some((self.reopen(live, START.to_owned()).await?, false));
                    }
                    // Without a place in the log of its own, it leaves the client where it is.
                    Delivery::Notify(body) => {
                        let head = sse::head(None, "data", &token(&live).to_string());
                        self.queue.push_back(head.into());
                        self.queue.push_back(body);
                    }
                    Delivery::Reset(mark) => {
                        // A state that was read after it holds what it was about already.
                        let known = mark.as_ref().is_some_and(|mark| mark.is_in(&live.sent));
                        let from = if known {
                            token(&live).to_string()
                        } else {
                            START.to_owned()
                        };
                        debug!(?mark, known, "stream begins again");
                        return Some((self.reopen(live, from).await?, false));
                    }
                }
            }
        }
    }

    /// Begins again within the same stream, from `token`. A database that is just coming back gets
    /// a few seconds before the stream gives up.
    async fn reopen(&mut self, live: Live, token: String) -> Option<Live> {
        drop(live);
        let begun = Instant::now();
        let mut backoff = Backoff::new();
        let shutdown = self.parts.shutdown.clone();
        loop {
            let opened = tokio::select! {
                biased;
                _grace = shutdown.begun() => break,
                opened = self.open(Some(&token), None, None) => opened,
            };
            match opened {
                Ok(live) => return Some(live),
                Err(why) if why.passing && begun.elapsed() < PATIENCE => {
                    tokio::select! {
                        () = tokio::time::sleep(backoff.delay()) => {}
                        _grace = shutdown.begun() => break,
                    }
                }
                Err(why) => {
                    self.count_drop("unavailable");
                    let frame = Self::unavailable(Some(&token), &why);
                    self.queue.push_back(frame.slice(sse::COMMENT.len()..));
                    return None;
                }
            }
        }
        self.count_drop("shutdown");
        let closing = self.control_at(&token, Some(self.retry_later()), CLOSING);
        self.queue.push_back(closing);
        None
    }

    /// Joins, and queues what the client needs to be where the feed is.
    async fn open(
        &mut self,
        token: Option<&str>,
        view: Option<View>,
        retry: Option<u64>,
    ) -> Result<Live, Unavailable> {
        match &self.source {
            Source::Channel(channel) => {
                let channel = channel.clone();
                self.open_channel(&channel, token, retry).await
            }
            Source::View(opener) => {
                let opener = Arc::clone(opener);
                let mut view = view;
                for _ in 0..DEFINITIONS {
                    let made = match view.take() {
                        Some(view) => view,
                        None => opener().await?,
                    };
                    if let Some(live) = self.open_view(made, token, retry).await? {
                        return Ok(live);
                    }
                }
                Err(self.explain(&NotYet.into()))
            }
        }
    }

    /// `None` when the view is from before its table or its policies changed.
    async fn open_view(
        &mut self,
        view: View,
        token: Option<&str>,
        retry: Option<u64>,
    ) -> Result<Option<Live>, Unavailable> {
        let brought = token.map(|text| text.parse::<Token>().ok());
        let name = view.name();
        let from = brought
            .as_ref()
            .and_then(Option::as_ref)
            .filter(|token| token.view == name);
        let (view, joined) = if view.asking().is_some() {
            let joined = self.parts.feed.join_asking(view);
            joined.map_err(|error| self.explain(&error.into()))?
        } else {
            let joined = self
                .parts
                .feed
                .join_view(view, from.map(|token| &token.cursor));
            joined.map_err(|error| self.explain(&error.into()))?
        };
        // Made before the table changed, and so late that nobody will reset it: make it again.
        let current = self.parts.catalog.current();
        let now = current.table_by_oid(view.table().oid);
        let policies = view.asking().and_then(|asking| asking.policies.as_ref());
        if now.is_some_and(|now| **now != *view.table())
            || policies.is_some_and(|known| current.policies(view.table().oid) != Some(known))
        {
            return Ok(None);
        }
        // Other columns than this stream has told so far need a new state.
        let columns = columns(&view);
        let same_columns = self.columns.as_ref().is_none_or(|told| *told == columns);
        if let Some(from) = from.filter(|_| same_columns) {
            let caught = match view.sight() {
                Sight::Images(images) => self.caught_by_images(&view, images, &joined, from).await,
                Sight::Asking(asking) => self.caught_by_asking(&view, asking, &joined, from).await,
            };
            if let Some((until, body)) = caught {
                self.columns = Some(columns);
                let live = joined_at(Shown::View(view), joined, &from.cursor, &until);
                self.caught_up(&live, body, retry);
                return Ok(Some(live));
            }
        }
        if token.is_some() {
            self.answer("reset");
        }
        let live = self.open_fresh(&view, joined, token.is_some(), retry);
        live.await.map(Some)
    }

    /// What somebody at `from` missed of a view that is decided from images, and up to where.
    async fn caught_by_images(
        &self,
        view: &View,
        images: &Images,
        joined: &Joined,
        from: &Token,
    ) -> Option<(Arc<Cursor>, Option<Bytes>)> {
        let caught = self.missed(joined, from).await?;
        let folded = log::fold(caught.missed.iter().map(AsRef::as_ref), view.table().oid);
        if folded.unknown || folded.bytes > CATCH_UP_BYTES {
            return None;
        }
        let truncated = folded.truncated;
        let changes = folded.changes();
        let changes = changes.iter().map(|(xid, change)| (*xid, change));
        let elements = images.told(truncated, changes).ok()?;
        self.answer(caught.source);
        let body = (!elements.is_empty()).then(|| view.encode(&elements));
        Some((caught.until, body))
    }

    /// The same for a view that asks: the rows that changed are read where the log was.
    async fn caught_by_asking(
        &self,
        view: &View,
        asking: &Asking,
        joined: &Joined,
        from: &Token,
    ) -> Option<(Arc<Cursor>, Option<Bytes>)> {
        // What policies read of tables that nobody watches may have changed at any time.
        if asking.is_compared() || from.epoch != joined.epoch {
            return None;
        }
        let lease = Lease::take(&self.parts.log).await.ok()?;
        let batch = self.read_log(&lease, joined, from).await?;
        let mut pending = Pending::default();
        let missed = batch.transactions.iter().map(AsRef::as_ref);
        pending.collect(view.table().oid, asking, missed);
        if pending.is_reset() || pending.is_whole() {
            return None;
        }
        let mut body = None;
        if !pending.is_empty() {
            let snapshot = log::export(&lease).await.ok()?;
            let asked = Lease::take(&self.parts.states).await.ok()?;
            let terms = Terms {
                snapshot: Some(&snapshot),
                ..Terms::read(view.context(), self.parts.snapshots.timeout)
            };
            let answer = transaction::run(asked, terms, async |client| {
                let answer = view.ask(asking, &pending, None, client).await;
                answer.map_err(SnapshotError::from)
            });
            let elements = answer.await.ok()?.elements;
            body = (!elements.is_empty()).then(|| view.encode(&elements));
        }
        if lease.batch_execute("commit").await.is_ok() {
            lease.give_back();
        }
        self.answer("log");
        Some((Arc::new(batch.end), body))
    }

    /// A snapshot, with a reset in front for a client that may hold something else.
    async fn open_fresh(
        &mut self,
        view: &Arc<View>,
        joined: Joined,
        reset: bool,
        retry: Option<u64>,
    ) -> Result<Live, Unavailable> {
        let snapshot = snapshot::read(
            view,
            &self.parts.states,
            &joined.place,
            &self.parts.snapshots,
        )
        .await;
        let snapshot = snapshot.map_err(|error| self.explain(&error.into()))?;
        if snapshot.epoch != Some(joined.epoch) {
            return Err(self.explain(&NotYet.into()));
        }
        // From the earlier of the two places: the shared read may have begun before we joined, and a
        // reset may have come after we joined and before the read. What the state holds is skipped.
        let mut subscriber = joined.subscriber;
        subscriber.back_to(snapshot.position);
        let live = Live {
            shown: Shown::View(Arc::clone(view)),
            epoch: joined.epoch,
            subscriber,
            sent: Arc::clone(&snapshot.cursor),
            read: (Arc::clone(&snapshot.cursor), Some(snapshot.digest)),
            in_step: false,
        };
        self.schema(view);
        let last = snapshot.pieces.len() - 1;
        let end = token(&live).to_string();
        for (place, piece) in snapshot.pieces.iter().enumerate() {
            let id = if place == last { end.as_str() } else { START };
            let retry = retry.filter(|_| place == 0);
            let piece = if place == 0 && reset {
                &snapshot.reset
            } else {
                piece
            };
            self.queue.push_back(sse::head(retry, "data", id).into());
            self.queue.push_back(piece.clone());
        }
        self.queue.push_back(self.control(&live, None, ""));
        Ok(live)
    }

    async fn open_channel(
        &mut self,
        channel: &str,
        token: Option<&str>,
        retry: Option<u64>,
    ) -> Result<Live, Unavailable> {
        let brought = token.map(|text| text.parse::<Token>().ok());
        let name = Channel::new(channel).name;
        let from = brought
            .as_ref()
            .and_then(Option::as_ref)
            .filter(|token| token.view == name);
        let joined = self
            .parts
            .feed
            .join_channel(channel, from.map(|token| &token.cursor));
        let (channel, joined) = joined.map_err(|error| self.explain(&error.into()))?;
        if let Some(from) = from
            && let Some(caught) = self.missed(&joined, from).await
            && !caught
                .missed
                .iter()
                .any(|transaction| transaction.reset_all)
        {
            self.answer(caught.source);
            let missed: Vec<&Transaction> = caught.missed.iter().map(AsRef::as_ref).collect();
            let body = channel.encode(&missed);
            let live = joined_at(Shown::Channel(channel), joined, &from.cursor, &caught.until);
            self.caught_up(&live, body, retry);
            return Ok(live);
        }
        // Messages have no state to read anew: a client that may have missed some is told so.
        let reset = token.is_some().then(|| {
            self.answer("reset");
            let mut array = sse::Array::new(&channel.channel);
            array.push(&Element::Reset);
            array.finish()
        });
        let cursor = Arc::clone(&joined.cursor);
        let live = joined_at(Shown::Channel(channel), joined, &cursor, &cursor);
        self.caught_up(&live, reset, retry);
        Ok(live)
    }

    /// What somebody at `from` missed, from memory or from the log. `None` when it cannot be told.
    async fn missed(&self, joined: &Joined, from: &Token) -> Option<CaughtUp> {
        if from.epoch != joined.epoch {
            return None;
        }
        if let Some(missed) = &joined.missed {
            return Some(CaughtUp {
                source: "ring",
                missed: missed.clone(),
                until: Arc::clone(&joined.cursor),
            });
        }
        let lease = Lease::take(&self.parts.log).await.ok()?;
        let batch = self.read_log(&lease, joined, from).await?;
        if lease.batch_execute("commit").await.is_ok() {
            lease.give_back();
        }
        Some(CaughtUp {
            source: "log",
            missed: batch.transactions,
            until: Arc::new(batch.end),
        })
    }

    /// Reads the log since `from`, in a transaction that stays open. `None` when it does not hold
    /// all of it any more, or not yet.
    async fn read_log(&self, client: &Client, joined: &Joined, from: &Token) -> Option<Batch> {
        let read =
            async |catalog| log::open(client, &joined.place, &from.cursor, catalog, CATCH_UP).await;
        let catalog = self.parts.catalog.current();
        let mut batch = read(&catalog).await.ok()?;
        if !batch.definitions.is_empty() {
            // A table or partition that the feed has not met yet must not be left out.
            let catalog = self.parts.catalog.reload().await.ok()?;
            client.batch_execute("rollback").await.ok()?;
            batch = read(&catalog).await.ok()?;
        }
        let trimmed = batch.is_trimmed_after(&from.cursor);
        let future = !batch.end.covers(&from.cursor);
        let here = batch.epoch == Some(joined.epoch);
        (here && !trimmed && !future).then_some(batch)
    }

    /// Queues one event with everything missed, and a control either way.
    fn caught_up(&mut self, live: &Live, body: Option<Bytes>, retry: Option<u64>) {
        let retry_of_control = if body.is_some() { None } else { retry };
        if let Some(body) = body {
            let head = sse::head(retry, "data", &token(live).to_string());
            self.queue.push_back(head.into());
            self.queue.push_back(body);
        }
        self.queue
            .push_back(self.control(live, retry_of_control, ""));
    }

    /// Tells the columns when they are not what they were in this stream.
    fn schema(&mut self, view: &View) {
        let schema = columns(view);
        if self.columns.as_ref().is_some_and(|known| *known != schema) {
            let control = self.control_at(START, None, &format!(r#","schema":{schema}"#));
            self.queue.push_back(control);
        }
        self.columns = Some(schema);
    }

    /// The client comes back at once: with a fresh token it goes on where it was.
    fn expire(&mut self, live: &Live) {
        self.count_drop("expired");
        let why = self.explain(&Trouble::Expired);
        let error = format!(r#"{{"upToDate":false,"error":{}}}"#, why.body);
        let id = token(live).to_string();
        let retry = fastrand::u64(200..1000);
        self.queue.push_back(sse::control(Some(retry), &id, &error));
    }

    async fn close(&mut self, live: Live, grace: Duration) {
        // Spread, so that browsers do not all come back in the same second; a few need no spreading.
        let spread = grace.min(Duration::from_millis(self.streams().saturating_mul(2)));
        tokio::time::sleep(spread.mul_f64(fastrand::f64())).await;
        self.count_drop("shutdown");
        let closing = self.control(&live, Some(self.retry_later()), CLOSING);
        self.queue.push_back(closing);
    }

    /// Open streams of this relay.
    fn streams(&self) -> u64 {
        u64::try_from(self.parts.metrics.subscribers.get()).unwrap_or(0)
    }

    /// A reconnection time for the end of a relay, in milliseconds: longer with more screens.
    fn retry_later(&self) -> u64 {
        200 + fastrand::u64(0..=800 + self.streams() * 2)
    }

    fn control(&self, live: &Live, retry: Option<u64>, more: &str) -> Bytes {
        let failing = live.shown.told().is_some_and(|told| told.failing);
        self.control_with(&token(live).to_string(), retry, !failing, more)
    }

    fn control_at(&self, id: &str, retry: Option<u64>, more: &str) -> Bytes {
        self.control_with(id, retry, true, more)
    }

    fn control_with(&self, id: &str, retry: Option<u64>, fresh: bool, more: &str) -> Bytes {
        let health = &self.parts.health;
        let lag = health.lag().map_or(0, |lag| lag.as_millis());
        let fresh = fresh && health.is_fresh();
        let json = format!(r#"{{"upToDate":{fresh},"lag_ms":{lag}{more}}}"#);
        sse::control(retry, id, &json)
    }

    fn explain(&self, trouble: &Trouble) -> Unavailable {
        (self.parts.explain)(trouble)
    }

    fn answer(&self, result: &'static str) {
        self.parts
            .metrics
            .resumes
            .get_or_create(&Answer { result })
            .inc();
    }

    fn count_drop(&self, reason: &'static str) {
        self.present
            .metrics
            .dropped_subscribers
            .get_or_create(&Reason { reason })
            .inc();
    }

    /// From the trigger's clock to here. The two clocks are one where the database is on this
    /// machine; elsewhere the figure holds their difference too.
    fn observe(&self, at: Timestamp) {
        let seconds = Timestamp::now().duration_since(at).as_secs_f64();
        self.parts.metrics.commit_to_write.observe(seconds.max(0.0));
    }
}

/// Waits for the end; for ever where there is none.
async fn expired(end: Option<&mut End>) {
    let Some(end) = end else {
        return std::future::pending().await;
    };
    loop {
        let at = *end.borrow_and_update();
        let Ok(left) = at.duration_since(SystemTime::now()) else {
            return;
        };
        tokio::select! {
            // In steps, since the clock may be set meanwhile.
            () = tokio::time::sleep(left.min(Duration::from_mins(1))) => {}
            changed = end.changed() => if changed.is_err() {
                tokio::time::sleep(left).await;
                return;
            },
        }
    }
}

/// The columns of a view as JSON text.
fn columns(view: &View) -> String {
    let member = |(name, kind): &(String, String)| serde_json::json!({"name": name, "type": kind});
    let schema: Vec<serde_json::Value> = view.columns().iter().map(member).collect();
    serde_json::Value::from(schema).to_string()
}

/// What a returning client missed.
struct CaughtUp {
    source: &'static str,
    missed: Vec<Arc<Transaction>>,
    /// With `missed`, the client has everything done here.
    until: Arc<Cursor>,
}

fn joined_at(shown: Shown, joined: Joined, from: &Cursor, until: &Arc<Cursor>) -> Live {
    let sent = if until.covers(from) {
        Arc::clone(until)
    } else {
        Arc::new(until.union(from))
    };
    Live {
        shown,
        epoch: joined.epoch,
        in_step: sent == joined.cursor,
        subscriber: joined.subscriber,
        read: (Arc::clone(&sent), None),
        sent,
    }
}

fn token(live: &Live) -> Token {
    Token {
        epoch: live.epoch,
        view: live.shown.name(),
        cursor: (*live.sent).clone(),
    }
}

/// Everything done in either. Mostly one covers the other.
fn merge(sent: &Arc<Cursor>, newer: &Arc<Cursor>) -> Arc<Cursor> {
    if newer.covers(sent) {
        Arc::clone(newer)
    } else {
        Arc::new(sent.union(newer))
    }
}

/// Whether a client's text may be written back as an id.
fn is_id(text: &str) -> bool {
    text.len() <= 4096
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}
