//! Awake or idle: reads for all while much is committed, and lets writers ring while little is.
//!
//! [`machine`] decides, this file does: it holds the connection with the lead and the lock, listens to
//! the doorbell, and waits. It promises that whoever calls [`Bell::next`] after each read of the log
//! reads every commit soon, whether or not its writer rang and whatever connection is lost. It does not
//! know what is read.

pub mod machine;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tracing::debug;

use crate::causes::Causes;
use crate::cursor::Xid;
use crate::metrics::{Metrics, Reason};
use crate::postgres::connect::{ConnectError, Target};
use crate::postgres::pool::notice_when_gone;
use crate::schema::migrate;
use crate::shutdown::AbortOnDrop;
use machine::{Act, Command, Event, Machine, State};
pub use machine::{Hearing, Read};

/// How often a relay stands for the lead, and says that it is alive once it has it.
const PING: Duration = Duration::from_secs(1);

/// What the session of the lead is told. A relay that hangs loses the lead and the lock after some
/// seconds, one that was killed while it waits for the lock within one. To wait for it in vain loses nothing,
/// and a limit for statements would take the lead as well.
const SETTINGS: &str = "set search_path = pg_catalog, pg_temp; set statement_timeout = 0; \
     set idle_session_timeout = '5s'; set lock_timeout = '3s'";

/// Longest wait for an answer; the lock is waited for for less. A line that has gone silent would keep its relay from
/// the lead for ever.
const SILENCE: Duration = Duration::from_secs(10);

/// The lead and the lock are both of one session, so that whoever gets the lead knows that the lock
/// of the one before is free, or is so at once. The lock's key is the one in `triggers/10_bell.sql`.
const STAND: &str =
    "select pg_try_advisory_lock(7094114, 4), (select functions from rowcast.state), false";
const ACQUIRE: &str = "select pg_advisory_lock(7094114, 3)";
const RELEASE: &str = "select pg_advisory_unlock(7094114, 3)";
const BARRIER: &str = "select pg_current_xact_id()::text";
/// Whoever rings waits in its commit for the notification queue: "database 0" among the locks.
const TELL: &str = "select true, (select functions from rowcast.state), exists (\
       select from pg_locks l join pg_stat_activity a on a.pid = l.pid \
       where l.locktype = 'object' and l.classid = 'pg_database'::regclass and l.objid = 0 \
         and not l.granted and a.datname = current_database())";

/// What the bell needs of the rest.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The server itself: a lock of a session does not pass transaction poolers.
    pub target: Target,
    /// Who is to ring.
    pub wish: migrate::Bell,
    /// A relay reads this often even if no bell rings.
    pub safety: Duration,
    /// Notified when somebody rings.
    pub rung: Arc<Notify>,
    /// To be notified so that the doorbell rings for the other relays.
    pub others: Arc<Notify>,
    /// How the doorbell is.
    pub hearing: watch::Receiver<Hearing>,
    /// Told what it does.
    pub metrics: Arc<Metrics>,
}

/// One reader's bell. Dropping it gives up the lead and the lock: nobody may hold them who does not read.
#[derive(Debug)]
pub struct Bell {
    parts: Parts,
    machine: Machine,
    line: Option<Line>,
    /// When the last read was done.
    read: Instant,
    /// When the server is told next that we are alive.
    ping: Instant,
    /// A command is on its way, and what comes after it would wait.
    asked: bool,
}

impl Bell {
    /// Begins. It is to be read at once.
    #[must_use]
    pub fn open(parts: Parts) -> Self {
        let now = Instant::now();
        let machine = Machine::new(parts.wish, parts.safety, now);
        Self {
            line: Line::open(&parts, Duration::ZERO),
            parts,
            machine,
            read: now,
            ping: now + PING,
            asked: false,
        }
    }

    /// Takes note of a read whose result is published, and returns when the next one is due.
    pub async fn next(&mut self, read: Read) {
        let took = self.read.elapsed();
        let done = Instant::now();
        let act = self.machine.read(read, done);
        self.act(act);
        loop {
            let wait = self.machine.wait(took);
            let due = done + wait.most;
            let now = Instant::now();
            if now >= self.ping {
                self.ping = now + PING;
                self.tell();
            }
            let hearing = *self.parts.hearing.borrow_and_update();
            self.machine.set_hearing(hearing);
            tokio::select! {
                biased;
                event = heard(&mut self.line) => self.take(event),
                () = self.parts.rung.notified(), if wait.bells => break,
                () = tokio::time::sleep_until(due.min(self.ping).into()) => {
                    if Instant::now() >= due {
                        break;
                    }
                }
                changed = self.parts.hearing.changed() => if changed.is_err() {
                    // The doorbell has been stopped, and so will we be.
                    tokio::time::sleep_until(due.into()).await;
                    break;
                }
            }
        }
        self.read = Instant::now();
    }

    fn take(&mut self, event: Event) {
        if !matches!(event, Event::Told { .. }) {
            self.asked = false;
        }
        if event == Event::Lost {
            self.line = Line::open(&self.parts, PING);
        }
        let act = self.machine.heard(event, Instant::now());
        self.act(act);
    }

    fn act(&mut self, act: Act) {
        if act.ring {
            self.parts.others.notify_one();
        }
        if let (Some(command), Some(line)) = (act.command, &self.line) {
            self.asked = true;
            line.ask(Request::Command(command));
        }
        let metrics = &self.parts.metrics;
        let state = self.machine.state();
        let (awake, leads) = match state {
            State::Following => (false, false),
            State::Idle => (false, true),
            State::Waking | State::Awake | State::Leaving | State::Settling(_) => (true, true),
        };
        // In this order: who leads and is not awake sleeps.
        let was = metrics.bell_awake.set(awake.into());
        metrics.bell_leader.set(leads.into());
        if was != i64::from(awake) {
            let reason = if awake { "awake" } else { "idle" };
            metrics
                .bell_switches
                .get_or_create(&Reason { reason })
                .inc();
        }
    }

    /// Says that we are alive. Called between reads only: a reader that hangs says nothing.
    fn tell(&self) {
        if let (false, Some(line)) = (self.asked, &self.line) {
            line.ask(Request::Tell);
        }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.parts.metrics.bell_leader.set(0);
        self.parts.metrics.bell_awake.set(0);
    }
}

async fn heard(line: &mut Option<Line>) -> Event {
    match line {
        Some(line) => line.events.recv().await.unwrap_or(Event::Lost),
        None => std::future::pending().await,
    }
}

#[derive(Debug)]
enum Request {
    Command(Command),
    Tell,
}

/// The connection that holds the lead and the lock. Dropping it closes it.
#[derive(Debug)]
struct Line {
    requests: mpsc::UnboundedSender<Request>,
    events: mpsc::Receiver<Event>,
    _task: AbortOnDrop<()>,
}

#[derive(Debug, thiserror::Error)]
enum LineError {
    #[error("the database cannot be reached")]
    Connect(#[from] ConnectError),
    #[error("the connection that holds the bell's lock failed")]
    Query(#[from] tokio_postgres::Error),
    #[error("the connection that holds the bell's lock did not answer within {} s", SILENCE.as_secs())]
    Silent,
    #[error("the database answered with something that is no transaction id")]
    Unexpected,
    #[error("nobody is there any more")]
    Gone,
}

impl Line {
    /// Without an adaptive bell there is nothing to lead; without any there is nothing to know.
    fn open(parts: &Parts, after: Duration) -> Option<Self> {
        let stands = match parts.wish {
            migrate::Bell::Adaptive => true,
            migrate::Bell::Always => false,
            migrate::Bell::Silent => return None,
        };
        // One command waits at most; signs of life come once a second, and none while a command is under way.
        let (requests, asked) = mpsc::unbounded_channel();
        let (events, heard) = mpsc::channel(8);
        let target = parts.target.clone();
        let task = tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let Err(error) = hold(&target, stands, asked, &events).await;
            debug!(error = %Causes(&error), "the bell has no leader here");
            let _gone = events.send(Event::Lost).await;
        });
        Some(Self {
            requests,
            events: heard,
            _task: AbortOnDrop(task),
        })
    }

    fn ask(&self, request: Request) {
        // A line that has ended says so by itself.
        let _ended = self.requests.send(request);
    }
}

/// Stands for the lead until it has it, and then does what is asked for. Returns with the reason why
/// it cannot.
async fn hold(
    target: &Target,
    stands: bool,
    mut asked: mpsc::UnboundedReceiver<Request>,
    events: &mpsc::Sender<Event>,
) -> Result<std::convert::Infallible, LineError> {
    let (client, connection) = target.connect("rowcast bell").await?;
    // With the task: a client that is dropped waits for an answer that is still to come.
    let _driver = AbortOnDrop(tokio::spawn(async move {
        let _reported_by_the_client = connection.await;
    }));
    in_time(async {
        notice_when_gone(&client).await;
        client.batch_execute(SETTINGS).await
    })
    .await?;
    loop {
        let sql = if stands { STAND } else { TELL };
        if tell(&client, sql, events).await? && stands {
            break;
        }
        // Nobody asks anything of who does not lead.
        tokio::time::sleep(PING).await;
        while asked.try_recv().is_ok() {}
    }
    send(events, Event::Elected).await?;
    loop {
        let event = match asked.recv().await.ok_or(LineError::Gone)? {
            Request::Tell => {
                tell(&client, TELL, events).await?;
                continue;
            }
            Request::Command(Command::Acquire) => match in_time(client.query(ACQUIRE, &[])).await {
                Ok(_) => Event::Granted,
                Err(LineError::Query(error))
                    if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) =>
                {
                    Event::Withdrawn
                }
                Err(error) => return Err(error),
            },
            Request::Command(Command::Release) => {
                in_time(client.query(RELEASE, &[])).await?;
                Event::Released(barrier(&client).await?)
            }
            Request::Command(Command::Barrier) => Event::Released(barrier(&client).await?),
        };
        send(events, event).await?;
    }
}

/// Asks who rings and whether they wait for each other; returns the first column.
async fn tell(client: &Client, sql: &str, events: &mpsc::Sender<Event>) -> Result<bool, LineError> {
    let row = in_time(client.query_one(sql, &[])).await?;
    let bell = migrate::Bell::of(row.try_get(1)?);
    let jammed = row.try_get(2)?;
    send(events, Event::Told { bell, jammed }).await?;
    Ok(row.try_get(0)?)
}

/// A transaction id of a transaction of its own.
async fn barrier(client: &Client) -> Result<Xid, LineError> {
    let row = in_time(client.query_one(BARRIER, &[])).await?;
    let text: &str = row.try_get(0)?;
    text.parse().map_err(|_| LineError::Unexpected)
}

async fn in_time<T>(
    asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, LineError> {
    let asked = tokio::time::timeout(SILENCE, asked).await;
    Ok(asked.map_err(|_elapsed| LineError::Silent)??)
}

async fn send(events: &mpsc::Sender<Event>, event: Event) -> Result<(), LineError> {
    events.send(event).await.map_err(|_| LineError::Gone)
}
