//! Views that ask PostgreSQL: kept here, with what they have yet to ask for and how far they have
//! been told.
//!
//! A round takes from here what is to be asked ([`Stage::questions`]) and brings each answer back
//! ([`Stage::publish_answer`]). A view that could not be asked keeps what it has to ask for, and its
//! token, also where the round ended with its connection and brought no answer at all. Pure computation
//! under a lock of its own; [`super::round`] puts the questions.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::stage::{Joined, NotYet, Position, Stage};
use crate::backoff::Backoff;
use crate::cursor::{Cursor, Name, Token};
use crate::event::{Element, Transaction};
use crate::log::Batch;
use crate::metrics::Answer as Counted;
use crate::mutants::{Mutant, on};
use crate::postgres::transaction::Context;
use crate::view::asking::{Answer, Asking, Digest, Pending, Shown};
use crate::view::{Check, Delivery, Effect, Event, Mark, View};

/// Views that ask, above which no more are taken: each costs queries with every change.
const MOST: usize = 1_000;
/// As many of these may be of one context, all who bring no token being one: so that nobody shuts out all others.
const MOST_OF_ONE: usize = 750;
/// What a view's questions took counts half as much after so long.
const FORGOTTEN: Duration = Duration::from_mins(1);
/// Views whose policies read what nobody watches are compared this often.
const COMPARE: Duration = Duration::from_secs(5);

/// The views that ask, and how far they have been told.
#[derive(Debug, Default)]
pub(super) struct Asked(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Up to here the log has been looked through; `None` while there are no views.
    at: Option<Position>,
    /// In an order of their own, so that a run of the simulation is the same again.
    views: BTreeMap<Name, Entry>,
}

#[derive(Debug)]
struct Entry {
    view: Arc<View>,
    pending: Pending,
    /// What it is being asked.
    put: Option<Arc<Pending>>,
    /// What it shows, known once all of it had to be looked at.
    shown: Option<Shown>,
    /// When to ask again after asking in vain, and the pauses.
    retry: Option<(Instant, Backoff)>,
    /// When all of it was last compared, and where.
    compared: (Instant, Option<Arc<Cursor>>),
    /// What its questions took of late.
    spent: Spent,
}

/// Time that was taken, of which less and less counts.
#[derive(Debug)]
struct Spent {
    seconds: f64,
    at: Instant,
}

impl Spent {
    fn nothing() -> Self {
        Self {
            seconds: 0.0,
            at: Instant::now(),
        }
    }

    /// Seconds that count at `now`.
    fn at(&self, now: Instant) -> f64 {
        let since = now.duration_since(self.at).div_duration_f64(FORGOTTEN);
        self.seconds * 0.5_f64.powf(since)
    }

    fn add(&mut self, took: Duration) {
        let now = Instant::now();
        self.seconds = self.at(now) + took.as_secs_f64();
        self.at = now;
    }
}

/// A view with what it is to be asked, taken out of its entry.
#[derive(Debug)]
pub struct Question {
    /// The view.
    pub view: Arc<View>,
    /// How it asks.
    pub asking: Arc<Asking>,
    /// What it asks for.
    pub pending: Arc<Pending>,
    /// What it shows, if that is known; an answer brings it up to date.
    pub shown: Option<Shown>,
    /// How long it was asked.
    pub took: Duration,
}

/// Why a question has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unanswered {
    /// Asking the same again is of no use: permissions or definitions have changed, or the rows cannot be told.
    Anew,
    /// It is to be asked again.
    Failed,
    /// It was not asked: the round has taken long enough.
    Later,
}

/// Why a view that asks cannot be joined now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unjoined {
    /// The feed has never reached the database.
    #[error(transparent)]
    NotYet(#[from] NotYet),
    /// There are so many already.
    #[error("{0} different views that ask the database are open, and more are not taken")]
    Crowded(usize),
}

impl Stage {
    /// Joins the view of that name which asks, registering `view` if there is none. Who comes back may show rows
    /// of it already.
    ///
    /// # Errors
    /// [`Unjoined`].
    pub fn join_asking(
        &self,
        view: View,
        comes_back: bool,
    ) -> Result<(Arc<View>, Joined), Unjoined> {
        let live = self.lock();
        let at = live.at.as_ref().ok_or(NotYet)?;
        let mut state = self.asked.lock();
        let state = &mut *state;
        let known = state.views.get(&view.name());
        if known.is_some_and(|known| !known.view.is_defined_like(&view) || !live.holds(&known.view))
        {
            self.reset_entry(state, view.name(), None);
        }
        if !state.views.contains_key(&view.name()) {
            state.has_room_for(&view)?;
        }
        let here = Position {
            epoch: at.epoch,
            cursor: Arc::clone(&at.cursor),
            read: at.read,
        };
        if state.at.as_ref().is_some_and(|at| at.epoch != here.epoch) {
            // No round has seen the new epoch yet, and none will find it new once this one is here.
            self.reset_asked(state, "epoch");
        }
        let Position {
            cursor: told, read, ..
        } = state.at.get_or_insert(here);
        let entry = state.views.entry(view.name()).or_insert_with(|| {
            view.set_told(Arc::clone(told), *read);
            Entry {
                view: Arc::new(view),
                pending: Pending::default(),
                put: None,
                shown: None,
                retry: None,
                compared: (Instant::now(), None),
                spent: Spent::nothing(),
            }
        });
        let view = Arc::clone(&entry.view);
        if comes_back {
            view.set_shown();
        }
        let joined = Joined {
            place: at.place.clone(),
            epoch: at.epoch,
            cursor: Arc::clone(told),
            missed: None,
            subscriber: view.topic().subscribe(),
            when: Instant::now(),
        };
        self.asked_anew.notify_one();
        Ok((view, joined))
    }

    /// Forgets the view of that name if nobody subscribes to it.
    pub(super) fn leave_asked(&self, name: Name) {
        let mut state = self.asked.lock();
        let views = &mut state.views;
        let entry = views.get(&name);
        if entry.is_some_and(|entry| entry.view.topic().subscribers() == 0) {
            views.remove(&name);
        }
        if views.is_empty() {
            state.at = None;
        }
    }

    /// Views that ask.
    pub(super) fn asked_views(&self) -> Vec<Arc<View>> {
        let state = self.asked.lock();
        state
            .views
            .values()
            .map(|entry| Arc::clone(&entry.view))
            .collect()
    }

    /// Whether there are views that ask.
    fn asks(&self) -> bool {
        !self.asked.lock().views.is_empty()
    }

    /// Waits until there is a view that asks.
    pub async fn until_asked(&self) {
        while !self.asks() {
            self.asked_anew.notified().await;
        }
    }

    /// When to ask though nothing was published.
    #[must_use]
    pub fn next_wake(&self) -> Option<Instant> {
        self.asked.lock().next_wake()
    }

    /// Nobody can be asked.
    pub fn set_asked_failing(&self) {
        for entry in self.asked.lock().views.values() {
            entry.view.set_failing();
        }
    }

    /// From where the log is to be read for a round that brings every view to `here`. `None` where
    /// nothing that was published since concerns any of them: then they are there. The round before is
    /// over.
    #[must_use]
    pub fn round(&self, here: &Position) -> Option<Arc<Cursor>> {
        let from = {
            let mut state = self.asked.lock();
            state.take_back();
            let at = state.at.clone()?;
            if at.epoch != here.epoch {
                // Another life of the transaction counter: nothing that was shown holds.
                self.reset_asked(&mut state, "epoch");
                return None;
            }
            at.cursor
        };
        if self.is_quiet(here.epoch, &from) {
            let mut state = self.asked.lock();
            if !state.is_due() {
                state.move_to(here);
                return None;
            }
        }
        Some(from)
    }

    /// The log does not hold all of a round any more, or too much: every view reads its state anew.
    pub fn skip_round(&self) {
        let mut state = self.asked.lock();
        self.reset_asked(&mut state, "log");
    }

    /// Whether no transaction that the feed has published since `from` concerns any view here. The feed
    /// may have begun another epoch, of which its position says nothing yet.
    fn is_quiet(&self, epoch: Name, from: &Cursor) -> bool {
        let live = self.lock();
        let at = live.at.as_ref().filter(|at| at.epoch == epoch);
        let since = at.and_then(|at| at.ring.since(from));
        let Some(since) = since else { return false };
        let state = self.asked.lock();
        since
            .iter()
            .all(|missed| !state.is_touched(&missed.transaction))
    }

    /// Goes on to the end of the batch, and takes what is to be asked, in the order in which it is to be: who
    /// has cost least of late comes first, since not all may have their turn in one round. As one step: a view that is
    /// registered before gets all of the batch, and one registered after reads its state in a later
    /// snapshot than `end`.
    #[must_use]
    pub fn questions(&self, batch: &Batch, end: &Position) -> Vec<Question> {
        let mut state = self.asked.lock();
        let state = &mut *state;
        state.at = Some(end.clone());
        let now = Instant::now();
        let (mut questions, mut ended) = (Vec::new(), Vec::new());
        for (name, entry) in &mut state.views {
            let view = Arc::clone(&entry.view);
            let Some(asking) = view.asking().map(Arc::clone) else {
                continue;
            };
            let transactions = batch.transactions.iter().map(AsRef::as_ref);
            let pending = &mut entry.pending;
            pending.collect(view.table().oid, &asking, transactions);
            if asking.is_compared() && now.duration_since(entry.compared.0) >= COMPARE {
                pending.compare();
            }
            if pending.is_reset() {
                ended.push(*name);
            } else if pending.is_empty() {
                view.set_told(Arc::clone(&end.cursor), end.read);
            } else if entry.retry.as_ref().is_none_or(|(at, _)| *at <= now) {
                if pending.is_whole() {
                    entry.compared.0 = now;
                }
                let put = Arc::new(std::mem::take(pending));
                entry.put = Some(Arc::clone(&put));
                questions.push(Question {
                    asking,
                    pending: put,
                    shown: entry.shown.take(),
                    view,
                    took: Duration::ZERO,
                });
            }
        }
        let questions = state.sorted(questions, now);
        for name in ended {
            self.reset_entry(
                state,
                name,
                Some(Mark::Batch(Arc::clone(&end.cursor), [].into())),
            );
        }
        questions
    }

    /// Publishes what came of a question that was put at `end`.
    pub fn publish_answer(
        &self,
        mut question: Question,
        answer: Result<Answer, Unanswered>,
        end: &Position,
    ) {
        let Position {
            epoch,
            cursor: end,
            read,
        } = end;
        let view = Arc::clone(&question.view);
        let mut state = self.asked.lock();
        // It may have been reset, and even replaced, while it was asked.
        let Some(entry) = state.views.get_mut(&view.name()) else {
            return;
        };
        if !Arc::ptr_eq(&entry.view, &view) {
            return;
        }
        let result = match &answer {
            Ok(_) => "told",
            Err(Unanswered::Anew) => "anew",
            Err(Unanswered::Failed) => "failed",
            Err(Unanswered::Later) => "later",
        };
        let asked = &self.metrics.asked;
        asked.get_or_create(&Counted { result }).inc();
        entry.put = None;
        entry.spent.add(question.took);
        match answer {
            Ok(Answer {
                mut elements,
                change,
                whole,
            }) => {
                entry.retry = None;
                view.withhold(&mut elements, View::may_be_shown);
                if let Some(shown) = &whole {
                    // What policies read of tables that nobody watches changes between comparisons
                    // unseen; everything else is compared at once.
                    let last = if question.asking.is_compared() {
                        entry.compared.1.replace(Arc::clone(end))
                    } else {
                        view.told_until().until
                    };
                    let check = Check {
                        at: Arc::clone(end),
                        since: last.filter(|_| question.shown.is_some()),
                        digest: Digest::of(shown),
                    };
                    view.topic().publish(Delivery::Check(Arc::new(check)), 0);
                }
                let compared = whole.is_some();
                entry.shown = whole.or(question.shown.take());
                if !elements.is_empty() {
                    let token = Token {
                        epoch: *epoch,
                        view: view.name(),
                        cursor: (**end).clone(),
                    };
                    let at = question.pending.at().unwrap_or_else(jiff::Timestamp::now);
                    let body = view.encode(&elements);
                    let (mark, effect) = if compared {
                        (Mark::Comparison(Arc::clone(end)), Effect::Checked)
                    } else {
                        let effect = change.map_or(Effect::Unknown, Effect::Change);
                        // Time, or what nobody watches, may have changed a row since its transaction.
                        let xids = if question.asking.is_compared() {
                            None
                        } else {
                            elements.iter().map(Element::xid).collect()
                        };
                        let mark = Mark::Batch(Arc::clone(end), xids.unwrap_or_default());
                        (mark, effect)
                    };
                    let event = Event::new(mark, at, &token, Arc::clone(end), &body).with(effect);
                    let weight = event.frame.len();
                    view.topic()
                        .publish(Delivery::Event(Arc::new(event)), weight);
                }
                // After the event: who reads this first finds every event up to it.
                view.set_told(Arc::clone(end), *read);
            }
            Err(Unanswered::Anew) => {
                self.reset_entry(&mut state, view.name(), None);
            }
            Err(why @ (Unanswered::Failed | Unanswered::Later)) => {
                entry
                    .pending
                    .put_back(Arc::unwrap_or_clone(question.pending));
                entry.shown = question.shown.take();
                let mut backoff = entry.retry.take().map_or_else(Backoff::new, |(_, b)| b);
                let mut pause = Duration::ZERO;
                if why == Unanswered::Failed {
                    view.set_failing();
                    // What takes its time in vain leaves as much to others.
                    pause = backoff.delay().max(question.took);
                }
                entry.retry = Some((Instant::now() + pause, backoff));
            }
        }
    }

    fn reset_entry(&self, state: &mut State, name: Name, mark: Option<Mark>) {
        if let Some(entry) = state.views.remove(&name) {
            self.reset(entry.view.topic(), "table", mark);
        }
    }

    fn reset_asked(&self, state: &mut State, reason: &'static str) {
        for entry in std::mem::take(&mut state.views).into_values() {
            self.reset(entry.view.topic(), reason, None);
        }
        state.at = None;
    }
}

impl Asked {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while held")
    }
}

impl State {
    fn has_room_for(&self, view: &View) -> Result<(), Unjoined> {
        if self.views.len() >= MOST {
            return Err(Unjoined::Crowded(MOST));
        }
        // Nobody has so many while there are not so many in all.
        if self.views.len() >= MOST_OF_ONE {
            let views = self.views.values();
            let own = views.filter(|entry| entry.view.context() == view.context());
            if own.count() >= MOST_OF_ONE {
                return Err(Unjoined::Crowded(MOST_OF_ONE));
            }
        }
        Ok(())
    }

    /// Questions in the order in which they are put. What all views of a context cost counts before what one
    /// does, so that who has very many does not go before who has one.
    fn sorted(&self, questions: Vec<Question>, now: Instant) -> Vec<Question> {
        if questions.len() < 2 {
            return questions;
        }
        let mut contexts: HashMap<&Context, f64> = HashMap::new();
        for entry in self.views.values() {
            *contexts.entry(entry.view.context()).or_default() += entry.spent.at(now);
        }
        let cost = |question: &Question| {
            let all = contexts.get(question.view.context()).copied();
            let entry = self.views.get(&question.view.name());
            let own = entry.map(|entry| entry.spent.at(now));
            [all, own].map(Option::unwrap_or_default)
        };
        let questions = questions.into_iter();
        let mut questions: Vec<_> = questions
            .map(|question| (cost(&question), question))
            .collect();
        questions.sort_by(|([all, own], _), ([others, other], _)| {
            all.total_cmp(others).then(own.total_cmp(other))
        });
        questions
            .into_iter()
            .map(|(_cost, question)| question)
            .collect()
    }

    fn is_touched(&self, transaction: &Transaction) -> bool {
        transaction.reset_all
            || transaction.deltas.iter().any(|delta| {
                self.views.values().any(|entry| {
                    let asking = entry.view.asking();
                    entry.view.table().oid == delta.table
                        || asking.is_some_and(|asking| asking.depends_on(delta.table))
                })
            })
    }

    /// What was asked in a round that is over and brought no answer is to be asked again, at once.
    fn take_back(&mut self) {
        if on(Mutant::R5) {
            return;
        }
        for entry in self.views.values_mut() {
            if let Some(put) = entry.put.take() {
                entry.pending.put_back(Arc::unwrap_or_clone(put));
                entry
                    .retry
                    .get_or_insert_with(|| (Instant::now(), Backoff::new()));
            }
        }
    }

    /// Whether a view is to be asked though nothing was published.
    fn is_due(&self) -> bool {
        self.next_wake().is_some_and(|wake| wake <= Instant::now())
    }

    fn next_wake(&self) -> Option<Instant> {
        let wakes = self.views.values().filter_map(|entry| {
            // Nothing is asked before that, whatever is due.
            if let Some((at, _)) = &entry.retry {
                return Some(*at);
            }
            let asking = entry.view.asking()?;
            asking.is_compared().then(|| entry.compared.0 + COMPARE)
        });
        wakes.min()
    }

    /// Nothing that concerns any view happened up to here.
    fn move_to(&mut self, here: &Position) {
        if self
            .at
            .as_ref()
            .is_none_or(|at| !here.cursor.covers(&at.cursor))
        {
            return;
        }
        for entry in self.views.values() {
            if entry.pending.is_empty() {
                entry.view.set_told(Arc::clone(&here.cursor), here.read);
            }
        }
        self.at = Some(here.clone());
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::routes::tests::definition;
    use super::super::stage::tests::{at, batch, epoch, stage};
    use super::*;
    use crate::event::{Change, Scope, State as Row};
    use crate::log::Place;
    use crate::view::Sight;
    use crate::view::answering::tests::asking;

    fn view() -> View {
        View::new(
            Name::of(["v"]),
            definition(Sight::Asking(Arc::new(asking()))),
        )
    }

    /// A transaction that inserts a row.
    fn insert(xid: u64) -> Batch {
        let inserted = Change {
            key: "1".into(),
            before: Row::Absent,
            after: Row::Row(r#"{"id":1}"#.into()),
            at: Timestamp::UNIX_EPOCH,
        };
        batch(xid, Scope::Keys, vec![inserted])
    }

    #[test]
    fn what_a_round_that_broke_off_was_to_ask_is_asked_again_before_anybody_is_told_to_be_further()
    {
        let stage = stage();
        let (view, _joined) = stage.join_asking(view(), false).unwrap();
        let told = || view.told_until().until.unwrap().xmax();
        let batch = insert(10);
        stage.publish(&batch, &at(10), true);
        let here = Position {
            epoch: epoch(),
            cursor: Arc::new(batch.end.clone()),
            read: None,
        };
        assert!(stage.round(&here).is_some());
        let questions = stage.questions(&batch, &here);
        assert_eq!((questions.len(), told()), (1, 10));
        // The connection breaks, and with it the round.
        drop(questions);
        stage.set_asked_failing();

        assert!(stage.round(&here).is_some(), "there is something to ask");
        assert_eq!(told(), 10);
        let nothing = Batch {
            transactions: Vec::new(),
            ..batch
        };
        let questions = stage.questions(&nothing, &here);
        let [question] = <[Question; 1]>::try_from(questions).unwrap();
        assert!(!question.pending.is_empty());
        let answer = Answer {
            elements: Vec::new(),
            change: None,
            whole: None,
        };
        stage.publish_answer(question, Ok(answer), &here);
        assert_eq!(told(), 11);
        assert!(stage.round(&here).is_none(), "nothing is asked twice");
    }

    #[test]
    fn one_who_has_very_many_views_leaves_room_for_others() {
        let stage = stage();
        let join = |number: usize, role: Option<&str>| {
            let mut definition = definition(Sight::Asking(Arc::new(asking())));
            definition.context.role = role.map(str::to_owned);
            let name = format!("{number} {role:?}");
            let view = View::new(Name::of([name.as_str()]), definition);
            stage.join_asking(view, false).map(|_joined| ())
        };
        for number in 0..MOST_OF_ONE {
            join(number, None).unwrap();
        }
        let full = Err(Unjoined::Crowded(MOST_OF_ONE));
        assert_eq!(join(MOST_OF_ONE, None), full);
        join(0, None).unwrap();
        for number in 0..MOST - MOST_OF_ONE {
            join(number, Some("ann")).unwrap();
        }
        assert_eq!(join(0, Some("bob")), Err(Unjoined::Crowded(MOST)));
    }

    #[test]
    fn nobody_is_told_to_be_further_by_what_the_feed_knows_of_another_epoch() {
        let stage = stage();
        let (view, _joined) = stage.join_asking(view(), false).unwrap();
        let batch = insert(10);
        stage.publish(&batch, &at(10), true);
        let here = stage.position().unwrap();
        let next = Name::of(["the next epoch"]);
        stage.begin(&Place::new("here".into()), next, at(5), &at(5));
        assert!(stage.round(&here).is_some(), "it is not known to be quiet");
        assert_eq!(view.told_until().until.unwrap().xmax(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_comparison_that_is_due_waits_for_what_was_asked_in_vain() {
        let stage = stage();
        let moving = Asking {
            moving: true,
            ..asking()
        };
        let view = View::new(Name::of(["v"]), definition(Sight::Asking(Arc::new(moving))));
        let _joined = stage.join_asking(view, false).unwrap();
        let batch = insert(10);
        stage.publish(&batch, &at(10), true);
        let here = stage.position().unwrap();
        let moment = Duration::from_millis(1);
        tokio::time::advance(COMPARE.saturating_sub(moment)).await;
        for question in stage.questions(&batch, &here) {
            stage.publish_answer(question, Err(Unanswered::Failed), &here);
        }
        tokio::time::advance(moment * 2).await;
        // Or rounds would follow each other without a pause.
        assert!(stage.questions(&batch, &here).is_empty());
        assert!(stage.next_wake().unwrap() > Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_its_time_in_vain_leaves_as_much_to_others() {
        let stage = stage();
        let _joined = stage.join_asking(view(), false).unwrap();
        let batch = insert(10);
        stage.publish(&batch, &at(10), true);
        let here = stage.position().unwrap();
        let took = Duration::from_secs(2);
        for question in stage.questions(&batch, &here) {
            let question = Question { took, ..question };
            stage.publish_answer(question, Err(Unanswered::Failed), &here);
        }
        assert_eq!(stage.next_wake(), Some(Instant::now() + took));
    }

    #[tokio::test(start_paused = true)]
    async fn a_view_is_late_until_a_round_has_brought_it_to_where_all_of_the_log_was_read() {
        let stage = stage();
        let most = Duration::from_secs(3);
        let read = |complete| {
            let from = stage.lock().at.as_ref().unwrap().cursor.xmax();
            stage.publish(&batch(from, Scope::Keys, Vec::new()), &at(from), complete);
            stage.position().unwrap()
        };
        read(true);
        let (view, _joined) = stage.join_asking(view(), false).unwrap();
        let round = |here: &Position| {
            let nothing = Batch {
                transactions: Vec::new(),
                ..batch(here.cursor.xmax() - 1, Scope::Keys, Vec::new())
            };
            if stage.round(here).is_some() {
                assert!(stage.questions(&nothing, here).is_empty());
            }
        };
        assert!(!view.told_until().is_late(most));

        // The feed comes back from wherever it was, and the first thing streams hear is that it has.
        tokio::time::advance(most).await;
        let here = read(true);
        assert!(view.told_until().is_late(most));
        round(&here);
        assert!(!view.told_until().is_late(most));

        // What it reads lacks changes that could not be logged.
        tokio::time::advance(most).await;
        round(&read(false));
        assert!(view.told_until().is_late(most));
        round(&read(true));
        assert!(!view.told_until().is_late(most));
    }
}
