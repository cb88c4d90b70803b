//! A request for rows, as its URL and headers write it.
//!
//! Syntax only: no name is looked up here, and what the dialect has and we have not is refused by
//! name rather than ignored. Pure.

use std::collections::HashSet;

use percent_encoding::percent_decode_str;

use super::Error;
use crate::cursor;
use crate::etag::Tags;
use crate::filter::scanner::{self, Mistake, Scanner};
use crate::filter::{Condition, Filter, Path};

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// GET, and HEAD: the difference is the edge's.
    Read,
    /// POST
    Insert,
    /// PUT
    Replace,
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
    /// All must hold.
    pub conditions: Vec<Filter>,
    /// `select=`; `[Item::All]` when absent or empty.
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
    /// `If-Match` and `If-None-Match`
    pub preconditions: Preconditions,
    /// What `Accept` wants most among the shapes we have; nothing when it wants none of them.
    pub shape: Option<Shape>,
}

/// An item of `select=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// `*`
    All,
    /// `[output:]column[->path][::cast]`
    Column {
        /// Column name.
        column: String,
        /// Which place inside of its value.
        path: Path,
        /// The type it is cast to.
        cast: Option<Cast>,
        /// The name it gets in the answer.
        output: String,
    },
}

/// The name of a type.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cast {
    /// Where the type is looked up; in the search path when not given.
    pub schema: Option<String>,
    /// Its name. In lower case unless it was quoted.
    pub name: String,
    /// It was written in double quotes, so it is no word of SQL such as `int`.
    pub quoted: bool,
    /// `[]`
    pub array: bool,
}

/// A term of `order=`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Term {
    /// Column name.
    pub column: String,
    /// Which place inside of its value.
    pub path: Path,
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
    /// Where the new row is.
    HeadersOnly,
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

/// `count=`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// All rows are counted.
    Exact,
    /// The planner's guess.
    Planned,
    /// Counted when they are few, and the planner's guess when they are many.
    Estimated,
}

impl Count {
    /// As `Prefer` names it, and `Preference-Applied`.
    #[must_use]
    pub fn named(self) -> &'static str {
        match self {
            Self::Exact => "count=exact",
            Self::Planned => "count=planned",
            Self::Estimated => "count=estimated",
        }
    }
}

/// `tx=`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The write holds.
    Commit,
    /// The answer tells what the write would have done.
    Rollback,
}

/// The preferences we honour. The first mention of each counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Preferences {
    /// `return=`
    pub returning: Option<Return>,
    /// `resolution=`
    pub resolution: Option<Resolution>,
    /// `missing=default`, or `missing=null`, which is what happens anyway.
    pub missing_default: Option<bool>,
    /// `count=`
    pub count: Option<Count>,
    /// `tx=`; counts only where the settings say so.
    pub tx: Option<End>,
    /// `handling=strict`, or `handling=lenient`, which is what happens anyway.
    pub strict: Option<bool>,
    /// `max-affected=`; counts only with `handling=strict`.
    pub max_affected: Option<u64>,
    /// `timezone=`; whether PostgreSQL knows it is not yet asked.
    pub timezone: Option<String>,
}

/// What must hold of the row before anything is done (RFC 9110 §13.1).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Preconditions {
    /// `If-Match` of a write: the versions that the row may have.
    pub matches: Option<Tags>,
    /// `If-None-Match` of a read: the versions that the reader has.
    pub differs: Option<Tags>,
    /// `If-None-Match: *` of a PUT: the row must be a new one.
    pub absent: bool,
}

/// Whether a parameter of a stream's URL says where it goes on. `lastEventId` is what `event-source-polyfill` calls it; a
/// filter never has the form of an id, so that a column may be called so, too.
#[must_use]
pub fn is_resume_point(name: &str, value: &str) -> bool {
    name == "last_event_id" || name == "lastEventId" && cursor::is_id(value)
}

impl Request {
    /// Reads a request for `table`. `query` is the URL's query without `?`, still encoded.
    /// `header` returns a header by its lower-case name, several of one name joined by commas.
    ///
    /// # Errors
    /// [`Error::Syntax`], [`Error::Filter`], [`Error::Unsupported`], [`Error::Range`],
    /// [`Error::Preferences`], [`Error::Condition`].
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
            preconditions: Preconditions::parse(verb, &header)?,
            shape: shape(header("accept").as_deref())?,
        };
        let mut seen = HashSet::new();
        for (_, name, value) in pairs(query)? {
            if RESERVED.contains(&name.as_str()) && !seen.insert(name.clone()) {
                return Err(syntax(&name, "it is given twice"));
            }
            request.parameter(&name, &value)?;
        }
        if verb == Verb::Read
            && header("range-unit").is_none_or(|unit| unit.trim() == "items")
            && let Some(range) = header("range")
        {
            request.range = narrower(request.range, &range)?;
        }
        request.sensible()
    }

    fn parameter(&mut self, name: &str, value: &str) -> Result<(), Error> {
        match name {
            "select" => self.select = Reader::of(name, value).select()?,
            "order" => self.order = Reader::of(name, value).order()?,
            "limit" => self.range.limit = Some(count(name, value)?),
            "offset" => self.range.offset = count(name, value)?,
            "columns" => self.columns = Some(Reader::of(name, value).names()?),
            "on_conflict" => self.on_conflict = Some(Reader::of(name, value).names()?),
            _ if self.shape == Some(Shape::Stream) && is_resume_point(name, value) => {}
            _ => self.filter(name, value)?,
        }
        Ok(())
    }

    fn filter(&mut self, name: &str, value: &str) -> Result<(), Error> {
        let wrong = |source| Error::Filter {
            column: name.to_owned(),
            source,
        };
        if let Some(group) = Filter::parse_group(name, value) {
            self.conditions.extend(group.map_err(wrong)?.conjuncts());
            return Ok(());
        }
        let (column, path) = Reader::of(name, name).filtered()?;
        let condition = Condition::parse_at(&column, path, value).map_err(wrong)?;
        self.conditions.push(Filter::One(condition));
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

impl Preconditions {
    /// A guard that a write would not honour is refused: somebody relies on it. A read whose own
    /// copy cannot be named is answered in full.
    fn parse(verb: Verb, header: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let tags = |name: &str| header(name).map(|value| Tags::parse(&value)).transpose();
        if verb == Verb::Read {
            return Ok(Self {
                differs: tags("if-none-match").unwrap_or_default(),
                ..Self::default()
            });
        }
        let wrong = |error: crate::etag::NotTags| Error::Condition(error.to_string());
        let matches = tags("if-match").map_err(wrong)?;
        let absent = match tags("if-none-match").map_err(wrong)? {
            None => false,
            Some(Tags::Any) if verb == Verb::Replace && matches.is_none() => true,
            Some(_) => {
                let reason = "a write takes If-None-Match only as * on a PUT without If-Match";
                return Err(Error::Condition(reason.to_owned()));
            }
        };
        if verb == Verb::Insert && matches.is_some() {
            let reason = "a POST makes new rows, which have no version that could match";
            return Err(Error::Condition(reason.to_owned()));
        }
        Ok(Self {
            matches,
            differs: None,
            absent,
        })
    }
}

impl Preferences {
    /// Reads the header.
    ///
    /// # Errors
    /// [`Error::Preferences`].
    pub fn parse(header: &str) -> Result<Self, Error> {
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
            "return=headers-only" => first(&mut self.returning, Return::HeadersOnly),
            "return=representation" => first(&mut self.returning, Return::Representation),
            "resolution=merge-duplicates" => first(&mut self.resolution, Resolution::Merge),
            "resolution=ignore-duplicates" => first(&mut self.resolution, Resolution::Ignore),
            "missing=default" => first(&mut self.missing_default, true),
            "missing=null" => first(&mut self.missing_default, false),
            "handling=strict" => first(&mut self.strict, true),
            "handling=lenient" => first(&mut self.strict, false),
            "count=exact" => first(&mut self.count, Count::Exact),
            "count=planned" => first(&mut self.count, Count::Planned),
            "count=estimated" => first(&mut self.count, Count::Estimated),
            "tx=commit" => first(&mut self.tx, End::Commit),
            "tx=rollback" => first(&mut self.tx, End::Rollback),
            other => match other.split_once('=') {
                Some(("max-affected", rows)) => match rows.parse() {
                    Ok(rows) => first(&mut self.max_affected, rows),
                    Err(_) => return false,
                },
                Some(("timezone", name)) if is_zone(name) => {
                    first(&mut self.timezone, name.to_owned());
                }
                _ => return false,
            },
        }
        true
    }
}

/// Whether this looks like a name in the time zone database, whose other notations PostgreSQL reads
/// as rules of one's own.
fn is_zone(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_+-/".contains(&byte))
}

/// The shape that `Accept` wants most; the first among equals. Nothing when it wants none that we
/// know.
///
/// # Errors
/// [`Error::Unsupported`] when it wants only what the dialect has and we have not.
fn shape(accept: Option<&str>) -> Result<Option<Shape>, Error> {
    let Some(accept) = accept.filter(|accept| !accept.trim().is_empty()) else {
        return Ok(Some(Shape::Array));
    };
    let mut best: Option<(f32, Shape)> = None;
    let mut unsupported = None;
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
            other => {
                unsupported = unsupported.or(feature(other));
                continue;
            }
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
        if stripped {
            unsupported = unsupported.or(Some("answers with nulls=stripped"));
        } else if weight > 0.0 && best.is_none_or(|(other, _)| weight > other) {
            best = Some((weight, shape));
        }
    }
    match (best, unsupported) {
        (Some((_, shape)), _) => Ok(Some(shape)),
        (None, Some(feature)) => Err(Error::Unsupported(feature)),
        (None, None) => Ok(None),
    }
}

/// What the dialect calls the answers of a media type that we do not make.
fn feature(media: &str) -> Option<&'static str> {
    Some(match media {
        "text/csv" => "CSV answers",
        "application/geo+json" => "GeoJSON answers",
        "application/octet-stream" => "binary answers",
        plan if plan.starts_with("application/vnd.pgrst.plan") => "EXPLAIN plans",
        _ => return None,
    })
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

/// Reads the value of a parameter that names columns.
struct Reader<'a> {
    parameter: &'a str,
    scan: Scanner<'a>,
}

impl<'a> Reader<'a> {
    fn of(parameter: &'a str, value: &'a str) -> Self {
        Self {
            parameter,
            scan: Scanner::of(value),
        }
    }

    fn wrong(&self, reason: &str) -> Error {
        syntax(self.parameter, reason)
    }

    fn name(&mut self) -> Result<String, Error> {
        let name = self.scan.name();
        name.map_err(|Mistake(reason)| self.wrong(&reason))
    }

    fn path(&mut self) -> Result<Path, Error> {
        let path = self.scan.path();
        path.map_err(|Mistake(reason)| self.wrong(&reason))
    }

    /// Goes past a comma, or to the end.
    fn comma(&mut self) -> Result<bool, Error> {
        self.scan.spaces();
        match self.scan.bump() {
            None => Ok(false),
            Some(',') => Ok(true),
            Some(c) => Err(self.wrong(&format!("\"{c}\" is not expected there"))),
        }
    }

    /// Refuses by name what may follow a relation and no column.
    fn no_relation(&mut self) -> Result<(), Error> {
        match self.scan.peek() {
            Some('(' | '!') => Err(Error::Unsupported("embedded resources")),
            _ => Ok(()),
        }
    }

    fn names(mut self) -> Result<Vec<String>, Error> {
        let (mut names, mut seen) = (Vec::new(), HashSet::new());
        loop {
            let name = self.name()?;
            if seen.insert(name.clone()) {
                names.push(name);
            }
            if !self.comma()? {
                return Ok(names);
            }
        }
    }

    fn select(mut self) -> Result<Vec<Item>, Error> {
        let mut items = Vec::new();
        if self.scan.at_end() {
            return Ok(vec![Item::All]);
        }
        loop {
            items.push(self.item()?);
            if !self.comma()? {
                return Ok(items);
            }
        }
    }

    fn item(&mut self) -> Result<Item, Error> {
        self.scan.spaces();
        if self.scan.peek() == Some('.') {
            return Err(Error::Unsupported("embedded resources"));
        }
        // A column may be named so as well, and is then written in quotes.
        if self.scan.take('*') {
            return Ok(Item::All);
        }
        let (mut column, mut alias) = (self.name()?, None);
        let mut path = self.path()?;
        let mut cast = self.cast()?;
        if cast.is_none() && path.is_empty() && self.scan.take(':') {
            alias = Some(column);
            column = self.name()?;
            path = self.path()?;
            cast = self.cast()?;
        }
        match self.scan.peek() {
            Some('.') => return Err(Error::Unsupported("aggregates")),
            Some('(') if column == "count" => return Err(Error::Unsupported("aggregates")),
            _ => self.no_relation()?,
        }
        let output = match (alias, path.last_key()) {
            (Some(alias), _) => alias,
            (None, Some(key)) => {
                // A key of JSON may be any text, and is a name in the answer here.
                scanner::possible(key).map_err(|_| {
                    self.wrong("a key that is empty, long or holds a zero byte needs an alias")
                })?;
                key.to_owned()
            }
            (None, None) => column.clone(),
        };
        Ok(Item::Column {
            column,
            path,
            cast,
            output,
        })
    }

    /// `::type`, `::schema.type`, `::type[]`
    fn cast(&mut self) -> Result<Option<Cast>, Error> {
        if !self.scan.take_all("::") {
            return Ok(None);
        }
        let mut cast = self.type_name()?;
        let mut ahead = self.scan.clone();
        // `amount::int.sum()` is an aggregate, and no type in a schema.
        if ahead.take('.') && ahead.name().is_ok() && ahead.peek() != Some('(') {
            self.scan.bump();
            cast = Cast {
                schema: Some(cast.name),
                ..self.type_name()?
            };
        }
        Ok(Some(cast))
    }

    fn type_name(&mut self) -> Result<Cast, Error> {
        self.scan.spaces();
        let quoted = self.scan.peek() == Some('"');
        let name = self.name()?;
        let (name, array) = match name.strip_suffix("[]") {
            Some(element) if !quoted => (element.to_owned(), true),
            _ => (name, quoted && self.scan.take_all("[]")),
        };
        if quoted {
            return Ok(Cast {
                schema: None,
                name,
                quoted,
                array,
            });
        }
        let letter = |c: char| c.is_alphanumeric() || c == '_' || c == ' ';
        if name.is_empty() || !name.chars().all(letter) {
            return Err(self.wrong("a type is letters, digits, _ and spaces, or a quoted name"));
        }
        let words: Vec<_> = name.split_ascii_whitespace().collect();
        Ok(Cast {
            schema: None,
            name: words.join(" ").to_lowercase(),
            quoted,
            array,
        })
    }

    fn order(mut self) -> Result<Vec<Term>, Error> {
        let mut terms = Vec::new();
        if self.scan.at_end() {
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
            path: self.path()?,
            descending: false,
            nulls_first: None,
        };
        self.no_relation()?;
        let mut directed = false;
        while self.scan.take('.') {
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

    /// What stands in front of a filter's `=`.
    fn filtered(mut self) -> Result<(String, Path), Error> {
        let column = self.name()?;
        let path = self.path()?;
        self.no_relation()?;
        match self.scan.bump() {
            None => Ok((column, path)),
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
            path: Path::default(),
            cast: None,
            output: output.to_owned(),
        }
    }

    fn condition(filter: &Filter) -> &Condition {
        let Filter::One(condition) = filter else {
            panic!("{filter:?}")
        };
        condition
    }

    #[test]
    fn a_stream_says_where_it_goes_on_and_any_column_has_filters() {
        let stream = |query: &str| with(Verb::Read, query, "accept", "text/event-stream");
        for place in ["0", "AAAAAAAAAAA.AAAAAAAAAAA.2f9-1"] {
            let query = format!("last_event_id={place}&lastEventId={place}");
            assert_eq!(stream(&query).unwrap().conditions, []);
        }
        let request = stream("lastEventId=eq.a").unwrap();
        assert_eq!(condition(&request.conditions[0]).column, "lastEventId");
        assert!(read("lastEventId=0").is_err());
    }

    #[test]
    fn a_query_is_form_decoded() {
        let request = read("title=eq.a+b%2Bc&%22odd+name%22=gt.1").unwrap();
        assert_eq!(condition(&request.conditions[0]).values(), ["a b+c"]);
        assert_eq!(condition(&request.conditions[1]).column, "odd name");
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
        assert_eq!(read("select=").unwrap().select, [Item::All]);
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
    fn select_takes_paths_and_casts() {
        let items = |query: &str| read(query).unwrap().select;
        let told = |query: &str| match items(query).remove(0) {
            Item::Column {
                column,
                path,
                cast,
                output,
            } => {
                let cast = cast.map_or_else(String::new, |cast| {
                    let Cast {
                        schema,
                        name,
                        quoted,
                        array,
                    } = cast;
                    format!("{schema:?} {name:?} {quoted} {array}")
                });
                (column, path.steps.len(), path.text, cast, output)
            }
            Item::All => panic!("{query}"),
        };
        let row = |column: &str, steps, text, cast: &str, output: &str| {
            (
                column.to_owned(),
                steps,
                text,
                cast.to_owned(),
                output.to_owned(),
            )
        };
        for (query, expected) in [
            ("select=d->a->0->>b", row("d", 3, true, "", "b")),
            ("select=d->a->0", row("d", 2, false, "", "a")),
            ("select=d->0", row("d", 1, false, "", "d")),
            ("select=x:d->>a", row("d", 1, true, "", "x")),
            (
                "select=a::text",
                row("a", 0, false, "None \"text\" false false", "a"),
            ),
            (
                "select=x:a::INT",
                row("a", 0, false, "None \"int\" false false", "x"),
            ),
            (
                "select=d->>n::double  precision",
                row("d", 1, true, "None \"double precision\" false false", "n"),
            ),
            (
                "select=a::text[]",
                row("a", 0, false, "None \"text\" false true", "a"),
            ),
            (
                "select=a::app.\"Mood\"[],b",
                row("a", 0, false, "Some(\"app\") \"Mood\" true true", "a"),
            ),
        ] {
            assert_eq!(told(query), expected, "{query}");
        }
        for wrong in [
            "select=a::",
            "select=a::t;x",
            "select=a::numeric'x",
            "select=a::text::int",
            "select=d->>a->b",
            "select=d->",
            "select=a::[]",
        ] {
            assert!(
                matches!(read(wrong), Err(Error::Syntax { .. })),
                "{wrong}: {:?}",
                read(wrong)
            );
        }
    }

    #[test]
    fn a_key_that_can_be_no_name_needs_an_alias() {
        let long = format!("select=d->{}", "k".repeat(64));
        for wrong in ["select=d->>%22%22", "select=d->a->%22b%00%22", &long] {
            assert!(matches!(read(wrong), Err(Error::Syntax { .. })), "{wrong}");
        }
        assert_eq!(read("select=x:d->>%22%22").unwrap().select.len(), 1);
        assert_eq!(read("d->>%22%22=eq.1").unwrap().conditions.len(), 1);
    }

    #[test]
    fn filters_take_paths_and_groups() {
        let request = read("d->a->>b=eq.1&or=(a.eq.1,b.eq.2)&and=(c.eq.3,e->f.eq.4)&%22or%22=eq.5");
        let filters = request.unwrap().conditions;
        assert_eq!(condition(&filters[0]).path.last_key(), Some("b"));
        assert!(matches!(filters[1], Filter::Group(_)));
        assert_eq!(condition(&filters[2]).column, "c");
        assert_eq!(condition(&filters[3]).path.last_key(), Some("f"));
        assert_eq!(condition(&filters[4]).column, "or");
        assert!(matches!(
            read("or=(a.eq.1"),
            Err(Error::Filter { column, .. }) if column == "or"
        ));
        let order = read("order=d->a->>b.desc,c").unwrap().order;
        assert!(order[0].path.text && order[0].descending && order[1].path.is_empty());
    }

    #[test]
    fn what_we_do_not_have_is_refused_by_its_name() {
        for (query, feature) in [
            ("select=id,boards(name)", "embedded resources"),
            ("select=boards!inner(name)", "embedded resources"),
            ("select=...boards(name)", "embedded resources"),
            ("order=boards(name)", "embedded resources"),
            ("select=amount::int.sum()", "aggregates"),
            ("boards.name=eq.x", "filters on embedded resources"),
            ("boards.or=(a.eq.1)", "filters on embedded resources"),
            ("select=count()", "aggregates"),
            ("select=amount.sum()", "aggregates"),
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
        assert_eq!(read.count, Some(Count::Exact));
        assert_eq!(
            prefer("handling=strict,max-affected=3")
                .unwrap()
                .max_affected,
            Some(3)
        );
        assert!(matches!(
            prefer("nonsense=1, handling=strict, return=all, timezone=5, max-affected=x"),
            Err(Error::Preferences(list)) if list == ["nonsense=1", "return=all", "timezone=5", "max-affected=x"]
        ));
        let read = prefer(
            "tx=rollback,count=estimated,count=exact,timezone=America/New_York,return=headers-only",
        );
        let read = read.unwrap();
        assert_eq!(read.tx, Some(End::Rollback));
        assert_eq!(read.count, Some(Count::Estimated));
        assert_eq!(read.timezone.as_deref(), Some("America/New_York"));
        assert_eq!(read.returning, Some(Return::HeadersOnly));
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
        assert_eq!(shape("text/csv, application/json"), Some(Shape::Array));
        assert_eq!(shape("text/html"), None);
        assert_eq!(shape("application/json;q=0"), None);
        for (media, feature) in [
            ("text/csv", "CSV answers"),
            ("application/geo+json", "GeoJSON answers"),
            ("application/octet-stream", "binary answers"),
            ("application/vnd.pgrst.plan+json", "EXPLAIN plans"),
            (
                "application/vnd.pgrst.object+json;nulls=stripped",
                "answers with nulls=stripped",
            ),
        ] {
            assert!(
                matches!(
                    with(Verb::Read, "", "accept", media),
                    Err(Error::Unsupported(told)) if told == feature
                ),
                "{media}"
            );
        }
    }
}
