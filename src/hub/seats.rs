//! Who is to be woken, and what everybody has taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;

/// One subscriber, as the topic knows it. A task keeps its waker for life, so it is handed over once and
/// not at each wait, as `AtomicWaker` would have it.
#[derive(Debug)]
pub(super) struct Seat {
    /// Of whoever waits there; `None` where nobody has.
    waker: Option<Waker>,
    /// It has nothing to take, and was not woken since.
    waits: AtomicBool,
    /// Everything before it has been taken. What is read too early is too low, and only keeps more.
    pub(super) position: AtomicU64,
}

impl Seat {
    pub(super) fn new(waker: Option<Waker>, position: u64) -> Self {
        Self {
            waker,
            waits: AtomicBool::new(false),
            position: AtomicU64::new(position),
        }
    }

    pub(super) fn is_of(&self, waker: &Waker) -> bool {
        let own = self.waker.as_ref();
        own.is_some_and(|own| own.will_wake(waker))
    }

    /// The next call wakes. Whoever waits looks once more after this: in the one order of all `SeqCst`,
    /// either it sees the item or the call sees it waiting.
    pub(super) fn wait(&self) {
        self.waits.store(true, Ordering::SeqCst);
    }

    fn call(&self) {
        if self.waits.load(Ordering::SeqCst) {
            self.waits.store(false, Ordering::SeqCst);
            if let Some(waker) = &self.waker {
                waker.wake_by_ref();
            }
        }
    }
}

/// The seats of all subscribers, each under a number that stays its own.
#[derive(Debug, Default)]
pub(super) struct Seats {
    seats: Vec<Option<Arc<Seat>>>,
    free: Vec<usize>,
}

impl Seats {
    pub(super) fn take(&mut self, seat: Arc<Seat>) -> usize {
        if let Some(number) = self.free.pop() {
            self.seats[number] = Some(seat);
            return number;
        }
        self.seats.push(Some(seat));
        self.seats.len() - 1
    }

    pub(super) fn sit(&mut self, number: usize, seat: Arc<Seat>) {
        self.seats[number] = Some(seat);
    }

    pub(super) fn leave(&mut self, number: usize) {
        self.seats[number] = None;
        self.free.push(number);
        if self.free.len() == self.seats.len() {
            *self = Self::default();
        }
    }

    pub(super) fn taken(&self) -> usize {
        self.seats.len() - self.free.len()
    }

    /// Wakes who waits. Everything before the position that it returns has been taken by all; `None`
    /// where nobody is.
    pub(super) fn call(&self) -> Option<u64> {
        let mut least = None;
        for seat in self.seats.iter().flatten() {
            // Before it is woken, and takes more.
            let position = seat.position.load(Ordering::Relaxed);
            least = Some(least.map_or(position, |least: u64| least.min(position)));
            seat.call();
        }
        least
    }
}
