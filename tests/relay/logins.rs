//! The two logins of `sql/roles.sql` are enough, and neither can do more than it must.

use crate::harness::{Database, Relay, Screen, Server, Stream, command, eventually};
use crate::policies::{SECRET, token};

const WORLD: &str = "
create role visitor nologin;
create role member nologin;
grant visitor, member to rowcast_api;
create table notes (id int primary key, who text not null, body text);
alter table notes enable row level security;
create policy theirs on notes to member
  using (who = current_setting('request.jwt.claims', true)::json ->> 'sub');
grant select, insert, update, delete on notes to member;
insert into notes values (1, 'ann', 'mine'), (2, 'bob', 'not mine');
create table files (like notes including all);
alter table files enable row level security;
create policy theirs on files to member
  using (who = current_setting('request.jwt.claims', true)::json ->> 'sub');
grant select on files to member, rowcast_listen;
create table posts (id int primary key, body text);
grant select on posts to visitor;
select rowcast.watch('notes'), rowcast.watch('files'), rowcast.watch('posts'), rowcast.allow_channel('lobby');
";

/// A database with Rowcast and its logins, installed by an administrator; and a relay that has these
/// logins and nothing else.
async fn world(server: &Server) -> (Database, Relay) {
    world_after("", server).await
}

/// Installs Rowcast and its logins as an administrator; gives the database as the login that listens.
async fn installed(database: &Database) -> Database {
    let sql = command().arg("sql").output().await.unwrap();
    database.sql(&String::from_utf8(sql.stdout).unwrap()).await;
    database.sql(include_str!("../../sql/roles.sql")).await;
    Database {
        url: database.login("rowcast_listen"),
    }
}

/// The same where the administrator has done this before.
async fn world_after(before: &str, server: &Server) -> (Database, Relay) {
    let database = server.database().await;
    database.sql(before).await;
    let listening = installed(&database).await;
    database.sql(WORLD).await;
    let api = database.login("rowcast_api");
    let arguments = [
        "--api-url",
        &api,
        "--jwt-secret",
        SECRET,
        "--anon-role",
        "visitor",
    ];
    let relay = Relay::start(&listening, &arguments).await;
    (database, relay)
}

fn shown(screen: &Screen, id: i64) -> bool {
    screen.rows.values().any(|row| row["id"] == id)
}

#[tokio::test]
async fn two_plain_logins_serve_reads_writes_and_streams_under_row_level_security() {
    let server = Server::start(&[]).await;
    let (database, relay) = world(&server).await;
    let ann = format!("Bearer {}", token("member", &["sub=ann"]).await);
    let headers = [
        ("authorization", ann.as_str()),
        ("content-type", "application/json"),
    ];
    let ask = async |method: &str, path: &str, body: &str| {
        let method = method.parse().unwrap();
        relay.request(method, path, &headers, body).await
    };
    let read = ask("GET", "/rest/v1/notes?select=id", "").await;
    assert_eq!(
        (read.status.as_u16(), read.body.as_str()),
        (200, r#"[{"id":1}]"#)
    );

    let url = format!("{}/rest/v1/notes", relay.url);
    let mut stream = Stream::with(&url, None, &headers[..1]).await;
    let mut screen = Screen::default();
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 1)
        .await;

    let written = ask(
        "POST",
        "/rest/v1/notes",
        r#"{"id":3,"who":"ann","body":"new"}"#,
    )
    .await;
    assert_eq!(written.status, 201, "{}", written.body);
    screen.reach(&mut stream, written.txid()).await;
    assert_eq!(screen.rows.len(), 2);
    let refused = ask("POST", "/rest/v1/notes", r#"{"id":4,"who":"bob"}"#).await;
    assert_eq!(refused.status, 403, "{}", refused.body);

    // Rows that the log has by their key alone are asked for like all others.
    let txid = database
        .commit("insert into notes select 5, 'ann', string_agg(md5(n::text), '') from generate_series(1, 20000) n")
        .await;
    screen.reach(&mut stream, &txid).await;
    assert!(shown(&screen, 5), "{:?}", screen.rows.keys());
    // Also where the listening login may read the table: policies must not hide them from it.
    let url = format!("{}/rest/v1/files", relay.url);
    let mut files = Stream::with(&url, None, &headers[..1]).await;
    let mut folder = Screen::default();
    folder.follow(&mut files, |_| true).await;
    let txid = database
        .commit("insert into files select 6, 'ann', string_agg(md5(n::text), '') from generate_series(1, 20000) n")
        .await;
    folder.reach(&mut files, &txid).await;
    assert!(shown(&folder, 6), "{:?}", folder.rows.keys());

    // Without row-level security the log alone decides.
    let mut posts = relay.stream("/rest/v1/posts").await;
    let mut page = Screen::default();
    page.follow(&mut posts, |_| true).await;
    let txid = database
        .commit("insert into posts values (1, 'hello')")
        .await;
    page.reach(&mut posts, &txid).await;
    assert_eq!(page.rows.len(), 1);

    let mut lobby = relay.stream("/channels/lobby").await;
    lobby.until(|event| event.name == "control").await;
    let told = ask("POST", "/channels/lobby", r#"{"n":1}"#).await;
    assert_eq!(told.status, 201, "{}", told.body);
    assert!(lobby.data().await.has_txid(told.txid()));

    // A policy that changes is seen within seconds.
    database
        .sql("drop policy theirs on notes; create policy all_of_it on notes to member using (true)")
        .await;
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 4)
        .await;
}

#[tokio::test]
async fn a_function_of_a_schema_that_no_login_may_look_into_costs_nobody_else_anything() {
    let server = Server::start(&[]).await;
    let (database, relay) = world(&server).await;
    database
        .sql(
            "create schema closed;
             create type closed.mood as enum ('glad', 'sad');
             create function closed.secret() returns int language sql as 'select 1';
             create function feel(mood closed.mood) returns closed.mood language sql as 'select mood';
             grant usage on schema closed to visitor;
             create table later (id int primary key);
             grant select on later to visitor;
             select rowcast.expose_function('closed.secret()'), rowcast.expose_function('feel(closed.mood)'),
                    rowcast.watch('later')",
        )
        .await;
    assert_eq!(relay.get("/rest/v1/later").await.body, "[]");
    let felt = relay.get("/rest/v1/rpc/feel?mood=sad").await;
    assert_eq!((felt.status.as_u16(), felt.body.as_str()), (200, "\"sad\""));
    let unserved = relay.get("/rest/v1/rpc/secret").await;
    assert_eq!(unserved.json()["code"], "PGRST202");
}

/// What makes partitions in the night is the owner of the table, which an administrator has watched.
#[tokio::test]
async fn who_owns_a_partitioned_table_makes_partitions_and_screens_stay_as_they_are() {
    let server = Server::start(&[]).await;
    let log = tempfile::NamedTempFile::new().unwrap();
    let database = server.database().await;
    let listening = installed(&database).await;
    database
        .sql("create role app login; create role visitor nologin; grant visitor to rowcast_api;
              create table days (id int, day int, primary key (id, day)) partition by range (day);
              create table first partition of days for values from (1) to (2);
              grant select on days to visitor;
              alter table days owner to app; alter table first owner to app; grant create on schema public to app;
              select rowcast.watch('days')")
        .await;
    let relay = Relay::logged(
        &listening,
        &[
            "--anon-role",
            "visitor",
            "--api-url",
            &database.login("rowcast_api"),
        ],
        log.path(),
    )
    .await;
    let (mut stream, mut screen) = relay.shown("/rest/v1/days").await;
    let app = Database {
        url: database.login("app"),
    };
    app.sql("create table second partition of days for values from (2) to (3); insert into days values (1, 2)")
        .await;
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 1)
        .await;

    // Its trigger on truncations is lacking, and nobody who looks may make it.
    eventually("the new partition is known", async || {
        let known =
            "select shape = rowcast.shape(rel) and not rowcast.captured(rel) from rowcast.watched";
        (database.one(known).await == "t").then_some(())
    })
    .await;
    // He may put a trigger on rows where he likes, and on what no relay can look at it makes nothing watched.
    let his = app.client().await;
    let passing = "create temp table passing (id int primary key);
                   create trigger \"!rowcast\" after insert on passing for each row execute function rowcast.capture()";
    his.batch_execute(passing).await.unwrap();
    let resets = "select count(*) from rowcast.log where op = 'R'";
    let before = database.one(resets).await;
    for _ in 0..3 {
        listening.sql("select rowcast.check_drift()").await;
    }
    assert_eq!(database.one(resets).await, before);
    let watched = "select string_agg(rel::regclass::text, ',') from rowcast.watched";
    assert_eq!(database.one(watched).await, "days");
    app.sql("truncate second").await;
    screen
        .follow(&mut stream, |screen| screen.rows.is_empty())
        .await;
    let found = relay.metric("rowcast_drift_total").await;
    eventually("it is found again", async || {
        (relay.metric("rowcast_drift_total").await > found).then_some(())
    })
    .await;
    let said = std::fs::read_to_string(log.path()).unwrap();
    let lacking = said.matches("triggers of public.days are missing").count();
    assert_eq!(lacking, 1, "{said}");
}

#[tokio::test]
async fn neither_login_may_do_more_than_it_must() {
    let server = Server::start(&[]).await;
    let (database, _relay) = world(&server).await;
    for (login, statement) in [
        ("rowcast_api", "select from rowcast.log"),
        ("rowcast_api", "select from rowcast.secret"),
        ("rowcast_api", "select from notes"),
        ("rowcast_api", "select rowcast.reset()"),
        ("rowcast_api", "set role rowcast_owner"),
        ("rowcast_listen", "select from notes"),
        ("rowcast_listen", "set role member"),
    ] {
        let url = database.login(login);
        let refused = crate::harness::connect(&url)
            .await
            .batch_execute(statement)
            .await;
        let code = refused
            .unwrap_err()
            .code()
            .map(|code| code.code().to_owned());
        assert_eq!(code.as_deref(), Some("42501"), "{login}: {statement}");
    }
}

#[tokio::test]
async fn default_privileges_of_who_installs_neither_open_nor_close_what_is_installed() {
    let server = Server::start(&[]).await;
    let usual = "create role reader login;
        alter default privileges grant select on tables to reader, public;
        alter default privileges grant all on sequences to reader;
        alter default privileges grant all on schemas to reader;
        alter default privileges grant execute on functions to reader;
        alter default privileges revoke execute on functions from public;
        create table theirs (id int)";
    let (database, relay) = world_after(usual, &server).await;
    let url = database.login("reader");
    let reader = crate::harness::connect(&url).await;
    reader.batch_execute("select from theirs").await.unwrap();
    for statement in [
        "select from rowcast.log",
        "select from rowcast.secret",
        "select from rowcast.idempotency",
        "select nextval('rowcast.gap')",
        "select rowcast.reset()",
        "create function rowcast.mine() returns int language sql as 'select 1'",
    ] {
        let refused = reader.batch_execute(statement).await.unwrap_err();
        let code = refused.code().map(|code| code.code().to_owned());
        assert_eq!(code.as_deref(), Some("42501"), "{statement}: {refused:?}");
    }

    // What is for everybody works all the same: streams of views that ask, channels, keys.
    let ann = format!("Bearer {}", token("member", &["sub=ann"]).await);
    let bearer = ("authorization", ann.as_str());
    let url = format!("{}/rest/v1/notes", relay.url);
    let mut stream = Stream::with(&url, None, &[bearer]).await;
    let mut screen = Screen::default();
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 1)
        .await;
    for (path, body) in [
        ("/channels/lobby", r#"{"n":1}"#),
        ("/rest/v1/notes", r#"{"id":3,"who":"ann"}"#),
    ] {
        let method = "POST".parse().unwrap();
        let headers = [
            bearer,
            ("content-type", "application/json"),
            ("idempotency-key", path),
        ];
        let answer = relay.request(method, path, &headers, body).await;
        assert_eq!(answer.status, 201, "{path}: {}", answer.body);
    }

    // What somebody says afterwards stays as it is when the functions are installed again.
    let sql = command().arg("sql").output().await.unwrap();
    database
        .sql(
            "create role auditor; grant select on rowcast.log to auditor;
             revoke execute on function rowcast.publish(text, json) from public",
        )
        .await;
    database.sql(&String::from_utf8(sql.stdout).unwrap()).await;
    let stays = "select concat(has_table_privilege('auditor', 'rowcast.log', 'select'), \
                 has_function_privilege('reader', 'rowcast.publish(text, json)', 'execute'))";
    assert_eq!(database.one(stays).await, "tf");
}

/// From 16 on who makes a role is a member of it by half, where his settings say so.
#[tokio::test]
async fn whoever_may_make_roles_may_install_whatever_membership_he_gets_by_that() {
    let server = Server::start(&[]).await;
    let database = server.database().await;
    let version = database
        .one("select current_setting('server_version_num')::int / 10000")
        .await;
    if version.parse::<u32>().unwrap() < 16 {
        eprintln!("skipped: createrole_self_grant comes with PostgreSQL 16");
        return;
    }
    let name = database.one("select current_database()").await;
    for half in ["set", "inherit"] {
        let boss = Database {
            url: database.login(&format!("boss_{half}")),
        };
        database
            .sql(&format!(
                "create role boss_{half} login createrole; alter role boss_{half} set createrole_self_grant = '{half}';
                 alter database {name} owner to boss_{half}"
            ))
            .await;
        boss.relay().await.kill().await;
        boss.sql("create table tasks (id int primary key); select rowcast.watch('tasks'); drop table tasks")
            .await;
        database
            .sql("drop schema rowcast cascade; drop role rowcast_owner, rowcast_trigger")
            .await;
    }
}
