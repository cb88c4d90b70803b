//! What clients may take has an end, and who meets it is told in a way from which he comes back.

use serde_json::Value;

use crate::harness::{Event, Relay, Screen, Stream, database, eventually};
use crate::policies::{ROLES, SECRET, token};
use crate::wire::{Wire, count, resident};

/// The refusal of a stream: 200, one control with an error, a time to come back, the end.
async fn refused(mut stream: Stream, code: &str) -> Event {
    assert_eq!(stream.status, 200);
    assert_eq!(stream.headers["content-type"], "text/event-stream");
    let control = stream.next().await.expect("a control");
    assert_eq!(control.name, "control");
    let told = control.json();
    assert_eq!(
        (&told["upToDate"], &told["error"]["code"]),
        (&Value::Bool(false), &code.into())
    );
    assert!(told["error"]["hint"].is_string(), "{told}");
    assert!(
        control.retry.is_some_and(|retry| retry >= 10_000),
        "{control:?}"
    );
    assert_eq!(told["retry_ms"].as_u64(), control.retry, "{control:?}");
    assert_eq!(stream.next().await, None);
    control
}

async fn opened(mut stream: Stream) -> Stream {
    let mut screen = Screen::default();
    screen.follow(&mut stream, |_| true).await;
    stream
}

#[tokio::test]
async fn one_user_gets_so_many_streams_and_nobody_else_suffers() {
    let database = database().await;
    database.sql(ROLES).await;
    let arguments = [
        "--jwt-secret",
        SECRET,
        "--anon-role",
        "visitor",
        "--roles",
        "member,visitor",
    ];
    let arguments = [&arguments[..], &["--max-streams-per-user", "3"]].concat();
    let relay = Relay::start(&database, &arguments).await;
    database.sql("create table tasks (id int primary key); grant select on tasks to member, visitor; select rowcast.watch('tasks')").await;
    let open = async |token: Option<&str>, id: Option<&str>| {
        let url = format!("{}/rest/v1/tasks", relay.url);
        let bearer = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<_> = bearer
            .iter()
            .map(|bearer| ("authorization", bearer.as_str()))
            .collect();
        Stream::with(&url, id, &headers).await
    };
    let (ann, bob) = (
        token("member", &["sub=ann"]).await,
        token("member", &["sub=bob"]).await,
    );
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(opened(open(Some(&ann), None).await).await);
    }
    // Another token of hers is still she; and her place in the log stays hers.
    let again = token("member", &["sub=ann", "jti=2"]).await;
    let place = streams[0].id.clone();
    let control = refused(open(Some(&again), Some(&place)).await, "RCH08").await;
    assert_eq!(control.id, place);
    for other in [Some(bob.as_str()), None, None, None, None] {
        streams.push(opened(open(other, None).await).await);
    }
    assert_eq!(
        count(&relay, "rowcast_refused_streams_total{reason=\"user\"}").await,
        1
    );
    assert_eq!(count(&relay, "rowcast_subscribers").await, 8);
    // Plain requests are no streams.
    let bearer = format!("Bearer {ann}");
    let answer = relay
        .request(
            hyper::Method::GET,
            "/rest/v1/tasks",
            &[("authorization", &bearer)],
            "",
        )
        .await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    // Who closes one may open one.
    drop(streams.remove(0));
    let mut back = eventually("there is room again", async || {
        let mut stream = open(Some(&ann), Some(&place)).await;
        let first = stream.next().await.unwrap();
        (first.json()["error"].is_null()).then_some(stream)
    })
    .await;
    let txid = database.commit("insert into tasks values (1)").await;
    back.until(|event| event.covers(&txid)).await;
}

#[tokio::test]
async fn the_relay_takes_so_many_streams_and_connections() {
    let database = database().await;
    let relay = Relay::start(
        &database,
        &["--max-streams", "2", "--max-connections", "20"],
    )
    .await;
    database.sql("create table tasks (id int primary key); select rowcast.watch('tasks'); select rowcast.allow_channel('lobby')").await;
    let mut first = opened(relay.stream("/rest/v1/tasks").await).await;
    let lobby = relay.stream("/channels/lobby").await;
    assert_eq!(lobby.status, 200);
    for path in ["/rest/v1/tasks", "/channels/lobby"] {
        refused(relay.stream(path).await, "RCH07").await;
    }
    assert_eq!(
        relay.post("/rest/v1/tasks", r#"{"id":1}"#).await.status,
        201
    );
    assert_eq!(
        count(&relay, "rowcast_refused_streams_total{reason=\"total\"}").await,
        2
    );
    assert!(count(&relay, "rowcast_connections").await >= 2);

    // More connections than allowed are closed at once, which an EventSource takes for a failure of
    // the network, and comes back.
    let mut crowd = Vec::new();
    for _ in 0..40 {
        crowd.push(Wire::open(&relay).await);
    }
    let mut closed = 0;
    for wire in &mut crowd {
        closed += usize::from(
            wire.ends_within(std::time::Duration::from_millis(100))
                .await,
        );
    }
    assert!(closed >= 20, "{closed}");
    drop(crowd);
    let txid = database.commit("insert into tasks values (2)").await;
    first.until(|event| event.covers(&txid)).await;
    eventually("requests are answered again", async || {
        let refused = count(&relay, "rowcast_refused_connections_total{reason=\"full\"}").await;
        (refused >= 20).then_some(())
    })
    .await;
}

/// Readers that stop in the middle of a large state keep it in memory; so many of them that it
/// runs out.
#[tokio::test]
async fn when_memory_runs_out_the_slowest_go_and_nobody_new_comes() {
    let database = database().await;
    let relay = Relay::start(&database, &["--memory-limit", "100M"]).await;
    database
        .sql(
            "create table tasks (id int primary key); select rowcast.watch('tasks');
            create table large (id int primary key, body text);
            insert into large select n, repeat(md5(n::text), 100) from generate_series(1, 2500) n;
            select rowcast.watch('large')",
        )
        .await;
    let mut healthy = opened(relay.stream("/rest/v1/tasks").await).await;
    let before = resident(&relay);
    // About 8 MB each, and each a state of its own: the views differ, and nothing is shared.
    let mut slow = Vec::new();
    let mut told = false;
    for n in 0..30 {
        let mut wire = Wire::narrow(&relay).await;
        wire.watch(&format!("/rest/v1/large?id=gt.-{n}")).await;
        if !wire.sees("snapshot-start").await {
            break;
        }
        slow.push(wire);
        if count(&relay, "rowcast_memory_used_bytes").await > (100 << 20) / 10 * 9 {
            told = true;
            break;
        }
    }
    assert!(told, "memory is short: {} MB", resident(&relay) >> 20);
    let refusal = eventually("nobody new is let in", async || {
        let mut stream = relay.stream("/rest/v1/tasks").await;
        let first = stream.next().await.unwrap();
        (first.json()["error"]["code"] == "RCH09").then_some(first)
    })
    .await;
    assert!(refusal.retry.is_some_and(|retry| retry >= 10_000));
    // What was there goes on, and writes are written.
    let answer = relay.post("/rest/v1/tasks", r#"{"id":1}"#).await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    healthy.until(|event| event.covers(answer.txid())).await;
    // The stalled ones are cut, by shortage or by their time, and there is room again.
    let mut stream = eventually("there is room again", async || {
        let mut stream = relay.stream("/rest/v1/tasks").await;
        let first = stream.next().await.unwrap();
        first.json()["error"].is_null().then_some(stream)
    })
    .await;
    let answer = relay.post("/rest/v1/tasks", r#"{"id":2}"#).await;
    stream.until(|event| event.covers(answer.txid())).await;
    healthy.until(|event| event.covers(answer.txid())).await;
    eprintln!(
        "before {} MB, after {} MB",
        before >> 20,
        resident(&relay) >> 20
    );
}
