//! Installing and upgrading the schema `rowcast`.
//!
//! `sql/` is history: each file runs once, in order. `triggers/` is the present: its functions are
//! replaced as a whole when they differ. All in one transaction under an advisory lock, so that
//! twenty relays that start together make one schema.

use std::fmt::Write;
use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::cursor::Name;

/// History; a file's place in the list plus one is its version.
const HISTORY: [&str; 4] = [
    include_str!("../../sql/0001_schema.sql"),
    include_str!("../../sql/0002_access.sql"),
    include_str!("../../sql/0003_views.sql"),
    include_str!("../../sql/0004_idempotency.sql"),
];

const BELL: &str = include_str!("../../triggers/10_bell.sql");
const BELL_OFF: &str = include_str!("../../triggers/11_bell_off.sql");
const FUNCTIONS: [&str; 7] = [
    include_str!("../../triggers/20_capture.sql"),
    include_str!("../../triggers/30_message.sql"),
    include_str!("../../triggers/40_watch.sql"),
    include_str!("../../triggers/45_expose.sql"),
    include_str!("../../triggers/50_log.sql"),
    include_str!("../../triggers/60_views.sql"),
    include_str!("../../triggers/70_idempotency.sql"),
];

const DDL: &str = include_str!("../../triggers/60_ddl.sql");
const DDL_OFF: &str = include_str!("../../triggers/61_ddl_off.sql");

/// A function's owner must be allowed to create in its schema at the moment it is made owner.
const OWNERS: &str = "grant create on schema rowcast to rowcast_trigger;\n";
const OWNERS_DONE: &str = "revoke create on schema rowcast from rowcast_trigger;\n";

/// Any number that nobody else uses; the second key tells what is locked.
const LOCK: &str = "select pg_advisory_xact_lock(7094114, 0)";

/// What was found and done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    /// Everything was in place.
    Already,
    /// The schema was made or changed.
    Now,
    /// A later version of Rowcast has been here; its functions were left alone.
    Newer(i32),
}

/// Why the schema is not in place.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The login may not do it.
    #[error("the login may not install the schema rowcast")]
    Forbidden(#[source] tokio_postgres::Error),
    /// `PostgreSQL` before 15.
    #[error("PostgreSQL {0} is too old; 15 or later is needed")]
    TooOld(String),
    /// Anything else.
    #[error("the schema rowcast could not be installed")]
    Query(#[source] tokio_postgres::Error),
}

impl From<tokio_postgres::Error> for MigrateError {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.code() {
            Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => Self::Forbidden(error),
            _ => Self::Query(error),
        }
    }
}

/// Everything as one script, for somebody with more rights to run; harmless where it has been run
/// before.
#[must_use]
pub fn script(bell: bool) -> String {
    let mut script = String::from("begin;\nset local client_min_messages = warning;\n");
    for (done, sql) in HISTORY.iter().enumerate() {
        // A DO block can choose; the dollar tags are ours and stand in none of the files.
        let _infallible = write!(
            script,
            "do $rowcast$\ndeclare\n  done integer := 0;\nbegin\n  \
             if to_regclass('rowcast.state') is not null then\n    \
             select version into done from rowcast.state;\n  end if;\n  \
             if done <= {done} then\n    execute $history$\n{sql}\n$history$;\n  end if;\n\
             end\n$rowcast$;\n"
        );
    }
    script.push_str(&functions(bell));
    script.push_str("commit;\n");
    script
}

fn functions(bell: bool) -> String {
    let mut functions = vec![OWNERS, BELL];
    if !bell {
        functions.push(BELL_OFF);
    }
    functions.extend(FUNCTIONS);
    functions.push(if bell { DDL } else { DDL_OFF });
    functions.push(OWNERS_DONE);
    let mut sql = functions.join("\n");
    let digest = Name::of(functions).to_string();
    // The digest is ours and holds no quote.
    let _infallible = write!(
        sql,
        "\nupdate rowcast.state set functions = '{digest}', version = greatest(version, {});\n",
        HISTORY.len()
    );
    sql
}

/// Installs what is missing. `bell` says whether writers ring.
///
/// # Errors
/// [`MigrateError`]; nothing was changed then.
pub async fn migrate(client: &Client, bell: bool) -> Result<Installed, MigrateError> {
    let server = client
        .query_one(
            "select current_setting('server_version_num')::int, version()",
            &[],
        )
        .await?;
    if server.get::<_, i32>(0) < 150_000 {
        return Err(MigrateError::TooOld(server.get(1)));
    }
    let wanted = functions(bell);
    if let Some((version, digest)) = version(client).await?
        && let Some(found) = settled(version, &digest, &wanted)
    {
        return Ok(found);
    }
    client.batch_execute("begin").await?;
    match steps(client, &wanted).await {
        Ok(found) => {
            client.batch_execute("commit").await?;
            Ok(found)
        }
        Err(error) => {
            client.batch_execute("rollback").await?;
            Err(error.into())
        }
    }
}

async fn steps(client: &Client, wanted: &str) -> Result<Installed, tokio_postgres::Error> {
    client.batch_execute(LOCK).await?;
    let (version, digest) = version(client).await?.unwrap_or_default();
    if let Some(found) = settled(version, &digest, wanted) {
        return Ok(found);
    }
    let done = usize::try_from(version).unwrap_or(0);
    for sql in HISTORY.iter().skip(done) {
        client.batch_execute(sql).await?;
    }
    client.batch_execute(wanted).await?;
    Ok(Installed::Now)
}

/// Whether there is nothing to do.
fn settled(version: i32, digest: &str, wanted: &str) -> Option<Installed> {
    let ours = i32::try_from(HISTORY.len()).unwrap_or(i32::MAX);
    match version {
        newer if newer > ours => Some(Installed::Newer(newer)),
        same if same == ours && wanted.contains(&format!("'{digest}'")) && !digest.is_empty() => {
            Some(Installed::Already)
        }
        _ => None,
    }
}

/// Version and digest of the functions, if the schema is there.
async fn version(client: &Client) -> Result<Option<(i32, String)>, tokio_postgres::Error> {
    let there = client
        .query_one("select to_regclass('rowcast.state') is not null", &[])
        .await?;
    if !there.get::<_, bool>(0) {
        return Ok(None);
    }
    let state = client
        .query_opt("select version, functions from rowcast.state", &[])
        .await?;
    Ok(state.map(|row| (row.get(0), row.get(1))))
}

/// Removes everything: triggers, schema, and the roles if no other database uses them.
///
/// # Errors
/// `PostgreSQL`'s answer; nothing was changed then.
pub async fn uninstall(client: &Client) -> Result<(), tokio_postgres::Error> {
    let mut tries = 0;
    loop {
        let removed = client
            .batch_execute(include_str!("../../sql/uninstall.sql"))
            .await;
        let Err(error) = removed else { return Ok(()) };
        client.batch_execute("rollback").await?;
        tries += 1;
        if error.code() != Some(&SqlState::LOCK_NOT_AVAILABLE) || tries >= UNINSTALL_TRIES {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Each takes at most a tenth of a second from whoever uses the tables.
const UNINSTALL_TRIES: u32 = 100;
