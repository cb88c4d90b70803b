//! One connection's reading of the log: where a poll begins, and what follows from what it read.
//!
//! Pure: the feed polls, and does what it is told here.

use std::sync::Arc;

use super::stage::Stage;
use crate::cursor::{Cursor, Xid};
use crate::log::{Batch, Bounds, Place};

/// Log rows that a starting relay reads for those who were connected to its predecessor.
const FIRST_READ: u64 = 200_000;

/// What a connection knows from its beginning on.
#[derive(Debug)]
pub struct Reading {
    place: Place,
    /// Where to begin in an epoch that the stage does not know yet, until the first batch.
    first: Option<Cursor>,
    /// Changes that could not even be logged by key.
    pub gap: Gap,
}

/// What to read.
#[derive(Debug)]
pub struct Poll {
    /// Everything that committed after this.
    pub from: Arc<Cursor>,
    /// At most.
    pub bounds: Bounds,
    /// Nobody can be here yet: history is a courtesy to those who come back, and may be left out.
    pub beginning: bool,
}

/// What a batch is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// To be published.
    Good,
    /// It was read from another place than the stage is at: read again.
    Stale,
    /// It does not hold all that came after where it begins: skip to its end.
    Trimmed,
}

/// The database has begun another life of the transaction counter than this connection did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the database was restarted after a crash, or restored")]
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

    /// What to read next.
    #[must_use]
    pub fn poll(&self, stage: &Stage) -> Poll {
        let live = stage.lock();
        let beginning = live.at.is_none();
        let from = match &live.at {
            Some(at) => Arc::clone(&at.cursor),
            None => Arc::new(self.first.clone().unwrap_or_default()),
        };
        let bounds = Bounds {
            total: if beginning { FIRST_READ } else { u64::MAX },
            ..Bounds::default()
        };
        Poll {
            from,
            bounds,
            beginning,
        }
    }

    /// There was too much to read at the beginning: begin at the present.
    pub fn begin_at(&mut self, present: Cursor) {
        self.first = Some(present);
    }

    /// What to do with the batch of a poll. The first one of a connection begins its epoch.
    ///
    /// # Errors
    /// [`EpochEnded`].
    pub fn judge(
        &mut self,
        stage: &Stage,
        poll: &Poll,
        batch: &Batch,
    ) -> Result<Verdict, EpochEnded> {
        let epoch = batch.epoch.ok_or(EpochEnded)?;
        if let Some(start) = self.first.take() {
            stage.begin(&self.place, epoch, start, &poll.from);
        }
        let live = stage.lock();
        let at = live.at.as_ref().filter(|at| at.epoch == epoch);
        let at = at.ok_or(EpochEnded)?;
        // A batch read from another cursor than the one we are at belongs to the epoch before.
        if at.cursor != poll.from {
            return Ok(Verdict::Stale);
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
pub struct Gap {
    told: Option<i64>,
    waiting: Option<(i64, Xid)>,
}

impl Gap {
    /// The gap whose reset is to be written as of this batch.
    #[must_use]
    pub fn due(&mut self, batch: &Batch) -> Option<i64> {
        self.told.get_or_insert(batch.gap_told);
        let (value, barrier) = self.waiting?;
        (batch.end.xmin() >= barrier).then_some(value)
    }

    /// Its reset is written.
    pub fn settled(&mut self, value: i64) {
        self.told = Some(value);
        self.waiting = None;
    }

    /// Some transaction may still be open that moved the sequence.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// A gap that is not told yet.
    #[must_use]
    pub fn found(&self, batch: &Batch) -> Option<i64> {
        let told = self.told.unwrap_or(batch.gap_told);
        (batch.gap > told).then_some(batch.gap)
    }

    /// Waits until every transaction below `barrier`, which was given out after the gap was found,
    /// is over.
    pub fn wait(&mut self, value: i64, barrier: Xid) {
        self.waiting = Some((value, barrier));
    }
}
