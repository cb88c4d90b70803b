//! What a screen missed, as the latest state of each changed key: a screen wants where things stand,
//! and the history of a row is nobody's business who did not see it. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use crate::cursor::Xid;
use crate::event::{Change, Scope, State, Transaction};

/// Everything a screen missed, folded: for each key the state before the first and after the last
/// change. `transactions` are in delivery order.
#[must_use]
pub fn fold<'a>(transactions: impl IntoIterator<Item = &'a Transaction>, table: u32) -> Folded {
    let mut folded = Folded::default();
    for transaction in transactions {
        folded.unknown |= transaction.reset_all;
        for delta in transaction
            .deltas
            .iter()
            .filter(|delta| delta.table == table)
        {
            match delta.scope {
                Scope::Unknown => folded.unknown = true,
                Scope::Truncated => {
                    folded.truncated = true;
                    folded.changes.clear();
                }
                Scope::Keys => {}
            }
            for change in &delta.changes {
                let (before, bytes) = match folded.changes.remove(&change.key) {
                    Some((_, _, earlier)) => (earlier.before, 0),
                    None => (change.before.clone(), change.key.len()),
                };
                folded.bytes += bytes;
                if let State::Row(text) = &change.after {
                    folded.bytes += text.len();
                }
                let order = folded.order;
                folded.order += 1;
                let change = Change {
                    before,
                    ..change.clone()
                };
                folded
                    .changes
                    .insert(Arc::clone(&change.key), (order, transaction.xid, change));
            }
        }
    }
    folded
}

/// The result of [`fold`].
#[derive(Debug, Default)]
pub struct Folded {
    /// Not everything is told: the state must be read anew.
    pub unknown: bool,
    /// The table was truncated; the changes are from then on.
    pub truncated: bool,
    /// Bytes of images seen, an upper bound of what is left.
    pub bytes: usize,
    order: usize,
    changes: HashMap<Arc<str>, (usize, Xid, Change)>,
}

impl Folded {
    /// The changes, each with its last transaction, in the order of their last touch.
    #[must_use]
    pub fn changes(self) -> Vec<(Xid, Change)> {
        let mut changes: Vec<_> = self.changes.into_values().collect();
        changes.sort_by_key(|(order, ..)| *order);
        changes
            .into_iter()
            .map(|(_, xid, change)| (xid, change))
            .collect()
    }
}
