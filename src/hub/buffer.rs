//! The latest items of a topic, by position.

use std::collections::VecDeque;

use super::Bounds;
use crate::mutants::{Mutant, on};

/// A queue whose items are numbered from 0 for ever, and whose front is dropped when it is full.
#[derive(Debug)]
pub(super) struct Buffer<T> {
    bounds: Bounds,
    /// Items with their weights.
    items: VecDeque<(T, usize)>,
    /// Position of the front.
    start: u64,
    weight: usize,
}

impl<T> Buffer<T> {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            items: VecDeque::new(),
            start: 0,
            weight: 0,
        }
    }

    pub(super) fn end(&self) -> u64 {
        self.start + self.items.len() as u64
    }

    pub(super) fn latest(&self) -> Option<&T> {
        self.items.back().map(|(item, _)| item)
    }

    /// Appends and returns the new end. The latest item stays however heavy it is.
    pub(super) fn push(&mut self, item: T, weight: usize) -> u64 {
        self.items.push_back((item, weight));
        self.weight += weight;
        while self.items.len() > 1
            && (self.items.len() > self.bounds.items || self.weight > self.bounds.weight)
        {
            self.drop_front();
        }
        self.end()
    }

    /// Drops what lies before `position`, but never the latest item.
    pub(super) fn forget(&mut self, position: u64) {
        while self.start < position && self.items.len() > 1 {
            self.drop_front();
        }
    }

    fn drop_front(&mut self) {
        if let Some((_, weight)) = self.items.pop_front() {
            self.weight -= weight;
            self.start += 1;
        }
    }

    /// Items from `position` on; `None` when some of them are gone.
    pub(super) fn from(&self, position: u64) -> Option<impl Iterator<Item = &T>> {
        let position = if on(Mutant::M8) {
            position.max(self.start)
        } else {
            position
        };
        let skip = usize::try_from(position.checked_sub(self.start)?).ok()?;
        Some(self.items.iter().skip(skip).map(|(item, _)| item))
    }
}
