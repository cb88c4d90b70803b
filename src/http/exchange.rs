//! What every exchange has, whatever it is about: an id, a span in the log, a duration.
//!
//! The id is the caller's when it is harmless and ours otherwise; it comes back in `X-Request-Id`
//! and stands in the log. Durations are counted by route pattern, never by path, and never for event
//! streams, which last as long as somebody looks. It does not know what is answered.

use std::future::Future;
use std::time::Instant;

use hyper::Method;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use tracing::Instrument;

use super::{Request, Response};
use crate::metrics::{Exchange, Metrics};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id taken from a caller, in bytes.
const LONGEST_ID: usize = 64;

/// One request's name in the log. Rooms find it in the request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    /// The caller's id if it is one of at most 64 bytes of `[A-Za-z0-9._-]`, otherwise a new one.
    fn of(headers: &HeaderMap) -> Self {
        headers
            .get(X_REQUEST_ID)
            .and_then(|id| id.to_str().ok())
            .filter(|id| is_harmless(id))
            .map_or_else(Self::new, |id| Self(id.to_owned()))
    }

    fn new() -> Self {
        Self(format!("{:016x}", fastrand::u64(..)))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn into_header(self) -> HeaderValue {
        HeaderValue::try_from(self.0).expect("only harmless ids are taken or made")
    }
}

/// The set is that of our own tokens: an id is copied into the log and into a header.
fn is_harmless(id: &str) -> bool {
    (1..=LONGEST_ID).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Answers `request` with `answer`, in a span of its own, and counts it under `route`.
pub async fn run<F>(
    metrics: &Metrics,
    route: &'static str,
    mut request: Request,
    answer: impl FnOnce(Request) -> F,
) -> Response
where
    F: Future<Output = Response>,
{
    let began = Instant::now();
    let method = method_label(request.method());
    let id = RequestId::of(request.headers());
    let span = tracing::info_span!("request", id = id.as_str(), method, route);
    request.extensions_mut().insert(id.clone());

    let mut response = answer(request).instrument(span.clone()).await;

    let headers = response.headers_mut();
    headers.insert(X_REQUEST_ID, id.into_header());
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let took = began.elapsed();
    let status = response.status().as_u16();
    span.in_scope(|| tracing::debug!(status, ?took, "answered"));
    if !is_event_stream(response.headers()) {
        let exchange = Exchange {
            http_request_method: method,
            http_route: route,
            http_response_status_code: status,
        };
        metrics
            .http_requests
            .get_or_create(&exchange)
            .observe(took.as_secs_f64());
    }
    response
}

/// Whether a response is an event stream.
#[must_use]
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

/// A bounded label: clients can invent methods.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::CONNECT => "CONNECT",
        Method::TRACE => "TRACE",
        _ => "_OTHER",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_of(value: &[u8]) -> RequestId {
        let mut headers = HeaderMap::new();
        headers.insert(X_REQUEST_ID, HeaderValue::from_bytes(value).unwrap());
        RequestId::of(&headers)
    }

    #[test]
    fn a_harmless_id_is_kept() {
        assert_eq!(id_of(b"a1.B-2_c").as_str(), "a1.B-2_c");
        assert_eq!(id_of(&[b'x'; 64]).as_str().len(), 64);
    }

    #[test]
    fn any_other_id_is_replaced() {
        for value in [
            &b""[..],
            b"a b",
            b"a\"b",
            b"a{b}",
            "\u{e9}".as_bytes(),
            &[b'x'; 65],
        ] {
            let id = id_of(value);
            assert_eq!(id.as_str().len(), 16, "{value:?}");
            assert!(is_harmless(id.as_str()));
        }
        assert_ne!(
            RequestId::of(&HeaderMap::new()),
            RequestId::of(&HeaderMap::new())
        );
    }

    #[test]
    fn an_invented_method_makes_no_new_label() {
        assert_eq!(
            method_label(&Method::from_bytes(b"BREW").unwrap()),
            "_OTHER"
        );
    }
}
