//! What a run happens in: a PostgreSQL of its own, relays as processes, and links that misbehave
//! between all of them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use crate::harness::{Database, Server, command, signal};
use crate::proxy::{Link, Place};
use crate::record::now;
use crate::tables::{ROLES, schema};
use crate::truth::SLOT;

pub const SECRET: &str = "a secret of more than thirty-two bytes, for the check";
pub const RELAYS: usize = 3;

pub type Http = HttpClient<HttpConnector, Full<Bytes>>;

pub fn http() -> Http {
    HttpClient::builder(TokioExecutor::new()).build_http()
}

/// Status and body of an answer; `Err` when there was none in time.
pub async fn ask(
    http: &Http,
    method: Method,
    url: &str,
    headers: &[(&str, &str)],
    body: String,
    patience: Duration,
) -> Result<(u16, String, String), String> {
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body))).unwrap();
    let exchange = async {
        let answer = http.request(request).await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            format!("{error}: {}", cause.unwrap_or_default())
        })?;
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?;
        let txid = parts.headers.get("rowcast-txid");
        let txid = txid.and_then(|value| value.to_str().ok());
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        Ok((
            parts.status.as_u16(),
            txid.unwrap_or_default().to_owned(),
            text,
        ))
    };
    let answered = tokio::time::timeout(patience, exchange).await;
    answered.unwrap_or_else(|_| Err("no answer in time".into()))
}

/// A relay: its process comes and goes, its links stay.
pub struct Relay {
    pub number: usize,
    /// Between it and the database.
    pub database: Link,
    /// Between its clients and it.
    pub door: Link,
    /// Where it is without any link.
    pub address: Arc<Mutex<Option<SocketAddr>>>,
    pub log: PathBuf,
    arguments: Vec<String>,
    child: Arc<tokio::sync::Mutex<Option<Child>>>,
}

impl Relay {
    async fn open(
        number: usize,
        socket: PathBuf,
        database: &str,
        world: &std::path::Path,
        retention: Duration,
    ) -> Self {
        let link = Link::open(Place::Unix(socket)).await;
        let url = |user: &str| {
            let port = link.address.port();
            format!("host=127.0.0.1 port={port} user={user} dbname={database} sslmode=disable")
        };
        let arguments = [
            ("--listen", "127.0.0.1:0".to_owned()),
            ("--database-url", url("postgres")),
            ("--api-url", url("hc_api")),
            ("--jwt-secret", SECRET.to_owned()),
            ("--anon-role", "hc_visitor".to_owned()),
            ("--retention", retention.as_secs().to_string()),
        ];
        Self {
            number,
            door: Link::open(Place::Nowhere).await,
            address: Arc::default(),
            log: world.join(format!("relay-{number}.log")),
            arguments: arguments
                .into_iter()
                .flat_map(|(name, value)| [name.to_owned(), value])
                .collect(),
            child: Arc::default(),
            database: link,
        }
    }

    /// Starts its process. Returns before it serves: the database may be away.
    pub async fn start(&self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        let mut child = command()
            .arg("serve")
            .args(&self.arguments)
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        *self.child.lock().await = Some(child);
        let (address, place) = (Arc::clone(&self.address), self.door.place());
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let told = line.strip_prefix("api   http://");
                let told = told.and_then(|url| url.split('/').next()?.parse().ok());
                if let Some(found) = told {
                    *address.lock().unwrap() = Some(found);
                    *place.lock().unwrap() = Place::Tcp(found);
                }
            }
        });
    }

    /// Sends a signal to its process. Returns whether there was one.
    pub async fn signal(&self, name: &str) -> bool {
        let child = self.child.lock().await;
        let Some(pid) = child.as_ref().and_then(Child::id) else {
            return false;
        };
        signal(pid, name).await;
        true
    }

    pub async fn pid(&self) -> Option<u32> {
        self.child.lock().await.as_ref().and_then(Child::id)
    }

    /// Waits until its process is gone; kills it when it does not go. Returns how it ended.
    pub async fn gone(&self, patience: Duration) -> String {
        let Some(mut child) = self.child.lock().await.take() else {
            return "it was gone".into();
        };
        self.door.leads_to(Place::Nowhere);
        *self.address.lock().unwrap() = None;
        if let Ok(status) = tokio::time::timeout(patience, child.wait()).await {
            return status.map_or_else(|error| error.to_string(), |status| status.to_string());
        }
        child.kill().await.unwrap();
        "it had to be killed".into()
    }

    /// Polls its readiness. Microseconds from `since` until it said yes; `None` after `patience`.
    pub async fn ready(&self, since: u64, patience: Duration) -> Option<u64> {
        let http = http();
        let end = tokio::time::Instant::now() + patience;
        while tokio::time::Instant::now() < end {
            let address = *self.address.lock().unwrap();
            if let Some(address) = address {
                let url = format!("http://{address}/readyz");
                let second = Duration::from_secs(1);
                let answer = ask(&http, Method::GET, &url, &[], String::new(), second).await;
                if matches!(answer, Ok((200, ..))) {
                    return Some(now().saturating_sub(since));
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        None
    }

    /// Its counters; empty when it does not answer.
    pub async fn metrics(&self) -> String {
        let address = *self.address.lock().unwrap();
        let Some(address) = address else {
            return String::new();
        };
        let url = format!("http://{address}/metrics");
        let patience = Duration::from_secs(2);
        let answer = ask(&http(), Method::GET, &url, &[], String::new(), patience).await;
        answer.map(|(_, _, text)| text).unwrap_or_default()
    }
}

pub struct World {
    pub server: Server,
    /// As a superuser, with no link between.
    pub database: Database,
    pub relays: Vec<Relay>,
    /// Holds the logs of the relays.
    _directory: tempfile::TempDir,
}

impl World {
    pub async fn open(retention: Duration) -> Self {
        let server = Server::start(&[
            ("wal_level", "logical"),
            ("max_connections", "200"),
            ("log_lock_waits", "on"),
            ("deadlock_timeout", "100ms"),
            ("log_connections", "on"),
            ("max_replication_slots", "4"),
            ("max_wal_size", "2GB"),
            ("checkpoint_timeout", "1min"),
        ])
        .await;
        let database = server.database().await;
        database.sql(ROLES).await;
        let slot = format!("select pg_create_logical_replication_slot('{SLOT}', 'test_decoding')");
        database.sql(&slot).await;
        let directory = tempfile::tempdir().unwrap();
        let socket = socket(&database.url);
        let name = database.url.rsplit('=').next().unwrap().to_owned();
        let mut relays = Vec::new();
        for number in 0..RELAYS {
            relays.push(
                Relay::open(number, socket.clone(), &name, directory.path(), retention).await,
            );
        }
        let world = Self {
            server,
            database,
            relays,
            _directory: directory,
        };
        // The first one installs.
        for relay in &world.relays {
            relay.start().await;
            let ready = relay.ready(0, Duration::from_mins(1)).await;
            assert!(ready.is_some(), "relay {} starts", relay.number);
        }
        world.database.sql(&schema()).await;
        world
    }

    pub fn doors(&self) -> Vec<SocketAddr> {
        self.relays.iter().map(|relay| relay.door.address).collect()
    }

    /// PostgreSQL's own log.
    pub fn log(&self) -> PathBuf {
        self.server.directory.path().join("d/log/postgres.log")
    }
}

/// The Unix socket of a `host=DIRECTORY port=N` string.
pub fn socket(url: &str) -> PathBuf {
    let of = |name: &str| {
        let mut words = url.split_whitespace();
        let found = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        found.unwrap().to_owned()
    };
    PathBuf::from(of("host")).join(format!(".s.PGSQL.{}", of("port")))
}

/// A token of this role, as `rowcast token` makes it.
pub async fn token(role: &str, claims: &[String]) -> String {
    let mut command = command();
    command.args(["token", "--jwt-secret", SECRET, "--role", role]);
    command.args(["--expires", "6h"]);
    for claim in claims {
        command.args(["--claim", claim]);
    }
    let made = command.output().await.unwrap();
    assert!(made.status.success(), "{made:?}");
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}
