//! nginx between screens and the relays, set up as `docs/reliability.md` says: whoever comes to it is
//! given to one relay after the other.

use std::net::SocketAddr;
use std::process::Stdio;

use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::harness::eventually;
use crate::installed::has_proxy;
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
        if !has_proxy("nginx") {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path();
        let socket = folder.join("socket");
        let relays: Vec<String> = relays.iter().map(ToString::to_string).collect();
        let server = include_str!("../proxies/nginx.conf")
            .replace("RELAY", &relays.join("; server "))
            .replace("LISTEN", &format!("unix:{}", socket.display()));
        // One process, which can be ended.
        let whole = format!(
            "daemon off; master_process off; pid {0}/pid; error_log {0}/errors; events {{}} \
             http {{ access_log off; client_body_temp_path {0}/a; proxy_temp_path {0}/b; \
             fastcgi_temp_path {0}/c; uwsgi_temp_path {0}/d; scgi_temp_path {0}/e; {server} }}",
            folder.display()
        );
        std::fs::write(folder.join("conf"), whole).unwrap();
        let child = Command::new("nginx")
            .env(
                "PATH",
                "/usr/sbin:/usr/bin:/opt/homebrew/bin:/usr/local/bin",
            )
            .arg("-p")
            .arg(folder)
            .arg("-c")
            .arg(folder.join("conf"))
            .args(["-e", "errors"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
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
