//! Installing and upgrading the schema `rowcast`.
//!
//! `sql/` is history: each file runs once, in order. `triggers/` is the present: its functions are
//! replaced as a whole when they differ and no later release has installed them. All in one
//! transaction under an advisory lock, so that twenty relays that start together make one schema.
//!
//! Relays of the release before go on while this runs, and afterwards: history only adds, functions
//! keep the signatures that those relays call, and no lock is waited for longer than a moment, so
//! that nobody who reads the log or writes a table queues behind us. Where that is not possible, a
//! history file says in `rowcast.state.needs` from which version on a relay may work with it.

use std::fmt::Write;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::backoff::Backoff;
use crate::cursor::Name;

/// History; a file's place in the list plus one is its version.
const HISTORY: [&str; 9] = [
    include_str!("../../sql/0001_schema.sql"),
    include_str!("../../sql/0002_access.sql"),
    include_str!("../../sql/0003_views.sql"),
    include_str!("../../sql/0004_idempotency.sql"),
    include_str!("../../sql/0005_upkeep.sql"),
    include_str!("../../sql/0006_capture.sql"),
    include_str!("../../sql/0007_prepared.sql"),
    include_str!("../../sql/0008_zones.sql"),
    include_str!("../../sql/0009_names.sql"),
];

/// Gives a schema that was restored without its rows what history had written into them. Before history, which
/// begins where these say.
const ROWS: &str = include_str!("../../triggers/00_rows.sql");

const BELL: &str = include_str!("../../triggers/10_bell.sql");
const BELL_OFF: &str = include_str!("../../triggers/11_bell_off.sql");
const BELL_ALWAYS: &str = include_str!("../../triggers/12_bell_always.sql");
const FUNCTIONS: [&str; 12] = [
    include_str!("../../triggers/20_capture.sql"),
    include_str!("../../triggers/25_capture_statement.sql"),
    include_str!("../../triggers/30_message.sql"),
    include_str!("../../triggers/40_watch.sql"),
    include_str!("../../triggers/45_expose.sql"),
    include_str!("../../triggers/50_log.sql"),
    include_str!("../../triggers/60_views.sql"),
    include_str!("../../triggers/65_foreign.sql"),
    include_str!("../../triggers/70_idempotency.sql"),
    include_str!("../../triggers/80_replicated.sql"),
    include_str!("../../triggers/90_log_table.sql"),
    include_str!("../../triggers/95_access.sql"),
];

const ROLES: &str = include_str!("../../triggers/05_roles.sql");
const DDL: &str = include_str!("../../triggers/60_ddl.sql");
const DDL_OFF: &str = include_str!("../../triggers/61_ddl_off.sql");

/// A function's owner must be allowed to create in its schema at the moment it is made owner.
const OWNERS: &str = "grant create on schema rowcast to rowcast_trigger;\n";
const OWNERS_DONE: &str = "revoke create on schema rowcast from rowcast_trigger;\n";

/// Opens a transaction that installs. Whoever may create in a schema of the login's search path could have a
/// function there that suits a call better than PostgreSQL's own, and it would run as a superuser. Whoever makes a
/// role from 16 on is a member of it as this setting says, and has to be one by both ways to make it an owner. A limit
/// that the database has for statements is one for people's; we may wait for another relay that upgrades.
const BEGIN: &str = "begin; set local statement_timeout = 0; set local search_path = pg_catalog, pg_temp; \
                     do $$ begin if current_setting('server_version_num')::int >= 160000 then \
                     perform set_config('createrole_self_grant', 'set, inherit', true); end if; end $$";

/// Any number that nobody else uses; the second key tells what is locked. Whoever upgrades sends one statement after
/// the other, so one that says nothing is gone or cut off: the server ends it, or all who start would wait for it.
const LOCK: &str = "set local idle_in_transaction_session_timeout = '10s'; \
                    set local lock_timeout = '1min'; \
                    select pg_advisory_xact_lock(7094114, 0)";

/// How long one lock is waited for: whoever comes later queues behind us.
const LOCK_TIMEOUT: &str = "set local lock_timeout = '50ms'";

/// How long an upgrade tries to get its locks.
const PATIENCE: Duration = Duration::from_mins(1);

/// Who rings, as the functions in the database have it. There is one set of functions for all relays
/// of a database: the last one that installed them has decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bell {
    /// A commit rings unless a relay holds the lock that says "reading anyway".
    Adaptive,
    /// Every commit rings.
    Always,
    /// No commit does.
    Silent,
}

impl Bell {
    const ALL: [Self; 3] = [Self::Adaptive, Self::Always, Self::Silent];

    /// Which one these functions have, by the stamp in `rowcast.state.functions`. `None` when
    /// another version of Rowcast has installed its own: then nothing is known.
    #[must_use]
    pub fn of(functions: &str) -> Option<Self> {
        static STAMPS: LazyLock<[String; 3]> =
            LazyLock::new(|| Bell::ALL.map(|bell| stamp(bell).to_string()));
        let at = STAMPS.iter().position(|stamp| stamp == functions)?;
        Some(Self::ALL[at])
    }
}

/// What was found and done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    /// Everything was in place.
    Already,
    /// The schema was made or changed.
    Now,
    /// A later release of Rowcast has been here, whose schema we can work with; it was left alone.
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
    /// A later release has been here, and relays like this one cannot work with what it left.
    #[error(
        "the schema rowcast has version {found} and needs relays of version {needs}; this one is of {ours}"
    )]
    Outdated {
        /// The version of the schema.
        found: i32,
        /// The oldest version of a relay that it takes.
        needs: i32,
        /// Ours.
        ours: i32,
    },
    /// Somebody holds what must be changed.
    #[error("the schema rowcast could not be upgraded for {} s: somebody holds its tables", PATIENCE.as_secs())]
    Busy(#[source] tokio_postgres::Error),
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
pub fn script(bell: Bell) -> String {
    let mut script = format!("{BEGIN};\nset local client_min_messages = warning;\n{ROWS}");
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

/// The functions as they are for this bell, without their digest.
fn parts(bell: Bell) -> Vec<&'static str> {
    let mut parts = vec![ROLES, OWNERS, BELL];
    match bell {
        Bell::Adaptive => {}
        Bell::Always => parts.push(BELL_ALWAYS),
        Bell::Silent => parts.push(BELL_OFF),
    }
    parts.extend(FUNCTIONS);
    parts.push(if bell == Bell::Silent { DDL_OFF } else { DDL });
    parts.push(OWNERS_DONE);
    parts
}

fn stamp(bell: Bell) -> Stamp {
    Stamp {
        release: RELEASE.to_owned(),
        digest: Name::of(parts(bell)).to_string(),
    }
}

fn functions(bell: Bell) -> String {
    let mut sql = parts(bell).join("\n");
    // The stamp is ours and holds no quote.
    let _infallible = write!(
        sql,
        "\nupdate rowcast.state set functions = '{}', version = greatest(version, {});\n",
        stamp(bell),
        HISTORY.len()
    );
    sql
}

/// The release whose functions these are.
const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// Whose functions are installed, as `rowcast.state.functions` has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Stamp {
    release: String,
    digest: String,
}

impl Stamp {
    /// The first releases wrote the digest alone.
    fn parse(text: &str) -> Self {
        let (release, digest) = text.split_once(' ').unwrap_or(("", text));
        Self {
            release: release.to_owned(),
            digest: digest.to_owned(),
        }
    }

    /// Whether a release after `other` made them. Numbers are compared as numbers.
    fn is_after(&self, other: &str) -> bool {
        let numbers = |text: &str| -> Vec<u64> {
            let numbers = text.split(['.', '-', '+']).take(3);
            numbers.map(|part| part.parse().unwrap_or(0)).collect()
        };
        numbers(&self.release) > numbers(other)
    }
}

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.release, self.digest)
    }
}

/// Installs what is missing. `bell` says who rings.
///
/// # Errors
/// [`MigrateError`]; nothing was changed then.
pub async fn migrate(client: &Client, bell: Bell) -> Result<Installed, MigrateError> {
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
    let begun = Instant::now();
    let mut backoff = Backoff::new();
    loop {
        if let Some(state) = State::of(client).await?
            && let Some(found) = state.settled(&wanted)?
        {
            return Ok(found);
        }
        client.batch_execute(BEGIN).await?;
        let error = match steps(client, &wanted).await {
            Ok(found) => {
                client.batch_execute("commit").await?;
                return Ok(found);
            }
            Err(error) => error,
        };
        client.batch_execute("rollback").await?;
        match error {
            MigrateError::Query(error) if is_passing(&error) => {
                if begun.elapsed() > PATIENCE {
                    return Err(MigrateError::Busy(error));
                }
            }
            error => return Err(error),
        }
        tokio::time::sleep(backoff.delay().min(Duration::from_millis(300))).await;
    }
}

/// Who rings in this database, when everything is in place as this version has it.
///
/// # Errors
/// `PostgreSQL`'s answer.
pub async fn present(client: &Client) -> Result<Option<Bell>, tokio_postgres::Error> {
    let found = State::of(client).await?;
    Ok(found.and_then(|state| Bell::of(&state.functions.to_string())))
}

/// Whether the same may go well in a moment: somebody holds a lock, or has changed the same entry of
/// the system's own tables (which `PostgreSQL` reports as an internal error).
fn is_passing(error: &tokio_postgres::Error) -> bool {
    let Some(error) = error.as_db_error() else {
        return false;
    };
    *error.code() == SqlState::LOCK_NOT_AVAILABLE
        || *error.code() == SqlState::T_R_DEADLOCK_DETECTED
        || (*error.code() == SqlState::INTERNAL_ERROR
            && error.message().contains("concurrently updated"))
}

async fn steps(client: &Client, wanted: &str) -> Result<Installed, MigrateError> {
    // Whoever upgrades now is waited for, as long as we try; nobody else.
    client.batch_execute(LOCK).await?;
    client.batch_execute(LOCK_TIMEOUT).await?;
    client.batch_execute(ROWS).await?;
    let state = State::of(client).await?.unwrap_or_default();
    if let Some(found) = state.settled(wanted)? {
        return Ok(found);
    }
    let done = usize::try_from(state.version).unwrap_or(0);
    for sql in HISTORY.iter().skip(done) {
        client.batch_execute(sql).await?;
    }
    if (1..HISTORY.len()).contains(&done) {
        // Locks on tables are given back before the functions follow: relays read these tables with
        // every poll. What history adds, the functions before it do not use.
        let version = format!("update rowcast.state set version = {}", version());
        client.batch_execute(&version).await?;
        client.batch_execute("commit").await?;
        client.batch_execute(BEGIN).await?;
        client.batch_execute(LOCK).await?;
        client.batch_execute(LOCK_TIMEOUT).await?;
    }
    client.batch_execute(wanted).await?;
    Ok(Installed::Now)
}

/// What is installed.
#[derive(Debug, Default)]
struct State {
    version: i32,
    needs: i32,
    functions: Stamp,
    /// Whether all of it belongs to whom it must: a dump may have been restored without its owners.
    owned: bool,
}

impl State {
    /// `None` where nothing is.
    async fn of(client: &Client) -> Result<Option<Self>, tokio_postgres::Error> {
        let there = client
            .query_one("select to_regclass('rowcast.state') is not null", &[])
            .await?;
        if !there.get::<_, bool>(0) {
            return Ok(None);
        }
        // As JSON, because the first releases have no column needs.
        let state = client
            .query_opt(
                "select s.version, coalesce((to_json(s) ->> 'needs')::int, 0), s.functions, exists ( \
                   select from pg_namespace n \
                   join pg_roles o on o.oid = n.nspowner and o.rolname = 'rowcast_owner' \
                   join pg_roles t on t.rolname = 'rowcast_trigger' and has_schema_privilege(t.oid, n.oid, 'usage') \
                   where n.nspname = 'rowcast') \
                 from rowcast.state s",
                &[],
            )
            .await?;
        Ok(state.map(|row| Self {
            version: row.get(0),
            needs: row.get(1),
            functions: Stamp::parse(row.get(2)),
            owned: row.get(3),
        }))
    }

    /// Whether there is nothing to do.
    fn settled(&self, wanted: &str) -> Result<Option<Installed>, MigrateError> {
        let ours = version();
        if self.needs > ours {
            return Err(MigrateError::Outdated {
                found: self.version,
                needs: self.needs,
                ours,
            });
        }
        if self.version > ours || (self.version == ours && self.functions.is_after(RELEASE)) {
            return Ok(Some(Installed::Newer(self.version)));
        }
        let same = self.version == ours
            && self.owned
            && !self.functions.digest.is_empty()
            && wanted.contains(&format!("'{}'", self.functions));
        Ok(same.then_some(Installed::Already))
    }
}

/// The version of the schema that this release installs.
#[must_use]
pub fn version() -> i32 {
    i32::try_from(HISTORY.len()).unwrap_or(i32::MAX)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::embedded::tests::throw_away;

    #[tokio::test]
    async fn who_falls_silent_while_he_installs_keeps_nobody_from_it() {
        let Some((_place, cluster)) = throw_away().await else {
            return;
        };
        let target = cluster.target("postgres");
        let connect = async || {
            let (client, connection) = target.connect("rowcast test").await.unwrap();
            tokio::spawn(connection);
            client
        };
        let silent = connect().await;
        silent.batch_execute(BEGIN).await.unwrap();
        silent.batch_execute(LOCK).await.unwrap();
        let next = connect().await;
        let installed = tokio::time::timeout(PATIENCE, migrate(&next, Bell::Adaptive)).await;
        assert_eq!(installed.unwrap().unwrap(), Installed::Now);
        cluster.stop().await;
    }

    #[test]
    fn functions_of_a_later_release_are_not_replaced_by_those_of_an_earlier_one() {
        let stamp = |text: &str| Stamp::parse(text);
        assert!(stamp("0.10.0 abc").is_after("0.9.3"));
        assert!(stamp("1.0.0 abc").is_after("0.9.3"));
        assert!(!stamp("0.9.3 abc").is_after("0.9.3"));
        assert!(!stamp("0.9.2 abc").is_after("0.9.3"));
        // As the first releases wrote it.
        assert!(!stamp("abc").is_after("0.0.1"));
        let there = |version, needs, functions: &str| State {
            version,
            needs,
            functions: stamp(functions),
            owned: true,
        };
        let wanted = functions(Bell::Adaptive);
        let found = |state: State| state.settled(&wanted);
        assert!(matches!(
            found(there(99, 0, "x")),
            Ok(Some(Installed::Newer(99)))
        ));
        assert!(matches!(
            found(there(99, 99, "x")),
            Err(MigrateError::Outdated { .. })
        ));
        assert!(matches!(
            found(there(version(), 0, "999.0.0 x")),
            Ok(Some(Installed::Newer(_)))
        ));
        assert!(matches!(found(there(version(), 0, "x")), Ok(None)));
        assert!(matches!(
            found(there(version() - 1, 0, "999.0.0 x")),
            Ok(None)
        ));
    }

    #[test]
    fn the_digest_of_the_functions_tells_who_rings() {
        for bell in Bell::ALL {
            let sql = functions(bell);
            let (_, digest) = sql.rsplit_once("functions = '").unwrap();
            let (digest, _) = digest.split_once('\'').unwrap();
            assert_eq!(Bell::of(digest), Some(bell));
        }
        assert_eq!(Bell::of(""), None);
    }
}
