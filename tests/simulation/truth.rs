//! What really happened, and whether a screen shows it.
//!
//! A [`Life`] is what one life of the transaction counter committed, in order. A screen that holds a
//! token claims to show exactly what is done there; [`Life::check`] compares. That one comparison,
//! after every event, is most of the promise: nothing lost, nothing invented, no version that goes
//! back, no transaction in part.

use std::collections::BTreeMap;
use std::sync::Arc;

use rowcast::cursor::{Cursor, Xid};

use crate::database::{CARDS, KEYS, Key, NOTES, Row};

/// What a stream shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shows {
    Cards,
    /// Cards with this board.
    Board(u32),
    Notes,
    Channel,
}

impl Shows {
    pub const ALL: [Self; 5] = [
        Self::Cards,
        Self::Board(1),
        Self::Board(2),
        Self::Notes,
        Self::Channel,
    ];

    pub fn table(self) -> u32 {
        match self {
            Self::Cards | Self::Board(_) => CARDS,
            Self::Notes => NOTES,
            Self::Channel => 0,
        }
    }

    pub fn has(self, row: &Row) -> bool {
        match self {
            Self::Board(board) => row.board == board,
            _ => true,
        }
    }
}

/// What a transaction came to for one key.
#[derive(Debug)]
pub struct Change {
    pub table: u32,
    pub key: Key,
    pub before: Option<Arc<Row>>,
    pub after: Option<Arc<Row>>,
    /// The log does not have it.
    pub hidden: bool,
    /// The value of the gap that says so.
    pub gap: Option<i64>,
    /// The transaction that told everybody to read anew.
    pub told: Option<Xid>,
    /// The log has only its key, so that a screen may be told a later state at once.
    pub by_key: bool,
}

#[derive(Debug)]
pub struct Commit {
    pub xid: Xid,
    pub at: u64,
    pub changes: Vec<Change>,
    pub messages: Vec<Arc<str>>,
}

impl Commit {
    /// Whether a stream must say something of it.
    pub fn concerns(&self, shows: Shows) -> bool {
        if shows == Shows::Channel {
            return !self.messages.is_empty();
        }
        self.changes.iter().any(|change| {
            let there = |row: &Option<Arc<Row>>| row.as_ref().is_some_and(|row| shows.has(row));
            change.table == shows.table()
                && !change.hidden
                && !change.by_key
                && (there(&change.before) || there(&change.after))
        })
    }
}

#[derive(Debug, Default)]
pub struct Life {
    /// When it began.
    pub begun: u64,
    base: BTreeMap<(u32, Key), Option<Arc<Row>>>,
    pub commits: Vec<Commit>,
    /// Tables whose definition changed, and the transaction that told everybody.
    alterations: Vec<(u32, Option<Xid>)>,
    /// By key: places in `commits` and in their changes.
    versions: BTreeMap<(u32, Key), Vec<(usize, usize)>>,
}

impl Life {
    pub fn new(begun: u64) -> Self {
        Self {
            begun,
            ..Self::default()
        }
    }

    pub fn has(&self, xid: Xid) -> bool {
        self.commits.iter().any(|commit| commit.xid == xid)
    }

    /// What there is at `cursor`.
    pub fn state(&self, shows: Shows, cursor: &Cursor) -> BTreeMap<Key, String> {
        let mut rows = BTreeMap::new();
        for key in 0..KEYS {
            let place = (shows.table(), key);
            let versions = self
                .versions
                .get(&place)
                .map_or(&[][..], Vec::as_slice)
                .iter();
            let mut done = versions.filter(|at| cursor.is_done(self.commits[at.0].xid));
            let row = match done.next_back() {
                None => self.base.get(&place).and_then(Option::as_ref),
                Some(at) => self.commits[at.0].changes[at.1].after.as_ref(),
            };
            if let Some(row) = row.filter(|row| shows.has(row)) {
                rows.insert(key, row.text.to_string());
            }
        }
        rows
    }

    pub fn base(&mut self, table: u32, key: Key, row: Option<Arc<Row>>) {
        self.base.insert((table, key), row);
    }

    pub fn add(&mut self, commit: Commit) {
        let at = self.commits.len();
        for (place, change) in commit.changes.iter().enumerate() {
            let versions = self.versions.entry((change.table, change.key));
            versions.or_default().push((at, place));
        }
        self.commits.push(commit);
    }

    pub fn gap_told(&mut self, value: i64, xid: Xid) {
        self.tell(xid, |change| change.gap.is_some_and(|gap| gap <= value));
    }

    pub fn altered(&mut self, table: u32, told: Option<Xid>) {
        self.alterations.push((table, told));
    }

    /// Whether the type of a table's board is another one now than it was at `cursor`.
    pub fn is_altered_since(&self, table: u32, cursor: &Cursor) -> bool {
        let alterations = self.alterations.iter();
        let since = alterations.filter(|(altered, told)| {
            *altered == table && !told.is_some_and(|told| cursor.is_done(told))
        });
        since.count() % 2 == 1
    }

    /// Whether a filter may be decided wrongly at `cursor`: a definition has changed, and those who
    /// are there have not been told.
    fn is_in_doubt(&self, shows: Shows, cursor: &Cursor) -> bool {
        let mut alterations = self.alterations.iter();
        matches!(shows, Shows::Board(_))
            && alterations.any(|(table, told)| {
                *table == shows.table() && !told.is_some_and(|told| cursor.is_done(told))
            })
    }

    pub fn drift_told(&mut self, table: u32, xid: Xid) {
        let alterations = self.alterations.iter_mut();
        for (_, told) in alterations.filter(|(altered, _)| *altered == table) {
            told.get_or_insert(xid);
        }
        self.tell(xid, |change| change.gap.is_none() && change.table == table);
    }

    fn tell(&mut self, xid: Xid, which: impl Fn(&Change) -> bool) {
        let changes = self.commits.iter_mut().flat_map(|c| &mut c.changes);
        for change in changes.filter(|change| change.hidden && change.told.is_none()) {
            if which(change) {
                change.told = Some(xid);
            }
        }
    }

    /// Transactions that a stream must say something of, done in `now` and not in `before`.
    pub fn between(&self, shows: Shows, before: &Cursor, now: &Cursor) -> Vec<&Commit> {
        if self.is_in_doubt(shows, now) {
            return Vec::new();
        }
        let commits = self.commits.iter();
        commits
            .filter(|commit| now.is_done(commit.xid) && !before.is_done(commit.xid))
            .filter(|commit| commit.concerns(shows))
            .collect()
    }

    /// Whether `shown` is what there is at `cursor`.
    pub fn check(
        &self,
        shows: Shows,
        cursor: &Cursor,
        shown: &BTreeMap<Key, String>,
    ) -> Result<(), String> {
        let doubt = self.is_in_doubt(shows, cursor);
        for key in 0..KEYS {
            let place = (shows.table(), key);
            let versions = self.versions.get(&place).map_or(&[][..], Vec::as_slice);
            let done = |at: &(usize, usize)| cursor.is_done(self.commits[at.0].xid);
            let change_of = |at: &(usize, usize)| &self.commits[at.0].changes[at.1];
            // What is not in the log has no place in its order.
            let logged = |at: &(usize, usize)| !change_of(at).hidden;
            let first = versions.iter().position(|at| !done(at) && logged(at));
            let known = first.unwrap_or(versions.len());
            let torn = |at: &&(usize, usize)| done(at) && logged(at);
            if let Some(torn) = versions[known..].iter().find(torn) {
                return Err(format!(
                    "the token has transaction {} of key {key} and lacks {} from before",
                    self.commits[torn.0].xid, self.commits[versions[known].0].xid
                ));
            }
            let row_of = |at: &(usize, usize)| change_of(at).after.as_ref();
            let expected = match versions[..known].iter().rfind(|at| done(at)) {
                None => self.base.get(&place).and_then(Option::as_ref),
                Some(at) => row_of(at),
            };
            let there = shown.get(&key);
            if is(shows, expected, there) || doubt {
                continue;
            }
            // Nobody could know of it before everybody was told to read anew, and later images may
            // start from it.
            let unsaid = |at: &(usize, usize)| {
                let change = change_of(at);
                change.hidden && !change.told.is_some_and(|told| cursor.is_done(told))
            };
            if versions[..known].iter().any(unsaid) {
                continue;
            }
            // Read again where the batch ends, and perhaps not told of what came between.
            let by_key = versions[..known].iter().any(|at| change_of(at).by_key);
            let later = versions[known..].iter();
            if by_key && later.map(row_of).any(|row| is(shows, row, there)) {
                continue;
            }
            return Err(differs(key, expected, there));
        }
        Ok(())
    }

    /// Whether something is not on screens at `cursor`, for longer than since `at`, that nobody has
    /// told them of.
    pub fn unsaid(&self, shows: Shows, cursor: &Cursor, at: u64) -> Option<Xid> {
        let old = self.commits.iter().filter(|commit| commit.at <= at);
        old.filter(|commit| {
            let missing = !cursor.is_done(commit.xid)
                && commit.concerns(shows)
                && !self.is_in_doubt(shows, cursor);
            let gap = commit.changes.iter().any(|change| {
                change.table == shows.table()
                    && change.gap.is_some()
                    && !change.told.is_some_and(|told| cursor.is_done(told))
            });
            missing || gap
        })
        .map(|commit| commit.xid)
        .next()
    }
}

/// Whether a screen shows this row. The type of its board makes no difference.
fn is(shows: Shows, row: Option<&Arc<Row>>, shown: Option<&String>) -> bool {
    match (row.filter(|row| shows.has(row)), shown) {
        (None, None) => true,
        (Some(row), Some(shown)) => {
            let end = row.text.find(r#""board""#).unwrap_or(row.text.len());
            shown.starts_with(&row.text[..end])
        }
        _ => false,
    }
}

fn differs(key: Key, expected: Option<&Arc<Row>>, shown: Option<&String>) -> String {
    let expected = expected.map(|row| &row.text);
    format!("key {key} is shown as {shown:?} and is {expected:?}")
}
