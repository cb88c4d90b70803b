//! Many screens, read as cheaply as the kernel allows.
//!
//! A few threads, each with its own part of the sockets and one buffer for all of them. No task, no
//! timer and no allocation for an event: what reads must cost much less than what it measures. It
//! knows nothing of the relay but how its streams look, so other servers can be read with it too.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::histogram::Histogram;
use super::tally::{Outcome, Tally};
use super::wire::{End, Mark, Wire};

/// Connections that a screen's request is under way on, at most: half of a usual listen queue, so
/// that no handshake is dropped and repeated a second later.
const UNDER_WAY: u64 = 2_000;
/// Screens that wait for a state which the relay has to read for each of them, at most: who waits for
/// a connection to the database for two seconds is sent away, and that is not what is measured.
const OWN_STATES: u64 = 200;
/// How often a thread looks at the signals of who started it.
const LOOK: Duration = Duration::from_millis(20);
/// Read at once; a socket that has more is read again.
const BUFFER: usize = 256 * 1024;
/// Parts of a run that are looked at separately.
pub const SLOTS: usize = 60;

/// Microseconds since it was started: one clock for all threads, which nobody sets.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Default for Clock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock {
    /// Now.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.of(Instant::now())
    }

    /// Of another moment after its start.
    #[must_use]
    pub fn of(&self, moment: Instant) -> u64 {
        let since = moment.saturating_duration_since(self.0);
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }
}

/// What is to be opened.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where.
    pub address: SocketAddr,
    /// The request of each view.
    pub requests: Vec<Arc<[u8]>>,
    /// The view of each screen.
    pub screens: Vec<usize>,
    /// Threads that read.
    pub threads: usize,
    /// A screen is ready when it has its state; without states, when its response has begun.
    pub states: bool,
    /// In a view, change `n` and change `n + rows` are of the same row.
    pub rows: u64,
    /// Of `sent` in the rows.
    pub clock: Clock,
    /// How long rows are sent, to tell [`SLOTS`] parts of that time apart.
    pub lasts: Duration,
}

/// What the threads say while they run.
#[derive(Debug, Default)]
struct Shared {
    opened: AtomicU64,
    ready: AtomicU64,
    delivered: AtomicU64,
    /// Screens whose stream ended, or never began.
    closed: AtomicU64,
    bytes: AtomicU64,
    under_way: AtomicU64,
    /// Microseconds of the clock; rows that were sent earlier are not measured.
    begun: AtomicU64,
    /// When the last screen became ready.
    ready_at: AtomicU64,
    stop: AtomicBool,
    /// Why the first screen was closed. A standard mutex, held to set it.
    reason: Mutex<Option<String>>,
}

/// What was seen of all screens.
#[derive(Clone, Default)]
pub struct Seen {
    /// Changes that arrived.
    pub delivered: u64,
    /// From `sent` to the screen.
    pub latency: Histogram,
    /// The same by the time they were sent.
    pub slots: Vec<Histogram>,
    /// From the first byte of the connection to a complete state.
    pub connect: Histogram,
    /// What came of the numbers.
    pub outcome: Outcome,
    /// Threads' own processor time is most of what the reading costs.
    pub closed: u64,
}

/// Open screens. Dropping it closes them.
pub struct Screens {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Vec<Part>>>,
    wanted: u64,
    rows: u64,
}

/// What one thread has seen.
struct Part {
    seen: Seen,
    /// View and numbers of each screen.
    tallies: Vec<(usize, Tally)>,
}

impl Screens {
    /// Begins to open them, each thread its part.
    ///
    /// # Errors
    /// When the system gives no more threads or descriptors.
    pub fn open(plan: &Plan) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let threads = plan.threads.clamp(1, plan.screens.len().max(1));
        let mut screens = Self {
            shared: Arc::clone(&shared),
            threads: Vec::new(),
            wanted: plan.screens.len() as u64,
            rows: plan.rows,
        };
        for number in 0..threads {
            let mine = plan.screens.iter().skip(number).step_by(threads);
            let reader = Reader::new(plan.clone(), mine.copied().collect(), Arc::clone(&shared))?;
            let thread = std::thread::Builder::new().name(format!("screens {number}"));
            screens
                .threads
                .push(thread.spawn(move || vec![reader.run()])?);
        }
        Ok(screens)
    }

    /// Screens that have their state.
    #[must_use]
    pub fn ready(&self) -> u64 {
        self.shared.ready.load(Ordering::Relaxed)
    }

    /// Whether all of them have.
    #[must_use]
    pub fn all_ready(&self) -> bool {
        self.ready() == self.wanted
    }

    /// When the latest one became ready, in microseconds of the clock.
    #[must_use]
    pub fn ready_at(&self) -> u64 {
        self.shared.ready_at.load(Ordering::Relaxed)
    }

    /// Changes that have arrived so far.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.shared.delivered.load(Ordering::Relaxed)
    }

    /// Bytes that have arrived so far, states and heartbeats included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Screens whose stream has ended, and why the first one's did.
    #[must_use]
    pub fn closed(&self) -> (u64, Option<String>) {
        let reason = self.shared.reason.lock();
        let reason = reason.unwrap_or_else(PoisonError::into_inner).clone();
        (self.shared.closed.load(Ordering::Relaxed), reason)
    }

    /// Rows sent from now on, in microseconds of the clock, are measured.
    pub fn begin(&self, now: u64) {
        self.shared.begun.store(now, Ordering::Relaxed);
    }

    /// Closes all and tells what was seen; `committed` is how many changes each view had.
    ///
    /// # Panics
    /// When a thread that reads did.
    #[must_use]
    pub fn finish(mut self, committed: &[u64]) -> Seen {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut seen = Seen {
            slots: vec![Histogram::default(); SLOTS],
            ..Seen::default()
        };
        for thread in self.threads.drain(..) {
            for part in thread.join().expect("a reader does not panic") {
                seen.delivered += part.seen.delivered;
                seen.latency.add(&part.seen.latency);
                seen.connect.add(&part.seen.connect);
                for (mine, theirs) in seen.slots.iter_mut().zip(&part.seen.slots) {
                    mine.add(theirs);
                }
                for (view, tally) in &part.tallies {
                    let committed = committed.get(*view).copied().unwrap_or_default();
                    seen.outcome.add(&tally.outcome(committed, self.rows));
                }
            }
        }
        seen.closed = self.shared.closed.load(Ordering::Relaxed);
        seen
    }
}

impl Drop for Screens {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

/// One screen.
struct Screen {
    /// `None` before it is opened and after it was closed.
    socket: Option<TcpStream>,
    wire: Wire,
    tally: Tally,
    view: usize,
    opened: u64,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    /// The request was sent.
    Asked,
    /// The response has begun.
    Answered,
    Ready,
}

/// One thread's screens.
struct Reader {
    poll: Poll,
    plan: Plan,
    shared: Arc<Shared>,
    screens: Vec<Screen>,
    /// How many of them were opened.
    opened: usize,
    seen: Seen,
}

impl Reader {
    fn new(plan: Plan, views: Vec<usize>, shared: Arc<Shared>) -> io::Result<Self> {
        let screens = views.into_iter().map(|view| Screen {
            socket: None,
            wire: Wire::default(),
            tally: Tally::new(plan.states),
            view,
            opened: 0,
            phase: Phase::Connecting,
        });
        Ok(Self {
            poll: Poll::new()?,
            screens: screens.collect(),
            plan,
            shared,
            opened: 0,
            seen: Seen {
                slots: vec![Histogram::default(); SLOTS],
                ..Seen::default()
            },
        })
    }

    fn run(mut self) -> Part {
        let mut events = Events::with_capacity(1024);
        let mut buffer = vec![0; BUFFER];
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.open_more();
            if let Err(error) = self.poll.poll(&mut events, Some(LOOK))
                && error.kind() != io::ErrorKind::Interrupted
            {
                self.shared.because(format!("waiting failed: {error}"));
                break;
            }
            let (mut fresh, mut bytes) = (0, 0);
            for event in &events {
                let at = event.token().0;
                if event.is_writable() && self.screens[at].phase == Phase::Connecting {
                    self.ask(at);
                }
                if event.is_readable() || event.is_read_closed() {
                    let read = self.read(at, &mut buffer);
                    fresh += read.0;
                    bytes += read.1;
                }
            }
            if bytes > 0 {
                self.shared.delivered.fetch_add(fresh, Ordering::Relaxed);
                self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
            }
        }
        let tallies = self.screens.into_iter();
        Part {
            seen: self.seen,
            tallies: tallies.map(|screen| (screen.view, screen.tally)).collect(),
        }
    }

    fn open_more(&mut self) {
        while self.opened < self.screens.len() && self.may_open() {
            let at = self.opened;
            self.opened += 1;
            self.shared.opened.fetch_add(1, Ordering::Relaxed);
            self.shared.under_way.fetch_add(1, Ordering::Relaxed);
            self.screens[at].opened = self.plan.clock.now();
            let connecting = TcpStream::connect(self.plan.address).and_then(|mut socket| {
                let interest = Interest::READABLE | Interest::WRITABLE;
                self.poll
                    .registry()
                    .register(&mut socket, Token(at), interest)?;
                Ok(socket)
            });
            match connecting {
                Ok(socket) => self.screens[at].socket = Some(socket),
                Err(error) => self.close(at, format!("cannot connect: {error}")),
            }
        }
    }

    fn may_open(&self) -> bool {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Shared {
            opened,
            ready,
            closed,
            under_way,
            ..
        } = &*self.shared;
        let waiting = of(opened).saturating_sub(of(ready) + of(closed));
        let views = self.plan.requests.len() as u64;
        of(under_way) < UNDER_WAY && (views <= OWN_STATES || waiting < OWN_STATES)
    }

    /// Sends a screen's request once it is connected.
    fn ask(&mut self, at: usize) {
        let screen = &mut self.screens[at];
        let Some(socket) = &mut screen.socket else {
            return;
        };
        let connected = match socket.take_error() {
            Ok(None) => Ok(()),
            Ok(Some(error)) | Err(error) => Err(error),
        };
        let request = &self.plan.requests[screen.view];
        // A socket that has never been written to takes a head at once.
        let sent = connected.and_then(|()| socket.write_all(request));
        match sent {
            Ok(()) => screen.phase = Phase::Asked,
            Err(error) => self.close(at, format!("cannot connect: {error}")),
        }
    }

    /// Reads what a screen's socket holds; returns new changes and bytes.
    fn read(&mut self, at: usize, buffer: &mut [u8]) -> (u64, u64) {
        let (mut fresh, mut bytes) = (0, 0);
        while let Some(socket) = &mut self.screens[at].socket {
            match socket.read(buffer) {
                Ok(0) => self.close(at, "the connection was closed".to_owned()),
                Ok(count) => {
                    bytes += count as u64;
                    fresh += self.take(at, &buffer[..count]);
                    if count < buffer.len() {
                        // Drained: the next bytes will be told as an event of their own.
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.close(at, format!("the connection broke: {error}")),
            }
        }
        (fresh, bytes)
    }

    /// Counts what the bytes say.
    fn take(&mut self, at: usize, bytes: &[u8]) -> u64 {
        let now = self.plan.clock.now();
        let begun = self.shared.begun.load(Ordering::Relaxed);
        let lasts = u64::try_from(self.plan.lasts.as_micros()).unwrap_or(u64::MAX);
        let slot = (lasts / SLOTS as u64).max(1);
        let screen = &mut self.screens[at];
        let (tally, seen, phase) = (&mut screen.tally, &mut self.seen, &mut screen.phase);
        let states = self.plan.states;
        let (mut fresh, mut answered, mut ready) = (0, false, false);
        let read = screen.wire.push(bytes, |mark| match mark {
            Mark::Head => {
                answered = true;
                ready = !states;
                *phase = Phase::Answered;
            }
            Mark::Row { number, sent } => {
                if tally.row(number) {
                    fresh += 1;
                    if sent >= begun {
                        let took = now.saturating_sub(sent);
                        seen.latency.record(took);
                        let at = usize::try_from((sent - begun) / slot).unwrap_or(SLOTS);
                        seen.slots[at.min(SLOTS - 1)].record(took);
                    }
                }
            }
            Mark::Reset => tally.reset(),
            Mark::SnapshotEnd => {
                tally.snapshot_end();
                ready = *phase != Phase::Ready;
            }
        });
        self.seen.delivered += fresh;
        if answered {
            self.shared.under_way.fetch_sub(1, Ordering::Relaxed);
        }
        if ready {
            screen.phase = Phase::Ready;
            self.seen.connect.record(now - screen.opened);
            self.shared.ready.fetch_add(1, Ordering::Relaxed);
            self.shared.ready_at.fetch_max(now, Ordering::Relaxed);
        }
        match read {
            Ok(()) => {}
            Err(End::Over) => self.close(at, "the stream ended".to_owned()),
            Err(End::Refused(reason)) => self.close(at, reason),
        }
        fresh
    }

    fn close(&mut self, at: usize, why: String) {
        let screen = &mut self.screens[at];
        if matches!(screen.phase, Phase::Connecting | Phase::Asked) {
            self.shared.under_way.fetch_sub(1, Ordering::Relaxed);
        }
        screen.socket = None;
        self.shared.closed.fetch_add(1, Ordering::Relaxed);
        self.shared.because(why);
    }
}

impl Shared {
    fn because(&self, why: String) {
        let mut reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        reason.get_or_insert(why);
    }
}
