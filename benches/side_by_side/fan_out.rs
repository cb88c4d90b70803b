//! From one commit to many screens: figures that need servers and screens.

use std::collections::BTreeMap;

use anyhow::Context;
use rowcast::cli::bench::report::Report;
use rowcast::cli::bench::{Load, Progress, Subject, measure};

use super::servers::{Database, Kind, Running};
use super::table::{Goal, Sample, Table};
use super::{Options, quiet};

/// What is looked at in a report.
type Measure = fn(&Report) -> Option<f64>;

/// A load, and who carries it.
struct Figure {
    load: Load,
    kinds: Vec<Kind>,
    rows: Vec<Row>,
}

/// One line of the table.
struct Row {
    what: &'static str,
    measure: Measure,
    beside: Option<Kind>,
    goal: Goal,
}

fn row(what: &'static str, measure: Measure, beside: Option<Kind>, goal: Goal) -> Row {
    Row {
        what,
        measure,
        beside,
        goal,
    }
}

fn cpu(report: &Report) -> Option<f64> {
    report.relay.map(|relay| relay.cpu_us_per_event)
}

fn rss(report: &Report) -> Option<f64> {
    report
        .relay
        .map(|relay| relay.rss_bytes_per_screen / 1000.0)
}

/// Above what idle screens cost meanwhile.
fn cpu_per_commit(report: &Report) -> Option<f64> {
    let relay = report.relay?;
    let per_commit = relay.cpu_us_per_commit / relay.cpus;
    Some((relay.cpus - relay.idle_cpus?) * per_commit)
}

fn rows_of_cpu() -> Vec<Row> {
    let what = "CPU, µs/event";
    vec![
        row(what, cpu, Some(Kind::WriteLoop), Goal::Times(1.3)),
        row(what, cpu, Some(Kind::Nchan), Goal::Times(0.8)),
        row(what, cpu, Some(Kind::Naive), Goal::Times(0.7)),
    ]
}

fn made(name: &str, options: &Options) -> anyhow::Result<Figure> {
    let all = [Kind::Rowcast, Kind::WriteLoop, Kind::Nchan, Kind::Naive];
    let load = |screens, rate: f64| Load {
        screens: options.scaled(screens),
        rate,
        seconds: if options.smoke { 1 } else { options.seconds },
        ..Load::default()
    };
    let idle = |screens| Figure {
        load: Load {
            seconds: 1,
            idle: u64::from(!options.smoke) * 3,
            rows: 1,
            ..load(screens, 1.0)
        },
        kinds: vec![Kind::Rowcast, Kind::Nchan, Kind::Naive],
        rows: vec![
            row("kB/screen", rss, Some(Kind::Nchan), Goal::AtMost(8.0)),
            row("kB/screen", rss, Some(Kind::Naive), Goal::None),
        ],
    };
    let figure = match name {
        "fan-1000" => {
            let mut rows = rows_of_cpu();
            rows.push(row(
                "p99, ms",
                |report| Some(report.latency_ms.p99),
                Some(Kind::Nchan),
                Goal::Times(1.0),
            ));
            rows.push(row(
                "machine busy, %",
                |report| report.machine.map(|machine| machine.busy * 100.0),
                Some(Kind::Nchan),
                Goal::None,
            ));
            Figure {
                load: load(1000, 100.0),
                kinds: all.to_vec(),
                rows,
            }
        }
        "fan-10000" => Figure {
            load: load(10_000, 10.0),
            kinds: all.to_vec(),
            rows: rows_of_cpu(),
        },
        "waiting" => Figure {
            load: Load {
                burst: 16,
                ..load(1000, 96.0)
            },
            kinds: all.to_vec(),
            rows: vec![
                row("CPU, µs/event", cpu, None, Goal::AtMost(2.0)),
                row("CPU, µs/event", cpu, Some(Kind::Naive), Goal::None),
                row("CPU, µs/event", cpu, Some(Kind::WriteLoop), Goal::None),
            ],
        },
        "saturated" => {
            let events: Measure = |report| Some(report.changes.events_per_second);
            Figure {
                load: Load {
                    seconds: options.seconds.min(5),
                    ..load(1000, if options.smoke { 100.0 } else { 1500.0 })
                },
                kinds: vec![Kind::Rowcast, Kind::Naive],
                rows: vec![row(
                    "events/s",
                    events,
                    Some(Kind::Naive),
                    Goal::AtLeastTimes(1.0),
                )],
            }
        }
        "near" => {
            let p50: Measure = |report| Some(report.latency_ms.p50);
            Figure {
                load: load(100, 50.0),
                kinds: all.to_vec(),
                rows: vec![
                    row("p50, ms", p50, Some(Kind::Naive), Goal::Plus(0.7)),
                    row("p50, ms", p50, Some(Kind::Nchan), Goal::None),
                ],
            }
        }
        "idle-10000" => idle(10_000),
        "idle-19000" => idle(19_000),
        _ => anyhow::bail!("no figure of this kind: {name}"),
    };
    Ok(figure)
}

/// Finds one.
pub async fn figure(name: &str, options: &Options, table: &mut Table) -> anyhow::Result<()> {
    match name {
        "views" => return views(options, table).await,
        "connect" => return connect(options, table).await,
        _ => {}
    }
    let figure = made(name, options)?;
    let mut kinds = figure.kinds;
    kinds.retain(|kind| match kind.missing() {
        None => true,
        Some(what) => {
            eprintln!("  without {}: {what}", kind.name());
            false
        }
    });
    let database = Database::start(false).await?;
    let mut reports: BTreeMap<&str, Vec<Report>> = BTreeMap::new();
    let mut disturbed: BTreeMap<&str, usize> = BTreeMap::new();
    for _ in 0..rounds(options) {
        fastrand::shuffle(&mut kinds);
        for kind in &kinds {
            match run(*kind, &figure.load, &database, options).await? {
                Some(report) => reports.entry(kind.name()).or_default().push(report),
                None => *disturbed.entry(kind.name()).or_default() += 1,
            }
        }
    }
    database.stop().await;
    let sample = |kind: Kind, measure: Measure| {
        let mut sample = Sample::default();
        sample.disturbed = disturbed.get(kind.name()).copied().unwrap_or_default();
        let reports = reports.get(kind.name()).into_iter().flatten();
        for value in reports.filter_map(measure) {
            sample.add(value);
        }
        sample
    };
    for row in figure.rows {
        let ours = sample(Kind::Rowcast, row.measure);
        let beside = row.beside.filter(|kind| kinds.contains(kind));
        let theirs = beside.map(|kind| (kind.name(), sample(kind, row.measure)));
        table.add(name, row.what, ours, theirs, row.goal);
    }
    Ok(())
}

fn rounds(options: &Options) -> usize {
    if options.smoke { 1 } else { options.rounds }
}

/// One run; nothing when it was disturbed three times, or another server could not carry it.
async fn run(
    kind: Kind,
    load: &Load,
    database: &Database,
    options: &Options,
) -> anyhow::Result<Option<Report>> {
    const TRIES: usize = 3;
    for _ in 0..TRIES {
        let undisturbed = quiet(options).await;
        let (running, client) = Running::start(kind, load, database).await?;
        let report = measured(&running, &client, load).await;
        running.stop().await;
        let report = match report.with_context(|| kind.name()) {
            // What another server cannot carry gives no figure of it, and takes none from the others.
            Err(error) if kind != Kind::Rowcast => {
                eprintln!("  {error:#}");
                return Ok(None);
            }
            report => report?,
        };
        eprintln!(
            "  {:<10} {} of {} delivered, {} µs/event, p50 {} p99 {} ms, {} closed{}",
            kind.name(),
            report.changes.delivered,
            report.changes.expected,
            cpu(&report).unwrap_or_default().round(),
            report.latency_ms.p50,
            report.latency_ms.p99,
            report.changes.closed,
            if report.bench.limits.is_empty() {
                String::new()
            } else {
                format!("; {}", report.bench.limits.join("; "))
            }
        );
        let stolen = report.machine.map_or(0.0, |machine| machine.stolen);
        if options.smoke {
            let changes = &report.changes;
            anyhow::ensure!(changes.delivered > 0, "{} delivers nothing", kind.name());
            anyhow::ensure!(kind != Kind::Rowcast || report.is_whole(), "{report}");
        }
        if options.noisy || options.smoke || (undisturbed && stolen < 0.03) {
            return Ok(Some(report));
        }
        eprintln!("  disturbed; once more");
    }
    Ok(None)
}

async fn measured(
    running: &Running,
    client: &tokio_postgres::Client,
    load: &Load,
) -> anyhow::Result<Report> {
    let subject = Subject {
        address: running.address,
        requests: running.requests.clone(),
        states: running.states,
        processes: running.processes.clone(),
        client,
        told: running.told.clone(),
    };
    Ok(measure(&subject, load, &Progress::silent()).await?.0)
}

/// What a commit costs where 10,000 views are looked at and it is of one, and where there is one.
async fn views(options: &Options, table: &mut Table) -> anyhow::Result<()> {
    let one = Load {
        screens: 1,
        rate: 200.0,
        // Heartbeats come every five seconds.
        seconds: if options.smoke { 1 } else { 10 },
        idle: if options.smoke { 1 } else { 10 },
        rows: 1,
        ..Load::default()
    };
    let many = Load {
        screens: options.scaled(10_000),
        views: options.scaled(10_000),
        touched: Some(1),
        ..one.clone()
    };
    let database = Database::start(false).await?;
    let (mut ours, mut beside) = (Sample::default(), Sample::default());
    for _ in 0..rounds(options) {
        for (load, sample) in [(&many, &mut ours), (&one, &mut beside)] {
            match run(Kind::Rowcast, load, &database, options).await? {
                Some(report) => cpu_per_commit(&report)
                    .into_iter()
                    .for_each(|v| sample.add(v)),
                None => sample.disturbed += 1,
            }
        }
    }
    database.stop().await;
    let theirs = Some(("one view", beside));
    table.add("views", "CPU, µs/commit", ours, theirs, Goal::Times(1.2));
    Ok(())
}

/// How long a herd takes to see its state, and how often the database is asked for it.
async fn connect(options: &Options, table: &mut Table) -> anyhow::Result<()> {
    let load = Load {
        screens: options.scaled(10_000),
        rows: 100,
        rate: 1.0,
        seconds: 1,
        ..Load::default()
    };
    let (mut seconds, mut statements) = (Sample::default(), Sample::default());
    for _ in 0..rounds(options) {
        let undisturbed = quiet(options).await;
        let database = Database::start(false).await?;
        let (running, client) = Running::start(Kind::Rowcast, &load, &database).await?;
        // The relay's pools have no connection yet.
        client
            .batch_execute("alter database relayed set log_statement = 'all'")
            .await?;
        let before = asked(&database);
        let report = measured(&running, &client, &load).await;
        let asked = asked(&database) - before;
        running.stop().await;
        database.stop().await;
        if undisturbed || options.noisy {
            seconds.add(report?.connect.seconds);
            statements.add(asked);
        } else {
            seconds.disturbed += 1;
        }
    }
    table.add("connect", "seconds", seconds, None, Goal::AtMost(5.0));
    table.add(
        "connect",
        "statements",
        statements,
        None,
        Goal::AtMost(50.0),
    );
    Ok(())
}

/// Statements that read the table.
#[allow(clippy::cast_precision_loss, reason = "a few")]
fn asked(database: &Database) -> f64 {
    let log = database.log();
    let reads = log
        .lines()
        .filter(|line| line.contains("rowcast_bench") && line.to_lowercase().contains("select"));
    reads.count() as f64
}
