//! `naive DATABASE`: prints its address; `GET /` is a stream of every payload of channel `naive`, and
//! `PATCH /rest/v1/accounts?id=eq.7` changes a row by one prepared statement: nobody asks who it is, and nothing
//! bounds how long it takes.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::Query;
use axum::http::StatusCode;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use axum::routing::{get, patch};
use axum::{Json, Router};
use futures::{StreamExt, stream};
use tokio::net::TcpListener;
use tokio::sync::OnceCell;
use tokio::sync::broadcast;
use tokio_postgres::{AsyncMessage, Client, NoTls, Statement};
use tokio_stream::wrappers::BroadcastStream;

#[derive(serde::Deserialize)]
struct Which {
    id: String,
}

#[derive(serde::Deserialize)]
struct Change {
    cnt: i32,
    updated: String,
}

/// Changes a row. The table may come later than this server.
async fn change(
    client: &Client,
    update: &OnceCell<Statement>,
    which: &Which,
    change: &Change,
) -> Option<u64> {
    let sql = "update accounts set cnt = $1, updated = $2::text::timestamptz where id = $3";
    let update = update.get_or_try_init(|| client.prepare(sql)).await.ok()?;
    let id: i32 = which.id.strip_prefix("eq.")?.parse().ok()?;
    client
        .execute(update, &[&change.cnt, &change.updated, &id])
        .await
        .ok()
}

#[tokio::main]
async fn main() {
    let database = std::env::args().nth(1).expect("a database");
    let (client, mut connection) = tokio_postgres::connect(&database, NoTls)
        .await
        .expect("the database answers");
    let (publish, _) = broadcast::channel::<Arc<str>>(1024);
    let sender = publish.clone();
    tokio::spawn(async move {
        let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
        while let Some(Ok(message)) = messages.next().await {
            if let AsyncMessage::Notification(notification) = message {
                let _nobody = sender.send(notification.payload().into());
            }
        }
    });
    client
        .batch_execute("listen naive")
        .await
        .expect("it listens");
    let route = get(move || {
        let rows = BroadcastStream::new(publish.subscribe());
        let events = rows.filter_map(|row| async move {
            let row = row.ok()?;
            Some(Ok::<_, Infallible>(Event::default().data(&*row)))
        });
        async { Sse::new(events).keep_alive(KeepAlive::default()) }
    });
    let client = Arc::new((client, OnceCell::new()));
    let write = patch(
        move |Query(which): Query<Which>, Json(body): Json<Change>| {
            let client = client.clone();
            async move {
                match change(&client.0, &client.1, &which, &body).await {
                    Some(1) => StatusCode::NO_CONTENT,
                    _ => StatusCode::NOT_FOUND,
                }
            }
        },
    );
    let router = Router::new()
        .route("/", route)
        .route("/rest/v1/accounts", write);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    println!("{}", listener.local_addr().expect("it is bound"));
    axum::serve(listener, router).await.expect("it serves");
}
