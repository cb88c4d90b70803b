//! Requests for rows against a real PostgreSQL, through `rows` and back.
//!
//! Each test has a server of its own, whose settings differ from the pins. Tests are skipped, and say
//! so, where there is no PostgreSQL.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use http_body_util::BodyExt;
use tempfile::TempDir;

use crate::api::looks::Looks;
use crate::api::rows::{self, Rows, respond};
use crate::api::watch::{self, Cannot};
use crate::auth::{Authenticator, Identity, Settings};
use crate::http::body::keep_head;
use crate::postgres::embedded::tests::{options, skipped};
use crate::postgres::embedded::{Cluster, Options};
use crate::postgres::pool::{pinned, pool};
use crate::schema::handle::Handle;
use crate::schema::migrate::{Bell, migrate};
use crate::share::Budget;

/// Somebody without a token, where none is needed.
fn open() -> Identity {
    let auth = Authenticator::new(Settings::default()).unwrap();
    auth.anonymous().unwrap()
}

/// A database with the tables of one test.
struct World {
    rows: Rows,
    /// Somebody with `psql`.
    psql: tokio_postgres::Client,
    /// Last, so that the server outlives the connections.
    _server: (Cluster, TempDir),
}

struct Answer {
    status: u16,
    headers: hyper::HeaderMap,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn code(&self) -> String {
        let told: serde_json::Value = serde_json::from_str(&self.body).expect(&self.body);
        assert_eq!(
            self.header("content-type"),
            Some("application/json; charset=utf-8")
        );
        told["code"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    fn is(&self, status: u16, body: &str) {
        assert_eq!((self.status, self.body.as_str()), (status, body));
    }

    #[track_caller]
    fn fails(&self, status: u16, code: &str) {
        assert_eq!(
            (self.status, self.code().as_str()),
            (status, code),
            "{}",
            self.body
        );
    }
}

impl World {
    /// Runs `sql` and exposes every table of schema `public`.
    async fn of(sql: &str) -> Option<Self> {
        let place = tempfile::tempdir().unwrap();
        let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let cluster = Cluster::start(Options {
            extra_settings: vec![
                setting("timezone", "Asia/Kolkata"),
                setting("bytea_output", "escape"),
            ],
            ..options(place.path())
        })
        .await;
        let cluster = skipped(cluster)?;
        let target = cluster.target("postgres");
        let (psql, connection) = target.connect("psql").await.unwrap();
        tokio::spawn(connection);
        psql.batch_execute(&pinned()).await.unwrap();
        migrate(&psql, Bell::Adaptive).await.unwrap();
        psql.batch_execute(sql).await.unwrap();
        let pool = pool(&target, "rowcast", 2);
        let world = Self {
            rows: Rows {
                catalog: Arc::new(Handle::new(
                    pool.clone(),
                    vec!["public".to_owned()],
                    Arc::default(),
                )),
                views: pool.clone(),
                looks: Looks::default(),
                pool,
                max_rows: 1000,
                answers: Budget::new(1 << 30),
                statement_timeout: Duration::from_secs(8),
                tx_end: crate::config::TxEnd::Commit,
                pre_request: None,
                cookie: String::new(),
            },
            psql,
            _server: (cluster, place),
        };
        world.expose().await;
        Some(world)
    }

    async fn expose(&self) {
        self.sql(
            "insert into rowcast.exposed select oid from pg_class \
             where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'm') \
             on conflict do nothing",
        )
        .await;
    }

    async fn sql(&self, sql: &str) {
        self.psql.batch_execute(sql).await.unwrap();
    }

    async fn text(&self, sql: &str) -> String {
        self.psql.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// `line` is `METHOD table?query`, then headers as `name: value`, one a line.
    async fn ask(&self, request: &str, body: &str) -> Answer {
        let mut lines = request.lines().map(str::trim);
        let (method, target) = lines.next().unwrap().split_once(' ').unwrap();
        let (table, query) = target.split_once('?').unwrap_or((target, ""));
        let mut built = hyper::Request::builder()
            .method(method)
            .uri(format!("/rest/v1/x?{}", encoded(query)));
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            built = built.header(name, value);
        }
        if !body.is_empty() && !request.contains("content-type") {
            built = built.header("content-type", "application/json");
        }
        let (parts, ()) = built.body(()).unwrap().into_parts();
        let body = Bytes::from(body.to_owned());
        let mut response = respond(&self.rows, &parts, &open(), table, body).await;
        // The router's part.
        if method == "HEAD" {
            keep_head(&mut response);
        }
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: String::from_utf8(bytes.to_vec()).unwrap(),
        }
    }

    async fn get(&self, target: &str) -> Answer {
        self.ask(&format!("GET {target}"), "").await
    }
}

/// What a URL may not hold as it is; the rest of a test's query is encoded by its author.
fn encoded(query: &str) -> String {
    const PLAIN: percent_encoding::AsciiSet = percent_encoding::CONTROLS
        .add(b' ')
        .add(b'"')
        .add(b'<')
        .add(b'>')
        .add(b'\\')
        .add(b'{')
        .add(b'}');
    percent_encoding::utf8_percent_encode(query, &PLAIN).to_string()
}

/// The world of a test, or the end of the test.
macro_rules! world {
    ($sql:expr) => {
        match World::of($sql).await {
            Some(world) => world,
            None => return,
        }
    };
}

// After the macro, which it uses.
mod dialect;

const TASKS: &str = "
create table tasks (
  id int generated by default as identity primary key,
  title text not null default 'untitled',
  done boolean not null default false,
  rank int unique
);
insert into tasks (title, rank) values ('a', 1), ('b', 2), ('c', null)";

#[tokio::test]
async fn rows_are_byte_for_byte_what_row_to_json_writes() {
    let world = world!(
        r#"
        create type mood as enum ('glad', 'odd "one"');
        create table nasty (
          id bigint primary key, t text, s mood, "row" json, r float8, "odd""
name" timestamptz, bytes bytea, span interval, list text[], price money, n numeric
        );
        insert into nasty values
          (9007199254740993, E'\u2028\t"\\', 'odd "one"', '{ "a" :  1e999,
           "a":[ ] }', 0.1::float8 + 0.2::float8, '2026-01-01 00:00+02', '\xdead', '1 mon 2 h', '{a,NULL,"b c"}', 5, 'NaN'),
          (2, null, null, null, 'infinity', 'infinity', null, null, null, null, 1e-30);
        create table plain (t int primary key, plain text);
        insert into plain values (1, 'x')"#
    );
    for (target, sql) in [
        (
            "nasty?order=id",
            "select row_to_json(t.*)::text from nasty t order by id",
        ),
        (
            "nasty?order=id&select=s,id,t,row,\"odd\\\"%0Aname\",span,bytes,price,n,r",
            "select row_to_json(x.*)::text from (select s, id, t, \"row\", \"odd\"\"\nname\", span, bytes, price, n, r from nasty) x order by id",
        ),
        (
            "nasty?order=id&select=*,%22it's%20%22:t",
            "select row_to_json(x.*)::text from (select *, t as \"it's \" from nasty) x order by id",
        ),
        ("plain", "select row_to_json(t.*)::text from plain t"),
        (
            "plain?select=t",
            "select row_to_json(x.*)::text from (select t from plain) x",
        ),
    ] {
        let expected: Vec<String> = world
            .psql
            .query(sql, &[])
            .await
            .unwrap()
            .iter()
            .map(|row| row.get(0))
            .collect();
        world
            .get(target)
            .await
            .is(200, &format!("[{}]", expected.join(",\n")));
    }
    world
        .get("plain?select=")
        .await
        .is(200, "[{\"t\":1,\"plain\":\"x\"}]");
    let back = world
        .ask(
            "PATCH plain?t=eq.1\nprefer: return=representation",
            r#"{"plain":"y"}"#,
        )
        .await;
    back.is(200, r#"[{"t":1,"plain":"y"}]"#);
}

#[tokio::test]
async fn postgres_decides_the_types_of_filters() {
    let world = world!(
        r"
        create type mood as enum ('glad', 'sad');
        create domain small as int check (value < 100);
        create table things (
          id uuid primary key, m mood, at timestamptz, n small, tags text[], ok boolean, name varchar(9)
        );
        insert into things values
          ('00000000-0000-0000-0000-000000000001', 'glad', '2026-01-01Z', 1, '{a}', true, 'a,b'),
          ('00000000-0000-0000-0000-000000000002', 'sad', '2026-06-01Z', 2, '{b}', null, 'NULL')"
    );
    for (filter, names) in [
        ("id=eq.00000000-0000-0000-0000-000000000001", "a,b"),
        ("m=lt.sad", "a,b"),
        ("m=in.(sad)", "NULL"),
        ("at=gte.2026-01-01T05:30:00%2B05:30&at=lt.2026-06-01", "a,b"),
        ("n=gt.1&n=lte.2", "NULL"),
        ("n=in.(2,7)", "NULL"),
        ("tags=eq.{b}", "NULL"),
        ("ok=is.true", "a,b"),
        ("ok=is.unknown", "NULL"),
        ("ok=not.is.null", "a,b"),
        ("name=in.(\"a,b\")", "a,b"),
        ("name=in.(NULL)", "NULL"),
        ("name=not.in.(\"a,b\",\"{}\",\"\\\\\")", "NULL"),
        ("name=neq.a,b", "NULL"),
    ] {
        let body = format!(r#"[{{"name":"{names}"}}]"#);
        let target = format!("things?select=name&{filter}");
        world.get(&target).await.is(200, &body);
    }
    world.get("things?n=in.()").await.is(200, "[]");
    world.get("things?n=eq.x").await.fails(400, "22P02");
    world.get("things?name=eq.a%00").await.fails(400, "22021");
    world.get("things?name=is.true").await.fails(400, "42804");
    world.get("things?name=a").await.fails(400, "PGRST100");
    world.get("things?nam=eq.a").await.fails(400, "42703");
}

#[tokio::test]
async fn ranges_and_counts_are_told_in_content_range() {
    let mut world =
        world!("create table n (i int primary key); insert into n select generate_series(1, 20)");
    world.rows.max_rows = 10;
    for (request, status, range) in [
        ("GET n", 200, "0-9/*"),
        ("GET n?limit=3&offset=2", 200, "2-4/*"),
        ("GET n?limit=3\nprefer: count=exact", 206, "0-2/20"),
        ("GET n?i=lt.4\nprefer: count=exact", 200, "0-2/3"),
        ("GET n?i=lt.0", 200, "*/*"),
        ("GET n?i=lt.0\nprefer: count=exact", 200, "*/0"),
        ("GET n?limit=0\nprefer: count=exact", 206, "*/20"),
        ("GET n?offset=20\nprefer: count=exact", 206, "*/20"),
        ("GET n\nrange: 18-30", 200, "18-19/*"),
        ("HEAD n\nprefer: count=exact", 206, "0-9/20"),
    ] {
        let answer = world.ask(request, "").await;
        assert_eq!(
            (answer.status, answer.header("content-range")),
            (status, Some(range)),
            "{request}"
        );
        assert_eq!(
            answer.header("preference-applied").is_some(),
            request.contains("prefer")
        );
    }
    world
        .ask("GET n?offset=21\nprefer: count=exact", "")
        .await
        .fails(416, "PGRST103");
    world
        .ask("GET n\nrange: 5-3", "")
        .await
        .fails(416, "PGRST103");
    let head = world.ask("HEAD n?limit=1", "").await;
    assert_eq!(
        (head.body.as_str(), head.header("content-length")),
        ("", Some("9"))
    );
    let wrong = world.ask("HEAD n?limit=-1", "").await;
    assert_eq!((wrong.status, wrong.body.as_str()), (416, ""));
}

#[tokio::test]
async fn a_write_answers_with_the_transaction_that_wrote() {
    let world = world!(TASKS);
    let answer = world.ask("POST tasks", r#"{"title":"new"}"#).await;
    answer.is(201, "");
    assert_eq!(answer.header("content-length"), Some("0"));
    assert_eq!(answer.header("content-type"), None);
    assert_eq!(answer.header("content-range"), Some("*/*"));
    let xmin = world
        .text("select xmin::text from tasks where title = 'new'")
        .await;
    assert_eq!(answer.header("rowcast-txid"), Some(xmin.as_str()));
    let nothing = world.ask("DELETE tasks?id=eq.999", "").await;
    nothing.is(204, "");
    assert_eq!(nothing.header("rowcast-txid"), None);
}

#[tokio::test]
async fn inserts_take_one_row_or_many_or_none() {
    let world = world!(TASKS);
    let many = world
        .ask(
            "POST tasks?select=title,rank&order=rank.desc\nprefer: return=representation, count=exact",
            r#"[{"title":"x","rank":8},{"title":"y","rank":9}]"#,
        )
        .await;
    many.is(
        201,
        "[{\"title\":\"y\",\"rank\":9},\n{\"title\":\"x\",\"rank\":8}]",
    );
    assert_eq!(many.header("content-range"), Some("*/2"));
    assert_eq!(
        many.header("preference-applied"),
        Some("return=representation, count=exact")
    );
    world.ask("POST tasks", "[]").await.is(200, "");
    world
        .ask(
            "POST tasks?select=title\nprefer: return=representation",
            "[{},{}]",
        )
        .await
        .is(201, "[{\"title\":\"untitled\"},\n{\"title\":\"untitled\"}]");
    // One that is wrong, and none is written.
    world
        .ask("POST tasks", r#"[{"rank":50},{"rank":1}]"#)
        .await
        .fails(409, "23505");
    world.get("tasks?rank=eq.50").await.is(200, "[]");
    world
        .ask("POST tasks", r#"[{"rank":50},{"title":"z"}]"#)
        .await
        .fails(400, "PGRST102");
    world
        .ask("POST tasks", r#"{"titel":"z"}"#)
        .await
        .fails(400, "PGRST204");
    world
        .ask("POST tasks", r#"{"title":"#)
        .await
        .fails(400, "PGRST102");
    world
        .ask("POST tasks", r#"{"rank":"many"}"#)
        .await
        .fails(400, "22P02");
}

#[tokio::test]
async fn a_missing_key_is_null_or_the_default_as_preferred() {
    let world = world!(TASKS);
    let body = r#"[{"id":100,"title":"x"},{"id":101,"rank":7},{"id":102,"title":"y","more":1}]"#;
    let wanted = world.ask("POST tasks?columns=%22id%22,%22title%22,rank\nprefer: missing=default, return=representation", body).await;
    wanted.is(
        201,
        "[{\"id\":100,\"title\":\"x\",\"done\":false,\"rank\":null},\n\
                    {\"id\":101,\"title\":\"untitled\",\"done\":false,\"rank\":7},\n\
                    {\"id\":102,\"title\":\"y\",\"done\":false,\"rank\":null}]",
    );
    assert_eq!(
        wanted.header("preference-applied"),
        Some("missing=default, return=representation")
    );
    // Without the preference the missing title is null, which the table refuses.
    world
        .ask("POST tasks?columns=title,rank", body)
        .await
        .fails(400, "23502");
}

#[tokio::test]
async fn an_upsert_is_201_only_if_a_row_is_new() {
    let world = world!(&format!("{TASKS};
        create table parts (id int, region text, v int, primary key (id, region)) partition by list (region);
        create table parts_a partition of parts for values in ('a');
        create table parts_b (v int, region text, id int not null);
        alter table parts_b alter region set not null, add primary key (id, region);
        alter table parts attach partition parts_b for values in ('b');
        create view seen as select id, title from tasks"));
    let merge = "prefer: resolution=merge-duplicates";
    for (request, body, status) in [
        (
            format!("POST tasks\n{merge}"),
            r#"[{"id":1,"title":"A"}]"#,
            200,
        ),
        (
            format!("POST tasks\n{merge}"),
            r#"[{"id":1,"title":"A"},{"id":70,"title":"new"}]"#,
            201,
        ),
        (
            format!("POST tasks\n{merge}, return=representation"),
            r#"{"id":1,"title":"B"}"#,
            200,
        ),
        (
            format!("POST tasks\n{merge}, return=representation"),
            r#"{"id":71,"title":"B"}"#,
            201,
        ),
        (
            format!("POST tasks?on_conflict=rank\n{merge}"),
            r#"{"rank":2,"title":"by rank"}"#,
            200,
        ),
        (
            format!("POST parts\n{merge}"),
            r#"{"id":1,"region":"a","v":1}"#,
            201,
        ),
        (
            format!("POST parts\n{merge}"),
            r#"{"id":1,"region":"a","v":2}"#,
            200,
        ),
        (
            format!("POST parts\n{merge}"),
            r#"{"id":1,"region":"b","v":1}"#,
            201,
        ),
        (
            format!("POST parts\n{merge}, return=representation"),
            r#"{"id":1,"region":"b","v":2}"#,
            200,
        ),
        (
            format!("POST seen?on_conflict=id\n{merge}"),
            r#"{"id":72,"title":"seen"}"#,
            201,
        ),
        (
            format!("POST seen?on_conflict=id\n{merge}"),
            r#"{"id":72,"title":"seen"}"#,
            200,
        ),
        (
            "POST tasks\nprefer: resolution=ignore-duplicates".into(),
            r#"{"id":1,"title":"ignored"}"#,
            200,
        ),
        (
            "POST tasks?on_conflict=rank\nprefer: resolution=ignore-duplicates".into(),
            r#"[{"rank":2},{"rank":3}]"#,
            201,
        ),
    ] {
        let answer = world.ask(&request, body).await;
        assert_eq!(answer.status, status, "{request} {body}: {}", answer.body);
        assert!(
            answer
                .header("preference-applied")
                .unwrap()
                .starts_with("resolution=")
        );
    }
    world.get("tasks?select=id,title&id=in.(1,2,72)&order=id").await.is(200,
        "[{\"id\":1,\"title\":\"B\"},\n{\"id\":2,\"title\":\"by rank\"},\n{\"id\":72,\"title\":\"seen\"}]");
    world.get("parts?order=region&select=region,v").await.is(
        200,
        "[{\"region\":\"a\",\"v\":2},\n{\"region\":\"b\",\"v\":2}]",
    );
    world
        .ask(
            "POST tasks?on_conflict=title\nprefer: resolution=merge-duplicates",
            r#"{"title":"a"}"#,
        )
        .await
        .fails(400, "42P10");
}

#[tokio::test]
async fn updates_and_deletes_answer_what_they_changed() {
    let world = world!(TASKS);
    let patched = world
        .ask(
            "PATCH tasks?id=lt.3",
            r#"{"done":true,"title":"it's \"done\""}"#,
        )
        .await;
    patched.is(204, "");
    assert_eq!(patched.header("content-range"), Some("0-1/*"));
    assert!(patched.header("rowcast-txid").is_some());
    assert_eq!(patched.header("content-length"), None);
    let none = world
        .ask(
            "PATCH tasks?id=eq.9\nprefer: count=exact",
            r#"{"done":true}"#,
        )
        .await;
    assert_eq!(
        (none.status, none.header("content-range")),
        (204, Some("*/0"))
    );
    world.ask("PATCH tasks", "{}").await.is(204, "");
    world
        .ask("PATCH tasks\nprefer: return=representation", "{}")
        .await
        .is(200, "[]");
    world
        .ask("PATCH tasks", r#"[{"done":true},{"done":false}]"#)
        .await
        .fails(400, "PGRST102");
    world
        .ask(
            "PATCH tasks?columns=done&id=eq.3",
            r#"{"done":true,"id":4,"x":1}"#,
        )
        .await
        .is(204, "");
    world
        .get("tasks?select=id,done&done=is.true&order=id.desc&limit=1")
        .await
        .is(200, r#"[{"id":3,"done":true}]"#);
    let deleted = world.ask("DELETE tasks?id=lt.3&select=num:id&order=id.desc\nprefer: return=representation,count=exact", "").await;
    deleted.is(200, "[{\"num\":2},\n{\"num\":1}]");
    assert_eq!(deleted.header("content-range"), Some("*/2"));
    world.ask("DELETE tasks", "").await.is(204, "");
    world.get("tasks").await.is(200, "[]");
}

#[tokio::test]
async fn a_write_that_is_not_one_object_is_rolled_back() {
    let world = world!(TASKS);
    let object = "accept: application/vnd.pgrst.object+json";
    let one = world
        .ask(&format!("GET tasks?id=eq.1&select=id\n{object}"), "")
        .await;
    one.is(200, r#"{"id":1}"#);
    assert_eq!(
        one.header("content-type"),
        Some("application/vnd.pgrst.object+json; charset=utf-8")
    );
    let none = world.ask(&format!("GET tasks?id=eq.9\n{object}"), "").await;
    none.fails(406, "PGRST116");
    assert!(none.body.contains("The result contains 0 rows"));
    for prefer in ["return=representation", "return=minimal"] {
        world
            .ask(
                &format!("PATCH tasks?id=lt.3\n{object}\nprefer: {prefer}"),
                r#"{"done":true}"#,
            )
            .await
            .fails(406, "PGRST116");
        world
            .ask(&format!("DELETE tasks\n{object}\nprefer: {prefer}"), "")
            .await
            .fails(406, "PGRST116");
        world
            .ask(
                &format!("POST tasks\n{object}\nprefer: {prefer}"),
                r#"[{"id":7},{"id":8}]"#,
            )
            .await
            .fails(406, "PGRST116");
    }
    world
        .ask("DELETE tasks\nprefer: handling=strict, max-affected=2", "")
        .await
        .fails(400, "PGRST124");
    world
        .ask("DELETE tasks\nprefer: handling=strict, limit=2", "")
        .await
        .fails(400, "PGRST122");
    assert_eq!(
        world
            .text("select count(*) || ' ' || count(*) filter (where done) from tasks")
            .await,
        "3 0"
    );
    world
        .ask(
            &format!("PATCH tasks?id=eq.3&select=done\n{object}\nprefer: return=representation"),
            r#"{"done":true}"#,
        )
        .await
        .is(200, r#"{"done":true}"#);
}

#[tokio::test]
async fn a_table_or_column_made_a_moment_ago_is_found() {
    let world = world!(TASKS);
    world.get("tasks?limit=0").await.is(200, "[]");
    world.get("notes").await.fails(404, "PGRST205");
    let near = world.get("task").await;
    near.fails(404, "PGRST205");
    assert!(near.body.contains("perhaps \\\"tasks\\\""));
    world
        .sql("create table notes (id int primary key); alter table tasks add colour text")
        .await;
    // Not exposed is not there.
    world.get("notes").await.fails(404, "PGRST205");
    world.expose().await;
    world.get("notes").await.is(200, "[]");
    world
        .ask(
            "POST tasks?select=colour\nprefer: return=representation",
            r#"{"colour":"red"}"#,
        )
        .await
        .is(201, r#"[{"colour":"red"}]"#);
    world.sql("drop table notes").await;
    world.get("notes").await.fails(404, "PGRST205");
}

#[tokio::test]
async fn a_stream_of_a_table_that_was_dropped_a_moment_ago_is_told_that_it_is_not_there() {
    let world = world!(&format!("{TASKS}; select rowcast.watch('tasks')"));
    world.get("tasks?limit=0").await.is(200, "[]");
    // Without event triggers nobody has told of it yet.
    world.sql("drop table tasks").await;
    let head = hyper::Request::get("/rest/v1/tasks").body(()).unwrap();
    let request = rows::request(&world.rows, &head.into_parts().0, "tasks").unwrap();
    let Err(Cannot::Now(told)) = watch::make(&world.rows, &request, &open()).await else {
        panic!("a view, or none for ever");
    };
    assert_eq!(told.code, "PGRST205");
}

#[tokio::test]
async fn errors_of_postgres_keep_their_code_and_the_connection() {
    let mut world = world!(&format!("{TASKS};
        create function slow() returns int language sql as 'select 1 from pg_sleep(10)';
        create view slowly as select slow() as one;
        create function sneaky() returns int language sql volatile as 'insert into tasks (title) values (''sneaked'') returning id';
        create view sneaks as select sneaky() as id;
        create function teapot() returns trigger language plpgsql as $$ begin raise 'short and stout' using errcode = 'PT418', hint = 'pour'; end $$;
        create table pots (id int primary key);
        create trigger teapot before insert on pots for each row execute function teapot();
        create table late (id int primary key, of int references late deferrable initially deferred);
        create function quota() returns trigger language plpgsql as $$ begin
          raise sqlstate 'PGRST' using
            message = json_build_object('code', 'over quota', 'message', 'buy more', 'details', '5 of 5', 'hint', 'at /shop'),
            detail = json_build_object('status', 429, 'headers', json_build_object('Retry-After', '60', 'x-quota', '5')); end $$;
        create table metered (id int primary key);
        create trigger quota before insert on metered for each row execute function quota();
        create materialized view total as select count(*) from tasks"));
    world.rows.statement_timeout = Duration::from_millis(300);
    let backends = |world: &World| {
        let status = world.rows.pool.status();
        (status.size, status.available)
    };
    world.get("tasks?limit=0").await.is(200, "[]");
    assert_eq!(backends(&world), (1, 1));
    world.get("slowly").await.fails(500, "57014");
    world.get("sneaks").await.fails(405, "25006");
    let pot = world.ask("POST pots", r#"{"id":1}"#).await;
    pot.fails(418, "PT418");
    assert!(pot.body.contains("\"hint\":\"pour\""));
    // In the function's own words, headers included.
    let over = world.ask("POST metered", r#"{"id":1}"#).await;
    over.is(
        429,
        r#"{"code":"over quota","message":"buy more","details":"5 of 5","hint":"at /shop"}"#,
    );
    assert_eq!(over.header("retry-after"), Some("60"));
    assert_eq!(over.header("x-quota"), Some("5"));
    assert_eq!(over.header("proxy-status"), None);
    world
        .ask("POST total", r#"{"count":1}"#)
        .await
        .fails(405, "PGRST117");
    assert_eq!(backends(&world), (1, 1));
    world
        .ask("POST late", r#"{"id":1,"of":2}"#)
        .await
        .fails(409, "23503");
    world.get("late").await.is(200, "[]");
    world
        .ask("GET tasks\naccept: image/png", "")
        .await
        .fails(406, "PGRST107");
    assert_eq!(
        world
            .text("select count(*)::text from tasks where title = 'sneaked'")
            .await,
        "0"
    );
}

#[tokio::test]
async fn a_page_of_a_foreign_site_cannot_write_without_asking_first() {
    let world = world!(TASKS);
    for headers in [
        "origin: https://evil.example\ncontent-type: application/x-www-form-urlencoded",
        "content-type: text/plain",
        "content-type: text/plain; application/json",
        "content-type: multipart/form-data; boundary=x",
    ] {
        world
            .ask(&format!("POST tasks\n{headers}"), r#"{"id":9}"#)
            .await
            .fails(415, "PGRST107");
    }
    let body = Bytes::from_static(br#"{"id":9}"#);
    let untyped = |origin| {
        let request = hyper::Request::post("/rest/v1/tasks");
        let request = if origin {
            request.header("origin", "https://evil.example")
        } else {
            request
        };
        request.body(()).unwrap().into_parts().0
    };
    assert_eq!(
        respond(&world.rows, &untyped(true), &open(), "tasks", body.clone())
            .await
            .status(),
        415
    );
    assert_eq!(
        respond(&world.rows, &untyped(false), &open(), "tasks", body)
            .await
            .status(),
        201
    );
}

#[tokio::test]
async fn an_abandoned_write_leaves_nothing_and_its_connection_is_not_used_again() {
    let world = world!(TASKS);
    world.get("tasks?limit=0").await.is(200, "[]");
    world.sql("begin; lock table tasks in share mode").await;
    let write = world.ask("POST tasks", r#"{"title":"abandoned"}"#);
    let abandoned = tokio::time::timeout(Duration::from_millis(300), write).await;
    assert!(abandoned.is_err());
    assert_eq!(world.rows.pool.status().size, 0);
    world.sql("commit").await;
    let next = world.ask("POST tasks", r#"{"title":"next"}"#).await;
    next.is(201, "");
    world.get("tasks?title=eq.abandoned").await.is(200, "[]");
}

#[tokio::test]
async fn values_reach_columns_of_every_kind_whole() {
    let world = world!(
        r"
        create domain sure as text not null default 'sure';
        create table kinds (
          id int primary key, c char(3), b bit(4), v varchar(3), n numeric(6, 2), tags text[], j jsonb,
          d sure, twice int generated always as (id * 2) stored, codes char(2)[]
        )"
    );
    let back = world.ask("POST kinds\nprefer: return=representation",
        r#"{"id":1,"c":"abc","b":"1010","v":"xyz","n":1.005,"tags":["a","b"],"j":{"k":[1]},"d":"yes","codes":["ab"]}"#).await;
    back.is(201, r#"[{"id":1,"c":"abc","b":"1010","v":"xyz","n":1.01,"tags":["a","b"],"j":{"k": [1]},"d":"yes","twice":2,"codes":["ab"]}]"#);
    // A domain that is not null is no obstacle to rows that do not name it.
    world.ask("POST kinds", r#"{"id":2}"#).await.is(201, "");
    world
        .ask("PATCH kinds?id=eq.2", r#"{"v":"four"}"#)
        .await
        .fails(400, "22001");
    world
        .ask("PATCH kinds?id=eq.2", r#"{"c":"four"}"#)
        .await
        .fails(400, "22001");
    world
        .ask("PATCH kinds?id=eq.2", r#"{"twice":5}"#)
        .await
        .fails(400, "428C9");
}

#[tokio::test]
async fn the_catalogue_tells_kinds_keys_and_types() {
    let world = world!(
        r#"
        create table "odd ""table" (b int, a text collate "C", e json, primary key (a, b) include (e));
        create table bare ();
        create view seen as select 1 as one"#
    );
    let catalog = world.rows.catalog.reload().await.unwrap();
    let odd = catalog.table("odd \"table").unwrap();
    assert_eq!(
        (odd.kind, odd.key.as_slice()),
        ('r', &["a".to_owned(), "b".to_owned()][..])
    );
    assert!(!odd.watched);
    let a = odd.column("a").unwrap();
    assert_eq!((a.type_name.as_str(), a.base.as_str()), ("text", "text"));
    assert!(a.byte_ordered && a.deterministic && a.not_null && !a.virtual_);
    assert!(catalog.table("bare").unwrap().columns.is_empty());
    assert_eq!(catalog.table("seen").unwrap().kind, 'v');
    world.get("bare").await.is(200, "[]");
}

#[tokio::test]
async fn a_view_has_its_tables_key_whatever_its_columns_are_called() {
    let world = world!(
        r#"
        create table pairs (a int, b int, c int, primary key (b, a));
        create view whole as select c as "a} :resno", a as "x:resno", b as " :resorigtbl 1" from pairs;
        create view twice as select b, a, b as again from pairs;
        create view half as select a, c from pairs;
        create view computed as select a, b + 0 as b from pairs"#
    );
    let catalog = world.rows.catalog.reload().await.unwrap();
    let key = |view: &str| catalog.table(view).unwrap().key.clone();
    assert_eq!(key("whole"), [" :resorigtbl 1", "x:resno"]);
    assert_eq!(key("twice"), ["b", "a"]);
    assert!(key("half").is_empty() && key("computed").is_empty());
}

#[tokio::test]
async fn a_picture_keeps_its_edition_until_it_differs_or_somebody_says_so() {
    let world = world!("create table tasks (id int primary key)");
    let catalog = &world.rows.catalog;
    let first = catalog.catch_up().await.unwrap().edition();
    assert_eq!(catalog.catch_up().await.unwrap().edition(), first);
    world.sql("alter table tasks add title text").await;
    let second = catalog.catch_up().await.unwrap().edition();
    assert!(second > first);
    // It may be a grant, which no picture tells.
    let third = catalog.reload().await.unwrap().edition();
    assert!(third > second);
    assert_eq!(catalog.catch_up().await.unwrap().edition(), third);
}

#[tokio::test]
async fn who_hangs_up_while_the_catalogue_is_read_for_him_breaks_nothing_off() {
    let world = world!("create table tasks (id int primary key)");
    let catalog = &world.rows.catalog;
    let first = catalog.catch_up().await.unwrap().edition();
    world.sql("alter table tasks add title text").await;
    let mut seen = catalog.watch();
    assert!(catalog.look_again().now_or_never().is_none());
    let read = tokio::time::timeout(Duration::from_secs(10), seen.changed());
    read.await.expect("it goes on").unwrap();
    assert!(seen.borrow().edition() > first);
}

/// Hyper spawns the answer, so it must be able to move between threads.
#[test]
fn an_answer_may_move_between_threads() {
    type Answer<T> =
        fn(&'static Rows, &'static hyper::http::request::Parts, &'static Identity, Bytes) -> T;
    fn sendable<T: Send>(_: Answer<T>) {}
    sendable(|rows, parts, who, body| respond(rows, parts, who, "tasks", body));
}
