//! `/rest/v1/{table}` for readers that want events: from a request to a view.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts as Head;

use super::rows::{self, Rows};
use super::watch::{self, Cannot};
use crate::admission::{Admission, Full, Guest, Place, Scissors};
use crate::auth::Identity;
use crate::http::server::Peer;
use crate::http::{Body, BodyError, Response, body};
use crate::rows::request::is_resume_point;
use crate::subscription::{End, Opener, Parts, Source, Subscription, Unavailable};

/// Answers a request for a live view. What the URL can never mean is a 400; what may heal is a
/// stream that says so and ends, because an EventSource gives up for ever on anything but 200.
pub async fn respond(
    rows: &Arc<Rows>,
    parts: &Parts,
    head: &Head,
    identity: &Identity,
    end: Option<End>,
    table: &str,
) -> Response {
    let token = token(head);
    let request = match rows::request(rows, head, table) {
        Ok(request) => request,
        Err(problem) => return problem.into_response(),
    };
    let definitions = parts.stage.definitions();
    match watch::make(rows, &request, identity).await {
        Ok(view) => {
            let asked = Arc::new((request, identity.clone(), AtomicU64::new(definitions)));
            let (rows, stage) = (Arc::clone(rows), Arc::clone(&parts.stage));
            let opener: Opener = Arc::new(move || {
                let (rows, stage) = (Arc::clone(&rows), Arc::clone(&stage));
                let asked = Arc::clone(&asked);
                async move {
                    // Called when the view has become worthless: the table may have changed. Where the
                    // log says so, the feed has read the catalogue before it told anybody, so a herd that
                    // begins again does not read it once more; for any other reason nobody has.
                    let definitions = stage.definitions();
                    let (request, identity, before) = &*asked;
                    if before.swap(definitions, Ordering::Relaxed) == definitions {
                        let _old_picture_serves = rows.catalog.reload().await;
                    }
                    // The role may have become one that is never taken.
                    let admitted = rows.admit(identity).await;
                    admitted.map_err(|problem| problem.unavailable())?;
                    let made = watch::make(&rows, request, identity).await;
                    let made = made.map(|view| view.made_at(definitions));
                    made.map_err(|cannot| watch::told(cannot).unavailable())
                }
                .boxed()
            });
            let source = Source::View(opener);
            let view = Some(view.made_at(definitions));
            stream(Subscription::new(parts.clone(), source, token, view, end))
        }
        Err(Cannot::Ever(problem)) => problem.into_response(),
        Err(Cannot::Now(problem)) => closed(token.as_deref(), &problem.unavailable()),
    }
}

/// The resume point: the header, or the query where a page had to make a new `EventSource`.
#[must_use]
pub fn token(head: &Head) -> Option<String> {
    let header = head
        .headers
        .get("last-event-id")
        // Not left out where it is no text: who brings an id has rows, and is told to forget them.
        .map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned());
    let named = |wanted| {
        let pairs = form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes());
        let mut points = pairs.filter(|(name, value)| is_resume_point(name, value));
        points.find_map(|(name, value)| (name == wanted).then(|| value.into_owned()))
    };
    // The polyfill adds its own to what the page wrote before.
    let query = || named("lastEventId").or_else(|| named("last_event_id"));
    header.or_else(query).filter(|token| !token.is_empty())
}

/// A subscription as a response.
#[must_use]
pub fn stream(subscription: Subscription) -> Response {
    let direct = subscription.direct();
    let frames = subscription.frames().map(|frame| Ok(Frame::data(frame)));
    let mut response = events(BodyExt::boxed_unsync(StreamBody::new(frames)));
    response.extensions_mut().insert(direct);
    response
}

/// A place for the stream that `head` asks for.
///
/// # Errors
/// [`Full`].
pub fn place(admission: &Admission, head: &Head, identity: &Identity) -> Result<Place, Full> {
    let claims = identity.verified.then(|| identity.context_claims());
    let peer = head.extensions.get::<Peer>();
    let guest = Guest {
        user: claims.as_deref(),
        address: peer.map(|Peer(address)| address.ip()),
    };
    let scissors = head.extensions.get::<Scissors>().cloned();
    admission.admit(guest, scissors.unwrap_or_default())
}

/// The same stream, which keeps its place until its end.
#[must_use]
pub fn keeping(mut response: Response, place: Place) -> Response {
    let place = Arc::new(place);
    response.extensions_mut().insert(Arc::clone(&place));
    response.map(|body| BodyExt::boxed_unsync(Keeping { body, place }))
}

/// A body that says when its client has been handed something, and when the client has taken it:
/// it is asked for more only then.
struct Keeping {
    body: Body,
    place: Arc<Place>,
}

impl hyper::body::Body for Keeping {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match frame {
            Poll::Ready(_) => self.place.handed(),
            Poll::Pending => self.place.waits(),
        }
        frame
    }
}

/// A stream that says why there is none, and ends.
#[must_use]
pub fn closed(token: Option<&str>, why: &Unavailable) -> Response {
    let frame: Bytes = Subscription::unavailable(token, why);
    events(body::full(frame))
}

fn events(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-transform"),
    );
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_is_no_text_is_an_id() {
        let request = hyper::Request::builder().uri("/rest/v1/tasks?last_event_id=a.b.c");
        let (mut head, ()) = request.body(()).unwrap().into_parts();
        assert_eq!(token(&head).as_deref(), Some("a.b.c"));
        let id = HeaderValue::from_bytes(b"a.b.\xff").unwrap();
        head.headers.insert("last-event-id", id);
        assert_eq!(token(&head).as_deref(), Some("a.b.\u{fffd}"));
        head.headers
            .insert("last-event-id", HeaderValue::from_static(""));
        assert_eq!(token(&head), None);
    }
}
