//! One relay: the real stage, the real reader of the log, the real streams, on the model's database.
//!
//! Whatever would travel to the database takes a random number of turns to get there and back, so
//! that everything else gets in between.

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{self, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{BoxStream, StreamExt};
use rowcast::backoff::Backoff;
use rowcast::bell::machine::{Hearing, Machine, Read};
use rowcast::cursor::{Cursor, Name, Xid};
use rowcast::event::Element;
use rowcast::feed::{
    Asker, EpochEnded, Pace, Question, Reading, Source as Asked, Stage, Unanswered, ask, follow,
};
use rowcast::filter::{Condition, Kind, Matcher};
use rowcast::health::Health;
use rowcast::hub;
use rowcast::log::{Batch, Bounds, Place};
use rowcast::metrics::{Metrics, Reason};
use rowcast::mutants::{Mutant, on};
use rowcast::postgres::transaction::Context;
use rowcast::rows::statement::Statement;
use rowcast::schema::catalog::Catalog;
use rowcast::schema::migrate::Bell;
use rowcast::shutdown::Shutdown;
use rowcast::subscription::direct::Direct;
use rowcast::subscription::{
    Ask, Limits, Opener, Parts, Reads, Since, Source, Subscription, Trouble, Unavailable, beats,
};
use rowcast::view::answering::Answering;
use rowcast::view::asking::{Answer, AskError, Asking, Pending, Shown};
use rowcast::view::image::Images;
use rowcast::view::keys::Keys;
use rowcast::view::snapshot::{Pieces, SnapshotError, State};
use rowcast::view::{Definition, Sight, View};
use tokio::sync::{Notify, watch};

use crate::database::{CHANNEL, Database, Picture, Row};
use crate::truth::Shows;

/// Small, so that everything that is bounded runs over.
const MEMORY: usize = 6 << 10;
const BUFFER: hub::Bounds = hub::Bounds {
    items: 6,
    weight: 4 << 10,
};
const PIECE: usize = 150;
/// What an old token may make a relay read.
pub const LOG: Bounds = Bounds {
    rows: 8,
    bytes: 2 << 10,
    batch: 4 << 10,
    total: 16,
};

/// What relays and the scheduler share.
pub struct Shared {
    pub database: Database,
    pub random: fastrand::Rng,
    /// Nothing ever goes wrong.
    pub healthy: bool,
    /// Catalogues read.
    pub reads: u64,
    /// Relays that cannot reach the database.
    pub cut: Vec<bool>,
    pub statistics: crate::Statistics,
    pub trace: Option<Vec<String>>,
    /// Something that must never be.
    pub wrong: Option<String>,
}

pub type World = Arc<Mutex<Shared>>;

pub fn lock(world: &World) -> MutexGuard<'_, Shared> {
    world.lock().unwrap()
}

impl Shared {
    pub fn tell(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let text = text();
            trace.push(format!("{:>8} ms  {text}", self.database.now));
        }
    }
}

/// Waits for some turns.
fn turns(number: u8) -> impl Future<Output = ()> + Send {
    let mut left = number;
    poll_fn(move |context: &mut task::Context<'_>| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    })
}

/// The way to the database, and what is known of it.
#[derive(Clone)]
pub struct Link {
    world: World,
    relay: usize,
    /// With the number of its read.
    catalog: Arc<Mutex<(u64, Arc<Catalog>)>>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Link")
    }
}

/// The database could not be asked.
#[derive(Debug)]
pub struct Lost;

#[derive(Debug)]
pub enum Over {
    Lost,
    Epoch,
}

impl From<EpochEnded> for Over {
    fn from(_: EpochEnded) -> Self {
        Self::Epoch
    }
}

impl From<Lost> for Over {
    fn from(_: Lost) -> Self {
        Self::Lost
    }
}

impl Link {
    /// Does something at the database, at one moment of its own. `connection` is the incarnation that
    /// the question belongs to; none opens a connection for it.
    async fn ask<T: Send>(
        &self,
        connection: Option<u64>,
        question: impl FnOnce(&mut Shared) -> T + Send,
    ) -> Result<T, Lost> {
        let (there, back) = {
            let random = &mut lock(&self.world).random;
            (random.u8(..3), random.u8(..3))
        };
        let known = connection.unwrap_or_else(|| lock(&self.world).database.incarnation);
        turns(there).await;
        let answer = {
            let mut shared = lock(&self.world);
            let database = &shared.database;
            if !database.up || shared.cut[self.relay] || database.incarnation != known {
                return Err(Lost);
            }
            question(&mut shared)
        };
        turns(back).await;
        Ok(answer)
    }

    fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.lock().unwrap().1)
    }

    /// Whether a connection is still there.
    fn is_up(&self, connection: u64) -> bool {
        let shared = lock(&self.world);
        let database = &shared.database;
        database.up && !shared.cut[self.relay] && database.incarnation == connection
    }

    /// The log for one stream, and the tables in the same snapshot.
    async fn open(&self, connection: Option<u64>, since: Since<'_>) -> Option<(Batch, Picture)> {
        let read = async |catalog: Arc<Catalog>| {
            let read = self.ask(connection, |shared| {
                if since.bounds.total > LOG.total {
                    shared.wrong = Some("a token makes a relay read without end".to_owned());
                }
                let locked = shared.random.u8(..8) == 0;
                let Since { from, bounds, .. } = since;
                let batch = shared.database.read(from, &catalog, bounds, locked);
                if batch.is_none() {
                    shared.statistics.count("too much for a token");
                }
                Some((batch?, shared.database.picture()))
            });
            read.await.ok().flatten()
        };
        let read_first = read(self.catalog()).await?;
        if read_first.0.definitions.is_empty() {
            return Some(read_first);
        }
        let catalog = self.reload(None).await.ok()?;
        read(catalog).await
    }

    async fn reload(&self, connection: Option<u64>) -> Result<Arc<Catalog>, Lost> {
        let read = self.ask(connection, |shared| {
            shared.reads += 1;
            (shared.reads, Arc::new(shared.database.catalog()))
        });
        let read = read.await?;
        // One read at a time there, so that an older picture never replaces a newer one.
        let mut known = self.catalog.lock().unwrap();
        if read.0 > known.0 {
            *known = read;
        }
        Ok(Arc::clone(&known.1))
    }

    /// What the edge makes of a request.
    fn view(&self, shows: Shows) -> View {
        let catalog = self.catalog();
        view(shows, &catalog).with_buffer(BUFFER)
    }
}

pub fn name(shows: Shows) -> Name {
    match shows {
        Shows::Channel => Name::of(["channel", CHANNEL]),
        view => Name::of(["view", &format!("{view:?}")]),
    }
}

fn view(shows: Shows, catalog: &Catalog) -> View {
    let table = catalog.table_by_oid(shows.table()).unwrap();
    let kind = match table.column("board").map(|column| column.base.as_str()) {
        Some("text") => Kind::Text,
        _ => Kind::Int,
    };
    let matcher = match shows {
        Shows::Board(board) | Shows::Asked(board) => {
            let condition = Condition::parse("board", &format!("eq.{board}")).unwrap();
            // As PostgreSQL writes such a literal as JSON.
            let values = [match kind {
                Kind::Text => format!("\"{board}\""),
                _ => board.to_string(),
            }];
            Matcher::new([(&condition, kind, &values[..])]).unwrap()
        }
        _ => Matcher::default(),
    };
    let columns = table.columns.iter();
    let columns = columns.map(|column| (column.name.clone(), column.type_name.clone()));
    let named = table.columns.iter().map(|column| column.name.clone());
    // Some views show the row as it is written, others name its columns.
    let projected = (shows != Shows::Cards).then(|| named.map(|n| (n.clone(), n)).collect());
    let key = vec!["id".to_owned()];
    let sight = if shows.asks() {
        let policies = shows.policies_read();
        let policies = policies.and_then(|_| catalog.policies(table.oid).cloned());
        Sight::Asking(Arc::new(Asking {
            select: Statement::default(),
            key,
            keys: Keys::Plain,
            may_match: matcher,
            policies,
            moving: false,
        }))
    } else {
        Sight::Images(Images {
            key,
            matcher,
            columns: projected,
        })
    };
    let definition = Definition {
        table: Arc::clone(table),
        context: Context::default(),
        columns: columns.collect(),
        statement: Statement::default(),
        sight,
    };
    View::new(name(shows), definition)
}

/// What a view shows.
fn shows(view: &View) -> Shows {
    let mut shown = Shows::ALL.into_iter();
    shown.find(|shows| name(*shows) == view.name()).unwrap()
}

/// What PostgreSQL answers to a view in a snapshot.
fn answer(
    picture: &Picture,
    view: &View,
    asking: &Asking,
    pending: &Pending,
    before: Option<&mut Shown>,
) -> Result<Answer, AskError> {
    let wanted = asking.lookup(pending)?;
    let wanted: Option<Vec<serde_json::Value>> =
        wanted.map(|objects| serde_json::from_str(&objects).unwrap());
    let mut answering = Answering::new(asking, pending, before);
    for row in picture.rows(shows(view)) {
        let key = row.key.to_string();
        let is = |object: &serde_json::Value| object["id"].as_str() == Some(&key);
        if wanted.as_ref().is_none_or(|wanted| wanted.iter().any(is)) {
            answering.push(&row.text, &Row::key_text(row.key))?;
        }
    }
    Ok(answering.finish())
}

impl Reads for Link {
    fn catalog(&self) -> Arc<Catalog> {
        self.catalog()
    }

    fn reload(&self) -> BoxFuture<'_, bool> {
        async move { Self::reload(self, None).await.is_ok() }.boxed()
    }

    fn log<'a>(&'a self, since: Since<'a>) -> BoxFuture<'a, Option<Batch>> {
        async move {
            let (batch, _picture) = self.open(None, since).await?;
            Some(batch)
        }
        .boxed()
    }

    fn state(
        &self,
        view: Arc<View>,
        _: &Place,
    ) -> BoxFuture<'static, Result<State, SnapshotError>> {
        let link = self.clone();
        async move {
            let read = link.ask(None, |shared| {
                let database = &shared.database;
                let mut pieces = Pieces::new(&view, PIECE);
                for row in database.picture().rows(shows(&view)) {
                    let row = match view.sight() {
                        Sight::Images(images) => images.row(&row.text).ok(),
                        Sight::Asking(asking) => {
                            asking.row(&row.text, &Row::key_text(row.key)).ok()
                        }
                    };
                    pieces.push(&row.ok_or(SnapshotError::Changed)?);
                }
                let (pieces, digest) = pieces.finish();
                Ok(State {
                    cursor: database.snapshot(),
                    epoch: database.epoch(),
                    pieces,
                    digest,
                })
            });
            read.await.unwrap_or(Err(SnapshotError::NoSnapshot))
        }
        .boxed()
    }

    fn answers<'a>(
        &'a self,
        view: &'a View,
        asking: &'a Asking,
        since: Since<'a>,
        ask: Ask<'a>,
    ) -> BoxFuture<'a, Option<(Cursor, Vec<Element>)>> {
        async move {
            let incarnation = lock(&self.world).database.incarnation;
            let (batch, picture) = self.open(Some(incarnation), since).await?;
            let pending = ask(&batch)?;
            let mut elements = Vec::new();
            if !pending.is_empty() {
                let moved = self.ask(Some(incarnation), |shared| {
                    shared.statistics.count("answers for those who come back");
                    shared.database.has_moved(&picture, &view.tables())
                });
                if moved.await.ok()? {
                    return None;
                }
                let answer = answer(&picture, view, asking, &pending, None);
                elements = answer.ok()?.elements;
            }
            Some((batch.end, elements))
        }
        .boxed()
    }
}

/// The feed's connection.
struct Connection {
    link: Link,
    incarnation: u64,
}

impl Asked for Connection {
    type Error = Over;

    fn catalog(&self) -> Arc<Catalog> {
        self.link.catalog()
    }

    async fn reload(&self) -> Result<Arc<Catalog>, Over> {
        Ok(self.link.reload(Some(self.incarnation)).await?)
    }

    async fn read(
        &self,
        from: &Cursor,
        catalog: &Catalog,
        bounds: Bounds,
    ) -> Result<Option<Batch>, Over> {
        // A starting relay does not read everything either.
        let bounds = Bounds {
            total: if bounds.total == u64::MAX {
                u64::MAX
            } else {
                6
            },
            rows: 12,
            ..bounds
        };
        let read = self.link.ask(Some(self.incarnation), |shared| {
            let locked = shared.random.u8(..8) == 0;
            let batch = shared.database.read(from, catalog, bounds, locked);
            let count = |batch: &Batch| batch.transactions.len();
            let (read, relay) = (batch.as_ref().map(count), self.link.relay);
            if read != Some(0) {
                shared.tell(|| format!("relay {relay} reads {read:?} transactions since {from}"));
            }
            batch
        });
        Ok(read.await?)
    }

    async fn present(&self) -> Result<Cursor, Over> {
        let ask = self.link.ask(Some(self.incarnation), |shared| {
            shared.statistics.count("too much for a beginning");
            shared.database.snapshot()
        });
        Ok(ask.await?)
    }

    async fn barrier(&self) -> Result<Xid, Over> {
        let ask = self
            .link
            .ask(Some(self.incarnation), |shared| shared.database.barrier());
        Ok(ask.await?)
    }

    async fn settle_gap(&self, value: i64) -> Result<(), Over> {
        let ask = self.link.ask(Some(self.incarnation), |shared| {
            if shared.database.settle_gap(value) {
                shared.statistics.count("gaps told");
                shared.tell(|| format!("the gap up to {value} is told"));
            }
        });
        Ok(ask.await?)
    }
}

/// The connection that asks.
struct Questions {
    link: Link,
    incarnation: u64,
    /// What there was where its transaction began, while that is open.
    open: Mutex<Option<Arc<Picture>>>,
}

impl Questions {
    /// Does something on this connection, which may break alone as well.
    async fn ask<T: Send>(
        &self,
        question: impl FnOnce(&mut Shared) -> T + Send,
    ) -> Result<T, Over> {
        if self.breaks(100) {
            return Err(Over::Lost);
        }
        Ok(self.link.ask(Some(self.incarnation), question).await?)
    }

    fn breaks(&self, seldom: u32) -> bool {
        let shared = &mut *lock(&self.link.world);
        !shared.healthy && shared.random.u32(..seldom) == 0
    }
}

impl Asker for Questions {
    type Error = Over;

    fn catalog(&self) -> Arc<Catalog> {
        self.link.catalog()
    }

    async fn reload(&self) -> Result<Arc<Catalog>, Over> {
        Ok(self.link.reload(Some(self.incarnation)).await?)
    }

    async fn open(
        &self,
        from: &Cursor,
        catalog: &Catalog,
        bounds: Bounds,
    ) -> Result<Option<Batch>, Over> {
        let bounds = Bounds {
            rows: 12,
            total: 24,
            ..bounds
        };
        let (batch, picture) = self
            .ask(|shared| {
                let locked = shared.random.u8(..8) == 0;
                let batch = shared.database.read(from, catalog, bounds, locked);
                shared.statistics.count(match batch {
                    Some(_) => "rounds",
                    None => "too much for a round",
                });
                let (read, relay) = (
                    batch.as_ref().map(|b| b.transactions.len()),
                    self.link.relay,
                );
                shared.tell(|| format!("relay {relay} begins a round with {read:?} since {from}"));
                (batch, shared.database.picture())
            })
            .await?;
        *self.open.lock().unwrap() = Some(Arc::new(picture));
        Ok(batch)
    }

    async fn export(&self) -> Result<String, Over> {
        self.ask(|_| String::new()).await
    }

    async fn hold<T: Send>(&self, work: impl Future<Output = T> + Send) -> Result<T, Over> {
        let mut work = Box::pin(work);
        poll_fn(|context| {
            if let Poll::Ready(done) = work.as_mut().poll(context) {
                return Poll::Ready(Ok(done));
            }
            // Questions often hear of it first.
            let dead = !self.link.is_up(self.incarnation) && lock(&self.link.world).random.bool();
            if dead || self.breaks(40) {
                let shared = &mut *lock(&self.link.world);
                shared.statistics.count("rounds that broke off");
                shared.tell(|| format!("a round of relay {} breaks off", self.link.relay));
                return Poll::Ready(Err(Over::Lost));
            }
            Poll::Pending
        })
        .await
    }

    async fn answer(&self, question: &mut Question, _: &str) -> Result<Answer, Unanswered> {
        let picture = self.open.lock().unwrap().clone();
        let mut picture = picture.ok_or(Unanswered::Failed)?;
        let view = Arc::clone(&question.view);
        let asked = self.link.ask(None, |shared| {
            // What the server says to a snapshot that is not there any more.
            if shared.database.incarnation != self.incarnation {
                return Err(Unanswered::Anew);
            }
            if shared.random.u8(..12) == 0 {
                shared.statistics.count("questions that failed");
                return Err(Unanswered::Failed);
            }
            if shared.random.u8(..12) == 0 {
                shared
                    .statistics
                    .count("questions put off to the next round");
                return Err(Unanswered::Later);
            }
            if shared.database.has_moved(&picture, &view.tables()) {
                shared
                    .statistics
                    .count("questions to tables that were rewritten");
                return Err(Unanswered::Anew);
            }
            if on(Mutant::R8) {
                picture = Arc::new(shared.database.picture());
            }
            if question.pending.is_whole() {
                shared.statistics.count(if question.asking.is_compared() {
                    "comparisons"
                } else {
                    "changes of what policies read"
                });
            }
            Ok(())
        });
        asked.await.unwrap_or(Err(Unanswered::Failed))?;
        if !self.link.is_up(self.incarnation) {
            return Err(Unanswered::Failed);
        }
        let (asking, pending) = (&question.asking, &question.pending);
        let answer = answer(&picture, &view, asking, pending, question.shown.as_mut());
        answer.map_err(|_| Unanswered::Anew)
    }

    async fn commit(&self) -> Result<(), Over> {
        self.ask(|_| ()).await?;
        *self.open.lock().unwrap() = None;
        Ok(())
    }

    async fn roll_back(&self) -> Result<(), Over> {
        self.commit().await
    }
}

/// As the feed does it: connect once there is somebody to ask for, ask, and again.
async fn questions(link: Link, stage: Arc<Stage>) -> Infallible {
    let mut backoff = Backoff::new();
    loop {
        stage.until_asked().await;
        let connection = link.ask(None, |shared| shared.database.incarnation);
        if let Ok(incarnation) = connection.await {
            let questions = Questions {
                link: link.clone(),
                incarnation,
                open: Mutex::new(None),
            };
            let _over = ask(&questions, &stage, || backoff.reset()).await;
        }
        stage.set_asked_failing();
        tokio::time::sleep(backoff.delay()).await;
    }
}

pub struct Relay {
    pub number: usize,
    pub bell: Arc<Notify>,
    pub shutdown: Shutdown,
    pub metrics: Arc<Metrics>,
    parts: Parts,
    link: Link,
    /// The feed, the rounds beside it, and what says to streams how things stand.
    tasks: [Pin<Box<dyn Future<Output = ()> + Send>>; 3],
}

impl Relay {
    pub fn start(world: &World, number: usize) -> Self {
        let metrics = Arc::new(Metrics::new());
        let stage = Arc::new(Stage::new(Arc::clone(&metrics)).with_memory(MEMORY));
        let health = Arc::new(Health::new());
        let bell = Arc::new(Notify::new());
        let shutdown = Shutdown::new();
        let link = Link {
            world: Arc::clone(world),
            relay: number,
            catalog: Arc::new(Mutex::new((0, Arc::new(lock(world).database.catalog())))),
        };
        let parts = Parts {
            stage: Arc::clone(&stage),
            reads: Arc::new(link.clone()),
            health: Arc::clone(&health),
            metrics: Arc::clone(&metrics),
            shutdown: shutdown.clone(),
            beats: Arc::default(),
            limits: Limits {
                mouthful: 700,
                catch_up: 1 << 10,
                log: LOG,
            },
            explain,
        };
        let questions = questions(link.clone(), Arc::clone(&stage));
        let feed = feed(link.clone(), stage, health, Arc::clone(&bell));
        Self {
            number,
            bell,
            shutdown,
            metrics,
            link,
            tasks: [
                feed.map(|never| match never {}).boxed(),
                questions.map(|never| match never {}).boxed(),
                beats::run(parts.clone()).then(|()| pending()).boxed(),
            ],
            parts,
        }
    }

    /// Lets the feed and the rounds go on.
    pub fn turn(&mut self) {
        let mut context = task::Context::from_waker(Waker::noop());
        for task in &mut self.tasks {
            let _never = task.as_mut().poll(&mut context);
        }
    }

    /// How many streams fell out of a buffer.
    pub fn lagged(&self) -> u64 {
        let reason = Reason { reason: "lagged" };
        self.metrics
            .dropped_subscribers
            .get_or_create(&reason)
            .get()
    }

    pub fn stream(
        &self,
        shows: Shows,
        token: Option<String>,
    ) -> (BoxStream<'static, Bytes>, Arc<Direct>) {
        let subscription = if shows == Shows::Channel {
            let source = Source::Channel(CHANNEL.to_owned(), watch::Sender::default().subscribe());
            Subscription::new(self.parts.clone(), source, token, None, None)
        } else {
            let (link, stage) = (self.link.clone(), Arc::clone(&self.parts.stage));
            let opener: Opener = Arc::new(move || {
                let (link, stage) = (link.clone(), Arc::clone(&stage));
                async move {
                    let definitions = stage.definitions();
                    let _old_picture_serves = link.reload(None).await;
                    let hops = lock(&link.world).random.u8(..3);
                    let view = link.view(shows).made_at(definitions);
                    turns(hops).await;
                    Ok(view)
                }
                .boxed()
            });
            let view = self.link.view(shows);
            let view = view.made_at(self.parts.stage.definitions());
            Subscription::new(
                self.parts.clone(),
                Source::View(opener),
                token,
                Some(view),
                None,
            )
        };
        let direct = subscription.direct();
        (subscription.frames().boxed(), direct)
    }
}

fn explain(trouble: &Trouble) -> Unavailable {
    Unavailable {
        body: serde_json::json!({ "message": trouble.to_string() }).to_string(),
        passing: !matches!(trouble, Trouble::Expired),
        crowded: false,
    }
}

/// As the feed does it: connect, begin an epoch where there is none, follow, and again.
async fn feed(link: Link, stage: Arc<Stage>, health: Arc<Health>, bell: Arc<Notify>) -> Infallible {
    let mut backoff = Backoff::new();
    loop {
        let _over = session(&link, &stage, &health, &bell, &mut backoff).await;
        health.lost();
        tokio::time::sleep(backoff.delay()).await;
    }
}

async fn session(
    link: &Link,
    stage: &Stage,
    health: &Health,
    bell: &Notify,
    backoff: &mut Backoff,
) -> Result<Infallible, Over> {
    let begin = link.ask(None, |shared| {
        if shared.database.begin_epoch() {
            shared.statistics.count("epochs");
            shared.tell(|| format!("relay {} begins an epoch", link.relay));
        }
        (shared.database.incarnation, shared.database.place.clone())
    });
    let (incarnation, place) = begin.await?;
    let start = link.ask(Some(incarnation), |shared| shared.database.start());
    let start = start.await?;
    link.reload(Some(incarnation)).await?;
    let connection = Connection {
        link: link.clone(),
        incarnation,
    };
    let reading = Reading::new(place, start);
    let mut pace = Bells::new(bell);
    follow(&connection, reading, stage, health, &mut pace, || {
        backoff.reset();
    })
    .await
}

/// Bells alone, and a read each second: who leads is not simulated here.
struct Bells<'a> {
    machine: Machine,
    bell: &'a Notify,
}

impl<'a> Bells<'a> {
    fn new(bell: &'a Notify) -> Self {
        let now = tokio::time::Instant::now().into_std();
        let mut machine = Machine::new(Bell::Always, Duration::from_secs(1), now);
        machine.set_hearing(Hearing {
            listening: true,
            queue: 0.0,
        });
        Self { machine, bell }
    }
}

impl Pace for Bells<'_> {
    async fn next(&mut self, read: Read) {
        let now = tokio::time::Instant::now().into_std();
        let _nothing_to_ask = self.machine.read(read, now);
        let wait = self.machine.wait(Duration::ZERO);
        let _either = tokio::time::timeout(wait.most, self.bell.notified()).await;
    }
}
