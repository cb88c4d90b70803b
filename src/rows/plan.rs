//! What a request means in this catalogue: every name looked up, every value left alone. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::value::RawValue;

use super::Error;
use super::request::{Order, Request, Resolution, Verb};
use crate::filter::Condition;
use crate::schema::catalog::{Catalog, Table};

/// What to do with which table.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The table.
    pub table: Arc<Table>,
    /// What to do.
    pub action: Action,
    /// Which columns are answered: name in the table and in the answer. `None` for all.
    pub columns: Option<Vec<(String, String)>>,
    /// Which rows.
    pub conditions: Vec<Condition>,
    /// In which order.
    pub order: Vec<Order>,
}

/// What to do.
#[derive(Debug, Clone)]
pub enum Action {
    /// Read rows.
    Read {
        /// At most so many.
        limit: Option<u64>,
        /// Leaving out so many.
        offset: u64,
        /// Count all of them too.
        count: bool,
    },
    /// Write the rows of the body.
    Insert {
        /// The body's columns.
        columns: Vec<String>,
        /// Rows in the body.
        rows: usize,
        /// What to do about rows that are there, and which columns tell that they are.
        conflict: Option<(Resolution, Vec<String>)>,
    },
    /// Set the body's columns.
    Update {
        /// The body's columns.
        columns: Vec<String>,
    },
    /// Delete rows.
    Delete,
}

/// Looks everything up.
///
/// # Errors
/// [`Error`] about a name, or about the body.
pub fn plan(request: &Request, catalog: &Catalog, body: &[u8]) -> Result<Plan, Error> {
    let table = catalog
        .table(&request.table)
        .ok_or_else(|| Error::NoTable {
            schema: catalog.schema().to_owned(),
            table: request.table.clone(),
            near: nearest(&request.table, &catalog.names()),
        })?;
    let known = |column: &str| {
        table
            .column(column)
            .map(|_| ())
            .ok_or_else(|| Error::NoColumn {
                table: table.name.clone(),
                column: column.to_owned(),
            })
    };
    request
        .select
        .iter()
        .flatten()
        .try_for_each(|(column, _)| known(column))?;
    request
        .conditions
        .iter()
        .try_for_each(|condition| known(&condition.column))?;
    request
        .order
        .iter()
        .try_for_each(|order| known(&order.column))?;
    request
        .on_conflict
        .iter()
        .flatten()
        .try_for_each(|column| known(column))?;
    let action = match request.verb {
        Verb::Read => Action::Read {
            limit: request.limit,
            offset: request.offset,
            count: request.prefer.count,
        },
        Verb::Insert => {
            let payload = payload(request, table, body)?;
            let target = || {
                request
                    .on_conflict
                    .clone()
                    .unwrap_or_else(|| table.key.clone())
            };
            Action::Insert {
                columns: payload.columns,
                rows: payload.rows,
                conflict: request
                    .prefer
                    .resolution
                    .map(|resolution| (resolution, target())),
            }
        }
        Verb::Update => {
            let payload = payload(request, table, body)?;
            if payload.rows != 1 {
                return Err(Error::Body("an update takes one object".into()));
            }
            Action::Update {
                columns: payload.columns,
            }
        }
        Verb::Delete => Action::Delete,
    };
    Ok(Plan {
        table: Arc::clone(table),
        action,
        columns: request.select.clone(),
        conditions: request.conditions.clone(),
        order: request.order.clone(),
    })
}

struct Payload {
    columns: Vec<String>,
    rows: usize,
}

type Object<'b> = std::collections::BTreeMap<String, &'b RawValue>;

/// The shape of a body: an object, or an array of objects with the same keys.
fn payload(request: &Request, table: &Table, body: &[u8]) -> Result<Payload, Error> {
    let malformed =
        |error: serde_json::Error| Error::Body(format!("empty or invalid json: {error}"));
    let first = body.iter().find(|b| !b.is_ascii_whitespace());
    let objects: Vec<Object> = match first {
        Some(b'[') => serde_json::from_slice(body).map_err(malformed)?,
        _ => vec![serde_json::from_slice(body).map_err(malformed)?],
    };
    let keys: BTreeSet<&str> = objects
        .first()
        .into_iter()
        .flat_map(Object::keys)
        .map(String::as_str)
        .collect();
    let columns: Vec<String> = match &request.columns {
        Some(columns) => columns.clone(),
        None if objects
            .iter()
            .all(|o| o.len() == keys.len() && o.keys().all(|key| keys.contains(key.as_str()))) =>
        {
            keys.iter().map(|key| (*key).to_owned()).collect()
        }
        None => return Err(Error::Body("All object keys must match".into())),
    };
    if let Some(column) = columns.iter().find(|column| table.column(column).is_none()) {
        return Err(Error::NoPayloadColumn {
            table: table.name.clone(),
            column: column.clone(),
        });
    }
    Ok(Payload {
        columns,
        rows: objects.len(),
    })
}

/// The name that differs least, if any differs little.
fn nearest(name: &str, names: &[&str]) -> Option<String> {
    let distances = names.iter().map(|known| (distance(name, known), *known));
    let (distance, nearest) = distances.min()?;
    (distance <= name.chars().count().max(4) / 2).then(|| nearest.to_owned())
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::request;
    use super::*;
    use crate::schema::catalog::Column;

    /// A catalogue with one table of these columns; the first is the key.
    pub fn catalog(table: &str, columns: &[&str]) -> Catalog {
        let column = |name: &&str| Column {
            name: (*name).to_owned(),
            type_name: "text".into(),
            base: "text".into(),
            byte_ordered: true,
            deterministic: true,
            not_null: false,
            virtual_: false,
            selectable: true,
        };
        let table = Table {
            oid: 1,
            schema: "public".into(),
            name: table.to_owned(),
            kind: 'r',
            columns: columns.iter().map(column).collect(),
            key: vec![columns[0].to_owned()],
            watched: true,
            row_security: false,
        };
        Catalog::new("public", vec![table], &[])
    }

    fn planned(verb: Verb, query: &str, body: &str) -> Result<Plan, Error> {
        let request = request::parse(verb, "tasks", query, |_| None)?;
        plan(
            &request,
            &catalog("tasks", &["id", "title"]),
            body.as_bytes(),
        )
    }

    #[test]
    fn names_are_looked_up() {
        for query in ["select=nope", "nope=eq.1", "order=nope", "on_conflict=nope"] {
            assert!(
                matches!(planned(Verb::Read, query, ""), Err(Error::NoColumn { .. })),
                "{query}"
            );
        }
        let request = request::parse(Verb::Read, "task", "", |_| None).unwrap();
        let Err(Error::NoTable { near, .. }) = plan(&request, &catalog("tasks", &["id"]), b"")
        else {
            panic!()
        };
        assert_eq!(near.as_deref(), Some("tasks"));
    }

    #[test]
    fn bodies_are_objects_with_the_same_keys() {
        let columns = |query: &str, body: &str| match planned(Verb::Insert, query, body)?.action {
            Action::Insert { columns, rows, .. } => Ok::<_, Error>((columns.join(","), rows)),
            _ => panic!(),
        };
        assert_eq!(
            columns("", r#" [{"id":1,"title":"a"},{"title":"b","id":2}]"#).unwrap(),
            ("id,title".into(), 2)
        );
        assert_eq!(
            columns("columns=id", r#"[{"id":1},{"title":"b","id":2}]"#).unwrap(),
            ("id".into(), 2)
        );
        assert_eq!(columns("", "[]").unwrap(), (String::new(), 0));
        for body in [
            "",
            "5",
            "[5]",
            "{",
            r#"[{"id":1},{"title":"b"}]"#,
            "{\"id\":1} x",
        ] {
            assert!(matches!(columns("", body), Err(Error::Body(_))), "{body}");
        }
        assert!(matches!(
            columns("", r#"{"nope":1}"#),
            Err(Error::NoPayloadColumn { .. })
        ));
    }
}
