//! A table whose changes are captured by statement shows what one that is captured by row shows.

use serde_json::{Value, json};

use crate::harness::{Database, Event, command, database, eventually};

/// Tables that are made twice, and captured in two ways; `%` stands for which.
const TABLES: &str = "create table % (id int primary key, title text);
    create table %_keys (id int primary key deferrable, title text);
    create table %_up (id int primary key, title text);
    create table %_down (id int primary key, title text, up int references %_up on delete cascade on update cascade);
    insert into % select n, 'row ' || n from generate_series(1, 9) n; insert into %_keys select * from %;
    create function %_nested() returns trigger language plpgsql as $$
    begin
      if new.title = 'again' then
        update % set title = 'settled' where id = new.id;
      elsif new.title = 'both' then
        update % set title = 'first' where title = 'both';
      end if;
      return null;
    end $$;
    create trigger a_nested after insert or update on % for each row execute function %_nested();
    select rowcast.watch(t, '%') from unnest('{%,%_keys,%_up,%_down}'::regclass[]) t";

/// What somebody may do in one transaction.
const DONE: [(&str, &str); 20] = [
    ("one row comes", "insert into % values (20, 'x')"),
    ("some come", "insert into % select n, 'x' from generate_series(21, 29) n"),
    ("one changes", "update % set title = 'y' where id = 1"),
    ("some change", "update % set title = title || '!' where id < 5"),
    ("nothing changes", "update % set title = 'y' where id = 0; delete from % where id = 0; insert into % values (1) on conflict do nothing; delete from % where id = 9"),
    ("the same as before", "update % set title = title"),
    ("every key moves onto one that is there", "set constraints all deferred; update %_keys set id = id + 1"),
    ("two change places", "set constraints all deferred; update %_keys set id = 9 - id where id in (4, 5)"),
    ("an upsert that does both", "insert into % values (3, 'up'), (40, 'in'), (4, 'up') on conflict (id) do update set title = excluded.title"),
    ("a merge that does all", "merge into % t using (values (3, 'm'), (41, 'm'), (6, 'd'), (42, 'm'), (7, 'm')) s (id, title) on t.id = s.id
        when matched and s.title = 'd' then delete when matched then update set title = s.title
        when not matched then insert values (s.id, s.title)"),
    ("three statements in one", "with gone as (delete from % where id = 41 returning *), came as (insert into % select 43, title from gone)
        update % set title = 'cte' where id in (8, 9)"),
    ("a trigger that writes the same row", "insert into % values (50, 'again'); update % set title = 'again' where id in (2, 3)"),
    ("a trigger that writes the other rows", "update % set title = 'both' where id in (2, 3, 8)"),
    ("children follow", "insert into %_up values (1, 'a'), (2, 'b'), (3, 'c'); insert into %_down select n, 'child', 1 + mod(n, 3) from generate_series(1, 9) n;
        update %_up set id = id + 10 where id < 3"),
    ("children go", "delete from %_up where id > 10; delete from %_down where id = 1000"),
    ("some is taken back", "insert into % values (80, 'stays'); savepoint s; update % set title = 'lost'; delete from % where id < 5; rollback to s;
        update % set title = 'kept' where id = 80"),
    ("rows that do not stay", "insert into % values (81, 'x'); update % set title = 'y' where id = 81; delete from % where id = 81; delete from % where id = 80; insert into % values (80, 'born again')"),
    ("large ones beside small ones", "insert into % values (90, repeat('x', 300000)), (91, (select string_agg(md5(n::text), '') from generate_series(1, 200) n)), (92, 'z'); update % set id = id + 10 where id in (90, 91)"),
    ("as a replica", "set local session_replication_role = replica; update % set title = 'replayed' where id in (92, 100); set local session_replication_role = origin; delete from % where id = 101"),
    ("all goes", "update % set title = 'lost'; truncate %; insert into % values (1, 'first')"),
];

/// Key, operation and value of each change, in the order of the keys.
fn changes(events: &[Event], txid: &str) -> Vec<(String, String, Value)> {
    let mut changes: Vec<_> = events
        .iter()
        .filter(|event| event.has_txid(txid))
        .flat_map(Event::elements)
        .map(|element| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let headers = &element["headers"];
            let what = text(&headers["operation"]) + &text(&headers["control"]);
            (text(&element["key"]), what, element["value"].clone())
        })
        .collect();
    changes.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    changes
}

/// What is in a table, by its key.
async fn table(database: &Database, name: &str) -> Value {
    let rows = format!("select coalesce(json_object_agg(id, t), '{{}}') from {name} t");
    serde_json::from_str(&database.one(&rows).await).unwrap()
}

#[tokio::test]
async fn whatever_is_written_it_shows_what_a_table_captured_by_row_shows() {
    let database = database().await;
    let relay = database.relay().await;
    let both = |sql: &str| sql.replace('%', "row") + "; " + &sql.replace('%', "statement");
    database.sql(&both(TABLES)).await;
    let mut shown_twice = Vec::new();
    for name in ["%", "%_keys", "%_up", "%_down"] {
        let [by_row, by_statement] = ["row", "statement"].map(|way| name.replace('%', way));
        let path = |table: &str| format!("/rest/v1/{table}");
        let row = relay.shown(&path(&by_row)).await;
        let statement = relay.shown(&path(&by_statement)).await;
        shown_twice.push((name, row, statement, by_statement));
    }
    for (what, sql) in DONE {
        let txid = database.commit(&both(sql)).await;
        for (name, (by_row, rows), (by_statement, same), table_name) in &mut shown_twice {
            // A stream of a table that nothing was done to says so seconds later.
            if !sql.contains(&format!("{name} ")) {
                continue;
            }
            let told = rows.reach(by_row, &txid).await;
            let told_too = same.reach(by_statement, &txid).await;
            assert_eq!(changes(&told, &txid), changes(&told_too, &txid), "{what}");
            assert_eq!(rows.rows, same.rows, "{what}");
            assert_eq!(
                table(&database, table_name).await,
                json!(same.rows),
                "{what}"
            );
        }
    }
    let by_key = "select string_agg(n::text, ' ' order by n) from (select count(*) n from rowcast.log where truncated group by rel) c";
    assert_eq!(database.one(by_key).await, "3 4");
    assert_eq!(database.one("select is_called from rowcast.gap").await, "f");
}

/// A partitioned table, one that is inherited from, and two that may become a part of these.
const PARTS: &str =
    "create table days (id int, day date, primary key (id, day)) partition by range (day);
    create table november partition of days for values from ('2026-11-01') to ('2026-12-01');
    create table december (id int not null, day date not null, primary key (id, day));
    create table parent (id int primary key, note text);
    create table child (primary key (id)) inherits (parent);
    create table orphan (id int primary key, note text)";

#[tokio::test]
async fn a_table_whose_writes_would_be_missed_is_not_captured_by_statement() {
    let database = database().await;
    database.relay().await.kill().await;
    database.sql(PARTS).await;
    let client = database.client().await;
    let mut refused = vec![
        ("days", "statement", "it is partitioned"),
        ("child", "statement", "it inherits"),
        ("orphan", "rows", "there is no capture 'rows'"),
    ];
    let version = database
        .one("select current_setting('server_version_num')::int / 10000")
        .await;
    if version.parse::<u32>().unwrap() >= 18 {
        database
            .sql("create table doubled (id int primary key, twice int generated always as (id * 2) virtual)")
            .await;
        refused.push(("doubled", "statement", "it has virtual generated columns"));
    }
    for (table, capture, why) in refused {
        let sql = format!("select rowcast.watch('{table}', '{capture}')");
        let error = client.batch_execute(&sql).await.unwrap_err();
        let error = error.as_db_error().unwrap();
        assert!(error.message().contains(why), "{}", error.message());
        assert!(
            error
                .hint()
                .is_some_and(|hint| hint.starts_with("select rowcast.watch(")),
            "{error:?}"
        );
    }
    assert_eq!(
        database.one("select count(*) from rowcast.watched").await,
        "0"
    );
}

#[tokio::test]
async fn a_table_that_becomes_a_part_of_another_is_captured_by_row() {
    let database = database().await;
    let relay = database.relay().await;
    database.sql(PARTS).await;
    for (table, sql, through, changed) in [
        (
            "orphan",
            "alter table orphan inherit parent",
            "update parent set note = 'through'",
            "through",
        ),
        (
            "december",
            "alter table days attach partition december for values from ('2026-12-01') to ('2027-01-01')",
            "update days set id = 5",
            "5",
        ),
    ] {
        let values = if table == "orphan" {
            "(1, 'a')"
        } else {
            "(1, '2026-12-03')"
        };
        database
            .sql(&format!(
                "insert into {table} values {values}; select rowcast.watch('{table}', 'statement')"
            ))
            .await;
        let path = format!("/rest/v1/{table}");
        let (mut stream, mut screen) = relay.shown(&path).await;
        // In one transaction, so that nothing comes between: the write is not seen, and the repair tells of it.
        database
            .sql(&format!("begin; {sql}; {through}; commit"))
            .await;
        // Who reads, as a dump does, keeps triggers from being dropped.
        let reader = database.client().await;
        let read = format!("begin; select from {table}");
        reader.batch_execute(&read).await.unwrap();
        screen
            .follow(&mut stream, |screen| {
                screen
                    .rows
                    .values()
                    .any(|row| row.to_string().contains(changed))
            })
            .await;
        let triggers = format!(
            "select string_agg(tgname || ' ' || tgenabled::text, ', ' order by tgname collate \"C\") from pg_trigger \
             where tgrelid = '{table}'::regclass and tgname like '!rowcast%'"
        );
        eventually("rows are captured", async || {
            let there = database.one(&triggers).await;
            there.starts_with("!rowcast A, ").then_some(())
        })
        .await;
        reader.batch_execute("rollback").await.unwrap();
        eventually("and nothing else", async || {
            (database.one(&triggers).await == "!rowcast A, !rowcast_truncate A").then_some(())
        })
        .await;
        let txid = database
            .commit(&format!("{through}; delete from {table}"))
            .await;
        screen.reach(&mut stream, &txid).await;
        assert!(screen.rows.is_empty());
    }
}

#[tokio::test]
async fn triggers_that_fire_where_they_must_not_are_put_right() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create table tasks (id int primary key, title text); insert into tasks values (1, 'a');
             select rowcast.watch('tasks', 'statement')",
        )
        .await;
    let (mut stream, mut screen) = relay.shown("/rest/v1/tasks").await;
    let fires = "select string_agg(tgenabled::text, '' order by tgname collate \"C\") from pg_trigger where tgname like '!rowcast%'";
    assert_eq!(database.one(fires).await, "ROOAO");
    for (sql, title) in [
        (
            "alter table tasks disable trigger all; update tasks set title = 'unseen'",
            "unseen",
        ),
        // Both kinds fire here, and none as a replica.
        (
            "alter table tasks enable trigger all; update tasks set title = 'twice'",
            "twice",
        ),
        (
            "drop trigger \"!rowcast_update\" on tasks; update tasks set title = 'dropped'",
            "dropped",
        ),
        (
            "alter table tasks enable always trigger \"!rowcast\"; update tasks set title = 'both'",
            "both",
        ),
    ] {
        database.sql(&format!("begin; {sql}; commit")).await;
        screen
            .follow(&mut stream, |screen| screen.rows["1"]["title"] == title)
            .await;
        eventually(title, async || {
            (database.one(fires).await == "ROOAO").then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn nothing_is_missed_while_the_way_of_capturing_changes() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create table counters (id int primary key, n int not null);
             insert into counters select n, 0 from generate_series(1, 20) n; select rowcast.watch('counters')",
        )
        .await;
    let (mut stream, mut screen) = relay.shown("/rest/v1/counters").await;
    // The reset of watching comes first, wherever the stream began.
    let txid = database.commit("update counters set n = 1").await;
    screen.reach(&mut stream, &txid).await;
    let writing = database.client().await;
    let writer = tokio::spawn(async move {
        let mut written = 0;
        while written < 300 {
            for sql in [
                "update counters set n = n + 1",
                "update counters set n = n + 1 where id = 7",
            ] {
                writing.batch_execute(sql).await.unwrap();
                written += 1;
            }
        }
    });
    let client = database.client().await;
    let mut switched = 0;
    while !writer.is_finished() || switched < 4 {
        let capture = ["statement", "row"][switched % 2];
        let sql = format!("select rowcast.watch('counters', '{capture}')");
        client.batch_execute(&sql).await.unwrap();
        switched += 1;
    }
    writer.await.unwrap();
    let txid = database
        .commit("update counters set n = n + 1 where id = 1")
        .await;
    let events = screen.reach(&mut stream, &txid).await;
    assert!(events.iter().all(|event| !event.has_control("reset")));
    assert_eq!(table(&database, "counters").await, json!(screen.rows));
}

#[tokio::test]
async fn who_says_how_a_table_is_captured_harms_nobody_who_has_it() {
    let database = database().await;
    let relay = database.relay().await;
    database
        .sql(
            "create table tasks (id int primary key, title text); insert into tasks values (1, 'a');
             select rowcast.watch('tasks', 'statement')",
        )
        .await;
    relay.kill().await;
    let reader = database.client().await;
    let read = "begin; select from tasks";
    reader.batch_execute(read).await.unwrap();
    // It would have to wait for the reader, and writers for it, if the triggers on statements had to go first.
    database
        .sql("set statement_timeout = '2s'; select rowcast.watch('tasks', 'row')")
        .await;
    database.sql("update tasks set title = 'b'").await;
    let logged = "select count(*) > 0 from rowcast.log where op = 'U'";
    assert_eq!(database.one(logged).await, "t");
    let doctor = ["doctor", "--database-url", &database.url];
    let said = command().args(doctor).output().await.unwrap().stdout;
    let said = String::from_utf8(said).unwrap();
    assert!(
        said.contains("those of tasks do more than they must"),
        "{said}"
    );
    reader.batch_execute("rollback").await.unwrap();

    // While one says so, another finds that it is not as it was said before.
    let captured = "select rowcast.captured('tasks'::regclass)";
    for _ in 0..10 {
        database
            .sql("select rowcast.watch('tasks', 'statement'); alter table tasks enable always trigger \"!rowcast\"")
            .await;
        tokio::join!(
            database.sql("begin; select rowcast.watch('tasks', 'row'), pg_sleep(0.06); commit"),
            database.sql("select rowcast.check_drift()"),
            database.sql("select rowcast.check_drift()"),
        );
        assert_eq!(database.one(captured).await, "t");
    }
    let gap = "select count(*) from rowcast.log where op = 'R' and id > (select min(id) from rowcast.log where op = 'U')";
    assert_eq!(database.one(gap).await, "0");
}

#[tokio::test]
async fn who_watches_and_who_gives_up_take_turns_and_readers_notice_neither() {
    let database = database().await;
    database.relay().await.kill().await;
    database
        .sql("create table tasks (id int primary key); select rowcast.watch('tasks')")
        .await;
    for _ in 0..3 {
        let writer = database.client().await;
        let write = "begin; insert into tasks select coalesce(max(id), 0) + 1 from tasks";
        writer.batch_execute(write).await.unwrap();
        let writing = async {
            for _ in 0..20 {
                // A reader who waits behind somebody who waits for the writer.
                database
                    .sql("set statement_timeout = '2s'; select count(*), pg_sleep(0.02) from tasks")
                    .await;
            }
            writer.batch_execute("commit").await.unwrap();
        };
        tokio::join!(
            writing,
            database.sql("select rowcast.watch('tasks', 'statement')"),
            database.sql("select rowcast.unwatch('tasks')"),
            database.sql("select rowcast.check_drift()"),
        );
        let agree = "select (select count(*) from rowcast.watched) = (select count(*) from pg_trigger where tgname = '!rowcast')";
        assert_eq!(database.one(agree).await, "t");
    }
}

#[tokio::test]
async fn what_was_missed_while_a_watch_waited_is_read_anew() {
    let database = database().await;
    database.relay().await.kill().await;
    database
        .sql("create table tasks (id int primary key); select rowcast.watch('tasks')")
        .await;
    let resets = "select count(*) from rowcast.log where op = 'R'";
    assert_eq!(database.one(resets).await, "1");
    let writer = database.client().await;
    writer
        .batch_execute(
            "begin; alter table tasks disable trigger user; insert into tasks values (1)",
        )
        .await
        .unwrap();
    let watching = database.sql("select rowcast.watch('tasks', 'statement')");
    let ending = async {
        eventually("it waits", async || {
            let waits = "select exists (select from pg_stat_activity where wait_event_type = 'Lock' and query like '%rowcast.watch(%')";
            (database.one(waits).await == "t").then_some(())
        })
        .await;
        writer.batch_execute("commit").await.unwrap();
    };
    tokio::join!(watching, ending);
    assert_eq!(database.one(resets).await, "2");

    // And who finds nothing to do writes nothing.
    let wrote = "select rowcast.check_drift(); select coalesce(pg_current_xact_id_if_assigned()::text, 'nothing')";
    assert_eq!(database.one(wrote).await, "nothing");
}

#[tokio::test]
async fn without_room_to_put_rows_side_by_side_they_are_logged_one_by_one() {
    let database = database().await;
    database.relay().await.kill().await;
    // What PostgreSQL keeps of them takes 8 MB, and as much again side by side.
    database
        .sql(
            "create table wide (id int primary key, n int, body text);
             insert into wide select n, 0, repeat(md5(n::text), 5) from generate_series(1, 20000) n;
             select rowcast.watch('wide', 'statement');
             set work_mem = '64kB'; set temp_file_limit = '10MB'; update wide set n = 1",
        )
        .await;
    let told = "select string_agg(op::text || ' ' || n, ', ' order by op) from \
                (select op, count(*) n from rowcast.log where not truncated and op <> 'R' group by op) l";
    assert_eq!(database.one(told).await, "D 20000, I 20000");
    assert_eq!(database.one("select is_called from rowcast.gap").await, "f");
}

#[tokio::test]
async fn a_column_may_be_called_as_a_variable_of_the_trigger_is() {
    let database = database().await;
    database.relay().await.kill().await;
    database
        .sql(
            "create table odd (id int primary key, tg_relid int, tg_op text, changed int, keys text, side text);
             select rowcast.watch('odd', 'statement');
             insert into odd select n, n, 'I', n, 'k', 's' from generate_series(1, 3) n;
             update odd set tg_relid = 7; update odd set tg_op = 'D' where id = 1; delete from odd",
        )
        .await;
    let told = "select string_agg(op::text || ' ' || n, ', ' order by op) from \
                (select op, count(*) n from rowcast.log where rel = 'odd'::regclass and op <> 'R' group by op) l";
    assert_eq!(database.one(told).await, "D 3, I 3, U 4");
}
