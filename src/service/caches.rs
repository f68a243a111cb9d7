//! Caches: made, listed, changed, deleted.
//!
//! Never gives a name or a place in storage twice, and deletes a cache only when nothing is left in it.

use serde_json::json;

use super::audit::Act;
use super::contributors::taken;
use super::leaves::AdminEvent;
use super::release::{Release, Wanted};
use super::{Call, Conflict, Error, Rejection, Result, Service};
use crate::access::{Action, CacheId, CacheName};
use crate::db::audit::Outcome;
use crate::db::caches::{self, CacheRow, UndeclaredReferences, Upstream, UpstreamPaths};
use crate::db::{
    Connection, Gate, PageBounds, Tx, auxiliary, contributors, epoch, measured, paths, restarting,
    signing_keys,
};
use crate::nix::signature::PublicKey;
use crate::storage::{CacheObject, Prefix};
use crate::time::Timestamp;
use crate::vault::random;

/// A cache that is asked for. `None`: the default.
#[derive(Debug, Clone)]
pub struct NewCache {
    pub name: CacheName,
    pub public: bool,
    /// Lower is asked earlier by Nix.
    pub priority: Option<u32>,
    pub prefix: Option<String>,
    pub upstreams: Option<Vec<Upstream>>,
    pub upstream_paths: Option<UpstreamPaths>,
    pub undeclared_references: Option<UndeclaredReferences>,
}

impl NewCache {
    /// A public one, and else the default.
    pub fn named(name: CacheName) -> Self {
        Self {
            name,
            public: true,
            priority: None,
            prefix: None,
            upstreams: None,
            upstream_paths: None,
            undeclared_references: None,
        }
    }
}

/// What may change of a cache. `None`: stays.
#[derive(Debug, Clone, Default)]
pub struct CacheChange {
    pub public: Option<bool>,
    pub priority: Option<u32>,
    pub upstreams: Option<Vec<Upstream>>,
    pub upstream_paths: Option<UpstreamPaths>,
    pub undeclared_references: Option<UndeclaredReferences>,
}

/// A cache, its keys, and how much is in it.
#[derive(Debug, Clone)]
pub struct CacheDetails {
    pub row: CacheRow,
    /// Every key that clients should trust.
    pub public_keys: Vec<PublicKey>,
    /// Published paths.
    pub paths: u64,
    /// Those paths' files.
    pub bytes: u64,
}

/// `Priority` of a cache that asks for none: after cache.nixos.org, which has 40.
pub const PRIORITY_DEFAULT: u32 = 41;

/// What a cache trusts unless told otherwise.
pub const UPSTREAM_DEFAULT: (&str, &str) =
    ("https://cache.nixos.org", "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=");

impl Service {
    /// Makes a cache, without a key.
    pub async fn create_cache(&self, call: &Call, new: &NewCache) -> Result<CacheDetails> {
        self.require(call, &Action::Administer, "cache-create", new.name.as_str()).await?;
        let (row, objects) = restarting(|| async {
            let now = self.inner.clock.now();
            // Exclusive, so that of two prefixes that overlap one is seen.
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            self.recheck(&mut tx, call, &Action::Administer, now).await?;
            let (row, objects) = self.insert_cache(&mut tx, new, now).await?;
            self.record(&mut tx, call, vec![created(&row)], now).await?;
            tx.commit().await?;
            Ok::<_, Error>((row, objects))
        })
        .await?;
        self.release_soon(objects).await;
        Ok(CacheDetails { row, public_keys: Vec::new(), paths: 0, bytes: 0 })
    }

    /// The rows of a new cache, and the objects that are to be written for it.
    pub(super) async fn insert_cache(
        &self,
        tx: &mut Tx,
        new: &NewCache,
        now: Timestamp,
    ) -> Result<(CacheRow, Vec<Wanted>)> {
        let prefix = new.prefix.clone().unwrap_or_else(|| new.name.to_string());
        let parsed: Prefix = prefix.parse().map_err(|error| Rejection::value("prefix", error))?;
        for other in caches::prefixes(tx).await? {
            if other.parse::<Prefix>().is_ok_and(|other| other.overlaps(&parsed)) {
                return Err(Conflict::PrefixOverlaps(prefix).into());
            }
        }
        let upstreams = match &new.upstreams {
            Some(upstreams) => checked_upstreams(tx, upstreams).await?,
            None => default_upstreams()?,
        };
        let row = CacheRow {
            id: CacheId::new(now, random::bytes()),
            name: new.name.clone(),
            public: new.public,
            priority: new.priority.unwrap_or(PRIORITY_DEFAULT),
            prefix,
            upstream_paths: new.upstream_paths.unwrap_or(UpstreamPaths::Store),
            undeclared_references: new.undeclared_references.unwrap_or(UndeclaredReferences::Record),
            upstreams,
            created_at: now,
        };
        caches::insert(tx, &row).await.map_err(|error| taken(error, row.name.as_str()))?;
        let mut release = Release::new(self, &row, now);
        release.object(tx, CacheObject::Info).await?;
        // The server's root keys hold for it from its beginning.
        if self.has_succession(tx, &row).await? {
            release.object(tx, CacheObject::KeySuccession).await?;
        }
        let objects = release.objects;
        Ok((row, objects))
    }

    /// A page of caches.
    pub async fn list_caches(&self, call: &Call, page: &PageBounds) -> Result<Vec<CacheDetails>> {
        self.require(call, &Action::Administer, "cache-list", "").await?;
        let mut connection = self.inner.db.read().await?;
        let mut details = Vec::new();
        for row in caches::list(&mut connection, page).await? {
            details.push(with_details(&mut connection, row).await?);
        }
        Ok(details)
    }

    /// One cache: a public one for anybody, a private one for callers who may read it.
    pub async fn show_cache(&self, call: &Call, name: &CacheName) -> Result<CacheDetails> {
        let mut connection = self.inner.db.read().await?;
        let row = caches::by_name(&mut connection, name).await?;
        if !row.as_ref().is_some_and(|row| row.public) {
            // The same answer for a private cache and for none.
            if let Err(denied) = call.caller.require(&Action::Pull(name.clone())) {
                drop(connection);
                return Err(self.denied(call, "cache-show", name.as_str(), denied.into()).await);
            }
        }
        with_details(&mut connection, row.ok_or(Error::NotFound("cache"))?).await
    }

    /// Changes a cache.
    pub async fn edit_cache(
        &self,
        call: &Call,
        name: &CacheName,
        change: &CacheChange,
    ) -> Result<CacheDetails> {
        self.require(call, &Action::Administer, "cache-edit", name.as_str()).await?;
        let objects = restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            self.recheck(&mut tx, call, &Action::Administer, now).await?;
            let before = caches::by_name(&mut tx, name).await?.ok_or(Error::NotFound("cache"))?;
            let upstreams = match &change.upstreams {
                Some(upstreams) => checked_upstreams(&mut tx, upstreams).await?,
                None => before.upstreams.clone(),
            };
            let after = CacheRow {
                public: change.public.unwrap_or(before.public),
                priority: change.priority.unwrap_or(before.priority),
                upstream_paths: change.upstream_paths.unwrap_or(before.upstream_paths),
                undeclared_references: change.undeclared_references.unwrap_or(before.undeclared_references),
                upstreams,
                ..before.clone()
            };
            if after == before {
                return Ok::<_, Error>(Vec::new());
            }
            caches::update(&mut tx, &after).await?;
            let mut release = Release::new(self, &after, now);
            if after.priority != before.priority {
                release.object(&mut tx, CacheObject::Info).await?;
            }
            let objects = release.objects;
            let act = Act {
                action: "cache-edit",
                subject: name.to_string(),
                detail: json!({ "before": described(&before), "after": described(&after) }),
                cache: Some(&after),
                event: Some(AdminEvent::PolicyChange),
            };
            self.record(&mut tx, call, vec![act], now).await?;
            tx.commit().await?;
            Ok(objects)
        })
        .await?;
        self.note_change().await;
        self.release_soon(objects).await;
        self.show_cache(call, name).await
    }

    /// Deletes a cache, with `purge` also every path in it. Without, a cache that holds paths is a conflict.
    /// Broken off half way, the rest of the paths stands, and so does the cache.
    pub async fn delete_cache(&self, call: &Call, name: &CacheName, purge: bool) -> Result<()> {
        self.require(call, &Action::Administer, "cache-delete", name.as_str()).await?;
        loop {
            let deleted = restarting(|| self.delete_cache_batch(call, name, purge)).await?;
            self.note_change().await;
            if deleted {
                tracing::info!(cache = %name, purge, "cache deleted");
                return Ok(());
            }
        }
    }

    /// Deletes a batch of paths, and the cache with the last one. True: the cache is deleted.
    async fn delete_cache_batch(&self, call: &Call, name: &CacheName, purge: bool) -> Result<bool> {
        let now = self.inner.clock.now();
        let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
        self.recheck(&mut tx, call, &Action::Administer, now).await?;
        let cache = caches::by_name(&mut tx, name).await?.ok_or(Error::NotFound("cache"))?;
        let standing = caches::standing_paths(&mut tx, cache.id, PURGE_BATCH).await?;
        if !purge && !standing.is_empty() {
            let (paths, _) = caches::published(&mut tx, cache.id).await?;
            return Err(Conflict::CacheNotEmpty { paths: paths.max(1) }.into());
        }
        let mut release = Release::by_worker(&cache, now);
        let mut leaves = Vec::with_capacity(standing.len());
        for hash in &standing {
            let path = paths::find(&mut tx, cache.id, *hash).await?.ok_or(Error::NotFound("path"))?;
            leaves.push(
                self.delete_in_tx(&mut tx, call, &mut release, &path, "the cache was purged", now).await?,
            );
        }
        let mut last = i64::try_from(standing.len()).unwrap_or(i64::MAX) < PURGE_BATCH;
        if last {
            // Then what no path names: NARs on their own, logs, listings that never became visible.
            let files = measured::standing(&mut tx, cache.id, PURGE_BATCH).await?;
            for nar in &files {
                measured::doom(&mut tx, &nar.id).await?;
                release.object(&mut tx, CacheObject::Nar(nar.file)).await?;
            }
            let (visible, removed) = auxiliary::remove_any(&mut tx, cache.id, PURGE_BATCH).await?;
            for (kind, name) in visible {
                release.auxiliary(&mut tx, kind, &name).await?;
            }
            let batch = usize::try_from(PURGE_BATCH).unwrap_or(usize::MAX);
            last = files.len() < batch && removed < batch;
        }
        let mut acts = Vec::new();
        if last {
            release.object(&mut tx, CacheObject::Info).await?;
            release.object(&mut tx, CacheObject::KeySuccession).await?;
            caches::delete(&mut tx, cache.id, now).await?;
            acts.push(Act {
                action: "cache-delete",
                subject: name.to_string(),
                detail: json!({ "purge": purge, "paths": standing.len() }),
                cache: Some(&cache),
                event: Some(AdminEvent::CacheDelete),
            });
        } else {
            let detail = json!({ "cache": name.as_str(), "paths": standing.len() });
            self.audit(&mut tx, call, "cache-purge", Outcome::Done, name.as_str(), detail, now).await?;
        }
        epoch::advance(&mut tx).await?;
        self.record_after(&mut tx, call, leaves, acts, now).await?;
        tx.commit().await?;
        Ok(last)
    }
}

/// The act of a cache's first row.
pub(super) fn created(row: &CacheRow) -> Act<'_> {
    Act {
        action: "cache-create",
        subject: row.name.to_string(),
        detail: described(row),
        cache: Some(row),
        event: Some(AdminEvent::CacheCreate),
    }
}

/// The default upstream.
fn default_upstreams() -> Result<Vec<Upstream>> {
    let (url, key) = UPSTREAM_DEFAULT;
    let key = key
        .parse()
        .map_err(|error: crate::nix::signature::ParsePublicKeyError| Error::Internal(error.into()))?;
    Ok(vec![Upstream { url: url.to_owned(), public_keys: vec![key] }])
}

/// Upstreams within their limits, whose keys have nobody else's name.
async fn checked_upstreams(tx: &mut Tx, upstreams: &[Upstream]) -> Result<Vec<Upstream>> {
    let refused = |why: &str| Error::from(Rejection::value("upstreams", why));
    if upstreams.len() > UPSTREAMS_MAX {
        return Err(refused("are more than 16"));
    }
    let ours = signing_keys::names(tx).await?;
    for upstream in upstreams {
        let url = url::Url::parse(&upstream.url).map_err(|_| refused("have a URL that is none"))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(refused("have a URL that is neither http nor https"));
        }
        if upstream.url.len() > URL_LENGTH_MAX || url.password().is_some() || !url.username().is_empty() {
            return Err(refused("have a URL longer than 1024 bytes, or with a password in it"));
        }
        if upstream.public_keys.is_empty() || upstream.public_keys.len() > UPSTREAMS_MAX {
            return Err(refused("need 1 to 16 public keys each: an upstream counts by its signatures"));
        }
        for key in &upstream.public_keys {
            if ours.contains(key.name()) || contributors::key_name_exists(tx, key.name()).await? {
                return Err(refused("have a key named as one of this server or of a contributor"));
            }
        }
    }
    Ok(upstreams.to_vec())
}

fn described(row: &CacheRow) -> serde_json::Value {
    let upstreams: Vec<_> = row
        .upstreams
        .iter()
        .map(|upstream| {
            let keys: Vec<_> = upstream.public_keys.iter().map(PublicKey::to_string).collect();
            json!({ "url": upstream.url, "public_keys": keys })
        })
        .collect();
    json!({
        "name": row.name.as_str(),
        "public": row.public,
        "priority": row.priority,
        "prefix": row.prefix,
        "upstreams": upstreams,
        "upstream_paths": row.upstream_paths.as_str(),
        "undeclared_references": row.undeclared_references.as_str(),
    })
}

async fn with_details(connection: &mut Connection, row: CacheRow) -> Result<CacheDetails> {
    let keys = signing_keys::of_cache(connection, row.id).await?;
    let trusted = keys.into_iter().filter(|key| key.state.is_trusted());
    let (paths, bytes) = caches::published(connection, row.id).await?;
    Ok(CacheDetails { public_keys: trusted.map(|key| key.public_key).collect(), row, paths, bytes })
}

/// Upstreams of a cache, and keys of an upstream: each is tried on each foreign signature.
const UPSTREAMS_MAX: usize = 16;

const URL_LENGTH_MAX: usize = 1024;

/// Paths deleted while publishers wait.
const PURGE_BATCH: i64 = if cfg!(test) { 2 } else { 200 };

#[cfg(test)]
mod tests;
