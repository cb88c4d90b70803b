//! Jittered exponential delay. "Full jitter": any delay between zero and the current ceiling is
//! equally likely, so that relays which lost the same database do not return in step.

use std::time::Duration;

/// The next delays to wait. Starts at a ceiling of 100 ms and doubles it up to 400 ms: screens
/// wait on the other end, and must be fresh within a second of the database's return.
#[derive(Debug)]
pub struct Backoff {
    ceiling: Duration,
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
        }
    }

    /// Forgets past failures. Call it after a success.
    pub fn reset(&mut self) {
        self.ceiling = Self::FIRST;
    }

    /// Whether nothing has failed since the last success: a first failure is worth telling, its
    /// repetitions are not.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.ceiling == Self::FIRST
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
}
