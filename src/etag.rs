//! The version of a row as a screen holds it, or of a file: an entity tag (RFC 9110 §8.8.3).
//!
//! Promises that the tag of a row is a hash of its JSON text and of nothing else, so that a read, a
//! stream and the test inside an UPDATE agree wherever they select the same columns. Pure; how the
//! database computes the same is the business of `rows/statement`.

use std::fmt::Write;

use ring::digest::{SHA256, digest};

/// Hexadecimal digits of a tag: the first ones of a SHA-256.
pub const DIGITS: usize = 32;

/// The version of what these bytes are, a row's as its JSON text: [`DIGITS`] hexadecimal digits in lower case.
#[must_use]
pub fn of(bytes: impl AsRef<[u8]>) -> String {
    let digest = digest(&SHA256, bytes.as_ref());
    let mut tag = String::with_capacity(DIGITS);
    for byte in &digest.as_ref()[..DIGITS / 2] {
        let _infallible = write!(tag, "{byte:02x}");
    }
    tag
}

/// What `If-Match` or `If-None-Match` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tags {
    /// `*`: any version there is.
    Any,
    /// One of these.
    Listed(Vec<Tag>),
}

/// One entity tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// `W/`: somebody on the way, such as a proxy that compresses, no longer vouches for each byte.
    pub weak: bool,
    /// What stands between the quotes.
    pub opaque: String,
}

/// A header that is neither `*` nor a list of entity tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is neither * nor a list of quoted entity tags")]
pub struct NotTags;

impl Tags {
    /// Reads the value of the header, several lines of it joined by commas.
    ///
    /// # Errors
    /// [`NotTags`].
    pub fn parse(header: &str) -> Result<Self, NotTags> {
        let mut rest = header.trim();
        if rest == "*" {
            return Ok(Self::Any);
        }
        let mut tags = Vec::new();
        loop {
            // A comma may stand inside of a tag, and empty members of a list mean nothing.
            rest = rest.trim_start_matches([' ', '\t', ',']);
            if rest.is_empty() {
                break;
            }
            let (weak, quoted) = match rest.strip_prefix("W/") {
                Some(quoted) => (true, quoted),
                None => (false, rest),
            };
            let inside = quoted.strip_prefix('"').ok_or(NotTags)?;
            let (opaque, after) = inside.split_once('"').ok_or(NotTags)?;
            rest = after.trim_start_matches([' ', '\t']);
            if !rest.is_empty() && !rest.starts_with(',') {
                return Err(NotTags);
            }
            tags.push(Tag {
                weak,
                opaque: opaque.to_owned(),
            });
        }
        if tags.is_empty() {
            return Err(NotTags);
        }
        Ok(Self::Listed(tags))
    }

    /// The tags that may match in the strong comparison of `If-Match`: weak ones never do. `None`
    /// when any version matches.
    #[must_use]
    pub fn strong(&self) -> Option<Vec<String>> {
        let Self::Listed(tags) = self else {
            return None;
        };
        let strong = tags.iter().filter(|tag| !tag.weak);
        Some(strong.map(|tag| tag.opaque.clone()).collect())
    }

    /// The weak comparison of `If-None-Match`: what was read is the same for a reader.
    #[must_use]
    pub fn matches_weakly(&self, version: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(tags) => tags.iter().any(|tag| tag.opaque == version),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_the_beginning_of_the_texts_sha_256() {
        assert_eq!(of(""), "e3b0c44298fc1c149afbf4c8996fb924");
        assert_eq!(of("abc"), "ba7816bf8f01cfea414140de5dae2223");
        assert_ne!(of("{\"id\":7}"), of("{\"id\": 7}"));
    }

    #[test]
    fn a_list_of_tags_is_read_whatever_stands_in_them() {
        let tags = Tags::parse(" \"a\" ,, W/\"b\",\"c,d\"").unwrap();
        assert_eq!(tags.strong().unwrap(), ["a", "c,d"]);
        assert!(tags.matches_weakly("b") && !tags.matches_weakly("d"));
        assert_eq!(Tags::parse(" * "), Ok(Tags::Any));
        assert_eq!(Tags::Any.strong(), None);
        assert!(Tags::Any.matches_weakly("x"));
    }

    #[test]
    fn what_is_no_tag_is_refused() {
        for wrong in [
            "",
            ",",
            "a",
            "\"a",
            "a\"",
            "\"a\"\"b\"",
            "\"a\" b",
            "*, \"a\"",
            "w/\"a\"",
            "W/a",
        ] {
            assert_eq!(Tags::parse(wrong), Err(NotTags), "{wrong}");
        }
    }
}
