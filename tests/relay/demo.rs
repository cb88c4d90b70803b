//! The private cluster: open to visitors, and private where somebody has signed in.

use hyper::{Method, StatusCode};

use crate::harness::{Answer, Relay};

const JSON: (&str, &str) = ("content-type", "application/json");

async fn demo(arguments: &[&str]) -> (Relay, tempfile::TempDir) {
    let directory = tempfile::Builder::new()
        .prefix("rowcast-demo")
        .tempdir_in("/tmp")
        .unwrap();
    let (relay, _database) = Relay::demo_with(&directory.path().join("d"), arguments).await;
    (relay, directory)
}

async fn sign_in(relay: &Relay, body: &str, headers: &[(&str, &str)]) -> Answer {
    let headers: Vec<_> = headers.iter().copied().chain([JSON]).collect();
    relay
        .request(Method::POST, "/demo/sign-in", &headers, body)
        .await
}

async fn bearer(relay: &Relay, name: &str) -> String {
    let answer = sign_in(relay, &format!(r#"{{"name":"{name}"}}"#), &[]).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.json()["name"], name);
    assert_eq!(answer.json()["expires_in"], 900);
    format!("Bearer {}", answer.json()["token"].as_str().unwrap())
}

#[tokio::test]
async fn the_demo_is_open_to_visitors_and_keeps_reminders_private() {
    let (relay, directory) = demo(&[]).await;
    let visitor = relay.get("/rest/v1/cards?id=eq.1").await;
    assert_eq!(visitor.json()[0]["id"], 1);
    let written = relay
        .request(
            Method::PATCH,
            "/rest/v1/cards?id=eq.1",
            &[JSON],
            r#"{"title":"by a visitor"}"#,
        )
        .await;
    assert_eq!(written.status, StatusCode::NO_CONTENT);
    let refused = relay.get("/rest/v1/reminders").await;
    assert_eq!(refused.json()["code"], "42501");

    let (ann, bob) = (bearer(&relay, "Ann").await, bearer(&relay, "Bob").await);
    let as_ann = [("authorization", ann.as_str()), JSON];
    let as_bob = [("authorization", bob.as_str()), JSON];
    let post = async |headers: &[(&str, &str)], body: &str| {
        relay
            .request(Method::POST, "/rest/v1/reminders", headers, body)
            .await
    };
    let kept = post(&as_ann, r#"{"text":"mine"}"#).await;
    assert_eq!(kept.status, StatusCode::CREATED);
    let read = async |headers: &[(&str, &str)]| {
        let answer = relay
            .request(Method::GET, "/rest/v1/reminders", headers, "")
            .await;
        answer.json().as_array().unwrap().clone()
    };
    let anns = read(&as_ann).await;
    assert_eq!(anns.len(), 1);
    assert_eq!(read(&as_bob).await.len(), 0);
    // Nor can anybody put one into somebody else's list.
    let forged = format!(
        r#"{{"text":"forged","person_id":{}}}"#,
        anns[0]["person_id"]
    );
    assert_eq!(post(&as_bob, &forged).await.status, StatusCode::FORBIDDEN);

    let foreign = sign_in(
        &relay,
        r#"{"name":"Ann"}"#,
        &[("origin", "https://evil.example")],
    );
    assert_eq!(foreign.await.status, StatusCode::FORBIDDEN);
    // The same person and the same secret after a restart.
    relay.end().await;
    let (relay, _database) = Relay::demo_with(&directory.path().join("d"), &[]).await;
    let again = relay
        .request(Method::GET, "/rest/v1/reminders", &as_ann, "")
        .await;
    assert_eq!(again.json()[0]["text"], "mine");
    relay.end().await;
}

#[tokio::test]
async fn an_operator_with_settings_of_his_own_has_the_demo_without_its_sign_in() {
    let (relay, _directory) = demo(&["--anon-role", "demo_visitor"]).await;
    let answer = sign_in(&relay, r#"{"name":"Ann"}"#, &[]).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert_eq!(
        relay.get("/rest/v1/lists").await.status,
        StatusCode::OK,
        "the role that was given reads"
    );
    relay.end().await;
}
