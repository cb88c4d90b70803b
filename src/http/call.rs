//! `GET HEAD POST /rest/v1/rpc/{function}`: a function's result, once.
//!
//! Statuses and headers of the PostgREST dialect around one call. A GET can write nothing, nor can a
//! function that is declared STABLE or IMMUTABLE. It does not know what functions do.

use std::borrow::Cow;

use hyper::header::{ALLOW, CONTENT_RANGE, CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};

use super::problem::{JSON, Problem};
use super::route::wants_events;
use super::rows::{
    OBJECT, Rows, TXID, applied, apply, content_range, joined, looked_up, problem, rows_body,
};
use super::{Response, body, profile};
use crate::auth::Identity;
use crate::postgres::transaction::{Access, Context, Terms};
use crate::rows::Error;
use crate::rows::call::{Ask, Call};
use crate::rows::execute::{self, Called, Check};
use crate::rows::request::Shape;
use crate::schema::catalog::Returns;

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
    let mut call = looked_up(service, |catalog| Call::of(ask, catalog)).await?;
    if !matches!(call.request.shape, Some(Shape::Array | Shape::Object)) {
        return Err(Problem::not_acceptable());
    }
    call.read.range = call.read.range.at_most(service.max_rows);
    loop {
        let preferences = &call.request.preferences;
        let context = service.context(identity, schema.as_deref(), parts, preferences);
        match show(service, &call, &context, by_body).await {
            // A time zone that nobody knows is a preference that is not honoured.
            Err(error)
                if error.is_about_time_zone()
                    && call.request.preferences.strict != Some(true)
                    && call.request.preferences.timezone.take().is_some() => {}
            answer => return answer.map_err(|error| problem(&error)),
        }
    }
}

async fn show(
    service: &Rows,
    call: &Call,
    context: &Context,
    by_body: bool,
) -> Result<Response, Error> {
    let preferences = &call.request.preferences;
    let strict = preferences.strict == Some(true);
    let check = Check {
        single: call.is_set() && call.request.shape == Some(Shape::Object),
        keyed: false,
        most: preferences.max_affected.filter(|_| strict),
    };
    let (end, told_end) = service.end(preferences);
    let terms = Terms {
        access: if by_body && !call.function.stable {
            Access::ReadWrite
        } else {
            Access::Guarded
        },
        end,
        ..Terms::write(context, service.statement_timeout)
    };
    let called = execute::call(&service.pool, terms, call, check).await?;
    let offset = call.read.range.offset;
    if let Some(total) = called.total.filter(|total| offset > *total) {
        return Err(Error::PastEnd { offset, total });
    }
    Ok(result(call, called, check, told_end))
}

/// The response to a call that ended well.
fn result(call: &Call, called: Called, check: Check, told_end: Option<&'static str>) -> Response {
    let Called {
        rows,
        total,
        txid,
        overrides,
    } = called;
    let preferences = &call.request.preferences;
    let mut response = match call.function.returns {
        Returns::Nothing => {
            let mut response = Response::new(body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        Returns::Row(_) if rows.count == 0 => json("null".to_owned(), JSON),
        Returns::Row(_) if call.request.shape == Some(Shape::Object) => json(rows.json, OBJECT),
        Returns::Value(_) | Returns::Row(_) => json(rows.json, JSON),
        Returns::Values(_) | Returns::Rows(_) if check.single => json(rows.json, OBJECT),
        Returns::Values(_) | Returns::Rows(_) => json(format!("[{}]", rows.json), JSON),
    };
    if total.is_some_and(|total| rows.count < total) {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    let headers = response.headers_mut();
    if call.function.returns != Returns::Nothing {
        let offset = call.read.range.offset;
        headers.insert(CONTENT_RANGE, content_range(offset, rows.count, total));
    }
    if let Some(Ok(txid)) = txid.as_deref().map(HeaderValue::from_str) {
        headers.insert(TXID, txid);
    }
    let zone = format!(
        "timezone={}",
        preferences.timezone.as_deref().unwrap_or_default()
    );
    let most = format!("max-affected={}", check.most.unwrap_or_default());
    applied(
        headers,
        [
            ("count=exact", call.is_counted()),
            (told_end.unwrap_or_default(), told_end.is_some()),
            ("handling=strict", preferences.strict == Some(true)),
            ("handling=lenient", preferences.strict == Some(false)),
            (zone.as_str(), preferences.timezone.is_some()),
            (most.as_str(), check.most.is_some()),
        ],
    );
    apply(&mut response, &overrides);
    response
}

fn json(text: String, media: HeaderValue) -> Response {
    let mut response = Response::new(body::full(text));
    response.headers_mut().insert(CONTENT_TYPE, media);
    response
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
