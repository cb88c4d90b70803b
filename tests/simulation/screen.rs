//! A screen that believes nothing: it reads its stream as the EventSource standard says and compares
//! what it shows with what there is, after every event.

use std::collections::{BTreeMap, BTreeSet};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use rowcast::cursor::{Cursor, Name, START, Token, Xid};
use serde_json::Value;

use crate::database::{CHANNEL, Key};
use crate::relay::{Relay, Shared, World, lock, name};
use crate::tray::Tray;
use crate::truth::{Life, Shows};

/// A stream that says "up to date" has everything that is older than this, in milliseconds: three
/// seconds without a poll make it say otherwise, and polls come every second.
const HONEST: u64 = 6_000;

/// What kind of person looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// Stays where it is.
    Steady,
    /// Goes from relay to relay with its last id.
    Roaming,
    /// Hardly reads.
    Slow,
    /// Brings ids that are old, from the future, of other streams, or damaged.
    Lying,
    /// Forgets its id.
    Forgetful,
}

impl Habit {
    pub const ALL: [Self; 8] = [
        Self::Steady,
        Self::Steady,
        Self::Steady,
        Self::Roaming,
        Self::Roaming,
        Self::Slow,
        Self::Lying,
        Self::Forgetful,
    ];
}

/// What the connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The next event may stand for everything missed.
    Joining,
    /// Between the marks of a state.
    Reading,
    /// Every event is of one transaction.
    Live,
}

pub struct Screen {
    pub number: usize,
    pub shows: Shows,
    pub habit: Habit,
    /// The relay it is connected to.
    pub relay: Option<usize>,
    stream: Option<BoxStream<'static, Bytes>>,
    /// Of a connection that others may write into.
    tray: Option<Tray>,
    /// What its connection has not written yet.
    held: String,
    text: String,
    /// The last id, which the next connection brings.
    pub id: Option<String>,
    rows: BTreeMap<Key, String>,
    place: Option<(Name, Cursor)>,
    phase: Phase,
    /// Nothing may be told before the state.
    must_reset: bool,
    /// Everything that was to be had has been taken, so that what comes next was made just now.
    drained: bool,
    /// How long ago what is being read was written, in milliseconds.
    age: u64,
    /// Ids seen, for those who lie.
    seen: Vec<String>,
}

/// What a screen found wrong.
pub type Checked = Result<(), String>;

impl Screen {
    pub fn new(number: usize, shows: Shows, habit: Habit) -> Self {
        Self {
            number,
            shows,
            habit,
            relay: None,
            stream: None,
            tray: None,
            held: String::new(),
            text: String::new(),
            id: None,
            rows: BTreeMap::new(),
            place: None,
            phase: Phase::Joining,
            must_reset: false,
            drained: true,
            age: 0,
            seen: Vec::new(),
        }
    }

    pub fn is_connected(&self) -> bool {
        self.stream.is_some()
    }

    pub fn disconnect(&mut self) {
        self.relay = None;
        self.stream = None;
        self.tray = None;
    }

    /// Connects with the last id, or another one that it makes up.
    pub fn connect(&mut self, world: &World, relay: &Relay) {
        let token = {
            let shared = &mut *lock(world);
            let kind = shared.random.u8(..4);
            match self.habit {
                Habit::Lying if self.id.is_some() && kind > 0 => Some(self.lie(shared)),
                Habit::Forgetful if kind == 0 => {
                    self.forget();
                    None
                }
                _ => {
                    if self.id.is_some() {
                        shared.statistics.count("resumes");
                    }
                    self.id.clone()
                }
            }
        };
        let (number, at) = (self.number, relay.number);
        lock(world).tell(|| format!("screen {number} connects to relay {at} with {token:?}"));
        let (stream, direct) = relay.stream(self.shows, token);
        self.stream = Some(stream);
        self.tray = {
            let random = &mut lock(world).random;
            (random.u8(..4) > 0).then(|| Tray::new(direct, random.u64(..)))
        };
        self.relay = Some(at);
        self.text.clear();
        self.held.clear();
        self.phase = Phase::Joining;
        self.drained = true;
        if self.rows_are_in_part() {
            self.must_reset = true;
        }
    }

    /// The last connection was cut within a state.
    fn rows_are_in_part(&self) -> bool {
        self.id.as_deref() == Some(START)
    }

    fn forget(&mut self) {
        self.id = None;
        self.rows.clear();
        self.place = None;
        self.must_reset = false;
    }

    /// Claims to be somewhere else, and remembers the claim.
    fn lie(&mut self, shared: &mut Shared) -> String {
        let token = self.made_up(shared);
        self.id = Some(token.clone());
        token
    }

    fn made_up(&mut self, shared: &mut Shared) -> String {
        let random = &mut shared.random;
        let old = random.choice(&self.seen).cloned();
        let old = old.unwrap_or_else(|| START.to_owned());
        let token = old.parse::<Token>();
        let kind = random.u8(..4);
        self.rows.clear();
        self.place = None;
        self.must_reset = true;
        match (kind, token) {
            (0, Ok(mut token)) => {
                shared.statistics.count("tokens from the future");
                let beyond = token.cursor.xmax() + 1 + random.u64(..2000);
                token.cursor = Cursor::new(beyond + 100, [beyond]);
                token.to_string()
            }
            (1, Ok(token)) => {
                shared.statistics.count("foreign tokens");
                let other = Shows::ALL.into_iter().find(|other| *other != self.shows);
                let view = name(other.unwrap());
                Token { view, ..token }.to_string()
            }
            (2, Ok(token)) if shared.database.lives.contains_key(&token.epoch) => {
                shared.statistics.count("old tokens");
                let life = &shared.database.lives[&token.epoch];
                // A screen that was left standing shows what was there then.
                if self.shows != Shows::Channel
                    && let Some(mut rows) = life.rows_at(self.shows, &token.cursor)
                {
                    let table = self.shows.table();
                    let now = shared.database.is_wordy(table);
                    let wordy = now != life.is_altered_since(table, &token.cursor);
                    for row in rows.values_mut() {
                        *row = typed(row, wordy);
                    }
                    self.rows = rows;
                    self.must_reset = false;
                }
                if self.shows == Shows::Channel {
                    self.must_reset = false;
                }
                self.place = Some((token.epoch, token.cursor.clone()));
                token.to_string()
            }
            _ => {
                shared.statistics.count("damaged tokens");
                let mut text = old;
                text.push('!');
                text
            }
        }
    }

    /// Takes frames off the stream, at most `most`.
    pub fn read(&mut self, world: &World, relay: &Relay, most: usize) -> Checked {
        if let Some(tray) = &self.tray {
            let (frames, in_part) = tray.clear();
            if !frames.is_empty() {
                let statistics = &mut lock(world).statistics;
                statistics.count("written where they were published");
                if frames
                    .iter()
                    .any(|(_, frame)| frame.contains("event: control"))
                {
                    statistics.count("told there how things stand");
                }
                if in_part {
                    statistics.count("written there in part");
                }
            }
            for (at, frame) in frames {
                self.age = u64::try_from(at.elapsed().as_millis()).unwrap();
                self.text.push_str(&frame);
                self.dispatch(world)?;
            }
            self.age = 0;
            self.text.push_str(&std::mem::take(&mut self.held));
            self.dispatch(world)?;
        }
        for _ in 0..most {
            let Some(stream) = &mut self.stream else {
                return Ok(());
            };
            let lagged = relay.lagged();
            let mut context = Context::from_waker(std::task::Waker::noop());
            let polled = stream.poll_next_unpin(&mut context);
            if let Some(wrong) = lock(world).wrong.take() {
                return Err(wrong);
            }
            if relay.lagged() > lagged {
                self.text.push_str(&std::mem::take(&mut self.held));
                self.dispatch(world)?;
                lock(world).statistics.count("fell out of the buffer");
                self.phase = Phase::Joining;
            }
            match polled {
                Poll::Pending => {
                    // What is held was made some time ago when it comes.
                    self.drained = self.held.is_empty();
                    if let Some(tray) = self.tray.as_ref().filter(|_| self.drained) {
                        tray.idle();
                    }
                    return Ok(());
                }
                Poll::Ready(Some(frame)) => {
                    let frame = std::str::from_utf8(&frame).unwrap();
                    let holds = !self.held.is_empty()
                        || self.tray.is_some() && lock(world).random.u8(..16) == 0;
                    if holds {
                        self.held.push_str(frame);
                    } else {
                        self.text.push_str(frame);
                        self.dispatch(world)?;
                    }
                }
                Poll::Ready(None) => {
                    self.text.push_str(&std::mem::take(&mut self.held));
                    self.dispatch(world)?;
                    lock(world).statistics.count("streams ended");
                    self.disconnect();
                    return Ok(());
                }
            }
        }
        self.drained = false;
        Ok(())
    }

    /// Whole events of what has come.
    fn dispatch(&mut self, world: &World) -> Checked {
        while let Some(end) = self.text.find("\n\n") {
            let event: String = self.text.drain(..end + 2).collect();
            let (mut kind, mut id, mut data) = ("", "", String::new());
            for line in event.lines() {
                match line.split_once(": ") {
                    Some(("event", value)) => kind = value,
                    Some(("id", value)) => id = value,
                    Some(("data", value)) => data.push_str(value),
                    Some(("retry", _)) => {}
                    _ if line.is_empty() || line == ":" => {}
                    _ => return Err(format!("a line that is none: {line:?}")),
                }
            }
            let data: Value = serde_json::from_str(&data).map_err(|error| error.to_string())?;
            let shared = &mut *lock(world);
            let number = self.number;
            shared.tell(|| format!("screen {number} is given {kind} {id} {}", brief(&data)));
            shared.statistics.count("events");
            let checked = match kind {
                "control" => self.control(shared, id, &data),
                "data" => self.data(shared, id, &data),
                _ => Err("an event of another kind".to_owned()),
            };
            checked.map_err(|wrong| format!("screen {number} ({:?}): {wrong}", self.shows))?;
            self.id = Some(id.to_owned());
            if id != START && (self.seen.len() < 40 || shared.random.bool()) {
                if self.seen.len() >= 40 {
                    let place = shared.random.usize(..self.seen.len());
                    self.seen.swap_remove(place);
                }
                self.seen.push(id.to_owned());
            }
        }
        Ok(())
    }

    fn control(&mut self, shared: &mut Shared, id: &str, control: &Value) -> Checked {
        if control.get("closing").is_some() {
            shared.statistics.count("closings");
            if self.phase == Phase::Joining && id == self.id.as_deref().unwrap_or(START) {
                shared.statistics.count("closings while opening");
            } else if self.phase == Phase::Reading || id == START {
                shared.statistics.count("closings while reopening");
            }
        }
        if control.get("error").is_some() {
            shared.statistics.count("streams refused");
            // The id stays the client's own.
            return Ok(());
        }
        if control.get("schema").is_some() {
            shared.statistics.count("schemas");
            return Ok(());
        }
        if id == START {
            return Ok(());
        }
        let own = self.id.as_deref() == Some(id);
        if self.phase == Phase::Joining && own && control["upToDate"] == false {
            // What there is to say is still being found out, and nobody may have looked at the id yet.
            return Ok(());
        }
        if self.must_reset {
            // Nobody has looked at it yet, and it stays the client's own.
            if control["closing"] == true && own {
                return Ok(());
            }
            return Err("goes on from an id that means nothing here".to_owned());
        }
        let strict = self.phase == Phase::Live;
        self.advance(shared, id, &[], strict)?;
        self.phase = Phase::Live;
        // What comes right behind a state may be as old as the state took to be read.
        let claims = control["upToDate"] == true && strict;
        if claims && self.drained && self.habit != Habit::Slow {
            shared.statistics.count("honest controls");
            let (epoch, cursor) = self.place.as_ref().unwrap();
            let at = shared.database.now.saturating_sub(HONEST + self.age);
            let life = &shared.database.lives[epoch];
            if let Some(xid) = life.unsaid(self.shows, cursor, at) {
                return Err(format!("says it is up to date and lacks {xid}"));
            }
            if shared
                .database
                .life()
                .is_some_and(|now| !std::ptr::eq(now, life))
                && shared.database.life().is_some_and(|now| now.begun <= at)
            {
                return Err("says it is up to date in a life that is over".to_owned());
            }
        }
        Ok(())
    }

    fn data(&mut self, shared: &mut Shared, id: &str, data: &Value) -> Checked {
        let elements = data.as_array().ok_or("data that is no array")?;
        if elements.is_empty() {
            return Err("an event that says nothing".to_owned());
        }
        if self.shows == Shows::Channel {
            return self.messages(shared, id, elements);
        }
        let control = |element: &Value| element["headers"]["control"].as_str().map(str::to_owned);
        if self.phase == Phase::Reading
            || elements
                .iter()
                .any(|e| control(e).as_deref() == Some("snapshot-start"))
        {
            return self.state(shared, id, elements);
        }
        if self.must_reset {
            return Err("is told changes of a state it does not have".to_owned());
        }
        let strict = self.phase == Phase::Live;
        let mut xids = BTreeSet::new();
        let mut keys = BTreeSet::new();
        for element in elements {
            let key = key(element)?;
            if !keys.insert(key) {
                return Err(format!("key {key} twice in one event"));
            }
            match element["headers"]["txid"].as_str() {
                Some(xid) => {
                    xids.insert(xid.parse::<Xid>().map_err(|_| "no txid")?);
                }
                // Found by looking, and nobody knows who did it.
                None if self.shows == Shows::Compared => {}
                None => return Err("no txid".to_owned()),
            }
            if element["headers"]["operation"] == "delete" {
                self.rows.remove(&key);
            } else {
                self.rows.insert(key, element["value"].to_string());
            }
        }
        let xids: Vec<Xid> = xids.into_iter().collect();
        if !strict && xids.len() > 1 {
            shared.statistics.count("catch-ups of several transactions");
        }
        self.advance(shared, id, &xids, strict)
    }

    fn state(&mut self, shared: &mut Shared, id: &str, elements: &[Value]) -> Checked {
        let mut ended = false;
        for element in elements {
            match element["headers"]["control"].as_str() {
                Some("reset") => {
                    shared.statistics.count("resets");
                    self.rows.clear();
                    self.must_reset = false;
                }
                Some("snapshot-start") => {
                    if self.must_reset || !self.rows.is_empty() {
                        return Err("a state on top of another, without a reset".to_owned());
                    }
                    self.place = None;
                    self.phase = Phase::Reading;
                }
                Some("snapshot-end") => ended = true,
                Some(other) => return Err(format!("a control {other} in a state")),
                None => {
                    let row = element["value"].to_string();
                    self.rows.insert(key(element)?, row);
                }
            }
        }
        if !ended {
            shared.statistics.count("states in pieces");
            return if id == START {
                Ok(())
            } else {
                Err("a state that is not complete has an id".to_owned())
            };
        }
        shared.statistics.count("states");
        self.phase = Phase::Joining;
        self.advance(shared, id, &[], false)
    }

    fn messages(&mut self, shared: &mut Shared, id: &str, elements: &[Value]) -> Checked {
        let strict = self.phase == Phase::Live;
        let mut told: Vec<(Xid, String)> = Vec::new();
        for element in elements {
            if element["headers"]["control"] == "reset" {
                shared.statistics.count("resets of channels");
                self.place = None;
                self.must_reset = false;
                continue;
            }
            if element["type"] != CHANNEL {
                return Err("a message of another channel".to_owned());
            }
            let xid = element["headers"]["txid"].as_str().unwrap_or_default();
            let xid = xid.parse().map_err(|_| "no txid")?;
            told.push((xid, element["value"].to_string()));
        }
        if self.must_reset {
            return Err("is told messages after an id that means nothing here".to_owned());
        }
        let mut xids: Vec<Xid> = told.iter().map(|(xid, _)| *xid).collect();
        xids.dedup();
        if let Some((epoch, before)) = &self.place {
            let token: Token = id.parse().map_err(|_| "an id that is no token")?;
            if *epoch == token.epoch {
                let life = &shared.database.lives[epoch];
                let missed = life.between(self.shows, before, &token.cursor);
                for commit in missed {
                    let there = told.iter().filter(|(xid, _)| *xid == commit.xid);
                    let there: Vec<&str> = there.map(|(_, text)| text.as_str()).collect();
                    let sent: Vec<&str> = commit.messages.iter().map(AsRef::as_ref).collect();
                    if there != sent {
                        return Err(format!("was told {there:?} of {sent:?}"));
                    }
                }
            }
        }
        self.advance(shared, id, &xids, strict)
    }

    /// Moves on to an id, with an event of these transactions.
    fn advance(&mut self, shared: &Shared, id: &str, xids: &[Xid], strict: bool) -> Checked {
        let token: Token = id
            .parse()
            .map_err(|_| format!("an id that is no token: {id}"))?;
        if token.view != name(self.shows) {
            return Err("an id of another stream".to_owned());
        }
        let now = token.cursor;
        let life = shared.database.lives.get(&token.epoch);
        let life = life.ok_or("an id of a life that never was")?;
        match &self.place {
            Some((epoch, _)) if *epoch != token.epoch => {
                return Err("another life without a reset".to_owned());
            }
            Some((_, before)) => {
                if !now.covers(before) {
                    return Err(format!("the id goes back from {before} to {now}"));
                }
                // One event is of a round, and may begin before a state that was read meanwhile: what it
                // comes to is compared below.
                let strict = strict && !self.shows.asks();
                let again = xids.iter().find(|xid| before.is_done(**xid));
                let compared = matches!(self.shows, Shows::Member | Shows::Compared);
                if let Some(xid) = again.filter(|_| !compared) {
                    return Err(format!("{xid} is told a second time"));
                }
                let passed = life.between(self.shows, before, &now);
                let passed: Vec<Xid> = passed.iter().map(|commit| commit.xid).collect();
                if strict && xids.len() > 1 {
                    return Err(format!("live, and one event is of {xids:?}"));
                }
                let untold = passed.iter().find(|xid| !xids.contains(xid));
                if let Some(untold) = untold.filter(|_| strict || xids.is_empty()) {
                    // Away, and back where it began, needs no event.
                    if strict || self.shows == Shows::Channel {
                        return Err(format!("{untold} was passed over"));
                    }
                }
            }
            None => {}
        }
        if let Some(xid) = xids.iter().find(|xid| !now.is_done(**xid)) {
            return Err(format!("the id does not have {xid}, which it stands for"));
        }
        if let Some(xid) = xids.iter().find(|xid| !life.has(**xid)) {
            return Err(format!("{xid} was never committed"));
        }
        if self.shows != Shows::Channel {
            life.check(self.shows, &now, &self.rows)?;
        }
        self.place = Some((token.epoch, now));
        Ok(())
    }

    /// Whether it shows what there is, all of it.
    pub fn has_arrived(&self, shared: &Shared) -> Checked {
        let database = &shared.database;
        let (epoch, cursor) = self.place.as_ref().ok_or("has no state")?;
        if Some(*epoch) != database.epoch() {
            return Err("is in another life".to_owned());
        }
        if !self.is_connected() || self.phase == Phase::Reading {
            return Err("is not connected".to_owned());
        }
        let snapshot = database.snapshot();
        let life = database.life().ok_or("there is no epoch")?;
        if let Some(commit) = life.between(self.shows, cursor, &snapshot).first() {
            return Err(format!("lacks {}", commit.xid));
        }
        if self.shows == Shows::Channel {
            return Ok(());
        }
        life.check_all(self.shows, &snapshot, &self.rows)?;
        let wordy = database.is_wordy(self.shows.table());
        let old = self.rows.values().find(|row| row.ends_with("\"}") != wordy);
        match old {
            Some(row) => Err(format!("shows {row} with a type from before")),
            None => Ok(()),
        }
    }
}

/// A row with its board as text, or as a number.
fn typed(row: &str, wordy: bool) -> String {
    let mut row: serde_json::Map<String, Value> = serde_json::from_str(row).unwrap();
    let board = row["board"].to_string();
    let board = board.trim_matches('"');
    row["board"] = if wordy {
        board.into()
    } else {
        board.parse::<u64>().unwrap().into()
    };
    Value::from(row).to_string()
}

fn key(element: &Value) -> Result<Key, String> {
    let key = element["key"].as_str().unwrap_or_default();
    key.parse()
        .map_err(|_| format!("a key that is none: {element}"))
}

/// An event as one line of a trace.
fn brief(data: &Value) -> String {
    let Some(elements) = data.as_array() else {
        return data.to_string();
    };
    let elements = elements.iter().map(|element| {
        let headers = &element["headers"];
        match headers["control"].as_str() {
            Some(control) => control.to_owned(),
            None => format!(
                "{}{} {} by {}",
                headers["operation"].as_str().unwrap_or_default(),
                element["key"]
                    .as_str()
                    .map_or(String::new(), |key| format!(" {key}")),
                element["value"],
                headers["txid"].as_str().unwrap_or("nobody")
            ),
        }
    });
    elements.collect::<Vec<_>>().join("; ")
}

impl Life {
    /// What a screen shows that was left standing at `cursor`; `None` where that is no state.
    fn rows_at(&self, shows: Shows, cursor: &Cursor) -> Option<BTreeMap<Key, String>> {
        let rows = self.state(shows, cursor);
        self.check(shows, cursor, &rows).is_ok().then_some(rows)
    }
}
