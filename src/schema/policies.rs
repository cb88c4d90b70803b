//! What row-level security policies read besides the row: a change there changes who sees what.
//!
//! Read from `pg_depend` for policies, for the views and the functions they use, and for the
//! policies of the tables they read. The body of most functions is text that hides its tables: such
//! a policy is compared from time to time, unless `rowcast.depends` says what it reads.

use std::collections::{BTreeSet, HashMap};

use tokio_postgres::GenericClient;

/// What the policies of one table depend on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policies {
    /// Watched tables, by the oid of their root; the table itself when its policies look at other
    /// rows of it.
    pub depends: Vec<u32>,
    /// They may read something that is not watched.
    pub compared: bool,
}

/// Objects that a table with row-level security depends on; `None` stands for what cannot be known.
pub(super) type Loaded = HashMap<u32, BTreeSet<Option<u32>>>;

/// Reads the dependencies of every watched table with row-level security.
pub(super) async fn load(client: &impl GenericClient) -> Result<Loaded, tokio_postgres::Error> {
    let mut loaded = Loaded::new();
    for row in client.query(DEPENDENCIES, &[]).await? {
        let on = loaded.entry(row.get(0)).or_default();
        if row.get(2) {
            on.insert(row.get(1));
        }
    }
    Ok(loaded)
}

/// The same by watched tables: `watched` tells the root of a watched table or partition.
pub(super) fn resolved(
    loaded: Loaded,
    watched: impl Fn(u32) -> Option<u32>,
) -> HashMap<u32, Policies> {
    let one = |on: BTreeSet<Option<u32>>| {
        let mut policies = Policies::default();
        for on in on {
            match on.and_then(&watched) {
                Some(root) if !policies.depends.contains(&root) => policies.depends.push(root),
                Some(_) => {}
                None => policies.compared = true,
            }
        }
        policies
    };
    loaded.into_iter().map(|(rel, on)| (rel, one(on))).collect()
}

/// Rows of table, what it depends on, and whether that says anything (a table without dependencies
/// is listed too). Objects are followed from policies to tables, to the policies of those, through
/// views and through functions with a body that PostgreSQL has parsed.
const DEPENDENCIES: &str = r"
with recursive secured as (
  select c.oid from pg_class c
  where c.relrowsecurity
    and exists (select from pg_trigger t where t.tgrelid = c.oid and t.tgname = '!rowcast' and t.tgparentid = 0
                  and t.tgfoid in (select p.oid from pg_proc p where p.pronamespace = to_regnamespace('rowcast')))
), edge (from_class, from_id, to_class, to_id) as (
  -- a table to its policies for reading
  select 'pg_class'::regclass::oid, p.polrelid, 'pg_policy'::regclass::oid, p.oid
  from pg_policy p join pg_class c on c.oid = p.polrelid and c.relrowsecurity
  where p.polcmd in ('r', '*')
  union all
  -- a view to its rule
  select 'pg_class'::regclass, r.ev_class, 'pg_rewrite'::regclass, r.oid from pg_rewrite r
  union all
  -- policies, rules, functions and operators to what they name; a policy always names its own table
  select d.classid, d.objid, d.refclassid, d.refobjid
  from pg_depend d
  where d.classid in ('pg_policy'::regclass, 'pg_rewrite'::regclass, 'pg_proc'::regclass, 'pg_operator'::regclass)
    and d.refclassid in ('pg_class'::regclass, 'pg_proc'::regclass, 'pg_operator'::regclass)
    and not (d.classid = 'pg_policy'::regclass and d.refclassid = 'pg_class'::regclass
             and d.refobjid = (select p.polrelid from pg_policy p where p.oid = d.objid))
    and not (d.classid = 'pg_rewrite'::regclass and d.refobjid = (select r.ev_class from pg_rewrite r where r.oid = d.objid))
), reached (rel, class, id) as (
  -- from its policies, so that the table itself is reached only where something reads it
  select s.oid, e.to_class, e.to_id
  from secured s join edge e on e.from_class = 'pg_class'::regclass and e.from_id = s.oid
  -- what somebody has declared stands for everything else
  where not exists (select from rowcast.dependency y where y.rel = s.oid)
  union
  select r.rel, e.to_class, e.to_id
  from reached r join edge e on e.from_class = r.class and e.from_id = r.id
), moving (pattern) as (
  -- CURRENT_TIMESTAMP and its like come first in the list of such words, before the names of users
  select '\{SQLVALUEFUNCTION :op [0-8] |:funcid (' || string_agg(f.oid::text, '|') || ') '
  from pg_proc f
  where f.pronamespace = 'pg_catalog'::regnamespace
    and (f.proname in ('now', 'transaction_timestamp', 'statement_timestamp', 'clock_timestamp', 'timeofday',
                       'random', 'gen_random_uuid', 'pg_current_xact_id', 'txid_current')
         or f.proname = 'age' and f.pronargs = 1
         -- these read PostgreSQL's own catalogue
         or f.proname like 'has\_%\_privilege' or f.proname like 'to\_reg%')
)
select s.oid, null::oid, false from secured s
union
-- tables that hold rows, and sequences; a view is only on the way
select r.rel, r.id, true
from reached r join pg_class c on c.oid = r.id
where r.class = 'pg_class'::regclass and c.relkind in ('r', 'p', 'f', 'm', 'S')
union
-- a policy that looks at other rows of its own table; its text has the range table of the query
select r.rel, r.rel, true
from reached r join pg_policy p on p.oid = r.id
where r.class = 'pg_policy'::regclass
  and (p.polqual::text like '%:relid ' || r.rel || ' %')
union
-- the same through a view or a function, which PostgreSQL permits: reached by more than its own policies
select r.rel, r.rel, true
from reached r join edge e on e.from_class = r.class and e.from_id = r.id
where e.to_class = 'pg_class'::regclass and e.to_id = r.rel
union
-- functions whose body is text that PostgreSQL did not look into
select r.rel, null, true
from reached r join pg_proc f on f.oid = r.id
where r.class = 'pg_proc'::regclass and f.prosqlbody is null and f.provolatile <> 'i'
  and f.pronamespace <> 'pg_catalog'::regnamespace
union
-- expressions that mean something else from one moment to the next: PostgreSQL keeps no dependency on
-- its own functions and tables, but writes their oids into the tree
select r.rel, null, true
from reached r
cross join moving
cross join lateral (
  select p.polqual::text from pg_policy p where r.class = 'pg_policy'::regclass and p.oid = r.id
  union all
  select w.ev_action::text from pg_rewrite w where r.class = 'pg_rewrite'::regclass and w.oid = r.id
  union all
  select f.prosqlbody::text from pg_proc f where r.class = 'pg_proc'::regclass and f.oid = r.id
) as e (tree)
where e.tree ~ moving.pattern
   or exists (select from regexp_matches(e.tree, ':relid ([0-9]+) ', 'g') as m (oid) where m.oid[1]::oid between 1 and 16383)
union
-- what somebody has declared, as long as it is called what it was then: a function's body goes by names
select y.rel, case when y.on_name <> n.nspname || '.' || c.relname then null else y.on_rel end, true
from rowcast.dependency y join secured s on s.oid = y.rel
left join pg_class c on c.oid = y.on_rel
left join pg_namespace n on n.oid = c.relnamespace
where y.on_rel is not null
";
