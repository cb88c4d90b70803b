//! Which room answers a request.
//!
//! [`Route::of`] is pure and decides on the path alone; whatever comes later judges the resolved
//! route and never the path again, so that no second spelling of a path can have a second answer.
//! [`Router`] then does, in this order: measure, judge the origin, refuse what the edge refuses,
//! read the body, hand over to [`Api`], and add the headers that every response carries. It does not
//! know what a row or a view is.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_ENCODING, HOST, HeaderMap, HeaderValue, TRANSFER_ENCODING,
};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode, Version};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::assets::{self, Assets, File};
use super::cors::{self, Origin, Origins};
use super::headers::wants_events;
use super::refusal::{Refusal, Shape};
use super::{Request, Response, body, exchange, ops, pace, ticket};
use crate::admission::Admission;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::share::Budget;

/// What a path means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/rest/v1` and `/rest/v1/`: what the API offers, and several requests as one.
    RowsRoot,
    /// `/rest/v1/{table}`.
    Rows {
        /// The name, decoded; any text but for slashes, controls and dots alone.
        table: String,
    },
    /// `/rest/v1/rpc/{function}`.
    Call {
        /// The name, decoded like a table's.
        function: String,
    },
    /// `/channels/{name}`.
    Channel {
        /// The name, decoded like a table's.
        name: String,
    },
    /// `/tickets`.
    Tickets,
    /// `/demo/sign-in`.
    SignIn,
    /// A file of the board or the client library.
    Asset(&'static File),
    /// `/livez` and `/healthz`.
    Livez,
    /// `/readyz`.
    Readyz,
    /// `/metrics`.
    Metrics,
    /// Nothing. Tells whose clients are answered.
    NotFound(Shape),
}

impl Route {
    /// Resolves a path as it stands in the request. The fixed words are known in one spelling only;
    /// a name is percent-decoded once.
    #[must_use]
    pub fn of(path: &str) -> Self {
        match path {
            "/livez" | "/healthz" => return Self::Livez,
            "/readyz" => return Self::Readyz,
            "/metrics" => return Self::Metrics,
            "/tickets" => return Self::Tickets,
            "/demo/sign-in" => return Self::SignIn,
            "/rest/v1" | "/rest/v1/" => return Self::RowsRoot,
            _ => {}
        }
        if let Some(segment) = path.strip_prefix("/rest/v1/rpc/") {
            return name(segment).map_or(Self::NotFound(Shape::Api), |function| Self::Call {
                function,
            });
        }
        if let Some(segment) = path.strip_prefix("/rest/v1/") {
            return name(segment).map_or(Self::NotFound(Shape::Api), |table| Self::Rows { table });
        }
        if let Some(segment) = path.strip_prefix("/channels/") {
            return name(segment).map_or(Self::NotFound(Shape::Api), |name| Self::Channel { name });
        }
        File::at(path).map_or(Self::NotFound(Shape::Problem), Self::Asset)
    }

    /// The route without its names: a bounded label.
    #[must_use]
    pub fn pattern(&self) -> &'static str {
        match self {
            Self::RowsRoot => "/rest/v1/",
            Self::Rows { .. } => "/rest/v1/{table}",
            Self::Call { .. } => "/rest/v1/rpc/{function}",
            Self::Channel { .. } => "/channels/{name}",
            Self::Tickets => "/tickets",
            Self::SignIn => "/demo/sign-in",
            Self::Asset(file) => file.path(),
            Self::Livez => "/livez",
            Self::Readyz => "/readyz",
            Self::Metrics => "/metrics",
            Self::NotFound(_) => "_OTHER",
        }
    }

    /// The methods that the route answers, as `Allow` lists them.
    #[must_use]
    pub fn methods(&self) -> &'static str {
        match self {
            Self::Rows { .. } => "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
            Self::Call { .. } | Self::RowsRoot => "GET, HEAD, POST, OPTIONS",
            Self::Channel { .. } => "GET, POST, OPTIONS",
            Self::Tickets | Self::SignIn => "POST, OPTIONS",
            Self::Asset(_) => assets::METHODS,
            Self::Livez | Self::Readyz | Self::Metrics => ops::METHODS,
            Self::NotFound(_) => "OPTIONS",
        }
    }

    fn answers(&self, method: &Method) -> bool {
        self.methods()
            .split(", ")
            .any(|name| name == method.as_str())
    }

    /// In which words the route refuses.
    #[must_use]
    pub fn shape(&self) -> Shape {
        match self {
            Self::RowsRoot
            | Self::Rows { .. }
            | Self::Call { .. }
            | Self::Channel { .. }
            | Self::Tickets
            | Self::SignIn => Shape::Api,
            Self::NotFound(shape) => *shape,
            Self::Asset(_) | Self::Livez | Self::Readyz | Self::Metrics => Shape::Problem,
        }
    }
}

/// One path segment as a name. Refused are what is not one segment, what another program in the
/// path might read as several, and what is not text.
fn name(segment: &str) -> Option<String> {
    if !is_encoded_well(segment) {
        return None;
    }
    let name = percent_decode_str(segment).decode_utf8().ok()?;
    let means_a_folder = matches!(&*name, "" | "." | "..");
    let splits = name.contains(['/', '\\']) || name.contains(char::is_control);
    (!means_a_folder && !splits).then(|| name.into_owned())
}

/// A text as one path segment, or as a name or value in a query: the converse of what [`Route::of`] decodes.
#[must_use]
pub fn encoded(text: &str) -> String {
    const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'_')
        .remove(b'.')
        .remove(b'~');
    utf8_percent_encode(text, PLAIN).to_string()
}

/// Whether every `%` is followed by two hexadecimal digits; the decoder would leave others alone.
fn is_encoded_well(segment: &str) -> bool {
    segment.split('%').skip(1).all(|after| {
        let digits = after.as_bytes();
        digits.len() >= 2 && digits[..2].iter().all(u8::is_ascii_hexdigit)
    })
}

/// What answers the API's own paths. The origin has been judged, the method is one of the route's,
/// and the body is whole and within its limit.
pub trait Api: Send + Sync + 'static {
    /// `GET` and `HEAD /rest/v1/`.
    fn root(&self, parts: &Parts) -> impl Future<Output = Response> + Send;

    /// `POST /rest/v1/`.
    fn batch(&self, parts: &Parts, body: Bytes) -> impl Future<Output = Response> + Send;

    /// `GET /rest/v1/{table}` of a reader that wants events.
    fn watch(&self, parts: &Parts, table: &str) -> impl Future<Output = Response> + Send;

    /// Any other request for `/rest/v1/{table}`.
    fn rows(
        &self,
        parts: &Parts,
        table: &str,
        body: Bytes,
    ) -> impl Future<Output = Response> + Send;

    /// A request for `/rest/v1/rpc/{function}`.
    fn call(
        &self,
        parts: &Parts,
        function: &str,
        body: Bytes,
    ) -> impl Future<Output = Response> + Send;

    /// `GET /channels/{name}`.
    fn subscribe(&self, parts: &Parts, channel: &str) -> impl Future<Output = Response> + Send;

    /// `POST /channels/{name}`.
    fn publish(
        &self,
        parts: &Parts,
        channel: &str,
        body: Bytes,
    ) -> impl Future<Output = Response> + Send;

    /// `POST /tickets`.
    fn tickets(&self, parts: &Parts, body: Bytes) -> impl Future<Output = Response> + Send;

    /// `POST /demo/sign-in`; `None` where nobody is signed in by the relay.
    fn sign_in(&self, parts: &Parts, body: Bytes) -> impl Future<Output = Option<Response>> + Send;
}

/// Longest path and query, in bytes.
pub const URI_LIMIT: usize = 8 * 1024;
/// Largest header fields of a request, in bytes, names and values and what is between them.
pub const HEAD_LIMIT: usize = 32 * 1024;

/// Everything that a request can reach.
#[derive(Debug)]
pub struct Router<A> {
    /// The API's own paths.
    pub api: A,
    /// The board and the client library.
    pub assets: Assets,
    /// Whose pages may write and watch.
    pub origins: Origins,
    /// Largest request body, in bytes; [`body::LIMIT`] unless the settings say otherwise.
    pub body_limit: usize,
    /// What all bodies together may take.
    pub bodies: Budget,
    /// What all answers of the API together may take that their clients have not taken yet.
    pub answers: Budget,
    /// Who looks after those.
    pub admission: Admission,
    /// What `/readyz` tells.
    pub health: Arc<Health>,
    /// What `/metrics` tells, and where requests are counted.
    pub metrics: Arc<Metrics>,
}

impl<A: Api> Router<A> {
    /// The router as a function that [`super::server::Server`] takes.
    pub fn into_handler(
        self,
    ) -> impl Fn(Request) -> BoxFuture<'static, Response> + Clone + Send + Sync + 'static {
        let router = Arc::new(self);
        move |request| {
            let router = Arc::clone(&router);
            async move { router.handle(request).await }.boxed()
        }
    }

    /// Answers a request.
    pub async fn handle(&self, request: Request) -> Response {
        let route = Route::of(request.uri().path());
        exchange::run(&self.metrics, route.pattern(), request, |request| {
            self.answer(route, request)
        })
        .await
    }

    async fn answer(&self, route: Route, request: Request) -> Response {
        let (mut parts, incoming) = request.into_parts();
        ticket::take(&mut parts);
        let origin = self.origins.judge(&parts);
        let unknown = || (!self.origins.knows_host(&parts)).then_some(Refusal::UnknownHost);
        let refusal = refuse(&route, &parts, &origin).or_else(unknown);
        let mut response = match refusal {
            Some(refusal) => refusal.respond(route.shape()),
            None if parts.method == Method::OPTIONS => options(&route, &parts, &origin),
            None => self
                .dispatch_guarded(&route, &parts, incoming)
                .await
                .unwrap_or_else(|refusal| refusal.respond(route.shape())),
        };
        if parts.method == Method::HEAD {
            body::keep_head(&mut response);
        }
        response
            .headers_mut()
            .entry(CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("no-store"));
        cors::apply(&mut response, &origin);
        if exchange::is_event_stream(response.headers()) {
            return response;
        }
        pace::paced(response, &self.admission, &parts)
    }

    /// Turns a panic of whoever answers into a response: the connection, and on HTTP/2 its other
    /// exchanges, can go on.
    async fn dispatch_guarded(
        &self,
        route: &Route,
        parts: &Parts,
        incoming: hyper::body::Incoming,
    ) -> Result<Response, Refusal> {
        // What the panic left half done is dropped with the future.
        AssertUnwindSafe(self.dispatch(route, parts, incoming))
            .catch_unwind()
            .await
            .unwrap_or_else(|_panic| {
                tracing::error!("the code that answers has panicked");
                Err(Refusal::Panicked)
            })
    }

    async fn dispatch(
        &self,
        route: &Route,
        parts: &Parts,
        incoming: hyper::body::Incoming,
    ) -> Result<Response, Refusal> {
        let read = body::read(incoming, self.body_limit, body::WITHIN, &self.bodies);
        let response = match route {
            Route::RowsRoot if parts.method == Method::POST => {
                self.api.batch(parts, read.await?).await
            }
            Route::RowsRoot => self.api.root(parts).await,
            Route::Rows { table } if watches(route, parts) => self.api.watch(parts, table).await,
            Route::Rows { table } => self.api.rows(parts, table, read.await?).await,
            Route::Call { function } => self.api.call(parts, function, read.await?).await,
            Route::Channel { name } if watches(route, parts) => {
                self.api.subscribe(parts, name).await
            }
            Route::Channel { name } => self.api.publish(parts, name, read.await?).await,
            Route::Tickets => self.api.tickets(parts, read.await?).await,
            Route::SignIn => self
                .api
                .sign_in(parts, read.await?)
                .await
                .ok_or(Refusal::NotFound)?,
            Route::Asset(file) => self.assets.respond(parts, file),
            Route::Livez => ops::livez(),
            Route::Readyz => ops::readyz(&self.health),
            Route::Metrics => ops::metrics(&self.metrics),
            Route::NotFound(_) => return Err(Refusal::NotFound),
        };
        // What the API has not counted is a refusal of its own, or a read.
        match route.shape() {
            Shape::Api => {
                pace::counted(response, &self.answers).map_err(|_| Refusal::AnswersCrowded)
            }
            Shape::Problem => Ok(response),
        }
    }
}

/// Whether the answer would be an event stream. A channel has nothing else to read.
fn watches(route: &Route, parts: &Parts) -> bool {
    parts.method == Method::GET
        && match route {
            Route::Rows { .. } => wants_events(&parts.headers),
            Route::Channel { .. } => true,
            _ => false,
        }
}

/// What is refused before anything is read or asked. What is wrong with its URL a preflight is not told: a browser
/// asks by the same one before the request itself, and where that is refused the page hears of a network that
/// failed, and not why.
fn refuse(route: &Route, parts: &Parts, origin: &Origin) -> Option<Refusal> {
    let is_preflight = cors::is_preflight(parts);
    let length = parts
        .uri
        .path_and_query()
        .map_or(0, |path| path.as_str().len());
    if length > URI_LIMIT && !is_preflight {
        return Some(Refusal::UriTooLong(URI_LIMIT));
    }
    // hyper's own limit is one of its buffer, and holds twice as much when it comes in one piece.
    let fields = parts.headers.iter();
    let fields = fields.map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    if fields.sum::<usize>() > HEAD_LIMIT {
        return Some(Refusal::HeadTooLarge(HEAD_LIMIT));
    }
    // What is before us may have read another of them.
    let hosts = parts.headers.get_all(HOST).iter().count();
    if hosts > 1 || hosts == 0 && parts.version == Version::HTTP_11 {
        return Some(Refusal::NotOneHost);
    }
    let harmless = matches!(parts.method, Method::GET | Method::HEAD) && !watches(route, parts);
    if *origin == Origin::Foreign && !harmless {
        return Some(Refusal::ForeignOrigin);
    }
    if matches!(route, Route::NotFound(_)) && !is_preflight {
        return Some(Refusal::NotFound);
    }
    if !route.answers(&parts.method) {
        return Some(Refusal::Method(route.methods()));
    }
    // What nobody unpacks would be read as it is: a form could even be stored so.
    let reads = !matches!(parts.method, Method::GET | Method::HEAD);
    (reads && is_encoded(&parts.headers)).then_some(Refusal::BodyEncoded)
}

/// Whether the body is said to be something else than its bytes.
fn is_encoded(headers: &HeaderMap) -> bool {
    // hyper takes off the last coding of the transfer, which is `chunked`, and passes over what is below it.
    [
        (CONTENT_ENCODING, "identity"),
        (TRANSFER_ENCODING, "chunked"),
    ]
    .into_iter()
    .any(|(name, plain)| {
        let mut codings = headers.get_all(name).iter();
        codings.any(|coding| !coding.as_bytes().eq_ignore_ascii_case(plain.as_bytes()))
    })
}

/// The answer to `OPTIONS`, which a browser asks before a request that is not simple.
fn options(route: &Route, parts: &Parts, origin: &Origin) -> Response {
    if cors::is_preflight(parts) {
        return cors::preflight(origin, &parts.headers);
    }
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(route.methods()));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(table: &str) -> Route {
        Route::Rows {
            table: table.into(),
        }
    }

    #[test]
    fn each_path_has_one_meaning() {
        assert_eq!(Route::of("/rest/v1"), Route::RowsRoot);
        assert_eq!(Route::of("/rest/v1/"), Route::RowsRoot);
        assert_eq!(Route::of("/rest/v1/tasks"), rows("tasks"));
        assert_eq!(
            Route::of("/channels/lobby"),
            Route::Channel {
                name: "lobby".into()
            }
        );
        assert_eq!(Route::of("/tickets"), Route::Tickets);
        assert_eq!(Route::of("/demo/sign-in"), Route::SignIn);
        assert_eq!(Route::of("/livez"), Route::Livez);
        assert_eq!(Route::of("/healthz"), Route::Livez);
        assert_eq!(Route::of("/readyz"), Route::Readyz);
        assert_eq!(Route::of("/metrics"), Route::Metrics);
        assert!(matches!(Route::of("/"), Route::Asset(file) if file.path() == "/"));
        assert!(matches!(Route::of("/rowcast.js"), Route::Asset(_)));
    }

    #[test]
    fn a_name_is_decoded_once() {
        for (path, table) in [
            ("/rest/v1/%74asks", "tasks"),
            ("/rest/v1/%74%61%73%6b%73", "tasks"),
            ("/rest/v1/%74%61%73%6B%73", "tasks"),
            ("/rest/v1/my%20table", "my table"),
            ("/rest/v1/a+b", "a+b"),
            ("/rest/v1/caf%C3%A9", "café"),
            ("/rest/v1/Tasks", "Tasks"),
            ("/rest/v1/%2574asks", "%74asks"),
            ("/rest/v1/%252e%252e", "%2e%2e"),
            ("/rest/v1/...", "..."),
            ("/rest/v1/tasks;a=b", "tasks;a=b"),
            ("/rest/v1/public.tasks", "public.tasks"),
            ("/rest/v1/%22x%22", "\"x\""),
        ] {
            assert_eq!(Route::of(path), rows(table), "{path}");
        }
    }

    #[test]
    fn any_other_spelling_is_nothing() {
        for path in [
            "/rest/v1/tasks/",
            "/rest/v1//tasks",
            "/rest/v1//",
            "/rest//v1/tasks",
            "//rest/v1/tasks",
            "///",
            "//",
            "/rest/v1/tasks/7",
            "/rest/v1/tasks%2f",
            "/rest/v1/tasks%2F7",
            "/rest/v1/%2ftasks",
            "/rest/v1/a%5Cb",
            "/rest/v1/a\\b",
            "/rest/v1/.",
            "/rest/v1/..",
            "/rest/v1/../v1/tasks",
            "/rest/v1/./tasks",
            "/rest/v1/%2e",
            "/rest/v1/%2e%2e",
            "/rest/v1/%2E.",
            "/rest/v1/%2e%2e%2ftasks",
            "/rest/v1/..%2ftasks",
            "/rest/v1/..;/tasks",
            "/rest/v1/%00",
            "/rest/v1/tasks%00",
            "/rest/v1/tasks%0a",
            "/rest/v1/tasks%0d%0aX: y",
            "/rest/v1/tasks%7f",
            "/rest/v1/tasks%C2%85",
            "/rest/v1/%",
            "/rest/v1/tasks%",
            "/rest/v1/tasks%7",
            "/rest/v1/tasks%zz",
            "/rest/v1/%+74asks",
            "/rest/v1/%ff",
            "/rest/v1/%c0%af",
            "/rest/v1/%c0%ae%c0%ae",
            "/rest/v1/%u0074asks",
            "/rest%2fv1%2ftasks",
            "/rest%2fv1/tasks",
            "/%72est/v1/tasks",
            "/rest/%761/tasks",
            "/REST/v1/tasks",
            "/Rest/V1/tasks",
            "/rest/v2/tasks",
            "/rest/tasks",
            "/rest",
            "/rest/",
            "/tasks",
            "rest/v1/tasks",
            "/rest/v1.",
            "/rest/v1/tasks/..",
            "/static/../rest/v1/tasks",
            "/channels",
            "/channels/",
            "/channels//lobby",
            "/channels/lobby/",
            "/channels/a/b",
            "/channels/a%2fb",
            "/channels/..",
            "/channels/%2e%2e",
            "/channels/%2e%2e/rest/v1/tasks",
            "/Channels/lobby",
            "/tickets/",
            "/Tickets",
            "/demo",
            "/demo/sign-in/",
            "/livez/",
            "/livez/.",
            "/LIVEZ",
            "/%6civez",
            "/metrics/",
            "/metrics%00",
            "/metrics;x",
            "/readyz/..",
            "/board.js/",
            "/board.js%00",
            "/./board.js",
            "/../board.js",
            "/..%2f..%2fetc%2fpasswd",
            "/../../etc/passwd",
            "/static/board.js",
            "/index.html/",
            "/Index.html",
            "/index.htm",
            "/rowcast.js.map",
            "",
            "*",
            " ",
        ] {
            assert!(matches!(Route::of(path), Route::NotFound(_)), "{path:?}");
        }
    }

    #[test]
    fn a_path_that_is_nearly_the_apis_is_refused_in_its_shape() {
        assert_eq!(Route::of("/rest/v1/a/b"), Route::NotFound(Shape::Api));
        assert_eq!(Route::of("/nothing"), Route::NotFound(Shape::Problem));
    }

    proptest::proptest! {
        #[test]
        fn no_path_panics_and_a_name_is_always_one_segment(path in "(/rest/v1/|/channels/)?\\PC{0,40}") {
            if let Route::Rows { table: name } | Route::Channel { name } = Route::of(&path) {
                assert!(!name.contains(['/', '\\', '\0']));
                assert!(!matches!(name.as_str(), "" | "." | ".."));
            }
        }

        #[test]
        fn every_name_has_a_path(name in "[^/\\\\\\p{C}]{1,30}") {
            proptest::prop_assume!(name != "." && name != "..");
            let path = format!("/rest/v1/{}", encoded(&name));
            assert_eq!(Route::of(&path), rows(&name));
        }
    }
}
