//! `rowcast watch`, `unwatch`, `watched`, `new-epoch`, `uninstall`.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::print::say;
use super::{Told, database};
use crate::causes::Causes;
use crate::config::{Bell, Config};
use crate::postgres::connect::Target;
use crate::schema::migrate::{self, MigrateError};
use crate::schema::watch::{self, Capture};

pub(super) async fn watch(
    config: &Config,
    tables: &[String],
    capture: Option<Capture>,
) -> anyhow::Result<()> {
    let client = installed(config).await?;
    for table in tables {
        watch::watch(&client, table, capture)
            .await
            .map_err(|error| refused("watched", table, &error))?;
        say!("watching {table}");
    }
    Ok(())
}

pub(super) async fn unwatch(config: &Config, tables: &[String]) -> anyhow::Result<()> {
    let client = found(config).await?;
    for table in tables {
        watch::unwatch(&client, table)
            .await
            .map_err(|error| refused("unwatched", table, &error))?;
        say!("not watching {table}");
    }
    Ok(())
}

pub(super) async fn watched(config: &Config) -> anyhow::Result<()> {
    let client = found(config).await?;
    let tables = watch::watched(&client).await?;
    if tables.is_empty() {
        say!("no table is watched; try: rowcast watch TABLE");
    }
    for watched in tables {
        let how = match watched.capture {
            Capture::Row => "",
            Capture::Statement => "  (by statement)",
        };
        let state = if watched.captured {
            ""
        } else {
            "  (triggers missing or disabled)"
        };
        say!("{}{how}{state}", watched.table);
    }
    Ok(())
}

pub(super) async fn new_epoch(config: &Config) -> anyhow::Result<()> {
    let client = found(config).await?;
    let epoch = "select rowcast.new_epoch()::text";
    let epoch = client.query_one(epoch, &[]).await.map_err(|error| {
        Told::new(
            "no new epoch was begun",
            Causes(&error),
            "the login that the relay listens with, on the primary",
        )
    })?;
    say!(
        "a new epoch has begun ({}): every screen reads its state anew",
        epoch.get::<_, &str>(0)
    );
    Ok(())
}

pub(super) async fn uninstall(config: &Config) -> anyhow::Result<()> {
    let (target, _) = database::running(config)?;
    let client = database::connect(&target).await?;
    // One that is left would go on to answer, and say all the time that it cannot tell.
    let relays = "select string_agg(pid::text, ', ' order by pid) from pg_stat_activity \
                  where datname = current_database() and application_name = 'rowcast feed'";
    let relays: Option<String> = client.query_one(relays, &[]).await?.get(0);
    if let Some(relays) = relays {
        return Err(Told::new(
            "Rowcast was not removed: relays use it",
            format!("they are connected to server processes {relays}"),
            "stop them, and run it again",
        )
        .into());
    }
    let there = "select to_regnamespace('rowcast') is not null";
    let there: bool = client.query_one(there, &[]).await?.get(0);
    migrate::uninstall(&client).await.map_err(|error| {
        Told::new(
            "Rowcast could not be removed",
            Causes(&error),
            "stop the relays, and run it as the login that installed it",
        )
    })?;
    if there {
        say!("removed from {target}");
    } else {
        say!("nothing to remove: {target} has no schema rowcast");
    }
    Ok(())
}

/// A connection to a database where everything is in place; what is not is installed.
async fn installed(config: &Config) -> anyhow::Result<Client> {
    let (client, target, there) = connect(config).await?;
    ready(&client, &target, there, config.bell).await?;
    Ok(client)
}

/// The same where somebody has installed it before.
async fn found(config: &Config) -> anyhow::Result<Client> {
    let (client, target, there) = connect(config).await?;
    if !there {
        return Err(Told::new(
            "Rowcast is not installed in this database",
            format!("{target} has no schema rowcast"),
            format!("rowcast serve, or: rowcast sql | {}", whole(&target)),
        )
        .into());
    }
    ready(&client, &target, there, config.bell).await?;
    Ok(client)
}

/// The database, and whether there is a schema of ours.
async fn connect(config: &Config) -> anyhow::Result<(Client, Target, bool)> {
    let (target, _) = database::running(config)?;
    let client = database::connect(&target).await?;
    let there = "select to_regclass('rowcast.state') is not null";
    let there = client.query_one(there, &[]).await?.get(0);
    Ok((client, target, there))
}

async fn ready(client: &Client, target: &Target, there: bool, bell: Bell) -> anyhow::Result<()> {
    if there {
        may_work(client, target).await?;
    }
    // What the relays of this database have chosen is not for a command to change in passing.
    if migrate::present(client).await?.is_none() {
        install(client, target, bell).await?;
    }
    Ok(())
}

/// psql for a script of which all or nothing is to be done: it would go on after an error, and call that a success.
fn whole(target: &Target) -> String {
    format!("{} -v ON_ERROR_STOP=1", target.psql_line())
}

/// The owner's functions are for its members.
async fn may_work(client: &Client, target: &Target) -> anyhow::Result<()> {
    // Where there is no such role a dump was restored without it, and it is made when all is put right.
    let member = "select coalesce((select pg_has_role(o.oid, 'usage') from pg_roles o where o.rolname = 'rowcast_owner'), true), \
                  quote_ident(current_user)";
    let row = client.query_one(member, &[]).await?;
    if row.get(0) {
        return Ok(());
    }
    let login: &str = row.get(1);
    Err(Told::new(
        "this login may neither read the log nor say what is watched",
        format!("{login} is no member of rowcast_owner in {target}"),
        format!("as who installed Rowcast: grant rowcast_owner to {login};"),
    )
    .into())
}

/// Who is to ring, where two-phase commit is in use or, as far as is known, is not.
pub(super) fn rings(bell: Bell, two_phase: bool) -> migrate::Bell {
    match (bell, two_phase) {
        (Bell::Always, _) => migrate::Bell::Always,
        (Bell::Off, _) | (Bell::Auto, true) => migrate::Bell::Silent,
        (Bell::Adaptive, _) | (Bell::Auto, false) => migrate::Bell::Adaptive,
    }
}

/// Installs the schema, and returns who rings.
pub(super) async fn install(
    client: &Client,
    target: &Target,
    bell: Bell,
) -> anyhow::Result<migrate::Bell> {
    let prepared = client
        .query_one(
            "select current_setting('max_prepared_transactions')::int",
            &[],
        )
        .await?;
    let rings = rings(bell, prepared.get::<_, i32>(0) > 0);
    match migrate::migrate(client, rings).await {
        Ok(migrate::Installed::Newer(version)) => {
            tracing::warn!(
                version,
                ours = migrate::version(),
                "a later release of Rowcast has been installed in this database; this one works with it and leaves it alone"
            );
        }
        Ok(_) => {}
        Err(MigrateError::Forbidden(error)) => {
            // Where somebody has installed it, what is missing may be a grant.
            let there = "select to_regclass('rowcast.state') is not null";
            if client.query_one(there, &[]).await?.get(0) {
                may_work(client, target).await?;
            }
            // What `rowcast sql` prints goes by --bell alone: it does not know the server.
            let variant = match rings {
                migrate::Bell::Adaptive => "",
                migrate::Bell::Always => " --bell always",
                migrate::Bell::Silent => " --bell off",
            };
            let advice = format!(
                "rowcast sql{variant} | {}   # with another user: a superuser, or a login with CREATEROLE that may create schemas",
                whole(target)
            );
            return Err(Told::new(
                "this login may not install the schema rowcast",
                Causes(&error),
                advice,
            )
            .into());
        }
        Err(error @ MigrateError::Outdated { .. }) => {
            return Err(Told::new(
                "a later release of Rowcast has been installed in this database, with which this one cannot work",
                &error,
                "the later release; this one is rowcast ".to_owned() + env!("CARGO_PKG_VERSION"),
            )
            .into());
        }
        Err(error @ MigrateError::Busy(_)) => {
            return Err(Told::new(
                "the schema rowcast could not be upgraded",
                Causes(&error),
                format!(
                    "{} -c \"select pid, xact_start, query from pg_stat_activity where query like '%rowcast%'\"",
                    target.psql_line()
                ),
            )
            .into());
        }
        Err(MigrateError::Query(error))
            if error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) =>
        {
            return Err(Told::new(
                "the schema rowcast can be neither installed nor upgraded here",
                Causes(&error),
                "the primary's address, where this is a standby; \
                 where default_transaction_read_only is set for the database or the login, run it once that is off",
            )
            .into());
        }
        Err(error) => return Err(error.into()),
    }
    Ok(rings)
}

fn refused(what: &str, table: &str, error: &tokio_postgres::Error) -> Told {
    let (found, advice) = match error.as_db_error() {
        Some(error) => (
            error.message().to_owned(),
            match error.hint() {
                Some(hint) => hint.to_owned(),
                None if *error.code() == SqlState::READ_ONLY_SQL_TRANSACTION => {
                    "the primary's address, where this is a standby".to_owned()
                }
                None => "rowcast psql -c '\\dt *.*'".to_owned(),
            },
        ),
        None => (Causes(error).to_string(), "rowcast psql".to_owned()),
    };
    Told::new(format!("table \"{table}\" cannot be {what}"), found, advice)
}
