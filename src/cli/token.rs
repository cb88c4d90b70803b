//! `rowcast token`: a token for trying things out, made with the configured secret.
//!
//! It promises that the relay with the same settings takes it: audience, issuer and the place of the
//! role come from there. It does not know whether the role exists.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use super::print::say;
use super::{Told, access};
use crate::auth::{RolePath, Secret, token};
use crate::causes::Causes;
use crate::config::Access;

/// Prints a token for `role` with these claims, good from now on for the time `expires`.
pub(super) fn run(
    access: &Access,
    role: Option<&str>,
    claims: &[(String, Value)],
    expires: Duration,
) -> Result<(), Told> {
    say!(
        "{}",
        make(access, role, claims, expires, SystemTime::now())?
    );
    Ok(())
}

fn make(
    access: &Access,
    role: Option<&str>,
    claims: &[(String, Value)],
    expires: Duration,
    now: SystemTime,
) -> Result<String, Told> {
    let judge = access::authenticator(access)?;
    let Some(secret) = &access.jwt_secret else {
        return Err(Told::new(
            "there is no secret to sign with",
            "no --jwt-secret and no ROWCAST_JWT_SECRET",
            "the settings that the relay is started with",
        ));
    };
    if let Some(role) = role.filter(|role| !judge.permits(role)) {
        return Err(Told::new(
            format!("the relay would not take the role {role:?}"),
            "it is not in --roles, or can never be taken",
            "another --role",
        ));
    }
    let claims = put_together(access, role, claims, expires, now)?;
    let claims = Value::Object(claims).to_string();
    token::sign(&Secret::new(secret.reveal()), &claims).map_err(|error| {
        Told::new(
            "the token cannot be signed",
            Causes(&error),
            "a --jwt-secret of 32 bytes or more",
        )
    })
}

fn put_together(
    access: &Access,
    role: Option<&str>,
    named: &[(String, Value)],
    expires: Duration,
    now: SystemTime,
) -> Result<Map<String, Value>, Told> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut claims = Map::new();
    claims.insert("iat".to_owned(), now.as_secs().into());
    claims.insert("exp".to_owned(), (now + expires).as_secs().into());
    for (name, value) in [("aud", &access.jwt_audience), ("iss", &access.jwt_issuer)] {
        if let Some(value) = value {
            claims.insert(name.to_owned(), value.as_str().into());
        }
    }
    for (name, value) in named {
        claims.insert(name.clone(), value.clone());
    }
    if let Some(role) = role {
        let place: Option<RolePath> = access.jwt_role_claim.parse().ok();
        place
            .and_then(|place| place.place(role, &mut claims))
            .ok_or_else(|| {
                Told::new(
                    "the role has no place among the claims",
                    format!("it belongs at {}", access.jwt_role_claim),
                    "a --jwt-role-claim that leads to no list, and no --claim at its place",
                )
            })?;
    }
    Ok(claims)
}

/// Reads `name=text` or `name:=json`.
pub(super) fn claim(text: &str) -> Result<(String, Value), String> {
    let Some((name, value)) = text.split_once('=').filter(|(name, _)| !name.is_empty()) else {
        return Err("a claim is name=text or name:=json, as in sub=ann or admin:=true".to_owned());
    };
    let (name, value) = match name.strip_suffix(':') {
        Some(name) => {
            let value = serde_json::from_str(value);
            (
                name,
                value.map_err(|error| format!("what is behind := is no JSON: {error}"))?,
            )
        }
        None => (name, Value::from(value)),
    };
    if ["exp", "iat", "nbf"].contains(&name) {
        return Err("times come from --expires".to_owned());
    }
    Ok((name.to_owned(), value))
}

/// Reads `90`, `90s`, `15m`, `1h` or `7d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let end = text
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => 0,
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(seconds))
        // Beyond a century it is a mistake, and no relay takes times after the year 9999.
        .filter(|total| (1..=36_525 * 86_400).contains(total))
        .map(Duration::from_secs)
        .ok_or_else(|| "a time is a number with s, m, h or d, as in 15m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access() -> Access {
        Access {
            jwt_secret: Some(
                "a secret that is long enough to sign with"
                    .to_owned()
                    .into(),
            ),
            jwt_audience: Some("us".to_owned()),
            jwt_issuer: Some("me".to_owned()),
            jwt_role_claim: ".app.role".to_owned(),
            cookie: "__Host-rowcast".to_owned(),
            ..Access::default()
        }
    }

    #[tokio::test]
    async fn the_relay_with_the_same_settings_takes_the_token() {
        let now = SystemTime::now();
        let claims = [claim("sub=ann").unwrap(), claim(r#"app:={"n":3}"#).unwrap()];
        let hour = Duration::from_hours(1);
        let token = make(&access(), Some("web_user"), &claims, hour, now).unwrap();
        let judge = access::authenticator(&access()).unwrap();
        let identity = judge.verify(&token, now).await.unwrap();
        assert_eq!(identity.role.as_deref(), Some("web_user"));
        assert!(identity.claims.contains(r#""sub":"ann""#));
        assert!(identity.claims.contains(r#""n":3"#));
        assert!(judge.verify(&token, now + hour * 2).await.is_err());
    }

    #[test]
    fn a_role_that_no_relay_takes_gets_no_token() {
        let hour = Duration::from_hours(1);
        let told = make(&access(), Some("pg_monitor"), &[], hour, SystemTime::now());
        assert!(told.unwrap_err().to_string().contains("--role"));
    }

    #[test]
    fn times_and_claims_are_read_as_written() {
        for (text, seconds) in [
            ("90", 90),
            ("90s", 90),
            ("15m", 900),
            ("1h", 3600),
            ("7d", 604_800),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)));
        }
        for wrong in [
            "",
            "0",
            "h",
            "-1",
            "1.5h",
            "1 h",
            "1w",
            "99999999999999999999d",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(claim("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(claim("a:=true"), Ok(("a".into(), true.into())));
        for wrong in ["a", "=b", "exp=1", "exp:=1", "a:=b"] {
            assert!(claim(wrong).is_err(), "{wrong}");
        }
    }
}
