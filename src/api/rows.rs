//! `GET HEAD POST PUT PATCH DELETE /rest/v1/{table}`: rows in and out, once.
//!
//! Statuses and headers of the PostgREST dialect around what `rows` does. Live views of the same
//! URLs are not answered here.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{
    AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, LOCATION,
    ORIGIN,
};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use super::looks::Looks;
use super::problem::{JSON, Problem, etag, logged};
use super::reply::{Reply, content_range};
use super::watch::{Cannot, Seen};
use super::{context, once, profile};
use crate::auth::Identity;
use crate::backoff::Backoff;
use crate::causes::Causes;
use crate::config::TxEnd;
use crate::http::Response;
use crate::http::headers::joined;
use crate::http::route::encoded;
use crate::postgres::pool::{Lease, Pool};
use crate::postgres::transaction::{self, Context, Terms};
use crate::rows::execute::{
    self, Check, Counting, Done, Ended, Found, Guarded, Operation, Reading, Writing, Written,
};
use crate::rows::once::Once;
use crate::rows::plan::{Plan, Read, Returning};
use crate::rows::request::{self, Count, Preferences, Request, Resolution, Return, Shape, Verb};
use crate::rows::statement::{self, Key};
use crate::rows::{Drift, Error, body as payload};
use crate::schema::catalog::{self, Table};
use crate::schema::handle::Handle;
use crate::share::Budget;

/// The transaction id of a write; the same text comes as `txid` in the streams.
pub const TXID: HeaderName = HeaderName::from_static("rowcast-txid");

/// How often a write is made again that came in another one's way: it was undone as a whole.
const CONFLICTS: usize = 3;

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
    /// The same for what streams ask: slow requests must not hold up screens.
    pub views: Pool,
    /// What streams have asked a moment ago.
    pub looks: Looks<Seen, Cannot>,
    /// The tables that there are for the API.
    pub catalog: Arc<Handle>,
    /// Rows in one answer at most.
    pub max_rows: u64,
    /// What all answers together may take.
    pub answers: Budget,
    /// Longest time for one statement.
    pub statement_timeout: Duration,
    /// How transactions end.
    pub tx_end: TxEnd,
    /// A function that is called before each request: its name as SQL.
    pub pre_request: Option<String>,
    /// The name of the cookie that may hold a token, which functions do not see.
    pub cookie: String,
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
        let mut context = context::of_request(identity, self.schema(schema), parts, &self.cookie);
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
        let unread = |error| Problem::of_catalog(&error);
        let mut catalog = self.catalog.at_hand().await.map_err(unread)?;
        if catalog.role(name).is_none() {
            catalog = self.catalog.look_again().await.map_err(unread)?;
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

    /// Tables and functions of `schema`, by oid, that `identity` has any right on.
    ///
    /// # Errors
    /// A [`Problem`] with asking PostgreSQL.
    pub async fn permitted(
        &self,
        identity: &Identity,
        schema: &str,
        parts: &Parts,
        catalog: &catalog::Catalog,
    ) -> Result<(Vec<u32>, Vec<u32>), Problem> {
        const RIGHTS: &str = "select \
             array(select o.oid from pg_catalog.unnest($1::pg_catalog.oid[]) as o (oid) \
                   where pg_catalog.has_any_column_privilege(o.oid, 'select, insert, update') \
                      or pg_catalog.has_table_privilege(o.oid, 'delete')), \
             array(select o.oid from pg_catalog.unnest($2::pg_catalog.oid[]) as o (oid) \
                   where pg_catalog.has_function_privilege(o.oid, 'execute'))";
        let tables = catalog.tables_in(schema).into_iter();
        let tables: Vec<u32> = tables.map(|table| table.oid).collect();
        let functions = catalog.functions_in(schema).into_iter().flatten();
        let functions: Vec<u32> = functions.map(|function| function.oid).collect();
        let preferences = Preferences::default();
        let context = self.context(identity, Some(schema), parts, &preferences);
        let asked = async {
            let lease = Lease::take_for(context.caller(), &self.pool).await?;
            let terms = Terms::read(&context, self.statement_timeout);
            transaction::run(lease, terms, async |client: &Client| {
                let values: [(&(dyn ToSql + Sync), Type); 2] =
                    [(&tables, Type::OID_ARRAY), (&functions, Type::OID_ARRAY)];
                let rows = client.query_typed(RIGHTS, &values).await?;
                match rows.first() {
                    Some(row) => Ok((row.try_get(0)?, row.try_get(1)?)),
                    None => Ok((Vec::new(), Vec::new())),
                }
            })
            .await
        };
        asked
            .await
            .map_err(|error: Error| logged(&error).seen_by(identity))
    }

    /// What PostgreSQL would set for the role at a login, and the longest time for a statement.
    pub(super) fn role_settings(
        &self,
        identity: &Identity,
    ) -> (Vec<(Cow<'static, str>, String)>, Duration) {
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
    let once = match request.verb {
        Verb::Read => None,
        _ => once::of(identity, parts, &body)?,
    };
    let mut exchange = Exchange {
        service,
        request,
        context,
        once,
    };
    let reply = exchange.answer(&body).await?;
    Ok(reply.into_response())
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
        ..request.map_err(|error| logged(&error))?
    })
}

/// What the `Prefer` header of several operations says of all of them.
pub(super) fn preferences(header: &str) -> Result<Preferences, Problem> {
    Preferences::parse(header).map_err(|error| logged(&error))
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
            let json = payload::from_form(body).map_err(|error| logged(&error))?;
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

/// A request that is planned: what to run, and how its answer reads.
#[derive(Debug)]
pub(super) struct Job {
    request: Request,
    plan: Plan,
    check: Check,
    /// What to run.
    pub operation: Operation,
}

impl Job {
    /// The job that `request` asks for, with its body as JSON. A read shows `max_rows` at most.
    pub(super) fn of(
        request: &Request,
        catalog: &catalog::Catalog,
        body: &[u8],
        max_rows: u64,
    ) -> Result<Self, Error> {
        let mut plan = Plan::of(request, catalog)?;
        let check = check(request);
        let operation = if let Plan::Read(read) = &mut plan {
            let counting = counting(read, max_rows);
            read.range = read.range.at_most(max_rows);
            Operation::Read(Reading {
                select: statement::select_rows(read, Key::Without),
                counting,
            })
        } else {
            Operation::Write(Writing {
                statement: statement::write_rows(&plan, body)?,
                returning: matches!(plan.returning(), Some(Returning::Rows { .. })),
                check,
                guard: guarded(request, &plan)?,
            })
        };
        Ok(Self {
            request: request.clone(),
            plan,
            check,
            operation,
        })
    }

    /// The answer; `end` is the preference for the transaction's end that was honoured.
    pub(super) fn reply(&self, done: Done, end: Option<&str>) -> Result<Reply, Error> {
        match done {
            Done::Found(found) => self.shown(found),
            Done::Written(written) => Ok(self.receipt(written, end)),
            Done::Called(_) => unreachable!("a job is no call"),
        }
    }

    fn shown(&self, found: Found) -> Result<Reply, Error> {
        let Found { rows, total } = found;
        let offset = match &self.plan {
            Plan::Read(read) => read.range.offset,
            _ => 0,
        };
        // A guess may be too low, and then there are rows all the same.
        if let Some(total) = total.filter(|total| offset > *total && rows.count == 0) {
            return Err(Error::PastEnd { offset, total });
        }
        if self.is_single() && rows.count != 1 {
            return Err(Error::NotSingle { rows: rows.count });
        }
        let count = rows.count;
        let mut reply = self.json(rows.json);
        if total.is_some_and(|total| count < total) {
            reply.status = StatusCode::PARTIAL_CONTENT;
        }
        let range = content_range(offset, count, total);
        reply.headers.insert(CONTENT_RANGE, range);
        self.applied(&mut reply.headers, false, None);
        Ok(reply)
    }

    /// The answer to a write.
    fn receipt(&self, written: Written, end: Option<&str>) -> Reply {
        let request = &self.request;
        let returning = request.preferences.returning == Some(Return::Representation);
        let mut reply = if returning {
            self.json(written.rows.json)
        } else {
            Reply::empty(StatusCode::OK)
        };
        reply.status = match request.verb {
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
        let headers = &mut reply.headers;
        headers.insert(CONTENT_RANGE, content_range(0, shown, total));
        if request.verb == Verb::Delete {
            // What is gone has no version.
            headers.remove(ETAG);
        }
        if let Some(key) = &written.key {
            headers.insert(LOCATION, location(self.plan.table(), key));
        }
        self.applied(headers, true, end);
        reply
    }

    fn is_single(&self) -> bool {
        self.request.shape == Some(Shape::Object)
    }

    /// Rows with what goes around them. One that stands alone has a version.
    fn json(&self, rows: String) -> Reply {
        if !self.is_single() {
            return Reply::json(format!("[{rows}]"), JSON);
        }
        let version = etag(&rows);
        let mut reply = Reply::json(rows, OBJECT);
        reply.headers.insert(ETAG, version);
        reply
    }

    /// Echoes the preferences that were honoured, in the order that the dialect has them.
    fn applied(&self, headers: &mut HeaderMap, writes: bool, end: Option<&str>) {
        let preferences = &self.request.preferences;
        let conflict = match &self.plan {
            Plan::Insert(insert) if insert.key.is_empty() => insert.conflict.as_ref(),
            _ => None,
        };
        let takes_rows = matches!(self.plan, Plan::Insert(_) | Plan::Update(_));
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
            preferences.returning.filter(|_| writes).map(|back| {
                match back {
                    Return::Minimal => "return=minimal",
                    Return::HeadersOnly => "return=headers-only",
                    Return::Representation => "return=representation",
                }
                .to_owned()
            }),
            preferences.count.map(|count| count.named().to_owned()),
            end.map(str::to_owned),
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
            self.check.most.map(|most| format!("max-affected={most}")),
        ];
        tell_honoured(headers, &honoured.into_iter().flatten().collect::<Vec<_>>());
    }
}

/// What must hold for a write to be committed.
fn check(request: &Request) -> Check {
    if request.verb == Verb::Read {
        return Check::default();
    }
    let preferences = &request.preferences;
    let strict = preferences.strict == Some(true);
    let limited = matches!(request.verb, Verb::Update | Verb::Delete);
    Check {
        single: request.shape == Some(Shape::Object),
        keyed: request.verb == Verb::Replace,
        most: preferences.max_affected.filter(|_| strict && limited),
    }
}

/// What is asked besides when a write depends on the row as it is.
fn guarded(request: &Request, plan: &Plan) -> Result<Option<Guarded>, Error> {
    let absent = request.preconditions.absent;
    if plan.guard().is_none() && !absent {
        return Ok(None);
    }
    let two = Read::in_reach(request, plan.table(), 2)?;
    let one = Read::in_reach(request, plan.table(), 1)?;
    Ok(Some(Guarded {
        reach: statement::count_some_rows(&two, 2),
        current: statement::select_rows(&one, Key::Without),
        versions: plan.guard().and_then(|guard| guard.versions.clone()),
        absent,
        keyed: request.verb == Verb::Replace,
    }))
}

/// How a transaction that writes is to be.
pub(super) fn terms<'a>(
    service: &Rows,
    context: &'a Context,
    preferences: &Preferences,
) -> Terms<'a> {
    Terms {
        end: service.end(preferences).0,
        ..Terms::write(context, service.statement_timeout)
    }
}

/// Tells the transaction, and lets functions have their way.
pub(super) fn ended(mut reply: Reply, ended: &Ended) -> Reply {
    if let Some(Ok(txid)) = ended.txid.as_deref().map(HeaderValue::from_str) {
        reply.headers.insert(TXID, txid);
    }
    reply.apply(&ended.overrides);
    reply
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
    let unread = |error| {
        tracing::warn!(error = %Causes(&error), "the catalogue could not be read");
        Problem::of_catalog(&error)
    };
    let catalog = service.catalog.at_hand().await.map_err(unread)?;
    match look(&catalog) {
        Err(error) if error.is_about_catalog() => {
            // Nobody has said that anything changed, so that what is known of the rest stays known.
            let catalog = service.catalog.look_again().await.map_err(unread)?;
            look(&catalog).map_err(|error| logged(&error))
        }
        other => other.map_err(|error| logged(&error)),
    }
}

/// A request with what it is answered from.
struct Exchange<'a> {
    service: &'a Rows,
    request: Request,
    context: Context,
    once: Option<Once>,
}

impl Exchange<'_> {
    /// Runs the request, and once more when it failed for a reason that is gone: a table that was
    /// changed between the catalogue and the statement, or a time zone that nobody knows. Nothing
    /// is committed when it is run again.
    async fn answer(&mut self, body: &[u8]) -> Result<Reply, Problem> {
        let mut healed = false;
        loop {
            let most = self.service.max_rows;
            let look = |catalog: &catalog::Catalog| Job::of(&self.request, catalog, body, most);
            let job = looked_up(self.service, look).await?;
            let error = match self.run(&job).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            if error.is_about_time_zone() && self.forget_time_zone() {
                continue;
            }
            if healed || !self.has_changed(job.plan.table(), &error).await {
                return Err(logged(&error));
            }
            healed = true;
        }
    }

    async fn run(&self, job: &Job) -> Result<Reply, Error> {
        let answered = match &job.operation {
            Operation::Read(reading) => self.show(job, reading).await,
            Operation::Write(writing) if writing.statement.is_none() && writing.guard.is_none() => {
                writing.check.holds(0)?;
                job.reply(Done::Written(Written::default()), self.end())
            }
            _ => self.change(job).await,
        };
        answered.map_err(|error| strictly(&self.request.preferences, error))
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
        let Ok(catalog) = self.service.catalog.look_again().await else {
            return false;
        };
        let now = catalog.table_by_oid(table.oid);
        drift == Drift::Plan || now.is_none_or(|now| **now != *table)
    }

    async fn show(&self, job: &Job, reading: &Reading) -> Result<Reply, Error> {
        let tables = [job.plan.table().oid];
        let terms = Terms {
            tables: &tables,
            ..Terms::read(&self.context, self.service.statement_timeout)
        };
        let share = self.service.answers.share();
        let (found, overrides) = execute::read(&self.service.pool, terms, reading, &share).await?;
        let mut reply = job.reply(Done::Found(found), None)?;
        reply.apply(&overrides);
        let known = match (&self.request.preconditions.differs, &reply.body) {
            (Some(tags), Some(row)) if job.is_single() => {
                tags.matches_weakly(&crate::etag::of(row))
            }
            _ => false,
        };
        if known && reply.status == StatusCode::OK {
            reply.status = StatusCode::NOT_MODIFIED;
            reply.hush();
        }
        Ok(reply.sharing(share))
    }

    async fn change(&self, job: &Job) -> Result<Reply, Error> {
        let preferences = &self.request.preferences;
        let terms = terms(self.service, &self.context, preferences);
        let mut backoff = Backoff::new();
        let mut again = CONFLICTS;
        loop {
            let share = self.service.answers.share();
            let answered = execute::write(
                &self.service.pool,
                terms,
                &job.operation,
                self.once.as_ref(),
                &share,
                |done, end| Ok(ended(job.reply(done, self.end())?, &end)),
            );
            match answered.await {
                Err(error) if again > 0 && error.is_conflict() => again -= 1,
                answered => return answered.map(|answered| Reply::of(answered, share)),
            }
            tokio::time::sleep(backoff.delay()).await;
        }
    }

    fn end(&self) -> Option<&'static str> {
        self.service.end(&self.request.preferences).1
    }
}

/// With `handling=strict`, a time zone that nobody knows is an unknown preference.
pub(super) fn strictly(preferences: &Preferences, error: Error) -> Error {
    match &preferences.timezone {
        Some(zone) if preferences.strict == Some(true) && error.is_about_time_zone() => {
            Error::Preferences(vec![format!("timezone={zone}")])
        }
        _ => error,
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
            let name = encoded(if plain { name } else { &quoted });
            match value {
                Some(value) => format!("{name}=eq.{}", encoded(value)),
                None => format!("{name}=is.null"),
            }
        })
        .collect();
    let place = format!("/rest/v1/{}?{}", encoded(&table.name), filters.join("&"));
    HeaderValue::from_str(&place).expect("what is not ASCII is encoded")
}

/// Tells the preferences that were honoured, in this order.
///
/// # Panics
/// When one of them is no ASCII text.
pub fn applied<const N: usize>(headers: &mut HeaderMap, preferences: [(&str, bool); N]) {
    let honoured: Vec<_> = preferences
        .into_iter()
        .filter_map(|(name, honoured)| honoured.then_some(name.to_owned()))
        .collect();
    tell_honoured(headers, &honoured);
}

fn tell_honoured(headers: &mut HeaderMap, preferences: &[String]) {
    if !preferences.is_empty() {
        let value = HeaderValue::from_str(&preferences.join(", "));
        headers.insert(PREFERENCE_APPLIED, value.expect("ours are plain ASCII"));
    }
}
