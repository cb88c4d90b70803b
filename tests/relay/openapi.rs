//! What the API offers is told as a document that `OpenAPI`'s own validator takes, whatever tables are
//! called.

use std::process::Stdio;

use hyper::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::harness::{Relay, database, eventually};
use crate::installed::{folder, installed};

const SCHEMA: &str = r#"
    create type mood as enum ('sad', 'happy');
    create domain price as numeric(10, 2);
    create table tasks (
      id bigint generated always as identity primary key,
      title varchar(80) not null,
      mood mood,
      price price not null default 0,
      tags text[],
      data jsonb,
      "select" int,
      "select limit {x}" text);
    comment on table tasks is E'What is to be done\nAnd by whom';
    comment on column tasks.title is 'In a few "words"';
    create table "odd ""{table}/é" ("a b" int primary key, "~/%" text not null);
    create table "odd .22" (id int primary key);
    create table plain (id int);
    create view shown as select id, title from tasks;
    create view counted as select count(*) as n from tasks;
    create materialized view kept as select id from tasks;
    create function add(a int, b int default 10) returns int language sql immutable return a + b;
    comment on function add is 'Adds';
    create function twice(a int) returns int language sql immutable return a * 2;
    create function twice(b text) returns setof tasks language sql stable as 'select * from tasks';
    create function total(variadic "limit" numeric[]) returns setof numeric language sql immutable
      as 'select sum(t) from unnest("limit") t';
    create function "odd {f}"() returns void language sql as '';
    select rowcast.watch('tasks'), rowcast.watch('"odd ""{table}/é"'), rowcast.watch('"odd .22"'),
           rowcast.expose('shown'), rowcast.expose('counted'), rowcast.expose('kept'), rowcast.expose('plain');
    select rowcast.expose_function(oid) from pg_proc where pronamespace = 'public'::regnamespace;
"#;

async fn document(relay: &Relay) -> Value {
    let answer = relay.get("/rest/v1/").await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-type"),
        "application/openapi+json; charset=utf-8"
    );
    answer.json()
}

/// The document once the relay knows everything.
async fn whole(relay: &Relay) -> Value {
    eventually("everything is known", async || {
        let document = document(relay).await;
        let paths = document["paths"].as_object().unwrap();
        (paths.len() == 14).then_some(document)
    })
    .await
}

#[tokio::test]
async fn the_document_is_what_the_validator_calls_one() {
    let python = folder("clients").join(".venv/bin/python");
    if !installed(&python, "tests/setup.sh test") {
        return;
    }
    let database = database().await;
    let relay = database.relay().await;
    database.sql(SCHEMA).await;
    let document = whole(&relay).await;
    let mut child = Command::new(python)
        .args(["-m", "openapi_spec_validator", "--schema", "3.1", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let text = document.to_string();
    stdin.write_all(text.as_bytes()).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    assert!(
        output.status.success(),
        "{}{}\n{text}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn tables_views_and_functions_are_told_as_they_are() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(SCHEMA).await;
    let document = whole(&relay).await;
    let paths = &document["paths"];
    let verbs = |path: &str| {
        let verbs = paths[path].as_object().unwrap().keys();
        verbs.cloned().collect::<Vec<_>>().join(" ")
    };
    for (path, expected) in [
        ("/rest/v1/tasks", "get post put patch delete"),
        (
            "/rest/v1/odd%20%22%7Btable%7D%2F%C3%A9",
            "get post put patch delete",
        ),
        ("/rest/v1/plain", "get post patch delete"),
        ("/rest/v1/shown", "get post put patch delete"),
        ("/rest/v1/counted", "get"),
        ("/rest/v1/kept", "get"),
        ("/rest/v1/rpc/add", "post get"),
        ("/rest/v1/rpc/twice", "post"),
        ("/rest/v1/rpc/odd%20%7Bf%7D", "post"),
        ("/channels/{name}", "parameters get post"),
        ("/tickets", "post"),
    ] {
        assert_eq!(verbs(path), expected, "{path}");
    }
    let schemas = &document["components"]["schemas"];
    let tasks = &schemas["tasks"];
    assert_eq!(tasks["description"], "What is to be done\nAnd by whom");
    assert_eq!(tasks["required"], json!(["title"]));
    let columns = &tasks["properties"];
    assert_eq!(
        columns["id"],
        json!({"type":"integer","format":"bigint","readOnly":true,"description":"Primary key."})
    );
    assert_eq!(
        columns["title"],
        json!({"type":"string","format":"character varying","maxLength":80,"description":"In a few \"words\""})
    );
    assert_eq!(columns["mood"]["enum"], json!(["sad", "happy", null]));
    assert_eq!(
        columns["price"],
        json!({"type":["number","string"],"format":"public.price"})
    );
    assert_eq!(columns["tags"]["type"], json!(["array", "null"]));
    assert!(schemas["odd.20.22.7btable.7d.2f.c3.a9"]["properties"]["~/%"].is_object());

    let read = &paths["/rest/v1/tasks"]["get"];
    assert_eq!(read["summary"], "What is to be done");
    let streams = |path: &str| {
        paths[path]["get"]["responses"]["200"]["content"]["text/event-stream"].is_object()
    };
    assert!(streams("/rest/v1/tasks") && !streams("/rest/v1/shown"));
    let add = &paths["/rest/v1/rpc/add"]["post"];
    assert_eq!(add["description"], "Adds");
    assert_eq!(
        add["requestBody"]["content"]["application/json"]["schema"]["required"],
        json!(["a"])
    );
    // Each name is one parameter, also where an argument is called as a word of ours.
    let total = paths["/rest/v1/rpc/total"]["get"]["parameters"]
        .as_array()
        .unwrap();
    let limits = total
        .iter()
        .filter(|parameter| parameter.to_string().contains("limit"));
    assert_eq!(limits.count(), 1);
}

#[tokio::test]
async fn another_schema_has_a_document_of_its_own_and_other_types_are_refused() {
    let database = database().await;
    let relay = Relay::start(&database, &["--schema", "public,quiet"]).await;
    database
        .sql("create schema quiet; create table quiet.notes (id int primary key); select rowcast.watch('quiet.notes')")
        .await;
    eventually("the other schema is told", async || {
        let quiet = [("accept-profile", "quiet"), ("accept", "application/json")];
        let answer = relay.request(Method::GET, "/rest/v1/", &quiet, "").await;
        assert_eq!(
            answer.header("content-type"),
            "application/json; charset=utf-8"
        );
        assert_eq!(answer.header("content-profile"), "quiet");
        answer.json()["paths"]["/rest/v1/notes"]
            .is_object()
            .then_some(())
    })
    .await;
    assert!(document(&relay).await["paths"]["/rest/v1/notes"].is_null());
    for (header, value, status, code) in [
        ("accept", "text/csv", 406, "PGRST107"),
        ("accept-profile", "secret", 406, "PGRST106"),
    ] {
        let answer = relay
            .request(Method::GET, "/rest/v1/", &[(header, value)], "")
            .await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["code"]),
            (status, &json!(code))
        );
    }
}
