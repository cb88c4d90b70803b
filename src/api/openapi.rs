//! `GET /rest/v1/`: what the API offers, as an `OpenAPI` 3.1 document made from the catalogue.
//!
//! Promises a valid document whatever tables and columns are called, in which only what the caller
//! may see is named. Comments in the database become descriptions. Pure but for the response.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use serde_json::{Map, Value, json};

use super::problem::{JSON, Problem};
use crate::http::headers::joined;
use crate::http::route::encoded;
use crate::http::{Response, body};
use crate::schema::catalog::{
    Argument, Catalog, Column, ColumnNotes, Function, Notes, Returns, Table, Writes,
};

const OPENAPI: HeaderValue = HeaderValue::from_static("application/openapi+json; charset=utf-8");

/// Answers with the document, in the type that the reader accepts.
pub fn respond(parts: &Parts, document: &Value) -> Response {
    let accept = joined(&parts.headers, "accept").unwrap_or_default();
    let Some(media) = media(&accept) else {
        return Problem::not_acceptable()
            .hint("accept application/openapi+json or application/json")
            .into_response();
    };
    let mut response = Response::new(body::full(document.to_string()));
    response.headers_mut().insert(CONTENT_TYPE, media);
    response
}

/// The first type that is accepted; the document's own without a wish.
fn media(accept: &str) -> Option<HeaderValue> {
    if accept.trim().is_empty() {
        return Some(OPENAPI);
    }
    accept.split(',').find_map(|wish| {
        let kind = wish.split(';').next().unwrap_or_default().trim();
        match kind.to_ascii_lowercase().as_str() {
            "application/openapi+json" | "*/*" | "application/*" => Some(OPENAPI),
            "application/json" => Some(JSON),
            _ => None,
        }
    })
}

/// The document for `schema`, with the tables that are `visible` and the functions that are `callable`.
#[must_use]
pub fn document(
    catalog: &Catalog,
    schema: &str,
    visible: impl Fn(&Table) -> bool,
    callable: impl Fn(&Function) -> bool,
) -> Value {
    let mut paths = Map::new();
    let mut components = Components::default();
    for table in catalog.tables_in(schema).into_iter().filter(|t| visible(t)) {
        let notes = catalog.notes(table.oid).cloned().unwrap_or_default();
        let relation = Relation {
            key: key(&table.name),
            table,
            notes: &notes,
        };
        relation.describe(&mut components);
        // A brace that is not encoded would be a parameter.
        let path = format!("/rest/v1/{}", encoded(&table.name));
        paths.insert(path, relation.path());
    }
    for functions in catalog.functions_in(schema) {
        let functions: Vec<_> = functions
            .iter()
            .filter(|f| is_callable(f) && callable(f))
            .collect();
        if let Some(first) = functions.first() {
            let path = format!("/rest/v1/rpc/{}", encoded(&first.name));
            paths.insert(path, calls(&functions));
        }
    }
    paths.insert("/channels/{name}".to_owned(), channel());
    paths.insert("/tickets".to_owned(), tickets());
    paths.insert("/rest/v1/".to_owned(), batch());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": format!("Rowcast: {schema}"),
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The tables and functions of a PostgreSQL database. A read of a watched \
                            table with `Accept: text/event-stream` stays open and tells every change.",
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"bearer": []}],
        "paths": paths,
        "components": components.finish(),
    })
}

/// A name as the key of a component or a part of an operation's id, which may have few characters.
/// Two names never have one key: a dot is always followed by the two digits of a byte, and where we
/// put another one behind it, no name of a table can be meant.
fn key(name: &str) -> String {
    let mut key = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"_-".contains(&byte) {
            key.push(char::from(byte));
        } else {
            let _infallible = write!(key, ".{byte:02x}");
        }
    }
    key
}

fn is_callable(function: &Function) -> bool {
    function.arguments.iter().all(|a| !a.name.is_empty())
}

fn reference(kind: &str, key: &str) -> Value {
    json!({ "$ref": format!("#/components/{kind}/{key}") })
}

/// Parts that several operations refer to.
#[derive(Default)]
struct Components {
    schemas: Map<String, Value>,
    parameters: Map<String, Value>,
}

impl Components {
    fn finish(mut self) -> Value {
        for (name, description, schema) in WORDS {
            let mut parameter = json!({"name": name, "in": "query", "description": description});
            parameter["schema"] = match schema {
                "integer" => json!({"type": "integer", "minimum": 0}),
                other => json!({ "type": other }),
            };
            self.parameters.insert(format!("rowcast.{name}"), parameter);
        }
        for (name, description) in HEADERS {
            self.parameters.insert(
                format!("rowcast.{}", name.to_lowercase()),
                json!({
                    "name": name, "in": "header", "description": description,
                    "schema": {"type": "string"},
                }),
            );
        }
        self.schemas.insert(
            "rowcast.error".to_owned(),
            json!({
                "type": "object",
                "required": ["code", "message", "details", "hint"],
                "properties": {
                    "code": {"type": "string", "description": "SQLSTATE, or a code of the API"},
                    "message": {"type": "string", "description": "What happened"},
                    "details": {"type": ["string", "null"], "description": "What was found"},
                    "hint": {"type": ["string", "null"], "description": "What to try"},
                },
            }),
        );
        json!({
            "schemas": self.schemas,
            "parameters": self.parameters,
            "responses": {
                "rowcast.error": {
                    "description": "What went wrong",
                    "content": {
                        "application/json": {"schema": reference("schemas", "rowcast.error")},
                    },
                },
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
            },
        })
    }
}

/// Parameters of the query that are no filters: name, description, type.
const WORDS: [(&str, &str, &str); 7] = [
    (
        "select",
        "Columns to show, as in `id,name:title,data->>key,price::text`",
        "string",
    ),
    (
        "order",
        "Columns to sort by, as in `done,created_at.desc.nullslast`",
        "string",
    ),
    ("limit", "Rows to return at most", "integer"),
    ("offset", "Rows to leave out at the start", "integer"),
    ("columns", "Keys of the body to use", "string"),
    (
        "on_conflict",
        "Columns of a unique index, for an upsert",
        "string",
    ),
    (
        "last_event_id",
        "Where a stream goes on, for readers that cannot send the header",
        "string",
    ),
];

const HEADERS: [(&str, &str); 4] = [
    (
        "Prefer",
        "Preferences, as in `return=representation`, `count=exact`, `resolution=merge-duplicates`, \
         `missing=default`, `handling=strict`, `max-affected=10`",
    ),
    ("Range", "Which rows, as in `0-19`"),
    ("Last-Event-ID", "Where a stream goes on"),
    ("If-Match", "The version that the row must still have"),
];

fn word(name: &str) -> Value {
    reference("parameters", &format!("rowcast.{name}"))
}

fn is_word(name: &str) -> bool {
    WORDS.iter().any(|(word, ..)| *word == name)
        || ["and", "or", "not.and", "not.or"].contains(&name)
}

/// One table or view.
struct Relation<'a> {
    table: &'a Arc<Table>,
    notes: &'a Notes,
    key: String,
}

impl Relation<'_> {
    fn columns(&self) -> impl Iterator<Item = (&Column, ColumnNotes)> {
        let notes = self.notes.columns.iter().cloned();
        let notes = notes.chain(std::iter::repeat_with(ColumnNotes::default));
        self.table.columns.iter().zip(notes)
    }

    /// The row, and a parameter for each column.
    fn describe(&self, components: &mut Components) {
        let mut row = self.row();
        let required: Vec<_> = self
            .columns()
            .filter(|(column, notes)| column.not_null && !notes.has_default)
            .map(|(column, _)| column.name.as_str())
            .collect();
        if !required.is_empty() {
            row["required"] = json!(required);
        }
        components.schemas.insert(self.key.clone(), row);
        for column in self.filters() {
            components.parameters.insert(
                self.filter_key(column),
                filter(&column.name, &column.type_name),
            );
        }
    }

    fn row(&self) -> Value {
        let properties: Map<_, _> = self
            .columns()
            .map(|(column, notes)| (column.name.clone(), self.column(column, &notes)))
            .collect();
        let mut row = json!({ "type": "object", "properties": properties });
        describe(&mut row, self.notes.comment.as_deref());
        row
    }

    fn column(&self, column: &Column, notes: &ColumnNotes) -> Value {
        let mut schema = typed(&column.base, &column.type_name);
        if !notes.labels.is_empty() {
            schema["type"] = json!("string");
            schema["enum"] = json!(notes.labels);
        }
        if let Some(most) = notes.max_length {
            schema["maxLength"] = json!(most);
        }
        if notes.read_only {
            schema["readOnly"] = json!(true);
        }
        if !column.not_null {
            or_null(&mut schema);
        }
        let key = self
            .table
            .key
            .contains(&column.name)
            .then_some("Primary key.");
        let texts: Vec<_> = notes.comment.as_deref().into_iter().chain(key).collect();
        describe(
            &mut schema,
            Some(&texts.join("\n\n"))
                .filter(|t| !t.is_empty())
                .map(String::as_str),
        );
        schema
    }

    /// Columns that a parameter can filter by; one that is named like a word of ours cannot.
    fn filters(&self) -> impl Iterator<Item = &Column> {
        self.table
            .columns
            .iter()
            .filter(|column| !is_word(&column.name))
    }

    fn filter_key(&self, column: &Column) -> String {
        format!("{}..{}", self.key, key(&column.name))
    }

    fn parameters(&self, words: &[&str], filtered: bool) -> Value {
        let filters = self.filters().filter(|_| filtered);
        let filters = filters.map(|column| reference("parameters", &self.filter_key(column)));
        words.iter().map(|name| word(name)).chain(filters).collect()
    }

    fn path(&self) -> Value {
        let mut path = Map::new();
        path.insert("get".to_owned(), self.read());
        let writes = if self.table.kind == 'm' {
            Writes::NONE
        } else {
            self.notes.writes
        };
        if writes.insert {
            path.insert("post".to_owned(), self.insert());
        }
        if writes.insert && writes.update && !self.table.key.is_empty() {
            path.insert("put".to_owned(), self.replace());
        }
        if writes.update {
            path.insert("patch".to_owned(), self.update());
        }
        if writes.delete {
            path.insert("delete".to_owned(), self.delete());
        }
        path.into()
    }

    /// What every operation has.
    fn operation(&self, verb: &str, parameters: &Value, responses: Value) -> Value {
        let mut operation = json!({
            "operationId": format!("{verb}_{}", self.key),
            "tags": [self.table.name],
            "parameters": parameters,
            "responses": with_error(responses),
        });
        if let Some(comment) = &self.notes.comment {
            operation["summary"] = json!(comment.lines().next().unwrap_or_default());
        }
        operation
    }

    fn rows(&self) -> Value {
        let row = reference("schemas", &self.key);
        json!({
            "application/json": {"schema": {"type": "array", "items": row}},
            "application/vnd.pgrst.object+json": {"schema": row},
        })
    }

    fn read(&self) -> Value {
        let mut words = vec!["select", "order", "limit", "offset", "range", "prefer"];
        let mut content = self.rows();
        if self.table.watched {
            words.extend(["last-event-id", "last_event_id"]);
            content["text/event-stream"] = json!({
                "schema": {"type": "string", "description": "The rows, and then every change to them"},
            });
        }
        self.operation(
            "read",
            &self.parameters(&words, true),
            json!({
                "200": {"description": "The rows", "content": content},
                "206": {"description": "A part of the rows", "content": self.rows()},
            }),
        )
    }

    fn insert(&self) -> Value {
        let row = reference("schemas", &self.key);
        let mut operation = self.operation(
            "insert",
            &self.parameters(&["select", "columns", "on_conflict", "prefer"], false),
            json!({
                "200": {"description": "Nothing was inserted", "content": self.rows()},
                "201": {"description": "Inserted", "content": self.rows()},
            }),
        );
        operation["requestBody"] = taken(&json!({
            "oneOf": [row, {"type": "array", "items": row}],
        }));
        operation
    }

    fn replace(&self) -> Value {
        let mut operation = self.operation(
            "replace",
            &self.parameters(&["select", "columns", "prefer", "if-match"], true),
            json!({
                "200": {"description": "Replaced", "content": self.rows()},
                "201": {"description": "Inserted", "content": self.rows()},
                "204": {"description": "Replaced"},
            }),
        );
        operation["requestBody"] = taken(&reference("schemas", &self.key));
        operation
    }

    fn update(&self) -> Value {
        let mut operation = self.operation(
            "update",
            &self.parameters(&["select", "order", "columns", "prefer", "if-match"], true),
            json!({
                "200": {"description": "The rows as they are now", "content": self.rows()},
                "204": {"description": "Updated"},
            }),
        );
        // The row without what must be given: an update takes any part of it.
        operation["requestBody"] = taken(&self.row());
        operation
    }

    fn delete(&self) -> Value {
        self.operation(
            "delete",
            &self.parameters(&["select", "order", "prefer", "if-match"], true),
            json!({
                "200": {"description": "The rows as they were", "content": self.rows()},
                "204": {"description": "Deleted"},
            }),
        )
    }
}

fn filter(name: &str, type_name: &str) -> Value {
    json!({
        "name": name, "in": "query",
        "description": format!("Filter on {type_name}, as in `eq.7`, `in.(1,2)` or `not.is.null`"),
        "schema": {"type": "string"},
    })
}

fn taken(schema: &Value) -> Value {
    json!({ "required": true, "content": {"application/json": {"schema": schema}} })
}

fn with_error(mut responses: Value) -> Value {
    responses["default"] = reference("responses", "rowcast.error");
    responses
}

fn describe(schema: &mut Value, text: Option<&str>) {
    if let Some(text) = text {
        schema["description"] = json!(text);
    }
}

/// The schema of a value as it stands in JSON. What we do not know may be anything.
fn typed(base: &str, type_name: &str) -> Value {
    let inner = |name: &str| typed(name, name);
    let mut schema = if let Some(element) = type_name.strip_suffix("[]") {
        json!({ "type": "array", "items": or_nulled(inner(element)) })
    } else if let Some(element) = base.strip_prefix('_') {
        json!({ "type": "array", "items": or_nulled(inner(element)) })
    } else {
        let known = if base.is_empty() { type_name } else { base };
        match known {
            "int2" | "int4" | "int8" | "smallint" | "integer" | "bigint" | "oid" => {
                json!({ "type": "integer" })
            }
            // Those that are no numbers to JSON come as text: NaN and Infinity.
            "float4" | "float8" | "numeric" | "real" | "double precision" => {
                json!({ "type": ["number", "string"] })
            }
            "bool" | "boolean" => json!({ "type": "boolean" }),
            "text"
            | "varchar"
            | "bpchar"
            | "name"
            | "character"
            | "character varying"
            | "uuid"
            | "date"
            | "time"
            | "timetz"
            | "timestamp"
            | "timestamptz"
            | "interval"
            | "bytea"
            | "inet"
            | "cidr"
            | "macaddr"
            | "money"
            | "xml"
            | "tsvector"
            | "bit"
            | "varbit"
            | "timestamp with time zone"
            | "timestamp without time zone"
            | "time with time zone"
            | "time without time zone" => json!({ "type": "string" }),
            _ => json!({}),
        }
    };
    schema["format"] = json!(type_name);
    schema
}

fn or_nulled(mut schema: Value) -> Value {
    or_null(&mut schema);
    schema
}

/// Allows null as well.
fn or_null(schema: &mut Value) {
    match &mut schema["type"] {
        Value::String(kind) => schema["type"] = json!([kind, "null"]),
        Value::Array(kinds) => kinds.push(json!("null")),
        // Anything, so null as well; looking has left a null behind.
        _ => {
            if let Some(schema) = schema.as_object_mut() {
                schema.remove("type");
            }
        }
    }
    if let Some(labels) = schema.get_mut("enum").and_then(Value::as_array_mut) {
        labels.push(Value::Null);
    }
}

/// The functions of one name. `GET` only where there is one and it promises not to write.
fn calls(functions: &[&Arc<Function>]) -> Value {
    let bodies: Vec<_> = functions
        .iter()
        .map(|function| arguments(function))
        .collect();
    let body = match bodies.as_slice() {
        [body] => body.clone(),
        bodies => json!({ "anyOf": bodies }),
    };
    let first = functions[0];
    let comments: BTreeSet<_> = functions
        .iter()
        .filter_map(|f| f.comment.as_deref())
        .collect();
    let comment = comments.into_iter().collect::<Vec<_>>().join("\n\n");
    let operation = |verb: &str, parameters: Value| {
        let mut operation = json!({
            "operationId": format!("{verb}_{}", key(&first.name)),
            "tags": [format!("rpc/{}", first.name)],
            "parameters": parameters,
            "responses": with_error(results(functions)),
        });
        describe(
            &mut operation,
            Some(comment.as_str()).filter(|text| !text.is_empty()),
        );
        operation
    };
    let words = ["select", "order", "limit", "offset", "prefer"];
    let words = if is_set(&first.returns) {
        &words[..]
    } else {
        &words[4..]
    };
    let posted: Value = words.iter().map(|name| word(name)).collect();
    let mut post = operation("call", posted);
    post["requestBody"] = json!({ "content": {"application/json": {"schema": body}} });
    let mut path = json!({ "post": post });
    if let [function] = functions
        && function.stable
    {
        let given = function.arguments.iter().map(in_query);
        let words = words.iter().filter(|word| {
            function
                .arguments
                .iter()
                .all(|argument| argument.name != **word)
        });
        let parameters = given.chain(words.map(|name| word(name))).collect();
        path["get"] = operation("fetch", parameters);
    }
    path
}

fn is_set(returns: &Returns) -> bool {
    matches!(returns, Returns::Rows(_) | Returns::Values(_))
}

/// The body of a call.
fn arguments(function: &Function) -> Value {
    let arguments = function.arguments.iter();
    let properties: Map<_, _> = arguments
        .clone()
        .map(|argument| {
            let schema = typed("", &argument.type_name);
            (argument.name.clone(), or_nulled(schema))
        })
        .collect();
    let required: Vec<_> = arguments
        .filter(|argument| !argument.has_default)
        .map(|argument| argument.name.as_str())
        .collect();
    let mut body = json!({
        "type": "object", "properties": properties, "additionalProperties": false,
    });
    if !required.is_empty() {
        body["required"] = json!(required);
    }
    body
}

fn in_query(argument: &Argument) -> Value {
    let schema = match argument.type_name.strip_suffix("[]") {
        Some(element) if argument.variadic => {
            json!({ "type": "array", "items": {"type": "string", "format": element} })
        }
        _ => json!({ "type": "string", "format": argument.type_name }),
    };
    json!({
        "name": argument.name, "in": "query", "required": !argument.has_default,
        "schema": schema,
    })
}

fn results(functions: &[&Arc<Function>]) -> Value {
    let mut responses: BTreeMap<&str, Value> = BTreeMap::new();
    for function in functions {
        let row = |table: &Arc<Table>| {
            let columns = table.columns.iter();
            let properties: Map<_, _> = columns
                .map(|column| {
                    let schema = typed(&column.base, &column.type_name);
                    (column.name.clone(), or_nulled(schema))
                })
                .collect();
            json!({ "type": "object", "properties": properties })
        };
        let value = |type_name: &str| or_nulled(typed("", type_name));
        let schema = match &function.returns {
            Returns::Nothing => {
                responses.insert("204", json!({"description": "Done"}));
                continue;
            }
            Returns::Value(type_name) => value(type_name),
            Returns::Values(type_name) => json!({ "type": "array", "items": value(type_name) }),
            Returns::Row(table) => row(table),
            Returns::Rows(table) => json!({ "type": "array", "items": row(table) }),
        };
        responses.entry("200").or_insert_with(|| {
            json!({"description": "The result", "content": {
                "application/json": {"schema": {"anyOf": []}},
            }})
        })["content"]["application/json"]["schema"]["anyOf"]
            .as_array_mut()
            .expect("it was made so")
            .push(schema);
    }
    json!(responses)
}

fn channel() -> Value {
    let name = json!({
        "name": "name", "in": "path", "required": true, "schema": {"type": "string"},
    });
    json!({
        "parameters": [name],
        "get": {
            "operationId": "subscribe", "tags": ["channels"],
            "summary": "Messages as they are published",
            "parameters": [word("last-event-id"), word("last_event_id")],
            "responses": with_error(json!({
                "200": {"description": "Messages", "content": {
                    "text/event-stream": {"schema": {"type": "string"}},
                }},
            })),
        },
        "post": {
            "operationId": "publish", "tags": ["channels"],
            "summary": "Sends a message to everybody on the channel",
            "requestBody": taken(&json!({})),
            "responses": with_error(json!({"201": {"description": "Published"}})),
        },
    })
}

fn batch() -> Value {
    json!({"post": {
        "operationId": "batch", "tags": ["batch"],
        "summary": "Several operations in one transaction: all of them, or none",
        "parameters": [{
            "name": "Idempotency-Key", "in": "header", "required": false,
            "description": "The same request with the same key is done once",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255},
        }],
        "requestBody": {"required": true, "content": {"application/json": {"schema": {
            "type": "array", "maxItems": 100,
            "items": {
                "type": "object", "additionalProperties": false, "required": ["method", "path"],
                "properties": {
                    "method": {"enum": ["GET", "POST", "PUT", "PATCH", "DELETE"]},
                    "path": {"type": "string", "description": "As in `cards?id=eq.7` or `rpc/f`"},
                    "headers": {"type": "object", "additionalProperties": {"type": "string"}},
                    "body": {},
                    "expect": {
                        "type": "integer", "minimum": 0,
                        "description": "Rows that it must touch, or nothing is done",
                    },
                },
            },
        }}}},
        "responses": with_error(json!({"200": {
            "description": "One answer for each operation, in order",
            "content": {"application/json": {"schema": {"type": "array", "items": {
                "type": "object", "required": ["status", "headers", "body"],
                "properties": {
                    "status": {"type": "integer"},
                    "headers": {"type": "object"},
                    "body": {},
                },
            }}}},
        }})),
    }})
}

fn tickets() -> Value {
    json!({"post": {
        "operationId": "ticket", "tags": ["tickets"],
        "summary": "A one-time ticket for a reader that cannot send a token, as EventSource",
        "security": [{"bearer": []}],
        "requestBody": {"content": {"application/json": {"schema": {
            "type": "object", "additionalProperties": false,
            "properties": {"paths": {
                "type": "array", "items": {"type": "string"},
                "description": "The streams that it may open; any when there are none",
            }},
        }}}},
        "responses": with_error(json!({"201": {"description": "The ticket", "content": {
            "application/json": {"schema": {
                "type": "object", "required": ["ticket", "expires_in"],
                "properties": {
                    "ticket": {"type": "string"},
                    "expires_in": {"type": "integer", "description": "Seconds"},
                },
            }},
        }}})),
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_names_never_have_one_key() {
        let names = ["a b", "a.20b", "a_20b", "a.b", "é", "a\"b", "A b"];
        let keys: BTreeSet<_> = names.iter().map(|name| key(name)).collect();
        assert_eq!(keys.len(), names.len());
        for key in keys {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            assert!(key.chars().all(allowed), "{key}");
        }
    }

    #[test]
    fn types_are_told_as_they_stand_in_json() {
        assert_eq!(
            typed("int8", "bigint"),
            json!({"type": "integer", "format": "bigint"})
        );
        assert_eq!(
            typed("_text", "text[]"),
            json!({"type": "array", "format": "text[]",
                   "items": {"type": ["string", "null"], "format": "text"}})
        );
        assert_eq!(
            or_nulled(typed("jsonb", "jsonb")),
            json!({"format": "jsonb"})
        );
        assert_eq!(
            or_nulled(typed("bool", "flag")),
            json!({"type": ["boolean", "null"], "format": "flag"})
        );
    }

    #[test]
    fn the_document_comes_to_whoever_takes_json() {
        for (accept, expected) in [
            ("", Some(OPENAPI)),
            ("*/*", Some(OPENAPI)),
            ("application/openapi+json", Some(OPENAPI)),
            ("text/html, application/json;q=0.9", Some(JSON)),
            ("text/csv", None),
        ] {
            assert_eq!(media(accept), expected, "{accept}");
        }
    }
}
