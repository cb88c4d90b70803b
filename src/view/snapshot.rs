//! The state of a view at one moment, and sharing it.
//!
//! The snapshot is the first thing its transaction asks for and the rows are read in it, so a
//! screen that continues from there has no gap and no duplicate. Requests that come while one is
//! read, or is about to be, share it, and with it the position in the topic from which to go on. How
//! it is read is handed in ([`query`] does it), so that sharing is the same whoever reads.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, WeakShared};
use futures::{StreamExt, pin_mut};
use tokio::time::Instant;
use tokio_postgres::RowStream;

use super::View;
use super::asking::{AskError, Digest};
use crate::cursor::{Cursor, Name};
use crate::event::Element;
use crate::log::Place;
use crate::postgres::pool::{Lease, Pool, PoolError};
use crate::postgres::transaction::{self, Terms, TransactionError};
use crate::postgres::untyped::untyped;
use crate::rows::statement::Statement;
use crate::sse;

/// Bytes after which a piece of a snapshot is closed.
pub const PIECE: usize = 128 << 10;

/// A view's state.
#[derive(Debug)]
pub struct Snapshot {
    /// Where its rows were read.
    pub cursor: Arc<Cursor>,
    /// In which life of the transaction counter.
    pub epoch: Option<Name>,
    /// Where in the view's topic to go on; what is done in `cursor` is to be skipped.
    pub position: u64,
    /// The data lines of its events: marks and rows. Never empty.
    pub pieces: Vec<Bytes>,
    /// The first piece with a reset in front.
    pub reset: Bytes,
    /// Of its rows.
    pub digest: Digest,
}

/// What was read of a view.
#[derive(Debug)]
pub struct State {
    /// See [`Snapshot::cursor`].
    pub cursor: Cursor,
    /// See [`Snapshot::epoch`].
    pub epoch: Option<Name>,
    /// See [`Snapshot::pieces`].
    pub pieces: Vec<Bytes>,
    /// See [`Snapshot::digest`].
    pub digest: Digest,
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No connection.
    #[error("no connection for reading the view")]
    Connect(#[from] PoolError),
    /// The transaction around it.
    #[error("the view could not be read")]
    Transaction(#[from] TransactionError),
    /// PostgreSQL's answer.
    #[error("the view could not be read")]
    Query(#[from] tokio_postgres::Error),
    /// Rows are not as the catalogue says.
    #[error("the view's table has changed")]
    Changed,
    /// More than is kept in memory for one view.
    #[error("the view holds more than {0} bytes")]
    TooLarge(usize),
    /// A snapshot in another form, or none.
    #[error("the database gave no snapshot")]
    NoSnapshot,
}

impl From<AskError> for SnapshotError {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Query(error) => Self::Query(error),
            AskError::Anew => Self::Changed,
        }
    }
}

type Reading = BoxFuture<'static, Result<Arc<Snapshot>, Arc<SnapshotError>>>;

/// The read in flight, if any.
#[derive(Default)]
pub(super) struct Flight(Mutex<Flown>);

#[derive(Default)]
struct Flown {
    /// Weak: when everybody who waited has gone, it ends.
    reading: Option<WeakShared<Reading>>,
    /// When it began to read.
    begun: Option<Instant>,
}

/// A herd arrives one after the other, and a small state is read before the next one is here. So a
/// read begins no sooner than this after the one before, and whoever comes meanwhile shares it.
const APART: Duration = Duration::from_millis(40);

impl std::fmt::Debug for Flight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Flight")
    }
}

/// How snapshots are read.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of rows.
    pub bytes: usize,
    /// `statement_timeout` of the read.
    pub timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 64 << 20,
            timeout: Duration::from_secs(30),
        }
    }
}

/// Begins to read the state of a view.
pub type Begin<'a> =
    &'a (dyn Fn() -> BoxFuture<'static, Result<State, SnapshotError>> + Send + Sync);

/// The state of `view` as `begin` reads it, or as the read that is in flight does. The view must be
/// registered with the feed before, or events between the two would get lost.
///
/// # Errors
/// [`SnapshotError`], shared by all who waited.
pub async fn read(view: &Arc<View>, begin: Begin<'_>) -> Result<Arc<Snapshot>, Arc<SnapshotError>> {
    let reading = {
        let mut flight = view.snapshots.0.lock().expect("no panic while held");
        let begun = flight.reading.as_ref().and_then(WeakShared::upgrade);
        if let Some(reading) = begun.filter(|reading| reading.peek().is_none()) {
            reading
        } else {
            let now = Instant::now();
            let at = flight.begun.map_or(now, |before| now.max(before + APART));
            let (view, state) = (Arc::clone(view), begin());
            let reading: Reading = async move {
                if at > now {
                    tokio::time::sleep_until(at).await;
                }
                let position = view.topic.end();
                let reading = view.read_state();
                let state = state.await.map_err(Arc::new)?;
                if state.digest != Digest::default() {
                    view.set_shown();
                }
                drop(reading);
                Ok(Arc::new(Snapshot {
                    cursor: Arc::new(state.cursor),
                    epoch: state.epoch,
                    position,
                    reset: sse::with_reset(&state.pieces[0]),
                    pieces: state.pieces,
                    digest: state.digest,
                }))
            }
            .boxed();
            let reading = reading.shared();
            *flight = Flown {
                reading: reading.downgrade(),
                begun: Some(at),
            };
            reading
        }
    };
    reading.await
}

/// Reads the state of a view from the database.
///
/// # Errors
/// [`SnapshotError`].
pub async fn query(
    view: &View,
    pool: &Pool,
    place: &Place,
    limits: &Limits,
) -> Result<State, SnapshotError> {
    let mut again = transaction::MOVES;
    loop {
        match query_once(view, pool, place, limits).await {
            Err(SnapshotError::Transaction(TransactionError::Moved)) if again > 0 => again -= 1,
            state => return state,
        }
    }
}

async fn query_once(
    view: &View,
    pool: &Pool,
    place: &Place,
    limits: &Limits,
) -> Result<State, SnapshotError> {
    let lease = Lease::take_for(view.context().caller(), pool).await?;
    let tables = view.tables();
    let terms = Terms {
        tables: &tables,
        ..Terms::read(view.context(), limits.timeout)
    };
    transaction::run(lease, terms, async |client| {
        let Statement { sql, params, .. } = &view.definition.statement;
        // Both are sent before either is answered; the transaction gives them one snapshot.
        let (head, rows) = futures::join!(
            client.query_typed(HEAD, &[]),
            client.query_typed_raw(sql, untyped(params)),
        );
        let head = head?;
        let head = head.first().ok_or(SnapshotError::NoSnapshot)?;
        let cursor =
            Cursor::from_pg_snapshot(head.try_get(0)?).map_err(|_| SnapshotError::NoSnapshot)?;
        let uuid: Option<&str> = head.try_get(1)?;
        let (pieces, digest) = pieces(view, rows?, limits.bytes).await?;
        Ok(State {
            cursor,
            epoch: uuid.map(|uuid| place.epoch(uuid)),
            pieces,
            digest,
        })
    })
    .await
}

/// The marks and the rows between them, in pieces of bounded size.
async fn pieces(
    view: &View,
    rows: RowStream,
    limit: usize,
) -> Result<(Vec<Bytes>, Digest), SnapshotError> {
    pin_mut!(rows);
    let mut pieces = Pieces::new(view, PIECE);
    while let Some(row) = rows.next().await {
        pieces.push(&view.state_row(&row?)?);
        // As they are kept: around a small row there is more than there is in it.
        if pieces.bytes() > limit {
            return Err(SnapshotError::TooLarge(limit));
        }
    }
    Ok(pieces.finish())
}

/// The marks of a state and the rows between them, as they come.
#[derive(Debug)]
pub struct Pieces<'a> {
    view: &'a View,
    /// Bytes after which a piece is closed.
    piece: usize,
    done: Vec<Bytes>,
    /// Bytes of `done`.
    closed: usize,
    array: sse::Array<'a>,
    digest: Digest,
}

impl<'a> Pieces<'a> {
    /// A state without rows, in pieces of about so many bytes ([`PIECE`]).
    #[must_use]
    pub fn new(view: &'a View, piece: usize) -> Self {
        let mut array = view.array();
        array.push(&Element::SnapshotStart);
        Self {
            view,
            piece,
            done: Vec::new(),
            closed: 0,
            array,
            digest: Digest::default(),
        }
    }

    /// Adds a row.
    pub fn push(&mut self, row: &Element) {
        if let Element::Row { key, value } = row
            && self.view.asking().is_some()
        {
            self.digest.add(key, value.as_ref());
        }
        self.array.push(row);
        if self.array.bytes() > self.piece {
            let piece = std::mem::replace(&mut self.array, self.view.array()).finish();
            self.closed += piece.len();
            self.done.push(piece);
        }
    }

    /// Bytes so far.
    fn bytes(&self) -> usize {
        self.closed + self.array.bytes()
    }

    /// The data lines of its events, in pieces of bounded size, and the digest of the rows where the
    /// view asks.
    #[must_use]
    pub fn finish(mut self) -> (Vec<Bytes>, Digest) {
        self.array.push(&Element::SnapshotEnd);
        self.done.push(self.array.finish());
        (self.done, self.digest)
    }
}

/// The watcher's role may not read the epoch itself.
const HEAD: &str = "select snapshot::text, epoch::text from rowcast.position()";

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::filter::Matcher;
    use crate::view::Sight;
    use crate::view::image::Images;
    use crate::view::tests::definition;

    fn view() -> Arc<View> {
        let sight = Sight::Images(Images {
            key: vec!["id".to_owned()],
            matcher: Matcher::default(),
            columns: None,
        });
        Arc::new(View::new(Name::of(["v"]), definition(1, sight)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_herd_that_arrives_one_after_the_other_shares_a_few_reads() {
        let (view, reads) = (view(), Arc::new(AtomicU64::new(0)));
        let arrive = |after: u64| {
            let (view, reads) = (Arc::clone(&view), Arc::clone(&reads));
            async move {
                tokio::time::sleep(Duration::from_millis(after)).await;
                let begin = || {
                    let (view, reads) = (Arc::clone(&view), Arc::clone(&reads));
                    async move {
                        let xmax = reads.fetch_add(1, Ordering::Relaxed);
                        let (pieces, digest) = Pieces::new(&view, PIECE).finish();
                        Ok(State {
                            cursor: Cursor::new(xmax, []),
                            epoch: None,
                            pieces,
                            digest,
                        })
                    }
                    .boxed()
                };
                let arrived = Instant::now();
                read(&view, &begin).await.unwrap();
                arrived.elapsed()
            }
        };
        let first = arrive(0).await;
        assert_eq!(first, Duration::ZERO, "who comes alone does not wait");
        let waited = futures::future::join_all((0..200).map(arrive)).await;
        let most = waited.iter().max().unwrap();
        assert!(*most <= APART + Duration::from_millis(1), "{most:?}");
        // The first, and one each forty milliseconds.
        assert!(reads.load(Ordering::Relaxed) <= 7, "{reads:?}");
    }
}
