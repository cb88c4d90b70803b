//! What a view says of a change, decided from the row images.
//!
//! Before in, after in: update. Out, in: insert. In, out: delete. Pure: no socket, no task.

use std::sync::Arc;

use crate::cursor::Xid;
use crate::event::{Change, Delta, Element, Image, Scope, State};
use crate::filter::{Equalities, Kind, Matcher};

/// A view that is decided from row images.
#[derive(Debug, Clone)]
pub struct Images {
    /// Columns of the primary key, in key order.
    pub key: Vec<String>,
    /// Which rows.
    pub matcher: Matcher,
    /// Which columns: name in the table and name in the view. `None` for all.
    pub columns: Option<Vec<(String, String)>>,
}

/// The images do not decide it: a column is missing, or the row is too large to look into. The
/// view must be read anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("row images do not decide what the view shows")]
pub struct Undecided;

/// A change with its images taken apart, once for all views of its table.
#[derive(Debug)]
pub struct Seen<'a> {
    change: &'a Change,
    before: Side<'a>,
    after: Side<'a>,
}

/// A row before or after a change.
#[derive(Debug)]
enum Side<'a> {
    Absent,
    Row(&'a Arc<str>, Image<'a>),
    TooLarge,
    /// Not told by the log, or no image of a row.
    Unknown,
}

/// What a change means for those who see the rows of one filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The row was not in the view and is.
    Insert,
    /// It was, or may have been, and is.
    Update,
    /// It was, or may have been, and is not.
    Delete,
}

impl<'a> Side<'a> {
    fn of(state: &'a State) -> Self {
        match state {
            State::Absent => Self::Absent,
            State::TooLarge => Self::TooLarge,
            State::Unknown(_) => Self::Unknown,
            State::Row(text) => {
                Image::parse(text).map_or(Self::Unknown, |image| Self::Row(text, image))
            }
        }
    }
}

impl<'a> Seen<'a> {
    /// Takes the images of a change apart. After a truncation there was no row before.
    #[must_use]
    pub fn new(change: &'a Change, truncated: bool) -> Self {
        let before = if truncated {
            Side::Absent
        } else {
            Side::of(&change.before)
        };
        Self {
            change,
            before,
            after: Side::of(&change.after),
        }
    }

    /// Hashes of what its rows are equal to, see [`Equalities`]: before and after, without those
    /// that no row is equal to.
    ///
    /// # Errors
    /// [`Undecided`] where a row is there that the images do not tell.
    pub fn equalities(&self, columns: &[(String, Kind)]) -> Result<[Option<u64>; 2], Undecided> {
        let hash = |side: &Side<'_>| match side {
            Side::Absent => Ok(None),
            Side::Row(_, image) => {
                Equalities::of_row(columns, |column| image.get(column)).map_err(|_| Undecided)
            }
            Side::TooLarge | Side::Unknown => Err(Undecided),
        };
        Ok([hash(&self.before)?, hash(&self.after)?])
    }

    /// What the change means for those who see what matches; `None` for nothing.
    ///
    /// # Errors
    /// [`Undecided`].
    pub fn judged(&self, matcher: &Matcher) -> Result<Option<Verdict>, Undecided> {
        let matches = |image: &Image<'_>| {
            let matched = matcher.matches(|column| image.get(column));
            matched.map_err(|_| Undecided)
        };
        let was = match &self.before {
            Side::Absent => Some(false),
            Side::Row(_, image) => Some(matches(image)?),
            Side::TooLarge | Side::Unknown => None,
        };
        let is = match &self.after {
            Side::Absent => false,
            Side::Row(_, image) => matches(image)?,
            Side::TooLarge if matcher.is_always() => true,
            Side::TooLarge | Side::Unknown => return Err(Undecided),
        };
        Ok(match (was, is) {
            (Some(false), false) => None,
            (_, false) => Some(Verdict::Delete),
            (Some(false), true) => Some(Verdict::Insert),
            (_, true) => Some(Verdict::Update),
        })
    }
}

impl Images {
    /// What one transaction did to the table, as the view tells it; nothing when it does not concern
    /// the view.
    ///
    /// # Errors
    /// [`Undecided`], also for a delta of unknown scope.
    pub fn elements(&self, xid: Xid, delta: &Delta) -> Result<Vec<Element>, Undecided> {
        if delta.scope == Scope::Unknown {
            return Err(Undecided);
        }
        let changes = delta.changes.iter().map(|change| (xid, change));
        self.told(delta.scope == Scope::Truncated, changes)
    }

    /// Deletes first, then the rows that are there: no order of keys inside a transaction can make
    /// a client drop a row that another key's change brought.
    ///
    /// # Errors
    /// [`Undecided`].
    pub fn told<'a>(
        &self,
        truncated: bool,
        changes: impl Iterator<Item = (Xid, &'a Change)>,
    ) -> Result<Vec<Element>, Undecided> {
        let mut told = Telling::new(truncated);
        for (xid, change) in changes {
            let seen = Seen::new(change, truncated);
            if let Some(verdict) = seen.judged(&self.matcher)? {
                told.tell(self, xid, &seen, verdict)?;
            }
        }
        Ok(told.finish())
    }

    /// A row of the state, from its image.
    ///
    /// # Errors
    /// [`Undecided`] when the image is not of this table.
    pub fn row(&self, text: &str) -> Result<Element, Undecided> {
        let image = Image::parse(text).map_err(|_| Undecided)?;
        let key = image.key(&self.key).ok_or(Undecided)?;
        let value = (text.len() <= crate::event::TOO_LARGE).then(|| self.shown(text, &image));
        Ok(Element::Row {
            key: key.into(),
            value: value.transpose()?,
        })
    }

    /// What is shown of a row after a change.
    fn value(&self, seen: &Seen<'_>) -> Result<Option<Arc<str>>, Undecided> {
        match (&seen.after, &self.columns) {
            (Side::Row(text, _), None) => Ok(Some(Arc::clone(text))),
            (Side::Row(text, image), Some(_)) => self.shown(text, image).map(Some),
            _ => Ok(None),
        }
    }

    fn shown(&self, text: &str, image: &Image<'_>) -> Result<Arc<str>, Undecided> {
        let Some(columns) = &self.columns else {
            return Ok(text.into());
        };
        let names = columns
            .iter()
            .map(|(name, output)| (name.as_str(), output.as_str()));
        image.project(names).map(Into::into).ok_or(Undecided)
    }
}

/// The elements of one event, as they come together.
#[derive(Debug)]
pub struct Telling {
    /// A reset, then deletes.
    elements: Vec<Element>,
    upserts: Vec<Element>,
}

impl Telling {
    /// Nothing but a reset, where the table was truncated.
    #[must_use]
    pub fn new(truncated: bool) -> Self {
        Self {
            elements: truncated.then_some(Element::Reset).into_iter().collect(),
            upserts: Vec::new(),
        }
    }

    /// Adds what a change means for a view.
    ///
    /// # Errors
    /// [`Undecided`] when the image is not of this table.
    pub fn tell(
        &mut self,
        view: &Images,
        xid: Xid,
        seen: &Seen<'_>,
        verdict: Verdict,
    ) -> Result<(), Undecided> {
        let (key, at) = (Arc::clone(&seen.change.key), seen.change.at);
        if verdict == Verdict::Delete {
            let by = Some((xid, at));
            self.elements.push(Element::Delete { key, by });
            return Ok(());
        }
        self.upserts.push(Element::Upsert {
            key,
            value: view.value(seen)?,
            inserted: verdict == Verdict::Insert,
            xid,
            at,
        });
        Ok(())
    }

    /// All of it, deletes first.
    #[must_use]
    pub fn finish(mut self) -> Vec<Element> {
        self.elements.append(&mut self.upserts);
        self.elements
    }
}
