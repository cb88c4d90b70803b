//! A place in the log, and its text.
//!
//! A [`Cursor`] is a `pg_snapshot` without its redundant `xmin`: it says of every transaction
//! whether it is *done* here, that is finished and, if it committed, visible. A reader that holds
//! one has exactly the committed transactions that are done in it. A [`Token`] is a cursor with
//! the two names that say where it means anything.
//!
//! Pure: it knows neither sockets nor SQL beyond the text form of `pg_snapshot`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{Context, SHA256};

use crate::mutants::{Mutant, on};

/// A 64-bit transaction id (`xid8`), which never wraps.
pub type Xid = u64;

/// The set of transactions that are done: those below `xmax` that are not in `xip`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Cursor {
    xmax: Xid,
    /// In progress; ascending, each below `xmax`.
    xip: Vec<Xid>,
}

/// Text that is not what its type demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("text is not a cursor or token")]
pub struct Malformed;

impl Cursor {
    /// The cursor with this `xmax` and these transactions in progress. Entries of `xip` that are not
    /// below `xmax` say nothing and are left out.
    #[must_use]
    pub fn new(xmax: Xid, xip: impl IntoIterator<Item = Xid>) -> Self {
        let mut xip: Vec<Xid> = xip.into_iter().filter(|xid| *xid < xmax).collect();
        xip.sort_unstable();
        xip.dedup();
        Self { xmax, xip }
    }

    /// Reads PostgreSQL's text form, `xmin:xmax:xip,xip,…`.
    ///
    /// # Errors
    /// [`Malformed`] for anything else.
    pub fn from_pg_snapshot(text: &str) -> Result<Self, Malformed> {
        let mut parts = text.split(':');
        let (Some(_xmin), Some(xmax), Some(xip), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Malformed);
        };
        let xmax = xmax.parse().map_err(|_| Malformed)?;
        let xip = xip
            .split(',')
            .filter(|xid| !xid.is_empty())
            .map(|xid| xid.parse().map_err(|_| Malformed))
            .collect::<Result<Vec<Xid>, _>>()?;
        Ok(Self::new(xmax, xip))
    }

    /// The first transaction id that had not been given out.
    #[must_use]
    pub fn xmax(&self) -> Xid {
        self.xmax
    }

    /// Transactions in progress, ascending.
    #[must_use]
    pub fn xip(&self) -> &[Xid] {
        &self.xip
    }

    /// The oldest transaction that was not done; everything below is.
    #[must_use]
    pub fn xmin(&self) -> Xid {
        self.xip.first().copied().unwrap_or(self.xmax)
    }

    /// Whether `xid` is finished here.
    #[must_use]
    pub fn is_done(&self, xid: Xid) -> bool {
        xid < self.xmax && self.xip.binary_search(&xid).is_err()
    }

    /// Whether everything done in `other` is done here.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        // What is missing here must be missing there: our entries in progress, and every id from
        // our xmax up to theirs. The latter are counted rather than walked, since a token from
        // outside may name any xmax.
        let ours_are_missing_there = self.xip.iter().all(|xid| !other.is_done(*xid));
        let span = other.xmax.saturating_sub(self.xmax);
        let above = other.xip.partition_point(|xid| *xid < self.xmax);
        ours_are_missing_there && span == (other.xip.len() - above) as u64
    }

    /// The cursor in which exactly the transactions done in either are done.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        // An id below the larger xmax is in progress in the union iff it is done in neither, so it
        // stands in one of the two lists: the result is never longer than both together.
        let xmax = self.xmax.max(other.xmax);
        let open = self.xip.iter().chain(&other.xip).copied();
        Self::new(
            xmax,
            open.filter(|xid| !self.is_done(*xid) && !other.is_done(*xid)),
        )
    }
}

/// The cursors between two polls: for each prefix of the delivered batch, "start and what was
/// delivered so far".
///
/// With `S` the start, `N` the snapshot the batch was read with, `B` its transactions and `D` the
/// delivered prefix: `xmax' = max(S.xmax, max(D) + 1)` and
/// `xip' = { x < xmax' : x in N.xip or x in B \ D }`. Then a logged transaction is done in the result
/// iff it is done in `S` or delivered; ids that are in neither set finished without log rows.
#[derive(Debug)]
pub struct Steps<'a> {
    end: &'a Cursor,
    xmax: Xid,
    waiting: BTreeSet<Xid>,
}

impl<'a> Steps<'a> {
    /// `batch` are the transactions that committed between `start` and `end`.
    pub fn new(start: &Cursor, end: &'a Cursor, batch: impl IntoIterator<Item = Xid>) -> Self {
        Self {
            end,
            xmax: start.xmax,
            waiting: batch.into_iter().collect(),
        }
    }

    /// The cursor after `xid` was delivered too; after the last one, `end` itself.
    pub fn deliver(&mut self, xid: Xid) -> Cursor {
        self.waiting.remove(&xid);
        if self.waiting.is_empty() {
            return self.end.clone();
        }
        self.xmax = self.xmax.max(xid + 1);
        if on(Mutant::M16) {
            return Cursor::new(self.xmax, []);
        }
        let open = self.end.xip.iter().chain(self.waiting.range(..self.xmax));
        Cursor::new(self.xmax, open.copied())
    }
}

/// Lower-case hexadecimal: `xmax`, then for each transaction in progress `-` and its distance to
/// `xmax`. Short, since transactions in progress are close to `xmax`.
impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.xmax)?;
        self.xip
            .iter()
            .try_for_each(|xid| write!(f, "-{:x}", self.xmax - xid))
    }
}

impl FromStr for Cursor {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let mut numbers = text.split('-').map(hexadecimal);
        let xmax = numbers.next().ok_or(Malformed)??;
        let xip = numbers
            .map(|distance| match distance? {
                0 => Err(Malformed),
                distance => xmax.checked_sub(distance).ok_or(Malformed),
            })
            .collect::<Result<Vec<Xid>, _>>()?;
        Ok(Self::new(xmax, xip))
    }
}

/// `from_str_radix` alone would take a leading `+`. Ids stay below 2^63, so that they fit `int8`.
fn hexadecimal(text: &str) -> Result<u64, Malformed> {
    if text.is_empty() || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(Malformed);
    }
    u64::from_str_radix(text, 16)
        .ok()
        .filter(|number| i64::try_from(*number).is_ok())
        .ok_or(Malformed)
}

/// A 64-bit name in eleven characters of `[0-9A-Za-z_-]`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name([u8; 8]);

impl Name {
    /// The name of these parts: the head of a SHA-256 over each part's length and bytes.
    #[must_use]
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut hash = Context::new(&SHA256);
        for part in parts {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        let mut name = [0; 8];
        name.copy_from_slice(&hash.finish().as_ref()[..8]);
        Self(name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Name {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Malformed)?;
        Ok(Self(bytes.try_into().map_err(|_| Malformed)?))
    }
}

/// Where a stream stands: `epoch.view.cursor`, the `id` of its events. Only characters that a
/// browser may send cross-origin without asking first, and below 128 bytes in ordinary load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The life of the transaction counter that the cursor counts in.
    pub epoch: Name,
    /// What the stream shows, and to whom.
    pub view: Name,
    /// What of it was delivered.
    pub cursor: Cursor,
}

/// The reserved id: no position, start over.
pub const START: &str = "0";

/// Longest token that is read, in bytes: whoever brings a longer one starts over. A token is not signed, and
/// each transaction in progress that a made-up one names may have to be looked up.
pub const LONGEST_TOKEN: usize = 4096;

/// Whether a text has the form of an id of a stream.
#[must_use]
pub fn is_id(text: &str) -> bool {
    text == START || text.parse::<Token>().is_ok()
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.epoch, self.view, self.cursor)
    }
}

impl FromStr for Token {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text.len() > LONGEST_TOKEN {
            return Err(Malformed);
        }
        let mut parts = text.splitn(3, '.');
        let mut next = || parts.next().ok_or(Malformed);
        Ok(Self {
            epoch: next()?.parse()?,
            view: next()?.parse()?,
            cursor: next()?.parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Small ids, so that every relation between two cursors occurs; `base` puts them anywhere.
    fn cursor() -> impl Strategy<Value = Cursor> {
        (0u64..20, prop::collection::btree_set(0u64..20, 0..8))
            .prop_map(|(xmax, xip)| Cursor::new(xmax, xip))
    }

    fn done(cursor: &Cursor) -> BTreeSet<Xid> {
        (0..40).filter(|xid| cursor.is_done(*xid)).collect()
    }

    proptest! {
        #[test]
        fn covers_is_the_subset_relation(a in cursor(), b in cursor()) {
            prop_assert_eq!(a.covers(&b), done(&b).is_subset(&done(&a)));
        }

        #[test]
        fn union_is_the_union(a in cursor(), b in cursor()) {
            let union = a.union(&b);
            prop_assert_eq!(done(&union), &done(&a) | &done(&b));
            prop_assert!(union.xip().len() <= a.xip().len() + b.xip().len());
            prop_assert!(union.covers(&a) && union.covers(&b));
        }

        #[test]
        fn text_survives_the_round_trip(
            xmax in 0..i64::MAX.cast_unsigned(),
            distances in prop::collection::vec(1u64..5000, 0..30),
        ) {
            let xip = distances.iter().filter_map(|distance| xmax.checked_sub(*distance));
            let cursor = Cursor::new(xmax, xip);
            prop_assert_eq!(cursor.to_string().parse::<Cursor>(), Ok(cursor.clone()));
            let token = Token { epoch: Name::of(["e"]), view: Name::of(["v"]), cursor };
            let text = token.to_string();
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)));
            prop_assert_eq!(text.parse::<Token>(), Ok(token));
        }

        #[test]
        fn hostile_text_is_refused_and_never_panics(text in "\\PC*") {
            let _any = text.parse::<Token>();
            let _any = text.parse::<Cursor>();
            let _any = Cursor::from_pg_snapshot(&text);
        }

        /// The proof of the token, run: in any history of polls and for any order inside a batch,
        /// a logged transaction is done in a token iff it was delivered before or is done in S.
        #[test]
        fn a_step_is_exactly_what_was_delivered(
            fates in prop::collection::vec(0u8..4, 1..25),
            order in any::<u64>(),
        ) {
            // Fate 0: finished before S. 1: between S and N, logged. 2: likewise, no log rows.
            // 3: still running at N. S began before the last ids were given out.
            let xmax = fates.len() as Xid;
            let fate = |xid: Xid| fates[usize::try_from(xid).unwrap()];
            let running = |least: u8| (0..xmax).filter(move |xid| fate(*xid) >= least);
            let start_xmax = running(1).next().unwrap_or(xmax).max(xmax / 2);
            let start = Cursor::new(start_xmax, running(1));
            let end = Cursor::new(xmax, running(3));
            let mut batch: Vec<Xid> = (0..xmax)
                .filter(|xid| fate(*xid) == 1 && !start.is_done(*xid))
                .collect();
            let mut random = fastrand::Rng::with_seed(order);
            random.shuffle(&mut batch);
            let mut steps = Steps::new(&start, &end, batch.iter().copied());
            let mut before = start.clone();
            for delivered in 1..=batch.len() {
                let token = steps.deliver(batch[delivered - 1]);
                for xid in &batch {
                    prop_assert_eq!(token.is_done(*xid), batch[..delivered].contains(xid));
                }
                for xid in running(3) {
                    prop_assert!(!token.is_done(xid));
                }
                prop_assert!(token.covers(&before), "a token never goes back");
                prop_assert!(end.covers(&token));
                before = token;
            }
        }
    }

    #[test]
    fn pg_snapshot_text_is_read() {
        let cursor = Cursor::from_pg_snapshot("10:20:10,14").unwrap();
        assert_eq!(
            (cursor.xmin(), cursor.xmax(), cursor.xip()),
            (10, 20, &[10, 14][..])
        );
        assert_eq!(Cursor::from_pg_snapshot("7:7:").unwrap().xmin(), 7);
        assert!(Cursor::from_pg_snapshot("7:7").is_err());
    }

    #[test]
    fn a_token_that_names_thousands_of_transactions_is_none() {
        let token = |open: u64| Token {
            epoch: Name::of(["e"]),
            view: Name::of(["v"]),
            cursor: Cursor::new(5000, 5000 - open..5000),
        };
        for (open, reads) in [(800, true), (4000, false)] {
            let text = token(open).to_string();
            assert_eq!(text.parse::<Token>().is_ok(), reads, "{} bytes", text.len());
        }
    }

    #[test]
    fn a_token_is_short_in_ordinary_load() {
        let cursor = Cursor::new(812_345_678, (0..16).map(|i| 812_345_600 + i));
        let token = Token {
            epoch: Name::of(["e"]),
            view: Name::of(["v"]),
            cursor,
        };
        assert!(token.to_string().len() < 128, "{token}");
    }

    #[test]
    fn covering_a_far_future_takes_no_time() {
        let far = Cursor::new(i64::MAX.cast_unsigned(), []);
        assert!(!Cursor::new(5, []).covers(&far));
        assert!(far.covers(&Cursor::new(5, [])));
    }
}
