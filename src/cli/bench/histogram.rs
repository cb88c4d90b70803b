//! Latencies, counted and not kept: however many there are, they cost the same memory.

/// Buckets of each power of two: a value is known to one part in 64.
const STEPS: usize = 64;
/// Powers of two: the last one ends at more than an hour, in microseconds.
const POWERS: usize = 28;

/// How often each duration occurred, in microseconds.
#[derive(Clone)]
pub struct Histogram {
    counts: Box<[u32]>,
    count: u64,
    most: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; STEPS * POWERS].into(),
            count: 0,
            most: 0,
        }
    }
}

impl Histogram {
    /// Counts one.
    pub fn record(&mut self, microseconds: u64) {
        let at = bucket(microseconds).min(self.counts.len() - 1);
        self.counts[at] = self.counts[at].saturating_add(1);
        self.count += 1;
        self.most = self.most.max(microseconds);
    }

    /// Adds what another one has counted.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine = mine.saturating_add(*theirs);
        }
        self.count += other.count;
        self.most = self.most.max(other.most);
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The longest one.
    #[must_use]
    pub fn most(&self) -> u64 {
        self.most
    }

    /// The duration that this share of them, from 0 to 1, does not exceed; 0 when there are none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> u64 {
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a count, rounded up"
        )]
        let wanted = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= wanted {
                return end(at).min(self.most);
            }
        }
        self.most
    }
}

/// Exact up to [`STEPS`], then [`STEPS`] buckets for each doubling.
fn bucket(value: u64) -> usize {
    let value = usize::try_from(value).unwrap_or(usize::MAX);
    let power = (value / STEPS).checked_ilog2().map_or(0, |log| log + 1) as usize;
    if power == 0 {
        return value;
    }
    let step = (value >> (power - 1)) - STEPS;
    power * STEPS + step
}

/// The largest value of a bucket.
fn end(bucket: usize) -> u64 {
    let (power, step) = (bucket / STEPS, bucket % STEPS);
    let value = match power {
        0 => step,
        power => ((STEPS + step + 1) << (power - 1)) - 1,
    };
    value as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_value_is_known_to_one_part_in_64(value in 0_u64..3_600_000_000) {
            let found = end(bucket(value));
            prop_assert!(found >= value, "{} {}", value, found);
            prop_assert!(found - value <= value / 64, "{} {}", value, found);
        }
    }

    #[test]
    fn quantiles_are_those_of_the_values() {
        let mut even = Histogram::default();
        let mut odd = Histogram::default();
        assert_eq!(even.quantile(0.5), 0);
        for value in 1..=1000 {
            if value % 2 == 0 { &mut even } else { &mut odd }.record(value);
        }
        even.add(&odd);
        assert_eq!((even.count(), even.most()), (1000, 1000));
        assert_eq!(even.quantile(0.05), 50);
        for (share, value) in [(0.5, 500), (0.99, 990), (0.999, 999), (1.0, 1000)] {
            let found = even.quantile(share);
            assert!(
                found >= value && found <= value + value / 64,
                "{share}: {found}"
            );
        }
    }
}
