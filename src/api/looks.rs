//! What somebody may see of a table, looked up once for all who ask the same at the same time.
//!
//! After a restart thousands of screens return with the same few requests. [`Looks`] promises that
//! equal questions share one answer, that no answer is older than [`FRESH`] nor than the edition of the
//! catalogue, which is another when a definition, a policy or a grant has changed, and that an error is
//! not asked for anew by each of thousands either. It does not know what is looked for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::cursor::Name;

/// How long an answer serves, unless the catalogue has another edition before, as it has when drift of
/// grants is found; a stream that was opened by an answer of before is told then with all the others. As
/// long as most of a herd takes to come back: each look is four statements.
const FRESH: Duration = Duration::from_secs(10);
/// How long an error serves.
const FAILED: Duration = Duration::from_millis(500);
/// Answers that are kept before the old ones are looked for.
const MANY: usize = 1000;

/// The old ones are looked for no sooner than this after the last time.
const APART: Duration = Duration::from_secs(1);

/// Answers of a moment ago.
#[derive(Debug)]
pub struct Looks<T, E> {
    /// A standard mutex: held for one look-up, but where the old ones are looked for. The inner one is held while
    /// somebody asks.
    slots: Mutex<Slots<T, E>>,
}

#[derive(Debug)]
struct Slots<T, E> {
    by_name: HashMap<Name, Slot<T, E>>,
    /// When the old ones were looked for.
    tidied: Option<Instant>,
}

type Slot<T, E> = Arc<tokio::sync::Mutex<Option<Answer<T, E>>>>;

#[derive(Debug)]
struct Answer<T, E> {
    at: Instant,
    edition: u64,
    said: Result<Arc<T>, E>,
}

impl<T, E> Default for Looks<T, E> {
    fn default() -> Self {
        let slots = Slots {
            by_name: HashMap::new(),
            tidied: None,
        };
        Self {
            slots: Mutex::new(slots),
        }
    }
}

impl<T, E: Clone> Looks<T, E> {
    /// The answer to what `name` stands for under an edition of the catalogue: that of a moment ago, or
    /// what `ask` says.
    ///
    /// # Errors
    /// That of `ask`, or of a moment ago.
    pub async fn look(
        &self,
        name: Name,
        edition: u64,
        ask: impl Future<Output = Result<T, E>>,
    ) -> Result<Arc<T>, E> {
        let slot = self.slot(name);
        let mut answer = slot.lock().await;
        if let Some(known) = &*answer
            && known.edition == edition
            && known.at.elapsed() < if known.said.is_ok() { FRESH } else { FAILED }
        {
            return known.said.clone();
        }
        // From when it is asked: what changes meanwhile may not be in the answer.
        let at = Instant::now();
        let said = ask.await.map(Arc::new);
        *answer = Some(Answer {
            at: if said.is_ok() { at } else { Instant::now() },
            edition,
            said: said.clone(),
        });
        said
    }

    fn slot(&self, name: Name) -> Slot<T, E> {
        let mut slots = self.slots.lock().expect("no panic while held");
        let Slots { by_name, tidied } = &mut *slots;
        // Not at each call where so many are young: thousands who come back at once would look through each other.
        if by_name.len() > MANY && tidied.is_none_or(|tidied| tidied.elapsed() >= APART) {
            *tidied = Some(Instant::now());
            by_name.retain(|_, slot| {
                // Held ones are being asked, or about to be.
                Arc::strong_count(slot) > 1
                    || slot.try_lock().is_ok_and(|answer| {
                        let answer = answer.as_ref();
                        answer.is_some_and(|answer| answer.at.elapsed() < FRESH)
                    })
            });
        }
        Arc::clone(by_name.entry(name).or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn name(text: &str) -> Name {
        Name::of([text])
    }

    #[tokio::test(start_paused = true)]
    async fn equal_questions_are_asked_once_until_they_are_old_or_the_catalogue_changes() {
        let looks: Looks<u32, ()> = Looks::default();
        let asked = AtomicU32::new(0);
        let ask = async |name: Name, edition: u64| {
            let asking = async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(asked.fetch_add(1, Ordering::Relaxed))
            };
            looks.look(name, edition, asking).await.map(|said| *said)
        };
        let both = futures::join!(ask(name("a"), 1), ask(name("a"), 1));
        assert_eq!(both, (Ok(0), Ok(0)));
        assert_eq!(ask(name("b"), 1).await, Ok(1));
        assert_eq!(ask(name("a"), 1).await, Ok(0));
        assert_eq!(ask(name("a"), 2).await, Ok(2));
        assert_eq!(ask(name("a"), 3).await, Ok(3));
        tokio::time::sleep(FRESH).await;
        assert_eq!(ask(name("a"), 3).await, Ok(4));
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_is_shared_for_a_moment() {
        let looks: Looks<u32, &str> = Looks::default();
        let look = |said| looks.look(name("a"), 1, async move { said });
        assert_eq!(look(Err("away")).await, Err("away"));
        assert_eq!(look(Ok(1)).await, Err("away"));
        tokio::time::sleep(FAILED).await;
        assert_eq!(look(Ok(2)).await, Ok(Arc::new(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_while_asking_leaves_nobody_waiting_and_old_answers_go() {
        let looks: Looks<u32, ()> = Looks::default();
        let never = looks.look(name("a"), 1, std::future::pending());
        let left = tokio::time::timeout(Duration::from_secs(1), never).await;
        assert!(left.is_err());
        let said = looks.look(name("a"), 1, async { Ok(7) }).await;
        assert_eq!(said, Ok(Arc::new(7)));
        for n in 0..=MANY {
            let said = looks.look(name(&n.to_string()), 1, async { Ok(7) }).await;
            assert!(said.is_ok());
        }
        tokio::time::sleep(FRESH).await;
        drop(looks.slot(name("b")));
        assert_eq!(looks.slots.lock().unwrap().by_name.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn many_different_questions_are_not_looked_through_at_each() {
        let looks: Looks<u32, ()> = Looks::default();
        let begun = std::time::Instant::now();
        for n in 0..20 * MANY {
            let said = looks.look(name(&n.to_string()), 1, async { Ok(7) }).await;
            assert!(said.is_ok());
        }
        // Where each looks through all that came before, it takes a minute.
        assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
        tokio::time::sleep(FRESH).await;
        drop(looks.slot(name("later")));
        assert_eq!(looks.slots.lock().unwrap().by_name.len(), 1);
    }
}
