//! Fifty users on two connections, some of whom hang up at any moment: every answer is its own
//! user's, and so is every row.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use hyper::Method;
use tokio::io::AsyncWriteExt;

use crate::harness::{Relay, database, eventually, seed};
use crate::policies::{SECRET, token};

const USERS: usize = 50;
const REQUESTS: usize = 20;
/// Requests at a time: more than there are connections, and fewer than would wait for long.
const AT_ONCE: usize = 12;

const SCHEMA: &str = r"
create function who() returns text language sql stable
  return current_user || ' ' || (current_setting('request.jwt.claims')::json ->> 'sub');
create table ledger (request int primary key, claimed text not null, who text not null default who());
alter table ledger enable row level security;
create policy own on ledger using (who = who()) with check (claimed = who());
grant select, insert on ledger to crowd_0, crowd_1, crowd_2;
select rowcast.expose('ledger');
select rowcast.expose_function('who()');
";

const ROLES: &str = r"
do $$ begin
  lock table pg_authid in share row exclusive mode;
  if not exists (select from pg_roles where rolname = 'crowd_login') then
    create role crowd_0 nologin;
    create role crowd_1 nologin;
    create role crowd_2 nologin;
    create role crowd_login login noinherit;
    grant crowd_0, crowd_1, crowd_2 to crowd_login;
  end if;
end $$;
";

struct User {
    /// As the database calls it: role and subject.
    name: String,
    bearer: String,
}

/// What a user wants.
enum Wish {
    /// To be told who it is.
    Name,
    /// To read its rows.
    Rows,
    /// To write a row.
    Row(usize),
}

impl Wish {
    fn of(number: usize) -> Self {
        match number % 3 {
            0 => Self::Name,
            1 => Self::Rows,
            _ => Self::Row(number),
        }
    }

    fn method(&self) -> Method {
        match self {
            Self::Row(_) => Method::POST,
            _ => Method::GET,
        }
    }

    fn path(&self) -> &'static str {
        match self {
            Self::Name => "/rest/v1/rpc/who",
            Self::Rows => "/rest/v1/ledger?select=who,claimed",
            Self::Row(_) => "/rest/v1/ledger",
        }
    }

    fn body(&self, user: &User) -> String {
        match self {
            Self::Row(number) => format!(r#"{{"request":{number},"claimed":"{}"}}"#, user.name),
            _ => String::new(),
        }
    }
}

/// Makes a request and stays for the answer, which names nobody else. Returns whether it says that a
/// row was written.
async fn stays(relay: &Relay, user: &User, wish: Wish) -> bool {
    let headers = [
        ("authorization", user.bearer.as_str()),
        ("content-type", "application/json"),
        ("prefer", "return=representation"),
    ];
    let answer = relay
        .request(wish.method(), wish.path(), &headers, &wish.body(user))
        .await;
    let told = answer.json();
    match wish {
        Wish::Name => assert_eq!(told, user.name.as_str()),
        Wish::Rows => {
            for row in told.as_array().unwrap() {
                assert_eq!(row["who"], user.name.as_str(), "{row}");
                assert_eq!(row["claimed"], user.name.as_str(), "{row}");
            }
        }
        Wish::Row(_) => {
            assert_eq!(answer.status, 201, "{told}");
            assert_eq!(told[0]["who"], user.name.as_str(), "{told}");
            return true;
        }
    }
    assert_eq!(answer.status, 200, "{told}");
    false
}

/// Makes a request and is gone a moment later.
async fn hangs_up(relay: &Relay, user: &User, wish: Wish, moment: Duration) {
    let address = relay.url.strip_prefix("http://").unwrap();
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let body = wish.body(user);
    let request = format!(
        "{} {} HTTP/1.1\r\nhost: {address}\r\nauthorization: {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        wish.method(),
        wish.path(),
        user.bearer,
        body.len()
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    tokio::time::sleep(moment).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_hangs_up_leaves_nothing_to_the_next() {
    let mut random = fastrand::Rng::with_seed(seed());
    let database = database().await;
    database.sql(ROLES).await;
    let api = database.login("crowd_login");
    let arguments = ["--api-url", &api, "--jwt-secret", SECRET, "--pool", "2"];
    let relay = Relay::start(&database, &arguments).await;
    database.sql(SCHEMA).await;
    let mut users = Vec::new();
    for number in 0..USERS {
        let role = format!("crowd_{}", number % 3);
        let sub = format!("person-{number}");
        users.push(User {
            bearer: format!("Bearer {}", token(&role, &[&format!("sub={sub}")]).await),
            name: format!("{role} {sub}"),
        });
    }
    eventually("the catalogue is read", async || {
        let headers = [("authorization", users[0].bearer.as_str())];
        let path = "/rest/v1/rpc/who";
        let answer = relay.request(Method::GET, path, &headers, "").await;
        (answer.status == 200).then_some(())
    })
    .await;

    let requests = (0..USERS * REQUESTS).map(|number| {
        let (relay, user) = (&relay, &users[number % USERS]);
        let leaves = random.u8(..10) < 4;
        let moment = Duration::from_micros(random.u64(..12_000));
        async move {
            let wish = Wish::of(number);
            if leaves {
                hangs_up(relay, user, wish, moment).await;
                return None;
            }
            stays(relay, user, wish).await.then_some(number)
        }
    });
    let written: BTreeSet<usize> = futures::stream::iter(requests)
        .buffer_unordered(AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await;

    let busy = "select count(*) from pg_stat_activity where usename = 'crowd_login' \
                and datname = current_database() and xact_start is not null";
    eventually("everything is over", async || {
        (database.one(busy).await == "0").then_some(())
    })
    .await;
    let rows = database.client().await;
    let rows = rows
        .query("select request, claimed, who from ledger", &[])
        .await
        .unwrap();
    let rows: BTreeMap<usize, (String, String)> = rows
        .iter()
        .map(|row| {
            let number = usize::try_from(row.get::<_, i32>(0)).unwrap();
            (number, (row.get(1), row.get(2)))
        })
        .collect();
    for (number, (claimed, who)) in &rows {
        assert_eq!(claimed, who);
        assert_eq!(*who, users[number % USERS].name);
    }
    assert!(written.iter().all(|number| rows.contains_key(number)));
    assert!(written.len() > USERS, "{}", written.len());
    // Nobody's connections are left over, and all users are still served.
    let all = users.iter().map(|user| stays(&relay, user, Wish::Name));
    let all = futures::stream::iter(all).buffer_unordered(AT_ONCE);
    assert_eq!(all.count().await, USERS);
}
