//! How a stream begins: from the token that a client brings to where the feed is.

use std::sync::Arc;

use super::catch_up::{self, CaughtUp, Coming, Told};
use super::live::{Live, Shown};
use super::reads::Since;
use super::screen::Screen;
use super::{Place, Source, Subscription, Unavailable, control};
use crate::cursor::{Cursor, START, Token};
use crate::event::Element;
use crate::feed::{Joined, NotYet};
use crate::health::FRESH_FOR;
use crate::hub::Subscriber;
use crate::log::Bounds;
use crate::mutants::{Mutant, on};
use crate::sse;
use crate::view::asking::{Asking, Pending};
use crate::view::image::Images;
use crate::view::snapshot::{self, SnapshotError};
use crate::view::{Channel, Delivery, Sight, View};

/// A view that is made while definitions change is made again, so many times.
const DEFINITIONS: usize = 4;

impl Subscription {
    /// Joins, and queues what the client needs to be where the feed is.
    pub(super) async fn open(
        &mut self,
        token: Option<&str>,
        view: Option<View>,
        coming: Coming,
        retry: Option<u64>,
    ) -> Result<Live, Unavailable> {
        match &self.source {
            Source::Channel(channel, permit) => {
                if let Some(why) = &*permit.borrow() {
                    return Err(why.clone());
                }
                let channel = channel.clone();
                self.open_channel(&channel, token, coming, retry).await
            }
            Source::View(opener) => {
                let opener = Arc::clone(opener);
                let mut view = view;
                for _ in 0..DEFINITIONS {
                    let made = match view.take() {
                        Some(view) => view,
                        None => opener().await?,
                    };
                    if let Some(live) = self.open_view(made, token, coming, retry).await? {
                        return Ok(live);
                    }
                }
                Err(self.explain(&Arc::new(SnapshotError::Changed).into()))
            }
        }
    }

    /// `None` when the view is from before its table or its policies changed.
    async fn open_view(
        &mut self,
        view: View,
        token: Option<&str>,
        coming: Coming,
        retry: Option<u64>,
    ) -> Result<Option<Live>, Unavailable> {
        let brought = token.and_then(|text| text.parse::<Token>().ok());
        let name = view.name();
        let from = brought.as_ref().filter(|token| token.view == name);
        let stage = &self.parts.stage;
        let (view, joined) = if view.asking().is_some() {
            let joined = stage.join_asking(view, from.is_some() && self.may_show);
            joined.map_err(|error| self.explain(&error.into()))?
        } else {
            let joined = stage.join_view(view, from.map(|token| &token.cursor));
            joined.map_err(|error| self.explain(&error.into()))?
        };
        self.present.joined(Place::View(view.name()));
        if !self.parts.stage.is_current(&view) {
            return Ok(None);
        }
        // A token that is ahead of this relay may have seen definitions that this relay has not: images
        // since then would be taken for something else. One read of them does for a whole herd.
        let known = self.parts.reads.catalog();
        let ahead =
            |from: &&Token| !joined.cursor.covers(&from.cursor) && !known.is_as_of(&from.cursor);
        let from = match from.filter(ahead) {
            Some(_) if !self.parts.reads.reload().await => None,
            _ => from,
        };
        // Made before the table changed, and so late that nobody will reset it: make it again.
        let current = self.parts.reads.catalog();
        let now = current.table_by_oid(view.table().oid);
        let policies = view.asking().and_then(|asking| asking.policies.as_ref());
        if !on(Mutant::R2) && now.is_some_and(|now| **now != *view.table())
            || policies.is_some_and(|known| current.policies(view.table().oid) != Some(known))
        {
            return Ok(None);
        }
        // Other columns than this stream has told so far need a new state.
        let columns = control::columns(&view);
        let same_columns = self.columns.as_ref().is_none_or(|told| *told == columns);
        if let Some(from) = from.filter(|_| same_columns) {
            let caught = match view.sight() {
                Sight::Images(images) => {
                    self.caught_by_images(coming, &view, images, &joined, from)
                        .await
                }
                Sight::Asking(asking) => self.caught_by_asking(&view, asking, &joined, from).await,
            };
            if let Some((until, told)) = caught {
                self.columns = Some(columns);
                return Ok(Some(self.caught_up(
                    Shown::View(view),
                    joined,
                    from,
                    &until,
                    told,
                    retry,
                )));
            }
        }
        if token.is_some() {
            self.answer("reset");
        }
        let live = self.open_fresh(&view, joined, token.is_some(), retry);
        live.await.map(Some)
    }

    /// What somebody at `from` missed of a view that is decided from images, and up to where.
    async fn caught_by_images(
        &self,
        coming: Coming,
        view: &View,
        images: &Images,
        joined: &Joined,
        from: &Token,
    ) -> Option<(Arc<Cursor>, Told)> {
        let caught = self.missed(joined, from).await?;
        let most = self.parts.limits.catch_up;
        let told = caught.of_view(coming, view, images, most).ok()?;
        self.answer(caught.source);
        Some((caught.until, told))
    }

    /// The same for a view that asks: the rows that changed are read where the log was.
    async fn caught_by_asking(
        &self,
        view: &View,
        asking: &Asking,
        joined: &Joined,
        from: &Token,
    ) -> Option<(Arc<Cursor>, Told)> {
        // What policies read of tables that nobody watches may have changed at any time.
        if asking.is_compared() || from.epoch != joined.epoch {
            return None;
        }
        let ask = |batch: &crate::log::Batch| {
            if !catch_up::holds_all(batch, joined.epoch, &from.cursor) {
                return None;
            }
            let mut pending = Pending::default();
            let missed = batch.transactions.iter().map(AsRef::as_ref);
            pending.collect(view.table().oid, asking, missed);
            (!pending.is_reset() && !pending.is_whole()).then_some(pending)
        };
        let since = self.since(joined, from);
        // As with a state: what goes after this was read is told, whatever it will hold.
        let reading = view.read_state();
        let answers = self.parts.reads.answers(view, asking, since, &ask);
        let (end, mut elements) = answers.await?;
        view.withhold(&mut elements, |_| self.may_show);
        drop(reading);
        self.answer("log");
        let until = Arc::new(end);
        let body = (!elements.is_empty()).then(|| view.encode(&elements));
        let told = body.map(|body| (Arc::clone(&until), body));
        Some((until, told.into_iter().collect()))
    }

    /// A snapshot, with a reset in front for a client that may hold something else.
    async fn open_fresh(
        &mut self,
        view: &Arc<View>,
        joined: Joined,
        reset: bool,
        retry: Option<u64>,
    ) -> Result<Live, Unavailable> {
        let reads = &self.parts.reads;
        let snapshot = snapshot::read(view, &|| reads.state(Arc::clone(view), &joined.place)).await;
        let snapshot = snapshot.map_err(|error| self.explain(&error.into()))?;
        if snapshot.epoch != Some(joined.epoch) {
            return Err(self.explain(&NotYet.into()));
        }
        let screen = Screen::fresh(joined.epoch, view.name(), &snapshot);
        // From the earlier of the two places: the shared read may have begun before we joined, and a
        // reset may have come after we joined and before the read. What the state holds is skipped.
        let mut subscriber = self.with_taker(joined.subscriber, &screen);
        if !on(Mutant::R3) {
            subscriber.back_to(snapshot.position);
        }
        let live = Live {
            screen,
            shown: Shown::View(Arc::clone(view)),
            subscriber,
        };
        self.schema(view);
        live.screen
            .tell_state(&snapshot, reset, retry, &mut self.queue);
        self.queue.push_back(live.control(&self.parts, None, true));
        Ok(live)
    }

    async fn open_channel(
        &mut self,
        channel: &str,
        token: Option<&str>,
        coming: Coming,
        retry: Option<u64>,
    ) -> Result<Live, Unavailable> {
        let brought = token.and_then(|text| text.parse::<Token>().ok());
        let name = Channel::new(channel).name;
        let from = brought.as_ref().filter(|token| token.view == name);
        let stage = &self.parts.stage;
        let joined = stage.join_channel(channel, from.map(|token| &token.cursor));
        let (channel, joined) = joined.map_err(|error| self.explain(&error.into()))?;
        self.present.joined(Place::Channel(channel.channel.clone()));
        self.held = None;
        if let Some(from) = from
            && let Some(caught) = self.missed(&joined, from).await
            && let Ok(told) = caught.of_channel(coming, &channel, self.parts.limits.catch_up)
        {
            self.answer(caught.source);
            return Ok(self.caught_up(Shown::Channel, joined, from, &caught.until, told, retry));
        }
        // Messages have no state to read anew: a client that may have missed some is told so.
        let reset = token.is_some().then(|| {
            self.answer("reset");
            let mut array = sse::Array::new(&channel.channel);
            array.push(&Element::Reset);
            (Arc::clone(&joined.cursor), array.finish())
        });
        let here = Token {
            epoch: joined.epoch,
            view: name,
            cursor: (*joined.cursor).clone(),
        };
        let until = Arc::clone(&joined.cursor);
        let told = reset.into_iter().collect();
        Ok(self.caught_up(Shown::Channel, joined, &here, &until, told, retry))
    }

    /// What somebody at `from` missed, from memory or from the log. `None` when it cannot be told.
    async fn missed(&self, joined: &Joined, from: &Token) -> Option<CaughtUp> {
        if from.epoch != joined.epoch && !on(Mutant::M3) {
            return None;
        }
        if let Some(caught) = CaughtUp::of_ring(joined) {
            return Some(caught);
        }
        let batch = self.parts.reads.log(self.since(joined, from)).await?;
        catch_up::holds_all(&batch, joined.epoch, &from.cursor)
            .then(|| CaughtUp::of_log(batch, &from.cursor))
    }

    fn since<'a>(&self, joined: &'a Joined, from: &'a Token) -> Since<'a> {
        Since {
            place: &joined.place,
            from: &from.cursor,
            bounds: if on(Mutant::R4) {
                Bounds::default()
            } else {
                self.parts.limits.log
            },
        }
    }

    /// Queues what was missed, and a control either way.
    fn caught_up(
        &mut self,
        shown: Shown,
        joined: Joined,
        from: &Token,
        until: &Arc<Cursor>,
        told: Told,
        retry: Option<u64>,
    ) -> Live {
        let Joined {
            epoch,
            cursor: feed,
            subscriber,
            when,
            ..
        } = joined;
        let screen =
            |until: &Arc<Cursor>| Screen::caught_up(epoch, from.view, &from.cursor, until, &feed);
        let mut retry = retry;
        for (after, body) in told {
            let id = screen(&after).token().to_string();
            let head = sse::head(retry.take(), "data", &id);
            self.queue.push_back(head.into());
            self.queue.push_back(body);
        }
        let screen = screen(until);
        let live = Live {
            shown,
            subscriber: self.with_taker(subscriber, &screen),
            screen,
        };
        // It was given everything up to a place that may be as old as finding that out took, however far
        // the feed and its view are by now. The next control comes behind what was published meanwhile.
        let is_late = when.elapsed() >= FRESH_FOR;
        self.queue
            .push_back(live.control(&self.parts, retry, !is_late));
        live
    }

    /// The subscriber of a screen, to which others may tell things while it waits.
    fn with_taker(
        &self,
        subscriber: Subscriber<Delivery>,
        screen: &Screen,
    ) -> Subscriber<Delivery> {
        let (epoch, view) = (screen.epoch(), screen.view());
        self.direct.shows(epoch, view, subscriber.topic());
        let direct = Arc::clone(&self.direct);
        subscriber.with(direct)
    }

    /// Tells the columns when they are not what they were in this stream.
    fn schema(&mut self, view: &View) {
        let schema = control::columns(view);
        if self.columns.as_ref().is_some_and(|known| *known != schema) {
            let more = format!(r#","schema":{schema}"#);
            let control = control::frame(START, None, self.parts.state(true), &more);
            self.queue.push_back(control);
        }
        self.columns = Some(schema);
    }
}
