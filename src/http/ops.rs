//! What operators and their machines ask: alive, ready, how much.
//!
//! Alive is always yes, and never depends on the database: a relay that lost it keeps its streams.
//! Ready is what [`Health`] says. It decides nothing itself.

use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde_json::json;

use super::{Response, body};
use crate::health::Health;
use crate::metrics::Metrics;

/// The methods that these paths answer.
pub const METHODS: &str = "GET, HEAD, OPTIONS";

fn respond(status: StatusCode, kind: &'static str, text: String) -> Response {
    let mut response = Response::new(body::full(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The process answers.
#[must_use]
pub fn livez() -> Response {
    respond(
        StatusCode::OK,
        "text/plain; charset=utf-8",
        "ok\n".to_owned(),
    )
}

/// 200 when the relay should get traffic, otherwise 503 and every reason why not.
#[must_use]
pub fn readyz(health: &Health) -> Response {
    let reasons = health.unready();
    if reasons.is_empty() {
        let ready = json!({"status": "ready"});
        return respond(StatusCode::OK, "application/json", ready.to_string());
    }
    let unready = json!({"status": "not ready", "reasons": reasons});
    respond(
        StatusCode::SERVICE_UNAVAILABLE,
        "application/json",
        unready.to_string(),
    )
}

/// Every counter, as `OpenMetrics` text.
#[must_use]
pub fn metrics(metrics: &Metrics) -> Response {
    match metrics.text() {
        Ok(text) => respond(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            text,
        ),
        Err(error) => {
            tracing::error!(%error, "the counters could not be written");
            respond(
                StatusCode::INTERNAL_SERVER_ERROR,
                "text/plain; charset=utf-8",
                "the counters could not be written\n".to_owned(),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn text(response: Response) -> String {
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    fn ready() -> Health {
        let health = Health::new();
        health.set_listener(true);
        health.set_catalog();
        health.polled();
        health
    }

    #[tokio::test]
    async fn ready_is_earned() {
        let response = readyz(&Health::new());
        assert_eq!(response.status(), 503);
        let told: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
        assert_eq!(told["reasons"].as_array().unwrap().len(), 3);

        let response = readyz(&ready());
        assert_eq!(response.status(), 200);
        assert_eq!(text(response).await, r#"{"status":"ready"}"#);
    }

    #[tokio::test]
    async fn a_relay_that_stops_is_not_ready_but_alive() {
        let health = ready();
        health.set_draining();
        let response = readyz(&health);
        assert_eq!(response.status(), 503);
        assert!(text(response).await.contains("shutting down"));
        assert_eq!(livez().status(), 200);
    }

    #[tokio::test]
    async fn the_counters_are_openmetrics() {
        let response = metrics(&Metrics::new());
        let kind = response.headers()[CONTENT_TYPE].to_str().unwrap();
        assert!(kind.starts_with("application/openmetrics-text"));
        assert!(text(response).await.ends_with("# EOF\n"));
    }
}
