//! The whole dialect against a real PostgreSQL: filters, selections, preferences, PUT.

use super::{Answer, TASKS, World};
use crate::config::TxEnd;

const THINGS: &str = r#"
create type mood as enum ('glad', 'sad');
create table things (
  id int primary key, name text, tags text[], span int4range, data jsonb, old json, words tsvector, m mood
);
insert into things values
  (1, 'a%,b', '{x,y}', '[1,5)', '{"a":{"b":"one","n":[1,{"k":"deep"}]},"0":"zero"}', '{"a":1}', 'fat cat'::tsvector, 'glad'),
  (2, 'Ab"c', '{y}', '[5,9)', '{"a":{"b":"two"}}', '{"a":2}', 'rat'::tsvector, 'sad'),
  (3, null, null, null, null, null, null, null)"#;

#[tokio::test]
async fn every_operator_is_postgres_own() {
    let world = world!(THINGS);
    for (filter, ids) in [
        ("name=like.a*", "1"),
        ("name=ilike.a*", "1,2"),
        ("name=like.*%25*", "1,2"),
        ("name=match.^a", "1"),
        ("name=imatch.^a", "1,2"),
        ("name=not.ilike.a*", ""),
        ("name=isdistinct.x", "1,2,3"),
        ("name=not.isdistinct.Ab\"c", "2"),
        ("name=like(any).{a*,A*}", "1,2"),
        ("name=like(all).{*b*,*c}", "2"),
        ("name=ilike(all).{a*,*%25*}", "1,2"),
        ("id=eq(any).{1,3}", "1,3"),
        ("id=gt(all).{1,2}", "3"),
        ("id=neq(all).{1,2}", "3"),
        ("id=not.eq(any).{1,2}", "3"),
        ("tags=cs.{x}", "1"),
        ("tags=cd.{y,z}", "2"),
        ("tags=ov.{x,z}", "1"),
        ("span=cs.[3,4)", "1"),
        ("span=sl.[5,6)", "1"),
        ("span=sr.[1,5)", "2"),
        ("span=nxr.[0,5)", "1"),
        ("span=nxl.[5,6)", "2"),
        ("span=adj.[5,6)", "1"),
        ("span=ov.[4,5]", "1,2"),
        ("data=cs.{\"a\":{\"b\":\"one\"}}", "1"),
        ("words=fts.cat", "1"),
        ("words=fts(simple).cat %26 fat", "1"),
        ("words=plfts.rat", "2"),
        ("words=not.phfts.rat", "1"),
        ("words=wfts.cat or rat", "1,2"),
        ("name=fts(english).b", "1"),
        ("old=fts(simple).x", ""),
        ("m=lt.sad", "1"),
    ] {
        let answer = world
            .get(&format!("things?select=id&order=id&{filter}"))
            .await;
        assert_eq!(
            (answer.status, ids_of(&answer.body)),
            (200, ids.to_owned()),
            "{filter}: {}",
            answer.body
        );
    }
    for (filter, status, code) in [
        ("name=fts(klingon).x", 400, "42704"),
        ("words=fts.a b", 400, "42601"),
        ("id=eq(any).1", 400, "22P02"),
        ("id=like.1", 404, "42883"),
        ("name=match.(", 400, "2201B"),
        ("id=eq(some).{1}", 400, "PGRST100"),
        ("span=sl.x", 400, "22P02"),
    ] {
        let answer = world.get(&format!("things?{filter}")).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{filter}"
        );
    }
}

/// `[{"id":1},{"id":2}]` as `1,2`.
fn ids_of(body: &str) -> String {
    let rows: Vec<serde_json::Value> = serde_json::from_str(body).unwrap_or_default();
    let ids: Vec<_> = rows.iter().map(|row| row["id"].to_string()).collect();
    ids.join(",")
}

#[tokio::test]
async fn filters_are_put_together_and_reach_into_json() {
    let world = world!(THINGS);
    for (filter, ids) in [
        ("or=(id.eq.1,id.eq.3)", "1,3"),
        ("and=(id.gte.1,id.lt.3)", "1,2"),
        ("not.or=(id.eq.1,id.eq.3)", "2"),
        ("not.and=(id.gt.1,name.not.is.null)", "1,3"),
        (
            "or=( id.eq.1 , and(id.gt.1, not.or(id.eq.3, name.is.null)) )",
            "1,2",
        ),
        ("or=(name.eq.\"a%25,b\",name.eq.\"Ab\\\"c\")", "1,2"),
        ("or=(id.in.(2,3),tags.cs.{x,y})", "1,2,3"),
        ("or=(name.like(any).{a*,\"x\"},span.sr.\"[1,5)\")", "1,2"),
        ("or=(id.eq.1,id.eq.2)&or=(id.eq.2,id.eq.3)", "2"),
        ("data->a->>b=eq.two", "2"),
        ("data->a->b=eq.\"one\"", "1"),
        ("data->a->n->0=eq.1", "1"),
        ("data->a->n->-1->>k=eq.deep", "1"),
        ("data->>\"0\"=eq.zero", "1"),
        ("data->>0=eq.zero", ""),
        ("data->a->>b=in.(one,two)", "1,2"),
        ("data->a->>n=is.null", "2,3"),
        ("old->>a=eq.1", "1"),
        ("tags->>0=eq.x", "1"),
        ("span->>a=is.null", "1,2,3"),
        ("or=(data->a->>b.eq.one,old->>a.eq.2)", "1,2"),
        ("data->>\"it's'); drop table things; --\"=is.null", "1,2,3"),
    ] {
        let answer = world
            .get(&format!("things?select=id&order=id&{filter}"))
            .await;
        assert_eq!(
            (answer.status, ids_of(&answer.body)),
            (200, ids.to_owned()),
            "{filter}: {}",
            answer.body
        );
    }
    let update = "PATCH things?or=(id.eq.1,data->a->>b.eq.two)\nprefer: return=representation";
    let update = format!("{update}\nprefer: count=exact");
    let answer = world
        .ask(
            &update.replace("things?", "things?select=id,name&order=id.desc&"),
            r#"{"name":"z"}"#,
        )
        .await;
    answer.is(
        200,
        "[{\"id\":2,\"name\":\"z\"},\n{\"id\":1,\"name\":\"z\"}]",
    );
    world
        .ask("DELETE things?not.and=(id.gt.1,id.lt.3)", "")
        .await
        .is(204, "");
    world.get("things?select=id").await.is(200, r#"[{"id":2}]"#);
    for wrong in [
        "or=id.eq.1",
        "or=(id.eq.1",
        "or=(id)",
        "and=()",
        "or=(nope.eq.1)",
    ] {
        assert_eq!(
            world.get(&format!("things?{wrong}")).await.status,
            400,
            "{wrong}"
        );
    }
}

#[tokio::test]
async fn a_selection_reaches_into_json_and_casts() {
    let world = world!(THINGS);
    for (query, row) in [
        ("select=data->a->>b", r#"{"b":"one"}"#),
        ("select=data->a->n->0", r#"{"n":1}"#),
        ("select=x:data->a->n->1->>k,id", r#"{"x":"deep","id":1}"#),
        (
            "select=old->a,tags->0,span->x",
            r#"{"a":1,"tags":"x","x":null}"#,
        ),
        ("select=id::text,data->a->n->>0::int", r#"{"id":"1","n":1}"#),
        ("select=n:data->a->n->>0::double precision", r#"{"n":1}"#),
        (
            "select=m::text,name::varchar,id::int8",
            r#"{"m":"glad","name":"a%,b","id":1}"#,
        ),
        ("select=t:m::text::x", ""),
        (
            "select=tags::text[],b:id::pg_catalog.bool",
            r#"{"tags":["x","y"],"b":true}"#,
        ),
        (
            "select=id&order=data->a->>b.desc.nullslast&limit=2&id=lt.3",
            "{\"id\":2},\n{\"id\":1}",
        ),
    ] {
        let query = if query.contains("order") {
            query.to_owned()
        } else {
            format!("{query}&id=eq.1")
        };
        let answer = world.get(&format!("things?{query}")).await;
        if row.is_empty() {
            answer.fails(400, "PGRST100");
        } else {
            answer.is(200, &format!("[{row}]"));
        }
    }
    world
        .get("things?select=id::klingon")
        .await
        .fails(400, "42704");
    world
        .get("things?select=id::\"text; drop\"")
        .await
        .fails(400, "42704");
    world
        .get("things?select=name::int")
        .await
        .fails(400, "22P02");
    world.get("things?select=nope->a").await.fails(400, "42703");
    world.get("things?order=old->a").await.fails(404, "42883");
}

#[tokio::test]
async fn a_put_makes_the_one_row_be_there() {
    let world = world!(&format!(
        "{TASKS}; create table pairs (a text, b int, v int, primary key (a, b))"
    ));
    let back = "prefer: return=representation";
    for (request, body, status, answer) in [
        (
            format!("PUT tasks?id=eq.9&select=id,title\n{back}"),
            r#"{"id":9,"title":"new"}"#,
            201,
            r#"[{"id":9,"title":"new"}]"#,
        ),
        (
            format!("PUT tasks?id=eq.9&select=id,title\n{back}"),
            r#"[{"id":"09","title":"old"}]"#,
            200,
            r#"[{"id":9,"title":"old"}]"#,
        ),
        (
            "PUT tasks?id=eq.09".to_owned(),
            r#"{"id":9,"title":"older"}"#,
            204,
            "",
        ),
        (
            "PUT tasks?id=eq.10".to_owned(),
            r#"{"id":10,"title":"made"}"#,
            204,
            "",
        ),
        (
            "PUT pairs?a=eq.x&b=eq.1".to_owned(),
            r#"{"a":"x","b":1,"v":7}"#,
            204,
            "",
        ),
        (
            "PUT pairs?b=eq.1&a=eq.x\ncontent-type: application/x-www-form-urlencoded".to_owned(),
            "a=x&b=1&v=8",
            204,
            "",
        ),
    ] {
        world.ask(&request, body).await.is(status, answer);
    }
    world
        .get("tasks?id=gte.9&select=title&order=id")
        .await
        .is(200, "[{\"title\":\"older\"},\n{\"title\":\"made\"}]");
    world.get("pairs?select=v").await.is(200, r#"[{"v":8}]"#);
    for (request, body, status, code) in [
        ("PUT tasks?id=eq.1", r#"{"id":2}"#, 400, "PGRST115"),
        ("PUT tasks?id=eq.1", r#"{"title":"x"}"#, 400, "PGRST115"),
        (
            "PUT tasks?id=eq.1",
            r#"[{"id":1},{"id":1}]"#,
            400,
            "PGRST102",
        ),
        ("PUT tasks", r#"{"id":1}"#, 405, "PGRST105"),
        ("PUT tasks?id=gt.1", r#"{"id":1}"#, 405, "PGRST105"),
        ("PUT tasks?title=eq.a", r#"{"id":1}"#, 405, "PGRST105"),
        (
            "PUT tasks?id=eq.1&title=eq.a",
            r#"{"id":1}"#,
            405,
            "PGRST105",
        ),
        ("PUT pairs?a=eq.x", r#"{"a":"x","b":1}"#, 405, "PGRST105"),
        ("PUT tasks?id=eq.1&limit=1", r#"{"id":1}"#, 400, "PGRST127"),
        ("PUT tasks?id=eq.x", r#"{"id":1}"#, 400, "22P02"),
    ] {
        let answer = world.ask(request, body).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{request} {body}"
        );
    }
    assert_eq!(world.text("select count(*)::text from tasks").await, "5");
}

#[tokio::test]
async fn headers_only_tells_where_the_new_row_is() {
    let world = world!(&format!(
        "{TASKS};
        create table \"odd table\" (\"a.b\" text primary key);
        create table keyless (a int)"
    ));
    let only = "prefer: return=headers-only";
    let made = world
        .ask(&format!("POST tasks\n{only}"), r#"{"id":70}"#)
        .await;
    made.is(201, "");
    assert_eq!(made.header("location"), Some("/rest/v1/tasks?id=eq.70"));
    assert_eq!(
        made.header("preference-applied"),
        Some("return=headers-only")
    );
    let several = world
        .ask(&format!("POST tasks\n{only}"), r#"[{"id":71},{"id":72}]"#)
        .await;
    assert_eq!((several.status, several.header("location")), (201, None));
    let keyless = world
        .ask(&format!("POST keyless\n{only}"), r#"{"a":1}"#)
        .await;
    assert_eq!((keyless.status, keyless.header("location")), (201, None));
    let changed = world
        .ask(&format!("PATCH tasks?id=eq.70\n{only}"), r#"{"title":"x"}"#)
        .await;
    assert_eq!((changed.status, changed.header("location")), (204, None));
    let table = world.rows.catalog.reload().await.unwrap();
    let table = table.table("odd table").unwrap();
    let place = crate::api::rows::location(table, &[Some("x&y \u{e9}".to_owned())]);
    assert_eq!(place, "/rest/v1/odd%20table?%22a.b%22=eq.x%26y%20%C3%A9");
}

#[tokio::test]
async fn a_form_is_a_row_but_not_from_a_page() {
    let world = world!(TASKS);
    let form = "content-type: application/x-www-form-urlencoded";
    world
        .ask(
            &format!("POST tasks?select=title,rank\n{form}\nprefer: return=representation"),
            "title=a+form%21&rank=50",
        )
        .await
        .is(201, r#"[{"title":"a form!","rank":50}]"#);
    world
        .ask(
            &format!("PATCH tasks?rank=eq.50\n{form}; charset=utf-8"),
            "rank=51",
        )
        .await
        .is(204, "");
    let page = format!("POST tasks\n{form}\norigin: https://evil.example");
    world.ask(&page, "title=evil").await.fails(415, "PGRST107");
    world
        .ask(&format!("{page}\nauthorization: Bearer x"), "title=told")
        .await
        .is(201, "");
    world
        .ask("POST tasks\ncontent-type: text/csv", "title\nx")
        .await
        .fails(400, "PGRST127");
    world.get("tasks?title=eq.evil").await.is(200, "[]");
}

fn applied(answer: &Answer) -> String {
    let header = answer.header("preference-applied");
    header.unwrap_or_default().to_owned()
}

#[tokio::test]
async fn preferences_are_honoured_and_echoed() {
    let mut world = world!(&format!("{TASKS};
        create table at (id int primary key, t timestamptz);
        insert into at values (1, '2026-01-01 00:00Z');
        create table later (id int primary key, of int references later deferrable initially deferred);
        create table many (i int primary key);
        insert into many select generate_series(1, 500);
        analyze many"));
    world.rows.max_rows = 100;
    // timezone=
    let there = world
        .ask("GET at?select=t\nprefer: timezone=Asia/Tokyo", "")
        .await;
    there.is(200, r#"[{"t":"2026-01-01T09:00:00+09:00"}]"#);
    assert_eq!(applied(&there), "timezone=Asia/Tokyo");
    let here = r#"[{"t":"2026-01-01T00:00:00+00:00"}]"#;
    world.get("at?select=t").await.is(200, here);
    for unknown in ["Jupiter/Red_Spot", "+5", "x'y"] {
        let lenient = world
            .ask(&format!("GET at?select=t\nprefer: timezone={unknown}"), "")
            .await;
        lenient.is(200, here);
        assert_eq!(applied(&lenient), "");
        let strict = format!("GET at\nprefer: handling=strict, timezone={unknown}");
        let strict = world.ask(&strict, "").await;
        strict.fails(400, "PGRST122");
        assert!(strict.body.contains(unknown));
    }
    world
        .ask(
            "PATCH at?id=eq.1&select=t\nprefer: timezone=Mars/Base, return=representation",
            r#"{"id":1}"#,
        )
        .await
        .is(200, here);

    // tx=
    let rehearsal = "POST tasks?select=id\nprefer: return=representation, tx=rollback";
    let held = world.ask(rehearsal, r#"{"id":80}"#).await;
    assert_eq!(applied(&held), "return=representation");
    assert!(held.header("rowcast-txid").is_some());
    world.rows.tx_end = TxEnd::CommitAllowOverride;
    let tried = world.ask(rehearsal, r#"{"id":81}"#).await;
    tried.is(201, r#"[{"id":81}]"#);
    assert_eq!(applied(&tried), "return=representation, tx=rollback");
    assert_eq!(tried.header("rowcast-txid"), None);
    world
        .ask("POST later\nprefer: tx=rollback", r#"{"id":1,"of":2}"#)
        .await
        .fails(409, "23503");
    world.rows.tx_end = TxEnd::RollbackAllowOverride;
    world.ask("POST tasks", r#"{"id":82}"#).await.is(201, "");
    assert_eq!(
        applied(
            &world
                .ask("POST tasks\nprefer: tx=commit", r#"{"id":83}"#)
                .await
        ),
        "tx=commit"
    );
    world.rows.tx_end = TxEnd::Rollback;
    assert_eq!(
        applied(
            &world
                .ask("POST tasks\nprefer: tx=commit", r#"{"id":84}"#)
                .await
        ),
        ""
    );
    world.rows.tx_end = TxEnd::Commit;
    world
        .get("tasks?select=id&id=gte.80&order=id")
        .await
        .is(200, "[{\"id\":80},\n{\"id\":83}]");
}

#[tokio::test]
async fn counts_are_exact_or_guessed_and_all_preferences_are_echoed_in_order() {
    let mut world = world!(&format!(
        "{TASKS};
        create table many (i int primary key);
        insert into many select generate_series(1, 500);
        analyze many"
    ));
    world.rows.max_rows = 100;
    for (request, status, range, echoed) in [
        (
            "GET many\nprefer: count=planned",
            206,
            "0-99/500",
            "count=planned",
        ),
        (
            "GET many\nprefer: count=estimated",
            206,
            "0-99/500",
            "count=estimated",
        ),
        (
            "GET many?i=lt.9\nprefer: count=estimated",
            200,
            "0-7/8",
            "count=estimated",
        ),
        (
            "GET many?i=lt.9\nprefer: count=exact",
            200,
            "0-7/8",
            "count=exact",
        ),
    ] {
        let answer = world.ask(request, "").await;
        let told = (
            answer.status,
            answer.header("content-range"),
            applied(&answer),
        );
        assert_eq!(told, (status, Some(range), echoed.to_owned()), "{request}");
    }

    // All of them, in the dialect's order.
    world.rows.tx_end = TxEnd::CommitAllowOverride;
    let all = "max-affected=5, timezone=UTC, handling=strict, tx=commit, count=exact, return=minimal, missing=default";
    let answer = world
        .ask(
            &format!("PATCH tasks?id=eq.1\nprefer: {all}"),
            r#"{"title":"t"}"#,
        )
        .await;
    assert_eq!(
        applied(&answer),
        "missing=default, return=minimal, count=exact, tx=commit, handling=strict, timezone=UTC, max-affected=5"
    );
    let merged = world
        .ask(
            "POST tasks\nprefer: missing=default\nprefer: resolution=merge-duplicates",
            r#"{"id":1}"#,
        )
        .await;
    assert_eq!(
        applied(&merged),
        "resolution=merge-duplicates, missing=default"
    );
}

#[tokio::test]
async fn a_function_has_its_way_with_the_response() {
    let world = world!(r#"
        create table doors (id int primary key, status text, headers text);
        create function answer() returns trigger language plpgsql as $$ begin
          perform set_config('response.status', coalesce(new.status, ''), true);
          perform set_config('response.headers', coalesce(new.headers, ''), true);
          return new;
        end $$;
        create trigger answer before insert on doors for each row execute function answer();
        create function peek() returns int language sql stable
          as 'select set_config(''response.headers'', ''[{"cache-control":"max-age=9"}]'', true)::text is null; select 1';
        create view peeks as select peek() as one"#.replace("'select set_config", "'select (set_config").replace("true)::text is null; select 1'", "true) is null)::int'").as_str());
    let made = world.ask("POST doors", r#"{"id":1,"status":"202","headers":"[{\"X-Door\":\"open\"},{\"set-cookie\":\"a=1\"},{\"Set-Cookie\":\"b=2\"},{\"content-range\":\"all\"}]"}"#).await;
    made.is(202, "");
    assert_eq!(
        (made.header("x-door"), made.header("content-range")),
        (Some("open"), Some("all"))
    );
    assert_eq!(made.headers.get_all("set-cookie").iter().count(), 2);
    let gone = world
        .ask(
            "POST doors\nprefer: return=representation",
            r#"{"id":2,"status":"204"}"#,
        )
        .await;
    gone.is(204, "");
    for (body, code) in [
        (r#"{"id":3,"status":"99"}"#, "PGRST112"),
        (r#"{"id":3,"status":"fine"}"#, "PGRST112"),
        (r#"{"id":3,"headers":"{}"}"#, "PGRST111"),
        (
            r#"{"id":3,"headers":"[{\"a\":\"1\",\"b\":\"2\"}]"}"#,
            "PGRST111",
        ),
        (r#"{"id":3,"headers":"[{\"a\":\"1\\n2\"}]"}"#, "PGRST111"),
    ] {
        world.ask("POST doors", body).await.fails(500, code);
    }
    // What one request set is not there for the next of the same connection.
    world
        .get("doors?select=id")
        .await
        .is(200, "[{\"id\":1},\n{\"id\":2}]");
    assert_eq!(
        world.get("peeks").await.header("cache-control"),
        Some("max-age=9")
    );
}

#[tokio::test]
async fn a_table_that_changed_in_between_is_looked_up_again() {
    let world = world!(&format!(
        "{TASKS};
        create function planned() returns trigger language plpgsql as $$
          begin
            if nextval('tries') % 2 = 1 then
              raise 'cached plan must not change result type' using errcode = '0A000';
            end if;
            return new;
          end $$;
        create sequence tries;
        create table side (v text);
        create table plans (id int primary key);
        create trigger planned before insert on plans for each row execute function planned()"
    ));
    world.get("tasks?limit=0").await.is(200, "[]");
    world.sql("alter table tasks rename rank to place").await;
    world
        .get("tasks?id=eq.1&rank=eq.1")
        .await
        .fails(400, "42703");
    world
        .get("tasks?id=eq.1&select=place")
        .await
        .is(200, r#"[{"place":1}]"#);
    // The type is another one: the statement that was made for the old one is made again.
    world.sql("alter table tasks add kind int").await;
    world.get("tasks?select=kind&limit=0").await.is(200, "[]");
    world
        .sql("alter table tasks alter kind type date using null")
        .await;
    world
        .ask(
            "PATCH tasks?id=eq.1&select=kind\nprefer: return=representation",
            r#"{"kind":null}"#,
        )
        .await
        .is(200, r#"[{"kind":null}]"#);
    // A plan that a function kept from before is made anew, and the row is written once.
    world.ask("POST plans", r#"{"id":1}"#).await.is(201, "");
    assert_eq!(world.text("select nextval('tries')::text").await, "3");
    world.sql("drop sequence tries").await;
    world
        .ask("POST plans", r#"{"id":3}"#)
        .await
        .fails(404, "42P01");
    // A table of the same name is another one.
    world.get("side?limit=0").await.is(200, "[]");
    world
        .sql("drop table side; create table side (v text, w int)")
        .await;
    world.expose().await;
    world.get("side?w=is.null").await.is(200, "[]");
    world.sql("drop table side").await;
    world.get("side").await.fails(404, "PGRST205");
}

#[tokio::test]
async fn what_is_left_out_is_refused_by_its_name() {
    let world = world!(TASKS);
    for (request, feature) in [
        ("GET tasks?select=id,boards(name)", "embedded resources"),
        ("GET tasks?select=...boards(name)", "embedded resources"),
        (
            "GET tasks?boards.name=eq.x",
            "filters on embedded resources",
        ),
        ("GET tasks?select=rank.sum()", "aggregates"),
        ("GET tasks?select=count()", "aggregates"),
        ("GET tasks\naccept: text/csv", "CSV answers"),
        ("GET tasks\naccept: application/geo+json", "GeoJSON answers"),
        (
            "GET tasks\naccept: application/octet-stream",
            "binary answers",
        ),
        (
            "GET tasks\naccept: application/vnd.pgrst.plan+json",
            "EXPLAIN plans",
        ),
        (
            "GET tasks\naccept: application/vnd.pgrst.array+json;nulls=stripped",
            "answers with nulls=stripped",
        ),
        ("PATCH tasks?limit=1&order=id", "limit and offset on writes"),
        (
            "DELETE tasks?limit=1&order=id",
            "limit and offset on writes",
        ),
    ] {
        let body = if request.starts_with("PATCH") {
            "{}"
        } else {
            ""
        };
        let answer = world.ask(request, body).await;
        answer.fails(400, "PGRST127");
        assert!(
            answer.body.contains(&format!("\"details\":\"{feature}\"")),
            "{request}: {}",
            answer.body
        );
        assert_eq!(
            answer.header("proxy-status"),
            Some("Rowcast; error=PGRST127")
        );
    }
    world
        .ask("GET tasks\naccept: image/png", "")
        .await
        .fails(406, "PGRST107");
}
