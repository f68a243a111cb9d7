//! Paths that a cache need not hold because an upstream does: found out before a transaction, verified at each use.
//!
//! Only for caches that say `upstream_paths = skip`. Never trusts a row: its signature must be valid under a key
//! that the cache lists now.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::time::Instant;

use super::{Result, Service};
use crate::db::caches::{CacheRow, UpstreamPaths};
use crate::db::upstream_paths::{self, UpstreamPath};
use crate::db::{Connection, Gate, restarting};
use crate::nix::narinfo::SignedClaim;
use crate::nix::store_path::{StorePath, StorePathHash};
use crate::upstream::Answer;

/// What upstreams hold of what was asked.
#[derive(Debug, Default)]
pub(super) struct HeldUpstream {
    pub paths: BTreeSet<StorePath>,
    /// An upstream that gave no answer for some path that is not among these.
    pub silent: Option<String>,
}

impl Service {
    /// Which of `hashes` an upstream of `cache` holds. Asks over the network what no row says, for at most
    /// `patience` in all, and keeps what it learns. Nothing for a cache that stores every path itself.
    pub(super) async fn held_upstream(
        &self,
        cache: &CacheRow,
        hashes: impl IntoIterator<Item = StorePathHash>,
        patience: Duration,
    ) -> Result<HeldUpstream> {
        if cache.upstream_paths == UpstreamPaths::Store || cache.upstreams.is_empty() {
            return Ok(HeldUpstream::default());
        }
        let mut unknown: BTreeSet<StorePathHash> = hashes.into_iter().collect();
        let mut connection = self.inner.db.read().await?;
        let mut held = HeldUpstream { paths: known(&mut connection, cache, &unknown).await?, silent: None };
        drop(connection);
        for path in &held.paths {
            unknown.remove(&path.hash());
        }
        let deadline = Instant::now() + patience;
        let mut answers = stream::iter(unknown)
            .map(|hash| async move {
                let answer = tokio::time::timeout_at(deadline, self.ask_upstreams(cache, hash)).await;
                answer.unwrap_or_else(|_| Err(cache.upstreams[0].url.clone()))
            })
            .buffer_unordered(ASKED_AT_ONCE);
        let mut learnt = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(Some(path)) => learnt.push(path),
                Ok(None) => {}
                Err(url) => held.silent = Some(url),
            }
        }
        for batch in learnt.chunks(KEPT_AT_ONCE) {
            restarting(|| async {
                let now = self.inner.clock.now();
                let mut tx = self.inner.db.begin_lazy(Gate::Around).await?;
                for path in batch {
                    upstream_paths::keep(&mut tx, cache.id, path, now).await?;
                }
                tx.commit().await
            })
            .await?;
        }
        held.paths.extend(learnt.into_iter().map(|path| path.signed.claim.path));
        Ok(held)
    }

    /// Asks the upstreams in their order until one holds the path. Error: the URL of one that was silent, where
    /// no other holds it.
    async fn ask_upstreams(
        &self,
        cache: &CacheRow,
        hash: StorePathHash,
    ) -> std::result::Result<Option<UpstreamPath>, String> {
        let mut silent = None;
        for upstream in &cache.upstreams {
            match self.inner.upstreams.ask(&upstream.url, &upstream.public_keys, hash).await {
                Answer::Holds(signed) => {
                    return Ok(Some(UpstreamPath { signed, upstream_url: upstream.url.clone() }));
                }
                Answer::Lacks => {}
                Answer::Silent => silent = Some(upstream.url.clone()),
            }
        }
        silent.map_or(Ok(None), Err)
    }

    /// What an upstream of `cache` says of a path, for a pusher who asks whether it is there. An upstream that
    /// does not answer lacks it: then the path is pushed.
    pub async fn upstream_narinfo(
        &self,
        cache: &CacheRow,
        hash: StorePathHash,
    ) -> Result<Option<SignedClaim>> {
        if self.held_upstream(cache, [hash], PUSHER_PATIENCE).await?.paths.is_empty() {
            return Ok(None);
        }
        let mut connection = self.inner.db.read().await?;
        let rows = upstream_paths::among(&mut connection, cache.id, [hash.as_str()]).await?;
        Ok(rows.into_iter().find(|row| is_trusted(cache, row)).map(|row| row.signed))
    }
}

/// Those of `hashes` that rows say an upstream holds, by signatures that are valid under keys the cache has now.
pub(super) async fn known(
    connection: &mut Connection,
    cache: &CacheRow,
    hashes: &BTreeSet<StorePathHash>,
) -> Result<BTreeSet<StorePath>> {
    if cache.upstream_paths == UpstreamPaths::Store || hashes.is_empty() {
        return Ok(BTreeSet::new());
    }
    let asked = hashes.iter().map(StorePathHash::as_str);
    let rows = upstream_paths::among(connection, cache.id, asked).await?;
    Ok(rows.into_iter().filter(|row| is_trusted(cache, row)).map(|row| row.signed.claim.path).collect())
}

fn is_trusted(cache: &CacheRow, row: &UpstreamPath) -> bool {
    let fingerprint = row.signed.claim.fingerprint();
    let mut keys = cache.upstreams.iter().flat_map(|upstream| &upstream.public_keys);
    keys.any(|key| {
        let mut signatures = row.signed.signatures.iter();
        signatures
            .any(|signature| *key.name() == signature.name && key.verify(fingerprint.as_bytes(), signature))
    })
}

/// Paths asked for at once by one call.
const ASKED_AT_ONCE: usize = 64;

/// Rows written in one transaction.
const KEPT_AT_ONCE: usize = 500;

/// How long a publication waits for word of its references.
pub(super) const REFERENCES_PATIENCE: Duration = Duration::from_secs(5);

/// How long a pusher waits who asks for one path.
const PUSHER_PATIENCE: Duration = Duration::from_secs(5);

/// How long a pusher waits who asks for a whole closure in one call.
pub(super) const CLOSURE_PATIENCE: Duration = Duration::from_secs(20);
