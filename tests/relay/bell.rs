//! Writers do not ring while a relay reads anyway, and nobody is left asleep by that: not by a
//! transaction that outlives the reading, and not by a leader that dies, hangs or loses a connection.
//!
//! No relay here reads without a reason: what nobody rings for and nobody looks for is never shown.

use tokio_postgres::Client;

use crate::harness::{Database, Relay, Screen, Server, Stream, database, eventually};
use crate::wire::count;

/// Reads without a reason are put off for ever.
const NO_SAFETY: [&str; 2] = ["--safety-poll", "1000000000"];

const TASKS: &str = "create table tasks (id int primary key, title text); \
     create table noise (id int generated always as identity primary key); \
     select rowcast.watch('tasks'), rowcast.watch('noise')";

const LOCKS: &str = "from pg_locks where locktype = 'advisory' and classid = 7094114 and objid = 3 \
     and database = (select oid from pg_database where datname = current_database())";

struct World {
    database: Database,
    psql: Client,
    relays: Vec<(Relay, Stream, Screen)>,
}

impl World {
    async fn new(database: Database, relays: usize, arguments: &[&str]) -> Self {
        let first = database.relay().await;
        database.sql(TASKS).await;
        first.kill().await;
        let mut world = Self {
            psql: database.client().await,
            database,
            relays: Vec::new(),
        };
        for _ in 0..relays {
            world.join(arguments).await;
        }
        // Who has just started leads awake for a moment.
        eventually("one leads and sleeps", async || {
            (world.leader().await.is_some() && world.asleep().await).then_some(())
        })
        .await;
        world
    }

    async fn join(&mut self, arguments: &[&str]) {
        let arguments = [&NO_SAFETY[..], arguments].concat();
        let relay = Relay::start(&self.database, &arguments).await;
        let mut stream = relay.stream("/rest/v1/tasks").await;
        let mut screen = Screen::default();
        screen.follow(&mut stream, |_| true).await;
        self.relays.push((relay, stream, screen));
    }

    async fn leader(&self) -> Option<usize> {
        for (at, (relay, ..)) in self.relays.iter().enumerate() {
            if count(relay, "rowcast_bell_leader").await == 1 {
                return Some(at);
            }
        }
        None
    }

    async fn asleep(&self) -> bool {
        for (relay, ..) in &self.relays {
            if count(relay, "rowcast_bell_awake").await == 1 {
                return false;
            }
        }
        true
    }

    /// `held` by a leader, `asked` for by one, or `free`.
    async fn lock(&self) -> String {
        let sql = format!(
            "select coalesce(max(case when granted then 'held' else 'asked' end), 'free') {LOCKS} and mode = 'ExclusiveLock'"
        );
        self.psql.query_one(&sql, &[]).await.unwrap().get(0)
    }

    async fn until_lock(&self, wanted: &str) {
        eventually(wanted, async || (self.lock().await == wanted).then_some(())).await;
    }

    /// So many commits that the leader wakes, and the lock is held or asked for.
    async fn wake(&self, wanted: &str) {
        let many = "do $$ begin for i in 1..300 loop insert into noise default values; commit; end loop; end $$";
        eventually("the leader wakes", async || {
            self.psql.batch_execute(many).await.unwrap();
            (self.lock().await == wanted).then_some(())
        })
        .await;
    }

    /// A transaction that has inserted this row and stays open.
    async fn open(&self, id: i32) -> Open {
        let client = self.database.client().await;
        let sql = format!("begin; insert into tasks values ({id})");
        client.batch_execute(&sql).await.unwrap();
        let sql = format!(
            "select exists (select {LOCKS} and pid = pg_backend_pid() and mode = 'ShareLock'), pg_current_xact_id()::text"
        );
        let row = client.query_one(&sql, &[]).await.unwrap();
        Open {
            rang: row.get(0),
            txid: row.get(1),
            client,
        }
    }

    /// Every relay shows this transaction.
    async fn shows(&mut self, txid: &str) {
        for (_, stream, screen) in &mut self.relays {
            screen.reach(stream, txid).await;
        }
    }

    /// Whoever leads goes on reading although it holds no lock.
    async fn settles(&self) {
        let leader = self.leader().await.expect("somebody leads");
        let relay = &self.relays[leader].0;
        self.until_lock("free").await;
        let before = count(relay, "rowcast_polls_total").await;
        eventually("more reads", async || {
            (count(relay, "rowcast_polls_total").await > before + 5).then_some(())
        })
        .await;
        assert_eq!(count(relay, "rowcast_bell_awake").await, 1);
    }

    /// In the end everybody sleeps, and is woken by a bell.
    async fn sleeps_and_is_rung_for(&mut self, id: i32) {
        eventually("one leads and all sleep", async || {
            (self.leader().await.is_some() && self.asleep().await).then_some(())
        })
        .await;
        let open = self.open(id).await;
        assert!(open.rang);
        let txid = open.commit().await;
        self.shows(&txid).await;
    }

    async fn cut(&self, application: &str) {
        let sql = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                   where datname = current_database() and application_name = $1";
        let cut = self.psql.query_one(sql, &[&application]).await.unwrap();
        assert_ne!(cut.get::<_, i64>(0), 0, "{application}");
    }
}

struct Open {
    client: Client,
    rang: bool,
    txid: String,
}

impl Open {
    async fn commit(self) -> String {
        self.client.batch_execute("commit").await.unwrap();
        self.txid
    }
}

#[tokio::test]
async fn a_transaction_that_did_not_ring_is_shown_by_all_however_late_it_commits() {
    let mut world = World::new(database().await, 3, &[]).await;
    world.wake("held").await;
    let open = world.open(1).await;
    assert!(!open.rang);
    world.settles().await;
    let txid = open.commit().await;
    world.shows(&txid).await;
    world.sleeps_and_is_rung_for(2).await;
}

#[tokio::test]
async fn writers_that_always_overlap_do_not_keep_the_leader_from_the_lock() {
    let mut world = World::new(database().await, 1, &[]).await;
    let first = world.open(1).await;
    assert!(first.rang);
    world.wake("asked").await;
    // The next one does not ring any more, so that the wait has an end.
    let second = world.open(2).await;
    assert!(!second.rang);
    first.commit().await;
    world.until_lock("held").await;
    let txid = second.commit().await;
    world.shows(&txid).await;
    world.sleeps_and_is_rung_for(3).await;
}

#[tokio::test]
async fn a_transaction_open_for_long_keeps_nobody_from_being_shown() {
    let mut world = World::new(database().await, 2, &[]).await;
    // It holds the lock as those do who ring, longer than the leader waits for it.
    let long = world.open(1).await;
    assert!(long.rang);
    world.wake("asked").await;
    let silent = world.open(2).await;
    assert!(!silent.rang);
    eventually("the leader gives up waiting", async || {
        let probe = world.open(100).await;
        probe.rang.then_some(())
    })
    .await;
    world.settles().await;
    let txid = silent.commit().await;
    world.shows(&txid).await;
    let txid = long.commit().await;
    world.shows(&txid).await;
    world.sleeps_and_is_rung_for(3).await;
}

#[tokio::test]
async fn a_leader_that_dies_leaves_nobody_asleep() {
    for state in ["asked", "held", "settling"] {
        let mut world = World::new(database().await, 2, &[]).await;
        let long = if state == "asked" {
            Some(world.open(1).await)
        } else {
            None
        };
        world
            .wake(if state == "asked" { "asked" } else { "held" })
            .await;
        let silent = world.open(2).await;
        assert!(!silent.rang, "{state}");
        if state == "settling" {
            world.settles().await;
        }
        let leader = world.leader().await.unwrap();
        world.relays.remove(leader).0.kill().await;
        let txid = silent.commit().await;
        world.shows(&txid).await;
        if let Some(long) = long {
            let txid = long.commit().await;
            world.shows(&txid).await;
        }
        world.sleeps_and_is_rung_for(3).await;
    }
}

#[tokio::test]
async fn a_leader_that_hangs_with_the_lock_silences_the_bells_for_seconds_only() {
    let mut world = World::new(database().await, 2, &[]).await;
    world.wake("held").await;
    let leader = world.leader().await.unwrap();
    world.relays[leader].0.signal("STOP").await;
    let hangs = world.relays.remove(leader);
    let silent = world.open(1).await;
    assert!(!silent.rang);
    let txid = silent.commit().await;
    world.shows(&txid).await;
    world.sleeps_and_is_rung_for(2).await;
    // It finds itself without the lead, and goes on as everybody does.
    hangs.0.signal("CONT").await;
    world.relays.push(hangs);
    world.sleeps_and_is_rung_for(3).await;
}

/// Cuts this connection of the only relay in each state.
async fn nobody_sleeps_after_losing(connection: &str) {
    for state in ["asked", "held", "settling"] {
        let mut world = World::new(database().await, 1, &[]).await;
        let long = if state == "asked" {
            Some(world.open(1).await)
        } else {
            None
        };
        world
            .wake(if state == "asked" { "asked" } else { "held" })
            .await;
        let silent = world.open(2).await;
        assert!(!silent.rang, "{state}");
        if state == "settling" {
            world.settles().await;
        }
        world.cut(connection).await;
        let txid = silent.commit().await;
        world.shows(&txid).await;
        if let Some(long) = long {
            long.commit().await;
        }
        world.sleeps_and_is_rung_for(3).await;
    }
}

#[tokio::test]
async fn a_lost_lock_leaves_nobody_asleep() {
    nobody_sleeps_after_losing("rowcast bell").await;
}

#[tokio::test]
async fn a_lost_reader_leaves_nobody_asleep() {
    nobody_sleeps_after_losing("rowcast feed").await;
}

#[tokio::test]
async fn a_lost_listener_leaves_nobody_asleep() {
    nobody_sleeps_after_losing("rowcast doorbell").await;
}

#[tokio::test]
async fn a_transaction_prepared_while_nobody_rings_is_shown_when_it_is_committed() {
    let server = Server::start(&[("max_prepared_transactions", "4")]).await;
    let mut world = World::new(server.database().await, 2, &["--bell", "adaptive"]).await;
    world.wake("held").await;
    let silent = world.open(1).await;
    assert!(!silent.rang);
    silent
        .client
        .batch_execute("prepare transaction 'one'")
        .await
        .unwrap();
    world.settles().await;
    let commit = "commit prepared 'one'";
    silent.client.batch_execute(commit).await.unwrap();
    world.shows(&silent.txid).await;
    world.sleeps_and_is_rung_for(2).await;
}

#[tokio::test]
async fn two_phase_commit_turns_the_bell_off_unless_told_otherwise() {
    let server = Server::start(&[("max_prepared_transactions", "4")]).await;
    let database = server.database().await;
    let relay = database.relay().await;
    database.sql(TASKS).await;
    let mut stream = relay.stream("/rest/v1/tasks").await;
    let mut screen = Screen::default();
    screen.follow(&mut stream, |_| true).await;
    let client = database.client().await;
    for sql in [
        "begin",
        "insert into tasks values (1)",
        "prepare transaction 'one'",
        "commit prepared 'one'",
    ] {
        client.batch_execute(sql).await.unwrap();
    }
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 1)
        .await;
}

#[tokio::test]
async fn relays_that_disagree_about_the_bell_strand_nobody() {
    let mut world = World::new(database().await, 1, &[]).await;
    for (id, bell) in [(1, "off"), (2, "always"), (3, "auto"), (4, "off")] {
        world.join(&["--bell", bell]).await;
        let txid = world
            .database
            .commit(&format!("insert into tasks values ({id})"))
            .await;
        world.shows(&txid).await;
    }
    // The relays that are left find out by themselves that the bell is another one now.
    world.relays.truncate(1);
    for id in 5..8 {
        let txid = world
            .database
            .commit(&format!("insert into tasks values ({id})"))
            .await;
        world.shows(&txid).await;
    }
}
