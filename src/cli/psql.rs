//! `rowcast psql`: the database's own shell, on the database that rowcast serves.
//!
//! Promises psql's own behaviour, Ctrl-C and exit status included, because it becomes psql. It
//! does not choose the database.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::postgres::connect::Target;

/// Why there is no shell.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PsqlError {
    /// It is not installed.
    #[error("psql was not found")]
    Missing,
    /// It is installed and does not start.
    #[error("psql cannot be started")]
    Refused(#[source] io::Error),
}

impl PsqlError {
    /// Three lines for a person: what happened, what was found, what to try.
    #[must_use]
    pub fn told(&self) -> String {
        let (found, advice) = match self {
            Self::Missing => (
                "no psql in PATH or beside the server's programs".to_owned(),
                "apt-get install postgresql-client (Debian), dnf install postgresql (Fedora), \
                 brew install libpq (macOS)",
            ),
            Self::Refused(source) => (source.to_string(), "psql --version in the same shell"),
        };
        format!("{self}\n  found: {found}\n  try:   {advice}")
    }
}

/// Becomes psql on `target`: the one in `binaries` when there is one, else the one in PATH.
/// `arguments` are psql's own. Returns only when that fails.
///
/// # Errors
/// When psql is missing or cannot be started.
pub fn run(
    target: &Target,
    binaries: Option<&Path>,
    arguments: &[OsString],
) -> Result<Infallible, PsqlError> {
    // Not a child: Ctrl-C in a terminal hits a whole group, and must cancel a query, not us.
    let error = command(target, binaries, arguments).exec();
    Err(match error.kind() {
        io::ErrorKind::NotFound => PsqlError::Missing,
        _ => PsqlError::Refused(error),
    })
}

fn command(target: &Target, binaries: Option<&Path>, arguments: &[OsString]) -> Command {
    let fitting = binaries.map(|directory| directory.join("psql"));
    let program = fitting
        .filter(|program| program.is_file())
        .unwrap_or_else(|| "psql".into());
    let (connection, environment) = target.psql_arguments();
    let mut command = Command::new(program);
    command.args(connection).args(arguments).envs(environment);
    command
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::postgres::embedded::tests::throw_away;

    #[test]
    fn the_fitting_psql_is_preferred_and_gets_everything() {
        let binaries = tempfile::tempdir().unwrap();
        let program = binaries.path().join("psql");
        std::fs::write(&program, "#!/bin/sh\necho \"$PGPASSWORD|$*\"\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let target = Target::from_url("postgres://ann:pw@db/app").unwrap();
        let output = command(&target, Some(binaries.path()), &["-At".into()])
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            "pw|-d host=db user=ann dbname=app -At\n"
        );
    }

    #[test]
    fn a_directory_without_psql_falls_back_to_the_path() {
        let binaries = tempfile::tempdir().unwrap();
        let target = Target::from_url("postgres://db/app").unwrap();
        let command = command(&target, Some(binaries.path()), &[]);
        assert_eq!(command.get_program(), "psql");
    }

    #[test]
    fn a_missing_psql_names_the_package() {
        let told = PsqlError::Missing.told();
        assert!(told.contains("postgresql-client"), "{told}");
        assert_eq!(told.lines().count(), 3);
    }

    #[tokio::test]
    async fn a_pasted_line_reaches_the_database() {
        let Some((_place, cluster)) = throw_away().await else {
            return;
        };
        let line = cluster.target("postgres").psql_line();
        let output = tokio::process::Command::new("sh")
            .arg("-c")
            .arg(format!("{line} -Atc 'select current_user'"))
            .output()
            .await
            .unwrap();
        // 127 is the shell's word for a program that is not there.
        if output.status.code() != Some(127) {
            assert_eq!(String::from_utf8(output.stdout).unwrap(), "postgres\n");
        }
        cluster.stop().await;
    }
}
