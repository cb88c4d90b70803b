//! A stream that shows something: what it shows, and what it takes of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

use super::Parts;
use super::direct::Direct;
use super::screen::{Screen, Taken};
use crate::health::FRESH_FOR;
use crate::hub::{Lagged, Subscriber};
use crate::metrics::Metrics;
use crate::mutants::{Mutant, on};
use crate::view::{Delivery, View};

/// Items taken from a topic at a time.
const TAKE: usize = 8;

/// What came of taking what there is.
pub(super) enum Drained {
    /// There is no more.
    All,
    /// There may be more, and the socket has enough to do.
    Enough,
    /// It cannot go on from here.
    Again(Again),
}

/// How a stream begins again.
pub(super) enum Again {
    /// It fell out of the buffer.
    Lagged,
    /// With a new state.
    Anew,
    /// From where it is.
    Here,
}

pub(super) struct Live {
    pub shown: Shown,
    pub subscriber: Subscriber<Delivery>,
    pub screen: Screen,
}

impl Live {
    /// Queues what waits: no more than a mouthful is taken out of the shared buffer, so that a slow
    /// screen costs a position and not memory.
    pub fn drain(&mut self, parts: &Parts, queue: &mut VecDeque<Bytes>) -> Drained {
        loop {
            if queue.iter().map(Bytes::len).sum::<usize>() > parts.limits.mouthful {
                return Drained::Enough;
            }
            let items = match self.subscriber.take(TAKE) {
                Ok(items) if items.is_empty() => return Drained::All,
                Ok(items) => items,
                Err(Lagged) => return Drained::Again(Again::Lagged),
            };
            for item in items {
                match self.screen.take(&item, queue) {
                    Taken::Known => {}
                    Taken::Told => {
                        if let Delivery::Event(event) = item {
                            observe(&parts.metrics, event.at);
                        }
                    }
                    Taken::Anew => return Drained::Again(Again::Anew),
                    Taken::Again => return Drained::Again(Again::Here),
                }
            }
        }
    }

    /// Queues what waits and, if that is all of it, moves on to where what it shows is.
    pub fn take_all(&mut self, parts: &Parts, queue: &mut VecDeque<Bytes>) -> Drained {
        // The position first, then everything that came before it was set: a control never
        // overtakes an event.
        let told = match self.shown.told() {
            // Its epoch is its topic's: another one ends it.
            Some(told) => told.until,
            None => parts
                .stage
                .position()
                .filter(|position| position.epoch == self.screen.epoch())
                .map(|position| position.cursor),
        };
        let drained = self.drain(parts, queue);
        if let (Drained::All, Some(told)) = (&drained, told) {
            if self.shown.asking().is_some() {
                self.screen.move_to(&told);
            } else {
                self.screen.move_to_feed(&told);
            }
        }
        drained
    }

    /// Lets others write events, if it shows what row images decide: what is asked for is compared.
    pub fn offer(&self, direct: &Direct) {
        if self.shown.asking().is_none()
            && let Some(sent) = self.screen.in_step()
        {
            direct.offer(sent, self.subscriber.position());
        }
    }

    /// `everything` that it knows of comes before.
    pub fn control(&self, parts: &Parts, retry: Option<u64>, everything: bool) -> Bytes {
        let told = parts.state(everything && !self.shown.is_behind());
        self.screen.control(retry, told)
    }
}

pub(super) enum Shown {
    View(Arc<View>),
    Channel,
}

impl Shown {
    /// How far what it shows is, if that is not how far the feed is.
    pub fn told(&self) -> Option<crate::view::Told> {
        self.asking().map(View::told_until)
    }

    /// The view, if it is one that asks.
    pub fn asking(&self) -> Option<&View> {
        match self {
            Self::View(view) => view.asking().is_some().then_some(view),
            Self::Channel => None,
        }
    }

    /// It could not be asked for, or is further behind than the feed may be.
    pub fn is_behind(&self) -> bool {
        self.told()
            .is_some_and(|told| told.failing || (told.is_late(FRESH_FOR) && !on(Mutant::R9)))
    }
}

/// From the trigger's clock to here. The two clocks are one where the database is on this machine;
/// elsewhere the figure holds their difference too.
pub(super) fn observe(metrics: &Metrics, at: Timestamp) {
    let latency = Timestamp::now().duration_since(at);
    metrics
        .handed
        .event(Duration::try_from(latency).unwrap_or_default());
}
