//! Files that are no objects yet: written, synced, and then named or removed.

use std::fs::{File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;
use tokio::task::JoinHandle;

use super::{CHUNK_BYTES, Disk, FILE_MODE};
use crate::storage::error::{Result, StorageError};
use crate::threads::in_place;

/// From so many bytes on a flush of them is begun while more come in: what is left at the end takes some
/// hundredths of a second.
const SYNC_BYTES: usize = 16 * 1024 * 1024;

impl Disk {
    /// A new temporary file, locked for as long as its writer lives.
    pub(super) fn temporary(self: &Arc<Self>) -> io::Result<Temporary> {
        loop {
            let number = self.files.fetch_add(1, Ordering::Relaxed);
            let name = format!("{}-{number}", self.instance.simple());
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file: File =
                rustix::fs::openat(&self.temporary, &name, flags, Mode::from_raw_mode(FILE_MODE))?.into();
            let temporary = Temporary { disk: self.clone(), name, file, renamed: false };
            let locked = !matches!(temporary.file.try_lock(), Err(TryLockError::WouldBlock));
            // Another process that sweeps may have met the file before it was locked.
            if locked && temporary.file.metadata()?.nlink() > 0 {
                return Ok(temporary);
            }
        }
    }

    /// A new temporary file with these bytes, synced.
    pub(super) fn write(self: &Arc<Self>, bytes: &[u8]) -> io::Result<Temporary> {
        let mut temporary = self.temporary()?;
        temporary.file.write_all(bytes)?;
        temporary.file.sync_all()?;
        Ok(temporary)
    }

    /// Removes the temporary files that no living process has locked, and says how many.
    pub(super) fn remove_stale(&self, older_than: Option<SystemTime>) -> io::Result<u64> {
        let mut removed = 0;
        for entry in Dir::read_from(&self.temporary)? {
            let entry = entry?;
            let name = entry.file_name();
            let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file: File = match rustix::fs::openat(&self.temporary, name, flags, Mode::empty()) {
                Ok(file) => file.into(),
                // `.` and `..`, and what another process has just renamed or removed.
                Err(Errno::NOENT | Errno::ISDIR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let metadata = file.metadata()?;
            if older_than.is_some_and(|limit| metadata.modified().is_ok_and(|modified| modified >= limit)) {
                continue;
            }
            if file.try_lock().is_err() {
                continue;
            }
            // Between opening and locking, its writer may have renamed it: then it is an object now.
            let same = rustix::fs::statat(&self.temporary, name, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| stat.st_ino == metadata.ino());
            if same {
                rustix::fs::unlinkat(&self.temporary, name, AtFlags::empty())?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// A file that is no object yet. Dropping it removes it.
pub(super) struct Temporary {
    disk: Arc<Disk>,
    name: String,
    file: File,
    renamed: bool,
}

impl Temporary {
    /// Makes the synced file the object `name`, and that durable.
    pub(super) fn rename(self, name: &str) -> io::Result<()> {
        let disk = self.disk.clone();
        self.place(name)?;
        disk.sync_folders(name)
    }

    /// Makes the synced file the object `name`: whole for every reader, durable once its folders are synced.
    pub(super) fn place(mut self, name: &str) -> io::Result<()> {
        let (folders, file_name) = self.disk.folders(name, true)?.ok_or(io::ErrorKind::NotFound)?;
        let folder = &folders[folders.len() - 1];
        rustix::fs::renameat(&self.disk.temporary, &self.name, folder, file_name)?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            // What cannot be removed now is stale later: its lock ends here.
            let _ = rustix::fs::unlinkat(&self.disk.temporary, &self.name, AtFlags::empty());
        }
    }
}

pub(in crate::storage) struct DiskUpload {
    sealed: DiskSealed,
    /// What is not written yet: less than [`CHUNK_BYTES`].
    buffer: Vec<u8>,
    /// Written since the last flush to the disk began.
    unsynced_bytes: usize,
    syncing: Option<JoinHandle<io::Result<()>>>,
}

pub(in crate::storage) struct DiskSealed {
    pub(super) temporary: Temporary,
    pub(super) name: String,
}

impl DiskUpload {
    /// Writes what is to become the object `name` into this file.
    pub(super) fn new(temporary: Temporary, name: String) -> Self {
        let sealed = DiskSealed { temporary, name };
        Self { sealed, buffer: Vec::new(), unsynced_bytes: 0, syncing: None }
    }

    pub(in crate::storage) async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = async {
            self.buffered(bytes)?;
            if self.unsynced_bytes < SYNC_BYTES {
                return Ok(());
            }
            // While more comes in: at the end of a large file the caller would wait for all of it.
            if let Some(syncing) = &self.syncing
                && !syncing.is_finished()
            {
                return Ok(());
            }
            self.synced().await?;
            let file = self.sealed.temporary.file.try_clone()?;
            self.syncing = Some(tokio::task::spawn_blocking(move || file.sync_data()));
            self.unsynced_bytes = 0;
            Ok(())
        };
        written.await.map_err(|source| StorageError::from_io("write a file", source))
    }

    /// Writes as many whole chunks as there are, and keeps the rest.
    fn buffered(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while self.buffer.len() + bytes.len() >= CHUNK_BYTES {
            let (fits, rest) = bytes.split_at(CHUNK_BYTES - self.buffer.len());
            let Temporary { disk, file, .. } = &mut self.sealed.temporary;
            if self.buffer.is_empty() {
                disk.calls.run(|| file.write_all(fits))?;
            } else {
                self.buffer.extend_from_slice(fits);
                disk.calls.run(|| file.write_all(&self.buffer))?;
                self.buffer.clear();
            }
            self.unsynced_bytes += CHUNK_BYTES;
            bytes = rest;
        }
        if !bytes.is_empty() {
            self.buffer.reserve_exact(CHUNK_BYTES - self.buffer.len());
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Waits for the flush under way. Its failure is told to nobody else: the system reports it once.
    async fn synced(&mut self) -> io::Result<()> {
        match self.syncing.take() {
            Some(syncing) => syncing.await.unwrap_or_else(|ended| Err(io::Error::other(ended))),
            None => Ok(()),
        }
    }

    pub(in crate::storage) async fn seal(mut self) -> Result<DiskSealed> {
        let synced = async {
            self.synced().await?;
            let file = &mut self.sealed.temporary.file;
            // What is left to flush of a large file takes a while.
            in_place(|| file.write_all(&self.buffer).and_then(|()| file.sync_all()))
        };
        synced.await.map_err(|source| StorageError::from_io("sync a file", source))?;
        Ok(self.sealed)
    }
}

impl DiskSealed {
    pub(in crate::storage) fn complete(self) -> Result<()> {
        let disk = self.temporary.disk.clone();
        disk.flushed("name a file", || self.temporary.rename(&self.name))
    }
}
