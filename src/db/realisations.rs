//! Build trace entries of content-addressed derivations; write-once.

use super::dialect::{Dialect, json_list};
use super::{Connection, Result};
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

/// Keeps an entry. False: one stands there already.
pub async fn insert(connection: &mut Connection, new: &NewRealisation<'_>) -> Result<bool> {
    let result = sqlx::query(
        "INSERT INTO realisations (id, cache_id, object, output_hash, body, signatures, contributor_id, \
         token_id, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
         ON CONFLICT (cache_id, object) DO NOTHING",
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

/// Body and signatures of an entry whose output path is published.
pub async fn find(
    connection: &mut Connection,
    cache: CacheId,
    object: &str,
) -> Result<Option<(String, String)>> {
    let row = sqlx::query_as(
        "SELECT r.body, r.signatures FROM realisations r \
         JOIN paths p ON p.cache_id = r.cache_id AND p.hash = r.output_hash \
         WHERE r.cache_id = $1 AND r.object = $2 AND p.state = 'published'",
    )
    .bind(cache.to_string())
    .bind(object)
    .fetch_optional(connection)
    .await?;
    Ok(row)
}

/// Of these objects, those of entries whose output path is published.
pub async fn published_among(
    connection: &mut Connection,
    cache: CacheId,
    objects: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<Vec<String>> {
    let statement = Dialect::of(connection).pick(
        "SELECT r.object FROM realisations r \
         JOIN paths p ON p.cache_id = r.cache_id AND p.hash = r.output_hash \
         WHERE r.cache_id = $1 AND p.state = 'published' \
         AND r.object IN (SELECT json_array_elements_text($2::json))",
        "SELECT r.object FROM realisations r \
         JOIN paths p ON p.cache_id = r.cache_id AND p.hash = r.output_hash \
         WHERE r.cache_id = $1 AND p.state = 'published' AND r.object IN (SELECT value FROM json_each($2))",
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
