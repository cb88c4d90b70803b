//! TLS to the database, with libpq's six modes.
//!
//! Promises that a mode never means less than it does in libpq. It does not know where the
//! connection goes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, DEFAULT_VERSIONS, DigitallySignedStruct, InconsistentKeys, RootCertStore,
    SignatureScheme, SupportedProtocolVersion,
};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

/// Why no TLS could be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// Not one of libpq's modes.
    #[error(
        "sslmode is \"{0}\", and must be disable, allow, prefer, require, verify-ca or verify-full"
    )]
    Mode(String),
    /// System roots sign anybody's certificate, so the name must be checked too.
    #[error("sslrootcert=system needs sslmode=verify-full and not \"{0}\"")]
    WeakSystem(String),
    /// The file with the root certificates.
    #[error("the root certificates in {path} cannot be read")]
    Roots {
        /// The file of `sslrootcert`.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// `verify-ca` without a root certificate.
    #[error(
        "sslmode=verify-ca needs sslrootcert, because any authority may sign any certificate; \
         sslmode=verify-full takes those of the system and looks at the name too"
    )]
    NoAuthority,
    /// The file or the system has none.
    #[error("there are no root certificates in {0}")]
    NoRoots(String),
    /// `sslcert` without `sslkey`, or the other way round.
    #[error("sslcert and sslkey must be given both, or neither")]
    HalfIdentity,
    /// The file with the client's certificate or with its key.
    #[error("{path} cannot be read as PEM{}", if *.is_key { " that holds a private key without a password" } else { "" })]
    Identity {
        /// The file of `sslcert` or `sslkey`.
        path: PathBuf,
        /// Whether it should hold the key.
        is_key: bool,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// The two do not belong together, or are of a kind that nobody uses.
    #[error("the certificate of sslcert cannot be used with the key of sslkey")]
    Unsuited(#[source] rustls::Error),
    /// Not one of TLS' versions.
    #[error("ssl_min_protocol_version is \"{0}\", and must be TLSv1, TLSv1.1, TLSv1.2 or TLSv1.3")]
    Version(String),
}

/// What libpq's keywords say of TLS.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// `sslmode`
    pub mode: Option<&'a str>,
    /// `sslrootcert`
    pub roots: Option<&'a str>,
    /// `sslcert`: the certificate that we show.
    pub certificate: Option<&'a str>,
    /// `sslkey`: its key.
    pub key: Option<&'a str>,
    /// `ssl_min_protocol_version`
    pub least: Option<&'a str>,
}

/// What is checked of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    Nothing,
    Chain,
    ChainAndName,
}

/// A connector and the mode for tokio-postgres.
///
/// # Errors
/// When the mode is unknown, or certificates are needed and not there.
///
/// # Panics
/// Never: ring has what the protocol versions need.
pub fn connector(wanted: Wanted<'_>) -> Result<(MakeRustlsConnect, SslMode), TlsError> {
    let (check, mode) = checks(wanted.mode, wanted.roots)?;
    let versions = versions(wanted.least)?;
    let trusted = match check {
        Check::Nothing => Vec::new(),
        Check::Chain | Check::ChainAndName => match wanted.roots {
            None | Some("system") => system_certificates()?,
            Some(path) => certificates_in(Path::new(path))?,
        },
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(trusted.iter().cloned());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier {
        check,
        roots,
        trusted,
        provider: Arc::clone(&provider),
    };
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .expect("ring supports TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match (wanted.certificate, wanted.key) {
        (Some(certificate), Some(key)) if mode != SslMode::Disable => {
            let shown = identity(Path::new(certificate), Path::new(key), &provider)?;
            config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown)))
        }
        (Some(_), None) | (None, Some(_)) => return Err(TlsError::HalfIdentity),
        _ => config.with_no_client_auth(),
    };
    // sslnegotiation=direct demands it, and it is harmless otherwise.
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok((MakeRustlsConnect::new(config), mode))
}

fn checks(mode: Option<&str>, roots: Option<&str>) -> Result<(Check, SslMode), TlsError> {
    match (mode, roots) {
        (None | Some("verify-full"), Some("system")) => Ok((Check::ChainAndName, SslMode::Require)),
        (Some(mode), Some("system")) => Err(TlsError::WeakSystem(mode.to_owned())),
        (Some("disable"), _) => Ok((Check::Nothing, SslMode::Disable)),
        // "allow" asks for plain text first; asking for TLS first is never weaker.
        (None | Some("allow" | "prefer"), _) => Ok((Check::Nothing, SslMode::Prefer)),
        (Some("require"), None) => Ok((Check::Nothing, SslMode::Require)),
        // A certificate of any authority in the world, for any name: libpq refuses it too.
        (Some("verify-ca"), None) => Err(TlsError::NoAuthority),
        // libpq: require with a root certificate is verify-ca.
        (Some("require" | "verify-ca"), Some(_)) => Ok((Check::Chain, SslMode::Require)),
        (Some("verify-full"), _) => Ok((Check::ChainAndName, SslMode::Require)),
        (Some(other), _) => Err(TlsError::Mode(other.to_owned())),
    }
}

static NEWEST: [&SupportedProtocolVersion; 1] = [&TLS13];

/// rustls has none before TLS 1.2, which is what libpq asks for where nothing is said.
fn versions(least: Option<&str>) -> Result<&'static [&'static SupportedProtocolVersion], TlsError> {
    let known = |versions: &[&str], text: &str| {
        let mut versions = versions.iter();
        versions.any(|version| version.eq_ignore_ascii_case(text))
    };
    match least {
        Some(text) if known(&["TLSv1.3"], text) => Ok(&NEWEST),
        Some(text) if !known(&["TLSv1", "TLSv1.1", "TLSv1.2"], text) => {
            Err(TlsError::Version(text.to_owned()))
        }
        _ => Ok(DEFAULT_VERSIONS),
    }
}

/// Who we are: a certificate, with those between it and its root, and its key.
fn identity(
    certificate: &Path,
    key: &Path,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let failed = |path: &Path, is_key| {
        let path = path.to_owned();
        move |source| TlsError::Identity {
            path,
            is_key,
            source,
        }
    };
    let certificates = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(failed(certificate, false))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(failed(key, true))?;
    let key = provider.key_provider.load_private_key(key);
    let shown = CertifiedKey::new(certificates, key.map_err(TlsError::Unsuited)?);
    match shown.keys_match() {
        Err(
            error @ (rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)
            | rustls::Error::NoCertificatesPresented),
        ) => Err(TlsError::Unsuited(error)),
        // What openssl makes of a request without more words is of the first version of X.509, which cannot be
        // looked into here, and servers take it.
        _ => Ok(shown),
    }
}

fn certificates_in(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::Roots {
        path: path.to_owned(),
        source,
    };
    let certificates = CertificateDer::pem_file_iter(path)
        .map_err(failed)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    if certificates.is_empty() {
        return Err(TlsError::NoRoots(path.display().to_string()));
    }
    Ok(certificates)
}

fn system_certificates() -> Result<Vec<CertificateDer<'static>>, TlsError> {
    // Single unreadable files of the system's store are no reason to refuse the others.
    let certificates = rustls_native_certs::load_native_certs().certs;
    if certificates.is_empty() {
        return Err(TlsError::NoRoots("the system's store".to_owned()));
    }
    Ok(certificates)
}

#[derive(Debug)]
struct Verifier {
    check: Check,
    roots: RootCertStore,
    /// The same certificates as bytes, to know one when the server itself shows it.
    trusted: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.check == Check::Nothing {
            return Ok(ServerCertVerified::assertion());
        }
        let certificate = ParsedCertificate::try_from(end_entity)?;
        // A self-signed server certificate copied to the client is its own root, which webpki
        // refuses as "CA used as end entity" and libpq, whose manual recommends it, accepts.
        if !self.trusted.iter().any(|trusted| trusted == end_entity) {
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                &self.roots,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )?;
        }
        if self.check == Check::ChainAndName {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use tokio::process::Command;

    use super::*;
    use crate::postgres::connect::{Target, TargetError};
    use crate::postgres::embedded::Cluster;
    use crate::postgres::embedded::tests::{options, throw_away};

    /// A server with TLS whose certificate is for `localhost`, signed by `ca.pem` beside its data;
    /// `None` where there is no PostgreSQL or no openssl to make certificates with.
    async fn server_with_tls() -> Option<(tempfile::TempDir, Cluster, u16)> {
        let (place, cluster) = throw_away().await?;
        cluster.stop().await;
        let data = place.path().join("data");
        let mut openssl = Command::new("sh");
        openssl.args(["-ec", CERTIFICATES]).current_dir(&data);
        if !openssl.status().await.unwrap().success() {
            return None;
        }
        let owner = std::fs::metadata(&data).unwrap();
        for name in ["server.key", "server.crt"] {
            let path = data.join(name);
            std::os::unix::fs::lchown(path, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut options = options(place.path());
        std::fs::write(data.join("hba"), HBA).unwrap();
        for (name, value) in [
            ("ssl", "on"),
            ("ssl_ca_file", "ca.pem"),
            ("hba_file", &data.join("hba").display().to_string()),
            ("listen_addresses", "127.0.0.1"),
            ("port", &port.to_string()),
        ] {
            let setting = (name.to_owned(), value.to_owned());
            options.extra_settings.push(setting);
        }
        let cluster = Cluster::start(options).await.unwrap();
        Some((place, cluster, port))
    }

    const HBA: &str = "
        local all all trust
        hostssl all shown 127.0.0.1/32 trust clientcert=verify-full
        host all postgres 127.0.0.1/32 trust";

    const CERTIFICATES: &str = "
        command -v openssl >/dev/null
        exec 2>/dev/null
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=root -keyout ca.key -out ca.pem
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=else -keyout no.key -out no.pem
        openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr
        echo subjectAltName=DNS:localhost >names
        openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
            -extfile names -out server.crt
        openssl req -newkey rsa:2048 -nodes -subj /CN=shown -keyout shown.key -out shown.csr
        openssl x509 -req -in shown.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out shown.crt
        openssl pkey -in shown.key -aes256 -passout pass:secret -out locked.key
        chmod 0600 server.key";

    #[tokio::test]
    async fn a_server_is_believed_as_far_as_its_certificate_goes() {
        let Some((place, cluster, port)) = server_with_tls().await else {
            return;
        };
        let file = |name: &str| place.path().join("data").join(name).display().to_string();
        let (ours, other, itself) = (file("ca.pem"), file("no.pem"), file("server.crt"));
        let is_encrypted = async |host: &str, parameters: &str| {
            let place = format!("host={host} hostaddr=127.0.0.1 port={port}");
            let text = format!("{place} user=postgres dbname=postgres {parameters}");
            let target = Target::from_url(&text).unwrap();
            let (client, connection) = target.connect("rowcast test").await.ok()?;
            tokio::spawn(connection);
            let sql = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
            Some(client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0))
        };
        let root = |mode: &str, file: &str| format!("sslmode={mode} sslrootcert={file}");
        let at = "localhost";
        assert_eq!(is_encrypted(at, "sslmode=disable").await, Some(false));
        assert_eq!(is_encrypted(at, "").await, Some(true));
        assert_eq!(is_encrypted(at, "sslmode=require").await, Some(true));
        let elsewhere = "db.example";
        for (mode, name_counts) in [
            ("require", false),
            ("verify-ca", false),
            ("verify-full", true),
        ] {
            for trusted in [&ours, &itself] {
                let parameters = root(mode, trusted);
                assert_eq!(is_encrypted(at, &parameters).await, Some(true));
                let believed = is_encrypted(elsewhere, &parameters).await;
                assert_eq!(believed.is_none(), name_counts, "{parameters}");
            }
            assert_eq!(is_encrypted(at, &root(mode, &other)).await, None);
        }
        cluster.stop().await;
    }

    #[tokio::test]
    async fn a_certificate_is_shown_to_a_server_that_wants_one() {
        let Some((place, cluster, port)) = server_with_tls().await else {
            return;
        };
        let (client, connection) = cluster
            .target("postgres")
            .connect("rowcast test")
            .await
            .unwrap();
        tokio::spawn(connection);
        client
            .batch_execute("create role shown login")
            .await
            .unwrap();
        let file = |name: &str| place.path().join("data").join(name).display().to_string();
        let target = |parameters: &str| {
            let place = format!("host=localhost hostaddr=127.0.0.1 port={port} user=shown");
            let root = format!("sslmode=verify-full sslrootcert={}", file("ca.pem"));
            Target::from_url(&format!("{place} dbname=postgres {root} {parameters}"))
        };
        let of = |certificate: &str, key: &str| {
            target(&format!(
                "sslcert={} sslkey={}",
                file(certificate),
                file(key)
            ))
        };
        let connected = async |target: Target| target.connect("rowcast test").await.is_ok();
        assert!(!connected(target("").unwrap()).await);
        let shown = of("shown.crt", "shown.key").unwrap();
        assert!(connected(shown).await);
        let (mut arguments, _) = of("shown.crt", "shown.key").unwrap().psql_arguments();
        assert!(arguments.pop().unwrap().contains("sslkey="));
        let is = |told: TargetError, wanted: fn(&TlsError) -> bool| match told {
            TargetError::Tls(error) => wanted(&error),
            _ => false,
        };
        let told = of("server.crt", "shown.key").unwrap_err();
        assert!(is(told, |error| matches!(error, TlsError::Unsuited(_))));
        for key in ["locked.key", "nowhere.key"] {
            let told = of("shown.crt", key).unwrap_err();
            let is_key =
                |error: &TlsError| matches!(error, TlsError::Identity { is_key: true, .. });
            assert!(is(told, is_key), "{key}");
        }
        let told = target("sslcert=shown.crt").unwrap_err();
        assert!(is(told, |error| matches!(error, TlsError::HalfIdentity)));
        cluster.stop().await;
    }

    #[test]
    fn the_least_version_is_kept_to() {
        for text in ["TLSv1", "tlsv1.1", "TLSv1.2"] {
            assert_eq!(versions(Some(text)).unwrap().len(), 2, "{text}");
        }
        assert_eq!(versions(Some("TLSv1.3")).unwrap(), [&TLS13]);
        assert!(matches!(
            versions(Some("TLSv1.4")),
            Err(TlsError::Version(_))
        ));
        let target = Target::from_url("postgres://db/app?ssl_min_protocol_version=TLSv1.3");
        assert!(target.is_ok());
    }

    #[test]
    fn modes_mean_what_they_mean_in_libpq() {
        let checks = |mode, roots| checks(mode, roots).unwrap();
        let nothing = Check::Nothing;
        assert_eq!(checks(Some("disable"), None), (nothing, SslMode::Disable));
        assert_eq!(checks(None, None), (nothing, SslMode::Prefer));
        assert_eq!(checks(Some("allow"), None), (nothing, SslMode::Prefer));
        assert_eq!(checks(Some("require"), None), (nothing, SslMode::Require));
        let chain = (Check::Chain, SslMode::Require);
        assert_eq!(checks(Some("require"), Some("ca.pem")), chain);
        assert_eq!(checks(Some("verify-ca"), Some("ca.pem")), chain);
        let full = (Check::ChainAndName, SslMode::Require);
        assert_eq!(checks(Some("verify-full"), None), full);
        assert_eq!(checks(None, Some("system")), full);
    }

    #[test]
    fn weaker_or_unknown_modes_are_refused_aloud() {
        let connector = |mode, roots| {
            connector(Wanted {
                mode,
                roots,
                ..Wanted::default()
            })
        };
        assert!(matches!(
            connector(Some("require"), Some("system")),
            Err(TlsError::WeakSystem(_))
        ));
        assert!(matches!(
            connector(Some("verify-ca"), None),
            Err(TlsError::NoAuthority)
        ));
        assert!(matches!(
            connector(Some("verify_full"), None),
            Err(TlsError::Mode(_))
        ));
        assert!(matches!(
            connector(Some("verify-full"), Some("/nonexistent/ca.pem")),
            Err(TlsError::Roots { .. })
        ));
        let empty = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(
            connector(Some("verify-ca"), empty.path().to_str()),
            Err(TlsError::NoRoots(_))
        ));
    }
}
