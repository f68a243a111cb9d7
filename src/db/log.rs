//! The leaves of the signature log: a gapless index, appended in the business transaction.

use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use super::dialect::{Dialect, with_json_rows};
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
    append_all(connection, index, std::slice::from_ref(row)).await
}

/// Appends from `index` on, which [`lock`] gave, and answers with the next one.
pub async fn append_all(connection: &mut Connection, index: i64, rows: &[LeafRow]) -> Result<i64> {
    let numbered = || (index..).zip(rows);
    let leaves = numbered().map(
        |(index, row)| json!({ "idx": index, "event": row.event, "leaf": row.leaf, "path_id": row.path_id }),
    );
    let statement = with_json_rows!(
        connection,
        "INSERT INTO log_leaves (idx, event, leaf, path_id) SELECT CAST(r.value ->> 'idx' AS BIGINT), \
         r.value ->> 'event', r.value ->> 'leaf', r.value ->> 'path_id'",
        "$1",
        ""
    );
    let leaves = Value::from(leaves.collect::<Vec<_>>()).to_string();
    sqlx::query(statement).bind(leaves).execute(&mut *connection).await?;
    let openings = numbered().flat_map(|(index, row)| {
        row.openings.iter().map(move |(part, salt, text)| {
            json!({ "idx": index, "part": part, "salt": HEXLOWER.encode(salt), "text": text })
        })
    });
    let openings: Vec<_> = openings.collect();
    if !openings.is_empty() {
        let statement = Dialect::of(connection).pick(
            "INSERT INTO log_openings (idx, part, salt, text) SELECT CAST(r.value ->> 'idx' AS BIGINT), \
             r.value ->> 'part', decode(r.value ->> 'salt', 'hex'), r.value ->> 'text' \
             FROM json_array_elements($1::json) AS r (value)",
            "INSERT INTO log_openings (idx, part, salt, text) SELECT CAST(r.value ->> 'idx' AS BIGINT), \
             r.value ->> 'part', unhex(r.value ->> 'salt'), r.value ->> 'text' FROM json_each($1) AS r",
        );
        sqlx::query(statement).bind(Value::from(openings).to_string()).execute(&mut *connection).await?;
    }
    for references in rows.iter().filter_map(|row| row.long_references.as_ref()) {
        let digest = Sha256Digest::of(references.as_bytes()).hex();
        sqlx::query(
            "INSERT INTO log_references (digest, refs) VALUES ($1, $2) ON CONFLICT (digest) DO NOTHING",
        )
        .bind(digest)
        .bind(references)
        .execute(&mut *connection)
        .await?;
    }
    let next = index + i64::try_from(rows.len()).unwrap_or(i64::MAX);
    sqlx::query("UPDATE log_state SET size = $1 WHERE id = 1").bind(next).execute(connection).await?;
    Ok(next)
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
