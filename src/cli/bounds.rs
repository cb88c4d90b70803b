//! What clients may take, from settings and from what the system allows.

use std::sync::Arc;

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::sync::watch;

use crate::admission::{self, Cut};
use crate::config::Bounds;
use crate::health::Health;
use crate::http::server::{Incident, Limits, Observer};
use crate::memory::{self, Budget, Pressure};
use crate::metrics::{Metrics, Reason};
use crate::rows::execute::LARGEST;
use crate::share;
use crate::shutdown::Shutdown;

/// Open files that are no connections of clients: those to the database, listeners, logs.
const OTHER_FILES: u64 = 64;

/// The server's limits. As many files may be open as the system's administrator allows: what a
/// program gets without asking, often 1,024, is meant for programs that watch descriptors by
/// `select`.
pub(super) fn limits(bounds: &Bounds) -> Limits {
    let mut files = getrlimit(Resource::Nofile);
    if files.current < files.maximum || files.maximum.is_none() {
        let raised = rustix::process::Rlimit {
            current: files.maximum,
            maximum: files.maximum,
        };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            files = raised;
        }
    }
    let wanted = match bounds.max_connections {
        0 => usize::MAX,
        wanted => wanted,
    };
    let possible = files.current.map_or(usize::MAX, |files| {
        usize::try_from(files.saturating_sub(OTHER_FILES).max(16)).unwrap_or(usize::MAX)
    });
    if possible < wanted && bounds.max_connections > 0 {
        tracing::info!(
            wanted,
            possible,
            "the system allows fewer open files than there may be connections"
        );
    }
    Limits {
        // The most that a semaphore counts.
        connections: wanted
            .min(possible)
            .min(tokio::sync::Semaphore::MAX_PERMITS),
        ..Limits::default()
    }
}

/// The limits of streams, which leave some connections to those who read and write.
pub(super) fn streams(bounds: &Bounds, connections: usize) -> admission::Limits {
    let most = connections - connections / 10;
    admission::Limits {
        total: match bounds.max_streams {
            0 => most,
            streams => streams,
        },
        per_user: bounds.max_streams_per_user,
        per_address: bounds.max_streams_per_address,
    }
}

/// Counts what the server meets.
pub(super) fn observer(metrics: &Arc<Metrics>, health: &Arc<Health>) -> Observer {
    let (metrics, health) = (Arc::clone(metrics), Arc::clone(health));
    Arc::new(move |incident| {
        let refused = |reason| {
            let refused = &metrics.refused_connections;
            refused.get_or_create(&Reason { reason }).inc();
        };
        match incident {
            Incident::Opened => {
                metrics.connections.inc();
            }
            Incident::Closed => {
                metrics.connections.dec();
            }
            Incident::NotAccepted => {
                health.cannot_accept();
                refused("descriptors");
            }
            Incident::Full => refused("full"),
            Incident::Silent => refused("silent"),
            Incident::Stalled { events: true } => dropped(&metrics, "stalled", 1),
            Incident::Stalled { events: false } => {}
            Incident::Panicked => {
                metrics.panics.inc();
            }
        }
    })
}

/// Counts streams that were cut.
pub(super) fn count(metrics: &Metrics, cut: Cut) {
    dropped(metrics, "stalled", cut.stalled);
    dropped(metrics, "memory", cut.memory);
    if cut.answers > 0 {
        tracing::debug!(
            cut.answers,
            "answers were cut that their clients took too slowly"
        );
    }
    if cut.memory > 0 {
        tracing::warn!(cut.memory, "streams were cut for want of memory");
    }
}

fn dropped(metrics: &Metrics, reason: &'static str, streams: usize) {
    let dropped = &metrics.dropped_subscribers;
    let counter = dropped.get_or_create(&Reason { reason });
    counter.inc_by(streams as u64);
}

/// Of the memory that there may be, one in so many bytes is for answers that are not taken yet.
const ANSWERS: u64 = 4;
/// The least of it, which the largest answer fits into, and the most.
const LEAST: u64 = LARGEST as u64;
const MOST: u64 = 1 << 30;

/// What all answers together may take that their clients have not taken yet.
pub(super) fn answers(bounds: &Bounds) -> share::Budget {
    let limit = memory(bounds).map_or(MOST, |memory| memory.limit);
    let bytes = (limit / ANSWERS).clamp(LEAST, MOST);
    share::Budget::new(usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// The memory that there may be.
fn memory(bounds: &Bounds) -> Option<Budget> {
    let given = bounds.memory_limit.map(Budget::of_process);
    given.or_else(Budget::of_group).or_else(Budget::of_machine)
}

/// Watches memory until the stop signal.
pub(super) fn watch_memory(
    bounds: &Bounds,
    pressure: watch::Sender<Pressure>,
    metrics: &Arc<Metrics>,
    shutdown: Shutdown,
) -> impl Future<Output = ()> + Send + 'static {
    let budget = memory(bounds);
    let limit = budget.as_ref().map_or(0, |budget| budget.limit);
    metrics
        .memory_limit
        .set(i64::try_from(limit).unwrap_or(i64::MAX));
    let metrics = Arc::clone(metrics);
    memory::run(budget, pressure, shutdown, move |used| {
        metrics
            .memory_used
            .set(i64::try_from(used).unwrap_or(i64::MAX));
    })
}
