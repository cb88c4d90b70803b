//! `rowcast healthcheck`: the relay's own answer, for containers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Told;

const PATIENCE: Duration = Duration::from_secs(3);

pub(super) async fn run(listen: SocketAddr) -> anyhow::Result<()> {
    match ready(listen).await {
        Ok((true, _)) => Ok(()),
        Ok((false, body)) => {
            Err(Told::new("the relay is not ready", body, "look into its log").into())
        }
        Err(error) => Err(Told::new(
            format!("no relay answers on {listen}"),
            error,
            "rowcast serve, or --listen with the relay's address",
        )
        .into()),
    }
}

/// Whether the relay there is ready, and what it says.
pub(super) async fn ready(listen: SocketAddr) -> Result<(bool, String), String> {
    let mut address = listen;
    if address.ip().is_unspecified() {
        address.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    match get(address, "/readyz").await {
        Ok((status @ (200 | 503), body)) => Ok((status == 200, body)),
        Ok((0, _)) => Err("what listens there does not speak HTTP".to_owned()),
        Ok((status, _)) => Err(format!(
            "what listens there answers /readyz by {status}, as no relay does"
        )),
        Err(error) => Err(error),
    }
}

/// Status and body of what a relay answers, or why there is none.
pub(super) async fn get(address: SocketAddr, path: &str) -> Result<(u16, String), String> {
    match tokio::time::timeout(PATIENCE, asked(address, path)).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_late) => Err(format!("nothing within {} s", PATIENCE.as_secs())),
    }
}

async fn asked(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut socket = TcpStream::connect(address).await?;
    // HTTP/1.0, so that the body ends with the connection and comes in one piece.
    let request = format!("GET {path} HTTP/1.0\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    socket.read_to_string(&mut text).await?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok((status.unwrap_or(0), body.to_owned()))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_relay_that_says_nothing_is_not_waited_for() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let told = get(silent.local_addr().unwrap(), "/debug/trace?txid=7");
        let told = tokio::time::timeout(2 * PATIENCE, told).await;
        assert_eq!(told.unwrap().unwrap_err(), "nothing within 3 s");
    }

    #[tokio::test]
    async fn who_is_no_relay_is_not_taken_for_one_that_is_not_ready() {
        for (said, told) in [
            ("HTTP/1.0 200 OK\r\n\r\n{}", Ok((true, "{}".to_owned()))),
            ("HTTP/1.0 503 x\r\n\r\n{}", Ok((false, "{}".to_owned()))),
            ("HTTP/1.0 404 x\r\n\r\n<html>", Err("404")),
            ("", Err("HTTP")),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let answer = async {
                let (mut socket, _) = listener.accept().await.unwrap();
                // What is left unread would make the end of the connection a reset.
                let mut request = [0; 1024];
                assert_ne!(socket.read(&mut request).await.unwrap(), 0);
                socket.write_all(said.as_bytes()).await.unwrap();
            };
            let (found, ()) = tokio::join!(ready(address), answer);
            match told {
                Ok(told) => assert_eq!(found, Ok(told)),
                Err(part) => assert!(found.unwrap_err().contains(part), "{said}"),
            }
        }
    }
}
