//! Whole answers, handed to their clients piece by piece.
//!
//! hyper takes a body that is all there at once, and then nobody sees any more whether its client takes
//! it: on HTTP/2 a client may leave its window closed for ever, on HTTP/1.1 it may take a byte now and
//! then, and the answer stays. So an answer that is not small is a body of pieces ([`paced`]), which says
//! when it is asked for the next one, and its bytes say when the last of them is gone
//! ([`crate::admission::Taking`]). It does not know what the bytes mean.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt;
use http_body_util::BodyExt;
use hyper::Version;
use hyper::body::{Body as _, Frame, SizeHint};
use hyper::http::request::Parts as Head;

use super::{BodyError, Response};
use crate::admission::{Admission, Scissors, Taking};
use crate::share::{Budget, Crowded, Share, keeping};

/// Over HTTP/1, answers up to this size are left alone: the kernel takes them, or a write is blocked and
/// [`super::deadline`] sees it.
const SMALL: usize = 4 * 1024;
/// Largest piece, in bytes: a frame of HTTP/2, as far as clients do not want larger ones. A client that
/// takes less than this in [`crate::admission::STALLED`] takes nothing.
const PIECE: usize = 16 * 1024;

/// The same answer with its room in the budget: that which the extensions name, or some that is taken now.
///
/// # Errors
/// [`Crowded`] where there is no room. An answer that has some is never refused, since what it tells of
/// has happened.
pub fn counted(mut response: Response, budget: &Budget) -> Result<Response, Crowded> {
    let Some(length) = length(&response) else {
        return Ok(response);
    };
    if response.extensions().get::<Arc<Share>>().is_none() {
        let share = budget.share();
        share.grow(length)?;
        if !share.is_small() {
            response.extensions_mut().insert(Arc::new(share));
        }
    }
    Ok(response)
}

/// The answer to `head`, whose client takes it at a pace, and which keeps its share of the budget until it
/// is taken.
#[must_use]
pub fn paced(mut response: Response, admission: &Admission, head: &Head) -> Response {
    let share: Option<Arc<Share>> = response.extensions_mut().remove();
    let left_alone = if head.version == Version::HTTP_2 {
        0
    } else {
        SMALL
    };
    let Some(length) = length(&response).filter(|length| *length > left_alone) else {
        return response;
    };
    let whole = response.body_mut().frame().now_or_never().flatten();
    let Some(Ok(Ok(bytes))) = whole.map(|frame| frame.map(Frame::into_data)) else {
        return response;
    };
    debug_assert_eq!(
        bytes.len(),
        length,
        "an answer of a known length is one piece"
    );
    let scissors = head.extensions.get::<Scissors>().cloned();
    let taking = Arc::new(admission.taking(scissors.unwrap_or_default()));
    let rest = keeping(bytes, (Arc::clone(&taking), share));
    *response.body_mut() = Pieces { rest, taking }.boxed_unsync();
    response
}

/// The length of a body that is all there.
fn length(response: &Response) -> Option<usize> {
    let length = response.body().size_hint().exact()?;
    usize::try_from(length).ok()
}

/// A body that is asked for its next piece when its client has taken the last one, or nearly so.
struct Pieces {
    rest: Bytes,
    taking: Arc<Taking>,
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let length = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(length);
        self.taking.handed(length);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
