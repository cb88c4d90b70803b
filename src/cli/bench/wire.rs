//! The bytes of one stream, read for what a count needs and nothing else: the numbers of rows, and
//! the marks of states.
//!
//! Pure. It takes bytes as they come, cut anywhere, and understands every server that sends rows as
//! JSON in `data:` lines, chunked or not.

use std::sync::LazyLock;

use memchr::memchr;
use memchr::memmem::Finder;
use serde_json::Value;

/// Longest line, and longest head of a response.
const LONGEST: usize = 2 * 1024 * 1024;
/// What a stream keeps of a cut line without giving the memory back.
const KEPT: usize = 4096;

/// What a stream says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The response has begun.
    Head,
    /// A row with its number, and when it was sent to the database.
    Row {
        /// `seq`
        number: u64,
        /// `sent`, in microseconds of the clock of who wrote it.
        sent: u64,
    },
    /// The state begins anew.
    Reset,
    /// The state is complete.
    SnapshotEnd,
}

/// Why no more is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The response is over.
    Over,
    /// It is not a stream: the beginning of what came.
    Refused(String),
}

/// How far a response has been read.
#[derive(Debug)]
pub struct Wire {
    state: State,
    /// Of the chunk.
    left: usize,
    /// A line, or a head, that was cut.
    cut: Vec<u8>,
    /// What the relay said was wrong.
    trouble: Option<Box<str>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    /// Between chunks; whether a digit of the next size has come.
    Size(bool),
    /// The rest of a size's line.
    Extension,
    Chunk,
    /// To the end of the connection.
    Plain,
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            state: State::Head,
            left: 0,
            cut: Vec::new(),
            trouble: None,
        }
    }
}

impl Wire {
    /// Reads on.
    ///
    /// # Errors
    /// When the response ends, or is none.
    pub fn push(&mut self, mut bytes: &[u8], mut told: impl FnMut(Mark)) -> Result<(), End> {
        while let Some(&first) = bytes.first() {
            match self.state {
                State::Head => bytes = self.head(bytes, &mut told)?,
                State::Size(begun) => {
                    bytes = &bytes[1..];
                    self.size(first, begun)?;
                }
                State::Extension => {
                    let end = memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
                    if bytes[end - 1] == b'\n' {
                        self.chunk()?;
                    }
                    bytes = &bytes[end..];
                }
                State::Chunk => {
                    let (chunk, rest) = bytes.split_at(self.left.min(bytes.len()));
                    self.text(chunk, &mut told)?;
                    self.left -= chunk.len();
                    if self.left == 0 {
                        self.state = State::Size(false);
                    }
                    bytes = rest;
                }
                State::Plain => {
                    self.text(bytes, &mut told)?;
                    bytes = &[];
                }
            }
        }
        Ok(())
    }

    fn head<'a>(&mut self, bytes: &'a [u8], told: &mut impl FnMut(Mark)) -> Result<&'a [u8], End> {
        let before = self.cut.len();
        self.cut.extend_from_slice(bytes);
        let from = before.saturating_sub(3);
        let Some(end) = HEAD_END.find(&self.cut[from..]) else {
            return if self.cut.len() > LONGEST {
                Err(self.refused())
            } else {
                Ok(&[])
            };
        };
        let end = from + end + 4;
        let head = String::from_utf8_lossy(&self.cut[..end]).to_ascii_lowercase();
        let is_ok = head.get(8..12) == Some(" 200");
        if !is_ok || !head.contains("text/event-stream") {
            return Err(self.refused());
        }
        self.state = if head.contains("transfer-encoding: chunked") {
            State::Size(false)
        } else {
            State::Plain
        };
        self.cut = Vec::new();
        told(Mark::Head);
        Ok(&bytes[end - before..])
    }

    fn refused(&self) -> End {
        let text = String::from_utf8_lossy(&self.cut[..self.cut.len().min(600)]);
        let status = text.lines().next().unwrap_or_default();
        let body = text.split("\r\n\r\n").nth(1).unwrap_or_default();
        End::Refused(format!("{status} {body}").trim().to_owned())
    }

    fn size(&mut self, byte: u8, begun: bool) -> Result<(), End> {
        match char::from(byte).to_digit(16) {
            Some(digit) => {
                self.left = self.left.saturating_mul(16).saturating_add(digit as usize);
                self.state = State::Size(true);
            }
            None if byte == b'\n' && begun => self.chunk()?,
            None if byte == b'\r' || byte == b'\n' => {}
            None => self.state = State::Extension,
        }
        Ok(())
    }

    fn chunk(&mut self) -> Result<(), End> {
        if self.left == 0 {
            let trouble = self.trouble.take();
            return Err(trouble.map_or(End::Over, |said| End::Refused(said.into())));
        }
        self.state = State::Chunk;
        Ok(())
    }

    /// A piece of the body.
    fn text(&mut self, mut text: &[u8], told: &mut impl FnMut(Mark)) -> Result<(), End> {
        if !self.cut.is_empty() {
            let Some(end) = memchr(b'\n', text) else {
                return self.keep(text);
            };
            self.cut.extend_from_slice(&text[..end]);
            line(&self.cut, &mut self.trouble, told);
            if self.cut.capacity() > KEPT {
                self.cut = Vec::new();
            }
            self.cut.clear();
            text = &text[end + 1..];
        }
        while let Some(end) = memchr(b'\n', text) {
            line(&text[..end], &mut self.trouble, told);
            text = &text[end + 1..];
        }
        self.keep(text)
    }

    fn keep(&mut self, text: &[u8]) -> Result<(), End> {
        if self.cut.len() + text.len() > LONGEST {
            return Err(End::Refused("a line without an end".to_owned()));
        }
        self.cut.extend_from_slice(text);
        Ok(())
    }
}

static HEAD_END: LazyLock<Finder> = LazyLock::new(|| Finder::new("\r\n\r\n"));
static NUMBER: LazyLock<Finder> = LazyLock::new(|| Finder::new("\"seq\":"));
static SENT: LazyLock<Finder> = LazyLock::new(|| Finder::new("\"sent\":"));
static CONTROL: LazyLock<Finder> = LazyLock::new(|| Finder::new("\"control\":\""));
static ERROR: LazyLock<Finder> = LazyLock::new(|| Finder::new("\"error\":{"));

fn line(line: &[u8], trouble: &mut Option<Box<str>>, told: &mut impl FnMut(Mark)) {
    if !line.starts_with(b"data: {") {
        return;
    }
    if let Some((number, rest)) = after(&NUMBER, line) {
        let sent = after(&SENT, &line[rest..]).map_or(0, |(sent, _)| sent);
        told(Mark::Row { number, sent });
    } else if let Some(at) = CONTROL.find(line) {
        let name = &line[at + CONTROL.needle().len()..];
        if name.starts_with(b"snapshot-end\"") {
            told(Mark::SnapshotEnd);
        } else if name.starts_with(b"reset\"") {
            told(Mark::Reset);
        }
    } else if ERROR.find(line).is_some()
        && let Ok(control) = serde_json::from_slice::<Value>(&line[b"data: ".len()..])
    {
        *trouble = Some(control["error"].to_string().into());
    }
}

/// The number behind a member's name, and where it ends.
fn after(name: &Finder, line: &[u8]) -> Option<(u64, usize)> {
    let mut at = name.find(line)? + name.needle().len();
    let mut number = 0_u64;
    while let Some(digit) = line.get(at).and_then(|byte| char::from(*byte).to_digit(10)) {
        number = number.wrapping_mul(10).wrapping_add(u64::from(digit));
        at += 1;
    }
    Some((number, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = ":\nevent: data\nid: 0\ndata: [\ndata: {\"headers\":{\"control\":\"reset\"}},\n\
        data: {\"type\":\"s.t\",\"value\":{\"id\":1,\"seq\":12,\"sent\":345,\"body\":\"x\"},\"headers\":{}},\n\
        data: {\"headers\":{\"control\":\"snapshot-end\"}}\ndata: ]\n\n\
        event: control\nid: a\ndata: {\"upToDate\":true}\n\n";
    const MARKS: [Mark; 4] = [
        Mark::Head,
        Mark::Reset,
        Mark::Row {
            number: 12,
            sent: 345,
        },
        Mark::SnapshotEnd,
    ];

    fn read(bytes: &[u8], cut: usize) -> (Vec<Mark>, Option<End>) {
        let (mut wire, mut marks) = (Wire::default(), Vec::new());
        for part in [&bytes[..cut], &bytes[cut..]] {
            if let Err(end) = wire.push(part, |mark| marks.push(mark)) {
                return (marks, Some(end));
            }
        }
        (marks, None)
    }

    #[test]
    fn a_stream_is_the_same_however_it_is_cut() {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
        let chunk = |text: &str| format!("{:X};x=y\r\n{text}\r\n", text.len());
        let (first, second) = BODY.split_at(100);
        let chunked = format!(
            "{head}Transfer-Encoding: chunked\r\n\r\n{}{}0\r\n\r\n",
            chunk(first),
            chunk(second)
        );
        for cut in 0..chunked.len() {
            let wanted = (MARKS.to_vec(), Some(End::Over));
            assert_eq!(read(chunked.as_bytes(), cut), wanted, "{cut}");
        }
        let plain = format!("{head}\r\n{BODY}");
        for cut in 0..plain.len() {
            assert_eq!(read(plain.as_bytes(), cut), (MARKS.to_vec(), None), "{cut}");
        }
    }

    #[test]
    fn a_stream_that_the_relay_ends_says_why() {
        let control =
            "event: control\nid: 0\ndata: {\"upToDate\":false,\"error\":{\"code\":\"RCR01\"}}\n\n";
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n\
             {:x}\r\n{control}\r\n0\r\n\r\n",
            control.len()
        );
        for cut in 0..answer.len() {
            let (_, end) = read(answer.as_bytes(), cut);
            let said = "{\"code\":\"RCR01\"}".to_owned();
            assert_eq!(end, Some(End::Refused(said)), "{cut}");
        }
    }

    #[test]
    fn what_is_no_stream_is_refused_with_its_reason() {
        let answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\n{\"no\":\"t\"}";
        let (marks, end) = read(answer, 0);
        assert!(marks.is_empty());
        let reason = "HTTP/1.1 404 Not Found {\"no\":\"t\"}".to_owned();
        assert_eq!(end, Some(End::Refused(reason)));
    }
}
