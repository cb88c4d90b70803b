//! Key sets that somebody else keeps: a file or a URL, read again in time.
//!
//! Promises that a key which its issuer has removed is dead within 60 s (5 s for a file), that an
//! issuer which cannot be reached does no harm for an hour, that tokens cannot make us ask more
//! than once in 30 s, and that what comes back is small and in time. A set is read only when a token
//! needs one, or somebody has a stream open. It does not know tokens.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::Instant;

use super::keys::{self, KeyError, KeySet, Print};
use crate::backoff::Backoff;
use crate::causes::Causes;

/// Largest key set, in bytes.
const LIMIT: usize = 256 * 1024;
/// Longest time for a set to arrive.
const WITHIN: Duration = Duration::from_secs(5);
/// A set serves for this long after the last success.
const OLDEST: Duration = Duration::from_hours(1);

/// When a set is read again.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// At this age whoever comes first reads it, while others go on with the old one.
    due: Duration,
    /// From this age on nobody goes on with the old one.
    overdue: Duration,
    /// After a failure it is tried again no sooner.
    again: Duration,
    /// For an unknown key id it is read no sooner after the last time.
    unknown: Duration,
}

/// `overdue` and [`WITHIN`] stay below a minute together.
const URL: Pace = Pace {
    due: Duration::from_secs(30),
    overdue: Duration::from_secs(50),
    again: Duration::from_secs(10),
    unknown: Duration::from_secs(30),
};
const FILE: Pace = Pace {
    due: Duration::from_secs(5),
    overdue: Duration::from_secs(5),
    again: Duration::from_secs(5),
    unknown: Duration::from_secs(5),
};

/// Why a key set cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The file.
    #[error("the key set file cannot be read")]
    File(#[source] std::io::Error),
    /// The connection or the answer broke.
    #[error("the key set cannot be fetched")]
    Fetch(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Another status than 200. Redirects are not followed: who can redirect us could name keys.
    #[error("the key set's server answers {0}")]
    Status(u16),
    /// It took longer than 5 s.
    #[error("the key set did not arrive within 5 s")]
    Slow,
    /// It has more than 256 KiB.
    #[error("the key set exceeds 262144 bytes")]
    TooLarge,
    /// It came and is not a key set.
    #[error("what was read is not a key set")]
    Content(#[source] KeyError),
    /// The address is neither `https` nor `http` on this machine.
    #[error("the key set's address must be https, or http on a loopback address")]
    Address,
    /// The system has no root certificates to verify the server with.
    #[error("there are no root certificates on this system")]
    NoRoots,
}

type Read = Arc<dyn Fn() -> BoxFuture<'static, Result<Bytes, SourceError>> + Send + Sync>;

/// A key set with where it comes from.
pub(super) struct Source {
    read: Read,
    pace: Pace,
    /// Anybody may read it, so no shared secret belongs in it.
    published: bool,
    /// A standard mutex: held only to look and to note, never while something is read.
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// The last good set and when it was read.
    good: Option<(Arc<KeySet>, Instant)>,
    /// What the last good set was read from, so that the same text is not parsed again.
    print: Option<[u8; 32]>,
    /// When it was last begun to read.
    begun: Option<Instant>,
    /// When a reading failed last, if none has succeeded since.
    failed: Option<Instant>,
    /// The reading that is under way.
    reading: Option<Shared<BoxFuture<'static, ()>>>,
    /// Remembers what was told of failures.
    news: Backoff,
}

impl fmt::Debug for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Source")
            .field("pace", &self.pace)
            .finish_non_exhaustive()
    }
}

/// What [`Source::keys`] is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// The set as it is, if young enough.
    Current,
    /// A newer one than that in which a key id was not found.
    Newer,
}

impl Source {
    /// A file. It is read once at once, so that a mistake is told at the start.
    pub(super) fn file(path: PathBuf) -> Result<Self, SourceError> {
        let bytes = std::fs::read(&path).map_err(SourceError::File)?;
        let read: Read = Arc::new(move || {
            let path = path.clone();
            async move {
                let bytes = tokio::fs::read(path).await.map_err(SourceError::File)?;
                Ok(bytes.into())
            }
            .boxed()
        });
        let source = Self::new(read, FILE, false);
        source.lock().take(&bytes, false, Instant::now())?;
        Ok(source)
    }

    /// A URL. Nothing is asked before a token comes: the issuer may start after us.
    pub(super) fn url(address: &str) -> Result<Self, SourceError> {
        let uri: Uri = address.parse().map_err(|_| SourceError::Address)?;
        if !is_trustworthy(&uri) {
            return Err(SourceError::Address);
        }
        let client = client(uri.scheme_str() == Some("https"))?;
        let read: Read = Arc::new(move || fetch(client.clone(), uri.clone()).boxed());
        Ok(Self::new(read, URL, true))
    }

    fn new(read: Read, pace: Pace, published: bool) -> Self {
        Self {
            read,
            pace,
            published,
            state: Arc::default(),
        }
    }

    /// The keys. Reads them first where their age or an unknown key id demands it; one reading
    /// serves all who wait. `None` when there are none younger than an hour.
    pub(super) async fn keys(&self, want: Want) -> Option<Arc<KeySet>> {
        let now = Instant::now();
        let awaited = {
            let mut state = self.lock();
            let begins = state.is_to_read(want, self.pace, now);
            if begins {
                self.begin(&mut state, now);
            }
            let waits = state.is_to_wait(want, self.pace, now) || begins && want == Want::Newer;
            state.reading.clone().filter(|_| waits)
        };
        if let Some(reading) = awaited {
            reading.await;
        }
        self.lock().serving().map(Arc::clone)
    }

    /// Whether the set that serves has a key of this print. Nobody can tell where it is away.
    pub(super) fn may_have(&self, print: &Print) -> bool {
        self.lock().serving().is_none_or(|keys| keys.has(print))
    }

    /// Reads in a task of its own, which ends within [`WITHIN`]: a client that hangs up must not
    /// keep a removed key alive by breaking off the reading that would remove it.
    fn begin(&self, state: &mut State, now: Instant) {
        state.begun = Some(now);
        let (read, shared, published) = ((self.read)(), Arc::clone(&self.state), self.published);
        let task = tokio::spawn(async move {
            let read = tokio::time::timeout(WITHIN, read)
                .await
                .unwrap_or(Err(SourceError::Slow));
            let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
            let taken = read.and_then(|bytes| state.take(&bytes, published, now));
            state.failed = taken.is_err().then(Instant::now);
            state.reading = None;
            match taken {
                Ok(()) => state.news.reset(),
                Err(error) => state.tell(&Causes(&error).to_string()),
            }
        });
        state.reading = Some(task.map(|_| ()).boxed().shared());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The last good set, while it is young enough.
    fn serving(&self) -> Option<&Arc<KeySet>> {
        let (keys, read) = self.good.as_ref()?;
        (read.elapsed() < OLDEST).then_some(keys)
    }

    /// Tells why a set could not be read. It is tried again every few seconds, and an issuer may be away for hours.
    fn tell(&mut self, error: &str) {
        let what = match self.serving() {
            Some(_) => "the key set could not be read; the last one serves on",
            None => {
                "the key set could not be read, and there is no other: its tokens cannot be judged"
            }
        };
        if self.news.is_news(&format!("{what}: {error}")) {
            tracing::warn!(error, "{what}");
        } else {
            tracing::debug!(error, "{what}");
        }
    }

    /// Takes in what was read. Its age counts from when the reading began.
    fn take(&mut self, bytes: &[u8], published: bool, now: Instant) -> Result<(), SourceError> {
        if bytes.len() > LIMIT {
            return Err(SourceError::TooLarge);
        }
        let print = keys::fingerprint(bytes);
        let keys = match &self.good {
            Some((keys, _)) if self.print == Some(print) => Arc::clone(keys),
            _ => Arc::new(KeySet::issued(bytes, published).map_err(SourceError::Content)?),
        };
        self.good = Some((keys, now));
        self.print = Some(print);
        Ok(())
    }

    fn is_to_read(&self, want: Want, pace: Pace, now: Instant) -> bool {
        if self.reading.is_some() {
            return false;
        }
        let age = self.good.as_ref().map(|(_, read)| now - *read);
        let since = self.begun.map(|begun| now - begun);
        let rested = since.is_none_or(|since| self.failed.is_none() || since >= pace.again);
        let due = age.is_none_or(|age| age >= pace.due);
        let unknown =
            want == Want::Newer && since.or(age).is_none_or(|since| since >= pace.unknown);
        rested && (due || unknown)
    }

    /// Whether the present set will not do while another is being read. Shortly after a failure it
    /// does: an issuer that is silent must not make every request wait.
    fn is_to_wait(&self, want: Want, pace: Pace, now: Instant) -> bool {
        match &self.good {
            Some((_, read)) if now - *read < OLDEST => {
                let excused = self.failed.is_some_and(|at| now - at < pace.overdue);
                !excused && (want == Want::Newer || now - *read >= pace.overdue)
            }
            _ => true,
        }
    }
}

/// Keys that came over a readable wire are anybody's.
fn is_trustworthy(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    match uri.scheme_str() {
        Some("https") => !host.is_empty(),
        Some("http") => {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            host == "localhost"
                || host
                    .parse::<std::net::IpAddr>()
                    .is_ok_and(|address| address.is_loopback())
        }
        _ => false,
    }
}

type Fetcher = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

fn client(secure: bool) -> Result<Fetcher, SourceError> {
    let mut roots = rustls::RootCertStore::empty();
    if secure {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(SourceError::NoRoots);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has what the protocol versions need")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .build();
    Ok(Client::builder(TokioExecutor::new())
        // A set is asked for twice a minute: no connection is worth keeping for that.
        .pool_max_idle_per_host(0)
        .build(connector))
}

async fn fetch(client: Fetcher, uri: Uri) -> Result<Bytes, SourceError> {
    let answer = client
        .get(uri)
        .await
        .map_err(|error| SourceError::Fetch(error.into()))?;
    if answer.status() != 200 {
        return Err(SourceError::Status(answer.status().as_u16()));
    }
    let body = Limited::new(answer.into_body(), LIMIT).collect().await;
    body.map(http_body_util::Collected::to_bytes)
        .map_err(|error| {
            if error.is::<http_body_util::LengthLimitError>() {
                SourceError::TooLarge
            } else {
                SourceError::Fetch(error)
            }
        })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::{advance, sleep};

    use super::*;

    const ONE: &str =
        r#"{"keys":[{"kty":"oct","kid":"one","k":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}]}"#;
    const TWO: &str =
        r#"{"keys":[{"kty":"oct","kid":"two","k":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}]}"#;

    /// An issuer that says what it is told to and counts who asks.
    #[derive(Clone, Default)]
    struct Issuer {
        /// What it says: a set, nothing (it is broken), or silence.
        says: Arc<Mutex<Says>>,
        asked: Arc<AtomicUsize>,
    }

    #[derive(Clone, Copy, Default)]
    enum Says {
        #[default]
        Broken,
        Nothing,
        Set(&'static str),
    }

    impl Issuer {
        fn saying(set: &'static str) -> (Self, Source) {
            let issuer = Self::default();
            issuer.say(Says::Set(set));
            let asked = issuer.clone();
            let read: Read = Arc::new(move || {
                asked.asked.fetch_add(1, Ordering::Relaxed);
                let says = *asked.says.lock().unwrap();
                async move {
                    match says {
                        Says::Broken => Err(SourceError::Status(500)),
                        Says::Nothing => std::future::pending().await,
                        Says::Set(set) => Ok(Bytes::from_static(set.as_bytes())),
                    }
                }
                .boxed()
            });
            let source = Source::new(read, URL, false);
            (issuer, source)
        }

        fn say(&self, says: Says) {
            *self.says.lock().unwrap() = says;
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::Relaxed)
        }
    }

    /// Which of the two keys the source has.
    async fn has(source: &Source, want: Want) -> Option<&'static str> {
        let keys = format!("{:?}", source.keys(want).await?);
        ["one", "two"].into_iter().find(|kid| keys.contains(kid))
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn a_removed_key_is_dead_within_a_minute() {
        let (issuer, source) = Issuer::saying(ONE);
        assert_eq!(has(&source, Want::Current).await, Some("one"));
        issuer.say(Says::Set(TWO));
        advance(seconds(29)).await;
        assert_eq!(has(&source, Want::Current).await, Some("one"));
        assert_eq!(issuer.asked(), 1);
        advance(seconds(31)).await;
        assert_eq!(has(&source, Want::Current).await, Some("two"));
        issuer.say(Says::Set(r#"{"keys":[]}"#));
        advance(seconds(60)).await;
        assert_eq!(has(&source, Want::Current).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_removed_key_is_dead_within_a_minute_also_when_clients_hang_up() {
        let (issuer, source) = Issuer::saying(ONE);
        assert_eq!(has(&source, Want::Current).await, Some("one"));
        issuer.say(Says::Set(TWO));
        for _ in 0..60 {
            advance(seconds(1)).await;
            let hung_up = source.keys(Want::Current).now_or_never();
            drop(hung_up);
            tokio::task::yield_now().await;
        }
        assert_eq!(has(&source, Want::Current).await, Some("two"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_set_is_read_again_beside_requests_and_not_before_them() {
        let (issuer, source) = Issuer::saying(ONE);
        assert_eq!(has(&source, Want::Current).await, Some("one"));
        advance(seconds(31)).await;
        issuer.say(Says::Nothing);
        let now = Instant::now();
        assert_eq!(has(&source, Want::Current).await, Some("one"));
        assert_eq!(
            now.elapsed(),
            Duration::ZERO,
            "nobody waits for a young set"
        );
        assert_eq!(issuer.asked(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_keys_make_us_ask_once_in_30_seconds() {
        let (issuer, source) = Issuer::saying(ONE);
        assert_eq!(has(&source, Want::Current).await, Some("one"));
        issuer.say(Says::Set(TWO));
        for _ in 0..20 {
            assert_eq!(has(&source, Want::Newer).await, Some("one"));
        }
        assert_eq!(issuer.asked(), 1);
        advance(seconds(30)).await;
        assert_eq!(has(&source, Want::Newer).await, Some("two"));
        for _ in 0..20 {
            assert_eq!(has(&source, Want::Newer).await, Some("two"));
        }
        assert_eq!(issuer.asked(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_issuer_that_is_away_does_no_harm_for_an_hour() {
        let (issuer, source) = Issuer::saying(ONE);
        assert_eq!(has(&source, Want::Current).await, Some("one"));
        issuer.say(Says::Broken);
        for _ in 0..59 {
            advance(seconds(60)).await;
            assert_eq!(has(&source, Want::Current).await, Some("one"));
        }
        advance(seconds(61)).await;
        assert_eq!(has(&source, Want::Current).await, None);
        issuer.say(Says::Set(TWO));
        advance(seconds(10)).await;
        assert_eq!(has(&source, Want::Current).await, Some("two"));
    }

    #[tokio::test(start_paused = true)]
    async fn that_a_set_cannot_be_read_is_told_once_and_whether_one_serves() {
        let text = Arc::<Mutex<Vec<u8>>>::default();
        let writer = Arc::clone(&text);
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || Log(Arc::clone(&writer)))
            .finish();
        let _told = tracing::subscriber::set_default(subscriber);
        let told = || {
            let text = String::from_utf8(std::mem::take(&mut *text.lock().unwrap())).unwrap();
            let lines = text
                .lines()
                .map(|line| line.contains("the last one serves"));
            lines.collect::<Vec<_>>()
        };
        let (issuer, source) = Issuer::saying(ONE);
        let look = async |minutes: u64| {
            for _ in 0..minutes {
                advance(seconds(60)).await;
                let _keys = has(&source, Want::Current).await;
            }
        };
        issuer.say(Says::Broken);
        look(10).await;
        assert_eq!(told(), [false], "there was none yet");
        issuer.say(Says::Set(ONE));
        look(1).await;
        issuer.say(Says::Broken);
        look(59).await;
        assert_eq!(told(), [true]);
        look(10).await;
        assert_eq!(told(), [false], "it is too old");
    }

    /// Keeps what is written.
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let Self(text) = self;
            text.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_issuer_makes_few_wait_and_nobody_longer_than_5_seconds() {
        let (issuer, source) = Issuer::saying(ONE);
        assert_eq!(has(&source, Want::Current).await, Some("one"));
        issuer.say(Says::Nothing);
        advance(seconds(55)).await;
        let began = Instant::now();
        assert_eq!(has(&source, Want::Current).await, Some("one"));
        assert_eq!(began.elapsed().as_secs(), WITHIN.as_secs());
        for _ in 0..300 {
            let began = Instant::now();
            assert_eq!(has(&source, Want::Current).await, Some("one"));
            assert_eq!(
                began.elapsed(),
                Duration::ZERO,
                "after a failure nobody waits"
            );
            advance(Duration::from_millis(100)).await;
        }
        assert!(issuer.asked() <= 6, "{}", issuer.asked());
    }

    #[tokio::test(start_paused = true)]
    async fn one_reading_serves_all_who_wait() {
        let (issuer, source) = Issuer::saying(ONE);
        let all = futures::future::join_all((0..50).map(|_| has(&source, Want::Current))).await;
        assert!(all.iter().all(|key| *key == Some("one")));
        assert_eq!(issuer.asked(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_key_set_changes_nothing() {
        let (issuer, source) = Issuer::saying(ONE);
        assert_eq!(has(&source, Want::Current).await, Some("one"));
        for wrong in ["", "<html>", "{}", r#"{"keys":7}"#] {
            issuer.say(Says::Set(wrong));
            advance(seconds(60)).await;
            assert_eq!(has(&source, Want::Current).await, Some("one"), "{wrong}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_changes_is_read_again_within_5_seconds() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("jwks.json");
        std::fs::write(&path, ONE).unwrap();
        let source = Source::file(path.clone()).unwrap();
        assert_eq!(has(&source, Want::Current).await, Some("one"));
        std::fs::write(&path, TWO).unwrap();
        advance(seconds(4)).await;
        assert_eq!(has(&source, Want::Current).await, Some("one"));
        advance(seconds(1)).await;
        assert_eq!(has(&source, Want::Current).await, Some("two"));
        std::fs::remove_file(&path).unwrap();
        advance(seconds(5)).await;
        assert_eq!(has(&source, Want::Current).await, Some("two"));
    }

    /// Answers every connection with these bytes.
    async fn server(answer: Vec<u8>) -> Source {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut head = [0; 1024];
                let _read = socket.read(&mut head).await;
                let _written = socket.write_all(&answer).await;
                sleep(Duration::from_millis(50)).await;
            }
        });
        Source::url(&format!("http://{address}/jwks.json")).unwrap()
    }

    fn answer(status: &str, body: &str) -> Vec<u8> {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: {length}\r\n\r\n{body}")
            .into_bytes()
    }

    async fn fetched(answer: Vec<u8>) -> Result<usize, String> {
        let source = server(answer).await;
        (source.read)()
            .await
            .map(|bytes| bytes.len())
            .map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_set_is_fetched_over_http_and_secrets_in_it_are_left_out() {
        assert_eq!(fetched(answer("200 OK", ONE)).await, Ok(ONE.len()));
        let source = server(answer("200 OK", ONE)).await;
        assert!(source.keys(Want::Current).await.is_some());
        assert_eq!(has(&source, Want::Current).await, None);
    }

    #[tokio::test]
    async fn redirects_errors_and_oversize_are_not_followed_or_read() {
        for status in ["302 Found", "404 Not Found", "500 Oops", "204 No Content"] {
            let told = fetched(answer(status, "")).await.unwrap_err();
            assert!(told.ends_with(&status[..3]), "{told}");
        }
        let large = answer("200 OK", &" ".repeat(LIMIT + 1));
        assert!(fetched(large).await.unwrap_err().contains("exceeds"));
        let endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        let chunk = [b"10000\r\n".to_vec(), vec![b' '; 0x10000], b"\r\n".to_vec()].concat();
        let endless = [endless, chunk.repeat(6)].concat();
        assert!(fetched(endless).await.unwrap_err().contains("exceeds"));
        assert!(fetched(b"nonsense".to_vec()).await.is_err());
    }

    #[test]
    fn only_https_or_this_machine_is_trusted() {
        for (address, trusted) in [
            ("https://issuer.example/jwks", true),
            ("http://localhost:9/jwks", true),
            ("http://127.0.0.1:9/jwks", true),
            ("http://[::1]:9/jwks", true),
            ("http://issuer.example/jwks", false),
            ("http://127.0.0.1.evil.example/", false),
            ("http://10.0.0.1/", false),
            ("/jwks", false),
        ] {
            let uri = address.parse().unwrap();
            assert_eq!(is_trustworthy(&uri), trusted, "{address}");
        }
    }
}
