//! Every committed change reaches every open screen, whole and once, and nothing else does.

use serde_json::json;

use crate::harness::{Screen, Stream, database};
use crate::policies::{self, ROLES};

const TASKS: &str = "create table tasks (id int primary key, board_id int not null, title text); select rowcast.watch('tasks')";

#[tokio::test]
async fn a_transaction_over_two_rows_is_one_event_and_a_rollback_is_none() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    database
        .sql("insert into tasks values (1, 7, 'a'), (2, 7, 'b')")
        .await;
    let mut stream = relay.stream("/rest/v1/tasks?board_id=eq.7").await;
    let mut screen = Screen::default();
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 2)
        .await;

    database
        .sql("begin; update tasks set title = 'never'; rollback")
        .await;
    database.sql("begin; update tasks set title = 'x' where id = 1; update tasks set title = 'y' where id = 2; commit").await;

    let event = stream.data().await;
    let titles: Vec<_> = event
        .elements()
        .iter()
        .map(|element| element["value"]["title"].clone())
        .collect();
    assert_eq!(titles, [json!("x"), json!("y")]);
}

#[tokio::test]
async fn rows_enter_and_leave_a_filtered_view() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    let mut stream = relay
        .stream("/rest/v1/tasks?board_id=eq.7&select=id,name:title")
        .await;
    let operation = |event: &crate::harness::Event| {
        let element = &event.elements()[0];
        (
            element["headers"]["operation"].as_str().unwrap().to_owned(),
            element["value"].clone(),
        )
    };
    stream.data().await;
    database
        .sql("insert into tasks values (1, 8, 'elsewhere')")
        .await;
    database.sql("update tasks set board_id = 7").await;
    assert_eq!(
        operation(&stream.data().await),
        ("insert".into(), json!({"id": 1, "name": "elsewhere"}))
    );
    database.sql("update tasks set title = 'here'").await;
    assert_eq!(operation(&stream.data().await).0, "update");
    database.sql("update tasks set board_id = 8").await;
    assert_eq!(operation(&stream.data().await).0, "delete");
}

#[tokio::test]
async fn a_view_that_cannot_be_asked_for_a_value_ends_with_the_error_of_a_read() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create table notes (id int primary key, note text); \
             insert into notes values (1, '7'); select rowcast.watch('notes')",
        )
        .await;
    let path = "/rest/v1/notes?select=id,number:note::int";
    let (mut stream, mut screen) = relay.shown(path).await;
    let txid = database.commit("update notes set note = '8'").await;
    screen.reach(&mut stream, &txid).await;
    assert_eq!(screen.rows["1"], json!({"id": 1, "number": 8}));
    database.sql("update notes set note = 'abc'").await;
    let told = stream.until(|event| event.data.contains("error")).await;
    let read = relay.get(path).await;
    assert_eq!(read.status, 400);
    assert_eq!(
        told.json()["error"]["code"],
        read.json()["code"],
        "{told:?}"
    );
    assert!(told.retry.is_some());
    assert_eq!(stream.next().await, None);
    database.sql("update notes set note = '9'").await;
    let (_stream, screen) = relay.shown(path).await;
    assert_eq!(screen.rows["1"], json!({"id": 1, "number": 9}));
}

/// A policy that raises an error, and one that finds two rows where it wants one: the screen was told that it is behind,
/// for ever, and not why.
#[tokio::test]
async fn a_view_whose_policy_fails_for_a_row_ends_with_the_error_of_a_read() {
    let database = database().await;
    database.sql(ROLES).await;
    let relay = policies::relay(&database).await;
    for (table, fails, code) in [
        ("raised", "raise 'this note is not good'", "P0001"),
        (
            "doubled",
            "return (select true from generate_series(1, 2))",
            "21000",
        ),
        (
            "settled",
            "return current_setting('settled.team') = note",
            "42704",
        ),
    ] {
        database
            .sql(&format!(
                "create function {table}(note text) returns boolean language plpgsql stable as $$ \
                 begin if note = 'good' then return true; end if; {fails}; end $$; \
                 create table {table} (id int primary key, note text); grant select on {table} to visitor; \
                 alter table {table} enable row level security; create policy good on {table} using ({table}(note)); \
                 select rowcast.depends('{table}'); select rowcast.watch('{table}'); \
                 insert into {table} values (1, 'good')"
            ))
            .await;
        let path = format!("/rest/v1/{table}");
        let (mut stream, mut screen) = relay.shown(&path).await;
        let txid = database
            .commit(&format!("insert into {table} values (2, 'good')"))
            .await;
        screen.reach(&mut stream, &txid).await;
        database
            .sql(&format!("update {table} set note = 'bad' where id = 2"))
            .await;
        let told = stream.until(|event| event.data.contains("error")).await;
        let read = relay.get(&path).await;
        assert_eq!(read.json()["code"], code);
        assert_eq!(told.json()["error"]["code"], code, "{told:?}");
        assert_eq!(stream.next().await, None);
        database
            .sql(&format!("update {table} set note = 'good' where id = 2"))
            .await;
        let (_stream, screen) = relay.shown(&path).await;
        assert_eq!(screen.rows.len(), 2);
    }
}

/// Images are in UTC. A read shows and takes times as in the zone that it asks for; a stream that insisted on one was
/// given other times and other rows.
#[tokio::test]
async fn a_stream_that_insists_on_another_zone_than_utc_is_refused() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql("create table times (id int primary key, at timestamptz); select rowcast.watch('times')")
        .await;
    let url = format!("{}/rest/v1/times?at=gt.2026-01-01", relay.url);
    for (prefer, status) in [
        ("handling=strict, timezone=Asia/Tokyo", 400),
        ("handling=strict, timezone=Mars/Base", 400),
        ("handling=strict, timezone=UTC", 200),
        ("timezone=Asia/Tokyo", 200),
    ] {
        let stream = Stream::with(&url, None, &[("prefer", prefer)]).await;
        assert_eq!(stream.status, status, "{prefer}");
    }
}

/// Keys are looked for by their text, and of these types JSON shows another one, or the log has.
#[tokio::test]
async fn a_stream_is_refused_where_rows_cannot_be_told_apart_by_the_text_of_their_keys() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create type mood as enum ('sad', 'ok'); create type pair as (a int, b text);
             create domain moods as mood[]; create domain pairs as pair; create domain owned as regclass;",
        )
        .await;
    for (place, (kind, by_images, by_asking)) in [
        ("mood", 200, 200),
        ("int4range", 200, 200),
        ("tsvector", 200, 200),
        ("int[]", 200, 400),
        ("jsonb", 200, 400),
        ("mood[]", 200, 400),
        ("moods", 200, 400),
        ("pair", 200, 400),
        ("pairs", 200, 400),
        ("oidvector", 200, 400),
        ("regclass", 400, 400),
        ("owned", 400, 400),
    ]
    .into_iter()
    .enumerate()
    {
        let table = format!("t{place}");
        database
            .sql(&format!(
                "create table {table} (id {kind} primary key, v text); select rowcast.watch('{table}')"
            ))
            .await;
        for (query, status) in [
            ("", by_images),
            ("?select=v", by_images),
            ("?v=like.*", by_asking),
        ] {
            let stream = relay.stream(&format!("/rest/v1/{table}{query}")).await;
            assert_eq!(stream.status, status, "{kind}{query}");
        }
    }
}
