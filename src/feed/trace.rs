//! What the feed knows of one transaction, for people who ask why a screen did not get it.
//!
//! It tells tables, roles, keys and how many streams there are: never rows, claims or filters.

use std::sync::Arc;

use serde::Serialize;

use super::stage::Stage;
use crate::cursor::Xid;
use crate::event::{Delta, Element};
use crate::view::{Sight, View};

/// Keys that are named for one view.
const KEYS: usize = 10;

/// What is known.
#[derive(Debug, Serialize)]
pub struct Trace {
    /// How far the feed is with it, in words.
    pub state: String,
    /// Where the feed is.
    pub cursor: Option<String>,
    /// What the open views of its tables say of it.
    pub views: Vec<Traced>,
}

/// One view, and the transaction.
#[derive(Debug, Serialize)]
pub struct Traced {
    /// The middle part of its streams' ids.
    pub view: String,
    /// What it shows.
    pub table: String,
    /// As whom.
    pub role: Option<String>,
    /// Streams that are open.
    pub streams: usize,
    /// What it says of the transaction, in words.
    pub says: String,
}

impl Stage {
    /// What is known of a transaction.
    #[must_use]
    pub fn trace(&self, xid: Xid) -> Trace {
        let live = self.lock();
        let Some(at) = &live.at else {
            return Trace {
                state: "it has not read the log yet".to_owned(),
                cursor: None,
                views: Vec::new(),
            };
        };
        let cursor = Some(at.cursor.to_string());
        let remembered = at.ring.find(xid);
        let state = match (&remembered, at.cursor.is_done(xid)) {
            (_, false) => "it has not read it yet: it is open, or the feed is behind",
            (Some(_), true) => "it has read it, and remembers it",
            (None, true) => {
                "it is past it and does not remember it: it held nothing that is watched, or is older than its memory"
            }
        };
        // The lock of views that ask is taken second, as everywhere.
        let asked = self.asked_views();
        let mut views = Vec::new();
        let deltas = remembered
            .iter()
            .flat_map(|transaction| &transaction.deltas);
        for delta in deltas {
            let shows = |view: &&Arc<View>| view.table().oid == delta.table;
            views.extend(
                live.views()
                    .filter(shows)
                    .map(|view| traced(view, xid, delta)),
            );
            views.extend(
                asked
                    .iter()
                    .filter(shows)
                    .map(|view| traced(view, xid, delta)),
            );
        }
        views.sort_by(|one, other| one.view.cmp(&other.view));
        Trace {
            state: state.to_owned(),
            cursor,
            views,
        }
    }
}

fn traced(view: &View, xid: Xid, delta: &Delta) -> Traced {
    let says = match view.sight() {
        Sight::Images(images) => match images.elements(xid, delta) {
            Ok(elements) if elements.is_empty() => {
                "nothing: its rows are not in this view, neither before nor after".to_owned()
            }
            Ok(elements) => told(&elements),
            Err(_undecided) => {
                "the images do not tell, so that its screens read the state anew".to_owned()
            }
        },
        Sight::Asking(_) => {
            let until = view.told_until();
            let done = until.until.is_some_and(|cursor| cursor.is_done(xid));
            match (done, until.failing) {
                (true, _) => "it asked the database, and has told what its role may see".to_owned(),
                (false, true) => "it cannot ask the database now, and is behind".to_owned(),
                (false, false) => "it is about to ask the database".to_owned(),
            }
        }
    };
    Traced {
        view: view.name().to_string(),
        table: view.table().qualified(),
        role: view.context().role.clone(),
        streams: view.topic().subscribers(),
        says,
    }
}

fn told(elements: &[Element]) -> String {
    let words = elements.iter().take(KEYS).map(|element| match element {
        Element::Upsert { key, inserted, .. } => {
            format!("{} {key}", if *inserted { "insert" } else { "update" })
        }
        Element::Delete { key, .. } => format!("delete {key}"),
        _ => "reset".to_owned(),
    });
    let mut words = words.collect::<Vec<_>>().join(", ");
    if elements.len() > KEYS {
        words.push_str(", …");
    }
    words
}
