//! Many at once, and things that run out: connections to the database, descriptors, patience.

use std::time::{Duration, Instant};

use hyper::Method;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::harness::{DEADLINE, Screen, Stream, database, eventually};
use crate::policies::{ROLES, relay_with, token};
use crate::wire::{Wire, count, descriptors, processor};

const TASKS: &str =
    "create table tasks (id int primary key, body text); select rowcast.watch('tasks')";

#[tokio::test]
async fn slow_requests_take_their_own_connections_and_nobody_elses() {
    let database = database().await;
    database.sql(ROLES).await;
    let relay = relay_with(&database, &["--anon-role", "visitor", "--pool", "4"]).await;
    database.sql(TASKS).await;
    database
        .sql(
            "create view slow as select 1 as id, pg_sleep(20)::text as waited;
            select rowcast.expose('slow');
            grant select on tasks, slow to visitor, member",
        )
        .await;
    let member = format!("Bearer {}", token("member", &["sub=ann"]).await);
    let (mut stream, mut screen) = relay.shown("/rest/v1/tasks").await;
    let url = relay.url.clone();
    let slow = async || {
        let begun = Instant::now();
        let answer = relay.get("/rest/v1/slow").await;
        (answer, begun.elapsed())
    };
    let crowd = futures::future::join_all((0..40).map(|_| slow()));
    let meanwhile = async {
        eventually("the crowd has all that one caller may have", async || {
            let sleeping = "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'";
            (database.one(sleeping).await == "3").then_some(())
        })
        .await;
        // Somebody else does not wait behind it.
        let headers = [("authorization", &*member)];
        let answer = relay.request(Method::GET, "/rest/v1/tasks", &headers, "");
        assert_eq!(answer.await.status, 200);
        // Open streams go on, and new ones open.
        let txid = database.commit("insert into tasks values (1)").await;
        screen.reach(&mut stream, &txid).await;
        let mut late = Stream::open(&format!("{url}/rest/v1/tasks?id=gt.0"), None).await;
        let mut other = Screen::default();
        other
            .follow(&mut late, |screen| screen.rows.len() == 1)
            .await;
    };
    let (answers, ()) = futures::join!(crowd, meanwhile);
    let mut turned_away = 0;
    for (answer, took) in answers {
        if answer.status == 504 {
            turned_away += 1;
            assert_eq!(answer.json()["code"], "PGRST003");
            assert_eq!(answer.header("retry-after"), "2");
            // Two seconds, and what the machine adds.
            assert!(took < Duration::from_secs(6), "{took:?}");
        } else {
            assert_eq!(answer.json()["code"], "57014", "{}", answer.body);
        }
    }
    assert!(turned_away >= 30, "{turned_away}");
    assert_eq!(relay.get("/rest/v1/tasks").await.status, 200);
}

#[tokio::test]
async fn writers_who_wait_for_a_lock_are_told_and_readers_do_not_notice() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    database
        .sql("insert into tasks values (1, 'a'), (2, 'b')")
        .await;
    let (mut stream, mut screen) = relay.shown("/rest/v1/tasks").await;
    let holder = database.client().await;
    holder
        .batch_execute("begin; update tasks set body = 'held' where id = 1")
        .await
        .unwrap();
    let writes = (0..30).map(|n| {
        let body = format!("{{\"body\":\"{n}\"}}");
        let relay = &relay;
        async move {
            let json = [("content-type", "application/json")];
            relay
                .request(Method::PATCH, "/rest/v1/tasks?id=eq.1", &json, &body)
                .await
        }
    });
    let meanwhile = async {
        let txid = database
            .commit("update tasks set body = 'free' where id = 2")
            .await;
        screen.reach(&mut stream, &txid).await;
    };
    let (answers, ()) = futures::join!(futures::future::join_all(writes), meanwhile);
    for answer in answers {
        // The lock's time limit, or that of the pool.
        let code = answer.json()["code"].clone();
        assert!(
            code == "55P03" || code == "PGRST003",
            "{} {}",
            answer.status,
            answer.body
        );
    }
    holder.batch_execute("commit").await.unwrap();
    screen
        .follow(&mut stream, |screen| screen.rows["1"]["body"] == "held")
        .await;
}

#[tokio::test]
async fn a_deadlock_between_writers_ends_and_one_of_them_has_written() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    database
        .sql(
            "insert into tasks values (1, 'a'), (2, 'b');
            create function swap(a int, b int) returns void language plpgsql as $$
            begin
              update tasks set body = body || a where id = a;
              perform pg_sleep(0.7);
              update tasks set body = body || b where id = b;
            end $$;
            select rowcast.expose_function('swap(int, int)')",
        )
        .await;
    let (mut stream, mut screen) = relay.shown("/rest/v1/tasks").await;
    let call = async |body: &str| relay.post("/rest/v1/rpc/swap", body).await;
    let (one, other) = futures::join!(call(r#"{"a":1,"b":2}"#), call(r#"{"a":2,"b":1}"#));
    let written = [&one, &other]
        .iter()
        .filter(|answer| answer.status.is_success())
        .count();
    assert!(written >= 1, "{} {}", one.body, other.body);
    for answer in [one, other] {
        if !answer.status.is_success() {
            assert_eq!(answer.json()["code"], "40P01", "{}", answer.body);
        }
    }
    let truth = database.one("select body from tasks where id = 1").await;
    screen
        .follow(&mut stream, |screen| {
            screen.rows["1"]["body"] == truth.as_str()
        })
        .await;
}

#[tokio::test]
async fn a_write_that_came_in_the_way_of_another_is_made_again() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    // A sequence counts what is rolled back too.
    database
        .sql(
            "insert into tasks values (1, 'a');
            create sequence tries;
            create function collide() returns trigger language plpgsql as $$
            begin
              if nextval('tries') <= tg_argv[0]::int then
                raise exception 'collided' using errcode = '40001';
              end if;
              return new;
            end $$;
            create trigger collide before update on tasks
              for each row execute function collide(3)",
        )
        .await;
    let json = [("content-type", "application/json")];
    let patch = async || {
        let body = r#"{"body":"b"}"#;
        relay
            .request(Method::PATCH, "/rest/v1/tasks?id=eq.1", &json, body)
            .await
    };
    let answer = patch().await;
    assert!(answer.status.is_success(), "{}", answer.body);
    assert_eq!(database.one("select body from tasks").await, "b");
    assert_eq!(database.one("select last_value from tries").await, "4");

    database
        .sql(
            "drop trigger collide on tasks; alter sequence tries restart;
            create trigger collide before update on tasks
              for each row execute function collide(100)",
        )
        .await;
    let answer = patch().await;
    assert_eq!(answer.json()["code"], "40001", "{}", answer.body);
    assert_eq!(database.one("select last_value from tries").await, "4");
}

#[tokio::test]
async fn a_relay_without_descriptors_neither_spins_nor_stays_deaf() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    let (mut stream, mut screen) = relay.shown("/rest/v1/tasks").await;
    // What may be open is taken away while it runs; before, it would allow fewer connections.
    let most = descriptors(&relay) + 8;
    let pid = relay.child.id().unwrap().to_string();
    let limit = async |most: usize| {
        let limit = format!("--nofile={most}:20000");
        let set = Command::new("prlimit")
            .args(["--pid", &pid, &limit])
            .status()
            .await;
        assert!(set.unwrap().success());
    };
    limit(most).await;
    let used = processor(&relay);
    let begun = Instant::now();
    let mut crowd = Vec::new();
    for _ in 0..200 {
        crowd.push(Wire::open(&relay).await);
    }
    // Who has no place is closed, and does not hang.
    let mut closed = 0;
    for wire in &mut crowd {
        closed += usize::from(wire.ends_within(Duration::from_millis(20)).await);
    }
    assert!(closed >= 100, "{closed}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let share = (processor(&relay) - used) / begun.elapsed().as_secs_f64();
    assert!(share < 0.5, "{share} of a processor");
    // The stream that was there goes on.
    let txid = database.commit("insert into tasks values (1)").await;
    screen.reach(&mut stream, &txid).await;
    drop(crowd);
    let back = Instant::now();
    eventually("connections are accepted again", async || {
        let mut wire = Wire::open(&relay).await;
        wire.send("GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await;
        wire.ends_within(DEADLINE).await;
        wire.text().starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
    assert!(
        back.elapsed() < Duration::from_secs(5),
        "{:?}",
        back.elapsed()
    );
    limit(20_000).await;
    let refused = "rowcast_refused_connections_total{reason=\"descriptors\"}";
    assert!(count(&relay, refused).await >= 1);
}

#[tokio::test]
async fn clients_that_are_gone_without_a_word_are_freed() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    let (mut stream, mut screen) = relay.shown("/rest/v1/tasks").await;
    let files = descriptors(&relay);
    let mut frozen = Vec::new();
    for n in 0..120 {
        let mut wire = Wire::narrow(&relay).await;
        wire.watch("/rest/v1/tasks").await;
        assert!(wire.sees("snapshot-end").await);
        match n % 3 {
            // Stops writing, and goes on reading nothing.
            0 => wire.socket.shutdown().await.unwrap(),
            // Has said more than was asked.
            1 => {
                let more = "GET / HTTP/1.1\r\nhost: x\r\n\r\n".repeat(20);
                wire.send(more).await;
            }
            _ => {}
        }
        frozen.push(wire);
    }
    // Enough to fill what their kernels take.
    let fill = "insert into tasks select n, repeat(md5(n::text), 60) from generate_series(1, 400) n on conflict (id) do update set body = excluded.body";
    let used = processor(&relay);
    let begun = Instant::now();
    let mut last = String::new();
    for _ in 0..3 {
        last = database.commit(fill).await;
    }
    screen.reach(&mut stream, &last).await;
    eventually("they are freed", async || {
        (count(&relay, "rowcast_subscribers").await <= 1 && descriptors(&relay) <= files + 6)
            .then_some(())
    })
    .await;
    let share = (processor(&relay) - used) / begun.elapsed().as_secs_f64();
    assert!(share < 0.6, "{share} of a processor");
    let dropped = count(
        &relay,
        "rowcast_dropped_subscribers_total{reason=\"stalled\"}",
    )
    .await;
    assert!(dropped > 30, "{dropped}");
    drop(frozen);
}

#[tokio::test]
async fn a_second_signal_ends_a_relay_at_once() {
    let database = database().await;
    let mut relay = database.relay().await;
    database.sql(TASKS).await;
    let (_stream, _screen) = relay.shown("/rest/v1/tasks").await;
    let locker = database.client().await;
    locker
        .batch_execute("begin; lock table tasks in access exclusive mode")
        .await
        .unwrap();
    let mut wire = Wire::open(&relay).await;
    wire.send("GET /rest/v1/tasks HTTP/1.1\r\nhost: x\r\n\r\n")
        .await;
    eventually("a request waits", async || {
        let waiting = database.one("select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()").await;
        (waiting == "1").then_some(())
    })
    .await;
    relay.signal("TERM").await;
    relay.signal("TERM").await;
    let begun = Instant::now();
    let status = tokio::time::timeout(DEADLINE, relay.child.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
}
