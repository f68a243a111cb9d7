//! Backups to storage, each made by one replica when it is due; the oldest go when there are too many.
//!
//! Never removes one before a newer one is there, and never while the database is older than what was published from it:
//! then the worker does not run.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{BackupError, BackupTarget};
use crate::db::backup_schedule::{self, BackupRow};
use crate::db::{Gate, restarting};
use crate::service::{Call, Error, Result, Service};
use crate::storage::{Folder, Object, ObjectKey, Storage, StorageError};
use crate::time::Timestamp;

/// How often, and how many stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupSchedule {
    pub every: Duration,
    /// At least one.
    pub keep: usize,
}

/// A backup in storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBackup {
    /// How [`stored_backup`] finds it.
    pub name: String,
    /// When it was begun.
    pub made_at: Timestamp,
    pub size_bytes: u64,
}

/// The backups in storage, oldest first.
pub async fn list_backups(storage: &Storage) -> std::result::Result<Vec<StoredBackup>, StorageError> {
    let mut found = Vec::new();
    let mut entries = storage.list(&Folder::Backups);
    while let Some(entry) = entries.try_next().await? {
        let Some(ObjectKey::Backup(id)) = entry.key() else { continue };
        let (seconds, nanos) = id.get_timestamp().map(|moment| moment.to_unix()).unwrap_or_default();
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        let made_at = Timestamp(seconds.saturating_mul(1000)).plus_millis(i64::from(nanos / 1_000_000));
        found.push(StoredBackup { name: name(id), made_at, size_bytes: entry.size_bytes });
    }
    // Names begin with the time.
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// Opens a backup in storage by its name; `None`: there is none of that name.
pub async fn stored_backup(
    storage: &Storage,
    name: &str,
) -> std::result::Result<Option<Object>, StorageError> {
    match Uuid::try_parse(name) {
        Ok(id) => storage.get(&ObjectKey::Backup(id), None).await,
        Err(_) => Ok(None),
    }
}

impl Service {
    /// Makes backups when they are due, until `stop`.
    pub(in crate::service) async fn backup_worker(self, stop: CancellationToken) {
        if self.inner.backups.is_none() {
            return;
        }
        loop {
            let made = tokio::select! {
                () = stop.cancelled() => break,
                made = self.back_up_if_due() => made,
            };
            let pause = match made {
                Ok(_) => PAUSE,
                Err(error) => {
                    metrics::counter!("narvault_backup_failures_total").increment(1);
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "no backup was made; it is tried again in some minutes");
                    RETRY_PAUSE
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        // One that was under way is another replica's now, or the next start's.
        self.release_backup().await;
    }

    /// Makes a backup if one is due and no other replica is at it: whether it did. A sealed replica leaves it to an open
    /// one.
    pub(super) async fn back_up_if_due(&self) -> std::result::Result<bool, BackupError> {
        let Some(schedule) = self.inner.backups.filter(|_| self.is_open()) else { return Ok(false) };
        let now = self.inner.clock.now();
        let due = now.plus_millis(-millis(schedule.every));
        if !self.lease_backup(due, now).await? {
            return Ok(false);
        }
        let made = match self.store_backup(now).await {
            Ok(made) => made,
            Err(error) => {
                self.release_backup().await;
                return Err(error);
            }
        };
        self.finish_backup(&made).await?;
        tracing::info!(backup.name = made.name, backup.size_bytes = made.size_bytes, "backup made");
        if let Err(error) = self.remove_old_backups(schedule.keep, &made).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "old backups were not removed");
        }
        Ok(true)
    }

    /// When the newest backup to storage was begun; `None` before the first.
    pub async fn newest_backup(&self) -> Result<Option<Timestamp>> {
        let newest = backup_schedule::newest(&mut *self.inner.db.read().await?).await?;
        Ok(newest.map(|row| row.made_at))
    }

    async fn store_backup(&self, now: Timestamp) -> std::result::Result<BackupRow, BackupError> {
        let id: Uuid = self.new_id(now).parse().map_err(|error| Error::Internal(Box::new(error)))?;
        let upload = self.inner.storage.upload(&ObjectKey::Backup(id)).await?;
        let (target, written) = self.back_up(&Call::host(), None, BackupTarget::Object(upload)).await?;
        if let BackupTarget::Object(upload) = target {
            upload.seal().await?.complete().await?;
        }
        let size_bytes = i64::try_from(written.size_bytes).unwrap_or(i64::MAX);
        Ok(BackupRow { made_at: now, name: name(id), size_bytes })
    }

    async fn lease_backup(&self, due: Timestamp, now: Timestamp) -> Result<bool> {
        restarting(|| async {
            let mut tx = self.inner.db.begin(Gate::Around).await?;
            let until = now.plus_millis(millis(LEASE));
            let leased = backup_schedule::lease(&mut tx, self.replica(), due, now, until).await?;
            tx.commit().await?;
            Ok::<_, Error>(leased)
        })
        .await
    }

    async fn finish_backup(&self, made: &BackupRow) -> Result<()> {
        restarting(|| async {
            let mut tx = self.inner.db.begin(Gate::Around).await?;
            backup_schedule::finish(&mut tx, self.replica(), made, self.inner.clock.now()).await?;
            Ok::<_, Error>(tx.commit().await?)
        })
        .await
    }

    async fn release_backup(&self) {
        let released = async {
            let mut tx = self.inner.db.begin(Gate::Around).await?;
            backup_schedule::release(&mut tx, self.replica()).await?;
            tx.commit().await
        };
        if let Err(error) = released.await {
            // It runs out by itself.
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "the lease of a backup was not given back");
        }
    }

    /// Removes the oldest ones beyond `keep`. Names of a time that is still to come were made by a clock that was wrong,
    /// and are not counted.
    async fn remove_old_backups(
        &self,
        keep: usize,
        made: &BackupRow,
    ) -> std::result::Result<(), StorageError> {
        let mut backups = list_backups(&self.inner.storage).await?;
        backups.retain(|backup| backup.made_at <= made.made_at);
        let old = backups.len().saturating_sub(keep.max(1));
        for backup in backups[..old].iter().filter(|backup| backup.name != made.name) {
            let Ok(id) = Uuid::try_parse(&backup.name) else { continue };
            self.inner.storage.delete(&ObjectKey::Backup(id), DELETE_MAX).await?;
        }
        Ok(())
    }
}

fn name(id: Uuid) -> String {
    id.simple().to_string()
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// How often a replica looks whether a backup is due.
const PAUSE: Duration = Duration::from_secs(60);

/// How long others keep from a backup that is under way. Where one takes longer, two are made, and both are good.
const LEASE: Duration = Duration::from_secs(3600);

/// How long a replica that failed leaves it to others.
const RETRY_PAUSE: Duration = Duration::from_secs(600);

const DELETE_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests;
