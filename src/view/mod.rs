//! What a stream shows: a table, a filter, a column list, and to whom.
//!
//! A [`View`] is shared by all its subscribers, and so is one encoded copy of each of its events.
//! [`image`] decides events from row images, [`asking`] by reading the changed rows again as the
//! role that watches, of which [`answering`] makes what is told; [`snapshot`] reads the state. It
//! knows neither requests nor connections of screens.

pub mod answering;
pub mod asking;
pub mod image;
pub mod keys;
pub mod snapshot;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::Instant;

use crate::cursor::{Cursor, Name, Token, Xid};
use crate::event::{Element, Message, Transaction};
use crate::hub::{Bounds, Topic};
use crate::postgres::transaction::Context;
use crate::rows::statement::Statement;
use crate::schema::catalog::Table;
use crate::sse;
use asking::Asking;
use image::Images;

/// What is kept for subscribers that are behind; who falls out catches up from the log.
const BUFFER: Bounds = Bounds {
    items: 1024,
    weight: 8 << 20,
};

/// What a view is made of.
#[derive(Debug, Clone)]
pub struct Definition {
    /// The table, as the catalogue has it now.
    pub table: Arc<Table>,
    /// As whom its rows are read.
    pub context: Context,
    /// Names and types of the columns it shows.
    pub columns: Vec<(String, String)>,
    /// The statement that reads the state. From images: one column, the JSON text of each whole row
    /// in the view. By asking: what is shown of the row, and the object of its key.
    pub statement: Statement,
    /// How it knows what a change means for it.
    pub sight: Sight,
}

/// How a view knows what a change means for it.
#[derive(Debug, Clone)]
pub enum Sight {
    /// From row images, in memory.
    Images(Images),
    /// By reading the rows again.
    Asking(Arc<Asking>),
}

/// A definition with its stream.
#[derive(Debug)]
pub struct View {
    name: Name,
    /// What had been said of definitions before anybody looked.
    made: u64,
    kind: String,
    definition: Definition,
    topic: Topic<Delivery>,
    snapshots: snapshot::Flight,
    told: Mutex<Told>,
    sightings: Sightings,
}

/// Whether some screen may show a row.
#[derive(Debug, Default)]
struct Sightings {
    /// One was told, or a state that holds one was read.
    any: AtomicBool,
    /// States that are being read.
    reading: AtomicUsize,
}

/// How far a view that asks is.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// Everything up to here has been published; `None` before the first round.
    pub until: Option<Arc<Cursor>>,
    /// When the log was read up to there, or some place before, with nothing missing.
    pub read: Option<Instant>,
    /// It could not be asked, and is behind.
    pub failing: bool,
}

impl Told {
    /// Whether what it shows may be older than `most`, also where the feed has read all there is: it may
    /// have come back a moment ago, and nobody has asked yet.
    #[must_use]
    pub fn is_late(&self, most: Duration) -> bool {
        self.read.is_none_or(|read| read.elapsed() >= most)
    }
}

/// What a topic carries to connections.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// An event.
    Event(Arc<Event>),
    /// Every row was looked at. Comes before the event that tells the difference, if there is one.
    Check(Arc<Check>),
    /// A bare NOTIFY, as the data lines of an event. It has no place in the log.
    Notify(Bytes),
    /// This stream is over: whoever showed it must ask for it again, and read its state anew unless
    /// that state is already later than what ended the stream. `None` is later than anything.
    Reset(Option<Mark>),
}

/// What an event holds, to tell whether a state has it already.
#[derive(Debug, Clone)]
pub enum Mark {
    /// One transaction.
    Transaction(Xid),
    /// Everything up to a snapshot. For each element the transaction that made it so, where nothing but
    /// transactions can have.
    Batch(Arc<Cursor>, Arc<[Xid]>),
    /// What a comparison of all rows at a snapshot found. Time may have changed what is seen though
    /// no transaction has: only a later snapshot has it for certain, and to be told twice does no harm.
    Comparison(Arc<Cursor>),
}

impl Mark {
    /// A state read at `cursor`, or brought up to it, has it.
    #[must_use]
    pub fn is_in(&self, cursor: &Cursor) -> bool {
        match self {
            Self::Transaction(xid) => cursor.is_done(*xid),
            Self::Batch(batch, xids) => {
                let elements = || !xids.is_empty() && xids.iter().all(|xid| cursor.is_done(*xid));
                cursor.covers(batch) || elements()
            }
            Self::Comparison(compared) => cursor.covers(compared) && !compared.covers(cursor),
        }
    }
}

/// What a comparison of all rows found. What it tells is a difference to an earlier state, and a
/// screen that read its own state in between may show something else again.
#[derive(Debug)]
pub struct Check {
    /// Where the rows were read.
    pub at: Arc<Cursor>,
    /// The earlier state that they were compared with; `None` when it was not known.
    pub since: Option<Arc<Cursor>>,
    /// Of all rows, as [`asking::Digest`] makes it.
    pub digest: asking::Digest,
}

impl Check {
    /// For those who read their state elsewhere.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark::Comparison(Arc::clone(&self.at))
    }

    /// Whether a screen that read its state at `read`, and has been told everything since, shows
    /// what was found once it is told the difference. `digest` is of what it shows now, if that is known.
    #[must_use]
    pub fn holds_for(&self, read: &Cursor, digest: Option<asking::Digest>) -> bool {
        let since = self.since.as_ref();
        since.is_some_and(|since| since.covers(read)) || digest == Some(self.digest)
    }
}

/// What an event does to the [`asking::Digest`] of what a screen shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nobody knows.
    Unknown,
    /// It changes by this.
    Change(asking::Digest),
    /// It becomes that of the [`Check`] in front of the event.
    Checked,
}

/// One transaction, or one batch of a view that asks, encoded for one view or channel.
#[derive(Debug)]
pub struct Event {
    /// What it holds.
    pub mark: Mark,
    /// When it was logged, by the database's clock.
    pub at: Timestamp,
    /// The feed's cursor after it.
    pub cursor: Arc<Cursor>,
    /// The whole frame, for those whose cursor is the feed's.
    pub frame: Bytes,
    /// The same as a chunk of HTTP/1.1, of which `frame` is a part: one copy for all who are given it.
    pub chunk: Bytes,
    /// Where the data lines begin in it, for those who need an id of their own.
    pub body: usize,
    /// For screens of a view that asks.
    pub effect: Effect,
}

impl Event {
    /// Encodes `body`, finished data lines, under the token of the cursor.
    #[must_use]
    pub fn new(
        mark: Mark,
        at: Timestamp,
        token: &Token,
        cursor: Arc<Cursor>,
        body: &Bytes,
    ) -> Self {
        let head = sse::head(None, "data", &token.to_string());
        let (chunk, frame) = sse::chunk(&[head.as_bytes(), body]);
        Self {
            mark,
            at,
            cursor,
            frame: chunk.slice(frame),
            chunk,
            body: head.len(),
            effect: Effect::Unknown,
        }
    }

    /// The data lines for a screen whose state has some of the elements already; `None` where it needs all. A state
    /// that was read while a batch came about may have a part of it.
    #[must_use]
    pub fn news(&self, cursor: &Cursor) -> Option<Bytes> {
        let Mark::Batch(_, xids) = &self.mark else {
            return None;
        };
        let has = |xid: &Xid| cursor.is_done(*xid);
        xids.iter().any(has).then(|| {
            sse::without(&self.frame[self.body..], |place| {
                xids.get(place).is_some_and(has)
            })
        })
    }

    /// The same of a view that asks.
    #[must_use]
    pub fn with(mut self, effect: Effect) -> Self {
        self.effect = effect;
        self
    }
}

/// A channel's stream.
#[derive(Debug)]
pub struct Channel {
    /// What its tokens are for.
    pub name: Name,
    /// What people call it.
    pub channel: String,
    /// Its events.
    pub topic: Topic<Delivery>,
}

impl Channel {
    /// A channel without subscribers.
    #[must_use]
    pub fn new(channel: &str) -> Self {
        Self {
            name: Name::of(["channel", channel]),
            channel: channel.to_owned(),
            topic: Topic::new(BUFFER),
        }
    }

    /// What a transaction published here.
    pub fn messages<'t>(&self, transaction: &'t Transaction) -> impl Iterator<Item = &'t Message> {
        let messages = transaction.messages.iter();
        messages.filter(|message| message.channel == self.channel)
    }

    /// The data lines of what a transaction published here; `None` for nothing.
    #[must_use]
    pub fn encode(&self, transactions: &[&Transaction]) -> Option<Bytes> {
        let mut array = sse::Array::new(&self.channel);
        for transaction in transactions {
            for message in self.messages(transaction) {
                array.push(&Element::Message {
                    payload: Arc::clone(&message.payload),
                    xid: transaction.xid,
                    at: message.at,
                });
            }
        }
        (!array.is_empty()).then(|| array.finish())
    }
}

impl View {
    /// A view without subscribers. `name` says what its tokens are for: all that decides what it
    /// shows and to whom.
    #[must_use]
    pub fn new(name: Name, definition: Definition) -> Self {
        Self {
            name,
            made: 0,
            kind: definition.table.qualified(),
            definition,
            topic: Topic::new(BUFFER),
            snapshots: snapshot::Flight::default(),
            told: Mutex::default(),
            sightings: Sightings::default(),
        }
    }

    /// The same, which keeps as much as that for subscribers that are behind.
    #[must_use]
    pub fn with_buffer(self, bounds: Bounds) -> Self {
        Self {
            topic: Topic::new(bounds),
            ..self
        }
    }

    /// The same, made from what was looked up after definitions were told up to this number.
    #[must_use]
    pub fn made_at(self, definitions: u64) -> Self {
        Self {
            made: definitions,
            ..self
        }
    }

    /// Up to which number definitions had been told when it was made.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.made
    }

    /// What its tokens are for.
    #[must_use]
    pub fn name(&self) -> Name {
        self.name
    }

    /// `pg_class.oid` of the table and of every table its policies read.
    #[must_use]
    pub fn tables(&self) -> Vec<u32> {
        let policies = match &self.definition.sight {
            Sight::Images(_) => None,
            Sight::Asking(asking) => asking.policies.as_ref(),
        };
        let others = policies.map_or(&[][..], |policies| &policies.depends);
        [&[self.definition.table.oid], others].concat()
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.definition.table
    }

    /// Its events.
    #[must_use]
    pub fn topic(&self) -> &Topic<Delivery> {
        &self.topic
    }

    /// Names and types of its columns, for `schema` controls.
    #[must_use]
    pub fn columns(&self) -> &[(String, String)] {
        &self.definition.columns
    }

    /// Whether the other one was made when its table and its policies were the same.
    #[must_use]
    pub fn is_defined_like(&self, other: &Self) -> bool {
        let policies = |view: &Self| view.asking().and_then(|asking| asking.policies.clone());
        self.table() == other.table() && policies(self) == policies(other)
    }

    /// How it knows what a change means for it.
    #[must_use]
    pub fn sight(&self) -> &Sight {
        &self.definition.sight
    }

    /// How it asks, when it does.
    #[must_use]
    pub fn asking(&self) -> Option<&Arc<Asking>> {
        match &self.definition.sight {
            Sight::Images(_) => None,
            Sight::Asking(asking) => Some(asking),
        }
    }

    /// The statement that reads its state.
    #[must_use]
    pub fn statement(&self) -> &Statement {
        &self.definition.statement
    }

    /// As whom its rows are read.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.definition.context
    }

    /// How far it is, for a view that asks.
    #[must_use]
    pub fn told_until(&self) -> Told {
        self.told().clone()
    }

    /// Everything up to `cursor` has been published, to where the log was read at `read`. Where
    /// something is missing in it, what was read before that counts.
    pub fn set_told(&self, cursor: Arc<Cursor>, read: Option<Instant>) {
        let mut told = self.told();
        told.until = Some(cursor);
        told.read = read.or(told.read);
        told.failing = false;
    }

    /// It could not be asked.
    pub fn set_failing(&self) {
        self.told().failing = true;
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().expect("no panic while held")
    }

    /// Some screen may show a row: what goes must be told.
    pub fn set_shown(&self) {
        self.sightings.any.store(true, Ordering::SeqCst);
    }

    /// A state, or what somebody has missed, is being read, until the guard is dropped.
    #[must_use]
    pub fn read_state(&self) -> impl Drop + '_ {
        struct Reading<'a>(&'a AtomicUsize);
        impl Drop for Reading<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        self.sightings.reading.fetch_add(1, Ordering::SeqCst);
        Reading(&self.sightings.reading)
    }

    /// Whether some screen may show a row of it. Whoever begins to read a state after this was asked, reads one
    /// that is later than all that had been read by then.
    #[must_use]
    pub fn may_be_shown(&self) -> bool {
        let sightings = &self.sightings;
        // In this order: what was being read is noted before it is over.
        sightings.reading.load(Ordering::SeqCst) > 0 || sightings.any.load(Ordering::SeqCst)
    }

    /// Leaves out that rows go where there is nothing else and nobody `may_show` one: whoever shows nothing need not
    /// know that rows are there which change.
    pub fn withhold(&self, elements: &mut Vec<Element>, may_show: impl FnOnce(&Self) -> bool) {
        let is_delete = |element: &Element| matches!(element, Element::Delete { .. });
        if !elements.iter().all(is_delete) {
            self.set_shown();
        } else if !may_show(self) {
            elements.clear();
        }
    }

    /// The data lines of these elements.
    #[must_use]
    pub fn encode(&self, elements: &[Element]) -> Bytes {
        let mut array = sse::Array::new(&self.kind);
        for element in elements {
            array.push(element);
        }
        array.finish()
    }

    fn array(&self) -> sse::Array<'_> {
        sse::Array::new(&self.kind)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Of a table whose key is `id`, for everybody, without a statement.
    pub(crate) fn definition(table: u32, sight: Sight) -> Definition {
        let table = Table {
            oid: table,
            schema: "public".into(),
            name: "t".into(),
            kind: 'r',
            columns: Vec::new(),
            key: vec!["id".into()],
            watched: true,
            by_column: false,
            deferrable_key: false,
        };
        Definition {
            table: Arc::new(table),
            context: Context::default(),
            columns: Vec::new(),
            statement: Statement::default(),
            sight,
        }
    }

    fn batch(elements: &[Element], end: Xid) -> Event {
        let view = View::new(
            Name::of(["v"]),
            definition(1, Sight::Asking(Arc::new(answering::tests::asking()))),
        );
        let cursor = Arc::new(Cursor::new(end, []));
        let token = Token {
            epoch: Name::of(["epoch"]),
            view: view.name(),
            cursor: (*cursor).clone(),
        };
        let xids = elements.iter().map(Element::xid).collect::<Option<_>>();
        let mark = Mark::Batch(Arc::clone(&cursor), xids.unwrap_or_default());
        Event::new(
            mark,
            Timestamp::UNIX_EPOCH,
            &token,
            cursor,
            &view.encode(elements),
        )
    }

    #[test]
    fn a_screen_is_told_of_a_batch_what_its_state_has_not() {
        let by = |xid| Some((xid, Timestamp::UNIX_EPOCH));
        let row = |key: &str, xid| Element::Upsert {
            key: key.into(),
            value: Some(r#"{"a":"[,]"}"#.into()),
            inserted: false,
            xid,
            at: Timestamp::UNIX_EPOCH,
        };
        let gone = |key: &str, by| Element::Delete {
            key: key.into(),
            by,
        };
        let all = [gone("a", by(5)), row("b", 6), row("c", 5), row("d", 7)];
        let event = batch(&all, 9);
        let told = |cursor: &Cursor| {
            let body = event.news(cursor)?;
            let text = std::str::from_utf8(&body).unwrap().strip_suffix("\n\n");
            let lines = text
                .unwrap()
                .lines()
                .map(|line| line.strip_prefix("data: ").unwrap());
            let json: serde_json::Value = serde_json::from_str(&lines.collect::<String>()).unwrap();
            let keys = json.as_array().unwrap().iter();
            Some(
                keys.map(|element| element["key"].as_str().unwrap())
                    .collect::<String>(),
            )
        };
        for (cursor, is_in, news) in [
            (Cursor::new(5, []), false, None),
            (Cursor::new(6, []), false, Some("bd")),
            (Cursor::new(8, [5]), false, Some("ac")),
            (Cursor::new(8, [6]), false, Some("b")),
            (Cursor::new(9, [5, 6, 7]), false, None),
        ] {
            assert_eq!(event.mark.is_in(&cursor), is_in, "{cursor}");
            assert_eq!(told(&cursor).as_deref(), news, "{cursor}");
        }
        assert!(event.mark.is_in(&Cursor::new(8, [])));
        // Where nobody knows who did it, all is told until the snapshot is there.
        let unknown = batch(&[row("b", 6), gone("a", None)], 9);
        assert!(
            !unknown.mark.is_in(&Cursor::new(8, [])) && unknown.mark.is_in(&Cursor::new(9, []))
        );
        assert!(unknown.news(&Cursor::new(8, [])).is_none());
    }
}
