//! The history checker: a real PostgreSQL, three real relays, writers, screens and faults, and then
//! the question whether every screen was told the truth.
//!
//!     cargo test --test histcheck                          the short form
//!     cargo test --test histcheck -- --seed 7 --seconds 300   one run; writes a report
//!
//! One seed is one schedule. A run judges itself by a truth that owes nothing to our triggers: the
//! write-ahead log. A run in which a planned fault did not happen is invalid, and not green.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod bites;
mod browser;
mod check;
mod failover;
mod faults;
#[path = "../relay/harness.rs"]
#[allow(dead_code, reason = "the relay's tests use the rest of it")]
mod harness;
#[path = "../relay/installed.rs"]
mod installed;
mod nginx;
mod observers;
mod proxy;
mod record;
mod report;
mod resources;
mod run;
mod schedule;
mod tables;
mod truth;
mod world;
mod writers;

use std::process::ExitCode;

use schedule::{FAULTS, Fault, Plan, Scenario};

/// The checker checked.
const BITES: &str = "every_mistake_of_a_relay_is_found";
/// A run of its own kind.
const FAILOVER: &str = "a_lost_tail_is_on_no_screen";
/// The runs of the short form: each has faults.
const SHORT: [(&str, u64); 2] = [("seed_1_holds", 1), ("seed_2_holds", 2)];
const SHORT_SECONDS: u64 = 40;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let number = |name: &str| value(name).map(|text| text.parse::<u64>().expect("a number"));
    if has("--list") {
        // As cargo nextest asks it.
        if !has("--ignored") {
            println!("{BITES}: test");
            println!("{FAILOVER}: test");
            for (name, _) in SHORT {
                println!("{name}: test");
            }
        }
        return ExitCode::SUCCESS;
    }
    let scenario = match value("--only") {
        None => Scenario::Seeded,
        Some(kind) => {
            let of = |fault: &&Fault| fault.name() == kind || format!("{fault:?}") == kind;
            let fault = FAULTS.iter().find(of);
            let fault = fault.unwrap_or_else(|| panic!("no such fault; there are {FAULTS:?}"));
            Scenario::Only(*fault, number("--count").unwrap_or(10))
        }
    };
    let mut plans = Vec::new();
    let mut fails_over = has("--failover");
    if fails_over {
        // Nothing else.
    } else if number("--seed").is_some() || number("--seeds").is_some() || value("--only").is_some()
    {
        let first = number("--seed").unwrap_or(1);
        let seconds = number("--seconds").unwrap_or(SHORT_SECONDS);
        for seed in first..first + number("--seeds").unwrap_or(1) {
            plans.push(Plan::of(seed, seconds, scenario));
        }
    } else {
        let named = |name: &str| {
            let mut names = arguments
                .iter()
                .filter(|argument| !argument.starts_with("--"));
            arguments.iter().all(|argument| argument.starts_with("--"))
                || names.any(|argument| name.contains(argument.as_str()))
        };
        if named(BITES) {
            bites::bite();
        }
        fails_over = named(FAILOVER);
        for (name, seed) in SHORT {
            if named(name) {
                plans.push(Plan::of(seed, SHORT_SECONDS, Scenario::Seeded));
            }
        }
    }
    if plans.is_empty() && !fails_over {
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut results = Vec::new();
    if fails_over {
        let seed = number("--seed").unwrap_or(1);
        let outcome = runtime.block_on(failover::run(seed));
        report::tell(&outcome);
        results.push(outcome);
    }
    for plan in plans {
        let outcome = runtime.block_on(run::run(plan));
        report::tell(&outcome);
        results.push(outcome);
    }
    report::write(&results, value("--report").as_deref());
    if results.iter().all(run::Outcome::is_green) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
