//! The edge of the relay: requests in, responses and event streams out.
//!
//! `server` accepts, `route` chooses, each other file answers one family of URLs. Statuses are known
//! to `problem` for the rooms' errors and to `refusal` for what the edge refuses by itself. It plans
//! nothing and publishes nothing: `rows` runs what a request says, `watch` makes a view of it, and
//! `subscription` tells what that shows.

pub mod api;
pub mod assets;
pub mod batch;
pub mod body;
pub mod call;
pub mod channels;
pub mod context;
pub mod cors;
pub mod deadline;
pub mod debug;
pub mod demo;
pub mod events;
pub mod exchange;
pub mod headers;
pub mod identify;
pub mod looks;
pub mod once;
pub mod openapi;
pub mod ops;
pub mod pace;
pub mod permits;
pub mod problem;
pub mod profile;
pub mod refusal;
pub mod reply;
pub mod route;
pub mod rows;
pub mod server;
pub mod stream;
#[cfg(test)]
mod tests;
pub mod tickets;
mod watch;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;

/// What any body can fail with; the connection is closed then.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// The one body type of responses.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;
/// A response of ours.
pub type Response = hyper::Response<Body>;
/// A request as hyper hands it over.
pub type Request = hyper::Request<hyper::body::Incoming>;
