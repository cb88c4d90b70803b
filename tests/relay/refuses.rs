//! A relay follows no server that it cannot follow: it says what it found and what to do, and goes on
//! when that is over.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::{Child, Command};

use crate::harness::{
    DEADLINE, Database, Relay, Screen, Server, command, connect, database, eventually,
};

const TASKS: &str = "create table tasks (id int primary key, title text);
    insert into tasks values (1, 'one'); select rowcast.watch('tasks')";
const PATH: &str = "/rest/v1/tasks";

async fn reasons(relay: &Relay) -> String {
    relay.get("/readyz").await.body
}

#[tokio::test]
async fn ids_that_are_taken_in_advance_are_refused_and_repaired() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    let mut stream = relay.stream(PATH).await;
    let mut screen = Screen::default();
    let txid = database.commit("insert into tasks values (2)").await;
    screen.reach(&mut stream, &txid).await;

    // A writer in the way of the repair, which has ids of its own by now. It waits for the sequence before
    // the relay learns of it, and so is let in first.
    let owner = database.client().await;
    owner
        .batch_execute("begin; alter sequence rowcast.log_id_seq cache 10")
        .await
        .unwrap();
    let writer = database.client().await;
    let writes = async {
        let write = "begin; insert into tasks values (3)";
        writer.batch_execute(write).await.unwrap();
    };
    let altered = async {
        eventually("the writer waits", async || {
            let waiting = database.one("select count(*)::text from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'").await;
            (waiting == "1").then_some(())
        })
        .await;
        owner.batch_execute("commit").await.unwrap();
    };
    tokio::join!(writes, altered);
    let told = eventually("the relay is not ready", async || {
        let answer = relay.get("/readyz").await;
        (answer.status == 503 && answer.body.contains("CACHE")
            || answer.body.contains("several ids"))
        .then_some(answer.body)
    })
    .await;
    assert!(told.contains("try: alter sequence"), "{told}");
    assert_eq!(relay.get("/livez").await.status, 200);
    let stale = stream
        .until(|event| event.name == "control" && event.json()["upToDate"] == false)
        .await;
    assert!(stale.data.contains("lag_ms"), "{}", stale.data);
    writer.batch_execute("commit").await.unwrap();

    eventually("it is ready again", async || {
        (relay.get("/readyz").await.status == 200).then_some(())
    })
    .await;
    let cached =
        "select seqcache::text from pg_sequence where seqrelid = 'rowcast.log_id_seq'::regclass";
    assert_eq!(database.one(cached).await, "1");
    let reset = stream.until(|event| event.has_control("reset")).await;
    screen.apply(&reset);
    // Sessions do not go on with what they had taken.
    let highest = database.one("select max(id)::text from rowcast.log").await;
    writer
        .batch_execute("insert into tasks values (4)")
        .await
        .unwrap();
    let later = database.one("select max(id)::text from rowcast.log").await;
    assert!(
        later.parse::<i64>().unwrap() > highest.parse::<i64>().unwrap(),
        "{later} {highest}"
    );
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 4)
        .await;
}

/// A process of a test's own, as a user that is not root.
fn as_nobody_special(program: &Path) -> Command {
    let root = std::process::Command::new("id").arg("-u").output().unwrap();
    let mut command;
    if root.stdout.starts_with(b"0\n") {
        command = Command::new("setpriv");
        command.args([
            "--reuid=postgres",
            "--regid=postgres",
            "--clear-groups",
            "--",
        ]);
        command.arg(program);
    } else {
        command = Command::new(program);
    }
    // A server listens on the port that its starter's environment names.
    command.env_remove("PGPORT").current_dir("/");
    command
}

/// A directory that such a process may use.
fn open_directory() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::Builder::new()
        .prefix("rowcast-test")
        .tempdir_in("/tmp")
        .unwrap();
    let all = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(directory.path(), all).unwrap();
    directory
}

fn found(name: &str) -> Option<PathBuf> {
    [
        "/usr/sbin",
        "/usr/bin",
        "/usr/local/bin",
        "/opt/homebrew/bin",
    ]
    .iter()
    .map(|directory| Path::new(directory).join(name))
    .find(|path| path.exists())
}

const SETTINGS: &str = "pgbouncer.ini";

/// `PgBouncer` with the settings in this directory.
fn pooler(program: &Path, directory: &Path) -> Child {
    as_nobody_special(program)
        .arg(directory.join(SETTINGS))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// `PgBouncer` in front of a database, in this mode.
async fn pooled(database: &Database, mode: &str) -> Option<(Child, tempfile::TempDir, Database)> {
    let Some(program) = found("pgbouncer") else {
        assert!(
            std::env::var_os("CI").is_none(),
            "pgbouncer is not installed"
        );
        eprintln!("skipped: pgbouncer is not installed");
        return None;
    };
    let part = |name: &str| {
        let part = database
            .url
            .split(' ')
            .find_map(|part| part.strip_prefix(name));
        part.unwrap().to_owned()
    };
    let directory = open_directory();
    let place = directory.path().display().to_string();
    let settings = format!(
        "[databases]\n{name} = host={host} port={port} user=postgres\n\
         [pgbouncer]\nlisten_addr =\nunix_socket_dir = {place}\nlisten_port = 6432\nauth_type = any\n\
         pool_mode = {mode}\nserver_tls_sslmode = disable\n",
        name = part("dbname="),
        host = part("host="),
        port = part("port="),
    );
    std::fs::write(directory.path().join(SETTINGS), settings).unwrap();
    let child = pooler(&program, directory.path());
    let url = format!(
        "host={place} port=6432 user=postgres dbname={}",
        part("dbname=")
    );
    eventually("pgbouncer answers", async || {
        let connected = tokio_postgres::connect(&url, tokio_postgres::NoTls).await;
        connected.is_ok().then_some(())
    })
    .await;
    Some((child, directory, Database { url }))
}

#[tokio::test]
async fn a_transaction_pooler_is_refused_with_what_gave_it_away() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    relay.kill().await;
    let Some((_pooler, _directory, behind)) = pooled(&database, "transaction").await else {
        return;
    };
    // In front of the log, and of requests alone.
    for (log, requests, setting) in [
        (&behind, &behind, "DATABASE_URL"),
        (&database, &behind, "ROWCAST_API_URL"),
    ] {
        let urls = ["--database-url", &log.url, "--api-url", &requests.url];
        let refused = command()
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(urls)
            .kill_on_drop(true)
            .output();
        let refused = tokio::time::timeout(DEADLINE * 2, refused);
        let refused = refused.await.expect("it does not serve").unwrap();
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success(), "{said}");
        assert!(
            said.contains("a transaction pooler stands in front of"),
            "{said}"
        );
        assert!(said.contains("found:") && said.contains(setting), "{said}");
        let doctor = command().arg("doctor").args(urls).output().await.unwrap();
        let said = String::from_utf8(doctor.stdout).unwrap();
        assert!(
            said.contains("PROBLEM pooler") && said.contains(setting),
            "{said}"
        );
    }

    // One that keeps sessions whole does no harm.
    let Some((_pooler, _directory, behind)) = pooled(&database, "session").await else {
        return;
    };
    let relay = behind.relay().await;
    let mut stream = relay.stream(PATH).await;
    let mut screen = Screen::default();
    let txid = database.commit("insert into tasks values (2, 'two')").await;
    screen.reach(&mut stream, &txid).await;
}

#[tokio::test]
async fn a_pooler_that_does_not_keep_sessions_whole_any_more_is_told_by_its_name_until_it_does() {
    let database = database().await;
    let Some((mut child, directory, behind)) = pooled(&database, "session").await else {
        return;
    };
    let relay = behind.relay().await;
    eventually("it is ready", async || {
        (relay.get("/readyz").await.status == 200).then_some(())
    })
    .await;
    let file = directory.path().join(SETTINGS);
    let settings = std::fs::read_to_string(&file).unwrap();
    let program = found("pgbouncer").unwrap();
    for (mode, status, said) in [
        (
            "transaction",
            503,
            "a transaction pooler stands in front of",
        ),
        ("session", 200, "ready"),
    ] {
        child.kill().await.unwrap();
        let settings = settings.replace("pool_mode = session", &format!("pool_mode = {mode}"));
        std::fs::write(&file, settings).unwrap();
        child = pooler(&program, directory.path());
        eventually(said, async || {
            let answer = relay.get("/readyz").await;
            (answer.status == status && answer.body.contains(said)).then_some(())
        })
        .await;
    }
}

/// A PostgreSQL without a launcher that brings it back. It is stopped when dropped.
struct Plain {
    binaries: PathBuf,
    directory: tempfile::TempDir,
}

impl Plain {
    fn new(binaries: &Path) -> Self {
        Self {
            binaries: binaries.to_owned(),
            directory: open_directory(),
        }
    }

    fn data(&self) -> String {
        self.directory.path().join("data").display().to_string()
    }

    fn sockets(&self) -> String {
        self.directory.path().display().to_string()
    }

    async fn run(&self, program: &str, arguments: &[&str]) {
        let output = as_nobody_special(&self.binaries.join(program))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {said}");
    }

    async fn initialise(&self) {
        let data = self.data();
        self.run(
            "initdb",
            &[
                "-D",
                &data,
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-locale",
                "--no-sync",
            ],
        )
        .await;
    }

    async fn start(&self) {
        let options = format!(
            "-c listen_addresses='' -c unix_socket_directories='{}' -c fsync=off -c max_connections=100",
            self.sockets()
        );
        let log = self.directory.path().join("log").display().to_string();
        self.run(
            "pg_ctl",
            &[
                "-D",
                &self.data(),
                "-o",
                &options,
                "-l",
                &log,
                "-w",
                "-t",
                "60",
                "start",
            ],
        )
        .await;
    }

    async fn stop(&self, mode: &str) {
        self.run("pg_ctl", &["-D", &self.data(), "-m", mode, "-w", "stop"])
            .await;
    }

    /// A standby of this one, started.
    async fn standby(&self) -> Self {
        let standby = Self::new(&self.binaries);
        let (from, to) = (self.sockets(), standby.data());
        self.run(
            "pg_basebackup",
            &[
                "-h",
                &from,
                "-U",
                "postgres",
                "-D",
                &to,
                "-R",
                "-X",
                "stream",
                "-c",
                "fast",
                "--no-sync",
            ],
        )
        .await;
        standby.start().await;
        standby
    }

    fn database(&self) -> Database {
        Database {
            url: format!("host={} user=postgres dbname=postgres", self.sockets()),
        }
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        let mut command = as_nobody_special(&self.binaries.join("pg_ctl"));
        let command = command.args(["-D", &self.data(), "-m", "immediate", "stop"]);
        let _stopped_before = command
            .as_std_mut()
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// A primary and the directory of its programs.
async fn primary() -> Plain {
    let server = Server::start(&[]).await;
    let primary = Plain::new(server.cluster.binaries());
    server.cluster.stop().await;
    primary.initialise().await;
    primary.start().await;
    primary
}

/// Both servers in one address.
fn either(servers: [&Plain; 2], more: &str) -> Database {
    let sockets = servers.map(Plain::sockets);
    Database {
        url: format!(
            "host={} user=postgres dbname=postgres {more}",
            sockets.join(",")
        ),
    }
}

#[tokio::test]
async fn a_standby_is_refused_until_it_is_promoted() {
    let primary = primary().await;
    primary.database().relay().await.end().await;
    primary.database().sql(TASKS).await;
    let standby = primary.standby().await;
    eventually("the standby has it all", async || {
        let client = connect(&standby.database().url).await;
        client.batch_execute("table tasks").await.ok()
    })
    .await;
    let relay = standby.database().relay().await;
    let answer = relay.get("/readyz").await;
    assert_eq!(answer.status, 503);
    assert!(
        answer.body.contains("the database is a standby"),
        "{}",
        answer.body
    );
    assert!(
        answer.body.contains("target_session_attrs"),
        "{}",
        answer.body
    );
    assert_eq!(relay.get("/livez").await.status, 200);
    let mut watch = command();
    watch.args(["watch", "tasks", "--database-url", &standby.database().url]);
    let watched = watch.output().await.unwrap();
    let told = String::from_utf8_lossy(&watched.stderr);
    assert!(told.contains("try:   the primary's address"), "{told}");

    standby
        .run("pg_ctl", &["-D", &standby.data(), "-w", "promote"])
        .await;
    eventually("it is ready", async || {
        (relay.get("/readyz").await.status == 200).then_some(())
    })
    .await;
    let mut stream = relay.stream(PATH).await;
    let mut screen = Screen::default();
    let txid = standby
        .database()
        .commit("insert into tasks values (2, 'two')")
        .await;
    screen.reach(&mut stream, &txid).await;
    assert_eq!(screen.rows.len(), 2);
}

#[tokio::test]
async fn requests_go_to_the_primary_again_when_it_was_away_and_its_standby_was_not() {
    let primary = primary().await;
    primary.database().relay().await.end().await;
    primary.database().sql(TASKS).await;
    let standby = primary.standby().await;
    // Without target_session_attrs.
    let both = either([&primary, &standby], "");
    let relay = both.relay().await;
    let write = async || {
        let written = relay
            .request(
                hyper::Method::PATCH,
                &format!("{PATH}?id=eq.1"),
                &[("content-type", "application/json")],
                r#"{"title":"again"}"#,
            )
            .await;
        written.status.as_u16()
    };
    eventually("it writes", async || (write().await == 204).then_some(())).await;
    primary.stop("fast").await;
    // Nobody may take it for a mistake of his.
    eventually("it says that it cannot", async || {
        let status = write().await;
        assert!(status >= 500, "{status}");
        (relay.get("/readyz").await.status == 503).then_some(())
    })
    .await;
    primary.start().await;
    eventually("it is ready", async || {
        (relay.get("/readyz").await.status == 200).then_some(())
    })
    .await;
    assert_eq!(write().await, 204);
}

/// Of a sequence that is not written ahead such a standby has nothing on its disk, which is what is left of it.
#[tokio::test]
async fn watched_tables_can_be_written_to_on_a_standby_that_is_promoted_soon_after_the_log_was_made()
 {
    let primary = primary().await;
    let standby = primary.standby().await;
    primary.database().relay().await.end().await;
    primary.database().sql(TASKS).await;
    eventually("the standby has it all", async || {
        let triggers = "select count(*) from pg_trigger where tgname = '!rowcast'";
        (standby.database().one(triggers).await == "1").then_some(())
    })
    .await;
    primary.stop("immediate").await;
    standby
        .run("pg_ctl", &["-D", &standby.data(), "-w", "promote"])
        .await;
    let relay = standby.database().relay().await;
    let mut stream = relay.stream(PATH).await;
    let mut screen = Screen::default();
    let txid = standby
        .database()
        .commit("insert into tasks values (2, 'two')")
        .await;
    screen.reach(&mut stream, &txid).await;
    assert_eq!(screen.rows.len(), 2);
}

#[tokio::test]
async fn screens_follow_a_failover_and_never_an_old_primary_that_comes_back() {
    let old = primary().await;
    let old_url = old.database();
    old_url.relay().await.end().await;
    old_url.sql(TASKS).await;
    let new = old.standby().await;
    let both = either([&old, &new], "target_session_attrs=read-write");
    let relay = both.relay().await;
    let mut stream = relay.stream(PATH).await;
    let mut screen = Screen::default();
    let txid = old_url.commit("insert into tasks values (2, 'two')").await;
    screen.reach(&mut stream, &txid).await;
    eventually("the standby has it", async || {
        let count = new.database().one("select count(*) from tasks").await;
        (count == "2").then_some(())
    })
    .await;

    // A tail that the standby never gets, and screens do.
    new.database()
        .sql("alter system set primary_conninfo = ''")
        .await;
    new.database().sql("select pg_reload_conf()").await;
    eventually("the standby is on its own", async || {
        let receivers = "select count(*) from pg_stat_activity where backend_type = 'walreceiver'";
        (new.database().one(receivers).await == "0").then_some(())
    })
    .await;
    let txid = old_url
        .commit("insert into tasks values (3, 'lost tail')")
        .await;
    screen.reach(&mut stream, &txid).await;
    assert!(screen.rows.contains_key("3"));
    old.stop("immediate").await;
    new.run("pg_ctl", &["-D", &new.data(), "-w", "promote"])
        .await;
    let promoted = std::time::Instant::now();
    let reset = stream.until(|event| event.has_control("reset")).await;
    screen.apply(&reset);
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 2)
        .await;
    println!("equal to the new primary after {:?}", promoted.elapsed());
    let txid = new
        .database()
        .commit("insert into tasks values (4, 'after')")
        .await;
    screen.reach(&mut stream, &txid).await;
    assert!(!screen.rows.contains_key("3"), "{screen:?}");

    // Both are there now, and the old one is named first.
    old.start().await;
    old_url
        .sql("insert into tasks values (5, 'split brain')")
        .await;
    let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name like 'rowcast%'";
    assert_ne!(new.database().one(cut).await, "0");
    let written = eventually("a write goes through", async || {
        let answer = relay.post(PATH, r#"{"id":6,"title":"by the API"}"#).await;
        (answer.status == 201).then_some(answer)
    })
    .await;
    screen.reach(&mut stream, written.txid()).await;
    assert!(
        screen.rows.contains_key("6") && !screen.rows.contains_key("5"),
        "{screen:?}"
    );
    assert_eq!(
        old_url.one("select count(*) from tasks where id = 6").await,
        "0"
    );

    // The old one alone is no reason to go back, and the relay says why it waits.
    new.stop("fast").await;
    let told = eventually("it is refused", async || {
        let told = reasons(&relay).await;
        told.contains("timeline").then_some(told)
    })
    .await;
    assert!(
        told.contains("timeline 1") && told.contains("timeline 2"),
        "{told}"
    );
    assert_eq!(relay.get("/livez").await.status, 200);
    let refused = relay.post(PATH, r#"{"id":7}"#).await;
    assert_eq!(refused.status, 503, "{}", refused.body);
    stream
        .until(|event| event.name == "control" && event.json()["upToDate"] == false)
        .await;
    new.start().await;
    eventually("it goes on", async || {
        (relay.get("/readyz").await.status == 200).then_some(())
    })
    .await;
    let txid = new
        .database()
        .commit("insert into tasks values (8, 'back')")
        .await;
    screen.reach(&mut stream, &txid).await;
    let rows: Vec<_> = screen.rows.keys().map(String::as_str).collect();
    assert_eq!(rows, ["1", "2", "4", "6", "8"]);
}

#[tokio::test]
async fn an_api_of_another_database_is_refused() {
    let (ours, other) = (database().await, database().await);
    other.relay().await.kill().await;
    ours.relay().await.kill().await;
    for (does, api, fails) in [
        ("serve", &other, true),
        ("doctor", &other, true),
        ("doctor", &ours, false),
    ] {
        let told = command()
            .args([does, "--listen", "127.0.0.1:0"])
            .args(["--database-url", &ours.url, "--api-url", &api.url])
            .kill_on_drop(true)
            .output();
        let told = tokio::time::timeout(DEADLINE * 2, told);
        let told = told.await.expect("it ends").unwrap();
        let said = String::from_utf8_lossy(&told.stdout) + String::from_utf8_lossy(&told.stderr);
        assert_eq!(
            said.contains("another database than"),
            fails,
            "{does}: {said}"
        );
        assert!(!(fails && told.status.success()), "{does}: {said}");
    }
}
