//! LISTEN: "look again", without data.
//!
//! Notices only that something was committed. Equal notices inside one transaction arrive once, and
//! none arrive while we are away; the log makes up for both, so nothing here may be trusted to
//! count. Bare NOTIFYs on channels that somebody subscribes to are handed on as they come.
//!
//! The connection is its own, never pooled and never inside a transaction block: a listener that
//! sits in one holds up the notification queue of the whole cluster.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::poll_fn;
use tokio::sync::{Notify, mpsc, watch};
use tokio_postgres::{AsyncMessage, Client, Notification};
use tracing::{debug, info, warn};

use crate::backoff::Backoff;
use crate::bell::Hearing;
use crate::causes::Causes;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::postgres::connect::{ConnectError, Connection, Target};
use crate::postgres::pool::notice_when_gone;
use crate::postgres::pooler::{PoolerError, Suspicion};
use crate::postgres::quote;
use crate::schema::reload::Word;
use crate::shutdown::{AbortOnDrop, Shutdown};

/// The channel of the bell.
pub const CHANNEL: &str = "rowcast";
/// The channel on which people and event triggers say that definitions changed; the dialect's own.
pub const DEFINITIONS: &str = "pgrst";
/// A silent connection is proved alive this often, by a notification to itself.
const CANARY: Duration = Duration::from_secs(5);
/// How long the proof may take, and each answer of the server.
const CANARY_DEADLINE: Duration = Duration::from_secs(5);
/// What we notify is nothing that could be lost, and whoever notifies waits for whoever did before: with a standby that
/// is slow to answer, or gone, each of our notifications would hold up the writers that ring.
const SETTINGS: &str = "set synchronous_commit = off";
/// Channels that are named in one statement. Thousands come back at once to a listener that was lost, and each alone
/// would wait for an answer of its own, all of them for longer than the proof that the connection is alive may take.
const AT_ONCE: usize = 250;
/// Notifications waiting to be handed on. Bare NOTIFYs beyond it are dropped: they are live only,
/// and a listener that stops reading would hold up the whole cluster.
const WAITING: usize = 1024;

/// Hands on a bare NOTIFY: channel and payload.
pub type OnNotify = Arc<dyn Fn(&str, &str) + Send + Sync>;

/// The listener.
pub struct Doorbell {
    /// Where to listen. Must be the server itself: LISTEN does not pass transaction poolers.
    pub target: Target,
    /// Rung for every notice.
    pub bell: Arc<Notify>,
    /// Notified when the other relays are to be rung for.
    pub others: Arc<Notify>,
    /// Told whether bells are heard, and how full their queue is.
    pub hearing: watch::Sender<Hearing>,
    /// Told when somebody says that definitions changed, or may have said so.
    pub definitions: Arc<Word>,
    /// Channels to listen on besides.
    pub wanted: watch::Receiver<BTreeSet<String>>,
    /// Channels listened on.
    pub listening: watch::Sender<BTreeSet<String>>,
    /// Receives bare NOTIFYs.
    pub on_notify: OnNotify,
    /// Told whether the connection is up.
    pub health: Arc<Health>,
    /// Told what it does.
    pub metrics: Arc<Metrics>,
}

#[derive(Debug, thiserror::Error)]
enum DoorbellError {
    #[error("the database cannot be reached")]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Pooler(#[from] PoolerError),
    #[error("the listening connection failed")]
    Query(#[from] tokio_postgres::Error),
    #[error("the listening connection was closed")]
    Closed(#[source] Option<tokio_postgres::Error>),
    #[error(
        "the listening connection did not answer, or a notification to ourselves did not come back, within {} s",
        CANARY_DEADLINE.as_secs()
    )]
    Silent,
}

impl Doorbell {
    /// Listens until the stop signal.
    pub async fn run(mut self, shutdown: Shutdown) {
        let mut backoff = Backoff::new();
        let mut suspicion = Suspicion::default();
        loop {
            let error = tokio::select! {
                () = async { shutdown.begun().await; } => return,
                Err(error) = self.session(&mut backoff, &mut suspicion) => error,
            };
            self.health.set_listener(false);
            self.hearing
                .send_modify(|hearing| hearing.listening = false);
            self.metrics.listener_connected.set(0);
            self.metrics.listener_reconnects.inc();
            self.listening.send_replace(BTreeSet::new());
            suspicion.hear(&error);
            if matches!(error, DoorbellError::Silent) {
                suspicion.raise();
            }
            let is_pooled = matches!(error, DoorbellError::Pooler(PoolerError::Mixes(_)));
            let error = Causes(&error).to_string();
            self.health
                .refuse("doorbell", is_pooled.then(|| error.clone()));
            if backoff.is_news(&error) {
                warn!(error, "the doorbell is silent");
            } else {
                debug!(error, "the doorbell is still silent");
            }
            tokio::time::sleep(backoff.delay()).await;
        }
    }

    async fn session(
        &mut self,
        backoff: &mut Backoff,
        suspicion: &mut Suspicion,
    ) -> Result<std::convert::Infallible, DoorbellError> {
        suspicion.settle(&self.target).await?;
        let (client, connection) = self.target.connect("rowcast doorbell").await?;
        let (notices, mut incoming) = mpsc::channel(WAITING);
        let mut reader = AbortOnDrop(tokio::spawn(read(connection, notices)));
        let begun = in_time(async {
            notice_when_gone(&client).await;
            client
                .batch_execute(&format!(
                    "{SETTINGS}; listen {}; listen {}",
                    quote::identifier(CHANNEL),
                    quote::identifier(DEFINITIONS)
                ))
                .await?;
            client.query_one("select pg_backend_pid()", &[]).await
        });
        let own = begun.await?.get::<_, i32>(0);
        self.health.refuse("doorbell", None);
        self.health.set_listener(true);
        self.hearing.send_modify(|hearing| hearing.listening = true);
        self.metrics.listener_connected.set(1);
        info!("listening");
        // Whatever was committed while nobody listened.
        self.bell.notify_one();
        self.definitions.missed();
        self.wanted.mark_changed();
        let mut canary = tokio::time::interval(CANARY);
        let mut silent_since = None::<tokio::time::Instant>;
        loop {
            let deadline = silent_since.map(|since| since + CANARY_DEADLINE);
            tokio::select! {
                notice = incoming.recv() => {
                    let Some(notice) = notice else {
                        let reason = (&mut reader.0).await;
                        return Err(DoorbellError::Closed(reason.ok().flatten()));
                    };
                    silent_since = None;
                    backoff.reset();
                    match notice.channel() {
                        // Our own, or another relay's canary: nothing was committed.
                        CHANNEL if notice.process_id() == own || is_canary(notice.payload()) => {}
                        CHANNEL => self.bell.notify_one(),
                        channel => {
                            // Without a payload the dialect means definitions and settings.
                            if channel == DEFINITIONS
                                && matches!(notice.payload(), "" | "reload schema")
                            {
                                self.definitions.changed();
                            }
                            (self.on_notify)(channel, notice.payload());
                        }
                    }
                }
                changed = self.wanted.changed() => {
                    changed.map_err(|_| DoorbellError::Closed(None))?;
                    self.listen(&client).await?;
                }
                _tick = canary.tick() => {
                    silent_since.get_or_insert_with(tokio::time::Instant::now);
                    in_time(self.sing(&client, own)).await?;
                }
                () = self.others.notified() => {
                    in_time(ring(&client)).await?;
                }
                () = tokio::time::sleep_until(deadline.unwrap_or_else(|| tokio::time::Instant::now() + CANARY)),
                    if deadline.is_some() => return Err(DoorbellError::Silent),
            }
        }
    }

    /// Listens on what is wanted and no longer on what is not.
    async fn listen(&mut self, client: &Client) -> Result<(), DoorbellError> {
        let (come, gone) = {
            let (wanted, listening) = (self.wanted.borrow_and_update(), self.listening.borrow());
            let come: Vec<String> = wanted.difference(&listening).cloned().collect();
            let gone: Vec<String> = listening.difference(&wanted).cloned().collect();
            (come, gone)
        };
        let say = |word, channel: &String| format!("{word} {}", quote::identifier(channel));
        let listen = come.iter().map(|channel| say("listen", channel));
        let unlisten = gone.iter().filter(|channel| *channel != DEFINITIONS);
        let unlisten = unlisten.map(|channel| say("unlisten", channel));
        let statements: Vec<String> = listen.chain(unlisten).collect();
        for some in statements.chunks(AT_ONCE) {
            in_time(client.batch_execute(&some.join("; "))).await?;
        }
        self.listening.send_modify(|listening| {
            for channel in &gone {
                listening.remove(channel);
            }
            listening.extend(come);
        });
        Ok(())
    }

    /// Notifies ourselves. Asking for the queue's usage also moves its tail, which cures a queue
    /// that stays full after the listener that filled it is gone (measured).
    async fn sing(&self, client: &Client, own: i32) -> Result<(), tokio_postgres::Error> {
        let sql = "select pg_notification_queue_usage(), pg_notify($1, $2)";
        let row = client.query_one(sql, &[&CHANNEL, &own.to_string()]).await?;
        let usage: f64 = row.get(0);
        self.metrics.notify_queue_usage.set(usage);
        self.hearing.send_modify(|hearing| hearing.queue = usage);
        if usage > 0.01 {
            warn!(
                usage,
                "the notification queue fills: some session LISTENs inside a transaction or does not read"
            );
        }
        Ok(())
    }
}

/// While we wait for an answer nobody looks after the canary, so each is to come in time.
async fn in_time<T>(
    asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, DoorbellError> {
    let asked = tokio::time::timeout(CANARY_DEADLINE, asked).await;
    Ok(asked.map_err(|_elapsed| DoorbellError::Silent)??)
}

/// Rings for the other relays.
async fn ring(client: &Client) -> Result<(), tokio_postgres::Error> {
    client
        .batch_execute(&format!("notify {}", quote::identifier(CHANNEL)))
        .await
}

/// A relay's notification to itself has the number of its session for a payload, a bell has none.
fn is_canary(payload: &str) -> bool {
    !payload.is_empty() && payload.bytes().all(|byte| byte.is_ascii_digit())
}

/// Drives the connection and hands its notifications on. It never waits for who takes them. Returns what the
/// server said when it ended the connection.
async fn read(
    mut connection: Connection,
    notices: mpsc::Sender<Notification>,
) -> Option<tokio_postgres::Error> {
    // One line a second: anybody may flood a channel, and the log is not to be flooded with it.
    let (mut cut, mut told) = (0_u64, None::<tokio::time::Instant>);
    loop {
        match poll_fn(|context| connection.poll_message(context)).await {
            Some(Ok(AsyncMessage::Notification(notice))) => match notices.try_send(notice) {
                Ok(()) => {}
                // Full: the bell among those that wait will be heard, and notes are live only.
                Err(mpsc::error::TrySendError::Full(_)) => {
                    cut += 1;
                    if told.is_none_or(|told| told.elapsed() >= Duration::from_secs(1)) {
                        warn!(cut, "a burst of notifications was cut");
                        told = Some(tokio::time::Instant::now());
                    }
                }
                Err(mpsc::error::TrySendError::Closed(_)) => return None,
            },
            Some(Ok(_)) => {}
            Some(Err(error)) => return Some(error),
            None => return None,
        }
    }
}
