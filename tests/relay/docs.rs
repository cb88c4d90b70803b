//! `docs/api.md` is true: what it shows is run against a real relay, and what there is, it names.
//!
//! The page is read from top to bottom as if by somebody who types. A block `sql` goes to the database.
//! A block `sh` with `rowcast serve` starts a relay with these flags; its last line says in which
//! variable the address is found. A block `console` is a terminal: a line after `$` is run by `sh`,
//! and what follows is what the terminal shows, where `…` stands for anything in a line and a line
//! `…` for any lines. A command that ends in `&` goes on in the background, and what it says later
//! stands under later commands. Variables that are set with `NAME=…` stay.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use crate::harness::{DEADLINE, Database, Relay, Server, command};

/// Read when the tests run: whoever writes it need not build anything.
static PAGE: LazyLock<String> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(root.join("docs/api.md")).unwrap()
});

/// A fenced block with the number of its first line.
struct Block {
    line: usize,
    kind: String,
    text: String,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut inside = false;
    for (number, line) in page.lines().enumerate() {
        match (inside, line.strip_prefix("```")) {
            (false, Some(kind)) => blocks.push(Block {
                line: number + 2,
                kind: kind.to_owned(),
                text: String::new(),
            }),
            (true, None) => {
                let block = blocks.last_mut().expect("inside of one");
                block.text.push_str(line);
                block.text.push('\n');
            }
            _ => {}
        }
        inside ^= line.starts_with("```");
    }
    blocks
}

/// A command, and the lines that the terminal shows until the next one.
struct Step {
    command: String,
    expected: Vec<String>,
}

/// Whether the shell waits for the rest: a backslash, or a quote that is still open.
fn goes_on(command: &str) -> bool {
    command.ends_with('\\') || command.matches('\'').count() % 2 == 1
}

fn steps(block: &Block) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for line in block.text.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step {
                command: command.to_owned(),
                expected: Vec::new(),
            });
            continue;
        }
        let step = steps.last_mut();
        let step = step.unwrap_or_else(|| panic!("line {}: no command", block.line));
        if step.expected.is_empty() && goes_on(&step.command) {
            step.command.push('\n');
            step.command.push_str(line);
        } else {
            step.expected.push(line.to_owned());
        }
    }
    for step in &mut steps {
        while step.expected.last().is_some_and(String::is_empty) {
            step.expected.pop();
        }
    }
    steps
}

/// Whether a line is as expected; `…` is anything.
fn alike(expected: &str, line: &str) -> bool {
    let mut parts = expected.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// How many of `lines` the expected ones take, if they begin as expected.
fn taken(expected: &[String], lines: &[String]) -> Option<usize> {
    let Some((first, rest)) = expected.split_first() else {
        return Some(0);
    };
    if first == "…" {
        if rest.is_empty() {
            return Some(lines.len());
        }
        return (0..=lines.len()).find_map(|at| Some(at + taken(rest, &lines[at..])?));
    }
    let (line, others) = lines.split_first()?;
    alike(first, line)
        .then(|| taken(rest, others))
        .flatten()
        .map(|more| more + 1)
}

/// What a terminal has shown and nobody has looked at yet.
#[derive(Clone, Default)]
struct Screen(Arc<Mutex<String>>);

impl Screen {
    fn add(&self, text: &str) {
        self.0.lock().unwrap().push_str(&text.replace('\r', ""));
    }

    async fn follow(self, mut from: impl AsyncRead + Unpin) {
        let mut bytes = [0; 4096];
        let mut left = Vec::new();
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            left.extend_from_slice(&bytes[..count]);
            let whole = match std::str::from_utf8(&left) {
                Ok(text) => text.len(),
                Err(error) => error.valid_up_to(),
            };
            let text: Vec<u8> = left.drain(..whole).collect();
            self.add(&String::from_utf8(text).unwrap());
        }
    }

    fn lines(&self) -> Vec<String> {
        let text = self.0.lock().unwrap();
        let text = text.trim_end_matches('\n');
        if text.is_empty() {
            return Vec::new();
        }
        text.split('\n').map(str::to_owned).collect()
    }

    /// Waits until it begins with what is expected, and takes that.
    async fn shows(&self, expected: &[String], more_comes: bool) -> Result<(), Vec<String>> {
        let begun = Instant::now();
        loop {
            let lines = self.lines();
            match taken(expected, &lines) {
                Some(all) if more_comes || all == lines.len() => {
                    *self.0.lock().unwrap() = lines[all..].join("\n");
                    return Ok(());
                }
                _ if !more_comes || begun.elapsed() > DEADLINE => return Err(lines),
                _ => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
    }
}

/// Somebody who reads the page and types.
struct Reader {
    server: Server,
    database: Database,
    relays: Vec<Relay>,
    variables: BTreeMap<String, String>,
    wrong: Vec<String>,
}

impl Reader {
    async fn new() -> Self {
        let server = Server::start(&[]).await;
        let database = server.database().await;
        let sql = command().arg("sql").output().await.unwrap();
        database.sql(&String::from_utf8(sql.stdout).unwrap()).await;
        database.sql(include_str!("../../sql/roles.sql")).await;
        let binary = Path::new(env!("CARGO_BIN_EXE_rowcast"));
        let path = format!(
            "{}:{}",
            binary.parent().unwrap().display(),
            std::env::var("PATH").unwrap()
        );
        let variables = [
            ("PATH".to_owned(), path),
            ("PGURL".to_owned(), database.url.clone()),
        ];
        Self {
            server,
            database,
            relays: Vec::new(),
            variables: variables.into(),
            wrong: Vec::new(),
        }
    }

    fn shell(&self, line: &str) -> Command {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", line])
            .envs(&self.variables)
            .current_dir(self.server.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        shell
    }

    async fn read(&mut self, block: &Block) {
        match block.kind.as_str() {
            "sql" => self.database.sql(&block.text).await,
            "sh" if block.text.contains("rowcast serve") => self.start(block).await,
            "console" => self.type_in(block).await,
            _ => {}
        }
    }

    /// Starts the relay of the block as it says, but where this test's database is, and on any port.
    async fn start(&mut self, block: &Block) {
        let login = |name: &str| self.database.login(name);
        let text = block.text.replace("\\\n", " ");
        let line = text
            .lines()
            .find(|line| line.starts_with("rowcast serve"))
            .unwrap();
        let print = format!(
            "set -- {}; printf '%s\\n' \"$@\"",
            line.strip_prefix("rowcast serve").unwrap()
        );
        let words = self.shell(&print).output().await.unwrap();
        let words = String::from_utf8(words.stdout).unwrap();
        let mut arguments: Vec<String> = Vec::new();
        let mut listening = self.database.clone();
        let mut words = words.lines().filter(|word| !word.is_empty());
        while let Some(word) = words.next() {
            match word {
                "--listen" => {
                    words.next();
                }
                "--database-url" => {
                    words.next();
                    listening.url = login("rowcast_listen");
                }
                "--api-url" => {
                    words.next();
                    arguments.extend(["--api-url".to_owned(), login("rowcast_api")]);
                }
                word => arguments.push(word.to_owned()),
            }
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let relay = Relay::start(&listening, &arguments).await;
        let named = text.lines().rev().find_map(|line| line.split_once('='));
        let (name, _) = named.expect("the block names the variable");
        self.variables.insert(name.to_owned(), relay.url.clone());
        self.relays.push(relay);
    }

    async fn type_in(&mut self, block: &Block) {
        let screen = Screen::default();
        let mut background: Vec<Child> = Vec::new();
        for step in steps(block) {
            let line = step.command.trim();
            let assigned = line.split_once('=').filter(|(name, _)| {
                !name.is_empty()
                    && name
                        .bytes()
                        .all(|byte| byte.is_ascii_uppercase() || byte == b'_')
            });
            if let Some(line) = line.strip_suffix('&') {
                // exec: so that killing the shell kills the command.
                let mut child = self.shell(&format!("exec {line}")).spawn().unwrap();
                tokio::spawn(screen.clone().follow(child.stdout.take().unwrap()));
                background.push(child);
            } else if let Some((name, _)) = assigned {
                let print = format!("{line}\nprintf %s \"${name}\"");
                let said = self.shell(&print).output().await.unwrap();
                let value = String::from_utf8(said.stdout).unwrap();
                self.variables.insert(name.to_owned(), value);
            } else {
                let running = self.shell(line).output();
                let said = tokio::time::timeout(DEADLINE * 2, running).await;
                let said = said
                    .unwrap_or_else(|_| panic!("it does not end: {line}"))
                    .unwrap();
                if background.is_empty() {
                    screen.0.lock().unwrap().clear();
                }
                screen.add(&String::from_utf8(said.stdout).unwrap());
                screen.add(&String::from_utf8(said.stderr).unwrap());
            }
            let shown = screen.shows(&step.expected, !background.is_empty()).await;
            if let Err(shown) = shown {
                self.wrong.push(format!(
                    "line {}: $ {line}\n--- expected\n{}\n--- but\n{}\n",
                    block.line,
                    step.expected.join("\n"),
                    shown.join("\n")
                ));
                break;
            }
        }
    }
}

#[tokio::test]
async fn everything_that_the_page_shows_happens() {
    let mut reader = Reader::new().await;
    for block in blocks(&PAGE) {
        reader.read(&block).await;
    }
    assert!(reader.wrong.is_empty(), "{}", reader.wrong.join("\n"));
}

/// The source files that tell clients something.
fn sources(folder: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut text = String::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let tests = path.ends_with("tests.rs") || path.ends_with("tests");
        match path.is_dir() {
            _ if tests => {}
            true => text.push_str(&sources(path.to_str().unwrap())),
            false => text.push_str(&std::fs::read_to_string(path).unwrap()),
        }
    }
    text
}

/// Words of `text` that begin with `prefix` and go on with letters, digits and underscores.
fn words<'a>(text: &'a str, prefix: &str) -> BTreeSet<&'a str> {
    let starts = text.match_indices(prefix);
    let word = |(at, _)| {
        let rest: &str = &text[at..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        &rest[..end.unwrap_or(rest.len())]
    };
    starts.map(word).collect()
}

#[track_caller]
fn all_named<'a>(what: &str, wanted: impl IntoIterator<Item = &'a str>) {
    let missing: Vec<&str> = wanted
        .into_iter()
        .filter(|name| !PAGE.contains(name))
        .collect();
    assert!(
        missing.is_empty(),
        "{what} that docs/api.md does not name: {missing:?}"
    );
}

#[test]
fn every_code_is_on_the_page() {
    let edge = [sources("src/http"), sources("src/api")].concat();
    for prefix in ["PGRST", "RCH", "RCA", "RCR"] {
        let codes = words(&edge, prefix);
        let numbered = |code: &&str| {
            let digits = &code[prefix.len()..];
            digits.len() > 1 && digits.bytes().all(|byte| byte.is_ascii_digit())
        };
        let codes: Vec<&str> = codes.into_iter().filter(numbered).collect();
        assert!(codes.len() > 2, "{prefix}: {codes:?}");
        all_named("codes", codes);
    }
}

#[test]
fn every_route_is_on_the_page() {
    let source = include_str!("../../src/http/route.rs");
    let patterns = source.split("fn pattern").nth(1).unwrap();
    let patterns = patterns.split("_OTHER").next().unwrap();
    let quoted: Vec<&str> = patterns.split('"').skip(1).step_by(2).collect();
    assert!(quoted.len() > 6, "{quoted:?}");
    all_named(
        "routes",
        quoted.iter().copied().filter(|path| path.starts_with('/')),
    );
    all_named("routes", ["/healthz", "/rowcast.js", "/rowcast.d.ts"]);
}

#[test]
fn every_preference_header_and_query_parameter_is_on_the_page() {
    let source = include_str!("../../src/rows/request.rs");
    let take = source.split("fn take(").nth(1).unwrap();
    let take = take.split("\n    }\n").next().unwrap();
    let quoted: BTreeSet<&str> = take.split('"').skip(1).step_by(2).collect();
    assert!(quoted.len() > 14, "{quoted:?}");
    all_named("preferences", quoted);
    all_named(
        "headers",
        [
            "ETag",
            "If-Match",
            "If-None-Match",
            "Idempotency-Key",
            "Idempotency-Replayed",
            "Rowcast-Txid",
            "Last-Event-ID",
            "Accept-Profile",
            "Content-Profile",
            "Preference-Applied",
            "Content-Range",
            "Range-Unit",
            "Location",
            "Proxy-Status",
            "Retry-After",
            "WWW-Authenticate",
            "X-Request-Id",
        ],
    );
    all_named(
        "parameters",
        [
            "select=",
            "order=",
            "limit=",
            "offset=",
            "columns=",
            "on_conflict=",
            "last_event_id=",
            "ticket=",
        ],
    );
}

#[test]
fn every_operator_is_on_the_page() {
    let source = include_str!("../../src/filter.rs");
    for function in ["fn sign(", "fn relation(", "fn search(", "fn truth("] {
        let body = source.split(function).nth(1).unwrap();
        let body = body.split("\n}\n").next().unwrap();
        let quoted: Vec<String> = body
            .split('"')
            .skip(1)
            .step_by(2)
            .map(|name| format!("`{name}`"))
            .collect();
        assert!(quoted.len() > 3, "{function}: {quoted:?}");
        all_named("operators", quoted.iter().map(String::as_str));
    }
    all_named(
        "operators",
        ["`in`", "`is`", "`isdistinct`", "`not.`", "(any)", "(all)"],
    );
}

#[tokio::test]
async fn every_flag_and_variable_is_on_the_page() {
    let help = command().arg("--help").output().await.unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let flags = help
        .split_whitespace()
        .filter(|word| word.starts_with("--") && word.len() > 2)
        .map(|word| word.trim_end_matches([',', '.', ']']));
    let flags: BTreeSet<&str> = flags.collect();
    assert!(flags.len() > 15, "{flags:?}");
    all_named("flags", flags);
    let cli = sources("src/cli") + include_str!("../../src/config.rs");
    let mut variables = words(&cli, "ROWCAST_");
    variables.extend(words(&cli, "PGRST_"));
    assert!(variables.len() > 15, "{variables:?}");
    all_named("variables", variables);
}

#[test]
fn what_the_terminal_shows_is_compared_line_by_line() {
    let lines = |text: &str| -> Vec<String> { text.lines().map(str::to_owned).collect() };
    for (expected, shown, wanted) in [
        ("a\nb", "a\nb", Some(2)),
        ("a", "a\nb", Some(1)),
        ("a…c", "abc", Some(1)),
        ("…", "x\ny", Some(2)),
        ("a\n…\nz", "a\nb\nc\nz\nq", Some(4)),
        ("a\n…\nz", "a\nz", Some(2)),
        ("a…b…c", "axcxb", None),
        ("…a", "ab", None),
        ("a", "b", None),
        ("a", "", None),
    ] {
        assert_eq!(
            taken(&lines(expected), &lines(shown)),
            wanted,
            "{expected} {shown}"
        );
    }
}
