//! An event stream over HTTP/1.1, written by ourselves.
//!
//! hyper keeps a buffer of 8 KiB for each direction as long as a connection lasts, and an event stream
//! needs neither: nothing more is read of it, and what is written is shared with every other screen.
//! So once a request is answered with an event stream, its connection leaves hyper ([`Lent`]), and
//! [`Events`] writes the rest. It promises that everything that waits goes out in one write, that a
//! client which takes nothing is given up after the time that [`super::deadline`] gives everybody, and
//! that a client which leaves is noticed at once. Bytes that it sends meanwhile are thrown away.
//!
//! HTTP/2 and HTTP/1.0 stay with hyper.

use std::future::Future;
use std::io::{self, IoSlice, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::Version;
use hyper::body::Body as _;
use hyper::header::{CONNECTION, DATE, HeaderValue, TRANSFER_ENCODING};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use rustix::net::SendFlags;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::{Body, Response};
use crate::admission::Place;
use crate::subscription::direct::{Direct, Outlet};
use crate::wake::Seldom;

/// Frames that are written at once.
const MOST: usize = 16;
/// Bytes after which no more frames are added to a write.
const ENOUGH: usize = 64 * 1024;
/// What a client may send while it is told events, before it is taken for a nuisance.
const IDLE_TALK: usize = 64 * 1024;

/// A socket that comes back when whoever it was lent to is done with it.
#[derive(Debug)]
pub struct Lent {
    socket: Option<TcpStream>,
    home: Home,
}

/// Where a lent socket comes back to.
#[derive(Debug, Clone, Default)]
pub struct Home(Arc<Mutex<AtHome>>);

#[derive(Debug, Default)]
struct AtHome {
    socket: Option<TcpStream>,
    /// Something was written since the last flush, so more of it may wait in a buffer.
    written: bool,
}

impl Home {
    /// Lends a socket.
    #[must_use]
    pub fn lend(&self, socket: TcpStream) -> Lent {
        Lent {
            socket: Some(socket),
            home: self.clone(),
        }
    }

    /// The socket, once it is back.
    #[must_use]
    pub fn take(&self) -> Option<TcpStream> {
        self.lock().socket.take()
    }

    /// Whether all that was to be written is written: hyper flushes when its buffer is empty.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        !self.lock().written
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, AtHome> {
        self.0.lock().expect("nothing panics while holding it")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.home.lock().socket = self.socket.take();
    }
}

impl Lent {
    fn socket(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        let socket = self.socket.as_mut();
        socket
            .map(Pin::new)
            .ok_or(io::ErrorKind::NotConnected.into())
    }

    fn mark(&self, written: bool) {
        self.home.lock().written = written;
    }
}

impl AsyncRead for Lent {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.socket()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Lent {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.mark(true);
        self.socket()?.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.mark(true);
        self.socket()?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.mark(false);
        self.socket()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket()?.poll_shutdown(cx)
    }
}

/// How an event stream ended.
#[derive(Debug)]
pub enum Ended {
    /// It came to its end, and all of it was written.
    Whole,
    /// The client has left.
    Left,
    /// The client took nothing for too long.
    Stalled,
    /// The connection or the body broke.
    Broken,
}

/// An event stream that is being written.
pub struct Events {
    socket: Arc<TcpStream>,
    direct: Option<Arc<Direct>>,
    body: Option<Body>,
    /// The last chunk is on its way.
    is_last: bool,
    place: Option<Arc<Place>>,
    out: Out,
    patience: Duration,
    /// Runs while a write is blocked.
    timer: Option<Pin<Box<Sleep>>>,
    /// The client's direction, of which only the end is of interest.
    reads: Seldom<()>,
    heard: usize,
}

/// One chunk, or what is left of it.
#[derive(Default)]
struct Out {
    /// The line in front of a chunk, and how much of this it takes.
    size: ([u8; 18], usize),
    frames: Vec<Bytes>,
    /// Of all of it.
    written: usize,
    length: usize,
}

const END_OF_CHUNK: &[u8] = b"\r\n";
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

impl Out {
    fn is_empty(&self) -> bool {
        self.written == self.length
    }

    fn push(&mut self, frame: Bytes) {
        self.length += frame.len();
        self.frames.push(frame);
    }

    /// Makes a chunk of the frames.
    fn seal(&mut self) {
        let (size, length) = &mut self.size;
        let mut rest = &mut size[..];
        // It is long enough for any number.
        let _infallible = write!(rest, "{:X}\r\n", self.length);
        *length = 18 - rest.len();
        self.length += *length;
        self.push(Bytes::from_static(END_OF_CHUNK));
    }

    fn clear(&mut self) {
        self.frames.clear();
        self.size.1 = 0;
        (self.written, self.length) = (0, 0);
    }

    /// Writes as much as the socket takes now.
    fn write_to(&self, socket: &TcpStream) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); MOST + 2];
        let mut skip = self.written;
        let mut count = 0;
        let (size, length) = &self.size;
        let frames = self.frames.iter().map(AsRef::as_ref);
        for part in std::iter::once(&size[..*length]).chain(frames) {
            if skip >= part.len() {
                skip -= part.len();
                continue;
            }
            slices[count] = IoSlice::new(&part[skip..]);
            skip = 0;
            count += 1;
        }
        socket.try_write_vectored(&slices[..count])
    }
}

impl Events {
    /// Goes on with `response`, whose head is still to be written. A write may be blocked for `patience`.
    pub fn new(socket: TcpStream, response: Response, patience: Duration) -> Self {
        let (parts, body) = response.into_parts();
        let mut headers = parts.headers;
        let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now());
        if let Some(date) = date.ok().and_then(|date| HeaderValue::try_from(date).ok()) {
            headers.entry(DATE).or_insert(date);
        }
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        let mut head = format!("{:?} {}\r\n", Version::HTTP_11, parts.status).into_bytes();
        for (name, value) in &headers {
            head.extend_from_slice(name.as_str().as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        let mut out = Out::default();
        out.push(head.into());
        let socket = Arc::new(socket);
        let direct: Option<Arc<Direct>> = parts.extensions.get().cloned();
        if let Some(direct) = &direct {
            let outlet: Arc<TcpStream> = Arc::clone(&socket);
            direct.lend(outlet);
        }
        Self {
            socket,
            direct,
            body: Some(body),
            is_last: false,
            place: parts.extensions.get().cloned(),
            out,
            patience,
            timer: None,
            reads: Seldom::new(()),
            heard: 0,
        }
    }

    /// Goes on with what somebody else has begun to write.
    fn begin(&mut self) {
        if let Some(rest) = self.direct.as_ref().and_then(|direct| direct.busy()) {
            // It had nothing of its own to write.
            self.out.clear();
            self.out.push(rest);
        }
    }

    /// Lets others write while there is nothing to do.
    fn rest(&self) -> Poll<Ended> {
        if let Some(direct) = &self.direct {
            direct.idle();
        }
        Poll::Pending
    }

    /// Writes what waits; ready when all of it is gone.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        while !self.out.is_empty() {
            match self.out.write_to(&self.socket) {
                Ok(0) => return Poll::Ready(Err(Ended::Broken)),
                Ok(count) => {
                    self.out.written += count;
                    self.timer = None;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.socket.poll_write_ready(cx).is_ready() {
                        continue;
                    }
                    if let Some(place) = &self.place {
                        place.handed();
                    }
                    let patience = self.patience;
                    let timer = self
                        .timer
                        .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
                    ready!(timer.as_mut().poll(cx));
                    return Poll::Ready(Err(Ended::Stalled));
                }
                Err(_) => return Poll::Ready(Err(Ended::Broken)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes frames that are there, as far as one write goes. Ready when there is something to write, with
    /// whether there was no more: then the body tells once there is.
    fn poll_gather(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Ended>> {
        self.out.clear();
        let mut waits = false;
        let Some(body) = &mut self.body else {
            if std::mem::replace(&mut self.is_last, true) {
                return Poll::Ready(Err(Ended::Whole));
            }
            self.out.push(Bytes::from_static(LAST_CHUNK));
            return Poll::Ready(Ok(waits));
        };
        while self.out.frames.len() < MOST && self.out.length < ENOUGH {
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let data = frame.into_data().unwrap_or_default();
                    if !data.is_empty() {
                        self.out.push(data);
                    }
                }
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(Ended::Broken)),
                Poll::Ready(None) => {
                    self.body = None;
                    break;
                }
                Poll::Pending if self.out.is_empty() => return Poll::Pending,
                Poll::Pending => {
                    waits = true;
                    break;
                }
            }
        }
        if !self.out.is_empty() {
            self.out.seal();
        }
        Poll::Ready(Ok(waits))
    }

    /// Ready when the client has left, or talks too much.
    fn poll_leave(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (socket, heard) = (&self.socket, &mut self.heard);
        self.reads.poll_with(cx, |cx| {
            let mut talk = [0; 1024];
            loop {
                if ready!(socket.poll_read_ready(cx)).is_err() {
                    return Poll::Ready(());
                }
                match socket.try_read(&mut talk) {
                    Ok(0) => return Poll::Ready(()),
                    Ok(count) => {
                        *heard += count;
                        if *heard > IDLE_TALK {
                            return Poll::Ready(());
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return Poll::Ready(()),
                }
            }
        })
    }
}

impl Outlet for TcpStream {
    fn write(&self, chunk: &Bytes) -> usize {
        // Past tokio, which would first look up whether it takes the socket for writable, in memory that is
        // cold by then (measured: a tenth of what an event cost). What is wrong with a socket, or that
        // it is full, is found by the connection, which is woken.
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        rustix::net::send(self, chunk, flags).unwrap_or(0)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if let Some(direct) = &self.direct {
            direct.end();
        }
    }
}

impl Future for Events {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        if self.poll_leave(cx).is_ready() {
            return Poll::Ready(Ended::Left);
        }
        self.begin();
        let mut waits = false;
        loop {
            if let Err(ended) = ready!(self.poll_write(cx)) {
                return Poll::Ready(ended);
            }
            if waits {
                // Nothing is kept from others for as long as this one waits.
                self.out.clear();
                return self.rest();
            }
            match self.poll_gather(cx) {
                Poll::Ready(Ok(no_more)) => waits = no_more,
                Poll::Ready(Err(ended)) => return Poll::Ready(ended),
                Poll::Pending => return self.rest(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::stream::{self, StreamExt};
    use http_body_util::{BodyExt, StreamBody};
    use hyper::body::Frame;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ours, theirs) = tokio::join!(listener.accept(), TcpStream::connect(address));
        (ours.unwrap().0, theirs.unwrap())
    }

    /// An answer of these frames, without an end if `endless`.
    fn answer(frames: Vec<Bytes>, endless: bool) -> Response {
        let frames = stream::iter(frames).map(|frame| Ok(Frame::data(frame)));
        let body = if endless {
            StreamBody::new(frames.chain(stream::pending())).boxed_unsync()
        } else {
            StreamBody::new(frames).boxed_unsync()
        };
        Response::new(body)
    }

    /// The chunks of a whole answer.
    fn chunks(answer: &[u8]) -> Vec<Vec<u8>> {
        let head = answer
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap();
        let mut rest = &answer[head + 4..];
        let mut chunks = Vec::new();
        loop {
            let line = rest.windows(2).position(|two| two == b"\r\n").unwrap();
            let size = std::str::from_utf8(&rest[..line]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            let chunk = &rest[line + 2..line + 2 + size];
            assert_eq!(&rest[line + 2 + size..line + 4 + size], b"\r\n");
            rest = &rest[line + 4 + size..];
            if size == 0 {
                assert!(rest.is_empty());
                return chunks;
            }
            chunks.push(chunk.to_vec());
        }
    }

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_slow_reader_gets_every_byte_once() {
        let (ours, mut theirs) = pair().await;
        let frames: Vec<Bytes> = (0..800_usize)
            .map(|n| vec![b'a' + u8::try_from(n % 26).unwrap(); 1 + n * 61 % 40_000].into())
            .collect();
        let sent = frames.concat();
        let events = tokio::spawn(Events::new(ours, answer(frames, false), PATIENCE));
        let mut got = Vec::new();
        let mut buffer = vec![0; 7001];
        loop {
            let count = theirs.read(&mut buffer).await.unwrap();
            if count == 0 {
                break;
            }
            got.extend_from_slice(&buffer[..count]);
        }
        assert!(got.starts_with(b"HTTP/1.1 200 OK\r\n"));
        assert!(chunks(&got).concat() == sent);
        assert!(matches!(events.await.unwrap(), Ended::Whole));
    }

    #[tokio::test]
    async fn what_waits_goes_out_at_once() {
        let (ours, mut theirs) = pair().await;
        let frames: Vec<Bytes> = ["one ", "two ", "three"].map(Bytes::from).to_vec();
        let ended = Events::new(ours, answer(frames, false), PATIENCE).await;
        assert!(matches!(ended, Ended::Whole));
        let mut got = Vec::new();
        theirs.read_to_end(&mut got).await.unwrap();
        assert_eq!(chunks(&got), [b"one two three"]);
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_given_up() {
        let (ours, theirs) = pair().await;
        let frames = vec![Bytes::from(vec![b'x'; 1 << 20]); 64];
        let events = Events::new(ours, answer(frames, true), Duration::from_millis(200));
        assert!(matches!(events.await, Ended::Stalled));
        drop(theirs);
    }

    #[tokio::test]
    async fn who_leaves_is_noticed_and_who_talks_is_not_listened_to() {
        let (ours, mut theirs) = pair().await;
        let events = tokio::spawn(Events::new(ours, answer(vec!["x".into()], true), PATIENCE));
        theirs.write_all(&[b'?'; 3000]).await.unwrap();
        let mut head = [0; 64];
        theirs.read_exact(&mut head).await.unwrap();
        assert!(!events.is_finished());
        drop(theirs);
        assert!(matches!(events.await.unwrap(), Ended::Left));

        let (ours, mut theirs) = pair().await;
        let events = tokio::spawn(Events::new(ours, answer(vec!["x".into()], true), PATIENCE));
        // Whoever goes on talking is shown out, perhaps in the middle of a word.
        let _shown_out = theirs.write_all(&vec![b'?'; 2 * IDLE_TALK]).await;
        assert!(matches!(events.await.unwrap(), Ended::Left));
    }

    #[tokio::test]
    async fn a_socket_comes_back_and_tells_whether_it_was_flushed() {
        let (ours, _theirs) = pair().await;
        let home = Home::default();
        let mut lent = home.lend(ours);
        assert!(home.is_flushed());
        lent.write_all(b"x").await.unwrap();
        assert!(!home.is_flushed());
        lent.flush().await.unwrap();
        assert!(home.is_flushed());
        assert!(home.take().is_none());
        drop(lent);
        assert!(home.take().is_some());
    }
}
