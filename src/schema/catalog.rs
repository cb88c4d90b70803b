//! What tables and functions there are, as far as the API may know them.
//!
//! A [`Catalog`] is an immutable picture; [`super::handle`] keeps the current one. It promises that only watched
//! tables, tables in `rowcast.exposed` and functions in `rowcast.exposed_function` are in it. It knows neither requests
//! nor views.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio_postgres::types::ToSql;
use tokio_postgres::{GenericClient, Row};

use super::policies::{self, Policies};
use super::roles::{self, Role};
use crate::cursor::Cursor;

/// Bytes that are never printed.
#[derive(Default, PartialEq, Eq)]
struct KeySecret(Vec<u8>);

impl std::fmt::Debug for KeySecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeySecret")
    }
}

/// The tables and functions of the schemas that the API serves, and every watched table of any
/// schema.
#[derive(Debug, Default)]
pub struct Catalog {
    /// Served; the first is meant where a request names none.
    schemas: Vec<String>,
    /// By schema, then by name.
    by_name: HashMap<String, HashMap<String, Arc<Table>>>,
    by_oid: HashMap<u32, Arc<Table>>,
    /// See [`Catalog::is_leaving`].
    leaving: HashSet<u32>,
    policies: HashMap<u32, Policies>,
    roles: HashMap<String, Role>,
    /// See [`Catalog::roles_digest`].
    roles_digest: String,
    key_secret: KeySecret,
    /// By schema, then by name; several of one name differ in their arguments.
    functions: HashMap<String, HashMap<String, Vec<Arc<Function>>>>,
    notes: HashMap<u32, Notes>,
    /// What had committed before it was read.
    as_of: Cursor,
    /// See [`Catalog::edition`].
    edition: u64,
    /// See [`Catalog::since`].
    since: Cursor,
}

/// One table, partitioned table or view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// `pg_class.oid`; the root's for a partitioned table.
    pub oid: u32,
    /// Schema name, unquoted.
    pub schema: String,
    /// Table name, unquoted.
    pub name: String,
    /// `pg_class.relkind`: `r` table, `p` partitioned, `v` view, `m` materialised view, `f` foreign.
    pub kind: char,
    /// Columns in `attnum` order, dropped ones left out.
    pub columns: Vec<Column>,
    /// Names of the primary key's columns in key order; empty without a primary key. A view of one table has that
    /// table's.
    pub key: Vec<String>,
    /// The primary key is deferrable: whoever adds a key that somebody else is taking away waits for that one
    /// only when the row is in the log already.
    pub deferrable_key: bool,
    /// Carries the `"!rowcast"` trigger.
    pub watched: bool,
    /// Somebody has been granted columns of it, who may then look at no system column.
    pub by_column: bool,
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "independent facts of pg_attribute"
)]
pub struct Column {
    /// Column name, unquoted.
    pub name: String,
    /// The type as SQL text without its modifier, e.g. `timestamp with time zone`; safe to splice,
    /// as it comes from `format_type`.
    pub type_name: String,
    /// `typname` of the type behind all domains when it lives in `pg_catalog`, e.g. `timestamptz`;
    /// `enum` for an enum without a cast to json; empty for every other type.
    pub base: String,
    /// The collation compares byte by byte (C, POSIX, builtin), so the relay can order its text.
    pub byte_ordered: bool,
    /// The collation is deterministic, so equal text means equal bytes.
    pub deterministic: bool,
    /// `not null`.
    pub not_null: bool,
    /// Generated and not stored (PostgreSQL 18): null in every image.
    pub virtual_: bool,
    /// Somewhere in it are names of the catalogue (`regclass` and the like), which PostgreSQL writes
    /// as the reader's `search_path` has them.
    pub names_objects: bool,
    /// Its JSON is an object or an array, or whatever a cast of its type makes: not the value's own text.
    pub nested: bool,
}

impl Column {
    /// Its value holds times with a zone, of which the log may have any.
    #[must_use]
    pub fn is_zoned(&self) -> bool {
        matches!(self.base.as_str(), "timestamptz" | "_timestamptz")
    }
}

/// What people are told about a table. Apart from [`Table`], so that a new comment makes no table
/// a different one to its screens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Notes {
    /// `comment on table`.
    pub comment: Option<String>,
    /// In the order of [`Table::columns`].
    pub columns: Vec<ColumnNotes>,
    /// Which writes PostgreSQL takes.
    pub writes: Writes,
}

/// What people are told about a column.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ColumnNotes {
    /// `comment on column`.
    pub comment: Option<String>,
    /// Has a value when none is given: a default, an identity or a generation expression.
    pub has_default: bool,
    /// Takes no value from outside: generated, or an identity `always`.
    pub read_only: bool,
    /// The labels of an enum in their order; empty for other types.
    pub labels: Vec<String>,
    /// The `n` of `varchar(n)` and `char(n)`, in characters.
    pub max_length: Option<i32>,
}

/// Which writes a relation takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writes {
    /// `INSERT`
    pub insert: bool,
    /// `UPDATE`
    pub update: bool,
    /// `DELETE`
    pub delete: bool,
}

impl Writes {
    /// All of them.
    pub const ALL: Self = Self::of_events(!0);
    /// None of them.
    pub const NONE: Self = Self::of_events(0);

    /// From the bits of `pg_relation_is_updatable`: 1 shifted by PostgreSQL's `CmdType`.
    const fn of_events(events: i32) -> Self {
        Self {
            insert: events & 8 != 0,
            update: events & 4 != 0,
            delete: events & 16 != 0,
        }
    }
}

impl Default for Writes {
    fn default() -> Self {
        Self::ALL
    }
}

/// One function that may be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// `pg_proc.oid`.
    pub oid: u32,
    /// Schema name, unquoted.
    pub schema: String,
    /// Function name, unquoted.
    pub name: String,
    /// What it takes, in order; outputs left out.
    pub arguments: Vec<Argument>,
    /// What it gives.
    pub returns: Returns,
    /// STABLE or IMMUTABLE: it promises to write nothing.
    pub stable: bool,
    /// `comment on function`.
    pub comment: Option<String>,
}

/// One input of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument {
    /// Name, unquoted; empty without one.
    pub name: String,
    /// The type as SQL text, as in [`Column::type_name`].
    pub type_name: String,
    /// May be left out.
    pub has_default: bool,
    /// The last one, which takes any number of values as an array.
    pub variadic: bool,
}

/// What a function gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Returns {
    /// `void`
    Nothing,
    /// One value of this type.
    Value(String),
    /// Any number of values of this type.
    Values(String),
    /// One row. The table is the function's result: of kind `c`, with its columns and its name.
    Row(Arc<Table>),
    /// Any number of rows, told likewise.
    Rows(Arc<Table>),
}

impl Function {
    /// `schema.function`, for people; not quoted for SQL.
    #[must_use]
    pub fn qualified(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// `name(a integer, b text)`, for people.
    #[must_use]
    pub fn signature(&self) -> String {
        let arguments: Vec<_> = self
            .arguments
            .iter()
            .map(|argument| format!("{} {}", argument.name, argument.type_name))
            .collect();
        format!("{}({})", self.name, arguments.join(", "))
    }
}

impl Table {
    /// The column of that name.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// `schema.table`, for people and for `type` in events; not quoted for SQL.
    #[must_use]
    pub fn qualified(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

impl Catalog {
    /// A catalogue of these tables, without functions; `schemas` are those that are served, and
    /// `leaves` maps partitions to their roots.
    #[must_use]
    pub fn new(schemas: &[&str], tables: Vec<Table>, leaves: &[(u32, u32)]) -> Self {
        let mut catalog = Self {
            schemas: schemas.iter().map(|&schema| schema.to_owned()).collect(),
            ..Self::default()
        };
        for table in tables {
            let table = Arc::new(table);
            if catalog.schemas.contains(&table.schema) {
                catalog
                    .by_name
                    .entry(table.schema.clone())
                    .or_default()
                    .insert(table.name.clone(), Arc::clone(&table));
            }
            catalog.by_oid.insert(table.oid, table);
        }
        for (leaf, root) in leaves {
            if let Some(table) = catalog.by_oid.get(root).cloned() {
                catalog.by_oid.entry(*leaf).or_insert(table);
            }
        }
        catalog
    }

    /// The same with these functions, of which those in served schemas can be called.
    #[must_use]
    pub fn with_functions(mut self, functions: Vec<Function>) -> Self {
        for function in functions {
            if self.schemas.contains(&function.schema) {
                self.functions
                    .entry(function.schema.clone())
                    .or_default()
                    .entry(function.name.clone())
                    .or_default()
                    .push(Arc::new(function));
            }
        }
        self
    }

    /// The same with what the policies of the table of that oid read.
    #[must_use]
    pub fn with_policies(mut self, oid: u32, policies: Policies) -> Self {
        self.policies.insert(oid, policies);
        self
    }

    /// The schema that is meant where a request names none.
    #[must_use]
    pub fn schema(&self) -> &str {
        self.schemas.first().map_or("", String::as_str)
    }

    /// The schemas whose tables and functions have URLs.
    #[must_use]
    pub fn schemas(&self) -> &[String] {
        &self.schemas
    }

    /// The table of that name in the first served schema.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<&Arc<Table>> {
        self.table_in(self.schema(), name)
    }

    /// The table of that name in a served schema.
    #[must_use]
    pub fn table_in(&self, schema: &str, name: &str) -> Option<&Arc<Table>> {
        self.by_name.get(schema)?.get(name)
    }

    /// The table of that oid, or the root of that partition.
    #[must_use]
    pub fn table_by_oid(&self, oid: u32) -> Option<&Arc<Table>> {
        self.by_oid.get(&oid)
    }

    /// Whether that is a partition which is being detached, with what is below it: its rows are no table's any more,
    /// and its triggers stay until the end, which may never come.
    #[must_use]
    pub fn is_leaving(&self, oid: u32) -> bool {
        self.leaving.contains(&oid)
    }

    /// Whether it tells every definition that somebody at `place`, in the same life of the transaction
    /// counter, has met.
    #[must_use]
    pub fn is_as_of(&self, place: &Cursor) -> bool {
        self.as_of.covers(place)
    }

    /// Pictures of one edition tell the same, and nobody has said between them that anything changed:
    /// what was decided by one of them holds by the others. Zero for one that no [`Handle`](super::handle::Handle) gave out.
    #[must_use]
    pub fn edition(&self) -> u64 {
        self.edition
    }

    /// What had committed before the first picture of this edition was read: all of it is known, and
    /// counted by whatever was decided under this edition.
    #[must_use]
    pub fn since(&self) -> &Cursor {
        &self.since
    }

    /// Makes it the next picture after `before`: of the same edition, unless it tells something else or somebody has
    /// `said` that something changed; then of edition `number`.
    pub(super) fn follow(&mut self, before: &Self, said: bool, number: u64) {
        (self.edition, self.since) = if !said && self.tells_the_same(before) {
            (before.edition, before.since.clone())
        } else {
            (number, self.as_of.clone())
        };
    }

    /// Whether this other picture differs in nothing but the moment.
    fn tells_the_same(&self, other: &Self) -> bool {
        // Each by name, so that none is forgotten.
        let Self {
            schemas,
            by_name,
            by_oid,
            leaving,
            policies,
            roles,
            roles_digest,
            key_secret,
            functions,
            notes,
            as_of: _,
            edition: _,
            since: _,
        } = self;
        *schemas == other.schemas
            && *by_name == other.by_name
            && *by_oid == other.by_oid
            && *leaving == other.leaving
            && *policies == other.policies
            && *roles == other.roles
            && *roles_digest == other.roles_digest
            && *key_secret == other.key_secret
            && *functions == other.functions
            && *notes == other.notes
    }

    /// What decides who sees which rows of the watched table of that oid; nothing when it has no
    /// row-level security.
    #[must_use]
    pub fn policies(&self, oid: u32) -> Option<&Policies> {
        self.policies.get(&oid)
    }

    /// The role of that name.
    #[must_use]
    pub fn role(&self, name: &str) -> Option<&Role> {
        self.roles.get(name)
    }

    /// The database's secret under which views with row-level security write keys.
    #[must_use]
    pub fn key_secret(&self) -> &[u8] {
        &self.key_secret.0
    }

    /// The tables of a served schema by name.
    #[must_use]
    pub fn tables_in(&self, schema: &str) -> Vec<&Arc<Table>> {
        let mut tables: Vec<_> = self.by_name.get(schema).into_iter().flatten().collect();
        tables.sort_unstable_by_key(|(name, _)| *name);
        tables.into_iter().map(|(_, table)| table).collect()
    }

    /// What is told about the table of that oid.
    #[must_use]
    pub fn notes(&self, oid: u32) -> Option<&Notes> {
        self.notes.get(&oid)
    }

    /// The functions of that name in a served schema.
    #[must_use]
    pub fn functions(&self, schema: &str, name: &str) -> &[Arc<Function>] {
        self.functions
            .get(schema)
            .and_then(|named| named.get(name))
            .map_or(&[], Vec::as_slice)
    }

    /// The functions of a served schema by name, those of one name together.
    #[must_use]
    pub fn functions_in(&self, schema: &str) -> Vec<&[Arc<Function>]> {
        let mut named: Vec<_> = self.functions.get(schema).into_iter().flatten().collect();
        named.sort_unstable_by_key(|(name, _)| *name);
        named.into_iter().map(|(_, all)| all.as_slice()).collect()
    }

    /// A digest of what there was of roles, or of a moment before.
    #[must_use]
    pub fn roles_digest(&self) -> &str {
        &self.roles_digest
    }

    /// Reads the catalogue. `schemas` are those that are served.
    ///
    /// # Errors
    /// Whatever PostgreSQL answers.
    pub async fn load(
        client: &impl GenericClient,
        schemas: &[String],
    ) -> Result<Self, tokio_postgres::Error> {
        let served: [&(dyn ToSql + Sync); 1] = [&schemas];
        // First, for all of this is sent in this order: what follows may know more, and not less.
        let now = client.query_one("select pg_current_snapshot()::text", &[]);
        let (now, columns, leaves, functions, writes, policies, digest, roles, secret) = futures::join!(
            now,
            client.query(COLUMNS, &served),
            client.query(LEAVES, &[]),
            client.query(FUNCTIONS, &served),
            client.query(WRITES, &[]),
            policies::load(client),
            roles::digest(client),
            roles::load(client),
            client.query_one("select key from rowcast.secret", &[]),
        );
        let (columns, leaves, functions) = (columns?, leaves?, functions?);
        let mut tables: Vec<Table> = Vec::new();
        let mut notes: HashMap<u32, Notes> = HashMap::new();
        for row in &columns {
            let oid: u32 = row.get("oid");
            if tables.last().is_none_or(|table| table.oid != oid) {
                let kind: i8 = row.get("relkind");
                tables.push(Table {
                    oid,
                    schema: row.get("nspname"),
                    name: row.get("relname"),
                    kind: char::from(kind.cast_unsigned()),
                    columns: Vec::new(),
                    key: row.get("key"),
                    deferrable_key: row.get("deferrable_key"),
                    watched: row.get("watched"),
                    by_column: row.get("by_column"),
                });
            }
            let told = notes.entry(oid).or_insert_with(|| Notes {
                comment: row.get("table_comment"),
                ..Notes::default()
            });
            let (Some(table), Some(name)) = (tables.last_mut(), row.get("attname")) else {
                continue;
            };
            told.columns.push(ColumnNotes {
                comment: row.get("comment"),
                has_default: row.get("has_default"),
                read_only: row.get("read_only"),
                labels: row.get("labels"),
                max_length: row.get("max_length"),
            });
            table.columns.push(Column {
                name,
                type_name: row.get("type_name"),
                base: row.get("base"),
                byte_ordered: row.get("byte_ordered"),
                deterministic: row.get("deterministic"),
                not_null: row.get("attnotnull"),
                virtual_: row.get("virtual"),
                names_objects: row.get("names_objects"),
                nested: row.get("nested"),
            });
        }
        // A view that is locked keeps nobody waiting: all writes are told as possible then.
        for row in writes.iter().flatten() {
            if let Some(told) = notes.get_mut(&row.get(0)) {
                told.writes = Writes::of_events(row.get(1));
            }
        }
        let (leaving, leaves): (Vec<&Row>, Vec<&Row>) =
            leaves.iter().partition(|row| row.get("leaving"));
        let leaves: Vec<(u32, u32)> = leaves.iter().map(|row| (row.get(0), row.get(1))).collect();
        let schemas: Vec<&str> = schemas.iter().map(String::as_str).collect();
        let functions = functions.iter().map(function).collect();
        let mut catalog = Self::new(&schemas, tables, &leaves).with_functions(functions);
        catalog.leaving = leaving.iter().map(|row| row.get(0)).collect();
        catalog.notes = notes;
        catalog.roles = roles?;
        catalog.roles_digest = digest?;
        // Text that we cannot read covers nothing, and is only asked for more often.
        catalog.as_of = Cursor::from_pg_snapshot(now?.get(0)).unwrap_or_default();
        catalog.key_secret = KeySecret(secret?.get(0));
        let watched = |oid| {
            let table = catalog.table_by_oid(oid)?;
            table.watched.then_some(table.oid)
        };
        catalog.policies = policies::resolved(policies?, watched);
        Ok(catalog)
    }
}

/// A row of [`FUNCTIONS`].
fn function(row: &Row) -> Function {
    let names: Vec<String> = row.get("names");
    let types: Vec<String> = row.get("types");
    let variadic: bool = row.get("variadic");
    let defaults: i16 = row.get("pronargdefaults");
    let inputs = names.len();
    let required = inputs.saturating_sub(usize::try_from(defaults).unwrap_or(0));
    let arguments = names
        .into_iter()
        .zip(types)
        .enumerate()
        .map(|(place, (name, type_name))| Argument {
            name,
            type_name,
            has_default: place >= required,
            variadic: variadic && place + 1 == inputs,
        });
    let (schema, name): (String, String) = (row.get("nspname"), row.get("proname"));
    let (set, type_name): (bool, String) = (row.get("proretset"), row.get("type_name"));
    let returns = match result(row, &schema, &name) {
        _ if row.get("nothing") => Returns::Nothing,
        Some(result) if set => Returns::Rows(result),
        Some(result) => Returns::Row(result),
        None if set => Returns::Values(type_name),
        None => Returns::Value(type_name),
    };
    Function {
        oid: row.get("oid"),
        arguments: arguments.collect(),
        returns,
        stable: row.get("stable"),
        comment: row.get("comment"),
        schema,
        name,
    }
}

/// The rows that a function returns, when it does.
fn result(row: &Row, schema: &str, name: &str) -> Option<Arc<Table>> {
    let names: Option<Vec<String>> = row.get("column_names");
    let types: Vec<String> = row
        .get::<_, Option<Vec<String>>>("column_types")
        .unwrap_or_default();
    let bases: Vec<String> = row
        .get::<_, Option<Vec<String>>>("column_bases")
        .unwrap_or_default();
    let columns = names?.into_iter().zip(types.into_iter().zip(bases));
    Some(Arc::new(Table {
        oid: 0,
        schema: schema.to_owned(),
        name: name.to_owned(),
        kind: 'c',
        columns: columns
            .map(|(name, (type_name, base))| Column {
                name,
                type_name,
                base,
                byte_ordered: false,
                deterministic: true,
                not_null: false,
                virtual_: false,
                names_objects: false,
                nested: false,
            })
            .collect(),
        key: Vec::new(),
        deferrable_key: false,
        watched: false,
        by_column: false,
    }))
}

/// One row a column, tables together. A table is listed when it carries our trigger as a root, or
/// when it is exposed and lives in the served schema. Ours is one that calls a function of ours, which nobody
/// else may, whatever they call theirs.
const COLUMNS: &str = r"
with recursive ours as (
  select p.oid from pg_proc p where p.pronamespace = to_regnamespace('rowcast')
), listed as (
  select c.oid, c.relname::text, n.nspname::text, c.relkind,
         exists (select from pg_trigger t
                 where t.tgrelid = c.oid and t.tgname = '!rowcast' and t.tgfoid in (select oid from ours)) as watched
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  where c.relkind in ('r', 'p', 'v', 'm', 'f')
    and (exists (select from pg_trigger t
                 where t.tgrelid = c.oid and t.tgname = '!rowcast' and t.tgfoid in (select oid from ours)
                   and t.tgparentid = 0)
         or n.nspname = any($1) and c.oid in (select rel from rowcast.exposed))
), bare (oid, base) as (
  -- every type a listed column has, with the domains around it taken off
  select distinct a.atttypid, a.atttypid from pg_attribute a join listed l on l.oid = a.attrelid
  union
  select b.oid, t.typbasetype from bare b join pg_type t on t.oid = b.base where t.typtype = 'd'
), made (oid, part) as (
  -- the same with all that it is made of: elements, parts of a row, bounds of a range
  select distinct a.atttypid, a.atttypid from pg_attribute a join listed l on l.oid = a.attrelid
  union
  select m.oid, v.part
  from made m join pg_type t on t.oid = m.part
  cross join lateral (
    values (nullif(t.typbasetype, 0)), (nullif(t.typelem, 0))
    union all
    select p.atttypid from pg_attribute p
    where t.typtype = 'c' and p.attrelid = t.typrelid and p.attnum > 0 and not p.attisdropped
    union all
    select r.rngsubtype from pg_range r where t.typtype in ('r', 'm') and t.oid in (r.rngtypid, r.rngmultitypid)
  ) as v (part)
  where v.part is not null
), naming (oid) as materialized (
  select distinct m.oid from made m join pg_type t on t.oid = m.part
  where t.typnamespace = 'pg_catalog'::regnamespace and t.typname like 'reg%'
), shown (oid, rel, tree) as materialized (
  -- What a view shows, and the one table that it is of. Not pg_relation_is_updatable, which waits for locks: a view that
  -- groups or counts is none to write to, with a key or without.
  select l.oid, substring(w.tree from ':resorigtbl ([1-9]\d*) ')::oid, w.tree
  from listed l
  join (select oid, ev_class, ev_action::text from pg_rewrite) as w (oid, ev_class, tree) on w.ev_class = l.oid
  where l.relkind = 'v'
    and w.tree ~ ':jointree \{FROMEXPR :fromlist \(\{RANGETBLREF :rtindex \d+\}\) '
    and w.tree not like '%{QUERY %{QUERY %'
    -- What others write through has not to do with the table's key.
    and not exists (select from pg_rewrite o where o.ev_class = l.oid and o.oid <> w.oid)
    and not exists (select from pg_trigger t where t.tgrelid = l.oid and t.tgtype & 64 <> 0)
), view_key (oid, key) as materialized (
  -- The table's, where the view shows all of it. Looked for column by column: to take all of a tree apart by a pattern
  -- takes 20 times as long (measured with 1,000 views of 61 columns). A brace in a name has a backslash.
  select v.oid, array_agg(k.attname::text order by u.place)
  from shown v
  join pg_index i on i.indrelid = v.rel and i.indisprimary and i.indimmediate
  cross join lateral unnest(i.indkey::int2[]) with ordinality as u (attnum, place)
  cross join lateral split_part(v.tree, format(' :resorigtbl %s :resorigcol %s :resjunk false', v.rel, u.attnum), 1) as before
  left join pg_attribute k on k.attrelid = v.oid and before <> v.tree
    and k.attnum = split_part(split_part(before, '} :resno ', -1), ' ', 1)::int2
  where u.place <= i.indnkeyatts
  group by v.oid
  having bool_and(k.attnum is not null)
)
select l.oid, l.relname, l.nspname, l.relkind, l.watched,
  exists (select from pg_attribute g where g.attrelid = l.oid and g.attacl is not null) as by_column,
  array(select k.attname::text
        from pg_index i
        cross join lateral unnest(i.indkey::int2[]) with ordinality as u (attnum, place)
        join pg_attribute k on k.attrelid = i.indrelid and k.attnum = u.attnum
        where i.indrelid = l.oid and i.indisprimary and u.place <= i.indnkeyatts
        order by u.place)
    || coalesce(v.key, '{}') as key,
  exists (select from pg_index i where i.indrelid = l.oid and i.indisprimary and not i.indimmediate) as deferrable_key,
  a.attname::text, format_type(a.atttypid, null) as type_name, a.attnotnull,
  case when bt.typtype = 'e' and not exists (
              select from pg_cast x where x.castsource = bt.oid and x.casttarget = 'json'::regtype)
            then 'enum'
       when bt.typnamespace = 'pg_catalog'::regnamespace and bt.typtype = 'b' then bt.typname::text
       else '' end as base,
  coalesce(case k.collprovider
    when 'd' then d.datlocprovider = 'b' or d.datlocprovider = 'c' and d.datcollate in ('C', 'POSIX')
    when 'c' then k.collcollate in ('C', 'POSIX')
    when 'b' then true
    else false end, false) as byte_ordered,
  coalesce(k.collisdeterministic, true) as deterministic,
  a.attgenerated = 'v' as virtual,
  a.atttypid in (select oid from naming) as names_objects,
  coalesce(bt.typtype = 'c' or bt.typcategory = 'A' or bt.oid in ('json'::regtype, 'jsonb'::regtype)
           or exists (select from pg_cast x where x.castsource = bt.oid and x.casttarget = 'json'::regtype), false) as nested,
  obj_description(l.oid, 'pg_class') as table_comment, col_description(l.oid, a.attnum) as comment,
  a.atthasdef or a.attidentity <> '' as has_default,
  a.attgenerated <> '' or a.attidentity = 'a' as read_only,
  array(select e.enumlabel::text from pg_enum e where e.enumtypid = bt.oid order by e.enumsortorder) as labels,
  case when bt.oid in ('varchar'::regtype, 'bpchar'::regtype) and a.atttypmod > 4 then a.atttypmod - 4 end as max_length
from listed l
left join view_key v on v.oid = l.oid
join pg_database d on d.datname = current_database()
left join pg_attribute a on a.attrelid = l.oid and a.attnum > 0 and not a.attisdropped
left join lateral (select t.* from bare b join pg_type t on t.oid = b.base
                   where b.oid = a.atttypid and t.typtype <> 'd') bt on true
left join pg_collation k on k.oid = a.attcollation
order by l.oid, a.attnum
";

/// Every partition below a watched root.
const LEAVES: &str = r"
with recursive tree (relid, root, leaving) as (
  select t.tgrelid, t.tgrelid, false from pg_trigger t
  where t.tgname = '!rowcast' and t.tgparentid = 0
    and t.tgfoid in (select p.oid from pg_proc p where p.pronamespace = to_regnamespace('rowcast'))
  union
  -- Not pg_partition_tree, which waits for locks. Rows of one that is being detached are no longer the table's.
  select i.inhrelid, t.root, t.leaving or i.inhdetachpending from tree t
  join pg_class c on c.oid = t.relid and c.relkind = 'p'
  join pg_inherits i on i.inhparent = t.relid
)
select relid, root, leaving from tree where relid <> root
";

/// What views and foreign tables take besides reads. It opens the relation and so may wait for a lock.
const WRITES: &str = r"
select c.oid, pg_relation_is_updatable(c.oid, true)
from pg_class c join rowcast.exposed e on e.rel = c.oid
where c.relkind in ('v', 'm', 'f')
";

/// One row a function. An output makes a row of the result, even a single one.
/// Signatures are compared as text: `to_regprocedure` fails, and the whole catalogue with it, where one
/// names a schema that this login may not look into.
const FUNCTIONS: &str = r"
with named as materialized (
  select p.oid
  from pg_proc p
  join pg_namespace n on n.oid = p.pronamespace
  join rowcast.exposed_function e on e.signature = p.oid::regprocedure::text
  where n.nspname = any($1)
)
select p.oid, p.proname::text, n.nspname::text, p.pronargdefaults, p.proretset, p.provariadic <> 0 as variadic,
  p.provolatile <> 'v' as stable, p.prorettype = 'void'::regtype as nothing,
  format_type(p.prorettype, null) as type_name, obj_description(p.oid, 'pg_proc') as comment,
  i.names, i.types, o.names as column_names, o.types as column_types, o.bases as column_bases
from named
join pg_proc p using (oid)
join pg_namespace n on n.oid = p.pronamespace
join pg_type r on r.oid = p.prorettype
cross join lateral (
  select coalesce(array_agg(coalesce(p.proargnames[u.place], '') order by u.place), '{}') as names,
         coalesce(array_agg(format_type(u.type, null) order by u.place), '{}') as types
  from unnest(coalesce(p.proallargtypes, p.proargtypes::oid[])) with ordinality as u (type, place)
  where coalesce(p.proargmodes[u.place], 'i') in ('i', 'b', 'v')
) i
cross join lateral (
  select array_agg(c.name order by c.place) as names,
         array_agg(format_type(c.type, null) order by c.place) as types,
         array_agg(coalesce(bare.name, '') order by c.place) as bases
  from (
    select coalesce(nullif(p.proargnames[u.place], ''), 'column' || row_number() over (order by u.place)), u.type, u.place
    from unnest(p.proallargtypes) with ordinality as u (type, place)
    where p.proargmodes[u.place] in ('o', 'b', 't')
    union all
    select a.attname::text, a.atttypid, a.attnum
    from pg_attribute a
    where r.typtype = 'c' and a.attrelid = r.typrelid and a.attnum > 0 and not a.attisdropped
  ) as c (name, type, place)
  left join lateral (
    -- the type with the domains around it taken off
    with recursive d (type, depth) as (
      select c.type, 0
      union all
      select t.typbasetype, d.depth + 1 from d join pg_type t on t.oid = d.type where t.typtype = 'd'
    )
    select t.typname::text as name
    from (select type from d order by depth desc limit 1) as inner_most
    join pg_type t on t.oid = inner_most.type
    where t.typnamespace = 'pg_catalog'::regnamespace and t.typtype = 'b'
  ) as bare on true
) o
where rowcast.unfit(p.oid) is null
order by p.oid
";
