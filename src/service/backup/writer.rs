//! Writing a backup: lines go into one zstd frame, which is cut into chunks, sealed, and sent off as soon as each is full.
//!
//! Never holds more than a line and some chunks.

use std::io::Write as _;

use bytes::Bytes;
use serde::Serialize;
use tokio::io::AsyncWriteExt as _;

use super::header::{CHUNK_SIZE_BYTES, Header};
use super::{BackupError, BackupTarget};
use crate::db::backup::Table;
use crate::nix::hash::Sha256Digest;
use crate::vault::{BackupKey, ChunkPlace};

/// A backup on its way.
pub(super) struct BackupWriter {
    target: BackupTarget,
    key: BackupKey,
    header_sha256: [u8; 32],
    frame: zstd::stream::write::Encoder<'static, Vec<u8>>,
    chunks: u64,
    rows: u64,
    size_bytes: u64,
}

/// What stands before the rows of a table.
#[derive(Serialize)]
struct TableHead {
    name: &'static str,
    columns: Vec<&'static str>,
}

impl BackupWriter {
    /// Writes the header.
    pub async fn begin(target: BackupTarget, header: &Header, key: BackupKey) -> Result<Self, BackupError> {
        let header = header.encode()?;
        let frame =
            zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL).map_err(BackupError::Compression)?;
        let header_sha256 = Sha256Digest::of(&header).0;
        let mut writer = Self { target, key, header_sha256, frame, chunks: 0, rows: 0, size_bytes: 0 };
        writer.send(header).await?;
        Ok(writer)
    }

    /// Begins a table.
    pub async fn table(&mut self, table: &Table) -> Result<(), BackupError> {
        let head = TableHead { name: table.name, columns: table.columns().collect() };
        let head = serde_json::to_string(&head).map_err(|error| BackupError::Write(error.into()))?;
        self.line(&format!("table {head}")).await
    }

    /// Adds a row to the table that was begun last.
    pub async fn row(&mut self, row: &str) -> Result<(), BackupError> {
        self.rows += 1;
        self.line(row).await
    }

    /// Writes what is left, and hands back the target, the backup's size in bytes, and how many rows it has.
    pub async fn finish(mut self) -> Result<(BackupTarget, u64, u64), BackupError> {
        self.line(&format!("end {}", self.rows)).await?;
        self.frame.do_finish().map_err(BackupError::Compression)?;
        self.send_full().await?;
        let last = std::mem::take(self.frame.get_mut());
        self.seal(last, true).await?;
        if let BackupTarget::File(file) = &mut self.target {
            file.flush().await.map_err(BackupError::Write)?;
        }
        Ok((self.target, self.size_bytes, self.rows))
    }

    async fn line(&mut self, line: &str) -> Result<(), BackupError> {
        self.frame.write_all(line.as_bytes()).map_err(BackupError::Compression)?;
        self.frame.write_all(b"\n").map_err(BackupError::Compression)?;
        self.send_full().await
    }

    /// Sends every chunk that something follows.
    async fn send_full(&mut self) -> Result<(), BackupError> {
        while self.frame.get_ref().len() > CHUNK_SIZE_BYTES {
            let chunk = self.frame.get_mut().drain(..CHUNK_SIZE_BYTES).collect();
            self.seal(chunk, false).await?;
        }
        Ok(())
    }

    async fn seal(&mut self, mut chunk: Vec<u8>, is_last: bool) -> Result<(), BackupError> {
        let place = ChunkPlace { header_sha256: &self.header_sha256, number: self.chunks, is_last };
        self.key.seal(place, &mut chunk);
        self.chunks += 1;
        let length = u32::try_from(chunk.len()).unwrap_or(u32::MAX).to_be_bytes();
        self.send([&[u8::from(is_last)], length.as_slice(), &chunk].concat()).await
    }

    async fn send(&mut self, bytes: Vec<u8>) -> Result<(), BackupError> {
        self.size_bytes += bytes.len() as u64;
        match &mut self.target {
            BackupTarget::File(file) => file.write_all(&bytes).await.map_err(BackupError::Write),
            BackupTarget::Object(upload) => Ok(upload.write(Bytes::from(bytes)).await?),
        }
    }
}

/// zstd's own default: rows shrink to a fifth, and the disk is what takes the time.
const ZSTD_LEVEL: i32 = 3;
