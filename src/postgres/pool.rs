//! Pooled connections, made so that every session formats values alike.
//!
//! A connection that may be inside a transaction is thrown away, never recycled: measured, one
//! request's COMMIT committed the half-done insert of a cancelled other one. [`Lease`] is how a
//! request takes a connection; it does not know what the request does with it.

use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use deadpool_postgres::{
    ClientWrapper, Connect, Manager, ManagerConfig, Object, RecyclingMethod, Runtime, TimeoutType,
};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_postgres::{Client, Config, Error};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::connect::{CONNECT, Target};
use super::prepared::Prepared;
use super::quote::literal;
use super::turns::{Caller, Turn, Turns};
use crate::mutants::{Mutant, on};

/// Connections of one login. Cheap to clone; clones are the same pool.
#[derive(Clone)]
pub struct Pool {
    connections: deadpool_postgres::Pool,
    timeouts: Arc<AtomicU64>,
    turns: Arc<Turns>,
    /// For cancelling what a dropped lease was running.
    tls: MakeRustlsConnect,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.connections.fmt(f)
    }
}

/// Why no connection could be had.
pub type PoolError = deadpool_postgres::PoolError;

/// Longest wait for a connection: a person at a screen is on the other end.
pub const WAIT: Duration = Duration::from_secs(2);

/// Settings that decide how values become text. The trigger functions carry the same pins, so
/// that reads, snapshots and row images agree byte for byte.
pub const PINS: [(&str, &str); 6] = [
    ("timezone", "UTC"),
    ("datestyle", "ISO"),
    ("intervalstyle", "iso_8601"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
];

/// SQL that sets for a session of the relay's own what a database may have other defaults for. A serializable
/// transaction that reads what others log may make one of theirs fail (measured: with the trim, which looks at all
/// that was logged since the last one), and two relays that begin an epoch at once wait for each other, where
/// serializable ones fail. Where a limit for statements ends the trim, the next one would have more to do. A database
/// that is made to read only, unless somebody says otherwise, is mostly one whose disk is full.
pub const OWN: &str = "set default_transaction_isolation = 'read committed'; \
                       set default_transaction_read_only = off; \
                       set statement_timeout = 0";

/// Has the server end a statement that still waits for a lock when its client is gone. Without it, whoever gives up and
/// connects anew leaves one session after the other behind, until nobody gets a connection any more. Not every
/// operating system can do this; where it cannot, nothing is changed.
pub async fn notice_when_gone(client: &Client) {
    let sql = "set client_connection_check_interval = '1s'";
    let _where_it_can = client.batch_execute(sql).await;
}

/// SQL that sets the [`PINS`] for a session.
#[must_use]
pub fn pinned() -> String {
    PINS.map(|(name, value)| format!("set {name} = {}", literal(value)))
        .join("; ")
}

/// A pool of at most `size` connections, each with the [`PINS`] set. Opens none before the first
/// is asked for.
///
/// # Panics
/// Never: the one thing that the builder refuses is a timeout without a runtime.
#[must_use]
pub fn pool(target: &Target, application_name: &str, size: usize) -> Pool {
    let manager = Manager::from_connect(
        target.config(application_name),
        PinnedConnect {
            target: target.clone(),
            application_name: application_name.to_owned(),
        },
        ManagerConfig {
            // A lease gives back only what is known to be idle, so nothing needs to be asked.
            recycling_method: RecyclingMethod::Fast,
        },
    );
    let connections = deadpool_postgres::Pool::builder(manager)
        .max_size(size)
        .wait_timeout(Some(WAIT))
        .create_timeout(Some(target.patience()))
        .runtime(Runtime::Tokio1)
        .build()
        .expect("a runtime is given");
    Pool {
        connections,
        timeouts: Arc::default(),
        turns: Arc::new(Turns::new(size)),
        tls: target.tls(),
    }
}

impl Pool {
    /// How many connections there are, and how many wait for one.
    #[must_use]
    pub fn status(&self) -> deadpool_postgres::Status {
        self.connections.status()
    }

    /// How often somebody has waited in vain for a connection.
    #[must_use]
    pub fn timeouts(&self) -> u64 {
        self.timeouts.load(Ordering::Relaxed)
    }
}

/// Opens a connection and pins its settings. Not a `post_create` hook: deadpool puts no time
/// limit on hooks, and a server may fall silent at any byte.
struct PinnedConnect {
    target: Target,
    application_name: String,
}

type Connected = Result<(Client, JoinHandle<()>), Error>;

impl PinnedConnect {
    async fn open(&self) -> Connected {
        let mut sql = pinned();
        if let Some(fence) = self.target.fence().statement() {
            sql = format!("{sql}; {fence}");
        }
        let (client, connection) = match self.target.open(&self.application_name, &sql).await {
            Ok(opened) => opened,
            Err(Some(error)) => return Err(error),
            // Nobody said anything, and whoever waits is told so by the pool, whose time is up as well.
            Err(None) => std::future::pending().await,
        };
        // Ends by itself when the client is dropped; the pool also holds its handle.
        let polling = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a pooled connection ended");
            }
        });
        Ok((client, polling))
    }
}

impl Connect for PinnedConnect {
    /// What the pool knows of the servers is not needed: the target knows more.
    fn connect(&self, _: &Config) -> Pin<Box<dyn Future<Output = Connected> + Send + '_>> {
        Box::pin(self.open())
    }
}

/// A pooled connection in the hands of one request. Dropping it cancels what it runs and closes
/// the connection, and with it whatever transaction is open; only [`Lease::give_back`] returns it
/// to the pool.
pub struct Lease {
    /// Empty only after it was given back.
    connection: Option<Object>,
    tls: MakeRustlsConnect,
    _turn: Option<Turn>,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lease")
    }
}

impl Lease {
    /// Waits for a connection for the relay itself, [`WAIT`] at most, and 5 s more for each server that is named when
    /// one must be opened.
    ///
    /// # Errors
    /// When none became free in time, or the database cannot be reached.
    pub async fn take(pool: &Pool) -> Result<Self, PoolError> {
        Self::taken(pool, None).await
    }

    /// Likewise for somebody, who leaves some of them to the others.
    ///
    /// # Errors
    /// Likewise, and when so many are in the same hands.
    pub async fn take_for(caller: Caller, pool: &Pool) -> Result<Self, PoolError> {
        Self::taken(pool, Some(caller)).await
    }

    async fn taken(pool: &Pool, caller: Option<Caller>) -> Result<Self, PoolError> {
        let until = Instant::now() + WAIT;
        let taken = async {
            let turn = match caller {
                Some(caller) => {
                    let turn = timeout(WAIT, pool.turns.take(caller)).await;
                    Some(turn.map_err(|_elapsed| PoolError::Timeout(TimeoutType::Wait))?)
                }
                None => None,
            };
            let mut timeouts = pool.connections.timeouts();
            timeouts.wait = Some(until.saturating_duration_since(Instant::now()));
            let connection = pool.connections.timeout_get(&timeouts).await?;
            Ok((connection, turn))
        };
        let (connection, turn) = taken.await.inspect_err(|error| {
            if matches!(error, PoolError::Timeout(_)) {
                pool.timeouts.fetch_add(1, Ordering::Relaxed);
            }
        })?;
        Ok(Self {
            connection: Some(connection),
            tls: pool.tls.clone(),
            _turn: turn,
        })
    }

    /// Returns the connection to the pool. The caller knows that no transaction is open, no
    /// statement is running and no setting of the session has changed.
    pub fn give_back(mut self) {
        drop(self.connection.take());
    }

    /// What the connection has prepared.
    #[must_use]
    pub fn prepared(&self) -> Prepared {
        Prepared::new(Arc::clone(&self.connection().statement_cache))
    }

    /// The connection.
    #[must_use]
    pub fn client(&self) -> &Client {
        self
    }

    fn connection(&self) -> &Object {
        self.connection
            .as_ref()
            .expect("a lease that was given back is gone")
    }
}

impl Deref for Lease {
    /// Deadpool's wrapper: it has `prepare_cached`, and is itself a `tokio_postgres::Client`.
    type Target = ClientWrapper;

    fn deref(&self) -> &ClientWrapper {
        self.connection()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        if on(Mutant::M10) {
            return drop(connection);
        }
        // Out of the pool, then closed: the server rolls back when it sees the end. Inside a
        // statement it does not look, so it is told.
        let cancel = connection.cancel_token();
        drop(Object::take(connection));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let tls = self.tls.clone();
            runtime.spawn(async move {
                let cancelled = tokio::time::timeout(CONNECT, cancel.cancel_query(tls)).await;
                if !matches!(cancelled, Ok(Ok(()))) {
                    tracing::debug!("a statement that nobody waits for could not be cancelled");
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use deadpool_postgres::TimeoutType;

    use super::*;
    use crate::postgres::embedded::tests::throw_away;

    async fn one(client: &Client, sql: &str) -> String {
        client.query_one(sql, &[]).await.unwrap().get(0)
    }

    const BACKEND: &str = "select pg_backend_pid()::text";

    #[tokio::test]
    async fn the_transaction_of_a_dropped_lease_is_seen_by_nobody() {
        let Some((_place, cluster)) = throw_away().await else {
            return;
        };
        let pool = pool(&cluster.target("postgres"), "rowcast test", 1);
        let lease = Lease::take(&pool).await.unwrap();
        let first = one(&lease, BACKEND).await;
        lease.batch_execute("create table t (n int)").await.unwrap();
        lease.give_back();

        let lease = Lease::take(&pool).await.unwrap();
        assert_eq!(one(&lease, BACKEND).await, first, "given back is reused");
        let half_done = "begin; insert into t values (1)";
        lease.batch_execute(half_done).await.unwrap();
        drop(lease);

        let lease = Lease::take(&pool).await.unwrap();
        assert_ne!(one(lease.client(), BACKEND).await, first);
        // Outside a transaction this commits nothing; in the other one's it would the insert.
        lease.batch_execute("commit").await.unwrap();
        assert_eq!(one(&lease, "select count(*)::text from t").await, "0");
        cluster.stop().await;
    }

    #[tokio::test]
    async fn every_session_formats_alike() {
        let Some((_place, cluster)) = throw_away().await else {
            return;
        };
        let target = cluster.target("postgres");
        let (client, connection) = target.connect("rowcast test").await.unwrap();
        tokio::spawn(connection);
        client
            .batch_execute(
                "alter database postgres set timezone = 'Asia/Tokyo'; \
                 alter database postgres set datestyle = 'German'",
            )
            .await
            .unwrap();
        let pool = pool(&target, "rowcast test", 1);
        let lease = Lease::take(&pool).await.unwrap();
        let time = "select timestamptz '2026-11-23 12:00:00Z' || ' ' || interval '1 day'";
        assert_eq!(one(&lease, time).await, "2026-11-23 12:00:00+00 P1D");
        assert_eq!(one(&lease, "show application_name").await, "rowcast test");
        cluster.stop().await;
    }

    #[tokio::test]
    async fn a_full_pool_and_an_absent_database_are_errors_within_seconds() {
        let Some((_place, cluster)) = throw_away().await else {
            return;
        };
        let pool = pool(&cluster.target("postgres"), "rowcast test", 1);
        let lease = Lease::take(&pool).await.unwrap();
        let begun = std::time::Instant::now();
        let refused = Lease::take(&pool).await.unwrap_err();
        assert!(matches!(refused, PoolError::Timeout(TimeoutType::Wait)));
        assert!(begun.elapsed() < WAIT * 2);
        drop(lease);
        cluster.stop().await;
        let refused = Lease::take(&pool).await.unwrap_err();
        assert!(matches!(refused, PoolError::Backend(_)));
    }
}
