//! Many clients that take nothing, beside some that do.
//! `ROWCAST_STALLED=1000 cargo nextest run --release --test relay stalled::` is the long form.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::adversary::{PING, PREFACE, SETTINGS, asks, frame};
use crate::harness::{Relay, Screen, database, eventually};
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

/// Reads frames of HTTP/2 and answers those that want to know whether somebody is there, to the end of the
/// connection.
async fn stays(socket: &mut TcpStream) {
    let (mut read, mut write) = socket.split();
    let answering = async {
        loop {
            let mut head = [0; 9];
            read.read_exact(&mut head).await?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            read.read_exact(&mut payload).await?;
            if head[3] == PING && head[4] == 0 {
                write.write_all(&frame(PING, 1, 0, &payload)).await?;
            }
        }
    };
    let ended: std::io::Result<()> = answering.await;
    ended.unwrap_err();
}

/// Asks for so many answers at once and takes nothing of them. Tells how long the connection lasted.
async fn takes_nothing(relay: &Relay, answers: u32) -> JoinHandle<Duration> {
    let mut socket = TcpStream::connect(address(relay)).await.unwrap();
    let mut hello = [PREFACE, &frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])].concat();
    for number in 0..answers {
        hello.extend(asks(2 * number + 1, "/rest/v1/large"));
    }
    socket.write_all(&hello).await.unwrap();
    let begun = Instant::now();
    tokio::spawn(async move {
        stays(&mut socket).await;
        begun.elapsed()
    })
}

/// Answers that were given by a path, by their status.
async fn answered(relay: &Relay, status: u16) -> u64 {
    let text = relay.get("/metrics").await.body;
    let lines = text.lines().filter(|line| {
        line.starts_with("http_server_request_duration_seconds_count")
            && line.contains("/rest/v1/{table}")
            && line.contains(&format!("\"{status}\""))
    });
    let counts = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    counts.sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_takes_are_few_and_not_kept() {
    let database = database().await;
    let relay = Relay::start(&database, &["--memory-limit", "256M"]).await;
    // 16 MB, of which four are as much as such a relay keeps.
    database
        .sql(
            "create table large (id int primary key, body text, note text);
            insert into large select n, repeat(md5(n::text), 200) from generate_series(1, 2500) n;
            select rowcast.watch('large')",
        )
        .await;
    let whole = relay.get("/rest/v1/large").await;
    assert_eq!(whole.status, 200);
    let before = resident(&relay);

    // Somebody whose window is closed, and who is there all the same.
    let mut asked = 8_u64;
    let mut stuck = vec![takes_nothing(&relay, 8).await];
    let all = async |asked| {
        eventually("all are answered", async || {
            let (kept, refused) = (answered(&relay, 200).await, answered(&relay, 503).await);
            // On a slow machine some find no connection to the database in time.
            let late = answered(&relay, 504).await;
            (kept + refused + late == asked + 1).then_some((kept - 1, refused))
        })
        .await
    };
    let (mut kept, mut refused) = all(asked).await;
    assert!((1..=4).contains(&kept), "{kept} kept, {refused} refused");
    // At once, each of them may have been in the way of another.
    let before_last = refused;
    while refused == before_last {
        stuck.push(takes_nothing(&relay, 1).await);
        asked += 1;
        (kept, refused) = all(asked).await;
    }
    assert_eq!(kept, 4);
    let grown = eventually("memory is given back", async || {
        let grown = resident(&relay).saturating_sub(before);
        (grown < 96 << 20).then_some(grown)
    })
    .await;

    // Meanwhile others hear so before anything is done, and what is small is answered.
    let back = [
        ("content-type", "application/json"),
        ("prefer", "return=representation"),
    ];
    let path = "/rest/v1/large?id=gt.0";
    let refusal = relay
        .request(Method::PATCH, path, &back, r#"{"note":"changed"}"#)
        .await;
    assert_eq!(refusal.status, 503);
    assert_eq!(refusal.json()["code"], "RCH13");
    assert_eq!(refusal.header("retry-after"), "2");
    let changed = "select count(*)::text from large where note is not null";
    assert_eq!(database.one(changed).await, "0");
    let small = relay.get("/rest/v1/large?id=eq.7").await;
    assert_eq!(small.status, 200);

    for stuck in stuck {
        let took = tokio::time::timeout(Duration::from_secs(40), stuck).await;
        let took = took.expect("the connection is cut").unwrap();
        assert!(took >= Duration::from_secs(19), "{took:?}");
    }
    let again = eventually("there is room again", async || {
        let again = relay.get("/rest/v1/large").await;
        (again.status == 200).then_some(again)
    })
    .await;
    assert!(again.body == whole.body);
    eprintln!("{kept} answers were kept: {} MiB", grown >> 20);
}
