//! `/channels/{name}`: messages that are not rows.

use std::collections::BTreeSet;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts as Head;
use tokio::sync::watch;

use super::problem::Problem;
use super::rows::{Rows, json_only};
use super::stream::{closed, stream, token};
use super::{Response, body};
use crate::postgres::transaction::{Mode, Transaction};
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
        Err(error) => return closed(token.as_deref(), &Problem::from(&error).unavailable()),
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
        json_only(&head.headers)?;
        let text =
            std::str::from_utf8(body).map_err(|_| Error::Body("the body is not UTF-8".into()))?;
        serde_json::from_str::<serde::de::IgnoredAny>(text)
            .map_err(|error| Error::Body(format!("empty or invalid json: {error}")))?;
        let transaction = Transaction::begin(&rows.pool, Mode::Write, rows.limits.timeout).await?;
        let payload = crate::postgres::value::Untyped(text.to_owned());
        let row = transaction
            .query_one("select rowcast.publish($1, $2)", &[&channel, &payload])
            .await?;
        let txid: String = row.try_get(0)?;
        transaction.commit().await?;
        Ok::<_, Error>(txid)
    };
    match published.await {
        Ok(txid) => {
            let mut response = Response::new(body::full(format!(r#"{{"txid":"{txid}"}}"#)));
            *response.status_mut() = StatusCode::CREATED;
            let headers = response.headers_mut();
            headers.insert(
                CONTENT_TYPE,
                HeaderValue::from_static("application/json; charset=utf-8"),
            );
            if let Ok(txid) = HeaderValue::from_str(&txid) {
                headers.insert("rowcast-txid", txid);
            }
            response
        }
        Err(error) => Problem::from(&error).respond(),
    }
}

async fn allowed(rows: &Rows, channel: &str) -> Result<bool, Error> {
    let transaction = Transaction::begin(&rows.pool, Mode::Read, rows.limits.timeout).await?;
    let row = transaction
        .query_one("select rowcast.channel_allowed($1)", &[&channel])
        .await?;
    let allowed = row.try_get::<_, Option<bool>>(0)?.unwrap_or(false);
    transaction.commit().await?;
    Ok(allowed)
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
