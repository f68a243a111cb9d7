//! Realisations that are signed again: which ones, what the log has of them, and what takes their signatures' place.

use crate::access::CacheId;
use crate::db::dialect::{Dialect, json_list};
use crate::db::realisations::served_sql;
use crate::db::{Connection, Result};

/// The leaves of realisations whose outputs are these paths: path and leaf.
pub async fn realisation_leaves(
    connection: &mut Connection,
    path_ids: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<Vec<(String, String)>> {
    let statement = Dialect::of(connection).pick(
        "SELECT path_id, leaf FROM log_leaves WHERE event = 'realisation' \
         AND path_id IN (SELECT json_array_elements_text($1::json))",
        "SELECT path_id, leaf FROM log_leaves WHERE event = 'realisation' \
         AND path_id IN (SELECT value FROM json_each($1))",
    );
    Ok(sqlx::query_as(statement).bind(json_list(path_ids)).fetch_all(connection).await?)
}

/// A realisation, as it is signed.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct RealisationRow {
    pub id: String,
    pub object: String,
    /// The hash of its output's path.
    pub output_hash: String,
    pub body: String,
    /// `name:base64`, separated by spaces.
    pub signatures: String,
    /// The quarantine that voids it.
    pub void_by: Option<String>,
}

/// Realisations of a cache after the id `after`, at most `limit`, oldest first.
pub async fn realisations(
    connection: &mut Connection,
    cache: CacheId,
    after: &str,
    limit: i64,
) -> Result<Vec<RealisationRow>> {
    let rows = sqlx::query_as(
        "SELECT id, object, output_hash, body, signatures, void_by FROM realisations \
         WHERE cache_id = $1 AND id > $2 ORDER BY id ASC LIMIT $3",
    )
    .bind(cache.to_string())
    .bind(after)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Which realisations are asked for.
#[derive(Debug, Clone, Copy)]
pub struct RealisationsBy<'a> {
    pub key_name: &'a str,
    /// Whether the key has signed them.
    pub signed: bool,
    /// Whether they are served: they count, and their outputs are published.
    pub served: bool,
}

/// Those of a cache's realisations after the id `after`, at most `limit`, oldest first.
pub async fn realisations_by(
    connection: &mut Connection,
    cache: CacheId,
    asked: RealisationsBy<'_>,
    after: &str,
    limit: i64,
) -> Result<Vec<RealisationRow>> {
    macro_rules! select {
        ($position:literal) => {
            concat!(
                "SELECT r.id, r.object, r.output_hash, r.body, r.signatures, r.void_by FROM realisations r \
                 WHERE r.cache_id = $1 AND r.id > $2 AND CASE WHEN ",
                $position,
                "(' ' || r.signatures, $3) > 0 THEN 1 ELSE 0 END = $4 \
                 AND CASE WHEN r.void_by IS NULL AND EXISTS (SELECT 1 FROM paths p \
                 WHERE p.cache_id = r.cache_id AND p.hash = r.output_hash AND p.state = 'published') \
                 THEN 1 ELSE 0 END = $5 ORDER BY r.id ASC LIMIT $6"
            )
        };
    }
    let statement = Dialect::of(connection).pick(select!("strpos"), select!("instr"));
    let rows = sqlx::query_as(statement)
        .bind(cache.to_string())
        .bind(after)
        .bind(format!(" {}:", asked.key_name))
        .bind(i64::from(asked.signed))
        .bind(i64::from(asked.served))
        .bind(limit)
        .fetch_all(connection)
        .await?;
    Ok(rows)
}

/// How many realisations that are served a key has not signed.
pub async fn unsigned_realisation_count(
    connection: &mut Connection,
    cache: CacheId,
    key_name: &str,
) -> Result<i64> {
    let statement = Dialect::of(connection).pick(
        served_sql!("COUNT(*)", "strpos(' ' || r.signatures, $2) = 0"),
        served_sql!("COUNT(*)", "instr(' ' || r.signatures, $2) = 0"),
    );
    let (count,): (i64,) = sqlx::query_as(statement)
        .bind(cache.to_string())
        .bind(format!(" {key_name}:"))
        .fetch_one(connection)
        .await?;
    Ok(count)
}

/// Those of these objects that are realisations which are served.
pub async fn served_realisations(
    connection: &mut Connection,
    cache: CacheId,
    objects: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<Vec<RealisationRow>> {
    macro_rules! served {
        ($objects:literal) => {
            served_sql!(
                "r.id, r.object, r.output_hash, r.body, r.signatures, r.void_by",
                "r.object IN (",
                $objects,
                ")"
            )
        };
    }
    let statement = Dialect::of(connection).pick(
        served!("SELECT json_array_elements_text($2::json)"),
        served!("SELECT value FROM json_each($2)"),
    );
    let rows = sqlx::query_as(statement)
        .bind(cache.to_string())
        .bind(json_list(objects))
        .fetch_all(connection)
        .await?;
    Ok(rows)
}

/// How many realisations a cache has.
pub async fn realisation_count(connection: &mut Connection, cache: CacheId) -> Result<i64> {
    let (count,): (i64,) = sqlx::query_as("SELECT COUNT(*) FROM realisations WHERE cache_id = $1")
        .bind(cache.to_string())
        .fetch_one(connection)
        .await?;
    Ok(count)
}

/// Puts other signatures on a realisation. False: it was removed, or somebody else has just done so.
pub async fn sign_realisation(
    connection: &mut Connection,
    row: &RealisationRow,
    signatures: &str,
) -> Result<bool> {
    let result = sqlx::query("UPDATE realisations SET signatures = $2 WHERE id = $1 AND signatures = $3")
        .bind(&row.id)
        .bind(signatures)
        .bind(&row.signatures)
        .execute(connection)
        .await?;
    Ok(result.rows_affected() == 1)
}

/// Removes a realisation.
pub async fn remove_realisation(connection: &mut Connection, id: &str) -> Result<()> {
    sqlx::query("DELETE FROM realisations WHERE id = $1").bind(id).execute(connection).await?;
    Ok(())
}
