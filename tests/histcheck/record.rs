//! What was seen and what was tried, kept compactly until it is judged.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::tables::View;

/// Microseconds since 1970: the clock that all records share.
pub fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    u64::try_from(since.as_micros()).expect("before the year 500,000")
}

/// Equal texts once: observers of one view are told the same.
#[derive(Debug, Default)]
pub struct Texts {
    inner: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    numbers: HashMap<Arc<str>, u32>,
    texts: Vec<Arc<str>>,
}

impl Texts {
    pub fn keep(&self, text: &str) -> u32 {
        let mut inner = self.inner.lock().unwrap();
        if let Some(number) = inner.numbers.get(text) {
            return *number;
        }
        let number = u32::try_from(inner.texts.len()).expect("fewer than 2^32 texts");
        let text: Arc<str> = text.into();
        inner.numbers.insert(Arc::clone(&text), number);
        inner.texts.push(text);
        number
    }

    pub fn all(&self) -> Vec<Arc<str>> {
        self.inner.lock().unwrap().texts.clone()
    }
}

/// How an observer behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Stays as long as the connection does.
    Steady,
    /// Leaves every 1 to 20 s, and comes back to any relay.
    Leaving,
    /// Reads slowly, and now and then not at all.
    Slow,
    /// Leaves, and comes back without a token.
    Fresh,
    /// Comes back with a token that is old, of the future, foreign or damaged.
    Liar,
}

/// What an observer's streams come over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    Http1,
    /// With prior knowledge, so without TLS.
    Http2,
    /// nginx, which gives it to any relay.
    Nginx,
    /// The `EventSource` of a browser.
    Chromium,
}

impl Transport {
    /// What its events are counted as.
    pub fn events(self) -> &'static str {
        match self {
            Self::Http1 => "data events over HTTP/1.1",
            Self::Http2 => "data events over HTTP/2",
            Self::Nginx => "data events through nginx",
            Self::Chromium => "data events in Chromium",
        }
    }
}

/// One thing that an observer noticed.
#[derive(Debug, Clone, PartialEq)]
pub enum Note {
    Opened {
        relay: usize,
        /// The id it came back with.
        id: Option<u32>,
    },
    /// An event of kind `data`.
    Data { id: u32, text: u32 },
    /// An event of kind `control`.
    Control { id: u32, text: u32 },
    /// The connection could not be made, or the answer was no stream: the status, 0 for none.
    Refused { relay: usize, status: u16 },
    /// The stream ended; `by_us` when the observer left.
    Ended { by_us: bool },
    /// Nothing was heard for so long that the screen says so itself.
    Silent,
    /// Not what the standard allows: the bytes.
    Broken { text: u32 },
}

/// An observer and its whole life.
#[derive(Debug, Clone)]
pub struct Record {
    pub number: usize,
    pub kind: Kind,
    pub transport: Transport,
    pub view: View,
    /// When, and what.
    pub notes: Vec<(u64, Note)>,
}

/// How a transaction ended, as far as its writer knows.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Committed; the xid, where the writer was told.
    Committed(Option<u64>),
    /// Rolled back by intent.
    RolledBack,
    /// Refused, so it did nothing: the SQLSTATE or status, and whether concurrency explains it.
    Failed { why: String, by_concurrency: bool },
    /// The connection went while it was unknown whether the commit had happened.
    Unknown(String),
}

/// What the writer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    Api,
    Direct,
    Psql,
    /// The marker that is written four times a second.
    Marker,
}

/// One attempt of a writer.
#[derive(Debug, Clone)]
pub struct Intent {
    pub tx: i64,
    pub writer: u32,
    pub way: Way,
    /// Committed without waiting for the disk: a crash may take it back.
    pub asynchronous: bool,
    pub begun: u64,
    pub ended: u64,
    pub outcome: Outcome,
}
