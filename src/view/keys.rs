//! Keys as screens get to know them.
//!
//! A view under row-level security must say which row went without saying so to anybody who was
//! never shown it: there a key is an HMAC under a secret of the database and the identity that
//! watches, so it tells the row only to who has it already. Every relay makes the same one. Pure.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;

/// Bytes of an HMAC that are kept: nobody finds two rows with the same.
const KEPT: usize = 16;

/// How a view writes keys.
#[derive(Debug, Clone)]
pub enum Keys {
    /// As they are.
    Plain,
    /// As an HMAC of them, in base64url.
    Hashed(Hasher),
}

/// Writes keys for one identity and one table.
#[derive(Clone)]
pub struct Hasher(hmac::Key);

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hasher")
    }
}

impl Hasher {
    /// A hasher under the database's `secret` for those who share `parts`: identity and table.
    #[must_use]
    pub fn new<'a>(secret: &[u8], parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret));
        for part in parts {
            // With its length in front, so that no two lists of parts are alike.
            context.update(&part.len().to_be_bytes());
            context.update(part.as_bytes());
        }
        Self(hmac::Key::new(hmac::HMAC_SHA256, context.sign().as_ref()))
    }
}

impl Keys {
    /// The key as the view writes it.
    #[must_use]
    pub fn write(&self, key: &Arc<str>) -> Arc<str> {
        match self {
            Self::Plain => Arc::clone(key),
            Self::Hashed(Hasher(secret)) => {
                let tag = hmac::sign(secret, key.as_bytes());
                URL_SAFE_NO_PAD.encode(&tag.as_ref()[..KEPT]).into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_same_for_one_identity_and_another_for_the_next() {
        let hashed = |secret: &[u8], parts: &[&str], key: &str| {
            let hasher = Hasher::new(secret, parts.iter().copied());
            Keys::Hashed(hasher).write(&key.into())
        };
        let one = hashed(b"secret", &["ann", "tasks"], "7");
        assert_eq!(one, hashed(b"secret", &["ann", "tasks"], "7"));
        for other in [
            hashed(b"secret", &["ann", "tasks"], "8"),
            hashed(b"secret", &["bob", "tasks"], "7"),
            hashed(b"secret", &["annt", "asks"], "7"),
            hashed(b"other", &["ann", "tasks"], "7"),
        ] {
            assert_ne!(one, other);
        }
        assert_eq!(one.len(), 22);
        assert_eq!(&*Keys::Plain.write(&"7".into()), "7");
    }
}
