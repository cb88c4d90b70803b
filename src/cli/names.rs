//! Whether what the settings name is there: schemas, roles, the function that runs before requests. Any of it may be
//! made later, so that it is told, and is no reason not to serve.

use tokio_postgres::Client;

use crate::config::Config;
use crate::postgres::quote;

/// What a setting names and PostgreSQL does not have.
pub(super) struct Missing {
    /// The flag and the name.
    pub(super) setting: String,
    pub(super) found: String,
    pub(super) remedy: String,
}

/// Everything that is missing, as the login of requests sees it.
///
/// # Errors
/// PostgreSQL's answer.
pub(super) async fn missing(
    config: &Config,
    requests: &Client,
) -> Result<Vec<Missing>, tokio_postgres::Error> {
    let access = &config.access;
    let pre_request = config.pre_request.as_deref();
    let written = pre_request.map(function);
    let parts: Option<Vec<_>> = pre_request.map(|name| name.split('.').collect());
    let rows = requests
        .query(
            MISSING,
            &[
                &config.schema,
                &access.anon_role,
                &access.roles,
                &written,
                &parts,
            ],
        )
        .await?;
    let missing = rows.iter().map(|row| Missing {
        setting: row.get(0),
        found: row.get(1),
        remedy: row.get(2),
    });
    Ok(missing.collect())
}

/// A function's name, perhaps with its schema, as SQL.
pub(super) fn function(name: &str) -> String {
    let parts: Vec<_> = name.split('.').map(quote::identifier).collect();
    parts.join(".")
}

/// A function is looked up in the catalogue: `to_regprocedure` fails where its schema is open to the roles of
/// requests and not to their login. Without a schema it is meant in what is served and in `public`.
const MISSING: &str = "
select '--schema ' || n, 'there is no such schema', format('create schema %I;', n)
from unnest($1::text[]) as n
where not exists (select from pg_namespace s where s.nspname = n)
union all
select r.flag || ' ' || r.name,
       case when o.oid is null then 'there is no such role' else format('%I may not become it', current_user) end,
       case when o.oid is null then format('create role %I nologin; ', r.name) else '' end
         || format('grant %I to %I;', r.name, current_user)
from (
  select '--anon-role' as flag, $2::text as name where $2 is not null
  union all
  select '--roles', unnest($3::text[])
) r
left join pg_roles o on o.rolname = r.name
where o.oid is null or not pg_has_role(current_user, o.oid, 'member')
union all
select '--pre-request ' || $4::text, 'there is no such function without arguments',
       format('create function %s() returns void ...', $4)
where $4 is not null and not exists (
  select from pg_proc p join pg_namespace n on n.oid = p.pronamespace
  where p.proname = ($5::text[])[cardinality($5::text[])] and p.prokind = 'f' and p.pronargs = p.pronargdefaults
    and case when cardinality($5::text[]) > 1 then n.nspname = ($5::text[])[cardinality($5::text[]) - 1]
        else n.nspname = any($1::text[] || '{public,pg_catalog}') end)";
