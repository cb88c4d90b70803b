//! `/rest/v1/{table}` for readers that want events: from a request to a view.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts as Head;

use super::problem::Problem;
use super::rows::Rows;
use super::{Response, body};
use crate::cursor::Name;
use crate::filter::{Facts, Kind, Matcher, decidable};
use crate::postgres::quote;
use crate::postgres::transaction::{Mode, Transaction};
use crate::postgres::value::Untyped;
use crate::rows::plan::{Action, Plan};
use crate::rows::request::Request;
use crate::rows::{Error, statement};
use crate::schema::catalog::{Column, Table};
use crate::subscription::{Opener, Parts, Source, Subscription, Unavailable};
use crate::view::{Definition, View};

/// Answers a request for a live view. What the URL can never mean is a 400; what may heal is a
/// stream that says so and ends, because an EventSource gives up for ever on anything but 200.
pub async fn respond(rows: &Arc<Rows>, parts: &Parts, head: &Head, table: &str) -> Response {
    let token = token(head);
    let request = match rows.request(head, table) {
        Ok(request) => request,
        Err(error) => return Problem::from(&error).respond(),
    };
    match make(rows, &request).await {
        Ok(view) => {
            let (rows, request) = (Arc::clone(rows), Arc::new(request));
            let opener: Opener = Arc::new(move || {
                let (rows, request) = (Arc::clone(&rows), Arc::clone(&request));
                async move {
                    // Called when the view has become worthless: the table may have changed.
                    let _old_picture_serves = rows.catalog.reload().await;
                    make(&rows, &request)
                        .await
                        .map_err(|problem| match problem {
                            Cannot::Ever(problem) | Cannot::Now(problem) => problem.unavailable(),
                        })
                }
                .boxed()
            });
            stream(Subscription::new(
                parts.clone(),
                Source::View(opener),
                token,
                Some(view),
            ))
        }
        Err(Cannot::Ever(problem)) => problem.respond(),
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
    let plan = match rows.plan(request, b"").await {
        Ok(plan) => plan,
        Err(error @ Error::NoTable { .. }) => return Err(Cannot::Now(Problem::from(&error))),
        Err(error) => return Err(Cannot::Ever(Problem::from(&error))),
    };
    possible(&plan)?;
    let matcher = matcher(rows, &plan).await?;
    let statement::Statement { sql, parameters } =
        statement::rows(&plan.table, None, &plan.conditions, &plan.order);
    let name = name(&plan, &sql, &parameters);
    let definition = Definition {
        table: Arc::clone(&plan.table),
        matcher,
        columns: plan.columns,
        sql,
        parameters,
    };
    Ok(View::new(name, definition))
}

/// Everything that decides what is shown: the table (by oid: a new one of the same name is another),
/// the rows and their order, the columns.
fn name(plan: &Plan, sql: &str, parameters: &[Untyped]) -> Name {
    let oid = plan.table.oid.to_string();
    let columns = plan.columns.as_ref().map_or_else(
        || "*".to_owned(),
        |columns| serde_json::json!(columns).to_string(),
    );
    let fixed = ["view", &oid, sql, &columns];
    Name::of(
        fixed
            .into_iter()
            .chain(parameters.iter().map(|value| value.0.as_str())),
    )
}

fn possible(plan: &Plan) -> Result<(), Cannot> {
    let table = &plan.table;
    let never = |message: &str, hint: String| {
        let status = hyper::StatusCode::BAD_REQUEST;
        Err(Cannot::Ever(
            Problem::new(status, "PGRST127", message).hint(hint),
        ))
    };
    let not_now = |message: String, hint: String| {
        let status = hyper::StatusCode::BAD_REQUEST;
        Err(Cannot::Now(
            Problem::new(status, "PGRST205", message).hint(hint),
        ))
    };
    if let Action::Read { limit, offset, .. } = &plan.action
        && (limit.is_some() || *offset > 0)
    {
        return never(
            "a window cannot be live",
            "stream without limit, offset and Range, or filter by a column".into(),
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
    let shown: Vec<&Column> = match &plan.columns {
        None => table.columns.iter().collect(),
        Some(columns) => columns
            .iter()
            .filter_map(|(name, _)| table.column(name))
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
async fn matcher(rows: &Rows, plan: &Plan) -> Result<Matcher, Cannot> {
    let mut kinds = Vec::new();
    let mut casts = Vec::new();
    let mut values: Vec<Untyped> = Vec::new();
    for condition in &plan.conditions {
        let column = column(&plan.table, &condition.column)?;
        let facts = Facts {
            base: &column.base,
            byte_ordered: column.byte_ordered,
            deterministic: column.deterministic,
        };
        let kind = decidable(condition, facts)
            .map_err(|refusal| Cannot::Ever(Problem::of_refusal(&refusal)))?;
        if column.virtual_ {
            let refusal = crate::filter::Refusal::Type(column.name.clone());
            return Err(Cannot::Ever(Problem::of_refusal(&refusal)));
        }
        kinds.push(kind);
        for value in condition.values() {
            values.push(Untyped(value.clone()));
            casts.push(format!(
                "to_json(${}::text::{})::text",
                values.len(),
                cast(column)
            ));
        }
    }
    let mut json = canonical(rows, &casts, &values).await?.into_iter();
    let canonical: Vec<Vec<String>> = plan
        .conditions
        .iter()
        .map(|condition| json.by_ref().take(condition.values().len()).collect())
        .collect();
    let conditions = plan.conditions.iter().zip(&kinds).zip(&canonical);
    Matcher::new(
        conditions
            .map(|((condition, kind), json): ((_, &Kind), _)| (condition, *kind, json.as_slice())),
    )
    .ok_or_else(|| {
        let status = hyper::StatusCode::BAD_REQUEST;
        Cannot::Ever(Problem::new(
            status,
            "PGRST127",
            "this filter cannot be live",
        ))
    })
}

fn column<'t>(table: &'t Table, name: &str) -> Result<&'t Column, Cannot> {
    table.column(name).ok_or_else(|| {
        let error = Error::NoColumn {
            table: table.name.clone(),
            column: name.to_owned(),
        };
        Cannot::Ever(Problem::from(&error))
    })
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
    values: &[Untyped],
) -> Result<Vec<String>, Cannot> {
    if casts.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!("select array[{}]", casts.join(", "));
    let asked = async {
        let transaction = Transaction::begin(&rows.pool, Mode::Read, rows.limits.timeout).await?;
        let values: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
            values.iter().map(|value| value as _).collect();
        let row = transaction.query_one(&sql, &values).await?;
        transaction.commit().await?;
        Ok(row.try_get(0)?)
    };
    asked.await.map_err(|error: Error| {
        let problem = Problem::from(&error);
        // A value that is none of its type never will be; a database that is away comes back.
        if problem.status.is_client_error() {
            Cannot::Ever(problem)
        } else {
            Cannot::Now(problem)
        }
    })
}
