//! How many bytes all clients together may keep in the relay.
//!
//! A [`Budget`] is a number of bytes; each body of a request and each answer has a [`Share`] of it,
//! which grows as they do. It promises that all shares together are never more than the budget, what is
//! [`SMALL`] of each left aside, and that nobody waits: who finds no room is told. It does not know
//! what the bytes mean.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Of each share so much is not counted: small ones never suffer from large ones. Shares grow by the
/// same, so that most rows are only added up.
pub const SMALL: usize = 64 * 1024;

/// All clients together keep as much as the relay allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no room for so many bytes")]
pub struct Crowded;

/// What is left for all. Cheap to clone; clones are the same.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Semaphore>);

impl Budget {
    /// Room for so many bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))))
    }

    /// A share that has nothing yet.
    #[must_use]
    pub fn share(&self) -> Share {
        Share {
            budget: self.clone(),
            held: Mutex::default(),
        }
    }
}

/// What one body or answer has taken so far; dropping it gives that back.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    /// A standard mutex: held for an addition, and for a look at the budget now and then.
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    bytes: usize,
    part: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// Takes room for so many more bytes.
    ///
    /// # Errors
    /// [`Crowded`], and everything is given back: of those that grow at once some come to their end.
    ///
    /// # Panics
    /// Never: nothing panics while the share is looked at.
    pub fn grow(&self, bytes: usize) -> Result<(), Crowded> {
        let mut held = self.held.lock().expect("nothing panics while holding it");
        let bytes = held.bytes.saturating_add(bytes);
        let has = held
            .part
            .as_ref()
            .map_or(0, OwnedSemaphorePermit::num_permits);
        let counted = bytes.saturating_sub(SMALL);
        if counted > has {
            let more = counted.next_multiple_of(SMALL) - has;
            let more = u32::try_from(more).ok().and_then(|more| {
                let budget = Arc::clone(&self.budget.0);
                budget.try_acquire_many_owned(more).ok()
            });
            let Some(more) = more else {
                *held = Held::default();
                return Err(Crowded);
            };
            match &mut held.part {
                Some(part) => part.merge(more),
                part => *part = Some(more),
            }
        }
        held.bytes = bytes;
        Ok(())
    }

    /// Gives everything back.
    ///
    /// # Panics
    /// Never: nothing panics while the share is looked at.
    pub fn clear(&self) {
        *self.held.lock().expect("nothing panics while holding it") = Held::default();
    }

    /// Whether there is nothing to give back.
    ///
    /// # Panics
    /// Never: nothing panics while the share is looked at.
    #[must_use]
    pub fn is_small(&self) -> bool {
        let held = self.held.lock().expect("nothing panics while holding it");
        held.part.is_none()
    }
}

/// The same bytes, which keep `what` until all that was made of them is let go.
pub fn keeping<T: Send + Sync + 'static>(bytes: Bytes, what: T) -> Bytes {
    Bytes::from_owner(Kept { bytes, _what: what })
}

struct Kept<T> {
    bytes: Bytes,
    _what: T,
}

impl<T> AsRef<[u8]> for Kept<T> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_small_is_free_and_what_is_let_go_is_there_again() {
        let budget = Budget::new(3 * SMALL);
        let (first, second) = (budget.share(), budget.share());
        first.grow(SMALL).unwrap();
        assert!(first.is_small());
        first.grow(SMALL + 1).unwrap();
        assert!(!first.is_small());
        second.grow(2 * SMALL).unwrap();
        budget.share().grow(SMALL).unwrap();
        assert_eq!(second.grow(SMALL + 1), Err(Crowded));
        // Who is refused is in nobody's way.
        let third = budget.share();
        third.grow(2 * SMALL).unwrap();
        let bytes = keeping(Bytes::from_static(b"abc"), first);
        let piece = bytes.slice(1..2);
        drop(bytes);
        assert_eq!(budget.share().grow(3 * SMALL), Err(Crowded));
        drop(piece);
        budget.share().grow(3 * SMALL).unwrap();
    }
}
