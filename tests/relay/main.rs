//! Promises of the running relay, kept from outside: the real binary, a real PostgreSQL, real
//! clients. One file a promise.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod agree;
mod batch;
mod bench;
mod browser;
mod calls;
mod canary;
mod channels;
mod cli;
mod clients;
mod codes;
mod contamination;
mod crash;
mod demo;
mod dialect;
mod docs;
mod fuzz;
mod guard;
mod harness;
mod heal;
mod history;
mod hostile;
mod idempotency;
mod live;
mod logins;
mod openapi;
mod policies;
mod poll;
#[path = "../histcheck/proxy.rs"]
#[allow(dead_code, reason = "histcheck uses the rest of it")]
mod proxy;
mod refusals;
mod refuses;
mod resume;
mod schema;
mod secrets;
mod seeing;
mod shapes;
mod shutdown;
mod sights;
mod tokens;
mod upgrade;
mod upkeep;

#[path = "../../fuzz/src/lib.rs"]
mod targets;
