//! What cannot be done is refused in one answer that names it, and harms nothing else.

use hyper::Method;

use crate::harness::{Relay, Screen, database};

const TABLES: &str = "
    create table boards (id int primary key, name text unique);
    create table tasks (id int primary key, board_id int references boards, title text,
        heard text collate \"und-x-icu\", data jsonb, at timestamptz);
    insert into boards values (1, 'one'), (2, 'two');
    select rowcast.watch('boards'), rowcast.watch('tasks')";

const JSON: (&str, &str) = ("content-type", "application/json");
const EVENTS: (&str, &str) = ("accept", "text/event-stream");
const SINGLE: (&str, &str) = ("accept", "application/vnd.pgrst.object+json");
const BACK: (&str, &str) = ("prefer", "return=representation");
const FOREIGN: (&str, &str) = ("origin", "https://elsewhere.example");

struct Refused<'a>(
    &'a str,
    &'a str,
    &'a [(&'a str, &'a str)],
    &'a str,
    u16,
    &'a str,
);

async fn all_refused(relay: &Relay, requests: &[Refused<'_>]) {
    let mut wrong = Vec::new();
    for Refused(method, path, headers, body, status, code) in requests {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let answer = relay
            .request(method.clone(), &format!("/rest/v1/{path}"), headers, body)
            .await;
        let told: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
        if answer.status != *status || told["code"] != *code || !told["message"].is_string() {
            wrong.push(format!(
                "{method} {path} {body:.40}: not {status} {code} but {} {:.200}",
                answer.status, answer.body
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "a table, one line a case")]
async fn each_mistake_has_its_status_and_code_and_costs_nobody_else_anything() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TABLES).await;
    let mut stream = relay.stream("/rest/v1/tasks").await;
    let mut screen = Screen::default();
    screen.follow(&mut stream, |_| true).await;
    let long = format!(r#"{{"id":1,"title":"{}"}}"#, "x".repeat(1 << 20));

    let refused = [
        // Names
        Refused("GET", "nope", &[], "", 404, "PGRST205"),
        Refused("POST", "nope", &[JSON], "{}", 404, "PGRST205"),
        Refused("GET", "tasks?nope=eq.1", &[], "", 400, "42703"),
        Refused("GET", "tasks?select=nope", &[], "", 400, "42703"),
        Refused("GET", "tasks?order=nope", &[], "", 400, "42703"),
        Refused("POST", "tasks", &[JSON], r#"{"nope":1}"#, 400, "PGRST204"),
        // Syntax
        Refused("GET", "tasks?id=5", &[], "", 400, "PGRST100"),
        Refused("GET", "tasks?id=equals.5", &[], "", 400, "PGRST100"),
        Refused("GET", "tasks?id=in.5", &[], "", 400, "PGRST100"),
        Refused("GET", "tasks?id=is.5", &[], "", 400, "PGRST100"),
        Refused("GET", "tasks?limit=-1", &[], "", 416, "PGRST103"),
        Refused("GET", "tasks?order=id.sideways", &[], "", 400, "PGRST100"),
        Refused("GET", "tasks?or=(id.eq.1", &[], "", 400, "PGRST100"),
        Refused("GET", "tasks?id=eq(some).%7B1%7D", &[], "", 400, "PGRST100"),
        Refused("GET", "tasks?select=id::", &[], "", 400, "PGRST100"),
        // What is left out of the dialect
        Refused("GET", "tasks?select=boards(id)", &[], "", 400, "PGRST127"),
        Refused("GET", "tasks?select=id.sum()", &[], "", 400, "PGRST127"),
        Refused("GET", "tasks?boards.id=eq.1", &[], "", 400, "PGRST127"),
        Refused(
            "GET",
            "tasks",
            &[("accept", "text/csv")],
            "",
            400,
            "PGRST127",
        ),
        Refused(
            "POST",
            "tasks",
            &[("content-type", "text/csv")],
            "id\n1",
            400,
            "PGRST127",
        ),
        Refused("DELETE", "tasks?limit=1", &[], "", 400, "PGRST127"),
        // Bodies
        Refused("POST", "tasks", &[JSON], "{\"id\":", 400, "PGRST102"),
        Refused("POST", "tasks", &[JSON], "", 400, "PGRST102"),
        Refused("POST", "tasks", &[JSON], "7", 400, "PGRST102"),
        Refused(
            "POST",
            "tasks",
            &[JSON],
            r#"[{"id":1},{"title":"b"}]"#,
            400,
            "PGRST102",
        ),
        Refused(
            "POST",
            "tasks",
            &[("content-type", "text/plain")],
            "{}",
            415,
            "PGRST107",
        ),
        Refused("POST", "tasks", &[JSON], &long, 413, "RCH03"),
        // Values and constraints
        Refused("GET", "tasks?id=eq.many", &[], "", 400, "22P02"),
        Refused("POST", "tasks", &[JSON], r#"{"id":"many"}"#, 400, "22P02"),
        Refused("POST", "tasks", &[JSON], r#"{"id":null}"#, 400, "23502"),
        Refused("POST", "boards", &[JSON], r#"{"id":1}"#, 409, "23505"),
        Refused(
            "POST",
            "tasks",
            &[JSON],
            r#"{"id":1,"board_id":9}"#,
            409,
            "23503",
        ),
        // Preferences
        Refused(
            "GET",
            "tasks",
            &[("prefer", "handling=strict, timezone=Mars/Base")],
            "",
            400,
            "PGRST122",
        ),
        Refused(
            "PATCH",
            "boards?id=gt.0",
            &[JSON, ("prefer", "handling=strict, max-affected=1")],
            r#"{"name":null}"#,
            400,
            "PGRST124",
        ),
        // Whole rows
        Refused("PUT", "boards?name=eq.a", &[JSON], "{}", 405, "PGRST105"),
        Refused(
            "PUT",
            "boards?id=eq.1",
            &[JSON],
            r#"{"id":2}"#,
            400,
            "PGRST115",
        ),
        // What was asked for cannot be given
        Refused("TRACE", "tasks", &[], "", 405, "PGRST117"),
        Refused(
            "GET",
            "tasks",
            &[("accept", "text/html")],
            "",
            406,
            "PGRST107",
        ),
        Refused("GET", "boards", &[SINGLE], "", 406, "PGRST116"),
        Refused("GET", "boards?id=eq.3", &[SINGLE], "", 406, "PGRST116"),
        Refused("GET", "boards", &[("range", "5-2")], "", 416, "PGRST103"),
        Refused(
            "GET",
            "boards?offset=7",
            &[("prefer", "count=exact")],
            "",
            416,
            "PGRST103",
        ),
        Refused(
            "GET",
            "boards",
            &[("accept-profile", "secret")],
            "",
            406,
            "PGRST106",
        ),
        // Foreign pages may neither write nor watch
        Refused(
            "POST",
            "boards",
            &[JSON, FOREIGN],
            r#"{"id":3}"#,
            403,
            "RCH02",
        ),
        Refused("DELETE", "boards", &[FOREIGN], "", 403, "RCH02"),
        Refused("GET", "boards", &[EVENTS, FOREIGN], "", 403, "RCH02"),
    ];
    all_refused(&relay, &refused).await;

    let txid = database.commit("insert into tasks values (7)").await;
    screen.reach(&mut stream, &txid).await;
    assert_eq!(screen.rows.keys().collect::<Vec<_>>(), ["7"]);
    assert_eq!(
        relay
            .get("/rest/v1/boards")
            .await
            .json()
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn a_url_that_can_never_be_live_is_a_client_error() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TABLES).await;
    let refused = [
        Refused("GET", "tasks?limit=5", &[EVENTS], "", 400, "PGRST127"),
        Refused("GET", "tasks?offset=5", &[EVENTS], "", 400, "PGRST127"),
        Refused(
            "GET",
            "tasks",
            &[EVENTS, ("range", "0-4")],
            "",
            400,
            "PGRST127",
        ),
        Refused("GET", "tasks?title=is.true", &[EVENTS], "", 400, "42804"),
        Refused("GET", "tasks?id=equals.5", &[EVENTS], "", 400, "PGRST100"),
        Refused("GET", "tasks?nope=eq.5", &[EVENTS], "", 400, "42703"),
        Refused("GET", "tasks?id=eq.many", &[EVENTS], "", 400, "22P02"),
    ];
    all_refused(&relay, &refused).await;
    // Every other read is live, decided in memory or by PostgreSQL.
    for path in [
        "tasks?id=eq.5",
        "tasks?data=eq.%7B%7D",
        "tasks?data=is.null",
        "tasks?heard=lt.m",
        "tasks?at=gt.now",
        "tasks?or=(id.eq.1,id.eq.2)",
        "tasks?data-%3Ea=eq.1",
        "tasks?title=like.a*",
        "tasks?select=id::text",
        "tasks?select=data-%3Ea&order=heard",
    ] {
        let mut stream = relay.stream(&format!("/rest/v1/{path}")).await;
        assert_eq!(stream.status, 200, "{path}");
        assert!(stream.data().await.has_control("snapshot-end"), "{path}");
    }
}

#[tokio::test]
async fn a_write_that_is_refused_for_its_answer_leaves_no_trace() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(TABLES).await;
    let mut stream = relay.stream("/rest/v1/boards").await;
    let mut screen = Screen::default();
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 2)
        .await;
    let before = screen.clone();
    let refused = [
        Refused(
            "POST",
            "boards",
            &[JSON, SINGLE, BACK],
            r#"[{"id":3,"name":"c"},{"id":4,"name":"d"}]"#,
            406,
            "PGRST116",
        ),
        Refused(
            "PATCH",
            "boards?id=gt.0",
            &[JSON, SINGLE, BACK],
            r#"{"name":null}"#,
            406,
            "PGRST116",
        ),
        Refused("DELETE", "boards", &[SINGLE, BACK], "", 406, "PGRST116"),
        Refused(
            "POST",
            "boards",
            &[JSON],
            r#"[{"id":5,"name":"e"},{"id":1,"name":"f"}]"#,
            409,
            "23505",
        ),
        // Not even what a PUT does to another row than its own.
        Refused(
            "PUT",
            "boards?id=eq.1",
            &[JSON],
            r#"{"id":"02","name":"put"}"#,
            400,
            "PGRST115",
        ),
    ];
    all_refused(&relay, &refused).await;
    let txid = database
        .commit("update boards set name = name where id = 1")
        .await;
    let events = screen.reach(&mut stream, &txid).await;
    let changes = events.iter().filter(|event| event.name == "data").count();
    assert_eq!((changes, screen), (1, before));
}
