//! What a watch of a store has dealt with, so that it goes on after a restart and takes each path once.

use std::collections::HashSet;

use super::{Queue, Result};
use crate::nix::store_path::{StorePath, StorePathHash};
use crate::time::Timestamp;

impl Queue {
    /// What the watch has dealt with; `None` if it never ran.
    pub async fn seen(&self, watch: &str) -> Result<Option<HashSet<StorePathHash>>> {
        let mut connection = self.connection().await;
        let read = async {
            let since: Option<i64> = sqlx::query_scalar("SELECT since FROM watches WHERE watch = $1")
                .bind(watch)
                .fetch_optional(&mut *connection)
                .await?;
            if since.is_none() {
                return Ok(None);
            }
            let hashes: Vec<String> = sqlx::query_scalar("SELECT hash FROM watched WHERE watch = $1")
                .bind(watch)
                .fetch_all(&mut *connection)
                .await?;
            let hashes = hashes.iter().map(|text| text.parse());
            let hashes: std::result::Result<_, crate::nix::store_path::ParseStorePathError> =
                hashes.collect();
            hashes.map(Some).map_err(|error| sqlx::Error::Decode(error.into()))
        };
        read.await.map_err(|error| self.failed(error))
    }

    /// The watch begins: what is there is dealt with, and nothing is added.
    pub async fn begin_watch(
        &self,
        watch: &str,
        present: &HashSet<StorePathHash>,
        now: Timestamp,
    ) -> Result<()> {
        self.change(async |transaction| {
            sqlx::query("DELETE FROM watched WHERE watch = $1")
                .bind(watch)
                .execute(&mut **transaction)
                .await?;
            sqlx::query("INSERT OR REPLACE INTO watches (watch, since) VALUES ($1, $2)")
                .bind(watch)
                .bind(now.0)
                .execute(&mut **transaction)
                .await?;
            for hash in present {
                sqlx::query("INSERT INTO watched (watch, hash) VALUES ($1, $2)")
                    .bind(watch)
                    .bind(hash.as_str())
                    .execute(&mut **transaction)
                    .await?;
            }
            Ok(())
        })
        .await
    }

    /// Adds the new paths that are to be `pushed` and remembers all `new` ones, in one transaction: each is added
    /// once, whenever the process dies. What is `gone` is forgotten; it is new when it comes back.
    pub async fn observe(
        &self,
        watch: &str,
        cache: &str,
        new: &[StorePathHash],
        pushed: &[StorePath],
        gone: &[StorePathHash],
        now: Timestamp,
    ) -> Result<()> {
        self.change(async |transaction| {
            super::paths::add(transaction, cache, pushed, now).await?;
            for hash in new {
                sqlx::query("INSERT OR IGNORE INTO watched (watch, hash) VALUES ($1, $2)")
                    .bind(watch)
                    .bind(hash.as_str())
                    .execute(&mut **transaction)
                    .await?;
            }
            for hash in gone {
                sqlx::query("DELETE FROM watched WHERE watch = $1 AND hash = $2")
                    .bind(watch)
                    .bind(hash.as_str())
                    .execute(&mut **transaction)
                    .await?;
            }
            Ok(())
        })
        .await
    }
}
