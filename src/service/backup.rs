//! Backups: the whole database in one sealed file, which any secret that opens the vault opens too, on any machine.
//!
//! Never holds more of it in memory than some chunks, never stops a writer, and never restores what was not verified from
//! beginning to end. [`header`] has the layout.

mod error;
mod header;
mod reader;
mod restore;
mod schedule;
mod verify;
mod writer;

use std::pin::pin;

use futures_util::TryStreamExt as _;
use serde_json::json;

pub use self::error::BackupError;
use self::header::Header;
pub use self::schedule::{BackupSchedule, StoredBackup, list_backups, stored_backup};
pub use self::verify::{BackupReport, TableCount, VerifiedBackup, backup_vault, verify_backup};
use self::writer::BackupWriter;
use super::{Call, Error, Service, VaultSecret};
use crate::access::Action;
use crate::db::audit::Outcome;
use crate::db::backup::{self, TABLES};
use crate::db::{Gate, Tx, cluster, log, vault};
use crate::storage::Upload;
use crate::vault::backup::BACKUP_SALT_BYTES;
use crate::vault::{BackupKey, OpenVault, VaultError, random};

/// Where a backup goes. What was written to it is to be thrown away unless the backup came to its end.
pub enum BackupTarget {
    File(tokio::fs::File),
    Object(Upload),
}

/// A backup that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrittenBackup {
    pub size_bytes: u64,
    pub rows: u64,
    /// Leaves of the signature log.
    pub leaves: u64,
}

impl Service {
    /// Writes a backup of the rows as they are now, while everything goes on, and hands `target` back, to be made durable
    /// and visible. `secret` opens the vault where this process has not.
    pub async fn back_up(
        &self,
        call: &Call,
        secret: Option<VaultSecret>,
        target: BackupTarget,
    ) -> Result<(BackupTarget, WrittenBackup), BackupError> {
        self.require(call, &Action::Administer, "backup", "").await?;
        let (mut tx, header, key) = self.begin_backup(secret).await?;
        let mut writer = BackupWriter::begin(target, &header, key).await?;
        for table in TABLES {
            writer.table(table).await?;
            let mut rows = pin!(backup::rows(&mut tx, table));
            while let Some(row) = rows.try_next().await? {
                writer.row(&row).await?;
            }
        }
        drop(tx);
        let (target, size_bytes, rows) = writer.finish().await?;
        let written = WrittenBackup { size_bytes, rows, leaves: header.log_size };
        self.record_backup(call, &written).await?;
        Ok((target, written))
    }

    /// A snapshot, and the key of its root key: the slots in it wrap none else.
    async fn begin_backup(
        &self,
        secret: Option<VaultSecret>,
    ) -> Result<(Tx, Header, BackupKey), BackupError> {
        let mut is_again = false;
        loop {
            let mut tx = self.inner.db.begin_snapshot().await?;
            let (header, root_version) = self.backup_header(&mut tx).await?;
            if let Some(secret) = secret {
                let key = open_vault(&header, secret).await?.backup_key(&header.salt);
                return Ok((tx, header, key));
            }
            match self.inner.keyring.backup_key(root_version, &header.salt) {
                Ok(key) => return Ok((tx, header, key)),
                Err(VaultError::Sealed) => return Err(BackupError::Sealed),
                // Somebody rotated it a moment ago, here or elsewhere.
                Err(VaultError::OtherRoot) if !is_again => is_again = true,
                Err(error) => return Err(BackupError::Service(error.into())),
            }
            drop(tx);
            self.follow_vault().await?;
        }
    }

    /// What the backup says of itself, out of the same rows as it has, and which root key its slots wrap.
    async fn backup_header(&self, tx: &mut Tx) -> Result<(Header, i64), BackupError> {
        let schema = backup::schema(tx).await?;
        if schema > backup::schema_known() {
            return Err(BackupError::NewerDatabase { schema });
        }
        let cluster = cluster::read(tx).await?.ok_or(Error::NotFound("vault"))?;
        let slots = vault::slots(tx).await?.into_iter().map(|(slot, _)| slot).collect();
        let keks = vault::keks(tx).await?;
        let state = log::read(tx).await?;
        let frontier = super::log::whole(tx, &state).await?;
        let header = Header {
            cluster_id: cluster.cluster_id,
            narvault: env!("CARGO_PKG_VERSION").to_owned(),
            schema,
            made_at: self.inner.clock.now(),
            salt: random::bytes::<BACKUP_SALT_BYTES>(),
            log_size: frontier.size(),
            log_root: frontier.root(),
            slots,
            keks,
        };
        Ok((header, cluster.versions.root))
    }

    async fn record_backup(&self, call: &Call, written: &WrittenBackup) -> Result<(), Error> {
        let now = self.inner.clock.now();
        let mut tx = self.inner.db.begin(Gate::Around).await?;
        let detail =
            json!({ "rows": written.rows, "leaves": written.leaves, "size_bytes": written.size_bytes });
        self.audit(&mut tx, call, "backup", Outcome::Done, "", detail, now).await?;
        Ok(tx.commit().await?)
    }
}

/// Opens the vault that a backup is of. A passphrase takes a second.
async fn open_vault(header: &Header, secret: VaultSecret) -> Result<OpenVault, BackupError> {
    let (cluster_id, slots, keks) = (header.cluster_id.clone(), header.slots.clone(), header.keks.clone());
    let secret = secret.into_slot_secret(&cluster_id, &slots)?;
    let opened =
        tokio::task::spawn_blocking(move || OpenVault::open(&cluster_id, &slots, &keks, &secret)).await;
    let opened = opened.map_err(|panic| BackupError::Service(Error::Internal(panic.into())))?;
    opened.map_err(BackupError::Unlock)
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
