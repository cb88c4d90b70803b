//! A stream whose reads take as long as a test wants.

use std::pin::pin;

use futures::StreamExt;
use jiff::Timestamp;

use super::*;
use crate::cursor::{Cursor, Token};
use crate::event::{Change, Delta, Element, Message, Scope, State as Before, Transaction};
use crate::log::{Batch, Place as Log};
use crate::schema::catalog::Catalog;
use crate::view::Sight;
use crate::view::answering::tests::asking;
use crate::view::asking::Asking;
use crate::view::snapshot::{self, State as Rows};
use crate::view::tests::definition;

fn epoch() -> Name {
    Name::of(["epoch"])
}

fn at(xmax: u64) -> Cursor {
    Cursor::new(xmax, [])
}

/// The feed, and the rounds beside it, read to the end of the log.
fn read_on(stage: &Stage, health: &Health, xmax: u64) {
    let from = stage.position().map_or(at(10), |at| (*at.cursor).clone());
    stage.publish(&batch(xmax), &from, true);
    health.polled();
    assert!(stage.round(&stage.position().unwrap()).is_none());
}

/// Nothing, up to there.
fn batch(xmax: u64) -> Batch {
    Batch {
        end: at(xmax),
        epoch: Some(epoch()),
        horizon: None,
        gap: 0,
        gap_told: 0,
        rows: 0,
        definitions: Vec::new(),
        transactions: Vec::new(),
    }
}

/// A database whose answer takes its time, while the feed reads on.
#[derive(Debug)]
struct Slow {
    takes: Duration,
    stage: Arc<Stage>,
    health: Arc<Health>,
}

impl Reads for Slow {
    fn catalog(&self) -> Arc<Catalog> {
        Arc::default()
    }

    fn reload(&self) -> BoxFuture<'_, bool> {
        Box::pin(async { true })
    }

    fn log<'a>(&'a self, _: Since<'a>) -> BoxFuture<'a, Option<Batch>> {
        Box::pin(async { None })
    }

    fn state(&self, _: Arc<View>, _: &Log) -> BoxFuture<'static, Result<Rows, SnapshotError>> {
        Box::pin(async { Err(SnapshotError::NoSnapshot) })
    }

    fn answers<'a>(
        &'a self,
        _: &'a View,
        _: &'a Asking,
        _: Since<'a>,
        _: Ask<'a>,
    ) -> BoxFuture<'a, Option<(Cursor, Vec<Element>)>> {
        Box::pin(async {
            tokio::time::sleep(self.takes).await;
            read_on(&self.stage, &self.health, 20);
            Some((at(12), Vec::new()))
        })
    }
}

fn view() -> View {
    let sight = Sight::Asking(Arc::new(asking()));
    View::new(Name::of(["v"]), definition(1, sight))
}

/// What somebody needs who subscribes to a feed that is at 11, where finding out what he missed takes so
/// long.
fn parts(takes: Duration) -> Parts {
    let metrics = Arc::new(Metrics::new());
    let stage = Arc::new(Stage::new(Arc::clone(&metrics)));
    stage.begin(&Log::new("here".into()), epoch(), at(10), &at(10));
    let health = Arc::new(Health::new());
    read_on(&stage, &health, 11);
    let reads = Slow {
        takes,
        stage: Arc::clone(&stage),
        health: Arc::clone(&health),
    };
    let parts = Parts {
        stage,
        reads: Arc::new(reads),
        health,
        metrics,
        shutdown: Shutdown::new(),
        beats: Arc::default(),
        limits: Limits::default(),
        explain: |trouble| Unavailable {
            body: format!("\"{trouble}\""),
            passing: false,
            crowded: false,
        },
    };
    tokio::spawn(beats::run(parts.clone()));
    parts
}

/// Its messages, for ever.
fn lobby() -> Source {
    Source::Channel("lobby".to_owned(), watch::Sender::default().subscribe())
}

/// Likewise, but no more than a few events are taken at a time.
fn frugal() -> Parts {
    Parts {
        limits: Limits {
            mouthful: 0,
            ..Limits::default()
        },
        ..parts(Duration::ZERO)
    }
}

/// More of them than are taken at a time, each of its own transaction.
fn messages() -> Batch {
    let messages = (11..31).map(|xid| {
        let message = Message {
            channel: "lobby".to_owned(),
            payload: Arc::from("1"),
            at: Timestamp::UNIX_EPOCH,
        };
        Arc::new(Transaction {
            xid,
            at: Timestamp::UNIX_EPOCH,
            deltas: Vec::new(),
            messages: vec![message],
            reset_all: false,
        })
    });
    Batch {
        transactions: messages.collect(),
        ..batch(31)
    }
}

/// The controls of somebody who comes back from 11.
fn controls(takes: Duration) -> impl Stream<Item = String> {
    controls_with(parts(takes))
}

fn controls_with(parts: Parts) -> impl Stream<Item = String> {
    let made = parts.stage.definitions();
    let opener: Opener = Arc::new(move || Box::pin(async move { Ok(view().made_at(made)) }));
    let token = Token {
        epoch: epoch(),
        view: view().name(),
        cursor: at(11),
    };
    let token = Some(token.to_string());
    controls_of(Subscription::new(
        parts,
        Source::View(opener),
        token,
        None,
        None,
    ))
}

/// The next control. In the time of these tests a minute passes at once when nothing else will happen.
async fn next(controls: &mut (impl Stream<Item = String> + Unpin)) -> String {
    let control = timeout(Duration::from_mins(1), controls.next()).await;
    control.expect("a control within a minute").unwrap()
}

fn controls_of(stream: Subscription) -> impl Stream<Item = String> {
    stream.frames().filter_map(async |frame| {
        let frame = String::from_utf8(frame.to_vec()).unwrap();
        frame.contains("event: control").then_some(frame)
    })
}

#[tokio::test(start_paused = true)]
async fn nobody_is_told_to_be_up_to_date_by_what_was_found_out_long_ago() {
    let says = |control: &str, xmax, fresh| {
        let id = format!(".{}\n", at(xmax));
        let fresh = format!(r#""upToDate":{fresh}"#);
        assert!(
            control.contains(&id) && control.contains(&fresh),
            "{control}"
        );
    };
    let mut quick = pin!(controls(Duration::from_secs(1)));
    says(&next(&mut quick).await, 12, true);
    // By now the feed and its view are at 20, which is of no use to a screen that is at 12.
    let mut slow = pin!(controls(Duration::from_secs(7)));
    says(&next(&mut slow).await, 11, false);
    says(&next(&mut slow).await, 12, false);
    // It does not have to wait for the one that says that it is there.
    let begun = Instant::now();
    says(&next(&mut slow).await, 20, true);
    assert!(begun.elapsed() < Duration::from_millis(10));
}

#[tokio::test(start_paused = true)]
async fn who_has_not_taken_everything_is_not_told_to_be_up_to_date() {
    let parts = frugal();
    let (stage, health) = (Arc::clone(&parts.stage), Arc::clone(&parts.health));
    let source = lobby();
    let mut controls = pin!(controls_of(Subscription::new(
        parts, source, None, None, None
    )));
    let first = next(&mut controls).await;
    assert!(first.contains(r#""upToDate":true"#), "{first}");
    // Past its next turn.
    tokio::time::sleep(Duration::from_secs(6)).await;
    stage.publish(&messages(), &at(11), true);
    health.polled();
    let early = next(&mut controls).await;
    assert!(early.contains(r#""upToDate":false"#), "{early}");
    let later = next(&mut controls).await;
    assert!(later.contains(&format!(".{}\n", at(31))), "{later}");
}

#[tokio::test(start_paused = true)]
async fn who_has_not_taken_everything_when_the_relay_stops_is_not_told_to_be_up_to_date() {
    let parts = frugal();
    let (stage, shutdown) = (Arc::clone(&parts.stage), parts.shutdown.clone());
    let source = lobby();
    let mut controls = pin!(controls_of(Subscription::new(
        parts, source, None, None, None
    )));
    let first = next(&mut controls).await;
    assert!(first.contains(r#""upToDate":true"#), "{first}");
    stage.publish(&messages(), &at(11), true);
    shutdown.begin(Duration::from_secs(10));
    let goodbye = next(&mut controls).await;
    assert!(goodbye.contains(r#""closing":true"#), "{goodbye}");
    assert!(goodbye.contains(r#""upToDate":false"#), "{goodbye}");
}

#[tokio::test(start_paused = true)]
async fn streams_that_began_at_different_moments_say_together_how_things_stand() {
    let parts = parts(Duration::ZERO);
    let open = || {
        let source = lobby();
        let stream = Subscription::new(parts.clone(), source, None, None, None);
        Box::pin(controls_of(stream))
    };
    let mut early = open();
    next(&mut early).await;
    tokio::time::advance(Duration::from_millis(30)).await;
    let mut late = open();
    next(&mut late).await;
    let mut before: Option<Instant> = None;
    for _ in 0..4 {
        next(&mut early).await;
        let now = Instant::now();
        next(&mut late).await;
        assert_eq!(Instant::now(), now);
        if let Some(before) = before {
            let pause = (now - before).as_millis();
            assert!((4490..=4510).contains(&pause), "{pause}");
        }
        before = Some(now);
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_long_for_a_state_hears_that_the_relay_is_at_it() {
    let mut controls = pin!(controls(Duration::from_secs(29)));
    let begun = Instant::now();
    for signs in 1..=6 {
        let control = next(&mut controls).await;
        assert_eq!(begun.elapsed().as_secs(), signs * 9 / 2);
        // With the place that it came from, and would come back from.
        let id = format!(".{}\n", at(11));
        let waits = r#"{"upToDate":false,"lag_ms":"#;
        assert!(
            control.contains(&id) && control.contains(waits),
            "{control}"
        );
    }
    let there = next(&mut controls).await;
    assert_eq!(begun.elapsed().as_secs(), 29);
    assert!(there.contains(&format!(".{}\n", at(12))), "{there}");
}

#[tokio::test(start_paused = true)]
async fn who_is_still_waiting_for_a_state_is_told_that_the_relay_stops() {
    let parts = parts(Duration::from_hours(1));
    let shutdown = parts.shutdown.clone();
    let mut controls = pin!(controls_with(parts));
    let stop = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        shutdown.begin(Duration::from_secs(10));
    };
    let (goodbye, ()) = futures::join!(next(&mut controls), stop);
    let id = format!(".{}\n", at(11));
    assert!(goodbye.contains(&id), "{goodbye}");
    assert!(goodbye.contains(r#""closing":true"#), "{goodbye}");
    let (_, retry) = goodbye.split_once("retry: ").unwrap();
    let (retry, _) = retry.split_once('\n').unwrap();
    let told = format!(r#""retry_ms":{retry}}}"#);
    assert!(goodbye.contains(&told), "{goodbye}");
    assert_eq!(controls.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_channel_is_listened_to_from_before_its_stream_opens_until_the_last_one_is_gone() {
    let parts = parts(Duration::ZERO);
    let wanted = parts.stage.wanted();
    let held = || Held::join(&parts.stage, "lobby").unwrap();
    let stream = || {
        let source = lobby();
        Subscription::new(parts.clone(), source, None, None, None).holding(held())
    };
    // Gone while it waits, and gone before anybody has looked at the stream.
    let waits = held();
    assert!(wanted.borrow().iter().eq(["lobby"]));
    drop(waits);
    assert!(wanted.borrow().is_empty());
    drop(stream());
    assert!(wanted.borrow().is_empty());

    let opens = stream();
    drop(held());
    assert!(wanted.borrow().iter().eq(["lobby"]));
    let mut controls = pin!(controls_of(opens));
    assert!(next(&mut controls).await.contains("event: control"));
    drop(held());
    assert!(wanted.borrow().iter().eq(["lobby"]));
    drop(stream());
    assert!(wanted.borrow().iter().eq(["lobby"]));
}

#[tokio::test(start_paused = true)]
async fn a_channel_s_stream_ends_where_it_is_once_its_permit_is_taken_back() {
    let parts = parts(Duration::ZERO);
    let wanted = parts.stage.wanted();
    let permits = watch::Sender::default();
    let open = |permit| {
        let source = Source::Channel("lobby".to_owned(), permit);
        Subscription::new(parts.clone(), source, None, None, None)
    };
    let mut controls = pin!(controls_of(open(permits.subscribe())));
    next(&mut controls).await;
    read_on(&parts.stage, &parts.health, 40);
    permits.send_replace(Some(Unavailable {
        body: "\"no more\"".to_owned(),
        passing: false,
        crowded: false,
    }));
    let goodbye = next(&mut controls).await;
    for told in [&format!(".{}\n", at(11)), r#""error":"no more""#, "retry: "] {
        assert!(goodbye.contains(told), "{told} is not in {goodbye}");
    }
    assert_eq!(controls.next().await, None);
    assert!(wanted.borrow().is_empty(), "nobody listens any more");
    // One that begins again is not given what came since.
    let mut again = pin!(controls_of(open(permits.subscribe())));
    assert!(next(&mut again).await.contains("no more"));
    assert_eq!(again.next().await, None);
}

/// A database in which a view holds nothing, and what changed since comes to this.
#[derive(Debug)]
struct Holds(Vec<Element>);

impl Reads for Holds {
    fn catalog(&self) -> Arc<Catalog> {
        Arc::default()
    }

    fn reload(&self) -> BoxFuture<'_, bool> {
        Box::pin(async { true })
    }

    fn log<'a>(&'a self, _: Since<'a>) -> BoxFuture<'a, Option<Batch>> {
        Box::pin(async { None })
    }

    fn state(&self, view: Arc<View>, _: &Log) -> BoxFuture<'static, Result<Rows, SnapshotError>> {
        let (pieces, digest) = snapshot::Pieces::new(&view, snapshot::PIECE).finish();
        let state = Rows {
            cursor: at(12),
            epoch: Some(epoch()),
            pieces,
            digest,
        };
        Box::pin(async { Ok(state) })
    }

    fn answers<'a>(
        &'a self,
        _: &'a View,
        _: &'a Asking,
        _: Since<'a>,
        _: Ask<'a>,
    ) -> BoxFuture<'a, Option<(Cursor, Vec<Element>)>> {
        Box::pin(async { Some((at(12), self.0.clone())) })
    }
}

/// Somebody opens a view while the feed has yet to read that its table was defined anew, which the state that is
/// read holds already: the view is joined again. Whether those who are there may be shown a row then.
async fn may_be_shown_after_joining_again(missed: Vec<Element>) -> bool {
    let parts = Parts {
        reads: Arc::new(Holds(missed)),
        ..parts(Duration::ZERO)
    };
    let stage = Arc::clone(&parts.stage);
    let opener: Opener = {
        let stage = Arc::clone(&stage);
        Arc::new(move || {
            let made = stage.definitions();
            Box::pin(async move { Ok(view().made_at(made)) })
        })
    };
    let stream = Subscription::new(parts, Source::View(opener), None, None, None);
    let mut controls = Box::pin(controls_of(stream));
    next(&mut controls).await;
    let read = |xid, scope, changes| {
        let delta = Delta {
            table: 1,
            scope,
            changes,
        };
        let transaction = Transaction {
            xid,
            at: Timestamp::UNIX_EPOCH,
            deltas: vec![delta],
            messages: Vec::new(),
            reset_all: false,
        };
        let batch = Batch {
            transactions: vec![Arc::new(transaction)],
            ..batch(xid + 1)
        };
        stage.publish(&batch, &at(xid), true);
        let here = stage.position().unwrap();
        assert!(stage.round(&here).is_some());
        stage.questions(&batch, &here)
    };
    assert!(read(11, Scope::Unknown, Vec::new()).is_empty());
    next(&mut controls).await;
    let went = Change {
        key: "1".into(),
        before: Before::Row(r#"{"id":1}"#.into()),
        after: Before::Absent,
        at: Timestamp::UNIX_EPOCH,
    };
    let questions = read(12, Scope::Keys, vec![went]);
    assert_eq!(questions.len(), 1);
    questions[0].view.may_be_shown()
}

#[tokio::test(start_paused = true)]
async fn who_has_been_shown_nothing_is_not_told_what_goes_because_the_view_was_joined_again() {
    assert!(!may_be_shown_after_joining_again(Vec::new()).await);
    let came = Element::Row {
        key: "1".into(),
        value: None,
    };
    assert!(may_be_shown_after_joining_again(vec![came]).await);
}
