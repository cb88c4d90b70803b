//! What a stream says of itself: the text of `event: control`. Pure.

use std::time::Duration;

use bytes::Bytes;

use super::Unavailable;
use crate::cursor::{LONGEST_TOKEN, START};
use crate::mutants::{Mutant, on};
use crate::sse;
use crate::view::View;

/// The members of a control that says that the relay stops, and when to come back.
pub(super) fn closing(retry: u64) -> String {
    format!(r#","closing":true,"retry_ms":{retry}"#)
}

/// How far behind a stream is.
#[derive(Debug, Clone, Copy)]
pub(super) struct State {
    /// The screen shows what is there.
    pub(super) fresh: bool,
    /// Since the log was last read to its end.
    pub(super) lag: Duration,
}

/// A control under `id`; `more` are further members of its object, each with a comma in front.
pub(super) fn frame(id: &str, retry: Option<u64>, state: State, more: &str) -> Bytes {
    let State { fresh, lag } = state;
    let fresh = fresh || on(Mutant::M15);
    let lag = lag.as_millis();
    let json = format!(r#"{{"upToDate":{fresh},"lag_ms":{lag}{more}}}"#);
    sse::control(retry, id, &json)
}

/// A control that says why the stream ends. An `EventSource` keeps `retry:` to itself, and a page that
/// makes a new one each time has to know it as well.
pub(super) fn ended(id: &str, retry: u64, why: &Unavailable) -> Bytes {
    let error = &why.body;
    let json = format!(r#"{{"upToDate":false,"error":{error},"retry_ms":{retry}}}"#);
    sse::control(Some(retry), id, &json)
}

/// The same for a client that brought `token`, which stays his.
pub(super) fn unavailable(token: Option<&str>, retry: u64, why: &Unavailable) -> Bytes {
    ended(id(token), retry, why)
}

/// What to write back as the id to a client that brought `token`.
pub(super) fn id(token: Option<&str>) -> &str {
    token.filter(|token| is_id(token)).unwrap_or(START)
}

/// The columns of a view as JSON text.
pub(super) fn columns(view: &View) -> String {
    let member = |(name, kind): &(String, String)| serde_json::json!({"name": name, "type": kind});
    let schema: Vec<serde_json::Value> = view.columns().iter().map(member).collect();
    serde_json::Value::from(schema).to_string()
}

/// Whether a client's text may be written back as an id.
fn is_id(text: &str) -> bool {
    text.len() <= LONGEST_TOKEN
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}
