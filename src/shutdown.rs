//! One stop signal.
//!
//! A [`Shutdown`] is cloned into every task. It promises that a task which waits on
//! [`Shutdown::begun`] hears the signal however late it starts to wait. Whoever has spawned a task waits for its end.
//! One that somebody has for himself ends with him instead ([`AbortOnDrop`]). It knows nothing of what stops.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The signal. Clones share it.
#[derive(Clone, Debug)]
pub struct Shutdown {
    stage: Arc<watch::Sender<Option<Duration>>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    /// A signal that has not been given.
    #[must_use]
    pub fn new() -> Self {
        Self {
            stage: Arc::new(watch::Sender::new(None)),
        }
    }

    /// Gives the signal. `grace` is the period over which streams spread their ends.
    pub fn begin(&self, grace: Duration) {
        self.stage.send_if_modified(|stage| {
            let first = stage.is_none();
            if first {
                *stage = Some(grace);
            }
            first
        });
    }

    /// Whether the signal was given.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.stage.borrow().is_some()
    }

    /// Waits for the signal and returns its grace period.
    pub async fn begun(&self) -> Duration {
        let mut stage = self.stage.subscribe();
        // The sender lives in `self`, so waiting cannot fail before the signal is given.
        let grace = stage.wait_for(Option::is_some).await.ok();
        grace.and_then(|grace| *grace).unwrap_or_default()
    }
}

/// A task of whoever holds this, such as the one that drives a connection: dropping it stops the task.
#[derive(Debug)]
pub struct AbortOnDrop<T>(pub JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
