//! `rowcast trace`: why a screen did not get a change. Was it captured, where is it in the log, is
//! it visible, has the relay read it, and what does each view that is open say of it.

use std::net::SocketAddr;

use serde_json::Value;
use tokio_postgres::Client;

use super::database::{Asked, cell, rows};
use super::print::say;
use super::{Told, database, healthcheck};
use crate::causes::Causes;
use crate::config::Config;
use crate::postgres::quote;

/// Transactions of one key that are told, the latest first.
const LATEST: usize = 5;

pub(super) async fn run(config: &Config, what: &[String]) -> anyhow::Result<()> {
    let (target, _) = database::running(config)?;
    let client = database::connect(&target).await?;
    let refused = |error: tokio_postgres::Error| {
        let found = match error.as_db_error() {
            Some(error) => error.message().to_owned(),
            None => Causes(&error).to_string(),
        };
        Told::new(
            "the change cannot be traced",
            found,
            "rowcast trace TABLE KEY, or rowcast trace TXID, as the login that the relay listens with",
        )
    };
    let limits = "set statement_timeout = '30s'; set search_path = pg_catalog, public, pg_temp";
    client.batch_execute(limits).await.map_err(refused)?;
    let transactions = match what {
        [txid] if txid.bytes().all(|byte| byte.is_ascii_digit()) => vec![txid.clone()],
        [table, key] => of_key(&client, table, key).await.map_err(refused)?,
        _ => {
            return Err(Told::new(
                "it is not clear what to trace",
                what.join(" "),
                "rowcast trace tasks 7, rowcast trace members 7,42 (a key of two columns), or rowcast trace 812345",
            )
            .into());
        }
    };
    for txid in transactions {
        in_the_database(&client, &txid).await.map_err(refused)?;
        match config.ops_listen {
            Some(address) => at_the_relay(address, &txid).await,
            None => say!(
                "  relay:    not asked; start it with --ops-listen 127.0.0.1:3001 and give the same here"
            ),
        }
    }
    Ok(())
}

/// The transactions in the log that touched a key; says what there is to know of the table.
async fn of_key(client: &Client, table: &str, key: &str) -> Asked<Vec<String>> {
    let name = quote::literal(table);
    // A time in the log is in the zone of who wrote it, and in a key as screens show it in UTC.
    let column = |image: &str| {
        format!(
            "string_agg(format(case when 'timestamptz'::regtype in (t.oid, t.typbasetype) \
             then 'to_json((l.{image} ->> %L)::timestamptz) #>> ''{{}}''' else 'l.{image} ->> %L' end, a.attname), \
             ', ' order by k.n) as {image}"
        )
    };
    let (old, new) = (column("old"), column("new"));
    let about = format!(
        "select c.oid, c.oid::regclass, w.rel is not null, w.rel is not null and rowcast.captured(c.oid), \
         p.old, p.new, p.names \
         from pg_class c left join rowcast.watched w on w.rel = c.oid \
         cross join lateral (select {old}, {new}, string_agg(a.attname, ',' order by k.n) as names \
                             from pg_index i cross join unnest(i.indkey) with ordinality k (attnum, n) \
                             join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum \
                             join pg_type t on t.oid = a.atttypid \
                             where i.indrelid = c.oid and i.indisprimary) as p \
         where c.oid = {name}::regclass"
    );
    let about = rows(client, &about).await?;
    let Some(about) = about.first() else {
        return Ok(Vec::new());
    };
    let (oid, table) = (cell(about, 0), cell(about, 1));
    let argument = quote::word(table);
    match (cell(about, 2), cell(about, 3)) {
        ("t", "t") => say!("table {table}: watched, and every change is captured"),
        ("t", _) => say!(
            "table {table}: watched, but its triggers are missing or disabled, so that changes are missed\n  try:      rowcast watch {argument}"
        ),
        _ => say!(
            "table {table}: not watched, so that no change of it is captured\n  try:      rowcast watch {argument}"
        ),
    }
    let (old, new) = (cell(about, 4), cell(about, 5));
    let wanted = quote::literal(key);
    // Apart, so that no other table's text is read as a time.
    let found = format!(
        "with l as materialized (select * from rowcast.log e where e.rel in (select rowcast.tree({oid}))) \
         select l.xid from l where {wanted} in (concat_ws(',', {old}), concat_ws(',', {new})) group by l.xid order by max(l.id) desc \
         limit {LATEST}"
    );
    if old.is_empty() {
        say!("  it has no primary key");
        return Ok(Vec::new());
    }
    let mut found: Vec<String> = rows(client, &found)
        .await?
        .iter()
        .map(|row| cell(row, 0).to_owned())
        .collect();
    if found.is_empty() {
        let reach = "select round(coalesce(reach, 0)) from rowcast.log_status()";
        let reach = rows(client, reach).await?;
        say!(
            "  key {key}: no change of it is in the log, which reaches back {} s: it is older, it was not captured, or it has \
             not been committed",
            reach.first().map_or("?", |row| cell(row, 0))
        );
        let names = cell(about, 6);
        if names.contains(',') {
            say!(
                "  try:      a key of this table is {names}, with a comma between, and times in UTC as screens show them"
            );
        }
    }
    found.reverse();
    Ok(found)
}

async fn in_the_database(client: &Client, txid: &str) -> Asked<()> {
    let known = format!("select coalesce(pg_xact_status('{txid}'::xid8), 'too old to tell')");
    let known = rows(client, &known).await;
    let state = match &known {
        Ok(rows) => rows
            .first()
            .map_or("unknown", |row| cell(row, 0))
            .to_owned(),
        // An id that was not given out yet.
        Err(error) if error.code().is_some() => "never begun in this life of the server".to_owned(),
        Err(_) => return known.map(drop),
    };
    say!("transaction {txid}: {state}");
    let captured = format!(
        "select coalesce(l.rel::regclass::text, coalesce('channel ' || l.channel, 'everything')), \
         case l.op when 'I' then 'insert' when 'U' then 'update' when 'D' then 'delete' when 'T' then 'truncate' \
                   when 'P' then 'message' else 'reset' end, \
         count(*), count(*) filter (where l.truncated), round(extract(epoch from clock_timestamp() - max(l.at))::numeric, 1) \
         from rowcast.log l where l.xid = '{txid}'::xid8 group by 1, 2 order by 1, 2"
    );
    let captured = rows(client, &captured).await?;
    for row in &captured {
        let by_key = match cell(row, 3) {
            "0" => String::new(),
            count => format!(", {count} of them by key alone"),
        };
        say!(
            "  captured: {} {} of {}{by_key}, {} s ago",
            cell(row, 2),
            cell(row, 1),
            cell(row, 0),
            cell(row, 4)
        );
    }
    if captured.is_empty() {
        let why = match state.as_str() {
            "in progress" => "it is still open; screens get it when it commits",
            "aborted" => "it was rolled back, and nothing of it was ever there",
            _ => "it touched no watched table, or its rows were trimmed",
        };
        say!("  captured: nothing: {why}");
    }
    let position = format!(
        "select pg_visible_in_snapshot('{txid}'::xid8, pg_current_snapshot()), \
         coalesce(pg_visible_in_snapshot('{txid}'::xid8, s.horizon), false), pg_current_snapshot(), \
         (select count(*) from rowcast.log l where l.op = 'R' and l.xid > '{txid}'::xid8) from rowcast.state s"
    );
    for row in rows(client, &position).await? {
        let horizon = if cell(&row, 1) == "t" {
            "before the horizon: who comes back from before it reads the state anew"
        } else {
            "after the horizon: who comes back from before it is told"
        };
        let visible = if cell(&row, 0) == "t" { "yes" } else { "no" };
        say!("  visible:  {visible}, in snapshot {}", cell(&row, 2));
        say!(
            "  position: {horizon}; {} resets were logged since",
            cell(&row, 3)
        );
    }
    Ok(())
}

async fn at_the_relay(address: SocketAddr, txid: &str) {
    let path = format!("/debug/trace?txid={txid}");
    let told = match healthcheck::get(address, &path).await {
        Ok((200, body)) => serde_json::from_str::<Value>(&body).unwrap_or_default(),
        Ok((status, body)) => {
            say!("  relay:    {address} answers {status}: {}", body.trim());
            return;
        }
        Err(error) => {
            say!("  relay:    none answers on {address}: {error}");
            return;
        }
    };
    let word = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    say!("  relay:    {address}: {}", word(&told["state"]));
    for view in told["views"].as_array().into_iter().flatten() {
        say!(
            "  view:     {} of {} as {}, {} streams: {}",
            word(&view["view"]),
            word(&view["table"]),
            view["role"].as_str().unwrap_or("the login"),
            view["streams"],
            word(&view["says"])
        );
    }
    if told["views"].as_array().is_some_and(Vec::is_empty) {
        say!("  view:     none that is open shows a table of it");
    }
}
