//! Every error code of the dialect has a request that is answered by it.

use std::time::Duration;

use hyper::{Method, StatusCode};

use crate::dialect::{self, SECRET, SERVED, is_error};
use crate::harness::{Answer, Relay, Server, eventually, signal};

/// SQLSTATEs, one for each row of the dialect's table at least, and their statuses for a caller who
/// brought a token.
const SQLSTATES: [(&str, u16); 43] = [
    ("08000", 503),
    ("08P01", 503),
    ("09000", 500),
    ("0A000", 400),
    ("0L000", 403),
    ("0LP01", 403),
    ("0P000", 403),
    ("21000", 500),
    ("22012", 400),
    ("22023", 400),
    ("22P02", 400),
    ("23502", 400),
    ("23503", 409),
    ("23505", 409),
    ("23514", 400),
    ("25001", 500),
    ("25006", 405),
    ("28000", 403),
    ("28P01", 403),
    ("2D000", 500),
    ("38000", 500),
    ("39000", 500),
    ("3B000", 500),
    ("40001", 500),
    ("42501", 403),
    ("42703", 400),
    ("42883", 404),
    ("42P01", 404),
    ("42P17", 500),
    ("53100", 503),
    ("53300", 503),
    ("53400", 500),
    ("54001", 500),
    ("55P03", 500),
    ("57014", 500),
    ("57P01", 503),
    ("58030", 500),
    ("F0000", 500),
    ("HV000", 500),
    ("P0001", 400),
    ("P0002", 500),
    ("PT418", 418),
    ("XX000", 500),
];

const JSON: (&str, &str) = ("content-type", "application/json");
const SINGLE: (&str, &str) = ("accept", "application/vnd.pgrst.object+json");
const STRICT: (&str, &str) = ("prefer", "handling=strict, max-affected=1");

/// Method, path, headers, body; status and code of the answer.
type Refused<'a> = (
    &'a str,
    &'a str,
    &'a [(&'a str, &'a str)],
    &'a str,
    u16,
    &'a str,
);

#[track_caller]
fn told(answer: &Answer, status: u16, code: &str) {
    let body = serde_json::from_str(&answer.body).unwrap_or_default();
    assert!(
        answer.status == status && is_error(&body, code),
        "not {status} {code} but {} {}",
        answer.status,
        answer.body
    );
}

async fn get(relay: &Relay, path: &str) -> Answer {
    relay.get(&format!("/rest/v1/{path}")).await
}

async fn post(relay: &Relay, path: &str, body: &str) -> Answer {
    relay.post(&format!("/rest/v1/{path}"), body).await
}

#[tokio::test]
async fn every_error_code_is_answered_by_a_real_request() {
    of_the_request().await;
    of_the_caller().await;
    futures::join!(of_a_busy_pool(), of_a_lost_database());
}

/// What PostgreSQL says, from a trigger and from a function, and what the request itself lacks.
async fn of_the_request() {
    let database = dialect::tables().await;
    let relay = Relay::start(&database, &SERVED).await;
    for (code, status) in SQLSTATES {
        // Nobody brought a token.
        let status = if code == "42501" { 401 } else { status };
        let asked = format!(r#"{{"code":"{code}"}}"#);
        for answer in [
            post(&relay, "raises", &asked).await,
            post(&relay, "rpc/raise_state", &asked).await,
            get(&relay, &format!("rpc/raise_state?code={code}")).await,
        ] {
            told(&answer, status, code);
            let body = answer.json();
            assert_eq!(body["message"], "as asked");
            assert_eq!(body["details"], "the detail");
            assert_eq!(body["hint"], "the hint");
            let challenge = answer.header("www-authenticate");
            assert_eq!(challenge, if status == 401 { "Bearer" } else { "" });
        }
    }
    let unsafe_ = r#"{"code":"21000","said":"UPDATE requires a WHERE clause"}"#;
    told(&post(&relay, "raises", unsafe_).await, 400, "21000");
    let unreadable = r#"{"code":"PGRST"}"#;
    told(&post(&relay, "raises", unreadable).await, 500, "PGRST121");
    let nobody = r#"{"code":"22023","said":"role \"nobody\" does not exist"}"#;
    told(&post(&relay, "raises", nobody).await, 401, "22023");

    let refused: [Refused<'_>; 18] = [
        ("GET", "tasks?id=5", &[], "", 400, "PGRST100"),
        ("POST", "tasks", &[JSON], "{", 400, "PGRST102"),
        ("GET", "tasks?limit=-1", &[], "", 416, "PGRST103"),
        (
            "PUT",
            "boards?name=eq.home",
            &[JSON],
            r#"{"id":1,"name":"a"}"#,
            405,
            "PGRST105",
        ),
        (
            "GET",
            "tasks",
            &[("accept-profile", "no")],
            "",
            406,
            "PGRST106",
        ),
        (
            "GET",
            "tasks",
            &[("accept", "text/html")],
            "",
            406,
            "PGRST107",
        ),
        ("GET", "tasks", &[SINGLE], "", 406, "PGRST116"),
        ("TRACE", "tasks", &[], "", 405, "PGRST117"),
        (
            "GET",
            "tasks",
            &[("prefer", "handling=strict, x")],
            "",
            400,
            "PGRST122",
        ),
        ("DELETE", "tasks", &[STRICT], "", 400, "PGRST124"),
        ("GET", "tasks/1", &[], "", 404, "PGRST125"),
        ("GET", "tasks?select=count()", &[], "", 400, "PGRST127"),
        ("POST", "rpc/nope", &[JSON], "{}", 404, "PGRST202"),
        ("POST", "tasks", &[JSON], r#"{"nope":1}"#, 400, "PGRST204"),
        ("GET", "nope", &[], "", 404, "PGRST205"),
        ("GET", "write_attempt", &[], "", 405, "25006"),
        ("GET", "tasks?nope=eq.1", &[], "", 400, "42703"),
        (
            "GET",
            "tasks",
            &[("authorization", "Bearer a.b.c")],
            "",
            500,
            "PGRST300",
        ),
    ];
    for (method, path, headers, body, status, code) in refused {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let path = format!("/rest/v1/{path}");
        told(
            &relay.request(method, &path, headers, body).await,
            status,
            code,
        );
    }

    // The catalogue cannot be read any more; what is known of it keeps serving.
    let moved = "alter table rowcast.exposed rename to moved";
    database.sql(moved).await;
    told(&get(&relay, "nope").await, 503, "PGRST002");
    assert_eq!(get(&relay, "tasks").await.status, StatusCode::OK);
}

/// What tokens lead to.
async fn of_the_caller() {
    let (database, api) = dialect::members().await;
    let mut arguments = vec!["--api-url", &api, "--jwt-secret", SECRET];
    arguments.extend(SERVED);
    let closed = Relay::start(&database, &arguments).await;
    arguments.extend(["--anon-role", "dialect_anon"]);
    let open = Relay::start(&database, &arguments).await;

    told(&get(&closed, "boards").await, 401, "PGRST302");
    for relay in [&closed, &open] {
        let with = async |token: String| {
            let bearer = format!("Bearer {token}");
            let headers = [("authorization", bearer.as_str())];
            let path = "/rest/v1/cards?select=id";
            relay.request(Method::GET, path, &headers, "").await
        };
        told(&with("a.b.c".into()).await, 401, "PGRST301");
        let late = serde_json::json!({"role": "dialect_member", "exp": 1});
        told(&with(dialect::token(late)).await, 401, "PGRST303");
        let ann = serde_json::json!({"role": "dialect_member", "sub": "ann"});
        let answer = with(dialect::token(ann)).await;
        assert_eq!(
            (answer.status, answer.body.matches("id").count()),
            (StatusCode::OK, 2)
        );
    }
    let asked = r#"{"code":"42501"}"#;
    let ann = serde_json::json!({"role": "dialect_member", "sub": "ann"});
    let bearer = format!("Bearer {}", dialect::token(ann));
    let headers = [JSON, ("authorization", bearer.as_str())];
    let answer = open.request(Method::POST, "/rest/v1/raises", &headers, asked);
    told(&answer.await, 403, "42501");
    told(&post(&open, "raises", asked).await, 401, "42501");
}

/// A view that takes its time.
const SLOW: &str = "create view slow as select 1 as id, pg_sleep(20)::text as waited;
    create table quick (id int primary key);
    select rowcast.expose('slow'), rowcast.expose('quick')";

/// The only connection is taken.
async fn of_a_busy_pool() {
    let database = crate::harness::database().await;
    let relay = Relay::start(&database, &["--pool", "1"]).await;
    database.sql(SLOW).await;
    assert_eq!(get(&relay, "quick").await.status, StatusCode::OK);
    let (slow, busy) = futures::join!(get(&relay, "slow"), async {
        let sleeps = "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'";
        eventually("the view sleeps", async || {
            (database.one(sleeps).await == "1").then_some(())
        })
        .await;
        get(&relay, "quick").await
    });
    told(&busy, 504, "PGRST003");
    // Its time is limited.
    told(&slow, 500, "57014");
    assert_eq!(get(&relay, "quick").await.status, StatusCode::OK);
}

/// The server dies under a request, and then stays away.
async fn of_a_lost_database() {
    let server = Server::start(&[]).await;
    let database = server.database().await;
    let relay = Relay::start(&database, &[]).await;
    database.sql(SLOW).await;
    assert_eq!(get(&relay, "quick").await.status, StatusCode::OK);
    let (slow, ()) = futures::join!(get(&relay, "slow"), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let backend = "select pid from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'";
        let pid = database.one(backend).await.parse().unwrap();
        signal(pid, "KILL").await;
    });
    told(&slow, 503, "PGRST001");
    server.cluster.stop().await;
    told(&get(&relay, "quick").await, 503, "PGRST000");
    told(&get(&relay, "unheard_of").await, 503, "PGRST000");
}
