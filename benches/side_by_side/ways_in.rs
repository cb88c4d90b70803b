//! Requests that write, and a transaction that is too large to be told.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rowcast::cli::bench::process::Cpu;
use rowcast::cli::bench::{Load, Progress, Subject, measure};
use rowcast::procfs;
use tokio::task::spawn_blocking;

use super::servers::{Database, Kind, Running};
use super::table::{Goal, Sample, Table};
use super::writers::{self, one_row, pgbench, rounds, rows};
use super::{Options, quiet};

/// The same change by PATCH and by pgbench, one after the other on one connection, and on eight.
pub async fn patch(options: &Options, table: &mut Table) -> anyhow::Result<()> {
    const COUNT: u64 = 10_000;
    let lasts = Duration::from_secs(if options.smoke { 1 } else { 4 });
    let database = Database::start(false).await?;
    let client = database.create("written").await?;
    client.batch_execute(&rows(COUNT)).await?;
    let relay = Running::rowcast(&database.conninfo("written")?, 0, &[]).await?;
    client
        .batch_execute("select rowcast.watch('accounts')")
        .await?;
    let naive = Running::naive(&database.conninfo("written")?).await?;
    // What a request has to do besides: who it is, and how long it may take.
    let transaction = format!(
        "\\set id random(1, {COUNT})\nbegin;\nset local statement_timeout = 8000;\n\
         set local lock_timeout = 2000;\nset local idle_in_transaction_session_timeout = 10000;\n\
         update accounts set cnt = cnt + 1, updated = now() where id = :id;\ncommit;\n"
    );
    for clients in [1, 8] {
        let mut samples = [const { Sample::new() }; 5];
        for _ in 0..rounds(options) {
            let undisturbed = quiet(options).await;
            let patch = async |address| {
                spawn_blocking(move || patches(address, clients, lasts, COUNT)).await?
            };
            let before = Cpu::of_all(&relay.processes);
            let patched = patch(relay.address).await?;
            let cpu = Cpu::of_all(&relay.processes).since(&before);
            let bare = patch(naive.address).await?;
            let plain = pgbench(&database, &one_row(COUNT), clients, lasts).await?;
            let whole = pgbench(&database, &transaction, clients, lasts).await?;
            let figures = [
                1e6 / patched,
                1e6 / plain,
                1e6 / whole,
                1e6 / bare,
                cpu.as_secs_f64() * 1e6 / (patched * lasts.as_secs_f64()),
            ];
            for (sample, figure) in samples.iter_mut().zip(figures) {
                if undisturbed {
                    sample.add(figure);
                } else {
                    sample.disturbed += 1;
                }
            }
        }
        let [ours, plain, whole, bare, cpu] = samples;
        let what = format!("µs/PATCH, {clients} at once");
        let goal = if clients == 1 {
            Goal::Times(1.3)
        } else {
            Goal::None
        };
        let beside = Some(("pgbench", plain.clone()));
        table.add("patch", &what, ours.clone(), beside, goal);
        let beside = Some(("pgbench, with BEGIN, SET and COMMIT", whole));
        table.add("patch", &what, ours.clone(), beside, Goal::None);
        let beside = Some(("naive axum, one statement", bare.clone()));
        table.add("patch", &what, ours, beside, Goal::None);
        let what = format!("µs/PATCH of naive axum, {clients} at once");
        let beside = Some(("pgbench", plain));
        table.add("patch", &what, bare, beside, Goal::None);
        let what = format!("CPU of the relay, µs/PATCH, {clients} at once");
        table.add("patch", &what, cpu, None, Goal::None);
    }
    naive.stop().await;
    relay.stop().await;
    database.stop().await;
    Ok(())
}

/// Requests a second of this many connections.
#[allow(clippy::cast_precision_loss, reason = "a rate")]
fn patches(address: SocketAddr, clients: usize, lasts: Duration, rows: u64) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let each = (0..clients).map(|_| {
        std::thread::spawn(move || -> anyhow::Result<u64> {
            let mut socket = TcpStream::connect(address)?;
            socket.set_nodelay(true)?;
            socket.set_read_timeout(Some(Duration::from_secs(10)))?;
            let mut answer = [0; 4096];
            let mut count = 0;
            while begun.elapsed() < lasts {
                let body = format!(r#"{{"cnt":{count},"updated":"2026-11-23T12:00:00Z"}}"#);
                let request = format!(
                    "PATCH /rest/v1/accounts?id=eq.{} HTTP/1.1\r\nHost: {address}\r\n\
                     Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                    fastrand::u64(1..=rows),
                    body.len()
                );
                socket.write_all(request.as_bytes())?;
                let mut length = 0;
                while !answer[..length].ends_with(b"\r\n\r\n") {
                    let read = socket.read(&mut answer[length..])?;
                    ensure!(read > 0, "the relay closed the connection");
                    length += read;
                }
                let answer = String::from_utf8_lossy(&answer[..length]);
                ensure!(answer.starts_with("HTTP/1.1 204"), "{answer}");
                count += 1;
            }
            Ok(count)
        })
    });
    let each: Vec<_> = each.collect();
    let mut count = 0;
    for thread in each {
        count += thread.join().ok().context("a client panicked")??;
    }
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}

/// Who changes a million rows.
#[derive(Clone, Copy, PartialEq)]
enum Large {
    Nobody,
    /// In a table that is not watched: what PostgreSQL alone makes others feel of it.
    Unwatched,
    Watched,
}

/// A transaction of a million rows, beside a view of another table.
pub async fn million(options: &Options, table: &mut Table) -> anyhow::Result<()> {
    let count = options.scaled(1_000_000);
    let load = Load {
        screens: options.scaled(1000).max(10),
        rate: 50.0,
        seconds: if options.smoke { 2 } else { 30 },
        ..Load::default()
    };
    let mut memory = Sample::default();
    let [mut without, mut unwatched, mut with] = [(); 3].map(|()| Sample::default());
    for _ in 0..rounds(options).min(3) {
        for large in [Large::Nobody, Large::Unwatched, Large::Watched] {
            let undisturbed = quiet(options).await;
            let database = Database::start(false).await?;
            let (running, client) = Running::start(Kind::Rowcast, &load, &database).await?;
            client.batch_execute(&writers::rows(count)).await?;
            if large != Large::Unwatched {
                client
                    .batch_execute("select rowcast.watch('accounts')")
                    .await?;
            }
            let pids = running.processes.clone();
            let resident = move || {
                pids.iter()
                    .filter_map(|pid| procfs::resident(*pid))
                    .sum::<u64>()
            };
            let other = database.connect("relayed").await?;
            let changing = tokio::spawn(async move {
                // In the midst of it.
                tokio::time::sleep(Duration::from_secs(1)).await;
                let before = resident();
                if large != Large::Nobody {
                    other
                        .batch_execute("update accounts set cnt = cnt + 1")
                        .await?;
                }
                let mut most = before;
                let begun = Instant::now();
                while begun.elapsed() < Duration::from_secs(3) {
                    most = most.max(resident());
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Ok::<u64, tokio_postgres::Error>(most - before)
            });
            let subject = Subject {
                address: running.address,
                requests: running.requests.iter().map(Arc::clone).collect(),
                states: true,
                processes: running.processes.clone(),
                client: &client,
                told: None,
            };
            let measured = measure(&subject, &load, &Progress::silent()).await;
            let grown = changing.await?;
            running.stop().await;
            drop(client);
            database.stop().await;
            let (report, _) = measured?;
            ensure!(report.is_whole(), "{report}");
            if !(undisturbed || options.noisy) {
                with.disturbed += 1;
                continue;
            }
            let sample = match large {
                Large::Nobody => &mut without,
                Large::Unwatched => &mut unwatched,
                Large::Watched => {
                    #[allow(clippy::cast_precision_loss, reason = "megabytes")]
                    memory.add(grown? as f64 / 1e6);
                    &mut with
                }
            };
            sample.add(report.latency_ms.p99);
        }
    }
    table.add(
        "million",
        "MB more in the relay",
        memory,
        None,
        Goal::AtMost(128.0),
    );
    for (beside, goal) in [
        (("without it", without), Goal::Times(2.0)),
        (("unwatched", unwatched), Goal::None),
    ] {
        let what = "p99 of another view, ms";
        table.add("million", what, with.clone(), Some(beside), goal);
    }
    Ok(())
}
