//! What one screen has been shown of a row of numbers that goes up by one with each commit.
//!
//! Pure. A number that a screen which fell behind was spared, because the row has changed again, is
//! *folded*; one that it never learned of is *lost*.

use std::collections::BTreeSet;
use std::ops::Range;

/// The numbers of one screen. Small while nothing is wrong: there are many screens.
#[derive(Debug)]
pub struct Tally {
    /// The number that is due; they begin with 1.
    due: u64,
    /// Rows are those of a state, not changes.
    in_snapshot: bool,
    trouble: Option<Box<Trouble>>,
}

#[derive(Debug, Default)]
struct Trouble {
    /// Numbers that were overtaken, in order.
    missing: Vec<Range<u64>>,
    /// Of these, the ones that a state has shown.
    shown: BTreeSet<u64>,
    late: u64,
    again: u64,
    resets: u64,
}

/// What came of all the numbers of one screen, or of many.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Never told of.
    pub lost: u64,
    /// Not told of, because a later version of the row, or a state, was.
    pub folded: u64,
    /// Told more than once.
    pub duplicated: u64,
    /// Told after a later one.
    pub out_of_order: u64,
    /// States that came anew.
    pub resets: u64,
}

impl Outcome {
    /// Adds another screen's.
    pub fn add(&mut self, other: &Self) {
        self.lost += other.lost;
        self.folded += other.folded;
        self.duplicated += other.duplicated;
        self.out_of_order += other.out_of_order;
        self.resets += other.resets;
    }
}

impl Tally {
    /// `in_snapshot`: a state comes first.
    #[must_use]
    pub fn new(in_snapshot: bool) -> Self {
        Self {
            due: 1,
            in_snapshot,
            trouble: None,
        }
    }

    /// A state begins anew.
    pub fn reset(&mut self) {
        self.trouble().resets += 1;
        self.in_snapshot = true;
    }

    /// The state is complete.
    pub fn snapshot_end(&mut self) {
        self.in_snapshot = false;
    }

    /// A row arrived. Whether it is a change that was not told before.
    pub fn row(&mut self, number: u64) -> bool {
        if self.in_snapshot {
            if number >= self.due {
                let missing = self.due..number + 1;
                self.due = number + 1;
                self.trouble().missing.push(missing);
            }
            if self.is_missing(number) {
                self.trouble().shown.insert(number);
            }
            return false;
        }
        if number == self.due {
            self.due += 1;
            return true;
        }
        if number > self.due {
            let missing = self.due..number;
            self.due = number + 1;
            self.trouble().missing.push(missing);
            return true;
        }
        let trouble = self.trouble();
        if !trouble.shown.contains(&number) && trouble.take(number) {
            trouble.late += 1;
            return true;
        }
        trouble.again += 1;
        false
    }

    /// The end: `committed` numbers there were, and number `n` changed the row that `n + rows` did.
    #[must_use]
    pub fn outcome(&self, committed: u64, rows: u64) -> Outcome {
        let tail = (committed + 1).saturating_sub(self.due);
        let Some(trouble) = &self.trouble else {
            return Outcome {
                lost: tail,
                ..Outcome::default()
            };
        };
        let mut outcome = Outcome {
            lost: tail,
            folded: 0,
            duplicated: trouble.again,
            out_of_order: trouble.late,
            resets: trouble.resets,
        };
        for number in trouble.missing.iter().cloned().flatten() {
            let later = (number..self.due).step_by(usize::try_from(rows.max(1)).unwrap_or(1));
            let mut later = later.take(LOOK_AHEAD);
            if later.any(|number| trouble.shown.contains(&number) || !self.is_missing(number)) {
                outcome.folded += 1;
            } else {
                outcome.lost += 1;
            }
        }
        outcome
    }

    fn is_missing(&self, number: u64) -> bool {
        self.trouble
            .as_ref()
            .is_some_and(|trouble| trouble.place(number).is_some())
    }

    fn trouble(&mut self) -> &mut Trouble {
        self.trouble.get_or_insert_default()
    }
}

/// Versions of a row that are looked at for one that replaced a missing one: the search is bounded.
const LOOK_AHEAD: usize = 100_000;

impl Trouble {
    fn place(&self, number: u64) -> Option<usize> {
        let after = self.missing.partition_point(|range| range.start <= number);
        let at = after.checked_sub(1)?;
        self.missing[at].contains(&number).then_some(at)
    }

    /// Takes a number out of the missing ones.
    fn take(&mut self, number: u64) -> bool {
        let Some(at) = self.place(number) else {
            return false;
        };
        let Range { start, end } = self.missing[at];
        let rest = [start..number, number + 1..end];
        let rest = rest.into_iter().filter(|range| !range.is_empty());
        self.missing.splice(at..=at, rest);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(numbers: &[u64]) -> (Tally, usize) {
        let mut tally = Tally::new(false);
        let fresh = numbers.iter().filter(|number| tally.row(**number)).count();
        (tally, fresh)
    }

    #[test]
    fn every_number_once_and_in_order_is_no_trouble() {
        let (tally, fresh) = told(&[1, 2, 3, 4]);
        assert_eq!((tally.outcome(4, 1), fresh), (Outcome::default(), 4));
        assert!(tally.trouble.is_none());
        assert_eq!(tally.outcome(6, 1).lost, 2, "the end is missing");
    }

    #[test]
    fn numbers_are_lost_late_or_told_again() {
        let (tally, fresh) = told(&[1, 3, 7, 2, 3, 5, 5]);
        assert_eq!(fresh, 5);
        let wanted = Outcome {
            lost: 2,
            duplicated: 2,
            out_of_order: 2,
            ..Outcome::default()
        };
        // Each number has a row of its own.
        assert_eq!(tally.outcome(7, 100), wanted);
    }

    #[test]
    fn what_a_later_version_replaced_is_folded() {
        // Two rows: 1, 3, 5, 7 and 2, 4, 6, 8. Of the second one, 6 and 8 are not known.
        let (tally, _) = told(&[1, 2, 4, 7]);
        let outcome = tally.outcome(8, 2);
        assert_eq!((outcome.folded, outcome.lost), (2, 2));
    }

    #[test]
    fn a_state_shows_numbers_without_being_a_change() {
        let mut tally = Tally::new(true);
        assert!(!tally.row(0));
        tally.snapshot_end();
        assert!(tally.row(1));
        tally.reset();
        assert!(!tally.row(4) && !tally.row(3) && !tally.row(1));
        tally.snapshot_end();
        assert!(!tally.row(4), "it was in the state");
        assert!(tally.row(5));
        let wanted = Outcome {
            lost: 1,
            folded: 2,
            duplicated: 1,
            resets: 1,
            ..Outcome::default()
        };
        assert_eq!(tally.outcome(5, 100), wanted);
    }
}
