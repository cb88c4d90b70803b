//! Which request an `Idempotency-Key` stands for.

use hyper::header::HeaderName;
use hyper::http::request::Parts;

use super::problem::{Problem, logged};
use crate::auth::Identity;
use crate::http::headers::joined;
use crate::rows::once::Once;

const KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Headers that change what a request means. Those of the connection, of proxies and of the token
/// differ each time it is sent.
const MEANING: [&str; 6] = [
    "accept",
    "content-profile",
    "content-type",
    "if-match",
    "if-none-match",
    "prefer",
];

/// The key that a write was sent with, if it has one.
///
/// # Errors
/// A [`Problem`] with the key.
pub fn of(identity: &Identity, parts: &Parts, body: &[u8]) -> Result<Option<Once>, Problem> {
    let Some(key) = joined(&parts.headers, KEY.as_str()) else {
        return Ok(None);
    };
    let headers: Vec<String> = MEANING
        .iter()
        .map(|name| joined(&parts.headers, name).map_or_else(String::new, |v| format!("={v}")))
        .collect();
    let mut request: Vec<&[u8]> = vec![
        parts.method.as_str().as_bytes(),
        parts.uri.path().as_bytes(),
        parts.uri.query().unwrap_or_default().as_bytes(),
    ];
    request.extend(headers.iter().map(String::as_bytes));
    request.push(body);
    let caller = identity.context_claims();
    let once = Once::of(&caller, &key, &request);
    once.map(Some).map_err(|error| logged(&error))
}
