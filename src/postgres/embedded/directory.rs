//! The directory of a private cluster: what lies in it, whose it is, and who is in it now.
//!
//! ```text
//!     lock        held while a rowcast runs the cluster, and its process id
//!     data/       PostgreSQL's own
//!     data.new/   the same while initdb fills it
//!     log/        what the server says
//!     run/        its socket, when the path is short enough for one
//! ```
//!
//! Promises that only one rowcast is in it, and that a directory with somebody else's files is
//! left untouched. As root, what PostgreSQL may write lies one level down, so that it cannot put a
//! link in the way of a file that root opens. It does not know how a server is started.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::LaunchError;
use super::account::{self, Account};
use crate::postgres::connect::Target;

/// Longest path of a socket that every system takes: 104 bytes with the final NUL on macOS.
const SOCKET_PATH: usize = 103;

/// An opened and locked directory. Dropping it lets the next rowcast in.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    /// Whom PostgreSQL runs as, when we are root.
    pub account: Option<Account>,
    /// Holds the lock. Children do not inherit it.
    _lock: File,
}

impl Directory {
    /// Creates the directory when it is missing, and locks it.
    ///
    /// # Errors
    /// When it belongs to somebody else, holds other files, is in use, or cannot be reached by
    /// the user that PostgreSQL will run as.
    pub async fn open(path: &Path) -> Result<Self, LaunchError> {
        let we = account::effective_uid();
        let is_root = we == 0;
        let root = adopt(path, we)?;
        let lock = lock(&root)?;
        let account = if is_root {
            let owner = fs::metadata(root.join("data")).ok();
            let owner = owner.map(|data| data.uid()).filter(|uid| *uid != 0);
            Some(account::unprivileged(owner).ok_or(LaunchError::NoAccount)?)
        } else {
            None
        };
        let directory = Self {
            root,
            account,
            _lock: lock,
        };
        if let Some(account) = &directory.account {
            directory.open_the_way(account).await?;
        }
        directory.own("log")?;
        Ok(directory)
    }

    /// PostgreSQL's data directory.
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// What the server says.
    pub fn log(&self) -> PathBuf {
        self.root.join("log").join("postgres.log")
    }

    /// The major version that made the data, or `None` when there is none yet.
    pub fn made_by(&self) -> Option<u32> {
        let text = fs::read_to_string(self.data().join("PG_VERSION")).ok()?;
        text.trim().parse().ok()
    }

    /// An empty directory for initdb. It is not `data` yet, so that an initdb which was killed
    /// leaves nothing that looks like a cluster.
    pub fn fresh(&self) -> Result<PathBuf, LaunchError> {
        let path = self.root.join("data.new");
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unusable(&path)(error)),
            _ => self.own("data.new"),
        }
    }

    /// Makes what initdb filled the data directory.
    pub fn keep(&self, fresh: &Path, durable: bool) -> Result<(), LaunchError> {
        let data = self.data();
        fs::rename(fresh, &data).map_err(unusable(&data))?;
        if durable {
            let synced = File::open(&self.root).and_then(|root| root.sync_all());
            synced.map_err(unusable(&self.root))?;
        }
        Ok(())
    }

    /// A directory for the socket that nobody else may enter: `run`, or one with a short name
    /// in /tmp when the path of a socket in `run` would be too long.
    pub fn sockets(&self, port: u16) -> Result<PathBuf, LaunchError> {
        let run = self.root.join("run");
        if socket(&run, port).as_os_str().as_bytes().len() <= SOCKET_PATH {
            return self.own("run");
        }
        let mut hasher = DefaultHasher::new();
        self.root.hash(&mut hasher);
        let short = Path::new("/tmp").join(format!("rowcast-{:016x}", hasher.finish()));
        self.own_at(&short)?;
        // Anybody may write to /tmp, so what we find there may have been prepared.
        let found = fs::symlink_metadata(&short).map_err(unusable(&short))?;
        let owner = self
            .account
            .as_ref()
            .map_or_else(account::effective_uid, |account| account.uid);
        if !found.is_dir() || found.uid() != owner || found.mode() & 0o077 != 0 {
            return Err(LaunchError::Foreign {
                path: short,
                found: "somebody else made it, or may enter it".to_owned(),
            });
        }
        Ok(short)
    }

    /// The process id of the server, as it wrote it down. It may be long dead.
    pub fn pid(&self) -> Option<u32> {
        pid(&self.data())
    }

    /// The server that runs on our data although we hold the lock: its rowcast was killed
    /// and it is stopping, or its guardian was killed too.
    pub fn orphan(&self) -> Option<u32> {
        let pid = self.pid()?;
        // After a reboot the number may be anybody's. A server works in its data directory.
        let works_in = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
        (works_in == self.data()).then_some(pid)
    }

    /// Checks that `account` can come here, after letting it pass through what is ours.
    async fn open_the_way(&self, account: &Account) -> Result<(), LaunchError> {
        let mode = fs::metadata(&self.root)
            .map_err(unusable(&self.root))?
            .mode();
        let opened = fs::set_permissions(&self.root, Permissions::from_mode(mode | 0o011));
        opened.map_err(unusable(&self.root))?;
        match account::closed_at(&self.root, account).await {
            None => Ok(()),
            Some(closed) => Err(LaunchError::Closed {
                path: self.root.clone(),
                mode: fs::metadata(&closed).map_or(0, |closed| closed.mode() & 0o7777),
                closed,
                user: account.name.clone(),
            }),
        }
    }

    fn own(&self, name: &str) -> Result<PathBuf, LaunchError> {
        let path = self.root.join(name);
        self.own_at(&path)?;
        Ok(path)
    }

    /// Makes a directory, when it is not there, for whom PostgreSQL runs as and nobody else.
    fn own_at(&self, path: &Path) -> Result<(), LaunchError> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            made => made.map_err(unusable(path))?,
        }
        if let Some(account) = &self.account {
            let given = lchown(path, Some(account.uid), Some(account.gid));
            given.map_err(unusable(path))?;
        }
        Ok(())
    }
}

/// A server that runs in some data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Process id of the server.
    pub pid: u32,
    /// Where its socket is.
    pub socket_directory: PathBuf,
    /// The number in the socket's name.
    pub port: u16,
    /// Where its programs are, to find the psql that fits.
    pub binaries: Option<PathBuf>,
}

impl Running {
    /// A database of that server, as its superuser.
    #[must_use]
    pub fn target(&self, database: &str) -> Target {
        Target::unix(
            &self.socket_directory,
            self.port,
            super::SUPERUSER,
            database,
        )
    }
}

/// The server that runs in `data_dir`, if one does and we may speak to it.
#[must_use]
pub fn running(data_dir: &Path) -> Option<Running> {
    let data = data_dir.join("data");
    let file = PidFile::of(&data)?;
    // The file outlives a server that was killed; a socket that answers does not.
    UnixStream::connect(socket(&file.socket_directory, file.port)).ok()?;
    // `/path/to/postgres "-D" "…"`
    let command = fs::read_to_string(data.join("postmaster.opts")).unwrap_or_default();
    let program = command.split(" \"").next().unwrap_or_default();
    let binaries = Path::new(program.trim()).parent();
    Some(Running {
        pid: file.pid,
        socket_directory: file.socket_directory,
        port: file.port,
        binaries: binaries
            .filter(|path| path.is_absolute())
            .map(Path::to_owned),
    })
}

/// The process id that the last server on `data` wrote down.
pub fn pid(data: &Path) -> Option<u32> {
    PidFile::of(data).map(|file| file.pid)
}

/// `postmaster.pid`: process id, data directory, start time, port, socket directory, …
struct PidFile {
    pid: u32,
    port: u16,
    socket_directory: PathBuf,
}

impl PidFile {
    fn of(data: &Path) -> Option<Self> {
        let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
        let mut lines = text.lines();
        Some(Self {
            pid: lines.next()?.trim().parse().ok()?,
            // The server writes the first five lines at once, so they are all there or none.
            port: lines.nth(2)?.trim().parse().ok()?,
            socket_directory: PathBuf::from(lines.next()?),
        })
    }
}

fn socket(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

/// The directory itself, if it is ours to use.
fn adopt(path: &Path, we: u32) -> Result<PathBuf, LaunchError> {
    // Only root's must let others pass through.
    let mode = if we == 0 { 0o711 } else { 0o700 };
    let creation = DirBuilder::new().recursive(true).mode(mode).create(path);
    creation.map_err(unusable(path))?;
    let root = path.canonicalize().map_err(unusable(path))?;
    let owner = fs::metadata(&root).map_err(unusable(&root))?.uid();
    if owner != we {
        return Err(LaunchError::Foreign {
            path: root,
            found: format!("it belongs to user {owner}, and we are user {we}"),
        });
    }
    let names = fs::read_dir(&root)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect::<io::Result<Vec<_>>>()
        })
        .map_err(unusable(&root))?;
    let is_ours = names.iter().any(|name| name == "lock");
    match names.iter().find(|name| *name != "lost+found") {
        Some(other) if !is_ours => Err(LaunchError::Foreign {
            path: root,
            found: format!("it holds other files: {}", other.to_string_lossy()),
        }),
        _ => Ok(root),
    }
}

fn lock(root: &Path) -> Result<File, LaunchError> {
    let path = root.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(unusable(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only to tell who it is; not knowing is no second error.
            let _read = file.read_to_string(&mut holder);
            return Err(LaunchError::InUse {
                path: root.to_owned(),
                pid: holder.trim().parse().ok(),
            });
        }
        Err(TryLockError::Error(error)) => return Err(unusable(&path)(error)),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(unusable(&path))?;
    Ok(file)
}

fn unusable(path: &Path) -> impl FnOnce(io::Error) -> LaunchError {
    let path = path.to_owned();
    move |source| LaunchError::Directory { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_do_not_share_a_directory() {
        let place = tempfile::tempdir().unwrap();
        let first = Directory::open(place.path()).await.unwrap();
        let error = Directory::open(place.path()).await.unwrap_err();
        let pid = std::process::id();
        assert!(matches!(error, LaunchError::InUse { pid: Some(held), .. } if held == pid));
        assert!(error.told().contains(&pid.to_string()), "{}", error.told());
        drop(first);
        Directory::open(place.path()).await.unwrap();
    }

    #[tokio::test]
    async fn a_directory_with_other_files_is_left_alone() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("thesis.tex"), "x").unwrap();
        let mode = fs::metadata(place.path()).unwrap().mode();
        let error = Directory::open(place.path()).await.unwrap_err();
        assert!(error.told().contains("thesis.tex"), "{}", error.told());
        assert_eq!(fs::metadata(place.path()).unwrap().mode(), mode);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn root_is_told_which_parent_is_closed() {
        if account::effective_uid() != 0 {
            return;
        }
        let place = tempfile::tempdir().unwrap();
        fs::set_permissions(place.path(), Permissions::from_mode(0o700)).unwrap();
        let error = Directory::open(&place.path().join("a/b"))
            .await
            .unwrap_err();
        let told = error.told();
        let closed = place.path().canonicalize().unwrap();
        let found = format!("{} is closed to it (mode 700)", closed.display());
        assert!(told.contains(&found), "{told}");
    }

    #[tokio::test]
    async fn a_long_path_gets_a_short_socket() {
        let place = tempfile::tempdir().unwrap();
        let directory = Directory::open(place.path()).await.unwrap();
        assert!(directory.sockets(5432).unwrap().ends_with("run"));
        fs::set_permissions(place.path(), Permissions::from_mode(0o711)).unwrap();
        let long = place.path().join("x".repeat(80));
        let directory = Directory::open(&long).await.unwrap();
        let short = directory.sockets(5432).unwrap();
        assert!(socket(&short, 5432).as_os_str().len() <= SOCKET_PATH);
        assert_eq!(directory.sockets(5432).unwrap(), short);
        fs::set_permissions(&short, Permissions::from_mode(0o755)).unwrap();
        assert!(directory.sockets(5432).is_err());
        fs::remove_dir(short).unwrap();
    }

    #[test]
    fn nothing_runs_where_nothing_was_started() {
        let place = tempfile::tempdir().unwrap();
        assert_eq!(running(place.path()), None);
        let data = place.path().join("data");
        fs::create_dir(&data).unwrap();
        let text = format!("1\n{0}\n1\n5432\n{0}\n", data.display());
        fs::write(data.join("postmaster.pid"), text).unwrap();
        assert_eq!(running(place.path()), None);
    }
}
