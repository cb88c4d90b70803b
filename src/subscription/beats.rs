//! When streams say how things stand: all of one relay by one clock.
//!
//! A timer for each stream wakes a task that nobody has looked at for five seconds, and each alone wakes
//! whoever reads (measured: 50 to 90 µs, where an event that is written where it is published costs 4). So
//! those whose turn it is come one after the other, and what is said to a stream that waits is
//! [written for it](Direct); only one that is at work, or not as far as the feed, is woken to say it itself.

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use super::direct::Direct;
use super::{Parts, control};
use crate::cursor::{Cursor, Name, Token};
use crate::feed::Position;
use crate::sse;

/// Between two turns.
const BEAT: Duration = Duration::from_millis(100);
/// Each stream has its turn every 4.5 s. A screen that hears nothing for 12 s calls itself stale, and there are
/// clients that take a stream for dead after 5 s without a byte (Python's httpx, unless it is told otherwise):
/// half a second is for turns that come late, and for the way.
const TURNS: usize = 45;
/// All turns.
pub(super) const EVERY: Duration = Duration::from_millis(4500);
/// Streams in a row that have the same turn, so that a few of them do not wake the relay for each.
const TOGETHER: usize = 16;
/// Streams in a row before others get theirs, and before it is looked again how things stand.
const AT_ONCE: usize = 256;
/// How often it is looked, before the next turn, whether streams that were being told something have it now.
const LOOKS: u32 = 6;

/// The streams of one relay.
#[derive(Debug)]
pub struct Beats(Mutex<Inside>);

#[derive(Debug)]
struct Inside {
    turns: [Vec<Weak<Direct>>; TURNS],
    /// How many came so far.
    came: usize,
}

impl Default for Beats {
    fn default() -> Self {
        Self(Mutex::new(Inside {
            turns: std::array::from_fn(|_| Vec::new()),
            came: 0,
        }))
    }
}

impl Beats {
    /// A stream that is there until it is dropped.
    pub(super) fn add(&self, stream: &Arc<Direct>) {
        let mut inside = self.lock();
        let turn = inside.came / TOGETHER % TURNS;
        inside.came += 1;
        inside.turns[turn].push(Arc::downgrade(stream));
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        let Self(inside) = self;
        inside.lock().expect("nothing panics while holding it")
    }

    /// Those whose turn it is.
    fn of(&self, turn: usize) -> Vec<Arc<Direct>> {
        let mut streams = Vec::new();
        self.lock().turns[turn].retain(|stream| {
            let stream = stream.upgrade();
            let is_there = stream.is_some();
            streams.extend(stream);
            is_there
        });
        streams
    }
}

/// Says to the streams of `parts` how things stand, until the stop signal.
pub async fn run(parts: Parts) {
    let shutdown = parts.shutdown.clone();
    tokio::select! {
        _grace = shutdown.begun() => {}
        () = turns(&parts) => {}
    }
}

async fn turns(parts: &Parts) {
    let begun = Instant::now();
    let mut done = 0;
    loop {
        sleep_until(begun + BEAT * (done + 1)).await;
        let now = begun.elapsed().as_millis() / BEAT.as_millis();
        let now = u32::try_from(now).unwrap_or(u32::MAX);
        // After a time in which nothing ran, everybody has one turn.
        let most = u32::try_from(TURNS).unwrap_or(u32::MAX);
        for beat in now.saturating_sub(most).max(done)..now {
            let is_late = beat + 1 < now;
            turn(parts, usize::try_from(beat).unwrap_or(0) % TURNS, is_late).await;
        }
        done = now;
    }
}

/// Of those whose turn it is. Where there is no time, nobody is waited for.
async fn turn(parts: &Parts, turn: usize, is_late: bool) {
    let mut left = parts.beats.of(turn);
    let looks = if is_late { 0 } else { LOOKS };
    for looks in (0..=looks).rev() {
        left = say(parts, &left, looks > 0).await;
        if left.is_empty() {
            return;
        }
        // An event is being told to all of them, one after the other.
        tokio::time::sleep(BEAT / (LOOKS + 2)).await;
    }
}

/// Says to these how things stand. Returns those that are `worth_waiting` for.
async fn say(parts: &Parts, streams: &[Arc<Direct>], worth_waiting: bool) -> Vec<Arc<Direct>> {
    let mut left = Vec::new();
    for streams in streams.chunks(AT_ONCE) {
        let mut now = Now::of(parts);
        let behind = |stream: &&Arc<Direct>| !stream.beat(&mut now, worth_waiting);
        left.extend(streams.iter().filter(behind).cloned());
        tokio::task::yield_now().await;
    }
    left
}

/// How things stand.
pub(super) struct Now {
    /// Read before anything is looked at: all events up to here are in their topics.
    position: Option<Position>,
    state: control::State,
    /// What is said to the screens of a view, as a chunk.
    said: Option<(Name, Bytes, usize)>,
}

impl Now {
    fn of(parts: &Parts) -> Self {
        Self {
            position: parts.stage.position(),
            state: parts.state(true),
            said: None,
        }
    }

    /// How far the feed is, in that life of the transaction counter.
    pub(super) fn until(&self, epoch: Name) -> Option<&Arc<Cursor>> {
        let position = self.position.as_ref()?;
        (position.epoch == epoch).then_some(&position.cursor)
    }

    /// The control for a screen of `view` that has been told everything up to there, as a chunk, and the
    /// length of what is in it.
    pub(super) fn control(&mut self, view: Name) -> Option<(Bytes, usize)> {
        if let Some((of, said, length)) = &self.said
            && *of == view
        {
            return Some((said.clone(), *length));
        }
        let position = self.position.as_ref()?;
        let token = Token {
            epoch: position.epoch,
            view,
            cursor: (*position.cursor).clone(),
        };
        let control = control::frame(&token.to_string(), None, self.state, "");
        let (chunk, _) = sse::chunk(&[&control]);
        self.said = Some((view, chunk.clone(), control.len()));
        Some((chunk, control.len()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::hub::{Bounds, Topic};
    use crate::metrics::Metrics;
    use crate::subscription::direct::Outlet;
    use crate::view::Delivery;

    /// Keeps what is written, and takes so many bytes at most.
    struct Paper(Mutex<String>, AtomicUsize);

    impl Outlet for Paper {
        fn write(&self, chunk: &Bytes) -> usize {
            let Self(text, room) = self;
            let taken = chunk.len().min(room.load(Ordering::Relaxed));
            text.lock()
                .unwrap()
                .push_str(std::str::from_utf8(&chunk[..taken]).unwrap());
            taken
        }
    }

    fn epoch() -> Name {
        Name::of(["epoch"])
    }

    fn now(xmax: u64) -> Now {
        Now {
            position: Some(Position {
                epoch: epoch(),
                cursor: Arc::new(Cursor::new(xmax, [])),
                read: None,
            }),
            state: control::State {
                fresh: true,
                lag: Duration::ZERO,
            },
            said: None,
        }
    }

    /// A stream that is at 7 and has taken all of an empty topic, and its connection.
    fn stream(room: usize) -> (Arc<Direct>, Topic<Delivery>, Arc<Paper>) {
        let stream = Arc::new(Direct::new(Arc::new(Metrics::new())));
        let topic = Topic::new(Bounds {
            items: 9,
            weight: 99,
        });
        let paper = Arc::new(Paper(Mutex::default(), AtomicUsize::new(room)));
        let outlet: Arc<Paper> = Arc::clone(&paper);
        stream.lend(outlet);
        stream.shows(epoch(), Name::of(["view"]), topic.clone());
        stream.offer(&Arc::new(Cursor::new(7, [])), 0);
        stream.idle();
        (stream, topic, paper)
    }

    fn is_due(stream: &Direct) -> bool {
        use futures::FutureExt;
        stream.is_due().now_or_never().is_some()
    }

    #[test]
    fn who_waits_and_has_everything_is_told_how_far_the_feed_is() {
        let (stream, _topic, paper) = stream(1000);
        assert!(stream.beat(&mut now(9), false));
        let text = paper.0.lock().unwrap().clone();
        assert!(
            text.contains(r#""upToDate":true"#) && text.contains(".9\n"),
            "{text}"
        );
        assert!(!is_due(&stream));
        assert_eq!(stream.withdraw(), Some(Arc::new(Cursor::new(9, []))));
    }

    #[test]
    fn who_has_not_taken_everything_or_is_at_work_says_it_himself() {
        let (waiting, topic, first) = stream(1000);
        topic.push(Delivery::Notify(Bytes::new()), 0);
        assert!(!waiting.beat(&mut now(9), true));
        assert!(!is_due(&waiting));
        assert!(waiting.beat(&mut now(9), false));
        let (ahead, _topic, second) = stream(1000);
        assert!(!ahead.beat(&mut now(6), true) && ahead.beat(&mut now(6), false));
        let (busy, _topic, third) = stream(1000);
        busy.busy();
        assert!(busy.beat(&mut now(9), true));
        let (elsewhere, _topic, fourth) = stream(1000);
        elsewhere.shows(Name::of(["before"]), Name::of(["view"]), topic);
        assert!(elsewhere.beat(&mut now(9), true));
        let seven = Some(Arc::new(Cursor::new(7, [])));
        for (stream, paper) in [
            (waiting, first),
            (ahead, second),
            (busy, third),
            (elsewhere, fourth),
        ] {
            assert_eq!(*paper.0.lock().unwrap(), "");
            assert!(is_due(&stream) && !is_due(&stream));
            assert_eq!(stream.withdraw(), seven);
        }
    }

    #[test]
    fn what_does_not_fit_is_left_to_the_connection() {
        let (stream, _topic, paper) = stream(5);
        assert!(stream.beat(&mut now(9), false));
        assert!(is_due(&stream));
        let rest = stream.busy().unwrap();
        let text = paper.0.lock().unwrap().clone() + std::str::from_utf8(&rest).unwrap();
        assert!(text.ends_with("\r\n") && text.contains(".9\n"), "{text}");
        assert_eq!(stream.withdraw(), Some(Arc::new(Cursor::new(9, []))));
    }

    #[test]
    fn nobody_hears_nothing_for_five_seconds_though_a_turn_be_late() {
        assert_eq!(EVERY, BEAT * u32::try_from(TURNS).unwrap());
        let most_late = BEAT / (LOOKS + 2) * LOOKS;
        let way = Duration::from_millis(250);
        assert!(EVERY + most_late + way <= Duration::from_secs(5));
    }

    #[test]
    fn streams_have_turns_and_are_forgotten_when_they_end() {
        let beats = Beats::default();
        let streams: Vec<_> = (0..=TOGETHER).map(|_| stream(0).0).collect();
        for stream in &streams {
            beats.add(stream);
        }
        assert_eq!(beats.of(1).len(), 1);
        assert_eq!(beats.of(0).len(), TOGETHER);
        drop(streams);
        let late = stream(0).0;
        beats.lock().turns[0].push(Arc::downgrade(&late));
        assert_eq!(beats.of(0).len(), 1);
        assert_eq!(beats.lock().turns[0].len(), 1);
    }
}
