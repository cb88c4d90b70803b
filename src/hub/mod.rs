//! From one publisher to many subscribers.
//!
//! A [`Topic`] keeps the latest items in one bounded [`buffer`](self) and each [`Subscriber`] a
//! position in it: a slow subscriber costs a position, not memory, and what everybody has taken is
//! dropped. One that falls out of the buffer is told so ([`Lagged`]) and never skips in silence.
//! Generic over what it carries: it knows nothing of HTTP, event streams or SQL.
//!
//! Waking is our own and not a `tokio::sync::watch`: that one takes and gives back a place in a list,
//! under a lock, for every subscriber and item. Here a subscriber has its seat for life.

mod buffer;
mod seats;
mod subscriber;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use buffer::Buffer;
use seats::Seats;
pub use subscriber::{Lagged, Subscriber};

/// How much a topic keeps for subscribers that are behind.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Items.
    pub items: usize,
    /// Sum of the weights given to [`Topic::publish`].
    pub weight: usize,
}

/// A stream of items with a bounded past. Cheap to clone; clones are the same topic.
#[derive(Debug)]
pub struct Topic<T> {
    shared: Arc<Shared<T>>,
}

#[derive(Debug)]
struct Shared<T> {
    /// A standard mutex: held for a push, or for copying the items one subscriber takes, never
    /// across an await.
    buffer: Mutex<Buffer<T>>,
    /// The position after the latest item. Changed under the lock of the buffer.
    end: AtomicU64,
    /// Everything before it had been taken by all at the latest item.
    taken: AtomicU64,
    /// A lock of its own: who is woken goes to the buffer while others are still being woken.
    seats: Mutex<Seats>,
}

impl<T> Clone for Topic<T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<T: Clone> Topic<T> {
    /// An empty topic.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        let shared = Shared {
            buffer: Mutex::new(Buffer::new(bounds)),
            end: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            seats: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Appends an item and wakes everybody.
    pub fn publish(&self, item: T, weight: usize) {
        let mut buffer = self.shared.lock();
        let end = buffer.push(item, weight);
        buffer.forget(self.shared.taken.load(Ordering::Relaxed));
        self.shared.end.store(end, Ordering::SeqCst);
        drop(buffer);
        let taken = self.shared.seats().call();
        // With nobody there, whoever comes begins after it.
        self.shared
            .taken
            .store(taken.unwrap_or(end), Ordering::Relaxed);
    }

    /// The position after the latest item.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.shared.end()
    }

    /// A subscriber of everything that comes from now on.
    #[must_use]
    pub fn subscribe(&self) -> Subscriber<T> {
        self.subscribe_at(self.end())
    }

    /// A subscriber of everything from `position` on. If that is no longer kept, it is lagged.
    #[must_use]
    pub fn subscribe_at(&self, position: u64) -> Subscriber<T> {
        Subscriber::new(Arc::clone(&self.shared), position)
    }

    /// How many subscribers there are.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        self.shared.seats().taken()
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Buffer<T>> {
        self.buffer
            .lock()
            .expect("nothing panics while holding the buffer")
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats
            .lock()
            .expect("nothing panics while holding the seats")
    }

    fn end(&self) -> u64 {
        self.end.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        items: 3,
        weight: 100,
    };

    #[tokio::test]
    async fn everybody_gets_everything_in_order() {
        let topic = Topic::new(BOUNDS);
        let (mut early, mut late) = (topic.subscribe(), topic.subscribe());
        topic.publish(1, 1);
        early.changed().await;
        assert_eq!(early.take(10).unwrap(), [1]);
        topic.publish(2, 1);
        topic.publish(3, 1);
        assert_eq!(early.take(1).unwrap(), [2]);
        assert_eq!(early.take(10).unwrap(), [3]);
        assert_eq!(late.take(10).unwrap(), [1, 2, 3]);
        assert_eq!(late.take(10).unwrap(), Vec::<i32>::new());
    }

    #[test]
    fn a_slow_subscriber_is_told_and_never_skips() {
        let topic = Topic::new(BOUNDS);
        let mut slow = topic.subscribe();
        for item in 0..4 {
            topic.publish(item, 1);
        }
        assert_eq!(slow.take(10), Err(Lagged));
        let mut slow = topic.subscribe_at(1);
        assert_eq!(slow.take(10).unwrap(), [1, 2, 3]);
    }

    #[test]
    fn weight_bounds_the_buffer_but_never_the_latest_item() {
        let topic = Topic::new(BOUNDS);
        let mut subscriber = topic.subscribe();
        topic.publish("wide", 1000);
        assert_eq!(subscriber.take(10).unwrap(), ["wide"]);
        topic.publish("a", 60);
        topic.publish("b", 60);
        assert_eq!(topic.subscribe_at(1).take(10), Err(Lagged));
        assert_eq!(subscriber.take(10), Err(Lagged));
    }

    #[test]
    fn going_back_never_skips_what_was_not_taken() {
        let topic = Topic::new(BOUNDS);
        let mut subscriber = topic.subscribe();
        topic.publish(1, 1);
        subscriber.back_to(topic.end());
        assert_eq!(subscriber.take(10).unwrap(), [1]);
        subscriber.back_to(0);
        assert_eq!(subscriber.take(10).unwrap(), [1]);
    }

    #[tokio::test]
    async fn what_everybody_has_taken_is_dropped_and_what_one_has_not_is_kept() {
        let topic = Topic::new(Bounds {
            items: 100,
            weight: 100,
        });
        let (mut quick, slow) = (topic.subscribe(), topic.subscribe());
        let kept = |from| topic.shared.lock().from(from).map(Iterator::count);
        for item in 0..3 {
            topic.publish(item, 1);
            quick.changed().await;
            assert_eq!(quick.take(10).unwrap(), [item]);
        }
        assert_eq!(kept(0), Some(3));
        drop(slow);
        // Known at one item, done at the next.
        topic.publish(3, 1);
        topic.publish(4, 1);
        assert_eq!((kept(2), kept(3)), (None, Some(2)));
        assert_eq!(quick.take(10).unwrap(), [3, 4]);
        topic.publish(5, 1);
        topic.publish(6, 1);
        assert_eq!((kept(4), kept(5)), (None, Some(2)));
        assert_eq!(quick.take(10).unwrap(), [5, 6]);
    }

    #[tokio::test]
    async fn what_came_before_the_wait_does_not_get_lost() {
        let topic = Topic::new(BOUNDS);
        let mut subscriber = topic.subscribe();
        topic.publish(1, 1);
        subscriber.changed().await;
        assert_eq!(topic.subscribers(), 1);
        drop(subscriber);
        assert_eq!(topic.subscribers(), 0);
    }
}
