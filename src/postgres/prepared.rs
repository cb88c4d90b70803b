//! Statements that a connection has prepared, so that PostgreSQL parses and plans them once.
//!
//! Promises that whoever asks sees no difference but time: the first time, the statement is prepared
//! beside being run, in the same round trip, and one that PostgreSQL refuses to bind (somebody
//! deallocated it, a table is another now) is forgotten. PostgreSQL looks at rights on tables whenever it
//! runs a statement, at those on schemas when it parses it: it parses anew for whoever may not use a schema of
//! the search path, so names in a statement are to be of these.

use std::sync::Arc;
use std::task::Poll;

use deadpool_postgres::StatementCache;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, RowStream};

use super::untyped::Untyped;

/// How many a connection keeps, before it begins anew: each takes memory of the server's process.
const MOST: usize = 64;

/// The prepared statements of one connection. Cheap to clone; clones are the same.
#[derive(Debug, Clone)]
pub struct Prepared(Arc<StatementCache>);

impl Prepared {
    pub(super) fn new(cache: Arc<StatementCache>) -> Self {
        Self(cache)
    }

    /// Runs `sql` on `client`, which is theirs, with a type for each value. All is sent when it is first
    /// polled.
    ///
    /// # Errors
    /// Those of PostgreSQL.
    pub async fn query<S: AsRef<str>>(
        &self,
        client: &Client,
        sql: &str,
        types: &[Type],
        values: &[S],
    ) -> Result<RowStream, Error> {
        let values = || values.iter().map(|value| Untyped(value.as_ref()));
        // It is large, and several of these are part of every request.
        let mut preparing = Box::pin(self.0.prepare_typed(client, sql, types));
        match futures::poll!(preparing.as_mut()) {
            Poll::Ready(statement) => {
                let bound = client.query_raw(&statement?, values()).await;
                if bound.is_err() {
                    self.0.remove(sql, types);
                }
                bound
            }
            Poll::Pending => {
                let typed: Vec<_> = values().zip(types.iter().cloned()).collect();
                let running = Box::pin(client.query_typed_raw(sql, typed));
                let (statement, bound) = futures::join!(preparing, running);
                // The first error: the second only says that there was one.
                statement?;
                if self.0.size() > MOST {
                    self.0.clear();
                }
                bound
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;
    use crate::postgres::embedded::tests::throw_away;
    use crate::postgres::pool::{Lease, pool};

    async fn ask(lease: &Lease, sql: &str, value: &str) -> Result<String, Error> {
        let prepared = lease.prepared();
        let rows = prepared.query(lease, sql, &[Type::INT4], &[value]).await?;
        let rows: Vec<_> = rows.try_collect().await?;
        Ok(rows[0].get(0))
    }

    async fn kept(lease: &Lease) -> i64 {
        let count =
            "select count(*) from pg_prepared_statements where statement not like '%pg_prep%'";
        lease.query_typed(count, &[]).await.unwrap()[0].get(0)
    }

    #[tokio::test]
    async fn a_statement_is_prepared_once_and_anew_when_it_was_lost() {
        let Some((_place, cluster)) = throw_away().await else {
            return;
        };
        let pool = pool(&cluster.target("postgres"), "rowcast test", 1);
        let lease = Lease::take(&pool).await.unwrap();
        let sql = "select ($1 + 1)::text";
        for n in 0..3 {
            assert_eq!(
                ask(&lease, sql, &n.to_string()).await.unwrap(),
                (n + 1).to_string()
            );
            assert_eq!(kept(&lease).await, 1);
        }
        lease.batch_execute("deallocate all").await.unwrap();
        let lost = ask(&lease, sql, "1").await.unwrap_err();
        assert_eq!(lost.code().unwrap().code(), "26000");
        assert_eq!(ask(&lease, sql, "1").await.unwrap(), "2");
        assert_eq!(kept(&lease).await, 1);
        cluster.stop().await;
    }

    #[tokio::test]
    async fn a_mistake_is_told_as_it_is_and_not_kept() {
        let Some((_place, cluster)) = throw_away().await else {
            return;
        };
        let pool = pool(&cluster.target("postgres"), "rowcast test", 1);
        let lease = Lease::take(&pool).await.unwrap();
        lease.batch_execute("begin").await.unwrap();
        let refused = ask(&lease, "select nothing where $1 = 1", "1").await;
        assert_eq!(refused.unwrap_err().code().unwrap().code(), "42703");
        lease.batch_execute("rollback").await.unwrap();
        assert_eq!(kept(&lease).await, 0);
        cluster.stop().await;
    }

    #[tokio::test]
    async fn no_more_than_a_number_of_them_is_kept() {
        let Some((_place, cluster)) = throw_away().await else {
            return;
        };
        let pool = pool(&cluster.target("postgres"), "rowcast test", 1);
        let lease = Lease::take(&pool).await.unwrap();
        for n in 0..=2 * MOST {
            let sql = format!("select ($1 + {n})::text");
            assert_eq!(ask(&lease, &sql, "1").await.unwrap(), (n + 1).to_string());
            assert!(kept(&lease).await <= i64::try_from(MOST).unwrap() + 1);
        }
        cluster.stop().await;
    }
}
