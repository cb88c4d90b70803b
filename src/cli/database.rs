//! Which database a command means.

use std::path::PathBuf;

use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use super::Told;
use crate::causes::Causes;
use crate::config::Config;
use crate::postgres::connect::Target;
use crate::postgres::embedded;
use crate::postgres::pool::{OWN, pinned};

/// The private database's name.
pub(super) const PRIVATE: &str = "rowcast";

/// The database that the settings or the environment name; `None` means the private one.
pub(super) fn given(config: &Config) -> Result<Option<Target>, Told> {
    let environment = |name: &str| std::env::var(name).ok();
    let target = match &config.database_url {
        Some(url) => Some(Target::from_url(url).map(|target| target.or_password_from(environment))),
        None => Target::from_env(environment),
    };
    target.transpose().map_err(|error| {
        Told::new(
            "the database's address cannot be read",
            Causes(&error),
            "DATABASE_URL=postgres://user:password@host:5432/database",
        )
    })
}

/// The login that requests run as, in the same database.
pub(super) fn api(config: &Config, target: &Target) -> Result<Target, Told> {
    let Some(url) = &config.api_url else {
        return Ok(target.clone());
    };
    let environment = |name: &str| std::env::var(name).ok();
    let api =
        Target::from_url(url).map(|api| api.or_password_from(environment).fenced_like(target));
    api.map_err(|error| {
        Told::new(
            "the API's address of the database cannot be read",
            Causes(&error),
            "ROWCAST_API_URL=postgres://rowcast_api:password@host:5432/database",
        )
    })
}

/// Where the private database lives.
pub(super) fn data_dir(config: &Config) -> PathBuf {
    config.data_dir.clone().unwrap_or_else(|| {
        // PostgreSQL does not run as root, and its user may not enter root's home.
        if embedded::effective_uid() == 0 {
            return PathBuf::from("/var/lib/rowcast");
        }
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
        let data = std::env::var_os("XDG_DATA_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute());
        data.or_else(home)
            .unwrap_or_else(std::env::temp_dir)
            .join("rowcast")
    })
}

/// The database that `serve` uses: the named one, or the private one if it runs. With it, the
/// directory of its programs if known.
pub(super) fn running(config: &Config) -> Result<(Target, Option<PathBuf>), Told> {
    if let Some(target) = given(config)? {
        return Ok((target, config.pg_bin.clone()));
    }
    let data_dir = data_dir(config);
    let running = embedded::running(&data_dir).ok_or_else(|| {
        Told::new(
            "no database is running",
            format!(
                "no DATABASE_URL, no PGHOST, and no private database in {}",
                data_dir.display()
            ),
            "rowcast serve (in another terminal), or DATABASE_URL=postgres://…",
        )
    })?;
    let binaries = running.binaries.clone();
    Ok((running.target(PRIVATE), binaries))
}

/// A connection of its own for a command. What is set for the database or the login is meant for others: a
/// limit would end what takes a while, and whoever asks for a write means it.
pub(super) async fn connect(target: &Target) -> Result<Client, Told> {
    let connected = target.connect("rowcast cli").await;
    let (client, connection) = connected.map_err(|error| unreachable(target, &error))?;
    // Ends with the client.
    tokio::spawn(connection);
    // Compiling these statements would take longer than running them.
    let settings = format!("{}; {OWN}; set jit = off", pinned());
    let set = client.batch_execute(&settings).await;
    set.map_err(|error| unreachable(target, &error))?;
    Ok(client)
}

/// Which database of which server this is, for logins without rights too.
pub(super) async fn place(client: &Client) -> Result<String, tokio_postgres::Error> {
    let place = "select pg_catalog.concat_ws(':', \
                   (select system_identifier from pg_catalog.pg_control_system()), \
                   (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database()))";
    client.query_one(place, &[]).await?.try_get(0)
}

/// What the database says to a command.
pub(super) type Asked<T> = Result<T, tokio_postgres::Error>;

/// The rows of an answer, all of it text.
pub(super) async fn rows(client: &Client, sql: &str) -> Asked<Vec<SimpleQueryRow>> {
    let answer = client.simple_query(sql).await?;
    let rows = answer.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    Ok(rows.collect())
}

/// One column of such a row; nothing where it is null.
pub(super) fn cell(row: &SimpleQueryRow, at: usize) -> &str {
    row.get(at).unwrap_or_default()
}

/// What a person is told when the database does not answer.
pub(super) fn unreachable(target: &Target, error: &dyn std::error::Error) -> Told {
    Told::new(
        format!("the database {target} cannot be reached"),
        Causes(error),
        format!("{} -c 'select 1'", target.psql_line()),
    )
}
