//! Row-level security on streams: each screen shows exactly what its role could select.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::io::AsyncBufReadExt;

use crate::harness::{DEADLINE, Database, Relay, Screen, Stream, database};

pub const SECRET: &str = "a secret of more than thirty-two bytes, for tests";

/// A token as `rowcast token` makes it.
pub async fn token(role: &str, claims: &[&str]) -> String {
    lasting(role, claims, "1h").await
}

async fn lasting(role: &str, claims: &[&str], expires: &str) -> String {
    let mut command = crate::harness::command();
    command.args(["token", "--jwt-secret", SECRET, "--role", role]);
    command.args(["--expires", expires]);
    for claim in claims {
        command.args(["--claim", claim]);
    }
    let made = command.output().await.unwrap();
    assert!(made.status.success(), "{made:?}");
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}

/// The relay with its own login for requests.
pub async fn relay(database: &Database) -> Relay {
    relay_with(database, &["--anon-role", "visitor"]).await
}

/// The same, that takes tokens and is told no more than this.
pub async fn relay_with(database: &Database, more: &[&str]) -> Relay {
    let api = database.login("api_login");
    let arguments = [&["--api-url", &api, "--jwt-secret", SECRET], more].concat();
    Relay::start(database, &arguments).await
}

/// Roles are the cluster's: every test may find them there. So is the lock; an advisory one is a database's.
pub const ROLES: &str = r"
do $$
declare
  wanted text;
begin
  lock table pg_authid in share row exclusive mode;
  foreach wanted in array array['visitor', 'member', 'reader', 'manager'] loop
    if not exists (select from pg_roles where rolname = wanted) then
      execute format('create role %I nologin', wanted);
    end if;
  end loop;
  if not exists (select from pg_roles where rolname = 'api_login') then
    create role api_login login noinherit;
    grant visitor, member, reader, manager to api_login;
  end if;
end
$$;
";

const NOTES: &str = r"
create table tenants (id int primary key, name text not null);
create table membership (tenant int not null, who text not null, primary key (tenant, who));
create table notes (id int primary key, tenant int not null, body text not null, secret text);
alter table notes enable row level security;
create policy theirs on notes for select to member using (
  tenant in (select m.tenant from membership m where m.who = current_setting('request.jwt.claims', true)::json ->> 'sub'));
create policy writes on notes for all to manager using (true);
grant select on membership to member;
grant select (id, tenant, body) on notes to member;
grant select, insert, update, delete on notes to manager;
insert into membership values (1, 'ann'), (2, 'bob');
insert into notes select n, n % 3, 'canary-' || n % 3, 'hidden' from generate_series(1, 30) n;
select rowcast.watch('notes');
select rowcast.watch('membership');
";

async fn world() -> (Database, Relay) {
    let database = database().await;
    database.sql(ROLES).await;
    let relay = relay(&database).await;
    database.sql(NOTES).await;
    (database, relay)
}

const PATH: &str = "/rest/v1/notes?select=id,tenant,body";

/// Somebody's screen.
pub struct Watcher {
    pub stream: Stream,
    pub screen: Screen,
}

impl Watcher {
    pub async fn of(relay: &Relay, path: &str, token: &str, last: Option<&str>) -> Self {
        let url = format!("{}{path}", relay.url);
        let bearer = format!("Bearer {token}");
        let stream = Stream::with(&url, last, &[("authorization", &bearer)]).await;
        assert_eq!(stream.status, 200);
        Self {
            stream,
            screen: Screen::default(),
        }
    }

    /// What it shows, by id: keys are opaque.
    pub fn shown(&self) -> BTreeMap<String, Value> {
        shown(&self.screen)
    }

    /// Waits until it shows this.
    pub async fn shows(&mut self, what: &str, wanted: &BTreeMap<String, Value>) {
        let begun = std::time::Instant::now();
        while !self.screen.complete || self.shown() != *wanted {
            let event = self
                .stream
                .next()
                .await
                .unwrap_or_else(|| panic!("{what}: the stream ended"));
            self.screen.apply(&event);
            // Heartbeats never end.
            let shown = self.shown();
            assert!(
                begun.elapsed() < DEADLINE,
                "{what}: {wanted:?} but {shown:?}"
            );
        }
    }

    /// Everything that was received.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stream.raw).into_owned()
    }
}

fn shown(screen: &Screen) -> BTreeMap<String, Value> {
    let rows = screen.rows.values();
    rows.map(|row| (row["id"].to_string(), row.clone()))
        .collect()
}

/// What the role could select, by id.
async fn truth(database: &Database, who: &str) -> BTreeMap<String, Value> {
    let client = database.client().await;
    client
        .batch_execute(&format!(
            "begin; select set_config('role', 'member', true), \
             set_config('request.jwt.claims', '{{\"role\":\"member\",\"sub\":\"{who}\"}}', true)"
        ))
        .await
        .unwrap();
    let rows = client
        .query(
            "select row_to_json(s)::text from (select id, tenant, body from notes) s",
            &[],
        )
        .await
        .unwrap();
    rows.iter()
        .map(|row| {
            let row: Value = serde_json::from_str(row.get(0)).unwrap();
            (row["id"].to_string(), row)
        })
        .collect()
}

#[tokio::test]
async fn a_screen_shows_what_its_role_may_select() {
    let (database, relay) = world().await;
    let (ann, bob) = (
        token("member", &["sub=ann"]).await,
        token("member", &["sub=bob"]).await,
    );
    let mut anns = Watcher::of(&relay, PATH, &ann, None).await;
    let mut bobs = Watcher::of(&relay, PATH, &bob, None).await;
    for step in [
        "update notes set body = 'canary-1 changed' where tenant = 1",
        "insert into notes values (101, 1, 'canary-1 new'), (102, 2, 'canary-2 new')",
        // From one tenant to the other, and back in the same transaction.
        "update notes set tenant = 2 where id = 1",
        "update notes set tenant = 1 where id = 1; update notes set tenant = 2 where id = 1",
        "delete from notes where id in (4, 5)",
        "insert into membership values (2, 'ann')",
        "delete from membership where who = 'ann' and tenant = 1",
        "update notes set id = id + 1000 where tenant = 2",
        "truncate notes",
        "insert into notes values (1, 2, 'canary-2 again')",
        "update membership set who = 'ann' where who = 'bob' and tenant = 2",
    ] {
        let result = database.client().await.batch_execute(step).await;
        if step.contains("who = 'ann' where") {
            // ann has it already: the key forbids it, and nothing changed.
            assert!(result.is_err());
        } else {
            result.unwrap();
        }
        for (who, screen) in [("ann", &mut anns), ("bob", &mut bobs)] {
            let wanted = truth(&database, who).await;
            screen.shows(step, &wanted).await;
        }
    }
    let (anns, bobs) = (anns.text(), bobs.text());
    assert!(!anns.contains("hidden") && !bobs.contains("hidden"));
    assert!(!anns.contains("canary-0") && !bobs.contains("canary-0"));
}

#[tokio::test]
async fn a_screen_that_was_away_gets_what_it_may_see_now() {
    let (database, relay) = world().await;
    let ann = token("member", &["sub=ann"]).await;
    let mut before = Watcher::of(&relay, PATH, &ann, None).await;
    before
        .shows("the state", &truth(&database, "ann").await)
        .await;
    let (last, rows) = (before.stream.id.clone(), before.screen.clone());
    drop(before);
    database
        .sql(
            "update notes set tenant = 2 where id = 1; \
             update notes set body = 'canary-1 x' where id = 4; delete from notes where id = 7",
        )
        .await;
    let mut after = Watcher::of(&relay, PATH, &ann, Some(&last)).await;
    after.screen = rows;
    after.shows("resumed", &truth(&database, "ann").await).await;
    assert!(!after.text().contains("reset"), "{}", after.text());
    let last = after.stream.id.clone();
    drop(after);
    // Somebody else's place is no way in.
    let bob = token("member", &["sub=bob"]).await;
    let mut bobs = Watcher::of(&relay, PATH, &bob, Some(&last)).await;
    bobs.shows("reset", &truth(&database, "bob").await).await;
    assert!(bobs.text().contains("reset"));
    // What a policy reads changed meanwhile: the state is read anew.
    database
        .sql("insert into membership values (0, 'ann')")
        .await;
    let mut again = Watcher::of(&relay, PATH, &ann, Some(&last)).await;
    again
        .shows("read anew", &truth(&database, "ann").await)
        .await;
    assert!(again.text().contains("reset"));
}

#[tokio::test]
async fn a_revoked_grant_ends_the_stream_and_a_new_policy_changes_it() {
    let (database, relay) = world().await;
    let ann = token("member", &["sub=ann"]).await;
    let mut screen = Watcher::of(&relay, PATH, &ann, None).await;
    screen
        .shows("the state", &truth(&database, "ann").await)
        .await;
    database
        .sql("create policy more on notes for select to member using (tenant = 0)")
        .await;
    let wanted = truth(&database, "ann").await;
    assert_eq!(wanted.len(), 20);
    screen.shows("the policy", &wanted).await;
    database
        .sql("revoke select (body) on notes from member")
        .await;
    let refused = screen
        .stream
        .until(|event| event.data.contains("42501"))
        .await;
    assert_eq!(refused.name, "control");
    assert_eq!(screen.stream.next().await, None);
}

/// As after `pg_restore --clean`, which makes the schema anew without what everybody may do in it.
#[tokio::test]
async fn a_stream_is_told_that_it_is_the_schema_that_is_closed() {
    let (database, relay) = world().await;
    let ann = token("member", &["sub=ann"]).await;
    database
        .sql("revoke usage on schema public from public")
        .await;
    let mut screen = Watcher::of(&relay, PATH, &ann, None).await;
    let refused = screen
        .stream
        .until(|event| event.data.contains("42501"))
        .await;
    let error = &refused.json()["error"];
    assert_eq!(error["message"], "permission denied for schema public");
    assert_eq!(
        error["hint"],
        "grant usage on schema \"public\" to \"member\";"
    );
}

/// The role is made for it: what is changed of one that others use would be seen by their tests.
#[tokio::test]
async fn a_stream_ends_when_its_role_is_one_that_is_never_taken_and_follows_what_is_set_for_it() {
    let (database, relay) = world().await;
    let role = format!("temp_{}", std::process::id());
    database
        .sql(&format!(
            "create role {role} nologin; grant {role} to api_login; grant select (id, tenant, body) on notes to {role}; \
             grant select on membership to {role}; \
             alter role {role} set app.tenant = '1'; \
             create policy by_setting on notes for select to {role} \
               using (tenant = current_setting('app.tenant', true)::int)"
        ))
        .await;
    let ann = token(&role, &["sub=ann"]).await;
    let shown_of = async |tenant: i64| {
        let sql = format!(
            "select json_object_agg(id, json_build_object('id', id, 'tenant', tenant, 'body', body)) \
                           from notes where tenant = {tenant}"
        );
        let rows: BTreeMap<String, Value> =
            serde_json::from_str(&database.one(&sql).await).unwrap();
        rows
    };
    let mut screen = Watcher::of(&relay, PATH, &ann, None).await;
    screen.shows("the state", &shown_of(1).await).await;
    database
        .sql(&format!("alter role {role} set app.tenant = '2'"))
        .await;
    screen.shows("the other setting", &shown_of(2).await).await;
    // It would see all rows.
    database.sql(&format!("alter role {role} bypassrls")).await;
    let told = screen
        .stream
        .until(|event| event.data.contains("error"))
        .await;
    assert_eq!(told.json()["error"]["code"], "42501", "{told:?}");
    assert_eq!(screen.stream.next().await, None);
    drop(relay);
    database
        .sql(&format!("drop owned by {role}; drop role {role}"))
        .await;
}

/// As by a restore. A page's own `EventSource` gives up for ever on anything but 200.
#[tokio::test]
async fn a_stream_whose_role_is_gone_for_a_moment_comes_back() {
    let (database, relay) = world().await;
    let role = format!("gone_{}", std::process::id());
    database
        .sql(&format!(
            "create role {role} nologin; grant {role} to api_login; grant select (id, tenant, body) on notes to {role}"
        ))
        .await;
    let ann = token(&role, &[]).await;
    let mut screen = Watcher::of(&relay, PATH, &ann, None).await;
    screen.shows("nothing", &BTreeMap::new()).await;
    database
        .sql(&format!("alter role {role} rename to {role}_then"))
        .await;
    // PostgreSQL's own words where a state was being read as the role before the relay knew.
    let unknown = format!(r#"role \"{role}\" does not exist"#);
    let is_refused = |event: &crate::harness::Event| {
        let told = ["requests may not run as this role", &unknown];
        told.iter().any(|words| event.data.contains(words))
    };
    screen.stream.until(is_refused).await;
    assert_eq!(screen.stream.next().await, None);
    for path in [PATH, "/channels/lobby"] {
        let mut again = Watcher::of(&relay, path, &ann, None).await;
        let told = again.stream.until(is_refused).await;
        assert!(told.json()["retry_ms"].is_number(), "{told:?}");
        assert_eq!(again.stream.next().await, None);
    }
    let bearer = format!("Bearer {ann}");
    let headers = [("authorization", bearer.as_str())];
    let read = relay.request(hyper::Method::GET, PATH, &headers, "").await;
    assert_eq!(read.status, 403);
    database
        .sql(&format!("alter role {role}_then rename to {role}"))
        .await;
    let mut screen = Watcher::of(&relay, PATH, &ann, None).await;
    screen.shows("nothing again", &BTreeMap::new()).await;
    drop(relay);
    database
        .sql(&format!("drop owned by {role}; drop role {role}"))
        .await;
}

/// Since PostgreSQL 16 that is said of each membership, by which a table may be read and policies hold. The roles are made
/// for it: what is changed of ones that others use would be seen by their tests.
#[tokio::test]
async fn a_stream_ends_when_what_its_role_may_is_no_longer_inherited() {
    let (database, relay) = world().await;
    let version = database
        .one("select current_setting('server_version_num')::int / 10000")
        .await;
    if version.parse::<u32>().unwrap() < 16 {
        return;
    }
    let [role, team] = ["heir", "team"].map(|name| format!("{name}_{}", std::process::id()));
    database
        .sql(&format!(
            "create role {role} nologin; create role {team} nologin; grant {role} to api_login; grant {team} to {role}; \
             create table plans (id int primary key); grant select on plans to {team}; \
             create table shared (id int primary key); grant select on shared to {role}; \
             alter table shared enable row level security; create policy team on shared to {team} using (true); \
             insert into plans values (1); insert into shared values (1); \
             select rowcast.watch('plans'), rowcast.watch('shared')"
        ))
        .await;
    let ann = token(&role, &["sub=ann"]).await;
    let all = BTreeMap::from([("1".to_owned(), json!({"id": 1}))]);
    let mut plans = Watcher::of(&relay, "/rest/v1/plans", &ann, None).await;
    plans.shows("the plans", &all).await;
    let mut shared = Watcher::of(&relay, "/rest/v1/shared", &ann, None).await;
    shared.shows("what is shared", &all).await;
    database
        .sql(&format!("revoke inherit option for {team} from {role}"))
        .await;
    let told = plans
        .stream
        .until(|event| event.data.contains("error"))
        .await;
    assert_eq!(told.json()["error"]["code"], "42501", "{told:?}");
    shared.shows("nothing", &BTreeMap::new()).await;
    database
        .sql(&format!("grant {team} to {role} with inherit true"))
        .await;
    shared.shows("what is shared again", &all).await;
    drop(relay);
    database
        .sql(&format!(
            "drop owned by {role}, {team}; drop role {role}; drop role {team}"
        ))
        .await;
}

#[tokio::test]
async fn a_role_that_comes_to_be_one_that_is_never_taken_is_refused_where_nothing_is_watched() {
    let database = database().await;
    database.sql(ROLES).await;
    let relay = relay(&database).await;
    let role = format!("lone_{}", std::process::id());
    database
        .sql(&format!(
            "create role {role} nologin; grant {role} to api_login; create table plain (id int primary key); \
             grant select on plain to {role}; select rowcast.expose('plain')"
        ))
        .await;
    let bearer = format!("Bearer {}", token(&role, &[]).await);
    let status = async || {
        let headers = [("authorization", bearer.as_str())];
        let path = "/rest/v1/plain";
        let answer = relay.request(hyper::Method::GET, path, &headers, "").await;
        answer.status.as_u16()
    };
    assert_eq!(status().await, 200);
    for (how, wanted) in [("login", 403), ("nologin", 200), ("bypassrls", 403)] {
        database.sql(&format!("alter role {role} {how}")).await;
        crate::harness::eventually(how, async || (status().await == wanted).then_some(())).await;
    }
    // Changed and changed back, and the catalogue read in between, as it is for whoever names a role that is not
    // there: between two looks at the roles nothing seems to have happened.
    let nobody = format!("Bearer {}", token("nobody_yet", &[]).await);
    for _ in 0..3 {
        let back = "back as it was";
        database
            .sql(&format!("alter role {role} nobypassrls"))
            .await;
        crate::harness::eventually(back, async || (status().await == 200).then_some(())).await;
        database.sql(&format!("alter role {role} bypassrls")).await;
        let headers = [("authorization", nobody.as_str())];
        let path = "/rest/v1/plain";
        let unknown = relay.request(hyper::Method::GET, path, &headers, "").await;
        assert_eq!(unknown.status, 403);
        assert_eq!(status().await, 403);
    }
    drop(relay);
    database
        .sql(&format!("drop owned by {role}; drop role {role}"))
        .await;
}

#[tokio::test]
async fn who_was_granted_columns_may_do_with_them_what_postgresql_lets_do() {
    let (database, relay) = world().await;
    database
        .sql(
            "create table prices (id int primary key, price int, cost int default 1); \
             grant select (id, price), insert (id, price), update (id, price) on prices to member; \
             select rowcast.watch('prices')",
        )
        .await;
    let bearer = format!("Bearer {}", token("member", &["sub=ann"]).await);
    let write = async |method: hyper::Method, path: &str, price: i32| {
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
            ("prefer", "resolution=merge-duplicates"),
        ];
        let body = json!({"id": 1, "price": price}).to_string();
        let answer = relay.request(method, path, &headers, &body).await;
        assert!(answer.status.is_success(), "{}", answer.body);
        answer.status.as_u16()
    };
    let path = "/rest/v1/prices";
    assert_eq!(write(hyper::Method::POST, path, 1).await, 201);
    assert_eq!(write(hyper::Method::POST, path, 2).await, 200);
    let one = "/rest/v1/prices?id=eq.1";
    assert_eq!(write(hyper::Method::PUT, one, 3).await, 204);
    assert_eq!(database.one("select price from prices").await, "3");
}

#[tokio::test]
async fn who_is_shown_nothing_is_told_of_nothing() {
    let (database, relay) = world().await;
    let zed = token("member", &["sub=zed"]).await;
    let mut screen = Watcher::of(&relay, PATH, &zed, None).await;
    screen.shows("nothing", &BTreeMap::new()).await;
    let steps = "update notes set body = body || '!'; delete from notes where tenant = 2; \
                 insert into notes values (200, 2, 'canary-2')";
    let txid = database.commit(steps).await;
    let events = screen.screen.reach(&mut screen.stream, &txid).await;
    // A state may come anew, and has no row either.
    let elements = events.iter().flat_map(crate::harness::Event::elements);
    let told: Vec<_> = elements.filter(|told| told["key"].is_string()).collect();
    assert!(told.is_empty(), "{told:?}");
    // From the first row on, what goes is told.
    let join = "insert into membership values (2, 'zed')";
    let txid = database.commit(join).await;
    screen.screen.reach(&mut screen.stream, &txid).await;
    assert_eq!(screen.shown(), truth(&database, "zed").await);
    assert_eq!(screen.shown().len(), 1);
    let txid = database
        .commit("delete from membership where who = 'zed'")
        .await;
    screen.screen.reach(&mut screen.stream, &txid).await;
    assert_eq!(screen.shown(), BTreeMap::new());
    let txid = database.commit("update notes set body = body || '?'").await;
    screen.screen.reach(&mut screen.stream, &txid).await;
    assert_eq!(screen.shown(), BTreeMap::new());
}

#[tokio::test]
async fn what_nobody_watches_is_compared() {
    let (database, relay) = world().await;
    database.sql("select rowcast.unwatch('membership')").await;
    let bob = token("member", &["sub=bob"]).await;
    let mut screen = Watcher::of(&relay, PATH, &bob, None).await;
    screen
        .shows("the state", &truth(&database, "bob").await)
        .await;
    for step in [
        "insert into membership values (1, 'bob')",
        "delete from membership where who = 'bob' and tenant = 2",
        "update notes set body = 'canary-1 seen' where tenant = 1",
        "insert into membership values (2, 'bob')",
    ] {
        database.sql(step).await;
        let wanted = truth(&database, "bob").await;
        screen.shows(step, &wanted).await;
    }
}

/// PostgreSQL notes down of no policy that it reads one of its own tables.
#[tokio::test]
async fn what_policies_read_in_the_catalogue_and_in_sequences_is_compared() {
    let (database, relay) = world().await;
    let ann = token("member", &["sub=ann"]).await;
    database
        .sql("create sequence opened minvalue 0; grant select on sequence opened to member; create table closed (id int)")
        .await;
    let there = BTreeMap::from([("1".to_owned(), json!({"id": 1}))]);
    for (table, policy, opens) in [
        (
            "by_catalogue",
            "exists (select from pg_class c where c.relname = 'newcomer')",
            "create table newcomer (id int)",
        ),
        (
            "by_view",
            "exists (select from pg_views v where v.viewname = 'newview')",
            "create view newview as select 1 as one",
        ),
        (
            "by_function",
            "to_regclass('public.latecomer') is not null",
            "create table latecomer (id int)",
        ),
        (
            "by_grant",
            "has_table_privilege('public.closed', 'select')",
            "grant select on closed to member",
        ),
        (
            "by_sequence",
            "id <= (select last_value from opened)",
            "select setval('opened', 1)",
        ),
    ] {
        database
            .sql(&format!(
                "create table {table} (id int primary key); alter table {table} enable row level security;
                 create policy seen on {table} for select to member using ({policy});
                 grant select on {table} to member; insert into {table} values (1); select rowcast.watch('{table}')"
            ))
            .await;
        let path = format!("/rest/v1/{table}");
        let mut screen = Watcher::of(&relay, &path, &ann, None).await;
        screen.shows(table, &BTreeMap::new()).await;
        database.sql(opens).await;
        screen.shows(opens, &there).await;
    }
}

#[tokio::test]
async fn a_tail_with_a_token_follows_what_its_role_may_see() {
    let (database, relay) = world().await;
    let mut tail = crate::harness::command()
        .args(["tail", PATH.trim_start_matches("/rest/v1/"), "--url"])
        .arg(&relay.url)
        .env("ROWCAST_TOKEN", token("member", &["sub=ann"]).await)
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = tokio::io::BufReader::new(tail.stdout.take().unwrap()).lines();
    let ours = truth(&database, "ann").await.len();
    let mut shown = 0;
    loop {
        let line = tokio::time::timeout(DEADLINE, lines.next_line());
        let line = line.await.expect("a line in time").unwrap().unwrap();
        if line.contains("snapshot-end") {
            break;
        }
        shown += usize::from(line.contains("canary-1"));
        assert!(!line.contains("canary-2"), "{line}");
    }
    assert_eq!(shown, ours);
}

#[tokio::test]
async fn what_a_policy_reads_behind_an_operator_is_compared() {
    let (database, relay) = world().await;
    database
        .sql(
            "create table shown (id int primary key);
             create function is_shown(id int, yes boolean) returns boolean language sql stable security definer as
               'select exists (select from shown s where s.id = $1) = $2';
             create operator === (leftarg = int, rightarg = boolean, function = is_shown);
             create table docs (id int primary key);
             alter table docs enable row level security;
             create policy shown on docs for select to member using (id === true);
             grant select on docs to member;
             insert into docs values (1), (2); insert into shown values (1), (2);
             select rowcast.watch('docs')",
        )
        .await;
    let ann = token("member", &["sub=ann"]).await;
    let mut screen = Watcher::of(&relay, "/rest/v1/docs", &ann, None).await;
    let docs = |ids: &[i64]| -> BTreeMap<String, Value> {
        let rows = ids.iter().map(|id| (id.to_string(), json!({"id": id})));
        rows.collect()
    };
    screen.shows("both", &docs(&[1, 2])).await;
    database.sql("delete from shown where id = 1").await;
    screen.shows("one was taken away", &docs(&[2])).await;
}

#[tokio::test]
async fn what_came_since_a_state_was_read_leaves_when_the_policy_shows_that_state_again() {
    let (database, relay) = world().await;
    database
        .sql("insert into membership values (4, 'bob')")
        .await;
    let bob = token("member", &["sub=bob"]).await;
    let mut screen = Watcher::of(&relay, PATH, &bob, None).await;
    for step in [
        "insert into notes values (100, 4, 'canary-4')",
        "delete from membership where tenant = 4",
        "insert into membership values (4, 'bob')",
        "update notes set body = 'canary-4 again' where id = 100",
        "delete from membership where tenant = 4",
    ] {
        let txid = database.commit(step).await;
        screen.screen.reach(&mut screen.stream, &txid).await;
        assert_eq!(screen.shown(), truth(&database, "bob").await, "{step}");
    }
}

#[tokio::test]
async fn a_stream_ends_with_its_token_unless_a_later_one_is_brought() {
    let (database, relay) = world().await;
    let (ann, bob) = (
        lasting("member", &["sub=ann"], "3s").await,
        lasting("member", &["sub=bob"], "3s").await,
    );
    let mut anns = Watcher::of(&relay, PATH, &ann, None).await;
    let mut bobs = Watcher::of(&relay, PATH, &bob, None).await;
    anns.shows("the state", &truth(&database, "ann").await)
        .await;
    // Any request of hers with a later token will do.
    let later = token("member", &["sub=ann"]).await;
    let bearer = format!("Bearer {later}");
    let headers = [("authorization", bearer.as_str())];
    let read = relay.request(hyper::Method::GET, PATH, &headers, "").await;
    assert_eq!(read.status, 200);

    let told = bobs
        .stream
        .until(|event| event.data.contains("error"))
        .await;
    assert_eq!(told.name, "control");
    assert_eq!(told.json()["error"]["code"], "PGRST303");
    assert!(told.retry.is_some());
    assert_eq!(bobs.stream.next().await, None);

    database
        .sql("update notes set body = 'canary-1 later' where tenant = 1")
        .await;
    anns.shows("goes on", &truth(&database, "ann").await).await;
}

#[tokio::test]
async fn a_token_that_only_a_slow_clock_takes_opens_no_stream() {
    let (_database, relay) = world().await;
    let bearer = format!("Bearer {}", lasting("member", &["sub=ann"], "1s").await);
    let ask = async |accept: &str| {
        let headers = [("authorization", bearer.as_str()), ("accept", accept)];
        relay.request(hyper::Method::GET, PATH, &headers, "").await
    };
    let refused = crate::harness::eventually("the end of the token", async || {
        let answer = ask("text/event-stream").await;
        (answer.status == 401).then_some(answer)
    });
    assert_eq!(refused.await.json()["code"], "PGRST303");
    assert_eq!(ask("application/json").await.status, 200);
}

#[tokio::test]
async fn functions_decide_who_may_use_a_channel() {
    let (database, relay) = world().await;
    database
        .sql(
            "select rowcast.allow_channel('room-*'); \
             create or replace function rowcast.may_subscribe(channel text) returns boolean \
             language sql stable as $$ \
               select channel = 'room-' || (current_setting('request.jwt.claims', true)::json ->> 'sub') $$; \
             create or replace function rowcast.may_publish(channel text) returns boolean \
             language sql stable as $$ select current_user = 'manager' $$",
        )
        .await;
    let ann = token("member", &["sub=ann"]).await;
    let mut own = Watcher::of(&relay, "/channels/room-ann", &ann, None).await;
    let mut other = Watcher::of(&relay, "/channels/room-bob", &ann, None).await;
    let refused = other
        .stream
        .until(|event| event.data.contains("error"))
        .await;
    assert_eq!(refused.json()["error"]["code"], "42501");
    assert_eq!(other.stream.next().await, None);

    let publish = async |token: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
        ];
        let path = "/channels/room-ann";
        relay
            .request(hyper::Method::POST, path, &headers, "{\"n\":1}")
            .await
    };
    assert_eq!(publish(&ann).await.status, 403);
    let manager = token("manager", &["sub=max"]).await;
    let published = publish(&manager).await;
    assert_eq!(published.status, 201);
    let heard = own.stream.data().await;
    assert!(heard.has_txid(published.txid()), "{heard:?}");
    // Upgrading the schema leaves what the operator decided.
    let again = Relay::start(&database, &[]).await;
    assert_eq!(publish(&ann).await.status, 403);
    drop(again);
}

#[tokio::test]
async fn a_policy_may_look_at_its_own_table_through_a_view() {
    let (database, relay) = world().await;
    database
        .sql(
            "create table folders (id int primary key, parent int, open boolean, body text);
             create view parents as select id, open from folders;
             alter table folders enable row level security;
             create policy below on folders for select using (
               open or exists (select from parents p where p.id = folders.parent and p.open));
             grant select on folders, parents to member;
             insert into folders values (1, null, false, 'top'), (2, 1, false, 'below');
             select rowcast.watch('folders')",
        )
        .await;
    let ann = token("member", &["sub=ann"]).await;
    let mut screen = Watcher::of(&relay, "/rest/v1/folders", &ann, None).await;
    screen.shows("nothing", &BTreeMap::new()).await;
    for (step, open) in [("true", true), ("false", false)] {
        // The other row is not touched.
        let sql = format!("update folders set open = {step} where id = 1");
        let txid = database.commit(&sql).await;
        screen.screen.reach(&mut screen.stream, &txid).await;
        let shown: Vec<_> = screen.shown().into_keys().collect();
        let wanted: &[&str] = if open { &["1", "2"] } else { &[] };
        assert_eq!(shown, wanted, "open is {step}");
    }
}

#[tokio::test]
async fn a_row_that_time_takes_away_leaves_the_screen() {
    let (database, relay) = world().await;
    database
        .sql(
            "drop policy theirs on notes; alter table notes add until timestamptz; \
             create policy lasting on notes for select to member using (until > now()); \
             update notes set until = now() + '9 seconds' where id = 1",
        )
        .await;
    let ann = token("member", &["sub=ann"]).await;
    let mut screen = Watcher::of(&relay, PATH, &ann, None).await;
    let there = truth(&database, "ann").await;
    assert_eq!(there.len(), 1);
    screen.shows("still there", &there).await;
    screen.shows("gone", &BTreeMap::new()).await;
}

#[tokio::test]
async fn a_policy_that_reads_its_own_table_through_a_view_follows_it() {
    let (database, relay) = world().await;
    database
        .sql(
            "drop policy theirs on notes; \
             create function number() returns int stable language sql begin atomic select 30; end; \
             create view switch as select * from notes where id = number(); \
             grant select on switch to member; \
             create policy switched on notes for select to member using ( \
               (select s.body from switch s) = 'on'); \
             update notes set body = 'on' where id in (28, 29)",
        )
        .await;
    let ann = token("member", &["sub=ann"]).await;
    let mut screen = Watcher::of(&relay, PATH, &ann, None).await;
    screen.shows("off", &BTreeMap::new()).await;
    for state in ["on", "off"] {
        let step = format!("update notes set body = '{state}' where id = 30");
        database.sql(&step).await;
        let wanted = truth(&database, "ann").await;
        assert_eq!(wanted.len(), if state == "on" { 30 } else { 0 });
        screen.shows(&step, &wanted).await;
    }

    // Nothing is written, and other rows decide.
    for (step, number) in [
        (
            "create or replace function number() returns int stable language sql begin atomic select 29; end",
            30,
        ),
        (
            "create or replace view switch as select * from notes where id = number() - 2",
            0,
        ),
        (
            "create or replace view switch as select * from notes where id = number() - 1",
            30,
        ),
    ] {
        database.sql(step).await;
        let wanted = truth(&database, "ann").await;
        assert_eq!(wanted.len(), number, "{step}");
        screen.shows(step, &wanted).await;
    }
    database.sql("revoke select on switch from member").await;
    let refused = screen
        .stream
        .until(|event| event.data.contains("42501"))
        .await;
    assert_eq!(refused.name, "control");
}

#[tokio::test]
async fn settings_of_a_role_hold_on_its_streams() {
    let (database, relay) = world().await;
    database
        .sql(
            "do $$ begin execute format('alter role member in database %I set app.tenant = 2', current_database()); end $$; \
             drop policy theirs on notes; \
             create policy set_by_role on notes for select to member using (tenant = current_setting('app.tenant')::int)",
        )
        .await;
    let ann = token("member", &["sub=ann"]).await;
    let bearer = format!("Bearer {ann}");
    let headers = [("authorization", bearer.as_str())];
    // PostgreSQL tells nobody of a role's settings: they are read with the rest of the catalogue.
    let read = crate::harness::eventually("the setting", async || {
        database.sql("notify pgrst").await;
        let read = relay.request(hyper::Method::GET, PATH, &headers, "").await;
        (read.status == 200).then_some(read)
    });
    let read = read.await;
    let mut screen = Watcher::of(&relay, PATH, &ann, None).await;
    let rows = read.json();
    let rows = rows.as_array().unwrap().iter();
    let wanted = rows
        .map(|row| (row["id"].to_string(), row.clone()))
        .collect();
    screen.shows("as read", &wanted).await;
}

#[tokio::test]
async fn a_function_before_each_request_sees_the_claims_of_a_stream() {
    let database = database().await;
    database.sql(ROLES).await;
    database
        .sql(
            "create table plain (id int primary key); grant select on plain to member; insert into plain values (1); \
             create function known() returns void language plpgsql as $$ begin \
               if current_setting('request.jwt.claims')::json ->> 'sub' is null then raise 'nobody'; end if; end $$",
        )
        .await;
    let relay = relay_with(&database, &["--pre-request", "known"]).await;
    database.sql("select rowcast.watch('plain')").await;
    let ann = token("member", &["sub=ann"]).await;
    let mut screen = Watcher::of(&relay, "/rest/v1/plain", &ann, None).await;
    let wanted = BTreeMap::from([("1".to_owned(), serde_json::json!({"id": 1}))]);
    screen.shows("the state", &wanted).await;
}

#[tokio::test]
async fn a_token_that_was_taken_back_opens_no_stream() {
    let database = database().await;
    database.sql(ROLES).await;
    database
        .sql(
            "create table plain (id int primary key); grant select on plain to member; \
             create table taken_back (jti text primary key); insert into taken_back values ('stolen'); \
             create function known() returns void language plpgsql security definer \
               set search_path = pg_catalog, pg_temp as $$ begin \
               if exists (select from public.taken_back t \
                          where t.jti = current_setting('request.jwt.claims')::json ->> 'jti') then \
                 raise sqlstate 'PT401' using message = 'this token was taken back'; end if; end $$",
        )
        .await;
    let relay = relay_with(&database, &["--pre-request", "known"]).await;
    database
        .sql("select rowcast.watch('plain'), rowcast.allow_channel('lobby')")
        .await;
    for (jti, refused) in [("jti=own", false), ("jti=stolen", true)] {
        let token = token("member", &["sub=ann", jti]).await;
        let bearer = format!("Bearer {token}");
        for path in ["/rest/v1/plain", "/channels/lobby"] {
            let url = format!("{}{path}", relay.url);
            let headers = [("authorization", bearer.as_str())];
            let mut stream = Stream::with(&url, None, &headers).await;
            let said = stream.next().await.unwrap().data;
            let told = said.contains("this token was taken back");
            assert_eq!(told, refused, "{path} with {jti}: {said}");
        }
    }
}

#[tokio::test]
async fn nothing_that_a_user_makes_keeps_the_catalogue_from_being_read() {
    let database = database().await;
    database.sql(ROLES).await;
    database
        .sql(
            "do $$ begin execute format('alter role reader in database %I set statement_timeout = ''0x64''', current_database()); end $$; \
             create function public.format_type(oid, text) returns text language plpgsql as $$ begin raise 'taken for the other'; end $$",
        )
        .await;
    let client = database.client().await;
    let taken = client.query("select format_type(23::oid, null)", &[]).await;
    assert!(taken.is_err(), "this is how it would be taken");
    let relay = relay(&database).await;
    database.sql(NOTES).await;
    let ann = token("member", &["sub=ann"]).await;
    let mut screen = Watcher::of(&relay, PATH, &ann, None).await;
    screen
        .shows("the state", &truth(&database, "ann").await)
        .await;
}

/// What is set for a role is set for requests as it. Both sides must take their bytes for the same: reads of letters
/// that are not ASCII failed, and writes were stored as others.
#[tokio::test]
async fn an_encoding_that_is_set_for_a_role_changes_no_letter() {
    let database = database().await;
    database.sql(ROLES).await;
    database
        .sql(
            "do $$ begin execute format('alter role member in database %I set client_encoding = ''WIN1252''', current_database()); end $$",
        )
        .await;
    let relay = relay(&database).await;
    database
        .sql(
            "create table words (id int primary key, word text); select rowcast.watch('words'); \
             grant select, insert on words to member",
        )
        .await;
    let bearer = format!("Bearer {}", token("member", &[]).await);
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/json"),
    ];
    let body = "{\"id\":1,\"word\":\"Käse €\"}";
    let written = relay
        .request(hyper::Method::POST, "/rest/v1/words", &headers, body)
        .await;
    assert_eq!(written.status, 201, "{}", written.body);
    assert_eq!(database.one("select word from words").await, "Käse €");
    let path = "/rest/v1/words?word=like.K%C3%A4se*";
    let read = relay.request(hyper::Method::GET, path, &headers, "").await;
    assert_eq!(read.body, format!("[{body}]"));
}

#[tokio::test]
async fn a_relay_that_slept_while_the_log_was_trimmed_shows_the_state() {
    let (database, relay) = world().await;
    database
        .sql("create table open_to_all (id int primary key); grant select on open_to_all to member; select rowcast.watch('open_to_all')")
        .await;
    let ann = token("member", &["sub=ann"]).await;
    let mut asked = Watcher::of(&relay, PATH, &ann, None).await;
    asked
        .shows("the state", &truth(&database, "ann").await)
        .await;
    let mut plain = Watcher::of(&relay, "/rest/v1/open_to_all", &ann, None).await;
    plain.shows("nothing", &BTreeMap::new()).await;
    relay.signal("STOP").await;
    database
        .sql("insert into open_to_all values (1); update notes set body = 'canary-1 meanwhile' where tenant = 1")
        .await;
    for _ in 0..3 {
        database
            .sql("insert into rowcast.tick default values on conflict do nothing")
            .await;
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        database.sql("select rowcast.trim('0 s', 100000)").await;
    }
    assert_eq!(
        database.one("select count(*)::text from rowcast.log").await,
        "0"
    );
    relay.signal("CONT").await;
    asked.shows("asked", &truth(&database, "ann").await).await;
    let wanted = BTreeMap::from([("1".to_owned(), serde_json::json!({"id": 1}))]);
    plain.shows("from images", &wanted).await;
}

#[tokio::test]
async fn a_filter_tells_nothing_of_rows_that_may_not_be_seen() {
    let (database, relay) = world().await;
    let bob = token("member", &["sub=bob"]).await;
    let right = format!("{PATH}&body=eq.canary-1");
    let wrong = format!("{PATH}&body=eq.other");
    let mut right = Watcher::of(&relay, &right, &bob, None).await;
    let mut wrong = Watcher::of(&relay, &wrong, &bob, None).await;
    // Both have their state before anything changes.
    for watcher in [&mut right, &mut wrong] {
        let Watcher { screen, stream, .. } = watcher;
        screen.follow(stream, |_| true).await;
    }
    let txid = database
        .commit("update notes set secret = 'x' where id = 1")
        .await;
    let _both = (
        right.screen.reach(&mut right.stream, &txid).await,
        wrong.screen.reach(&mut wrong.stream, &txid).await,
    );
    let told = |watcher: &Watcher| watcher.text().contains("\"delete\"");
    assert_eq!(told(&right), told(&wrong));
}

#[tokio::test]
async fn a_round_of_many_slow_questions_comes_to_its_end() {
    const VIEWS: i32 = 20;
    let database = database().await;
    database.sql(ROLES).await;
    let relay = relay(&database).await;
    // Four are asked at a time, so one round of these takes longer than a transaction of ours may idle.
    database
        .sql(
            "create function slowly() returns boolean language sql stable \
               begin atomic select pg_sleep(1.3)::text is not null; end; \
             create table slow (id int primary key, n int not null default 0); \
             alter table slow enable row level security; \
             create policy theirs on slow for select to member using (slowly()); \
             grant select on slow to member; \
             insert into slow select i from generate_series(1, 20) i; \
             create table quick (id int primary key); grant select on quick to member; \
             select rowcast.watch('slow'), rowcast.watch('quick')",
        )
        .await;
    let token = token("member", &[]).await;
    // Whoever came before the feed has read of that would begin again, and find no connection either.
    let Watcher {
        mut stream,
        mut screen,
    } = Watcher::of(&relay, "/rest/v1/quick", &token, None).await;
    screen.follow(&mut stream, |_| true).await;
    let read = database.commit("insert into quick values (1)").await;
    screen.reach(&mut stream, &read).await;
    // Whoever finds no connection to read with is told so, and comes back.
    let arrive = async |id| {
        let path = format!("/rest/v1/slow?id=eq.{id}");
        loop {
            let mut watcher = Watcher::of(&relay, &path, &token, None).await;
            while let Some(event) = watcher.stream.next().await {
                watcher.screen.apply(&event);
                if watcher.screen.complete {
                    return watcher;
                }
            }
        }
    };
    let mut screens = futures::future::join_all((1..=VIEWS).map(arrive)).await;
    // The session that holds the snapshot of a round.
    let session = "select pid from pg_stat_activity where datname = current_database() \
                   and application_name = 'rowcast asking' and backend_type = 'client backend' \
                   order by backend_start limit 1";
    let before = database.one(session).await;
    database.sql("update slow set n = 1").await;
    let shown = screens.iter_mut().map(async |watcher| {
        let Watcher { stream, screen } = watcher;
        let new = |screen: &Screen| screen.rows.values().any(|row| row["n"] == 1);
        screen.follow(stream, new).await;
    });
    futures::future::join_all(shown).await;
    assert_eq!(
        database.one(session).await,
        before,
        "the round was broken off"
    );
}
