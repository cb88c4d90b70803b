//! Code of other people, a table's owner or whoever may create in a schema, gets none of our rights.

use tokio_postgres::Client;

use crate::harness::{Database, command, database};

/// Somebody without rights, and a schema of hers.
async fn mallory(database: &Database) {
    database.role("mallory", "nologin").await;
    database.sql("create schema m authorization mallory").await;
}

/// What installs everything, as `rowcast sql` has it.
async fn script() -> String {
    let told = command().arg("sql").output().await.unwrap();
    assert!(told.status.success(), "{told:?}");
    String::from_utf8(told.stdout).unwrap()
}

async fn refused(client: &Client, sql: &str) -> String {
    let error = client.batch_execute(sql).await.unwrap_err();
    error.as_db_error().unwrap().message().to_owned()
}

/// The cast runs as the owner of our functions, who may change them.
#[tokio::test]
async fn a_cast_of_a_tables_owner_changes_none_of_our_functions() {
    let database = database().await;
    database.relay().await.kill().await;
    mallory(&database).await;
    database
        .sql(
            "create table m.t (id int primary key); alter table m.t owner to mallory; select rowcast.watch('m.t'); \
             set role mallory; create type m.e as enum ('a'); alter table m.t add column e m.e; \
             create function m.json(m.e) returns json language plpgsql as \
               $$ begin execute current_setting('m.does'); return '1'; end $$; \
             create cast (m.e as json) with function m.json(m.e)",
        )
        .await;
    let functions = "select json_agg(p order by p.oid) from pg_proc p where p.pronamespace = 'rowcast'::regnamespace";
    let before = database.one(functions).await;
    let client = database.client().await;
    for does in [
        "alter function rowcast.publish(text, json) security invoker set search_path = m, pg_catalog",
        "drop function rowcast.capture_plain() cascade",
        "grant execute on function rowcast.capture_plain() to mallory",
    ] {
        let insert = format!("set m.does = '{does}'; insert into m.t values (1, 'a')");
        let message = refused(&client, &insert).await;
        assert!(message.contains("is refused"), "{does}: {message}");
    }
    assert_eq!(database.one(functions).await, before);
    // It does nothing else to those who define things, and goes with everything.
    client
        .batch_execute("create table m.other (id int)")
        .await
        .unwrap();
    client
        .batch_execute(include_str!("../../sql/uninstall.sql"))
        .await
        .unwrap();
    let left = "select count(*) from pg_event_trigger where evtname like 'rowcast%'";
    assert_eq!(database.one(left).await, "0");
}

/// Whoever owns a table may let the login that listens read it.
#[tokio::test]
async fn a_cast_of_a_tables_owner_does_not_run_as_the_login_that_reads_the_log() {
    let database = database().await;
    let relay = database.relay().await;
    mallory(&database).await;
    database
        .sql(
            "create table m.t (id int primary key, x text); alter table m.t owner to mallory; \
             select rowcast.watch('m.t'); set role mallory; create type m.e as enum ('a'); \
             create function m.tells() returns boolean language plpgsql as $$ begin \
               if current_user = session_user then perform pg_advisory_lock(4711); end if; return true; end $$; \
             create function m.json(m.e) returns json language plpgsql as \
               $$ begin perform m.tells(); return '1'; end $$; \
             create cast (m.e as json) with function m.json(m.e); \
             create domain m.d as int check (m.tells()); \
             alter table m.t add column e m.e default 'a'; \
             create table m.u (id m.d primary key, x text); reset role; select rowcast.watch('m.u'); \
             create table kept (id int primary key, x text); select rowcast.watch('kept')",
        )
        .await;
    let (mut stream, mut screen) = relay.shown("/rest/v1/kept").await;
    for table in ["m.t", "m.u", "kept"] {
        let large = "insert into {} values (1, (select string_agg(md5(i::text), '') from generate_series(1, 20000) i))";
        let insert = large.replace("{}", table);
        let insert = match table {
            "kept" => insert,
            _ => format!("set role mallory; {insert}"),
        };
        database.sql(&insert).await;
    }
    // The feed tells what was committed last after it has read all of it.
    screen
        .follow(&mut stream, |screen| !screen.rows.is_empty())
        .await;
    assert_eq!(screen.rows["1"]["x"].as_str().unwrap().len(), 640_000);
    let locks = "select count(*) from pg_locks where locktype = 'advisory' and objid = 4711";
    assert_eq!(database.one(locks).await, "0");
}

/// Functions that suit a call better than PostgreSQL's own, in a schema of the search path.
async fn trap(database: &Database) {
    for arguments in [
        "text, text",
        "text, name",
        "text, oid",
        "text, regclass",
        "text, name, regclass",
    ] {
        let trap = format!(
            "create function public.format({arguments}) returns text language plpgsql as \
               $$ begin raise exception 'trapped'; end $$"
        );
        database.sql(&trap).await;
    }
}

#[tokio::test]
async fn whoever_installs_runs_no_function_of_others() {
    let ours = database().await;
    trap(&ours).await;
    ours.relay().await.kill().await;
    let client = ours.client().await;
    client
        .batch_execute("create table t (id int primary key); select rowcast.watch('t')")
        .await
        .unwrap();
    let uninstall = include_str!("../../sql/uninstall.sql");
    client.batch_execute(uninstall).await.unwrap();
    client.batch_execute(&script().await).await.unwrap();
}

#[tokio::test]
async fn what_runs_in_every_definition_stays_the_superusers() {
    let database = database().await;
    database.relay().await.kill().await;
    mallory(&database).await;
    let owners = "select string_agg(proname || ' ' || proowner::regrole, ', ' order by proname) from pg_proc \
                  where pronamespace = 'rowcast'::regnamespace and prorettype = 'event_trigger'::regtype";
    let before = database.one(owners).await;
    assert_eq!(
        before,
        "ddl postgres, defines_nothing postgres, dropped postgres"
    );
    database
        .sql("grant usage, create on schema rowcast to mallory")
        .await;
    for function in ["ddl", "defines_nothing", "dropped"] {
        database
            .sql(&format!(
                "drop function rowcast.{function}() cascade; set role mallory; \
                 create function rowcast.{function}() returns event_trigger language plpgsql as 'begin null; end'"
            ))
            .await;
    }
    assert_eq!(
        before.replace("postgres", "mallory"),
        database.one(owners).await
    );
    let client = database.client().await;
    client.batch_execute(&script().await).await.unwrap();
    assert_eq!(database.one(owners).await, before);
}
