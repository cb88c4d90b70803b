//! The commands. Nobody else names this room.

mod database;
mod healthcheck;
mod psql;
mod serve;
mod tables;
mod tail;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Config;

/// Keeps open screens in step with a PostgreSQL database
#[derive(Debug, Parser)]
#[command(
    name = "rowcast",
    version,
    about,
    after_help = "Without a command it serves. Without a database it starts its own, with a demo board."
)]
pub struct Cli {
    #[command(flatten)]
    config: Config,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the database (the default)
    Serve,
    /// Run psql on the database that serve uses
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
    },
    /// Take back what watch did
    Unwatch {
        /// Tables
        #[arg(required = true)]
        tables: Vec<String>,
    },
    /// List watched tables
    Watched,
    /// Follow a stream: a view such as '`tasks?board_id=eq.7`', or channels/lobby
    Tail {
        /// The view or channel
        stream: String,
        /// The relay
        #[arg(long, env = "ROWCAST_URL")]
        url: Option<String>,
    },
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

/// Runs the command.
///
/// # Errors
/// What a person is told.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let config = cli.config;
    if let Some(Command::Psql { arguments }) = &cli.command {
        return psql_on(&config, arguments);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match cli.command.unwrap_or(Command::Serve) {
            Command::Serve => serve::run(config).await,
            Command::Watch { tables } => tables::watch(&config, &tables).await,
            Command::Unwatch { tables } => tables::unwatch(&config, &tables).await,
            Command::Watched => tables::watched(&config).await,
            Command::Tail { stream, url } => tail::run(&config, &stream, url).await,
            Command::Sql => {
                print!(
                    "{}",
                    crate::schema::migrate::script(config.bell != crate::config::Bell::Off)
                );
                Ok(())
            }
            Command::Uninstall => tables::uninstall(&config).await,
            Command::Healthcheck => healthcheck::run(config.listen).await,
            Command::Psql { .. } => Ok(()),
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

fn psql_on(config: &Config, arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    let (target, binaries) = database::running(config)?;
    match psql::run(&target, binaries.as_deref(), arguments) {
        Err(error) => Err(Told(error.told()).into()),
        Ok(never) => match never {},
    }
}
