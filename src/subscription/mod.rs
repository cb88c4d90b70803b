//! One screen's stream: history, then live.
//!
//! A [`Subscription`] is pulled by the connection when its socket is ready, and keeps no more than
//! one answer's worth of frames. It promises that what it hands out is a snapshot or the net effect
//! of everything missed, then every later event once, each under a token from which any relay can
//! go on. It knows events and tokens, and of HTTP nothing but that a frame may be a chunk ([`direct`]).
//!
//! What is decided is decided without waiting: [`screen`] knows what the connection was given and
//! what follows from each thing that comes, [`catch_up`] how somebody is told what he missed,
//! [`control`] what a stream says of itself. This file waits for events and for the clock, [`opening`]
//! for what [`reads`] reads, and what a stream shows meanwhile is [`live`].

pub mod beats;
mod catch_up;
mod control;
pub mod direct;
mod live;
mod opening;
mod reads;
mod screen;
mod signals;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::Stream;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::backoff::Backoff;
use crate::cursor::{Name, START};
use crate::feed::{Joined, NotYet, Stage, Unjoined};
use crate::health::Health;
use crate::log::Bounds;
use crate::metrics::{Answer, Metrics, Reason};
use crate::mutants::{Mutant, on};
use crate::shutdown::Shutdown;
use crate::sse;
use crate::view::snapshot::SnapshotError;
use crate::view::{Channel, View};
use beats::Beats;
use catch_up::Coming;
use direct::Direct;
use live::{Again, Drained, Live};
pub use reads::{Ask, Pools, Reads, Since};
use signals::{Signal, Signals};

/// Reconnection time told at the start, in milliseconds.
const RETRY: u64 = 1000;
/// How long a stream that lost its view tries to get it back. Less than the 12 s of silence after
/// which a screen calls itself stale.
const PATIENCE: Duration = Duration::from_secs(8);

/// Makes the view of a stream from its request, also when the table has changed meanwhile.
pub type Opener = Arc<dyn Fn() -> BoxFuture<'static, Result<View, Unavailable>> + Send + Sync>;

/// When a stream ends, unless that moves on.
pub type End = watch::Receiver<SystemTime>;

/// Whether a stream may go on, and why not once that is taken back.
pub type Permit = watch::Receiver<Option<Unavailable>>;

/// Why a stream cannot show anything now, though it may later.
#[derive(Debug, Clone)]
pub struct Unavailable {
    /// The body of an error in `PostgREST`'s shape, as JSON.
    pub body: String,
    /// It may be over in a moment: worth trying again within the same stream.
    pub passing: bool,
    /// The relay has too much to do: whoever comes back should not do so soon.
    pub crowded: bool,
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
    /// When its streams say how things stand.
    pub beats: Arc<Beats>,
    /// How much is taken at once.
    pub limits: Limits,
    /// Formats an error of the relay's own for the `error` member of a control.
    pub explain: fn(&Trouble) -> Unavailable,
}

impl Parts {
    /// How far behind a stream is that is `fresh` as far as the feed is.
    fn state(&self, fresh: bool) -> control::State {
        control::State {
            fresh: fresh && self.health.is_fresh(),
            lag: self.health.lag().unwrap_or_default(),
        }
    }
}

/// What can be wrong with a stream that was well asked for.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The feed has never reached the database.
    #[error(transparent)]
    NotYet(#[from] NotYet),
    /// Whoever opened it may not see it any more.
    #[error("the token has expired, or its key is gone")]
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
    /// Messages of a channel, for as long as they are permitted.
    Channel(String, Permit),
}

/// A stream of frames for one connection.
pub struct Subscription {
    parts: Parts,
    source: Source,
    queue: VecDeque<Bytes>,
    phase: Phase,
    signals: Signals,
    columns: Option<String>,
    direct: Arc<Direct>,
    present: Present,
    /// Its channel, until it has joined it by itself.
    held: Option<Box<Held>>,
    /// Who comes with a token may show rows already.
    may_show: bool,
}

/// A channel that is joined for a stream which is about to open, so that it is listened to by then. Whoever
/// goes away before that leaves it.
#[derive(Debug)]
pub struct Held {
    stage: Arc<Stage>,
    /// Until it is dropped: who leaves says so once it has left.
    joined: Option<(Arc<Channel>, Joined)>,
}

impl Held {
    /// Joins it.
    ///
    /// # Errors
    /// [`NotYet`].
    pub fn join(stage: &Arc<Stage>, channel: &str) -> Result<Self, NotYet> {
        Ok(Self {
            joined: Some(stage.join_channel(channel, None)?),
            stage: Arc::clone(stage),
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some((channel, joined)) = self.joined.take() {
            drop(joined);
            self.stage.leave_channel(&channel.channel);
        }
    }
}

/// The frames of a [`Subscription`].
///
/// Waiting for events and handing them out is done without a future of its own, so that an idle screen
/// keeps nothing but its place; whatever has to wait for something else, like reading a state, is.
pub struct Frames(State);

enum State {
    Still(Box<Subscription>),
    /// What is said while that takes its time, where something has to be.
    Moving(
        BoxFuture<'static, Box<Subscription>>,
        Option<Box<Meanwhile>>,
    ),
    Ended,
}

/// What a stream says that is still being opened: `PostgreSQL` may take longer for a state than a screen, or a proxy,
/// waits for a sign of life, and who comes back for it has the state read once more.
struct Meanwhile {
    parts: Parts,
    /// The client's own, which it keeps.
    id: String,
    silence: Pin<Box<Sleep>>,
}

impl Meanwhile {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        ready!(self.silence.as_mut().poll(cx));
        self.silence.as_mut().reset(Instant::now() + beats::EVERY);
        let control = control::frame(&self.id, None, self.parts.state(false), "");
        self.parts.metrics.handed.frame(control.len());
        Poll::Ready(control)
    }
}

/// What a stream that stands still does next.
enum Step {
    Frame(Bytes),
    Move(Move),
    End,
}

/// What a stream has to wait for.
enum Move {
    /// Joining what it shows.
    Open,
    /// Joining again.
    Reopen(Again),
    /// The time of its goodbye.
    Close(Duration),
}

enum Phase {
    /// Nothing is shown yet. The token that the client brought, and the view if it was made already.
    Opening(Option<String>, Option<Box<View>>),
    Live(Live),
    Ended,
}

/// Counts the stream while it is there, and tidies up behind it.
struct Present {
    metrics: Arc<Metrics>,
    stage: Arc<Stage>,
    /// What it joined last.
    at: Option<Place>,
}

/// What a stream has joined.
#[derive(PartialEq)]
enum Place {
    View(Name),
    Channel(String),
}

impl Present {
    /// It has joined this, and has left what it showed before.
    fn joined(&mut self, place: Place) {
        if self.at.as_ref() != Some(&place) {
            self.leave();
            self.at = Some(place);
        }
    }

    fn leave(&mut self) {
        match self.at.take() {
            Some(Place::View(name)) => self.stage.leave_view(name),
            Some(Place::Channel(name)) => self.stage.leave_channel(&name),
            None => {}
        }
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.metrics.subscribers.dec();
        self.leave();
    }
}

impl Subscription {
    /// A stream of `source` for a client that brought `token`. `view` is the first thing the opener
    /// would make, where the caller has made it already. The stream says so and ends at `end`, which may
    /// move on.
    #[must_use]
    pub fn new(
        parts: Parts,
        source: Source,
        token: Option<String>,
        view: Option<View>,
        end: Option<End>,
    ) -> Self {
        parts.metrics.subscribers.inc();
        parts.metrics.subscriptions.inc();
        let present = Present {
            metrics: Arc::clone(&parts.metrics),
            stage: Arc::clone(&parts.stage),
            at: None,
        };
        let direct = Arc::new(Direct::new(Arc::clone(&parts.metrics)));
        parts.beats.add(&direct);
        let permit = match &source {
            Source::Channel(_, permit) => Some(permit.clone()),
            Source::View(_) => None,
        };
        Self {
            queue: VecDeque::from([Bytes::from_static(sse::COMMENT.as_bytes())]),
            may_show: token.is_some(),
            phase: Phase::Opening(token, view.map(Box::new)),
            signals: Signals::new(&parts, Arc::clone(&direct), end, permit),
            columns: None,
            direct,
            present,
            held: None,
            parts,
            source,
        }
    }

    /// The same, with its channel joined already.
    #[must_use]
    pub fn holding(self, held: Held) -> Self {
        Self {
            held: Some(Box::new(held)),
            ..self
        }
    }

    /// For the connection that writes it.
    #[must_use]
    pub fn direct(&self) -> Arc<Direct> {
        Arc::clone(&self.direct)
    }

    /// A stream that only says why it cannot be, and ends. `token` stays the client's.
    #[must_use]
    pub fn unavailable(token: Option<&str>, why: &Unavailable) -> Bytes {
        let retry = if why.crowded {
            10_000..20_000
        } else {
            2000..5000
        };
        let control = control::unavailable(token, fastrand::u64(retry), why);
        [sse::COMMENT.as_bytes(), &control].concat().into()
    }

    /// What there is to write.
    #[must_use]
    pub fn frames(self) -> Frames {
        Frames(State::Still(Box::new(self)))
    }

    fn poll_still(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        if let Some(sent) = self.direct.withdraw()
            && let Phase::Live(live) = &mut self.phase
            && !on(Mutant::R12)
        {
            live.screen.was_told(sent);
        }
        loop {
            if let Some(frame) = self.queue.pop_front() {
                self.parts.metrics.handed.frame(frame.len());
                return Poll::Ready(Step::Frame(frame));
            }
            let live = match &mut self.phase {
                Phase::Opening(..) => return Poll::Ready(Step::Move(Move::Open)),
                Phase::Live(live) => live,
                Phase::Ended => return Poll::Ready(Step::End),
            };
            match self.signals.poll_next(cx) {
                Poll::Pending => {
                    if live.subscriber.poll_changed(cx).is_pending() {
                        live.offer(&self.direct);
                        return Poll::Pending;
                    }
                }
                Poll::Ready(Some(Signal::Control)) => {
                    if let Some(again) = self.tell_control() {
                        return Poll::Ready(Step::Move(Move::Reopen(again)));
                    }
                    continue;
                }
                Poll::Ready(Some(Signal::Closing(grace))) => {
                    return Poll::Ready(Step::Move(Move::Close(grace)));
                }
                Poll::Ready(Some(Signal::Expired)) => {
                    self.expire();
                    continue;
                }
                Poll::Ready(Some(Signal::Refused(why))) => {
                    self.refuse(&why);
                    continue;
                }
                Poll::Ready(None) => return Poll::Ready(Step::End),
            }
            if let Drained::Again(again) = live.drain(&self.parts, &mut self.queue) {
                return Poll::Ready(Step::Move(Move::Reopen(again)));
            }
        }
    }

    fn meanwhile(&self) -> Option<Box<Meanwhile>> {
        let Phase::Opening(token, _) = &self.phase else {
            return None;
        };
        Some(Box::new(Meanwhile {
            parts: self.parts.clone(),
            id: control::id(token.as_deref()).to_owned(),
            silence: Box::pin(sleep(beats::EVERY)),
        }))
    }

    /// Does what takes its time. Queues what there is to say of it.
    async fn moved(mut self: Box<Self>, next: Move) -> Box<Self> {
        match (std::mem::replace(&mut self.phase, Phase::Ended), next) {
            (Phase::Opening(token, view), _) => {
                let shutdown = self.parts.shutdown.clone();
                let view = view.map(|view| *view);
                let opened = tokio::select! {
                    biased;
                    opened = self.open(token.as_deref(), view, Coming::Back, Some(RETRY)) => opened,
                    _grace = shutdown.begun() => {
                        self.say_closing(control::id(token.as_deref()), false);
                        return self;
                    }
                };
                match opened {
                    Ok(live) => self.phase = Phase::Live(live),
                    Err(why) => {
                        let frame = Self::unavailable(token.as_deref(), &why);
                        self.queue.push_back(frame.slice(sse::COMMENT.len()..));
                    }
                }
            }
            (Phase::Live(live), Move::Reopen(again)) => {
                if let Some(live) = self.again(live, &again).await {
                    self.phase = Phase::Live(live);
                }
            }
            (Phase::Live(live), Move::Close(grace)) => self.close(live, grace).await,
            (Phase::Live(_), Move::Open) | (Phase::Ended, _) => {}
        }
        self
    }

    /// Queues everything that waits, and how things stand.
    fn tell_control(&mut self) -> Option<Again> {
        let Phase::Live(live) = &mut self.phase else {
            return None;
        };
        let everything = match live.take_all(&self.parts, &mut self.queue) {
            Drained::All => true,
            Drained::Enough => false,
            // Whoever has begun again is told how things stand.
            Drained::Again(again) => return Some(again),
        };
        let control = live.control(&self.parts, None, everything);
        self.queue.push_back(control);
        None
    }

    /// Begins again within the same stream.
    async fn again(&mut self, live: Live, again: &Again) -> Option<Live> {
        let (token, coming) = match again {
            Again::Anew => (START.to_owned(), Coming::Live),
            Again::Lagged => {
                self.count_drop("lagged");
                (live.screen.token().to_string(), Coming::Behind)
            }
            Again::Here if on(Mutant::R1) => (live.screen.token().to_string(), Coming::Behind),
            Again::Here => (live.screen.token().to_string(), Coming::Live),
        };
        let view = live.shown.asking();
        self.may_show = view.is_none_or(View::may_be_shown);
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
            // A database that does not answer at all must not keep the stream silent either.
            let left = PATIENCE.saturating_sub(begun.elapsed());
            let opened = tokio::select! {
                biased;
                _grace = shutdown.begun() => break,
                opened = timeout(left, self.open(Some(&token), None, coming, None)) => opened,
            };
            let opened = opened.unwrap_or_else(|_elapsed| Err(self.explain(&NotYet.into())));
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
        // Nobody knows what it has missed meanwhile.
        self.say_closing(&token, false);
        None
    }

    /// The client comes back at once: with a fresh token it goes on where it was.
    fn expire(&mut self) {
        let Phase::Live(live) = std::mem::replace(&mut self.phase, Phase::Ended) else {
            return;
        };
        self.count_drop("expired");
        let why = self.explain(&Trouble::Expired);
        let id = live.screen.token().to_string();
        let ended = control::ended(&id, fastrand::u64(200..1000), &why);
        self.queue.push_back(ended);
    }

    /// As a view does that may not be made again: the client tries later, from where it was.
    fn refuse(&mut self, why: &Unavailable) {
        let Phase::Live(live) = std::mem::replace(&mut self.phase, Phase::Ended) else {
            return;
        };
        self.count_drop("unavailable");
        let token = live.screen.token().to_string();
        let frame = Self::unavailable(Some(&token), why);
        self.queue.push_back(frame.slice(sse::COMMENT.len()..));
    }

    /// Says goodbye, if it can tell where it stands.
    async fn close(&mut self, mut live: Live, grace: Duration) {
        // A little, so that the goodbyes themselves are no burst; the feed has stopped already, so not
        // for long. What keeps screens from coming back all at once is the time they are told.
        let spread = grace.min(Duration::from_micros(self.streams().saturating_mul(200)));
        let spread = spread.min(Duration::from_secs(2));
        tokio::time::sleep(spread.mul_f64(fastrand::f64())).await;
        // What came meanwhile, or the last word would be that a screen has everything.
        let everything = match live.take_all(&self.parts, &mut self.queue) {
            Drained::All => true,
            Drained::Enough => false,
            Drained::Again(again) => {
                let Some(again) = self.again(live, &again).await else {
                    return;
                };
                live = again;
                false
            }
        };
        let id = live.screen.token().to_string();
        self.say_closing(&id, everything && !live.shown.is_behind());
    }

    /// Says goodbye to somebody at `id`, who has been told `everything` or not.
    fn say_closing(&mut self, id: &str, everything: bool) {
        self.count_drop("shutdown");
        let retry = self.retry_later();
        let state = self.parts.state(everything);
        let goodbye = control::frame(id, Some(retry), state, &control::closing(retry));
        self.queue.push_back(goodbye);
    }

    /// Open streams of this relay.
    fn streams(&self) -> u64 {
        u64::try_from(self.parts.metrics.subscribers.get()).unwrap_or(0)
    }

    /// A reconnection time for the end of a relay, in milliseconds: longer with more screens, so that
    /// a handful are back within a second, and of 10,000 about a thousand come in each.
    fn retry_later(&self) -> u64 {
        200 + fastrand::u64(0..=(800 + self.streams() * 9 / 10).min(30_000))
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
}

impl Stream for Frames {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            match &mut self.0 {
                State::Still(subscription) => match ready!(subscription.poll_still(cx)) {
                    Step::Frame(frame) => return Poll::Ready(Some(frame)),
                    Step::End => self.0 = State::Ended,
                    Step::Move(next) => {
                        let state = std::mem::replace(&mut self.0, State::Ended);
                        if let State::Still(subscription) = state {
                            let meanwhile = subscription.meanwhile();
                            self.0 = State::Moving(Box::pin(subscription.moved(next)), meanwhile);
                        }
                    }
                },
                State::Moving(moving, meanwhile) => match (moving.as_mut().poll(cx), meanwhile) {
                    (Poll::Ready(subscription), _) => self.0 = State::Still(subscription),
                    (Poll::Pending, Some(meanwhile)) => return meanwhile.poll(cx).map(Some),
                    (Poll::Pending, None) => return Poll::Pending,
                },
                State::Ended => return Poll::Ready(None),
            }
        }
    }
}
