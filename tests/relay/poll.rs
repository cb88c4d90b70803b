//! Reading the log costs the same however much is in it.

use std::fmt::Write as _;

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::harness::database;

/// The plan of the poll as the relay sends it: parameters typed, values known when it is planned.
async fn plan(client: &Client, cursor: &str) -> String {
    let (xmax, xip) = cursor.split_once(' ').unwrap();
    let sql = format!("explain execute poll ('{xmax}', '{{{xip}}}', 40000)");
    explained(client, &sql).await
}

async fn explained(client: &Client, sql: &str) -> String {
    let mut text = String::new();
    client.batch_execute(rowcast::log::BEGIN).await.unwrap();
    for message in client.simple_query(sql).await.unwrap() {
        if let SimpleQueryMessage::Row(row) = message {
            writeln!(text, "{}", row.get(0).unwrap()).unwrap();
        }
    }
    client.batch_execute("rollback").await.unwrap();
    text
}

fn assert_by_index(plan: &str, when: &str) {
    let conditions = plan.matches("Index Cond: ").count();
    assert_eq!(conditions, 2, "{when}: {plan}");
    assert_eq!(plan.matches(" log_pkey ").count(), 2, "{when}: {plan}");
    assert!(!plan.contains("Seq Scan"), "{when}: {plan}");
}

#[tokio::test]
async fn a_poll_looks_into_the_index_twice_and_nowhere_else() {
    let database = database().await;
    let relay = database.relay().await;
    relay.kill().await;
    // An old transaction that is still open: it is in every cursor.
    let open = database.client().await;
    open.batch_execute("begin; select pg_current_xact_id()")
        .await
        .unwrap();
    database.sql("select pg_current_xact_id()").await;
    let client = database.client().await;
    let prepare = format!(
        "prepare poll (xid8, xid8[], int8) as {}",
        rowcast::log::POLL
    );
    client.batch_execute(&prepare).await.unwrap();
    let cursor = "select pg_snapshot_xmax(s) || ' ' || (select coalesce(string_agg(x::text, ','), '') from pg_snapshot_xip(s) x) from pg_current_snapshot() s";
    let now = async || database.one(cursor).await;

    let log = "insert into rowcast.log (rel, op, old, new) select 1, 'U', '{}', '{}' from generate_series(1, ";
    // A long life of small transactions, then one huge one. Nobody has counted rows yet.
    let settings = "alter table rowcast.log set (autovacuum_enabled = off)";
    database.sql(settings).await;
    let small = format!("do $$ begin for i in 1..500 loop {log}20); commit; end loop; end $$");
    database.sql(&small).await;
    database.sql(&format!("{log}1000000)")).await;
    for when in ["a million rows", "analyzed"] {
        assert_by_index(&plan(&client, &now().await).await, when);
        for mode in ["force_custom_plan", "force_generic_plan"] {
            client
                .batch_execute(&format!("set plan_cache_mode = {mode}"))
                .await
                .unwrap();
            assert_by_index(
                &plan(&client, &now().await).await,
                &format!("{when}, {mode}"),
            );
        }
        client.batch_execute("reset plan_cache_mode").await.unwrap();
        database.sql("analyze rowcast.log").await;
    }
    // The parts of a huge one likewise.
    let part = format!(
        "prepare part (xid8, int8, xid8, int8) as {}",
        rowcast::log::PART
    );
    client.batch_execute(&part).await.unwrap();
    for mode in ["force_custom_plan", "force_generic_plan"] {
        client
            .batch_execute(&format!("set plan_cache_mode = {mode}"))
            .await
            .unwrap();
        let plan = explained(&client, "explain execute part ('10', 5, '20', 40000)").await;
        let condition = "Index Cond: ((ROW(xid, id) > ROW(";
        assert!(plan.contains(condition), "{mode}: {plan}");
        assert!(!plan.contains("Sort"), "{mode}: {plan}");
    }
    open.batch_execute("commit").await.unwrap();
}
