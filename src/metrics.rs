//! Counters and their text. It names no other room.

mod handed;
mod process;

use std::sync::Mutex;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use handed::{Handed, Told};

/// Why something was counted. The set of reasons is fixed in the code, so it is a bounded label.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Reason {
    /// One or two words.
    pub reason: &'static str,
}

/// How a resume was answered, `ring`, `log` or `reset`; or a question of a view.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Answer {
    /// Where the history came from.
    pub result: &'static str,
}

/// One HTTP exchange, by the names of OpenTelemetry's `http.server.request.duration`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Exchange {
    /// The request's method; `_OTHER` for methods HTTP does not define.
    pub http_request_method: &'static str,
    /// The route's pattern, never the path.
    pub http_route: &'static str,
    /// The response's status.
    pub http_response_status_code: u16,
}

/// Which pool of connections.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PoolName {
    pool: &'static str,
}

/// How a pool of connections is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolState {
    /// Connections that are open and idle, or may be opened.
    pub available: usize,
    /// Who waits for one.
    pub waiting: usize,
    /// Most connections at once.
    pub max: usize,
    /// How often somebody has waited in vain.
    pub timeouts: u64,
}

/// Asks a pool.
pub type AskPool = Box<dyn Fn() -> PoolState + Send + Sync>;

/// One number of a pool.
type Figure = fn(&PoolState) -> usize;

/// Pools, asked when somebody reads the counters.
#[derive(Default)]
struct Pools(Mutex<Vec<(PoolName, AskPool)>>);

impl std::fmt::Debug for Pools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pools")
    }
}

impl Collector for Pools {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let pools = self.0.lock().expect("no panic while held");
        let states: Vec<_> = pools.iter().map(|(name, ask)| (*name, ask())).collect();
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let gauges: [(&str, &str, Figure); 3] = [
            (
                "rowcast_db_pool_available",
                "Database connections that are idle or may be opened",
                |state| state.available,
            ),
            (
                "rowcast_db_pool_waiting",
                "Requests that wait for a database connection",
                |state| state.waiting,
            ),
            (
                "rowcast_db_pool_max",
                "Most database connections at once",
                |state| state.max,
            ),
        ];
        for (name, help, of) in gauges {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (pool, state) in &states {
                let gauge = ConstGauge::new(count(of(state)));
                gauge.encode(family.encode_family(pool)?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "rowcast_db_pool_timeouts",
            "Waits for a database connection that were given up",
            None,
            MetricType::Counter,
        )?;
        for (pool, state) in &states {
            let counter = ConstCounter::new(state.timeouts);
            counter.encode(family.encode_family(pool)?)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct SharedPools(std::sync::Arc<Pools>);

impl Collector for SharedPools {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }
}

/// The buckets that OpenTelemetry advises for `http.server.request.duration`.
fn exchange_histogram() -> Histogram {
    Histogram::new([
        0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    ])
}

/// Everything that is counted. Each field says what it counts in the text given to [`Registry`].
#[derive(Debug)]
#[allow(missing_docs, reason = "each field is told by its help text below")]
pub struct Metrics {
    registry: Registry,
    pools: std::sync::Arc<Pools>,
    pub subscribers: Gauge,
    pub subscriptions: Counter,
    pub handed: std::sync::Arc<Handed>,
    pub refused_streams: Family<Reason, Counter>,
    pub dropped_subscribers: Family<Reason, Counter>,
    pub resumes: Family<Answer, Counter>,
    pub resets: Family<Reason, Counter>,
    pub asked: Family<Answer, Counter>,
    pub polls: Counter,
    pub log_rows: Counter,
    pub listener_connected: Gauge,
    pub listener_reconnects: Counter,
    pub notify_queue_usage: Gauge<f64, std::sync::atomic::AtomicU64>,
    pub connections: Gauge,
    pub refused_connections: Family<Reason, Counter>,
    pub panics: Counter,
    pub memory_used: Gauge,
    pub memory_limit: Gauge,
    pub bell_leader: Gauge,
    pub bell_awake: Gauge,
    pub bell_switches: Family<Reason, Counter>,
    pub catalog_loads: Counter,
    pub log_kept_rows: Gauge,
    pub log_kept_bytes: Gauge,
    pub log_file_bytes: Gauge,
    pub log_reach: Gauge<f64, std::sync::atomic::AtomicU64>,
    pub log_trimmed_rows: Counter,
    pub log_trimmed_early: Counter,
    pub oldest_transaction: Gauge<f64, std::sync::atomic::AtomicU64>,
    pub drift: Counter,
    pub http_requests: Family<Exchange, Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All counters at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let handed = std::sync::Arc::<Handed>::default();
        registry.register_collector(Box::new(Told(std::sync::Arc::clone(&handed))));
        let http_requests = Family::new_with_constructor(exchange_histogram as fn() -> Histogram);
        let pools = std::sync::Arc::new(Pools::default());
        registry.register_collector(Box::new(SharedPools(std::sync::Arc::clone(&pools))));
        registry.register_collector(Box::new(process::Process));
        registry.register(
            "rowcast_build",
            "The running version",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        macro_rules! counted {
            ($($field:ident: $kind:ty, $name:literal, $help:literal;)*) => {
                $(let $field = <$kind>::default();
                  registry.register($name, $help, $field.clone());)*
                registry.register(
                    "http_server_request_duration_seconds",
                    "Duration of requests; event streams are not counted",
                    http_requests.clone(),
                );
                let metrics = Self { registry, pools, handed, http_requests, $($field),* };
                metrics.begin_at_zero();
                metrics
            };
        }
        counted! {
            subscribers: Gauge, "rowcast_subscribers", "Open event streams";
            subscriptions: Counter, "rowcast_subscriptions", "Event streams opened";
            refused_streams: Family<Reason, Counter>, "rowcast_refused_streams", "Event streams that got no place: total, user, address or memory";
            dropped_subscribers: Family<Reason, Counter>, "rowcast_dropped_subscribers", "Event streams ended by the relay";
            resumes: Family<Answer, Counter>, "rowcast_resumes", "Event streams that brought a token, by where their history came from";
            resets: Family<Reason, Counter>, "rowcast_resets", "Resets sent to screens";
            asked: Family<Answer, Counter>, "rowcast_asked", "Questions to the database of views that ask it: told, anew (the state is read again), failed, or later (the round has taken long enough)";
            polls: Counter, "rowcast_polls", "Reads of the log";
            log_rows: Counter, "rowcast_log_rows", "Rows read from the log";
            listener_connected: Gauge, "rowcast_listener_connected", "1 while the listening connection is up";
            listener_reconnects: Counter, "rowcast_listener_reconnects", "Times the listening connection was made anew";
            notify_queue_usage: Gauge<f64, std::sync::atomic::AtomicU64>, "rowcast_notify_queue_usage_ratio", "pg_notification_queue_usage()";
            connections: Gauge, "rowcast_connections", "Open connections of clients";
            refused_connections: Family<Reason, Counter>, "rowcast_refused_connections", "Connections that were not served: full (as many as allowed), descriptors (none left) or silent (no request in time)";
            panics: Counter, "rowcast_panics", "Exchanges that ended by a mistake of ours";
            memory_used: Gauge, "rowcast_memory_used_bytes", "Memory in use, measured where the limit is set";
            memory_limit: Gauge, "rowcast_memory_limit_bytes", "The limit that 90 and 95 % are taken of; 0 without one";
            bell_leader: Gauge, "rowcast_bell_leader", "1 while this relay reads for all when much is committed";
            bell_awake: Gauge, "rowcast_bell_awake", "1 while this relay reads without waiting for bells, so that writers need not ring";
            bell_switches: Family<Reason, Counter>, "rowcast_bell_switches", "Times this relay went awake or idle";
            catalog_loads: Counter, "rowcast_schema_cache_loads", "Times the catalogue was read";
            log_kept_rows: Gauge, "rowcast_log_kept_rows", "Rows in the log as of the last tick";
            log_kept_bytes: Gauge, "rowcast_log_kept_bytes", "Bytes of changes in the log as of the last tick; what --log-size bounds";
            log_file_bytes: Gauge, "rowcast_log_file_bytes", "What the log takes on disk, dead rows and index included";
            log_reach: Gauge<f64, std::sync::atomic::AtomicU64>, "rowcast_log_oldest_cursor_age_seconds", "Age of the oldest token from which the log can still be read";
            log_trimmed_rows: Counter, "rowcast_log_trimmed_rows", "Log rows deleted by this relay";
            log_trimmed_early: Counter, "rowcast_log_trimmed_early", "Times this relay trimmed the log for its size, before the retention was over";
            oldest_transaction: Gauge<f64, std::sync::atomic::AtomicU64>, "rowcast_oldest_transaction_age_seconds", "Age of the oldest open transaction that keeps rows from being trimmed or space from being given back";
            drift: Counter, "rowcast_drift", "Findings of the drift check";
        }
    }

    /// Names every reason and result. A counter that first appears at one has not risen, as far as whoever
    /// reads it can tell, and an alarm would sleep through the first event of its kind.
    fn begin_at_zero(&self) {
        for (counters, reasons) in [
            (
                &self.refused_streams,
                &["total", "user", "address", "memory"][..],
            ),
            (
                &self.dropped_subscribers,
                &[
                    "expired",
                    "lagged",
                    "memory",
                    "shutdown",
                    "stalled",
                    "unavailable",
                ],
            ),
            (&self.resets, &["epoch", "log", "table"]),
            (
                &self.refused_connections,
                &["full", "descriptors", "silent"],
            ),
            (&self.bell_switches, &["awake", "idle"]),
        ] {
            for &reason in reasons {
                drop(counters.get_or_create(&Reason { reason }));
            }
        }
        for (counters, results) in [
            (&self.resumes, &["ring", "log", "reset"][..]),
            (&self.asked, &["told", "anew", "failed", "later"]),
        ] {
            for &result in results {
                drop(counters.get_or_create(&Answer { result }));
            }
        }
    }

    /// Shows a pool from now on.
    pub fn show_pool(&self, pool: &'static str, ask: AskPool) {
        let mut pools = self.pools.0.lock().expect("no panic while held");
        pools.push((PoolName { pool }, ask));
    }

    /// The `OpenMetrics` text.
    ///
    /// # Errors
    /// Only if the formatter refuses to write to a string.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
