//! The rows that are sealed with an older KEK, sealed anew under the newest: batch after batch, by whichever replica
//! holds the lease.
//!
//! Never retires a KEK that a row names. A row that does not open stops the end of its KEK, is named, and is in the way
//! of no other row.

use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::vault_act;
use crate::db::kek_rotations::{self, KekProgress, KekRotationRow};
use crate::db::sealed_rows::{self, SealedContent, SealedRow};
use crate::db::{Gate, Tx, epoch, restarting, vault};
use crate::service::{Call, Error, Result, Service};
use crate::threads::in_place;
use crate::vault::{OpenVault, Sealed, VaultError};

/// Where a row's record stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Keys,
    Webhooks,
}

/// What becomes of a row.
enum Outcome {
    /// It does not open.
    Damaged(Box<dyn std::error::Error + Send + Sync>),
    Rewrapped {
        before: Sealed,
        after: Sealed,
    },
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// So many rows were looked at.
    Batch,
    /// Another replica is at it, or it changed meanwhile.
    Elsewhere,
    /// All rows were looked at; older KEKs that nothing names were retired.
    PassEnded,
}

impl Service {
    /// Takes the rotation of the KEK on until `stop`.
    pub(in crate::service) async fn kek_worker(self, stop: CancellationToken) {
        loop {
            let wait = tokio::select! {
                () = stop.cancelled() => return,
                advanced = self.advance_kek_rotation() => advanced.unwrap_or_else(|error| {
                    // It goes on by itself once the vault is open, which its status says.
                    if !matches!(error, Error::Sealed) {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, "cannot seal rows under the newest key-encryption key; trying again");
                    }
                    PAUSE
                }),
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One batch of the rotation that is under way, if it is due and no other replica is at it. Answers when to look
    /// again.
    pub async fn advance_kek_rotation(&self) -> Result<Duration> {
        let row = kek_rotations::newest(&mut *self.inner.db.read().await?).await?;
        let now = self.inner.clock.now();
        let Some(row) = row.filter(|row| row.ended_at.is_none() && row.due_at <= now) else {
            return Ok(PAUSE);
        };
        if !self.is_open() || !self.lease_kek_rotation(&row).await? {
            return Ok(PAUSE);
        }
        Ok(match restarting(|| self.rewrap_batch(&row)).await? {
            Step::Batch => BATCH_PAUSE,
            Step::Elsewhere | Step::PassEnded => PAUSE,
        })
    }

    async fn lease_kek_rotation(&self, row: &KekRotationRow) -> Result<bool> {
        let now = self.inner.clock.now();
        let mut tx = self.inner.db.begin_lazy(Gate::Around).await?;
        let owner = &self.inner.lease_terms.owner;
        let leased =
            kek_rotations::lease(&mut tx, &row.id, owner, now.plus_millis(LEASE_MILLIS), now).await?;
        tx.commit().await?;
        Ok(leased)
    }

    /// The rotation, locked, if it is as far as it was and this replica's still.
    async fn locked_kek_rotation(&self, tx: &mut Tx, row: &KekRotationRow) -> Result<Option<KekRotationRow>> {
        let locked = kek_rotations::lock(tx, &row.id).await?;
        let owner = Some(&self.inner.lease_terms.owner);
        let same =
            |locked: &KekRotationRow| locked.progress == row.progress && locked.lease_owner.as_ref() == owner;
        Ok(locked.filter(same))
    }

    async fn rewrap_batch(&self, row: &KekRotationRow) -> Result<Step> {
        let now = self.inner.clock.now();
        // Shared: no key is destroyed meanwhile, and once a seal has answered nothing is opened.
        let mut tx = self.inner.db.begin(Gate::Shared).await?;
        self.recheck_open(&mut tx).await?;
        let Some(row) = self.locked_kek_rotation(&mut tx, row).await? else { return Ok(Step::Elsewhere) };
        if self.inner.keyring.versions().map(|held| held.kek) != Some(row.kek_version) {
            return Err(Error::Sealed);
        }
        let KekProgress { key_cursor, webhook_cursor, .. } = &row.progress;
        let mut place = Place::Keys;
        let mut rows = sealed_rows::keys_not_under(&mut tx, row.kek_version, key_cursor, BATCH).await?;
        if rows.is_empty() {
            place = Place::Webhooks;
            rows = sealed_rows::webhooks_not_under(&mut tx, row.kek_version, webhook_cursor, BATCH).await?;
        }
        let Some(last) = rows.last().map(|row| row.id.clone()) else {
            drop(tx);
            return self.end_pass(&row).await;
        };
        let mut progress = row.progress.clone();
        if key_cursor.is_empty() && webhook_cursor.is_empty() {
            progress.damaged.clear();
        }
        match place {
            Place::Keys => progress.key_cursor = last,
            Place::Webhooks => progress.webhook_cursor = last,
        }
        let keyring = &self.inner.keyring;
        let outcomes = in_place(|| keyring.with_vault(|vault| rewrapped(vault, row.kek_version, &rows)));
        let outcomes = outcomes.map_err(|error: VaultError| self.key_error(error))?;
        for (row, outcome) in rows.iter().zip(outcomes) {
            match outcome {
                Outcome::Damaged(error) => note_damaged(&mut progress, place, row, &*error),
                Outcome::Rewrapped { before, after } => {
                    let written = match place {
                        Place::Keys => sealed_rows::rewrap_key(&mut tx, &row.id, &before, &after).await?,
                        Place::Webhooks => {
                            sealed_rows::rewrap_webhook(&mut tx, &row.id, &before, &after).await?
                        }
                    };
                    // One that changed meanwhile is seen by the next pass.
                    progress.done += i64::from(written);
                }
            }
        }
        kek_rotations::note(&mut tx, &row.id, &progress, now).await?;
        #[cfg(test)]
        self.pass_cut()?;
        tx.commit().await?;
        Ok(Step::Batch)
    }

    /// Retires what nothing is sealed with any more. Where rows are left, because they do not open or came meanwhile,
    /// another pass follows.
    async fn end_pass(&self, row: &KekRotationRow) -> Result<Step> {
        let now = self.inner.clock.now();
        // Exclusive: nobody holds a row from before, and nobody seals with an older KEK after.
        let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
        let Some(row) = self.locked_kek_rotation(&mut tx, row).await? else { return Ok(Step::Elsewhere) };
        let in_use = sealed_rows::keks_in_use(&mut tx).await?;
        let keks = vault::keks(&mut tx).await?;
        let mut acts = Vec::new();
        for kek in keks.iter().filter(|kek| kek.version < row.kek_version && !in_use.contains(&kek.version)) {
            vault::retire_kek(&mut tx, kek, now).await?;
            acts.push(vault_act("vault-kek-retire", json!({ "change": "retire-kek", "kek": kek.version })));
            tracing::info!(
                kek = kek.version,
                "a key-encryption key seals nothing any more and was overwritten"
            );
        }
        let left = sealed_rows::count_not_under(&mut tx, row.kek_version).await?;
        if left == 0 {
            kek_rotations::finish(&mut tx, &row.id, now).await?;
        } else {
            let progress = KekProgress {
                key_cursor: String::new(),
                webhook_cursor: String::new(),
                ..row.progress.clone()
            };
            kek_rotations::note(&mut tx, &row.id, &progress, now.plus_seconds(AGAIN_SECONDS)).await?;
            tracing::error!(
                left,
                damaged = progress.damaged.join(", "),
                "rows are still sealed with an older key-encryption key; trying again in a minute"
            );
        }
        if !acts.is_empty() {
            // Pushes remember the rows of keys as long as nothing changes.
            epoch::advance(&mut tx).await?;
        }
        self.record(&mut tx, &Call::host(), acts, now).await?;
        #[cfg(test)]
        self.pass_cut()?;
        tx.commit().await?;
        Ok(Step::PassEnded)
    }
}

/// What becomes of each row. An error is not of a row but of the vault.
fn rewrapped(
    vault: &OpenVault,
    kek_version: u32,
    rows: &[SealedRow],
) -> std::result::Result<Vec<Outcome>, VaultError> {
    let outcome = |row: &SealedRow| {
        let (before, after) = match &row.content {
            SealedContent::Damaged(error) => return Ok(Outcome::Damaged(error.to_string().into())),
            SealedContent::Destroyed(sealed) => (sealed, Ok(sealed.erased_under(kek_version))),
            SealedContent::Key(key) => (&key.sealed, vault.rewrap_key(key)),
            SealedContent::Webhook(webhook) => (&webhook.sealed, vault.rewrap_webhook(webhook)),
        };
        match after {
            Ok(after) => Ok(Outcome::Rewrapped { before: before.clone(), after }),
            Err(error @ VaultError::Memory(_)) => Err(error),
            Err(error) => Ok(Outcome::Damaged(error.into())),
        }
    };
    rows.iter().map(outcome).collect()
}

fn note_damaged(
    progress: &mut KekProgress,
    place: Place,
    row: &SealedRow,
    error: &(dyn std::error::Error + 'static),
) {
    let name = match place {
        Place::Keys => format!("key {}", row.name),
        Place::Webhooks => format!("webhook {}", row.name),
    };
    tracing::error!(
        row = name,
        error,
        "does not open, and so is not sealed under the newest key-encryption key"
    );
    if progress.damaged.len() < DAMAGED_NAMED_MAX {
        progress.damaged.push(name);
    }
}

/// How long a replica holds a rotation after its last sign of life. Two that hold it at once do no harm: the row's lock
/// orders them.
pub(super) const LEASE_MILLIS: i64 = 10_000;

/// Rows of one batch. Some 100 take 10 ms, as long as a push may wait for the embedded database's only writer.
pub(super) const BATCH: i64 = 100;

/// Between two batches, so that whoever writes as well has the database meanwhile.
const BATCH_PAUSE: Duration = Duration::from_millis(10);

/// Between two looks where there is nothing to do.
const PAUSE: Duration = Duration::from_secs(2);

/// Between two passes over rows of which some do not open.
pub(super) const AGAIN_SECONDS: i64 = 60;

/// Most damaged rows that are named; each is in the server's log.
pub(super) const DAMAGED_NAMED_MAX: usize = 20;
