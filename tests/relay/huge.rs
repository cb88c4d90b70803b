//! One transaction of very many rows, which nobody can keep in memory.
//! `ROWCAST_HUGE=1000000 cargo nextest run --release --test relay huge::` is the long form.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{Screen, database};
use crate::wire::{count, resident};

fn rows() -> usize {
    let rows = std::env::var("ROWCAST_HUGE").ok();
    rows.map_or(60_000, |rows| rows.parse().expect("a number of rows"))
}

/// The 99th of a hundred, in milliseconds.
pub fn p99(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    let at = (times.len() * 99 / 100).min(times.len() - 1);
    times[at].as_secs_f64() * 1000.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_of_very_many_rows_is_told_in_bounded_memory() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create table big (id int primary key, grp int, body text);
            create index on big (grp);
            create table tasks (id int primary key, v int);
            insert into tasks values (1, 0);
            insert into big values (0, 5, 'before');
            select rowcast.watch('big'), rowcast.watch('tasks')",
        )
        .await;
    let mut touched = relay.stream("/rest/v1/big?grp=eq.5").await;
    let mut part = Screen::default();
    part.follow(&mut touched, |screen| screen.rows.len() == 1)
        .await;
    let mut other = relay.stream("/rest/v1/tasks").await;
    let mut tasks = Screen::default();
    tasks.follow(&mut other, |_| true).await;

    let writer = database.client().await;
    let mut version = 0;
    let mut beat = async |times: &mut Vec<Duration>| {
        version += 1;
        let begun = Instant::now();
        writer
            .batch_execute(&format!("update tasks set v = {version}"))
            .await
            .unwrap();
        // A huge one may hold it up for long.
        while tasks.rows["1"]["v"] != version {
            let event = tokio::time::timeout(Duration::from_mins(2), other.next()).await;
            tasks.apply(&event.unwrap().expect("the stream goes on"));
        }
        times.push(begun.elapsed());
    };
    let mut calm = Vec::new();
    for _ in 0..100 {
        beat(&mut calm).await;
    }
    let before = resident(&relay);
    let (peak, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let watching = async {
        while !over.load(Ordering::Relaxed) {
            peak.fetch_max(resident(&relay), Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let rows = rows();
    let written = AtomicBool::new(false);
    let sql = format!(
        "insert into big select n, n % 1000, 'row ' || n from generate_series(1, {rows}) n"
    );
    let writing = async {
        let txid = database.commit(&sql).await;
        written.store(true, Ordering::Relaxed);
        txid
    };
    let beating = async {
        let mut times = Vec::new();
        while !written.load(Ordering::Relaxed) || times.len() < 100 {
            beat(&mut times).await;
        }
        times
    };
    let both = async {
        let both = futures::join!(writing, beating);
        over.store(true, Ordering::Relaxed);
        both
    };
    let ((txid, busy), ()) = futures::join!(both, watching);
    let begun = Instant::now();
    loop {
        let event = touched.next().await.expect("the stream goes on");
        part.apply(&event);
        if part.complete && event.covers(&txid) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_mins(2));
    }
    assert_eq!(part.rows.len(), rows / 1000 + 1);
    assert!(count(&relay, "rowcast_resets_total{reason=\"table\"}").await >= 1);
    // What is not kept is not even read, since it was open for long before it committed.
    let read = relay.metric("rowcast_log_rows_total").await;
    let most = 5_000 + 3 * version;
    assert!(read < f64::from(most), "{read} rows of the log were read");
    let grown = peak.load(Ordering::Relaxed).saturating_sub(before) >> 20;
    eprintln!(
        "{rows} rows: the relay grew by {grown} MiB at most; other views' p99 {:.1} ms, without {:.1} ms, worst {:?}",
        p99(busy.clone()),
        p99(calm),
        busy.iter().max().unwrap()
    );
    assert!(grown <= 128, "{grown} MiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_around_a_huge_one_are_told_and_so_is_what_it_did_besides() {
    around_a_huge_one("").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_one_is_told_out_of_a_log_that_has_the_index_of_an_earlier_version() {
    let earlier =
        "drop index rowcast.log_touched; alter table rowcast.log add primary key (xid, id)";
    around_a_huge_one(earlier).await;
}

async fn around_a_huge_one(prepared: &str) {
    let database = database().await;
    database.relay().await.kill().await;
    database.sql(prepared).await;
    let relay = database.relay().await;
    database
        .sql(
            "create table early (id int primary key, grp int);
            create table late (id int primary key, grp int);
            create table small (id int primary key, v int);
            insert into early values (0, 1);
            insert into late values (0, 1);
            select rowcast.watch('early'), rowcast.watch('late'), rowcast.watch('small')",
        )
        .await;
    let mut screens = Vec::new();
    for url in ["early?grp=eq.1", "late?grp=eq.1", "small"] {
        let mut stream = relay.stream(&format!("/rest/v1/{url}")).await;
        let mut screen = Screen::default();
        screen.follow(&mut stream, |_| true).await;
        screens.push((stream, screen));
    }
    let fill = |table: &str| {
        format!("insert into {table} select n, n % 50000 from generate_series(1, 50000) n")
    };
    // It is open where the relay has read to, and goes on from there.
    let writer = database.client().await;
    writer
        .batch_execute(&format!("begin; {}", fill("early")))
        .await
        .unwrap();
    let txid = database.commit("insert into small values (1, 1)").await;
    let (stream, screen) = &mut screens[2];
    screen.reach(stream, &txid).await;

    relay.signal("STOP").await;
    database.sql("insert into small values (2, 2)").await;
    let altered = format!(
        "begin; alter table late add added int default 7; {}; commit",
        fill("late")
    );
    database.sql(&altered).await;
    writer.batch_execute("commit").await.unwrap();
    let txid = database.commit("insert into small values (3, 3)").await;
    relay.signal("CONT").await;
    let (stream, screen) = &mut screens[2];
    screen.reach(stream, &txid).await;
    assert_eq!(screen.rows.len(), 3);
    for (number, rows) in [(0, 2), (1, 2)] {
        let (stream, screen) = &mut screens[number];
        screen
            .follow(stream, |screen| {
                screen.complete && screen.rows.len() == rows
            })
            .await;
    }
    assert_eq!(screens[1].1.rows["1"]["added"], 7);
}

/// What takes longer to read than the database lets statements take would never be read, nor what came later.
#[tokio::test]
async fn a_limit_for_statements_stops_nobody_from_reading_the_log() {
    let database = database().await;
    database.set("statement_timeout = 500").await;
    let relay = database.relay().await;
    database
        .sql(
            "create table large (id int primary key, body text); create table calm (id int primary key); \
             select rowcast.watch('large'), rowcast.watch('calm')",
        )
        .await;
    let (mut calm, mut screen) = relay.shown("/rest/v1/calm").await;
    // 360 MB of text, which compresses well.
    let large = "insert into large select n, repeat('x', 20000) from generate_series(1, 18000) n";
    let writer = database.client().await;
    writer
        .batch_execute("set statement_timeout = 0")
        .await
        .unwrap();
    writer.batch_execute(large).await.unwrap();
    let txid = database.commit("insert into calm values (1)").await;
    screen.reach(&mut calm, &txid).await;
}
