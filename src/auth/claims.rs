//! What a token with a genuine signature must still say.
//!
//! Pure: claims and a clock in, role and expiry out. Promises that a claim of the wrong type is an
//! error and never a missing one, and that what the settings demand must be there. It does not know
//! keys, and not what other claims mean: they are the database's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::value::RawValue;

use super::json::{self, Members};
use super::token::TokenError;

/// How far the clocks of the issuer and ours may be apart, in seconds.
const SKEW: i64 = 30;
/// The last second of the year 9999. Later times are milliseconds by mistake, or an attack.
const LATEST: i64 = 253_402_300_799;

/// What the settings demand of claims.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) audience: Option<String>,
    pub(super) issuer: Option<String>,
    pub(super) role: RolePath,
}

impl Rules {
    /// Checks everything but the role. Returns when the token expires.
    pub(super) fn check(
        &self,
        claims: &Members,
        now: SystemTime,
    ) -> Result<SystemTime, TokenError> {
        let now = seconds(now);
        let expiry = time(claims, "exp")?.ok_or(TokenError::NoExpiry)?;
        if now >= expiry + SKEW {
            return Err(TokenError::Expired);
        }
        for name in ["nbf", "iat"] {
            if time(claims, name)?.is_some_and(|from| now + SKEW < from) {
                return Err(TokenError::NotYet);
            }
        }
        self.check_audience(claims)?;
        self.check_issuer(claims)?;
        let expiry = u64::try_from(expiry).unwrap_or_default();
        Ok(UNIX_EPOCH + Duration::from_secs(expiry))
    }

    /// One name or a list of names (RFC 7519 §4.1.3).
    fn check_audience(&self, claims: &Members) -> Result<(), TokenError> {
        let names = match claims.get("aud") {
            None => Vec::new(),
            Some(names) => json::typed::<String>(names)
                .map(|name| vec![name])
                .or_else(|| json::typed(names))
                .ok_or(TokenError::Type("aud"))?,
        };
        match &self.audience {
            Some(ours) if !names.contains(ours) => Err(TokenError::Audience),
            _ => Ok(()),
        }
    }

    fn check_issuer(&self, claims: &Members) -> Result<(), TokenError> {
        let name: Option<String> = claims
            .get("iss")
            .map(|name| json::typed(name).ok_or(TokenError::Type("iss")))
            .transpose()?;
        if self.issuer.is_some() && self.issuer != name {
            return Err(TokenError::Issuer);
        }
        Ok(())
    }
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .unwrap_or_default()
}

/// Seconds since 1970, which may have a fraction (RFC 7519 §2, as Python's `time.time()` makes them): the second that
/// has begun counts. An exponent is refused like a string: readers round large ones differently.
fn time(claims: &Members, name: &'static str) -> Result<Option<i64>, TokenError> {
    claims
        .get(name)
        .map(|value| {
            let (whole, fraction) = value.get().split_once('.').unwrap_or((value.get(), "0"));
            let is_plain = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_digit());
            Some(whole)
                .filter(|whole| is_plain(whole) && is_plain(fraction))
                .and_then(|whole| whole.parse().ok())
                .filter(|seconds| (0..=LATEST).contains(seconds))
                .ok_or(TokenError::NotATime(name))
        })
        .transpose()
}

/// Where in the claims the role is, as in `.role`, `."https://app.example/role"` or `.roles[0]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolePath(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Member(String),
    Item(usize),
}

/// A path to the role that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a path to a claim like \".role\", \".\\\"a b\\\".role\" or \".roles[0]\"")]
pub struct NotAPath(pub String);

impl Default for RolePath {
    fn default() -> Self {
        Self(vec![Step::Member("role".to_owned())])
    }
}

impl std::str::FromStr for RolePath {
    type Err = NotAPath;

    fn from_str(text: &str) -> Result<Self, NotAPath> {
        let wrong = || NotAPath(text.to_owned());
        let mut steps = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (step, left) = step(rest).ok_or_else(wrong)?;
            steps.push(step);
            rest = left;
        }
        matches!(steps.first(), Some(Step::Member(_)))
            .then_some(Self(steps))
            .ok_or_else(wrong)
    }
}

/// The first step of a path, and what follows it.
fn step(text: &str) -> Option<(Step, &str)> {
    if let Some(item) = text.strip_prefix('[') {
        let (index, rest) = item.split_once(']')?;
        let digits = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
        return digits
            .then(|| index.parse().ok())
            .flatten()
            .map(|index| (Step::Item(index), rest));
    }
    let member = text.strip_prefix('.')?;
    if let Some(quoted) = member.strip_prefix('"') {
        let (name, rest) = quoted.split_once('"')?;
        return (!name.is_empty()).then(|| (Step::Member(name.to_owned()), rest));
    }
    let end = member
        .find(|letter: char| !(letter.is_alphanumeric() || "_$@-".contains(letter)))
        .unwrap_or(member.len());
    let (name, rest) = member.split_at(end);
    (!name.is_empty()).then(|| (Step::Member(name.to_owned()), rest))
}

impl RolePath {
    /// The role in the claims, if there is one.
    pub(super) fn find(&self, claims: &Members) -> Result<Option<String>, TokenError> {
        let mut steps = self.0.iter();
        let Some(Step::Member(first)) = steps.next() else {
            return Ok(None);
        };
        let Some(mut value) = claims.get(first).cloned() else {
            return Ok(None);
        };
        for step in steps {
            match deeper(&value, step)? {
                Some(inner) => value = inner,
                None => return Ok(None),
            }
        }
        json::typed::<String>(&value)
            .filter(|role| !role.is_empty())
            .map(Some)
            .ok_or(TokenError::Role)
    }

    /// Adds `role` to claims where [`RolePath::find`] would look for it. `None` for a path that
    /// leads into a list, to something that is there already, or into what is no object.
    #[must_use]
    pub fn place(
        &self,
        role: &str,
        claims: &mut serde_json::Map<String, serde_json::Value>,
    ) -> Option<()> {
        let mut names = Vec::new();
        for step in &self.0 {
            match step {
                Step::Member(name) => names.push(name),
                Step::Item(_) => return None,
            }
        }
        let (last, way) = names.split_last()?;
        let mut object = claims;
        for name in way {
            let inner = object.entry(name.as_str());
            object = inner
                .or_insert_with(|| serde_json::json!({}))
                .as_object_mut()?;
        }
        object
            .insert((*last).clone(), role.into())
            .is_none()
            .then_some(())
    }
}

/// A step into a value of the wrong kind is an error: a list where an object should be is not a
/// token without a role.
fn deeper(value: &RawValue, step: &Step) -> Result<Option<Box<RawValue>>, TokenError> {
    match step {
        Step::Member(name) => json::typed::<Members>(value)
            .map(|mut members| members.remove(name))
            .ok_or(TokenError::Role),
        Step::Item(index) => json::typed::<Vec<Box<RawValue>>>(value)
            .map(|items| items.into_iter().nth(*index))
            .ok_or(TokenError::Role),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(path: &str, claims: &str) -> Result<Option<String>, TokenError> {
        let claims = json::object(claims.as_bytes()).unwrap();
        path.parse::<RolePath>().unwrap().find(&claims)
    }

    #[test]
    fn the_role_is_found_where_the_path_leads() {
        for (path, claims) in [
            (".role", r#"{"role":"ann"}"#),
            (
                ".\"https://x.example/r\".role",
                r#"{"https://x.example/r":{"role":"ann"}}"#,
            ),
            (".roles[0]", r#"{"roles":["ann","bob"]}"#),
            (".a[1].b-c", r#"{"a":[0,{"b-c":"ann"}]}"#),
            (".a[0][0]", r#"{"a":[["ann"]]}"#),
        ] {
            assert_eq!(role(path, claims), Ok(Some("ann".into())), "{path}");
        }
    }

    #[test]
    fn a_role_that_is_missing_is_told_from_one_that_is_wrong() {
        assert_eq!(role(".role", "{}"), Ok(None));
        assert_eq!(role(".roles[2]", r#"{"roles":["ann"]}"#), Ok(None));
        assert_eq!(role(".app.role", r#"{"app":{}}"#), Ok(None));
        for (path, claims) in [
            (".role", r#"{"role":""}"#),
            (".role", r#"{"role":null}"#),
            (".role", r#"{"role":["ann"]}"#),
            (".roles[0]", r#"{"roles":"ann"}"#),
            (".app.role", r#"{"app":"ann"}"#),
        ] {
            assert_eq!(role(path, claims), Err(TokenError::Role), "{path} {claims}");
        }
    }

    #[test]
    fn a_path_that_is_none_is_told() {
        for wrong in [
            "",
            "role",
            ".",
            "..role",
            ".role.",
            ".role[",
            ".role[]",
            ".role[-1]",
            ".role[+1]",
            ".role[x]",
            "[0]",
            ".\"role",
            ".\"\"",
            ".role x",
            ".a\"b\"",
        ] {
            assert!(wrong.parse::<RolePath>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_role_is_placed_where_it_is_found() {
        for path in [".role", ".\"a b\".role"] {
            let path: RolePath = path.parse().unwrap();
            let mut claims = serde_json::Map::new();
            path.place("ann", &mut claims).unwrap();
            let text = serde_json::to_string(&claims).unwrap();
            let members = json::object(text.as_bytes()).unwrap();
            assert_eq!(path.find(&members), Ok(Some("ann".into())));
            assert_eq!(path.place("bob", &mut claims), None);
        }
        let list: RolePath = ".roles[0]".parse().unwrap();
        assert_eq!(list.place("ann", &mut serde_json::Map::new()), None);
    }
}
