//! The settings: flags over environment over defaults, as validated plain data.
//!
//! It names no other room, and nobody but `cli` reads flags or the environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};

/// What can be set. Every flag has an environment variable.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// Address and port to serve on
    #[arg(
        long,
        env = "ROWCAST_LISTEN",
        default_value = "127.0.0.1:3000",
        value_parser = address,
        global = true
    )]
    pub listen: SocketAddr,

    /// A second address, for operators: health, counters, and what `rowcast trace` asks. Keep it on
    /// loopback or a private network
    #[arg(long, env = "ROWCAST_OPS_LISTEN", value_parser = address, global = true)]
    pub ops_listen: Option<SocketAddr>,

    /// The database; without it and without PG*, a private one is started
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_parser = given(), global = true)]
    pub database_url: Option<String>,

    /// The same database as the login that requests run as; it should have no right but to
    /// become the roles of users. The login of the database URL when not given
    #[arg(long, env = "ROWCAST_API_URL", hide_env_values = true, value_parser = given(), global = true)]
    pub api_url: Option<String>,

    /// Where the private database lives
    #[arg(long, env = "ROWCAST_DATA_DIR", global = true)]
    pub data_dir: Option<PathBuf>,

    /// Directory of the PostgreSQL programs for the private database
    #[arg(long, env = "ROWCAST_PG_BIN", global = true)]
    pub pg_bin: Option<PathBuf>,

    /// Schemas whose tables have URLs, the first of them without asking for it by profile
    #[arg(
        long,
        env = "ROWCAST_SCHEMA",
        default_value = "public",
        value_delimiter = ',',
        value_parser = name,
        global = true
    )]
    pub schema: Vec<String>,

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

    /// Bytes of changes that the log may hold, e.g. 512MiB; beyond it the oldest go before the
    /// retention is over. 0 means no limit
    #[arg(long, env = "ROWCAST_LOG_SIZE", default_value = "1GiB", value_parser = bytes, global = true)]
    pub log_size: u64,

    /// Seconds after which a transaction that is still open is told of in the log: it keeps the log
    /// from being trimmed
    #[arg(long, env = "ROWCAST_LONG_TRANSACTION", default_value = "300", value_parser = clap::value_parser!(u64).range(1..), global = true)]
    pub long_transaction: u64,

    /// When writers ring: auto is adaptive, or off where two-phase commit is in use
    #[arg(long, env = "ROWCAST_BELL", default_value = "auto", global = true)]
    pub bell: Bell,

    /// Milliseconds after which the log is read even if nobody rings
    #[arg(
        long,
        env = "ROWCAST_SAFETY_POLL",
        default_value = "1000",
        value_parser = clap::value_parser!(u64).range(10..=LONGEST_PAUSE),
        global = true
    )]
    pub safety_poll: u64,

    /// How the log is written
    #[arg(
        long,
        env = "ROWCAST_LOG_FORMAT",
        default_value = "text",
        global = true
    )]
    pub log_format: LogFormat,

    /// Connections for requests
    #[arg(long, env = "ROWCAST_POOL", default_value = "8", value_parser = pool, global = true)]
    pub pool: usize,

    /// What clients may take
    #[command(flatten)]
    pub bounds: Bounds,

    /// Who the caller is
    #[command(flatten)]
    pub access: Access,

    /// A function that runs before each request, as the caller's role
    #[arg(long, env = "ROWCAST_PRE_REQUEST", value_parser = given(), global = true)]
    pub pre_request: Option<String>,

    /// How requests end, and whether Prefer: tx= may say otherwise
    #[arg(long, env = "ROWCAST_TX_END", default_value = "commit", global = true)]
    pub tx_end: TxEnd,
}

/// What clients may take of the relay. 0 is no limit.
#[derive(Debug, Clone, Args)]
pub struct Bounds {
    /// Connections of clients; fewer where the system allows fewer open files
    #[arg(
        long,
        env = "ROWCAST_MAX_CONNECTIONS",
        default_value = "20000",
        global = true
    )]
    pub max_connections: usize,

    /// Event streams in all; 0 is nine tenths of the connections
    #[arg(long, env = "ROWCAST_MAX_STREAMS", default_value = "0", global = true)]
    pub max_streams: usize,

    /// Event streams of one user: of everybody with the same role and claims; 0 is no limit
    #[arg(
        long,
        env = "ROWCAST_MAX_STREAMS_PER_USER",
        default_value = "100",
        global = true
    )]
    pub max_streams_per_user: usize,

    /// Event streams without a token from one public address; 0 is no limit
    #[arg(
        long,
        env = "ROWCAST_MAX_STREAMS_PER_ADDRESS",
        default_value = "500",
        global = true
    )]
    pub max_streams_per_address: usize,

    /// Memory, e.g. 512MiB; that of the control group or the machine when not given. At 90 % new
    /// streams are refused, at 95 % the slowest are cut
    #[arg(long, env = "ROWCAST_MEMORY_LIMIT", value_parser = memory, global = true)]
    pub memory_limit: Option<u64>,
}

/// Who the caller is. With none of these, every request runs as the API's login.
#[derive(Debug, Clone, Default, Args)]
pub struct Access {
    /// The role of those who bring no token; without one they are refused
    #[arg(long, env = "ROWCAST_ANON_ROLE", global = true)]
    pub anon_role: Option<String>,

    /// Secret of HS256 tokens (32 bytes or more), or a JWK or JWKS as JSON; @FILE reads a file
    #[arg(
        long,
        env = "ROWCAST_JWT_SECRET",
        hide_env_values = true,
        global = true
    )]
    pub jwt_secret: Option<Secret>,

    /// A file with a JWKS; read again when it changes
    #[arg(long, env = "ROWCAST_JWKS_FILE", global = true)]
    pub jwks_file: Option<PathBuf>,

    /// Where to fetch a JWKS
    #[arg(long, env = "ROWCAST_JWKS_URL", global = true)]
    pub jwks_url: Option<String>,

    /// The audience that tokens must name
    #[arg(long, env = "ROWCAST_JWT_AUDIENCE", value_parser = given(), global = true)]
    pub jwt_audience: Option<String>,

    /// The issuer that tokens must name
    #[arg(long, env = "ROWCAST_JWT_ISSUER", value_parser = given(), global = true)]
    pub jwt_issuer: Option<String>,

    /// Where in the claims the role is, e.g. `.role` or `."app/role"`
    #[arg(
        long,
        env = "ROWCAST_JWT_ROLE_CLAIM",
        default_value = ".role",
        global = true
    )]
    pub jwt_role_claim: String,

    /// The roles that requests may run as; all that were granted to the API's login when not given
    #[arg(long, env = "ROWCAST_ROLES", value_delimiter = ',', value_parser = name, global = true)]
    pub roles: Vec<String>,

    /// The cookie that holds a token
    #[arg(
        long,
        env = "ROWCAST_COOKIE",
        default_value = "__Host-rowcast",
        global = true
    )]
    pub cookie: String,
}

/// Text that is never printed.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The text.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// How a request's transaction ends when all went well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TxEnd {
    /// It is committed
    Commit,
    /// It is committed, unless the request says tx=rollback
    CommitAllowOverride,
    /// It is rolled back: a rehearsal
    Rollback,
    /// It is rolled back, unless the request says tx=commit
    RollbackAllowOverride,
}

/// When commits of writers ring the bell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bell {
    /// As adaptive; off where `max_prepared_transactions` is set: PREPARE TRANSACTION fails after a
    /// NOTIFY
    Auto,
    /// While no relay is reading anyway
    Adaptive,
    /// Each one
    Always,
    /// Never: relays poll
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

/// Text that is there. A variable that came out empty is a mistake of who set it: taken for one that is not set, it
/// would lead to another database, or have requests run as the login that listens.
fn given() -> NonEmptyStringValueParser {
    NonEmptyStringValueParser::new()
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let advice = "an IP address and a port, e.g. 127.0.0.1:3000, 0.0.0.0:3000 or [::1]:3000";
    text.parse().map_err(|_| advice.to_owned())
}

fn pool(text: &str) -> Result<usize, String> {
    let connections = text.parse().ok();
    connections
        .filter(|connections| (1..=MOST_POOL).contains(connections))
        .ok_or_else(|| format!("a number from 1 to {MOST_POOL}"))
}

/// More than any server takes.
const MOST_POOL: usize = 10_000;

/// A month and a half, in milliseconds. No clock can add the largest number there is.
const LONGEST_PAUSE: u64 = 0xffff_ffff;

/// One of a list, which may have spaces behind its commas.
fn name(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("a name".to_owned()),
        name => Ok(name.to_owned()),
    }
}

/// As [`bytes`], for memory: with less a relay does not start.
fn memory(text: &str) -> Result<u64, String> {
    bytes(text).and_then(|bytes| {
        if bytes < 64 << 20 {
            return Err("at least 64MiB".to_owned());
        }
        Ok(bytes)
    })
}

/// PostgreSQL's own intervals end somewhere, and with them the trimming of the log.
const YEAR: u64 = 366 * 24 * 3600;

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(seconds @ 60..=YEAR) => Ok(Duration::from_secs(seconds)),
        Ok(..60) => Err("at least 60 seconds".to_owned()),
        Ok(_) => Err(format!("a year at most, {YEAR} seconds")),
        Err(_) => Err("a whole number of seconds".to_owned()),
    }
}

/// `1048576`, `1024KiB`, `1MiB`, `1GB`.
fn bytes(text: &str) -> Result<u64, String> {
    let digits =
        text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic() || letter == ' ');
    let factor = match text[digits.len()..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "kb" => 1000,
        "m" | "mib" => 1 << 20,
        "mb" => 1_000_000,
        "g" | "gib" => 1 << 30,
        "gb" => 1_000_000_000,
        _ => return Err("a number of bytes, e.g. 512MiB".to_owned()),
    };
    let number = digits.parse::<u64>().ok();
    let bytes = number.and_then(|number| number.checked_mul(factor));
    bytes
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(|| "a number of bytes, e.g. 512MiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_read_with_a_pause_that_has_an_end() {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            config: Config,
        }
        let poll = |value| {
            let command = <Command as clap::Parser>::try_parse_from(["", "--safety-poll", value]);
            command.map(|command| command.config.safety_poll).ok()
        };
        assert_eq!(poll("10"), Some(10));
        for wrong in ["0", "9", "4294967296", "18446744073709551615"] {
            assert_eq!(poll(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn names_of_a_list_may_stand_apart() {
        assert_eq!(name(" archive"), Ok("archive".to_owned()));
        assert!(name(" ").is_err());
    }

    #[test]
    fn numbers_and_addresses_that_cannot_work_are_refused_with_what_can() {
        assert_eq!(seconds("60"), Ok(Duration::from_mins(1)));
        assert!(seconds("59").is_err());
        assert!(seconds("99999999999999").unwrap_err().contains("a year"));
        assert_eq!(pool("1"), Ok(1));
        for wrong in ["0", "10001", "-1", "some"] {
            assert!(pool(wrong).unwrap_err().contains("from 1 to"), "{wrong}");
        }
        assert!(address("[::]:0").is_ok());
        for wrong in ["", "3000", ":3000", "localhost:3000"] {
            assert!(address(wrong).unwrap_err().contains("127.0.0.1:3000"));
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(bytes("0"), Ok(0));
        assert_eq!(bytes("512MiB"), Ok(512 << 20));
        assert_eq!(bytes("1 GB"), Ok(1_000_000_000));
        assert_eq!(bytes("7k"), Ok(7 << 10));
        for wrong in ["", "MiB", "-1", "1.5G", "1 light-year", "99999999999G"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
