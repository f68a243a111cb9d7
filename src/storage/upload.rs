//! An object on its way: written in pieces while it is still being verified, then completed or dropped.
//!
//! Never visible before [`Sealed::complete`] is called, and gone without a trace if it is not.

use bytes::Bytes;

use super::disk::{DiskSealed, DiskUpload};
use super::error::{Result, StorageError};
use super::s3::{S3Sealed, S3Upload};

/// An object that is being written. Dropping it aborts it.
pub struct Upload {
    backend: UploadBackend,
    size_bytes: u64,
    size_bytes_max: u64,
    /// Set while a write is under way, so that one that failed or was given up midway cannot be followed
    /// by another: bytes would be missing in between.
    torn: bool,
}

enum UploadBackend {
    Disk(DiskUpload),
    S3(Box<S3Upload>),
}

/// An object that is wholly written and not yet visible. Dropping it aborts it.
pub struct Sealed {
    backend: SealedBackend,
    size_bytes: u64,
}

enum SealedBackend {
    Disk(DiskSealed),
    S3(Box<S3Sealed>),
}

impl Upload {
    pub(super) fn disk(upload: DiskUpload) -> Self {
        Self { backend: UploadBackend::Disk(upload), size_bytes: 0, size_bytes_max: u64::MAX, torn: false }
    }

    pub(super) fn s3(upload: S3Upload, size_bytes_max: u64) -> Self {
        Self { backend: UploadBackend::S3(Box::new(upload)), size_bytes: 0, size_bytes_max, torn: false }
    }

    /// Appends `bytes`. Waits while too much is on its way already, which is how a slow storage slows
    /// down the one who sends. After an error, or when its future is dropped, only aborting is left.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.check_whole()?;
        self.size_bytes = self.size_bytes.saturating_add(bytes.len() as u64);
        self.torn = true;
        if self.size_bytes > self.size_bytes_max {
            return Err(StorageError::TooLarge { size_bytes_max: self.size_bytes_max });
        }
        match &mut self.backend {
            UploadBackend::Disk(upload) => upload.write(&bytes).await?,
            UploadBackend::S3(upload) => upload.write(bytes).await?,
        }
        self.torn = false;
        Ok(())
    }

    /// Waits until every byte has arrived, so that completing is one quick step.
    pub async fn seal(self) -> Result<Sealed> {
        self.check_whole()?;
        let backend = match self.backend {
            UploadBackend::Disk(upload) => SealedBackend::Disk(upload.seal().await?),
            UploadBackend::S3(upload) => SealedBackend::S3(Box::new(upload.seal().await?)),
        };
        Ok(Sealed { backend, size_bytes: self.size_bytes })
    }

    /// Throws away what was written, and waits until that is done.
    pub async fn abort(self) {
        match self.backend {
            UploadBackend::Disk(upload) => drop(upload),
            UploadBackend::S3(upload) => upload.abort().await,
        }
    }

    fn check_whole(&self) -> Result<()> {
        if self.torn {
            return Err(StorageError::Unavailable {
                action: "continue an upload",
                retryable: false,
                source: "an earlier write of it failed or was given up".into(),
            });
        }
        Ok(())
    }
}

impl Sealed {
    /// How many bytes were written.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Makes the object visible, replacing what was there. Once this has answered `Ok` it is durable.
    ///
    /// If the backend's answer is lost, the object itself is asked whether it is the one written here.
    pub async fn complete(self) -> Result<()> {
        match self.backend {
            SealedBackend::Disk(sealed) => sealed.complete(),
            SealedBackend::S3(sealed) => sealed.complete().await,
        }
    }

    /// Throws away what was written, and waits until that is done.
    pub async fn abort(self) {
        match self.backend {
            SealedBackend::Disk(sealed) => drop(sealed),
            SealedBackend::S3(sealed) => sealed.abort().await,
        }
    }
}
