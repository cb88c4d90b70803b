//! As whom a request runs in the database, and what its policies and functions can read of it.
//!
//! The settings are PostgREST's, so that policies written for it work here: `request.jwt.claims`,
//! `request.method`, `request.path`, `request.headers`, `request.cookies`.

use std::borrow::Cow;

use hyper::header::{AUTHORIZATION, COOKIE, HeaderMap, PROXY_AUTHORIZATION};
use hyper::http::request::Parts;

use crate::auth::Identity;
use crate::postgres::quote;
use crate::postgres::transaction::Context;

type Settings = Vec<(Cow<'static, str>, String)>;

/// As whom `identity` reads and writes rows of `schema` by this request. `cookie` is the name of the one that may
/// hold a token.
#[must_use]
pub fn of_request(identity: &Identity, schema: &str, parts: &Parts, cookie: &str) -> Context {
    let mut settings = named(schema, &identity.claims);
    settings.extend([
        setting("request.method", parts.method.as_str()),
        setting("request.path", parts.uri.path()),
        setting("request.headers", &headers(&parts.headers)),
        setting("request.cookies", &cookies(&parts.headers, cookie)),
    ]);
    Context {
        role: identity.role.clone(),
        settings,
        before: None,
    }
}

/// As whom a view of `schema` is read: everybody of this role with these claims shares it, so it
/// knows nothing of one request. Without row-level security the claims are left out too.
#[must_use]
pub fn of_view(identity: &Identity, schema: &str, row_security: bool) -> Context {
    let claims = if row_security {
        identity.context_claims()
    } else {
        "{}".to_owned()
    };
    let mut settings = named(schema, &claims);
    settings.push(setting("request.method", "GET"));
    Context {
        role: identity.role.clone(),
        settings,
        before: None,
    }
}

fn named(schema: &str, claims: &str) -> Settings {
    let mut path = quote::identifier(schema);
    if schema != "public" {
        path.push_str(", public");
    }
    vec![
        setting("search_path", &path),
        setting("request.jwt.claims", claims),
    ]
}

fn setting(name: &'static str, value: &str) -> (Cow<'static, str>, String) {
    (Cow::Borrowed(name), value.to_owned())
}

/// By lower-case name, without what proves who somebody is: a function may write it somewhere.
fn headers(headers: &HeaderMap) -> String {
    let mut members = serde_json::Map::new();
    for name in headers.keys() {
        // Clients of Supabase send their token as the key of the API too.
        if [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE].contains(name) || name == "apikey" {
            continue;
        }
        let values = headers.get_all(name).iter();
        let values: Vec<_> = values.filter_map(|value| value.to_str().ok()).collect();
        members.insert(name.as_str().to_owned(), values.join(", ").into());
    }
    serde_json::Value::from(members).to_string()
}

/// By name, without the one that may hold a token, and those that browsers let only their own site set.
fn cookies(headers: &HeaderMap, token: &str) -> String {
    let values = headers.get_all(COOKIE).iter();
    let pairs = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(name, _)| *name != token && !name.starts_with("__Host-"));
    let members: serde_json::Map<String, serde_json::Value> = pairs
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    serde_json::Value::from(members).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_see_the_request_without_what_proves_who_it_is() {
        let identity = Identity {
            role: Some("web".to_owned()),
            claims: r#"{"role":"web","sub":"ann","exp":1}"#.into(),
            expires: None,
            verified: true,
            signed_by: None,
        };
        let (parts, ()) = hyper::Request::builder()
            .uri("/rest/v1/tasks?id=eq.7")
            .header("X-Seen", "yes")
            .header("Authorization", "Bearer secret-token")
            .header("apikey", "secret-token")
            .header("Proxy-Authorization", "Basic secret-token")
            .header(
                "Cookie",
                "theme=dark; __Host-rowcast=secret-token; sid=secret-token",
            )
            .body(())
            .unwrap()
            .into_parts();
        let context = of_request(&identity, "api", &parts, "sid");
        let get = |name| {
            let mut settings = context.settings.iter();
            settings.find_map(|(n, value)| (n == name).then_some(value.as_str()))
        };
        assert_eq!(context.role.as_deref(), Some("web"));
        assert_eq!(get("search_path"), Some("\"api\", public"));
        assert_eq!(get("request.path"), Some("/rest/v1/tasks"));
        assert_eq!(get("request.headers"), Some(r#"{"x-seen":"yes"}"#));
        assert_eq!(get("request.cookies"), Some(r#"{"theme":"dark"}"#));
        assert!(!format!("{context:?}").contains("secret-token"));
        // A view outlives one token and is shared by the next one of the same person.
        let view = of_view(&identity, "api", true);
        assert!(format!("{view:?}").contains("ann") && !format!("{view:?}").contains("exp"));
    }
}
