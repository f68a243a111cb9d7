//! The layout of a backup, and its header: the one part in clear, as much as it takes to open the vault and to know what
//! lies there.
//!
//! ```text
//! narvault-backup/1 LF
//! u32 big endian: length of the header   | header: JSON
//! chunk 0 | chunk 1 | … | last chunk
//! chunk: u8: 1 if it is the last, else 0 | u32 big endian: length | ciphertext | tag, 16 bytes
//! ```
//!
//! Chunks are sealed as [`crate::vault::backup`] says, bound to the SHA-256 of all that stands before the first one. What
//! is in them, one after the other, is one zstd frame of lines: `table {"name":…,"columns":[…]}`, then its rows, a JSON
//! object each, and after the last table `end` and the number of rows.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::BackupError;
use crate::time::Timestamp;
use crate::tlog::hash::NodeHash;
use crate::vault::backup::BACKUP_SALT_BYTES;
use crate::vault::{KekRow, Sealed, SlotRow};

/// What every backup begins with; the format's number and a line break follow.
pub(super) const MAGIC: &[u8] = b"narvault-backup/";

/// This format's number and the line break.
pub(super) const FORMAT: &[u8] = b"1\n";

/// Largest header that is read. A slot takes some 500 bytes and a key-encryption key 200: there is room for thousands.
pub(super) const HEADER_SIZE_BYTES_MAX: usize = 1 << 20;

/// What is sealed as one, before it is sealed.
pub(super) const CHUNK_SIZE_BYTES: usize = 64 * 1024;

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub cluster_id: String,
    /// The version that made it.
    pub narvault: String,
    /// The newest migration of the database that it is of.
    pub schema: i64,
    pub made_at: Timestamp,
    pub salt: [u8; BACKUP_SALT_BYTES],
    /// How many leaves the log has in it, and the root that they make.
    pub log_size: u64,
    pub log_root: NodeHash,
    pub slots: Vec<SlotRow>,
    pub keks: Vec<KekRow>,
}

#[derive(Serialize, Deserialize)]
struct HeaderText {
    cluster_id: String,
    narvault: String,
    schema: i64,
    made_at: String,
    salt: String,
    log_size: u64,
    log_root: String,
    slots: Vec<SlotText>,
    keks: Vec<KekText>,
}

#[derive(Serialize, Deserialize)]
struct SlotText {
    id: String,
    kind: String,
    params: String,
    wrapped_root: String,
    kcv: String,
}

#[derive(Serialize, Deserialize)]
struct KekText {
    version: u32,
    wrapped: String,
}

impl Header {
    /// Everything that stands before the first chunk.
    pub fn encode(&self) -> Result<Vec<u8>, BackupError> {
        let text = HeaderText {
            cluster_id: self.cluster_id.clone(),
            narvault: self.narvault.clone(),
            schema: self.schema,
            made_at: self.made_at.rfc3339(),
            salt: HEXLOWER.encode(&self.salt),
            log_size: self.log_size,
            log_root: self.log_root.to_string(),
            slots: self.slots.iter().map(slot_text).collect(),
            keks: self.keks.iter().map(kek_text).collect(),
        };
        let text = serde_json::to_vec(&text).map_err(|error| BackupError::Write(error.into()))?;
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes();
        Ok([MAGIC, FORMAT, &length, &text].concat())
    }

    /// Reads the JSON. Nothing in it is believed until a chunk has opened: the digest of the header is bound to each.
    pub fn parse(json: &[u8]) -> Result<Self, BackupError> {
        let text: HeaderText = serde_json::from_slice(json).map_err(|_| BackupError::HeaderDamaged)?;
        text.header().ok_or(BackupError::HeaderDamaged)
    }
}

impl HeaderText {
    fn header(self) -> Option<Header> {
        Some(Header {
            made_at: Timestamp::parse_rfc3339(&self.made_at).ok()?,
            salt: bytes(&self.salt)?,
            log_root: self.log_root.parse().ok()?,
            slots: self.slots.into_iter().map(SlotText::slot).collect::<Option<_>>()?,
            keks: self.keks.into_iter().map(KekText::kek).collect::<Option<_>>()?,
            cluster_id: self.cluster_id,
            narvault: self.narvault,
            schema: self.schema,
            log_size: self.log_size,
        })
    }
}

impl SlotText {
    fn slot(self) -> Option<SlotRow> {
        Some(SlotRow {
            kind: self.kind.parse().ok()?,
            wrapped_root: sealed(&self.wrapped_root)?,
            kcv: bytes(&self.kcv)?,
            id: self.id,
            params: self.params,
        })
    }
}

impl KekText {
    fn kek(self) -> Option<KekRow> {
        Some(KekRow { version: self.version, wrapped: sealed(&self.wrapped)? })
    }
}

fn slot_text(slot: &SlotRow) -> SlotText {
    SlotText {
        id: slot.id.clone(),
        kind: slot.kind.to_string(),
        params: slot.params.clone(),
        wrapped_root: HEXLOWER.encode(slot.wrapped_root.as_bytes()),
        kcv: HEXLOWER.encode(&slot.kcv),
    }
}

fn kek_text(kek: &KekRow) -> KekText {
    KekText { version: kek.version, wrapped: HEXLOWER.encode(kek.wrapped.as_bytes()) }
}

fn bytes<const N: usize>(hex: &str) -> Option<[u8; N]> {
    HEXLOWER.decode(hex.as_bytes()).ok()?.try_into().ok()
}

fn sealed(hex: &str) -> Option<Sealed> {
    Sealed::parse(&HEXLOWER.decode(hex.as_bytes()).ok()?).ok()
}
