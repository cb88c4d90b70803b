//! Thousands of screens lose their relay at once, and come back to the next one.
//!
//! The screens live in a process of their own, since both ends of a connection cost a descriptor.
//! `ROWCAST_HERD=10000 cargo nextest run --release --test relay herd::` is the long form.

use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::harness::{Relay, Screen, Server, eventually};
use crate::wire::count;

/// What the screens look at.
const VIEWS: [&str; 4] = [
    "/rest/v1/tasks",
    "/rest/v1/tasks?id=gt.0",
    "/rest/v1/tasks?body=eq.open",
    "/rest/v1/tasks?select=id",
];

fn screens() -> usize {
    let count = std::env::var("ROWCAST_HERD").ok();
    count.map_or(300, |count| count.parse().expect("a number of screens"))
}

/// A screen as far as a herd needs it: it keeps its id, waits as it is told, and says when it is up
/// to date.
async fn screen(address: String, path: &'static str, up: mpsc::UnboundedSender<Instant>) {
    let (mut id, mut retry) = (String::new(), Duration::from_secs(1));
    loop {
        if let Ok(socket) = TcpStream::connect(&address).await {
            let mut socket = BufReader::with_capacity(2048, socket);
            let resume = if id.is_empty() {
                String::new()
            } else {
                format!("last-event-id: {id}\r\n")
            };
            // By HTTP/1.0, so that lines are lines and not in chunks.
            let request =
                format!("GET {path} HTTP/1.0\r\naccept: text/event-stream\r\n{resume}\r\n");
            let _broken = socket.get_mut().write_all(request.as_bytes()).await;
            let (mut line, mut told) = (String::new(), false);
            while let Ok(1..) = socket.read_line(&mut line).await {
                if let Some(new) = line.strip_prefix("id: ") {
                    new.trim_end().clone_into(&mut id);
                } else if let Some(new) = line.strip_prefix("retry: ") {
                    retry = Duration::from_millis(new.trim_end().parse().unwrap_or(1000));
                } else if !told && line.starts_with("data: {\"upToDate\":true") {
                    told = true;
                    let _over = up.send(Instant::now());
                }
                line.clear();
            }
        }
        tokio::time::sleep(retry).await;
    }
}

/// The process with the screens. It says `up` when all are, and after a line on its input `back` with
/// the milliseconds of the median, of 95 %, and of the last.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "the other process of the test below"]
async fn of_screens() {
    let Ok(address) = std::env::var("ROWCAST_HERD_AT") else {
        return;
    };
    let count = screens();
    let (up, mut ups) = mpsc::unbounded_channel();
    let pace = Duration::from_micros(700);
    for n in 0..count {
        let path = VIEWS[n % VIEWS.len()];
        tokio::spawn(screen(address.clone(), path, up.clone()));
        tokio::time::sleep(pace).await;
    }
    for _ in 0..count {
        ups.recv().await;
    }
    println!("herd up");
    let line = || tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    line().await.unwrap().unwrap();
    let begun = Instant::now();
    let mut back = Vec::new();
    while back.len() < count
        && let Ok(Some(at)) = tokio::time::timeout(Duration::from_mins(1), ups.recv()).await
    {
        back.push(at.saturating_duration_since(begun).as_millis());
    }
    back.sort_unstable();
    let at = |percent: usize| back.get((count * percent / 100).min(count - 1)).copied();
    let show = |at: Option<u128>| at.map_or("never".to_owned(), |at| at.to_string());
    println!(
        "herd back {} of {count}: {} {} {}",
        back.len(),
        show(at(50)),
        show(at(95)),
        show(at(100))
    );
    // Until the other process ends.
    let _end = line().await;
}

/// The other process.
fn herd(address: &str) -> tokio::process::Child {
    tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "herd::of_screens", "--ignored", "--nocapture"])
        .env("ROWCAST_HERD_AT", address)
        .env("ROWCAST_HERD", screens().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// How many statements the connections of a name have sent, by the server's log from `since` on.
fn asked(log: &std::path::Path, since: u64) -> impl Fn(&str) -> usize {
    let bytes = std::fs::read(log).unwrap();
    let since = usize::try_from(since).unwrap();
    let text = String::from_utf8_lossy(&bytes[since..]).into_owned();
    move |name| {
        let mark = format!(" {name} LOG:  ");
        let asks = ["statement: ", "execute "];
        let lines = text.lines();
        lines
            .filter_map(|line| Some(line.split_once(&mark)?.1))
            .filter(|rest| asks.iter().any(|ask| rest.starts_with(ask)))
            .count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_come_back_after_a_restart_and_the_database_hardly_notices() {
    let server = Server::start(&[("log_statement", "all")]).await;
    let log = server.directory.path().join("d/log/postgres.log");
    let database = server.database().await;
    let first = database.relay().await;
    let address = first.url.trim_start_matches("http://").to_owned();
    database
        .sql(
            "create table tasks (id int primary key, body text);
            insert into tasks select n, 'open' from generate_series(1, 50) n;
            select rowcast.watch('tasks')",
        )
        .await;
    // The next relay begins at a snapshot that this one has noted, and its ring holds what came after that.
    eventually("a snapshot is noted", async || {
        let noted = database.one("select count(*) from rowcast.tick").await;
        (noted != "0").then_some(())
    })
    .await;
    let mut screen = Screen::default();
    let mut stream = first.stream(VIEWS[0]).await;
    screen
        .follow(&mut stream, |screen| screen.rows.len() == 50)
        .await;
    let txid = database
        .commit("insert into tasks values (51, 'open')")
        .await;
    screen.reach(&mut stream, &txid).await;
    let mut herd = herd(&address);
    let (mut tell, told) = (herd.stdin.take().unwrap(), herd.stdout.take().unwrap());
    let mut told = BufReader::new(told).lines();
    let mut hear = async |word: &str| loop {
        let next = tokio::time::timeout(Duration::from_mins(3), told.next_line());
        let line = next.await.expect("the herd says something in time");
        let line = line.unwrap().expect("the herd goes on");
        if line.starts_with(word) {
            return line;
        }
    };
    hear("herd up").await;
    let before = std::fs::metadata(&log).unwrap().len();

    tell.write_all(b"now\n").await.unwrap();
    let begun = Instant::now();
    first.end().await;
    let ended = begun.elapsed();
    let second = eventually("the address is free", async || {
        std::net::TcpListener::bind(&address).ok()?;
        Some(Relay::at(&database, &address, &[]).await)
    })
    .await;
    database
        .sql("update tasks set body = 'while away' where id = 1")
        .await;
    let started = begun.elapsed();
    let back = hear("herd back").await;
    let numbers: Vec<&str> = back.split([' ', ':']).collect();
    assert_eq!(numbers[2], screens().to_string(), "{back}");

    let of = asked(&log, before);
    let names = [
        "rowcast",
        "rowcast looks",
        "rowcast states",
        "rowcast asking",
        "rowcast log",
    ];
    let counts: Vec<usize> = names.iter().map(|name| of(name)).collect();
    let pictures = of("rowcast catalog");
    let resumed = async |from: &str| {
        count(
            &second,
            &format!("rowcast_resumes_total{{result=\"{from}\"}}"),
        )
        .await
    };
    let (ring, log, reset) = (
        resumed("ring").await,
        resumed("log").await,
        resumed("reset").await,
    );
    eprintln!(
        "{back}; ended {ended:?}, started {started:?}; statements {names:?} {counts:?}, \
         of the catalogue {pictures}; ring {ring}, log {log}, reset {reset}"
    );
    assert!(
        ring >= screens() as u64,
        "from the ring: {ring}, log {log}, reset {reset}"
    );
    assert_eq!((log, reset), (0, 0));
    // One look for each view in ten seconds and not one for each screen, of four statements each; and two
    // pictures of the catalogue, of nine. A slow machine looks twice.
    let asked = counts.iter().sum::<usize>() + pictures;
    assert!(asked <= 70, "{asked} statements: {counts:?}, {pictures}");
    let third: u64 = numbers[numbers.len() - 2].parse().unwrap_or(u64::MAX);
    assert!(third <= 60_000, "{back}");

    let mut stream = second.resume(VIEWS[0], &stream.id).await;
    let txid = database.commit("delete from tasks where id = 2").await;
    screen.reach(&mut stream, &txid).await;
    assert_eq!(screen.rows.len(), 50);
    assert_eq!(screen.rows["1"]["body"], "while away");
    drop(tell);
    herd.kill().await.unwrap();
}
