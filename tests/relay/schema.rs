//! Whatever happens to a watched table, its screens end up showing what it holds.

use hyper::Method;
use serde_json::json;

use crate::harness::{Database, Relay, Screen, Server, Stream, database, eventually};

const TASKS: &str = "
    create table tasks (id int primary key deferrable initially immediate, title text);
    insert into tasks select n, 't' || n from generate_series(1, 5) n;
    select rowcast.watch('tasks')";

/// Asserts that the screen shows what a read gives, by the time it has this transaction.
async fn agrees(relay: &Relay, path: &str, stream: &mut Stream, screen: &mut Screen, txid: &str) {
    screen.reach(stream, txid).await;
    let read = relay.get(path).await.json();
    let read: Vec<_> = read.as_array().unwrap().iter().collect();
    let mut rows: Vec<_> = screen.rows.values().collect();
    rows.sort_by_key(|row| row["id"].as_i64());
    let mut sorted = read.clone();
    sorted.sort_by_key(|row| row["id"].as_i64());
    assert_eq!(rows, sorted);
}

#[tokio::test]
async fn a_new_column_is_told_and_then_shown_in_the_same_stream() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    let (mut stream, mut screen) = relay.shown("/rest/v1/tasks").await;
    let (mut chosen, _) = relay.shown("/rest/v1/tasks?select=id,title").await;

    database
        .sql("alter table tasks add column done boolean not null default false")
        .await;
    let told = stream
        .until(|event| event.name == "control" && event.json()["schema"].is_array())
        .await;
    assert_eq!(
        told.json()["schema"][2],
        json!({"name": "done", "type": "boolean"})
    );
    let reset = stream.data().await;
    assert!(reset.has_control("reset"), "{}", reset.data);
    screen.apply(&reset);
    let txid = database
        .commit("insert into tasks values (6, 't6', true)")
        .await;
    agrees(&relay, "/rest/v1/tasks", &mut stream, &mut screen, &txid).await;
    assert_eq!(screen.rows["1"]["done"], false);

    database.sql("alter table tasks drop column title").await;
    let error = chosen
        .until(|event| event.name == "control" && event.json()["error"].is_object())
        .await;
    assert_eq!(error.json()["error"]["code"], "42703");
    assert!(error.retry.is_some());
    assert_eq!(chosen.next().await, None);
    let txid = database.commit("update tasks set done = true").await;
    agrees(&relay, "/rest/v1/tasks", &mut stream, &mut screen, &txid).await;
    assert_eq!(screen.rows["1"], json!({"id": 1, "done": true}));
}

#[tokio::test]
async fn disabled_triggers_come_back_and_what_they_missed_is_shown() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    let (mut stream, mut screen) = relay.shown("/rest/v1/tasks").await;
    // In one transaction, so that no repair comes between.
    database
        .sql("begin; alter table tasks disable trigger all; update tasks set title = 'unseen' where id = 2; commit")
        .await;
    screen
        .follow(&mut stream, |screen| screen.rows["2"]["title"] == "unseen")
        .await;
    eventually("the triggers are enabled", async || {
        let enabled = database.one("select bool_and(tgenabled = 'A') from pg_trigger where tgrelid = 'tasks'::regclass and tgname like '!%'").await;
        (enabled == "t").then_some(())
    })
    .await;
    let txid = database.commit("delete from tasks where id = 1").await;
    agrees(&relay, "/rest/v1/tasks", &mut stream, &mut screen, &txid).await;
}

#[tokio::test]
async fn odd_transactions_show_their_end_and_nothing_else() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    database
        .sql("create table audit (id bigint generated always as identity primary key, task int);
              create function nested() returns trigger language plpgsql as $$
              begin
                if new.title = 'again' then
                  update tasks set title = 'settled' where id = new.id;
                end if;
                return null;
              end $$;
              create trigger a_nested after insert or update on tasks for each row execute function nested()")
        .await;
    let path = "/rest/v1/tasks";
    let (mut stream, mut screen) = relay.shown(path).await;

    // Every key moves onto one that is still there.
    let txid = database
        .commit("set constraints all deferred; update tasks set id = id + 1")
        .await;
    agrees(&relay, path, &mut stream, &mut screen, &txid).await;
    assert_eq!(
        screen.rows.keys().collect::<Vec<_>>(),
        ["2", "3", "4", "5", "6"]
    );

    // A key that moves alone is a delete and an upsert.
    let txid = database
        .commit("update tasks set id = 60 where id = 6")
        .await;
    let event = stream.data().await;
    let elements = event.elements();
    assert_eq!(elements.len(), 2, "{}", event.data);
    assert_eq!(
        (&elements[0]["key"], &elements[0]["headers"]["operation"]),
        (&json!("6"), &json!("delete"))
    );
    assert_eq!(
        (&elements[1]["key"], &elements[1]["value"]["id"]),
        (&json!("60"), &json!(60))
    );
    screen.apply(&event);
    assert!(event.covers(&txid));

    // The nested update is logged first and happens last.
    let txid = database
        .commit("insert into tasks values (70, 'again')")
        .await;
    agrees(&relay, path, &mut stream, &mut screen, &txid).await;
    assert_eq!(screen.rows["70"]["title"], "settled");
    let txid = database
        .commit("update tasks set title = 'again' where id in (2, 3)")
        .await;
    agrees(&relay, path, &mut stream, &mut screen, &txid).await;

    // Rows that did not outlive their transaction were never there.
    let txid = database
        .commit("insert into tasks values (80, 'x'); update tasks set title = 'y' where id = 80; delete from tasks where id = 80;
                 delete from tasks where id = 2; insert into tasks values (2, 'born again')")
        .await;
    let events = screen.reach(&mut stream, &txid).await;
    assert!(events.iter().all(|event| !event.data.contains("\"80\"")));
    agrees(
        &relay,
        path,
        &mut stream,
        &mut screen,
        &database
            .commit("update tasks set title = title where id = 3")
            .await,
    )
    .await;
    assert_eq!(screen.rows["2"]["title"], "born again");

    // A truncation is a reset, and what its transaction did afterwards follows in the same event.
    let txid = database.commit("update tasks set title = 'lost'; truncate tasks; insert into tasks values (1, 'first')").await;
    let event = stream.data().await;
    let elements = event.elements();
    assert_eq!(elements[0]["headers"]["control"], "reset");
    assert_eq!(elements.len(), 2, "{}", event.data);
    assert!(event.has_txid(&txid));
    screen.apply(&event);
    agrees(
        &relay,
        path,
        &mut stream,
        &mut screen,
        &database
            .commit("insert into tasks values (2, 'second')")
            .await,
    )
    .await;
    assert_eq!(screen.rows.len(), 2);
}

#[tokio::test]
async fn what_a_trigger_inserts_while_several_tables_are_truncated_stays() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    // It runs before the truncation of the second table is logged.
    database
        .sql("create table audit (id int primary key, what text);
              insert into audit values (1, 'old');
              select rowcast.watch('audit');
              create function note() returns trigger language plpgsql as $$
              begin
                insert into audit values (2, 'tasks were truncated');
                return null;
              end $$;
              create trigger note after truncate on tasks for each statement execute function note()")
        .await;
    let path = "/rest/v1/audit";
    let (mut stream, mut screen) = relay.shown(path).await;
    database.sql("truncate tasks, audit").await;
    let txid = database
        .commit("insert into audit values (3, 'after')")
        .await;
    agrees(&relay, path, &mut stream, &mut screen, &txid).await;
    assert_eq!(screen.rows.keys().collect::<Vec<_>>(), ["2", "3"]);
}

#[tokio::test]
async fn who_adds_a_deferrable_key_is_told_after_whoever_took_it_away() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    let path = "/rest/v1/tasks";
    let (mut stream, mut screen) = relay.shown(path).await;
    let (adds, takes) = (database.client().await, database.client().await);
    // Both are read at once.
    relay.signal("STOP").await;
    let added =
        "begin; set constraints all deferred; insert into tasks values (1, 'new'), (2, 't2')";
    adds.batch_execute(added).await.unwrap();
    takes
        .batch_execute("begin; delete from tasks where id in (1, 2); commit")
        .await
        .unwrap();
    // The keys are looked at now, and the rows were logged before those that went.
    adds.batch_execute("commit").await.unwrap();
    relay.signal("CONT").await;
    let txid = database.commit("delete from tasks where id = 3").await;
    agrees(&relay, path, &mut stream, &mut screen, &txid).await;
    assert_eq!(screen.rows["1"]["title"], "new");
}

#[tokio::test]
async fn partitions_are_one_table() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql("create table days (id int, day date, what text, primary key (id, day)) partition by range (day);
              create table november partition of days for values from ('2026-11-01') to ('2026-12-01');
              create table december (id int not null, day date not null, what text, primary key (id, day));
              insert into days values (1, '2026-11-01', 'a');
              select rowcast.watch('days')")
        .await;
    let path = "/rest/v1/days";
    let (mut stream, mut screen) = relay.shown(path).await;
    let txid = database
        .commit("insert into days values (2, '2026-11-02', 'root'); insert into november values (3, '2026-11-03', 'leaf')")
        .await;
    agrees(&relay, path, &mut stream, &mut screen, &txid).await;
    assert_eq!(screen.rows.len(), 3);
    assert!(
        screen.rows.contains_key(r#""3"/"2026-11-03""#),
        "{:?}",
        screen.rows.keys()
    );

    // Rows come along with a partition, without a trigger seeing them.
    database
        .sql("insert into december values (4, '2026-12-04', 'attached');
              alter table days attach partition december for values from ('2026-12-01') to ('2027-01-01')")
        .await;
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 4)
        .await;
    let txid = database
        .commit("update days set day = '2026-12-01' where id = 1; insert into december values (5, '2026-12-05', 'new leaf')")
        .await;
    agrees(&relay, path, &mut stream, &mut screen, &txid).await;

    eventually("the new partition has its trigger", async || {
        let there = database.one("select count(*) from pg_trigger where tgrelid = 'december'::regclass and tgname = '!rowcast_truncate'").await;
        (there == "1").then_some(())
    })
    .await;
    database.sql("truncate december").await;
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 2)
        .await;
    database.sql("truncate days").await;
    screen
        .follow(&mut stream, |screen| screen.rows.is_empty())
        .await;
    let txid = database
        .commit("insert into days values (9, '2026-12-09', 'after')")
        .await;
    agrees(&relay, path, &mut stream, &mut screen, &txid).await;
}

async fn ends_with_error(stream: &mut Stream) -> String {
    let error = stream
        .until(|event| event.name == "control" && event.json()["error"].is_object())
        .await;
    assert_eq!(stream.next().await, None);
    error.json()["error"]["code"].as_str().unwrap().to_owned()
}

async fn triggers(database: &Database) -> String {
    database
        .one("select count(*) from pg_trigger where tgname like '!rowcast%'")
        .await
}

#[tokio::test]
async fn a_table_that_is_given_up_ends_its_streams_with_the_reason() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    database
        .sql("create table notes (id int primary key); select rowcast.watch('notes')")
        .await;
    let (mut tasks, _) = relay.shown("/rest/v1/tasks").await;
    let (mut notes, mut screen) = relay.shown("/rest/v1/notes").await;
    database.sql("select rowcast.unwatch('tasks')").await;
    assert_eq!(ends_with_error(&mut tasks).await, "PGRST205");
    database.sql("insert into tasks values (100)").await;

    database
        .sql("insert into notes values (1); drop table notes")
        .await;
    assert_eq!(ends_with_error(&mut notes).await, "PGRST205");
    assert_eq!(triggers(&database).await, "0");

    database
        .sql("create table notes (id int primary key); select rowcast.watch('notes')")
        .await;
    let mut notes = relay.resume("/rest/v1/notes", &notes.id).await;
    screen.apply(&notes.data().await);
    assert!(screen.rows.is_empty() && screen.complete);
}

#[tokio::test]
async fn a_table_whose_children_would_be_shown_and_not_followed_is_not_watched() {
    let database = database().await;
    let _relay = database.relay().await;
    database
        .sql("create table parent (id int primary key); create table child () inherits (parent)")
        .await;
    let client = database.client().await;
    let refused = client
        .batch_execute("select rowcast.watch('parent')")
        .await
        .unwrap_err();
    let message = refused.as_db_error().unwrap().message();
    assert!(message.contains("children by inheritance"), "{message}");
}

#[tokio::test]
async fn a_table_that_gets_children_is_given_up_like_one_that_has_them() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    let (mut tasks, _) = relay.shown("/rest/v1/tasks").await;
    database.sql("create table child () inherits (tasks)").await;
    assert_eq!(ends_with_error(&mut tasks).await, "PGRST205");
    assert_eq!(triggers(&database).await, "0");
}

#[tokio::test]
async fn values_that_are_called_something_else_are_read_anew() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create type state as enum ('open', 'done'); create type pair as (a int); \
             create type size as enum ('s', 'l'); create type sizes as range (subtype = size); \
             create type deep as (sizes sizes, pair pair); \
             create table cards (id int primary key, state state, pair pair, deep deep[]); \
             insert into cards values (1, 'open', row(1), array[row('[s,l]', row(1))::deep]); select rowcast.watch('cards')",
        )
        .await;
    let (mut cards, mut screen) = relay.shown("/rest/v1/cards").await;
    for (sql, member, value) in [
        (
            "alter type state rename value 'open' to 'todo'",
            "state",
            serde_json::json!("todo"),
        ),
        (
            "alter type pair add attribute b int",
            "pair",
            serde_json::json!({"a": 1, "b": null}),
        ),
        // In what these are parts of.
        (
            "alter type size rename value 'l' to 'xl'",
            "deep",
            serde_json::json!([{"sizes": "[s,xl]", "pair": {"a": 1, "b": null}}]),
        ),
        (
            "alter type pair add attribute c int",
            "deep",
            serde_json::json!([{"sizes": "[s,xl]", "pair": {"a": 1, "b": null, "c": null}}]),
        ),
    ] {
        database.sql(sql).await;
        screen
            .follow(&mut cards, |screen| {
                screen.rows.values().any(|row| row[member] == value)
            })
            .await;
    }
}

/// Under a collation that is PostgreSQL's own business, rows are asked for; by bytes they are compared here.
#[tokio::test]
async fn a_filter_goes_by_the_collation_that_its_column_has_now() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create table names (id int primary key, name text collate \"C\"); \
             insert into names values (1, 'Z'); select rowcast.watch('names')",
        )
        .await;
    let path = "/rest/v1/names?name=gt.a";
    let (mut names, mut screen) = relay.shown(path).await;
    assert_eq!(screen.rows.len(), 0);
    database
        .sql("alter table names alter name type text collate \"en-x-icu\"")
        .await;
    screen
        .follow(&mut names, |screen| screen.rows.len() == 1)
        .await;
    let txid = database.commit("insert into names values (2, 'B')").await;
    agrees(&relay, path, &mut names, &mut screen, &txid).await;
}

#[tokio::test]
async fn a_partition_whose_columns_stand_in_another_order_tells_rows_as_reads_do() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create table parts (id int, v text, w int, primary key (id)) partition by range (id); \
             create table low (w int, v text, id int not null); \
             alter table parts attach partition low for values from (0) to (10); \
             create table high partition of parts for values from (10) to (20); \
             insert into parts values (1, 'a', 2); select rowcast.watch('parts')",
        )
        .await;
    let (mut stream, _) = relay.shown("/rest/v1/parts").await;
    // In its partition, and out of it: there the order is another one.
    for (sql, id) in [
        ("update parts set v = 'b'", 1),
        ("update parts set id = 11", 11),
        ("update parts set id = 2, w = 3", 2),
    ] {
        let txid = database.commit(sql).await;
        let event = stream.until(|event| event.has_txid(&txid)).await;
        let elements = event.elements();
        let told = elements.iter().find(|element| !element["value"].is_null());
        let etag = told.unwrap()["headers"]["etag"].as_str().unwrap();
        let read = relay
            .request(
                Method::GET,
                &format!("/rest/v1/parts?id=eq.{id}"),
                &[("accept", "application/vnd.pgrst.object+json")],
                "",
            )
            .await;
        assert_eq!(read.header("etag"), format!("\"{etag}\""), "{sql}");
        assert!(
            event.data.contains(&read.body),
            "{}: {}",
            event.data,
            read.body
        );
    }
}

#[tokio::test]
async fn a_publication_of_all_tables_is_in_nobodys_way() {
    let database = database().await;
    database
        .sql("set client_min_messages = error; create publication everything for all tables")
        .await;
    database.relay().await.kill().await;
    database
        .sql(
            "create table notes (id int primary key); select rowcast.watch('notes'); \
             select rowcast.depends('notes', 'notes')",
        )
        .await;
    for sql in [
        "select rowcast.depends('notes')",
        "select rowcast.check_drift(); select rowcast.trim('1 s', 100, 1000)",
        "select rowcast.unwatch('notes')",
        "update rowcast.state set place = 'elsewhere'; select rowcast.begin_epoch()",
        "select rowcast.new_epoch()",
    ] {
        database.sql(sql).await;
    }
}

#[tokio::test]
async fn what_another_server_says_of_its_own_rowcast_is_not_replicated() {
    let server = Server::start(&[("wal_level", "logical")]).await;
    let (there, here) = (server.database().await, server.database().await);
    for database in [&there, &here] {
        database.relay().await.kill().await;
        database
            .sql(
                "create table notes (id int primary key); select rowcast.watch('notes');
                  create function now_and_then() returns int stable language sql as 'select 1'",
            )
            .await;
    }
    let relay = here.relay().await;
    let path = "/rest/v1/notes";
    let (mut stream, mut screen) = relay.shown(path).await;
    there
        .sql("set client_min_messages = error; create publication everything for all tables")
        .await;
    there
        .sql("select pg_create_logical_replication_slot('everything', 'pgoutput')")
        .await;
    here.sql(&format!(
        "create subscription everything connection '{}' publication everything with (create_slot = false)",
        there.url
    ))
    .await;
    eventually("each table is as it was", async || {
        let behind = "select count(*) from pg_subscription_rel where srsubstate <> 'r'";
        (here.one(behind).await == "0").then_some(())
    })
    .await;
    here.sql("select rowcast.expose_function('now_and_then()')")
        .await;
    there
        .sql(
            "select rowcast.expose_function('now_and_then()');
              insert into rowcast.tick (at, snapshot) values ('2026-01-01', '99999999:99999999:');
              insert into notes values (1)",
        )
        .await;
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 1)
        .await;
    let foreign = "select count(*) from rowcast.tick where at = '2026-01-01'";
    assert_eq!(here.one(foreign).await, "0");
    here.sql("alter subscription everything disable; alter subscription everything set (slot_name = none)")
        .await;
    here.sql("drop subscription everything").await;

    // Whoever writes as a replica for other reasons is heeded.
    here.sql("create table later (id int primary key); set session_replication_role = replica; select rowcast.watch('later')")
        .await;
    let watched = "select count(*) from rowcast.watched where rel = 'later'::regclass";
    assert_eq!(here.one(watched).await, "1");
}

#[tokio::test]
async fn a_table_that_loses_its_primary_key_says_so_until_it_has_another() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql("create table notes (id int primary key, rank int not null); insert into notes values (1, 7); select rowcast.watch('notes')")
        .await;
    let path = "/rest/v1/notes";
    let (mut stream, _) = relay.shown(path).await;
    database
        .sql("alter table notes drop constraint notes_pkey")
        .await;
    let told = stream.until(|event| event.data.contains("error")).await;
    assert!(
        told.data
            .contains("public.notes has no primary key any more, so it has no stream"),
        "{}",
        told.data
    );
    database
        .sql("alter table notes add primary key (rank)")
        .await;
    eventually("a stream by the new key", async || {
        let mut stream = relay.stream(path).await;
        let mut screen = Screen::default();
        let event = stream.next().await?;
        screen.apply(&event);
        screen.rows.contains_key("7").then_some(())
    })
    .await;
}
