//! Objects of binary caches, kept in a folder or in an S3 bucket: put, upload, read, list, remove.
//!
//! A put is invisible until it is complete, and durable once its call has answered. Nothing here knows
//! what an object means, and nothing else knows where an object lies. Never relies on conditional writes
//! (Garage ignores them) and never asks for the time or for randomness: both are handed in.

mod disk;
mod error;
mod key;
mod s3;
mod staging;
mod upload;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt as _;
use futures_util::stream::BoxStream;
use url::Url;
use uuid::Uuid;

pub use disk::DiskSettings;
pub use error::{Result, StorageError};
pub use key::{
    COMPONENT_LEN_MAX, CacheObject, Folder, LOG_NAME_LEN_MAX, LogName, ObjectKey, PREFIX_LEN_MAX,
    ParseKeyError, Prefix, log_folder,
};
pub use s3::{Checksums, Credentials, Patience, S3Settings};
pub use staging::{Stage, StagedPart, Target};
pub use upload::{Sealed, Upload};

/// Longest name of a cluster, in bytes.
pub const CLUSTER_LEN_MAX: usize = 64;

/// How long [`Storage::check`] waits for its probe to be removed.
const PROBE_DELETE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where objects are kept.
#[derive(Clone, Debug)]
pub enum Settings {
    Disk(DiskSettings),
    S3(Box<S3Settings>),
}

/// An opened folder or bucket. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Storage {
    backend: Backend,
    instance: Uuid,
    probes: Arc<AtomicU64>,
}

#[derive(Clone)]
enum Backend {
    Disk(Arc<disk::Disk>),
    S3(Arc<s3::S3>),
}

/// An object being read.
pub struct Object {
    /// Size of the whole object, also when only a range of it is read.
    pub size_bytes: u64,
    /// The bytes asked for: exactly as many, or an error at the end. Read lazily, a few buffers at a time.
    pub body: BoxStream<'static, Result<Bytes>>,
}

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The path below the bucket's own prefix, as it was found.
    pub name: String,
    pub size_bytes: u64,
    /// When it was last written, by the backend's clock.
    pub modified: SystemTime,
}

impl Entry {
    /// What the object is, unless it is none of ours.
    pub fn key(&self) -> Option<ObjectKey> {
        self.name.parse().ok()
    }
}

/// Bytes held for parts of uploads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffered {
    pub now_bytes: u64,
    /// The most that were held at one moment since the storage was opened.
    pub peak_bytes: u64,
}

impl Storage {
    /// Opens a folder (made if absent; temporary files of dead processes are removed) or prepares a
    /// client for a bucket, without asking it anything: see [`Storage::check`].
    ///
    /// `instance` is random and new for each start: names that must be unique are made from it.
    pub async fn open(settings: Settings, instance: Uuid) -> Result<Self> {
        let backend = match settings {
            Settings::Disk(settings) => Backend::Disk(disk::Disk::open(settings, instance).await?),
            Settings::S3(settings) => Backend::S3(s3::S3::open(*settings, instance).await?),
        };
        Ok(Self { backend, instance, probes: Arc::default() })
    }

    /// Writes a small object, replacing what was there: readers see the old one or the new one, whole.
    ///
    /// After an error the new one may or may not be there; writing it again settles that.
    pub async fn put(&self, key: &ObjectKey, bytes: Bytes) -> Result<()> {
        match &self.backend {
            Backend::Disk(disk) => disk.put(key, bytes),
            Backend::S3(s3) => s3.put(key, bytes).await,
        }
    }

    /// The same, but a power failure may take the object away again until [`Storage::settle`] has answered: for
    /// whoever writes many and knows which to write once more.
    pub async fn put_soon(&self, key: &ObjectKey, bytes: Bytes) -> Result<()> {
        self.end_put(self.begin_put(key, bytes)).await
    }

    /// Begins what [`Storage::put_soon`] does, while the caller goes on with something else: all that can be done before
    /// anything becomes visible. What is dropped leaves no trace.
    pub fn begin_put(&self, key: &ObjectKey, bytes: Bytes) -> BegunPut {
        BegunPut(match &self.backend {
            Backend::Disk(disk) => BegunBackend::Disk(disk.begin_put(key, bytes)),
            Backend::S3(_) => BegunBackend::S3(key.clone(), bytes),
        })
    }

    /// Does the rest of it.
    pub async fn end_put(&self, begun: BegunPut) -> Result<()> {
        match (&self.backend, begun.0) {
            (Backend::Disk(disk), BegunBackend::Disk(begun)) => disk.end_put(begun).await,
            (Backend::S3(s3), BegunBackend::S3(key, bytes)) => s3.put(&key, bytes).await,
            _ => Err(OTHER_STORAGE),
        }
    }

    /// Makes everything durable that [`Storage::put_soon`] has written.
    pub async fn settle(&self) -> Result<()> {
        match &self.backend {
            Backend::Disk(disk) => disk.settle(),
            Backend::S3(_) => Ok(()),
        }
    }

    /// Writes many small objects as [`Storage::put`] writes one, at once: what became of each, in their order.
    pub async fn put_all(&self, objects: Vec<(ObjectKey, Bytes)>) -> Vec<Result<()>> {
        let until = match &self.backend {
            Backend::Disk(disk) => Some(disk.put_deadline()),
            // Bounded by its client.
            Backend::S3(_) => None,
        };
        let prepared = self.prepare_all(objects).await;
        let (files, puts, failed) = self.sorted(prepared);
        let placed = match &self.backend {
            Backend::Disk(disk) => disk.place_all(files, until).await,
            Backend::S3(s3) => s3.put_all(puts).await,
        };
        each(failed, placed)
    }

    /// Does all of [`Storage::put_all`] that can be done while nothing becomes visible. What is dropped leaves no trace.
    pub async fn prepare_all(&self, objects: Vec<(ObjectKey, Bytes)>) -> Vec<Result<Prepared>> {
        match &self.backend {
            Backend::Disk(disk) => {
                let written = disk.write_all(objects).await.into_iter();
                written.map(|written| Ok(Prepared(PreparedBackend::Disk(written?)))).collect()
            }
            Backend::S3(_) => objects.into_iter().map(|put| Ok(Prepared(PreparedBackend::S3(put)))).collect(),
        }
    }

    /// Makes prepared objects visible: what became of each, in their order. A power failure may take them away again until
    /// [`Settling::end`] has answered, which may be waited for while something else goes on.
    ///
    /// On disk a folder is flushed once for all that it gets, which is most of what a small file costs.
    pub async fn place_all(&self, prepared: Vec<Result<Prepared>>) -> (Vec<Result<()>>, Settling) {
        let (files, puts, failed) = self.sorted(prepared);
        let (placed, unsynced) = match &self.backend {
            Backend::Disk(_) if files.is_empty() => (Vec::new(), None),
            Backend::Disk(disk) => {
                let (placed, unsynced) = disk.name_all(files, None).await;
                (placed, Some(unsynced))
            }
            Backend::S3(s3) => (s3.put_all(puts).await, None),
        };
        (each(failed, placed), Settling(unsynced))
    }

    /// Files and puts, and at the place of each `None`, or why it is neither.
    fn sorted(&self, prepared: Vec<Result<Prepared>>) -> (Files, Puts, Vec<Option<StorageError>>) {
        let (mut files, mut puts, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        for one in prepared {
            failed.push(match (&self.backend, one) {
                (Backend::Disk(_), Ok(Prepared(PreparedBackend::Disk(file)))) => {
                    files.push(Ok(file));
                    None
                }
                (Backend::S3(_), Ok(Prepared(PreparedBackend::S3(put)))) => {
                    puts.push(put);
                    None
                }
                (_, Ok(_)) => Some(OTHER_STORAGE),
                (_, Err(error)) => Some(error),
            });
        }
        (files, puts, failed)
    }

    /// Begins to write an object of any size, which becomes visible only by [`Sealed::complete`].
    pub async fn upload(&self, key: &ObjectKey) -> Result<Upload> {
        match &self.backend {
            Backend::Disk(disk) => Ok(Upload::disk(disk.upload(key)?)),
            Backend::S3(s3) => Ok(Upload::s3(s3.upload(key), s3.object_size_bytes_max())),
        }
    }

    /// Opens an object, or the bytes `range` of it; `None` if it is absent. A connection that is cut
    /// while the body is read is taken up again where it ended.
    pub async fn get(&self, key: &ObjectKey, range: Option<Range<u64>>) -> Result<Option<Object>> {
        match &self.backend {
            Backend::Disk(disk) => disk.get(key, range).await,
            Backend::S3(s3) => s3.get(key, range).await,
        }
    }

    /// A whole small object; `None` if it is absent, an error if it is larger than `size_bytes_max`.
    pub async fn read(&self, key: &ObjectKey, size_bytes_max: usize) -> Result<Option<Bytes>> {
        let Some(mut object) = self.get(key, None).await? else { return Ok(None) };
        if object.size_bytes > size_bytes_max as u64 {
            return Err(StorageError::Damaged("it is larger than anything that is written there"));
        }
        let mut whole = BytesMut::new();
        while let Some(bytes) = object.body.try_next().await? {
            whole.extend_from_slice(&bytes);
        }
        Ok(Some(whole.freeze()))
    }

    /// The size of an object in bytes; `None` if it is absent. One that is found lasts, unless it is put anew by
    /// [`Storage::put_soon`].
    pub async fn size(&self, key: &ObjectKey) -> Result<Option<u64>> {
        match &self.backend {
            Backend::Disk(disk) => disk.size(key).await,
            Backend::S3(s3) => s3.size(key).await,
        }
    }

    /// Removes an object; an absent one is fine. Nothing is sent once `timeout` has passed, and the
    /// answer comes by then: an error that says so means that the object may be there or gone.
    pub async fn delete(&self, key: &ObjectKey, timeout: Duration) -> Result<()> {
        match &self.backend {
            Backend::Disk(disk) => disk.delete(key, timeout).await,
            Backend::S3(s3) => s3.delete(key, timeout).await,
        }
    }

    /// Every object in `folder`, in no particular order, foreign ones too, a page at a time.
    pub fn list(&self, folder: &Folder) -> BoxStream<'static, Result<Entry>> {
        match &self.backend {
            Backend::Disk(disk) => disk.list(folder.clone()),
            Backend::S3(s3) => s3.list(folder.clone()),
        }
    }

    /// A URL by which anyone can read the object for `lifetime`; `None` where there is no such thing.
    /// The URL is a secret of its own.
    pub async fn presign_get(&self, key: &ObjectKey, lifetime: Duration) -> Result<Option<Url>> {
        match &self.backend {
            Backend::Disk(_) => Ok(None),
            Backend::S3(s3) => s3.presign_get(key, lifetime).await.map(Some),
        }
    }

    /// Tries out everything that serving needs: writes an object, reads it back, and removes it.
    pub async fn check(&self) -> Result<()> {
        let number = u128::from(self.probes.fetch_add(1, Ordering::Relaxed));
        let key = ObjectKey::Probe(Uuid::from_u128(self.instance.as_u128().wrapping_add(number)));
        let written = Bytes::from(key.to_string());

        self.put(&key, written.clone()).await?;
        let read = self.read(&key, written.len()).await;
        self.delete(&key, PROBE_DELETE_TIMEOUT).await?;

        if read?.is_none_or(|read| read != written) {
            return Err(StorageError::Damaged("what was written a moment ago is not what is read"));
        }
        Ok(())
    }

    /// Ends uploads that nobody will complete, begun before `older_than`, and says how many.
    ///
    /// In a bucket it ends those of every replica, so `older_than` must leave time for the longest upload.
    pub async fn abort_stale_uploads(&self, older_than: SystemTime) -> Result<u64> {
        match &self.backend {
            Backend::Disk(disk) => disk.abort_stale_uploads(older_than).await,
            Backend::S3(s3) => s3.abort_stale_uploads(older_than).await,
        }
    }

    /// Marks the bucket or folder as this cluster's, or finds that it is already; another cluster's is
    /// refused. `cluster` is up to 64 characters `A-Z a-z 0-9 -`.
    ///
    /// Two clusters that both start for the first time within the same moment may both pass: storage has
    /// no conditional write to rely on. The later mark stays, so the other one fails at its next call.
    pub async fn claim_cluster(&self, cluster: &str) -> Result<()> {
        if !is_cluster(cluster) {
            return Err(StorageError::Setting { setting: "cluster", problem: "not a cluster's name" });
        }
        if self.owner().await?.is_none() {
            self.put(&ObjectKey::Owner, format!("{cluster}\n").into()).await?;
        }
        match self.owner().await? {
            Some(found) if found == cluster => Ok(()),
            Some(found) => Err(StorageError::OtherCluster { found, expected: cluster.to_owned() }),
            None => Err(StorageError::Damaged("the owner's mark is gone right after it was written")),
        }
    }

    /// The cluster that the bucket or folder is marked with.
    pub async fn owner(&self) -> Result<Option<String>> {
        let Some(mark) = self.read(&ObjectKey::Owner, CLUSTER_LEN_MAX + 1).await? else { return Ok(None) };
        let text = std::str::from_utf8(&mark).unwrap_or_default();
        let cluster = text.strip_suffix('\n').unwrap_or(text);
        if is_cluster(cluster) {
            Ok(Some(cluster.to_owned()))
        } else {
            Err(StorageError::Damaged("the owner's mark names no cluster"))
        }
    }

    /// The most memory that one upload takes, in bytes.
    pub fn upload_memory_bytes(&self) -> u64 {
        match &self.backend {
            Backend::Disk(_) => disk::UPLOAD_MEMORY_BYTES,
            Backend::S3(s3) => s3.upload_memory_bytes(),
        }
    }

    /// The largest object that can be uploaded, in bytes.
    pub fn object_size_bytes_max(&self) -> u64 {
        match &self.backend {
            Backend::Disk(_) => u64::MAX,
            Backend::S3(s3) => s3.object_size_bytes_max(),
        }
    }

    /// How many objects [`Storage::put_all`] begins to write at once; more of them wait for those.
    pub fn puts_at_once(&self) -> usize {
        match &self.backend {
            Backend::Disk(_) => disk::PUTS_AT_ONCE,
            Backend::S3(_) => s3::PUTS_AT_ONCE,
        }
    }

    /// How long a put may take with all its retries before it ends in an error. A write that was given up
    /// may still land within this time.
    pub fn put_time_max(&self) -> Duration {
        match &self.backend {
            Backend::Disk(disk) => disk.put_time_max,
            Backend::S3(s3) => s3.put_time_max(),
        }
    }

    /// What uploads hold in memory at present.
    pub fn buffered(&self) -> Buffered {
        match &self.backend {
            Backend::Disk(_) => Buffered { now_bytes: 0, peak_bytes: 0 },
            Backend::S3(s3) => s3.buffered(),
        }
    }
}

/// A small object that is being written. Dropping it leaves no trace.
pub struct BegunPut(BegunBackend);

impl fmt::Debug for BegunPut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BegunPut").finish()
    }
}

enum BegunBackend {
    Disk(disk::Begun),
    S3(ObjectKey, Bytes),
}

/// A small object that is ready to be made visible. Dropping it leaves no trace.
pub struct Prepared(PreparedBackend);

type Files = Vec<Result<disk::DiskSealed>>;
type Puts = Vec<(ObjectKey, Bytes)>;

/// What [`Storage::place_all`] has made visible, on its way to being durable.
pub struct Settling(Option<disk::Unsynced>);

impl Settling {
    /// Waits until all of it is durable. After an error nothing is known of any of it.
    pub async fn end(self) -> Result<()> {
        match self.0 {
            Some(unsynced) => unsynced.settle().await,
            None => Ok(()),
        }
    }
}

/// What became of each: why it failed before, or what became of it now.
fn each(failed: Vec<Option<StorageError>>, placed: Vec<Result<()>>) -> Vec<Result<()>> {
    let mut placed = placed.into_iter();
    let result = |failed: Option<StorageError>| match failed {
        Some(error) => Err(error),
        None => placed.next().unwrap_or(Err(OTHER_STORAGE)),
    };
    failed.into_iter().map(result).collect()
}

enum PreparedBackend {
    Disk(disk::DiskSealed),
    S3((ObjectKey, Bytes)),
}

/// `s3://bucket/prefix` or `file:///folder`.
impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.backend {
            Backend::Disk(disk) => write!(f, "{disk}"),
            Backend::S3(s3) => write!(f, "{s3}"),
        }
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Storage({self})")
    }
}

const OTHER_STORAGE: StorageError = StorageError::Damaged("it was prepared for another storage");

fn is_cluster(text: &str) -> bool {
    (1..=CLUSTER_LEN_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Checks that `range` is not empty and lies within an object.
fn check_range(range: &Range<u64>, size_bytes: u64) -> Result<()> {
    if range.start < range.end && range.end <= size_bytes {
        Ok(())
    } else {
        Err(StorageError::Range { start: range.start, end: range.end, size_bytes })
    }
}
