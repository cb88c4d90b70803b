//! A private PostgreSQL: found on the machine, set up, started, watched and stopped.
//!
//! Promises that the server answers when [`Cluster::start`] returns, that it comes back on the
//! same data when somebody kills it, and that it does not outlive us, not even after `kill -9`.
//! It listens on a Unix socket that only its own user and root may reach, and on no port. It
//! knows nothing of what is kept in it, and only `cli` and tests name it.

mod account;
mod binaries;
mod directory;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, ChildStdin};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::error::SqlState;

use self::account::Account;
pub use self::account::effective_uid;
use self::binaries::Binaries;
use self::directory::Directory;
pub use self::directory::{Running, running};
use crate::backoff::Backoff;
use crate::postgres::connect::{ConnectError, Target};

/// The user that initdb makes.
pub const SUPERUSER: &str = "postgres";

/// Silence after which a starting server is given up. One that says "starting up" is not silent:
/// recovery after a crash takes as long as it takes.
const SILENCE: Duration = Duration::from_mins(1);
/// Longest wait for the remains of a server that was killed: its children end within seconds.
const REMAINS: Duration = Duration::from_secs(10);
/// The guardian's ten seconds, an immediate stop, and some air.
const STOP: Duration = Duration::from_secs(20);
/// A server that lived this long starts its next life without delay.
const HEALTHY: Duration = Duration::from_secs(10);

/// Why there is no cluster. `Display` is one sentence; [`LaunchError::told`] is for a terminal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// No directory on this machine holds the programs.
    #[error("PostgreSQL was not found on this machine")]
    NoPostgres,
    /// A named directory does not hold them.
    #[error("there is no {name} in {}", directory.display())]
    NotThere {
        /// The directory.
        directory: PathBuf,
        /// The missing program.
        name: &'static str,
    },
    /// `postgres --version` failed.
    #[error("{} does not run", program.display())]
    NotRunnable {
        /// The program.
        program: PathBuf,
        /// Whom it was run as, when not as ourselves.
        user: Option<String>,
        /// What it said.
        detail: String,
    },
    /// The SQL needs a newer server.
    #[error("PostgreSQL {version} is too old")]
    TooOld {
        /// Where it was found.
        directory: PathBuf,
        /// What it calls itself.
        version: String,
    },
    /// The data was made by another major version.
    #[error("the data was made by PostgreSQL {made_by}, and PostgreSQL {found} cannot read it")]
    OtherMajor {
        /// The data directory.
        data: PathBuf,
        /// Its version.
        made_by: u32,
        /// The version found.
        found: u32,
        /// Where it was found.
        directory: PathBuf,
    },
    /// Root has nobody to be.
    #[error("PostgreSQL does not run as root, and there is no other user for it")]
    NoAccount,
    /// A directory cannot be made, read or written.
    #[error("{} cannot be used", path.display())]
    Directory {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A directory that is not ours.
    #[error("{} is not a directory of rowcast", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// How we know.
        found: String,
    },
    /// PostgreSQL's user may not enter.
    #[error("the directory {} cannot be reached by the user \"{user}\"", path.display())]
    Closed {
        /// The data directory.
        path: PathBuf,
        /// The first closed directory on the way.
        closed: PathBuf,
        /// Its permissions.
        mode: u32,
        /// Whom PostgreSQL runs as.
        user: String,
    },
    /// Another rowcast is in there.
    #[error("another rowcast uses {}", path.display())]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// Its process id, when it could be read.
        pid: Option<u32>,
    },
    /// A program could not be started.
    #[error("{} cannot be started", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// initdb failed.
    #[error("initdb failed")]
    Initdb {
        /// What it said.
        output: String,
    },
    /// The server ended before it answered.
    #[error("PostgreSQL ended while it was starting ({status})")]
    Ended {
        /// How.
        status: ExitStatus,
        /// The end of its log.
        log: String,
        /// The log.
        path: PathBuf,
    },
    /// The server runs and does not answer.
    #[error("PostgreSQL did not answer within {} s", SILENCE.as_secs())]
    Silent {
        /// The last answer.
        source: ConnectError,
        /// The log.
        path: PathBuf,
    },
}

impl LaunchError {
    /// What was found.
    #[must_use]
    pub fn found(&self) -> Option<String> {
        match self {
            Self::NoPostgres => Some("no directory with both initdb and postgres".to_owned()),
            Self::NotThere { .. } | Self::NoAccount => None,
            Self::NotRunnable { user, detail, .. } => Some(match user {
                Some(user) => format!("as user \"{user}\", because we are root: {detail}"),
                None => detail.clone(),
            }),
            Self::TooOld { directory, .. } => Some(directory.display().to_string()),
            Self::OtherMajor {
                data, directory, ..
            } => Some(format!("{} and {}", data.display(), directory.display())),
            Self::Directory { source, .. } | Self::Spawn { source, .. } => Some(source.to_string()),
            Self::Foreign { found, .. } => Some(found.clone()),
            Self::Closed { closed, mode, .. } => Some(format!(
                "{} is closed to it (mode {mode:o}), and PostgreSQL does not run as root",
                closed.display()
            )),
            Self::InUse { pid, .. } => pid.map(|pid| format!("process {pid}")),
            Self::Initdb { output } => Some(output.clone()),
            Self::Ended { log, .. } => Some(log.clone()),
            Self::Silent { source, .. } => Some(source.to_string()),
        }
    }

    /// What to try.
    #[must_use]
    pub fn advice(&self) -> String {
        match self {
            Self::NoPostgres | Self::TooOld { .. } => "apt-get install postgresql (Debian), \
                dnf install postgresql-server (Fedora), brew install postgresql@17 (macOS), \
                or name a running database in DATABASE_URL"
                .to_owned(),
            Self::NotThere { .. } => {
                "set ROWCAST_PG_BIN to the directory with initdb and postgres".to_owned()
            }
            Self::NotRunnable { user, .. } => match user {
                Some(user) => format!("make the programs readable and executable for \"{user}\""),
                None => "set ROWCAST_PG_BIN to the directory of another PostgreSQL".to_owned(),
            },
            Self::OtherMajor { made_by, .. } => {
                format!("apt-get install postgresql-{made_by}, or another --data-dir to begin anew")
            }
            Self::NoAccount => "run rowcast as an ordinary user".to_owned(),
            Self::Directory { .. } | Self::Foreign { .. } => {
                "another --data-dir, new or empty".to_owned()
            }
            Self::Closed { .. } => {
                "--data-dir /var/lib/rowcast, or run rowcast as an ordinary user".to_owned()
            }
            Self::InUse { .. } => "stop it, or use another --data-dir".to_owned(),
            Self::Spawn { .. } | Self::Initdb { .. } => {
                "free disk space and memory, or another --data-dir".to_owned()
            }
            Self::Ended { path, .. } | Self::Silent { path, .. } => {
                format!("read {}", path.display())
            }
        }
    }

    /// Three lines for a person: what happened, what was found, what to try.
    #[must_use]
    pub fn told(&self) -> String {
        let mut told = self.to_string();
        let found = self.found().unwrap_or_default();
        if !found.is_empty() {
            let found = found.replace('\n', "\n         ");
            let _infallible = write!(told, "\n  found: {found}");
        }
        let _infallible = write!(told, "\n  try:   {}", self.advice());
        told
    }
}

/// What kind of cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it lives. Made when missing; when it exists it must be empty or of a former start.
    pub data_dir: PathBuf,
    /// Whether a commit survives a crash of the machine. One of the server it always survives;
    /// for clusters that are thrown away, less is faster.
    pub durable: bool,
    /// Further settings, like `("wal_level", "logical")`; they win over ours. With
    /// `listen_addresses` the port is open to everybody who can reach it, without a password.
    pub extra_settings: Vec<(String, String)>,
    /// Connections that the server admits.
    pub max_connections: u32,
    /// Where the programs are; `None` searches the machine.
    pub pg_bin: Option<PathBuf>,
}

/// A running cluster. [`Cluster::stop`] stops it in order; dropping it stops it soon.
#[derive(Debug)]
pub struct Cluster {
    data: PathBuf,
    socket_directory: PathBuf,
    port: u16,
    binaries: Binaries,
    /// Its end tells the supervisor to stop the server.
    stop: oneshot::Sender<()>,
    supervisor: JoinHandle<()>,
}

impl Cluster {
    /// Sets a cluster up when there is none, starts its server and waits until it answers.
    ///
    /// # Errors
    /// When PostgreSQL is missing, or the directory cannot be used, or the server does not start.
    pub async fn start(options: Options) -> Result<Self, LaunchError> {
        let directory = Directory::open(&options.data_dir).await?;
        let account = directory.account.as_ref();
        let made_by = directory.made_by();
        let given = options.pg_bin.as_deref();
        let binaries = Binaries::find(given, made_by, &directory.data(), account).await?;
        if made_by.is_none() {
            initdb(&binaries, &directory, options.durable).await?;
        }
        let port = options.port();
        let socket_directory = directory.sockets(port)?;
        let server = Server {
            program: binaries.program("postgres"),
            arguments: options.arguments(&directory.data(), &socket_directory),
            target: Target::unix(&socket_directory, port, SUPERUSER, "postgres"),
            socket_directory: socket_directory.clone(),
            directory,
        };
        let guardian = server.first_start().await?;
        let data = server.directory.data();
        let (stop, stopped) = oneshot::channel();
        let supervisor = tokio::spawn(supervise(server, guardian, stopped));
        Ok(Self {
            data,
            socket_directory,
            port,
            binaries,
            stop,
            supervisor,
        })
    }

    /// A database of this cluster, as its superuser. It need not exist yet.
    #[must_use]
    pub fn target(&self, database: &str) -> Target {
        Target::unix(&self.socket_directory, self.port, SUPERUSER, database)
    }

    /// The server's version, like `17.2`, as its program tells it.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.binaries.version
    }

    /// The server's major version, like 17.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.binaries.major
    }

    /// Where the server's programs are.
    #[must_use]
    pub fn binaries(&self) -> &Path {
        &self.binaries.directory
    }

    /// The process id of the server now. It changes when the server was killed and came back.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        directory::pid(&self.data)
    }

    /// Stops the server: its clients are cut, what they committed is kept. Returns when it is
    /// gone, after at most 20 s.
    pub async fn stop(self) {
        let Self {
            stop, supervisor, ..
        } = self;
        drop(stop);
        if let Err(error) = supervisor.await {
            tracing::warn!(%error, "the supervisor of the private cluster ended badly");
        }
    }
}

impl Options {
    /// The number in the socket's name.
    fn port(&self) -> u16 {
        let ports = self.extra_settings.iter().rev();
        let mut ports = ports.filter(|(name, _)| name == "port");
        let port = ports.next().and_then(|(_, value)| value.parse().ok());
        port.unwrap_or(5432)
    }

    fn arguments(&self, data: &Path, sockets: &Path) -> Vec<String> {
        let setting = |name: &str, value: &str| ["-c".to_owned(), format!("{name}={value}")];
        let mut arguments = vec!["-D".to_owned(), data.display().to_string()];
        arguments.extend(setting("listen_addresses", ""));
        // The value is a list; quotes keep a comma or a blank in the path.
        let sockets = format!("\"{}\"", sockets.display());
        arguments.extend(setting("unix_socket_directories", &sockets));
        arguments.extend(setting(
            "max_connections",
            &self.max_connections.to_string(),
        ));
        arguments.extend(setting("log_line_prefix", "%m [%p] %q%a "));
        if !self.durable {
            // Nothing else is turned off: without synchronous_commit or full_page_writes a
            // kill -9 of the server alone would already cost commits.
            arguments.extend(setting("fsync", "off"));
        }
        for (name, value) in &self.extra_settings {
            arguments.extend(setting(name, value));
        }
        arguments
    }
}

/// How to start the server, again and again.
struct Server {
    program: PathBuf,
    arguments: Vec<String>,
    /// To see whether it answers.
    target: Target,
    /// To remove it in the end.
    socket_directory: PathBuf,
    directory: Directory,
}

/// A guardian and the pipe that keeps its server alive.
struct Guardian {
    process: Child,
    /// Held, never written to. Closing it stops the server.
    pipe: Option<ChildStdin>,
}

impl Server {
    /// Starts the server and waits until it answers.
    async fn first_start(&self) -> Result<Guardian, LaunchError> {
        // Some of a killed server's children may hold its memory for a while; a new one ends at
        // once then. That is only worth a second try when there was a server.
        let mut backoff = Backoff::new();
        let was_left = self.directory.pid().is_some();
        let patience = Instant::now() + REMAINS;
        self.end_orphan().await;
        loop {
            let mut guardian = self.spawn()?;
            match self.ready(&mut guardian).await {
                Ok(()) => return Ok(guardian),
                Err(LaunchError::Ended { .. }) if was_left && Instant::now() < patience => {
                    sleep(backoff.delay()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn spawn(&self) -> Result<Guardian, LaunchError> {
        let shell = Path::new("/bin/sh");
        let mut process = account::command(shell, self.account())
            .args([
                "-c",
                include_str!("embedded/guardian.sh"),
                "rowcast-postgres",
            ])
            .arg(self.directory.log())
            .arg(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C in a terminal goes to its whole group; we stop the server in our own time.
            .process_group(0)
            .spawn()
            .map_err(|source| LaunchError::Spawn {
                program: shell.to_owned(),
                source,
            })?;
        // Out of the child, because waiting for it would close the pipe.
        let pipe = process.stdin.take();
        Ok(Guardian { process, pipe })
    }

    /// Waits until the server answers anything but "starting up".
    async fn ready(&self, guardian: &mut Guardian) -> Result<(), LaunchError> {
        let mut heard = Instant::now();
        loop {
            if let Ok(Some(status)) = guardian.process.try_wait() {
                let path = self.directory.log();
                return Err(LaunchError::Ended {
                    status,
                    log: last_lines(&path),
                    path,
                });
            }
            let error = match self.target.connect("rowcast launcher").await {
                Ok(_answered) => return Ok(()),
                Err(error) => error,
            };
            match error.code() {
                Some(code) if *code == SqlState::CANNOT_CONNECT_NOW => heard = Instant::now(),
                // It refuses us, so it is there.
                Some(_) => return Ok(()),
                None if heard.elapsed() > SILENCE => {
                    return Err(LaunchError::Silent {
                        source: error,
                        path: self.directory.log(),
                    });
                }
                None => {}
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops a server that runs on our data without a rowcast, and waits until it is gone.
    async fn end_orphan(&self) {
        let begun = Instant::now();
        let mut signal = "INT";
        while let Some(pid) = self.directory.orphan() {
            if !signal.is_empty() {
                tracing::info!(pid, "stopping the PostgreSQL that a former rowcast left");
                // As its own user, so that no other process can be hit.
                let killed = account::command("/bin/sh", self.account())
                    .args([
                        "-c",
                        "kill -s \"$1\" \"$2\"",
                        "sh",
                        signal,
                        &pid.to_string(),
                    ])
                    .stderr(Stdio::null())
                    .status()
                    .await;
                tracing::debug!(pid, signal, ?killed, "signal sent");
            }
            signal = if begun.elapsed() > REMAINS {
                "QUIT"
            } else {
                ""
            };
            if begun.elapsed() > 2 * REMAINS {
                // The new server will say what it thinks of this.
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Starts the server again. Does not wait until it answers: recovery may take long, and
    /// its clients try for themselves.
    async fn next_start(&self, backoff: &mut Backoff) -> Guardian {
        loop {
            sleep(backoff.delay()).await;
            self.end_orphan().await;
            match self.spawn() {
                Ok(guardian) => return guardian,
                Err(error) => tracing::warn!(%error, "PostgreSQL cannot be started"),
            }
        }
    }

    fn account(&self) -> Option<&Account> {
        self.directory.account.as_ref()
    }
}

/// Keeps the server running until `stopped` ends, then stops it. Holds the directory's lock, so
/// that nobody else comes in before the server is gone.
async fn supervise(server: Server, mut guardian: Guardian, mut stopped: oneshot::Receiver<()>) {
    let mut backoff = Backoff::new();
    loop {
        let begun = Instant::now();
        let status = tokio::select! {
            _dropped = &mut stopped => break,
            status = guardian.process.wait() => status,
        };
        tracing::warn!(
            status = ?status.ok(),
            log = %server.directory.log().display(),
            "PostgreSQL ended by itself, starting it again",
        );
        if begun.elapsed() > HEALTHY {
            backoff.reset();
        }
        // Its watcher may still live, and with it a server whose guardian alone was killed.
        drop(guardian.pipe.take());
        guardian = tokio::select! {
            _dropped = &mut stopped => break,
            next = server.next_start(&mut backoff) => next,
        };
    }
    drop(guardian.pipe.take());
    if timeout(STOP, guardian.process.wait()).await.is_err() {
        tracing::warn!("PostgreSQL is not stopping and was left to its guardian");
    }
    // A directory in /tmp is of no more use; `run` does not mind.
    let _kept_when_not_empty = std::fs::remove_dir(&server.socket_directory);
}

async fn initdb(
    binaries: &Binaries,
    directory: &Directory,
    durable: bool,
) -> Result<(), LaunchError> {
    let fresh = directory.fresh()?;
    let program = binaries.program("initdb");
    let mut command = account::command(&program, directory.account.as_ref());
    command
        .arg("-D")
        .arg(&fresh)
        .args(["-U", SUPERUSER, "-A", "trust", "--no-locale", "-E", "UTF8"])
        // Ctrl-C would end it in the middle, and look like a fault of the disk. It takes a second or two, and
        // who starts us stops then.
        .process_group(0)
        .kill_on_drop(true);
    if !durable {
        command.arg("--no-sync");
    }
    let output = command
        .output()
        .await
        .map_err(|source| LaunchError::Spawn { program, source })?;
    if !output.status.success() {
        let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(LaunchError::Initdb { output });
    }
    directory.keep(&fresh, durable)
}

/// The end of a log, for an error.
fn last_lines(path: &Path) -> String {
    const LINES: usize = 8;
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::MetadataExt;

    use tempfile::TempDir;

    use super::*;

    pub(crate) fn options(place: &Path) -> Options {
        Options {
            data_dir: place.to_owned(),
            durable: false,
            extra_settings: Vec::new(),
            max_connections: 20,
            pg_bin: std::env::var_os("ROWCAST_PG_BIN").map(PathBuf::from),
        }
    }

    /// A cluster for one test, or `None` where no PostgreSQL is installed, except in CI.
    pub(crate) async fn throw_away() -> Option<(TempDir, Cluster)> {
        let place = tempfile::tempdir().unwrap();
        let cluster = skipped(Cluster::start(options(place.path())).await)?;
        Some((place, cluster))
    }

    /// `None`, said aloud, where no PostgreSQL is installed; except in CI.
    pub(crate) fn skipped(started: Result<Cluster, LaunchError>) -> Option<Cluster> {
        match started {
            Ok(cluster) => Some(cluster),
            Err(error @ LaunchError::NoPostgres) if std::env::var_os("CI").is_none() => {
                eprintln!("skipped: {}", error.told());
                None
            }
            Err(error) => panic!("{}", error.told()),
        }
    }

    async fn answer(target: &Target, sql: &str) -> Option<String> {
        let (client, connection) = target.connect("rowcast test").await.ok()?;
        let polling = tokio::spawn(connection);
        let answer = client.query_one(sql, &[]).await.ok()?.get(0);
        drop(client);
        polling.await.unwrap().ok()?;
        Some(answer)
    }

    async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn kill(pid: u32) {
        let pid = pid.to_string();
        let killed = account::command("/bin/sh", None)
            .args(["-c", "kill -9 \"$1\"", "sh", &pid])
            .status();
        assert!(killed.await.unwrap().success());
    }

    async fn write_a_row(target: &Target) {
        let (client, connection) = target.connect("rowcast test").await.unwrap();
        tokio::spawn(connection);
        let sql = "create table kept as select 'yes'::text as value";
        client.batch_execute(sql).await.unwrap();
    }

    const KEPT: &str = "select value from kept";

    #[tokio::test]
    async fn a_cluster_answers_is_private_and_keeps_its_data() {
        let Some((place, cluster)) = throw_away().await else {
            return;
        };
        let target = cluster.target("postgres");
        let version = answer(&target, "show server_version").await.unwrap();
        assert_eq!(version, cluster.version());
        let addresses = answer(&target, "show listen_addresses").await;
        assert_eq!(addresses.as_deref(), Some(""));
        let sockets = std::fs::metadata(&cluster.socket_directory).unwrap();
        assert_eq!(sockets.mode() & 0o777, 0o700);
        write_a_row(&target).await;

        let found = running(place.path()).unwrap();
        assert_eq!(Some(found.pid), cluster.pid());
        assert_eq!(found.binaries.as_deref(), Some(cluster.binaries()));
        let seen = answer(&found.target("postgres"), KEPT).await;
        assert_eq!(seen.as_deref(), Some("yes"));

        cluster.stop().await;
        assert_eq!(running(place.path()), None);
        let data = place.path().join("data");
        assert!(!data.join("postmaster.pid").exists(), "not a clean stop");

        let cluster = Cluster::start(options(place.path())).await.unwrap();
        let seen = answer(&cluster.target("postgres"), KEPT).await;
        assert_eq!(seen.as_deref(), Some("yes"));
        cluster.stop().await;
    }

    #[tokio::test]
    async fn a_killed_server_comes_back_with_what_was_committed() {
        let Some((_place, cluster)) = throw_away().await else {
            return;
        };
        let target = cluster.target("postgres");
        write_a_row(&target).await;
        let pid = cluster.pid().unwrap();
        kill(pid).await;
        let seen = until("the server comes back", async || {
            let changed = cluster.pid().is_some_and(|now| now != pid);
            let seen = answer(&target, KEPT).await;
            seen.filter(|_| changed)
        });
        assert_eq!(seen.await, "yes");
        cluster.stop().await;
    }

    #[tokio::test]
    async fn a_killed_guardian_is_replaced() {
        let Some((_place, cluster)) = throw_away().await else {
            return;
        };
        let pid = cluster.pid().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
        let Ok(status) = status else {
            return; // no /proc, no way to know the guardian
        };
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        kill(parent.unwrap().trim().parse().unwrap()).await;
        let target = cluster.target("postgres");
        until("another server", async || {
            cluster.pid().filter(|now| *now != pid)?;
            answer(&target, "select 'yes'").await
        })
        .await;
        cluster.stop().await;
    }

    /// Not a test of its own: the process that the next test kills.
    #[tokio::test]
    async fn victim() {
        let Some(place) = std::env::var_os(VICTIM) else {
            return;
        };
        let _cluster = Cluster::start(options(Path::new(&place))).await.unwrap();
        std::future::pending::<()>().await;
    }

    const VICTIM: &str = "ROWCAST_TEST_VICTIM";

    #[tokio::test]
    async fn the_server_does_not_outlive_a_killed_rowcast() {
        let Some((place, cluster)) = throw_away().await else {
            return;
        };
        cluster.stop().await;
        let mut victim = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "postgres::embedded::tests::victim"])
            .env(VICTIM, place.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pid = until("the victim's server", async || running(place.path()))
            .await
            .pid;
        let error = Cluster::start(options(place.path())).await.unwrap_err();
        assert!(matches!(error, LaunchError::InUse { pid: Some(pid), .. } if pid == victim.id()));

        victim.kill().unwrap();
        victim.wait().unwrap();
        // It takes its pid file away a moment before it is gone.
        let process = PathBuf::from(format!("/proc/{pid}"));
        until("the server ends", async || {
            (!process.exists()).then_some(())
        })
        .await;
        assert!(!place.path().join("data/postmaster.pid").exists());
    }

    #[tokio::test]
    async fn a_new_rowcast_takes_over_at_once_from_a_killed_one() {
        let Some((place, cluster)) = throw_away().await else {
            return;
        };
        cluster.stop().await;
        let mut victim = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "postgres::embedded::tests::victim"])
            .env(VICTIM, place.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        until("the victim's server", async || running(place.path())).await;
        victim.kill().unwrap();
        victim.wait().unwrap();
        let cluster = Cluster::start(options(place.path())).await.unwrap();
        let seen = answer(&cluster.target("postgres"), "select 'yes'").await;
        assert_eq!(seen.as_deref(), Some("yes"));
        cluster.stop().await;
    }

    #[tokio::test]
    async fn an_interrupted_initdb_and_a_long_path_do_no_harm() {
        let Some((place, cluster)) = throw_away().await else {
            return;
        };
        cluster.stop().await;
        let long = place.path().join("a b,c".repeat(25));
        let rubbish = long.join("data.new");
        std::fs::create_dir_all(&rubbish).unwrap();
        std::fs::write(long.join("lock"), "").unwrap();
        std::fs::write(rubbish.join("half"), "").unwrap();
        let cluster = Cluster::start(options(&long)).await.unwrap();
        let seen = answer(&cluster.target("postgres"), "select 'yes'").await;
        assert_eq!(seen.as_deref(), Some("yes"));
        let sockets = cluster.socket_directory.clone();
        cluster.stop().await;
        assert!(!sockets.exists());
    }

    #[tokio::test]
    async fn data_of_another_major_version_is_refused_with_both_numbers() {
        let Some((place, cluster)) = throw_away().await else {
            return;
        };
        let major = cluster.major();
        cluster.stop().await;
        std::fs::write(place.path().join("data/PG_VERSION"), "9\n").unwrap();
        let told = Cluster::start(options(place.path()))
            .await
            .unwrap_err()
            .told();
        assert!(told.contains("made by PostgreSQL 9"), "{told}");
        assert!(
            told.contains(&format!("PostgreSQL {major} cannot")),
            "{told}"
        );
    }

    #[tokio::test]
    async fn a_server_that_does_not_start_shows_why() {
        let Some((place, cluster)) = throw_away().await else {
            return;
        };
        cluster.stop().await;
        let mut options = options(place.path());
        let wrong = ("shared_buffers".to_owned(), "lots".to_owned());
        options.extra_settings.push(wrong);
        let error = Cluster::start(options).await.unwrap_err();
        assert!(matches!(error, LaunchError::Ended { .. }));
        assert!(error.told().contains("shared_buffers"), "{}", error.told());
    }

    #[test]
    fn three_lines_are_told() {
        assert_eq!(
            LaunchError::NoPostgres.told().lines().count(),
            3,
            "{}",
            LaunchError::NoPostgres.told()
        );
    }
}
