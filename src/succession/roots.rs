//! Root keys: keys that are kept away from every server, and whose word counts when a cache's key may be in other hands.
//!
//! A set is followed by another only with the word of enough keys of both (The Update Framework, 5.3).

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64;
use sha2::{Digest as _, Sha256};

use super::lines::{ReadError, Reader, Writer, word};
use super::statement::CacheRef;
use crate::nix::signature::PublicKey;

/// First line of the text.
pub const FORMAT: &str = "narvault/key-roots/v1";

/// Most root keys of a set: as many people as can be asked.
pub const ROOT_KEYS_MAX: usize = 15;

/// SHA-256 of a text.
pub type TextDigest = [u8; 32];

/// What a set of root keys is for. It never changes from one version to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootScope {
    /// One cache.
    Cache(CacheRef),
    /// Every cache of the server with this cluster id that has no set of its own.
    Server(String),
}

impl RootScope {
    fn parse(text: &str) -> Result<Self, ReadError> {
        match text.split_once(' ') {
            Some(("cache", cache)) => Ok(Self::Cache(CacheRef::parse("for", cache)?)),
            Some(("server", cluster)) => Ok(Self::Server(word("for", cluster)?)),
            _ => Err(ReadError::Value { key: "for" }),
        }
    }
}

impl fmt::Display for RootScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cache(cache) => write!(f, "cache {cache}"),
            Self::Server(cluster) => write!(f, "server {cluster}"),
        }
    }
}

/// Which version of a set is meant, and exactly which text: `1 <base64 of SHA-256>`.
#[derive(Clone, PartialEq, Eq)]
pub struct RootsRef {
    pub version: u64,
    pub digest: TextDigest,
}

impl RootsRef {
    pub(super) fn parse(key: &'static str, text: &str) -> Result<Option<Self>, ReadError> {
        if text == "-" {
            return Ok(None);
        }
        let refused = || ReadError::Value { key };
        let (version, digest) = text.split_once(' ').ok_or_else(refused)?;
        let digest = BASE64.decode(digest.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        Ok(Some(Self {
            version: version.parse().map_err(|_| refused())?,
            digest: digest.ok_or_else(refused)?,
        }))
    }
}

impl FromStr for RootsRef {
    type Err = ReadError;

    /// Reads what `Display` writes.
    fn from_str(text: &str) -> Result<Self, ReadError> {
        Self::parse("roots", text)?.filter(|read| read.to_string() == text).ok_or(ReadError::NotCanonical)
    }
}

impl fmt::Display for RootsRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.version, BASE64.encode(&self.digest))
    }
}

impl fmt::Debug for RootsRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A set of root keys: the word of `threshold` of `keys` counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    pub scope: RootScope,
    /// 1 for the first; each further one is one more.
    pub version: u64,
    pub threshold: u64,
    /// At most [`ROOT_KEYS_MAX`], in the order of their names, of which none occurs twice.
    pub keys: Vec<PublicKey>,
}

impl Roots {
    /// The text that is signed.
    pub fn encode(&self) -> Result<String, ReadError> {
        self.check()?;
        Ok(self.text())
    }

    /// Reads a text; only the exact bytes that [`Roots::encode`] writes.
    pub fn parse(text: &str) -> Result<Self, ReadError> {
        let mut lines = Reader::new(text, FORMAT)?;
        let scope = RootScope::parse(lines.value("for")?)?;
        let (version, threshold) = (lines.parse("version")?, lines.parse("threshold")?);
        let mut keys = Vec::new();
        while let Some(key) = lines.value_if("root") {
            keys.push(key.parse().map_err(|_| ReadError::Value { key: "root" })?);
        }
        lines.end()?;
        let roots = Self { scope, version, threshold, keys };
        if roots.encode()? == text { Ok(roots) } else { Err(ReadError::NotCanonical) }
    }

    /// What statements name this set by.
    pub fn reference(&self) -> RootsRef {
        RootsRef { version: self.version, digest: digest(&self.text()) }
    }

    /// Refuses what no set can be.
    pub fn check(&self) -> Result<(), ReadError> {
        let contradiction = |what| Err(ReadError::Contradiction(what));
        if self.version == 0 {
            return contradiction("the first set of root keys has the version 1");
        }
        if self.keys.is_empty() || self.keys.len() > ROOT_KEYS_MAX {
            return contradiction("a set has 1 to 15 root keys");
        }
        if !(1..=self.keys.len() as u64).contains(&self.threshold) {
            return contradiction("the threshold is not between 1 and the number of root keys");
        }
        if !self.keys.is_sorted_by(|one, next| one.name() < next.name()) {
            return contradiction("root keys are not in the order of their names, each once");
        }
        let is_twice =
            |(at, key): (usize, &PublicKey)| self.keys[..at].iter().any(|other| other.bytes() == key.bytes());
        if self.keys.iter().enumerate().any(is_twice) {
            return contradiction("one key stands under two names, and would count twice");
        }
        match &self.scope {
            RootScope::Cache(cache) => word("for", &cache.name).and(word("for", &cache.id)),
            RootScope::Server(cluster) => word("for", cluster),
        }?;
        Ok(())
    }

    fn text(&self) -> String {
        let mut lines = Writer::new(FORMAT);
        lines.line("for", &self.scope);
        lines.line("version", self.version);
        lines.line("threshold", self.threshold);
        for key in &self.keys {
            lines.line("root", key);
        }
        lines.text()
    }
}

/// SHA-256 of a text that is signed.
pub fn digest(text: &str) -> TextDigest {
    Sha256::digest(text.as_bytes()).into()
}

#[cfg(test)]
mod tests;
