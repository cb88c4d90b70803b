//! A table that is rewritten while somebody reads it is never taken for an empty one.
//!
//! PostgreSQL shows a truncated or rewritten table as empty to snapshots from before, and every
//! snapshot here is older than the locks of its statement.

use hyper::Method;
use tokio_postgres::Client;

use crate::harness::{Database, Screen, database, eventually};
use crate::policies::{self, ROLES, Watcher, token};

/// Holds `table` rewritten, and not yet committed.
async fn rewrite(database: &Database, table: &str, column: &str) -> Client {
    let client = database.client().await;
    let sql =
        format!("begin; alter table {table} alter column {column} type int using {column} + 0");
    client.batch_execute(&sql).await.unwrap();
    client
}

/// Returns once so many wait for a table.
async fn waiting(database: &Database, number: usize) {
    let sql = "select count(*) from pg_locks where not granted and locktype = 'relation' \
               and database = (select oid from pg_database where datname = current_database())";
    eventually("they wait for the table", async || {
        let waiting: usize = database.one(sql).await.parse().unwrap();
        (waiting >= number).then_some(())
    })
    .await;
}

#[tokio::test]
async fn whoever_waits_for_a_table_that_is_rewritten_sees_its_rows() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create table tasks (id int primary key, n int not null); \
             insert into tasks select i, i from generate_series(1, 3) i; \
             create table parts (id int primary key, n int not null) partition by range (id); \
             create table parts_low partition of parts for values from (0) to (100); \
             insert into parts values (1, 1); \
             select rowcast.watch('tasks'), rowcast.watch('parts')",
        )
        .await;
    for (table, rows) in [("tasks", 3), ("parts", 1)] {
        let path = format!("/rest/v1/{table}");
        let rewriting = rewrite(&database, table, "n").await;
        let read = relay.get(&path);
        let counted = relay.request(Method::GET, &path, &[("prefer", "count=exact")], "");
        let streamed = async {
            let mut stream = relay.stream(&path).await;
            let mut screen = Screen::default();
            let state = stream
                .until(|event| event.has_control("snapshot-end"))
                .await;
            screen.apply(&state);
            screen
        };
        let commit = async {
            waiting(&database, 3).await;
            rewriting.batch_execute("commit").await.unwrap();
        };
        let (read, counted, screen, ()) = tokio::join!(read, counted, streamed, commit);
        assert_eq!(read.json().as_array().unwrap().len(), rows, "{table}");
        assert_eq!(counted.json().as_array().unwrap().len(), rows, "{table}");
        assert_eq!(
            counted.header("content-range"),
            format!("0-{}/{rows}", rows - 1)
        );
        assert_eq!(screen.rows.len(), rows, "{table}");
    }
}

#[tokio::test]
async fn a_policy_that_reads_a_table_being_rewritten_takes_no_row_away() {
    let database = database().await;
    database.sql(ROLES).await;
    let relay = policies::relay(&database).await;
    database
        .sql(
            "create table teams (id int primary key, n int not null); \
             create table cards (id int primary key, team int not null, n int not null default 0); \
             alter table cards enable row level security; \
             create policy theirs on cards for select to member \
               using (team in (select t.id from teams t)); \
             grant select on teams, cards to member; \
             insert into teams values (1, 1); insert into cards values (1, 1), (2, 1); \
             select rowcast.watch('teams'), rowcast.watch('cards')",
        )
        .await;
    let member = token("member", &[]).await;
    let Watcher {
        mut stream,
        mut screen,
    } = Watcher::of(&relay, "/rest/v1/cards", &member, None).await;
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 2)
        .await;

    let rewriting = rewrite(&database, "teams", "n").await;
    let txid = database.commit("update cards set n = 1 where id = 1").await;
    waiting(&database, 1).await;
    rewriting.batch_execute("commit").await.unwrap();
    let mut taken = false;
    loop {
        let event = stream.data().await;
        taken |= event
            .elements()
            .iter()
            .any(|element| element["headers"]["operation"] == "delete");
        screen.apply(&event);
        if event.covers(&txid) && screen.rows.len() == 2 {
            break;
        }
    }
    assert!(!taken, "a row that was there all the time was taken away");
    assert!(screen.rows.values().any(|row| row["n"] == 1));
}

#[tokio::test]
async fn a_policy_whose_function_finds_another_table_by_the_name_it_knows_goes_on_deciding() {
    let database = database().await;
    database.sql(ROLES).await;
    let relay = policies::relay(&database).await;
    database
        .sql(
            "create table teams (id int primary key); create table next (id int primary key); \
             create table cards (id int primary key); \
             create function is_open() returns boolean language plpgsql stable as \
               'begin return exists (select from public.teams); end'; \
             alter table cards enable row level security; \
             create policy open on cards for select to member using (is_open()); \
             grant select on teams, next, cards to member; \
             insert into teams values (1); insert into next values (1); insert into cards values (1); \
             select rowcast.watch('teams'), rowcast.watch('next'), rowcast.watch('cards'), \
                    rowcast.depends('cards', 'teams')",
        )
        .await;
    let member = token("member", &[]).await;
    let Watcher {
        mut stream,
        mut screen,
    } = Watcher::of(&relay, "/rest/v1/cards", &member, None).await;
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 1)
        .await;
    database
        .sql(
            "begin; alter table teams rename to old; alter table next rename to teams; commit; \
             delete from teams",
        )
        .await;
    screen
        .follow(&mut stream, |screen| screen.rows.is_empty())
        .await;
    database.sql("insert into teams values (1)").await;
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 1)
        .await;
}
