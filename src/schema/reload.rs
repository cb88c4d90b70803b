//! Reads the catalogue anew whenever somebody says that definitions changed.
//!
//! Promises that the last word of a burst is heard, and that a burst costs a few reads: one at its
//! front, so that a single `create table` is seen at once, and one when it is over. While reads fail
//! the old catalogue serves. It does not know who says so.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::catalog::Handle;
use crate::backoff::Backoff;
use crate::causes::Causes;
use crate::shutdown::Shutdown;

/// A burst is over when nobody has said anything for so long.
const QUIET: Duration = Duration::from_millis(100);
/// A burst that does not end is heard this often.
const LONGEST: Duration = Duration::from_secs(1);

/// Reads the catalogue whenever `changed` is notified, until the stop signal.
pub async fn run(catalog: Arc<Handle>, changed: Arc<Notify>, shutdown: Shutdown) {
    tokio::select! {
        () = async { shutdown.begun().await; } => {}
        () = listen(&changed, || reload(&catalog)) => {}
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

async fn reload(catalog: &Handle) {
    let mut backoff = Backoff::new();
    while let Err(error) = catalog.reload().await {
        warn!(
            error = %Causes(&error),
            "the catalogue could not be read; the old one serves"
        );
        tokio::time::sleep(backoff.delay()).await;
    }
    info!("the catalogue was read");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Notifies at these times; returns when it was read.
    async fn reads(said: &[u64], takes: Duration) -> Vec<u64> {
        let (changed, begun) = (Notify::new(), Instant::now());
        let times = std::sync::Mutex::new(Vec::new());
        let reload = || {
            let now = u64::try_from(begun.elapsed().as_millis()).unwrap();
            times.lock().unwrap().push(now);
            tokio::time::sleep(takes)
        };
        let say = async {
            for at in said {
                tokio::time::sleep_until(begun + Duration::from_millis(*at)).await;
                changed.notify_one();
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        };
        tokio::select! {
            () = listen(&changed, reload) => {}
            () = say => {}
        }
        times.into_inner().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn one_change_is_read_at_once_and_once() {
        assert_eq!(reads(&[7], Duration::ZERO).await, [7]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_read_at_its_front_and_at_its_end() {
        let burst: Vec<u64> = (0..50).map(|n| n * 10).collect();
        assert_eq!(reads(&burst, Duration::ZERO).await, [0, 590]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_during_a_read_is_read_afterwards() {
        assert_eq!(reads(&[0, 20], Duration::from_millis(50)).await, [0, 150]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_without_an_end_is_read_all_the_same() {
        let endless: Vec<u64> = (0..300).map(|n| n * 10).collect();
        let reads = reads(&endless, Duration::ZERO).await;
        assert!((4..10).contains(&reads.len()), "{reads:?}");
    }
}
