//! Who is to be woken, and what everybody has taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;

/// Where one subscriber waits. A task keeps its waker for life, so it is handed over once and not at
/// each wait, as `AtomicWaker` would have it.
#[derive(Debug)]
pub(super) struct Seat {
    waker: Waker,
    /// It has nothing to take, and was not woken since.
    waits: AtomicBool,
    /// As [`Place::position`].
    position: AtomicU64,
}

impl Seat {
    pub(super) fn new(waker: &Waker, position: u64) -> Self {
        Self {
            waker: waker.clone(),
            waits: AtomicBool::new(false),
            position: AtomicU64::new(position),
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

/// One subscriber, as the topic knows it.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// It has never waited: how far it has taken.
    Standing(Arc<AtomicU64>),
    /// It waits there, or has.
    Sitting(Arc<Seat>),
}

impl Place {
    pub(super) fn at(position: u64) -> Self {
        Self::Standing(Arc::new(AtomicU64::new(position)))
    }

    /// Its seat, if it has one.
    pub(super) fn seat(&self) -> Option<&Seat> {
        match self {
            Self::Standing(_) => None,
            Self::Sitting(seat) => Some(seat),
        }
    }

    /// Everything before it has been taken. What is read too early is too low, and only keeps more.
    pub(super) fn position(&self) -> &AtomicU64 {
        match self {
            Self::Standing(position) => position,
            Self::Sitting(seat) => &seat.position,
        }
    }
}

/// The places of all subscribers, each under a number that stays its own.
#[derive(Debug, Default)]
pub(super) struct Seats {
    places: Vec<Option<Place>>,
    free: Vec<usize>,
}

impl Seats {
    pub(super) fn take(&mut self, place: Place) -> usize {
        if let Some(number) = self.free.pop() {
            self.places[number] = Some(place);
            return number;
        }
        self.places.push(Some(place));
        self.places.len() - 1
    }

    pub(super) fn sit(&mut self, number: usize, place: Place) {
        self.places[number] = Some(place);
    }

    pub(super) fn leave(&mut self, number: usize) {
        self.places[number] = None;
        self.free.push(number);
        if self.free.len() == self.places.len() {
            *self = Self::default();
        }
    }

    pub(super) fn taken(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Wakes who waits. Everything before the position that it returns has been taken by all; `None`
    /// where nobody is.
    pub(super) fn call(&self) -> Option<u64> {
        let mut least = None;
        for place in self.places.iter().flatten() {
            // Before it is woken, and takes more.
            let position = place.position().load(Ordering::Relaxed);
            least = Some(least.map_or(position, |least: u64| least.min(position)));
            if let Some(seat) = place.seat() {
                seat.call();
            }
        }
        least
    }
}
