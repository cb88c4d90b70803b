//! A plan, done in a transaction.

use std::time::Duration;

use futures::{StreamExt, pin_mut};
use tokio_postgres::types::ToSql;

use super::Error;
use super::plan::{Action, Plan};
use super::statement::{self, Statement};
use crate::postgres::pool::Pool;
use crate::postgres::transaction::{Mode, Transaction};

/// How much one request may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Rows of a read.
    pub rows: u64,
    /// Bytes of an answer.
    pub bytes: usize,
    /// `statement_timeout`
    pub timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rows: 10_000,
            bytes: 64 << 20,
            timeout: Duration::from_secs(8),
        }
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// JSON text of rows, where they were asked for.
    pub rows: Vec<String>,
    /// Rows read or written.
    pub affected: u64,
    /// Rows that an insert made, as opposed to met.
    pub inserted: u64,
    /// Rows there are, where that was asked for.
    pub total: Option<u64>,
    /// The transaction that wrote, as text.
    pub txid: Option<String>,
}

/// Does what the plan says. With `single`, anything but one row is an error and leaves no trace.
///
/// # Errors
/// [`Error`]; the transaction is rolled back then.
pub async fn execute(
    pool: &Pool,
    plan: &Plan,
    body: &str,
    representation: bool,
    single: bool,
    limits: &Limits,
) -> Result<Outcome, Error> {
    // A read and its count must be of one moment.
    let mode = match &plan.action {
        Action::Read { count: true, .. } => Mode::Snapshot,
        Action::Read { .. } => Mode::Read,
        _ => Mode::Write,
    };
    let transaction = Transaction::begin(pool, mode, limits.timeout).await?;
    let reads = mode != Mode::Write;
    let mut outcome = match &plan.action {
        // Nothing to write is not an error.
        Action::Insert { rows: 0, .. } => Outcome::default(),
        Action::Update { columns } if columns.is_empty() => Outcome::default(),
        _ => {
            let statement = statement::statement(plan, body, representation, limits.rows);
            run(
                &transaction,
                plan,
                &statement,
                reads || representation,
                limits,
            )
            .await?
        }
    };
    if single && (reads || representation) && outcome.rows.len() != 1 {
        return Err(Error::Singular(outcome.rows.len()));
    }
    if let Action::Read { count: true, .. } = &plan.action {
        let count = statement::count(plan);
        let row = transaction
            .query_one(&count.sql, &parameters(&count))
            .await?;
        outcome.total = u64::try_from(row.try_get::<_, i64>(0)?).ok();
    }
    if !reads {
        let row = transaction
            .query_typed("select pg_current_xact_id_if_assigned()::text", &[])
            .await?;
        outcome.txid = row.first().and_then(|row| row.get(0));
    }
    transaction.commit().await?;
    Ok(outcome)
}

fn parameters(statement: &Statement) -> Vec<&(dyn ToSql + Sync)> {
    let parameters = statement.parameters.iter();
    parameters
        .map(|value| value as &(dyn ToSql + Sync))
        .collect()
}

async fn run(
    transaction: &Transaction,
    plan: &Plan,
    statement: &Statement,
    rows_wanted: bool,
    limits: &Limits,
) -> Result<Outcome, Error> {
    let tells_inserted = statement::tells_inserted(plan);
    let mut outcome = Outcome::default();
    let mut bytes = 0;
    let stream = transaction
        .query_raw(&statement.sql, parameters(statement))
        .await?;
    pin_mut!(stream);
    while let Some(row) = stream.next().await {
        let row = row?;
        if rows_wanted {
            let text: String = row.try_get(0)?;
            bytes += text.len();
            if bytes > limits.bytes {
                return Err(Error::TooLarge(limits.bytes));
            }
            outcome.rows.push(text);
        }
        if tells_inserted && row.try_get(row.len() - 1)? {
            outcome.inserted += 1;
        }
    }
    outcome.affected = stream.rows_affected().unwrap_or(0);
    if !tells_inserted {
        outcome.inserted = outcome.affected;
    }
    Ok(outcome)
}
