//! The API's own paths, put together.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts as Head;
use tokio::sync::watch;

use super::identify::identify;
use super::rows::Rows;
use super::{Response, body, channels, route, rows, stream, tickets};
use crate::auth::{Authenticator, Identity};
use crate::subscription::Parts;

/// Answers what the router has let through.
#[derive(Debug)]
pub struct Api {
    /// Who asks.
    pub auth: Arc<Authenticator>,
    /// Reads and writes.
    pub rows: Arc<Rows>,
    /// Streams.
    pub streams: Parts,
    /// Channels that are listened on.
    pub listening: watch::Receiver<BTreeSet<String>>,
}

impl Api {
    /// Answers somebody who is known, or says why he is not.
    async fn known<F: Future<Output = Response>>(
        &self,
        head: &Head,
        answer: impl FnOnce(Identity) -> F,
    ) -> Response {
        match identify(&self.auth, head).await {
            Ok(identity) => answer(identity).await,
            Err(problem) => problem.into_response(),
        }
    }

    /// The same for a stream: what may heal is said in it, because an EventSource gives up for ever
    /// on anything but 200.
    async fn known_reader<F: Future<Output = Response>>(
        &self,
        head: &Head,
        answer: impl FnOnce(Identity) -> F,
    ) -> Response {
        match identify(&self.auth, head).await {
            Ok(identity) => answer(identity).await,
            Err(problem) if problem.status.is_server_error() => {
                stream::closed(stream::token(head).as_deref(), &problem.unavailable())
            }
            Err(problem) => problem.into_response(),
        }
    }
}

impl route::Api for Api {
    async fn root(&self, _: &Head) -> Response {
        let names = self.rows.catalog.current();
        let mut response = Response::new(body::full(
            serde_json::json!({ "tables": names.names() }).to_string(),
        ));
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/json; charset=utf-8"),
        );
        response
    }

    async fn watch(&self, head: &Head, table: &str) -> Response {
        self.known_reader(head, async |identity| {
            stream::respond(&self.rows, &self.streams, head, &identity, table).await
        })
        .await
    }

    async fn rows(&self, head: &Head, table: &str, body: Bytes) -> Response {
        self.known(head, async |identity| {
            rows::respond(&self.rows, head, &identity, table, body).await
        })
        .await
    }

    async fn subscribe(&self, head: &Head, channel: &str) -> Response {
        self.known_reader(head, async |identity| {
            let (rows, streams) = (&self.rows, &self.streams);
            channels::subscribe(rows, streams, &self.listening, head, &identity, channel).await
        })
        .await
    }

    async fn publish(&self, head: &Head, channel: &str, body: Bytes) -> Response {
        self.known(head, async |identity| {
            channels::publish(&self.rows, head, &identity, channel, &body).await
        })
        .await
    }

    async fn tickets(&self, head: &Head, body: Bytes) -> Response {
        tickets::respond(&self.auth, head, &body).await
    }
}
