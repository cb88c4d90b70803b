//! `/channels/{name}`: messages that are not rows.

use std::collections::BTreeSet;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts as Head;
use tokio::sync::watch;

use super::problem::{JSON, Problem};
use super::rows::{Rows, TXID, json_body, problem};
use super::stream::{closed, stream, token};
use super::{Response, body};
use tokio_postgres::types::{ToSql, Type};

use crate::postgres::pool::Lease;
use crate::postgres::transaction::{self, Access, Context, Terms};
use crate::postgres::untyped::Untyped;
use crate::rows::Error;
use crate::subscription::{Parts, Source, Subscription};

/// How long a stream waits for LISTEN before it opens all the same; messages do not need it.
const LISTEN: Duration = Duration::from_secs(2);

/// `GET`: messages from now on, or from the client's token.
pub async fn subscribe(
    rows: &Rows,
    parts: &Parts,
    listening: &watch::Receiver<BTreeSet<String>>,
    head: &Head,
    channel: &str,
) -> Response {
    let token = token(head);
    match allowed(rows, channel).await {
        Ok(true) => {}
        Ok(false) => return closed(token.as_deref(), &forbidden(channel).unavailable()),
        Err(problem) => return closed(token.as_deref(), &problem.unavailable()),
    }
    // Joining makes the doorbell listen; the stream opens once it does, so that a NOTIFY sent after
    // `open` is not missed. The subscription joins again, and this one leaves with the response.
    if let Ok(joined) = parts.feed.join_channel(channel, None) {
        let mut watched = listening.clone();
        let heard = watched.wait_for(|channels| channels.contains(channel));
        let _late_is_fine = tokio::time::timeout(LISTEN, heard).await;
        let response = stream(Subscription::new(
            parts.clone(),
            Source::Channel(channel.to_owned()),
            token,
            None,
        ));
        drop(joined);
        return response;
    }
    stream(Subscription::new(
        parts.clone(),
        Source::Channel(channel.to_owned()),
        token,
        None,
    ))
}

/// `POST`: a durable message.
pub async fn publish(rows: &Rows, head: &Head, channel: &str, body: &[u8]) -> Response {
    let published = async {
        json_body(&head.headers)?;
        let text = std::str::from_utf8(body)
            .ok()
            .filter(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok())
            .ok_or_else(|| problem(&Error::Body("a message is one JSON value")))?;
        let values = [channel.to_owned(), text.to_owned()];
        let sql = "select rowcast.publish($1, $2)";
        let txid = ask(rows, Access::ReadWrite, sql, &values).await?;
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
        Err(problem) => problem.into_response(),
    }
}

async fn allowed(rows: &Rows, channel: &str) -> Result<bool, Problem> {
    let sql = "select rowcast.channel_allowed($1)::text";
    let allowed = ask(rows, Access::ReadOnly, sql, &[channel.to_owned()]).await?;
    Ok(allowed.as_deref() == Some("true"))
}

/// One value, as text, from one statement in a transaction of its own.
async fn ask(
    rows: &Rows,
    access: Access,
    sql: &str,
    values: &[String],
) -> Result<Option<String>, Problem> {
    let asked = async {
        let lease = Lease::take(&rows.pool).await?;
        let values: Vec<_> = values.iter().map(|value| Untyped(value)).collect();
        let values: Vec<(&(dyn ToSql + Sync), Type)> = values
            .iter()
            .map(|value| (value as _, Type::UNKNOWN))
            .collect();
        let context = Context::default();
        let terms = Terms {
            access,
            ..Terms::read(&context, rows.statement_timeout)
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
    asked.await.map_err(|error: Error| problem(&error))
}

fn forbidden(channel: &str) -> Problem {
    Problem::new(
        StatusCode::UNAUTHORIZED,
        "42501",
        format!("channel \"{channel}\" is not allowed"),
    )
    .hint(format!(
        "select rowcast.allow_channel({});",
        crate::postgres::quote::literal(channel).trim_start()
    ))
}
