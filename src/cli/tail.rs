//! `rowcast tail`: a stream in the terminal, one line a change.
//!
//! It resumes by itself from the last id, like a browser, and says so on the error output.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{AsciiSet, utf8_percent_encode};
use serde_json::Value;

use super::{Told, print};
use crate::causes::Causes;
use crate::config::Config;

/// Longer than two heartbeats: a connection that is this quiet is dead.
const SILENCE: Duration = Duration::from_secs(12);
const SILENT: &str = "nothing was heard for 12 s";
const AWAY: [StatusCode; 3] = [
    StatusCode::BAD_GATEWAY,
    StatusCode::SERVICE_UNAVAILABLE,
    StatusCode::GATEWAY_TIMEOUT,
];

pub(super) async fn run(
    config: &Config,
    stream: &str,
    url: Option<String>,
    token: Option<String>,
) -> anyhow::Result<()> {
    // A whole address names its relay itself.
    let (base, stream) = if let Some((base, path)) = whole(stream) {
        (base.to_owned(), path)
    } else {
        let base = url.unwrap_or_else(|| format!("http://{}", config.listen));
        (base, stream)
    };
    let parsed = base.parse::<Uri>();
    if !parsed.is_ok_and(|url| url.scheme_str() == Some("http") && url.authority().is_some()) {
        return Err(Told::new(
            format!("\"{base}\" is not the address of a relay"),
            "it does not begin with http:// and a host",
            "--url http://127.0.0.1:3000; TLS is not spoken here",
        )
        .into());
    }
    let uri: Uri = address(&base, stream).parse().map_err(|error| {
        Told::new(
            format!("\"{stream}\" is not a stream"),
            error,
            "rowcast tail 'tasks?board_id=eq.7', or rowcast tail channels/lobby",
        )
    })?;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut follower = Follower {
        id: None,
        retry: Duration::from_secs(1),
        behind: false,
    };
    let mut lost = false;
    loop {
        let mut request = Request::get(uri.clone()).header("accept", "text/event-stream");
        if let Some(token) = &token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(id) = &follower.id {
            request = request.header("last-event-id", id);
        }
        let request = client.request(request.body(Empty::<Bytes>::new())?);
        let ended = match tokio::time::timeout(SILENCE, request).await {
            Err(_silent) => SILENT.to_owned(),
            Ok(Ok(response)) if response.status() == StatusCode::OK => {
                if std::mem::take(&mut lost) {
                    eprintln!("-- connected again");
                }
                follower.follow(response.into_body()).await
            }
            // A relay that starts, or a proxy in front of it: neither says that this can never be.
            Ok(Ok(response)) if AWAY.contains(&response.status()) => response.status().to_string(),
            Ok(Ok(response)) => {
                let status = response.status();
                match tokio::time::timeout(SILENCE, response.into_body().collect()).await {
                    Err(_silent) => SILENT.to_owned(),
                    Ok(body) => return Err(refused(stream, status, &body?.to_bytes()).into()),
                }
            }
            Ok(Err(error)) => Causes(&error).to_string(),
        };
        if !std::mem::replace(&mut lost, true) {
            eprintln!("-- {ended}; trying again");
        }
        tokio::time::sleep(follower.retry).await;
    }
}

/// An address as a browser has it, as the relay and the path there.
fn whole(stream: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = stream.split_once("://")?;
    // A filter may hold an address too.
    if !["http", "https"].contains(&scheme) {
        return None;
    }
    let path = rest.find('/').unwrap_or(rest.len()) + scheme.len() + "://".len();
    Some(stream.split_at(path))
}

/// A path as it is; `channels/…` a channel; anything else a table with its filters.
fn address(base: &str, stream: &str) -> String {
    // What a shell lets pass and a URL does not; all else is as in a browser's address.
    const ASIDE: &AsciiSet = &AsciiSet::EMPTY.add(b' ').add(b'"').add(b'<').add(b'>');
    let base = base.trim_end_matches('/');
    let stream = utf8_percent_encode(stream, ASIDE).to_string();
    if stream.starts_with('/') {
        format!("{base}{stream}")
    } else if stream.starts_with("channels/") {
        format!("{base}/{stream}")
    } else {
        format!("{base}/rest/v1/{stream}")
    }
}

fn refused(stream: &str, status: StatusCode, body: &[u8]) -> Told {
    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |member: &str| problem[member].as_str().map(str::to_owned);
    Told::new(
        format!(
            "\"{stream}\" cannot be followed: {}",
            text("message").unwrap_or_else(|| status.to_string())
        ),
        text("details").unwrap_or_else(|| status.to_string()),
        text("hint").unwrap_or_else(|| {
            let advice = match status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    "--token with a token that the relay takes (rowcast token --help)"
                }
                _ => "rowcast watched",
            };
            advice.to_owned()
        }),
    )
}

struct Follower {
    id: Option<String>,
    retry: Duration,
    /// What the last control said; told when it changes.
    behind: bool,
}

impl Follower {
    /// Prints events until the stream ends; returns why it did.
    async fn follow(&mut self, mut body: hyper::body::Incoming) -> String {
        let mut parser = Parser::default();
        loop {
            match tokio::time::timeout(SILENCE, body.frame()).await {
                Err(_silent) => return SILENT.into(),
                Ok(None) => return "the stream ended".into(),
                Ok(Some(Err(error))) => return Causes(&error).to_string(),
                Ok(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else {
                        continue;
                    };
                    for event in parser.push(&data) {
                        self.take(&event);
                    }
                }
            }
        }
    }

    fn take(&mut self, event: &Event) {
        if let Some(retry) = event.retry {
            self.retry = Duration::from_millis(retry);
        }
        if let Some(id) = &event.id {
            self.id = Some(id.clone());
        }
        let data: Value = serde_json::from_str(&event.data).unwrap_or_default();
        match event.name.as_str() {
            "data" => data.as_array().into_iter().flatten().for_each(tell),
            "control" => {
                if let Some(message) = data["error"]["message"].as_str() {
                    let hint = data["error"]["hint"].as_str().unwrap_or_default();
                    eprintln!("-- {message}. {hint}");
                } else if data["upToDate"] == false && !self.behind {
                    eprintln!(
                        "-- the relay has lost the database, is behind it, or is still reading; what is shown may be old"
                    );
                }
                if let Some(current) = data["upToDate"].as_bool() {
                    self.behind = !current;
                }
            }
            _ => {}
        }
    }
}

/// Prints an element; ends when nobody reads any more, as `tail -f | head` expects.
fn tell(element: &Value) {
    if !print::is_read(format_args!("{}\n", line(element))) {
        std::process::exit(0);
    }
}

/// An element for a person: time, what, where, which, and the row.
fn line(element: &Value) -> String {
    let headers = &element["headers"];
    if let Some(control) = headers["control"].as_str() {
        return format!("-- {control}");
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let time = text(&headers["timestamp"]);
    let time = time.get(11..19).unwrap_or("        ");
    let value = match &element["value"] {
        Value::Null if headers["too_large"] == true => "(too large)".to_owned(),
        Value::Null => String::new(),
        value => value.to_string(),
    };
    let parts = [
        time.to_owned(),
        text(&headers["operation"]),
        text(&element["type"]),
        text(&element["key"]),
        value,
    ];
    let shown: Vec<&str> = parts
        .iter()
        .map(String::as_str)
        .filter(|part| !part.is_empty())
        .collect();
    shown.join("  ")
}

#[derive(Debug, Default, PartialEq)]
struct Event {
    name: String,
    id: Option<String>,
    retry: Option<u64>,
    data: String,
}

/// Bytes to events. Our server ends every line with a line feed.
#[derive(Default)]
struct Parser {
    rest: Vec<u8>,
    event: Event,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) -> Vec<Event> {
        self.rest.extend_from_slice(bytes);
        let mut events = Vec::new();
        let Some(end) = self.rest.iter().rposition(|b| *b == b'\n') else {
            return events;
        };
        let lines = self.rest.drain(..=end).collect::<Vec<u8>>();
        for line in String::from_utf8_lossy(&lines).split_terminator('\n') {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut self.event.name),
                "id" => self.event.id = Some(value.to_owned()),
                "retry" => self.event.retry = value.parse().ok(),
                "data" => {
                    self.event.data.push_str(value);
                    self.event.data.push('\n');
                }
                "" if line.is_empty() => {
                    let event = std::mem::take(&mut self.event);
                    if !event.data.is_empty() {
                        events.push(event);
                    }
                }
                _ => {}
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_any_cut() {
        let stream = b":\nretry: 5\nevent: data\nid: a.b.1\ndata: [\ndata: {\"x\":\"\xc3\xa9\"}\ndata: ]\n\nevent: control\nid: a\ndata: {}\n\n";
        for cut in 0..stream.len() {
            let mut parser = Parser::default();
            let mut events = parser.push(&stream[..cut]);
            events.extend(parser.push(&stream[cut..]));
            assert_eq!(events.len(), 2, "{cut}");
            assert_eq!(events[0].data, "[\n{\"x\":\"é\"}\n]\n");
            assert_eq!(
                (events[0].id.as_deref(), events[0].retry),
                (Some("a.b.1"), Some(5))
            );
        }
    }

    #[test]
    fn a_change_is_one_line() {
        let element = serde_json::json!({"type":"public.t","key":"7","value":{"id":7},
            "headers":{"operation":"update","txid":"1","timestamp":"2026-11-23T12:00:01.5Z"}});
        assert_eq!(line(&element), "12:00:01  update  public.t  7  {\"id\":7}");
        assert_eq!(
            address("http://h:1/", "tasks?a=eq.1"),
            "http://h:1/rest/v1/tasks?a=eq.1"
        );
        assert_eq!(
            address("http://h:1", "channels/lobby"),
            "http://h:1/channels/lobby"
        );
    }

    #[test]
    fn a_whole_address_names_its_relay() {
        assert_eq!(
            whole("http://h:1/rest/v1/tasks?a=eq.1"),
            Some(("http://h:1", "/rest/v1/tasks?a=eq.1"))
        );
        assert_eq!(whole("https://h"), Some(("https://h", "")));
        assert_eq!(whole("tasks?url=eq.http://h/"), None);
    }
}
