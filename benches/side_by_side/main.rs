//! Rowcast beside others, in one interleaved run: ratios, not numbers, because numbers are the
//! machine's.
//!
//! `make bench` runs everything, `make bench FIGURES="fan-1000 patch"` some of it.
//! Servers that are not installed are left out, and that is said. A run that was disturbed (the
//! hypervisor took time, or somebody else was busy before it) is repeated, and left out in the end.

mod fan_out;
mod servers;
mod table;
mod ways_in;
mod writers;

use std::time::Duration;

use clap::Parser;
use rowcast::cli::bench::process::Machine;

use table::Table;

/// Compares Rowcast with other servers and with what the kernel allows
#[derive(Debug, Clone, Parser)]
#[command(name = "side_by_side")]
struct Options {
    /// Figures to find; all of them without a name. `list` tells which there are
    figures: Vec<String>,
    /// Undisturbed runs of each
    #[arg(long, default_value = "5")]
    rounds: usize,
    /// Seconds of each run
    #[arg(long, default_value = "8")]
    seconds: u64,
    /// Keep disturbed runs
    #[arg(long)]
    noisy: bool,
    /// Everything once and small: only whether it works
    #[arg(long)]
    smoke: bool,
    /// Given by cargo
    #[arg(long, hide = true, action = clap::ArgAction::Count)]
    bench: u8,
}

impl Options {
    /// A number of the long form, or a small one.
    fn scaled(&self, number: u64) -> u64 {
        if self.smoke {
            (number / 100).clamp(1, 50)
        } else {
            number
        }
    }
}

/// What can be asked for.
const FIGURES: [(&str, &str); 13] = [
    (
        "fan-1000",
        "1,000 screens x 100 commits/s: CPU of the server for an event, p99",
    ),
    (
        "fan-10000",
        "10,000 screens x 10 commits/s: CPU of the server for an event",
    ),
    (
        "waiting",
        "16 commits at once: CPU for an event when several wait",
    ),
    (
        "saturated",
        "more commits than can be shown: events a second",
    ),
    ("near", "100 screens x 50 commits/s: p50"),
    ("idle-10000", "memory of an idle screen, 10,000 of them"),
    ("idle-19000", "the same, 19,000 of them"),
    (
        "views",
        "10,000 different views, of which one is touched, beside one view",
    ),
    (
        "connect",
        "10,000 screens at once, each with a state of 100 rows",
    ),
    (
        "writers",
        "pgbench with 1, 8 and 32 clients, by how writers tell that they wrote",
    ),
    ("bulk", "100,000 rows changed by one statement"),
    ("patch", "a row changed by PATCH, and by pgbench"),
    (
        "million",
        "a transaction of 1,000,000 rows, and what other views feel of it",
    ),
];

fn main() -> anyhow::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("write-loop") {
        return Ok(servers::write_loop()?);
    }
    let options = Options::parse();
    if options.figures == ["list"] {
        for (name, about) in FIGURES {
            println!("{name:<12} {about}");
        }
        return Ok(());
    }
    for name in &options.figures {
        anyhow::ensure!(
            FIGURES.iter().any(|(known, _)| known == name),
            "there is no figure {name:?}; list tells which there are"
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(&options))
}

async fn run(options: &Options) -> anyhow::Result<()> {
    let mut table = Table::default();
    let wanted =
        |name: &str| options.figures.is_empty() || options.figures.iter().any(|n| n == name);
    for (name, about) in FIGURES {
        if !wanted(name) {
            continue;
        }
        eprintln!("{name}: {about}");
        match name {
            "writers" => writers::rates(options, &mut table).await?,
            "bulk" => writers::bulk(options, &mut table).await?,
            "patch" => ways_in::patch(options, &mut table).await?,
            "million" => ways_in::million(options, &mut table).await?,
            name => fan_out::figure(name, options, &mut table).await?,
        }
    }
    if options.smoke {
        println!("all of it works; figures of so small runs mean nothing");
    } else {
        println!("{table}");
    }
    Ok(())
}

/// Waits until nobody else is busy; whether that came true.
async fn quiet(options: &Options) -> bool {
    const TRIES: usize = 20;
    if options.noisy || options.smoke {
        return true;
    }
    for _ in 0..TRIES {
        let before = Machine::now();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let Some((before, now)) = before.zip(Machine::now()) else {
            return true;
        };
        if now.busy_since(&before) < 0.1 {
            return true;
        }
    }
    false
}
