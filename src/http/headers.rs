//! Request headers that several files read, as the standards say.

use hyper::header::{ACCEPT, HeaderMap};

/// All headers of a name as one, as RFC 9110 permits for lists.
#[must_use]
pub fn joined(headers: &HeaderMap, name: &str) -> Option<String> {
    let values: Vec<_> = headers
        .get_all(name)
        .iter()
        // Not left out where it is no text: a guard that nobody can read must not be ignored.
        .map(|value| String::from_utf8_lossy(value.as_bytes()))
        .collect();
    (!values.is_empty()).then(|| values.join(","))
}

/// Whether a reader wants events: `text/event-stream` is asked for by name and nothing is preferred
/// to it. Among equals the first counts. A wildcard is not a wish: `curl` wants the rows once.
#[must_use]
pub fn wants_events(headers: &HeaderMap) -> bool {
    let mut best: Option<(f32, bool)> = None;
    for range in headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
    {
        let mut parameters = range.split(';').map(str::trim);
        let events = parameters
            .next()
            .is_some_and(|kind| kind.eq_ignore_ascii_case("text/event-stream"));
        let quality = parameters
            .find_map(|parameter| parameter.strip_prefix("q="))
            .map_or(1.0, |quality| quality.parse().unwrap_or(0.0));
        if quality > best.map_or(0.0, |(best, _)| best) {
            best = Some((quality, events));
        }
    }
    best.is_some_and(|(_, events)| events)
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn accepts(accept: &[&'static str]) -> bool {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(ACCEPT, HeaderValue::from_static(value));
        }
        wants_events(&headers)
    }

    #[test]
    fn events_are_for_those_who_ask_for_them_first() {
        assert!(accepts(&["text/event-stream"]));
        assert!(accepts(&["Text/Event-Stream"]));
        assert!(accepts(&["text/event-stream, application/json"]));
        assert!(accepts(&["text/event-stream;q=0.9, */*;q=0.1"]));
        assert!(accepts(&["application/json;q=0.5", "text/event-stream"]));
        assert!(!accepts(&[]));
        assert!(!accepts(&["*/*"]));
        assert!(!accepts(&["text/*"]));
        assert!(!accepts(&["application/json"]));
        assert!(!accepts(&["application/json, text/event-stream"]));
        assert!(!accepts(&["text/event-stream;q=0"]));
        assert!(!accepts(&["text/event-stream;q=x"]));
        assert!(!accepts(&["text/event-streams"]));
    }
}
