//! What a replica remembers: caches and rendered narinfos, with a stated bound and a stated age.
//!
//! Never remembers that something is absent. An entry is good while the change epoch in the database is
//! the one that it was read under, and that epoch was read less than a second ago.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::access::{CacheId, CacheName};
use crate::db::caches::CacheRow;
use crate::db::signing_keys::KeyRow;
use crate::nix::store_path::StorePathHash;

/// A narinfo as it is served.
#[derive(Debug, Clone)]
pub struct RenderedNarInfo {
    pub text: Bytes,
    /// Strong: the text's own digest, in quotes.
    pub etag: String,
}

/// A cache, the keys that sign for it, and whether anybody is told, as they stand under one change epoch.
#[derive(Debug)]
pub(super) struct Signers {
    pub cache: CacheRow,
    /// Active and retiring, oldest first.
    pub keys: Vec<KeyRow>,
    /// Whether there is any webhook.
    pub has_webhooks: bool,
}

#[derive(Clone)]
struct Remembered<T> {
    value: T,
    epoch: i64,
}

/// The memory of one replica.
pub(super) struct Memory {
    started: Instant,
    /// Milliseconds after `started` at which the epoch was read last; an epoch read is as old as its query's start.
    read_at: AtomicU64,
    epoch: AtomicI64,
    caches: Cache<CacheName, Remembered<Arc<CacheRow>>>,
    narinfos: Cache<(CacheId, StorePathHash), Remembered<Arc<RenderedNarInfo>>, NarInfoWeight>,
    signers: Cache<CacheId, Remembered<Arc<Signers>>>,
}

/// Which epoch a value that is about to be read will belong to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading(i64);

impl Memory {
    /// Remembers at most `narinfo_bytes_max` of narinfos.
    pub fn new(narinfo_bytes_max: u64) -> Self {
        let entries = usize::try_from(narinfo_bytes_max / 1024).unwrap_or(usize::MAX);
        Self {
            started: Instant::now(),
            read_at: AtomicU64::new(0),
            epoch: AtomicI64::new(NEVER_READ),
            caches: Cache::new(CACHES_MAX),
            narinfos: Cache::with_weighter(entries, narinfo_bytes_max, NarInfoWeight),
            signers: Cache::new(CACHES_MAX),
        }
    }

    /// Takes note of the epoch that a query begun at `asked_at` has read.
    pub fn epoch_read(&self, epoch: i64, asked_at: Instant) {
        let at = u64::try_from((asked_at - self.started).as_millis()).unwrap_or(u64::MAX);
        // Only forward: an older answer that comes late must not revive what a newer one ended.
        self.epoch.fetch_max(epoch, Ordering::AcqRel);
        self.read_at.fetch_max(at, Ordering::AcqRel);
    }

    /// To be taken before the rows are read that shall be remembered.
    pub fn reading(&self) -> Reading {
        Reading(self.fresh_epoch().unwrap_or(NEVER_READ))
    }

    /// The epoch, if it was read less than a second ago.
    pub fn fresh_epoch(&self) -> Option<i64> {
        let read_at = Duration::from_millis(self.read_at.load(Ordering::Acquire));
        let epoch = self.epoch.load(Ordering::Acquire);
        (epoch != NEVER_READ && self.started.elapsed().saturating_sub(read_at) < AGE_MAX).then_some(epoch)
    }

    /// A remembered cache.
    pub fn cache(&self, name: &CacheName) -> Option<Arc<CacheRow>> {
        let epoch = self.fresh_epoch()?;
        self.caches.get(name).filter(|entry| entry.epoch == epoch).map(|entry| entry.value)
    }

    /// Remembers a cache.
    pub fn remember_cache(&self, reading: Reading, cache: Arc<CacheRow>) {
        if reading.0 != NEVER_READ {
            self.caches.insert(cache.name.clone(), Remembered { value: cache, epoch: reading.0 });
        }
    }

    /// Who signs for a cache, if that was read under this epoch: one that the caller's transaction has just read behind
    /// the gate, so that no second of age is allowed for.
    pub fn signers(&self, cache: CacheId, epoch: i64) -> Option<Arc<Signers>> {
        self.signers.get(&cache).filter(|entry| entry.epoch == epoch).map(|entry| entry.value)
    }

    /// Remembers who signs for a cache, as read by a transaction that had read this epoch before, and had changed
    /// nothing: what it changes may never happen.
    pub fn remember_signers(&self, epoch: i64, signers: Arc<Signers>) {
        self.signers.insert(signers.cache.id, Remembered { value: signers, epoch });
    }

    /// A remembered narinfo.
    pub fn narinfo(&self, cache: CacheId, hash: StorePathHash) -> Option<Arc<RenderedNarInfo>> {
        let epoch = self.fresh_epoch()?;
        self.narinfos.get(&(cache, hash)).filter(|entry| entry.epoch == epoch).map(|entry| entry.value)
    }

    /// Remembers a narinfo.
    pub fn remember_narinfo(
        &self,
        reading: Reading,
        cache: CacheId,
        hash: StorePathHash,
        narinfo: Arc<RenderedNarInfo>,
    ) {
        if reading.0 != NEVER_READ {
            self.narinfos.insert((cache, hash), Remembered { value: narinfo, epoch: reading.0 });
        }
    }
}

/// Text, tag, key and the cache's own bookkeeping.
#[derive(Clone)]
struct NarInfoWeight;

impl Weighter<(CacheId, StorePathHash), Remembered<Arc<RenderedNarInfo>>> for NarInfoWeight {
    fn weight(&self, _key: &(CacheId, StorePathHash), entry: &Remembered<Arc<RenderedNarInfo>>) -> u64 {
        entry.value.text.len() as u64 + 256
    }
}

/// No epoch in the database is negative.
const NEVER_READ: i64 = -1;

/// Caches remembered: a server has a handful.
const CACHES_MAX: usize = 1024;

/// How long the epoch is taken to stand after it was read. The bound that the README states is one second.
const AGE_MAX: Duration = Duration::from_millis(900);
