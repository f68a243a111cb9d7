//! Paths that upstreams of a cache hold, as their signatures said when they were asked.
//!
//! A row is a memory, not a proof: whoever relies on one verifies its signature under a key that the cache lists now.

use super::dialect::{Dialect, json_list};
use super::{Connection, Result, corrupt};
use crate::access::CacheId;
use crate::nix::claim::{Claim, parse_references};
use crate::nix::hash::NarHash;
use crate::nix::narinfo::SignedClaim;
use crate::nix::signature::Signature;
use crate::nix::store_path::StorePath;
use crate::time::Timestamp;

/// What an upstream signed, and which one it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamPath {
    /// With exactly one signature.
    pub signed: SignedClaim,
    pub upstream_url: String,
}

/// Keeps what upstreams hold; what is known already stays as it is.
pub async fn keep(
    connection: &mut Connection,
    cache: CacheId,
    path: &UpstreamPath,
    now: Timestamp,
) -> Result<()> {
    let claim = &path.signed.claim;
    for signature in &path.signed.signatures {
        sqlx::query(
            "INSERT INTO upstream_paths (cache_id, hash, store_path, nar_hash, nar_size, refs, upstream_url, \
             key_name, sig, checked_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
             ON CONFLICT (cache_id, hash) DO UPDATE SET store_path = excluded.store_path, \
             nar_hash = excluded.nar_hash, nar_size = excluded.nar_size, refs = excluded.refs, \
             upstream_url = excluded.upstream_url, key_name = excluded.key_name, sig = excluded.sig, \
             checked_at = excluded.checked_at",
        )
        .bind(cache.to_string())
        .bind(claim.path.hash().as_str())
        .bind(claim.path.base_name())
        .bind(claim.nar_hash.base32())
        .bind(i64::try_from(claim.nar_size).unwrap_or(i64::MAX))
        .bind(claim.references_text())
        .bind(&path.upstream_url)
        .bind(signature.name.as_str())
        .bind(&signature.bytes[..])
        .bind(now.0)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// What is known of these paths.
pub async fn among(
    connection: &mut Connection,
    cache: CacheId,
    hashes: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<Vec<UpstreamPath>> {
    let statement = Dialect::of(connection).pick(
        "SELECT store_path, nar_hash, nar_size, refs, upstream_url, key_name, sig FROM upstream_paths \
         WHERE cache_id = $1 AND hash IN (SELECT json_array_elements_text($2::json))",
        "SELECT store_path, nar_hash, nar_size, refs, upstream_url, key_name, sig FROM upstream_paths \
         WHERE cache_id = $1 AND hash IN (SELECT value FROM json_each($2))",
    );
    let rows: Vec<Row> = sqlx::query_as(statement)
        .bind(cache.to_string())
        .bind(json_list(hashes))
        .fetch_all(connection)
        .await?;
    rows.into_iter().map(Row::read).collect()
}

#[derive(sqlx::FromRow)]
struct Row {
    store_path: String,
    nar_hash: String,
    nar_size: i64,
    refs: String,
    upstream_url: String,
    key_name: String,
    sig: Vec<u8>,
}

impl Row {
    fn read(self) -> Result<UpstreamPath> {
        let corrupt = |column| corrupt("upstream_paths", column, &self.store_path);
        let claim = Claim {
            path: StorePath::from_base_name(&self.store_path).map_err(|_| corrupt("store_path"))?,
            nar_hash: NarHash::from_base32(&self.nar_hash).map_err(|_| corrupt("nar_hash"))?,
            nar_size: u64::try_from(self.nar_size).map_err(|_| corrupt("nar_size"))?,
            references: parse_references(&self.refs).map_err(|_| corrupt("refs"))?,
        };
        let name = self.key_name.parse().map_err(|_| corrupt("key_name"))?;
        let bytes = self.sig.as_slice().try_into().map_err(|_| corrupt("sig"))?;
        let signatures = vec![Signature { name, bytes }];
        Ok(UpstreamPath { signed: SignedClaim { claim, signatures }, upstream_url: self.upstream_url })
    }
}
