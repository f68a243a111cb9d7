//! Another root key, with every slot and every KEK around it, in one transaction.
//!
//! Never lets a slot die that nobody named: the secret of each that shall stay has to be brought, because nothing else
//! can wrap the new root key for it.

use serde_json::json;

use super::{of_this_replica, vault_act};
use crate::access::{Action, Caller};
use crate::db::{Gate, Tx, cluster, kek_rotations, restarting, vault};
use crate::service::slots::{SlotId, slot_act};
use crate::service::vault::VaultStatus;
use crate::service::{Call, Conflict, Error, Rejection, Result, Service};
use crate::time::Timestamp;
use crate::vault::root::SLOTS_MAX;
use crate::vault::slots::SlotError;
use crate::vault::{
    KeyFile, NewRoot, OpenVault, Passphrase, ProvenSlot, SlotRow, SlotSecret, VaultError, VaultVersions,
};

/// The secret of a slot that shall stay.
#[derive(Debug)]
pub struct GivenSecret(SlotSecret);

impl GivenSecret {
    /// A passphrase.
    pub fn passphrase(text: &str) -> Result<Self> {
        match Passphrase::parse(text.as_bytes()) {
            Ok(passphrase) => Ok(Self(SlotSecret::Passphrase(passphrase))),
            Err(error) => Err(Rejection::value("passphrases", error).into()),
        }
    }

    /// The 32 bytes of a key file.
    pub fn key_file(bytes: &[u8]) -> Result<Self> {
        match KeyFile::from_bytes(bytes) {
            Ok(file) => Ok(Self(SlotSecret::KeyFile(file))),
            Err(error) => Err(Rejection::value("key_files", error).into()),
        }
    }
}

/// What the root key is rotated with.
#[derive(Debug, Default)]
pub struct NewRootRequest {
    /// The secrets of slots that stay, in any order. What this server is configured with is tried by itself.
    pub secrets: Vec<GivenSecret>,
    /// Slots that go.
    pub drop_slots: Vec<SlotId>,
    /// Whether rows that are there are sealed anew, too, under the KEK that comes with the root key. They are anyway where
    /// a rotation of the KEK is under way, which this one takes over.
    pub with_kek: bool,
}

/// The slots that stay, and the ids of those that go.
struct Sorted {
    slots: Vec<SlotRow>,
    proven: Vec<ProvenSlot>,
    dropped: Vec<SlotRow>,
}

impl Service {
    /// Puts another root key in the place of the present one, with a KEK that the present one never wrapped: whoever has
    /// a dropped slot's secret and a copy of the database from before opens nothing that is written once this has
    /// answered. Takes about a second for each passphrase that is tried.
    pub async fn rotate_root(&self, call: &Call, asked: NewRootRequest) -> Result<VaultStatus> {
        self.require(call, &Action::Administer, "vault-root-rotate", "").await?;
        self.require_open()?;
        if asked.secrets.len() > SLOTS_MAX {
            return Err(Rejection::value("secrets", "are more than a vault can have slots").into());
        }
        if call.caller != Caller::Host {
            self.inner.secret_tries.take(call.origin.address, self.inner.clock.now())?;
        }
        // Until the end: this replica's own vault is not to be opened meanwhile.
        let _one_at_a_time = self.inner.door.opening.lock().await;
        let slots = self.vault_rows().await?.slots;
        let configured = self.configured_secrets(&slots).await;
        let NewRootRequest { secrets, drop_slots, with_kek } = asked;
        let sorting = move || sort(slots, secrets, &configured, &drop_slots);
        // Before the transaction, as each passphrase takes a second.
        let sorted = tokio::task::spawn_blocking(sorting).await;
        let sorted = sorted.map_err(|panic| Error::Internal(panic.into()))??;
        restarting(|| self.rotate_root_once(call, &sorted, with_kek)).await?;
        self.vault_status(call).await
    }

    async fn rotate_root_once(&self, call: &Call, sorted: &Sorted, with_kek: bool) -> Result<()> {
        let now = self.inner.clock.now();
        let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
        self.recheck(&mut tx, call, &Action::Administer, now).await?;
        self.recheck_open(&mut tx).await?;
        let before = cluster::read(&mut tx).await?.ok_or(Error::NotFound("vault"))?.versions;
        let standing = vault::slots(&mut tx).await?;
        if !standing.iter().map(|(slot, _)| slot).eq(&sorted.slots) {
            return Err(Conflict::State("the vault's slots were changed meanwhile; try again").into());
        }
        let keks = vault::keks(&mut tx).await?;
        let made = self.inner.keyring.with_vault(|vault| match vault.versions() {
            held if held == before => vault.with_new_root(&sorted.proven, &keks, before.kek + 1),
            _ => Err(VaultError::OtherRoot),
        });
        let NewRoot { vault: opened, slots, keks: rewrapped, new_kek } = made.map_err(of_this_replica)?;
        for (before, after) in sorted.proven.iter().zip(&slots) {
            vault::rewrap_slot(&mut tx, before.row(), after).await?;
        }
        for (before, after) in keks.iter().zip(&rewrapped) {
            vault::rewrap_kek(&mut tx, before, after).await?;
        }
        for slot in &sorted.dropped {
            vault::remove_slot(&mut tx, &slot.id, now).await?;
        }
        vault::insert_kek(&mut tx, &new_kek, now).await?;
        let after = VaultVersions { root: before.root + 1, kek: new_kek.version };
        cluster::change_versions(&mut tx, before, after).await?;
        let under_way = kek_rotations::newest(&mut tx).await?.is_some_and(|row| row.ended_at.is_none());
        if with_kek || under_way {
            // Other replicas have opened the vault anew by then: until they have, they know no row under the new KEK.
            let due_at = now.plus_seconds(OTHERS_FOLLOW_SECONDS);
            self.begin_kek_rotation(&mut tx, call, new_kek.version, due_at, now).await?;
        }
        self.record_new_root(&mut tx, call, sorted, after, now).await?;
        #[cfg(test)]
        self.pass_cut()?;
        let service = self.clone();
        // Of its own: whoever asked may go away, and the vault in memory is to be the one of the rows nevertheless.
        let committed = tokio::spawn(async move { service.commit_new_root(tx, opened).await }).await;
        committed.map_err(|panic| Error::Internal(panic.into()))??;
        tracing::warn!(root = after.root, kek = after.kek, "the vault's root key was rotated");
        Ok(())
    }

    async fn record_new_root(
        &self,
        tx: &mut Tx,
        call: &Call,
        sorted: &Sorted,
        after: VaultVersions,
        now: Timestamp,
    ) -> Result<()> {
        let kept: Vec<&str> = sorted.proven.iter().map(|slot| slot.row().id.as_str()).collect();
        let dropped: Vec<&str> = sorted.dropped.iter().map(|slot| slot.id.as_str()).collect();
        let detail = json!({
            "change": "rotate-root", "root": after.root, "kek": after.kek, "kept": kept, "dropped": dropped,
        });
        let mut acts = vec![vault_act("vault-root-rotate", detail)];
        for slot in &sorted.dropped {
            let detail = json!({ "change": "remove", "kind": slot.kind.as_str() });
            acts.push(slot_act("vault-slot-remove", &slot.id, detail));
        }
        self.record(tx, call, acts, now).await
    }

    /// Commits with the new vault in its place already: whoever waits at the gate finds it there. Where the commit fails,
    /// the former one comes back; should it have happened nevertheless, the poller notices.
    async fn commit_new_root(&self, tx: Tx, opened: OpenVault) -> Result<()> {
        let before = self.inner.keyring.replace(opened);
        let committed = tx.commit().await;
        match (&committed, before) {
            (Ok(()), _) => self.inner.door.behind.ends(),
            (Err(_), Some(before)) => self.inner.keyring.unlock(before),
            (Err(_), None) => self.inner.keyring.lock(),
        }
        Ok(committed?)
    }
}

/// Finds the slot of each secret. Refuses where one that stays has none, or a given secret is nobody's.
fn sort(
    slots: Vec<SlotRow>,
    given: Vec<GivenSecret>,
    configured: &[SlotSecret],
    drop_slots: &[SlotId],
) -> Result<Sorted> {
    if drop_slots.iter().any(|id| !slots.iter().any(|slot| slot.id == id.as_str())) {
        return Err(Error::NotFound("slot"));
    }
    let goes = |slot: &&SlotRow| drop_slots.iter().any(|id| id.as_str() == slot.id);
    let (dropped, kept): (Vec<&SlotRow>, Vec<&SlotRow>) = slots.iter().partition(goes);
    if kept.is_empty() {
        return Err(Conflict::State(
            "at least one slot has to stay: without any nothing opens the vault again; add another first",
        )
        .into());
    }
    let mut found: Vec<Option<ProvenSlot>> = kept.iter().map(|_| None).collect();
    for GivenSecret(secret) in &given {
        if !prove(&kept, secret, &mut found)? {
            let why = format!("a {} opens none of the slots that stay", secret.kind());
            return Err(Rejection::value("secrets", why).into());
        }
    }
    for secret in configured {
        prove(&kept, secret, &mut found)?;
    }
    let without: Vec<String> = kept
        .iter()
        .zip(&found)
        .filter(|(_, proven)| proven.is_none())
        .map(|(slot, _)| format!("{} ({})", slot.id, slot.kind))
        .collect();
    if !without.is_empty() {
        return Err(Conflict::SlotsWithoutSecret { slots: without.join(", ") }.into());
    }
    let dropped = dropped.into_iter().cloned().collect();
    let proven = found.into_iter().flatten().collect();
    Ok(Sorted { proven, dropped, slots })
}

/// Tries a secret on each slot of its kind that has none yet. True: it is the secret of one that stays.
fn prove(kept: &[&SlotRow], secret: &SlotSecret, found: &mut [Option<ProvenSlot>]) -> Result<bool> {
    let (mut fits, mut others) = (false, Vec::new());
    for (slot, place) in kept.iter().zip(found).filter(|(slot, _)| slot.kind == secret.kind()) {
        if place.is_some() {
            others.push(slot);
            continue;
        }
        *place = proven(slot, secret)?;
        fits |= place.is_some();
    }
    // Given twice.
    for slot in others {
        fits = fits || proven(slot, secret)?.is_some();
    }
    Ok(fits)
}

/// `None`: the secret is not this slot's, or the slot is damaged. Then it has no secret, and has to go.
fn proven(slot: &SlotRow, secret: &SlotSecret) -> Result<Option<ProvenSlot>> {
    match slot.prove(secret) {
        Ok(proven) => Ok(Some(proven)),
        Err(SlotError::Vault(error @ VaultError::Memory(_))) => Err(error.into()),
        Err(_) => Ok(None),
    }
}

/// Enough for some polls of the other replicas, and for the derivation of several passphrases.
pub(super) const OTHERS_FOLLOW_SECONDS: i64 = 10;
