//! Commits rows on a schedule that does not wait for the answers: a database that falls behind is
//! seen as such, and does not slow down the clock that it is measured with.

use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use tokio::sync::mpsc;
use tokio_postgres::Client;

use super::histogram::Histogram;
use super::screens::Clock;
use super::stage::TABLE;

/// Commits that wait for their answers at most; then the schedule slips.
const IN_FLIGHT: usize = 256;
/// A commit that takes longer ends the run.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to write.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// Commits a second.
    pub rate: f64,
    /// How long.
    pub lasts: Duration,
    /// Views that are written to, one after the other.
    pub views: usize,
    /// Rows of each, one after the other.
    pub rows: u64,
    /// Commits that are sent at once; the rate stays the same.
    pub burst: u64,
}

/// A row that was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Of which view.
    pub view: usize,
    /// Its key.
    pub row: u64,
    /// Its number in the view.
    pub number: u64,
    /// When its statement was sent, in microseconds of the clock.
    pub sent: u64,
}

/// What was written.
#[derive(Clone, Default)]
pub struct Written {
    /// Commits of each view.
    pub committed: Vec<u64>,
    /// From sending a statement to knowing that it is committed.
    pub commit: Histogram,
    /// How late statements were sent.
    pub slip: Histogram,
    /// How long it really took, without waiting for the last answers.
    pub took: Duration,
    /// Statements that found [`IN_FLIGHT`] others unanswered.
    pub held_up: u64,
}

impl Written {
    /// All commits.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.committed.iter().sum()
    }
}

/// Writes it. Each statement is a transaction of its own, and they are committed in order. `told`
/// hears of each once it is committed, for servers that must be told.
///
/// # Errors
/// When a statement fails.
pub async fn write(
    client: &Client,
    schedule: Schedule,
    clock: Clock,
    told: Option<&mpsc::UnboundedSender<Commit>>,
) -> anyhow::Result<Written> {
    let sql = format!("update {TABLE} set seq = $2, sent = $3 where id = $1");
    let statement = client.prepare(&sql).await?;
    let mut written = Written {
        committed: vec![0; schedule.views],
        ..Written::default()
    };
    let begun = Instant::now();
    let mut due = timer(schedule, begun);
    let mut answers = FuturesOrdered::new();
    let mut next = 0;
    let mut more = true;
    while more || !answers.is_empty() {
        tokio::select! {
            planned = due.recv(), if more && answers.len() < IN_FLIGHT => {
                let Some(planned) = planned else {
                    more = false;
                    continue;
                };
                let view = next % schedule.views;
                next += 1;
                written.committed[view] += 1;
                let number = written.committed[view];
                let row = view as u64 * schedule.rows + number % schedule.rows;
                let sent = clock.now();
                written.slip.record(sent.saturating_sub(clock.of(planned)));
                written.took = begun.elapsed();
                let (statement, commit) = (&statement, Commit { view, row, number, sent });
                answers.push_back(async move {
                    let (row, number) = (signed(row), signed(number));
                    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
                        [&row, &number, &signed(sent)];
                    client.execute(statement, &parameters).await.map(|_| commit)
                });
                written.held_up += u64::from(answers.len() == IN_FLIGHT);
            }
            Some(answer) = answers.next() => {
                let commit: Commit = answer?;
                written.commit.record(clock.now().saturating_sub(commit.sent));
                if let Some(told) = told {
                    // Whoever does not listen any more is missed by the screens.
                    let _nobody = told.send(commit);
                }
            }
            () = tokio::time::sleep(PATIENCE) => {
                anyhow::bail!("the database did not answer within {} s", PATIENCE.as_secs());
            }
        }
    }
    Ok(written)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Says when the next commit is due. A thread of its own: timers of the runtime come at whole
/// milliseconds, and so would commits, several at once.
fn timer(schedule: Schedule, begun: Instant) -> mpsc::Receiver<Instant> {
    let (tell, due) = mpsc::channel(IN_FLIGHT);
    let ticks = std::iter::successors(Some(0_u32), |number| number.checked_add(1));
    let burst = u32::try_from(schedule.burst).unwrap_or(u32::MAX).max(1);
    let times = ticks.map(move |number| {
        let first = number - number % burst;
        Duration::from_secs_f64(f64::from(first) / schedule.rate)
    });
    let times = times.take_while(move |time| *time < schedule.lasts);
    // Ends with its schedule, or with who listens.
    std::thread::spawn(move || {
        for time in times {
            let planned = begun + time;
            std::thread::sleep(planned.saturating_duration_since(Instant::now()));
            if tell.blocking_send(planned).is_err() {
                return;
            }
        }
    });
    due
}
