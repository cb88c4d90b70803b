//! A TCP relay that misbehaves on demand: the fault proxy.
//!
//! A [`Link`] listens on a free port of the loopback interface and carries every connection to one
//! place. What it does to the bytes of each direction is told by its [`Trouble`], which can be
//! changed at any time and holds for connections that are open already. It knows nothing of what
//! it carries.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

/// Bytes of one piece.
const PIECE: usize = 16 * 1024;
/// Pieces on the way: what a delayed direction may hold.
const ON_THE_WAY: usize = 64;

/// Where a link leads.
#[derive(Debug, Clone)]
pub enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
    /// Nobody is there: connections are refused.
    Nowhere,
}

/// What happens to the bytes of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Way {
    /// Each piece arrives that much later.
    pub delay: Duration,
    /// Bytes stay where they are until the trouble is over: packets are dropped, and sent again.
    pub stalled: bool,
    /// Bytes vanish, and so does the end of the connection: half-open. A direction that lost bytes is
    /// silent also afterwards, for what follows a hole is no stream; nobody is told.
    pub swallowed: bool,
    /// The same from the first piece on that holds this.
    pub swallowed_from: Option<&'static str>,
    /// At most that many bytes in one piece; 0 for no limit.
    pub slice: usize,
    /// Bytes a second; 0 for no limit.
    pub rate: usize,
}

/// What a link does.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Trouble {
    /// From whoever connected.
    pub up: Way,
    /// To whoever connected.
    pub down: Way,
    /// New connections are closed at once.
    pub refuses: bool,
    /// Counts cuts: when it changes every connection is cut, at half of its next piece if one is
    /// on the way, and at once otherwise.
    pub cuts: u64,
}

/// What a link did.
#[derive(Debug, Default)]
pub struct Done {
    pub connections: AtomicU64,
    pub refused: AtomicU64,
    pub cut: AtomicU64,
    pub swallowed_bytes: AtomicU64,
    pub delayed: AtomicU64,
    pub stalls: AtomicU64,
    pub slices: AtomicU64,
}

/// A listening port and where it leads.
#[derive(Debug)]
pub struct Link {
    pub address: SocketAddr,
    pub done: Arc<Done>,
    place: Arc<Mutex<Place>>,
    trouble: watch::Sender<Trouble>,
    _tasks: JoinSet<()>,
}

impl Link {
    pub async fn open(place: Place) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let place = Arc::new(Mutex::new(place));
        let (trouble, troubles) = watch::channel(Trouble::default());
        let done = Arc::new(Done::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(
            listener,
            Arc::clone(&place),
            troubles,
            Arc::clone(&done),
        ));
        Self {
            address,
            done,
            place,
            trouble,
            _tasks: tasks,
        }
    }

    /// Where it leads, to be changed by whoever learns it.
    pub fn place(&self) -> Arc<Mutex<Place>> {
        Arc::clone(&self.place)
    }

    /// New connections go there.
    pub fn leads_to(&self, place: Place) {
        *self.place.lock().unwrap() = place;
    }

    /// Misbehaves like this from now on.
    pub fn misbehave(&self, trouble: Trouble) {
        self.trouble.send_modify(|now| {
            *now = Trouble {
                cuts: now.cuts,
                ..trouble
            };
        });
    }

    /// Behaves from now on.
    pub fn heal(&self) {
        self.misbehave(Trouble::default());
    }

    /// Cuts every connection, in the middle of a piece where one is on its way.
    pub fn cut(&self) {
        self.trouble.send_modify(|now| now.cuts += 1);
    }
}

/// The near end or the far end.
type Reading = Box<dyn AsyncRead + Send + Unpin>;
type Writing = Box<dyn AsyncWrite + Send + Unpin>;

async fn accept(
    listener: TcpListener,
    place: Arc<Mutex<Place>>,
    troubles: watch::Receiver<Trouble>,
    done: Arc<Done>,
) {
    let mut carried = JoinSet::new();
    loop {
        let near = tokio::select! {
            near = listener.accept() => near,
            Some(_) = carried.join_next() => continue,
        };
        let Ok((near, _)) = near else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        let (place, troubles) = (place.lock().unwrap().clone(), troubles.clone());
        let done = Arc::clone(&done);
        carried.spawn(async move {
            if troubles.borrow().refuses {
                done.refused.fetch_add(1, Ordering::Relaxed);
                return;
            }
            carry(near, place, troubles, done).await;
        });
    }
}

async fn carry(near: TcpStream, place: Place, troubles: watch::Receiver<Trouble>, done: Arc<Done>) {
    let _no_delay = near.set_nodelay(true);
    let (far_reads, far_writes): (Reading, Writing) = match place {
        Place::Nowhere => return,
        Place::Tcp(address) => {
            let Ok(far) = TcpStream::connect(address).await else {
                return;
            };
            let _no_delay = far.set_nodelay(true);
            let (reads, writes) = far.into_split();
            (Box::new(reads), Box::new(writes))
        }
        Place::Unix(path) => {
            let Ok(far) = UnixStream::connect(path).await else {
                return;
            };
            let (reads, writes) = far.into_split();
            (Box::new(reads), Box::new(writes))
        }
    };
    done.connections.fetch_add(1, Ordering::Relaxed);
    let (near_reads, near_writes) = near.into_split();
    let up = pump(
        Box::new(near_reads),
        far_writes,
        |trouble| trouble.up,
        troubles.clone(),
        &done,
    );
    let down = pump(
        far_reads,
        Box::new(near_writes),
        |trouble| trouble.down,
        troubles.clone(),
        &done,
    );
    // A cut ends both directions; an end in order is one direction's own affair.
    tokio::select! {
        biased;
        () = async { tokio::join!(up, down); } => {}
        () = was_cut(troubles) => { done.cut.fetch_add(1, Ordering::Relaxed); }
    }
}

/// Ends a moment after the link was cut, so that half of a piece can still be written.
async fn was_cut(mut troubles: watch::Receiver<Trouble>) {
    let cuts = troubles.borrow().cuts;
    if troubles.wait_for(|now| now.cuts != cuts).await.is_err() {
        std::future::pending::<()>().await;
    }
    sleep(Duration::from_millis(30)).await;
}

async fn pump(
    mut from: Reading,
    mut to: Writing,
    way: fn(&Trouble) -> Way,
    mut troubles: watch::Receiver<Trouble>,
    done: &Done,
) {
    let cuts = troubles.borrow().cuts;
    let (sender, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(ON_THE_WAY);
    let mut watching = troubles.clone();
    let reads = async move {
        let mut lost = false;
        loop {
            let mut buffer = vec![0; PIECE];
            let read = from.read(&mut buffer).await.unwrap_or(0);
            let now = way(&troubles.borrow_and_update());
            let begins = now.swallowed_from.is_some_and(|text| {
                let mut windows = buffer[..read].windows(text.len());
                windows.any(|window| window == text.as_bytes())
            });
            if now.swallowed || begins {
                done.swallowed_bytes
                    .fetch_add(read as u64, Ordering::Relaxed);
                lost = true;
                if read > 0 {
                    continue;
                }
            }
            if lost {
                if read > 0 {
                    continue;
                }
                let _healed = troubles.wait_for(|now| !way(now).swallowed).await;
                return;
            }
            if read == 0 {
                return;
            }
            if now.delay > Duration::ZERO {
                done.delayed.fetch_add(1, Ordering::Relaxed);
            }
            buffer.truncate(read);
            if sender
                .send((Instant::now() + now.delay, buffer))
                .await
                .is_err()
            {
                return;
            }
        }
    };
    let writes = async move {
        while let Some((due, piece)) = pieces.recv().await {
            sleep_until(due).await;
            let mut rest = &piece[..];
            while !rest.is_empty() {
                let now = way(&watching.borrow_and_update());
                if now.stalled {
                    done.stalls.fetch_add(1, Ordering::Relaxed);
                    let moves = watching.wait_for(|now| !way(now).stalled || now.cuts != cuts);
                    if moves.await.is_err() {
                        return;
                    }
                }
                let is_cut = watching.borrow().cuts != cuts;
                let most = if now.slice == 0 {
                    rest.len()
                } else {
                    now.slice
                };
                let most = if is_cut { rest.len() / 2 } else { most };
                let (first, later) = rest.split_at(most.min(rest.len()));
                if to.write_all(first).await.is_err() || is_cut {
                    return;
                }
                if now.slice != 0 {
                    done.slices.fetch_add(1, Ordering::Relaxed);
                    sleep(Duration::from_millis(1)).await;
                }
                if let Some(micros) = (first.len() * 1_000_000).checked_div(now.rate) {
                    done.delayed.fetch_add(1, Ordering::Relaxed);
                    sleep(Duration::from_micros(micros as u64)).await;
                }
                rest = later;
            }
        }
        let _closed = to.shutdown().await;
    };
    tokio::join!(reads, writes);
}
