//! Who asks: token and clock in, identity out.
//!
//! [`Authenticator`] is made once from [`Settings`] and promises that an [`Identity`] which says
//! `verified` comes from a token whose signature, times, audience, issuer and role have all been
//! judged by rules that the token has no say in. Everything is pure but for key sets, which are read
//! from a file or a URL (`jwks`). It does not know requests, the database, or what a role may do:
//! that is Postgres's to say. No token, ticket or secret is ever in an error or in `Debug`.

mod claims;
mod json;
mod jwks;
mod keys;
mod secret;
pub mod sessions;
pub mod tickets;
pub mod token;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use claims::{NotAPath, RolePath};
pub use jwks::SourceError;
pub use keys::{KeyError, Print};
pub use secret::Secret;
pub use token::TokenError;

use crate::mutants::{Mutant, on};
use crate::shutdown::Shutdown;
use claims::Rules;
use json::Members;
use jwks::{Source, Want};
use keys::{Key, KeySet, Verdict};
use sessions::Sessions;
use tickets::Tickets;
use token::Parts;

/// Who asks, as the database is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The role to take. `None`: nothing is configured, and the relay's own login answers.
    pub role: Option<String>,
    /// All claims as one JSON object on one line unless the token brought breaks, with `role`
    /// filled in.
    pub claims: Arc<str>,
    /// When the token ends (`exp`), and with it everything that was opened by it.
    pub expires: Option<SystemTime>,
    /// A valid token was sent.
    pub verified: bool,
    /// The key that signed it.
    pub signed_by: Option<Print>,
}

/// How often it is looked whether the keys are there that signed the tokens of what is open: with what a set takes
/// to become old and to be read, a removed one is dead within a minute.
const LOOK: Duration = Duration::from_secs(5);

/// Claims that change with every token of the same person.
const FLEETING: [&str; 4] = ["exp", "iat", "nbf", "jti"];

impl Identity {
    /// What streams are grouped by: the claims without `exp`, `iat`, `nbf` and `jti`, names in
    /// order. Two tokens of one person give the same text.
    #[must_use]
    pub fn context_claims(&self) -> String {
        let mut members = json::object(self.claims.as_bytes()).unwrap_or_default();
        members.retain(|name, _| !FLEETING.contains(&name.as_str()));
        json::write(&members)
    }

    fn without_token(role: Option<&str>) -> Self {
        let mut members = Members::new();
        if let Some(role) = role {
            members.insert("role".to_owned(), json::text(role));
        }
        Self {
            role: role.map(str::to_owned),
            claims: json::write(&members).into(),
            expires: None,
            verified: false,
            signed_by: None,
        }
    }
}

/// How identities are judged. Plain data; [`Authenticator::new`] validates it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// A shared secret of at least 32 bytes, a JWK, or a JWKS.
    pub secret: Option<Secret>,
    /// A file with a JWKS, read again when it changes.
    pub jwks_file: Option<PathBuf>,
    /// Where a JWKS is fetched: `https`, or `http` on this machine.
    pub jwks_url: Option<String>,
    /// What `aud` must name.
    pub audience: Option<String>,
    /// What `iss` must be.
    pub issuer: Option<String>,
    /// Where the role is in the claims; `.role` unless told otherwise.
    pub role_claim: Option<String>,
    /// The role of those who send no token, or a token without a role.
    pub anon_role: Option<String>,
    /// The roles that tokens may name; without a list, any that Postgres grants us.
    pub roles: Option<Vec<String>>,
    /// The cookie that may carry a token; [`COOKIE`] unless told otherwise.
    pub cookie: Option<String>,
}

/// The cookie that carries a token. Browsers take `__Host-` only with `Secure`, for the whole host
/// and from nobody else.
pub const COOKIE: &str = "__Host-rowcast";

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The secret, or a key in it.
    #[error("the JWT secret cannot be used")]
    Secret(#[source] KeyError),
    /// The file.
    #[error("the key set file {path} cannot be used")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SourceError,
    },
    /// The URL.
    #[error("the key set URL cannot be used")]
    Url(#[source] SourceError),
    /// The path to the role.
    #[error("the role claim cannot be used")]
    RoleClaim(#[source] NotAPath),
    /// A role that may never be taken, in the list or for anonymous users.
    #[error("the role {0:?} can never be taken")]
    Role(String),
    /// The cookie's name.
    #[error("{0:?} is not a name for a cookie")]
    Cookie(String),
}

/// Judges tokens and keeps tickets.
#[derive(Debug)]
pub struct Authenticator {
    configured: Option<KeySet>,
    sources: Vec<Source>,
    rules: Rules,
    anon_role: Option<String>,
    roles: Option<Vec<String>>,
    cookie: String,
    /// Tickets that wait to be used.
    pub tickets: Tickets,
    /// How long streams stay open.
    pub sessions: Sessions,
}

impl Authenticator {
    /// Validates the settings and reads the key file, if there is one. A URL is not asked yet.
    ///
    /// # Errors
    /// The first setting that cannot be used.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        let configured = settings.secret.as_ref().map(configured).transpose();
        let configured = configured.map_err(SettingsError::Secret)?;
        let mut sources = Vec::new();
        if let Some(path) = settings.jwks_file {
            let source = Source::file(path.clone())
                .map_err(|source| SettingsError::File { path, source })?;
            sources.push(source);
        }
        if let Some(url) = &settings.jwks_url {
            sources.push(Source::url(url).map_err(SettingsError::Url)?);
        }
        let named = settings.roles.iter().flatten().chain(&settings.anon_role);
        if let Some(never) = named.into_iter().find(|role| !is_takeable(role)) {
            return Err(SettingsError::Role(never.clone()));
        }
        let role = settings.role_claim.as_deref().map(str::parse).transpose();
        let cookie = settings.cookie.unwrap_or_else(|| COOKIE.to_owned());
        if !is_cookie_name(&cookie) {
            return Err(SettingsError::Cookie(cookie));
        }
        Ok(Self {
            configured,
            sources,
            rules: Rules {
                audience: settings.audience,
                issuer: settings.issuer,
                role: role.map_err(SettingsError::RoleClaim)?.unwrap_or_default(),
            },
            anon_role: settings.anon_role,
            roles: settings.roles,
            cookie,
            tickets: Tickets::default(),
            sessions: Sessions::default(),
        })
    }

    /// Whether there is anything to hold a token against.
    #[must_use]
    pub fn has_keys(&self) -> bool {
        self.configured.is_some() || !self.sources.is_empty()
    }

    /// The name of the cookie that may carry a token.
    #[must_use]
    pub fn cookie(&self) -> &str {
        &self.cookie
    }

    /// Who asks without a token. `None` when there must be one. With neither keys nor an anonymous
    /// role everybody is the relay's own login: that is the open mode of a first try.
    #[must_use]
    pub fn anonymous(&self) -> Option<Identity> {
        let open = !self.has_keys();
        (open || self.anon_role.is_some())
            .then(|| Identity::without_token(self.anon_role.as_deref()))
    }

    /// Whether a token may name this role. Never any that Postgres reads as something else or that
    /// comes with rights over the server: empty, `none`, `pg_*`, and names longer than 63 bytes.
    #[must_use]
    pub fn permits(&self, role: &str) -> bool {
        let listed = self.roles.as_ref().is_none_or(|roles| {
            roles.iter().any(|one| one == role) || self.anon_role.as_deref() == Some(role)
        });
        listed && is_takeable(role)
    }

    /// Judges a token. Reads key sets again where they are old or do not have the token's key.
    ///
    /// # Errors
    /// [`TokenError`] tells what the token fails at; the signature is judged before any claim.
    pub async fn verify(&self, token: &str, now: SystemTime) -> Result<Identity, TokenError> {
        if !self.has_keys() {
            return Err(TokenError::NoKeys);
        }
        let parts = Parts::of(token)?;
        let key = self.judge(&parts).await?;
        let mut claims = parts.claims()?;
        let expires = self.rules.check(&claims, now)?;
        let role = match self.rules.role.find(&claims)? {
            Some(role) => role,
            None => self.anon_role.clone().ok_or(TokenError::NoRole)?,
        };
        if !self.permits(&role) {
            return Err(TokenError::RoleRefused);
        }
        claims.insert("role".to_owned(), json::text(&role));
        Ok(Identity {
            role: Some(role),
            claims: json::write(&claims).into(),
            expires: Some(expires),
            verified: true,
            signed_by: Some(key),
        })
    }

    /// Ends what tokens have opened whose key is there no more.
    async fn look(&self) {
        // Keys of the settings are there as long as we are.
        if !self.sessions.tidy() || self.sources.is_empty() {
            return;
        }
        for source in &self.sources {
            // For the reading of a set that is old. What serves then is asked below: no answer here is a set that is
            // away, of which nobody can tell what is in it.
            let _read = source.keys(Want::Current).await;
        }
        self.sessions.keep_signed_by(|print| {
            self.configured.as_ref().is_some_and(|keys| keys.has(print))
                || self.sources.iter().any(|source| source.may_have(print))
        });
    }

    /// Which of our keys has signed the token.
    async fn judge(&self, parts: &Parts<'_>) -> Result<Print, TokenError> {
        let ask = |keys: &KeySet| {
            let message = parts.message.as_bytes();
            keys.judge(
                parts.kid.as_deref(),
                parts.algorithm,
                message,
                &parts.signature,
            )
        };
        let mut verdicts: Vec<Verdict> = self.configured.iter().map(ask).collect();
        let mut away = false;
        for source in &self.sources {
            if genuine(&verdicts).is_some() {
                break;
            }
            let Some(keys) = source.keys(Want::Current).await else {
                away = true;
                continue;
            };
            let mut verdict = ask(&keys);
            if verdict == Verdict::UnknownKey
                && let Some(newer) = source.keys(Want::Newer).await
                && !Arc::ptr_eq(&newer, &keys)
            {
                verdict = ask(&newer);
            }
            verdicts.push(verdict);
        }
        // What says most about the token is told.
        let found = |verdict| verdicts.contains(&verdict);
        if let Some(key) = genuine(&verdicts) {
            Ok(key)
        } else if away {
            Err(TokenError::KeysAway)
        } else if found(Verdict::Forged) {
            Err(TokenError::Signature)
        } else if found(Verdict::OtherAlgorithm) {
            Err(TokenError::OtherAlgorithm)
        } else {
            Err(TokenError::UnknownKey)
        }
    }
}

/// Until the stop signal: looks after what tokens have opened, and ends in time that of keys which their issuer has
/// removed.
pub async fn keep_looking(auth: Arc<Authenticator>, shutdown: Shutdown) {
    let looking = async {
        loop {
            tokio::time::sleep(LOOK).await;
            auth.look().await;
        }
    };
    tokio::select! {
        () = async { shutdown.begun().await; } => {}
        () = looking => {}
    }
}

fn genuine(verdicts: &[Verdict]) -> Option<Print> {
    verdicts.iter().find_map(|verdict| match verdict {
        Verdict::Genuine(key) => Some(*key),
        _ => None,
    })
}

/// Reads the secret of the settings: JSON when it begins like it, otherwise as it stands.
fn configured(secret: &Secret) -> Result<KeySet, KeyError> {
    let text = secret.reveal();
    if text.trim_start().starts_with('{') {
        KeySet::written(text)
    } else {
        Key::of_secret(text.as_bytes()).map(KeySet::one)
    }
}

/// Names are cut at 63 bytes by Postgres and may mean another role then; `none` leaves the role.
fn is_takeable(role: &str) -> bool {
    let lower = role.to_ascii_lowercase();
    !role.is_empty()
        && role.len() <= 63
        && (lower != "none" || on(Mutant::M11))
        && !lower.starts_with("pg_")
        && !role.contains('\0')
}

fn is_cookie_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    mod hostile;
}
