//! Recent transactions in memory, so that a page that is loaded again or a rolling restart of
//! relays does not become a query each.

use std::collections::VecDeque;
use std::sync::Arc;

use super::stage::Missed;
use crate::cursor::{Cursor, Xid};
use crate::event::Transaction;

/// The transactions between two cursors, in delivery order.
#[derive(Debug)]
pub(super) struct Ring {
    start: Arc<Cursor>,
    /// With their weights.
    kept: VecDeque<(Missed, usize)>,
    weight: usize,
    /// Bytes that all of this may take.
    capacity: usize,
}

impl Ring {
    pub(super) fn new(start: Arc<Cursor>, capacity: usize) -> Self {
        Self {
            start,
            kept: VecDeque::new(),
            weight: 0,
            capacity,
        }
    }

    /// `after` is the feed's cursor after it.
    pub(super) fn push(&mut self, transaction: Arc<Transaction>, after: Arc<Cursor>) {
        let cursor = size_of::<Cursor>() + size_of_val(after.xip());
        // A full deque doubles.
        let weight = transaction.weight() + cursor + 2 * size_of::<(Missed, usize)>();
        self.weight += weight;
        let missed = Missed { transaction, after };
        self.kept.push_back((missed, weight));
        while self.weight > self.capacity {
            let Some((oldest, weight)) = self.kept.pop_front() else {
                break;
            };
            self.weight -= weight;
            self.start = oldest.after;
        }
    }

    /// A transaction, while it is remembered.
    pub(super) fn find(&self, xid: Xid) -> Option<&Arc<Transaction>> {
        let kept = self.kept.iter().map(|(missed, _)| &missed.transaction);
        kept.rev().find(|transaction| transaction.xid == xid)
    }

    /// What somebody at `cursor` has not seen; `None` when the ring does not reach back to it.
    pub(super) fn since(&self, cursor: &Cursor) -> Option<Vec<Missed>> {
        cursor.covers(&self.start).then(|| {
            // Most who return have seen nearly everything, and thousands return at once.
            let seen = self
                .kept
                .partition_point(|(missed, _)| cursor.covers(&missed.after));
            let kept = self.kept.iter().skip(seen).map(|(missed, _)| missed);
            let missed = kept.filter(|missed| !cursor.is_done(missed.transaction.xid));
            missed.cloned().collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::event::Message;

    const CAPACITY: usize = 1 << 20;

    fn transaction(xid: u64, bytes: usize) -> Arc<Transaction> {
        let payload = "x".repeat(bytes).into();
        let at = Timestamp::UNIX_EPOCH;
        Arc::new(Transaction {
            xid,
            at,
            deltas: Vec::new(),
            messages: vec![Message {
                channel: "c".into(),
                payload,
                at,
            }],
            reset_all: false,
        })
    }

    fn at(xmax: u64) -> Arc<Cursor> {
        Arc::new(Cursor::new(xmax, []))
    }

    #[test]
    fn a_reader_that_returns_gets_what_he_missed_or_is_told_no() {
        let mut ring = Ring::new(at(10), CAPACITY);
        for xid in 10..13 {
            ring.push(transaction(xid, 1), at(xid + 1));
        }
        let missed = |ring: &Ring, cursor: &Cursor| -> Option<Vec<u64>> {
            ring.since(cursor)
                .map(|missed| missed.iter().map(|m| m.transaction.xid).collect())
        };
        assert_eq!(missed(&ring, &Cursor::new(10, [])), Some(vec![10, 11, 12]));
        assert_eq!(missed(&ring, &Cursor::new(12, [10])), Some(vec![10, 12]));
        assert_eq!(missed(&ring, &Cursor::new(9, [])), None);
        ring.push(transaction(13, CAPACITY / 2), at(14));
        ring.push(transaction(14, CAPACITY / 2), at(15));
        assert_eq!(missed(&ring, &Cursor::new(13, [])), None);
        assert_eq!(missed(&ring, &Cursor::new(14, [])), Some(vec![14]));
    }
}
