//! Promises of the running relay, kept from outside: the real binary, a real PostgreSQL, real
//! clients. One file a promise.

mod harness;

mod agree;
mod channels;
mod cli;
mod crash;
mod heal;
mod hostile;
mod live;
mod poll;
mod refusals;
mod resume;
mod schema;
mod shutdown;
