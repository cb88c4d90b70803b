//! The servers, each started for one run and stopped after it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use rowcast::cli::bench::stage::{self, TABLE};
use rowcast::cli::bench::writer::Commit;
use rowcast::cli::bench::{Load, process};
use rowcast::postgres::embedded::{Cluster, Options};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

/// Longest wait for a server to say where it is.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who is beside whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The relay.
    Rowcast,
    /// A loop that only writes the same bytes to each socket.
    WriteLoop,
    /// nginx with nchan, one worker.
    Nchan,
    /// axum, a broadcast channel, LISTEN, and the row in the payload.
    Naive,
}

impl Kind {
    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rowcast => "Rowcast",
            Self::WriteLoop => "write loop",
            Self::Nchan => "nchan",
            Self::Naive => "naive axum",
        }
    }

    /// Why it cannot be run here, if it cannot.
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Nchan if nchan().is_none() => {
                Some("apt-get install nginx-light libnginx-mod-nchan".to_owned())
            }
            Self::Naive if !naive().exists() => {
                Some(format!("no {}; make bench builds it", naive().display()))
            }
            _ => None,
        }
    }
}

/// A PostgreSQL for one figure.
pub struct Database {
    cluster: Cluster,
    directory: tempfile::TempDir,
}

impl Database {
    /// Starts one. `flushes`: a commit costs half a millisecond, as on a good disk, whatever disk
    /// this machine has: the data is in memory, and commits are held back as long.
    pub async fn start(flushes: bool) -> anyhow::Result<Self> {
        let memory = Path::new("/dev/shm");
        let place = if flushes && memory.is_dir() {
            memory
        } else {
            Path::new("/tmp")
        };
        let directory = tempfile::Builder::new()
            .prefix("rowcast-side")
            .tempdir_in(place)?;
        let mut settings = vec![("shared_buffers", "512MB"), ("max_wal_size", "3GB")];
        if flushes {
            settings.extend([("commit_delay", "500"), ("commit_siblings", "0")]);
        }
        let options = Options {
            data_dir: directory.path().join("d"),
            durable: flushes,
            extra_settings: settings
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            max_connections: 200,
            pg_bin: std::env::var_os("ROWCAST_PG_BIN").map(PathBuf::from),
        };
        let cluster = Cluster::start(options)
            .await
            .map_err(|error| anyhow!(error.told()))?;
        Ok(Self { cluster, directory })
    }

    /// A connection to one of its databases.
    pub async fn connect(&self, database: &str) -> anyhow::Result<Client> {
        let (client, connection) = self
            .cluster
            .target(database)
            .connect("side by side")
            .await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Makes a database anew.
    pub async fn create(&self, database: &str) -> anyhow::Result<Client> {
        let admin = self.connect("postgres").await?;
        let drop = format!("drop database if exists {database} with (force)");
        admin.batch_execute(&drop).await?;
        let create = format!("create database {database}");
        admin.batch_execute(&create).await?;
        self.connect(database).await
    }

    /// For programs.
    pub fn conninfo(&self, database: &str) -> anyhow::Result<String> {
        let (arguments, _) = self.cluster.target(database).psql_arguments();
        arguments.into_iter().nth(1).context("a connection string")
    }

    /// A program of its version.
    pub fn program(&self, name: &str) -> PathBuf {
        self.cluster.binaries().join(name)
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        let log = self.directory.path().join("d/log/postgres.log");
        std::fs::read_to_string(log).unwrap_or_default()
    }

    /// Stops it.
    pub async fn stop(self) {
        self.cluster.stop().await;
    }
}

/// A server that runs.
pub struct Running {
    child: Child,
    /// Where screens connect.
    pub address: SocketAddr,
    /// The request of each view.
    pub requests: Vec<Arc<[u8]>>,
    /// Whether a stream begins with a state.
    pub states: bool,
    /// All of its processes.
    pub processes: Vec<u32>,
    /// Who is told of commits, when it does not know by itself.
    pub told: Option<UnboundedSender<Commit>>,
    publisher: Option<JoinHandle<()>>,
    /// What it reads; removed with it.
    files: Option<tempfile::TempDir>,
}

impl Running {
    /// Starts it, with the table that the load needs in a database of its own.
    pub async fn start(
        kind: Kind,
        load: &Load,
        database: &Database,
    ) -> anyhow::Result<(Self, Client)> {
        let name = match kind {
            Kind::Rowcast => "relayed",
            Kind::WriteLoop | Kind::Nchan => "plain",
            Kind::Naive => "naive",
        };
        let client = database.create(name).await?;
        client.batch_execute(&stage::table(load.shape())).await?;
        let running = match kind {
            Kind::Rowcast => {
                let log = format!("alter database {name} set log_statement = 'none'");
                client.batch_execute(&log).await?;
                let running = Self::rowcast(&database.conninfo(name)?, load.views, &[]).await?;
                let watch = format!("select rowcast.watch('{TABLE}')");
                client.batch_execute(&watch).await?;
                running
            }
            Kind::WriteLoop => Self::write_loop(load).await?,
            Kind::Nchan => Self::nchan(load).await?,
            Kind::Naive => {
                client.batch_execute(PAYLOAD).await?;
                Self::naive(&database.conninfo(name)?).await?
            }
        };
        Ok((running, client))
    }

    /// The relay.
    pub async fn rowcast(conninfo: &str, views: u64, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rowcast"));
        command
            .env_clear()
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--database-url",
                conninfo,
                // Otherwise a tenth of the connections is kept for those who read and write.
                "--max-streams",
                "100000",
            ])
            .args(arguments);
        let (child, said) = spawn(command, "api   http://").await?;
        let host = said.split('/').next().unwrap_or_default().to_owned();
        let request = |view| stage::request(&host, view, None);
        Ok(Self {
            address: host.parse()?,
            requests: (0..views).map(request).collect(),
            states: true,
            processes: child.id().into_iter().collect(),
            child,
            told: None,
            publisher: None,
            files: None,
        })
    }

    /// The server that somebody writes first.
    pub async fn naive(conninfo: &str) -> anyhow::Result<Self> {
        let mut command = Command::new(naive());
        command.arg(conninfo);
        let (child, said) = spawn(command, "").await?;
        Ok(Self::plain(child, said.parse()?, "/", None))
    }

    fn plain(
        child: Child,
        address: SocketAddr,
        path: &str,
        publisher: Option<(UnboundedSender<Commit>, JoinHandle<()>)>,
    ) -> Self {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n\r\n");
        let (told, publisher) = publisher.unzip();
        Self {
            address,
            requests: vec![Arc::from(request.into_bytes())],
            states: false,
            processes: child.id().into_iter().collect(),
            child,
            told,
            publisher,
            files: None,
        }
    }

    async fn write_loop(load: &Load) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("write-loop");
        let (child, said) = spawn(command, "").await?;
        let (screens, publish) = said.split_once(' ').context("two addresses")?;
        let body = "x".repeat(usize::try_from(load.size)?);
        let publisher = publisher(publish.parse()?, move |commit| {
            let event = event(commit, &body);
            let chunk = format!("{:x}\r\n{event}\r\n", event.len());
            let length = u32::try_from(chunk.len()).unwrap_or_default();
            [&length.to_be_bytes()[..], chunk.as_bytes()].concat()
        });
        Ok(Self::plain(
            child,
            screens.parse()?,
            "/",
            Some(publisher.await?),
        ))
    }

    async fn nchan(load: &Load) -> anyhow::Result<Self> {
        let module = nchan().context("nchan is installed")?;
        // nginx cannot say which port it was given.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let files = tempfile::tempdir()?;
        let configuration = format!(
            "load_module {module};\ndaemon off;\nuser root;\nworker_processes 1;\n\
             worker_rlimit_nofile 20000;\npid {place}/pid;\nerror_log {place}/error.log;\n\
             events {{ worker_connections 19990; }}\n\
             http {{\n access_log off;\n client_body_temp_path {place}/body;\n proxy_temp_path {place}/p;\n\
             fastcgi_temp_path {place}/f;\n uwsgi_temp_path {place}/u;\n scgi_temp_path {place}/s;\n\
             keepalive_requests 100000000;\n nchan_shared_memory_size 256M;\n\
             server {{\n listen {address} backlog=4096;\n tcp_nodelay on;\n\
             location = /publish {{ nchan_publisher; nchan_channel_id rows; nchan_message_buffer_length 200; \
             nchan_message_timeout 1m; }}\n\
             location = /screen {{ nchan_subscriber eventsource; nchan_channel_id rows; \
             nchan_subscriber_first_message newest; }}\n }}\n}}\n",
            module = module.display(),
            place = files.path().display(),
        );
        let file = files.path().join("nginx.conf");
        std::fs::write(&file, configuration)?;
        let mut child = Command::new("/usr/sbin/nginx")
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let begun = std::time::Instant::now();
        // The master listens before its worker is there, whose time is what counts.
        let workers = |child: &Child| child.id().map(process::children).unwrap_or_default();
        while TcpStream::connect(address).is_err() || workers(&child).is_empty() {
            if let Some(status) = child.try_wait()? {
                let log = std::fs::read_to_string(files.path().join("error.log"));
                anyhow::bail!("nginx ended ({status}): {}", log.unwrap_or_default());
            }
            anyhow::ensure!(begun.elapsed() < PATIENCE, "nginx does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let body = "x".repeat(usize::try_from(load.size)?);
        let publisher = publisher(address, move |commit| {
            let row = row(commit, &body);
            let head = format!(
                "POST /publish HTTP/1.1\r\nHost: {address}\r\nAccept: text/plain\r\nContent-Length: {}\r\n\r\n",
                row.len()
            );
            (head + &row).into_bytes()
        });
        let mut running = Self::plain(child, address, "/screen", Some(publisher.await?));
        let workers = workers(&running.child);
        running.processes.extend(workers);
        running.files = Some(files);
        Ok(running)
    }

    /// Stops it.
    pub async fn stop(mut self) {
        drop(self.told.take());
        if let Some(publisher) = self.publisher.take() {
            publisher.abort();
        }
        // Terminated, so that a master ends its workers; what does not end is killed.
        if let Some(pid) = self.child.id() {
            let terminated = Command::new("kill").arg(pid.to_string()).status().await;
            if terminated.is_err() {
                eprintln!("kill cannot be run");
            }
        }
        if tokio::time::timeout(Duration::from_secs(12), self.child.wait())
            .await
            .is_err()
        {
            let _gone = self.child.kill().await;
        }
        drop(self.files.take());
    }
}

/// Starts a program and waits for its line with this beginning; returns the rest of the line.
async fn spawn(mut command: Command, beginning: &str) -> anyhow::Result<(Child, String)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let output = child.stdout.take().context("it is piped")?;
    let mut lines = BufReader::new(output).lines();
    let said = tokio::time::timeout(PATIENCE, async {
        while let Some(line) = lines.next_line().await? {
            if let Some(rest) = line.strip_prefix(beginning) {
                return Ok(rest.to_owned());
            }
        }
        anyhow::bail!("it ended without saying where it is")
    });
    let said = said.await.context("it does not say where it is")??;
    Ok((child, said))
}

/// Sends what `bytes` makes of each commit; answers are read and not looked at.
async fn publisher(
    address: SocketAddr,
    bytes: impl Fn(Commit) -> Vec<u8> + Send + 'static,
) -> anyhow::Result<(UnboundedSender<Commit>, JoinHandle<()>)> {
    let socket = tokio::net::TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let (mut reading, mut writing) = socket.into_split();
    let (told, mut commits) = mpsc::unbounded_channel();
    let task = tokio::spawn(async move {
        let write = async move {
            while let Some(commit) = commits.recv().await {
                if writing.write_all(&bytes(commit)).await.is_err() {
                    return;
                }
            }
        };
        let read = async move {
            let mut answers = vec![0; 65536];
            while matches!(reading.read(&mut answers).await, Ok(1..)) {}
        };
        tokio::join!(write, read);
    });
    Ok((told, task))
}

fn row(commit: Commit, body: &str) -> String {
    let Commit {
        view,
        row,
        number,
        sent,
    } = commit;
    format!(r#"{{"id":{row},"view":{view},"seq":{number},"sent":{sent},"body":"{body}"}}"#)
}

/// What the relay would send, byte for byte but for ids that nobody reads here.
fn event(commit: Commit, body: &str) -> String {
    format!(
        "event: data\nid: 0123456789abcdef.0123456789abcdef.{number}\ndata: [\n\
         data: {{\"type\":\"public.{TABLE}\",\"key\":\"{key}\",\"value\":{row},\"headers\":\
         {{\"operation\":\"update\",\"etag\":\"0123456789abcdef0123456789abcdef\",\"txid\":\"{number}\",\
         \"timestamp\":\"2026-11-23T12:00:00.123456Z\"}}}}\ndata: ]\n\n",
        number = commit.number,
        key = commit.row,
        row = row(commit, body),
    )
}

/// The classic trigger: the row travels in the payload.
pub const PAYLOAD: &str = "create function tell() returns trigger language plpgsql as $$ \
    begin perform pg_notify('naive', row_to_json(new)::text); return null; end $$; \
    create trigger tell after insert or update on rowcast_bench for each row execute function tell()";

fn naive() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/naive/release/naive")
}

fn nchan() -> Option<PathBuf> {
    let module = PathBuf::from("/usr/lib/nginx/modules/ngx_nchan_module.so");
    (module.exists() && Path::new("/usr/sbin/nginx").exists()).then_some(module)
}

/// The server that only writes: each frame that comes in goes to every socket, by one `write` each.
pub fn write_loop() -> io::Result<()> {
    let (screens, publish) = (
        TcpListener::bind("127.0.0.1:0")?,
        TcpListener::bind("127.0.0.1:0")?,
    );
    println!("{} {}", screens.local_addr()?, publish.local_addr()?);
    let sockets = Arc::new(Mutex::new(Vec::new()));
    let accepted = Arc::clone(&sockets);
    // Ends with the process.
    std::thread::spawn(move || {
        for socket in screens.incoming().flatten() {
            if let Ok(socket) = greet(socket) {
                let mut sockets = accepted.lock().unwrap_or_else(PoisonError::into_inner);
                sockets.push(socket);
            }
        }
    });
    let (mut publisher, _) = publish.accept()?;
    let mut frame = Vec::new();
    loop {
        let mut length = [0; 4];
        match publisher.read_exact(&mut length) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        frame.resize(u32::from_be_bytes(length) as usize, 0);
        publisher.read_exact(&mut frame)?;
        let mut sockets = sockets.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever cannot take it all at once is gone: there is no buffer here.
        sockets.retain_mut(|socket: &mut TcpStream| {
            socket.write(&frame).is_ok_and(|count| count == frame.len())
        });
    }
}

fn greet(mut socket: TcpStream) -> io::Result<TcpStream> {
    let mut head = [0; 4096];
    let mut length = 0;
    while !head[..length].ends_with(b"\r\n\r\n") {
        match socket.read(&mut head[length..])? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => length += count,
        }
    }
    let answer =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    socket.write_all(answer.as_bytes())?;
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
