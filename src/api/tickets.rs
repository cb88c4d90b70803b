//! `POST /tickets`: a one-time ticket for a reader that cannot send headers, as `EventSource`.
//!
//! Promises that a ticket is given only to who has sent a valid token, and carries no more than that
//! token did. It does not know how tickets are kept.

use hyper::StatusCode;
use hyper::http::request::Parts;
use serde::Deserialize;
use serde_json::json;

use super::identify::identify;
use super::problem::{JSON, Problem};
use super::reply::Reply;
use super::rows::json_body;
use crate::auth::tickets::{IssueError, LIFETIME};
use crate::auth::{Authenticator, Identity};
use crate::http::Response;
use crate::http::route::Route;

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
    // A list in the order of the members would be read as the object, too.
    let object = body.trim_ascii_start().starts_with(b"{");
    let wanted: Wanted = serde_json::from_slice(body)
        .ok()
        .filter(|_| object)
        .ok_or_else(|| bad("the body is not an object with a list of paths"))?;
    let is_stream = |path: &String| {
        path.len() <= PATH
            && !path.contains('?')
            && matches!(Route::of(path), Route::Rows { .. } | Route::Channel { .. })
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
    let mut reply = Reply::json(told.to_string(), JSON).secret();
    reply.status = StatusCode::CREATED;
    reply.into_response()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use hyper::Request;
    use hyper::header::CACHE_CONTROL;

    use super::*;
    use crate::auth::{Secret, Settings, token};

    const SECRET: &str = "a secret that is long enough to sign with";

    fn auth() -> Authenticator {
        Authenticator::new(Settings {
            secret: Some(Secret::new(SECRET)),
            anon_role: Some("web_anon".into()),
            ..Settings::default()
        })
        .unwrap()
    }

    async fn ask(auth: &Authenticator, identified: bool, body: &str) -> (u16, serde_json::Value) {
        let mut request = Request::post("/tickets");
        if identified {
            let claims = r#"{"role":"web_user","exp":253402300799}"#;
            let token = token::sign(&Secret::new(SECRET), claims).unwrap();
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let head = request.body(()).unwrap().into_parts().0;
        let response = respond(auth, &head, body.as_bytes()).await;
        if response.status() == 201 {
            assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
        }
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn who_has_sent_a_token_gets_a_ticket_and_nobody_else() {
        let auth = auth();
        for body in [
            "",
            "{}",
            r#"{"paths":["/rest/v1/tasks","/channels/lobby"]}"#,
        ] {
            let (status, told) = ask(&auth, true, body).await;
            assert_eq!(
                (status, told["expires_in"].as_u64()),
                (201, Some(30)),
                "{body}"
            );
            assert_eq!(told["ticket"].as_str().unwrap().len(), 43);
            assert_eq!(ask(&auth, false, body).await.0, 401);
        }
    }

    #[tokio::test]
    async fn a_body_that_names_no_streams_is_refused() {
        let auth = auth();
        for body in [
            "[]",
            "x",
            r#"{"path":"/rest/v1/tasks"}"#,
            r#"{"paths":"/rest/v1/tasks"}"#,
            r#"{"paths":["/"]}"#,
            r#"{"paths":["/rest/v1/tasks?id=eq.1/"]}"#,
            r#"{"paths":["/rest/v1/tasks?id=eq.1"]}"#,
            r#"{"paths":["/rest/v1/../x"]}"#,
            &format!(r#"{{"paths":["/rest/v1/{}"]}}"#, "x".repeat(257)),
            &serde_json::json!({ "paths": vec!["/rest/v1/tasks"; 17] }).to_string(),
        ] {
            let (status, told) = ask(&auth, true, body).await;
            assert_eq!(
                (status, told["code"].as_str()),
                (400, Some("PGRST102")),
                "{body}"
            );
        }
    }
}
