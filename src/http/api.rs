//! The API's own paths, put together.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts as Head;
use tokio::sync::watch;

use super::rows::Rows;
use super::{Response, body, call, channels, profile, route, rows, stream};
use crate::subscription::Parts;

/// Answers what the router has let through.
#[derive(Debug)]
pub struct Api {
    /// Reads and writes.
    pub rows: Arc<Rows>,
    /// Streams.
    pub streams: Parts,
    /// Channels that are listened on.
    pub listening: watch::Receiver<BTreeSet<String>>,
}

impl route::Api for Api {
    async fn root(&self, _: &Head) -> Response {
        let names = self.rows.catalog.current();
        let mut response = Response::new(body::full(
            serde_json::json!({ "tables": names.tables_in(names.schema()).iter().map(|table| &table.name).collect::<Vec<_>>() }).to_string(),
        ));
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/json; charset=utf-8"),
        );
        response
    }

    async fn watch(&self, head: &Head, table: &str) -> Response {
        let mut response = stream::respond(&self.rows, &self.streams, head, table).await;
        profile::tell(&mut response, head, self.rows.catalog.schemas());
        response
    }

    async fn rows(&self, head: &Head, table: &str, body: Bytes) -> Response {
        let mut response = rows::respond(&self.rows, head, table, body).await;
        profile::tell(&mut response, head, self.rows.catalog.schemas());
        response
    }

    async fn call(&self, head: &Head, function: &str, body: Bytes) -> Response {
        let mut response = call::respond(&self.rows, head, function, &body).await;
        profile::tell(&mut response, head, self.rows.catalog.schemas());
        response
    }

    async fn subscribe(&self, head: &Head, channel: &str) -> Response {
        channels::subscribe(&self.rows, &self.streams, &self.listening, head, channel).await
    }

    async fn publish(&self, head: &Head, channel: &str, body: Bytes) -> Response {
        channels::publish(&self.rows, head, channel, &body).await
    }
}
