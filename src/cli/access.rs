//! From the settings about tokens to what judges them.

use super::Told;
use crate::auth::{Authenticator, KeyError, Secret, Settings, SettingsError};
use crate::causes::Causes;
use crate::config::Access;

/// The settings as `auth` takes them.
pub(super) fn settings(access: &Access) -> Settings {
    let secret = access.jwt_secret.as_ref();
    Settings {
        secret: secret.map(|secret| Secret::new(secret.reveal())),
        jwks_file: access.jwks_file.clone(),
        jwks_url: access.jwks_url.clone(),
        audience: access.jwt_audience.clone(),
        issuer: access.jwt_issuer.clone(),
        role_claim: Some(access.jwt_role_claim.clone()),
        anon_role: access.anon_role.clone(),
        roles: (!access.roles.is_empty()).then(|| access.roles.clone()),
        cookie: Some(access.cookie.clone()),
    }
}

/// Whether tokens are looked at.
pub(super) fn takes_tokens(access: &Access) -> bool {
    access.jwt_secret.is_some() || access.jwks_file.is_some() || access.jwks_url.is_some()
}

/// Whether everybody is the API's login: nothing says who may bring a token, or who comes without.
pub(super) fn is_open(access: &Access) -> bool {
    access.anon_role.is_none() && !takes_tokens(access)
}

/// What judges tokens by these settings.
pub(super) fn authenticator(access: &Access) -> Result<Authenticator, Told> {
    Authenticator::new(settings(access))
        .map_err(|error| Told::new(&error, found(&error), advice(&error)))
}

/// The causes below the error itself.
fn found(error: &SettingsError) -> String {
    match std::error::Error::source(error) {
        Some(source) => Causes(source).to_string(),
        None => "the name alone forbids it".to_owned(),
    }
}

fn advice(error: &SettingsError) -> &'static str {
    match error {
        SettingsError::Secret(KeyError::ShortSecret(_)) => {
            "--jwt-secret \"$(openssl rand -base64 48)\""
        }
        SettingsError::Secret(_) => "--jwt-secret with 32 bytes of text or more, a JWK, or a JWKS",
        SettingsError::File { .. } => "--jwks-file with a file like {\"keys\":[...]}",
        SettingsError::Url(_) => "--jwks-url https://issuer.example/.well-known/jwks.json",
        SettingsError::RoleClaim(_) => "--jwt-role-claim .role",
        SettingsError::Role(_) => "--anon-role web_anon, --roles web_user,web_admin",
        SettingsError::Cookie(_) => "--cookie __Host-rowcast",
    }
}
