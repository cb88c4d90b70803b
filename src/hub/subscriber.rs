//! A position in a topic.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::Shared;
use super::seats::Seat;

/// Reads a topic at its own pace.
#[derive(Debug)]
pub struct Subscriber<T> {
    shared: Arc<Shared<T>>,
    /// Where it waits, since it has waited.
    seat: Option<Arc<Seat>>,
    /// Of its seat, among all.
    number: usize,
    position: u64,
}

/// Items between the subscriber's position and the buffer's front are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the subscriber fell out of the buffer")]
pub struct Lagged;

impl<T> Subscriber<T> {
    pub(super) fn new(shared: Arc<Shared<T>>, position: u64) -> Self {
        let number = shared.seats().take();
        Self {
            shared,
            seat: None,
            number,
            position,
        }
    }

    /// Goes back to `position`, if that is earlier.
    pub fn back_to(&mut self, position: u64) {
        self.position = self.position.min(position);
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
        let seat = match &self.seat {
            Some(seat) if seat.is_of(cx.waker()) => seat,
            _ => {
                let seat = Arc::new(Seat::new(cx.waker()));
                self.shared.seats().sit(self.number, Arc::clone(&seat));
                self.seat.insert(seat)
            }
        };
        seat.wait();
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
        self.position += items.len() as u64;
        Ok(items)
    }
}

impl<T> Drop for Subscriber<T> {
    fn drop(&mut self) {
        self.shared.seats().leave(self.number);
    }
}
