//! Awake or idle: what a relay does so that writers need not ring and nobody is left asleep.
//!
//! One relay, the leader, reads for all while much is committed: it holds a lock, writers that find
//! the lock held do not ring, and the leader rings for the other relays after each batch. The danger
//! is a writer that did not ring and commits when nobody reads any more. Two rules keep it away:
//!
//! - The leader reads on, without waiting for bells, from before it asks for the lock until after it
//!   is sure that all who did not ring are done.
//! - It is sure once a snapshot of its own reading has `xmin >= X`, where X is a transaction id given
//!   out after the lock was free again: a writer has its id before it tries the lock, so whoever found it
//!   held has an id below X. The end of the snapshot, `xmax`, would not do: an open transaction may
//!   well be the newest one.
//!
//! No socket, no task, no clock: time comes in as an argument.

use std::time::{Duration, Instant};

use crate::cursor::Xid;
use crate::mutants::{Mutant, on};
use crate::schema::migrate;

/// Longest pause between two reads where bells cannot be relied on.
const WITHOUT_BELL: Duration = Duration::from_millis(50);
/// Longest pause while somebody else's open transaction keeps the leader from going idle.
const WHILE_OPEN: Duration = Duration::from_millis(100);
/// Pauses between reads are so many times what a read took: reading takes the same part of the
/// machine whether the machine is free or busy.
const PART: u32 = 3;
/// But no shorter than this,
const SHORTEST: Duration = Duration::from_millis(2);
/// and no longer, while much is committed. Each read costs those who write (measured: with 10 ms, and the
/// machine full, a twentieth of what 32 of them do).
const LONGEST: Duration = Duration::from_millis(20);

/// So many transactions
const MANY: usize = 40;
/// within this time wake the leader: a bell is heard sooner than a read comes round, and is dear only
/// where commits wait for each other.
const TO_WAKE: Duration = Duration::from_millis(100);
/// Fewer than these
const FEW: usize = 50;
/// within this time let it sleep again.
const TO_SLEEP: Duration = Duration::from_millis(500);

/// A notification queue this full wakes the leader whatever is committed: no more bells. A full queue
/// makes every commit fail that rings.
const FULL: f64 = 0.5;
/// And keeps it awake until it is no fuller than this.
const NO_LONGER_FULL: f64 = 0.4;

/// After a lost connection its lock may be held for as long: the server's patience and some more.
const DOUBT: Duration = Duration::from_secs(10);

/// Where a relay stands. All but the first are the leader's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Somebody else leads, or nobody: woken by bells.
    Following,
    /// Woken by bells; writers ring.
    Idle,
    /// Reading; the lock has been asked for, and from then on nobody rings.
    Waking,
    /// Reading; the lock is held.
    Awake,
    /// Reading; the lock is being given back.
    Leaving,
    /// Reading until no transaction below this id is open any more.
    Settling(Xid),
}

/// What is to be asked of the server. One at a time: each is answered by an [`Event`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Take the lock, and wait for it: a try would fail for ever just when much is committed.
    Acquire,
    /// Give the lock back, and only then take a transaction id.
    Release,
    /// Take a transaction id: the wait for the lock was given up.
    Barrier,
}

/// What the server says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// This relay leads.
    Elected,
    /// The lock is held.
    Granted,
    /// It could not be had in time: transactions that rang hold it, some of them for long.
    Withdrawn,
    /// It is free, and this id was given out after that.
    Released(Xid),
    /// The connection is gone, and with it, sooner or later, the lock and the lead.
    Lost,
    /// Heard regularly.
    Told {
        /// Who rings, as the functions of the database have it; `None` when another version of
        /// Rowcast has installed them.
        bell: Option<migrate::Bell>,
        /// Commits wait for each other because they ring.
        jammed: bool,
    },
}

/// How the listening connection is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hearing {
    /// Bells are heard.
    pub listening: bool,
    /// How full the notification queue is, from 0 to 1.
    pub queue: f64,
}

impl Default for Hearing {
    fn default() -> Self {
        Self {
            listening: false,
            queue: 0.0,
        }
    }
}

/// What a read has found.
#[derive(Debug, Clone, Copy)]
pub struct Read {
    /// Transactions.
    pub transactions: usize,
    /// `xmin` of the snapshot that was read in.
    pub xmin: Xid,
    /// Whether everything that was committed could be read.
    pub complete: bool,
}

/// What is to be done now.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Act {
    /// Ask this of the server.
    pub command: Option<Command>,
    /// Ring for the other relays: what was read may have been committed without a bell.
    pub ring: bool,
}

/// How long to wait for the next read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// At most, from the last read on.
    pub most: Duration,
    /// Whether a bell ends it.
    pub bells: bool,
}

/// One relay's part.
#[derive(Debug)]
pub struct Machine {
    state: State,
    safety: Duration,
    /// Who rings: as this relay was told to have it, until it has heard how it is.
    bell: Option<migrate::Bell>,
    /// Whether this relay goes by bells at all.
    polls: bool,
    hearing: Hearing,
    jammed: bool,
    /// Until then the lock may be held by a connection of ours that is gone.
    doubt: Option<Instant>,
    window: Window,
    /// Reads without transactions since the last one with.
    quiet: u32,
    complete: bool,
}

/// Counts transactions in a stretch of time.
#[derive(Debug, Clone, Copy)]
struct Window {
    since: Instant,
    seen: usize,
}

impl Machine {
    /// A relay that begins. `wish` says who is to ring, `safety` how often it reads even without a bell.
    #[must_use]
    pub fn new(wish: migrate::Bell, safety: Duration, now: Instant) -> Self {
        Self {
            state: State::Following,
            safety: if on(Mutant::M7) {
                Duration::from_hours(24)
            } else {
                safety
            },
            bell: Some(wish),
            polls: wish == migrate::Bell::Silent,
            hearing: Hearing::default(),
            jammed: false,
            doubt: None,
            window: Window {
                since: now,
                seen: 0,
            },
            quiet: 0,
            complete: true,
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// The listening connection came, went, or told how full the queue is.
    pub fn set_hearing(&mut self, hearing: Hearing) {
        self.hearing = hearing;
    }

    /// A read has been done, and what it found is published.
    pub fn read(&mut self, read: Read, now: Instant) -> Act {
        self.complete = read.complete;
        self.quiet = if read.transactions == 0 {
            self.quiet.saturating_add(1)
        } else {
            0
        };
        self.doubt = self.doubt.filter(|until| now < *until);
        let act = Act {
            command: None,
            // Idle, every writer rings for all relays, and a follower is rung for.
            ring: read.transactions > 0
                && match self.state {
                    State::Following => self.doubt.is_some(),
                    State::Idle => false,
                    State::Waking | State::Awake | State::Leaving | State::Settling(_) => true,
                },
        };
        let stretch = if self.state == State::Awake {
            TO_SLEEP
        } else {
            TO_WAKE
        };
        if now.duration_since(self.window.since) > stretch {
            let few = self.window.seen < FEW && !self.must_not_ring(NO_LONGER_FULL);
            self.window = Window {
                since: now,
                seen: read.transactions,
            };
            if self.state == State::Awake && (few || !self.is_adaptive()) {
                return self.command(act, State::Leaving, Command::Release);
            }
        } else {
            self.window.seen += read.transactions;
        }
        match self.state {
            State::Settling(barrier) if read.xmin >= barrier && !self.is_to_wake() => {
                self.state = State::Idle;
            }
            State::Idle | State::Settling(_) if self.is_to_wake() => {
                return self.command(act, State::Waking, Command::Acquire);
            }
            _ => {}
        }
        act
    }

    /// The server has said something.
    pub fn heard(&mut self, event: Event, now: Instant) -> Act {
        let act = Act::default();
        match (event, self.state) {
            // Whoever led before may have left writers behind that did not ring: they are waited for
            // on the way to sleep, so this begins awake.
            (Event::Elected, _) => {
                self.doubt = None;
                return self.command(act, State::Waking, Command::Acquire);
            }
            (Event::Granted, State::Waking) => {
                self.state = State::Awake;
                self.window = Window {
                    since: now,
                    seen: 0,
                };
            }
            (Event::Withdrawn, State::Waking) if self.is_to_wake() => {
                return self.command(act, State::Waking, Command::Acquire);
            }
            (Event::Withdrawn, State::Waking) => {
                return self.command(act, State::Leaving, Command::Barrier);
            }
            (Event::Released(barrier), State::Leaving) => self.state = State::Settling(barrier),
            (Event::Lost, _) => {
                if self.state != State::Following {
                    self.doubt = Some(now + DOUBT);
                }
                self.state = State::Following;
                self.jammed = false;
            }
            (Event::Told { bell, jammed }, state) => {
                self.bell = bell;
                self.jammed = jammed;
                if state == State::Idle && self.is_to_wake() {
                    return self.command(act, State::Waking, Command::Acquire);
                }
            }
            // An answer to what is not wanted any more.
            (Event::Granted | Event::Withdrawn | Event::Released(_), _) => {}
        }
        act
    }

    /// How long to wait after a read that took so long.
    #[must_use]
    pub fn wait(&self, took: Duration) -> Wait {
        let pace = (took * PART).clamp(SHORTEST, LONGEST);
        let slower = |most: Duration| {
            let doublings = self.quiet.min(8);
            (pace * 2u32.saturating_pow(doublings)).min(most)
        };
        let (most, bells) = match self.state {
            // A bell says nothing new to who reads anyway.
            State::Waking | State::Awake | State::Leaving => (pace, false),
            State::Settling(_) => (slower(WHILE_OPEN), true),
            State::Following | State::Idle if self.is_on_its_own() => (slower(WITHOUT_BELL), true),
            State::Following | State::Idle if !self.complete => (slower(WHILE_OPEN), true),
            State::Following | State::Idle => (self.safety, true),
        };
        Wait {
            most: most.min(self.safety),
            bells,
        }
    }

    /// Whether bells cannot be relied on.
    fn is_on_its_own(&self) -> bool {
        self.polls
            || !self.hearing.listening
            || self.doubt.is_some()
            || !matches!(
                self.bell,
                Some(migrate::Bell::Adaptive | migrate::Bell::Always)
            )
    }

    fn is_to_wake(&self) -> bool {
        self.is_adaptive() && (self.window.seen >= MANY || self.jammed || self.must_not_ring(FULL))
    }

    fn must_not_ring(&self, bound: f64) -> bool {
        self.hearing.queue > bound
    }

    fn is_adaptive(&self) -> bool {
        self.bell == Some(migrate::Bell::Adaptive)
    }

    fn command(&mut self, act: Act, state: State, command: Command) -> Act {
        self.state = state;
        Act {
            command: Some(command),
            ..act
        }
    }
}

#[cfg(test)]
mod tests;
