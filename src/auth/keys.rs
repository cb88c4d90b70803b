//! Keys, and which signatures each of them may judge.
//!
//! Promises that the algorithms of a key are fixed when it is read: a token's header chooses among
//! keys that are there and never what they mean. An RSA or curve key judges no HMAC, a secret judges
//! nothing else, and weak keys are not taken. It does not know where keys come from.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey};
use ring::{digest, hmac};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::json::{self, Members};

/// Longest key id, in bytes.
pub(super) const KID_LIMIT: usize = 128;
/// Most keys in a set: a token without a key id is held against each of them.
const SET_LIMIT: usize = 32;
/// Shortest secret, in bytes: what HS256 promises is worth no more than its key.
const SECRET_LEAST: usize = 32;
/// Shortest RSA modulus, in bits.
const RSA_LEAST: usize = 2048;
/// Longest RSA modulus, in bits: beyond it one signature costs too much.
const RSA_MOST: usize = 8192;

/// Why a key is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// A shared secret that can be guessed.
    #[error("the secret has {0} bytes, and needs at least 32")]
    ShortSecret(usize),
    /// An RSA key that can be factored.
    #[error("the RSA key has {0} bits, and needs 2048 to 8192")]
    RsaSize(usize),
    /// A kind, curve or algorithm that we do not verify with.
    #[error("the key is of a kind that is not supported")]
    Unsupported,
    /// Made for something else than verifying signatures.
    #[error("the key is not for signatures")]
    OtherUse,
    /// A member is missing or is not what its name says.
    #[error("the key's member \"{0}\" is missing or malformed")]
    Member(&'static str),
    /// Anybody who can read a published set could sign with it.
    #[error("a shared secret has no place in a published key set")]
    PublishedSecret,
    /// Not one JSON object, or one with a member named twice.
    #[error("the key set is not one JSON object with a list of keys")]
    NotASet,
    /// More keys than we look through.
    #[error("the key set has more than 32 keys")]
    TooMany,
}

/// A signature algorithm of RFC 7518 or RFC 8037.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

impl Algorithm {
    /// By its exact name; names are case-sensitive, and `none` is not among them.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "HS256" => Self::Hs256,
            "HS384" => Self::Hs384,
            "HS512" => Self::Hs512,
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }

    fn rsa(self) -> Option<&'static RsaParameters> {
        Some(match self {
            Self::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Self::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
            _ => return None,
        })
    }

    fn hmac(self) -> Option<hmac::Algorithm> {
        Some(match self {
            Self::Hs256 => hmac::HMAC_SHA256,
            Self::Hs384 => hmac::HMAC_SHA384,
            Self::Hs512 => hmac::HMAC_SHA512,
            _ => return None,
        })
    }
}

const HMAC: &[Algorithm] = &[Algorithm::Hs256, Algorithm::Hs384, Algorithm::Hs512];
const RSA: &[Algorithm] = &[
    Algorithm::Rs256,
    Algorithm::Rs384,
    Algorithm::Rs512,
    Algorithm::Ps256,
    Algorithm::Ps384,
    Algorithm::Ps512,
];

/// What a key is made of.
enum Material {
    Secret(Zeroizing<Vec<u8>>),
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Curve(UnparsedPublicKey<Vec<u8>>),
}

impl Material {
    fn print(&self) -> Print {
        Print(match self {
            Self::Secret(secret) => fingerprint(secret),
            Self::Rsa { n, e } => fingerprint(&[n.as_slice(), b".", e].concat()),
            Self::Curve(key) => fingerprint(key.as_ref()),
        })
    }
}

/// One key with the algorithms it may judge.
pub(super) struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    material: Material,
    /// Tells it from others, whatever it is called.
    print: Print,
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Key")
            .field("id", &self.id)
            .field("algorithms", &self.algorithms)
            .finish_non_exhaustive()
    }
}

impl Key {
    /// A shared secret as it stands. It judges the algorithms whose hash is not longer than it is.
    pub(super) fn of_secret(secret: &[u8]) -> Result<Self, KeyError> {
        if secret.len() < SECRET_LEAST {
            return Err(KeyError::ShortSecret(secret.len()));
        }
        let material = Material::Secret(Zeroizing::new(secret.to_vec()));
        Ok(Self {
            print: material.print(),
            id: None,
            algorithms: fitting(secret.len()),
            material,
        })
    }

    /// A JSON Web Key (RFC 7517). Private members are not read.
    fn of_jwk(jwk: &Members, published: bool) -> Result<Self, KeyError> {
        is_for_signatures(jwk)?;
        let id: Option<String> = optional(jwk, "kid")?;
        if id.as_ref().is_some_and(|id| id.len() > KID_LIMIT) {
            return Err(KeyError::Member("kid"));
        }
        let (material, able) = match required::<String>(jwk, "kty")?.as_str() {
            "oct" if published => return Err(KeyError::PublishedSecret),
            "oct" => secret(jwk)?,
            "RSA" => rsa(jwk)?,
            "EC" | "OKP" => curve(jwk)?,
            _ => return Err(KeyError::Unsupported),
        };
        let algorithms = match optional::<String>(jwk, "alg")? {
            None => able,
            Some(name) => Algorithm::named(&name)
                .filter(|named| able.contains(named))
                .map(|named| vec![named])
                .ok_or(KeyError::Unsupported)?,
        };
        Ok(Self {
            print: material.print(),
            id,
            algorithms,
            material,
        })
    }

    fn judges(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }

    /// Whether `signature` over `message` is this key's by an algorithm that it may judge.
    fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        if !self.judges(algorithm) {
            return false;
        }
        match &self.material {
            Material::Secret(secret) => algorithm.hmac().is_some_and(|algorithm| {
                let key = hmac::Key::new(algorithm, secret);
                hmac::verify(&key, message, signature).is_ok()
            }),
            Material::Rsa { n, e } => algorithm.rsa().is_some_and(|parameters| {
                RsaPublicKeyComponents { n, e }
                    .verify(parameters, message, signature)
                    .is_ok()
            }),
            Material::Curve(key) => key.verify(message, signature).is_ok(),
        }
    }
}

/// The HMAC algorithms for a secret of so many bytes (RFC 7518 §3.2).
fn fitting(length: usize) -> Vec<Algorithm> {
    HMAC.iter()
        .copied()
        .filter(|algorithm| {
            algorithm
                .hmac()
                .is_some_and(|hmac| hmac.digest_algorithm().output_len() <= length)
        })
        .collect()
}

fn is_for_signatures(jwk: &Members) -> Result<(), KeyError> {
    let usage: Option<String> = optional(jwk, "use")?;
    let operations: Option<Vec<String>> = optional(jwk, "key_ops")?;
    // A signer may use its own set as our key, so `sign` counts as well.
    let operates = operations.is_none_or(|operations| {
        operations
            .iter()
            .any(|operation| matches!(operation.as_str(), "verify" | "sign"))
    });
    if usage.is_some_and(|usage| usage != "sig") || !operates {
        return Err(KeyError::OtherUse);
    }
    Ok(())
}

fn secret(jwk: &Members) -> Result<(Material, Vec<Algorithm>), KeyError> {
    let secret = Zeroizing::new(bytes(jwk, "k")?);
    if secret.len() < SECRET_LEAST {
        return Err(KeyError::ShortSecret(secret.len()));
    }
    let able = fitting(secret.len());
    Ok((Material::Secret(secret), able))
}

fn rsa(jwk: &Members) -> Result<(Material, Vec<Algorithm>), KeyError> {
    let (n, e) = (number(jwk, "n")?, number(jwk, "e")?);
    let bits = n.len() * 8 - n[0].leading_zeros() as usize;
    if !(RSA_LEAST..=RSA_MOST).contains(&bits) {
        return Err(KeyError::RsaSize(bits));
    }
    Ok((Material::Rsa { n, e }, RSA.to_vec()))
}

fn curve(jwk: &Members) -> Result<(Material, Vec<Algorithm>), KeyError> {
    let kind: String = required(jwk, "kty")?;
    let curve: String = required(jwk, "crv")?;
    let x = bytes(jwk, "x")?;
    let (algorithm, width, verifier): (_, _, &'static dyn signature::VerificationAlgorithm) =
        match (kind.as_str(), curve.as_str()) {
            ("EC", "P-256") => (Algorithm::Es256, 32, &signature::ECDSA_P256_SHA256_FIXED),
            ("EC", "P-384") => (Algorithm::Es384, 48, &signature::ECDSA_P384_SHA384_FIXED),
            ("OKP", "Ed25519") => (Algorithm::EdDsa, 32, &signature::ED25519),
            _ => return Err(KeyError::Unsupported),
        };
    if x.len() != width {
        return Err(KeyError::Member("x"));
    }
    let point = if kind == "EC" {
        let y = bytes(jwk, "y")?;
        if y.len() != width {
            return Err(KeyError::Member("y"));
        }
        [&[UNCOMPRESSED][..], &x, &y].concat()
    } else {
        x
    };
    let key = UnparsedPublicKey::new(verifier, point);
    Ok((Material::Curve(key), vec![algorithm]))
}

/// First byte of a point that is written as both its coordinates (SEC 1, §2.3.3).
const UNCOMPRESSED: u8 = 4;

fn optional<'a, T>(jwk: &'a Members, name: &'static str) -> Result<Option<T>, KeyError>
where
    T: serde::Deserialize<'a>,
{
    jwk.get(name)
        .map(|value| json::typed(value).ok_or(KeyError::Member(name)))
        .transpose()
}

fn required<'a, T>(jwk: &'a Members, name: &'static str) -> Result<T, KeyError>
where
    T: serde::Deserialize<'a>,
{
    optional(jwk, name)?.ok_or(KeyError::Member(name))
}

fn bytes(jwk: &Members, name: &'static str) -> Result<Vec<u8>, KeyError> {
    let text: Zeroizing<String> = Zeroizing::new(required(jwk, name)?);
    URL_SAFE_NO_PAD
        .decode(text.as_bytes())
        .ok()
        .filter(|bytes| !bytes.is_empty())
        .ok_or(KeyError::Member(name))
}

/// A big-endian number without the zeros that some issuers put in front of it.
fn number(jwk: &Members, name: &'static str) -> Result<Vec<u8>, KeyError> {
    let bytes = bytes(jwk, name)?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    if zeros == bytes.len() {
        return Err(KeyError::Member(name));
    }
    Ok(bytes[zeros..].to_vec())
}

/// SHA-256 of what a key is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Print(pub(super) [u8; 32]);

/// What a set says to a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The key's of this print.
    Genuine(Print),
    /// No key in the set has the token's key id.
    UnknownKey,
    /// There is such a key, and it may not judge this algorithm.
    OtherAlgorithm,
    /// None of the keys that could has made it.
    Forged,
}

/// The keys of one issuer.
#[derive(Debug, Default)]
pub(super) struct KeySet {
    keys: Vec<Key>,
}

impl KeySet {
    /// One key.
    pub(super) fn one(key: Key) -> Self {
        Self { keys: vec![key] }
    }

    /// Reads a JWK or a JWKS that the operator wrote. A key that is not taken is an error.
    pub(super) fn written(text: &str) -> Result<Self, KeyError> {
        let members = json::object(text.as_bytes()).ok_or(KeyError::NotASet)?;
        let keys = if members.contains_key("keys") {
            each(&members)?
                .iter()
                .map(|jwk| Key::of_jwk(jwk, false))
                .collect::<Result<_, _>>()?
        } else {
            vec![Key::of_jwk(&members, false)?]
        };
        Ok(Self { keys })
    }

    /// Reads a JWKS that an issuer wrote. Keys that are not taken are left out (RFC 7517 §5): an
    /// issuer has keys for other purposes and other readers too. An empty set is a set: it says that
    /// no key is valid any more. `published` is for what anybody can read.
    pub(super) fn issued(bytes: &[u8], published: bool) -> Result<Self, KeyError> {
        let members = json::object(bytes).ok_or(KeyError::NotASet)?;
        let keys = each(&members)?
            .iter()
            .filter_map(|jwk| {
                Key::of_jwk(jwk, published)
                    .inspect_err(|reason| tracing::warn!(%reason, "a key of the set is left out"))
                    .ok()
            })
            .collect();
        Ok(Self { keys })
    }

    /// Judges a signature. A key id picks keys by equality; a set in which no key has one is asked
    /// as a whole, and so is any set by a token that names none. A key without an id that is for another
    /// algorithm is not the one that a token names.
    pub(super) fn judge(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Verdict {
        let named = kid.filter(|_| self.keys.iter().any(|key| key.id.is_some()));
        let mut verdict = Verdict::UnknownKey;
        for key in &self.keys {
            if named.is_some() && key.id.as_deref() != named {
                continue;
            }
            if key.verifies(algorithm, message, signature) {
                return Verdict::Genuine(key.print);
            }
            if key.judges(algorithm) {
                verdict = Verdict::Forged;
            } else if verdict == Verdict::UnknownKey && (kid.is_none() || kid == key.id.as_deref())
            {
                verdict = Verdict::OtherAlgorithm;
            }
        }
        verdict
    }

    /// Whether there is a key of this print.
    pub(super) fn has(&self, print: &Print) -> bool {
        self.keys.iter().any(|key| key.print == *print)
    }

    /// Signs with the first shared secret, by HS256; the key's id comes along. `None` without one.
    pub(super) fn signer(&self) -> Option<Signer<'_>> {
        self.keys.iter().find_map(|key| match &key.material {
            Material::Secret(secret) if key.judges(Algorithm::Hs256) => Some(Signer {
                id: key.id.as_deref(),
                key: hmac::Key::new(hmac::HMAC_SHA256, secret),
            }),
            _ => None,
        })
    }
}

/// A key that can sign.
pub(super) struct Signer<'a> {
    pub(super) id: Option<&'a str>,
    key: hmac::Key,
}

impl Signer<'_> {
    /// The signature over `message`.
    pub(super) fn sign(&self, message: &[u8]) -> impl AsRef<[u8]> + use<> {
        hmac::sign(&self.key, message)
    }
}

/// The members of each key in a set.
fn each(set: &Members) -> Result<Vec<Members>, KeyError> {
    let keys: Vec<&RawValue> = set
        .get("keys")
        .and_then(|keys| json::typed(keys))
        .ok_or(KeyError::NotASet)?;
    if keys.len() > SET_LIMIT {
        return Err(KeyError::TooMany);
    }
    keys.into_iter()
        .map(|key| json::object(key.get().as_bytes()).ok_or(KeyError::NotASet))
        .collect()
}

/// SHA-256, for looking things up without keeping them.
pub(super) fn fingerprint(bytes: &[u8]) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, bytes);
    digest
        .as_ref()
        .try_into()
        .expect("a SHA-256 digest has 32 bytes")
}
