//! Where PostgreSQL's programs are.
//!
//! Promises an `initdb` and a `postgres` from one directory, of a version that we support and
//! that made the data, and runnable by whom they will run as. It starts no server.

use std::path::{Path, PathBuf};

use super::LaunchError;
use super::account::{self, Account};

/// The oldest major version that the log's SQL is written for.
pub const OLDEST: u32 = 15;

/// A directory with PostgreSQL's programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    /// The directory.
    pub directory: PathBuf,
    /// As `postgres --version` tells it, like `17.2` or `15.14 (Debian 15.14-0+deb12u1)`.
    pub version: String,
    /// The number before the dot.
    pub major: u32,
}

impl Binaries {
    /// The programs in `given`, or the first suitable ones on this machine. `made_by` is the
    /// major version that made the data, and `data` where it is.
    ///
    /// # Errors
    /// When there are none, or none that fit; the error is about the first that was seen.
    pub async fn find(
        given: Option<&Path>,
        made_by: Option<u32>,
        data: &Path,
        account: Option<&Account>,
    ) -> Result<Self, LaunchError> {
        let candidates = match given {
            Some(directory) => vec![directory.to_owned()],
            None => candidates(),
        };
        let mut refusal = None;
        for directory in candidates {
            let suitable = Self::of(&directory, account).await.and_then(|found| {
                found.supported()?;
                found.made(made_by, data)?;
                Ok(found)
            });
            match suitable {
                Ok(found) => return Ok(found),
                // A directory without the programs is only news when somebody named it.
                Err(LaunchError::NotThere { .. }) if given.is_none() => {}
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
        Err(refusal.unwrap_or(LaunchError::NoPostgres))
    }

    /// The program's path.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    async fn of(directory: &Path, account: Option<&Account>) -> Result<Self, LaunchError> {
        // Children start in /, so a relative path would be lost.
        let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
        for name in ["initdb", "postgres"] {
            if !directory.join(name).is_file() {
                return Err(LaunchError::NotThere { directory, name });
            }
        }
        let program = directory.join("postgres");
        let output = account::command(&program, account)
            .arg("--version")
            .output()
            .await;
        let (detail, text) = match output {
            Ok(output) if output.status.success() => (
                String::new(),
                String::from_utf8_lossy(&output.stdout).into_owned(),
            ),
            Ok(output) => (
                String::from_utf8_lossy(&output.stderr).trim().to_owned(),
                String::new(),
            ),
            Err(error) => (error.to_string(), String::new()),
        };
        let (version, major) = version(&text).ok_or_else(|| LaunchError::NotRunnable {
            program,
            user: account.map(|account| account.name.clone()),
            detail,
        })?;
        Ok(Self {
            directory,
            version,
            major,
        })
    }

    fn supported(&self) -> Result<(), LaunchError> {
        if self.major < OLDEST {
            return Err(LaunchError::TooOld {
                directory: self.directory.clone(),
                version: self.version.clone(),
            });
        }
        Ok(())
    }

    fn made(&self, made_by: Option<u32>, data: &Path) -> Result<(), LaunchError> {
        match made_by {
            Some(made_by) if made_by != self.major => Err(LaunchError::OtherMajor {
                data: data.to_owned(),
                made_by,
                found: self.major,
                directory: self.directory.clone(),
            }),
            _ => Ok(()),
        }
    }
}

/// `postgres (PostgreSQL) 15.14 (Debian …)` as the text after the name, and 15.
fn version(text: &str) -> Option<(String, u32)> {
    let version = text.trim().strip_prefix("postgres (PostgreSQL) ")?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    Some((version.to_owned(), digits.parse().ok()?))
}

/// Directories to look in, best first.
fn candidates() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let asked = std::process::Command::new("pg_config")
        .arg("--bindir")
        .output();
    if let Ok(output) = asked {
        found.push(PathBuf::from(
            String::from_utf8_lossy(&output.stdout).trim(),
        ));
    }
    // Debian; Red Hat; Homebrew on its three systems; and what `make install` does.
    for (parent, prefix) in [
        ("/usr/lib/postgresql", ""),
        ("/usr", "pgsql-"),
        ("/opt/homebrew/opt", "postgresql@"),
        ("/usr/local/opt", "postgresql@"),
        ("/home/linuxbrew/.linuxbrew/opt", "postgresql@"),
    ] {
        found.extend(newest_first(Path::new(parent), prefix));
    }
    found.push(PathBuf::from("/usr/local/pgsql/bin"));
    // Not a setting of ours: the machine's own way to find programs.
    let path = std::env::var_os("PATH").unwrap_or_default();
    found.extend(std::env::split_paths(&path));
    // An empty entry means the current directory, where nobody put programs for us.
    found.retain(|directory| directory.is_absolute());
    found
}

/// `parent/prefixN/bin` for all N, the largest first.
fn newest_first(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let number = name.to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((number, entry.path().join("bin")))
        })
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_the_programs_print_them() {
        let major = |text| version(text).map(|(_, major)| major);
        assert_eq!(
            major("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"),
            Some(15)
        );
        assert_eq!(major("postgres (PostgreSQL) 19beta1"), Some(19));
        assert_eq!(major("initdb: error"), None);
    }

    #[test]
    fn the_newest_version_comes_first() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["pg-9", "pg-17", "pg-15", "pg-old", "other"] {
            std::fs::create_dir(parent.path().join(name)).unwrap();
        }
        let found = newest_first(parent.path(), "pg-");
        let expected = ["pg-17/bin", "pg-15/bin", "pg-9/bin"];
        assert_eq!(found, expected.map(|name| parent.path().join(name)));
    }

    #[tokio::test]
    async fn a_named_directory_must_hold_the_programs() {
        let empty = tempfile::tempdir().unwrap();
        let error = Binaries::find(Some(empty.path()), None, Path::new("d"), None)
            .await
            .unwrap_err();
        assert!(error.told().contains("initdb"), "{}", error.told());
    }
}
