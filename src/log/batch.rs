//! From log rows to transactions: which belong together, in which order, and what each came to.
//!
//! A reader gives every row that it read in one snapshot to a [`Gathering`] and gets a [`Batch`], by
//! way of the rows that the log tells only by key ([`Net::lookups`]), which it reads in the same
//! snapshot. Memory is bounded whatever a writer did ([`Bounds`]). Pure: it knows no connection.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use jiff::Timestamp;

use super::deferred;
use crate::cursor::{Cursor, Name, Xid};
use crate::event::{
    self, Change, Delta, Entry, Image, Message, Operation, Scope, State, Transaction, zone,
};
use crate::mutants::{Mutant, on};
use crate::schema::catalog::{Catalog, Column, Table};

/// Sizes above which a transaction is not kept but told as "unknown from here on", which makes the
/// views it touched read their state anew: bounded memory, whatever a writer does.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Log rows of one transaction.
    pub rows: usize,
    /// Bytes of images of one transaction.
    pub bytes: usize,
    /// Bytes of images of one batch.
    pub batch: usize,
    /// Log rows of one batch, above which it is not read at all: [`TooMuch`].
    pub total: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            rows: 20_000,
            bytes: 16 << 20,
            batch: 64 << 20,
            total: u64::MAX,
        }
    }
}

/// What one poll read.
#[derive(Debug)]
pub struct Batch {
    /// The snapshot it was read in.
    pub end: Cursor,
    /// The life of the transaction counter; `None` after a crash that nobody has seen to yet.
    pub epoch: Option<Name>,
    /// Transactions done here may have been trimmed.
    pub horizon: Option<Cursor>,
    /// The value of `rowcast.gap`.
    pub gap: i64,
    /// The value up to which resets were written.
    pub gap_told: i64,
    /// Log rows read.
    pub rows: u64,
    /// Transactions with resets, or with entries of tables that the catalogue does not have: it must
    /// be read anew.
    pub definitions: Vec<Xid>,
    /// In delivery order: by the highest log id of each, which is an order of dependency but for what
    /// [`deferred`] puts right.
    pub transactions: Vec<Arc<Transaction>>,
}

impl Batch {
    /// Whether entries after `from` may have been deleted before they were read.
    #[must_use]
    pub fn is_trimmed_after(&self, from: &Cursor) -> bool {
        let horizon = self.horizon.as_ref();
        horizon.is_some_and(|horizon| !from.covers(horizon))
    }

    /// Whether definitions have changed that a catalogue does not show which was read after `known`,
    /// the end of an earlier batch: between the two there may have been more changes.
    #[must_use]
    pub fn changed_definitions_after(&self, known: &Cursor) -> bool {
        self.definitions.iter().any(|xid| !known.is_done(*xid))
    }
}

/// What of an epoch does not change while a connection lasts. With the uuid it names the epoch: a
/// restored dump carries the uuid along, but lives under other oids.
#[derive(Debug, Clone)]
pub struct Place {
    system: String,
    /// The number of the log, which the text ends in.
    log: Option<u32>,
}

impl Place {
    /// The place of this system, database and log.
    #[must_use]
    pub fn new(system: String) -> Self {
        let log = system.rsplit(':').next().and_then(|log| log.parse().ok());
        Self { system, log }
    }

    /// Whether that is its log. A dump that is restored over a database, or an installation anew, makes another
    /// one under the same name, and no connection ends of it.
    #[must_use]
    pub fn has(&self, log: u32) -> bool {
        self.log == Some(log)
    }

    /// The epoch of that uuid here.
    #[must_use]
    pub fn epoch(&self, uuid: &str) -> Name {
        Name::of([self.system.as_str(), uuid])
    }
}

/// What a poll reads besides rows, in the same snapshot.
#[derive(Debug, Clone)]
pub struct Head {
    /// The snapshot.
    pub end: Cursor,
    /// See [`Batch::epoch`].
    pub epoch: Option<Name>,
    /// See [`Batch::horizon`].
    pub horizon: Option<Cursor>,
    /// See [`Batch::gap`].
    pub gap: i64,
    /// See [`Batch::gap_told`].
    pub gap_told: i64,
}

/// More rows than [`Bounds::total`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is more to read than is wanted")]
pub struct TooMuch;

/// Every row that was read, by transaction.
#[derive(Debug)]
pub struct Gathered {
    head: Head,
    rows: u64,
    transactions: Vec<Pending>,
}

/// A batch that lacks the rows which the log tells only by key.
#[derive(Debug)]
pub struct Net {
    head: Head,
    rows: u64,
    definitions: Vec<Xid>,
    transactions: Vec<Transaction>,
    unknown: BTreeMap<u32, Vec<Lookup>>,
}

/// An object of key columns, and where the row that it finds belongs.
#[derive(Debug)]
struct Lookup {
    object: Arc<str>,
    transaction: usize,
    delta: usize,
    change: usize,
}

impl Gathered {
    /// What the transactions came to. Tables of `catalog` decide what is told of each entry; entries
    /// of other tables are left out.
    #[must_use]
    pub fn net(self, catalog: &Catalog) -> Net {
        let changed = |pending: &&Pending| pending.definitions_changed(catalog);
        let changed = self.transactions.iter().filter(changed);
        let definitions = changed.map(|pending| pending.xid).collect();
        let net = self.transactions.into_iter();
        let mut transactions: Vec<Transaction> = net.map(|pending| pending.net(catalog)).collect();
        deferred::put_in_order(&mut transactions, |table| {
            let table = catalog.table_by_oid(table)?;
            table.deferrable_key.then_some(table.key.as_slice())
        });
        tell_by_later(&mut transactions);
        let mut unknown: BTreeMap<u32, Vec<Lookup>> = BTreeMap::new();
        for (at, transaction) in transactions.iter().enumerate() {
            for (delta, changes) in transaction.deltas.iter().enumerate() {
                for (change, Change { after, .. }) in changes.changes.iter().enumerate() {
                    if let State::Unknown(object) = after {
                        unknown.entry(changes.table).or_default().push(Lookup {
                            object: Arc::clone(object),
                            transaction: at,
                            delta,
                            change,
                        });
                    }
                }
            }
        }
        Net {
            head: self.head,
            rows: self.rows,
            definitions,
            transactions,
            unknown,
        }
    }
}

/// A state that the log tells only by key is told all the same when the next transaction that touched
/// the row logged it as the state before. Reading it again would find a state of later: a screen
/// that leaves in between would show that, and nobody would take it away who goes by what was before.
fn tell_by_later(transactions: &mut [Transaction]) {
    let deltas = transactions
        .iter()
        .flat_map(|transaction| &transaction.deltas);
    let wanted: HashSet<(u32, Arc<str>)> = deltas
        .flat_map(|delta| delta.changes.iter().map(|change| (delta.table, change)))
        .filter(|(_, change)| matches!(change.after, State::Unknown(_)))
        .map(|(table, change)| (table, Arc::clone(&change.key)))
        .collect();
    if wanted.is_empty() {
        return;
    }
    let mut next: HashMap<(u32, Arc<str>), State> = HashMap::new();
    for delta in transactions
        .iter_mut()
        .rev()
        .flat_map(|transaction| &mut transaction.deltas)
    {
        for change in &mut delta.changes {
            let row = (delta.table, Arc::clone(&change.key));
            if !wanted.contains(&row) {
                continue;
            }
            if let (State::Unknown(_), Some(State::Row(text))) = (&change.after, next.get(&row)) {
                change.after = State::Row(Arc::clone(text));
            }
            next.insert(row, change.before.clone());
        }
        if delta.scope != Scope::Keys {
            next.retain(|(table, _), _| *table != delta.table);
        }
    }
}

impl Net {
    /// What is to be read again: table by table, the objects of the keys.
    #[must_use]
    pub fn lookups(&self) -> Vec<(u32, Vec<Arc<str>>)> {
        let objects = |lookups: &Vec<Lookup>| {
            let objects = lookups.iter().map(|lookup| Arc::clone(&lookup.object));
            objects.collect()
        };
        let tables = self.unknown.iter();
        tables
            .map(|(table, lookups)| (*table, objects(lookups)))
            .collect()
    }

    /// Puts in the rows of a table that were found, by their key. `None` when somebody holds the
    /// table: its views read their state when they can, and the others do not wait for it.
    pub fn settle(&mut self, table: u32, rows: Option<&HashMap<String, State>>) {
        for lookup in self.unknown.remove(&table).unwrap_or_default() {
            let delta = &mut self.transactions[lookup.transaction].deltas[lookup.delta];
            match (rows, delta.changes.get_mut(lookup.change)) {
                (Some(rows), Some(change)) => {
                    change.after = rows.get(&*change.key).cloned().unwrap_or(State::Absent);
                }
                _ => delta.scope = Scope::Unknown,
            }
        }
    }

    /// The batch, with whatever was put in.
    #[must_use]
    pub fn finish(self) -> Batch {
        Batch {
            end: self.head.end,
            epoch: self.head.epoch,
            horizon: self.head.horizon,
            gap: self.head.gap,
            gap_told: self.head.gap_told,
            rows: self.rows,
            definitions: self.definitions,
            transactions: self.transactions.into_iter().map(Arc::new).collect(),
        }
    }
}

/// Entries of one transaction as they come in.
#[derive(Debug, Default)]
struct Pending {
    xid: Xid,
    last: i64,
    at: Timestamp,
    entries: Vec<Entry>,
    bytes: usize,
    /// What it touched, kept when its entries are not.
    touched: BTreeSet<(u32, Option<String>)>,
    /// There are resets among its entries, kept likewise.
    resets: bool,
    oversize: bool,
}

/// Rows that were not read, of a transaction that is too large to be kept: those of one operation on one
/// table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sum {
    /// What they are.
    pub operation: Operation,
    /// As [`Entry::rel`].
    pub rel: u32,
    /// Their highest id.
    pub last: i64,
    /// When that one was logged.
    pub at: Timestamp,
}

/// Rows of one snapshot, as they come in, in any order.
#[derive(Debug)]
pub struct Gathering {
    bounds: Bounds,
    bytes: usize,
    rows: u64,
    pending: HashMap<Xid, Pending>,
}

impl Gathering {
    /// Nothing yet.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            bytes: 0,
            rows: 0,
            pending: HashMap::new(),
        }
    }

    /// Rows added so far.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Adds a row of the transaction `xid`.
    ///
    /// # Errors
    /// [`TooMuch`].
    pub fn add(&mut self, xid: Xid, entry: Entry) -> Result<(), TooMuch> {
        self.rows += 1;
        if self.rows > self.bounds.total {
            return Err(TooMuch);
        }
        let pending = self.pending.entry(xid).or_default();
        pending.xid = xid;
        if entry.id > pending.last {
            pending.last = entry.id;
            pending.at = entry.at;
        }
        pending.resets |= entry.operation == Operation::Reset;
        if pending.oversize {
            pending.touched.insert((entry.rel, entry.channel));
            return Ok(());
        }
        let bytes =
            entry.old.as_ref().map_or(0, |t| t.len()) + entry.new.as_ref().map_or(0, |t| t.len());
        pending.bytes += bytes;
        self.bytes += bytes;
        pending.entries.push(entry);
        if pending.bytes > self.bounds.bytes || pending.entries.len() > self.bounds.rows {
            self.bytes -= pending.collapse();
        } else if self.bytes > self.bounds.batch {
            // All at once: looking for the largest at each further row would cost its square.
            for pending in self.pending.values_mut() {
                pending.collapse();
            }
            self.bytes = 0;
        }
        Ok(())
    }

    /// Whether there are rows of the transaction.
    #[must_use]
    pub fn has(&self, xid: Xid) -> bool {
        self.pending.contains_key(&xid)
    }

    /// Forgets these transactions, which are read again.
    pub fn forget(&mut self, xids: Range<Xid>) {
        self.pending.retain(|xid, pending| {
            let stays = !xids.contains(xid);
            if !stays {
                self.bytes -= pending.bytes;
            }
            stays
        });
    }

    /// Adds rows of the transaction `xid`, of which nothing is kept but what it touched.
    pub fn sum(&mut self, xid: Xid, sum: &Sum) {
        let pending = self.pending.entry(xid).or_default();
        pending.xid = xid;
        if sum.last > pending.last {
            (pending.last, pending.at) = (sum.last, sum.at);
        }
        pending.resets |= sum.operation == Operation::Reset;
        pending.touched.insert((sum.rel, None));
        self.bytes -= pending.collapse();
    }

    /// All of them, and what was read besides: transactions by the highest log id of each, entries
    /// by their id.
    #[must_use]
    pub fn finish(self, head: Head) -> Gathered {
        let mut all: Vec<Pending> = self.pending.into_values().collect();
        all.sort_by_key(|pending| pending.last);
        if on(Mutant::M2) {
            all.sort_by_key(|pending| pending.xid);
        }
        for pending in &mut all {
            pending.entries.sort_by_key(|entry| entry.id);
        }
        Gathered {
            head,
            rows: self.rows,
            transactions: all,
        }
    }
}

impl Pending {
    /// Forgets the entries and returns the bytes they took.
    fn collapse(&mut self) -> usize {
        self.oversize = true;
        let entries = std::mem::take(&mut self.entries);
        let touched = entries.into_iter().map(|entry| (entry.rel, entry.channel));
        self.touched.extend(touched);
        std::mem::take(&mut self.bytes)
    }

    fn definitions_changed(&self, catalog: &Catalog) -> bool {
        let entries = self.entries.iter().map(|e| (e.rel, e.channel.is_some()));
        let touched = self.touched.iter();
        let touched = touched.map(|(rel, channel)| (*rel, channel.is_some()));
        let mut tables = entries
            .chain(touched)
            .filter(|(rel, is_of_channel)| *rel != 0 && !is_of_channel);
        let is_known = |rel| catalog.table_by_oid(rel).is_some() || catalog.is_leaving(rel);
        self.resets || tables.any(|(rel, _)| !is_known(rel))
    }

    fn net(mut self, catalog: &Catalog) -> Transaction {
        let mut transaction = Transaction {
            xid: self.xid,
            at: self.at,
            deltas: Vec::new(),
            messages: Vec::new(),
            reset_all: false,
        };
        if self.oversize {
            for (rel, channel) in &self.touched {
                // A message that cannot be kept must not get lost in silence either.
                transaction.reset_all |= channel.is_some() || *rel == 0;
                if let Some(table) = catalog.table_by_oid(*rel) {
                    transaction.unknown(table.oid);
                }
            }
            return transaction;
        }
        let mut tables: BTreeMap<u32, (Arc<Table>, Vec<&Entry>)> = BTreeMap::new();
        for entry in &mut self.entries {
            match (entry.operation, catalog.table_by_oid(entry.rel)) {
                (Operation::Message, _) => transaction.messages.push(Message {
                    channel: entry.channel.clone().unwrap_or_default(),
                    payload: entry.new.clone().unwrap_or_else(|| "null".into()),
                    at: entry.at,
                }),
                (Operation::Reset, _) if entry.rel == 0 => transaction.reset_all = true,
                (_, Some(table)) => {
                    // Most tables need no look at their images for that.
                    let is_zoned = table.columns.iter().any(Column::is_zoned);
                    let zoned = |name: &str| table.column(name).is_some_and(Column::is_zoned);
                    for image in [&mut entry.old, &mut entry.new].into_iter().flatten() {
                        if is_zoned && let Some(text) = zone::in_utc(image, zoned) {
                            *image = text.into();
                        }
                        if table.oid != entry.rel && !entry.truncated {
                            reorder(image, table);
                        }
                    }
                    let rows = tables
                        .entry(table.oid)
                        .or_insert_with(|| (Arc::clone(table), Vec::new()));
                    rows.1.push(entry);
                }
                // A table dropped or unwatched since: whoever showed it is told by oid.
                (Operation::Reset, None) => transaction.unknown(entry.rel),
                (_, None) => {}
            }
        }
        for (oid, (table, entries)) in tables {
            match delta(&table, &entries) {
                Some(delta) => transaction.deltas.push(delta),
                None => transaction.unknown(oid),
            }
        }
        transaction
    }
}

impl Transaction {
    fn unknown(&mut self, table: u32) {
        self.deltas.push(Delta {
            table,
            scope: Scope::Unknown,
            changes: Vec::new(),
        });
    }
}

/// Gives the image of a partition's row the order of the table's columns: a partition that was attached has its
/// own, and everywhere else the row is read from the table.
fn reorder(image: &mut Arc<str>, table: &Table) {
    let Ok(parsed) = Image::parse(image) else {
        return;
    };
    let columns = || table.columns.iter().map(|column| column.name.as_str());
    if parsed.is_of(columns()) {
        return;
    }
    if let Some(text) = parsed.project(columns().map(|name| (name, name))) {
        *image = text.into();
    }
}

/// What the entries of one table, in order, come to; `None` for "unknown".
fn delta(table: &Table, entries: &[&Entry]) -> Option<Delta> {
    let mut scope = Scope::Keys;
    let mut rest = 0;
    for (place, entry) in entries.iter().enumerate() {
        match entry.operation {
            // Where several tables are truncated at once, triggers after the truncation of one may insert into
            // another before that one's is logged: such a row is there, though its entry comes first.
            Operation::Truncate
                if entries[rest..place]
                    .iter()
                    .any(|entry| entry.operation == Operation::Insert) =>
            {
                return None;
            }
            Operation::Truncate if entry.rel == table.oid => {
                scope = Scope::Truncated;
                rest = place + 1;
            }
            // TRUNCATE of the root tells each partition too, right after it. A partition truncated
            // alone takes rows along that no entry names.
            Operation::Truncate if scope == Scope::Truncated && rest == place => rest = place + 1,
            Operation::Truncate | Operation::Reset => return None,
            _ => {}
        }
    }
    let changes = event::net(&entries[rest..], &table.key).ok()?;
    Some(Delta {
        table: table.oid,
        scope,
        changes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        rows: 2,
        bytes: 1000,
        batch: 1000,
        total: 1000,
    };

    fn entry(id: i64, rel: u32, operation: Operation) -> Entry {
        Entry {
            id,
            rel,
            operation,
            channel: None,
            old: None,
            new: Some(r#"{"id":1}"#.into()),
            truncated: false,
            at: Timestamp::UNIX_EPOCH,
        }
    }

    fn head() -> Head {
        Head {
            end: Cursor::new(20, []),
            epoch: None,
            horizon: None,
            gap: 0,
            gap_told: 0,
        }
    }

    fn catalog() -> Catalog {
        let table = |oid: u32| Table {
            oid,
            schema: "public".to_owned(),
            name: format!("t{oid}"),
            kind: 'r',
            columns: Vec::new(),
            key: vec!["id".to_owned()],
            watched: true,
            by_column: false,
            deferrable_key: false,
        };
        Catalog::new(&["public"], vec![table(1), table(2)], &[])
    }

    #[test]
    fn a_reset_in_a_transaction_that_is_too_large_changes_definitions_all_the_same() {
        let mut batch = Gathering::new(BOUNDS);
        batch.add(10, entry(1, 1, Operation::Reset)).unwrap();
        for id in 2..5 {
            batch.add(10, entry(id, 1, Operation::Insert)).unwrap();
        }
        batch.add(11, entry(5, 1, Operation::Insert)).unwrap();
        assert!(batch.has(10) && batch.has(11) && !batch.has(12));
        let batch = batch.finish(head()).net(&catalog()).finish();
        assert_eq!(batch.definitions, [10]);
    }

    #[test]
    fn what_was_summed_up_counts_for_order_tables_and_definitions() {
        let mut batch = Gathering::new(BOUNDS);
        for id in 1..4 {
            batch.add(10, entry(id, 1, Operation::Insert)).unwrap();
        }
        batch.add(11, entry(6, 1, Operation::Insert)).unwrap();
        let sum = Sum {
            operation: Operation::Reset,
            rel: 2,
            last: 9,
            at: Timestamp::UNIX_EPOCH,
        };
        batch.sum(10, &sum);
        assert_eq!(batch.rows(), 4);
        let batch = batch.finish(head()).net(&catalog()).finish();
        let xids: Vec<Xid> = batch.transactions.iter().map(|t| t.xid).collect();
        assert_eq!(xids, [11, 10]);
        assert_eq!(batch.definitions, [10]);
        let unknown: Vec<_> = batch.transactions[1].deltas.iter().collect();
        assert!(unknown.iter().all(|delta| delta.scope == Scope::Unknown));
        let tables: Vec<u32> = unknown.iter().map(|delta| delta.table).collect();
        assert_eq!(tables, [1, 2]);
    }
}
