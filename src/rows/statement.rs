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

use super::Error;
use super::body::{Payload, Row};
use super::plan::{
    Conflict, Delete, Insert, Output, Plan, Read, Returning, Selection, Update, known_in_payload,
};
use super::request::{Resolution, Term};
use crate::filter::{Condition, Test};
use crate::postgres::quote::{identifier, qualified};
use crate::schema::catalog::{Column, Table};

/// SQL and its parameters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Statement {
    /// The text, with `$1` for the first parameter.
    pub sql: String,
    /// Values in PostgreSQL's text format; their types are PostgreSQL's to find.
    pub params: Vec<String>,
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

    /// Adds a value and writes its place.
    pub(super) fn bind(&mut self, value: impl Into<String>) {
        self.params.push(value.into());
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
    fn conditions(&mut self, conditions: &[Condition]) {
        if conditions.is_empty() {
            return;
        }
        self.push(" where ");
        self.list(" and ", conditions, Self::condition);
    }

    fn condition(&mut self, condition: &Condition) {
        if condition.negated {
            self.push("not (");
        }
        self.push(&of_row(&condition.column));
        match &condition.test {
            Test::Compare(operator, value) => {
                self.push(" ");
                self.push(operator.sql());
                self.push(" ");
                self.bind(value.as_str());
            }
            Test::In(values) => {
                self.push(" = any(");
                self.bind(array(values));
                self.push(")");
            }
            Test::Is(truth) => {
                self.push(" ");
                self.push(truth.sql());
            }
        }
        if condition.negated {
            self.push(")");
        }
    }

    /// ` order by ...`, where `expression` writes the term at a place.
    fn order(&mut self, order: &[Term], expression: impl Fn(usize, &Term) -> String) {
        if order.is_empty() {
            return;
        }
        self.push(" order by ");
        self.list(", ", order.iter().enumerate(), |sql, (place, term)| {
            sql.push(&expression(place, term));
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

    /// ` returning ...`: the row if it is wanted, whether it is a new one, and what sorts it.
    fn returning(&mut self, returning: Option<&Returning>, fresh: &str) {
        self.push(" returning ");
        self.push(fresh);
        self.push(" as \"fresh\"");
        if let Some(returning) = returning {
            self.push(", ");
            self.push(&json(&returning.select));
            self.push(" as \"row\"");
            for (place, term) in returning.order.iter().enumerate() {
                self.push(&format!(", {} as \"o{place}\"", of_row(&term.column)));
            }
        }
    }

    /// What a write answers, from the rows that it returned as `w`.
    fn outcome(&mut self, returning: Option<&Returning>) {
        match returning {
            Some(returning) => {
                self.push(" select w.\"row\", w.\"fresh\" from w");
                self.order(&returning.order, |place, _| format!("w.\"o{place}\""));
            }
            None => self.push(
                " select count(*) as \"affected\", \
                 count(*) filter (where w.\"fresh\") as \"inserted\" from w",
            ),
        }
    }

    /// The payload's rows as `i`, each key with the type of its column.
    fn payload(&mut self, rows: &[&Row<'_>], columns: &[&Column]) {
        let texts: Vec<_> = rows.iter().map(|row| row.text).collect();
        self.push("pg_catalog.json_to_recordset(");
        self.bind(format!("[{}]", texts.join(",")));
        self.push("::pg_catalog.json) as i(");
        self.list(", ", columns, |sql, column| {
            // Splicing the type is safe: it is `format_type`'s own text.
            sql.push(&format!(
                "{} {}",
                identifier(&column.name),
                whole_type(&column.type_name)
            ));
        });
        self.push(")");
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
    sql.push("select ");
    sql.push(&json(&read.select));
    sql.push(" as \"row\"");
    if key == Key::With {
        let names = read.table.key.iter();
        let columns = names.map(|name| Output {
            column: name.clone(),
            name: name.clone(),
        });
        sql.push(", ");
        sql.push(&json(&Selection::Columns(columns.collect())));
        sql.push(" as \"key\"");
    }
    sql.push(" from ");
    sql.push(&relation(&read.table));
    sql.conditions(&read.conditions);
    sql.order(&read.order, |_, term| of_row(&term.column));
    if let Some(limit) = read.range.limit {
        sql.push(" limit ");
        sql.bind(limit.to_string());
    }
    if read.range.offset > 0 {
        sql.push(" offset ");
        sql.bind(read.range.offset.to_string());
    }
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
    sql.conditions(&read.conditions);
}

/// The statement for a write with this body, or nothing when there is nothing to do. It answers
/// rows of `row text, fresh boolean` when the plan wants rows back, and otherwise one row of
/// `affected bigint, inserted bigint`.
///
/// # Errors
/// [`Error::Body`], [`Error::KeysDiffer`], [`Error::UnknownPayloadColumn`].
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
    let mut sql = Statement::default();
    let alone = groups.len() == 1;
    sql.list(", ", groups.iter().enumerate(), |sql, (place, group)| {
        sql.push(if place == 0 { "with " } else { "" });
        if alone {
            sql.push("w as (");
        } else {
            sql.push(&format!("g{place} as ("));
        }
        insert_group(sql, insert, group);
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

/// Rows that are inserted alike.
struct Group<'a> {
    columns: Vec<&'a Column>,
    rows: Vec<&'a Row<'a>>,
}

/// One group, unless keys may be missing and mean defaults: SQL has a word for the default only
/// where a column is not named at all.
fn groups<'a>(insert: &'a Insert, payload: &'a Payload<'a>) -> Result<Vec<Group<'a>>, Error> {
    let Some(first) = payload.rows.first() else {
        return Ok(Vec::new());
    };
    let table = &insert.table;
    let Some(names) = &insert.columns else {
        if payload.rows.iter().any(|row| row.keys != first.keys) {
            return Err(Error::KeysDiffer);
        }
        return Ok(vec![Group {
            columns: columns(table, &first.keys)?,
            rows: payload.rows.iter().collect(),
        }]);
    };
    let names: BTreeSet<String> = names.iter().cloned().collect();
    if !insert.missing_default {
        return Ok(vec![Group {
            columns: columns(table, &names)?,
            rows: payload.rows.iter().collect(),
        }]);
    }
    let mut groups: Vec<Group<'_>> = Vec::new();
    for row in &payload.rows {
        let columns = columns(table, &names.intersection(&row.keys).cloned().collect())?;
        match groups.iter().position(|group| group.columns == columns) {
            Some(place) => groups[place].rows.push(row),
            None if groups.len() == MOST_KEY_SETS => {
                return Err(Error::Body("its rows have too many different sets of keys"));
            }
            None => groups.push(Group {
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

fn insert_group(sql: &mut Statement, insert: &Insert, group: &Group<'_>) {
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
    }
    let mut fresh = "true".to_owned();
    if let Some(conflict) = &insert.conflict {
        sql.conflict(conflict, &group.columns);
        if conflict.resolution == Resolution::Merge {
            fresh = is_fresh(&insert.table, &conflict.target);
        }
    }
    sql.returning(insert.returning.as_ref(), &fresh);
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
    if columns.is_empty() {
        return Ok(None);
    }
    let mut sql = Statement::default();
    sql.push("with w as (update ");
    sql.push(&relation(&update.table));
    sql.push(" set ");
    sql.list(", ", &columns, |sql, column| {
        sql.push(&identifier(&column.name));
        sql.push(" = ");
        sql.push(&of_payload(column));
    });
    sql.push(" from ");
    sql.payload(&[row], &columns);
    sql.conditions(&update.conditions);
    sql.returning(update.returning.as_ref(), "false");
    sql.push(")");
    sql.outcome(update.returning.as_ref());
    Ok(Some(sql))
}

fn delete_rows(delete: &Delete) -> Statement {
    let mut sql = Statement::default();
    sql.push("with w as (delete from ");
    sql.push(&relation(&delete.table));
    sql.conditions(&delete.conditions);
    sql.returning(delete.returning.as_ref(), "false");
    sql.push(")");
    sql.outcome(delete.returning.as_ref());
    sql
}

/// Whether the row `t` that an upsert returns is a new one.
///
/// One that was there has been locked by us, which shows in its `xmax`. Partitioned tables and
/// views have none to show, so there the row is looked for in the statement's own snapshot, which
/// is from before; that calls a row new that somebody else has added in between.
fn is_fresh(table: &Table, target: &[String]) -> String {
    if table.kind == 'r' {
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

/// The row `t`, or what is wanted of it, as JSON text.
fn json(select: &Selection) -> String {
    let Selection::Columns(outputs) = select else {
        return "pg_catalog.row_to_json(t.*)::text".to_owned();
    };
    let columns: Vec<_> = outputs
        .iter()
        .map(|output| format!("{} as {}", of_row(&output.column), identifier(&output.name)))
        .collect();
    let columns = columns.join(", ");
    format!("(select pg_catalog.row_to_json(s.*) from (select {columns}) s)::text")
}

fn relation(table: &Table) -> String {
    if table.kind == 'c' {
        // What a call returned; see `call`.
        return format!("{} as t", identifier(RESULT));
    }
    format!("{} as t", qualified(&table.schema, &table.name))
}

fn of_row(column: &str) -> String {
    format!("t.{}", identifier(column))
}

fn of_payload(column: &Column) -> String {
    format!("i.{}", identifier(&column.name))
}

/// In a column list `character` and `bit` mean one character and one bit. These do not; the
/// assignment to the column still applies its length.
pub(super) fn whole_type(type_name: &str) -> String {
    let (element, dimensions) = match type_name.find('[') {
        Some(place) => type_name.split_at(place),
        None => (type_name, ""),
    };
    match element {
        "character" => format!("bpchar{dimensions}"),
        "bit" => format!("\"bit\"{dimensions}"),
        _ => type_name.to_owned(),
    }
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
    use proptest::sample::{Index, select, subsequence};

    use super::super::plan::tests::catalog;
    use super::super::request::{Request, Verb};
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
            "[{\"id\":1},{\"title\":\"a\"},{\"id\":2},{}]",
        );
        assert_eq!(
            insert.params,
            ["[{\"id\":1},{\"id\":2}]", "[{\"title\":\"a\"}]", "[{}]"]
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
    fn types_that_would_shrink_are_written_whole() {
        assert_eq!(whole_type("character"), "bpchar");
        assert_eq!(whole_type("bit[]"), "\"bit\"[]");
        assert_eq!(whole_type("character varying"), "character varying");
    }

    /// Every word and sign that a statement may have outside of quoted names.
    const VOCABULARY: &[&str] = &[
        "select",
        "from",
        "where",
        "and",
        "not",
        "any",
        "is",
        "null",
        "true",
        "false",
        "unknown",
        "order",
        "by",
        "desc",
        "nulls",
        "first",
        "last",
        "limit",
        "offset",
        "as",
        "with",
        "insert",
        "into",
        "on",
        "conflict",
        "do",
        "nothing",
        "update",
        "set",
        "excluded",
        "returning",
        "delete",
        "filter",
        "union",
        "all",
        "count",
        "pg_catalog",
        "row_to_json",
        "json_to_recordset",
        "json_array_elements",
        "json",
        "text",
        "integer",
        "bpchar",
        "xmax",
        "not",
        "exists",
        "e",
        "t",
        "s",
        "i",
        "w",
        "0",
        "*",
        "(",
        ")",
        "[",
        "]",
        ",",
        ".",
        ":",
        "=",
        "<",
        ">",
        "$",
        "g#",
    ];

    /// Splits SQL into words, signs and `"`-quoted names, as PostgreSQL's lexer would.
    fn tokens(sql: &str) -> (Vec<String>, Vec<String>) {
        let (mut words, mut names) = (Vec::new(), Vec::new());
        let mut chars = sql.chars().peekable();
        while let Some(c) = chars.next() {
            if c == '"' {
                let mut name = String::new();
                loop {
                    match chars.next().expect("a quoted name has an end") {
                        '"' if chars.next_if_eq(&'"').is_some() => name.push('"'),
                        '"' => break,
                        c => name.push(c),
                    }
                }
                names.push(name);
            } else if c == '$' {
                while chars.next_if(char::is_ascii_digit).is_some() {}
                words.push("$".to_owned());
            } else if c.is_ascii_alphanumeric() {
                let mut word = String::from(c);
                while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                    word.push(c);
                }
                if word
                    .strip_prefix('g')
                    .is_some_and(|n| n.parse::<u8>().is_ok())
                {
                    word = "g#".to_owned();
                }
                words.push(word);
            } else if c != ' ' {
                words.push(c.to_string());
            }
        }
        (words, names)
    }

    const COLUMNS: [&str; 3] = ["id", "title", "odd\"\nname"];

    fn encode(text: &str) -> String {
        percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
    }

    /// A column as a URL writes it when it may hold anything.
    fn quoted(column: &str) -> String {
        format!("\"{}\"", column.replace('"', "\\\""))
    }

    prop_compose! {
        fn query()(
            filters in prop::collection::vec((select(&COLUMNS[..]), any::<Index>(), "\\PC{0,12}|[\"',()$;\\\\-]{0,6}"), 0..3),
            chosen in subsequence(COLUMNS.to_vec(), 0..=3),
            alias in "[^\\x00]{1,15}",
            ordered in subsequence(COLUMNS.to_vec(), 0..=2),
            direction in select(vec!["", ".desc", ".asc.nullsfirst", ".nullslast"]),
        ) -> (String, String) {
            const OPERATORS: [&str; 8] = ["eq", "neq", "gt", "not.lte", "in", "not.in", "is", "not.is"];
            let filters: Vec<_> = filters.iter().map(|(column, operator, value)| {
                let operator = operator.get(&OPERATORS);
                let value = match *operator {
                    "in" | "not.in" => format!("(\"{}\",x)", value.replace(['\\', '"'], "")),
                    "is" | "not.is" => "unknown".to_owned(),
                    _ => value.clone(),
                };
                format!("{}={}&", encode(&quoted(column)), encode(&format!("{operator}.{value}")))
            }).collect();
            let mut query = filters.concat();
            if !chosen.is_empty() {
                let items: Vec<_> = chosen.iter()
                    .map(|column| format!("\"{}\":{}", alias.replace('\\', "\\\\").replace('"', "\\\""), quoted(column)))
                    .collect();
                query.extend(["select=", &encode(&items.join(",")), "&"]);
            }
            if !ordered.is_empty() {
                let terms: Vec<_> = ordered.iter().map(|column| quoted(column) + direction).collect();
                query.extend(["order=", &encode(&terms.join(",")), "&"]);
            }
            (query, alias)
        }
    }

    proptest! {
        #[test]
        fn statements_are_of_few_shapes_and_every_name_is_quoted(
            (query, alias) in query(),
            table in select(vec!["tasks", "odd \"table", "shown"]),
            verb in select(vec![Verb::Read, Verb::Insert, Verb::Update, Verb::Delete]),
            prefer in select(vec!["", "return=representation", "return=representation,resolution=merge-duplicates", "resolution=ignore-duplicates", "missing=default"]),
            keys in prop::collection::vec(subsequence(COLUMNS.to_vec(), 1..=3), 1..4),
            value in any::<String>(),
        ) {
            let query = if verb == Verb::Insert { "columns=id,title" } else { &query };
            let rows: Vec<serde_json::Value> = keys.iter().map(|keys| {
                keys.iter().map(|key| ((*key).to_owned(), serde_json::json!(value))).collect::<serde_json::Map<_, _>>().into()
            }).collect();
            let body = if verb == Verb::Update { rows[0].to_string() } else { serde_json::Value::from(rows).to_string() };
            let statement = statement(verb, table, query, prefer, &body);
            let (words, names) = tokens(&statement.sql);
            for word in &words {
                prop_assert!(VOCABULARY.contains(&word.as_str()), "{word:?} in {}", statement.sql);
            }
            for name in &names {
                let ours = ["public", "row", "fresh", "affected", "inserted", "o0", "o1"].contains(&name.as_str());
                prop_assert!(ours || COLUMNS.contains(&name.as_str()) || name == table || *name == alias, "{name:?}");
            }
            prop_assert_eq!(words.iter().filter(|word| *word == "$").count(), statement.params.len());
        }
    }
}
