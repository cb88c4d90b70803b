//! Who may come in when the relay runs its private cluster and nobody said otherwise.
//!
//! Promises that the demo's identity is complete or not used at all: as soon as the operator gives
//! one setting about callers, all of them are his. The secret is made once and kept beside the data,
//! for this user alone, so that tokens outlive a restart. The roles are made by `sql/demo.sql`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};

use super::{Told, access};
use crate::api::demo::MEMBER;
use crate::config::{Access, Config};

/// The login of requests.
pub(super) const LOGIN: &str = "rowcast_api";
/// The role of those who bring no token.
const VISITOR: &str = "demo_visitor";
/// The secret's file in the data directory.
const FILE: &str = "demo-secret";

/// Whether nothing was said about who callers are.
pub(super) fn is_wanted(config: &Config) -> bool {
    let access = &config.access;
    let names = [&access.jwt_audience, &access.jwt_issuer, &config.api_url];
    names.into_iter().all(Option::is_none) && access.roles.is_empty() && access::is_open(access)
}

/// The settings of the demo, with the secret of this data directory.
pub(super) fn access(given: &Access, data_dir: &Path) -> Result<Access, Told> {
    let file = data_dir.join(FILE);
    let secret = secret(&file).map_err(|error| {
        Told::new(
            format!("the demo's secret {} cannot be kept", file.display()),
            error,
            "another --data-dir",
        )
    })?;
    Ok(Access {
        anon_role: Some(VISITOR.to_owned()),
        jwt_secret: Some(secret.into()),
        roles: vec![VISITOR.to_owned(), MEMBER.to_owned()],
        ..given.clone()
    })
}

/// The text in the file, which is made when it is missing. The directory is locked by the cluster.
fn secret(file: &Path) -> io::Result<String> {
    match fs::read_to_string(file) {
        // A relay that was killed here may have left it empty.
        Ok(text) if !text.is_empty() => return Ok(text),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut bytes = [0; 48];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_no_chance| io::Error::other("the system gave no random bytes"))?;
    let text = URL_SAFE_NO_PAD.encode(bytes);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(file)?.write_all(text.as_bytes())?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        config: Config,
    }

    fn config(flags: &[&str]) -> Config {
        let flags = ["rowcast"].iter().chain(flags);
        Flags::try_parse_from(flags).unwrap().config
    }

    #[test]
    fn one_setting_about_callers_and_the_demo_has_no_say() {
        assert!(is_wanted(&config(&["--listen", "127.0.0.1:0"])));
        for flags in [
            ["--anon-role", "x"],
            ["--jwt-secret", "x"],
            ["--jwks-file", "x"],
            ["--jwks-url", "x"],
            ["--roles", "x"],
            ["--api-url", "x"],
        ] {
            assert!(!is_wanted(&config(&flags)), "{flags:?}");
        }
    }

    #[test]
    fn the_secret_is_made_once_and_is_ours_alone() {
        let directory = tempfile::tempdir().unwrap();
        let given = config(&[]).access;
        let read = || {
            let access = access(&given, directory.path()).unwrap();
            access.jwt_secret.unwrap().reveal().to_owned()
        };
        let first = read();
        assert_eq!(first.len(), 64);
        assert_eq!(first, read());
        let file = directory.path().join(FILE);
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(&file, "").unwrap();
        assert_eq!(read().len(), 64);
    }
}
