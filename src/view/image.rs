//! What a view says of a change, decided from the row images.
//!
//! Before in, after in: update. Out, in: insert. In, out: delete. Pure: no socket, no task.

use std::sync::Arc;

use jiff::Timestamp;

use crate::cursor::Xid;
use crate::event::{Change, Delta, Element, Image, Scope, State};
use crate::filter::Matcher;

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

/// What is known of a row and a view.
enum Membership {
    Out,
    In(Option<Arc<str>>),
    Unknown,
}

impl Images {
    /// The elements of one transaction; none when it does not concern the view.
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
        let mut elements = Vec::new();
        if truncated {
            elements.push(Element::Reset);
        }
        let mut upserts = Vec::new();
        for (xid, change) in changes {
            let before = if truncated {
                Membership::Out
            } else {
                self.before(&change.before)?
            };
            match (before, self.after(&change.after)?) {
                (Membership::Out, Membership::Out) => {}
                (_, Membership::Out) => elements.push(delete(change, xid, change.at)),
                (before, Membership::In(value)) => upserts.push(Element::Upsert {
                    key: Arc::clone(&change.key),
                    value,
                    inserted: matches!(before, Membership::Out),
                    xid,
                    at: change.at,
                }),
                (_, Membership::Unknown) => return Err(Undecided),
            }
        }
        elements.append(&mut upserts);
        Ok(elements)
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

    fn before(&self, state: &State) -> Result<Membership, Undecided> {
        match state {
            State::Absent => Ok(Membership::Out),
            State::Unknown(_) | State::TooLarge => Ok(Membership::Unknown),
            State::Row(text) => {
                let image = Image::parse(text).map_err(|_| Undecided)?;
                Ok(if self.shows(&image)? {
                    Membership::In(None)
                } else {
                    Membership::Out
                })
            }
        }
    }

    fn after(&self, state: &State) -> Result<Membership, Undecided> {
        match state {
            State::Absent => Ok(Membership::Out),
            State::Unknown(_) => Ok(Membership::Unknown),
            State::TooLarge if self.matcher.is_always() => Ok(Membership::In(None)),
            State::TooLarge => Err(Undecided),
            State::Row(text) => {
                let image = Image::parse(text).map_err(|_| Undecided)?;
                Ok(if self.shows(&image)? {
                    Membership::In(Some(match &self.columns {
                        None => Arc::clone(text),
                        Some(_) => self.shown(text, &image)?,
                    }))
                } else {
                    Membership::Out
                })
            }
        }
    }

    fn shows(&self, image: &Image<'_>) -> Result<bool, Undecided> {
        let matcher = &self.matcher;
        matcher
            .matches(|column| image.get(column))
            .map_err(|_| Undecided)
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

fn delete(change: &Change, xid: Xid, at: Timestamp) -> Element {
    Element::Delete {
        key: Arc::clone(&change.key),
        by: Some((xid, at)),
    }
}
