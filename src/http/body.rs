//! Bodies: the few that responses are made of, and reading a request's within limits.
//!
//! Reading promises that no more than the limit is ever held, and that it ends in the given time
//! whatever the client does. It does not know what the bytes mean.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::StatusCode;
use hyper::header::{CONTENT_LENGTH, HeaderValue};

use super::{Body, BodyError, Response};
use crate::share::{Budget, Crowded, keeping};

/// Largest request body unless told otherwise, in bytes.
pub const LIMIT: usize = 1024 * 1024;
/// Longest time a request body may take unless told otherwise.
pub const WITHIN: Duration = Duration::from_secs(30);

/// Bytes of request bodies that all clients together may have in the relay, unless told otherwise.
pub const ALL: usize = 64 * 1024 * 1024;

/// A body that is all there.
#[must_use]
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// No body.
#[must_use]
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Answers `HEAD` with the headers of `GET`: the length stays, the bytes go.
pub fn keep_head(response: &mut Response) {
    use hyper::body::Body;

    let length = response.body().size_hint().exact();
    let bodied = !matches!(
        response.status(),
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
    );
    if let Some(length) = length.filter(|_| bodied) {
        response
            .headers_mut()
            .entry(CONTENT_LENGTH)
            .or_insert(HeaderValue::from(length));
    }
    *response.body_mut() = empty();
}

/// Why a request's body could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is, or says that it will be, larger than allowed.
    #[error("the body is larger than {limit} bytes")]
    TooLarge {
        /// The largest size, in bytes.
        limit: usize,
    },
    /// It did not arrive in time.
    #[error("the body did not arrive within {within:?}")]
    TooSlow {
        /// The time it had.
        within: Duration,
    },
    /// All clients together have sent as much as the relay takes at once.
    #[error("too much is being sent to the relay at once")]
    Crowded,
    /// The connection failed, or the client broke its own framing.
    #[error("the body broke off")]
    Broken(#[source] BodyError),
}

/// Reads a whole body of at most `limit` bytes in at most the time `within`. It keeps its part of the
/// budget until its bytes are let go.
///
/// # Errors
/// [`ReadError`] tells which of the bounds was met.
pub async fn read<B>(
    body: B,
    limit: usize,
    within: Duration,
    budget: &Budget,
) -> Result<Bytes, ReadError>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    tokio::time::timeout(within, collect(body, limit, budget))
        .await
        .unwrap_or(Err(ReadError::TooSlow { within }))
}

async fn collect<B>(mut body: B, limit: usize, budget: &Budget) -> Result<Bytes, ReadError>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    if exceeds(body.size_hint().lower(), limit) {
        drain(body, limit).await;
        return Err(ReadError::TooLarge { limit });
    }
    let mut pieces: Vec<Bytes> = Vec::new();
    let mut length = 0;
    let share = budget.share();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ReadError::Broken(error.into()))?;
        let Ok(piece) = frame.into_data() else {
            continue; // Trailers say nothing that we asked for.
        };
        length += piece.len();
        if length > limit {
            drop(pieces);
            drain(body, limit).await;
            return Err(ReadError::TooLarge { limit });
        }
        if let Err(Crowded) = share.grow(piece.len()) {
            drop(pieces);
            drain(body, limit).await;
            return Err(ReadError::Crowded);
        }
        pieces.push(piece);
    }
    // One piece is the usual case and needs no copy.
    let bytes: Bytes = match pieces.len() {
        1 => pieces.swap_remove(0),
        _ => pieces.concat().into(),
    };
    Ok(if share.is_small() {
        bytes
    } else {
        keeping(bytes, share)
    })
}

fn exceeds(length: u64, limit: usize) -> bool {
    usize::try_from(length).map_or(true, |length| length > limit)
}

/// Reads on and forgets, up to this many times the limit. A socket that is closed with unread bytes
/// in it sends a reset, and that can destroy the 413 before the client has read it.
const FORGIVEN: usize = 8;

async fn drain<B>(mut body: B, limit: usize)
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
{
    let mut patience = limit.saturating_mul(FORGIVEN);
    if exceeds(body.size_hint().lower(), patience) {
        return;
    }
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        match patience.checked_sub(length) {
            Some(left) => patience = left,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;
    use crate::share::SMALL;

    fn pieces(
        pieces: Vec<&'static str>,
    ) -> impl hyper::body::Body<Data = Bytes, Error = BodyError> + Unpin {
        StreamBody::new(stream::iter(pieces.into_iter().map(|piece| {
            Ok::<_, BodyError>(Frame::data(Bytes::from_static(piece.as_bytes())))
        })))
    }

    fn ample() -> Budget {
        Budget::new(ALL)
    }

    #[tokio::test]
    async fn large_bodies_share_a_budget_and_small_ones_need_none() {
        let budget = Budget::new(SMALL);
        let large = || full(vec![b'x'; 2 * SMALL]);
        let read = async |body| read(body, 4 * SMALL, WITHIN, &budget).await;
        let first = read(large()).await.unwrap();
        assert!(matches!(read(large()).await, Err(ReadError::Crowded)));
        assert_eq!(read(full(vec![b'x'; SMALL])).await.unwrap().len(), SMALL);
        // Kept until the answer, and then there is room again.
        drop(first);
        assert!(read(large()).await.is_ok());
    }

    #[tokio::test]
    async fn pieces_are_joined_in_order() {
        let read = read(pieces(vec!["ab", "c", "def"]), 6, WITHIN, &ample()).await;
        assert_eq!(read.unwrap(), "abcdef");
    }

    #[tokio::test]
    async fn no_body_is_an_empty_one() {
        assert_eq!(read(empty(), 0, WITHIN, &ample()).await.unwrap(), "");
    }

    #[tokio::test]
    async fn a_stream_is_refused_at_the_byte_past_the_limit() {
        let read = read(pieces(vec!["abc", "def", "g"]), 6, WITHIN, &ample()).await;
        assert!(matches!(read, Err(ReadError::TooLarge { limit: 6 })));
    }

    #[tokio::test]
    async fn a_declared_length_past_the_limit_is_refused() {
        let read = read(full("abcdefg"), 6, WITHIN, &ample()).await;
        assert!(matches!(read, Err(ReadError::TooLarge { limit: 6 })));
    }

    #[tokio::test]
    async fn a_body_that_never_ends_runs_out_of_time() {
        let silent = StreamBody::new(stream::pending::<Result<Frame<Bytes>, BodyError>>());
        let read = read(silent, 6, Duration::from_millis(20), &ample()).await;
        assert!(matches!(read, Err(ReadError::TooSlow { .. })));
    }

    #[tokio::test]
    async fn an_endless_oversize_body_is_not_read_for_ever() {
        let endless = StreamBody::new(stream::repeat_with(|| {
            Ok::<_, BodyError>(Frame::data(Bytes::from_static(b"more")))
        }));
        let read = read(endless, 6, Duration::from_secs(20), &ample()).await;
        assert!(matches!(read, Err(ReadError::TooLarge { .. })));
    }

    #[tokio::test]
    async fn a_broken_body_is_not_a_short_one() {
        let broken = StreamBody::new(stream::iter([
            Ok(Frame::data(Bytes::from_static(b"ab"))),
            Err::<Frame<Bytes>, BodyError>("cut".into()),
        ]));
        let read = read(broken, 6, WITHIN, &ample()).await;
        assert!(matches!(read, Err(ReadError::Broken(_))));
    }
}
