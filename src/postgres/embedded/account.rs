//! Whose rights PostgreSQL gets. It refuses to run as root, so root gives its own up.
//!
//! Promises that a child started here has one user, one group, no further groups and none of our
//! environment. It knows nothing of what is started.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::procfs;

/// A user of the operating system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// For messages.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Its first group.
    pub gid: u32,
}

/// Our own effective user number.
pub fn effective_uid() -> u32 {
    // "Uid: real effective saved filesystem"
    let of_kernel = procfs::status("self", "Uid:")
        .and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    of_kernel.or_else(of_id).unwrap_or(u32::MAX)
}

/// Where there is no /proc.
fn of_id() -> Option<u32> {
    let output = std::process::Command::new("id").arg("-u").output().ok()?;
    String::from_utf8_lossy(&output.stdout).trim().parse().ok()
}

/// Whom root lets PostgreSQL run as: the owner of the files that are there already, else
/// `postgres`, else `nobody`.
pub fn unprivileged(owner: Option<u32>) -> Option<Account> {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    choose(&passwd, owner)
}

fn choose(passwd: &str, owner: Option<u32>) -> Option<Account> {
    let accounts: Vec<Account> = passwd.lines().filter_map(account).collect();
    let owner = accounts.iter().find(|account| Some(account.uid) == owner);
    let named = |name| accounts.iter().find(|account| account.name == name);
    owner
        .or_else(|| named("postgres"))
        .or_else(|| named("nobody"))
        .filter(|account| account.uid != 0)
        .cloned()
}

/// `name:password:uid:gid:…`
fn account(line: &str) -> Option<Account> {
    let mut fields = line.split(':');
    Some(Account {
        name: fields.next()?.to_owned(),
        uid: fields.nth(1)?.parse().ok()?,
        gid: fields.next()?.parse().ok()?,
    })
}

/// A command that runs as `account`, or as ourselves.
pub fn command(program: impl AsRef<OsStr>, account: Option<&Account>) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir("/")
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/bin:/bin:/usr/local/bin")
        .stdin(Stdio::null());
    if let Some(account) = account {
        // With a user set, std also drops root's further groups.
        command.uid(account.uid).gid(account.gid);
    }
    command
}

/// The first directory on the way to `path` that `account` may not enter. It is tried, not
/// computed from modes, because access lists and containers have a say too.
pub async fn closed_at(path: &Path, account: &Account) -> Option<PathBuf> {
    let mut way: Vec<&Path> = path.ancestors().collect();
    way.reverse();
    for directory in way {
        let entered = command("/bin/sh", Some(account))
            .args([OsStr::new("-c"), OsStr::new("cd \"$1\""), OsStr::new("sh")])
            .arg(directory)
            .stderr(Stdio::null())
            .status()
            .await;
        if !entered.is_ok_and(|status| status.success()) {
            return Some(directory.to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65533:n:/:/bin/false\n\
        broken\npostgres:x:101:104:,,,:/var/lib/postgresql:/bin/bash\n";

    #[test]
    fn root_prefers_the_owner_of_the_files_then_postgres_then_nobody() {
        let name = |passwd: &str, owner| choose(passwd, owner).map(|account| account.name);
        assert_eq!(name(PASSWD, None).as_deref(), Some("postgres"));
        assert_eq!(name(PASSWD, Some(65534)).as_deref(), Some("nobody"));
        assert_eq!(name(PASSWD, Some(7)).as_deref(), Some("postgres"));
        let without = PASSWD.replace("postgres:", "other:");
        assert_eq!(choose(&without, None).unwrap().gid, 65533);
        assert_eq!(choose("root:x:0:0::/:", None), None);
    }

    #[test]
    fn we_know_who_we_are() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let metadata = file.as_file().metadata().unwrap();
        assert_eq!(
            effective_uid(),
            std::os::unix::fs::MetadataExt::uid(&metadata)
        );
    }

    #[tokio::test]
    async fn a_child_has_none_of_our_environment() {
        let output = command("/usr/bin/env", None).output().await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.lines().all(|line| {
            line.starts_with("LC_ALL=") || line.starts_with("PATH=") || line.starts_with("_=")
        }));
    }
}
