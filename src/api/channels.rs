//! `/channels/{name}`: messages that are not rows.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::http::request::Parts as Head;
use tokio::sync::watch;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::once;
use super::permits::{Permits, Question};
use super::problem::{JSON, Problem, logged};
use super::reply::Reply;
use super::rows::{Rows, applied, ended, json_body, preferences, terms};
use super::stream::{closed, stream, token};
use super::watch::{newcomer, watcher};
use crate::auth::Identity;
use crate::http::Response;
use crate::http::headers::joined;
use crate::postgres::pool::Lease;
use crate::postgres::quote::literal;
use crate::postgres::transaction::{self, Context, Terms, TransactionError};
use crate::postgres::untyped::Untyped;
use crate::rows::request::Preferences;
use crate::rows::{Error, execute};
use crate::shutdown::Shutdown;
use crate::subscription::{End, Held, Parts, Source, Subscription};

/// How long a stream waits for LISTEN before it opens all the same; messages do not need it.
const LISTEN: Duration = Duration::from_secs(2);

/// Bytes of a message; `rowcast.publish` takes no more, and its refusal is one of PostgreSQL's.
const LARGEST: usize = 256 * 1024;

/// What `rowcast.may_subscribe` says to this role, which an operator may have replaced, about a channel
/// that is allowed at all.
const MAY_SUBSCRIBE: &str = "select c.allowed, c.allowed and rowcast.may_subscribe($1) \
     from (select rowcast.channel_allowed($1) as allowed offset 0) as c";

/// The same of `rowcast.may_publish`, and the transaction's id where it was published. One statement, so
/// that a function which is called before each request is called once.
const PUBLISH: &str = "select a.allowed, a.may, case when a.may then rowcast.publish($1, $2) end \
     from (select c.allowed, c.allowed and rowcast.may_publish($1) as may \
           from (select rowcast.channel_allowed($1) as allowed offset 0) as c offset 0) as a";

/// Why somebody may not, or nobody knows whether he may.
#[derive(Debug)]
enum Refusal {
    /// The answer is no.
    Forbidden(Problem),
    /// There is none.
    Failed(Error),
}

impl Refusal {
    /// What the outside hears; the log hears its causes when the fault is ours.
    fn logged(self) -> Problem {
        match self {
            Self::Forbidden(problem) => problem,
            Self::Failed(error) => logged(&error),
        }
    }

    /// What the outside hears.
    fn problem(self) -> Problem {
        match self {
            Self::Forbidden(problem) => problem,
            Self::Failed(error) => Problem::of_rows(&error),
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<TransactionError> for Refusal {
    fn from(error: TransactionError) -> Self {
        Self::Failed(error.into())
    }
}

/// What listening needs.
#[derive(Debug, Clone, Copy)]
pub struct Hall<'a> {
    /// To ask who may.
    pub rows: &'a Rows,
    /// Of streams.
    pub streams: &'a Parts,
    /// Who may.
    pub permits: &'a Permits,
    /// Channels that are listened on.
    pub listening: &'a watch::Receiver<BTreeSet<String>>,
}

/// `GET`: messages from now on, or from the client's token.
pub async fn subscribe(
    hall: Hall<'_>,
    head: &Head,
    identity: &Identity,
    end: Option<End>,
    channel: &str,
) -> Response {
    let (rows, parts) = (hall.rows, hall.streams);
    let token = token(head);
    let context = newcomer(rows, identity, rows.schema(None));
    if let Err(refusal) = may_subscribe(rows, &context, channel).await {
        return closed(token.as_deref(), &refusal.logged().unavailable());
    }
    let context = watcher(rows, identity, rows.schema(None), true);
    let permit = hall.permits.give(channel, context);
    // Joining makes the doorbell listen; the stream opens once it does, so that a NOTIFY sent after
    // `open` is not missed.
    let held = Held::join(&parts.stage, channel).ok();
    if held.is_some() {
        let mut watched = hall.listening.clone();
        let heard = watched.wait_for(|channels| channels.contains(channel));
        let _late_is_fine = tokio::time::timeout(LISTEN, heard).await;
    }
    let source = Source::Channel(channel.to_owned(), permit);
    let subscription = Subscription::new(parts.clone(), source, token, None, end);
    stream(match held {
        Some(held) => subscription.holding(held),
        None => subscription,
    })
}

/// Asks again and again who may listen, until the stop signal.
pub async fn keep_asking(permits: &Permits, rows: &Rows, shutdown: Shutdown) {
    let ask = |question: Arc<Question>| async move {
        // Not logged: where the database is away, each question would say so.
        let said = may_subscribe(rows, &question.context, &question.channel).await;
        said.map_err(Refusal::problem)
    };
    tokio::select! {
        () = async { shutdown.begun().await; } => {}
        () = permits.keep_asking(rows.catalog.watch(), ask) => {}
    }
}

/// Whether somebody may listen, asked as a view is read.
///
/// # Errors
/// [`Refusal`].
async fn may_subscribe(rows: &Rows, context: &Context, channel: &str) -> Result<(), Refusal> {
    let lease = Lease::take_for(context.caller(), &rows.views)
        .await
        .map_err(Error::from)?;
    let terms = Terms::read(context, rows.statement_timeout);
    transaction::run(lease, terms, async |client: &Client| {
        let answer = one(client, MAY_SUBSCRIBE, &[channel]).await?;
        permitted(answer.as_ref(), channel)
    })
    .await
}

/// `POST`: a durable message.
pub async fn publish(
    rows: &Rows,
    head: &Head,
    identity: &Identity,
    channel: &str,
    body: &[u8],
) -> Response {
    match published(rows, head, identity, channel, body).await {
        Ok(reply) => reply.into_response(),
        Err(problem) => problem.seen_by(identity).into_response(),
    }
}

async fn published(
    rows: &Rows,
    head: &Head,
    identity: &Identity,
    channel: &str,
    body: &[u8],
) -> Result<Reply, Problem> {
    json_body(&head.headers)?;
    let text = std::str::from_utf8(body)
        .ok()
        .filter(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok())
        .ok_or_else(|| {
            let problem = logged(&Error::Body("a message is one JSON value"));
            problem
                .hint("an object, an array, a text in double quotes, a number, true, false or null")
        })?;
    if text.len() > LARGEST {
        let message = format!("the message exceeds {LARGEST} bytes");
        let problem = Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "RCH03", message);
        return Err(problem.hint("publish where the data can be fetched"));
    }
    let header = joined(&head.headers, "prefer").unwrap_or_default();
    // Of the others none is about a message.
    let preferences = Preferences {
        tx: preferences(&header)?.tx,
        ..Preferences::default()
    };
    let context = rows.context(identity, None, head, &preferences);
    let terms = terms(rows, &context, &preferences);
    let once = once::of(identity, head, body)?;
    let lease = Lease::take_for(context.caller(), &rows.pool).await;
    let lease = lease.map_err(|error| logged(&error.into()))?;
    let answered = transaction::run(lease, terms, async |client: &Client| {
        if let Some(record) = execute::known(client, once.as_ref()).await? {
            return Ok(Reply::from(record));
        }
        let answer = one(client, PUBLISH, &[channel, text]).await?;
        permitted(answer.as_ref(), channel)?;
        let end = execute::ended(client, terms.end, true).await?;
        let txid = serde_json::json!({"txid": end.txid});
        let mut reply = Reply::json(txid.to_string(), JSON);
        reply.status = StatusCode::CREATED;
        if let Some(told) = rows.end(&preferences).1 {
            applied(&mut reply.headers, [(told, true)]);
        }
        let reply = ended(reply, &end);
        execute::keep(client, once.as_ref(), &reply).await?;
        Ok(reply)
    });
    answered.await.map_err(Refusal::logged)
}

/// What the answer says of the channel, and of this role.
fn permitted(answer: Option<&Row>, channel: &str) -> Result<(), Refusal> {
    let says = |column| answer.and_then(|row| row.try_get::<_, Option<bool>>(column).ok()?);
    if says(1) == Some(true) {
        return Ok(());
    }
    let problem = |message: String| Problem::new(StatusCode::UNAUTHORIZED, "42501", message);
    if says(0) == Some(true) {
        let problem = problem(format!("permission denied for channel \"{channel}\""));
        return Err(Refusal::Forbidden(problem.hint(
            "rowcast.may_subscribe and rowcast.may_publish decide who may",
        )));
    }
    let problem = problem(format!("channel \"{channel}\" is not allowed"));
    Err(Refusal::Forbidden(problem.hint(format!(
        "select rowcast.allow_channel({});",
        literal(channel).trim_start()
    ))))
}

/// The first row of an answer.
async fn one(client: &Client, sql: &str, values: &[&str]) -> Result<Option<Row>, Error> {
    let values: Vec<_> = values.iter().map(|value| Untyped(value)).collect();
    let values: Vec<(&(dyn ToSql + Sync), Type)> = values
        .iter()
        .map(|value| (value as _, Type::UNKNOWN))
        .collect();
    let answer = client.query_typed(sql, &values).await?;
    Ok(answer.into_iter().next())
}
