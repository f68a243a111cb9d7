//! The first start: cluster id, vault, the server's keys, a first cache, and a claim for the first admin.
//!
//! Idempotent: of two replicas that start on one empty database, one does it and the other finds it done.

use std::path::PathBuf;

use super::audit::Act;
use super::caches::NewCache;
use super::keys::KeySource;
use super::leaves::AdminEvent;
use super::release::Wanted;
use super::vault::{Configured, Slot, VaultSettings};
use super::{Call, Error, Rejection, Result, Service};
use crate::access::{CacheName, ClaimSecret, ContributorName};
use crate::db::signing_keys::KeyState;
use crate::db::{Db, Gate, cluster, restarting, vault};
use crate::kms::SlotPlace;
use crate::nix::signature::PublicKey;
use crate::storage::Storage;
use crate::time::{Clock, Timestamp};
use crate::vault::key_file::KeyFileError;
use crate::vault::slots::SlotError;
use crate::vault::{
    KekRow, KeyFile, NewVault, OpenVault, Passphrase, Purpose, SlotKind, SlotRow, SlotSecret, random,
};

/// What a first start has to show, once.
#[derive(Debug)]
pub struct FirstStart {
    /// Makes its bearer an administrator, within an hour.
    pub claim: ClaimSecret,
    pub cache: CacheName,
    pub public_key: PublicKey,
    /// Where the key file was made, if one was.
    pub key_file: Option<PathBuf>,
}

/// The id of this database's cluster; made if this is the first start. Refused where the storage has an owner: then
/// there was a database once, and one row in this one would be in the way of its backup.
pub async fn cluster_id(db: &Db, storage: &Storage, clock: &Clock) -> Result<String> {
    if let Some(row) = cluster::read(&mut *db.read().await?).await? {
        return Ok(row.cluster_id);
    }
    if let Some(owner) = storage.owner().await? {
        // A replica that was quicker wrote its row before its mark.
        return match cluster::read(&mut *db.read().await?).await? {
            Some(row) => Ok(row.cluster_id),
            None => Err(Error::Internal(DatabaseLost { owner }.into())),
        };
    }
    let mut tx = db.begin(Gate::Exclusive).await?;
    let fresh = random::text::<16>();
    let id = if cluster::create(&mut tx, &fresh, clock.now()).await? {
        fresh
    } else {
        let row = cluster::read(&mut tx).await?;
        row.ok_or(Error::NotFound("cluster"))?.cluster_id
    };
    tx.commit().await?;
    Ok(id)
}

/// The database is empty and the storage is not.
#[derive(Debug, thiserror::Error)]
#[error(
    "the database is empty, and the storage belongs to cluster {owner}: restore a backup of it with \
     `narvault restore`, or name another storage for a new cluster"
)]
struct DatabaseLost {
    owner: String,
}

impl Service {
    /// Makes everything that a server needs, if this database has no vault yet. `None`: it has.
    pub async fn set_up(&self) -> Result<Option<FirstStart>> {
        if self.has_vault().await? {
            self.reload_token_keys().await?;
            return Ok(None);
        }
        let (secrets, made_file) = self.first_secrets().await?;
        let cluster_id = self.inner.cluster_id.clone();
        // Before the transaction: a passphrase takes a second, and nobody shall wait behind the gate for it.
        let made = tokio::task::spawn_blocking(move || new_vault(&cluster_id, &secrets)).await;
        let (vault, slots, kek) = made.map_err(|panic| Error::Internal(panic.into()))??;
        self.adopt_vault(vault, 0);
        let done = restarting(|| self.set_up_once(&slots, &kek)).await;
        if !matches!(done, Ok(Some(_))) {
            self.inner.keyring.lock();
        }
        // Not after an error: it leaves open whether the rows are there, and then this file opens the vault.
        if let (Ok(None), Some(path)) = (&done, &made_file)
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove a key file that opens nothing");
        }
        let done = done?;
        self.reload_token_keys().await?;
        let Some((first, objects)) = done else { return Ok(None) };
        self.release_soon(objects).await;
        Ok(Some(FirstStart { key_file: made_file, ..first }))
    }

    async fn has_vault(&self) -> Result<bool> {
        let mut connection = self.inner.db.read().await?;
        Ok(!vault::keks(&mut connection).await?.is_empty())
    }

    async fn set_up_once(
        &self,
        slots: &[SlotRow],
        kek: &KekRow,
    ) -> Result<Option<(FirstStart, Vec<Wanted>)>> {
        let call = Call::host();
        let now = self.inner.clock.now();
        let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
        if !vault::keks(&mut tx).await?.is_empty() {
            return Ok(None);
        }
        for slot in slots {
            vault::insert_slot(&mut tx, slot, now).await?;
        }
        vault::insert_kek(&mut tx, kek, now).await?;
        let id = &self.inner.cluster_id;
        let short: String = id.chars().take(6).collect();
        // The log key's name is the origin of every checkpoint, for ever.
        let log_key =
            self.insert_server_key(&mut tx, Purpose::Log, format!("narvault-log-{id}"), now).await?;
        let token_name = format!("narvault-token-{short}-1");
        let token_key = self.insert_server_key(&mut tx, Purpose::Token, token_name, now).await?;

        let name: CacheName = FIRST_CACHE.parse().map_err(|error| Rejection::value("name", error))?;
        let new = NewCache::named(name.clone());
        let (cache, objects) = self.insert_cache(&mut tx, &new, now).await?;
        let source = KeySource::New { name: None };
        let (host, state) = (Call::host(), KeyState::Active);
        let key = self.insert_cache_key(&mut tx, &host, &cache, &source, state, now).await?;
        let admin: ContributorName =
            FIRST_ADMIN.parse().map_err(|error| Rejection::value("contributor", error))?;
        let claim = self.new_admin_claim(&mut tx, &admin, now).await?;

        let mut acts: Vec<_> = slots.iter().map(|slot| slot_act(slot, now)).collect();
        acts.extend([
            super::keys::created(&log_key, None),
            super::keys::created(&token_key, None),
            super::caches::created(&cache),
            super::keys::created(&key, Some(&cache)),
        ]);
        self.record(&mut tx, &call, acts, now).await?;
        tx.commit().await?;
        if let [only] = slots
            && only.kind == SlotKind::Kms
        {
            tracing::warn!(
                "KMS alone opens the vault: if its key is deleted, every signing key is lost; add a second secret with \
                 `narvault vault slot add`"
            );
        }
        let first = FirstStart { claim, cache: name, public_key: key.public_key, key_file: None };
        Ok(Some((first, objects)))
    }

    /// The secrets of the first slots, each with the id of its slot, and the key file that was made for one, if it was.
    async fn first_secrets(&self) -> Result<(Vec<(String, SlotSecret)>, Option<PathBuf>)> {
        let (mut secrets, mut made) = (Vec::new(), None);
        for configured in self.inner.door.settings.configured() {
            let slot_id = self.new_id(self.inner.clock.now());
            let secret = match configured {
                Configured::Kms(key) => {
                    let place = SlotPlace { cluster_id: &self.inner.cluster_id, slot_id: &slot_id };
                    SlotSecret::Kms(self.inner.door.kms.new_secret(&key, place).await?)
                }
                file => {
                    let settings = self.inner.door.settings.clone();
                    let read = tokio::task::spawn_blocking(move || first_secret(file, &settings)).await;
                    let (secret, file) = read.map_err(|panic| Error::Internal(panic.into()))??;
                    made = made.or(file);
                    secret
                }
            };
            secrets.push((slot_id, secret));
        }
        Ok((secrets, made))
    }
}

/// A vault with a slot for each secret; there is at least one.
fn new_vault(
    cluster_id: &str,
    secrets: &[(String, SlotSecret)],
) -> Result<(OpenVault, Vec<SlotRow>, KekRow)> {
    let internal = |error: SlotError| Error::Internal(error.into());
    let ((slot_id, secret), others) = secrets.split_first().ok_or(Error::NotFound("secret of the vault"))?;
    let NewVault { vault, slot, kek } = OpenVault::create(cluster_id, slot_id, secret).map_err(internal)?;
    let mut slots = vec![slot];
    for (slot_id, secret) in others {
        slots.push(vault.new_slot(slot_id, secret).map_err(internal)?);
    }
    Ok((vault, slots, kek))
}

fn slot_act<'a>(slot: &SlotRow, now: Timestamp) -> Act<'a> {
    Act {
        action: "vault-slot",
        subject: slot.id.clone(),
        detail: Slot::of(slot.clone(), now).detail("add"),
        cache: None,
        event: Some(AdminEvent::VaultSlot),
    }
}

/// The secret in a file, and the file's path if it was made now.
fn first_secret(file: Configured, settings: &VaultSettings) -> Result<(SlotSecret, Option<PathBuf>)> {
    let key_file = |error: KeyFileError| Error::from(Rejection::value("vault.key_file", error));
    let path = match file {
        Configured::KeyFile(path) => path,
        Configured::PassphraseFile(path) => {
            let passphrase = Passphrase::read_file(&path)
                .map_err(|error| Rejection::value("vault.passphrase_file", error))?;
            return Ok((SlotSecret::Passphrase(passphrase), None));
        }
        Configured::Kms(_) => return Err(Error::NotFound("file of a KMS key")),
    };
    // A default one may be left by a first start that broke off before its rows: it is as good as a new one.
    if settings.key_file.is_some() || path.exists() {
        return Ok((SlotSecret::KeyFile(KeyFile::read(&path).map_err(key_file)?), None));
    }
    let file = KeyFile::create(&path).map_err(key_file)?;
    tracing::warn!(
        path = %path.display(),
        "made a key file beside the data; for production keep it elsewhere (vault.key_file)"
    );
    Ok((SlotSecret::KeyFile(file), Some(path)))
}

/// The cache that a first start makes.
pub const FIRST_CACHE: &str = "main";

/// Who spends the first claim.
pub const FIRST_ADMIN: &str = "admin";

#[cfg(test)]
mod tests;
