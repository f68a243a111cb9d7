//! What leaves leave out: lists of references behind a digest, which everybody may have, and lines behind a commitment,
//! which only those may have who may pull from the cache.
//!
//! Never gives the opening of `detail`: that is for the audit rows.

use std::collections::HashMap;

use bytes::Bytes;

use super::{Call, Error, Result, Service};
use crate::access::{Action, CacheName, Caller};
use crate::db::{Gate, log};
use crate::nix::hash::Sha256Digest;
use crate::storage::{LogName, ObjectKey};
use crate::tlog::leaf::{ClaimLines, Covered as _, Disclosed, Event, Leaf, References, Salt};

/// Leaves that one question covers at most.
pub const OPENINGS_COUNT_MAX: u32 = 1000;

/// Largest list of references, in bytes: as many as a narinfo of the largest size could name.
const REFERENCES_SIZE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Leaves that are looked at in one step for lists that were never published.
const REFERENCES_LEAVES_AT_ONCE: i64 = if cfg!(test) { 1000 } else { 50_000 };

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
        let Ok(leaf) = Leaf::parse(leaf.as_bytes()) else { return Ok(()) };
        let Some((digest, key)) = digest_of(&leaf.event) else { return Ok(()) };
        let Some(list) = log::references(&mut *self.inner.db.read().await?, digest).await? else {
            return match self.stored_references(&leaf.event).await? {
                Some(_) => Ok(()),
                None => Err(super::log::damaged("a list of references is missing".to_owned())),
            };
        };
        // A list is the same for ever: one of that size in its place is it, or a finding of the next audit.
        if self.inner.storage.size(&key).await? == Some(list.len() as u64) {
            return Ok(());
        }
        self.write_log(&key, list.into()).await
    }

    /// The list that a leaf has the digest of openly, as it was published; `None` where there is none, or another.
    pub(super) async fn stored_references(&self, event: &Event) -> Result<Option<String>> {
        let Some((digest, key)) = digest_of(event) else { return Ok(None) };
        let bytes = self.inner.storage.read(&key, REFERENCES_SIZE_BYTES_MAX).await?;
        let bytes = bytes.filter(|bytes| Sha256Digest::of(bytes).0 == *digest);
        Ok(bytes.and_then(|bytes| String::from_utf8(bytes.to_vec()).ok()))
    }

    /// Publishes the lists of leaves that were published before lists were: the next range of them. True: there are no
    /// more. Broken off, it begins with that range again.
    pub(super) async fn complete_references(&self) -> Result<bool> {
        let (leaves, from, to, size) = {
            let mut connection = self.inner.db.read().await?;
            let Some((from, size)) = log::references_to(&mut connection).await? else { return Ok(false) };
            let to = size.min(from.saturating_add(REFERENCES_LEAVES_AT_ONCE));
            (log::shortened(&mut connection, from, to).await?, from, to, size)
        };
        if from >= size {
            return Ok(true);
        }
        for leaf in leaves {
            match self.publish_references(&leaf).await {
                // Nobody has the list any more: an audit tells of it, and nothing else waits for it.
                Err(error) if super::log::is_damage(&error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "a leaf's list of references is lost");
                }
                done => done?,
            }
        }
        let mut tx = self.inner.db.begin(Gate::Around).await?;
        log::references_published(&mut tx, from, to).await?;
        self.commit_log(tx).await?;
        Ok(to == size)
    }
}

/// The digest that stands openly in place of a list of references, and where the list lies.
fn digest_of(event: &Event) -> Option<(&[u8; 32], ObjectKey)> {
    match event.claim()? {
        Disclosed::Open(ClaimLines { references: References::Digest(digest), .. }) => {
            Some((digest, references_key(&data_encoding::HEXLOWER.encode(digest))?))
        }
        _ => None,
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
