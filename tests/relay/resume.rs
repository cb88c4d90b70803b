//! A screen that returns with its last id gets the net effect of all it missed, once, or starts
//! over and is told so. From any relay.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinSet;

use crate::harness::{Database, Event, Relay, Screen, Stream, database, eventually};
use crate::wire::count;

const PATH: &str = "/rest/v1/tasks";
const TASKS: &str = "
    create table tasks (id int primary key, title text);
    insert into tasks select n, 't' || n from generate_series(1, 10) n;
    select rowcast.watch('tasks')";

/// The screen shows what a read gives.
async fn assert_agrees(relay: &Relay, path: &str, screen: &Screen) {
    let read = relay.get(path).await.json();
    let mut rows: Vec<_> = screen.rows.values().cloned().collect();
    rows.sort_by_key(|row| row["id"].as_i64());
    let mut read = read.as_array().unwrap().clone();
    read.sort_by_key(|row| row["id"].as_i64());
    assert_eq!(rows, read);
}

/// Key and transaction of each change.
fn changes(events: &[Event]) -> Vec<(String, String)> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let elements = events.iter().flat_map(Event::elements);
    elements
        .filter(|element| element["headers"]["txid"].is_string())
        .map(|element| (text(&element["key"]), text(&element["headers"]["txid"])))
        .collect()
}

/// How often a screen that returned was served from `source`.
async fn served(relay: &Relay, source: &str) -> u64 {
    count(
        relay,
        &format!("rowcast_resumes_total{{result=\"{source}\"}}"),
    )
    .await
}

#[tokio::test]
async fn relays_may_be_killed_while_others_write() {
    let database = database().await;
    let mut relay = database.relay().await;
    database.sql(TASKS).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3)
        .map(|writer| tokio::spawn(write(database.clone(), writer, Arc::clone(&stop))))
        .collect();

    let mut screen = Screen::default();
    let mut seen = HashSet::new();
    let mut id: Option<String> = None;
    for _ in 0..3 {
        let mut stream = match &id {
            None => relay.stream(PATH).await,
            Some(id) => relay.resume(PATH, id).await,
        };
        let mut events = 0;
        while events < 60 {
            let event = stream.next().await.expect("the stream goes on");
            assert!(
                id.is_none() || !event.has_control("reset"),
                "{}",
                event.data
            );
            for change in changes(std::slice::from_ref(&event)) {
                assert!(seen.insert(change.clone()), "{change:?} came twice");
            }
            screen.apply(&event);
            id = Some(event.id);
            events += 1;
        }
        relay.kill().await;
        // What was on its way may still be read, and belongs to what the last id says.
        while let Some(event) = stream.next().await {
            for change in changes(std::slice::from_ref(&event)) {
                assert!(seen.insert(change.clone()), "{change:?} came twice");
            }
            screen.apply(&event);
            id = Some(event.id);
        }
        relay = database.relay().await;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let txid = database.commit("insert into tasks values (-1)").await;
    let mut stream = relay.resume(PATH, &id.unwrap()).await;
    let events = screen.reach(&mut stream, &txid).await;
    assert!(!events.iter().any(|event| event.has_control("reset")));
    for change in changes(&events) {
        assert!(seen.insert(change.clone()), "{change:?} came twice");
    }
    assert_agrees(&relay, PATH, &screen).await;
}

/// Transactions of several statements on few rows; some are rolled back, and all overlap.
async fn write(database: Database, writer: u64, stop: Arc<AtomicBool>) {
    let mut random = fastrand::Rng::with_seed(writer);
    let client = database.client().await;
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        // Ascending keys, so that writers never wait for each other in a circle.
        let low = random.i32(1..30);
        let high = low + random.i32(1..30);
        let end = if random.u8(0..5) == 0 {
            "rollback"
        } else {
            "commit"
        };
        let sql = format!(
            "begin;
             insert into tasks values ({low}, '{writer}/{count}') on conflict (id) do update set title = excluded.title;
             select pg_sleep(0.002 * random());
             delete from tasks where id = {high};
             {end}"
        );
        client.batch_execute(&sql).await.unwrap();
    }
}

#[tokio::test]
async fn any_relay_serves_any_token_from_memory_or_from_the_log() {
    let database = database().await;
    let first = database.relay().await;
    database.sql(TASKS).await;
    eventually("a stored snapshot", async || {
        (database.one("select count(*) from rowcast.tick").await != "0").then_some(())
    })
    .await;
    let mut stream = first.stream(PATH).await;
    let mut screen = Screen::default();
    let txid = database
        .commit("update tasks set title = 'a' where id = 1")
        .await;
    screen.reach(&mut stream, &txid).await;
    let id = stream.id.clone();
    drop(stream);

    // Away: a key changed twice, one that came and went, one that went.
    database
        .sql("update tasks set title = 'b' where id = 1")
        .await;
    database
        .sql("insert into tasks values (50, 'phantom')")
        .await;
    database.sql("delete from tasks where id in (2, 50)").await;
    let second = database.relay().await;
    // Without a stored snapshot to start at, this one remembers nothing of the past.
    database.sql("delete from rowcast.tick").await;
    let third = database.relay().await;
    let mut live = Vec::new();
    for relay in [&first, &second, &third] {
        let mut stream = relay.stream(PATH).await;
        stream
            .until(|event| event.has_control("snapshot-end"))
            .await;
        live.push(stream);
    }
    let txid = database
        .commit("update tasks set title = 'c' where id = 1")
        .await;
    for stream in &mut live {
        stream.until(|event| event.has_txid(&txid)).await;
    }
    for (relay, source) in [(&first, "ring"), (&second, "ring"), (&third, "log")] {
        let mut returned = relay.resume(PATH, &id).await;
        let mut again = screen.clone();
        let events = again.reach(&mut returned, &txid).await;
        assert!(served(relay, source).await > 0, "{source}");
        let mut keys: Vec<_> = changes(&events).into_iter().map(|(key, _)| key).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["1", "2"], "{source}");
        assert!(
            !events
                .iter()
                .any(|event| event.data.contains("phantom") || event.data.contains("\"b\""))
        );
        assert_agrees(relay, PATH, &again).await;
        // And from the token that this gave, nothing is left to say.
        let mut done = relay.resume(PATH, &returned.id).await;
        let event = done.next().await.unwrap();
        assert_eq!(event.name, "control");
        assert!(event.covers(&txid));
    }
    // In the query: of a page that makes a new `EventSource`, and of event-source-polyfill, which leaves standing what
    // the page wrote.
    for query in [
        format!("last_event_id={id}"),
        format!("lastEventId={id}"),
        format!("last_event_id=0&lastEventId={id}"),
    ] {
        let mut stream = third.stream(&format!("{PATH}?{query}")).await;
        let mut again = screen.clone();
        let events = again.reach(&mut stream, &txid).await;
        assert!(
            !events.iter().any(|event| event.has_control("reset")),
            "{query}"
        );
        assert_agrees(&third, PATH, &again).await;
    }
}

#[tokio::test]
async fn tokens_that_cannot_be_served_start_over_with_a_200() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    let mut stream = relay.stream(PATH).await;
    let mut screen = Screen::default();
    let txid = database.commit("delete from tasks where id = 10").await;
    screen.reach(&mut stream, &txid).await;
    let own = stream.id.clone();
    let mut other = relay.stream("/rest/v1/tasks?id=gt.5").await;
    let other = other.data().await.id;
    let [epoch, view, cursor] = own.split('.').collect::<Vec<_>>()[..] else {
        panic!("{own}")
    };
    let tokens = [
        ("the reserved id", "0".to_owned()),
        ("malformed", "garbage".to_owned()),
        ("malformed", "a.b.c.d".to_owned()),
        ("malformed", format!("{epoch}.{view}.")),
        ("malformed", format!("{epoch}.{view}.zz")),
        ("hostile", format!("{epoch}.{view}.{}", "f".repeat(3000))),
        ("hostile", format!("{own}\"<script>")),
        ("another view's", other),
        ("of another epoch", format!("AAAAAAAAAAA.{view}.{cursor}")),
        ("from the future", format!("{epoch}.{view}.ffffffffffff")),
        (
            "from the future",
            format!("{epoch}.{view}.ffffffffffffffff"),
        ),
    ];
    for (what, token) in &tokens {
        let mut stream = relay.resume(PATH, token).await;
        assert_eq!(stream.status, 200, "{what}");
        let event = stream.data().await;
        assert!(event.has_control("reset"), "{what}: {}", event.data);
        let mut again = Screen::default();
        again.apply(&event);
        assert_eq!(again, screen, "{what} {token}");
    }
}

#[tokio::test]
async fn a_token_from_before_what_was_trimmed_starts_over() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    let mut stream = relay.stream(PATH).await;
    let mut screen = Screen::default();
    let txid = database.commit("insert into tasks values (11)").await;
    screen.reach(&mut stream, &txid).await;
    let old = stream.id.clone();
    let txid = database.commit("delete from tasks where id = 11").await;
    screen.reach(&mut stream, &txid).await;
    let new = stream.id.clone();
    relay.kill().await;
    eventually("the log is empty", async || {
        database
            .sql("select rowcast.trim('0 seconds', 100000)")
            .await;
        (database.one("select count(*) from rowcast.log").await == "0").then_some(())
    })
    .await;

    let relay = database.relay().await;
    let mut stream = relay.resume(PATH, &old).await;
    let event = stream.data().await;
    assert!(event.has_control("reset"), "{}", event.data);
    let mut again = Screen::default();
    again.apply(&event);
    assert_eq!(again, screen);
    // The later one may have seen all that went, and its relay may or may not know: both are honest.
    let txid = database.commit("insert into tasks values (12)").await;
    let mut stream = relay.resume(PATH, &new).await;
    screen.reach(&mut stream, &txid).await;
    assert_agrees(&relay, PATH, &screen).await;
}

#[tokio::test]
async fn a_snapshot_in_pieces_is_no_state_until_its_last() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create table big (id int primary key, title text);
              insert into big select n, repeat(md5(n::text), 300) from generate_series(1, 200) n;
              select rowcast.watch('big')",
        )
        .await;
    let mut stream = relay.stream("/rest/v1/big").await;
    let mut screen = Screen::default();
    let mut ids = Vec::new();
    while !screen.complete {
        let event = stream.data().await;
        assert!(event.data.len() < 300 << 10, "{}", event.data.len());
        ids.push(event.id.clone());
        screen.apply(&event);
    }
    assert!(ids.len() > 10, "{}", ids.len());
    let last = ids.pop().unwrap();
    assert!(ids.iter().all(|id| id == "0"), "{ids:?}");
    assert_ne!(last, "0");
    assert_agrees(&relay, "/rest/v1/big", &screen).await;
    // Cut in the middle, it begins again, and does not keep half.
    let mut cut = relay.resume("/rest/v1/big", "0").await;
    let event = cut.data().await;
    assert!(event.has_control("reset") && event.has_control("snapshot-start"));
}

#[tokio::test]
async fn a_screen_that_reads_slowly_loses_nothing() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    let mut stream = relay.stream(PATH).await;
    let mut screen = Screen::default();
    let txid = database.commit("delete from tasks where id > 3").await;
    screen.reach(&mut stream, &txid).await;
    // Nobody reads now. Twice what the view's buffer, whoever writes to the socket and the kernel keep
    // together.
    let client = database.client().await;
    for round in 0..150 {
        let sql =
            format!("update tasks set title = {round} || ' ' || repeat('x', 500000) where id = 1");
        client.batch_execute(&sql).await.unwrap();
    }
    let txid = database.commit("insert into tasks values (99)").await;
    screen.reach(&mut stream, &txid).await;
    assert_agrees(&relay, PATH, &screen).await;
    let lagged = "rowcast_dropped_subscribers_total{reason=\"lagged\"}";
    assert!(count(&relay, lagged).await > 0);
}

#[tokio::test]
async fn a_view_that_is_reset_while_a_screen_comes_back_stays_live() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create table tasks (id int primary key); create table held (id int primary key); \
             select rowcast.watch('tasks'), rowcast.watch('held')",
        )
        .await;
    database.sql("insert into tasks values (1)").await;

    // All connections for states that one caller may have wait for a table that somebody holds.
    let holder = database.client().await;
    holder
        .batch_execute("begin; lock table held in access exclusive mode")
        .await
        .unwrap();
    let mut waiting = Vec::new();
    for place in 0..3 {
        waiting.push(relay.stream(&format!("/rest/v1/held?id=gt.{place}")).await);
    }
    eventually("three snapshots wait", async || {
        let sql = "select count(*) from pg_stat_activity \
                   where application_name = 'rowcast states' and wait_event_type = 'Lock'";
        (database.one(sql).await == "3").then_some(())
    })
    .await;

    // The screen joins its view, waits for a connection, and the view is reset under it.
    let mut stream = relay.resume("/rest/v1/tasks", "0").await;
    database
        .sql("select rowcast.reset('tasks'::regclass)")
        .await;
    eventually("the view was reset", async || {
        let resets = count(&relay, "rowcast_resets_total{reason=\"table\"}").await;
        (resets > 0).then_some(())
    })
    .await;
    holder.batch_execute("rollback").await.unwrap();

    let mut screen = Screen::default();
    screen
        .follow(&mut stream, |screen| screen.rows.contains_key("1"))
        .await;
    database.sql("insert into tasks values (2)").await;
    screen
        .follow(&mut stream, |screen| screen.rows.contains_key("2"))
        .await;
}

/// Hears what is told and says which of it was covered by an id before.
async fn told_twice(stream: &mut Stream, last: &mut Event, events: usize) -> Vec<String> {
    let mut twice = Vec::new();
    for _ in 0..events {
        let event = stream.data().await;
        let elements = event.elements();
        let txids = elements
            .iter()
            .filter_map(|e| e["headers"]["txid"].as_str());
        twice.extend(txids.filter(|txid| last.covers(txid)).map(str::to_owned));
        *last = event;
    }
    twice
}

#[tokio::test]
async fn what_a_state_has_is_not_told_again_though_it_was_read_in_the_middle_of_a_round() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create table tasks (id int primary key, note text, n int not null default 0);
            insert into tasks select i, 'note ' || i from generate_series(1, 50) i;
            select rowcast.watch('tasks')",
        )
        .await;
    // PostgreSQL is asked for it.
    let path = "/rest/v1/tasks?note=like.n*";
    let (_open, _) = relay.shown(path).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for writer in 0..2 {
        let (client, stop) = (database.client().await, Arc::clone(&stop));
        writers.spawn(async move {
            let mut random = fastrand::Rng::with_seed(writer);
            while !stop.load(Ordering::Relaxed) {
                let id = random.u32(1..=50);
                let write = format!("update tasks set n = n + 1 where id = {id}");
                client.batch_execute(&write).await.unwrap();
            }
        });
    }
    for round in 0..20 {
        let mut stream = relay.stream(path).await;
        let mut last = stream
            .until(|event| event.has_control("snapshot-end"))
            .await;
        let mut twice = told_twice(&mut stream, &mut last, 3).await;
        drop(stream);
        let mut stream = relay.resume(path, &last.id).await;
        twice.extend(told_twice(&mut stream, &mut last, 3).await);
        assert!(twice.is_empty(), "{round}: {twice:?}");
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(written) = writers.join_next().await {
        written.unwrap();
    }
    let (mut stream, mut screen) = relay.shown(path).await;
    let txid = database.commit("update tasks set n = 0 where id = 1").await;
    screen.reach(&mut stream, &txid).await;
    assert_agrees(&relay, path, &screen).await;
}
