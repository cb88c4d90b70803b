//! The second listener, for operators alone: health, counters, and what became of one transaction.
//!
//! What it tells of screens (which tables, which roles, which keys) is nobody else's business, so it
//! has an address of its own, which is not set unless somebody sets it. A browser on the same machine
//! is no operator: a request that names a host by name or an origin is refused, so that no page
//! can reach it, whatever it makes a name mean.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, ORIGIN};
use hyper::{Method, StatusCode};

use super::{Request, Response, body, cors, exchange, ops};
use crate::health::Health;
use crate::metrics::Metrics;

/// Says what became of a transaction, as JSON.
pub type Trace = Arc<dyn Fn(u64) -> String + Send + Sync>;

/// Everything that the second listener answers with.
#[derive(Clone)]
pub struct Debug {
    /// What `/readyz` tells.
    pub health: Arc<Health>,
    /// What `/metrics` tells.
    pub metrics: Arc<Metrics>,
    /// What `/debug/trace` tells.
    pub trace: Trace,
}

impl Debug {
    /// As a function that [`super::server::Server`] takes.
    pub fn into_handler(
        self,
    ) -> impl Fn(Request) -> BoxFuture<'static, Response> + Clone + Send + Sync + 'static {
        move |request| {
            let debug = self.clone();
            async move { debug.handle(request).await }.boxed()
        }
    }

    fn handle(&self, request: Request) -> impl Future<Output = Response> + Send {
        let (debug, metrics) = (self.clone(), Arc::clone(&self.metrics));
        async move {
            let route = route(request.uri().path());
            exchange::run(&metrics, route, request, |request| async move {
                debug.answer(route, &request)
            })
            .await
        }
    }

    fn answer(&self, route: &str, request: &Request) -> Response {
        if !is_an_operators(request) {
            return said(
                StatusCode::FORBIDDEN,
                "this address is for operators: name it by its number, and not from a page\n",
            );
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return said(
                StatusCode::METHOD_NOT_ALLOWED,
                "only GET is answered here\n",
            );
        }
        match route {
            "/livez" => ops::livez(),
            "/readyz" => ops::readyz(&self.health),
            "/metrics" => ops::metrics(&self.metrics),
            "/debug/trace" => match txid(request.uri().query().unwrap_or_default()) {
                Some(txid) => json((self.trace)(txid)),
                None => said(StatusCode::BAD_REQUEST, "try: /debug/trace?txid=812345\n"),
            },
            _ => said(StatusCode::NOT_FOUND, "there is nothing at this path\n"),
        }
    }
}

/// A bounded label.
fn route(path: &str) -> &'static str {
    match path {
        "/livez" | "/healthz" => "/livez",
        "/readyz" => "/readyz",
        "/metrics" => "/metrics",
        "/debug/trace" => "/debug/trace",
        _ => "_OTHER",
    }
}

fn txid(query: &str) -> Option<u64> {
    query.strip_prefix("txid=")?.parse().ok()
}

fn is_an_operators(request: &Request) -> bool {
    let headers = request.headers();
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| request.uri().host()).unwrap_or_default();
    let is_number = |host: &str| host == "localhost" || host.parse::<IpAddr>().is_ok();
    let by_number = cors::host(host).is_some_and(is_number);
    by_number && !headers.contains_key(ORIGIN) && !headers.contains_key("sec-fetch-site")
}

fn json(text: String) -> Response {
    let mut response = Response::new(body::full(text));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn said(status: StatusCode, text: &'static str) -> Response {
    let mut response = Response::new(body::full(text));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
