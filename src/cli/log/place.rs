//! Where a published log is read from: a server, a web server, a folder, or a bucket.
//!
//! Never believes what it reads; only says what is there.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;

use super::super::failure::{Exit, Failure};
use super::super::{Context, server};
use crate::client::Client;
use crate::config::StorageUrl;
use crate::storage::{ObjectKey, Storage, log_folder};
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::note::Note;
use crate::tlog::policy::Policy;
use crate::tlog::tile::{Tile, narrowed};
use crate::tlog::verifier_key::VerifierKey;

/// Largest file of a log, in bytes: a bundle of 256 entries of 64 KiB, which others' logs may have.
pub const LOG_FILE_SIZE_BYTES_MAX: usize = 256 * (2 + 65_535);

/// The newest signed root.
pub const CHECKPOINT: &str = "checkpoint";

/// The key that signs it: a server says it, and a mirror keeps it.
pub const KEY: &str = "key";

/// By whose word a checkpoint is believed.
#[derive(Debug, Args)]
pub struct Trust {
    /// The log's public key, `name+hash+base64`; without it the server, or the mirror, is believed about it
    #[arg(long, value_name = "KEY", conflicts_with = "policy")]
    pub log_key: Option<VerifierKey>,
    /// Which logs are believed, and which witnesses must have cosigned: lines `log`, `witness`, `group`, `quorum`
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
}

impl Trust {
    /// Whether anything was said about it.
    pub fn is_given(&self) -> bool {
        self.log_key.is_some() || self.policy.is_some()
    }
}

/// A published log.
pub enum LogPlace {
    /// Below `/api/v1/log` of a narvault server.
    Server(Client),
    /// Below any address: a mirror, or a bucket that is open to the web.
    Web(Client),
    /// A mirror.
    Folder(PathBuf),
    /// A server's storage, which has more than the log in it.
    Bucket(Storage),
    /// The same in a folder.
    StorageFolder(PathBuf),
}

impl LogPlace {
    /// The place that `text` names; the server of this session, if none is named.
    pub async fn open(text: Option<&str>, context: &Context) -> Result<Self, Failure> {
        let Some(text) = text else { return Ok(Self::Server(context.client()?)) };
        if text.starts_with("https://") || text.starts_with("http://") {
            let client = context.session_of(context.server(Some(text))?)?.client;
            let is_server = client.web_file(&format!("api/v1/log/{KEY}")).await?.is_some();
            return Ok(if is_server { Self::Server(client) } else { Self::Web(client) });
        }
        Ok(match Named::open(text).await? {
            // The log's root: the folder itself, or what a server's storage has in it.
            Named::Folder(path) if !path.join(CHECKPOINT).exists() && log_folder(&path).is_dir() => {
                Self::StorageFolder(path)
            }
            Named::Folder(path) => Self::Folder(path),
            Named::Bucket(storage) => Self::Bucket(storage),
        })
    }

    /// The file at `path` below the log's root; `None` if there is none.
    pub async fn file(&self, path: &str) -> Result<Option<Vec<u8>>, Failure> {
        match self {
            Self::Server(client) => Ok(client.log_file(path).await?),
            Self::Web(client) => Ok(client.web_file(path).await?),
            Self::Folder(folder) => in_folder_or_none(&folder.join(path)).await,
            Self::StorageFolder(folder) => in_folder_or_none(&log_folder(folder).join(path)).await,
            Self::Bucket(storage) => {
                let unreachable = |error: anyhow::Error| Failure::Told {
                    exit: Exit::Unreachable,
                    error: error.context(format!("cannot read {path} in the bucket")),
                    hint: None,
                };
                let key = path.parse().map_err(|error| unreachable(anyhow::Error::new(error)))?;
                let read = storage.read(&ObjectKey::Log(key), LOG_FILE_SIZE_BYTES_MAX).await;
                Ok(read.map_err(|error| unreachable(error.into()))?.map(Vec::from))
            }
        }
    }

    /// The contents of `tile`, cut from the full one where that is all there is left.
    pub async fn tile(&self, tile: Tile) -> Result<Option<Vec<u8>>, Failure> {
        if let Some(bytes) = self.file(&tile.to_string()).await? {
            return Ok(Some(bytes));
        }
        if tile.is_full() {
            return Ok(None);
        }
        let bytes = self.file(&tile.full().to_string()).await?;
        Ok(bytes.and_then(|bytes| narrowed(tile, &bytes)))
    }

    /// The list of references that a leaf has the digest of.
    pub async fn references(&self, digest: &[u8; 32]) -> Result<Option<String>, Failure> {
        let path = format!("references/{}", data_encoding::HEXLOWER.encode(digest));
        Ok(self.file(&path).await?.and_then(|bytes| String::from_utf8(bytes).ok()))
    }

    /// The newest checkpoint, and the note that it came in, if `policy` believes it.
    pub async fn checkpoint(&self, policy: &Policy) -> Result<(Checkpoint, Note), Failure> {
        let bytes = self.file(CHECKPOINT).await?.ok_or_else(|| {
            Failure::new(Exit::Failure, "there is no checkpoint of a log here")
                .hint("a server signs the first one a few seconds after its start")
        })?;
        opened(&bytes, policy)
    }

    /// By whose word its checkpoints are believed.
    pub async fn policy(&self, trust: &Trust) -> Result<Policy, Failure> {
        if let Some(path) = &trust.policy {
            let failed =
                |error: anyhow::Error| Failure::caused(format!("cannot use {}", path.display()), error);
            let text = std::fs::read_to_string(path).map_err(|error| failed(error.into()))?;
            return Policy::parse(&text).map_err(|error| failed(error.into()));
        }
        Ok(Policy::of_log(self.key(trust).await?))
    }

    /// The log's key: the one that was given, or the one that the place says.
    pub async fn key(&self, trust: &Trust) -> Result<VerifierKey, Failure> {
        if let Some(key) = &trust.log_key {
            return Ok(key.clone());
        }
        let Some(bytes) = self.file(KEY).await? else {
            let what = "it is not known which key signs this log";
            return Err(Failure::new(Exit::Usage, what).hint("give `--log-key` or `--policy`"));
        };
        let text = String::from_utf8_lossy(&bytes);
        let key = text.trim_end_matches('\n').parse();
        key.map_err(|error| {
            Failure::caused("the log's key, as it is kept with it, is malformed".into(), error)
        })
    }
}

/// The checkpoint in `bytes`, if `policy` believes it.
pub fn opened(bytes: &[u8], policy: &Policy) -> Result<(Checkpoint, Note), Failure> {
    let refused = |error: anyhow::Error| Failure::Told {
        exit: Exit::Failure,
        error: error.context("the log's checkpoint is not believed"),
        hint: None,
    };
    let note = Note::parse(bytes).map_err(|error| refused(error.into()))?;
    let checkpoint = policy.open(&note).map_err(|error| refused(error.into()))?;
    Ok((checkpoint, note))
}

/// A folder or a bucket, as an argument names it.
pub enum Named {
    Folder(PathBuf),
    Bucket(Storage),
}

impl Named {
    /// What `text` names: a path, `file://…` or `s3://…`. A folder is not looked at.
    pub async fn open(text: &str) -> Result<Self, Failure> {
        if !text.starts_with("s3://") && !text.starts_with("file://") {
            return Ok(Self::Folder(PathBuf::from(text)));
        }
        let url: StorageUrl = text.parse().map_err(|error| {
            Failure::caused(format!("{text:?} names no storage"), error)
                .hint("give a folder, `s3://bucket/prefix?endpoint=https://host`, or a server's address")
        })?;
        match url {
            StorageUrl::Disk { path } => Ok(Self::Folder(path)),
            StorageUrl::S3(location) => {
                let opened = server::open_bucket(&location).await;
                opened.map(Self::Bucket).map_err(|error| Failure::Told {
                    exit: Exit::Unreachable,
                    error,
                    hint: None,
                })
            }
        }
    }
}

/// The file at `path`; `None` if there is none.
pub async fn in_folder_or_none(path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    let failed = |error: io::Error| Failure::caused(format!("cannot read {}", path.display()), error);
    let size = match tokio::fs::metadata(path).await {
        Ok(metadata) => metadata.len(),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    if size > LOG_FILE_SIZE_BYTES_MAX as u64 {
        return Err(failed(io::Error::from(io::ErrorKind::FileTooLarge)));
    }
    tokio::fs::read(path).await.map(Some).map_err(failed)
}
