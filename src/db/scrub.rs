//! What rows say that storage and the log have to bear out: published paths in order, and signatures by their leaves.
//!
//! Never changes a row.

use super::paths::{PathRow, find};
use super::{Connection, Result, corrupt};
use crate::access::CacheId;
use crate::nix::store_path::StorePathHash;

/// A signature of a standing claim, by the leaf that accounts for it.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct LeafSignatureRow {
    pub leaf: i64,
    pub key_name: String,
    pub sig: Vec<u8>,
    /// The cache's name.
    pub cache: String,
    /// The base name.
    pub store_path: String,
    /// Base 32, without the algorithm.
    pub nar_hash: String,
    pub nar_size: i64,
    /// Base names, separated by spaces.
    pub refs: String,
}

/// A published path, and its cache.
#[derive(Debug, Clone)]
pub struct PublishedRow {
    pub cache: CacheId,
    pub path: PathRow,
}

/// Published paths after the one of id `after`, at most `limit`, by age.
pub async fn published(connection: &mut Connection, after: &str, limit: i64) -> Result<Vec<PublishedRow>> {
    let rows: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT id, cache_id, hash FROM paths WHERE state = 'published' AND id > $1 ORDER BY id ASC LIMIT $2",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(&mut *connection)
    .await?;
    let mut found = Vec::with_capacity(rows.len());
    for (id, cache, hash) in rows {
        let cache: CacheId = cache.parse().map_err(|_| corrupt("paths", "cache_id", &id))?;
        let hash: StorePathHash = hash.parse().map_err(|_| corrupt("paths", "hash", &id))?;
        found.extend(find(connection, cache, hash).await?.map(|path| PublishedRow { cache, path }));
    }
    Ok(found)
}

/// Signatures of published paths whose leaf is one of the `count` from `first` on, in their order.
pub async fn signatures(
    connection: &mut Connection,
    first: i64,
    count: i64,
) -> Result<Vec<LeafSignatureRow>> {
    let rows = sqlx::query_as(
        "SELECT s.leaf, s.key_name, s.sig, k.name AS cache, c.store_path, c.nar_hash, c.nar_size, c.refs \
         FROM signatures s JOIN claims c ON c.id = s.claim_id \
         JOIN paths p ON p.claim_id = s.claim_id AND p.state = 'published' JOIN caches k ON k.id = p.cache_id \
         WHERE s.leaf >= $1 AND s.leaf < $2 ORDER BY s.leaf ASC",
    )
    .bind(first)
    .bind(first.saturating_add(count))
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Those of the `count` leaves from `first` on that signed a path which is published, but by a signature that is not
/// there: neither theirs nor a later one.
pub async fn lost_signatures(connection: &mut Connection, first: i64, count: i64) -> Result<Vec<i64>> {
    let rows: Vec<(i64,)> = sqlx::query_as(
        "SELECT l.idx FROM log_leaves l JOIN paths p ON p.id = l.path_id AND p.state = 'published' \
         WHERE l.idx >= $1 AND l.idx < $2 AND l.event IN ('sign', 'resign') AND NOT EXISTS \
         (SELECT 1 FROM signatures s WHERE s.claim_id = p.claim_id AND s.leaf >= l.idx) ORDER BY l.idx ASC",
    )
    .bind(first)
    .bind(first.saturating_add(count))
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(index,)| index).collect())
}
