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

use super::observe;
use crate::cursor::Cursor;
use crate::hub::Taker;
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
    /// A standard mutex: held for one write that does not wait, never across an await.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    outlet: Option<Arc<dyn Outlet>>,
    /// The connection has nothing to write.
    is_idle: bool,
    /// What the stream was told up to, where frames can be shared with others and it waits.
    sent: Option<Arc<Cursor>>,
    /// What is left of a chunk.
    rest: Option<Bytes>,
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

    /// The stream waits, and was told everything up to here under the feed's own cursors.
    pub(super) fn offer(&self, sent: &Arc<Cursor>) {
        self.lock().sent = Some(Arc::clone(sent));
    }

    /// The stream goes on, from here if it has offered.
    pub(super) fn withdraw(&self) -> Option<Arc<Cursor>> {
        self.lock().sent.take()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while holding it")
    }
}

impl Taker<Delivery> for Direct {
    fn take(&self, item: &Delivery, claim: &dyn Fn() -> bool) -> bool {
        let Delivery::Event(event) = item else {
            return false;
        };
        let mut state = self.lock();
        let State {
            outlet: Some(outlet),
            is_idle,
            sent: Some(sent),
            rest,
        } = &mut *state
        else {
            return false;
        };
        if !(*is_idle || on(Mutant::R11)) || event.mark.is_in(sent) || !claim() {
            return false;
        }
        *sent = Arc::clone(&event.cursor);
        self.metrics.handed.frame(event.frame.len());
        observe(&self.metrics, event.at);
        let written = outlet.write(&event.chunk);
        if written == event.chunk.len() {
            return true;
        }
        *is_idle = false;
        *rest = Some(event.chunk.slice(written..));
        false
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
        direct.offer(&place(7));
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
        direct.offer(&place(7));
        direct.busy();
        assert!(!direct.take(&event(7), &never));
        direct.idle();
        direct.withdraw();
        assert!(!direct.take(&event(7), &never));
        direct.offer(&place(7));
        direct.end();
        assert!(!direct.take(&event(7), &never));
    }

    #[test]
    fn what_is_no_event_of_the_next_position_is_left_to_the_stream() {
        let direct = direct(10_000);
        let never = || panic!("nobody may be moved");
        direct.offer(&place(7));
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
        direct.offer(&place(7));
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
