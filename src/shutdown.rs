//! One stop signal, and who is still here.
//!
//! A [`Shutdown`] is cloned into every task. It promises that a task which waits on
//! [`Shutdown::begun`] hears the signal however late it starts to wait, and that
//! [`Shutdown::finished`] returns once every [`Guard`] is gone. A task that somebody has for himself ends with
//! him instead ([`AbortOnDrop`]). It knows nothing of what stops.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The signal. Clones share it.
#[derive(Clone, Debug)]
pub struct Shutdown {
    stage: Arc<watch::Sender<Option<Duration>>>,
    present: Arc<watch::Sender<usize>>,
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
            present: Arc::new(watch::Sender::new(0)),
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

    /// Says that somebody is here; [`Shutdown::finished`] waits until the guard is dropped.
    #[must_use]
    pub fn guard(&self) -> Guard {
        self.present.send_modify(|count| *count += 1);
        Guard {
            present: Arc::clone(&self.present),
        }
    }

    /// Waits until every guard is gone.
    pub async fn finished(&self) {
        let mut present = self.present.subscribe();
        let _all_gone = present.wait_for(|count| *count == 0).await;
    }
}

/// Presence of one task; dropping it says goodbye.
#[derive(Debug)]
pub struct Guard {
    present: Arc<watch::Sender<usize>>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.present.send_modify(|count| *count -= 1);
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
