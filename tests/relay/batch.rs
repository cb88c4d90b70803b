//! Several writes as one: all of them are committed, or none, and they arrive together.

use hyper::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Database, Relay, Stream, database};

async fn world(arguments: &[&str]) -> (Database, Relay) {
    let database = database().await;
    let relay = Relay::start(&database, arguments).await;
    database
        .sql(
            "create table cards (id int primary key, lane text not null, place int not null, body json); \
             insert into cards values (1, 'todo', 1), (2, 'todo', 2), (3, 'todo', 3), (4, 'done', 1); \
             create table notes (id int generated always as identity primary key, card int references cards \
               deferrable initially deferred, text text); \
             create function shift(lane text, by int) returns void language sql as \
               'update cards c set place = place + by where c.lane = shift.lane'; \
             create function teapot() returns void language plpgsql as $$ begin \
               perform set_config('response.status', '202', true); \
               perform set_config('response.headers', '[{\"x-tea\":\"yes\"}]', true); end $$; \
             select rowcast.watch('cards'), rowcast.watch('notes'), \
               rowcast.expose_function('shift(text,int)'), rowcast.expose_function('teapot()')",
        )
        .await;
    (database, relay)
}

async fn send(relay: &Relay, headers: &[(&str, &str)], operations: &Value) -> Answer {
    let mut all = vec![("content-type", "application/json")];
    all.extend(headers);
    let body = operations.to_string();
    relay.request(Method::POST, "/rest/v1/", &all, &body).await
}

const STATE: &str = "select string_agg(id || lane || place, ' ' order by id) from cards";
const BEFORE: &str = "1todo1 2todo2 3todo3 4done1";

#[tokio::test]
async fn a_card_is_moved_and_its_column_renumbered_in_one_event() {
    let (database, relay) = world(&[]).await;
    let mut stream = relay.stream("/rest/v1/cards").await;
    snapshot(&mut stream).await;
    let answer = send(
        &relay,
        &[],
        &json!([
            {"method": "POST", "path": "/rest/v1/rpc/shift", "body": {"lane": "done", "by": 1}},
            {"method": "PATCH", "path": "cards?id=eq.2", "body": {"lane": "done", "place": 1}, "expect": 1},
            {"method": "PATCH", "path": "/cards?lane=eq.todo&place=gt.2", "body": {"place": 2},
             "headers": {"Prefer": "return=representation, count=exact"}},
            {"method": "GET", "path": "cards?lane=eq.done&order=place&select=id", "expect": 2}
        ]),
    )
    .await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(
        answer.json(),
        json!([
            {"status": 204, "headers": {}, "body": null},
            {"status": 204, "headers": {"content-range": "0-0/*"}, "body": null},
            {"status": 200, "headers": {"content-range": "0-0/1",
                "preference-applied": "return=representation, count=exact"},
             "body": [{"id": 3, "lane": "todo", "place": 2, "body": null}]},
            {"status": 200, "headers": {"content-range": "0-1/*"}, "body": [{"id": 2}, {"id": 4}]}
        ])
    );
    let event = stream.data().await.elements();
    assert_eq!(event.len(), 3, "{event:?}");
    for element in &event {
        assert_eq!(element["headers"]["txid"], answer.txid());
    }
    assert_eq!(database.one(STATE).await, "1todo1 2done1 3todo2 4done2");
}

#[tokio::test]
async fn one_that_fails_undoes_all_and_is_named() {
    let (database, relay) = world(&[]).await;
    let good = json!({"method": "PATCH", "path": "cards?id=eq.1", "body": {"lane": "done"}});
    for (bad, status, code) in [
        (
            json!({"method": "POST", "path": "cards", "body": {"id": 2, "lane": "x", "place": 1}}),
            409,
            "23505",
        ),
        (
            json!({"method": "PATCH", "path": "cards?id=eq.99", "body": {"lane": "x"}, "expect": 1}),
            409,
            "RCR26",
        ),
        (
            json!({"method": "DELETE", "path": "cards?lane=eq.todo", "expect": 1}),
            409,
            "RCR26",
        ),
        (
            json!({"method": "GET", "path": "cards?id=eq.99", "expect": 1}),
            409,
            "RCR26",
        ),
        (
            json!({"method": "GET", "path": "cards", "headers": {"accept": "application/vnd.pgrst.object+json"}}),
            406,
            "PGRST116",
        ),
        (
            json!({"method": "PATCH", "path": "cards", "body": {"place": 9},
            "headers": {"prefer": "handling=strict, max-affected=1"}}),
            400,
            "PGRST124",
        ),
        (
            json!({"method": "PATCH", "path": "cards?id=eq.2", "body": {"place": 9}, "headers": {"If-Match": "\"x\""}}),
            412,
            "RCR20",
        ),
        (
            json!({"method": "PATCH", "path": "cardz?id=eq.2", "body": {}}),
            404,
            "PGRST205",
        ),
        (
            json!({"method": "PATCH", "path": "cards?nothing=eq.2", "body": {}}),
            400,
            "42703",
        ),
        (
            json!({"method": "PATCH", "path": "cards?id=eq.2"}),
            400,
            "PGRST102",
        ),
        (
            json!({"method": "POST", "path": "rpc/unknown", "body": {}}),
            404,
            "PGRST202",
        ),
        (json!({"method": "GET", "path": "rpc/shift"}), 400, "RCR25"),
        (json!({"method": "GET", "path": "../tickets"}), 400, "RCR25"),
        (json!({"method": "GET", "path": ""}), 400, "RCR25"),
        (json!({"method": "HEAD", "path": "cards"}), 400, "RCR25"),
        (
            json!({"method": "GET", "path": "cards", "headers": {"Cookie": "a=b"}}),
            400,
            "RCR25",
        ),
    ] {
        let answer = send(&relay, &[], &json!([good, bad, good])).await;
        let told = answer.json();
        assert_eq!(
            (answer.status.as_u16(), &told["code"]),
            (status, &json!(code)),
            "{bad} {told}"
        );
        assert_eq!(told["operation"], 1, "{told}");
        assert_eq!(answer.txid(), "");
        if code == "RCR20" {
            assert_eq!(told["current"]["place"], 2);
        }
        assert_eq!(database.one(STATE).await, BEFORE, "{bad}");
    }
    // What is only checked at COMMIT fails as well, and is nobody's.
    let dangling = json!([good, {"method": "POST", "path": "notes", "body": {"card": 99}}]);
    let answer = send(&relay, &[], &dangling).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["code"]),
        (409, &json!("23503"))
    );
    assert_eq!(database.one(STATE).await, BEFORE);
}

#[tokio::test]
async fn what_is_no_list_of_operations_is_refused() {
    let (_database, relay) = world(&[]).await;
    let read = json!({"method": "GET", "path": "cards"});
    for body in [json!({}), json!(7), json!(vec![read.clone(); 101])] {
        let answer = send(&relay, &[], &body).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["code"]),
            (400, &json!("RCR25"))
        );
        assert!(answer.json().get("operation").is_none());
    }
    let most = send(&relay, &[], &json!(vec![read.clone(); 100])).await;
    assert_eq!(most.json().as_array().unwrap().len(), 100);
    assert_eq!(send(&relay, &[], &json!([])).await.body, "[]");
    // As for other writes: a foreign page can send what is not JSON without being asked.
    let plain = [
        ("content-type", "text/plain"),
        ("origin", "http://evil.example"),
    ];
    let foreign = relay.request(Method::POST, "/rest/v1/", &plain, "[]").await;
    assert_eq!(foreign.status, 403);
    let form = [("content-type", "application/x-www-form-urlencoded")];
    assert_eq!(
        relay
            .request(Method::POST, "/rest/v1/", &form, "a=b")
            .await
            .status,
        415
    );
    let options = relay.request(Method::OPTIONS, "/rest/v1/", &[], "").await;
    assert_eq!(options.header("allow"), "GET, HEAD, POST, OPTIONS");
}

#[tokio::test]
async fn rows_keep_their_text_and_functions_may_speak_for_the_whole() {
    let (database, relay) = world(&[]).await;
    let body = r#"[{"method":"POST","path":"cards","headers":{"prefer":"return=representation","accept":"application/vnd.pgrst.object+json"},
        "body":{"id":7,"lane":"x","place":1,"body":{"n": 1e999,"n":2}}},
        {"method":"POST","path":"rpc/teapot"}]"#;
    let answer = relay.post("/rest/v1/", body).await;
    assert_eq!(
        (answer.status.as_u16(), answer.header("x-tea")),
        (202, "yes")
    );
    assert!(
        answer.body.contains(r#"{"n": 1e999,"n":2}"#),
        "{}",
        answer.body
    );
    assert!(answer.body.contains("\"etag\""), "{}", answer.body);
    assert_eq!(
        database.one("select body from cards where id = 7").await,
        r#"{"n": 1e999,"n":2}"#
    );
}

#[tokio::test]
async fn preferences_of_the_whole_count_for_each_operation() {
    let (database, relay) = world(&["--tx-end", "commit-allow-override"]).await;
    let write = json!([{"method": "PATCH", "path": "cards", "body": {"place": 9}, "headers": {"prefer": "max-affected=9"}}]);
    let tried = send(
        &relay,
        &[("prefer", "tx=rollback, handling=strict")],
        &write,
    )
    .await;
    assert_eq!(tried.status, 200, "{}", tried.body);
    assert_eq!(
        tried.header("preference-applied"),
        "tx=rollback, handling=strict"
    );
    assert_eq!(
        tried.json()[0]["headers"]["preference-applied"],
        "handling=strict, max-affected=9"
    );
    assert_eq!(tried.txid(), "");
    assert_eq!(database.one(STATE).await, BEFORE);
    let unknown = send(
        &relay,
        &[("prefer", "handling=strict, sparkle=yes")],
        &write,
    )
    .await;
    assert_eq!(
        (unknown.status.as_u16(), &unknown.json()["code"]),
        (400, &json!("PGRST122"))
    );
    let zone = send(&relay, &[("prefer", "timezone=Nowhere/Land")], &write).await;
    assert_eq!(zone.status, 200, "{}", zone.body);
    assert_eq!(zone.header("preference-applied"), "");
}

#[tokio::test]
async fn a_table_that_changes_under_the_relay_heals_unseen() {
    let (database, relay) = world(&[]).await;
    let read = json!([{"method": "GET", "path": "cards?id=eq.1"}]);
    send(&relay, &[], &read).await;
    database
        .sql("alter table cards add column colour text default 'red'")
        .await;
    let write = json!([{"method": "PATCH", "path": "cards?id=eq.1&select=colour", "body": {"colour": "blue"},
        "headers": {"prefer": "return=representation"}}]);
    let answer = send(&relay, &[], &write).await;
    assert_eq!(
        answer.json()[0]["body"],
        json!([{"colour": "blue"}]),
        "{}",
        answer.body
    );
}

/// The rows of a stream's snapshot.
async fn snapshot(stream: &mut Stream) -> Vec<Value> {
    let mut rows = Vec::new();
    loop {
        let event = stream.data().await;
        rows.extend(event.elements());
        if event.has_control("snapshot-end") {
            return rows;
        }
    }
}
