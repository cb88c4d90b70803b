//! Screens: they connect, listen, leave, lie and come back, and keep what they were given.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::record::{Kind, Note, Record, Texts, Transport, now};
use crate::tables::View;

/// A screen that hears nothing for so long says that it is stale, and connects anew.
const SILENCE: Duration = Duration::from_secs(12);

/// What all observers share.
#[derive(Clone)]
pub struct Watching {
    pub doors: Vec<SocketAddr>,
    pub texts: Arc<Texts>,
    pub records: Arc<Mutex<Vec<Record>>>,
    /// From now on nobody leaves or is slow: the end is awaited.
    pub settle: watch::Receiver<bool>,
    pub stop: watch::Receiver<bool>,
}

pub struct Observer {
    pub number: usize,
    pub kind: Kind,
    pub transport: Transport,
    pub view: View,
    pub token: Option<String>,
    pub random: fastrand::Rng,
    pub watching: Watching,
}

/// How a connection ended.
enum End {
    Closed,
    Left,
    Silent,
    Stopped,
}

impl Observer {
    pub async fn run(mut self) {
        let mut notes = Vec::new();
        let mut stop = self.watching.stop.clone();
        tokio::select! {
            () = self.live(&mut notes) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
        self.watching.records.lock().unwrap().push(Record {
            number: self.number,
            kind: self.kind,
            transport: self.transport,
            view: self.view,
            notes,
        });
    }

    fn is_settling(&self) -> bool {
        *self.watching.settle.borrow()
    }

    async fn live(&mut self, notes: &mut Vec<(u64, Note)>) {
        let mut id: Option<String> = None;
        let mut old: Option<String> = None;
        let mut relay = self.random.usize(..self.watching.doors.len());
        loop {
            let given = self.claimed(id.as_ref(), old.as_ref());
            let body = match self.open(relay, given.as_deref()).await {
                Ok(body) => body,
                Err(status) => {
                    notes.push((now(), Note::Refused { relay, status }));
                    self.rest(100..600).await;
                    relay = self.random.usize(..self.watching.doors.len());
                    continue;
                }
            };
            let told = given.as_deref().map(|id| self.watching.texts.keep(id));
            notes.push((now(), Note::Opened { relay, id: told }));
            if given.is_none() || self.kind == Kind::Liar {
                id = None;
            }
            let lied = self.kind == Kind::Liar && given.is_some();
            let (end, retry) = self.listen(body, &mut id, lied, notes).await;
            if old.is_none() || self.random.u8(..3) == 0 {
                old.clone_from(&id);
            }
            notes.push((
                now(),
                match end {
                    End::Silent => Note::Silent,
                    End::Closed => Note::Ended { by_us: false },
                    End::Left | End::Stopped => Note::Ended { by_us: true },
                },
            ));
            if matches!(end, End::Left) {
                if self.random.u8(..4) == 0 {
                    self.rest(100..3000).await;
                }
            } else {
                self.rest(50..retry.clamp(100, 1500)).await;
            }
            relay = self.random.usize(..self.watching.doors.len());
        }
    }

    async fn rest(&mut self, millis: std::ops::Range<u64>) {
        let pause = Duration::from_millis(self.random.u64(millis));
        tokio::time::sleep(pause).await;
    }

    /// The id that it comes back with.
    fn claimed(&mut self, id: Option<&String>, old: Option<&String>) -> Option<String> {
        let id = id?;
        match self.kind {
            Kind::Liar if !self.is_settling() => Some(match self.random.u8(..6) {
                0 | 1 => old.cloned()?,
                2 => {
                    // Of the future.
                    let (names, cursor) = id.rsplit_once('.')?;
                    let xmax = u64::from_str_radix(cursor.split('-').next()?, 16).ok()?;
                    format!("{names}.{:x}", xmax + self.random.u64(1..1_000_000))
                }
                3 => format!("AAAAAAAAAAA.{}", id.split_once('.')?.1),
                4 => id.chars().rev().collect(),
                _ => (0..self.random.u8(1..40))
                    .map(|_| self.random.char('!'..='~'))
                    .collect(),
            }),
            Kind::Liar | Kind::Fresh => None,
            _ => Some(id.clone()),
        }
    }

    /// A stream, or the status of what was answered instead; 0 for nothing.
    async fn open(&self, relay: usize, id: Option<&str>) -> Result<Incoming, u16> {
        let door = self.watching.doors[relay];
        let connecting = async {
            let stream = TcpStream::connect(door).await.ok()?;
            let mut request = Request::builder().header("accept", "text/event-stream");
            if let Some(token) = &self.token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if let Some(id) = id {
                request = request.header("last-event-id", id);
            }
            let (path, body) = (self.view.path(), Empty::<Bytes>::new());
            if self.transport == Transport::Http2 {
                let request = request.uri(format!("http://{door}{path}")).body(body);
                let connecting = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
                let (mut sender, connection) = connecting.await.ok()?;
                tokio::spawn(connection);
                return sender.send_request(request.unwrap()).await.ok();
            }
            let request = request.header("host", door.to_string()).uri(path);
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
            tokio::spawn(connection);
            sender.send_request(request.body(body).unwrap()).await.ok()
        };
        let answer = timeout(SILENCE, connecting).await.ok().flatten();
        match answer {
            Some(answer) if answer.status() == 200 => Ok(answer.into_body()),
            // So nginx says that there is no relay.
            Some(answer)
                if self.transport == Transport::Nginx
                    && [502, 504].contains(&answer.status().as_u16()) =>
            {
                Err(0)
            }
            Some(answer) => Err(answer.status().as_u16()),
            None => Err(0),
        }
    }

    /// Takes events until one side has enough. Also gives the time to wait before coming back.
    async fn listen(
        &mut self,
        mut body: Incoming,
        id: &mut Option<String>,
        lied: bool,
        notes: &mut Vec<(u64, Note)>,
    ) -> (End, u64) {
        let mut parser = Parser::new(id.clone().unwrap_or_default());
        let leaves_after = match self.kind {
            Kind::Steady | Kind::Slow => Duration::from_hours(1),
            Kind::Leaving => Duration::from_millis(self.random.u64(1_000..20_000)),
            Kind::Fresh | Kind::Liar => Duration::from_millis(self.random.u64(500..6_000)),
        };
        let leaves = Instant::now() + leaves_after;
        let mut stop = self.watching.stop.clone();
        let mut heard = Instant::now();
        loop {
            let settling = self.is_settling();
            if settling && lied {
                // In the end it is an honest screen, also where the end began while it came.
                return (End::Left, 0);
            }
            let patience = if settling {
                heard + SILENCE
            } else {
                leaves.min(heard + SILENCE)
            };
            let frame = tokio::select! {
                frame = tokio::time::timeout_at(patience, body.frame()) => frame,
                _ = stop.wait_for(|stop| *stop) => return (End::Stopped, 0),
            };
            let bytes = match frame {
                Err(_) if heard.elapsed() >= SILENCE => return (End::Silent, parser.retry),
                Err(_) if self.is_settling() => continue,
                Err(_) => return (End::Left, parser.retry),
                Ok(None | Some(Err(_))) => return (End::Closed, parser.retry),
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            };
            heard = Instant::now();
            parser.take(&bytes, &self.watching.texts, notes);
            if !parser.id.is_empty() {
                *id = Some(parser.id.clone());
            }
            if self.kind == Kind::Slow && !settling {
                let pause = if self.random.u8(..50) == 0 {
                    6_000
                } else {
                    120
                };
                tokio::time::sleep(Duration::from_millis(self.random.u64(..pause))).await;
                heard = Instant::now();
            }
        }
    }
}

/// `text/event-stream` by the standard, for what a relay of ours may send.
struct Parser {
    rest: Vec<u8>,
    /// Where the search for the next line goes on.
    searched: usize,
    name: String,
    data: String,
    has_data: bool,
    pending_id: String,
    /// The last event id, as of the last dispatch.
    id: String,
    retry: u64,
}

impl Parser {
    fn new(id: String) -> Self {
        Self {
            rest: Vec::new(),
            searched: 0,
            name: String::new(),
            data: String::new(),
            has_data: false,
            pending_id: id.clone(),
            id,
            retry: 1000,
        }
    }

    fn take(&mut self, bytes: &[u8], texts: &Texts, notes: &mut Vec<(u64, Note)>) {
        self.rest.extend_from_slice(bytes);
        let mut begun = 0;
        while let Some(at) = self.rest[self.searched..]
            .iter()
            .position(|byte| *byte == b'\n')
        {
            let end = self.searched + at;
            let line = String::from_utf8_lossy(&self.rest[begun..end]).into_owned();
            begun = end + 1;
            self.searched = begun;
            self.line(&line, texts, notes);
        }
        self.rest.drain(..begun);
        self.searched = self.rest.len();
    }

    fn line(&mut self, line: &str, texts: &Texts, notes: &mut Vec<(u64, Note)>) {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        let is_known = ["event", "id", "retry", "data", ""].contains(&field);
        if !is_known || line.contains(['\r', '\u{fffd}']) {
            notes.push((
                now(),
                Note::Broken {
                    text: texts.keep(line),
                },
            ));
        }
        match field {
            "event" => value.clone_into(&mut self.name),
            "id" => value.clone_into(&mut self.pending_id),
            "retry" => self.retry = value.parse().unwrap_or(self.retry),
            "data" => {
                if self.has_data {
                    self.data.push('\n');
                }
                self.has_data = true;
                self.data.push_str(value);
            }
            _ if line.is_empty() => {
                self.id.clone_from(&self.pending_id);
                if self.has_data {
                    let (id, text) = (texts.keep(&self.id), texts.keep(&self.data));
                    let note = match self.name.as_str() {
                        "data" => Note::Data { id, text },
                        "control" => Note::Control { id, text },
                        _ => Note::Broken { text },
                    };
                    notes.push((now(), note));
                }
                self.name.clear();
                self.data.clear();
                self.has_data = false;
            }
            _ => {}
        }
    }
}
