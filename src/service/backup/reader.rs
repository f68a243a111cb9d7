//! Reading a backup: chunk after chunk is opened and unpacked, and handed on a line at a time.
//!
//! Never hands on a line of a chunk that did not open, and never more than was sealed: what is cut, moved or appended is
//! an error before the end is told.

use std::io::{self, Write as _};

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::BackupError;
use super::header::{CHUNK_SIZE_BYTES, FORMAT, HEADER_SIZE_BYTES_MAX, Header, MAGIC};
use crate::db::backup::{Table, schema_known};
use crate::nix::hash::Sha256Digest;
use crate::vault::backup::BACKUP_TAG_BYTES;
use crate::vault::{BackupKey, ChunkPlace};

/// A backup that is being read.
pub(super) struct BackupReader<R> {
    source: R,
    header: Header,
    header_sha256: [u8; 32],
    unpacked: zstd::stream::write::Decoder<'static, Vec<u8>>,
    /// How much of what was unpacked was handed on.
    read: usize,
    chunks: u64,
    is_last_read: bool,
    in_table: bool,
    rows: u64,
}

/// What comes next in a backup.
#[derive(Debug)]
pub(super) enum Item {
    /// The rows that follow are of this table, and have these columns.
    Table(&'static Table, Vec<String>),
    Row(String),
}

#[derive(Deserialize)]
struct TableHead {
    name: String,
    columns: Vec<String>,
}

impl<R: AsyncRead + Unpin> BackupReader<R> {
    /// Reads the header. Refuses backups of later versions.
    pub async fn open(mut source: R) -> Result<Self, BackupError> {
        let mut magic = [0; MAGIC.len() + FORMAT.len()];
        let length = read_up_to(&mut source, &mut magic).await?;
        match magic[..length].strip_prefix(MAGIC) {
            None => return Err(BackupError::NotABackup),
            Some(FORMAT) => {}
            Some(format) if format.len() < FORMAT.len() => return Err(BackupError::HeaderCut),
            Some(format) => {
                let found = format.escape_ascii().to_string();
                return Err(BackupError::OtherFormat { found: found.trim_end_matches("\\n").to_owned() });
            }
        }
        let mut length = [0; 4];
        whole(&mut source, &mut length).await?.ok_or(BackupError::HeaderCut)?;
        let size_bytes = u32::from_be_bytes(length) as usize;
        if size_bytes > HEADER_SIZE_BYTES_MAX {
            return Err(BackupError::HeaderDamaged);
        }
        let mut json = vec![0; size_bytes];
        whole(&mut source, &mut json).await?.ok_or(BackupError::HeaderCut)?;
        let header = Header::parse(&json)?;
        let known = schema_known();
        if header.schema > known {
            return Err(BackupError::Newer { narvault: header.narvault, schema: header.schema, known });
        }
        Ok(Self {
            source,
            header,
            header_sha256: Sha256Digest::of(&[&magic, length.as_slice(), &json].concat()).0,
            unpacked: zstd::stream::write::Decoder::new(Vec::new()).map_err(BackupError::Compression)?,
            read: 0,
            chunks: 0,
            is_last_read: false,
            in_table: false,
            rows: 0,
        })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Tells this backup from every other.
    pub fn header_sha256(&self) -> [u8; 32] {
        self.header_sha256
    }

    /// What comes next; `None` at the end, and then the backup was whole.
    pub async fn next(&mut self, key: &BackupKey) -> Result<Option<Item>, BackupError> {
        let line = self.line(key).await?.ok_or_else(|| content("it has no last line"))?;
        if line.starts_with('{') {
            self.rows += 1;
            return if self.in_table {
                Ok(Some(Item::Row(line)))
            } else {
                Err(content("a row is of no table"))
            };
        }
        if let Some(head) = line.strip_prefix("table ") {
            let head: TableHead =
                serde_json::from_str(head).map_err(|_| content("the head of a table is unreadable"))?;
            let table = Table::named(&head.name);
            let table =
                table.ok_or_else(|| BackupError::Content(format!("table `{}` is unknown", head.name)))?;
            let unknown =
                head.columns.iter().find(|name| table.columns().all(|known| known != name.as_str()));
            if let Some(column) = unknown {
                return Err(BackupError::Content(format!(
                    "column `{column}` of table `{}` is unknown",
                    table.name
                )));
            }
            self.in_table = true;
            return Ok(Some(Item::Table(table, head.columns)));
        }
        match line.strip_prefix("end ").and_then(|rows| rows.parse::<u64>().ok()) {
            Some(rows) if rows == self.rows => {}
            Some(rows) => {
                return Err(BackupError::Content(format!(
                    "it has {} rows, and says that it has {rows}",
                    self.rows
                )));
            }
            None => return Err(content("a line is neither a table nor a row nor the end")),
        }
        if self.line(key).await?.is_some() { Err(content("lines follow the last one")) } else { Ok(None) }
    }

    /// The next line without its line break; `None` after the last one.
    async fn line(&mut self, key: &BackupKey) -> Result<Option<String>, BackupError> {
        let mut searched = 0;
        loop {
            let rest = &self.unpacked.get_ref()[self.read..];
            if let Some(length) = memchr::memchr(b'\n', &rest[searched..]).map(|at| searched + at) {
                let line = String::from_utf8(rest[..length].to_vec());
                self.read += length + 1;
                return line.map(Some).map_err(|_| content("a line is not UTF-8"));
            }
            searched = rest.len();
            if self.is_last_read {
                return if rest.is_empty() { Ok(None) } else { Err(content("its last line has no end")) };
            }
            self.chunk(key).await?;
        }
    }

    /// Opens the next chunk and unpacks it.
    async fn chunk(&mut self, key: &BackupKey) -> Result<(), BackupError> {
        let number = self.chunks;
        let mut head = [0; 5];
        whole(&mut self.source, &mut head).await?.ok_or(BackupError::Cut { chunk: number })?;
        let [mark, length @ ..] = head;
        let size_bytes = u32::from_be_bytes(length) as usize;
        if mark > 1 || size_bytes > CHUNK_SIZE_BYTES + BACKUP_TAG_BYTES {
            return Err(BackupError::Damaged { chunk: number });
        }
        let mut chunk = vec![0; size_bytes];
        whole(&mut self.source, &mut chunk).await?.ok_or(BackupError::Cut { chunk: number })?;
        let is_last = mark == 1;
        let place = ChunkPlace { header_sha256: &self.header_sha256, number, is_last };
        key.open(place, &mut chunk).map_err(|_| BackupError::Damaged { chunk: number })?;
        if is_last && read_up_to(&mut self.source, &mut [0]).await? > 0 {
            return Err(BackupError::Trailing);
        }
        self.chunks += 1;
        self.is_last_read = is_last;
        self.unpacked.get_mut().drain(..self.read);
        self.read = 0;
        self.unpacked.write_all(&chunk).and_then(|()| self.unpacked.flush()).map_err(BackupError::Compression)
    }
}

fn content(what: &str) -> BackupError {
    BackupError::Content(what.to_owned())
}

/// Fills `buffer`; `None`: the source ends before.
async fn whole(source: &mut (impl AsyncRead + Unpin), buffer: &mut [u8]) -> Result<Option<()>, BackupError> {
    match source.read_exact(buffer).await {
        Ok(_) => Ok(Some(())),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(BackupError::Read(error)),
    }
}

/// Fills `buffer` as far as the source goes, and says how far.
async fn read_up_to(source: &mut (impl AsyncRead + Unpin), buffer: &mut [u8]) -> Result<usize, BackupError> {
    let mut length = 0;
    while length < buffer.len() {
        match source.read(&mut buffer[length..]).await.map_err(BackupError::Read)? {
            0 => break,
            more => length += more,
        }
    }
    Ok(length)
}
