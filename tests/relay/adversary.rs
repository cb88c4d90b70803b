//! One relay, and everything that somebody may try: a line a scenario. After all of it a screen that
//! was open the whole time is exact, nobody has panicked, and the relay is as small as before.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt, join_all};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Database, Relay, Screen, Stream, database, eventually};
use crate::wire::{Wire, count, descriptors, resident};

/// What must come of bytes that were sent on a connection of their own.
enum Want {
    /// An answer with one of these statuses.
    Status(&'static [u16]),
    /// An answer that is no success, or the end of the connection.
    No,
    /// Anything, as long as it comes to an end or an answer.
    Any,
}

use Want::{Any, No, Status};

/// Bytes as they are, and what must come of them.
#[rustfmt::skip]
#[allow(clippy::too_many_lines, reason = "a table, a line a scenario")]
fn heads() -> Vec<(&'static str, Vec<u8>, Want)> {
    let get = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\n{more}\r\n");
    let post = |more: &str, body: &str| {
        format!(
            "POST /rest/v1/tasks HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{more}\r\n{body}"
        )
    };
    let sized = |body: &str| post(&format!("content-length: {}\r\n", body.len()), body);
    let x = |count: usize| "x".repeat(count);
    let text: Vec<(&'static str, String, Want)> = vec![
        ("blank lines", "\r\n\r\n\r\nGET\r\n\r\n".into(), No),
        ("no version", "GET /livez\r\n\r\n".into(), No),
        ("version 3", "GET /livez HTTP/3.0\r\nhost: x\r\n\r\n".into(), No),
        ("version 1.0 without a host", "GET /livez HTTP/1.0\r\n\r\n".into(), Status(&[200])),
        ("a method in small letters", "get /livez HTTP/1.1\r\nhost: x\r\n\r\n".into(), Status(&[400, 405])),
        ("a long method", format!("{} / HTTP/1.1\r\nhost: x\r\n\r\n", x(2000)), No),
        ("a URL of 9 KiB", get(&format!("/{}", x(9000)), ""), Status(&[414])),
        ("a URL of 40 KiB", get(&format!("/{}", x(40_000)), ""), Status(&[414, 431, 400])),
        ("a header of 40 KiB", get("/livez", &format!("a: {}\r\n", x(40_000))), Status(&[431, 400])),
        ("200 headers", get("/livez", &"a: 1\r\n".repeat(200)), Status(&[431, 400])),
        ("a blank in a header's name", get("/livez", "a b: 1\r\n"), No),
        ("a folded header", get("/livez", "a: 1\r\n  2\r\n"), No),
        ("a zero byte in a header", get("/livez", "a: \0\r\n"), No),
        ("a bare carriage return", get("/livez", "a: 1\rb: 2\r\n"), No),
        ("bare line feeds", "GET /livez HTTP/1.1\nhost: x\n\n".into(), Any),
        ("two hosts", get("/livez", "host: y\r\n"), Status(&[400])),
        ("no host", "GET /livez HTTP/1.1\r\n\r\n".into(), Status(&[400])),
        ("a host that is a path", "GET /livez HTTP/1.1\r\nhost: /../x\r\n\r\n".into(), Any),
        ("another server's URL", "GET http://evil.example/rest/v1/tasks HTTP/1.1\r\nhost: x\r\n\r\n".into(), Any),
        ("a tunnel", "CONNECT evil.example:443 HTTP/1.1\r\nhost: evil.example:443\r\n\r\n".into(), No),
        ("a trace", "TRACE /livez HTTP/1.1\r\nhost: x\r\n\r\n".into(), Status(&[405])),
        ("options of everything", "OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n".into(), Any),
        ("two lengths", post("content-length: 2\r\ncontent-length: 3\r\n", "{}x"), No),
        ("a negative length", post("content-length: -1\r\n", ""), No),
        ("a length with a plus", post("content-length: +2\r\n", "{}"), No),
        ("a length beyond all numbers", post("content-length: 99999999999999999999999\r\n", ""), No),
        ("a length of a gigabyte", post("content-length: 1073741824\r\n", "{"), Status(&[413])),
        ("a gigabyte that asks first", post("content-length: 1073741824\r\nexpect: 100-continue\r\n", ""), Status(&[413])),
        ("a length and chunks", post("content-length: 2\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"), Any),
        ("an unknown encoding", post("transfer-encoding: xchunked\r\n", "{}"), No),
        ("chunked twice", post("transfer-encoding: chunked, chunked\r\n", "0\r\n\r\n"), Any),
        ("a chunk beyond all numbers", post("transfer-encoding: chunked\r\n", "fffffffffffffffff\r\nx"), No),
        ("a chunk's size that is no number", post("transfer-encoding: chunked\r\n", "0x2\r\n{}\r\n0\r\n\r\n"), No),
        ("a chunk with a long extension", post("transfer-encoding: chunked\r\n", &format!("2;{}\r\n{{}}\r\n0\r\n\r\n", x(40_000))), No),
        ("trailers without an end", post("transfer-encoding: chunked\r\n", &format!("0\r\n{}", format!("a: {}\r\n", x(100)).repeat(1000))), Any),
        ("two mebibytes in chunks", post("transfer-encoding: chunked\r\n", &format!("200000\r\n{}\r\n0\r\n\r\n", x(2 << 20))), Status(&[413])),
        ("an upgrade to web sockets", get("/livez", "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n"), Status(&[200])),
        ("an upgrade to HTTP/2", get("/livez", "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAAA\r\n"), Status(&[200])),
        ("ranges without sense", get("/rest/v1/tasks", "range: 9-1,-,5\r\n"), Any),
        ("an Accept of 8 KiB", get("/rest/v1/tasks", &format!("accept: {}\r\n", "a/b;q=0.1,".repeat(800))), Status(&[406, 200])),
        ("a cookie of 16 KiB", get("/rest/v1/tasks", &format!("cookie: a={}\r\n", x(16_000))), Status(&[200])),
        ("an unknown profile", get("/rest/v1/tasks", "accept-profile: pg_catalog\r\n"), Status(&[406])),
        ("a foreign origin that writes", sized("{\"id\":900}").replace("host: x", "host: x\r\norigin: https://evil.example"), Status(&[403])),
        ("a foreign origin that watches", get("/rest/v1/tasks", "origin: https://evil.example\r\naccept: text/event-stream\r\n"), Status(&[403])),
        ("a token without a key", get("/rest/v1/tasks", "authorization: Bearer eyJhbGciOiJub25lIn0.e30.\r\n"), Status(&[401, 500])),
        ("a token of 20 KiB", get("/rest/v1/tasks", &format!("authorization: Bearer {}\r\n", x(20_000))), No),
        ("a password", get("/rest/v1/tasks", "authorization: Basic eDp5\r\n"), Any),
        ("two tokens", get("/rest/v1/tasks", "authorization: Bearer a\r\nauthorization: Bearer b\r\n"), No),
        ("a ticket that was never given", get("/rest/v1/tasks?ticket=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", ""), Status(&[401])),
        ("a filter of parentheses", get(&format!("/rest/v1/tasks?or={}", "(".repeat(4000)), ""), Status(&[400])),
        ("a filter 2,000 deep", get(&format!("/rest/v1/tasks?and={}id.eq.1{}", "(or".repeat(1000), ")".repeat(1000)), ""), Status(&[400])),
        ("a list of 2,000 values", get(&format!("/rest/v1/tasks?id=in.({})", vec!["1"; 2000].join(",")), ""), Status(&[200])),
        ("SQL in a value", get("/rest/v1/tasks?id=eq.1%3Bdrop%20table%20tasks", ""), Status(&[400])),
        ("SQL in a column", get("/rest/v1/tasks?id%22%29%3Bdrop%20table%20tasks--=eq.1", ""), Status(&[400])),
        ("SQL in an order", get("/rest/v1/tasks?order=id%3Bdrop%20table%20tasks", ""), Status(&[400])),
        ("SQL in a selection", get("/rest/v1/tasks?select=id,pg_sleep(9)", ""), Status(&[400])),
        ("a zero byte in a value", get("/rest/v1/tasks?body=eq.%00", ""), Status(&[400])),
        ("no UTF-8 in a value", get("/rest/v1/tasks?body=eq.%ff%fe", ""), Any),
        ("half a percent sign", get("/rest/v1/tasks?body=eq.%4", ""), Any),
        ("an endless limit", get("/rest/v1/tasks?limit=999999999999999999999", ""), Any),
        ("no JSON", sized("{\"id\":"), Status(&[400])),
        ("JSON 100,000 deep", sized(&format!("{}{}", "[".repeat(100_000), "]".repeat(100_000))), Status(&[400])),
        ("an object 100,000 deep", sized(&format!("{{\"body\":{}1{}}}", "{\"a\":".repeat(90_000), "}".repeat(90_000))), Status(&[400, 500])),
        ("a surrogate alone", sized("{\"id\":901,\"body\":\"\\ud800\"}"), Status(&[400])),
        ("a zero in a text", sized("{\"id\":902,\"body\":\"\\u0000\"}"), Status(&[400])),
        ("a number of 1,000 digits", sized(&format!("{{\"id\":{}}}", "9".repeat(1000))), Status(&[400])),
        ("the same key twice", sized("{\"id\":903,\"id\":904,\"nothing\":1}"), Status(&[400])),
        ("50,000 empty objects", sized(&format!("[{}]", vec!["{}"; 50_000].join(","))), Status(&[400])),
        ("a body that says it is compressed", post("content-encoding: gzip\r\ncontent-length: 2\r\n", "{}"), No),
        ("a batch of 1,000", batch(1000), Status(&[400])),
        ("a batch that calls itself", batch_of("[{\"method\":\"POST\",\"path\":\"\",\"body\":[]}]"), Status(&[400, 404])),
        ("a preference of 8 KiB", get("/rest/v1/tasks", &format!("prefer: {}\r\n", "a=b,".repeat(2000))), Status(&[200])),
        ("a time zone that is SQL", get("/rest/v1/tasks", "prefer: timezone=x'; drop table tasks; --\r\n"), Any),
        ("an idempotency key of 8 KiB", sized("{\"id\":905}").replace("host: x", &format!("host: x\r\nidempotency-key: {}", x(8000))), Status(&[400])),
        ("a version that is none", sized("{\"id\":906}").replace("POST", "PATCH").replace("host: x", "host: x\r\nif-match: x\"y"), Status(&[400])),
        ("a request id with a line break", get("/livez", "x-request-id: a%0d%0aset-cookie: b\r\n"), Status(&[200])),
        ("a host of a header bomb", get("/livez", &"x: y\r\n".repeat(99)), Any),
    ];
    let mut all: Vec<(&'static str, Vec<u8>, Want)> = text
        .into_iter()
        .map(|(name, text, want)| (name, text.into_bytes(), want))
        .collect();
    all.push((
        "a hello of TLS",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(30),
        No,
    ));
    all.push(("random bytes", random_bytes(), No));
    all.push((
        "no UTF-8 in a URL",
        b"GET /rest/v1/\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        No,
    ));
    all.push(("no UTF-8 in a body", b"POST /rest/v1/tasks HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 15\r\n\r\n{\"body\":\"\xff\xfe\"}  ".to_vec(), Status(&[400])));
    all
}

fn random_bytes() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(1);
    std::iter::repeat_with(|| random.u8(..))
        .take(4096)
        .collect()
}

fn batch_of(body: &str) -> String {
    format!(
        "POST /rest/v1/ HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn batch(operations: usize) -> String {
    let one = "{\"method\":\"GET\",\"path\":\"tasks\"}";
    batch_of(&format!("[{}]", vec![one; operations].join(",")))
}

/// One frame of HTTP/2.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// The headers of a GET, as HPACK.
fn fields(path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
    block.extend_from_slice(path.as_bytes());
    block.extend_from_slice(b"\x01\x01x");
    block
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RESET: u8 = 3;
pub const SETTINGS: u8 = 4;
const PUSH: u8 = 5;
pub const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW: u8 = 8;
const CONTINUATION: u8 = 9;

/// A request of HTTP/2 with its end.
pub fn asks(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, 5, stream, &fields(path))
}

/// What is sent after the preface of HTTP/2.
#[rustfmt::skip]
fn frames() -> Vec<(&'static str, Vec<u8>)> {
    let each = |count: u32, made: &dyn Fn(u32) -> Vec<u8>| -> Vec<u8> {
        (0..count).flat_map(|n| made(2 * n + 1)).collect()
    };
    let live = "/livez";
    // A table entry of 4,000 bytes, and then a thousand times "the same again".
    let mut bomb = fields(live);
    bomb.extend_from_slice(&[0x40, 1, b'a', 0x7f, 0xa1, 0x1e]);
    bomb.extend(std::iter::repeat_n(b'b', 4000));
    bomb.extend(std::iter::repeat_n(0xbe, 8000));
    vec![
        ("h2: rapid reset", each(5000, &|id| { [asks(id, "/rest/v1/tasks"), frame(RESET, 0, id, &[0, 0, 0, 8])] .concat()})),
        ("h2: made you reset", each(3000, &|id| { [asks(id, "/rest/v1/tasks"), frame(WINDOW, 0, id, &[0; 4])].concat()})),
        ("h2: settings flood", frame(SETTINGS, 0, 0, &[]).repeat(20_000)),
        ("h2: ping flood", frame(PING, 0, 0, &[7; 8]).repeat(20_000)),
        ("h2: priority flood", each(5000, &|id| frame(PRIORITY, 0, id, &[0, 0, 0, 0, 1]))),
        ("h2: continuation flood", [frame(HEADERS, 1, 1, &fields(live)), frame(CONTINUATION, 0, 1, &[0x40, 1, b'a', 1, b'b']).repeat(20_000)] .concat()),
        ("h2: empty continuations", [frame(HEADERS, 1, 1, &fields(live)), frame(CONTINUATION, 0, 1, &[]).repeat(20_000)] .concat()),
        ("h2: empty data frames", [frame(HEADERS, 4, 1, &[0x83, 0x86, 0x84]), frame(DATA, 0, 1, &[]).repeat(20_000)] .concat()),
        ("h2: a header bomb", frame(HEADERS, 5, 1, &bomb)),
        ("h2: a thousand streams", each(1000, &|id| asks(id, "/rest/v1/tasks"))),
        ("h2: windows of zero", [frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]), each(100, &|id| asks(id, "/rest/v1/large"))] .concat()),
        ("h2: a window beyond all numbers", [frame(WINDOW, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), frame(WINDOW, 0, 0, &[0x7f, 0xff, 0xff, 0xff])] .concat()),
        ("h2: headers that are none", frame(HEADERS, 5, 1, &[0xff; 64])),
        ("h2: a string without its end", frame(HEADERS, 5, 1, &[0x82, 0x04, 0x7f, 0xff, 0xff, 0xff])),
        ("h2: large names", frame(HEADERS, 5, 1, b"\x82\x86\x84\x40\x01A\x01b")),
        ("h2: no path", frame(HEADERS, 5, 1, &[0x82, 0x86])),
        ("h2: two paths", frame(HEADERS, 5, 1, &[0x82, 0x86, 0x84, 0x84])),
        ("h2: connection headers", frame(HEADERS, 5, 1, b"\x82\x86\x84\x40\x0aconnection\x05close")),
        ("h2: an even stream", asks(2, live)),
        ("h2: a stream that goes back", [asks(9, live), asks(3, live)].concat()),
        ("h2: data before headers", frame(DATA, 1, 1, b"{}")),
        ("h2: data on the connection", frame(DATA, 1, 0, b"{}")),
        ("h2: a promise of a client", frame(PUSH, 4, 1, &[0, 0, 0, 2, 0x82])),
        ("h2: a stream that needs itself", frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 9])),
        ("h2: a frame of 1 MiB", frame(DATA, 0, 1, &vec![0; 1 << 20])),
        ("h2: settings of odd length", frame(SETTINGS, 0, 0, &[0, 4, 0])),
        ("h2: a frame size of zero", frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 0])),
        ("h2: a reset of nothing", frame(RESET, 0, 77, &[0, 0, 0, 8])),
        ("h2: an unknown frame", [frame(0xbe, 0xff, 1, &[1; 200]), asks(1, live)].concat()),
        ("h2: goodbye and on", [frame(GOAWAY, 0, 0, &[0; 8]), asks(1, live), asks(3, live)].concat()),
        ("h2: padding beyond the frame", frame(HEADERS, 13, 1, &[255, 0x82, 0x86, 0x84])),
    ]
}

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Who tries.
struct World {
    relay: Relay,
    database: Database,
    /// What came otherwise than it must.
    wrong: Mutex<Vec<String>>,
}

impl World {
    /// Sends the bytes, and looks what comes.
    async fn throws(&self, name: &str, bytes: &[u8], want: &Want) {
        let wire = Wire::open(&self.relay).await;
        // Both at once: the answer may come before everything was taken.
        let (mut read, mut write) = wire.socket.into_split();
        let mut came = Vec::new();
        let writing = async {
            let _refused = write.write_all(bytes).await;
            std::future::pending::<()>().await;
        };
        let status = |came: &[u8]| {
            let text = String::from_utf8_lossy(came);
            let text = text.trim_start_matches("HTTP/1.1 100 Continue\r\n\r\n");
            let whole = text.contains("\r\n\r\n").then_some(text)?;
            whole.get(9..12)?.parse::<u16>().ok()
        };
        let reading = async {
            let mut some = vec![0; 64 << 10];
            while let Ok(count @ 1..) = read.read(&mut some).await {
                came.extend_from_slice(&some[..count]);
                if status(&came).is_some() {
                    return;
                }
            }
        };
        let patience = match want {
            Any => Duration::from_secs(2),
            // A head has 10 s, and the machine may be slow.
            No | Status(_) => Duration::from_secs(25),
        };
        let either = async {
            tokio::select! {
                () = reading => {}
                () = writing => {}
            }
        };
        let ended = tokio::time::timeout(patience, either).await;
        let status = status(&came);
        let came = String::from_utf8_lossy(&came);
        let fits = match want {
            Status(wanted) => status.is_some_and(|status| wanted.contains(&status)),
            No => ended.is_ok() && status.is_none_or(|status| status >= 400),
            Any => true,
        };
        // What a mistake of ours is called.
        if !fits || came.contains("RCH06") {
            let wrong = format!("{name}: {status:?} {ended:?} {came:.300}");
            self.wrong.lock().unwrap().push(wrong);
        }
    }

    /// Sends frames of HTTP/2, and goes.
    async fn frames(&self, name: &str, bytes: &[u8]) {
        let wire = Wire::open(&self.relay).await;
        let (mut read, mut write) = wire.socket.into_split();
        let reading = tokio::spawn(async move {
            let mut some = vec![0; 64 << 10];
            while let Ok(1..) = read.read(&mut some).await {}
        });
        let writing = async {
            let _ended = write.write_all(PREFACE).await;
            let _ended = write.write_all(&frame(SETTINGS, 0, 0, &[])).await;
            let _ended = write.write_all(bytes).await;
        };
        let written = tokio::time::timeout(Duration::from_secs(20), writing).await;
        assert!(written.is_ok(), "{name}: neither taken nor refused");
        // Long enough for what was sent to be answered or refused.
        let answer = self.relay.get("/livez").await;
        assert_eq!(answer.status, 200, "{name}");
        drop(write);
        reading.abort();
    }
}

type Story = fn(&World) -> BoxFuture<'_, ()>;

/// What bytes alone do not tell.
const STORIES: &[(&str, Story)] = &[
    ("200 spellings of paths", |world| paths(world).boxed()),
    ("foreign, ancient and damaged ids", |world| {
        ids(world).boxed()
    }),
    ("fifty requests at once on one connection", |world| {
        pipelined(world).boxed()
    }),
    ("streams that are dropped at once", |world| {
        dropped(world, 0).boxed()
    }),
    ("streams that are dropped after a byte", |world| {
        dropped(world, 1).boxed()
    }),
    ("streams that end with a reset", |world| {
        broken(world).boxed()
    }),
    ("a stream whose client has stopped writing", |world| {
        half_closed(world).boxed()
    }),
    ("a mebibyte after the request of a stream", |world| {
        chatty(world).boxed()
    }),
    ("a client that reads byte by byte", |world| {
        byte_by_byte(world).boxed()
    }),
    ("connections that say nothing", |world| {
        silent(world).boxed()
    }),
    ("bells rung by anybody", |world| bells(world).boxed()),
    ("notes on channels of strange names", |world| {
        notes(world).boxed()
    }),
    ("a table that is locked while it is watched", |world| {
        locked(world).boxed()
    }),
    ("writers that roll back", |world| rolled_back(world).boxed()),
    ("locks of everybody's", |world| advisory(world).boxed()),
];

/// Spellings of paths that must lead nowhere, and to no mistake of ours.
async fn paths(world: &World) {
    let bases = [
        "/rest/v1/tasks",
        "/rest/v1/rpc/x",
        "/channels/lobby",
        "/metrics",
        "/readyz",
        "/",
    ];
    let twists: [fn(&str) -> String; 34] = [
        |p| format!("/{p}"),
        |p| format!("{p}/"),
        |p| format!("{p}//"),
        |p| format!("{p}/."),
        |p| format!("{p}/.."),
        |p| format!("{p}/../tasks"),
        |p| format!("{p}%2f"),
        |p| format!("{p}%2e%2e"),
        |p| format!("{p}%00"),
        |p| format!("{p}%0a"),
        |p| format!("{p}%0d%0aset-cookie:a=b"),
        |p| format!("{p};x=y"),
        |p| format!("{p}\\"),
        |p| format!("{p}%5c"),
        |p| format!("{p}%"),
        |p| format!("{p}%f"),
        |p| format!("{p}%zz"),
        |p| format!("{p}%ff"),
        |p| format!("{p}%c0%af"),
        |p| format!("{p}%e2%80%ae"),
        |p| format!("{p}%u002f"),
        |p| format!("{p}."),
        |p| format!("{p}%20"),
        |p| format!("{p}.json"),
        |p| format!("{p}~"),
        |p| p.to_uppercase(),
        |p| p.replace('/', "//"),
        |p| p.replace('/', "/./"),
        |p| p.replace('/', "%2F"),
        |p| p.replace('t', "%74"),
        |p| p.replace('e', "%65"),
        |p| p.replace("v1", "v1/../v1"),
        |p| p.replace("/rest", "/rest/../rest"),
        |p| format!("/static/..{p}"),
    ];
    let mut spellings = 0;
    for base in bases {
        for twist in &twists {
            let path = twist(base);
            let mut wire = Wire::open(&world.relay).await;
            wire.send(format!(
                "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            ))
            .await;
            // A channel that is not allowed says so in a stream.
            wire.sees("\r\n\r\n").await;
            let text = wire.text();
            let status: u16 = text
                .get(9..12)
                .and_then(|status| status.parse().ok())
                .unwrap_or(0);
            // The same name spelled otherwise is the same name: in one segment, once decoded.
            let same = path == base || path.replace("%74", "t").replace("%65", "e") == base;
            let channel = base.starts_with("/channels") && text.contains("event-stream");
            if !same && !channel && !(400..500).contains(&status) {
                let wrong = format!("{path}: {status} {text:.200}");
                world.wrong.lock().unwrap().push(wrong);
            }
            assert!(!text.contains("set-cookie"), "{path}");
            spellings += 1;
        }
    }
    assert!(spellings >= 200, "{spellings}");
}

/// No id makes a stream fail: it begins anew.
async fn ids(world: &World) {
    let mut live = world.relay.stream("/rest/v1/tasks").await;
    let good = live
        .until(|event| event.data.contains("snapshot-end"))
        .await
        .id;
    let parts: Vec<&str> = good.split('.').collect();
    let mut ids: Vec<String> = vec![
        "0".into(),
        "-1".into(),
        "null".into(),
        "a.b.c".into(),
        "....".into(),
        "9".repeat(4000),
        "A".repeat(8000),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{}.{}.{}", parts[1], parts[0], parts[2]),
        format!("{}.{}.zzzzzzzzzzzzz", parts[0], parts[1]),
        format!("{good}.{good}"),
        good.to_uppercase(),
        format!("{good}-"),
        "%00".into(),
        "' or 1=1 --".into(),
    ];
    let mut random = fastrand::Rng::with_seed(4);
    for _ in 0..120 {
        let mut bytes = good.clone().into_bytes();
        let at = random.usize(..bytes.len());
        match random.u8(..3) {
            0 => bytes[at] = random.u8(0x21..0x7f),
            1 => bytes.truncate(at),
            _ => bytes.insert(at, random.u8(b'0'..b'z')),
        }
        ids.push(String::from_utf8(bytes).unwrap());
    }
    let each = ids.chunks(15).map(|ids| async move {
        for id in ids {
            let mut stream = world.relay.resume("/rest/v1/tasks", id).await;
            assert_eq!(stream.status, 200, "{id}");
            let first = stream
                .next()
                .await
                .unwrap_or_else(|| panic!("{id}: an event"));
            // A screen that is given a state was told to forget what it has.
            let anew = first.has_control("reset");
            assert!(
                anew || first.name == "control" || id.is_empty() || first.id != "0",
                "{id}: {first:?}"
            );
        }
    });
    join_all(each).await;
}

async fn pipelined(world: &World) {
    let mut wire = Wire::open(&world.relay).await;
    let one = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
    wire.send(one.repeat(50)).await;
    wire.send("GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await;
    assert_eq!(wire.rest().await.matches("HTTP/1.1 200").count(), 51);
}

async fn dropped(world: &World, bytes: usize) {
    let each = (0..100).map(|_| async {
        let mut wire = Wire::open(&world.relay).await;
        wire.watch("/rest/v1/tasks").await;
        if bytes > 0 {
            wire.sees("HTTP").await;
        }
    });
    join_all(each).await;
}

async fn broken(world: &World) {
    let each = (0..100).map(|_| async {
        let mut wire = Wire::open(&world.relay).await;
        wire.watch("/rest/v1/tasks").await;
        wire.sees("snapshot-end").await;
        SockRef::from(&wire.socket)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    });
    join_all(each).await;
}

async fn half_closed(world: &World) {
    let mut wires = Vec::new();
    for _ in 0..50 {
        let mut wire = Wire::open(&world.relay).await;
        wire.watch("/rest/v1/tasks").await;
        wire.socket.shutdown().await.unwrap();
        wires.push(wire);
    }
    for wire in &mut wires {
        // Served or ended, but not forgotten.
        let _either = wire.sees("\"upToDate\":true").await;
    }
}

async fn chatty(world: &World) {
    let mut wire = Wire::open(&world.relay).await;
    wire.watch("/rest/v1/tasks").await;
    wire.sees("snapshot-end").await;
    let bytes = vec![b'x'; 1 << 20];
    let _not_taken = tokio::time::timeout(Duration::from_millis(500), wire.send(&bytes)).await;
}

async fn byte_by_byte(world: &World) {
    let mut wire = Wire::narrow(&world.relay).await;
    wire.watch("/rest/v1/large").await;
    let mut one = [0; 1];
    for _ in 0..2000 {
        wire.socket.read_exact(&mut one).await.unwrap();
    }
}

async fn silent(world: &World) {
    let mut wires: Vec<Wire> = Vec::new();
    for n in 0..100 {
        let mut wire = Wire::open(&world.relay).await;
        if n % 2 == 0 {
            wire.send("GET /livez HTTP/1.1\r\nhost:").await;
        }
        wires.push(wire);
    }
    let begun = Instant::now();
    for wire in &mut wires {
        assert!(
            wire.ends_within(Duration::from_secs(20)).await,
            "a head has 10 s"
        );
    }
    assert!(begun.elapsed() < Duration::from_secs(20));
}

async fn bells(world: &World) {
    let client = world.database.client().await;
    let channels: Vec<String> = world
        .database
        .one("select string_agg(distinct quote_ident(c), ' ') from (select 'rowcast' c union select 'rowcast_log' union select 'rowcast.log') x")
        .await
        .split(' ')
        .map(str::to_owned)
        .collect();
    for channel in &channels {
        for payload in ["", "{}", "x", "'; drop table tasks; --", "\u{2028}"] {
            let payload = payload.replace('\'', "''");
            client
                .batch_execute(&format!("notify {channel}, '{payload}'"))
                .await
                .unwrap();
        }
        client
            .batch_execute(&format!("do $$ begin for i in 1..2000 loop perform pg_notify('{}', i::text); end loop; end $$", channel.trim_matches('"')))
            .await
            .unwrap();
    }
}

async fn notes(world: &World) {
    for (name, status) in [
        ("a%20b", 200),
        ("%22", 200),
        (&*"x".repeat(63), 200),
        (&*"x".repeat(64), 200),
        ("%F0%9F%90%98", 200),
        ("..", 404),
        ("a%2Fb", 404),
    ] {
        let stream = Stream::open(&format!("{}/channels/{name}", world.relay.url), None).await;
        assert_eq!(stream.status, status, "{name}");
    }
    let client = world.database.client().await;
    client
        .batch_execute("notify \"x'y\", 'z'; notify lobby, 'data: x\n\nevent: control\ndata: {}'")
        .await
        .unwrap();
}

async fn locked(world: &World) {
    let client = world.database.client().await;
    client
        .batch_execute("begin; lock table tasks in access exclusive mode")
        .await
        .unwrap();
    let opening = world.relay.stream("/rest/v1/tasks?id=gt.0").await;
    assert_eq!(opening.status, 200);
    client.batch_execute("rollback").await.unwrap();
}

async fn rolled_back(world: &World) {
    let client = world.database.client().await;
    for _ in 0..20 {
        client.batch_execute("begin; insert into tasks (id, body) select n, 'ghost' from generate_series(5000, 5100) n; rollback").await.unwrap();
    }
}

async fn advisory(world: &World) {
    let client = world.database.client().await;
    client
        .batch_execute("begin; select pg_advisory_xact_lock(n) from generate_series(1, 500) n")
        .await
        .unwrap();
    assert_eq!(
        world
            .relay
            .post("/rest/v1/tasks", "{\"id\":77,\"body\":\"under locks\"}")
            .await
            .status,
        201
    );
    client.batch_execute("rollback").await.unwrap();
}

async fn truth(database: &Database) -> BTreeMap<String, serde_json::Value> {
    let rows = database
        .one("select coalesce(json_object_agg(id, row_to_json(t)), '{}') from tasks t")
        .await;
    serde_json::from_str(&rows).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_everything_that_somebody_may_try_a_screen_is_exact() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create table tasks (id int primary key, body text); select rowcast.watch('tasks');
            insert into tasks select n, 'task ' || n from generate_series(1, 20) n;
            create table large (id int primary key, body text); select rowcast.watch('large');
            insert into large select n, repeat(md5(n::text), 100) from generate_series(1, 300) n;
            select rowcast.allow_channel('lobby')",
        )
        .await;
    let mut stream = relay.stream("/rest/v1/tasks").await;
    let mut screen = Screen::default();
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 20)
        .await;
    let (memory, files) = (resident(&relay), descriptors(&relay));
    let world = Arc::new(World {
        relay,
        database: database.clone(),
        wrong: Mutex::default(),
    });
    // A body has half a minute: it is dripped beside the rest.
    let mut drip = Wire::open(&world.relay).await;
    drip.send("POST /rest/v1/tasks HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 5000\r\n\r\n{").await;
    let dripping = tokio::spawn(async move {
        let begun = Instant::now();
        while !drip.ends_within(Duration::from_secs(1)).await {
            assert!(begun.elapsed() < Duration::from_secs(50), "a body has 30 s");
            drip.send(" ").await;
        }
        drip.text()
    });
    let mut scenarios = 1;
    let stories = STORIES.iter().map(|(name, story)| {
        let world = Arc::clone(&world);
        (name, tokio::spawn(async move { story(&world).await }))
    });
    let stories: Vec<_> = stories.collect();
    let heads = heads();
    for some in heads.chunks(12) {
        let each = some
            .iter()
            .map(|(name, bytes, want)| world.throws(name, bytes, want));
        join_all(each).await;
        scenarios += some.len();
    }
    for (name, bytes) in frames() {
        world.frames(name, &bytes).await;
        scenarios += 1;
    }
    for wrong in &*world.wrong.lock().unwrap() {
        eprintln!("{wrong}");
    }
    for (name, story) in stories {
        eprintln!("{name}");
        story
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        scenarios += 1;
    }
    let dripped = dripping.await.unwrap();
    assert!(dripped.starts_with("HTTP/1.1 408"), "{dripped}");
    let wrong = world.wrong.lock().unwrap().join("\n");
    assert!(wrong.is_empty(), "{wrong}");
    assert!(scenarios >= 70, "{scenarios} scenarios");

    let txid = database
        .commit("update tasks set body = 'after' where id = 1")
        .await;
    screen.reach(&mut stream, &txid).await;
    assert_eq!(screen.rows, truth(&database).await);
    let relay = &world.relay;
    assert_eq!(count(relay, "rowcast_panics_total").await, 0);
    eventually("connections and streams are gone", async || {
        (descriptors(relay) <= files + 12 && count(relay, "rowcast_subscribers").await <= 1)
            .then_some(())
    })
    .await;
    let grown = resident(relay).saturating_sub(memory) >> 20;
    assert!(grown <= 64, "the relay has grown by {grown} MiB");
}
