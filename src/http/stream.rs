//! `/rest/v1/{table}` for readers that want events: from a request to a view.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use futures::{FutureExt, TryStreamExt};
use http_body_util::{BodyExt, StreamBody};
use hyper::StatusCode;
use hyper::body::Frame;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts as Head;

use super::problem::Problem;
use super::rows::{self, Rows};
use super::{Response, body};
use crate::cursor::Name;
use crate::filter::{Condition, Facts, Matcher, Refusal, decidable};
use crate::postgres::pool::Lease;
use crate::postgres::quote;
use crate::postgres::transaction::{self, Context, Terms};
use crate::postgres::untyped::untyped;
use crate::rows::Error;
use crate::rows::plan::{Read, Selection};
use crate::rows::request::{Range, Request};
use crate::rows::statement::{self, Key, Statement};
use crate::schema::catalog::Column;
use crate::subscription::{Opener, Parts, Source, Subscription, Unavailable};
use crate::view::{Definition, View};

/// Answers a request for a live view. What the URL can never mean is a 400; what may heal is a
/// stream that says so and ends, because an EventSource gives up for ever on anything but 200.
pub async fn respond(rows: &Arc<Rows>, parts: &Parts, head: &Head, table: &str) -> Response {
    let token = token(head);
    let request = match rows::request(rows, head, table) {
        Ok(request) => request,
        Err(problem) => return problem.into_response(),
    };
    match make(rows, &request).await {
        Ok(view) => {
            let (rows, request) = (Arc::clone(rows), Arc::new(request));
            let opener: Opener = Arc::new(move || {
                let (rows, request) = (Arc::clone(&rows), Arc::clone(&request));
                async move {
                    // Called when the view has become worthless: the table may have changed.
                    let _old_picture_serves = rows.catalog.reload().await;
                    make(&rows, &request).await.map_err(|cannot| match cannot {
                        Cannot::Ever(problem) | Cannot::Now(problem) => problem.unavailable(),
                    })
                }
                .boxed()
            });
            let source = Source::View(opener);
            stream(Subscription::new(parts.clone(), source, token, Some(view)))
        }
        Err(Cannot::Ever(problem)) => problem.into_response(),
        Err(Cannot::Now(problem)) => closed(token.as_deref(), &problem.unavailable()),
    }
}

/// The resume point: the header, or the query where a page had to make a new `EventSource`.
#[must_use]
pub fn token(head: &Head) -> Option<String> {
    let header = head
        .headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok())
        .map(str::to_owned);
    let query = || {
        let pairs = form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes());
        pairs
            .into_iter()
            .find_map(|(name, value)| (name == "last_event_id").then(|| value.into_owned()))
    };
    header.or_else(query).filter(|token| !token.is_empty())
}

/// A subscription as a response.
#[must_use]
pub fn stream(subscription: Subscription) -> Response {
    let frames = stream::unfold(subscription, |mut subscription| async move {
        let frame = subscription.next().await?;
        Some((Ok(Frame::data(frame)), subscription))
    });
    events(BodyExt::boxed_unsync(StreamBody::new(frames)))
}

/// A stream that says why there is none, and ends.
#[must_use]
pub fn closed(token: Option<&str>, why: &Unavailable) -> Response {
    let frame: Bytes = Subscription::unavailable(token, why);
    events(body::full(frame))
}

fn events(body: super::Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-transform"),
    );
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Why there is no view.
enum Cannot {
    /// The URL can never mean one.
    Ever(Problem),
    /// It may, later.
    Now(Problem),
}

async fn make(rows: &Rows, request: &Request) -> Result<View, Cannot> {
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
    let matcher = matcher(rows, &read).await?;
    // The state is read as whole rows, as images are, and cut to the columns by the same code.
    let whole = Read {
        select: Selection::All,
        ..read.clone()
    };
    let statement = statement::select_rows(&whole, Key::Without);
    let name = name(&read, &statement);
    let columns = match read.select {
        Selection::All => None,
        Selection::Columns(columns) => Some(
            columns
                .into_iter()
                .map(|output| (output.column, output.name))
                .collect(),
        ),
    };
    let table = read.table;
    Ok(View::new(
        name,
        Definition {
            table,
            matcher,
            columns,
            statement,
        },
    ))
}

/// Everything that decides what is shown: the table (by oid: a new one of the same name is another),
/// the rows and their order, the columns.
fn name(read: &Read, statement: &Statement) -> Name {
    let oid = read.table.oid.to_string();
    let mut parts = vec!["view", &oid, &statement.sql];
    parts.extend(statement.params.iter().map(String::as_str));
    if let Selection::Columns(columns) = &read.select {
        parts.push("columns");
        for output in columns {
            parts.extend([output.column.as_str(), output.name.as_str()]);
        }
    }
    Name::of(parts)
}

fn possible(read: &Read) -> Result<(), Cannot> {
    let table = &read.table;
    let never = |message: &str, hint: String| {
        let status = StatusCode::BAD_REQUEST;
        Err(Cannot::Ever(
            Problem::new(status, "PGRST127", message).hint(hint),
        ))
    };
    let not_now = |message: String, hint: String| {
        let status = StatusCode::BAD_REQUEST;
        Err(Cannot::Now(
            Problem::new(status, "PGRST205", message).hint(hint),
        ))
    };
    if read.range != Range::ALL {
        return never(
            "a window cannot be live",
            "stream without limit, offset and Range, or filter by a column".into(),
        );
    }
    if !read.select.is_plain() {
        return never(
            "paths and casts in select cannot be live",
            "name whole columns in select".into(),
        );
    }
    if !table.watched {
        return not_now(
            format!("{} is not watched, so it has no stream", table.qualified()),
            format!("rowcast watch {}", table.name),
        );
    }
    if table.row_security {
        return not_now(
            format!(
                "{} has row-level security that applies to this relay, and streams do not follow it yet",
                table.qualified()
            ),
            "let the relay log in as a role that sees every row, or read without text/event-stream"
                .into(),
        );
    }
    let shown: Vec<&Column> = match &read.select {
        Selection::All => table.columns.iter().collect(),
        Selection::Columns(columns) => columns
            .iter()
            .filter_map(|output| table.column(&output.column))
            .collect(),
    };
    if let Some(column) = shown.iter().find(|column| !column.selectable) {
        return not_now(
            format!(
                "permission denied for column {} of {}",
                column.name,
                table.qualified()
            ),
            "name the columns in select, or grant select".into(),
        );
    }
    // Virtual columns are null in row images, and reg* types print by the reader's search_path.
    let unstable = |column: &&&Column| column.virtual_ || column.base.starts_with("reg");
    if let Some(column) = shown.iter().find(unstable) {
        return never(
            &format!(
                "column {} cannot be live: row images do not hold its value",
                column.name
            ),
            "name the other columns in select".into(),
        );
    }
    Ok(())
}

/// The filter, with its values as PostgreSQL reads them.
async fn matcher(rows: &Rows, read: &Read) -> Result<Matcher, Cannot> {
    let refused = |refusal: &Refusal| Cannot::Ever(Problem::of_refusal(refusal));
    let conditions: Option<Vec<&Condition>> = read.plain_conditions().collect();
    let conditions = conditions.ok_or_else(not_plain)?;
    let mut kinds = Vec::new();
    let mut casts = Vec::new();
    let mut values = Vec::new();
    for condition in &conditions {
        let name = &condition.column;
        let column = read.table.column(name).filter(|column| !column.virtual_);
        let column = column.ok_or_else(|| refused(&Refusal::Type(name.clone())))?;
        let facts = Facts {
            base: &column.base,
            byte_ordered: column.byte_ordered,
            deterministic: column.deterministic,
        };
        kinds.push(decidable(condition, facts).map_err(|refusal| refused(&refusal))?);
        for value in condition.values() {
            values.push(value.clone());
            let place = values.len();
            casts.push(format!(
                "pg_catalog.to_json(${place}::text::{})::text",
                cast(column)
            ));
        }
    }
    let mut json = canonical(rows, &casts, &values).await?.into_iter();
    let canonical: Vec<Vec<String>> = conditions
        .iter()
        .map(|condition| json.by_ref().take(condition.values().len()).collect())
        .collect();
    let conditions = conditions.into_iter().zip(kinds).zip(&canonical);
    let conditions = conditions.map(|((condition, kind), json)| (condition, kind, json.as_slice()));
    Matcher::new(conditions).ok_or_else(not_plain)
}

/// The filter is more than comparisons of whole columns.
fn not_plain() -> Cannot {
    let problem = Problem::new(
        StatusCode::BAD_REQUEST,
        "PGRST127",
        "this filter cannot be live",
    );
    Cannot::Ever(problem)
}

/// The type that a literal beside the column gets: the column's without domains and modifiers.
fn cast(column: &Column) -> String {
    match column.base.as_str() {
        "enum" => column.type_name.clone(),
        base => quote::qualified("pg_catalog", base),
    }
}

async fn canonical(
    rows: &Rows,
    casts: &[String],
    values: &[String],
) -> Result<Vec<String>, Cannot> {
    if casts.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!("select array[{}]", casts.join(", "));
    let asked = async {
        let lease = Lease::take(&rows.pool).await?;
        let context = Context::default();
        transaction::run(
            lease,
            Terms::read(&context, rows.statement_timeout),
            async |client| {
                let answer = client.query_typed_raw(&sql, untyped(values)).await?;
                let answer: Vec<tokio_postgres::Row> = answer.try_collect().await?;
                Ok(answer
                    .first()
                    .map(|row| row.try_get(0))
                    .transpose()?
                    .unwrap_or_default())
            },
        )
        .await
    };
    asked.await.map_err(|error: Error| {
        let problem = rows::problem(&error);
        // A value that is none of its type never will be; a database that is away comes back.
        if problem.status.is_client_error() {
            Cannot::Ever(problem)
        } else {
            Cannot::Now(problem)
        }
    })
}
