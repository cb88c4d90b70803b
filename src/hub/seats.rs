//! Who is to be woken.

use std::sync::Arc;

use futures::task::AtomicWaker;

/// The wakers of all subscribers, each at a place that stays its own.
#[derive(Debug, Default)]
pub(super) struct Seats {
    seats: Vec<Option<Arc<AtomicWaker>>>,
    free: Vec<usize>,
}

impl Seats {
    pub(super) fn take(&mut self, seat: Arc<AtomicWaker>) -> usize {
        if let Some(number) = self.free.pop() {
            self.seats[number] = Some(seat);
            return number;
        }
        self.seats.push(Some(seat));
        self.seats.len() - 1
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

    pub(super) fn wake(&self) {
        for seat in self.seats.iter().flatten() {
            seat.wake();
        }
    }
}
