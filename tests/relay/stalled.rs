//! Many clients that take nothing, beside some that do.
//! `ROWCAST_STALLED=1000 cargo nextest run --release --test relay stalled::` is the long form.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness::{Relay, Screen, database};
use crate::huge::p99;
use crate::wire::{Wire, address, resident};

fn stalled() -> usize {
    let count = std::env::var("ROWCAST_STALLED").ok();
    count.map_or(60, |count| count.parse().expect("a number of clients"))
}

/// Milliseconds of the 99th of a hundred deliveries to twenty screens, at 100 events a second of 2 KB.
async fn load(relay: &Relay, client: &tokio_postgres::Client, seconds: u64, from: &mut u64) -> f64 {
    let sent: Arc<Mutex<HashMap<u64, Instant>>> = Arc::default();
    let events = seconds * 100;
    let (first, last) = (*from + 1, *from + events);
    let mut readers = Vec::new();
    for _ in 0..20 {
        let mut stream = relay.stream("/rest/v1/tasks").await;
        let mut screen = Screen::default();
        screen.follow(&mut stream, |_| true).await;
        let sent = Arc::clone(&sent);
        readers.push(tokio::spawn(async move {
            let mut times = Vec::new();
            let mut seen = 0;
            while seen < last {
                let event = stream.next().await.expect("the stream goes on");
                let now = Instant::now();
                for element in event.elements() {
                    if let Some(version) = element["value"]["v"].as_u64().filter(|v| *v >= first) {
                        assert!(version > seen, "in order");
                        seen = version;
                        if let Some(at) = sent.lock().unwrap().get(&version) {
                            times.push(now.duration_since(*at));
                        }
                    }
                }
            }
            times
        }));
    }
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    for version in first..=last {
        pace.tick().await;
        sent.lock().unwrap().insert(version, Instant::now());
        client
            .execute(
                "update tasks set v = $1::int8, body = repeat(md5($1::text), 62) where id = 1",
                &[&i64::try_from(version).unwrap()],
            )
            .await
            .unwrap();
    }
    *from = last;
    let mut times = Vec::new();
    for reader in readers {
        times.extend(reader.await.unwrap());
    }
    p99(times)
}

/// The most that the kernel holds for one connection of the relay, in bytes, if `ss` tells.
async fn kernel(relay: &Relay) -> Option<u64> {
    let source = format!("( sport = :{} )", address(relay).port());
    let said = tokio::process::Command::new("ss")
        .args(["-tmnH", &source])
        .output()
        .await
        .ok()?;
    let said = String::from_utf8(said.stdout).ok()?;
    let queued = said.match_indices(",w").filter_map(|(at, _)| {
        let rest = &said[at + 2..];
        rest.split(|c: char| !c.is_ascii_digit())
            .next()?
            .parse::<u64>()
            .ok()
    });
    queued.max()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_take_nothing_cost_next_to_nothing() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create table tasks (id int primary key, v bigint, body text);
            insert into tasks values (1, 0, ''); select rowcast.watch('tasks')",
        )
        .await;
    let client = database.client().await;
    let count = u32::try_from(stalled()).unwrap();
    let seconds = if stalled() >= 1000 { 30 } else { 4 };
    let mut version = 0;
    let alone = load(&relay, &client, seconds, &mut version).await;
    let before = resident(&relay);

    let at = address(&relay);
    // Not all at once, and so they do not come back at once either.
    let pace = Duration::from_secs(if stalled() >= 1000 { 18 } else { 1 }) / count;
    let (up, mut ups) = tokio::sync::mpsc::unbounded_channel();
    let mut idle = Vec::new();
    for _ in 0..stalled() {
        let up = up.clone();
        idle.push(tokio::spawn(async move {
            // Whoever was cut comes back and stalls again.
            loop {
                let mut wire = Wire::narrow_to(at).await;
                wire.watch("/rest/v1/tasks").await;
                wire.sees("snapshot-end").await;
                let _measured = up.send(());
                tokio::time::sleep(Duration::from_secs(18)).await;
            }
        }));
        tokio::time::sleep(pace).await;
    }
    for _ in 0..stalled() {
        ups.recv().await.expect("they come");
    }
    let crowded = load(&relay, &client, seconds, &mut version).await;
    let grown = resident(&relay).saturating_sub(before);
    let kernel = kernel(&relay).await;
    for task in &idle {
        task.abort();
    }
    eprintln!(
        "{} stalled: the relay grew by {} KiB; the kernel holds {kernel:?} bytes for one at most; \
         healthy p99 {crowded:.1} ms, without them {alone:.1} ms",
        stalled(),
        grown >> 10
    );
    assert!(grown <= 64 << 20, "{} MiB", grown >> 20);
    assert!(kernel.unwrap_or(0) <= 256 << 10, "{kernel:?}");
}
