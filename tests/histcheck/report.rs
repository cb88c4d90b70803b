//! What a run came to: lines for people, JSON for machines, one page for both.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::check::INVARIANTS;
use crate::run::Outcome;

/// Tells the total on the terminal; with a directory also writes `report.json` and `report.html`.
pub fn write(results: &[Outcome], directory: Option<&str>) {
    let green = results.iter().filter(|outcome| outcome.is_green()).count();
    let checked: u64 = results.iter().map(checks).sum();
    eprintln!(
        "histcheck: {green} of {} runs hold; {checked} checks, {} violations, {} invalid runs",
        results.len(),
        results
            .iter()
            .map(|outcome| outcome.verdict.violations())
            .sum::<u64>(),
        results
            .iter()
            .filter(|outcome| !outcome.invalid.is_empty())
            .count()
    );
    if let Some(directory) = directory {
        let place = Path::new(directory);
        std::fs::create_dir_all(place).unwrap();
        let runs: Vec<Value> = results.iter().map(json_of).collect();
        let report = json!({"commit": commit(), "runs": runs});
        let text = serde_json::to_string_pretty(&report).unwrap();
        std::fs::write(place.join("report.json"), text).unwrap();
        std::fs::write(place.join("report.html"), page(&report)).unwrap();
        eprintln!("histcheck: {}", place.join("report.html").display());
    }
}

fn checks(outcome: &Outcome) -> u64 {
    outcome
        .verdict
        .findings
        .values()
        .map(|finding| finding.checked)
        .sum()
}

/// The three figures of a list of microseconds that people ask for, in milliseconds.
fn figures(micros: &[u64]) -> Option<[u64; 3]> {
    let mut sorted = micros.to_vec();
    sorted.sort_unstable();
    let at = |hundredths: usize| {
        let place = (sorted.len() * hundredths).div_ceil(100).max(1) - 1;
        sorted[place] / 1000
    };
    (!sorted.is_empty()).then(|| [at(50), at(99), at(100)])
}

fn mib(bytes: &[u64]) -> Vec<u64> {
    bytes.iter().map(|bytes| bytes >> 20).collect()
}

/// One run on the terminal.
pub fn tell(outcome: &Outcome) {
    eprintln!("{}", told(outcome));
}

fn told(outcome: &Outcome) -> String {
    let verdict = &outcome.verdict;
    let mut text = format!(
        "\nseed {}: {} in {:.0?} on PostgreSQL {}\n",
        outcome.plan.seed,
        match (outcome.invalid.is_empty(), verdict.violations()) {
            (false, _) => "INVALID",
            (true, 0) => "holds",
            (true, _) => "VIOLATED",
        },
        outcome.took,
        outcome.postgres
    );
    for (what, count) in &verdict.counts {
        let _infallible = writeln!(text, "  {count:>9} {what}");
    }
    for fault in &outcome.evidence.faults {
        let seen = fault.evidence.as_deref().unwrap_or("DID NOT HAPPEN");
        let _infallible = writeln!(text, "  {} ({}): {seen}", fault.kind, fault.target);
    }
    let staleness = figures(&verdict.staleness);
    let _infallible = writeln!(
        text,
        "  commit to screen {staleness:?} ms; table {:?} ms after the end (p50, p99, max); longest lie {} ms",
        figures(&verdict.convergence),
        verdict.longest_lie / 1000
    );

    let memory = &outcome.evidence.memory;
    let _infallible = writeln!(
        text,
        "  memory of the relays {:?} MiB when the screens had arrived, {:?} in the end, {:?} at most",
        mib(&memory.arrived),
        mib(&memory.ended),
        mib(&memory.most)
    );
    for (kind, times) in &verdict.recoveries {
        let _infallible = writeln!(
            text,
            "  fresh after {kind}: {:?} ms (p50, p99, max of {})",
            figures(times),
            times.len()
        );
    }
    for (invariant, meaning) in INVARIANTS {
        let finding = &verdict.findings[invariant];
        let _infallible = writeln!(
            text,
            "  {invariant} {:>9} checked, {} violated: {meaning}",
            finding.checked, finding.violated
        );
        for witness in &finding.witnesses {
            let _infallible = writeln!(text, "    - {}", witness.replace('\n', "\n      "));
        }
    }
    for reason in &outcome.invalid {
        let _infallible = writeln!(text, "  invalid: {reason}");
    }
    text
}

fn json_of(outcome: &Outcome) -> Value {
    let verdict = &outcome.verdict;
    let findings: Vec<Value> = INVARIANTS
        .iter()
        .map(|(invariant, meaning)| {
            let finding = &verdict.findings[invariant];
            json!({"invariant": invariant, "meaning": meaning, "checked": finding.checked,
                "violated": finding.violated, "witnesses": finding.witnesses})
        })
        .collect();
    let faults: Vec<Value> = outcome
        .evidence
        .faults
        .iter()
        .map(|fault| {
            json!({"kind": fault.kind, "target": fault.target, "begun": fault.begun,
                "healed": fault.healed, "evidence": fault.evidence})
        })
        .collect();
    let recoveries: Vec<Value> = verdict
        .recoveries
        .iter()
        .map(|(kind, times)| json!({"kind": kind, "count": times.len(), "ms": figures(times)}))
        .collect();
    let memory = &outcome.evidence.memory;
    json!({
        "seed": outcome.plan.seed,
        "seconds": outcome.plan.seconds,
        "asynchronous": outcome.plan.asynchronous,
        "retention_s": outcome.plan.retention.as_secs(),
        "observers": outcome.plan.observers,
        "postgres": outcome.postgres,
        "green": outcome.is_green(),
        "invalid": outcome.invalid,
        "counts": verdict.counts,
        "faults": faults,
        "invariants": findings,
        "recoveries": recoveries,
        "staleness_ms": figures(&verdict.staleness),
        "convergence_ms": figures(&verdict.convergence),
        "memory_mib": {"arrived": mib(&memory.arrived), "ended": mib(&memory.ended), "most": mib(&memory.most)},
        "longest_lie_ms": verdict.longest_lie / 1000,
        "took_s": outcome.took.as_secs(),
    })
}

/// The commit of the checkout, where there is one.
fn commit() -> String {
    let told = std::process::Command::new("git")
        .args(["rev-parse", "--short", "HEAD"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    told.map(|told| String::from_utf8_lossy(&told.stdout).trim().to_owned())
        .unwrap_or_default()
}

fn page(report: &Value) -> String {
    let data = report.to_string().replace('<', "\\u003c");
    include_str!("report.html").replace("__REPORT__", &data)
}
