//! What a running server holds: the open vault, or nothing, and the keys that it has opened so far.
//!
//! Never lets an open key out: all signing is done in here, so that when [`Keyring::lock`] returns, no secret is left.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use serde::Serialize;

use super::VaultError;
use super::keys::{OpenKey, SealedKey};
use super::rekey::VaultVersions;
use super::root::{KekRow, OpenVault};
use crate::succession::Statement;

/// Most seeds kept open at once, a locked page each. Past it all are dropped and opened again when next needed, which
/// costs less than a millisecond a key.
pub const OPEN_KEYS_MAX: usize = 1024;

/// The vault of this process, open or sealed. Clones are the same keyring.
///
/// A panic while it is in use leaves nothing half done in it, so poisoned locks are used as they are.
#[derive(Clone, Default)]
pub struct Keyring(Arc<RwLock<Option<Opened>>>);

struct Opened {
    vault: OpenVault,
    keys: HashMap<String, OpenKey>,
}

impl Keyring {
    /// A keyring that is sealed until [`Keyring::unlock`].
    pub fn sealed() -> Self {
        Self::default()
    }

    /// Takes the open vault in, in place of one that may be there.
    pub fn unlock(&self, vault: OpenVault) {
        *self.write() = Some(Opened { vault, keys: HashMap::new() });
    }

    /// The same; gives back the one that was there.
    pub fn replace(&self, vault: OpenVault) -> Option<OpenVault> {
        let before = self.write().replace(Opened { vault, keys: HashMap::new() });
        before.map(|opened| opened.vault)
    }

    /// Which ROOT and which newest key-encryption key this process holds; `None` while it is sealed.
    pub fn versions(&self) -> Option<VaultVersions> {
        self.read().as_ref().map(|opened| opened.vault.versions())
    }

    /// The versions of all key-encryption keys that it holds, oldest first.
    pub fn kek_versions(&self) -> Vec<u32> {
        self.read().as_ref().map_or_else(Vec::new, |opened| opened.vault.kek_versions())
    }

    /// Takes in those key-encryption keys that this process does not hold yet. Refused if another ROOT wraps them than
    /// the one that it holds.
    pub fn learn_keks(&self, root_version: i64, rows: &[KekRow]) -> Result<(), VaultError> {
        let mut state = self.write();
        let opened = state.as_mut().ok_or(VaultError::Sealed)?;
        if opened.vault.versions().root != root_version {
            return Err(VaultError::OtherRoot);
        }
        opened.vault.learn_keks(rows)
    }

    /// Wipes key-encryption keys that seal nothing any more. The newest one stays.
    pub fn forget_keks(&self, versions: &[u32]) {
        if let Some(opened) = self.write().as_mut() {
            opened.vault.forget_keks(versions);
        }
    }

    /// Wipes ROOT, the key-encryption keys and every open seed. Signing that has begun ends first; none begins later.
    pub fn lock(&self) {
        *self.write() = None;
    }

    /// Whether the vault is open.
    pub fn is_open(&self) -> bool {
        self.read().is_some()
    }

    /// Wipes the open seed of one key, which signs no longer.
    pub fn forget(&self, key_id: &str) {
        if let Some(opened) = self.write().as_mut() {
            opened.keys.remove(key_id);
        }
    }

    /// Wipes the open seeds of all keys but those of which `keep` says so, by their ids.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        if let Some(opened) = self.write().as_mut() {
            opened.keys.retain(|id, _| keep(id));
        }
    }

    /// Whether the seed of a key lies open.
    #[cfg(test)]
    pub(crate) fn holds(&self, key_id: &str) -> bool {
        self.read().as_ref().is_some_and(|opened| opened.keys.contains_key(key_id))
    }

    /// Has a row prove that its public key belongs to its sealed seed, also one that signs no longer: its seed is
    /// wiped at once.
    pub fn prove(&self, row: &SealedKey) -> Result<(), VaultError> {
        let state = self.read();
        let opened = state.as_ref().ok_or(VaultError::Sealed)?;
        match opened.opened(row) {
            Some(_) => Ok(()),
            None => opened.vault.open_key(row).map(drop),
        }
    }

    /// Whether nobody works with the vault at this moment: then signing waits for nobody.
    pub fn is_free(&self) -> bool {
        !matches!(self.0.try_write(), Err(TryLockError::WouldBlock))
    }

    /// Works with the open vault: sealing a new key, making a slot. A passphrase slot takes a second, during which
    /// the vault can sign but not be locked.
    pub fn with_vault<T, E: From<VaultError>>(
        &self,
        work: impl FnOnce(&OpenVault) -> Result<T, E>,
    ) -> Result<T, E> {
        work(&self.read().as_ref().ok_or(VaultError::Sealed)?.vault)
    }

    /// Signs the fingerprint of a store path: see [`OpenKey::sign_claim`].
    pub fn sign_claim(&self, key: &SealedKey, fingerprint: &[u8]) -> Result<[u8; 64], VaultError> {
        self.with_key(key, |key| key.sign_claim(fingerprint))
    }

    /// Signs the text of a checkpoint: see [`OpenKey::sign_note`].
    pub fn sign_note(&self, key: &SealedKey, text: &[u8]) -> Result<[u8; 64], VaultError> {
        self.with_key(key, |key| key.sign_note(text))
    }

    /// Signs that one key comes after another: see [`OpenKey::sign_succession`].
    pub fn sign_succession(&self, key: &SealedKey, statement: &Statement) -> Result<[u8; 64], VaultError> {
        self.with_key(key, |key| key.sign_succession(statement))
    }

    /// Writes a signed token: see [`OpenKey::mint_token`].
    pub fn mint_token(&self, key: &SealedKey, claims: &impl Serialize) -> Result<String, VaultError> {
        self.with_key(key, |key| key.mint_token(claims))
    }

    /// Works with an open key, opening it if this is the first time. A row that changed since is opened anew, and so
    /// has to prove itself again.
    fn with_key<T>(
        &self,
        row: &SealedKey,
        work: impl FnOnce(&OpenKey) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        if let Some(key) = self.read().as_ref().ok_or(VaultError::Sealed)?.opened(row) {
            return work(key);
        }
        let mut state = self.write();
        let opened = state.as_mut().ok_or(VaultError::Sealed)?;
        if opened.opened(row).is_none() {
            let key = opened.vault.open_key(row)?;
            if opened.keys.len() >= OPEN_KEYS_MAX {
                opened.keys.clear();
            }
            opened.keys.insert(row.label.id.clone(), key);
        }
        work(&opened.keys[&row.label.id])
    }

    fn read(&self) -> RwLockReadGuard<'_, Option<Opened>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Option<Opened>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Opened {
    fn opened(&self, row: &SealedKey) -> Option<&OpenKey> {
        self.keys.get(&row.label.id).filter(|key| key.row() == row)
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_open() { "Keyring(open, [redacted])" } else { "Keyring(sealed)" })
    }
}

#[cfg(test)]
mod tests {
    use super::super::key_file::KeyFile;
    use super::super::keys::{KeyLabel, Purpose};
    use super::super::slots::SlotSecret;
    use super::*;

    fn label(id: &str, purpose: Purpose) -> KeyLabel {
        KeyLabel { id: id.into(), name: format!("{id}-1"), version: 1, purpose, cache_id: None }
    }

    fn vault() -> OpenVault {
        OpenVault::create("cluster", "slot", &SlotSecret::KeyFile(KeyFile::of([1; 32]))).unwrap().vault
    }

    fn open_keyring() -> Keyring {
        let keyring = Keyring::sealed();
        keyring.unlock(vault());
        keyring
    }

    fn new_key(keyring: &Keyring, id: &str, purpose: Purpose) -> SealedKey {
        keyring.with_vault(|vault| vault.seal_new_key(label(id, purpose))).unwrap()
    }

    fn open_seeds(keyring: &Keyring) -> usize {
        keyring.read().as_ref().map_or(0, |opened| opened.keys.len())
    }

    #[test]
    fn an_open_keyring_signs_for_each_purpose_and_keeps_the_seed() {
        let keyring = open_keyring();
        let cache = new_key(&keyring, "cache", Purpose::Cache);
        let log = new_key(&keyring, "log", Purpose::Log);
        let token = new_key(&keyring, "token", Purpose::Token);

        let signature = keyring.sign_claim(&cache, b"1;").unwrap();

        assert_eq!(keyring.sign_claim(&cache, b"1;").unwrap(), signature);
        assert!(keyring.sign_note(&log, b"x\n").is_ok());
        assert!(keyring.mint_token(&token, &serde_json::json!({})).is_ok());
        assert_eq!(open_seeds(&keyring), 3);
    }

    #[test]
    fn a_sealed_keyring_does_nothing_on_any_clone() {
        let keyring = open_keyring();
        let key = new_key(&keyring, "cache", Purpose::Cache);
        let clone = keyring.clone();
        clone.sign_claim(&key, b"1;").unwrap();

        keyring.lock();

        assert!(!clone.is_open());
        assert_eq!(open_seeds(&clone), 0);
        assert!(matches!(clone.sign_claim(&key, b"1;"), Err(VaultError::Sealed)));
        assert!(matches!(clone.sign_note(&key, b"1;"), Err(VaultError::Sealed)));
        assert!(matches!(clone.mint_token(&key, &()), Err(VaultError::Sealed)));
        let refused = clone.with_vault(|vault| vault.seal_new_key(label("x", Purpose::Log)));
        assert!(matches!(refused, Err(VaultError::Sealed)));
    }

    #[test]
    fn a_changed_row_is_refused_although_its_key_is_open() {
        let keyring = open_keyring();
        let row = new_key(&keyring, "cache", Purpose::Cache);
        let other = new_key(&keyring, "other", Purpose::Cache);
        keyring.sign_claim(&row, b"1;").unwrap();

        for changed in [
            SealedKey { public_key: other.public_key, ..row.clone() },
            SealedKey { sealed: other.sealed.clone(), ..row.clone() },
            SealedKey {
                label: KeyLabel { cache_id: Some("other".into()), ..row.label.clone() },
                ..row.clone()
            },
        ] {
            assert!(matches!(keyring.sign_claim(&changed, b"1;"), Err(VaultError::Tampered { .. })));
        }
        assert!(keyring.sign_claim(&row, b"1;").is_ok());
    }

    #[test]
    fn another_vault_does_not_sign_with_keys_of_the_first() {
        let keyring = open_keyring();
        let row = new_key(&keyring, "cache", Purpose::Cache);
        keyring.sign_claim(&row, b"1;").unwrap();

        keyring.unlock(vault());

        assert!(matches!(keyring.sign_claim(&row, b"1;"), Err(VaultError::Tampered { .. })));
    }

    #[test]
    fn a_forgotten_key_is_wiped_and_opens_again_when_asked() {
        let keyring = open_keyring();
        let key = new_key(&keyring, "cache", Purpose::Cache);
        let signature = keyring.sign_claim(&key, b"1;").unwrap();

        keyring.forget("cache");

        assert_eq!(open_seeds(&keyring), 0);
        assert_eq!(keyring.sign_claim(&key, b"1;").unwrap(), signature);
    }

    #[test]
    fn only_kept_keys_stay_open() {
        let keyring = open_keyring();
        for id in ["one", "two"] {
            let key = new_key(&keyring, id, Purpose::Cache);
            keyring.sign_claim(&key, b"1;").unwrap();
        }

        keyring.retain(|id| id == "two");

        assert_eq!(open_seeds(&keyring), 1);
    }

    #[test]
    fn a_row_proves_its_public_key_and_stays_closed() {
        let keyring = open_keyring();
        let row = new_key(&keyring, "cache", Purpose::Cache);
        let other = new_key(&keyring, "other", Purpose::Cache);

        keyring.prove(&row).unwrap();

        assert_eq!(open_seeds(&keyring), 0);
        for changed in [
            SealedKey { public_key: other.public_key, ..row.clone() },
            SealedKey { sealed: row.sealed.erased(), ..row.clone() },
        ] {
            assert!(matches!(keyring.prove(&changed), Err(VaultError::Tampered { .. })));
        }
        keyring.lock();
        assert!(matches!(keyring.prove(&row), Err(VaultError::Sealed)));
    }

    #[test]
    fn no_more_seeds_are_open_than_the_limit() {
        let keyring = open_keyring();

        for number in 0..=OPEN_KEYS_MAX {
            let key = new_key(&keyring, &number.to_string(), Purpose::Cache);
            keyring.sign_claim(&key, b"1;").unwrap();
        }

        assert_eq!(open_seeds(&keyring), 1);
    }

    #[test]
    fn threads_sign_together_until_one_locks() {
        let keyring = open_keyring();
        let key = new_key(&keyring, "cache", Purpose::Cache);

        std::thread::scope(|scope| {
            let signers: Vec<_> =
                (0..4).map(|_| scope.spawn(|| while keyring.sign_claim(&key, b"1;").is_ok() {})).collect();
            keyring.lock();
            for signer in signers {
                signer.join().unwrap();
            }
        });

        assert!(!keyring.is_open());
    }

    #[test]
    fn a_keyring_prints_nothing_of_its_content() {
        let keyring = open_keyring();
        assert_eq!(format!("{keyring:?}"), "Keyring(open, [redacted])");

        keyring.lock();

        assert_eq!(format!("{keyring:?}"), "Keyring(sealed)");
    }
}
