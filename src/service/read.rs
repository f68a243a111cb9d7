//! What is read: narinfos from rows and memory, NARs from storage.
//!
//! Paths are signed when they are published, not when they are read: reads go on while sealed.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::memory::RenderedNarInfo;
use super::upstreams::CLOSURE_PATIENCE;
use super::{Call, Error, Result, Service};
use crate::access::{Action, CacheName};
use crate::db::caches::{self, CacheRow};
use crate::db::measured::{self, FileState, StoredNar};
use crate::db::paths::{self, PathRow, PathState, SignatureRow};
use crate::db::{DbError, Gate};
use crate::nix::cache_info::CacheInfo;
use crate::nix::compression::NarFileName;
use crate::nix::hash::{NarHash, Sha256Digest};
use crate::nix::narinfo::NarInfoText;
use crate::nix::store_path::StorePathHash;
use crate::storage::{CacheObject, Object, ObjectKey};

/// Through which URL a NAR is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Only NARs of published paths.
    Pull,
    /// Every NAR that is stored, for a pusher to know what need not be sent again.
    Push,
}

/// What a cache does not hold, of what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    pub to_push: Vec<StorePathHash>,
    /// Held by an upstream, which is enough for this cache.
    pub upstream: Vec<StorePathHash>,
}

/// A NAR that may be served.
#[derive(Debug, Clone)]
pub struct NarHandle {
    key: ObjectKey,
    row_id: String,
    generation: i64,
    /// Bytes of the file.
    pub size: u64,
}

impl Service {
    /// The cache of this name, remembered for less than a second.
    pub async fn cache(&self, name: &CacheName) -> Result<Option<Arc<CacheRow>>> {
        if let Some(cache) = self.inner.memory.cache(name) {
            return Ok(Some(cache));
        }
        let reading = self.inner.memory.reading();
        let row = caches::by_name(&mut *self.inner.db.read().await?, name).await?;
        let cache = row.map(Arc::new);
        if let Some(cache) = &cache {
            self.inner.memory.remember_cache(reading, Arc::clone(cache));
        }
        Ok(cache)
    }

    /// The cache, for a caller who was found to have a right to it.
    pub(super) async fn existing_cache(&self, name: &CacheName) -> Result<Arc<CacheRow>> {
        self.cache(name).await?.ok_or(Error::NotFound("cache"))
    }

    /// The cache, for reading on the pull side: a public one for anybody, a private one (or none) for
    /// callers with `pull` alone.
    pub async fn cache_to_pull(&self, call: &Call, name: &CacheName) -> Result<Arc<CacheRow>> {
        match self.cache(name).await? {
            Some(cache) if cache.public => Ok(cache),
            found => {
                self.require(call, &Action::Pull(name.clone()), "pull", name.as_str()).await?;
                found.ok_or(Error::NotFound("cache"))
            }
        }
    }

    /// The cache, for reading on the push side.
    pub async fn cache_to_push(&self, call: &Call, name: &CacheName) -> Result<Arc<CacheRow>> {
        self.require(call, &Action::Push(name.clone()), "push", name.as_str()).await?;
        self.existing_cache(name).await
    }

    /// The `nix-cache-info` of a cache.
    pub fn cache_info(&self, cache: &CacheRow) -> String {
        CacheInfo::served(cache.priority).to_string()
    }

    /// A narinfo from memory alone; for the hottest path.
    pub fn remembered_narinfo(&self, cache: &CacheRow, hash: StorePathHash) -> Option<Arc<RenderedNarInfo>> {
        self.inner.memory.narinfo(cache.id, hash)
    }

    /// A remembered public cache; for the hottest path.
    pub fn remembered_cache(&self, name: &CacheName) -> Option<Arc<CacheRow>> {
        self.inner.memory.cache(name)
    }

    /// The narinfo of a published path.
    pub async fn narinfo(
        &self,
        cache: &CacheRow,
        hash: StorePathHash,
    ) -> Result<Option<Arc<RenderedNarInfo>>> {
        if let Some(narinfo) = self.inner.memory.narinfo(cache.id, hash) {
            return Ok(Some(narinfo));
        }
        let reading = self.inner.memory.reading();
        let mut connection = self.inner.db.read().await?;
        let path = paths::find(&mut connection, cache.id, hash).await?;
        let Some(path) = path.filter(|path| path.state == PathState::Published) else { return Ok(None) };
        let signatures = paths::signatures(&mut connection, &path.claim_id).await?;
        let narinfo = Arc::new(render_narinfo(&path, &signatures)?);
        self.inner.memory.remember_narinfo(reading, cache.id, hash, Arc::clone(&narinfo));
        Ok(Some(narinfo))
    }

    /// A NAR, if this side may see it. Asks the rows alone.
    pub async fn nar(&self, cache: &CacheRow, file: NarFileName, side: Side) -> Result<Option<NarHandle>> {
        let mut connection = self.inner.db.read().await?;
        let row = measured::find(&mut connection, cache.id, &file).await?;
        let Some(row) = row.filter(|row| row.state == FileState::Stored) else { return Ok(None) };
        if side == Side::Pull && !paths::is_published(&mut connection, cache.id, &file).await? {
            return Ok(None);
        }
        let key = super::key_of(cache, CacheObject::Nar(file))?;
        Ok(Some(NarHandle { key, row_id: row.id, generation: row.generation, size: row.file_size }))
    }

    /// The bytes of a NAR, or of a range of it.
    pub async fn nar_body(&self, nar: &NarHandle, range: Option<Range<u64>>) -> Result<Object> {
        if let Some(object) = self.inner.storage.get(&nar.key, range).await? {
            return Ok(object);
        }
        tracing::error!(object = %nar.key, "a NAR that the rows name is missing from storage");
        // From now on a push sends it again.
        let mut tx = self.inner.db.begin(Gate::Shared).await?;
        measured::lose(&mut tx, &nar.row_id, nar.generation).await?;
        tx.commit().await?;
        Err(Error::NotFound("NAR in storage; it has to be pushed again"))
    }

    /// Where a NAR may be fetched from directly, if storage can give such URLs.
    pub async fn nar_url(&self, nar: &NarHandle) -> Result<Option<url::Url>> {
        Ok(self.inner.storage.presign_get(&nar.key, REDIRECT_LIFETIME).await?)
    }

    /// Those of `hashes` that are not published in `cache`, in the order asked.
    pub async fn missing(&self, call: &Call, cache: &CacheName, hashes: &[StorePathHash]) -> Result<Missing> {
        let cache = self.cache_to_push(call, cache).await?;
        let mut connection = self.inner.db.read().await?;
        let asked = hashes.iter().map(StorePathHash::as_str);
        let published = paths::published_among(&mut connection, cache.id, asked).await?;
        drop(connection);
        let published: std::collections::HashSet<_> = published.iter().map(|path| path.hash()).collect();
        let absent: Vec<_> = hashes.iter().copied().filter(|hash| !published.contains(hash)).collect();
        let held = self.held_upstream(&cache, absent.iter().copied(), CLOSURE_PATIENCE).await?;
        let held: std::collections::HashSet<_> = held.paths.iter().map(|path| path.hash()).collect();
        let (upstream, to_push) = absent.into_iter().partition(|hash| held.contains(hash));
        Ok(Missing { to_push, upstream })
    }

    /// Those of `nars` that stand in `cache` as verified files: their paths can be published without an upload.
    pub async fn stored_nars(
        &self,
        call: &Call,
        cache: &CacheName,
        nars: &[NarHash],
    ) -> Result<Vec<StoredNar>> {
        let cache = self.cache_to_push(call, cache).await?;
        let mut connection = self.inner.db.read().await?;
        Ok(measured::stored_among(&mut connection, cache.id, nars.iter().copied()).await?)
    }
}

/// The narinfo's text from verified values, with every signature that stands.
pub(super) fn render_narinfo(path: &PathRow, signatures: &[SignatureRow]) -> Result<RenderedNarInfo> {
    let signatures: Vec<_> = signatures.iter().map(|row| row.signature.clone()).collect();
    let corrupt = || DbError::Corrupt { table: "claims", column: "ca", row: path.claim_id.clone() };
    let ca = path.ca.as_deref().map(str::parse).transpose().map_err(|_| corrupt())?;
    let text = NarInfoText {
        claim: &path.claim,
        file: path.file,
        compression: path.compression,
        file_size: path.file_size,
        deriver: path.deriver.as_ref(),
        signatures: &signatures,
        ca: ca.as_ref(),
    };
    let text = text.to_string();
    let etag = format!("\"{}\"", Sha256Digest::of(text.as_bytes()));
    Ok(RenderedNarInfo { text: Bytes::from(text), etag })
}

/// How long a redirect's URL works: long enough to begin a download with.
const REDIRECT_LIFETIME: std::time::Duration = std::time::Duration::from_secs(300);
