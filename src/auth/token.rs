//! A compact JSON Web Token, taken apart and put together.
//!
//! Pure. Reading promises that what it lets through has one spelling only, is small, names an
//! algorithm that we know and asks for no extension; keys that a token brings along or points to
//! are not looked at. It does not know keys or claims.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use super::json::{self, Members};
use super::keys::{Algorithm, KID_LIMIT, KeyError, KeySet};
use super::secret::Secret;

/// Longest token, in bytes.
pub const LIMIT: usize = 8 * 1024;

/// Why a token is not accepted. No message repeats anything of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// There is no key to hold it against.
    #[error("no key is configured that could verify a token")]
    NoKeys,
    /// The keys could not be had, and there are none from earlier.
    #[error("the keys that verify tokens cannot be fetched")]
    KeysAway,
    /// Longer than [`LIMIT`].
    #[error("the token exceeds 8192 bytes")]
    TooLong,
    /// Not three parts in base64url with JSON objects in the first two.
    #[error("the token is not a well-formed JSON Web Token")]
    Malformed,
    /// The header names no algorithm that we verify.
    #[error("the token's algorithm is not supported")]
    Algorithm,
    /// The header demands an extension.
    #[error("the token demands an extension that is not supported")]
    Critical,
    /// The header's key id is no text of up to 128 bytes.
    #[error("the token's key id is malformed")]
    KeyId,
    /// No key has the header's key id.
    #[error("the token's key is not known")]
    UnknownKey,
    /// The key is known and is for another algorithm.
    #[error("the token's algorithm is not its key's")]
    OtherAlgorithm,
    /// The signature is nobody's whom we trust.
    #[error("the token's signature is wrong")]
    Signature,
    /// There is no `exp`.
    #[error("the token has no time of expiry")]
    NoExpiry,
    /// A time is no number of seconds.
    #[error("the token's claim \"{0}\" is not a time in seconds")]
    NotATime(&'static str),
    /// `exp` is over.
    #[error("the token has expired")]
    Expired,
    /// `nbf` or `iat` is to come.
    #[error("the token is not valid yet")]
    NotYet,
    /// `aud` names others, or nobody though somebody is configured.
    #[error("the token is not for this audience")]
    Audience,
    /// `iss` is somebody else, or nobody though somebody is configured.
    #[error("the token is of another issuer")]
    Issuer,
    /// A claim that we read has the wrong type.
    #[error("the token's claim \"{0}\" is of the wrong type")]
    Type(&'static str),
    /// The role is empty or no text.
    #[error("the token's role is not a name")]
    Role,
    /// The token names no role, and there is none for those who do not.
    #[error("the token names no role")]
    NoRole,
    /// The role may not be taken here.
    #[error("the token's role is not allowed")]
    RoleRefused,
}

/// A token in its parts; the signature has not been judged.
pub(super) struct Parts<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<String>,
    /// What was signed: header, dot and payload as they came.
    pub(super) message: &'a str,
    pub(super) signature: Vec<u8>,
    payload: Vec<u8>,
}

impl<'a> Parts<'a> {
    /// Takes a token apart.
    pub(super) fn of(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > LIMIT {
            return Err(TokenError::TooLong);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(TokenError::Malformed)?;
        // A fourth dot would be in the payload, where the alphabet has none.
        let [header, payload, signature] = [header, payload, signature].map(decoded);
        let header = json::object(&header?).ok_or(TokenError::Malformed)?;
        let algorithm = algorithm(&header)?;
        refuse_extensions(&header)?;
        Ok(Self {
            algorithm,
            kid: kid(&header)?,
            message,
            signature: signature?,
            payload: payload?,
        })
    }

    /// The claims. Only for who has judged the signature.
    pub(super) fn claims(&self) -> Result<Members, TokenError> {
        json::object(&self.payload).ok_or(TokenError::Malformed)
    }
}

/// The engine takes neither padding nor a second spelling of the last bits.
fn decoded(part: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD
        .decode(part)
        .ok()
        .filter(|bytes| !bytes.is_empty())
        .ok_or(TokenError::Malformed)
}

fn algorithm(header: &Members) -> Result<Algorithm, TokenError> {
    header
        .get("alg")
        .and_then(|name| json::typed::<String>(name))
        .and_then(|name| Algorithm::named(&name))
        .ok_or(TokenError::Algorithm)
}

/// `crit` lists what a reader must understand (RFC 7515 §4.1.11), and we understand no extension.
/// `b64` would change what was signed (RFC 7797), and is refused also where `crit` forgets it.
fn refuse_extensions(header: &Members) -> Result<(), TokenError> {
    let plain = header
        .get("b64")
        .is_none_or(|plain| json::typed::<bool>(plain) == Some(true));
    if header.contains_key("crit") || !plain {
        return Err(TokenError::Critical);
    }
    Ok(())
}

fn kid(header: &Members) -> Result<Option<String>, TokenError> {
    header
        .get("kid")
        .map(|kid| {
            json::typed::<String>(kid)
                .filter(|kid| kid.len() <= KID_LIMIT)
                .ok_or(TokenError::KeyId)
        })
        .transpose()
}

/// Why no token can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignError {
    /// The configured secret is not one.
    #[error("the secret cannot be used")]
    Secret(#[source] KeyError),
    /// Only public keys are configured.
    #[error("there is no shared secret to sign with")]
    NoSecret,
    /// The claims are not one JSON object, or name a member twice.
    #[error("the claims are not one JSON object")]
    Claims,
}

/// Makes a token with HS256. `secret` is a text of at least 32 bytes, or a JWK or JWKS with a shared
/// secret in it; `claims` is one JSON object and goes in as it stands, `exp` included or not.
///
/// # Errors
/// [`SignError`] tells what is wrong with the secret or the claims.
pub fn sign(secret: &Secret, claims: &str) -> Result<String, SignError> {
    json::object(claims.as_bytes()).ok_or(SignError::Claims)?;
    let keys = super::configured(secret).map_err(SignError::Secret)?;
    sign_with(&keys, claims)
}

fn sign_with(keys: &KeySet, claims: &str) -> Result<String, SignError> {
    let signer = keys.signer().ok_or(SignError::NoSecret)?;
    let header = match signer.id {
        None => json!({ "alg": "HS256", "typ": "JWT" }),
        Some(id) => json!({ "alg": "HS256", "typ": "JWT", "kid": id }),
    };
    let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(claims, &mut token);
    let signature = signer.sign(token.as_bytes());
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    Ok(token)
}
