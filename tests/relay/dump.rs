//! A dump of a database, restored on another server, is a live database like any other.

use std::process::Stdio;

use tokio::process::Command;

use crate::harness::{DEADLINE, Database, Relay, Screen, Server, command, database, eventually};
use crate::policies::{SECRET, Watcher, token};

/// Copies a database as operators do. Roles are the cluster's own and come first.
async fn dumped(from: &Database, into: &Database) {
    let copy = "set -e; dump=$(mktemp); trap 'rm $dump' EXIT; \
                pg_dumpall -d \"$0\" --roles-only >\"$dump\"; grep -v 'ROLE postgres' \"$dump\" | psql -q -d \"$1\"; \
                pg_dump -d \"$0\" >\"$dump\"; psql -q -v ON_ERROR_STOP=1 -f \"$dump\" -d \"$1\"";
    let done = Command::new("sh")
        .args(["-c", copy, &from.url, &into.url])
        .stdout(Stdio::null())
        .status();
    assert!(done.await.unwrap().success());
}

/// Gives out transaction ids, so that the next one is at least this.
async fn until_xid(database: &Database, least: u64) {
    let burn = format!(
        "do $$ begin while pg_current_xact_id()::text::bigint < {least} loop commit; end loop; end $$"
    );
    database.sql(&burn).await;
}

#[tokio::test]
async fn what_a_dump_brings_from_another_server_is_neither_told_nor_taken_for_another_table() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create table others (id int primary key); drop table others;
             create table tasks (id int primary key, title text); create table notes (id int primary key, title text);
             create table aside (id int primary key);
             select rowcast.watch('tasks', 'statement'), rowcast.watch('notes'), rowcast.depends('notes', 'tasks')",
        )
        .await;
    until_xid(&database, 5000).await;
    let old = database
        .commit("insert into tasks values (1, 'kept'); insert into notes values (1, 'kept')")
        .await;
    relay.kill().await;
    // A relay begins at a snapshot of the last minutes, if there is one.
    database
        .sql("update rowcast.tick set at = at - interval '1 hour'")
        .await;

    let server = Server::start(&[]).await;
    // Servers of tests are copies of one; a second database has another number.
    server.database().await;
    let copy = server.database().await;
    dumped(&database, &copy).await;
    let logged = format!("select count(*) from rowcast.log where xid::text = '{old}'");
    assert_eq!(copy.one(&logged).await, "2");
    // Another table has the number now that one of them had there.
    copy.sql(
        "update rowcast.watched set rel = 'aside'::regclass where by_statement;
         update rowcast.dependency set rel = 'aside'::regclass, on_rel = 'aside'::regclass where on_rel is not null",
    )
    .await;
    // Before a relay has seen where it is, nobody acts on any of it.
    copy.sql("select rowcast.check_drift(); select rowcast.trim('1 hour', 1000)")
        .await;
    let relay = copy.relay().await;
    eventually("its tables are known again", async || {
        let watched = "select string_agg(rel::regclass::text || ' ' || by_statement, ', ' order by rel::regclass::text) from rowcast.watched";
        (copy.one(watched).await == "notes false, tasks true").then_some(())
    })
    .await;
    // Views that policies decide are compared instead.
    let depends = "select count(*) from rowcast.dependency";
    assert_eq!(copy.one(depends).await, "0");
    assert_eq!(copy.one(&logged).await, "0");
    let mut stream = relay.stream("/rest/v1/tasks").await;
    let mut screen = Screen::default();
    screen.follow(&mut stream, |_| true).await;
    let txid = copy.commit("update tasks set title = 'here'").await;
    screen.reach(&mut stream, &txid).await;
    assert!(
        txid.parse::<u64>().unwrap() < old.parse().unwrap(),
        "{txid}"
    );
    // Past the ids of the dump.
    until_xid(&copy, old.parse::<u64>().unwrap() + 100).await;
    let txid = copy.commit("insert into tasks values (2, 'later')").await;
    let events = screen.reach(&mut stream, &txid).await;
    assert!(events.iter().all(|event| !event.data.contains("kept")));
    assert_eq!(screen.rows.len(), 2);
    eventually("nobody else is watched", async || {
        let tables = "select string_agg(distinct tgrelid::regclass::text, ', ') from pg_trigger where tgname like '!rowcast%'";
        let settled = "select bool_and(rowcast.captured(w.rel) and w.shape = rowcast.shape(w.rel)) from rowcast.watched w";
        (copy.one(tables).await == "notes, tasks" && copy.one(settled).await == "t").then_some(())
    })
    .await;
}

/// As on a server of somebody else's: no roles of the other one, and its owner is no superuser.
#[tokio::test]
async fn a_dump_without_owners_and_privileges_is_put_right_by_who_restored_it() {
    let database = database().await;
    database.relay().await.kill().await;
    database
        .sql(
            "create table notes (id int primary key, who text);
             alter table notes enable row level security;
             create policy theirs on notes using (who = current_setting('request.jwt.claims', true)::json ->> 'sub');
             insert into notes values (1, 'ann'); select rowcast.watch('notes')",
        )
        .await;
    let server = Server::start(&[]).await;
    let copy = server.database().await;
    let name = copy.one("select current_database()").await;
    copy.sql(&format!(
        "create role boss login createrole; alter database {name} owner to boss;
         create role requests login noinherit; create role member; grant member to requests"
    ))
    .await;
    let login = |name: &str| Database {
        url: copy.login(name),
    };
    let (boss, requests) = (login("boss"), login("requests"));
    // It may make no event triggers, which are a superuser's.
    let restore = "pg_dump --no-owner --no-privileges -d \"$0\" | psql -q -d \"$1\"";
    let done = Command::new("sh")
        .args(["-c", restore, &database.url, &boss.url])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(done.await.unwrap().success());
    boss.sql("grant select, insert on notes to member").await;
    let doctor = ["doctor", "--database-url", &boss.url];
    let said = command().args(doctor).output().await.unwrap().stdout;
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("does not belong to rowcast_owner"), "{said}");
    let watched = ["watched", "--database-url", &boss.url];
    let listed = command().args(watched).output().await.unwrap();
    assert!(listed.status.success(), "{listed:?}");
    let arguments = ["--api-url", &requests.url, "--jwt-secret", SECRET];
    let relay = Relay::start(&boss, &arguments).await;
    let theirs = "select string_agg(distinct o::regrole::text, ' ') from (
                    select relowner from pg_class where relnamespace = 'rowcast'::regnamespace
                    union all select nspowner from pg_namespace where nspname = 'rowcast'
                    union all select proowner from pg_proc where pronamespace = 'rowcast'::regnamespace and not prosecdef
                      and prorettype <> 'event_trigger'::regtype) t (o)";
    assert_eq!(copy.one(theirs).await, "rowcast_owner");
    let runs_as =
        "select proowner::regrole::text from pg_proc where oid = 'rowcast.capture()'::regprocedure";
    assert_eq!(copy.one(runs_as).await, "rowcast_trigger");
    let open = "select has_function_privilege('member', 'rowcast.reset(oid)', 'execute')::text";
    assert_eq!(copy.one(open).await, "false");

    let ann = token("member", &["sub=ann"]).await;
    let Watcher {
        mut stream,
        mut screen,
    } = Watcher::of(&relay, "/rest/v1/notes", &ann, None).await;
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 1)
        .await;
    let txid = copy.commit("insert into notes values (2, 'ann')").await;
    screen.reach(&mut stream, &txid).await;
    assert_eq!(screen.rows.len(), 2);
}

/// Runs this in a shell, with the addresses of databases as `$0` and so on.
async fn shell(script: &str, databases: &[&Database]) {
    let urls = databases.iter().map(|database| &database.url);
    let done = Command::new("sh").args(["-c", script]).args(urls).status();
    assert!(done.await.unwrap().success(), "{script}");
}

/// No connection ends of it, and the uuid of the epoch is the same afterwards.
#[tokio::test]
async fn a_dump_that_is_restored_over_its_database_is_shown_by_relays_that_run() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create table tasks (id int primary key, title text); select rowcast.watch('tasks');
             insert into tasks values (1, 'dumped')",
        )
        .await;
    let mut stream = relay.stream("/rest/v1/tasks").await;
    let mut screen = Screen::default();
    screen.follow(&mut stream, |_| true).await;
    let before = stream.id.clone();
    let place = tempfile::tempdir().unwrap();
    let dump = place.path().join("dump").display().to_string();
    shell(&format!("pg_dump -Fc -f {dump} -d \"$0\""), &[&database]).await;
    let txid = database.commit("update tasks set title = 'later'").await;
    screen.reach(&mut stream, &txid).await;

    let restore = format!("pg_restore --clean --if-exists --single-transaction -d \"$0\" {dump}");
    shell(&restore, &[&database]).await;
    screen
        .follow(&mut stream, |screen| {
            screen.rows.values().all(|row| row["title"] == "dumped")
        })
        .await;
    let txid = database.commit("update tasks set title = 'after'").await;
    screen.reach(&mut stream, &txid).await;
    assert_eq!(screen.rows["1"]["title"], "after");
    let mut returned = relay.resume("/rest/v1/tasks", &before).await;
    assert!(returned.data().await.has_control("reset"));
}

#[tokio::test]
async fn a_dump_of_definitions_alone_is_completed_by_the_first_relay_once_it_is_restored() {
    let database = database().await;
    database.relay().await.kill().await;
    database
        .sql("create table tasks (id int primary key, title text); select rowcast.watch('tasks')")
        .await;
    let copy = database.in_encoding("UTF8").await;
    let part = |part: &str| {
        format!(
            "set -e; dump=$(mktemp); trap 'rm $dump' EXIT; pg_dump --schema-only {part} -d \"$0\" >\"$dump\"; \
             psql -q -v ON_ERROR_STOP=1 -f \"$dump\" -d \"$1\""
        )
    };
    shell(&part("--section=pre-data"), &[&database, &copy]).await;
    // A row of ours would be in the way of those that a restore brings.
    let refused = command()
        .args(["serve", "--listen", "127.0.0.1:0"])
        .args(["--database-url", &copy.url])
        .kill_on_drop(true)
        .output();
    let refused = tokio::time::timeout(DEADLINE, refused);
    let refused = refused.await.expect("it does not serve").unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success(), "{said}");
    assert!(said.contains("is being restored"), "{said}");
    shell(&part("--section=post-data"), &[&database, &copy]).await;

    let doctor = ["doctor", "--database-url", &copy.url];
    let said = command().args(doctor).output().await.unwrap().stdout;
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("rowcast.state has no row"), "{said}");
    let relay = copy.relay().await;
    let state = "select to_jsonb(s) - array['functions', 'place'] from rowcast.state s";
    assert_eq!(copy.one(state).await, database.one(state).await);
    assert_eq!(copy.one("select count(*) from rowcast.secret").await, "1");
    eventually("its table is known", async || {
        let watched = "select rel::regclass from rowcast.watched";
        (copy.one(watched).await == "tasks").then_some(())
    })
    .await;
    let mut stream = relay.stream("/rest/v1/tasks").await;
    let mut screen = Screen::default();
    screen.follow(&mut stream, |_| true).await;
    let txid = copy.commit("insert into tasks values (1, 'here')").await;
    screen.reach(&mut stream, &txid).await;
    assert_eq!(screen.rows.len(), 1);
}
