//! One connection's reading of the log: where a poll begins, and what follows from what it read.
//!
//! [`follow`] is the whole life of a connection, of which it knows what it can be asked ([`Source`])
//! and nothing more.

use std::convert::Infallible;
use std::sync::Arc;

use tracing::{info, warn};

use super::stage::Stage;
use crate::bell::Read;
use crate::cursor::{Cursor, Name, Xid};
use crate::health::Health;
use crate::log::{Batch, Bounds, Place};
use crate::mutants::{Mutant, on};
use crate::schema::catalog::Catalog;

/// Log rows that a starting relay reads for those who were connected to its predecessor.
const FIRST_READ: u64 = 200_000;

/// Definitions that change while the catalogue is read make it be read again, so many times.
pub(super) const DEFINITIONS: usize = 8;

/// What a connection can be asked.
pub trait Source {
    /// Why it cannot answer: it is over then.
    type Error: From<EpochEnded>;

    /// What the tables look like, as far as is known.
    fn catalog(&self) -> Arc<Catalog>;

    /// What the tables look like now.
    fn reload(&self) -> impl Future<Output = Result<Arc<Catalog>, Self::Error>> + Send;

    /// Everything that committed after `from`; `None` when it is more than wanted.
    fn read(
        &self,
        from: &Cursor,
        catalog: &Catalog,
        bounds: Bounds,
    ) -> impl Future<Output = Result<Option<Batch>, Self::Error>> + Send;

    /// A snapshot of now.
    fn present(&self) -> impl Future<Output = Result<Cursor, Self::Error>> + Send;

    /// A transaction id that every transaction which is open now, and has one, lies below.
    fn barrier(&self) -> impl Future<Output = Result<Xid, Self::Error>> + Send;

    /// Ends the epoch that is known, unless another relay has: the server lies before what was read of
    /// it. Where epochs end by themselves there is nothing to do.
    fn end_epoch(&self, _known: Name) -> impl Future<Output = Result<(), Self::Error>> + Send {
        async { Ok(()) }
    }

    /// Writes the reset that the gap up to `value` calls for, unless another relay has.
    fn settle_gap(&self, value: i64) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Says when to read.
pub trait Pace {
    /// Takes note of a read whose result is published, and returns when the next one is due.
    fn next(&mut self, read: Read) -> impl Future<Output = ()> + Send;
}

/// Reads and publishes, until the connection is over, whenever `pace` says so. `reached` is called
/// after each batch.
///
/// # Errors
/// Whatever ended the connection.
pub async fn follow<S: Source>(
    source: &S,
    mut reading: Reading,
    stage: &Stage,
    health: &Health,
    pace: &mut impl Pace,
    mut reached: impl FnMut(),
) -> Result<Infallible, S::Error> {
    let mut begun = false;
    loop {
        let poll = reading.poll(stage);
        let Some(batch) = read(source, &poll).await? else {
            reading.begin_at(source.present().await?);
            continue;
        };
        let verdict = reading.judge(stage, &poll, &batch)?;
        if !std::mem::replace(&mut begun, true)
            && let Some(epoch) = batch.epoch
        {
            info!(%epoch, "reading the log");
        }
        match verdict {
            Verdict::Good => {}
            Verdict::Stale => continue,
            Verdict::Past(epoch) => {
                warn!(
                    "the database has gone back to an earlier state under the same epoch: files were restored"
                );
                source.end_epoch(epoch).await?;
                return Err(EpochEnded.into());
            }
            Verdict::Trimmed => {
                warn!("the log was trimmed before it was read; every screen reads its state anew");
                // Changed definitions may have been in it.
                source.reload().await?;
                stage.skip(&batch);
                pace.next(told(&batch, true)).await;
                continue;
            }
        }
        let settled = settle(source, &mut reading.gap, &batch).await?;
        stage.publish(&batch, &poll.from, settled);
        reached();
        if settled {
            health.polled();
        } else {
            health.lost();
        }
        pace.next(told(&batch, settled)).await;
    }
}

fn told(batch: &Batch, complete: bool) -> Read {
    Read {
        transactions: batch.transactions.len(),
        xmin: batch.end.xmin(),
        complete,
    }
}

/// Reads what a poll asks for. Entries of tables that the catalogue does not have, and resets, make
/// it read the catalogue first, unless its edition began after them.
async fn read<S: Source>(source: &S, poll: &Poll) -> Result<Option<Batch>, S::Error> {
    let mut catalog = source.catalog();
    let mut known = catalog.since().clone();
    for _ in 1..DEFINITIONS {
        let batch = source.read(&poll.from, &catalog, poll.bounds).await?;
        match batch {
            Some(batch) if batch.changed_definitions_after(&known) => {
                known = batch.end;
                catalog = source.reload().await?;
            }
            batch => return Ok(batch),
        }
    }
    source.read(&poll.from, &catalog, poll.bounds).await
}

/// Sees to changes that could not even be logged by key. Whether nothing is missing as of this batch.
async fn settle<S: Source>(source: &S, gap: &mut Gap, batch: &Batch) -> Result<bool, S::Error> {
    if let Some(value) = gap.due(batch) {
        source.settle_gap(value).await?;
        warn!("changes could not be captured; every screen reads its state anew");
        gap.settled(value);
        // Screens are told by the batch that has it.
        return Ok(false);
    }
    if gap.is_waiting() {
        return Ok(false);
    }
    if let Some(value) = gap.found(batch) {
        gap.wait(value, source.barrier().await?);
        return Ok(false);
    }
    Ok(true)
}

/// What a connection knows from its beginning on.
#[derive(Debug)]
pub struct Reading {
    place: Place,
    /// Where to begin in an epoch that the stage does not know yet, until the first batch.
    first: Option<Cursor>,
    gap: Gap,
}

/// What to read.
#[derive(Debug)]
struct Poll {
    /// Everything that committed after this.
    from: Arc<Cursor>,
    /// At most.
    bounds: Bounds,
}

/// What a batch is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// To be published.
    Good,
    /// It was read from another place than the stage is at: read again.
    Stale,
    /// The server lies before where it begins, in the same epoch. That place is no token that
    /// anybody could have made up: we have been there.
    Past(Name),
    /// It does not hold all that came after where it begins: skip to its end.
    Trimmed,
}

/// The database has begun another life of the transaction counter than this connection did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the database was restarted after a crash, or restored, or its log was emptied by hand")]
pub struct EpochEnded;

impl Reading {
    /// A connection to `place`, where a new epoch is to be read from `start`.
    #[must_use]
    pub fn new(place: Place, start: Cursor) -> Self {
        Self {
            place,
            first: Some(start),
            gap: Gap::default(),
        }
    }

    /// What to read next. Before anybody can be here, history is a courtesy to those who come back,
    /// and is left out where it is too much.
    fn poll(&self, stage: &Stage) -> Poll {
        let live = stage.lock();
        let from = match &live.at {
            Some(at) => Arc::clone(&at.cursor),
            None => Arc::new(self.first.clone().unwrap_or_default()),
        };
        let bounds = Bounds {
            total: if live.at.is_none() {
                FIRST_READ
            } else {
                u64::MAX
            },
            ..Bounds::default()
        };
        Poll { from, bounds }
    }

    /// There was too much to read at the beginning: begin at the present.
    fn begin_at(&mut self, present: Cursor) {
        self.first = Some(present);
    }

    /// What to do with the batch of a poll. The first one of a connection begins its epoch.
    fn judge(&mut self, stage: &Stage, poll: &Poll, batch: &Batch) -> Result<Verdict, EpochEnded> {
        let epoch = batch.epoch.ok_or(EpochEnded)?;
        if let Some(start) = self.first.take()
            && (!on(Mutant::M4) || stage.position().is_none())
        {
            stage.begin(&self.place, epoch, start, &poll.from);
        }
        let live = stage.lock();
        let at = live.at.as_ref();
        let at = at.filter(|at| at.epoch == epoch || on(Mutant::M4));
        let at = at.ok_or(EpochEnded)?;
        // A batch read from another cursor than the one we are at belongs to the epoch before.
        if at.cursor != poll.from {
            return Ok(Verdict::Stale);
        }
        if !batch.end.covers(&poll.from) {
            return Ok(Verdict::Past(epoch));
        }
        Ok(if batch.is_trimmed_after(&poll.from) {
            Verdict::Trimmed
        } else {
            Verdict::Good
        })
    }
}

/// Changes that could not even be logged by key. The sequence moves before its writer commits, so
/// the reset is written only when no transaction is open any more that may have moved it.
#[derive(Debug, Default)]
struct Gap {
    told: Option<i64>,
    waiting: Option<(i64, Xid)>,
}

impl Gap {
    /// The gap whose reset is to be written as of this batch.
    fn due(&mut self, batch: &Batch) -> Option<i64> {
        self.told.get_or_insert(batch.gap_told);
        let (value, barrier) = self.waiting?;
        (batch.end.xmin() >= barrier).then_some(value)
    }

    /// Its reset is written.
    fn settled(&mut self, value: i64) {
        self.told = Some(value);
        self.waiting = None;
    }

    /// Some transaction may still be open that moved the sequence.
    fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// A gap that is not told yet.
    fn found(&self, batch: &Batch) -> Option<i64> {
        let told = self.told.unwrap_or(batch.gap_told);
        (batch.gap > told).then_some(batch.gap)
    }

    /// Waits until every transaction below `barrier`, which was given out after the gap was found,
    /// is over.
    fn wait(&mut self, value: i64, barrier: Xid) {
        self.waiting = Some((value, barrier));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::stage::tests::{at, batch, stage};
    use super::*;
    use crate::event::Scope;

    /// A log of these batches, and then the end of the connection.
    struct Script<'a> {
        stage: &'a Stage,
        batches: Mutex<Vec<Batch>>,
        /// Where the stage was when the catalogue was read.
        reloads: Mutex<Vec<u64>>,
    }

    #[derive(Debug, PartialEq, Eq)]
    enum Over {
        Epoch,
        End,
    }

    impl From<EpochEnded> for Over {
        fn from(_: EpochEnded) -> Self {
            Self::Epoch
        }
    }

    impl Source for Script<'_> {
        type Error = Over;

        fn catalog(&self) -> Arc<Catalog> {
            Arc::new(Catalog::new(&["public"], Vec::new(), &[]))
        }

        async fn reload(&self) -> Result<Arc<Catalog>, Over> {
            let position = self.stage.position().map(|here| here.cursor.xmax());
            self.reloads.lock().unwrap().extend(position);
            Ok(self.catalog())
        }

        async fn read(&self, _: &Cursor, _: &Catalog, _: Bounds) -> Result<Option<Batch>, Over> {
            let next = self.batches.lock().unwrap().pop();
            next.map(Some).ok_or(Over::End)
        }

        async fn present(&self) -> Result<Cursor, Over> {
            Err(Over::End)
        }

        async fn barrier(&self) -> Result<Xid, Over> {
            Err(Over::End)
        }

        async fn end_epoch(&self, _: Name) -> Result<(), Over> {
            Err(Over::End)
        }

        async fn settle_gap(&self, _: i64) -> Result<(), Over> {
            Err(Over::End)
        }
    }

    struct AtOnce;

    impl Pace for AtOnce {
        async fn next(&mut self, _: Read) {}
    }

    #[tokio::test]
    async fn definitions_are_looked_at_again_before_screens_are_told_that_the_log_was_trimmed() {
        let stage = stage();
        let whole = batch(10, Scope::Keys, Vec::new());
        let trimmed = Batch {
            horizon: Some(at(20)),
            ..batch(30, Scope::Keys, Vec::new())
        };
        let script = Script {
            stage: &stage,
            batches: Mutex::new(vec![trimmed, whole]),
            reloads: Mutex::default(),
        };
        let reading = Reading::new(Place::new("here".into()), at(10));
        let health = Health::new();
        let over = follow(&script, reading, &stage, &health, &mut AtOnce, || {}).await;
        assert_eq!(over, Err(Over::End));
        assert_eq!(stage.position().map(|here| here.cursor.xmax()), Some(31));
        assert_eq!(*script.reloads.lock().unwrap(), [11]);
    }
}
