//! What one connection was given so far, and what follows from each thing that comes.
//!
//! Everything that keeps a screen from missing a change, or seeing one twice, is decided here: what
//! it has already is skipped, its token is the union of everything it was told, and what ends its
//! topic sends it back to where it can go on. Pure: no socket, no task, no clock.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tracing::debug;

use super::control;
use crate::cursor::{Cursor, Name, START, Token};
use crate::mutants::{Mutant, on};
use crate::sse;
use crate::view::asking::Digest;
use crate::view::snapshot::Snapshot;
use crate::view::{Delivery, Effect, Event};

/// One connection's place.
#[derive(Debug)]
pub(super) struct Screen {
    epoch: Name,
    /// What it shows.
    view: Name,
    /// What the connection was given so far.
    sent: Arc<Cursor>,
    /// Where the state was read, or compared, that everything since was added to.
    read: Arc<Cursor>,
    /// Of what it shows now, where that is known.
    digest: Option<Digest>,
    /// `sent` is the feed's own cursor after some transaction, so its frames can be shared.
    in_step: bool,
}

/// What came of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Taken {
    /// The screen has it already.
    Known,
    /// It was queued.
    Told,
    /// The stream begins again, with a new state.
    Anew,
    /// The stream begins again, from where it is.
    Again,
}

impl Screen {
    /// One that was given everything up to `until`, and had everything up to `from`; `feed` is how
    /// far the feed was when it joined.
    pub(super) fn caught_up(
        epoch: Name,
        view: Name,
        from: &Cursor,
        until: &Arc<Cursor>,
        feed: &Arc<Cursor>,
    ) -> Self {
        let sent = if until.covers(from) {
            Arc::clone(until)
        } else {
            Arc::new(until.union(from))
        };
        Self {
            epoch,
            view,
            in_step: sent == *feed,
            read: Arc::clone(&sent),
            digest: None,
            sent,
        }
    }

    /// One that was given a state.
    pub(super) fn fresh(epoch: Name, view: Name, snapshot: &Snapshot) -> Self {
        Self {
            epoch,
            view,
            sent: Arc::clone(&snapshot.cursor),
            read: Arc::clone(&snapshot.cursor),
            digest: Some(snapshot.digest),
            in_step: false,
        }
    }

    /// The life of the transaction counter it is in.
    pub(super) fn epoch(&self) -> Name {
        self.epoch
    }

    /// What it shows.
    pub(super) fn view(&self) -> Name {
        self.view
    }

    /// Where it is.
    pub(super) fn token(&self) -> Token {
        Token {
            epoch: self.epoch,
            view: self.view,
            cursor: (*self.sent).clone(),
        }
    }

    /// Up to where it was told, if the feed's own frames can be written to it.
    pub(super) fn in_step(&self) -> Option<&Arc<Cursor>> {
        self.in_step.then_some(&self.sent)
    }

    /// It was given the feed's own frames up to here, by somebody else.
    pub(super) fn was_told(&mut self, sent: Arc<Cursor>) {
        self.sent = sent;
        self.digest = None;
    }

    /// There was nothing to tell up to here, where what it shows is.
    pub(super) fn move_to(&mut self, told: &Arc<Cursor>) {
        self.sent = merge(&self.sent, told);
    }

    /// There was nothing to tell up to here, where the feed is.
    pub(super) fn move_to_feed(&mut self, told: &Arc<Cursor>) {
        self.move_to(told);
        self.in_step = self.in_step || Arc::ptr_eq(&self.sent, told);
    }

    /// Queues what there is to tell of a delivery.
    pub(super) fn take(&mut self, delivery: &Delivery, queue: &mut VecDeque<Bytes>) -> Taken {
        match delivery {
            Delivery::Event(event) => self.take_event(event, queue),
            Delivery::Check(check) => {
                if check.mark().is_in(&self.sent) {
                    return Taken::Known;
                }
                if check.holds_for(&self.read, self.digest) {
                    self.read = Arc::clone(&check.at);
                    self.digest = Some(check.digest);
                    return Taken::Known;
                }
                debug!("the state was read between two comparisons, and is read again");
                Taken::Anew
            }
            // Without a place in the log of its own, it leaves the client where it is.
            Delivery::Notify(body) => {
                queue.push_back(self.head());
                queue.push_back(body.clone());
                Taken::Told
            }
            Delivery::Reset(mark) => {
                // A state that was read after it holds what it was about already.
                let known = mark.as_ref().is_some_and(|mark| mark.is_in(&self.sent));
                debug!(?mark, known, "stream begins again");
                if known { Taken::Again } else { Taken::Anew }
            }
        }
    }

    fn take_event(&mut self, event: &Event, queue: &mut VecDeque<Bytes>) -> Taken {
        if event.mark.is_in(&self.sent) && !on(Mutant::M12) {
            return Taken::Known;
        }
        let news = event.news(&self.sent);
        self.digest = match (event.effect, self.digest) {
            (_, digest) if on(Mutant::R10) => digest,
            _ if news.is_some() => None,
            (Effect::Checked, digest) => digest,
            (Effect::Change(change), Some(digest)) => Some(digest.after(change)),
            (Effect::Change(_), None) | (Effect::Unknown, _) => None,
        };
        // Then the token of the event is this connection's own as well.
        if self.in_step || event.cursor.covers(&self.sent) {
            self.in_step = true;
            self.sent = Arc::clone(&event.cursor);
            if news.is_none() {
                queue.push_back(event.frame.clone());
                return Taken::Told;
            }
        } else {
            self.sent = merge(&self.sent, &event.cursor);
        }
        queue.push_back(self.head());
        queue.push_back(news.unwrap_or_else(|| event.frame.slice(event.body..)));
        Taken::Told
    }

    fn head(&self) -> Bytes {
        sse::head(None, "data", &self.token().to_string()).into()
    }

    /// Queues a state, with a reset in front for a client that may hold something else. Every piece
    /// but the last carries the reserved id, so that a state that was cut is never taken for one.
    pub(super) fn tell_state(
        &self,
        snapshot: &Snapshot,
        reset: bool,
        retry: Option<u64>,
        queue: &mut VecDeque<Bytes>,
    ) {
        let last = snapshot.pieces.len() - 1;
        let end = self.token().to_string();
        for (place, piece) in snapshot.pieces.iter().enumerate() {
            let id = if place == last || on(Mutant::M9) {
                end.as_str()
            } else {
                START
            };
            let retry = retry.filter(|_| place == 0);
            let piece = if place == 0 && reset {
                &snapshot.reset
            } else {
                piece
            };
            queue.push_back(sse::head(retry, "data", id).into());
            queue.push_back(piece.clone());
        }
    }

    /// A control with the token of everything queued so far.
    pub(super) fn control(&self, retry: Option<u64>, state: control::State) -> Bytes {
        control::frame(&self.token().to_string(), retry, state, "")
    }
}

/// Everything done in either. Mostly one covers the other.
fn merge(sent: &Arc<Cursor>, newer: &Arc<Cursor>) -> Arc<Cursor> {
    if newer.covers(sent) {
        Arc::clone(newer)
    } else {
        Arc::new(sent.union(newer))
    }
}
