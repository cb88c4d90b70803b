//! Sixteen writers: eight through the relays, six directly, two by psql; and a marker four times a
//! second. Each transaction leaves its own id in `hc_tx`, so that what became of it can be told
//! whatever its writer heard.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::record::{Intent, Outcome, Way, now};
use crate::tables::{ACCOUNTS, DOCS, GHOST, LISTS, REGISTERS, TENANTS, canary};
use crate::world::{ask, http};

/// Errors that writers do to each other: serialization, deadlock, unique, foreign key, and a lock
/// that a third one holds for longer than a request waits.
const CONCURRENCY: [&str; 5] = ["40001", "40P01", "23505", "23503", "55P03"];

/// What a relay says that has more to do than it can: every connection of its pool is in use.
const BUSY: &str = "PGRST003";

/// What all writers share.
#[derive(Clone)]
pub struct Writing {
    pub url: String,
    pub doors: Vec<SocketAddr>,
    pub token: String,
    pub intents: Arc<Mutex<Vec<Intent>>>,
    pub stop: watch::Receiver<bool>,
    pub asynchronous: bool,
    /// Mean pause between two transactions of a writer.
    pub pause: Duration,
}

impl Writing {
    fn goes_on(&self) -> bool {
        !*self.stop.borrow()
    }

    fn keep(&self, intent: Intent) {
        self.intents.lock().unwrap().push(intent);
    }

    async fn pause(&self, random: &mut fastrand::Rng) {
        let pause = self.pause.mul_f64(random.f64() * 2.0);
        let mut stop = self.stop.clone();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
}

pub struct Writer {
    pub number: u32,
    pub way: Way,
    pub random: fastrand::Rng,
    pub writing: Writing,
    pub count: i64,
}

impl Writer {
    pub async fn run(mut self) {
        match self.way {
            Way::Api => self.by_api().await,
            Way::Direct => self.directly().await,
            Way::Psql => self.by_psql().await,
            Way::Marker => self.mark().await,
        }
    }

    fn begin(&mut self) -> Intent {
        self.count += 1;
        Intent {
            tx: i64::from(self.number + 1) * 1_000_000 + self.count,
            writer: self.number,
            way: self.way,
            asynchronous: self.writing.asynchronous && self.way == Way::Direct,
            begun: now(),
            ended: 0,
            outcome: Outcome::RolledBack,
        }
    }

    fn end(&self, mut intent: Intent, outcome: Outcome) {
        intent.ended = now();
        intent.outcome = outcome;
        self.writing.keep(intent);
    }

    /// A connection; `None` when it is time to stop.
    async fn connect(&self) -> Option<Client> {
        while self.writing.goes_on() {
            let patience = Duration::from_secs(5);
            let connecting = tokio_postgres::connect(&self.writing.url, NoTls);
            if let Ok(Ok((client, connection))) = tokio::time::timeout(patience, connecting).await {
                tokio::spawn(connection);
                let commit = if self.writing.asynchronous && self.way == Way::Direct {
                    "off"
                } else {
                    "on"
                };
                let settings = format!("set synchronous_commit = {commit}");
                if client.batch_execute(&settings).await.is_ok() {
                    return Some(client);
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        None
    }

    // ---- directly

    async fn directly(&mut self) {
        while let Some(client) = self.connect().await {
            while self.writing.goes_on() && !client.is_closed() {
                let intent = self.begin();
                let outcome = self.transaction(&client, intent.tx).await;
                let lost = matches!(outcome, Outcome::Unknown(_));
                self.end(intent, outcome);
                if lost {
                    break;
                }
                let writing = self.writing.clone();
                writing.pause(&mut self.random).await;
            }
        }
    }

    async fn transaction(&mut self, client: &Client, tx: i64) -> Outcome {
        let level = match self.random.u8(..10) {
            0..=7 => "read committed",
            8 => "repeatable read",
            _ => "serializable",
        };
        let rolls_back = self.random.u8(..100) < 10;
        let holds = self.random.u8(..100) < 2;
        let mut statements = vec![format!("begin isolation level {level}")];
        let sign = format!("insert into hc_tx values ({tx}, {})", self.number);
        let first = self.random.bool();
        if first {
            statements.push(sign.clone());
        }
        for number in 0..self.random.u8(1..4) {
            if self.random.u8(..100) < 8 {
                statements.push("savepoint s".into());
                statements.extend(act(&mut self.random, GHOST + tx * 10 + i64::from(number)));
                statements.push("rollback to s".into());
            }
            statements.extend(act(&mut self.random, tx * 10 + i64::from(number)));
        }
        if !first {
            statements.push(sign);
        }
        // What is written is signed by the transaction and not by the place in it.
        for statement in statements.iter().take(statements.len()) {
            if let Err(error) = client.batch_execute(statement).await {
                return undone(client, &error).await;
            }
        }
        if holds {
            let pause = Duration::from_millis(self.random.u64(1000..6000));
            let mut stop = self.writing.stop.clone();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
        }
        if rolls_back {
            return match client.batch_execute("rollback").await {
                Ok(()) => Outcome::RolledBack,
                Err(error) => undone(client, &error).await,
            };
        }
        let xid = match client
            .simple_query("select pg_current_xact_id()::text")
            .await
        {
            Ok(messages) => first_of(&messages).and_then(|text| text.parse().ok()),
            Err(error) => return undone(client, &error).await,
        };
        match client.batch_execute("commit").await {
            Ok(()) => Outcome::Committed(xid),
            Err(error) => undone(client, &error).await,
        }
    }

    // ---- the marker

    async fn mark(&mut self) {
        while let Some(client) = self.connect().await {
            while self.writing.goes_on() && !client.is_closed() {
                let intent = self.begin();
                let tx = intent.tx;
                let sql = format!(
                    "begin; insert into hc_tx values ({tx}, {}); update hc_mark set n = n + 1, tx = {tx} where k = 0; \
                     select pg_current_xact_id()::text; commit",
                    self.number
                );
                let outcome = match client.simple_query(&sql).await {
                    Ok(messages) => {
                        let xid = first_of(&messages).and_then(|text| text.parse().ok());
                        Outcome::Committed(xid)
                    }
                    Err(error) => undone(&client, &error).await,
                };
                self.end(intent, outcome);
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        }
    }

    // ---- through a relay

    async fn by_api(&mut self) {
        let http = http();
        let authorization = format!("Bearer {}", self.writing.token);
        while self.writing.goes_on() {
            let intent = self.begin();
            let door = self.writing.doors[self.random.usize(..self.writing.doors.len())];
            let url = format!("http://{door}/rest/v1/");
            let body = Value::Array(requests(&mut self.random, intent.tx, self.number));
            let headers = [
                ("authorization", authorization.as_str()),
                ("content-type", "application/json"),
            ];
            let patience = Duration::from_secs(15);
            let answer = ask(
                &http,
                Method::POST,
                &url,
                &headers,
                body.to_string(),
                patience,
            )
            .await;
            let outcome = match answer {
                Ok((200, txid, _)) => Outcome::Committed(txid.parse().ok()),
                Ok((status, _, text)) => refused(status, &text),
                Err(error) => Outcome::Unknown(error),
            };
            let slows = !matches!(outcome, Outcome::Committed(_));
            self.end(intent, outcome);
            let writing = self.writing.clone();
            writing.pause(&mut self.random).await;
            if slows {
                writing.pause(&mut self.random).await;
            }
        }
    }

    // ---- by psql

    async fn by_psql(&mut self) {
        while self.writing.goes_on() {
            let intent = self.begin();
            let script = script(&mut self.random, intent.tx, self.number);
            let outcome = psql(&self.writing.url, &script).await;
            self.end(intent, outcome);
            let mut writing = self.writing.clone();
            writing.pause *= 10;
            writing.pause(&mut self.random).await;
        }
    }
}

async fn psql(url: &str, script: &str) -> Outcome {
    let mut child = tokio::process::Command::new("psql")
        .args(["-X", "-q", "-d", url, "-v", "ON_ERROR_STOP=1"])
        .args(["-v", "VERBOSITY=verbose"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let script = script.to_owned();
    let feeding = tokio::spawn(async move {
        let _it_may_have_ended = input.write_all(script.as_bytes()).await;
    });
    let output = child.wait_with_output().await.unwrap();
    let _fed = feeding.await;
    if output.status.success() {
        return Outcome::Committed(None);
    }
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let by_concurrency = CONCURRENCY
        .iter()
        .any(|code| told.contains(&format!("ERROR:  {code}")));
    if by_concurrency {
        Outcome::Failed {
            why: told,
            by_concurrency,
        }
    } else {
        Outcome::Unknown(told)
    }
}

fn first_of(messages: &[SimpleQueryMessage]) -> Option<&str> {
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    })
}

/// What an error means for the transaction.
async fn undone(client: &Client, error: &tokio_postgres::Error) -> Outcome {
    let Some(code) = error.code() else {
        return Outcome::Unknown(format!("{error:?}"));
    };
    // Shutdown and crash end the connection too, and a commit may have come before.
    if code.code().starts_with("57P") || client.batch_execute("rollback").await.is_err() {
        return Outcome::Unknown(format!("{error:?}"));
    }
    Outcome::Failed {
        why: format!("{error:?}"),
        by_concurrency: CONCURRENCY.contains(&code.code()),
    }
}

/// What a status of the relay means for the transaction.
fn refused(status: u16, text: &str) -> Outcome {
    let told: Value = serde_json::from_str(text).unwrap_or_default();
    let code = told["code"].as_str().unwrap_or_default();
    let why = format!("{status} {text}");
    // A commit that was sent and not answered, and an answer from no relay.
    if code == "RCR02" || code.is_empty() {
        return Outcome::Unknown(why);
    }
    Outcome::Failed {
        why,
        by_concurrency: code == BUSY || CONCURRENCY.contains(&code),
    }
}

// ---- what is written

fn transaction_of(id: i64) -> i64 {
    if id >= GHOST { id } else { id / 10 }
}

/// One thing that programs do. `id` is the transaction's with a place in it.
fn act(r: &mut fastrand::Rng, id: i64) -> Vec<String> {
    let tx = transaction_of(id);
    let life = r.u32(..30);
    match r.u8(..100) {
        0..=24 => vec![format!(
            "update hc_reg set v = v + 1, tx = {tx} where k = {}",
            r.u32(..REGISTERS)
        )],
        25..=29 => vec![format!(
            "update hc_reg set v = v + 1, tx = {tx} where k % 6 = {}",
            r.u32(..6)
        )],
        30..=44 => transfer(r, id, tx),
        45..=54 => vec![format!(
            "update hc_list set elems = elems || {tx}::bigint, tx = {tx} where k = {}",
            r.u32(..LISTS)
        )],
        55..=63 => vec![format!(
            "insert into hc_life values ({life}, 0, {tx}) on conflict (k) do update set gen = hc_life.gen + 1, tx = {tx}"
        )],
        64..=67 => vec![format!(
            "delete from hc_life where k between {life} and {life} + 2"
        )],
        68..=69 => vec![
            format!("delete from hc_life where k = {life}"),
            format!("insert into hc_life values ({life}, 100, {tx}) on conflict do nothing"),
        ],
        70..=73 => vec![format!(
            "update hc_life set k = k + 100, gen = gen + 1, tx = {tx} where k = {life} \
             and not exists (select from hc_life where k = {life} + 100)"
        )],
        74 => vec!["truncate hc_life".into()],
        75..=82 => family(r, id, tx),
        83..=92 => document(r, tx),
        _ => vec![big(r, tx)],
    }
}

fn transfer(r: &mut fastrand::Rng, id: i64, tx: i64) -> Vec<String> {
    let (a, amount) = (r.u32(..ACCOUNTS), r.i32(1..20));
    let b = (a + r.u32(1..ACCOUNTS)) % ACCOUNTS;
    let change =
        |k, by: i32| format!("update hc_acct set bal = bal + ({by}), tx = {tx} where k = {k}");
    vec![
        change(a, -amount),
        format!("insert into hc_xfer values ({id}, {a}, {b}, {amount}, {tx})"),
        change(b, amount),
    ]
}

fn family(r: &mut fastrand::Rng, id: i64, tx: i64) -> Vec<String> {
    let (k, free) = (r.u32(..8), r.u32(8..60));
    match r.u8(..5) {
        0 | 1 => vec![
            format!(
                "insert into hc_parent values ({k}, {tx}) on conflict (k) do update set tx = {tx}"
            ),
            format!(
                "insert into hc_child select {id} * 10 + g, {k}, {tx} from generate_series(1, 3) g"
            ),
        ],
        2 => vec![format!(
            "update hc_parent set k = {free}, tx = {tx} where k = {k} and not exists (select from hc_parent where k = {free})"
        )],
        3 => vec![format!("delete from hc_parent where k = {k} or k > 40")],
        _ => vec![format!("update hc_child set tx = {tx} where parent = {k}")],
    }
}

/// Every fourth document holds its tenant's canary and is never shared.
fn document(r: &mut fastrand::Rng, tx: i64) -> Vec<String> {
    let id = r.u32(..DOCS);
    let owner = id % TENANTS;
    let is_secret = id.is_multiple_of(4);
    let body = if is_secret {
        format!("{} {tx}", canary(owner))
    } else {
        format!("open {tx}")
    };
    let other = (owner + 1 + r.u32(..TENANTS - 1)) % TENANTS;
    let put = format!(
        "insert into hc_doc values ({id}, 't{owner}', '{body}', {tx}) \
         on conflict (id) do update set body = excluded.body, tx = {tx}"
    );
    match r.u8(..10) {
        0..=4 => vec![put],
        5 => vec![format!("delete from hc_doc where id = {id}")],
        6 | 7 if !is_secret => vec![format!(
            "insert into hc_share values ({id}, 't{other}', {tx}) on conflict do nothing"
        )],
        8 if !is_secret => vec![
            put,
            format!("delete from hc_share where doc = {id} and tenant = 't{other}'"),
        ],
        _ => vec![format!("delete from hc_share where doc = {id}")],
    }
}

/// Text that has broken event streams before, in sizes that have broken logs.
fn big(r: &mut fastrand::Rng, tx: i64) -> String {
    const HOSTILE: [&str; 8] = [
        "\n\ndata: {\"x\":1}\n\n",
        "\r\nid: 0\r\n\r\n",
        "\u{2028}\u{2029}\u{feff}",
        "event: control\ndata: {\"upToDate\":true}\n\n",
        "\\u0000 \\\" \\\\ ''",
        "\u{1f980}\u{202e}\t\u{7f}\u{1}",
        "</script><!--",
        ": \r retry: 0\r",
    ];
    let text = HOSTILE[r.usize(..HOSTILE.len())].replace('\'', "''");
    let size = match r.u8(..100) {
        0..=79 => r.u32(1_000..20_000),
        80..=93 => r.u32(20_000..200_000),
        94..=97 => r.u32(280_000..400_000),
        _ => 1_300_000,
    };
    let k = r.u32(..6);
    format!(
        "insert into hc_big values ({k}, '{text}' || repeat('{}', {size}), {tx}) \
         on conflict (k) do update set body = excluded.body, tx = {tx}",
        char::from(r.u8(b'a'..=b'z'))
    )
}

/// The same through a relay: several requests as one transaction.
fn requests(r: &mut fastrand::Rng, tx: i64, writer: u32) -> Vec<Value> {
    let call = |name: &str, body: Value| json!({"method": "POST", "path": format!("rpc/{name}"), "body": body});
    let mut requests =
        vec![json!({"method": "POST", "path": "hc_tx", "body": {"tx": tx, "writer": writer}})];
    let number = r.u8(1..4);
    for place in 0..number {
        let life = r.u32(200..230);
        requests.push(match r.u8(..10) {
            0..=3 => call("hc_bump", json!({"k": r.u32(..REGISTERS), "tx": tx})),
            // Its transfer is named for the transaction, so there can be one.
            4 if place == 0 => {
                let a = r.u32(..ACCOUNTS);
                let b = (a + r.u32(1..ACCOUNTS)) % ACCOUNTS;
                call("hc_move", json!({"a": a, "b": b, "amt": r.u32(1..20), "tx": tx}))
            }
            4 | 5 => call("hc_append", json!({"k": r.u32(..LISTS), "tx": tx})),
            6 | 7 => json!({"method": "POST", "path": "hc_life", "headers": {"prefer": "resolution=merge-duplicates"},
                "body": {"k": life, "gen": place, "tx": tx}}),
            8 => json!({"method": "DELETE", "path": format!("hc_life?k=eq.{life}")}),
            _ => json!({"method": "PATCH", "path": format!("hc_life?k=lt.{life}&k=gte.200"), "body": {"tx": tx}}),
        });
    }
    if r.bool() {
        // Whoever signs last has written before.
        requests.rotate_left(1);
    }
    requests
}

fn script(r: &mut fastrand::Rng, tx: i64, writer: u32) -> String {
    let mut script = format!("begin;\ninsert into hc_tx values ({tx}, {writer});\n");
    match r.u8(..4) {
        0 => {
            let k = r.u32(60..70);
            let _infallible = write!(
                script,
                "insert into hc_parent values ({k}, {tx}) on conflict (k) do nothing;\ncopy hc_child (id, parent, tx) from stdin;\n"
            );
            for place in 0..r.u32(1..30) {
                let _infallible = writeln!(script, "{}\t{k}\t{tx}", tx * 1000 + i64::from(place));
            }
            script += "\\.\n";
        }
        1 => {
            let _infallible = writeln!(
                script,
                "update hc_reg set v = v + 1, tx = {tx} where k >= {};",
                r.u32(..REGISTERS)
            );
        }
        2 => {
            let k = r.u32(..26);
            let _infallible = writeln!(
                script,
                "merge into hc_life l using (select g k from generate_series({k}, {k} + 4) g) n on l.k = n.k \
                 when matched and l.gen > 6 then delete when matched then update set gen = l.gen + 1, tx = {tx} \
                 when not matched then insert values (n.k, 0, {tx});"
            );
        }
        _ => {
            let _infallible = writeln!(
                script,
                "delete from hc_parent where k >= {0};\nupdate hc_parent set k = k + 300, tx = {tx} where k = {1} \
                 and not exists (select from hc_parent where k = {1} + 300);",
                r.u32(60..75),
                r.u32(..8)
            );
        }
    }
    script += "commit;\n";
    script
}
