//! The database's side of Rowcast: its own schema, and what it knows of the others.

mod allowance;
pub mod catalog;
pub mod handle;
pub mod migrate;
pub mod policies;
pub mod reload;
pub mod roles;
pub mod upkeep;
pub mod watch;
