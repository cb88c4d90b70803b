//! The PostgREST dialect, as a table: one line a request and what must come back.
//!
//! `dialect/cases.txt` is run against a relay without tokens, `dialect/identity.txt` against one
//! with them; the head of the first file tells how a line is read. The rows of `dialect/seed.sql`
//! are there for every line, except for an indented one: that one sees what the line above left.

use std::collections::BTreeMap;
use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hyper::Method;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use ring::digest::{Digest, SHA256, digest};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::harness::{Answer, Database, Relay, database};

const SCHEMA: &str = include_str!("dialect/schema.sql");
const ROLES: &str = include_str!("dialect/roles.sql");
/// The rows; what was there before is gone.
pub const SEED: &str = include_str!("dialect/seed.sql");

const CARDS: &str = "truncate cards;
    insert into cards (id, owner, text) values (1, 'ann', 'a1'), (2, 'ann', 'a2'), (3, 'bob', 'b3')";

/// What both tables' relays are told.
pub const SERVED: [&str; 4] = [
    "--schema",
    "public,archive",
    "--tx-end",
    "commit-allow-override",
];
/// Of the tokens. 32 bytes are the least that the relay takes.
pub const SECRET: &str = "thirty-two bytes are enough here";

/// A line of a table.
#[derive(Debug)]
struct Case<'a> {
    /// Of the file, from 1.
    line: usize,
    /// Sees what the line above left.
    continues: bool,
    method: &'a str,
    /// Behind `/rest/v1`, not all of it encoded.
    target: &'a str,
    headers: Vec<(&'a str, String)>,
    body: &'a str,
    status: u16,
    answer: &'a str,
    answer_headers: Vec<(&'a str, &'a str)>,
}

impl<'a> Case<'a> {
    fn read(line: usize, text: &'a str) -> Self {
        let mut cells = text.split('|').map(str::trim);
        let mut next = || cells.next().unwrap_or_default();
        let (method, target) = next()
            .split_once(' ')
            .unwrap_or_else(|| panic!("line {line} has a method and a target"));
        let headers = next();
        let body = next();
        let status = next().parse();
        let case = Self {
            line,
            continues: text.starts_with(' '),
            method,
            target,
            headers: list(headers).map(sent).collect(),
            body,
            status: status.unwrap_or_else(|_| panic!("line {line} has a status")),
            answer: next(),
            answer_headers: list(next()).map(header).collect(),
        };
        assert_eq!(cells.next(), None, "line {line} has at most six columns");
        case
    }

    async fn answer(&self, relay: &Relay) -> Answer {
        let target = utf8_percent_encode(self.target, OUTSIDE).to_string();
        let mut headers: Vec<_> = self
            .headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let typed = headers.iter().any(|(name, _)| *name == "Content-Type");
        if !self.body.is_empty() && !typed {
            headers.push(("Content-Type", "application/json"));
        }
        let method = Method::from_bytes(self.method.as_bytes()).unwrap();
        let target = format!("/rest/v1{target}");
        relay.request(method, &target, &headers, self.body).await
    }

    /// What is wrong with this answer; nothing when it is right.
    fn judge(&self, answer: &Answer) -> String {
        let mut wrong = String::new();
        if answer.status != self.status {
            write!(wrong, "\n    status {}", answer.status.as_u16()).unwrap();
        }
        if !self.is_body(&answer.body) {
            write!(wrong, "\n    wanted {}", self.answer).unwrap();
        }
        if !wrong.is_empty() {
            write!(wrong, "\n    body   {:.600}", answer.body).unwrap();
        }
        for (name, value) in &self.answer_headers {
            let found = answer
                .headers
                .get(*name)
                .map(|found| found.to_str().unwrap());
            if found.unwrap_or("-") != *value {
                write!(wrong, "\n    {name}: {}", found.unwrap_or("-")).unwrap();
            }
        }
        wrong
    }

    fn is_body(&self, body: &str) -> bool {
        let parsed = || serde_json::from_str::<Value>(body).unwrap_or_default();
        if self.answer.is_empty() {
            return true;
        }
        if self.answer == "-" {
            return body.is_empty();
        }
        if let Some(subset) = self.answer.strip_prefix('~') {
            let subset = serde_json::from_str(subset)
                .unwrap_or_else(|error| panic!("line {}: {error}", self.line));
            return holds(&parsed(), &subset);
        }
        if let Some(error) = self.answer.strip_prefix('!') {
            let (code, said) = error.split_once(' ').unwrap_or((error, ""));
            return is_error(&parsed(), code) && body.to_lowercase().contains(&said.to_lowercase());
        }
        compact(body) == compact(self.answer)
    }
}

/// Whether this is the dialect's error with this code.
pub fn is_error(body: &Value, code: &str) -> bool {
    let Some(members) = body.as_object() else {
        return false;
    };
    let text = |name: &str| members[name].is_string() || members[name].is_null();
    members.keys().eq(["code", "message", "details", "hint"])
        && members["code"] == code
        && members["message"].is_string()
        && text("details")
        && text("hint")
}

/// What a target may not have as it is. `%` stays, so that a line can say `%25`.
const OUTSIDE: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'<')
    .add(b'>')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'#');

fn list(cell: &str) -> impl Iterator<Item = &str> {
    cell.split(" + ").filter(|item| !item.is_empty())
}

fn header(text: &str) -> (&str, &str) {
    text.split_once(": ")
        .unwrap_or_else(|| panic!("a header: {text}"))
}

/// A request header, or one of the two short forms.
fn sent(text: &str) -> (&str, String) {
    if text == "single" {
        let media = "application/vnd.pgrst.object+json";
        return ("Accept", media.to_owned());
    }
    if let Some(claims) = text.strip_prefix("as ") {
        let claims = serde_json::from_str(claims).unwrap_or_else(|e| panic!("{claims}: {e}"));
        return ("Authorization", format!("Bearer {}", token(claims)));
    }
    let (name, value) = header(text);
    (name, value.to_owned())
}

/// JSON text without the spaces between its parts.
fn compact(json: &str) -> String {
    let mut text = String::new();
    let (mut quoted, mut escaped) = (false, false);
    for c in json.chars() {
        if quoted || !c.is_ascii_whitespace() {
            text.push(c);
        }
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
    }
    text
}

/// Whether `whole` says everything that `part` says. Members of objects may be missing in `part`.
fn holds(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part
            .iter()
            .all(|(name, part)| whole.get(name).is_some_and(|whole| holds(whole, part))),
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(w, p)| holds(w, p))
        }
        _ => whole == part,
    }
}

/// A token with these claims, signed with [`SECRET`]. It lives for an hour unless `exp` says else.
pub fn token(claims: Value) -> String {
    let Value::Object(mut claims) = claims else {
        panic!("claims are an object");
    };
    let hour = std::time::SystemTime::now() + std::time::Duration::from_hours(1);
    let hour = hour
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    claims.entry("exp").or_insert(json!(hour));
    let encode = |text: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(text);
    let header = encode(br#"{"alg":"HS256","typ":"JWT"}"#);
    let signed = format!(
        "{header}.{}",
        encode(Value::Object(claims).to_string().as_bytes())
    );
    let signature = hmac(SECRET.as_bytes(), signed.as_bytes());
    format!("{signed}.{}", encode(signature.as_ref()))
}

/// RFC 2104 over SHA-256, for keys of at most 64 bytes: the tests' own, so that a mistake in the
/// relay's is not made twice.
fn hmac(key: &[u8], message: &[u8]) -> Digest {
    let pad = |with: u8| {
        let mut block = [with; 64];
        for (byte, key) in block.iter_mut().zip(key) {
            *byte ^= key;
        }
        block
    };
    let inner = digest(&SHA256, &[&pad(0x36), message].concat());
    digest(&SHA256, &[&pad(0x5c), inner.as_ref()].concat())
}

/// A database with the tables of the dialect's tests.
pub async fn tables() -> Database {
    let database = database().await;
    fill(&database).await;
    database
}

/// Makes those tables in a new database.
pub async fn fill(database: &Database) {
    // Installs Rowcast.
    database.relay().await.end().await;
    database.sql(SCHEMA).await;
    database.sql(SEED).await;
}

/// The same with people: who they are comes from tokens. Gives the address of the login that
/// requests run as, too.
pub async fn members() -> (Database, String) {
    let database = tables().await;
    database.sql(ROLES).await;
    database.sql(CARDS).await;
    let api = database.login("dialect_api");
    (database, api)
}

/// Runs every line and tells all that are wrong.
async fn run(table: &str, seed: &str, database: &Database, relay: &Relay) {
    let client: Client = database.client().await;
    let mut clean = true;
    let mut wrong = Vec::new();
    let mut statuses: BTreeMap<u16, usize> = BTreeMap::new();
    let chosen = std::env::var("ROWCAST_CASES").unwrap_or_default();
    let lines = table.lines().enumerate().map(|(at, text)| (at + 1, text));
    let lines = lines.filter(|(_, text)| !text.is_empty() && !text.starts_with('#'));
    for (line, text) in lines {
        let case = Case::read(line, text);
        if !case.continues && !clean {
            client.batch_execute(seed).await.unwrap();
            clean = true;
        }
        let answer = case.answer(relay).await;
        clean &= matches!(case.method, "GET" | "HEAD");
        *statuses.entry(case.status).or_default() += 1;
        let found = case.judge(&answer);
        if !found.is_empty() && text.contains(&chosen) {
            wrong.push(format!("line {line}: {text}{found}"));
        }
    }
    let cases: usize = statuses.values().sum();
    println!("{cases} cases: {statuses:?}");
    assert!(
        wrong.is_empty(),
        "{} of {cases} cases:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[tokio::test]
async fn every_request_of_the_table_is_answered_as_its_line_says() {
    let database = tables().await;
    let relay = Relay::start(&database, &SERVED).await;
    run(include_str!("dialect/cases.txt"), SEED, &database, &relay).await;
}

#[tokio::test]
async fn who_asks_decides_what_every_line_of_the_table_of_identities_says() {
    let (database, api) = members().await;
    let mut arguments = vec!["--api-url", &api, "--anon-role", "dialect_anon"];
    arguments.extend(["--jwt-secret", SECRET]);
    arguments.extend(SERVED);
    let relay = Relay::start(&database, &arguments).await;
    let seed = format!("{SEED};{CARDS}");
    run(
        include_str!("dialect/identity.txt"),
        &seed,
        &database,
        &relay,
    )
    .await;
}
