//! Tokens from the command line to the running relay, and what they are changed for.

use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::{Method, StatusCode};
use serde_json::json;

use crate::harness::{Relay, Stream, command, database};
use crate::policies::ROLES;

const SECRET: &str = "a secret that is long enough to sign with";

/// What `rowcast token` prints.
async fn token(arguments: &[&str]) -> String {
    let output = command()
        .args(["token", "--role", "web_user", "--jwt-secret", SECRET])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn a_token_from_the_command_line_is_good_for_a_ticket() {
    let database = database().await;
    let relay = Relay::start(&database, &["--jwt-secret", SECRET, "--roles", "web_user"]).await;
    let header = format!(
        "Bearer {}",
        token(&["--claim", "sub=ann", "--expires", "5m"]).await
    );
    let ask =
        async |headers: &[(&str, &str)]| relay.request(Method::POST, "/tickets", headers, "").await;
    let answer = ask(&[("authorization", &header)]).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(answer.json()["ticket"].as_str().unwrap().len(), 43);
    assert_eq!(answer.json()["expires_in"], 30);

    let none = ask(&[]).await;
    assert_eq!(
        (none.status.as_u16(), &none.json()["code"]),
        (401, &"PGRST302".into())
    );
    assert_eq!(none.header("www-authenticate"), "Bearer");

    let forged = format!("{header}x");
    let refused = ask(&[("authorization", &forged)]).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.json()["code"]),
        (401, &"PGRST301".into())
    );
    assert!(
        refused
            .header("www-authenticate")
            .starts_with("Bearer error=\"invalid_token\"")
    );

    let foreign = [
        ("authorization", header.as_str()),
        ("origin", "https://evil.example"),
    ];
    assert_eq!(ask(&foreign).await.status, StatusCode::FORBIDDEN);
    let read = relay.request(Method::GET, "/tickets", &[], "").await;
    assert_eq!(read.header("allow"), "POST, OPTIONS");
}

#[tokio::test]
async fn a_secret_that_can_be_guessed_refuses_to_start() {
    let database = database().await;
    for (arguments, told) in [
        (
            ["--jwt-secret", "short"],
            "the secret has 5 bytes, and needs at least 32",
        ),
        (["--anon-role", "pg_monitor"], "can never be taken"),
        (["--jwks-url", "http://issuer.example/"], "must be https"),
        (["--jwks-file", "/nowhere.json"], "/nowhere.json"),
        (["--jwt-role-claim", "role"], "role claim"),
    ] {
        let output = command()
            .args(["--database-url", &database.url])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(told), "{error}");
        assert!(error.contains("try:"), "{error}");
    }
}

/// A key set of these secrets.
fn set(secrets: &[&str]) -> String {
    let key = |secret: &&str| json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode(secret)});
    json!({"keys": secrets.iter().map(key).collect::<Vec<_>>()}).to_string()
}

#[tokio::test]
async fn what_a_removed_key_has_opened_ends_and_nothing_else() {
    const OTHER: &str = "another secret, which is long enough as well";
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("keys.json");
    std::fs::write(&file, set(&[SECRET, OTHER])).unwrap();
    let database = database().await;
    database.sql(ROLES).await;
    let api = database.login("api_login");
    let arguments = ["--api-url", &api, "--jwks-file", file.to_str().unwrap()];
    let relay = Relay::start(&database, &arguments).await;
    database
        .sql(
            "create table tasks (id int primary key); grant select on tasks to member;
             select rowcast.watch('tasks')",
        )
        .await;
    let open = async |secret: &str, who: &str| {
        let mut token = command();
        token.args(["token", "--role", "member", "--jwt-secret", secret]);
        let made = token.args(["--claim", who]).output().await.unwrap();
        let bearer = format!("Bearer {}", String::from_utf8_lossy(&made.stdout).trim());
        let url = format!("{}/rest/v1/tasks", relay.url);
        let mut stream = Stream::with(&url, None, &[("authorization", &*bearer)]).await;
        stream.until(|event| event.json()["upToDate"] == true).await;
        stream
    };
    let mut anns = open(SECRET, "sub=ann").await;
    let mut bobs = open(OTHER, "sub=bob").await;

    std::fs::write(&file, set(&[OTHER])).unwrap();
    let last = anns.until(|event| event.data.contains("error")).await;
    assert_eq!(last.json()["error"]["code"], "PGRST303");
    assert_eq!(anns.next().await, None);
    let txid = database.commit("insert into tasks values (1)").await;
    bobs.until(|event| event.has_txid(&txid)).await;
}
