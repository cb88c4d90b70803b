//! What a URL and its headers say. Syntax only: no name is looked up. Pure.

use crate::filter::{Condition, ConditionError};

use super::Error;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// `GET` and `HEAD`
    Read,
    /// `POST`
    Insert,
    /// `PATCH`
    Update,
    /// `DELETE`
    Delete,
}

/// A request for a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What is to be done.
    pub verb: Verb,
    /// The name in the URL.
    pub table: String,
    /// `select=`: column and its name in the answer. `None` for all.
    pub select: Option<Vec<(String, String)>>,
    /// Filters, `ANDed`.
    pub conditions: Vec<Condition>,
    /// `order=`
    pub order: Vec<Order>,
    /// The narrower of `limit=` and `Range`.
    pub limit: Option<u64>,
    /// `offset=` or the start of `Range`.
    pub offset: u64,
    /// `columns=`: which keys of the body are used.
    pub columns: Option<Vec<String>>,
    /// `on_conflict=`
    pub on_conflict: Option<Vec<String>>,
    /// `Prefer`
    pub prefer: Preferences,
    /// One object instead of an array.
    pub single: bool,
}

/// One part of `order=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Column name.
    pub column: String,
    /// `desc`
    pub descending: bool,
    /// `nullsfirst` is true, `nullslast` false.
    pub nulls_first: Option<bool>,
}

/// What `Prefer` asks for. Unknown preferences are ignored, as RFC 7240 wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preferences {
    /// `resolution=`
    pub resolution: Option<Resolution>,
    /// `return=representation` or `return=minimal`.
    pub representation: Option<bool>,
    /// `count=exact`
    pub count: bool,
}

/// What an insert does about rows that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// Update them.
    Merge,
    /// Leave them.
    Ignore,
}

/// Query parameters that are not columns.
const RESERVED: [&str; 9] = [
    "select",
    "order",
    "limit",
    "offset",
    "columns",
    "on_conflict",
    "and",
    "or",
    "last_event_id",
];

/// Reads a request. `query` is the raw query string; `header` gives a header's value, several of one
/// name joined by commas.
///
/// # Errors
/// [`Error`], always about the request itself.
pub fn parse<'h>(
    verb: Verb,
    table: &str,
    query: &str,
    header: impl Fn(&str) -> Option<&'h str>,
) -> Result<Request, Error> {
    let mut request = Request {
        verb,
        table: table.to_owned(),
        select: None,
        conditions: Vec::new(),
        order: Vec::new(),
        limit: None,
        offset: 0,
        columns: None,
        on_conflict: None,
        prefer: preferences(header("prefer").unwrap_or_default()),
        single: single(header("accept"))?,
    };
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "select" => request.select = select(&value)?,
            "order" => request.order = order(&value)?,
            "limit" => request.limit = Some(number("limit", &value)?),
            "offset" => request.offset = number("offset", &value)?,
            "columns" => request.columns = Some(names(&value)?),
            "on_conflict" => request.on_conflict = Some(names(&value)?),
            "last_event_id" => {}
            "and" | "or" | "not.and" | "not.or" => {
                return Err(unsupported("logical operators (and, or)"));
            }
            column if column.contains("->") => return Err(unsupported("JSON paths in filters")),
            column if column.contains('.') => {
                return Err(unsupported("filters on embedded resources"));
            }
            column => request.conditions.push(condition(column, &value)?),
        }
    }
    if let (Verb::Read, Some(range)) = (verb, header("range")) {
        apply_range(&mut request, range)?;
    }
    Ok(request)
}

fn unsupported(feature: &str) -> Error {
    Error::Unsupported(feature.to_owned())
}

fn syntax(message: String, details: &str) -> Error {
    Error::Syntax {
        message,
        details: details.to_owned(),
    }
}

fn condition(column: &str, value: &str) -> Result<Condition, Error> {
    Condition::parse(unquoted(column), value).map_err(|error| match error {
        ConditionError::NotYet(operator) => Error::Unsupported(format!("the operator {operator}")),
        error => syntax(
            format!("failed to parse filter ({value})"),
            &format!("{error}; a filter is column=operator.value with eq, neq, gt, gte, lt, lte, in or is"),
        ),
    })
}

fn number(name: &str, value: &str) -> Result<u64, Error> {
    let small = value
        .parse()
        .ok()
        .filter(|n: &u64| i64::try_from(*n).is_ok());
    small.ok_or_else(|| {
        syntax(
            format!("\"{name}\" is not a number: {value}"),
            "a whole number from 0 on",
        )
    })
}

/// `a,alias:b,"odd, name"`; `*` for everything.
fn select(text: &str) -> Result<Option<Vec<(String, String)>>, Error> {
    let mut columns = Vec::new();
    let mut everything = false;
    for part in split(text)? {
        if part.contains("->") {
            return Err(unsupported("JSON paths in select"));
        }
        if part.contains('(') {
            return Err(unsupported("embedding and aggregates in select"));
        }
        if part.contains("::") {
            return Err(unsupported("casts in select"));
        }
        match part.as_str() {
            "*" => everything = true,
            "" => {
                return Err(syntax(
                    "\"select\" has an empty column".into(),
                    "columns are separated by commas",
                ));
            }
            part => {
                // The colon of an alias, not one inside a quoted name.
                let colon = match part.strip_prefix('"') {
                    Some(rest) => rest.find("\":").map(|end| end + 2),
                    None => part.find(':'),
                };
                let (alias, column) = match colon {
                    Some(colon) => (&part[..colon], &part[colon + 1..]),
                    None => (part, part),
                };
                columns.push((unquoted(column).to_owned(), unquoted(alias).to_owned()));
            }
        }
    }
    match (everything, columns.is_empty()) {
        (true, true) => Ok(None),
        (true, false) => Err(unsupported("* beside other columns in select")),
        (false, _) => Ok((!columns.is_empty()).then_some(columns)),
    }
}

fn order(text: &str) -> Result<Vec<Order>, Error> {
    let part = |part: String| {
        if part.contains("->") || part.contains('(') {
            return Err(unsupported("JSON paths and embedded resources in order"));
        }
        let (column, words) = if let Some(rest) = part.strip_prefix('"') {
            let (column, words) = rest.split_once('"').ok_or_else(|| {
                syntax(
                    format!("failed to parse order ({part})"),
                    "a quote is not closed",
                )
            })?;
            (column.to_owned(), words.trim_start_matches('.').to_owned())
        } else {
            let (column, words) = part.split_once('.').unwrap_or((&part, ""));
            (column.to_owned(), words.to_owned())
        };
        let mut order = Order {
            column,
            descending: false,
            nulls_first: None,
        };
        for word in words.split('.').filter(|word| !word.is_empty()) {
            match word {
                "asc" => order.descending = false,
                "desc" => order.descending = true,
                "nullsfirst" => order.nulls_first = Some(true),
                "nullslast" => order.nulls_first = Some(false),
                _ => {
                    return Err(syntax(
                        format!("failed to parse order ({part})"),
                        "column.asc|desc.nullsfirst|nullslast",
                    ));
                }
            }
        }
        if order.column.is_empty() {
            return Err(syntax(
                "\"order\" has an empty column".into(),
                "columns are separated by commas",
            ));
        }
        Ok(order)
    };
    split(text)?.into_iter().map(part).collect()
}

fn names(text: &str) -> Result<Vec<String>, Error> {
    Ok(split(text)?
        .iter()
        .map(|name| unquoted(name).to_owned())
        .collect())
}

/// Splits at commas outside double quotes and trims blanks.
fn split(text: &str) -> Result<Vec<String>, Error> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    if quoted {
        return Err(syntax(
            format!("failed to parse list ({text})"),
            "a quote is not closed",
        ));
    }
    Ok(parts.iter().map(|part| part.trim().to_owned()).collect())
}

fn unquoted(name: &str) -> &str {
    let inner = name
        .strip_prefix('"')
        .and_then(|name| name.strip_suffix('"'));
    inner.unwrap_or(name)
}

fn preferences(text: &str) -> Preferences {
    let mut preferences = Preferences::default();
    for preference in text.split(',') {
        match preference.trim() {
            "return=representation" => preferences.representation = Some(true),
            "return=minimal" => preferences.representation = Some(false),
            "count=exact" => preferences.count = true,
            "resolution=merge-duplicates" => preferences.resolution = Some(Resolution::Merge),
            "resolution=ignore-duplicates" => preferences.resolution = Some(Resolution::Ignore),
            _ => {}
        }
    }
    preferences
}

impl Preferences {
    /// What was honoured, for `Preference-Applied`.
    #[must_use]
    pub fn applied(&self, verb: Verb) -> String {
        let mut applied = Vec::new();
        match self.resolution.filter(|_| verb == Verb::Insert) {
            Some(Resolution::Merge) => applied.push("resolution=merge-duplicates"),
            Some(Resolution::Ignore) => applied.push("resolution=ignore-duplicates"),
            None => {}
        }
        match self.representation.filter(|_| verb != Verb::Read) {
            Some(true) => applied.push("return=representation"),
            Some(false) => applied.push("return=minimal"),
            None => {}
        }
        if self.count {
            applied.push("count=exact");
        }
        applied.join(", ")
    }
}

const OBJECT: &str = "application/vnd.pgrst.object+json";

/// Whether one object is wanted; refuses media types that are not JSON.
fn single(accept: Option<&str>) -> Result<bool, Error> {
    let Some(accept) = accept else {
        return Ok(false);
    };
    let mut types = accept
        .split(',')
        .map(|kind| kind.split(';').next().unwrap_or_default().trim());
    let known = |kind: &str| {
        matches!(
            kind,
            OBJECT
                | ""
                | "*/*"
                | "application/*"
                | "application/json"
                | "text/event-stream"
                | "application/vnd.pgrst.array+json"
        )
    };
    match types.find(|kind| known(kind)) {
        Some(kind) => Ok(kind == OBJECT),
        None => Err(Error::Accept(accept.to_owned())),
    }
}

/// `0-19` or `20-`, as `Range` in items. Other units are none of ours.
fn apply_range(request: &mut Request, range: &str) -> Result<(), Error> {
    let range = range.strip_prefix("items=").unwrap_or(range);
    let Some((first, last)) = range.split_once('-') else {
        return Ok(());
    };
    let (Ok(first), Ok(last)) = (
        first.parse::<u64>(),
        if last.is_empty() {
            Ok(None)
        } else {
            last.parse::<u64>().map(Some)
        },
    ) else {
        return Ok(());
    };
    request.offset = request.offset.max(first);
    if let Some(last) = last {
        let count = (last + 1)
            .checked_sub(first)
            .filter(|count| *count > 0)
            .ok_or_else(|| Error::Range("the lower boundary must be lower than or equal to the upper boundary in the Range header".into()))?;
        request.limit = Some(request.limit.map_or(count, |limit| limit.min(count)));
    }
    Ok(())
}

/// Whether a query parameter is not a column.
#[must_use]
pub fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<Request, Error> {
        parse(Verb::Read, "t", query, |_| None)
    }

    fn with(
        verb: Verb,
        query: &str,
        name: &'static str,
        value: &'static str,
    ) -> Result<Request, Error> {
        parse(verb, "t", query, |header| (header == name).then_some(value))
    }

    #[test]
    fn a_query_is_read() {
        let request = read("select=id,n:name,%22a,b%22&id=gt.5&name=eq.a+b%26c&order=id.desc.nullslast,name&limit=3&offset=2").unwrap();
        let pairs: Vec<(&str, &str)> = request
            .select
            .as_ref()
            .unwrap()
            .iter()
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect();
        assert_eq!(pairs, [("id", "id"), ("name", "n"), ("a,b", "a,b")]);
        assert_eq!(request.conditions[1].values(), ["a b&c"]);
        assert!(request.order[0].descending && request.order[0].nulls_first == Some(false));
        assert_eq!((request.limit, request.offset), (Some(3), 2));
        assert_eq!(read("select=*").unwrap().select, None);
        assert_eq!(read("last_event_id=x").unwrap().conditions, []);
    }

    #[test]
    fn what_is_not_there_yet_is_named() {
        for query in [
            "or=(a.eq.1)",
            "select=a,b(c)",
            "select=a->b",
            "select=a::text",
            "a->b=eq.1",
            "b.c=eq.1",
            "a=like.x*",
            "select=count()",
        ] {
            assert!(matches!(read(query), Err(Error::Unsupported(_))), "{query}");
        }
        for query in [
            "a=5",
            "a=equals.5",
            "order=a.up",
            "limit=x",
            "limit=-1",
            "select=a,",
            "order=",
            "a=in.5",
            "select=%22a",
        ] {
            assert!(matches!(read(query), Err(Error::Syntax { .. })), "{query}");
        }
    }

    #[test]
    fn headers_narrow_the_answer() {
        let request = with(Verb::Read, "limit=30", "range", "10-19").unwrap();
        assert_eq!((request.offset, request.limit), (10, Some(10)));
        assert_eq!(with(Verb::Read, "", "range", "5-").unwrap().offset, 5);
        assert!(matches!(
            with(Verb::Read, "", "range", "9-5"),
            Err(Error::Range(_))
        ));
        assert_eq!(with(Verb::Delete, "", "range", "5-6").unwrap().offset, 0);
        assert!(with(Verb::Read, "", "accept", OBJECT).unwrap().single);
        assert!(
            !with(Verb::Read, "", "accept", "text/html, */*;q=0.1")
                .unwrap()
                .single
        );
        assert!(matches!(
            with(Verb::Read, "", "accept", "text/csv"),
            Err(Error::Accept(_))
        ));
        let prefer = with(
            Verb::Insert,
            "",
            "prefer",
            "return=representation, resolution=merge-duplicates,x=y",
        )
        .unwrap()
        .prefer;
        assert_eq!(
            prefer.applied(Verb::Insert),
            "resolution=merge-duplicates, return=representation"
        );
    }
}
