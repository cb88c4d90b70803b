//! What the relays hold of memory and what the log holds, against their bounds.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::schedule::Plan;
use crate::world::World;

/// What a relay may hold of recent transactions: 64 MiB, `MEMORY` in `src/feed/stage.rs`. It is empty
/// when the screens arrive, and fills while others write.
const RECENT: u64 = 64 << 20;
/// What it may read of the log at a time: 64 MiB, `src/log/batch.rs`.
const BATCH: u64 = 64 << 20;
/// How late a row of the log may go once its retention is over: relays trim every ten seconds, by
/// snapshots that are ten seconds apart.
const LATE: Duration = Duration::from_secs(30);
/// The default of `--log-size`.
const LOG_SIZE: i64 = 1 << 30;

/// Bytes of each relay's process that are in memory.
#[derive(Debug, Default, Clone)]
pub struct Memory {
    /// When the screens had arrived.
    pub arrived: Vec<u64>,
    /// The most that was seen.
    pub most: Vec<u64>,
    /// In the end, with the screens still there.
    pub ended: Vec<u64>,
}

impl Memory {
    /// Each relay's end and most, where they are more than they may be.
    pub fn excess(&self) -> Vec<String> {
        // A relay that was killed began anew, so all are held against one beginning.
        let begun = self.arrived.iter().max().copied().unwrap_or_default();
        let of = |held: &[u64], may: u64, when: &str| {
            let held = held.iter().enumerate();
            let above = held.filter(|(_, held)| **held > begun + may);
            let told = above.map(|(relay, held)| {
                let (held, begun, may) = (held >> 20, begun >> 20, may >> 20);
                format!("relay {relay} holds {held} MiB {when}, and {begun} + {may} are its bound")
            });
            told.collect::<Vec<_>>()
        };
        let mut excess = of(&self.ended, RECENT, "in the end");
        excess.extend(of(&self.most, RECENT + BATCH, "at most"));
        excess
    }
}

/// What the log holds too much of. Waits for what is older than the retention to go.
pub async fn log(world: &World, plan: &Plan) -> Option<String> {
    let client = world.database.client().await;
    let sql = "select bytes, (clock_timestamp() - make_interval(secs => $1))::text from rowcast.log_status()";
    let row = client
        .query_one(sql, &[&plan.retention.as_secs_f64()])
        .await
        .unwrap();
    let (bytes, old): (i64, String) = (row.get(0), row.get(1));
    if bytes > LOG_SIZE {
        return Some(format!("the log holds {bytes} bytes"));
    }
    let sql = format!("select count(*) from rowcast.log where at < '{old}'");
    let end = Instant::now() + LATE;
    loop {
        let left: i64 = client.query_one(&sql, &[]).await.unwrap().get(0);
        if left == 0 {
            return None;
        }
        if Instant::now() > end {
            return Some(format!("{left} rows of the log are from before {old}"));
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Waits until nearly all screens have a stream; some of them leave at any time.
pub async fn arrival(world: &World, screens: usize) {
    let end = Instant::now() + Duration::from_mins(1);
    loop {
        let mut streams = 0;
        for relay in &world.relays {
            let metrics = relay.metrics().await;
            let mut lines = metrics.lines();
            let told = lines.find_map(|line| line.strip_prefix("rowcast_subscribers "));
            streams += told.map_or(0, |told| told.parse::<usize>().unwrap_or_default());
        }
        if streams * 10 >= screens * 9 {
            return;
        }
        assert!(
            Instant::now() < end,
            "{streams} of {screens} screens arrive"
        );
        sleep(Duration::from_millis(50)).await;
    }
}

pub async fn resident(world: &World) -> Vec<u64> {
    let mut resident = Vec::new();
    for relay in &world.relays {
        let pid = relay.pid().await.unwrap_or_default();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        resident.push(kib.unwrap_or_default() * 1024);
    }
    resident
}

/// Looks once a second. The most that each relay held.
pub async fn watch_memory(world: Arc<World>, mut stop: watch::Receiver<bool>) -> Vec<u64> {
    let mut most = resident(&world).await;
    loop {
        tokio::select! {
            () = sleep(Duration::from_secs(1)) => {}
            _ = stop.wait_for(|stop| *stop) => return most,
        }
        for (most, now) in most.iter_mut().zip(resident(&world).await) {
            *most = now.max(*most);
        }
    }
}
