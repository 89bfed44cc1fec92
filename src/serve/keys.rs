//! Who may ask, and who may change an index: API keys, compared in constant time.

use std::path::Path;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::error::{Error, Result};

/// Fewest characters of a key: shorter ones are guessed.
const SHORTEST: usize = 16;

/// What stands behind a key that may not change anything.
const READ_ONLY: &str = "read-only";

/// The keys that are good.
#[derive(Clone, Default)]
pub struct Keys(Vec<Key>);

#[derive(Clone)]
struct Key {
    /// As a hash: neither its text nor its length can be told from how long a comparison takes.
    hash: [u8; 32],
    writes: bool,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

impl Keys {
    /// Keys from lines of text: a key, and perhaps `read-only` behind it. Empty ones and those that begin with `#` are left out.
    /// `from` is what messages call it.
    ///
    /// # Errors
    /// [`Error::BadFile`] naming the line of a key that is too short or cannot stand in a header, or that has other words behind it.
    pub fn parse(text: &str, from: &Path) -> Result<Self> {
        let lines = text.lines().map(str::trim).enumerate().filter(|(_, l)| !l.is_empty() && !l.starts_with('#'));
        let mut keys = Vec::new();
        for (number, line) in lines {
            // No `BadLine`: its hint would be to allow some, and a server has no such option.
            let bad =
                |problem: String| Error::bad_file(from, format!("line {}: {problem}", number + 1), "mend the line");
            let (key, behind) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            if key.len() < SHORTEST {
                return Err(bad(format!("a key has at least {SHORTEST} characters")));
            }
            if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(bad("a key has letters, digits and signs of ASCII only, as a header has".to_owned()));
            }
            let writes = match behind.trim() {
                "" => true,
                READ_ONLY => false,
                _ => return Err(bad(format!("behind a key there may stand {READ_ONLY}, and nothing else"))),
            };
            keys.push(Key { hash: Sha256::digest(key.as_bytes()).into(), writes });
        }
        Ok(Self(keys))
    }

    /// Whether there are none, and everybody may ask.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These and others.
    pub fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    /// Whether a request with these headers may pass: it has a good key as bearer token, or no key is needed.
    pub fn admit(&self, headers: &HeaderMap) -> bool {
        self.fits(headers, |_| true)
    }

    /// The same for a request that changes something.
    pub fn may_write(&self, headers: &HeaderMap) -> bool {
        self.fits(headers, |key| key.writes)
    }

    fn fits(&self, headers: &HeaderMap, counts: impl Fn(&Key) -> bool) -> bool {
        if self.is_empty() {
            return true;
        }
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some((scheme, token)) = given.and_then(|value| value.split_once(' ')) else { return false };
        if !scheme.eq_ignore_ascii_case("bearer") {
            return false;
        }
        let hash: [u8; 32] = Sha256::digest(token.trim().as_bytes()).into();
        // All are compared, whichever fits.
        let fits =
            self.0.iter().fold(0, |fits, key| fits | (key.hash.ct_eq(&hash).unwrap_u8() & u8::from(counts(key))));
        fits == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, value.parse().unwrap());
        headers
    }

    #[test]
    fn a_good_key_passes_and_nothing_else() {
        let keys = Keys::parse("# ours\n\nsixteen-letters!\nanother-good-key-of-ours\n", Path::new("k")).unwrap();
        for (value, good) in [
            ("Bearer sixteen-letters!", true),
            ("bearer another-good-key-of-ours", true),
            ("Bearer sixteen-letters", false),
            ("Basic sixteen-letters!", false),
            ("Bearer # ours", false),
        ] {
            assert_eq!(keys.admit(&headers(value)), good, "{value}");
        }
        assert!(!keys.admit(&HeaderMap::new()));
        assert!(Keys::default().admit(&HeaderMap::new()));
        assert_eq!(format!("{keys:?}"), "2 keys");
    }

    #[test]
    fn a_key_may_be_for_reading_only() {
        let keys = Keys::parse("sixteen-letters!  read-only\nanother-good-key-of-ours\n", Path::new("k")).unwrap();
        let (reads, writes) = (headers("Bearer sixteen-letters!"), headers("Bearer another-good-key-of-ours"));
        assert!(keys.admit(&reads) && !keys.may_write(&reads));
        assert!(keys.admit(&writes) && keys.may_write(&writes));
        assert!(!keys.may_write(&HeaderMap::new()) && Keys::default().may_write(&HeaderMap::new()));
        let error = Keys::parse("sixteen-letters! readonly\n", Path::new("k")).unwrap_err().to_string();
        assert!(error.starts_with("k: line 1: behind a key there may stand read-only"), "{error}");
    }

    #[test]
    fn a_short_key_is_refused_by_its_line() {
        let error = Keys::parse("sixteen-letters!\nshort\n", Path::new("keys.txt")).unwrap_err();
        assert_eq!(error.to_string(), "keys.txt: line 2: a key has at least 16 characters");
        // No header could hold it.
        let error = Keys::parse("schlüssel-für-den-server", Path::new("keys.txt")).unwrap_err().to_string();
        assert!(error.starts_with("keys.txt: line 1: a key has letters, digits and signs of ASCII only"), "{error}");
    }
}
