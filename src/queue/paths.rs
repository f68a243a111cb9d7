//! Paths that wait: added by hooks and watches, taken out once they are pushed or can never be.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, Sqlite, Transaction};

use super::{Queue, Result};
use crate::nix::store_path::StorePath;
use crate::time::Timestamp;

/// A path that waits for a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    id: i64,
    /// As it was when the entry was read.
    generation: i64,
    pub cache: String,
    pub path: StorePath,
    pub added_at: Timestamp,
    /// How often it was tried in vain.
    pub attempts: u32,
}

impl Queue {
    /// Adds paths, in their order. One that waits already is not added twice, but is tried again at once.
    pub async fn add(&self, cache: &str, paths: &[StorePath], now: Timestamp) -> Result<()> {
        self.change(async |transaction| add(transaction, cache, paths, now).await).await
    }

    /// What is to be tried now: the oldest of one cache, at most `limit`. Without a `cache`, of the one that has the
    /// oldest.
    pub async fn due(&self, cache: Option<&str>, now: Timestamp, limit: usize) -> Result<Vec<Entry>> {
        let rows = sqlx::query(
            "SELECT id, generation, cache, path, added_at, attempts FROM paths
             WHERE due_at <= $1 AND cache = COALESCE(
                 $2, (SELECT cache FROM paths WHERE due_at <= $1 ORDER BY id LIMIT 1))
             ORDER BY id LIMIT $3",
        )
        .bind(now.0)
        .bind(cache)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&mut *self.connection().await)
        .await;
        let entries = rows.and_then(|rows| rows.iter().map(entry).collect());
        entries.map_err(|error| self.failed(error))
    }

    /// How many paths wait, and when the first of them is to be tried.
    pub async fn waiting(&self, cache: Option<&str>) -> Result<(u64, Option<Timestamp>)> {
        let found: sqlx::Result<(i64, Option<i64>)> =
            sqlx::query_as("SELECT COUNT(*), MIN(due_at) FROM paths WHERE cache = COALESCE($1, cache)")
                .bind(cache)
                .fetch_one(&mut *self.connection().await)
                .await;
        let (count, due_at) = found.map_err(|error| self.failed(error))?;
        Ok((count.unsigned_abs(), due_at.map(Timestamp)))
    }

    /// These are in the cache. One that was added again meanwhile stays.
    pub async fn pushed(&self, entries: &[Entry]) -> Result<()> {
        self.change(async |transaction| {
            for entry in entries {
                remove(transaction, entry).await?;
            }
            Ok(())
        })
        .await
    }

    /// These will never be pushed; a note keeps why.
    pub async fn dropped(&self, entries: &[Entry], why: &str, now: Timestamp) -> Result<()> {
        self.change(async |transaction| {
            for entry in entries {
                if remove(transaction, entry).await? {
                    super::status::note(transaction, &entry.cache, Some(&entry.path), why, now).await?;
                }
            }
            super::status::forget_old_notes(transaction).await
        })
        .await
    }

    /// This path failed by itself: it is tried again at `due_at`.
    pub async fn postpone(&self, entry: &Entry, error: &str, due_at: Timestamp) -> Result<()> {
        self.change(async |transaction| failed(transaction, entry, error, due_at).await).await
    }

    /// The cache could not be pushed to: `tried`, and whatever else waits for it, is tried again at `due_at`.
    pub async fn postpone_cache(
        &self,
        cache: &str,
        tried: &[Entry],
        error: &str,
        due_at: Timestamp,
    ) -> Result<()> {
        self.change(async |transaction| {
            for entry in tried {
                failed(transaction, entry, error, due_at).await?;
            }
            sqlx::query("UPDATE paths SET due_at = MAX(due_at, $1) WHERE cache = $2")
                .bind(due_at.0)
                .bind(cache)
                .execute(&mut **transaction)
                .await?;
            Ok(())
        })
        .await
    }

    /// Whatever waits is to be tried now.
    pub async fn hurry(&self, cache: Option<&str>, now: Timestamp) -> Result<()> {
        self.change(async |transaction| {
            sqlx::query("UPDATE paths SET due_at = $1 WHERE due_at > $1 AND cache = COALESCE($2, cache)")
                .bind(now.0)
                .bind(cache)
                .execute(&mut **transaction)
                .await?;
            Ok(())
        })
        .await
    }
}

pub(super) async fn add(
    transaction: &mut Transaction<'_, Sqlite>,
    cache: &str,
    paths: &[StorePath],
    now: Timestamp,
) -> sqlx::Result<()> {
    for path in paths {
        sqlx::query(
            "INSERT INTO paths (cache, path, added_at, due_at) VALUES ($1, $2, $3, $3)
             ON CONFLICT (cache, path) DO UPDATE SET generation = generation + 1, due_at = excluded.due_at",
        )
        .bind(cache)
        .bind(path.base_name())
        .bind(now.0)
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

/// Whether the entry was there, unchanged.
async fn remove(transaction: &mut Transaction<'_, Sqlite>, entry: &Entry) -> sqlx::Result<bool> {
    let removed = sqlx::query("DELETE FROM paths WHERE id = $1 AND generation = $2")
        .bind(entry.id)
        .bind(entry.generation)
        .execute(&mut **transaction)
        .await?;
    Ok(removed.rows_affected() == 1)
}

async fn failed(
    transaction: &mut Transaction<'_, Sqlite>,
    entry: &Entry,
    error: &str,
    due_at: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query("UPDATE paths SET attempts = attempts + 1, error = $1, due_at = $2 WHERE id = $3")
        .bind(super::status::shortened(error))
        .bind(due_at.0)
        .bind(entry.id)
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

fn entry(row: &SqliteRow) -> sqlx::Result<Entry> {
    let text: String = row.try_get("path")?;
    let path = StorePath::from_base_name(&text).map_err(|error| sqlx::Error::Decode(error.into()))?;
    let attempts: i64 = row.try_get("attempts")?;
    Ok(Entry {
        id: row.try_get("id")?,
        generation: row.try_get("generation")?,
        cache: row.try_get("cache")?,
        path,
        added_at: Timestamp(row.try_get("added_at")?),
        attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
    })
}
