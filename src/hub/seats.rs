//! Who is to be woken.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

/// Where one subscriber waits. A task keeps its waker for life, so it is handed over once and not at
/// each wait, as `AtomicWaker` would have it.
#[derive(Debug)]
pub(super) struct Seat {
    waker: Waker,
    /// It has nothing to take, and was not woken since.
    waits: AtomicBool,
}

impl Seat {
    pub(super) fn new(waker: &Waker) -> Self {
        Self {
            waker: waker.clone(),
            waits: AtomicBool::new(false),
        }
    }

    pub(super) fn is_of(&self, waker: &Waker) -> bool {
        self.waker.will_wake(waker)
    }

    /// The next call wakes. Whoever waits looks once more after this: in the one order of all `SeqCst`,
    /// either it sees the item or the call sees it waiting.
    pub(super) fn wait(&self) {
        self.waits.store(true, Ordering::SeqCst);
    }

    fn call(&self) {
        if self.waits.load(Ordering::SeqCst) {
            self.waits.store(false, Ordering::SeqCst);
            self.waker.wake_by_ref();
        }
    }
}

/// The seats of all subscribers, each at a place that stays its own; empty while nobody has waited there.
#[derive(Debug, Default)]
pub(super) struct Seats {
    seats: Vec<Option<Arc<Seat>>>,
    free: Vec<usize>,
}

impl Seats {
    pub(super) fn take(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.seats.push(None);
            self.seats.len() - 1
        })
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

    pub(super) fn call(&self) {
        for seat in self.seats.iter().flatten() {
            seat.call();
        }
    }
}
