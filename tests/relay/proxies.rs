//! `nginx` and `HAProxy` in the way, as `docs/reliability.md` sets them up: events pass at once, streams
//! outlive every pause, and a relay that restarts is come back to.

use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};

use crate::harness::{Database, Relay, Screen, Stream, database, eventually};
use crate::installed::{self, has_proxy};
use crate::wire::{Wire, count};

/// A proxy in front of a relay; it ends with this value.
struct Proxy {
    url: String,
    _child: Child,
    _place: tempfile::TempDir,
}

/// A port that was free a moment ago.
fn port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Proxy {
    async fn nginx(relay: &str) -> Option<Self> {
        let place = tempfile::tempdir().unwrap();
        let port = port();
        let command = installed::nginx(place.path(), relay, &format!("127.0.0.1:{port}"))?;
        Some(Self::start(command, port, place).await)
    }

    async fn haproxy(relay: &str) -> Option<Self> {
        if !has_proxy("haproxy") {
            return None;
        }
        let place = tempfile::tempdir().unwrap();
        let port = port();
        let whole = include_str!("../proxies/haproxy.cfg")
            .replace("RELAY", relay)
            .replace("LISTEN", &format!("127.0.0.1:{port}"));
        let file = place.path().join("cfg");
        std::fs::write(&file, whole).unwrap();
        let mut command = Command::new("/usr/sbin/haproxy");
        command.arg("-db").arg("-f").arg(file);
        Some(Self::start(command, port, place).await)
    }

    async fn start(mut command: Command, port: u16, place: tempfile::TempDir) -> Self {
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        eventually("the proxy listens", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .ok()
        })
        .await;
        Self {
            url: format!("http://127.0.0.1:{port}"),
            _child: child,
            _place: place,
        }
    }

    async fn stream(&self, path: &str, id: Option<&str>) -> Stream {
        Stream::open(&format!("{}{path}", self.url), id).await
    }
}

async fn behind(database: Database, relay: Relay, proxy: Proxy) {
    database
        .sql(
            "create table tasks (id int primary key, body text); select rowcast.watch('tasks');
            insert into tasks select n, repeat('x', 5000) from generate_series(1, 200) n",
        )
        .await;
    let path = "/rest/v1/tasks";
    let mut stream = eventually("the proxy finds the relay", async || {
        let stream = proxy.stream(path, None).await;
        (stream.status == 200).then_some(stream)
    })
    .await;
    let mut screen = Screen::default();
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 200)
        .await;
    // A small event comes by itself, and not with the next full buffer.
    for id in 1..=5 {
        let txid = database
            .commit(&format!("update tasks set body = 'small' where id = {id}"))
            .await;
        let begun = Instant::now();
        screen.reach(&mut stream, &txid).await;
        assert!(
            begun.elapsed() < Duration::from_secs(4),
            "{:?}",
            begun.elapsed()
        );
    }
    // A page that came through the proxy is of the relay's own origin, also on a port of its own.
    let host = proxy.url.trim_start_matches("http://");
    let mut page = Wire::to(host.parse().unwrap()).await;
    page.send(format!(
        "DELETE /rest/v1/tasks?id=eq.0 HTTP/1.1\r\nhost: {host}\r\norigin: {}\r\n\r\n",
        proxy.url
    ))
    .await;
    assert!(page.sees("204 No Content").await);
    // Two heartbeats without any event.
    for _ in 0..2 {
        stream
            .until(|event| event.name == "control" && event.json()["upToDate"] == true)
            .await;
    }
    // A page that goes leaves the relay as well.
    let mut other = proxy.stream(path, None).await;
    Screen::default().follow(&mut other, |_| true).await;
    assert_eq!(count(&relay, "rowcast_subscribers").await, 2);
    drop(other);
    eventually("its stream is gone", async || {
        (count(&relay, "rowcast_subscribers").await == 1).then_some(())
    })
    .await;
    // The relay restarts: the stream ends well, then there is nobody, then it goes on.
    let address = relay.url.trim_start_matches("http://").to_owned();
    relay.end().await;
    while stream.next().await.is_some() {}
    let away = Stream::open(&format!("{}{path}", proxy.url), None).await;
    assert!(
        [502, 503, 504].contains(&away.status.as_u16()),
        "{}",
        away.status
    );
    let txid = database
        .commit("update tasks set body = 'meanwhile' where id = 9")
        .await;
    let _relay = Relay::at(&database, &address, &[]).await;
    let mut stream = eventually("the relay is found again", async || {
        let stream = proxy.stream(path, Some(&stream.id)).await;
        (stream.status == 200).then_some(stream)
    })
    .await;
    screen.reach(&mut stream, &txid).await;
    assert_eq!(screen.rows["9"]["body"], "meanwhile");
    assert_eq!(screen.rows.len(), 200);
}

#[tokio::test]
async fn nginx_passes_events_as_they_come() {
    let database = database().await;
    let relay = database.relay().await;
    if let Some(proxy) = Proxy::nginx(relay.url.trim_start_matches("http://")).await {
        behind(database, relay, proxy).await;
    }
}

#[tokio::test]
async fn haproxy_passes_events_as_they_come() {
    let database = database().await;
    let relay = database.relay().await;
    if let Some(proxy) = Proxy::haproxy(relay.url.trim_start_matches("http://")).await {
        behind(database, relay, proxy).await;
    }
}
