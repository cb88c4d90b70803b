//! A new release meets relays and writers of the one before, and neither notices.
//!
//! `upgrade/schema-4.sql` is what `rowcast sql` printed when the schema had version 4.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::harness::{Database, Screen, command, database, eventually};

const BEFORE: &str = include_str!("upgrade/schema-4.sql");

/// What a relay of version 4 says all the time, one connection a task. Panics when it fails.
async fn relay_of_version_4(database: &Database) -> Vec<JoinHandle<()>> {
    let poll = "begin isolation level repeatable read, read only; set local search_path = pg_catalog, pg_temp;
        set local enable_seqscan = off; set local jit = off; set local row_security = off; set local lock_timeout = '300ms';
        select pg_current_snapshot()::text, e.uuid::text, s.horizon::text, g.last_value, g.is_called, s.gap
        from rowcast.state s left join rowcast.epoch e on true cross join rowcast.gap g;
        select id, xid, at, rel, op, channel, old, new, truncated from rowcast.log where xid >= pg_snapshot_xmin(pg_current_snapshot());
        commit";
    let starts = "select rowcast.begin_epoch();
        select coalesce((select t.snapshot from rowcast.tick t, rowcast.state s
            where t.at > clock_timestamp() - interval '5 minutes'
              and (s.horizon is null or pg_snapshot_xmin(t.snapshot) >= pg_snapshot_xmax(s.horizon))
            order by t.at limit 1), pg_current_snapshot())::text";
    let upkeep = "select rowcast.check_drift(); select rowcast.trim(make_interval(secs => 3600), 10000); select rowcast.settle_gap(0)";
    let reads = "select * from rowcast.position(); select rowcast.channel_allowed('lobby')";
    let mut tasks = Vec::new();
    for (sql, pause) in [(poll, 2), (poll, 3), (starts, 20), (upkeep, 15), (reads, 5)] {
        let client = database.client().await;
        tasks.push(tokio::spawn(again(client, sql.to_owned(), pause)));
    }
    tasks
}

async fn again(client: Client, sql: String, pause: u64) {
    loop {
        client
            .batch_execute(&sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {:?}", error.as_db_error()));
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

#[tokio::test]
async fn a_schema_is_upgraded_under_relays_and_writers_of_the_release_before() {
    let database = database().await;
    database.sql(BEFORE).await;
    database
        .sql("create table tasks (id int primary key, title text); select rowcast.begin_epoch(); select rowcast.watch('tasks')")
        .await;
    let version = "select version::text from rowcast.state";
    assert_eq!(database.one(version).await, "4");
    let old = relay_of_version_4(&database).await;
    let writer = database.client().await;
    let done = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let done = Arc::clone(&done);
        async move {
            let mut written = 0;
            while !done.load(Ordering::Relaxed) {
                written += 1;
                let sql = format!("insert into tasks values ({written}, 'x')");
                writer.batch_execute(&sql).await.unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            written
        }
    });
    more_is_written(&database).await;
    // In the middle of it, and with somebody who holds a table until the new release has waited for
    // it in vain. Nobody queues behind the two: whoever did would wait for himself.
    let holder = database.client().await;
    holder
        .batch_execute("begin; select version from rowcast.state")
        .await
        .unwrap();
    let (relay, ()) = futures::join!(database.relay(), async {
        let waiting = "select coalesce(min(pid), 0)::text from pg_locks
            where not granted and relation = 'rowcast.state'::regclass";
        eventually("the new release waits for the table", async || {
            (database.one(waiting).await != "0").then_some(())
        })
        .await;
        more_is_written(&database).await;
        holder.batch_execute("commit").await.unwrap();
    });
    assert_eq!(
        database.one(version).await,
        rowcast::schema::migrate::version().to_string()
    );
    let mut stream = relay.stream("/rest/v1/tasks").await;
    let mut screen = Screen::default();
    more_is_written(&database).await;
    done.store(true, Ordering::Relaxed);
    let written = writing.await.unwrap();
    let txid = database
        .commit("insert into tasks values (0, 'last')")
        .await;
    screen.reach(&mut stream, &txid).await;
    assert_eq!(screen.rows.len(), written + 1);
    for task in old {
        assert!(!task.is_finished(), "{:?}", task.await);
        task.abort();
    }
}

#[tokio::test]
async fn a_log_that_is_small_is_not_written_ahead_any_more_and_one_that_is_not_stays() {
    let database = database().await;
    database.sql(BEFORE).await;
    let how = "select c.relpersistence::text || ' ' || string_agg(i.indexrelid::regclass::text, ', ') \
        from pg_class c join pg_index i on i.indrelid = c.oid where c.oid = 'rowcast.log'::regclass \
        group by c.relpersistence";
    let (earlier, now) = ("p rowcast.log_pkey", "u rowcast.log_touched");
    let count = "select count(*) from rowcast.log";
    assert_eq!(database.one(how).await, earlier);
    let fill = "select rowcast.begin_epoch(); alter table rowcast.log alter new set storage external;
        insert into rowcast.log (op, new) select 'P', to_json(repeat('x', 100000)) from generate_series(1, 100)";
    database.sql(fill).await;
    database.relay().await.kill().await;
    assert_eq!(database.one(how).await, earlier);
    assert_eq!(database.one(count).await, "100");
    // What a smaller one holds comes along. Nobody notices that it is emptied by hand: that would void all.
    database
        .sql(
            "alter table rowcast.log disable trigger emptied; delete from rowcast.log where id > 3; \
             alter table rowcast.log enable always trigger emptied",
        )
        .await;
    eventually("nobody needs what was deleted", async || {
        database.sql("vacuum full rowcast.log").await;
        let size = "select pg_total_relation_size('rowcast.log') < 1000000";
        (database.one(size).await == "t").then_some(())
    })
    .await;
    database
        .sql("update rowcast.state set functions = ''")
        .await;
    let _relay = database.relay().await;
    assert_eq!(database.one(how).await, now);
    assert_ne!(database.one(count).await, "0");
}

async fn more_is_written(database: &Database) {
    let rows = async || -> usize {
        let count = database.one("select count(*) from tasks").await;
        count.parse().unwrap()
    };
    let then = rows().await;
    eventually("somebody writes", async || {
        (rows().await > then + 100).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_earlier_relay_works_with_what_a_later_one_left_or_says_that_it_cannot() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql("create table tasks (id int primary key); select rowcast.watch('tasks')")
        .await;
    relay.kill().await;
    // A later release, which earlier relays can work with.
    database
        .sql("update rowcast.state set version = 99, functions = '99.0.0 abc'")
        .await;
    let relay = database.relay().await;
    let mut stream = relay.stream("/rest/v1/tasks").await;
    let mut screen = Screen::default();
    let txid = database.commit("insert into tasks values (1)").await;
    screen.reach(&mut stream, &txid).await;
    relay.kill().await;
    let left = "select version || ' ' || functions from rowcast.state";
    assert_eq!(database.one(left).await, "99 99.0.0 abc");

    // And one that they cannot.
    database.sql("update rowcast.state set needs = 99").await;
    let refused = command()
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--database-url",
            &database.url,
        ])
        .output()
        .await
        .unwrap();
    assert!(!refused.status.success());
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("needs relays of version 99"), "{said}");
    assert!(said.contains("try:"), "{said}");
}

#[tokio::test]
async fn an_old_schema_that_came_with_a_dump_is_not_taken_for_one_from_here() {
    let database = database().await;
    database.sql(BEFORE).await;
    database
        .sql(
            "create table tasks (id int primary key, title text); select rowcast.begin_epoch(); select rowcast.watch('tasks');
             insert into rowcast.log (xid, rel, op, new) values ('9999999', 'tasks'::regclass, 'I', '{\"id\":1}')",
        )
        .await;
    let epoch = "select uuid from rowcast.epoch";
    let before = database.one(epoch).await;
    let _relay = database.relay().await;
    eventually("a life of its own", async || {
        let now = database.one(epoch).await;
        (!now.is_empty() && now != before).then_some(())
    })
    .await;
    let foreign = "select count(*) from rowcast.log where xid = '9999999'";
    assert_eq!(database.one(foreign).await, "0");
    eventually("its table is known", async || {
        let known = "select count(*) from rowcast.watched where rowcast.captured(rel)";
        (database.one(known).await == "1").then_some(())
    })
    .await;
}

/// Of two builds of one release the last to start installs its functions, and what it knows nothing of stays: the log's
/// trigger.
#[tokio::test]
async fn functions_of_an_earlier_build_keep_the_log_under_the_trigger_of_a_later_one() {
    let database = database().await;
    database.relay().await.kill().await;
    let epoch = "select uuid from rowcast.epoch";
    let before = database.one(epoch).await;
    let trims = async || {
        database
            .sql("delete from rowcast.tick; insert into rowcast.log (op, channel) values ('P', 'lobby')")
            .await;
        let trimmed = database.one("select rowcast.trim('0 s', 10000)").await;
        assert_eq!(trimmed, "1");
        assert_eq!(database.one(epoch).await, before);
    };
    trims().await;
    for function in ["begin_epoch()", "trim(retention interval, chunk integer)"] {
        let head = format!("create or replace function rowcast.{function}");
        let (_, rest) = BEFORE.split_once(&head).unwrap();
        let (body, _) = rest.split_once("\n$$;").unwrap();
        database.sql(&format!("{head}{body}\n$$")).await;
    }
    trims().await;
    // By which the functions are known by longer names.
    database.set("quote_all_identifiers = on").await;
    trims().await;
    let made = database.one("select rowcast.new_epoch()").await;
    assert_ne!(made, before);
    assert_eq!(database.one(epoch).await, made);
}
