//! Who is to be woken, and what everybody has taken.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;

use super::Taker;

/// One subscriber, as the topic knows it. A task keeps its waker for life, so it is handed over once and
/// not at each wait, as `AtomicWaker` would have it.
pub(super) struct Seat<T> {
    /// Of whoever waits there; `None` where nobody has.
    waker: Option<Waker>,
    taker: Option<Arc<dyn Taker<T>>>,
    /// It has nothing to take, and was not woken since.
    waits: AtomicBool,
    /// Everything before it has been taken. What is read too early is too low, and only keeps more.
    pub(super) position: AtomicU64,
}

impl<T> fmt::Debug for Seat<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat")
            .field("waits", &self.waits)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl<T> Seat<T> {
    pub(super) fn new(
        waker: Option<Waker>,
        taker: Option<Arc<dyn Taker<T>>>,
        position: u64,
    ) -> Self {
        Self {
            waker,
            taker,
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

    /// Has the latest item, which lies at that position, taken for whoever waits, or wakes it.
    pub(super) fn call(&self, latest: Option<(&T, u64)>) {
        if !self.waits.load(Ordering::SeqCst) {
            return;
        }
        if let Some((item, at)) = latest
            && let Some(taker) = &self.taker
            // Of several that it has not taken, a subscriber takes all at once.
            && self.position.load(Ordering::Relaxed) == at
        {
            let claim = || {
                let (moved, other) = (Ordering::AcqRel, Ordering::Relaxed);
                self.position
                    .compare_exchange(at, at + 1, moved, other)
                    .is_ok()
            };
            if taker.take(item, &claim) {
                return;
            }
        }
        self.waits.store(false, Ordering::SeqCst);
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }
}

/// The seats of all subscribers, each under a number that stays its own.
#[derive(Debug)]
pub(super) struct Seats<T> {
    seats: Vec<Option<Arc<Seat<T>>>>,
    free: Vec<usize>,
}

impl<T> Default for Seats<T> {
    fn default() -> Self {
        Self {
            seats: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Seats<T> {
    pub(super) fn take(&mut self, seat: Arc<Seat<T>>) -> usize {
        if let Some(number) = self.free.pop() {
            self.seats[number] = Some(seat);
            return number;
        }
        self.seats.push(Some(seat));
        self.seats.len() - 1
    }

    pub(super) fn sit(&mut self, number: usize, seat: Arc<Seat<T>>) {
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

    /// All of them, to be called while others come and go.
    pub(super) fn all(&self) -> Vec<Arc<Seat<T>>> {
        self.seats.iter().flatten().cloned().collect()
    }
}
