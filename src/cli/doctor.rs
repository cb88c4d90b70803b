//! `rowcast doctor`: what is wrong or will be, what that means, and what to do about it.
//!
//! Looks at the database with both logins, and asks the relay on `--listen` if one is there. It
//! changes nothing. Exit code 0 when there is no problem; notes are no problems.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio_postgres::{Client, SimpleQueryRow};

use super::database::{Asked, cell, rows};
use super::print::say;
use super::{Told, database, demo, healthcheck, names};
use crate::causes::Causes;
use crate::config::{Bell, Config};
use crate::postgres::connect::Target;
use crate::postgres::pooler;
use crate::postgres::quote;
use crate::schema::migrate;

/// Releases from which a listener survives that vacuum has removed the commit status of transactions
/// which are still in the notification queue: those of February 2026, by the dates of the fixes.
const NOTIFY_FIXED: [(u32, u32); 4] = [(15, 16), (16, 12), (17, 8), (18, 2)];
/// Longest time for all that is asked of the database: who looks for what is wrong must not be held up by it.
const PATIENCE: Duration = Duration::from_secs(20);
/// Clocks that differ by more make tokens expire early or late.
const CLOCKS: Duration = Duration::from_secs(2);
/// Connections that a relay has besides those for requests.
const CONNECTIONS: usize = 20;
/// Of these, what it has as the login that requests run as: for states, for views that ask, for opening streams.
const OF_REQUESTS: usize = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Note,
    Problem,
}

/// What was found in one place.
#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    subject: &'static str,
    #[serde(rename = "finding")]
    found: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    meaning: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
}

#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, subject: &'static str, found: impl Into<String>) {
        self.0.push(Finding {
            level: Level::Ok,
            subject,
            found: found.into(),
            meaning: "",
            remedy: String::new(),
        });
    }

    fn add(
        &mut self,
        level: Level,
        subject: &'static str,
        found: impl Into<String>,
        meaning: &'static str,
        remedy: impl Into<String>,
    ) {
        self.0.push(Finding {
            level,
            subject,
            found: found.into(),
            meaning,
            remedy: remedy.into(),
        });
    }
}

pub(super) async fn run(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let (target, _) = database::running(config)?;
    let mut findings = Findings::default();
    let examined = tokio::time::timeout(PATIENCE, examine(config, &target, &mut findings)).await;
    match examined {
        Ok(Ok(())) => {}
        Err(_elapsed) => findings.add(
            Level::Problem,
            "connection",
            format!(
                "the database has not answered all that is asked within {} s",
                PATIENCE.as_secs()
            ),
            "it has fallen silent, or what is in front of it, or somebody holds what is asked for",
            format!("{} -c 'table pg_stat_activity'", target.psql_line()),
        ),
        Ok(Err(told)) => findings.add(
            Level::Problem,
            "connection",
            told.to_string(),
            "nothing works without the database",
            "",
        ),
    }
    relay(config, &mut findings).await;
    let Findings(findings) = findings;
    let sick = findings
        .iter()
        .any(|finding| finding.level == Level::Problem);
    if json {
        let told = serde_json::json!({"ok": !sick, "findings": findings});
        say!("{told}");
    } else {
        for finding in &findings {
            print(finding);
        }
    }
    Ok(if sick {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn print(finding: &Finding) {
    let level = match finding.level {
        Level::Ok => "ok",
        Level::Note => "note",
        Level::Problem => "PROBLEM",
    };
    say!("{level:<8}{}: {}", finding.subject, finding.found);
    if !finding.meaning.is_empty() {
        say!("        means: {}", finding.meaning);
    }
    if !finding.remedy.is_empty() {
        say!("        try:   {}", finding.remedy);
    }
}

async fn examine(config: &Config, target: &Target, findings: &mut Findings) -> Result<(), Told> {
    match pooler::found(target).await {
        Ok(None) => findings.ok(
            "connection",
            format!("{target} answers, and sessions are whole"),
        ),
        Ok(Some(found)) => {
            pooled(found, "DATABASE_URL", findings);
            // Nothing else that is asked through it would be true for certain.
            return Ok(());
        }
        Err(error) => return Err(database::unreachable(target, &error)),
    }
    let client = database::connect(target).await?;
    server(config, &client, findings).await.map_err(refused)?;
    clock(&client, findings).await.map_err(refused)?;
    let installed = "select to_regclass('rowcast.state') is not null";
    if text(&client, installed).await.map_err(refused)? != "t" {
        findings.add(
            Level::Problem,
            "schema",
            "Rowcast is not installed in this database",
            "no table is live",
            "rowcast serve, or: rowcast sql | psql -v ON_ERROR_STOP=1",
        );
        return Ok(());
    }
    let owned = "select exists (select from pg_namespace n join pg_roles o on o.oid = n.nspowner \
                 where n.nspname = 'rowcast' and o.rolname = 'rowcast_owner')";
    if text(&client, owned).await.map_err(refused)? != "t" {
        findings.add(
            Level::Problem,
            "schema",
            "the schema rowcast does not belong to rowcast_owner",
            "a dump was restored without its owners or roles: triggers run with the rights of who restored it",
            "as that one: rowcast serve, or: rowcast sql | psql -v ON_ERROR_STOP=1",
        );
        return Ok(());
    }
    let stranger = "select quote_ident(current_user) where not pg_has_role(current_user, 'rowcast_owner', 'usage')";
    let stranger = text(&client, stranger).await.map_err(refused)?;
    if !stranger.is_empty() {
        findings.add(
            Level::Problem,
            "listening login",
            format!("{stranger} is no member of rowcast_owner"),
            "it may neither read nor keep the log",
            format!("grant rowcast_owner to {stranger};"),
        );
        // All that follows is asked of tables that are closed to it.
        return Ok(());
    }
    schema(&client, findings).await.map_err(refused)?;
    listening_login(&client, findings).await.map_err(refused)?;
    tables(&client, findings).await.map_err(refused)?;
    partitions(&client, findings).await.map_err(refused)?;
    the_log(config, &client, findings).await.map_err(refused)?;
    bell(config, &client, findings).await.map_err(refused)?;
    replication(&client, findings).await.map_err(refused)?;
    requests(config, target, &client, findings).await
}

#[allow(clippy::needless_pass_by_value, reason = "what map_err has")]
fn refused(error: tokio_postgres::Error) -> Told {
    Told::new(
        "the database could not be examined",
        Causes(&error),
        "the login of DATABASE_URL, as the relay has it",
    )
}

/// The login that requests run as, and what settings name for it.
async fn requests(
    config: &Config,
    target: &Target,
    client: &Client,
    findings: &mut Findings,
) -> Result<(), Told> {
    let own = match config.api_url {
        Some(_) => CONNECTIONS - OF_REQUESTS,
        None => config.pool + CONNECTIONS,
    };
    login_room(client, own, findings).await.map_err(refused)?;
    if config.api_url.is_some() {
        let api = database::api(config, target)?;
        let requests = database::connect(&api).await?;
        let wanted = config.pool + OF_REQUESTS;
        login_room(&requests, wanted, findings)
            .await
            .map_err(refused)?;
        let here = database::place(client).await.map_err(refused)?;
        if database::place(&requests).await.map_err(refused)? == here {
            api_login(&requests, findings).await.map_err(refused)?;
            if let Ok(Some(found)) = pooler::found(&api).await {
                pooled(found, "ROWCAST_API_URL", findings);
            }
            missing(config, &requests, findings)
                .await
                .map_err(refused)?;
        } else {
            findings.add(
                Level::Problem,
                "api login",
                format!("{api} is another database than {target}"),
                "requests go to one and streams tell of the other; serve refuses to start",
                "the same server and database in --api-url and --database-url",
            );
        }
    } else if config.database_url.is_none() && demo::is_wanted(config) {
        findings.ok(
            "api login",
            format!(
                "requests run as {}, which has no rights of its own",
                demo::LOGIN
            ),
        );
    } else {
        missing(config, client, findings).await.map_err(refused)?;
        findings.add(
            Level::Note,
            "api login",
            "requests run as the login that listens",
            "whoever gets out of a role's rights in a request reaches the log",
            "--api-url with a login that has no rights of its own; see sql/roles.sql",
        );
    }
    Ok(())
}

fn pooled(found: String, setting: &str, findings: &mut Findings) {
    findings.add(
        Level::Problem,
        "pooler",
        found,
        "a transaction pooler stands in front of the server: no notification arrives, and settings of a session are lost",
        format!("the server's own address as {setting}; writers may stay behind the pooler"),
    );
}

/// The first column of the first row.
async fn text(client: &Client, sql: &str) -> Asked<String> {
    let rows = rows(client, sql).await?;
    let first = rows.first().and_then(|row| row.get(0));
    Ok(first.unwrap_or_default().to_owned())
}

async fn missing(config: &Config, requests: &Client, findings: &mut Findings) -> Asked<()> {
    for missing in names::missing(config, requests).await? {
        findings.add(
            Level::Problem,
            "names",
            format!("{}: {}", missing.setting, missing.found),
            "requests fail until it is there",
            missing.remedy,
        );
    }
    Ok(())
}

async fn server(config: &Config, client: &Client, findings: &mut Findings) -> Asked<()> {
    if text(client, "select pg_is_in_recovery()").await? == "t" {
        findings.add(
            Level::Problem,
            "standby",
            "pg_is_in_recovery() is true",
            "a standby has no notifications and no epoch; a relay waits there until it is promoted",
            "the primary's address, or several with target_session_attrs=read-write",
        );
    }
    let number: u32 = text(client, "show server_version_num")
        .await?
        .parse()
        .unwrap_or(0);
    let (major, minor) = (number / 10_000, number % 10_000);
    let fixed = NOTIFY_FIXED.iter().find(|(fixed, _)| *fixed == major);
    if major < 15 {
        findings.add(
            Level::Problem,
            "version",
            format!("PostgreSQL {major}.{minor}"),
            "the log needs PostgreSQL 15 or later",
            "upgrade the server",
        );
    } else if fixed.is_some_and(|(_, fixed)| minor < *fixed) {
        findings.add(
            Level::Note,
            "version",
            format!("PostgreSQL {major}.{minor}"),
            "a listener may fail with \"could not access status of transaction\"; the relay then polls until it has listened anew",
            format!("the latest minor release of {major}"),
        );
    } else {
        findings.ok("version", format!("PostgreSQL {major}.{minor}"));
    }

    settings(config, client, findings).await?;
    room(config, client, findings).await
}

/// Who is connected besides relays. Of others' sessions a login without `pg_read_all_stats` is told the database, the
/// user and the name of the application, and nothing of what kind they are.
const OTHERS: &str = "from pg_stat_activity where datid is not null \
    and coalesce(backend_type, 'client backend') = 'client backend' and coalesce(application_name, '') not like 'rowcast%'";

/// Whether the server and the database have room for a relay.
async fn room(config: &Config, client: &Client, findings: &mut Findings) -> Asked<()> {
    let places = format!(
        "select 'the server', current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int \
           - coalesce(current_setting('reserved_connections', true)::int, 0) - (select count(*) {OTHERS}), \
           'alter system set max_connections = 200; and restart the server' \
         union all \
         select format('database %I', d.datname), d.datconnlimit - (select count(*) {OTHERS} and datid = d.oid), \
           format('alter database %I connection limit -1;', d.datname) \
         from pg_database d, pg_roles r \
         where d.datname = current_database() and d.datconnlimit >= 0 and r.rolname = current_user and not r.rolsuper"
    );
    enough(
        &rows(client, &places).await?,
        config.pool + CONNECTIONS,
        findings,
    );
    Ok(())
}

/// Whether a login has room for its part of a relay.
async fn login_room(client: &Client, wanted: usize, findings: &mut Findings) -> Asked<()> {
    let login = format!(
        "select format('role %I', r.rolname), r.rolconnlimit - (select count(*) {OTHERS} and usesysid = r.oid), \
           format('alter role %I connection limit -1;', r.rolname) \
         from pg_roles r where r.rolname = current_user and r.rolconnlimit >= 0 and not r.rolsuper"
    );
    enough(&rows(client, &login).await?, wanted, findings);
    Ok(())
}

fn enough(places: &[SimpleQueryRow], wanted: usize, findings: &mut Findings) {
    for row in places {
        let place = cell(row, 0);
        let left: i64 = cell(row, 1).parse().unwrap_or(0);
        if usize::try_from(left).is_ok_and(|left| left >= wanted) {
            let found =
                format!("{place} has {left} left for relays, each of which takes up to {wanted}");
            findings.ok("connections", found);
        } else {
            findings.add(
                Level::Problem,
                "connections",
                format!("{place} has {left} left by others, and a relay takes up to {wanted}"),
                "requests and screens are refused when there is no connection left",
                format!(
                    "{}, or a smaller --pool",
                    cell(row, 2).trim_end_matches(';')
                ),
            );
        }
    }
}

async fn settings(config: &Config, client: &Client, findings: &mut Findings) -> Asked<()> {
    // As the login gets them, since our own session has others.
    let settings = "select name, reset_val, coalesce(unit, '') from pg_settings where name in \
        ('fsync', 'full_page_writes', 'autovacuum', 'synchronous_commit', 'statement_timeout', 'transaction_timeout', \
         'idle_session_timeout', 'max_prepared_transactions') order by name";
    for row in rows(client, settings).await? {
        let (name, value) = (cell(&row, 0).to_owned(), cell(&row, 1));
        let short = value
            .parse::<u64>()
            .is_ok_and(|ms| (1..10_000).contains(&ms));
        let found = format!("{name} = {value} {}", cell(&row, 2))
            .trim_end()
            .to_owned();
        match (name.as_str(), value) {
            ("fsync" | "full_page_writes", "off") => findings.add(
                Level::Problem,
                "settings",
                found,
                "a crash of the machine may leave a database that contradicts itself",
                format!("alter system set {name} = on; select pg_reload_conf();"),
            ),
            ("autovacuum", "off") => findings.add(
                Level::Problem,
                "settings",
                found,
                "the space of trimmed log rows is never given back",
                "alter system set autovacuum = on; select pg_reload_conf();",
            ),
            ("synchronous_commit", "off") => findings.add(
                Level::Note,
                "settings",
                found,
                "a crash may take back commits that screens have shown; they start over then",
                "",
            ),
            ("statement_timeout" | "transaction_timeout", _) if short => findings.add(
                Level::Problem,
                "settings",
                found,
                "reading the log after a large change is cut off, again and again",
                format!("alter role {} set {name} = 0;", text(client, "select quote_ident(current_user)").await?),
            ),
            ("idle_session_timeout", _) if short => findings.add(
                Level::Problem,
                "settings",
                found,
                "pooled connections are cut between two requests",
                format!("alter role {} set {name} = 0;", text(client, "select quote_ident(current_user)").await?),
            ),
            ("max_prepared_transactions", value) if value != "0" && config.bell == Bell::Always => findings.add(
                Level::Problem,
                "bell",
                found,
                "PREPARE TRANSACTION fails after a change of a watched table: the bell rings in it",
                "--bell auto",
            ),
            _ => {}
        }
    }
    Ok(())
}

async fn clock(client: &Client, findings: &mut Findings) -> Asked<()> {
    let before = SystemTime::now();
    let theirs = text(client, "select extract(epoch from clock_timestamp())").await?;
    let after = SystemTime::now();
    let seconds = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(0.0, |since| since.as_secs_f64())
    };
    let ours = f64::midpoint(seconds(before), seconds(after));
    let difference = theirs.parse::<f64>().unwrap_or(ours) - ours;
    if difference.abs() > CLOCKS.as_secs_f64() {
        findings.add(
            Level::Problem,
            "clock",
            format!("the database's is {difference:+.1} s from ours"),
            "tokens expire early or late, and delays of changes are measured wrong",
            "a time service (NTP) on both machines",
        );
    } else {
        findings.ok(
            "clock",
            // Adding zero takes the sign from one.
            format!(
                "the database's is {:+.3} s from ours",
                (difference * 1e3).round() / 1e3 + 0.0
            ),
        );
    }
    Ok(())
}

async fn schema(client: &Client, findings: &mut Findings) -> Asked<()> {
    let state = "select version, coalesce((to_json(s) ->> 'needs')::int, 0), split_part(functions, ' ', 1) from rowcast.state s";
    let ours = migrate::version();
    let state = rows(client, state).await?;
    if state.is_empty() {
        findings.add(
            Level::Problem,
            "schema",
            "rowcast.state has no row",
            "a dump of definitions alone was restored, or a restore is not over",
            "once it is over: rowcast serve, or: rowcast sql | psql -v ON_ERROR_STOP=1",
        );
    }
    for row in state {
        let version: i32 = cell(&row, 0).parse().unwrap_or(0);
        let needs: i32 = cell(&row, 1).parse().unwrap_or(0);
        if needs > ours {
            findings.add(
                Level::Problem,
                "schema",
                format!(
                    "version {version}, which needs relays of version {needs}; this one is {ours}"
                ),
                "this release does not serve here",
                "a later release of Rowcast",
            );
        } else if version < ours {
            findings.add(
                Level::Note,
                "schema",
                format!("version {version}; this release brings {ours}"),
                "it is upgraded when this release is started, while others go on",
                "rowcast serve, or: rowcast sql | psql -v ON_ERROR_STOP=1",
            );
        } else {
            findings.ok(
                "schema",
                format!("version {version}, functions of release {}", cell(&row, 2)),
            );
        }
    }
    Ok(())
}

async fn listening_login(client: &Client, findings: &mut Findings) -> Asked<()> {
    let login = "select quote_ident(current_user), rolsuper, \
        coalesce((select string_agg(w.rel::regclass::text, ', ') from rowcast.watched w join pg_class c on c.oid = w.rel \
                  where not has_table_privilege(c.oid, 'select')), ''), \
        coalesce((select string_agg(w.rel::regclass::text, ', ') from rowcast.watched w join pg_class c on c.oid = w.rel \
                  where not pg_has_role(c.relowner, 'usage')), '') \
        from pg_roles where rolname = current_user";
    let seen = "select pg_has_role(current_user, 'pg_read_all_stats', 'usage')";
    let sees_all = text(client, seen).await? == "t";
    for row in rows(client, login).await? {
        let name = cell(&row, 0).to_owned();
        let superuser = cell(&row, 1) == "t";
        if superuser {
            findings.add(
                Level::Note,
                "listening login",
                format!("{name} is a superuser"),
                "more rights than the relay needs",
                "a login like rowcast_listen of sql/roles.sql",
            );
        } else {
            findings.ok("listening login", format!("{name} reads and keeps the log"));
        }
        if !cell(&row, 2).is_empty() {
            findings.add(
                Level::Note,
                "listening login",
                format!("{name} may not read {}", cell(&row, 2)),
                "a row above 256 KiB is told there without its value, and screens fetch it",
                format!("grant select on … to {name};"),
            );
        }
        if !cell(&row, 3).is_empty() {
            findings.add(
                Level::Note,
                "listening login",
                format!("{name} does not own {}", cell(&row, 3)),
                "it cannot repair triggers there; what is missing is told, and screens are reset",
                "rowcast watch as the table's owner, after each new partition",
            );
        }
        if !sees_all {
            findings.add(
                Level::Note,
                "listening login",
                format!("{name} is no member of pg_read_all_stats"),
                "a transaction of somebody else that holds up the log is told without its name",
                format!("grant pg_read_all_stats to {name};"),
            );
        }
    }
    Ok(())
}

/// Who owns a partitioned table and may not call its triggers.
async fn partitions(client: &Client, findings: &mut Findings) -> Asked<()> {
    let helpless = "select distinct w.rel::regclass::text, c.relowner::regrole::text \
        from rowcast.watched w cross join rowcast.tree(w.rel) as r (relid) \
        join pg_class c on c.oid = r.relid and c.relkind = 'p' \
        where not has_function_privilege(c.relowner, to_regprocedure('rowcast.capture()'), 'execute') \
           or not has_function_privilege(c.relowner, to_regprocedure('rowcast.capture_plain()'), 'execute')";
    for row in rows(client, helpless).await? {
        let (table, owner) = (cell(&row, 0), cell(&row, 1));
        findings.add(
            Level::Problem,
            "partitions",
            format!("{owner} can make none of {table}"),
            "PostgreSQL refuses new partitions to whoever may not call their triggers: permission denied for function",
            format!("as who installed Rowcast: rowcast watch {}", quote::word(table)),
        );
    }
    Ok(())
}

async fn tables(client: &Client, findings: &mut Findings) -> Asked<()> {
    // Functions of a release before do not tell.
    let tells_rows = "select to_regprocedure('rowcast.captured_rows(oid)') is not null";
    let rows_captured = match text(client, tells_rows).await?.as_str() {
        "t" => "c.oid is not null and rowcast.captured_rows(w.rel)",
        _ => "false",
    };
    let watched = format!(
        "select w.rel::regclass::text, c.oid is null, c.oid is not null and rowcast.captured(w.rel), \
        c.oid is not null and (w.shape <> rowcast.shape(w.rel)), \
        c.oid is not null and not rowcast.suited(w.rel), {rows_captured} \
        from rowcast.watched w left join pg_class c on c.oid = w.rel order by 1"
    );
    let watched = rows(client, &watched).await?;
    if watched.is_empty() {
        findings.add(
            Level::Note,
            "tables",
            "none is watched",
            "nothing is live",
            "rowcast watch TABLE",
        );
    }
    let mut fine = Vec::new();
    for row in &watched {
        let table = cell(row, 0);
        if cell(row, 1) == "t" {
            findings.add(
                Level::Note,
                "tables",
                format!("table with oid {table} was dropped"),
                "its streams end with the reason within seconds",
                "a relay that runs tidies up",
            );
        } else if cell(row, 2) != "t" && cell(row, 5) == "t" {
            findings.add(
                Level::Note,
                "triggers",
                format!("a partition of {table} has none on truncations"),
                "where it alone is truncated, screens are told within seconds and not at once",
                format!("rowcast watch {}", quote::word(table)),
            );
        } else if cell(row, 2) != "t" {
            findings.add(
                Level::Problem,
                "triggers",
                format!("those of {table} are missing, disabled or not ALWAYS"),
                "changes are missed; a relay that may do so repairs it within seconds and resets the table's screens",
                format!("rowcast watch {}", quote::word(table)),
            );
        } else if cell(row, 3) == "t" {
            findings.add(
                Level::Note,
                "drift",
                format!("definition or permissions of {table} have changed since the last check"),
                "a relay that runs resets the table's screens within seconds",
                "",
            );
        } else if cell(row, 4) == "t" {
            findings.add(
                Level::Note,
                "triggers",
                format!("those of {table} do more than they must"),
                "its writers pay for it; somebody read the table when it was to change, or the relay does not own it",
                format!("rowcast watch {}", quote::word(table)),
            );
        } else {
            fine.push(table);
        }
    }
    if !fine.is_empty() {
        findings.ok(
            "tables",
            format!("every change is captured of {}", fine.join(", ")),
        );
    }
    let order =
        "select seqcache from pg_sequence where seqrelid = to_regclass('rowcast.log_id_seq')";
    let cached = text(client, order).await?;
    if cached != "1" {
        findings.add(
            Level::Problem,
            "order",
            format!("the sequence of the log has CACHE {cached}"),
            "versions of one row may be delivered in the wrong order; a relay repairs it or is not ready",
            "select rowcast.check_order();",
        );
    }
    Ok(())
}

async fn the_log(config: &Config, client: &Client, findings: &mut Findings) -> Asked<()> {
    let status = "select to_regprocedure('rowcast.log_status()') is not null";
    if text(client, status).await? != "t" {
        return Ok(());
    }
    let status = "select kept, bytes, file, round(coalesce(reach, 0)), round(held), coalesce(holder, ''), \
        coalesce(extract(epoch from clock_timestamp() - trimmed_early), 1e9), \
        (select relpersistence from pg_class where oid = 'rowcast.log'::regclass), \
        not exists (select from pg_index where indexrelid = to_regclass('rowcast.log_touched') and indisvalid), \
        (select relpersistence from pg_class where oid = to_regclass('rowcast.log_id_seq')), \
        (select relpersistence from pg_class where oid = 'rowcast.epoch'::regclass), \
        to_regprocedure('rowcast.emptied_by_hand()') is not null and not exists (select from pg_trigger \
          where tgrelid = 'rowcast.log'::regclass and tgname = 'emptied' and tgenabled = 'A' \
          and tgfoid = to_regprocedure('rowcast.emptied_by_hand()')) \
        from rowcast.log_status()";
    for row in rows(client, status).await? {
        let number = |at: usize| cell(&row, at).parse::<f64>().unwrap_or(0.0);
        let found = format!(
            "{} rows, {} bytes; {} bytes on disk; tokens of the last {} s can be served",
            cell(&row, 0),
            cell(&row, 1),
            cell(&row, 2),
            cell(&row, 3)
        );
        if number(6) < config.retention.as_secs_f64() {
            findings.add(
                Level::Note,
                "log",
                found,
                "it was trimmed for its size, before the retention was over: who comes back late reads the state anew",
                "a larger --log-size, or a shorter --retention",
            );
        } else {
            findings.ok("log", found);
        }
        if cell(&row, 7) == "p" {
            findings.add(
                Level::Note,
                "log",
                "rowcast.log is written ahead",
                "each change of a watched table goes to the disk, archives and standbys twice; it held too much to be \
                 changed when Rowcast was installed, or is published",
                "when writers can wait for a moment: alter table rowcast.log set unlogged; \
                 alter sequence rowcast.log_id_seq set logged;",
            );
        }
        if cell(&row, 9) == "u" {
            findings.add(
                Level::Problem,
                "sequence",
                "the sequence of the log is not written ahead",
                "after a promotion or a recovery PostgreSQL may not be able to read it, and no write of a watched table succeeds",
                "alter sequence rowcast.log_id_seq set logged;",
            );
        }
        if cell(&row, 10) == "p" {
            findings.add(
                Level::Problem,
                "epoch",
                "rowcast.epoch is written ahead",
                "it survives a crash, which gives transaction ids out again: screens that come back may miss changes in silence",
                "alter table rowcast.epoch set unlogged; select rowcast.new_epoch();",
            );
        }
        if cell(&row, 8) == "t" {
            findings.add(
                Level::Note,
                "log",
                "rowcast.log has the index of an earlier version",
                "when a transaction of a million rows commits, the others wait until each of its rows was looked at; it \
                 held too much to be changed when Rowcast was installed, or is published",
                "create index concurrently log_touched on rowcast.log (xid, op, rel, id) with (deduplicate_items = off); \
                 then, unless it is published: alter table rowcast.log drop constraint log_pkey;",
            );
        }
        if cell(&row, 11) == "t" {
            findings.add(
                Level::Problem,
                "truncate",
                "nothing notices when rowcast.log is emptied by hand",
                "screens that come back would miss what they had not read, in silence; somebody who had written to a \
                 watched table was still at it when Rowcast was installed",
                "create or replace trigger emptied after delete or truncate on rowcast.log for each statement \
                 execute function rowcast.emptied_by_hand(); alter table rowcast.log enable always trigger emptied;",
            );
        }
        let limit = f64::from(u32::try_from(config.long_transaction).unwrap_or(u32::MAX));
        if number(4) >= limit {
            findings.add(
                Level::Problem,
                "transaction",
                format!("open for {} s: {}", cell(&row, 4), cell(&row, 5)),
                "what it wrote, and the space of all that is deleted meanwhile, stays until it ends",
                "end it; idle_in_transaction_session_timeout ends those that were forgotten",
            );
        }
    }
    Ok(())
}

async fn bell(config: &Config, client: &Client, findings: &mut Findings) -> Asked<()> {
    let rings =
        "select prosrc like '%notify%' from pg_proc where oid = to_regprocedure('rowcast.rang()')";
    let rings = text(client, rings).await? == "t";
    let prepared = text(client, "show max_prepared_transactions").await? != "0";
    match (rings, config.bell, prepared) {
        (true, Bell::Off, _) => findings.add(
            Level::Note,
            "bell",
            "writers ring, and --bell is off",
            "it falls silent when a relay with this setting starts",
            "",
        ),
        (true, Bell::Auto, true) => findings.add(
            Level::Problem,
            "bell",
            "writers ring, and max_prepared_transactions is not 0",
            "PREPARE TRANSACTION fails after a change of a watched table",
            "rowcast sql --bell off | psql -v ON_ERROR_STOP=1, as the one who installed it; or start a relay whose login may do that",
        ),
        (true, ..) => findings.ok("bell", "writers ring"),
        (false, Bell::Auto, true) | (false, Bell::Off, _) => {
            findings.ok("bell", "writers do not ring; relays poll");
        }
        (false, ..) => findings.add(
            Level::Note,
            "bell",
            "writers do not ring",
            "screens wait for the next poll",
            "start a relay, which installs the bell",
        ),
    }
    let usage = text(client, "select pg_notification_queue_usage()").await?;
    let usage: f64 = usage.parse().unwrap_or(0.0);
    let found = format!("the notification queue is {:.2} % full", usage * 100.0);
    if usage > 0.01 {
        findings.add(
            Level::Problem,
            "queue",
            found,
            "a session listens inside a transaction or does not read; once the queue is full every commit that notifies fails",
            "select pid, application_name, state, xact_start from pg_stat_activity where wait_event = 'ClientWrite' or state like 'idle in%';",
        );
    } else {
        findings.ok("queue", found);
    }
    Ok(())
}

async fn replication(client: &Client, findings: &mut Findings) -> Asked<()> {
    let slots = "select slot_name, active, coalesce(pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)), ''), \
        coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0) > 1073741824, xmin is not null or catalog_xmin is not null \
        from pg_replication_slots where not pg_is_in_recovery()";
    for row in rows(client, slots).await? {
        let (name, active) = (cell(&row, 0), cell(&row, 1) == "t");
        if !active && (cell(&row, 3) == "t" || cell(&row, 4) == "t") {
            findings.add(
                Level::Problem,
                "slot",
                format!(
                    "replication slot {name} is not in use and keeps {} of WAL",
                    cell(&row, 2)
                ),
                "the disk fills up, or dead rows are not removed",
                format!("select pg_drop_replication_slot('{name}'); if nobody will use it again"),
            );
        }
    }
    // A login without pg_read_all_stats sees its own sessions, such as the relay's.
    let waiting = "select count(*), round(extract(epoch from max(clock_timestamp() - xact_start))) from pg_stat_activity \
        where wait_event = 'SyncRep' having max(clock_timestamp() - xact_start) > interval '5 s'";
    for row in rows(client, waiting).await? {
        findings.add(
            Level::Problem,
            "standby",
            format!(
                "{} sessions wait in their commit for a synchronous standby, one for {} s",
                cell(&row, 0),
                cell(&row, 1)
            ),
            "no write comes to its end, and no screen shows what was written",
            "the standby back; or: alter system set synchronous_standby_names = ''; select pg_reload_conf();",
        );
    }
    let published = "select string_agg(pubname, ', ') from pg_publication where puballtables";
    let published = text(client, published).await?;
    if !published.is_empty() {
        findings.add(
            Level::Note,
            "publication",
            format!("{published} is for all tables, and so for those of Rowcast"),
            "a subscriber receives the log, and its own relay would find foreign transaction ids in it",
            "publications that name their tables or schemas",
        );
    }
    Ok(())
}

async fn api_login(client: &Client, findings: &mut Findings) -> Asked<()> {
    let login = "select quote_ident(current_user), rolsuper, rolbypassrls, \
        coalesce(has_schema_privilege('rowcast', 'usage') and has_table_privilege('rowcast.log', 'select'), false), \
        coalesce((select string_agg(r.rolname, ', ' order by r.rolname) from pg_auth_members m \
                  join pg_roles r on r.oid = m.roleid where m.member = o.oid), '') \
        from pg_roles o where rolname = current_user";
    for row in rows(client, login).await? {
        let name = cell(&row, 0);
        if cell(&row, 1) == "t" || cell(&row, 2) == "t" {
            findings.add(
                Level::Problem,
                "api login",
                format!("{name} is a superuser or has BYPASSRLS"),
                "policies do not hold for requests without a role",
                "a login like rowcast_api of sql/roles.sql",
            );
        } else if cell(&row, 3) == "t" {
            findings.add(
                Level::Problem,
                "api login",
                format!("{name} may read rowcast.log"),
                "whoever gets out of a role's rights in a request sees every change",
                format!("revoke rowcast_owner from {name}; revoke all on rowcast.log from {name};"),
            );
        } else if cell(&row, 4).is_empty() {
            findings.add(
                Level::Note,
                "api login",
                format!("{name} is a member of no role"),
                "requests run as this login itself",
                format!("grant web_anon, web_user to {name};"),
            );
        } else {
            findings.ok("api login", format!("{name} may become {}", cell(&row, 4)));
        }
    }
    Ok(())
}

/// What the relay says of itself, if there is one.
async fn relay(config: &Config, findings: &mut Findings) {
    match healthcheck::ready(config.listen).await {
        Ok((true, _)) => findings.ok("relay", format!("the one on {} is ready", config.listen)),
        Ok((false, why)) => findings.add(
            Level::Problem,
            "relay",
            format!("the one on {} is not ready: {why}", config.listen),
            "a balancer sends nobody there; open screens know that they are stale",
            "",
        ),
        Err(error) => findings.add(
            Level::Note,
            "relay",
            format!("none answers on {}: {error}", config.listen),
            "",
            "rowcast serve",
        ),
    }
}
