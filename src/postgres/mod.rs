//! Connections, and how names and values are put into SQL. What is asked is decided elsewhere.

pub mod connect;
pub mod conninfo;
pub mod embedded;
pub mod fence;
pub mod pool;
pub mod pooler;
pub mod prepared;
pub mod quote;
pub mod tls;
pub mod transaction;
pub mod turns;
pub mod untyped;

#[cfg(test)]
mod tests {
    mod contamination;
    mod lost;
}
