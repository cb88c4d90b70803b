//! `/channels/{name}`: messages that are not rows.

use std::collections::BTreeSet;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts as Head;
use tokio::sync::watch;

use super::problem::{JSON, Problem, logged};
use super::rows::{Rows, TXID, json_body};
use super::stream::{closed, stream, token};
use super::{Response, body, context};
use tokio_postgres::types::{ToSql, Type};

use crate::auth::Identity;
use crate::postgres::pool::{Lease, Pool};
use crate::postgres::transaction::{self, Access, Context, Terms};
use crate::postgres::untyped::Untyped;
use crate::rows::Error;
use crate::subscription::{End, Held, Parts, Source, Subscription};

/// How long a stream waits for LISTEN before it opens all the same; messages do not need it.
const LISTEN: Duration = Duration::from_secs(2);

/// `GET`: messages from now on, or from the client's token.
pub async fn subscribe(
    rows: &Rows,
    parts: &Parts,
    listening: &watch::Receiver<BTreeSet<String>>,
    head: &Head,
    identity: &Identity,
    end: Option<End>,
    channel: &str,
) -> Response {
    let token = token(head);
    let context = context::of_view(identity, rows.schema(None), true);
    match may(rows, &rows.views, &context, "subscribe", channel).await {
        Ok(true) => {}
        Ok(false) => {
            let problem = forbidden(rows, &context, channel).await;
            let problem = problem.seen_by(identity);
            return closed(token.as_deref(), &problem.unavailable());
        }
        Err(problem) => return closed(token.as_deref(), &problem.unavailable()),
    }
    // Joining makes the doorbell listen; the stream opens once it does, so that a NOTIFY sent after
    // `open` is not missed.
    let held = Held::join(&parts.stage, channel).ok();
    if held.is_some() {
        let mut watched = listening.clone();
        let heard = watched.wait_for(|channels| channels.contains(channel));
        let _late_is_fine = tokio::time::timeout(LISTEN, heard).await;
    }
    let source = Source::Channel(channel.to_owned());
    let subscription = Subscription::new(parts.clone(), source, token, None, end);
    stream(match held {
        Some(held) => subscription.holding(held),
        None => subscription,
    })
}

/// `POST`: a durable message.
pub async fn publish(
    rows: &Rows,
    head: &Head,
    identity: &Identity,
    channel: &str,
    body: &[u8],
) -> Response {
    let context = context::of_request(identity, rows.schema(None), head);
    let published = async {
        json_body(&head.headers)?;
        let text = std::str::from_utf8(body)
            .ok()
            .filter(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok())
            .ok_or_else(|| logged(&Error::Body("a message is one JSON value")))?;
        if !may(rows, &rows.pool, &context, "publish", channel).await? {
            return Err(forbidden(rows, &context, channel).await);
        }
        let values = [channel.to_owned(), text.to_owned()];
        let sql = "select rowcast.publish($1, $2)";
        let txid = ask(rows, &rows.pool, Access::ReadWrite, &context, sql, &values).await?;
        Ok::<String, Problem>(txid.unwrap_or_default())
    };
    match published.await {
        Ok(txid) => {
            let mut response = Response::new(body::full(format!(r#"{{"txid":"{txid}"}}"#)));
            *response.status_mut() = StatusCode::CREATED;
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, JSON);
            if let Ok(txid) = HeaderValue::from_str(&txid) {
                headers.insert(TXID, txid);
            }
            response
        }
        Err(problem) => problem.seen_by(identity).into_response(),
    }
}

/// What `rowcast.may_subscribe` or `rowcast.may_publish` says to this role, which an operator may
/// have replaced, about a channel that is allowed at all.
async fn may(
    rows: &Rows,
    pool: &Pool,
    context: &Context,
    what: &str,
    channel: &str,
) -> Result<bool, Problem> {
    let sql =
        format!("select (rowcast.channel_allowed($1) and rowcast.may_{what}($1))::pg_catalog.text");
    let values = [channel.to_owned()];
    let may = ask(rows, pool, Access::ReadOnly, context, &sql, &values).await?;
    Ok(may.as_deref() == Some("true"))
}

/// One value, as text, from one statement in a transaction of its own.
async fn ask(
    rows: &Rows,
    pool: &Pool,
    access: Access,
    context: &Context,
    sql: &str,
    values: &[String],
) -> Result<Option<String>, Problem> {
    let asked = async {
        let lease = Lease::take(pool).await?;
        let values: Vec<_> = values.iter().map(|value| Untyped(value)).collect();
        let values: Vec<(&(dyn ToSql + Sync), Type)> = values
            .iter()
            .map(|value| (value as _, Type::UNKNOWN))
            .collect();
        let terms = Terms {
            access,
            ..Terms::read(context, rows.statement_timeout)
        };
        transaction::run(lease, terms, async |client| {
            let answer = client.query_typed(sql, &values).await?;
            Ok(answer
                .first()
                .map(|row| row.try_get(0))
                .transpose()?
                .flatten())
        })
        .await
    };
    asked.await.map_err(|error: Error| logged(&error))
}

/// Why not: because nobody may, or because this role may not.
async fn forbidden(rows: &Rows, context: &Context, channel: &str) -> Problem {
    let sql = "select rowcast.channel_allowed($1)::pg_catalog.text";
    let values = [channel.to_owned()];
    let allowed = ask(rows, &rows.pool, Access::ReadOnly, context, sql, &values).await;
    let problem = |message: String| Problem::new(StatusCode::UNAUTHORIZED, "42501", message);
    if allowed.is_ok_and(|allowed| allowed.as_deref() == Some("true")) {
        return problem(format!("permission denied for channel \"{channel}\""))
            .hint("rowcast.may_subscribe and rowcast.may_publish decide who may");
    }
    problem(format!("channel \"{channel}\" is not allowed")).hint(format!(
        "select rowcast.allow_channel({});",
        crate::postgres::quote::literal(channel).trim_start()
    ))
}
