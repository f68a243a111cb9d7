//! What is signed by which key, and what signs again, drops and accounts for signatures asks of the rows.
//!
//! Never decides what is signed: it lists, in the order of the log.

mod realisations;

use std::collections::HashMap;

use serde_json::{Value, json};

use super::dialect::{Dialect, json_list, with_json_rows};
use super::{Connection, PageBounds, Result, corrupt, page_sql};
use crate::access::CacheId;
use crate::nix::store_path::StorePathHash;
use crate::time::Timestamp;

pub use realisations::{
    RealisationRow, RealisationsBy, realisation_count, realisation_leaves, realisations, realisations_by,
    remove_realisation, served_realisations, sign_realisation, unsigned_realisation_count,
};

/// A published path that a key has not signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsigned {
    /// The index of a leaf of its signatures.
    pub index: i64,
    pub path_id: String,
    pub hash: StorePathHash,
}

/// The published paths of a cache that a key has not signed, by the leaves of their signatures after `after`, at most
/// `limit` leaves. A path with several comes several times.
pub async fn unsigned(
    connection: &mut Connection,
    cache: CacheId,
    key_name: &str,
    after: i64,
    limit: i64,
) -> Result<Vec<Unsigned>> {
    // CROSS JOIN: SQLite would begin at the paths, and sort all of them for each batch.
    let rows: Vec<(i64, String, String)> = sqlx::query_as(
        "SELECT l.idx, p.id, p.hash FROM log_leaves l CROSS JOIN paths p WHERE p.id = l.path_id \
         AND l.idx > $1 AND l.event IN ('sign', 'resign') AND p.cache_id = $2 AND p.state = 'published' \
         AND NOT EXISTS (SELECT 1 FROM signatures s WHERE s.claim_id = p.claim_id AND s.key_name = $3) \
         ORDER BY l.idx ASC LIMIT $4",
    )
    .bind(after)
    .bind(cache.to_string())
    .bind(key_name)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    let read = |(index, path_id, hash): (i64, String, String)| {
        let hash = hash.parse().map_err(|_| corrupt("paths", "hash", &path_id))?;
        Ok(Unsigned { index, path_id, hash })
    };
    rows.into_iter().map(read).collect()
}

/// The published paths of a cache that a key has not signed, whatever the log knows of them, by their ids after `after`,
/// at most `limit`.
pub async fn lacking(
    connection: &mut Connection,
    cache: CacheId,
    key_name: &str,
    after: &str,
    limit: i64,
) -> Result<Vec<(String, StorePathHash)>> {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "SELECT p.id, p.hash FROM paths p WHERE p.cache_id = $1 AND p.id > $2 AND p.state = 'published' \
         AND NOT EXISTS (SELECT 1 FROM signatures s WHERE s.claim_id = p.claim_id AND s.key_name = $3) \
         ORDER BY p.id ASC LIMIT $4",
    )
    .bind(cache.to_string())
    .bind(after)
    .bind(key_name)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    let read = |(id, hash): (String, String)| {
        let hash = hash.parse().map_err(|_| corrupt("paths", "hash", &id))?;
        Ok((id, hash))
    };
    rows.into_iter().map(read).collect()
}

/// How many published paths of a cache a key has not signed.
pub async fn unsigned_count(connection: &mut Connection, cache: CacheId, key_name: &str) -> Result<i64> {
    let (count,): (i64,) = sqlx::query_as(
        "SELECT COUNT(*) FROM paths p WHERE p.cache_id = $1 AND p.state = 'published' \
         AND NOT EXISTS (SELECT 1 FROM signatures s WHERE s.claim_id = p.claim_id AND s.key_name = $2)",
    )
    .bind(cache.to_string())
    .bind(key_name)
    .fetch_one(connection)
    .await?;
    Ok(count)
}

/// A signature of a key, on whatever claim.
#[derive(Debug, Clone)]
pub struct SignedClaim {
    pub claim_id: String,
    pub path_id: String,
    pub hash: StorePathHash,
    /// Whether the claim is the one that is published at its path.
    pub is_served: bool,
}

/// What a key has signed, in the order of the log, at most `limit`.
pub async fn signed_by(
    connection: &mut Connection,
    cache: CacheId,
    key_name: &str,
    limit: i64,
) -> Result<Vec<SignedClaim>> {
    signed(connection, cache, key_name, "none", limit).await
}

/// The same, without what is withdrawn.
pub async fn signed_by_but_withdrawn(
    connection: &mut Connection,
    cache: CacheId,
    key_name: &str,
    limit: i64,
) -> Result<Vec<SignedClaim>> {
    signed(connection, cache, key_name, "withdrawn", limit).await
}

async fn signed(
    connection: &mut Connection,
    cache: CacheId,
    key_name: &str,
    but: &str,
    limit: i64,
) -> Result<Vec<SignedClaim>> {
    let rows: Vec<(String, String, String, String, String)> = sqlx::query_as(
        "SELECT s.claim_id, p.id, p.hash, p.state, p.claim_id FROM signatures s \
         JOIN claims c ON c.id = s.claim_id JOIN paths p ON p.id = c.path_id \
         WHERE s.key_name = $1 AND p.cache_id = $2 AND p.state <> $3 \
         ORDER BY s.leaf ASC, s.claim_id ASC LIMIT $4",
    )
    .bind(key_name)
    .bind(cache.to_string())
    .bind(but)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    let read = |(claim_id, path_id, hash, state, standing): (String, String, String, String, String)| {
        let hash = hash.parse().map_err(|_| corrupt("paths", "hash", &path_id))?;
        let is_served = state == "published" && standing == claim_id;
        Ok(SignedClaim { claim_id, path_id, hash, is_served })
    };
    rows.into_iter().map(read).collect()
}

/// How many claims of a cache a key has signed.
pub async fn signed_count(connection: &mut Connection, cache: CacheId, key_name: &str) -> Result<i64> {
    let (count,): (i64,) = sqlx::query_as(
        "SELECT COUNT(*) FROM signatures s JOIN claims c ON c.id = s.claim_id \
         JOIN paths p ON p.id = c.path_id WHERE s.key_name = $1 AND p.cache_id = $2",
    )
    .bind(key_name)
    .bind(cache.to_string())
    .fetch_one(connection)
    .await?;
    Ok(count)
}

/// How many published paths of a cache carry the signature of this key, and of no other key of the cache that is to be
/// trusted.
pub async fn signed_alone_count(connection: &mut Connection, cache: CacheId, key_name: &str) -> Result<i64> {
    let (count,): (i64,) = sqlx::query_as(
        "SELECT COUNT(*) FROM signatures s JOIN claims c ON c.id = s.claim_id \
         JOIN paths p ON p.id = c.path_id AND p.claim_id = c.id \
         WHERE s.key_name = $1 AND p.cache_id = $2 AND p.state = 'published' \
         AND NOT EXISTS (SELECT 1 FROM signatures o JOIN signing_keys k ON k.name = o.key_name \
         WHERE o.claim_id = s.claim_id AND o.key_name <> $1 AND k.cache_id = $2 \
         AND k.state NOT IN ('compromised', 'destroyed'))",
    )
    .bind(key_name)
    .bind(cache.to_string())
    .fetch_one(connection)
    .await?;
    Ok(count)
}

/// Takes the signatures of a key off the claims that are not served: with no other one they are not published again.
pub async fn remove_unserved_signatures(
    connection: &mut Connection,
    cache: CacheId,
    key_name: &str,
) -> Result<()> {
    sqlx::query(
        "DELETE FROM signatures WHERE key_name = $2 AND claim_id IN (SELECT c.id FROM claims c \
         JOIN paths p ON p.id = c.path_id WHERE p.cache_id = $1 \
         AND (p.state <> 'published' OR p.claim_id <> c.id))",
    )
    .bind(cache.to_string())
    .bind(key_name)
    .execute(connection)
    .await?;
    Ok(())
}

/// Takes the signatures of a key off these claims.
pub async fn remove_signatures(
    connection: &mut Connection,
    key_name: &str,
    claims: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<()> {
    let statement = Dialect::of(connection).pick(
        "DELETE FROM signatures WHERE key_name = $1 \
         AND claim_id IN (SELECT json_array_elements_text($2::json))",
        "DELETE FROM signatures WHERE key_name = $1 AND claim_id IN (SELECT value FROM json_each($2))",
    );
    sqlx::query(statement).bind(key_name).bind(json_list(claims)).execute(connection).await?;
    Ok(())
}

/// The leaves at these indices.
pub async fn leaves_at(
    connection: &mut Connection,
    indices: impl IntoIterator<Item = i64>,
) -> Result<HashMap<i64, String>> {
    let statement = Dialect::of(connection).pick(
        "SELECT idx, leaf FROM log_leaves \
         WHERE idx IN (SELECT CAST(value AS BIGINT) FROM json_array_elements_text($1::json) AS v (value))",
        "SELECT idx, leaf FROM log_leaves WHERE idx IN (SELECT value FROM json_each($1))",
    );
    let indices: Vec<i64> = indices.into_iter().collect();
    let rows: Vec<(i64, String)> =
        sqlx::query_as(statement).bind(json!(indices).to_string()).fetch_all(connection).await?;
    Ok(rows.into_iter().collect())
}

/// The index of the last leaf that put a signature on each of these paths.
pub async fn last_signatures(
    connection: &mut Connection,
    path_ids: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<HashMap<String, i64>> {
    let statement = Dialect::of(connection).pick(
        "SELECT path_id, MAX(idx) FROM log_leaves WHERE event IN ('sign', 'resign') \
         AND path_id IN (SELECT json_array_elements_text($1::json)) GROUP BY path_id",
        "SELECT path_id, MAX(idx) FROM log_leaves WHERE event IN ('sign', 'resign') \
         AND path_id IN (SELECT value FROM json_each($1)) GROUP BY path_id",
    );
    let rows: Vec<(String, i64)> =
        sqlx::query_as(statement).bind(json_list(path_ids)).fetch_all(connection).await?;
    Ok(rows.into_iter().collect())
}

/// The leaves of signatures on these paths: path and leaf.
pub async fn path_leaves(
    connection: &mut Connection,
    path_ids: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<Vec<(String, String)>> {
    let statement = Dialect::of(connection).pick(
        "SELECT path_id, leaf FROM log_leaves WHERE event IN ('sign', 'resign') \
         AND path_id IN (SELECT json_array_elements_text($1::json))",
        "SELECT path_id, leaf FROM log_leaves WHERE event IN ('sign', 'resign') \
         AND path_id IN (SELECT value FROM json_each($1))",
    );
    Ok(sqlx::query_as(statement).bind(json_list(path_ids)).fetch_all(connection).await?)
}

/// How many narinfos and realisations of a cache that were wanted by this moment still wait for storage.
pub async fn waiting_for_storage(
    connection: &mut Connection,
    cache: CacheId,
    wanted_by: Timestamp,
) -> Result<i64> {
    let (count,): (i64,) = sqlx::query_as(
        "SELECT COUNT(*) FROM outbox WHERE cache_id = $1 AND kind IN ('narinfo', 'realisation') \
         AND enqueued_at <= $2",
    )
    .bind(cache.to_string())
    .bind(wanted_by.0)
    .fetch_one(connection)
    .await?;
    Ok(count)
}

/// A signature under the name of a key of ours that no leaf accounts for.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct UnloggedRow {
    pub id: String,
    pub key_name: String,
    /// `rows` or `storage`.
    pub place: String,
    /// The path's base name, or the object of a realisation.
    pub subject: String,
    /// `name:base64`.
    pub signature: String,
    pub found_at: i64,
}

/// Writes such signatures down, each once.
pub async fn insert_unlogged(
    connection: &mut Connection,
    cache: CacheId,
    rows: &[UnloggedRow],
) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let statement = with_json_rows!(
        connection,
        "INSERT INTO unlogged_signatures (id, cache_id, key_name, place, subject, signature, found_at) \
         SELECT r.value ->> 'id', $2, r.value ->> 'key', r.value ->> 'place', r.value ->> 'subject', \
         r.value ->> 'signature', CAST(r.value ->> 'found_at' AS BIGINT)",
        "$1",
        "WHERE TRUE ON CONFLICT (key_name, place, subject, signature) DO NOTHING"
    );
    let rows = rows.iter().map(|row| {
        json!({
            "id": row.id, "key": row.key_name, "place": row.place, "subject": row.subject,
            "signature": row.signature, "found_at": row.found_at,
        })
    });
    sqlx::query(statement)
        .bind(Value::from(rows.collect::<Vec<_>>()).to_string())
        .bind(cache.to_string())
        .execute(connection)
        .await?;
    Ok(())
}

/// A page of the signatures under a key's name that no leaf accounts for.
pub async fn unlogged(
    connection: &mut Connection,
    cache: CacheId,
    key_name: &str,
    page: &PageBounds,
) -> Result<Vec<UnloggedRow>> {
    let rows = sqlx::query_as(page_sql!(
        page,
        "SELECT id, key_name, place, subject, signature, found_at FROM unlogged_signatures \
         WHERE cache_id = $3 AND key_name = $4 AND",
        "id"
    ))
    .bind(page.after.as_deref())
    .bind(page.limit)
    .bind(cache.to_string())
    .bind(key_name)
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

#[cfg(test)]
mod tests;
