//! Promises of the running relay, kept from outside: the real binary, a real PostgreSQL, real
//! clients. One file a promise.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

mod browser;
mod clients;
mod history;
mod live;
