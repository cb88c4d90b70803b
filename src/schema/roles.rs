//! The roles that requests may take, and what PostgreSQL would set for them at a login.
//!
//! `SET ROLE` neither refuses a role with too many rights nor applies its settings: both are done
//! here. Whether the API's login may take a role at all is PostgreSQL's to say.

use std::collections::HashMap;
use std::time::Duration;

use tokio_postgres::GenericClient;

/// A role.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Role {
    /// Why no request may take it.
    pub refused: Option<&'static str>,
    /// Settings of `ALTER ROLE … SET`, but for those that decide how values become text.
    pub settings: Vec<(String, String)>,
    /// Its `statement_timeout`; none when it has none or no limit.
    pub statement_timeout: Option<Duration>,
}

/// Reads all roles but PostgreSQL's own, by name.
pub(super) async fn load(
    client: &impl GenericClient,
) -> Result<HashMap<String, Role>, tokio_postgres::Error> {
    let rows = client.query(ROLES, &[]).await?;
    let role = |row: &tokio_postgres::Row| {
        let names: Vec<String> = row.get("names");
        let values: Vec<String> = row.get("values");
        let timeout: Option<i64> = row.get("timeout");
        let timeout = timeout.and_then(|timeout| u64::try_from(timeout).ok());
        let role = Role {
            refused: refusal(row.get("super"), row.get("bypass"), row.get("login")),
            settings: names.into_iter().zip(values).collect(),
            statement_timeout: timeout.filter(|t| *t > 0).map(Duration::from_millis),
        };
        (row.get("name"), role)
    };
    Ok(rows.iter().map(role).collect())
}

/// A digest of all that the catalogue holds of roles, of whose changes PostgreSQL tells nobody.
pub(super) async fn digest(client: &impl GenericClient) -> Result<String, tokio_postgres::Error> {
    client.query_one(DIGEST, &[]).await?.try_get(0)
}

fn refusal(superuser: bool, bypass: bool, login: bool) -> Option<&'static str> {
    if superuser {
        Some("it is a superuser")
    } else if bypass {
        Some("it bypasses row-level security")
    } else if login {
        Some("it can log in by itself")
    } else {
        None
    }
}

/// Settings that anybody may change, the database's own before those of every database. The pins of
/// our sessions are left out: reads, snapshots and row images agree byte for byte because of them. So is the
/// encoding, which is what both sides of a connection take its bytes for.
const ROLES: &str = r"
with setting as (
  select distinct on (s.setrole, lower(split_part(c.setting, '=', 1)))
         s.setrole, lower(split_part(c.setting, '=', 1)) as name,
         substr(c.setting, strpos(c.setting, '=') + 1) as value
  from pg_db_role_setting s cross join lateral unnest(s.setconfig) as c (setting)
  where s.setrole <> 0
    and s.setdatabase in (0, (select oid from pg_database where datname = current_database()))
  order by s.setrole, lower(split_part(c.setting, '=', 1)), s.setdatabase desc
), known as (
  select s.setrole, s.name, s.value from setting s
  left join pg_settings p on lower(p.name) = s.name
  where coalesce(p.context = 'user', strpos(s.name, '.') > 0)
    and s.name not in ('timezone', 'datestyle', 'intervalstyle', 'extra_float_digits', 'bytea_output',
                       'lc_monetary', 'client_encoding', 'search_path', 'role', 'session_authorization')
)
select r.rolname::text as name, r.rolsuper as super, r.rolbypassrls as bypass, r.rolcanlogin as login,
  array(select k.name from known k where k.setrole = r.oid and k.name <> 'statement_timeout' order by k.name) as names,
  array(select k.value from known k where k.setrole = r.oid and k.name <> 'statement_timeout' order by k.name) as values,
  -- as little as possible is converted: anybody may set anything for his own role, and an error here
  -- would leave everybody without a catalogue
  (select case when k.value ~ '^[0-9]{1,10}$' then k.value::bigint
               when k.value ~ '^[0-9]{1,10} ?(us|ms|s|min|h|d)$'
                 then (extract(epoch from k.value::interval) * 1000)::bigint end
   from known k where k.setrole = r.oid and k.name = 'statement_timeout') as timeout
from pg_roles r
where r.rolname !~ '^pg_'
";

const DIGEST: &str = "select md5(concat_ws(E'\\n', \
    (select string_agg(concat_ws(' ', r.oid, r.rolname, r.rolsuper, r.rolbypassrls, r.rolcanlogin, r.rolinherit), ',' \
       order by r.oid) from pg_roles r), \
    (select string_agg(m::text, ',' order by m.roleid, m.member, m.grantor) from pg_auth_members m), \
    (select string_agg(concat_ws(' ', s.setdatabase, s.setrole, s.setconfig::text), ',' order by s.setdatabase, s.setrole) \
       from pg_db_role_setting s)))";
