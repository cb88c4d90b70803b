//! The database's disk fills up: writers hear so, screens go on, and nothing has to be restarted.
//! Needs root, for a small file system of its own.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::{Screen, Server};

/// A file system in memory, gone with this value.
struct Small(tempfile::TempDir);

impl Small {
    /// `None` where this process may not mount.
    fn new(megabytes: u32) -> Option<Self> {
        let place = tempfile::Builder::new()
            .prefix("rowcast-small")
            .tempdir_in("/tmp")
            .unwrap();
        let size = format!("size={megabytes}m,mode=755");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(place.path())
            .stderr(std::process::Stdio::null())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then(|| Self(place))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _busy = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0.path())
            .status();
    }
}

#[tokio::test]
async fn a_full_disk_is_told_to_writers_and_survived_by_screens() {
    let Some(small) = Small::new(160) else {
        eprintln!("skipped: a file system cannot be mounted here");
        return;
    };
    let directory = tempfile::Builder::new()
        .prefix("pg")
        .tempdir_in(small.path())
        .unwrap();
    let settings = [("max_wal_size", "32MB"), ("min_wal_size", "32MB")];
    let server = Server::start_in(directory, &settings).await;
    let database = server.database().await;
    let relay = database.relay().await;
    database
        .sql("create table tasks (id int primary key, body text); select rowcast.watch('tasks')")
        .await;
    let mut screen = Screen::default();
    let mut stream = relay.stream("/rest/v1/tasks").await;
    screen.follow(&mut stream, |_| true).await;
    assert_eq!(
        relay
            .post("/rest/v1/tasks", r#"{"id":1,"body":"before"}"#)
            .await
            .status,
        201
    );

    // All that is left but a little, so that a large table no longer fits, and the WAL still does.
    let fill = small.path().join("fill");
    let left = free(small.path());
    let filled = std::fs::File::create(&fill).unwrap();
    allocate(&fill, left.saturating_sub(24 << 20));
    drop(filled);
    // Not compressible, so that its size is its size.
    let mut random = fastrand::Rng::with_seed(3);
    let noise: String = std::iter::repeat_with(|| random.alphanumeric())
        .take(900_000)
        .collect();
    let big = format!(r#"{{"id":2,"body":"{noise}"}}"#);
    let mut refused = None;
    for id in 2..400 {
        let body = big.replacen("\"id\":2", &format!("\"id\":{id}"), 1);
        let answer = relay.post("/rest/v1/tasks?select=id", &body).await;
        if !answer.status.is_success() {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("the disk fills up");
    let code = refused.json()["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert!(
        ["53100", "PGRST000", "PGRST001", "RCR02"].contains(&&*code),
        "{}",
        refused.body
    );
    assert_eq!(refused.header("retry-after"), "2");
    assert_eq!(relay.get("/livez").await.status, 200);

    std::fs::remove_file(&fill).unwrap();
    let begun = Instant::now();
    let written = loop {
        let answer = relay
            .post("/rest/v1/tasks", r#"{"id":1000,"body":"after"}"#)
            .await;
        if answer.status == 201 {
            break answer;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", answer.body);
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    // Where the server itself had to begin again, a stream may have ended with a time to come back.
    let truth = database.one("select count(*) from tasks").await;
    while !(screen.complete && screen.rows.len().to_string() == truth) {
        match stream.next().await {
            Some(event) => screen.apply(&event),
            None => stream = relay.resume("/rest/v1/tasks", &stream.id).await,
        }
        assert!(
            begun.elapsed() < Duration::from_mins(1),
            "{}",
            screen.rows.len()
        );
    }
    assert!(screen.rows.contains_key("1000"), "{}", written.txid());
    eprintln!(
        "refused with {code}; written again after {:?}",
        begun.elapsed()
    );
    drop(relay);
    server.cluster.stop().await;
}

/// Free bytes of a file system.
fn free(path: &Path) -> u64 {
    let said = std::process::Command::new("df")
        .args(["-B1", "--output=avail"])
        .arg(path)
        .output();
    let said = String::from_utf8(said.unwrap().stdout).unwrap();
    said.lines().last().unwrap().trim().parse().unwrap()
}

fn allocate(file: &Path, bytes: u64) {
    let done = std::process::Command::new("fallocate")
        .arg("-l")
        .arg(bytes.to_string())
        .arg(file)
        .status();
    assert!(done.unwrap().success());
}
