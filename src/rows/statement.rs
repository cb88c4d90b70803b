//! A plan as one SQL statement.
//!
//! Promises that names come from the plan and are quoted, that values are parameters, and that the
//! text is one of few shapes. A row becomes JSON by `row_to_json`, as in the triggers, so reads
//! and row images agree byte for byte. Pure: it knows the plan, and no catalogue or connection.
//!
//! Functions are qualified, because a table's owner may define one of the same name in another
//! schema whose arguments fit better. `a.*` is the whole row even where a column is named `a`.

use std::collections::BTreeSet;
use std::fmt::Write;

use tokio_postgres::types::Type;

use super::Error;
use super::body::{Payload, Row};
use super::plan::{
    Conflict, Delete, Guard, Insert, Output, Plan, Read, Returning, Selection, Update,
    known_in_payload,
};
use super::request::{Cast, Range, Resolution, Term};
use crate::etag::DIGITS;
use crate::filter::{Condition, Filter, Group, Joint, Path, Step, Test, Words};
use crate::postgres::quote::{identifier, qualified, whole_type};
use crate::schema::catalog::{Column, Table};

/// SQL and its parameters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Statement {
    /// The text, with `$1` for the first parameter.
    pub sql: String,
    /// Values in PostgreSQL's text format.
    pub params: Vec<String>,
    /// The type of each; `unknown` is PostgreSQL's to find.
    pub types: Vec<Type>,
}

/// Whether rows come with their key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// One column: `row`.
    Without,
    /// A column `key` after it: the primary key's columns as a JSON object, in key order.
    With,
}

/// The name of a call's result in its statement.
pub(super) const RESULT: &str = "result";

/// Different sets of keys in one body when missing ones mean defaults. Each is an INSERT of its
/// own, and a statement cannot have any number of them.
const MOST_KEY_SETS: usize = 64;

impl Statement {
    pub(super) fn push(&mut self, sql: &str) {
        self.sql.push_str(sql);
    }

    /// One with values whose types are PostgreSQL's to find.
    pub(super) fn untyped(sql: &str, params: Vec<String>) -> Self {
        Self {
            sql: sql.to_owned(),
            types: vec![Type::UNKNOWN; params.len()],
            params,
        }
    }

    /// Whether it means the same each time it is run: PostgreSQL has no type to find.
    pub(super) fn is_typed(&self) -> bool {
        !self.types.contains(&Type::UNKNOWN)
    }

    /// Adds a value and writes its place.
    pub(super) fn bind(&mut self, value: impl Into<String>) {
        self.bind_as(value, Type::UNKNOWN);
    }

    fn bind_as(&mut self, value: impl Into<String>, kind: Type) {
        self.params.push(value.into());
        self.types.push(kind);
        let _infallible = write!(self.sql, "${}", self.params.len());
    }

    /// Writes `items` with `separator` between them.
    pub(super) fn list<T>(
        &mut self,
        separator: &str,
        items: impl IntoIterator<Item = T>,
        mut each: impl FnMut(&mut Self, T),
    ) {
        for (place, item) in items.into_iter().enumerate() {
            if place > 0 {
                self.push(separator);
            }
            each(self, item);
        }
    }

    /// ` where a and b`
    fn conditions(&mut self, table: &Table, filters: &[Filter]) {
        if filters.is_empty() {
            return;
        }
        self.push(" where ");
        self.list(" and ", filters, |sql, filter| sql.filter(table, filter));
    }

    fn filter(&mut self, table: &Table, filter: &Filter) {
        match filter {
            Filter::One(condition) => self.condition(table, condition),
            Filter::Group(group) => self.group(table, group),
        }
    }

    fn group(&mut self, table: &Table, group: &Group) {
        let joint = match group.joint {
            Joint::And => " and ",
            Joint::Or => " or ",
        };
        self.push(if group.negated { "not (" } else { "(" });
        self.list(joint, &group.members, |sql, filter| {
            sql.filter(table, filter);
        });
        self.push(")");
    }

    fn condition(&mut self, table: &Table, condition: &Condition) {
        if condition.negated {
            self.push("not (");
        }
        if let Test::Search {
            words,
            language,
            query,
        } = &condition.test
        {
            self.search(table, condition, *words, language.as_deref(), query);
        } else {
            self.place(table, &condition.column, &condition.path);
            let column = table.column(&condition.column);
            let whole = column.filter(|_| condition.path.is_empty());
            self.test(&condition.test, whole.map_or(Type::UNKNOWN, plain_type));
        }
        if condition.negated {
            self.push(")");
        }
    }

    /// What follows the column; a value that is compared with it has type `kind`.
    fn test(&mut self, test: &Test, kind: Type) {
        match test {
            Test::Compare(operator, value) => {
                self.push(&format!(" {} ", operator.sql()));
                self.bind_as(value.as_str(), kind);
            }
            Test::Match(pattern, value) => self.operation(pattern.sql(), value),
            Test::Relate(relation, value) => self.operation(relation.sql(), value),
            Test::Distinct(value) => self.operation("is distinct from", value),
            Test::In(values) => {
                self.push(" = any(");
                self.bind(array(values));
                self.push(")");
            }
            Test::Each(sign, quantifier, values) => {
                self.push(&format!(" {} {}(", sign.sql(), quantifier.sql()));
                self.bind(values.as_str());
                self.push(")");
            }
            Test::Is(truth) => {
                self.push(" ");
                self.push(truth.sql());
            }
            Test::Search { .. } => unreachable!("its function stands before the column"),
        }
    }

    fn operation(&mut self, operator: &str, value: &str) {
        self.push(&format!(" {operator} "));
        self.bind(value);
    }

    /// A column that holds no search vector is made one, in the same language as the words.
    fn search(
        &mut self,
        table: &Table,
        condition: &Condition,
        words: Words,
        language: Option<&str>,
        query: &str,
    ) {
        let column = table.column(&condition.column);
        let is_vector = column.is_some_and(|column| column.base == "tsvector");
        let configured = |sql: &mut Self| {
            if let Some(language) = language {
                sql.bind(language);
                sql.push("::pg_catalog.regconfig, ");
            }
        };
        if is_vector && condition.path.is_empty() {
            self.place(table, &condition.column, &condition.path);
        } else {
            self.push("pg_catalog.to_tsvector(");
            configured(self);
            self.place(table, &condition.column, &condition.path);
            self.push(")");
        }
        self.push(&format!(" @@ {}(", words.sql()));
        configured(self);
        self.bind(query);
        self.push(")");
    }

    /// A column of the row `t`, or a place inside of it. Keys and indexes are parameters, whose
    /// types decide between a member of an object and an element of an array.
    fn place(&mut self, table: &Table, column: &str, path: &Path) {
        if path.is_empty() {
            self.push(&of_row(column));
            return;
        }
        let base = table.column(column).map(|column| column.base.as_str());
        self.push("(");
        if matches!(base, Some("json" | "jsonb")) {
            self.push(&of_row(column));
        } else {
            self.push(&format!("pg_catalog.to_jsonb({})", of_row(column)));
        }
        for (place, step) in path.steps.iter().enumerate() {
            let last = place + 1 == path.steps.len();
            self.push(if last && path.text { " ->> " } else { " -> " });
            match step {
                Step::Key(key) => {
                    self.bind(key.as_str());
                    self.push("::text");
                }
                Step::Index(index) => {
                    self.bind(index.to_string());
                    self.push("::integer");
                }
            }
        }
        self.push(")");
    }

    /// The row `t`, or what is wanted of it, as JSON text.
    fn json(&mut self, table: &Table, select: &Selection) {
        let Selection::Columns(outputs) = select else {
            self.push("pg_catalog.row_to_json(t.*)::text");
            return;
        };
        self.push("(select pg_catalog.row_to_json(s.*) from (select ");
        self.list(", ", outputs, |sql, output| {
            sql.place(table, &output.column, &output.path);
            if let Some(cast) = &output.cast {
                sql.push("::");
                sql.push(&type_of(cast));
            }
            sql.push(" as ");
            sql.push(&identifier(&output.name));
        });
        self.push(") s)::text");
    }

    /// ` order by ...`, where `expression` writes the term at a place.
    fn order(&mut self, order: &[Term], expression: impl Fn(&mut Self, usize, &Term)) {
        if order.is_empty() {
            return;
        }
        self.push(" order by ");
        self.list(", ", order.iter().enumerate(), |sql, (place, term)| {
            expression(sql, place, term);
            if term.descending {
                sql.push(" desc");
            }
            match term.nulls_first {
                Some(true) => sql.push(" nulls first"),
                Some(false) => sql.push(" nulls last"),
                None => {}
            }
        });
    }

    /// ` on conflict ...`
    fn conflict(&mut self, conflict: &Conflict, columns: &[&Column]) {
        self.push(" on conflict");
        if !conflict.target.is_empty() {
            self.push(" (");
            self.list(", ", &conflict.target, |sql, name| {
                sql.push(&identifier(name));
            });
            self.push(")");
        }
        if conflict.resolution == Resolution::Ignore || columns.is_empty() {
            self.push(" do nothing");
            return;
        }
        self.push(" do update set ");
        self.list(", ", columns, |sql, column| {
            let name = identifier(&column.name);
            sql.push(&format!("{name} = excluded.{name}"));
        });
    }

    /// ` returning ...`: whether the row is a new one, and what is wanted of it and sorts it.
    fn returning(&mut self, table: &Table, returning: Option<&Returning>, fresh: &str) {
        self.push(" returning ");
        self.push(fresh);
        self.push(" as \"fresh\"");
        match returning {
            None => {}
            Some(Returning::Rows { select, order }) => {
                self.push(", ");
                self.json(table, select);
                self.push(" as \"row\"");
                for (place, term) in order.iter().enumerate() {
                    self.push(", ");
                    self.place(table, &term.column, &term.path);
                    self.push(&format!(" as \"o{place}\""));
                }
            }
            Some(Returning::Key) => {
                self.push(", pg_catalog.json_build_array(");
                self.list(", ", &table.key, |sql, name| {
                    sql.push(&of_row(name));
                    sql.push("::text");
                });
                self.push(")::text as \"key\"");
            }
        }
    }

    /// What a write answers, from the rows that it returned as `w`.
    fn outcome(&mut self, returning: Option<&Returning>) {
        const COUNTS: &str = " select count(*) as \"affected\", \
                              count(*) filter (where w.\"fresh\") as \"inserted\"";
        match returning {
            Some(Returning::Rows { order, .. }) => {
                self.push(" select w.\"row\", w.\"fresh\" from w");
                self.order(order, |sql, place, _| {
                    sql.push(&format!("w.\"o{place}\""));
                });
            }
            Some(Returning::Key) => {
                self.push(COUNTS);
                self.push(", pg_catalog.min(w.\"key\") as \"key\" from w");
            }
            None => {
                self.push(COUNTS);
                self.push(" from w");
            }
        }
    }

    /// ` and` the row `t` is still in one of these versions. The test is part of the statement, so
    /// that PostgreSQL makes it again of the row as a concurrent writer has left it.
    fn version(&mut self, table: &Table, guard: &Guard, joint: &str) {
        let Some(versions) = &guard.versions else {
            return;
        };
        self.push(joint);
        self.push("pg_catalog.left(pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(");
        self.json(table, &guard.select);
        self.push(&format!(", 'UTF8')), 'hex'), {DIGITS}) = any("));
        self.bind(array(versions));
        self.push(")");
    }

    /// ` where` the payload's row has the key of a PUT's URL.
    fn key(&mut self, key: &[Condition], mut joint: &'static str) {
        for condition in key {
            self.push(joint);
            self.push("i.");
            joint = " and ";
            self.push(&identifier(&condition.column));
            self.test(&condition.test, Type::UNKNOWN);
        }
    }

    /// The payload's rows as `i`, each key with the type of its column.
    fn payload(&mut self, rows: &[&Row<'_>], columns: &[&Column]) {
        let texts: Vec<_> = rows.iter().map(|row| row.text).collect();
        self.push("pg_catalog.json_to_recordset(");
        // A type of another schema is looked up with the rights of whoever has it parsed.
        let own = columns.iter().all(|column| !column.type_name.contains('.'));
        let kind = if own { Type::JSON } else { Type::UNKNOWN };
        self.bind_as(format!("[{}]", texts.join(",")), kind);
        self.push("::pg_catalog.json) as i(");
        self.typed(columns);
        self.push(")");
    }

    /// Columns with their types.
    fn typed(&mut self, columns: &[&Column]) {
        self.list(", ", columns, |sql, column| {
            // Splicing the type is safe: it is `format_type`'s own text.
            sql.push(&format!(
                "{} {}",
                identifier(&column.name),
                whole_type(&column.type_name)
            ));
        });
    }
}

/// The rows of `read` as JSON text in a column `row`.
#[must_use]
pub fn select_rows(read: &Read, key: Key) -> Statement {
    let mut sql = Statement::default();
    select_rows_in(&mut sql, read, key);
    sql
}

/// The same as a part of a larger statement.
pub(super) fn select_rows_in(sql: &mut Statement, read: &Read, key: Key) {
    let table = &*read.table;
    sql.push("select ");
    sql.json(table, &read.select);
    sql.push(" as \"row\"");
    if key == Key::With {
        let columns = table.key.iter().map(|name| Output::whole(name)).collect();
        sql.push(", ");
        sql.json(table, &Selection::Columns(columns));
        sql.push(" as \"key\"");
    }
    sql.push(" from ");
    sql.push(&relation(table));
    sql.conditions(table, &read.conditions);
    sql.order(&read.order, |sql, _, term| {
        sql.place(table, &term.column, &term.path);
    });
    if let Some(limit) = read.range.limit {
        sql.push(" limit ");
        sql.bind(limit.to_string());
    }
    if read.range.offset > 0 {
        sql.push(" offset ");
        sql.bind(read.range.offset.to_string());
    }
}

/// As [`select_rows`] with keys, but only of rows with certain keys: a JSON array of objects of the
/// primary key's columns, which is the last parameter and must be added.
#[must_use]
pub fn select_keys(read: &Read) -> Statement {
    let all = Read {
        order: Vec::new(),
        range: Range::ALL,
        ..read.clone()
    };
    let mut sql = select_rows(&all, Key::With);
    let table = &read.table;
    let key: Vec<&Column> = table.key.iter().filter_map(|k| table.column(k)).collect();
    sql.push(if read.conditions.is_empty() {
        " where ("
    } else {
        " and ("
    });
    sql.list(", ", &key, |sql, column| sql.push(&of_row(&column.name)));
    sql.push(") in (select ");
    sql.list(", ", &key, |sql, column| sql.push(&of_payload(column)));
    let place = sql.params.len() + 1;
    let _infallible = write!(
        sql.sql,
        " from pg_catalog.json_to_recordset(${place}::pg_catalog.json) as i("
    );
    sql.typed(&key);
    sql.push("))");
    sql
}

/// How many rows `read` has without its range, as a `bigint`.
#[must_use]
pub fn count_rows(read: &Read) -> Statement {
    let mut sql = Statement::default();
    count_rows_in(&mut sql, read);
    sql
}

/// The same as a part of a larger statement.
pub(super) fn count_rows_in(sql: &mut Statement, read: &Read) {
    sql.push("select count(*) as \"total\" from ");
    sql.push(&relation(&read.table));
    sql.conditions(&read.table, &read.conditions);
}

/// The same, but it stops counting after `most` rows.
#[must_use]
pub fn count_some_rows(read: &Read, most: u64) -> Statement {
    let mut sql = Statement::default();
    sql.push("select count(*) as \"total\" from (select from ");
    sql.push(&relation(&read.table));
    sql.conditions(&read.table, &read.conditions);
    sql.push(" limit ");
    sql.bind(most.to_string());
    sql.push(") s");
    sql
}

/// What the planner expects of `read` without its range, as one JSON value.
#[must_use]
pub fn explain_rows(read: &Read) -> Statement {
    let mut sql = Statement::default();
    sql.push("explain (format json) select from ");
    sql.push(&relation(&read.table));
    sql.conditions(&read.table, &read.conditions);
    sql
}

/// The statement for a write with this body, or nothing when there is nothing to do. It answers
/// rows of `row text, fresh boolean` when the plan wants rows back, and otherwise one row of
/// `affected bigint, inserted bigint`. When the plan wants the key back, `key text` follows: the key
/// of a row that is the only one, as a JSON array of texts.
///
/// # Errors
/// [`Error::Body`], [`Error::KeysDiffer`], [`Error::UnknownPayloadColumn`], [`Error::OtherKey`].
///
/// # Panics
/// For [`Plan::Read`], which is no write.
pub fn write_rows(plan: &Plan, body: &[u8]) -> Result<Option<Statement>, Error> {
    match plan {
        Plan::Read(_) => panic!("a read is no write"),
        Plan::Insert(insert) => insert_rows(insert, &Payload::parse(body)?),
        Plan::Update(update) => update_rows(update, &Payload::parse(body)?),
        Plan::Delete(delete) => Ok(Some(delete_rows(delete))),
    }
}

fn insert_rows(insert: &Insert, payload: &Payload<'_>) -> Result<Option<Statement>, Error> {
    let groups = groups(insert, payload)?;
    if !insert.key.is_empty() {
        let columns = groups.first().map(|group| group.columns.as_slice());
        one_row_of_that_key(&insert.table, payload, columns.unwrap_or_default())?;
    }
    let merged = match &insert.columns {
        Some(names) if insert.missing_default => {
            let names = names.iter().cloned().collect();
            Some(columns(&insert.table, &names)?)
        }
        _ => None,
    };
    let mut sql = Statement::default();
    let alone = groups.len() == 1;
    sql.list(", ", groups.iter().enumerate(), |sql, (place, group)| {
        sql.push(if place == 0 { "with " } else { "" });
        if alone {
            sql.push("w as (");
        } else {
            sql.push(&format!("g{place} as ("));
        }
        insert_group(sql, insert, group, merged.as_deref());
        sql.push(")");
    });
    match groups.len() {
        0 => return Ok(None),
        1 => {}
        many => {
            sql.push(", w as (");
            sql.list(" union all ", 0..many, |sql, place| {
                sql.push(&format!("select * from g{place}"));
            });
            sql.push(")");
        }
    }
    sql.outcome(insert.returning.as_ref());
    Ok(Some(sql))
}

/// Whether the body of a PUT is one row that has all columns of the key. Whether it has their values
/// too, only PostgreSQL can say, which knows that `01` is `1`.
fn one_row_of_that_key(
    table: &Table,
    payload: &Payload<'_>,
    columns: &[&Column],
) -> Result<(), Error> {
    let [row] = payload.rows.as_slice() else {
        return Err(Error::Body("PUT takes one object"));
    };
    let has = |name: &String| {
        row.keys.contains(name) && columns.iter().any(|column| column.name == *name)
    };
    if table.key.iter().all(has) {
        Ok(())
    } else {
        Err(Error::OtherKey)
    }
}

/// Rows that are inserted alike.
struct Alike<'a> {
    columns: Vec<&'a Column>,
    rows: Vec<&'a Row<'a>>,
}

/// One group, unless keys may be missing and mean defaults: SQL has a word for the default only
/// where a column is not named at all.
fn groups<'a>(insert: &'a Insert, payload: &'a Payload<'a>) -> Result<Vec<Alike<'a>>, Error> {
    let Some(first) = payload.rows.first() else {
        return Ok(Vec::new());
    };
    let table = &insert.table;
    let Some(names) = &insert.columns else {
        if payload.rows.iter().any(|row| row.keys != first.keys) {
            return Err(Error::KeysDiffer);
        }
        return Ok(vec![Alike {
            columns: columns(table, &first.keys)?,
            rows: payload.rows.iter().collect(),
        }]);
    };
    let names: BTreeSet<String> = names.iter().cloned().collect();
    if !insert.missing_default {
        return Ok(vec![Alike {
            columns: columns(table, &names)?,
            rows: payload.rows.iter().collect(),
        }]);
    }
    // Rows that follow each other, so that they are numbered and answered in the order of the body; or, where they
    // alternate too often for that, whichever are alike.
    let turns = payload
        .rows
        .windows(2)
        .filter(|two| two[0].keys != two[1].keys)
        .count();
    let anywhere = turns >= MOST_KEY_SETS;
    let mut groups: Vec<Alike<'_>> = Vec::new();
    for row in &payload.rows {
        let columns = columns(table, &names.intersection(&row.keys).cloned().collect())?;
        let from = if anywhere {
            0
        } else {
            groups.len().saturating_sub(1)
        };
        let alike = groups[from..]
            .iter()
            .position(|group| group.columns == columns);
        match alike.map(|place| from + place) {
            Some(place) => groups[place].rows.push(row),
            None if groups.len() == MOST_KEY_SETS => {
                return Err(Error::Body("its rows have too many different sets of keys"));
            }
            None => groups.push(Alike {
                columns,
                rows: vec![row],
            }),
        }
    }
    Ok(groups)
}

/// The columns of these names, in the table's order.
fn columns<'a>(table: &'a Table, names: &BTreeSet<String>) -> Result<Vec<&'a Column>, Error> {
    for name in names {
        known_in_payload(table, name)?;
    }
    let all = table.columns.iter();
    Ok(all.filter(|column| names.contains(&column.name)).collect())
}

/// `merged` are the columns that a row takes over which exists already: all that are named, and not
/// only those that it has, when the others mean defaults.
fn insert_group(
    sql: &mut Statement,
    insert: &Insert,
    group: &Alike<'_>,
    merged: Option<&[&Column]>,
) {
    sql.push("insert into ");
    sql.push(&relation(&insert.table));
    if group.columns.is_empty() {
        // A select of no columns: one row of defaults for each object.
        let texts = vec!["{}"; group.rows.len()];
        sql.push(" select from pg_catalog.json_array_elements(");
        sql.bind(format!("[{}]", texts.join(",")));
        sql.push("::pg_catalog.json)");
    } else {
        sql.push(" (");
        sql.list(", ", &group.columns, |sql, column| {
            sql.push(&identifier(&column.name));
        });
        sql.push(") select ");
        sql.list(", ", &group.columns, |sql, column| {
            sql.push(&of_payload(column));
        });
        sql.push(" from ");
        sql.payload(&group.rows, &group.columns);
        sql.key(&insert.key, " where ");
    }
    let mut fresh = "true".to_owned();
    if let Some(conflict) = &insert.conflict {
        sql.conflict(conflict, merged.unwrap_or(&group.columns));
        if conflict.resolution == Resolution::Merge {
            fresh = is_fresh(&insert.table, &conflict.target);
        }
    }
    sql.returning(&insert.table, insert.returning.as_ref(), &fresh);
}

/// The joint after the conditions of a statement.
fn next_joint(conditions: &[Filter]) -> &'static str {
    if conditions.is_empty() {
        " where "
    } else {
        " and "
    }
}

fn update_rows(update: &Update, payload: &Payload<'_>) -> Result<Option<Statement>, Error> {
    let [row] = payload.rows.as_slice() else {
        return Err(Error::Body("an update takes one object"));
    };
    let names = match &update.columns {
        Some(names) => names.iter().cloned().collect(),
        None => row.keys.clone(),
    };
    let columns = columns(&update.table, &names)?;
    if !update.key.is_empty() {
        one_row_of_that_key(&update.table, payload, &columns)?;
    }
    if columns.is_empty() {
        return Ok(None);
    }
    let defaulted = |column: &&Column| update.missing_default && !row.keys.contains(&column.name);
    let given: Vec<&Column> = columns.iter().copied().filter(|c| !defaulted(c)).collect();
    let mut sql = Statement::default();
    sql.push("with w as (update ");
    sql.push(&relation(&update.table));
    sql.push(" set ");
    sql.list(", ", &columns, |sql, column| {
        sql.push(&identifier(&column.name));
        sql.push(" = ");
        if defaulted(column) {
            sql.push("default");
        } else {
            sql.push(&of_payload(column));
        }
    });
    if !given.is_empty() {
        sql.push(" from ");
        sql.payload(&[row], &given);
    }
    sql.conditions(&update.table, &update.conditions);
    sql.key(&update.key, " and ");
    if let Some(guard) = &update.guard {
        let joint = next_joint(&update.conditions);
        sql.version(&update.table, guard, joint);
    }
    sql.returning(&update.table, update.returning.as_ref(), "false");
    sql.push(")");
    sql.outcome(update.returning.as_ref());
    Ok(Some(sql))
}

fn delete_rows(delete: &Delete) -> Statement {
    let mut sql = Statement::default();
    sql.push("with w as (delete from ");
    sql.push(&relation(&delete.table));
    sql.conditions(&delete.table, &delete.conditions);
    if let Some(guard) = &delete.guard {
        let joint = next_joint(&delete.conditions);
        sql.version(&delete.table, guard, joint);
    }
    sql.returning(&delete.table, delete.returning.as_ref(), "false");
    sql.push(")");
    sql.outcome(delete.returning.as_ref());
    sql
}

/// Whether the row `t` that an upsert returns is a new one.
///
/// One that was there has been locked by us, which shows in its `xmax`. Partitioned tables and
/// views have none to show, and who was granted columns may not look at it, so there the row is looked for in the
/// statement's own snapshot, which is from before; that calls a row new that somebody else has added in between.
fn is_fresh(table: &Table, target: &[String]) -> String {
    if table.kind == 'r' && !table.by_column {
        return "t.xmax = 0".to_owned();
    }
    let same: Vec<_> = target
        .iter()
        .map(|name| format!("e.{0} = t.{0}", identifier(name)))
        .collect();
    format!(
        "not exists (select from {} as e where {})",
        qualified(&table.schema, &table.name),
        same.join(" and ")
    )
}

fn relation(table: &Table) -> String {
    if table.kind == 'c' {
        // What a call returned; see `call`.
        return format!("{} as t", identifier(RESULT));
    }
    format!("{} as t", qualified(&table.schema, &table.name))
}

/// The type of a value that is compared with a column, where PostgreSQL would find the same, and a value
/// of it means the same, or nothing, should the column's type have changed meanwhile; `unknown` elsewhere.
fn plain_type(column: &Column) -> Type {
    match column.base.as_str() {
        "int2" => Type::INT2,
        "int4" => Type::INT4,
        "int8" => Type::INT8,
        "uuid" => Type::UUID,
        "bool" => Type::BOOL,
        _ => Type::UNKNOWN,
    }
}

fn of_row(column: &str) -> String {
    format!("t.{}", identifier(column))
}

fn of_payload(column: &Column) -> String {
    format!("i.{}", identifier(&column.name))
}

/// A type as SQL text. Words that SQL has for types of other names go in as they are, out of a fixed
/// list; every other name is quoted. The plan has seen to it that it is one that we know.
fn type_of(cast: &Cast) -> String {
    let word = WORDS.iter().find(|word| **word == cast.name);
    let name = match (&cast.schema, word) {
        (Some(schema), _) => qualified(schema, &cast.name),
        (None, Some(word)) if !cast.quoted => (*word).to_owned(),
        (None, _) => identifier(&cast.name),
    };
    let dimensions = if cast.array { "[]" } else { "" };
    format!("{name}{dimensions}")
}

/// Names of types that are words of SQL and no names in the catalogue.
const WORDS: [&str; 22] = [
    "bigint",
    "bit",
    "bit varying",
    "boolean",
    "char",
    "char varying",
    "character",
    "character varying",
    "dec",
    "decimal",
    "double precision",
    "float",
    "int",
    "integer",
    "interval",
    "numeric",
    "real",
    "smallint",
    "time with time zone",
    "time without time zone",
    "timestamp with time zone",
    "timestamp without time zone",
];

/// Whether a word is one of a type's that SQL has.
#[cfg(test)]
pub(super) fn is_type(word: &str) -> bool {
    WORDS
        .iter()
        .any(|name| name.split(' ').any(|part| part == word))
}

/// An array constant with every member in quotes, so that none is a null or a nested array.
pub(super) fn array(values: &[String]) -> String {
    let mut text = String::from("{");
    for (place, value) in values.iter().enumerate() {
        text.push_str(if place > 0 { ",\"" } else { "\"" });
        for c in value.chars() {
            if matches!(c, '"' | '\\') {
                text.push('\\');
            }
            text.push(c);
        }
        text.push('"');
    }
    text.push('}');
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::{select, subsequence};

    use super::super::plan::tests::catalog;
    use super::super::request::{Request, Verb};
    use super::super::shape::{is_ours, shape};
    use super::*;

    fn statement(verb: Verb, table: &str, query: &str, prefer: &str, body: &str) -> Statement {
        let request = Request::parse(verb, table, query, |name| {
            (name == "prefer").then(|| prefer.to_owned())
        })
        .unwrap();
        match Plan::of(&request, &catalog()).unwrap() {
            Plan::Read(read) => select_rows(&read, Key::Without),
            plan => write_rows(&plan, body.as_bytes()).unwrap().unwrap(),
        }
    }

    #[test]
    fn a_read_is_one_select() {
        let read = statement(
            Verb::Read,
            "tasks",
            "select=id,name:title&id=gt.7&title=not.in.(a,\"b\\\"\")&title=is.null&order=id.desc.nullslast&limit=2&offset=1",
            "",
            "",
        );
        assert_eq!(
            read.sql,
            "select (select pg_catalog.row_to_json(s.*) from (select t.\"id\" as \"id\", t.\"title\" as \"name\") s)::text as \"row\" \
             from \"public\".\"tasks\" as t where t.\"id\" > $1 and not (t.\"title\" = any($2)) and t.\"title\" is null \
             order by t.\"id\" desc nulls last limit $3 offset $4"
        );
        assert_eq!(read.params, ["7", "{\"a\",\"b\\\"\"}", "2", "1"]);
    }

    #[test]
    fn a_key_comes_as_json_in_key_order() {
        let request = Request::parse(Verb::Read, "odd \"table", "", |_| None).unwrap();
        let read = Read::of(&request, &catalog()).unwrap();
        assert_eq!(
            select_rows(&read, Key::With).sql,
            "select pg_catalog.row_to_json(t.*)::text as \"row\", \
             (select pg_catalog.row_to_json(s.*) from (select t.\"odd\"\"\nname\" as \"odd\"\"\nname\", t.\"id\" as \"id\") s)::text as \"key\" \
             from \"public\".\"odd \"\"table\" as t"
        );
    }

    #[test]
    fn an_upsert_tells_new_rows_from_old_ones() {
        let upsert = statement(
            Verb::Insert,
            "tasks",
            "",
            "resolution=merge-duplicates",
            "[{\"title\":\"a\",\"id\":1}]",
        );
        assert_eq!(
            upsert.sql,
            "with w as (insert into \"public\".\"tasks\" as t (\"id\", \"title\") select i.\"id\", i.\"title\" \
             from pg_catalog.json_to_recordset($1::pg_catalog.json) as i(\"id\" integer, \"title\" text) \
             on conflict (\"id\") do update set \"id\" = excluded.\"id\", \"title\" = excluded.\"title\" \
             returning t.xmax = 0 as \"fresh\") \
             select count(*) as \"affected\", count(*) filter (where w.\"fresh\") as \"inserted\" from w"
        );
        assert_eq!(upsert.params, ["[{\"title\":\"a\",\"id\":1}]"]);
    }

    #[test]
    fn rows_with_different_keys_are_inserted_in_groups() {
        let insert = statement(
            Verb::Insert,
            "tasks",
            "columns=id,title",
            "missing=default",
            "[{\"id\":1},{\"id\":2},{\"title\":\"a\"},{\"id\":3}]",
        );
        assert_eq!(
            insert.params,
            [
                "[{\"id\":1},{\"id\":2}]",
                "[{\"title\":\"a\"}]",
                "[{\"id\":3}]"
            ]
        );
        assert!(insert.sql.contains(
            "w as (select * from g0 union all select * from g1 union all select * from g2)"
        ));
    }

    #[test]
    fn keys_must_match_and_be_columns() {
        let write = |query: &str, body: &str| {
            let request = Request::parse(Verb::Insert, "tasks", query, |_| None).unwrap();
            write_rows(&Plan::of(&request, &catalog()).unwrap(), body.as_bytes())
        };
        assert!(matches!(
            write("", "[{\"id\":1},{}]"),
            Err(Error::KeysDiffer)
        ));
        assert!(write("columns=id", "[{\"id\":1},{},{\"x\":1}]").is_ok());
        assert!(matches!(
            write("", "{\"titel\":1}"),
            Err(Error::UnknownPayloadColumn { near: Some(near), .. }) if near == "title"
        ));
        assert!(matches!(write("", "[]"), Ok(None)));
    }

    #[test]
    fn a_tree_of_every_operator_is_one_where() {
        let read = statement(
            Verb::Read,
            "tasks",
            "or=(id.eq(any).{1},not.and(title.ilike.a*,data->a->0->>b.not.isdistinct.x))&words=fts(english).a\
             &title=wfts.b&data=cs.{}&select=a:data->>k::int,title::Int4[]&order=title->x.desc",
            "",
            "",
        );
        assert_eq!(
            read.sql,
            "select (select pg_catalog.row_to_json(s.*) from (select (t.\"data\" ->> $1::text)::int as \"a\", \
             t.\"title\"::\"int4\"[] as \"title\") s)::text as \"row\" from \"public\".\"tasks\" as t \
             where (t.\"id\" = any($2) or not (t.\"title\" ilike $3 and \
             not ((t.\"data\" -> $4::text -> $5::integer ->> $6::text) is distinct from $7))) \
             and t.\"words\" @@ pg_catalog.to_tsquery($8::pg_catalog.regconfig, $9) \
             and pg_catalog.to_tsvector(t.\"title\") @@ pg_catalog.websearch_to_tsquery($10) \
             and t.\"data\" @> $11 order by (pg_catalog.to_jsonb(t.\"title\") -> $12::text) desc"
        );
        assert_eq!(
            read.params,
            [
                "k", "{1}", "a%", "a", "0", "b", "x", "english", "a", "b", "{}", "x"
            ]
        );
    }

    #[test]
    fn a_type_is_a_word_of_sql_or_a_quoted_name() {
        let cast = |name: &str, quoted| {
            type_of(&Cast {
                schema: None,
                name: name.to_owned(),
                quoted,
                array: false,
            })
        };
        assert_eq!(cast("double precision", false), "double precision");
        assert_eq!(cast("int", true), "\"int\"");
        assert_eq!(cast("text", false), "\"text\"");
        assert_eq!(cast("a\"b", true), "\"a\"\"b\"");
        let app = Cast {
            schema: Some("app".to_owned()),
            name: "int".to_owned(),
            quoted: false,
            array: true,
        };
        assert_eq!(type_of(&app), "\"app\".\"int\"[]");
    }

    #[test]
    fn a_put_inserts_only_the_row_that_the_url_names() {
        let put = |body: &str| {
            let request = Request::parse(Verb::Replace, "tasks", "id=eq.07", |_| None).unwrap();
            write_rows(&Plan::of(&request, &catalog()).unwrap(), body.as_bytes())
        };
        let statement = put("[{\"id\":7,\"title\":\"a\"}]").unwrap().unwrap();
        assert!(statement.sql.contains(
            "as i(\"id\" integer, \"title\" text) where i.\"id\" = $2 on conflict (\"id\") do update"
        ));
        assert_eq!(statement.params[1], "07");
        for (body, other) in [
            ("{\"title\":\"a\"}", true),
            ("[]", false),
            ("[{\"id\":7},{\"id\":7}]", false),
        ] {
            let refused = put(body).unwrap_err();
            assert_eq!(matches!(refused, Error::OtherKey), other, "{body}");
            assert_eq!(matches!(refused, Error::Body(_)), !other, "{body}");
        }
    }

    #[test]
    fn an_update_may_set_defaults() {
        let update = |prefer| {
            let query = "columns=id,title";
            statement(Verb::Update, "tasks", query, prefer, "{\"title\":\"a\"}").sql
        };
        assert!(update("missing=default").starts_with(
            "with w as (update \"public\".\"tasks\" as t set \"id\" = default, \"title\" = i.\"title\" \
             from pg_catalog.json_to_recordset($1::pg_catalog.json) as i(\"title\" text)"
        ));
        assert!(update("").contains("set \"id\" = i.\"id\", \"title\" = i.\"title\""));
        let all = statement(Verb::Update, "tasks", "columns=id", "missing=default", "{}");
        assert!(all.sql.contains("set \"id\" = default returning"));
        assert!(all.params.is_empty());
    }

    #[test]
    fn headers_only_asks_for_the_key_of_the_row() {
        let insert = statement(
            Verb::Insert,
            "odd \"table",
            "",
            "return=headers-only",
            "{\"id\":1}",
        );
        assert!(insert.sql.contains(
            "pg_catalog.json_build_array(t.\"odd\"\"\nname\"::text, t.\"id\"::text)::text as \"key\""
        ));
        assert!(
            insert
                .sql
                .ends_with(", pg_catalog.min(w.\"key\") as \"key\" from w")
        );
    }

    const COLUMNS: [&str; 5] = ["id", "title", "odd\"\nname", "data", "words"];

    fn encode(text: &str) -> String {
        percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
    }

    /// A text as a URL writes it when it may hold anything.
    fn quoted(text: &str) -> String {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    }

    /// Any text, with what parsers trip over more often than chance would have it.
    fn text() -> impl Strategy<Value = String> {
        prop_oneof!["\\PC{0,12}", "[\"',()${};\\\\.:*-]{0,8}", "[ -~]{0,6}--"]
    }

    fn field() -> impl Strategy<Value = String> {
        let step = prop_oneof![
            (-3..30).prop_map(|index: i32| index.to_string()),
            text().prop_map(|key| quoted(&key))
        ];
        let path = (prop::collection::vec(step, 0..3), any::<bool>());
        (select(&COLUMNS[..]), path).prop_map(|(column, (steps, as_text))| {
            let mut field = quoted(column);
            for (place, step) in steps.iter().enumerate() {
                let last = place + 1 == steps.len();
                field.push_str(if last && as_text { "->>" } else { "->" });
                field.push_str(step);
            }
            field
        })
    }

    /// `[not.]operator.value`
    fn test() -> impl Strategy<Value = String> {
        const PLAIN: [&str; 18] = [
            "eq",
            "neq",
            "gt",
            "gte",
            "lt",
            "lte",
            "like",
            "ilike",
            "match",
            "imatch",
            "isdistinct",
            "cs",
            "cd",
            "ov",
            "sl",
            "nxr",
            "adj",
            "nxl",
        ];
        const MANY: [&str; 4] = ["eq(any)", "neq(all)", "like(any)", "imatch(all)"];
        const SEARCH: [&str; 5] = [
            "fts",
            "plfts",
            "phfts(simple)",
            "wfts(x\"; --)",
            "fts(english)",
        ];
        let value = prop_oneof![
            4 => (select(&PLAIN[..]), text()).prop_map(|(operator, value)| (operator, quoted(&value))),
            1 => (select(&SEARCH[..]), text()).prop_map(|(operator, value)| (operator, quoted(&value))),
            1 => (select(&MANY[..]), text()).prop_map(|(operator, value)| (operator, format!("{{{}}}", quoted(&value)))),
            1 => text().prop_map(|value| ("in", format!("({},x)", quoted(&value)))),
            1 => select(vec!["null", "not_null", "unknown"]).prop_map(|word| ("is", word.to_owned())),
        ];
        (any::<bool>(), value).prop_map(|(negated, (operator, value))| {
            format!("{}{operator}.{value}", if negated { "not." } else { "" })
        })
    }

    /// A filter parameter, encoded: one condition or a tree of them.
    fn filter() -> impl Strategy<Value = String> {
        let leaf = (field(), test()).prop_map(|(field, test)| format!("{field}.{test}"));
        let tree = leaf.prop_recursive(3, 12, 3, |member| {
            let joint = select(vec!["and", "or", "not.and", "not.or"]);
            (joint, prop::collection::vec(member, 1..4))
                .prop_map(|(joint, members)| format!("{joint}({})", members.join(" , ")))
        });
        prop_oneof![
            (field(), test()).prop_map(|(field, test)| format!(
                "{}={}&",
                encode(&field),
                encode(&test)
            )),
            tree.prop_map(|tree| format!("or={}&", encode(&format!("({tree})")))),
        ]
    }

    fn item() -> impl Strategy<Value = String> {
        let cast = prop_oneof![
            3 => Just(String::new()),
            1 => select(vec!["::text", "::int[]", "::double precision", "::pg_catalog.uuid", "::\"varchar\""]).prop_map(str::to_owned),
        ];
        ("[^\\x00]{1,15}", field(), cast)
            .prop_map(|(alias, field, cast)| format!("{}:{field}{cast}", quoted(&alias)))
    }

    prop_compose! {
        fn query()(
            filters in prop::collection::vec(filter(), 0..3),
            chosen in prop::collection::vec(item(), 0..4),
            ordered in prop::collection::vec((field(), select(vec!["", ".desc", ".asc.nullsfirst", ".nullslast"])), 0..3),
        ) -> String {
            let mut query = filters.concat();
            if !chosen.is_empty() {
                query.extend(["select=", &encode(&chosen.join(",")), "&"]);
            }
            if !ordered.is_empty() {
                let terms: Vec<_> = ordered.iter().map(|(field, direction)| format!("{field}{direction}")).collect();
                query.extend(["order=", &encode(&terms.join(",")), "&"]);
            }
            query
        }
    }

    const PREFERENCES: [&str; 7] = [
        "",
        "return=representation",
        "return=representation,resolution=merge-duplicates",
        "resolution=ignore-duplicates",
        "missing=default",
        "return=headers-only",
        "return=headers-only,resolution=merge-duplicates,missing=default",
    ];

    proptest! {
        #[test]
        fn statements_are_of_few_shapes_whatever_is_asked(
            query in query(),
            table in select(vec!["tasks", "odd \"table", "shown"]),
            verb in select(vec![Verb::Read, Verb::Insert, Verb::Replace, Verb::Update, Verb::Delete]),
            prefer in select(&PREFERENCES[..]),
            keys in prop::collection::vec(subsequence(COLUMNS.to_vec(), 1..=3), 1..4),
            value in any::<String>(),
        ) {
            let (table, query) = match verb {
                Verb::Insert => (table, "columns=id,title"),
                Verb::Replace => ("tasks", "id=eq.1&select=title->a"),
                _ => (table, query.as_str()),
            };
            let rows: Vec<serde_json::Value> = keys.iter().map(|keys| {
                keys.iter().map(|key| ((*key).to_owned(), serde_json::json!(value))).collect::<serde_json::Map<_, _>>().into()
            }).collect();
            let body = match verb {
                Verb::Update => rows[0].to_string(),
                Verb::Replace => serde_json::json!({"id": 1, "title": value}).to_string(),
                _ => serde_json::Value::from(rows).to_string(),
            };
            let statement = statement(verb, table, query, prefer, &body);
            let shape = shape(&statement.sql);
            prop_assert!(is_ours(&shape), "{shape}\n{}", statement.sql);
            prop_assert_eq!(places(&statement.sql), statement.params.len());
        }

        #[test]
        fn counts_are_of_few_shapes_too(query in query()) {
            let request = Request::parse(Verb::Read, "tasks", &query, |_| None).unwrap();
            let read = Read::of(&request, &catalog()).unwrap();
            for statement in [count_rows(&read), count_some_rows(&read, 9), explain_rows(&read), select_rows(&read, Key::With)] {
                let shape = shape(&statement.sql);
                prop_assert!(is_ours(&shape), "{shape}\n{}", statement.sql);
            }
        }
    }

    /// Places for parameters, outside of quoted names.
    fn places(sql: &str) -> usize {
        let outside = sql.split('"').step_by(2);
        outside.map(|text| text.matches('$').count()).sum()
    }
}
