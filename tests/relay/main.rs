//! Promises of the running relay, kept from outside: the real binary, a real PostgreSQL, real
//! clients. One file a promise.

mod harness;

mod history;
mod live;
