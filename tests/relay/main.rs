//! Promises of the running relay, kept from outside: the real binary, a real PostgreSQL, real
//! clients. One file a promise.

mod harness;

mod channels;
mod crash;
mod heal;
mod live;
mod poll;
mod refusals;
mod resume;
mod schema;
mod shutdown;
