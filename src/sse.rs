//! Events to bytes, by the rules that make every client read the same (the EventSource standard,
//! HTML §9.2, and fourteen clients that read it differently).
//!
//! Line feeds only, one space after the colon, `event:` before `id:` before `data:`, every event
//! with id and data, no empty event, and every line break inside a value a new `data:` line. The
//! array of elements is written one element a line. Pure: no socket, no task.

use std::fmt::Write;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use crate::cursor::Xid;
use crate::etag;
use crate::event::Element;
use crate::mutants::{Mutant, on};

/// Opens a stream at once and keeps idle proxies awake. One newline: a blank line after a comment
/// arrives as an empty message in one client.
pub const COMMENT: &str = ":\n";

/// How the lines of an array begin.
const OPEN: &str = "data: [";
/// And how they end.
const CLOSE: &str = "data: ]";

/// The `data:` lines of an array of elements, with the blank line that ends the event. `kind` is
/// what the elements are of: `schema.table`, or a channel.
#[derive(Debug)]
pub struct Array<'a> {
    kind: &'a str,
    text: String,
    empty: bool,
}

impl<'a> Array<'a> {
    /// An array without elements.
    #[must_use]
    pub fn new(kind: &'a str) -> Self {
        Self {
            kind,
            text: String::from(OPEN),
            empty: true,
        }
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.empty
    }

    /// Bytes so far.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.text.len()
    }

    /// Appends an element.
    pub fn push(&mut self, element: &Element) {
        self.text
            .push_str(if self.empty { "\ndata: " } else { ",\ndata: " });
        self.empty = false;
        match element {
            Element::Reset => self.control("reset"),
            Element::SnapshotStart => self.control("snapshot-start"),
            Element::SnapshotEnd => self.control("snapshot-end"),
            Element::Row { key, value } => self.row(key, value.as_ref(), "insert", None),
            Element::Upsert {
                key,
                value,
                inserted,
                xid,
                at,
            } => {
                let operation = if *inserted { "insert" } else { "update" };
                self.row(key, value.as_ref(), operation, Some((*xid, *at)));
            }
            Element::Delete { key, by } => {
                self.open();
                self.member("key", &string(key));
                self.headers("delete", *by, None);
                self.close();
            }
            Element::Message { payload, xid, at } => {
                self.open();
                self.member("value", payload);
                self.headers("message", Some((*xid, *at)), None);
                self.close();
            }
            Element::Notify { payload } => {
                self.open();
                self.member("value", &string(payload));
                self.headers("notify", None, None);
                self.close();
            }
        }
    }

    /// The finished lines.
    #[must_use]
    pub fn finish(mut self) -> Bytes {
        self.text.push('\n');
        self.text.push_str(CLOSE);
        self.text.push_str("\n\n");
        self.text.into()
    }

    fn control(&mut self, name: &str) {
        let _infallible = write!(self.text, r#"{{"headers":{{"control":"{name}"}}}}"#);
    }

    fn row(
        &mut self,
        key: &str,
        value: Option<&Arc<str>>,
        operation: &str,
        transaction: Option<(Xid, Timestamp)>,
    ) {
        self.open();
        self.member("key", &string(key));
        if let Some(value) = value {
            self.member("value", value);
        }
        let version = value.map(|value| etag::of(&**value));
        self.headers(operation, transaction, version.as_deref());
        if value.is_none() {
            self.text.push_str(r#","too_large":true"#);
        }
        self.close();
    }

    fn open(&mut self) {
        self.text.push_str("{\"type\":");
        self.text.push_str(&string(self.kind));
        self.text.push(',');
    }

    /// `value` is JSON text, and may hold line breaks between its tokens.
    fn member(&mut self, name: &str, value: &str) {
        let _infallible = write!(self.text, "\"{name}\":");
        lines(&mut self.text, value);
        self.text.push(',');
    }

    /// `version` is of the value as it is told, before its line breaks become lines.
    fn headers(
        &mut self,
        operation: &str,
        transaction: Option<(Xid, Timestamp)>,
        version: Option<&str>,
    ) {
        let _infallible = write!(self.text, r#""headers":{{"operation":"{operation}""#);
        if let Some(version) = version {
            let _infallible = write!(self.text, r#","etag":"{version}""#);
        }
        if let Some((xid, at)) = transaction {
            let _infallible = write!(self.text, r#","txid":"{xid}","timestamp":"{at}""#);
        }
    }

    fn close(&mut self) {
        self.text.push_str("}}");
    }
}

/// Finished lines of an array without those elements that `is_known`, by their place; some must be left. An element
/// is a line.
#[must_use]
pub fn without(lines: &[u8], is_known: impl Fn(usize) -> bool) -> Bytes {
    let mut text = OPEN.as_bytes().to_vec();
    let mut separator: &[u8] = b"\n";
    let elements = lines.split(|byte| *byte == b'\n').skip(1);
    let elements = elements.take_while(|line| !line.starts_with(CLOSE.as_bytes()));
    for (_, line) in elements.enumerate().filter(|(place, _)| !is_known(*place)) {
        text.extend_from_slice(separator);
        text.extend_from_slice(line.strip_suffix(b",").unwrap_or(line));
        separator = b",\n";
    }
    text.push(b'\n');
    text.extend_from_slice(CLOSE.as_bytes());
    text.extend_from_slice(b"\n\n");
    text.into()
}

/// The finished lines of an array that is not empty, with a reset in front of its elements.
#[must_use]
pub fn with_reset(lines: &[u8]) -> Bytes {
    let mut reset = Array::new("");
    reset.push(&Element::Reset);
    let elements = lines.strip_prefix(OPEN.as_bytes()).unwrap_or(lines);
    [reset.text.as_bytes(), b",", elements].concat().into()
}

/// The lines before `data:`. `retry` is in milliseconds.
#[must_use]
pub fn head(retry: Option<u64>, event: &str, id: &str) -> String {
    let mut text = String::with_capacity(id.len() + 32);
    if let Some(retry) = retry {
        let _infallible = writeln!(text, "retry: {retry}");
    }
    let _infallible = write!(text, "event: {event}\nid: {id}\n");
    text
}

/// A frame, which comes in parts, as a chunk of HTTP/1.1 (RFC 9112, section 7.1), and where it lies in it.
#[must_use]
pub fn chunk(frame: &[&[u8]]) -> (Bytes, Range<usize>) {
    let length: usize = frame.iter().map(|part| part.len()).sum();
    let mut chunk = format!("{length:X}\r\n").into_bytes();
    let start = chunk.len();
    chunk.reserve_exact(length + 2);
    for part in frame {
        chunk.extend_from_slice(part);
    }
    chunk.extend_from_slice(b"\r\n");
    (chunk.into(), start..start + length)
}

/// An event whose data is one JSON text.
#[must_use]
pub fn control(retry: Option<u64>, id: &str, json: &str) -> Bytes {
    let mut text = head(retry, "control", id);
    text.push_str("data: ");
    lines(&mut text, json);
    text.push_str("\n\n");
    text.into()
}

/// Appends text of the current `data:` line; a line feed, a carriage return or both begin a new one.
fn lines(text: &mut String, json: &str) {
    let mut rest = json;
    if on(Mutant::M14) {
        return text.push_str(json);
    }
    while let Some(end) = rest.find(['\n', '\r']) {
        text.push_str(&rest[..end]);
        text.push_str("\ndata: ");
        let pair = rest[end..].starts_with("\r\n");
        rest = &rest[end + 1 + usize::from(pair)..];
    }
    text.push_str(rest);
}

/// A JSON string.
fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the EventSource standard makes of a stream: (event, id, data), written from its text.
    fn dispatch(stream: &str) -> Vec<(String, String, String)> {
        let (mut event, mut id, mut data) = (String::new(), String::new(), None::<String>);
        let mut events = Vec::new();
        let normal = stream.replace("\r\n", "\n").replace('\r', "\n");
        for line in normal.split('\n') {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" if line.is_empty() => {
                    if let Some(data) = data.take() {
                        events.push((std::mem::take(&mut event), id.clone(), data));
                    }
                }
                "event" => value.clone_into(&mut event),
                "id" => value.clone_into(&mut id),
                "data" => {
                    data = Some(match data {
                        None => value.to_owned(),
                        Some(before) => before + "\n" + value,
                    });
                }
                _ => {}
            }
        }
        events
    }

    fn upsert(key: &str, value: &str) -> Element {
        Element::Upsert {
            key: key.into(),
            value: Some(value.into()),
            inserted: false,
            xid: 7,
            at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_reset_may_be_put_in_front_of_what_is_finished() {
        let lines = |elements: &[Element]| {
            let mut array = Array::new("public.tasks");
            for element in elements {
                array.push(element);
            }
            array.finish()
        };
        let (start, row) = (Element::SnapshotStart, upsert("7", "{\"id\":7}"));
        let finished = lines(&[start.clone(), row.clone()]);
        let reset = lines(&[Element::Reset, start, row]);
        assert_eq!(with_reset(&finished), reset);
    }

    #[test]
    fn the_bytes_are_these() {
        let mut array = Array::new("public.tasks");
        array.push(&upsert("7", "{\"id\":7}"));
        array.push(&Element::Delete {
            key: "9".into(),
            by: Some((7, Timestamp::UNIX_EPOCH)),
        });
        array.push(&Element::Row {
            key: "8".into(),
            value: None,
        });
        array.push(&Element::SnapshotEnd);
        let text =
            head(Some(1000), "data", "e.v.5") + std::str::from_utf8(&array.finish()).unwrap();
        assert_eq!(
            text,
            "retry: 1000\nevent: data\nid: e.v.5\ndata: [\n\
             data: {\"type\":\"public.tasks\",\"key\":\"7\",\"value\":{\"id\":7},\"headers\":{\"operation\":\"update\",\"etag\":\"a3c90e3b7448d23d9eacebd0ebf15cae\",\"txid\":\"7\",\"timestamp\":\"1970-01-01T00:00:00Z\"}},\n\
             data: {\"type\":\"public.tasks\",\"key\":\"9\",\"headers\":{\"operation\":\"delete\",\"txid\":\"7\",\"timestamp\":\"1970-01-01T00:00:00Z\"}},\n\
             data: {\"type\":\"public.tasks\",\"key\":\"8\",\"headers\":{\"operation\":\"insert\",\"too_large\":true}},\n\
             data: {\"headers\":{\"control\":\"snapshot-end\"}}\n\
             data: ]\n\n"
        );
    }

    #[test]
    fn line_breaks_of_every_kind_stay_inside_the_event() {
        let event = control(None, "0", "{\r\n\"a\":\r1,\n\n\"b\":2}");
        let events = dispatch(std::str::from_utf8(&event).unwrap());
        assert_eq!(
            events,
            [(
                "control".into(),
                "0".into(),
                "{\n\"a\":\n1,\n\n\"b\":2}".into()
            )]
        );
    }

    proptest! {
        /// Any JSON value, printed with any white space, arrives as the same value in one event.
        #[test]
        fn any_value_arrives_in_one_event(
            key in "\\PC*|[\\x00-\\x7f]*",
            strings in prop::collection::vec("\\PC*|[\\x00-\\x7f\u{2028}\u{feff}]*", 0..5),
            space in "[ \t\n\r]{0,4}",
        ) {
            let members: Vec<String> = strings.iter().enumerate()
                .map(|(i, text)| format!("{space}\"{i}\"{space}:{space}{}{space}", string(text)))
                .collect();
            let json = format!("{{{space}{}{space}}}", members.join(","));
            let mut array = Array::new("s.t");
            array.push(&upsert(&key, &json));
            array.push(&Element::Notify { payload: key.clone() });
            let mut stream = COMMENT.to_owned() + &head(Some(1), "data", "x");
            stream.push_str(std::str::from_utf8(&array.finish()).unwrap());
            let events = dispatch(&stream);
            prop_assert_eq!(events.len(), 1);
            prop_assert_eq!(&events[0].0, "data");
            let data: serde_json::Value = serde_json::from_str(&events[0].2).unwrap();
            prop_assert_eq!(&data[0]["key"], &serde_json::json!(key));
            prop_assert_eq!(&data[0]["value"], &serde_json::from_str::<serde_json::Value>(&json).unwrap());
            prop_assert_eq!(&data[1]["value"], &serde_json::json!(key));
        }
    }
}
