//! A request that is sent again after a lost answer writes once.

use futures::future::join_all;
use hyper::Method;
use serde_json::json;

use crate::harness::{Answer, Database, Relay, command, database, eventually};

const BACK: (&str, &str) = ("prefer", "return=representation");

async fn world(arguments: &[&str]) -> (Database, Relay) {
    let database = database().await;
    let relay = Relay::start(&database, arguments).await;
    database
        .sql(
            "create table cards (id int generated always as identity primary key, title text); \
             create function add_card(title text) returns int language sql as \
               'insert into cards (title) values (title) returning id'; \
             select rowcast.watch('cards'), rowcast.expose_function('add_card(text)')",
        )
        .await;
    (database, relay)
}

async fn post(relay: &Relay, path: &str, key: &str, more: &[(&str, &str)], body: &str) -> Answer {
    let mut headers = vec![
        ("content-type", "application/json"),
        ("idempotency-key", key),
    ];
    headers.extend(more);
    relay.request(Method::POST, path, &headers, body).await
}

async fn rows(database: &Database) -> String {
    database.one("select count(*) from cards").await
}

/// Status, body and headers without those that only sending shows.
fn seen(answer: &Answer) -> (u16, String, Vec<(String, String)>) {
    let mut headers: Vec<_> = answer
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .filter(|(name, _)| {
            !["date", "idempotency-replayed", "x-request-id"].contains(&name.as_str())
        })
        .collect();
    headers.sort();
    (answer.status.as_u16(), answer.body.clone(), headers)
}

#[tokio::test]
async fn the_second_answer_is_the_first_one_again() {
    let (database, relay) = world(&[]).await;
    let object = ("accept", "application/vnd.pgrst.object+json");
    let batch = r#"[{"method":"POST","path":"cards","body":{"title":"x"}}]"#;
    for (number, (path, more, body)) in [
        (
            "/rest/v1/cards?select=id,title",
            vec![BACK, object],
            r#"{"title":"x"}"#,
        ),
        (
            "/rest/v1/cards",
            vec![("prefer", "return=headers-only, count=exact")],
            r#"{"title":"x"}"#,
        ),
        ("/rest/v1/cards", vec![], r#"[{"title":"x"},{"title":"y"}]"#),
        ("/rest/v1/rpc/add_card", vec![], r#"{"title":"x"}"#),
        ("/rest/v1/", vec![], batch),
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("\"key {number}\"");
        let first = post(&relay, path, &key, &more, body).await;
        assert!(first.status.is_success(), "{}", first.body);
        assert_eq!(first.header("idempotency-replayed"), "");
        assert_ne!(first.txid(), "");
        let count = rows(&database).await;
        let second = post(&relay, path, &key, &more, body).await;
        assert_eq!(second.header("idempotency-replayed"), "true");
        assert_eq!(seen(&second), seen(&first));
        assert_eq!(rows(&database).await, count);
    }
}

#[tokio::test]
async fn ten_at_once_write_once() {
    let (database, relay) = world(&[]).await;
    let body = r#"{"title":"x"}"#;
    let asked = (0..10).map(|_| post(&relay, "/rest/v1/cards", "k", &[BACK], body));
    let answers = join_all(asked).await;
    for answer in &answers {
        assert_eq!(answer.status, 201, "{}", answer.body);
        assert_eq!(answer.body, answers[0].body);
        assert_eq!(answer.txid(), answers[0].txid());
    }
    let now = answers
        .iter()
        .filter(|a| a.header("idempotency-replayed").is_empty());
    assert_eq!(now.count(), 1);
    assert_eq!(rows(&database).await, "1");
}

#[tokio::test]
async fn a_key_stands_for_one_request_only() {
    let (database, relay) = world(&[]).await;
    let first = post(&relay, "/rest/v1/cards", "k", &[], r#"{"title":"x"}"#).await;
    assert_eq!(first.status, 201);
    for (path, more, body) in [
        ("/rest/v1/cards", vec![], r#"{"title":"y"}"#),
        ("/rest/v1/cards?select=id", vec![], r#"{"title":"x"}"#),
        ("/rest/v1/cards", vec![BACK], r#"{"title":"x"}"#),
        ("/rest/v1/rpc/add_card", vec![], r#"{"title":"x"}"#),
    ] {
        let other = post(&relay, path, "k", &more, body).await;
        assert_eq!(
            (other.status.as_u16(), &other.json()["code"]),
            (422, &json!("RCR23"))
        );
    }
    for key in ["", "\"open", "a b", &"k".repeat(256)] {
        let wrong = post(&relay, "/rest/v1/cards", key, &[], r#"{"title":"y"}"#).await;
        assert_eq!(
            (wrong.status.as_u16(), &wrong.json()["code"]),
            (400, &json!("RCR22")),
            "{key}"
        );
    }
    assert_eq!(rows(&database).await, "1");
}

#[tokio::test]
async fn a_request_that_failed_keeps_nothing() {
    let (database, relay) = world(&[]).await;
    database
        .sql("alter table cards add check (title <> 'bad')")
        .await;
    let failed = post(&relay, "/rest/v1/cards", "k", &[], r#"{"title":"bad"}"#).await;
    assert_eq!(failed.status, 400);
    assert_eq!(
        database
            .one("select count(*) from rowcast.idempotency")
            .await,
        "0"
    );
    let other = post(&relay, "/rest/v1/cards", "k", &[], r#"{"title":"good"}"#).await;
    assert_eq!(other.status, 201);
}

#[tokio::test]
async fn a_first_request_that_does_not_end_is_waited_for_but_not_for_ever() {
    let (database, relay) = world(&[]).await;
    let lock = database.client().await;
    lock.batch_execute("begin; lock table cards in share mode")
        .await
        .unwrap();
    let body = r#"{"title":"x"}"#;
    let first = post(&relay, "/rest/v1/cards", "k", &[], body);
    let second = async {
        eventually("the first one waits", async || {
            let waiting = "select count(*) from pg_stat_activity \
                           where datname = current_database() and wait_event_type = 'Lock'";
            (database.one(waiting).await == "1").then_some(())
        })
        .await;
        // The first gives up its lock after two seconds too, so the key may be free by then.
        let second = post(&relay, "/rest/v1/cards", "k", &[], body).await;
        lock.batch_execute("rollback").await.unwrap();
        second
    };
    let (first, second) = tokio::join!(first, second);
    for answer in [&first, &second] {
        let code = answer.json()["code"].clone();
        assert!(code == "RCR24" || code == "55P03", "{}", answer.body);
    }
    assert_eq!(rows(&database).await, "0");
    assert_eq!(
        post(&relay, "/rest/v1/cards", "k", &[], body).await.status,
        201
    );
}

#[tokio::test]
async fn an_update_can_carry_a_key_too() {
    let (_database, relay) = world(&[]).await;
    relay.post("/rest/v1/cards", r#"{"title":"x"}"#).await;
    let object = ("accept", "application/vnd.pgrst.object+json");
    let path = "/rest/v1/cards?id=eq.1";
    let tag = relay.request(Method::GET, path, &[object], "").await;
    let tag = tag.header("etag").to_owned();
    let headers = [
        ("content-type", "application/json"),
        ("if-match", &*tag),
        ("idempotency-key", "k"),
    ];
    for _ in 0..2 {
        let answer = relay
            .request(Method::PATCH, path, &headers, r#"{"title":"y"}"#)
            .await;
        assert_eq!(answer.status, 204, "{}", answer.body);
    }
}

#[tokio::test]
async fn a_body_of_more_than_a_mebibyte_is_not_kept() {
    let (database, relay) = world(&[]).await;
    database
        .sql("alter table cards add long text generated always as (repeat(title, 1048576)) stored")
        .await;
    let body = r#"{"title":"x"}"#;
    let first = post(&relay, "/rest/v1/cards", "k", &[BACK], body).await;
    assert_eq!(first.status, 201, "{}", first.body);
    assert!(first.body.len() > 1 << 20);
    let second = post(&relay, "/rest/v1/cards", "k", &[BACK], body).await;
    assert_eq!((second.status.as_u16(), second.body.as_str()), (201, ""));
    assert_eq!(second.header("idempotency-replayed"), "true; body=omitted");
    assert_eq!(second.txid(), first.txid());
    assert_eq!(rows(&database).await, "1");
}

const SECRET: &str = "a secret that is long enough to sign with";

/// What `rowcast token` prints, as a header.
async fn bearer(claim: &str) -> String {
    let mut token = command();
    token.args(["token", "--jwt-secret", SECRET, "--role", "key_holder"]);
    let output = token.args(["--claim", claim]).output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    format!(
        "Bearer {}",
        String::from_utf8(output.stdout).unwrap().trim()
    )
}

#[tokio::test]
async fn nobody_meets_the_key_of_somebody_else() {
    let (database, relay) = world(&["--jwt-secret", SECRET, "--roles", "key_holder"]).await;
    database
        .sql(
            "do $$ begin create role key_holder nologin; \
             exception when duplicate_object or unique_violation then null; end $$; \
             grant insert, select on cards to key_holder",
        )
        .await;
    let body = r#"{"title":"x"}"#;
    let mut answers = Vec::new();
    for claim in ["sub=ann", "sub=bob", "sub=ann"] {
        let token = bearer(claim).await;
        let more = [BACK, ("authorization", &*token)];
        let answer = post(&relay, "/rest/v1/cards", "k", &more, body).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        answers.push(answer);
    }
    // Ann's second token has other times in it.
    assert_eq!(answers[2].body, answers[0].body);
    assert_eq!(answers[2].header("idempotency-replayed"), "true");
    assert_ne!(answers[1].body, answers[0].body);
    assert_eq!(rows(&database).await, "2");
    let denied = "set role key_holder; select count(*) from rowcast.idempotency";
    let client = database.client().await;
    assert!(client.simple_query(denied).await.is_err());
}

#[tokio::test]
async fn keys_are_kept_as_long_as_the_log() {
    let (database, relay) = world(&[]).await;
    let body = r#"{"title":"x"}"#;
    for key in ["old", "new"] {
        post(&relay, "/rest/v1/cards", key, &[], body).await;
    }
    database
        .sql(
            "update rowcast.idempotency set at = at - interval '2 h' where key = 'old'; \
             select rowcast.trim(interval '1 h', 1000)",
        )
        .await;
    eventually("the old key goes", async || {
        let left = database.one("select string_agg(key, ' ') from rowcast.idempotency");
        (left.await == "new").then_some(())
    })
    .await;
}
