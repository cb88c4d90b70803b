//! What is connected, and how far the feed is.
//!
//! Written by the tasks that know (listener, feed, catalogue), read by `/readyz` and by every
//! stream's heartbeat. It names no other room.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// A screen may be told "up to date" this long after the last successful poll. The safety poll
/// runs every second, so three missed ones mean that something is wrong.
pub const FRESH_FOR: Duration = Duration::from_secs(3);

/// The relay is not ready for so long after a connection could not be accepted.
const REFUSING_FOR: Duration = Duration::from_secs(1);

/// The state that the parts report.
#[derive(Debug)]
pub struct Health {
    polled: Mutex<Option<Instant>>,
    fresh: watch::Sender<bool>,
    listener: watch::Sender<bool>,
    catalog: watch::Sender<bool>,
    draining: watch::Sender<bool>,
    refused: watch::Sender<BTreeMap<&'static str, String>>,
    /// When a connection could not be accepted last.
    not_accepted: Mutex<Option<Instant>>,
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
            refused: watch::Sender::new(BTreeMap::new()),
            not_accepted: Mutex::new(None),
        }
    }

    /// A part (`who`) will not work with what it found, and says what that is and what to do about
    /// it; `None` when that is over. While anybody refuses, nothing is fresh.
    pub fn refuse(&self, who: &'static str, why: Option<String>) {
        let refuses = why.is_some();
        self.refused.send_if_modified(|refused| match why {
            None => refused.remove(who).is_some(),
            Some(why) => refused
                .insert(who, why.clone())
                .is_none_or(|old| old != why),
        });
        if refuses {
            self.lost();
        }
    }

    /// Comes true when somebody refuses what it found.
    pub async fn refused(&self) {
        // The sender lives as long as we do.
        let mut refused = self.refused.subscribe();
        let _refused = refused.wait_for(|refused| !refused.is_empty()).await;
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
        *self.fresh.borrow()
            && self.lag().is_some_and(|lag| lag < FRESH_FOR)
            && self.refused.borrow().is_empty()
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

    /// A connection could not be accepted, for want of descriptors or memory.
    pub fn cannot_accept(&self) {
        *self.not_accepted.lock().expect("no panic while held") = Some(Instant::now());
    }

    /// Whether that was a moment ago.
    fn is_refusing(&self) -> bool {
        let refused = *self.not_accepted.lock().expect("no panic while held");
        refused.is_some_and(|at| at.elapsed() < REFUSING_FOR)
    }

    /// Every reason not to be ready; empty means ready.
    #[must_use]
    pub fn unready(&self) -> Vec<String> {
        let mut reasons: Vec<String> = self.refused.borrow().values().cloned().collect();
        let known = [
            (*self.draining.borrow(), "shutting down"),
            (
                !*self.listener.borrow(),
                "the listening connection is not up",
            ),
            (!*self.catalog.borrow(), "the catalogue is not loaded"),
            (self.is_refusing(), "connections cannot be accepted"),
            (
                !self.is_fresh(),
                "the log has not been read for three seconds",
            ),
        ];
        let known = known.into_iter().filter(|(holds, _)| *holds);
        reasons.extend(known.map(|(_, reason)| reason.to_owned()));
        reasons
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_refuses_makes_the_relay_unready_until_it_is_over() {
        let health = Health::new();
        health.set_listener(true);
        health.set_catalog();
        health.polled();
        assert!(health.is_fresh() && health.unready().is_empty());
        health.refuse("feed", Some("a standby".into()));
        health.polled();
        assert!(!health.is_fresh());
        assert_eq!(health.unready()[0], "a standby");
        health.refuse("feed", None);
        assert!(health.is_fresh() && health.unready().is_empty());
    }
}
