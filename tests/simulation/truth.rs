//! What really happened, and whether a screen shows it.
//!
//! A [`Life`] is what one life of the transaction counter committed, in order. A screen that holds a
//! token claims to show exactly what is done there; [`Life::check`] compares. That one comparison,
//! after every event, is most of the promise: nothing lost, nothing invented, no version that goes
//! back, no transaction in part.

use std::collections::{BTreeMap, BTreeSet};
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
    /// Cards with this board, for which the database is asked.
    Asked(u32),
    /// Cards whose policy [`lets`] them be seen. It reads the notes, and that is known.
    Member,
    /// Notes whose policy [`lets`] them be seen. It reads the cards, and nobody knows: it is compared
    /// from time to time.
    Compared,
    Channel,
}

impl Shows {
    pub const ALL: [Self; 9] = [
        Self::Cards,
        Self::Board(1),
        Self::Board(2),
        Self::Notes,
        Self::Asked(1),
        Self::Asked(2),
        Self::Member,
        Self::Compared,
        Self::Channel,
    ];

    pub fn table(self) -> u32 {
        match self {
            Self::Cards | Self::Board(_) | Self::Asked(_) | Self::Member => CARDS,
            Self::Notes | Self::Compared => NOTES,
            Self::Channel => 0,
        }
    }

    /// Whether the database is asked for it.
    pub fn asks(self) -> bool {
        matches!(self, Self::Asked(_) | Self::Member | Self::Compared)
    }

    /// The table that its policy reads.
    pub fn policies_read(self) -> Option<u32> {
        match self {
            Self::Member => Some(NOTES),
            Self::Compared => Some(CARDS),
            _ => None,
        }
    }

    /// Whether it is known that a change of this table may change what is shown.
    fn heeds(self, table: u32) -> bool {
        table == self.table() || self == Self::Member && self.policies_read() == Some(table)
    }

    /// Everything of its table.
    fn table_of(self) -> Self {
        if self.table() == CARDS {
            Self::Cards
        } else {
            Self::Notes
        }
    }

    /// Whether its filter takes this row. Who may see it is decided elsewhere.
    pub fn has(self, row: &Row) -> bool {
        match self {
            Self::Board(board) | Self::Asked(board) => row.board == board,
            _ => true,
        }
    }
}

/// Whether a policy lets a row be seen whose board is the key of `other`, in the table that it reads.
pub fn lets(other: Option<&Row>) -> bool {
    other.is_some_and(|other| other.board == 1)
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
            let mine = change.table == shows.table()
                && (shows.asks() || !change.by_key)
                && (there(&change.before) || there(&change.after));
            let others = change.table != shows.table() && shows.heeds(change.table);
            !change.hidden && (mine || others)
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
            let row = self.row((shows.table(), key), cursor);
            let row = row.filter(|row| shows.has(row) && self.lets_see(shows, row, cursor));
            if let Some(row) = row {
                rows.insert(key, row.text.to_string());
            }
        }
        rows
    }

    fn versions(&self, place: (u32, Key)) -> &[(usize, usize)] {
        self.versions.get(&place).map_or(&[], Vec::as_slice)
    }

    fn change(&self, at: (usize, usize)) -> &Change {
        &self.commits[at.0].changes[at.1]
    }

    fn is_done(&self, at: (usize, usize), cursor: &Cursor) -> bool {
        cursor.is_done(self.commits[at.0].xid)
    }

    /// The row at `cursor`.
    fn row(&self, place: (u32, Key), cursor: &Cursor) -> Option<&Arc<Row>> {
        let mut versions = self.versions(place).iter();
        match versions.rfind(|at| self.is_done(**at, cursor)) {
            None => self.base.get(&place).and_then(Option::as_ref),
            Some(at) => self.change(*at).after.as_ref(),
        }
    }

    /// Whether the log does not have this change, and nobody who is at `cursor` was told to read anew.
    fn is_unsaid(&self, at: (usize, usize), cursor: &Cursor) -> bool {
        let change = self.change(at);
        change.hidden && !change.told.is_some_and(|told| cursor.is_done(told))
    }

    /// Whether policies let a row be seen at `cursor`.
    fn lets_see(&self, shows: Shows, row: &Row, cursor: &Cursor) -> bool {
        let read = shows.policies_read();
        read.is_none_or(|read| lets(self.row((read, row.board), cursor).map(AsRef::as_ref)))
    }

    /// Whether a relay cannot know what policies say of a row at `cursor`.
    fn is_unsure(&self, shows: Shows, row: &Row, cursor: &Cursor) -> bool {
        let Some(read) = shows.policies_read() else {
            return false;
        };
        let mut versions = self.versions((read, row.board)).iter();
        shows == Shows::Compared
            || versions.any(|at| self.is_done(*at, cursor) && self.is_unsaid(*at, cursor))
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
        matches!(shows, Shows::Board(_) | Shows::Asked(_))
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

    /// Whether `shown` is what there is at `cursor`, as far as a relay can know it.
    pub fn check(
        &self,
        shows: Shows,
        cursor: &Cursor,
        shown: &BTreeMap<Key, String>,
    ) -> Result<(), String> {
        let doubt = self.is_in_doubt(shows, cursor);
        for key in 0..KEYS {
            let versions = self.versions((shows.table(), key));
            let done = |at: &(usize, usize)| self.is_done(*at, cursor);
            // What is not in the log has no place in its order.
            let logged = |at: &(usize, usize)| !self.change(*at).hidden;
            let first = versions.iter().position(|at| !done(at) && logged(at));
            let known = first.unwrap_or(versions.len());
            let torn = |at: &&(usize, usize)| done(at) && logged(at);
            if let Some(torn) = versions[known..].iter().find(torn) {
                return Err(format!(
                    "the token has transaction {} of key {key} and lacks {} from before",
                    self.commits[torn.0].xid, self.commits[versions[known].0].xid
                ));
            }
            let row_of = |at: &(usize, usize)| self.change(*at).after.as_ref();
            let base = self.base.get(&(shows.table(), key));
            let base = base.and_then(Option::as_ref);
            let expected = match versions[..known].iter().rfind(|at| done(at)) {
                None => base,
                Some(at) => row_of(at),
            };
            let there = shown.get(&key);
            let seen = expected.filter(|row| self.lets_see(shows, row, cursor));
            let unsure = expected.filter(|row| self.is_unsure(shows, row, cursor));
            if is(shows, seen, there)
                || unsure.is_some() && (there.is_none() || is(shows, unsure, there))
            {
                continue;
            }
            // Whatever excuse there is, who asks is told of rows that somebody committed.
            let done_too = versions.iter().filter(|at| done(at));
            let mut written = done_too.map(row_of).chain([base]);
            if shows.asks()
                && there.is_some()
                && !written.any(|row| is(shows.table_of(), row, there))
            {
                return Err(format!(
                    "key {key} is shown as {there:?}, which nobody wrote"
                ));
            }
            if doubt {
                continue;
            }
            // Nobody could know of it before everybody was told to read anew, and later images may
            // start from it. Who asks is told of rows, and not of images.
            let unsaid =
                |at: &(usize, usize)| self.is_unsaid(*at, cursor) && (!shows.asks() || done(at));
            if versions[..known].iter().any(unsaid) {
                continue;
            }
            // Read again where the batch ends, and perhaps not told of what came between. Who asks is
            // at the end of a batch always.
            let by_key = versions[..known].iter().any(|at| self.change(*at).by_key);
            let later = versions[known..].iter();
            if !shows.asks() && by_key && later.map(row_of).any(|row| is(shows, row, there)) {
                continue;
            }
            return Err(differs(key, expected, there));
        }
        Ok(())
    }

    /// Whether `shown` is what there is at `cursor`, also where relays find that out only in time.
    pub fn check_all(
        &self,
        shows: Shows,
        cursor: &Cursor,
        shown: &BTreeMap<Key, String>,
    ) -> Result<(), String> {
        self.check(shows, cursor, shown)?;
        let state = self.state(shows, cursor);
        if shows == Shows::Compared && !state.keys().eq(shown.keys()) {
            return Err(format!("shows {shown:?} of {state:?}"));
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
                && !self.is_in_doubt(shows, cursor)
                && (!shows.asks() || self.is_to_be_seen(shows, cursor, at));
            let gap = commit.changes.iter().any(|change| {
                shows.heeds(change.table)
                    && change.gap.is_some()
                    && !change.told.is_some_and(|told| cursor.is_done(told))
            });
            missing || gap
        })
        .map(|commit| commit.xid)
        .next()
    }

    /// Whether what there was at `at` looks otherwise than what there is at `cursor`. What policies hide
    /// is asked for, and need not be told.
    fn is_to_be_seen(&self, shows: Shows, cursor: &Cursor, at: u64) -> bool {
        let old = self.commits.iter().filter(|commit| commit.at <= at);
        let old: BTreeSet<Xid> = old.map(|commit| commit.xid).collect();
        let end = old.last().map_or(0, |last| last + 1).max(cursor.xmax());
        let open = cursor.xmin()..end;
        let open = open.filter(|xid| !cursor.is_done(*xid) && !old.contains(xid));
        self.state(shows, cursor) != self.state(shows, &Cursor::new(end, open))
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
