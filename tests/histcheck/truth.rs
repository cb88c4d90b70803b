//! What really happened, told by PostgreSQL's write-ahead log and by nobody of ours.
//!
//! A logical slot with `test_decoding` tells every committed transaction in commit order. Crashes
//! divide it into eras: transaction ids are given out again after one, so a snapshot of one era
//! means nothing in the next. Where an era ended, PostgreSQL's own log tells ("redo done at").

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::tables::{Row, TABLES, Table};

pub const SLOT: &str = "histcheck";

/// One key's row, before or after a transaction.
pub type Change = (Table, Arc<str>, Option<Arc<Row>>);

#[derive(Debug, Default)]
pub struct Txn {
    pub xid: u64,
    pub era: usize,
    /// Microseconds since 1970.
    pub at: u64,
    /// The id that its writer gave it.
    pub tx: Option<i64>,
    /// Net: one a key.
    pub changes: Vec<Change>,
    pub truncates: Vec<Table>,
}

/// A key's row after the transaction of this place.
pub type Version = (usize, Option<Arc<Row>>);

#[derive(Debug, Default)]
pub struct Truth {
    pub txns: Vec<Txn>,
    pub versions: HashMap<Table, HashMap<Arc<str>, Vec<Version>>>,
    /// Transactions that touched a table: (xid, place), ascending, by era.
    touching: HashMap<(Table, usize), Vec<(u64, usize)>>,
    pub of_tx: HashMap<i64, usize>,
    pub of_xid: HashMap<(usize, u64), usize>,
    pub eras: usize,
}

/// What the slot gives: place in the log, xid, text.
pub type Line = (u64, u64, String);

impl Truth {
    /// Reads everything from the slot, and leaves it there.
    pub async fn read(client: &Client, log: &Path) -> Self {
        client.batch_execute("set timezone = 'UTC'").await.unwrap();
        let sql = format!(
            "select lsn - '0/0'::pg_lsn, xid::text, data from pg_logical_slot_peek_changes('{SLOT}', null, null, \
             'include-xids', '0', 'skip-empty-xacts', '1', 'include-timestamp', '1')"
        );
        let messages = client.simple_query(&sql).await.unwrap();
        let lines = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((
                row.get(0)?.parse().ok()?,
                row.get(1)?.parse().ok()?,
                row.get(2)?.to_owned(),
            )),
            _ => None,
        });
        let log = tokio::fs::read(log).await.unwrap_or_default();
        Self::of(lines, &ends_of_eras(&String::from_utf8_lossy(&log)))
    }

    /// Builds it from the lines of the slot.
    pub fn of(lines: impl Iterator<Item = Line>, ends: &[u64]) -> Self {
        let mut truth = Self::default();
        let mut state: HashMap<(Table, Arc<str>), Arc<Row>> = HashMap::new();
        let mut now = Txn::default();
        let mut touched: Vec<Change> = Vec::new();
        for (lsn, xid, line) in lines {
            if line.starts_with("BEGIN") {
                now = Txn {
                    xid,
                    ..Txn::default()
                };
                touched.clear();
            } else if line.starts_with("COMMIT") {
                now.at = commit_time(&line);
                truth.finish(std::mem::take(&mut now), &touched, &state);
            } else if let Some((table, operation)) = of_line(&line) {
                // The log's own places: the end of an era is the start of its last record.
                now.era = ends.iter().filter(|end| lsn > **end).count();
                apply(table, operation, &mut state, &mut touched, &mut now);
            }
        }
        truth.eras = ends.len() + 1;
        truth
    }

    fn finish(
        &mut self,
        mut txn: Txn,
        touched: &[Change],
        state: &HashMap<(Table, Arc<str>), Arc<Row>>,
    ) {
        let place = self.txns.len();
        for (table, key, before) in touched {
            let after = state.get(&(*table, Arc::clone(key))).cloned();
            if after == *before {
                continue;
            }
            txn.changes.push((*table, Arc::clone(key), after.clone()));
            let keys = self.versions.entry(*table).or_default();
            keys.entry(Arc::clone(key))
                .or_default()
                .push((place, after));
        }
        let mut tables: Vec<Table> = txn.changes.iter().map(|(table, ..)| *table).collect();
        tables.extend(&txn.truncates);
        tables.sort_unstable();
        tables.dedup();
        for table in tables {
            let list = self.touching.entry((table, txn.era)).or_default();
            let at = list.partition_point(|(xid, _)| *xid < txn.xid);
            list.insert(at, (txn.xid, place));
        }
        self.of_xid.insert((txn.era, txn.xid), place);
        if let Some(tx) = txn.tx {
            self.of_tx.insert(tx, place);
        }
        self.txns.push(txn);
    }

    /// Transactions of an era that touched the table and whose xid is in `from..to`.
    pub fn touching(&self, table: Table, era: usize, from: u64, to: u64) -> &[(u64, usize)] {
        let list = self.touching.get(&(table, era)).map_or(&[][..], |l| l);
        let first = list.partition_point(|(xid, _)| *xid < from);
        let last = list.partition_point(|(xid, _)| *xid < to);
        &list[first..last.max(first)]
    }

    /// The row of the newest version for which `done` holds.
    pub fn row(
        &self,
        table: Table,
        key: &str,
        done: impl Fn(&Txn) -> bool,
    ) -> Option<(usize, Option<&Arc<Row>>)> {
        let versions = self.versions.get(&table)?.get(key)?;
        let mut newest_first = versions.iter().rev();
        newest_first
            .find(|(place, _)| done(&self.txns[*place]))
            .map(|(place, row)| (*place, row.as_ref()))
    }
}

enum Operation {
    Put { old_key: Option<Row>, new: Row },
    Delete(Row),
    Truncate,
}

fn apply(
    table: Table,
    operation: Operation,
    state: &mut HashMap<(Table, Arc<str>), Arc<Row>>,
    touched: &mut Vec<Change>,
    now: &mut Txn,
) {
    let mut touch = |key: &Arc<str>, state: &HashMap<(Table, Arc<str>), Arc<Row>>| {
        if !touched.iter().any(|(t, k, _)| *t == table && k == key) {
            let before = state.get(&(table, Arc::clone(key))).cloned();
            touched.push((table, Arc::clone(key), before));
        }
    };
    match operation {
        Operation::Put { old_key, mut new } => {
            let key: Arc<str> = new.key(table).into();
            let was: Arc<str> =
                old_key.map_or_else(|| Arc::clone(&key), |old| old.key(table).into());
            touch(&was, state);
            touch(&key, state);
            let before = state.remove(&(table, was));
            // What was not written again is as it was.
            for (name, value) in &mut new.0 {
                if &**value == UNCHANGED
                    && let Some(before) = before.as_ref().and_then(|row| row.get(name))
                {
                    *value = before.into();
                }
            }
            if table == Table::Tx {
                now.tx = Some(new.number("tx"));
            }
            state.insert((table, key), Arc::new(new));
        }
        Operation::Delete(old) => {
            let key: Arc<str> = old.key(table).into();
            touch(&key, state);
            state.remove(&(table, key));
        }
        Operation::Truncate => {
            let keys: Vec<Arc<str>> = state
                .keys()
                .filter(|(t, _)| *t == table)
                .map(|(_, key)| Arc::clone(key))
                .collect();
            for key in keys {
                touch(&key, state);
                state.remove(&(table, key));
            }
            now.truncates.push(table);
        }
    }
}

const UNCHANGED: &str = "\u{0}unchanged";

/// `table public.hc_reg: UPDATE: old-key: k[integer]:1 new-tuple: k[integer]:2 …`
fn of_line(line: &str) -> Option<(Table, Operation)> {
    let rest = line.strip_prefix("table public.")?;
    let (name, rest) = rest.split_once(": ")?;
    // A truncation may name several.
    let table = Table::of(name.split(',').next()?)?;
    let (operation, rest) = rest.split_once(": ")?;
    let operation = match operation {
        "INSERT" => Operation::Put {
            old_key: None,
            new: columns(rest),
        },
        "UPDATE" => {
            let (old_key, new) = match rest.strip_prefix("old-key: ") {
                Some(both) => {
                    let (old, new) = both.split_once(" new-tuple: ")?;
                    (Some(columns(old)), columns(new))
                }
                None => (None, columns(rest)),
            };
            Operation::Put { old_key, new }
        }
        "DELETE" => Operation::Delete(columns(rest)),
        _ => Operation::Truncate,
    };
    Some((table, operation))
}

/// `k[integer]:1 body[text]:'it''s' …`
fn columns(mut text: &str) -> Row {
    let mut row = Vec::new();
    while let Some((name, rest)) = text.split_once('[') {
        let Some((_, rest)) = rest.split_once("]:") else {
            break;
        };
        let (value, rest) = if let Some(quoted) = rest.strip_prefix('\'') {
            let (value, rest) = quoted_value(quoted);
            (Some(value), rest)
        } else {
            let (value, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            let value = match value {
                "null" => None,
                "unchanged-toast-datum" => Some(UNCHANGED.to_owned()),
                other => Some(other.to_owned()),
            };
            (value, rest)
        };
        if let Some(value) = value {
            row.push((name.into(), value.into()));
        }
        text = rest.trim_start();
    }
    Row(row)
}

/// Up to the quote that is not doubled, and what follows.
fn quoted_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\'') {
        value += before;
        match after.strip_prefix('\'') {
            Some(more) => {
                value.push('\'');
                rest = more;
            }
            None => return (value, after),
        }
    }
    (value, "")
}

/// `COMMIT (at 2026-11-28 01:45:07.123456+00)` in microseconds since 1970.
fn commit_time(line: &str) -> u64 {
    let time = || -> Option<u64> {
        let (_, at) = line.split_once("(at ")?;
        let text = at.trim_end_matches(')').trim_end_matches("+00");
        let time: jiff::Timestamp = format!("{}Z", text.replace(' ', "T")).parse().ok()?;
        u64::try_from(time.as_microsecond()).ok()
    };
    time().expect("test_decoding tells the time of a commit")
}

/// Where crash recoveries ended: everything up to there is of the era before.
pub fn ends_of_eras(log: &str) -> Vec<u64> {
    let ends = log.lines().filter_map(|line| {
        let (_, rest) = line.split_once("redo done at ")?;
        let (high, low) = rest.split_whitespace().next()?.split_once('/')?;
        let high = u64::from_str_radix(high, 16).ok()?;
        let low = u64::from_str_radix(low, 16).ok()?;
        Some(high << 32 | low)
    });
    ends.collect()
}

/// How many tables have a row, for the question whether anything was checked.
pub fn tables_written(truth: &Truth) -> usize {
    TABLES
        .iter()
        .filter(|table| truth.versions.contains_key(table))
        .count()
}
