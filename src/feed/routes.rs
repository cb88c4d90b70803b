//! Which views a change concerns, without asking each.
//!
//! Views of one table with the same filter are judged together. Filters that demand equality are
//! found by the hash of the values that a row has in their columns, so that a change costs what the
//! views cost that it touches, and not what all views cost that exist. What has no equality is
//! judged once a filter. A filter is never left out that the full judgement would have found.
//!
//! Pure: it knows neither events' bytes nor who subscribes.

use std::collections::HashMap;
use std::sync::Arc;

use crate::cursor::{Name, Xid};
use crate::event::{Delta, Element, Scope};
use crate::filter::{Equalities, Kind, Matcher};
use crate::view::image::{Images, Seen, Telling, Undecided, Verdict};
use crate::view::{Sight, View};

/// Views that row images decide, of all tables.
#[derive(Debug, Default)]
pub(super) struct Routes {
    tables: HashMap<u32, Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Slots of filters that were forgotten are used again.
    filters: Vec<Option<Filter>>,
    free: Vec<usize>,
    groups: Vec<Group>,
}

/// Filters that compare the same columns for equality; the group without columns is always judged.
#[derive(Debug)]
struct Group {
    columns: Vec<(String, Kind)>,
    /// Slots by hash of the values. A collision only costs a judgement.
    filters: HashMap<u64, Vec<usize>>,
}

/// All views of one table with the same filter.
#[derive(Debug)]
struct Filter {
    matcher: Matcher,
    views: HashMap<Name, Arc<View>>,
}

/// What a transaction means for the views that it touched.
#[derive(Debug)]
pub(super) struct Touched<'a> {
    /// The views, each with what it tells.
    pub(super) told: Vec<Told<'a>>,
    /// Views for which the images do not decide it.
    pub(super) undecided: Vec<&'a Arc<View>>,
}

/// The elements that some views have in common.
#[derive(Debug)]
pub(super) struct Told<'a> {
    pub(super) elements: Vec<Element>,
    pub(super) views: Vec<&'a Arc<View>>,
}

impl Routes {
    /// Adds a view that row images decide; others are left out.
    pub(super) fn insert(&mut self, view: &Arc<View>) {
        let Sight::Images(images) = view.sight() else {
            return;
        };
        let table = self.tables.entry(view.table().oid).or_default();
        let equalities = images.matcher.equalities();
        let slot = table.slot_of(&images.matcher, &equalities);
        let filter = table.filters[slot].as_mut();
        let filter = filter.expect("the slot is in use");
        filter.views.insert(view.name(), Arc::clone(view));
    }

    /// Takes a view out.
    pub(super) fn remove(&mut self, view: &View) {
        let Sight::Images(images) = view.sight() else {
            return;
        };
        let oid = view.table().oid;
        let Some(table) = self.tables.get_mut(&oid) else {
            return;
        };
        table.remove(&images.matcher, view.name());
        if table.is_empty() {
            self.tables.remove(&oid);
        }
    }

    /// Takes all out.
    pub(super) fn clear(&mut self) {
        self.tables.clear();
    }

    /// What one transaction did to one table, for the views of it.
    pub(super) fn touched(&self, xid: Xid, delta: &Delta) -> Touched<'_> {
        let mut touched = Touched {
            told: Vec::new(),
            undecided: Vec::new(),
        };
        let Some(table) = self.tables.get(&delta.table) else {
            return touched;
        };
        let all = || table.filters.iter().flatten();
        if delta.scope == Scope::Unknown {
            touched.undecided = all().flat_map(|filter| filter.views.values()).collect();
            return touched;
        }
        let truncated = delta.scope == Scope::Truncated;
        let changes = delta.changes.iter();
        let seen: Vec<Seen<'_>> = changes.map(|change| Seen::new(change, truncated)).collect();
        if truncated {
            // Everybody hears of it.
            let every: Vec<usize> = (0..seen.len()).collect();
            for filter in all() {
                filter.judge(xid, truncated, &seen, &every, &mut touched);
            }
            return touched;
        }
        let mut candidates: Vec<(usize, usize)> = Vec::new();
        for group in &table.groups {
            for (change, seen) in seen.iter().enumerate() {
                group.candidates(change, seen, &mut candidates);
            }
        }
        candidates.sort_unstable();
        candidates.dedup();
        for of_filter in candidates.chunk_by(|(a, _), (b, _)| a == b) {
            let changes: Vec<usize> = of_filter.iter().map(|(_, change)| *change).collect();
            if let Some(filter) = of_filter
                .first()
                .and_then(|(slot, _)| table.filters[*slot].as_ref())
            {
                filter.judge(xid, truncated, &seen, &changes, &mut touched);
            }
        }
        touched
    }
}

impl Table {
    fn is_empty(&self) -> bool {
        self.filters.iter().all(Option::is_none)
    }

    /// The slot of this filter, made if there is none.
    fn slot_of(&mut self, matcher: &Matcher, equalities: &Equalities) -> usize {
        let known = self.slots(equalities).find(|slot| {
            self.filters[*slot]
                .as_ref()
                .is_some_and(|f| f.matcher == *matcher)
        });
        if let Some(known) = known {
            return known;
        }
        let filter = Some(Filter {
            matcher: matcher.clone(),
            views: HashMap::new(),
        });
        let slot = if let Some(slot) = self.free.pop() {
            self.filters[slot] = filter;
            slot
        } else {
            self.filters.push(filter);
            self.filters.len() - 1
        };
        let columns = &equalities.columns;
        let place = self
            .groups
            .iter()
            .position(|group| group.columns == *columns);
        let place = place.unwrap_or_else(|| {
            self.groups.push(Group {
                columns: columns.clone(),
                filters: HashMap::new(),
            });
            self.groups.len() - 1
        });
        for hash in hashes(equalities) {
            self.groups[place]
                .filters
                .entry(hash)
                .or_default()
                .push(slot);
        }
        slot
    }

    /// Slots in which a filter with these equalities may be.
    fn slots(&self, equalities: &Equalities) -> impl Iterator<Item = usize> {
        let group = self
            .groups
            .iter()
            .find(|group| group.columns == equalities.columns);
        let bucket = group.and_then(|group| group.filters.get(&hashes(equalities).next()?));
        bucket.into_iter().flatten().copied()
    }

    fn remove(&mut self, matcher: &Matcher, name: Name) {
        let equalities = matcher.equalities();
        let holds = |slot: &usize| {
            let filter = self.filters[*slot].as_ref();
            filter.is_some_and(|filter| filter.views.contains_key(&name))
        };
        let Some(slot) = self.slots(&equalities).find(holds) else {
            return;
        };
        let Some(filter) = self.filters[slot].as_mut() else {
            return;
        };
        filter.views.remove(&name);
        if filter.views.is_empty() {
            self.filters[slot] = None;
            self.free.push(slot);
            self.forget(slot, &equalities);
        }
    }

    fn forget(&mut self, slot: usize, equalities: &Equalities) {
        let place = self
            .groups
            .iter()
            .position(|group| group.columns == equalities.columns);
        let Some(place) = place else { return };
        let group = &mut self.groups[place];
        for hash in hashes(equalities) {
            if let Some(bucket) = group.filters.get_mut(&hash) {
                bucket.retain(|other| *other != slot);
                if bucket.is_empty() {
                    group.filters.remove(&hash);
                }
            }
        }
        if group.filters.is_empty() {
            self.groups.swap_remove(place);
        }
    }
}

/// Where a filter is kept. Without an equality, and where nothing can be equal (`in.()`), under one
/// hash of its own.
fn hashes(equalities: &Equalities) -> impl Iterator<Item = u64> {
    let none = equalities.hashes.is_empty().then_some(0);
    equalities.hashes.iter().copied().chain(none)
}

impl Group {
    /// Adds the filters that a change may concern.
    fn candidates(&self, change: usize, seen: &Seen<'_>, candidates: &mut Vec<(usize, usize)>) {
        let every = || self.filters.values().flatten();
        let mut add = |slots: &mut dyn Iterator<Item = &usize>| {
            candidates.extend(slots.map(|slot| (*slot, change)));
        };
        if self.columns.is_empty() {
            return add(&mut every());
        }
        match seen.equalities(&self.columns) {
            Ok(hashes) => {
                for hash in hashes.into_iter().flatten() {
                    add(&mut self.filters.get(&hash).into_iter().flatten());
                }
            }
            Err(Undecided) => add(&mut every()),
        }
    }
}

impl Filter {
    /// Judges these changes, and adds what each kind of view of it tells.
    fn judge<'a>(
        &'a self,
        xid: Xid,
        truncated: bool,
        seen: &[Seen<'_>],
        changes: &[usize],
        touched: &mut Touched<'a>,
    ) {
        let judged: Result<Vec<(usize, Verdict)>, Undecided> = changes
            .iter()
            .filter_map(|place| match seen[*place].judged(&self.matcher) {
                Ok(verdict) => verdict.map(|verdict| Ok((*place, verdict))),
                Err(undecided) => Some(Err(undecided)),
            })
            .collect();
        let Ok(judged) = judged else {
            touched.undecided.extend(self.views.values());
            return;
        };
        if judged.is_empty() && !truncated {
            return;
        }
        for (images, views) in self.by_columns() {
            let mut telling = Telling::new(truncated);
            let told = judged.iter().try_for_each(|(place, verdict)| {
                telling.tell(images, xid, &seen[*place], *verdict)
            });
            match told {
                Ok(()) => touched.told.push(Told {
                    elements: telling.finish(),
                    views,
                }),
                Err(Undecided) => touched.undecided.extend(views),
            }
        }
    }

    /// Its views, by what they show of a row.
    fn by_columns(&self) -> Vec<(&Images, Vec<&Arc<View>>)> {
        let mut kinds: Vec<(&Images, Vec<&Arc<View>>)> = Vec::new();
        for view in self.views.values() {
            let Sight::Images(images) = view.sight() else {
                continue;
            };
            match kinds
                .iter_mut()
                .find(|(known, _)| known.columns == images.columns)
            {
                Some((_, views)) => views.push(view),
                None => kinds.push((images, vec![view])),
            }
        }
        kinds
    }
}

#[cfg(test)]
pub(super) mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::event::{Change, State};
    use crate::filter::{Condition, Facts, decidable};
    use crate::view::Definition;

    pub(in crate::feed) const TABLE: u32 = 7;

    fn matcher(conditions: &[(&str, &str)]) -> Matcher {
        let facts = Facts {
            base: "int4",
            byte_ordered: true,
            deterministic: true,
        };
        let conditions: Vec<Condition> = conditions
            .iter()
            .map(|(column, text)| Condition::parse(column, text).unwrap())
            .collect();
        let values: Vec<Vec<String>> = conditions
            .iter()
            .map(|condition| condition.values().iter().map(ToString::to_string).collect())
            .collect();
        let typed = conditions.iter().zip(&values);
        Matcher::new(typed.map(|(condition, values)| {
            (
                condition,
                decidable(condition, facts).unwrap(),
                values.as_slice(),
            )
        }))
        .unwrap()
    }

    pub(in crate::feed) fn definition(sight: Sight) -> Definition {
        crate::view::tests::definition(TABLE, sight)
    }

    pub(in crate::feed) fn view(name: &str, matcher: Matcher, columns: Option<&[&str]>) -> View {
        let columns = columns.map(|columns| {
            let named = |name: &&str| ((*name).to_owned(), (*name).to_owned());
            columns.iter().map(named).collect()
        });
        let sight = Sight::Images(Images {
            key: vec!["id".into()],
            matcher,
            columns,
        });
        View::new(Name::of([name]), definition(sight))
    }

    fn told(touched: &Touched<'_>) -> HashMap<Name, Option<Vec<Element>>> {
        let told = touched.told.iter().flat_map(|told| {
            let elements = &told.elements;
            told.views
                .iter()
                .map(move |view| (view.name(), Some(elements.clone())))
        });
        let undecided = touched.undecided.iter().map(|view| (view.name(), None));
        told.chain(undecided).collect()
    }

    fn condition() -> impl Strategy<Value = (&'static str, String)> {
        let column = prop::sample::select(vec!["a", "b", "id"]);
        let test = prop_oneof![
            4 => (0..4).prop_map(|n| format!("eq.{n}")),
            1 => (0..4).prop_map(|n| format!("not.eq.{n}")),
            1 => (0..4).prop_map(|n| format!("gt.{n}")),
            1 => (0..4, 0..4).prop_map(|(n, m)| format!("in.({n},{m})")),
            1 => Just("in.()".to_owned()),
            1 => Just("is.null".to_owned()),
        ];
        (column, test)
    }

    fn state() -> impl Strategy<Value = State> {
        let cell = || prop::option::weighted(0.8, 0..4i32);
        prop_oneof![
            2 => Just(State::Absent),
            6 => (0..4i32, cell(), cell()).prop_map(|(id, a, b)| {
                State::Row(serde_json::json!({"id": id, "a": a, "b": b}).to_string().into())
            }),
            1 => Just(State::TooLarge),
            1 => Just(State::Unknown("{\"id\":1}".into())),
            1 => Just(State::Row("{\"id\":1}".into())),
        ]
    }

    fn scope() -> impl Strategy<Value = Scope> {
        prop_oneof![
            6 => Just(Scope::Keys),
            1 => Just(Scope::Truncated),
            1 => Just(Scope::Unknown),
        ]
    }

    proptest! {
        /// Each view is told what it would tell by itself, and those that are left out nothing.
        #[test]
        fn nobody_is_forgotten_and_nobody_bothered(
            filters in prop::collection::vec((prop::collection::vec(condition(), 0..3), any::<bool>()), 1..20),
            gone in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
            changes in prop::collection::vec((state(), state()), 0..5),
            scope in scope(),
        ) {
            let mut views: Vec<Arc<View>> = filters
                .iter()
                .enumerate()
                .map(|(number, (conditions, all))| {
                    let conditions: Vec<_> = conditions.iter().map(|(c, t)| (*c, t.as_str())).collect();
                    let columns: &[&str] = &["b"];
                    let columns = (!all).then_some(columns);
                    Arc::new(view(&number.to_string(), matcher(&conditions), columns))
                })
                .collect();
            let mut routes = Routes::default();
            for view in &views {
                routes.insert(view);
            }
            for index in gone {
                let view = views.swap_remove(index.index(views.len()));
                routes.remove(&view);
                if views.is_empty() { break; }
            }
            let changes: Vec<Change> = changes
                .into_iter()
                .enumerate()
                .map(|(number, (before, after))| Change {
                    key: number.to_string().into(),
                    before,
                    after,
                    at: Timestamp::UNIX_EPOCH,
                })
                .collect();
            let delta = Delta { table: TABLE, scope, changes };
            let touched = routes.touched(9, &delta);
            let found = told(&touched);
            for view in &views {
                let Sight::Images(images) = view.sight() else { unreachable!() };
                let alone = images.elements(9, &delta);
                match (alone, found.get(&view.name())) {
                    (Ok(elements), None) => prop_assert!(elements.is_empty(), "forgotten: {elements:?}"),
                    (Ok(elements), Some(Some(told))) => {
                        prop_assert!(!told.is_empty());
                        prop_assert_eq!(&elements, told);
                    }
                    (Err(Undecided), Some(None)) => {}
                    (alone, found) => prop_assert!(false, "{alone:?}, and found {found:?}"),
                }
            }
            prop_assert!(found.len() <= views.len());
            for view in &views {
                routes.remove(view);
            }
            prop_assert!(routes.tables.is_empty(), "nothing is left");
        }
    }

    #[test]
    fn a_change_looks_at_the_views_it_touches() {
        let mut routes = Routes::default();
        let views: Vec<_> = (0..1000)
            .map(|n| view(&n.to_string(), matcher(&[("a", &format!("eq.{n}"))]), None))
            .map(Arc::new)
            .collect();
        for view in &views {
            routes.insert(view);
        }
        let row = |a: u32| State::Row(format!("{{\"id\":1,\"a\":{a},\"b\":0}}").into());
        let change = Change {
            key: "1".into(),
            before: row(3),
            after: row(8),
            at: Timestamp::UNIX_EPOCH,
        };
        let mut candidates = Vec::new();
        let seen = Seen::new(&change, false);
        routes.tables[&TABLE].groups[0].candidates(0, &seen, &mut candidates);
        assert_eq!(candidates.len(), 2);
    }
}
