//! Clients that write bytes, for what no HTTP library would send or leave unread; and what a relay
//! says of itself.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::{DEADLINE, Relay};

/// Where a relay listens.
pub fn address(relay: &Relay) -> SocketAddr {
    let address = relay.url.trim_start_matches("http://");
    address.parse().expect("an address and a port")
}

/// A connection on which everything is up to the test.
pub struct Wire {
    pub socket: TcpStream,
    /// Everything that came.
    pub read: Vec<u8>,
}

impl Wire {
    pub async fn open(relay: &Relay) -> Self {
        Self::to(address(relay)).await
    }

    pub async fn to(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        Self::on(socket)
    }

    /// A connection whose kernel takes little, so that a reader who stops is noticed early.
    pub async fn narrow(relay: &Relay) -> Self {
        Self::narrow_to(address(relay)).await
    }

    pub async fn narrow_to(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        Self::on(socket.connect(address).await.unwrap())
    }

    fn on(socket: TcpStream) -> Self {
        Self {
            socket,
            read: Vec::new(),
        }
    }

    /// Writes, and does not mind that the other side has gone.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _gone = self.socket.write_all(bytes.as_ref()).await;
    }

    /// Asks for an event stream.
    pub async fn watch(&mut self, path: &str) {
        self.send(format!(
            "GET {path} HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n"
        ))
        .await;
    }

    /// Reads until this text has come; `false` when the connection ends before.
    pub async fn sees(&mut self, text: &str) -> bool {
        let seen = async {
            let mut some = vec![0; 16 << 10];
            while !contains(&self.read, text.as_bytes()) {
                match self.socket.read(&mut some).await {
                    Ok(0) | Err(_) => return false,
                    Ok(count) => self.read.extend_from_slice(&some[..count]),
                }
            }
            true
        };
        tokio::time::timeout(DEADLINE, seen)
            .await
            .unwrap_or_else(|_| panic!("{text:?} in time"))
    }

    /// Reads to the end of the connection, and returns what has come on it.
    pub async fn rest(&mut self) -> String {
        let ended = self.ends_within(DEADLINE * 2).await;
        assert!(ended, "the connection ends: {}", self.text());
        self.text()
    }

    /// Whether the connection ends within that time. Reads on meanwhile.
    pub async fn ends_within(&mut self, patience: Duration) -> bool {
        let mut some = vec![0; 16 << 10];
        let ending = async {
            while let Ok(count @ 1..) = self.socket.read(&mut some).await {
                self.read.extend_from_slice(&some[..count]);
            }
        };
        tokio::time::timeout(patience, ending).await.is_ok()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// The whole number of a line of `/metrics`, 0 if there is none; labels are part of the name.
pub async fn count(relay: &Relay, name: &str) -> u64 {
    let value = relay.metric(name).await;
    format!("{value:.0}").parse().unwrap()
}

/// Bytes of memory that the relay's process has.
pub fn resident(relay: &Relay) -> u64 {
    let pid = relay.child.id().expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() * 1024
}

/// Descriptors that the relay's process has open.
pub fn descriptors(relay: &Relay) -> usize {
    let pid = relay.child.id().expect("it runs");
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

/// Seconds of processor time that the relay's process has used.
pub fn processor(relay: &Relay) -> f64 {
    let pid = relay.child.id().expect("it runs");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in parentheses may hold blanks.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}
