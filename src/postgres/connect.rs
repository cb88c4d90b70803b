//! Where a database is, and a connection to it.
//!
//! Promises that a peer which vanished is noticed in seconds, not in tokio-postgres' two hours,
//! and that neither an error nor a printed [`Target`] holds a password. Settings of the session
//! are not sent at startup, because poolers refuse them. It does not know what the connection
//! is for.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::net::lookup_host;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::config::{Host, LoadBalanceHosts, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::conninfo::{Conninfo, ConninfoError};
use super::fence::{self, Fence};
use super::tls::{self, TlsError};

/// The half of a connection that does the work: somebody must poll it. The listener calls
/// `poll_message` on it, everybody else spawns it.
pub type Connection =
    tokio_postgres::Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

/// Longest wait for one server to answer with a session, unless `connect_timeout` says otherwise.
pub const CONNECT: Duration = Duration::from_secs(5);
/// Silence after which the kernel asks whether the peer is there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
/// Longest time that sent bytes may stay unacknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);

/// Why a connection string is of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// It cannot be read.
    #[error("the connection string is malformed")]
    Conninfo(#[from] ConninfoError),
    /// A keyword that we do not know, or one with a wrong value.
    #[error("the connection string has a keyword that cannot be used")]
    Keyword(#[source] tokio_postgres::Error),
    /// A number that is none.
    #[error("\"{keyword}\" in the connection string must be a number")]
    Number {
        /// The keyword.
        keyword: &'static str,
    },
    /// Lists that do not belong to each other.
    #[error(
        "\"host\", \"hostaddr\" and \"port\" in the connection string must name as many servers each, or one port"
    )]
    Lists,
    /// Kerberos encryption was demanded.
    #[error("gssencmode=require is not supported")]
    Kerberos,
    /// TLS as wanted is not possible.
    #[error("TLS to the database cannot be set up")]
    Tls(#[from] TlsError),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The network or the server said no; the source tells which.
    #[error("cannot connect to {target}")]
    Refused {
        /// The target as printed.
        target: String,
        /// What tokio-postgres met.
        source: tokio_postgres::Error,
    },
    /// Whoever answered lies behind a server that was followed before; see [`Fence`].
    #[error("{message}")]
    Behind {
        /// What it is, and what to do about it.
        message: String,
    },
    /// Nobody said anything.
    #[error("{target} did not answer within {} s", after.as_secs())]
    TimedOut {
        /// The target as printed.
        target: String,
        /// How long we waited.
        after: Duration,
    },
}

impl ConnectError {
    /// The server's SQLSTATE, when it was a server that refused.
    #[must_use]
    pub fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Refused { source, .. } => source.code(),
            Self::Behind { .. } | Self::TimedOut { .. } => None,
        }
    }
}

/// A database, and how to reach it. Its `Display` and `Debug` leave the password out.
#[derive(Clone)]
pub struct Target {
    /// What psql is told; holds no password.
    conninfo: Conninfo,
    password: Option<String>,
    /// Without the servers.
    config: Config,
    /// In the order in which they are tried.
    servers: Vec<Server>,
    tls: MakeRustlsConnect,
    fence: Fence,
}

impl Target {
    /// Reads a `postgres://` URL or a `key=value` string. All of libpq's `sslmode`s are
    /// understood; `verify-ca` and `verify-full` use the system's roots without `sslrootcert`.
    ///
    /// # Errors
    /// When the text is malformed, a keyword is unknown, or certificates cannot be read.
    pub fn from_url(text: &str) -> Result<Self, TargetError> {
        Self::from_conninfo(Conninfo::parse(text)?)
    }

    /// What libpq's `PG…` variables say, the password file included. `None` when they name no
    /// server: none of host, address, port, database and service is set.
    #[must_use]
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> Option<Result<Self, TargetError>> {
        let conninfo = Conninfo::of_environment(lookup)?;
        Some(
            conninfo
                .map_err(TargetError::from)
                .and_then(Self::from_conninfo),
        )
    }

    /// A server on this machine, which has its socket in `directory`.
    ///
    /// # Panics
    /// Never: the keywords it sets are known ones, and a socket needs no certificates.
    #[must_use]
    pub fn unix(directory: &Path, port: u16, user: &str, database: &str) -> Self {
        let mut conninfo = Conninfo::default();
        conninfo.set("host", &directory.to_string_lossy());
        conninfo.set("port", &port.to_string());
        conninfo.set("user", user);
        conninfo.set("dbname", database);
        Self::from_conninfo(conninfo).expect("these four keywords are known and need no file")
    }

    /// The same with the password that libpq would find, `PGPASSWORD` or the password file,
    /// when it has none of its own.
    #[must_use]
    pub fn or_password_from(mut self, lookup: impl Fn(&str) -> Option<String>) -> Self {
        if self.password.is_none() {
            let mut found = self.conninfo.clone().or_password(lookup);
            if let Some(password) = found.take("password") {
                self.config.password(&password);
                self.password = Some(password);
            }
        }
        self
    }

    /// The same database as another user. The old user's password is forgotten.
    #[must_use]
    pub fn with_login(mut self, user: &str, password: Option<&str>) -> Self {
        self.conninfo.set("user", user);
        self.config.user(user);
        // An empty password answers no question of the server, so it is as good as none.
        self.config.password(password.unwrap_or(""));
        self.password = password.map(str::to_owned);
        self
    }

    /// The same, refusing what `other` refuses.
    #[must_use]
    pub fn fenced_like(mut self, other: &Self) -> Self {
        self.fence = other.fence.clone();
        self
    }

    /// What it refuses.
    #[must_use]
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// The user, when one is named; the operating system's otherwise.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.conninfo.get("user")
    }

    /// The database, when one is named; called like the user otherwise.
    #[must_use]
    pub fn database(&self) -> Option<&str> {
        self.conninfo.get("dbname")
    }

    /// Opens a connection that calls itself `application_name`. Where several servers are named, or a name has
    /// several addresses, one that lies behind, refuses or says nothing is passed over.
    ///
    /// # Errors
    /// When no server answers in time, or the last one that answers refuses or must not be used.
    pub async fn connect(
        &self,
        application_name: &str,
    ) -> Result<(Client, Connection), ConnectError> {
        let fence = self.fence.statement().unwrap_or_default();
        let opened = self.open(application_name, &fence).await;
        opened.map_err(|told| match told {
            Some(source) => self.refused(source),
            None => ConnectError::TimedOut {
                target: self.to_string(),
                after: self.patience(),
            },
        })
    }

    /// Longest wait for one server.
    fn each(&self) -> Duration {
        let each = self.config.get_connect_timeout();
        each.copied().unwrap_or(CONNECT)
    }

    /// Longest wait for all of them.
    pub(super) fn patience(&self) -> Duration {
        let servers = u32::try_from(self.servers.len()).unwrap_or(u32::MAX);
        self.each().saturating_mul(servers)
    }

    /// A connection to the first server that takes us, and on which `sql` succeeds. Where there is none, what is to be
    /// told of it; nothing where none said anything.
    pub(super) async fn open(
        &self,
        application_name: &str,
        sql: &str,
    ) -> Result<(Client, Connection), Option<tokio_postgres::Error>> {
        let config = self.config(application_name);
        let mut servers: Vec<&Server> = self.servers.iter().collect();
        if is_any(&config) {
            fastrand::shuffle(&mut servers);
        }
        let mut told = None;
        for server in servers {
            let until = Instant::now() + self.each();
            let Ok(addresses) = timeout_at(until, server.addresses()).await else {
                continue;
            };
            match self.any_of(addresses, server, &config, until, sql).await {
                Err(said) => told = weightier(told, said),
                opened => return opened,
            }
        }
        Err(told)
    }

    /// Likewise, at one of a server's addresses. They share its time: one that is dead leaves a part to the next.
    async fn any_of(
        &self,
        mut addresses: Vec<Option<IpAddr>>,
        server: &Server,
        config: &Config,
        until: Instant,
        sql: &str,
    ) -> Result<(Client, Connection), Option<tokio_postgres::Error>> {
        if is_any(config) {
            fastrand::shuffle(&mut addresses);
        }
        let mut told = None;
        for (address, left) in addresses.iter().zip((1..=addresses.len()).rev()) {
            let left = u32::try_from(left).unwrap_or(u32::MAX);
            let share = until.saturating_duration_since(Instant::now()) / left;
            let config = server.at(*address, config);
            // connect_timeout ends with the TCP handshake; a server that accepts and then is silent
            // would hold us for ever, and keep us from the others.
            match timeout(share, self.session(&config, sql)).await {
                Ok(Err(said)) => told = weightier(told, Some(said)),
                Ok(Ok(opened)) => return Ok(opened),
                Err(_elapsed) => {}
            }
        }
        Err(told)
    }

    async fn session(
        &self,
        config: &Config,
        sql: &str,
    ) -> Result<(Client, Connection), tokio_postgres::Error> {
        let (client, mut connection) = config.connect(self.tls.clone()).await?;
        if !sql.is_empty() {
            // Somebody must drive the connection meanwhile.
            tokio::select! {
                biased;
                done = client.batch_execute(sql) => done?,
                ended = &mut connection => ended?,
            }
        }
        Ok((client, connection))
    }

    fn refused(&self, source: tokio_postgres::Error) -> ConnectError {
        match source.as_db_error() {
            Some(error) if is_behind(&source) => ConnectError::Behind {
                message: error.message().to_owned(),
            },
            _ => ConnectError::Refused {
                target: self.to_string(),
                source,
            },
        }
    }

    /// What tokio-postgres is told, but for where the servers are. It holds the password.
    pub(super) fn config(&self, application_name: &str) -> Config {
        let mut config = self.config.clone();
        config.application_name(application_name);
        config
    }

    /// The TLS connector, also for cancelling: `client.cancel_token().cancel_query(target.tls())`.
    #[must_use]
    pub fn tls(&self) -> MakeRustlsConnect {
        self.tls.clone()
    }

    /// Arguments and environment for psql. The password is in the environment only: arguments
    /// are seen by everybody on the machine.
    #[must_use]
    pub fn psql_arguments(&self) -> (Vec<String>, Vec<(String, String)>) {
        let arguments = vec!["-d".to_owned(), self.conninfo.to_key_values()];
        let password = self
            .password
            .iter()
            .map(|password| ("PGPASSWORD".to_owned(), password.clone()));
        (arguments, password.collect())
    }

    /// A line for a person to paste into a shell; more arguments may follow. psql asks for the
    /// password when one is needed.
    #[must_use]
    pub fn psql_line(&self) -> String {
        format!("psql -d {}", shell_quoted(&self.conninfo.to_key_values()))
    }

    fn from_conninfo(mut conninfo: Conninfo) -> Result<Self, TargetError> {
        let password = conninfo.take("password");
        // Ours is always told; two names would only be confusing in pg_stat_activity.
        conninfo.take("application_name");
        if conninfo.get("host").is_none() && conninfo.get("hostaddr").is_none() {
            conninfo.set("host", default_host(conninfo.get("port").unwrap_or("5432")));
        }
        let (tls, mode) = tls::connector(tls::Wanted {
            mode: conninfo.get("sslmode"),
            roots: conninfo.get("sslrootcert"),
            certificate: conninfo.get("sslcert"),
            key: conninfo.get("sslkey"),
            least: conninfo.get("ssl_min_protocol_version"),
        })?;
        let servers = servers(&config_of(conninfo.clone())?)?;
        let mut elsewhere = conninfo.clone();
        for place in ["host", "hostaddr", "port"] {
            elsewhere.take(place);
        }
        let mut config = config_of(elsewhere)?;
        // As in libpq, sslmode says nothing about Unix sockets.
        let mode = if servers.iter().all(Server::is_local) {
            SslMode::Disable
        } else {
            mode
        };
        config.ssl_mode(mode);
        if let Some(password) = &password {
            config.password(password);
        }
        Ok(Self {
            conninfo,
            password,
            config,
            servers,
            tls,
            fence: Fence::default(),
        })
    }
}

/// A server that is named. tokio-postgres, given several, waits for the first one that accepts and then says nothing
/// as long as we wait for all of them, again and again; so it is given one at a time, and one address.
#[derive(Debug, Clone)]
struct Server {
    /// Its name, which is also what its certificate is for, or the directory of its socket.
    host: Option<Host>,
    /// Where it is, when the name is not to be asked for that.
    address: Option<IpAddr>,
    port: u16,
}

impl Server {
    fn is_local(&self) -> bool {
        self.address.is_none() && matches!(self.host, Some(Host::Unix(_)))
    }

    /// Where to try, one after the other; `None` is where the name alone says, as for a socket. Never empty.
    async fn addresses(&self) -> Vec<Option<IpAddr>> {
        let mut addresses = Vec::new();
        if let (Some(Host::Tcp(name)), None) = (&self.host, self.address)
            && let Ok(found) = lookup_host((name.as_str(), self.port)).await
        {
            addresses.extend(found.map(|address| Some(address.ip())));
        }
        if addresses.is_empty() {
            // Why a name has none is told when it is tried.
            addresses.push(self.address);
        }
        addresses
    }

    /// How to connect there.
    fn at(&self, address: Option<IpAddr>, config: &Config) -> Config {
        let mut config = config.clone();
        match &self.host {
            Some(Host::Tcp(name)) => {
                config.host(name);
            }
            Some(Host::Unix(directory)) => {
                config.host_path(directory);
            }
            None => {}
        }
        if let Some(address) = address {
            config.hostaddr(address);
        }
        config.port(self.port);
        config
    }
}

/// The servers that are named in a connection string.
fn servers(config: &Config) -> Result<Vec<Server>, TargetError> {
    let (hosts, addresses) = (config.get_hosts(), config.get_hostaddrs());
    let ports = config.get_ports();
    let count = hosts.len().max(addresses.len());
    let fits = |length: usize, few: usize| length <= few || length == count;
    if !fits(hosts.len(), 0) || !fits(addresses.len(), 0) || !fits(ports.len(), 1) {
        return Err(TargetError::Lists);
    }
    let servers = (0..count).map(|at| Server {
        host: hosts.get(at).cloned(),
        address: addresses.get(at).copied(),
        port: *ports.get(at).or(ports.first()).unwrap_or(&5432),
    });
    Ok(servers.collect())
}

/// What to tell of two: what was said last, but for why a server that is there must not be used.
fn weightier(
    told: Option<tokio_postgres::Error>,
    said: Option<tokio_postgres::Error>,
) -> Option<tokio_postgres::Error> {
    if told.as_ref().is_some_and(is_behind) {
        told
    } else {
        said.or(told)
    }
}

fn is_behind(error: &tokio_postgres::Error) -> bool {
    error
        .code()
        .is_some_and(|code| code.code() == fence::BEHIND)
}

/// Whether the servers are to be tried in any order.
fn is_any(config: &Config) -> bool {
    config.get_load_balance_hosts() == LoadBalanceHosts::Random
}

/// The rest of the keywords as tokio-postgres wants them.
fn config_of(mut conninfo: Conninfo) -> Result<Config, TargetError> {
    if conninfo.take("gssencmode").as_deref() == Some("require") {
        return Err(TargetError::Kerberos);
    }
    for ours_or_meaningless in [
        "sslmode",
        "sslrootcert",
        "sslcert",
        "sslkey",
        "ssl_min_protocol_version",
        "passfile",
        "sslcompression",
        "sslsni",
        "krbsrvname",
        "gsslib",
        "client_encoding",
        "fallback_application_name",
    ] {
        conninfo.take(ours_or_meaningless);
    }
    // libpq counts milliseconds here and tokio-postgres seconds.
    let unacknowledged = match conninfo.take("tcp_user_timeout") {
        None => UNACKNOWLEDGED,
        Some(text) => Duration::from_millis(text.parse().map_err(|_| TargetError::Number {
            keyword: "tcp_user_timeout",
        })?),
    };
    if let Some(count) = conninfo.take("keepalives_count") {
        conninfo.set("keepalives_retries", &count);
    }
    let default = |conninfo: &mut Conninfo, keyword, value: u64| {
        if conninfo.get(keyword).is_none() {
            conninfo.set(keyword, &value.to_string());
        }
    };
    let idle = KEEPALIVE_IDLE.as_secs();
    default(&mut conninfo, "keepalives_idle", idle);
    let interval = KEEPALIVE_INTERVAL.as_secs();
    default(&mut conninfo, "keepalives_interval", interval);
    let retries = KEEPALIVE_RETRIES.into();
    default(&mut conninfo, "keepalives_retries", retries);
    default(&mut conninfo, "connect_timeout", CONNECT.as_secs());
    let mut config: Config = conninfo
        .to_key_values()
        .parse()
        .map_err(TargetError::Keyword)?;
    config.tcp_user_timeout(unacknowledged);
    Ok(config)
}

/// libpq's choice when no host is named, as its two usual builds make it.
fn default_host(port: &str) -> &'static str {
    ["/var/run/postgresql", "/tmp"]
        .into_iter()
        .find(|directory| {
            let socket = Path::new(directory).join(format!(".s.PGSQL.{port}"));
            socket.exists()
        })
        .unwrap_or("localhost")
}

impl fmt::Display for Target {
    /// A URL without its password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |keyword| self.conninfo.get(keyword).unwrap_or("");
        let (host, port, user) = (value("host"), value("port"), value("user"));
        let encoded = |text| utf8_percent_encode(text, RESERVED);
        f.write_str("postgres://")?;
        if !user.is_empty() {
            write!(f, "{}@", encoded(user))?;
        }
        let place = if host.is_empty() {
            value("hostaddr")
        } else {
            host
        };
        // A socket's path and lists are only readable as parameters.
        let is_plain = !place.starts_with('/') && !place.contains(',') && !port.contains(',');
        if is_plain {
            if place.contains(':') {
                write!(f, "[{place}]")?;
            } else {
                write!(f, "{}", encoded(place))?;
            }
            if !port.is_empty() {
                write!(f, ":{}", encoded(port))?;
            }
        }
        write!(f, "/{}", encoded(value("dbname")))?;
        if !is_plain {
            write!(f, "?host={}", utf8_percent_encode(place, IN_PARAMETER))?;
            if !port.is_empty() && port != "5432" {
                write!(f, "&port={}", utf8_percent_encode(port, IN_PARAMETER))?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({self})")
    }
}

const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
const IN_PARAMETER: &AsciiSet = &RESERVED.remove(b'/').remove(b',').remove(b':');

fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::embedded::tests::throw_away;
    use crate::postgres::pool::{Lease, pool};

    #[test]
    fn a_vanished_peer_is_noticed_in_seconds() {
        let target = Target::from_url("postgres://ann@db/app?sslmode=verify-full").unwrap();
        let config = target.config("rowcast");
        assert_eq!(config.get_keepalives_idle(), Duration::from_secs(10));
        assert_eq!(
            config.get_keepalives_interval(),
            Some(Duration::from_secs(5))
        );
        assert_eq!(config.get_keepalives_retries(), Some(3));
        assert_eq!(config.get_tcp_user_timeout(), Some(&UNACKNOWLEDGED));
        assert_eq!(config.get_connect_timeout(), Some(&CONNECT));
        assert_eq!(config.get_ssl_mode(), SslMode::Require);
        assert_eq!(config.get_options(), None);
    }

    #[test]
    fn what_the_operator_chose_is_kept() {
        let target = Target::from_url(
            "host=db connect_timeout=2 keepalives_count=9 tcp_user_timeout=1500 gssencmode=disable",
        );
        let config = target.unwrap().config("rowcast");
        assert_eq!(config.get_connect_timeout(), Some(&Duration::from_secs(2)));
        assert_eq!(config.get_keepalives_retries(), Some(9));
        assert_eq!(
            config.get_tcp_user_timeout(),
            Some(&Duration::from_millis(1500))
        );
    }

    #[test]
    fn a_socket_needs_no_tls() {
        let target = Target::from_url("host=/tmp sslmode=require").unwrap();
        assert_eq!(target.config("x").get_ssl_mode(), SslMode::Disable);
    }

    #[test]
    fn no_password_is_ever_printed() {
        let url = "postgres://ann:s3cret@db:6432/app?sslmode=disable";
        let target = Target::from_url(url).unwrap();
        assert_eq!(target.to_string(), "postgres://ann@db:6432/app");
        let (arguments, environment) = target.psql_arguments();
        assert_eq!(
            arguments,
            [
                "-d",
                "host=db port=6432 user=ann dbname=app sslmode=disable"
            ]
        );
        assert_eq!(
            environment,
            [("PGPASSWORD".to_owned(), "s3cret".to_owned())]
        );
        for text in [
            format!("{target} {target:?} {}", target.psql_line()),
            format!("{:?}", target.clone().with_login("bob", Some("s3cret"))),
            format!(
                "{:?}",
                Target::from_url("password=s3cret bogus=s3cret").unwrap_err()
            ),
        ] {
            assert!(!text.contains("s3cret"), "{text}");
        }
    }

    #[test]
    fn lines_can_be_pasted() {
        let target = Target::unix(Path::new("/tmp/it's here"), 5432, "postgres", "a b");
        assert_eq!(
            target.psql_line(),
            r"psql -d 'host='\''/tmp/it\'\''s here'\'' port=5432 user=postgres dbname='\''a b'\'''"
        );
        assert_eq!(
            target.to_string(),
            "postgres://postgres@/a%20b?host=/tmp/it%27s%20here"
        );
        let again = Target::from_url(&target.to_string()).unwrap();
        assert_eq!(again.to_string(), target.to_string());
    }

    #[test]
    fn another_login_does_not_inherit_the_password() {
        let target = Target::from_url("postgres://ann:x@db/app").unwrap();
        let (_, environment) = target.with_login("bob", None).psql_arguments();
        assert!(environment.is_empty());
    }

    #[test]
    fn mistakes_name_the_keyword() {
        use std::error::Error;
        let error = Target::from_url("postgres://db/app?nonsense=1").unwrap_err();
        let cause = error.source().unwrap();
        assert!(cause.source().unwrap().to_string().contains("nonsense"));
        assert!(matches!(
            Target::from_url("host=db sslmode=sometimes"),
            Err(TargetError::Tls(TlsError::Mode(_)))
        ));
    }

    #[tokio::test]
    async fn a_server_that_accepts_and_is_silent_is_given_up() {
        let (_silent, port) = silent("127.0.0.1:0").await;
        let url = format!("postgres://ann:s3cret@127.0.0.1:{port}/app?connect_timeout=1");
        let error = Target::from_url(&url).unwrap().connect("rowcast").await;
        let error = error.err().unwrap();
        assert!(matches!(error, ConnectError::TimedOut { .. }));
        assert_eq!(
            error.to_string(),
            format!("postgres://ann@127.0.0.1:{port}/app did not answer within 1 s")
        );
    }

    /// Accepts, and says nothing.
    async fn silent(address: &str) -> (tokio::net::TcpListener, u16) {
        let silent = tokio::net::TcpListener::bind(address).await.unwrap();
        let port = silent.local_addr().unwrap().port();
        (silent, port)
    }

    #[tokio::test]
    async fn a_server_that_is_silent_keeps_nobody_from_the_next_one() {
        let Some((_place, cluster)) = throw_away().await else {
            return;
        };
        let (_silent, port) = silent("127.0.0.1:0").await;
        let good = cluster.target("postgres").conninfo;
        let named = |keyword| good.get(keyword).unwrap().to_owned();
        let target = Target::from_url(&format!(
            "host='127.0.0.1,{}' port={port},{} user=postgres dbname=postgres connect_timeout=2",
            named("host"),
            named("port"),
        ));
        let target = target.unwrap();
        let (_client, _connection) = target.connect("rowcast test").await.unwrap();
        let pool = pool(&target, "rowcast test", 1);
        Lease::take(&pool).await.unwrap();
        cluster.stop().await;
    }

    #[tokio::test]
    async fn an_address_that_is_silent_keeps_nobody_from_the_next_one_of_the_same_name() {
        let Some((_place, cluster)) = throw_away().await else {
            return;
        };
        let (_silent, port) = silent("127.0.0.2:0").await;
        let good = cluster.target("postgres").conninfo;
        let socket = Path::new(good.get("host").unwrap()).join(".s.PGSQL.5432");
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port));
        let listener = listener.await.unwrap();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut server = tokio::net::UnixStream::connect(&socket).await.unwrap();
                tokio::spawn(async move {
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        let url = format!("postgres://postgres@db.example:{port}/postgres?sslmode=disable");
        let target = Target::from_url(&url).unwrap();
        let addresses = ["127.0.0.2", "127.0.0.1"].map(|text| Some(text.parse().unwrap()));
        let until = Instant::now() + Duration::from_secs(4);
        let config = target.config("rowcast test");
        let opened = target.any_of(addresses.to_vec(), &target.servers[0], &config, until, "");
        let (client, connection) = opened.await.unwrap();
        tokio::spawn(connection);
        client.batch_execute("select").await.unwrap();
        cluster.stop().await;
    }

    #[test]
    fn each_server_has_its_address_and_its_port() {
        let servers = |text: &str| {
            let target = Target::from_url(text).unwrap();
            let told = target.servers.iter().map(|server| format!("{server:?}"));
            told.collect::<Vec<_>>().join(" ")
        };
        let found = servers("host=a,b hostaddr=127.0.0.1,127.0.0.2 port=1,2");
        assert_eq!(
            found,
            "Server { host: Some(Tcp(\"a\")), address: Some(127.0.0.1), port: 1 } \
             Server { host: Some(Tcp(\"b\")), address: Some(127.0.0.2), port: 2 }"
        );
        let one_port = servers("host=a,b port=7");
        assert_eq!(one_port.matches("port: 7").count(), 2, "{one_port}");
        for text in [
            "host=a,b port=1,2,3",
            "host=a,b hostaddr=127.0.0.1",
            "hostaddr=127.0.0.1 port=1,2",
        ] {
            assert!(
                matches!(Target::from_url(text), Err(TargetError::Lists)),
                "{text}"
            );
        }
    }
}
