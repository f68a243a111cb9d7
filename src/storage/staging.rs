//! Uploads in parts that go on for days: parts are kept durably where no cache looks, then become one object.
//!
//! In a bucket the parts are those of a multipart upload, which is completed under a staging name, read back from
//! there, and copied within the bucket; on disk each is a file. A part never changes: another one has another name or
//! tag, so what was verified is what becomes the object. Never decides whether it may become one.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use url::Url;
use uuid::Uuid;

use super::error::{Result, StorageError};
use super::key::{Folder, ObjectKey};
use super::{Backend, PROBE_DELETE_TIMEOUT, Storage, Upload};
use crate::nix::hash::Sha256Digest;

/// An upload in parts, and how the storage calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    pub id: Uuid,
    /// The bucket's own name of it; empty on disk.
    pub name: String,
}

/// A part that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedPart {
    /// From 1 to 10 000.
    pub number: u32,
    pub size_bytes: u64,
    pub sha256: Sha256Digest,
    /// The bucket's word for what it holds; empty on disk.
    pub tag: String,
}

/// Where a whole staged upload goes while it is read back.
pub enum Target {
    /// Its bytes are written once more on their way through.
    Written(Box<Upload>),
    /// It is copied as it is, if it is found good: by [`Storage::copy_staged`].
    Copied,
}

impl Storage {
    /// Begins an upload in parts.
    pub async fn stage(&self, id: Uuid) -> Result<Stage> {
        let name = match &self.backend {
            Backend::Disk(_) => String::new(),
            Backend::S3(s3) => s3.begin_staging(&ObjectKey::Staged(id)).await?,
        };
        Ok(Stage { id, name })
    }

    /// Keeps a part durably, in place of one with this number, and answers with its tag. Its size and hash are the
    /// caller's word.
    pub async fn put_part(
        &self,
        stage: &Stage,
        number: u32,
        sha256: Sha256Digest,
        bytes: Bytes,
    ) -> Result<String> {
        match &self.backend {
            Backend::Disk(disk) => {
                let key = ObjectKey::StagedPart(stage.id, number, sha256);
                disk.put(&key, bytes).map(|()| String::new())
            }
            Backend::S3(s3) => s3.put_part(&ObjectKey::Staged(stage.id), &stage.name, number, bytes).await,
        }
    }

    /// Whether parts can go straight to the bucket.
    pub fn takes_direct_parts(&self) -> bool {
        matches!(self.backend, Backend::S3(_))
    }

    /// A URL by which a part of exactly `size_bytes` goes straight to the bucket for `lifetime`; `None` where there is
    /// no such thing. The URL is a secret of its own.
    pub async fn presign_part(
        &self,
        stage: &Stage,
        number: u32,
        size_bytes: u64,
        lifetime: Duration,
    ) -> Result<Option<Url>> {
        match &self.backend {
            Backend::Disk(_) => Ok(None),
            Backend::S3(s3) => {
                let key = ObjectKey::Staged(stage.id);
                s3.presign_part(&key, &stage.name, number, size_bytes, lifetime).await.map(Some)
            }
        }
    }

    /// Number, size in bytes and tag of each part that went straight to the bucket. None of an upload that is closed.
    pub async fn parts_in_bucket(&self, stage: &Stage) -> Result<Vec<(u32, u64, String)>> {
        match &self.backend {
            Backend::Disk(_) => Ok(Vec::new()),
            Backend::S3(s3) => s3.list_parts(&ObjectKey::Staged(stage.id), &stage.name).await,
        }
    }

    /// Removes a part that another one has replaced.
    pub async fn remove_part(&self, stage: &Stage, part: &StagedPart) -> Result<()> {
        match &self.backend {
            Backend::Disk(disk) => {
                let key = ObjectKey::StagedPart(stage.id, part.number, part.sha256);
                disk.delete(&key, PROBE_DELETE_TIMEOUT).await
            }
            // The bucket has replaced it by itself.
            Backend::S3(_) => Ok(()),
        }
    }

    /// Ends the upload: from then on no part of it changes. May be done again.
    pub async fn close_staged(&self, stage: &Stage, parts: &[StagedPart]) -> Result<()> {
        match &self.backend {
            Backend::Disk(_) => Ok(()),
            Backend::S3(s3) => s3.close_staging(&ObjectKey::Staged(stage.id), &stage.name, parts).await,
        }
    }

    /// The bytes of a closed upload.
    pub async fn read_staged(
        &self,
        stage: &Stage,
        parts: &[StagedPart],
    ) -> Result<BoxStream<'static, Result<Bytes>>> {
        const ABSENT: StorageError = StorageError::Damaged("an upload in parts lacks one");
        if let Backend::S3(_) = &self.backend {
            let object = self.get(&ObjectKey::Staged(stage.id), None).await?.ok_or(ABSENT)?;
            return Ok(object.body);
        }
        let (storage, id) = (self.clone(), stage.id);
        let bodies = stream::iter(parts.to_vec()).then(move |part| {
            let storage = storage.clone();
            async move {
                let key = ObjectKey::StagedPart(id, part.number, part.sha256);
                Ok::<_, StorageError>(storage.get(&key, None).await?.ok_or(ABSENT)?.body)
            }
        });
        Ok(bodies.try_flatten().boxed())
    }

    /// Where a closed upload is to go, to become the object `key`.
    pub async fn target_of_staged(&self, key: &ObjectKey) -> Result<Target> {
        match &self.backend {
            Backend::Disk(_) => self.upload(key).await.map(Box::new).map(Target::Written),
            Backend::S3(_) => Ok(Target::Copied),
        }
    }

    /// Makes a closed upload of `size_bytes` the object `key`.
    pub async fn copy_staged(&self, stage: &Stage, size_bytes: u64, key: &ObjectKey) -> Result<()> {
        match &self.backend {
            Backend::Disk(_) => Err(StorageError::Damaged("on disk nothing is copied")),
            Backend::S3(s3) => s3.copy(&ObjectKey::Staged(stage.id), size_bytes, key).await,
        }
    }

    /// Removes all that is kept of an upload.
    pub async fn remove_staged(&self, stage: &Stage, parts: &[StagedPart]) -> Result<()> {
        match &self.backend {
            Backend::Disk(disk) => {
                for part in parts {
                    let key = ObjectKey::StagedPart(stage.id, part.number, part.sha256);
                    disk.delete(&key, PROBE_DELETE_TIMEOUT).await?;
                }
                Ok(())
            }
            Backend::S3(s3) => s3.remove_staging(&ObjectKey::Staged(stage.id), &stage.name).await,
        }
    }

    /// Removes what is kept of uploads that are not among `known`, written before `older_than`: what a crash between
    /// storage and row left. Answers with how many.
    pub async fn sweep_staged(&self, known: &HashSet<Uuid>, older_than: SystemTime) -> Result<u64> {
        let mut removed = match &self.backend {
            Backend::Disk(_) => 0,
            Backend::S3(s3) => s3.abort_staging(known, older_than).await?,
        };
        let mut entries = self.list(&Folder::Uploads);
        while let Some(entry) = entries.try_next().await? {
            let Some(key) = entry.key() else { continue };
            let (ObjectKey::Staged(id) | ObjectKey::StagedPart(id, ..)) = &key else { continue };
            if entry.modified < older_than && !known.contains(id) {
                self.delete(&key, PROBE_DELETE_TIMEOUT).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}
