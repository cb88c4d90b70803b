//! Where batches are published and screens join: the position in the log, recent transactions in
//! memory, views and channels.
//!
//! It promises that whoever joins sees either none or all of a batch: what [`Stage::join_view`] and
//! [`Stage::join_channel`] return and what they will deliver have neither gap nor overlap. Pure
//! computation under one lock, which is never held across an await. It knows neither connections
//! nor SQL; the feed reads and tells it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::asked::Asked;
use super::ring::Ring;
use super::routes::Routes;
use crate::cursor::{Cursor, Name, Steps, Token};
use crate::event::{Element, Scope, Transaction};
use crate::hub::{Subscriber, Topic};
use crate::log::{Batch, Place};
use crate::metrics::{Metrics, Reason};
use crate::mutants::{Mutant, on};
use crate::sse;
use crate::view::{Channel, Delivery, Event, Mark, View};

/// Topics that are called in a row before others get their turn.
const TOPICS: usize = 64;
/// Bytes of recent transactions kept in memory.
const MEMORY: usize = 64 << 20;

/// What is shared by the feed and everybody who subscribes.
#[derive(Debug)]
pub struct Stage {
    /// Held while a batch is published, so that whoever joins sees all of it or none.
    live: Mutex<Live>,
    pub(super) asked: Asked,
    /// A view that asks was registered.
    pub(super) asked_anew: Notify,
    position: watch::Sender<Option<Position>>,
    wanted: watch::Sender<BTreeSet<String>>,
    pub(super) metrics: Arc<Metrics>,
    memory: usize,
    /// Where those are called who are to take something; without it, by whoever publishes.
    crier: OnceLock<UnboundedSender<Vec<Topic<Delivery>>>>,
}

/// How far the feed is: everything up to here has been published.
#[derive(Debug, Clone)]
pub struct Position {
    /// The life of the transaction counter.
    pub epoch: Name,
    /// The end of the last batch.
    pub cursor: Arc<Cursor>,
    /// When that was; `None` where something from before is known to be missing.
    pub read: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Live {
    pub(super) at: Option<At>,
    views: HashMap<Name, Arc<View>>,
    /// The same views, those that row images decide.
    routes: Routes,
    channels: HashMap<String, Arc<Channel>>,
    definitions: Definitions,
}

/// When each table's definition, policies and grants were last said to have changed, in numbers that
/// only grow.
#[derive(Debug, Default)]
struct Definitions {
    now: u64,
    all: u64,
    tables: HashMap<u32, u64>,
}

impl Definitions {
    fn changed(&mut self, table: u32) {
        self.now += 1;
        self.tables.insert(table, self.now);
    }

    fn all_changed(&mut self) {
        self.now += 1;
        self.all = self.now;
        self.tables.clear();
    }

    /// Whether what was looked up at `then` still holds for the table.
    fn hold(&self, table: u32, then: u64) -> bool {
        self.all <= then
            && self
                .tables
                .get(&table)
                .is_none_or(|changed| *changed <= then)
    }
}

#[derive(Debug)]
pub(super) struct At {
    pub(super) place: Place,
    pub(super) epoch: Name,
    pub(super) cursor: Arc<Cursor>,
    /// See [`Position::read`].
    pub(super) read: Option<Instant>,
    pub(super) ring: Ring,
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
    pub missed: Option<Vec<Missed>>,
    /// What comes.
    pub subscriber: Subscriber<Delivery>,
    /// When that was. What is read for whoever has joined is read later.
    pub when: Instant,
}

/// A transaction that somebody has not seen.
#[derive(Debug, Clone)]
pub struct Missed {
    /// The transaction.
    pub transaction: Arc<Transaction>,
    /// Everything before it in the order of delivery, and it, are done here.
    pub after: Arc<Cursor>,
}

/// The feed has never reached the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the log has not been read yet")]
pub struct NotYet;

impl Stage {
    /// Nobody is there, and nothing has been read.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            live: Mutex::new(Live {
                at: None,
                views: HashMap::new(),
                routes: Routes::default(),
                channels: HashMap::new(),
                definitions: Definitions::default(),
            }),
            asked: Asked::default(),
            asked_anew: Notify::new(),
            position: watch::Sender::new(None),
            wanted: watch::Sender::default(),
            metrics,
            memory: MEMORY,
            crier: OnceLock::new(),
        }
    }

    /// The same with so many bytes of recent transactions in memory.
    #[must_use]
    pub fn with_memory(self, memory: usize) -> Self {
        Self { memory, ..self }
    }

    /// Calls those who are to take something, for as long as it is polled: with many screens that takes
    /// milliseconds, in which the feed can read on.
    pub async fn cry(&self) {
        // Bounded by the number of topics: none is sent again before it is called.
        let (sender, mut receiver) = unbounded_channel();
        if self.crier.set(sender).is_err() {
            return;
        }
        while let Some(topics) = receiver.recv().await {
            call_in_turns(topics).await;
        }
    }

    /// How far it is.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.position.borrow().clone()
    }

    /// Follows how far it is.
    #[must_use]
    pub fn watch_position(&self) -> watch::Receiver<Option<Position>> {
        self.position.subscribe()
    }

    /// Channels that somebody subscribes to, for the doorbell to listen on.
    #[must_use]
    pub fn wanted(&self) -> watch::Receiver<BTreeSet<String>> {
        self.wanted.subscribe()
    }

    /// A number for what has been said of definitions so far. Who makes a view takes it before looking
    /// anything up, see [`View::made_at`].
    #[must_use]
    pub fn definitions(&self) -> u64 {
        self.lock().definitions.now
    }

    /// Whether nothing has been said of the definition of its table since the view was made. Asked
    /// after joining: what is said later ends the view's topic.
    #[must_use]
    pub fn is_current(&self, view: &View) -> bool {
        self.lock().holds(view)
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
            .is_some_and(|known| known.table() != view.table() || !live.holds(known))
        {
            // The table changed, and one of the two was made before: who shows the old one asks again.
            if let Some(old) = live.views.remove(&view.name()) {
                live.routes.remove(&old);
                self.reset(old.topic(), "table", None);
            }
        }
        let routes = &mut live.routes;
        let view = live.views.entry(view.name()).or_insert_with(|| {
            let view = Arc::new(view);
            routes.insert(&view);
            view
        });
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
        // One name and not a list of all: thousands come back at once, each to a channel of its own.
        self.wanted.send_if_modified(|wanted| {
            !wanted.contains(channel) && wanted.insert(channel.to_owned())
        });
        Ok(joined)
    }

    /// Forgets the view of that name if nobody subscribes to it. Called by who leaves, after it has
    /// left.
    pub fn leave_view(&self, name: Name) {
        let mut live = self.lock();
        let view = live.views.get(&name);
        if view.is_some_and(|view| view.topic().subscribers() == 0)
            && let Some(view) = live.views.remove(&name)
        {
            live.routes.remove(&view);
        }
        drop(live);
        self.leave_asked(name);
    }

    /// The same for a channel.
    pub fn leave_channel(&self, name: &str) {
        let mut live = self.lock();
        let channel = live.channels.get(name);
        // After a reset there is none until somebody joins it again.
        if channel.is_none_or(|channel| channel.topic.subscribers() == 0) {
            live.channels.remove(name);
            self.wanted.send_if_modified(|wanted| wanted.remove(name));
        }
    }

    /// Delivers a bare NOTIFY to those who are there.
    pub fn notify(&self, channel: &str, payload: &str) {
        if let Some(channel) = self.lock().channels.get(channel) {
            let mut array = sse::Array::new(&channel.channel);
            array.push(&Element::Notify {
                payload: payload.to_owned(),
            });
            let body = array.finish();
            let weight = body.len();
            channel.topic.publish(Delivery::Notify(body), weight);
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Live> {
        self.live.lock().expect("publishing does not panic")
    }

    /// The first batch of a connection, read from `from`: same epoch, go on; another, everybody
    /// starts over, and the log is to be read from `start`.
    pub fn begin(&self, place: &Place, epoch: Name, start: Cursor, from: &Cursor) {
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
            ring: Ring::new(Arc::clone(&cursor), self.memory),
            cursor,
            read: None,
        });
        self.reset_all(&mut live, "epoch", None);
    }

    /// Moves on to the end of a batch that does not hold everything. Everybody starts over.
    pub fn skip(&self, batch: &Batch) {
        let mut live = self.lock();
        let end = Arc::new(batch.end.clone());
        let Some(at) = &mut live.at else { return };
        let epoch = at.epoch;
        at.ring = Ring::new(Arc::clone(&end), self.memory);
        at.cursor = Arc::clone(&end);
        at.read = None;
        self.reset_all(&mut live, "log", None);
        self.position.send_replace(Some(Position {
            epoch,
            cursor: end,
            read: None,
        }));
    }

    fn reset_all(&self, live: &mut Live, reason: &'static str, mark: Option<&Mark>) {
        live.definitions.all_changed();
        live.routes.clear();
        for (_, view) in live.views.drain() {
            self.reset(view.topic(), reason, mark.cloned());
        }
        for (_, channel) in live.channels.drain() {
            self.reset(&channel.topic, reason, mark.cloned());
        }
    }

    pub(super) fn reset(&self, topic: &Topic<Delivery>, reason: &'static str, mark: Option<Mark>) {
        let resets = &self.metrics.resets;
        resets.get_or_create(&Reason { reason }).inc();
        topic.publish(Delivery::Reset(mark), 0);
    }

    /// Publishes a batch read from `from` and moves on to its end, as one step for whoever joins. Unless
    /// it is `complete`, something from before its end is known to be missing.
    pub fn publish(&self, batch: &Batch, from: &Cursor, complete: bool) {
        let mut pushed = Vec::new();
        let mut live = self.lock();
        let Some(epoch) = live.at.as_ref().map(|at| at.epoch) else {
            return;
        };
        let xids = batch.transactions.iter().map(|transaction| transaction.xid);
        let mut steps = Steps::new(from, &batch.end, xids);
        for transaction in &batch.transactions {
            let cursor = Arc::new(steps.deliver(transaction.xid));
            self.route(&mut live, epoch, transaction, &cursor, &mut pushed);
            if let Some(at) = &mut live.at {
                at.ring.push(Arc::clone(transaction), cursor);
            }
        }
        let end = if on(Mutant::M1) {
            Arc::new(Cursor::new(batch.end.xmax(), []))
        } else {
            Arc::new(batch.end.clone())
        };
        let read = complete.then(Instant::now);
        if let Some(at) = &mut live.at {
            at.cursor = Arc::clone(&end);
            at.read = read;
        }
        // After the events: who reads this position first finds every event up to it.
        self.position.send_replace(Some(Position {
            epoch,
            cursor: end,
            read,
        }));
        drop(live);
        // Not before all is pushed: of several events a screen takes all at once. Nobody has to wait for
        // it to join or leave.
        let left = match self.crier.get() {
            _ if pushed.is_empty() => return,
            Some(crier) => crier.send(pushed).map_err(|unsent| unsent.0).err(),
            None => Some(pushed),
        };
        for topic in left.into_iter().flatten() {
            topic.call();
        }
    }

    /// Adds the topics to whose subscribers it is to be told.
    fn route(
        &self,
        live: &mut Live,
        epoch: Name,
        transaction: &Transaction,
        cursor: &Arc<Cursor>,
        pushed: &mut Vec<Topic<Delivery>>,
    ) {
        let mark = Mark::Transaction(transaction.xid);
        if transaction.reset_all {
            self.reset_all(live, "log", Some(&mark));
            return;
        }
        let mut publish = |topic: &Topic<Delivery>, view, body: &Bytes| {
            let token = Token {
                epoch,
                view,
                cursor: (**cursor).clone(),
            };
            let cursor = Arc::clone(cursor);
            let event = Event::new(mark.clone(), transaction.at, &token, cursor, body);
            let weight = event.frame.len();
            if topic.push(Delivery::Event(Arc::new(event)), weight) {
                pushed.push(topic.clone());
            }
        };
        for delta in &transaction.deltas {
            if delta.scope == Scope::Unknown {
                live.definitions.changed(delta.table);
            }
            let touched = live.routes.touched(transaction.xid, delta);
            for told in touched.told {
                // They are of one table and show the same columns, so one encoding serves them all.
                let Some(first) = told.views.first() else {
                    continue;
                };
                let body = first.encode(&told.elements);
                for view in &told.views {
                    publish(view.topic(), view.name(), &body);
                }
            }
            let undecided: Vec<Arc<View>> = touched.undecided.into_iter().cloned().collect();
            for view in undecided {
                self.reset(view.topic(), "table", Some(mark.clone()));
                live.views.remove(&view.name());
                live.routes.remove(&view);
            }
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
                publish(&channel.topic, channel.name, &body);
            }
        }
    }
}

async fn call_in_turns(topics: Vec<Topic<Delivery>>) {
    // Most have a few subscribers, and a turn for each of thousands would be long.
    for some in topics.chunks(TOPICS) {
        for topic in some {
            topic.call_in_turns().await;
        }
        if some.len() == TOPICS {
            tokio::task::yield_now().await;
        }
    }
}

impl Live {
    /// Views that are decided from images.
    pub(super) fn views(&self) -> impl Iterator<Item = &Arc<View>> {
        self.views.values()
    }

    pub(super) fn holds(&self, view: &View) -> bool {
        self.definitions.hold(view.table().oid, view.made())
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
            when: Instant::now(),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use jiff::Timestamp;

    use super::super::routes::tests::{TABLE, view};
    use super::*;
    use crate::event::{Change, Delta};
    use crate::filter::Matcher;

    pub(in crate::feed) fn at(xmax: u64) -> Cursor {
        Cursor::new(xmax, [])
    }

    pub(in crate::feed) fn epoch() -> Name {
        Name::of(["epoch"])
    }

    /// One that has begun at 10.
    pub(in crate::feed) fn stage() -> Stage {
        let stage = Stage::new(Arc::new(Metrics::new()));
        stage.begin(&Place::new("here".into()), epoch(), at(10), &at(10));
        stage
    }

    /// One transaction, which did this to [`TABLE`].
    pub(in crate::feed) fn batch(xid: u64, scope: Scope, changes: Vec<Change>) -> Batch {
        let transaction = Transaction {
            xid,
            at: Timestamp::UNIX_EPOCH,
            deltas: vec![Delta {
                table: TABLE,
                scope,
                changes,
            }],
            messages: Vec::new(),
            reset_all: false,
        };
        Batch {
            end: at(xid + 1),
            epoch: Some(epoch()),
            horizon: None,
            gap: 0,
            gap_told: 0,
            rows: 1,
            definitions: Vec::new(),
            transactions: vec![Arc::new(transaction)],
        }
    }

    /// Somebody says that the definition of the table has changed.
    fn change_definition(stage: &Stage, xid: u64) {
        let batch = Batch {
            definitions: vec![xid],
            ..batch(xid, Scope::Unknown, Vec::new())
        };
        stage.publish(&batch, &at(xid), true);
    }

    #[test]
    fn a_view_that_was_looked_at_before_its_policies_changed_is_made_again() {
        let stage = stage();
        let made = || view("v", Matcher::default(), None).made_at(stage.definitions());
        let early = made();
        change_definition(&stage, 10);
        let (joined, mut stale) = stage.join_view(early, None).unwrap();
        assert!(!stage.is_current(&joined), "it shows what was so before");
        let (joined, _current) = stage.join_view(made(), None).unwrap();
        assert!(stage.is_current(&joined));
        let told = stale.subscriber.take(9).unwrap();
        assert!(
            matches!(told.as_slice(), [Delivery::Reset(None)]),
            "{told:?}"
        );
    }

    #[test]
    fn what_nobody_watches_is_forgotten() {
        let stage = stage();
        let (shown, mine) = stage
            .join_view(view("v", Matcher::default(), None), None)
            .unwrap();
        let (_, other) = stage
            .join_view(view("v", Matcher::default(), None), None)
            .unwrap();
        drop(mine);
        stage.leave_view(shown.name());
        assert_eq!(stage.lock().views.len(), 1, "somebody is still there");
        drop(other);
        stage.leave_view(shown.name());
        assert_eq!(stage.lock().views.len(), 0);
    }

    #[test]
    fn many_channels_are_joined_and_left_in_no_time() {
        const MANY: usize = 10_000;
        let stage = stage();
        let begun = std::time::Instant::now();
        let join = |n| stage.join_channel(&format!("room-{n}"), None).unwrap();
        let joined: Vec<_> = (0..MANY).map(join).collect();
        assert_eq!(stage.wanted().borrow().len(), MANY);
        // Who has to join again is not there for a moment, and some have left meanwhile.
        let batch = batch(10, Scope::Unknown, Vec::new());
        stage.skip(&batch);
        drop(joined);
        let _again = join(0);
        for n in 1..MANY {
            stage.leave_channel(&format!("room-{n}"));
        }
        let wanted: Vec<String> = stage.wanted().borrow().iter().cloned().collect();
        assert_eq!(wanted, ["room-0"]);
        // Where each makes a list of all, it takes minutes.
        assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    }
}
