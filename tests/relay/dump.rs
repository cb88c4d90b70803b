//! A dump of a database, restored on another server, is a live database like any other.

use std::process::Stdio;

use tokio::process::Command;

use crate::harness::{Database, Screen, Server, database, eventually};

/// Copies a database as operators do. Roles are the cluster's own and come first.
async fn dumped(from: &Database, into: &Database) {
    let copy = "set -e; dump=$(mktemp); trap 'rm $dump' EXIT; \
                pg_dumpall -d \"$0\" --roles-only >\"$dump\"; grep -v 'ROLE postgres' \"$dump\" | psql -q -d \"$1\"; \
                pg_dump -d \"$0\" >\"$dump\"; psql -q -v ON_ERROR_STOP=1 -f \"$dump\" -d \"$1\"";
    let done = Command::new("sh")
        .args(["-c", copy, &from.url, &into.url])
        .stdout(Stdio::null())
        .status();
    assert!(done.await.unwrap().success());
}

/// Gives out transaction ids, so that the next one is at least this.
async fn until_xid(database: &Database, least: u64) {
    let burn = format!(
        "do $$ begin while pg_current_xact_id()::text::bigint < {least} loop commit; end loop; end $$"
    );
    database.sql(&burn).await;
}

#[tokio::test]
async fn what_a_dump_brings_from_another_server_is_neither_told_nor_taken_for_another_table() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create table others (id int primary key); drop table others;
             create table tasks (id int primary key, title text); create table notes (id int primary key, title text);
             create table aside (id int primary key);
             select rowcast.watch('tasks', 'statement'), rowcast.watch('notes'), rowcast.depends('notes', 'tasks')",
        )
        .await;
    until_xid(&database, 5000).await;
    let old = database
        .commit("insert into tasks values (1, 'kept'); insert into notes values (1, 'kept')")
        .await;
    relay.kill().await;
    // A relay begins at a snapshot of the last minutes, if there is one.
    database
        .sql("update rowcast.tick set at = at - interval '1 hour'")
        .await;

    let server = Server::start(&[]).await;
    // Servers of tests are copies of one; a second database has another number.
    server.database().await;
    let copy = server.database().await;
    dumped(&database, &copy).await;
    let logged = format!("select count(*) from rowcast.log where xid::text = '{old}'");
    assert_eq!(copy.one(&logged).await, "2");
    // Another table has the number now that one of them had there.
    copy.sql(
        "update rowcast.watched set rel = 'aside'::regclass where by_statement;
         update rowcast.dependency set rel = 'aside'::regclass, on_rel = 'aside'::regclass where on_rel is not null",
    )
    .await;
    // Before a relay has seen where it is, nobody acts on any of it.
    copy.sql("select rowcast.check_drift(); select rowcast.trim('1 hour', 1000)")
        .await;
    let relay = copy.relay().await;
    eventually("its tables are known again", async || {
        let watched = "select string_agg(rel::regclass::text || ' ' || by_statement, ', ' order by rel::regclass::text) from rowcast.watched";
        (copy.one(watched).await == "notes false, tasks true").then_some(())
    })
    .await;
    // Views that policies decide are compared instead.
    let depends = "select count(*) from rowcast.dependency";
    assert_eq!(copy.one(depends).await, "0");
    assert_eq!(copy.one(&logged).await, "0");
    let mut stream = relay.stream("/rest/v1/tasks").await;
    let mut screen = Screen::default();
    screen.follow(&mut stream, |_| true).await;
    let txid = copy.commit("update tasks set title = 'here'").await;
    screen.reach(&mut stream, &txid).await;
    assert!(
        txid.parse::<u64>().unwrap() < old.parse().unwrap(),
        "{txid}"
    );
    // Past the ids of the dump.
    until_xid(&copy, old.parse::<u64>().unwrap() + 100).await;
    let txid = copy.commit("insert into tasks values (2, 'later')").await;
    let events = screen.reach(&mut stream, &txid).await;
    assert!(events.iter().all(|event| !event.data.contains("kept")));
    assert_eq!(screen.rows.len(), 2);
    eventually("nobody else is watched", async || {
        let tables = "select string_agg(distinct tgrelid::regclass::text, ', ') from pg_trigger where tgname like '!rowcast%'";
        let settled = "select bool_and(rowcast.captured(w.rel) and w.shape = rowcast.shape(w.rel)) from rowcast.watched w";
        (copy.one(tables).await == "notes, tasks" && copy.one(settled).await == "t").then_some(())
    })
    .await;
}
