//! Twenty tenants look at four tables under row-level security while a random writer moves rows,
//! memberships, policies and grants under them. After every transaction PostgreSQL itself is asked
//! what each of them may select: no event may show anything else, no byte of a row may reach a
//! screen that could never have selected it, and who was away or refused comes back to the truth.
//!
//! `ROWCAST_SEED` sets the seed, which is printed, and `ROWCAST_CANARY_OPS` the number of groups of
//! transactions.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rowcast::cursor::Token;
use serde_json::{Value, json};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::harness::{
    DEADLINE, Database, Event, Relay, Screen, Stream, database, eventually, seed,
};
use crate::policies::{SECRET, token};

const TENANTS: usize = 20;
/// Groups of transactions in the short form.
const OPS: usize = 100;

/// Roles are the cluster's: every test may find them there. So is the lock; an advisory one is a database's.
const ROLES: &str = r"
do $$
declare
  wanted text;
begin
  lock table pg_authid in share row exclusive mode;
  foreach wanted in array array['canary_nobody', 'canary_a', 'canary_b', 'canary_vip'] loop
    if not exists (select from pg_roles where rolname = wanted) then
      execute format('create role %I nologin', wanted);
    end if;
  end loop;
  if not exists (select from pg_roles where rolname = 'canary_login') then
    create role canary_login login noinherit;
    grant canary_nobody, canary_a, canary_b to canary_login;
  end if;
end
$$;
";

/// Each version of a row has a number of its own in its body, so a screen that was given one can be
/// asked when it could have selected it.
const SCHEMA: &str = r"
create sequence versions;
create function stamp() returns trigger language plpgsql as $$
begin
  new.body := 'canary-' || substr(md5('tenant ' || new.tenant), 1, 8) || '-' || nextval('versions');
  return new;
end $$;
create function claim(name text) returns text language sql stable
  return current_setting('request.jwt.claims', true)::json ->> name;

create table membership (tenant int, who text, primary key (tenant, who));
create table suspended (who text primary key);
create table invites (tenant int, who text, primary key (tenant, who));
create table shares (card_of int, tenant int, primary key (card_of, tenant));

create table notes (id int primary key, tenant int, level int, body text, secret text default 'never-shown');
create table docs (id bigint primary key, tenant int, level int, body text);
create table cards (id text primary key, tenant int, body text);
create table folders (part int, id int, parent int, tenant int, body text, primary key (part, id));
create view parents as select id, tenant from folders;

-- A join, on a table with a policy of its own; and a restrictive one.
alter table membership enable row level security;
create policy own on membership for select using (
  who = claim('sub') and not exists (select from suspended s where s.who = membership.who));
alter table notes enable row level security;
create policy theirs on notes for select using (tenant in (select m.tenant from membership m));
create policy low on notes as restrictive for select using (level <= claim('level')::int);
-- Claims only.
alter table docs enable row level security;
create policy theirs on docs for select using (tenant = claim('tenant')::int);
-- Through a function that hides what it reads, and one policy for a role that comes and goes.
create function may_see(of int) returns boolean language plpgsql stable security definer as $$
begin
  return of = claim('tenant')::int
    or exists (select from public.shares s where s.card_of = of and s.tenant = claim('tenant')::int);
end $$;
alter table cards enable row level security;
create policy theirs on cards for select using (may_see(tenant));
create policy vip on cards for select to canary_vip using (tenant = 0);
select rowcast.depends('cards', 'shares');
-- Other rows of the same table, which PostgreSQL permits through a view.
alter table folders enable row level security;
create policy theirs on folders for select using (
  tenant = claim('tenant')::int
  or exists (select from parents p where p.id = folders.parent and p.tenant = claim('tenant')::int));

grant select on membership, suspended, invites, docs, cards, folders, parents to canary_a, canary_b;
grant select (id, tenant, level, body) on notes to canary_a, canary_b;

do $$
declare t text;
begin
  foreach t in array '{notes,docs,cards,folders}'::text[] loop
    execute format('create trigger stamp before insert or update on %I for each row execute function stamp()', t);
  end loop;
  foreach t in array '{notes,docs,cards,folders,membership,suspended,invites,shares}'::text[] loop
    perform rowcast.watch(t::regclass);
  end loop;
end $$;
insert into membership select n, 'user-' || n from generate_series(0, 19) n;
insert into membership select (n * 7 + 1) % 20, 'user-' || n from generate_series(0, 19) n on conflict do nothing;
insert into notes (id, tenant, level) select n, n % 20, n % 4 from generate_series(1, 60) n;
insert into docs (id, tenant, level) select n, n % 20, n % 4 from generate_series(1, 60) n;
insert into cards (id, tenant) select 'canarykey-' || n, n % 20 from generate_series(1, 60) n;
insert into folders (part, id, parent, tenant) select n % 3, n, n / 2, n % 20 from generate_series(1, 60) n;
";

/// What screens show: the table, the URL, and the same in SQL.
const SIGHTS: [(&str, &str, &str); 8] = [
    (
        "notes",
        "notes?select=id,tenant,level,body",
        "select id, tenant, level, body from notes",
    ),
    ("docs", "docs", "select * from docs"),
    ("cards", "cards", "select * from cards"),
    (
        "folders",
        "folders?order=body.desc",
        "select * from folders",
    ),
    (
        "notes",
        "notes?select=id,body&level=gte.1",
        "select id, body from notes where level >= 1",
    ),
    (
        "docs",
        "docs?body=like.*3*",
        "select * from docs where body like '%3%'",
    ),
    (
        "cards",
        "cards?select=id,body::text",
        "select id, body::text from cards",
    ),
    (
        "folders",
        "folders?or=(part.eq.1,parent.lt.20)",
        "select * from folders where part = 1 or parent < 20",
    ),
];

/// Whatever names a row or a version of it.
const MARKS: [&str; 2] = ["canary-", "canarykey-"];

/// Rows as JSON text; `None` where PostgreSQL refuses to say.
type Rows = Option<BTreeSet<String>>;

/// The database after a transaction.
struct State {
    xid: u64,
    /// What each screen should show.
    truth: Vec<Arc<Rows>>,
    /// What was truncated: such a table is empty for earlier snapshots too.
    truncated: Option<&'static str>,
    /// It changed definitions, which PostgreSQL always takes as they are now: rows of a snapshot
    /// from before it may be judged by them.
    defines: bool,
    /// When it was there.
    at: Instant,
}

/// How long who may see what may be taken for what it was before.
const OUTDATED: Duration = Duration::from_secs(5);

/// A transaction to be.
struct Step {
    sql: String,
    truncated: Option<&'static str>,
    /// It changes who may see what, by other means than rows.
    defines: bool,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_tenant_is_ever_shown_what_it_could_not_select() {
    let ops = std::env::var("ROWCAST_CANARY_OPS").ok();
    let ops = ops.map_or(OPS, |text| text.parse().unwrap());
    let mut random = Rng::with_seed(seed());
    let begun = Instant::now();

    let database = database().await;
    database.sql(ROLES).await;
    let relays = [relay(&database).await, relay(&database).await];
    database.sql(SCHEMA).await;
    let mut world = World::new(&database, &mut random).await;
    world.record(None, false).await;
    world.gather(&relays, &mut random).await;

    let late = ops / 2;
    for op in 0..ops {
        let defining = op == late || random.u8(..100) < 10;
        if defining {
            world.define(&mut random, op == late).await;
        } else {
            for _ in 0..random.u8(1..4) {
                let step = writing(&mut random);
                world.commit(&step).await;
            }
        }
        world.settle().await;
        world.roam(&relays, &mut random, 6).await;
    }
    // Everybody is back, and is told how far everything is.
    world.restore().await;
    world.settle().await;
    world.gather(&relays, &mut random).await;
    world.reach_the_end().await;
    eprintln!("{:?} in {:?}", world.counts, begun.elapsed());
    world.counts.say_something(ops);
}

/// The relay with its own login for requests.
async fn relay(database: &Database) -> Relay {
    let api = database.login("canary_login");
    let arguments = [
        "--api-url",
        &api,
        "--jwt-secret",
        SECRET,
        "--anon-role",
        "canary_nobody",
    ];
    Relay::start(database, &arguments).await
}

#[derive(Debug, Default)]
struct Counts {
    states: usize,
    judged: usize,
    resumed: usize,
    resets: usize,
    refused: usize,
    defined: usize,
    deletes: usize,
    marks: usize,
}

impl Counts {
    /// A run in which nobody was away, refused, or told anything proves nothing.
    fn say_something(&self, ops: usize) {
        assert!(self.states > ops, "{self:?}");
        assert!(self.judged > ops * 4, "{self:?}");
        for (what, count) in [
            ("resumption", self.resumed),
            ("reset", self.resets),
            ("refusal", self.refused),
            ("definition", self.defined),
            ("deletion", self.deletes),
            ("mark", self.marks),
        ] {
            assert!(count > 3, "hardly a {what}: {self:?}");
        }
    }
}

struct World {
    database: Database,
    /// Writes, as the owner of everything.
    writer: Client,
    /// Reads as the tenants.
    reader: Client,
    screens: Vec<Watch>,
    states: Vec<State>,
    counts: Counts,
    /// What the definitions are now.
    defined: Defined,
    last_xid: u64,
}

/// Definitions that go back and forth: which are not as they were at first.
#[derive(Debug, Default)]
struct Defined([bool; 7]);

/// Somebody's screen.
struct Watch {
    name: String,
    table: &'static str,
    path: String,
    /// The statement, as the one who watches.
    sql: String,
    bearer: String,
    stream: Option<Stream>,
    /// Bytes of the stream that were searched.
    searched: usize,
    screen: Screen,
    id: Option<String>,
    /// It was told that it may not.
    refused: bool,
    /// The state that it was last seen at.
    settled: usize,
    /// When it came.
    opened: Instant,
    /// Marks in every state that it could have selected.
    permitted: HashSet<String>,
}

impl World {
    async fn new(database: &Database, random: &mut Rng) -> Self {
        let mut screens = Vec::new();
        for tenant in 0..TENANTS {
            let role = if tenant % 2 == 0 {
                "canary_a"
            } else {
                "canary_b"
            };
            let level = tenant % 5;
            let (sub, of, at) = (
                format!("sub=user-{tenant}"),
                format!("tenant={tenant}"),
                format!("level={level}"),
            );
            let bearer = format!("Bearer {}", token(role, &[&sub, &of, &at]).await);
            let claims = json!({
                "role": role, "sub": format!("user-{tenant}"),
                "tenant": tenant.to_string(), "level": level.to_string(),
            });
            let first = random.usize(..SIGHTS.len());
            for place in [first, first + 1 + random.usize(..2)] {
                let (table, path, select) = SIGHTS[place % SIGHTS.len()];
                screens.push(Watch {
                    name: format!("tenant {tenant} at {path}"),
                    table,
                    path: format!("/rest/v1/{path}"),
                    sql: format!(
                        "rollback; begin; select set_config('role', '{role}', true), \
                         set_config('request.jwt.claims', '{claims}', true); \
                         select 'row ' || row_to_json(s) from ({select}) s; commit"
                    ),
                    bearer: bearer.clone(),
                    stream: None,
                    searched: 0,
                    screen: Screen::default(),
                    id: None,
                    refused: false,
                    settled: 0,
                    opened: Instant::now(),
                    permitted: HashSet::new(),
                });
            }
        }
        Self {
            database: database.clone(),
            writer: database.client().await,
            reader: database.client().await,
            screens,
            states: Vec::new(),
            counts: Counts::default(),
            defined: Defined::default(),
            last_xid: 0,
        }
    }

    /// Commits a step and takes down what everybody may see then.
    async fn commit(&mut self, step: &Step) {
        let sql = format!("begin; {}; select 'xid ' || pg_current_xact_id()", step.sql);
        match self.writer.simple_query(&sql).await {
            Ok(answer) => {
                let xid = texts(&answer, "xid ").last().unwrap().parse().unwrap();
                self.writer.batch_execute("commit").await.unwrap();
                self.last_xid = xid;
                self.record(step.truncated, step.defines).await;
            }
            // A key in use, mostly.
            Err(error) => {
                assert!(!step.defines, "{}: {error:?}", step.sql);
                self.writer.batch_execute("rollback").await.unwrap();
            }
        }
    }

    /// What every screen should show now.
    async fn record(&mut self, truncated: Option<&'static str>, defines: bool) {
        let asked = self.screens.iter().map(async |watch| {
            match self.reader.simple_query(&watch.sql).await {
                Ok(answer) => Some(
                    texts(&answer, "row ")
                        .map(|row| serde_json::from_str::<Value>(row).unwrap().to_string())
                        .collect(),
                ),
                Err(error) => {
                    let code = error.code().map(|code| code.code().to_owned());
                    assert_eq!(code.as_deref(), Some("42501"), "{}: {error:?}", watch.sql);
                    None
                }
            }
        });
        let truth: Vec<Rows> = futures::future::join_all(asked).await;
        for (watch, rows) in self.screens.iter_mut().zip(&truth) {
            for row in rows.iter().flatten() {
                watch.permitted.extend(marks(row).map(str::to_owned));
            }
        }
        self.states.push(State {
            xid: self.last_xid,
            truth: truth.into_iter().map(Arc::new).collect(),
            truncated,
            defines,
            at: Instant::now(),
        });
        self.counts.states += 1;
    }

    /// Changes who may see what. `late` leaves it to the relays to find out.
    async fn define(&mut self, random: &mut Rng, late: bool) {
        self.counts.defined += 1;
        let sql = self.defined.change(random.usize(..7));
        self.define_as(&sql, late).await;
    }

    async fn define_as(&mut self, sql: &str, late: bool) {
        let (sql, seen) = if late {
            (sql.to_owned(), false)
        } else {
            let found = "select pg_advisory_xact_lock(7094114, 1); select rowcast.check_drift()";
            (format!("{found}; {sql}; {found}"), true)
        };
        let step = Step {
            sql,
            truncated: None,
            defines: true,
        };
        self.commit(&step).await;
        if seen {
            return;
        }
        let begun = Instant::now();
        let all_found = "select bool_and(w.shape = rowcast.shape(w.rel)) from rowcast.watched w";
        eventually("the drift is found", async || {
            (self.database.one(all_found).await == "t").then_some(())
        })
        .await;
        // Whoever was judged by the old definitions is told by the new ones in time.
        while begun.elapsed() < Duration::from_secs(5) && !self.all_show_the_truth().await {}
    }

    /// All definitions as they were at first.
    async fn restore(&mut self) {
        let sql = self.defined.restored();
        if !sql.is_empty() {
            self.define_as(&sql, false).await;
        }
    }

    /// Takes what there is without judging it; whether everybody shows the last state.
    async fn all_show_the_truth(&mut self) -> bool {
        let last = self.states.last().unwrap();
        let mut all = true;
        for (watch, truth) in self.screens.iter_mut().zip(&last.truth) {
            while let Some(event) = watch.heard(Duration::from_millis(1)).await {
                watch.take(&event, &mut self.counts);
            }
            let right = match &**truth {
                Some(rows) => watch.shown() == *rows,
                None => watch.refused,
            };
            all &= watch.stream.is_none() || right;
        }
        all
    }

    /// Everybody who is there is told the last state, and nothing else on the way.
    async fn settle(&mut self) {
        let (states, counts) = (&self.states, &mut self.counts);
        let each = self.screens.iter_mut().enumerate().map(|(number, watch)| {
            let mut counts = Counts::default();
            async move {
                watch.settle(number, states, &mut counts).await;
                counts
            }
        });
        for more in futures::future::join_all(each).await {
            counts.add(&more);
        }
    }

    /// Some leave, and some come back: to any relay, with what they had or with nothing, and now and
    /// then with somebody else's place.
    async fn roam(&mut self, relays: &[Relay; 2], random: &mut Rng, percent: u8) {
        let last = self.states.last().unwrap();
        let screens = self.screens.iter();
        let places: Vec<_> = screens
            .map(|watch| (watch.path.clone(), watch.id.clone(), watch.screen.clone()))
            .collect();
        for (number, watch) in self.screens.iter_mut().enumerate() {
            if watch.stream.is_some() {
                if random.u8(..100) < percent {
                    watch.stream = None;
                }
                continue;
            }
            let denied = last.truth[number].is_none();
            if random.u8(..100) >= 40 || (watch.refused && denied && random.bool()) {
                continue;
            }
            let id = match random.u8(..8) {
                0 => None,
                1 => {
                    let (path, id, screen) = &places[random.usize(..places.len())];
                    // Without row-level security it is the same view, and a place in it is worth
                    // nothing without what was shown there.
                    if *path == watch.path {
                        watch.screen = screen.clone();
                    }
                    id.clone()
                }
                _ => watch.id.clone(),
            };
            if id.is_none() {
                watch.screen = Screen::default();
            }
            self.counts.resumed += usize::from(id.is_some());
            let relay = &relays[random.usize(..relays.len())];
            watch.open(relay, id.as_deref()).await;
        }
    }

    /// Everybody who is away comes back, or comes.
    async fn gather(&mut self, relays: &[Relay; 2], random: &mut Rng) {
        for watch in &mut self.screens {
            if watch.stream.is_none() {
                let id = watch.id.clone();
                let relay = &relays[random.usize(..relays.len())];
                watch.open(relay, id.as_deref()).await;
            }
        }
    }

    /// A token that covers everything reaches everybody, for controls are told every few seconds.
    async fn reach_the_end(&mut self) {
        self.settle().await;
        let last = self.states.len() - 1;
        let (states, xid) = (&self.states, self.last_xid.to_string());
        for (number, watch) in self.screens.iter_mut().enumerate() {
            assert!(watch.stream.is_some(), "{} is not there", watch.name);
            let begun = Instant::now();
            while !watch.covers(&xid) {
                assert!(begun.elapsed() < DEADLINE, "{} is not told", watch.name);
                if let Some(event) = watch.heard(Duration::from_secs(6)).await {
                    watch.take(&event, &mut self.counts);
                    watch.judge(number, &event, states, &mut self.counts);
                }
            }
            assert_eq!(Some(watch.shown()), *states[last].truth[number]);
        }
    }
}

impl Counts {
    fn add(&mut self, more: &Self) {
        self.judged += more.judged;
        self.resets += more.resets;
        self.refused += more.refused;
        self.deletes += more.deletes;
        self.marks += more.marks;
    }
}

impl Watch {
    async fn open(&mut self, relay: &Relay, id: Option<&str>) {
        let url = format!("{}{}", relay.url, self.path);
        let stream = Stream::with(&url, id, &[("authorization", &self.bearer)]).await;
        assert_eq!(stream.status, 200, "{}", self.name);
        (self.searched, self.refused) = (0, false);
        // Until it is told something it may be anywhere.
        self.screen.complete = false;
        self.opened = Instant::now();
        self.stream = Some(stream);
    }

    fn shown(&self) -> BTreeSet<String> {
        self.screen.rows.values().map(Value::to_string).collect()
    }

    fn covers(&self, xid: &str) -> bool {
        let id = self.id.clone().unwrap_or_default();
        let event = Event {
            id,
            ..Event::default()
        };
        self.screen.complete && event.covers(xid)
    }

    /// The next event within `patience`.
    async fn heard(&mut self, patience: Duration) -> Option<Event> {
        self.stream.as_mut()?.next_within(patience).await
    }

    /// Shows an event, and looks for what must not be in it.
    fn take(&mut self, event: &Event, counts: &mut Counts) {
        let stream = self.stream.as_ref().unwrap();
        let raw = &stream.raw[self.searched..];
        let lines = raw.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let text = std::str::from_utf8(&raw[..lines]).unwrap();
        self.searched += lines;
        assert!(!text.contains("never-shown"), "{}: {text}", self.name);
        for mark in marks(text) {
            counts.marks += 1;
            assert!(
                self.permitted.contains(mark),
                "{} was never permitted {mark}: {text}",
                self.name
            );
        }
        for element in event.elements() {
            counts.resets += usize::from(element["headers"]["control"] == "reset");
            counts.deletes += usize::from(element["headers"]["operation"] == "delete");
            // Without row-level security keys are plain; only this table is ever without.
            if let Some(key) = element["key"].as_str().filter(|_| self.table != "docs") {
                let letter = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
                assert!(key.len() == 22 && key.bytes().all(letter), "{element}");
            }
        }
        if event.name == "control" {
            let control = event.json();
            if let Some(error) = control.get("error") {
                assert_eq!(error["code"], "42501", "{}: {error}", self.name);
                counts.refused += 1;
                self.refused = true;
                self.stream = None;
                return;
            }
            // Resumed, with nothing missed.
            self.screen.complete |= event.id != "0";
        }
        self.screen.apply(event);
        // A state in pieces is not one before its last; what was missed comes as one event.
        let begins = event.has_control("snapshot-start") || event.id == "0";
        self.screen.complete |= event.name == "data" && !begins;
        self.id = Some(event.id.clone());
    }

    /// The end of an event is the state that its id stands for.
    fn judge(&self, number: usize, event: &Event, states: &[State], counts: &mut Counts) {
        let Ok(token) = event.id.parse::<Token>() else {
            return;
        };
        if !self.screen.complete || self.refused {
            return;
        }
        let done = states.partition_point(|state| token.cursor.is_done(state.xid));
        let (state, later) = (&states[done - 1], &states[done..]);
        if later
            .iter()
            .any(|later| later.truncated == Some(self.table))
        {
            return;
        }
        counts.judged += 1;
        let shown = self.shown();
        let truth = state.truth[number].as_ref().as_ref();
        // One who may see nothing any more is told so next.
        let Some(truth) = truth else { return };
        let next = later.first().filter(|next| next.defines);
        if next.is_some_and(|next| next.truth[number].as_ref().as_ref() == Some(&shown)) {
            return;
        }
        let foreign: Vec<_> = shown.difference(truth).collect();
        let missing: Vec<_> = truth.difference(&shown).collect();
        assert!(
            foreign.is_empty() && missing.is_empty(),
            "{} at state {} of {}: it shows {foreign:?} and lacks {missing:?}, after {event:?}",
            self.name,
            done - 1,
            states.len()
        );
    }

    /// Takes and judges what comes until the last state is shown.
    async fn settle(&mut self, number: usize, states: &[State], counts: &mut Counts) {
        let last = states.last().unwrap();
        let truth = last.truth[number].as_ref().as_ref();
        let (begun, began) = (Instant::now(), self.stream.is_some());
        while self.stream.is_some() {
            let right = truth.is_some_and(|rows| self.screen.complete && self.shown() == *rows);
            let patience = Duration::from_millis(if right { 0 } else { 500 });
            match self.heard(patience).await {
                Some(event) => {
                    self.take(&event, counts);
                    self.judge(number, &event, states, counts);
                }
                None if right => return,
                None => {
                    let ended = self.stream.as_ref().is_some_and(|stream| stream.ended);
                    assert!(!ended, "{}: the stream ended", self.name);
                }
            }
            assert!(
                begun.elapsed() < DEADLINE,
                "{} shows {:?} and should {truth:?}",
                self.name,
                self.shown()
            );
        }
        if began && self.refused {
            let denied = |state: &State| state.truth[number].is_none();
            let known = states.partition_point(|state| state.at + OUTDATED < self.opened);
            let since = &states[self.settled.min(known.saturating_sub(1))..];
            assert!(since.iter().any(denied), "{} is refused", self.name);
        }
        self.settled = states.len() - 1;
    }
}

/// The rows of one column that begin with this, without it.
fn texts<'a>(
    answer: &'a [SimpleQueryMessage],
    head: &'static str,
) -> impl Iterator<Item = &'a str> {
    answer.iter().filter_map(move |message| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.strip_prefix(head),
        _ => None,
    })
}

/// Everything in a text that names a row or a version.
fn marks(text: &str) -> impl Iterator<Item = &str> {
    MARKS.iter().flat_map(move |head| {
        text.match_indices(head).map(move |(at, _)| {
            let letter = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            let rest = &text.as_bytes()[at..];
            let end = rest.iter().position(|b| !letter(*b)).unwrap_or(rest.len());
            &text[at..at + end]
        })
    })
}

impl Defined {
    /// Turns one of them into the other.
    fn change(&mut self, which: usize) -> String {
        self.0[which] = !self.0[which];
        Self::sql(which, self.0[which])
    }

    fn restored(&mut self) -> String {
        let changed = self.0.iter().enumerate().filter(|(_, on)| **on);
        let sql: Vec<_> = changed.map(|(which, _)| Self::sql(which, false)).collect();
        *self = Self::default();
        sql.join("; ")
    }

    fn sql(which: usize, on: bool) -> String {
        let (to, from) = match which {
            // A policy that reads a table that none has read before.
            0 => (
                "create policy invited on docs for select to canary_b using (\
                 exists (select from invites i where i.tenant = docs.tenant and i.who = claim('sub')))",
                "drop policy invited on docs",
            ),
            1 => (
                "alter policy low on notes using (level <= claim('level')::int + 1)",
                "alter policy low on notes using (level <= claim('level')::int)",
            ),
            2 => (
                "revoke select on docs from canary_b",
                "grant select on docs to canary_b",
            ),
            3 => (
                "grant canary_vip to canary_a",
                "revoke canary_vip from canary_a",
            ),
            4 => (
                "alter table docs disable row level security",
                "alter table docs enable row level security",
            ),
            5 => (
                "create or replace function may_see(of int) returns boolean language plpgsql stable \
                 security definer as $$ begin return of % 10 = claim('tenant')::int % 10 \
                 and not exists (select from public.shares s where s.card_of = of); end $$",
                "create or replace function may_see(of int) returns boolean language plpgsql stable \
                 security definer as $$ begin return of = claim('tenant')::int \
                 or exists (select from public.shares s where s.card_of = of and s.tenant = claim('tenant')::int); end $$",
            ),
            // What a policy reads may not be read any more.
            _ => (
                "revoke select on membership from canary_a",
                "grant select on membership to canary_a",
            ),
        };
        (if on { to } else { from }).to_owned()
    }
}

/// A random transaction of a few statements.
fn writing(r: &mut Rng) -> Step {
    let mut truncated = None;
    let statements: Vec<_> = (0..r.u8(1..6))
        .map(|_| {
            let statement = statement(r, &mut truncated);
            match r.u8(..10) {
                0 => format!("savepoint s; {statement}; rollback to s"),
                1 => format!("savepoint s; {statement}; release s"),
                _ => statement,
            }
        })
        .collect();
    Step {
        sql: statements.join("; "),
        truncated,
        defines: false,
    }
}

fn statement(r: &mut Rng, truncated: &mut Option<&'static str>) -> String {
    let (id, tenant, other) = (r.u8(1..70), r.usize(..TENANTS), r.usize(..TENANTS));
    let (level, many) = (r.u8(..5), r.u8(..10));
    if r.u8(..100) < 28 {
        return relation(r);
    }
    let table = ["notes", "docs", "cards", "folders"][r.usize(..4)];
    if truncated.is_none() && r.u8(..60) == 0 {
        *truncated = Some(table);
        return format!("truncate {table}");
    }
    let these = if table == "cards" {
        format!(
            "(substr(id, 11)::int % 10 = {many} and tenant % 2 = {})",
            level % 2
        )
    } else {
        format!("id % 10 = {many}")
    };
    let this = if table == "cards" {
        format!("id = 'canarykey-{id}'")
    } else {
        format!("id = {id}")
    };
    match r.u8(..12) {
        0..3 => insert(table, id, tenant, level, r.u8(..70)),
        3 => format!("update {table} set tenant = {tenant} where {this}"),
        4 => format!("update {table} set tenant = {tenant} where tenant = {other}"),
        5 => format!("update {table} set tenant = (tenant + 1) % {TENANTS} where {these}"),
        6 => format!("update {table} set tenant = tenant where {these}"),
        7 => format!("delete from {table} where {this}"),
        8 if r.bool() => format!("delete from {table} where {these}"),
        // Away and back.
        8 => format!(
            "update {table} set tenant = {tenant} where {this}; update {table} set tenant = {other} where {this}"
        ),
        9 => match table {
            "cards" => format!("update cards set id = 'canarykey-' || (1000 + {id}) where {this}"),
            _ => format!("update {table} set id = id + 100 where {this}"),
        },
        10 => format!(
            "delete from {table} where {this}; {}",
            insert(table, id, tenant, level, r.u8(..70))
        ),
        _ => match table {
            "notes" | "docs" => format!("update {table} set level = (level + 1) % 5 where {these}"),
            "folders" => format!("update folders set parent = {id} where {these}"),
            _ => format!("update cards set tenant = {tenant} where {this}"),
        },
    }
}

fn insert(table: &str, id: u8, tenant: usize, level: u8, parent: u8) -> String {
    let (columns, values) = match table {
        "cards" => ("id, tenant", format!("'canarykey-{id}', {tenant}")),
        "folders" => (
            "part, id, parent, tenant",
            format!("{}, {id}, {parent}, {tenant}", level % 3),
        ),
        _ => ("id, tenant, level", format!("{id}, {tenant}, {level}")),
    };
    format!("insert into {table} ({columns}) values ({values}) on conflict do nothing")
}

/// A change of who belongs to what.
fn relation(r: &mut Rng) -> String {
    let (tenant, other) = (r.usize(..TENANTS), r.usize(..TENANTS));
    let who = format!("'user-{}'", r.usize(..TENANTS));
    match r.u8(..12) {
        0 | 1 => format!("insert into membership values ({tenant}, {who}) on conflict do nothing"),
        2 => format!("delete from membership where who = {who} and tenant % 2 = 0"),
        3 => format!("delete from membership where tenant = {tenant}"),
        4 => format!(
            "delete from membership where who = {who} and tenant = {other}; \
             update membership set tenant = {other} where who = {who} and tenant = {tenant}"
        ),
        5 => format!("insert into suspended values ({who}) on conflict do nothing"),
        6 => "delete from suspended".to_owned(),
        7 | 8 => format!("insert into shares values ({tenant}, {other}) on conflict do nothing"),
        9 => format!("delete from shares where card_of = {tenant} or tenant = {other}"),
        10 => format!("insert into invites values ({tenant}, {who}) on conflict do nothing"),
        _ => format!("delete from invites where tenant = {tenant}"),
    }
}
