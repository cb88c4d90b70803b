//! What the trigger writes into the log depends on the row alone, never on the session that wrote it.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::Value;

use crate::harness::{Database, database, eventually, seed};

/// Settings of a writer that has nothing as we have it.
const ODD: &str = "set timezone = 'Asia/Kolkata'; set datestyle = 'German, DMY'; \
     set intervalstyle = 'sql_standard'; set extra_float_digits = -5; set bytea_output = 'escape'; \
     set lc_monetary = 'C'; set search_path = odd, public";
/// How everybody in Rowcast sees rows.
const PINS: &str = "set timezone = 'UTC'; set datestyle = 'ISO'; set intervalstyle = 'iso_8601'; \
     set extra_float_digits = 1; set bytea_output = 'hex'; set lc_monetary = 'C'";

/// A type, the capture function that a table with it needs, and values.
const TYPES: [(&str, &str, &str); 45] = [
    ("boolean", "plain", "(true), (null)"),
    ("\"char\"", "plain", "('x')"),
    ("name", "plain", "('n\"n')"),
    ("smallint", "plain", "(-5)"),
    ("integer", "plain", "(7)"),
    ("bigint", "plain", "(9223372036854775807)"),
    ("oid", "plain", "(4294967295)"),
    ("numeric", "plain", "(1.10), ('NaN'), (1e40)"),
    ("text", "plain", "('a\nb')"),
    ("varchar(9)", "plain", "('v')"),
    ("char(9)", "plain", "('c')"),
    ("uuid", "plain", "('6fa459ea-ee8a-3ca4-894e-db77e160355e')"),
    ("json", "plain", "('{\"a\": 1e2}')"),
    ("jsonb", "plain", "('{\"a\": 1e2}')"),
    ("date", "plain", "('2026-03-04'), ('infinity')"),
    (
        "timestamp",
        "plain",
        "('2026-03-04 05:06:07.8'), ('-infinity')",
    ),
    ("time", "plain", "('23:59:59.5')"),
    ("inet", "plain", "('10.0.0.1/8')"),
    ("cidr", "plain", "('10.0.0.0/8')"),
    ("macaddr", "plain", "('08:00:2b:01:02:03')"),
    ("macaddr8", "plain", "('08:00:2b:01:02:03:04:05')"),
    ("bit(3)", "plain", "('101')"),
    ("varbit", "plain", "('1')"),
    ("date[]", "plain", "('{2026-03-04,null}')"),
    ("timestamp[]", "plain", "('{2026-03-04 05:06}')"),
    ("mood", "plain", "('glad')"),
    ("mood[]", "plain", "('{glad}')"),
    ("positive", "plain", "(3)"),
    ("moment", "plain", "('2026-03-04 05:06:07+00')"),
    ("timestamptz", "plain", "('2026-03-04 05:06:07.8+03')"),
    ("timestamptz[]", "plain", "('{2026-03-04 05:06+00}')"),
    ("moment[]", "all", "('{2026-03-04 05:06+00}')"),
    ("timetz", "all", "('23:59:59.5+05')"),
    ("interval", "all", "('1 day 2:03')"),
    ("real", "all", "(0.1)"),
    ("float8", "all", "(0.1::float8 + 0.2)"),
    ("float8[]", "all", "('{0.30000000000000004}')"),
    ("bytea", "all", "('\\x00ff41')"),
    ("money", "all", "(12.5)"),
    ("daterange", "all", "('[2026-03-04,2026-03-09)')"),
    ("tsrange", "all", "('[2026-03-04 01:00,)')"),
    ("tstzrange", "all", "('[2026-03-04 01:00+00,)')"),
    ("datemultirange", "all", "('{[2026-03-04,2026-03-09)}')"),
    ("point", "all", "('(0.1,0.2)')"),
    ("pair", "all", "(row(0.30000000000000004, '2026-03-04'))"),
];

async fn function(database: &Database, table: &str) -> String {
    let sql = format!(
        "select tgfoid::regproc::text from pg_trigger where tgname = '!rowcast' and tgrelid = '{table}'::regclass"
    );
    database.one(&sql).await
}

#[tokio::test]
async fn an_image_does_not_depend_on_the_settings_of_the_writer() {
    let database = database().await;
    database.relay().await.kill().await;
    let types = "create schema odd; create type mood as enum ('sad', 'glad'); \
                 create domain positive as int check (value > 0); create domain moment as timestamptz; \
                 create type pair as (f float8, d date)";
    database.sql(types).await;
    for (number, (of, needs, values)) in TYPES.iter().enumerate() {
        for capture in ["row", "statement"] {
            let table = format!("{capture}{number}");
            let sql = format!(
                "create table {table} (id int generated always as identity primary key, v {of}); select rowcast.watch('{table}', '{capture}')"
            );
            database.sql(&sql).await;
            let wanted = match *needs {
                "all" => "rowcast.capture".to_owned(),
                some => format!("rowcast.capture_{some}"),
            };
            assert_eq!(function(&database, &table).await, wanted, "{of}");
            database
                .sql(&format!("{ODD}; insert into public.{table} (v) values {values}; update public.{table} set id = default"))
                .await;
            // The log has times in the writer's zone; all who read it bring them to UTC (below).
            let told = match *of {
                "moment" | "timestamptz" | "timestamptz[]" => {
                    format!("row_to_json(json_populate_record(null::{table}, l.new))")
                }
                _ => "l.new".to_owned(),
            };
            let different = format!(
                "{PINS}; select string_agg(l.new::text, ' ') from rowcast.log l \
                 where l.rel = '{table}'::regclass and l.op = 'U' \
                   and {told}::text not in (select row_to_json(t)::text from {table} t)"
            );
            assert_eq!(database.one(&different).await, "", "{of}");
            let seen = format!(
                "select count(*) from rowcast.log where rel = '{table}'::regclass and op = 'U'"
            );
            assert_ne!(database.one(&seen).await, "0", "{of}");
        }
    }
}

/// Somebody's own meaning of all that the trigger says.
const TRAPS: &str = "create schema trap;
    create function trap.yes() returns boolean language plpgsql as $$
      begin insert into trap.caught values (current_user); return true; end $$;
    create table trap.caught (who text);
    grant usage on schema trap to public; grant all on trap.caught to public;
    create function trap.eq(text, text) returns boolean language sql as 'select trap.yes()';
    create function trap.eq(int, int) returns boolean language sql as 'select trap.yes()';
    create operator trap.= (leftarg = text, rightarg = text, function = trap.eq);
    create operator trap.= (leftarg = int, rightarg = int, function = trap.eq);
    create operator trap.<> (leftarg = text, rightarg = text, function = trap.eq);
    create operator trap.<= (leftarg = int, rightarg = int, function = trap.eq);
    create operator trap.> (leftarg = int, rightarg = int, function = trap.eq);
    create function trap.row_to_json(anyelement) returns json language sql as $$ select to_json(trap.yes()) $$;
    create function trap.pg_column_size(anyelement) returns int language sql as $$ select trap.yes()::int $$;
    create function trap.current_setting(text) returns text language sql as $$ select trap.yes()::text $$;
    create function trap.set_config(text, text, boolean) returns text language sql as $$ select trap.yes()::text $$;
    create domain trap.json as text check (trap.yes());
    create domain trap.text as pg_catalog.text check (trap.yes());
    create domain trap.bool as pg_catalog.bool check (trap.yes());
    create domain trap.int4 as pg_catalog.int4 check (trap.yes());
    create type trap.\"char\" as (x int)";

#[tokio::test]
async fn no_name_of_the_writer_is_taken_for_one_of_ours() {
    let database = database().await;
    database.relay().await.kill().await;
    database.sql(TRAPS).await;
    // A plain table, one with times, one that needs every pin, a guarded one; each with a row that is too large,
    // and one that is not small.
    for (table, of, capture) in [
        ("plain", "int", "row"),
        ("times", "timestamptz[]", "row"),
        ("pinned", "float8", "row"),
        ("guarded", "jsonb", "row"),
        ("together", "timestamptz", "statement"),
    ] {
        let sql = format!(
            "create table {table} (id int primary key, body text, v {of});
             select rowcast.watch('{table}', '{capture}');
             set search_path = trap, pg_catalog, public; set timezone = 'Asia/Kolkata';
             insert into public.{table} (id, body) values (1, 'x'), (2, repeat('y', 300000)),
               (3, (select string_agg(md5(i::pg_catalog.text), '') from generate_series(1, 150) i));
             update public.{table} set v = null;
             delete from public.{table}"
        );
        database.sql(&sql).await;
        let logged = format!(
            "select string_agg(op::text || ' ' || truncated, ', ' order by strpos('IUD', op::text), new ->> 'id', old ->> 'id') \
             from rowcast.log where rel = '{table}'::regclass and op <> 'R'"
        );
        let wanted = if capture == "row" {
            "I false, I true, I false, U false, U true, U false, D false, D true, D false"
        } else {
            // Beside one by key, what went and what came is logged for itself.
            "I false, I false, I true, I true, I false, I false, D false, D false, D true, D true, D false, D false"
        };
        assert_eq!(database.one(&logged).await, wanted, "{table}");
    }
    let caught = "select coalesce(string_agg(distinct who, ', '), '') from trap.caught";
    assert_eq!(database.one(caught).await, "");
    assert_eq!(
        database.one("select last_value from rowcast.gap").await,
        "1"
    );
    assert_eq!(database.one("select is_called from rowcast.gap").await, "f");
}

/// Zones of every kind: with halves and quarters of an hour, on both sides of the date line, and with the
/// seconds of the time before there were zones.
const ZONES: [&str; 9] = [
    "UTC",
    "Europe/Berlin",
    "America/St_Johns",
    "Asia/Kathmandu",
    "Pacific/Kiritimati",
    "Pacific/Marquesas",
    "Etc/GMT+12",
    "Europe/Amsterdam",
    "Africa/Monrovia",
];

#[tokio::test]
async fn times_are_told_in_utc_whatever_zone_the_writer_has() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create domain moment as timestamptz; \
             create table moments (at timestamptz, n int, said moment, all_of_them timestamptz[], note text, \
               primary key (at, n)); \
             create table halves (like moments including all) partition by range (n); \
             create table half (note text, all_of_them timestamptz[], said moment, n int not null, at timestamptz not null); \
             alter table halves attach partition half for values from (0) to (9); \
             select rowcast.watch('moments'), rowcast.watch('halves')",
        )
        .await;
    let since = "moments?said=gte.1900-06-01T00:00:00Z";
    let paths = ["moments", "halves", since].map(|path| format!("/rest/v1/{path}"));
    let mut screens = Vec::new();
    for path in &paths {
        screens.push((path, relay.shown(path).await));
    }
    let mut random = fastrand::Rng::with_seed(seed());
    for (n, zone) in ZONES.iter().enumerate() {
        let mut sql = format!("set local timezone = '{zone}';");
        // From the first year to the last, and around those in which clocks were changed.
        for span in [1_u64 << 43, 1 << 33, 1 << 32] {
            let span = i64::try_from(span).unwrap();
            let at = random.i64(-span.min(200_000_000_000)..span);
            let micros = random.i64(0..1_000_000);
            for table in ["moments", "halves"] {
                // A note that looks like a time, and one that makes the row too large for the log.
                write!(
                    sql,
                    "insert into {table} select v, {n}, v, array[v, null, 'infinity', v + interval '1 s'], \
                       case when {micros} % 3 = 0 then repeat('x', 300000) else '2026-03-04T05:06:07+05:30' end \
                     from (select to_timestamp({at}) + interval '{micros} us' as v) as one; \
                     update {table} set note = note || ' ' where n < {n} and abs(extract(epoch from at)) % 2 < 1;"
                )
                .unwrap();
            }
        }
        let txid = database.commit(&sql).await;
        for (path, (stream, screen)) in &mut screens {
            screen.reach(stream, &txid).await;
            let read = relay.get(path).await;
            let read = read.json();
            let read: BTreeSet<String> = read
                .as_array()
                .unwrap()
                .iter()
                .map(Value::to_string)
                .collect();
            let shown: BTreeSet<String> = screen.rows.values().map(Value::to_string).collect();
            assert_eq!(shown, read, "{path} {zone}");
            assert_eq!(screen.rows.len(), read.len(), "{path} {zone}");
        }
    }
    assert!(
        screens
            .iter()
            .all(|(_, (_, screen))| !screen.rows.is_empty())
    );
}

#[tokio::test]
async fn a_table_that_comes_to_need_more_gets_it_and_is_read_anew() {
    let database = database().await;
    let _relay = database.relay().await;
    database
        .sql("create table notes (id int primary key, title text); select rowcast.watch('notes')")
        .await;
    assert_eq!(function(&database, "notes").await, "rowcast.capture_plain");
    database
        .sql("alter table notes add share float8 default 0.1::float8 + 0.2")
        .await;
    // An image that is logged now has as many digits as the writer likes; the reset comes after it.
    let odd = database
        .commit("set local extra_float_digits = -5; insert into notes values (1)")
        .await;
    eventually("the other function", async || {
        (function(&database, "notes").await == "rowcast.capture").then_some(())
    })
    .await;
    let later = format!(
        "select count(*) from rowcast.log where op = 'R' and rel = 'notes'::regclass \
                         and id > (select max(id) from rowcast.log where xid::text = '{odd}')"
    );
    assert_ne!(database.one(&later).await, "0");
}

#[tokio::test]
async fn a_table_of_an_earlier_version_becomes_cheaper_and_nobody_reads_it_anew() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql("create table notes (id int primary key, title text); select rowcast.watch('notes')")
        .await;
    relay.kill().await;
    // As it was watched before there was a choice, and with the function for times of releases before this one.
    for earlier in ["capture", "capture_zoned"] {
        let earlier = format!(
            "do $$ begin if to_regprocedure('rowcast.{earlier}()') is null then \
               create function rowcast.{earlier}() returns trigger language plpgsql as 'begin return null; end'; \
             end if; end $$; \
             drop trigger \"!rowcast\" on notes; \
             create trigger \"!rowcast\" after insert or update or delete on notes for each row execute function rowcast.{earlier}(); \
             alter table notes enable always trigger \"!rowcast\"; \
             update rowcast.state set functions = ''"
        );
        database.sql(&earlier).await;
        let resets = "select count(*) from rowcast.log where op = 'R'";
        let before = database.one(resets).await;
        let relay = database.relay().await;
        eventually("the cheaper function", async || {
            (function(&database, "notes").await == "rowcast.capture_plain").then_some(())
        })
        .await;
        assert_eq!(database.one(resets).await, before);
        let always = "select tgenabled from pg_trigger where tgname = '!rowcast'";
        assert_eq!(database.one(always).await, "A");
        relay.kill().await;
    }
}

#[tokio::test]
async fn values_of_a_few_bytes_and_much_text_break_no_writer() {
    let database = database().await;
    database.relay().await.kill().await;
    database.sql("create domain amount as numeric").await;
    for (table, of, many) in [
        (
            "ranges",
            "numrange[]",
            "array_agg(numrange(1e131071, null))",
        ),
        ("amounts", "amount[]", "array_agg(1e131071::amount)"),
        (
            "paths",
            "jsonpath",
            "('$ ? (' || string_agg('@ == 1e131071', ' || ') || ')')::jsonpath",
        ),
    ] {
        // A row of less than a thousand bytes, and 13 MB of text.
        database
            .sql(&format!(
                "create table {table} (id int primary key, v {of}); select rowcast.watch('{table}');
                 insert into {table} select 1, {many} from generate_series(1, 100)"
            ))
            .await;
        let told = format!(
            "select string_agg(new::text || truncated, ', ' order by id) from rowcast.log \
             where rel = '{table}'::regclass and op = 'I'"
        );
        assert_eq!(database.one(&told).await, "{\"id\" : 1}true", "{table}");
    }
    assert_eq!(database.one("select is_called from rowcast.gap").await, "f");
}

/// Rows that are logged by their key are read again. Whoever reads the log does so for everybody.
#[tokio::test]
async fn a_column_of_any_name_keeps_nobody_from_reading_the_log() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create type pair as (a int, b text);
             create table odd (id int primary key, \"!row\" pair, s text, t text, k text, body text);
             create table tasks (id int primary key);
             select rowcast.watch('odd'), rowcast.watch('tasks')",
        )
        .await;
    let (mut odd, mut large) = relay.shown("/rest/v1/odd").await;
    let (mut tasks, mut screen) = relay.shown("/rest/v1/tasks").await;
    let txid = database
        .commit(
            "insert into odd values (1, null, 's', 't', 'k', repeat('x', 300000));
             insert into tasks values (1)",
        )
        .await;
    screen.reach(&mut tasks, &txid).await;
    large.reach(&mut odd, &txid).await;
    let shown: Vec<_> = large.rows.into_values().collect();
    assert_eq!(Value::from(shown), relay.get("/rest/v1/odd").await.json());
}
