//! Where a database is, and a connection to it.
//!
//! Promises that a peer which vanished is noticed in seconds, not in tokio-postgres' two hours,
//! and that neither an error nor a printed [`Target`] holds a password. Settings of the session
//! are not sent at startup, because poolers refuse them. It does not know what the connection
//! is for.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
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
    config: Config,
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

    /// Opens a connection that calls itself `application_name`. Where several servers are named, one
    /// that lies behind is passed over.
    ///
    /// # Errors
    /// When no server answers in time, or the one that answers refuses or must not be used.
    pub async fn connect(
        &self,
        application_name: &str,
    ) -> Result<(Client, Connection), ConnectError> {
        let mut config = self.config(application_name);
        for _ in 1..self.attempts() {
            match self.attempt(&config).await {
                Err(ConnectError::Behind { .. }) => elsewhere(&mut config),
                other => return other,
            }
        }
        self.attempt(&config).await
    }

    /// How often to try before every server has been met, most likely.
    pub(super) fn attempts(&self) -> u32 {
        match self.places() {
            1 => 1,
            places => places * 3,
        }
    }

    fn places(&self) -> u32 {
        let (hosts, addresses) = (self.config.get_hosts(), self.config.get_hostaddrs());
        u32::try_from(hosts.len().max(addresses.len()).max(1)).unwrap_or(1)
    }

    async fn attempt(&self, config: &Config) -> Result<(Client, Connection), ConnectError> {
        let each = config.get_connect_timeout().copied().unwrap_or(CONNECT);
        let after = each * self.places();
        let connecting = async {
            let (client, mut connection) = config.connect(self.tls.clone()).await?;
            if let Some(sql) = self.fence.statement() {
                // Somebody must drive the connection meanwhile.
                tokio::select! {
                    biased;
                    checked = client.batch_execute(&sql) => checked?,
                    ended = &mut connection => ended?,
                }
            }
            Ok((client, connection))
        };
        // connect_timeout ends with the TCP handshake; a server that accepts and then is silent
        // would hold us for ever.
        match tokio::time::timeout(after, connecting).await {
            Ok(Ok(connected)) => Ok(connected),
            Ok(Err(source)) => Err(self.refused(source)),
            Err(_elapsed) => Err(ConnectError::TimedOut {
                target: self.to_string(),
                after,
            }),
        }
    }

    fn refused(&self, source: tokio_postgres::Error) -> ConnectError {
        match source.as_db_error() {
            Some(error) if error.code().code() == fence::BEHIND => ConnectError::Behind {
                message: error.message().to_owned(),
            },
            _ => ConnectError::Refused {
                target: self.to_string(),
                source,
            },
        }
    }

    /// What tokio-postgres is told. It holds the password.
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
        let mut config = config_of(conninfo.clone())?;
        let is_local = config
            .get_hosts()
            .iter()
            .all(|host| matches!(host, Host::Unix(_)));
        // As in libpq, sslmode says nothing about Unix sockets.
        let mode = if is_local && config.get_hostaddrs().is_empty() {
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
            tls,
            fence: Fence::default(),
        })
    }
}

/// Any of the named servers, instead of always the same first one.
pub(super) fn elsewhere(config: &mut Config) {
    config.load_balance_hosts(LoadBalanceHosts::Random);
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
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = silent.local_addr().unwrap().port();
        let url = format!("postgres://ann:s3cret@127.0.0.1:{port}/app?connect_timeout=1");
        let error = Target::from_url(&url).unwrap().connect("rowcast").await;
        let error = error.err().unwrap();
        assert!(matches!(error, ConnectError::TimedOut { .. }));
        assert_eq!(
            error.to_string(),
            format!("postgres://ann@127.0.0.1:{port}/app did not answer within 1 s")
        );
    }
}
