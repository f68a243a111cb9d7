//! The first start: cluster id, vault, the server's keys, a first cache, and a claim for the first admin.
//!
//! Idempotent: of two replicas that start on one empty database, one does it and the other finds it done.

use serde_json::json;

use super::audit::Act;
use super::caches::NewCache;
use super::keys::KeySource;
use super::leaves::AdminEvent;
use super::release::Wanted;
use super::vault::VaultSettings;
use super::{Call, Error, Rejection, Result, Service};
use crate::access::{CacheName, ClaimSecret, ContributorName};
use crate::db::signing_keys::KeyState;
use crate::db::{Db, Gate, cluster, restarting, vault};
use crate::nix::signature::PublicKey;
use crate::storage::Storage;
use crate::time::Clock;
use crate::vault::key_file::KeyFileError;
use crate::vault::{KeyFile, NewVault, OpenVault, Passphrase, Purpose, SlotSecret, random};

/// What a first start has to show, once.
#[derive(Debug)]
pub struct FirstStart {
    /// Makes its bearer an administrator, within an hour.
    pub claim: ClaimSecret,
    pub cache: CacheName,
    pub public_key: PublicKey,
    /// Where the key file was made, if one was.
    pub key_file: Option<std::path::PathBuf>,
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
        let (secret, made_file) = self.first_secret().await?;
        let cluster_id = self.inner.cluster_id.clone();
        let slot_id = self.new_id(self.inner.clock.now());
        // Before the transaction: a passphrase takes a second, and nobody shall wait behind the gate for it.
        let made =
            tokio::task::spawn_blocking(move || OpenVault::create(&cluster_id, &slot_id, &secret)).await;
        let made = made.map_err(|panic| Error::Internal(panic.into()))?;
        let NewVault { vault, slot, kek } = made.map_err(|error| Error::Internal(error.into()))?;
        self.adopt_vault(vault, 0);
        let done = restarting(|| self.set_up_once(&slot, &kek)).await;
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
        slot: &crate::vault::SlotRow,
        kek: &crate::vault::KekRow,
    ) -> Result<Option<(FirstStart, Vec<Wanted>)>> {
        let call = Call::host();
        let now = self.inner.clock.now();
        let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
        if !vault::keks(&mut tx).await?.is_empty() {
            return Ok(None);
        }
        vault::insert_slot(&mut tx, slot, now).await?;
        vault::insert_kek(&mut tx, kek, now).await?;
        let id = &self.inner.cluster_id;
        let short: String = id.chars().take(6).collect();
        // The log key's name is the origin of every checkpoint, for ever.
        let log_key =
            self.insert_server_key(&mut tx, Purpose::Log, format!("narvault-log-{id}"), now).await?;
        let token_name = format!("narvault-token-{short}-1");
        let token_key = self.insert_server_key(&mut tx, Purpose::Token, token_name, now).await?;

        let name: CacheName = FIRST_CACHE.parse().map_err(|error| Rejection::value("name", error))?;
        let new = NewCache {
            name: name.clone(),
            public: true,
            priority: None,
            prefix: None,
            upstreams: None,
            upstream_paths: None,
            undeclared_references: None,
        };
        let (cache, objects) = self.insert_cache(&mut tx, &new, now).await?;
        let source = KeySource::New { name: None };
        let (host, state) = (Call::host(), KeyState::Active);
        let key = self.insert_cache_key(&mut tx, &host, &cache, &source, state, now).await?;
        let admin: ContributorName =
            FIRST_ADMIN.parse().map_err(|error| Rejection::value("contributor", error))?;
        let claim = self.new_admin_claim(&mut tx, &admin, now).await?;

        let slot_act = Act {
            action: "vault-slot",
            subject: slot.id.clone(),
            detail: json!({ "kind": slot.kind.as_str() }),
            cache: None,
            event: Some(AdminEvent::VaultSlot),
        };
        let acts = vec![
            slot_act,
            super::keys::created(&log_key, None),
            super::keys::created(&token_key, None),
            super::caches::created(&cache),
            super::keys::created(&key, Some(&cache)),
        ];
        self.record(&mut tx, &call, acts, now).await?;
        tx.commit().await?;
        let first = FirstStart { claim, cache: name, public_key: key.public_key, key_file: None };
        Ok(Some((first, objects)))
    }

    /// The secret of the first slot, and the key file that was made for it, if one was.
    async fn first_secret(&self) -> Result<(SlotSecret, Option<std::path::PathBuf>)> {
        let settings = self.inner.door.settings.clone();
        let made = tokio::task::spawn_blocking(move || first_secret(&settings)).await;
        made.map_err(|panic| Error::Internal(panic.into()))?
    }
}

fn first_secret(settings: &VaultSettings) -> Result<(SlotSecret, Option<std::path::PathBuf>)> {
    let key_file = |error: KeyFileError| Error::from(Rejection::value("vault.key_file", error));
    if let Some(path) = &settings.key_file {
        let file =
            KeyFile::read(path).map_err(|error: crate::vault::key_file::KeyFileError| key_file(error))?;
        return Ok((SlotSecret::KeyFile(file), None));
    }
    if let Some(path) = &settings.passphrase_file {
        let passphrase =
            Passphrase::read_file(path).map_err(|error| Rejection::value("vault.passphrase_file", error))?;
        return Ok((SlotSecret::Passphrase(passphrase), None));
    }
    let path = &settings.default_key_file;
    // Left by a first start that broke off before its rows: it is as good as a new one.
    if path.exists() {
        return Ok((SlotSecret::KeyFile(KeyFile::read(path).map_err(key_file)?), None));
    }
    let file = KeyFile::create(path).map_err(key_file)?;
    tracing::warn!(
        path = %path.display(),
        "made a key file beside the data; for production keep it elsewhere (vault.key_file)"
    );
    Ok((SlotSecret::KeyFile(file), Some(path.clone())))
}

/// The cache that a first start makes.
pub const FIRST_CACHE: &str = "main";

/// Who spends the first claim.
pub const FIRST_ADMIN: &str = "admin";

#[cfg(test)]
mod tests;
