//! Events that are written where they are published, without waking the stream that they are for.
//!
//! Most events go to screens that wait for nothing else. To wake a task for each costs more than to
//! write (measured: a thousand writes one after the other keep who reads them awake, and a write that
//! wakes nobody costs half). So a connection that has nothing to write lends its socket, its stream
//! says up to where it was told, and whoever publishes writes the frame that all have in common.
//!
//! A lock for each decides who is at work: while the connection or its stream is, nothing is written
//! here, and what was is known before either goes on. Whatever is not an event of the next position, or
//! does not fit into the socket, is left to the stream.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::Notify;

use super::beats::Now;
use super::live::observe;
use crate::cursor::{Cursor, Name};
use crate::hub::{Taker, Topic};
use crate::metrics::Metrics;
use crate::mutants::{Mutant, on};
use crate::view::Delivery;

/// Where the frames of one stream are written.
pub trait Outlet: Send + Sync {
    /// Writes a frame, which is a chunk of HTTP/1.1 already, and no more than goes at once. Returns how
    /// many bytes that was.
    fn write(&self, chunk: &Bytes) -> usize;
}

/// What a connection and its stream have in common.
pub struct Direct {
    metrics: Arc<Metrics>,
    /// The stream is to say itself how things stand.
    due: Notify,
    /// A standard mutex: held for one write that does not wait, never across an await.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    outlet: Option<Arc<dyn Outlet>>,
    /// The connection has nothing to write.
    is_idle: bool,
    /// What it shows.
    shows: Option<Shows>,
    /// Where the stream is, if frames can be shared with others and it waits.
    sent: Option<Sent>,
    /// What is left of a chunk.
    rest: Option<Bytes>,
}

struct Shows {
    epoch: Name,
    view: Name,
    topic: Topic<Delivery>,
}

/// What came of saying how things stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beaten {
    Told,
    /// There is an event that it is to be told first, or was told a moment ago.
    Behind,
    /// It has to do so itself.
    Busy,
}

struct Sent {
    /// What it was told up to.
    cursor: Arc<Cursor>,
    /// Up to where it has taken its topic.
    position: u64,
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Direct")
    }
}

impl Direct {
    /// Of a stream that nobody writes yet.
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            due: Notify::new(),
            state: Mutex::default(),
        }
    }

    /// The connection writes there, once it is [idle](Self::idle).
    pub fn lend(&self, outlet: Arc<dyn Outlet>) {
        self.lock().outlet = Some(outlet);
    }

    /// The connection is gone.
    pub fn end(&self) {
        *self.lock() = State::default();
    }

    /// The connection has nothing to write, and its stream waits.
    pub fn idle(&self) {
        self.lock().is_idle = true;
    }

    /// The connection is at work, first with what is left of a chunk.
    pub fn busy(&self) -> Option<Bytes> {
        let mut state = self.lock();
        state.is_idle = false;
        state.rest.take()
    }

    /// The stream begins to show what comes in that topic.
    pub(super) fn shows(&self, epoch: Name, view: Name, topic: Topic<Delivery>) {
        self.lock().shows = Some(Shows { epoch, view, topic });
    }

    /// The stream waits, was told everything up to here under the feed's own cursors, and has taken its topic
    /// up to that position.
    pub(super) fn offer(&self, cursor: &Arc<Cursor>, position: u64) {
        self.lock().sent = Some(Sent {
            cursor: Arc::clone(cursor),
            position,
        });
    }

    /// The stream goes on, from here if it has offered.
    pub(super) fn withdraw(&self) -> Option<Arc<Cursor>> {
        self.lock().sent.take().map(|sent| sent.cursor)
    }

    /// Waits until the stream is to say itself how things stand. Cancel safe.
    pub(super) async fn is_due(&self) {
        self.due.notified().await;
    }

    /// Says how things stand, or has the stream say it. Whether that is done: it is not where something is
    /// just being told to all and that is `worth_waiting` for.
    pub(super) fn beat(&self, now: &mut Now, worth_waiting: bool) -> bool {
        let beaten = self.lock().beat(now, &self.metrics);
        if beaten == Beaten::Behind && worth_waiting {
            return false;
        }
        if beaten != Beaten::Told {
            self.due.notify_one();
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while holding it")
    }
}

impl State {
    /// The connection has nothing to write.
    fn may_write(&self) -> bool {
        self.outlet.is_some() && (self.is_idle || on(Mutant::R11))
    }

    /// Whether all of it went. If not, the connection is to be woken.
    fn write(&mut self, chunk: &Bytes) -> bool {
        let written = self.outlet.as_ref().map_or(0, |outlet| outlet.write(chunk));
        if written == chunk.len() {
            return true;
        }
        self.is_idle = false;
        self.rest = Some(chunk.slice(written..));
        false
    }

    /// Says how things stand to a stream that was told all there is.
    fn beat(&mut self, now: &mut Now, metrics: &Metrics) -> Beaten {
        if !self.may_write() {
            return Beaten::Busy;
        }
        let (Some(shows), Some(sent)) = (&self.shows, &mut self.sent) else {
            return Beaten::Busy;
        };
        // The feed's place was read first, so that an event up to there which was not taken is still to be
        // seen; and one that came later may have been written since.
        let has_all = sent.position == shows.topic.end() || on(Mutant::R13);
        let Some(until) = now.until(shows.epoch).map(Arc::clone) else {
            return Beaten::Busy;
        };
        if !has_all || !until.covers(&sent.cursor) {
            return Beaten::Behind;
        }
        let Some((chunk, length)) = now.control(shows.view) else {
            return Beaten::Busy;
        };
        sent.cursor = until;
        metrics.handed.frame(length);
        if self.write(&chunk) {
            Beaten::Told
        } else {
            Beaten::Busy
        }
    }
}

impl Taker<Delivery> for Direct {
    fn take(&self, item: &Delivery, claim: &dyn Fn() -> bool) -> bool {
        let Delivery::Event(event) = item else {
            return false;
        };
        let state = &mut *self.lock();
        if !state.may_write() {
            return false;
        }
        let Some(sent) = &mut state.sent else {
            return false;
        };
        if event.mark.is_in(&sent.cursor) || !claim() {
            return false;
        }
        sent.cursor = Arc::clone(&event.cursor);
        sent.position += 1;
        self.metrics.handed.frame(event.frame.len());
        observe(&self.metrics, event.at);
        state.write(&event.chunk)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use jiff::Timestamp;

    use super::*;
    use crate::cursor::{Name, Token};
    use crate::view::{Event, Mark};

    /// One that takes so many bytes more.
    struct Room(AtomicUsize);

    impl Outlet for Room {
        fn write(&self, chunk: &Bytes) -> usize {
            let Self(room) = self;
            let taken = chunk.len().min(room.load(Ordering::Relaxed));
            room.fetch_sub(taken, Ordering::Relaxed);
            taken
        }
    }

    fn event(xid: u64) -> Delivery {
        let cursor = Arc::new(Cursor::new(xid + 1, []));
        let token = Token {
            epoch: Name::of(["epoch"]),
            view: Name::of(["view"]),
            cursor: (*cursor).clone(),
        };
        let body = Bytes::from_static(b"data: []\n\n");
        let mark = Mark::Transaction(xid);
        let event = Event::new(mark, Timestamp::UNIX_EPOCH, &token, cursor, &body);
        Delivery::Event(Arc::new(event))
    }

    fn direct(room: usize) -> Direct {
        let direct = Direct::new(Arc::new(Metrics::new()));
        let outlet: Arc<Room> = Arc::new(Room(AtomicUsize::new(room)));
        direct.lend(outlet);
        direct
    }

    fn place(xmax: u64) -> Arc<Cursor> {
        Arc::new(Cursor::new(xmax, []))
    }

    #[test]
    fn an_event_is_written_while_both_wait_and_the_stream_knows_it_afterwards() {
        let direct = direct(10_000);
        direct.offer(&place(7), 0);
        direct.idle();
        assert!(direct.take(&event(7), &|| true));
        assert!(direct.take(&event(8), &|| true));
        assert_eq!(direct.busy(), None);
        assert_eq!(direct.withdraw(), Some(place(9)));
        assert_eq!(direct.withdraw(), None);
    }

    #[test]
    fn nothing_is_written_while_one_of_them_is_at_work() {
        let direct = direct(10_000);
        let never = || panic!("nobody may be moved");
        direct.idle();
        assert!(!direct.take(&event(7), &never));
        direct.offer(&place(7), 0);
        direct.busy();
        assert!(!direct.take(&event(7), &never));
        direct.idle();
        direct.withdraw();
        assert!(!direct.take(&event(7), &never));
        direct.offer(&place(7), 0);
        direct.end();
        assert!(!direct.take(&event(7), &never));
    }

    #[test]
    fn what_is_no_event_of_the_next_position_is_left_to_the_stream() {
        let direct = direct(10_000);
        let never = || panic!("nobody may be moved");
        direct.offer(&place(7), 0);
        direct.idle();
        assert!(!direct.take(&event(6), &never));
        assert!(!direct.take(&Delivery::Reset(None), &never));
        assert!(!direct.take(&Delivery::Notify(Bytes::new()), &never));
        assert!(!direct.take(&event(7), &|| false));
        assert_eq!(direct.withdraw(), Some(place(7)));
    }

    #[test]
    fn what_does_not_fit_is_written_by_the_connection_before_anything_else() {
        let direct = direct(5);
        direct.offer(&place(7), 0);
        direct.idle();
        let Delivery::Event(first) = event(7) else {
            unreachable!()
        };
        // It has the event, and is woken for what is left of it.
        assert!(!direct.take(&Delivery::Event(Arc::clone(&first)), &|| true));
        assert!(!direct.take(&event(8), &|| panic!("nobody may be moved")));
        assert_eq!(direct.busy(), Some(first.chunk.slice(5..)));
        assert_eq!(direct.busy(), None);
        assert_eq!(direct.withdraw(), Some(place(8)));
    }
}
