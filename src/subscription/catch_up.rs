//! What a screen missed, and how it is told. Pure.
//!
//! One that was away, or so slow that it fell out of the buffer, wants where things stand: everything
//! missed is one event with the last state of each key. One that never left gets every transaction as
//! an event of its own, as if nothing had been between.

use std::sync::Arc;

use bytes::Bytes;

use crate::cursor::{Cursor, Name, Steps};
use crate::event::Transaction;
use crate::feed::{Joined, Missed};
use crate::log::{self, Batch};
use crate::mutants::{Mutant, on};
use crate::view::image::Images;
use crate::view::{Channel, View};

/// How somebody comes to join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coming {
    /// From away, with a token or without.
    Back,
    /// Out of the buffer.
    Behind,
    /// Out of a topic that has ended: the connection is live.
    Live,
}

/// What somebody missed.
#[derive(Debug)]
pub(super) struct CaughtUp {
    /// Where it was found.
    pub(super) source: &'static str,
    /// In the order of delivery.
    pub(super) missed: Vec<Missed>,
    /// With `missed`, the client has everything done here.
    pub(super) until: Arc<Cursor>,
}

/// Data lines, and where the feed was after what they tell.
pub(super) type Told = Vec<(Arc<Cursor>, Bytes)>;

/// The images do not tell all of it, or it is too much: the state is to be read anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Untold;

impl CaughtUp {
    /// From memory.
    pub(super) fn of_ring(joined: &Joined) -> Option<Self> {
        Some(Self {
            source: "ring",
            missed: joined.missed.clone()?,
            until: Arc::clone(&joined.cursor),
        })
    }

    /// From a batch that was read at `from`.
    pub(super) fn of_log(batch: Batch, from: &Cursor) -> Self {
        let xids = batch.transactions.iter().map(|transaction| transaction.xid);
        let mut steps = Steps::new(from, &batch.end, xids);
        let missed = batch.transactions.iter().map(|transaction| Missed {
            transaction: Arc::clone(transaction),
            after: Arc::new(steps.deliver(transaction.xid)),
        });
        Self {
            source: "log",
            missed: missed.collect(),
            until: Arc::new(batch.end),
        }
    }

    /// What it comes to for a view, of which at most `most` bytes of images are told.
    pub(super) fn of_view(
        &self,
        coming: Coming,
        view: &View,
        images: &Images,
        most: usize,
    ) -> Result<Told, Untold> {
        let missed = self.missed.iter();
        let folded = |missed: &[&Transaction]| {
            let folded = log::fold(missed.iter().copied(), view.table().oid);
            if folded.unknown {
                return Err(Untold);
            }
            let (truncated, bytes) = (folded.truncated, folded.bytes);
            let changes = folded.changes();
            let changes = changes.iter().map(|(xid, change)| (*xid, change));
            let elements = images.told(truncated, changes).map_err(|_| Untold)?;
            let body = (!elements.is_empty()).then(|| view.encode(&elements));
            Ok((body, bytes))
        };
        let mut told = Vec::new();
        let mut total = 0;
        let mut tell = |after: &Arc<Cursor>, missed: &[&Transaction]| {
            let (body, bytes) = folded(missed)?;
            total += bytes;
            told.extend(body.map(|body| (Arc::clone(after), body)));
            if total > most { Err(Untold) } else { Ok(()) }
        };
        match coming {
            Coming::Back | Coming::Behind => {
                let missed: Vec<&Transaction> = missed.map(|m| &*m.transaction).collect();
                tell(&self.until, &missed)?;
            }
            Coming::Live => {
                for missed in missed {
                    tell(&missed.after, &[&missed.transaction])?;
                }
            }
        }
        Ok(told)
    }

    /// What it comes to for a channel, of whose messages at most `most` bytes are told: each who comes back has
    /// them for itself, and many come back at once.
    pub(super) fn of_channel(
        &self,
        coming: Coming,
        channel: &Channel,
        most: usize,
    ) -> Result<Told, Untold> {
        let missed = self.missed.iter();
        let mut bytes = 0;
        for missed in missed.clone() {
            let messages = channel.messages(&missed.transaction);
            bytes += messages.map(|message| message.payload.len()).sum::<usize>();
            if missed.transaction.reset_all || bytes > most {
                return Err(Untold);
            }
        }
        Ok(match coming {
            Coming::Back | Coming::Behind => {
                let missed: Vec<&Transaction> = missed.map(|m| &*m.transaction).collect();
                let body = channel.encode(&missed);
                body.map(|body| (Arc::clone(&self.until), body))
                    .into_iter()
                    .collect()
            }
            Coming::Live => missed
                .filter_map(|missed| {
                    let body = channel.encode(&[&missed.transaction])?;
                    Some((Arc::clone(&missed.after), body))
                })
                .collect(),
        })
    }
}

/// Whether a batch read at `from` in `epoch` holds everything since.
pub(super) fn holds_all(batch: &Batch, epoch: Name, from: &Cursor) -> bool {
    let trimmed = batch.is_trimmed_after(from) && !on(Mutant::M6);
    let future = !batch.end.covers(from);
    batch.epoch == Some(epoch) && !trimmed && !future
}
