//! What a run has shown: for a person, and as JSON.

use std::fmt::{self, Display};

use serde::Serialize;

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What was asked for.
    pub asked: Asked,
    /// What came of the changes.
    pub changes: Changes,
    /// From sending the statement that commits to the screen, in milliseconds.
    pub latency_ms: Latency,
    /// From sending the statement to its answer.
    pub commit_ms: Latency,
    /// Opening all screens at once.
    pub connect: Connect,
    /// The relay, when it is a process of this machine.
    pub relay: Option<Relay>,
    /// The run itself.
    pub bench: Bench,
    /// The machine, while changes were committed.
    pub machine: Option<Machine>,
}

/// What was asked for.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the flags say it")]
pub struct Asked {
    pub screens: usize,
    pub rate: f64,
    pub burst: u64,
    pub seconds: u64,
    pub views: usize,
    pub touched: usize,
    pub rows: u64,
    pub size: usize,
}

/// What came of the changes.
#[derive(Debug, Clone, Serialize)]
pub struct Changes {
    /// Transactions that were committed.
    pub committed: u64,
    /// What should have arrived: each at each screen whose view it is of.
    pub expected: u64,
    /// What did.
    pub delivered: u64,
    /// Never told of.
    pub lost: u64,
    /// A screen that fell behind was told the row's later version, or the state.
    pub folded: u64,
    /// Told more than once.
    pub duplicated: u64,
    /// Told after a later one.
    pub out_of_order: u64,
    /// States that came anew.
    pub resets: u64,
    /// Streams that ended.
    pub closed: u64,
    /// Arrived in a second.
    pub events_per_second: f64,
    /// With everything around them, heartbeats included.
    pub bytes_per_event: f64,
}

/// In milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
#[allow(missing_docs, reason = "quantiles")]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
}

/// Opening all screens at once.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Connect {
    /// Until the last one had its state.
    pub seconds: f64,
    /// Each of them.
    pub each_ms: Latency,
}

/// The relay.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Relay {
    /// Processor time for one delivered change, everything included.
    pub cpu_us_per_event: f64,
    /// Processor time for one commit.
    pub cpu_us_per_commit: f64,
    /// Processors kept busy while changes were committed.
    pub cpus: f64,
    /// The same while nothing was, when that was measured.
    pub idle_cpus: Option<f64>,
    /// Memory with all screens open and idle.
    pub rss_bytes: u64,
    /// What each screen added.
    pub rss_bytes_per_screen: f64,
    /// Memory at the end.
    pub rss_bytes_after: u64,
}

/// The run itself.
#[derive(Debug, Clone, Serialize)]
pub struct Bench {
    /// Processor time for one delivered change.
    pub cpu_us_per_event: f64,
    /// Processors kept busy.
    pub cpus: f64,
    /// How late commits were sent, in milliseconds.
    pub slip_ms: Latency,
    /// What of the figures is the run's or the machine's doing and not the relay's; empty is good.
    pub limits: Vec<String>,
}

/// The machine.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Machine {
    /// Processors.
    pub cpus: usize,
    /// Share of their time in which they worked.
    pub busy: f64,
    /// Share that a hypervisor gave to others.
    pub stolen: f64,
}

impl Report {
    /// Whether every change arrived once, in order, or was folded.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let changes = &self.changes;
        changes.lost == 0 && changes.duplicated == 0 && changes.out_of_order == 0
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        line(f, "asked", &self.asked)?;
        line(f, "delivered", &self.changes)?;
        line(f, "latency", &self.latency_ms)?;
        line(f, "commit", &self.commit_ms)?;
        line(f, "connect", &self.connect)?;
        if let Some(relay) = &self.relay {
            line(f, "relay", relay)?;
        }
        line(f, "bench", &self.bench)?;
        if let Some(machine) = &self.machine {
            line(f, "machine", machine)?;
        }
        for limit in &self.bench.limits {
            line(f, "note", limit)?;
        }
        Ok(())
    }
}

/// Where the second line of something begins.
const INDENT: &str = "\n           ";

fn line(f: &mut fmt::Formatter<'_>, name: &str, text: &dyn Display) -> fmt::Result {
    writeln!(f, "{name:<10} {text}")
}

impl Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {}; {} commits/s for {} s",
            count(self.screens as u64, "screen"),
            count(self.views as u64, "view"),
            number(self.rate),
            self.seconds
        )?;
        if self.touched < self.views {
            write!(f, ", to {} of the views", whole(self.touched as u64))?;
        }
        Ok(())
    }
}

impl Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (delivered, expected) = (whole(self.delivered), whole(self.expected));
        write!(f, "{delivered} of {expected}, {} lost", whole(self.lost))?;
        let trouble = [
            ("folded", self.folded),
            ("duplicated", self.duplicated),
            ("out of order", self.out_of_order),
            ("resets", self.resets),
            ("streams closed", self.closed),
        ];
        for (name, count) in trouble.into_iter().filter(|(_, count)| *count > 0) {
            let name = match (name, count) {
                ("resets", 1) => "reset",
                ("streams closed", 1) => "stream closed",
                _ => name,
            };
            write!(f, ", {} {name}", whole(count))?;
        }
        write!(
            f,
            "{INDENT}{}/s, {} bytes each",
            number(self.events_per_second),
            number(self.bytes_per_event)
        )
    }
}

impl Display for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (all, each) = (number(self.seconds), self.each_ms);
        write!(f, "{all} s for all; each {each}")
    }
}

impl Display for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} µs/event, {} µs/commit, {} CPUs busy",
            number(self.cpu_us_per_event),
            number(self.cpu_us_per_commit),
            number(self.cpus)
        )?;
        if let Some(idle) = self.idle_cpus {
            write!(f, " ({} while nothing was committed)", number(idle))?;
        }
        write!(
            f,
            "{INDENT}{} kB for each screen, {} MB in all, {} MB at the end",
            number(self.rss_bytes_per_screen / 1000.0),
            whole(self.rss_bytes / 1_000_000),
            whole(self.rss_bytes_after / 1_000_000)
        )
    }
}

impl Display for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} µs/event, {} CPUs busy, late by {} ms (p99)",
            number(self.cpu_us_per_event),
            number(self.cpus),
            number(self.slip_ms.p99)
        )
    }
}

impl Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {} % busy, {} % stolen",
            count(self.cpus as u64, "CPU"),
            number(self.busy * 100.0),
            number(self.stolen * 100.0)
        )
    }
}

impl Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "p50 {}  p90 {}  p99 {}  p99.9 {}  max {} ms",
            number(self.p50),
            number(self.p90),
            number(self.p99),
            number(self.p99_9),
            number(self.max)
        )
    }
}

/// `1 view`, `2 views`.
pub(super) fn count(count: u64, name: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {name}{plural}", whole(count))
}

/// With commas.
pub(super) fn whole(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// To three digits.
pub(super) fn number(number: f64) -> String {
    match number.abs() {
        ..10.0 => format!("{number:.2}"),
        ..100.0 => format!("{number:.1}"),
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is positive and rounded"
        )]
        _ if number > 0.0 => whole(number.round() as u64),
        _ => format!("{number:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_wrong_is_told_where_something_did() {
        let changes = |resets, closed| Changes {
            committed: 1,
            expected: 2_000,
            delivered: 1_999,
            lost: 1,
            folded: 0,
            duplicated: 0,
            out_of_order: 0,
            resets,
            closed,
            events_per_second: 10.0,
            bytes_per_event: 1.0,
        };
        let first = |changes: Changes| changes.to_string().lines().next().map(str::to_owned);
        assert_eq!(
            first(changes(0, 0)).as_deref(),
            Some("1,999 of 2,000, 1 lost")
        );
        assert_eq!(
            first(changes(1, 1)).as_deref(),
            Some("1,999 of 2,000, 1 lost, 1 reset, 1 stream closed")
        );
        assert_eq!(
            first(changes(2, 3)).as_deref(),
            Some("1,999 of 2,000, 1 lost, 2 resets, 3 streams closed")
        );
    }
}
