//! Writes that are committed in the same round trip: nothing that must keep one from being committed is
//! passed over.

use hyper::Method;
use serde_json::json;

use crate::harness::{Answer, Database, Relay, database};

async fn world() -> (Database, Relay) {
    let database = database().await;
    let relay = Relay::start(&database, &[]).await;
    database
        .sql(
            "create table cards (id int primary key, title text); \
             create table notes (id int primary key, \
               card int references cards deferrable initially deferred); \
             create sequence tries; \
             create function respond() returns trigger language plpgsql as $$ begin \
               perform nextval('tries'); \
               if new.title like 'status %' then \
                 perform set_config('response.status', substr(new.title, 8), true); \
               elsif new.title like 'header %' then \
                 perform set_config('response.headers', \
                   json_build_array(json_build_object('x-title', substr(new.title, 8)))::text, true); \
               elsif new.title like 'none %' then \
                 perform set_config('response.headers', substr(new.title, 6), true); \
               end if; \
               return new; end $$; \
             create trigger respond before insert on cards for each row execute function respond(); \
             select rowcast.watch('cards'), rowcast.watch('notes')",
        )
        .await;
    (database, relay)
}

async fn insert(relay: &Relay, table: &str, row: &serde_json::Value) -> Answer {
    let path = format!("/rest/v1/{table}");
    relay.post(&path, &row.to_string()).await
}

#[tokio::test]
async fn a_trigger_has_its_way_with_the_response_and_what_is_no_response_undoes_the_write() {
    let (database, relay) = world().await;
    let plain = insert(&relay, "cards", &json!({"id": 1, "title": "a"})).await;
    assert_eq!(plain.status, 201, "{}", plain.body);
    assert!(!plain.txid().is_empty());
    assert_eq!(database.one("select last_value from tries").await, "1");

    let status = insert(&relay, "cards", &json!({"id": 2, "title": "status 202"})).await;
    assert_eq!(status.status, 202, "{}", status.body);
    let header = insert(&relay, "cards", &json!({"id": 3, "title": "header tea"})).await;
    assert_eq!(header.status, 201, "{}", header.body);
    assert_eq!(header.header("x-title"), "tea");
    for (id, title, code) in [(4, "status 99", "PGRST112"), (5, "none at all", "PGRST111")] {
        let refused = insert(&relay, "cards", &json!({"id": id, "title": title})).await;
        assert_eq!(refused.status, 500, "{}", refused.body);
        assert_eq!(refused.json()["code"], code);
    }
    let there = "select string_agg(id::text, ' ' order by id) from cards";
    assert_eq!(database.one(there).await, "1 2 3");
}

#[tokio::test]
async fn what_fails_at_commit_or_before_is_told_and_the_connection_serves_the_next() {
    let (database, relay) = world().await;
    for round in 0..20 {
        let orphan = insert(&relay, "notes", &json!({"id": round, "card": 7})).await;
        assert_eq!(orphan.status, 409, "{}", orphan.body);
        assert_eq!(orphan.json()["code"], "23503");
        let unfit = insert(&relay, "notes", &json!({"id": "x"})).await;
        assert_eq!(unfit.status, 400, "{}", unfit.body);
        let fit = insert(&relay, "cards", &json!({"id": round + 10, "title": "a"})).await;
        assert_eq!(fit.status, 201, "{}", fit.body);
    }
    let there = "select (select count(*) from notes) || ' ' || (select count(*) from cards)";
    assert_eq!(database.one(there).await, "0 20");
}

#[tokio::test]
async fn a_column_that_is_called_like_a_parameter_of_streams_is_a_filter_of_writes() {
    let (database, relay) = world().await;
    database
        .sql(
            "create table visits (id int primary key, last_event_id text); \
             insert into visits values (1, 'a'), (2, 'b'); select rowcast.watch('visits')",
        )
        .await;
    let path = "/rest/v1/visits?last_event_id=eq.a";
    assert_eq!(
        relay.get(path).await.json(),
        json!([{"id": 1, "last_event_id": "a"}])
    );
    let gone = relay.request(Method::DELETE, path, &[], "").await;
    assert_eq!(gone.status, 204, "{}", gone.body);
    assert_eq!(
        database
            .one("select string_agg(id::text, ' ') from visits")
            .await,
        "2"
    );
    let wrong = "/rest/v1/cards?last_event_id=eq.a";
    let refused = relay.request(Method::DELETE, wrong, &[], "").await;
    assert_eq!(refused.status, 400, "{}", refused.body);
}

#[tokio::test]
async fn a_version_that_must_match_is_looked_at_where_nothing_is_changed() {
    let (database, relay) = world().await;
    database
        .sql("insert into cards values (1, 'a'), (2, 'b')")
        .await;
    let patch = async |path: &str, version: &str| {
        let headers = [("content-type", "application/json"), ("if-match", version)];
        let path = format!("/rest/v1/cards?{path}");
        relay
            .request(Method::PATCH, &path, &headers, "{}")
            .await
            .status
    };
    let single = [("accept", "application/vnd.pgrst.object+json")];
    let read = relay
        .request(Method::GET, "/rest/v1/cards?id=eq.1", &single, "")
        .await;
    assert_eq!(patch("id=eq.1", read.header("etag")).await, 204);
    assert_eq!(patch("id=eq.1", "\"0000000000000000\"").await, 412);
    assert_eq!(patch("id=eq.7", "*").await, 412);
    assert_eq!(patch("id=gt.0", "*").await, 400);
}

#[tokio::test]
async fn rows_with_different_keys_are_numbered_and_answered_in_their_order() {
    let (database, relay) = world().await;
    database
        .sql(
            "create table jobs (id int generated always as identity primary key, t text default 'none', v int default 7); \
             select rowcast.watch('jobs')",
        )
        .await;
    let rows: Vec<_> = (1..=20)
        .map(|n| match n % 3 {
            0 => json!({"v": n}),
            1 => json!({"t": n.to_string()}),
            _ => json!({"t": n.to_string(), "v": n}),
        })
        .collect();
    let headers = [
        ("content-type", "application/json"),
        ("prefer", "missing=default, return=representation"),
    ];
    let path = "/rest/v1/jobs?columns=t,v";
    let body = json!(rows).to_string();
    let made = relay.request(Method::POST, path, &headers, &body).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let wanted: Vec<_> = (1..=20)
        .map(|n| match n % 3 {
            0 => json!({"id": n, "t": "none", "v": n}),
            1 => json!({"id": n, "t": n.to_string(), "v": 7}),
            _ => json!({"id": n, "t": n.to_string(), "v": n}),
        })
        .collect();
    assert_eq!(made.json(), json!(wanted));
    // Too many turns for that: what is alike goes together, and nothing is lost.
    let rows: Vec<_> = rows.iter().cycle().take(300).collect();
    let made = relay
        .request(Method::POST, path, &headers, &json!(rows).to_string())
        .await;
    assert_eq!(made.json().as_array().unwrap().len(), 300);
}
