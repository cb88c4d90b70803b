//! nginx between screens and the relays, set up as `docs/reliability.md` says: whoever comes to it is
//! given to one relay after the other.

use std::net::SocketAddr;

use tokio::net::UnixStream;
use tokio::process::Child;

use crate::harness::eventually;
use crate::installed;
use crate::proxy::{Link, Place};

/// It ends with this value.
pub struct Nginx {
    /// It listens on a socket of its own directory, so that no port has to be guessed.
    link: Link,
    _child: Child,
    _directory: tempfile::TempDir,
}

impl Nginx {
    /// `None` where it is not installed.
    pub async fn open(relays: &[SocketAddr]) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let relays: Vec<String> = relays.iter().map(ToString::to_string).collect();
        let listen = format!("unix:{}", socket.display());
        let child = installed::nginx(directory.path(), &relays.join("; server "), &listen)?
            .spawn()
            .unwrap();
        eventually("nginx listens", async || {
            UnixStream::connect(&socket).await.ok()
        })
        .await;
        Some(Self {
            link: Link::open(Place::Unix(socket)).await,
            _child: child,
            _directory: directory,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.link.address
    }
}
