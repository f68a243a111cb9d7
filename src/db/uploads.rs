//! Uploads in parts that are not complete, and which of their parts are there.
//!
//! A row says what storage keeps, never the other way round: what storage has without a row is swept.

use uuid::Uuid;

use super::{Connection, DbError, Result};
use crate::access::{CacheId, ContributorId};
use crate::nix::compression::Compression;
use crate::nix::hash::{NarHash, Sha256Digest};
use crate::time::Timestamp;

/// What an upload is known by: whoever comes back with the same NAR finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadKey {
    pub cache: CacheId,
    pub contributor: ContributorId,
    pub nar_hash: NarHash,
    pub compression: Compression,
}

/// An upload that is not complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadRow {
    pub id: Uuid,
    pub part_size_bytes: u64,
    /// How the storage calls it.
    pub stage: String,
    /// Whether the file is being verified: then no part changes any more.
    pub closed: bool,
    pub expires_at: Timestamp,
}

/// A part that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartRow {
    pub number: u32,
    pub size_bytes: u64,
    pub sha256: Sha256Digest,
    pub tag: String,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    part_size: i64,
    stage: String,
    closed_at: Option<i64>,
    expires_at: i64,
}

impl Row {
    fn read(self) -> Result<UploadRow> {
        let corrupt = |column| DbError::Corrupt { table: "uploads", column, row: self.id.clone() };
        Ok(UploadRow {
            id: self.id.parse().map_err(|_| corrupt("id"))?,
            part_size_bytes: u64::try_from(self.part_size).map_err(|_| corrupt("part_size"))?,
            closed: self.closed_at.is_some(),
            expires_at: Timestamp(self.expires_at),
            stage: self.stage,
        })
    }
}

/// Writes down an upload that begins. False: this contributor has one of this NAR already.
pub async fn insert(
    connection: &mut Connection,
    key: &UploadKey,
    row: &UploadRow,
    now: Timestamp,
) -> Result<bool> {
    let result = sqlx::query(
        "INSERT INTO uploads (id, cache_id, contributor_id, nar_hash, compression, part_size, stage, \
         created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
         ON CONFLICT (cache_id, contributor_id, nar_hash, compression) DO NOTHING",
    )
    .bind(row.id.to_string())
    .bind(key.cache.to_string())
    .bind(key.contributor.to_string())
    .bind(key.nar_hash.base32())
    .bind(key.compression.label())
    .bind(i64::try_from(row.part_size_bytes).unwrap_or(i64::MAX))
    .bind(&row.stage)
    .bind(now.0)
    .bind(row.expires_at.0)
    .execute(connection)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// How many uploads this contributor has left unfinished.
pub async fn count(connection: &mut Connection, contributor: ContributorId) -> Result<i64> {
    let (count,) = sqlx::query_as("SELECT COUNT(*) FROM uploads WHERE contributor_id = $1")
        .bind(contributor.to_string())
        .fetch_one(connection)
        .await?;
    Ok(count)
}

/// The upload of this NAR, which from now on is kept until `expires_at` at least.
pub async fn resume(
    connection: &mut Connection,
    key: &UploadKey,
    expires_at: Timestamp,
) -> Result<Option<UploadRow>> {
    let row: Option<Row> = sqlx::query_as(
        "UPDATE uploads SET expires_at = $5 WHERE cache_id = $1 AND contributor_id = $2 AND nar_hash = $3 \
         AND compression = $4 RETURNING id, part_size, stage, closed_at, expires_at",
    )
    .bind(key.cache.to_string())
    .bind(key.contributor.to_string())
    .bind(key.nar_hash.base32())
    .bind(key.compression.label())
    .bind(expires_at.0)
    .fetch_optional(connection)
    .await?;
    row.map(Row::read).transpose()
}

/// One upload of this contributor.
pub async fn find(
    connection: &mut Connection,
    cache: CacheId,
    contributor: ContributorId,
    id: Uuid,
) -> Result<Option<UploadRow>> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT id, part_size, stage, closed_at, expires_at FROM uploads \
         WHERE id = $1 AND cache_id = $2 AND contributor_id = $3",
    )
    .bind(id.to_string())
    .bind(cache.to_string())
    .bind(contributor.to_string())
    .fetch_optional(connection)
    .await?;
    row.map(Row::read).transpose()
}

/// Keeps the upload until `expires_at`. False: it is gone, or closed, and takes no part.
pub async fn prolong(connection: &mut Connection, id: Uuid, expires_at: Timestamp) -> Result<bool> {
    let result = sqlx::query("UPDATE uploads SET expires_at = $2 WHERE id = $1 AND closed_at IS NULL")
        .bind(id.to_string())
        .bind(expires_at.0)
        .execute(connection)
        .await?;
    Ok(result.rows_affected() == 1)
}

/// Closes the upload, which may be closed already, and keeps it until `expires_at`. False: it is gone.
pub async fn close(
    connection: &mut Connection,
    id: Uuid,
    now: Timestamp,
    expires_at: Timestamp,
) -> Result<bool> {
    let result =
        sqlx::query("UPDATE uploads SET closed_at = COALESCE(closed_at, $2), expires_at = $3 WHERE id = $1")
            .bind(id.to_string())
            .bind(now.0)
            .bind(expires_at.0)
            .execute(connection)
            .await?;
    Ok(result.rows_affected() == 1)
}

/// Writes down a part, in place of one with this number.
pub async fn put_part(connection: &mut Connection, id: Uuid, part: &PartRow) -> Result<()> {
    sqlx::query(
        "INSERT INTO upload_parts (upload_id, number, size, sha256, tag) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (upload_id, number) DO UPDATE SET size = excluded.size, sha256 = excluded.sha256, \
         tag = excluded.tag",
    )
    .bind(id.to_string())
    .bind(i64::from(part.number))
    .bind(i64::try_from(part.size_bytes).unwrap_or(i64::MAX))
    .bind(part.sha256.hex())
    .bind(&part.tag)
    .execute(connection)
    .await?;
    Ok(())
}

/// The parts that are there, by number.
pub async fn parts(connection: &mut Connection, id: Uuid) -> Result<Vec<PartRow>> {
    let rows: Vec<(i64, i64, String, String)> = sqlx::query_as(
        "SELECT number, size, sha256, tag FROM upload_parts WHERE upload_id = $1 ORDER BY number ASC",
    )
    .bind(id.to_string())
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|(number, size, sha256, tag)| {
            let corrupt =
                |column| DbError::Corrupt { table: "upload_parts", column, row: format!("{id} {number}") };
            Ok(PartRow {
                number: u32::try_from(number).map_err(|_| corrupt("number"))?,
                size_bytes: u64::try_from(size).map_err(|_| corrupt("size"))?,
                sha256: Sha256Digest::from_hex(&sha256).map_err(|_| corrupt("sha256"))?,
                tag,
            })
        })
        .collect()
}

/// Forgets an upload and its parts. False: it was gone.
pub async fn remove(connection: &mut Connection, id: Uuid) -> Result<bool> {
    sqlx::query("DELETE FROM upload_parts WHERE upload_id = $1")
        .bind(id.to_string())
        .execute(&mut *connection)
        .await?;
    let result =
        sqlx::query("DELETE FROM uploads WHERE id = $1").bind(id.to_string()).execute(connection).await?;
    Ok(result.rows_affected() == 1)
}

/// Uploads that are kept no longer than `now`, at most `limit`, the oldest first.
pub async fn expired(connection: &mut Connection, now: Timestamp, limit: i64) -> Result<Vec<UploadRow>> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, part_size, stage, closed_at, expires_at FROM uploads WHERE expires_at <= $1 \
         ORDER BY expires_at ASC LIMIT $2",
    )
    .bind(now.0)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(Row::read).collect()
}

/// Every upload that is known.
pub async fn ids(connection: &mut Connection) -> Result<Vec<Uuid>> {
    let rows: Vec<(String,)> = sqlx::query_as("SELECT id FROM uploads").fetch_all(connection).await?;
    rows.into_iter()
        .map(|(id,)| id.parse().map_err(|_| DbError::Corrupt { table: "uploads", column: "id", row: id }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::Gate;
    use crate::db::testing::{self, NOON, TestDb, on_each_database};

    on_each_database! {
        async fn an_upload_is_found_by_its_nar_until_it_is_removed(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let cache = testing::cache(&mut tx, "main").await.id;
            let contributor = testing::contributor(&mut tx, "alice").await.id;
            let nar_hash = NarHash(Sha256Digest::of(b"nar"));
            let key = UploadKey { cache, contributor, nar_hash, compression: Compression::Zstd };
            let id = Uuid::from_u128(1);
            let row = UploadRow {
                id, part_size_bytes: 5 << 20, stage: "s".into(), closed: false, expires_at: NOON.plus_millis(10),
            };
            assert!(insert(&mut tx, &key, &row, NOON).await.unwrap());
            let second = UploadRow { id: Uuid::from_u128(2), ..row.clone() };
            assert!(!insert(&mut tx, &key, &second, NOON).await.unwrap());
            let other = UploadKey { compression: Compression::Xz, ..key };
            assert_eq!(resume(&mut tx, &other, NOON).await.unwrap(), None);

            let resumed = resume(&mut tx, &key, NOON.plus_millis(20)).await.unwrap().unwrap();

            assert_eq!(resumed, UploadRow { expires_at: NOON.plus_millis(20), ..row });
            assert_eq!(count(&mut tx, contributor).await.unwrap(), 1);
            let part = |number, text: &str| PartRow {
                number, size_bytes: 3, sha256: Sha256Digest::of(text.as_bytes()), tag: text.to_owned(),
            };
            for part in [part(2, "b"), part(1, "a"), part(2, "c")] {
                put_part(&mut tx, id, &part).await.unwrap();
            }
            assert_eq!(parts(&mut tx, id).await.unwrap(), [part(1, "a"), part(2, "c")]);
            assert!(prolong(&mut tx, id, NOON.plus_millis(30)).await.unwrap());
            assert!(close(&mut tx, id, NOON, NOON.plus_millis(40)).await.unwrap());
            assert!(!prolong(&mut tx, id, NOON.plus_millis(50)).await.unwrap());
            assert!(expired(&mut tx, NOON.plus_millis(39), 10).await.unwrap().is_empty());
            assert_eq!(expired(&mut tx, NOON.plus_millis(40), 10).await.unwrap()[0].id, id);
            assert_eq!(ids(&mut tx).await.unwrap(), [id]);
            assert!(remove(&mut tx, id).await.unwrap() && !remove(&mut tx, id).await.unwrap());
            assert_eq!(find(&mut tx, cache, contributor, id).await.unwrap(), None);
        }
    }
}
