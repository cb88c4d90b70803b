//! What is counted of each event at each screen.
//!
//! Millions a second, from every thread: so without a lock, and apart for each thread, put together
//! when somebody reads.

use std::array::from_fn;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

/// Upper bounds of the latencies counted, in microseconds.
const BOUNDS: [u64; 15] = [
    500, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000, 125_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];
/// More threads than this share.
const SHARES: usize = 16;

/// Frames handed to event streams.
#[derive(Debug, Default)]
pub struct Handed([Share; SHARES]);

/// What one thread has counted. No two share a cache line, nor the neighbour that is fetched with it.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Share {
    frames: AtomicU64,
    bytes: AtomicU64,
    /// Sum of all latencies, in microseconds.
    latency: AtomicU64,
    /// The last is of those above all bounds.
    buckets: [AtomicU64; BOUNDS.len() + 1],
}

impl Handed {
    /// A frame of so many bytes was handed over.
    pub fn frame(&self, bytes: usize) {
        let share = self.share();
        share.frames.fetch_add(1, Ordering::Relaxed);
        share.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// An event was handed over so long after the trigger's clock.
    pub fn event(&self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let share = self.share();
        share.latency.fetch_add(micros, Ordering::Relaxed);
        let bucket = BOUNDS.partition_point(|bound| *bound < micros);
        share.buckets[bucket].fetch_add(1, Ordering::Relaxed);
    }

    fn share(&self) -> &Share {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static THREAD: usize = THREADS.fetch_add(1, Ordering::Relaxed) % SHARES);
        &self.0[THREAD.with(|thread| *thread)]
    }

    fn sum(&self, of: impl Fn(&Share) -> &AtomicU64) -> u64 {
        let counts = self.0.iter().map(|share| of(share).load(Ordering::Relaxed));
        counts.fold(0, u64::wrapping_add)
    }
}

/// Tells of what was handed over.
#[derive(Debug)]
pub(super) struct Told(pub std::sync::Arc<Handed>);

impl Collector for Told {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let Self(handed) = self;
        let mut counter = |name, help, count| {
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(count).encode(encoder)
        };
        counter(
            "rowcast_events",
            "Events handed to event streams",
            handed.sum(|share| &share.frames),
        )?;
        counter(
            "rowcast_event_bytes",
            "Bytes handed to event streams",
            handed.sum(|share| &share.bytes),
        )?;
        let mut encoder = encoder.encode_descriptor(
            "rowcast_commit_to_write_seconds",
            "From the trigger's clock in the writing transaction to the frame's hand-over to HTTP",
            None,
            MetricType::Histogram,
        )?;
        let counts: [u64; BOUNDS.len() + 1] = from_fn(|at| handed.sum(|share| &share.buckets[at]));
        let seconds = |micros: u64| Duration::from_micros(micros).as_secs_f64();
        let bounds = BOUNDS
            .iter()
            .map(|bound| seconds(*bound))
            .chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let sum = seconds(handed.sum(|share| &share.latency));
        encoder.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &buckets, None)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn what_several_threads_count_is_told_together() {
        let handed = Arc::new(Handed::default());
        std::thread::scope(|scope| {
            for _ in 0..SHARES + 2 {
                scope.spawn(|| {
                    handed.frame(100);
                    handed.event(Duration::from_micros(500));
                    handed.event(Duration::from_micros(1500));
                    handed.event(Duration::from_mins(1));
                });
            }
        });
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Told(handed)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "rowcast_events_total 18",
            "rowcast_event_bytes_total 1800",
            "rowcast_commit_to_write_seconds_count 54",
            "rowcast_commit_to_write_seconds_bucket{le=\"0.0005\"} 18",
            "rowcast_commit_to_write_seconds_bucket{le=\"0.001\"} 18",
            "rowcast_commit_to_write_seconds_bucket{le=\"0.002\"} 36",
            "rowcast_commit_to_write_seconds_bucket{le=\"10.0\"} 36",
            "rowcast_commit_to_write_seconds_bucket{le=\"+Inf\"} 54",
        ] {
            assert!(text.lines().any(|told| told == line), "{line}\n{text}");
        }
        assert!(
            text.contains("rowcast_commit_to_write_seconds_sum 1080.036"),
            "{text}"
        );
    }
}
