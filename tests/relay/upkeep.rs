//! The log keeps what it must and no more, and says so when it cannot.

use std::time::Duration;

use crate::harness::{
    DEADLINE, Database, Event, Relay, Screen, Server, Stream, command, database, eventually,
};

const TASKS: &str = "create table tasks (id int primary key, title text);
    insert into tasks values (1, 'one'); select rowcast.watch('tasks')";
const PATH: &str = "/rest/v1/tasks";

/// A screen that has everything up to now, the reset that watching logs included.
async fn settled(database: &Database, relay: &Relay) -> (Stream, Screen) {
    let mut stream = relay.stream(PATH).await;
    let mut screen = Screen::default();
    let txid = database
        .commit("update tasks set title = title where id = 1")
        .await;
    screen.reach(&mut stream, &txid).await;
    (stream, screen)
}

async fn shows_what_is_there(relay: &Relay, path: &str, screen: &Screen) {
    let read = relay.get(path).await.json();
    let mut rows: Vec<_> = screen.rows.values().cloned().collect();
    rows.sort_by_key(|row| row["id"].as_i64());
    let mut read = read.as_array().unwrap().clone();
    read.sort_by_key(|row| row["id"].as_i64());
    assert_eq!(rows, read);
}

/// Applies events until one is a reset; gives all.
async fn until_reset(stream: &mut Stream, screen: &mut Screen) -> Vec<Event> {
    let mut events = Vec::new();
    let begun = std::time::Instant::now();
    loop {
        // Heartbeats never end.
        assert!(begun.elapsed() < DEADLINE * 2, "no reset came");
        let event = stream.next().await.expect("the stream goes on");
        screen.apply(&event);
        let is_reset = event.has_control("reset");
        events.push(event);
        if is_reset {
            return events;
        }
    }
}

#[tokio::test]
async fn a_log_that_is_too_large_loses_its_oldest_changes_and_says_so() {
    let database = database().await;
    let log = tempfile::NamedTempFile::new().unwrap();
    let relay = Relay::logged(&database, &["--log-size", "100KiB"], log.path()).await;
    database.sql(TASKS).await;
    let (stream, _) = settled(&database, &relay).await;
    let early = stream.id.clone();
    drop(stream);
    database
        .sql("insert into tasks select n, repeat('x', 1000) from generate_series(2, 500) n")
        .await;
    // Two ticks that know of it, of which the log keeps what is after the first.
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(1100)).await;
        database
            .sql("select rowcast.trim('1 h', 1, 1000000000)")
            .await;
    }
    let late = settled(&database, &relay).await.0.id;
    eventually("the log is trimmed for its size", async || {
        (relay.metric("rowcast_log_trimmed_early_total").await >= 1.0).then_some(())
    })
    .await;
    eventually("its size is told", async || {
        let kept = relay.metric("rowcast_log_kept_bytes").await;
        (kept < 102_400.0).then_some(())
    })
    .await;
    assert!(relay.metric("rowcast_log_trimmed_rows_total").await >= 500.0);
    assert!(relay.metric("rowcast_log_file_bytes").await > 0.0);
    let said = std::fs::read_to_string(log.path()).unwrap();
    assert!(said.contains("more than --log-size"), "{said}");
    relay.kill().await;

    // Whoever comes back from before reads the state anew; whoever does not, does not.
    let relay = database.relay().await;
    let mut stream = relay.resume(PATH, &early).await;
    let mut screen = Screen::default();
    let event = stream.data().await;
    assert!(event.has_control("reset"), "{}", event.data);
    let mut stream = relay.resume(PATH, &late).await;
    let txid = database
        .commit("update tasks set title = 'two' where id = 2")
        .await;
    screen.complete = true;
    let events = screen.reach(&mut stream, &txid).await;
    assert!(!events.iter().any(|event| event.has_control("reset")));
}

#[tokio::test]
async fn a_screen_that_returns_while_the_log_is_trimmed_misses_nothing() {
    let database = database().await;
    let mut relay = database.relay().await;
    database.sql(TASKS).await;
    let mut screens = Vec::new();
    for _ in 0..6 {
        let (stream, screen) = settled(&database, &relay).await;
        screens.push((stream.id.clone(), screen));
    }
    // What is done goes at once, over and over.
    let trimming = {
        let client = database.client().await;
        tokio::spawn(async move {
            loop {
                client
                    .batch_execute(
                        "insert into rowcast.tick default values on conflict do nothing;
                         select rowcast.trim('0 s', 1000)",
                    )
                    .await
                    .unwrap();
                tokio::time::sleep(Duration::from_millis(60)).await;
            }
        })
    };
    let writing = {
        let client = database.client().await;
        tokio::spawn(async move {
            for n in 2.. {
                let sql = format!(
                    "insert into tasks values ({n}, 'new'); update tasks set title = 'at {n}' where id % 7 = {n} % 7;
                     delete from tasks where id = {n} - 40"
                );
                client.batch_execute(&sql).await.unwrap();
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        })
    };
    let (mut resets, mut resumes) = (0, 0);
    for round in 0..6_usize {
        // A new relay has little in memory: it reads the log, or cannot.
        relay.kill().await;
        relay = database.relay().await;
        for (at, (id, screen)) in screens.iter_mut().enumerate() {
            // Some come back soon and some have been away for rounds.
            if !(round + at).is_multiple_of(at / 2 + 1) && round < 5 {
                continue;
            }
            let mut stream = relay.resume(PATH, id).await;
            let txid = database
                .commit("update tasks set title = 'mark' where id = 1; insert into tasks values (-1, 'mark') on conflict (id) do update set title = clock_timestamp()::text")
                .await;
            let events = screen.reach(&mut stream, &txid).await;
            if events.iter().any(|event| event.has_control("reset")) {
                resets += 1;
            } else {
                resumes += 1;
            }
            id.clone_from(&stream.id);
        }
    }
    writing.abort();
    trimming.abort();
    let _both = (writing.await, trimming.await);
    for (id, screen) in &mut screens {
        let mut stream = relay.resume(PATH, id).await;
        let txid = database
            .commit("update tasks set title = 'the end' where id = 1")
            .await;
        screen.reach(&mut stream, &txid).await;
        shows_what_is_there(&relay, PATH, screen).await;
    }
    assert!(resets > 0, "nobody came too late: {resumes} resumes");
}

#[tokio::test]
async fn a_change_that_could_not_even_be_logged_by_key_is_a_reset_once_it_is_committed() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    let (mut stream, mut screen) = settled(&database, &relay).await;
    // Rows above the cap are logged by their key, and here that fails too.
    database
        .sql("alter table rowcast.log add constraint no_keys check (not truncated)")
        .await;
    let writer = database.client().await;
    writer
        .batch_execute(
            "begin; insert into tasks select 2, string_agg(md5(n::text), '') from generate_series(1, 20000) n",
        )
        .await
        .unwrap();
    // Something else tells the relay to look, and it sees that something is missing.
    database
        .sql("update tasks set title = 'x' where id = 1")
        .await;
    stream
        .until(|event| event.name == "control" && event.json()["upToDate"] == false)
        .await;
    // Not before the writer is done: a state that is read now does not have it.
    while let Some(event) = stream.next_within(Duration::from_millis(1500)).await {
        assert!(!event.has_control("reset"), "{}", event.data);
        if event.name == "control" {
            assert_eq!(event.json()["upToDate"], false);
            break;
        }
    }
    writer.batch_execute("commit").await.unwrap();
    until_reset(&mut stream, &mut screen).await;
    screen
        .follow(&mut stream, |screen| screen.rows.contains_key("2"))
        .await;
    stream
        .until(|event| event.name == "control" && event.json()["upToDate"] == true)
        .await;
}

#[tokio::test]
async fn what_changes_behind_the_triggers_is_shown_whatever_it_is() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql("create role somebody_else_of_upkeep;
              create table days (id int, day date, note text, primary key (id, day)) partition by range (day);
              create table november partition of days for values from ('2026-11-01') to ('2026-12-01');
              create table december partition of days for values from ('2026-12-01') to ('2027-01-01');
              insert into days values (1, '2026-11-01', 'a'), (2, '2026-12-01', 'b');
              create table tasks (id int primary key, n int, note text);
              insert into tasks values (1, 10, 'x'), (2, 20, 'y');
              select rowcast.watch('tasks'), rowcast.watch('days')")
        .await;
    for (what, path, sql) in [
        ("a partition goes with its rows", "/rest/v1/days", "alter table days detach partition december"),
        (
            "and comes back with others",
            "/rest/v1/days",
            "update december set note = 'unseen';
             alter table days attach partition december for values from ('2026-12-01') to ('2027-01-01')",
        ),
        ("a type is changed, and values with it", PATH, "alter table tasks alter n type bigint using n * 10"),
        ("values are rewritten under the same type", PATH, "alter table tasks alter note type text using upper(note)"),
        (
            "triggers are disabled for a while",
            PATH,
            "begin; alter table tasks disable trigger all; update tasks set note = 'unseen'; alter table tasks enable trigger all; commit",
        ),
        (
            "a trigger does not fire always any more",
            PATH,
            "begin; alter table tasks enable trigger \"!rowcast\"; set local session_replication_role = replica;
             update tasks set note = 'replayed'; commit",
        ),
        ("the owner changes", PATH, "alter table tasks owner to somebody_else_of_upkeep"),
        ("a column is renamed", PATH, "alter table tasks rename note to remark"),
    ] {
        let mut stream = relay.stream(path).await;
        let mut screen = Screen::default();
        screen.follow(&mut stream, |_| true).await;
        // Whatever watching or the case before has left is over once a change is shown.
        let table = path.rsplit('/').next().unwrap();
        let txid = database.commit(&format!("update {table} set id = id")).await;
        screen.reach(&mut stream, &txid).await;
        eventually("drift is settled", async || {
            let settled = format!("select rowcast.captured('{table}'::regclass) and w.shape = rowcast.shape(w.rel) and w.files::text = rowcast.files(w.rel)::text
                                   from rowcast.watched w where rel = '{table}'::regclass");
            (database.one(&settled).await == "t").then_some(())
        })
        .await;
        let txid = database.commit(&format!("update {table} set id = id")).await;
        screen.reach(&mut stream, &txid).await;

        database.sql(sql).await;
        let begun = std::time::Instant::now();
        until_reset(&mut stream, &mut screen).await;
        screen.follow(&mut stream, |_| true).await;
        let txid = database.commit(&format!("update {table} set id = id")).await;
        screen.reach(&mut stream, &txid).await;
        shows_what_is_there(&relay, path, &screen).await;
        eventually(what, async || {
            let captured = format!("select rowcast.captured('{table}'::regclass)");
            (database.one(&captured).await == "t").then_some(())
        })
        .await;
        assert!(begun.elapsed() < Duration::from_secs(15), "{what}");
    }
    assert!(relay.metric("rowcast_drift_total").await >= 8.0);
}

/// A transaction that looks at the table is waited for, and who waits may be interrupted.
#[tokio::test]
async fn a_partition_that_is_being_detached_is_gone_for_screens_as_it_is_for_reads() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql("create table days (id int, day date, note text, primary key (id, day)) partition by range (day);
              create table november partition of days for values from ('2026-11-01') to ('2026-12-01');
              create table december partition of days for values from ('2026-12-01') to ('2027-01-01');
              insert into days values (1, '2026-11-01', 'a'), (2, '2026-12-01', 'b');
              select rowcast.watch('days')")
        .await;
    let path = "/rest/v1/days";
    let (mut stream, mut screen) = relay.shown(path).await;
    let reader = database.client().await;
    reader
        .batch_execute("begin; select from days")
        .await
        .unwrap();
    let detaching = database.client().await;
    detaching
        .batch_execute("set statement_timeout = '100ms'")
        .await
        .unwrap();
    let interrupted = detaching
        .batch_execute("alter table days detach partition december concurrently")
        .await;
    interrupted.unwrap_err();
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 1)
        .await;
    let txid = database
        .commit("update december set note = 'unseen'; update days set note = 'seen'")
        .await;
    screen.reach(&mut stream, &txid).await;
    shows_what_is_there(&relay, path, &screen).await;

    // It may stay so for long, and who writes to it makes nobody look at the tables.
    eventually("no catalogue is read for what is written", async || {
        let reads = async || relay.metric("rowcast_schema_cache_loads_total").await;
        let before = reads().await;
        for _ in 0..3 {
            let both = "update december set note = 'unseen'; update days set note = note || '.'";
            let txid = database.commit(both).await;
            screen.reach(&mut stream, &txid).await;
        }
        (reads().await <= before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_is_written_to_a_partition_between_its_detachment_and_its_return_is_shown() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql("create table days (id int, day date, note text, primary key (id, day)) partition by range (day);
              create table november partition of days for values from ('2026-11-01') to ('2026-12-01');
              insert into days values (1, '2026-11-01', 'old');
              select rowcast.watch('days')")
        .await;
    let path = "/rest/v1/days";
    let (mut stream, mut screen) = relay.shown(path).await;
    // In one transaction, so that nobody ever sees the table without it.
    database
        .sql("begin; alter table days detach partition november; update november set note = 'new';
              alter table days attach partition november for values from ('2026-11-01') to ('2026-12-01'); commit")
        .await;
    screen
        .follow(&mut stream, |screen| {
            screen.rows.values().all(|row| row["note"] == "new")
        })
        .await;
    shows_what_is_there(&relay, path, &screen).await;
}

#[tokio::test]
async fn another_expression_of_a_virtual_column_is_shown() {
    let database = database().await;
    let version = database
        .one("select current_setting('server_version_num')::int / 10000")
        .await;
    if version.parse::<u32>().unwrap() < 18 {
        eprintln!("skipped: virtual columns come with PostgreSQL 18");
        return;
    }
    let relay = database.relay().await;
    database
        .sql(
            "create table tasks (id int primary key, title text, more int generated always as (id * 2) virtual);
             insert into tasks values (1, 'one'); select rowcast.watch('tasks')",
        )
        .await;
    let (mut stream, mut screen) = settled(&database, &relay).await;
    database
        .sql("alter table tasks alter more set expression as (id * 3)")
        .await;
    until_reset(&mut stream, &mut screen).await;
    screen
        .follow(&mut stream, |screen| screen.rows["1"]["more"] == 3)
        .await;
    shows_what_is_there(&relay, PATH, &screen).await;
}

#[tokio::test]
async fn a_token_from_the_future_resets_only_the_client_that_brought_it() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    let (mut honest, mut screen) = settled(&database, &relay).await;
    let before = honest.id.clone();
    let [epoch, view, _] = before.split('.').collect::<Vec<_>>()[..] else {
        panic!("{before}")
    };
    let forged = format!("{epoch}.{view}.fffffffffff");
    let mut liar = relay.resume(PATH, &forged).await;
    assert!(liar.data().await.has_control("reset"));
    let txid = database.commit("insert into tasks values (2, 'two')").await;
    let events = screen.reach(&mut honest, &txid).await;
    assert!(!events.iter().any(|event| event.has_control("reset")));
    assert!(honest.id.starts_with(epoch), "{} {}", honest.id, forged);
}

#[tokio::test]
async fn a_new_epoch_voids_every_token() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    let (mut stream, mut screen) = settled(&database, &relay).await;
    let before = stream.id.clone();
    let made = command()
        .args(["new-epoch", "--database-url", &database.url])
        .output()
        .await
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    until_reset(&mut stream, &mut screen).await;
    let txid = database.commit("insert into tasks values (2, 'two')").await;
    screen.reach(&mut stream, &txid).await;
    shows_what_is_there(&relay, PATH, &screen).await;
    let epoch = |id: &str| id.split('.').next().unwrap().to_owned();
    assert_ne!(epoch(&stream.id), epoch(&before));
    let mut returned = relay.resume(PATH, &before).await;
    assert!(returned.data().await.has_control("reset"));

    // Whoever empties the log by hand, or a part of it, has done the same.
    for by_hand in [
        "truncate rowcast.log",
        "delete from rowcast.log where id % 2 = 0",
    ] {
        let before = stream.id.clone();
        database.sql(by_hand).await;
        until_reset(&mut stream, &mut screen).await;
        let mut returned = relay.resume(PATH, &before).await;
        assert!(returned.data().await.has_control("reset"), "{by_hand}");
    }
}

#[tokio::test]
async fn files_that_are_restored_under_a_running_relay_are_noticed() {
    let server = Server::start(&[]).await;
    let database = server.database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    let (mut stream, mut screen) = settled(&database, &relay).await;

    let Server { cluster, directory } = server;
    cluster.stop().await;
    let data = directory.path().join("d/data");
    let copy = directory.path().join("d/copy");
    copied(&data, &copy).await;
    let server = Server::resume(directory).await;
    for n in 2..20 {
        let txid = database
            .commit(&format!("insert into tasks values ({n}, 'lost')"))
            .await;
        screen.reach(&mut stream, &txid).await;
    }
    let before = stream.id.clone();

    let Server { cluster, directory } = server;
    cluster.stop().await;
    tokio::fs::remove_dir_all(&data).await.unwrap();
    copied(&copy, &data).await;
    let server = Server::resume(directory).await;
    eventually("the database is back", async || {
        let connected = tokio_postgres::connect(&database.url, tokio_postgres::NoTls).await;
        connected.is_ok().then_some(())
    })
    .await;
    // Under an id that was given out before, for another change.
    database.sql("insert into tasks values (2, 'after')").await;
    until_reset(&mut stream, &mut screen).await;
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 2)
        .await;
    shows_what_is_there(&relay, PATH, &screen).await;
    // And with it everybody who comes back from what is no more.
    let mut returned = relay.resume(PATH, &before).await;
    assert!(returned.data().await.has_control("reset"));
    drop(server);
}

/// As the server that owns the files would, owners and all.
async fn copied(from: &std::path::Path, to: &std::path::Path) {
    let status = tokio::process::Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status()
        .await
        .unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn a_transaction_that_is_open_for_long_is_told_of() {
    let database = database().await;
    let open = database.client().await;
    let log = tempfile::NamedTempFile::new().unwrap();
    let relay = Relay::logged(&database, &["--long-transaction", "1"], log.path()).await;
    database.sql(TASKS).await;
    open.batch_execute(
        "begin; set local application_name = 'forgotten'; insert into tasks values (2, 'open')",
    )
    .await
    .unwrap();
    eventually("it is told of", async || {
        let said = std::fs::read_to_string(log.path()).unwrap();
        said.contains("a transaction is open for long")
            .then_some(())
    })
    .await;
    let said = std::fs::read_to_string(log.path()).unwrap();
    assert!(said.contains("forgotten"), "{said}");
    let age = relay.metric("rowcast_oldest_transaction_age_seconds").await;
    assert!(age >= 1.0, "{age}");
    open.batch_execute("commit").await.unwrap();
}

/// Where transactions are serializable by default, those of the relay would count among what a writer's depends on.
#[tokio::test]
async fn no_serializable_writer_fails_because_the_log_is_looked_after() {
    let database = database().await;
    database
        .set("default_transaction_isolation = serializable")
        .await;
    let log = tempfile::NamedTempFile::new().unwrap();
    let relay = Relay::logged(&database, &[], log.path()).await;
    database
        .sql("create table rates (id int primary key, v int); insert into rates values (1, 0)")
        .await;
    database.sql(TASKS).await;
    let (mut stream, mut screen) = settled(&database, &relay).await;

    // It has read what another changes and commits, so nobody may find it between the two.
    let writer = database.client().await;
    writer
        .batch_execute("begin; select v from rates; insert into tasks values (2, 'two')")
        .await
        .unwrap();
    database.sql("update rates set v = v + 1").await;
    let ticks = async || database.one("select max(n) from rowcast.tick").await;
    let before = ticks().await;
    eventually("another tick", async || {
        (ticks().await != before).then_some(())
    })
    .await;
    writer.batch_execute("commit").await.unwrap();
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 2)
        .await;
    let said = std::fs::read_to_string(log.path()).unwrap();
    assert!(!said.contains("could not serialize"), "{said}");
}

#[tokio::test]
async fn a_relay_that_cannot_look_after_the_log_says_so() {
    let database = database().await;
    database.relay().await.kill().await;
    // Somebody has tidied up.
    database
        .sql("drop function rowcast.trim(interval, integer, bigint)")
        .await;
    let log = tempfile::NamedTempFile::new().unwrap();
    let _relay = Relay::logged(&database, &[], log.path()).await;
    eventually("it is told of", async || {
        let said = std::fs::read_to_string(log.path()).unwrap();
        let told = said.contains("nobody looks after the log") && said.contains("rowcast.trim(");
        told.then_some(())
    })
    .await;
}

/// As some services do with a database whose disk is full. Who writes all the same says so.
#[tokio::test]
async fn where_transactions_only_read_by_default_the_log_is_looked_after_all_the_same() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    relay.kill().await;
    database.set("default_transaction_read_only = on").await;
    let relay = database.relay().await;
    let (mut stream, mut screen) = relay.shown(PATH).await;
    let writer = database.client().await;
    for sql in [
        "set default_transaction_read_only = off",
        "alter table tasks disable trigger all; update tasks set title = 'behind the trigger'",
    ] {
        writer.batch_execute(sql).await.unwrap();
    }
    screen
        .follow(&mut stream, |screen| {
            screen.rows["1"]["title"] == "behind the trigger"
        })
        .await;
    // As everywhere, a new life of the transaction counter is begun by the first who notices.
    writer
        .batch_execute("delete from rowcast.epoch")
        .await
        .unwrap();
    let events = until_reset(&mut stream, &mut screen).await;
    assert!(!events.is_empty());
    shows_what_is_there(&relay, PATH, &screen).await;
}

#[tokio::test]
async fn a_limit_for_statements_is_none_for_waiting_until_another_relay_has_installed() {
    let database = database().await;
    database.set("statement_timeout = '300ms'").await;
    let other = database.client().await;
    let lock = "begin; select pg_advisory_xact_lock(7094114, 0)";
    other.batch_execute(lock).await.unwrap();
    let installed = async {
        eventually("it waits for longer than that", async || {
            let waits = "select count(*) from pg_stat_activity where datname = current_database() \
                 and application_name = 'rowcast install' and wait_event_type = 'Lock' \
                 and clock_timestamp() - query_start > interval '1 s'";
            (database.one(waits).await == "1").then_some(())
        })
        .await;
        other.batch_execute("commit").await.unwrap();
    };
    let (relay, ()) = tokio::join!(database.relay(), installed);
    assert_eq!(relay.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn a_limit_for_statements_is_none_for_reading_the_catalogue() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    relay.kill().await;
    // So many tables that it takes longer.
    database
        .sql(
            "do $$ begin
               for i in 1..3000 loop
                 execute format('create table many_%s (id int primary key, a text, b text, c text)', i);
                 perform rowcast.expose(format('many_%s', i)::regclass);
                 if i % 500 = 0 then commit; end if;
               end loop;
             end $$",
        )
        .await;
    database.set("statement_timeout = '100ms'").await;
    let relay = database.relay().await;
    let (_stream, screen) = relay.shown(PATH).await;
    shows_what_is_there(&relay, PATH, &screen).await;
}

/// As by a restore with --clean, which drops what tells of it before.
#[tokio::test]
async fn a_table_that_is_dropped_while_it_is_looked_at_is_no_finding() {
    let database = database().await;
    database.relay().await.kill().await;
    database.sql(TASKS).await;
    database
        .sql(
            "alter event trigger rowcast_drop disable; \
             create or replace function rowcast.suited(rel oid) returns boolean language plpgsql as $$ \
             begin drop table public.tasks; return false; end $$",
        )
        .await;
    let drift = "select string_agg(found, '; ') from rowcast.check_drift() as found";
    assert_eq!(database.one(drift).await, "");
    let told = database.one(drift).await;
    assert!(told.ends_with("was dropped"), "{told}");
}

#[tokio::test]
async fn what_was_taken_from_a_relay_is_told_by_its_name_and_is_all_that_must_be_given_back() {
    let server = Server::start(&[]).await;
    let database = server.database().await;
    database.relay().await.kill().await;
    database.sql(TASKS).await;
    database
        .sql("create role plain login in role rowcast_owner")
        .await;
    let plain = Database {
        url: database.login("plain"),
    };
    let log = tempfile::NamedTempFile::new().unwrap();
    let relay = Relay::logged(&plain, &[], log.path()).await;
    let ready = async || relay.get("/readyz").await;
    let doctor = async || {
        let arguments = ["doctor", "--database-url", &plain.url];
        let said = command().args(arguments).output().await.unwrap().stdout;
        String::from_utf8(said).unwrap()
    };
    for (taken, given, remedy) in [
        (
            "revoke rowcast_owner from plain",
            "grant rowcast_owner to plain",
            "grant rowcast_owner to plain;",
        ),
        (
            "alter schema rowcast rename to gone",
            "alter schema gone rename to rowcast",
            "rowcast serve",
        ),
    ] {
        database.sql(taken).await;
        let why = eventually("it is told", async || {
            let answer = ready().await;
            answer
                .body
                .contains("is not for this login")
                .then_some(answer.body)
        })
        .await;
        assert!(why.contains("try: rowcast doctor"), "{why}");
        let said = doctor().await;
        assert!(said.contains("PROBLEM") && said.contains(remedy), "{said}");
        database.sql(given).await;
        eventually("it goes on", async || {
            (ready().await.status == 200).then_some(())
        })
        .await;
    }
    let said = std::fs::read_to_string(log.path()).unwrap();
    assert!(!said.contains("several ids at a time"), "{said}");
}

#[tokio::test]
async fn a_catalogue_that_cannot_be_read_is_told_of_once() {
    let database = database().await;
    let log = tempfile::NamedTempFile::new().unwrap();
    let _relay = Relay::logged(&database, &[], log.path()).await;
    database
        .sql("alter table rowcast.exposed rename to elsewhere")
        .await;
    let told = || {
        let said = std::fs::read_to_string(log.path()).unwrap();
        said.matches("the old one serves").count()
    };
    eventually("it is told", async || (told() > 0).then_some(())).await;
    // Ten attempts, or so.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(told(), 1);
}
