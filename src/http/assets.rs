//! The board and the client library, as files inside the binary.
//!
//! The table below is all there is: no file system is asked, so no path can lead anywhere else. A
//! file is served with its hash as `ETag` and must be asked for again each time; the page's policy
//! lets it load and reach nothing but the relay. It does not know the API, but for where it is.

use std::collections::HashMap;

use bytes::Bytes;
use hyper::header::{
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap,
    HeaderValue, IF_NONE_MATCH, REFERRER_POLICY,
};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};

use super::headers::joined;
use super::refusal::{Refusal, Shape};
use super::{Response, body};
use crate::etag::{self, Tags};

/// A file in the binary.
#[derive(Debug, PartialEq, Eq)]
pub struct File {
    path: &'static str,
    kind: &'static str,
    /// Whether the file belongs to the demo board, and not to the client library.
    board: bool,
    bytes: &'static [u8],
}

macro_rules! file {
    ($path:literal, $name:literal, $kind:expr, board: $board:literal) => {
        File {
            path: $path,
            kind: $kind,
            board: $board,
            bytes: include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/static/", $name)),
        }
    };
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const IMAGE: &str = "image/svg+xml";
const TYPES: &str = "application/typescript; charset=utf-8";

/// Every file, by the exact path that serves it.
#[rustfmt::skip]
static FILES: &[File] = &[
    file!("/",             "index.html",   HTML,   board: true),
    file!("/index.html",   "index.html",   HTML,   board: true),
    file!("/activity.js",  "activity.js",  SCRIPT, board: true),
    file!("/board.css",    "board.css",    CSS,    board: true),
    file!("/board.js",     "board.js",     SCRIPT, board: true),
    file!("/drag.js",      "drag.js",      SCRIPT, board: true),
    file!("/editor.js",    "editor.js",    SCRIPT, board: true),
    file!("/favicon.svg",  "favicon.svg",  IMAGE,  board: true),
    file!("/kept.js",      "kept.js",      SCRIPT, board: true),
    file!("/lists.js",     "lists.js",     SCRIPT, board: true),
    file!("/pending.js",   "pending.js",   SCRIPT, board: true),
    file!("/people.js",    "people.js",    SCRIPT, board: true),
    file!("/reminders.js", "reminders.js", SCRIPT, board: true),
    file!("/session.js",   "session.js",   SCRIPT, board: true),
    file!("/status.js",    "status.js",    SCRIPT, board: true),
    file!("/time.js",      "time.js",      SCRIPT, board: true),
    file!("/toast.js",     "toast.js",     SCRIPT, board: true),
    file!("/rowcast.js",   "rowcast.js",   SCRIPT, board: false),
    file!("/rowcast.d.ts", "rowcast.d.ts", TYPES,  board: false),
];

impl File {
    /// The file at exactly this path.
    #[must_use]
    pub fn at(path: &str) -> Option<&'static Self> {
        FILES.iter().find(|file| file.path == path)
    }

    /// The path that serves it.
    #[must_use]
    pub fn path(&self) -> &'static str {
        self.path
    }
}

const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; worker-src 'self'; manifest-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'",
);

/// The methods that a file answers.
pub const METHODS: &str = "GET, HEAD, OPTIONS";

/// The files, ready to be served.
#[derive(Debug)]
pub struct Assets {
    board: bool,
    /// By path.
    versions: HashMap<&'static str, String>,
}

impl Assets {
    /// With the demo board, or with the client library alone.
    #[must_use]
    pub fn new(board: bool) -> Self {
        let versions = FILES.iter().map(|file| (file.path, etag::of(file.bytes)));
        Self {
            board,
            versions: versions.collect(),
        }
    }

    /// Answers a request for `file`.
    #[must_use]
    pub fn respond(&self, parts: &Parts, file: &'static File) -> Response {
        if !matches!(parts.method, Method::GET | Method::HEAD) {
            return Refusal::Method(METHODS).respond(Shape::Problem);
        }
        if file.board && !self.board {
            return if file.path == "/" {
                signpost()
            } else {
                Refusal::NotFound.respond(Shape::Problem)
            };
        }
        let version = &self.versions[file.path];
        let tag = HeaderValue::from_str(&format!("\"{version}\""));
        let mut response = Response::new(body::empty());
        let headers = response.headers_mut();
        headers.insert(ETAG, tag.expect("digits and quotes are a header's"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(CONTENT_SECURITY_POLICY, POLICY);
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        if has_already(&parts.headers, version) {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return response;
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(file.kind));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(file.bytes.len()));
        if parts.method == Method::GET {
            *response.body_mut() = body::full(Bytes::from_static(file.bytes));
        }
        response
    }
}

/// What `/` says when there is no board.
fn signpost() -> Response {
    let mut response = Response::new(body::full(
        "Rowcast is running. The API is at /rest/v1/ and the client is /rowcast.js.\n",
    ));
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(CONTENT_SECURITY_POLICY, POLICY);
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// Whether `If-None-Match` names this content. The comparison is weak, as RFC 9110 §13.1.2 asks:
/// a proxy that compresses marks the tag as weak. A header that cannot be read names nothing.
fn has_already(headers: &HeaderMap, version: &str) -> bool {
    let known = joined(headers, IF_NONE_MATCH.as_str()).unwrap_or_default();
    Tags::parse(&known).is_ok_and(|known| known.matches_weakly(version))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn ask(assets: &Assets, method: Method, path: &str, known: Option<&str>) -> Response {
        let mut request = hyper::Request::builder().method(method).uri(path);
        if let Some(known) = known {
            request = request.header(IF_NONE_MATCH, known);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        assets.respond(&parts, File::at(path).unwrap())
    }

    async fn bytes(response: Response) -> Bytes {
        response.into_body().collect().await.unwrap().to_bytes()
    }

    #[tokio::test]
    async fn the_page_comes_with_a_policy_that_reaches_nothing_but_the_relay() {
        let response = ask(&Assets::new(true), Method::GET, "/", None);
        let headers = response.headers();
        assert_eq!(headers[CONTENT_TYPE], "text/html; charset=utf-8");
        assert_eq!(headers[CACHE_CONTROL], "no-cache");
        assert_eq!(headers[REFERRER_POLICY], "no-referrer");
        let policy = headers[CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"));
        assert!(!policy.contains("unsafe") && !policy.contains("  "));
        assert!(bytes(response).await.starts_with(b"<!doctype html>"));
    }

    #[tokio::test]
    async fn a_file_that_the_browser_has_is_not_sent_again() {
        let assets = Assets::new(true);
        let response = ask(&assets, Method::GET, "/board.js", None);
        let tag = response.headers()[ETAG].to_str().unwrap().to_owned();
        let weak = format!("W/{tag}");
        let among = format!("\"other\", {tag}");
        for known in [tag.as_str(), &weak, &among, "*"] {
            let again = ask(&assets, Method::GET, "/board.js", Some(known));
            assert_eq!(again.status(), 304, "{known}");
            assert_eq!(again.headers()[ETAG], tag);
            assert!(bytes(again).await.is_empty());
        }
        let changed = ask(&assets, Method::GET, "/board.js", Some("\"other\""));
        assert_eq!(changed.status(), 200);
    }

    #[tokio::test]
    async fn head_tells_the_length_and_sends_nothing() {
        let response = ask(&Assets::new(true), Method::HEAD, "/rowcast.js", None);
        let length = File::at("/rowcast.js").unwrap().bytes.len().to_string();
        assert_eq!(response.headers()[CONTENT_LENGTH], length.as_str());
        assert!(bytes(response).await.is_empty());
    }

    #[test]
    fn a_file_cannot_be_written() {
        let response = ask(&Assets::new(true), Method::POST, "/board.js", None);
        assert_eq!(response.status(), 405);
        assert_eq!(response.headers()["allow"], METHODS);
    }

    #[tokio::test]
    async fn without_the_board_only_the_client_is_served() {
        let assets = Assets::new(false);
        for path in ["/board.js", "/board.css", "/index.html"] {
            assert_eq!(ask(&assets, Method::GET, path, None).status(), 404);
        }
        for path in ["/rowcast.js", "/rowcast.d.ts"] {
            assert_eq!(ask(&assets, Method::GET, path, None).status(), 200);
        }
        let root = ask(&assets, Method::GET, "/", None);
        assert_eq!(root.headers()[CONTENT_TYPE], "text/plain; charset=utf-8");
        let sentence = bytes(root).await;
        assert!(String::from_utf8_lossy(&sentence).contains("/rest/v1/"));
    }
}
