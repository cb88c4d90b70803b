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
use hyper::{Method, StatusCode};

use super::problem::Problem;
use crate::auth::{Authenticator, Identity, TokenError};
use crate::http::cors::{Origin, Origins};
use crate::http::headers::wants_events;
use crate::http::ticket::Ticket;

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
        let identity = verified.map_err(|error| Problem::of_token(&error))?;
        auth.sessions.renew(&identity);
        Ok(identity)
    };
    if let Some(token) = bearer(&parts.headers)? {
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
    Problem::new(StatusCode::UNAUTHORIZED, "PGRST301", message).about_token()
}

/// Schemes that browsers and proxies in front of us use among themselves.
const OTHERS: [&str; 3] = ["basic", "digest", "negotiate"];

/// The token of `Authorization`. One of another scheme is for somebody else.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
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
        (false, _)
            if OTHERS
                .iter()
                .any(|other| scheme.eq_ignore_ascii_case(other)) =>
        {
            Ok(None)
        }
        (false, _) => Err(bad("the Authorization header is not Bearer")),
    }
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
    // By bytes: another cookie may hold any, and must not make this one unseen.
    let mut values = parts
        .headers
        .get_all(COOKIE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b';'))
        .filter_map(|pair| {
            let pair = pair.trim_ascii();
            pair.strip_prefix(auth.cookie().as_bytes())?
                .strip_prefix(b"=")
        })
        .filter(|value| !value.is_empty());
    let Some(token) = values.next() else {
        return Ok(None);
    };
    let token =
        str::from_utf8(token).map_err(|_| bad("the cookie with the token holds no text"))?;
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
        let problem = Self::new(status, code, error.to_string());
        match status {
            StatusCode::UNAUTHORIZED => problem.about_token(),
            StatusCode::INTERNAL_SERVER_ERROR => {
                problem.hint("the operator gives --jwt-secret, --jwks-file or --jwks-url")
            }
            StatusCode::SERVICE_UNAVAILABLE => problem.hint("try again in a moment"),
            StatusCode::FORBIDDEN => problem.hint(
                "where the operator gives --roles, a token names one of those; \
                 it is never none, nor one that begins with pg_",
            ),
            _ => problem,
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;
    use crate::auth::{Secret, Settings, token};
    use crate::http::ticket;

    const SECRET: &str = "a secret that is long enough to sign with";

    fn auth(settings: Settings) -> Authenticator {
        Authenticator::new(settings).unwrap()
    }

    fn strict() -> Authenticator {
        auth(Settings {
            secret: Some(Secret::new(SECRET)),
            ..Settings::default()
        })
    }

    fn token_for(sub: &str) -> String {
        let exp = SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs()
            + 60;
        let claims = format!(r#"{{"role":"web_user","sub":"{sub}","exp":{exp}}}"#);
        token::sign(&Secret::new(SECRET), &claims).unwrap()
    }

    fn request(line: &str, headers: &[(&str, &str)]) -> Parts {
        let (method, uri) = line.split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut parts = request.body(()).unwrap().into_parts().0;
        ticket::take(&mut parts);
        parts
    }

    /// Whose request it is, `nobody` for an anonymous one, or the code that refuses it.
    async fn who(auth: &Authenticator, line: &str, headers: &[(&str, &str)]) -> String {
        match identify(auth, &request(line, headers)).await {
            Ok(identity) if !identity.verified => "nobody".to_owned(),
            Ok(identity) => {
                let claims: serde_json::Value = serde_json::from_str(&identity.claims).unwrap();
                claims["sub"].as_str().unwrap().to_owned()
            }
            Err(problem) => format!("{} {}", problem.status.as_u16(), problem.code),
        }
    }

    const READ: &str = "GET /rest/v1/tasks";
    const WRITE: &str = "POST /rest/v1/tasks";

    #[tokio::test]
    async fn a_bearer_token_says_who_asks_whatever_the_case_of_the_word() {
        let (auth, token) = (strict(), token_for("ann"));
        for scheme in ["Bearer", "bearer", "BEARER", "Bearer "] {
            let header = format!("{scheme} {token}");
            let headers = [("authorization", header.as_str()), ("apikey", "anything")];
            assert_eq!(who(&auth, READ, &headers).await, "ann", "{scheme}");
        }
    }

    #[tokio::test]
    async fn what_is_sent_and_is_no_good_is_refused() {
        let (auth, token) = (strict(), token_for("ann"));
        let bearer = format!("Bearer {token}");
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            &token,
            "Bearer a b",
            "Bearer sb_publishable_x",
            &format!("Token {token}"),
            &format!("Bearer {token} {token}"),
            &format!("Bearer,{token}"),
            &format!("{bearer}, {bearer}"),
            "Bearer é",
        ] {
            let told = who(&auth, READ, &[("authorization", wrong)]).await;
            assert_eq!(told, "401 PGRST301", "{wrong}");
        }
        let twice = [("authorization", bearer.as_str()); 2];
        assert_eq!(who(&auth, READ, &twice).await, "401 PGRST301");
    }

    #[tokio::test]
    async fn each_failure_has_its_code_and_names_itself_to_the_client() {
        let told = async |auth: &Authenticator, claims: &str| {
            let token = token::sign(&Secret::new(SECRET), claims).unwrap();
            let header = format!("Bearer {token}");
            let parts = request(READ, &[("authorization", &header)]);
            identify(auth, &parts).await.unwrap_err()
        };
        let auth = strict();
        let expired = told(&auth, r#"{"role":"a","exp":1}"#).await;
        assert_eq!(expired.code, "PGRST303");
        let response = expired.into_response();
        assert_eq!(response.status(), 401);
        assert_eq!(
            response.headers()["www-authenticate"],
            "Bearer error=\"invalid_token\", error_description=\"the token has expired\""
        );
        let typed = told(&auth, r#"{"role":"a","exp":"1"}"#)
            .await
            .into_response();
        assert_eq!(
            typed.headers()["www-authenticate"],
            "Bearer error=\"invalid_token\", \
             error_description=\"the token's claim 'exp' is not a time in seconds\""
        );
        let far = r#""exp":253402300799"#;
        let refused = told(&auth, &format!(r#"{{"role":"pg_monitor",{far}}}"#)).await;
        assert_eq!((refused.status.as_u16(), &*refused.code), (403, "42501"));
        let nameless = told(&auth, &format!("{{{far}}}")).await;
        assert_eq!(
            (nameless.status.as_u16(), &*nameless.code),
            (401, "PGRST302")
        );
    }

    #[tokio::test]
    async fn without_a_token_one_is_anonymous_where_that_is_allowed() {
        assert_eq!(who(&strict(), READ, &[]).await, "401 PGRST302");
        let anon = auth(Settings {
            secret: Some(Secret::new(SECRET)),
            anon_role: Some("web_anon".into()),
            ..Settings::default()
        });
        let identity = identify(&anon, &request(READ, &[])).await.unwrap();
        assert_eq!(identity.role.as_deref(), Some("web_anon"));
        assert_eq!(&*identity.claims, r#"{"role":"web_anon"}"#);
    }

    #[tokio::test]
    async fn in_open_mode_everybody_is_the_relay_and_a_token_is_refused() {
        let open = auth(Settings::default());
        let identity = identify(&open, &request(READ, &[])).await.unwrap();
        assert_eq!((identity.role, &*identity.claims), (None, "{}"));
        let header = format!("Bearer {}", token_for("ann"));
        let told = who(&open, READ, &[("authorization", &header)]).await;
        assert_eq!(told, "500 PGRST300");
        let others = [
            ("authorization", "Basic YTpi"),
            ("cookie", "__Host-rowcast=x"),
        ];
        assert_eq!(who(&open, READ, &others).await, "nobody");
    }

    fn with_cookie(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, String)> {
        let cookie = format!("theme=dark; __Host-rowcast={}; x=y", token_for("ann"));
        let mut headers = vec![("cookie", cookie), ("host", "relay.example".to_owned())];
        headers.extend(
            more.iter()
                .map(|(name, value)| (*name, (*value).to_owned())),
        );
        headers
    }

    async fn by_cookie(line: &str, more: &[(&'static str, &'static str)]) -> String {
        let headers = with_cookie(more);
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let auth = auth(Settings {
            secret: Some(Secret::new(SECRET)),
            anon_role: Some("web_anon".into()),
            ..Settings::default()
        });
        who(&auth, line, &headers).await
    }

    #[tokio::test]
    async fn a_cookie_of_bytes_beside_it_does_not_hide_the_token() {
        let auth = auth(Settings {
            secret: Some(Secret::new(SECRET)),
            anon_role: Some("web_anon".into()),
            ..Settings::default()
        });
        let with = |token: &str| {
            let mut parts = request(READ, &[("host", "relay.example")]);
            let cookie = [b"n=caf\xc3\xa9; __Host-rowcast=", token.as_bytes()].concat();
            parts.headers.insert(
                COOKIE,
                hyper::header::HeaderValue::from_bytes(&cookie).unwrap(),
            );
            parts
        };
        let known = identify(&auth, &with(&token_for("ann"))).await.unwrap();
        assert_eq!(known.role.as_deref(), Some("web_user"));
        assert!(identify(&auth, &with("nonsense")).await.is_err());
    }

    const OURS: (&str, &str) = ("origin", "https://relay.example");
    const JSON: (&str, &str) = ("content-type", "application/json");

    #[tokio::test]
    async fn a_cookie_counts_for_reads_that_no_other_site_has_caused() {
        for more in [
            &[][..],
            &[OURS],
            &[("sec-fetch-site", "same-origin")],
            &[("sec-fetch-site", "none")],
            &[OURS, ("sec-fetch-site", "same-origin")],
        ] {
            assert_eq!(by_cookie(READ, more).await, "ann", "{more:?}");
        }
        for more in [
            &[("origin", "https://evil.example")][..],
            &[("origin", "null")],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "whatever")],
            &[OURS, ("sec-fetch-site", "cross-site")],
            &[
                ("sec-fetch-site", "same-origin"),
                ("sec-fetch-site", "cross-site"),
            ],
            &[OURS, ("origin", "https://evil.example")],
        ] {
            assert_eq!(by_cookie(READ, more).await, "nobody", "{more:?}");
            let write = by_cookie(WRITE, &[more, &[JSON]].concat()).await;
            assert_eq!(write, "nobody", "{more:?}");
        }
    }

    #[tokio::test]
    async fn a_write_by_cookie_comes_from_our_page_and_is_no_forms() {
        let charset = ("content-type", "application/json; charset=utf-8");
        let says = ("sec-fetch-site", "same-origin");
        for more in [&[OURS, JSON][..], &[says, JSON], &[OURS, charset]] {
            assert_eq!(by_cookie(WRITE, more).await, "ann", "{more:?}");
        }
        assert_eq!(
            by_cookie("DELETE /rest/v1/tasks?id=eq.1", &[OURS]).await,
            "ann"
        );
        let text = ("content-type", "text/plain");
        let form = ("content-type", "application/x-www-form-urlencoded");
        for more in [
            &[JSON][..],
            &[OURS],
            &[("sec-fetch-site", "none"), JSON],
            &[OURS, text],
            &[OURS, form],
            &[OURS, JSON, text],
        ] {
            assert_eq!(by_cookie(WRITE, more).await, "403 RCA02", "{more:?}");
        }
        assert_eq!(
            by_cookie("DELETE /rest/v1/tasks?id=eq.1", &[]).await,
            "403 RCA02"
        );
    }

    #[tokio::test]
    async fn two_cookies_are_refused_and_an_empty_one_is_none() {
        let auth = strict();
        let cookie = format!("__Host-rowcast={}", token_for("ann"));
        let twice = [("cookie", cookie.as_str()), ("cookie", "__Host-rowcast=x")];
        assert_eq!(who(&auth, READ, &twice).await, "401 PGRST301");
        let none = [("cookie", "__Host-rowcast=; __host-rowcast=x; rowcast=y")];
        assert_eq!(who(&auth, READ, &none).await, "401 PGRST302");
        let broken = [("cookie", "__Host-rowcast=x")];
        assert_eq!(who(&auth, READ, &broken).await, "401 PGRST301");
    }

    #[tokio::test]
    async fn a_header_comes_before_a_cookie() {
        let auth = strict();
        let (ann, bob) = (token_for("ann"), token_for("bob"));
        let headers = [
            ("authorization", &*format!("Bearer {ann}")),
            ("cookie", &*format!("__Host-rowcast={bob}")),
        ];
        assert_eq!(who(&auth, READ, &headers).await, "ann");
    }

    const EVENTS: [(&str, &str); 1] = [("accept", "text/event-stream")];

    async fn ticket(auth: &Authenticator, paths: &[&str]) -> String {
        let header = format!("Bearer {}", token_for("ann"));
        let parts = request("POST /tickets", &[("authorization", &header)]);
        let identity = identify(auth, &parts).await.unwrap();
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        auth.tickets.issue(identity, paths).unwrap()
    }

    #[tokio::test]
    async fn a_ticket_opens_one_stream_and_nothing_else() {
        let auth = strict();
        let line = |ticket: &str| format!("GET /rest/v1/tasks?ticket={ticket}&id=eq.7");
        let one = ticket(&auth, &["/rest/v1/tasks"]).await;
        assert_eq!(who(&auth, &line(&one), &[]).await, "401 PGRST301");
        assert_eq!(who(&auth, &line(&one), &EVENTS).await, "ann");
        assert_eq!(who(&auth, &line(&one), &EVENTS).await, "401 PGRST301");
        let elsewhere = ticket(&auth, &["/rest/v1/salaries"]).await;
        assert_eq!(who(&auth, &line(&elsewhere), &EVENTS).await, "401 PGRST301");
        let write = ticket(&auth, &[]).await;
        let write = format!("{WRITE}?ticket={write}");
        assert_eq!(who(&auth, &write, &EVENTS).await, "401 PGRST301");
        let two = (ticket(&auth, &[]).await, ticket(&auth, &[]).await);
        let two = format!("GET /rest/v1/tasks?ticket={}&ticket={}", two.0, two.1);
        assert_eq!(who(&auth, &two, &EVENTS).await, "401 PGRST301");
    }
}
