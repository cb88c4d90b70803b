//! The core of a relay on a model of PostgreSQL, one seed a run: nothing lost, nothing invented,
//! nothing twice, whatever happens to whom in whatever order.
//!
//! The stage, the reader of the log, the rounds of views that ask, the ring, the hub, the streams, the
//! cursor and the folding are the real ones. [`database`] stands in for PostgreSQL, [`world`] for
//! chance; [`truth`] knows what really happened and [`screen`] compares.
//! `ROWCAST_SIMULATION_SEEDS=100000` is the long form, `ROWCAST_SIMULATION_SEED=n` replays one seed
//! with its trace.
//!
//! A set of runs in which something planned never happened proves nothing and fails.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod database;
mod relay;
mod screen;
mod tray;
mod truth;
mod world;

use std::collections::BTreeMap;
use std::time::Instant;

/// Seeds in the short form.
const SEEDS: u64 = 1_400;
/// What must happen at least once in a set of runs.
const PLANNED: &[&str] = &[
    "answers for those who come back",
    "catch-ups of several transactions",
    "changes",
    "changes behind the triggers",
    "changes logged by key",
    "changes of what policies read",
    "closings",
    "closings while opening",
    "closings while reopening",
    "commits",
    "comparisons",
    "crashes",
    "damaged tokens",
    "definitions changed",
    "drifts told",
    "epochs",
    "fell out of the buffer",
    "foreign tokens",
    "gaps",
    "gaps told",
    "honest controls",
    "ids given out again",
    "log rows trimmed",
    "messages",
    "old tokens",
    "prepared",
    "promotions",
    "questions that failed",
    "questions to tables that were rewritten",
    "relays cut off",
    "relays killed",
    "relays stopped",
    "resets",
    "resets of channels",
    "restarts",
    "resumes",
    "rollbacks",
    "rounds",
    "rounds that broke off",
    "savepoints undone",
    "schemas",
    "states",
    "states in pieces",
    "streams ended",
    "streams refused",
    "told there how things stand",
    "tokens from the future",
    "too much for a beginning",
    "too much for a round",
    "too much for a token",
    "transactions longer than the log is kept",
    "written there in part",
    "written where they were published",
];
/// Seeds above which everything planned must have happened.
const ENOUGH: u64 = 500;
/// Lines of a trace that are printed.
const TRACE: usize = 150;

/// How often what happened.
#[derive(Debug, Default)]
pub struct Statistics(BTreeMap<&'static str, u64>);

impl Statistics {
    /// Once more.
    pub fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    fn add(&mut self, other: &Self) {
        for (what, times) in &other.0 {
            *self.0.entry(what).or_default() += times;
        }
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}

fn run(seed: u64, traced: bool) -> Result<(u64, Statistics), world::Failure> {
    // Without a budget of turns: the scheduler here is ours.
    runtime().block_on(tokio::task::unconstrained(world::run(seed, traced)))
}

/// Prints what led to it, and fails.
fn fail(seed: u64, wrong: &str) -> ! {
    let failure = run(seed, true).expect_err("a seed is the same run again");
    // All of it where somebody asks for this seed.
    let most = number("ROWCAST_SIMULATION_SEED").map_or(TRACE, |_| usize::MAX);
    let from = failure.trace.len().saturating_sub(most);
    for line in &failure.trace[from..] {
        eprintln!("{line}");
    }
    assert_eq!(failure.wrong, wrong, "a seed is the same run again");
    panic!(
        "seed {seed}: {wrong}\n  again: ROWCAST_SIMULATION_SEED={seed} cargo test --test simulation"
    );
}

/// Runs seeds `from..to` and says what happened.
fn run_all(from: u64, to: u64) {
    let begun = Instant::now();
    let (mut steps, mut happened) = (0, Statistics::default());
    for seed in from..to {
        match run(seed, false) {
            Ok((taken, statistics)) => {
                steps += taken;
                happened.add(&statistics);
            }
            Err(failure) => fail(seed, &failure.wrong),
        }
    }
    let (seeds, seconds) = (to - from, begun.elapsed().as_secs_f64());
    eprintln!(
        "{seeds} seeds, {steps} steps in {seconds:.1} s, {:.0} steps a second",
        f64::from(u32::try_from(steps).unwrap()) / seconds
    );
    eprintln!("{:?}", happened.0);
    if seeds >= ENOUGH {
        let never: Vec<_> = PLANNED
            .iter()
            .filter(|what| !happened.0.contains_key(*what))
            .collect();
        assert!(
            never.is_empty(),
            "nothing is proved: there were no {never:?}"
        );
    }
}

/// The seeds of one of several tests, so that they run side by side.
fn share(part: u64, parts: u64) {
    if number("ROWCAST_SIMULATION_SEED").is_some() {
        return;
    }
    let seeds = number("ROWCAST_SIMULATION_SEEDS").unwrap_or(SEEDS);
    let first = number("ROWCAST_SIMULATION_FIRST").unwrap_or(0);
    run_all(
        first + seeds * part / parts,
        first + seeds * (part + 1) / parts,
    );
}

#[test]
fn every_screen_of_every_seed_shows_what_there_is() {
    if let Some(seed) = number("ROWCAST_SIMULATION_SEED") {
        run_all(seed, seed + 1);
    }
    share(0, 2);
}

#[test]
fn every_screen_of_the_other_seeds_does_too() {
    share(1, 2);
}

#[test]
fn a_seed_is_the_same_run_again() {
    for seed in 0..5 {
        let told = |result: Result<(u64, Statistics), world::Failure>| {
            result.map(|(steps, happened)| (steps, happened.0)).ok()
        };
        assert_eq!(told(run(seed, false)), told(run(seed, true)));
    }
}
