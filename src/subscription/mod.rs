//! One screen's stream: history, then live.
//!
//! A [`Subscription`] is pulled by the connection when its socket is ready, and keeps no more than
//! one answer's worth of frames. It promises that what it hands out is a snapshot or the net effect
//! of everything missed, then every later event once, each under a token from which any relay can
//! go on. It knows events and tokens, not HTTP.
//!
//! What is decided is decided without waiting: [`screen`] knows what the connection was given and
//! what follows from each thing that comes, [`catch_up`] how somebody is told what he missed,
//! [`control`] what a stream says of itself. This file waits: for events, for the clock, and for
//! what [`reads`] reads.

mod catch_up;
mod control;
mod reads;
mod screen;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::backoff::Backoff;
use crate::cursor::{Cursor, START, Token};
use crate::event::Element;
use crate::feed::{Joined, NotYet, Stage, Unjoined};
use crate::health::Health;
use crate::hub::{Lagged, Subscriber};
use crate::log::Bounds;
use crate::metrics::{Answer, Metrics, Reason};
use crate::mutants::{Mutant, on};
use crate::shutdown::{Guard, Shutdown};
use crate::sse;
use crate::view::asking::{Asking, Pending};
use crate::view::image::Images;
use crate::view::snapshot::{self, SnapshotError};
use crate::view::{Channel, Delivery, Sight, View};
use catch_up::{CaughtUp, Coming, Told};
use control::CLOSING;
pub use reads::{Ask, Pools, Reads, Since};
use screen::{Screen, Taken};

/// A screen that hears nothing for 12 s calls itself stale, so two of these may get lost.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Reconnection time told at the start, in milliseconds.
const RETRY: u64 = 1000;
/// How long a stream that lost its view tries to get it back. Less than the 12 s of silence after
/// which a screen calls itself stale.
const PATIENCE: Duration = Duration::from_secs(8);
/// A view that is made while definitions change is made again, so many times.
const DEFINITIONS: usize = 4;
/// Items taken from a topic at a time.
const TAKE: usize = 8;

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

/// How much a stream takes at once.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes taken out of a topic ahead of the socket.
    pub mouthful: usize,
    /// A screen that missed more bytes of images than this reads its state anew.
    pub catch_up: usize,
    /// What is read from the log for one screen at most.
    pub log: Bounds,
}

impl Default for Limits {
    fn default() -> Self {
        let catch_up = 4 << 20;
        Self {
            mouthful: 256 << 10,
            catch_up,
            log: Bounds {
                rows: 20_000,
                bytes: catch_up,
                batch: 16 << 20,
                total: 50_000,
            },
        }
    }
}

/// What a subscription needs of the rest.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Where events come from.
    pub stage: Arc<Stage>,
    /// Where history comes from.
    pub reads: Arc<dyn Reads>,
    /// Whether the feed has the log in hand.
    pub health: Arc<Health>,
    /// Told what is handed out.
    pub metrics: Arc<Metrics>,
    /// Ends every stream.
    pub shutdown: Shutdown,
    /// How much is taken at once.
    pub limits: Limits,
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
    subscriber: Subscriber<Delivery>,
    screen: Screen,
}

enum Shown {
    View(Arc<View>),
    Channel,
}

impl Shown {
    /// How far what it shows is, if that is not how far the feed is.
    fn told(&self) -> Option<crate::view::Told> {
        match self {
            Self::View(view) if view.asking().is_some() => Some(view.told_until()),
            _ => None,
        }
    }

    /// It could not be asked for, and is behind.
    fn is_failing(&self) -> bool {
        self.told().is_some_and(|told| told.failing)
    }
}

/// Counts the stream while it is there, and tidies up behind it.
struct Present {
    metrics: Arc<Metrics>,
    stage: Arc<Stage>,
    _guard: Guard,
}

impl Drop for Present {
    fn drop(&mut self) {
        self.metrics.subscribers.dec();
        self.stage.leave();
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
            stage: Arc::clone(&parts.stage),
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
        let control = control::unavailable(token, fastrand::u64(2000..5000), why);
        [sse::COMMENT.as_bytes(), &control].concat().into()
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
                                opened = self.open(token.as_deref(), view.map(|view| *view), Coming::Back, Some(RETRY)) => match opened {
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
                .stage
                .position()
                .filter(|position| position.epoch == live.screen.epoch())
                .map(|position| position.cursor),
        };
        let Some((mut live, everything)) = self.deliver(live).await else {
            return;
        };
        if let Some(told) = told.filter(|_| everything) {
            live.screen.move_to(&told);
        }
        self.queue.push_back(self.control(&live, None));
        self.phase = Phase::Live(live);
    }

    /// Queues what waits, and says whether that was everything: no more than a mouthful is taken out
    /// of the shared buffer, so that a slow screen costs a position and not memory. `None` when the
    /// stream is over.
    async fn deliver(&mut self, mut live: Live) -> Option<(Live, bool)> {
        loop {
            if self.queue.iter().map(Bytes::len).sum::<usize>() > self.parts.limits.mouthful {
                return Some((live, false));
            }
            let items = match live.subscriber.take(TAKE) {
                Ok(items) if items.is_empty() => return Some((live, true)),
                Ok(items) => items,
                Err(Lagged) => {
                    self.count_drop("lagged");
                    return Some((self.again(live, Coming::Behind).await?, false));
                }
            };
            for item in items {
                match live.screen.take(&item, &mut self.queue) {
                    Taken::Known => {}
                    Taken::Told => {
                        if let Delivery::Event(event) = item {
                            self.observe(event.at);
                        }
                    }
                    Taken::Anew => {
                        drop(live);
                        let live = self.reopen(START.to_owned(), Coming::Live).await?;
                        return Some((live, false));
                    }
                    Taken::Again => {
                        let coming = if on(Mutant::R1) {
                            Coming::Behind
                        } else {
                            Coming::Live
                        };
                        return Some((self.again(live, coming).await?, false));
                    }
                }
            }
        }
    }

    /// Begins again from where the connection is.
    async fn again(&mut self, live: Live, coming: Coming) -> Option<Live> {
        let token = live.screen.token().to_string();
        drop(live);
        self.reopen(token, coming).await
    }

    /// Begins again within the same stream, from `token`. A database that is just coming back gets
    /// a few seconds before the stream gives up.
    async fn reopen(&mut self, token: String, coming: Coming) -> Option<Live> {
        let begun = Instant::now();
        let mut backoff = Backoff::new();
        let shutdown = self.parts.shutdown.clone();
        loop {
            let opened = tokio::select! {
                biased;
                _grace = shutdown.begun() => break,
                opened = self.open(Some(&token), None, coming, None) => opened,
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
        // Nobody knows what it has missed meanwhile.
        let retry = Some(self.retry_later());
        let closing = control::frame(&token, retry, self.state(false), CLOSING);
        self.queue.push_back(closing);
        None
    }

    /// Joins, and queues what the client needs to be where the feed is.
    async fn open(
        &mut self,
        token: Option<&str>,
        view: Option<View>,
        coming: Coming,
        retry: Option<u64>,
    ) -> Result<Live, Unavailable> {
        match &self.source {
            Source::Channel(channel) => {
                let channel = channel.clone();
                self.open_channel(&channel, token, coming, retry).await
            }
            Source::View(opener) => {
                let opener = Arc::clone(opener);
                let mut view = view;
                for _ in 0..DEFINITIONS {
                    let made = match view.take() {
                        Some(view) => view,
                        None => opener().await?,
                    };
                    if let Some(live) = self.open_view(made, token, coming, retry).await? {
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
        coming: Coming,
        retry: Option<u64>,
    ) -> Result<Option<Live>, Unavailable> {
        let brought = token.and_then(|text| text.parse::<Token>().ok());
        let name = view.name();
        let from = brought.as_ref().filter(|token| token.view == name);
        let stage = &self.parts.stage;
        let (view, joined) = if view.asking().is_some() {
            let joined = stage.join_asking(view);
            joined.map_err(|error| self.explain(&error.into()))?
        } else {
            let joined = stage.join_view(view, from.map(|token| &token.cursor));
            joined.map_err(|error| self.explain(&error.into()))?
        };
        // A token that is ahead of this relay may have seen definitions that this relay has not: images
        // since then would be taken for something else.
        let ahead = |from: &&Token| !joined.cursor.covers(&from.cursor);
        let from = match from.filter(ahead) {
            Some(_) if !self.parts.reads.reload().await => None,
            _ => from,
        };
        // Made before the table changed, and so late that nobody will reset it: make it again.
        let current = self.parts.reads.catalog();
        let now = current.table_by_oid(view.table().oid);
        let policies = view.asking().and_then(|asking| asking.policies.as_ref());
        if !on(Mutant::R2) && now.is_some_and(|now| **now != *view.table())
            || policies.is_some_and(|known| current.policies(view.table().oid) != Some(known))
        {
            return Ok(None);
        }
        // Other columns than this stream has told so far need a new state.
        let columns = control::columns(&view);
        let same_columns = self.columns.as_ref().is_none_or(|told| *told == columns);
        if let Some(from) = from.filter(|_| same_columns) {
            let caught = match view.sight() {
                Sight::Images(images) => {
                    self.caught_by_images(coming, &view, images, &joined, from)
                        .await
                }
                Sight::Asking(asking) => self.caught_by_asking(&view, asking, &joined, from).await,
            };
            if let Some((until, told)) = caught {
                self.columns = Some(columns);
                return Ok(Some(self.caught_up(
                    Shown::View(view),
                    joined,
                    from,
                    &until,
                    told,
                    retry,
                )));
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
        coming: Coming,
        view: &View,
        images: &Images,
        joined: &Joined,
        from: &Token,
    ) -> Option<(Arc<Cursor>, Told)> {
        let caught = self.missed(joined, from).await?;
        let most = self.parts.limits.catch_up;
        let told = caught.of_view(coming, view, images, most).ok()?;
        self.answer(caught.source);
        Some((caught.until, told))
    }

    /// The same for a view that asks: the rows that changed are read where the log was.
    async fn caught_by_asking(
        &self,
        view: &View,
        asking: &Asking,
        joined: &Joined,
        from: &Token,
    ) -> Option<(Arc<Cursor>, Told)> {
        // What policies read of tables that nobody watches may have changed at any time.
        if asking.is_compared() || from.epoch != joined.epoch {
            return None;
        }
        let ask = |batch: &crate::log::Batch| {
            if !catch_up::holds_all(batch, joined.epoch, &from.cursor) {
                return None;
            }
            let mut pending = Pending::default();
            let missed = batch.transactions.iter().map(AsRef::as_ref);
            pending.collect(view.table().oid, asking, missed);
            (!pending.is_reset() && !pending.is_whole()).then_some(pending)
        };
        let since = self.since(joined, from);
        let answers = self.parts.reads.answers(view, asking, since, &ask);
        let (end, elements) = answers.await?;
        self.answer("log");
        let until = Arc::new(end);
        let body = (!elements.is_empty()).then(|| view.encode(&elements));
        let told = body.map(|body| (Arc::clone(&until), body));
        Some((until, told.into_iter().collect()))
    }

    /// A snapshot, with a reset in front for a client that may hold something else.
    async fn open_fresh(
        &mut self,
        view: &Arc<View>,
        joined: Joined,
        reset: bool,
        retry: Option<u64>,
    ) -> Result<Live, Unavailable> {
        let reads = &self.parts.reads;
        let snapshot = snapshot::read(view, &|| reads.state(Arc::clone(view), &joined.place)).await;
        let snapshot = snapshot.map_err(|error| self.explain(&error.into()))?;
        if snapshot.epoch != Some(joined.epoch) {
            return Err(self.explain(&NotYet.into()));
        }
        // From the earlier of the two places: the shared read may have begun before we joined, and a
        // reset may have come after we joined and before the read. What the state holds is skipped.
        let mut subscriber = joined.subscriber;
        if !on(Mutant::R3) {
            subscriber.back_to(snapshot.position);
        }
        let live = Live {
            screen: Screen::fresh(joined.epoch, view.name(), &snapshot),
            shown: Shown::View(Arc::clone(view)),
            subscriber,
        };
        self.schema(view);
        live.screen
            .tell_state(&snapshot, reset, retry, &mut self.queue);
        self.queue.push_back(self.control(&live, None));
        Ok(live)
    }

    async fn open_channel(
        &mut self,
        channel: &str,
        token: Option<&str>,
        coming: Coming,
        retry: Option<u64>,
    ) -> Result<Live, Unavailable> {
        let brought = token.and_then(|text| text.parse::<Token>().ok());
        let name = Channel::new(channel).name;
        let from = brought.as_ref().filter(|token| token.view == name);
        let stage = &self.parts.stage;
        let joined = stage.join_channel(channel, from.map(|token| &token.cursor));
        let (channel, joined) = joined.map_err(|error| self.explain(&error.into()))?;
        if let Some(from) = from
            && let Some(caught) = self.missed(&joined, from).await
            && let Ok(told) = caught.of_channel(coming, &channel)
        {
            self.answer(caught.source);
            return Ok(self.caught_up(Shown::Channel, joined, from, &caught.until, told, retry));
        }
        // Messages have no state to read anew: a client that may have missed some is told so.
        let reset = token.is_some().then(|| {
            self.answer("reset");
            let mut array = sse::Array::new(&channel.channel);
            array.push(&Element::Reset);
            (Arc::clone(&joined.cursor), array.finish())
        });
        let here = Token {
            epoch: joined.epoch,
            view: name,
            cursor: (*joined.cursor).clone(),
        };
        let until = Arc::clone(&joined.cursor);
        let told = reset.into_iter().collect();
        Ok(self.caught_up(Shown::Channel, joined, &here, &until, told, retry))
    }

    /// What somebody at `from` missed, from memory or from the log. `None` when it cannot be told.
    async fn missed(&self, joined: &Joined, from: &Token) -> Option<CaughtUp> {
        if from.epoch != joined.epoch && !on(Mutant::M3) {
            return None;
        }
        if let Some(caught) = CaughtUp::of_ring(joined) {
            return Some(caught);
        }
        let batch = self.parts.reads.log(self.since(joined, from)).await?;
        catch_up::holds_all(&batch, joined.epoch, &from.cursor)
            .then(|| CaughtUp::of_log(batch, &from.cursor))
    }

    fn since<'a>(&self, joined: &'a Joined, from: &'a Token) -> Since<'a> {
        Since {
            place: &joined.place,
            from: &from.cursor,
            bounds: if on(Mutant::R4) {
                Bounds::default()
            } else {
                self.parts.limits.log
            },
        }
    }

    /// Queues what was missed, and a control either way.
    fn caught_up(
        &mut self,
        shown: Shown,
        joined: Joined,
        from: &Token,
        until: &Arc<Cursor>,
        told: Told,
        retry: Option<u64>,
    ) -> Live {
        let Joined {
            epoch,
            cursor: feed,
            subscriber,
            ..
        } = joined;
        let screen =
            |until: &Arc<Cursor>| Screen::caught_up(epoch, from.view, &from.cursor, until, &feed);
        let mut retry = retry;
        for (after, body) in told {
            let id = screen(&after).token().to_string();
            let head = sse::head(retry.take(), "data", &id);
            self.queue.push_back(head.into());
            self.queue.push_back(body);
        }
        let live = Live {
            shown,
            subscriber,
            screen: screen(until),
        };
        self.queue.push_back(self.control(&live, retry));
        live
    }

    /// Tells the columns when they are not what they were in this stream.
    fn schema(&mut self, view: &View) {
        let schema = control::columns(view);
        if self.columns.as_ref().is_some_and(|known| *known != schema) {
            let more = format!(r#","schema":{schema}"#);
            let control = control::frame(START, None, self.state(true), &more);
            self.queue.push_back(control);
        }
        self.columns = Some(schema);
    }

    /// The client comes back at once: with a fresh token it goes on where it was.
    fn expire(&mut self, live: &Live) {
        self.count_drop("expired");
        let why = self.explain(&Trouble::Expired);
        let id = live.screen.token().to_string();
        let ended = control::ended(&id, fastrand::u64(200..1000), &why);
        self.queue.push_back(ended);
    }

    async fn close(&mut self, live: Live, grace: Duration) {
        // Spread, so that browsers do not all come back in the same second; a few need no spreading.
        let spread = grace.min(Duration::from_millis(self.streams().saturating_mul(2)));
        tokio::time::sleep(spread.mul_f64(fastrand::f64())).await;
        // What came meanwhile, or the last word would be that a screen has everything.
        let Some((live, everything)) = self.deliver(live).await else {
            return;
        };
        self.count_drop("shutdown");
        let told = self.state(everything && !live.shown.is_failing());
        let retry = Some(self.retry_later());
        self.queue
            .push_back(live.screen.control(retry, told, CLOSING));
    }

    /// Open streams of this relay.
    fn streams(&self) -> u64 {
        u64::try_from(self.parts.metrics.subscribers.get()).unwrap_or(0)
    }

    /// A reconnection time for the end of a relay, in milliseconds: longer with more screens.
    fn retry_later(&self) -> u64 {
        200 + fastrand::u64(0..=800 + self.streams() * 2)
    }

    fn control(&self, live: &Live, retry: Option<u64>) -> Bytes {
        let told = self.state(!live.shown.is_failing());
        live.screen.control(retry, told, "")
    }

    /// How far behind a stream is that is `fresh` as far as the feed is.
    fn state(&self, fresh: bool) -> control::State {
        let health = &self.parts.health;
        control::State {
            fresh: fresh && health.is_fresh(),
            lag: health.lag().unwrap_or_default(),
        }
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
