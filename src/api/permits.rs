//! Who listens to channels, and whether they still may.
//!
//! What decides that is a function which may read anything, so nothing tells when its answer changes.
//! [`Permits`] promises that it is asked again every few seconds while somebody listens, and as soon as
//! the catalogue has another edition: once for all screens of a channel with the same context. It does not
//! know how it is asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::problem::Problem;
use crate::postgres::transaction::Context;
use crate::schema::catalog::Catalog;
use crate::subscription::{Permit, Unavailable};

/// How often it is asked again.
const AGAIN: Duration = Duration::from_secs(2);
/// The longest pause.
const REST: Duration = Duration::from_secs(5);

/// What open streams of channels were permitted.
#[derive(Debug, Default)]
pub struct Permits {
    /// A standard mutex: held for a look-up, or for a look at each.
    given: Mutex<HashMap<Arc<Question>, Given>>,
}

/// Who listens to what.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub(super) channel: String,
    pub(super) context: Context,
}

#[derive(Debug, Default)]
struct Given {
    taken_back: watch::Sender<Option<Unavailable>>,
    /// It could not be answered when it was last asked.
    failed: bool,
}

impl Permits {
    /// The permit of a stream that may listen to `channel` as `context`, as has just been asked.
    pub fn give(&self, channel: &str, context: Context) -> Permit {
        let question = Question {
            channel: channel.to_owned(),
            context,
        };
        let mut given = self.lock();
        let given = given.entry(Arc::new(question)).or_default();
        given.taken_back.subscribe()
    }

    /// Asks again and again.
    pub(super) async fn keep_asking<F: Future<Output = Result<(), Problem>>>(
        &self,
        mut catalog: watch::Receiver<Arc<Catalog>>,
        ask: impl Fn(Arc<Question>) -> F,
    ) {
        loop {
            let begun = Instant::now();
            let edition = catalog.borrow_and_update().edition();
            // One after the other: streams that open ask by the same few connections.
            for question in self.open() {
                let said = ask(Arc::clone(&question)).await;
                self.hear(&question, said);
            }
            // With very many of them, no more than half of what one connection can do; but what took
            // long because the database was away is not waited for once more.
            let spent = begun.elapsed().min(REST);
            sleep(spent).await;
            let changed = catalog.wait_for(|catalog| catalog.edition() != edition);
            let _asked_again_either_way = timeout(AGAIN.saturating_sub(spent), changed).await;
        }
    }

    /// What is to be asked. What nobody listens to any more is forgotten.
    fn open(&self) -> Vec<Arc<Question>> {
        let mut given = self.lock();
        given.retain(|_, given| given.taken_back.receiver_count() > 0);
        given.keys().cloned().collect()
    }

    fn hear(&self, question: &Question, said: Result<(), Problem>) {
        let mut all = self.lock();
        let Some(given) = all.get_mut(question) else {
            return;
        };
        let Err(problem) = said else {
            given.failed = false;
            return;
        };
        let why = problem.unavailable();
        // Where the database is away there are no messages either.
        if why.passing {
            return;
        }
        // A lock or a slow statement may be over the next time; but who cannot be told that he may, may not.
        if problem.status.is_server_error() && !std::mem::replace(&mut given.failed, true) {
            return;
        }
        // Whoever may again gets a permit of his own.
        if let Some(given) = all.remove(question) {
            given.taken_back.send_replace(Some(why));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<Question>, Given>> {
        self.given.lock().expect("no panic while held")
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use hyper::StatusCode;

    use super::*;

    fn failed(status: StatusCode) -> Result<(), Problem> {
        Err(Problem::new(status, "00000", "no"))
    }

    fn is_taken_back(permit: &Permit) -> bool {
        permit.borrow().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn each_question_is_asked_once_for_all_who_share_it_while_somebody_does() {
        let permits = Permits::default();
        let ann = || Context {
            role: Some("ann".to_owned()),
            ..Context::default()
        };
        let one = permits.give("lobby", Context::default());
        let same = permits.give("lobby", Context::default());
        let others = [permits.give("hall", ann()), permits.give("lobby", ann())];
        let editions = watch::Sender::new(Arc::default());
        let asked = RefCell::new(Vec::new());
        let ask = |question: Arc<Question>| {
            asked.borrow_mut().push(question.channel.clone());
            std::future::ready(if question.context == ann() {
                failed(StatusCode::FORBIDDEN)
            } else {
                Ok(())
            })
        };
        let run = permits.keep_asking(editions.subscribe(), ask);
        let see = async {
            sleep(AGAIN / 2).await;
            asked.borrow_mut().sort();
            assert_eq!(asked.take(), ["hall", "lobby", "lobby"]);
            assert!(others.iter().all(is_taken_back));
            assert!(!is_taken_back(&one) && !is_taken_back(&same));
            sleep(AGAIN).await;
            assert_eq!(asked.take(), ["lobby"]);
            drop((one, same));
            sleep(AGAIN).await;
            assert!(asked.take().is_empty());
            assert!(permits.lock().is_empty());
        };
        tokio::select! {
            () = run => unreachable!("it never ends"),
            () = see => {}
        }
    }

    #[test]
    fn who_cannot_be_told_that_he_may_is_asked_about_once_more() {
        let permits = Permits::default();
        let permit = permits.give("lobby", Context::default());
        let question = permits.open().remove(0);
        let hear = |said| {
            permits.hear(&question, said);
            is_taken_back(&permit)
        };
        let away = || failed(StatusCode::SERVICE_UNAVAILABLE);
        let locked = || failed(StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!hear(away()) && !hear(away()));
        assert!(!hear(locked()) && !hear(Ok(())) && !hear(locked()));
        assert!(hear(locked()));
        // Taken back for good: whoever comes later has one of his own.
        let later = permits.give("lobby", Context::default());
        assert!(is_taken_back(&permit) && !is_taken_back(&later));
    }
}
