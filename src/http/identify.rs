//! Who sent a request: from its headers to an identity.
//!
//! Three places are looked at, and the first that holds something decides: `Authorization: Bearer`,
//! a one-time ticket in the query of a stream, the cookie. Promises that what is sent and is no good
//! is refused and never taken for nothing, and that the cookie, which a browser adds by itself,
//! counts only for requests that our own pages have caused. `apikey` is not looked at: supabase-js
//! sends the same token there. It does not know what an identity may do.

use std::time::SystemTime;

use hyper::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, HeaderMap};
use hyper::http::request::Parts;
use hyper::http::uri::{PathAndQuery, Uri};
use hyper::{Method, StatusCode};

use super::cors::{Origin, Origins};
use super::problem::Problem;
use super::route::wants_events;
use crate::auth::tickets::has_form;
use crate::auth::{Authenticator, Identity, TokenError};

/// Tells who sent the request.
///
/// # Errors
/// 401 for a token, ticket or cookie that is no good, and for none where there must be one; 403 for
/// a role that is not allowed and for a write by cookie that another site may have caused; 500 for a
/// token while nothing is configured to verify it; 503 while the keys cannot be fetched.
pub async fn identify(auth: &Authenticator, parts: &Parts) -> Result<Identity, Problem> {
    let now = SystemTime::now();
    let verify = async |token: &str| {
        let verified = auth.verify(token, now).await;
        verified.map_err(|error| Problem::of_token(&error))
    };
    if let Some(token) = bearer(auth, &parts.headers)? {
        return verify(token).await;
    }
    if let Some(ticket) = parts.extensions.get::<Ticket>() {
        return redeem(auth, parts, ticket, now);
    }
    if let Some(token) = cookie(auth, parts)? {
        return verify(token).await;
    }
    auth.anonymous().ok_or_else(|| {
        Problem::new(
            StatusCode::UNAUTHORIZED,
            "PGRST302",
            "anonymous access is disabled",
        )
        .hint("send a token with Authorization: Bearer")
    })
}

fn bad(message: &'static str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "PGRST301", message).challenge(message)
}

/// The token of `Authorization`. Another scheme is for somebody else only while we verify nothing.
fn bearer<'a>(auth: &Authenticator, headers: &'a HeaderMap) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(bad("there are two Authorization headers"));
    }
    let text = value.to_str().unwrap_or_default().trim();
    let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
    let token = token.trim_start();
    match (scheme.eq_ignore_ascii_case("bearer"), token) {
        (true, "") => Err(bad("the Authorization header holds no token")),
        (true, token) => Ok(Some(token)),
        (false, _) if auth.has_keys() => Err(bad("the Authorization header is not Bearer")),
        (false, _) => Ok(None),
    }
}

/// A ticket on its way from the URL to [`identify`]. It has no `Debug` that shows it.
#[derive(Clone)]
enum Ticket {
    One(String),
    Several,
}

/// Takes the ticket out of the URL, so that no room reads it as a filter, echoes it or logs it.
/// A `ticket` that has not the form of one is a filter on a column of that name, and stays.
pub fn take_ticket(parts: &mut Parts) {
    let Some(query) = parts.uri.query() else {
        return;
    };
    let mut found = None;
    let mut kept: Vec<&str> = Vec::new();
    for piece in query.split('&') {
        match ticket(piece) {
            None => kept.push(piece),
            Some(ticket) => {
                found = Some(match found {
                    None => Ticket::One(ticket),
                    Some(_) => Ticket::Several,
                });
            }
        }
    }
    if let Some(ticket) = found
        && let Some(uri) = with_query(&parts.uri, &kept.join("&"))
    {
        parts.uri = uri;
        parts.extensions.insert(ticket);
    }
}

fn ticket(piece: &str) -> Option<String> {
    let (name, value) = form_urlencoded::parse(piece.as_bytes()).next()?;
    (name == "ticket" && has_form(&value)).then(|| value.into_owned())
}

fn with_query(uri: &Uri, query: &str) -> Option<Uri> {
    let path = if query.is_empty() {
        PathAndQuery::try_from(uri.path())
    } else {
        PathAndQuery::try_from(format!("{}?{query}", uri.path()))
    };
    let mut pieces = uri.clone().into_parts();
    pieces.path_and_query = Some(path.ok()?);
    Uri::from_parts(pieces).ok()
}

fn redeem(
    auth: &Authenticator,
    parts: &Parts,
    ticket: &Ticket,
    now: SystemTime,
) -> Result<Identity, Problem> {
    let Ticket::One(ticket) = ticket else {
        return Err(bad("there are two tickets"));
    };
    if parts.method != Method::GET || !wants_events(&parts.headers) {
        return Err(bad("a ticket opens nothing but a stream"));
    }
    auth.tickets
        .redeem(ticket, parts.uri.path(), now)
        .ok_or_else(|| {
            bad("the ticket is unknown, used, over, or for another path")
                .hint("ask for a new one: POST /tickets")
        })
}

/// The token of the cookie. For a request of another site there is none.
fn cookie<'a>(auth: &Authenticator, parts: &'a Parts) -> Result<Option<&'a str>, Problem> {
    // Cookies do not know ports: in open mode it is another relay's on the same host.
    if !auth.has_keys() {
        return Ok(None);
    }
    let mut values = parts
        .headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(name, value)| *name == auth.cookie() && !value.is_empty())
        .map(|(_, value)| value);
    let Some(token) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(bad("there are two cookies with a token"));
    }
    let cause = Cause::of(parts);
    if cause == Cause::Another {
        return Ok(None);
    }
    let reads = matches!(parts.method, Method::GET | Method::HEAD);
    if reads || cause == Cause::OurPage && is_no_forms(parts) {
        return Ok(Some(token));
    }
    Err(Problem::new(
        StatusCode::FORBIDDEN,
        "RCA02",
        "a write by cookie must come from a page of this origin, as JSON",
    )
    .hint("send Content-Type: application/json from the same origin, or a token by header"))
}

/// Who has caused a request, as far as its headers tell.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// One of our own pages, by the browser's word.
    OurPage,
    /// Nothing says otherwise: a person at the address bar, an old browser, or no browser.
    Unknown,
    /// Another site.
    Another,
}

impl Cause {
    fn of(parts: &Parts) -> Self {
        let mut sites = parts.headers.get_all("sec-fetch-site").iter();
        let site = sites.next().map(hyper::header::HeaderValue::as_bytes);
        if sites.next().is_some() {
            return Self::Another;
        }
        match (Origins::default().judge(parts), site) {
            (Origin::Same, None | Some(b"same-origin")) | (Origin::None, Some(b"same-origin")) => {
                Self::OurPage
            }
            (Origin::None, None | Some(b"none")) => Self::Unknown,
            _ => Self::Another,
        }
    }
}

/// Whether no form can have sent this: a form has no JSON, and no DELETE.
fn is_no_forms(parts: &Parts) -> bool {
    let mut kinds = parts.headers.get_all(CONTENT_TYPE).iter();
    let json = |value: &hyper::header::HeaderValue| {
        let text = value.to_str().unwrap_or_default();
        let kind = text.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("application/json")
    };
    match (kinds.next(), kinds.next()) {
        (None, _) => parts.method == Method::DELETE,
        (Some(kind), None) => json(kind),
        (Some(_), Some(_)) => false,
    }
}

impl Problem {
    /// A token that is not accepted.
    #[must_use]
    pub fn of_token(error: &TokenError) -> Self {
        let message = error.to_string();
        let (status, code) = match error {
            TokenError::NoKeys => (StatusCode::INTERNAL_SERVER_ERROR, "PGRST300"),
            TokenError::KeysAway => (StatusCode::SERVICE_UNAVAILABLE, "RCA01"),
            // As Postgres answers for a role that it does not grant.
            TokenError::RoleRefused => (StatusCode::FORBIDDEN, "42501"),
            TokenError::NoRole => (StatusCode::UNAUTHORIZED, "PGRST302"),
            TokenError::NoExpiry
            | TokenError::NotATime(_)
            | TokenError::Expired
            | TokenError::NotYet
            | TokenError::Audience
            | TokenError::Issuer
            | TokenError::Type(_)
            | TokenError::Role => (StatusCode::UNAUTHORIZED, "PGRST303"),
            _ => (StatusCode::UNAUTHORIZED, "PGRST301"),
        };
        let problem = Self::new(status, code, message.as_str());
        match status {
            StatusCode::UNAUTHORIZED => problem.challenge(&message),
            StatusCode::INTERNAL_SERVER_ERROR => {
                problem.hint("the operator gives --jwt-secret, --jwks-file or --jwks-url")
            }
            StatusCode::SERVICE_UNAVAILABLE => problem.hint("try again in a moment"),
            _ => problem,
        }
    }
}
