//! A small model of PostgreSQL: transaction ids, snapshots, a log, locks, and everything that makes
//! them surprising.
//!
//! Transactions are open for as long as somebody likes, may be prepared, may commit without waiting
//! for the disk, and may roll back parts. A crash keeps what was flushed and gives the ids of the rest
//! out again; a promotion keeps what the standby had. It also writes down what really happened
//! ([`Life`]), which no relay ever sees.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use rowcast::cursor::{Cursor, Name, Xid};
use rowcast::event::{Entry, Operation, State};
use rowcast::log::{Batch, Bounds, Gathering, Head, Place};
use rowcast::mutants::{Mutant, on};
use rowcast::schema::catalog::{Catalog, Column, Table as Definition};
use rowcast::schema::policies::Policies;

use crate::truth::{Change, Commit, Life, Shows, lets};

pub type Key = u32;

pub const CARDS: u32 = 1;
pub const NOTES: u32 = 2;
/// Keys of each table are below.
pub const KEYS: Key = 6;
pub const CHANNEL: &str = "lobby";

/// A row as somebody wrote it.
#[derive(Debug)]
pub struct Row {
    pub key: Key,
    pub board: u32,
    /// Counts the writes of its key.
    pub version: u64,
    pub xid: Xid,
    pub text: Arc<str>,
}

impl Row {
    /// `wordy` tables have their board as text.
    fn new(key: Key, board: u32, version: u64, xid: Xid, wordy: bool) -> Arc<Self> {
        let quote = if wordy { "\"" } else { "" };
        let text =
            format!(r#"{{"id":{key},"v":{version},"tx":{xid},"board":{quote}{board}{quote}}}"#);
        Arc::new(Self {
            key,
            board,
            version,
            xid,
            text: text.into(),
        })
    }

    /// The object of its key.
    pub fn key_text(key: Key) -> Arc<str> {
        format!(r#"{{"id":{key}}}"#).into()
    }
}

#[derive(Debug, Clone, Default)]
struct Table {
    /// The type of its board is text.
    wordy: bool,
    /// How often its definition has changed.
    altered: u64,
    rows: BTreeMap<Key, Arc<Row>>,
    /// Writes of each key.
    versions: BTreeMap<Key, u64>,
}

#[derive(Debug)]
struct LogRow {
    xid: Xid,
    entry: Entry,
    /// The clock at which it was written.
    at: u64,
}

/// A transaction that has written something.
#[derive(Debug, Clone)]
pub struct Work {
    pub xid: Xid,
    /// Waits for the disk when it commits.
    pub synchronous: bool,
    /// When it began.
    pub begun: u64,
    log: Vec<Arc<LogRow>>,
    rows: BTreeMap<(u32, Key), Option<Arc<Row>>>,
    /// What was there before.
    before: BTreeMap<(u32, Key), Option<Arc<Row>>>,
    versions: BTreeMap<(u32, Key), u64>,
    messages: Vec<Arc<str>>,
    /// Keys whose changes were not logged, and the gap that says so; none where nothing does.
    hidden: BTreeMap<(u32, Key), Option<i64>>,
    /// Keys of entries without images.
    by_key: BTreeSet<(u32, Key)>,
}

/// What survives a crash, if it was flushed.
#[derive(Debug, Clone)]
struct Durable {
    next_xid: Xid,
    next_id: i64,
    log: Vec<Arc<LogRow>>,
    tables: BTreeMap<u32, Table>,
    horizon: Option<Cursor>,
    ticks: Vec<(u64, Cursor)>,
    gap: i64,
    gap_told: i64,
    prepared: BTreeMap<Xid, Work>,
}

pub struct Database {
    /// Milliseconds.
    pub now: u64,
    durable: Durable,
    flushed: Durable,
    replica: Durable,
    running: BTreeMap<Xid, Work>,
    locks: HashMap<(u32, Key), Xid>,
    /// `rowcast.epoch`.
    uuid: Option<u64>,
    uuids: u64,
    /// Connections of another one are dead.
    pub incarnation: u64,
    pub up: bool,
    pub place: Place,
    pub lives: HashMap<Name, Life>,
    life: Option<Name>,
    /// Tables whose definition has changed without anybody saying so.
    drifted: Vec<u32>,
}

/// What a writer does.
#[derive(Debug, Clone, Copy)]
pub enum Act {
    Write {
        table: u32,
        key: Key,
        board: u32,
    },
    Delete {
        table: u32,
        key: Key,
    },
    /// The row gets another key.
    Move {
        table: u32,
        key: Key,
        to: Key,
    },
}

/// How a change reaches the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logged {
    Whole,
    /// Without images.
    ByKey,
    /// Not at all, but `rowcast.gap` moves.
    Gap,
    /// Behind the triggers.
    Never,
}

impl Database {
    pub fn new() -> Self {
        let tables = [CARDS, NOTES].map(|oid| (oid, Table::default()));
        let durable = Durable {
            next_xid: 10,
            next_id: 1,
            log: Vec::new(),
            tables: tables.into_iter().collect(),
            horizon: None,
            ticks: Vec::new(),
            gap: 0,
            gap_told: 0,
            prepared: BTreeMap::new(),
        };
        Self {
            now: 100_000,
            flushed: durable.clone(),
            replica: durable.clone(),
            durable,
            running: BTreeMap::new(),
            locks: HashMap::new(),
            uuid: None,
            uuids: 0,
            incarnation: 0,
            up: true,
            place: Place::new("model".to_owned()),
            lives: HashMap::new(),
            life: None,
            drifted: Vec::new(),
        }
    }

    fn clock(&self) -> Timestamp {
        Timestamp::from_millisecond(i64::try_from(self.now).unwrap()).unwrap()
    }

    pub fn snapshot(&self) -> Cursor {
        let open = self.running.keys().chain(self.durable.prepared.keys());
        Cursor::new(self.durable.next_xid, open.copied())
    }

    pub fn epoch(&self) -> Option<Name> {
        let uuid = self.uuid?;
        Some(self.place.epoch(&uuid.to_string()))
    }

    pub fn life(&self) -> Option<&Life> {
        self.lives.get(&self.life?)
    }

    fn live(&mut self) -> Option<&mut Life> {
        let life = self.life?;
        self.lives.get_mut(&life)
    }

    // ---- what writers do

    pub fn begin(&mut self, synchronous: bool) -> Xid {
        let xid = self.durable.next_xid;
        self.durable.next_xid += 1;
        let work = Work {
            xid,
            synchronous,
            begun: self.now,
            log: Vec::new(),
            rows: BTreeMap::new(),
            before: BTreeMap::new(),
            versions: BTreeMap::new(),
            messages: Vec::new(),
            hidden: BTreeMap::new(),
            by_key: BTreeSet::new(),
        };
        self.running.insert(xid, work);
        xid
    }

    pub fn open(&self) -> Vec<Xid> {
        self.running.keys().copied().collect()
    }

    pub fn prepared(&self) -> Vec<Xid> {
        self.durable.prepared.keys().copied().collect()
    }

    /// A statement that was rolled back to a savepoint: ids are gone, and nothing else happened.
    pub fn undone(&mut self) {
        self.durable.next_xid += 1;
        self.durable.next_id += 1;
    }

    fn entry(durable: &mut Durable, at: Timestamp, operation: Operation, rel: u32) -> Entry {
        let id = durable.next_id;
        durable.next_id += 1;
        Entry {
            id,
            rel,
            operation,
            channel: None,
            old: None,
            new: None,
            truncated: false,
            at,
        }
    }

    /// Whether it could be done: somebody else may hold the row, or it may not be there.
    pub fn act(&mut self, xid: Xid, act: Act, logged: Logged) -> bool {
        let now = (self.now, self.clock());
        let (table, keys) = match act {
            Act::Write { table, key, .. } | Act::Delete { table, key } => (table, vec![key]),
            Act::Move { table, key, to } => (table, vec![key, to]),
        };
        let held = |key| {
            let by = self.locks.get(&(table, key));
            by.is_some_and(|by| *by != xid)
        };
        if keys.iter().any(|key| held(*key)) {
            return false;
        }
        let Some(work) = self.running.get_mut(&xid) else {
            return false;
        };
        let stored = &self.durable.tables[&table];
        let wordy = stored.wordy;
        let row = |work: &Work, key: Key| match work.rows.get(&(table, key)) {
            Some(row) => row.clone(),
            None => stored.rows.get(&key).cloned(),
        };
        let version = |work: &Work, key: Key| {
            let known = work.versions.get(&(table, key));
            known.or(stored.versions.get(&key)).copied().unwrap_or(0) + 1
        };
        let key = keys[0];
        let old = row(work, key);
        let (operation, changes) = match act {
            Act::Write { board, .. } => {
                let new = Row::new(key, board, version(work, key), xid, wordy);
                let operation = if old.is_some() {
                    Operation::Update
                } else {
                    Operation::Insert
                };
                (operation, vec![(key, Some(new))])
            }
            Act::Delete { .. } if old.is_some() => (Operation::Delete, vec![(key, None)]),
            Act::Move { to, .. } if to != key && old.is_some() && row(work, to).is_none() => {
                let board = old.as_ref().map_or(0, |old| old.board);
                let new = Row::new(to, board, version(work, to), xid, wordy);
                (Operation::Update, vec![(key, None), (to, Some(new))])
            }
            _ => return false,
        };
        let befores: Vec<_> = changes
            .iter()
            .map(|(key, _)| (*key, stored.rows.get(key).cloned()))
            .collect();
        for (key, before) in befores {
            work.before.entry((table, key)).or_insert(before);
            self.locks.insert((table, key), xid);
        }
        let new = changes.last().and_then(|(_, new)| new.clone());
        for (key, row) in changes {
            let next = version(work, key);
            work.versions.insert((table, key), next);
            work.rows.insert((table, key), row);
            match logged {
                Logged::Whole => {}
                Logged::ByKey => {
                    work.by_key.insert((table, key));
                }
                Logged::Gap => {
                    let gap = self.durable.gap + 1;
                    work.hidden.insert((table, key), Some(gap));
                }
                Logged::Never => {
                    work.hidden.insert((table, key), None);
                }
            }
        }
        match logged {
            Logged::Gap => self.durable.gap += 1,
            Logged::Never => self.drifted.push(table),
            Logged::Whole | Logged::ByKey => {
                let mut entry = Self::entry(&mut self.durable, now.1, operation, table);
                let image = |row: &Arc<Row>| match logged {
                    Logged::ByKey => Row::key_text(row.key),
                    _ => Arc::clone(&row.text),
                };
                entry.old = old.as_ref().map(image);
                entry.new = new.as_ref().map(image);
                entry.truncated = logged == Logged::ByKey;
                let row = LogRow {
                    xid,
                    entry,
                    at: now.0,
                };
                work.log.push(Arc::new(row));
            }
        }
        true
    }

    pub fn publish(&mut self, xid: Xid, payload: String) {
        let now = (self.now, self.clock());
        let Some(work) = self.running.get_mut(&xid) else {
            return;
        };
        let mut entry = Self::entry(&mut self.durable, now.1, Operation::Message, 0);
        let payload: Arc<str> = payload.into();
        entry.channel = Some(CHANNEL.to_owned());
        entry.new = Some(Arc::clone(&payload));
        work.messages.push(payload);
        let row = LogRow {
            xid,
            entry,
            at: now.0,
        };
        work.log.push(Arc::new(row));
    }

    /// `rel` 0 is everything.
    fn reset(&mut self, xid: Xid, rel: u32) {
        let now = (self.now, self.clock());
        let Some(work) = self.running.get_mut(&xid) else {
            return;
        };
        let entry = Self::entry(&mut self.durable, now.1, Operation::Reset, rel);
        let row = LogRow {
            xid,
            entry,
            at: now.0,
        };
        work.log.push(Arc::new(row));
    }

    pub fn abort(&mut self, xid: Xid) {
        self.running.remove(&xid);
        self.locks.retain(|_, by| *by != xid);
    }

    pub fn prepare(&mut self, xid: Xid) {
        if let Some(work) = self.running.remove(&xid) {
            self.durable.prepared.insert(xid, work);
            self.flush();
        }
    }

    pub fn commit(&mut self, xid: Xid) {
        let prepared = self.durable.prepared.remove(&xid);
        let Some(work) = prepared.or_else(|| self.running.remove(&xid)) else {
            return;
        };
        self.locks.retain(|_, by| *by != xid);
        let mut changes = Vec::new();
        for ((table, key), row) in &work.rows {
            let stored = self.durable.tables.get_mut(table).unwrap();
            match row {
                Some(row) => stored.rows.insert(*key, Arc::clone(row)),
                None => stored.rows.remove(key),
            };
            let version = work.versions[&(*table, *key)];
            stored.versions.insert(*key, version);
            let gap_told = self.durable.gap_told;
            let hidden = work.hidden.get(&(*table, *key)).copied();
            changes.push(Change {
                table: *table,
                key: *key,
                before: work.before[&(*table, *key)].clone(),
                after: row.clone(),
                hidden: hidden.is_some(),
                gap: hidden.flatten(),
                // Told too early, which the check of the screens is to find.
                told: hidden.flatten().filter(|gap| *gap <= gap_told).map(|_| 0),
                by_key: work.by_key.contains(&(*table, *key)),
            });
        }
        self.durable.log.extend(work.log.iter().cloned());
        let commit = Commit {
            xid,
            at: self.now,
            changes,
            messages: work.messages,
        };
        if let Some(life) = self.live() {
            life.add(commit);
        }
        if work.synchronous {
            self.flush();
        }
    }

    // ---- what happens to a database

    /// What was committed so far survives a crash.
    pub fn flush(&mut self) {
        self.flushed = self.durable.clone();
    }

    /// What was flushed so far is on the standby.
    pub fn replicate(&mut self) {
        self.replica = self.flushed.clone();
    }

    /// A crash, or the promotion of the standby. Down until somebody says otherwise.
    pub fn crash(&mut self, promotion: bool) {
        let wordy = |durable: &Durable| {
            let tables = durable.tables.iter();
            let wordy = tables.filter(|(_, table)| table.wordy);
            wordy.map(|(oid, _)| *oid).collect::<BTreeSet<u32>>()
        };
        let before = wordy(&self.durable);
        self.durable = if promotion {
            self.replica.clone()
        } else {
            self.flushed.clone()
        };
        self.flushed = self.durable.clone();
        self.replica = self.durable.clone();
        // A catalogue that is read from now on does not fit what was logged. Who is still in the life that
        // is over is told by its end.
        for table in before.symmetric_difference(&wordy(&self.durable)) {
            if let Some(life) = self.life.and_then(|life| self.lives.get_mut(&life)) {
                life.altered(*table, None);
            }
        }
        self.running.clear();
        self.locks.clear();
        for work in self.durable.prepared.values() {
            for place in work.rows.keys() {
                self.locks.insert(*place, work.xid);
            }
        }
        self.uuid = None;
        self.life = None;
        self.incarnation += 1;
        self.up = false;
    }

    /// Connections break; nothing is lost.
    pub fn restart(&mut self) {
        let open: Vec<Xid> = self.running.keys().copied().collect();
        for xid in open {
            self.abort(xid);
        }
        self.incarnation += 1;
    }

    /// A column gets another type. Unless `silent`, the same transaction writes the reset. Not while
    /// somebody writes the table.
    pub fn alter(&mut self, table: u32, silent: bool) -> bool {
        if self.locks.keys().any(|(locked, _)| *locked == table) {
            return false;
        }
        let stored = self.durable.tables.get_mut(&table).unwrap();
        stored.wordy = !stored.wordy;
        stored.altered += 1;
        let wordy = stored.wordy;
        for row in stored.rows.values_mut() {
            *row = Row::new(row.key, row.board, row.version, row.xid, wordy);
        }
        let xid = self.begin(true);
        // Who is still in an earlier life is told by its end.
        for (epoch, life) in &mut self.lives {
            let told = (!silent && Some(*epoch) == self.life).then_some(xid);
            life.altered(table, told);
        }
        if silent {
            self.drifted.push(table);
        } else {
            self.reset(xid, table);
        }
        self.commit(xid);
        true
    }

    /// `rowcast.check_drift`: the reset for what has changed unsaid.
    pub fn check_drift(&mut self) -> bool {
        let open = self.running.values();
        let hidden = open.flat_map(|work| work.hidden.keys().map(|(table, _)| *table));
        let busy: Vec<u32> = hidden.collect();
        let mut found = std::mem::take(&mut self.drifted);
        found.sort_unstable();
        found.dedup();
        let (later, now): (Vec<u32>, Vec<u32>) =
            found.into_iter().partition(|table| busy.contains(table));
        self.drifted = later;
        if now.is_empty() {
            return false;
        }
        let xid = self.begin(true);
        for table in now {
            self.reset(xid, table);
            if let Some(life) = self.live() {
                life.drift_told(table, xid);
            }
        }
        self.commit(xid);
        true
    }

    /// `rowcast.begin_epoch`.
    pub fn begin_epoch(&mut self) -> bool {
        if self.uuid.is_some() {
            return false;
        }
        self.durable.log.clear();
        self.durable.ticks.clear();
        self.durable.horizon = None;
        self.uuids += 1;
        self.uuid = Some(self.uuids);
        self.flush();
        let epoch = self.epoch().unwrap();
        let mut life = Life::new(self.now);
        for (table, stored) in &self.durable.tables {
            for key in 0..KEYS {
                life.base(*table, key, stored.rows.get(&key).cloned());
            }
        }
        for table in &self.drifted {
            life.altered(*table, None);
        }
        self.lives.insert(epoch, life);
        self.life = Some(epoch);
        true
    }

    /// `rowcast.trim`: at most `chunk` rows done in the snapshot taken one `retention` ago.
    pub fn trim(&mut self, retention: u64, chunk: usize) -> usize {
        let snapshot = self.snapshot();
        self.durable.ticks.push((self.now, snapshot));
        let old = self.now.saturating_sub(retention);
        let ticks = &self.durable.ticks;
        let Some((_, target)) = ticks.iter().rev().find(|(at, _)| *at <= old).cloned() else {
            return 0;
        };
        let mut gone = 0;
        self.durable.log.retain(|row| {
            let goes = gone < chunk
                && if on(Mutant::M5) {
                    row.at <= old
                } else {
                    target.is_done(row.xid)
                };
            gone += usize::from(goes);
            !goes
        });
        let horizon = &mut self.durable.horizon;
        if gone > 0
            && horizon
                .as_ref()
                .is_none_or(|horizon| horizon.xmax() <= target.xmax())
        {
            *horizon = Some(target);
        }
        if gone < chunk {
            let kept = ticks_kept(&self.durable.ticks, old);
            self.durable.ticks.drain(..kept);
        }
        self.flush();
        gone
    }

    // ---- what relays do

    /// A cursor that a new relay starts at.
    pub fn start(&mut self) -> Cursor {
        let horizon = self.durable.horizon.as_ref();
        let good = |snapshot: &&Cursor| horizon.is_none_or(|h| snapshot.xmin() >= h.xmax());
        let mut ticks = self.durable.ticks.iter().map(|(_, snapshot)| snapshot);
        let tick = ticks.find(good).cloned();
        tick.unwrap_or_else(|| self.snapshot())
    }

    pub fn barrier(&mut self) -> Xid {
        self.durable.next_xid += 1;
        self.durable.next_xid - 1
    }

    pub fn settle_gap(&mut self, value: i64) -> bool {
        if self.durable.gap_told >= value {
            return false;
        }
        self.durable.gap_told = value;
        let xid = self.begin(true);
        self.reset(xid, 0);
        if let Some(life) = self.live() {
            life.gap_told(value, xid);
        }
        self.commit(xid);
        true
    }

    /// What a poll reads; `None` for too much. `locked` are tables whose rows cannot be looked up.
    pub fn read(
        &self,
        from: &Cursor,
        catalog: &Catalog,
        bounds: Bounds,
        locked: bool,
    ) -> Option<Batch> {
        let mut gathering = Gathering::new(bounds);
        for row in &self.durable.log {
            if row.xid >= from.xmax() || from.xip().contains(&row.xid) {
                gathering.add(row.xid, row.entry.clone()).ok()?;
            }
        }
        let head = Head {
            end: self.snapshot(),
            epoch: self.epoch(),
            horizon: self.durable.horizon.clone(),
            gap: self.durable.gap,
            gap_told: self.durable.gap_told,
        };
        let mut net = gathering.finish(head).net(catalog);
        for (table, _objects) in net.lookups() {
            let rows = self.durable.tables[&table].rows.iter();
            let rows: HashMap<String, State> = rows
                .map(|(key, row)| (key.to_string(), State::Row(Arc::clone(&row.text))))
                .collect();
            net.settle(table, (!locked).then_some(&rows));
        }
        Some(net.finish())
    }

    /// What there is now, for whoever reads in this snapshot later.
    pub fn picture(&self) -> Picture {
        Picture(self.durable.tables.clone())
    }

    /// Whether one of these tables was rewritten since. In an earlier snapshot it would be empty.
    pub fn has_moved(&self, since: &Picture, tables: &[u32]) -> bool {
        let moved = |oid: &u32| since.0[oid].altered != self.durable.tables[oid].altered;
        tables.iter().any(moved)
    }

    pub fn is_wordy(&self, table: u32) -> bool {
        self.durable.tables[&table].wordy
    }

    pub fn catalog(&self) -> Catalog {
        let tables = self.durable.tables.iter();
        let tables = tables.map(|(oid, table)| definition(*oid, table.wordy));
        let catalog = Catalog::new(&["public"], tables.collect(), &[]);
        let policies = [CARDS, NOTES].into_iter();
        policies.fold(catalog, |catalog, oid| {
            catalog.with_policies(oid, policies_of(oid))
        })
    }

    /// The oldest open transaction's age in milliseconds.
    pub fn oldest(&self) -> u64 {
        let begun = self.running.values().map(|work| work.begun).min();
        begun.map_or(0, |begun| self.now - begun)
    }
}

/// The tables as of one snapshot.
pub struct Picture(BTreeMap<u32, Table>);

impl Picture {
    /// What a view shows of it. The database decides by what there is, whatever the view takes it for.
    pub fn rows(&self, shows: Shows) -> impl Iterator<Item = &Arc<Row>> {
        let rows = self.0[&shows.table()].rows.values();
        let read = shows.policies_read().map(|other| &self.0[&other].rows);
        rows.filter(move |row| {
            shows.has(row) && read.is_none_or(|read| lets(read.get(&row.board).map(AsRef::as_ref)))
        })
    }
}

/// Of cards it is known that their policy reads the notes; what that of the notes reads is hidden in
/// the text of a function.
fn policies_of(oid: u32) -> Policies {
    let known = oid == CARDS;
    Policies {
        depends: if known { vec![NOTES] } else { Vec::new() },
        compared: !known,
    }
}

fn ticks_kept(ticks: &[(u64, Cursor)], old: u64) -> usize {
    let passed = ticks.iter().filter(|(at, _)| *at <= old).count();
    passed.saturating_sub(1)
}

fn definition(oid: u32, wordy: bool) -> Definition {
    let column = |name: &str| {
        let wordy = wordy && name == "board";
        Column {
            name: name.to_owned(),
            type_name: if wordy { "text" } else { "integer" }.to_owned(),
            base: if wordy { "text" } else { "int4" }.to_owned(),
            byte_ordered: true,
            deterministic: true,
            not_null: true,
            virtual_: false,
            names_objects: false,
            nested: false,
        }
    };
    Definition {
        oid,
        schema: "public".to_owned(),
        name: if oid == CARDS { "cards" } else { "notes" }.to_owned(),
        kind: 'r',
        columns: ["id", "v", "tx", "board"].map(column).into(),
        key: vec!["id".to_owned()],
        watched: true,
        by_column: false,
        deferrable_key: false,
    }
}
