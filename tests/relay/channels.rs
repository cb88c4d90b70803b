//! Messages that are not rows reach everybody on their channel, and nobody on another.

use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Answer, Relay, Stream, database};
use crate::policies::{self, ROLES, token};

async fn subscribed(relay: &Relay, channel: &str) -> Stream {
    let mut stream = relay.stream(&format!("/channels/{channel}")).await;
    assert_eq!(stream.status, 200);
    stream
        .until(|event| event.name == "control" && !event.id.is_empty())
        .await;
    stream
}

/// A channel as somebody with this token sees it.
async fn seen_by(relay: &Relay, token: &str, channel: &str, id: Option<&str>) -> Stream {
    let url = format!("{}/channels/{channel}", relay.url);
    let bearer = format!("Bearer {token}");
    Stream::with(&url, id, &[("authorization", &bearer)]).await
}

/// Under which id a stream ends that is not permitted, and why it is not.
async fn refused(stream: &mut Stream) -> (String, Value) {
    let last = stream.until(|event| event.data.contains("error")).await;
    assert!(last.retry.is_some());
    assert_eq!(stream.next().await, None);
    (last.id.clone(), last.json()["error"].clone())
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
        // Nobody has missed what the relay has not read yet.
        let mut live = relay.stream("/channels/bulk").await;
        live.until(|event| event.covers(&txid)).await;
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

#[tokio::test]
async fn the_function_before_each_request_and_the_end_of_transactions_hold_for_channels_too() {
    let database = database().await;
    database.sql(ROLES).await;
    database
        .sql(
            "do $$ begin execute format('alter role member in database %I set app.house = ''ours''', current_database()); end $$; \
             create table visits (who text); grant insert on visits to member; \
             create function gate() returns void language plpgsql as $$ \
             declare who text := current_setting('request.jwt.claims')::json ->> 'sub'; \
             begin \
               if who = 'eve' or current_setting('app.house', true) is distinct from 'ours' then \
                 raise 'not you' using errcode = 'PT403'; \
               end if; \
               if current_setting('request.method') = 'POST' then \
                 insert into visits values (who); \
                 perform set_config('response.headers', '[{\"x-gate\":\"passed\"}]', true); \
               end if; \
             end $$",
        )
        .await;
    let arguments = [
        ["--pre-request", "public.gate"],
        ["--tx-end", "rollback-allow-override"],
    ];
    let relay = policies::relay_with(&database, arguments.as_flattened()).await;
    database.sql("select rowcast.allow_channel('lobby')").await;
    let publish = async |token: &str, prefer: &str| -> Answer {
        let bearer = format!("Bearer {token}");
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
            ("prefer", prefer),
        ];
        let path = "/channels/lobby";
        relay.request(Method::POST, path, &headers, "1").await
    };
    let written = async || {
        let sql = "select concat((select count(*) from rowcast.log where op = 'P'), ' ', (select count(*) from visits))";
        database.one(sql).await
    };

    let eve = token("member", &["sub=eve"]).await;
    for prefer in ["tx=rollback", "tx=commit"] {
        let answer = publish(&eve, prefer).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["code"]),
            (403, &json!("PT403"))
        );
    }
    let (_, why) = refused(&mut seen_by(&relay, &eve, "lobby", None).await).await;
    assert_eq!(why["code"], "PT403");
    assert_eq!(written().await, "0 0");

    let ann = token("member", &["sub=ann"]).await;
    let mut lobby = seen_by(&relay, &ann, "lobby", None).await;
    lobby.until(|event| event.json()["upToDate"] == true).await;
    let tried = publish(&ann, "").await;
    assert_eq!(tried.status, 201, "{}", tried.body);
    assert_eq!(tried.json(), json!({"txid": null}));
    assert!(!tried.headers.contains_key("rowcast-txid"));
    assert!(!tried.headers.contains_key("preference-applied"));
    assert_eq!(written().await, "0 0");
    let held = publish(&ann, "tx=commit").await;
    assert_eq!(held.status, 201, "{}", held.body);
    assert_eq!(held.header("preference-applied"), "tx=commit");
    assert_eq!(held.header("x-gate"), "passed");
    assert_eq!(held.json(), json!({"txid": held.txid()}));
    // It was called once for what is one request.
    assert_eq!(written().await, "1 1");
    assert!(lobby.data().await.has_txid(held.txid()));
}

#[tokio::test]
async fn who_may_not_listen_any_more_is_told_so_and_gets_nothing_that_came_later() {
    let database = database().await;
    database.sql(ROLES).await;
    let relay = policies::relay(&database).await;
    // Nobody watches the table, so nothing tells when it changes.
    database
        .sql(
            "select rowcast.allow_channel('lobby'), rowcast.allow_channel('hall'); \
             create table members (who text, room text); grant select on members to member; \
             insert into members select w, r from unnest('{ann,bob}'::text[]) w, unnest('{lobby,hall}'::text[]) r; \
             create or replace function rowcast.may_subscribe(channel text) returns boolean \
             language sql stable as $$ select exists (select from public.members where room = channel \
               and who = current_setting('request.jwt.claims')::json ->> 'sub') $$",
        )
        .await;
    let ann = token("member", &["sub=ann"]).await;
    let bob = token("member", &["sub=bob"]).await;
    let open = async |who: &str, channel: &str| {
        let mut stream = seen_by(&relay, who, channel, None).await;
        stream.until(|event| event.json()["upToDate"] == true).await;
        stream
    };
    let mut anns = [open(&ann, "lobby").await, open(&ann, "lobby").await];
    let mut bobs = open(&bob, "lobby").await;
    let mut hall = open(&ann, "hall").await;

    // What the function reads changes.
    database
        .sql("delete from members where who = 'ann' and room = 'lobby'")
        .await;
    for stream in &mut anns {
        let (id, why) = refused(stream).await;
        assert!(id.parse::<rowcast::cursor::Token>().is_ok(), "{id}");
        assert_eq!(why["message"], "permission denied for channel \"lobby\"");
    }
    let (_, why) = refused(&mut seen_by(&relay, &ann, "lobby", None).await).await;
    assert_eq!(why["code"], "42501");
    let txid = database
        .commit("select rowcast.publish('lobby', '1')")
        .await;
    assert!(bobs.data().await.has_txid(&txid));

    // The channel is forbidden.
    database.sql("select rowcast.forbid_channel('lobby')").await;
    let (id, why) = refused(&mut bobs).await;
    assert_eq!(why["message"], "channel \"lobby\" is not allowed");
    let txid = database.commit("select rowcast.publish('hall', '1')").await;
    assert!(hall.data().await.has_txid(&txid));

    // The function becomes another one.
    database
        .sql(
            "create or replace function rowcast.may_subscribe(channel text) returns boolean \
             language sql stable as $$ select channel = 'lobby' $$",
        )
        .await;
    let (_, why) = refused(&mut hall).await;
    assert_eq!(why["message"], "permission denied for channel \"hall\"");

    // Who may again goes on where he was.
    database.sql("select rowcast.allow_channel('lobby')").await;
    let txid = database
        .commit("select rowcast.publish('lobby', '2')")
        .await;
    let event = seen_by(&relay, &bob, "lobby", Some(&id)).await.data().await;
    assert_eq!(event.elements().len(), 1, "{}", event.data);
    assert!(event.has_txid(&txid));
}

#[tokio::test]
async fn a_message_that_is_sent_again_under_its_key_arrives_once() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql("select rowcast.allow_channel('lobby'), rowcast.allow_channel('hall')")
        .await;
    let mut lobby = subscribed(&relay, "lobby").await;
    let send = async |channel: &str, message: &str| {
        let path = format!("/channels/{channel}");
        let headers = [
            ("content-type", "application/json"),
            ("idempotency-key", "once"),
        ];
        relay.request(Method::POST, &path, &headers, message).await
    };
    let first = send("lobby", "1").await;
    let again = send("lobby", "1").await;
    for answer in [&first, &again] {
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
    }
    assert_eq!((first.txid(), &first.body), (again.txid(), &again.body));
    assert_eq!(first.header("idempotency-replayed"), "");
    assert_eq!(again.header("idempotency-replayed"), "true");
    for (channel, message) in [("lobby", "2"), ("hall", "1")] {
        let other = send(channel, message).await;
        assert_eq!(other.json()["code"], "RCR23", "{}", other.body);
    }
    let last = relay.post("/channels/lobby", "3").await;
    let mut said = Vec::new();
    loop {
        let event = lobby.data().await;
        said.extend(event.elements().iter().map(|one| one["value"].clone()));
        if event.has_txid(last.txid()) {
            break;
        }
    }
    assert_eq!(said, [json!(1), json!(3)]);
}

#[tokio::test]
async fn what_is_no_message_is_refused_with_what_would_be_one() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql("select rowcast.allow_channel('lobby')").await;
    let text = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
    let answer = relay.post("/channels/lobby", &text(262_144)).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    let too_large = relay.post("/channels/lobby", &text(262_145)).await;
    assert_eq!(too_large.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(too_large.json()["code"], "RCH03");
    assert_eq!(
        too_large.json()["message"],
        "the message exceeds 262144 bytes"
    );
    let none = relay.post("/channels/lobby", "hello").await;
    assert_eq!(none.status, StatusCode::BAD_REQUEST);
    assert_eq!(none.json()["code"], "PGRST102");
    assert!(none.body.contains("a text in double quotes"), "{none:?}");
}

#[tokio::test]
async fn a_pattern_means_the_same_however_its_reader_writes_strings() {
    let database = database().await;
    database.relay().await.kill().await;
    for on in ["on", "off"] {
        let sql = format!(
            "set standard_conforming_strings = {on}; select rowcast.allow_channel('a.b*');
             select string_agg(n, ' ') from unnest(array['a.b', 'a.bc', 'axb', E'a\\001b']) n where rowcast.channel_allowed(n)"
        );
        let client = database.client().await;
        let answers = client.simple_query(&sql).await.unwrap();
        let allowed = answers.iter().rev().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        assert_eq!(allowed, Some("a.b a.bc"), "{on}");
    }
}
