//! One run: arrive, write under faults, settle, judge.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_postgres::SimpleQueryMessage;

use crate::browser::Browser;
use crate::check::{Evidence, Verdict, judge};
use crate::faults;
use crate::nginx::Nginx;
use crate::observers::{Observer, Watching};
use crate::record::{Intent, Kind, Record, Texts, Transport, Way, now};
use crate::resources::{Memory, arrival, log, resident, watch_memory};
use crate::schedule::Plan;
use crate::tables::{Filter, Row, TENANTS, Table, View, Who};
use crate::truth::{Truth, tables_written};
use crate::world::{World, token};
use crate::writers::{Writer, Writing};

/// How long screens may take to be the table once all is well. The goal is 5 s, and is reported.
pub const SETTLE: Duration = Duration::from_secs(20);

/// A run and what it came to.
pub struct Outcome {
    pub plan: Plan,
    pub verdict: Verdict,
    pub evidence: Evidence,
    pub postgres: String,
    /// Why the run says nothing, if it does not.
    pub invalid: Vec<String>,
    pub took: Duration,
}

impl Outcome {
    pub fn is_green(&self) -> bool {
        self.invalid.is_empty() && self.verdict.violations() == 0
    }
}

pub async fn run(plan: Plan) -> Outcome {
    let begun = Instant::now();
    eprintln!(
        "histcheck: seed {}, {} s, {} faults{}",
        plan.seed,
        plan.seconds,
        plan.faults.len(),
        if plan.asynchronous {
            ", asynchronous commits"
        } else {
            ""
        }
    );
    let world = Arc::new(World::open(plan.retention).await);
    let postgres = world.server.cluster.version().to_owned();
    let mut random = fastrand::Rng::with_seed(plan.seed ^ 0x5eed);
    let base = descriptors(&world).await;

    let mut crowd = Crowd::of(&world, &plan, &mut random).await;
    let resources = tokio::spawn(watch_resources(Arc::clone(&world), crowd.stop.subscribe()));
    arrival(&world, crowd.screens).await;
    let arrived = resident(&world).await;
    let most = tokio::spawn(watch_memory(Arc::clone(&world), crowd.stop.subscribe()));

    crowd.write(&world, &plan, &mut random).await;
    let written = Instant::now();
    let faults = faults::run(Arc::clone(&world), &plan).await;
    let rest = Duration::from_secs(plan.seconds).saturating_sub(written.elapsed());
    sleep(rest).await;
    crowd.stop_writing().await;
    let stopped = now();
    sleep(SETTLE).await;
    let ended = now();
    let held = resident(&world).await;
    crowd.leave().await;
    let memory = Memory {
        arrived,
        most: most.await.unwrap(),
        ended: held,
    };
    let (looks, while_running) = resources.await.unwrap();
    // Few witnesses are shown, so what is wrong in the end comes first.
    let mut complaints = left_open(&world, &base).await;
    complaints.extend(log(&world, &plan).await);
    complaints.extend(memory.excess());
    complaints.extend(while_running);

    let mut evidence = Evidence {
        faults,
        stopped,
        ended,
        resources: (looks + 3, complaints),
        memory,
        ..crowd.told()
    };
    gather(&world, &mut evidence).await;
    let verdict = judge(&evidence);
    let invalid = says_nothing(&plan, crowd.screens, &evidence, &verdict);
    if !invalid.is_empty() || verdict.violations() > 0 {
        eprintln!("what the relays said is in {}", keep(&world).display());
    }
    for relay in &world.relays {
        relay.signal("TERM").await;
        relay.gone(Duration::from_secs(20)).await;
    }
    Outcome {
        plan,
        verdict,
        evidence,
        postgres,
        invalid,
        took: begun.elapsed(),
    }
}

/// Everybody who looks and writes, and the switches that end them.
pub struct Crowd {
    texts: Arc<Texts>,
    records: Arc<Mutex<Vec<Record>>>,
    intents: Arc<Mutex<Vec<Intent>>>,
    observers: JoinSet<()>,
    writers: JoinSet<()>,
    nginx: Option<Nginx>,
    /// How many screens there are.
    pub screens: usize,
    settle: watch::Sender<bool>,
    pub stop: watch::Sender<bool>,
    stop_writers: watch::Sender<bool>,
}

impl Crowd {
    /// The screens arrive.
    pub async fn of(world: &World, plan: &Plan, random: &mut fastrand::Rng) -> Self {
        let mut crowd = Self {
            texts: Arc::default(),
            records: Arc::default(),
            intents: Arc::default(),
            observers: JoinSet::new(),
            writers: JoinSet::new(),
            nginx: Nginx::open(&world.doors()).await,
            screens: plan.observers,
            settle: watch::channel(false).0,
            stop: watch::channel(false).0,
            stop_writers: watch::channel(false).0,
        };
        let watching = Watching {
            doors: world.doors(),
            texts: Arc::clone(&crowd.texts),
            records: Arc::clone(&crowd.records),
            settle: crowd.settle.subscribe(),
            stop: crowd.stop.subscribe(),
        };
        let nginx = crowd.nginx.as_ref().map(Nginx::address);
        let browser = Browser::open(&watching).await;
        crowd.observers = observe(plan, &watching, nginx, random).await;
        if let Some(browser) = browser {
            crowd.observers.spawn(browser.run(plan.observers));
            crowd.screens += Browser::screens();
        }
        crowd
    }

    /// The writers begin.
    pub async fn write(&mut self, world: &World, plan: &Plan, random: &mut fastrand::Rng) {
        let writing = Writing {
            url: world.database.url.clone(),
            doors: world.doors(),
            token: token("hc_writer", &[]).await,
            intents: Arc::clone(&self.intents),
            stop: self.stop_writers.subscribe(),
            asynchronous: plan.asynchronous,
            pause: Duration::from_millis(plan.pause),
        };
        self.writers = write(&writing, random);
    }

    /// Writers stop, and screens leave and lie no more.
    pub async fn stop_writing(&mut self) {
        self.stop_writers.send_replace(true);
        self.settle.send_replace(true);
        while let Some(ended) = self.writers.join_next().await {
            ended.unwrap();
        }
    }

    pub async fn leave(&mut self) {
        self.stop.send_replace(true);
        while let Some(ended) = self.observers.join_next().await {
            ended.unwrap();
        }
    }

    /// What they have to tell.
    pub fn told(&self) -> Evidence {
        Evidence {
            records: std::mem::take(&mut *self.records.lock().unwrap()),
            texts: self.texts.all(),
            intents: std::mem::take(&mut *self.intents.lock().unwrap()),
            ..Evidence::default()
        }
    }
}

/// What PostgreSQL and the relays say in the end.
async fn gather(world: &World, evidence: &mut Evidence) {
    let client = world.database.client().await;
    evidence.truth = Truth::read(&client, &world.log()).await;
    let views: HashSet<View> = evidence.records.iter().map(|record| record.view).collect();
    for view in views {
        let rows = rows_of(&client, &view).await;
        evidence.finals.insert(view, rows);
    }
    (evidence.locks_watched, evidence.lock_waits) = lock_waits(world).await;
    evidence.written = everything_written(world).await;
}

/// Eight through the relays, six directly, two by psql, and the marker.
fn write(writing: &Writing, random: &mut fastrand::Rng) -> JoinSet<()> {
    let mut writers = JoinSet::new();
    for number in 0..17 {
        let way = match number {
            0..8 => Way::Api,
            8..14 => Way::Direct,
            14 | 15 => Way::Psql,
            _ => Way::Marker,
        };
        let writer = Writer {
            number,
            way,
            random: random.fork(),
            writing: writing.clone(),
            count: 0,
        };
        writers.spawn(writer.run());
    }
    writers
}

/// Logs of a run that failed outlive it.
fn keep(world: &World) -> std::path::PathBuf {
    let place = std::env::temp_dir().join(format!("histcheck-{}", std::process::id()));
    std::fs::create_dir_all(&place).unwrap();
    for relay in &world.relays {
        let _copied = std::fs::copy(
            &relay.log,
            place.join(format!("relay-{}.log", relay.number)),
        );
    }
    let _copied = std::fs::copy(world.log(), place.join("postgres.log"));
    place
}

async fn observe(
    plan: &Plan,
    watching: &Watching,
    nginx: Option<SocketAddr>,
    random: &mut fastrand::Rng,
) -> JoinSet<()> {
    let mut tokens = Vec::new();
    for tenant in 0..TENANTS {
        tokens.push(token("hc_member", &[format!("tenant=t{tenant}")]).await);
    }
    let mut observers = JoinSet::new();
    for number in 0..plan.observers {
        // The first ones stay, one for each kind of view, so that nothing goes unseen.
        let view = view(number, random);
        let kind = match random.u8(..100) {
            _ if number < 2 * KINDS_OF_VIEWS => Kind::Steady,
            0..=39 => Kind::Steady,
            40..=69 => Kind::Leaving,
            70..=81 => Kind::Slow,
            82..=90 => Kind::Fresh,
            _ => Kind::Liar,
        };
        // Two come over HTTP/2 and two through nginx: one of each stays, the other one leaves.
        let other = number.checked_sub(2 * KINDS_OF_VIEWS);
        let kind = match other {
            Some(0 | 2) => Kind::Steady,
            Some(1 | 3) => Kind::Leaving,
            _ => kind,
        };
        let (transport, doors) = match (other, nginx) {
            (Some(0 | 1), _) => (Transport::Http2, watching.doors.clone()),
            (Some(2 | 3), Some(nginx)) => (Transport::Nginx, vec![nginx]),
            _ => (Transport::Http1, watching.doors.clone()),
        };
        let token = match view.who {
            Who::Visitor => None,
            Who::Tenant(tenant) => Some(tokens[tenant as usize].clone()),
        };
        let observer = Observer {
            number,
            kind,
            transport,
            view,
            token,
            random: random.fork(),
            watching: Watching {
                doors,
                ..watching.clone()
            },
        };
        observers.spawn(observer.run());
    }
    observers
}

const KINDS_OF_VIEWS: usize = 16;

fn view(number: usize, random: &mut fastrand::Rng) -> View {
    let plain = |table| View {
        table,
        filter: None,
        who: Who::Visitor,
    };
    let filtered = |table, column, below, value| View {
        filter: Some(Filter {
            column,
            below,
            value,
        }),
        ..plain(table)
    };
    match number % KINDS_OF_VIEWS {
        0 => plain(Table::Tx),
        1 | 2 => plain(Table::Reg),
        3 => plain(Table::Acct),
        4 => plain(Table::Xfer),
        5 => plain(Table::List),
        6 => plain(Table::Life),
        7 => plain(Table::Parent),
        8 => plain(Table::Child),
        9 => plain(Table::Big),
        10 => plain(Table::Mark),
        11 => filtered(Table::Tx, "writer", false, random.i64(0..16)),
        12 => filtered(Table::Reg, "k", true, random.i64(4..20)),
        13 => filtered(Table::Life, "gen", true, random.i64(2..6)),
        _ => View {
            who: Who::Tenant(random.u32(..TENANTS)),
            ..plain(Table::Doc)
        },
    }
}

/// The rows of a view by the SELECT of its role.
pub async fn rows_of(client: &tokio_postgres::Client, view: &View) -> Vec<Arc<Row>> {
    let (role, claims) = view.role();
    let sql = format!(
        "begin; set local role {role}; set local \"request.jwt.claims\" = '{claims}'; {}; commit",
        view.select()
    );
    let messages = client.simple_query(&sql).await.unwrap();
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    rows.map(|text| {
        let value: Value = serde_json::from_str(text).unwrap();
        Arc::new(Row::of_json(&value))
    })
    .collect()
}

/// A run that did not do what it was to do proves nothing.
fn says_nothing(
    plan: &Plan,
    screens: usize,
    evidence: &Evidence,
    verdict: &Verdict,
) -> Vec<String> {
    let mut invalid = Vec::new();
    for fault in &evidence.faults {
        if fault.evidence.is_none() {
            invalid.push(format!("{} of {} did not happen", fault.kind, fault.target));
        }
    }
    if evidence.faults.len() != plan.faults.len() {
        invalid.push(format!(
            "{} of {} faults were tried",
            evidence.faults.len(),
            plan.faults.len()
        ));
    }
    if tables_written(&evidence.truth) < crate::tables::TABLES.len() {
        invalid.push("not every table was written".into());
    }
    if evidence.records.len() != screens {
        invalid.push(format!(
            "only {} observers came back",
            evidence.records.len()
        ));
    }
    for transport in evidence.records.iter().map(|record| record.transport) {
        let nothing = format!("no {}", transport.events());
        if verdict.counts[transport.events()] == 0 && !invalid.contains(&nothing) {
            invalid.push(nothing);
        }
    }
    for what in [
        "transactions committed",
        "transactions rolled back",
        "resumes",
        "snapshots",
        "resets",
    ] {
        if verdict.counts.get(what).is_none_or(|count| *count == 0) {
            invalid.push(format!("no {what}"));
        }
    }
    for (invariant, finding) in &verdict.findings {
        let is_of_faults = *invariant == "I14";
        if finding.checked == 0 && !(is_of_faults && plan.faults.is_empty()) {
            invalid.push(format!("{invariant} was never checked"));
        }
    }
    let committed = evidence.truth.txns.len() as u64;
    if committed < plan.seconds * 5 {
        invalid.push(format!(
            "only {committed} transactions in {} s",
            plan.seconds
        ));
    }
    invalid
}

// ---- resources

/// Open descriptors of each relay's process.
async fn descriptors(world: &World) -> Vec<usize> {
    let mut open = Vec::new();
    for relay in &world.relays {
        let pid = relay.pid().await.unwrap_or_default();
        let entries = std::fs::read_dir(format!("/proc/{pid}/fd"));
        open.push(entries.map_or(0, Iterator::count));
    }
    open
}

/// What is still open when everybody has gone.
async fn left_open(world: &World, base: &[usize]) -> Vec<String> {
    let end = Instant::now() + Duration::from_secs(40);
    loop {
        let open = descriptors(world).await;
        let left: Vec<String> = open
            .iter()
            .zip(base)
            .enumerate()
            // Pools may hold what they may hold.
            .filter(|(_, (open, base))| **open > **base + 24)
            .map(|(relay, (open, base))| {
                format!("relay {relay} has {open} descriptors open and began with {base}")
            })
            .collect();
        if left.is_empty() || Instant::now() > end {
            return left;
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// Looks once a second. How often it could look, and what was wrong.
async fn watch_resources(world: Arc<World>, mut stop: watch::Receiver<bool>) -> (u64, Vec<String>) {
    let sql = "select coalesce(pg_notification_queue_usage(), 0)::text, \
        coalesce((select string_agg(application_name || ' ' || state || ': ' || left(query, 80), '; ') from pg_stat_activity \
          where application_name like 'rowcast%' and state like 'idle in transaction%' \
            and state_change < clock_timestamp() - interval '6 seconds'), '')";
    let (mut looks, mut complaints) = (0, Vec::new());
    let mut client: Option<tokio_postgres::Client> = None;
    while !*stop.borrow() {
        tokio::select! {
            () = sleep(Duration::from_secs(1)) => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
        if client
            .as_ref()
            .is_none_or(tokio_postgres::Client::is_closed)
        {
            let connected =
                tokio_postgres::connect(&world.database.url, tokio_postgres::NoTls).await;
            client = connected.ok().map(|(client, connection)| {
                tokio::spawn(connection);
                client
            });
        }
        let Some(client) = &client else { continue };
        let Ok(messages) = client.simple_query(sql).await else {
            continue;
        };
        for message in messages {
            let SimpleQueryMessage::Row(row) = message else {
                continue;
            };
            looks += 1;
            let usage: f64 = row
                .get(0)
                .and_then(|text| text.parse().ok())
                .unwrap_or_default();
            if usage > 0.01 {
                complaints.push(format!("the queue of notices is {usage} full"));
            }
            let idle = row.get(1).unwrap_or_default();
            if !idle.is_empty() {
                complaints.push(format!("idle in a transaction for more than 5 s: {idle}"));
            }
        }
    }
    (looks, complaints)
}

/// What may hold a secret and must not.
async fn everything_written(world: &World) -> Vec<(String, String)> {
    let mut written = Vec::new();
    for relay in &world.relays {
        let log = tokio::fs::read(&relay.log).await.unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        written.push((format!("the log of relay {}", relay.number), log));
        let metrics = relay.metrics().await;
        written.push((format!("the counters of relay {}", relay.number), metrics));
    }
    written
}

/// Waits of more than 100 ms for a lock that a session of a relay's own held, as PostgreSQL's log
/// tells; and how many waits there were at all.
async fn lock_waits(world: &World) -> (u64, Vec<String>) {
    let log = tokio::fs::read(world.log()).await.unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    let (mut all, mut ours) = (0, Vec::new());
    let mut waiting = "";
    for line in log.lines() {
        let pid = line
            .split_once('[')
            .and_then(|(_, rest)| rest.split(']').next());
        if line.contains("connection authorized")
            && let Some(pid) = pid
        {
            // Process ids come again, also for sessions without a name.
            let name = line.split_once("application_name=");
            names.insert(pid, name.map_or("", |(_, name)| name));
        }
        if line.contains("still waiting for") {
            all += 1;
            waiting = line;
        }
        let Some((_, holders)) = line.split_once("holding the lock: ") else {
            continue;
        };
        let waiter = pid
            .and_then(|pid| names.get(pid))
            .copied()
            .unwrap_or_default();
        let holders = holders.split('.').next().unwrap_or_default();
        let holders = holders
            .split(", ")
            .map(|holder| names.get(holder).copied().unwrap_or_default());
        let holders: Vec<&str> = holders.collect();
        // The pool of requests, "rowcast", holds what its writers asked for. Where writers hold the
        // lock as well, they are what is waited for; and so is whoever stands before others in the queue, as
        // a writer that truncates while somebody reads.
        let queue = line.split_once("Wait queue: ").map(|(_, queue)| queue);
        let first = queue.and_then(|queue| queue.split([',', '.']).next());
        let is_ours = first == pid && holders.iter().all(|name| name.starts_with("rowcast "));
        if is_ours && !waiter.starts_with("rowcast") {
            ours.push(format!("{holders:?} were waited for: {waiting}; {line}"));
        }
    }
    (all + 1, ours)
}
