//! Where a backup is read from: a file, or the storage that the configuration names.

use std::io;
use std::path::PathBuf;

use clap::Args;
use futures_util::TryStreamExt as _;
use tokio::io::{AsyncRead, BufReader};
use tokio_util::io::StreamReader;

use crate::cli::failure::{Exit, Failure};
use crate::cli::host::told;
use crate::cli::server;
use crate::config::Config;
use crate::service::{list_backups, stored_backup};
use crate::storage::Storage;

/// Which backup.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// The backup
    #[arg(value_name = "FILE", required_unless_present = "from_storage")]
    file: Option<PathBuf>,
    /// Take one out of the storage: its name as `narvault backup list` has it, or `newest`
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    from_storage: Option<String>,
}

/// A backup that can be read, more than once.
pub enum Source {
    File(PathBuf),
    Stored { storage: Storage, name: String },
}

impl SourceArgs {
    /// Finds the backup.
    pub async fn find(self, config: &Config) -> Result<Source, Failure> {
        let Some(name) = self.from_storage else { return Ok(Source::File(self.file.unwrap_or_default())) };
        let storage = server::open_storage(config).await.map_err(told)?;
        if name != "newest" {
            return Ok(Source::Stored { storage, name });
        }
        let newest = list_backups(&storage).await.map_err(told)?.pop();
        let newest =
            newest.ok_or_else(|| Failure::new(Exit::Failure, "there is no backup in the storage"))?;
        Ok(Source::Stored { storage, name: newest.name })
    }
}

impl Source {
    /// Begins to read it.
    pub async fn open(&self) -> Result<Box<dyn AsyncRead + Send + Unpin>, Failure> {
        match self {
            Self::File(path) => {
                let opened = tokio::fs::File::open(path).await;
                let file = opened
                    .map_err(|error| Failure::caused(format!("cannot read {}", path.display()), error))?;
                Ok(Box::new(BufReader::with_capacity(READ_AT_ONCE_BYTES, file)))
            }
            Self::Stored { storage, name } => {
                let found = stored_backup(storage, name).await.map_err(told)?;
                let object = found.ok_or_else(|| {
                    Failure::new(Exit::Failure, format!("there is no backup {name} in the storage"))
                        .hint("`narvault backup list` lists those that are")
                })?;
                Ok(Box::new(StreamReader::new(object.body.map_err(io::Error::other))))
            }
        }
    }
}

/// Some chunks.
const READ_AT_ONCE_BYTES: usize = 256 * 1024;
