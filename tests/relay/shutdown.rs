//! A relay that is told to stop says goodbye: no write is lost, no stream is torn.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::harness::{DEADLINE, Relay, Screen, command, database, eventually, signal};

#[tokio::test]
async fn sigterm_ends_streams_cleanly_and_lets_writes_finish() {
    let database = database().await;
    let mut relay = database.relay().await;
    database
        .sql("create table tasks (id int primary key); select rowcast.watch('tasks')")
        .await;
    let mut screen = Screen::default();
    let mut stream = relay.stream("/rest/v1/tasks").await;
    screen.follow(&mut stream, |_| true).await;
    // And one whose every byte is looked at.
    let address = relay.url.trim_start_matches("http://").to_owned();
    let mut raw = TcpStream::connect(&address).await.unwrap();
    let request = format!(
        "GET /rest/v1/tasks HTTP/1.1\r\nhost: {address}\r\naccept: text/event-stream\r\n\r\n"
    );
    raw.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = vec![0; 16];
    raw.read_exact(&mut bytes).await.unwrap();

    // A write that waits for somebody else's lock.
    let locker = database.client().await;
    locker
        .batch_execute("begin; lock table tasks in share mode")
        .await
        .unwrap();
    let url = format!("{}/rest/v1/tasks", relay.url);
    let writing = tokio::spawn(async move {
        let client =
            hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
                .build_http::<http_body_util::Full<bytes::Bytes>>();
        let request = hyper::Request::post(url)
            .header("content-type", "application/json")
            .body(bytes::Bytes::from_static(b"{\"id\":7}").into())
            .unwrap();
        client.request(request).await.unwrap().status()
    });
    eventually("the write waits", async || {
        let waiting = database.one("select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()").await;
        (waiting == "1").then_some(())
    })
    .await;

    relay.signal("TERM").await;
    let goodbye = stream
        .until(|event| event.name == "control" && event.json()["closing"] == true)
        .await;
    assert!(goodbye.retry.is_some());
    assert_eq!(stream.next().await, None);
    // Nobody new is let in.
    eventually("no new connections", async || {
        TcpStream::connect(&address).await.err()
    })
    .await;
    locker.batch_execute("commit").await.unwrap();
    assert_eq!(writing.await.unwrap(), 201);

    tokio::time::timeout(DEADLINE, raw.read_to_end(&mut bytes))
        .await
        .unwrap()
        .unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.ends_with("\n\n\r\n0\r\n\r\n"), "{text}");
    let last = text
        .trim_end_matches("\n\n\r\n0\r\n\r\n")
        .rsplit("\n\n")
        .next()
        .unwrap();
    let data = last
        .lines()
        .find_map(|line| line.strip_prefix("data: "))
        .unwrap();
    let told: Value = serde_json::from_str(data).unwrap();
    assert_eq!(told["closing"], true);
    assert!(last.contains("retry: "), "{last}");

    let status = tokio::time::timeout(DEADLINE, relay.child.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(status.code(), Some(0));
    // What was written while the screen was away reaches it through another relay.
    let relay = database.relay().await;
    let mut returned = relay.resume("/rest/v1/tasks", &goodbye.id).await;
    screen.apply(&returned.data().await);
    assert!(screen.rows.contains_key("7"));
}

#[tokio::test]
async fn a_relay_that_waits_for_its_database_ends_when_it_is_told_to() {
    for name in ["TERM", "INT"] {
        let mut child = command()
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(["--database-url", "postgres://u@127.0.0.1:1/d"])
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let waits = lines.next_line().await.unwrap().unwrap();
        assert!(waits.contains("trying for 30 s"), "{waits}");
        signal(child.id().unwrap(), name).await;
        let ended = tokio::time::timeout(DEADLINE, child.wait()).await;
        assert!(ended.expect("it ends").unwrap().success());
    }
}

/// As while it reads much of its log again after a crash.
#[tokio::test]
async fn a_relay_whose_own_database_takes_long_to_start_ends_when_it_is_told_to() {
    let place = tempfile::Builder::new()
        .prefix("rowcast-slow")
        .tempdir_in("/tmp")
        .unwrap();
    let programs = place.path().join("bin");
    std::fs::create_dir(&programs).unwrap();
    for (name, script) in [
        ("initdb", "echo 17 >\"$2/PG_VERSION\""),
        (
            "postgres",
            "case $1 in -D) : >\"$2/begun\"; exec sleep 30 ;; esac; echo 'postgres (PostgreSQL) 17.0'",
        ),
    ] {
        let program = programs.join(name);
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        // PostgreSQL's own user is to run it.
        for path in [place.path(), &programs, &program] {
            std::fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
    }
    let data = place.path().join("data");
    let mut child = command()
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(&data)
        .env("ROWCAST_PG_BIN", &programs)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let begun = data.join("data").join("begun");
    eventually("it starts", async || begun.exists().then_some(())).await;
    signal(child.id().unwrap(), "TERM").await;
    let ended = tokio::time::timeout(DEADLINE, child.wait()).await;
    assert!(ended.expect("it ends").unwrap().success());
}

/// A disk of the network that does not answer is as a pipe into which nobody writes: who opens the file waits in the
/// system, which can be told nothing.
#[tokio::test]
async fn a_relay_whose_key_set_cannot_be_opened_ends_when_it_is_told_to() {
    const KEYS: &str =
        r#"{"keys":[{"kty":"oct","k":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}]}"#;
    let database = database().await;
    let place = tempfile::tempdir().unwrap();
    let (file, pipe) = (place.path().join("keys"), place.path().join("pipe"));
    std::fs::write(&file, KEYS).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let file = file.to_str().unwrap();
    let mut relay = Relay::start(&database, &["--jwks-file", file, "--roles", "web_user"]).await;
    std::fs::rename(&pipe, file).unwrap();
    // Whoever brings a token has it read again, once it is old enough. Nobody may open a pipe to write into it, and not
    // wait, before somebody reads; it is held open, and nothing is written.
    let headers = [("authorization", "Bearer eyJhbGciOiJIUzI1NiJ9.e30.AAAA")];
    let _held = eventually("it reads", async || {
        let asks = relay.request(hyper::Method::GET, "/rest/v1/", &headers, "");
        let _it_waits_too = tokio::time::timeout(Duration::from_millis(100), asks).await;
        rustix::fs::open(file, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()).ok()
    })
    .await;
    relay.signal("TERM").await;
    let ended = tokio::time::timeout(DEADLINE, relay.child.wait()).await;
    assert!(ended.expect("it ends").unwrap().success());
}

#[tokio::test]
async fn whoever_comes_while_a_relay_begins_is_not_told_that_the_database_is_away() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql("create table tasks (id int primary key); select rowcast.watch('tasks')")
        .await;
    let address = relay.url.trim_start_matches("http://").to_owned();
    relay.kill().await;
    for view in ["tasks", "tasks?id=not.isdistinct.7"] {
        let comes = async {
            // As soon as somebody listens there.
            let mut socket = eventually("a listener", async || {
                TcpStream::connect(&address).await.ok()
            })
            .await;
            let request = format!(
                "GET /rest/v1/{view} HTTP/1.1\r\nhost: {address}\r\naccept: text/event-stream\r\n\r\n"
            );
            socket.write_all(request.as_bytes()).await.unwrap();
            let (mut said, mut bytes) = (String::new(), [0; 4096]);
            while !said.contains("upToDate") {
                let read = socket.read(&mut bytes).await.unwrap();
                assert!(read > 0, "{said}");
                said.push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
            said
        };
        let (relay, said) = tokio::join!(Relay::at(&database, &address, &[]), comes);
        assert!(said.contains("\"upToDate\":true"), "{said}");
        relay.kill().await;
    }
}
