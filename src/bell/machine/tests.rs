//! The machine in a world that has of PostgreSQL what the protocol leans on: ids, snapshots, the lock,
//! and bells. Everything happens in any order, and whatever was committed is read in the end although
//! nobody reads without a reason.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::*;
use crate::schema::migrate::Bell;

/// No read of a test is due because of this.
const NEVER: Duration = Duration::from_secs(100_000);

/// How a protocol may be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    /// The barrier is where the snapshot after the release ends, not an id of one's own.
    BarrierIsEndOfSnapshot,
    /// A writer tries the lock before it has its id.
    TryBeforeId,
    /// The leader does not ring for others until it is idle.
    NoRing,
}

#[derive(Debug, Clone, Copy)]
struct Writer {
    xid: Option<Xid>,
    /// Whether it rang, once it has tried.
    rang: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lock {
    Free,
    Asked,
    Held,
}

struct World {
    flaw: Flaw,
    now: Instant,
    next: Xid,
    /// The highest id whose transaction is over.
    over: Xid,
    open: Vec<Writer>,
    committed: BTreeSet<Xid>,
    lock: Lock,
    /// Whether the machine's session is there, and has the lead.
    leads: bool,
    asked: Option<Command>,
    /// Given back, and the id is still to come.
    released: bool,
    leader: Machine,
    read: Instant,
    bell: bool,
    told: BTreeSet<Xid>,
    /// Another relay: reads when somebody rings.
    other: BTreeSet<Xid>,
    states: BTreeSet<&'static str>,
}

impl World {
    fn new(flaw: Flaw) -> Self {
        let now = Instant::now();
        let mut leader = Machine::new(Bell::Adaptive, NEVER, now);
        leader.set_hearing(Hearing {
            listening: true,
            queue: 0.0,
        });
        Self {
            flaw,
            now,
            next: 100,
            over: 99,
            open: Vec::new(),
            committed: BTreeSet::new(),
            lock: Lock::Free,
            leads: false,
            asked: None,
            released: false,
            leader,
            read: now,
            bell: false,
            told: BTreeSet::new(),
            other: BTreeSet::new(),
            states: BTreeSet::new(),
        }
    }

    fn id(&mut self) -> Xid {
        self.next += 1;
        self.next - 1
    }

    /// `(xmin, xmax)` as `pg_current_snapshot()` has them.
    fn snapshot(&self) -> (Xid, Xid) {
        let end = self.over + 1;
        let open = self.open.iter().filter_map(|writer| writer.xid);
        (open.chain([end]).min().unwrap(), end)
    }

    fn is_held_by_writers(&self) -> bool {
        self.open.iter().any(|writer| writer.rang == Some(true))
    }

    fn begin(&mut self) {
        let mut writer = Writer {
            xid: None,
            rang: None,
        };
        if self.flaw == Flaw::TryBeforeId {
            writer.rang = Some(self.lock == Lock::Free);
        } else {
            writer.xid = Some(self.id());
        }
        self.open.push(writer);
    }

    /// The second half of a write.
    fn go_on(&mut self, at: usize) {
        if self.open[at].xid.is_none() {
            self.open[at].xid = Some(self.id());
        }
        if self.open[at].rang.is_none() {
            self.open[at].rang = Some(self.lock == Lock::Free);
        }
    }

    fn commit(&mut self, at: usize) {
        self.go_on(at);
        let writer = self.open.swap_remove(at);
        let xid = writer.xid.unwrap();
        self.over = self.over.max(xid);
        self.committed.insert(xid);
        if writer.rang == Some(true) {
            self.bell = true;
            self.other.clone_from(&self.committed);
        }
    }

    fn act(&mut self, act: Act) {
        if act.ring && self.flaw != Flaw::NoRing {
            self.other.clone_from(&self.committed);
        }
        if let Some(command) = act.command {
            assert_eq!(self.asked, None, "one command at a time");
            self.asked = Some(command);
            if command == Command::Acquire {
                assert_eq!(self.lock, Lock::Free);
                self.lock = Lock::Asked;
            }
        }
        self.states.insert(match self.leader.state() {
            State::Following => "following",
            State::Idle => "idle",
            State::Waking => "waking",
            State::Awake => "awake",
            State::Leaving => "leaving",
            State::Settling(_) => "settling",
        });
    }

    fn hear(&mut self, event: Event) {
        let act = self.leader.heard(event, self.now);
        self.act(act);
    }

    /// The server does the next thing it can do.
    fn serve(&mut self, random: &mut Rng) {
        match self.asked {
            _ if !self.leads => {
                self.leads = true;
                self.hear(Event::Elected);
            }
            Some(Command::Acquire) if !self.is_held_by_writers() => {
                self.lock = Lock::Held;
                self.asked = None;
                self.hear(Event::Granted);
            }
            Some(Command::Acquire) if random.u8(..) < 20 => {
                self.lock = Lock::Free;
                self.asked = None;
                self.hear(Event::Withdrawn);
            }
            None | Some(Command::Acquire) => {}
            // One statement after the other: writers may come in between.
            Some(Command::Release) if !self.released => {
                self.lock = Lock::Free;
                self.released = true;
            }
            Some(Command::Release | Command::Barrier) => {
                self.released = false;
                self.asked = None;
                let barrier = if self.flaw == Flaw::BarrierIsEndOfSnapshot {
                    self.snapshot().1
                } else {
                    let own = self.id();
                    self.over = self.over.max(own);
                    own
                };
                self.hear(Event::Released(barrier));
            }
        }
    }

    fn tell(&mut self, jammed: bool) {
        self.hear(Event::Told {
            bell: Some(Bell::Adaptive),
            jammed,
        });
    }

    /// The connection breaks, and the server notices.
    fn lose(&mut self) {
        self.leads = false;
        self.lock = Lock::Free;
        self.asked = None;
        self.released = false;
        self.hear(Event::Lost);
    }

    /// The leader reads if it is time.
    fn look(&mut self) -> bool {
        let wait = self.leader.wait(Duration::from_millis(1));
        let rung = wait.bells && std::mem::take(&mut self.bell);
        if !rung && self.now < self.read + wait.most {
            return false;
        }
        let new = self.committed.difference(&self.told).count();
        self.told.clone_from(&self.committed);
        self.read = self.now;
        let read = Read {
            transactions: new,
            xmin: self.snapshot().0,
            complete: true,
        };
        let act = self.leader.read(read, self.now);
        self.act(act);
        true
    }

    fn step(&mut self, random: &mut Rng, writers: usize) {
        match random.u8(..) {
            0..60 if self.open.len() < writers => self.begin(),
            0..100 if !self.open.is_empty() => {
                let at = random.usize(..self.open.len());
                self.go_on(at);
            }
            100..150 if !self.open.is_empty() => {
                let at = random.usize(..self.open.len());
                self.commit(at);
            }
            150..190 => self.serve(random),
            190..192 => self.lose(),
            192..196 if self.leads => self.tell(random.bool()),
            196..220 => self.now += Duration::from_millis(random.u64(..60)),
            _ => {
                self.look();
            }
        }
    }

    /// Lets everything come to rest; whether every commit has reached everybody then.
    fn rest(&mut self, random: &mut Rng) -> bool {
        while !self.open.is_empty() {
            self.commit(0);
            if random.bool() {
                self.serve(random);
                self.look();
            }
        }
        if self.leads {
            self.tell(false);
        }
        for _ in 0..200 {
            self.serve(random);
            self.now += Duration::from_millis(60);
            self.look();
        }
        assert_eq!(self.leader.state(), State::Idle);
        self.told == self.committed && self.other == self.committed
    }
}

fn strands(flaw: Flaw, seed: u64) -> bool {
    let mut random = Rng::with_seed(seed);
    let mut world = World::new(flaw);
    // Busy and quiet times in turn, since falling asleep is what may go wrong.
    for writers in [6, 1, 4, 1] {
        for _ in 0..random.usize(20..400) {
            world.step(&mut random, writers);
        }
        if random.bool() {
            // One stays open while the leader falls asleep.
            for _ in 0..random.usize(..200) {
                world.serve(&mut random);
                world.now += Duration::from_millis(random.u64(..40));
                world.look();
            }
        }
    }
    !world.rest(&mut random)
}

#[test]
fn whatever_was_committed_is_read_by_everybody_before_the_leader_sleeps() {
    for seed in 0..300 {
        assert!(!strands(Flaw::None, seed), "seed {seed}");
    }
}

#[test]
fn each_part_of_the_protocol_is_needed() {
    for flaw in [
        Flaw::BarrierIsEndOfSnapshot,
        Flaw::TryBeforeId,
        Flaw::NoRing,
    ] {
        let found = (0..3_000).any(|seed| strands(flaw, seed));
        assert!(found, "{flaw:?} does no harm in this world");
    }
}

#[test]
fn a_run_meets_every_state() {
    let mut random = Rng::with_seed(7);
    let mut world = World::new(Flaw::None);
    for _ in 0..5_000 {
        world.step(&mut random, 6);
    }
    world.rest(&mut random);
    assert_eq!(world.states.len(), 6, "{:?}", world.states);
}

/// An idle leader that hears its bells.
fn idle(now: Instant) -> Machine {
    let mut machine = Machine::new(Bell::Adaptive, Duration::from_secs(1), now);
    machine.set_hearing(Hearing {
        listening: true,
        queue: 0.0,
    });
    machine.heard(Event::Elected, now);
    machine.heard(Event::Granted, now);
    let later = now + TO_SLEEP * 2;
    assert_eq!(
        machine.read(quiet(1), later).command,
        Some(Command::Release)
    );
    machine.heard(Event::Released(7), later);
    machine.read(quiet(7), later);
    assert_eq!(machine.state(), State::Idle);
    machine
}

fn quiet(xmin: Xid) -> Read {
    Read {
        transactions: 0,
        xmin,
        complete: true,
    }
}

#[test]
fn little_is_rung_for_and_much_is_read_for() {
    let begun = Instant::now();
    let mut machine = idle(begun);
    let mut now = begun + Duration::from_secs(10);
    for _ in 0..50 {
        now += Duration::from_millis(30);
        let read = Read {
            transactions: 1,
            ..quiet(9)
        };
        assert_eq!(machine.read(read, now), Act::default());
        assert!(machine.wait(Duration::from_millis(1)).bells);
    }
    let burst = Read {
        transactions: MANY,
        ..quiet(9)
    };
    let act = machine.read(burst, now + Duration::from_secs(1));
    assert_eq!(act.command, Some(Command::Acquire));
    let wait = machine.wait(Duration::from_millis(1));
    assert!(!wait.bells && wait.most <= LONGEST);
}

#[test]
fn a_full_queue_and_commits_that_wait_for_each_other_stop_the_bells() {
    let now = Instant::now();
    let mut machine = idle(now);
    machine.set_hearing(Hearing {
        listening: true,
        queue: 0.51,
    });
    let later = now + Duration::from_mins(1);
    let act = machine.read(quiet(9), later);
    assert_eq!(act.command, Some(Command::Acquire));
    machine.heard(Event::Granted, later);
    // As long as it is half full, nobody rings, however little is committed.
    let later = later + Duration::from_mins(1);
    assert_eq!(machine.read(quiet(9), later), Act::default());
    machine.set_hearing(Hearing {
        listening: true,
        queue: 0.0,
    });
    let later = later + Duration::from_mins(1);
    assert_eq!(
        machine.read(quiet(9), later).command,
        Some(Command::Release)
    );

    let mut machine = idle(now);
    let told = Event::Told {
        bell: Some(Bell::Adaptive),
        jammed: true,
    };
    assert_eq!(machine.heard(told, now).command, Some(Command::Acquire));
}

#[test]
fn without_bells_it_reads_by_itself() {
    let now = Instant::now();
    let often = |machine: &mut Machine| {
        for _ in 0..20 {
            machine.read(quiet(9), now + Duration::from_mins(1));
        }
        machine.wait(Duration::from_millis(1)).most
    };
    let deaf = |machine: &mut Machine, listening| {
        machine.set_hearing(Hearing {
            listening,
            queue: 0.0,
        });
    };
    let mut machine = idle(now);
    assert_eq!(often(&mut machine), Duration::from_secs(1));
    deaf(&mut machine, false);
    assert_eq!(often(&mut machine), WITHOUT_BELL);
    deaf(&mut machine, true);
    // Another relay, or another version, has taken the bell away.
    for bell in [Some(Bell::Silent), None] {
        let jammed = false;
        machine.heard(Event::Told { bell, jammed }, now);
        assert_eq!(often(&mut machine), WITHOUT_BELL);
    }
    let mut silent = Machine::new(Bell::Silent, Duration::from_secs(1), now);
    deaf(&mut silent, true);
    assert_eq!(often(&mut silent), WITHOUT_BELL);
    // The lock may still be held by the connection that was lost.
    let mut lost = idle(now);
    lost.heard(Event::Lost, now);
    lost.read(quiet(9), now + DOUBT / 2);
    assert!(lost.wait(Duration::from_millis(1)).most <= WITHOUT_BELL);
    lost.read(quiet(9), now + DOUBT * 2);
    assert_eq!(
        lost.wait(Duration::from_millis(1)).most,
        Duration::from_secs(1)
    );
}

#[test]
fn somebody_elses_long_transaction_makes_it_read_seldom() {
    let begun = Instant::now();
    let mut machine = idle(begun);
    let burst = Read {
        transactions: MANY,
        ..quiet(9)
    };
    machine.read(burst, begun + Duration::from_secs(10));
    machine.heard(Event::Granted, begun + Duration::from_secs(10));
    machine.read(quiet(9), begun + Duration::from_secs(20));
    machine.heard(Event::Released(50), begun + Duration::from_secs(20));
    for _ in 0..20 {
        machine.read(quiet(9), begun + Duration::from_secs(21));
    }
    assert_eq!(machine.state(), State::Settling(50));
    let wait = machine.wait(Duration::from_millis(1));
    assert!(wait.bells && wait.most == WHILE_OPEN, "{wait:?}");
}
