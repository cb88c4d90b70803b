//! `GET HEAD POST PUT PATCH DELETE /rest/v1/{table}`: rows in and out, once.
//!
//! Statuses and headers of the PostgREST dialect around what `rows` does. Live views of the same
//! URLs are not answered here.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
    LOCATION, ORIGIN,
};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::problem::{Caller, JSON, Problem};
use super::{Response, body, context, profile};
use crate::auth::Identity;
use crate::causes::Causes;
use crate::config::TxEnd;
use crate::postgres::pool::Pool;
use crate::postgres::transaction::{self, Context, Terms};
use crate::rows::execute::{self, Check, Counting, Page, Written};
use crate::rows::plan::{Plan, Read, Returning};
use crate::rows::request::{self, Count, Preferences, Request, Resolution, Return, Shape, Verb};
use crate::rows::response::Overrides;
use crate::rows::statement::{self, Key, Statement};
use crate::rows::{Drift, Error, body as payload};
use crate::schema::catalog::{self, Table};

/// The transaction id of a write; the same text comes as `txid` in the streams.
pub const TXID: HeaderName = HeaderName::from_static("rowcast-txid");

const ALLOW: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
/// Content type of a single object.
pub const OBJECT: HeaderValue =
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
    /// A function that is called before each request: its name as SQL.
    pub pre_request: Option<String>,
}

impl Rows {
    /// As whom `identity` reads and writes by this request. Without a `schema` it is the first.
    #[must_use]
    pub fn context(
        &self,
        identity: &Identity,
        schema: Option<&str>,
        parts: &Parts,
        preferences: &Preferences,
    ) -> Context {
        let mut context = context::of_request(identity, self.schema(schema), parts);
        let (settings, timeout) = self.role_settings(identity);
        context.settings.splice(0..0, settings);
        let timeout = timeout.as_millis().to_string();
        context
            .settings
            .push((Cow::Borrowed("statement_timeout"), timeout));
        let zone = preferences.timezone.clone();
        let zone = zone.map(|zone| (Cow::Borrowed("TimeZone"), zone));
        context.settings.extend(zone);
        context.before.clone_from(&self.pre_request);
        context
    }

    /// Whether requests may run as the role of `identity`. One that is not known is looked up again,
    /// so that a role is found that was made a moment ago.
    ///
    /// # Errors
    /// A [`Problem`] with the role, or with reading the catalogue.
    pub async fn admit(&self, identity: &Identity) -> Result<(), Problem> {
        let Some(name) = identity.role.as_deref() else {
            return Ok(());
        };
        let mut catalog = self.catalog.current();
        if catalog.role(name).is_none() {
            let reloaded = self.catalog.reload().await;
            catalog = reloaded.map_err(|error| Problem::of_catalog(&error))?;
        }
        let found = match catalog.role(name) {
            None => "there is no such role",
            Some(role) => match role.refused {
                None => return Ok(()),
                Some(refused) => refused,
            },
        };
        let message = "requests may not run as this role";
        Err(Problem::new(StatusCode::FORBIDDEN, "42501", message)
            .details(found)
            .hint("create role NAME nologin; grant NAME to the API's login;"))
    }

    /// What PostgreSQL would set for the role at a login, and the longest time for a statement.
    fn role_settings(&self, identity: &Identity) -> (Vec<(Cow<'static, str>, String)>, Duration) {
        let catalog = self.catalog.current();
        let role = identity.role.as_deref().and_then(|name| catalog.role(name));
        let Some(role) = role else {
            return (Vec::new(), self.statement_timeout);
        };
        let settings = role.settings.iter();
        let settings = settings.map(|(name, value)| (Cow::Owned(name.clone()), value.clone()));
        let timeout = role.statement_timeout.unwrap_or(self.statement_timeout);
        (settings.collect(), timeout.min(self.statement_timeout))
    }

    /// The schema of a request that names this one, or none.
    #[must_use]
    pub fn schema<'a>(&'a self, named: Option<&'a str>) -> &'a str {
        let first = || self.catalog.schemas().first().map(String::as_str);
        named.or_else(first).unwrap_or("public")
    }

    /// How a request's transaction ends, and what is said of it.
    #[must_use]
    pub fn end(&self, preferences: &Preferences) -> (transaction::End, Option<&'static str>) {
        end(self.tx_end, preferences.tx)
    }
}

/// Answers a request for rows of `table`, which is decoded.
pub async fn respond(
    service: &Rows,
    parts: &Parts,
    identity: &Identity,
    table: &str,
    body: Bytes,
) -> Response {
    match answer(service, parts, identity, table, &body).await {
        Ok(response) => response,
        Err(problem) => problem.seen_by(identity).into_response(),
    }
}

async fn answer(
    service: &Rows,
    parts: &Parts,
    identity: &Identity,
    table: &str,
    body: &[u8],
) -> Result<Response, Problem> {
    let body = match verb(&parts.method)? {
        Verb::Insert | Verb::Replace | Verb::Update => rows_body(&parts.headers, body)?,
        Verb::Read | Verb::Delete => Cow::Borrowed(body),
    };
    let request = request(service, parts, table)?;
    if !matches!(request.shape, Some(Shape::Array | Shape::Object)) {
        return Err(Problem::not_acceptable());
    }
    let schema = request.schema.as_deref();
    let context = service.context(identity, schema, parts, &request.preferences);
    let mut exchange = Exchange {
        service,
        request,
        context,
    };
    exchange.answer(&body).await
}

/// What a request says.
///
/// # Errors
/// A [`Problem`] with the request itself.
pub fn request(service: &Rows, parts: &Parts, table: &str) -> Result<Request, Problem> {
    let verb = verb(&parts.method)?;
    let query = parts.uri.query().unwrap_or_default();
    let request = Request::parse(verb, table, query, |name| joined(&parts.headers, name));
    Ok(Request {
        schema: profile::wanted(parts, service.catalog.schemas())?,
        ..request.map_err(|error| problem(&error))?
    })
}

fn verb(method: &Method) -> Result<Verb, Problem> {
    match *method {
        Method::GET | Method::HEAD => Ok(Verb::Read),
        Method::POST => Ok(Verb::Insert),
        Method::PUT => Ok(Verb::Replace),
        Method::PATCH => Ok(Verb::Update),
        Method::DELETE => Ok(Verb::Delete),
        _ => Err(Problem::verb(ALLOW)),
    }
}

/// The body of a write as JSON. Forms are taken as well, but not from a page: a foreign one could
/// have sent it without being asked whether it may (a form needs no preflight), and with the reader's
/// cookies. A request that carries `Authorization` was written by somebody who knows the token.
pub(super) fn rows_body<'a>(headers: &HeaderMap, body: &'a [u8]) -> Result<Cow<'a, [u8]>, Problem> {
    match media(headers).as_deref() {
        Some("application/x-www-form-urlencoded") => {
            if headers.contains_key(ORIGIN) && !headers.contains_key(AUTHORIZATION) {
                let problem = Problem::media_type();
                return Err(problem.details("a page may send a form only with Authorization"));
            }
            let json = payload::from_form(body).map_err(|error| problem(&error))?;
            Ok(Cow::Owned(json))
        }
        Some("text/csv") => Err(Problem::unsupported("CSV bodies")),
        _ => json_body(headers).map(|()| Cow::Borrowed(body)),
    }
}

/// The media type of the body, without its parameters.
fn media(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(CONTENT_TYPE)?.to_str().unwrap_or_default();
    let media = text.split(';').next().unwrap_or_default().trim();
    Some(media.to_ascii_lowercase())
}

/// A page of a foreign site can send a form, plain text or no type at all without asking first;
/// it cannot send a type of ours. Without a type we take a body only from what is no browser: a
/// browser names the origin of every POST.
///
/// # Errors
/// A [`Problem`] with the type.
pub fn json_body(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(media) = media(headers) else {
        return match headers.get(ORIGIN) {
            Some(_) => Err(Problem::media_type().details("a browser sent no Content-Type")),
            None => Ok(()),
        };
    };
    if media == "application/json" || media.starts_with("application/vnd.pgrst.") {
        return Ok(());
    }
    Err(Problem::media_type())
}

/// All headers of a name as one, as RFC 9110 permits for lists.
#[must_use]
pub fn joined(headers: &HeaderMap, name: &str) -> Option<String> {
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

impl Prepared {
    fn table(&self) -> &Arc<Table> {
        match self {
            Self::Read(read) => &read.table,
            Self::Write(plan, _) => plan.table(),
        }
    }
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

/// A request with what it is answered from.
struct Exchange<'a> {
    service: &'a Rows,
    request: Request,
    context: Context,
}

impl Exchange<'_> {
    /// Runs the request, and once more when it failed for a reason that is gone: a table that was
    /// changed between the catalogue and the statement, or a time zone that nobody knows. Nothing
    /// is committed when it is run again.
    async fn answer(&mut self, body: &[u8]) -> Result<Response, Problem> {
        let mut healed = false;
        loop {
            let look = |catalog: &catalog::Catalog| prepared(&self.request, catalog, body);
            let ready = looked_up(self.service, look).await?;
            let table = Arc::clone(ready.table());
            let error = match self.run(&ready).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            if error.is_about_time_zone() && self.forget_time_zone() {
                continue;
            }
            if healed || !self.has_changed(&table, &error).await {
                return Err(problem(&error));
            }
            healed = true;
        }
    }

    async fn run(&self, ready: &Prepared) -> Result<Response, Error> {
        match ready {
            Prepared::Read(read) => self.show(read).await,
            Prepared::Write(plan, statement) => self.change(plan, statement.as_ref()).await,
        }
    }

    /// Leaves a preference for an unknown time zone out, once.
    fn forget_time_zone(&mut self) -> bool {
        let strict = self.request.preferences.strict == Some(true);
        if strict || self.request.preferences.timezone.take().is_none() {
            return false;
        }
        let settings = &mut self.context.settings;
        settings.retain(|(name, _)| name != "TimeZone");
        true
    }

    /// Whether the table is another one than it was when the statement was made.
    async fn has_changed(&self, table: &Table, error: &Error) -> bool {
        let Some(drift) = error.drift() else {
            return false;
        };
        let Ok(catalog) = self.service.catalog.reload().await else {
            return false;
        };
        let now = catalog.table_by_oid(table.oid);
        drift == Drift::Plan || now.is_none_or(|now| **now != *table)
    }

    async fn show(&self, read: &Read) -> Result<Response, Error> {
        let service = self.service;
        let mut read = read.clone();
        read.range = read.range.at_most(service.max_rows);
        let select = statement::select_rows(&read, Key::Without);
        let counting = counting(&read, service.max_rows);
        let terms = Terms::read(&self.context, service.statement_timeout);
        let page = execute::read(&service.pool, terms, &select, counting.as_ref()).await;
        let Page {
            rows,
            total,
            overrides,
        } = page.map_err(|error| self.strictly(error))?;
        let offset = read.range.offset;
        // A guess may be too low, and then there are rows all the same.
        if let Some(total) = total.filter(|total| offset > *total && rows.count == 0) {
            return Err(Error::PastEnd { offset, total });
        }
        if self.request.shape == Some(Shape::Object) && rows.count != 1 {
            return Err(Error::NotSingle { rows: rows.count });
        }
        let count = rows.count;
        let mut response = json(&self.request, rows.json);
        if total.is_some_and(|total| count < total) {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        let headers = response.headers_mut();
        headers.insert(CONTENT_RANGE, content_range(offset, count, total));
        self.applied(headers, None, Check::default());
        apply(&mut response, &overrides);
        Ok(response)
    }

    async fn change(&self, plan: &Plan, statement: Option<&Statement>) -> Result<Response, Error> {
        let preferences = &self.request.preferences;
        let strict = preferences.strict == Some(true);
        let limited = matches!(self.request.verb, Verb::Update | Verb::Delete);
        let check = Check {
            single: self.request.shape == Some(Shape::Object),
            keyed: self.request.verb == Verb::Replace,
            most: preferences.max_affected.filter(|_| strict && limited),
        };
        let terms = Terms {
            end: self.service.end(preferences).0,
            ..Terms::write(&self.context, self.service.statement_timeout)
        };
        let returning = matches!(plan.returning(), Some(Returning::Rows { .. }));
        let written = if let Some(statement) = statement {
            execute::write(&self.service.pool, terms, statement, returning, check)
                .await
                .map_err(|error| self.strictly(error))?
        } else {
            check.holds(0)?;
            Written::default()
        };
        Ok(self.receipt(plan, written, check))
    }

    /// With `handling=strict`, a time zone that nobody knows is an unknown preference.
    fn strictly(&self, error: Error) -> Error {
        let preferences = &self.request.preferences;
        match &preferences.timezone {
            Some(zone) if preferences.strict == Some(true) && error.is_about_time_zone() => {
                Error::Preferences(vec![format!("timezone={zone}")])
            }
            _ => error,
        }
    }

    /// The response to a write that was committed.
    fn receipt(&self, plan: &Plan, written: Written, check: Check) -> Response {
        let request = &self.request;
        let returning = request.preferences.returning == Some(Return::Representation);
        let mut response = if returning {
            json(request, written.rows.json)
        } else {
            Response::new(body::empty())
        };
        *response.status_mut() = match request.verb {
            Verb::Insert if written.inserted > 0 => StatusCode::CREATED,
            Verb::Replace if returning && written.inserted > 0 => StatusCode::CREATED,
            Verb::Insert => StatusCode::OK,
            _ if returning => StatusCode::OK,
            _ => StatusCode::NO_CONTENT,
        };
        let total = request.preferences.count.map(|_| written.affected);
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
        if let Some(key) = &written.key {
            headers.insert(LOCATION, location(plan.table(), key));
        }
        self.applied(headers, Some(plan), check);
        apply(&mut response, &written.overrides);
        response
    }

    /// Echoes the preferences that were honoured, in the order that the dialect has them.
    fn applied(&self, headers: &mut HeaderMap, write: Option<&Plan>, check: Check) {
        let preferences = &self.request.preferences;
        let conflict = match write {
            Some(Plan::Insert(insert)) if insert.key.is_empty() => insert.conflict.as_ref(),
            _ => None,
        };
        let takes_rows = !matches!(write, None | Some(Plan::Read(_) | Plan::Delete(_)));
        let honoured = [
            conflict.map(|conflict| match conflict.resolution {
                Resolution::Merge => "resolution=merge-duplicates".to_owned(),
                Resolution::Ignore => "resolution=ignore-duplicates".to_owned(),
            }),
            preferences
                .missing_default
                .filter(|_| takes_rows)
                .map(|default| {
                    if default {
                        "missing=default"
                    } else {
                        "missing=null"
                    }
                    .to_owned()
                }),
            preferences
                .returning
                .filter(|_| write.is_some())
                .map(|back| {
                    match back {
                        Return::Minimal => "return=minimal",
                        Return::HeadersOnly => "return=headers-only",
                        Return::Representation => "return=representation",
                    }
                    .to_owned()
                }),
            preferences.count.map(|count| {
                match count {
                    Count::Exact => "count=exact",
                    Count::Planned => "count=planned",
                    Count::Estimated => "count=estimated",
                }
                .to_owned()
            }),
            write.and_then(|_| self.service.end(preferences).1.map(str::to_owned)),
            preferences.strict.map(|strict| {
                if strict {
                    "handling=strict"
                } else {
                    "handling=lenient"
                }
                .to_owned()
            }),
            preferences
                .timezone
                .as_ref()
                .map(|zone| format!("timezone={zone}")),
            check.most.map(|most| format!("max-affected={most}")),
        ];
        let honoured: Vec<String> = honoured.into_iter().flatten().collect();
        if !honoured.is_empty() {
            let value = HeaderValue::from_str(&honoured.join(", "));
            headers.insert(PREFERENCE_APPLIED, value.expect("ours are plain ASCII"));
        }
    }
}

/// The statements that count what `read` would show without its range.
fn counting(read: &Read, max_rows: u64) -> Option<Counting> {
    Some(match read.count? {
        Count::Exact => Counting::Exact(statement::count_rows(read)),
        Count::Planned => Counting::Planned(statement::explain_rows(read)),
        Count::Estimated => Counting::Estimated {
            some: statement::count_some_rows(read, max_rows.saturating_add(1)),
            planned: statement::explain_rows(read),
            most: max_rows,
        },
    })
}

/// How a write's transaction ends, and the preference that was honoured by it.
fn end(configured: TxEnd, asked: Option<request::End>) -> (transaction::End, Option<&'static str>) {
    let ours = match configured {
        TxEnd::Commit | TxEnd::CommitAllowOverride => transaction::End::Commit,
        TxEnd::Rollback | TxEnd::RollbackAllowOverride => transaction::End::Rollback,
    };
    let may_ask = matches!(
        configured,
        TxEnd::CommitAllowOverride | TxEnd::RollbackAllowOverride
    );
    match asked.filter(|_| may_ask) {
        None => (ours, None),
        Some(request::End::Commit) => (transaction::End::Commit, Some("tx=commit")),
        Some(request::End::Rollback) => (transaction::End::Rollback, Some("tx=rollback")),
    }
}

/// Where the row with this key is: `/rest/v1/tasks?id=eq.5`.
pub(super) fn location(table: &Table, key: &[Option<String>]) -> HeaderValue {
    let filters: Vec<String> = table
        .key
        .iter()
        .zip(key)
        .map(|(name, value)| {
            let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            let quoted = format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""));
            let name = percent(if plain { name } else { &quoted });
            match value {
                Some(value) => format!("{name}=eq.{}", percent(value)),
                None => format!("{name}=is.null"),
            }
        })
        .collect();
    let place = format!("/rest/v1/{}?{}", percent(&table.name), filters.join("&"));
    HeaderValue::from_str(&place).expect("what is not ASCII is encoded")
}

fn percent(text: &str) -> String {
    const PLAIN: AsciiSet = NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'_')
        .remove(b'.')
        .remove(b'~');
    utf8_percent_encode(text, &PLAIN).to_string()
}

/// Lets a function in the database have its way with the response.
pub fn apply(response: &mut Response, overrides: &Overrides) {
    if let Some(status) = overrides.status {
        *response.status_mut() = StatusCode::from_u16(status).expect("checked to be one");
        let bodiless = [
            StatusCode::NO_CONTENT,
            StatusCode::RESET_CONTENT,
            StatusCode::NOT_MODIFIED,
        ];
        if bodiless.contains(&response.status()) {
            *response.body_mut() = body::empty();
            response.headers_mut().remove(CONTENT_LENGTH);
            response.headers_mut().remove(CONTENT_TYPE);
        }
    }
    let headers = response.headers_mut();
    let named = overrides.headers.iter().map(|(name, value)| {
        (
            HeaderName::from_bytes(name.as_bytes()).expect("checked to be a name"),
            HeaderValue::from_str(value).expect("checked to be a value"),
        )
    });
    let named: Vec<(HeaderName, HeaderValue)> = named.collect();
    for (name, _) in &named {
        headers.remove(name);
    }
    for (name, value) in named {
        headers.append(name, value);
    }
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
///
/// # Panics
/// Never: it is digits and signs.
#[must_use]
pub fn content_range(offset: u64, rows: u64, total: Option<u64>) -> HeaderValue {
    let total = total.map_or_else(|| "*".to_owned(), |total| total.to_string());
    let text = match rows.checked_sub(1) {
        Some(before_last) => format!("{offset}-{}/{total}", offset + before_last),
        None => format!("*/{total}"),
    };
    HeaderValue::from_str(&text).expect("digits and signs are a header's")
}

/// Tells the preferences that were honoured, in this order.
///
/// # Panics
/// When one of them is no ASCII text.
pub fn applied<const N: usize>(headers: &mut HeaderMap, preferences: [(&str, bool); N]) {
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
