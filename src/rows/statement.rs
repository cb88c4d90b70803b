//! SQL from a plan. Names come from the plan, that is from the catalogue, and are quoted; values
//! are parameters whose type PostgreSQL decides. Pure.

use std::fmt::Write;

use super::plan::{Action, Plan};
use super::request::{Order, Resolution};
use crate::filter::{Condition, Test};
use crate::postgres::quote::{identifier, qualified};
use crate::postgres::value::Untyped;
use crate::schema::catalog::Table;

/// SQL with its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The text.
    pub sql: String,
    /// `$1` and so on.
    pub parameters: Vec<Untyped>,
}

/// The statement that does what the plan says. A read gives one column, the row's JSON text; so
/// does a write with `representation`. An insert that may meet rows that are there gives, last,
/// whether it made the row. At most `most` rows are read.
#[must_use]
pub fn statement(plan: &Plan, body: &str, representation: bool, most: u64) -> Statement {
    match &plan.action {
        Action::Read { limit, offset, .. } => {
            let mut read = rows(
                &plan.table,
                plan.columns.as_deref(),
                &plan.conditions,
                &plan.order,
            );
            let limit = limit.map_or(most, |limit| limit.min(most));
            let _infallible = write!(read.sql, " limit {limit} offset {offset}");
            read
        }
        Action::Insert {
            columns, conflict, ..
        } => {
            let mut sql = insert(&plan.table, columns);
            if let Some((resolution, target)) = conflict {
                sql.push_str(&on_conflict(*resolution, target, columns));
            }
            let parameters = if columns.is_empty() {
                Vec::new()
            } else {
                vec![Untyped(body.to_owned())]
            };
            let mut statement = Statement { sql, parameters };
            returning(&mut statement, plan, representation);
            statement
        }
        Action::Update { columns } => {
            let name = name(&plan.table);
            let set: Vec<String> = columns
                .iter()
                .map(|c| identifier(c))
                .map(|c| format!("{c} = b.{c}"))
                .collect();
            let sql = format!(
                "update {name} as t set {} from json_populate_record(null::{name}, $1::json) as b",
                set.join(", ")
            );
            let mut statement = Statement {
                sql,
                parameters: vec![Untyped(body.to_owned())],
            };
            filter(&mut statement, &plan.conditions);
            returning(&mut statement, plan, representation);
            statement
        }
        Action::Delete => {
            let sql = format!("delete from {} as t", name(&plan.table));
            let mut statement = Statement {
                sql,
                parameters: Vec::new(),
            };
            filter(&mut statement, &plan.conditions);
            returning(&mut statement, plan, representation);
            statement
        }
    }
}

/// Whether the statement's last column says of each row that it is new. System columns cannot be
/// returned through a partitioned table.
#[must_use]
pub fn tells_inserted(plan: &Plan) -> bool {
    plan.table.kind == 'r'
        && matches!(&plan.action, Action::Insert { conflict: Some(_), rows, .. } if *rows > 0)
}

/// All rows that meet the conditions, one column: the row's JSON text as `row_to_json` writes it.
#[must_use]
pub fn rows(
    table: &Table,
    columns: Option<&[(String, String)]>,
    conditions: &[Condition],
    order: &[Order],
) -> Statement {
    let sql = format!("select {} from {} as t", row(columns), name(table));
    let mut statement = Statement {
        sql,
        parameters: Vec::new(),
    };
    filter(&mut statement, conditions);
    let order: Vec<String> = order.iter().map(by).collect();
    if !order.is_empty() {
        let _infallible = write!(statement.sql, " order by {}", order.join(", "));
    }
    statement
}

/// How many rows meet the conditions.
#[must_use]
pub fn count(plan: &Plan) -> Statement {
    let sql = format!("select count(*) from {} as t", name(&plan.table));
    let mut statement = Statement {
        sql,
        parameters: Vec::new(),
    };
    filter(&mut statement, &plan.conditions);
    statement
}

fn name(table: &Table) -> String {
    qualified(&table.schema, &table.name)
}

/// The row `t` as JSON text. `t.*` and not `t`: a column may have that name.
fn row(columns: Option<&[(String, String)]>) -> String {
    let Some(columns) = columns else {
        return "row_to_json(t.*)::text".to_owned();
    };
    let columns: Vec<String> = columns
        .iter()
        .map(|(column, output)| format!("t.{} as {}", identifier(column), identifier(output)))
        .collect();
    format!(
        r#"row_to_json((select "!row" from (select {}) as "!row"))::text"#,
        columns.join(", ")
    )
}

fn by(order: &Order) -> String {
    format!("t.{}{}", identifier(&order.column), direction(order))
}

fn direction(order: &Order) -> String {
    let direction = if order.descending { " desc" } else { "" };
    let nulls = match order.nulls_first {
        Some(true) => " nulls first",
        Some(false) => " nulls last",
        None => "",
    };
    format!("{direction}{nulls}")
}

fn insert(table: &Table, columns: &[String]) -> String {
    let name = name(table);
    if columns.is_empty() {
        return format!("insert into {name} as t default values");
    }
    let columns: Vec<String> = columns.iter().map(|column| identifier(column)).collect();
    let columns = columns.join(", ");
    // One object or an array of them: the argument decides which.
    format!(
        "insert into {name} as t ({columns}) select {columns} from json_populate_recordset(null::{name}, \
         case json_typeof($1::json) when 'array' then $1::json else json_build_array($1::json) end)"
    )
}

fn on_conflict(resolution: Resolution, target: &[String], columns: &[String]) -> String {
    let target: Vec<String> = target.iter().map(|column| identifier(column)).collect();
    let target = target.join(", ");
    let target = if target.is_empty() {
        target
    } else {
        format!(" ({target})")
    };
    match resolution {
        Resolution::Merge if !columns.is_empty() && !target.is_empty() => {
            let set: Vec<String> = columns
                .iter()
                .map(|c| identifier(c))
                .map(|c| format!("{c} = excluded.{c}"))
                .collect();
            format!(" on conflict{target} do update set {}", set.join(", "))
        }
        _ => format!(" on conflict{target} do nothing"),
    }
}

/// The rows that were written, if wanted in the order that is wanted. `returning` itself has no
/// order, so the columns to sort by travel beside it under names of our own.
fn returning(statement: &mut Statement, plan: &Plan, representation: bool) {
    let mut returned = Vec::new();
    if representation {
        returned.push((row(plan.columns.as_deref()), "\"!row\"".to_owned()));
    }
    if tells_inserted(plan) {
        returned.push(("t.xmax = 0".to_owned(), "\"!inserted\"".to_owned()));
    }
    if returned.is_empty() {
        return;
    }
    if !representation || plan.order.is_empty() {
        let returned: Vec<_> = returned.into_iter().map(|(value, _)| value).collect();
        let _infallible = write!(statement.sql, " returning {}", returned.join(", "));
        return;
    }
    let answered: Vec<_> = returned.iter().map(|(_, name)| name.clone()).collect();
    let mut order = Vec::new();
    for (place, by) in plan.order.iter().enumerate() {
        let name = format!("\"!by {place}\"");
        order.push(format!("{name}{}", direction(by)));
        returned.push((format!("t.{}", identifier(&by.column)), name));
    }
    let returned: Vec<_> = returned
        .iter()
        .map(|(value, name)| format!("{value} as {name}"))
        .collect();
    statement.sql = format!(
        "with w as ({} returning {}) select {} from w order by {}",
        statement.sql,
        returned.join(", "),
        answered.join(", "),
        order.join(", ")
    );
}

fn filter(statement: &mut Statement, conditions: &[Condition]) {
    for (place, condition) in conditions.iter().enumerate() {
        statement
            .sql
            .push_str(if place == 0 { " where " } else { " and " });
        let column = format!("t.{}", identifier(&condition.column));
        let mut parameter = |value: &String| {
            statement.parameters.push(Untyped(value.clone()));
            format!("${}", statement.parameters.len())
        };
        let test = match &condition.test {
            Test::Compare(operator, value) => {
                format!("{column} {} {}", operator.sql(), parameter(value))
            }
            Test::In(values) if values.is_empty() => "false".to_owned(),
            Test::In(values) => {
                let values: Vec<String> = values.iter().map(parameter).collect();
                format!("{column} in ({})", values.join(", "))
            }
            Test::Is(truth) => format!("{column} {}", truth.sql()),
        };
        let not = if condition.negated { "not " } else { "" };
        let _infallible = write!(statement.sql, "{not}({test})");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::plan::plan;
    use super::super::plan::tests::catalog;
    use super::super::request::{self, Verb};
    use super::*;

    fn sql(verb: Verb, query: &str, prefer: &'static str, body: &str) -> String {
        let header = |name: &str| (name == "prefer").then_some(prefer);
        let request = request::parse(verb, "ta\"s", query, header).unwrap();
        let plan = plan(
            &request,
            &catalog("ta\"s", &["id", "a\"b"]),
            body.as_bytes(),
        )
        .unwrap();
        statement(
            &plan,
            body,
            request.prefer.representation == Some(true),
            1000,
        )
        .sql
    }

    const NAME: &str = r#""public"."ta""s""#;

    #[test]
    fn reads() {
        assert_eq!(
            sql(
                Verb::Read,
                "id=gt.5&a%22b=not.in.(1,2)&order=id.desc&limit=7",
                "",
                ""
            ),
            format!(
                r#"select row_to_json(t.*)::text from {NAME} as t where (t."id" > $1) and not (t."a""b" in ($2, $3)) order by t."id" desc limit 7 offset 0"#
            )
        );
        assert_eq!(
            sql(Verb::Read, "select=x:id&id=is.null&limit=5000", "", ""),
            format!(
                r#"select row_to_json((select "!row" from (select t."id" as "x") as "!row"))::text from {NAME} as t where (t."id" is null) limit 1000 offset 0"#
            )
        );
    }

    #[test]
    fn writes() {
        assert_eq!(
            sql(
                Verb::Update,
                "id=eq.1",
                "return=representation",
                r#"{"a\"b":1}"#
            ),
            format!(
                r#"update {NAME} as t set "a""b" = b."a""b" from json_populate_record(null::{NAME}, $1::json) as b where (t."id" = $2) returning row_to_json(t.*)::text"#
            )
        );
        assert_eq!(
            sql(Verb::Delete, "order=id.desc", "return=representation", ""),
            format!(
                r#"with w as (delete from {NAME} as t returning row_to_json(t.*)::text as "!row", t."id" as "!by 0") select "!row" from w order by "!by 0" desc"#
            )
        );
        assert_eq!(
            sql(Verb::Delete, "id=in.()", "", ""),
            format!("delete from {NAME} as t where (false)")
        );
        assert!(
            sql(
                Verb::Insert,
                "",
                "resolution=merge-duplicates",
                r#"{"id":1}"#
            )
            .ends_with(
                r#" on conflict ("id") do update set "id" = excluded."id" returning t.xmax = 0"#
            )
        );
        assert_eq!(
            sql(Verb::Insert, "", "", "{}"),
            format!("insert into {NAME} as t default values")
        );
    }

    proptest! {
        /// No value ever reaches the text: the same query with other values is the same statement.
        #[test]
        fn values_are_parameters(a in "\\PC*", b in "\\PC*", operator in prop::sample::select(vec!["eq", "neq", "gt", "lte", "not.lt"])) {
            let query = |value: &str| {
                let value: String = form_urlencoded::byte_serialize(value.as_bytes()).collect();
                sql(Verb::Read, &format!("id={operator}.{value}"), "", "")
            };
            prop_assert_eq!(query(&a), query(&b));
        }
    }
}
