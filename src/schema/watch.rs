//! Watching tables, from the command line.

use tokio_postgres::Client;

use crate::postgres::quote;

/// A table by the name a person typed: `tasks`, `sales.orders`, `"Odd Name"`.
///
/// # Errors
/// `PostgreSQL`'s answer, e.g. that there is no such table.
pub async fn watch(client: &Client, table: &str) -> Result<(), tokio_postgres::Error> {
    // A function argument of type regclass, given as a constant: PostgreSQL reads the name.
    client
        .batch_execute(&format!("select rowcast.watch({})", quote::literal(table)))
        .await
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

/// Watched tables by name, and whether every change of each is captured.
///
/// # Errors
/// `PostgreSQL`'s answer.
pub async fn watched(client: &Client) -> Result<Vec<(String, bool)>, tokio_postgres::Error> {
    let sql = "select n.nspname || '.' || c.relname, rowcast.captured(c.oid) \
               from rowcast.watched w join pg_class c on c.oid = w.rel \
               join pg_namespace n on n.oid = c.relnamespace order by 1";
    let rows = client.query(sql, &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
