//! How the queue stands, and notes about what was not pushed.

use serde::Serialize;
use sqlx::{Row as _, Sqlite, Transaction};

use super::{Queue, Result};
use crate::nix::store_path::StorePath;
use crate::time::Timestamp;

/// How a queue stands.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Caches for which something waits.
    pub caches: Vec<CacheStatus>,
    /// The newest first.
    pub notes: Vec<Note>,
}

/// What waits for one cache.
#[derive(Debug, Clone, Serialize)]
pub struct CacheStatus {
    pub cache: String,
    pub waiting: u64,
    /// Those of them that were tried in vain.
    pub failing: u64,
    /// Since when the oldest one waits, RFC 3339.
    pub oldest_at: String,
    /// When the next one is to be tried, RFC 3339.
    pub next_at: String,
    /// Why one was not pushed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Something that was not pushed, and will not be.
#[derive(Debug, Clone, Serialize)]
pub struct Note {
    pub at: String,
    pub cache: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    pub text: String,
}

impl Queue {
    /// How the queue stands, with the newest `notes_max` notes.
    pub async fn status(&self, notes_max: u32) -> Result<Status> {
        let mut connection = self.connection().await;
        let read = async {
            let caches = sqlx::query(
                "SELECT cache, COUNT(*) AS waiting, COUNT(error) AS failing, MIN(added_at) AS oldest_at,
                        MIN(due_at) AS next_at, MAX(error) AS error
                 FROM paths GROUP BY cache ORDER BY cache",
            )
            .fetch_all(&mut *connection)
            .await?;
            let notes = sqlx::query("SELECT cache, path, at, text FROM notes ORDER BY id DESC LIMIT $1")
                .bind(notes_max)
                .fetch_all(&mut *connection)
                .await?;
            let caches = caches.iter().map(|row| {
                let moment = |name| row.try_get(name).map(|millis| Timestamp(millis).rfc3339());
                Ok(CacheStatus {
                    cache: row.try_get("cache")?,
                    waiting: row.try_get::<i64, _>("waiting")?.unsigned_abs(),
                    failing: row.try_get::<i64, _>("failing")?.unsigned_abs(),
                    oldest_at: moment("oldest_at")?,
                    next_at: moment("next_at")?,
                    error: row.try_get("error")?,
                })
            });
            let caches = caches.collect::<sqlx::Result<_>>()?;
            let notes = notes.iter().map(|row| {
                Ok(Note {
                    at: Timestamp(row.try_get("at")?).rfc3339(),
                    cache: row.try_get("cache")?,
                    path: row.try_get("path")?,
                    text: row.try_get("text")?,
                })
            });
            Ok(Status { caches, notes: notes.collect::<sqlx::Result<_>>()? })
        };
        read.await.map_err(|error| self.failed(error))
    }

    /// Writes down something that cannot be pushed.
    pub async fn note(&self, cache: &str, text: &str, now: Timestamp) -> Result<()> {
        self.change(async |transaction| {
            note(transaction, cache, None, text, now).await?;
            forget_old_notes(transaction).await
        })
        .await
    }
}

pub(super) async fn note(
    transaction: &mut Transaction<'_, Sqlite>,
    cache: &str,
    path: Option<&StorePath>,
    text: &str,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO notes (cache, path, at, text) VALUES ($1, $2, $3, $4)")
        .bind(cache)
        .bind(path.map(StorePath::to_string))
        .bind(now.0)
        .bind(shortened(text))
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

pub(super) async fn forget_old_notes(transaction: &mut Transaction<'_, Sqlite>) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM notes WHERE id <= (SELECT MAX(id) FROM notes) - $1")
        .bind(NOTES_MAX)
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

/// A text of bounded length: a server's words are kept with each of thousands of paths.
pub(super) fn shortened(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Notes that are kept: about a week of a bad configuration on a busy builder, below a megabyte.
pub(super) const NOTES_MAX: i64 = 1_000;

/// Longest text that is kept of an error.
const TEXT_BYTES_MAX: usize = 500;
