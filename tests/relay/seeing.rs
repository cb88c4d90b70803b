//! Whoever operates a relay sees what is wrong, and why a screen did not get a change.

use serde_json::Value;

use crate::harness::{Relay, Screen, Server, command, database, eventually};
use crate::policies::ROLES;

const TASKS: &str = "create table tasks (id int primary key, title text);
    insert into tasks values (7, 'seven'); select rowcast.watch('tasks')";

/// What the command prints, and whether it ended well.
async fn printed(arguments: &[&str]) -> (bool, String) {
    let output = command().args(arguments).output().await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[tokio::test]
async fn the_doctor_finds_what_is_wrong_and_says_what_to_do() {
    // What tests run on otherwise is not what a doctor likes to see.
    let server = Server::start(&[("fsync", "on")]).await;
    let database = server.database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    let address = relay.url.trim_start_matches("http://").to_owned();
    let url = database.url.as_str();
    let (well, said) = printed(&["doctor", "--database-url", url, "--listen", &address]).await;
    assert!(well, "{said}");
    for ok in [
        "the one on",
        "every change is captured of tasks",
        "writers ring",
        "rows,",
    ] {
        assert!(said.contains(ok), "{ok}: {said}");
    }
    assert!(!said.contains("PROBLEM"), "{said}");
    relay.kill().await;

    database
        .sql(
            "create table days (id int primary key); select rowcast.watch('days');
              alter table days disable trigger all",
        )
        .await;
    database
        .sql(
            "alter sequence rowcast.log_id_seq cache 5; alter table rowcast.log set logged;
             alter sequence rowcast.log_id_seq set unlogged; alter table rowcast.epoch set logged;
             drop trigger emptied on rowcast.log",
        )
        .await;
    let open = database.client().await;
    open.batch_execute(
        "begin; set local application_name = 'forgotten'; insert into tasks values (8)",
    )
    .await
    .unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let arguments = [
        "doctor",
        "--json",
        "--long-transaction",
        "1",
        "--database-url",
        url,
        "--listen",
        &address,
    ];
    let (well, said) = printed(&arguments).await;
    assert!(!well, "{said}");
    let told: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(told["ok"], false);
    let findings = told["findings"].as_array().unwrap();
    let ahead = findings
        .iter()
        .find(|finding| finding["finding"] == "rowcast.log is written ahead");
    assert_eq!(ahead.unwrap()["level"], "note", "{said}");
    for (subject, found) in [
        ("triggers", "days"),
        ("order", "CACHE 5"),
        ("sequence", "not written ahead"),
        ("epoch", "written ahead"),
        ("truncate", "rowcast.log"),
        ("transaction", "forgotten"),
    ] {
        let finding = findings
            .iter()
            .find(|finding| finding["subject"] == subject)
            .unwrap_or_else(|| panic!("{subject}: {said}"));
        assert_eq!(finding["level"], "problem", "{finding}");
        assert!(
            finding["finding"].as_str().unwrap().contains(found),
            "{finding}"
        );
        assert!(
            !finding["meaning"].as_str().unwrap().is_empty(),
            "{finding}"
        );
        assert!(!finding["remedy"].as_str().unwrap().is_empty(), "{finding}");
    }
    let away = ["doctor", "--database-url", "postgres://u@127.0.0.1:1/d"];
    let (well, said) = printed(&away).await;
    assert!(!well && said.contains("cannot be reached"), "{said}");
}

#[tokio::test]
async fn the_doctor_counts_connections_that_a_plain_login_does_not_see_and_knows_every_limit() {
    let server = Server::start(&[]).await;
    let database = server.database().await;
    database.relay().await.kill().await;
    database
        .sql(
            "create role \"app-listen\" login in role rowcast_owner; create role \"app-api\" login",
        )
        .await;
    let login = |name: &str| database.login(name);
    let (listen, api) = (login("app-listen"), login("app-api"));
    let said = async || {
        let urls = ["--database-url", &listen, "--api-url", &api];
        printed(&[&["doctor", "--listen", "127.0.0.1:1"], &urls[..]].concat())
            .await
            .1
    };
    let well = said().await;
    assert!(well.contains("ok      connections"), "{well}");
    // What it advises can be pasted.
    assert!(
        well.contains("grant pg_read_all_stats to \"app-listen\";"),
        "{well}"
    );

    // 100 in all, of which 3 are a superuser's.
    let mut others = Vec::new();
    for _ in 0..75 {
        others.push(database.client().await);
    }
    let full = said().await;
    assert!(
        full.contains("PROBLEM connections: the server has 2"),
        "{full}"
    );
    drop(others);

    for (limit, lifted, found) in [
        (
            "alter role \"app-listen\" connection limit 4",
            "alter role \"app-listen\" connection limit -1",
            "role \"app-listen\" has 4",
        ),
        (
            "alter role \"app-api\" connection limit 17",
            "alter role \"app-api\" connection limit -1",
            "role \"app-api\" has 17",
        ),
        (
            "alter database DB connection limit 9",
            "alter database DB connection limit -1",
            " has 9 left",
        ),
    ] {
        let name = database.one("select current_database()").await;
        let (limit, lifted) = (limit.replace("DB", &name), lifted.replace("DB", &name));
        database.sql(&limit).await;
        let said = said().await;
        assert!(
            said.contains("PROBLEM connections: ") && said.contains(found),
            "{limit}: {said}"
        );
        assert!(said.contains(&lifted), "{limit}: {said}");
        database.sql(&lifted).await;
    }
}

#[tokio::test]
async fn what_settings_name_and_nobody_has_made_is_told_at_the_start_and_by_the_doctor() {
    let database = database().await;
    database
        .sql(
            "create table \"Odd Name\" (id int primary key);
             do $$ begin create role of_seeing_not_granted; exception when duplicate_object then null; end $$",
        )
        .await;
    database.role("of_seeing_api", "login noinherit").await;
    let api = database.login("of_seeing_api");
    let settings = [
        "--api-url",
        &api,
        "--schema",
        "public,shop",
        "--anon-role",
        "web_anom",
        "--roles",
        "of_seeing_not_granted",
        "--pre-request",
        "shop.check",
        "--jwt-secret",
        "0123456789012345678901234567890123456789",
    ];
    let log = tempfile::NamedTempFile::new().unwrap();
    let relay = Relay::logged(&database, &settings, log.path()).await;
    let logged = std::fs::read_to_string(log.path()).unwrap();
    relay.kill().await;
    database
        .sql("select rowcast.watch('\"Odd Name\"'); alter table \"Odd Name\" disable trigger all")
        .await;
    let doctor = ["doctor", "--database-url", &database.url];
    let (_, said) = printed(&[&doctor[..], &settings].concat()).await;
    for (setting, remedy) in [
        ("--schema shop", "create schema shop;"),
        ("--anon-role web_anom", "create role web_anom nologin;"),
        (
            "--roles of_seeing_not_granted",
            "grant of_seeing_not_granted to of_seeing_api;",
        ),
        ("--pre-request \"shop\".\"check\"", "create function"),
    ] {
        assert!(said.contains(&format!("{setting}: ")), "{setting}: {said}");
        assert!(said.contains(remedy), "{setting}: {said}");
        let written = setting.replace('"', "\\\"");
        assert!(
            logged.contains(setting) || logged.contains(&written),
            "{setting}: {logged}"
        );
    }
    assert!(!said.contains("--schema public"), "{said}");
    // And its advice may be pasted into a shell.
    assert!(said.contains("rowcast watch '\"Odd Name\"'"), "{said}");
}

#[tokio::test]
async fn a_pre_request_function_that_only_the_roles_of_requests_may_look_up_is_there() {
    let database = database().await;
    database
        .sql(
            "create schema private;
             create function private.check(strict boolean default true) returns void language sql as '';
             create function shut() returns void language sql as ''",
        )
        .await;
    let relay = database.relay().await;
    relay.kill().await;
    database.role("of_seeing_shut", "login noinherit").await;
    let api = database.login("of_seeing_shut");
    let said = async |function: &str| {
        let doctor = ["doctor", "--database-url", &database.url, "--api-url", &api];
        let settings = ["--schema", "public,shop", "--pre-request", function];
        printed(&[&doctor[..], &settings].concat()).await.1
    };
    for there in ["private.check", "shut"] {
        let said = said(there).await;
        assert!(said.contains("--schema shop: "), "{said}");
        assert!(!said.contains("--pre-request"), "{said}");
        assert!(!said.contains("could not be examined"), "{said}");
    }
    for missing in ["private.chek", "check"] {
        let said = said(missing).await;
        assert!(said.contains("--pre-request"), "{said}");
    }
}

#[tokio::test]
async fn a_key_is_traced_as_screens_have_it() {
    let database = database().await;
    let relay = database.relay().await;
    // Beside a time, a text of the same name.
    database
        .sql(
            "create table times (at timestamptz primary key); select rowcast.watch('times'); \
             create table texts (at text, c int, primary key (at, c)); select rowcast.watch('texts'); \
             insert into texts values ('lunch', 1)",
        )
        .await;
    let trace = async |what: &[&str]| {
        let url = ["--database-url", database.url.as_str()];
        printed(&[&["trace"], what, &url].concat()).await.1
    };
    // Whatever zone its writer has.
    let far = "set local timezone = 'Asia/Tokyo'; insert into times values ('2026-11-30 21:00+09')";
    let at_noon = database.commit(far).await;
    let said = trace(&["times", "2026-11-30T12:00:00+00:00"]).await;
    assert!(said.contains(&format!("transaction {at_noon}")), "{said}");
    let said = trace(&["texts", "lunch"]).await;
    assert!(said.contains("at,c, with a comma between"), "{said}");
    relay.end().await;
}

#[tokio::test]
async fn a_change_is_traced_from_the_table_to_the_screens() {
    let database = database().await;
    let relay = Relay::start(&database, &["--ops-listen", "127.0.0.1:0"]).await;
    database.sql(TASKS).await;
    let ops = relay.ops.clone().expect("it says where operators ask");
    let mut stream = relay.stream("/rest/v1/tasks").await;
    let mut screen = Screen::default();
    let mut other = relay.stream("/rest/v1/tasks?id=eq.1").await;
    other.data().await;
    let txid = database
        .commit("update tasks set title = 'canary' where id = 7")
        .await;
    screen.reach(&mut stream, &txid).await;
    let url = database.url.as_str();
    let trace = async |what: &[&str]| {
        let arguments = [
            &["trace"],
            what,
            &["--database-url", url, "--ops-listen", &ops],
        ]
        .concat();
        printed(&arguments).await
    };
    for what in [vec!["tasks", "7"], vec![txid.as_str()]] {
        let (well, said) = trace(&what).await;
        assert!(well, "{said}");
        for wanted in [
            &*format!("transaction {txid}: committed"),
            "1 update of tasks",
            "visible:  yes",
            "it has read it, and remembers it",
            "update 7",
            "nothing: its rows are not in this view",
            "1 streams",
        ] {
            assert!(said.contains(wanted), "{wanted}: {said}");
        }
        assert!(
            !said.contains("canary"),
            "values are nobody's business: {said}"
        );
    }
    let (_, said) = trace(&["tasks", "99"]).await;
    assert!(said.contains("no change of it is in the log"), "{said}");
    database
        .sql("create table pairs (\"a,'b\" int, c int, primary key (\"a,'b\", c)); select rowcast.watch('pairs')")
        .await;
    let of_two = database.commit("insert into pairs values (1, 2)").await;
    let (_, said) = trace(&["pairs", "1,2"]).await;
    assert!(said.contains(&format!("transaction {of_two}")), "{said}");
    let gone = database.client().await;
    gone.batch_execute("begin").await.unwrap();
    let row = gone
        .query_one("select pg_current_xact_id()::text", &[])
        .await
        .unwrap();
    let gone_id: String = row.get(0);
    let (_, said) = trace(&[&gone_id]).await;
    assert!(
        said.contains("in progress") && said.contains("has not read it yet"),
        "{said}"
    );
    gone.batch_execute("rollback").await.unwrap();
    let (_, said) = trace(&[&gone_id]).await;
    assert!(said.contains("it was rolled back"), "{said}");
    let (well, said) = trace(&["nothing", "7"]).await;
    assert!(!well && said.contains("does not exist"), "{said}");

    // Not on the public address, and not for pages.
    let path = format!("/debug/trace?txid={txid}");
    assert_eq!(relay.get(&path).await.status, 404);
    let operators = Relay {
        url: format!("http://{ops}"),
        ..relay
    };
    assert_eq!(operators.get(&path).await.status, 200);
    assert_eq!(operators.get("/readyz").await.status, 200);
    assert!(operators.metric("rowcast_subscribers").await >= 2.0);
    for headers in [
        ("host", "evil.example:80"),
        ("origin", "http://127.0.0.1"),
        ("sec-fetch-site", "same-origin"),
    ] {
        let answer = operators
            .request(hyper::Method::GET, &path, &[headers], "")
            .await;
        assert_eq!(answer.status, 403, "{headers:?}");
    }
    let answer = operators.post(&path, "").await;
    assert_eq!(answer.status, 405);
    eventually("its streams go on", async || {
        (operators.get("/livez").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_request_has_one_name_from_the_caller_to_the_log() {
    let database = database().await;
    let log = tempfile::NamedTempFile::new().unwrap();
    let relay = Relay::verbose(&database, &["--log-format", "json"], log.path()).await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for (headers, id) in [
        (vec![("x-request-id", "from-the-proxy")], "from-the-proxy"),
        (
            vec![("traceparent", trace)],
            "0af7651916cd43dd8448eb211c80319c",
        ),
        (
            vec![("x-request-id", "mine"), ("traceparent", trace)],
            "mine",
        ),
    ] {
        let answer = relay
            .request(hyper::Method::GET, "/rest/v1/nothing", &headers, "")
            .await;
        assert_eq!(answer.header("x-request-id"), id);
        eventually("it is in the log", async || {
            let said = std::fs::read_to_string(log.path()).unwrap();
            let mut lines = said
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines
                .any(|line| line["span"]["id"] == id && line["fields"]["message"] == "answered")
                .then_some(())
        })
        .await;
    }
    let invented = [(
        "traceparent",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
    )];
    let answer = relay
        .request(hyper::Method::GET, "/livez", &invented, "")
        .await;
    assert_eq!(answer.header("x-request-id").len(), 16);
}

#[tokio::test]
async fn settings_are_shown_with_where_they_come_from_and_checked_all_at_once() {
    let kept = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(kept.path(), "postgres://api:canary@h/d").unwrap();
    let mut command = command();
    command
        .env("ROWCAST_POOL", "3")
        .env("ROWCAST_API_URL_FILE", kept.path())
        .args([
            "--print-config",
            "--retention",
            "77",
            "--jwt-secret",
            "canary canary canary canary canary",
        ])
        .args(["--database-url", "postgres://u:canary@h/d"]);
    let output = command.output().await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    let line = |flag: &str| {
        let line = said.lines().find(|line| line.starts_with(flag));
        line.unwrap_or_else(|| panic!("{flag}: {said}")).to_owned()
    };
    assert!(line("--pool 3").ends_with("# environment"));
    assert!(line("--retention 77").ends_with("# flag"));
    assert!(line("--listen 127.0.0.1:3000").ends_with("# default"));
    assert!(line("--database-url postgres://u@h").ends_with("# flag"));
    assert!(line("--api-url").ends_with("# ROWCAST_API_URL_FILE"));
    assert!(line("--jwks-url").ends_with("# not set"));
    assert!(!said.contains("canary"), "{said}");

    let wrong = [
        "--check",
        "--allow-origin",
        "nonsense",
        "--jwt-secret",
        "short",
        "--database-url",
        "postgres://h:x:y/d",
    ];
    let (well, said) = printed(&wrong).await;
    assert!(!well);
    for wanted in ["allowed origin", "secret", "database's address"] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    assert_eq!(
        printed(&wrong[1..]).await,
        (false, said),
        "who serves is told the same"
    );
    let right = ["--check", "--database-url", "postgres://u@h/d"];
    assert_eq!(
        printed(&right).await,
        (true, "the settings make sense\n".to_owned())
    );
}

#[tokio::test]
async fn a_wish_for_the_log_that_cannot_be_read_is_told_in_the_log() {
    for (wish, told) in [("rowcast=loud", true), ("rowcast=info", false)] {
        let mut command = command();
        let bad = ["--database-url", "postgres://h:x:y/d"];
        let output = command.env("RUST_LOG", wish).args(bad).output();
        let said = String::from_utf8(output.await.unwrap().stderr).unwrap();
        assert_eq!(said.contains("RUST_LOG cannot be read"), told, "{said}");
    }
}

#[tokio::test]
async fn views_that_cannot_be_asked_for_do_not_fill_the_log() {
    let database = database().await;
    database.sql(ROLES).await;
    let log = tempfile::NamedTempFile::new().unwrap();
    let api = database.login("api_login");
    let settings = ["--api-url", api.as_str(), "--anon-role", "visitor"];
    let relay = Relay::logged(&database, &settings, log.path()).await;
    database
        .sql(
            "create table weather (bad boolean); insert into weather values (false);
             create function is_good() returns boolean language plpgsql stable as $$
               begin
                 if (select bad from weather) then raise 'not now' using errcode = '55000'; end if;
                 return true;
               end $$;
             create table notes (id int primary key); alter table notes enable row level security;
             create policy good on notes to visitor using (is_good());
             grant select on notes, weather to visitor; select rowcast.watch('notes')",
        )
        .await;
    let (mut stream, mut screen) = relay.shown("/rest/v1/notes").await;
    // The reset that watching logs may still come, to a stream this new. What is told live comes after it.
    for change in ["insert into notes values (0)", "delete from notes"] {
        let txid = database.commit(change).await;
        screen.reach(&mut stream, &txid).await;
    }
    database
        .sql("update weather set bad = true; insert into notes values (1)")
        .await;
    eventually("it is asked for in vain, again and again", async || {
        let failed = relay.metric("rowcast_asked_total{result=\"failed\"}").await;
        (failed >= 8.0).then_some(())
    })
    .await;
    let text = std::fs::read_to_string(log.path()).unwrap();
    let told = text.lines().filter(|line| line.contains("asked for"));
    assert_eq!(told.count(), 1, "{text}");
    database.sql("update weather set bad = false").await;
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 1)
        .await;
}
