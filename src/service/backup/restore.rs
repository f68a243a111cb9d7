//! Restoring a verified backup into an empty database, in one transaction: all of it, or nothing.

use serde_json::json;
use tokio::io::AsyncRead;

use super::reader::{BackupReader, Item};
use super::{BackupError, VerifiedBackup};
use crate::db::audit::{self, NewAudit, Outcome};
use crate::db::backup::{self, Table};
use crate::db::{Db, Gate, Tx};
use crate::time::Timestamp;
use crate::vault::random;

/// Rows of one table that go in as one statement.
struct Batch {
    table: &'static Table,
    columns: Vec<String>,
    rows: Vec<String>,
    size_bytes: usize,
}

impl VerifiedBackup {
    /// Reads the backup once more, and writes its rows into `db`: how many. Refuses a database that has rows.
    pub async fn restore(
        &self,
        source: impl AsyncRead + Unpin,
        db: &Db,
        now: Timestamp,
    ) -> Result<u64, BackupError> {
        let mut reader = BackupReader::open(source).await?;
        if reader.header_sha256() != self.header_sha256 {
            return Err(BackupError::Changed);
        }
        let key = self.vault.backup_key(&reader.header().salt);
        let mut tx = db.begin(Gate::Exclusive).await?;
        backup::prepare(&mut tx).await?;
        if let Some(table) = backup::occupied(&mut tx).await? {
            return Err(BackupError::NotEmpty { table });
        }
        let (mut rows, mut batch) = (0, None);
        while let Some(item) = reader.next(&key).await? {
            match item {
                Item::Table(table, columns) => {
                    if let Some(full) =
                        batch.replace(Batch { table, columns, rows: Vec::new(), size_bytes: 0 })
                    {
                        rows += insert(&mut tx, full).await?;
                    }
                    backup::clear_seed(&mut tx, table).await?;
                }
                Item::Row(line) => {
                    let Some(batch) = &mut batch else { continue };
                    batch.size_bytes += line.len();
                    batch.rows.push(line);
                    if batch.rows.len() >= ROWS_AT_ONCE || batch.size_bytes >= BYTES_AT_ONCE {
                        rows += insert(&mut tx, batch.take()).await?;
                    }
                }
            }
        }
        if let Some(rest) = batch {
            rows += insert(&mut tx, rest).await?;
        }
        backup::settle(&mut tx).await?;
        self.record(&mut tx, now).await?;
        tx.commit().await?;
        Ok(rows)
    }

    async fn record(&self, tx: &mut Tx, now: Timestamp) -> Result<(), BackupError> {
        let millis = u64::try_from(now.0).unwrap_or(0);
        let id = uuid::Builder::from_unix_timestamp_millis(millis, &random::bytes()).into_uuid();
        let made_at = self.report.made_at.map(Timestamp::rfc3339);
        let row = NewAudit {
            id: id.to_string(),
            at: now,
            action: "backup-restore",
            outcome: Outcome::Done,
            contributor: None,
            token: None,
            subject: "",
            address: None,
            client: None,
            request_id: None,
            detail: json!({ "host": true, "made_at": made_at, "leaves": self.report.leaves }).to_string(),
        };
        Ok(audit::insert(tx, &row).await?)
    }
}

impl Batch {
    /// The rows so far; those that follow go into the next statement.
    fn take(&mut self) -> Self {
        self.size_bytes = 0;
        let rows = std::mem::take(&mut self.rows);
        Self { table: self.table, columns: self.columns.clone(), rows, size_bytes: 0 }
    }
}

async fn insert(tx: &mut Tx, batch: Batch) -> Result<u64, BackupError> {
    if !batch.rows.is_empty() {
        backup::insert(tx, batch.table, &batch.columns, &batch.rows).await?;
    }
    Ok(batch.rows.len() as u64)
}

/// As with pushes: a thousand rows in one statement are what makes many fast.
const ROWS_AT_ONCE: usize = 1000;

/// A statement is not much larger than this, or than one row: the largest listing is 16 MiB, twice that as hex.
const BYTES_AT_ONCE: usize = 4 << 20;
