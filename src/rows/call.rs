//! A call of a function: which one is meant, and the one statement that calls it.
//!
//! Promises that a function is called once, whatever is asked about its result; that only those of
//! the catalogue are called; that names are quoted and values are parameters of the arguments'
//! declared types. Rows it returns take the filters, `select`, `order` and range of a read. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Error;
use super::body::Payload;
use super::plan::{self, Read, Selection};
use super::request::{Item, Request, Verb, pairs};
use super::statement::{Key, RESULT, Statement, array, count_rows_in, select_rows_in};
use crate::filter::Condition;
use crate::postgres::quote::{identifier, qualified, whole_type};
use crate::schema::catalog::{Argument, Catalog, Column, Function, Returns, Table};

/// What a request says about a call.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    /// The schema that the profile header names.
    pub schema: Option<&'a str>,
    /// The function's name from the path, decoded.
    pub function: &'a str,
    /// The URL's query without `?`, still encoded.
    pub query: &'a str,
    /// The body, which holds the arguments; `None` when the query holds them and nothing may be
    /// written.
    pub body: Option<&'a [u8]>,
    /// A header by its lower-case name, several of one name joined by commas.
    pub header: &'a (dyn Fn(&str) -> Option<String> + Sync),
}

/// One call of one function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The function.
    pub function: Arc<Function>,
    /// What of its result is shown. Values are read as rows of one column, named as the function.
    pub read: Read,
    /// The request without its arguments.
    pub request: Request,
    given: Given,
}

/// The arguments as they were given. Their names are the function's.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Given {
    /// The object's text, and which of its keys to use.
    Json(String, BTreeSet<String>),
    /// Values in PostgreSQL's text format.
    Text(Vec<(String, Text)>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Text {
    One(String),
    /// For a variadic argument.
    Many(Vec<String>),
}

impl Call {
    /// The call that is asked for.
    ///
    /// # Errors
    /// [`Error::UnknownFunction`], [`Error::Unsupported`], [`Error::NoSet`], [`Error::Body`], and
    /// those of [`Request::parse`] and [`Read::of_table`].
    pub fn of(ask: Ask<'_>, catalog: &Catalog) -> Result<Self, Error> {
        let schema = ask.schema.unwrap_or(catalog.schema());
        let found = Candidates {
            schema,
            name: ask.function,
            all: catalog.functions(schema, ask.function),
            catalog,
        };
        let (function, given, request) = match ask.body {
            Some(body) => by_body(ask, &found, body)?,
            None => by_query(ask, &found)?,
        };
        let read = read(&function, &request)?;
        Ok(Self {
            function,
            read,
            request,
            given,
        })
    }

    /// Whether it gives any number of rows or values.
    #[must_use]
    pub fn is_set(&self) -> bool {
        matches!(self.function.returns, Returns::Values(_) | Returns::Rows(_))
    }

    /// The statement. It answers one column `row` of JSON text, and for a counted set a column
    /// `total bigint` after it; then a row without `row` tells of no rows. What a function without a
    /// result answers means nothing.
    #[must_use]
    pub fn statement(&self) -> Statement {
        let mut sql = Statement::default();
        match &self.function.returns {
            Returns::Nothing => {
                sql.push("select ");
                self.invoke(&mut sql);
                sql.push(" as \"row\"");
                self.arguments(&mut sql, " from ");
            }
            Returns::Value(_) => {
                sql.push("select coalesce(pg_catalog.to_json(");
                self.invoke(&mut sql);
                sql.push("), 'null')::text as \"row\"");
                self.arguments(&mut sql, " from ");
            }
            Returns::Values(_) => {
                sql.push(&format!("with {} as (select ", identifier(RESULT)));
                self.invoke(&mut sql);
                sql.push(&format!(" as {}", identifier(&self.function.name)));
                self.arguments(&mut sql, " from ");
                sql.push(") ");
                self.shown(&mut sql);
            }
            Returns::Row(_) | Returns::Rows(_) => {
                sql.push(&format!("with {} as (select f.*", identifier(RESULT)));
                self.arguments(&mut sql, " from ");
                sql.push(if self.given.is_empty() {
                    " from "
                } else {
                    ", "
                });
                self.invoke(&mut sql);
                sql.push(" as f) ");
                self.shown(&mut sql);
            }
        }
        sql
    }

    /// `"schema"."function"("a" => i."a")`
    fn invoke(&self, sql: &mut Statement) {
        let function = &self.function;
        sql.push(&qualified(&function.schema, &function.name));
        sql.push("(");
        let given: Vec<_> = self.given_arguments().collect();
        sql.list(", ", given, |sql, argument| {
            let name = identifier(&argument.name);
            let array = if argument.variadic { "variadic " } else { "" };
            sql.push(&format!("{array}{name} => i.{name}"));
        });
        sql.push(")");
    }

    /// The arguments as a row `i`, each of its declared type; nothing when there are none.
    fn arguments(&self, sql: &mut Statement, before: &str) {
        let given: Vec<_> = self.given_arguments().collect();
        if given.is_empty() {
            return;
        }
        sql.push(before);
        match &self.given {
            Given::Json(text, _) => {
                sql.push("pg_catalog.json_to_record(");
                sql.bind(text.as_str());
                sql.push("::pg_catalog.json) as i(");
                sql.list(", ", given, |sql, argument| {
                    // Splicing the type is safe: it is `format_type`'s own text.
                    let type_name = whole_type(&argument.type_name);
                    sql.push(&format!("{} {type_name}", identifier(&argument.name)));
                });
                sql.push(")");
            }
            Given::Text(values) => {
                sql.push("(select ");
                sql.list(", ", values, |sql, (name, text)| {
                    match text {
                        Text::One(value) => sql.bind(value.as_str()),
                        Text::Many(values) => sql.bind(array(values)),
                    }
                    let argument = self.function.arguments.iter().find(|a| a.name == *name);
                    let type_name = argument.map_or("text", |argument| &argument.type_name);
                    let type_name = whole_type(type_name);
                    sql.push(&format!("::{type_name} as {}", identifier(name)));
                });
                sql.push(") i");
            }
        }
    }

    fn given_arguments(&self) -> impl Iterator<Item = &Argument> {
        self.function
            .arguments
            .iter()
            .filter(|argument| self.given.has(&argument.name))
    }

    /// What of the result is shown, and how many there are when they are counted.
    fn shown(&self, sql: &mut Statement) {
        if self.is_counted() {
            sql.push("select r.\"row\", c.\"total\" from (");
            count_rows_in(sql, &self.read);
            sql.push(") c left join (");
            self.rows(sql);
            // One row on the left and no condition: the rows come in their order.
            sql.push(") r on true");
        } else {
            self.rows(sql);
        }
    }

    fn rows(&self, sql: &mut Statement) {
        if let Returns::Values(_) = self.function.returns {
            sql.push("select (s.\"row\"::pg_catalog.json -> ");
            sql.bind(self.function.name.as_str());
            sql.push(")::text as \"row\" from (");
            select_rows_in(sql, &self.read, Key::Without);
            sql.push(") s");
        } else {
            select_rows_in(sql, &self.read, Key::Without);
        }
    }

    /// Whether the statement tells how many there are. No plan knows how many rows a function will make, so
    /// that they are counted for those who would be content with a guess, too.
    #[must_use]
    pub fn is_counted(&self) -> bool {
        self.is_set() && self.read.count.is_some()
    }
}

impl Given {
    fn has(&self, name: &str) -> bool {
        match self {
            Self::Json(_, names) => names.contains(name),
            Self::Text(values) => values.iter().any(|(given, _)| given == name),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Json(_, names) => names.is_empty(),
            Self::Text(values) => values.is_empty(),
        }
    }
}

/// The functions of the name that was asked for.
struct Candidates<'a> {
    schema: &'a str,
    name: &'a str,
    all: &'a [Arc<Function>],
    catalog: &'a Catalog,
}

impl Candidates<'_> {
    /// The one that takes exactly these arguments, defaults aside.
    fn exactly(&self, names: &BTreeSet<String>) -> Result<Arc<Function>, Error> {
        let takes = |function: &&Arc<Function>| {
            let mut known = names.iter();
            lacks_none(function, |name| names.contains(name))
                && known.all(|name| argument(function, name).is_some())
        };
        let fitting: Vec<_> = self.all.iter().filter(takes).collect();
        self.only(&fitting, names)
    }

    /// The one that takes most of these names; the others filter its result.
    fn most(&self, names: &BTreeSet<String>) -> Result<Arc<Function>, Error> {
        let used = |function: &Arc<Function>| {
            let names = names.iter();
            names
                .filter(|name| argument(function, name).is_some())
                .count()
        };
        let fitting = |function: &&Arc<Function>| lacks_none(function, |name| names.contains(name));
        let fitting: Vec<_> = self.all.iter().filter(fitting).collect();
        let most = fitting.iter().map(|function| used(function)).max();
        let fitting: Vec<_> = fitting
            .into_iter()
            .filter(|function| Some(used(function)) == most)
            .collect();
        self.only(&fitting, names)
    }

    fn only(
        &self,
        fitting: &[&Arc<Function>],
        names: &BTreeSet<String>,
    ) -> Result<Arc<Function>, Error> {
        match fitting {
            [function] => Ok(Arc::clone(function)),
            [] if self.all.iter().any(|function| has_unnamed(function)) => {
                Err(Error::Unsupported("functions with unnamed arguments"))
            }
            [] => Err(self.unknown(names)),
            _ => Err(Error::Unsupported("overloaded functions")),
        }
    }

    fn unknown(&self, names: &BTreeSet<String>) -> Error {
        let signatures: Vec<_> = self
            .all
            .iter()
            .map(|function| function.signature())
            .collect();
        let near = if signatures.is_empty() {
            let named = self.catalog.functions_in(self.schema);
            let named = named.iter().filter_map(|functions| functions.first());
            plan::nearest(self.name, named.map(|function| function.name.as_str()))
        } else {
            Some(signatures.join(" or "))
        };
        Error::UnknownFunction {
            schema: self.schema.to_owned(),
            name: self.name.to_owned(),
            arguments: names.iter().cloned().collect(),
            near,
        }
    }
}

fn argument<'a>(function: &'a Function, name: &str) -> Option<&'a Argument> {
    function
        .arguments
        .iter()
        .find(|argument| argument.name == name && !name.is_empty())
}

fn has_unnamed(function: &Function) -> bool {
    function
        .arguments
        .iter()
        .any(|argument| argument.name.is_empty())
}

/// Whether every argument that must be given is there, and every one can be named.
fn lacks_none(function: &Function, there: impl Fn(&str) -> bool) -> bool {
    !has_unnamed(function)
        && function
            .arguments
            .iter()
            .all(|argument| argument.has_default || there(&argument.name))
}

type Found = (Arc<Function>, Given, Request);

/// POST: the arguments are the body's members, and the query is about the result.
fn by_body(ask: Ask<'_>, found: &Candidates<'_>, body: &[u8]) -> Result<Found, Error> {
    // A range of rows is for reads; a POST asks by limit and offset.
    let header = |name: &str| (name != "range").then(|| (ask.header)(name)).flatten();
    let request = Request::parse(Verb::Read, ask.function, ask.query, header)?;
    let (text, keys) = object(body)?;
    let names = match &request.columns {
        Some(columns) => columns.iter().cloned().collect(),
        None => keys,
    };
    let function = found.exactly(&names)?;
    Ok((function, Given::Json(text, names), request))
}

/// The body as one object, and its keys. Nothing at all is an object without members.
fn object(body: &[u8]) -> Result<(String, BTreeSet<String>), Error> {
    if body.trim_ascii().is_empty() {
        return Ok(("{}".to_owned(), BTreeSet::new()));
    }
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(Error::Body("the arguments of a call are one object"));
    }
    let mut payload = Payload::parse(body)?;
    match payload.rows.pop() {
        Some(row) => Ok((row.text.to_owned(), row.keys)),
        None => Err(Error::Body("the arguments of a call are one object")),
    }
}

/// GET: what is named as an argument is one, once, and everything else is about the result.
fn by_query(ask: Ask<'_>, found: &Candidates<'_>) -> Result<Found, Error> {
    let mut pairs = pairs(ask.query)?;
    let names: BTreeSet<String> = pairs.iter().map(|(_, name, _)| name.clone()).collect();
    let named = |names: &BTreeSet<String>| -> BTreeSet<String> {
        let about_result = |name: &&String| !WORDS.contains(&name.as_str());
        names.iter().filter(about_result).cloned().collect()
    };
    let function = found.most(&names).map_err(|error| match error {
        Error::UnknownFunction { .. } => found.unknown(&named(&names)),
        other => other,
    })?;
    // A column of the result may be called as an argument is: what reads as a filter is one, if anything else is
    // there to be the argument.
    pairs.sort_by_key(|(_, name, value)| {
        let one = argument(&function, name).is_some_and(|argument| !argument.variadic);
        one && is_filter(name, value)
    });
    let mut values: Vec<(String, Text)> = Vec::new();
    let mut rest = Vec::new();
    for (raw, name, value) in pairs {
        let Some(argument) = argument(&function, &name) else {
            rest.push(raw);
            continue;
        };
        let known = values.iter_mut().find(|(given, _)| *given == name);
        match known {
            Some((_, Text::Many(all))) => all.push(value),
            Some(_) if is_filter(&name, &value) => rest.push(raw),
            Some(_) => {
                return Err(Error::Syntax {
                    parameter: name,
                    reason: "it is given twice".to_owned(),
                });
            }
            None if argument.variadic => values.push((name, Text::Many(vec![value]))),
            None => values.push((name, Text::One(value))),
        }
    }
    let request = Request::parse(Verb::Read, ask.function, &rest.join("&"), ask.header);
    let request = request.map_err(|error| match error {
        // It reads like an argument, and the function has none of that name.
        Error::Filter { .. } => found.unknown(&named(&names)),
        other => other,
    })?;
    Ok((function, Given::Text(values), request))
}

fn is_filter(name: &str, value: &str) -> bool {
    Condition::parse(name, value).is_ok()
}

/// Parameters that are never arguments of a function that lacks them.
const WORDS: [&str; 11] = [
    "select",
    "order",
    "limit",
    "offset",
    "columns",
    "on_conflict",
    "and",
    "or",
    "not.and",
    "not.or",
    "last_event_id",
];

/// What of the result is shown.
fn read(function: &Function, request: &Request) -> Result<Read, Error> {
    let preferences = &request.preferences;
    let capped = preferences.strict == Some(true) && preferences.max_affected.is_some();
    let result = match &function.returns {
        Returns::Row(result) | Returns::Rows(result) => Arc::clone(result),
        Returns::Value(_) | Returns::Values(_) | Returns::Nothing => {
            if request.select != [Item::All] {
                return Err(Error::Unsupported(
                    "select= on functions that return no rows",
                ));
            }
            Arc::new(of_values(function))
        }
    };
    let set = matches!(function.returns, Returns::Values(_) | Returns::Rows(_));
    if capped && !set {
        return Err(Error::NoSet(function.qualified()));
    }
    if matches!(function.returns, Returns::Value(_) | Returns::Nothing)
        && !request.conditions.is_empty()
    {
        return Err(Error::Unsupported(
            "filters on functions that return no rows",
        ));
    }
    let read = Read::of_table(request, result)?;
    match function.returns {
        // As a row of one column, whose value is taken out again.
        Returns::Values(_) => Ok(Read {
            select: Selection::All,
            ..read
        }),
        _ => Ok(read),
    }
}

/// Values as rows of one column.
fn of_values(function: &Function) -> Table {
    let type_name = match &function.returns {
        Returns::Value(type_name) | Returns::Values(type_name) => type_name.clone(),
        _ => "text".to_owned(),
    };
    Table {
        oid: 0,
        schema: function.schema.clone(),
        name: function.name.clone(),
        kind: 'c',
        columns: vec![Column {
            name: function.name.clone(),
            type_name,
            base: String::new(),
            byte_ordered: false,
            deterministic: true,
            not_null: false,
            virtual_: false,
            names_objects: false,
            nested: false,
        }],
        key: Vec::new(),
        watched: false,
        by_column: false,
        deferrable_key: false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::column;
    use super::*;

    fn function(name: &str, arguments: &[(&str, &str, bool)], returns: Returns) -> Function {
        Function {
            oid: 1,
            schema: "public".to_owned(),
            name: name.to_owned(),
            arguments: arguments
                .iter()
                .map(|(name, type_name, has_default)| Argument {
                    name: (*name).to_owned(),
                    type_name: (*type_name).to_owned(),
                    has_default: *has_default,
                    variadic: type_name.ends_with("[]"),
                })
                .collect(),
            returns,
            stable: true,
            comment: None,
        }
    }

    fn catalog() -> Catalog {
        let value = || Returns::Value("integer".to_owned());
        let mut rows = of_values(&function("list", &[], value()));
        rows.columns = vec![column("id", "integer"), column("b", "text")];
        let functions = vec![
            function(
                "add",
                &[("a", "integer", false), ("b\"", "character", true)],
                value(),
            ),
            function(
                "list",
                &[("id", "integer", true)],
                Returns::Rows(Arc::new(rows)),
            ),
            function(
                "sum",
                &[("n", "integer[]", false)],
                Returns::Values("bigint".to_owned()),
            ),
            function("done", &[], Returns::Nothing),
            function("two", &[("a", "integer", false)], value()),
            function(
                "two",
                &[("a", "integer", false), ("c", "integer", false)],
                value(),
            ),
            function("bare", &[("", "json", false)], value()),
        ];
        Catalog::new(&["public"], Vec::new(), &[]).with_functions(functions)
    }

    fn call(function: &str, query: &str, body: Option<&str>, prefer: &str) -> Result<Call, Error> {
        let header = |name: &str| (name == "prefer").then(|| prefer.to_owned());
        let ask = Ask {
            schema: None,
            function,
            query,
            body: body.map(str::as_bytes),
            header: &header,
        };
        Call::of(ask, &catalog())
    }

    #[test]
    fn a_body_is_taken_apart_by_postgres_and_a_query_is_cast() {
        let posted = call("add", "", Some("{\"a\":1,\"b\\\"\":\"x\"}"), "").unwrap();
        let posted = posted.statement();
        assert_eq!(
            posted.sql,
            "select coalesce(pg_catalog.to_json(\"public\".\"add\"(\"a\" => i.\"a\", \"b\"\"\" => i.\"b\"\"\")), 'null')::text as \"row\" \
             from pg_catalog.json_to_record($1::pg_catalog.json) as i(\"a\" integer, \"b\"\"\" bpchar)"
        );
        assert_eq!(posted.params, ["{\"a\":1,\"b\\\"\":\"x\"}"]);
        let got = call("sum", "n=1&n=2&order=sum&limit=3", None, "").unwrap();
        let got = got.statement();
        assert_eq!(
            got.sql,
            "with \"result\" as (select \"public\".\"sum\"(variadic \"n\" => i.\"n\") as \"sum\" from (select $1::integer[] as \"n\") i) \
             select (s.\"row\"::pg_catalog.json -> $2)::text as \"row\" from (select pg_catalog.row_to_json(t.*)::text as \"row\" \
             from \"result\" as t order by t.\"sum\" limit $3) s"
        );
        assert_eq!(got.params, ["{\"1\",\"2\"}", "sum", "3"]);
    }

    #[test]
    fn a_counted_set_is_one_call() {
        let counted = call("list", "b=eq.x&limit=1", Some(""), "count=exact").unwrap();
        let sql = counted.statement();
        assert_eq!(sql.sql.matches("\"list\"(").count(), 1, "{}", sql.sql);
        assert_eq!(sql.params, ["x", "x", "1"]);
        let done = call("done", "", Some("{}"), "count=exact")
            .unwrap()
            .statement();
        assert_eq!(done.sql, "select \"public\".\"done\"() as \"row\"");
    }

    #[test]
    fn an_argument_of_a_query_is_no_filter_and_everything_else_is() {
        let got = call("list", "id=7&b=eq.x", None, "").unwrap();
        assert_eq!(got.statement().params, ["7", "x"]);
        // The same name again is the result's column, on whichever side of the argument.
        for query in ["id=7&b=eq.x&id=gt.2", "id=gt.2&b=eq.x&id=7"] {
            let mut params = call("list", query, None, "").unwrap().statement().params;
            params.sort();
            assert_eq!(params, ["2", "7", "x"], "{query}");
        }
        let twice = call("list", "id=7&id=8", None, "");
        assert!(matches!(twice, Err(Error::Syntax { .. })), "{twice:?}");
        // By body the query is about the result alone.
        let posted = call("list", "id=eq.7", Some("{\"id\":1}"), "").unwrap();
        assert_eq!(posted.statement().params, ["{\"id\":1}", "7"]);
    }

    #[test]
    fn the_one_that_takes_the_arguments_is_called_or_none_is() {
        let arguments = |query: &str| {
            call("two", query, None, "")
                .unwrap()
                .function
                .arguments
                .len()
        };
        assert_eq!((arguments("a=1"), arguments("a=1&c=2")), (1, 2));
        for (name, query, body) in [
            ("two", "c=1", None),
            ("two", "a=1&d=2", None),
            ("two", "", Some("{\"a\":1,\"d\":2}")),
            ("add", "", Some("{\"b\\\"\":\"x\"}")),
            ("lst", "", Some("{}")),
        ] {
            let refused = call(name, query, body, "");
            assert!(
                matches!(&refused, Err(Error::UnknownFunction { near: Some(_), .. })),
                "{name} {query}: {refused:?}"
            );
        }
        assert!(matches!(
            call("bare", "", Some("{}"), ""),
            Err(Error::Unsupported("functions with unnamed arguments"))
        ));
    }
}
