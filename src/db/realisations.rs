//! Build trace entries of content-addressed derivations; write-once.

use super::dialect::{Dialect, json_list};
use super::quarantines::QuarantineRow;
use super::{Connection, Result, corrupt};
use crate::access::{CacheId, ContributorId, TokenId};
use crate::time::Timestamp;

/// An entry to keep.
#[derive(Debug)]
pub struct NewRealisation<'a> {
    pub id: String,
    pub cache: CacheId,
    /// The object's name below the cache, such as `realisations/sha256:…!out.doi`.
    pub object: &'a str,
    pub output_hash: &'a str,
    /// The JSON without signatures.
    pub body: &'a str,
    /// `name:base64`, separated by spaces.
    pub signatures: &'a str,
    pub contributor: ContributorId,
    pub token: TokenId,
    pub now: Timestamp,
}

/// Keeps an entry, in place of one that a quarantine voids. False: one stands there already.
pub async fn insert(connection: &mut Connection, new: &NewRealisation<'_>) -> Result<bool> {
    let result = sqlx::query(
        "INSERT INTO realisations (id, cache_id, object, output_hash, body, signatures, contributor_id, \
         token_id, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
         ON CONFLICT (cache_id, object) DO UPDATE SET id = excluded.id, output_hash = excluded.output_hash, \
         body = excluded.body, signatures = excluded.signatures, contributor_id = excluded.contributor_id, \
         token_id = excluded.token_id, created_at = excluded.created_at, void_by = NULL \
         WHERE realisations.void_by IS NOT NULL",
    )
    .bind(&new.id)
    .bind(new.cache.to_string())
    .bind(new.object)
    .bind(new.output_hash)
    .bind(new.body)
    .bind(new.signatures)
    .bind(new.contributor.to_string())
    .bind(new.token.to_string())
    .bind(new.now.0)
    .execute(connection)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Entries that are served: they count, and their output path is published. `$1` is the cache.
macro_rules! served_sql {
    ($columns:literal, $($and:literal),+) => {
        concat!(
            "SELECT ",
            $columns,
            " FROM realisations r JOIN paths p ON p.cache_id = r.cache_id AND p.hash = r.output_hash \
             WHERE r.cache_id = $1 AND r.void_by IS NULL AND p.state = 'published' AND ",
            $($and),+
        )
    };
}
pub(super) use served_sql;

/// Body and signatures of an entry that counts and whose output path is published.
pub async fn find(
    connection: &mut Connection,
    cache: CacheId,
    object: &str,
) -> Result<Option<(String, String)>> {
    let query = sqlx::query_as(served_sql!("r.body, r.signatures", "r.object = $2"));
    Ok(query.bind(cache.to_string()).bind(object).fetch_optional(connection).await?)
}

/// Of these objects, those of entries that count and whose output path is published.
pub async fn published_among(
    connection: &mut Connection,
    cache: CacheId,
    objects: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<Vec<String>> {
    let statement = Dialect::of(connection).pick(
        served_sql!("r.object", "r.object IN (SELECT json_array_elements_text($2::json))"),
        served_sql!("r.object", "r.object IN (SELECT value FROM json_each($2))"),
    );
    let rows: Vec<(String,)> = sqlx::query_as(statement)
        .bind(cache.to_string())
        .bind(json_list(objects))
        .fetch_all(connection)
        .await?;
    Ok(rows.into_iter().map(|(object,)| object).collect())
}

/// Removes the entries whose output is this path: the objects that stood.
pub async fn remove(connection: &mut Connection, cache: CacheId, output_hash: &str) -> Result<Vec<String>> {
    let rows: Vec<(String,)> =
        sqlx::query_as("DELETE FROM realisations WHERE cache_id = $1 AND output_hash = $2 RETURNING object")
            .bind(cache.to_string())
            .bind(output_hash)
            .fetch_all(connection)
            .await?;
    Ok(rows.into_iter().map(|(object,)| object).collect())
}

/// The objects of the entries that count and whose outputs are these paths.
pub async fn of_outputs(
    connection: &mut Connection,
    cache: CacheId,
    output_hashes: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<Vec<String>> {
    let statement = Dialect::of(connection).pick(
        "SELECT object FROM realisations WHERE cache_id = $1 AND void_by IS NULL \
         AND output_hash IN (SELECT json_array_elements_text($2::json))",
        "SELECT object FROM realisations WHERE cache_id = $1 AND void_by IS NULL \
         AND output_hash IN (SELECT value FROM json_each($2))",
    );
    let rows: Vec<(String,)> = sqlx::query_as(statement)
        .bind(cache.to_string())
        .bind(json_list(output_hashes))
        .fetch_all(connection)
        .await?;
    Ok(rows.into_iter().map(|(object,)| object).collect())
}

/// Voids up to `limit` entries within a quarantine: the cache and object of each.
pub async fn void(
    connection: &mut Connection,
    quarantine: &QuarantineRow,
    limit: i64,
) -> Result<Vec<(CacheId, String)>> {
    // As with evidence: what was pushed with a token that lives came after the quarantine had begun.
    let rows: Vec<(String, String)> = sqlx::query_as(
        "WITH RECURSIVE family (id) AS (SELECT id FROM tokens WHERE contributor_id = $2 OR id = $2 \
         UNION SELECT t.id FROM tokens t JOIN family f ON t.issued_by = f.id WHERE CAST($3 AS BIGINT) = 0) \
         UPDATE realisations SET void_by = $1 WHERE id IN (SELECT r.id FROM realisations r \
         JOIN tokens t ON t.id = r.token_id WHERE t.revoked_at IS NOT NULL AND r.void_by IS NULL \
         AND r.created_at >= $4 AND (r.contributor_id = $2 OR r.token_id IN (SELECT id FROM family)) LIMIT $5) \
         RETURNING cache_id, object",
    )
    .bind(&quarantine.id)
    .bind(quarantine.subject.id())
    .bind(i64::from(quarantine.keep_issued))
    .bind(quarantine.since.0)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    read_places(rows)
}

/// Ends what a quarantine did to up to `limit` entries, unless another one that stands is about the same contributor
/// or token: the cache and object of each.
pub async fn clear(
    connection: &mut Connection,
    quarantine: &str,
    limit: i64,
) -> Result<Vec<(CacheId, String)>> {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "UPDATE realisations SET void_by = (SELECT MIN(q.id) FROM quarantines q WHERE q.restored_at IS NULL \
         AND q.restoring_at IS NULL AND q.id <> $1 AND q.since <= realisations.created_at \
         AND q.subject_id IN (realisations.contributor_id, realisations.token_id)) \
         WHERE id IN (SELECT id FROM realisations WHERE void_by = $1 LIMIT $2) RETURNING cache_id, object",
    )
    .bind(quarantine)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    read_places(rows)
}

fn read_places(rows: Vec<(String, String)>) -> Result<Vec<(CacheId, String)>> {
    let read = |(cache, object): (String, String)| match cache.parse() {
        Ok(cache) => Ok((cache, object)),
        Err(_) => Err(corrupt("realisations", "cache_id", &object)),
    };
    rows.into_iter().map(read).collect()
}
