//! From the entries of one transaction to one change a key.
//!
//! The entries of a key are steps from one image to another. Their order in the log is not always
//! the order in which they happened: a nested trigger logs before the row that fired it, and
//! `update t set id = id + 1` logs 1→2 while the old 2 is still there (measured). So images are
//! chained by content. Each image that a step leaves behind is consumed by the step that starts
//! from it; what no step consumed is the state after, what no step produced is the state before.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Change, Entry, Image, State, key_of};

/// An image lacks a column of the key: the table's definition changed, the images are worthless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("row image does not hold the primary key")]
pub struct Keyless;

/// One entry, as far as it concerns one key.
struct Touch<'a> {
    entry: &'a Entry,
    old: Option<&'a Arc<str>>,
    new: Option<&'a Arc<str>>,
}

/// The net changes of `entries`, the inserts, updates and deletes of one transaction on one table
/// in the order of their ids; `key` names the columns of the primary key. States that the log does
/// not tell are [`State::Unknown`]. A key of several steps that ended as it began is left out.
///
/// # Errors
/// [`Keyless`].
pub fn net(entries: &[&Entry], key: &[String]) -> Result<Vec<Change>, Keyless> {
    let key_of = |image: &Option<Arc<str>>| match image {
        None => Ok(None),
        Some(text) => key_of(text, key).map(Some).ok_or(Keyless),
    };
    let mut touches: Vec<(String, Touch<'_>)> = Vec::with_capacity(entries.len());
    for entry in entries {
        let (old_key, new_key) = (key_of(&entry.old)?, key_of(&entry.new)?);
        let moved = old_key.is_some() && new_key.is_some() && old_key != new_key;
        let (old, new) = (entry.old.as_ref(), entry.new.as_ref());
        let mut touch = |key: String, old, new| {
            let touch = Touch { entry, old, new };
            touches.push((key, touch));
        };
        match (old_key, new_key) {
            (Some(old_key), Some(new_key)) if moved => {
                touch(old_key, old, None);
                touch(new_key, None, new);
            }
            (Some(key), _) | (None, Some(key)) => touch(key, old, new),
            (None, None) => return Err(Keyless),
        }
    }
    let change = |text: String, touches: &[Touch<'_>]| {
        let (before, after) = ends(touches, key).ok_or(Keyless)?;
        let last = touches.last().map(|touch| touch.entry).ok_or(Keyless)?;
        let change = Change {
            key: text.into(),
            before,
            after,
            at: last.at,
        };
        Ok((last.id, change))
    };
    // Most transactions touch one row.
    if entries.len() == 1 {
        let changes = touches.into_iter();
        return changes
            .map(|(text, touch)| Ok(change(text, &[touch])?.1))
            .collect();
    }
    let mut keys: HashMap<String, Vec<Touch<'_>>> = HashMap::new();
    for (text, touch) in touches {
        keys.entry(text).or_default().push(touch);
    }
    let mut changes = Vec::with_capacity(keys.len());
    for (text, touches) in keys {
        if !came_back(&touches) {
            changes.push(change(text, &touches)?);
        }
    }
    changes.sort_by_key(|(id, _)| *id);
    Ok(changes.into_iter().map(|(_, change)| change).collect())
}

/// Whether a key of several steps ended as it began: each image that a step left behind here was
/// consumed here. Which image that is, or none, the log cannot tell where equal rows change places
/// or nested triggers log first, and need not: there is nothing to say of the key. Reading the row
/// instead would tell it as some later transaction left it, at two keys at a time.
fn came_back(touches: &[Touch<'_>]) -> bool {
    touches.len() > 1
        && !touches.iter().any(|touch| touch.entry.truncated)
        && balance(touches).values().all(|count| *count == 0)
}

/// The images as a sum: +1 for each that a step produced, -1 for each that a step consumed.
fn balance<'a>(touches: &[Touch<'a>]) -> HashMap<&'a str, i32> {
    let mut sum: HashMap<&str, i32> = HashMap::new();
    for touch in touches {
        if let Some(new) = touch.new {
            *sum.entry(new).or_default() += 1;
        }
        if let Some(old) = touch.old {
            *sum.entry(old).or_default() -= 1;
        }
    }
    sum
}

/// The states before and after all touches of one key.
fn ends(touches: &[Touch<'_>], key: &[String]) -> Option<(State, State)> {
    let unknown = || {
        let image = touches.iter().find_map(|touch| touch.new.or(touch.old))?;
        let columns = key.iter().map(|column| (column.as_str(), column.as_str()));
        let lookup = Image::parse(image).ok()?.project(columns)?;
        Some(State::Unknown(lookup.into()))
    };
    let row =
        |image: Option<&Arc<str>>| image.map_or(State::Absent, |text| State::Row(text.clone()));
    if let [touch] = touches {
        return if touch.entry.truncated {
            let side =
                |image: Option<_>| image.map_or(Some(State::Absent), |_: &Arc<str>| unknown());
            Some((side(touch.old)?, side(touch.new)?))
        } else {
            Some((row(touch.old), row(touch.new)))
        };
    }
    if touches.iter().any(|touch| touch.entry.truncated) {
        return Some((unknown()?, unknown()?));
    }
    let sum = balance(touches);
    let of_sign = |sign: i32| -> Vec<(&str, i32)> {
        let signed = sum.iter().filter(|(_, count)| count.signum() == sign);
        signed.map(|(text, count)| (*text, *count)).collect()
    };
    let as_row = |found: &[(&str, i32)]| {
        found
            .first()
            .map_or(State::Absent, |(text, _)| State::Row((*text).into()))
    };
    let (produced, consumed) = (of_sign(1), of_sign(-1));
    match (produced.as_slice(), consumed.as_slice()) {
        ([] | [(_, 1)], [] | [(_, -1)]) => Some((as_row(&consumed), as_row(&produced))),
        // A chain with a hole, as after DDL inside the transaction.
        _ => Some((unknown()?, unknown()?)),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::super::Operation;
    use super::*;

    fn entry(id: i64, old: Option<&str>, new: Option<&str>) -> Entry {
        Entry {
            id,
            rel: 1,
            operation: Operation::Update,
            channel: None,
            old: old.map(Into::into),
            new: new.map(Into::into),
            truncated: false,
            at: Timestamp::UNIX_EPOCH,
        }
    }

    fn image(key: u32, value: u32) -> String {
        format!("{{\"id\":{key},\"v\":{value}}}")
    }

    fn netted(entries: &[Entry]) -> HashMap<String, (State, State)> {
        let entries: Vec<&Entry> = entries.iter().collect();
        let changes = net(&entries, &["id".to_owned()]).unwrap();
        changes
            .into_iter()
            .map(|change| (change.key.to_string(), (change.before, change.after)))
            .collect()
    }

    fn row(key: u32, value: u32) -> State {
        State::Row(image(key, value).into())
    }

    #[test]
    fn shifting_all_keys_keeps_every_row() {
        let shift =
            |id: i64, from: u32| entry(id, Some(&image(from, from)), Some(&image(from + 1, from)));
        let net = netted(&[shift(1, 1), shift(2, 2), shift(3, 3)]);
        assert_eq!(net["1"], (row(1, 1), State::Absent));
        assert_eq!(net["2"], (row(2, 2), row(2, 1)));
        assert_eq!(net["3"], (row(3, 3), row(3, 2)));
        assert_eq!(net["4"], (State::Absent, row(4, 3)));
    }

    #[test]
    fn a_nested_trigger_that_logs_first_is_put_in_order() {
        let net = netted(&[
            entry(1, Some(&image(1, 1)), Some(&image(1, 11))),
            entry(2, Some(&image(1, 0)), Some(&image(1, 1))),
        ]);
        assert_eq!(net["1"], (row(1, 0), row(1, 11)));
    }

    #[test]
    fn a_row_that_came_and_went_is_not_told() {
        let net = netted(&[
            entry(1, None, Some(&image(1, 1))),
            entry(2, Some(&image(1, 1)), None),
        ]);
        assert_eq!(net.get("1"), None);
    }

    #[test]
    fn a_key_that_ended_as_it_began_is_not_told_whatever_the_order() {
        // True history: 0 -> 1, then a nested 1 -> 0. Logged the other way round.
        let net = netted(&[
            entry(1, Some(&image(1, 1)), Some(&image(1, 0))),
            entry(2, Some(&image(1, 0)), Some(&image(1, 1))),
        ]);
        assert_eq!(net.get("1"), None);
    }

    #[test]
    fn an_update_that_changes_nothing_is_told() {
        let net = netted(&[entry(1, Some(&image(1, 1)), Some(&image(1, 1)))]);
        assert_eq!(net["1"], (row(1, 1), row(1, 1)));
    }

    #[test]
    fn a_key_that_rows_passed_through_is_not_told() {
        // update t set id = id + 1; update t set id = id - 1, v = 7
        let net = netted(&[
            entry(1, Some(&image(1, 0)), Some(&image(2, 0))),
            entry(2, Some(&image(2, 0)), Some(&image(1, 7))),
        ]);
        assert_eq!(net.get("2"), None);
        assert_eq!(net["1"], (row(1, 0), row(1, 7)));
    }

    #[test]
    fn a_truncated_entry_is_read_again_by_its_key() {
        let mut wide = entry(1, Some("{\"id\" : 4}"), Some("{\"id\" : 5}"));
        wide.truncated = true;
        let net = netted(&[wide]);
        assert_eq!(
            net["4"],
            (State::Unknown("{\"id\":4}".into()), State::Absent)
        );
        assert_eq!(
            net["5"],
            (State::Absent, State::Unknown("{\"id\":5}".into()))
        );
    }

    #[test]
    fn an_image_without_its_key_is_an_error() {
        let entry = entry(1, None, Some("{\"renamed\":1}"));
        assert_eq!(net(&[&entry], &["id".to_owned()]), Err(Keyless));
    }

    proptest! {
        /// Random histories on four keys, logged in any order: every state that is told is right.
        #[test]
        fn whatever_is_told_is_true(
            begin in prop::collection::hash_map(0u32..4, 0u32..3, 0..4),
            steps in prop::collection::vec((0u32..4, 0u32..4, 0u32..3, 0u8..4), 1..12),
            shuffle in any::<Option<u64>>(),
        ) {
            let mut table = begin.clone();
            let mut entries = Vec::new();
            for (key, other, value, kind) in steps {
                let id = entries.len().try_into().unwrap();
                let old = table.get(&key).map(|value| image(key, *value));
                let target = if kind == 3 { other } else { key };
                match (kind, &old) {
                    (0, None) => {
                        table.insert(key, value);
                        entries.push(entry(id, None, Some(&image(key, value))));
                    }
                    (1, Some(old)) => {
                        table.remove(&key);
                        entries.push(entry(id, Some(old), None));
                    }
                    (2 | 3, Some(old)) if target == key || !table.contains_key(&target) => {
                        table.remove(&key);
                        table.insert(target, value);
                        entries.push(entry(id, Some(old), Some(&image(target, value))));
                    }
                    _ => {}
                }
            }
            if let Some(seed) = shuffle {
                fastrand::Rng::with_seed(seed).shuffle(&mut entries);
            }
            let truth = |table: &HashMap<u32, u32>, key| {
                table.get(&key).map_or(State::Absent, |value| row(key, *value))
            };
            let net = netted(&entries);
            for key in (0..4).filter(|key: &u32| !net.contains_key(&key.to_string())) {
                prop_assert_eq!(truth(&begin, key), truth(&table, key), "not told: {}", key);
            }
            for (key, (before, after)) in net {
                let key: u32 = key.parse().unwrap();
                if !matches!(before, State::Unknown(_)) {
                    prop_assert_eq!(before, truth(&begin, key));
                }
                if !matches!(after, State::Unknown(_)) {
                    prop_assert_eq!(after, truth(&table, key));
                }
            }
        }
    }
}
