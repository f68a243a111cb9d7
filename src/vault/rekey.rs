//! Other keys in the places of ROOT and of the key-encryption keys, around the same secrets.
//!
//! Never forgets a key that something is still sealed with, and never lets the ROOT that goes wrap anything new: whoever
//! has it, out of an old copy of the database and a slot's secret, opens nothing that is written later.

use subtle::ConstantTimeEq as _;

use super::VaultError;
use super::memory::LockedBytes;
use super::root::{KekRow, OpenVault};
use super::seal::SealKey;
use super::slots::{ProvenSlot, SlotRow};

/// Which ROOT of a cluster is meant, and which is its newest key-encryption key. Both count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VaultVersions {
    pub root: i64,
    pub kek: u32,
}

/// Another ROOT, with the rows that have to be stored together, or not at all.
#[derive(Debug)]
pub struct NewRoot {
    /// Open by it. It has the key-encryption keys of before, and the new one.
    pub vault: OpenVault,
    /// The slots that were proven, around the new ROOT.
    pub slots: Vec<SlotRow>,
    /// The key-encryption keys that were there, wrapped by it.
    pub keks: Vec<KekRow>,
    /// One that the old ROOT never wrapped: what is sealed from now on is sealed with it.
    pub new_kek: KekRow,
}

impl OpenVault {
    /// Which ROOT this is, and which key-encryption key it seals with.
    pub fn versions(&self) -> VaultVersions {
        VaultVersions { root: self.root_version, kek: self.newest_kek().0 }
    }

    /// The versions of its key-encryption keys, oldest first.
    pub fn kek_versions(&self) -> Vec<u32> {
        self.keks.keys().copied().collect()
    }

    /// Makes a further key-encryption key, wrapped by ROOT. Nothing is sealed with it before the row was stored and
    /// [`OpenVault::learn_keks`] took it in.
    pub fn new_kek(&self, version: u32) -> Result<KekRow, VaultError> {
        let kek = LockedBytes::random()?;
        Ok(KekRow::wrap(&kek, version, &SealKey::derive(&self.root), &self.cluster_id))
    }

    /// Takes in those of `rows` that it does not hold. After an error it holds what it held.
    pub fn learn_keks(&mut self, rows: &[KekRow]) -> Result<(), VaultError> {
        let opener = SealKey::derive(&self.root);
        let mut learnt = Vec::new();
        for row in rows.iter().filter(|row| !self.keks.contains_key(&row.version)) {
            learnt.push((row.version, row.open(&opener, &self.cluster_id)?));
        }
        self.keks.extend(learnt);
        Ok(())
    }

    /// Wipes these key-encryption keys, but for the newest one.
    pub fn forget_keks(&mut self, versions: &[u32]) {
        let newest = self.newest_kek().0;
        self.keks.retain(|version, _| *version == newest || !versions.contains(version));
    }

    /// Makes another ROOT: for `slots`, each of which has to wrap the ROOT that is here now, and for `keks`, all that
    /// rows may be sealed with. `kek_version` is that of the key-encryption key that is made with it.
    pub fn with_new_root(
        &self,
        slots: &[ProvenSlot],
        keks: &[KekRow],
        kek_version: u32,
    ) -> Result<NewRoot, VaultError> {
        let cluster_id = &self.cluster_id;
        let root = LockedBytes::random()?;
        let mut rewrapped = Vec::with_capacity(slots.len());
        for slot in slots {
            let wrapped = slot.root(cluster_id)?;
            if !bool::from(wrapped.expose().ct_eq(self.root.expose())) {
                let row_id = slot.row().id.clone();
                return Err(VaultError::Tampered { table: "vault_slots", row_id });
            }
            rewrapped.push(slot.rewrap(&root, cluster_id));
        }
        let (opener, wrapper) = (SealKey::derive(&self.root), SealKey::derive(&root));
        let (mut opened, mut rows) = (std::collections::BTreeMap::new(), Vec::with_capacity(keks.len()));
        for row in keks {
            let kek = row.open(&opener, cluster_id)?;
            rows.push(KekRow::wrap(&kek, row.version, &wrapper, cluster_id));
            opened.insert(row.version, kek);
        }
        let kek = LockedBytes::random()?;
        let new_kek = KekRow::wrap(&kek, kek_version, &wrapper, cluster_id);
        opened.insert(kek_version, kek);
        let vault = Self {
            cluster_id: cluster_id.clone(),
            root,
            root_version: self.root_version + 1,
            keks: opened,
            opened_by: self.opened_by.clone(),
        };
        Ok(NewRoot { vault, slots: rewrapped, keks: rows, new_kek })
    }
}

#[cfg(test)]
mod tests {
    use super::super::key_file::KeyFile;
    use super::super::keys::{KeyLabel, Purpose, SealedKey};
    use super::super::passphrase::{KdfCost, Passphrase};
    use super::super::root::{NewVault, UnlockError};
    use super::super::slots::{SlotError, SlotSecret};
    use super::super::{Keyring, Sealed};
    use super::*;

    fn key_file(byte: u8) -> SlotSecret {
        SlotSecret::KeyFile(KeyFile::of([byte; 32]))
    }

    fn passphrase(text: &str) -> SlotSecret {
        SlotSecret::Passphrase(Passphrase::parse(text.as_bytes()).unwrap().with_cost(KdfCost::FLOOR))
    }

    fn new_vault() -> NewVault {
        OpenVault::create("cluster", "slot-1", &key_file(1)).unwrap()
    }

    fn label(id: &str) -> KeyLabel {
        KeyLabel {
            id: id.into(),
            name: format!("{id}-1"),
            version: 1,
            purpose: Purpose::Cache,
            cache_id: None,
        }
    }

    fn new_key(vault: &OpenVault, id: &str) -> SealedKey {
        vault.seal_new_key(label(id)).unwrap()
    }

    fn open(slots: &[SlotRow], keks: &[KekRow], secret: &SlotSecret) -> Result<OpenVault, UnlockError> {
        OpenVault::open("cluster", slots, keks, secret)
    }

    #[test]
    fn what_is_sealed_after_a_new_kek_is_sealed_under_it_and_the_rest_opens_as_before() {
        let NewVault { mut vault, .. } = new_vault();
        let before = new_key(&vault, "before");

        let row = vault.new_kek(2).unwrap();
        assert_eq!(new_key(&vault, "between").sealed.kek_version(), 1, "it is not stored yet");
        vault.learn_keks(std::slice::from_ref(&row)).unwrap();
        let after = new_key(&vault, "after");

        assert_eq!((before.sealed.kek_version(), after.sealed.kek_version()), (1, 2));
        assert_eq!(vault.versions(), VaultVersions { root: 1, kek: 2 });
        assert!(vault.open_key(&before).is_ok() && vault.open_key(&after).is_ok());
    }

    #[test]
    fn a_rewrapped_key_is_the_same_key_and_opens_under_the_new_kek_alone() {
        let NewVault { mut vault, .. } = new_vault();
        let before = new_key(&vault, "key");
        let (hook, _) = vault.seal_new_webhook("hook").unwrap();
        let mac = vault.sign_webhook(&hook, b"x").unwrap();
        let row = vault.new_kek(2).unwrap();
        vault.learn_keks(&[row]).unwrap();

        let after = SealedKey { sealed: vault.rewrap_key(&before).unwrap(), ..before.clone() };
        let moved =
            super::super::SealedWebhook { sealed: vault.rewrap_webhook(&hook).unwrap(), ..hook.clone() };
        vault.forget_keks(&[1]);

        let signature = vault.open_key(&after).unwrap().sign_claim(b"1;").unwrap();
        let verifier = ed25519_dalek::VerifyingKey::from_bytes(&before.public_key).unwrap();
        assert!(verifier.verify_strict(b"1;", &signature.into()).is_ok());
        assert_eq!(vault.sign_webhook(&moved, b"x").unwrap(), mac);
        assert!(matches!(vault.open_key(&before), Err(VaultError::UnknownKek { kek_version: 1, .. })));
        assert!(matches!(vault.sign_webhook(&hook, b"x"), Err(VaultError::UnknownKek { .. })));
    }

    #[test]
    fn a_row_that_does_not_prove_itself_is_not_rewrapped() {
        let NewVault { mut vault, .. } = new_vault();
        let (row, other) = (new_key(&vault, "key"), new_key(&vault, "other"));
        let kek = vault.new_kek(2).unwrap();
        vault.learn_keks(&[kek]).unwrap();

        for (what, changed) in [
            ("another key's record", SealedKey { sealed: other.sealed.clone(), ..row.clone() }),
            ("another public key", SealedKey { public_key: other.public_key, ..row.clone() }),
            ("another name", SealedKey { label: label("other"), ..row.clone() }),
            ("nothing", SealedKey { sealed: row.sealed.erased(), ..row.clone() }),
        ] {
            assert!(matches!(vault.rewrap_key(&changed), Err(VaultError::Tampered { .. })), "{what}");
        }
        let (hook, _) = vault.seal_new_webhook("hook").unwrap();
        let moved = super::super::SealedWebhook { id: "elsewhere".into(), ..hook };
        assert!(matches!(vault.rewrap_webhook(&moved), Err(VaultError::Tampered { .. })));
    }

    #[test]
    fn a_kek_that_root_did_not_wrap_is_not_learnt_and_nothing_is_lost() {
        let NewVault { mut vault, kek, .. } = new_vault();
        let good = vault.new_kek(2).unwrap();
        let foreign = KekRow { version: 3, ..new_vault().kek };
        let moved = KekRow { version: 3, ..good.clone() };

        for bad in [foreign, moved] {
            let refused = vault.learn_keks(&[kek.clone(), good.clone(), bad]);

            assert!(matches!(refused, Err(VaultError::Tampered { table: "vault_keks", .. })));
            assert_eq!(vault.kek_versions(), [1]);
        }
    }

    #[test]
    fn the_newest_kek_is_never_forgotten() {
        let NewVault { mut vault, .. } = new_vault();

        vault.forget_keks(&[1, 2]);

        assert_eq!(vault.kek_versions(), [1]);
    }

    #[test]
    fn a_new_root_opens_through_the_slots_that_were_proven_and_opens_what_was_there() {
        let NewVault { vault, slot, kek } = new_vault();
        let second = vault.new_slot("slot-2", &passphrase("correct horse battery")).unwrap();
        let key = new_key(&vault, "key");
        let secrets = [key_file(1), passphrase("correct horse battery")];
        let proven = [slot.prove(&secrets[0]).unwrap(), second.prove(&secrets[1]).unwrap()];

        let new = vault.with_new_root(&proven, std::slice::from_ref(&kek), 2).unwrap();

        let keks = [new.keks[0].clone(), new.new_kek.clone()];
        for (at, secret) in secrets.iter().enumerate() {
            let opened = open(&new.slots[at..=at], &keks, secret).unwrap();
            assert_eq!(opened.root.expose(), new.vault.root.expose());
            assert!(opened.open_key(&key).is_ok());
            assert_eq!(opened.versions().kek, 2);
            // The same slot as before, but for what it wraps.
            let before = [&slot, &second][at];
            assert_eq!((&new.slots[at].id, &new.slots[at].kcv), (&before.id, &before.kcv));
            assert_eq!(new.slots[at].params, before.params);
        }
        assert_ne!(new.vault.root.expose(), vault.root.expose());
        assert_eq!(new.vault.versions(), VaultVersions { root: 2, kek: 2 });
    }

    #[test]
    fn an_old_secret_with_an_old_copy_opens_nothing_that_is_written_later() {
        let NewVault { vault, slot, kek } = new_vault();
        let kept = vault.new_slot("slot-2", &key_file(2)).unwrap();
        let proven = [kept.prove(&key_file(2)).unwrap()];
        let new = vault.with_new_root(&proven, std::slice::from_ref(&kek), 2).unwrap();
        let later = new_key(&new.vault, "later");

        // The thief has slot 1's secret and all rows of before, and every row of now.
        let thief = open(&[slot, kept], std::slice::from_ref(&kek), &key_file(1)).unwrap();
        assert!(matches!(thief.open_key(&later), Err(VaultError::UnknownKek { kek_version: 2, .. })));
        let mut thief = thief;
        for row in new.keks.iter().chain([&new.new_kek]) {
            thief.keks.remove(&row.version);
            assert!(matches!(thief.learn_keks(std::slice::from_ref(row)), Err(VaultError::Tampered { .. })));
        }
        let keks = [new.keks[0].clone(), new.new_kek.clone()];
        assert!(matches!(open(&new.slots, &keks, &key_file(1)), Err(UnlockError::WrongSecret { .. })));
        // Nor do the keys of backups made by the new one open by the old one.
        let place = super::super::ChunkPlace { header_sha256: &[0; 32], number: 0, is_last: true };
        let mut chunk = b"rows".to_vec();
        new.vault.backup_key(&[3; 32]).seal(place, &mut chunk);
        assert!(vault.backup_key(&[3; 32]).open(place, &mut chunk).is_err());
    }

    #[test]
    fn only_a_proven_secret_of_this_very_vault_rotates_root() {
        let NewVault { vault, slot, kek } = new_vault();
        let other = OpenVault::create("cluster", "slot-1", &key_file(1)).unwrap();

        assert!(matches!(slot.prove(&key_file(2)), Err(SlotError::OtherSecret)));
        let proven = [other.slot.prove(&key_file(1)).unwrap()];
        let refused = vault.with_new_root(&proven, std::slice::from_ref(&kek), 2);
        assert!(matches!(refused, Err(VaultError::Tampered { table: "vault_slots", .. })));
        let proven = [slot.prove(&key_file(1)).unwrap()];
        let refused = vault.with_new_root(&proven, &[other.kek], 2);
        assert!(matches!(refused, Err(VaultError::Tampered { table: "vault_keks", .. })));
        assert!(vault.with_new_root(&proven, &[kek], 2).is_ok());
        assert!(!format!("{:?}", proven[0]).contains("1, 1"), "{:?}", proven[0]);
    }

    #[test]
    fn a_keyring_learns_only_by_the_root_that_it_holds() {
        let keyring = Keyring::sealed();
        assert!(matches!(keyring.learn_keks(1, &[]), Err(VaultError::Sealed)));
        assert_eq!(keyring.versions(), None);
        keyring.unlock(new_vault().vault.of_root_version(4));
        let row = keyring.with_vault(|vault| vault.new_kek(2)).unwrap();

        assert!(matches!(keyring.learn_keks(5, std::slice::from_ref(&row)), Err(VaultError::OtherRoot)));
        keyring.learn_keks(4, &[row]).unwrap();

        assert_eq!(keyring.versions(), Some(VaultVersions { root: 4, kek: 2 }));
        assert_eq!(keyring.kek_versions(), [1, 2]);
        keyring.forget_keks(&[1]);
        assert_eq!(keyring.kek_versions(), [2]);
        assert!(keyring.replace(new_vault().vault).is_some());
        keyring.lock();
        assert!(keyring.replace(new_vault().vault).is_none());
        assert!(keyring.is_open());
    }

    #[test]
    fn a_record_of_a_later_format_is_not_taken_for_one_of_a_kek() {
        assert_eq!(Sealed::header(0x0102_0304), [1, 1, 1, 2, 3, 4]);
    }
}
