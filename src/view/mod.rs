//! What a stream shows: a table, a filter, a column list, and to whom.
//!
//! A [`View`] is shared by all its subscribers, and so is one encoded copy of each of its events.
//! [`image`] decides events from row images; [`snapshot`] reads the state. It knows neither
//! requests nor connections.

pub mod image;
pub mod snapshot;

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use crate::cursor::{Cursor, Name, Token, Xid};
use crate::event::{Element, Transaction};
use crate::filter::Matcher;
use crate::hub::{Bounds, Topic};
use crate::postgres::value::Untyped;
use crate::schema::catalog::Table;
use crate::sse;

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
    /// Which rows.
    pub matcher: Matcher,
    /// Which columns: name in the table and name in the view. `None` for all.
    pub columns: Option<Vec<(String, String)>>,
    /// The statement that reads the state: one column, `row_to_json` of each row in the view.
    pub sql: String,
    /// Its parameters.
    pub parameters: Vec<Untyped>,
}

/// A definition with its stream.
#[derive(Debug)]
pub struct View {
    name: Name,
    kind: String,
    definition: Definition,
    topic: Topic<Delivery>,
    snapshots: snapshot::Flight,
}

/// What a topic carries to connections.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// An event.
    Event(Arc<Event>),
    /// A bare NOTIFY, as the data lines of an event. It has no place in the log.
    Notify(Bytes),
    /// This stream is over: whoever showed it must ask for it again and read its state anew, unless
    /// that state was read after the transaction that calls for it.
    Reset {
        /// For the log and the counters.
        reason: &'static str,
        /// The transaction, where one calls for it.
        xid: Option<Xid>,
    },
}

/// One transaction, encoded for one view or channel.
#[derive(Debug)]
pub struct Event {
    /// The transaction.
    pub xid: Xid,
    /// When it was logged, by the database's clock.
    pub at: Timestamp,
    /// The feed's cursor after it.
    pub cursor: Arc<Cursor>,
    /// The whole frame, for those whose cursor is the feed's.
    pub frame: Bytes,
    /// Where the data lines begin in it, for those who need an id of their own.
    pub body: usize,
}

impl Event {
    /// Encodes `body`, finished data lines, under the token of the cursor.
    #[must_use]
    pub fn new(
        transaction: &Transaction,
        token: &Token,
        cursor: Arc<Cursor>,
        body: &Bytes,
    ) -> Self {
        let mut frame = sse::head(None, "data", &token.to_string());
        let start = frame.len();
        frame.push_str(&String::from_utf8_lossy(body));
        Self {
            xid: transaction.xid,
            at: transaction.at,
            cursor,
            frame: frame.into(),
            body: start,
        }
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

    /// The data lines of what a transaction published here; `None` for nothing.
    #[must_use]
    pub fn encode(&self, transactions: &[&Transaction]) -> Option<Bytes> {
        let mut array = sse::Array::new(&self.channel);
        for transaction in transactions {
            for message in transaction
                .messages
                .iter()
                .filter(|m| m.channel == self.channel)
            {
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
            kind: definition.table.qualified(),
            definition,
            topic: Topic::new(BUFFER),
            snapshots: snapshot::Flight::default(),
        }
    }

    /// What its tokens are for.
    #[must_use]
    pub fn name(&self) -> Name {
        self.name
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
    pub fn schema(&self) -> Vec<(&str, &str)> {
        let table = &self.definition.table;
        let column = |name: &str| {
            table
                .column(name)
                .map_or("", |column| column.type_name.as_str())
        };
        // Names are borrowed from the definition, types from the catalogue's table.
        match &self.definition.columns {
            None => table
                .columns
                .iter()
                .map(|c| (c.name.as_str(), c.type_name.as_str()))
                .collect(),
            Some(columns) => columns
                .iter()
                .filter_map(|(name, output)| {
                    let kind = table.columns.iter().find(|c| c.name == *name)?;
                    debug_assert_eq!(column(name), kind.type_name);
                    Some((output.as_str(), kind.type_name.as_str()))
                })
                .collect(),
        }
    }

    /// The data lines of these elements.
    #[must_use]
    pub fn encode(&self, elements: &[Element]) -> Bytes {
        let mut array = sse::Array::new(&self.kind);
        elements.iter().for_each(|element| array.push(element));
        array.finish()
    }

    fn array(&self) -> sse::Array<'_> {
        sse::Array::new(&self.kind)
    }
}
