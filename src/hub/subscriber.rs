//! A position in a topic.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use super::Shared;
use super::seats::{Place, Seat};

/// Reads a topic at its own pace.
#[derive(Debug)]
pub struct Subscriber<T> {
    shared: Arc<Shared<T>>,
    /// What the topic knows of it.
    place: Place,
    /// Of its place, among all.
    number: usize,
    position: u64,
}

/// Items between the subscriber's position and the buffer's front are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the subscriber fell out of the buffer")]
pub struct Lagged;

impl<T> Subscriber<T> {
    pub(super) fn new(shared: Arc<Shared<T>>, position: u64) -> Self {
        let place = Place::at(position);
        let number = shared.seats().take(place.clone());
        Self {
            shared,
            place,
            number,
            position,
        }
    }

    fn move_to(&mut self, position: u64) {
        self.position = position;
        self.place.position().store(position, Ordering::Relaxed);
    }

    /// Goes back to `position`, if that is earlier. What everybody had taken may be gone.
    pub fn back_to(&mut self, position: u64) {
        self.move_to(self.position.min(position));
    }

    /// Waits until there is something to take. Cancel safe.
    pub async fn changed(&mut self) {
        poll_fn(|cx| self.poll_changed(cx)).await;
    }

    /// Whether there is something to take; who is told no is woken once there is.
    pub fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.shared.end() > self.position {
            return Poll::Ready(());
        }
        if !self.place.seat().is_some_and(|seat| seat.is_of(cx.waker())) {
            self.place = Place::Sitting(Arc::new(Seat::new(cx.waker(), self.position)));
            self.shared.seats().sit(self.number, self.place.clone());
        }
        if let Some(seat) = self.place.seat() {
            seat.wait();
        }
        // Again: an item that came before the seat was there has woken nobody.
        if self.shared.end() > self.position {
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
        if self.shared.end() == self.position {
            return Ok(Vec::new());
        }
        let buffer = self.shared.lock();
        let items: Vec<T> = buffer
            .from(self.position)
            .ok_or(Lagged)?
            .take(most)
            .cloned()
            .collect();
        drop(buffer);
        self.move_to(self.position + items.len() as u64);
        Ok(items)
    }
}

impl<T> Drop for Subscriber<T> {
    fn drop(&mut self) {
        self.shared.seats().leave(self.number);
    }
}
