//! Reads the catalogue anew whenever somebody says that definitions changed.
//!
//! Promises that the last word of a burst is heard, and that a burst costs a few reads: one at its
//! front, so that a single `create table` is seen at once, and one when it is over. While reads fail
//! the old catalogue serves. It does not know who says so.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::handle::Handle;
use crate::backoff::Backoff;
use crate::causes::Causes;
use crate::shutdown::Shutdown;

/// A burst is over when nobody has said anything for so long.
const QUIET: Duration = Duration::from_millis(100);
/// A burst that does not end is heard this often.
const LONGEST: Duration = Duration::from_secs(1);

/// Word of definitions that changed.
#[derive(Debug, Default)]
pub struct Word {
    came: Notify,
    is_sure: AtomicBool,
    /// The same word for whoever looks whether watched tables are what they were.
    for_upkeep: Notify,
}

impl Word {
    /// Somebody says that definitions have changed.
    pub fn changed(&self) {
        self.is_sure.store(true, Ordering::SeqCst);
        self.came.notify_one();
        self.for_upkeep.notify_one();
    }

    /// Waits for word that definitions have changed, since this was last waited for.
    pub async fn said(&self) {
        self.for_upkeep.notified().await;
    }

    /// Nobody was listening until now.
    pub fn missed(&self) {
        self.came.notify_one();
    }
}

/// Reads the catalogue whenever there is word, until the stop signal.
pub async fn run(catalog: Arc<Handle>, word: Arc<Word>, shutdown: Shutdown) {
    tokio::select! {
        () = async { shutdown.begun().await; } => {}
        () = listen(&word.came, || reload(&catalog, &word.is_sure)) => {}
    }
}

/// Calls `reload` at the front and at the end of each burst.
async fn listen<F: Future<Output = ()>>(changed: &Notify, reload: impl Fn() -> F) {
    loop {
        changed.notified().await;
        reload().await;
        let front = Instant::now();
        let mut more = false;
        while front.elapsed() < LONGEST && timeout(QUIET, changed.notified()).await.is_ok() {
            more = true;
        }
        if more {
            reload().await;
        }
    }
}

async fn reload(catalog: &Handle, is_sure: &AtomicBool) {
    let mut backoff = Backoff::new();
    loop {
        // Where the first of these fails, the next picture is a new edition all the same.
        let read = if is_sure.swap(false, Ordering::SeqCst) {
            catalog.reload().await
        } else {
            catalog.catch_up().await
        };
        let Err(error) = read else { break };
        let error = Causes(&error).to_string();
        if backoff.is_news(&error) {
            warn!(error, "the catalogue could not be read; the old one serves");
        } else {
            debug!(error, "the catalogue can still not be read");
        }
        tokio::time::sleep(backoff.delay()).await;
    }
    info!("the catalogue was read");
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const STEP: Duration = Duration::from_millis(5);

    /// Says so many times, a step apart, that definitions changed. Returns when it was said last,
    /// and when reads began.
    async fn reads(said: u32, takes: Duration) -> (Instant, Vec<Instant>) {
        let changed = Notify::new();
        let begun = Mutex::new(Vec::new());
        let reload = || {
            begun.lock().unwrap().push(Instant::now());
            tokio::time::sleep(takes)
        };
        let say = async {
            let mut last = Instant::now();
            for _ in 0..said {
                tokio::time::sleep(STEP).await;
                last = Instant::now();
                changed.notify_one();
            }
            tokio::time::sleep(takes * 2 + QUIET * 3).await;
            last
        };
        let last = tokio::select! {
            () = listen(&changed, reload) => unreachable!("it never ends"),
            last = say => last,
        };
        (last, begun.into_inner().unwrap())
    }

    #[tokio::test]
    async fn one_change_is_read_at_once_and_once() {
        let (said, reads) = reads(1, Duration::ZERO).await;
        assert_eq!(reads.len(), 1);
        assert!(reads[0].duration_since(said) < QUIET);
    }

    #[tokio::test]
    async fn a_burst_is_read_at_its_front_and_after_its_end() {
        let (said, reads) = reads(50, Duration::ZERO).await;
        // More than two where the machine holds up the burst itself.
        assert!((2..10).contains(&reads.len()), "{reads:?}");
        assert!(*reads.last().unwrap() > said);
    }

    #[tokio::test]
    async fn what_changes_during_a_read_is_read_afterwards() {
        let (said, reads) = reads(2, STEP * 10).await;
        assert_eq!(reads.len(), 2);
        assert!(reads[1] > said);
    }

    #[tokio::test]
    async fn a_burst_without_an_end_is_read_all_the_same() {
        let (_, reads) = reads(400, Duration::ZERO).await;
        assert!((3..20).contains(&reads.len()), "{reads:?}");
    }
}
