//! The database's side of Rowcast: its own schema, and what it knows of the others.

pub mod catalog;
pub mod migrate;
pub mod reload;
pub mod upkeep;
pub mod watch;
