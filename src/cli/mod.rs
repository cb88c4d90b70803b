//! The commands. Nobody else names this room.

mod access;
pub mod bench;
mod bounds;
mod database;
mod demo;
mod doctor;
mod healthcheck;
mod log;
mod names;
mod print;
mod psql;
mod serve;
mod settings;
mod signals;
mod tables;
mod tail;
#[cfg(test)]
mod tests;
mod token;
mod trace;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use self::print::say;
use crate::config::Config;
use crate::schema::migrate;
use crate::schema::watch::Capture;

/// Keeps open screens in step with a PostgreSQL database
#[derive(Debug, Parser)]
#[command(
    name = "rowcast",
    version,
    about,
    after_help = "Without a command it serves. Without a database it starts its own, with a demo board."
)]
pub struct Cli {
    // Under a heading, so that a command's own options stand first and together.
    #[command(flatten, next_help_heading = "Settings")]
    config: Config,
    /// Print what the settings come to, and where each comes from, and end
    #[arg(long, global = true, help_heading = "Settings")]
    print_config: bool,
    /// Say whether the settings make sense, and end; asks neither the database nor the network
    #[arg(long, global = true, help_heading = "Settings")]
    check: bool,
    #[command(subcommand)]
    command: Option<Command>,
    #[arg(skip)]
    settings: Vec<settings::Setting>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the database (the default)
    Serve,
    /// Run psql on the database that serve uses
    #[command(disable_help_flag = true)]
    Psql {
        /// psql's own arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Make tables live
    Watch {
        /// Tables, e.g. tasks or sales.orders
        #[arg(required = true)]
        tables: Vec<String>,
        /// Capture each changed row by itself, or all rows of a statement together: that is cheaper for tables
        /// that are written in bulk. As it is, and by row at first, when not given
        #[arg(long)]
        capture: Option<Capture>,
    },
    /// Take back what watch did
    Unwatch {
        /// Tables
        #[arg(required = true)]
        tables: Vec<String>,
    },
    /// List watched tables
    Watched,
    /// Follow a stream: a view such as 'tasks?priority=gt.2', or channels/lobby
    Tail {
        /// The view or channel, or its whole address
        stream: String,
        /// The relay
        #[arg(long, env = "ROWCAST_URL")]
        url: Option<String>,
        /// A token for it
        #[arg(long, env = "ROWCAST_TOKEN", hide_env_values = true)]
        token: Option<String>,
    },
    /// Measure what this machine holds: screens, commits, latencies, costs
    Bench(bench::Options),
    /// Print a token made with the configured secret, for trying things out
    Token {
        /// The role that requests with it run as
        #[arg(long)]
        role: Option<String>,
        /// A claim, e.g. sub=ann, or as JSON, e.g. admin:=true (may be given several times)
        #[arg(long = "claim", value_parser = token::claim)]
        claims: Vec<(String, serde_json::Value)>,
        /// How long it is good, e.g. 15m
        #[arg(long, default_value = "1h", value_parser = token::duration)]
        expires: Duration,
    },
    /// Look for what is wrong or will be; exit code 1 when there is a problem
    Doctor {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Say why a screen did not get a change: captured? visible? read? shown to whom?
    Trace {
        /// A table and a key (tasks 7; members 7,42), or a transaction's id
        #[arg(required = true, num_args = 1..=2)]
        what: Vec<String>,
    },
    /// Void every token given out so far: a step of every restore of files
    NewEpoch,
    /// Print the SQL that installs Rowcast, for somebody with the rights to run it
    Sql,
    /// Remove everything that Rowcast made in the database
    Uninstall,
    /// Ask the relay on --listen whether it is ready
    Healthcheck,
}

/// An error for a person: what happened, and under it what was found and what to try.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Told(String);

impl Told {
    fn new(
        what: impl std::fmt::Display,
        found: impl std::fmt::Display,
        advice: impl std::fmt::Display,
    ) -> Self {
        Self(format!("{what}\n  found: {found}\n  try:   {advice}"))
    }
}

/// Settings that people who come from PostgREST have already: the argument, our variable, theirs.
const ALIASES: [(&str, &str, &str); 7] = [
    ("schema", "ROWCAST_SCHEMA", "PGRST_DB_SCHEMAS"),
    ("anon_role", "ROWCAST_ANON_ROLE", "PGRST_DB_ANON_ROLE"),
    ("jwt_secret", "ROWCAST_JWT_SECRET", "PGRST_JWT_SECRET"),
    // Whoever has the secret from there means what narrows its tokens as well.
    ("jwt_audience", "ROWCAST_JWT_AUDIENCE", "PGRST_JWT_AUD"),
    (
        "jwt_role_claim",
        "ROWCAST_JWT_ROLE_CLAIM",
        "PGRST_JWT_ROLE_CLAIM_KEY",
    ),
    ("pre_request", "ROWCAST_PRE_REQUEST", "PGRST_DB_PRE_REQUEST"),
    ("tx_end", "ROWCAST_TX_END", "PGRST_DB_TX_END"),
];

/// Says that PostgREST's secret is not itself the key.
const ENCODED: &str = "PGRST_JWT_SECRET_IS_BASE64";

/// Whether the environment has a value for this variable.
fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

/// Variables in the environment that say something, look as if they were for us, and are not read.
#[derive(Debug, Default, PartialEq, Eq)]
struct Unread {
    /// PostgREST's that we do not have.
    theirs: Vec<String>,
    /// None of ours: a mistake in the name, which would leave a setting as it is by default. A relay whose
    /// secret was misspelt asks nobody who he is.
    unknown: Vec<String>,
}

/// What is set in this environment.
fn unread() -> Unread {
    let set = std::env::vars_os()
        .filter(|(_, value)| !value.is_empty())
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    Unread::of(set.map(|(name, value)| (name, value.to_string_lossy().into_owned())))
}

impl Unread {
    fn of(set: impl Iterator<Item = (String, String)>) -> Self {
        let known = variables();
        let mut unread = Self::default();
        for (name, value) in set {
            if name.starts_with("PGRST_") {
                let read = name == ENCODED || ALIASES.iter().any(|(.., theirs)| *theirs == name);
                if !read {
                    unread.theirs.push(name);
                }
            } else if name.starts_with("ROWCAST_")
                && !known.contains(&name)
                && !is_of_kubernetes(&name, &value)
            {
                unread.unknown.push(name);
            }
        }
        unread.theirs.sort();
        unread.unknown.sort();
        unread
    }

    /// The names, and what there is to say of them.
    fn told(&self) -> Vec<(String, &'static str)> {
        let kinds = [
            (
                &self.theirs,
                "variables of PostgREST are set that are not read here; docs/api.md lists the settings",
            ),
            (
                &self.unknown,
                "variables are set that no setting is read from: is there a mistake in the name? docs/api.md lists \
                 the settings",
            ),
        ];
        let some = kinds.into_iter().filter(|(names, _)| !names.is_empty());
        some.map(|(names, why)| (names.join(", "), why)).collect()
    }
}

/// Every variable that some command reads.
fn variables() -> BTreeSet<String> {
    let command = Cli::command();
    let of = |command: &clap::Command| -> Vec<String> {
        let names = command.get_arguments().filter_map(clap::Arg::get_env);
        names
            .map(|name| name.to_string_lossy().into_owned())
            .collect()
    };
    let files = IN_FILES.iter().map(|(_, variable)| (*variable).to_owned());
    let ours = command.get_subcommands().chain([&command]).flat_map(of);
    ours.chain(files).collect()
}

/// What Kubernetes tells each container of a service whose name begins with `rowcast`.
fn is_of_kubernetes(name: &str, value: &str) -> bool {
    let address = ["tcp://", "udp://", "sctp://"];
    name.contains("_SERVICE_")
        || name.contains("_PORT_")
        || address.iter().any(|scheme| value.starts_with(scheme))
}

/// Reads flags and environment; ends the process with a message when they make no sense.
#[must_use]
pub fn parse() -> Cli {
    let mut command = Cli::command();
    let mut theirs_is_secret = false;
    for (argument, ours, theirs) in ALIASES {
        if !is_set(ours) && is_set(theirs) {
            command = command.mut_arg(argument, |argument| argument.env(theirs));
            theirs_is_secret |= argument == "jwt_secret";
        }
    }
    let matches = command.clone().try_get_matches();
    let matches = matches.unwrap_or_else(|error| refused(&command, &error));
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    cli.settings = settings::found(&command, &matches);
    theirs_is_secret &= matches.value_source("jwt_secret") == Some(ValueSource::EnvVariable);
    let read = if theirs_is_secret {
        is_the_secret_itself()
    } else {
        Ok(())
    };
    if let Err(told) = read.and_then(|()| read_secrets(&mut cli.config)) {
        eprintln!("error: {told}");
        std::process::exit(2);
    }
    cli
}

/// Ends the process. A variable that is set to nothing, as by a compose file that passes on one which is not
/// set, is told as such: the message names its flag, which nobody has given.
fn refused(command: &clap::Command, error: &clap::Error) -> ! {
    let _cannot_be_told = error.print();
    if error.kind() == ErrorKind::InvalidValue {
        let variables = command.get_arguments().filter_map(clap::Arg::get_env);
        let empty = |name: &&OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
        for name in variables.filter(empty) {
            let name = name.display();
            eprintln!("note: {name} is set to nothing: give it a value, or unset it");
        }
    }
    std::process::exit(error.exit_code())
}

/// Settings that a file may hold: the argument, and the variable that names the file.
const IN_FILES: [(&str, &str); 3] = [
    ("database_url", "DATABASE_URL_FILE"),
    ("api_url", "ROWCAST_API_URL_FILE"),
    ("jwt_secret", "ROWCAST_JWT_SECRET_FILE"),
];

/// Refuses a secret of PostgREST's that is not the key but its base64: no token would be genuine.
fn is_the_secret_itself() -> Result<(), Told> {
    match std::env::var(ENCODED) {
        Ok(encoded) if !["", "0", "false"].contains(&encoded.to_ascii_lowercase().as_str()) => {
            Err(Told::new(
                format!("{ENCODED} is not heeded, and no token would be taken"),
                format!("{encoded}, so that PGRST_JWT_SECRET is not the secret itself"),
                "ROWCAST_JWT_SECRET with the decoded text, or the key as a JWK: {\"kty\":\"oct\",\"k\":\"its base64url\"}",
            ))
        }
        _ => Ok(()),
    }
}

/// Secrets that are in files: `…_FILE` in the environment, or `@file` as a JWT secret.
fn read_secrets(config: &mut Config) -> Result<(), Told> {
    let named = |argument: &str| {
        let (_, variable) = IN_FILES.iter().find(|(known, _)| *known == argument)?;
        std::env::var_os(variable).map(PathBuf::from)
    };
    if config.database_url.is_none()
        && let Some(file) = named("database_url")
    {
        config.database_url = Some(read_secret(&file)?);
    }
    if config.api_url.is_none()
        && let Some(file) = named("api_url")
    {
        config.api_url = Some(read_secret(&file)?);
    }
    let secret = config.access.jwt_secret.as_ref();
    let file = match secret.map(|secret| secret.reveal().strip_prefix('@')) {
        Some(file) => file.map(PathBuf::from),
        None => named("jwt_secret"),
    };
    if let Some(file) = file {
        config.access.jwt_secret = Some(read_secret(&file)?.into());
    }
    Ok(())
}

/// A file's text without the newline that editors leave at its end.
fn read_secret(file: &Path) -> Result<String, Told> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        Told::new(
            format!("the secret in {} cannot be read", file.display()),
            error,
            "a file that the relay's user may read",
        )
    })?;
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        return Err(Told::new(
            format!("the secret in {} cannot be used", file.display()),
            "the file is empty",
            "a file that holds it",
        ));
    }
    Ok(secret.to_owned())
}

/// Runs the command.
///
/// # Errors
/// What a person is told.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let config = cli.config;
    if cli.print_config {
        settings::print(&cli.settings);
    }
    if cli.check {
        settings::judged(&config)?;
        for (variables, why) in unread().told() {
            eprintln!("note: {why}: {variables}");
        }
        say!("the settings make sense");
    }
    if cli.print_config || cli.check {
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(Command::Psql { arguments }) = &cli.command {
        return psql_on(&config, arguments);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let ended = runtime.block_on(async {
        match cli.command.unwrap_or(Command::Serve) {
            Command::Bench(options) => return bench::run(config, options).await,
            Command::Doctor { json } => return doctor::run(&config, json).await,
            Command::Serve => serve::run(config).await,
            Command::Watch { tables, capture } => tables::watch(&config, &tables, capture).await,
            Command::Unwatch { tables } => tables::unwatch(&config, &tables).await,
            Command::Watched => tables::watched(&config).await,
            Command::Tail { stream, url, token } => tail::run(&config, &stream, url, token).await,
            Command::Sql => {
                let bell = tables::rings(config.bell, false);
                print::text(format_args!("{}", migrate::script(bell)));
                Ok(())
            }
            Command::Token {
                role,
                claims,
                expires,
            } => Ok(token::run(
                &config.access,
                role.as_deref(),
                &claims,
                expires,
            )?),
            Command::Trace { what } => trace::run(&config, &what).await,
            Command::NewEpoch => tables::new_epoch(&config).await,
            Command::Uninstall => tables::uninstall(&config).await,
            Command::Healthcheck => healthcheck::run(config.listen).await,
            Command::Psql { .. } => Ok(()),
        }
        .map(|()| ExitCode::SUCCESS)
    });
    // The system's own look-up of a name, or reading a file where the network holds its disk, cannot be broken off.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

fn psql_on(config: &Config, arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    let (target, binaries) = match database::running(config) {
        // Without a database there is nothing that psql could be started with, and no need of one.
        Err(_) if arguments.first().is_some_and(|first| first == "--help") => {
            if let Err(help) = Cli::command().try_get_matches_from(["rowcast", "help", "psql"]) {
                help.print()?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        running => running?,
    };
    match psql::run(&target, binaries.as_deref(), arguments) {
        Err(error) => Err(Told(error.told()).into()),
        Ok(never) => match never {},
    }
}
