//! Chunks of backups, sealed with a key that only ROOT makes: whoever opens the vault opens its backups.
//!
//! Never decides what a chunk holds. The layout of the file is `service::backup`'s.

use std::fmt;

use chacha20poly1305::aead::AeadInOut as _;
use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{KeyInit as _, Tag, XChaCha20Poly1305, XNonce};

use super::VaultError;
use super::keyring::Keyring;
use super::root::OpenVault;

/// Random bytes that make the key of one backup another one than that of every other.
pub const BACKUP_SALT_BYTES: usize = 32;

/// By how much a sealed chunk is longer than what is in it.
pub const BACKUP_TAG_BYTES: usize = 16;

/// The key of one backup.
pub struct BackupKey(XChaCha20Poly1305);

/// Where a chunk belongs. One that was moved, or left out, or comes from another backup, does not open.
#[derive(Debug, Clone, Copy)]
pub struct ChunkPlace<'a> {
    /// SHA-256 of everything that stands before the first chunk.
    pub header_sha256: &'a [u8; 32],
    /// From 0.
    pub number: u64,
    /// Whether nothing follows.
    pub is_last: bool,
}

/// The chunk was altered, or belongs elsewhere, or the key is another backup's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("chunk does not open in this place")]
pub struct OtherChunk;

impl OpenVault {
    /// The key of the backup with this salt. HKDF-SHA256 with an info of its own, so that it tells nothing of the keys
    /// that the vault seals with.
    pub fn backup_key(&self, salt: &[u8; BACKUP_SALT_BYTES]) -> BackupKey {
        let key = self.stretch_root(salt, b"narvault/v1/backup");
        BackupKey(XChaCha20Poly1305::new((&*key).into()))
    }
}

impl Keyring {
    /// See [`OpenVault::backup_key`]. Refused unless this process holds the ROOT of `root_version`: the slots that the
    /// backup has wrap that one, and would not open what another one sealed.
    pub fn backup_key(
        &self,
        root_version: i64,
        salt: &[u8; BACKUP_SALT_BYTES],
    ) -> Result<BackupKey, VaultError> {
        self.with_vault(|vault| match vault.versions().root {
            held if held == root_version => Ok(vault.backup_key(salt)),
            _ => Err(VaultError::OtherRoot),
        })
    }
}

impl BackupKey {
    /// Seals `chunk` where it lies; its tag is put behind it.
    pub fn seal(&self, place: ChunkPlace<'_>, chunk: &mut Vec<u8>) {
        let tag = self
            .0
            .encrypt_inout_detached(
                &place.nonce(),
                &place.associated_data(),
                InOutBuf::from(chunk.as_mut_slice()),
            )
            .expect("a chunk: the cipher takes up to 256 GiB");
        chunk.extend_from_slice(&tag);
    }

    /// Opens `chunk` where it lies; its tag is taken off. After an error nothing of it is to be used.
    pub fn open(&self, place: ChunkPlace<'_>, chunk: &mut Vec<u8>) -> Result<(), OtherChunk> {
        let length = chunk.len().checked_sub(BACKUP_TAG_BYTES).ok_or(OtherChunk)?;
        let tag: [u8; BACKUP_TAG_BYTES] = chunk[length..].try_into().map_err(|_| OtherChunk)?;
        chunk.truncate(length);
        self.0
            .decrypt_inout_detached(
                &place.nonce(),
                &place.associated_data(),
                InOutBuf::from(chunk.as_mut_slice()),
                &Tag::from(tag),
            )
            .map_err(|_| OtherChunk)
    }
}

impl fmt::Debug for BackupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BackupKey([redacted])")
    }
}

impl ChunkPlace<'_> {
    /// The chunk's number: the key is of one backup alone, so no nonce meets again under it.
    fn nonce(&self) -> XNonce {
        let mut nonce = [0; 24];
        nonce[16..].copy_from_slice(&self.number.to_be_bytes());
        XNonce::from(nonce)
    }

    fn associated_data(&self) -> Vec<u8> {
        let mut text = b"narvault/v1/backup\0".to_vec();
        text.extend_from_slice(self.header_sha256);
        text.extend_from_slice(&self.number.to_be_bytes());
        text.push(u8::from(self.is_last));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::key_file::KeyFile;
    use super::super::slots::SlotSecret;
    use super::*;

    const PLACE: ChunkPlace<'_> = ChunkPlace { header_sha256: &[7; 32], number: 1, is_last: false };

    fn vault() -> OpenVault {
        OpenVault::create("cluster", "slot", &SlotSecret::KeyFile(KeyFile::of([1; 32]))).unwrap().vault
    }

    fn sealed(key: &BackupKey) -> Vec<u8> {
        let mut chunk = b"rows".to_vec();
        key.seal(PLACE, &mut chunk);
        chunk
    }

    #[test]
    fn a_chunk_opens_in_its_place_and_hides_what_is_in_it() {
        let key = vault().backup_key(&[3; 32]);
        let mut chunk = sealed(&key);
        assert_eq!(chunk.len(), 4 + BACKUP_TAG_BYTES);
        assert_ne!(&chunk[..4], b"rows");

        key.open(PLACE, &mut chunk).unwrap();

        assert_eq!(chunk, b"rows");
    }

    #[test]
    fn a_chunk_opens_nowhere_else() {
        let key = vault().backup_key(&[3; 32]);
        for (what, place) in [
            ("header", ChunkPlace { header_sha256: &[8; 32], ..PLACE }),
            ("number", ChunkPlace { number: 2, ..PLACE }),
            ("last", ChunkPlace { is_last: true, ..PLACE }),
        ] {
            assert_eq!(key.open(place, &mut sealed(&key)), Err(OtherChunk), "{what}");
        }
    }

    #[test]
    fn a_changed_or_cut_chunk_does_not_open() {
        let key = vault().backup_key(&[3; 32]);
        for at in 0..sealed(&key).len() {
            let mut chunk = sealed(&key);
            chunk[at] ^= 1;
            assert_eq!(key.open(PLACE, &mut chunk), Err(OtherChunk), "{at}");
        }
        for length in [0, 1, 15, 16, 19] {
            assert_eq!(key.open(PLACE, &mut sealed(&key)[..length].to_vec()), Err(OtherChunk), "{length}");
        }
    }

    #[test]
    fn another_salt_or_vault_makes_another_key() {
        let vault_of_it = vault();
        let key = vault_of_it.backup_key(&[3; 32]);

        for other in [vault_of_it.backup_key(&[4; 32]), vault().backup_key(&[3; 32])] {
            assert_eq!(other.open(PLACE, &mut sealed(&key)), Err(OtherChunk));
        }
        assert!(vault_of_it.backup_key(&[3; 32]).open(PLACE, &mut sealed(&key)).is_ok());
    }

    #[test]
    fn another_root_than_that_of_the_slots_makes_no_key() {
        let keyring = Keyring::sealed();
        keyring.unlock(vault().of_root_version(2));

        assert!(matches!(keyring.backup_key(1, &[3; 32]), Err(VaultError::OtherRoot)));
        assert!(matches!(keyring.backup_key(3, &[3; 32]), Err(VaultError::OtherRoot)));
        let mut chunk = sealed(&keyring.backup_key(2, &[3; 32]).unwrap());
        keyring.backup_key(2, &[3; 32]).unwrap().open(PLACE, &mut chunk).unwrap();
        assert_eq!(chunk, b"rows");
    }

    #[test]
    fn a_sealed_keyring_makes_no_key_and_a_key_prints_nothing() {
        assert!(matches!(Keyring::sealed().backup_key(1, &[3; 32]), Err(VaultError::Sealed)));
        assert_eq!(format!("{:?}", vault().backup_key(&[3; 32])), "BackupKey([redacted])");
    }
}
