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
    let function = config.pre_request.as_deref().map(function);
    let rows = requests
        .query(
            MISSING,
            &[&config.schema, &access.anon_role, &access.roles, &function],
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
where $4 is not null and to_regprocedure($4 || '()') is null and to_regproc($4) is null";
