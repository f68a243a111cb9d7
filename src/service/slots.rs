//! Slots of the vault: further secrets, any one of which opens it, and their end.
//!
//! Never lets the last one go: then nothing would open the vault again.

use std::str::FromStr;

use super::audit::Act;
use super::leaves::AdminEvent;
use super::vault::Slot;
use super::{Call, Conflict, Error, Rejection, Result, Service};
use crate::access::Action;
use crate::db::{Gate, restarting, vault};
use crate::kms::{KmsKeyId, SlotPlace};
use crate::vault::root::SLOTS_MAX;
use crate::vault::slots::SlotError;
use crate::vault::{KeyFile, Passphrase, Share, ShareCount, SlotKind, SlotSecret, SplitKey, VaultError};

/// The id of a slot: UUIDv7 text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotId(String);

impl SlotId {
    /// As it stands in the row.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SlotId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> std::result::Result<Self, uuid::Error> {
        // One spelling for each: the row has the id as text.
        Ok(Self(text.parse::<uuid::Uuid>()?.to_string()))
    }
}

/// What shall open the vault from now on, too.
#[derive(Debug)]
pub struct NewSlot(Wanted);

#[derive(Debug)]
enum Wanted {
    /// A random slot key, encrypted by this key in KMS.
    Kms(KmsKeyId),
    Secret(SlotSecret),
}

impl NewSlot {
    /// A key in KMS, by its ARN, its id or an alias.
    pub fn kms(key_id: &str) -> Result<Self> {
        match key_id.parse() {
            Ok(key) => Ok(Self(Wanted::Kms(key))),
            Err(error) => Err(Rejection::value("kms.key_id", error).into()),
        }
    }

    /// A passphrase of at least 14 characters.
    pub fn passphrase(text: &str) -> Result<Self> {
        match Passphrase::parse(text.as_bytes()) {
            Ok(passphrase) => Ok(Self(Wanted::Secret(SlotSecret::Passphrase(passphrase)))),
            Err(error) => Err(Rejection::value("passphrase", error).into()),
        }
    }

    /// The 32 bytes of a key file.
    pub fn key_file(bytes: &[u8]) -> Result<Self> {
        match KeyFile::from_bytes(bytes) {
            Ok(file) => Ok(Self(Wanted::Secret(SlotSecret::KeyFile(file)))),
            Err(error) => Err(Rejection::value("key_file", error).into()),
        }
    }

    /// A random key, split into `of` shares, any `threshold` of which open the vault.
    pub fn shares(threshold: u8, of: u8) -> Result<Self> {
        let count = ShareCount::new(threshold, of).map_err(|error| Rejection::value("shares", error))?;
        let key = SplitKey::generate(count).map_err(VaultError::from)?;
        Ok(Self(Wanted::Secret(SlotSecret::Shamir(key))))
    }

    fn kind(&self) -> SlotKind {
        match &self.0 {
            Wanted::Kms(_) => SlotKind::Kms,
            Wanted::Secret(secret) => secret.kind(),
        }
    }
}

/// The shares of a slot that `secret` opens; none, if that is something else.
fn split(
    secret: &SlotSecret,
    cluster_id: &str,
    slot_id: &str,
) -> std::result::Result<Vec<Share>, VaultError> {
    match secret {
        SlotSecret::Shamir(key) => Ok(key.split(cluster_id, slot_id)?),
        _ => Ok(Vec::new()),
    }
}

/// A slot that was just added.
#[derive(Debug)]
pub struct AddedSlot {
    pub slot: Slot,
    /// What opens it, if that was made here: to be told once, and kept nowhere.
    pub shares: Vec<Share>,
}

impl Service {
    /// Adds a slot. Only an open vault can: the slot wraps what is in memory.
    pub async fn add_slot(&self, call: &Call, new: NewSlot) -> Result<AddedSlot> {
        self.require(call, &Action::Administer, "vault-slot-add", new.kind().as_str()).await?;
        self.require_open()?;
        let (keyring, id) = (self.inner.keyring.clone(), self.new_id(self.inner.clock.now()));
        // Before the transaction: a passphrase takes a second, KMS perhaps more, and nobody shall wait behind the gate.
        let secret = match new.0 {
            Wanted::Kms(key) => {
                let place = SlotPlace { cluster_id: &self.inner.cluster_id, slot_id: &id };
                SlotSecret::Kms(self.inner.door.kms.new_secret(&key, place).await?)
            }
            Wanted::Secret(secret) => secret,
        };
        let cluster_id = self.inner.cluster_id.clone();
        let made = tokio::task::spawn_blocking(move || {
            let shares = split(&secret, &cluster_id, &id)?;
            keyring.with_vault(|vault| {
                let slot = vault.new_slot(&id, &secret)?;
                Ok::<_, SlotError>((slot, shares, vault.versions().root))
            })
        });
        let made = made.await.map_err(|panic| Error::Internal(panic.into()))?;
        let (slot, shares, root_version) = made.map_err(|error| Error::Internal(error.into()))?;
        let slot = restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            self.recheck(&mut tx, call, &Action::Administer, now).await?;
            self.recheck_open(&mut tx).await?;
            self.recheck_root(&mut tx, root_version).await?;
            if vault::slots(&mut tx).await?.len() >= SLOTS_MAX {
                return Err(Conflict::State("the vault has 16 slots; remove one first").into());
            }
            vault::insert_slot(&mut tx, &slot, now).await?;
            let shown = Slot::of(slot.clone(), now);
            let detail = shown.detail("add");
            self.record(&mut tx, call, vec![slot_act("vault-slot-add", &slot.id, detail)], now).await?;
            tx.commit().await?;
            Ok::<_, Error>(shown)
        })
        .await?;
        Ok(AddedSlot { slot, shares })
    }

    /// Removes a slot, also while sealed. Its secret still opens a copy of the database from before.
    pub async fn remove_slot(&self, call: &Call, id: &SlotId) -> Result<()> {
        self.require(call, &Action::Administer, "vault-slot-remove", id.as_str()).await?;
        restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            self.recheck(&mut tx, call, &Action::Administer, now).await?;
            let slots = vault::slots(&mut tx).await?;
            let slot = slots.iter().find(|(slot, _)| slot.id == id.as_str());
            let (slot, created_at) = slot.ok_or(Error::NotFound("slot"))?;
            if slots.len() == 1 {
                return Err(Conflict::State(
                    "this is the last slot: without it nothing opens the vault again; add another first",
                )
                .into());
            }
            vault::remove_slot(&mut tx, &slot.id, now).await?;
            let detail = Slot::of(slot.clone(), *created_at).detail("remove");
            self.record(&mut tx, call, vec![slot_act("vault-slot-remove", &slot.id, detail)], now).await?;
            Ok::<_, Error>(tx.commit().await?)
        })
        .await?;
        self.inner.door.gathered.forget_slot(id.as_str());
        Ok(())
    }
}

pub(super) fn slot_act<'a>(action: &'static str, id: &str, detail: serde_json::Value) -> Act<'a> {
    Act { action, subject: id.to_owned(), detail, cache: None, event: Some(AdminEvent::VaultSlot) }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{TestService, vault as settings};
    use super::super::{Unseal, testing};
    use super::*;
    use crate::db::testing::{TestDb, on_each_database};

    const PASSPHRASE: &str = "correct horse battery staple";

    on_each_database! {
        async fn a_second_slot_opens_the_vault_when_the_first_is_gone(test: &TestDb) {
            let server = TestService::start(test).await;
            let admin = server.admin().await;
            let first = server.service.vault_status(&admin).await.unwrap().slots.remove(0).id;

            let second = NewSlot::passphrase(PASSPHRASE).unwrap();
            let second = server.service.add_slot(&admin, second).await.unwrap().slot;
            server.service.remove_slot(&admin, &first.parse().unwrap()).await.unwrap();

            let slots = server.service.vault_status(&admin).await.unwrap().slots;
            assert_eq!(slots.iter().map(|slot| &slot.id).collect::<Vec<_>>(), [&second.id]);
            let (restarted, _) = testing::open(test, &server.clock, settings(test)).await;
            assert!(!restarted.is_open(), "the key file opens nothing any more");
            restarted.unseal(&Call::host(), Unseal::passphrase(PASSPHRASE).unwrap()).await.unwrap();
            assert!(restarted.is_open());
            restarted.shut_down().await;
        }

        async fn the_last_slot_stays(test: &TestDb) {
            let server = TestService::start(test).await;
            let admin = server.admin().await;
            let only = server.service.vault_status(&admin).await.unwrap().slots.remove(0).id;

            let refused = server.service.remove_slot(&admin, &only.parse().unwrap()).await;

            assert!(matches!(refused, Err(Error::Conflict(_))), "{refused:?}");
            let (restarted, _) = testing::open(test, &server.clock, settings(test)).await;
            assert!(restarted.is_open());
            restarted.shut_down().await;
        }

        async fn only_an_admin_changes_slots_and_only_an_open_vault_gets_one(test: &TestDb) {
            let server = TestService::start(test).await;
            let admin = server.admin().await;
            let pusher = server.call(&server.contributor("ci", "push:main").await).await;
            let slot = || NewSlot::key_file(&[7; 32]).unwrap();
            let id: SlotId = uuid::Uuid::nil().to_string().parse().unwrap();

            assert!(matches!(server.service.add_slot(&pusher, slot()).await, Err(Error::Forbidden)));
            assert!(matches!(server.service.remove_slot(&pusher, &id).await, Err(Error::Forbidden)));
            assert!(matches!(server.service.remove_slot(&admin, &id).await, Err(Error::NotFound(_))));
            server.service.seal(&admin).await.unwrap();
            assert!(matches!(server.service.add_slot(&admin, slot()).await, Err(Error::Sealed)));
            for (refused, why) in [
                (NewSlot::passphrase("too short"), "at least 14"),
                (NewSlot::key_file(&[7; 31]), "31 bytes"),
                (NewSlot::shares(1, 3), "at least 2 needed"),
                (NewSlot::shares(4, 3), "THRESHOLD/ALL"),
                (NewSlot::shares(2, 16), "at most 15 in all"),
            ] {
                assert!(refused.unwrap_err().to_string().contains(why));
            }
        }

        async fn there_are_at_most_16_slots(test: &TestDb) {
            let server = TestService::start(test).await;
            let admin = server.admin().await;
            for byte in 1..16 {
                server.service.add_slot(&admin, NewSlot::key_file(&[byte; 32]).unwrap()).await.unwrap();
            }

            let refused = server.service.add_slot(&admin, NewSlot::key_file(&[16; 32]).unwrap()).await;

            assert!(matches!(refused, Err(Error::Conflict(_))), "{refused:?}");
        }
    }
}
