//! Waiting for what seldom happens beside what happens all the time.
//!
//! A task that is woken for one reason polls everything it waits for, and each of tokio's signals
//! takes a lock then. [`Seldom`] gives what it holds a waker of its own, and polls it only when that
//! one was woken: for an event that has nothing to do with it, it costs a look at a flag (measured:
//! tokio's own were a fourth of the time that a relay spent on an event in its own code).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::stream::Stream;

/// A future or stream that is polled only when it was woken itself.
#[derive(Debug)]
pub struct Seldom<T> {
    inner: T,
    /// Of the task that polled it last, and the same as a waker.
    bell: Option<(Arc<Bell>, Waker)>,
}

#[derive(Debug)]
struct Bell {
    rung: AtomicBool,
    task: Waker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

impl<T: Unpin> Seldom<T> {
    /// Nothing was polled yet, so the first poll comes through.
    #[must_use]
    pub fn new(inner: T) -> Self {
        Self { inner, bell: None }
    }

    /// Polls what is told of by `poll`, which has to leave the waker it is given there, if that was woken.
    pub fn poll_with<O>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<O>,
    ) -> Poll<O> {
        self.poll_if_woken(cx, |_, cx| poll(cx))
    }

    /// Polls with `poll` if it was woken. What is ready may be ready again at once, so it counts as
    /// woken until it is not.
    fn poll_if_woken<O>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut T>, &mut Context<'_>) -> Poll<O>,
    ) -> Poll<O> {
        // A task keeps its waker for life, so it is not handed over anew at each poll.
        if let Some((bell, _)) = &self.bell
            && !bell.task.will_wake(cx.waker())
        {
            self.bell = None;
        }
        let (bell, waker) = self.bell.get_or_insert_with(|| {
            let bell = Arc::new(Bell {
                rung: AtomicBool::new(true),
                task: cx.waker().clone(),
            });
            let waker = Waker::from(Arc::clone(&bell));
            (bell, waker)
        });
        // What rings after this look wakes the task after it.
        if !bell.rung.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        // A swap, so that what the bell was rung for is seen by the poll.
        bell.rung.swap(false, Ordering::AcqRel);
        let polled = poll(Pin::new(&mut self.inner), &mut Context::from_waker(waker));
        if polled.is_ready() {
            bell.rung.store(true, Ordering::Release);
        }
        polled
    }
}

impl<F: Future + Unpin> Future for Seldom<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.poll_if_woken(cx, Future::poll)
    }
}

impl<S: Stream + Unpin> Stream for Seldom<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.poll_if_woken(cx, Stream::poll_next)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures::future::poll_fn;
    use futures::{FutureExt, StreamExt};
    use tokio::sync::watch;

    use super::*;

    #[tokio::test]
    async fn it_is_polled_when_it_was_woken_and_not_otherwise() {
        let (sender, mut receiver) = watch::channel(0);
        let polls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&polls);
        let mut seldom = Seldom::new(Box::pin(async move {
            let mut changed = std::pin::pin!(receiver.wait_for(|value| *value == 2));
            poll_fn(|cx| {
                counted.fetch_add(1, Ordering::Relaxed);
                changed.as_mut().poll(cx).map(|value| *value.unwrap())
            })
            .await
        }));
        for _ in 0..10 {
            assert_eq!((&mut seldom).now_or_never(), None);
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        sender.send_replace(1);
        assert_eq!((&mut seldom).now_or_never(), None);
        assert_eq!(polls.load(Ordering::Relaxed), 2);
        let waiting = tokio::spawn(seldom);
        sender.send_replace(2);
        assert_eq!(waiting.await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_stream_gives_all_that_is_ready() {
        let mut seldom = Seldom::new(futures::stream::iter([1, 2, 3]));
        let all: Vec<i32> = seldom.by_ref().collect().await;
        assert_eq!(all, [1, 2, 3]);
    }
}
