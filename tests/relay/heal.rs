//! A stream that cannot be yet says why, ends, and works once it can: no screen has to be reloaded.

use std::sync::atomic::Ordering;

use crate::harness::{Database, Event, Relay, Screen, Server, Stream, database, eventually};
use crate::proxy::{Link, Place, Trouble, Way};

async fn refused_for_now(relay: &Relay, path: &str, id: &str) -> Event {
    let mut stream = relay.resume(path, id).await;
    assert_eq!(stream.status, 200);
    assert_eq!(stream.headers["content-type"], "text/event-stream");
    let control = stream.next().await.unwrap();
    assert_eq!(
        (control.name.as_str(), control.id.as_str()),
        ("control", id)
    );
    assert_eq!(control.json()["upToDate"], false);
    assert!(control.retry.is_some_and(|retry| retry > 0));
    assert_eq!(stream.next().await, None);
    control
}

async fn works(relay: &Relay, path: &str, id: &str) -> (Stream, Screen) {
    let mut stream = relay.resume(path, id).await;
    let mut screen = Screen::default();
    screen.follow(&mut stream, |_| true).await;
    (stream, screen)
}

#[tokio::test]
async fn a_page_may_be_open_before_its_table_is_there() {
    let database = database().await;
    let relay = database.relay().await;
    let path = "/rest/v1/later?id=gt.0";
    let control = refused_for_now(&relay, path, "0").await;
    assert_eq!(control.json()["error"]["code"], "PGRST205");
    assert!(
        control.json()["error"]["hint"]
            .as_str()
            .unwrap()
            .contains("rowcast watch")
    );

    database
        .sql("create table later (id int primary key)")
        .await;
    refused_for_now(&relay, path, "0").await;
    // For reading and writing it is open now, and still not live.
    database.sql("select rowcast.expose('later')").await;
    eventually("it can be read", async || {
        (relay.get(path).await.status == 200).then_some(())
    })
    .await;
    let control = refused_for_now(&relay, path, "0").await;
    assert_eq!(control.json()["error"]["code"], "PGRST205");

    database
        .sql("insert into later values (1); select rowcast.watch('later')")
        .await;
    let (mut stream, mut screen) = eventually("it is live", async || {
        let mut stream = relay.resume(path, "0").await;
        let first = stream.next().await.unwrap();
        let mut screen = Screen::default();
        screen.apply(&first);
        (first.name == "data").then_some((stream, screen))
    })
    .await;
    let txid = database.commit("insert into later values (2)").await;
    screen.reach(&mut stream, &txid).await;
    assert_eq!(screen.rows.len(), 2);
}

#[tokio::test]
async fn a_page_may_be_opened_while_the_database_is_away() {
    let server = Server::start(&[]).await;
    let database = server.database().await;
    let relay = database.relay().await;
    database.sql("create table tasks (id int primary key); insert into tasks values (1); select rowcast.watch('tasks')").await;
    let path = "/rest/v1/tasks";
    let (mut stream, mut screen) = works(&relay, path, "0").await;
    // The reset that watching logs may still come, to a stream this new.
    let txid = database.commit("insert into tasks values (3)").await;
    screen.reach(&mut stream, &txid).await;
    let Server { cluster, directory } = server;
    cluster.stop().await;
    stream
        .until(|event| event.name == "control" && event.json()["upToDate"] == false)
        .await;

    let control = refused_for_now(&relay, path, "0").await;
    assert_eq!(control.json()["error"]["code"], "PGRST000");
    // Who has nothing to catch up on stays, and knows that it may be behind.
    let mut returned = relay.resume(path, &stream.id).await;
    let control = returned.next().await.unwrap();
    assert_eq!(control.json()["upToDate"], false);
    assert!(control.retry.is_some());

    let read = relay.get(path).await;
    assert_eq!(
        (read.status.as_u16(), read.header("retry-after")),
        (503, "2")
    );
    assert_eq!(relay.get("/readyz").await.status, 503);
    assert_eq!(relay.get("/livez").await.status, 200);

    let server = Server::resume(directory).await;
    let txid = eventually("the database is back", async || {
        let answer = relay.post(path, r#"{"id":2}"#).await;
        (answer.status == 201).then(|| answer.txid().to_owned())
    })
    .await;
    // An orderly stop keeps the transaction counter's life: nothing has to be read anew.
    let events = screen.reach(&mut stream, &txid).await;
    assert!(!events.iter().any(|event| event.has_control("reset")));
    let (_, again) = works(&relay, path, "0").await;
    assert_eq!(again.rows, screen.rows);
    drop(server);
}

#[tokio::test]
async fn a_relay_whose_commit_was_swallowed_on_the_way_reads_on() {
    let database = database().await;
    let mut words = database.url.split_whitespace();
    let mut word = |name| words.find_map(|word| word.strip_prefix(name)).unwrap();
    let socket = format!("{}/.s.PGSQL.{}", word("host="), word("port="));
    let name = database.url.rsplit('=').next().unwrap();
    let link = Link::open(Place::Unix(socket.into())).await;
    let port = link.address.port();
    let behind = Database {
        url: format!("host=127.0.0.1 port={port} user=postgres dbname={name} sslmode=disable"),
    };
    let relay = behind.relay().await;
    database
        .sql("create table notes (id int primary key); select rowcast.watch('notes')")
        .await;
    let mut stream = relay.stream("/rest/v1/notes").await;
    let mut screen = Screen::default();
    let txid = database.commit("insert into notes values (1)").await;
    screen.reach(&mut stream, &txid).await;

    // The connection stays open, and what it is waited for never comes.
    link.misbehave(Trouble {
        up: Way {
            swallowed_from: Some("commit\0"),
            ..Way::default()
        },
        ..Trouble::default()
    });
    eventually("a commit is swallowed", async || {
        (link.done.swallowed_bytes.load(Ordering::Relaxed) > 0).then_some(())
    })
    .await;
    link.heal();
    let txid = database.commit("insert into notes values (2)").await;
    screen.reach(&mut stream, &txid).await;
    assert_eq!(screen.rows.len(), 2);
}
