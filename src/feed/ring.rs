//! Recent transactions in memory, so that a page that is loaded again or a rolling restart of
//! relays does not become a query each.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::cursor::Cursor;
use crate::event::Transaction;

/// Bytes of transactions kept.
const CAPACITY: usize = 64 << 20;

/// The transactions between two cursors, in delivery order.
#[derive(Debug)]
pub(super) struct Ring {
    start: Arc<Cursor>,
    kept: VecDeque<Kept>,
    weight: usize,
}

#[derive(Debug)]
struct Kept {
    transaction: Arc<Transaction>,
    weight: usize,
    /// The feed's cursor after it.
    after: Arc<Cursor>,
}

impl Ring {
    pub(super) fn new(start: Arc<Cursor>) -> Self {
        Self {
            start,
            kept: VecDeque::new(),
            weight: 0,
        }
    }

    pub(super) fn push(&mut self, transaction: Arc<Transaction>, after: Arc<Cursor>) {
        let weight = transaction.weight();
        self.weight += weight;
        self.kept.push_back(Kept {
            transaction,
            weight,
            after,
        });
        while self.weight > CAPACITY {
            let Some(oldest) = self.kept.pop_front() else {
                break;
            };
            self.weight -= oldest.weight;
            self.start = oldest.after;
        }
    }

    /// What somebody at `cursor` has not seen; `None` when the ring does not reach back to it.
    pub(super) fn since(&self, cursor: &Cursor) -> Option<Vec<Arc<Transaction>>> {
        cursor.covers(&self.start).then(|| {
            let missed = self
                .kept
                .iter()
                .filter(|kept| !cursor.is_done(kept.transaction.xid));
            missed.map(|kept| Arc::clone(&kept.transaction)).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::event::Message;

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
        let mut ring = Ring::new(at(10));
        for xid in 10..13 {
            ring.push(transaction(xid, 1), at(xid + 1));
        }
        let missed = |ring: &Ring, cursor: &Cursor| -> Option<Vec<u64>> {
            ring.since(cursor)
                .map(|missed| missed.iter().map(|t| t.xid).collect())
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
