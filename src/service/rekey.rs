//! Other keys in the places of the vault's own: the key-encryption key (KEK), under which every row is sealed anew in
//! the background, and the root key with all slots around it. All while everything goes on.
//!
//! Each beginning is one transaction; each batch is one, and every row names its KEK: a crash anywhere leaves all
//! readable, and whichever replica comes next goes on. [`follow`] has how the other replicas learn of it.

mod follow;
mod root;
mod worker;

use serde_json::json;

pub(super) use follow::Behind;
pub use root::{GivenSecret, NewRootRequest};

use super::audit::Act;
use super::leaves::AdminEvent;
use super::vault::VaultStatus;
use super::{Call, Conflict, Error, Result, Service};
use crate::access::Action;
use crate::db::kek_rotations::{self, KekProgress, KekRotationRow, KekRotationState};
use crate::db::{Gate, Tx, cluster, restarting, sealed_rows, vault};
use crate::time::Timestamp;
use crate::vault::{VaultError, VaultVersions};

/// A rotation of the KEK, as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KekRotation {
    /// The KEK that rows are sealed under.
    pub kek_version: u32,
    pub state: KekRotationState,
    /// Rows that there were to do when it began.
    pub total: u64,
    /// Rows that it sealed anew.
    pub done: u64,
    /// What does not open, and so keeps the KEK that it names from being retired: `key NAME`, `webhook ID`.
    pub damaged: Vec<String>,
    pub started_at: Timestamp,
    pub ended_at: Option<Timestamp>,
}

impl KekRotation {
    pub(super) fn of(row: KekRotationRow) -> Self {
        let count = |count| u64::try_from(count).unwrap_or(0);
        Self {
            kek_version: row.kek_version,
            state: row.state,
            total: count(row.progress.total),
            done: count(row.progress.done),
            damaged: row.progress.damaged,
            started_at: row.started_at,
            ended_at: row.ended_at,
        }
    }
}

impl Service {
    /// Makes another KEK, with which everything new is sealed once this has answered, and begins to seal the rest anew.
    /// A rotation that is under way ends, and its rows are this one's.
    pub async fn rotate_kek(&self, call: &Call) -> Result<VaultStatus> {
        self.require(call, &Action::Administer, "vault-kek-rotate", "").await?;
        self.require_open()?;
        restarting(|| async {
            let now = self.inner.clock.now();
            // Exclusive: whoever seals behind the gate, before or after, knows which KEK is the newest.
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            self.recheck(&mut tx, call, &Action::Administer, now).await?;
            self.recheck_open(&mut tx).await?;
            let before = cluster::read(&mut tx).await?.ok_or(Error::NotFound("vault"))?.versions;
            let made = self.inner.keyring.with_vault(|vault| match vault.versions() {
                held if held == before => vault.new_kek(before.kek + 1),
                _ => Err(VaultError::OtherRoot),
            });
            let kek = made.map_err(of_this_replica)?;
            vault::insert_kek(&mut tx, &kek, now).await?;
            let after = VaultVersions { kek: kek.version, ..before };
            cluster::change_versions(&mut tx, before, after).await?;
            self.begin_kek_rotation(&mut tx, call, kek.version, now, now).await?;
            let detail = json!({ "change": "rotate-kek", "kek": kek.version });
            self.record(&mut tx, call, vec![vault_act("vault-kek-rotate", detail)], now).await?;
            tx.commit().await?;
            tracing::info!(kek = kek.version, "everything new is sealed with another key-encryption key");
            Ok::<_, Error>(())
        })
        .await?;
        self.catch_up_keks().await?;
        self.vault_status(call).await
    }

    /// The row of a rotation to the KEK that was just made; its first batch comes at `due_at`.
    async fn begin_kek_rotation(
        &self,
        tx: &mut Tx,
        call: &Call,
        kek_version: u32,
        due_at: Timestamp,
        now: Timestamp,
    ) -> Result<()> {
        let total = sealed_rows::count_not_under(tx, kek_version).await?;
        let token = call.caller.token();
        let row = KekRotationRow {
            id: self.new_id(now),
            kek_version,
            state: KekRotationState::Rewrap,
            progress: KekProgress { total, ..KekProgress::default() },
            due_at,
            lease_owner: None,
            asked_by: token.map(|token| (token.contributor.to_string(), token.token.to_string())),
            started_at: now,
            ended_at: None,
        };
        Ok(kek_rotations::begin(tx, &row).await?)
    }

    /// Rows that are sealed with an older KEK than the newest, and rows that the newest rotation found damaged.
    pub async fn kek_rows_behind(&self) -> Result<(u64, u64)> {
        let mut connection = self.inner.db.read().await?;
        let Some(row) = cluster::read(&mut connection).await? else { return Ok((0, 0)) };
        let behind = sealed_rows::count_not_under(&mut connection, row.versions.kek).await?;
        let rotation = kek_rotations::newest(&mut connection).await?;
        let damaged = rotation.map_or(0, |rotation| rotation.progress.damaged.len());
        Ok((u64::try_from(behind).unwrap_or(0), damaged as u64))
    }
}

/// What this replica's vault says where the database's is a step ahead.
fn of_this_replica(error: VaultError) -> Error {
    match error {
        VaultError::Sealed => Error::Sealed,
        VaultError::OtherRoot => OTHER_ROOT.into(),
        other => Error::Vault(other),
    }
}

/// An act on the keys of the vault itself. Its leaf is that of a slot, for want of a word of its own; `detail` tells.
fn vault_act<'a>(action: &'static str, detail: serde_json::Value) -> Act<'a> {
    Act { action, subject: "vault".to_owned(), detail, cache: None, event: Some(AdminEvent::VaultSlot) }
}

const OTHER_ROOT: Conflict =
    Conflict::State("the vault's root key was rotated a moment ago, and nothing was changed; try again");

#[cfg(test)]
mod tests;
