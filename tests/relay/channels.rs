//! Messages that are not rows reach everybody on their channel, and nobody on another.

use hyper::StatusCode;
use serde_json::json;

use crate::harness::{Relay, Stream, database};

async fn subscribed(relay: &Relay, channel: &str) -> Stream {
    let mut stream = relay.stream(&format!("/channels/{channel}")).await;
    assert_eq!(stream.status, 200);
    stream
        .until(|event| event.name == "control" && !event.id.is_empty())
        .await;
    stream
}

#[tokio::test]
async fn a_published_message_arrives_when_it_is_committed_also_to_who_was_away() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql("select rowcast.allow_channel('lobby'), rowcast.allow_channel('other')")
        .await;
    let mut lobby = subscribed(&relay, "lobby").await;
    let mut other = subscribed(&relay, "other").await;

    database
        .sql("begin; select rowcast.publish('lobby', '\"never\"'); rollback")
        .await;
    let txid = database.commit(r#"select rowcast.publish('lobby', '{"n":1}'); select rowcast.publish('lobby', '{"n": 2}')"#).await;
    let event = lobby.data().await;
    let elements = event.elements();
    assert_eq!(elements.len(), 2, "{}", event.data);
    assert_eq!(
        (&elements[0]["type"], &elements[0]["value"]),
        (&json!("lobby"), &json!({"n": 1}))
    );
    assert_eq!(elements[1]["value"], json!({"n": 2}));
    assert_eq!(elements[1]["headers"]["operation"], "message");
    assert!(event.has_txid(&txid) && event.covers(&txid));

    let answer = relay
        .post("/channels/lobby", "[3, \"\\n\\ndata: x\"]")
        .await;
    assert_eq!(answer.status, StatusCode::CREATED);
    let event = lobby.data().await;
    assert_eq!(event.elements()[0]["value"], json!([3, "\n\ndata: x"]));
    assert!(event.has_txid(answer.txid()));

    // Away, on another relay, and back: each message in its order, and none that was seen.
    let id = lobby.id.clone();
    drop(lobby);
    for n in 4..7 {
        database
            .sql(&format!("select rowcast.publish('lobby', '{n}')"))
            .await;
    }
    let second = database.relay().await;
    for relay in [&relay, &second] {
        let mut lobby = relay.resume("/channels/lobby", &id).await;
        let event = lobby.data().await;
        let values: Vec<_> = event
            .elements()
            .iter()
            .map(|e| e["value"].clone())
            .collect();
        assert_eq!(values, [json!(4), json!(5), json!(6)]);
    }
    // A place that cannot be served is told, because messages may be missing.
    let mut lobby = relay.resume("/channels/lobby", "0").await;
    assert!(lobby.data().await.has_control("reset"));

    database
        .sql("select rowcast.publish('other', '\"for others\"')")
        .await;
    assert_eq!(other.data().await.elements()[0]["value"], "for others");
}

#[tokio::test]
async fn a_bare_notify_is_heard_live_and_leaves_the_place_alone() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql("select rowcast.allow_channel('lobby')").await;
    let mut lobby = subscribed(&relay, "lobby").await;
    let before = lobby.id.clone();
    database
        .sql("notify lobby, E'a \"quoted\"\\r\\n\\r\\ndata: text'")
        .await;
    let event = lobby.data().await;
    assert_eq!(
        event.json(),
        json!([{"type": "lobby", "value": "a \"quoted\"\r\n\r\ndata: text", "headers": {"operation": "notify"}}])
    );
    let id = before.parse::<rowcast::cursor::Token>().unwrap();
    let now = event.id.parse::<rowcast::cursor::Token>().unwrap();
    assert!(now.cursor.covers(&id.cursor));
    // It is nobody's history.
    let mut again = relay.resume("/channels/lobby", &before).await;
    assert_eq!(again.next().await.unwrap().name, "control");
}

#[tokio::test]
async fn only_allowed_channels_exist() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql("select rowcast.allow_channel('room-*'), rowcast.allow_channel('a.c'), rowcast.allow_channel('[x]')").await;
    let allowed = ["room-1", "room-", "room-a.b", "a.c", "%5Bx%5D"];
    for channel in allowed {
        let answer = relay.post(&format!("/channels/{channel}"), "1").await;
        assert_eq!(answer.status, 201, "{channel}: {}", answer.body);
    }
    let long = format!("room-{}", "x".repeat(60));
    for channel in [
        "lobby", "room", "xroom-1", "abc", "x", "rowcast", "*", &long,
    ] {
        let path = format!("/channels/{channel}");
        let answer = relay.post(&path, "1").await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["code"]),
            (401, &json!("42501")),
            "{channel}"
        );
        let mut stream = relay.stream(&path).await;
        let control = stream.next().await.unwrap();
        assert_eq!(control.json()["error"]["code"], "42501", "{channel}");
        assert!(control.retry.is_some());
        assert_eq!(stream.next().await, None);
    }
    // What is forbidden for now may be allowed later, and the same page goes on.
    let mut stream = relay.stream("/channels/lobby").await;
    assert_eq!(stream.next().await.unwrap().json()["upToDate"], false);
    database.sql("select rowcast.allow_channel('lobby')").await;
    let mut lobby = subscribed(&relay, "lobby").await;
    assert_eq!(relay.post("/channels/lobby", "\"hello\"").await.status, 201);
    assert_eq!(lobby.data().await.elements()[0]["value"], "hello");

    for (body, status) in [("", 400), ("{", 400), ("1 2", 400)] {
        assert_eq!(
            relay.post("/channels/lobby", body).await.status,
            status,
            "{body}"
        );
    }
    let huge = format!("\"{}\"", "x".repeat(300_000));
    let answer = relay.post("/channels/lobby", &huge).await;
    assert!(
        answer.status.is_client_error() || answer.json()["code"] == "54000",
        "{}",
        answer.body
    );
}

/// 200 KB each: that many screens may come back at once, and each has what it missed for itself.
#[tokio::test]
async fn who_missed_more_than_is_kept_for_one_is_told_so_and_others_get_each_message() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql("select rowcast.allow_channel('bulk')").await;
    let id = subscribed(&relay, "bulk").await.id;
    for (missed, is_told) in [(20, true), (2, false)] {
        let publish = format!(
            "select rowcast.publish('bulk', to_json(repeat('x', 200000))) from generate_series(1, {missed})"
        );
        let txid = database.commit(&publish).await;
        let mut live = subscribed(&relay, "bulk").await;
        let mut back = relay.resume("/channels/bulk", &id).await;
        let event = back.data().await;
        let kinds = event.elements();
        if is_told {
            assert_eq!(kinds.len(), missed);
            assert!(event.covers(&txid));
        } else {
            assert_eq!(
                kinds[0]["headers"]["control"], "reset",
                "{:.300}",
                event.data
            );
        }
        // Either way it goes on.
        let txid = database.commit("select rowcast.publish('bulk', '1')").await;
        for stream in [&mut live, &mut back] {
            stream.until(|event| event.has_txid(&txid)).await;
        }
    }
}
