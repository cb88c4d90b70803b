//! Rowcast keeps open screens in step with a PostgreSQL database.
//!
//! # The map
//!
//! Data flows one way, and the circle closes only inside PostgreSQL:
//!
//! ```text
//! commit -> doorbell -> feed <- log      feed -> hub -> subscription -> api -> http -> browser
//! browser -> http -> api -> rows: request -> plan -> statement -> execute -> PostgreSQL
//! ```
//!
//! | room | what it is | what it does not know |
//! |---|---|---|
//! | [`cli`] | the commands; builds and starts the rest | |
//! | [`http`] | the edge: connections, routes, bodies, event streams on the wire | the database, rows, views |
//! | [`api`] | what the URLs of tables, functions and channels answer: from requests to what `rows` does and `view` shows | sockets, the log, the feed, the hub |
//! | [`subscription`] | one screen's stream: history, then live; what it decides apart from what it waits for | HTTP, but for the form of a chunk |
//! | [`feed`] | reads the log, and publishes on a stage that knows no connection | connections of screens |
//! | [`view`] | what a stream shows; events from images; snapshots | requests |
//! | [`log`] | committed entries between two cursors, and what they come to | views |
//! | [`doorbell`] | LISTEN: "look again" | data |
//! | [`bell`] | when to look, so that writers need not ring | what is read |
//! | [`hub`] | one publisher, many positions in one buffer | HTTP, SQL, events |
//! | [`admission`] | who may open one more stream, and who is cut when there are too many | HTTP, what a stream carries |
//! | [`auth`] | token and clock in, identity out | requests, what a role may do |
//! | [`rows`] | reads and writes in the PostgREST dialect | subscribers: it never publishes |
//! | [`schema`] | our schema, the catalogue, drift | requests, views |
//! | [`share`] | how many bytes all clients together may keep in the relay | what the bytes mean |
//! | [`memory`] | how much memory is used of what may be | who uses it |
//! | [`postgres`] | connections, quoting, the private cluster | what is asked |
//! | [`event`], [`cursor`], [`etag`], [`filter`], [`sse`] | pure: no socket, no task | |
//! | [`health`], [`metrics`], [`config`], [`shutdown`], [`backoff`], [`causes`], [`mutants`], [`procfs`], [`wake`] | what everyone may name | any other room |

pub mod admission;
pub mod api;
pub mod auth;
pub mod backoff;
pub mod bell;
pub mod causes;
pub mod cli;
pub mod config;
pub mod cursor;
pub mod doorbell;
pub mod etag;
pub mod event;
pub mod feed;
pub mod filter;
pub mod health;
pub mod http;
pub mod hub;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod mutants;
pub mod postgres;
pub mod procfs;
pub mod rows;
pub mod schema;
pub mod share;
pub mod shutdown;
pub mod sse;
pub mod subscription;
pub mod view;
pub mod wake;
