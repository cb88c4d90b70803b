//! The tables of the check, their rows as both sides spell them, and who sees which.

use std::fmt::{self, Write as _};

use serde_json::Value;

/// A table of the check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    Tx,
    Reg,
    Acct,
    Xfer,
    List,
    Life,
    Parent,
    Child,
    Doc,
    Share,
    Big,
    Mark,
}

pub const TABLES: [Table; 12] = [
    Table::Tx,
    Table::Reg,
    Table::Acct,
    Table::Xfer,
    Table::List,
    Table::Life,
    Table::Parent,
    Table::Child,
    Table::Doc,
    Table::Share,
    Table::Big,
    Table::Mark,
];

impl Table {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tx => "hc_tx",
            Self::Reg => "hc_reg",
            Self::Acct => "hc_acct",
            Self::Xfer => "hc_xfer",
            Self::List => "hc_list",
            Self::Life => "hc_life",
            Self::Parent => "hc_parent",
            Self::Child => "hc_child",
            Self::Doc => "hc_doc",
            Self::Share => "hc_share",
            Self::Big => "hc_big",
            Self::Mark => "hc_mark",
        }
    }

    pub fn of(name: &str) -> Option<Self> {
        TABLES.into_iter().find(|table| table.name() == name)
    }

    /// The columns of its primary key.
    pub fn key(self) -> &'static [&'static str] {
        match self {
            Self::Tx => &["tx"],
            Self::Xfer | Self::Child | Self::Doc => &["id"],
            Self::Share => &["doc", "tenant"],
            _ => &["k"],
        }
    }
}

pub const REGISTERS: u32 = 24;
pub const ACCOUNTS: u32 = 10;
/// Sum of all balances, in every state.
pub const TOTAL: i64 = 1000;
pub const LISTS: u32 = 6;
pub const DOCS: u32 = 24;
pub const TENANTS: u32 = 3;
/// Added to the id of a transaction for what it writes and takes back: never to be seen.
pub const GHOST: i64 = 1_000_000_000_000;

/// What a document of a tenant that is never shared holds.
pub fn canary(tenant: u32) -> String {
    format!("canary-{tenant}-f3a9c1")
}

pub const ROLES: &str = "
do $$ begin
  if not exists (select from pg_roles where rolname = 'hc_visitor') then
    create role hc_visitor nologin;
    create role hc_member nologin;
    create role hc_writer nologin;
    create role hc_api login noinherit;
    grant hc_visitor, hc_member, hc_writer to hc_api;
  end if;
end $$;
";

/// Tables, functions, grants, the policy; then what is served.
pub fn schema() -> String {
    let mut sql = String::from(
        "
create table hc_tx (tx bigint primary key, writer int not null);
create table hc_reg (k int primary key, v bigint not null, tx bigint not null);
create table hc_acct (k int primary key, bal bigint not null, tx bigint not null);
create table hc_xfer (id bigint primary key, a int not null, b int not null, amt bigint not null, tx bigint not null);
create table hc_list (k int primary key, elems bigint[] not null, tx bigint not null);
create table hc_life (k int primary key, gen int not null, tx bigint not null);
create table hc_parent (k int primary key, tx bigint not null);
create table hc_child (id bigint primary key,
  parent int not null references hc_parent on delete cascade on update cascade deferrable, tx bigint not null);
create table hc_doc (id int primary key, tenant text not null, body text not null, tx bigint not null);
create table hc_share (doc int, tenant text, tx bigint not null, primary key (doc, tenant));
create table hc_big (k int primary key, body text not null, tx bigint not null);
create table hc_mark (k int primary key, n bigint not null, tx bigint not null);
alter table hc_doc enable row level security;
create policy of_tenant on hc_doc for select to hc_member using (
  tenant = current_setting('request.jwt.claims', true)::json ->> 'tenant'
  or exists (select from hc_share s where s.doc = hc_doc.id
    and s.tenant = current_setting('request.jwt.claims', true)::json ->> 'tenant'));
create function hc_bump(k int, tx bigint) returns void language sql as
  'update hc_reg set v = v + 1, tx = $2 where k = $1';
create function hc_append(k int, tx bigint) returns void language sql as
  'update hc_list set elems = elems || $2, tx = $2 where k = $1';
create function hc_move(a int, b int, amt bigint, tx bigint) returns void language sql as
  'update hc_acct set bal = bal + case k when $1 then -$3 else $3 end, tx = $4 where k in ($1, $2);
   insert into hc_xfer values ($4, $1, $2, $3, $4)';
create function hc_sleep() returns int language sql as 'select 1 from pg_sleep(1)';
grant select, insert, update, delete on all tables in schema public to hc_writer;
grant select on all tables in schema public to hc_visitor, hc_member;
",
    );
    for (number, table) in TABLES.iter().enumerate() {
        // Both ways of capturing, side by side.
        let capture = ["row", "statement"][number % 2];
        let name = table.name();
        let _infallible = write!(sql, "select rowcast.watch('{name}', '{capture}');");
    }
    for function in [
        "hc_bump(int,bigint)",
        "hc_append(int,bigint)",
        "hc_move(int,int,bigint,bigint)",
        "hc_sleep()",
    ] {
        let _infallible = write!(sql, "select rowcast.expose_function('{function}');");
    }
    sql + &format!(
        "
insert into hc_reg select g, 0, 0 from generate_series(0, {REGISTERS} - 1) g;
insert into hc_acct select g, {TOTAL} / {ACCOUNTS}, 0 from generate_series(0, {ACCOUNTS} - 1) g;
insert into hc_list select g, '{{}}', 0 from generate_series(0, {LISTS} - 1) g;
insert into hc_doc select g, 't' || g % {TENANTS}, 'first', 0 from generate_series(0, {DOCS} - 1) g;
insert into hc_mark values (0, 0, 0);
"
    )
}

/// A row as names and texts, in the order of its columns; nulls are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Row(pub Vec<(Box<str>, Box<str>)>);

impl Row {
    pub fn get(&self, column: &str) -> Option<&str> {
        let mut columns = self.0.iter();
        let found = columns.find(|(name, _)| **name == *column);
        found.map(|(_, value)| &**value)
    }

    pub fn number(&self, column: &str) -> i64 {
        self.get(column)
            .and_then(|text| text.parse().ok())
            .unwrap_or(i64::MIN)
    }

    /// The row of a JSON object.
    pub fn of_json(value: &Value) -> Self {
        let members = value.as_object().into_iter().flatten();
        let told = members.filter_map(|(name, value)| Some((name.as_str().into(), text(value)?)));
        Self(told.collect())
    }

    /// Its key as the wire spells it.
    pub fn key(&self, table: Table) -> String {
        match table.key() {
            [column] => self.get(column).unwrap_or_default().to_owned(),
            many => {
                let quoted = many
                    .iter()
                    .map(|column| Value::from(self.get(column).unwrap_or_default()).to_string());
                quoted.collect::<Vec<_>>().join("/")
            }
        }
    }
}

/// Short enough for a witness.
impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (name, value)) in self.0.iter().enumerate() {
            let shown: String = value.chars().take(60).collect();
            let comma = if place == 0 { "" } else { ", " };
            write!(f, "{comma}{name}={shown}")?;
            if shown.len() < value.len() {
                write!(f, "… ({} bytes)", value.len())?;
            }
        }
        Ok(())
    }
}

/// As PostgreSQL writes it.
fn text(value: &Value) -> Option<Box<str>> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.as_str().into()),
        Value::Array(members) => {
            let members = members.iter().map(ToString::to_string);
            Some(format!("{{{}}}", members.collect::<Vec<_>>().join(",")).into())
        }
        other => Some(other.to_string().into()),
    }
}

/// Who looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Who {
    Visitor,
    Tenant(u32),
}

/// A condition on a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Filter {
    pub column: &'static str,
    /// Below, or equal to.
    pub below: bool,
    pub value: i64,
}

/// What an observer looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct View {
    pub table: Table,
    pub filter: Option<Filter>,
    pub who: Who,
}

impl View {
    pub fn path(&self) -> String {
        let path = format!("/rest/v1/{}", self.table.name());
        match self.filter {
            None => path,
            Some(Filter {
                column,
                below,
                value,
            }) => {
                let operator = if below { "lt" } else { "eq" };
                format!("{path}?{column}={operator}.{value}")
            }
        }
    }

    /// Whether the relay asks PostgreSQL for it: an event is then a round, and keys are opaque.
    pub fn asks(&self) -> bool {
        self.table == Table::Doc
    }

    pub fn passes(&self, row: &Row) -> bool {
        self.filter.is_none_or(|filter| {
            let number = row.number(filter.column);
            if filter.below {
                number < filter.value
            } else {
                number == filter.value
            }
        })
    }

    /// The statement that shows it, to be run as [`Self::role`].
    pub fn select(&self) -> String {
        let condition = self.filter.map_or(String::new(), |filter| {
            let operator = if filter.below { "<" } else { "=" };
            format!(" where {} {operator} {}", filter.column, filter.value)
        });
        format!(
            "select row_to_json(t)::text from {} t{condition}",
            self.table.name()
        )
    }

    pub fn role(&self) -> (&'static str, String) {
        match self.who {
            Who::Visitor => ("hc_visitor", "{}".into()),
            Who::Tenant(tenant) => ("hc_member", format!("{{\"tenant\":\"t{tenant}\"}}")),
        }
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as {:?}", self.path(), self.who)
    }
}
