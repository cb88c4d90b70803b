//! What a run needs: a database with a table, and a relay in front of it.
//!
//! Both of its own, thrown away afterwards, or a running relay and the database behind it. The
//! relay is a process of its own also then, so that its processor time and memory are its alone.

use std::fs::{DirBuilder, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::super::{Told, database};
use crate::causes::Causes;
use crate::config::Config;
use crate::postgres::embedded::{Cluster, Options};

/// The table of a run.
pub const TABLE: &str = "rowcast_bench";
/// Longest wait for a relay of our own.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is asked of the table.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Different views, each of rows of its own.
    pub views: usize,
    /// Rows of each.
    pub rows: u64,
    /// Bytes of text in each row.
    pub size: usize,
}

/// Where a run takes place.
pub struct Stage {
    /// Of the relay.
    pub address: SocketAddr,
    /// What requests say in `Host`.
    pub host: String,
    /// The relay's process, when it is known.
    pub relay: Option<u32>,
    /// What commits.
    pub client: Client,
    own: Option<Own>,
}

/// What was started for one run.
struct Own {
    directory: PathBuf,
    cluster: Cluster,
    relay: Child,
    /// Ends the relay when we are killed: its pipe closes then.
    warden: Child,
}

impl Stage {
    /// A database and a relay of our own.
    ///
    /// # Errors
    /// When PostgreSQL is missing, or one of them does not start.
    pub async fn own(config: &Config, shape: Shape) -> anyhow::Result<Self> {
        let directory = throw_away()?;
        let options = Options {
            data_dir: directory.join("d"),
            durable: false,
            extra_settings: Vec::new(),
            max_connections: 100,
            pg_bin: config.pg_bin.clone(),
        };
        let cluster = Cluster::start(options).await.map_err(|error| {
            remove(&directory);
            Told::new(
                &error,
                error
                    .found()
                    .unwrap_or_default()
                    .replace('\n', "\n         "),
                error.advice(),
            )
        })?;
        let started = Self::with_relay(config, shape, &cluster).await;
        match started {
            Ok((stage, relay, warden)) => Ok(Self {
                own: Some(Own {
                    directory,
                    cluster,
                    relay,
                    warden,
                }),
                ..stage
            }),
            Err(error) => {
                cluster.stop().await;
                remove(&directory);
                Err(error)
            }
        }
    }

    async fn with_relay(
        config: &Config,
        shape: Shape,
        cluster: &Cluster,
    ) -> anyhow::Result<(Self, Child, Child)> {
        let target = cluster.target("postgres");
        let mut command = Command::new(std::env::current_exe()?);
        // Settings that are meant for another relay must not reach this one.
        let kept = |name: &str| matches!(name, "PATH" | "RUST_LOG" | "LANG" | "MALLOC_CONF");
        let environment = std::env::vars().filter(|(name, _)| kept(name));
        let bell = config.bell.to_possible_value();
        command
            .env_clear()
            .envs(environment)
            .args(["serve", "--listen", "127.0.0.1:0", "--database-url"])
            .arg(conninfo(cluster)?)
            .args(["--pool", &config.pool.to_string()])
            .args(bell.iter().flat_map(|bell| ["--bell", bell.get_name()]))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // Ctrl-C is ours to take.
            .process_group(0)
            .kill_on_drop(true);
        let mut relay = command.spawn()?;
        let pid = relay.id();
        let warden = warden(pid.unwrap_or_default())?;
        let address = tokio::time::timeout(PATIENCE, said(&mut relay)).await;
        let Ok(Some(address)) = address else {
            return Err(Told::new(
                "a relay for the run does not start",
                "what it said is above",
                "rowcast serve",
            )
            .into());
        };
        let client = database::connect(&target).await?;
        prepare(&client, shape, "").await?;
        let stage = Self {
            host: address.to_string(),
            address,
            relay: pid,
            client,
            own: None,
        };
        Ok((stage, relay, warden))
    }

    /// A running relay, and the database that it serves.
    ///
    /// # Errors
    /// When the address is none, or the database cannot be used.
    pub async fn running(
        config: &Config,
        shape: Shape,
        url: &str,
        relay: Option<u32>,
    ) -> anyhow::Result<Self> {
        let (host, address) = address(url).await?;
        let Some(target) = database::given(config)? else {
            return Err(Told::new(
                "rows cannot be committed",
                "no DATABASE_URL and no PGHOST",
                "--database-url with the database that the relay serves",
            )
            .into());
        };
        let client = database::connect(&target).await?;
        prepare(&client, shape, "grant select on rowcast_bench to public").await?;
        Ok(Self {
            address,
            host,
            relay,
            client,
            own: None,
        })
    }

    /// Clears everything away.
    pub async fn clear(self) {
        if let Some(mut own) = self.own {
            // The warden first: it would hit whoever gets the relay's number next.
            let _killed = own.warden.kill().await;
            let _killed = own.relay.kill().await;
            own.cluster.stop().await;
            remove(&own.directory);
            return;
        }
        let drop = format!("select rowcast.unwatch('{TABLE}'); drop table {TABLE}");
        if let Err(error) = self.client.batch_execute(&drop).await {
            eprintln!("the table {TABLE} was left behind: {}", Causes(&error));
        }
    }
}

/// A directory that PostgreSQL's user can reach.
fn throw_away() -> std::io::Result<PathBuf> {
    // Root's own temp directory may be closed to PostgreSQL's user; this one is not.
    let name = format!("rowcast-bench-{}", std::process::id());
    let directory = Path::new("/tmp").join(name);
    DirBuilder::new().mode(0o700).create(&directory)?;
    std::fs::set_permissions(&directory, Permissions::from_mode(0o711))?;
    Ok(directory)
}

fn remove(directory: &Path) {
    if let Err(error) = std::fs::remove_dir_all(directory) {
        eprintln!("{} was left behind: {error}", directory.display());
    }
}

/// A key-value string without a password: its socket lets in whoever may reach it.
fn conninfo(cluster: &Cluster) -> anyhow::Result<String> {
    let (arguments, _) = cluster.target("postgres").psql_arguments();
    arguments
        .into_iter()
        .nth(1)
        .ok_or_else(|| anyhow::anyhow!("psql is told where the database is"))
}

/// Kills process `pid` when the pipe to it closes, however we end.
fn warden(pid: u32) -> std::io::Result<Child> {
    Command::new("/bin/sh")
        .args([
            "-c",
            "cat; kill -9 \"$1\"",
            "rowcast-bench",
            &pid.to_string(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
}

/// Where a relay says that it is.
async fn said(relay: &mut Child) -> Option<SocketAddr> {
    let mut lines = BufReader::new(relay.stdout.take()?).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(url) = line.strip_prefix("api   http://") {
            return url.split('/').next()?.parse().ok();
        }
    }
    None
}

/// Host and address of a URL.
async fn address(url: &str) -> Result<(String, SocketAddr), Told> {
    let wrong = |found: String| {
        Told::new(
            format!("\"{url}\" is not the address of a relay"),
            found,
            "--url http://127.0.0.1:3000; TLS is not spoken here",
        )
    };
    let rest = url
        .strip_prefix("http://")
        .ok_or_else(|| wrong("it does not begin with http://".to_owned()))?;
    let host = rest.split('/').next().unwrap_or_default();
    let with_port = if host.rsplit(']').next().is_some_and(|end| end.contains(':')) {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let mut found = tokio::net::lookup_host(with_port)
        .await
        .map_err(|error| wrong(error.to_string()))?;
    let address = found.next();
    let address = address.ok_or_else(|| wrong("no address".to_owned()))?;
    Ok((host.to_owned(), address))
}

/// SQL that makes the table.
#[must_use]
pub fn table(shape: Shape) -> String {
    let Shape { views, rows, size } = shape;
    format!(
        "create table {TABLE} (id bigint primary key, view integer not null, \
           seq bigint not null default 0, sent bigint not null default 0, body text not null); \
         insert into {TABLE} (id, view, body) \
         select v * {rows}::bigint + r, v, repeat('x', {size}) \
         from generate_series(0, {views} - 1) v, generate_series(0, {rows} - 1) r; \
         create index on {TABLE} (view); "
    )
}

/// The request for one of the views.
#[must_use]
pub fn request(host: &str, view: u64, token: Option<&str>) -> Arc<[u8]> {
    let authorization = token.map_or(String::new(), |token| {
        format!("Authorization: Bearer {token}\r\n")
    });
    let request = format!(
        "GET /rest/v1/{TABLE}?view=eq.{view} HTTP/1.1\r\nHost: {host}\r\n\
         Accept: text/event-stream\r\n{authorization}\r\n"
    );
    Arc::from(request.into_bytes())
}

/// Makes the table, lets `grant` say who may read it, and watches it: in this order, because a grant to a watched
/// table lets its screens read anew.
async fn prepare(client: &Client, shape: Shape, grant: &str) -> Result<(), Told> {
    let sql = table(shape) + &format!("{grant}; select rowcast.watch('{TABLE}')");
    client.batch_execute(&sql).await.map_err(|error| {
        let advice = match error.code() {
            Some(&SqlState::DUPLICATE_TABLE) => {
                "drop table rowcast_bench, which a run that was cut off has left"
            }
            Some(&(SqlState::INVALID_SCHEMA_NAME | SqlState::UNDEFINED_FUNCTION)) => {
                "--database-url with the database that the relay serves"
            }
            Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                "--database-url with a login that may make tables and watch them"
            }
            _ => "rowcast doctor",
        };
        Told::new(
            format!("the table {TABLE} cannot be made"),
            Causes(&error),
            advice,
        )
    })
}
