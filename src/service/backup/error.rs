//! Why there is no backup, or why one is not to be trusted: a sentence for each, with what to do. Never a secret, nor
//! anything of what is in the backup but names of tables and ids of rows.

use std::io;

use crate::db::DbError;
use crate::db::backup::UnreadableRow;
use crate::service::Error;
use crate::storage::StorageError;
use crate::vault::VaultError;
use crate::vault::root::UnlockError;
use crate::vault::share::SharesError;

/// What went wrong with a backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It was replaced while it was read.
    #[error("the backup is another one than was verified a moment ago; nothing was restored")]
    Changed,
    /// Its chunks open, and still it is not what narvault writes.
    #[error("the backup holds what no version of narvault writes: {0}")]
    Content(String),
    #[error("the backup cannot be compressed, or its content not be unpacked")]
    Compression(#[source] io::Error),
    #[error(
        "the backup is cut off: it ends before its chunk {chunk} does; take a whole copy of it, or another backup"
    )]
    Cut { chunk: u64 },
    #[error(
        "the backup is damaged: its chunk {chunk} (or its header) was altered, or comes from another backup; \
         take another copy of it, or another backup"
    )]
    Damaged { chunk: u64 },
    #[error(
        "the database is not empty: table `{table}` has rows; a backup is restored into an empty database only"
    )]
    NotEmpty { table: &'static str },
    #[error("the backup is cut off within its header; take a whole copy of it, or another backup")]
    HeaderCut,
    #[error("the header of the backup is damaged; take another copy of it, or another backup")]
    HeaderDamaged,
    /// The leaves are not those that were signed.
    #[error(
        "the leaves in the backup do not make the log that its header names ({expected} leaves, found {found}): \
         rows of the signature log were altered before the backup was made; take an older one"
    )]
    Log { expected: u64, found: u64 },
    #[error(
        "the backup was made by narvault {narvault} with migration {schema}, and this version knows migrations up to \
         {known}; use that version or a later one"
    )]
    Newer { narvault: String, schema: i64, known: i64 },
    #[error(
        "the database was migrated by a newer narvault (migration {schema}), whose tables this version does not know; \
         back up with that version"
    )]
    NewerDatabase { schema: i64 },
    #[error("this is no backup of narvault")]
    NotABackup,
    #[error(
        "the backup has format {found}, and this version of narvault reads format 1; use a later version"
    )]
    OtherFormat { found: String },
    #[error("the backup cannot be read")]
    Read(#[source] io::Error),
    #[error("the vault is sealed here, and only an open one makes the key of a backup")]
    Sealed,
    #[error("the shares do not make a key of the vault that the backup is of")]
    Shares(#[from] SharesError),
    #[error("bytes follow the end of the backup: something was appended to it; take another copy of it")]
    Trailing,
    /// The secret is not one of this vault, or a slot is damaged.
    #[error("the backup does not open")]
    Unlock(#[source] UnlockError),
    /// The vault would not open this row on the restored machine either.
    #[error(
        "a sealed row in the backup does not open: it was altered before the backup was made; take an older one"
    )]
    SealedRow(#[source] VaultError),
    #[error("the backup cannot be written")]
    Write(#[source] io::Error),
    #[error(transparent)]
    Row(#[from] UnreadableRow),
    #[error(transparent)]
    Service(#[from] Error),
    #[error("storage does not take or give the backup")]
    Storage(#[from] StorageError),
}

impl From<DbError> for BackupError {
    fn from(error: DbError) -> Self {
        Self::Service(error.into())
    }
}
