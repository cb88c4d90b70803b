//! The wall clock jumps under the relay: nothing but the times in tokens may follow it.

use std::path::Path;
use std::time::Duration;

use crate::harness::{Relay, Screen, Stream, command, database, eventually};
use crate::policies::{ROLES, SECRET, token};

/// Debian's libfaketime; `None` where it is not installed.
fn library() -> Option<String> {
    let found = std::fs::read_dir("/usr/lib")
        .ok()?
        .flatten()
        .find_map(|folder| {
            let file = folder.path().join("faketime/libfaketimeMT.so.1");
            file.exists().then(|| file.display().to_string())
        });
    if found.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "libfaketime is missing: tests/setup.sh test"
        );
        eprintln!("skipped: libfaketime is not installed");
    }
    found
}

fn set(file: &Path, offset: &str) {
    std::fs::write(file, offset).unwrap();
}

async fn survives(monotonic_too: bool) {
    let Some(library) = library() else { return };
    let database = database().await;
    database.sql(ROLES).await;
    let place = tempfile::tempdir().unwrap();
    let clock = place.path().join("clock");
    set(&clock, "+0");
    let mut command = command();
    command
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--database-url",
            &database.url,
        ])
        .args([
            "--jwt-secret",
            SECRET,
            "--anon-role",
            "visitor",
            "--roles",
            "member,visitor",
        ])
        .env("LD_PRELOAD", &library)
        .env("FAKETIME_TIMESTAMP_FILE", &clock)
        .env("FAKETIME_NO_CACHE", "1");
    if !monotonic_too {
        command
            .env("DONT_FAKE_MONOTONIC", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }
    let relay = Relay::run(command).await;
    database
        .sql("create table tasks (id int primary key); grant select on tasks to member, visitor; select rowcast.watch('tasks')")
        .await;
    let mut screen = Screen::default();
    let mut stream = relay.stream("/rest/v1/tasks").await;
    screen.follow(&mut stream, |_| true).await;
    let bearer = format!("Bearer {}", token("member", &["sub=ann"]).await);
    let url = format!("{}/rest/v1/tasks", relay.url);
    let open = async || Stream::with(&url, None, &[("authorization", &bearer)]).await;
    let mut hers = open().await;
    Screen::default().follow(&mut hers, |_| true).await;
    let jumps: &[&str] = if monotonic_too {
        // Only forward: no kernel lets it go back.
        &["+3600", "+90000", "+180000"]
    } else {
        &["+3600", "-3600", "+86400", "-86400", "+0"]
    };
    for (id, jump) in jumps.iter().enumerate() {
        set(&clock, jump);
        let txid = database
            .commit(&format!("insert into tasks values ({id})"))
            .await;
        if monotonic_too {
            // Every timer of the relay has run out at once: it may have begun again.
            let place = stream.id.clone();
            let (back, shown) = eventually("the screen is exact", async || {
                // A connection that was made while the clock jumped may be cut by its limits.
                let (url, place) = (url.clone(), place.clone());
                let opening = tokio::spawn(async move { Stream::open(&url, Some(&place)).await });
                let mut stream = opening.await.ok()?;
                let mut shown = screen.clone();
                while let Some(event) = stream.next_within(Duration::from_secs(3)).await {
                    shown.apply(&event);
                    if shown.complete && event.covers(&txid) {
                        return Some((stream, shown));
                    }
                }
                None
            })
            .await;
            (stream, screen) = (back, shown);
        } else {
            screen.reach(&mut stream, &txid).await;
        }
        assert_eq!(screen.rows.len(), id + 1, "{jump}");
    }
    if !monotonic_too {
        // A token of an hour is over a day later: a new stream is refused, and hers has ended.
        set(&clock, "+86400");
        assert_eq!(open().await.status, 401);
        let ended = async { while hers.next().await.is_some() {} };
        // It looks at the clock once a minute.
        tokio::time::timeout(Duration::from_secs(90), ended)
            .await
            .expect("her stream ends with her token");
    }
}

#[tokio::test]
async fn the_wall_clock_may_jump() {
    survives(false).await;
}

#[tokio::test]
async fn every_clock_may_jump() {
    survives(true).await;
}
