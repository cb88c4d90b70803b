//! Defects that can be switched on, to see that the tests find them: `make mutants`.
//!
//! Built with the feature `mutants`, the variable `ROWCAST_MUTANT` chooses one of them. Without the
//! feature there is nothing here: [`on`] is a constant, and the defects are not compiled. It names no
//! other room, and is the one place besides the settings that reads the environment, so that no
//! setting of a real relay can reach it.

/// A defect, by its name in the table of `tests/mutants.sh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The feed's cursor is an id: what was open below it is never read.
    M1,
    /// Transactions of a batch are ordered by when they began.
    M2,
    /// A token of another life is taken for one of this.
    M3,
    /// The feed goes on where it was when the database begins another life.
    M4,
    /// The log is trimmed by the clock. The rule is SQL, so this one is in the simulation's copy of it.
    M5,
    /// What was trimmed is not looked at after the log was read for a token.
    M6,
    /// Without a bell the log is never read.
    M7,
    /// Who falls out of a buffer is not told.
    M8,
    /// Every piece of a state carries the id of the whole.
    M9,
    /// A connection goes back to the pool whatever it was doing.
    M10,
    /// The role `none`, which is no role, may be named by a token.
    M11,
    /// What a screen has already is told again.
    M12,
    /// Rows that a policy hides now are not taken from screens.
    M13,
    /// Line breaks inside of a value stay what they are.
    M14,
    /// A stream always says that it is up to date.
    M15,
    /// A token is the highest id so far.
    M16,
    /// A live stream that begins again is told what it missed as one event.
    R1,
    /// A view that was made before its table changed is shown as it is.
    R2,
    /// A state that was being read already is followed from where its reader joined.
    R3,
    /// An old token makes a relay read the log without end.
    R4,
    /// What a round that broke off was to ask is gone.
    R5,
    /// What was asked in vain is not asked again.
    R6,
    /// A change of what policies read changes nothing.
    R7,
    /// A question is answered as of now and not as of its round. Snapshots are PostgreSQL's, so this one is
    /// in the simulation.
    R8,
    /// A view that asks is taken to be as fresh as the feed is.
    R9,
    /// The digest of what a screen shows stays that of the state that it read.
    R10,
    /// An event is written to a connection that is writing.
    R11,
    /// A stream does not know what was written for it.
    R12,
    /// A stream is said to have everything though something waits for it.
    R13,
}

/// Whether that defect is switched on.
#[cfg(not(feature = "mutants"))]
#[must_use]
pub const fn on(_: Mutant) -> bool {
    false
}

/// Whether that defect is switched on.
#[cfg(feature = "mutants")]
#[must_use]
pub fn on(mutant: Mutant) -> bool {
    static CHOSEN: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("ROWCAST_MUTANT").ok());
    CHOSEN
        .as_deref()
        .is_some_and(|chosen| chosen == format!("{mutant:?}"))
}
