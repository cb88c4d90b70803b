//! The way to the database fails without saying so, and others make noise on it.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::watch;

use crate::harness::{
    DEADLINE, Database, Relay, Screen, Server, Stream, command, database, eventually, signal,
};
use crate::wire::count;

/// What becomes of bytes that the server sends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    /// They vanish. Nobody is told, and what the client sends still arrives.
    Swallows,
    /// The same of connections that are made meanwhile, once they have got so many answers.
    SwallowsAfter(usize),
    /// They come so much later.
    Late(Duration),
}

/// The end of each answer.
const READY: &[u8] = b"Z\0\0\0\x05";

/// A TCP address in front of a database, whose way back can be made to swallow what is sent.
struct Link {
    database: Database,
    way: watch::Sender<Way>,
    connections: Arc<AtomicUsize>,
    swallowed: Arc<AtomicUsize>,
}

impl Link {
    /// Only connections whose start-up message names `application` are ever swallowed.
    async fn to(database: &Database, application: &'static str) -> Self {
        let value = |name: &str| {
            let mut words = database.url.split(' ');
            let word = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            word.unwrap().to_owned()
        };
        let socket = PathBuf::from(value("host")).join(format!(".s.PGSQL.{}", value("port")));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (way, ways) = watch::channel(Way::Open);
        let connections = Arc::new(AtomicUsize::new(0));
        let swallowed = Arc::new(AtomicUsize::new(0));
        let (made, lost) = (Arc::clone(&connections), Arc::clone(&swallowed));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                made.fetch_add(1, Ordering::Relaxed);
                let (socket, way, lost) = (socket.clone(), ways.clone(), Arc::clone(&lost));
                let is_early = *way.borrow() == Way::Open;
                tokio::spawn(async move {
                    let (Ok(server), (mut from, mut to)) =
                        (UnixStream::connect(&socket).await, client.into_split())
                    else {
                        return;
                    };
                    let (mut answers, mut asked) = server.into_split();
                    // The name is in the first bytes.
                    let mut first = vec![0; 8192];
                    let Ok(count) = from.read(&mut first).await else {
                        return;
                    };
                    let start = String::from_utf8_lossy(&first[..count]);
                    let concerned = start.contains(application);
                    let _gone = asked.write_all(&first[..count]).await;
                    let there = async { tokio::io::copy(&mut from, &mut asked).await };
                    let back = async {
                        let (mut some, mut answered) = (vec![0; 16 << 10], 0);
                        while let Ok(count @ 1..) = answers.read(&mut some).await {
                            let swallows = match *way.borrow() {
                                Way::Open | Way::Late(_) => false,
                                Way::Swallows => true,
                                Way::SwallowsAfter(many) => !is_early && answered >= many,
                            };
                            answered += some[..count]
                                .windows(READY.len())
                                .filter(|part| *part == READY)
                                .count();
                            if concerned && swallows {
                                lost.fetch_add(1, Ordering::Relaxed);
                                // For good: what comes after a hole would be nonsense.
                                std::future::pending::<()>().await;
                            }
                            let way = *way.borrow();
                            if let Way::Late(by) = way
                                && concerned
                            {
                                tokio::time::sleep(by).await;
                            }
                            if to.write_all(&some[..count]).await.is_err() {
                                break;
                            }
                        }
                    };
                    tokio::select! {
                        _ = there => {}
                        () = back => {}
                    }
                });
            }
        });
        let url = format!(
            "host=127.0.0.1 port={port} user=postgres sslmode=disable dbname={}",
            value("dbname")
        );
        Self {
            database: Database { url },
            way,
            connections,
            swallowed,
        }
    }
}

const TASKS: &str =
    "create table tasks (id int primary key, body text); select rowcast.watch('tasks')";

/// A relay behind a link for the connections of this name, and a screen that has arrived.
async fn behind(name: &'static str) -> (Database, Link, Relay, Stream, Screen) {
    let database = database().await;
    let link = Link::to(&database, name).await;
    let relay = Relay::start(&link.database, &[]).await;
    database.sql(TASKS).await;
    let mut screen = Screen::default();
    let mut stream = relay.stream("/rest/v1/tasks").await;
    // The reset that watching logs may still come, to a stream this new. What is told live by then
    // comes after it.
    for change in ["insert into tasks values (0, '')", "delete from tasks"] {
        let txid = database.commit(change).await;
        screen.reach(&mut stream, &txid).await;
    }
    (database, link, relay, stream, screen)
}

#[tokio::test]
async fn a_database_whose_answers_vanish_is_noticed_and_come_back_to() {
    let (database, link, relay, mut stream, mut screen) = behind("").await;

    link.way.send_replace(Way::Swallows);
    let begun = Instant::now();
    // The screen knows within the 12 s after which it would call itself stale.
    stream
        .until(|event| event.name == "control" && event.json()["upToDate"] == false)
        .await;
    assert!(
        begun.elapsed() < Duration::from_secs(12),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(relay.get("/readyz").await.status, 503);
    assert_eq!(relay.get("/livez").await.status, 200);
    let answer = relay.get("/rest/v1/tasks").await;
    assert!(
        [503, 504].contains(&answer.status.as_u16()),
        "{}",
        answer.body
    );
    assert_eq!(answer.header("retry-after"), "2");
    let txid = database
        .commit("insert into tasks values (1, 'behind the wall')")
        .await;
    // Connections that were caught stay caught; new ones are good.
    let tried = link.connections.load(Ordering::Relaxed);
    link.way.send_replace(Way::Open);
    screen.reach(&mut stream, &txid).await;
    assert_eq!(screen.rows.len(), 1);
    // No storm of attempts.
    let outage = usize::try_from(begun.elapsed().as_secs()).unwrap();
    assert!(
        tried < 20 + outage * 10,
        "{tried} connections in {outage} s"
    );
    let answer = relay.get("/rest/v1/tasks").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[tokio::test]
async fn a_stream_that_cannot_begin_again_says_so_before_its_screen_grows_uneasy() {
    let (database, link, _relay, mut stream, _) = behind("rowcast states").await;
    link.way.send_replace(Way::Swallows);
    // Its state has to be read anew, and nobody answers.
    database.sql("alter table tasks add column extra int").await;
    let control = stream
        .until(|event| event.name == "control" && event.json()["upToDate"] == false)
        .await;
    assert!(control.json()["error"]["code"].is_string(), "{control:?}");
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn a_listener_that_hears_nothing_any_more_delays_nobody() {
    let (database, link, relay, mut stream, mut screen) = behind("rowcast doorbell").await;
    link.way.send_replace(Way::Swallows);
    for id in 1..=5 {
        let begun = Instant::now();
        let txid = database
            .commit(&format!("insert into tasks values ({id})"))
            .await;
        screen.reach(&mut stream, &txid).await;
        // A poll a second needs no bell; the rest is the machine's.
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "{:?}",
            begun.elapsed()
        );
    }
    eventually("the silence is noticed", async || {
        (count(&relay, "rowcast_listener_reconnects_total").await >= 1).then_some(())
    })
    .await;
    link.way.send_replace(Way::Open);
    eventually("it listens again", async || {
        (count(&relay, "rowcast_listener_connected").await >= 1).then_some(())
    })
    .await;
}

/// Notifies until it is heard: a listener that is up has still to listen on the channels.
async fn heard(database: &Database, channel: &str, stream: &mut Stream) {
    let mut heard = pin!(stream.until(|event| event.data.contains("hello")));
    loop {
        database.sql(&format!("notify {channel}, 'hello'")).await;
        tokio::select! {
            _ = &mut heard => return,
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
        }
    }
}

#[tokio::test]
async fn a_listener_that_gets_no_answer_to_listen_listens_anew() {
    let (database, link, relay, ..) = behind("rowcast doorbell").await;
    database.sql("select rowcast.allow_channel('hall')").await;
    link.way.send_replace(Way::Swallows);
    let mut stream = relay.stream("/channels/hall").await;
    eventually("the silence is noticed", async || {
        (relay.metric("rowcast_listener_reconnects_total").await >= 1.0).then_some(())
    })
    .await;
    link.way.send_replace(Way::Open);
    eventually("it listens again", async || {
        (relay.metric("rowcast_listener_connected").await >= 1.0).then_some(())
    })
    .await;
    heard(&database, "hall", &mut stream).await;
}

#[tokio::test]
async fn a_listener_far_away_listens_on_many_channels_at_once() {
    const CHANNELS: usize = 60;
    let (database, link, relay, ..) = behind("rowcast doorbell").await;
    database.sql("select rowcast.allow_channel('*')").await;
    let mut streams = Vec::new();
    for number in 10..10 + CHANNELS {
        streams.push(relay.stream(&format!("/channels/hall_{number}")).await);
    }
    // One after the other they would take longer than the proof that the connection is alive.
    link.way.send_replace(Way::Late(Duration::from_millis(100)));
    database
        .sql(
            "select pg_terminate_backend(pid) from pg_stat_activity \
             where datname = current_database() and application_name = 'rowcast doorbell'",
        )
        .await;
    heard(&database, "hall_69", streams.last_mut().unwrap()).await;
}

#[tokio::test]
async fn a_leader_whose_answers_vanish_stands_for_the_lead_again() {
    let (_database, link, relay, ..) = behind("rowcast bell").await;
    let leads = async |what: &str, value: f64| {
        eventually(what, async || {
            (relay
                .metric("rowcast_bell_leader")
                .await
                .total_cmp(&value)
                .is_eq())
            .then_some(())
        })
        .await;
    };
    leads("it leads", 1.0).await;
    link.way.send_replace(Way::Swallows);
    leads("the silence is noticed", 0.0).await;
    link.way.send_replace(Way::Open);
    leads("it leads again", 1.0).await;
}

/// By what it asks before it begins its work.
async fn given_up_while_it_is_made(name: &'static str, answers: usize) {
    let (database, link, _relay, ..) = behind(name).await;
    link.way.send_replace(Way::SwallowsAfter(answers));
    let sessions = format!(
        "from pg_stat_activity where datname = current_database() and application_name = '{name}'"
    );
    let end = format!("select pg_terminate_backend(pid) {sessions}");
    database.sql(&end).await;
    eventually("an answer vanishes", async || {
        (link.swallowed.load(Ordering::Relaxed) > 0).then_some(())
    })
    .await;
    let pid = database.one(&format!("select pid {sessions}")).await;
    link.way.send_replace(Way::Open);
    let another = format!("select pid {sessions} and pid <> {pid}");
    eventually(&format!("another session as {name}"), async || {
        (!database.one(&another).await.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_connection_of_the_feed_that_falls_silent_while_it_is_made_is_made_anew() {
    given_up_while_it_is_made("rowcast feed", 6).await;
}

#[tokio::test]
async fn a_connection_of_the_doorbell_that_falls_silent_while_it_is_made_is_made_anew() {
    given_up_while_it_is_made("rowcast doorbell", 2).await;
}

#[tokio::test]
async fn a_connection_of_the_bell_that_falls_silent_while_it_is_made_is_made_anew() {
    given_up_while_it_is_made("rowcast bell", 2).await;
}

#[tokio::test]
async fn a_connection_of_the_upkeep_that_falls_silent_while_it_is_made_is_made_anew() {
    given_up_while_it_is_made("rowcast upkeep", 2).await;
}

/// Whoever starts asks as the API's login too.
#[tokio::test]
async fn a_relay_that_is_not_answered_while_it_starts_ends_when_it_is_told_to() {
    const LOGIN: &str = "unanswered_api";
    let database = database().await;
    database.role(LOGIN, "login").await;
    let link = Link::to(&database, LOGIN).await;
    link.way.send_replace(Way::SwallowsAfter(1));
    let mut relay = command()
        .args(["serve", "--listen", "127.0.0.1:0"])
        .args(["--database-url", &database.url])
        .args(["--api-url", &link.database.login(LOGIN)])
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    eventually("an answer vanishes", async || {
        (link.swallowed.load(Ordering::Relaxed) > 0).then_some(())
    })
    .await;
    signal(relay.id().unwrap(), "TERM").await;
    let ended = tokio::time::timeout(DEADLINE, relay.wait()).await;
    assert!(ended.expect("it ends").unwrap().success());
}

#[tokio::test]
async fn a_flood_of_notices_is_answered_by_few_reads() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    let mut screen = Screen::default();
    let mut stream = relay.stream("/rest/v1/tasks").await;
    screen.follow(&mut stream, |_| true).await;
    let before = count(&relay, "rowcast_polls_total").await;
    // Each a transaction of its own, since equal notices in one arrive once.
    let client = database.client().await;
    let begun = Instant::now();
    for n in 0..20 {
        let one = format!("notify rowcast, 'note {n}'; commit; begin;");
        client
            .batch_execute(&format!("begin; {} commit", one.repeat(500)))
            .await
            .unwrap();
    }
    let took = begun.elapsed().as_secs_f64();
    let txid = database.commit("insert into tasks values (1)").await;
    screen.reach(&mut stream, &txid).await;
    let polls = count(&relay, "rowcast_polls_total").await - before;
    eprintln!("{polls} reads for 10,000 notices in {took:.1} s");
    assert!(polls < 5000, "{polls} reads for 10,000 notices");
}

#[tokio::test]
async fn a_foreign_listener_that_is_stuck_is_seen_and_delays_nobody() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    let stuck = database.client().await;
    stuck
        .batch_execute("listen rowcast; listen elsewhere")
        .await
        .unwrap();
    stuck.batch_execute("begin; select 1").await.unwrap();
    let mut screen = Screen::default();
    let mut stream = relay.stream("/rest/v1/tasks").await;
    screen.follow(&mut stream, |_| true).await;
    let noise = database.client().await;
    for _ in 0..5 {
        noise
            .batch_execute("do $$ begin for i in 1..400 loop perform pg_notify('elsewhere', i || repeat('x', 7000)); end loop; end $$")
            .await
            .unwrap();
    }
    let txid = database.commit("insert into tasks values (1)").await;
    screen.reach(&mut stream, &txid).await;
    eventually("the queue is seen to fill", async || {
        (relay.metric("rowcast_notify_queue_usage_ratio").await > 0.0).then_some(())
    })
    .await;
    stuck.batch_execute("rollback").await.unwrap();
}

/// A session of the relay under this name that waits for a lock, and does not give it up by itself.
async fn waiting(database: &Database, name: &str) -> String {
    let sql = format!(
        "select pid from pg_stat_activity where application_name = '{name}' and datname = current_database() \
         and wait_event_type = 'Lock' and state_change < clock_timestamp() - interval '2 s'"
    );
    eventually("a session that waits", async || {
        Some(database.one(&sql).await).filter(|pid| !pid.is_empty())
    })
    .await
}

async fn ends(database: &Database, pid: &str) {
    let sql = format!("select exists (select from pg_stat_activity where pid = {pid})");
    eventually("the end of a session that nobody listens to", async || {
        (database.one(&sql).await == "f").then_some(())
    })
    .await;
}

/// As while somebody rewrites it by VACUUM FULL.
#[tokio::test]
async fn who_waits_for_a_locked_log_in_vain_leaves_no_session_behind() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    let (mut stream, mut screen) = relay.shown("/rest/v1/tasks").await;
    let locking = database.client().await;
    locking
        .batch_execute("begin; lock table rowcast.log")
        .await
        .unwrap();
    let waits = waiting(&database, "rowcast feed").await;
    ends(&database, &waits).await;
    locking.batch_execute("rollback").await.unwrap();
    let txid = database.commit("insert into tasks values (1)").await;
    screen.reach(&mut stream, &txid).await;
}

/// Who looks for what is wrong is not held up by it.
#[tokio::test]
async fn a_locked_log_is_told_by_doctor() {
    let database = database().await;
    database.relay().await.end().await;
    let locking = database.client().await;
    locking
        .batch_execute("begin; lock table rowcast.log")
        .await
        .unwrap();
    let mut doctor = command();
    doctor.args(["doctor", "--database-url", &database.url]);
    let told = tokio::time::timeout(2 * DEADLINE, doctor.kill_on_drop(true).output()).await;
    let told = String::from_utf8(told.expect("it ends").unwrap().stdout).unwrap();
    assert!(told.contains("somebody holds what is asked for"), "{told}");
    // What was found before is told all the same.
    assert!(told.contains("sessions are whole"), "{told}");
}

/// Whoever notifies waits until all who did before have committed.
#[tokio::test]
async fn commits_that_wait_for_a_standby_take_no_connections_and_stop_nobody_who_asks() {
    let server = Server::start(&[]).await;
    let database = server.database().await;
    // Writers ring, and so wait for whoever rang before, and not for the standby themselves.
    let rings = ["--bell", "always"];
    let relay = Relay::start(&database, &rings).await;
    database.sql(TASKS).await;
    let (mut stream, mut screen) = relay.shown("/rest/v1/tasks").await;
    database
        .sql("alter system set synchronous_standby_names = 'gone'")
        .await;
    database.sql("select pg_reload_conf()").await;
    eventually("the setting", async || {
        (database.one("show synchronous_standby_names").await == "gone").then_some(())
    })
    .await;
    let writer = database.client().await;
    let writing = tokio::spawn(async move {
        writer
            .batch_execute("notify elsewhere; insert into tasks values (1)")
            .await
    });
    let waits = waiting(&database, "rowcast doorbell").await;
    ends(&database, &waits).await;
    // Whoever writes through the relay waits no longer than for any other lock.
    let refused = relay.post("/rest/v1/tasks", r#"{"id":2}"#).await;
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert_eq!(refused.header("retry-after"), "2");
    assert_eq!(refused.json()["code"], "55P03");
    let hint = refused.json()["hint"].to_string();
    assert!(hint.contains("rowcast doctor"), "{hint}");

    let doctor = ["doctor", "--database-url", &database.url];
    let doctor = command().args(doctor).output();
    let doctor = tokio::time::timeout(Duration::from_secs(30), doctor).await;
    let said = String::from_utf8(doctor.expect("an answer").unwrap().stdout).unwrap();
    assert!(
        said.contains("wait in their commit for a synchronous standby"),
        "{said}"
    );
    let another = Relay::start(&database, &rings).await;
    assert_eq!(another.get("/readyz").await.status, 200);

    database
        .sql("alter system reset synchronous_standby_names")
        .await;
    database.sql("select pg_reload_conf()").await;
    writing.await.unwrap().unwrap();
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 1)
        .await;
}
