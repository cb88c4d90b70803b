//! `--print-config` and `--check`: what the settings come to, and whether they make sense.
//!
//! Nothing is started and nobody is asked. Secrets are never printed.

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::print::say;
use super::{IN_FILES, Told, access, database};
use crate::auth::Authenticator;
use crate::config::Config;
use crate::http::cors::Origins;
use crate::postgres::connect::Target;

/// One setting as it was found.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    flag: String,
    value: String,
    from: &'static str,
}

/// Settings whose text holds a password or is one.
const URLS: [&str; 2] = ["database_url", "api_url"];
const SECRETS: [&str; 1] = ["jwt_secret"];

/// Every setting with its value and where that comes from, in the order of `--help`.
pub(super) fn found(command: &clap::Command, matches: &ArgMatches) -> Vec<Setting> {
    let arguments = command
        .get_arguments()
        .filter(|argument| argument.get_env().is_some());
    arguments
        .filter_map(|argument| {
            let id = argument.get_id().as_str();
            let values = matches.get_raw(id);
            let values = values
                .into_iter()
                .flatten()
                .map(|value| value.to_string_lossy());
            let value = values.collect::<Vec<_>>().join(",");
            let from = match matches.value_source(id) {
                Some(ValueSource::CommandLine) => "flag",
                Some(ValueSource::EnvVariable) => "environment",
                Some(_) => "default",
                None => in_file(id).unwrap_or("not set"),
            };
            Some(Setting {
                flag: argument.get_long()?.to_owned(),
                value: masked(id, &value),
                from,
            })
        })
        .collect()
}

/// The variable that names the file with the value, if it is set.
fn in_file(id: &str) -> Option<&'static str> {
    let (_, variable) = IN_FILES.iter().find(|(argument, _)| *argument == id)?;
    std::env::var_os(variable).map(|_file| *variable)
}

fn masked(id: &str, value: &str) -> String {
    if value.is_empty() {
        return String::new();
    }
    if SECRETS.contains(&id) {
        return "(a secret)".to_owned();
    }
    if URLS.contains(&id) {
        let target = Target::from_url(value);
        return target.map_or_else(
            |_| "(cannot be read)".to_owned(),
            |target| target.to_string(),
        );
    }
    // Whatever else is a URL may carry a login, or a key in its query.
    match value.split_once("://") {
        Some((scheme, rest)) if rest.contains(['@', '?']) => {
            let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
            let rest = rest.split('?').next().unwrap_or_default();
            format!("{scheme}://{rest}")
        }
        _ => value.to_owned(),
    }
}

pub(super) fn print(settings: &[Setting]) {
    for setting in settings {
        let Setting { flag, value, from } = setting;
        say!("{:<41} # {from}", format!("--{flag} {value}").trim_end());
    }
}

/// What the settings come to without asking anybody: whose pages may write and watch, and what judges
/// tokens. Tells every mistake at once.
pub(super) fn judged(config: &Config) -> Result<(Origins, Authenticator), Told> {
    fn kept<T>(result: Result<T, Told>, wrong: &mut Vec<String>) -> Option<T> {
        result.map_err(|told| wrong.push(told.to_string())).ok()
    }
    let mut wrong = Vec::new();
    let origins = Origins::new(&config.allow_origin).map_err(|error| {
        Told::new(
            "an allowed origin is not an origin",
            error,
            "--allow-origin https://board.example.com",
        )
    });
    let origins = kept(origins, &mut wrong);
    let auth = kept(access::authenticator(&config.access), &mut wrong);
    let target = kept(database::given(config), &mut wrong).flatten();
    if let Some(target) = target {
        kept(database::api(config, &target), &mut wrong);
    }
    match (origins, auth) {
        (Some(origins), Some(auth)) if wrong.is_empty() => Ok((origins, auth)),
        _ => Err(Told(wrong.join("\nerror: "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_left() {
        for (id, value) in [
            ("database_url", "postgres://u:canary@h/d"),
            ("database_url", "host=h password=canary"),
            ("database_url", "postgres://u:canary@h:x:y"),
            ("api_url", "postgres://u@h/d?password=canary"),
            ("jwt_secret", "canary canary canary canary canary"),
            ("jwks_url", "https://u:canary@issuer.example/keys"),
            ("jwks_url", "https://issuer.example/keys?key=canary"),
        ] {
            let printed = masked(id, value);
            assert!(!printed.contains("canary"), "{printed}");
            assert!(!printed.is_empty());
        }
        assert_eq!(
            masked("jwks_url", "https://i.example/keys"),
            "https://i.example/keys"
        );
        assert_eq!(masked("pool", "8"), "8");
    }
}
