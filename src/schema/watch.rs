//! Watching tables, from the command line.

use tokio_postgres::Client;

use crate::postgres::quote;

/// How the changes of a table are captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Capture {
    /// Each row by itself: the default, for every table.
    Row,
    /// All rows of a statement together: cheaper for statements of many rows, dearer for those of one.
    Statement,
}

impl Capture {
    /// As `rowcast.watch` takes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Row => "row",
            Self::Statement => "statement",
        }
    }
}

/// A table by the name a person typed: `tasks`, `sales.orders`, `"Odd Name"`. Without `capture` it stays
/// what it is, and begins with [`Capture::Row`].
///
/// # Errors
/// `PostgreSQL`'s answer, e.g. that there is no such table.
pub async fn watch(
    client: &Client,
    table: &str,
    capture: Option<Capture>,
) -> Result<(), tokio_postgres::Error> {
    // A function argument of type regclass, given as a constant: PostgreSQL reads the name.
    let table = quote::literal(table);
    let sql = match capture {
        None => format!("select rowcast.watch({table})"),
        Some(capture) => format!("select rowcast.watch({table}, '{}')", capture.name()),
    };
    client.batch_execute(&sql).await
}

/// Takes back [`watch`].
///
/// # Errors
/// `PostgreSQL`'s answer.
pub async fn unwatch(client: &Client, table: &str) -> Result<(), tokio_postgres::Error> {
    client
        .batch_execute(&format!(
            "select rowcast.unwatch({})",
            quote::literal(table)
        ))
        .await
}

/// A watched table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// Schema and name.
    pub table: String,
    /// How.
    pub capture: Capture,
    /// Whether every change is.
    pub captured: bool,
}

/// Watched tables by name.
///
/// # Errors
/// `PostgreSQL`'s answer.
pub async fn watched(client: &Client) -> Result<Vec<Watched>, tokio_postgres::Error> {
    let sql = "select n.nspname || '.' || c.relname, w.by_statement and rowcast.obstacle(c.oid) is null, rowcast.captured(c.oid) \
               from rowcast.watched w join pg_class c on c.oid = w.rel \
               join pg_namespace n on n.oid = c.relnamespace order by 1";
    let rows = client.query(sql, &[]).await?;
    let watched = rows.iter().map(|row| Watched {
        table: row.get(0),
        capture: if row.get(1) {
            Capture::Statement
        } else {
            Capture::Row
        },
        captured: row.get(2),
    });
    Ok(watched.collect())
}
