//! Which origin asks, and what its pages may do.
//!
//! The judgement is pure: request headers in, [`Origin`] out. Pages of the relay's own origin may
//! do everything, pages of a listed one too, with credentials. Pages of any other origin get no
//! CORS headers, so that the browser keeps what they read from them, and may neither write nor
//! watch. It never sends `*` together with credentials, and it does not know who the user is.
//!
//! What a page's own origin is, the request says itself. Where whoever reaches the relay may do everything, and
//! only this machine reaches it, a name that somebody else could have pointed here is therefore refused
//! ([`Origins::knows_host`]): by DNS rebinding any site that is visited from this machine would be the relay's own.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HOST, HeaderMap, HeaderName,
    HeaderValue, ORIGIN, VARY,
};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};

use super::{Response, body};

/// The origins whose pages may use the relay, besides its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins {
    any: bool,
    listed: BTreeSet<String>,
    private: bool,
}

/// An origin in the settings that is not one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not an origin like \"https://app.example\" and not \"*\"")]
pub struct NotAnOrigin(pub String);

impl Origins {
    /// Reads a list of exact origins; `*` in it allows every page, without credentials.
    ///
    /// # Errors
    /// The first entry that is neither `*` nor `scheme://host[:port]`.
    pub fn new<I>(entries: I) -> Result<Self, NotAnOrigin>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let mut origins = Self::default();
        for entry in entries {
            let entry = entry.as_ref().trim();
            if entry == "*" {
                origins.any = true;
                continue;
            }
            let normal = normal(entry).ok_or_else(|| NotAnOrigin(entry.to_owned()))?;
            origins.listed.insert(normal);
        }
        Ok(origins)
    }

    /// The same for a relay that asks nobody who they are, on an address of this machine alone.
    #[must_use]
    pub fn private(self) -> Self {
        Self {
            private: true,
            ..self
        }
    }

    /// Whether it may be asked by the name that the request calls it. A [private](Self::private) relay may by its
    /// number, by a name that no public DNS has (`localhost`, one without a dot), and by those of listed origins.
    #[must_use]
    pub fn knows_host(&self, parts: &Parts) -> bool {
        if !self.private || self.any {
            return true;
        }
        let Some(target) = target(parts) else {
            // No browser's.
            return !parts.headers.contains_key(HOST);
        };
        let listed = |origin: &String| {
            origin.split_once("://").is_some_and(|(scheme, authority)| {
                without_default_port(scheme, &target) == authority
            })
        };
        let private = |host: &str| {
            host.parse::<IpAddr>().is_ok() || !host.contains('.') || host.ends_with(".localhost")
        };
        host(&target).is_some_and(private) || self.listed.iter().any(listed)
    }

    /// Judges who asks.
    #[must_use]
    pub fn judge(&self, parts: &Parts) -> Origin {
        let mut origins = parts.headers.get_all(ORIGIN).iter();
        let Some(origin) = origins.next() else {
            return if comes_from_elsewhere(&parts.headers) {
                Origin::Foreign
            } else {
                Origin::None
            };
        };
        if origins.next().is_some() {
            return Origin::Foreign; // Browsers send one.
        }
        let normal = origin.to_str().ok().and_then(normal);
        match normal {
            Some(normal) if is_same(&normal, parts) => Origin::Same,
            Some(normal) if self.listed.contains(&normal) => Origin::Listed(origin.clone()),
            _ if self.any => Origin::Any,
            _ => Origin::Foreign,
        }
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Not a page, or a page's own plain request: there is no `Origin` header.
    None,
    /// The relay's own.
    Same,
    /// One that the operator has listed, as the browser wrote it.
    Listed(HeaderValue),
    /// One that is not listed, while the operator allows all.
    Any,
    /// None of ours.
    Foreign,
}

/// `scheme://host[:port]` in lower case and without the scheme's default port.
fn normal(origin: &str) -> Option<String> {
    let origin = origin.to_ascii_lowercase();
    let (scheme, authority) = origin.split_once("://")?;
    let named = !scheme.is_empty()
        && scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let addressed = !authority.is_empty()
        && authority
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._~:[]".contains(&byte));
    (named && addressed).then(|| format!("{scheme}://{}", without_default_port(scheme, authority)))
}

fn without_default_port<'a>(scheme: &str, authority: &'a str) -> &'a str {
    let default = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return authority,
    };
    authority.strip_suffix(default).unwrap_or(authority)
}

/// Whether the origin's host and port are those the request was sent to. The scheme is left out: a
/// proxy that ends TLS in front of us changes it.
fn is_same(origin: &str, parts: &Parts) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else {
        return false;
    };
    target(parts).is_some_and(|target| without_default_port(scheme, &target) == authority)
}

/// The host and port that the request was sent to, in lower case.
fn target(parts: &Parts) -> Option<String> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let target = match (parts.uri.authority(), hosts.next(), hosts.next()) {
        (Some(authority), _, None) => authority.as_str(),
        (None, Some(host), None) => host.to_str().unwrap_or_default(),
        _ => return None,
    };
    Some(target.to_ascii_lowercase())
}

/// The host of a host and port, an IPv6 address without its brackets; `None` for what is neither.
pub(super) fn host(authority: &str) -> Option<&str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(six) => six.split_once(']')?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = port.strip_prefix(':').unwrap_or(port);
    port.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then_some(host)
}

/// Browsers leave `Origin` out of some requests that another site has caused, but then say so.
fn comes_from_elsewhere(headers: &HeaderMap) -> bool {
    headers
        .get("sec-fetch-site")
        .is_some_and(|site| site == "cross-site" || site == "same-site")
}

/// Whether this is the question a browser asks before a request that is not simple.
#[must_use]
pub fn is_preflight(parts: &Parts) -> bool {
    parts.method == Method::OPTIONS
        && parts.headers.contains_key(ORIGIN)
        && parts.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

const METHODS: HeaderValue =
    HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
/// What pages send that know the API. Browsers keep a preflight's answer, so more than is asked is told.
const REQUEST_HEADERS: &str = "Authorization, Content-Type, Prefer, Range, Range-Unit, Accept, Accept-Profile, \
     Content-Profile, Last-Event-ID, apikey, X-Client-Info, X-Supabase-Api-Version, If-Match, \
     If-None-Match, Idempotency-Key, Cache-Control, X-Request-Id, traceparent, tracestate";
const RESPONSE_HEADERS: HeaderValue = HeaderValue::from_static(
    "Content-Range, Content-Location, Location, Preference-Applied, Rowcast-Txid, ETag, \
     Idempotency-Replayed, \
     Retry-After, Server-Timing, WWW-Authenticate, Proxy-Status, X-Request-Id",
);
/// Seconds; browsers cut it to two hours at most.
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");

/// What a page may send: what we know, and what else its browser asks for. Libraries add headers of their own, such
/// as supabase-js to a request that it repeats, and functions read those of an application. Only names come back.
fn request_headers(asked: &HeaderMap) -> HeaderValue {
    let mut allowed = REQUEST_HEADERS.to_owned();
    let asked = asked.get_all(ACCESS_CONTROL_REQUEST_HEADERS).iter();
    for name in asked.flat_map(|list| list.as_bytes().split(|byte| *byte == b',')) {
        let Ok(name) = HeaderName::from_bytes(name.trim_ascii()) else {
            continue;
        };
        let known = |known: &str| known.trim().eq_ignore_ascii_case(name.as_str());
        if !REQUEST_HEADERS.split(',').any(known) {
            allowed.push_str(", ");
            allowed.push_str(name.as_str());
        }
    }
    HeaderValue::try_from(allowed).unwrap_or(HeaderValue::from_static(REQUEST_HEADERS))
}

/// The answer to a preflight. [`apply`] adds the headers that every response carries.
#[must_use]
pub fn preflight(origin: &Origin, asked: &HeaderMap) -> Response {
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    if matches!(origin, Origin::Listed(_) | Origin::Any | Origin::Same) {
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, request_headers(asked));
        headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    }
    response
}

/// Adds what `origin` may know to a response.
pub fn apply(response: &mut Response, origin: &Origin) {
    let headers = response.headers_mut();
    // The same URL answers different origins differently: also for those that get nothing.
    headers.append(VARY, HeaderValue::from_static("Origin"));
    let allowed = match origin {
        Origin::Listed(origin) => {
            headers.insert(
                ACCESS_CONTROL_ALLOW_CREDENTIALS,
                HeaderValue::from_static("true"),
            );
            origin.clone()
        }
        Origin::Any => HeaderValue::from_static("*"),
        Origin::None | Origin::Same | Origin::Foreign => return,
    };
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, RESPONSE_HEADERS);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = hyper::Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn judge(origins: &[&str], host: &str, origin: &str) -> Origin {
        let headers = [("host", host), ("origin", origin)];
        Origins::new(origins).unwrap().judge(&parts("/", &headers))
    }

    #[test]
    fn an_origin_is_ours_when_its_host_and_port_are_those_we_were_asked_at() {
        for (host, origin) in [
            ("localhost:3000", "http://localhost:3000"),
            ("LocalHost:3000", "http://localhost:3000"),
            ("relay.example", "https://relay.example"),
            ("relay.example", "https://Relay.Example:443"),
            ("relay.example:80", "http://relay.example"),
            ("[::1]:3000", "http://[::1]:3000"),
        ] {
            assert_eq!(judge(&[], host, origin), Origin::Same, "{host} {origin}");
        }
    }

    #[test]
    fn everything_else_is_foreign_until_it_is_listed() {
        for (host, origin) in [
            ("localhost:3000", "http://localhost:3001"),
            ("localhost:3000", "http://localhost"),
            ("localhost:3000", "http://evil.example"),
            ("localhost:3000", "http://localhost:3000.evil.example"),
            ("localhost:3000", "http://evil@localhost:3000"),
            ("localhost:3000", "http://localhost:3000/"),
            ("localhost:3000", "localhost:3000"),
            ("localhost:3000", "://localhost:3000"),
            ("localhost:3000", "null"),
            ("localhost:3000", ""),
            ("relay.example:443", "http://relay.example"),
        ] {
            assert_eq!(judge(&[], host, origin), Origin::Foreign, "{host} {origin}");
            assert_eq!(judge(&["*"], host, origin), Origin::Any, "{host} {origin}");
        }
    }

    #[test]
    fn a_private_relay_is_not_asked_by_a_name_that_others_could_have_pointed_here() {
        let listed = || Origins::new(["https://app.example", "http://board.example:8080"]).unwrap();
        let private = listed().private();
        let asked = |origins: &Origins, host| origins.knows_host(&parts("/", &[("host", host)]));
        for host in [
            "127.0.0.1:3000",
            "127.0.0.1",
            "[::1]:3000",
            "[::1]",
            "localhost:3000",
            "LOCALHOST",
            "board.localhost:3000",
            "relay:3000",
            "app.example",
            "App.Example:443",
            "board.example:8080",
        ] {
            assert!(asked(&private, host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:3000",
            "evil.example.",
            "127.0.0.1.evil.example:3000",
            "localhost.evil.example",
            "app.example:3000",
            "board.example",
            "evil.example:",
            "localhost:evil.example",
            "127.0.0.1:evil.example:3000",
            "[::1].evil.example",
        ] {
            assert!(!asked(&private, host), "{host}");
            assert!(asked(&listed(), host), "{host}");
            assert!(asked(&Origins::new(["*"]).unwrap().private(), host));
        }
        assert!(private.knows_host(&parts("/", &[])));
        assert!(!private.knows_host(&parts("http://evil.example/", &[])));
        let two = [("host", "localhost"), ("host", "evil.example")];
        assert!(!private.knows_host(&parts("/", &two)));
    }

    #[test]
    fn a_listed_origin_is_matched_as_a_whole() {
        let listed = ["https://app.example", "http://localhost:5173"];
        let judge = |origin| judge(&listed, "relay.example", origin);
        assert!(matches!(judge("https://app.example"), Origin::Listed(_)));
        assert!(matches!(judge("http://localhost:5173"), Origin::Listed(_)));
        for foreign in [
            "http://app.example",
            "https://app.example.evil.example",
            "https://x.app.example",
            "https://app.example:8443",
        ] {
            assert_eq!(judge(foreign), Origin::Foreign, "{foreign}");
        }
    }

    #[test]
    fn the_authority_of_http_2_counts_as_the_host() {
        let parts = parts(
            "http://relay.example:3000/rest/v1/tasks",
            &[("origin", "http://relay.example:3000")],
        );
        assert_eq!(Origins::default().judge(&parts), Origin::Same);
    }

    #[test]
    fn two_origins_or_two_hosts_are_nobody() {
        let ours = "http://relay.example";
        let host = ("host", "relay.example");
        let twice = parts("/", &[host, ("origin", ours), ("origin", ours)]);
        assert_eq!(Origins::default().judge(&twice), Origin::Foreign);
        let twice = parts("/", &[host, ("host", "evil.example"), ("origin", ours)]);
        assert_eq!(Origins::default().judge(&twice), Origin::Foreign);
    }

    #[test]
    fn without_an_origin_the_browser_itself_tells_who_caused_the_request() {
        let judge = |headers: &[_]| Origins::default().judge(&parts("/", headers));
        assert_eq!(judge(&[]), Origin::None);
        assert_eq!(judge(&[("sec-fetch-site", "same-origin")]), Origin::None);
        assert_eq!(judge(&[("sec-fetch-site", "none")]), Origin::None);
        assert_eq!(judge(&[("sec-fetch-site", "cross-site")]), Origin::Foreign);
        assert_eq!(judge(&[("sec-fetch-site", "same-site")]), Origin::Foreign);
    }

    #[test]
    fn a_setting_that_is_not_an_origin_is_told() {
        for wrong in [
            "app.example",
            "https://",
            "https://app.example/",
            "https://*.example",
            "",
        ] {
            assert_eq!(Origins::new([wrong]), Err(NotAnOrigin(wrong.into())));
        }
    }

    #[test]
    fn any_origin_never_comes_with_credentials() {
        let mut response = preflight(&Origin::Any, &HeaderMap::new());
        apply(&mut response, &Origin::Any);
        assert_eq!(response.headers()[ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        assert!(
            !response
                .headers()
                .contains_key(ACCESS_CONTROL_ALLOW_CREDENTIALS)
        );
    }

    #[test]
    fn a_listed_origin_is_named_back_and_may_bring_credentials() {
        let origin = Origin::Listed(HeaderValue::from_static("https://app.example"));
        let mut response = preflight(&origin, &HeaderMap::new());
        apply(&mut response, &origin);
        let headers = response.headers();
        assert_eq!(response.status(), 204);
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_ORIGIN], "https://app.example");
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_CREDENTIALS], "true");
        assert_eq!(headers[VARY], "Origin");
        let may_send = headers[ACCESS_CONTROL_ALLOW_HEADERS].to_str().unwrap();
        assert!(may_send.contains("Last-Event-ID"));
        let may_read = headers[ACCESS_CONTROL_EXPOSE_HEADERS].to_str().unwrap();
        assert!(may_read.contains("Rowcast-Txid"));
    }

    #[test]
    fn a_page_may_send_headers_of_its_own_and_only_their_names_come_back() {
        let mut asked = HeaderMap::new();
        let list = "x-retry-count, PREFER,x-tenant,, a b, \u{fc}";
        let list = HeaderValue::from_bytes(list.as_bytes()).unwrap();
        asked.append(ACCESS_CONTROL_REQUEST_HEADERS, list);
        asked.append(
            ACCESS_CONTROL_REQUEST_HEADERS,
            HeaderValue::from_static("baggage"),
        );
        let response = preflight(&Origin::Any, &asked);
        let allowed = response.headers()[ACCESS_CONTROL_ALLOW_HEADERS].to_str();
        assert_eq!(
            allowed.unwrap(),
            format!("{REQUEST_HEADERS}, x-retry-count, x-tenant, baggage")
        );
    }

    #[test]
    fn a_foreign_origin_gets_no_word_of_permission() {
        let mut asked = HeaderMap::new();
        asked.append(
            ACCESS_CONTROL_REQUEST_HEADERS,
            HeaderValue::from_static("x-tenant"),
        );
        let mut response = preflight(&Origin::Foreign, &asked);
        apply(&mut response, &Origin::Foreign);
        let names: Vec<_> = response.headers().keys().collect();
        assert_eq!(names, [VARY.as_str()]);
    }
}
