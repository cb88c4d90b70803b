//! Views that ask PostgreSQL: which rows changed, and what the watcher may see of them now.
//!
//! Old images are never judged by today's policies, which would leak (`docs/design.md`): the keys
//! that changed are selected again as the role that watches, in the snapshot that the keys were
//! read in. Rows that come back are upserts, keys that do not are deletes; [`super::answering`] makes
//! the answer of them.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::pin;
use std::sync::Arc;

use futures::TryStreamExt;
use jiff::Timestamp;
use tokio_postgres::Client;

use super::answering::Answering;
use super::keys::Keys;
use super::{Sight, View};
use crate::cursor::Xid;
use crate::event::{self, Element, Image, Scope, State, TOO_LARGE, Transaction};
use crate::filter::Matcher;
use crate::mutants::{Mutant, on};
use crate::postgres::untyped::untyped;
use crate::rows::statement::Statement;
use crate::schema::policies::Policies;

/// Changed keys above which a view's state is read anew.
const MOST_KEYS: usize = 20_000;

/// How a view asks.
#[derive(Debug, Clone)]
pub struct Asking {
    /// What is shown of a row and the object of its key, for a JSON array of key objects: the last
    /// parameter, still to be added.
    pub select: Statement,
    /// Columns of the primary key, in key order.
    pub key: Vec<String>,
    /// How keys are written.
    pub keys: Keys,
    /// Decided from images; a row it leaves out is not in the view.
    pub may_match: Matcher,
    /// What decides who sees which rows, where something does.
    pub policies: Option<Policies>,
    /// The filter moves with the clock, so only comparing finds out.
    pub moving: bool,
}

/// What a view has yet to ask for.
#[derive(Debug, Clone, Default)]
pub struct Pending {
    keys: HashMap<Arc<str>, Touch>,
    /// So many touches were collected.
    touches: usize,
    /// Every row must be looked at.
    whole: bool,
    /// The transaction because of which, unless only time has passed.
    since: Option<(Xid, Timestamp)>,
    /// Nothing helps but to read the state anew.
    reset: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Touch {
    order: usize,
    pub(super) inserted: bool,
    pub(super) xid: Xid,
    pub(super) at: Timestamp,
}

/// What a view shows: written key, and a hash of what is shown of the row.
pub type Shown = HashMap<Arc<str>, u64>;

/// A hash of everything that a view shows, in whatever order it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Digest(u64);

impl Digest {
    /// Adds a row.
    pub fn add(&mut self, key: &Arc<str>, value: Option<&Arc<str>>) {
        self.add_hashed(key, hash(value));
    }

    pub(super) fn add_hashed(&mut self, key: &Arc<str>, value: u64) {
        self.0 = self.0.wrapping_add(Self::row(key, value));
    }

    pub(super) fn take_hashed(&mut self, key: &Arc<str>, value: u64) {
        self.0 = self.0.wrapping_sub(Self::row(key, value));
    }

    fn row(key: &Arc<str>, value: u64) -> u64 {
        let mut hasher = DefaultHasher::new();
        (key, value).hash(&mut hasher);
        hasher.finish()
    }

    /// After that change.
    #[must_use]
    pub fn after(self, change: Self) -> Self {
        Self(self.0.wrapping_add(change.0))
    }

    /// Of these rows.
    #[must_use]
    pub fn of(shown: &Shown) -> Self {
        let mut digest = Self::default();
        for (key, value) in shown {
            digest.add_hashed(key, *value);
        }
        digest
    }
}

/// What PostgreSQL answered.
#[derive(Debug)]
pub struct Answer {
    /// What to tell; empty when nothing that is shown has changed.
    pub elements: Vec<Element>,
    /// What it does to the digest of what was shown, where that is known: of the rows that it tells, less
    /// those that they replace.
    pub change: Option<Digest>,
    /// All rows were looked at, and this is what there is now.
    pub whole: Option<Shown>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// PostgreSQL's answer.
    #[error("the view could not be asked for")]
    Query(#[from] tokio_postgres::Error),
    /// More than is compared, or keys that are not as the catalogue says.
    #[error("the view must be read anew")]
    Anew,
}

impl Pending {
    /// Nothing is to be asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && !self.whole && !self.reset
    }

    /// The state must be read anew.
    #[must_use]
    pub fn is_reset(&self) -> bool {
        self.reset || self.keys.len() > MOST_KEYS
    }

    /// Every row must be looked at.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// When the latest of it was logged.
    #[must_use]
    pub fn at(&self) -> Option<Timestamp> {
        let since = self.since.map(|(_, at)| at);
        self.keys.values().map(|touch| touch.at).chain(since).max()
    }

    /// Every row must be looked at, for nobody knows what has changed.
    pub fn compare(&mut self) {
        self.whole = true;
    }

    /// Adds what these transactions, in order, mean for a view of `table`.
    ///
    /// Each transaction is judged by itself: a row that was in the view only between two of them may
    /// be in somebody's snapshot.
    pub fn collect<'a>(
        &mut self,
        table: u32,
        asking: &Asking,
        transactions: impl IntoIterator<Item = &'a Transaction>,
    ) {
        for transaction in transactions {
            self.reset |= transaction.reset_all;
            for delta in &transaction.deltas {
                if asking.depends_on(delta.table) && !on(Mutant::R7) {
                    self.whole = true;
                    self.since = Some((transaction.xid, transaction.at));
                    // It may not be watched any more.
                    self.reset |= delta.scope == Scope::Unknown;
                }
                if delta.table != table {
                    continue;
                }
                self.reset |= delta.scope != Scope::Keys;
                for change in &delta.changes {
                    if !asking.concerns(&change.before) && !asking.concerns(&change.after) {
                        continue;
                    }
                    let before = self.keys.get(&change.key);
                    let touch = Touch {
                        order: self.touches,
                        inserted: before
                            .map_or(change.before == State::Absent, |touch| touch.inserted),
                        xid: transaction.xid,
                        at: change.at,
                    };
                    self.touches += 1;
                    self.keys.insert(Arc::clone(&change.key), touch);
                }
            }
        }
    }

    /// What was asked in vain before this was collected.
    pub fn put_back(&mut self, earlier: Self) {
        if on(Mutant::R6) {
            return;
        }
        for later in self.keys.values_mut() {
            later.order += earlier.touches;
        }
        self.touches += earlier.touches;
        for (key, touch) in earlier.keys {
            self.keys
                .entry(key)
                .and_modify(|later| later.inserted = touch.inserted)
                .or_insert(touch);
        }
        self.whole |= earlier.whole;
        self.since = self.since.or(earlier.since);
        self.reset |= earlier.reset;
    }

    /// The transaction because of which every row is looked at, unless only time has passed.
    pub(super) fn since(&self) -> Option<(Xid, Timestamp)> {
        self.since
    }

    /// Whether that row itself was touched.
    pub(super) fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// The transaction because of which that row may be another one.
    pub(super) fn because(&self, key: &str) -> Option<(Xid, Timestamp)> {
        let touch = self.keys.get(key).map(|touch| (touch.xid, touch.at));
        touch.or(self.since)
    }

    /// The keys in the order of their last touch.
    pub(super) fn keys(&self) -> Vec<(&Arc<str>, Touch)> {
        let mut keys: Vec<_> = self.keys.iter().map(|(key, touch)| (key, *touch)).collect();
        keys.sort_by_key(|(_, touch)| touch.order);
        keys
    }
}

impl Asking {
    /// Whether a change of this table may change which rows are shown: a policy reads it.
    #[must_use]
    pub fn depends_on(&self, table: u32) -> bool {
        let policies = self.policies.as_ref();
        policies.is_some_and(|policies| policies.depends.contains(&table))
    }

    /// What is shown may change without a change that is logged.
    #[must_use]
    pub fn is_compared(&self) -> bool {
        let policies = self.policies.as_ref();
        self.moving || policies.is_some_and(|policies| policies.compared)
    }

    fn concerns(&self, state: &State) -> bool {
        match state {
            State::Absent => false,
            State::Unknown(_) | State::TooLarge => true,
            State::Row(text) => Image::parse(text).map_or(true, |image| {
                let matched = self.may_match.matches(|column| image.get(column));
                matched.unwrap_or(true)
            }),
        }
    }

    /// The last parameter of [`Asking::select`] for `pending`: the objects of its keys. `None` where
    /// every row is looked at, which the statement of the state does.
    ///
    /// # Errors
    /// [`AskError::Anew`].
    pub fn lookup(&self, pending: &Pending) -> Result<Option<String>, AskError> {
        if pending.whole {
            return Ok(None);
        }
        let keys = pending.keys();
        let objects = self.objects(keys.iter().map(|(key, _)| &***key));
        objects.map(Some).ok_or(AskError::Anew)
    }

    /// A row of the state: what is shown of it, and the object of its key.
    ///
    /// # Errors
    /// [`AskError::Anew`].
    pub fn row(&self, text: &str, key: &str) -> Result<Element, AskError> {
        let key = self.key(key).ok_or(AskError::Anew)?;
        Ok(Element::Row {
            key: self.keys.write(&key),
            value: shown(text),
        })
    }

    fn objects<'a>(&self, keys: impl Iterator<Item = &'a str>) -> Option<String> {
        let objects: Option<Vec<serde_json::Value>> = keys
            .map(|key| {
                let parts = event::key_parts(key, self.key.len())?;
                let members = self.key.iter().cloned().zip(parts);
                Some(members.collect())
            })
            .collect();
        Some(serde_json::Value::from(objects?).to_string())
    }

    pub(super) fn key(&self, object: &str) -> Option<Arc<str>> {
        let image = Image::parse(object).ok()?;
        image.key(&self.key).map(Into::into)
    }
}

impl View {
    /// A row of the state: what its statement answers.
    ///
    /// # Errors
    /// [`AskError::Anew`], [`AskError::Query`].
    pub fn state_row(&self, row: &tokio_postgres::Row) -> Result<Element, AskError> {
        let text: &str = row.try_get(0)?;
        match &self.definition.sight {
            Sight::Images(images) => images.row(text).map_err(|_| AskError::Anew),
            Sight::Asking(asking) => asking.row(text, row.try_get(1)?),
        }
    }

    /// Asks what has become of `pending`, inside a transaction of the watcher. `before` is what the
    /// view shows, where that is known; it is brought up to date.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(
        &self,
        asking: &Asking,
        pending: &Pending,
        before: Option<&mut Shown>,
        client: &Client,
    ) -> Result<Answer, AskError> {
        let Statement { sql, params, .. } = if pending.whole {
            &self.definition.statement
        } else {
            &asking.select
        };
        let lookup = asking.lookup(pending)?;
        let params = params.iter().map(String::as_str);
        let params: Vec<&str> = params.chain(lookup.as_deref()).collect();
        let rows = client.query_typed_raw(sql, untyped(&params)).await?;
        let mut rows = pin!(rows);
        let mut answering = Answering::new(asking, pending, before);
        while let Some(row) = rows.try_next().await? {
            answering.push(row.try_get(0)?, row.try_get(1)?)?;
        }
        Ok(answering.finish())
    }
}

pub(super) fn shown(text: &str) -> Option<Arc<str>> {
    (text.len() <= TOO_LARGE).then(|| text.into())
}

pub(super) fn hash(value: Option<&Arc<str>>) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cursor::Cursor;
    use crate::event::{Change, Delta};
    use crate::filter::{Condition, Kind};
    use crate::view::{Check, Mark};

    const TASKS: u32 = 1;
    const MEMBERS: u32 = 2;

    /// Asks for rows with `board` 7, under policies that read the members.
    fn asking() -> Asking {
        let condition = Condition::parse("board", "eq.7").unwrap();
        let values = ["7".to_owned()];
        Asking {
            select: Statement::default(),
            key: vec!["id".to_owned()],
            keys: Keys::Plain,
            may_match: Matcher::new([(&condition, Kind::Int, &values[..])]).unwrap(),
            policies: Some(Policies {
                depends: vec![MEMBERS],
                compared: false,
            }),
            moving: false,
        }
    }

    fn on_board(board: u32) -> State {
        State::Row(format!(r#"{{"id":1,"board":{board}}}"#).into())
    }

    fn transaction(xid: Xid, table: u32, scope: Scope, changes: &[(State, State)]) -> Transaction {
        let at = Timestamp::from_second(i64::try_from(xid).unwrap()).unwrap();
        let changes = changes.iter().map(|(before, after)| Change {
            key: "1".into(),
            before: before.clone(),
            after: after.clone(),
            at,
        });
        Transaction {
            xid,
            at,
            deltas: vec![Delta {
                table,
                scope,
                changes: changes.collect(),
            }],
            messages: Vec::new(),
            reset_all: false,
        }
    }

    fn collected(transactions: &[Transaction]) -> Pending {
        let mut pending = Pending::default();
        pending.collect(TASKS, &asking(), transactions);
        pending
    }

    #[test]
    fn only_rows_that_may_be_in_the_view_are_asked_for() {
        let moved =
            |from, to| transaction(5, TASKS, Scope::Keys, &[(on_board(from), on_board(to))]);
        assert!(collected(&[moved(1, 2)]).is_empty());
        for concerns in [moved(7, 7), moved(1, 7), moved(7, 1)] {
            assert!(!collected(&[concerns]).is_empty());
        }
        let unknown = State::Unknown("{}".into());
        let unknown = transaction(5, TASKS, Scope::Keys, &[(unknown, on_board(1))]);
        assert!(!collected(&[unknown]).is_empty());
    }

    #[test]
    fn a_row_that_was_in_the_view_only_between_two_transactions_is_asked_for() {
        // Somebody's snapshot may be from in between.
        let there = transaction(5, TASKS, Scope::Keys, &[(on_board(1), on_board(7))]);
        let back = transaction(6, TASKS, Scope::Keys, &[(on_board(7), on_board(1))]);
        let pending = collected(&[there, back]);
        assert!(pending.keys.contains_key("1"));
        assert_eq!(pending.at().unwrap().as_second(), 6);
    }

    #[test]
    fn what_policies_read_makes_every_row_be_looked_at() {
        let joined = [(State::Absent, on_board(1))];
        let pending = collected(&[transaction(5, MEMBERS, Scope::Keys, &joined)]);
        assert!(pending.is_whole() && !pending.is_reset());
        // Its definition changed: it may not be watched any more, or read differently.
        let pending = collected(&[transaction(5, MEMBERS, Scope::Unknown, &[])]);
        assert!(pending.is_reset());
        let pending = collected(&[transaction(5, TASKS, Scope::Truncated, &[])]);
        assert!(pending.is_reset());
        assert!(collected(&[transaction(5, 3, Scope::Unknown, &[])]).is_empty());
    }

    #[test]
    fn what_was_asked_in_vain_is_asked_again_with_what_came_since() {
        let insert = [(State::Absent, on_board(7))];
        let earlier = collected(&[transaction(5, TASKS, Scope::Keys, &insert)]);
        let update = [(on_board(7), on_board(7))];
        let mut later = collected(&[transaction(6, TASKS, Scope::Keys, &update)]);
        later.put_back(earlier);
        let touch = later.keys["1"];
        // For a screen it is still a row that it has not seen.
        assert!(touch.inserted && touch.xid == 6);
        let mut nothing = Pending::default();
        nothing.put_back(later);
        assert!(!nothing.is_empty());
    }

    #[test]
    fn keys_come_in_the_order_of_their_last_touch() {
        let touched = |xid, keys: &[&str]| {
            let mut transaction = transaction(xid, TASKS, Scope::Keys, &[]);
            let changes = keys.iter().map(|key| Change {
                key: (*key).into(),
                before: on_board(7),
                after: on_board(7),
                at: transaction.at,
            });
            transaction.deltas[0].changes = changes.collect();
            transaction
        };
        let order = |pending: &Pending| -> String {
            let keys = pending.keys();
            keys.iter().map(|(key, _)| &***key).collect()
        };
        let mut later = collected(&[
            touched(5, &["a", "b", "c"]),
            touched(6, &["a", "d", "b", "e"]),
        ]);
        assert_eq!(order(&later), "cadbe");
        // What was asked in vain came before all of that.
        later.put_back(collected(&[
            touched(3, &["x", "y", "b"]),
            touched(4, &["x", "z"]),
        ]));
        assert_eq!(order(&later), "yxzcadbe");
    }

    #[test]
    fn a_comparison_holds_for_states_from_before_it_or_equal_to_it() {
        let digest = |rows: &[(&str, &str)]| {
            let mut digest = Digest::default();
            for (key, value) in rows {
                digest.add(&(*key).into(), Some(&(*value).into()));
            }
            digest
        };
        let now = digest(&[("1", "a"), ("2", "b")]);
        assert_eq!(now, digest(&[("2", "b"), ("1", "a")]));
        let check = |since| Check {
            at: Cursor::new(20, []).into(),
            since,
            digest: now,
        };
        let compared = check(Some(Cursor::new(10, []).into()));
        assert!(compared.holds_for(&Cursor::new(10, []), None));
        // Read after the state that was compared with: it may have shown something else in between.
        assert!(!compared.holds_for(&Cursor::new(11, []), None));
        assert!(!compared.holds_for(&Cursor::new(11, []), Some(digest(&[("1", "a")]))));
        assert!(compared.holds_for(&Cursor::new(11, []), Some(now)));
        assert!(!check(None).holds_for(&Cursor::new(1, []), None));
        // Nothing but time may lie between two states of one snapshot.
        assert!(!now_and_here().is_in(&Cursor::new(20, [])));
        assert!(now_and_here().is_in(&Cursor::new(21, [])));
    }

    fn now_and_here() -> Mark {
        Mark::Comparison(Cursor::new(20, []).into())
    }

    #[test]
    fn keys_are_looked_for_as_they_were_written() {
        let mut asking = asking();
        let lookup = asking.objects(["7", "a\"b"].into_iter()).unwrap();
        assert_eq!(lookup, r#"[{"id":"7"},{"id":"a\"b"}]"#);
        asking.key.push("part".to_owned());
        let image = Image::parse(r#"{"part":"x/y\"","id":7}"#).unwrap();
        let key = image.key(&asking.key).unwrap();
        let lookup = asking.objects([key.as_str()].into_iter()).unwrap();
        assert_eq!(lookup, r#"[{"id":"7","part":"x/y\""}]"#);
        assert_eq!(asking.objects(["7"].into_iter()), None);
    }
}
