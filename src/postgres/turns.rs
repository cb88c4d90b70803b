//! That one caller leaves connections of a pool to the others.
//!
//! Whoever sends slow requests at once could hold all of them, again and again. [`Turns`] promises that a
//! quarter of the connections is never in the hands of one caller, and that those of whom too many wait do so
//! behind each other and in nobody else's way. It does not know what a connection is.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Callers that are kept before those are looked for who have left.
const MANY: usize = 1000;

/// Who asks, as far as sharing goes. Two of whom the hashes are equal share one part, which hurts nobody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Caller(u64);

impl Caller {
    /// Whoever is of these parts.
    #[must_use]
    pub fn of(parts: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        parts.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// Who has how many.
#[derive(Debug)]
pub(super) struct Turns {
    /// For one caller at most.
    each: usize,
    /// A standard mutex: held for one look-up, but where those are looked for who have left.
    callers: Mutex<Callers>,
}

#[derive(Debug, Default)]
struct Callers {
    parts: HashMap<Caller, Arc<Semaphore>>,
    /// How many there were when those who had left were looked for.
    stayed: usize,
}

/// One connection of a caller's part; dropping it gives that back.
#[derive(Debug)]
pub(super) struct Turn {
    _part: OwnedSemaphorePermit,
}

impl Turns {
    /// Of so many connections. Fewer than four are not divided.
    pub(super) fn new(size: usize) -> Self {
        Self {
            each: size - size / 4,
            callers: Mutex::default(),
        }
    }

    /// Waits until `caller` has fewer than its part.
    pub(super) async fn take(&self, caller: Caller) -> Turn {
        let part = self.part(caller);
        let part = part.acquire_owned().await;
        Turn {
            _part: part.expect("nobody closes it"),
        }
    }

    fn part(&self, caller: Caller) -> Arc<Semaphore> {
        let mut callers = self.callers.lock().expect("nothing panics while held");
        // Not at each call where so many wait: thousands who come back at once would look through each other.
        if callers.parts.len() > MANY.max(2 * callers.stayed) {
            // Who has a connection, or waits for one, holds it too.
            callers.parts.retain(|_, part| Arc::strong_count(part) > 1);
            callers.stayed = callers.parts.len();
        }
        let part = callers.parts.entry(caller);
        Arc::clone(part.or_insert_with(|| Arc::new(Semaphore::new(self.each))))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn one_caller_leaves_a_quarter_to_the_others() {
        for (size, each) in [(1, 1), (3, 3), (4, 3), (8, 6), (10, 8)] {
            let turns = Turns::new(size);
            let (one, other) = (Caller::of("one"), Caller::of("other"));
            let mut held: Vec<_> = (0..each)
                .map(|_| turns.take(one).now_or_never().unwrap())
                .collect();
            assert!(turns.take(one).now_or_never().is_none(), "{size}");
            let _others = turns.take(other).now_or_never().unwrap();
            held.pop();
            held.push(turns.take(one).now_or_never().unwrap());
        }
    }

    #[test]
    fn who_has_left_is_forgotten_and_who_has_not_is_not() {
        let turns = Turns::new(1);
        let _held = turns.take(Caller::of("held")).now_or_never().unwrap();
        for n in 0..=MANY {
            drop(turns.take(Caller::of(n)).now_or_never().unwrap());
        }
        assert!(turns.take(Caller::of("held")).now_or_never().is_none());
        assert!(turns.callers.lock().unwrap().parts.len() < MANY);
    }
}
