//! No secret that is brought comes out again, whatever goes wrong: a unique one in every input, and
//! not a byte of them in logs, counters, errors, or what the commands print.

use std::fmt::Write as _;

use hyper::Method;

use crate::harness::{Database, Relay, Server, command};
use crate::policies::token;

/// One for each place. Long enough for any place that wants length.
fn canary(place: &str) -> String {
    format!("canary-{place}-5b1f0c9e7d3a42868f00d1e2c3b4a596")
}

/// Everything that the relay and its commands have said.
#[derive(Default)]
struct Said(String);

impl Said {
    fn add(&mut self, what: &str, text: &str) {
        writeln!(self.0, "== {what}\n{text}").unwrap();
    }

    fn holds_none_of(&self, secrets: &[&str]) {
        for secret in secrets {
            let at = self.0.find(secret);
            let around = at.map(|at| {
                let from = self.0[..at].rfind("==").unwrap_or(0);
                self.0[from..].chars().take(600).collect::<String>()
            });
            assert!(at.is_none(), "{secret} in: {}", around.unwrap_or_default());
        }
    }
}

async fn printed(said: &mut Said, arguments: &[&str]) {
    let output = command()
        .env("RUST_LOG", "trace")
        .args(arguments)
        .output()
        .await
        .unwrap();
    said.add(
        arguments[0],
        &format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
    );
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "reads as a list of places")]
async fn no_secret_that_is_brought_comes_out_again() {
    let server = Server::start(&[]).await;
    let database = server.database().await;
    let password = canary("password");
    let signing = canary("signing");
    database
        .sql(&format!(
            "create role listener superuser login password '{password}';
             create role api superuser login password '{password}2';
             create role member nologin;
             create table notes (id int primary key, body text);
             grant select, insert, update on notes to member"
        ))
        .await;
    let place = database.url.replace("user=postgres", "");
    let listening = Database {
        url: format!("{place} user=listener password={password}"),
    };
    let api = format!("{place} user=api password={password}2");
    let settings = [
        "--api-url",
        &api,
        "--jwt-secret",
        &signing,
        "--roles",
        "member",
        "--log-format",
        "json",
    ];
    let log = tempfile::NamedTempFile::new().unwrap();
    let relay = Relay::verbose(&listening, &settings, log.path()).await;
    database.sql("select rowcast.watch('notes')").await;

    let mut said = Said::default();
    let made = command()
        .args(["token", "--role", "member", "--jwt-secret", &signing])
        .output()
        .await
        .unwrap();
    let good = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let good = format!("Bearer {good}");
    let foreign = token("member", &[&format!("sub={}", canary("claim"))]).await;
    let (header, cookie, ticket) = (canary("header"), canary("cookie"), canary("ticket"));
    let (body, query, id) = (canary("body"), canary("query"), canary("id"));
    let bearer = format!("Bearer {header}");
    let cookies = format!("__Host-rowcast={cookie}; other={cookie}");
    let foreign = format!("Bearer {foreign}");
    let json = ("content-type", "application/json");
    let large = format!(r#"{{"id":1,"body":"{}"}}"#, body.repeat(40_000));
    let row = format!(r#"{{"id":1,"body":"{body}"}}"#);
    let cut = format!(r#"{{"id":1,"body":"{body}"#);
    let wrong = format!(r#"{{"id":"{body}","body":1}}"#);
    let notes = "/rest/v1/notes";
    let asked = format!("{notes}?body=eq.{query}");
    let odd = format!("{notes}?id=eq.{query}&order=id");
    let unknown = format!("{notes}?{query}=eq.1");
    let by_ticket = format!("{notes}?ticket={ticket}");
    let called = format!("/rest/v1/rpc/{query}");
    let deep = format!("/nothing/{query}?ticket={ticket}");
    for (method, path, headers, text) in [
        ("GET", notes, vec![("authorization", bearer.as_str())], ""),
        ("GET", notes, vec![("authorization", foreign.as_str())], ""),
        ("GET", notes, vec![("cookie", cookies.as_str())], ""),
        ("GET", &by_ticket, vec![("accept", "text/event-stream")], ""),
        ("GET", &asked, vec![("authorization", good.as_str())], ""),
        ("POST", notes, vec![json, ("authorization", &good)], &row),
        ("POST", notes, vec![json, ("authorization", &good)], &cut),
        ("POST", notes, vec![json, ("authorization", &good)], &large),
        (
            "POST",
            notes,
            vec![json, ("authorization", &good), ("idempotency-key", &id)],
            &row,
        ),
        (
            "PATCH",
            &asked,
            vec![json, ("authorization", &good), ("if-match", &id)],
            &row,
        ),
        (
            "POST",
            "/tickets",
            vec![json, ("authorization", &bearer)],
            &cut,
        ),
        (
            "POST",
            "/channels/lobby",
            vec![json, ("authorization", &good)],
            &row,
        ),
        (
            "POST",
            "/rest/v1/",
            vec![json, ("authorization", &good)],
            &cut,
        ),
        ("POST", &called, vec![json, ("cookie", &cookies)], &row),
        ("GET", &deep, vec![("x-request-id", "mine-1")], ""),
        (
            "BREW",
            &deep,
            vec![("authorization", bearer.as_str())],
            &row,
        ),
    ] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let answer = relay.request(method, path, &headers, text).await;
        let names: Vec<String> = answer
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {value:?}"))
            .collect();
        said.add(
            "an answer",
            &format!("{}\n{}", names.join("\n"), answer.body),
        );
    }
    // What a caller brought may stand in what he is told; the rest may not, and nothing of it in
    // what others are told.
    said.holds_none_of(&[
        &header,
        &cookie,
        &ticket,
        &password,
        &signing,
        &foreign,
        &good[7..],
    ]);
    for (path, text) in [(&odd, ""), (&unknown, ""), (&notes.to_owned(), &*wrong)] {
        let method = if text.is_empty() {
            Method::GET
        } else {
            Method::POST
        };
        relay
            .request(method, path, &[json, ("authorization", &good)], text)
            .await;
    }
    let mut stream = crate::harness::Stream::with(
        &format!("{}{asked}", relay.url),
        Some(&id),
        &[("authorization", &good)],
    )
    .await;
    stream.next().await;
    said.add("the counters", &relay.get("/metrics").await.body);
    said.add("readiness", &relay.get("/readyz").await.body);
    // What is wrong with a database is told with its address, and never with its password.
    let away = format!("postgres://u:{password}@127.0.0.1:1/d");
    let malformed = format!("postgres://u:{password}@[::1/d?sslmode=odd");
    for arguments in [
        vec![
            "doctor",
            "--database-url",
            &listening.url,
            "--api-url",
            &api,
            "--jwt-secret",
            &signing,
        ],
        vec![
            "doctor",
            "--json",
            "--database-url",
            &listening.url,
            "--api-url",
            &api,
        ],
        vec!["doctor", "--database-url", &away],
        vec![
            "serve",
            "--print-config",
            "--database-url",
            &listening.url,
            "--api-url",
            &api,
            "--jwt-secret",
            &signing,
        ],
        vec!["serve", "--print-config", "--database-url", &malformed],
        vec![
            "serve",
            "--check",
            "--database-url",
            &malformed,
            "--jwt-secret",
            &signing,
        ],
        vec!["watched", "--database-url", &away],
        vec!["watch", "nothing", "--database-url", &listening.url],
    ] {
        printed(&mut said, &arguments).await;
    }
    relay.end().await;
    let logged = std::fs::read_to_string(log.path()).unwrap();
    assert!(logged.contains("answered"), "the log is verbose: {logged}");
    for line in logged.lines() {
        let line: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(
            line["message"].is_string() || line["fields"]["message"].is_string(),
            "{line}"
        );
    }
    said.add("the log", &logged);
    let secrets = [
        &header,
        &cookie,
        &ticket,
        &password,
        &signing,
        &foreign,
        &good[7..],
    ];
    said.holds_none_of(&secrets);
    // Bodies and queries are data: not in logs, counters or what the commands print either.
    let mut public = Said::default();
    let at = said.0.find("== the counters").unwrap();
    public.0 = said.0[at..].to_owned();
    public.holds_none_of(&[&body, &query, &id, &canary("claim")]);
}
