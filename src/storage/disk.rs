//! Objects as files below one folder, which is thereby a valid `file://` binary cache of each prefix.
//!
//! Never shows a file before it is whole and synced: temporary file, fsync, rename, fsync of the folders.
//! Never follows a symbolic link below the folder, so nothing outside it can be read or written.

mod temporary;
mod walk;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{DirBuilder, File};
use std::io::{self, SeekFrom};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::{RwLock, mpsc};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::error::{Result, StorageError};
use super::key::{Folder, OWN_FOLDER, ObjectKey};
use super::{Entry, Object, check_range};
use crate::threads::Short;
pub(super) use temporary::{DiskSealed, DiskUpload};

/// The most memory that one upload takes: the buffer between the caller and the writing thread.
pub(super) const UPLOAD_MEMORY_BYTES: u64 = CHUNK_BYTES as u64;

/// How much is read or written by one call to the system.
const CHUNK_BYTES: usize = 256 * 1024;

/// Small files that one call writes and flushes at once. Flushes that meet share the journal's commit: 1 000 files one
/// after the other took 2.6 s on an ext4 disk, 32 at once 0.3 s.
pub(super) const PUTS_AT_ONCE: usize = 32;

/// Folders remembered as synced; a cache has a handful, build traces one for each derivation.
const LASTING_MAX: usize = 4096;

/// Folders here may be entered, and files read, by whoever may enter the root, whose mode is the
/// administrator's: that one bit decides, as with a served folder.
const FOLDER_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;
/// The root, where this program makes it: private caches lie here too.
const ROOT_MODE: u32 = 0o750;
/// Folders that are this program's alone.
const TEMPORARY_FOLDER_MODE: u32 = 0o700;

/// Which folder objects are kept in.
#[derive(Clone, Debug)]
pub struct DiskSettings {
    /// Made if absent. It may hold other files, which are left alone.
    pub root: PathBuf,
    /// How long a small object may take that others wait for: what is not there by then never is.
    pub put_time_max: Duration,
}

impl DiskSettings {
    /// This folder, with the patience that is usual.
    pub fn new(root: PathBuf) -> Self {
        Self { root, put_time_max: Duration::from_secs(150) }
    }
}

/// A file that is being written, and is no object yet. Dropping this removes it.
pub(super) struct Begun {
    written: JoinHandle<io::Result<DiskSealed>>,
    until: Instant,
}

/// Folders of named files, which are being synced.
pub(super) struct Unsynced(JoinHandle<io::Result<()>>);

impl Unsynced {
    async fn end(self) -> io::Result<()> {
        self.0.await.unwrap_or_else(|ended| Err(io::Error::other(ended)))
    }

    /// Waits until the files last.
    pub(super) async fn settle(self) -> Result<()> {
        self.end().await.map_err(|source| StorageError::from_io(SYNCING, source))
    }
}

pub(super) struct Disk {
    path: PathBuf,
    root: OwnedFd,
    temporary: OwnedFd,
    instance: Uuid,
    pub(super) put_time_max: Duration,
    files: AtomicU64,
    /// Folders whose own names this process has synced, all the way up. Nothing here removes folders.
    lasting: Mutex<HashSet<String>>,
    /// Shared by folders that are being synced while their files are here already.
    syncing: Arc<RwLock<()>>,
    /// Names of files whose folders are still to be synced, one for each folder.
    unsettled: Mutex<HashMap<String, String>>,
    /// Calls to the file system that flush the disk, and those that do not: one kind says nothing of the other.
    flushes: Short,
    calls: Short,
}

impl Disk {
    pub(super) async fn open(settings: DiskSettings, instance: Uuid) -> Result<Arc<Self>> {
        blocking("open the storage folder", move || {
            make_root(&settings.root)?;
            let path = settings.root.canonicalize()?;
            let root = rustix::fs::open(&path, FOLDER_FLAGS, Mode::empty())?;
            let own = make_folder(&root, OWN_FOLDER, FOLDER_MODE)?;
            let temporary = make_folder(&own, "tmp", TEMPORARY_FOLDER_MODE)?;
            // Sealed, and nobody else's business all the same.
            make_folder(&own, "backups", TEMPORARY_FOLDER_MODE)?;
            let (files, lasting) = (AtomicU64::new(0), Mutex::default());
            let (syncing, unsettled) = (Arc::default(), Mutex::default());
            let (flushes, calls) = (Short::default(), Short::default());
            let put_time_max = settings.put_time_max;
            let disk = Self {
                path,
                root,
                temporary,
                instance,
                put_time_max,
                files,
                lasting,
                syncing,
                unsettled,
                flushes,
                calls,
            };
            disk.remove_stale(None)?;
            Ok(Arc::new(disk))
        })
        .await
    }

    pub(super) fn put(self: &Arc<Self>, key: &ObjectKey, bytes: Bytes) -> Result<()> {
        self.flushed("write a file", || self.write(&bytes)?.rename(&key.to_string()))
    }

    /// Begins to write and sync a file that is no object yet.
    pub(super) fn begin_put(self: &Arc<Self>, key: &ObjectKey, bytes: Bytes) -> Begun {
        let (disk, name, until) = (self.clone(), key.to_string(), self.put_deadline());
        let write = move || Ok(DiskSealed { temporary: disk.write(&bytes)?, name });
        Begun { written: tokio::task::spawn_blocking(write), until }
    }

    /// Until when a put that begins now may make an object.
    pub(super) fn put_deadline(&self) -> Instant {
        Instant::now() + self.put_time_max
    }

    /// Makes that an object, whose folder is synced by [`Disk::settle`].
    pub(super) async fn end_put(&self, begun: Begun) -> Result<()> {
        let Begun { written, until } = begun;
        let DiskSealed { temporary, name } = ended("write a file", written).await?;
        self.here("name a file in time", || in_time(Some(until)).and_then(|()| temporary.place(&name)))?;
        let folder = folder_of(&name).to_owned();
        lock(&self.unsettled).insert(folder, name);
        Ok(())
    }

    pub(super) fn settle(self: &Arc<Self>) -> Result<()> {
        self.flushed(SYNCING, || {
            let names = std::mem::take(&mut *lock(&self.unsettled));
            let mut left = names.iter();
            let settled = left.try_for_each(|(_, name)| self.sync_folders(name));
            if settled.is_err() {
                // Nobody may take for durable what is not: the next call tries them all again.
                lock(&self.unsettled).extend(names);
            }
            settled
        })
    }

    /// Writes and syncs files that are no objects yet.
    pub(super) async fn write_all(
        self: &Arc<Self>,
        objects: Vec<(ObjectKey, Bytes)>,
    ) -> Vec<Result<DiskSealed>> {
        let write =
            |(key, bytes): (ObjectKey, Bytes)| ended("write a file", self.begin_put(&key, bytes).written);
        stream::iter(objects).map(write).buffered(PUTS_AT_ONCE).collect().await
    }

    /// Makes written files objects, all at once, and none after `until`.
    pub(super) async fn place_all(
        self: &Arc<Self>,
        written: Vec<Result<DiskSealed>>,
        until: Option<Instant>,
    ) -> Vec<Result<()>> {
        let (placed, unsynced) = self.name_all(written, until).await;
        match unsynced.end().await {
            Ok(()) => placed,
            Err(error) => {
                let told = || StorageError::from_io(SYNCING, io::Error::new(error.kind(), error.to_string()));
                placed.into_iter().map(|placed| placed.and_then(|()| Err(told()))).collect()
            }
        }
    }

    /// The same, but that they last is waited for apart: each folder is synced once for all that it gets.
    pub(super) async fn name_all(
        self: &Arc<Self>,
        written: Vec<Result<DiskSealed>>,
        until: Option<Instant>,
    ) -> (Vec<Result<()>>, Unsynced) {
        let mut folders = HashMap::new();
        let mut place = |DiskSealed { temporary, name }: DiskSealed| {
            let placed = in_time(until).and_then(|()| temporary.place(&name));
            placed.map_err(|source| StorageError::from_io("name a file in time", source))?;
            folders.insert(folder_of(&name).to_owned(), name);
            Ok(())
        };
        let under_way = Arc::clone(&self.syncing).read_owned().await;
        let name_all = || written.into_iter().map(|file| file.and_then(&mut place)).collect();
        let placed = self.calls.run(name_all);
        let disk = self.clone();
        let sync = move || {
            let _under_way = under_way;
            folders.values().try_for_each(|name| disk.sync_folders(name))
        };
        (placed, Unsynced(tokio::task::spawn_blocking(sync)))
    }

    pub(super) fn upload(self: &Arc<Self>, key: &ObjectKey) -> Result<DiskUpload> {
        self.here("begin a file", || Ok(DiskUpload::new(self.temporary()?, key.to_string())))
    }

    pub(super) async fn get(
        self: &Arc<Self>,
        key: &ObjectKey,
        range: Option<Range<u64>>,
    ) -> Result<Option<Object>> {
        const ACTION: &str = "read a file";
        let Some(file) = self.here(ACTION, || self.open_file(&key.to_string()))? else { return Ok(None) };
        let (file, size_bytes) = file?;
        if let Some(range) = &range {
            check_range(range, size_bytes)?;
        }
        let range = range.unwrap_or(0..size_bytes);

        let mut file = tokio::fs::File::from_std(file);
        file.set_max_buf_size(CHUNK_BYTES);
        if range.start > 0 {
            file.seek(SeekFrom::Start(range.start))
                .await
                .map_err(|source| StorageError::from_io(ACTION, source))?;
        }
        let body = stream::try_unfold((file, range.end - range.start), |(mut file, left)| async move {
            if left == 0 {
                return Ok(None);
            }
            let chunk = left.min(CHUNK_BYTES as u64) as usize;
            let mut buffer = BytesMut::with_capacity(chunk).limit(chunk);
            let read =
                file.read_buf(&mut buffer).await.map_err(|source| StorageError::from_io(ACTION, source))?;
            if read == 0 {
                return Err(StorageError::Damaged("the file became shorter while it was read"));
            }
            Ok(Some((buffer.into_inner().freeze(), (file, left - read as u64))))
        });
        Ok(Some(Object { size_bytes, body: body.boxed() }))
    }

    pub(super) async fn size(self: &Arc<Self>, key: &ObjectKey) -> Result<Option<u64>> {
        // Whoever asks builds on it: what is there has to last.
        drop(self.syncing.write().await);
        let found = self.here("look for a file", || self.open_file(&key.to_string()))?;
        found.map(|file| Ok(file?.1)).transpose()
    }

    pub(super) async fn delete(self: &Arc<Self>, key: &ObjectKey, timeout: Duration) -> Result<()> {
        const ACTION: &str = "remove a file in time";
        let (disk, name) = (self.clone(), key.to_string());
        let deadline = Instant::now() + timeout;
        let removal = blocking(ACTION, move || {
            // The thread pool may have been busy until now.
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            disk.remove(&name)
        });
        match tokio::time::timeout(timeout, removal).await {
            Ok(result) => result,
            Err(_) => Err(StorageError::from_io(ACTION, io::ErrorKind::TimedOut.into())),
        }
    }

    pub(super) fn list(self: &Arc<Self>, folder: Folder) -> BoxStream<'static, Result<Entry>> {
        let (sender, receiver) = mpsc::channel(1);
        let disk = self.clone();
        // Ends by itself when the stream is dropped: sending fails.
        tokio::task::spawn_blocking(move || disk.walk(&folder, &sender));
        stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) })
            .flat_map(stream::iter)
            .boxed()
    }

    pub(super) async fn abort_stale_uploads(self: &Arc<Self>, older_than: SystemTime) -> Result<u64> {
        let disk = self.clone();
        blocking("remove stale temporary files", move || disk.remove_stale(Some(older_than))).await
    }
}

/// The blocking half: calls to the system, by folder handles and single components.
impl Disk {
    /// Runs such calls where the caller is: most take less time than the way to another thread and back.
    fn here<T>(&self, action: &'static str, work: impl FnOnce() -> io::Result<T>) -> Result<T> {
        self.calls.run(work).map_err(|source| StorageError::from_io(action, source))
    }

    /// The same for calls that flush.
    fn flushed<T>(&self, action: &'static str, work: impl FnOnce() -> io::Result<T>) -> Result<T> {
        self.flushes.run(work).map_err(|source| StorageError::from_io(action, source))
    }

    /// Makes durable that a file stands under this name.
    fn sync_folders(&self, name: &str) -> io::Result<()> {
        let Some((folders, _)) = self.folders(name, false)? else { return Ok(()) };
        rustix::fs::fsync(&folders[folders.len() - 1])?;
        // Those above once each: another writer may have made one of them a moment ago and not synced it
        // yet. Not every time: a flush of the disk takes milliseconds, even where nothing was changed.
        let folder = folder_of(name);
        if !lock(&self.lasting).contains(folder) {
            for folder in folders.iter().rev().skip(1) {
                rustix::fs::fsync(folder)?;
            }
            let mut lasting = lock(&self.lasting);
            if lasting.len() >= LASTING_MAX {
                lasting.clear();
            }
            lasting.insert(folder.to_owned());
        }
        Ok(())
    }

    /// Opens the folders that lead to `name`, outermost first, and says what is left: the file's name.
    ///
    /// Missing ones are made if `make`; else there is `None`.
    fn folders<'a>(&self, name: &'a str, make: bool) -> io::Result<Option<(Vec<OwnedFd>, &'a str)>> {
        let mut folders = vec![self.root.try_clone()?];
        let mut components = name.split('/');
        let file_name = components.next_back().unwrap_or_default();
        for component in components {
            let parent = &folders[folders.len() - 1];
            let folder = match open_folder(parent, component) {
                Err(Errno::NOENT) if make => make_folder(parent, component, FOLDER_MODE)?,
                Err(Errno::NOENT) => return Ok(None),
                opened => opened?,
            };
            folders.push(folder);
        }
        Ok(Some((folders, file_name)))
    }

    /// Opens a file with its size. What is not a plain file is an error of the inner kind.
    fn open_file(&self, name: &str) -> io::Result<Option<Result<(File, u64)>>> {
        let Some((folders, file_name)) = self.folders(name, false)? else { return Ok(None) };
        // Without NONBLOCK, opening a named pipe would wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file: File =
            match rustix::fs::openat(&folders[folders.len() - 1], file_name, flags, Mode::empty()) {
                Err(Errno::NOENT) => return Ok(None),
                opened => opened?.into(),
            };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(Some(Err(StorageError::Damaged("what stands in its place is not a plain file"))));
        }
        Ok(Some(Ok((file, metadata.len()))))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let Some((folders, file_name)) = self.folders(name, false)? else { return Ok(()) };
        let folder = &folders[folders.len() - 1];
        match rustix::fs::unlinkat(folder, file_name, AtFlags::empty()) {
            Ok(()) => Ok(rustix::fs::fsync(folder)?),
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file://{}", self.path.display())
    }
}

const SYNCING: &str = "sync folders";

const FOLDER_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn open_folder(parent: impl AsFd, name: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(parent, name, FOLDER_FLAGS, Mode::empty())
}

/// The part of an object's name that names its folder, with the last slash.
fn folder_of(name: &str) -> &str {
    &name[..name.rfind('/').map_or(0, |slash| slash + 1)]
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a folder, making it if absent. The parent is synced, so that what is written inside can last.
fn make_folder(parent: &OwnedFd, name: &str, mode: u32) -> rustix::io::Result<OwnedFd> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(mode)) {
        Ok(()) => rustix::fs::fsync(parent)?,
        Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    open_folder(parent, name)
}

/// Makes the root and what leads to it, each synced into its parent.
fn make_root(root: &Path) -> io::Result<()> {
    if root.is_dir() {
        return Ok(());
    }
    let parent = match root.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    make_root(parent)?;
    match DirBuilder::new().mode(ROOT_MODE).create(root) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && root.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => File::open(parent)?.sync_all(),
    }
}

/// Runs calls to the file system on a thread of their own: those that take long, that one task makes many of at once, or
/// that are not waited for to their end.
async fn blocking<T: Send + 'static>(
    action: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    ended(action, tokio::task::spawn_blocking(work)).await
}

/// Refuses after this moment: whoever waits for a lease to end relies on it.
fn in_time(until: Option<Instant>) -> io::Result<()> {
    if until.is_some_and(|until| Instant::now() >= until) {
        Err(io::ErrorKind::TimedOut.into())
    } else {
        Ok(())
    }
}

/// Waits for what such a thread does.
async fn ended<T>(action: &'static str, work: JoinHandle<io::Result<T>>) -> Result<T> {
    match work.await {
        Ok(result) => result.map_err(|source| StorageError::from_io(action, source)),
        Err(ended) => Err(StorageError::Unavailable { action, retryable: false, source: ended.into() }),
    }
}
