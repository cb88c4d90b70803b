//! `rowcast bench`: what this machine holds.
//!
//! Opens screens, commits rows at a rate, and tells what arrived, how late, and what that cost the
//! relay. It promises to be bounded in count and time, to leave nothing behind, and to say when a
//! figure is its own doing and not the relay's. What it is made of serves the comparison with other
//! servers (`benches/side_by_side`) too.

pub mod histogram;
mod plot;
pub mod process;
pub mod report;
pub mod screens;
pub mod stage;
pub mod tally;
pub mod wire;
pub mod writer;

use std::cell::Cell;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_postgres::Client;

use super::Told;
use super::print::{self, say};
use super::signals::Stop;
use crate::config::Config;
use crate::procfs;

use histogram::Histogram;
use process::{Cpu, Machine};
use report::{Asked, Changes, Connect, Latency, Relay, Report};
use screens::{Clock, Plan, Screens, Seen};
use stage::{Shape, Stage};
use writer::{Commit, Schedule, Written};

/// What the table of a run may have: more takes long to make, and disks.
const ROWS: u64 = 2_000_000;
const BYTES: u64 = 2_000_000_000;
/// Longest wait for all screens to have their state.
const OPENING: Duration = Duration::from_mins(2);
/// Longest wait for the last changes once all are committed, and how long none may arrive.
const DRAIN: Duration = Duration::from_secs(20);
const QUIET: Duration = Duration::from_secs(3);
/// Files that are open besides the screens: of this process, or of the relay.
const OTHER_FILES: u64 = 100;
/// A thread that reads for more of its time than this may be what is late.
const READER_IS_BUSY: f64 = 0.85;

/// What is to be held.
#[derive(Debug, Clone, Args)]
pub struct Load {
    /// Screens to open
    #[arg(long, default_value = "1000", value_parser = between(1, 100_000))]
    pub screens: u64,
    /// Rows to commit in a second, each in a transaction of its own
    #[arg(long, default_value = "100", value_parser = rate)]
    pub rate: f64,
    /// Of these, how many are sent at once
    #[arg(long, default_value = "1", value_parser = between(1, 10_000))]
    pub burst: u64,
    /// How long to commit, in seconds
    #[arg(long, default_value = "10", value_parser = between(1, 3600))]
    pub seconds: u64,
    /// Different views that the screens are spread over
    #[arg(long, default_value = "1", value_parser = between(1, 100_000))]
    pub views: u64,
    /// Of these, how many are written to; all by default
    #[arg(long, value_parser = between(1, 100_000))]
    pub touched: Option<u64>,
    /// Rows of each view, which are written to in turn; also what a screen's state is made of
    #[arg(long, default_value = "10", value_parser = between(1, 10_000))]
    pub rows: u64,
    /// Bytes of text in each row
    #[arg(long, default_value = "100", value_parser = between(0, 200_000))]
    pub size: u64,
    /// Seconds to look at the screens while nothing is committed
    #[arg(long, default_value = "0", value_parser = between(0, 600))]
    pub idle: u64,
}

/// What `rowcast bench` is asked.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The load
    #[command(flatten)]
    pub load: Load,
    /// Use a running relay, e.g. `http://127.0.0.1:3000`, and the database of --database-url,
    /// instead of both of its own
    #[arg(long)]
    pub url: Option<String>,
    /// The process of that relay, when it runs on this machine
    #[arg(long, requires = "url")]
    pub pid: Option<u32>,
    /// A token for that relay
    #[arg(long, requires = "url")]
    pub token: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Draw the latencies into this file
    #[arg(long)]
    pub svg: Option<PathBuf>,
}

fn between(least: u64, most: u64) -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(least..=most)
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.1..=100_000.0).contains(&rate) => Ok(rate),
        _ => Err("a number from 0.1 to 100000".to_owned()),
    }
}

impl Default for Load {
    fn default() -> Self {
        Self {
            screens: 1000,
            rate: 100.0,
            burst: 1,
            seconds: 10,
            views: 1,
            touched: None,
            rows: 10,
            size: 100,
            idle: 0,
        }
    }
}

impl Load {
    fn touched(&self) -> u64 {
        self.touched.unwrap_or(self.views).min(self.views)
    }

    /// The table that it needs.
    #[must_use]
    pub fn shape(&self) -> Shape {
        Shape {
            views: size(self.views),
            rows: self.rows,
            size: size(self.size),
        }
    }

    fn schedule(&self) -> Schedule {
        Schedule {
            rate: self.rate,
            lasts: Duration::from_secs(self.seconds),
            views: size(self.touched()),
            rows: self.rows,
            burst: self.burst,
        }
    }
}

/// What is measured: something that shows on screens what is committed.
pub struct Subject<'a> {
    /// Where it is.
    pub address: SocketAddr,
    /// The request of each view.
    pub requests: Vec<Arc<[u8]>>,
    /// Whether a stream begins with a state.
    pub states: bool,
    /// Its processes, when they are of this machine.
    pub processes: Vec<u32>,
    /// What commits.
    pub client: &'a Client,
    /// Who is told of each commit.
    pub told: Option<UnboundedSender<Commit>>,
}

pub(super) async fn run(config: Config, options: Options) -> anyhow::Result<ExitCode> {
    let load = &options.load;
    fits(load)?;
    if let Some(file) = &options.svg {
        is_writable(file)?;
    }
    if let Some(pid) = options.pid
        && cfg!(target_os = "linux")
        && procfs::resident(pid).is_none()
    {
        return Err(Told::new(
            format!("process {pid} cannot be measured"),
            "this machine has no such process",
            "--pid $(pidof rowcast), or none for a relay elsewhere",
        )
        .into());
    }
    // Signals are taken from here on, so that an early Ctrl-C clears everything away too.
    let mut stop = Stop::listen()?;
    let progress = Progress::new();
    let stage = match &options.url {
        None => {
            eprintln!("starting a PostgreSQL and a relay for this run");
            Stage::own(&config, load.shape()).await?
        }
        Some(url) => Stage::running(&config, load.shape(), url, options.pid).await?,
    };
    let token = options.token.as_deref();
    let subject = Subject {
        address: stage.address,
        requests: (0..load.views)
            .map(|view| stage::request(&stage.host, view, token))
            .collect(),
        states: true,
        processes: stage.relay.into_iter().collect(),
        client: &stage.client,
        told: None,
    };
    let measured = tokio::select! {
        measured = measure(&subject, load, &progress) => Some(measured),
        () = stop.asked() => None,
    };
    drop(subject);
    stage.clear().await;
    let Some(measured) = measured else {
        anyhow::bail!("interrupted; everything was cleared away");
    };
    let (report, seen) = measured?;
    if options.json {
        say!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print::text(format_args!("{report}"));
    }
    if let Some(file) = &options.svg {
        let title = format!(
            "{}, {} commits/s, {} s",
            report::count(load.screens, "screen"),
            report::number(load.rate),
            load.seconds
        );
        let svg = plot::svg(&title, &seen.latency, &seen.slots, real(load.seconds));
        std::fs::write(file, svg).map_err(|error| no_picture(file, &error))?;
    }
    Ok(if report.is_whole() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Refuses a file that cannot be written before a run instead of after it.
fn is_writable(file: &Path) -> Result<(), Told> {
    let was_there = file.exists();
    let opened = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(file);
    opened.map_err(|error| no_picture(file, &error))?;
    if !was_there {
        // A run that fails leaves none behind.
        std::fs::remove_file(file).map_err(|error| no_picture(file, &error))?;
    }
    Ok(())
}

fn no_picture(file: &Path, error: &std::io::Error) -> Told {
    Told::new(
        format!("the picture {} cannot be written", file.display()),
        error,
        "--svg with a file in a directory that is there and may be written to",
    )
}

/// Refuses what the system will not give.
fn fits(load: &Load) -> Result<(), Told> {
    let rows = load.views * load.rows;
    if rows > ROWS || rows * load.size > BYTES {
        return Err(Told::new(
            format!(
                "{} of {} rows of {} bytes each are too many",
                report::count(load.views, "view"),
                report::whole(load.rows),
                report::whole(load.size)
            ),
            format!(
                "the table of a run has at most {} rows and {} bytes of text",
                report::whole(ROWS),
                report::whole(BYTES)
            ),
            "fewer --views or --rows, or a smaller --size",
        ));
    }
    let wanted = load.screens + OTHER_FILES;
    if let Some((now, most)) = process::file_limit()
        && now < wanted
    {
        return Err(Told::new(
            format!(
                "{} screens need as many open files",
                report::whole(load.screens)
            ),
            format!("this process may open {now}, and {most} when it asks"),
            if most < wanted {
                format!(
                    "--screens {}, or a higher hard limit (limits.conf, LimitNOFILE=)",
                    now.saturating_sub(OTHER_FILES)
                )
            } else {
                format!("ulimit -n {wanted}, in the shell of this command and of the relay")
            },
        ));
    }
    if let Some(ports) = process::local_ports()
        && ports < load.screens
    {
        return Err(Told::new(
            format!(
                "{} screens need as many local ports",
                report::whole(load.screens)
            ),
            format!("there are {ports}"),
            "sysctl -w net.ipv4.ip_local_port_range='1024 65535'",
        ));
    }
    Ok(())
}

/// Where the costs of a time begin.
struct Since {
    at: Instant,
    subject: Cpu,
    me: Option<Cpu>,
    machine: Option<Machine>,
}

/// What a time has cost.
struct Cost {
    seconds: f64,
    /// Nothing where processes cannot be looked at.
    subject: Option<Duration>,
    me: Duration,
    machine: Option<report::Machine>,
}

impl Since {
    fn now(subject: &Subject<'_>) -> Self {
        Self {
            at: Instant::now(),
            subject: Cpu::of_all(&subject.processes),
            me: Cpu::of(std::process::id()),
            machine: Machine::now(),
        }
    }

    fn until(&self, now: &Self) -> Cost {
        let me = self.me.as_ref().zip(now.me.as_ref());
        let machine = self.machine.zip(now.machine);
        Cost {
            seconds: (now.at - self.at).as_secs_f64(),
            subject: (now.subject != Cpu::default()).then(|| now.subject.since(&self.subject)),
            me: me.map_or(Duration::ZERO, |(before, after)| after.since(before)),
            machine: machine.map(|(before, after)| report::Machine {
                cpus: std::thread::available_parallelism().map_or(1, usize::from),
                busy: after.busy_since(&before),
                stolen: after.stolen_since(&before),
            }),
        }
    }
}

/// Opens the screens, commits, and tells what came of it.
///
/// # Errors
/// When not all screens can be opened, or a commit fails.
pub async fn measure(
    subject: &Subject<'_>,
    load: &Load,
    say: &Progress,
) -> anyhow::Result<(Report, Seen)> {
    let clock = Clock::default();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let before = resident(subject);
    let plan = Plan {
        address: subject.address,
        requests: subject.requests.clone(),
        screens: (0..load.screens)
            .map(|screen| size(screen % load.views))
            .collect(),
        threads,
        states: subject.states,
        rows: load.rows,
        clock,
        lasts: Duration::from_secs(load.seconds),
    };
    let begun = clock.now();
    let screens = Screens::open(&plan)?;
    opened(&screens, load, say).await?;
    let opening = screens.ready_at().saturating_sub(begun);

    let open = Since::now(subject);
    sleep(Duration::from_secs(load.idle)).await;
    let idle = (load.idle > 0).then(|| open.until(&Since::now(subject)));
    let open = resident(subject);

    let (start, bytes) = (Since::now(subject), screens.bytes());
    screens.begin(clock.now());
    let written = {
        let told = subject.told.as_ref();
        let writing = writer::write(subject.client, load.schedule(), clock, told);
        tokio::select! {
            written = writing => written?,
            never = progress(&screens, say) => match never {},
        }
    };
    let expected = expected(&plan.screens, &written.committed);
    drain(&screens, expected).await;
    let cost = start.until(&Since::now(subject));
    let bytes = screens.bytes() - bytes;
    let after = resident(subject);
    let seen = screens.finish(&written.committed);
    say.done();

    let relay = cost.subject.map(|cpu| Relay {
        cpu_us_per_event: microseconds(cpu) / real(seen.delivered.max(1)),
        cpu_us_per_commit: microseconds(cpu) / real(written.commits().max(1)),
        cpus: cpu.as_secs_f64() / cost.seconds,
        idle_cpus: idle
            .as_ref()
            .and_then(|idle| Some(idle.subject?.as_secs_f64() / idle.seconds)),
        rss_bytes: open,
        rss_bytes_per_screen: real(open.saturating_sub(before)) / real(load.screens),
        rss_bytes_after: after,
    });
    let report = Report {
        asked: Asked {
            screens: size(load.screens),
            rate: load.rate,
            burst: load.burst,
            seconds: load.seconds,
            views: size(load.views),
            touched: size(load.touched()),
            rows: load.rows,
            size: size(load.size),
        },
        changes: changes(&seen, expected, bytes, &written, &cost),
        latency_ms: latency(&seen.latency),
        commit_ms: latency(&written.commit),
        connect: Connect {
            seconds: real(opening) / 1e6,
            each_ms: latency(&seen.connect),
        },
        relay,
        bench: report::Bench {
            cpu_us_per_event: microseconds(cost.me) / real(seen.delivered.max(1)),
            cpus: cost.me.as_secs_f64() / cost.seconds,
            slip_ms: latency(&written.slip),
            limits: limits(load, &written, &cost, threads),
        },
        machine: cost.machine,
    };
    Ok((report, seen))
}

fn changes(seen: &Seen, expected: u64, bytes: u64, written: &Written, cost: &Cost) -> Changes {
    Changes {
        committed: written.commits(),
        expected,
        delivered: seen.delivered,
        lost: seen.outcome.lost,
        folded: seen.outcome.folded,
        duplicated: seen.outcome.duplicated,
        out_of_order: seen.outcome.out_of_order,
        resets: seen.outcome.resets,
        closed: seen.closed,
        events_per_second: real(seen.delivered) / cost.seconds,
        bytes_per_event: real(bytes) / real(seen.delivered.max(1)),
    }
}

/// Waits until all screens have their state.
async fn opened(screens: &Screens, load: &Load, say: &Progress) -> Result<(), Told> {
    let begun = Instant::now();
    while !screens.all_ready() {
        let (closed, reason) = screens.closed();
        let failed = if closed > 0 {
            Some(reason.unwrap_or_default())
        } else {
            let late = begun.elapsed() > OPENING;
            late.then(|| format!("{} of them after {} s", screens.ready(), OPENING.as_secs()))
        };
        if let Some(found) = failed {
            // Whoever was refused has the relay's own words.
            let advice = if found.starts_with("cannot connect") {
                "--url with the address of a relay that runs (rowcast healthcheck), or fewer --screens"
            } else if found.starts_with("HTTP/") || found.contains("\"PGRST3") {
                "--url with the address of a relay; --token with a token that it takes"
            } else if found.starts_with('{') {
                "fewer --screens, --rows or bytes (--size), or higher limits where the relay runs"
            } else {
                "fewer --screens, or ulimit -n where the relay runs"
            };
            return Err(Told::new(
                format!("not all of {} screens could be opened", load.screens),
                found,
                advice,
            ));
        }
        say.now(&format!(
            "{} of {} screens open",
            report::whole(screens.ready()),
            report::whole(load.screens)
        ));
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Tells once a second what has arrived.
async fn progress(screens: &Screens, say: &Progress) -> std::convert::Infallible {
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = 0;
    for seconds in 0_u64.. {
        second.tick().await;
        let delivered = screens.delivered();
        say.now(&format!(
            "{seconds} s: {} changes have arrived, {} in the last second",
            report::whole(delivered),
            report::whole(delivered - before)
        ));
        before = delivered;
    }
    std::future::pending().await
}

/// Waits for what is under way.
async fn drain(screens: &Screens, expected: u64) {
    let begun = Instant::now();
    let (mut seen, mut since) = (screens.delivered(), Instant::now());
    while seen < expected && begun.elapsed() < DRAIN && since.elapsed() < QUIET {
        sleep(Duration::from_millis(5)).await;
        let now = screens.delivered();
        if now > seen {
            (seen, since) = (now, Instant::now());
        }
    }
}

fn expected(screens: &[usize], committed: &[u64]) -> u64 {
    let each = screens.iter().map(|view| committed.get(*view));
    each.flatten().sum()
}

/// What was not the relay's doing.
fn limits(load: &Load, written: &Written, cost: &Cost, threads: usize) -> Vec<String> {
    let mut limits = Vec::new();
    let took = written.took.as_secs_f64();
    let rate = real(written.commits()) / took.max(0.001);
    if written.held_up > 0 || (rate < load.rate * 0.95 && took > real(load.seconds) * 1.05) {
        limits.push(format!(
            "the database was the limit: {} of {} commits/s, p99 of a commit {} ms",
            report::number(rate),
            report::number(load.rate),
            report::number(milliseconds(written.commit.quantile(0.99)))
        ));
    }
    let slip = written.slip.quantile(0.99);
    if written.held_up == 0 && slip > 5_000 {
        limits.push(format!(
            "commits were sent late (p99 {} ms): the machine had no time for the schedule",
            report::number(milliseconds(slip))
        ));
    }
    let reading = cost.me.as_secs_f64() / cost.seconds / real(threads as u64);
    if reading > READER_IS_BUSY {
        limits.push(format!(
            "the screens were the limit: reading them kept {threads} threads {} % busy",
            report::number(reading * 100.0)
        ));
    }
    if let Some(machine) = &cost.machine {
        if machine.busy > 0.95 {
            limits.push(
                "the processors were all busy: relay, database and screens shared them, \
                 and latencies are those of waiting for one"
                    .to_owned(),
            );
        }
        if machine.stolen > 0.02 {
            limits.push(format!(
                "{} % of the time was given to other machines: repeat it",
                report::number(machine.stolen * 100.0)
            ));
        }
        let others = machine.busy * real(machine.cpus as u64)
            - cost.me.as_secs_f64() / cost.seconds
            - cost.subject.unwrap_or_default().as_secs_f64() / cost.seconds;
        if cost.subject.is_some() && others > real(machine.cpus as u64) * 0.5 {
            limits.push(format!(
                "others, the database among them, kept {} of {} CPUs busy",
                report::number(others),
                machine.cpus
            ));
        }
    }
    limits
}

fn latency(histogram: &Histogram) -> Latency {
    let at = |share| milliseconds(histogram.quantile(share));
    Latency {
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p99_9: at(0.999),
        max: milliseconds(histogram.most()),
    }
}

fn resident(subject: &Subject<'_>) -> u64 {
    let each = subject.processes.iter();
    each.filter_map(|pid| procfs::resident(*pid)).sum()
}

fn milliseconds(microseconds: u64) -> f64 {
    real(microseconds) / 1000.0
}

fn microseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

#[allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn real(count: u64) -> f64 {
    count as f64
}

/// A number that was checked to be small.
fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Says on the error output how far a run is.
pub struct Progress {
    /// One line that changes, or one line a second.
    terminal: bool,
    silent: bool,
    told: Cell<Option<Instant>>,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// For a person who waits.
    #[must_use]
    pub fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
            silent: false,
            told: Cell::new(None),
        }
    }

    /// Says nothing.
    #[must_use]
    pub fn silent() -> Self {
        Self {
            silent: true,
            ..Self::new()
        }
    }

    /// What is so now; not more than once a second.
    fn now(&self, text: &str) {
        const OFTEN: Duration = Duration::from_millis(900);
        if self.silent || self.told.get().is_some_and(|told| told.elapsed() < OFTEN) {
            return;
        }
        self.told.set(Some(Instant::now()));
        if self.terminal {
            eprint!("\r\x1b[K{text}");
        } else {
            eprintln!("{text}");
        }
    }

    fn done(&self) {
        if self.terminal && !self.silent {
            eprint!("\r\x1b[K");
        }
    }
}
