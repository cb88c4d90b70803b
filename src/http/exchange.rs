//! What every exchange has, whatever it is about: an id, a span in the log, a duration.
//!
//! The id is the caller's when it is harmless (`X-Request-Id`, or the trace of a `traceparent`) and ours
//! otherwise; it comes back in `X-Request-Id`
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
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Longest id taken from a caller, in bytes.
const LONGEST_ID: usize = 64;

/// One request's name in the log. Rooms find it in the request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    /// The caller's id if it is one of at most 64 bytes of `[A-Za-z0-9._-]`, or that of the trace that
    /// he takes part in, otherwise a new one.
    fn of(headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        text(X_REQUEST_ID)
            .filter(|id| is_harmless(id))
            .or_else(|| trace_id(text(TRACEPARENT)?))
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

/// The trace of a W3C `traceparent`, `version-trace-parent-flags` in lower-case hexadecimal; zeros alone
/// are no trace.
fn trace_id(traceparent: &str) -> Option<&str> {
    let parts: Vec<&str> = traceparent.split('-').collect();
    let [version, trace, parent, flags, ..] = parts[..] else {
        return None;
    };
    let hexadecimal = |part: &str, length: usize| {
        part.len() == length
            && part
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let whole = hexadecimal(version, 2)
        && hexadecimal(trace, 32)
        && hexadecimal(parent, 16)
        && hexadecimal(flags, 2);
    (whole && version != "ff" && trace.contains(|digit| digit != '0')).then_some(trace)
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
    fn a_trace_names_a_request_that_has_no_other_name() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let whole = format!("00-{trace}-b7ad6b7169203331-01");
        assert_eq!(trace_id(&whole), Some(trace));
        assert_eq!(
            trace_id(&format!("cc-{trace}-b7ad6b7169203331-01-more")),
            Some(trace)
        );
        for wrong in [
            "",
            "00-abc-b7ad6b7169203331-01",
            &whole.to_uppercase(),
            &whole[..whole.len() - 1],
            &whole.replacen("00", "ff", 1),
            &format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)),
        ] {
            assert_eq!(trace_id(wrong), None, "{wrong}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::try_from(whole).unwrap());
        assert_eq!(RequestId::of(&headers).as_str(), trace);
        headers.insert(X_REQUEST_ID, HeaderValue::from_static("mine"));
        assert_eq!(RequestId::of(&headers).as_str(), "mine");
    }

    #[test]
    fn an_invented_method_makes_no_new_label() {
        assert_eq!(
            method_label(&Method::from_bytes(b"BREW").unwrap()),
            "_OTHER"
        );
    }
}
