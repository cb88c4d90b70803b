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
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
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
}

/// What is checked of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    Nothing,
    Chain,
    ChainAndName,
}

/// A connector and the mode for tokio-postgres, from `sslmode` and `sslrootcert`.
///
/// # Errors
/// When the mode is unknown, or certificates are needed and not there.
///
/// # Panics
/// Never: ring has what the protocol versions need.
pub fn connector(
    mode: Option<&str>,
    root_certificates: Option<&str>,
) -> Result<(MakeRustlsConnect, SslMode), TlsError> {
    let (check, mode) = checks(mode, root_certificates)?;
    let trusted = match check {
        Check::Nothing => Vec::new(),
        Check::Chain | Check::ChainAndName => match root_certificates {
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
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
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
    use crate::postgres::connect::Target;
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
        for (name, value) in [
            ("ssl", "on"),
            ("listen_addresses", "127.0.0.1"),
            ("port", &port.to_string()),
        ] {
            let setting = (name.to_owned(), value.to_owned());
            options.extra_settings.push(setting);
        }
        let cluster = Cluster::start(options).await.unwrap();
        Some((place, cluster, port))
    }

    const CERTIFICATES: &str = "
        command -v openssl >/dev/null
        exec 2>/dev/null
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=root -keyout ca.key -out ca.pem
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=else -keyout no.key -out no.pem
        openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr
        echo subjectAltName=DNS:localhost >names
        openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
            -extfile names -out server.crt
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
