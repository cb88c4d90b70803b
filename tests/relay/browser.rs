//! A real Chromium in front of the relay; its scripts are in `tests/browser/`.

use crate::clients::node;
use crate::harness::{Relay, database, eventually};
use crate::installed::{folder, has_chromium};

#[tokio::test]
async fn an_event_source_of_chromium_outlives_the_relay() {
    if !has_chromium() {
        return;
    }
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql("create table notes (id int primary key, title text not null); create table wishes (id int primary key); select rowcast.expose('wishes'); insert into notes values (1, 'there'); select rowcast.watch('notes')")
        .await;
    let script = folder("browser").join("eventsource.test.mjs");
    let url = relay.url.clone();
    let restart = async {
        eventually("the page's wish for a restart", async || {
            let wish = "select 'wished' from wishes";
            (database.one(wish).await == "wished").then_some(())
        })
        .await;
        relay.kill().await;
        database.sql("insert into notes values (4, 'missed')").await;
        let address = url.trim_start_matches("http://");
        Relay::at(&database, address, &[]).await
    };
    let script = node(&script, &url, &database.url);
    tokio::pin!(script, restart);
    // The script fails for its own reasons, and it is the one to say so.
    let _relay = tokio::select! {
        () = &mut script => return,
        relay = &mut restart => relay,
    };
    script.await;
}

#[tokio::test]
async fn the_client_module_keeps_the_replica_that_events_describe() {
    if !has_chromium() {
        return;
    }
    // Pure: it asks no relay.
    node(&folder("browser").join("replica.test.mjs"), "", "").await;
}

#[tokio::test]
async fn the_client_module_comes_back_and_writes_once_before_a_relay_that_is_played() {
    if !has_chromium() {
        return;
    }
    node(&folder("browser").join("stream.test.mjs"), "", "").await;
}

#[tokio::test]
async fn two_windows_show_the_same_board() {
    on_the_board("board.test.mjs").await;
}

#[tokio::test]
async fn people_sign_in_keep_reminders_and_meet_at_a_card() {
    on_the_board("people.test.mjs").await;
}

#[tokio::test]
async fn nothing_is_lost_doubled_or_shown_to_others_when_something_goes_wrong_at_the_board() {
    on_the_board("trouble.test.mjs").await;
}

async fn on_the_board(script: &str) {
    if !has_chromium() {
        return;
    }
    let directory = tempfile::Builder::new()
        .prefix("rowcast-board")
        .tempdir_in("/tmp")
        .unwrap();
    let (relay, database) = Relay::demo(&directory.path().join("d")).await;
    node(&folder("browser").join(script), &relay.url, &database).await;
    // Its private PostgreSQL ends with it.
    relay.end().await;
}
