//! The settings: flags over environment over defaults, as validated plain data.
//!
//! It names no other room, and nobody but `cli` reads flags or the environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

/// What can be set. Every flag has an environment variable.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// Address and port to serve on
    #[arg(
        long,
        env = "ROWCAST_LISTEN",
        default_value = "127.0.0.1:3000",
        global = true
    )]
    pub listen: SocketAddr,

    /// The database; without it and without PG*, a private one is started
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, global = true)]
    pub database_url: Option<String>,

    /// Where the private database lives
    #[arg(long, env = "ROWCAST_DATA_DIR", global = true)]
    pub data_dir: Option<PathBuf>,

    /// Directory of the PostgreSQL programs for the private database
    #[arg(long, env = "ROWCAST_PG_BIN", global = true)]
    pub pg_bin: Option<PathBuf>,

    /// The schema whose tables have URLs
    #[arg(long, env = "ROWCAST_SCHEMA", default_value = "public", global = true)]
    pub schema: String,

    /// An origin whose pages may write and watch (may be given several times, or as a list)
    #[arg(
        long,
        env = "ROWCAST_ALLOW_ORIGIN",
        value_delimiter = ',',
        global = true
    )]
    pub allow_origin: Vec<String>,

    /// Seconds that a screen may be away and still resume
    #[arg(long, env = "ROWCAST_RETENTION", default_value = "3600", value_parser = seconds, global = true)]
    pub retention: Duration,

    /// Whether writers ring: auto leaves the bell off where two-phase commit is in use
    #[arg(long, env = "ROWCAST_BELL", default_value = "auto", global = true)]
    pub bell: Bell,

    /// How the log is written
    #[arg(
        long,
        env = "ROWCAST_LOG_FORMAT",
        default_value = "text",
        global = true
    )]
    pub log_format: LogFormat,

    /// Connections for requests
    #[arg(long, env = "ROWCAST_POOL", default_value = "8", global = true)]
    pub pool: usize,
}

/// Whether commits of writers ring the bell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bell {
    /// Unless `max_prepared_transactions` is set: PREPARE TRANSACTION fails after a NOTIFY
    Auto,
    /// Also then
    Always,
    /// Never: the relay polls
    Off,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// For machines
    Json,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(seconds) if seconds >= 60 => Ok(Duration::from_secs(seconds)),
        Ok(_) => Err("at least 60 seconds".to_owned()),
        Err(_) => Err("a whole number of seconds".to_owned()),
    }
}
