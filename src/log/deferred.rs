//! The order of transactions where a primary key is deferrable. Pure.
//!
//! Whoever adds a key that somebody else is taking away waits for that one, and elsewhere it does so before
//! its row is logged: so the highest log id of each transaction is an order of dependency. A deferrable key is
//! looked at after the statement or at commit, and then the row is in the log already: who waited may have the
//! lower id of the two. Told in that order a row that is there would be taken away from every screen.
//!
//! Everything but adding a key needs a row that was committed before, so it is only those who add that are out
//! of place. Images tell where they belong: who took the key away took another row than the one that they added.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::event::{Change, Image, Scope, State, Transaction};

/// Where a change is.
#[derive(Debug, Clone, Copy)]
struct Place {
    transaction: usize,
    delta: usize,
    change: usize,
}

/// Puts transactions that are in the order of their highest log ids in an order of dependency. Where images leave
/// open which of two orders it was, the row is read again. `deferrable` gives the columns of the key of a table
/// whose key is deferrable.
pub(super) fn put_in_order<'a>(
    transactions: &mut Vec<Transaction>,
    deferrable: impl Fn(u32) -> Option<&'a [String]>,
) {
    let mut keys: BTreeMap<(u32, Arc<str>), Vec<Place>> = BTreeMap::new();
    for (transaction, Transaction { deltas, .. }) in transactions.iter().enumerate() {
        for (delta, told) in deltas.iter().enumerate() {
            if told.changes.is_empty() || deferrable(told.table).is_none() {
                continue;
            }
            for (change, Change { key, .. }) in told.changes.iter().enumerate() {
                let places = keys.entry((told.table, Arc::clone(key))).or_default();
                places.push(Place {
                    transaction,
                    delta,
                    change,
                });
            }
        }
    }
    // Each transaction has its own place, and behind that of another one so many more.
    let mut ranks: Vec<(usize, usize)> = (0..transactions.len()).map(|place| (place, 0)).collect();
    let mut pairs: Vec<(usize, usize)> = Vec::new();
    let mut unsure: Vec<(u32, Vec<Place>)> = Vec::new();
    for ((table, _), places) in keys {
        let touches: Vec<&Change> = places
            .iter()
            .map(|place| change(transactions, *place))
            .collect();
        if touches.len() < 2 || !touches.iter().any(|change| is_added(change)) {
            continue;
        }
        let Some(order) = chained(&touches) else {
            unsure.push((table, places));
            continue;
        };
        let place = |touch: usize| places[touch].transaction;
        pairs.extend(order.windows(2).map(|two| (place(two[0]), place(two[1]))));
    }
    // What depends on one that is moved came after it, and so after the one that it is moved behind. More rounds
    // than transactions would go in a circle, of which there is none.
    for _ in 0..ranks.len() {
        let mut moved = false;
        for (before, after) in &pairs {
            let (place, behind) = ranks[*before];
            if ranks[*after] <= (place, behind) {
                ranks[*after] = (place, behind + 1);
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    for (table, places) in unsure {
        let last = places.iter().max_by_key(|place| ranks[place.transaction]);
        let Some(Place {
            transaction,
            delta,
            change: last,
        }) = last.copied()
        else {
            continue;
        };
        let mut touches = places.iter().map(|place| change(transactions, *place));
        let object = touches.find_map(|change| object(change, deferrable(table)?));
        let delta = &mut transactions[transaction].deltas[delta];
        match object {
            Some(object) => delta.changes[last].after = State::Unknown(object),
            None => delta.scope = Scope::Unknown,
        }
    }
    let mut ranked: Vec<_> = ranks.into_iter().zip(transactions.drain(..)).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    transactions.extend(ranked.into_iter().map(|(_, transaction)| transaction));
}

fn change(transactions: &[Transaction], place: Place) -> &Change {
    &transactions[place.transaction].deltas[place.delta].changes[place.change]
}

fn is_added(change: &Change) -> bool {
    change.before == State::Absent
}

/// The order in which the changes of one key follow from each other; `None` where there is another one, or none.
fn chained(changes: &[&Change]) -> Option<Vec<usize>> {
    let (mut added, others): (Vec<usize>, Vec<usize>) =
        (0..changes.len()).partition(|place| is_added(changes[*place]));
    let mut order = Vec::with_capacity(changes.len());
    let (mut sure, mut now): (bool, Option<&State>) = (true, None);
    for other in others {
        let before = &changes[other].before;
        // A row that follows from none of these was there before all of them.
        if now.is_none_or(|now| *now == State::Absent) {
            let is_it = |add: &usize| changes[*add].after == *before;
            match added.iter().position(is_it) {
                Some(add) => {
                    order.push(added.remove(add));
                    // Of rows that are the same nobody can tell which one it was.
                    sure &= !added.iter().any(is_it);
                }
                None => sure &= now.is_none(),
            }
        }
        order.push(other);
        now = Some(&changes[other].after);
    }
    // A key is added once it is free, and to one who has it nobody else adds it.
    let is_free = now.is_none_or(|now| *now == State::Absent);
    sure &= match added.len() {
        // Or the first of the rows was there before, and one like it was added last.
        0 => !is_free,
        1 => is_free,
        _ => false,
    };
    order.append(&mut added);
    sure.then_some(order)
}

/// A JSON object of the key columns.
fn object(change: &Change, key: &[String]) -> Option<Arc<str>> {
    let of = |state: &State| match state {
        State::Unknown(object) => Some(Arc::clone(object)),
        State::Row(text) => {
            let columns = key.iter().map(|column| (column.as_str(), column.as_str()));
            Some(Image::parse(text).ok()?.project(columns)?.into())
        }
        State::Absent | State::TooLarge => None,
    };
    of(&change.after).or_else(|| of(&change.before))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::cursor::Xid;
    use crate::event::Delta;

    const TABLE: u32 = 1;

    fn row(value: &str) -> State {
        if value.is_empty() {
            return State::Absent;
        }
        State::Row(format!(r#"{{"id":1,"v":"{value}"}}"#).into())
    }

    /// Of the key 1 unless another one is told: from a value to a value, none where there is no row.
    fn transaction(xid: Xid, changes: &[(&str, &str, &str)]) -> Transaction {
        let changes = changes.iter().map(|(key, before, after)| Change {
            key: (*key).into(),
            before: row(before),
            after: row(after),
            at: Timestamp::UNIX_EPOCH,
        });
        Transaction {
            xid,
            at: Timestamp::UNIX_EPOCH,
            deltas: vec![Delta {
                table: TABLE,
                scope: Scope::Keys,
                changes: changes.collect(),
            }],
            messages: Vec::new(),
            reset_all: false,
        }
    }

    /// The ids in order, and whether any row is read again.
    fn ordered(mut transactions: Vec<Transaction>, is_deferrable: bool) -> (Vec<Xid>, bool) {
        let key = ["id".to_owned()];
        put_in_order(&mut transactions, |_| is_deferrable.then_some(&key[..]));
        let changes = transactions
            .iter()
            .flat_map(|transaction| &transaction.deltas[0].changes);
        let read = changes
            .filter(|change| change.after == State::Unknown(r#"{"id":1}"#.into()))
            .count();
        let xids = transactions.iter().map(|transaction| transaction.xid);
        (xids.collect(), read > 0)
    }

    #[test]
    fn who_adds_a_key_comes_after_whoever_took_it_away() {
        let all = || {
            vec![
                transaction(2, &[("1", "", "new")]),
                transaction(3, &[("9", "", "x")]),
                transaction(1, &[("1", "old", "")]),
                transaction(4, &[("1", "new", "newer")]),
            ]
        };
        assert_eq!(ordered(all(), true), (vec![3, 1, 2, 4], false));
        // Elsewhere who adds a key has waited before.
        assert_eq!(ordered(all(), false), (vec![2, 3, 1, 4], false));
    }

    #[test]
    fn one_who_is_moved_takes_along_who_waited_for_him() {
        let all = vec![
            transaction(3, &[("2", "", "c")]),
            transaction(2, &[("1", "", "b"), ("2", "a", "")]),
            transaction(1, &[("1", "a", "")]),
        ];
        assert_eq!(ordered(all, true), (vec![1, 2, 3], false));
    }

    #[test]
    fn several_who_add_a_key_come_after_each_other() {
        let all = vec![
            transaction(4, &[("1", "", "d")]),
            transaction(2, &[("1", "", "b")]),
            transaction(1, &[("1", "a", "")]),
            transaction(3, &[("1", "b", "")]),
        ];
        assert_eq!(ordered(all, true), (vec![1, 2, 3, 4], false));
    }

    #[test]
    fn a_row_is_read_again_where_it_may_be_there_or_not() {
        // Added and taken away, or taken away and added anew as it was.
        let all = vec![
            transaction(1, &[("1", "", "a")]),
            transaction(2, &[("1", "a", "")]),
        ];
        assert_eq!(ordered(all, true), (vec![1, 2], true));
        // The other key tells who came first.
        let all = vec![
            transaction(1, &[("1", "", "a"), ("2", "", "x")]),
            transaction(2, &[("1", "a", ""), ("2", "y", "")]),
        ];
        assert_eq!(ordered(all, true), (vec![2, 1], true));
        // Which of two equal rows was taken away, only the other key tells.
        let all = vec![
            transaction(3, &[("1", "", "b"), ("2", "", "a")]),
            transaction(1, &[("1", "c", ""), ("2", "", "a")]),
            transaction(2, &[("2", "a", "")]),
        ];
        assert_eq!(ordered(all, true), (vec![1, 3, 2], true));
        // What follows from nothing.
        let all = vec![
            transaction(1, &[("1", "", "a")]),
            transaction(2, &[("1", "", "b")]),
        ];
        assert_eq!(ordered(all, true), (vec![1, 2], true));
    }
}
