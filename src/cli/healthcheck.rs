//! `rowcast healthcheck`: the relay's own answer, for containers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Told;

const PATIENCE: Duration = Duration::from_secs(3);

pub(super) async fn run(listen: SocketAddr) -> anyhow::Result<()> {
    let mut address = listen;
    if address.ip().is_unspecified() {
        address.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    let answer = tokio::time::timeout(PATIENCE, ask(address)).await;
    match answer {
        Ok(Ok(text)) if text.starts_with("HTTP/1.1 200") => Ok(()),
        Ok(Ok(text)) => {
            let body = text.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned();
            Err(Told::new("the relay is not ready", body, "look into its log").into())
        }
        Ok(Err(error)) => Err(Told::new(
            format!("no relay answers on {address}"),
            error,
            "rowcast serve",
        )
        .into()),
        Err(_late) => Err(Told::new(
            format!("no relay answers on {address}"),
            "nothing within 3 s",
            "rowcast serve",
        )
        .into()),
    }
}

async fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut socket = TcpStream::connect(address).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    socket.read_to_string(&mut text).await?;
    Ok(text)
}
