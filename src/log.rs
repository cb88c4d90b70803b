//! Committed entries between two cursors.
//!
//! One poll is one REPEATABLE READ transaction: its snapshot, and every log row that is visible in
//! it and not done in the cursor it starts from. That is each committed transaction exactly once,
//! whole, without waiting for any that is still open (proof in `docs/design.md`). Rows that the log
//! tells only by key are read in the same snapshot, so that a batch never mixes two states.
//!
//! [`batch`](Gathering) makes transactions of rows and [`fold`](fold()) one change a key of
//! transactions; both are pure. [`parts`] reads very many rows, and this file all others. It knows neither views
//! nor subscribers.

mod batch;
mod deferred;
mod fold;
mod parts;

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{FutureExt, StreamExt, TryStreamExt};
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, Kind as TypeKind, ToSql, Type};
use tokio_postgres::{Client, Row, RowStream, Statement};
use tracing::warn;

use crate::causes::Causes;
use crate::cursor::{Cursor, Name, Xid};
use crate::event::{Entry, Operation, State, TOO_LARGE, key_of};
use crate::postgres::quote;
use crate::schema::catalog::{Catalog, Table};
pub use batch::{Batch, Bounds, Gathered, Gathering, Head, Net, Place, Sum, TooMuch};
pub use fold::{Folded, fold};
pub use parts::{PART, STEP, TOUCHED};
use parts::{around_untellable, in_parts, leads};

/// The two branches of a poll: what had not begun at the cursor, and what was in progress there and is
/// not any more. Each is a condition on the head of the log's index, so that the cost does not depend on the
/// size of the log. Rows of a transaction that is still open are not looked at one by one, or each poll would
/// take longer while somebody changes a million rows (measured: 0.5 s). Where there is more than `$3` rows,
/// they are read [in parts](in_parts).
pub const POLL: &str = "\
select id, xid, at, rel, op, channel, old, new, truncated from rowcast.log where xid >= $1
union all
select id, xid, at, rel, op, channel, old, new, truncated from rowcast.log where xid = any (array(
  select open from unnest($2) as open where pg_visible_in_snapshot(open, pg_current_snapshot())))
limit $3";

/// The same where some transaction has been open for long: one with more than `$4` rows is left out. Nobody
/// waits for the way of rows of which nothing would be kept. They are counted from the last, since the first
/// may be on the disk by now (measured: 127 ms from the first).
pub const POLL_PAST: &str = "\
select id, xid, at, rel, op, channel, old, new, truncated from rowcast.log where xid >= $1
union all
select id, xid, at, rel, op, channel, old, new, truncated from rowcast.log where xid = any (array(
  select open from unnest($2) as open where pg_visible_in_snapshot(open, pg_current_snapshot())
    and not exists (select from rowcast.log where xid = open
                    order by op desc, rel desc, id desc offset $4)))
limit $3";

/// Rows that are read at a time.
const MOST: i64 = 24_000;

/// How long a transaction must have been open to be [looked at](POLL_PAST) before its rows are read. In that
/// time it cannot have logged very many.
const LONG: Duration = Duration::from_millis(100);

const HEAD: &str = "\
select pg_current_snapshot()::text, e.uuid::text, s.horizon::text, g.last_value, g.is_called, s.gap, \
       'rowcast.log'::regclass::oid
from rowcast.state s left join rowcast.epoch e on true cross join rowcast.gap g";

/// Opens the transaction of a poll. The planner gets nothing to choose: it takes a third of a log
/// that was never analyzed to lie beyond any cursor, and would read all of it every time
/// (measured), and sorts a million rows to see which tables they are of. What it then thinks of the cost
/// must not start the compiler either. A policy that applies to this login is an error: a row that it
/// hides must not be taken for one that is gone. And no function of a table's owner may be taken for one
/// of PostgreSQL's: it would run as this login.
/// A relay that was cut off in the middle holds back nothing for longer than five seconds ([`hold`]). A limit
/// that the database has for statements is one for people's: what is too much for it once would be so each
/// time, and nothing that came later would ever be told. Ours is [`SILENCE`].
pub const BEGIN: &str = "begin isolation level repeatable read, read only; \
                         set local statement_timeout = 0; \
                         set local idle_in_transaction_session_timeout = '5s'; \
                         set local search_path = pg_catalog, pg_temp; \
                         set local enable_seqscan = off; set local enable_sort = off; \
                         set local jit = off; \
                         set local row_security = off; \
                         set local lock_timeout = '300ms'";

/// What [`BEGIN`] sets, for a connection that does little but poll: once and not each time. A plan is made
/// once too, since there is nothing in it to choose.
const SETTINGS: &str = "set statement_timeout = 0; \
                        set idle_in_transaction_session_timeout = '5s'; \
                        set search_path = pg_catalog, pg_temp; \
                        set enable_seqscan = off; set jit = off; \
                        set plan_cache_mode = force_generic_plan; \
                        set row_security = off";

/// Opens the transaction of a poll on such a connection.
const AGAIN: &str =
    "begin isolation level repeatable read, read only; set local lock_timeout = '300ms'";

/// A database that is silent for so long is gone. It bounds each step and not the whole read: a huge
/// transaction takes its time.
const SILENCE: Duration = Duration::from_secs(10);

/// How often the server hears of a transaction that is only kept open: twice in the time it has.
const HELD: Duration = Duration::from_secs(2);

/// Why the log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// PostgreSQL's answer.
    #[error("the log could not be read")]
    Query(#[from] tokio_postgres::Error),
    /// The connection has gone silent.
    #[error("the log did not answer within {} seconds", SILENCE.as_secs())]
    Silent,
    /// More than the reader wants to take.
    #[error(transparent)]
    TooMuch(#[from] TooMuch),
    /// An answer that this version does not understand.
    #[error("the log holds something unexpected: {0}")]
    Unexpected(&'static str),
}

impl LogError {
    /// Some row holds text that PostgreSQL cannot bring to UTF-8: bytes in a database without an encoding, or
    /// what others do not have in one with another.
    fn is_untellable(&self) -> bool {
        let Self::Query(error) = self else {
            return false;
        };
        let code = error.code();
        code.is_some_and(|code| {
            [
                SqlState::CHARACTER_NOT_IN_REPERTOIRE,
                SqlState::UNTRANSLATABLE_CHARACTER,
            ]
            .contains(code)
        })
    }
}

impl Place {
    /// Asks the server where this is.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn of(client: &Client) -> Result<Self, LogError> {
        let row = in_time(client.query_one("select rowcast.place()", &[])).await??;
        Ok(Self::new(row.try_get(0)?))
    }
}

/// The statements of a poll, prepared on one connection.
#[derive(Debug)]
pub struct Prepared {
    head: Statement,
    poll: Statement,
    /// If there is the index for it.
    poll_past: Option<Statement>,
    /// Held for a comparison.
    ages: Mutex<Ages>,
}

/// Tells which transactions have been open for [`LONG`], by ids that were not given out yet then.
#[derive(Debug)]
struct Ages {
    since: Instant,
    /// At that time.
    newer: Xid,
    /// [`LONG`] before it.
    older: Xid,
}

impl Ages {
    /// Those of the transactions that were in progress at `from`. Each of them may be one at first.
    fn long_open<'a>(&mut self, from: &'a Cursor) -> &'a [Xid] {
        if self.since.elapsed() >= LONG {
            (self.older, self.newer) = (self.newer, from.xmax());
            self.since = Instant::now();
        }
        let end = from.xip().partition_point(|xid| *xid < self.older);
        &from.xip()[..end]
    }
}

/// Makes a connection one that polls: with the settings and the statements for it.
///
/// # Errors
/// [`LogError`].
pub async fn prepare(client: &Client) -> Result<Prepared, LogError> {
    in_time(client.batch_execute(SETTINGS)).await??;
    let types = [Type::XID8, Type::XID8_ARRAY, Type::INT8, Type::INT8];
    let poll_past = if leads(client).await? {
        Some(in_time(client.prepare_typed(POLL_PAST, &types)).await??)
    } else {
        None
    };
    Ok(Prepared {
        head: in_time(client.prepare(HEAD)).await??,
        poll: in_time(client.prepare_typed(POLL, &types[..3])).await??,
        poll_past,
        ages: Mutex::new(Ages {
            since: Instant::now(),
            newer: Xid::MAX,
            older: Xid::MAX,
        }),
    })
}

/// Reads everything that committed after `from`, on a connection that is [`Prepared`]. Catalogue tables
/// decide what is told of each entry; entries of other tables are left out.
///
/// All of it is one message, its COMMIT too, and nobody waits for that one's answer. Only a batch that
/// has rows to be read again, or very many, or the end of a transaction that was open for long, which are all
/// seldom, is read once more in a transaction that stays open.
///
/// # Errors
/// [`LogError`]. The connection may be inside a transaction then and must be thrown away, unless it is
/// [`LogError::TooMuch`].
pub async fn read(
    client: &Client,
    prepared: &Prepared,
    place: &Place,
    from: &Cursor,
    catalog: &Catalog,
    bounds: Bounds,
) -> Result<Batch, LogError> {
    let (xmax, xip) = parameters(from);
    let ages = prepared.ages.lock();
    let long_open = ages
        .expect("nothing panics while holding it")
        .long_open(from);
    let kept = kept(bounds);
    let parameters: [&(dyn ToSql + Sync); 4] = [&xmax, &xip, &MOST, &kept];
    let (poll, parameters, long_open) = match &prepared.poll_past {
        Some(past) if !long_open.is_empty() => (past, &parameters[..], long_open),
        _ => (&prepared.poll, &parameters[..3], &[][..]),
    };
    let asked = async {
        let begun = client.batch_execute(AGAIN);
        let head = client.query(&prepared.head, &[]);
        let rows = client.query_raw(poll, parameters.iter().copied());
        let asked = futures::future::join3(begun, head, rows);
        let mut asked = std::pin::pin!(asked);
        let mut ended = std::pin::pin!(client.batch_execute("commit").fuse());
        // Each is sent when it is first polled. Rows come before what COMMIT answers and hold it back, so
        // it is not waited for; if it fails, the connection is lost, and the next poll tells.
        poll_fn(|cx| {
            let asked = asked.as_mut().poll(cx);
            let _sent = ended.as_mut().poll(cx);
            asked
        })
        .await
    };
    let (begun, head, rows) = in_time(asked).await?;
    begun?;
    let head = head_of(&head?, place)?;
    let ended = long_open.iter().filter(|xid| head.end.is_done(**xid));
    let batch = match gather(rows?, bounds).await {
        // COMMIT has been sent, and ended it all the same.
        Err(error) if error.is_untellable() => {
            warn!(error = %Causes(&error), "a table that holds what cannot be told is read anew");
            open_around_untellable(client, place, from, catalog, bounds).await
        }
        gathered => {
            let gathered = gathered?;
            // Of whom there is no row, there are none, or very many.
            let left_out: Vec<Xid> = match &gathered {
                Some(batch) => ended.filter(|xid| !batch.has(**xid)).copied().collect(),
                None => Vec::new(),
            };
            match gathered {
                Some(batch) if left_out.is_empty() => {
                    let net = batch.finish(head).net(catalog);
                    if net.lookups().is_empty() {
                        return Ok(net.finish());
                    }
                    open(client, place, from, catalog, bounds).await
                }
                _ => open_in_parts(client, place, from, &left_out, catalog, bounds).await,
            }
        }
    };
    let end = match &batch {
        Ok(_) => "commit",
        Err(LogError::TooMuch(_)) => "rollback",
        Err(_) => return batch,
    };
    in_time(client.batch_execute(end)).await??;
    batch
}

/// Opens the transaction, which is where its snapshot is.
async fn begin_at_head(client: &Client, place: &Place) -> Result<Head, LogError> {
    let asked =
        async { futures::join!(client.batch_execute(BEGIN), client.query_typed(HEAD, &[])) };
    let (begun, head) = in_time(asked).await?;
    begun?;
    head_of(&head?, place)
}

/// As [`open`], where there may be very many rows, and of each of `large` there are or none at all.
async fn open_in_parts(
    client: &Client,
    place: &Place,
    from: &Cursor,
    large: &[Xid],
    catalog: &Catalog,
    bounds: Bounds,
) -> Result<Batch, LogError> {
    let head = begin_at_head(client, place).await?;
    let batch = in_parts(client, from, &head.end, large, bounds).await;
    match or_rollback(client, batch).await? {
        Some(batch) => settle(client, batch.finish(head), catalog).await,
        None => open_around_untellable(client, place, from, catalog, bounds).await,
    }
}

/// What was read; none where some row [cannot be told](LogError::is_untellable), and then the transaction is over.
async fn or_rollback<T>(client: &Client, read: Result<T, LogError>) -> Result<Option<T>, LogError> {
    match read {
        Err(error) if error.is_untellable() => {
            in_time(client.batch_execute("rollback")).await??;
            Ok(None)
        }
        read => read.map(Some),
    }
}

/// As [`open`], where some row [cannot be told](LogError::is_untellable). One value must not stop the feed of
/// everybody else: the tables that its transaction touched are told as unknown from there on.
async fn open_around_untellable(
    client: &Client,
    place: &Place,
    from: &Cursor,
    catalog: &Catalog,
    bounds: Bounds,
) -> Result<Batch, LogError> {
    let head = begin_at_head(client, place).await?;
    let batch = around_untellable(client, from, &head.end, bounds).await?;
    settle(client, batch.finish(head), catalog).await
}

/// Makes the snapshot of the open transaction known, so that another login can read in it. It lasts
/// as long as the transaction.
///
/// # Errors
/// [`LogError`].
pub async fn export(client: &Client) -> Result<String, LogError> {
    let rows = in_time(client.query_typed("select pg_export_snapshot()", &[])).await??;
    let row = rows
        .first()
        .ok_or(LogError::Unexpected("no snapshot to export"))?;
    Ok(row.try_get(0)?)
}

/// Does `work` elsewhere while the transaction stays open, and says so to the server from time to
/// time.
///
/// # Errors
/// [`LogError`], when the transaction is not there any more.
pub async fn hold<T>(client: &Client, work: impl Future<Output = T>) -> Result<T, LogError> {
    let held = async {
        loop {
            tokio::time::sleep(HELD).await;
            match in_time(client.batch_execute("")).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return LogError::from(error),
                Err(error) => return error,
            }
        }
    };
    tokio::select! {
        done = work => Ok(done),
        error = held => Err(error),
    }
}

/// As [`read`] on any connection, but leaves the transaction open, for those who read on in its snapshot.
///
/// # Errors
/// [`LogError`]. The connection may be inside a transaction then and must be thrown away.
pub async fn open(
    client: &Client,
    place: &Place,
    from: &Cursor,
    catalog: &Catalog,
    bounds: Bounds,
) -> Result<Batch, LogError> {
    let gathered = begin(client, place, from, bounds).await;
    match or_rollback(client, gathered).await? {
        Some(gathered) => settle(client, gathered, catalog).await,
        None => open_around_untellable(client, place, from, catalog, bounds).await,
    }
}

/// Reads again, inside the transaction, what the log tells only by key.
async fn settle(client: &Client, gathered: Gathered, catalog: &Catalog) -> Result<Batch, LogError> {
    let mut net = gathered.net(catalog);
    for (oid, objects) in net.lookups() {
        let Some(table) = catalog.table_by_oid(oid) else {
            continue;
        };
        let objects: Vec<&str> = objects.iter().map(AsRef::as_ref).collect();
        let rows = rows_told(client, table, &objects).await?;
        net.settle(oid, rows.as_ref());
    }
    Ok(net.finish())
}

/// As [`rows_by_key`], but a row that cannot be converted is told without its value: the casts of a
/// table's owner run here, and an error of theirs must not stop the feed of everybody else. So is each where
/// [somebody else's](FOREIGN) could run. `None` when the table is locked, or is not what it was.
async fn rows_told(
    client: &Client,
    table: &Table,
    lookups: &[&str],
) -> Result<Option<HashMap<String, State>>, LogError> {
    let own = match attempt(client, runs_own_code(client, table)).await? {
        Attempt::Done(Some(own)) => own,
        Attempt::Done(None) | Attempt::Locked => return Ok(None),
        Attempt::Refused => false,
    };
    if own {
        match attempt(client, rows_by_key(client, table, lookups)).await? {
            Attempt::Done(found) => return Ok(Some(found)),
            Attempt::Locked => return Ok(None),
            Attempt::Refused => {}
        }
    }
    let mut found = HashMap::with_capacity(lookups.len());
    for lookup in lookups {
        let one = if own {
            attempt(client, rows_by_key(client, table, &[lookup])).await?
        } else {
            Attempt::Refused
        };
        match one {
            Attempt::Done(row) => found.extend(row),
            Attempt::Locked => return Ok(None),
            Attempt::Refused => {
                let key = key_of(lookup, &table.key);
                let key = key.ok_or(LogError::Unexpected("a row without its primary key"))?;
                found.insert(key, State::TooLarge);
            }
        }
    }
    Ok(Some(found))
}

/// What came of asking for rows.
enum Attempt<T> {
    Done(T),
    /// Somebody holds the table.
    Locked,
    /// PostgreSQL refused for another reason.
    Refused,
}

/// Something under a savepoint.
async fn attempt<T>(
    client: &Client,
    work: impl Future<Output = Result<T, LogError>>,
) -> Result<Attempt<T>, LogError> {
    in_time(client.batch_execute("savepoint lookup")).await??;
    let found = match work.await {
        Ok(found) => {
            in_time(client.batch_execute("release savepoint lookup")).await??;
            return Ok(Attempt::Done(found));
        }
        Err(LogError::Query(error)) => match error.code() {
            Some(code) if *code == SqlState::LOCK_NOT_AVAILABLE => Attempt::Locked,
            Some(_) => Attempt::Refused,
            None => return Err(error.into()),
        },
        Err(error) => return Err(error),
    };
    let undone = "rollback to savepoint lookup; release savepoint lookup";
    in_time(client.batch_execute(undone)).await??;
    Ok(found)
}

/// Whether what a name means is still the table, with no more columns, and whether one of its types belongs to
/// somebody who is neither a superuser nor may become this login anyway. Who owns a type can make a cast to json of
/// it, or a check of a domain, and that would run here as the login that reads the log. Under the lock nothing of
/// it changes but owners. Privileges are asked of the present, all else of the snapshot.
const FOREIGN: &str = "\
select pg_catalog.to_regclass($1) = c.oid
       and pg_catalog.has_column_privilege(c.oid, (c.relnatts + 1)::pg_catalog.int2, 'select') is null,
  exists (
    select from rowcast.types(c.oid) as u (type)
    join pg_catalog.pg_type t on t.oid = u.type
    join pg_catalog.pg_roles o on o.oid = t.typowner
    where t.typnamespace <> 'pg_catalog'::pg_catalog.regnamespace
      and t.typtype <> 'c' and t.typcategory <> 'A'
      and not o.rolsuper and not pg_catalog.pg_has_role(o.oid, current_user, 'member'))
from pg_catalog.pg_class c where c.oid = $2";

/// Whether a row of the table is converted by nobody's code but PostgreSQL's, a superuser's or our own. The table
/// is locked, as reading it would; `None` when it is not what it was.
async fn runs_own_code(client: &Client, table: &Table) -> Result<Option<bool>, LogError> {
    let name = quote::qualified(&table.schema, &table.name);
    let lock = format!("lock table only {name} in access share mode");
    let parameters: [(&(dyn ToSql + Sync), Type); 2] =
        [(&name, Type::TEXT), (&table.oid, Type::OID)];
    let asked = async {
        futures::join!(
            client.batch_execute(&lock),
            client.query_typed(FOREIGN, &parameters)
        )
    };
    let (locked, rows) = in_time(asked).await?;
    locked?;
    let rows = rows?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let (same, foreign): (Option<bool>, bool) = (row.try_get(0)?, row.try_get(1)?);
    Ok((same == Some(true)).then_some(!foreign))
}

/// Current rows of a table by lookup objects, by their key.
async fn rows_by_key(
    client: &Client,
    table: &Table,
    lookups: &[&str],
) -> Result<HashMap<String, State>, LogError> {
    let name = quote::qualified(&table.schema, &table.name);
    let keys: Vec<String> = table.key.iter().map(|k| quote::identifier(k)).collect();
    let same: Vec<String> = keys.iter().map(|k| format!("t.{k} = k.{k}")).collect();
    // The key's columns alone: others may be of a domain that takes no null.
    let type_of = |key: &String| {
        let column = table.column(key)?;
        let whole = quote::whole_type(&column.type_name);
        Some(format!("{} {whole}", quote::identifier(key)))
    };
    let typed: Option<Vec<String>> = table.key.iter().map(type_of).collect();
    let typed = typed.ok_or(LogError::Unexpected("a key that is no column"))?;
    // Names are quoted and come from the catalogue; the keys travel as a parameter.
    let sql = format!(
        "select (select pg_catalog.row_to_json(s.*) from (select {columns}) as s), \
           case when pg_column_size(t.*) <= {TOO_LARGE} then pg_catalog.row_to_json(t.*) end \
         from {name} t join pg_catalog.json_to_recordset($1) k ({typed}) on {on}",
        typed = typed.join(", "),
        columns = keys
            .iter()
            .map(|k| format!("t.{k}"))
            .collect::<Vec<_>>()
            .join(", "),
        on = same.join(" and "),
    );
    let json = Text(format!("[{}]", lookups.join(",")).into());
    let rows = in_time(client.query_typed(&sql, &[(&json, Type::JSON)])).await??;
    let mut found = HashMap::with_capacity(rows.len());
    for row in rows {
        let (Text(key), image): (Text, Option<Text>) = (row.try_get(0)?, row.try_get(1)?);
        let key = key_of(&key, &table.key);
        let key = key.ok_or(LogError::Unexpected("a row without its primary key"))?;
        let state = match image {
            Some(Text(text)) if text.len() <= TOO_LARGE => State::Row(text),
            _ => State::TooLarge,
        };
        found.insert(key, state);
    }
    Ok(found)
}

/// Opens the transaction and reads the entries; leaves it open. Everything is sent at once.
async fn begin(
    client: &Client,
    place: &Place,
    from: &Cursor,
    bounds: Bounds,
) -> Result<Gathered, LogError> {
    let (xmax, xip) = parameters(from);
    let parameters: [(&(dyn ToSql + Sync), Type); 3] = [
        (&xmax, Type::XID8),
        (&xip, Type::XID8_ARRAY),
        (&MOST, Type::INT8),
    ];
    let asked = async {
        futures::join!(
            client.batch_execute(BEGIN),
            client.query_typed(HEAD, &[]),
            client.query_typed_raw(POLL, parameters),
        )
    };
    let (begun, head, rows) = in_time(asked).await?;
    begun?;
    let head = head_of(&head?, place)?;
    let batch = match gather(rows?, bounds).await? {
        Some(batch) => batch,
        None => in_parts(client, from, &head.end, &[], bounds).await?,
    };
    Ok(batch.finish(head))
}

/// The parameters of [`POLL`] besides its limit.
fn parameters(from: &Cursor) -> (Xid8, Vec<Xid8>) {
    let xip = from.xip().iter().map(|xid| Xid8(*xid)).collect();
    (Xid8(from.xmax()), xip)
}

/// Log rows that are kept of one transaction.
fn kept(bounds: Bounds) -> i64 {
    i64::try_from(bounds.rows).unwrap_or(i64::MAX)
}

/// Takes the rows of a poll as they come. `None` when that was not all.
async fn gather(rows: RowStream, bounds: Bounds) -> Result<Option<Gathering>, LogError> {
    let mut batch = Gathering::new(bounds);
    let count = add(&mut batch, rows).await?;
    Ok((count < MOST).then_some(batch))
}

/// Adds rows as they come, and says how many there were.
async fn add(batch: &mut Gathering, rows: RowStream) -> Result<i64, LogError> {
    let mut rows = std::pin::pin!(rows);
    let mut count = 0;
    while let Some(row) = in_time(rows.next()).await? {
        let (xid, entry) = entry(&row?)?;
        count += 1;
        batch.add(xid, entry)?;
        if count % 1000 == 0 {
            // Rows that have arrived are taken without waiting; others must have their turn.
            tokio::task::yield_now().await;
        }
    }
    Ok(count)
}

/// What a poll reads besides rows.
fn head_of(rows: &[Row], place: &Place) -> Result<Head, LogError> {
    let row = rows
        .first()
        .ok_or(LogError::Unexpected("rowcast.state is empty"))?;
    let snapshot = |text: &str| {
        Cursor::from_pg_snapshot(text)
            .map_err(|_| LogError::Unexpected("a snapshot in another form"))
    };
    // The life of another log is none of this one's, whatever uuid came along.
    let uuid: Option<&str> = row.try_get(1)?;
    let log = row.try_get(6)?;
    let uuid = uuid.filter(|_| place.has(log));
    let horizon: Option<&str> = row.try_get(2)?;
    let (last_value, is_called): (i64, bool) = (row.try_get(3)?, row.try_get(4)?);
    Ok(Head {
        end: snapshot(row.try_get(0)?)?,
        epoch: uuid.map(|uuid| place.epoch(uuid)),
        horizon: horizon.map(snapshot).transpose()?,
        gap: if is_called { last_value } else { 0 },
        gap_told: row.try_get(5)?,
    })
}

/// Bytes may vanish on the way and leave the connection open, so whatever is asked of the log must
/// be answered in time: no end of the connection would ever tell.
///
/// # Errors
/// [`LogError::Silent`].
pub async fn in_time<T>(step: impl Future<Output = T>) -> Result<T, LogError> {
    tokio::time::timeout(SILENCE, step)
        .await
        .map_err(|_| LogError::Silent)
}

fn entry(row: &Row) -> Result<(Xid, Entry), LogError> {
    let Xid8(xid) = row.try_get(1)?;
    let image = |column| -> Result<Option<Arc<str>>, tokio_postgres::Error> {
        let text: Option<Text> = row.try_get(column)?;
        Ok(text.map(|Text(text)| text))
    };
    let entry = Entry {
        id: row.try_get(0)?,
        rel: row.try_get::<_, Option<u32>>(3)?.unwrap_or(0),
        operation: operation(row.try_get(4)?)?,
        channel: row.try_get(5)?,
        old: image(6)?,
        new: image(7)?,
        truncated: row.try_get(8)?,
        at: row.try_get(2)?,
    };
    Ok((xid, entry))
}

fn operation(letter: i8) -> Result<Operation, LogError> {
    Operation::from_letter(letter.cast_unsigned())
        .ok_or(LogError::Unexpected("an operation of a later version"))
}

/// A cursor to start at that lets the memory of a new relay serve those who were connected to its
/// predecessor: a stored snapshot some minutes old, or the present one. Makes an epoch if needed.
///
/// # Errors
/// [`LogError`].
pub async fn start(client: &Client) -> Result<Cursor, LogError> {
    in_time(client.query_one("select rowcast.begin_epoch()", &[])).await??;
    let sql = "select coalesce((select t.snapshot from rowcast.tick t, rowcast.state s \
                 where t.at > clock_timestamp() - interval '5 minutes' \
                   and (s.horizon is null or pg_snapshot_xmin(t.snapshot) >= pg_snapshot_xmax(s.horizon)) \
                 order by t.at limit 1), pg_current_snapshot())::text";
    let row = in_time(client.query_one(sql, &[])).await??;
    Cursor::from_pg_snapshot(row.try_get(0)?)
        .map_err(|_| LogError::Unexpected("a snapshot in another form"))
}

/// Ends the epoch that a reader knows, because its cursor lies in the server's future: what it read
/// is not there any more, and would be given out anew under the same ids. Of several readers who
/// find this, the first one ends it.
///
/// # Errors
/// [`LogError`].
pub async fn end_epoch(client: &Client, place: &Place, known: Name) -> Result<(), LogError> {
    let sql = "select uuid::text from rowcast.epoch";
    let Some(row) = in_time(client.query_opt(sql, &[])).await?? else {
        return Ok(());
    };
    let uuid: &str = row.try_get(0)?;
    if place.epoch(uuid) == known {
        let sql = "select rowcast.new_epoch($1::text::uuid)";
        in_time(client.query_one(sql, &[&uuid])).await??;
    }
    Ok(())
}

/// Sees to it that the log's ids are given out one at a time, without which they are no order.
/// Returns what was wrong, if it could be repaired.
///
/// # Errors
/// [`LogError`], also while writers are in the way.
pub async fn check_order(client: &Client) -> Result<Option<String>, LogError> {
    let sql = "select rowcast.check_order()";
    Ok(in_time(client.query_one(sql, &[])).await??.try_get(0)?)
}

/// The present, for a relay that would have to read too much to begin earlier.
///
/// # Errors
/// [`LogError`].
pub async fn present(client: &Client) -> Result<Cursor, LogError> {
    let asked = client.query_one("select pg_current_snapshot()::text", &[]);
    let row = in_time(asked).await??;
    Cursor::from_pg_snapshot(row.try_get(0)?)
        .map_err(|_| LogError::Unexpected("a snapshot in another form"))
}

/// A transaction id that every transaction which is open now, and has one, lies below.
///
/// # Errors
/// [`LogError`].
pub async fn barrier(client: &Client) -> Result<Xid, LogError> {
    let asked = async {
        let none = std::iter::empty::<&(dyn ToSql + Sync)>();
        let rows = client
            .query_raw("select pg_current_xact_id()", none)
            .await?;
        rows.try_collect().await
    };
    let rows: Vec<Row> = in_time(asked).await??;
    let row = rows
        .first()
        .ok_or(LogError::Unexpected("no transaction id"))?;
    let Xid8(xid) = row.try_get(0)?;
    Ok(xid)
}

/// Writes the reset that the gap up to `value` calls for, unless another relay has.
///
/// # Errors
/// [`LogError`].
pub async fn settle_gap(client: &Client, value: i64) -> Result<(), LogError> {
    in_time(client.execute("select rowcast.settle_gap($1)", &[&value])).await??;
    Ok(())
}

/// An `xid8` in its binary form.
#[derive(Debug, Clone, Copy)]
struct Xid8(Xid);

impl<'a> FromSql<'a> for Xid8 {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(u64::from_be_bytes(raw.try_into()?)))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::XID8
    }
}

impl ToSql for Xid8 {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut bytes::BytesMut,
    ) -> Result<tokio_postgres::types::IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(&self.0.to_be_bytes());
        Ok(tokio_postgres::types::IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::XID8
    }

    tokio_postgres::types::to_sql_checked!();
}

/// `json` as its text. PostgreSQL brings it to UTF-8, or [fails](LogError::is_untellable) where it knows another
/// encoding or none; in UTF-8 it does not look. What is not is replaced, since an event stream is UTF-8 and one
/// odd value must not stop the others.
#[derive(Debug, Clone)]
struct Text(Arc<str>);

impl<'a> FromSql<'a> for Text {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(match str::from_utf8(raw) {
            Ok(text) => text.into(),
            Err(_) => String::from_utf8_lossy(raw).into(),
        }))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::JSON
    }
}

impl ToSql for Text {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut bytes::BytesMut,
    ) -> Result<tokio_postgres::types::IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(tokio_postgres::types::IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::JSON || matches!(ty.kind(), TypeKind::Simple)
    }

    tokio_postgres::types::to_sql_checked!();
}
