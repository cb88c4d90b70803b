//! `rowcast serve`: settings, build, say every address, start, wait for a reason to stop, drain.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::SimpleQueryMessage;

use super::signals::Stop;
use super::{Told, access, bounds, database, demo, log, names, settings, tables};
use crate::admission::Admission;
use crate::api::Api;
use crate::api::channels;
use crate::api::demo::SignIn;
use crate::api::looks::Looks;
use crate::api::problem;
use crate::api::rows::Rows;
use crate::auth::{self, Authenticator, Secret};
use crate::backoff::Backoff;
use crate::bell::{self, Hearing};
use crate::causes::Causes;
use crate::config::Config;
use crate::doorbell::Doorbell;
use crate::feed::{self, Feed};
use crate::health::Health;
use crate::http::assets::Assets;
use crate::http::body;
use crate::http::cors::Origins;
use crate::http::debug::Debug;
use crate::http::route::Router;
use crate::http::server::{self, Limits, Observer, Server};
use crate::memory::Pressure;
use crate::metrics::{Metrics, PoolState};
use crate::postgres::connect::Target;
use crate::postgres::embedded::{Cluster, Options};
use crate::postgres::{pool, pooler};
use crate::schema::handle::Handle;
use crate::schema::reload::Word;
use crate::schema::{migrate, reload, upkeep};
use crate::share;
use crate::shutdown::{AbortOnDrop, Shutdown};
use crate::subscription::{self, Pools, beats};
use crate::view::snapshot;

/// A named database may be started beside us; it is waited for this long.
const DATABASE_PATIENCE: Duration = Duration::from_secs(30);
/// Longest time for what is asked and installed before we serve: waiting for the database, for an upgrade that tries
/// a minute, and some air.
const SILENCE: Duration = Duration::from_mins(3);
/// Streams end spread over at most this period.
const GRACE: Duration = Duration::from_secs(10);
/// Connections for reading the log for those who come back.
const LOG_POOL: usize = 2;
/// Connections for reading states, and as many for asking what changed: apart from those for
/// requests, so that slow requests do not hold up screens.
const STATE_POOL: usize = 4;
/// Connections for what a stream asks before it opens: quick, but for a filter that takes PostgreSQL seconds to
/// plan. Of four one caller leaves one to the others.
const LOOK_POOL: usize = 4;

/// Rows in one answer at most; a reader that wants more asks for pages.
const MAX_ROWS: u64 = 10_000;
/// Longest wait for the first look into the log before clients are let in.
const BEGINNING: Duration = Duration::from_secs(2);
/// Longest time for a statement of a request.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(8);

const DEMO: &str = include_str!("../../sql/demo.sql");

pub(super) async fn run(config: Config) -> anyhow::Result<()> {
    log::start(config.log_format);
    // Signals are taken from here on, so that an early Ctrl-C ends the private database too.
    let mut stop = Stop::listen()?;
    let definitions_changed = signal(SignalKind::user_defined1())?;

    let (origins, auth) = settings::judged(&config)?;
    for (variables, why) in super::unread().told() {
        tracing::warn!(variables, "{why}");
    }
    let listener = listen(config.listen, "--listen")?;
    let address = listener.local_addr()?;
    let operators = config
        .ops_listen
        .map(|address| listen(address, "--ops-listen"));
    let operators = operators.transpose()?;
    let ops_address = operators
        .as_ref()
        .map(TcpListener::local_addr)
        .transpose()?;
    // A server that recovers, a database that is waited for or says nothing, or a schema that somebody holds, keeps
    // nobody from stopping us.
    let (target, cluster) = tokio::select! {
        found = database(&config) => found?,
        // Its guardian stops a server that is only starting.
        () = stop.asked() => return Ok(()),
    };
    let opened = async {
        let bell = prepare(&config, &target, cluster.is_some()).await?;
        Ok::<_, anyhow::Error>((
            bell,
            Door::open(&config, &target, auth, cluster.is_some()).await?,
        ))
    };
    let (bell, door) = tokio::select! {
        opened = tokio::time::timeout(SILENCE, opened) => opened.map_err(|_elapsed| silent(&target))??,
        () = stop.asked() => {
            if let Some(cluster) = cluster {
                cluster.stop().await;
            }
            return Ok(());
        }
    };
    let is_open = cluster.is_some() || access::is_open(&config.access);
    let origins = if is_open && address.ip().is_loopback() {
        origins.private()
    } else {
        origins
    };
    let relay = Relay::build(&config, &target, door, origins, bell, cluster.is_some());
    let shutdown = relay.shutdown.clone();
    let health = Arc::clone(&relay.health);
    let debug = relay.debug();
    let mut tasks = relay.start(&config, listener, definitions_changed);
    if let Some(listener) = operators {
        let ignored: Observer = Arc::new(|_incident| {});
        let (stop, limits) = (shutdown.clone(), Limits::default());
        let server = Server::new(vec![listener], stop, limits, ignored, debug.into_handler());
        tasks.spawn(async move {
            server.run().await;
        });
    }

    let said = async {
        say(&health, address, ops_address, &target, cluster.is_some()).await;
        std::future::pending::<Infallible>().await
    };
    let mut failed = None;
    tokio::select! {
        never = said => match never {},
        () = stop.asked() => {}
        // Tasks end by the stop signal alone; whoever keeps us running starts us anew.
        ended = tasks.join_next() => failed = Some(ended),
    }
    health.set_draining();
    shutdown.begin(GRACE);
    tokio::select! {
        () = async { while tasks.join_next().await.is_some() {} } => {}
        // A second signal: at once.
        () = stop.asked() => tasks.abort_all(),
    }
    if let Some(cluster) = cluster {
        cluster.stop().await;
    }
    match failed {
        None => Ok(()),
        Some(ended) => anyhow::bail!("a part of the relay ended by itself: {ended:?}"),
    }
}

fn listen(address: SocketAddr, flag: &str) -> Result<TcpListener, Told> {
    server::listen(address).map_err(|error| {
        Told::new(
            format!("{address} cannot be served on"),
            error,
            format!("another {flag}, e.g. 127.0.0.1:0 for any free port"),
        )
    })
}

/// The named database, or a private one.
async fn database(config: &Config) -> anyhow::Result<(Target, Option<Cluster>)> {
    if let Some(target) = database::given(config)? {
        return Ok((target, None));
    }
    let options = Options {
        data_dir: database::data_dir(config),
        durable: true,
        extra_settings: Vec::new(),
        max_connections: 50,
        pg_bin: config.pg_bin.clone(),
    };
    let cluster = Cluster::start(options)
        .await
        .map_err(|error| Told(error.told()))?;
    let client = database::connect(&cluster.target("postgres")).await?;
    let there = client
        .query_opt(
            "select from pg_database where datname = $1",
            &[&database::PRIVATE],
        )
        .await?;
    if there.is_none() {
        client
            .batch_execute(&format!("create database {}", database::PRIVATE))
            .await?;
    }
    Ok((cluster.target(database::PRIVATE), Some(cluster)))
}

/// Installs what is missing; returns who rings.
async fn prepare(config: &Config, target: &Target, demo: bool) -> anyhow::Result<migrate::Bell> {
    let begun = Instant::now();
    let mut backoff = Backoff::new();
    let mut waits = false;
    let (client, connection) = loop {
        match target.connect("rowcast install").await {
            Ok(connected) => break connected,
            // A server that refuses has answered; one that is not there may be starting.
            Err(error)
                if error
                    .code()
                    .is_some_and(|code| !code.code().starts_with("57P"))
                    || begun.elapsed() > DATABASE_PATIENCE =>
            {
                return Err(database::unreachable(target, &error).into());
            }
            Err(error) => {
                if !std::mem::replace(&mut waits, true) {
                    tracing::warn!(
                        error = %Causes(&error),
                        "the database cannot be reached yet; trying for {} s",
                        DATABASE_PATIENCE.as_secs()
                    );
                }
                tokio::time::sleep(backoff.delay()).await;
            }
        }
    };
    let _driver = AbortOnDrop(tokio::spawn(connection));
    whole_sessions(target).await?;
    let recovery = client.simple_query("select pg_is_in_recovery()").await?;
    let is_standby = |message: &SimpleQueryMessage| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("t"));
    if recovery.iter().any(is_standby) {
        // It may be promoted while we wait; until then the feed says why it does not work.
        tracing::warn!("the database is a standby; nothing is installed there");
        return Ok(tables::rings(config.bell, false));
    }
    let bell = tables::install(&client, target, config.bell).await?;
    if demo {
        client.batch_execute(DEMO).await?;
    }
    Ok(bell)
}

/// What a person is told of a database that has taken our connections and answers no more.
fn silent(target: &Target) -> Told {
    Told::new(
        format!("the database {target} has fallen silent, or what is in front of it"),
        format!(
            "it has not answered all that is asked at the start within {} s",
            SILENCE.as_secs()
        ),
        format!(
            "{} -c 'select 1', and the same for --api-url",
            target.psql_line()
        ),
    )
}

/// Refuses a database behind a transaction pooler: nothing that belongs to a session would hold.
async fn whole_sessions(target: &Target) -> Result<(), Told> {
    match pooler::found(target).await {
        Ok(None) => Ok(()),
        Ok(Some(found)) => Err(pooled(target, &found, "DATABASE_URL")),
        Err(error) => Err(database::unreachable(target, &error)),
    }
}

fn pooled(target: &Target, found: &str, setting: &str) -> Told {
    Told::new(
        format!("a transaction pooler stands in front of {target}"),
        found,
        format!(
            "the server's own address as {setting} (writers may stay behind the pooler), or a pool in session mode"
        ),
    )
}

/// As whom requests come in.
struct Door {
    /// What judges their tokens.
    auth: Authenticator,
    /// The login that they run as, before they become somebody.
    login: Target,
    /// Who gives out tokens, when it is the relay.
    sign_in: Option<SignIn>,
}

impl Door {
    async fn open(
        config: &Config,
        target: &Target,
        auth: Authenticator,
        private: bool,
    ) -> anyhow::Result<Self> {
        if private && demo::is_wanted(config) {
            return Ok(Self::of_demo(config, target)?);
        }
        let login = database::api(config, target)?;
        if config.api_url.is_some() {
            one_database(target, &login).await?;
        }
        may_take_roles(config, &login).await?;
        tell_missing(config, &login).await;
        Ok(Self {
            login,
            auth,
            sign_in: None,
        })
    }

    fn of_demo(config: &Config, target: &Target) -> Result<Self, Told> {
        let access = demo::access(&config.access, &database::data_dir(config))?;
        let secret = access.jwt_secret.as_ref();
        let sign_in = secret.map(|secret| SignIn {
            secret: Secret::new(secret.reveal()),
        });
        Ok(Self {
            auth: access::authenticator(&access)?,
            login: target.clone().with_login(demo::LOGIN, None),
            sign_in,
        })
    }
}

/// Everything that runs. Building starts nothing.
struct Relay {
    shutdown: Shutdown,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    target: Target,
    feed: Arc<Feed>,
    doorbell: Doorbell,
    catalog: Arc<Handle>,
    definitions: Arc<Word>,
    limits: Limits,
    admission: Admission,
    pressure: watch::Sender<Pressure>,
    router: Router<Api>,
}

/// Connections for requests, for reading the log, for states, for asking, and for looking at what a
/// view is made of: each apart, so that one that is used up holds up nobody else.
fn pools(config: &Config, target: &Target, login: &Target, metrics: &Metrics) -> [pool::Pool; 5] {
    let pools = [
        ("requests", login, "rowcast", config.pool.max(1)),
        ("log", target, "rowcast log", LOG_POOL),
        ("states", login, "rowcast states", STATE_POOL),
        ("asking", login, "rowcast asking", STATE_POOL),
        ("looks", login, "rowcast looks", LOOK_POOL),
    ];
    pools.map(|(name, target, application, size)| {
        let pool = pool::pool(target, application, size);
        let shown = pool.clone();
        metrics.show_pool(name, Box::new(move || pool_state(&shown)));
        pool
    })
}

impl Relay {
    /// `target` is the login that reads the log.
    fn build(
        config: &Config,
        target: &Target,
        door: Door,
        origins: Origins,
        bell: migrate::Bell,
        board: bool,
    ) -> Self {
        let shutdown = Shutdown::new();
        let health = Arc::new(Health::new());
        let metrics = Arc::new(Metrics::new());
        let [requests, log, states, asking, looks] = pools(config, target, &door.login, &metrics);
        // Its own: the feed waits for the catalogue, and must not wait for snapshots.
        let definitions = pool::pool(target, "rowcast catalog", 1);
        let catalog = Arc::new(Handle::new(
            definitions,
            config.schema.clone(),
            Arc::clone(&metrics),
        ));
        let (bell, hearing) = bell_parts(config, target, bell, &metrics);
        let definitions = Arc::new(Word::default());
        let feed = Arc::new(Feed::new(feed::Parts {
            target: target.clone(),
            asking,
            catalog: Arc::clone(&catalog),
            bell: bell.clone(),
            health: Arc::clone(&health),
            metrics: Arc::clone(&metrics),
        }));
        let listening = watch::Sender::new(BTreeSet::new());
        let heard = listening.subscribe();
        let notes = Arc::clone(feed.stage());
        let doorbell = Doorbell {
            target: target.clone(),
            bell: bell.rung,
            others: bell.others,
            hearing,
            definitions: Arc::clone(&definitions),
            wanted: feed.stage().wanted(),
            listening,
            on_notify: Arc::new(move |channel, payload| notes.notify(channel, payload)),
            health: Arc::clone(&health),
            metrics: Arc::clone(&metrics),
        };
        let known = Arc::clone(&catalog);
        let limits = bounds::limits(&config.bounds);
        let pressure = watch::Sender::new(Pressure::default());
        let admission = Admission::new(
            bounds::streams(&config.bounds, limits.connections),
            pressure.subscribe(),
        );
        let rows = rows(config, &door, [requests, looks], &catalog);
        let answers = rows.answers.clone();
        let api = Api {
            auth: Arc::new(door.auth),
            rows: Arc::new(rows),
            streams: subscription::Parts {
                stage: Arc::clone(feed.stage()),
                reads: Arc::new(Pools {
                    log,
                    states,
                    catalog,
                    snapshots: snapshot::Limits::default(),
                }),
                health: Arc::clone(&health),
                metrics: Arc::clone(&metrics),
                shutdown: shutdown.clone(),
                beats: Arc::default(),
                limits: subscription::Limits::default(),
                explain: problem::explain,
            },
            permits: Arc::default(),
            listening: heard,
            sign_in: door.sign_in,
            admission: admission.clone(),
        };
        let router = Router {
            api,
            assets: Assets::new(board),
            origins,
            body_limit: body::LIMIT,
            bodies: share::Budget::new(body::ALL),
            answers,
            admission: admission.clone(),
            health: Arc::clone(&health),
            metrics: Arc::clone(&metrics),
        };
        Self {
            shutdown,
            health,
            metrics,
            target: target.clone(),
            feed,
            doorbell,
            catalog: known,
            definitions,
            limits,
            admission,
            pressure,
            router,
        }
    }

    /// What operators are answered with on their own address.
    fn debug(&self) -> Debug {
        let feed = Arc::clone(&self.feed);
        Debug {
            health: Arc::clone(&self.health),
            metrics: Arc::clone(&self.metrics),
            trace: Arc::new(move |txid| serde_json::json!(feed.stage().trace(txid)).to_string()),
        }
    }

    /// Starts every task; they end by the stop signal.
    fn start(
        self,
        config: &Config,
        listener: TcpListener,
        mut definitions_changed: Signal,
    ) -> JoinSet<()> {
        let Self {
            shutdown,
            health,
            metrics,
            target,
            feed,
            doorbell,
            catalog,
            definitions,
            limits,
            admission,
            pressure,
            router,
        } = self;
        let observer = bounds::observer(&metrics, &health);
        let streams = router.api.streams.clone();
        let (permits, rows) = (
            Arc::clone(&router.api.permits),
            Arc::clone(&router.api.rows),
        );
        let auth = Arc::clone(&router.api.auth);
        let server = Server::new(
            vec![listener],
            shutdown.clone(),
            limits,
            observer,
            router.into_handler(),
        )
        .under(pressure.subscribe());
        let mut tasks = JoinSet::new();
        let counted = Arc::clone(&metrics);
        tasks.spawn(admission.watch(shutdown.clone(), move |cut| bounds::count(&counted, cut)));
        tasks.spawn(bounds::watch_memory(
            &config.bounds,
            pressure,
            &metrics,
            shutdown.clone(),
        ));
        let stop = shutdown.clone();
        let asking = Arc::clone(&feed);
        tasks.spawn(async move { feed.run(stop).await });
        let stop = shutdown.clone();
        tasks.spawn(async move { asking.ask(stop).await });
        tasks.spawn(doorbell.run(shutdown.clone()));
        tasks.spawn(beats::run(streams));
        let stop = shutdown.clone();
        tasks.spawn(async move { channels::keep_asking(&permits, &rows, stop).await });
        tasks.spawn(auth::keep_looking(auth, shutdown.clone()));
        let known = Arc::clone(&catalog);
        tasks.spawn(reload::run(
            catalog,
            Arc::clone(&definitions),
            shutdown.clone(),
        ));
        let (stop, word) = (shutdown.clone(), Arc::clone(&definitions));
        tasks.spawn(async move {
            let tell = async {
                while definitions_changed.recv().await.is_some() {
                    word.changed();
                }
            };
            tokio::select! {
                () = async { stop.begun().await; } => {}
                () = tell => {}
            }
        });
        let mut fresh = health.watch_fresh();
        let stop = shutdown.clone();
        let upkeep = upkeep::Parts {
            target,
            definitions,
            catalog: known,
            retention: config.retention,
            log_size: config.log_size,
            long_transaction: Duration::from_secs(config.long_transaction),
            health,
            metrics: Arc::clone(&metrics),
        };
        tasks.spawn(upkeep::run(upkeep, shutdown.clone()));
        tasks.spawn(async move {
            // Whoever comes before the log was read once would be told that the database is away, and
            // come back seconds later. They wait in the listener's queue for that moment.
            let begun = tokio::time::timeout(BEGINNING, fresh.wait_for(|fresh| *fresh));
            tokio::select! {
                _late_is_fine = begun => {}
                _ = stop.begun() => {}
            }
            drop(fresh);
            server.run().await;
        });
        tasks
    }
}

fn pool_state(pool: &pool::Pool) -> PoolState {
    let status = pool.status();
    let taken = status.size.saturating_sub(status.available);
    PoolState {
        available: status.max_size.saturating_sub(taken),
        waiting: status.waiting,
        max: status.max_size,
        timeouts: pool.timeouts(),
    }
}

/// What reads and writes need, with connections for requests and for what streams ask.
fn rows(
    config: &Config,
    door: &Door,
    [pool, views]: [pool::Pool; 2],
    catalog: &Arc<Handle>,
) -> Rows {
    Rows {
        pool,
        views,
        looks: Looks::default(),
        catalog: Arc::clone(catalog),
        max_rows: MAX_ROWS,
        answers: bounds::answers(&config.bounds),
        statement_timeout: STATEMENT_TIMEOUT,
        tx_end: config.tx_end,
        pre_request: config.pre_request.as_deref().map(names::function),
        cookie: door.auth.cookie().to_owned(),
    }
}

/// When to look at the log, and who is told how the doorbell is.
fn bell_parts(
    config: &Config,
    target: &Target,
    wish: migrate::Bell,
    metrics: &Arc<Metrics>,
) -> (bell::Parts, watch::Sender<Hearing>) {
    let told = watch::Sender::new(Hearing::default());
    let parts = bell::Parts {
        target: target.clone(),
        wish,
        safety: Duration::from_millis(config.safety_poll),
        rung: Arc::default(),
        others: Arc::default(),
        hearing: told.subscribe(),
        metrics: Arc::clone(metrics),
    };
    (parts, told)
}

/// What is written in one database is not told of in another.
async fn one_database(target: &Target, api: &Target) -> anyhow::Result<()> {
    let here = database::place(&database::connect(target).await?).await?;
    match api.connect("rowcast install").await {
        Ok((client, connection)) => {
            tokio::spawn(connection);
            if database::place(&client).await? == here {
                // What requests prepare and set would be missed by the next one. One that cannot be asked says so later.
                match pooler::found(api).await {
                    Ok(Some(found)) => Err(pooled(api, &found, "ROWCAST_API_URL").into()),
                    Ok(None) | Err(_) => Ok(()),
                }
            } else {
                Err(Told::new(
                    "requests would go to another database than streams",
                    format!("--api-url is {api}, --database-url {target}"),
                    "the same server and database in both, with another login",
                )
                .into())
            }
        }
        // It may come; requests say the same until then.
        Err(error) => {
            let error = Causes(&error);
            tracing::warn!(%error, "the database cannot be reached as the API's login: requests will fail");
            Ok(())
        }
    }
}

/// A superuser may take every role, so there somebody must say which ones requests may name.
async fn may_take_roles(config: &Config, api: &Target) -> anyhow::Result<()> {
    let access = &config.access;
    if !access::takes_tokens(access) || !access.roles.is_empty() {
        return Ok(());
    }
    let client = database::connect(api).await?;
    let login = "select rolsuper, rolname::text from pg_roles where rolname = current_user";
    let login = client.query_one(login, &[]).await?;
    if !login.get::<_, bool>(0) {
        return Ok(());
    }
    Err(Told::new(
        "a token could name any role of this database",
        format!(
            "the API's login, {}, is a superuser",
            login.get::<_, &str>(1)
        ),
        "--api-url with a login that has no rights of its own, or --roles web_user,web_admin",
    )
    .into())
}

/// Tells what the settings name and nobody has made: requests would fail one by one.
async fn tell_missing(config: &Config, api: &Target) {
    // Who cannot be reached has been told of, and what cannot be asked is not known to be missing.
    let Ok(client) = database::connect(api).await else {
        return;
    };
    for missing in names::missing(config, &client).await.unwrap_or_default() {
        let names::Missing {
            setting,
            found,
            remedy,
        } = missing;
        tracing::warn!(
            setting,
            found,
            remedy,
            "a setting names what is not there; requests fail until it is"
        );
    }
}

/// Says every address, once the relay is ready to be used.
async fn say(
    health: &Health,
    address: SocketAddr,
    operators: Option<SocketAddr>,
    target: &Target,
    board: bool,
) {
    let begun = Instant::now();
    let mut fresh = health.watch_fresh();
    let ready = async {
        tokio::select! {
            _fresh = fresh.wait_for(|fresh| *fresh) => {}
            // It may take long to heal, and /readyz says why.
            () = health.refused() => {}
        }
    };
    let _late = tokio::time::timeout(DATABASE_PATIENCE, ready).await;
    if health.is_fresh() {
        tracing::info!(milliseconds = begun.elapsed().as_millis(), "ready");
    }
    let page = if board {
        format!("page  http://{address}/\n")
    } else {
        String::new()
    };
    let operators =
        operators.map_or_else(String::new, |address| format!("ops   http://{address}/\n"));
    let psql = target.psql_line();
    // Whoever started us may have stopped listening; that is no reason not to serve.
    let _unread = write!(
        std::io::stdout(),
        "{page}{operators}api   http://{address}/rest/v1\npsql  {psql}\n"
    );
}
