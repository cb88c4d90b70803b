//! A standby is promoted that had not received everything: what it never heard of did not happen,
//! and no screen may go on showing it.
//!
//! The old primary comes back as well, and nobody listens to it. The write-ahead log of a server
//! that is gone is no truth, so here only the end counts: each screen is the new primary's table.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rowcast::postgres::embedded::{Cluster, Options, running};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::check::{Evidence, Fired, judge};
use crate::harness::{connect, pg_bin, signal};
use crate::proxy::{Link, Place, Trouble};
use crate::record::{Note, now};
use crate::run::{Crowd, Outcome, SETTLE, rows_of};
use crate::schedule::{Plan, Scenario};
use crate::world::{World, socket};

/// How long the primary goes on alone.
const TAIL: Duration = Duration::from_secs(3);

pub async fn run(seed: u64) -> Outcome {
    let begun = Instant::now();
    let plan = Plan {
        observers: 48,
        asynchronous: false,
        ..Plan::of(seed, 30, Scenario::Quiet)
    };
    eprintln!("histcheck: a standby with a lost tail is promoted, seed {seed}");
    let world = Arc::new(World::open(plan.retention).await);
    let mut random = fastrand::Rng::with_seed(seed);
    let replication = Link::open(Place::Unix(socket(&world.database.url))).await;
    let standby = Standby::of(&world, &replication).await;

    let mut crowd = Crowd::of(&world, &plan, &mut random).await;
    crowd.write(&world, &plan, &mut random).await;
    sleep(Duration::from_secs(10)).await;

    // From here on the standby hears nothing.
    replication.misbehave(Trouble {
        refuses: true,
        ..Trouble::default()
    });
    replication.cut();
    let cut = now();
    sleep(TAIL).await;
    for relay in &world.relays {
        relay.database.leads_to(Place::Nowhere);
        relay.database.cut();
    }
    let killed = world.server.cluster.pid().expect("it runs");
    signal(killed, "KILL").await;
    crowd.stop_writing().await;
    let promoted = standby.promote().await;
    for relay in &world.relays {
        relay.database.leads_to(Place::Unix(standby.socket.clone()));
    }
    let ready = world
        .relays
        .iter()
        .map(|relay| relay.ready(promoted, SETTLE));
    let ready = futures::future::join_all(ready).await;
    sleep(SETTLE).await;
    let ended = now();
    crowd.leave().await;

    let client = connect(&standby.url(&world)).await;
    // What its writers were told is of the old primary, and so is no promise of the new one.
    let mut evidence = Evidence {
        intents: Vec::new(),
        stopped: promoted,
        ended,
        ..crowd.told()
    };
    let views: BTreeSet<_> = evidence.records.iter().map(|record| record.view).collect();
    for view in views {
        evidence.finals.insert(view, rows_of(&client, &view).await);
    }
    let lost = standby.lost(&world, &client).await;
    let saw = who_saw(&evidence, &lost);
    evidence.faults.push(Fired {
        kind: "promotion with a lost tail",
        target: format!("{} transactions lost, seen on {saw} screens", lost.len()),
        begun: cut,
        healed: promoted,
        ready: ready.into_iter().flatten().collect(),
        evidence: (saw > 0).then(|| "screens showed what was lost".to_owned()),
        harms_postgres: true,
    });
    let verdict = judge(&evidence);
    let mut invalid = Vec::new();
    if saw == 0 {
        invalid.push("no screen saw anything of the lost tail".to_owned());
    }
    if evidence.records.len() != crowd.screens {
        invalid.push("not every observer came back".to_owned());
    }
    for relay in &world.relays {
        relay.signal("TERM").await;
        relay.gone(SETTLE).await;
    }
    standby.cluster.stop().await;
    Outcome {
        postgres: world.server.cluster.version().to_owned(),
        plan,
        verdict,
        evidence,
        invalid,
        took: begun.elapsed(),
    }
}

/// How many screens were told of a transaction that is lost.
fn who_saw(evidence: &Evidence, lost: &BTreeSet<String>) -> usize {
    let tells: Vec<bool> = evidence
        .texts
        .iter()
        .map(|text| lost.iter().any(|tx| text.contains(&format!("\"tx\":{tx}"))))
        .collect();
    let saw = evidence.records.iter().filter(|record| {
        let mut notes = record.notes.iter();
        notes.any(|(_, note)| matches!(note, Note::Data { text, .. } if tells[*text as usize]))
    });
    saw.count()
}

struct Standby {
    cluster: Cluster,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Standby {
    /// A copy of the primary that follows it through this link.
    async fn of(world: &World, replication: &Link) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("rowcast-standby")
            .tempdir_in("/tmp")
            .unwrap();
        let place = directory.path().join("d");
        let options = || Options {
            data_dir: place.clone(),
            durable: false,
            extra_settings: [("max_replication_slots", "4"), ("wal_level", "logical")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec(),
            max_connections: 200,
            pg_bin: pg_bin(),
        };
        // The launcher makes a directory that PostgreSQL's user may use; what is in it is replaced.
        let empty = Cluster::start(options()).await.unwrap();
        let programs = empty.binaries().to_owned();
        empty.stop().await;
        let data = place.join("data");
        let owner = std::fs::metadata(&data).unwrap();
        std::fs::remove_dir_all(&data).unwrap();
        let primary = format!(
            "host=127.0.0.1 port={} user=postgres sslmode=disable",
            replication.address.port()
        );
        let copied = Command::new(programs.join("pg_basebackup"))
            .args([
                "-d",
                &primary,
                "-R",
                "--checkpoint=fast",
                "-X",
                "stream",
                "-D",
            ])
            .arg(&data)
            .output()
            .await
            .unwrap();
        assert!(copied.status.success(), "{copied:?}");
        give(&data, owner.uid(), owner.gid());
        let cluster = Cluster::start(options()).await.unwrap();
        let found = running(&place).expect("the standby runs");
        let port = found.port;
        let standby = Self {
            cluster,
            socket: found.socket_directory.join(format!(".s.PGSQL.{port}")),
            _directory: directory,
        };
        let replicates = || async {
            let sql = "select count(*) from pg_stat_replication where state = 'streaming'";
            world.database.one(sql).await == "1"
        };
        let end = Instant::now() + Duration::from_secs(30);
        while !replicates().await {
            assert!(Instant::now() < end, "the standby follows");
            sleep(Duration::from_millis(50)).await;
        }
        standby
    }

    fn url(&self, world: &World) -> String {
        let directory = self.socket.parent().expect("in a directory").display();
        let (_, name) = world.database.url.rsplit_once('=').expect("a database");
        let (_, port) = self
            .socket
            .to_str()
            .unwrap()
            .rsplit_once('.')
            .expect("a port");
        format!("host={directory} port={port} user=postgres dbname={name}")
    }

    /// When it began to take writes.
    async fn promote(&self) -> u64 {
        let (client, connection) = self
            .cluster
            .target("postgres")
            .connect("histcheck")
            .await
            .unwrap();
        tokio::spawn(connection);
        let row = client.query_one("select pg_promote()", &[]).await.unwrap();
        assert!(row.get::<_, bool>(0), "it is promoted");
        now()
    }

    /// The transactions that the old primary has, now that it is back, and the new one has not.
    async fn lost(&self, world: &World, client: &tokio_postgres::Client) -> BTreeSet<String> {
        let sql = "select coalesce(string_agg(tx::text, ' '), '') from hc_tx";
        let list = |text: String| -> BTreeSet<String> {
            text.split_whitespace().map(ToOwned::to_owned).collect()
        };
        let old = list(world.database.one(sql).await);
        let new = list(client.query_one(sql, &[]).await.unwrap().get(0));
        old.difference(&new).cloned().collect()
    }
}

/// Hands a directory over, with all that is in it.
fn give(path: &Path, user: u32, group: u32) {
    std::os::unix::fs::lchown(path, Some(user), Some(group)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), user, group);
        }
    }
}
