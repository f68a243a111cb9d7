//! The vault: the only code that sees a private key in clear. Sealed rows come in and go out as plain values.
//!
//! Never talks to the database, never waits, never reads the clock, and has no function that returns a private key. The
//! secret of a webhook, which both ends need, is returned once, when it is made.
//!
//! ```text
//! slot secret (key file | KMS | passphrase → Argon2id | shares) one row for each slot     slots, key_file, kms, passphrase, share
//!   └ wraps ROOT   32 random bytes, exists only in memory     vault_slots.wrapped_root    root
//!       ├ makes the keys of backups                           –                           backup
//!       └ wraps KEK v1 … vn                                   vault_keks.wrapped          root
//!           ├ seals Ed25519 seeds: cache, token, log keys     signing_keys.sealed         keys
//!           └ seals secrets of webhooks                       webhooks.sealed             webhook
//! ```
//!
//! ROOT and the KEKs can be replaced while everything goes on ([`rekey`]): a new ROOT is wrapped for each slot whose
//! secret is proven and wraps the KEKs anew; a new KEK seals what is written from then on, and rows are sealed under it
//! one after the other. Each row names its KEK, so that all of them open at any time.
//!
//! Any one slot opens the vault. At each level the secret above is stretched with HKDF-SHA256 (empty salt, info
//! `narvault/v1/seal`) into the key of an XChaCha20-Poly1305 record ([`seal`]):
//!
//! | bytes | 1 | 1 | 4 | 24 | 32 | 16 |
//! |---|---|---|---|---|---|---|
//! | what | version = 1 | algorithm = 1 | KEK version, big endian; 0 where ROOT or a KEK is wrapped | nonce | secret | tag |
//!
//! The associated data says where the record belongs: `narvault/v1\0`, then each of these as a big-endian `u32`
//! length and the bytes (numbers as decimal ASCII, absent as length 0):
//!
//! | row | cluster | table | row id | key name | version | purpose | cache | public key | KEK | algorithm | kind | parameters |
//! |---|---|---|---|---|---|---|---|---|---|---|---|---|
//! | slot | id | `vault_slots` | slot id | – | – | `root` | – | – | 0 | 1 | slot's kind | slot's parameters |
//! | KEK | id | `vault_keks` | version | – | version | `kek` | – | – | 0 | 1 | | |
//! | key | id | `signing_keys` | key id | name | version | `cache`, `token`, `log` | id or – | 32 bytes | version | 1 | | |
//! | webhook | id | `webhooks` | webhook id | – | – | `webhook` | – | – | version | 1 | | |
//! | offline key | – | `offline_key` | – | name | – | `root` | – | 32 bytes | 0 | 1 | `passphrase` | its parameters |
//!
//! The last one is a file of its own, away from every server: a root key, sealed under a passphrase ([`offline_key`]).
//!
//! Invariants, each with a test:
//! - A row moved to another place, or one field of which was changed, does not open.
//! - An opened seed that does not make the public key of its row is a fatal error for that key.
//! - A wrong passphrase or key file, and shares that are not genuine, are told by the slot's check value, before anything
//!   is unwrapped.
//! - Shares are combined only when each belongs to the same split of the same slot ([`share`]; the arithmetic is in
//!   `shamir`).
//! - Cost parameters read from a row are checked against floor and ceiling before any work is done with them.
//! - ROOT is rotated only for slots whose secrets are proven; the one that it replaces wraps nothing of what comes later.
//! - What holds a secret prints as `[redacted]`; no error repeats what it could not read.
//! - ROOT, KEKs and opened seeds lie in locked pages of their own ([`memory`]), wiped when the keyring is locked.

pub mod backup;
pub mod key_file;
pub mod keyring;
pub mod keys;
pub mod kms;
pub mod memory;
pub mod nix_key;
pub mod offline_key;
pub mod passphrase;
pub mod random;
pub mod rekey;
pub mod root;
pub mod seal;
mod shamir;
pub mod share;
pub mod slots;
pub mod token;
pub mod webhook;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod wycheproof;

pub use backup::{BackupKey, ChunkPlace};
pub use key_file::KeyFile;
pub use keyring::Keyring;
pub use keys::{KeyLabel, OpenKey, Purpose, SealedKey};
pub use kms::{KmsKeyArn, KmsParams, KmsSecret};
pub use nix_key::NixSecretKey;
pub use offline_key::{OfflineKey, OfflineKeyError};
pub use passphrase::{KdfCost, Passphrase};
pub use rekey::{NewRoot, VaultVersions};
pub use root::{KekRow, NewVault, OpenVault};
pub use seal::Sealed;
pub use share::{Share, ShareCount, SplitKey};
pub use slots::{ProvenSlot, SlotKind, SlotRow, SlotSecret};
pub use webhook::SealedWebhook;

/// Why the vault did not do what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error("no page of memory for a secret")]
    Memory(#[from] memory::MemoryError),
    #[error("token could not be written")]
    Mint(#[source] jsonwebtoken::errors::Error),
    /// The statement does not need this key's word.
    #[error("a key was asked to sign a succession that does not need its word")]
    NotConcerned,
    #[error("name of the imported key is not the name of the key row")]
    OtherName,
    /// Somebody put another ROOT in the place of the one that this process holds.
    #[error("the vault's root key was rotated since this process opened it")]
    OtherRoot,
    #[error("the vault is sealed")]
    Sealed,
    #[error("a succession was to be signed that nobody could read")]
    Statement(#[source] crate::succession::ReadError),
    /// The row was altered, or copied from another place: nothing of it may be used.
    #[error("row {row_id} of {table} does not open: it was altered, or it belongs elsewhere")]
    Tampered { table: &'static str, row_id: String },
    #[error("row {row_id} is sealed with key-encryption key {kek_version}, which this vault does not have")]
    UnknownKek { row_id: String, kek_version: u32 },
    /// Fatal for this key: signing with it would make signatures that nobody trusts.
    #[error("public key in row {row_id} is not the one that its sealed seed makes")]
    WrongPublicKey { row_id: String },
    #[error("a {found} key was asked to do the work of a {needed} key")]
    WrongPurpose { found: Purpose, needed: Purpose },
}
