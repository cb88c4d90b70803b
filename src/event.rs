//! What happened: log entries, transactions, the net changes of each, and what a screen is told.
//!
//! The path is [`Entry`] (a row of the log) to [`Change`] (what a transaction did to one key) to
//! [`Element`] (what one view says of it). This room knows row images only as text that PostgreSQL
//! wrote; it never re-encodes a value, but for times of another [zone]. Pure: no socket, no task.

mod net;
pub mod zone;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::cursor::Xid;
pub use net::{Keyless, net};

/// Rows larger than this are told without their value; the screen fetches them.
pub const TOO_LARGE: usize = 1 << 20;

/// One row of `rowcast.log`.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Order inside a transaction.
    pub id: i64,
    /// The table, or the partition, that the trigger ran on; 0 for none.
    pub rel: u32,
    /// What happened.
    pub operation: Operation,
    /// The channel of a message.
    pub channel: Option<String>,
    /// The row before, as JSON text. Times may be in any [zone].
    pub old: Option<Arc<str>>,
    /// The row after, or the payload of a message, as JSON text.
    pub new: Option<Arc<str>>,
    /// `old` and `new` hold only the primary key.
    pub truncated: bool,
    /// The trigger's clock.
    pub at: Timestamp,
}

/// The `op` of a log row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `I`
    Insert,
    /// `U`
    Update,
    /// `D`
    Delete,
    /// `T`
    Truncate,
    /// `P`
    Message,
    /// `R`
    Reset,
}

impl Operation {
    /// The operation that the log writes as this letter.
    #[must_use]
    pub fn from_letter(letter: u8) -> Option<Self> {
        Some(match letter {
            b'I' => Self::Insert,
            b'U' => Self::Update,
            b'D' => Self::Delete,
            b'T' => Self::Truncate,
            b'P' => Self::Message,
            b'R' => Self::Reset,
            _ => return None,
        })
    }
}

/// A committed transaction, net.
#[derive(Debug, Clone)]
pub struct Transaction {
    /// Its top-level id.
    pub xid: Xid,
    /// When its last entry was logged.
    pub at: Timestamp,
    /// What it did, table by table.
    pub deltas: Vec<Delta>,
    /// What it published, in order.
    pub messages: Vec<Message>,
    /// Everything is unknown from here on.
    pub reset_all: bool,
}

/// What a transaction did to one watched table.
#[derive(Debug, Clone)]
pub struct Delta {
    /// The table's oid; the root's for a partitioned one.
    pub table: u32,
    /// What became of its earlier rows.
    pub scope: Scope,
    /// One change a key, in the order of their last touch.
    pub changes: Vec<Change>,
}

/// How much of a table a [`Delta`] speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Only of the keys it names.
    Keys,
    /// Of everything: the table was truncated, and holds what the delta names.
    Truncated,
    /// Of nothing: the state is unknown and must be read anew.
    Unknown,
}

/// What a transaction, or several folded into one, did to one key.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The primary key as text, see [`Image::key`].
    pub key: Arc<str>,
    /// Before the first touch.
    pub before: State,
    /// After the last.
    pub after: State,
    /// When the last touch was logged.
    pub at: Timestamp,
}

/// A row at some moment.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// There was none.
    Absent,
    /// Its image: a JSON object of all columns, as `row_to_json` writes it.
    Row(Arc<str>),
    /// Not told by the log. Holds a JSON object of the key columns to read it by.
    Unknown(Arc<str>),
    /// There is one, and it is too large to be sent.
    TooLarge,
}

/// A durable message.
#[derive(Debug, Clone)]
pub struct Message {
    /// Where it was published.
    pub channel: String,
    /// JSON text.
    pub payload: Arc<str>,
    /// When it was logged.
    pub at: Timestamp,
}

/// What a piece of memory of this size takes. An allocator's sizes are at most a quarter apart, so it
/// rounds up by an eighth on average.
fn allocated(bytes: usize) -> usize {
    bytes + bytes / 8
}

impl Transaction {
    /// About the memory it takes, in bytes.
    #[must_use]
    pub fn weight(&self) -> usize {
        // Two counts come before a shared text.
        let text = |text: &str| allocated(2 * size_of::<usize>() + text.len());
        let state = |state: &State| match state {
            State::Row(row) | State::Unknown(row) => text(row),
            State::Absent | State::TooLarge => 0,
        };
        let change = |c: &Change| text(&c.key) + state(&c.before) + state(&c.after);
        let delta = |delta: &Delta| {
            let texts = delta.changes.iter().map(change).sum::<usize>();
            allocated(delta.changes.capacity() * size_of::<Change>()) + texts
        };
        let message = |m: &Message| allocated(m.channel.capacity()) + text(&m.payload);
        allocated(size_of::<Self>())
            + allocated(self.deltas.capacity() * size_of::<Delta>())
            + self.deltas.iter().map(delta).sum::<usize>()
            + allocated(self.messages.capacity() * size_of::<Message>())
            + self.messages.iter().map(message).sum::<usize>()
    }
}

/// What one view or channel tells its subscribers: an element of the array in `data`.
#[derive(Debug, Clone, PartialEq)]
pub enum Element {
    /// Drop everything.
    Reset,
    /// The state follows.
    SnapshotStart,
    /// The state is complete.
    SnapshotEnd,
    /// A row of the state.
    Row {
        /// Its key.
        key: Arc<str>,
        /// Its columns as JSON text; `None` when it is too large.
        value: Option<Arc<str>>,
    },
    /// The row is in the view now.
    Upsert {
        /// Its key.
        key: Arc<str>,
        /// Its columns as JSON text; `None` when it is too large.
        value: Option<Arc<str>>,
        /// It was not in the view before.
        inserted: bool,
        /// The transaction.
        xid: Xid,
        /// When it was logged.
        at: Timestamp,
    },
    /// The row is not in the view any more.
    Delete {
        /// Its key.
        key: Arc<str>,
        /// The transaction, and when it was logged; none where only comparing found out.
        by: Option<(Xid, Timestamp)>,
    },
    /// A message.
    Message {
        /// JSON text.
        payload: Arc<str>,
        /// The transaction.
        xid: Xid,
        /// When it was logged.
        at: Timestamp,
    },
    /// A bare NOTIFY.
    Notify {
        /// Its payload, any text.
        payload: String,
    },
}

impl Element {
    /// The transaction that made it so, where that is known.
    #[must_use]
    pub fn xid(&self) -> Option<Xid> {
        match self {
            Self::Upsert { xid, .. } | Self::Message { xid, .. } => Some(*xid),
            Self::Delete { by, .. } => by.map(|(xid, _)| xid),
            _ => None,
        }
    }
}

/// Takes the text of a primary key of `columns` columns apart, see [`Image::key`]; `None` when it is
/// none.
#[must_use]
pub fn key_parts(key: &str, columns: usize) -> Option<Vec<String>> {
    if columns == 1 {
        return Some(vec![key.to_owned()]);
    }
    let mut parts = Vec::with_capacity(columns);
    let mut rest = key;
    loop {
        let mut strings = serde_json::Deserializer::from_str(rest).into_iter::<String>();
        parts.push(strings.next()?.ok()?);
        rest = &rest[strings.byte_offset()..];
        if rest.is_empty() {
            return (parts.len() == columns).then_some(parts);
        }
        rest = rest.strip_prefix('/')?;
    }
}

/// As [`Image::key`] of that text, of which no more is read than it takes.
#[must_use]
pub fn key_of(text: &str, columns: &[String]) -> Option<String> {
    struct Members<'de, 'a> {
        columns: &'a [String],
        parts: &'a mut [Option<&'de str>],
    }
    impl<'de> Visitor<'de> for Members<'de, '_> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            let mut missing = self.columns.len();
            while missing > 0
                && let Some((name, value)) = map.next_entry::<Name<'de>, &'de RawValue>()?
            {
                if let Some(at) = self.columns.iter().position(|column| *column == name.0) {
                    missing -= usize::from(self.parts[at].is_none());
                    self.parts[at] = Some(value.get());
                }
            }
            Ok(())
        }
    }
    let mut parts = vec![None; columns.len()];
    let members = Members {
        columns,
        parts: &mut parts,
    };
    // An error when not all was read, and nobody asks for the rest.
    let _rest = serde_json::Deserializer::from_str(text).deserialize_map(members);
    key_of_parts(parts.into_iter())
}

/// The key that has these values, as JSON text.
fn key_of_parts<'a>(mut parts: impl ExactSizeIterator<Item = Option<&'a str>>) -> Option<String> {
    if parts.len() <= 1 {
        return parts.next()?.map(|part| plain(part).into_owned());
    }
    let quoted = |part: Option<&str>| Some(serde_json::Value::from(plain(part?)).to_string());
    let parts: Option<Vec<String>> = parts.map(quoted).collect();
    Some(parts?.join("/"))
}

/// A row image taken apart: its members in order, their values as PostgreSQL wrote them.
#[derive(Debug)]
pub struct Image<'a> {
    members: Vec<(Cow<'a, str>, &'a str)>,
}

/// A log image that is not a JSON object; our triggers write no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("row image is not a json object")]
pub struct NotAnObject;

impl<'a> Image<'a> {
    /// Takes `text` apart. Values are not looked into, so that what JSON allows and others refuse
    /// (`\u0000`, huge numbers, lone surrogates) passes.
    ///
    /// # Errors
    /// [`NotAnObject`].
    pub fn parse(text: &'a str) -> Result<Self, NotAnObject> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Vec<(Cow<'de, str>, &'de str)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((name, value)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
                    members.push((name.0, value.get()));
                }
                Ok(members)
            }
        }
        let mut json = serde_json::Deserializer::from_str(text);
        let members = json.deserialize_map(Members).map_err(|_| NotAnObject)?;
        json.end().map_err(|_| NotAnObject)?;
        Ok(Self { members })
    }

    /// Whether it is made of these columns, in this order.
    #[must_use]
    pub fn is_of<'c>(&self, columns: impl Iterator<Item = &'c str>) -> bool {
        self.members.iter().map(|(name, _)| &**name).eq(columns)
    }

    /// The value of that column as JSON text.
    #[must_use]
    pub fn get(&self, column: &str) -> Option<&'a str> {
        self.members
            .iter()
            .find_map(|(name, value)| (name == column).then_some(*value))
    }

    /// The primary key as text: a single string as it is and any other value as its JSON (`7`,
    /// `abc`); several columns each as a JSON string, joined by a slash (`"7"/"abc"`). `None` when a
    /// column is missing.
    #[must_use]
    pub fn key(&self, columns: &[String]) -> Option<String> {
        key_of_parts(columns.iter().map(|column| self.get(column)))
    }

    /// A JSON object of these columns; of `columns`, each is a name here and its name there.
    #[must_use]
    pub fn project<'c>(&self, columns: impl Iterator<Item = (&'c str, &'c str)>) -> Option<String> {
        let mut text = String::from("{");
        for (column, output) in columns {
            if text.len() > 1 {
                text.push(',');
            }
            text.push_str(&serde_json::Value::from(output).to_string());
            text.push(':');
            text.push_str(self.get(column)?);
        }
        text.push('}');
        Some(text)
    }
}

/// A JSON string without its quotes; any other JSON text as it is.
#[must_use]
pub fn plain(json: &str) -> Cow<'_, str> {
    if json.starts_with('"') {
        match serde_json::from_str::<String>(json) {
            Ok(text) => Cow::Owned(text),
            // A lone surrogate from a json column: its own spelling is as good a name.
            Err(_) => Cow::Borrowed(json),
        }
    } else {
        Cow::Borrowed(json)
    }
}

/// A member name, borrowed where it has no escapes.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_keeps_its_values_to_the_byte() {
        let text =
            "{\"id\":7,\"a\\\"b\":\"\\u0000\",\"j\":{ \"x\" :\n1e999999 },\"s\":\"\\ud800\"}";
        let image = Image::parse(text).unwrap();
        assert_eq!(image.get("id"), Some("7"));
        assert_eq!(image.get("a\"b"), Some("\"\\u0000\""));
        assert_eq!(image.get("j"), Some("{ \"x\" :\n1e999999 }"));
        assert_eq!(image.get("s"), Some("\"\\ud800\""));
        let projected = image.project([("j", "k"), ("id", "id")].into_iter());
        assert_eq!(projected.unwrap(), "{\"k\":{ \"x\" :\n1e999999 },\"id\":7}");
        assert!(Image::parse("[1]").is_err());
    }

    #[test]
    fn keys_are_text() {
        let image = Image::parse(r#"{"id" : 7, "name":"a/\"b"}"#).unwrap();
        let key = |columns: &[&str]| {
            image.key(&columns.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(key(&["id"]).unwrap(), "7");
        assert_eq!(key(&["name"]).unwrap(), "a/\"b");
        assert_eq!(key(&["id", "name"]).unwrap(), r#""7"/"a/\"b""#);
        assert_eq!(key(&["gone"]), None);
    }

    #[test]
    fn a_key_is_read_out_of_an_image_that_is_not_taken_apart() {
        let text = r#"{"a":{"id":1},"i\"d":"x/y","id":7,"z":null}"#;
        let image = Image::parse(text).unwrap();
        for columns in [
            &["id"][..],
            &["i\"d"],
            &["id", "i\"d"],
            &["z", "id"],
            &["gone"],
            &["id", "gone"],
            &[],
        ] {
            let columns: Vec<String> = columns.iter().map(|c| (*c).to_owned()).collect();
            assert_eq!(key_of(text, &columns), image.key(&columns), "{columns:?}");
        }
        for text in ["", "7", "[7]", "{\"id\":", "{\"id\""] {
            assert_eq!(key_of(text, &["id".to_owned()]), None, "{text}");
        }
    }
}
