//! From a request to a view: what of it the relay can decide, and what it must ask PostgreSQL.
//!
//! If the watcher's role sees every row and the filter is made of comparisons that the relay
//! repeats exactly, row images decide. Everything else is asked, as the watcher.

use std::borrow::Cow;
use std::sync::Arc;

use futures::TryStreamExt;
use hyper::StatusCode;
use tokio::sync::OnceCell;
use tokio_postgres::Client;

use super::context;
use super::problem::{Problem, logged};
use super::rows::{self, Rows};
use crate::auth::Identity;
use crate::cursor::Name;
use crate::filter::{Condition, Facts, Filter, Kind, Matcher, Refusal, decidable};
use crate::postgres::pool::Lease;
use crate::postgres::quote;
use crate::postgres::transaction::{self, Context, Terms};
use crate::postgres::untyped::untyped;
use crate::rows::Error;
use crate::rows::plan::{Read, Selection};
use crate::rows::request::{Preferences, Range, Request};
use crate::rows::statement::{self, Key};
use crate::schema::catalog::{Catalog, Column, Table};
use crate::view::asking::Asking;
use crate::view::image::Images;
use crate::view::keys::{Hasher, Keys};
use crate::view::{Definition, Sight, View};

/// Why there is no view.
#[derive(Debug, Clone)]
pub enum Cannot {
    /// The URL can never mean one.
    Ever(Problem),
    /// It may, later.
    Now(Problem),
}

/// The view that `request` means to `identity`.
pub(super) async fn make(
    rows: &Rows,
    request: &Request,
    identity: &Identity,
) -> Result<View, Cannot> {
    let read = rows::looked_up(rows, |catalog| Read::of(request, catalog)).await;
    let read = read.map_err(|problem| {
        // A table that is not there may be made; a column that the table lacks is a mistake.
        if problem.status == StatusCode::NOT_FOUND || problem.status.is_server_error() {
            Cannot::Now(problem)
        } else {
            Cannot::Ever(problem)
        }
    })?;
    possible(&read)?;
    in_utc(&request.preferences)?;
    let candidates: Vec<Option<Candidate<'_>>> = read
        .plain_conditions()
        .map(|condition| Candidate::of(condition?, &read.table))
        .collect();
    let catalog = rows.catalog.current();
    // Apart, since it is large and every stream that opens has one.
    let asking = Box::pin(look(rows, &read, &candidates, identity));
    // A function that is called before each request is called before each stream.
    let seen = if rows.pre_request.is_none() {
        let name = question(&read, identity);
        rows.looks.look(name, catalog.edition(), asking).await?
    } else {
        Arc::new(asking.await?)
    };
    permitted(&read, &seen, identity)?;
    let mut values = seen.values.iter();
    let decided: Vec<_> = candidates
        .iter()
        .flatten()
        .map(|candidate| {
            let values: Vec<String> = values
                .by_ref()
                .take(candidate.condition.values().len())
                .cloned()
                .collect();
            (candidate, values)
        })
        .collect();
    let conditions = decided
        .iter()
        .map(|(candidate, values)| (candidate.condition, candidate.kind, values.as_slice()));
    let all_decided = candidates.iter().all(Option::is_some);
    let matcher = Matcher::new(conditions);
    let from_images =
        all_decided && matcher.is_some() && !seen.row_security && seen.sees_whole(&read);
    let context = watcher(rows, identity, &read.table.schema, seen.row_security);
    if from_images && let Some(matcher) = matcher {
        return Ok(by_images(read, context, matcher));
    }
    // What cannot be decided from images leaves nothing out. Nor does a filter under row-level
    // security: whether a row that is not seen is told as gone would tell what is in it.
    let may_match = matcher.filter(|_| !seen.row_security).unwrap_or_default();
    let view = by_asking(&read, context, may_match, seen.row_security, &catalog)?;
    let sensible = seen
        .sensible
        .get_or_try_init(|| sensible(rows, &view, identity));
    sensible.await?;
    Ok(view)
}

/// As whom a view is read. What a login of the role would set holds here as it does for reads, and a
/// function that is called before each request may look at any claim.
pub(super) fn watcher(
    rows: &Rows,
    identity: &Identity,
    schema: &str,
    row_security: bool,
) -> Context {
    let claims = row_security || rows.pre_request.is_some();
    let mut context = context::of_view(identity, schema, claims);
    let (settings, _timeout) = rows.role_settings(identity);
    context.settings.splice(0..0, settings);
    context.before.clone_from(&rows.pre_request);
    context
}

/// The same at the moment at which a stream begins, which belongs to one token: who has taken that back may know
/// it by `jti`, and it must not open what it could not read.
pub(super) fn newcomer(rows: &Rows, identity: &Identity, schema: &str) -> Context {
    let mut context = watcher(rows, identity, schema, true);
    let claims = identity.claims.to_string();
    let claims = (Cow::Borrowed("request.jwt.claims"), claims);
    context.settings.push(claims);
    context
}

/// A condition that row images decide, if its values are what they seem.
struct Candidate<'a> {
    condition: &'a Condition,
    kind: Kind,
    /// The type of its values, as SQL.
    cast: String,
}

impl<'a> Candidate<'a> {
    fn of(condition: &'a Condition, table: &Table) -> Option<Self> {
        let column = table.column(&condition.column)?;
        let kind = decidable(condition, facts(column)).ok()?;
        (!column.virtual_).then(|| Self {
            condition,
            kind,
            cast: cast(column),
        })
    }
}

/// What the watcher's role may see, and the filter's values as PostgreSQL reads them.
#[derive(Debug)]
pub struct Seen {
    row_security: bool,
    /// Whether the table's schema is open to the role: without it no column is seen, whatever is granted.
    schema: bool,
    columns: Vec<String>,
    values: Vec<String>,
    /// That PostgreSQL can run the statement, once somebody has tried.
    sensible: OnceCell<()>,
}

impl Seen {
    /// Whether images of whole rows may be read as the watcher, and tell everything that is shown.
    fn sees_whole(&self, read: &Read) -> bool {
        let all = read.table.columns.iter();
        let selectable = all
            .clone()
            .all(|column| self.columns.contains(&column.name));
        // Virtual columns are null in images, and reg* types print by the reader's search_path.
        let stable = |column: &Column| !column.virtual_ && !column.names_objects;
        let shown: Vec<&Column> = match &read.select {
            Selection::All => all.collect(),
            Selection::Columns(outputs) => outputs
                .iter()
                .map(|output| &output.column)
                .chain(&read.table.key)
                .filter_map(|name| read.table.column(name))
                .collect(),
        };
        selectable && read.select.is_plain() && shown.into_iter().all(stable)
    }
}

/// Changes are told as the log has them, in UTC, and so is the state before, and what a filter says of times. Whoever
/// insists on another zone is not left to read them as his.
fn in_utc(preferences: &Preferences) -> Result<(), Cannot> {
    match &preferences.timezone {
        Some(zone) if preferences.strict == Some(true) && !zone.eq_ignore_ascii_case("utc") => {
            let preference = format!("timezone={zone}");
            let details = format!("the times of a stream are in UTC: {preference}");
            let problem = Problem::of_rows(&Error::Preferences(vec![preference]));
            Err(Cannot::Ever(problem.details(details)))
        }
        _ => Ok(()),
    }
}

fn possible(read: &Read) -> Result<(), Cannot> {
    let table = &read.table;
    if read.range != Range::ALL {
        let problem = Problem::new(
            StatusCode::BAD_REQUEST,
            "PGRST127",
            "a window cannot be live",
        );
        return Err(Cannot::Ever(
            problem
                .details("limit, offset and Range of a stream")
                .hint("stream without them, or filter by a column"),
        ));
    }
    let not_now = |message: String, hint: String| {
        let status = StatusCode::BAD_REQUEST;
        Err(Cannot::Now(
            Problem::new(status, "PGRST205", message).hint(hint),
        ))
    };
    if matches!(table.kind, 'v' | 'm') {
        return not_now(
            format!("{} is a view, so it has no stream", table.qualified()),
            "watch the tables that it reads, and stream those".to_owned(),
        );
    }
    if !table.watched {
        return not_now(
            format!("{} is not watched, so it has no stream", table.qualified()),
            format!(
                "rowcast watch {}",
                quote::argument(&table.schema, &table.name)
            ),
        );
    }
    // It had one when it was watched.
    if table.key.is_empty() {
        return not_now(
            format!(
                "{} has no primary key any more, so it has no stream",
                table.qualified()
            ),
            format!(
                "alter table {} add primary key (...);",
                quote::qualified(&table.schema, &table.name)
            ),
        );
    }
    Ok(())
}

/// What decides the answer of [`look`] and of [`sensible`].
fn question(read: &Read, identity: &Identity) -> Name {
    let Read {
        table,
        select,
        conditions,
        order,
        ..
    } = read;
    let asked = format!("{select:?} {conditions:?} {order:?}");
    Name::of([
        table.oid.to_string().as_str(),
        identity.role.as_deref().unwrap_or_default(),
        if identity.verified { "verified" } else { "" },
        &identity.context_claims(),
        &asked,
    ])
}

/// A column that is shown and may not be seen will not be seen a moment later either, unless
/// somebody grants it.
fn permitted(read: &Read, seen: &Seen, identity: &Identity) -> Result<(), Cannot> {
    let refused = |message: String, hint: String| {
        Err(Cannot::Now(
            Problem::new(StatusCode::UNAUTHORIZED, "42501", message)
                .hint(hint)
                .seen_by(identity),
        ))
    };
    if !seen.schema {
        let schema = &read.table.schema;
        let role = identity.role.as_deref().map(quote::identifier);
        return refused(
            format!("permission denied for schema {schema}"),
            format!(
                "grant usage on schema {} to {};",
                quote::identifier(schema),
                role.as_deref().unwrap_or("the login of requests")
            ),
        );
    }
    let needed: Vec<&str> = match &read.select {
        Selection::All => read.table.columns.iter().map(|c| c.name.as_str()).collect(),
        Selection::Columns(outputs) => outputs.iter().map(|o| o.column.as_str()).collect(),
    };
    let key = read.table.key.iter().map(String::as_str);
    let missing = needed
        .into_iter()
        .chain(key)
        .find(|name| !seen.columns.iter().any(|column| column == name));
    let Some(missing) = missing else {
        return Ok(());
    };
    let table = read.table.qualified();
    let message = if seen.columns.is_empty() {
        format!("permission denied for table {table}")
    } else {
        format!("permission denied for column {missing} of {table}")
    };
    refused(
        message,
        "grant select on what is shown and on the primary key, or name other columns in select"
            .to_owned(),
    )
}

fn by_images(read: Read, context: Context, matcher: Matcher) -> View {
    // The state is read as whole rows, as images are, and cut to the columns by the same code.
    let whole = Read {
        select: Selection::All,
        ..read.clone()
    };
    let statement = statement::select_rows(&whole, Key::Without);
    let mut parts = name_parts("view", &read.table, &context);
    parts.push(statement.sql.clone());
    parts.extend(statement.params.iter().cloned());
    let columns = typed(&read);
    let chosen = match read.select {
        Selection::All => None,
        Selection::Columns(outputs) => Some(
            outputs
                .into_iter()
                .map(|output| (output.column, output.name))
                .collect::<Vec<_>>(),
        ),
    };
    if let Some(chosen) = &chosen {
        parts.push("columns".to_owned());
        for (column, output) in chosen {
            parts.extend([column.clone(), output.clone()]);
        }
    }
    let sight = Sight::Images(Images {
        key: read.table.key.clone(),
        matcher,
        columns: chosen,
    });
    let definition = Definition {
        table: read.table,
        context,
        columns,
        statement,
        sight,
    };
    View::new(Name::of(parts.iter().map(String::as_str)), definition)
}

fn by_asking(
    read: &Read,
    context: Context,
    may_match: Matcher,
    row_security: bool,
    catalog: &Catalog,
) -> Result<View, Cannot> {
    let table = &read.table;
    let mut key = table.key.iter().filter_map(|name| table.column(name));
    // Such a value does not become itself again from its text alone, or has another text in the log.
    if let Some(column) = key.find(|column| column.nested || column.names_objects) {
        let problem = Problem::new(
            StatusCode::BAD_REQUEST,
            "PGRST127",
            format!(
                "the primary key of {} has a column of type {}, by which rows cannot be asked for",
                table.qualified(),
                column.type_name
            ),
        );
        return Err(Cannot::Ever(problem.details("key types of streams")));
    }
    let statement = statement::select_rows(read, Key::With);
    let select = statement::select_keys(read);
    let mut parts = name_parts("asking", table, &context);
    parts.push(statement.sql.clone());
    parts.extend(statement.params.iter().cloned());
    let keys = if row_security {
        parts.push("hashed".to_owned());
        let table = table.oid.to_string();
        let identity = name_parts("key", &read.table, &context);
        let identity = identity.iter().map(String::as_str);
        Keys::Hashed(Hasher::new(
            catalog.key_secret(),
            identity.chain([table.as_str()]),
        ))
    } else {
        Keys::Plain
    };
    let policies = catalog.policies(table.oid).filter(|_| row_security);
    let asking = Asking {
        select,
        key: table.key.clone(),
        keys,
        may_match,
        policies: policies.cloned(),
        moving: moves(read),
    };
    let definition = Definition {
        table: Arc::clone(table),
        context,
        columns: typed(read),
        statement,
        sight: Sight::Asking(Arc::new(asking)),
    };
    let name = Name::of(parts.iter().map(String::as_str));
    Ok(View::new(name, definition))
}

/// A statement that PostgreSQL can never run, such as one that compares a number with a word, must
/// not become a stream that tries for ever.
async fn sensible(rows: &Rows, view: &View, identity: &Identity) -> Result<(), Cannot> {
    let statement = view.statement();
    let sql = format!("select from ({}) s limit 0", statement.sql);
    let tried = async {
        let lease = Lease::take_for(view.context().caller(), &rows.views).await?;
        let terms = Terms::read(view.context(), rows.statement_timeout);
        transaction::run(lease, terms, async |client: &Client| {
            let answer = client.query_typed_raw(&sql, untyped(&statement.params));
            let nothing: Vec<tokio_postgres::Row> = answer.await?.try_collect().await?;
            debug_assert!(nothing.is_empty());
            Ok::<(), Error>(())
        })
        .await
    };
    tried.await.map_err(|error| cannot(&error, identity))
}

/// A value that is none of its type never will be; a database that is away comes back, and so may a
/// permission.
fn cannot(error: &Error, identity: &Identity) -> Cannot {
    let problem = logged(error).seen_by(identity);
    let permission = matches!(
        problem.status,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
    );
    let gone = matches!(error, Error::UnknownTable { .. });
    if problem.status.is_client_error() && !permission && !gone {
        Cannot::Ever(problem)
    } else {
        Cannot::Now(problem)
    }
}

/// What decides to whom something is shown: the table (by oid: a new one of the same name is
/// another), the role, and the settings that its policies read.
fn name_parts(kind: &str, table: &Table, context: &Context) -> Vec<String> {
    let mut parts = vec![kind.to_owned(), table.oid.to_string()];
    parts.push(context.role.clone().unwrap_or_default());
    for (name, value) in &context.settings {
        parts.extend([name.to_string(), value.clone()]);
    }
    parts
}

/// Whether a filter means something else from one moment to the next, as `at=lt.now` does.
fn moves(read: &Read) -> bool {
    let conditions = read.conditions.iter().flat_map(Filter::conditions);
    conditions
        .filter_map(|condition| Some((condition, read.table.column(&condition.column)?)))
        .any(|(condition, column)| {
            matches!(decidable(condition, facts(column)), Err(Refusal::Moving(_)))
        })
}

fn facts(column: &Column) -> Facts<'_> {
    Facts {
        base: &column.base,
        byte_ordered: column.byte_ordered,
        deterministic: column.deterministic,
    }
}

/// Names and types of what is shown.
fn typed(read: &Read) -> Vec<(String, String)> {
    let Selection::Columns(outputs) = &read.select else {
        let columns = read.table.columns.iter();
        return columns
            .map(|column| (column.name.clone(), column.type_name.clone()))
            .collect();
    };
    let kind = |output: &crate::rows::plan::Output| match &output.cast {
        Some(cast) if cast.array => format!("{}[]", cast.name),
        Some(cast) => cast.name.clone(),
        None if !output.is_plain() => "json".to_owned(),
        None => read
            .table
            .column(&output.column)
            .map(|column| column.type_name.clone())
            .unwrap_or_default(),
    };
    outputs
        .iter()
        .map(|output| (output.name.clone(), kind(output)))
        .collect()
}

/// The type that a literal beside the column gets: the column's without domains and modifiers.
fn cast(column: &Column) -> String {
    match column.base.as_str() {
        "enum" => column.type_name.clone(),
        base => quote::qualified("pg_catalog", base),
    }
}

const SEES: &str = "select pg_catalog.row_security_active($1::pg_catalog.oid), \
     pg_catalog.has_schema_privilege( \
       (select c.relnamespace from pg_catalog.pg_class c where c.oid = $1::pg_catalog.oid), 'usage'), \
     array(select a.attname::pg_catalog.text from pg_catalog.pg_attribute a \
           where a.attrelid = $1::pg_catalog.oid and a.attnum > 0 and not a.attisdropped \
             and pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'select'))";

/// Asks as the watcher.
async fn look(
    rows: &Rows,
    read: &Read,
    candidates: &[Option<Candidate<'_>>],
    identity: &Identity,
) -> Result<Seen, Cannot> {
    let oid = read.table.oid.to_string();
    let mut casts = Vec::new();
    let mut values: Vec<&str> = vec![&oid];
    for candidate in candidates.iter().flatten() {
        for value in candidate.condition.values() {
            values.push(value);
            let place = values.len();
            let cast = &candidate.cast;
            casts.push(format!("pg_catalog.to_json(${place}::text::{cast})::text"));
        }
    }
    // One statement for both: a herd asks for every view that it shows.
    let sql = format!("{SEES}, array[{}]::text[]", casts.join(", "));
    // An answer that others share knows nothing of one token alone.
    let context = if rows.pre_request.is_none() {
        watcher(rows, identity, &read.table.schema, true)
    } else {
        newcomer(rows, identity, &read.table.schema)
    };
    let looked = async {
        let lease = Lease::take_for(context.caller(), &rows.views).await?;
        let terms = Terms::read(&context, rows.statement_timeout);
        transaction::run(lease, terms, async |client: &Client| {
            let answer = client.query_typed_raw(&sql, untyped(&values)).await?;
            let answer: Vec<tokio_postgres::Row> = answer.try_collect().await?;
            let seen = answer.first().ok_or(Error::Body("no answer"))?;
            // The catalogue does not know yet that somebody has dropped it.
            let gone = || Error::UnknownTable {
                schema: read.table.schema.clone(),
                name: read.table.name.clone(),
                near: None,
            };
            Ok(Seen {
                row_security: seen.try_get(0)?,
                schema: seen.try_get::<_, Option<bool>>(1)?.ok_or_else(gone)?,
                columns: seen.try_get(2)?,
                values: seen.try_get(3)?,
                sensible: OnceCell::new(),
            })
        })
        .await
    };
    looked.await.map_err(|error| cannot(&error, identity))
}

/// What to tell a stream that cannot be made again.
pub(super) fn told(cannot: Cannot) -> Problem {
    match cannot {
        Cannot::Ever(problem) | Cannot::Now(problem) => problem,
    }
}
