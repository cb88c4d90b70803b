//! No value, name or type of a table breaks a writer or a stream, and what a screen gets is what a
//! read gives.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use crate::harness::{Database, Event, Relay, Screen, Stream, database};

/// The members of an element with the text that came, since some of these values are JSON that
/// Rust's own numbers and strings cannot hold.
type Members<'a> = BTreeMap<&'a str, &'a RawValue>;

/// Key, value and headers of the changes and rows of an event.
fn raw(event: &Event) -> Vec<(String, Option<String>, String)> {
    let elements: Vec<Members<'_>> =
        serde_json::from_str(&event.data).unwrap_or_else(|error| panic!("{error}: {}", event.data));
    let keyed = elements
        .iter()
        .filter(|element| element.contains_key("key"));
    keyed
        .map(|element| {
            (
                serde_json::from_str(element["key"].get()).unwrap(),
                element.get("value").map(|value| value.get().to_owned()),
                element["headers"].get().to_owned(),
            )
        })
        .collect()
}

/// The raw rows of a read; a stream has line feeds where a row has any line break.
async fn read(relay: &Relay, path: &str) -> Vec<String> {
    let answer = relay.get(path).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let text = answer.body.replace("\r\n", "\n").replace('\r', "\n");
    let rows: Vec<&RawValue> = serde_json::from_str(&text).unwrap();
    rows.iter().map(|row| row.get().to_owned()).collect()
}

async fn opened(relay: &Relay, path: &str) -> Stream {
    let mut stream = relay.stream(path).await;
    assert_eq!(stream.status, 200, "{path}");
    stream
        .until(|event| event.data.contains("snapshot-end"))
        .await;
    stream
}

/// The change that came with this transaction.
async fn change(stream: &mut Stream, txid: &str) -> (String, Option<String>, String) {
    let mark = format!("\"txid\":\"{txid}\"");
    let event = stream.until(|event| event.data.contains(&mark)).await;
    let mut changes = raw(&event);
    assert_eq!(changes.len(), 1, "{:.500}", event.data);
    changes.remove(0)
}

#[tokio::test]
async fn hostile_values_arrive_as_a_read_gives_them() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql("create table odd (id int primary key, plain text, doc json, docb jsonb); select rowcast.watch('odd')").await;
    let mut stream = opened(&relay, "/rest/v1/odd").await;
    let texts = [
        "E'line\\nfeed\\rreturn\\r\\nboth\\n\\n'",
        "E'\\u2028\\u2029\\u0085\\ufeff'",
        "E'\\n\\ndata: x\\nid: 7\\nevent: control\\nretry: 1\\n\\n'",
        "E'data: [\\n:comment'",
        "E'\"}],\\\\\"\\\\u0000\\t\\x01\\x1f\\x7f'",
        "'𝔘𝔫𝔦 👩‍👩‍👧 שלום'",
        "''",
        "' leading blank'",
        "repeat('é', 1000)",
    ];
    let docs = [
        r#"E'{\n  "pretty": [\n\n    1,\r\n\r\n    2\r  ]\n\n}\n'"#,
        r#"'"\u0000"'"#,
        r"'1e999999'",
        r"'-0.000000000000000000000000000000000000001E-400'",
        r#"'"\ud800"'"#,
        r#"'{"a":1,"a":2,"":{"\u000a":"\n"}}'"#,
        r"'[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]'",
        r#"' "blanks around" '"#,
        "'null'",
        "null",
    ];
    let mut id = 0;
    let plain = texts.iter().map(|text| format!("{text}, null, null"));
    let nested = docs.iter().map(|doc| format!("null, {doc}, null"));
    let binary = [r#"'x', null, '{"b":1e400,"a":"é\n"}'"#.to_owned()];
    for values in plain.chain(nested).chain(binary) {
        id += 1;
        let txid = database
            .commit(&format!("insert into odd values ({id}, {values})"))
            .await;
        let (key, value, headers) = change(&mut stream, &txid).await;
        assert_eq!(key, id.to_string());
        assert!(headers.contains("\"insert\""));
        let rows = read(&relay, &format!("/rest/v1/odd?id=eq.{id}")).await;
        assert_eq!(value.as_deref(), Some(rows[0].as_str()), "{values}");
    }
    // Byte for byte on the wire, for a row without line breaks.
    database
        .sql("insert into odd values (100, 'plain \"text\"', '{\"a\": [1,  2]}', null)")
        .await;
    let mark = "\"key\":\"100\"";
    stream.until(|event| event.data.contains(mark)).await;
    let row = &read(&relay, "/rest/v1/odd?id=eq.100").await[0];
    let wire = String::from_utf8(stream.raw.clone()).unwrap();
    assert!(
        wire.contains(&format!("{mark},\"value\":{row},\"headers\":")),
        "{row}"
    );
    // No carriage return at all, and no line that is not a field of ours.
    assert!(!wire.contains('\r'));
    for line in wire.lines() {
        let field = line.split(':').next().unwrap();
        assert!(
            ["", "event", "id", "data", "retry"].contains(&field),
            "{line}"
        );
    }

    // A snapshot of all of them is what a read of all of them gives.
    let mut fresh = relay.stream("/rest/v1/odd?order=id").await;
    let snapshot = fresh
        .until(|event| event.data.contains("snapshot-end"))
        .await;
    let shown: Vec<_> = raw(&snapshot)
        .into_iter()
        .filter_map(|(_, value, _)| value)
        .collect();
    assert_eq!(shown, read(&relay, "/rest/v1/odd?order=id").await);
}

#[tokio::test]
async fn a_large_row_is_shown_and_a_huge_one_is_named() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql("create table blobs (id int primary key, kind text, body text); select rowcast.watch('blobs')").await;
    let mut all = opened(&relay, "/rest/v1/blobs").await;
    let mut some = relay.stream("/rest/v1/blobs?kind=eq.a").await;
    let mut screen = Screen::default();
    screen.follow(&mut some, |_| true).await;
    // Not compressible, so that its size is its size.
    let body = |kilobytes: u32| {
        format!(
            "(select string_agg(md5(n::text || random()), '') from generate_series(1, {}) n)",
            kilobytes * 32
        )
    };

    let txid = database
        .commit(&format!("insert into blobs values (1, 'a', {})", body(300)))
        .await;
    let (_, value, headers) = change(&mut all, &txid).await;
    assert!(!headers.contains("too_large"));
    assert_eq!(
        value.unwrap(),
        read(&relay, "/rest/v1/blobs?id=eq.1").await[0]
    );

    for statement in [
        "insert into blobs values (2, 'a', BODY)",
        "update blobs set body = BODY where id = 2",
    ] {
        let statement = statement.replace("BODY", &body(2000));
        let txid = database.commit(&statement).await;
        let (key, value, headers) = change(&mut all, &txid).await;
        assert_eq!((key.as_str(), value), ("2", None));
        assert!(headers.contains(r#""too_large":true"#), "{headers}");
    }
    let txid = database
        .commit("update blobs set body = 'small' where id = 2")
        .await;
    let (_, value, _) = change(&mut all, &txid).await;
    assert_eq!(
        value.as_deref(),
        Some(r#"{"id":2,"kind":"a","body":"small"}"#)
    );

    // A filtered view, which cannot look into them, still ends at the truth.
    let txid = database
        .commit("update blobs set kind = 'b' where id = 1")
        .await;
    screen.reach(&mut some, &txid).await;
    assert_eq!(screen.rows.keys().collect::<Vec<_>>(), ["2"]);
    let txid = database.commit("delete from blobs").await;
    screen.reach(&mut some, &txid).await;
    assert!(screen.rows.is_empty());
}

/// Percent-encodes every byte.
fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

async fn watched(database: &Database, table: &str, column: &str) {
    let (table, column) = (quoted(table), quoted(column));
    database
        .sql(&format!(
            "create table {table} (id int, {column} text, primary key (id, {column}));
            select rowcast.watch('{}')",
            table.replace('\'', "''")
        ))
        .await;
}

#[tokio::test]
async fn hostile_names_are_only_names() {
    let database = database().await;
    let relay = database.relay().await;
    let long = "ü".repeat(31) + "x";
    let tables = [
        r#"it's "quoted""#,
        "select",
        "Ünïcode 表",
        "a.b",
        "50%_$1$2\\",
        "; drop table x; --",
        &long,
    ];
    let columns = ["new\nline", "\"", "select", "eq", "ü'", "!row", &long];
    for (table, column) in tables.iter().zip(columns) {
        watched(&database, table, column).await;
        let path = format!("/rest/v1/{}", encoded(table));
        if table.contains('\\') {
            // A name that another program in the path might read as two is no path here.
            assert_eq!(relay.get(&path).await.status, 404);
            database
                .sql(&format!("insert into {} values (1, 'x')", quoted(table)))
                .await;
            continue;
        }
        let mut stream = opened(&relay, &path).await;
        let body = serde_json::json!({"id": 1, column: "a/\"b\n"}).to_string();
        let answer = relay.post(&path, &body).await;
        assert_eq!(answer.status, 201, "{table}: {}", answer.body);
        let (key, value, _) = change(&mut stream, answer.txid()).await;
        assert_eq!(key, r#""1"/"a/\"b\n""#);
        assert_eq!(value.unwrap(), read(&relay, &path).await[0], "{table}");
        if !["select", "eq"].contains(&column) {
            let filtered = format!(
                "{path}?{}=eq.{}",
                encoded(&quoted(column)),
                encoded("a/\"b\n")
            );
            let plain = relay.get(&filtered).await;
            if plain.status == 200 {
                let mut stream = relay.stream(&filtered).await;
                let snapshot = stream
                    .until(|event| event.data.contains("snapshot-end"))
                    .await;
                assert_eq!(raw(&snapshot).len(), 1, "{filtered}");
            }
        }
    }
    // A name that no URL can hold does not hinder its writers, nor anybody else's stream.
    let mut stream = opened(&relay, "/rest/v1/select").await;
    watched(&database, "line\nfeed", "tab\t").await;
    database
        .sql("insert into \"line\nfeed\" values (1, 'x')")
        .await;
    let txid = database
        .commit("insert into \"select\" values (2, 'y')")
        .await;
    change(&mut stream, &txid).await;
}

#[tokio::test]
async fn a_type_that_cannot_be_converted_fails_no_write_and_breaks_no_stream() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create type mood as enum ('fine', 'bad');
              create function explode(mood) returns json language plpgsql immutable as $$
              begin
                if $1 = 'bad' then raise exception 'no json for you'; end if;
                return to_json($1::text);
              end $$;
              create cast (mood as json) with function explode(mood);
              create table calm (id int generated always as identity primary key); select rowcast.watch('calm')",
        )
        .await;
    for capture in ["row", "statement"] {
        let table = format!("moods_by_{capture}");
        let sql = format!(
            "create table {table} (id int primary key, mood mood); select rowcast.watch('{table}', '{capture}')"
        );
        database.sql(&sql).await;
        unconvertible(&database, &relay, &table).await;
    }
}

/// Rows that are too large for the log are read again by their key, whatever the key and the other columns are.
#[tokio::test]
async fn large_rows_are_found_by_any_key() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create domain filled as text not null; create domain code as char(3) not null; \
             create type hue as enum ('red', 'blue')",
        )
        .await;
    for (number, (of, value)) in [
        ("int", "7"),
        ("char(9)", "'abc'"),
        ("bit(3)", "'101'"),
        ("code", "'xyz'"),
        ("hue", "'blue'"),
        ("timestamptz", "'2026-03-04 05:06:07.8+05:30'"),
        ("uuid[]", "'{6fa459ea-ee8a-3ca4-894e-db77e160355e}'"),
    ]
    .into_iter()
    .enumerate()
    {
        let table = format!("large{number}");
        database
            .sql(&format!(
                "create table {table} (\"a key\" {of} primary key, v filled, body text); select rowcast.watch('{table}')"
            ))
            .await;
        let (mut stream, mut screen) = relay.shown(&format!("/rest/v1/{table}")).await;
        let txid = database
            .commit(&format!(
                "set local timezone = 'Asia/Tokyo'; insert into {table} values ({value}, 'v', repeat('x', 300000))"
            ))
            .await;
        screen.reach(&mut stream, &txid).await;
        let read = relay.get(&format!("/rest/v1/{table}")).await.json();
        let shown: Vec<_> = screen.rows.into_values().collect();
        assert_eq!(serde_json::Value::from(shown), read, "{of}");
    }
}

/// A database may know no encoding, or another one, and hold what PostgreSQL cannot bring to UTF-8. Who reads that
/// has its error, and nobody else notices.
#[tokio::test]
async fn what_is_no_text_in_utf_8_stops_nobody_else() {
    let odd = "create table odd (id int primary key, v text); create table calm (id serial primary key); \
               grant usage on schema public to public; select rowcast.watch('odd'), rowcast.watch('calm')";
    for (encoding, code) in [("SQL_ASCII", "22021"), ("WIN1252", "22P05")] {
        let database = database().await.in_encoding(encoding).await;
        let relay = database.relay().await;
        database.sql(odd).await;
        let mut calm = opened(&relay, "/rest/v1/calm").await;
        let before = calm.id.clone();
        let (mut few, mut screen) = relay.shown("/rest/v1/odd?id=lt.10").await;
        let mut all = opened(&relay, "/rest/v1/odd").await;
        let (mut asked, mut shown) = relay.shown("/rest/v1/calm?or=(id.gt.0,id.lt.0)").await;

        // Of several transactions that are read together, and of one that is open while others are read.
        let held = database.client().await;
        held.batch_execute(
            "set client_encoding = 'SQL_ASCII'; begin; insert into odd values (2, 'b')",
        )
        .await
        .unwrap();
        let calmly = database.commit("insert into calm default values").await;
        change(&mut calm, &calmly).await;
        held.batch_execute(
            "insert into odd values (20, convert_from('\\x81', getdatabaseencoding())); commit",
        )
        .await
        .unwrap();
        for _ in 0..3 {
            let calmly = database.commit("insert into calm default values").await;
            change(&mut calm, &calmly).await;
        }
        let txid = database.commit("insert into odd values (1, 'a')").await;
        screen.reach(&mut few, &txid).await;
        assert_eq!(screen.rows.len(), 2, "{encoding}");
        let ended = all.until(|event| event.data.contains("\"error\"")).await;
        assert!(ended.data.contains(code), "{}", ended.data);
        shown
            .follow(&mut asked, |screen| screen.rows.len() == 4)
            .await;
        let read = relay.get("/rest/v1/odd").await;
        assert!(
            read.status == 400 && read.body.contains(code),
            "{}",
            read.body
        );

        // A relay that was not there reads it too, among much else, and tells what somebody missed.
        database
            .sql("insert into calm select nextval('calm_id_seq') from generate_series(1, 500)")
            .await;
        let another = database.relay().await;
        let mut back = another.resume("/rest/v1/calm", &before).await;
        let mut screen = Screen::default();
        while screen.rows.len() < 504 {
            let event = back.next().await.unwrap();
            assert!(!event.has_control("reset"), "{encoding}");
            screen.apply(&event);
        }
        let calmly = database.commit("insert into calm default values").await;
        change(&mut back, &calmly).await;
    }
}

async fn unconvertible(database: &Database, relay: &Relay, moods: &str) {
    let mut calm = opened(relay, "/rest/v1/calm").await;
    let mut stream = opened(relay, &format!("/rest/v1/{moods}")).await;
    let txid = database
        .commit(&format!("insert into {moods} values (1, 'fine')"))
        .await;
    let (_, value, _) = change(&mut stream, &txid).await;
    assert_eq!(value.as_deref(), Some(r#"{"id":1,"mood":"fine"}"#));

    let txid = database
        .commit(&format!(
            "insert into {moods} values (2, 'bad'), (3, 'fine')"
        ))
        .await;
    let event = stream.until(|event| event.has_txid(&txid)).await;
    let changes = raw(&event);
    assert_eq!((changes[0].0.as_str(), &changes[0].1), ("2", &None));
    assert!(changes[0].2.contains(r#""too_large":true"#));
    assert_eq!(changes[1].1.as_deref(), Some(r#"{"id":3,"mood":"fine"}"#));
    assert_eq!(
        database.one(&format!("select count(*) from {moods}")).await,
        "3"
    );
    // Nobody else notices.
    let txid = database.commit("insert into calm default values").await;
    change(&mut calm, &txid).await;
    let txid = database.commit("insert into calm default values").await;
    change(&mut calm, &txid).await;
    // And once the row can be shown, it is.
    database
        .sql(&format!("update {moods} set mood = 'fine'"))
        .await;
    let mut screen = Screen::default();
    let mut stream = relay.stream(&format!("/rest/v1/{moods}")).await;
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 3)
        .await;
}
