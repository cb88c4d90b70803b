//! The edge from outside: real sockets, real bytes, short limits.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::assets::Assets;
use super::cors::Origins;
use super::exchange::RequestId;
use super::route::{Api, Router, URI_LIMIT};
use super::server::{Drained, Incident, Limits, Peer, Server, listen};
use super::{BodyError, Response, body};
use crate::admission::{self, Admission, Scissors};
use crate::health::Health;
use crate::memory::Pressure;
use crate::metrics::Metrics;
use crate::share::Budget;
use crate::shutdown::Shutdown;

/// Long for a machine under load; only a failing test waits for it.
const SOON: Duration = Duration::from_secs(20);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(SOON, what).await.expect("it happens soon")
}

/// An API that says what it was asked.
#[derive(Clone)]
struct Echo {
    /// Told when `/rest/v1/slow` is being answered; it then waits for `go`.
    slow: Arc<Notify>,
    go: Arc<Notify>,
    shutdown: Shutdown,
    /// What was asked of the API, in order.
    asked: Arc<Mutex<Vec<String>>>,
    /// Those of the connection that was watched on last.
    scissors: Arc<Mutex<Scissors>>,
}

/// Of `/rest/v1/large`, two may be kept at once.
const LARGE: usize = 1 << 20;

fn text(text: impl Into<Bytes>) -> Response {
    Response::new(body::full(text))
}

/// An event stream of `event` again and again, until the stop signal.
fn events(event: Bytes, shutdown: Shutdown) -> Response {
    let frames = stream::repeat_with(move || Ok::<_, BodyError>(Frame::data(event.clone())))
        .take_until(async move { shutdown.begun().await });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream; charset=utf-8"),
    );
    response
}

impl Echo {
    fn note(&self, what: &str, parts: &Parts, name: &str) {
        assert!(parts.extensions.get::<Peer>().is_some());
        assert!(parts.extensions.get::<RequestId>().is_some());
        let line = format!("{what} {} {name}", parts.method);
        self.asked.lock().unwrap().push(line);
    }
}

impl Api for Echo {
    async fn root(&self, parts: &Parts) -> Response {
        self.note("root", parts, "");
        text("root")
    }

    async fn batch(&self, parts: &Parts, body: Bytes) -> Response {
        self.note("batch", parts, "");
        text(body)
    }

    async fn watch(&self, parts: &Parts, table: &str) -> Response {
        self.note("watch", parts, table);
        let scissors = parts.extensions.get::<Scissors>();
        self.scissors.lock().unwrap().clone_from(scissors.unwrap());
        match table {
            "flood" => events(b":\n".repeat(32 * 1024).into(), self.shutdown.clone()),
            "quiet" => {
                let shutdown = self.shutdown.clone();
                let first = stream::iter([Ok(Frame::data(Bytes::from_static(b":\n")))]);
                let last = stream::once(async move {
                    shutdown.begun().await;
                    Ok::<_, BodyError>(Frame::data(Bytes::from_static(b"retry: 1234\n\n")))
                });
                let mut response = Response::new(StreamBody::new(first.chain(last)).boxed_unsync());
                let kind = HeaderValue::from_static("text/event-stream");
                response.headers_mut().insert(CONTENT_TYPE, kind);
                response
            }
            "broken" => {
                let frames = stream::once(async { panic!("a body of a test panics") });
                let frames = frames.map(|()| Ok::<Frame<Bytes>, BodyError>(Frame::data("".into())));
                Response::new(StreamBody::new(frames).boxed_unsync())
            }
            _ => text("events"),
        }
    }

    async fn rows(&self, parts: &Parts, table: &str, body: Bytes) -> Response {
        self.note("rows", parts, table);
        match table {
            "slow" => {
                self.slow.notify_one();
                self.go.notified().await;
            }
            "broken" => panic!("a handler of a test panics"),
            "large" => return text(vec![b'x'; LARGE]),
            _ => {}
        }
        text(format!("{table} {}", body.len()))
    }

    async fn subscribe(&self, parts: &Parts, channel: &str) -> Response {
        self.note("subscribe", parts, channel);
        text("channel")
    }

    async fn call(&self, parts: &Parts, function: &str, body: Bytes) -> Response {
        self.note("call", parts, function);
        text(body)
    }

    async fn publish(&self, parts: &Parts, channel: &str, body: Bytes) -> Response {
        self.note("publish", parts, channel);
        text(body)
    }

    async fn tickets(&self, parts: &Parts, body: Bytes) -> Response {
        self.note("tickets", parts, "");
        text(body)
    }

    async fn sign_in(&self, _parts: &Parts, _body: Bytes) -> Option<Response> {
        None
    }
}

/// A running server.
struct Relay {
    pressure: watch::Sender<Pressure>,
    address: SocketAddr,
    api: Echo,
    metrics: Arc<Metrics>,
    incidents: Arc<Mutex<Vec<Incident>>>,
    running: JoinHandle<Drained>,
}

/// Short limits, and long ones where a test would rather wait than fail by chance.
fn limits() -> Limits {
    Limits {
        head: Duration::from_secs(5),
        idle: Duration::from_secs(5),
        stalled: Duration::from_millis(300),
        newcomer: SOON,
        ..Limits::default()
    }
}

fn start(limits: Limits, origins: &[&str]) -> Relay {
    let shutdown = Shutdown::new();
    let api = Echo {
        slow: Arc::new(Notify::new()),
        go: Arc::new(Notify::new()),
        shutdown: shutdown.clone(),
        asked: Arc::default(),
        scissors: Arc::default(),
    };
    let metrics = Arc::new(Metrics::new());
    let unlimited = admission::Limits {
        total: 0,
        per_user: 0,
        per_address: 0,
    };
    let router = Router {
        api: api.clone(),
        assets: Assets::new(true),
        origins: Origins::new(origins).unwrap(),
        body_limit: body::LIMIT,
        bodies: Budget::new(body::ALL),
        answers: Budget::new(2 * LARGE),
        admission: Admission::new(unlimited, watch::channel(Pressure::Low).1),
        health: Arc::new(Health::new()),
        metrics: Arc::clone(&metrics),
    };
    let incidents = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&incidents);
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let pressure = watch::Sender::new(Pressure::Low);
    let server = Server::new(
        vec![listener],
        shutdown,
        limits,
        Arc::new(move |incident| seen.lock().unwrap().push(incident)),
        router.into_handler(),
    )
    .under(pressure.subscribe());
    Relay {
        pressure,
        address,
        api,
        metrics,
        incidents,
        running: tokio::spawn(server.run()),
    }
}

impl Relay {
    async fn connect(&self) -> TcpStream {
        soon(TcpStream::connect(self.address)).await.unwrap()
    }

    /// Sends `request` on a connection of its own and reads until the server closes it.
    async fn exchange(&self, request: impl AsRef<[u8]>) -> String {
        let mut socket = self.connect().await;
        socket.write_all(request.as_ref()).await.unwrap();
        read_to_end(&mut socket).await
    }

    /// A request without a body, with `headers` of whole lines.
    async fn ask(&self, line: &str, headers: &str) -> String {
        let host = self.address;
        self.exchange(format!(
            "{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n"
        ))
        .await
    }

    fn asked(&self) -> Vec<String> {
        self.api.asked.lock().unwrap().clone()
    }

    async fn incident(&self, expected: Incident) {
        soon(async {
            while !self.incidents.lock().unwrap().contains(&expected) {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    async fn stop(self) -> Drained {
        self.api.shutdown.begin(Duration::ZERO);
        soon(self.running).await.unwrap()
    }
}

async fn read_to_end(socket: &mut TcpStream) -> String {
    let mut all = Vec::new();
    soon(socket.read_to_end(&mut all)).await.unwrap();
    String::from_utf8(all).unwrap()
}

async fn read_until(socket: &mut TcpStream, end: &str) -> String {
    let mut all = Vec::new();
    soon(async {
        while !all.ends_with(end.as_bytes()) {
            all.push(socket.read_u8().await.unwrap());
        }
    })
    .await;
    String::from_utf8(all).unwrap()
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or(answer)
}

#[tokio::test]
async fn a_request_is_answered_with_the_headers_every_response_carries() {
    let relay = start(limits(), &[]);
    let answer = relay
        .ask("GET /rest/v1/%74asks?id=eq.7", "X-Request-Id: abc-1\r\n")
        .await;
    assert_eq!(status(&answer), "200");
    for header in [
        "x-request-id: abc-1",
        "x-content-type-options: nosniff",
        "cache-control: no-store",
        "vary: Origin",
    ] {
        assert!(answer.contains(header), "{header}: {answer}");
    }
    assert!(answer.ends_with("\r\n\r\ntasks 0"));
    assert_eq!(relay.asked(), ["rows GET tasks"]);
    let counted = relay.metrics.text().unwrap();
    assert!(counted.contains("http_route=\"/rest/v1/{table}\""));
    assert!(!counted.contains("tasks"));
}

#[tokio::test]
async fn each_route_reaches_its_room() {
    let relay = start(limits(), &[]);
    let events = "Accept: text/event-stream\r\n";
    relay.ask("GET /rest/v1/", "").await;
    let posted = relay.ask("POST /rest/v1/", "Content-Length: 0\r\n").await;
    assert_eq!(status(&posted), "200");
    relay.ask("GET /rest/v1/tasks", events).await;
    relay.ask("DELETE /rest/v1/tasks", events).await;
    relay.ask("GET /channels/lobby", "").await;
    let sent = relay
        .ask("POST /channels/lobby", "Content-Length: 0\r\n")
        .await;
    assert_eq!(status(&sent), "200");
    assert_eq!(
        relay.asked(),
        [
            "root GET ",
            "batch POST ",
            "watch GET tasks",
            "rows DELETE tasks",
            "subscribe GET lobby",
            "publish POST lobby"
        ]
    );
    assert!(
        relay
            .ask("GET /", "")
            .await
            .contains("content-security-policy")
    );
    assert_eq!(status(&relay.ask("GET /readyz", "").await), "503");
    let counted = relay.ask("GET /metrics", "").await;
    assert!(counted.contains("http_route=\"/readyz\""));
}

#[tokio::test]
async fn when_memory_runs_out_who_is_answered_stays_and_everybody_else_goes() {
    let patient = Limits {
        head: Duration::from_mins(1),
        idle: Duration::from_mins(1),
        ..limits()
    };
    let relay = start(patient, &[]);
    let mut slow = relay.connect().await;
    let request = b"GET /rest/v1/slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    slow.write_all(request).await.unwrap();
    soon(relay.api.slow.notified()).await;
    let mut half = relay.connect().await;
    half.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nA: ")
        .await
        .unwrap();
    let mut again = relay.connect().await;
    let request = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nA: ";
    again.write_all(request).await.unwrap();
    read_until(&mut again, "ok\n").await;
    relay.pressure.send_replace(Pressure::High);
    relay.pressure.send_replace(Pressure::Severe);
    for socket in [&mut half, &mut again] {
        // Closed with bytes that nobody has read, it may be reset.
        let ended = soon(socket.read(&mut [0])).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }
    relay.api.go.notify_one();
    let answer = read_to_end(&mut slow).await;
    assert_eq!(status(&answer), "200");
}

#[tokio::test]
async fn a_head_that_does_not_come_is_not_waited_for() {
    let short = Limits {
        head: Duration::from_millis(150),
        ..limits()
    };
    let relay = start(short, &[]);
    let began = Instant::now();
    for head in ["", "P", "PRI * HTTP/2.0\r\n", "GET /livez HTTP/1.1\r\nHo"] {
        assert_eq!(relay.exchange(head).await, "", "{head:?}");
    }
    assert!(began.elapsed() >= Duration::from_millis(4 * 150));
    relay.incident(Incident::Silent).await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_a_while() {
    let short = Limits {
        idle: Duration::from_millis(150),
        ..limits()
    };
    let relay = start(short, &[]);
    let answer = relay
        .exchange("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    assert!(answer.ends_with("ok\n"));
}

#[tokio::test]
async fn a_head_that_is_too_large_is_431() {
    let relay = start(limits(), &[]);
    let large = format!("X-Large: {}\r\n", "x".repeat(33 * 1024));
    assert_eq!(status(&relay.ask("GET /livez", &large).await), "431");
    let many = "X-Many: x\r\n".repeat(101);
    assert_eq!(status(&relay.ask("GET /livez", &many).await), "431");
    let fits = format!("X-Large: {}\r\n", "x".repeat(30 * 1024));
    assert_eq!(status(&relay.ask("GET /livez", &fits).await), "200");
}

#[tokio::test]
async fn a_url_that_is_too_long_is_414() {
    let relay = start(limits(), &[]);
    let long = format!("GET /rest/v1/tasks?a=eq.{}", "x".repeat(9 * 1024));
    let answer = relay.ask(&long, "").await;
    assert_eq!(status(&answer), "414");
    assert!(answer.contains("POST has its arguments"), "{answer}");
    assert!(relay.asked().is_empty());
    let fits = format!("GET /rest/v1/tasks?a=eq.{}", "x".repeat(8000));
    assert_eq!(status(&relay.ask(&fits, "").await), "200");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_413_and_reaches_nobody() {
    let relay = start(limits(), &[]);
    // More than the kernel holds in between: the client is still sending when it is judged.
    let large = vec![b'x'; 7 * body::LIMIT];
    let mut declared =
        format!("POST /rest/v1/tasks HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", large.len())
            .into_bytes();
    declared.extend(&large);
    let answer = relay.exchange(declared).await;
    assert_eq!(status(&answer), "413");
    assert!(answer.contains(r#""code":"RCH03""#), "{answer}");

    let mut chunked = format!(
        "POST /rest/v1/tasks HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n",
        large.len()
    )
    .into_bytes();
    chunked.extend(&large);
    chunked.extend(b"\r\n0\r\n\r\n");
    assert_eq!(status(&relay.exchange(chunked).await), "413");
    assert!(relay.asked().is_empty());
}

#[tokio::test]
async fn requests_sent_in_one_go_are_answered_in_order() {
    let relay = start(limits(), &[]);
    let answer = relay
        .exchange(
            "POST /rest/v1/a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc\
             GET /rest/v1/b HTTP/1.1\r\nHost: x\r\n\r\n\
             HEAD /rest/v1/c HTTP/1.1\r\nHost: x\r\n\r\n\
             GET /rest/v1/d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        )
        .await;
    assert_eq!(
        relay.asked(),
        ["rows POST a", "rows GET b", "rows HEAD c", "rows GET d"]
    );
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 4);
    // HEAD has the length of what it leaves out.
    assert_eq!(answer.matches("content-length: 3").count(), 4);
    assert!(answer.contains("a 3") && answer.contains("b 0") && answer.ends_with("d 0"));
    assert!(!answer.contains("c 0"));
}

#[tokio::test]
async fn a_foreign_page_may_read_but_neither_write_nor_watch() {
    let relay = start(limits(), &["https://app.example"]);
    let foreign = "Origin: https://evil.example\r\n";
    let watch = "Accept: text/event-stream\r\n";
    for (line, headers) in [
        ("POST /rest/v1/tasks", foreign),
        ("DELETE /rest/v1/tasks?id=eq.7", foreign),
        ("POST /channels/lobby", foreign),
        ("GET /channels/lobby", foreign),
        ("OPTIONS /rest/v1/tasks", foreign),
        ("GET /rest/v1/tasks", &format!("{foreign}{watch}")),
        ("GET /rest/v1/tasks", &format!("Origin: null\r\n{watch}")),
        (
            "GET /channels/lobby",
            &format!("Sec-Fetch-Site: cross-site\r\n{watch}"),
        ),
    ] {
        let answer = relay.ask(line, headers).await;
        assert_eq!(status(&answer), "403", "{line} {headers}");
        assert!(!answer.contains("access-control"), "{answer}");
    }
    assert!(relay.asked().is_empty());

    let read = relay.ask("GET /rest/v1/tasks", foreign).await;
    assert_eq!(status(&read), "200");
    assert!(!read.contains("access-control"), "{read}");
}

#[tokio::test]
async fn a_listed_page_may_do_everything() {
    let relay = start(limits(), &["https://app.example"]);
    let listed = "Origin: https://app.example\r\n";
    let asks = format!("{listed}Access-Control-Request-Method: PATCH\r\n");
    let preflight = relay.ask("OPTIONS /rest/v1/tasks", &asks).await;
    assert_eq!(status(&preflight), "204");
    assert!(preflight.contains("access-control-allow-methods: GET, HEAD, POST, PUT, PATCH"));
    assert!(preflight.contains("access-control-allow-origin: https://app.example"));
    assert!(
        relay.asked().is_empty(),
        "a preflight is answered by the edge"
    );

    let write = relay.ask("DELETE /rest/v1/tasks", listed).await;
    assert_eq!(status(&write), "200");
    assert!(write.contains("access-control-allow-credentials: true"));
    let watch = format!("{listed}Accept: text/event-stream\r\n");
    relay.ask("GET /rest/v1/tasks", &watch).await;
    assert_eq!(relay.asked(), ["rows DELETE tasks", "watch GET tasks"]);
}

#[tokio::test]
async fn a_listed_page_hears_what_is_wrong_with_its_url() {
    let relay = start(limits(), &["https://app.example"]);
    let listed = "Origin: https://app.example\r\n";
    let foreign = "Origin: https://elsewhere.example\r\n";
    let asks = "Access-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: apikey\r\n";
    let long = format!("/rest/v1/tasks?id=in.({})", "x".repeat(URI_LIMIT));
    for (path, wanted) in [(long.as_str(), "414"), ("/rest/v1/rest/v1/tasks", "404")] {
        // Its browser asks by the same URL first, and tells of nothing but a failed network when that is refused.
        let line = format!("OPTIONS {path}");
        let preflight = relay.ask(&line, &format!("{listed}{asks}")).await;
        assert_eq!(status(&preflight), "204");
        let answer = relay.ask(&format!("GET {path}"), listed).await;
        assert_eq!(status(&answer), wanted);
        assert!(answer.contains("access-control-allow-origin: https://app.example"));

        let preflight = relay.ask(&line, &format!("{foreign}{asks}")).await;
        assert_eq!(status(&preflight), "403");
        assert_eq!(status(&relay.ask(&line, listed).await), wanted);
    }
    assert!(relay.asked().is_empty());
}

#[tokio::test]
async fn a_method_that_a_path_does_not_have_is_405() {
    let relay = start(limits(), &[]);
    for line in [
        "POST /livez",
        "DELETE /channels/lobby",
        "PUT /rest/v1/",
        "TRACE /rest/v1/tasks",
        "POST /board.js",
        "BREW /rest/v1/tasks",
    ] {
        let answer = relay.ask(line, "").await;
        assert_eq!(status(&answer), "405", "{line}");
        assert!(answer.contains("allow: "), "{line}");
    }
    assert_eq!(status(&relay.ask("GET /nothing", "").await), "404");
    let options = relay.ask("OPTIONS /channels/lobby", "").await;
    assert!(options.contains("allow: GET, POST, OPTIONS"));
    assert!(relay.asked().is_empty());
}

#[tokio::test]
async fn a_compressed_body_is_refused_and_never_read_as_it_is() {
    let relay = start(limits(), &[]);
    for (line, coding) in [
        ("POST /rest/v1/tasks", "gzip"),
        ("PATCH /rest/v1/tasks", "br"),
        ("POST /rest/v1/rpc/add", "GZIP"),
        ("POST /channels/lobby", "identity, gzip"),
        ("POST /tickets", "deflate"),
    ] {
        let headers = format!("content-encoding: {coding}\r\ncontent-length: 0\r\n");
        let answer = relay.ask(line, &headers).await;
        assert_eq!(status(&answer), "415", "{line}");
        assert!(answer.contains("accept-encoding: identity"), "{line}");
        assert!(answer.contains(r#""code":"PGRST107""#), "{answer}");
    }
    let headers = "transfer-encoding: gzip, chunked\r\n\r\n0\r\n";
    let answer = relay.ask("POST /rest/v1/tasks", headers).await;
    assert_eq!(status(&answer), "415", "{answer}");
    assert!(relay.asked().is_empty());
    let plain = "content-encoding: Identity\r\ncontent-length: 0\r\n";
    assert_eq!(
        status(&relay.ask("POST /rest/v1/tasks", plain).await),
        "200"
    );
}

#[tokio::test]
async fn http_2_without_an_upgrade_is_understood() {
    let relay = start(limits(), &[]);
    let socket = TokioIo::new(relay.connect().await);
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), socket)
            .await
            .unwrap();
    let connection = tokio::spawn(connection);
    let ask = |path: &str| {
        hyper::Request::post(format!("http://{}{path}", relay.address))
            .header("origin", format!("http://{}", relay.address))
            .body(Full::new(Bytes::from_static(b"xyz")))
            .unwrap()
    };
    let two = futures::future::join(
        client.send_request(ask("/rest/v1/a")),
        client.clone().send_request(ask("/rest/v1/b")),
    );
    let (first, second) = soon(two).await;
    let first = first.unwrap().into_body().collect().await.unwrap();
    assert_eq!(first.to_bytes(), "a 3");
    assert_eq!(second.unwrap().status(), 200);

    let mut head = ask("/rest/v1/c");
    *head.method_mut() = hyper::Method::HEAD;
    let head = soon(client.send_request(head)).await.unwrap();
    assert_eq!(head.headers()["content-length"], "3");
    let nothing = soon(head.into_body().collect()).await.unwrap();
    assert!(nothing.to_bytes().is_empty());

    let long = format!("/rest/v1/a?{}", "x".repeat(9 * 1024));
    assert_eq!(client.send_request(ask(&long)).await.unwrap().status(), 414);
    // A stream whose body panics does not take the connection along.
    let mut watch = ask("/rest/v1/broken");
    *watch.method_mut() = hyper::Method::GET;
    let accept = HeaderValue::from_static("text/event-stream");
    watch.headers_mut().insert("accept", accept);
    let broken = client.send_request(watch).await.unwrap();
    assert!(soon(broken.into_body().collect()).await.is_err());
    relay.incident(Incident::Panicked).await;
    let after = soon(client.send_request(ask("/rest/v1/a"))).await.unwrap();
    assert_eq!(after.status(), 200);

    assert_eq!(relay.stop().await.cut, 0);
    soon(connection).await.unwrap().unwrap();
}

/// A connection of HTTP/2 whose windows are so small that an answer which nobody reads stays.
async fn narrow(relay: &Relay) -> (SendRequest<Full<Bytes>>, JoinHandle<hyper::Result<()>>) {
    let socket = TokioIo::new(relay.connect().await);
    let (client, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(1024)
        .handshake(socket)
        .await
        .unwrap();
    (client, tokio::spawn(connection))
}

fn get(relay: &Relay, path: &str, headers: &[(&str, &str)]) -> hyper::Request<Full<Bytes>> {
    let mut request = hyper::Request::get(format!("http://{}{path}", relay.address));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).unwrap()
}

#[tokio::test]
async fn answers_that_are_not_taken_have_an_end_and_others_are_told() {
    let relay = start(limits(), &[]);
    let (mut client, _connection) = narrow(&relay).await;
    let mut kept = Vec::new();
    for _ in 0..2 {
        let large = client.send_request(get(&relay, "/rest/v1/large", &[]));
        let large = soon(large).await.unwrap();
        assert_eq!(large.status(), 200);
        assert_eq!(large.headers()["content-length"], LARGE.to_string());
        kept.push(large.into_body());
    }
    let refused = relay.ask("GET /rest/v1/large", "").await;
    assert_eq!(status(&refused), "503");
    assert!(refused.contains(r#""code":"RCH13""#), "{refused}");
    assert!(refused.contains("retry-after: 2"), "{refused}");
    let small = relay.ask("GET /rest/v1/tasks", "").await;
    assert_eq!(status(&small), "200", "small ones need no room");

    // Whole, and then there is room again.
    let whole = soon(kept.remove(0).collect()).await.unwrap().to_bytes();
    assert!(whole.len() == LARGE && whole.iter().all(|byte| *byte == b'x'));
    soon(async {
        while status(&relay.ask("GET /rest/v1/large", "").await) != "200" {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let head = soon(relay.ask("HEAD /rest/v1/large", "")).await;
    assert!(head.contains(&format!("content-length: {LARGE}\r\n")));
    // And for who has left.
    drop(kept);
    let (mut client, _connection) = narrow(&relay).await;
    let mut kept = Vec::new();
    for _ in 0..2 {
        soon(async {
            loop {
                let large = client.send_request(get(&relay, "/rest/v1/large", &[]));
                let large = large.await.unwrap();
                if large.status() == 200 {
                    return kept.push(large.into_body());
                }
            }
        })
        .await;
    }
}

const EVENTS: (&str, &str) = ("accept", "text/event-stream");

/// Who is answered slowly beside a stream of which nothing is taken.
async fn slow_beside_a_stream(
    relay: &Relay,
    client: &mut SendRequest<Full<Bytes>>,
) -> (
    Incoming,
    JoinHandle<hyper::Result<hyper::Response<Incoming>>>,
) {
    let quiet = client.send_request(get(relay, "/rest/v1/quiet", &[EVENTS]));
    let quiet = soon(quiet).await.unwrap().into_body();
    let slow = tokio::spawn(client.send_request(get(relay, "/rest/v1/slow", &[])));
    soon(relay.api.slow.notified()).await;
    (quiet, slow)
}

#[tokio::test]
async fn a_connection_that_is_cut_takes_no_more_requests_and_answers_those_that_are_there() {
    let patient = Limits {
        last: SOON,
        ..limits()
    };
    let relay = start(patient, &[]);
    let (mut client, connection) = narrow(&relay).await;
    let (_quiet, slow) = slow_beside_a_stream(&relay, &mut client).await;

    relay.api.scissors.lock().unwrap().cut();
    soon(async {
        let ask = || get(&relay, "/livez", &[]);
        while client.send_request(ask()).await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    relay.api.go.notify_one();
    assert_eq!(soon(slow).await.unwrap().unwrap().status(), 200);
    let _broken = soon(connection).await.unwrap();
    assert_eq!(relay.stop().await.cut, 0);
}

#[tokio::test]
async fn a_connection_that_is_cut_does_not_wait_for_ever_for_an_answer() {
    let short = Limits {
        last: Duration::from_millis(100),
        ..limits()
    };
    let relay = start(short, &[]);
    let (mut client, connection) = narrow(&relay).await;
    let (_quiet, slow) = slow_beside_a_stream(&relay, &mut client).await;
    relay.api.scissors.lock().unwrap().cut();
    assert!(soon(slow).await.unwrap().is_err());
    let _broken = soon(connection).await.unwrap();
}

#[tokio::test]
async fn a_stop_answers_what_is_in_flight_and_accepts_no_more() {
    let relay = start(limits(), &[]);
    let mut idle = relay.connect().await;
    idle.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut idle, "ok\n").await;
    let mut slow = relay.connect().await;
    slow.write_all(b"GET /rest/v1/slow HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    soon(relay.api.slow.notified()).await;

    relay.api.shutdown.begin(Duration::ZERO);
    assert_eq!(read_to_end(&mut idle).await, "", "idle is closed at once");
    soon(async {
        while TcpStream::connect(relay.address).await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(
        !relay.running.is_finished(),
        "one request is still in flight"
    );

    relay.api.go.notify_one();
    let answer = read_to_end(&mut slow).await;
    assert!(answer.ends_with("slow 0"), "{answer}");
    assert!(answer.contains("connection: close"));
    assert_eq!(soon(relay.running).await.unwrap(), Drained { cut: 0 });
}

#[tokio::test]
async fn a_stop_lets_an_event_stream_say_its_last_word() {
    let relay = start(limits(), &[]);
    let mut watching = relay.connect().await;
    watching
        .write_all(b"GET /rest/v1/quiet HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut watching, ":\n\r\n").await;
    relay.api.shutdown.begin(Duration::ZERO);
    let rest = read_to_end(&mut watching).await;
    assert_eq!(rest, "D\r\nretry: 1234\n\n\r\n0\r\n\r\n");
    let counted = relay.metrics.text().unwrap();
    assert!(!counted.contains("http_route"), "streams are not counted");
    assert_eq!(relay.stop().await.cut, 0);
}

#[tokio::test]
async fn a_request_under_way_when_the_stop_comes_is_answered() {
    let relay = start(limits(), &[]);
    let mut late = relay.connect().await;
    // The connection is known to the server once another one, made later, is answered.
    relay.ask("GET /livez", "").await;
    relay.api.shutdown.begin(Duration::ZERO);
    // Once nobody can connect any more, the stop has reached every connection.
    soon(async {
        while TcpStream::connect(relay.address).await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    late.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    assert!(read_to_end(&mut late).await.ends_with("ok\n"));
    assert_eq!(relay.stop().await.cut, 0);
}

#[tokio::test]
async fn a_connection_that_waits_to_be_accepted_when_the_stop_comes_is_answered() {
    let relay = start(limits(), &[]);
    relay.ask("GET /livez", "").await;
    // Without an await the server cannot run in between: only the kernel has accepted.
    let mut queued = std::net::TcpStream::connect(relay.address).unwrap();
    std::io::Write::write_all(&mut queued, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    relay.api.shutdown.begin(Duration::ZERO);
    queued.set_nonblocking(true).unwrap();
    let mut queued = TcpStream::from_std(queued).unwrap();
    assert!(read_to_end(&mut queued).await.ends_with("ok\n"));
    assert_eq!(relay.stop().await.cut, 0);
}

#[tokio::test]
async fn a_request_that_never_ends_is_cut_when_the_time_to_drain_is_over() {
    let short = Limits {
        finish: Duration::from_millis(100),
        ..limits()
    };
    let relay = start(short, &[]);
    let mut slow = relay.connect().await;
    slow.write_all(b"GET /rest/v1/slow HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    soon(relay.api.slow.notified()).await;
    assert_eq!(relay.stop().await.cut, 1);
    assert_eq!(read_to_end(&mut slow).await, "");
}

#[tokio::test]
async fn a_reader_that_accepts_nothing_is_cut() {
    let relay = start(limits(), &[]);
    let mut stuck = relay.connect().await;
    stuck
        .write_all(b"GET /rest/v1/flood HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")
        .await
        .unwrap();
    relay.incident(Incident::Stalled { events: true }).await;
    // The server goes on for everybody else.
    assert_eq!(status(&relay.ask("GET /livez", "").await), "200");
    assert_eq!(relay.stop().await.cut, 0, "the stuck one is gone already");
}

#[tokio::test]
async fn a_panic_ends_one_exchange_only() {
    let relay = start(limits(), &[]);
    let answer = relay
        .exchange(
            "GET /rest/v1/broken HTTP/1.1\r\nHost: x\r\nX-Request-Id: me\r\n\r\n\
             GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        )
        .await;
    assert_eq!(status(&answer), "500");
    assert!(answer.contains(r#""code":"RCH06""#) && answer.contains("x-request-id: me"));
    assert!(answer.ends_with("ok\n"), "the connection goes on");

    let accept = "Accept: text/event-stream\r\n";
    let cut = relay.ask("GET /rest/v1/broken", accept).await;
    assert!(
        !cut.ends_with("0\r\n\r\n"),
        "a cut body does not look complete"
    );
    relay.incident(Incident::Panicked).await;
    assert_eq!(status(&relay.ask("GET /livez", "").await), "200");
}

#[tokio::test]
async fn a_connection_too_many_is_closed_and_the_next_one_served() {
    let one = Limits {
        connections: 1,
        ..limits()
    };
    let relay = start(one, &[]);
    let mut first = relay.connect().await;
    first
        .write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut first, "ok\n").await;
    let mut second = relay.connect().await;
    assert_eq!(read_to_end(&mut second).await, "");
    relay.incident(Incident::Full).await;
    drop(first);
    soon(async {
        loop {
            let mut next = relay.connect().await;
            let asked = next.write_all(b"GET /livez HTTP/1.0\r\n\r\n").await;
            let mut answer = String::new();
            let answered = next.read_to_string(&mut answer).await;
            if asked.is_ok() && answered.is_ok() && answer.ends_with("ok\n") {
                break;
            }
        }
    })
    .await;
}

/// Run by the test below, in a process that has few descriptors.
#[tokio::test]
#[ignore = "wants a process with 64 descriptors"]
async fn with_few_descriptors() {
    let relay = start(limits(), &[]);
    let mut held = Vec::new();
    // The connecting side takes descriptors as well, so it runs out first or we do.
    while let Ok(Ok(socket)) = timeout(SOON, TcpStream::connect(relay.address)).await {
        held.push(socket);
        if relay
            .incidents
            .lock()
            .unwrap()
            .contains(&Incident::NotAccepted)
        {
            break;
        }
    }
    relay.incident(Incident::NotAccepted).await;
    let attempts = || {
        let incidents = relay.incidents.lock().unwrap();
        let failed = incidents
            .iter()
            .filter(|incident| **incident == Incident::NotAccepted);
        failed.count()
    };
    let before = attempts();
    // Who cannot be served is told so by the spare descriptor.
    let last = held.last_mut().unwrap();
    assert_eq!(read_to_end(last).await, "");
    sleep(Duration::from_secs(1)).await;
    let in_a_second = attempts() - before;
    assert!(in_a_second <= 21, "{in_a_second} attempts in a second");
    drop(held);
    assert_eq!(status(&relay.ask("GET /livez", "").await), "200");
}

#[test]
fn running_out_of_descriptors_neither_spins_nor_kills() {
    let this = std::env::current_exe().unwrap();
    let output = std::process::Command::new("sh")
        .arg("-c")
        .arg("ulimit -n 64; exec \"$0\" --exact http::tests::with_few_descriptors --ignored")
        .arg(this)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "{told}"
    );
}
