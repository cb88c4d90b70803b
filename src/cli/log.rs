//! How log lines look: one line an event, whatever somebody has put into a name or a header.
//!
//! Each value is cut to a bounded length and holds no control character, so that no input can forge a
//! line or fill the disk. What dependencies say below `info` is left out, because some of them
//! print the parameters of statements.

use std::fmt::{self, Debug, Write as _};
use std::io::IsTerminal;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::LogFormat;

/// Longest value in a log line, in bytes; what is cut ends in `…`.
const LONGEST: usize = 1024;

/// Those who would print what is said on connections.
const QUIET: [&str; 5] = [
    "tokio_postgres=info",
    "hyper=info",
    "hyper_util=info",
    "h2=info",
    "rustls=info",
];

pub(super) fn start(format: LogFormat) {
    // Nobody has set it, or to nothing.
    let wanted = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_default();
    let asked = (!wanted.is_empty()).then(|| EnvFilter::try_new(&wanted));
    let (asked, wrong) = match asked.transpose() {
        Ok(asked) => (asked, None),
        Err(error) => (None, Some(error)),
    };
    let mut filter = asked.unwrap_or_else(|| EnvFilter::new("warn,deadpool=error"));
    if filter
        .max_level_hint()
        .is_none_or(|most| most > Level::INFO)
    {
        for directive in QUIET {
            filter = filter.add_directive(directive.parse().expect("a crate and a level"));
        }
    }
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .fmt_fields(Fields)
        .event_format(Lines {
            json: format == LogFormat::Json,
            colours: format == LogFormat::Text && std::io::stderr().is_terminal(),
        })
        .init();
    if let Some(error) = wrong {
        tracing::warn!(
            RUST_LOG = wanted,
            %error,
            "RUST_LOG cannot be read, so the log is as without it; try RUST_LOG=rowcast=debug"
        );
    }
}

/// Fields of spans, kept as the inside of a JSON object.
struct Fields;

impl<'writer> FormatFields<'writer> for Fields {
    fn format_fields<R: tracing_subscriber::field::RecordFields>(
        &self,
        mut writer: Writer<'writer>,
        fields: R,
    ) -> fmt::Result {
        let mut found = Found::default();
        fields.record(&mut found);
        let text = Value::Object(found.0).to_string();
        writer.write_str(&text[1..text.len() - 1])
    }
}

/// Lines for people or for machines.
struct Lines {
    json: bool,
    colours: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Found::default();
        event.record(&mut fields);
        let mut span = Map::new();
        if let Some(scope) = context.event_scope() {
            for entered in scope.from_root() {
                let extensions = entered.extensions();
                let kept = extensions.get::<FormattedFields<N>>();
                let kept = kept.and_then(|kept| {
                    serde_json::from_str::<Map<String, Value>>(&format!("{{{}}}", kept.fields)).ok()
                });
                span.extend(kept.unwrap_or_default());
            }
        }
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let metadata = event.metadata();
        if self.json {
            let mut line = Map::new();
            line.insert("timestamp".into(), time.into());
            line.insert("level".into(), metadata.level().as_str().into());
            line.insert("fields".into(), Value::Object(fields.0));
            line.insert("target".into(), metadata.target().into());
            if !span.is_empty() {
                line.insert("span".into(), Value::Object(span));
            }
            return writeln!(writer, "{}", Value::Object(line));
        }
        let level = *metadata.level();
        let (on, off) = match (self.colours, level) {
            (false, _) => ("", ""),
            (true, Level::ERROR) => ("\x1b[31m", "\x1b[0m"),
            (true, Level::WARN) => ("\x1b[33m", "\x1b[0m"),
            (true, _) => ("\x1b[2m", "\x1b[0m"),
        };
        write!(writer, "{time} {on}{:>5}{off}", level.as_str())?;
        let message = fields.0.shift_remove("message");
        if let Some(message) = &message {
            write!(writer, " {}", shown(message))?;
        }
        for (name, value) in fields.0.iter().chain(&span) {
            write!(writer, " {name}={}", shown(value))?;
        }
        writeln!(writer)
    }
}

/// A value as a person reads it. It holds no control character any more.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Fields by name, each bounded.
#[derive(Default)]
struct Found(Map<String, Value>);

impl Found {
    fn set(&mut self, field: &Field, value: impl Into<Value>) {
        let name = field.name();
        self.0.insert(
            name.strip_prefix("r#").unwrap_or(name).to_owned(),
            value.into(),
        );
    }
}

impl Visit for Found {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, bounded(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = Bounded::default();
        // It says that it is full by an error.
        let _full = write!(text, "{value:?}");
        self.set(field, text.finish());
    }
}

fn bounded(text: &str) -> String {
    let mut bounded = Bounded::default();
    let _full = bounded.write_str(text);
    bounded.finish()
}

/// Takes text until it is full. Control characters, and those that change the direction or the lines
/// of text, are written as Rust writes them.
#[derive(Default)]
struct Bounded {
    text: String,
    cut: bool,
}

impl Bounded {
    fn finish(mut self) -> String {
        if self.cut {
            self.text.push('…');
        }
        self.text
    }
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        for letter in more.chars() {
            if self.text.len() >= LONGEST {
                self.cut = true;
                return Err(fmt::Error);
            }
            if is_harmless(letter) {
                self.text.push(letter);
            } else {
                self.text.extend(letter.escape_default());
            }
        }
        Ok(())
    }
}

fn is_harmless(letter: char) -> bool {
    !letter.is_control()
        && !matches!(
            letter,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}'
        )
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(json: bool, tell: impl FnOnce()) -> String {
        let page = Page::default();
        let writer = page.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::TRACE)
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .fmt_fields(Fields)
            .event_format(Lines {
                json,
                colours: false,
            })
            .finish();
        tracing::subscriber::with_default(subscriber, tell);
        String::from_utf8(page.0.lock().unwrap().clone()).unwrap()
    }

    const HOSTILE: &str = "a\nWARN forged\r\x1b[31m\u{202e}\u{2028}\0\u{85}";

    fn tell() {
        let span = tracing::info_span!("request", id = "r-1", name = HOSTILE);
        let _entered = span.enter();
        tracing::warn!(error = %HOSTILE, other = ?HOSTILE, long = "x".repeat(9000), n = 7, "it {HOSTILE}");
    }

    #[test]
    fn nothing_that_is_logged_makes_a_line_of_its_own_or_a_long_one() {
        for json in [false, true] {
            let text = logged(json, tell);
            assert_eq!(text.matches('\n').count(), 1, "{text}");
            let line = text.trim_end_matches('\n');
            assert!(line.chars().all(is_harmless), "{line:?}");
            assert!(line.len() < LONGEST * 3, "{}", line.len());
            assert!(line.contains("r-1") && line.contains("forged") && line.contains('…'));
        }
    }

    #[test]
    fn a_line_for_machines_is_json() {
        let line: Value = serde_json::from_str(&logged(true, tell)).unwrap();
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["span"]["id"], "r-1");
        assert_eq!(line["fields"]["n"], 7);
        assert!(
            line["fields"]["message"]
                .as_str()
                .unwrap()
                .starts_with("it a\\n")
        );
    }
}
