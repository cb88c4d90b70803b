//! The two ways to know what a view sees are one: every filter that row images decide is streamed a
//! second time in words that only PostgreSQL understands, and both screens show what a read gives,
//! after every transaction of a random history. Filters that images can never decide are held to the
//! same.
//!
//! `ROWCAST_SEED` sets the seed, which is printed, and `ROWCAST_SIGHTS` the number of histories of
//! one filter and one transaction.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::Value;

use crate::agree::{COLUMNS, condition, literal};
use crate::harness::{DEADLINE, Database, Relay, Screen, Stream, database, seed};

/// Histories in the short form.
const HISTORIES: usize = 1_400;
/// Filters of a round that images decide.
const FILTERS: usize = 40;
/// Transactions of a round.
const TRANSACTIONS: usize = 50;

/// Columns that images show and cannot compare.
const MORE: [(&str, &str, &[&str]); 6] = [
    ("ai", "int[]", &["{}", "{1}", "{1,2,NULL}", "[2:3]={1,2}"]),
    ("at", "text[]", &["{}", "{a,\"b,c\"}", "{\"\",NULL}"]),
    (
        "js",
        "json",
        &[
            "null",
            "{\"k\":\"x\",\"k\":\"y\"}",
            "[1, 2]",
            "\"a\"",
            "{\"k\": {\"l\": 7}}",
        ],
    ),
    (
        "jb",
        "jsonb",
        &[
            "null",
            "{\"k\":\"x\"}",
            "{\"k\":1}",
            "[1, 2]",
            "{\"k\": {\"l\": 7}}",
        ],
    ),
    ("rg", "int4range", &["empty", "[1,5)", "(,3]", "[7,)"]),
    ("tx", "text", &["fat cats ate rats", "a cat", "b", ""]),
];

/// Tautologies that row images do not decide.
const ASIDE: [&str; 4] = [
    "or=(id.is.null,id.not.is.null)",
    "and=(or(id.is.null,id.gte.0,id.lt.0))",
    "not.and=(id.is.null,id.gt.0)",
    "tx=not.eq(any).{never,ever}",
];

/// Filters that images can never decide.
const NEVER: [&str; 40] = [
    "u=like.a*",
    "u=ilike.*B*",
    "u=not.ilike.*%C3%A9*",
    "u=match.^a",
    "u=imatch.B$",
    "u=gt.a",
    "u=lte.B",
    "u=not.gte.%C3%A9",
    "u=like(any).{a*,B*}",
    "u=ilike(all).{*a*,*b*}",
    "e=gt.sad",
    "e=lte.ok",
    "ai=cs.{1}",
    "ai=cd.{1,2,3}",
    "ai=ov.{2}",
    "ai=eq.{1}",
    "at=cs.{a}",
    "at=is.null",
    "js->>k=eq.y",
    "js->k->>l=eq.7",
    "js->>k=is.null",
    "js=is.null",
    "js=not.is.null",
    "jb=is.null",
    "jb->k=eq.1",
    "jb->>k=in.(x,1)",
    "jb=cs.{\"k\":1}",
    "rg=ov.[2,4)",
    "rg=sl.[6,8)",
    "rg=adj.[5,7)",
    "tx=fts(english).cat",
    "tx=plfts(english).fat%20rat",
    "tx=wfts(simple).cat%20or%20b",
    "z=gt.now",
    "d=lte.today",
    "d=not.gt.tomorrow",
    "or=(i.eq.0,u.like.a*,and(o.is.true,f.gt.0))",
    "or=(n.eq.NaN,not.and(b.gt.0,s.lt.5))&order=u.desc.nullslast",
    "i=isdistinct.7",
    "select=id,n::text,t:u,js->k&n=gt.0&o=not.is.unknown",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_and_postgres_decide_alike() {
    let histories = std::env::var("ROWCAST_SIGHTS").ok();
    let histories = histories.map_or(HISTORIES, |text| text.parse().unwrap());
    let mut random = Rng::with_seed(seed());
    let database = collated(&database().await).await;
    let relay = database.relay().await;
    let columns: String = columns().fold(String::new(), |mut list, (name, kind, _)| {
        write!(list, ", {name} {kind}").unwrap();
        list
    });
    database
        .sql(&format!(
            "create type mood as enum ('sad', 'ok', 'happy');
             create domain short as text collate \"C\" check (length(value) < 3);
             create table many (id int primary key{columns});
             select rowcast.watch('many')"
        ))
        .await;
    let mut seen = Seen::default();
    for round in 0..histories.div_ceil(FILTERS * TRANSACTIONS) {
        let mut screens = decided(&database, &relay, &mut random, round == 0).await;
        for filter in NEVER {
            screens.push(Shown::of(&relay, &encoded(filter)).await);
        }
        for _ in 0..TRANSACTIONS {
            let statements: Vec<_> = (0..random.usize(1..4))
                .map(|_| statement(&mut random))
                .collect();
            let xid = database.commit(&statements.join("; ")).await;
            all_agree(&relay, &mut screens, &mut seen, &statements).await;
            seen.last = xid;
        }
        // What is told too much comes before a token that covers the last transaction.
        let ended = screens.iter_mut().map(async |shown| {
            while !shown.covered(&seen.last) {
                shown.hear(Duration::from_secs(7)).await;
            }
        });
        futures::future::join_all(ended).await;
        all_agree(&relay, &mut screens, &mut seen, &[]).await;
    }
    eprintln!("{seen:?}");
    assert!(seen.changed > histories / 4, "{seen:?}");
    assert!(seen.populated > histories / 2, "{seen:?}");
}

#[derive(Debug, Default)]
struct Seen {
    /// Screens that a transaction changed.
    changed: usize,
    /// Screens with rows after a transaction.
    populated: usize,
    last: String,
}

/// A database that orders text as people do, where this PostgreSQL knows how.
async fn collated(plain: &Database) -> Database {
    let (front, name) = plain.url.split_once("dbname=").unwrap();
    let client = plain.client().await;
    let create = format!(
        "create database {name}_icu template template0 encoding 'UTF8' locale_provider icu icu_locale 'en'"
    );
    if let Err(error) = client.batch_execute(&create).await {
        eprintln!("text is byte-ordered here: {error:?}");
        return plain.clone();
    }
    Database {
        url: format!("{front}dbname={name}_icu"),
    }
}

/// As a URL may have it.
fn encoded(filter: &str) -> String {
    filter.chars().fold(String::new(), |mut text, letter| {
        match letter {
            '{' | '}' | '"' | '^' | '>' => write!(text, "%{:02X}", u32::from(letter)).unwrap(),
            plain => text.push(plain),
        }
        text
    })
}

fn columns() -> impl Iterator<Item = (&'static str, &'static str, &'static [&'static str])> {
    COLUMNS.into_iter().chain(MORE)
}

/// Screens of random filters, each in two words.
async fn decided(database: &Database, relay: &Relay, random: &mut Rng, first: bool) -> Vec<Shown> {
    let mut filters = Vec::new();
    for place in 0..FILTERS {
        let (column, _, values) = COLUMNS[place % COLUMNS.len()];
        let orders = !matches!(column, "u" | "v" | "c" | "e");
        let operators: &[&str] = if orders {
            &["eq", "neq", "gt", "gte", "lt", "lte", "in", "is"]
        } else {
            &["eq", "neq", "in", "is"]
        };
        let operator = operators[random.usize(..operators.len())];
        let mut filter = condition(random, column, values, operator);
        if random.u8(..4) == 0 {
            let (column, _, values) = COLUMNS[random.usize(..COLUMNS.len())];
            filter = format!("{filter}&{}", condition(random, column, values, "neq"));
        }
        filters.push(filter);
    }
    let mut screens = Vec::new();
    for filter in &filters {
        screens.push(Shown::of(relay, filter).await);
    }
    let asking = "select count(*)::text from pg_stat_activity where application_name = 'rowcast asking' \
                  and datname = current_database()";
    if first {
        assert_eq!(database.one(asking).await, "0", "images decide them all");
    }
    for filter in &filters {
        let aside = encoded(ASIDE[random.usize(..ASIDE.len())]);
        screens.push(Shown::of(relay, &format!("{filter}&{aside}")).await);
    }
    assert_ne!(database.one(asking).await, "0", "PostgreSQL is asked");
    screens
}

/// Every screen shows what a read of its URL gives now.
async fn all_agree(relay: &Relay, screens: &mut [Shown], seen: &mut Seen, what: &[String]) {
    let each = screens.iter_mut().map(async |shown| {
        let rows = read(relay, &shown.filter).await;
        let before = shown.screen.rows.clone();
        let begun = Instant::now();
        while !shown.screen.complete || shown.screen.rows != rows {
            shown.hear(Duration::from_millis(500)).await;
            assert!(
                begun.elapsed() < DEADLINE,
                "{} shows {:?} and should {rows:?} after {what:?}",
                shown.filter,
                shown.screen.rows
            );
        }
        (before != rows, !rows.is_empty())
    });
    for (changed, populated) in futures::future::join_all(each).await {
        seen.changed += usize::from(changed);
        seen.populated += usize::from(populated);
    }
}

async fn read(relay: &Relay, filter: &str) -> BTreeMap<String, Value> {
    let answer = relay.get(&format!("/rest/v1/many?{filter}")).await;
    assert_eq!(answer.status, 200, "{filter}: {}", answer.body);
    let rows = answer.json();
    let rows = rows.as_array().unwrap().iter();
    rows.map(|row| (row["id"].to_string(), row.clone()))
        .collect()
}

struct Shown {
    filter: String,
    stream: Stream,
    screen: Screen,
    id: String,
}

impl Shown {
    async fn of(relay: &Relay, filter: &str) -> Self {
        let stream = relay.stream(&format!("/rest/v1/many?{filter}")).await;
        assert_eq!(stream.status, 200, "{filter}");
        let mut shown = Self {
            filter: filter.to_owned(),
            stream,
            screen: Screen::default(),
            id: String::new(),
        };
        while !shown.screen.complete {
            shown.hear(DEADLINE).await;
        }
        shown
    }

    async fn hear(&mut self, patience: Duration) {
        if let Some(event) = self.stream.next_within(patience).await {
            assert!(!event.data.contains("\"error\""), "{event:?}");
            self.screen.apply(&event);
            self.id = event.id;
        }
        assert!(!self.stream.ended, "{}: the stream ended", self.filter);
    }

    fn covered(&self, xid: &str) -> bool {
        let token = self.id.parse::<rowcast::cursor::Token>();
        token.is_ok_and(|token| token.cursor.is_done(xid.parse().unwrap()))
    }
}

/// A random change of random rows.
fn statement(random: &mut Rng) -> String {
    let id = random.u32(1..25);
    match random.u8(0..10) {
        0..5 => {
            let values: Vec<_> = columns()
                .map(|(_, _, values)| literal(random, values))
                .collect();
            format!(
                "delete from many where id = {id}; insert into many values ({id}, {})",
                values.join(", ")
            )
        }
        5..9 => {
            let all: Vec<_> = columns().collect();
            let (column, _, values) = all[random.usize(0..all.len())];
            let value = literal(random, values);
            format!(
                "update many set {column} = {value} where id % 3 = {}",
                id % 3
            )
        }
        _ => format!("delete from many where id = {id}"),
    }
}
