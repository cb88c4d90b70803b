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

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use buffer::Buffer;
use seats::{Seat, Seats};
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

/// Takes what comes for a subscriber that waits, where that costs less than to wake it.
pub trait Taker<T>: Send + Sync {
    /// Takes `item`, once `claim` has moved the subscriber past it; where it does not move, somebody else
    /// has it. Unless all is done then, the subscriber is woken.
    fn take(&self, item: &T, claim: &dyn Fn() -> bool) -> bool;
}

/// Calls in a row before others get their turn: takers may work for microseconds each.
const CALLS: usize = 1024;

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
    seats: Mutex<Seats<T>>,
    /// Something was pushed, and nobody has begun to call since.
    uncalled: AtomicBool,
}

impl<T> Clone for Topic<T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<T> Topic<T> {
    /// The position after the latest item.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.shared.end()
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
            uncalled: AtomicBool::new(false),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Appends an item and calls everybody.
    pub fn publish(&self, item: T, weight: usize) {
        self.push(item, weight);
        self.call();
    }

    /// Appends an item. Whether it is the first since everybody was called, which is to be done.
    pub fn push(&self, item: T, weight: usize) -> bool {
        let shared = &self.shared;
        let mut buffer = shared.lock();
        let end = buffer.push(item, weight);
        buffer.forget(shared.taken.load(Ordering::Relaxed));
        shared.end.store(end, Ordering::SeqCst);
        !shared.uncalled.swap(true, Ordering::AcqRel)
    }

    /// Has whoever waits take what was pushed.
    pub fn call(&self) {
        let mut calls = Calls::begin(&self.shared);
        while calls.go_on() {}
    }

    /// The same, but others get their turn in between.
    pub async fn call_in_turns(&self) {
        let mut calls = Calls::begin(&self.shared);
        while calls.go_on() {
            tokio::task::yield_now().await;
        }
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

/// Everybody is being called.
struct Calls<'a, T> {
    shared: &'a Shared<T>,
    latest: Option<(T, u64)>,
    seats: std::vec::IntoIter<Arc<Seat<T>>>,
    /// Everything before it has been taken by those who were called.
    taken: Option<u64>,
    end: u64,
}

impl<'a, T: Clone> Calls<'a, T> {
    fn begin(shared: &'a Shared<T>) -> Self {
        // What is pushed from here on is called for once more.
        shared.uncalled.store(false, Ordering::SeqCst);
        let buffer = shared.lock();
        let end = buffer.end();
        let latest = buffer.latest().cloned().zip(end.checked_sub(1));
        drop(buffer);
        Self {
            shared,
            latest,
            seats: shared.seats().all().into_iter(),
            taken: None,
            end,
        }
    }

    /// Whether there are more.
    fn go_on(&mut self) -> bool {
        let latest = self.latest.as_ref().map(|(item, at)| (item, *at));
        for seat in self.seats.by_ref().take(CALLS) {
            // Before it is called, and takes more.
            let position = seat.position.load(Ordering::Relaxed);
            let taken = self.taken.map_or(position, |taken| taken.min(position));
            self.taken = Some(taken);
            seat.call(latest);
        }
        if self.seats.len() > 0 {
            return true;
        }
        // With nobody there, whoever comes begins after it.
        let taken = self.taken.unwrap_or(self.end);
        self.shared.taken.store(taken, Ordering::Relaxed);
        false
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Buffer<T>> {
        self.buffer
            .lock()
            .expect("nothing panics while holding the buffer")
    }

    fn seats(&self) -> MutexGuard<'_, Seats<T>> {
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
    use std::task::{Context, Wake, Waker};

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

    /// Takes what is small.
    #[derive(Default)]
    struct Small(Mutex<Vec<u64>>);

    impl Taker<u64> for Small {
        fn take(&self, item: &u64, claim: &dyn Fn() -> bool) -> bool {
            let taken = *item < 10 && claim();
            if taken {
                self.0.lock().unwrap().push(*item);
            }
            taken
        }
    }

    /// Whether it was woken.
    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn a_taker_takes_one_item_for_who_waits_and_who_waits_takes_the_rest() {
        let topic = Topic::new(BOUNDS);
        let taker = Arc::new(Small::default());
        let taken = || std::mem::take(&mut *taker.0.lock().unwrap());
        let mut subscriber = topic.subscribe().with(taker.clone());
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let is_woken = || woken.0.swap(false, Ordering::Relaxed);
        let mut context = Context::from_waker(&waker);

        topic.publish(1, 1);
        assert_eq!(taken(), Vec::<u64>::new(), "nobody waits yet");
        assert_eq!(subscriber.take(10).unwrap(), [1]);

        assert!(subscriber.poll_changed(&mut context).is_pending());
        topic.publish(2, 1);
        topic.publish(3, 1);
        assert_eq!((taken(), is_woken()), (vec![2, 3], false));

        // Two at once are its own to take,
        assert!(topic.push(4, 1));
        assert!(!topic.push(5, 1));
        topic.call_in_turns().await;
        assert_eq!((taken(), is_woken()), (vec![], true));
        assert_eq!(subscriber.take(10).unwrap(), [4, 5]);

        // and so is what the taker leaves, with all behind it.
        assert!(subscriber.poll_changed(&mut context).is_pending());
        topic.publish(60, 1);
        topic.publish(7, 1);
        assert_eq!((taken(), is_woken()), (vec![], true));
        assert_eq!(subscriber.take(10).unwrap(), [60, 7]);
    }

    #[tokio::test]
    async fn others_get_their_turn_while_many_are_called_and_each_of_them_is() {
        let topic = Topic::new(BOUNDS);
        let taker = Arc::new(Small::default());
        let mut context = Context::from_waker(Waker::noop());
        let mut seated = Vec::new();
        for _ in 0..=2 * CALLS {
            let mut subscriber = topic.subscribe().with(taker.clone());
            assert!(subscriber.poll_changed(&mut context).is_pending());
            seated.push(subscriber);
        }
        assert!(topic.push(1, 1));
        let taken = || taker.0.lock().unwrap().len();
        let others = async {
            let mut seen = Vec::new();
            while taken() < seated.len() {
                seen.push(taken());
                tokio::task::yield_now().await;
            }
            seen
        };
        // Polled in this order each time.
        let ((), seen) = futures::join!(topic.call_in_turns(), others);
        assert_eq!(seen, [CALLS, 2 * CALLS]);
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
