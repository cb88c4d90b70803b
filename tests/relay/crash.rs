//! A database that dies and comes back costs screens a moment, and never the truth.

use crate::harness::{Database, Event, Relay, Screen, Server, database, eventually, signal};

const TASKS: &str = "create table tasks (id int primary key, title text);
    insert into tasks values (1, 'before'); select rowcast.watch('tasks')";

fn epoch(id: &str) -> &str {
    id.split('.').next().unwrap()
}

async fn comes_back(database: &Database) {
    eventually("the server answers", async || {
        let (client, connection) = tokio_postgres::connect(&database.url, tokio_postgres::NoTls)
            .await
            .ok()?;
        tokio::spawn(connection);
        client.batch_execute("select").await.ok()
    })
    .await;
}

#[tokio::test]
async fn a_crashed_server_resets_open_streams_and_they_go_on() {
    let server = Server::start(&[]).await;
    let database = server.database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    let mut stream = relay.stream("/rest/v1/tasks").await;
    let mut screen = Screen::default();
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 1)
        .await;
    let before = stream.id.clone();

    let killed = server.cluster.pid().unwrap();
    signal(killed, "KILL").await;
    // It hears that it is behind, unless the server is back before anybody could say so.
    let behind = |event: &Event| event.name == "control" && event.json()["upToDate"] == false;
    let mut reset = stream
        .until(|event| behind(event) || event.has_control("reset"))
        .await;
    // No relay is needed for a change: this one is committed as soon as there is a server.
    comes_back(&database).await;
    database
        .sql("insert into tasks values (2, 'meanwhile')")
        .await;

    if !reset.has_control("reset") {
        reset = stream.until(|event| event.has_control("reset")).await;
    }
    screen.apply(&reset);
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 2)
        .await;
    stream
        .until(|event| event.name == "control" && event.json()["upToDate"] == true)
        .await;
    assert_ne!(epoch(&stream.id), epoch(&before));
    let answer = relay
        .post("/rest/v1/tasks", r#"{"id":3,"title":"after"}"#)
        .await;
    assert_eq!(answer.status, 201);
    screen.reach(&mut stream, answer.txid()).await;
    assert_eq!(screen.rows.len(), 3);
    assert_ne!(server.cluster.pid(), Some(killed));

    let mut returned = relay.resume("/rest/v1/tasks", &before).await;
    let event = returned.data().await;
    assert!(event.has_control("reset"));
    let mut again = Screen::default();
    again.apply(&event);
    assert_eq!(again, screen);
}

#[tokio::test]
async fn a_lost_connection_of_the_relay_loses_no_change_and_resets_nobody() {
    let server = Server::start(&[]).await;
    let database = server.database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    let mut stream = relay.stream("/rest/v1/tasks").await;
    let mut screen = Screen::default();
    // The reset that watching logs may still come, to a stream this new.
    let txid = database.commit("insert into tasks values (2)").await;
    screen.reach(&mut stream, &txid).await;
    let mut id = 2;
    for victims in ["rowcast feed", "rowcast doorbell", "rowcast%"] {
        // Cut and changed in one go, so that nobody is there to hear the bell.
        let cut = database
            .one(&format!("select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database() and application_name like '{victims}'"))
            .await;
        assert_ne!(cut, "0", "{victims}");
        id += 1;
        let txid = database
            .commit(&format!("insert into tasks values ({id}, '{victims}')"))
            .await;
        let events = screen.reach(&mut stream, &txid).await;
        assert!(
            !events.iter().any(|event| event.has_control("reset")),
            "{victims}"
        );
        let told = events.iter().filter(|event| event.has_txid(&txid)).count();
        assert_eq!(told, 1, "{victims}");
        assert_eq!(screen.rows.len(), id);
        eventually("ready", async || {
            (relay.get("/readyz").await.status == 200).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn what_was_prepared_before_a_crash_is_shown_once_it_is_over() {
    let server = Server::start(&[("max_prepared_transactions", "4")]).await;
    let database = server.database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    let (mut stream, mut screen) = relay.shown("/rest/v1/tasks").await;
    for (id, end) in [(2, "commit"), (3, "rollback")] {
        let insert = format!("begin; insert into tasks values ({id}); prepare transaction 'p{id}'");
        database.sql(&insert).await;
        signal(server.cluster.pid().unwrap(), "KILL").await;
        let before = epoch(&stream.id).to_owned();
        stream
            .until(|event| {
                event.name == "control"
                    && event.json()["upToDate"] == true
                    && epoch(&event.id) != before
            })
            .await;
        database.sql(&format!("{end} prepared 'p{id}'")).await;
        let reset = stream.until(|event| event.has_control("reset")).await;
        screen.apply(&reset);
        screen
            .follow(&mut stream, |screen| screen.rows.len() == 2)
            .await;
    }
    let left = "select cardinality(prepared) from rowcast.state";
    assert_eq!(database.one(left).await, "0");
}

#[tokio::test]
async fn what_keeps_a_relay_from_coming_back_is_told() {
    let server = Server::start(&[]).await;
    let database = server.database().await;
    database.sql("create role turned superuser login").await;
    let turned = Database {
        url: database.login("turned"),
    };
    let log = tempfile::NamedTempFile::new().unwrap();
    let _relay = Relay::logged(&turned, &[], log.path()).await;
    // As when a password was changed: what ends the connections says nothing of it.
    database
        .sql(
            "alter role turned nologin;
             select pg_terminate_backend(pid) from pg_stat_activity where usename = 'turned'",
        )
        .await;
    for told in ["the log is lost", "the doorbell is silent"] {
        eventually("it is told of", async || {
            let said = std::fs::read_to_string(log.path()).unwrap();
            let mut lines = said.lines();
            let why = |line: &str| line.contains(told) && line.contains("not permitted to log in");
            lines.any(why).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn the_log_says_why_the_server_ended_a_connection() {
    let database = database().await;
    let log = tempfile::NamedTempFile::new().unwrap();
    let _relay = Relay::logged(&database, &[], log.path()).await;
    for (name, told) in [
        ("feed", "the log could not be read"),
        ("doorbell", "the listening connection was closed"),
    ] {
        let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database()";
        eventually("a connection", async || {
            let cut = format!("{cut} and application_name = 'rowcast {name}'");
            (database.one(&cut).await == "1").then_some(())
        })
        .await;
        let told =
            format!("{told}: db error: FATAL: terminating connection due to administrator command");
        eventually("the reason", async || {
            let log = std::fs::read_to_string(log.path()).unwrap();
            log.contains(&told).then_some(())
        })
        .await;
    }
}
