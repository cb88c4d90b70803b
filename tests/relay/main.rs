//! Promises of the running relay, kept from outside: the real binary, a real PostgreSQL, real
//! clients. One file a promise.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod adversary;
mod agree;
mod batch;
mod bell;
mod bench;
mod bounds;
mod browser;
mod calls;
mod canary;
mod capture;
mod channels;
mod cli;
mod clients;
mod clock;
mod codes;
mod contamination;
mod crash;
mod crowd;
mod demo;
mod dialect;
mod disk;
mod docs;
mod dump;
mod foreign;
mod fuzz;
mod guard;
mod harness;
mod heal;
mod herd;
mod history;
mod hostile;
mod huge;
mod idempotency;
mod installed;
mod live;
mod logins;
mod moved;
mod network;
mod openapi;
mod policies;
mod poll;
mod prepared;
mod proxies;
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
mod stalled;
mod statement;
mod tokens;
mod trim;
mod upgrade;
mod upkeep;
mod wire;
mod writes;

#[path = "../../fuzz/src/lib.rs"]
mod targets;
