//! Two screens that edit one row: the later one is told, and nothing is overwritten in silence.

use hyper::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Database, Relay, Stream, database, eventually};

const OBJECT: (&str, &str) = ("accept", "application/vnd.pgrst.object+json");
const JSON: (&str, &str) = ("content-type", "application/json");
const BACK: (&str, &str) = ("prefer", "return=representation");

async fn world() -> (Database, Relay) {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create table cards (id int primary key, title text, body json, n numeric); \
             insert into cards values (1, 'one', E'{\"a\":\\n 1e2}', 1.50), (2, 'two', null, 2), (3, 'two', null, 3); \
             create table parts (id int primary key, title text) partition by list (id); \
             create table part partition of parts for values in (1, 2); \
             insert into parts values (1, 'one'); \
             select rowcast.watch('cards'), rowcast.watch('parts')",
        )
        .await;
    (database, relay)
}

async fn read(relay: &Relay, path: &str) -> Answer {
    let answer = relay.request(Method::GET, path, &[OBJECT], "").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer
}

async fn ask(
    relay: &Relay,
    request: &str,
    condition: (&str, &str),
    more: &[(&str, &str)],
    body: &str,
) -> Answer {
    let (method, path) = request.split_once(' ').unwrap();
    let mut headers = vec![JSON, condition];
    headers.extend(more);
    let path = format!("/rest/v1/{path}");
    let method = method.parse().unwrap();
    relay.request(method, &path, &headers, body).await
}

fn refused(answer: &Answer, status: u16, code: &str) -> Value {
    let told = answer.json();
    assert_eq!(
        (answer.status.as_u16(), &told["code"]),
        (status, &json!(code)),
        "{}",
        answer.body
    );
    told
}

#[tokio::test]
async fn a_read_a_write_and_a_stream_tell_the_same_version() {
    let (_database, relay) = world().await;
    let path = "/rest/v1/cards?id=eq.1";
    let read = read(&relay, path).await;
    let tag = read.header("etag").to_owned();
    assert_eq!(tag.len(), 34, "{tag}");
    let head = relay.request(Method::HEAD, path, &[OBJECT], "").await;
    assert_eq!(head.header("etag"), tag);

    let mut stream = relay.stream(path).await;
    let shown = snapshot(&mut stream).await;
    assert_eq!(format!("\"{}\"", etag_of(&shown)), tag);

    let write = ask(
        &relay,
        "PATCH cards?id=eq.1",
        ("if-match", &tag),
        &[OBJECT, BACK],
        r#"{"title":"new"}"#,
    )
    .await;
    assert_eq!(write.status, 200, "{}", write.body);
    let after = write.header("etag").to_owned();
    assert_ne!(after, tag);
    assert_eq!(self::read(&relay, path).await.header("etag"), after);
    let live = stream.data().await.elements();
    assert_eq!(format!("\"{}\"", etag_of(&live)), after);

    // An array is no one's version.
    assert_eq!(relay.get(path).await.header("etag"), "");
}

fn etag_of(elements: &[Value]) -> String {
    let mut rows = elements
        .iter()
        .filter_map(|e| e["headers"]["etag"].as_str());
    rows.next_back().expect("a row with a version").to_owned()
}

#[tokio::test]
async fn what_a_reader_has_is_not_sent_again() {
    let (_database, relay) = world().await;
    let path = "/rest/v1/cards?id=eq.1";
    let tag = read(&relay, path).await.header("etag").to_owned();
    let weak = format!("\"x\", W/{tag}");
    for (known, status) in [
        (tag.as_str(), 304),
        (&weak, 304),
        ("*", 304),
        ("\"x\"", 200),
        ("nonsense", 200),
    ] {
        let headers = [OBJECT, ("if-none-match", known)];
        let answer = relay.request(Method::GET, path, &headers, "").await;
        assert_eq!(answer.status, status, "{known}");
        assert_eq!(answer.header("etag"), tag);
        assert_eq!(answer.body.is_empty(), status == 304);
    }
}

#[tokio::test]
async fn the_later_of_two_gets_412_and_the_row_of_the_first() {
    let (database, relay) = world().await;
    for (path, select) in [
        ("cards?id=eq.1", ""),
        ("cards?id=eq.1", "&select=id,name:title"),
        ("parts?id=eq.1", ""),
    ] {
        database
            .sql("update cards set title = 'one'; update parts set title = 'one'")
            .await;
        let path = format!("{path}{select}");
        let tag = read(&relay, &format!("/rest/v1/{path}"))
            .await
            .header("etag")
            .to_owned();
        let patch = format!("PATCH {path}");
        let first = ask(
            &relay,
            &patch,
            ("if-match", &tag),
            &[],
            r#"{"title":"first"}"#,
        )
        .await;
        assert_eq!(first.status, 204, "{}", first.body);
        for request in [&patch, &format!("DELETE {path}"), &format!("PUT {path}")] {
            let body = if request.starts_with("DELETE") {
                ""
            } else {
                r#"{"id":1,"title":"late"}"#
            };
            let late = ask(&relay, request, ("if-match", &tag), &[], body).await;
            let told = refused(&late, 412, "RCR20");
            let now = read(&relay, &format!("/rest/v1/{path}")).await;
            assert_eq!(told["current"], now.json());
            assert_eq!(late.header("etag"), now.header("etag"));
        }
        let now = read(&relay, &format!("/rest/v1/{path}")).await;
        let again = format!("\"x\", {}", now.header("etag"));
        let again = ask(
            &relay,
            &patch,
            ("if-match", &again),
            &[],
            r#"{"title":"again"}"#,
        )
        .await;
        assert_eq!(again.status, 204, "{}", again.body);
    }
}

#[tokio::test]
async fn a_writer_that_waits_for_another_sees_what_it_left() {
    let (database, relay) = world().await;
    for select in ["", "&select=id,title"] {
        database
            .sql("update cards set title = 'one' where id = 1")
            .await;
        let path = format!("cards?id=eq.1{select}");
        for request in [
            format!("PATCH {path}"),
            format!("DELETE {path}"),
            format!("PUT {path}"),
        ] {
            // The write must find the version that it was made for, and wait.
            let tag = read(&relay, &format!("/rest/v1/{path}"))
                .await
                .header("etag")
                .to_owned();
            let other = database.client().await;
            other
                .batch_execute("begin; update cards set title = title || '!' where id = 1")
                .await
                .unwrap();
            let body = if request.starts_with("DELETE") {
                ""
            } else {
                r#"{"id":1,"title":"mine"}"#
            };
            let write = ask(&relay, &request, ("if-match", &tag), &[], body);
            let release = async {
                eventually("the write waits", async || {
                    let waiting = "select count(*) from pg_stat_activity \
                                   where datname = current_database() and wait_event_type = 'Lock'";
                    (database.one(waiting).await == "1").then_some(())
                })
                .await;
                other.batch_execute("commit").await.unwrap();
            };
            let (answer, ()) = tokio::join!(write, release);
            let told = refused(&answer, 412, "RCR20");
            let title = database.one("select title from cards where id = 1").await;
            assert!(title.starts_with("one!"), "{title}");
            assert_eq!(told["current"]["title"], json!(title));
        }
    }
}

#[tokio::test]
async fn a_row_that_is_gone_matches_nothing_and_is_told_as_null() {
    let (_database, relay) = world().await;
    for condition in ["*", "\"x\""] {
        for (request, body) in [
            ("PATCH cards?id=eq.9", r#"{"title":"x"}"#),
            ("DELETE cards?id=eq.9", ""),
            ("PUT cards?id=eq.9", r#"{"id":9,"title":"x"}"#),
        ] {
            let answer = ask(&relay, request, ("if-match", condition), &[], body).await;
            assert_eq!(refused(&answer, 412, "RCR20")["current"], Value::Null);
            assert_eq!(answer.header("etag"), "");
        }
    }
    let there = ask(
        &relay,
        "PATCH cards?id=eq.2",
        ("if-match", "*"),
        &[],
        r#"{"title":"x"}"#,
    )
    .await;
    assert_eq!(there.status, 204);
    assert_eq!(relay.get("/rest/v1/cards?id=eq.9").await.body, "[]");
}

#[tokio::test]
async fn a_put_makes_a_new_row_only_where_there_is_none() {
    let (_database, relay) = world().await;
    let new = ("if-none-match", "*");
    let put = "PUT cards?id=eq.9";
    let made = ask(
        &relay,
        put,
        new,
        &[OBJECT, BACK],
        r#"{"id":9,"title":"new"}"#,
    )
    .await;
    assert_eq!(made.status, 201, "{}", made.body);
    let again = ask(&relay, put, new, &[], r#"{"id":9,"title":"again"}"#).await;
    let told = refused(&again, 412, "RCR20");
    assert_eq!(told["current"]["title"], "new");
    assert_eq!(again.header("etag"), made.header("etag"));
    // The row has another key than the URL.
    for condition in [new, ("if-match", "*")] {
        let path = if condition == new {
            "PUT cards?id=eq.10"
        } else {
            put
        };
        let other = ask(&relay, path, condition, &[], r#"{"id":11,"title":"x"}"#).await;
        refused(&other, 400, "PGRST115");
    }
}

#[tokio::test]
async fn a_guard_that_cannot_be_kept_is_refused_and_nothing_is_changed() {
    let (database, relay) = world().await;
    let tag = read(&relay, "/rest/v1/cards?id=eq.2")
        .await
        .header("etag")
        .to_owned();
    let weak = format!("W/{tag}");
    let body = r#"{"title":"changed"}"#;
    for (request, condition, status, code) in [
        (
            "PATCH cards?title=eq.two",
            ("if-match", tag.as_str()),
            400,
            "RCR21",
        ),
        ("DELETE cards?title=eq.two", ("if-match", "*"), 400, "RCR21"),
        ("PATCH cards", ("if-match", &tag), 400, "RCR21"),
        ("PATCH cards?id=eq.2", ("if-match", &weak), 412, "RCR20"),
        (
            "PATCH cards?id=eq.2",
            ("if-match", "unquoted"),
            400,
            "RCR21",
        ),
        (
            "PATCH cards?id=eq.2",
            ("if-match", "\"\u{e9}\""),
            412,
            "RCR20",
        ),
        ("PATCH cards?id=eq.2", ("if-match", "\u{e9}"), 400, "RCR21"),
        ("PATCH cards?id=eq.2", ("if-none-match", "*"), 400, "RCR21"),
        ("PUT cards?id=eq.2", ("if-none-match", &tag), 400, "RCR21"),
        ("POST cards", ("if-match", &tag), 400, "RCR21"),
    ] {
        let answer = ask(&relay, request, condition, &[], body).await;
        refused(&answer, status, code);
    }
    assert_eq!(
        database
            .one("select string_agg(title, ' ' order by id) from cards")
            .await,
        "one two two"
    );
}

#[tokio::test]
async fn a_row_that_a_trigger_keeps_is_not_called_written() {
    let (database, relay) = world().await;
    database
        .sql(
            "create function keep() returns trigger language plpgsql as 'begin return null; end'; \
             create trigger keep before update on cards for each row execute function keep()",
        )
        .await;
    let tag = read(&relay, "/rest/v1/cards?id=eq.2")
        .await
        .header("etag")
        .to_owned();
    let kept = ask(
        &relay,
        "PATCH cards?id=eq.2",
        ("if-match", &tag),
        &[],
        r#"{"title":"x"}"#,
    )
    .await;
    let told = refused(&kept, 412, "RCR20");
    assert!(told["details"].as_str().unwrap().contains("trigger"));
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
