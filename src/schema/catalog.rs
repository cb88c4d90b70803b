//! What tables there are, as far as the API may know them.
//!
//! A [`Catalog`] is an immutable picture; [`Handle`] keeps the current one and replaces it when
//! somebody asks. It promises that only watched tables and tables in `rowcast.exposed` are in it.
//! It knows neither requests nor views.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use tokio_postgres::GenericClient;
use tokio_postgres::types::ToSql;

use crate::postgres::pool::{Lease, Pool, PoolError};

/// The tables of one schema that the API serves, and every watched table of any schema.
#[derive(Debug, Default)]
pub struct Catalog {
    schema: String,
    by_name: HashMap<String, Arc<Table>>,
    by_oid: HashMap<u32, Arc<Table>>,
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
    /// Names of the primary key's columns in key order; empty without a primary key.
    pub key: Vec<String>,
    /// Carries the `"!rowcast"` trigger.
    pub watched: bool,
    /// Row-level security applies to the login of this connection.
    pub row_security: bool,
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
    /// The login may select it.
    pub selectable: bool,
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
    /// A catalogue of these tables; `leaves` maps partitions to their roots.
    #[must_use]
    pub fn new(schema: &str, tables: Vec<Table>, leaves: &[(u32, u32)]) -> Self {
        let mut catalog = Self {
            schema: schema.to_owned(),
            ..Self::default()
        };
        for table in tables {
            let table = Arc::new(table);
            if table.schema == schema {
                catalog
                    .by_name
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

    /// The schema whose tables have URLs.
    #[must_use]
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// The table of that name in the served schema.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<&Arc<Table>> {
        self.by_name.get(name)
    }

    /// The table of that oid, or the root of that partition.
    #[must_use]
    pub fn table_by_oid(&self, oid: u32) -> Option<&Arc<Table>> {
        self.by_oid.get(&oid)
    }

    /// Names of the served tables, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.by_name.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Reads the catalogue. `schema` is the served schema.
    ///
    /// # Errors
    /// Whatever PostgreSQL answers.
    pub async fn load(
        client: &impl GenericClient,
        schema: &str,
    ) -> Result<Self, tokio_postgres::Error> {
        let served: [&(dyn ToSql + Sync); 1] = [&schema];
        let (columns, leaves) =
            futures::try_join!(client.query(COLUMNS, &served), client.query(LEAVES, &[]))?;
        let mut tables: Vec<Table> = Vec::new();
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
                    watched: row.get("watched"),
                    row_security: row.get("row_security"),
                });
            }
            let (Some(table), Some(name)) = (tables.last_mut(), row.get("attname")) else {
                continue;
            };
            table.columns.push(Column {
                name,
                type_name: row.get("type_name"),
                base: row.get("base"),
                byte_ordered: row.get("byte_ordered"),
                deterministic: row.get("deterministic"),
                not_null: row.get("attnotnull"),
                virtual_: row.get("virtual"),
                selectable: row.get("selectable"),
            });
        }
        let leaves: Vec<(u32, u32)> = leaves.iter().map(|row| (row.get(0), row.get(1))).collect();
        Ok(Self::new(schema, tables, &leaves))
    }
}

/// One row a column, tables together. A table is listed when it carries our trigger as a root, or
/// when it is exposed and lives in the served schema.
const COLUMNS: &str = r"
with recursive listed as (
  select c.oid, c.relname::text, n.nspname::text, c.relkind,
         exists (select from pg_trigger t where t.tgrelid = c.oid and t.tgname = '!rowcast') as watched
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  where c.relkind in ('r', 'p', 'v', 'm', 'f')
    and (exists (select from pg_trigger t
                 where t.tgrelid = c.oid and t.tgname = '!rowcast' and t.tgparentid = 0)
         or n.nspname = $1 and c.oid in (select rel from rowcast.exposed))
), bare (oid, base) as (
  -- every type a listed column has, with the domains around it taken off
  select distinct a.atttypid, a.atttypid from pg_attribute a join listed l on l.oid = a.attrelid
  union
  select b.oid, t.typbasetype from bare b join pg_type t on t.oid = b.base where t.typtype = 'd'
)
select l.oid, l.relname, l.nspname, l.relkind, l.watched, coalesce(row_security_active(l.oid), false) as row_security,
  array(select k.attname::text
        from pg_index i
        cross join lateral unnest(i.indkey::int2[]) with ordinality as u (attnum, place)
        join pg_attribute k on k.attrelid = i.indrelid and k.attnum = u.attnum
        where i.indrelid = l.oid and i.indisprimary and u.place <= i.indnkeyatts
        order by u.place) as key,
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
  coalesce(has_column_privilege(l.oid, a.attnum, 'select'), false) as selectable
from listed l
join pg_database d on d.datname = current_database()
left join pg_attribute a on a.attrelid = l.oid and a.attnum > 0 and not a.attisdropped
left join lateral (select t.* from bare b join pg_type t on t.oid = b.base
                   where b.oid = a.atttypid and t.typtype <> 'd') bt on true
left join pg_collation k on k.oid = a.attcollation
order by l.oid, a.attnum
";

/// Every partition below a watched root.
const LEAVES: &str = r"
with recursive tree (relid, root) as (
  select t.tgrelid, t.tgrelid from pg_trigger t
  where t.tgname = '!rowcast' and t.tgparentid = 0
  union
  -- not pg_partition_tree, which waits for locks
  select i.inhrelid, t.root from tree t
  join pg_class c on c.oid = t.relid and c.relkind = 'p'
  join pg_inherits i on i.inhparent = t.relid
)
select relid, root from tree where relid <> root
";

/// The current catalogue and the way to renew it.
#[derive(Debug)]
pub struct Handle {
    pool: Pool,
    schema: String,
    current: watch::Sender<Arc<Catalog>>,
    reloading: tokio::sync::Mutex<()>,
    reads: Mutex<Reads>,
}

/// Reads by number.
#[derive(Debug, Default)]
struct Reads {
    /// The latest that was begun.
    begun: u64,
    /// The latest that succeeded.
    done: u64,
}

/// Why the catalogue could not be read. The old one keeps serving.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// No connection.
    #[error("no connection for reading the catalogue")]
    Connect(#[from] PoolError),
    /// The queries failed.
    #[error("the catalogue could not be read")]
    Query(#[from] tokio_postgres::Error),
}

impl Handle {
    /// An empty catalogue that will be read through `pool`.
    #[must_use]
    pub fn new(pool: Pool, schema: String) -> Self {
        Self {
            pool,
            schema,
            current: watch::Sender::new(Arc::default()),
            reloading: tokio::sync::Mutex::new(()),
            reads: Mutex::default(),
        }
    }

    /// The schema whose tables have URLs.
    #[must_use]
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// The picture as it is now.
    #[must_use]
    pub fn current(&self) -> Arc<Catalog> {
        self.current.borrow().clone()
    }

    /// Reads the catalogue anew and returns it. Calls that overlap share one read that began after
    /// the later of them was made, so the answer is never older than the question.
    ///
    /// # Errors
    /// See [`CatalogError`]; the old picture stays.
    pub async fn reload(&self) -> Result<Arc<Catalog>, CatalogError> {
        let asked = self.reads().begun;
        let _one_at_a_time = self.reloading.lock().await;
        let number = {
            let mut reads = self.reads();
            // It began after we asked.
            if reads.done > asked {
                return Ok(self.current());
            }
            reads.begun += 1;
            reads.begun
        };
        let lease = Lease::take(&self.pool).await?;
        let catalog = Arc::new(Catalog::load(lease.client(), &self.schema).await?);
        lease.give_back();
        self.current.send_replace(Arc::clone(&catalog));
        self.reads().done = number;
        Ok(catalog)
    }

    fn reads(&self) -> std::sync::MutexGuard<'_, Reads> {
        self.reads.lock().expect("no panic while held")
    }
}
