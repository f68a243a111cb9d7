//! What leaves leave out: lists of references behind a digest, which everybody may have, and lines behind a commitment,
//! which only those may have who may pull from the cache.
//!
//! Never gives the opening of `detail`: that is for the audit rows.

use std::collections::HashMap;

use bytes::Bytes;

use super::{Call, Error, Result, Service};
use crate::access::{Action, CacheName, Caller};
use crate::db::log;
use crate::storage::{LogName, ObjectKey};
use crate::tlog::leaf::{ClaimLines, Covered as _, Disclosed, Leaf, References, Salt};

/// Leaves that one question covers at most.
pub const OPENINGS_COUNT_MAX: u32 = 1000;

/// Largest list of references, in bytes: as many as a narinfo of the largest size could name.
const REFERENCES_SIZE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What stands behind the commitment of one leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOpening {
    pub index: u64,
    pub salt: Salt,
    /// The lines, each with its line feed.
    pub lines: String,
    /// The list that those lines have the digest of.
    pub references: Option<String>,
}

impl Service {
    /// The openings of the private leaves among the `count` from `first` on, of caches that the caller may pull from.
    pub async fn log_openings(&self, call: &Call, first: u64, count: u32) -> Result<Vec<LogOpening>> {
        if call.caller == Caller::Anonymous {
            return Err(Error::Unauthenticated("this needs a token"));
        }
        let first = i64::try_from(first).unwrap_or(i64::MAX);
        let count = i64::from(count.min(OPENINGS_COUNT_MAX));
        let mut connection = self.inner.db.read().await?;
        let mut may_pull = HashMap::new();
        let mut openings = Vec::new();
        for (index, salt, lines) in log::openings(&mut connection, "private", first, count).await? {
            let Some(name) = cache_of(&lines) else { continue };
            let allowed = *may_pull.entry(name).or_insert_with_key(|name: &CacheName| {
                call.caller.require(&Action::Pull(name.clone())).is_ok()
            });
            if !allowed {
                continue;
            }
            let references = match ClaimLines::parse(&lines).map(|claim| claim.references) {
                Ok(References::Digest(digest)) => log::references(&mut connection, &digest).await?,
                _ => None,
            };
            openings.push(LogOpening { index: index.unsigned_abs(), salt, lines, references });
        }
        Ok(openings)
    }

    /// A list of references that a leaf has the digest of, as it was published; `None` where there is none.
    pub async fn log_references(&self, digest: &str) -> Result<Option<Bytes>> {
        let Some(key) = references_key(digest) else { return Ok(None) };
        Ok(self.inner.storage.read(&key, REFERENCES_SIZE_BYTES_MAX).await?)
    }

    /// Writes the list of references that `leaf` has the digest of, if it has one openly. What a private cache's leaf
    /// hides stays hidden.
    pub(super) async fn publish_references(&self, leaf: &str) -> Result<()> {
        // Almost no leaf is worth parsing.
        if !leaf.contains("\nreferences-sha256 ") {
            return Ok(());
        }
        let Ok(Leaf { event, .. }) = Leaf::parse(leaf.as_bytes()) else { return Ok(()) };
        let Some(Disclosed::Open(ClaimLines { references: References::Digest(digest), .. })) = event.claim()
        else {
            return Ok(());
        };
        let list = log::references(&mut *self.inner.db.read().await?, digest).await?;
        let list = list.ok_or_else(|| super::log::damaged("a list of references is missing".to_owned()))?;
        match references_key(&data_encoding::HEXLOWER.encode(digest)) {
            Some(key) => Ok(self.inner.storage.put(&key, list.into()).await?),
            None => Ok(()),
        }
    }
}

/// Where a list of references lies; `None` where `digest` is not 32 bytes of lower-case hex.
fn references_key(digest: &str) -> Option<ObjectKey> {
    let is_digest =
        digest.len() == 64 && digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let name: LogName = format!("references/{digest}").parse().ok()?;
    is_digest.then_some(ObjectKey::Log(name))
}

/// The cache on the first line of an opening.
fn cache_of(lines: &str) -> Option<CacheName> {
    lines.lines().next()?.strip_prefix("cache ")?.parse().ok()
}
