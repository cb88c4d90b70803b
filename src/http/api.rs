//! The API's own paths, put together.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use hyper::http::request::Parts as Head;
use tokio::sync::watch;

use super::rows::Rows;
use super::{Response, call, channels, openapi, profile, route, rows, stream};
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
    async fn root(&self, head: &Head) -> Response {
        let handle = &self.rows.catalog;
        let schema = match profile::wanted(head, handle.schemas()) {
            Ok(schema) => schema,
            Err(problem) => return problem.into_response(),
        };
        let catalog = handle.current();
        let schema = schema.as_deref().unwrap_or(catalog.schema());
        let document = openapi::document(&catalog, schema, |_| true);
        let mut response = openapi::respond(head, &document);
        profile::tell(&mut response, head, handle.schemas());
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
