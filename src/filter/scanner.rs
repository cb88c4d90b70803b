//! Names and JSON paths, as the dialect's parameters write them.
//!
//! Promises that a name is one that PostgreSQL can have: neither empty, nor longer than it keeps, nor
//! with a zero byte. It does not know which parameter it reads.

use std::iter::Peekable;
use std::str::Chars;

/// What is wrong with a text, as a clause: "a name is missing".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Mistake(pub String);

impl Mistake {
    /// A mistake in these words.
    pub fn new(words: impl Into<String>) -> Self {
        Self(words.into())
    }
}

/// A place inside of a column's value: `->a->0->>b`. Without steps it is the value itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Path {
    /// From the outside in.
    pub steps: Vec<Step>,
    /// The last arrow was `->>`: the place's value as text.
    pub text: bool,
}

/// One step into a JSON value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    /// A member of an object.
    Key(String),
    /// An element of an array; negative ones count from the end.
    Index(i32),
}

impl Path {
    /// Whether there are no steps.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The last key: what the place is called in an answer.
    #[must_use]
    pub fn last_key(&self) -> Option<&str> {
        self.steps.iter().rev().find_map(|step| match step {
            Step::Key(key) => Some(key.as_str()),
            Step::Index(_) => None,
        })
    }
}

/// Reads a text from its start.
#[derive(Debug, Clone)]
pub struct Scanner<'a> {
    chars: Peekable<Chars<'a>>,
}

/// PostgreSQL cuts longer names short, and an answer with a cut name is not what was asked for.
const LONGEST_NAME: usize = 63;
/// More steps than any sane document is deep.
const MOST_STEPS: usize = 32;

impl<'a> Scanner<'a> {
    /// A scanner at the start of `text`.
    #[must_use]
    pub fn of(text: &'a str) -> Self {
        Self {
            chars: text.chars().peekable(),
        }
    }

    /// The next character, which stays.
    pub fn peek(&mut self) -> Option<char> {
        self.chars.peek().copied()
    }

    /// Takes the next character.
    pub fn bump(&mut self) -> Option<char> {
        self.chars.next()
    }

    /// Takes the next character if it is this one.
    pub fn take(&mut self, wanted: char) -> bool {
        self.chars.next_if_eq(&wanted).is_some()
    }

    /// Takes the next characters if they are these.
    pub fn take_all(&mut self, wanted: &str) -> bool {
        let mut ahead = self.chars.clone();
        let all = wanted.chars().all(|c| ahead.next() == Some(c));
        if all {
            self.chars = ahead;
        }
        all
    }

    /// Goes past white space.
    pub fn spaces(&mut self) {
        while self.chars.next_if(char::is_ascii_whitespace).is_some() {}
    }

    /// Whether nothing but white space is left.
    pub fn at_end(&mut self) -> bool {
        self.spaces();
        self.chars.peek().is_none()
    }

    /// The characters before the first that is in `ends`.
    pub fn until(&mut self, ends: &str) -> String {
        let mut text = String::new();
        while let Some(c) = self.chars.next_if(|c| !ends.contains(*c)) {
            text.push(c);
        }
        text
    }

    /// A text in double quotes, its opening one already taken. A backslash takes the next character
    /// as it is.
    ///
    /// # Errors
    /// When it has no end.
    pub fn quoted(&mut self) -> Result<String, Mistake> {
        let mut text = String::new();
        loop {
            match self.chars.next() {
                Some('"') => return Ok(text),
                Some('\\') => text.extend(self.chars.next()),
                Some(c) => text.push(c),
                None => return Err(Mistake::new("a quoted text has no end")),
            }
        }
    }

    /// A text in double quotes, and the blanks behind it, if it is all that stands before the end or one of
    /// `ends`. Otherwise its quotes are characters like others, and nothing is taken.
    ///
    /// # Errors
    /// When it has no end.
    pub fn quoted_alone(&mut self, ends: &str) -> Result<Option<String>, Mistake> {
        let mut ahead = self.clone();
        if !ahead.take('"') {
            return Ok(None);
        }
        let text = ahead.quoted()?;
        let alone = ahead.at_end() || ahead.peek().is_some_and(|c| ends.contains(c));
        Ok(alone.then(|| {
            *self = ahead;
            text
        }))
    }

    /// The next name, in double quotes or not. An unquoted one ends where the dialect's
    /// punctuation begins.
    ///
    /// # Errors
    /// When there is none, or none that PostgreSQL can have.
    pub fn name(&mut self) -> Result<String, Mistake> {
        self.spaces();
        let name = if self.take('"') {
            let name = self.quoted()?;
            self.spaces();
            name
        } else {
            self.bare(",:().!\"")
        };
        possible(&name)?;
        Ok(name)
    }

    /// The characters before an arrow or one of `ends`, without the white space behind them.
    fn bare(&mut self, ends: &str) -> String {
        let mut text = String::new();
        while let Some(c) = self.peek() {
            if ends.contains(c) || c == '-' && self.is_arrow() {
                break;
            }
            text.extend(self.chars.next());
        }
        text.truncate(text.trim_end().len());
        text
    }

    fn is_arrow(&self) -> bool {
        let mut ahead = self.chars.clone();
        ahead.next() == Some('-') && ahead.next() == Some('>')
    }

    /// The arrows behind a column's name, if there are any. Text has no members, so `->>` can only
    /// be the last one.
    ///
    /// # Errors
    /// When an arrow points at nothing, or the path goes on behind `->>` or for too long.
    pub fn path(&mut self) -> Result<Path, Mistake> {
        let mut path = Path::default();
        while self.take_all("->") {
            if path.text {
                return Err(Mistake::new("->> can only be the last arrow"));
            }
            if path.steps.len() == MOST_STEPS {
                return Err(Mistake::new("a JSON path is longer than 32 steps"));
            }
            path.text = self.take('>');
            path.steps.push(self.step()?);
        }
        Ok(path)
    }

    fn step(&mut self) -> Result<Step, Mistake> {
        self.spaces();
        let quoted = self.take('"');
        let text = if quoted {
            let key = self.quoted()?;
            self.spaces();
            key
        } else {
            self.bare(",:().\"")
        };
        // The last one may name a member of the answer, and no text of PostgreSQL's holds one.
        if text.contains('\0') {
            return Err(Mistake::new("a JSON path holds a zero byte"));
        }
        match text.parse() {
            _ if quoted => Ok(Step::Key(text)),
            _ if text.is_empty() => Err(Mistake::new("a JSON path ends in an arrow")),
            Ok(index) if !text.starts_with('+') => Ok(Step::Index(index)),
            _ => Ok(Step::Key(text)),
        }
    }
}

/// Refuses a name that PostgreSQL cannot have.
///
/// # Errors
/// When it is empty, longer than PostgreSQL keeps, or holds a zero byte.
pub fn possible(name: &str) -> Result<(), Mistake> {
    if name.is_empty() {
        return Err(Mistake::new("a name is missing"));
    }
    if name.contains('\0') || name.len() > LONGEST_NAME {
        return Err(Mistake::new(
            "a name is longer than 63 bytes or holds a zero byte",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Result<Path, Mistake> {
        Scanner::of(text).path()
    }

    fn key(text: &str) -> Step {
        Step::Key(text.to_owned())
    }

    #[test]
    fn no_key_of_a_path_holds_a_zero_byte() {
        for wrong in ["->a\0", "->0->>\"a\0b\"", "->\0"] {
            assert!(path(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_path_is_keys_and_indexes() {
        let read = path("->a b->0->-1->\"c->,d\"->>e-f").unwrap();
        assert_eq!(
            read.steps,
            [
                key("a b"),
                Step::Index(0),
                Step::Index(-1),
                key("c->,d"),
                key("e-f")
            ]
        );
        assert!(read.text);
        assert_eq!(path("->>\"0\"").unwrap().steps, [key("0")]);
        assert_eq!(
            path("->99999999999").unwrap().steps,
            [key("99999999999")],
            "no array is so long"
        );
        assert!(path("").unwrap().is_empty());
    }

    #[test]
    fn a_path_is_called_by_its_last_key() {
        assert_eq!(path("->a->b->0").unwrap().last_key(), Some("b"));
        assert_eq!(path("->0").unwrap().last_key(), None);
    }

    #[test]
    fn a_path_goes_no_further_than_text() {
        for wrong in ["->", "->>", "->a->", "->>a->b", "->\"a"] {
            assert!(path(wrong).is_err(), "{wrong}");
        }
        assert!(path(&"->a".repeat(33)).is_err());
    }

    #[test]
    fn a_name_ends_at_an_arrow_and_not_at_a_dash() {
        let mut scanner = Scanner::of("has-dash->x");
        assert_eq!(scanner.name().unwrap(), "has-dash");
        assert_eq!(scanner.path().unwrap().steps, [key("x")]);
        assert!(Scanner::of(&"x".repeat(64)).name().is_err());
        assert!(Scanner::of("\"\0\"").name().is_err());
    }
}
