//! A request for rows, as its URL and headers write it.
//!
//! Syntax only: no name is looked up here, and what the dialect has and we have not is refused by
//! name rather than ignored. Pure.

use std::collections::HashSet;
use std::iter::Peekable;
use std::str::Chars;

use percent_encoding::percent_decode_str;

use super::Error;
use crate::filter::Condition;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// GET, and HEAD: the difference is the edge's.
    Read,
    /// POST
    Insert,
    /// PATCH
    Update,
    /// DELETE
    Delete,
}

/// A request whose names are not yet looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What is to be done.
    pub verb: Verb,
    /// The schema that the profile header names; without one, the first that is served.
    pub schema: Option<String>,
    /// The table's name from the path, decoded.
    pub table: String,
    /// Filters; all must hold.
    pub conditions: Vec<Condition>,
    /// `select=`; `[Item::All]` when absent.
    pub select: Vec<Item>,
    /// `order=`, first term first.
    pub order: Vec<Term>,
    /// `limit=`, `offset=` and the `Range` header: what lies in both.
    pub range: Range,
    /// `columns=`: the payload keys to use.
    pub columns: Option<Vec<String>>,
    /// `on_conflict=`
    pub on_conflict: Option<Vec<String>>,
    /// The `Prefer` header.
    pub preferences: Preferences,
    /// What `Accept` wants most among the shapes we have; nothing when it wants none of them.
    pub shape: Option<Shape>,
}

/// An item of `select=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// `*`
    All,
    /// `[output:]column`
    Column {
        /// Column name.
        column: String,
        /// The name it gets in the answer.
        output: String,
    },
}

/// A term of `order=`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Term {
    /// Column name.
    pub column: String,
    /// `.desc`
    pub descending: bool,
    /// `.nullsfirst` (true), `.nullslast` (false), or PostgreSQL's own habit.
    pub nulls_first: Option<bool>,
}

/// Which of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Range {
    /// Rows to leave out at the start.
    pub offset: u64,
    /// Rows to return at most.
    pub limit: Option<u64>,
}

impl Range {
    /// Every row.
    pub const ALL: Self = Self {
        offset: 0,
        limit: None,
    };

    /// The same with at most `rows` rows.
    #[must_use]
    pub fn at_most(self, rows: u64) -> Self {
        Self {
            limit: Some(self.limit.map_or(rows, |limit| limit.min(rows))),
            ..self
        }
    }
}

/// In which shape the answer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A JSON array of rows.
    Array,
    /// One JSON object; any other number of rows is an error.
    Object,
    /// An event stream.
    Stream,
}

/// `return=`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// Nothing.
    Minimal,
    /// The rows as they are after the write.
    Representation,
}

/// `resolution=`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// A row that exists is updated.
    Merge,
    /// A row that exists stays as it is.
    Ignore,
}

/// The preferences we honour. The first mention of each counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Preferences {
    /// `return=minimal` or `return=representation`.
    pub returning: Option<Return>,
    /// `resolution=`
    pub resolution: Option<Resolution>,
    /// `missing=default`, or `missing=null`, which is what happens anyway.
    pub missing_default: Option<bool>,
    /// `count=exact`
    pub count: bool,
    /// `handling=strict`, or `handling=lenient`, which is what happens anyway.
    pub strict: Option<bool>,
    /// `max-affected=`; counts only with `handling=strict`.
    pub max_affected: Option<u64>,
}

impl Request {
    /// Reads a request for `table`. `query` is the URL's query without `?`, still encoded.
    /// `header` returns a header by its lower-case name, several of one name joined by commas.
    ///
    /// # Errors
    /// [`Error::Syntax`], [`Error::Filter`], [`Error::Unsupported`], [`Error::Range`],
    /// [`Error::Preferences`].
    pub fn parse(
        verb: Verb,
        table: &str,
        query: &str,
        header: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Error> {
        let mut request = Self {
            verb,
            schema: None,
            table: table.to_owned(),
            conditions: Vec::new(),
            select: vec![Item::All],
            order: Vec::new(),
            range: Range::ALL,
            columns: None,
            on_conflict: None,
            preferences: Preferences::parse(&header("prefer").unwrap_or_default())?,
            shape: shape(header("accept").as_deref()),
        };
        let mut seen = HashSet::new();
        for (_, name, value) in pairs(query)? {
            if RESERVED.contains(&name.as_str()) && !seen.insert(name.clone()) {
                return Err(syntax(&name, "it is given twice"));
            }
            request.parameter(&name, &value)?;
        }
        if verb == Verb::Read
            && let Some(range) = header("range")
        {
            request.range = narrower(request.range, &range)?;
        }
        request.sensible()
    }

    fn parameter(&mut self, name: &str, value: &str) -> Result<(), Error> {
        match name {
            "select" => self.select = Scanner::of(name, value).select()?,
            "order" => self.order = Scanner::of(name, value).order()?,
            "limit" => self.range.limit = Some(count(name, value)?),
            "offset" => self.range.offset = count(name, value)?,
            "columns" => self.columns = Some(Scanner::of(name, value).names()?),
            "on_conflict" => self.on_conflict = Some(Scanner::of(name, value).names()?),
            "and" | "or" | "not.and" | "not.or" => {
                return Err(Error::Unsupported("the logical operators and= and or="));
            }
            // The stream's own.
            "last_event_id" => {}
            _ => {
                let column = Scanner::of(name, name).filtered()?;
                let condition = Condition::parse(&column, value)
                    .map_err(|source| Error::Filter { column, source })?;
                self.conditions.push(condition);
            }
        }
        Ok(())
    }

    /// Refuses what would otherwise be ignored to somebody's harm.
    fn sensible(self) -> Result<Self, Error> {
        if self.verb != Verb::Read && self.range != Range::ALL {
            return Err(Error::Unsupported("limit and offset on writes"));
        }
        if self.verb == Verb::Insert && !self.conditions.is_empty() {
            return Err(Error::Unsupported("filters on inserts"));
        }
        Ok(self)
    }
}

/// Query parameters that are not filters and may be given once.
const RESERVED: [&str; 6] = [
    "select",
    "order",
    "limit",
    "offset",
    "columns",
    "on_conflict",
];

impl Preferences {
    fn parse(header: &str) -> Result<Self, Error> {
        let mut read = Self::default();
        let mut unknown = Vec::new();
        for preference in header.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            if !read.take(preference) {
                unknown.push(preference.to_owned());
            }
        }
        if read.strict == Some(true) && !unknown.is_empty() {
            return Err(Error::Preferences(unknown));
        }
        Ok(read)
    }

    fn take(&mut self, preference: &str) -> bool {
        fn first<T>(field: &mut Option<T>, value: T) {
            field.get_or_insert(value);
        }
        match preference {
            "return=minimal" => first(&mut self.returning, Return::Minimal),
            "return=representation" => first(&mut self.returning, Return::Representation),
            "resolution=merge-duplicates" => first(&mut self.resolution, Resolution::Merge),
            "resolution=ignore-duplicates" => first(&mut self.resolution, Resolution::Ignore),
            "missing=default" => first(&mut self.missing_default, true),
            "missing=null" => first(&mut self.missing_default, false),
            "handling=strict" => first(&mut self.strict, true),
            "handling=lenient" => first(&mut self.strict, false),
            "count=exact" => self.count = true,
            other => match other.strip_prefix("max-affected=").map(str::parse) {
                Some(Ok(rows)) => first(&mut self.max_affected, rows),
                _ => return false,
            },
        }
        true
    }
}

/// The shape that `Accept` wants most; the first among equals.
fn shape(accept: Option<&str>) -> Option<Shape> {
    let Some(accept) = accept.filter(|accept| !accept.trim().is_empty()) else {
        return Some(Shape::Array);
    };
    let mut best: Option<(f32, Shape)> = None;
    for wish in accept.split(',') {
        let mut parts = wish.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let shape = match media.as_str() {
            "*/*"
            | "application/*"
            | "application/json"
            | "application/vnd.pgrst.array"
            | "application/vnd.pgrst.array+json" => Shape::Array,
            "application/vnd.pgrst.object" | "application/vnd.pgrst.object+json" => Shape::Object,
            "text/event-stream" => Shape::Stream,
            _ => continue,
        };
        let mut weight = 1.0;
        let mut stripped = false;
        for part in parts {
            match part.split_once('=') {
                Some(("q", value)) => weight = value.parse().unwrap_or(0.0),
                Some(("nulls", _)) => stripped = true,
                _ => {}
            }
        }
        let acceptable = weight > 0.0 && !stripped;
        if acceptable && best.is_none_or(|(other, _)| weight > other) {
            best = Some((weight, shape));
        }
    }
    best.map(|(_, shape)| shape)
}

/// The parameters of a query: each as it is written, and its name and value decoded.
pub(super) fn pairs(query: &str) -> Result<Vec<(&str, String, String)>, Error> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((pair, decode(name)?, decode(value)?))
        })
        .collect()
}

/// Form decoding. Bytes that are not UTF-8 are refused, for a replaced one would be another value.
fn decode(text: &str) -> Result<String, Error> {
    let spaced = text.replace('+', " ");
    match percent_decode_str(&spaced).decode_utf8() {
        Ok(decoded) => Ok(decoded.into_owned()),
        Err(_) => Err(syntax(text, "it is not UTF-8")),
    }
}

fn syntax(parameter: &str, reason: &str) -> Error {
    Error::Syntax {
        parameter: parameter.to_owned(),
        reason: reason.to_owned(),
    }
}

/// A number of rows. PostgreSQL's is a signed one, so half of ours is out of its reach.
fn count(name: &str, value: &str) -> Result<u64, Error> {
    match value.trim().parse::<i64>() {
        Ok(rows) => u64::try_from(rows).map_err(|_| {
            Error::Range(if name == "limit" {
                "the limit is negative"
            } else {
                "the offset is negative"
            })
        }),
        Err(_) => Err(syntax(name, "it is not a number of rows")),
    }
}

/// What lies both in `range` and in the header, `0-19` or `20-`. A header of another unit, such
/// as `bytes=0-`, says nothing about rows.
fn narrower(range: Range, header: &str) -> Result<Range, Error> {
    let Some((first, last)) = header.trim().split_once('-') else {
        return Ok(range);
    };
    let number = |text: &str| text.parse::<u64>().ok().filter(|n| *n < i64::MAX as u64);
    let Some(first) = number(first) else {
        return Ok(range);
    };
    let end = match last {
        "" => None,
        last => match number(last) {
            Some(last) if last < first => {
                return Err(Error::Range("the first row is after the last one"));
            }
            Some(last) => Some(last + 1),
            None => return Ok(range),
        },
    };
    if range.limit == Some(0) {
        return Ok(range);
    }
    let offset = range.offset.max(first);
    let own_end = range.limit.map(|limit| range.offset.saturating_add(limit));
    let end = match (own_end, end) {
        (Some(own), Some(end)) => Some(own.min(end)),
        (own, end) => own.or(end),
    };
    match end.map(|end| end.checked_sub(offset)) {
        None => Ok(Range {
            offset,
            limit: None,
        }),
        Some(Some(limit)) if limit > 0 => Ok(Range {
            offset,
            limit: Some(limit),
        }),
        Some(_) => Err(Error::Range("limit, offset and Range do not overlap")),
    }
}

/// Reads names out of a parameter's value.
struct Scanner<'a> {
    parameter: &'a str,
    chars: Peekable<Chars<'a>>,
}

/// PostgreSQL cuts longer names short, and an answer with a cut name is not what was asked for.
const LONGEST_NAME: usize = 63;

impl<'a> Scanner<'a> {
    fn of(parameter: &'a str, value: &'a str) -> Self {
        Self {
            parameter,
            chars: value.chars().peekable(),
        }
    }

    fn wrong(&self, reason: &str) -> Error {
        syntax(self.parameter, reason)
    }

    fn at_end(&mut self) -> bool {
        self.spaces();
        self.chars.peek().is_none()
    }

    fn spaces(&mut self) {
        while self.chars.next_if(|c| *c == ' ').is_some() {}
    }

    /// The next name, in double quotes or not. An unquoted one ends where the dialect's
    /// punctuation begins.
    fn name(&mut self) -> Result<String, Error> {
        self.spaces();
        let mut name = String::new();
        if self.chars.next_if_eq(&'"').is_some() {
            loop {
                match self.chars.next() {
                    Some('"') => break,
                    Some('\\') => name.extend(self.chars.next()),
                    Some(c) => name.push(c),
                    None => return Err(self.wrong("a quoted name has no end")),
                }
            }
            self.spaces();
        } else {
            while let Some(c) = self.chars.peek() {
                if ",:().!\"".contains(*c) || *c == '-' && self.is_arrow() {
                    break;
                }
                name.extend(self.chars.next());
            }
            name.truncate(name.trim_end().len());
        }
        if name.is_empty() {
            return Err(self.wrong("a name is missing"));
        }
        if name.contains('\0') || name.len() > LONGEST_NAME {
            return Err(self.wrong("a name is longer than 63 bytes or holds a zero byte"));
        }
        Ok(name)
    }

    fn is_arrow(&self) -> bool {
        let mut ahead = self.chars.clone();
        ahead.next() == Some('-') && ahead.next() == Some('>')
    }

    /// Goes past a comma, or to the end.
    fn comma(&mut self) -> Result<bool, Error> {
        self.spaces();
        match self.chars.next() {
            None => Ok(false),
            Some(',') => Ok(true),
            Some(c) => Err(self.wrong(&format!("\"{c}\" is not expected there"))),
        }
    }

    /// Refuses by name what may follow a column elsewhere.
    fn plain(&mut self) -> Result<(), Error> {
        let feature = match self.chars.peek() {
            Some('-') => "JSON paths",
            Some('(' | '!') => "embedded resources",
            _ => return Ok(()),
        };
        Err(Error::Unsupported(feature))
    }

    fn names(mut self) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        loop {
            let name = self.name()?;
            self.plain()?;
            if !names.contains(&name) {
                names.push(name);
            }
            if !self.comma()? {
                return Ok(names);
            }
        }
    }

    fn select(mut self) -> Result<Vec<Item>, Error> {
        let mut items = Vec::new();
        if self.at_end() {
            return Ok(items);
        }
        loop {
            items.push(self.item()?);
            if !self.comma()? {
                return Ok(items);
            }
        }
    }

    fn item(&mut self) -> Result<Item, Error> {
        self.spaces();
        if self.chars.peek() == Some(&'.') {
            return Err(Error::Unsupported("embedded resources"));
        }
        // A column may be named so as well, and is then written in quotes.
        if self.chars.next_if_eq(&'*').is_some() {
            return Ok(Item::All);
        }
        let output = self.name()?;
        let column = if self.chars.next_if_eq(&':').is_none() {
            output.clone()
        } else if self.chars.peek() == Some(&':') {
            return Err(Error::Unsupported("casts in select="));
        } else {
            self.name()?
        };
        match self.chars.peek() {
            Some(':') => return Err(Error::Unsupported("casts in select=")),
            Some('.') => return Err(Error::Unsupported("aggregates")),
            Some('(') if column == "count" => return Err(Error::Unsupported("aggregates")),
            _ => self.plain()?,
        }
        Ok(Item::Column { column, output })
    }

    fn order(mut self) -> Result<Vec<Term>, Error> {
        let mut terms = Vec::new();
        if self.at_end() {
            return Ok(terms);
        }
        loop {
            terms.push(self.term()?);
            if !self.comma()? {
                return Ok(terms);
            }
        }
    }

    fn term(&mut self) -> Result<Term, Error> {
        let mut term = Term {
            column: self.name()?,
            descending: false,
            nulls_first: None,
        };
        self.plain()?;
        let mut directed = false;
        while self.chars.next_if_eq(&'.').is_some() {
            let word = self.name()?;
            match word.as_str() {
                "asc" | "desc" if !directed && term.nulls_first.is_none() => {
                    directed = true;
                    term.descending = word == "desc";
                }
                "nullsfirst" | "nullslast" if term.nulls_first.is_none() => {
                    term.nulls_first = Some(word == "nullsfirst");
                }
                _ => return Err(self.wrong("it takes asc or desc, then nullsfirst or nullslast")),
            }
        }
        Ok(term)
    }

    /// The column in front of a filter's `=`.
    fn filtered(mut self) -> Result<String, Error> {
        let column = self.name()?;
        self.plain()?;
        match self.chars.next() {
            None => Ok(column),
            Some('.') => Err(Error::Unsupported("filters on embedded resources")),
            Some(_) => Err(self.wrong("it is not the name of a column")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<Request, Error> {
        Request::parse(Verb::Read, "tasks", query, |_| None)
    }

    fn with(verb: Verb, query: &str, name: &str, value: &str) -> Result<Request, Error> {
        Request::parse(verb, "tasks", query, |asked| {
            (asked == name).then(|| value.to_owned())
        })
    }

    fn column(column: &str, output: &str) -> Item {
        Item::Column {
            column: column.to_owned(),
            output: output.to_owned(),
        }
    }

    #[test]
    fn a_query_is_form_decoded() {
        let request = read("title=eq.a+b%2Bc&%22odd+name%22=gt.1&last_event_id=0").unwrap();
        assert_eq!(request.conditions[0].values(), ["a b+c"]);
        assert_eq!(request.conditions[1].column, "odd name");
        assert!(matches!(read("title=eq.%ff"), Err(Error::Syntax { .. })));
        assert!(read("").unwrap().conditions.is_empty());
    }

    #[test]
    fn select_takes_columns_aliases_and_stars() {
        assert_eq!(read("").unwrap().select, [Item::All]);
        assert_eq!(
            read("select=id,%20name:title,*,%22a,b%22,has-dash")
                .unwrap()
                .select,
            [
                column("id", "id"),
                column("title", "name"),
                Item::All,
                column("a,b", "a,b"),
                column("has-dash", "has-dash")
            ]
        );
        assert_eq!(read("select=").unwrap().select, []);
        assert_eq!(read("select=%22*%22:a").unwrap().select, [column("a", "*")]);
        for wrong in [
            "select=a,",
            "select=,a",
            "select=a)",
            "select=%22a",
            "select=a:",
        ] {
            assert!(matches!(read(wrong), Err(Error::Syntax { .. })), "{wrong}");
        }
    }

    #[test]
    fn what_we_do_not_have_is_refused_by_its_name() {
        for (query, feature) in [
            ("select=a::text", "casts in select="),
            ("select=b:a::text", "casts in select="),
            ("select=a->b", "JSON paths"),
            ("select=a->>b", "JSON paths"),
            ("a->b=eq.1", "JSON paths"),
            ("order=a->b.desc", "JSON paths"),
            ("select=id,boards(name)", "embedded resources"),
            ("select=boards!inner(name)", "embedded resources"),
            ("select=...boards(name)", "embedded resources"),
            ("boards.name=eq.x", "filters on embedded resources"),
            ("select=count()", "aggregates"),
            ("select=amount.sum()", "aggregates"),
            ("or=(a.eq.1,b.eq.2)", "the logical operators and= and or="),
            ("not.and=(a.eq.1)", "the logical operators and= and or="),
        ] {
            assert!(
                matches!(read(query), Err(Error::Unsupported(name)) if name == feature),
                "{query}: {:?}",
                read(query)
            );
        }
    }

    #[test]
    fn order_takes_directions_and_nulls() {
        let order = read("order=a.desc.nullslast,b,c.nullsfirst,d.asc")
            .unwrap()
            .order;
        let told: Vec<_> = order
            .iter()
            .map(|term| (term.column.as_str(), term.descending, term.nulls_first))
            .collect();
        assert_eq!(
            told,
            [
                ("a", true, Some(false)),
                ("b", false, None),
                ("c", false, Some(true)),
                ("d", false, None)
            ]
        );
        for wrong in [
            "order=a.down",
            "order=a.nullslast.desc",
            "order=a..desc",
            "order=a.asc.asc",
        ] {
            assert!(matches!(read(wrong), Err(Error::Syntax { .. })), "{wrong}");
        }
    }

    #[test]
    fn the_narrower_of_limit_and_range_wins() {
        let range = |query, header| {
            with(Verb::Read, query, "range", header).map(|request| {
                let Range { offset, limit } = request.range;
                (offset, limit)
            })
        };
        assert_eq!(range("", "0-19").unwrap(), (0, Some(20)));
        assert_eq!(range("", "5-").unwrap(), (5, None));
        assert_eq!(range("limit=10", "5-").unwrap(), (5, Some(5)));
        assert_eq!(range("limit=10&offset=8", "0-9").unwrap(), (8, Some(2)));
        assert_eq!(range("limit=0", "3-4").unwrap(), (0, Some(0)));
        assert_eq!(range("limit=3", "bytes=0-").unwrap(), (0, Some(3)));
        assert!(matches!(range("", "9-3"), Err(Error::Range(_))));
        assert!(matches!(range("limit=5", "10-19"), Err(Error::Range(_))));
        assert!(matches!(read("limit=-1"), Err(Error::Range(_))));
        assert!(matches!(read("limit=all"), Err(Error::Syntax { .. })));
        assert!(matches!(read("limit=1&limit=2"), Err(Error::Syntax { .. })));
    }

    #[test]
    fn a_write_is_never_wider_than_its_url_reads() {
        for (verb, query) in [
            (Verb::Delete, "id=eq.1&limit=1"),
            (Verb::Update, "offset=1"),
            (Verb::Insert, "id=eq.1"),
        ] {
            let refused = Request::parse(verb, "tasks", query, |_| None);
            assert!(matches!(refused, Err(Error::Unsupported(_))), "{query}");
        }
    }

    #[test]
    fn unknown_preferences_are_ignored_unless_handling_is_strict() {
        let prefer = |text| with(Verb::Insert, "", "prefer", text).map(|r| r.preferences);
        let read = prefer("return=representation, return=minimal,count=exact, nonsense=1").unwrap();
        assert_eq!(read.returning, Some(Return::Representation));
        assert!(read.count);
        assert_eq!(
            prefer("handling=strict,max-affected=3")
                .unwrap()
                .max_affected,
            Some(3)
        );
        assert!(matches!(
            prefer("nonsense=1, handling=strict, return=headers-only"),
            Err(Error::Preferences(list)) if list == ["nonsense=1", "return=headers-only"]
        ));
    }

    #[test]
    fn accept_chooses_among_the_shapes_we_have() {
        let shape = |text| with(Verb::Read, "", "accept", text).unwrap().shape;
        assert_eq!(shape(""), Some(Shape::Array));
        assert_eq!(shape("text/html, */*;q=0.8"), Some(Shape::Array));
        assert_eq!(
            shape("application/vnd.pgrst.object+json, application/json"),
            Some(Shape::Object)
        );
        assert_eq!(
            shape("application/json;q=0.5, text/event-stream"),
            Some(Shape::Stream)
        );
        assert_eq!(shape("text/csv"), None);
        assert_eq!(shape("application/json;q=0"), None);
        assert_eq!(
            shape("application/vnd.pgrst.object+json;nulls=stripped"),
            None
        );
    }
}
