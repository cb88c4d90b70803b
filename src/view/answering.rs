//! An answer to a view that asks, while its rows come: what to tell of them. Pure.
//!
//! Whoever reads the rows hands each on at once, so that an answer which grows too large is given up
//! before all of it has come.

use std::collections::HashMap;
use std::sync::Arc;

use super::asking::{Answer, AskError, Asking, Digest, Pending, Shown, hash, shown};
use crate::event::Element;
use crate::mutants::{Mutant, on};

/// Rows of a view above which it is not compared but read anew.
const MOST_ROWS: usize = 50_000;
/// Bytes of rows above which an answer is given up and the view's state is read anew.
const MOST_BYTES: usize = 16 << 20;

/// An answer while its rows come.
#[derive(Debug)]
pub struct Answering<'a> {
    asking: &'a Asking,
    /// What was asked for.
    pending: &'a Pending,
    /// What the view shows, where that is known.
    before: Option<&'a mut Shown>,
    found: Found,
    /// Of what is kept to be told.
    bytes: usize,
}

/// The rows so far.
#[derive(Debug)]
enum Found {
    /// Those that were looked for, by key.
    Keys(HashMap<Arc<str>, Option<Arc<str>>>),
    /// Every row, and what is to be told of some.
    All { now: Shown, upserts: Vec<Element> },
}

impl<'a> Answering<'a> {
    /// No rows yet of the answer to `pending`. `before` is what the view shows, where that is known; it
    /// is brought up to date.
    #[must_use]
    pub fn new(asking: &'a Asking, pending: &'a Pending, before: Option<&'a mut Shown>) -> Self {
        let found = if pending.is_whole() {
            Found::All {
                now: Shown::new(),
                upserts: Vec::new(),
            }
        } else {
            Found::Keys(HashMap::new())
        };
        Self {
            asking,
            pending,
            before,
            found,
            bytes: 0,
        }
    }

    /// A row: what is shown of it, and the object of its key.
    ///
    /// # Errors
    /// [`AskError::Anew`].
    pub fn push(&mut self, text: &str, key: &str) -> Result<(), AskError> {
        let key = self.asking.key(key).ok_or(AskError::Anew)?;
        let value = shown(text);
        let rows = match &mut self.found {
            Found::Keys(found) => {
                self.bytes += text.len();
                found.insert(key, value);
                // There are no more than there are keys.
                0
            }
            Found::All { now, upserts } => {
                let (written, hashed) = (self.asking.keys.write(&key), hash(value.as_ref()));
                let known = self.before.as_ref();
                let known = known.map(|before| before.get(&written).copied());
                // Where it is not known what was shown, nothing can be told.
                if let Some(known) = known
                    && (known != Some(hashed) || self.pending.has(&key))
                {
                    self.bytes += text.len();
                    let because = self.pending.because(&key);
                    let key = Arc::clone(&written);
                    upserts.push(match because {
                        Some((xid, at)) => Element::Upsert {
                            key,
                            value,
                            inserted: known.is_none(),
                            xid,
                            at,
                        },
                        None => Element::Row { key, value },
                    });
                }
                now.insert(written, hashed);
                now.len()
            }
        };
        if rows > MOST_ROWS || self.bytes > MOST_BYTES {
            return Err(AskError::Anew);
        }
        Ok(())
    }

    /// All rows have come.
    #[must_use]
    pub fn finish(self) -> Answer {
        match self.found {
            Found::Keys(found) => told(self.asking, self.pending, self.before, found),
            Found::All { now, upserts } => {
                let by = self.pending.since();
                let gone = self.before.iter().flat_map(|before| before.keys());
                let gone = gone.filter(|key| !now.contains_key(*key));
                let mut elements: Vec<Element> = gone
                    .map(|key| Element::Delete {
                        key: Arc::clone(key),
                        by,
                    })
                    .collect();
                elements.extend(upserts);
                Answer {
                    elements,
                    // Who is told of it has shown, by the check before, what it was compared with.
                    change: None,
                    whole: Some(now),
                }
            }
        }
    }
}

/// What is told of the keys that were looked for: those that were not found went.
fn told(
    asking: &Asking,
    pending: &Pending,
    mut before: Option<&mut Shown>,
    mut found: HashMap<Arc<str>, Option<Arc<str>>>,
) -> Answer {
    let (mut elements, mut upserts) = (Vec::new(), Vec::new());
    let mut change = before.is_some().then(Digest::default);
    for (key, touch) in pending.keys() {
        let written = asking.keys.write(key);
        let value = found.remove(key);
        if let (Some(shown), Some(change)) = (before.as_deref_mut(), &mut change) {
            let old = shown.remove(&written);
            if let Some(old) = old {
                change.take_hashed(&written, old);
            }
            if let Some(value) = &value {
                let new = hash(value.as_ref());
                change.add_hashed(&written, new);
                shown.insert(Arc::clone(&written), new);
            }
        }
        let Some(value) = value else {
            if on(Mutant::M13) {
                continue;
            }
            elements.push(Element::Delete {
                key: written,
                by: Some((touch.xid, touch.at)),
            });
            continue;
        };
        upserts.push(Element::Upsert {
            key: written,
            value,
            inserted: touch.inserted,
            xid: touch.xid,
            at: touch.at,
        });
    }
    elements.append(&mut upserts);
    Answer {
        elements,
        change,
        whole: None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::keys::Keys;
    use super::*;
    use crate::filter::Matcher;
    use crate::rows::statement::Statement;

    /// Without a filter, by keys as they are.
    pub(crate) fn asking() -> Asking {
        Asking {
            select: Statement::default(),
            key: vec!["id".to_owned()],
            keys: Keys::Plain,
            may_match: Matcher::default(),
            policies: None,
            moving: false,
        }
    }

    /// Every row is to be looked at.
    fn whole() -> Pending {
        let mut pending = Pending::default();
        pending.compare();
        pending
    }

    fn key(number: usize) -> String {
        format!(r#"{{"id":{number}}}"#)
    }

    #[test]
    fn an_answer_that_grows_too_large_is_given_up_while_it_comes() {
        let (asking, whole) = (asking(), whole());
        let most = |answering: &mut Answering<'_>, text: &str| {
            let mut rows = 0..=MOST_ROWS;
            rows.find(|row| answering.push(text, &key(*row)).is_err())
        };
        let keys = Pending::default();
        let large = "x".repeat(MOST_BYTES / 4);
        let mut answering = Answering::new(&asking, &keys, None);
        assert_eq!(most(&mut answering, &large), Some(4));
        let mut before = Shown::new();
        let mut answering = Answering::new(&asking, &whole, Some(&mut before));
        assert_eq!(most(&mut answering, &large), Some(4));
        // Nothing is told where it is not known what was shown.
        let mut answering = Answering::new(&asking, &whole, None);
        assert_eq!(most(&mut answering, "1"), Some(MOST_ROWS));
    }

    #[test]
    fn a_comparison_tells_what_differs_and_no_more() {
        let (asking, whole) = (asking(), whole());
        let look = |before: Option<&mut Shown>, rows: &[(usize, &str)]| {
            let mut answering = Answering::new(&asking, &whole, before);
            for (number, text) in rows {
                answering.push(text, &key(*number)).unwrap();
            }
            answering.finish()
        };
        let first = look(None, &[(1, "a"), (2, "b"), (3, "c")]);
        assert!(first.elements.is_empty());
        let mut shown = first.whole.unwrap();
        let then = look(Some(&mut shown), &[(1, "a"), (3, "d")]);
        let [gone, changed] = then.elements.as_slice() else {
            panic!("{:?}", then.elements);
        };
        assert!(matches!(gone, Element::Delete { key, by: None } if **key == *"2"));
        assert!(matches!(changed, Element::Row { key, .. } if **key == *"3"));
    }
}
