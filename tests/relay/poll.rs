//! Reading the log costs the same however much is in it.

use std::fmt::Write as _;

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::harness::{database, eventually};

/// The plan of the poll as the relay sends it: parameters typed, values known when it is planned.
async fn plan(client: &Client, cursor: &str) -> String {
    let (xmax, xip) = cursor.split_once(' ').unwrap();
    let sql = format!("explain execute poll ('{xmax}', '{{{xip}}}', 24000)");
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
    assert_eq!(plan.matches(" log_touched ").count(), 2, "{when}: {plan}");
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
    // What reads very many rows likewise, and what passes over them.
    let (part, step) = (rowcast::log::PART, rowcast::log::STEP);
    let touched = rowcast::log::TOUCHED;
    let prepare = format!(
        "prepare part (xid8, xid8) as {part}; prepare step (xid8, int8) as {step}; prepare touched (xid8) as {touched}"
    );
    client.batch_execute(&prepare).await.unwrap();
    for mode in ["force_custom_plan", "force_generic_plan"] {
        client
            .batch_execute(&format!("set plan_cache_mode = {mode}"))
            .await
            .unwrap();
        for (call, condition) in [
            ("part ('10', '20')", "Index Cond: ((xid >= '10'"),
            ("step ('10', 24000)", "Index Cond: (xid >= '10'"),
            (
                "touched ('10')",
                "Index Cond: ((xid = '10'::xid8) AND (op = t.op) AND (rel <",
            ),
        ] {
            let plan = explained(&client, &format!("explain execute {call}")).await;
            let condition = match mode {
                "force_generic_plan" => condition.replace("'10'::xid8", "$1").replace("'10'", "$1"),
                _ => condition.to_owned(),
            };
            assert!(plan.contains(&condition), "{mode}: {plan}");
            assert!(!plan.contains("Sort"), "{mode}: {plan}");
            assert!(!plan.contains("Seq Scan"), "{mode}: {plan}");
        }
    }
    open.batch_execute("commit").await.unwrap();
}

#[tokio::test]
async fn rows_of_a_transaction_that_is_still_open_are_not_looked_at() {
    let database = database().await;
    database.relay().await.kill().await;
    let sessions = "select count(*) from pg_stat_activity where application_name like 'rowcast%' \
                    and datname = current_database()";
    eventually("the relay's sessions are over", async || {
        (database.one(sessions).await == "0").then_some(())
    })
    .await;
    let open = database.client().await;
    open.batch_execute(
        "begin; insert into rowcast.log (op, new) select 'P', '1' from generate_series(1, 5000)",
    )
    .await
    .unwrap();
    // Somebody began later, so that it is one of those in progress.
    database.sql("select pg_current_xact_id()").await;
    let now = "select pg_snapshot_xmax(s) || ' ' || (select string_agg(x::text, ',') from pg_snapshot_xip(s) x) \
               from pg_current_snapshot() s";
    let cursor = database.one(now).await;
    let (xmax, xip) = cursor.split_once(' ').unwrap();
    let tick = "delete from rowcast.tick; insert into rowcast.tick (at) values (now() - interval '1 minute')";
    database.sql(tick).await;
    let prepare = format!(
        "prepare poll (xid8, xid8[], int8) as {}",
        rowcast::log::POLL
    );
    let poll = format!("execute poll ('{xmax}', '{{{xip}}}', 24000)");
    let client = database.client().await;
    client.batch_execute(&prepare).await.unwrap();
    // How many entries of the index were looked at.
    let looked = async |sql: &str| -> i64 {
        let count = "select pg_stat_get_xact_tuples_returned('rowcast.log_touched'::regclass)";
        let count = async || -> i64 { client.query_one(count, &[]).await.unwrap().get(0) };
        client.batch_execute("begin").await.unwrap();
        let before = count().await;
        client.batch_execute(sql).await.unwrap();
        let after = count().await;
        client.batch_execute("commit").await.unwrap();
        after - before
    };
    let past = format!(
        "prepare past (xid8, xid8[], int8, int8) as {}",
        rowcast::log::POLL_PAST
    );
    client.batch_execute(&past).await.unwrap();
    let past = |kept: i64| format!("execute past ('{xmax}', '{{{xip}}}', 24000, {kept})");
    let trim = "select rowcast.trim('1 hour', 100, null)";
    for mode in ["force_custom_plan", "force_generic_plan"] {
        let settings = format!("set plan_cache_mode = {mode}; set enable_seqscan = off");
        client.batch_execute(&settings).await.unwrap();
        assert_eq!(looked(&poll).await, 0, "{mode}");
        assert_eq!(looked(&past(100)).await, 0, "{mode}");
    }
    assert_eq!(looked(trim).await, 0);
    let kept = "select max(rows)::text from rowcast.tick";
    assert_eq!(database.one(kept).await, "0");
    // And once it is over they are.
    open.batch_execute("commit").await.unwrap();
    assert_eq!(looked(&poll).await, 5000);
    // No more of them than it takes to see that they will not be kept.
    assert_eq!(looked(&past(100)).await, 101);
    database
        .sql("update rowcast.tick set at = at - interval '1 minute'")
        .await;
    assert_eq!(looked(trim).await, 5000);
    assert_eq!(database.one(kept).await, "5000");
}
