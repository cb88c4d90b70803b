//! Clients that others wrote, unchanged, against the running relay.
//!
//! Their scripts are in `tests/clients/`; they are told where the relay is by `ROWCAST_URL` and
//! where its database is by `ROWCAST_DATABASE`. Where the clients are not installed the test says
//! so and passes; with `CI=true` it fails.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

use crate::dialect::{SECRET, SERVED, token};
use crate::harness::{DEADLINE, Database, Event, Relay, Stream, database};
use crate::installed::{folder, installed};

const NOTES: &str =
    "create table notes (id int primary key, title text not null); select rowcast.watch('notes')";

/// A script's own limits are tighter and say more.
const SCRIPT: Duration = Duration::from_mins(4);

/// Runs a file of `node:test` tests and fails with its output if it failed.
pub async fn node(script: &Path, relay_url: &str, database_url: &str) {
    run(test(script), relay_url, database_url, &[]).await;
}

fn test(script: &Path) -> Command {
    let mut node = Command::new("node");
    node.args(["--test", "--test-reporter=spec"]).arg(script);
    node
}

/// Runs a script to its end. The variables are for it alone.
async fn run(mut script: Command, relay_url: &str, database_url: &str, given: &[(&str, String)]) {
    let run = script
        .env("ROWCAST_URL", relay_url)
        .env("ROWCAST_DATABASE", database_url)
        .envs(given.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(SCRIPT, run)
        .await
        .unwrap_or_else(|_| panic!("{script:?} never ended"))
        .expect("node and python can be started");
    assert!(
        output.status.success(),
        "{script:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
}

async fn passes(script: &str, tables: &str) {
    let clients = folder("clients");
    if !installed(
        &clients.join("node_modules/@supabase/postgrest-js"),
        "npm ci --prefix tests/clients",
    ) {
        return;
    }
    let database = database().await;
    let relay = Relay::start(&database, &SERVED).await;
    database.sql(tables).await;
    node(&clients.join(script), &relay.url, &database.url).await;
}

const TABLES: &str = include_str!("../clients/tables.sql");
const ROLES: &str = include_str!("../clients/roles.sql");

/// Runs a script against a relay that asks who one is, with a token of each kind of person.
async fn passes_as_members(script: Command) {
    let database = database().await;
    // Installs Rowcast, which the tables need.
    database.relay().await.end().await;
    database.sql(TABLES).await;
    database.sql(ROLES).await;
    let api = database.login("client_api");
    let mut arguments = vec!["--api-url", &api, "--jwt-secret", SECRET];
    arguments.extend(["--anon-role", "client_anon"]);
    arguments.extend(SERVED);
    let relay = Relay::start(&database, &arguments).await;
    let given = [
        ("ROWCAST_ANON_TOKEN", token(json!({"role": "client_anon"}))),
        (
            "ROWCAST_MEMBER_TOKEN",
            token(json!({"role": "client_member", "sub": "ann"})),
        ),
        (
            "ROWCAST_OTHER_TOKEN",
            token(json!({"role": "client_member", "sub": "bob"})),
        ),
    ];
    run(script, &relay.url, &database.url, &given).await;
}

#[tokio::test]
async fn supabase_postgrest_js_does_all_that_the_dialect_has() {
    passes("postgrest.test.mjs", TABLES).await;
}

#[tokio::test]
async fn supabase_js_does_the_same_with_its_keys() {
    let clients = folder("clients");
    if installed(
        &clients.join("node_modules/@supabase/supabase-js"),
        "npm ci --prefix tests/clients",
    ) {
        passes_as_members(test(&clients.join("supabase.test.mjs"))).await;
    }
}

#[tokio::test]
async fn postgrest_for_python_does_the_same() {
    let clients = folder("clients");
    let python = clients.join(".venv/bin/python");
    if installed(
        &python,
        "python3 -m venv tests/clients/.venv && tests/clients/.venv/bin/pip install -r tests/clients/requirements.txt",
    ) {
        let mut script = Command::new(python);
        script.arg(clients.join("postgrest_client.py"));
        passes_as_members(script).await;
    }
}

#[tokio::test]
async fn npm_eventsource_follows_and_resumes() {
    passes("eventsource.test.mjs", NOTES).await;
}

#[tokio::test]
async fn durable_streams_materialized_state_is_what_a_read_gives() {
    passes(
        "state.test.mjs",
        "create table things (id int primary key, title text not null, detail jsonb);
         insert into things select id, 'thing ' || id from generate_series(1, 300) id;
         select rowcast.watch('things')",
    )
    .await;
}

/// Five transactions of every kind, one after the other.
async fn changes(database: &Database) {
    for change in [
        "insert into notes values (3, E'line\\nbreak \\u2028 \"quoted\" \\\\ ☃')",
        "update notes set title = repeat('long ', 20000) where id = 1",
        "begin; delete from notes where id = 2; insert into notes values (4, ''); commit",
        "update notes set id = 5 where id = 4",
        "truncate notes",
    ] {
        database.sql(change).await;
    }
}

/// `data` events up to the end of the snapshot.
async fn snapshot(stream: &mut Stream) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        events.push(stream.data().await);
        if events.last().unwrap().data.contains("snapshot-end") {
            return events;
        }
    }
}

#[tokio::test]
async fn httpx_sse_reads_what_an_event_source_reads() {
    let clients = folder("clients");
    let python = clients.join(".venv/bin/python");
    if !installed(
        &python,
        "python3 -m venv tests/clients/.venv && tests/clients/.venv/bin/pip install -r tests/clients/requirements.txt",
    ) {
        return;
    }
    let database = database().await;
    let relay = database.relay().await;
    database.sql(NOTES).await;
    database
        .sql("insert into notes values (1, 'one'), (2, 'two')")
        .await;
    let mut ours = relay.stream("/rest/v1/notes").await;
    let mut events = snapshot(&mut ours).await;
    let shown = events.len();

    let mut child = Command::new(python)
        .arg(clients.join("sse_client.py"))
        .arg(format!("{}/rest/v1/notes", relay.url))
        .arg("5")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut line = async || {
        let line = tokio::time::timeout(DEADLINE, lines.next_line())
            .await
            .expect("a line in time")
            .unwrap()
            .expect("the client goes on");
        serde_json::from_str::<Value>(&line).unwrap()
    };
    let mut theirs = Vec::new();
    while theirs.len() < shown {
        theirs.push(line().await);
    }
    changes(&database).await;
    for _ in 0..5 {
        events.push(ours.data().await);
        theirs.push(line().await);
    }
    for (index, (our, their)) in events.iter().zip(&theirs).enumerate() {
        assert_eq!(their["data"], our.data, "event {index}");
        // Two snapshots may be of two moments; a change has one place.
        if index >= shown {
            assert_eq!(their["id"], our.id, "event {index}");
        }
    }
    assert_eq!(theirs[0]["retry"], 1000);
    assert!(child.wait().await.unwrap().success());
}

/// The bytes of `data` events, without those of what depends on the time: comment, controls, and
/// the ids of the first `snapshots` events.
fn blocks(raw: &[u8], snapshots: usize) -> Vec<String> {
    let raw = std::str::from_utf8(raw).unwrap();
    let whole = raw.rfind("\n\n").map_or("", |end| &raw[..end]);
    let data = whole
        .split("\n\n")
        .map(|block| block.trim_start_matches(":\n"))
        .filter(|block| block.contains("event: data\n"));
    data.enumerate()
        .map(|(index, block)| {
            let timeless = |line: &&str| index >= snapshots || !line.starts_with("id: ");
            block
                .split('\n')
                .filter(timeless)
                .collect::<Vec<_>>()
                .join("\n")
        })
        .collect()
}

#[tokio::test]
async fn curl_prints_the_bytes_of_the_stream() {
    if !installed(Path::new("/usr/bin/curl"), "apt-get install curl") {
        return;
    }
    let database = database().await;
    let relay = database.relay().await;
    database.sql(NOTES).await;
    database
        .sql("insert into notes values (1, 'one'), (2, 'two')")
        .await;
    let mut ours = relay.stream("/rest/v1/notes").await;
    let shown = snapshot(&mut ours).await.len();

    let mut curl = Command::new("curl")
        .args(["-sSN", "--noproxy", "*", "-H", "Accept: text/event-stream"])
        .arg(format!("{}/rest/v1/notes", relay.url))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut output = curl.stdout.take().unwrap();
    let mut printed = Vec::new();
    let mut until = async |count: usize| {
        let read = async {
            while blocks(&printed, shown).len() < count {
                assert!(output.read_buf(&mut printed).await.unwrap() > 0);
            }
        };
        tokio::time::timeout(DEADLINE, read)
            .await
            .expect("curl prints in time");
        printed.clone()
    };
    until(shown).await;
    changes(&database).await;
    for _ in 0..5 {
        ours.data().await;
    }
    let printed = until(shown + 5).await;
    assert!(printed.starts_with(b":\nretry: 1000\nevent: data\nid: "));
    assert!(!printed.contains(&b'\r'));
    assert_eq!(blocks(&printed, shown), blocks(&ours.raw, shown));
}
