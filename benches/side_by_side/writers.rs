//! What watching costs those who write, by how they tell that they wrote.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::StreamExt;
use tokio::process::Command;
use tokio_postgres::{AsyncMessage, Client, NoTls};

use super::servers::{Database, Running};
use super::table::{Goal, Sample, Table};
use super::{Options, quiet};

/// How a table tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bell {
    /// It does not.
    None,
    /// The row in the payload, to one listener.
    Payload,
    /// A relay with `--bell always`.
    Always,
    /// A relay with `--bell auto`.
    Auto,
    /// The same, of a table that is captured by statement.
    Statement,
}

const BELLS: [Bell; 4] = [Bell::None, Bell::Payload, Bell::Always, Bell::Auto];

impl Bell {
    fn name(self) -> &'static str {
        match self {
            Self::None => "no trigger",
            Self::Payload => "row in payload",
            Self::Always => "bell always",
            Self::Auto => "bell auto",
            Self::Statement => "bell auto, by statement",
        }
    }
}

/// Somebody who listens while a table is written to.
enum Listener {
    Nobody,
    Relay(Box<Running>),
    Plain(tokio::task::JoinHandle<()>),
}

impl Listener {
    async fn stop(self) {
        match self {
            Self::Nobody => {}
            Self::Relay(relay) => relay.stop().await,
            Self::Plain(task) => task.abort(),
        }
    }
}

/// 100 bytes of text beside a few small columns: an image of about 200 bytes.
pub fn rows(count: u64) -> String {
    format!(
        "create table accounts (id int primary key, grp int, cnt int, title text, body text, \
           updated timestamptz default now()); \
         insert into accounts select i, i % 100, 0, 'title ' || i, repeat('x', 100) \
         from generate_series(1, {count}) i"
    )
}

const PAYLOAD: &str = "create function tell() returns trigger language plpgsql as $$ \
    begin perform pg_notify('naive', row_to_json(new)::text); return null; end $$; \
    create trigger tell after insert or update on accounts for each row execute function tell()";

/// A table that tells this way, and who listens.
async fn start(bell: Bell, database: &Database, count: u64) -> anyhow::Result<(Client, Listener)> {
    let client = database.create("written").await?;
    client.batch_execute(&rows(count)).await?;
    let conninfo = database.conninfo("written")?;
    let listener = match bell {
        Bell::None => Listener::Nobody,
        Bell::Payload => {
            client.batch_execute(PAYLOAD).await?;
            let (listener, mut connection) = tokio_postgres::connect(&conninfo, NoTls).await?;
            let reading = tokio::spawn(async move {
                let mut messages =
                    futures::stream::poll_fn(move |context| connection.poll_message(context));
                let mut heard = 0_usize;
                while let Some(Ok(message)) = messages.next().await {
                    if let AsyncMessage::Notification(row) = message {
                        heard += row.payload().len();
                    }
                }
                tracing::debug!(heard, "the listener ended");
            });
            listener.batch_execute("listen naive").await?;
            // The connection ends with its client.
            Listener::Plain(tokio::spawn(async move {
                let _listener = listener;
                let _ended = reading.await;
            }))
        }
        Bell::Always | Bell::Auto | Bell::Statement => {
            let rings = if bell == Bell::Always {
                "always"
            } else {
                "auto"
            };
            let relay = Running::rowcast(&conninfo, 0, &["--bell", rings]).await?;
            let watch = if bell == Bell::Statement {
                "select rowcast.watch('accounts', 'statement')"
            } else {
                "select rowcast.watch('accounts')"
            };
            client.batch_execute(watch).await?;
            Listener::Relay(Box::new(relay))
        }
    };
    for tidy in ["vacuum analyze accounts", "checkpoint"] {
        client.batch_execute(tidy).await?;
    }
    Ok((client, listener))
}

/// What sessions do first is left out: while they learn the plans of a trigger they do three quarters of what
/// they do later, and without a trigger nine tenths (measured).
const WARMING: Duration = Duration::from_secs(2);

/// Transactions a second, from what pgbench says of each second.
pub async fn pgbench(
    database: &Database,
    script: &str,
    clients: usize,
    lasts: Duration,
) -> anyhow::Result<f64> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), script)?;
    let output = Command::new(database.program("pgbench"))
        .args([
            "-n",
            "-M",
            "prepared",
            "-j",
            "2",
            "-c",
            &clients.to_string(),
            "-P",
            "1",
        ])
        .args(["-T", &(WARMING + lasts).as_secs().to_string(), "-f"])
        .arg(file.path())
        .arg(database.conninfo("written")?)
        .kill_on_drop(true)
        .output()
        .await
        .context("pgbench: apt-get install postgresql-contrib")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let (mut sum, mut seconds) = (0.0, 0_u32);
    for line in said.lines() {
        let Some((at, tps)) = progress(line) else {
            continue;
        };
        if at > WARMING.as_secs_f64() + 0.5 {
            sum += tps;
            seconds += 1;
        }
    }
    ensure!(
        seconds > 0 && output.status.success(),
        "pgbench: {}{said}",
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(sum / f64::from(seconds))
}

/// From a line like `progress: 3.0 s, 21034.1 tps, lat 1.521 ms stddev 0.4, 0 failed` the seconds since the
/// start and the transactions a second.
fn progress(line: &str) -> Option<(f64, f64)> {
    let (at, rest) = line.strip_prefix("progress: ")?.split_once(" s, ")?;
    let (tps, _) = rest.split_once(" tps")?;
    Some((at.parse().ok()?, tps.parse().ok()?))
}

/// pgbench's words for changing one row of many.
pub fn one_row(count: u64) -> String {
    format!(
        "\\set id random(1, {count})\nupdate accounts set cnt = cnt + 1, updated = now() where id = :id;\n"
    )
}

/// Single-row updates by 1, 8 and 32 clients.
pub async fn rates(options: &Options, table: &mut Table) -> anyhow::Result<()> {
    let count = options.scaled(100_000) * if options.smoke { 10 } else { 1 };
    let lasts = Duration::from_secs(if options.smoke { 1 } else { options.seconds });
    let every = [1, 8, 32];
    let clients = if options.smoke {
        &every[1..2]
    } else {
        &every[..]
    };
    let database = Database::start(true).await?;
    for clients in clients {
        let mut samples = BELLS.map(|_| Sample::default());
        for _ in 0..rounds(options) {
            let mut order: Vec<usize> = (0..BELLS.len()).collect();
            fastrand::shuffle(&mut order);
            for at in order {
                let undisturbed = quiet(options).await;
                let (_client, listener) = start(BELLS[at], &database, count).await?;
                let tps = pgbench(&database, &one_row(count), *clients, lasts).await;
                listener.stop().await;
                let tps = tps?;
                eprintln!("  {clients} clients, {}: {tps:.0}/s", BELLS[at].name());
                if undisturbed {
                    samples[at].add(tps);
                } else {
                    samples[at].disturbed += 1;
                }
            }
        }
        let [none, payload, always, auto] = samples;
        let what = |bell: Bell| format!("tps, {clients} clients, {}", bell.name());
        let beside = || Some((Bell::None.name(), none.clone()));
        let goal = if *clients == 32 {
            Goal::AtLeastTimes(0.6)
        } else {
            Goal::None
        };
        table.add("writers", &what(Bell::Auto), auto, beside(), goal);
        table.add("writers", &what(Bell::Always), always, beside(), Goal::None);
        table.add(
            "writers",
            &what(Bell::Payload),
            payload,
            beside(),
            Goal::None,
        );
    }
    database.stop().await;
    Ok(())
}

/// All rows by one statement.
pub async fn bulk(options: &Options, table: &mut Table) -> anyhow::Result<()> {
    let count = options.scaled(100_000) * if options.smoke { 10 } else { 1 };
    let bells = [Bell::None, Bell::Payload, Bell::Auto, Bell::Statement];
    let mut samples = bells.map(|_| Sample::default());
    let database = Database::start(true).await?;
    for _ in 0..rounds(options) {
        for (bell, sample) in bells.iter().zip(&mut samples) {
            let undisturbed = quiet(options).await;
            let (client, listener) = start(*bell, &database, count).await?;
            let begun = Instant::now();
            let done = client
                .batch_execute("update accounts set cnt = cnt + 1")
                .await;
            let took = begun.elapsed().as_secs_f64();
            listener.stop().await;
            done?;
            eprintln!("  {}: {took:.2} s", bell.name());
            if undisturbed {
                sample.add(took);
            } else {
                sample.disturbed += 1;
            }
        }
    }
    database.stop().await;
    let [none, payload, auto, statement] = samples;
    let beside = || Some((Bell::None.name(), none.clone()));
    let goal = Goal::Times(3.5);
    table.add("bulk", "s, bell auto", auto, beside(), goal);
    table.add("bulk", "s, by statement", statement, beside(), goal);
    table.add("bulk", "s, row in payload", payload, beside(), Goal::None);
    Ok(())
}

/// How many runs.
pub fn rounds(options: &Options) -> usize {
    if options.smoke { 1 } else { options.rounds }
}
