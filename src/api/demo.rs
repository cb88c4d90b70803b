//! `POST /demo/sign-in`: a token for a name, on the demo board.
//!
//! Promises a token of a short life, for the person whom the database calls by that name, and only
//! to who asks as no other site's page can. There is no password: on this board one is who one says,
//! which is why nothing but the demo serves this. It does not know what a member may do.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::StatusCode;
use hyper::http::request::Parts;
use serde::Deserialize;
use serde_json::json;

use super::problem::{JSON, Problem, logged};
use super::reply::Reply;
use super::rows::{Rows, json_body};
use crate::auth::{Secret, token};
use crate::http::Response;
use crate::http::cors::{Origin, Origins};
use crate::postgres::pool::Lease;
use crate::postgres::transaction::{self, Context, Terms};
use crate::postgres::untyped::untyped;
use crate::rows::Error;

/// The role of those who are signed in.
pub const MEMBER: &str = "demo_member";
/// How long a token is good.
const LIFETIME: Duration = Duration::from_mins(15);
/// Longest name, in characters; the table `people` says the same.
const NAME: usize = 40;

/// What tokens are made with.
#[derive(Debug)]
pub struct SignIn {
    /// The secret that the relay holds tokens against.
    pub secret: Secret,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    name: String,
}

/// Somebody whom the database knows.
struct Person {
    id: String,
    name: String,
}

/// Signs somebody in: 200 `{"token":"…","name":"Ann","expires_in":900}`.
pub async fn respond(sign_in: &SignIn, rows: &Rows, head: &Parts, body: &[u8]) -> Response {
    let answered = async {
        let name = name(head, body)?;
        let person = known(rows, &name).await.map_err(|error| logged(&error))?;
        let token = made(sign_in, &person, SystemTime::now())?;
        Ok::<_, Problem>(welcome(&token, &person.name))
    };
    answered.await.unwrap_or_else(Problem::into_response)
}

/// The name that was given, if it is one and no form of another site has sent it.
fn name(head: &Parts, body: &[u8]) -> Result<String, Problem> {
    if !matches!(Origins::default().judge(head), Origin::Same | Origin::None) {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "RCD01",
            "only pages of this origin may sign in",
        ));
    }
    json_body(&head.headers)?;
    let bad = || {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "PGRST102",
            format!("a name has 1 to {NAME} characters"),
        )
        .hint(r#"send {"name":"Ann"}"#)
    };
    let wanted: Wanted = serde_json::from_slice(body).map_err(|_not_a_name| bad())?;
    let words: Vec<_> = wanted.name.split_whitespace().collect();
    let name = words.join(" ");
    let fits = (1..=NAME).contains(&name.chars().count());
    if !fits || name.contains(char::is_control) {
        return Err(bad());
    }
    Ok(name)
}

/// The person of that name, made known when it is a new one. Runs as the API's login itself.
async fn known(rows: &Rows, name: &str) -> Result<Person, Error> {
    let lease = Lease::take(&rows.pool).await?;
    let context = Context::default();
    let terms = Terms::write(&context, rows.statement_timeout);
    transaction::run(lease, terms, async |client| {
        let sql = "select id, known_as from demo.sign_in($1)";
        let values = [name];
        let values: Vec<_> = untyped(&values).collect();
        let values: Vec<_> = values
            .iter()
            .map(|(value, kind)| (value as _, kind.clone()))
            .collect();
        let rows = client.query_typed(sql, &values).await?;
        let row = rows.first().ok_or(Error::Body("nobody has this name"))?;
        Ok(Person {
            id: row.try_get(0)?,
            name: row.try_get(1)?,
        })
    })
    .await
}

fn made(sign_in: &SignIn, person: &Person, now: SystemTime) -> Result<String, Problem> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let claims = json!({
        "role": MEMBER,
        "sub": person.id,
        "name": person.name,
        "iat": now.as_secs(),
        "exp": (now + LIFETIME).as_secs(),
    });
    token::sign(&sign_in.secret, &claims.to_string()).map_err(|error| {
        tracing::error!(%error, "no token can be made");
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "RCD02",
            "no token can be made",
        )
    })
}

fn welcome(token: &str, name: &str) -> Response {
    let told = json!({ "token": token, "name": name, "expires_in": LIFETIME.as_secs() });
    Reply::json(told.to_string(), JSON).secret().into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Authenticator, Settings};

    const SECRET: &str = "a secret that is long enough to sign with";

    fn head(headers: &[(&str, &str)]) -> Parts {
        let mut request = hyper::Request::post("/demo/sign-in").header("host", "relay.example");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    const OURS: (&str, &str) = ("origin", "http://relay.example");
    const JSON: (&str, &str) = ("content-type", "application/json");

    #[test]
    fn a_name_is_taken_without_the_spaces_around_it() {
        for (body, wanted) in [
            (r#"{"name":"Ann"}"#, "Ann"),
            (r#"{"name":"  Ann \u00a0 Lee\n"}"#, "Ann Lee"),
            (r#"{"name":"Ünï"}"#, "Ünï"),
        ] {
            let name = name(&head(&[OURS, JSON]), body.as_bytes()).unwrap();
            assert_eq!(name, wanted);
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(NAME + 1));
        for body in [
            "",
            "{}",
            "[]",
            r#"{"name":""}"#,
            r#"{"name":" "}"#,
            r#"{"name":7}"#,
            r#"{"name":"a\u0000b"}"#,
            r#"{"name":"Ann","role":"postgres"}"#,
            &long,
        ] {
            let problem = name(&head(&[OURS, JSON]), body.as_bytes()).unwrap_err();
            assert_eq!(problem.status, 400, "{body}");
        }
    }

    #[test]
    fn another_sites_page_signs_nobody_in() {
        let body = br#"{"name":"Ann"}"#;
        let foreign = ("origin", "https://evil.example");
        let cross = ("sec-fetch-site", "cross-site");
        for (headers, status) in [
            (&[foreign, JSON][..], 403),
            (&[cross, JSON], 403),
            (&[OURS, ("content-type", "text/plain")], 415),
            (&[OURS], 415),
        ] {
            assert_eq!(name(&head(headers), body).unwrap_err().status, status);
        }
    }

    #[tokio::test]
    async fn the_token_is_the_persons_and_short_lived() {
        let sign_in = SignIn {
            secret: Secret::new(SECRET),
        };
        let person = Person {
            id: "7".to_owned(),
            name: "Ann".to_owned(),
        };
        let now = SystemTime::now();
        let token = made(&sign_in, &person, now).unwrap();
        let judge = Authenticator::new(Settings {
            secret: Some(Secret::new(SECRET)),
            ..Settings::default()
        });
        let identity = judge.unwrap().verify(&token, now).await.unwrap();
        assert_eq!(identity.role.as_deref(), Some(MEMBER));
        assert!(identity.claims.contains(r#""sub":"7""#));
        let left = identity.expires.unwrap().duration_since(now).unwrap();
        assert!(left <= LIFETIME, "{left:?}");
    }
}
