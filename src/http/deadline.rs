//! A connection that gives up on a client which accepts no bytes.
//!
//! hyper has no write timeout. [`Deadline`] wraps the socket and promises that a write which has
//! made no progress for the given time fails with `TimedOut`, so that hyper drops the connection
//! and the stream behind it. Any accepted byte starts the time anew; a connection with nothing to
//! write is never late. It does not know what is written.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Tells, after the connection has failed, whether it failed because the client accepted nothing.
#[derive(Clone, Debug, Default)]
pub struct Stalled(Arc<AtomicBool>);

impl Stalled {
    /// Whether a write ran out of time.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A socket with a time limit on blocked writes.
#[derive(Debug)]
pub struct Deadline<S> {
    socket: S,
    patience: Duration,
    /// Made when a write first blocks: most connections never need one.
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether `timer` is running for a write that is blocked now.
    blocked: bool,
    stalled: Stalled,
}

impl<S> Deadline<S> {
    /// Wraps `socket`; a write may be blocked for at most `patience`.
    pub fn new(socket: S, patience: Duration) -> Self {
        Self {
            socket,
            patience,
            timer: None,
            blocked: false,
            stalled: Stalled::default(),
        }
    }

    /// The flag that is set when a write runs out of time.
    #[must_use]
    pub fn stalled(&self) -> Stalled {
        self.stalled.clone()
    }

    /// Passes on what the socket said, unless it has said "not now" for too long.
    fn judge<T>(&mut self, cx: &mut Context<'_>, said: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if said.is_ready() {
            self.blocked = false;
            return said;
        }
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(self.patience)));
        if !self.blocked {
            self.blocked = true;
            timer.as_mut().reset(Instant::now() + self.patience);
        }
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.stalled.0.store(true, Ordering::Relaxed);
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client accepts no bytes",
        )))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Deadline<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Deadline<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let said = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.judge(cx, said)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let said = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.judge(cx, said)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    // A flush or a shutdown that is ready says nothing about an earlier write, so neither may stop
    // the clock of a blocked one: on a TCP socket both are always ready.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::sleep;

    use super::*;

    #[tokio::test]
    async fn a_reader_that_accepts_nothing_is_given_up() {
        let (ours, _theirs) = duplex(8);
        let mut ours = Deadline::new(ours, Duration::from_millis(40));
        let stalled = ours.stalled();
        let error = ours.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(stalled.is_set());
    }

    #[tokio::test]
    async fn a_slow_reader_that_accepts_something_is_kept() {
        let (ours, mut theirs) = duplex(8);
        let mut ours = Deadline::new(ours, Duration::from_millis(200));
        let stalled = ours.stalled();
        let reader = tokio::spawn(async move {
            let mut read = 0;
            let mut some = [0; 8];
            while read < 64 {
                sleep(Duration::from_millis(50)).await;
                read += theirs.read(&mut some).await.unwrap();
            }
        });
        // 8 reads of 8 bytes take 400 ms in all: longer than the deadline, but each is progress.
        ours.write_all(&[0; 64]).await.unwrap();
        reader.await.unwrap();
        assert!(!stalled.is_set());
    }

    #[tokio::test]
    async fn silence_is_not_a_stall() {
        let (ours, mut theirs) = duplex(8);
        let mut ours = Deadline::new(ours, Duration::from_millis(30));
        // Block once, be freed, rest longer than the deadline, block again.
        for _ in 0..2 {
            let reader = tokio::spawn(async move {
                sleep(Duration::from_millis(5)).await;
                let mut all = [0; 16];
                theirs.read_exact(&mut all).await.unwrap();
                theirs
            });
            ours.write_all(&[0; 16]).await.unwrap();
            theirs = reader.await.unwrap();
            sleep(Duration::from_millis(60)).await;
        }
        assert!(!ours.stalled().is_set());
    }
}
