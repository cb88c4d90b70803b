//! `GET HEAD POST /rest/v1/rpc/{function}`: a function's result, once.
//!
//! Statuses and headers of the PostgREST dialect around one call. A GET can write nothing, nor can a
//! function that is declared STABLE or IMMUTABLE. It does not know what functions do.

use std::borrow::Cow;

use hyper::header::{ALLOW, CONTENT_RANGE, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};

use super::problem::{JSON, Problem, logged};
use super::reply::{Reply, content_range};
use super::rows::{OBJECT, Rows, applied, ended, looked_up, rows_body, strictly, terms};
use super::{once, profile};
use crate::auth::Identity;
use crate::http::Response;
use crate::http::headers::{joined, wants_events};
use crate::postgres::transaction::{Access, Context};
use crate::rows::call::{Ask, Call};
use crate::rows::execute::{self, Called, Calling, Check, Done, Ended, Operation};
use crate::rows::once::Once;
use crate::rows::request::{Count, Shape};
use crate::rows::{Drift, Error};
use crate::schema::catalog::{self, Function, Returns};

/// Answers a call of `function`, which is decoded. `body` is empty for reads.
pub async fn respond(
    service: &Rows,
    parts: &Parts,
    identity: &Identity,
    function: &str,
    body: &[u8],
) -> Response {
    match answer(service, parts, identity, function, body).await {
        Ok(response) => response,
        Err(problem) => refused(problem.seen_by(identity), parts),
    }
}

async fn answer(
    service: &Rows,
    parts: &Parts,
    identity: &Identity,
    function: &str,
    body: &[u8],
) -> Result<Response, Problem> {
    if wants_events(&parts.headers) {
        return Err(Problem::unsupported("streams of functions").hint(
            "no log tells when a function's result changes: watch the table that it reads and \
             stream that",
        ));
    }
    let by_body = parts.method == Method::POST;
    let body = if by_body {
        rows_body(&parts.headers, body)?
    } else {
        Cow::Borrowed(body)
    };
    let schema = profile::wanted(parts, service.catalog.schemas())?;
    let header = |name: &str| joined(&parts.headers, name);
    let ask = Ask {
        schema: schema.as_deref(),
        function,
        query: parts.uri.query().unwrap_or_default(),
        body: by_body.then_some(&*body),
        header: &header,
    };
    let mut job = looked_up(service, |catalog| Job::of(ask, catalog, service.max_rows)).await?;
    if !job.is_acceptable() {
        return Err(Problem::not_acceptable());
    }
    let once = if job.writes() {
        once::of(identity, parts, &body)?
    } else {
        None
    };
    let mut healed = false;
    loop {
        let preferences = &job.call().request.preferences;
        let context = service.context(identity, schema.as_deref(), parts, preferences);
        let error = match show(service, &job, &context, once.as_ref()).await {
            Ok(reply) => return Ok(reply.into_response()),
            Err(error) => strictly(preferences, error),
        };
        // A time zone that nobody knows is a preference that is not honoured.
        if error.is_about_time_zone() && job.forget_time_zone() {
            continue;
        }
        // Nothing is committed when it is called again.
        if healed || !has_changed(service, &job.call().function, &error).await {
            return Err(logged(&error));
        }
        healed = true;
        job = looked_up(service, |catalog| Job::of(ask, catalog, service.max_rows)).await?;
    }
}

/// Whether the function is another one than it was when the statement was made, or will plan anew
/// what a table's change has spoilt.
async fn has_changed(service: &Rows, function: &Function, error: &Error) -> bool {
    let Some(drift) = error.drift() else {
        return false;
    };
    if drift == Drift::Plan {
        return true;
    }
    let Ok(catalog) = service.catalog.look_again().await else {
        return false;
    };
    let now = catalog.functions(&function.schema, &function.name);
    now.iter().all(|now| **now != *function)
}

async fn show(
    service: &Rows,
    job: &Job,
    context: &Context,
    once: Option<&Once>,
) -> Result<Reply, Error> {
    let preferences = &job.call().request.preferences;
    let told_end = service.end(preferences).1;
    let mut terms = terms(service, context, preferences);
    if !job.writes() {
        terms.access = Access::Guarded;
    }
    let share = service.answers.share();
    let answer = |done, end: Ended| Ok(ended(job.reply(done, told_end)?, &end));
    let answered = execute::write(&service.pool, terms, &job.operation, once, &share, answer);
    Ok(Reply::of(answered.await?, share))
}

/// A call that is planned: what to run, and how its answer reads.
#[derive(Debug)]
pub(super) struct Job {
    /// A call, always.
    pub operation: Operation,
    by_body: bool,
}

impl Job {
    /// The job that is asked for. It shows `max_rows` at most.
    pub(super) fn of(
        ask: Ask<'_>,
        catalog: &catalog::Catalog,
        max_rows: u64,
    ) -> Result<Self, Error> {
        let mut call = Call::of(ask, catalog)?;
        call.read.range = call.read.range.at_most(max_rows);
        let preferences = &call.request.preferences;
        let strict = preferences.strict == Some(true);
        let check = Check {
            single: call.is_set() && call.request.shape == Some(Shape::Object),
            keyed: false,
            most: preferences.max_affected.filter(|_| strict),
        };
        Ok(Self {
            operation: Operation::Call(Box::new(Calling { call, check })),
            by_body: ask.body.is_some(),
        })
    }

    fn calling(&self) -> &Calling {
        match &self.operation {
            Operation::Call(calling) => calling,
            _ => unreachable!("made to be a call"),
        }
    }

    fn call(&self) -> &Call {
        &self.calling().call
    }

    /// Whether the shape that is wanted is one that calls have.
    pub(super) fn is_acceptable(&self) -> bool {
        let shape = self.call().request.shape;
        matches!(shape, Some(Shape::Array | Shape::Object))
    }

    /// Whether it may write.
    fn writes(&self) -> bool {
        self.by_body && !self.call().function.stable
    }

    /// Leaves a preference for an unknown time zone out, once.
    fn forget_time_zone(&mut self) -> bool {
        let Operation::Call(calling) = &mut self.operation else {
            return false;
        };
        let preferences = &mut calling.call.request.preferences;
        preferences.strict != Some(true) && preferences.timezone.take().is_some()
    }

    /// The answer to a call that ended well.
    pub(super) fn reply(&self, done: Done, told_end: Option<&str>) -> Result<Reply, Error> {
        let Calling { call, check } = self.calling();
        let Done::Called(called) = done else {
            unreachable!("a call was run");
        };
        let offset = call.read.range.offset;
        if let Some(total) = called.total.filter(|total| offset > *total) {
            return Err(Error::PastEnd { offset, total });
        }
        Ok(result(call, called, *check, told_end))
    }
}

fn result(call: &Call, called: Called, check: Check, told_end: Option<&str>) -> Reply {
    let Called { rows, total } = called;
    let preferences = &call.request.preferences;
    let answers = call.function.returns != Returns::Nothing;
    let count = call.read.count.filter(|_| answers);
    // What is no set is there as a whole.
    let total = total.or(count.map(|_| rows.count));
    let mut reply = match call.function.returns {
        Returns::Nothing => Reply::empty(StatusCode::NO_CONTENT),
        Returns::Row(_) if rows.count == 0 => Reply::json("null".to_owned(), JSON),
        Returns::Row(_) if call.request.shape == Some(Shape::Object) => {
            Reply::json(rows.json, OBJECT)
        }
        Returns::Value(_) | Returns::Row(_) => Reply::json(rows.json, JSON),
        Returns::Values(_) | Returns::Rows(_) if check.single => Reply::json(rows.json, OBJECT),
        Returns::Values(_) | Returns::Rows(_) => Reply::json(format!("[{}]", rows.json), JSON),
    };
    if total.is_some_and(|total| rows.count < total) {
        reply.status = StatusCode::PARTIAL_CONTENT;
    }
    if answers {
        let range = content_range(call.read.range.offset, rows.count, total);
        reply.headers.insert(CONTENT_RANGE, range);
    }
    let zone = format!(
        "timezone={}",
        preferences.timezone.as_deref().unwrap_or_default()
    );
    let most = format!("max-affected={}", check.most.unwrap_or_default());
    applied(
        &mut reply.headers,
        [
            (count.map_or("", Count::named), count.is_some()),
            (told_end.unwrap_or_default(), told_end.is_some()),
            ("handling=strict", preferences.strict == Some(true)),
            ("handling=lenient", preferences.strict == Some(false)),
            (zone.as_str(), preferences.timezone.is_some()),
            (most.as_str(), check.most.is_some()),
        ],
    );
    reply
}

/// A function that wrote while it might only read is to be posted.
fn refused(problem: Problem, parts: &Parts) -> Response {
    let wrote = problem.code == "25006";
    let mut response = problem.into_response();
    if wrote && parts.method != Method::POST {
        let allow = HeaderValue::from_static("POST, OPTIONS");
        response.headers_mut().insert(ALLOW, allow);
    }
    response
}
