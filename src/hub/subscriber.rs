//! A position in a topic.

use std::sync::Arc;

use tokio::sync::watch;

use super::Shared;

/// Reads a topic at its own pace.
#[derive(Debug)]
pub struct Subscriber<T> {
    shared: Arc<Shared<T>>,
    end: watch::Receiver<u64>,
    position: u64,
}

/// Items between the subscriber's position and the buffer's front are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the subscriber fell out of the buffer")]
pub struct Lagged;

impl<T> Subscriber<T> {
    pub(super) fn new(shared: Arc<Shared<T>>, position: u64) -> Self {
        let end = shared.end.subscribe();
        Self {
            shared,
            end,
            position,
        }
    }

    /// Goes back to `position`, if that is earlier.
    pub fn back_to(&mut self, position: u64) {
        self.position = self.position.min(position);
    }

    /// Waits until there is something to take. Cancel safe.
    pub async fn changed(&mut self) {
        let position = self.position;
        // The sender lives in `shared`, so the wait ends only by an item.
        let _arrived = self.end.wait_for(|end| *end > position).await;
    }
}

impl<T: Clone> Subscriber<T> {
    /// Takes what has come, at most `most` items; empty when there is nothing.
    ///
    /// # Errors
    /// [`Lagged`] for good: this subscriber cannot go on.
    pub fn take(&mut self, most: usize) -> Result<Vec<T>, Lagged> {
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
