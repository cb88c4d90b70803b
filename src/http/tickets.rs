//! `POST /tickets`: a one-time ticket for a reader that cannot send headers, as `EventSource`.
//!
//! Promises that a ticket is given only to who has sent a valid token, and carries no more than that
//! token did. It does not know how tickets are kept.

use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use serde::Deserialize;
use serde_json::json;

use super::identify::identify;
use super::problem::{JSON, Problem};
use super::route::Route;
use super::rows::json_body;
use super::{Response, body};
use crate::auth::tickets::{IssueError, LIFETIME};
use crate::auth::{Authenticator, Identity};

/// Most paths of a ticket, and the longest of them in bytes: tickets wait in memory.
const PATHS: usize = 16;
const PATH: usize = 256;

/// The body, which may be left out.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// The streams that the ticket may open; any when there are none.
    #[serde(default)]
    paths: Vec<String>,
}

/// Makes a ticket: 201 `{"ticket":"…","expires_in":30}`.
pub async fn respond(auth: &Authenticator, head: &Parts, body: &[u8]) -> Response {
    match make(auth, head, body).await {
        Ok(ticket) => created(&ticket),
        Err(problem) => problem.into_response(),
    }
}

async fn make(auth: &Authenticator, head: &Parts, body: &[u8]) -> Result<String, Problem> {
    let identity = identify(auth, head).await?;
    if !identity.verified {
        return Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "PGRST302",
            "a ticket is for those who bring a token",
        )
        .hint("send a token with Authorization: Bearer"));
    }
    let wanted = wanted(head, body)?;
    issue(auth, identity, wanted)
}

fn wanted(head: &Parts, body: &[u8]) -> Result<Wanted, Problem> {
    if body.is_empty() {
        return Ok(Wanted::default());
    }
    json_body(&head.headers)?;
    let bad = |message: &str| {
        Problem::new(StatusCode::BAD_REQUEST, "PGRST102", message)
            .hint(r#"send {"paths":["/rest/v1/tasks"]}, or no body"#)
    };
    let wanted: Wanted =
        serde_json::from_slice(body).map_err(|_| bad("the body is not a list of paths"))?;
    let is_stream = |path: &String| {
        path.len() <= PATH && matches!(Route::of(path), Route::Rows { .. } | Route::Channel { .. })
    };
    if wanted.paths.len() > PATHS || !wanted.paths.iter().all(is_stream) {
        return Err(bad("a ticket has up to 16 paths, and each is a stream's"));
    }
    Ok(wanted)
}

fn issue(auth: &Authenticator, identity: Identity, wanted: Wanted) -> Result<String, Problem> {
    auth.tickets
        .issue(identity, wanted.paths)
        .map_err(|error| match error {
            IssueError::Full => Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "RCA03",
                "too many tickets wait to be used",
            )
            .hint("try again in a moment"),
            IssueError::NoChance => Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "RCA04",
                "no ticket could be made",
            ),
        })
}

fn created(ticket: &str) -> Response {
    let told = json!({ "ticket": ticket, "expires_in": LIFETIME.as_secs() });
    let mut response = Response::new(body::full(told.to_string()));
    *response.status_mut() = StatusCode::CREATED;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
