//! The leaves of the signature log: a gapless index, appended in the business transaction.

use super::dialect::Dialect;
use super::{Connection, Result};
use crate::nix::hash::Sha256Digest;

/// A leaf to append.
#[derive(Debug, Clone)]
pub struct LeafRow {
    /// Its event's name, such as `sign`.
    pub event: String,
    /// The whole text.
    pub leaf: String,
    /// The path that it is about.
    pub path_id: Option<String>,
    /// What its salted hashes stand for: (`detail` or `private`, salt, text).
    pub openings: Vec<(&'static str, [u8; 16], String)>,
    /// The references that did not fit into the leaf, which has their digest: kept for ever by the digest.
    pub long_references: Option<String>,
}

/// Locks the log and gives the index that the next leaf gets. The last lock of any transaction: a
/// serial column would leave gaps when a transaction is rolled back.
pub async fn lock(connection: &mut Connection) -> Result<i64> {
    let statement = Dialect::of(connection).pick(
        "SELECT size FROM log_state WHERE id = 1 FOR UPDATE",
        "SELECT size FROM log_state WHERE id = 1",
    );
    let (size,) = sqlx::query_as(statement).fetch_one(connection).await?;
    Ok(size)
}

/// Appends at `index`, which [`lock`] gave, and answers with the next one.
pub async fn append(connection: &mut Connection, index: i64, row: &LeafRow) -> Result<i64> {
    sqlx::query("INSERT INTO log_leaves (idx, event, leaf, path_id) VALUES ($1, $2, $3, $4)")
        .bind(index)
        .bind(&row.event)
        .bind(&row.leaf)
        .bind(&row.path_id)
        .execute(&mut *connection)
        .await?;
    for (part, salt, text) in &row.openings {
        sqlx::query("INSERT INTO log_openings (idx, part, salt, text) VALUES ($1, $2, $3, $4)")
            .bind(index)
            .bind(part)
            .bind(&salt[..])
            .bind(text)
            .execute(&mut *connection)
            .await?;
    }
    if let Some(references) = &row.long_references {
        let digest = Sha256Digest::of(references.as_bytes()).hex();
        sqlx::query(
            "INSERT INTO log_references (digest, refs) VALUES ($1, $2) ON CONFLICT (digest) DO NOTHING",
        )
        .bind(digest)
        .bind(references)
        .execute(&mut *connection)
        .await?;
    }
    sqlx::query("UPDATE log_state SET size = $1 WHERE id = 1").bind(index + 1).execute(connection).await?;
    Ok(index + 1)
}

/// The index of the last leaf that put a signature on this path.
pub async fn last_signature(connection: &mut Connection, path_id: &str) -> Result<Option<i64>> {
    let (index,): (Option<i64>,) =
        sqlx::query_as("SELECT MAX(idx) FROM log_leaves WHERE path_id = $1 AND event IN ('sign', 'resign')")
            .bind(path_id)
            .fetch_one(connection)
            .await?;
    Ok(index)
}

/// The leaves from `first` on, at most `limit`, in order.
pub async fn leaves(connection: &mut Connection, first: i64, limit: i64) -> Result<Vec<(i64, String)>> {
    let rows = sqlx::query_as("SELECT idx, leaf FROM log_leaves WHERE idx >= $1 ORDER BY idx ASC LIMIT $2")
        .bind(first)
        .bind(limit)
        .fetch_all(connection)
        .await?;
    Ok(rows)
}
