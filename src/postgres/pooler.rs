//! Whether a transaction pooler stands between us and the server.
//!
//! Such a pooler gives a session another server connection for each transaction: what belongs to a
//! session (LISTEN, settings, advisory locks) is set on one and missed on the next, and
//! notifications are dropped, all without an error. So it is found out by what it breaks. It does not
//! know what the connection is for.

use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, SimpleQueryMessage};

use super::connect::{ConnectError, Connection, Target};
use crate::shutdown::AbortOnDrop;

/// How long a notification may take to come. Also where there is no pooler it needs the server's
/// attention, and a loaded one is slow.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest wait for everything: the server takes up to [`PATIENCE`] to notify, and the notification to come.
const SILENCE: Duration = Duration::from_secs(15);

/// That there is one, or why it could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum PoolerError {
    /// There is one: what gave it away.
    #[error(
        "a transaction pooler stands in front of the database, and mixes sessions (found: {0}; \
         try: the server's own address, or a pool in session mode)"
    )]
    Mixes(String),
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection was lost.
    #[error("the database could not be asked whether a pooler is in front of it")]
    Query(#[from] tokio_postgres::Error),
    /// The connection has gone silent.
    #[error("the database did not tell within {} s whether a pooler is in front of it", SILENCE.as_secs())]
    Silent,
}

/// Whether sessions may be mixed, for whoever connects again and again: a pooler that kept them whole when we began may
/// not any more.
#[derive(Debug, Default)]
pub struct Suspicion(bool);

impl Suspicion {
    /// Looks at an error: it raises the suspicion if a statement was prepared in another session than it was asked for in.
    pub fn hear(&mut self, error: &(dyn std::error::Error + 'static)) {
        let codes = [
            SqlState::INVALID_SQL_STATEMENT_NAME,
            SqlState::DUPLICATE_PSTATEMENT,
            SqlState::PROTOCOL_VIOLATION,
        ];
        self.0 |= std::iter::successors(Some(error), |error| error.source())
            .filter_map(|error| error.downcast_ref::<tokio_postgres::Error>()?.code())
            .any(|code| codes.contains(code));
    }

    /// Raises it: something did not come that a whole session would have heard.
    pub fn raise(&mut self) {
        self.0 = true;
    }

    /// Finds out, where there is a suspicion. It stays until sessions are whole.
    ///
    /// # Errors
    /// [`PoolerError`].
    pub async fn settle(&mut self, target: &Target) -> Result<(), PoolerError> {
        if self.0 {
            if let Some(found) = found(target).await? {
                return Err(PoolerError::Mixes(found));
            }
            self.0 = false;
        }
        Ok(())
    }
}

/// What gave a pooler away, in words; `None` when sessions are whole. A standby knows no
/// notifications; there only the first half is asked.
///
/// # Errors
/// [`PoolerError`].
pub async fn found(target: &Target) -> Result<Option<String>, PoolerError> {
    let (one, connection) = target.connect("rowcast probe").await?;
    let (told, notices) = unbounded_channel();
    let _one = AbortOnDrop(tokio::spawn(read(connection, told)));
    let (two, connection) = target.connect("rowcast probe").await?;
    let _two = AbortOnDrop(tokio::spawn(connection));
    let asked = tokio::time::timeout(SILENCE, mixes(&one, &two, notices)).await;
    Ok(asked.map_err(|_elapsed| PoolerError::Silent)??)
}

/// What two sessions, and what the first is notified of, give away.
async fn mixes(
    one: &Client,
    two: &Client,
    mut notices: UnboundedReceiver<()>,
) -> Result<Option<String>, tokio_postgres::Error> {
    let channel = format!("rowcast_probe_{:016x}", fastrand::u64(..));
    let hears = match one.batch_execute(&format!("listen {channel}")).await {
        Ok(()) => true,
        Err(error) if error.code().is_some() => false,
        Err(error) => return Err(error),
    };
    let first = process(one).await?;
    // A transaction of the other session keeps a server connection to itself for a moment.
    two.batch_execute("begin").await?;
    let other = process(two).await?;
    let second = process(one).await?;
    two.batch_execute("rollback").await?;
    if first == other {
        return Ok(Some(format!(
            "two sessions that were open at once shared server process {first}"
        )));
    }
    if first != second {
        return Ok(Some(format!(
            "one session was served by process {first} and then by process {second}"
        )));
    }
    if !hears {
        return Ok(None);
    }
    // Whoever notifies waits for whoever did before, and a commit for its standby: for ever, where that is gone.
    let notify = format!(
        "begin; set local synchronous_commit = off; set local lock_timeout = '{}s'; notify {channel}; commit",
        PATIENCE.as_secs()
    );
    match two.batch_execute(&notify).await {
        Ok(()) => {}
        // A queue that is full or locked tells nothing, and of the first the relay is the cure.
        Err(error) if error.code().is_some() => return Ok(None),
        Err(error) => return Err(error),
    }
    match tokio::time::timeout(PATIENCE, notices.recv()).await {
        Ok(Some(())) => Ok(None),
        Ok(None) | Err(_) => Ok(Some(format!(
            "a notification from another session did not arrive within {} s",
            PATIENCE.as_secs()
        ))),
    }
}

/// By the simple protocol: poolers do not take prepared statements either.
async fn process(client: &Client) -> Result<String, tokio_postgres::Error> {
    let answer = client.simple_query("select pg_backend_pid()").await?;
    let found = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(found.unwrap_or_default().to_owned())
}

/// Drives the connection, and tells of every notification.
async fn read(mut connection: Connection, told: UnboundedSender<()>) {
    let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
    while let Some(Ok(message)) = messages.next().await {
        if matches!(message, AsyncMessage::Notification(_)) && told.send(()).is_err() {
            return;
        }
    }
}
