//! The real relay on a free port, a database of its own for each test, and clients.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rowcast::postgres::embedded::{Cluster, Options, running};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio_postgres::{Client, NoTls};

/// Generous: a test asserts behaviour, and benchmarks measure time.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A throw-away PostgreSQL. It dies with this process.
pub struct Server {
    pub cluster: Cluster,
    pub directory: tempfile::TempDir,
}

impl Server {
    /// Starts one with these settings.
    pub async fn start(settings: &[(&str, &str)]) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("rowcast-test")
            .tempdir_in(scratch())
            .unwrap();
        Self::start_in(directory, settings).await
    }

    /// Starts one that was stopped before.
    pub async fn resume(directory: tempfile::TempDir) -> Self {
        Self::start_in(directory, &[]).await
    }

    /// Starts one in this directory.
    pub async fn start_in(directory: tempfile::TempDir, settings: &[(&str, &str)]) -> Self {
        let data_dir = directory.path().join("d");
        if !data_dir.exists() {
            copy(&newborn().await, &data_dir).await;
        }
        let cluster = cluster(data_dir, settings).await;
        Self { cluster, directory }
    }

    /// A new empty database.
    pub async fn database(&self) -> Database {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let running = running(&self.directory.path().join("d")).expect("the cluster runs");
        let url = |name: &str| {
            format!(
                "host={} port={} user=postgres dbname={name}",
                running.socket_directory.display(),
                running.port
            )
        };
        let admin = connect(&url("postgres")).await;
        admin
            .batch_execute(&format!("create database {name}"))
            .await
            .unwrap();
        Database { url: url(&name) }
    }
}

async fn cluster(data_dir: PathBuf, settings: &[(&str, &str)]) -> Cluster {
    let options = Options {
        data_dir,
        durable: false,
        extra_settings: settings
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect(),
        max_connections: 100,
        pg_bin: pg_bin(),
    };
    let started = Cluster::start(options).await;
    started.unwrap_or_else(|error| panic!("{}", error.told()))
}

/// Where the programs of PostgreSQL are, when somebody says so.
pub fn pg_bin() -> Option<PathBuf> {
    std::env::var_os("ROWCAST_PG_BIN").map(PathBuf::from)
}

/// A cluster that nobody has used, for copies. Nearly every test starts a server in a process of its
/// own, and initdb takes a second of the processor where a copy takes a tenth: the first process of
/// a build makes this one for all others, with the build's own launcher and for each PostgreSQL.
async fn newborn() -> PathBuf {
    let ours = std::env::current_exe().unwrap();
    let since_1970 = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap().as_micros();
    let built = since_1970(ours.metadata().unwrap().modified().unwrap());
    let mut hash = DefaultHasher::new();
    (ours.file_name(), pg_bin()).hash(&mut hash);
    let kind = format!("cluster-{:016x}-", hash.finish());
    let tests = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let kept = tests.join(format!("{kind}{built}"));
    if !kept.exists() {
        let place = tempfile::tempdir_in(scratch()).unwrap();
        let made = place.path().join("d");
        cluster(made.clone(), &[]).await.stop().await;
        // Whole at once; and who comes second leaves what is there.
        let place = tempfile::tempdir_in(tests).unwrap();
        copy(&made, &place.path().join("d")).await;
        let _second = std::fs::rename(place.path().join("d"), &kept);
        // Of the builds before; others may be at it too.
        for other in std::fs::read_dir(tests).unwrap() {
            let other = other.unwrap().path();
            let name = other.file_name().unwrap().to_str().unwrap();
            if name.starts_with(&kind) && other != kept {
                let _gone = std::fs::remove_dir_all(&other);
            }
        }
    }
    kept
}

/// Where servers keep their files: in memory where there is room for them. Hundreds of databases are made
/// of hundreds of files each, and what a disk's file system does for each is a sixth of what the tests
/// take. Root's own temp directory may be closed to PostgreSQL's user; these two are not.
fn scratch() -> &'static Path {
    const ROOM: u64 = 4 << 30;
    let memory = Path::new("/dev/shm");
    match rustix::fs::statvfs(memory) {
        Ok(found) if found.f_bavail * found.f_frsize >= ROOM => memory,
        _ => Path::new("/tmp"),
    }
}

/// Copies a directory with its owners.
async fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status().await;
    let (from, to) = (from.display(), to.display());
    assert!(copied.unwrap().success(), "cp -a {from} {to}");
}

/// Removes `directory` once this process and its server are gone, however they end: what is shared
/// is never dropped.
fn swept_in_the_end(directory: &std::path::Path) {
    let sweep = "cat; for _ in $(seq 60); do [ -e \"$1/d/data/postmaster.pid\" ] || break; sleep 0.5; done; rm -rf \"$1\"";
    let broom = std::process::Command::new("sh")
        .args(["-c", sweep, "sweep"])
        .arg(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    // The pipe is held until the process ends.
    std::mem::forget(broom);
}

/// One PostgreSQL for all tests of this process that do not harm it. It lives in a runtime of its
/// own, since each test's runtime ends with the test.
static SHARED: LazyLock<(tokio::runtime::Runtime, Server)> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let server = std::thread::scope(|scope| {
        scope
            .spawn(|| runtime.block_on(Server::start(&[])))
            .join()
            .unwrap()
    });
    swept_in_the_end(server.directory.path());
    (runtime, server)
});

/// A database of a test's own on the shared server.
pub async fn database() -> Database {
    SHARED.1.database().await
}

/// A database.
#[derive(Clone)]
pub struct Database {
    /// For `--database-url`.
    pub url: String,
}

impl Database {
    /// A plain connection, like any other service's.
    pub async fn client(&self) -> Client {
        connect(&self.url).await
    }

    /// Its address as another login than the superuser.
    pub fn login(&self, name: &str) -> String {
        self.url.replace("user=postgres", &format!("user={name}"))
    }

    /// Another empty database beside it, in this encoding.
    pub async fn in_encoding(&self, encoding: &str) -> Self {
        let name = self.one("select current_database()").await;
        let own = format!("{name}_{}", encoding.to_lowercase());
        self.sql(&format!(
            "create database {own} template template0 encoding '{encoding}'"
        ))
        .await;
        let url = self
            .url
            .replace(&format!("dbname={name}"), &format!("dbname={own}"));
        Self { url }
    }

    /// Runs statements on a connection of its own.
    pub async fn sql(&self, sql: &str) {
        self.client()
            .await
            .batch_execute(sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Sets something for every session that begins from here on, e.g. `statement_timeout = 500`.
    pub async fn set(&self, setting: &str) {
        let name = self.one("select quote_ident(current_database())").await;
        self.sql(&format!("alter database {name} set {setting}"))
            .await;
    }

    /// Makes a role; they are the cluster's, and every test may find it there.
    pub async fn role(&self, name: &str, how: &str) {
        self.sql(&format!(
            "do $$ begin
               lock table pg_authid in share row exclusive mode;
               if not exists (select from pg_roles where rolname = '{name}') then
                 create role {name} {how};
               end if;
             end $$"
        ))
        .await;
    }

    /// The first column of the first row, as text.
    pub async fn one(&self, sql: &str) -> String {
        let rows = self.client().await.simple_query(sql).await.unwrap();
        rows.iter()
            .find_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            })
            .unwrap_or_default()
    }

    /// Runs statements as one transaction; returns its id.
    pub async fn commit(&self, sql: &str) -> String {
        let sql = format!("begin; {sql}; select pg_current_xact_id()::text; commit");
        let client = self.client().await;
        let answers = client.simple_query(&sql).await;
        let answers = answers.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let rows = answers.iter().filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        rows.last().unwrap()
    }

    /// A relay on it. The first one installs Rowcast.
    pub async fn relay(&self) -> Relay {
        Relay::start(self, &[]).await
    }
}

/// A connection by a key-value string.
pub async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A running `rowcast serve`. Dropping it kills it.
pub struct Relay {
    pub child: Child,
    /// `http://127.0.0.1:PORT`
    pub url: String,
    /// `127.0.0.1:PORT` for operators, if there is one.
    pub ops: Option<String>,
}

impl Relay {
    /// Starts the real binary and waits until it says where it is.
    pub async fn start(database: &Database, arguments: &[&str]) -> Self {
        Self::at(database, "127.0.0.1:0", arguments).await
    }

    /// Starts it on this address, e.g. where one was killed.
    pub async fn at(database: &Database, address: &str, arguments: &[&str]) -> Self {
        let mut command = command();
        command
            .args(["serve", "--listen", address])
            .args(["--database-url", &database.url])
            .args(arguments);
        Self::spawn(command).await.0
    }

    /// Starts it with what it logs in this file.
    pub async fn logged(database: &Database, arguments: &[&str], log: &Path) -> Self {
        Self::logged_by(command(), database, arguments, log).await
    }

    /// The same with everything that it has to say.
    pub async fn verbose(database: &Database, arguments: &[&str], log: &Path) -> Self {
        let mut command = command();
        command.env("RUST_LOG", "trace");
        Self::logged_by(command, database, arguments, log).await
    }

    async fn logged_by(
        mut command: Command,
        database: &Database,
        arguments: &[&str],
        log: &Path,
    ) -> Self {
        command
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(["--database-url", &database.url])
            .args(arguments)
            .stderr(std::fs::File::create(log).unwrap());
        Self::spawn(command).await.0
    }

    /// The value of a counter or gauge, with its labels if it has some; 0 when it is not told.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.body;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Starts it with a private PostgreSQL and the demo board. Tells the database's address too.
    pub async fn demo(data_dir: &Path) -> (Self, String) {
        Self::demo_with(data_dir, &[]).await
    }

    /// The same with more arguments.
    pub async fn demo_with(data_dir: &Path, arguments: &[&str]) -> (Self, String) {
        let mut command = command();
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(data_dir)
            .args(arguments);
        let (relay, psql) = Self::spawn(command).await;
        let database = psql
            .strip_prefix("psql -d ")
            .expect("a psql line")
            .trim_matches('\'')
            .to_owned();
        (relay, database)
    }

    /// Runs this command, which is to be a relay that says where it is.
    pub async fn run(command: Command) -> Self {
        Self::spawn(command).await.0
    }

    /// Also gives the psql line that it says.
    async fn spawn(mut command: Command) -> (Self, String) {
        let mut child = command
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = tokio::time::timeout(DEADLINE * 2, async {
            let (mut url, mut ops) = (None, None);
            loop {
                let line = lines
                    .next_line()
                    .await
                    .unwrap()
                    .expect("the relay says its address");
                if let Some(api) = line.strip_prefix("api   ") {
                    url = Some(api.trim_end_matches("/rest/v1").to_owned());
                } else if let Some(address) = line.strip_prefix("ops   http://") {
                    ops = Some(address.trim_end_matches('/').to_owned());
                } else if let Some(psql) = line.strip_prefix("psql  ") {
                    let url: String = url.expect("the API comes first");
                    return (url, psql.to_owned(), ops);
                }
            }
        })
        .await
        .expect("the relay starts");
        let (url, psql, ops) = said;
        (Self { child, url, ops }, psql)
    }

    /// `kill -9`.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Asks it to end, and waits for that.
    pub async fn end(mut self) {
        self.signal("TERM").await;
        let ended = tokio::time::timeout(DEADLINE * 2, self.child.wait()).await;
        ended.expect("the relay ends").unwrap();
    }

    /// Sends a signal by name, e.g. `TERM`.
    pub async fn signal(&self, name: &str) {
        signal(self.child.id().expect("it runs"), name).await;
    }

    /// A stream, and the screen that shows what it began with.
    pub async fn shown(&self, path: &str) -> (Stream, Screen) {
        let mut stream = self.stream(path).await;
        let mut screen = Screen::default();
        screen.follow(&mut stream, |_| true).await;
        (stream, screen)
    }

    /// A stream of this path, e.g. `/rest/v1/tasks`.
    pub async fn stream(&self, path: &str) -> Stream {
        Stream::open(&format!("{}{path}", self.url), None).await
    }

    /// A stream that goes on after this id.
    pub async fn resume(&self, path: &str, id: &str) -> Stream {
        Stream::open(&format!("{}{path}", self.url), Some(id)).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path, &[], "").await
    }

    pub async fn post(&self, path: &str, body: &str) -> Answer {
        self.request(
            Method::POST,
            path,
            &[("content-type", "application/json")],
            body,
        )
        .await
    }

    pub async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(Bytes::from(body.to_owned())))
            .unwrap();
        let answer = tokio::time::timeout(DEADLINE, http().request(request))
            .await
            .expect("an answer in time")
            .unwrap();
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }
}

/// The binary, with nothing of our environment that would set it.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rowcast"));
    for name in [
        "DATABASE_URL",
        "ROWCAST_API_URL",
        "ROWCAST_ANON_ROLE",
        "ROWCAST_JWT_SECRET",
        "PGHOST",
        "PGPORT",
        "PGUSER",
        "PGDATABASE",
        "PGSERVICE",
        "ROWCAST_LISTEN",
        "ROWCAST_DATA_DIR",
    ] {
        command.env_remove(name);
    }
    command
}

/// Sends a signal to a process that this test started.
pub async fn signal(pid: u32, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status()
        .await
        .unwrap();
    assert!(status.success(), "kill -{name} {pid}");
}

/// The same for a whole process group, as a terminal does it.
pub async fn signal_group(leader: u32, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), "--", &format!("-{leader}")])
        .status()
        .await
        .unwrap();
    assert!(status.success(), "kill -{name} -- -{leader}");
}

fn http() -> HttpClient<HttpConnector, Full<Bytes>> {
    HttpClient::builder(TokioExecutor::new()).build_http()
}

/// A response that was read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: hyper::HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// `Rowcast-Txid`
    pub fn txid(&self) -> &str {
        self.header("rowcast-txid")
    }
}

/// One dispatched event.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Event {
    pub name: String,
    pub id: String,
    pub data: String,
    pub retry: Option<u64>,
}

impl Event {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error}: {}", self.data))
    }

    /// The elements of a `data` event; none of others.
    pub fn elements(&self) -> Vec<Value> {
        if self.name == "data" {
            self.json().as_array().unwrap().clone()
        } else {
            Vec::new()
        }
    }

    /// Whether a screen that was given everything up to this event shows this transaction.
    pub fn covers(&self, txid: &str) -> bool {
        let token = self.id.parse::<rowcast::cursor::Token>();
        token.is_ok_and(|token| token.cursor.is_done(txid.parse().unwrap()))
    }

    /// Whether this is a control element of a `data` event.
    pub fn has_control(&self, name: &str) -> bool {
        self.elements()
            .iter()
            .any(|element| element["headers"]["control"] == name)
    }

    /// Whether an element has this `txid`.
    pub fn has_txid(&self, txid: &str) -> bool {
        self.elements()
            .iter()
            .any(|element| element["headers"]["txid"] == txid)
    }
}

/// An EventSource in forty lines, written from the standard: the tests' own client.
pub struct Stream {
    pub status: StatusCode,
    pub headers: hyper::HeaderMap,
    body: Incoming,
    rest: Vec<u8>,
    ready: VecDeque<Event>,
    pending: (String, Option<u64>, Vec<String>),
    /// The last event id that was parsed. Several events may come at once.
    parsed: String,
    /// The id of the last event that was given out, where a reader of it would go on.
    pub id: String,
    /// Everything received, as it came.
    pub raw: Vec<u8>,
    pub ended: bool,
}

impl Stream {
    pub async fn open(url: &str, id: Option<&str>) -> Self {
        Self::with(url, id, &[]).await
    }

    /// Opens it with more headers, as a reader does that is no EventSource.
    pub async fn with(url: &str, id: Option<&str>, headers: &[(&str, &str)]) -> Self {
        let mut request = Request::get(url).header("accept", "text/event-stream");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(id) = id {
            request = request.header("last-event-id", id);
        }
        let request = request.body(Full::default()).unwrap();
        let answer = tokio::time::timeout(DEADLINE, http().request(request))
            .await
            .expect("a response in time")
            .unwrap();
        let (parts, body) = answer.into_parts();
        Self {
            status: parts.status,
            headers: parts.headers,
            body,
            rest: Vec::new(),
            ready: VecDeque::new(),
            pending: Default::default(),
            parsed: id.unwrap_or_default().to_owned(),
            id: id.unwrap_or_default().to_owned(),
            raw: Vec::new(),
            ended: false,
        }
    }

    /// The next event; `None` at the end of the stream. Panics after the deadline.
    pub async fn next(&mut self) -> Option<Event> {
        tokio::time::timeout(DEADLINE, self.advance())
            .await
            .expect("an event in time")
    }

    /// The next event within `patience`; `None` if there was none or the stream ended.
    pub async fn next_within(&mut self, patience: Duration) -> Option<Event> {
        tokio::time::timeout(patience, self.advance())
            .await
            .ok()
            .flatten()
    }

    /// The next event that is not a control.
    pub async fn data(&mut self) -> Event {
        self.until(|event| event.name == "data").await
    }

    /// The first event from here for which `found` holds; earlier ones are dropped.
    pub async fn until(&mut self, found: impl Fn(&Event) -> bool) -> Event {
        let search = async {
            loop {
                let Some(event) = self.advance().await else {
                    panic!("the stream ended: {}", String::from_utf8_lossy(&self.raw));
                };
                if found(&event) {
                    return event;
                }
            }
        };
        tokio::time::timeout(DEADLINE, search)
            .await
            .expect("the event in time")
    }

    async fn advance(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.id.clone_from(&event.id);
                return Some(event);
            }
            let Some(Ok(frame)) = self.body.frame().await else {
                self.ended = true;
                return None;
            };
            if let Ok(bytes) = frame.into_data() {
                self.raw.extend_from_slice(&bytes);
                self.take(&bytes);
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = std::str::from_utf8(&line[..end]).expect("UTF-8");
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut self.pending.0),
                "id" => value.clone_into(&mut self.parsed),
                "retry" => self.pending.1 = value.parse().ok(),
                "data" => self.pending.2.push(value.to_owned()),
                "" if line.is_empty() => {
                    let (name, retry, data) = std::mem::take(&mut self.pending);
                    if !data.is_empty() {
                        self.ready.push_back(Event {
                            name,
                            id: self.parsed.clone(),
                            data: data.join("\n"),
                            retry,
                        });
                    }
                }
                _ => {}
            }
        }
    }
}

/// What a screen shows: rows by key, as the events make it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Screen {
    pub rows: BTreeMap<String, Value>,
    pub complete: bool,
}

impl Screen {
    pub fn apply(&mut self, event: &Event) {
        for element in event.elements() {
            let headers = &element["headers"];
            match headers["control"].as_str() {
                Some("reset") => self.rows.clear(),
                Some("snapshot-start") => self.complete = false,
                Some("snapshot-end") => self.complete = true,
                _ => {
                    let key = element["key"].as_str().unwrap().to_owned();
                    if headers["operation"] == "delete" {
                        self.rows.remove(&key);
                    } else {
                        self.rows.insert(key, element["value"].clone());
                    }
                }
            }
        }
    }

    /// Applies events until the stream says that this transaction has been shown.
    pub async fn reach(&mut self, stream: &mut Stream, txid: &str) -> Vec<Event> {
        let mut events = Vec::new();
        let begun = std::time::Instant::now();
        loop {
            let event = stream.next().await.expect("the stream goes on");
            self.apply(&event);
            let reached = self.complete && event.covers(txid);
            events.push(event);
            if reached {
                return events;
            }
            // Heartbeats never end.
            assert!(begun.elapsed() < DEADLINE, "not shown: {txid}");
        }
    }

    /// Applies events until `found` holds for what is shown.
    pub async fn follow(&mut self, stream: &mut Stream, found: impl Fn(&Self) -> bool) {
        let begun = std::time::Instant::now();
        while !(self.complete && found(self)) {
            let event = stream.next().await.expect("the stream goes on");
            self.apply(&event);
            // Heartbeats never end.
            assert!(begun.elapsed() < DEADLINE, "not shown; but: {self:?}");
        }
    }
}

/// What decides whatever a test chooses at random. The same each time, so that a run tells of the change
/// it is made for; `ROWCAST_SEED` sets another, `ROWCAST_SEED=random` a new one (`make explore`).
pub fn seed() -> u64 {
    let seed = match std::env::var("ROWCAST_SEED").as_deref() {
        Ok("random") => fastrand::u64(..),
        Ok(number) => number.parse().unwrap(),
        Err(_) => 1,
    };
    eprintln!("ROWCAST_SEED={seed}");
    seed
}

/// Waits until `probe` gives something.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = std::time::Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(begun.elapsed() < DEADLINE * 2, "{what} never came true");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
