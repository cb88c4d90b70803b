//! What a stream shows under a filter is what a read under the same filter gives: for every type,
//! decided from row images here and by PostgreSQL there.

use std::collections::BTreeMap;

use fastrand::Rng;
use serde_json::Value;

use crate::harness::{Relay, Screen, Stream, database};

/// A column, its type, and literals of it.
pub const COLUMNS: [(&str, &str, &[&str]); 20] = [
    ("i", "int", &["0", "-1", "7", "2147483647", "-2147483648"]),
    (
        "b",
        "bigint",
        &[
            "0",
            "9223372036854775807",
            "-9223372036854775808",
            "9007199254740993",
            "9007199254740992",
        ],
    ),
    ("s", "smallint", &["0", "-32768", "5"]),
    (
        "n",
        "numeric",
        &[
            "0",
            "0.00",
            "1.10",
            "1.1",
            "-1e-30",
            "123456789012345678901234567890.5",
            "NaN",
            "Infinity",
            "-Infinity",
        ],
    ),
    ("n2", "numeric(6,2)", &["0.005", "1.1", "-0.01", "9999.99"]),
    (
        "f",
        "float8",
        &[
            "0",
            "-0",
            "0.1",
            "1e308",
            "1e-320",
            "NaN",
            "Infinity",
            "-Infinity",
        ],
    ),
    (
        "g",
        "real",
        &["0", "-0", "0.1", "16777217", "NaN", "-Infinity"],
    ),
    (
        "t",
        "text collate \"C\"",
        &[
            "",
            "a",
            "B",
            "é",
            "zz",
            "a ",
            "a\nb",
            "\u{1F600}",
            "\u{ffff}",
            "\"quoted\", (x)",
            "null",
        ],
    ),
    ("u", "text", &["", "a", "B", "é", "a b", "ß"]),
    ("v", "varchar(5)", &["", "a", "abcde", "é"]),
    ("c", "char(5)", &["", "a", "ab", "abcde", "é"]),
    ("o", "boolean", &["true", "false", "t", "off"]),
    (
        "w",
        "uuid",
        &[
            "00000000-0000-0000-0000-000000000000",
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
        ],
    ),
    ("e", "mood", &["sad", "ok", "happy"]),
    (
        "d",
        "date",
        &[
            "2026-11-23",
            "0044-03-15 BC",
            "infinity",
            "-infinity",
            "12026-01-01",
            "0001-01-01",
        ],
    ),
    (
        "z",
        "timestamptz",
        &[
            "2026-11-23 12:00:00.5+00",
            "2026-11-23 14:00:00.5+02",
            "2026-11-23T12:00:00.500001Z",
            "4000-01-01 BC",
            "infinity",
            "-infinity",
        ],
    ),
    (
        "p",
        "timestamp",
        &[
            "2026-11-23 12:00:00",
            "2026-11-23 12:00:00.000001",
            "infinity",
            "0044-03-15 12:00 BC",
        ],
    ),
    (
        "m",
        "time",
        &["00:00", "12:30:00.5", "23:59:59.999999", "24:00"],
    ),
    ("y", "bytea", &["\\x", "\\x00", "\\xff00", "\\x0a", "abc"]),
    ("k", "short", &["a", "b", "zz"]),
];

pub fn literal(random: &mut Rng, values: &[&str]) -> String {
    if random.u8(0..6) == 0 {
        "null".into()
    } else {
        let value = values[random.usize(0..values.len())];
        format!("'{}'", value.replace('\'', "''"))
    }
}

fn operand(random: &mut Rng, values: &[&str]) -> String {
    values[random.usize(0..values.len())].to_owned()
}

/// A condition of the URL dialect on this column.
pub fn condition(random: &mut Rng, column: &str, values: &[&str], operator: &str) -> String {
    let not = if random.u8(0..5) == 0 { "not." } else { "" };
    let operand = match operator {
        "is" => (if random.bool() { "null" } else { "not_null" }).to_owned(),
        "in" => {
            let quoted =
                |value: String| format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""));
            let members: Vec<_> = (0..random.usize(1..4))
                .map(|_| quoted(operand(random, values)))
                .collect();
            format!("({})", members.join(","))
        }
        _ => operand(random, values),
    };
    let value: String =
        form_urlencoded::byte_serialize(format!("{not}{operator}.{operand}").as_bytes()).collect();
    format!("{column}={value}")
}

/// A random change of random rows.
fn statement(random: &mut Rng) -> String {
    let id = random.u32(1..25);
    match random.u8(0..10) {
        0..4 => {
            let values: Vec<_> = COLUMNS
                .iter()
                .map(|(_, _, values)| literal(random, values))
                .collect();
            format!(
                "delete from many where id = {id}; insert into many values ({id}, {})",
                values.join(", ")
            )
        }
        4..9 => {
            let (column, _, values) = COLUMNS[random.usize(0..COLUMNS.len())];
            format!(
                "update many set {column} = {} where id % 3 = {}",
                literal(random, values),
                id % 3
            )
        }
        _ => format!("delete from many where id = {id}"),
    }
}

async fn shown(relay: &Relay, filter: &str) -> Option<(Stream, Screen)> {
    let mut stream = relay.stream(&format!("/rest/v1/many?{filter}")).await;
    if stream.status == 400 {
        return None;
    }
    let mut screen = Screen::default();
    screen.follow(&mut stream, |_| true).await;
    Some((stream, screen))
}

async fn read(relay: &Relay, filter: &str) -> BTreeMap<String, Value> {
    let answer = relay.get(&format!("/rest/v1/many?{filter}")).await;
    assert_eq!(answer.status, 200, "{filter}: {}", answer.body);
    let rows = answer.json();
    rows.as_array()
        .unwrap()
        .iter()
        .map(|row| (row["id"].to_string(), row.clone()))
        .collect()
}

#[tokio::test]
async fn streams_and_reads_agree_on_every_type_and_operator() {
    let seed = 20_261_123;
    let mut random = Rng::with_seed(seed);
    let database = database().await;
    let relay = database.relay().await;
    let columns: Vec<_> = COLUMNS
        .iter()
        .map(|(name, kind, _)| format!("{name} {kind}"))
        .collect();
    database
        .sql(&format!(
            "create type mood as enum ('sad', 'ok', 'happy');
             create domain short as text collate \"C\" check (length(value) < 3);
             create table many (id int primary key, {});
             select rowcast.watch('many')",
            columns.join(", ")
        ))
        .await;
    for _ in 0..15 {
        database.sql(&statement(&mut random)).await;
    }

    let mut open = Vec::new();
    let mut refused = Vec::new();
    for (column, _, values) in COLUMNS {
        for operator in [
            "eq", "neq", "gt", "gte", "lt", "lte", "in", "is", "eq", "lt",
        ] {
            let mut filter = condition(&mut random, column, values, operator);
            if random.u8(0..4) == 0 {
                let (column, _, values) = COLUMNS[random.usize(0..COLUMNS.len())];
                filter = format!("{filter}&{}", condition(&mut random, column, values, "neq"));
            }
            match shown(&relay, &filter).await {
                Some((stream, screen)) => {
                    assert_eq!(
                        screen.rows,
                        read(&relay, &filter).await,
                        "snapshot of {filter}"
                    );
                    open.push((filter, stream, screen));
                }
                None => refused.push(filter),
            }
        }
    }
    // Order of an enum, which only its definition knows; in this cluster all text is byte-ordered.
    assert!(
        refused.iter().all(|filter| filter.starts_with("e=")),
        "{refused:?}"
    );
    assert!(refused.len() <= 6, "{refused:?}");
    assert_eq!(open.len() + refused.len(), 200);

    for _ in 0..60 {
        let statements: Vec<_> = (0..random.usize(1..4))
            .map(|_| statement(&mut random))
            .collect();
        let zone = ["UTC", "Asia/Kathmandu", "America/St_Johns"][random.usize(0..3)];
        let statements = statements.join("; ");
        let statements = format!("set local timezone = '{zone}'; {statements}");
        database.commit(&statements).await;
    }
    let last = database
        .commit("update many set id = id where id < 0; select pg_current_xact_id()")
        .await;
    let reached = open
        .into_iter()
        .map(async |(filter, mut stream, mut screen)| {
            screen.reach(&mut stream, &last).await;
            (filter, screen)
        });
    let mut populated = 0;
    for (filter, screen) in futures::future::join_all(reached).await {
        let rows = read(&relay, &filter).await;
        populated += usize::from(!rows.is_empty());
        assert_eq!(screen.rows, rows, "{filter} (seed {seed})");
    }
    assert!(populated > 80, "{populated}");
}

/// PostgreSQL writes `regclass` and the like as the reader's `search_path` has the name, also inside of arrays,
/// composites and domains. The trigger's has no schema of anybody's.
#[tokio::test]
async fn names_of_tables_and_types_are_shown_as_reads_show_them_wherever_they_stand() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create type mood as enum ('sad', 'ok');
             create type pair as (a int, b regtype);
             create domain owned as regclass;
             create domain pairs as pair[];
             create table many (id int primary key, a regclass, b regclass[], c pair, d owned, e pairs);
             select rowcast.watch('many')",
        )
        .await;
    for column in ["a", "b", "c", "d", "e"] {
        let path = format!("/rest/v1/many?select={column}");
        let (mut stream, mut screen) = relay.shown(&path).await;
        let insert = "insert into many values (1, 'many', '{many,pg_class}', '(1,mood)', 'many', '{\"(2,mood)\"}')";
        for sql in [insert, "delete from many"] {
            let txid = database.commit(sql).await;
            screen.reach(&mut stream, &txid).await;
            let read = relay.get(&path).await.json();
            let shown: Vec<_> = screen.rows.values().cloned().collect();
            assert_eq!(Value::from(shown), read, "{column}: {sql}");
        }
    }
}
