//! What is said of a transaction whose connection breaks when it is asked to end.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_postgres::Client;

use crate::postgres::connect::Target;
use crate::postgres::embedded::tests::throw_away;
use crate::postgres::pool::{Lease, pool};
use crate::postgres::transaction::{Access, Context, End, Terms, TransactionError, run};

/// Passes everything on until somebody wants a transaction to end.
async fn breaks(client: TcpStream, server: PathBuf) -> std::io::Result<()> {
    let (mut answers, mut asked) = UnixStream::connect(server).await?.into_split();
    let (mut from, mut to) = client.into_split();
    let there = async {
        let mut some = vec![0; 8192];
        while let count @ 1.. = from.read(&mut some).await? {
            let text = String::from_utf8_lossy(&some[..count]);
            if ["commit; reset", "rollback; reset"]
                .iter()
                .any(|end| text.contains(end))
            {
                break;
            }
            asked.write_all(&some[..count]).await?;
        }
        Ok(())
    };
    tokio::select! {
        ended = there => ended,
        ended = tokio::io::copy(&mut answers, &mut to) => ended.map(drop),
    }
}

#[tokio::test]
async fn only_what_was_to_hold_is_in_doubt_when_the_connection_breaks_at_the_end() {
    let Some((_place, cluster)) = throw_away().await else {
        return;
    };
    let (arguments, _) = cluster.target("postgres").psql_arguments();
    let mut words = arguments[1].split(' ');
    let directory = words.find_map(|word| word.strip_prefix("host=")).unwrap();
    let socket = PathBuf::from(directory).join(".s.PGSQL.5432");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(breaks(client, socket.clone()));
        }
    });
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable");
    let pool = pool(&Target::from_url(&url).unwrap(), "lost", 1);
    let context = Context::default();
    for (access, end, in_doubt) in [
        (Access::ReadWrite, End::Commit, true),
        (Access::ReadWrite, End::Rollback, false),
        (Access::Guarded, End::Commit, false),
    ] {
        let terms = Terms {
            access,
            end,
            ..Terms::read(&context, Duration::from_secs(5))
        };
        let lease = Lease::take(&pool).await.unwrap();
        let told = run(lease, terms, async |client: &Client| {
            let done = client.query_typed("select", &[]).await;
            done.map_err(TransactionError::Failed)
        });
        let told = told.await.unwrap_err();
        let is_in_doubt = matches!(told, TransactionError::InDoubt(_));
        assert_eq!(is_in_doubt, in_doubt, "{access:?} {end:?}: {told:?}");
    }
    cluster.stop().await;
}
