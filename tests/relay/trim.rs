//! The log is trimmed while screens return: they get everything, or their state anew.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Database, Screen, database};
use crate::wire::count;

/// Seconds of the race; the long form is `ROWCAST_TRIM=600`.
fn seconds() -> u64 {
    let seconds = std::env::var("ROWCAST_TRIM").ok();
    seconds.map_or(6, |seconds| seconds.parse().expect("seconds"))
}

async fn truth(database: &Database) -> BTreeMap<String, Value> {
    let rows = database
        .one("select json_object_agg(id, row_to_json(t)) from tasks t")
        .await;
    serde_json::from_str(&rows).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_returns_while_the_log_is_trimmed_misses_nothing_in_silence() {
    let database = database().await;
    // The ring would answer for the log: those who return do so to a relay that has just begun.
    let first = database.relay().await;
    database
        .sql(
            "create table tasks (id int primary key, v int not null); select rowcast.watch('tasks');
            insert into tasks select n, 0 from generate_series(1, 40) n",
        )
        .await;
    let over = AtomicBool::new(false);
    let writing = async {
        let client = database.client().await;
        let mut random = fastrand::Rng::with_seed(7);
        while !over.load(Ordering::Relaxed) {
            let id = random.u32(1..=60);
            let sql = match random.u8(..4) {
                0 => format!("delete from tasks where id = {id}"),
                _ => format!(
                    "insert into tasks values ({id}, 1) on conflict (id) do update set v = tasks.v + 1"
                ),
            };
            client.batch_execute(&sql).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let trimming = async {
        let client = database.client().await;
        while !over.load(Ordering::Relaxed) {
            // To the very edge: half a second is all that a screen may be away.
            client
                .batch_execute("select rowcast.trim('0.5 s', 50)")
                .await
                .unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let returning = async {
        let begun = Instant::now();
        let mut screens: Vec<(String, Screen)> = Vec::new();
        for _ in 0..30 {
            let mut stream = first.stream("/rest/v1/tasks").await;
            let mut screen = Screen::default();
            screen.follow(&mut stream, |_| true).await;
            screens.push((stream.id.clone(), screen));
        }
        let mut random = fastrand::Rng::with_seed(8);
        let mut answers = [0; 3];
        let mut round = 0;
        while round < 3 || begun.elapsed() < Duration::from_secs(seconds()) {
            round += 1;
            // It remembers only what it read when it began: whoever was away for longer is answered
            // from the log, under the hands of who trims it.
            let relay = database.relay().await;
            let back = screens.iter_mut().map(|(id, screen)| {
                let (relay, database, stays) = (&relay, &database, random.u8(..3) == 0);
                async move {
                    if stays {
                        return;
                    }
                    let mut stream = relay.resume("/rest/v1/tasks", id).await;
                    let wanted = database.one("select pg_current_xact_id()::text").await;
                    screen.reach(&mut stream, &wanted).await;
                    id.clone_from(&stream.id);
                }
            });
            futures::future::join_all(back).await;
            for (answer, from) in answers.iter_mut().zip(["ring", "log", "reset"]) {
                let name = format!("rowcast_resumes_total{{result=\"{from}\"}}");
                *answer += count(&relay, &name).await;
            }
        }
        over.store(true, Ordering::Relaxed);
        (screens, answers)
    };
    let ((), (), (screens, answers)) = futures::join!(writing, trimming, returning);
    let last = database.commit("insert into tasks values (99, 9)").await;
    let truth = truth(&database).await;
    for (id, mut screen) in screens {
        let mut stream = first.resume("/rest/v1/tasks", &id).await;
        screen.reach(&mut stream, &last).await;
        assert_eq!(screen.rows, truth);
    }
    let [ring, log, reset] = answers;
    eprintln!("{ring} returns from memory, {log} from the log, {reset} anew");
    assert!(ring + log + reset > 20);
}
