//! Nothing of one request is ever found in another: requests of fifty users over two connections,
//! each dropped at every place where it waits.
//!
//! A place is a number of polls: the request is polled so often and then dropped, at once or when
//! the answer that it waited for has come. Afterwards every connection that is handed out must be
//! nobody's, and the table must hold what was committed and nothing else.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures::StreamExt;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::postgres::embedded::tests::throw_away;
use crate::postgres::pool::{Lease, Pool, PoolError, pool};
use crate::postgres::transaction::{Access, Context, Terms, TransactionError, run};

const USERS: usize = 50;
const REQUESTS: usize = 1_000;
const PATIENCE: Duration = Duration::from_secs(10);
/// [`Access::ReadOnce`] differs from the first by its isolation alone.
const KINDS: [Access; 4] = [
    Access::ReadOnly,
    Access::ReadWrite,
    Access::Guarded,
    Access::WriteOnce,
];

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("no connection")]
    Pool(#[from] PoolError),
    #[error("no transaction")]
    Transaction(#[from] TransactionError),
    #[error("no answer")]
    Query(#[from] tokio_postgres::Error),
}

/// When a request is dropped, counted in polls.
#[derive(Debug, Clone, Copy)]
struct Drop {
    after: usize,
    /// Only once it would be polled again.
    awake: bool,
}

/// What `request` gives; `None` when it was dropped first.
async fn until<T>(request: impl Future<Output = T>, drop: Drop) -> Option<T> {
    let mut polls = 0;
    let mut request = pin!(request);
    poll_fn(|context| {
        if polls == drop.after {
            return Poll::Ready(None);
        }
        polls += 1;
        match request.as_mut().poll(context) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending if polls == drop.after && !drop.awake => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

fn context(user: usize) -> Context {
    Context {
        role: Some(format!("user_{user}")),
        settings: vec![
            (
                "request.jwt.claims".into(),
                format!(r#"{{"sub":"user_{user}"}}"#),
            ),
            ("search_path".into(), "public".into()),
        ],
        before: Some("public.before".to_owned()),
    }
}

/// As whom a statement runs, by everything that could tell.
const WHO: &str = "select current_user || ' ' || (current_setting('request.jwt.claims')::json ->> 'sub') \
    || ' ' || current_setting('request.before')";

async fn who(client: &Client) -> Result<String, Failed> {
    Ok(client.query_typed(WHO, &[]).await?[0].get(0))
}

/// One request: says who it is, and, if it writes, leaves a row. `worked` is set once nothing but
/// the end of the transaction is left.
async fn request(
    pool: &Pool,
    number: usize,
    user: usize,
    access: Access,
    worked: &Cell<bool>,
) -> Result<Vec<String>, Failed> {
    let context = context(user);
    let lease = Lease::take(pool).await?;
    let terms = Terms {
        access,
        ..Terms::read(&context, PATIENCE)
    };
    let leave = async |client: &Client| {
        let row = format!("insert into ledger (request) values ({number}) returning who");
        Ok::<String, Failed>(client.query_typed(&row, &[]).await?[0].get(0))
    };
    run(lease, terms, async |client: &Client| {
        // All at once, as the end of the transaction is sent with them.
        if access == Access::ReadOnly {
            let (one, other) = futures::join!(who(client), who(client));
            worked.set(true);
            return Ok(vec![one?, other?]);
        }
        if access == Access::WriteOnce {
            worked.set(true);
            let (one, other) = futures::join!(who(client), leave(client));
            return Ok(vec![one?, other?]);
        }
        let mut said = vec![who(client).await?];
        if access == Access::ReadWrite {
            said.push(leave(client).await?);
        }
        said.push(who(client).await?);
        worked.set(true);
        Ok(said)
    })
    .await
}

/// Requests that were made, and what may be in the table of them.
#[derive(Default)]
struct Book {
    made: usize,
    dropped: usize,
    must: BTreeMap<i32, String>,
    may: BTreeMap<i32, String>,
}

impl Book {
    /// Makes a request that is dropped there; whether it came to its end before.
    async fn make(&mut self, pool: &Pool, user: usize, access: Access, drop: Drop) -> bool {
        self.made += 1;
        let number = self.made;
        let worked = Cell::new(false);
        let answer = until(Box::pin(request(pool, number, user, access, &worked)), drop).await;
        let done = answer.is_some();
        self.enter(number, user, access, answer, worked.get());
        done
    }

    fn enter(
        &mut self,
        number: usize,
        user: usize,
        access: Access,
        answer: Option<Result<Vec<String>, Failed>>,
        worked: bool,
    ) {
        let name = format!("user_{user}");
        let row = i32::try_from(number).unwrap();
        let writes = matches!(access, Access::ReadWrite | Access::WriteOnce);
        let Some(answer) = answer else {
            self.dropped += 1;
            if writes && worked {
                self.may.insert(row, name);
            }
            return;
        };
        for said in answer.unwrap() {
            assert!(
                said == name || said == format!("{name} {name} {name}"),
                "{name} was answered as {said}"
            );
        }
        if writes {
            self.must.insert(row, name);
        }
    }

    /// The table holds what was committed, as the one who wrote it.
    async fn balances(&self, pool: &Pool) {
        let lease = Lease::take(pool).await.unwrap();
        // What was dropped is over when nobody else is inside of a transaction.
        let others = "select count(*) from pg_stat_activity where pid <> pg_backend_pid() \
                      and application_name = 'contamination' and xact_start is not null";
        while lease.query_one(others, &[]).await.unwrap().get::<_, i64>(0) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let rows = lease
            .query("select request, who from ledger", &[])
            .await
            .unwrap();
        let rows: BTreeMap<i32, String> = rows
            .iter()
            .map(|row| (row.get(0), row.get::<_, String>(1)))
            .collect();
        lease.give_back();
        for (number, name) in &self.must {
            assert_eq!(rows.get(number), Some(name), "it was committed");
        }
        for (number, name) in rows {
            let known = self.must.get(&number).or(self.may.get(&number));
            assert_eq!(
                known,
                Some(&name),
                "request {number} never sent its commit, and its row is there"
            );
        }
    }
}

/// Every connection that is handed out is nobody's.
async fn nobody_is_left(pool: &Pool) {
    let leases = [
        Lease::take(pool).await.unwrap(),
        Lease::take(pool).await.unwrap(),
    ];
    for lease in leases {
        let state = "select current_user = session_user \
             and coalesce(current_setting('request.jwt.claims', true), '') = '' \
             and coalesce(current_setting('request.before', true), '') = '' \
             and current_setting('statement_timeout') = '0' \
             and pg_current_xact_id_if_assigned() is null \
             and now() = statement_timestamp() \
             and not exists (select from pg_locks l where l.pid = pg_backend_pid() and l.locktype = 'relation' \
                             and l.relation = 'ledger'::regclass)";
        // The first statement of a transaction would not be told from one outside.
        lease.batch_execute("select").await.unwrap();
        // As one message, for which the server has one time.
        let answer = lease.simple_query(state).await.unwrap();
        let clean = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        let clean = clean.as_deref();
        assert_eq!(
            clean,
            Some("t"),
            "a connection keeps something of a request"
        );
        lease.give_back();
    }
}

async fn world(pool: &Pool) {
    let lease = Lease::take(pool).await.unwrap();
    lease
        .batch_execute(
            "create table ledger (request int primary key, who text not null default current_user);
             create function before() returns void language plpgsql as $$
             begin perform set_config('request.before', current_user, true); end $$;
             do $$ begin
               for n in 0..49 loop
                 execute format('create role user_%s nologin', n);
                 execute format('grant select, insert on ledger to user_%s', n);
               end loop;
             end $$",
        )
        .await
        .unwrap();
    lease.give_back();
}

#[tokio::test]
async fn a_request_dropped_at_any_await_point_leaves_nothing_behind() {
    let Some((_place, cluster)) = throw_away().await else {
        return;
    };
    let pool = pool(&cluster.target("postgres"), "contamination", 2);
    world(&pool).await;
    let mut book = Book::default();
    let mut points = BTreeSet::new();
    let mut user = 0;
    for access in KINDS {
        for awake in [false, true] {
            for _ in 0..3 {
                // Until it comes to its end, which it does however the answers arrive.
                for after in 0.. {
                    user = (user + 7) % USERS;
                    if book.make(&pool, user, access, Drop { after, awake }).await {
                        break;
                    }
                    points.insert((format!("{access:?}"), awake, after));
                    nobody_is_left(&pool).await;
                }
            }
        }
    }
    book.balances(&pool).await;
    eprintln!("{} dropped at {} places", book.dropped, points.len());
    assert!(points.len() > 20, "{points:?}");
    assert!(!book.may.is_empty(), "none was dropped while it committed");
    cluster.stop().await;
}

#[tokio::test]
async fn fifty_users_on_two_connections_are_never_taken_for_one_another() {
    let Some((_place, cluster)) = throw_away().await else {
        return;
    };
    let pool = pool(&cluster.target("postgres"), "contamination", 2);
    world(&pool).await;
    let mut book = Book::default();
    let requests = (1..=REQUESTS).map(|number| {
        let pool = &pool;
        let user = number % USERS;
        let access = KINDS[number / USERS % KINDS.len()];
        // Every third comes to its end.
        let drop = Drop {
            after: if number % 3 == 0 {
                usize::MAX
            } else {
                number % 11
            },
            awake: number % 2 == 0,
        };
        async move {
            let worked = Cell::new(false);
            let answer = until(Box::pin(request(pool, number, user, access, &worked)), drop).await;
            (number, user, access, answer, worked.get())
        }
    });
    let mut requests = futures::stream::iter(requests).buffer_unordered(8);
    while let Some((number, user, access, answer, worked)) = requests.next().await {
        book.made += 1;
        book.enter(number, user, access, answer, worked);
    }
    nobody_is_left(&pool).await;
    book.balances(&pool).await;
    assert_eq!(book.made, REQUESTS);
    assert!(book.dropped > REQUESTS / 4, "{}", book.dropped);
    assert!(book.must.len() > REQUESTS / 12, "{}", book.must.len());
    cluster.stop().await;
}
