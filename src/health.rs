//! What is connected, and how far the feed is.
//!
//! Written by the tasks that know (listener, feed, catalogue), read by `/readyz` and by every
//! stream's heartbeat. It names no other room.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// A screen may be told "up to date" this long after the last successful poll. The safety poll
/// runs every second, so three missed ones mean that something is wrong.
pub const FRESH_FOR: Duration = Duration::from_secs(3);

/// The state that the parts report.
#[derive(Debug)]
pub struct Health {
    polled: Mutex<Option<Instant>>,
    fresh: watch::Sender<bool>,
    listener: watch::Sender<bool>,
    catalog: watch::Sender<bool>,
    draining: watch::Sender<bool>,
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// Nothing is connected yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            polled: Mutex::new(None),
            fresh: watch::Sender::new(false),
            listener: watch::Sender::new(false),
            catalog: watch::Sender::new(false),
            draining: watch::Sender::new(false),
        }
    }

    /// The feed has read the log up to now.
    pub fn polled(&self) {
        *self.polled.lock().expect("no panic while held") = Some(Instant::now());
        self.fresh
            .send_if_modified(|fresh| !std::mem::replace(fresh, true));
    }

    /// The feed has lost the log.
    pub fn lost(&self) {
        self.fresh
            .send_if_modified(|fresh| std::mem::replace(fresh, false));
    }

    /// Follows whether the feed has the log in hand. Changes wake streams, so that a screen hears
    /// of a loss at once and not at its next heartbeat.
    #[must_use]
    pub fn watch_fresh(&self) -> watch::Receiver<bool> {
        self.fresh.subscribe()
    }

    /// Time since the log was last read to its end; `None` before the first time.
    #[must_use]
    pub fn lag(&self) -> Option<Duration> {
        self.polled
            .lock()
            .expect("no panic while held")
            .map(|at| at.elapsed())
    }

    /// Whether a screen may be told that it is up to date.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        *self.fresh.borrow() && self.lag().is_some_and(|lag| lag < FRESH_FOR)
    }

    /// The listening connection came or went.
    pub fn set_listener(&self, connected: bool) {
        self.listener.send_replace(connected);
    }

    /// A catalogue was loaded.
    pub fn set_catalog(&self) {
        self.catalog.send_replace(true);
    }

    /// Shutdown has begun: not ready any more.
    pub fn set_draining(&self) {
        self.draining.send_replace(true);
    }

    /// Every reason not to be ready; empty means ready.
    #[must_use]
    pub fn unready(&self) -> Vec<&'static str> {
        let mut reasons = Vec::new();
        if *self.draining.borrow() {
            reasons.push("shutting down");
        }
        if !*self.listener.borrow() {
            reasons.push("the listening connection is not up");
        }
        if !*self.catalog.borrow() {
            reasons.push("the catalogue is not loaded");
        }
        if !self.is_fresh() {
            reasons.push("the log has not been read for three seconds");
        }
        reasons
    }
}
