//! The API's own paths: from a request to what `rows` does and `view` shows, and back to an answer.
//!
//! Each file answers one family of URLs, or is what several of them share. Statuses of the other rooms' errors are known
//! to `problem`. It plans nothing and publishes nothing: `rows` runs what a request says, `watch` makes a
//! view of it, and `subscription` tells what that shows.

pub mod batch;
pub mod call;
pub mod channels;
pub mod context;
pub mod demo;
pub mod identify;
pub mod looks;
pub mod once;
pub mod openapi;
pub mod permits;
pub mod problem;
pub mod profile;
pub mod reply;
pub mod rows;
pub mod stream;
#[cfg(test)]
mod tests;
pub mod tickets;
mod watch;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use hyper::http::request::Parts as Head;
use tokio::sync::watch::Receiver;

use self::identify::identify;
use self::permits::Permits;
use self::problem::Problem;
use self::rows::Rows;
use crate::admission::Admission;
use crate::auth::{Authenticator, Identity, TokenError};
use crate::http::{Response, exchange, route};
use crate::metrics::Reason;
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
    /// How many of them there may be.
    pub admission: Admission,
    /// Who listens to channels.
    pub permits: Arc<Permits>,
    /// Channels that are listened on.
    pub listening: Receiver<BTreeSet<String>>,
    /// Who signs people in, on the demo board.
    pub sign_in: Option<demo::SignIn>,
}

impl Api {
    /// Who asks, if he may.
    async fn admitted(&self, head: &Head) -> Result<Identity, Problem> {
        let identity = identify(&self.auth, head).await?;
        self.rows.admit(&identity).await?;
        Ok(identity)
    }

    /// Answers somebody who is known, or says why he is not.
    async fn known<F: Future<Output = Response>>(
        &self,
        head: &Head,
        answer: impl FnOnce(Identity) -> F,
    ) -> Response {
        match self.admitted(head).await {
            Ok(identity) => answer(identity).await,
            Err(problem) => problem.into_response(),
        }
    }

    /// Tells which of several schemas an answer is about.
    fn told(&self, mut answer: Response, head: &Head) -> Response {
        profile::tell(&mut answer, head, self.rows.catalog.schemas());
        answer
    }

    /// As `known` for a stream: what may heal is said in it, because an EventSource gives up for ever
    /// on anything but 200.
    async fn known_reader<F: Future<Output = Response>>(
        &self,
        head: &Head,
        answer: impl FnOnce(Identity) -> F,
    ) -> Response {
        let closed = |problem: Problem| {
            stream::closed(stream::token(head).as_deref(), &problem.unavailable())
        };
        let identity = match identify(&self.auth, head).await {
            Ok(identity) => identity,
            Err(problem) if problem.status.is_server_error() => return closed(problem),
            Err(problem) => return problem.into_response(),
        };
        // A role that is not there may be made, or made again, and one that may not be taken be granted.
        if let Err(problem) = self.rows.admit(&identity).await {
            return closed(problem);
        }
        // Clocks may differ, so that a request is let through some time after; a stream would end at once.
        if identity.expires.is_some_and(|end| end <= SystemTime::now()) {
            return Problem::of_token(&TokenError::Expired).into_response();
        }
        // Before anything is asked of the database.
        match stream::place(&self.admission, head, &identity) {
            Ok(place) => {
                let response = answer(identity).await;
                if exchange::is_event_stream(response.headers()) {
                    return stream::keeping(response, place);
                }
                response
            }
            Err(full) => {
                let reason = Reason {
                    reason: full.reason(),
                };
                let refused = &self.streams.metrics.refused_streams;
                refused.get_or_create(&reason).inc();
                closed(Problem::of_full(full))
            }
        }
    }
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
        self.known(head, async |identity| {
            let permitted = match self.rows.permitted(&identity, schema, head, &catalog).await {
                Ok(permitted) => permitted,
                Err(problem) => return problem.into_response(),
            };
            let (tables, functions) = permitted;
            let document = openapi::document(
                &catalog,
                schema,
                |table| tables.contains(&table.oid),
                |function| functions.contains(&function.oid),
            );
            self.told(openapi::respond(head, &document), head)
        })
        .await
    }

    async fn batch(&self, head: &Head, body: Bytes) -> Response {
        self.known(head, async |identity| {
            let answer = batch::respond(&self.rows, head, &identity, &body).await;
            self.told(answer, head)
        })
        .await
    }

    async fn watch(&self, head: &Head, table: &str) -> Response {
        self.known_reader(head, async |identity| {
            let streams = &self.streams;
            let end = self.auth.sessions.end(&identity);
            let answer = stream::respond(&self.rows, streams, head, &identity, end, table).await;
            self.told(answer, head)
        })
        .await
    }

    async fn rows(&self, head: &Head, table: &str, body: Bytes) -> Response {
        self.known(head, async |identity| {
            let answer = rows::respond(&self.rows, head, &identity, table, body).await;
            self.told(answer, head)
        })
        .await
    }

    async fn call(&self, head: &Head, function: &str, body: Bytes) -> Response {
        self.known(head, async |identity| {
            let answer = call::respond(&self.rows, head, &identity, function, &body).await;
            self.told(answer, head)
        })
        .await
    }

    async fn subscribe(&self, head: &Head, channel: &str) -> Response {
        self.known_reader(head, async |identity| {
            let end = self.auth.sessions.end(&identity);
            let hall = channels::Hall {
                rows: &self.rows,
                streams: &self.streams,
                permits: &self.permits,
                listening: &self.listening,
            };
            channels::subscribe(hall, head, &identity, end, channel).await
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

    async fn sign_in(&self, head: &Head, body: Bytes) -> Option<Response> {
        let sign_in = self.sign_in.as_ref()?;
        Some(demo::respond(sign_in, &self.rows, head, &body).await)
    }
}
