//! What a request means in this database: every name found in the catalogue, or refused.
//!
//! Promises that the names in a [`Plan`] are names of its table. Pure: it asks the catalogue and
//! nothing else.

use std::sync::Arc;

use super::Error;
use super::request::{Cast, Count, Item, Range, Request, Resolution, Return, Term, Verb};
use crate::filter::{Condition, Filter, Operator, Path, Test};
use crate::schema::catalog::{Catalog, Column, Table};

/// One read or write of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// GET, HEAD and streams.
    Read(Read),
    /// POST and PUT
    Insert(Insert),
    /// PATCH
    Update(Update),
    /// DELETE
    Delete(Delete),
}

/// Which rows to show, and what of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// The table.
    pub table: Arc<Table>,
    /// What of a row is shown.
    pub select: Selection,
    /// All must hold. Their columns are the table's.
    pub conditions: Vec<Filter>,
    /// First term first. Their columns are the table's.
    pub order: Vec<Term>,
    /// Which of the rows that match.
    pub range: Range,
    /// How all rows that match are counted as well.
    pub count: Option<Count>,
}

/// What of a row is shown.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Selection {
    /// The whole row, as row images have it.
    All,
    /// These columns in this order.
    Columns(Vec<Output>),
}

impl Selection {
    /// Whether it shows nothing but whole columns as they are.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        match self {
            Self::All => true,
            Self::Columns(outputs) => outputs.iter().all(Output::is_plain),
        }
    }
}

/// A column, or a place inside of it, under the name it has in the answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Output {
    /// Column of the table.
    pub column: String,
    /// Which place inside of its value.
    pub path: Path,
    /// The type it is cast to.
    pub cast: Option<Cast>,
    /// Member of the JSON object. The only name in SQL that is the client's own.
    pub name: String,
}

impl Output {
    /// A whole column under its own name.
    #[must_use]
    pub fn whole(column: &str) -> Self {
        Self {
            column: column.to_owned(),
            path: Path::default(),
            cast: None,
            name: column.to_owned(),
        }
    }

    /// Whether it is a whole column as it is, perhaps under another name.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.path.is_empty() && self.cast.is_none()
    }
}

/// What a write sends back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Returning {
    /// Each row.
    Rows {
        /// What of a row is shown.
        select: Selection,
        /// First term first.
        order: Vec<Term>,
    },
    /// The primary key of a row that is the only one.
    Key,
}

/// New rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Insert {
    /// The table.
    pub table: Arc<Table>,
    /// The payload's keys to use; all of them when not given.
    pub columns: Option<Vec<String>>,
    /// A key that a row lacks means the column's default, and not null.
    pub missing_default: bool,
    /// What to do with rows that exist.
    pub conflict: Option<Conflict>,
    /// For PUT: the primary key that the URL names and the row must have. Otherwise empty.
    pub key: Vec<Condition>,
    /// What to send back.
    pub returning: Option<Returning>,
}

/// What to do with rows that exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Columns of a unique index. Empty: any, which only [`Resolution::Ignore`] can do.
    pub target: Vec<String>,
    /// What becomes of them.
    pub resolution: Resolution,
}

/// The version that the one row in reach of a write must still have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// What of the row the version is of.
    pub select: Selection,
    /// The versions it may have; `None`: any, as long as there is a row.
    pub versions: Option<Vec<String>>,
}

/// New values for rows that match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// The table.
    pub table: Arc<Table>,
    /// The payload's keys to use; all of them when not given.
    pub columns: Option<Vec<String>>,
    /// A key that the payload lacks means the column's default, and not null.
    pub missing_default: bool,
    /// All must hold. None: every row.
    pub conditions: Vec<Filter>,
    /// For PUT: the primary key that the URL names and the payload must have. Otherwise empty.
    pub key: Vec<Condition>,
    /// `If-Match`
    pub guard: Option<Guard>,
    /// What to send back.
    pub returning: Option<Returning>,
}

/// The end of rows that match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delete {
    /// The table.
    pub table: Arc<Table>,
    /// All must hold. None: every row.
    pub conditions: Vec<Filter>,
    /// `If-Match`
    pub guard: Option<Guard>,
    /// What to send back.
    pub returning: Option<Returning>,
}

impl Plan {
    /// The plan for `request`.
    ///
    /// # Errors
    /// [`Error::UnknownTable`], [`Error::UnknownColumn`], [`Error::UnknownPayloadColumn`],
    /// [`Error::NotWritable`], [`Error::NotOneKey`].
    pub fn of(request: &Request, catalog: &Catalog) -> Result<Self, Error> {
        if request.verb == Verb::Read {
            return Read::of(request, catalog).map(Self::Read);
        }
        let table = writable(request, catalog)?;
        let returning = returning(request, &table)?;
        let missing_default = request.preferences.missing_default == Some(true);
        let guard = guard(request, &table)?;
        Ok(match request.verb {
            Verb::Read | Verb::Insert => Self::Insert(Insert {
                columns: payload_columns(request, &table)?,
                missing_default,
                conflict: conflict(request, &table)?,
                key: Vec::new(),
                returning,
                table,
            }),
            // A row that must be there is not inserted: an update tests its version in one step.
            Verb::Replace if guard.is_some() => Self::Update(Update {
                columns: payload_columns(request, &table)?,
                missing_default,
                conditions: request.conditions.clone(),
                key: whole_key(request, &table)?,
                guard,
                returning,
                table,
            }),
            Verb::Replace => Self::Insert(Insert {
                columns: payload_columns(request, &table)?,
                missing_default,
                conflict: Some(Conflict {
                    target: table.key.clone(),
                    resolution: if request.preconditions.absent {
                        Resolution::Ignore
                    } else {
                        Resolution::Merge
                    },
                }),
                key: whole_key(request, &table)?,
                returning,
                table,
            }),
            Verb::Update => Self::Update(Update {
                columns: payload_columns(request, &table)?,
                missing_default,
                conditions: conditions(request, &table)?,
                key: Vec::new(),
                guard,
                returning,
                table,
            }),
            Verb::Delete => Self::Delete(Delete {
                conditions: conditions(request, &table)?,
                guard,
                returning,
                table,
            }),
        })
    }

    /// The table it is about.
    #[must_use]
    pub fn table(&self) -> &Arc<Table> {
        match self {
            Self::Read(read) => &read.table,
            Self::Insert(insert) => &insert.table,
            Self::Update(update) => &update.table,
            Self::Delete(delete) => &delete.table,
        }
    }

    /// `If-Match` of a write.
    #[must_use]
    pub fn guard(&self) -> Option<&Guard> {
        match self {
            Self::Read(_) | Self::Insert(_) => None,
            Self::Update(update) => update.guard.as_ref(),
            Self::Delete(delete) => delete.guard.as_ref(),
        }
    }

    /// What a write sends back.
    #[must_use]
    pub fn returning(&self) -> Option<&Returning> {
        match self {
            Self::Read(_) => None,
            Self::Insert(insert) => insert.returning.as_ref(),
            Self::Update(update) => update.returning.as_ref(),
            Self::Delete(delete) => delete.returning.as_ref(),
        }
    }
}

impl Read {
    /// The rows in reach of a write, shown as `request` selects them; at most `most`.
    ///
    /// # Errors
    /// [`Error::UnknownColumn`].
    pub fn in_reach(request: &Request, table: &Arc<Table>, most: u64) -> Result<Self, Error> {
        Ok(Self {
            select: selection(request, table)?,
            conditions: conditions(request, table)?,
            order: Vec::new(),
            range: Range::ALL.at_most(most),
            count: None,
            table: Arc::clone(table),
        })
    }

    /// The plan for a read, whatever the verb of `request`.
    ///
    /// # Errors
    /// [`Error::UnknownTable`], [`Error::UnknownColumn`].
    pub fn of(request: &Request, catalog: &Catalog) -> Result<Self, Error> {
        Self::of_table(request, table(request, catalog)?)
    }

    /// The plan for a read of `table`, whatever table `request` names.
    ///
    /// # Errors
    /// [`Error::UnknownColumn`].
    pub fn of_table(request: &Request, table: Arc<Table>) -> Result<Self, Error> {
        Ok(Self {
            select: selection(request, &table)?,
            conditions: conditions(request, &table)?,
            order: order(request, &table)?,
            range: request.range,
            count: request.preferences.count,
            table,
        })
    }

    /// For each filter that must hold, the condition it is if it compares a whole column by one of
    /// `eq neq gt gte lt lte in is`; nothing for any other.
    pub fn plain_conditions(&self) -> impl Iterator<Item = Option<&Condition>> {
        self.conditions.iter().map(|filter| match filter {
            Filter::One(condition) if condition.is_plain() => Some(condition),
            _ => None,
        })
    }
}

/// The schema in which names are looked up.
pub(super) fn schema<'a>(request: &'a Request, catalog: &'a Catalog) -> &'a str {
    request.schema.as_deref().unwrap_or(catalog.schema())
}

fn table(request: &Request, catalog: &Catalog) -> Result<Arc<Table>, Error> {
    let schema = schema(request, catalog);
    match catalog.table_in(schema, &request.table) {
        Some(table) => Ok(Arc::clone(table)),
        None => Err(Error::UnknownTable {
            schema: schema.to_owned(),
            name: request.table.clone(),
            near: nearest(
                &request.table,
                catalog
                    .tables_in(schema)
                    .iter()
                    .map(|table| table.name.as_str()),
            ),
        }),
    }
}

/// Whether a view takes writes only PostgreSQL can say; of a materialized one it is certain.
fn writable(request: &Request, catalog: &Catalog) -> Result<Arc<Table>, Error> {
    let table = table(request, catalog)?;
    if table.kind == 'm' {
        return Err(Error::NotWritable(table.qualified()));
    }
    Ok(table)
}

fn known(table: &Table, column: &str) -> Result<(), Error> {
    match table.column(column) {
        Some(_) => Ok(()),
        None => Err(Error::UnknownColumn {
            table: table.name.clone(),
            column: column.to_owned(),
            near: nearest(column, column_names(table)),
        }),
    }
}

/// Refuses a payload's key that is no column.
pub(super) fn known_in_payload(table: &Table, column: &str) -> Result<(), Error> {
    match table.column(column) {
        Some(_) => Ok(()),
        None => Err(Error::UnknownPayloadColumn {
            table: table.name.clone(),
            column: column.to_owned(),
            near: nearest(column, column_names(table)),
        }),
    }
}

fn column_names(table: &Table) -> impl Iterator<Item = &str> {
    table.columns.iter().map(|column| column.name.as_str())
}

/// Columns of an answer at most: `MaxTupleAttributeNumber` of PostgreSQL.
const MOST_OUTPUTS: usize = 1664;

fn selection(request: &Request, table: &Table) -> Result<Selection, Error> {
    if request.select == [Item::All] {
        return Ok(Selection::All);
    }
    let mut outputs = Vec::new();
    for item in &request.select {
        // Where nobody looks PostgreSQL plans for minutes, and heeds no cancellation.
        if outputs.len() > MOST_OUTPUTS {
            return Err(Error::Syntax {
                parameter: "select".to_owned(),
                reason: format!("PostgreSQL gives at most {MOST_OUTPUTS} columns"),
            });
        }
        match item {
            Item::All => outputs.extend(column_names(table).map(Output::whole)),
            Item::Column {
                column,
                path,
                cast,
                output,
            } => {
                known(table, column)?;
                if let Some(cast) = cast {
                    castable(table, cast)?;
                }
                outputs.push(Output {
                    column: column.clone(),
                    path: path.clone(),
                    cast: cast.clone(),
                    name: output.clone(),
                });
            }
        }
    }
    Ok(Selection::Columns(outputs))
}

/// Types, unlike tables and columns, come from a list and from the table's own columns: so that the
/// names in a statement are never the request's.
fn castable(table: &Table, cast: &Cast) -> Result<(), Error> {
    let name = match &cast.schema {
        Some(schema) => format!("{schema}.{}", cast.name),
        None => cast.name.clone(),
    };
    let built_in = matches!(cast.schema.as_deref(), None | Some("pg_catalog"))
        && TYPES.contains(&cast.name.as_str());
    // One of the served schema goes without it, as that schema is the first to be looked through.
    let own = cast
        .schema
        .is_none()
        .then(|| format!("{}.{name}", table.schema));
    let of_column = |column: &Column| {
        let element = column.type_name.trim_end_matches("[]").replace('"', "");
        element == name || own.as_ref() == Some(&element)
    };
    if built_in || table.columns.iter().any(of_column) {
        Ok(())
    } else {
        Err(Error::UnknownType(name))
    }
}

/// PostgreSQL's own types that rows are made of, by all their names.
const TYPES: [&str; 73] = [
    "bigint",
    "bit",
    "bit varying",
    "bool",
    "boolean",
    "bpchar",
    "bytea",
    "char",
    "char varying",
    "character",
    "character varying",
    "cidr",
    "date",
    "datemultirange",
    "daterange",
    "dec",
    "decimal",
    "double precision",
    "float",
    "float4",
    "float8",
    "inet",
    "int",
    "int2",
    "int4",
    "int4multirange",
    "int4range",
    "int8",
    "int8multirange",
    "int8range",
    "integer",
    "interval",
    "json",
    "jsonb",
    "jsonpath",
    "macaddr",
    "macaddr8",
    "money",
    "name",
    "nummultirange",
    "numeric",
    "numrange",
    "oid",
    "point",
    "line",
    "lseg",
    "box",
    "path",
    "polygon",
    "circle",
    "real",
    "smallint",
    "text",
    "time",
    "time with time zone",
    "time without time zone",
    "timestamp",
    "timestamp with time zone",
    "timestamp without time zone",
    "timestamptz",
    "timetz",
    "tsmultirange",
    "tsquery",
    "tsrange",
    "tstzmultirange",
    "tstzrange",
    "tsvector",
    "uuid",
    "varbit",
    "varchar",
    "xid",
    "xid8",
    "xml",
];

fn conditions(request: &Request, table: &Table) -> Result<Vec<Filter>, Error> {
    for condition in request.conditions.iter().flat_map(Filter::conditions) {
        known(table, &condition.column)?;
    }
    Ok(request.conditions.clone())
}

/// The filters of a PUT, which name one row by its primary key and do nothing else.
fn whole_key(request: &Request, table: &Table) -> Result<Vec<Condition>, Error> {
    conditions(request, table)?;
    let of_key = |name: &String| {
        request.conditions.iter().find_map(|filter| match filter {
            Filter::One(condition)
                if condition.column == *name
                    && condition.path.is_empty()
                    && !condition.negated
                    && matches!(condition.test, Test::Compare(Operator::Eq, _)) =>
            {
                Some(condition.clone())
            }
            _ => None,
        })
    };
    let key: Option<Vec<Condition>> = table.key.iter().map(of_key).collect();
    key.filter(|key| !key.is_empty() && key.len() == request.conditions.len())
        .ok_or(Error::NotOneKey)
}

fn order(request: &Request, table: &Table) -> Result<Vec<Term>, Error> {
    for term in &request.order {
        known(table, &term.column)?;
    }
    Ok(request.order.clone())
}

fn returning(request: &Request, table: &Table) -> Result<Option<Returning>, Error> {
    // Looked up even when nothing is sent back: a mistake is a mistake.
    let rows = Returning::Rows {
        select: selection(request, table)?,
        order: order(request, table)?,
    };
    let creates = request.verb == Verb::Insert && !table.key.is_empty();
    Ok(match request.preferences.returning {
        Some(Return::Representation) => Some(rows),
        Some(Return::HeadersOnly) if creates => Some(Returning::Key),
        _ => None,
    })
}

fn guard(request: &Request, table: &Table) -> Result<Option<Guard>, Error> {
    let Some(tags) = &request.preconditions.matches else {
        return Ok(None);
    };
    Ok(Some(Guard {
        select: selection(request, table)?,
        versions: tags.strong(),
    }))
}

fn payload_columns(request: &Request, table: &Table) -> Result<Option<Vec<String>>, Error> {
    for column in request.columns.iter().flatten() {
        known_in_payload(table, column)?;
    }
    Ok(request.columns.clone())
}

/// Without a key there is nothing that a row could be merged by.
fn conflict(request: &Request, table: &Table) -> Result<Option<Conflict>, Error> {
    let Some(resolution) = request.preferences.resolution else {
        return Ok(None);
    };
    for column in request.on_conflict.iter().flatten() {
        known(table, column)?;
    }
    let target = request.on_conflict.as_ref().unwrap_or(&table.key).clone();
    if target.is_empty() && resolution == Resolution::Merge {
        return Ok(None);
    }
    Ok(Some(Conflict { target, resolution }))
}

/// The candidate that a typing mistake may have meant.
pub(super) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    // PostgreSQL has no such names, and who makes one up must not have us compare it.
    if name.len() > 63 {
        return None;
    }
    let allowed = name.chars().count().div_ceil(3).min(3);
    candidates
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}

/// Characters to insert, delete or replace to make one of the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut above: Vec<usize> = (0..=to.len()).collect();
    for (row, c) in from.chars().enumerate() {
        let mut left = row + 1;
        let mut corner = above[0];
        above[0] = left;
        for (column, d) in to.iter().enumerate() {
            let replaced = corner + usize::from(c != *d);
            corner = above[column + 1];
            left = replaced.min(left + 1).min(corner + 1);
            above[column + 1] = left;
        }
    }
    above[to.len()]
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::schema::catalog::Column;

    pub(in crate::rows) fn column(name: &str, type_name: &str) -> Column {
        Column {
            name: name.to_owned(),
            type_name: type_name.to_owned(),
            base: String::new(),
            byte_ordered: false,
            deterministic: true,
            not_null: false,
            virtual_: false,
            names_objects: false,
            nested: false,
        }
    }

    pub(in crate::rows) fn catalog() -> Catalog {
        let table = |oid, name: &str, kind, key: &[&str]| Table {
            oid,
            schema: "public".to_owned(),
            name: name.to_owned(),
            kind,
            columns: vec![
                column("id", "integer"),
                column("title", "text"),
                column("odd\"\nname", "character[]"),
                Column {
                    base: "jsonb".to_owned(),
                    ..column("data", "jsonb")
                },
                Column {
                    base: "tsvector".to_owned(),
                    ..column("words", "tsvector")
                },
            ],
            key: key.iter().map(|&name| name.to_owned()).collect(),
            watched: true,
            by_column: false,
            deferrable_key: false,
        };
        Catalog::new(
            &["public"],
            vec![
                table(1, "tasks", 'r', &["id"]),
                table(2, "odd \"table", 'r', &["odd\"\nname", "id"]),
                table(3, "totals", 'm', &[]),
                table(4, "shown", 'v', &[]),
            ],
            &[],
        )
    }

    fn plan(verb: Verb, table: &str, query: &str, prefer: &str) -> Result<Plan, Error> {
        let request = Request::parse(verb, table, query, |name| {
            (name == "prefer").then(|| prefer.to_owned())
        })?;
        Plan::of(&request, &catalog())
    }

    #[test]
    fn a_wrong_name_is_refused_with_the_one_it_may_have_meant() {
        assert!(matches!(
            plan(Verb::Read, "task", "", ""),
            Err(Error::UnknownTable { near: Some(near), .. }) if near == "tasks"
        ));
        assert!(matches!(
            plan(Verb::Read, "elephants", "", ""),
            Err(Error::UnknownTable { near: None, .. })
        ));
        for query in [
            "titel=eq.a",
            "titel->a=eq.a",
            "or=(id.eq.1,and(titel.eq.a))",
            "select=titel",
            "select=titel->a",
            "order=titel->a",
        ] {
            assert!(
                matches!(
                    plan(Verb::Read, "tasks", query, ""),
                    Err(Error::UnknownColumn { near: Some(near), .. }) if near == "title"
                ),
                "{query}"
            );
        }
        assert!(matches!(
            plan(Verb::Insert, "tasks", "columns=titel", ""),
            Err(Error::UnknownPayloadColumn { .. })
        ));
        assert!(matches!(
            plan(
                Verb::Insert,
                "tasks",
                "on_conflict=titel",
                "resolution=merge-duplicates"
            ),
            Err(Error::UnknownColumn { .. })
        ));
    }

    #[test]
    fn nobody_is_compared_with_a_name_that_none_can_have_and_stars_have_an_end() {
        assert_eq!(nearest(&"a".repeat(64), ["a"].into_iter()), None);
        let stars = vec!["*"; 500].join(",");
        let refused = plan(Verb::Read, "tasks", &format!("select={stars}"), "");
        assert!(matches!(refused, Err(Error::Syntax { parameter, .. }) if parameter == "select"));
        let stars = vec!["*"; 300].join(",");
        assert!(plan(Verb::Read, "tasks", &format!("select={stars}"), "").is_ok());
    }

    #[test]
    fn a_star_beside_other_items_becomes_the_columns() {
        let Ok(Plan::Read(read)) = plan(Verb::Read, "tasks", "select=*,name:title", "") else {
            panic!()
        };
        let Selection::Columns(outputs) = read.select else {
            panic!()
        };
        let names: Vec<_> = outputs.iter().map(|output| output.name.as_str()).collect();
        assert_eq!(
            names,
            ["id", "title", "odd\"\nname", "data", "words", "name"]
        );
    }

    #[test]
    fn an_upsert_without_a_target_uses_the_primary_key() {
        let conflict = |table, query, prefer| match plan(Verb::Insert, table, query, prefer) {
            Ok(Plan::Insert(insert)) => insert.conflict.map(|conflict| conflict.target),
            other => panic!("{other:?}"),
        };
        let merge = "resolution=merge-duplicates";
        assert_eq!(conflict("tasks", "", merge).unwrap(), ["id"]);
        assert_eq!(
            conflict("tasks", "on_conflict=title", merge).unwrap(),
            ["title"]
        );
        assert_eq!(conflict("tasks", "on_conflict=title", ""), None);
        assert_eq!(conflict("shown", "", merge), None);
        assert_eq!(
            conflict("shown", "", "resolution=ignore-duplicates"),
            Some(vec![])
        );
    }

    #[test]
    fn a_put_names_one_row_by_its_whole_key_and_nothing_else() {
        let put = |table, query| plan(Verb::Replace, table, query, "");
        assert!(put("tasks", "id=eq.1").is_ok());
        let Ok(Plan::Insert(insert)) = put("odd \"table", "id=eq.1&%22odd%5C%22%0Aname%22=eq.a")
        else {
            panic!()
        };
        let key: Vec<_> = insert.key.iter().map(|key| key.column.as_str()).collect();
        assert_eq!(key, ["odd\"\nname", "id"]);
        assert_eq!(insert.conflict.unwrap().resolution, Resolution::Merge);
        for (table, query) in [
            ("tasks", ""),
            ("tasks", "id=gt.1"),
            ("tasks", "id=not.eq.1"),
            ("tasks", "id=in.(1)"),
            ("tasks", "id=eq.1&id=eq.1"),
            ("tasks", "id=eq.1&title=eq.a"),
            ("tasks", "or=(id.eq.1)"),
            ("tasks", "id->a=eq.1"),
            ("shown", ""),
            ("odd \"table", "id=eq.1"),
        ] {
            assert!(
                matches!(put(table, query), Err(Error::NotOneKey)),
                "{table} {query}"
            );
        }
    }

    #[test]
    fn what_can_be_decided_outside_of_the_database_is_known() {
        let read = |query| match plan(Verb::Read, "tasks", query, "") {
            Ok(Plan::Read(read)) => read,
            other => panic!("{other:?}"),
        };
        let told = |query| -> Vec<bool> {
            let read = read(query);
            read.plain_conditions().map(|c| c.is_some()).collect()
        };
        assert_eq!(
            told("id=eq.1&title=like.a&data->a=eq.1&or=(id.eq.1,id.eq.2)"),
            [true, false, false, false]
        );
        assert_eq!(told("and=(id.eq.1,title.is.null)"), [true, true]);
        assert!(read("select=id,x:title").select.is_plain());
        assert!(!read("select=id::text").select.is_plain());
        assert!(!read("select=data->a").select.is_plain());
    }

    #[test]
    fn a_cast_is_to_a_known_type() {
        let select = |cast: &str| {
            let query = format!("select=id::{cast}");
            let request = Request::parse(Verb::Read, "tasks", &query, |_| None).unwrap();
            Plan::of(&request, &catalog()).map(|_| ())
        };
        for cast in [
            "text",
            "TEXT[]",
            "double precision",
            "pg_catalog.uuid",
            "\"varchar\"",
        ] {
            assert!(select(cast).is_ok(), "{cast}");
        }
        for cast in [
            "nope",
            "regclass",
            "public.text",
            "\"text; --\"",
            "\"Text\"",
        ] {
            assert!(matches!(select(cast), Err(Error::UnknownType(_))), "{cast}");
        }
    }

    #[test]
    fn a_materialized_view_is_read_and_never_written() {
        assert!(plan(Verb::Read, "totals", "", "").is_ok());
        for verb in [Verb::Insert, Verb::Replace, Verb::Update, Verb::Delete] {
            assert!(matches!(
                plan(verb, "totals", "", ""),
                Err(Error::NotWritable(_))
            ));
        }
    }
}
