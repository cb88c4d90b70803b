//! Connection strings: what libpq's URLs, `key=value` strings, environment variables, service
//! file and password file say, as one set of libpq keywords.
//!
//! Promises that all four spellings end as the same [`Conninfo`], and that nothing printed by
//! this room holds a password. It opens no connection and does not know which keywords mean
//! something to us.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;

/// Why a connection string was not understood.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConninfoError {
    /// `postgres://…` with a part that is not percent-encoded text.
    #[error("the connection URL has a wrong percent-encoding in its {part}")]
    Encoding {
        /// Which part: user, password, host, database or parameter.
        part: &'static str,
    },
    /// `postgres://[::1/db`.
    #[error("the connection URL has an address that opens with [ and is not closed by ]")]
    Address,
    /// `postgres://u:p@ss@host/db`. Nothing of it is told: it is part of a password.
    #[error("the connection URL has two @; one inside of a user or password is written %40")]
    Credentials,
    /// `postgres:///db?sslmode`.
    #[error("the connection URL has a parameter \"{name}\" without a value")]
    NoValue {
        /// The parameter.
        name: String,
    },
    /// `host=a b`.
    #[error("the connection string has a keyword without = at character {at}")]
    NoEquals {
        /// Characters before the keyword. The keyword itself is not told: an unquoted password
        /// with a blank in it looks like one.
        at: usize,
    },
    /// `?=require`, `?%0Asslmode=require`: it would be two things to the next one who reads it. Not told, as it may
    /// be part of a password.
    #[error("the connection string has a keyword that is no word")]
    NoWord,
    /// `password='abc`.
    #[error("the connection string has an opening quote without its end")]
    OpenQuote,
    /// `PGSERVICE=app` and no `[app]` in the file.
    #[error("the service \"{service}\" is not in the service file {path}")]
    NoService {
        /// The name sought.
        service: String,
        /// Where it was sought.
        path: PathBuf,
    },
    /// The service file cannot be read.
    #[error("the service file {path} cannot be read")]
    ServiceFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// libpq keywords and their values, none of them empty.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Conninfo {
    values: BTreeMap<String, String>,
}

impl Conninfo {
    /// Reads a `postgres://` or `postgresql://` URL, or a `key=value` string.
    ///
    /// # Errors
    /// When the text has not the form of either.
    pub fn parse(text: &str) -> Result<Self, ConninfoError> {
        let text = text.trim();
        let rest = ["postgres://", "postgresql://"]
            .iter()
            .find_map(|scheme| text.strip_prefix(scheme));
        let conninfo = match rest {
            Some(rest) => Self::of_url(rest)?,
            None => Self::of_key_values(text)?,
        };
        let is_word = |name: &String| {
            let of_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            !name.is_empty() && name.bytes().all(of_word)
        };
        if !conninfo.values.keys().all(is_word) {
            return Err(ConninfoError::NoWord);
        }
        Ok(conninfo)
    }

    /// What the environment says, or `None` when it names no server: `PGUSER` or `PGPASSWORD`
    /// alone are often set for other programs and choose nothing.
    ///
    /// # Errors
    /// When `PGSERVICE` names a service that cannot be read.
    pub fn of_environment(
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Option<Result<Self, ConninfoError>> {
        let mut conninfo = Self::default();
        for (variable, keyword) in VARIABLES {
            if let Some(value) = lookup(variable) {
                conninfo.set(keyword, &value);
            }
        }
        let service = lookup("PGSERVICE").filter(|name| !name.is_empty());
        let names_a_server = ["host", "hostaddr", "port", "dbname"]
            .iter()
            .any(|keyword| conninfo.get(keyword).is_some());
        if let Some(service) = service {
            let path = lookup("PGSERVICEFILE")
                .map(PathBuf::from)
                .or_else(|| lookup("HOME").map(|home| Path::new(&home).join(".pg_service.conf")))
                .unwrap_or_default();
            return Some(service_entry(&path, &service).map(|entry| {
                // The service stands above single variables, as in libpq.
                conninfo.values.extend(entry.values);
                conninfo.or_password(&lookup)
            }));
        }
        names_a_server.then(|| Ok(conninfo.or_password(&lookup)))
    }

    /// Adds the password that libpq would find: `PGPASSWORD`, then the password file. Leaves one
    /// that is there already.
    #[must_use]
    pub fn or_password(mut self, lookup: impl Fn(&str) -> Option<String>) -> Self {
        if self.get("password").is_some() {
            return self;
        }
        if let Some(password) = lookup("PGPASSWORD") {
            self.set("password", &password);
            return self;
        }
        let file = self
            .get("passfile")
            .map(str::to_owned)
            .or_else(|| lookup("PGPASSFILE").filter(|path| !path.is_empty()))
            .map(PathBuf::from)
            .or_else(|| lookup("HOME").map(|home| Path::new(&home).join(".pgpass")));
        let password = file.and_then(|file| {
            let text = readable_by_owner_only(&file)?;
            self.password_in(&text)
        });
        if let Some(password) = password {
            self.set("password", &password);
        }
        self
    }

    /// The value of a keyword.
    #[must_use]
    pub fn get(&self, keyword: &str) -> Option<&str> {
        self.values.get(keyword).map(String::as_str)
    }

    /// Sets a keyword. An empty value unsets it, as in libpq.
    pub fn set(&mut self, keyword: &str, value: &str) {
        if value.is_empty() {
            self.values.remove(keyword);
        } else {
            self.values.insert(keyword.to_owned(), value.to_owned());
        }
    }

    /// Takes a keyword out.
    pub fn take(&mut self, keyword: &str) -> Option<String> {
        self.values.remove(keyword)
    }

    /// As a `key=value` string, the keywords that say where first.
    #[must_use]
    pub fn to_key_values(&self) -> String {
        let where_to = ["host", "hostaddr", "port", "user", "dbname"];
        let others = self
            .values
            .keys()
            .map(String::as_str)
            .filter(|keyword| !where_to.contains(keyword));
        let pairs = where_to.into_iter().chain(others).filter_map(|keyword| {
            let value = self.get(keyword)?;
            Some(format!("{keyword}={}", quoted(value)))
        });
        pairs.collect::<Vec<_>>().join(" ")
    }

    /// `[user[:password]@][host[:port],…][/database][?keyword=value&…]`
    fn of_url(rest: &str) -> Result<Self, ConninfoError> {
        let mut conninfo = Self::default();
        // A password may hold ? and :, but a / before @ means that there are no credentials.
        let (credentials, rest) = match rest.split_once('@') {
            Some((credentials, rest)) if !credentials.contains('/') => (Some(credentials), rest),
            _ => (None, rest),
        };
        if let Some(credentials) = credentials {
            let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
            conninfo.set("user", &decoded(user, "user")?);
            conninfo.set("password", &decoded(password, "password")?);
        }
        let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let (places, database) = rest.split_once('/').unwrap_or((rest, ""));
        conninfo.set("dbname", &decoded(database, "database")?);
        conninfo.set_places(places)?;
        for parameter in parameters.split('&').filter(|text| !text.is_empty()) {
            let (name, value) =
                parameter
                    .split_once('=')
                    .ok_or_else(|| ConninfoError::NoValue {
                        name: parameter.to_owned(),
                    })?;
            let name = decoded(name, "parameter")?;
            let value = decoded(value, "parameter")?;
            match (name.as_str(), value.as_str()) {
                // JDBC's spelling, which libpq takes too.
                ("ssl", "true") => conninfo.set("sslmode", "require"),
                _ => conninfo.set(&name, &value),
            }
        }
        Ok(conninfo)
    }

    fn set_places(&mut self, places: &str) -> Result<(), ConninfoError> {
        let mut hosts = Vec::new();
        let mut ports = Vec::new();
        for place in places.split(',') {
            let (host, port) = match place.strip_prefix('[') {
                Some(rest) => {
                    let (host, after) = rest.split_once(']').ok_or(ConninfoError::Address)?;
                    (host, after.strip_prefix(':').unwrap_or(""))
                }
                None => place.split_once(':').unwrap_or((place, "")),
            };
            // The rest of a password that holds one, which must not be told as a host.
            if host.contains('@') {
                return Err(ConninfoError::Credentials);
            }
            hosts.push(decoded(host, "host")?);
            ports.push(decoded(port, "host")?);
        }
        self.set("host", &hosts.join(","));
        if ports.iter().any(|port| !port.is_empty()) {
            self.set("port", &ports.join(","));
        }
        Ok(())
    }

    /// `key = value key='it\'s'`
    fn of_key_values(text: &str) -> Result<Self, ConninfoError> {
        let mut conninfo = Self::default();
        let mut chars = text.char_indices().peekable();
        loop {
            while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {}
            let Some(&(at, _)) = chars.peek() else {
                return Ok(conninfo);
            };
            let mut keyword = String::new();
            while let Some((_, c)) = chars.next_if(|(_, c)| *c != '=' && !c.is_whitespace()) {
                keyword.push(c);
            }
            while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {}
            if keyword.is_empty() || chars.next_if(|(_, c)| *c == '=').is_none() {
                return Err(ConninfoError::NoEquals { at });
            }
            while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {}
            let is_quoted = chars.next_if(|(_, c)| *c == '\'').is_some();
            let mut value = String::new();
            loop {
                match chars.next() {
                    Some((_, '\'')) if is_quoted => break,
                    Some((_, c)) if !is_quoted && c.is_whitespace() => break,
                    Some((_, '\\')) => value.extend(chars.next().map(|(_, c)| c)),
                    Some((_, c)) => value.push(c),
                    None if is_quoted => return Err(ConninfoError::OpenQuote),
                    None => break,
                }
            }
            conninfo.set(&keyword, &value);
        }
    }

    /// The password of the first line `host:port:database:user:password` that fits.
    fn password_in(&self, text: &str) -> Option<String> {
        let host = match self.get("host") {
            None => "localhost",
            Some(host) if host == "/var/run/postgresql" || host == "/tmp" => "localhost",
            Some(host) => host.split(',').next().unwrap_or(host),
        };
        let port = self.get("port").unwrap_or("5432");
        let user = self.get("user").unwrap_or("");
        let database = self.get("dbname").unwrap_or(user);
        let sought = [host, port.split(',').next().unwrap_or(port), database, user];
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .map(password_fields)
            .find(|fields| {
                fields.len() == 5
                    && fields
                        .iter()
                        .zip(sought)
                        .all(|(field, sought)| field == "*" || field == sought)
            })
            .and_then(|mut fields| fields.pop())
    }
}

/// libpq's variables. `PGPASSWORD` and `PGPASSFILE` are read where the password is sought.
const VARIABLES: [(&str, &str); 15] = [
    ("PGHOST", "host"),
    ("PGHOSTADDR", "hostaddr"),
    ("PGPORT", "port"),
    ("PGUSER", "user"),
    ("PGDATABASE", "dbname"),
    ("PGOPTIONS", "options"),
    ("PGSSLMODE", "sslmode"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGSSLCERT", "sslcert"),
    ("PGSSLKEY", "sslkey"),
    ("PGSSLMINPROTOCOLVERSION", "ssl_min_protocol_version"),
    ("PGSSLNEGOTIATION", "sslnegotiation"),
    ("PGCHANNELBINDING", "channel_binding"),
    ("PGCONNECT_TIMEOUT", "connect_timeout"),
    ("PGTARGETSESSIONATTRS", "target_session_attrs"),
];

/// Fields between colons; `\:` and `\\` stand for themselves.
fn password_fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        let last = fields.len() - 1;
        match c {
            // The password is the rest of the line; libpq lets a bare colon stand in it.
            ':' if last < 4 => fields.push(String::new()),
            '\\' => fields[last].extend(chars.next()),
            c => fields[last].push(c),
        }
    }
    fields
}

/// The text of a password file. One that others may read is left alone, as libpq does.
fn readable_by_owner_only(path: &Path) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "password file ignored: others may read it (chmod 0600)");
        return None;
    }
    std::fs::read_to_string(path).ok()
}

fn service_entry(path: &Path, service: &str) -> Result<Conninfo, ConninfoError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConninfoError::ServiceFile {
        path: path.to_owned(),
        source,
    })?;
    let mut entry = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            if entry.is_some() {
                break;
            }
            entry = (name == service).then(Conninfo::default);
        } else if let (Some(entry), Some((keyword, value))) = (&mut entry, line.split_once('='))
            && !line.starts_with('#')
        {
            entry.set(keyword.trim(), value.trim());
        }
    }
    entry.ok_or_else(|| ConninfoError::NoService {
        service: service.to_owned(),
        path: path.to_owned(),
    })
}

fn decoded(text: &str, part: &'static str) -> Result<String, ConninfoError> {
    percent_decode_str(text)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| ConninfoError::Encoding { part })
}

fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./:@,+-".contains(c);
    if value.chars().all(plain) {
        return value.to_owned();
    }
    let mut quoted = String::from("'");
    for c in value.chars() {
        if c == '\'' || c == '\\' {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_of_a_password_is_taken_for_a_host() {
        let told = Conninfo::parse("postgres://u:PW@ONEPART@127.0.0.1:1/db");
        let told = told.err().unwrap();
        assert!(matches!(told, ConninfoError::Credentials));
        assert!(!told.to_string().contains("ONEPART"));
    }

    fn of(text: &str) -> String {
        Conninfo::parse(text).unwrap().to_key_values()
    }

    #[test]
    fn urls_and_key_values_say_the_same() {
        let same = [
            "postgres://ann:p%40ss@db.example:6432/app?sslmode=verify-full&sslrootcert=/etc/ca.pem",
            "postgresql://ann@db.example:6432/app?sslmode=verify-full&sslrootcert=/etc/ca.pem&password=p@ss",
            " host = db.example port=6432 user=ann dbname='app' password=p@ss sslmode=verify-full sslrootcert=/etc/ca.pem",
        ];
        for text in same {
            assert_eq!(
                of(text),
                "host=db.example port=6432 user=ann dbname=app password=p@ss \
                 sslmode=verify-full sslrootcert=/etc/ca.pem"
            );
        }
    }

    #[test]
    fn unusual_urls_are_read_as_libpq_reads_them() {
        assert_eq!(of("postgres://"), "");
        assert_eq!(of("postgres:///app?host=/tmp/x"), "host=/tmp/x dbname=app");
        assert_eq!(of("postgres://%2Ftmp%2Fx/app"), "host=/tmp/x dbname=app");
        assert_eq!(of("postgres://[::1]:7/app"), "host=::1 port=7 dbname=app");
        assert_eq!(of("postgres://a:1,b/app"), "host=a,b port=1, dbname=app");
        assert_eq!(of("postgres://u:a?b:c@h"), "host=h user=u password='a?b:c'");
        assert_eq!(of("postgres:///app?user=a@b"), "user=a@b dbname=app");
        assert_eq!(of("postgres://h/?ssl=true"), "host=h sslmode=require");
    }

    #[test]
    fn quoted_values_survive_a_round_trip() {
        let text = r"host=/tmp/x password='it\'s a";
        assert!(matches!(
            Conninfo::parse(text),
            Err(ConninfoError::OpenQuote)
        ));
        let text = r"password='it\'s a \\ ='";
        let conninfo = Conninfo::parse(text).unwrap();
        assert_eq!(conninfo.get("password"), Some(r"it's a \ ="));
        assert_eq!(conninfo.to_key_values(), text);
    }

    #[test]
    fn mistakes_are_told_without_the_password() {
        for text in [
            "password=two words",
            "postgres://u:s%ffcret@h",
            "postgres://[::1",
            "postgres://h?sslmode",
            "postgres://h?=secret",
            "host='a",
        ] {
            let error = Conninfo::parse(text).err().unwrap().to_string();
            assert!(
                !error.contains("words") && !error.contains("cret"),
                "{error}"
            );
        }
    }

    #[test]
    fn the_environment_counts_only_when_it_names_a_server() {
        let of = |set: &[(&str, &str)]| {
            let set: Vec<(String, String)> = set
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect();
            Conninfo::of_environment(move |name| {
                set.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone())
            })
        };
        assert!(of(&[("PGUSER", "ann"), ("PGPASSWORD", "x")]).is_none());
        assert!(of(&[("PGHOST", "")]).is_none());
        let found = of(&[("PGDATABASE", "app"), ("PGPASSWORD", "x")]).unwrap();
        assert_eq!(found.unwrap().to_key_values(), "dbname=app password=x");
        assert!(of(&[("PGSERVICE", "app")]).unwrap().is_err());
    }

    #[test]
    fn the_password_file_is_searched_in_order_and_must_be_private() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pgpass");
        let text = "# comment\nother:*:*:*:no\nh:5432:app:ann:a\\:b\nh:*:*:*:late\n";
        std::fs::write(&path, text).unwrap();
        let lookup = |name: &str| (name == "PGPASSFILE").then(|| path.display().to_string());
        let found = |url: &str| {
            let conninfo = Conninfo::parse(url).unwrap().or_password(lookup);
            conninfo.get("password").map(str::to_owned)
        };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(found("postgres://ann@h/app"), None);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(found("postgres://ann@h/app").as_deref(), Some("a:b"));
        assert_eq!(found("postgres://bob@h/app").as_deref(), Some("late"));
        assert_eq!(found("postgres://bob:own@h/app").as_deref(), Some("own"));
        assert_eq!(found("postgres://ann@elsewhere/app"), None);
    }

    #[test]
    fn a_service_is_found_by_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("services");
        std::fs::write(
            &path,
            "[a]\nhost=no\n[b]\n# x\nhost = yes\nport=7\n[c]\nhost=no\n",
        )
        .unwrap();
        let lookup = |name: &str| match name {
            "PGSERVICE" => Some("b".to_owned()),
            "PGSERVICEFILE" => Some(path.display().to_string()),
            "PGPORT" => Some("9".to_owned()),
            "PGUSER" => Some("ann".to_owned()),
            _ => None,
        };
        let found = Conninfo::of_environment(lookup).unwrap().unwrap();
        assert_eq!(found.to_key_values(), "host=yes port=7 user=ann");
    }
}
