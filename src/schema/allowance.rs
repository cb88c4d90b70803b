//! How often requests may have the catalogue read.
//!
//! Who does not find what he names, or fails as if a table were another, has it read once more: it may have been made
//! a moment ago. Mostly it is the request that is wrong, and whoever repeats it would keep PostgreSQL busy for good. An
//! [`Allowance`] promises that such reads together take no more than a fifth of the time, but for many in advance, or
//! where they are so slow that somebody would wait for his for more than a second. It does not know what is read.

use std::time::Duration;

use tokio::time::Instant;

/// What is used up by a read, in times as long as it took.
const SHARE: u32 = 5;
/// So much may be used in advance, which is twelve seconds of reading: a client that is being written asks for what is
/// not there again and again.
const ADVANCE: Duration = Duration::from_mins(1);
/// The longest wait for one's turn.
const LONGEST: Duration = Duration::from_secs(1);

/// What is used up.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Allowance {
    /// Until when.
    used: Option<Instant>,
}

impl Allowance {
    /// When the next one may read; `None` is at once.
    pub(super) fn turn(self) -> Option<Instant> {
        self.used?.checked_sub(ADVANCE)
    }

    /// One has read, from `begun` on, for so long.
    pub(super) fn took(&mut self, begun: Instant, long: Duration) {
        let from = self.used.map_or(begun, |used| used.max(begun));
        let most = begun + long + ADVANCE + LONGEST;
        self.used = Some((from + long.saturating_mul(SHARE)).min(most));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads that take so long, one after the other, for ten minutes: how many there are, and the longest wait.
    fn reads(long: Duration) -> (u32, Duration) {
        let begun = Instant::now();
        let (mut allowance, mut now, mut count) = (Allowance::default(), begun, 0);
        let mut longest = Duration::ZERO;
        while now < begun + Duration::from_mins(10) {
            let turn = allowance.turn().unwrap_or(now).max(now);
            longest = longest.max(turn - now);
            now = turn + long;
            allowance.took(turn, long);
            count += 1;
        }
        (count, longest)
    }

    #[test]
    fn reads_in_vain_take_a_fifth_of_the_time() {
        let (count, longest) = reads(Duration::from_millis(10));
        // Two minutes of ten, and twelve seconds in advance.
        assert!((13_200..13_250).contains(&count), "{count}");
        assert!(longest <= Duration::from_millis(40), "{longest:?}");
        let (count, longest) = reads(Duration::from_millis(500));
        // One in a second and a half, and 16 of those in advance.
        assert!((400..430).contains(&count), "{count}");
        assert_eq!(longest, LONGEST);
    }

    #[test]
    fn what_was_used_is_forgotten() {
        let begun = Instant::now();
        let mut allowance = Allowance::default();
        assert_eq!(allowance.turn(), None);
        for _ in 0..100 {
            allowance.took(begun, Duration::from_secs(1));
        }
        assert_eq!(allowance.turn(), Some(begun + Duration::from_secs(2)));
        let later = begun + Duration::from_mins(2);
        allowance.took(later, Duration::from_millis(1));
        assert!(allowance.turn() < Some(later));
    }
}
