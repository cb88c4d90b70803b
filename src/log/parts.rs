//! Reading very many rows: transactions step by step, and of a large one only what it touched.
//!
//! Nothing that committed later may be told before, so what takes long here is felt by every screen. A
//! transaction of which nothing would be kept is therefore not read. It knows the transaction that somebody
//! has opened, and no more of a poll.

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::batch::{Bounds, Gathering, Sum};
use super::{LogError, MOST, Xid8, add, in_time, kept, operation};
use crate::cursor::{Cursor, Xid};

/// Whose row comes so many rows after the first of a transaction, or of a later one.
pub const STEP: &str = "select xid from rowcast.log where xid >= $1 order by xid limit 1 offset $2";

/// Transactions from one on and below another.
pub const PART: &str = "\
select id, xid, at, rel, op, channel, old, new, truncated from rowcast.log where xid >= $1 and xid < $2";

/// Whether a transaction has more rows than that.
const LARGE: &str = "select exists (select from rowcast.log where xid = $1 offset $2)";

/// Whether the log has the index that leads to what a transaction touched. One of an earlier release has not,
/// if it was too large to be changed (`triggers/90_log_table.sql`), and one that is being made is of no use yet.
const LEADS: &str = "\
select exists (select from pg_index where indexrelid = to_regclass('rowcast.log_touched') and indisvalid)";

/// What a transaction touched, by operation and table, with the last row of each. The index has them in that
/// order, so a million rows are passed over in a few steps (measured: 0.3 ms, where to look at each of them
/// took 0.4 s). Rows without a table come first.
pub const TOUCHED: &str = "\
with recursive touched (op, rel, id, at) as (
  select one.op, l.rel, l.id, l.at
  from unnest('{I,U,D,T,P,R}'::\"char\"[]) as one (op),
    lateral (select rel, id, at from rowcast.log where xid = $1 and op = one.op
             order by rel desc, id desc limit 1) as l
  union all
  select t.op, l.rel, l.id, l.at
  from touched t,
    lateral (select rel, id, at from rowcast.log where xid = $1 and op = t.op
               and rel < coalesce(t.rel, '4294967295')
             order by rel desc, id desc limit 1) as l
)
select op, rel, id, at from touched";

/// The same without that index: each row is looked at, no more than so many after an id.
const SUM: &str = "\
select op, rel, max(id), max(at), count(*)
from (select id, at, rel, op from rowcast.log where xid = $1 and id > $2 order by id limit $3) as part
group by op, rel";

/// Rows that are looked at at a time: a fifth of a second (measured), so that each answer is there long
/// before [`super::SILENCE`] is over.
const SUMMED: i64 = 500_000;

/// Rows that are read at a time where some cannot be told.
const FEW: i64 = 200;

/// Reads very many rows, inside the transaction, whose snapshot is `end`. Of a transaction that is too large
/// to be kept, what it touched is asked for, and its rows stay where they are: nobody else waits for their way.
pub(super) async fn in_parts(
    client: &Client,
    from: &Cursor,
    end: &Cursor,
    large: &[Xid],
    bounds: Bounds,
) -> Result<Gathering, LogError> {
    let mut batch = Gathering::new(bounds);
    for xid in from.xip().iter().filter(|xid| end.is_done(**xid)) {
        if large.contains(xid) {
            sum_up(client, &mut batch, *xid).await?;
        } else {
            one(client, &mut batch, *xid, bounds).await?;
        }
    }
    let mut first = from.xmax();
    loop {
        let Some(next) = step(client, first, MOST).await? else {
            between(client, &mut batch, first, Xid::MAX).await?;
            return Ok(batch);
        };
        if next > first {
            between(client, &mut batch, first, next).await?;
            first = next;
        } else {
            one(client, &mut batch, first, bounds).await?;
            first += 1;
        }
    }
}

/// The same where some row holds text that PostgreSQL cannot bring to UTF-8, and so tells nobody: of its
/// transaction, too, what it touched is asked for. All others are told.
pub(super) async fn around_untellable(
    client: &Client,
    from: &Cursor,
    end: &Cursor,
    bounds: Bounds,
) -> Result<Gathering, LogError> {
    let mut batch = Gathering::new(bounds);
    for xid in from.xip().iter().filter(|xid| end.is_done(**xid)) {
        one_or_sum(client, &mut batch, *xid, bounds).await?;
    }
    let mut first = from.xmax();
    loop {
        let next = step(client, first, FEW).await?;
        // One that has more rows goes alone.
        let end = next.map_or(Xid::MAX, |next| next.max(first + 1));
        if end == first + 1 || !all_told(client, &mut batch, first, end).await? {
            batch.forget(first..end);
            while let Some(xid) = step(client, first, 0).await?
                && xid < end
            {
                one_or_sum(client, &mut batch, xid, bounds).await?;
                first = xid + 1;
            }
        }
        if next.is_none() {
            return Ok(batch);
        }
        first = end;
    }
}

/// As [`between`]; `false` where some row cannot be told, and then some others may have been added.
async fn all_told(
    client: &Client,
    batch: &mut Gathering,
    first: Xid,
    end: Xid,
) -> Result<bool, LogError> {
    in_time(client.batch_execute("savepoint part")).await??;
    let (undo, told) = match between(client, batch, first, end).await {
        Ok(()) => ("release savepoint part", true),
        Err(error) if error.is_untellable() => {
            ("rollback to savepoint part; release savepoint part", false)
        }
        Err(error) => return Err(error),
    };
    in_time(client.batch_execute(undo)).await??;
    Ok(told)
}

/// As [`one`], and asks what it touched as well if it cannot be told.
async fn one_or_sum(
    client: &Client,
    batch: &mut Gathering,
    xid: Xid,
    bounds: Bounds,
) -> Result<(), LogError> {
    if is_large(client, xid, bounds).await? || !all_told(client, batch, xid, xid + 1).await? {
        sum_up(client, batch, xid).await?;
    }
    Ok(())
}

/// Whose row comes so many rows after the first of a transaction, or of a later one.
async fn step(client: &Client, first: Xid, rows: i64) -> Result<Option<Xid>, LogError> {
    let parameters: [(&(dyn ToSql + Sync), Type); 2] =
        [(&Xid8(first), Type::XID8), (&rows, Type::INT8)];
    let found = in_time(client.query_typed(STEP, &parameters)).await??;
    let found = found.first().map(|row| row.try_get(0)).transpose()?;
    Ok(found.map(|Xid8(xid)| xid))
}

/// Reads one transaction, or asks what it touched if it is too large to be kept.
async fn one(
    client: &Client,
    batch: &mut Gathering,
    xid: Xid,
    bounds: Bounds,
) -> Result<(), LogError> {
    if is_large(client, xid, bounds).await? {
        sum_up(client, batch, xid).await
    } else {
        between(client, batch, xid, xid + 1).await
    }
}

/// Whether a transaction is too large to be kept.
async fn is_large(client: &Client, xid: Xid, bounds: Bounds) -> Result<bool, LogError> {
    let parameters: [(&(dyn ToSql + Sync), Type); 2] =
        [(&Xid8(xid), Type::XID8), (&kept(bounds), Type::INT8)];
    says_yes(&in_time(client.query_typed(LARGE, &parameters)).await??)
}

/// Asks what a transaction touched.
async fn sum_up(client: &Client, batch: &mut Gathering, xid: Xid) -> Result<(), LogError> {
    let of = Xid8(xid);
    if leads(client).await? {
        let parameters: [(&(dyn ToSql + Sync), Type); 1] = [(&of, Type::XID8)];
        for row in in_time(client.query_typed(TOUCHED, &parameters)).await?? {
            batch.sum(xid, &sum(&row)?);
        }
        return Ok(());
    }
    let mut after = 0;
    loop {
        let parameters: [(&(dyn ToSql + Sync), Type); 3] = [
            (&of, Type::XID8),
            (&after, Type::INT8),
            (&SUMMED, Type::INT8),
        ];
        let mut count = 0;
        for row in in_time(client.query_typed(SUM, &parameters)).await?? {
            let sum = sum(&row)?;
            after = after.max(sum.last);
            count += row.try_get::<_, i64>(4)?;
            batch.sum(xid, &sum);
        }
        if count < SUMMED {
            return Ok(());
        }
    }
}

fn sum(row: &Row) -> Result<Sum, LogError> {
    Ok(Sum {
        operation: operation(row.try_get(0)?)?,
        rel: row.try_get::<_, Option<u32>>(1)?.unwrap_or(0),
        last: row.try_get(2)?,
        at: row.try_get(3)?,
    })
}

/// Whether the log has the index for [`TOUCHED`].
pub(super) async fn leads(client: &Client) -> Result<bool, LogError> {
    says_yes(&in_time(client.query_typed(LEADS, &[])).await??)
}

fn says_yes(rows: &[Row]) -> Result<bool, LogError> {
    let answer = rows.first().map(|row| row.try_get(0)).transpose()?;
    Ok(answer.unwrap_or(false))
}

/// Reads transactions from `first` on and below `end`.
async fn between(
    client: &Client,
    batch: &mut Gathering,
    first: Xid,
    end: Xid,
) -> Result<(), LogError> {
    let (first, end) = (Xid8(first), Xid8(end));
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&first, Type::XID8), (&end, Type::XID8)];
    let rows = in_time(client.query_typed_raw(PART, parameters)).await??;
    add(batch, rows).await?;
    Ok(())
}
