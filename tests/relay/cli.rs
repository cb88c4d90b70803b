//! The command line does what it says, to the database that it is pointed at, and errors say what
//! to try.

use std::path::Path;
use std::process::{Output, Stdio};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdout};

use crate::harness::{
    DEADLINE, Database, Server, command, connect, database, eventually, signal, signal_group,
};

async fn run(arguments: &[&str]) -> (bool, String, String) {
    printing(Stdio::piped(), arguments).await
}

/// The same, but what it prints goes there.
async fn printing(to: impl Into<Stdio>, arguments: &[&str]) -> (bool, String, String) {
    let running = command()
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(to)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let Output {
        status,
        stdout,
        stderr,
    } = tokio::time::timeout(DEADLINE * 2, running.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.success(), text(stdout), text(stderr))
}

async fn on(database: &Database, arguments: &[&str]) -> (bool, String, String) {
    let url = ["--database-url", &database.url];
    run(&[arguments, &url].concat()).await
}

#[tokio::test]
async fn a_command_is_done_to_its_end_though_nobody_reads_what_it_prints() {
    let database = database().await;
    database
        .sql("create table one (id int primary key); create table two (id int primary key)")
        .await;
    let url = ["--database-url", &database.url];
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let watch = ["watch", "one", "two"];
    let (done, _, error) = printing(writer, &[&watch[..], &url].concat()).await;
    assert!(done && error.is_empty(), "{error}");
    let watched = on(&database, &["watched"]).await.1;
    assert_eq!(watched, "public.one\npublic.two\n");
    // Somebody wants to read it, and cannot.
    let full = std::fs::File::options().write(true).open("/dev/full");
    let (done, _, error) = printing(full.unwrap(), &[&["watched"][..], &url].concat()).await;
    assert!(
        !done && error.contains("cannot be printed") && error.contains("try:"),
        "{error}"
    );
}

#[tokio::test]
async fn the_help_of_a_command_tells_its_own_options_first() {
    let nowhere = ["--data-dir", "/nowhere", "psql", "--help"];
    let (content, help, error) = run(&nowhere).await;
    assert!(content && help.contains("psql's own arguments"), "{error}");
    for (command, option) in [
        ("bench", "--svg"),
        ("tail", "--token"),
        ("watch", "--capture"),
    ] {
        let (content, help, error) = run(&[command, "-h"]).await;
        assert!(content, "{error}");
        let (own, settings) = help.split_once("\nSettings:\n").expect(&help);
        assert!(own.contains(option) && !settings.contains(option), "{help}");
        for setting in ["--listen", "--jwt-secret", "--print-config"] {
            assert!(
                !own.contains(setting) && settings.contains(setting),
                "{help}"
            );
        }
    }
}

#[tokio::test]
async fn tables_are_watched_listed_unwatched_and_everything_is_removed() {
    let database = database().await;
    database.sql("create schema sales; create table tasks (id int primary key); create table sales.\"Odd Name\" (id int primary key); create table keyless (id int)").await;
    // Nobody has installed anything, and who only looks does not.
    for command in [&["watched"][..], &["unwatch", "tasks"], &["new-epoch"]] {
        let (done, _, error) = on(&database, command).await;
        assert!(
            !done && error.contains("is not installed") && error.contains("try:"),
            "{error}"
        );
    }
    let installed = "select count(*) from pg_namespace where nspname = 'rowcast'";
    assert_eq!(database.one(installed).await, "0");
    for _ in 0..2 {
        let (done, told, error) = on(&database, &["watch", "tasks", "sales.\"Odd Name\""]).await;
        assert!(done, "{error}");
        assert_eq!(told, "watching tasks\nwatching sales.\"Odd Name\"\n");
    }
    assert_eq!(
        on(&database, &["watched"]).await.1,
        "public.tasks\nsales.Odd Name\n"
    );
    database.sql("alter table tasks disable trigger all").await;
    assert!(
        on(&database, &["watched"])
            .await
            .1
            .contains("public.tasks  (triggers missing or disabled)")
    );

    for (table, hint) in [("keyless", "add primary key"), ("nope", "try:")] {
        let (done, _, error) = on(&database, &["watch", table]).await;
        assert!(!done);
        assert!(
            error.contains(&format!("table \"{table}\" cannot be watched")) && error.contains(hint),
            "{error}"
        );
    }
    let by_statement = ["watch", "--capture", "statement", "sales.\"Odd Name\""];
    let (done, _, error) = on(&database, &by_statement).await;
    assert!(done, "{error}");
    // Watching it once more leaves it what it is.
    assert!(on(&database, &["watch", "sales.\"Odd Name\""]).await.0);
    let (_, told, _) = on(&database, &["watched"]).await;
    assert!(told.contains("sales.Odd Name  (by statement)\n"), "{told}");
    let by_row = ["watch", "--capture", "row", "sales.\"Odd Name\""];
    assert!(on(&database, &by_row).await.0);

    let (done, told, _) = on(&database, &["unwatch", "tasks"]).await;
    assert!(done && told == "not watching tasks\n", "{told}");
    assert_eq!(on(&database, &["watched"]).await.1, "sales.Odd Name\n");

    let relay = database.relay().await;
    let (done, _, error) = on(&database, &["uninstall"]).await;
    assert!(!done && error.contains("relays use it"), "{error}");
    relay.kill().await;
    eventually("the server has noticed", async || {
        let relays = "select count(*) from pg_stat_activity where application_name = 'rowcast feed' \
                      and datname = current_database()";
        (database.one(relays).await == "0").then_some(())
    })
    .await;
    let (done, told, error) = on(&database, &["uninstall"]).await;
    assert!(done && told.starts_with("removed from "), "{error}");
    let left = "select count(*) from pg_namespace where nspname = 'rowcast'";
    let triggers = "select count(*) from pg_trigger where tgname like '!rowcast%'";
    assert_eq!(
        (database.one(left).await, database.one(triggers).await),
        ("0".into(), "0".into())
    );
    database
        .sql("insert into tasks values (1); insert into sales.\"Odd Name\" values (1)")
        .await;
    let (done, told, error) = on(&database, &["uninstall"]).await;
    assert!(
        done && told.starts_with("nothing to remove: "),
        "twice is no error: {told}{error}"
    );
    assert!(
        on(&database, &["watch", "tasks"]).await.0,
        "and it can come back"
    );
}

#[tokio::test]
async fn a_login_that_may_not_say_what_is_watched_is_told_who_may() {
    let database = database().await;
    database.relay().await.kill().await;
    database.role("plain_login", "login").await;
    let plain = Database {
        url: database.login("plain_login"),
    };
    for command in [
        &["watched"][..],
        &["watch", "tasks"],
        &["unwatch", "tasks"],
        &["serve", "--listen", "127.0.0.1:0"],
    ] {
        let (done, _, error) = on(&plain, command).await;
        assert!(
            !done && error.contains("grant rowcast_owner to plain_login"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn where_nothing_may_be_written_nothing_is_installed_and_that_is_told() {
    let database = database().await;
    let name = database.one("select current_database()").await;
    database
        .sql(&format!(
            "create table tasks (id int primary key); alter database {name} set default_transaction_read_only = on"
        ))
        .await;
    let (done, _, error) = on(&database, &["serve", "--listen", "127.0.0.1:0"]).await;
    assert!(
        !done && error.contains("found:") && error.contains("try:   the primary's address"),
        "{error}"
    );
}

#[tokio::test]
async fn what_a_database_sets_for_everybody_keeps_no_command_from_its_work() {
    let database = database().await;
    let name = database.one("select current_database()").await;
    let settings = [
        "statement_timeout = '300ms'",
        "default_transaction_read_only = on",
        "extra_float_digits = -15",
    ];
    let settings = settings.map(|setting| format!("alter database {name} set {setting}"));
    database
        .sql(&format!(
            "create table tasks (id int primary key); {}",
            settings.join("; ")
        ))
        .await;
    for command in [
        &["watch", "tasks"][..],
        &["new-epoch"],
        &["unwatch", "tasks"],
        &["watch", "tasks"],
    ] {
        let (done, _, error) = on(&database, command).await;
        assert!(done, "{command:?}: {error}");
    }
    let (_, doctor, error) = on(&database, &["doctor"]).await;
    assert!(doctor.contains("tokens of the last "), "{doctor}{error}");
    assert!(!doctor.contains("e+"), "{doctor}");
    // What is set for the login is found all the same.
    assert!(doctor.contains("statement_timeout = 300 ms"), "{doctor}");

    let busy = connect(&database.url).await;
    let lock = "set default_transaction_read_only = off; set statement_timeout = 0; begin; lock table rowcast.watched";
    busy.batch_execute(lock).await.unwrap();
    let watched = on(&database, &["watched"]);
    let longer = async {
        eventually("a command that waits longer", async || {
            let waits = "select count(*) from pg_stat_activity \
                         where datname = current_database() and application_name = 'rowcast cli' \
                         and wait_event_type = 'Lock' and state_change < clock_timestamp() - interval '1 s'";
            (database.one(waits).await == "1").then_some(())
        })
        .await;
        busy.batch_execute("commit").await.unwrap();
    };
    let ((done, told, error), ()) = futures::join!(watched, longer);
    assert!(done && told == "public.tasks\n", "{told}{error}");
}

#[tokio::test]
async fn the_printed_sql_installs_what_the_relay_expects() {
    let database = database().await;
    let (done, sql, error) = run(&["sql"]).await;
    assert!(done, "{error}");
    database.sql(&sql).await;
    // Whoever is not sure whether it was run runs it again.
    database.sql(&sql).await;
    database
        .sql("create table tasks (id int primary key); select rowcast.watch('tasks')")
        .await;
    let relay = database.relay().await;
    let mut stream = relay.stream("/rest/v1/tasks").await;
    let mut screen = crate::harness::Screen::default();
    let txid = database.commit("insert into tasks values (1)").await;
    screen.reach(&mut stream, &txid).await;
    assert_eq!(screen.rows.len(), 1);
}

#[tokio::test]
async fn a_tail_prints_one_line_a_change_and_outlives_its_relay() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql("create table tasks (id int primary key, title text); insert into tasks values (1, 'old'); select rowcast.watch('tasks')").await;
    let address = relay.url.trim_start_matches("http://").to_owned();
    let mut child = command()
        .args(["tail", "tasks?id=lt.10", "--url", &relay.url])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    line(&mut lines, "{\"id\":1,\"title\":\"old\"}").await;
    line(&mut lines, "snapshot-end").await;
    database
        .sql("insert into tasks values (2, 'new'), (20, 'not here')")
        .await;
    assert!(
        line(&mut lines, "\"id\":2")
            .await
            .contains("insert  public.tasks  2")
    );

    relay.kill().await;
    database.sql("delete from tasks where id = 1").await;
    let _relay = command()
        .args([
            "serve",
            "--listen",
            &address,
            "--database-url",
            &database.url,
        ])
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    assert!(
        line(&mut lines, "delete")
            .await
            .ends_with("delete  public.tasks  1")
    );

    let (done, _, error) = run(&[
        "tail",
        "tasks?id=nonsense",
        "--url",
        &format!("http://{address}"),
    ])
    .await;
    assert!(!done && error.contains("try:"), "{error}");
}

/// The next line with this text.
#[tokio::test]
async fn a_tail_does_not_try_again_and_again_where_no_relay_can_be() {
    for url in ["https://relay.example", "relay.example", "http://"] {
        let (content, _, error) = run(&["tail", "tasks", "--url", url]).await;
        assert!(!content);
        let what = format!("error: \"{url}\" is not the address of a relay\n");
        assert!(error.starts_with(&what), "{error}");
    }
}

#[tokio::test]
async fn a_tail_whose_relay_falls_silent_in_the_middle_of_an_error_tries_again() {
    let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", relay.local_addr().unwrap());
    let mut tail = command();
    tail.args(["tail", "tasks", "--url", &url]);
    let _tail = tail.kill_on_drop(true).spawn().unwrap();
    let mut silent = Vec::new();
    for _ in 0..2 {
        let asks = tokio::time::timeout(DEADLINE, relay.accept()).await;
        let (mut socket, _) = asks.expect("it tries").unwrap();
        let mut request = [0; 1024];
        assert_ne!(socket.read(&mut request).await.unwrap(), 0);
        let head = b"HTTP/1.1 404 Not Found\r\ncontent-length: 100\r\n\r\n{";
        socket.write_all(head).await.unwrap();
        silent.push(socket);
    }
}

#[tokio::test]
async fn a_printed_setting_ends_before_what_is_said_of_it() {
    let long = "host=/var/run/a/long/way/to/the/socket dbname=shop";
    let (content, printed, error) = run(&["--print-config", "--database-url", long]).await;
    assert!(content, "{error}");
    for line in printed.lines() {
        assert!(line.contains(" # "), "{line}");
    }
}

#[tokio::test]
async fn what_narrows_tokens_of_postgrest_is_heeded_with_its_secret_or_refused() {
    let printed = async |variables: &[(&str, &str)]| {
        let output = command()
            .args(["--print-config", "--check"])
            .env("PGRST_JWT_SECRET", "01234567890123456789012345678901")
            .envs(variables.iter().copied())
            .output()
            .await
            .unwrap();
        let told = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(told).unwrap())
    };
    let theirs = [
        ("PGRST_JWT_AUD", "shop"),
        ("PGRST_JWT_ROLE_CLAIM_KEY", ".app.role"),
        ("PGRST_JWT_SECRET_IS_BASE64", "false"),
    ];
    let (taken, told) = printed(&theirs).await;
    assert!(taken, "{told}");
    for setting in ["--jwt-audience shop ", "--jwt-role-claim .app.role "] {
        assert!(told.contains(setting), "{told}");
    }
    let ours = ("ROWCAST_JWT_AUDIENCE", "till");
    let (_, told) = printed(&[theirs[0], ours]).await;
    assert!(told.contains("--jwt-audience till "), "{told}");

    let encoded = ("PGRST_JWT_SECRET_IS_BASE64", "true");
    let (taken, told) = printed(&[encoded]).await;
    assert!(!taken && told.contains("try:"), "{told}");
    let own = ("ROWCAST_JWT_SECRET", "abcdefghijklmnopqrstuvwxyzabcdef");
    let (taken, told) = printed(&[encoded, own]).await;
    assert!(taken, "{told}");
}

async fn line(lines: &mut Lines<BufReader<ChildStdout>>, text: &str) -> String {
    tokio::time::timeout(DEADLINE, async {
        loop {
            let line = lines.next_line().await.unwrap().expect("it goes on");
            if line.contains(text) {
                return line;
            }
        }
    })
    .await
    .unwrap_or_else(|_| panic!("no line with {text}"))
}

/// A relay with a private database in this directory, and where it says it is.
async fn private(directory: &Path) -> (Child, String) {
    let mut child = command()
        .args(["--listen", "127.0.0.1:0", "--data-dir"])
        .arg(directory)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let page = line(&mut lines, "page  http://").await;
    line(&mut lines, "psql  ").await;
    (
        child,
        page.trim_start_matches("page  ")
            .trim_end_matches('/')
            .to_owned(),
    )
}

async fn http(url: &str, body: Option<&str>) -> String {
    let relay = crate::harness::Stream::open(url, None);
    match body {
        None => {
            let mut stream = relay.await;
            let event = stream.data().await;
            event.data
        }
        Some(body) => {
            let client =
                hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
                    .build_http::<http_body_util::Full<bytes::Bytes>>();
            let request = hyper::Request::post(url)
                .header("content-type", "application/json")
                .body(bytes::Bytes::from(body.to_owned()).into())
                .unwrap();
            client.request(request).await.unwrap().status().to_string()
        }
    }
}

#[tokio::test]
async fn without_a_database_it_brings_its_own_and_finds_it_again() {
    let directory = tempfile::Builder::new()
        .prefix("rowcast-cli")
        .tempdir_in("/tmp")
        .unwrap();
    let data = directory.path().join("d");
    let text = data.to_str().unwrap();
    let (done, _, error) = run(&["watched", "--data-dir", text]).await;
    assert!(!done && error.contains("no database is running"), "{error}");

    // Ctrl-C while the database is made goes to all that the terminal has started.
    let hasty = command()
        .args(["--listen", "127.0.0.1:0", "--data-dir", text])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    eventually("initdb works", async || {
        data.join("data.new/base/1/PG_VERSION")
            .exists()
            .then_some(())
    })
    .await;
    signal_group(hasty.id().unwrap(), "INT").await;
    let ended = hasty.wait_with_output().await.unwrap();
    assert!(
        ended.status.success() && !String::from_utf8_lossy(&ended.stderr).contains("initdb"),
        "{}",
        String::from_utf8_lossy(&ended.stderr)
    );

    let (mut relay, url) = private(&data).await;
    let status = http(&format!("{url}/rest/v1/people"), Some(r#"{"name":"kept"}"#)).await;
    assert_eq!(status, "201 Created");
    let (done, told, error) = run(&["watched", "--data-dir", text]).await;
    assert!(done && told.contains("public.cards\n"), "{told}{error}");
    let psql = [
        "psql",
        "--data-dir",
        text,
        "-Atc",
        "update people set name = name || '!' where name = 'kept' returning name",
    ];
    let (done, told, error) = run(&psql).await;
    if !error.contains("psql was not found") {
        assert!(done && told.starts_with("kept!\n"), "{told}{error}");
    }
    signal(relay.id().unwrap(), "TERM").await;
    assert_eq!(relay.wait().await.unwrap().code(), Some(0));
    eventually("its database has ended", async || {
        (!run(&["watched", "--data-dir", text]).await.0).then_some(())
    })
    .await;

    let (mut relay, url) = private(&data).await;
    assert!(
        http(&format!("{url}/rest/v1/people"), None)
            .await
            .contains("\"kept")
    );
    // As when the terminal is closed.
    signal(relay.id().unwrap(), "HUP").await;
    assert_eq!(relay.wait().await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn whoever_is_started_by_nohup_outlives_the_terminal() {
    let database = database().await;
    let mut relay = tokio::process::Command::new("nohup")
        .args([env!("CARGO_BIN_EXE_rowcast"), "--listen", "127.0.0.1:0"])
        .args(["--database-url", &database.url])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(relay.stdout.take().unwrap()).lines();
    line(&mut lines, "psql  ").await;
    let pid = relay.id().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // SIGHUP is 1.
    assert_eq!(ignored.unwrap().chars().next_back(), Some('1'), "{status}");
    signal(pid, "TERM").await;
    assert_eq!(relay.wait().await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_login_that_may_create_roles_installs_without_being_superuser() {
    let server = Server::start(&[]).await;
    let database = server.database().await;
    database
        .sql(
            "create role app login createrole; \
             do $$ begin execute format('alter database %I owner to app', current_database()); end $$",
        )
        .await;
    let app = Database {
        url: database.login("app"),
    };
    let relay = app.relay().await;
    app.sql("create table tasks (id int primary key); select rowcast.watch('tasks')")
        .await;
    let mut stream = relay.stream("/rest/v1/tasks").await;
    stream.data().await;
    app.sql("insert into tasks values (1)").await;
    assert_eq!(stream.data().await.elements()[0]["key"], "1");
}

#[tokio::test]
async fn a_setting_that_came_out_empty_is_refused_and_not_taken_for_another() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for (variable, value, named) in [
        ("DATABASE_URL", "", "--database-url"),
        ("ROWCAST_API_URL", "", "--api-url"),
        ("ROWCAST_JWT_AUDIENCE", "", "--jwt-audience"),
        (
            "DATABASE_URL_FILE",
            file.path().to_str().unwrap(),
            "the file is empty",
        ),
    ] {
        let checked = command().arg("--check").env(variable, value).output().await;
        let Output { status, stderr, .. } = checked.unwrap();
        let error = String::from_utf8(stderr).unwrap();
        assert!(
            !status.success() && error.contains(named),
            "{variable}: {error}"
        );
    }
}
