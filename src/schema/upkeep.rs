//! What must be done regularly: finding drift, noting snapshots, trimming the log.
//!
//! Every relay does it, and the functions see to it that one does at a time.

use std::time::Duration;

use tokio_postgres::Client;
use tracing::{debug, warn};

use crate::backoff::Backoff;
use crate::postgres::connect::Target;
use crate::shutdown::Shutdown;

/// A policy or grant must take effect on open streams within 5 s.
const DRIFT: Duration = Duration::from_secs(2);
/// Every how many drift checks the log is trimmed and a snapshot noted.
const TRIM_EVERY: u32 = 5;
/// Log rows deleted in one transaction.
const CHUNK: i32 = 10_000;

/// Keeps watch until the stop signal. `retention` is how long a screen may be away and still resume.
pub async fn run(target: Target, retention: Duration, shutdown: Shutdown) {
    let mut backoff = Backoff::new();
    loop {
        let error = tokio::select! {
            () = async { shutdown.begun().await; } => return,
            error = session(&target, retention, &mut backoff) => error,
        };
        debug!(error, "upkeep is interrupted");
        tokio::time::sleep(backoff.delay()).await;
    }
}

/// One connection's life; returns the reason of its end.
async fn session(target: &Target, retention: Duration, backoff: &mut Backoff) -> String {
    let (client, connection) = match target.connect("rowcast upkeep").await {
        Ok(connected) => connected,
        Err(error) => return error.to_string(),
    };
    let work = async {
        let mut round: u32 = 0;
        loop {
            if let Err(error) = rounds(&client, retention, round.is_multiple_of(TRIM_EVERY)).await {
                return error.to_string();
            }
            backoff.reset();
            round = round.wrapping_add(1);
            tokio::time::sleep(DRIFT).await;
        }
    };
    tokio::select! {
        reason = work => reason,
        ended = connection => ended.map_or_else(|error| error.to_string(), |()| "closed".to_owned()),
    }
}

async fn rounds(
    client: &Client,
    retention: Duration,
    trim: bool,
) -> Result<(), tokio_postgres::Error> {
    for row in client.query("select rowcast.check_drift()", &[]).await? {
        warn!(
            finding = row.get::<_, &str>(0),
            "a watched table changed behind the triggers"
        );
    }
    if trim {
        let seconds = retention.as_secs_f64();
        let sql = "select rowcast.trim(make_interval(secs => $1), $2)";
        while client
            .query_one(sql, &[&seconds, &CHUNK])
            .await?
            .get::<_, i64>(0)
            >= i64::from(CHUNK)
        {}
    }
    Ok(())
}
