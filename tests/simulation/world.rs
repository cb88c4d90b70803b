//! One run: a database, relays, writers and screens, and a scheduler that gives each a turn at random.
//!
//! Everything is decided by the seed: the same seed is the same run, to the letter. Time moves only
//! when the scheduler says so.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rowcast::cursor::Xid;

use crate::Statistics;
use crate::database::{Act, CARDS, Database, KEYS, Logged, NOTES};
use crate::relay::{Relay, Shared, World, lock};
use crate::screen::{Checked, Habit, Screen};
use crate::truth::Shows;

const RELAYS: usize = 3;
const SCREENS: usize = 9;
/// Turns of the part in which things go wrong.
pub const TURNS: usize = 320;
/// How long the log is kept, in milliseconds.
const RETENTION: u64 = 5_000;
/// After the last fault, every screen shows what there is within this, in milliseconds. It holds the
/// pauses of streams that were refused.
const CONVERGENCE: u64 = 60_000;

pub struct Run {
    world: World,
    relays: Vec<Option<Relay>>,
    screens: Vec<Screen>,
    /// Seeds in which nothing ever goes wrong prove something else.
    healthy: bool,
    /// Turns taken.
    pub steps: u64,
}

/// A run that went wrong, and what led to it.
#[derive(Debug)]
pub struct Failure {
    pub wrong: String,
    pub trace: Vec<String>,
}

impl Run {
    fn new(seed: u64, traced: bool) -> Self {
        // Retries and reconnection times are drawn from here.
        fastrand::seed(seed);
        let mut random = fastrand::Rng::with_seed(seed);
        let healthy = random.u8(..5) == 0;
        let shared = Shared {
            database: Database::new(),
            random,
            healthy,
            reads: 0,
            cut: vec![false; RELAYS],
            statistics: Statistics::default(),
            trace: traced.then(Vec::new),
            wrong: None,
        };
        let world: World = Arc::new(Mutex::new(shared));
        let relays = (0..RELAYS).map(|number| Some(Relay::start(&world, number)));
        let relays = relays.collect();
        // Now many who show the same, and now everything that can be shown.
        let mut shown = Shows::ALL;
        let kinds = {
            let random = &mut lock(&world).random;
            random.shuffle(&mut shown);
            random.usize(2..=shown.len())
        };
        let screens = (0..SCREENS).map(|number| {
            let random = &mut lock(&world).random;
            let shows = shown[number % kinds];
            let habit = Habit::ALL[random.usize(..Habit::ALL.len())];
            Screen::new(number, shows, habit)
        });
        let screens = screens.collect();
        Self {
            world,
            relays,
            screens,
            healthy,
            steps: 0,
        }
    }

    async fn go(&mut self) -> Checked {
        // As a rule somebody is there when things begin to go wrong.
        for _ in 0..12 {
            self.relays.iter_mut().flatten().for_each(Relay::turn);
        }
        for number in 0..SCREENS {
            let relay = self.pick(RELAYS);
            self.connect(number, relay);
        }
        for _ in 0..TURNS {
            self.steps += 1;
            self.step().await?;
        }
        self.settle().await
    }

    fn random(&self, most: u32) -> u32 {
        lock(&self.world).random.u32(..most)
    }

    fn pick(&self, most: usize) -> usize {
        lock(&self.world).random.usize(..most)
    }

    fn count(&self, what: &'static str) {
        lock(&self.world).statistics.count(what);
    }

    fn tell(&self, text: impl FnOnce() -> String) {
        lock(&self.world).tell(text);
    }

    async fn step(&mut self) -> Checked {
        match self.random(1000) {
            0..300 => self.write(),
            300..450 => self.turn(),
            450..770 => return self.look(),
            770..870 => {
                let by = u64::from(self.random(400)) + 1;
                self.pass(by).await;
            }
            870..900 => {
                let mut shared = lock(&self.world);
                match shared.random.u8(..3) {
                    0 => shared.database.flush(),
                    1 => shared.database.replicate(),
                    _ => {
                        let chunk = shared.random.usize(1..6);
                        let gone = shared.database.trim(RETENTION, chunk);
                        if gone > 0 {
                            shared.statistics.count("log rows trimmed");
                            shared.tell(|| format!("{gone} log rows are trimmed"));
                        }
                    }
                }
            }
            900..950 => self.come_and_go(),
            _ if self.healthy => {}
            _ => self.fail().await,
        }
        Ok(())
    }

    // ---- writers

    fn write(&mut self) {
        let rung = {
            let shared = &mut *lock(&self.world);
            if !shared.database.up {
                return;
            }
            write(shared, self.healthy)
        };
        if rung {
            self.ring();
        }
    }

    /// A commit rings, and the bell may get lost.
    fn ring(&self) {
        for relay in self.relays.iter().flatten() {
            if self.random(5) > 0 {
                relay.bell.notify_one();
            }
        }
    }

    // ---- relays and screens

    fn turn(&mut self) {
        let number = self.pick(RELAYS);
        if let Some(relay) = &mut self.relays[number] {
            relay.turn();
        }
    }

    fn look(&mut self) -> Checked {
        let number = self.pick(SCREENS);
        let most = 1 + self.pick(8);
        let slow = self.screens[number].habit == Habit::Slow && self.pick(6) > 0;
        if slow {
            return Ok(());
        }
        self.read(number, most)
    }

    fn read(&mut self, number: usize, most: usize) -> Checked {
        let screen = &mut self.screens[number];
        match screen.relay.and_then(|relay| self.relays[relay].as_ref()) {
            Some(relay) => screen.read(&self.world, relay, most),
            None => Ok(()),
        }
    }

    fn come_and_go(&mut self) {
        let number = self.pick(SCREENS);
        let relay = self.pick(RELAYS);
        let leaves = self.pick(3) == 0;
        let screen = &mut self.screens[number];
        if screen.is_connected() {
            if leaves && screen.habit != Habit::Steady {
                self.disconnect(number);
            }
            return;
        }
        self.connect(number, relay);
    }

    fn disconnect(&mut self, number: usize) {
        self.screens[number].disconnect();
        self.tell(|| format!("screen {number} leaves"));
    }

    fn connect(&mut self, number: usize, relay: usize) {
        if let Some(relay) = &self.relays[relay]
            && !relay.shutdown.has_begun()
        {
            self.screens[number].connect(&self.world, relay);
        }
    }

    /// Time passes, and every relay gets some turns, so that none is frozen for long.
    async fn pass(&mut self, milliseconds: u64) {
        lock(&self.world).database.now += milliseconds;
        tokio::time::advance(Duration::from_millis(milliseconds)).await;
        for relay in self.relays.iter_mut().flatten() {
            for _ in 0..2 {
                relay.turn();
            }
        }
    }

    // ---- faults

    async fn fail(&mut self) {
        match self.random(100) {
            0..8 => {
                let promotion = self.random(3) == 0;
                let shared = &mut *lock(&self.world);
                if !shared.database.up {
                    return;
                }
                let before = shared.database.snapshot().xmax();
                shared.database.crash(promotion);
                let after = shared.database.snapshot().xmax();
                shared
                    .statistics
                    .count(if promotion { "promotions" } else { "crashes" });
                if after < before {
                    shared.statistics.count("ids given out again");
                }
                shared.tell(|| {
                    let what = if promotion {
                        "standby is promoted"
                    } else {
                        "database crashes"
                    };
                    format!("the {what}; the next id is {after} and was {before}")
                });
            }
            8..36 => lock(&self.world).database.up = true,
            36..40 => {
                self.count("restarts");
                self.tell(|| "the database restarts".to_owned());
                lock(&self.world).database.restart();
            }
            40..52 => {
                let relay = self.pick(RELAYS);
                let cut = self.random(2) == 0;
                let shared = &mut *lock(&self.world);
                if cut && !shared.cut[relay] {
                    shared.statistics.count("relays cut off");
                    shared.tell(|| format!("relay {relay} is cut off"));
                }
                shared.cut[relay] = cut;
            }
            52..62 => {
                let relay = self.pick(RELAYS);
                self.kill(relay);
            }
            62..68 => self.stop(),
            68..84 => {
                let shared = &mut *lock(&self.world);
                let table = if shared.random.bool() { CARDS } else { NOTES };
                let silent = shared.random.bool();
                if shared.database.up && shared.database.alter(table, silent) {
                    shared.statistics.count("definitions changed");
                    shared.tell(|| {
                        format!("a column of table {table} gets another type, silently: {silent}")
                    });
                }
            }
            84..96 => self.check_drift(),
            _ => {
                // Long enough for heartbeats.
                for _ in 0..14 {
                    self.pass(400).await;
                }
            }
        }
    }

    fn check_drift(&self) {
        let shared = &mut *lock(&self.world);
        if shared.database.up && shared.database.check_drift() {
            shared.statistics.count("drifts told");
            shared.tell(|| "drift is found and told".to_owned());
        }
    }

    fn kill(&mut self, number: usize) {
        if self.relays[number].is_some() {
            for screen in &mut self.screens {
                if screen.relay == Some(number) {
                    screen.disconnect();
                }
            }
            self.relays[number] = None;
            self.count("relays killed");
            self.tell(|| format!("relay {number} is killed"));
        } else {
            self.relays[number] = Some(Relay::start(&self.world, number));
            self.tell(|| format!("relay {number} starts"));
        }
    }

    /// SIGTERM, and later the end.
    fn stop(&mut self) {
        let number = self.pick(RELAYS);
        let Some(relay) = &self.relays[number] else {
            return;
        };
        if relay.shutdown.has_begun() {
            self.kill(number);
        } else {
            relay.shutdown.begin(Duration::from_secs(2));
            self.count("relays stopped");
            self.tell(|| format!("relay {number} is told to stop"));
        }
    }

    // ---- the end

    /// Everything that went wrong ends, and every screen must get there.
    async fn settle(&mut self) -> Checked {
        self.tell(|| "faults end".to_owned());
        {
            let shared = &mut *lock(&self.world);
            shared.cut.fill(false);
            let database = &mut shared.database;
            database.up = true;
            for xid in database.open() {
                if shared.random.bool() {
                    database.commit(xid);
                } else {
                    database.abort(xid);
                }
            }
            for xid in database.prepared() {
                database.commit(xid);
            }
        }
        self.check_drift();
        for number in 0..RELAYS {
            let stops = |relay: &Relay| relay.shutdown.has_begun();
            if self.relays[number].as_ref().is_some_and(stops) {
                self.kill(number);
            }
            if self.relays[number].is_none() {
                self.kill(number);
            }
        }
        let end = lock(&self.world).database.now + CONVERGENCE;
        loop {
            self.steps += 1;
            self.pass(200).await;
            for number in 0..SCREENS {
                if !self.screens[number].is_connected() {
                    let relay = self.pick(RELAYS);
                    self.connect(number, relay);
                }
                self.read(number, 50)?;
            }
            let shared = lock(&self.world);
            let late = self.screens.iter().find_map(|screen| {
                let late = screen.has_arrived(&shared).err()?;
                Some(format!("screen {} {late}", screen.number))
            });
            match late {
                None => return Ok(()),
                Some(late) if shared.database.now >= end => {
                    return Err(format!("{late}, a minute after the last fault"));
                }
                Some(_) => {}
            }
        }
    }
}

/// One thing that a writer does; whether it committed.
fn write(shared: &mut Shared, healthy: bool) -> bool {
    let Shared {
        database, random, ..
    } = shared;
    let open = database.open();
    let going = random.choice(&open).copied();
    let xid: Xid = match going {
        Some(xid) if open.len() > 4 || random.u8(..3) > 0 => xid,
        _ => {
            let synchronous = random.u8(..3) > 0;
            let xid = database.begin(synchronous);
            shared.tell(|| format!("{xid} begins"));
            xid
        }
    };
    let Shared {
        database,
        random,
        statistics,
        ..
    } = shared;
    match random.u8(..100) {
        0..58 => {
            let table = if random.u8(..3) == 0 { NOTES } else { CARDS };
            let key = random.u32(..KEYS);
            let act = match random.u8(..10) {
                0..7 => Act::Write {
                    table,
                    key,
                    board: random.u32(1..3),
                },
                7 | 8 => Act::Delete { table, key },
                _ => Act::Move {
                    table,
                    key,
                    to: random.u32(..KEYS),
                },
            };
            let logged = match random.u8(..100) {
                0..6 => Logged::ByKey,
                6..8 if !healthy => Logged::Gap,
                8..10 if !healthy => Logged::Never,
                _ => Logged::Whole,
            };
            if database.act(xid, act, logged) {
                statistics.count(match logged {
                    Logged::Whole => "changes",
                    Logged::ByKey => "changes logged by key",
                    Logged::Gap => "gaps",
                    Logged::Never => "changes behind the triggers",
                });
                shared.tell(|| format!("{xid} does {act:?}, logged {logged:?}"));
            }
            false
        }
        58..64 => {
            let number = random.u32(..);
            database.publish(xid, format!(r#"{{"n":{number}}}"#));
            statistics.count("messages");
            false
        }
        64..68 => {
            database.undone();
            statistics.count("savepoints undone");
            false
        }
        68..72 => {
            database.prepare(xid);
            statistics.count("prepared");
            shared.tell(|| format!("{xid} is prepared"));
            false
        }
        72..76 => {
            let prepared = database.prepared();
            let Some(xid) = random.choice(&prepared).copied() else {
                return false;
            };
            database.commit(xid);
            shared.tell(|| format!("{xid} commits, prepared"));
            true
        }
        76..83 => {
            database.abort(xid);
            statistics.count("rollbacks");
            shared.tell(|| format!("{xid} rolls back"));
            false
        }
        _ => {
            if database.oldest() > RETENTION {
                statistics.count("transactions longer than the log is kept");
            }
            database.commit(xid);
            statistics.count("commits");
            shared.tell(|| format!("{xid} commits"));
            true
        }
    }
}

/// Runs a seed; returns its steps and what happened.
pub async fn run(seed: u64, traced: bool) -> Result<(u64, Statistics), Failure> {
    let mut run = Run::new(seed, traced);
    let result = run.go().await;
    let mut shared = lock(&run.world);
    let statistics = std::mem::take(&mut shared.statistics);
    match result {
        Ok(()) => Ok((run.steps, statistics)),
        Err(wrong) => Err(Failure {
            wrong,
            trace: shared.trace.take().unwrap_or_default(),
        }),
    }
}
