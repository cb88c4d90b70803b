//! Statements that a connection has prepared mean what they say, whatever becomes of their table and of
//! the rights to it.

use hyper::Method;
use serde_json::json;

use crate::harness::{Answer, Database, Relay, database};
use crate::policies::{ROLES, relay_with, token};

const ITEMS: &str = "create table shop.items (id int primary key, n int); \
    grant select, update on shop.items to member, manager, reader; \
    insert into shop.items values (1, 0), (2, 0); \
    select rowcast.watch('shop.items')";

/// A relay with one connection for requests.
async fn world() -> (Database, Relay) {
    let database = database().await;
    database.sql(ROLES).await;
    database.sql("create schema shop").await;
    database
        .sql("grant usage on schema shop to member, manager")
        .await;
    let arguments = [
        ["--anon-role", "visitor"],
        ["--schema", "shop"],
        ["--pool", "1"],
    ];
    let relay = relay_with(&database, arguments.as_flattened()).await;
    database.sql(ITEMS).await;
    (database, relay)
}

async fn change(relay: &Relay, token: &str, n: u64) -> Answer {
    let bearer = format!("Bearer {token}");
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/json"),
    ];
    let body = json!({ "n": n }).to_string();
    relay
        .request(Method::PATCH, "/rest/v1/items?id=eq.1", &headers, &body)
        .await
}

/// Until all of it is prepared.
async fn change_often(relay: &Relay, token: &str) {
    for n in 0..10 {
        let changed = change(relay, token, n).await;
        assert_eq!(changed.status, 204, "{}", changed.body);
    }
}

#[tokio::test]
async fn who_may_not_use_a_schema_may_not_use_what_was_prepared_for_another() {
    let (database, relay) = world().await;
    let (member, manager) = (token("member", &[]).await, token("manager", &[]).await);
    let reader = token("reader", &[]).await;
    let refused = async |token: &str| {
        let refused = change(&relay, token, 1001).await;
        assert_eq!(refused.status, 403, "{}", refused.body);
        assert_eq!(refused.json()["code"], "42501");
    };
    change_often(&relay, &member).await;
    change_often(&relay, &manager).await;
    refused(&reader).await;
    database
        .sql("revoke usage on schema shop from manager")
        .await;
    // PostgreSQL looks at it anew, for whoever is first.
    change_often(&relay, &member).await;
    refused(&manager).await;
    assert_eq!(change(&relay, &member, 1002).await.status, 204);
    database
        .sql("revoke update on shop.items from member")
        .await;
    refused(&member).await;
    let now = database.one("select n::text from shop.items where id = 1");
    assert_eq!(now.await, "1002");
}

#[tokio::test]
async fn a_table_that_becomes_another_is_written_as_it_is() {
    let (database, relay) = world().await;
    let member = token("member", &[]).await;
    let one = "select n::text from shop.items where id::text = '1'";
    let again = format!("drop table shop.items; {ITEMS}");
    let changes = [
        "alter table shop.items alter id type text",
        "alter table shop.items alter id type bigint using id::bigint",
        "alter table shop.items alter n type numeric",
        "alter table shop.items alter n type text",
        "alter table shop.items add extra text not null default 'x'",
        &again,
    ];
    for (number, definition) in (100..).zip(changes) {
        change_often(&relay, &member).await;
        database.sql(definition).await;
        let changed = change(&relay, &member, number).await;
        assert_eq!(changed.status, 204, "{definition}: {}", changed.body);
        assert_eq!(changed.header("content-range"), "0-0/*", "{definition}");
        assert_eq!(database.one(one).await, number.to_string(), "{definition}");
    }
}

#[tokio::test]
async fn a_function_that_throws_away_what_was_prepared_harms_one_request_at_most() {
    let (database, relay) = world().await;
    let member = token("member", &[]).await;
    database
        .sql(
            "create function lose() returns trigger language plpgsql as $$ begin \
               if new.n = 1000 then execute 'deallocate all'; end if; return new; end $$; \
             create trigger lose before update on shop.items for each row execute function lose()",
        )
        .await;
    change_often(&relay, &member).await;
    let lost = change(&relay, &member, 1000).await;
    let now = database
        .one("select n::text from shop.items where id = 1")
        .await;
    assert_eq!(lost.status == 204, now == "1000", "{} {now}", lost.body);
    let mut failed = 0;
    for n in 0..10 {
        failed += u32::from(change(&relay, &member, n).await.status != 204);
    }
    assert!(failed <= 1, "{failed} requests failed");
    change_often(&relay, &member).await;
}
