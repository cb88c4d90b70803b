//! Sockets in, requests out: accept, serve, drain.
//!
//! [`Server::run`] serves HTTP/1.1 and HTTP/2 (prior knowledge) on every listener until the stop
//! signal. It promises that no client holds it up for ever (heads, idle connections and blocked
//! writes have time limits, heads and connections a size and a number), that a panic ends one
//! connection and nothing else, that running out of descriptors neither kills it nor makes it spin,
//! and that requests in flight are answered before it returns. It does not know what is answered,
//! and does not read bodies.
//!
//! A stream that does not listen to the stop signal itself is cut when the time to drain is over.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, Sleep, sleep, timeout, timeout_at};

use super::deadline::Deadline;
use super::events::{Ended, Events, Home};
use super::route::HEAD_LIMIT;
use super::{BodyError, Request, Response, body, exchange};
use crate::admission::Scissors;
use crate::memory::Pressure;
use crate::shutdown::Shutdown;
use crate::wake::Seldom;

/// The bounds of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open connections at once; more are closed unanswered. A browser's `EventSource` takes that
    /// for a network failure and comes back, whereas it would give up for ever on a 503.
    pub connections: usize,
    /// Time for the head of a connection's first request to arrive.
    pub head: Duration,
    /// The same for each later one, from the end of the answer before it. Longer than clients and
    /// proxies keep a connection without using it (nginx 60 s, Go and hyper 90 s): whoever closes first
    /// cannot be met by a request that is on its way.
    pub idle: Duration,
    /// Largest head, in bytes; at least 8192, which is the least that hyper works with. It also
    /// bounds what is buffered of a response before the client has to accept some.
    pub head_bytes: usize,
    /// Most exchanges at once on an HTTP/2 connection, event streams among them.
    pub streams: u32,
    /// Time for which a client may accept no bytes while there are some.
    pub stalled: Duration,
    /// Time for which a connection that has brought no request yet is waited for once the stop signal
    /// is given: its request may be under way.
    pub newcomer: Duration,
    /// Time for what is being answered on a connection that is cut because its client takes too little.
    pub last: Duration,
    /// Time for requests to finish once the stop signal's grace period is over.
    pub finish: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            head: Duration::from_secs(10),
            idle: Duration::from_mins(2),
            head_bytes: HEAD_LIMIT,
            streams: 100,
            stalled: Duration::from_secs(15),
            newcomer: Duration::from_millis(250),
            last: body::WITHIN,
            finish: Duration::from_secs(5),
        }
    }
}

/// Something that an operator may want to count. The server has put it into the log already, where
/// it is worth it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incident {
    /// A connection is there.
    Opened,
    /// It is gone.
    Closed,
    /// A connection could not be accepted, mostly for want of descriptors.
    NotAccepted,
    /// There were as many connections as allowed, and one more was closed.
    Full,
    /// A connection brought no request in time.
    Silent,
    /// A client accepted no bytes and was cut.
    Stalled {
        /// Whether an event stream was on the connection.
        events: bool,
    },
    /// A body has panicked, or the code that answers and nobody caught it there.
    Panicked,
}

/// Who is told of incidents. It is called in passing and must not block.
pub type Observer = Arc<dyn Fn(Incident) + Send + Sync>;

/// Where a request came from. Rooms find it in the request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were cut because the time to drain was over.
    pub cut: usize,
}

/// Longest queue of connections that wait to be accepted; the kernel may hold it shorter.
const BACKLOG: i32 = 4096;

/// Binds a listener that survives a restart (`SO_REUSEADDR`) and a herd. `[::]` takes IPv4 as well.
///
/// # Errors
/// What the kernel says, mostly that the address is in use.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// A server that has not started.
pub struct Server<H> {
    shared: Shared<H>,
    listeners: Vec<TcpListener>,
}

/// What every connection needs.
#[derive(Clone)]
struct Shared<H> {
    handler: H,
    limits: Limits,
    shutdown: Shutdown,
    observer: Observer,
    /// One permit for each connection.
    room: Arc<Semaphore>,
    builders: Arc<Builders>,
    /// How short memory is, where somebody tells.
    pressure: watch::Receiver<Pressure>,
}

impl<H, F> Server<H>
where
    H: Fn(Request) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    /// Puts a server together. Nothing is accepted before [`Server::run`].
    pub fn new(
        listeners: Vec<TcpListener>,
        shutdown: Shutdown,
        limits: Limits,
        observer: Observer,
        handler: H,
    ) -> Self {
        let shared = Shared {
            handler,
            room: Arc::new(Semaphore::new(limits.connections)),
            builders: Arc::new(builders(&limits, &observer)),
            limits,
            shutdown,
            observer,
            pressure: watch::channel(Pressure::Low).1,
        };
        Self { shared, listeners }
    }

    /// The same, which is told how short memory is.
    #[must_use]
    pub fn under(mut self, pressure: watch::Receiver<Pressure>) -> Self {
        self.shared.pressure = pressure;
        self
    }

    /// Serves until the stop signal, then drains: accepts no more, answers what is in flight, closes
    /// idle connections, waits for the streams to end themselves. Returns when every connection is
    /// gone, at the latest [`Limits::finish`] after the signal's grace period.
    pub async fn run(self) -> Drained {
        let each = self
            .listeners
            .into_iter()
            .map(|listener| serve(listener, self.shared.clone()));
        let cut = join_all(each).await.into_iter().sum();
        Drained { cut }
    }
}

fn builders(limits: &Limits, observer: &Observer) -> Builders {
    let open = builder(limits, Arc::clone(observer));
    Builders {
        one: open.clone().http1_only(),
        open,
    }
}

fn builder(limits: &Limits, observer: Observer) -> auto::Builder<Streams> {
    let mut builder = auto::Builder::new(Streams { observer });
    // Without a timer hyper has no time limits at all. That it takes 100 header lines at most is its
    // own default: setting the number, even the same, costs an allocation a request.
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle)
        .max_buf_size(limits.head_bytes);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PONG_WITHIN);
    builder
}

/// What waits for the client of one exchange of HTTP/2; hyper would take 400 KiB.
const SEND_BUFFER: usize = 64 * 1024;

/// How often a connection is looked at while memory runs out.
const LOOK: Duration = Duration::from_millis(250);

/// How long it takes at most until an answer that was made is written, if the client takes it.
const WRITTEN: Duration = Duration::from_millis(100);

/// An HTTP/2 client that is gone is noticed within the sum of these.
const PING_EVERY: Duration = Duration::from_secs(15);
const PONG_WITHIN: Duration = Duration::from_secs(10);

/// Accepts until the stop signal, then drains. Returns how many connections were cut.
async fn serve<H, F>(listener: TcpListener, shared: Shared<H>) -> usize
where
    H: Fn(Request) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let mut connections = JoinSet::new();
    let mut spare = Spare::new();
    let grace = {
        let mut stopping = pin!(shared.shutdown.begun());
        loop {
            tokio::select! {
                biased;
                grace = &mut stopping => break grace,
                Some(ended) = connections.join_next() => shared.ended(ended),
                accepted = listener.accept() => match accepted {
                    Ok((socket, peer)) => shared.admit(&mut connections, socket, peer),
                    Err(error) => shared.rest_after(&error, &listener, &mut spare).await,
                },
            }
        }
    };
    let deadline = Instant::now() + grace + shared.limits.finish;
    for (socket, peer) in close(listener) {
        shared.admit(&mut connections, socket, peer);
    }
    let drained = timeout_at(deadline, async {
        while let Some(ended) = connections.join_next().await {
            shared.ended(ended);
        }
    });
    if drained.await.is_ok() {
        return 0;
    }
    let cut = connections.len();
    tracing::warn!(cut, "connections were cut at the end of the drain");
    connections.shutdown().await;
    cut
}

/// Closes the listener and returns who was waiting in its queue: they believe that they are
/// connected, and would be reset. The kernel is asked directly, since the runtime may not have heard
/// of the last ones yet.
fn close(listener: TcpListener) -> Vec<(TcpStream, SocketAddr)> {
    let Ok(listener) = listener.into_std() else {
        return Vec::new();
    };
    // Not more than the queue held: under a herd it fills as fast as it is emptied.
    std::iter::from_fn(|| listener.accept().ok())
        .take(usize::try_from(BACKLOG).unwrap_or(usize::MAX))
        .filter_map(|(socket, peer)| {
            socket.set_nonblocking(true).ok()?;
            Some((TcpStream::from_std(socket).ok()?, peer))
        })
        .collect()
}

impl<H, F> Shared<H>
where
    H: Fn(Request) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    fn admit(&self, connections: &mut JoinSet<()>, socket: TcpStream, peer: SocketAddr) {
        let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else {
            tracing::debug!(%peer, "closed: there are as many connections as allowed");
            (self.observer)(Incident::Full);
            return;
        };
        if let Err(error) = tune(&socket) {
            // It is gone already, or a system without the option: the limits in here still hold.
            tracing::debug!(%peer, %error, "the socket could not be tuned");
        }
        let here = Here::new(permit, Arc::clone(&self.observer));
        connections.spawn(connection(self.clone(), socket, peer, here));
    }

    /// A task of a connection has ended.
    fn ended(&self, ended: Result<(), JoinError>) {
        if ended.is_err_and(|error| error.is_panic()) {
            tracing::error!("an exchange panicked; its connection is closed");
            (self.observer)(Incident::Panicked);
        }
    }

    /// Waits for the first bytes of a connection; `None` when it is over.
    async fn greet(
        &self,
        socket: &TcpStream,
        first_head: Pin<&mut Sleep>,
        peer: SocketAddr,
    ) -> Option<Version> {
        let version = tokio::select! {
            version = Version::of(socket) => version,
            () = first_head => {
                self.silent(peer);
                return None;
            }
            _grace = self.shutdown.begun() => {
                timeout(self.limits.newcomer, Version::of(socket)).await.ok()?
            }
        };
        version
            .inspect_err(|error| tracing::debug!(%peer, %error, "the connection broke"))
            .ok()
    }

    /// A client took nothing for too long.
    fn stalled(&self, peer: SocketAddr, events: bool) {
        tracing::debug!(%peer, events, "closed: the client accepts no bytes");
        (self.observer)(Incident::Stalled { events });
    }

    /// Writes an event stream to its end.
    async fn tell(&self, mut events: Events, scissors: &Scissors, peer: SocketAddr) {
        let mut cut = Seldom::new(Box::pin(scissors.used()));
        let ended = poll_fn(|cx| {
            if Pin::new(&mut cut).poll(cx).is_ready() {
                // Who used them counts it.
                return Poll::Ready(Ended::Left);
            }
            Pin::new(&mut events).poll(cx)
        });
        match ended.await {
            Ended::Whole | Ended::Left => {}
            Ended::Stalled => self.stalled(peer, true),
            Ended::Broken => tracing::debug!(%peer, "the connection broke"),
        }
    }

    /// Waits for what seldom happens to a connection: `head` is over when its first request is late.
    async fn rare(&self, scissors: &Scissors, head: Option<Pin<&mut Sleep>>) -> Rare {
        let late = async {
            match head {
                Some(head) => head.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = scissors.used() => Rare::Cut,
            () = late => Rare::Late,
            () = self.unneeded(scissors) => Rare::Unneeded,
            _grace = self.shutdown.begun() => Rare::Stopping,
        }
    }

    /// Waits until memory runs out while nothing is answered on a connection. What it keeps of a request that is
    /// not all there is as much as some streams have, and anybody can have thousands of them.
    async fn unneeded(&self, scissors: &Scissors) {
        let mut pressure = self.pressure.clone();
        let is_severe = |pressure: &Pressure| *pressure == Pressure::Severe;
        while pressure.wait_for(is_severe).await.is_ok() {
            // What is on its way may arrive.
            sleep(LOOK).await;
            if scissors.are_left_alone() && is_severe(&pressure.borrow()) {
                return;
            }
        }
        // Nobody tells.
        std::future::pending::<()>().await;
    }

    /// A connection has brought no request in time.
    fn silent(&self, peer: SocketAddr) {
        tracing::debug!(%peer, "closed: no request came in time");
        (self.observer)(Incident::Silent);
    }

    /// Waits before the next accept, if the error would only come again at once. Who waits in the
    /// queue is told no by the spare descriptor, and does not hang until somebody else leaves.
    async fn rest_after(&self, error: &io::Error, listener: &TcpListener, spare: &mut Spare) {
        if is_about_one_connection(error) {
            return;
        }
        (self.observer)(Incident::NotAccepted);
        let turned_away = spare.turn_away(listener).await;
        tracing::warn!(%error, turned_away, "no connection could be accepted");
        sleep(Duration::from_millis(fastrand::u64(50..=100))).await;
    }
}

/// A descriptor that is kept for the moment when there are no more.
struct Spare(Option<std::fs::File>);

impl Spare {
    fn new() -> Self {
        Self(std::fs::File::open("/dev/null").ok())
    }

    /// Closes those who wait in the queue, and returns how many. Not more than the queue held.
    async fn turn_away(&mut self, listener: &TcpListener) -> usize {
        let mut turned_away = 0;
        let most = usize::try_from(BACKLOG).unwrap_or(usize::MAX);
        if self.0.take().is_some() {
            // The descriptor is free again after each: the socket is closed at once.
            while turned_away < most
                && let Some(Ok(_closed)) = listener.accept().now_or_never()
            {
                turned_away += 1;
                if turned_away % 64 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        }
        *self = Self::new();
        turned_away
    }
}

/// Errors that belong to the connection that was about to be accepted, and are gone with it.
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// The kernel's own view on clients that are gone. [`Deadline`] cannot see them as long as what is
/// written fits into the socket's buffer, and hours of heartbeats do.
fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(Duration::from_secs(15))
            .with_interval(Duration::from_secs(5)),
    )?;
    #[cfg(target_os = "linux")]
    {
        socket.set_tcp_user_timeout(Some(Duration::from_secs(20)))?;
        // Unsent bytes wait in our bounded buffers, where many connections share them.
        socket.set_tcp_notsent_lowat(32 * 1024)?;
    }
    Ok(())
}

/// One connection's part of the number there may be.
struct Here {
    _permit: OwnedSemaphorePermit,
    observer: Observer,
}

impl Here {
    fn new(permit: OwnedSemaphorePermit, observer: Observer) -> Self {
        observer(Incident::Opened);
        Self {
            _permit: permit,
            observer,
        }
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        (self.observer)(Incident::Closed);
    }
}

/// What the exchanges of one connection have shown so far.
#[derive(Default)]
struct Seen {
    /// A request has come.
    request: AtomicBool,
    /// Notified of the same.
    came: Notify,
    /// An event stream was answered.
    is_stream: AtomicBool,
    /// Requests that are being answered.
    answering: AtomicUsize,
    /// Notified when one more has been answered.
    answered: Notify,
    /// An answer that is not hyper's to write.
    events: Mutex<Option<Response>>,
}

impl Seen {
    fn request_came(&self) {
        if !self.request.swap(true, Ordering::Relaxed) {
            self.came.notify_one();
        }
    }

    /// Waits for the first request, if it has not come yet, and no longer than this.
    async fn first(&self, patience: Duration) {
        if !self.request.load(Ordering::Relaxed) {
            let _either = timeout(patience, self.came.notified()).await;
        }
    }

    fn taken_over(&self) -> Option<Response> {
        let mut events = self.events.lock().expect("nothing panics while holding it");
        events.take()
    }

    /// Waits until no request is being answered, so that a write is not left half-way by us, and the last
    /// answer is out; but no longer than this.
    async fn last(&self, patience: Duration) {
        let idle = async {
            while self.answering.load(Ordering::Relaxed) > 0 {
                self.answered.notified().await;
            }
        };
        if timeout(patience, idle).await.is_ok() {
            // hyper has it, and writes it in tasks of its own.
            sleep(WRITTEN).await;
        }
    }
}

/// Counts a request while it is being answered, also when its client resets it.
struct Answering(Arc<Seen>);

impl Answering {
    fn new(seen: &Arc<Seen>) -> Self {
        seen.answering.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(seen))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answering.fetch_sub(1, Ordering::Relaxed);
        self.0.answered.notify_one();
    }
}

/// What happens to a connection.
enum Next {
    /// It came to its end.
    Ended(Result<(), BodyError>),
    /// It is an event stream from here on.
    Events(Response),
    /// Something else.
    Rare(Rare),
}

/// What seldom happens to a connection.
enum Rare {
    /// Somebody used its scissors.
    Cut,
    /// The time for a first request is over.
    Late,
    /// Memory runs out, and nothing is answered here.
    Unneeded,
    /// The relay stops.
    Stopping,
}

/// What a client speaks.
#[derive(Clone, Copy)]
enum Version {
    /// HTTP/1, or nothing at all.
    One,
    /// What begins as HTTP/2 does.
    Open,
}

impl Version {
    /// Waits for the first bytes and leaves them where they are. hyper-util's own look takes them away,
    /// and then hyper reads a head in two steps and keeps a buffer of 16 KiB instead of 8 for as long as
    /// the connection lasts (measured).
    async fn of(socket: &TcpStream) -> io::Result<Self> {
        const PREFACE: &[u8] = b"PRI ";
        let mut first = [0; PREFACE.len()];
        let count = socket.peek(&mut first).await?;
        Ok(match &first[..count] {
            some if !some.is_empty() && PREFACE.starts_with(some) => Self::Open,
            _ => Self::One,
        })
    }
}

/// For clients that speak HTTP/1, and for those of whom it is still open.
struct Builders {
    one: auto::Builder<Streams>,
    open: auto::Builder<Streams>,
}

impl Builders {
    fn of(&self, version: Version) -> &auto::Builder<Streams> {
        match version {
            Version::One => &self.one,
            Version::Open => &self.open,
        }
    }
}

/// Serves one connection to its end.
async fn connection<H, F>(shared: Shared<H>, socket: TcpStream, peer: SocketAddr, _here: Here)
where
    H: Fn(Request) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    // hyper's own limit begins with the first byte, once it knows the version.
    let mut first_head = pin!(sleep(shared.limits.head));
    let Some(version) = shared.greet(&socket, first_head.as_mut(), peer).await else {
        return;
    };
    let builder = shared.builders.of(version);
    let home = Home::default();
    let socket = Deadline::new(home.lend(socket), shared.limits.stalled);
    let stalled = socket.stalled();
    let seen = Arc::new(Seen::default());
    let scissors = Scissors::default();
    let service = service_fn(|mut request: Request| {
        seen.request_came();
        let takes_over =
            request.version() == hyper::Version::HTTP_11 && request.method() == hyper::Method::GET;
        let (home, shutdown) = (home.clone(), shared.shutdown.clone());
        request.extensions_mut().insert(Peer(peer));
        request.extensions_mut().insert(scissors.clone());
        let here = Answering::new(&seen);
        let (answering, seen) = ((shared.handler)(request), Arc::clone(&seen));
        async move {
            let response = answering.await;
            drop(here);
            if exchange::is_event_stream(response.headers()) {
                seen.is_stream.store(true, Ordering::Relaxed);
                // Once the relay stops, hyper is only waited for.
                if takes_over && home.is_flushed() && !shutdown.has_begun() {
                    *seen.events.lock().expect("nothing panics while holding it") = Some(response);
                    // hyper goes, and this with it.
                    return std::future::pending().await;
                }
            }
            Ok::<_, Infallible>(response)
        }
    });
    // On its own, so that an event stream does not keep the room it takes.
    let mut serving = Box::pin(builder.serve_connection(TokioIo::new(socket), service));
    let mut waits_for_head = true;

    let result = loop {
        let next = {
            let head = waits_for_head.then_some(first_head.as_mut());
            let rare = pin!(shared.rare(&scissors, head));
            let mut rare = Seldom::new(rare);
            poll_fn(|cx| {
                if let Poll::Ready(result) = serving.as_mut().poll(cx) {
                    return Poll::Ready(Next::Ended(result));
                }
                match seen.taken_over() {
                    Some(response) => Poll::Ready(Next::Events(response)),
                    None => Pin::new(&mut rare).poll(cx).map(Next::Rare),
                }
            })
            .await
        };
        let rare = match next {
            Next::Rare(rare) => rare,
            Next::Ended(result) => break result,
            Next::Events(response) => {
                drop(serving);
                let Some(socket) = home.take() else { return };
                let events = Events::new(socket, response, shared.limits.stalled);
                return shared.tell(events, &scissors, peer).await;
            }
        };
        match rare {
            Rare::Cut => {
                // Who used them counts it. Requests that are there are answered, and no more are taken: one
                // after the other would keep what was to be cut.
                serving.as_mut().graceful_shutdown();
                tokio::select! {
                    result = serving.as_mut() => break result,
                    () = seen.last(shared.limits.last) => return,
                }
            }
            Rare::Unneeded => {
                tracing::debug!(%peer, "closed: memory is short, and nothing is answered here");
                return;
            }
            Rare::Late => {
                waits_for_head = false;
                if !seen.request.load(Ordering::Relaxed) {
                    return shared.silent(peer);
                }
            }
            Rare::Stopping => {
                tokio::select! {
                    result = serving.as_mut() => break result,
                    () = seen.first(shared.limits.newcomer) => {}
                }
                serving.as_mut().graceful_shutdown();
                tokio::select! {
                    result = serving.as_mut() => break result,
                    () = scissors.used() => return,
                }
            }
        }
    };

    if stalled.is_set() {
        shared.stalled(peer, seen.is_stream.load(Ordering::Relaxed));
    } else if let Err(error) = result {
        tracing::debug!(%peer, error, "the connection broke");
    }
}

/// Runs the exchanges of HTTP/2 connections, each in a task of its own. Each ends with its connection,
/// for which [`serve`] waits.
#[derive(Clone)]
struct Streams {
    observer: Observer,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, exchange: F) {
        let observer = Arc::clone(&self.observer);
        tokio::spawn(async move {
            if AssertUnwindSafe(exchange).catch_unwind().await.is_err() {
                tracing::error!("an exchange panicked; its stream is reset");
                observer(Incident::Panicked);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_gives_up_on_a_client_that_acknowledges_nothing() {
        let listener = listen("[::]:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        tune(&socket).unwrap();
        assert!(socket.nodelay().unwrap());
        let socket = SockRef::from(&socket);
        assert!(socket.keepalive().unwrap());
        #[cfg(target_os = "linux")]
        assert_eq!(
            socket.tcp_user_timeout().unwrap(),
            Some(Duration::from_secs(20))
        );
        drop(client);
    }

    #[test]
    fn an_error_of_one_connection_does_not_delay_the_next() {
        let about_one = |kind: io::ErrorKind| is_about_one_connection(&kind.into());
        assert!(about_one(io::ErrorKind::ConnectionAborted));
        assert!(!is_about_one_connection(&io::Error::from_raw_os_error(24)));
        assert!(!about_one(io::ErrorKind::OutOfMemory));
    }
}
