//! What makes a stream speak or end, other than events.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures::stream::{self, Stream};
use tokio::sync::watch;

use super::direct::Direct;
use super::{End, Parts, Permit, Unavailable};
use crate::shutdown::Shutdown;
use crate::wake::Seldom;

#[derive(Debug)]
pub(super) enum Signal {
    /// The relay stops, within this time.
    Closing(Duration),
    /// Whoever opened the stream may not see it any more.
    Expired,
    /// The same, for another reason.
    Refused(Unavailable),
    /// It is time to say how things stand.
    Control,
}

/// All signals of one stream, without an end of their own while the relay is there.
pub(super) struct Signals(Seldom<Boxed>);

type Boxed = Pin<Box<dyn Stream<Item = Signal> + Send + Sync>>;

struct Heard {
    shutdown: Shutdown,
    fresh: watch::Receiver<bool>,
    direct: Arc<Direct>,
    end: Option<End>,
    permit: Option<Permit>,
}

impl Signals {
    pub(super) fn new(
        parts: &Parts,
        direct: Arc<Direct>,
        end: Option<End>,
        permit: Option<Permit>,
    ) -> Self {
        let mut fresh = parts.health.watch_fresh();
        fresh.mark_unchanged();
        let heard = Heard {
            shutdown: parts.shutdown.clone(),
            fresh,
            direct,
            end,
            permit,
        };
        let signals = stream::unfold(heard, |mut heard| async move {
            Some((heard.next().await?, heard))
        });
        let signals: Boxed = Box::pin(signals);
        Self(Seldom::new(signals))
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Signal>> {
        Pin::new(&mut self.0).poll_next(cx)
    }
}

impl Heard {
    async fn next(&mut self) -> Option<Signal> {
        tokio::select! {
            biased;
            grace = self.shutdown.begun() => Some(Signal::Closing(grace)),
            () = expired(self.end.as_mut()) => Some(Signal::Expired),
            why = refused(self.permit.as_mut()) => Some(Signal::Refused(why)),
            changed = self.fresh.changed() => changed.ok().map(|()| Signal::Control),
            () = self.direct.is_due() => Some(Signal::Control),
        }
    }
}

/// Waits until the permit is taken back; for ever where there is none.
async fn refused(permit: Option<&mut Permit>) -> Unavailable {
    if let Some(permit) = permit
        && let Ok(why) = permit.wait_for(Option::is_some).await
        && let Some(why) = &*why
    {
        return why.clone();
    }
    std::future::pending().await
}

/// Waits for the end; for ever where there is none.
async fn expired(end: Option<&mut End>) {
    let Some(end) = end else {
        return std::future::pending().await;
    };
    loop {
        let at = *end.borrow_and_update();
        let Ok(left) = at.duration_since(SystemTime::now()) else {
            return;
        };
        tokio::select! {
            // In steps, since the clock may be set meanwhile.
            () = tokio::time::sleep(left.min(Duration::from_mins(1))) => {}
            changed = end.changed() => if changed.is_err() {
                tokio::time::sleep(left).await;
                return;
            },
        }
    }
}
