//! Whatever is asked, PostgreSQL is sent statements of few shapes, with no value in their text; it
//! finds none of them wrongly written, and no request is answered by a 5xx.
//!
//! Random requests, by the dialect's grammar and off it, go to the running relay, and PostgreSQL's
//! own log tells which statements came of them. A statement is cut into phrases at parentheses,
//! commas, steps of paths, `and`, `or` and the words that begin a clause; a parameter is `$`, a name that the request may choose is `x`, and all
//! else, numbers and constants too, stays as it is. What repeats makes a statement longer and no
//! new phrase, so there are few, and after half of the requests nearly all have been seen. A text
//! that came from a request would make a new phrase each time.
//!
//! `ROWCAST_SHAPES` is the number of requests, and `ROWCAST_SEED`, which is printed, replays them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use fastrand::Rng;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::dialect::{self, SERVED};
use crate::harness::{DEADLINE, Database, Relay, Server, Stream, seed};

const REQUESTS: u64 = 400;
/// More phrases than this and somebody's text is among them.
const PHRASES: usize = 400;
/// How a value is known again. A number follows.
const MARK: &str = "c4n4ry";
/// In names of members of the answer that a request makes up: they may be in a statement, as
/// quoted identifiers.
const ALIAS: &str = "al1as";

/// Statements and errors go to a file with one CSV record each.
const LOGGED: [(&str, &str); 7] = [
    ("logging_collector", "on"),
    ("log_destination", "csvlog"),
    ("log_filename", "all"),
    ("log_rotation_size", "0"),
    ("log_rotation_age", "0"),
    ("log_statement", "all"),
    ("log_parameter_max_length", "0"),
];

const TABLES: [&str; 13] = [
    "tasks",
    "boards",
    "kinds",
    "shelves",
    "counted",
    "generated",
    "loose",
    "books",
    "fixed",
    "open_tasks",
    "select",
    ODD,
    LONG,
];
const ODD: &str = "odd \"t\" 100% ☃";
const LONG: &str = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";

/// Functions and their arguments.
const FUNCTIONS: [(&str, &[&str]); 15] = [
    ("add", &["a", "b"]),
    ("greet", &["name"]),
    ("nothing", &[]),
    ("list_tasks", &[]),
    ("task", &["wanted"]),
    ("pairs", &["n"]),
    ("numbers", &[]),
    ("finish", &["wanted"]),
    ("sly", &["wanted"]),
    ("echo", &["value"]),
    ("total", &["numbers"]),
    ("out_two", &[]),
    ("odd name", &["the arg"]),
    ("over", &["a"]),
    ("seen", &[]),
];
const ARGUMENTS: [&str; 9] = [
    "a", "b", "name", "wanted", "n", "value", "numbers", "the arg", "id",
];

const OPERATORS: [&str; 29] = [
    "eq",
    "neq",
    "gt",
    "gte",
    "lt",
    "lte",
    "like",
    "ilike",
    "match",
    "imatch",
    "in",
    "is",
    "isdistinct",
    "cs",
    "cd",
    "ov",
    "sl",
    "sr",
    "nxl",
    "nxr",
    "adj",
    "fts",
    "plfts",
    "phfts",
    "wfts",
    "fts(english)",
    "wfts(simple)",
    "eq(any)",
    "like(all)",
];

const CASTS: [&str; 10] = [
    "text",
    "int",
    "numeric",
    "json",
    "jsonb",
    "date",
    "timestamptz",
    "text[]",
    "mood",
    "float8",
];

const PREFERENCES: [&str; 22] = [
    "return=minimal",
    "return=representation",
    "return=headers-only",
    "count=exact",
    "count=planned",
    "count=estimated",
    "resolution=merge-duplicates",
    "resolution=ignore-duplicates",
    "missing=default",
    "missing=null",
    "handling=strict",
    "handling=lenient",
    "max-affected=1",
    "max-affected=1000",
    "tx=rollback",
    "tx=commit",
    "timezone=Asia/Tokyo",
    "timezone=UTC",
    "timezone='; drop table boards; --",
    "banana",
    "count=",
    "return",
];

const ACCEPTED: [&str; 7] = [
    "application/json",
    "*/*",
    "application/vnd.pgrst.object+json",
    "text/csv",
    "application/vnd.pgrst.plan+json",
    "text/html",
    ";;q=\"",
];

/// Text that has hurt others.
const HOSTILE: [&str; 26] = [
    "'",
    "''",
    "\"",
    "\\",
    "\\'",
    ";",
    "--",
    "/*",
    "*/",
    "$1",
    "$$",
    "$x$",
    "%",
    "{",
    "}",
    "(",
    ")",
    ",",
    ".",
    ":",
    "\n",
    "\0",
    "\u{1F600}",
    "\u{202e}",
    "'; drop table boards; --",
    "\" or 1=1 --",
];

/// A request, before it is put on the wire.
struct Asked {
    method: &'static str,
    /// Not encoded.
    target: Vec<u8>,
    headers: Vec<(&'static str, String)>,
    body: String,
}

/// Makes requests.
struct Asker {
    random: Rng,
    /// Columns by table.
    columns: BTreeMap<String, Vec<String>>,
    count: u64,
    /// This request is to succeed, if it can.
    mild: bool,
}

impl Asker {
    fn one<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.random.usize(0..of.len())]
    }

    /// Begins another request.
    fn turn(&mut self) {
        self.count += 1;
        self.mild = self.random.bool();
    }

    /// One in this many times, in a request that need not succeed.
    fn harm(&mut self, of: u32) -> bool {
        !self.mild && self.chance(of)
    }

    /// One in this many times.
    fn chance(&mut self, of: u32) -> bool {
        self.random.u32(0..of) == 0
    }

    /// A value of some kind, most of them marked.
    fn value(&mut self) -> String {
        let marked = format!("{MARK}{}", self.count);
        if self.mild {
            return self.random.u8(..9).to_string();
        }
        match self.random.u8(0..14) {
            0..3 => self.random.i32(-3..9).to_string(),
            3 => self
                .one(&[
                    "true",
                    "null",
                    "not_null",
                    "2026-01-01",
                    "1.5",
                    "NaN",
                    "infinity",
                ])
                .to_owned(),
            4 => format!("{{{marked},\"a,{marked}\",NULL}}"),
            5 => format!("{{\"{marked}\":[1,\"{marked}\"]}}"),
            6 => format!("[{},{})", self.random.u8(..9), 9 + self.random.u8(..9)),
            7 => format!("*{marked}*"),
            8 => format!("\"{marked}, (\\\"quoted\\\")\""),
            9 | 10 => {
                let hostile = self.one(&HOSTILE);
                format!("{marked}{hostile}{marked}")
            }
            11 => self.one(&HOSTILE).to_owned(),
            _ => marked,
        }
    }

    /// A column of the table as a URL writes it, sometimes with a path, sometimes of no table.
    fn column(&mut self, table: &str) -> String {
        if self.harm(25) {
            return format!("{MARK}{}", self.count);
        }
        let columns = self
            .columns
            .get(table)
            .cloned()
            .unwrap_or_else(|| vec!["id".to_owned()]);
        let column = &columns[self.random.usize(0..columns.len())];
        let plain = column.chars().all(|c| c.is_alphanumeric() || c == '_');
        let mut written = if plain && !self.chance(6) {
            column.clone()
        } else {
            format!("\"{}\"", column.replace('\\', "\\\\").replace('"', "\\\""))
        };
        let steps = self.random.u8(0..7).saturating_sub(4);
        for _ in 0..if self.mild { steps.min(1) } else { steps } {
            let arrow = self.one(&["->", "->>", "->"]);
            let step = match self.random.u8(0..5) {
                _ if self.mild => "n".to_owned(),
                0 => "n".to_owned(),
                1 => "deep".to_owned(),
                2 => self.random.i8(-2..3).to_string(),
                // The last one of a selected path names the member of the answer.
                _ => self.value().replace(MARK, ALIAS),
            };
            written.push_str(arrow);
            written.push_str(&step);
        }
        written
    }

    /// What is asked of a column, which comes with it.
    fn condition(&mut self, table: &str) -> (String, String) {
        let not = if self.chance(5) { "not." } else { "" };
        let mut column = self.column(table);
        let mut operator = self.one(&OPERATORS);
        if self.mild {
            let columns = self.columns.get(table);
            let first = columns.and_then(|columns| columns.first()).cloned();
            operator = self.one(&["eq", "neq", "gt", "lte", "in", "is", "isdistinct"]);
            // Its first column is a number everywhere.
            if operator != "is" {
                column = first.unwrap_or_else(|| "id".to_owned());
            }
        }
        let operand = match operator {
            "in" => {
                let members: Vec<_> = (0..self.random.usize(0..5)).map(|_| self.value()).collect();
                format!("({})", members.join(","))
            }
            "is" if self.mild => "null".to_owned(),
            "is" if !self.chance(4) => self
                .one(&["null", "not_null", "true", "false", "unknown"])
                .to_owned(),
            _ => self.value(),
        };
        (column, format!("{not}{operator}.{operand}"))
    }

    /// The inside of `and=(…)`.
    fn tree(&mut self, table: &str, depth: u8) -> String {
        let members: Vec<_> = (0..self.random.usize(1..4))
            .map(|_| {
                if depth > 0 && self.chance(3) {
                    let not = if self.chance(4) { "not." } else { "" };
                    let operator = self.one(&["and", "or"]);
                    format!("{not}{operator}{}", self.tree(table, depth - 1))
                } else {
                    let (column, operation) = self.condition(table);
                    format!("{column}.{operation}")
                }
            })
            .collect();
        format!("({})", members.join(","))
    }

    fn select(&mut self, table: &str) -> String {
        let items: Vec<_> = (0..self.random.usize(1..5))
            .map(|_| {
                let mut item = match self.random.u8(0..12) {
                    1 | 2 if self.mild => self.column(table),
                    0 => return "*".to_owned(),
                    1 => format!("boards({})", self.column(table)),
                    2 => format!("{}.sum()", self.column(table)),
                    _ => self.column(table),
                };
                if self.chance(3) {
                    let hostile = if self.chance(3) {
                        self.one(&HOSTILE)
                    } else {
                        ""
                    };
                    let hostile = hostile.replace('\\', "\\\\").replace('"', "\\\"");
                    item = format!("\"{ALIAS}{}{hostile}\":{item}", self.count);
                }
                if self.chance(4) {
                    let cast = if self.mild {
                        "text".to_owned()
                    } else if self.chance(8) {
                        self.value()
                    } else {
                        self.one(&CASTS).to_owned()
                    };
                    let _infallible = write!(item, "::{cast}");
                }
                item
            })
            .collect();
        items.join(",")
    }

    fn order(&mut self, table: &str) -> String {
        let terms: Vec<_> = (0..self.random.usize(1..4))
            .map(|_| {
                let direction = self.one(&[
                    "",
                    ".asc",
                    ".desc",
                    ".desc.nullslast",
                    ".nullsfirst",
                    ".sideways",
                ]);
                let direction = if self.mild { ".desc" } else { direction };
                format!("{}{direction}", self.column(table))
            })
            .collect();
        terms.join(",")
    }

    /// The query, as pairs that are not encoded.
    fn query(&mut self, table: &str) -> Vec<(String, String)> {
        let mut pairs = Vec::new();
        for _ in 0..self.random.u8(0..4) {
            pairs.push(self.condition(table));
        }
        if self.chance(3) {
            let name = self.one(&["and", "or", "not.and", "not.or"]).to_owned();
            pairs.push((name, self.tree(table, 3)));
        }
        if self.harm(100) {
            // As deep as a URL can be.
            let depth = self.random.usize(1..1_800);
            let tree = format!("({}id.eq.1{})", "or(".repeat(depth), ")".repeat(depth));
            pairs.push(("and".to_owned(), tree));
        }
        if self.chance(2) {
            pairs.push(("select".to_owned(), self.select(table)));
        }
        if self.chance(3) {
            pairs.push(("order".to_owned(), self.order(table)));
        }
        for name in ["limit", "offset"] {
            if self.chance(4) {
                let value = match self.random.u8(0..6) {
                    _ if self.mild => self.random.u8(..20).to_string(),
                    0 => self.value(),
                    1 => u64::MAX.to_string(),
                    2 => i64::MAX.to_string(),
                    _ => self.random.u8(..20).to_string(),
                };
                pairs.push((name.to_owned(), value));
            }
        }
        self.random.shuffle(&mut pairs);
        pairs
    }

    fn names(&mut self, table: &str) -> String {
        let names: Vec<_> = (0..self.random.usize(1..4))
            .map(|_| self.column(table))
            .collect();
        names.join(",")
    }

    /// A JSON value that a column may take.
    fn json(&mut self) -> serde_json::Value {
        if self.mild {
            return self.random.i32(0..40).into();
        }
        match self.random.u8(0..8) {
            0 => serde_json::Value::Null,
            1 => self.random.bool().into(),
            2 | 3 => self.random.i32(0..40).into(),
            4 => serde_json::json!([self.value(), 1, null]),
            5 => serde_json::json!({ self.value(): self.value() }),
            _ => self.value().into(),
        }
    }

    fn body(&mut self, table: &str) -> String {
        let columns = self.columns.get(table).cloned().unwrap_or_default();
        let rows: Vec<_> = (0..self.random.usize(1..4))
            .map(|_| {
                let mut row = serde_json::Map::new();
                for column in &columns {
                    let plain = [
                        "title", "name", "note", "label", "amount", "y", "half", "body",
                    ];
                    if self.mild && !plain.contains(&column.as_str()) {
                        continue;
                    }
                    if self.chance(3) {
                        row.insert(column.clone(), self.json());
                    }
                }
                // Rows of one request may not meet one another in an upsert: that is a 500.
                if columns.iter().any(|column| column == "id") && !self.harm(5) {
                    self.count += 1;
                    row.insert("id".to_owned(), self.count.into());
                }
                if self.harm(25) {
                    row.insert(self.value(), self.json());
                }
                serde_json::Value::Object(row)
            })
            .collect();
        let mut text = if rows.len() == 1 {
            rows[0].to_string()
        } else {
            serde_json::Value::Array(rows).to_string()
        };
        if self.harm(20) {
            let at = self.random.usize(0..=text.len());
            let at = (0..=at)
                .rev()
                .find(|at| text.is_char_boundary(*at))
                .unwrap_or(0);
            text.insert_str(at, self.one(&HOSTILE));
        }
        text
    }

    /// A request that only reads.
    fn read(&mut self) -> Asked {
        self.turn();
        if self.chance(8) {
            return self.call("GET");
        }
        let table = self.table();
        let query = self.query(&table);
        let method = self.one(&["GET", "GET", "GET", "HEAD"]);
        self.asked(method, &table, &query, String::new())
    }

    /// A request that writes, if it can.
    fn write(&mut self) -> Asked {
        self.turn();
        if self.chance(8) {
            return self.call("POST");
        }
        let table = self.table();
        let method = self.one(&["POST", "POST", "PATCH", "DELETE", "PUT"]);
        let mut query = match method {
            "PUT" => vec![("id".to_owned(), format!("eq.{}", self.count))],
            "POST" if !self.harm(10) => Vec::new(),
            _ => self.query(&table),
        };
        if method == "POST" && self.chance(2) {
            query.push(("select".to_owned(), self.select(&table)));
        }
        for name in ["columns", "on_conflict"] {
            if self.harm(6) {
                query.push((name.to_owned(), self.names(&table)));
            }
        }
        let body = if method == "DELETE" {
            String::new()
        } else {
            self.body(&table)
        };
        self.asked(method, &table, &query, body)
    }

    fn table(&mut self) -> String {
        if self.harm(30) {
            format!("{MARK}{}", self.count)
        } else {
            self.one(&TABLES).to_owned()
        }
    }

    fn call(&mut self, method: &'static str) -> Asked {
        let (function, arguments) = FUNCTIONS[self.random.usize(0..FUNCTIONS.len())];
        let mut arguments: Vec<_> = arguments.iter().map(|name| (*name).to_owned()).collect();
        if self.harm(2) {
            arguments.clear();
            arguments.extend((0..self.random.usize(0..3)).map(|_| self.one(&ARGUMENTS).to_owned()));
            arguments.extend(self.chance(9).then(|| self.value()));
        }
        let mut query = if self.chance(2) {
            self.query("tasks")
        } else {
            Vec::new()
        };
        let mut members = serde_json::Map::new();
        for name in arguments {
            if method == "GET" {
                query.push((name, self.value()));
            } else {
                members.insert(name, self.json());
            }
        }
        let body = if method == "GET" {
            String::new()
        } else {
            serde_json::Value::Object(members).to_string()
        };
        self.asked(method, &format!("rpc/{function}"), &query, body)
    }

    fn asked(
        &mut self,
        method: &'static str,
        path: &str,
        query: &[(String, String)],
        body: String,
    ) -> Asked {
        let mut target = format!("/rest/v1/{}", encoded(path.as_bytes(), b"/")).into_bytes();
        for (at, (name, value)) in query.iter().enumerate() {
            target.push(if at == 0 { b'?' } else { b'&' });
            target.extend(encoded(name.as_bytes(), b"-.()").bytes());
            target.push(b'=');
            target.extend(encoded(value.as_bytes(), b",.:()*-").bytes());
        }
        if self.harm(8) {
            self.hurt(&mut target);
        }
        let mut headers = Vec::new();
        if self.chance(2) {
            let mild = self.mild;
            let preferences = if mild {
                &PREFERENCES[..10]
            } else {
                &PREFERENCES[..]
            };
            let wishes: Vec<_> = (0..self.random.usize(1..5))
                .map(|_| self.one(preferences))
                .collect();
            headers.push(("prefer", wishes.join(", ")));
        }
        if self.harm(6) {
            headers.push(("accept", self.one(&ACCEPTED).to_owned()));
        }
        if self.harm(10) {
            let profile = if method == "GET" || method == "HEAD" {
                "accept-profile"
            } else {
                "content-profile"
            };
            let schema = format!("{MARK}{}", self.count);
            headers.push((
                profile,
                self.one(&["public", "archive", "rowcast", &schema])
                    .to_owned(),
            ));
        }
        if self.harm(10) {
            let range = format!("{MARK}{}", self.count);
            headers.push((
                "range",
                self.one(&["0-3", "2-", "5-1", "-", &range]).to_owned(),
            ));
        }
        if self.chance(4) {
            headers.push(("x-any", format!("{MARK}{}", self.count)));
            headers.push(("cookie", format!("{MARK}={MARK}{}", self.count)));
        }
        if !body.is_empty() {
            headers.push(("content-type", "application/json".to_owned()));
        }
        Asked {
            method,
            target,
            headers,
            body,
        }
    }

    /// Changes some bytes behind the table's name to others, or takes some away.
    fn hurt(&mut self, target: &mut Vec<u8>) {
        let start = target
            .iter()
            .position(|byte| *byte == b'?')
            .unwrap_or(target.len());
        for _ in 0..self.random.usize(1..5) {
            let at = self.random.usize(start..=target.len());
            let other = match self.random.u8(0..4) {
                0 => format!("%{:02x}", self.random.u8(..)),
                1 => encoded(self.one(&HOSTILE).as_bytes(), b""),
                2 => self
                    .one(&[
                        "%", "%f", "%zz", "&", "=", "&&", "+", "(", ")", ",", ".", "\"",
                    ])
                    .to_owned(),
                _ => String::new(),
            };
            let end = (at + self.random.usize(0..3)).min(target.len());
            target.splice(at..end, other.into_bytes());
        }
    }
}

/// Percent-encoded but for letters, digits and these.
fn encoded(text: &[u8], plain: &[u8]) -> String {
    let mut encoded = String::new();
    for byte in text {
        if byte.is_ascii_alphanumeric() || *byte == b'_' || plain.contains(byte) {
            encoded.push(char::from(*byte));
        } else {
            let _infallible = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// One connection, over which all of a client's requests go.
struct Line {
    address: String,
    sender: SendRequest<Full<Bytes>>,
}

impl Line {
    async fn open(relay: &Relay) -> Self {
        let address = relay.url.trim_start_matches("http://").to_owned();
        let stream = TcpStream::connect(&address).await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { address, sender }
    }

    /// The last request has not closed it either.
    async fn still_open(mut self) {
        let asked = Asked {
            method: "GET",
            target: b"/rest/v1/tasks?id=eq.1".to_vec(),
            headers: Vec::new(),
            body: String::new(),
        };
        assert_eq!(self.ask(&asked).await, Some(200));
    }

    /// The answer's status. The connection must outlive it.
    async fn ask(&mut self, asked: &Asked) -> Option<u16> {
        let uri = Uri::try_from(asked.target.as_slice()).ok()?;
        let mut request = Request::builder().method(asked.method).uri(uri);
        request = request.header("host", &self.address);
        for (name, value) in &asked.headers {
            request = request.header(*name, value);
        }
        let request = request
            .body(Full::new(Bytes::from(asked.body.clone())))
            .ok()?;
        let told = || {
            format!(
                "{} {}",
                asked.method,
                String::from_utf8_lossy(&asked.target)
            )
        };
        let answer = async {
            self.sender
                .ready()
                .await
                .unwrap_or_else(|error| panic!("before {}: {error}", told()));
            let answer = self.sender.send_request(request).await;
            let answer = answer.unwrap_or_else(|error| panic!("{}: {error}", told()));
            let status = answer.status().as_u16();
            (
                status,
                answer.into_body().collect().await.unwrap().to_bytes(),
            )
        };
        let (status, body) = tokio::time::timeout(DEADLINE, answer)
            .await
            .unwrap_or_else(|_| panic!("{}: no answer", told()));
        let excused = EXCUSED
            .iter()
            .any(|code| body.starts_with(format!("{{\"code\":\"{code}\"").as_bytes()));
        assert!(
            status < 500 || excused,
            "{status} {}\n{:?}\n{}\n{}",
            told(),
            asked.headers,
            asked.body,
            String::from_utf8_lossy(&body)
        );
        Some(status)
    }
}

/// The dialect's own answers to what a client does to its own data: rows of one upsert that are the
/// same row.
const EXCUSED: [&str; 1] = ["21000"];

/// What PostgreSQL was sent, as its log tells it.
struct Log {
    path: PathBuf,
    read: u64,
    rest: Vec<u8>,
    phrases: BTreeSet<String>,
    names: BTreeSet<String>,
    types: BTreeSet<String>,
    statements: u64,
}

impl Log {
    fn of(data: &Path, names: BTreeSet<String>, types: &[String]) -> Self {
        Self {
            path: data.join("log/all.csv"),
            read: 0,
            rest: Vec::new(),
            phrases: BTreeSet::new(),
            names,
            types: types
                .iter()
                .flat_map(|kind| phrases(kind, &BTreeSet::new()))
                .collect(),
            statements: 0,
        }
    }

    /// Leaves out what was written so far: how Rowcast is installed.
    fn skip(mut self) -> Self {
        self.read = std::fs::metadata(&self.path).unwrap().len();
        self
    }

    /// Takes in what was written since.
    fn follow(&mut self) {
        let mut file = std::fs::File::open(&self.path).unwrap();
        file.seek(SeekFrom::Start(self.read)).unwrap();
        self.read += file.read_to_end(&mut self.rest).unwrap() as u64;
        let mut quoted = false;
        let mut taken = 0;
        for at in 0..self.rest.len() {
            match self.rest[at] {
                b'"' => quoted = !quoted,
                b'\n' if !quoted => {
                    let record = String::from_utf8_lossy(&self.rest[taken..at]).into_owned();
                    self.record(&fields(&record));
                    taken = at + 1;
                }
                _ => {}
            }
        }
        self.rest.drain(..taken);
    }

    /// In a record 12 is the SQLSTATE, 13 the message, 19 the statement that failed and 22 the name
    /// of whose it is: only requests and streams depend on what is asked.
    fn record(&mut self, fields: &[String]) {
        if !matches!(
            fields[22].as_str(),
            "rowcast" | "rowcast states" | "rowcast asking"
        ) {
            return;
        }
        let [sqlstate, message] = [12, 13].map(|at| fields[at].as_str());
        // Values of full-text search are written in languages whose mistakes have this code too.
        let of_value = ["in tsquery", "in tsvector", "there is no escaped character"]
            .iter()
            .any(|mistake| message.contains(mistake));
        assert!(sqlstate != "42601" || of_value, "{message}: {}", fields[19]);
        let sent = message.strip_prefix("statement: ").or_else(|| {
            let executed = message.strip_prefix("execute ")?;
            executed.split_once(": ").map(|(_, statement)| statement)
        });
        for statement in sent.into_iter().chain([fields[19].as_str()]) {
            assert!(!statement.contains(MARK), "a value in: {statement}");
            self.statements += 1;
            for phrase in phrases(statement, &self.names) {
                assert!(!phrase.contains(ALIAS), "not quoted, in: {statement}");
                // As the columns of a body are told: each type that a table has, sooner or later.
                let column = phrase
                    .strip_prefix(" x")
                    .is_some_and(|kind| self.types.contains(kind));
                self.phrases
                    .insert(if column { " x type".to_owned() } else { phrase });
            }
        }
    }
}

/// The fields of a CSV record.
fn fields(record: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = record.chars().peekable();
    let mut quoted = false;
    while let Some(c) = chars.next() {
        let last = fields.last_mut().unwrap();
        match c {
            '"' if quoted && chars.next_if_eq(&'"').is_some() => last.push('"'),
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => last.push(c),
        }
    }
    fields
}

/// Begin a clause.
const CLAUSES: [&str; 8] = [
    "select",
    "from",
    "where",
    "order",
    "limit",
    "offset",
    "returning",
    "not",
];

/// A statement's phrases. `names` are those that the tables have.
fn phrases(statement: &str, names: &BTreeSet<String>) -> Vec<String> {
    let mut phrases = vec![String::new()];
    let mut chars = statement.chars().peekable();
    while let Some(c) = chars.next() {
        let mut word = String::from(c);
        match c {
            '"' => {
                let name = delimited(&mut chars, '"');
                let ours = names.contains(&name) || name.starts_with(ALIAS);
                let follows_as = phrases.last().unwrap().ends_with(" as");
                // As many as may be asked for, in every place that a cast can have.
                let kind = CASTS.contains(&name.as_str());
                let cast = kind && phrases.last().unwrap().ends_with(": :");
                word = if cast {
                    "type".to_owned()
                } else if ours || follows_as {
                    "x".to_owned()
                } else {
                    format!("\"{}\"", unnumbered(&name))
                };
            }
            '\'' => word = format!("'{}'", delimited(&mut chars, '\'')),
            '$' => while chars.next_if(char::is_ascii_digit).is_some() {},
            c if c.is_ascii_alphanumeric() || c == '_' => {
                while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                    word.push(c);
                }
                word = unnumbered(&word).to_owned();
            }
            c if c.is_whitespace() => continue,
            _ => {}
        }
        if matches!(word.as_str(), "(" | ")" | "," | ";" | "and" | "or") {
            phrases.push(String::new());
            continue;
        }
        let clause = CLAUSES.contains(&word.as_str());
        // A path goes on and on.
        if clause || (c == '-' && chars.peek() == Some(&'>')) {
            phrases.push(String::new());
        }
        let phrase = phrases.last_mut().unwrap();
        phrase.push(' ');
        phrase.push_str(&word);
        if clause {
            phrases.push(String::new());
        }
    }
    phrases.retain(|phrase| !phrase.is_empty());
    phrases
}

/// Without the number at the end, if it is a name of ours.
fn unnumbered(word: &str) -> &str {
    let name = word.trim_end_matches(|c: char| c.is_ascii_digit());
    if matches!(name, "g" | "o") {
        name
    } else {
        word
    }
}

/// What follows up to this mark, which is doubled where it is meant.
fn delimited(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, mark: char) -> String {
    let mut text = String::new();
    while let Some(c) = chars.next() {
        if c == mark && chars.next_if_eq(&mark).is_none() {
            break;
        }
        text.push(c);
    }
    text
}

#[tokio::test]
async fn random_requests_make_statements_of_few_shapes_and_no_server_errors() {
    let requests = std::env::var("ROWCAST_SHAPES").ok();
    let requests = requests.map_or(REQUESTS, |text| text.parse().unwrap());
    let seed = seed();

    let server = Server::start(&LOGGED).await;
    let database = server.database().await;
    dialect::fill(&database).await;
    let relay = Relay::start(&database, &SERVED).await;
    let columns = columns(&database).await;
    let mut names: BTreeSet<String> = columns.values().flatten().cloned().collect();
    names.extend(columns.keys().cloned());
    names.extend(FUNCTIONS.iter().map(|(name, _)| (*name).to_owned()));
    names.extend(ARGUMENTS.map(str::to_owned));
    let mut log = Log::of(
        &server.directory.path().join("d/data"),
        names,
        &types(&database).await,
    )
    .skip();
    let asker = |seed| Asker {
        random: Rng::with_seed(seed),
        columns: columns.clone(),
        count: 0,
        mild: false,
    };
    let (mut reader, mut writer) = (asker(seed), asker(!seed));

    // What the relay does now and then, it does at least once before anything is counted.
    database.sql("notify pgrst").await;
    for filter in ["", "?done=is.false&id=in.(1,2)", "?or=(id.eq.1,id.gt.2)"] {
        let url = format!("{}/rest/v1/tasks{filter}", relay.url);
        Stream::open(&url, None).await.data().await;
    }
    let mut statuses: BTreeMap<u16, u64> = BTreeMap::new();
    let mut asked = 0;
    let mut half = None;
    while asked < requests {
        // One writer, so that no two writes wait for one another.
        let batch = requests.min(500);
        // New ones: a connection that waits for long between two requests is closed.
        let (mut reads, mut writes) = (Line::open(&relay).await, Line::open(&relay).await);
        let mut one = BTreeMap::<u16, u64>::new();
        let mut other = BTreeMap::<u16, u64>::new();
        futures::join!(
            async {
                for _ in 0..batch / 10 * 6 {
                    let asked = reader.read();
                    if let Some(status) = reads.ask(&asked).await {
                        *one.entry(status).or_default() += 1;
                    }
                    if asked.method == "GET" && reader.chance(50) {
                        watch(&relay, &asked).await;
                    }
                }
                reads.still_open().await;
            },
            async {
                for _ in 0..batch / 10 * 4 {
                    if let Some(status) = writes.ask(&writer.write()).await {
                        *other.entry(status).or_default() += 1;
                    }
                }
                writes.still_open().await;
            }
        );
        for (status, count) in one.into_iter().chain(other) {
            *statuses.entry(status).or_default() += count;
        }
        asked += batch;
        database.sql(dialect::SEED).await;
        log.follow();
        if half.is_none() && asked * 2 >= requests {
            half = Some(log.phrases.clone());
        }
    }
    let seen = half.expect("half of the requests were asked");
    let new: Vec<_> = log.phrases.difference(&seen).collect();
    println!(
        "{asked} requests {statuses:?}, {} statements, {} phrases, {} of them new in the second half",
        log.statements,
        log.phrases.len(),
        new.len()
    );
    // The requests are not all refused at the door.
    let well: u64 = statuses.range(200..300).map(|(_, count)| count).sum();
    assert!(well * 5 > asked, "{statuses:?}");
    let all = || {
        log.phrases
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert!(log.phrases.len() < PHRASES, "{}", all());
    // Rare ones turn up late in a short run; a long one has seen them all.
    let share = if requests < 50_000 { 10 } else { 50 };
    assert!(
        new.len() * share < log.phrases.len(),
        "{new:#?} in\n{}",
        all()
    );
}

/// Opens it as a stream, and leaves.
async fn watch(relay: &Relay, asked: &Asked) {
    let target = String::from_utf8_lossy(&asked.target);
    if Uri::try_from(&*target).is_ok() {
        let stream = Stream::open(&format!("{}{target}", relay.url), None).await;
        assert!(stream.status.as_u16() < 500, "{} {target}", stream.status);
    }
}

async fn columns(database: &Database) -> BTreeMap<String, Vec<String>> {
    let rows = database
        .client()
        .await
        .query("select table_name::text, column_name::text from information_schema.columns where table_schema in ('public', 'archive') order by table_name, ordinal_position", &[])
        .await
        .unwrap();
    let mut columns: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in rows {
        columns.entry(row.get(0)).or_default().push(row.get(1));
    }
    columns
}

/// The types of all columns, as SQL writes them.
async fn types(database: &Database) -> Vec<String> {
    let sql = "select distinct format_type(atttypid, null) from pg_attribute where attnum > 0 and attrelid in (select oid from pg_class where relnamespace in ('public'::regnamespace, 'archive'::regnamespace))";
    let rows = database.client().await.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}
