//! Verifying a backup, with a secret of its vault and nothing else: that it is whole and was not altered, that every
//! sealed seed opens and makes its public key, and that the leaves make the root.

use serde::Serialize;
use tokio::io::AsyncRead;

use super::header::Header;
use super::reader::{BackupReader, Item};
use super::{BackupError, VaultSecret, open_vault};
use crate::db::backup::{Telling, look_into};
use crate::service::VaultRows;
use crate::time::Timestamp;
use crate::tlog::frontier::Frontier;
use crate::tlog::hash::NodeHash;
use crate::vault::OpenVault;

/// What was found in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BackupReport {
    pub cluster_id: String,
    /// The version that made it.
    pub narvault: String,
    /// The newest migration of the database that it is of.
    pub schema: i64,
    pub made_at: Option<Timestamp>,
    /// Leaves of the signature log, and the root that they make.
    pub leaves: u64,
    pub log_root: String,
    /// Sealed seeds that opened and make the public keys beside them.
    pub keys: u64,
    /// Sealed secrets of webhooks that opened.
    pub webhooks: u64,
    pub rows: u64,
    pub tables: Vec<TableCount>,
}

/// How many rows a table has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableCount {
    pub table: &'static str,
    pub rows: u64,
}

/// A backup that was read to its end with nothing amiss: only such a one can be restored.
pub struct VerifiedBackup {
    pub report: BackupReport,
    pub(super) header_sha256: [u8; 32],
    pub(super) vault: OpenVault,
}

/// The rows of the vault that a backup is of: they stand in clear before everything else.
pub async fn backup_vault(source: impl AsyncRead + Unpin) -> Result<VaultRows, BackupError> {
    let reader = BackupReader::open(source).await?;
    let Header { cluster_id, slots, keks, .. } = reader.header().clone();
    Ok(VaultRows { cluster_id, slots, keks })
}

/// Reads a backup to its end. A passphrase takes a second.
pub async fn verify_backup(
    source: impl AsyncRead + Unpin,
    secret: impl Into<VaultSecret>,
) -> Result<VerifiedBackup, BackupError> {
    let mut reader = BackupReader::open(source).await?;
    let header = reader.header().clone();
    let vault = open_vault(&header, secret.into()).await?;
    let key = vault.backup_key(&header.salt);
    let mut report = BackupReport {
        cluster_id: header.cluster_id,
        narvault: header.narvault,
        schema: header.schema,
        made_at: Some(header.made_at),
        log_root: header.log_root.to_string(),
        ..BackupReport::default()
    };
    let mut frontier = Frontier::new();
    let mut table = None;
    while let Some(item) = reader.next(&key).await? {
        match (item, table) {
            (Item::Table(next, _), _) => {
                table = Some(next);
                report.tables.push(TableCount { table: next.name, rows: 0 });
            }
            (Item::Row(line), Some(table)) => {
                report.rows += 1;
                if let Some(count) = report.tables.last_mut() {
                    count.rows += 1;
                }
                check(&vault, look_into(table, &line)?, &mut frontier, &mut report)?;
            }
            (Item::Row(_), None) => return Err(BackupError::Content("a row is of no table".to_owned())),
        }
    }
    report.leaves = frontier.size();
    if frontier.size() != header.log_size || frontier.root() != header.log_root {
        return Err(BackupError::Log { expected: header.log_size, found: frontier.size() });
    }
    Ok(VerifiedBackup { report, header_sha256: reader.header_sha256(), vault })
}

fn check(
    vault: &OpenVault,
    telling: Option<Telling>,
    frontier: &mut Frontier,
    report: &mut BackupReport,
) -> Result<(), BackupError> {
    match telling {
        None => {}
        Some(Telling::Key(key)) => {
            vault.open_key(&key).map_err(BackupError::SealedRow)?;
            report.keys += 1;
        }
        Some(Telling::Webhook(webhook)) => {
            // Its secret is no key pair: that it opens is all that there is to see.
            vault.sign_webhook(&webhook, b"").map_err(BackupError::SealedRow)?;
            report.webhooks += 1;
        }
        Some(Telling::Leaf { index, text }) => {
            if u64::try_from(index) != Ok(frontier.size()) {
                return Err(BackupError::Content(format!("leaf {} is not there", frontier.size())));
            }
            frontier.push(NodeHash::leaf(text.as_bytes()));
        }
    }
    Ok(())
}
