//! `naive DATABASE`: prints its address; `GET /` is a stream of every payload of channel `naive`.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use axum::routing::get;
use futures::{StreamExt, stream};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio_postgres::{AsyncMessage, NoTls};
use tokio_stream::wrappers::BroadcastStream;

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
    client.batch_execute("listen naive").await.expect("it listens");
    let route = get(move || {
        let rows = BroadcastStream::new(publish.subscribe());
        let events = rows.filter_map(|row| async move {
            let row = row.ok()?;
            Some(Ok::<_, Infallible>(Event::default().data(&*row)))
        });
        async { Sse::new(events).keep_alive(KeepAlive::default()) }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    println!("{}", listener.local_addr().expect("it is bound"));
    axum::serve(listener, Router::new().route("/", route))
        .await
        .expect("it serves");
}
