//! What each fuzz target does with its bytes, and what must hold whatever they are.
//!
//! Apart from the targets themselves, so that the kept corpus can be replayed by an ordinary test.
//! Each function panics when something does not hold.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::http::request::Parts;
use jiff::Timestamp;
use rowcast::admission::{self, Admission};
use rowcast::auth::token::sign;
use rowcast::auth::{Authenticator, Secret, Settings};
use rowcast::cursor::{Cursor, Name, Token};
use rowcast::etag::Tags;
use rowcast::event::{Element, Image};
use rowcast::filter::Condition;
use rowcast::health::Health;
use rowcast::http::Response;
use rowcast::http::assets::Assets;
use rowcast::http::body;
use rowcast::http::cors::Origins;
use rowcast::http::route::{Api, Route, Router};
use rowcast::http::server::{Limits, Server, listen};
use rowcast::memory::Pressure;
use rowcast::metrics::Metrics;
use rowcast::postgres::connect::Target;
use rowcast::postgres::conninfo::Conninfo;
use rowcast::rows::body::{Payload, from_form};
use rowcast::rows::plan::Read;
use rowcast::rows::request::{Request, Verb};
use rowcast::rows::statement::{self, Key, Statement};
use rowcast::schema::catalog::{Column, Table};
use rowcast::share::Budget;
use rowcast::shutdown::Shutdown;
use rowcast::sse;
use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// A target by its name.
pub type Entry = (&'static str, fn(&[u8]));

/// Every target, as its corpus is called.
pub const ALL: [Entry; 10] = [
    ("token", token),
    ("resume", resume),
    ("filter", filter),
    ("body", json_body),
    ("jwt", jwt),
    ("sse", events),
    ("image", image),
    ("http1", http1),
    ("http2", http2),
    ("config", config),
];

fn text(data: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(data)
}

/// A token is what we would have written, or none.
pub fn token(data: &[u8]) {
    let Ok(token) = text(data).parse::<Token>() else {
        return;
    };
    let written = token.to_string();
    assert_eq!(written.parse::<Token>().as_ref(), Ok(&token));
    assert!(
        written
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)),
        "{written}"
    );
}

/// Somebody's place in the log meets ours: the first line is his token, the second our snapshot. What is
/// done is done in the union, and covering is what it says, whatever he made up.
pub fn resume(data: &[u8]) {
    let text = text(data);
    let (theirs, ours) = text.split_once('\n').unwrap_or((&text, "3:9:4,7"));
    let (Ok(theirs), Ok(ours)) = (theirs.parse::<Token>(), Cursor::from_pg_snapshot(ours)) else {
        return;
    };
    let theirs = theirs.cursor;
    let both = theirs.union(&ours);
    assert!(
        both.covers(&theirs) && both.covers(&ours),
        "{theirs} {ours}"
    );
    let near = |cursor: &Cursor| {
        let edges = [cursor.xmin(), cursor.xmax()];
        let ids = edges
            .into_iter()
            .chain(cursor.xip().iter().copied().take(64));
        ids.flat_map(|xid| [xid.saturating_sub(1), xid, xid.saturating_add(1)])
            .collect::<Vec<_>>()
    };
    let mut missing = false;
    for xid in near(&theirs).into_iter().chain(near(&ours)) {
        let (left, right) = (theirs.is_done(xid), ours.is_done(xid));
        assert_eq!(both.is_done(xid), left || right, "{xid}: {theirs} {ours}");
        missing |= right && !left;
    }
    if missing {
        assert!(!theirs.covers(&ours), "{theirs} {ours}");
    }
    if ours.covers(&theirs) && theirs.covers(&ours) {
        assert_eq!(both.xmin(), ours.xmin());
    }
}

fn column(name: &str, type_name: &str, base: &str) -> Column {
    Column {
        name: name.to_owned(),
        type_name: type_name.to_owned(),
        base: base.to_owned(),
        byte_ordered: true,
        deterministic: true,
        not_null: false,
        virtual_: false,
        names_objects: false,
        nested: false,
    }
}

static TABLE: LazyLock<Arc<Table>> = LazyLock::new(|| {
    Arc::new(Table {
        oid: 1,
        schema: "public".to_owned(),
        name: "t".to_owned(),
        kind: 'r',
        columns: vec![
            column("id", "integer", "int4"),
            column("title", "text", "text"),
            column("data", "jsonb", "jsonb"),
            column("words", "tsvector", "tsvector"),
            column("odd\"\n;--name", "text", "text"),
        ],
        key: vec!["id".to_owned()],
        watched: true,
        by_column: false,
        deferrable_key: false,
    })
});

/// Whatever is asked for in a URL, the statement is one statement, and what came in the URL is a
/// parameter or a quoted name.
pub fn filter(data: &[u8]) {
    let query = text(data);
    if let Some((name, value)) = query.split_once('=') {
        let _either = Condition::parse(name, value);
    }
    let Ok(request) = Request::parse(Verb::Read, "t", &query, |_| None) else {
        return;
    };
    let Ok(read) = Read::of_table(&request, Arc::clone(&TABLE)) else {
        return;
    };
    for statement in [
        statement::select_rows(&read, Key::With),
        statement::select_rows(&read, Key::Without),
        statement::count_rows(&read),
        statement::count_some_rows(&read, 7),
        statement::explain_rows(&read),
    ] {
        is_one(&statement);
    }
}

/// Outside of quotes there are only words and signs of ours, each parameter that is named is there, and
/// every quote is closed.
fn is_one(statement: &Statement) {
    let sql = &statement.sql;
    let mut highest = 0;
    let mut letters = sql.char_indices().peekable();
    let mut depth = 0_i64;
    while let Some((at, letter)) = letters.next() {
        let rest = &sql[at..];
        match letter {
            '"' | '\'' => loop {
                match letters.next() {
                    Some((_, end)) if end == letter => {
                        if letters.peek().is_some_and(|(_, next)| *next == letter) {
                            letters.next();
                        } else {
                            break;
                        }
                    }
                    Some((_, inside)) => assert_ne!(inside, '\0', "{sql}"),
                    None => panic!("an open quote: {sql}"),
                }
            },
            '$' => {
                let digits: String = rest[1..].chars().take_while(char::is_ascii_digit).collect();
                let number: usize = digits.parse().unwrap_or_else(|_| panic!("a dollar: {sql}"));
                highest = highest.max(number);
            }
            '(' => depth += 1,
            ')' => {
                depth -= 1;
                assert!(depth >= 0, "{sql}");
            }
            ';' | '\\' => panic!("{letter:?} outside of quotes: {sql}"),
            '-' => assert!(!rest.starts_with("--"), "a comment: {sql}"),
            '/' => assert!(!rest.starts_with("/*"), "a comment: {sql}"),
            other => assert!(other.is_ascii(), "{other:?} outside of quotes: {sql}"),
        }
    }
    assert_eq!(depth, 0, "{sql}");
    assert!(highest <= statement.params.len(), "{sql}");
}

/// An object whose values are left as they are: JSON knows larger numbers than Rust.
type Object = std::collections::BTreeMap<String, Box<RawValue>>;

/// A body is rows of JSON, each exactly as it was sent, or it is refused.
pub fn json_body(data: &[u8]) {
    if let Ok(payload) = Payload::parse(data) {
        for row in &payload.rows {
            let object: Object = serde_json::from_str(row.text).expect("a row is an object");
            assert!(object.keys().all(|key| row.keys.contains(key)));
        }
    }
    if let Ok(json) = from_form(data) {
        let payload = Payload::parse(&json).expect("a form becomes a body");
        assert_eq!(payload.rows.len(), 1);
    }
    let _either = Tags::parse(&text(data));
}

const SECRET: &str = "a secret of more than thirty-two bytes, for fuzzing";

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime")
});

static JUDGE: LazyLock<Authenticator> = LazyLock::new(|| {
    Authenticator::new(Settings {
        secret: Some(Secret::new(SECRET)),
        jwks_file: None,
        jwks_url: None,
        audience: None,
        issuer: None,
        role_claim: Some(".role".to_owned()),
        anon_role: None,
        roles: Some(vec!["member".to_owned()]),
        cookie: None,
    })
    .expect("good settings")
});

/// What nobody has signed is refused; what we have signed, whatever it claims, gets no role but those that
/// are allowed, and not for ever.
pub fn jwt(data: &[u8]) {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    let judged = |token: &str| RUNTIME.block_on(JUDGE.verify(token, now));
    let text = text(data);
    if let Ok(identity) = judged(&text) {
        // Somebody who can compute HMACs in his head has won.
        panic!("a token that was never signed is good: {identity:?}");
    }
    let Ok(signed) = sign(&Secret::new(SECRET), &text) else {
        return;
    };
    if let Ok(identity) = judged(&signed) {
        assert_eq!(identity.role.as_deref(), Some("member"));
        assert!(identity.expires.is_some());
        let _json: serde_json::Value =
            serde_json::from_str(&identity.claims).expect("claims are JSON");
    }
    // Cut, doubled or changed at one place, it is nobody's.
    assert!(judged(&signed[..signed.len() - 1]).is_err());
    assert!(judged(&format!("{signed}.")).is_err());
}

/// A reader of event streams, written from the standard: `event`, `id` and the data lines joined.
fn parsed(stream: &str) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    let (mut event, mut id, mut data) = (String::new(), String::new(), Vec::new());
    let lines = stream.replace("\r\n", "\n").replace('\r', "\n");
    for line in lines.split('\n') {
        if line.is_empty() {
            if !data.is_empty() {
                found.push((std::mem::take(&mut event), id.clone(), data.join("\n")));
            }
            event.clear();
            data.clear();
            continue;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut event),
            "id" => value.clone_into(&mut id),
            "data" => data.push(value.to_owned()),
            "" | "retry" => {}
            other => panic!("a field of nobody: {other:?}"),
        }
    }
    found
}

/// Whatever is in a value, a key or a name, the stream holds one event, and it says what went in.
pub fn events(data: &[u8]) {
    let text = text(data);
    let string = serde_json::to_string(&text).expect("a string");
    // Valid JSON goes out as it is, odd blanks and line ends included: that is what json columns hold.
    let value: Arc<str> = match serde_json::from_str::<serde_json::Value>(&text) {
        Ok(_) => text.as_ref().into(),
        Err(_) => string.as_str().into(),
    };
    let object: Arc<str> = format!("{{\"v\":{value}}}").into();
    let key: Arc<str> = text.as_ref().into();
    let at = Timestamp::UNIX_EPOCH;
    let elements = [
        Element::SnapshotStart,
        Element::Row {
            key: Arc::clone(&key),
            value: Some(Arc::clone(&object)),
        },
        Element::SnapshotEnd,
        Element::Upsert {
            key: Arc::clone(&key),
            value: Some(object),
            inserted: true,
            xid: 7,
            at,
        },
        Element::Delete {
            key: Arc::clone(&key),
            by: Some((8, at)),
        },
        Element::Message {
            payload: Arc::clone(&value),
            xid: 9,
            at,
        },
        Element::Notify {
            payload: text.to_string(),
        },
        Element::Reset,
    ];
    let mut array = sse::Array::new(&text);
    for element in &elements {
        array.push(element);
    }
    let token = Token {
        epoch: Name::of(["e"]),
        view: Name::of([&*text]),
        cursor: Cursor::new(9, [4]),
    }
    .to_string();
    let mut stream = sse::COMMENT.to_owned();
    stream.push_str(&sse::head(Some(1000), "data", &token));
    stream.push_str(std::str::from_utf8(&array.finish()).expect("UTF-8"));
    stream.push_str(
        std::str::from_utf8(&sse::control(None, &token, &format!("{{\"v\":{value}}}")))
            .expect("UTF-8"),
    );
    let events = parsed(&stream);
    assert_eq!(events.len(), 2, "{stream}");
    assert_eq!(
        (events[0].0.as_str(), events[0].1.as_str()),
        ("data", token.as_str())
    );
    assert_eq!(events[1].0, "control");
    let told: Vec<serde_json::Value> = serde_json::from_str(&events[0].2).expect("an array");
    assert_eq!(told.len(), elements.len());
    let wanted: serde_json::Value = serde_json::from_str(&value).expect("JSON");
    assert_eq!(told[1]["value"]["v"], wanted);
    assert_eq!(told[3]["key"], &*text);
    assert_eq!(told[4]["key"], &*text);
    assert_eq!(told[5]["value"], wanted);
    let control: serde_json::Value = serde_json::from_str(&events[1].2).expect("a control");
    assert_eq!(control["v"], wanted);
}

/// An image is taken apart as any reader of JSON would, or it is none.
pub fn image(data: &[u8]) {
    let text = text(data);
    let Ok(image) = Image::parse(&text) else {
        return;
    };
    let object: Object = serde_json::from_str(&text).expect("an image is an object");
    for name in object.keys() {
        let raw = image.get(name).expect("it has each of its members");
        let _json: &RawValue = serde_json::from_str(raw).expect("each is JSON");
    }
    let keys: Vec<String> = object.keys().take(3).cloned().collect();
    let _key = image.key(&keys);
    let names = keys.iter().map(|key| (key.as_str(), key.as_str()));
    if let Some(projected) = image.project(names) {
        let _json: Object = serde_json::from_str(&projected).expect("a part of it is an object");
    }
}

/// An API that has nothing to do with a database.
#[derive(Debug)]
struct Echo;

fn answer(text: impl Into<Bytes>) -> Response {
    Response::new(body::full(text))
}

impl Api for Echo {
    async fn root(&self, _: &Parts) -> Response {
        answer("root")
    }

    async fn batch(&self, _: &Parts, body: Bytes) -> Response {
        answer(body)
    }

    async fn watch(&self, _: &Parts, table: &str) -> Response {
        answer(table.to_owned())
    }

    async fn rows(&self, _: &Parts, table: &str, body: Bytes) -> Response {
        answer(format!("{table} {}", body.len()))
    }

    async fn call(&self, _: &Parts, function: &str, body: Bytes) -> Response {
        answer(format!("{function} {}", body.len()))
    }

    async fn subscribe(&self, _: &Parts, channel: &str) -> Response {
        answer(channel.to_owned())
    }

    async fn publish(&self, _: &Parts, _: &str, body: Bytes) -> Response {
        answer(body)
    }

    async fn tickets(&self, _: &Parts, body: Bytes) -> Response {
        answer(body)
    }

    async fn sign_in(&self, _: &Parts, _: Bytes) -> Option<Response> {
        None
    }
}

/// The whole server, without anything behind it.
static SERVER: LazyLock<SocketAddr> = LazyLock::new(|| {
    RUNTIME.block_on(async {
        let unlimited = admission::Limits {
            total: 0,
            per_user: 0,
            per_address: 0,
        };
        let router = Router {
            api: Echo,
            assets: Assets::new(true),
            origins: Origins::new(&[] as &[&str]).expect("none are allowed"),
            body_limit: 4096,
            bodies: Budget::new(1 << 20),
            answers: Budget::new(1 << 20),
            admission: Admission::new(unlimited, watch::channel(Pressure::Low).1),
            health: Arc::new(Health::new()),
            metrics: Arc::new(Metrics::new()),
        };
        let limits = Limits {
            head: Duration::from_secs(2),
            ..Limits::default()
        };
        let listener = listen("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = Server::new(
            vec![listener],
            Shutdown::new(),
            limits,
            Arc::new(|incident| {
                use rowcast::http::server::Incident;
                assert!(incident != Incident::Panicked, "an exchange has panicked");
            }),
            router.into_handler(),
        );
        tokio::spawn(server.run());
        address
    })
});

/// How long an answer may take before the client hangs up: a server may leave a request unanswered whose
/// client has hung up already.
const PATIENT: Duration = Duration::from_secs(5);
const IMPATIENT: Duration = Duration::from_millis(10);

/// Sends the bytes, waits so long for an answer, hangs up, and gives what came until the server closed.
fn exchanged(bytes: &[u8], patience: Duration) -> Vec<u8> {
    // It is started outside of the runtime that waits here.
    let address = *SERVER;
    RUNTIME.block_on(async {
        let exchange = exchange(address, bytes, patience);
        tokio::time::timeout(Duration::from_secs(10), exchange)
            .await
            .expect("the server ends what its client has ended")
    })
}

async fn exchange(address: SocketAddr, bytes: &[u8], patience: Duration) -> Vec<u8> {
    let mut socket = TcpStream::connect(address)
        .await
        .expect("the server accepts");
    // It may close on us at any byte, with good reason.
    let _sent = socket.write_all(bytes).await;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    let first = tokio::time::timeout(patience, socket.read(&mut chunk)).await;
    match first {
        Ok(Ok(count @ 1..)) => answer.extend_from_slice(&chunk[..count]),
        Ok(_closed) => return answer,
        Err(_late) => {}
    }
    let _ended = socket.shutdown().await;
    while let Ok(count @ 1..) = socket.read(&mut chunk).await {
        answer.extend_from_slice(&chunk[..count]);
    }
    answer
}

fn still_serves() {
    let answer = exchanged(
        b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        PATIENT,
    );
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", text(&answer));
}

/// Any bytes into the server: it answers in HTTP or closes, and serves the next one.
pub fn http1(data: &[u8]) {
    let answer = exchanged(data, IMPATIENT);
    let preface = data.starts_with(b"PRI * HTTP/2.0");
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.") || preface,
        "{}",
        text(&answer)
    );
    still_serves();
    let path = text(data);
    let _route = Route::of(path.split(' ').nth(1).unwrap_or(&path));
}

/// The same as frames of HTTP/2, after the preface and settings that every client sends.
pub fn http2(data: &[u8]) {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    bytes.extend_from_slice(data);
    let answer = exchanged(&bytes, IMPATIENT);
    // Frames: three bytes of length, and as many bytes as they say.
    let mut rest = &answer[..];
    while rest.len() >= 9 {
        let length = usize::from(rest[0]) << 16 | usize::from(rest[1]) << 8 | usize::from(rest[2]);
        assert!(length <= 16_384, "{rest:?}");
        rest = rest.get(9 + length..).unwrap_or_default();
    }
    still_serves();
}

const CANARY: &str = "canary-0b7e1f";

/// Settings that are read from text: an address reads back as it was written, and shows no password.
pub fn config(data: &[u8]) {
    let text = text(data);
    if let Ok(conninfo) = Conninfo::parse(&text) {
        let written = conninfo.to_key_values();
        let again = Conninfo::parse(&written).expect("what was written is read");
        assert_eq!(again.to_key_values(), written);
    }
    for address in [
        format!("postgres://u:{CANARY}@{text}"),
        format!("host=h password={CANARY} {text}"),
    ] {
        let told = match Target::from_url(&address) {
            Ok(target) => format!("{target} {target:?} {}", target.psql_line()),
            Err(error) => format!("{error} {error:?}"),
        };
        assert!(!told.contains(CANARY), "{address}: {told}");
    }
    let _either = Origins::new(&[&*text]);
}
