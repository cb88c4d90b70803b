//! What must be done regularly: finding drift, noting snapshots, trimming the log, and telling who
//! keeps it from being trimmed.
//!
//! Every relay does it, and the functions see to it that one does at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;
use tokio_postgres::Client;
use tracing::{debug, info, warn};

use super::handle::Handle;
use super::reload::Word;
use super::roles;
use crate::backoff::Backoff;
use crate::causes::Causes;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::postgres::connect::{CONNECT, ConnectError, Target};
use crate::postgres::pool::{OWN, notice_when_gone};
use crate::shutdown::Shutdown;

/// A policy or grant must take effect on open streams within 5 s, also where nobody tells of it: roles have no
/// event triggers, and only a superuser can make any.
const DRIFT: Duration = Duration::from_secs(2);
/// Between two looks because somebody told: a migration says something with each of its statements.
const TOLD: Duration = Duration::from_millis(100);
/// Every how many drift checks the log is trimmed and a snapshot noted.
const TRIM_EVERY: u32 = 5;
/// Log rows deleted in one transaction.
const CHUNK: i32 = 10_000;
/// What was found so lately is found still: of several relays, one looks at a time.
const LASTING: Duration = Duration::from_secs(7);
/// The same thing is told again after so long.
const AGAIN: Duration = Duration::from_mins(10);

/// Longest round. A large log is trimmed in many; what one leaves, the next one takes.
const SILENCE: Duration = Duration::from_mins(1);

/// Who has not come to the end of it for so long says so. A database that is restarted needs less.
const IDLE: Duration = Duration::from_secs(15);

/// What upkeep needs.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Where the log is.
    pub target: Target,
    /// Says when definitions or grants have changed.
    pub definitions: Arc<Word>,
    /// What was read of roles.
    pub catalog: Arc<Handle>,
    /// How long a screen may be away and still resume.
    pub retention: Duration,
    /// Bytes that the log may hold; 0 for any number.
    pub log_size: u64,
    /// A transaction that is open for longer is told of.
    pub long_transaction: Duration,
    /// Told what stands in the way of working.
    pub health: Arc<Health>,
    /// Told what the log holds.
    pub metrics: Arc<Metrics>,
}

/// Keeps watch until the stop signal.
pub async fn run(parts: Parts, shutdown: Shutdown) {
    let mut upkeep = Upkeep {
        parts,
        drift: HashMap::new(),
        told_early: None,
        told_long: None,
        unordered: false,
        roles: None,
        done: Instant::now(),
        told_idle: None,
    };
    let mut backoff = Backoff::new();
    loop {
        let error = tokio::select! {
            () = async { shutdown.begun().await; } => return,
            error = upkeep.session(&mut backoff) => error,
        };
        debug!(error = %Causes(&error), "upkeep is interrupted");
        let idle = upkeep.done.elapsed();
        if idle >= IDLE && is_due(&mut upkeep.told_idle) {
            warn!(
                error = %Causes(&error),
                seconds = idle.as_secs(),
                "nobody looks after the log and the watched tables: it grows, and what changes behind the \
                 triggers is not found"
            );
        }
        tokio::time::sleep(backoff.delay()).await;
    }
}

#[derive(Debug, thiserror::Error)]
enum UpkeepError {
    #[error("the database cannot be reached")]
    Connect(#[from] ConnectError),
    #[error("the log could not be looked after")]
    Query(#[from] tokio_postgres::Error),
    #[error("the connection was closed")]
    Closed,
    #[error("the database did not answer within {} s", .0.as_secs())]
    Silent(Duration),
}

/// A finding of the drift check.
struct Told {
    /// When it was found last.
    found: Instant,
    /// When it is to be told again, if it is still found.
    due: Instant,
}

struct Upkeep {
    parts: Parts,
    /// What the drift check has found lately.
    drift: HashMap<String, Told>,
    /// When it was last told that the log is trimmed for its size.
    told_early: Option<Instant>,
    /// When it was last told of a long transaction.
    told_long: Option<Instant>,
    unordered: bool,
    /// Digest of the roles of which was told last.
    roles: Option<String>,
    /// When all was done last that is done regularly, the log trimmed with it.
    done: Instant,
    /// When it was last told that this does not come to its end.
    told_idle: Option<Instant>,
}

impl Upkeep {
    /// One connection's life; returns the reason of its end.
    async fn session(&mut self, backoff: &mut Backoff) -> UpkeepError {
        let (client, connection) = match self.parts.target.connect("rowcast upkeep").await {
            Ok(connected) => connected,
            Err(error) => return error.into(),
        };
        let work = async {
            let settings = async {
                notice_when_gone(&client).await;
                client.batch_execute(OWN).await
            };
            match tokio::time::timeout(CONNECT, settings).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error.into(),
                Err(_elapsed) => return UpkeepError::Silent(CONNECT),
            }
            let definitions = Arc::clone(&self.parts.definitions);
            let mut clock = tokio::time::interval(DRIFT);
            clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut round: u32 = 0;
            loop {
                let by_clock = tokio::select! {
                    _ = clock.tick() => true,
                    () = definitions.said() => false,
                };
                if by_clock {
                    round = round.wrapping_add(1);
                }
                // The log is trimmed by the clock alone.
                let trim = by_clock && round % TRIM_EVERY == 1;
                match tokio::time::timeout(SILENCE, self.rounds(&client, by_clock, trim)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return error.into(),
                    Err(_elapsed) => return UpkeepError::Silent(SILENCE),
                }
                backoff.reset();
                tokio::time::sleep(TOLD).await;
            }
        };
        tokio::select! {
            reason = work => reason,
            ended = connection => ended.map_or_else(UpkeepError::from, |()| UpkeepError::Closed),
        }
    }

    async fn rounds(
        &mut self,
        client: &Client,
        by_clock: bool,
        trim: bool,
    ) -> Result<(), tokio_postgres::Error> {
        self.drift.retain(|_, told| told.found.elapsed() < LASTING);
        for row in client.query("select rowcast.check_drift()", &[]).await? {
            self.parts.metrics.drift.inc();
            let finding: String = row.get(0);
            let now = Instant::now();
            // What nobody repairs is found each time.
            let told = self.drift.entry(finding.clone()).or_insert(Told {
                found: now,
                due: now,
            });
            told.found = now;
            if told.due <= now {
                told.due = now + AGAIN;
                warn!(
                    finding,
                    "a watched table has changed in a way that its triggers do not tell"
                );
            }
        }
        self.order(client).await?;
        // Compared with what was read, and not with what there was a while ago: a role may have been changed
        // and changed back, and the catalogue read in between.
        let roles = roles::digest(client).await?;
        let is_read = *self.parts.catalog.current().roles_digest() == roles;
        // Whoever is told looks here too; what cannot be read is told of again by the clock.
        if !is_read && (by_clock || self.roles.as_ref() != Some(&roles)) {
            self.roles = Some(roles);
            self.parts.definitions.changed();
        }
        if trim {
            self.trim(client).await?;
            self.look(client).await?;
            self.done = Instant::now();
            self.told_idle = None;
        }
        Ok(())
    }

    /// The order of the log's ids, which somebody may take away at any time.
    async fn order(&mut self, client: &Client) -> Result<(), tokio_postgres::Error> {
        let checked = client.query_one("select rowcast.check_order()", &[]).await;
        let why = match checked {
            Ok(row) => {
                if let Some(finding) = row.get::<_, Option<&str>>(0) {
                    self.parts.metrics.drift.inc();
                    warn!(
                        finding,
                        "the log was out of order; every screen reads its state anew"
                    );
                }
                None
            }
            // Writers are in the way, or it is not ours to change.
            Err(error) if error.code().is_some() && is_unordered(client).await? => Some(format!(
                "the sequence of the log gives out several ids at a time, which breaks the order of changes \
                     (found: {}; try: alter sequence rowcast.log_id_seq cache 1; select rowcast.reset())",
                error.as_db_error().map_or("", |error| error.message())
            )),
            Err(error) => return Err(error),
        };
        let unordered = why.is_some();
        if unordered && !self.unordered {
            warn!(why, "not ready");
        }
        self.unordered = unordered;
        self.parts.health.refuse("order", why);
        Ok(())
    }

    async fn trim(&mut self, client: &Client) -> Result<(), tokio_postgres::Error> {
        let Parts {
            retention,
            log_size,
            metrics,
            ..
        } = &self.parts;
        let most = i64::try_from(*log_size).ok().filter(|most| *most > 0);
        let sql = "select gone, early from rowcast.trim(make_interval(secs => $1), $2, $3)";
        loop {
            let row = client
                .query_one(sql, &[&retention.as_secs_f64(), &CHUNK, &most])
                .await?;
            let (gone, early): (i64, bool) = (row.get(0), row.get(1));
            metrics
                .log_trimmed_rows
                .inc_by(u64::try_from(gone).unwrap_or(0));
            if early {
                metrics.log_trimmed_early.inc();
                if is_due(&mut self.told_early) {
                    warn!(
                        log_size,
                        "the log holds more than --log-size: its oldest changes went before the retention was over, and \
                         screens that come back from before then read their state anew"
                    );
                }
            }
            if gone < i64::from(CHUNK) {
                return Ok(());
            }
        }
    }

    /// Looks what the log holds, and what holds it.
    async fn look(&mut self, client: &Client) -> Result<(), tokio_postgres::Error> {
        let sql = "select kept, bytes, file, coalesce(reach, 0), held, coalesce(holder, '') from rowcast.log_status()";
        let row = client.query_one(sql, &[]).await?;
        let metrics = &self.parts.metrics;
        metrics.log_kept_rows.set(row.get(0));
        metrics.log_kept_bytes.set(row.get(1));
        metrics.log_file_bytes.set(row.get(2));
        metrics.log_reach.set(row.get(3));
        let (held, holder): (f64, &str) = (row.get(4), row.get(5));
        metrics.oldest_transaction.set(held);
        if held >= self.parts.long_transaction.as_secs_f64() {
            if is_due(&mut self.told_long) {
                warn!(
                    seconds = held.round(),
                    holder,
                    "a transaction is open for long: what it wrote, and the space of all that is deleted meanwhile, stays \
                     until it ends; nothing else waits for it"
                );
            }
        } else if self.told_long.take().is_some() {
            info!("the long transaction is over");
        }
        Ok(())
    }
}

/// Whether the ids of the log are given out several at a time, when that could not be repaired: much else may keep it
/// from being looked at.
///
/// # Errors
/// `PostgreSQL`'s answer.
pub async fn is_unordered(client: &Client) -> Result<bool, tokio_postgres::Error> {
    let sql = "select exists (select from pg_sequence \
               where seqrelid = to_regclass('rowcast.log_id_seq') and seqcache <> 1)";
    client.query_one(sql, &[]).await?.try_get(0)
}

/// Whether to tell something, for the first time or again.
fn is_due(told: &mut Option<Instant>) -> bool {
    let due = told.is_none_or(|told| told.elapsed() >= AGAIN);
    if due {
        *told = Some(Instant::now());
    }
    due
}
