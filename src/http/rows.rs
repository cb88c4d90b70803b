//! `GET HEAD POST PATCH DELETE /rest/v1/{table}`: rows in and out, once.
//!
//! Statuses and headers of the PostgREST dialect around what `rows` does. Live views of the same
//! URLs are not answered here.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{
    CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, ORIGIN,
};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};

use super::problem::{Caller, JSON, Problem};
use super::{Response, body};
use crate::causes::Causes;
use crate::config::TxEnd;
use crate::postgres::pool::Pool;
use crate::postgres::transaction::{Context, Terms};
use crate::rows::Error;
use crate::rows::execute::{self, Check, Page, Written};
use crate::rows::plan::{Plan, Read};
use crate::rows::request::{Request, Resolution, Return, Shape, Verb};
use crate::rows::statement::{self, Key, Statement};
use crate::schema::catalog;

/// The transaction id of a write; the same text comes as `txid` in the streams.
pub const TXID: HeaderName = HeaderName::from_static("rowcast-txid");

const ALLOW: &str = "GET, HEAD, POST, PATCH, DELETE, OPTIONS";
const OBJECT: HeaderValue =
    HeaderValue::from_static("application/vnd.pgrst.object+json; charset=utf-8");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// What requests for rows are answered from.
#[derive(Debug)]
pub struct Rows {
    /// Connections of the API's login.
    pub pool: Pool,
    /// The tables that there are for the API.
    pub catalog: Arc<catalog::Handle>,
    /// Rows in one answer at most.
    pub max_rows: u64,
    /// Longest time for one statement.
    pub statement_timeout: Duration,
    /// How transactions end.
    pub tx_end: TxEnd,
}

/// Answers a request for rows of `table`, which is decoded.
pub async fn respond(service: &Rows, parts: &Parts, table: &str, body: Bytes) -> Response {
    match answer(service, parts, table, &body).await {
        Ok(response) => response,
        Err(problem) => problem.into_response(),
    }
}

async fn answer(
    service: &Rows,
    parts: &Parts,
    table: &str,
    body: &[u8],
) -> Result<Response, Problem> {
    if matches!(verb(&parts.method)?, Verb::Insert | Verb::Update) {
        json_body(&parts.headers)?;
    }
    let request = request(service, parts, table)?;
    if !matches!(request.shape, Some(Shape::Array | Shape::Object)) {
        return Err(Problem::not_acceptable());
    }
    match prepare(service, &request, body).await? {
        Prepared::Read(read) => {
            let response = show(service, &request, read).await;
            let response = response.map_err(|error| problem(&error))?;
            Ok(response)
        }
        Prepared::Write(plan, statement) => change(service, &request, &plan, statement)
            .await
            .map_err(|error| problem(&error)),
    }
}

/// What a request says.
///
/// # Errors
/// A [`Problem`] with the request itself.
pub fn request(service: &Rows, parts: &Parts, table: &str) -> Result<Request, Problem> {
    let verb = verb(&parts.method)?;
    let profile = match verb {
        Verb::Read => "accept-profile",
        _ => "content-profile",
    };
    let served = service.catalog.schema();
    if joined(&parts.headers, profile).is_some_and(|schema| schema != served) {
        return Err(Problem::schema(served));
    }
    let query = parts.uri.query().unwrap_or_default();
    Request::parse(verb, table, query, |name| joined(&parts.headers, name))
        .map_err(|error| problem(&error))
}

fn verb(method: &Method) -> Result<Verb, Problem> {
    match *method {
        Method::GET | Method::HEAD => Ok(Verb::Read),
        Method::POST => Ok(Verb::Insert),
        Method::PATCH => Ok(Verb::Update),
        Method::DELETE => Ok(Verb::Delete),
        _ => Err(Problem::verb(ALLOW)),
    }
}

/// A page of a foreign site can send a form, plain text or no type at all without asking first;
/// it cannot send a type of ours. Without a type we take a body only from what is no browser: a
/// browser names the origin of every POST.
///
/// # Errors
/// A [`Problem`] with the type.
pub fn json_body(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return match headers.get(ORIGIN) {
            Some(_) => Err(Problem::media_type().details("a browser sent no Content-Type")),
            None => Ok(()),
        };
    };
    let text = value.to_str().unwrap_or_default();
    let media = text.split(';').next().unwrap_or_default().trim();
    let media = media.to_ascii_lowercase();
    if media == "application/json" || media.starts_with("application/vnd.pgrst.") {
        return Ok(());
    }
    Err(Problem::media_type())
}

/// All headers of a name as one, as RFC 9110 permits for lists.
fn joined(headers: &HeaderMap, name: &str) -> Option<String> {
    let values: Vec<_> = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    (!values.is_empty()).then(|| values.join(","))
}

/// What a request means, ready to be run.
enum Prepared {
    Read(Read),
    /// Without a statement there is nothing to do.
    Write(Plan, Option<Statement>),
}

fn prepared(request: &Request, catalog: &catalog::Catalog, body: &[u8]) -> Result<Prepared, Error> {
    match Plan::of(request, catalog)? {
        Plan::Read(read) => Ok(Prepared::Read(read)),
        plan => {
            let statement = statement::write_rows(&plan, body)?;
            Ok(Prepared::Write(plan, statement))
        }
    }
}

async fn prepare(service: &Rows, request: &Request, body: &[u8]) -> Result<Prepared, Problem> {
    looked_up(service, |catalog| prepared(request, catalog, body)).await
}

/// Looks names up. One that is not in the catalogue is looked up again in a new one, so that a table
/// or column is found that was made a moment ago.
///
/// # Errors
/// A [`Problem`] with a name, or with reading the catalogue.
pub async fn looked_up<T>(
    service: &Rows,
    look: impl Fn(&catalog::Catalog) -> Result<T, Error>,
) -> Result<T, Problem> {
    match look(&service.catalog.current()) {
        Err(error) if error.is_about_catalog() => {
            let catalog = service.catalog.reload().await.map_err(|error| {
                tracing::warn!(error = %Causes(&error), "the catalogue could not be read");
                Problem::of_catalog(&error)
            })?;
            look(&catalog).map_err(|error| problem(&error))
        }
        other => other.map_err(|error| problem(&error)),
    }
}

async fn show(service: &Rows, request: &Request, mut read: Read) -> Result<Response, Error> {
    read.range = read.range.at_most(service.max_rows);
    let select = statement::select_rows(&read, Key::Without);
    let count = read.count.then(|| statement::count_rows(&read));
    let context = Context::default();
    let terms = Terms::read(&context, service.statement_timeout);
    let page = execute::read(&service.pool, terms, &select, count.as_ref()).await?;
    let offset = read.range.offset;
    if let Some(total) = page.total.filter(|total| offset > *total) {
        return Err(Error::PastEnd { offset, total });
    }
    let Page { rows, total } = page;
    if request.shape == Some(Shape::Object) && rows.count != 1 {
        return Err(Error::NotSingle { rows: rows.count });
    }
    let mut response = json(request, rows.json);
    if total.is_some_and(|total| rows.count < total) {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_RANGE, content_range(offset, rows.count, total));
    applied(headers, [("count=exact", read.count)]);
    Ok(response)
}

async fn change(
    service: &Rows,
    request: &Request,
    plan: &Plan,
    statement: Option<Statement>,
) -> Result<Response, Error> {
    let preferences = &request.preferences;
    let strict = preferences.strict == Some(true);
    let check = Check {
        single: request.shape == Some(Shape::Object),
        most: preferences
            .max_affected
            .filter(|_| strict && request.verb != Verb::Insert),
    };
    let returning = preferences.returning == Some(Return::Representation);
    let context = Context::default();
    let terms = Terms::write(&context, service.statement_timeout);
    let written = if let Some(statement) = &statement {
        execute::write(&service.pool, terms, statement, returning, check).await?
    } else {
        check.holds(0)?;
        Written::default()
    };
    Ok(receipt(request, plan, written, check))
}

/// The response to a write that was committed.
fn receipt(request: &Request, plan: &Plan, written: Written, check: Check) -> Response {
    let preferences = &request.preferences;
    let returning = preferences.returning == Some(Return::Representation);
    let mut response = if returning {
        json(request, written.rows.json)
    } else {
        Response::new(body::empty())
    };
    *response.status_mut() = match request.verb {
        Verb::Insert if written.inserted > 0 => StatusCode::CREATED,
        Verb::Insert => StatusCode::OK,
        _ if returning => StatusCode::OK,
        _ => StatusCode::NO_CONTENT,
    };
    let total = preferences.count.then_some(written.affected);
    let shown = match request.verb {
        Verb::Update => written.affected,
        _ => 0,
    };
    let status = response.status();
    let headers = response.headers_mut();
    headers.insert(CONTENT_RANGE, content_range(0, shown, total));
    if !returning && status != StatusCode::NO_CONTENT {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
    }
    if let Some(txid) = written.txid.as_deref()
        && let Ok(value) = HeaderValue::from_str(txid)
    {
        headers.insert(TXID, value);
    }
    let insert = match plan {
        Plan::Insert(insert) => Some(insert),
        _ => None,
    };
    let conflict = insert.and_then(|insert| insert.conflict.as_ref());
    let resolved = |wanted| conflict.is_some_and(|conflict| conflict.resolution == wanted);
    let missing = |wanted| insert.is_some() && preferences.missing_default == Some(wanted);
    let most = format!("max-affected={}", check.most.unwrap_or_default());
    applied(
        headers,
        [
            ("resolution=merge-duplicates", resolved(Resolution::Merge)),
            ("resolution=ignore-duplicates", resolved(Resolution::Ignore)),
            ("missing=default", missing(true)),
            ("missing=null", missing(false)),
            ("return=representation", returning),
            (
                "return=minimal",
                preferences.returning == Some(Return::Minimal),
            ),
            ("count=exact", preferences.count),
            ("handling=strict", preferences.strict == Some(true)),
            ("handling=lenient", preferences.strict == Some(false)),
            (most.as_str(), check.most.is_some()),
        ],
    );
    response
}

/// Rows with what goes around them.
fn json(request: &Request, rows: String) -> Response {
    let (text, media) = match request.shape {
        Some(Shape::Object) => (rows, OBJECT),
        _ => (format!("[{rows}]"), JSON),
    };
    let mut response = Response::new(body::full(text));
    response.headers_mut().insert(CONTENT_TYPE, media);
    response
}

/// `0-14/*`, or `*/*` without rows.
fn content_range(offset: u64, rows: u64, total: Option<u64>) -> HeaderValue {
    let total = total.map_or_else(|| "*".to_owned(), |total| total.to_string());
    let text = match rows.checked_sub(1) {
        Some(before_last) => format!("{offset}-{}/{total}", offset + before_last),
        None => format!("*/{total}"),
    };
    HeaderValue::from_str(&text).expect("digits and signs are a header's")
}

fn applied<const N: usize>(headers: &mut HeaderMap, preferences: [(&str, bool); N]) {
    let honoured: Vec<_> = preferences
        .into_iter()
        .filter_map(|(name, honoured)| honoured.then_some(name))
        .collect();
    if !honoured.is_empty() {
        let value = HeaderValue::from_str(&honoured.join(", "));
        headers.insert(PREFERENCE_APPLIED, value.expect("ours are plain ASCII"));
    }
}

/// What the outside hears of an error; the log hears its causes when the fault is ours.
pub fn problem(error: &Error) -> Problem {
    let problem = Problem::of_rows(error, Caller::Anonymous);
    if problem.status.is_server_error() {
        tracing::warn!(
            code = &*problem.code,
            error = %Causes(error),
            "a request for rows failed"
        );
    }
    problem
}
