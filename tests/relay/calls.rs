//! Functions that the operator exposed are called as the dialect says, and no others are.

use hyper::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Database, Relay, database, eventually};

const FUNCTIONS: &str = r#"
    create table tasks (id int primary key, title text, done boolean not null default false);
    insert into tasks values (1, 'one'), (2, 'two'), (3, 'three');
    create schema quiet;

    create function add(a int, b int default 10) returns int language sql immutable return a + b;
    create function nothing() returns int language sql stable return null::int;
    create function touch(task int) returns void language sql as $$
      update tasks set done = true where id = task $$;
    create function all_tasks() returns setof tasks language sql stable as 'select * from tasks';
    create function one_task(task int) returns tasks language sql stable as
      'select * from tasks where id = task';
    create function numbers(upto int) returns setof int language sql immutable as
      'select generate_series(1, upto)';
    create function table_of(upto int) returns table (n int, square bigint) language sql immutable as
      'select i, i::bigint * i from generate_series(1, upto) i';
    create function bounds(out low int, out high int) language sql immutable as 'select 1, 9';
    create function total(variadic terms int[]) returns bigint language sql immutable as
      'select sum(t) from unnest(terms) t';
    create function echo(value jsonb, tags text[]) returns jsonb language sql immutable as
      $$ select jsonb_build_object('value', value, 'tags', tags) $$;
    create function shout(text) returns text language sql immutable as 'select upper($1)';
    create function add_task(title text) returns setof tasks language plpgsql as $$
      begin
        return query insert into tasks as t (id, title)
          select max(id) + 1, add_task.title from tasks returning t.*;
      end $$;
    create function finish() returns setof tasks language sql as
      'update tasks set done = true returning *';
    create function pretends() returns int language plpgsql stable as $$
      begin
        perform touch(1);
        return 1;
      end $$;
    create function which(a int) returns text language sql immutable as $$ select 'int' $$;
    create function which(b text) returns text language sql immutable as $$ select 'text' $$;
    create function vague(a int) returns text language sql immutable as $$ select 'one' $$;
    create function vague(a int, b int default 0) returns text language sql immutable as $$ select 'two' $$;
    create role somebody_else;
    create function escape() returns int language plpgsql as $$
      begin
        insert into tasks values (77);
        set local role somebody_else;
        return 1;
      end $$;
    create function teapot() returns int language plpgsql as $$
      begin
        raise sqlstate 'PT418' using message = 'short and stout';
      end $$;
    create function "odd ""name"(" é" int) returns int language sql immutable return " é" * 2;
    create function hidden() returns int language sql immutable return 1;
    create function quiet.whisper() returns text language sql immutable as $$ select 'psst' $$;
    create table quiet.notes (id int primary key, tasks int);
    insert into quiet.notes values (5);

    select rowcast.watch('tasks'), rowcast.watch('quiet.notes');
    select rowcast.expose_function(p.oid) from pg_proc p
    where p.pronamespace in ('public'::regnamespace, 'quiet'::regnamespace) and p.proname <> 'hidden';
"#;

async fn world(arguments: &[&str]) -> (Database, Relay) {
    let database = database().await;
    let relay = Relay::start(&database, arguments).await;
    // A role is the cluster's, and another test's database has made it.
    let there = database.one("select count(*) from pg_roles where rolname = 'somebody_else'");
    let sql = match there.await.as_str() {
        "0" => FUNCTIONS.to_owned(),
        _ => FUNCTIONS.replace("create role somebody_else;", ""),
    };
    database.sql(&sql).await;
    (database, relay)
}

async fn call(relay: &Relay, function: &str, body: &str) -> Answer {
    relay.post(&format!("/rest/v1/rpc/{function}"), body).await
}

async fn get(relay: &Relay, path: &str) -> Answer {
    relay.get(&format!("/rest/v1/rpc/{path}")).await
}

fn code(answer: &Answer) -> (u16, Value) {
    (answer.status.as_u16(), answer.json()["code"].clone())
}

#[tokio::test]
async fn each_kind_of_result_has_its_form() {
    let (_database, relay) = world(&[]).await;
    for (path, body, expected) in [
        ("add", r#"{"a":1,"b":2}"#, json!(3)),
        ("add", r#"{"a":1}"#, json!(11)),
        ("nothing", "", json!(null)),
        (
            "one_task",
            r#"{"task":2}"#,
            json!({"id":2,"title":"two","done":false}),
        ),
        ("numbers", r#"{"upto":3}"#, json!([1, 2, 3])),
        (
            "table_of",
            r#"{"upto":2}"#,
            json!([{"n":1,"square":1},{"n":2,"square":4}]),
        ),
        ("bounds", "{}", json!({"low":1,"high":9})),
        ("total", r#"{"terms":[1,2,3]}"#, json!(6)),
        (
            "echo",
            r#"{"value":{"a":[1,null]},"tags":["x,\"y","{}"]}"#,
            json!({"value":{"a":[1,null]},"tags":["x,\"y","{}"]}),
        ),
        ("which", r#"{"b":"x"}"#, json!("text")),
        ("which", r#"{"a":1}"#, json!("int")),
        ("odd%20%22name", r#"{" é":21}"#, json!(42)),
    ] {
        let answer = call(&relay, path, body).await;
        assert_eq!(answer.status, 200, "{path} {body}: {}", answer.body);
        assert_eq!(answer.json(), expected, "{path} {body}");
        assert_eq!(
            answer.header("content-type"),
            "application/json; charset=utf-8"
        );
    }
    for (path, expected) in [
        ("add?a=1&b=2", json!(3)),
        ("total?terms=1&terms=2", json!(3)),
        (
            "echo?value=%7B%22a%22:1%7D&tags=%7Bx,y%7D",
            json!({"value":{"a":1},"tags":["x","y"]}),
        ),
        ("which?b=1", json!("text")),
        ("odd%20%22name?%20%C3%A9=4", json!(8)),
        // One is an argument, and the other a filter on the result.
        ("table_of?upto=1&n=lt.9", json!([{"n":1,"square":1}])),
    ] {
        let answer = get(&relay, path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        assert_eq!(answer.json(), expected, "{path}");
    }
    let done = call(&relay, "touch", r#"{"task":1}"#).await;
    assert_eq!((done.status.as_u16(), done.body.as_str()), (204, ""));
    assert!(!done.txid().is_empty());
    assert_eq!(
        get(&relay, "one_task?task=1&select=done").await.json(),
        json!({"done":true})
    );
    let head = relay
        .request(Method::HEAD, "/rest/v1/rpc/numbers?upto=3", &[], "")
        .await;
    assert_eq!(
        (
            head.status.as_u16(),
            head.header("content-range"),
            head.body.as_str()
        ),
        (200, "0-2/*", "")
    );
}

#[tokio::test]
async fn a_set_takes_what_a_read_takes() {
    let (database, relay) = world(&[]).await;
    let answer = get(
        &relay,
        "all_tasks?id=gt.1&select=id,name:title&order=id.desc&limit=1",
    )
    .await;
    assert_eq!(answer.json(), json!([{"id":3,"name":"three"}]));
    assert_eq!(answer.header("content-range"), "0-0/*");

    let counted = [
        ("prefer", "count=exact"),
        ("content-type", "application/json"),
    ];
    let path = "/rest/v1/rpc/all_tasks?id=gt.1&limit=1&order=id";
    let answer = relay.request(Method::POST, path, &counted, "{}").await;
    assert_eq!(answer.status, 206);
    assert_eq!(answer.header("content-range"), "0-0/2");
    assert_eq!(answer.header("preference-applied"), "count=exact");
    let path = "/rest/v1/rpc/all_tasks?id=gt.9";
    let answer = relay.request(Method::GET, path, &counted[..1], "").await;
    assert_eq!(
        (answer.body.as_str(), answer.header("content-range")),
        ("[]", "*/0")
    );
    let path = "/rest/v1/rpc/numbers?upto=9&offset=20";
    let answer = relay.request(Method::GET, path, &counted[..1], "").await;
    assert_eq!(code(&answer), (416, json!("PGRST103")));
    let answer = get(
        &relay,
        "numbers?upto=9&numbers=gt.6&order=numbers.desc&offset=1",
    )
    .await;
    assert_eq!(answer.json(), json!([8, 7]));
    let range = [("range", "1-2")];
    let path = "/rest/v1/rpc/numbers?upto=9";
    let answer = relay.request(Method::GET, path, &range, "").await;
    assert_eq!(
        (answer.body.as_str(), answer.header("content-range")),
        ("[2,\n3]", "1-2/*")
    );

    let single = [
        ("accept", "application/vnd.pgrst.object+json"),
        ("content-type", "application/json"),
    ];
    let path = "/rest/v1/rpc/all_tasks?id=eq.2";
    let answer = relay.request(Method::GET, path, &single[..1], "").await;
    assert_eq!(answer.json()["title"], "two");
    // One that writes is called once, counted or not, and undone when its result is not wanted.
    let path = "/rest/v1/rpc/finish";
    let answer = relay.request(Method::POST, path, &single, "{}").await;
    assert_eq!(code(&answer), (406, json!("PGRST116")));
    assert_eq!(
        database.one("select count(*) from tasks where done").await,
        "0"
    );
    let path = "/rest/v1/rpc/add_task?select=id";
    let answer = relay
        .request(Method::POST, path, &counted, r#"{"title":"four"}"#)
        .await;
    assert_eq!(
        (answer.json(), answer.header("content-range")),
        (json!([{"id":4}]), "0-0/1")
    );
    assert_eq!(database.one("select count(*) from tasks").await, "4");

    let capped = |most| [("prefer", most), ("content-type", "application/json")];
    let path = "/rest/v1/rpc/finish";
    let answer = relay
        .request(
            Method::POST,
            path,
            &capped("handling=strict, max-affected=3"),
            "{}",
        )
        .await;
    assert_eq!(code(&answer), (400, json!("PGRST124")));
    assert_eq!(
        database.one("select count(*) from tasks where done").await,
        "0"
    );
    let answer = relay
        .request(
            Method::POST,
            path,
            &capped("handling=strict, max-affected=4"),
            "{}",
        )
        .await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(
        answer.header("preference-applied"),
        "handling=strict, max-affected=4"
    );
    assert_eq!(
        database.one("select count(*) from tasks where done").await,
        "4"
    );
}

#[tokio::test]
async fn a_get_writes_nothing_and_a_stream_is_refused_with_the_way_out() {
    let (database, relay) = world(&[]).await;
    let answer = get(&relay, "touch?task=1").await;
    assert_eq!(code(&answer), (405, json!("25006")));
    assert_eq!(answer.header("allow"), "POST, OPTIONS");
    assert_eq!(code(&call(&relay, "pretends", "").await).0, 405);
    assert_eq!(
        database
            .one("select count(*) from tasks where done or id = 99")
            .await,
        "0"
    );
    for method in [Method::PATCH, Method::DELETE, Method::PUT] {
        let answer = relay.request(method, "/rest/v1/rpc/add?a=1", &[], "").await;
        assert_eq!(code(&answer), (405, json!("PGRST117")));
    }
    let events = [("accept", "text/event-stream")];
    let answer = relay
        .request(Method::GET, "/rest/v1/rpc/all_tasks", &events, "")
        .await;
    assert_eq!(code(&answer), (400, json!("PGRST127")));
    assert!(
        answer.json()["hint"]
            .as_str()
            .unwrap()
            .contains("watch the table that it reads")
    );
}

#[tokio::test]
async fn a_call_that_no_function_takes_says_which_would() {
    let (database, relay) = world(&[]).await;
    let answer = call(&relay, "add", r#"{"a":1,"c":2}"#).await;
    assert_eq!(code(&answer), (404, json!("PGRST202")));
    assert_eq!(answer.json()["details"], "it was called with: a, c");
    assert!(
        answer.json()["hint"]
            .as_str()
            .unwrap()
            .contains("add(a integer, b integer)")
    );
    let answer = call(&relay, "ad", r#"{"a":1}"#).await;
    assert_eq!(answer.json()["hint"], "perhaps \"add\" was meant");
    for (path, body, expected) in [
        ("hidden", "", "PGRST202"),
        ("add", "{}", "PGRST202"),
        ("shout", r#"{"x":"a"}"#, "PGRST127"),
        ("vague", r#"{"a":1}"#, "PGRST127"),
        ("add", "[1]", "PGRST102"),
        ("add", r#"[{"a":1}]"#, "PGRST102"),
        ("add", "{", "PGRST102"),
        ("add?select=x", r#"{"a":1}"#, "PGRST127"),
        ("add?add=eq.1", r#"{"a":1}"#, "PGRST127"),
        ("all_tasks?nope=eq.1", "", "42703"),
        ("add", r#"{"a":"many"}"#, "22P02"),
        ("teapot", "", "PT418"),
    ] {
        let answer = call(&relay, path, body).await;
        assert_eq!(code(&answer).1, expected, "{path} {body}: {}", answer.body);
    }
    assert_eq!(call(&relay, "teapot", "").await.status, 418);
    for (path, expected) in [
        ("add?a=1&c=3", "PGRST202"),
        ("add?a=1&a=2", "PGRST100"),
        ("add", "PGRST202"),
        ("add?a=1&select=x", "PGRST127"),
        ("vague?a=1", "PGRST127"),
    ] {
        let answer = get(&relay, path).await;
        assert_eq!(code(&answer).1, expected, "{path}: {}", answer.body);
    }
    let capped = [("prefer", "handling=strict, max-affected=1")];
    let path = "/rest/v1/rpc/add?a=1";
    let answer = relay.request(Method::GET, path, &capped, "").await;
    assert_eq!(code(&answer), (400, json!("PGRST128")));

    // What it did is undone with it, and the connection is as good as new.
    let answer = call(&relay, "escape", "").await;
    assert_eq!(code(&answer), (500, json!("RCR10")));
    assert_eq!(
        database
            .one("select count(*) from tasks where id = 77")
            .await,
        "0"
    );
    for _ in 0..20 {
        assert_eq!(
            call(&relay, "add_task", r#"{"title":"x"}"#).await.status,
            200
        );
    }
}

#[tokio::test]
async fn what_is_taken_back_is_gone_and_the_unfit_is_never_there() {
    let (database, relay) = world(&[]).await;
    assert_eq!(call(&relay, "add", r#"{"a":1}"#).await.status, 200);
    database
        .sql("select rowcast.unexpose_function('add(int,int)')")
        .await;
    eventually("the function is gone", async || {
        (call(&relay, "add", r#"{"a":1}"#).await.status == 404).then_some(())
    })
    .await;

    database
        .sql(
            "create function powerful() returns int language sql security definer return 1;
              create function any_of(x anyelement) returns int language sql as 'select 1';
              create procedure proceed() language sql as 'select 1';",
        )
        .await;
    let client = database.client().await;
    for (function, reason) in [
        ("powerful()", "search_path is not fixed"),
        ("any_of(anyelement)", "pseudo-type"),
        ("proceed()", "only plain functions"),
    ] {
        let sql = format!("select rowcast.expose_function('{function}')");
        let error = client.batch_execute(&sql).await.unwrap_err();
        let message = error.as_db_error().unwrap().message();
        assert!(message.contains(reason), "{function}: {message}");
    }
    database
        .sql(
            "alter function powerful() set search_path = pg_catalog;
              select rowcast.expose_function('powerful()')",
        )
        .await;
    assert_eq!(call(&relay, "powerful", "").await.body, "1");
    // It was fit when it was exposed.
    database.sql("alter function powerful() reset all").await;
    eventually("the function is unfit", async || {
        (call(&relay, "powerful", "").await.status == 404).then_some(())
    })
    .await;
}

#[tokio::test]
async fn several_schemas_are_told_apart_by_profile() {
    let (database, relay) = world(&["--schema", "public,quiet"]).await;
    database
        .sql(
            "create table quiet.tasks (id int primary key); insert into quiet.tasks values (40);
              select rowcast.watch('quiet.tasks')",
        )
        .await;
    let ids = |answer: Answer| {
        let ids = answer
            .json()
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["id"].clone())
            .collect::<Vec<_>>();
        (answer.header("content-profile").to_owned(), ids)
    };
    let quiet = [("accept-profile", "quiet")];
    let path = "/rest/v1/tasks";
    assert_eq!(
        ids(relay.get(path).await),
        ("public".into(), vec![json!(1), json!(2), json!(3)])
    );
    let answer = relay.request(Method::GET, path, &quiet, "").await;
    assert_eq!(ids(answer), ("quiet".into(), vec![json!(40)]));
    let write = [
        ("content-profile", "quiet"),
        ("content-type", "application/json"),
        ("prefer", "return=representation"),
    ];
    let answer = relay
        .request(Method::POST, path, &write, r#"{"id":41}"#)
        .await;
    assert_eq!(ids(answer), ("quiet".into(), vec![json!(41)]));
    let answer = relay
        .request(Method::POST, "/rest/v1/rpc/whisper", &write, "")
        .await;
    assert_eq!(answer.body, "\"psst\"");
    assert_eq!(call(&relay, "whisper", "").await.status, 404);
    let answer = relay
        .request(Method::GET, "/rest/v1/rpc/whisper", &quiet, "")
        .await;
    assert_eq!(
        (answer.body.as_str(), answer.header("content-profile")),
        ("\"psst\"", "quiet")
    );
    for (method, header) in [
        (Method::GET, "accept-profile"),
        (Method::POST, "content-profile"),
    ] {
        let headers = [(header, "private"), ("content-type", "application/json")];
        for path in ["/rest/v1/tasks", "/rest/v1/rpc/whisper"] {
            let answer = relay.request(method.clone(), path, &headers, "{}").await;
            assert_eq!(code(&answer), (406, json!("PGRST106")));
            assert!(
                answer.json()["hint"]
                    .as_str()
                    .unwrap()
                    .contains("public, quiet")
            );
        }
    }
}

async fn loads(relay: &Relay) -> u32 {
    let text = relay.get("/metrics").await.body;
    let line = text
        .lines()
        .find(|line| line.starts_with("rowcast_schema_cache_loads_total"));
    line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn definitions_are_seen_at_once_and_a_burst_costs_a_few_reads() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql("create table first (id int primary key); select rowcast.watch('first')")
        .await;
    assert_eq!(relay.get("/rest/v1/first").await.status, 200);
    // Seen without anybody asking for it: a new column of a table that is known.
    database
        .sql("alter table first add column later text default 'x'; insert into first values (1)")
        .await;
    eventually("the column is there", async || {
        (relay.get("/rest/v1/first?later=eq.x").await.status == 200).then_some(())
    })
    .await;

    let mut before = 0;
    eventually("it is quiet", async || {
        let now = loads(&relay).await;
        let quiet = now == before;
        before = now;
        // Longer than from one look for drift to the next, which also tells of the changes above.
        tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
        quiet.then_some(())
    })
    .await;
    let client = database.client().await;
    for n in 0..50 {
        client
            .batch_execute(&format!("create table burst_{n} (id int)"))
            .await
            .unwrap();
    }
    eventually("the burst is heard", async || {
        (loads(&relay).await > before + 1).then_some(())
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let cost = loads(&relay).await - before;
    assert!((2..12).contains(&cost), "{cost} reads");

    // Temporary tables are nobody's business; a NOTIFY and a signal are somebody's word.
    let before = loads(&relay).await;
    client
        .batch_execute("create temp table mine (id int); drop table mine")
        .await
        .unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(loads(&relay).await, before);
    // Without a payload it means both.
    for said in [
        "notify pgrst, 'reload config'; notify pgrst, 'reload schema'",
        "notify pgrst",
    ] {
        let before = loads(&relay).await;
        client.batch_execute(said).await.unwrap();
        eventually("the notification is heard", async || {
            (loads(&relay).await > before).then_some(())
        })
        .await;
    }
    let before = loads(&relay).await;
    relay.signal("USR1").await;
    eventually("the signal is heard", async || {
        (loads(&relay).await > before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_call_that_always_fails_makes_nobody_look_anew() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create table tasks (id int primary key); select rowcast.watch('tasks');
             create function broken() returns int language plpgsql as
               $$ begin return (select count(*) from missing); end $$;
             select rowcast.expose_function('broken()')",
        )
        .await;
    // What a stream may see was looked up a moment ago, by one of these.
    let looked = async || {
        let last = "select max(state_change) from pg_stat_activity
                    where datname = current_database() and application_name = 'rowcast looks'";
        database.one(last).await
    };
    let _first = relay.shown("/rest/v1/tasks").await;
    eventually("nothing is looked up for a stream that opens", async || {
        let (begun, before) = (std::time::Instant::now(), looked().await);
        for _ in 0..3 {
            let answer = call(&relay, "broken", "").await;
            assert_eq!(answer.json()["code"], "42P01", "{}", answer.body);
        }
        let _second = relay.shown("/rest/v1/tasks").await;
        // It would be forgotten after ten seconds, and with a change.
        let in_time = begun.elapsed() < std::time::Duration::from_secs(8);
        (in_time && looked().await == before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_event_triggers_harm_no_definition_and_go_with_the_rest() {
    let database = database().await;
    let relay = database.relay().await;
    let triggers = "select string_agg(evtname, ' ' order by evtname) from pg_event_trigger";
    let all = "rowcast_ddl rowcast_drop rowcast_foreign";
    assert_eq!(database.one(triggers).await, all);
    // Nothing of theirs is needed for a definition to succeed.
    database
        .sql(
            "create or replace function rowcast.ddl() returns event_trigger language plpgsql
              set search_path = pg_catalog, pg_temp as $$
              begin perform 1 / 0; exception when others then null; end $$;
              set search_path = ''; create table public.plain (id int); drop table public.plain",
        )
        .await;
    relay.end().await;
    let relay = Relay::start(&database, &["--bell", "off"]).await;
    // The one that tells nobody anything stays.
    assert_eq!(database.one(triggers).await, "rowcast_foreign");
    relay.end().await;
    let relay = database.relay().await;
    assert_eq!(database.one(triggers).await, all);
    relay.end().await;
    let mut uninstall = crate::harness::command();
    uninstall.args(["uninstall", "--database-url", &database.url]);
    assert!(uninstall.status().await.unwrap().success());
    assert_eq!(database.one(triggers).await, "");
}

#[tokio::test]
async fn what_a_function_sets_for_the_session_meets_nobody_else() {
    let (database, relay) = world(&["--pool", "1"]).await;
    database
        .sql(
            "create function careless() returns void language plpgsql as $$
               begin
                 perform set_config('response.headers', '[{\"x-secret\":\"mine\"}]', false),
                         set_config('request.own', 'mine', false),
                         set_config('datestyle', 'German', false);
               end $$;
             create view careless_view as
               select set_config('request.own', 'mine', false) own,
                      set_config('datestyle', 'German', false) style;
             create function shown() returns text language sql volatile as
               $$ select coalesce(current_setting('request.own', true), '') || date '2026-01-31' $$;
             select rowcast.expose_function('careless()'), rowcast.expose_function('shown()'),
                    rowcast.expose('careless_view')",
        )
        .await;
    let read = relay.get("/rest/v1/careless_view").await;
    assert_eq!(read.json()[0]["own"], "mine");
    let other = call(&relay, "shown", "").await;
    assert_eq!(other.body, "\"2026-01-31\"");
    let own = call(&relay, "careless", "").await;
    assert_eq!(own.header("x-secret"), "mine");
    for _ in 0..5 {
        let other = call(&relay, "shown", "").await;
        assert_eq!(other.body, "\"2026-01-31\"");
        assert!(!other.headers.contains_key("x-secret"));
    }
}

#[tokio::test]
async fn what_a_function_leaves_in_the_session_meets_nobody_else() {
    let (database, relay) = world(&["--pool", "1"]).await;
    database
        .sql(
            "create function leave() returns text language plpgsql as $$
               begin
                 create temp table if not exists tasks (id int, title text, done boolean);
                 perform pg_advisory_lock(4711);
                 if not exists (select from pg_cursors where name = 'left') then
                   execute 'declare \"left\" cursor with hold for select 1';
                 end if;
                 listen somewhere;
                 return 'left';
               end $$;
             create function leave_and_fail() returns text language plpgsql as $$
               begin perform pg_advisory_lock(4712); raise exception 'no'; end $$;
             create function found() returns json language sql volatile as $$
               select json_build_object('tables', to_regclass('pg_temp.tasks'),
                 'cursors', (select count(*) from pg_cursors where is_holdable), 'channels', (select count(*) from pg_listening_channels())) $$;
             select rowcast.expose_function('leave()'), rowcast.expose_function('leave_and_fail()'),
                    rowcast.expose_function('found()')",
        )
        .await;
    let nothing = json!({"tables": null, "cursors": 0, "channels": 0});
    for function in ["leave", "leave_and_fail"] {
        call(&relay, function, "").await;
        assert_eq!(
            call(&relay, "found", "").await.json(),
            nothing,
            "{function}"
        );
        let locks =
            "select count(*) from pg_locks where locktype = 'advisory' and objid in (4711, 4712)";
        assert_eq!(database.one(locks).await, "0", "{function}");
        let finished = call(&relay, "finish", "").await;
        assert_eq!(finished.json().as_array().unwrap().len(), 3, "{function}");
    }
}

#[tokio::test]
async fn a_plan_from_before_a_change_is_healed_and_an_unknown_time_zone_is_told() {
    let (database, relay) = world(&[]).await;
    database
        .sql(
            "create sequence tries;
             create function planned() returns int language plpgsql as $$
               begin
                 if nextval('tries') % 2 = 1 then
                   raise 'cached plan must not change result type' using errcode = '0A000';
                 end if;
                 return 7;
               end $$;
             select rowcast.expose_function('planned()')",
        )
        .await;
    assert_eq!(call(&relay, "planned", "").await.body, "7");
    let prefer = ("prefer", "handling=strict, timezone=Mars/Base");
    let path = "/rest/v1/rpc/add";
    let strict = relay
        .request(
            Method::POST,
            path,
            &[("content-type", "application/json"), prefer],
            r#"{"a":1,"b":2}"#,
        )
        .await;
    assert_eq!(code(&strict), (400, json!("PGRST122")));
}
