//! Jittered exponential delay. "Full jitter": any delay between zero and the current ceiling is
//! equally likely, so that relays which lost the same database do not return in step.

use std::time::Duration;

/// Reasons that are remembered as told: some change with each attempt.
const TOLD: usize = 8;

/// The next delays to wait. Starts at a ceiling of 100 ms and doubles it up to 400 ms: screens
/// wait on the other end, and must be fresh within a second of the database's return.
#[derive(Debug)]
pub struct Backoff {
    ceiling: Duration,
    /// Reasons of failures since the last success.
    told: Vec<String>,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const LAST: Duration = Duration::from_millis(400);

    /// A backoff at its lowest ceiling.
    #[must_use]
    pub fn new() -> Self {
        Self {
            ceiling: Self::FIRST,
            told: Vec::new(),
        }
    }

    /// Forgets past failures. Call it after a success.
    pub fn reset(&mut self) {
        self.ceiling = Self::FIRST;
        self.told.clear();
    }

    /// Whether nothing has failed for this reason since the last success. The first time is worth telling, and
    /// repetitions are not; but what ended a connection is seldom what keeps the next one from being made. Numbers
    /// make no other reason: by how many seconds a certificate is too old changes with each attempt.
    #[must_use]
    pub fn is_news(&mut self, reason: &str) -> bool {
        let reason = reason.replace(|c: char| c.is_ascii_digit(), "");
        if self.told.len() >= TOLD || self.told.contains(&reason) {
            return false;
        }
        self.told.push(reason);
        true
    }

    /// The next delay.
    pub fn delay(&mut self) -> Duration {
        let delay = self.ceiling.mul_f64(fastrand::f64());
        self.ceiling = (self.ceiling * 2).min(Self::LAST);
        // A tenth of the first ceiling at least: never a busy loop.
        delay.max(Self::FIRST / 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_stay_between_ten_and_four_hundred_milliseconds() {
        let mut backoff = Backoff::new();
        for _ in 0..1000 {
            let delay = backoff.delay();
            assert!(delay >= Duration::from_millis(10) && delay <= Backoff::LAST);
        }
        backoff.reset();
        assert!(backoff.delay() <= Backoff::FIRST);
    }

    #[test]
    fn each_reason_is_news_once_and_again_after_a_success() {
        let mut backoff = Backoff::new();
        assert!(backoff.is_news("closed") && backoff.is_news("wrong password"));
        assert!(!backoff.is_news("closed") && !backoff.is_news("wrong password"));
        assert!(backoff.is_news("expired 9 s ago") && !backoff.is_news("expired 10 s ago"));
        let news = (0..1000).filter(|n| backoff.is_news(&"x".repeat(*n)));
        assert_eq!(news.count(), TOLD - 3);
        backoff.reset();
        assert!(backoff.is_news("closed"));
    }
}
