//! Rounds of questions for the views that ask.
//!
//! One round: the log is read in a transaction whose snapshot is exported, and every view that is
//! concerned reads the keys that changed in that same snapshot, as its watcher and through another
//! login, which cannot read the log. So keys and rows belong to one state, and the end of each
//! round is a true one. What is to be asked, and what an answer means, [`super::asked`] knows.
//!
//! [`ask`] is the whole life of a connection that asks, of which it knows what it can be asked
//! ([`Asker`]) and nothing more.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::Instant;

use super::asked::{Question, Unanswered};
use super::reading::{DEFINITIONS, EpochEnded};
use super::stage::{Position, Stage};
use crate::cursor::Cursor;
use crate::log::{Batch, Bounds};
use crate::schema::catalog::Catalog;
use crate::view::asking::Answer;

/// Views that are asked at the same time.
const AT_ONCE: usize = 4;
/// After so long a round begins no more questions: the next one does, once who has cost little had his turn.
/// Otherwise whatever commits meanwhile would wait for all that is slow.
const LONG_ENOUGH: Duration = Duration::from_millis(500);
/// What a round reads at most, above which every view reads its state anew.
const ROUND: Bounds = Bounds {
    rows: 20_000,
    bytes: 16 << 20,
    batch: 32 << 20,
    total: 100_000,
};

/// What a connection that asks can be asked.
pub trait Asker: Sync {
    /// Why it cannot answer: it is over then, and a round with it.
    type Error: From<EpochEnded> + Send;

    /// What the tables look like, as far as is known.
    fn catalog(&self) -> Arc<Catalog>;

    /// What the tables look like now.
    fn reload(&self) -> impl Future<Output = Result<Arc<Catalog>, Self::Error>> + Send;

    /// Everything that committed after `from`, in a transaction that stays open; `None` when it is
    /// more than wanted.
    fn open(
        &self,
        from: &Cursor,
        catalog: &Catalog,
        bounds: Bounds,
    ) -> impl Future<Output = Result<Option<Batch>, Self::Error>> + Send;

    /// Makes the snapshot of that transaction known. It lasts as long as the transaction.
    fn export(&self) -> impl Future<Output = Result<String, Self::Error>> + Send;

    /// Does `work` elsewhere while the transaction stays open. Once that is not there any more, `work` is
    /// given up.
    fn hold<T: Send>(
        &self,
        work: impl Future<Output = T> + Send,
    ) -> impl Future<Output = Result<T, Self::Error>> + Send;

    /// Puts one question, elsewhere, in an exported snapshot.
    fn answer(
        &self,
        question: &mut Question,
        snapshot: &str,
    ) -> impl Future<Output = Result<Answer, Unanswered>> + Send;

    /// Ends the transaction.
    fn commit(&self) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Gives the transaction up. Where there is none it does nothing.
    fn roll_back(&self) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Asks, until the connection is over, whenever something was published or is due. `reached` is called
/// after each round.
///
/// # Errors
/// Whatever ended the connection.
pub async fn ask<A: Asker>(
    asker: &A,
    stage: &Stage,
    mut reached: impl FnMut() + Send,
) -> Result<Infallible, A::Error> {
    let mut position = stage.watch_position();
    loop {
        let here = position.borrow_and_update().clone();
        if let Some(here) = here {
            turn(asker, stage, here).await?;
            reached();
        }
        let wake = stage.next_wake();
        tokio::select! {
            changed = position.changed() => if changed.is_err() { std::future::pending().await },
            () = sleep_until(wake) => {}
        }
    }
}

/// One round, or none where nothing that was published since concerns a view.
async fn turn<A: Asker>(asker: &A, stage: &Stage, here: Position) -> Result<(), A::Error> {
    let Some(from) = stage.round(&here) else {
        return Ok(());
    };
    let Some((batch, snapshot)) = read(asker, &from).await? else {
        stage.skip_round();
        return Ok(());
    };
    if batch.epoch != Some(here.epoch) {
        return Err(EpochEnded.into());
    }
    let end = Position {
        cursor: Arc::new(batch.end.clone()),
        ..here
    };
    let questions = stage.questions(&batch, &end);
    let put = put(asker, stage, questions, &snapshot, &end);
    asker.hold(put).await?;
    asker.commit().await
}

/// The log since `from`, in a transaction that stays open, and its snapshot; `None` when it is too much,
/// or not all there any more.
async fn read<A: Asker>(asker: &A, from: &Cursor) -> Result<Option<(Batch, String)>, A::Error> {
    let mut catalog = asker.catalog();
    let mut known = Cursor::default();
    for _ in 0..DEFINITIONS {
        let batch = asker.open(from, &catalog, ROUND).await?;
        let Some(batch) = batch.filter(|batch| !batch.is_trimmed_after(from)) else {
            break;
        };
        if !batch.changed_definitions_after(&known) {
            return Ok(Some((batch, asker.export().await?)));
        }
        asker.roll_back().await?;
        known = batch.end;
        catalog = asker.reload().await?;
    }
    // After the last reading there is no transaction any more.
    asker.roll_back().await?;
    Ok(None)
}

/// Puts the questions, as many as there is time for, and publishes each answer as soon as it is there.
async fn put<A: Asker>(
    asker: &A,
    stage: &Stage,
    questions: Vec<Question>,
    snapshot: &str,
    end: &Position,
) {
    let begun = Instant::now();
    let asked = questions.into_iter().map(async |mut question| {
        let put = Instant::now();
        let answer = if put.duration_since(begun) < LONG_ENOUGH {
            asker.answer(&mut question, snapshot).await
        } else {
            Err(Unanswered::Later)
        };
        question.took = put.elapsed();
        stage.publish_answer(question, answer, end);
    });
    let asked = futures::stream::iter(asked).buffer_unordered(AT_ONCE);
    asked.collect::<()>().await;
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use jiff::Timestamp;

    use super::super::routes::tests::definition;
    use super::super::stage::tests::{at, batch, stage};
    use super::*;
    use crate::cursor::Name;
    use crate::event::{Change, Scope, State};
    use crate::view::answering::tests::asking;
    use crate::view::{Sight, View};

    const SLOW: Duration = Duration::from_secs(2);

    /// Answers some slowly and in vain, and remembers as whom it was asked.
    #[derive(Default)]
    struct Slow(Mutex<Vec<Option<String>>>);

    impl Asker for Slow {
        type Error = EpochEnded;

        fn catalog(&self) -> Arc<Catalog> {
            Arc::default()
        }

        async fn reload(&self) -> Result<Arc<Catalog>, EpochEnded> {
            Ok(Arc::default())
        }

        async fn open(
            &self,
            _: &Cursor,
            _: &Catalog,
            _: Bounds,
        ) -> Result<Option<Batch>, EpochEnded> {
            Ok(None)
        }

        async fn export(&self) -> Result<String, EpochEnded> {
            Ok(String::new())
        }

        async fn hold<T: Send>(
            &self,
            work: impl Future<Output = T> + Send,
        ) -> Result<T, EpochEnded> {
            Ok(work.await)
        }

        async fn answer(&self, question: &mut Question, _: &str) -> Result<Answer, Unanswered> {
            let role = question.view.context().role.clone();
            let is_slow = role.is_none();
            self.0.lock().unwrap().push(role);
            if is_slow {
                tokio::time::sleep(SLOW).await;
                return Err(Unanswered::Failed);
            }
            Ok(Answer {
                elements: Vec::new(),
                change: None,
                whole: None,
            })
        }

        async fn commit(&self) -> Result<(), EpochEnded> {
            Ok(())
        }

        async fn roll_back(&self) -> Result<(), EpochEnded> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn slow_questions_of_one_hold_up_nobody_else_for_longer_than_one_of_them_takes() {
        let stage = stage();
        let join = |number: usize, role: Option<&str>| {
            let mut definition = definition(Sight::Asking(Arc::new(asking())));
            definition.context.role = role.map(str::to_owned);
            let name = format!("{number} {role:?}");
            let view = View::new(Name::of([name.as_str()]), definition);
            stage.join_asking(view, false).unwrap()
        };
        let _slow: Vec<_> = (0..100).map(|number| join(number, None)).collect();
        let (quick, _joined) = join(0, Some("ann"));
        let asker = Slow::default();
        let round = async |xid: u64| {
            let inserted = Change {
                key: "1".into(),
                before: State::Absent,
                after: State::Row(r#"{"id":1}"#.into()),
                at: Timestamp::UNIX_EPOCH,
            };
            let batch = batch(xid, Scope::Keys, vec![inserted]);
            stage.publish(&batch, &at(xid), true);
            let here = stage.position().unwrap();
            assert!(stage.round(&here).is_some());
            let questions = stage.questions(&batch, &here);
            let begun = Instant::now();
            put(&asker, &stage, questions, "", &here).await;
            begun.elapsed()
        };
        assert!(round(10).await <= SLOW);
        // Whoever it was that had no turn, nobody who costs little is behind the others now.
        asker.0.lock().unwrap().clear();
        assert!(round(11).await <= SLOW);
        assert_eq!(asker.0.lock().unwrap()[0].as_deref(), Some("ann"));
        assert_eq!(quick.told_until().until.unwrap().xmax(), 12);
        // The others have their turn, and what was not asked is not forgotten.
        let before = asker.0.lock().unwrap().len();
        assert!(stage.next_wake().unwrap() <= Instant::now());
        assert!(round(12).await <= SLOW);
        assert!(asker.0.lock().unwrap().len() > before + 1);
    }
}
