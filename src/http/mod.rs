//! The edge of the relay: connections in, requests out; responses and event streams back.
//!
//! `server` accepts and `route` chooses who answers. What concerns no table is answered here: the
//! board's files, health, metrics, and what the edge refuses by itself (`refusal`). Everything else goes
//! to who implements [`route::Api`]. It knows no database, no row and no view.

pub mod assets;
pub mod body;
pub mod cors;
pub mod deadline;
pub mod debug;
pub mod events;
pub mod exchange;
pub mod headers;
pub mod ops;
pub mod pace;
pub mod refusal;
pub mod route;
pub mod server;
#[cfg(test)]
mod tests;
pub mod ticket;

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
