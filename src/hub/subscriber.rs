//! A position in a topic.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use super::seats::Seat;
use super::{Shared, Taker, Topic};

/// Reads a topic at its own pace.
pub struct Subscriber<T> {
    shared: Arc<Shared<T>>,
    /// Where it waits, and how far it has taken.
    seat: Arc<Seat<T>>,
    taker: Option<Arc<dyn Taker<T>>>,
    /// Of its seat, among all.
    number: usize,
}

/// Items between the subscriber's position and the buffer's front are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the subscriber fell out of the buffer")]
pub struct Lagged;

impl<T> fmt::Debug for Subscriber<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Subscriber").field(&self.seat).finish()
    }
}

impl<T> Subscriber<T> {
    pub(super) fn new(shared: Arc<Shared<T>>, position: u64) -> Self {
        let seat = Arc::new(Seat::new(None, None, position));
        let number = shared.seats().take(Arc::clone(&seat));
        Self {
            shared,
            seat,
            taker: None,
            number,
        }
    }

    /// The same, for which `taker` may take what comes while it waits.
    #[must_use]
    pub fn with(mut self, taker: Arc<dyn Taker<T>>) -> Self {
        self.taker = Some(taker);
        self
    }

    /// What it is a subscriber of.
    #[must_use]
    pub fn topic(&self) -> Topic<T> {
        Topic {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Everything before it has been taken. Nobody moves it but the subscriber itself, and its taker while
    /// it waits.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.seat.position.load(Ordering::Relaxed)
    }

    fn move_to(&mut self, position: u64) {
        self.seat.position.store(position, Ordering::Relaxed);
    }

    /// Goes back to `position`, if that is earlier. What everybody had taken may be gone.
    pub fn back_to(&mut self, position: u64) {
        self.move_to(self.position().min(position));
    }

    /// Waits until there is something to take. Cancel safe.
    pub async fn changed(&mut self) {
        poll_fn(|cx| self.poll_changed(cx)).await;
    }

    /// Whether there is something to take; who is told no is woken once there is.
    pub fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.shared.end() > self.position() {
            return Poll::Ready(());
        }
        if !self.seat.is_of(cx.waker()) {
            let waker = Some(cx.waker().clone());
            self.seat = Arc::new(Seat::new(waker, self.taker.clone(), self.position()));
            let seat = Arc::clone(&self.seat);
            self.shared.seats().sit(self.number, seat);
        }
        self.seat.wait();
        // Again: an item that came before the seat was there has woken nobody.
        if self.shared.end() > self.position() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl<T: Clone> Subscriber<T> {
    /// Takes what has come, at most `most` items; empty when there is nothing.
    ///
    /// # Errors
    /// [`Lagged`] for good: this subscriber cannot go on.
    pub fn take(&mut self, most: usize) -> Result<Vec<T>, Lagged> {
        if self.shared.end() == self.position() {
            return Ok(Vec::new());
        }
        let buffer = self.shared.lock();
        let items: Vec<T> = buffer
            .from(self.position())
            .ok_or(Lagged)?
            .take(most)
            .cloned()
            .collect();
        drop(buffer);
        self.move_to(self.position() + items.len() as u64);
        Ok(items)
    }
}

impl<T> Drop for Subscriber<T> {
    fn drop(&mut self) {
        self.shared.seats().leave(self.number);
    }
}
