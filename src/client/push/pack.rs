//! One path on its way out: dumped, hashed, compressed, hashed again, cut into parts.
//!
//! Never gives out a file whose NAR is not the one that the store's database promises, and never holds more of it
//! than one part, nor more of all together than the [`Room`] has. Runs where it may block.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zstd::zstd_safe::CParameter;

use super::dump::{DumpError, dump};
use super::plan::Stored;
use crate::api::{BATCH_SIZE_BYTES_MAX, FRAME_LINE_BYTES_MAX};
use crate::nix::claim::Claim;
use crate::nix::compression::{Compression, NarFileName};
use crate::nix::hash::{FileHash, NarHash, Sha256Digest};

/// How files are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packing {
    compression: Compression,
    level: i32,
}

/// Why a compression and a level do not go together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackingError {
    #[error("a push compresses by zstd, xz or none")]
    Compression,
    #[error("the level of {compression} is from {min} to {max}")]
    Level { compression: Compression, min: i32, max: i32 },
    #[error("without compression there is no level")]
    NoLevel,
}

impl Packing {
    /// The compression with this level, or with its usual one.
    pub fn new(compression: Compression, level: Option<i32>) -> Result<Self, PackingError> {
        let (min, max, usual) = match compression {
            Compression::Zstd => (1, ZSTD_LEVEL_MAX, ZSTD_LEVEL),
            Compression::Xz => (0, 9, XZ_LEVEL),
            Compression::None if level.is_some() => return Err(PackingError::NoLevel),
            Compression::None => (0, 0, 0),
            Compression::Bzip2 | Compression::Gzip | Compression::Brotli => {
                return Err(PackingError::Compression);
            }
        };
        let level = level.unwrap_or(usual);
        if (min..=max).contains(&level) {
            Ok(Self { compression, level })
        } else {
            Err(PackingError::Level { compression, min, max })
        }
    }

    /// The compression.
    pub fn compression(self) -> Compression {
        self.compression
    }

    /// Whether a NAR of this size is compressed by threads of its own. What they make is another file than one
    /// thread makes, so neither the machine nor its load may decide: an interrupted push goes on only where it makes
    /// the same bytes again.
    pub fn is_threaded(self, nar_size: u64) -> bool {
        self.compression == Compression::Zstd
            && self.level <= THREADED_LEVEL_MAX
            && nar_size >= THREADED_NAR_BYTES_MIN
    }
}

impl Default for Packing {
    fn default() -> Self {
        Self { compression: Compression::Zstd, level: ZSTD_LEVEL }
    }
}

/// Why a path cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// The store is damaged, or was written to.
    #[error(
        "its files make a NAR of {found_size} bytes with hash {found}, and the store's database says {size} bytes \
         and {expected}"
    )]
    Mismatch { found: NarHash, found_size: u64, expected: NarHash, size: u64 },
    #[error("its files are larger than the {size} bytes that the store's database says")]
    Larger { size: u64 },
    #[error("cannot compress")]
    Compress(#[source] io::Error),
    /// Nobody takes the parts any more.
    #[error("abandoned")]
    Abandoned,
}

/// A piece of a file.
pub struct Part {
    /// From 1.
    pub number: u32,
    /// Where they fill a buffer of the room, it goes back when the last copy of them is dropped.
    pub bytes: Bytes,
    pub sha256: Sha256Digest,
}

/// What the files of a push may take of memory, all together: buffers for parts and for files that go alone, and bytes of
/// smaller files that wait to be sent.
///
/// Whoever waits for a buffer holds none, whatever stays in one is sent without waiting for others, and whoever waits to
/// be held keeps no file that is held from being sent: so nobody waits for ever.
pub struct Room {
    part_size_bytes: usize,
    buffers: Arc<Semaphore>,
    /// Made once and used again and again: an allocator keeps what it is given back, in as many places as there are
    /// threads.
    free: Mutex<Vec<Vec<u8>>>,
    held: Arc<Semaphore>,
}

impl Room {
    /// Room for so many parts of this size at once, and for so many bytes of whole files; the largest one has to fit.
    pub fn new(parts: usize, part_size_bytes: usize, held_bytes: usize) -> Arc<Self> {
        let held = Semaphore::new(held_bytes / HELD_PIECE_BYTES);
        Arc::new(Self {
            part_size_bytes,
            buffers: Arc::new(Semaphore::new(parts)),
            free: Mutex::default(),
            held: Arc::new(held),
        })
    }

    /// Waits for a buffer; may block.
    fn take(self: &Arc<Self>) -> io::Result<Buffer> {
        let permit = tokio::runtime::Handle::current().block_on(self.buffers.clone().acquire_owned());
        let permit = permit.map_err(io::Error::other)?;
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = free.unwrap_or_else(|| Vec::with_capacity(self.part_size_bytes));
        Ok(Buffer { bytes, room: self.clone(), _permit: permit })
    }

    /// Waits until a whole file of this size may be held; may block.
    fn hold(&self, size: usize) -> io::Result<OwnedSemaphorePermit> {
        let pieces = u32::try_from(size.div_ceil(HELD_PIECE_BYTES)).map_err(io::Error::other)?;
        let permit = tokio::runtime::Handle::current().block_on(self.held.clone().acquire_many_owned(pieces));
        permit.map_err(io::Error::other)
    }
}

/// A whole file that waits to be sent; what it takes is free again when the last copy of it is dropped.
struct Held {
    bytes: Vec<u8>,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A buffer of the room, which goes back there.
struct Buffer {
    bytes: Vec<u8>,
    room: Arc<Room>,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        self.room.free.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }
}

#[cfg(test)]
impl Part {
    /// A part that was never measured.
    pub fn of(bytes: Bytes) -> Self {
        Self { number: 1, bytes, sha256: Sha256Digest([0; 32]) }
    }
}

/// A whole file.
pub struct Packed {
    pub stored: Stored,
    /// The file, if it is small enough for a batch; else it went out in parts.
    pub whole: Option<Part>,
    /// How many parts went out.
    pub parts: u32,
}

/// Where a file is to come from.
pub struct Source<'a> {
    pub real: &'a Path,
    pub claim: &'a Claim,
    pub packing: Packing,
    /// Threads for a NAR that is compressed by some of its own. The file is the same by however many.
    pub threads: u32,
    /// Told how many bytes of the NAR went by.
    pub progress: &'a dyn Fn(u64),
}

/// Makes the file of a path; parts go to `take` as they are ready, which says whether they are still wanted.
pub fn pack(
    source: &Source<'_>,
    room: &Arc<Room>,
    take: &mut dyn FnMut(Part) -> bool,
) -> Result<Packed, PackError> {
    let Claim { nar_hash: expected, nar_size: size, .. } = *source.claim;
    let parts = Parts::new(room.clone(), take);
    let mut nar = Nar {
        hash: Sha256::new(),
        size: 0,
        size_max: size,
        progress: source.progress,
        file: open(source, parts).map_err(PackError::Compress)?,
    };
    if let Err(error) = dump(source.real, &mut nar) {
        return Err(match error {
            DumpError::Sink(_) if nar.size > size => PackError::Larger { size },
            DumpError::Sink(_) if nar.file.parts().abandoned => PackError::Abandoned,
            DumpError::Sink(error) => PackError::Compress(error),
            error => error.into(),
        });
    }
    let found = NarHash(Sha256Digest(nar.hash.finalize().into()));
    if found != expected || nar.size != size {
        return Err(PackError::Mismatch { found, found_size: nar.size, expected, size });
    }
    let parts = nar.file.finish().map_err(PackError::Compress)?;
    parts.finish(source.packing.compression).map_err(PackError::Compress)?.ok_or(PackError::Abandoned)
}

/// Counts and hashes the NAR on its way into the compressor.
struct Nar<'a> {
    hash: Sha256,
    size: u64,
    size_max: u64,
    progress: &'a dyn Fn(u64),
    file: Compressor<'a>,
}

impl Write for Nar<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.size += bytes.len() as u64;
        if self.size > self.size_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.hash.update(bytes);
        self.file.write_all(bytes)?;
        (self.progress)(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Compressor<'a> {
    None(Parts<'a>),
    Xz(xz2::write::XzEncoder<Parts<'a>>),
    Zstd(zstd::stream::write::Encoder<'static, Parts<'a>>),
}

fn open<'a>(source: &Source<'_>, parts: Parts<'a>) -> io::Result<Compressor<'a>> {
    let (packing, nar_size) = (source.packing, source.claim.nar_size);
    Ok(match packing.compression {
        Compression::Xz => Compressor::Xz(xz2::write::XzEncoder::new(parts, packing.level.unsigned_abs())),
        Compression::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(parts, packing.level)?;
            // Tables of a fitting size: what makes a thousand tiny paths fast.
            encoder.set_pledged_src_size(Some(nar_size))?;
            if packing.is_threaded(nar_size) {
                encoder.set_parameter(CParameter::NbWorkers(source.threads.clamp(1, THREADS_MAX)))?;
                encoder.set_parameter(CParameter::JobSize(THREAD_JOB_BYTES))?;
            }
            Compressor::Zstd(encoder)
        }
        // The others are refused when a packing is made.
        _ => Compressor::None(parts),
    })
}

impl<'a> Compressor<'a> {
    fn parts(&self) -> &Parts<'a> {
        match self {
            Self::None(parts) => parts,
            Self::Xz(encoder) => encoder.get_ref(),
            Self::Zstd(encoder) => encoder.get_ref(),
        }
    }

    fn finish(self) -> io::Result<Parts<'a>> {
        match self {
            Self::None(parts) => Ok(parts),
            Self::Xz(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl Write for Compressor<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(parts) => parts.write(bytes),
            Self::Xz(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hashes the file and cuts it. The first [`SMALL_BYTES`] of each part need no buffer of the room, so that any number of
/// small files can be under way.
struct Parts<'a> {
    hash: Sha256,
    size: u64,
    /// The part so far, while it is small.
    small: Vec<u8>,
    /// The part so far, once it is not.
    large: Option<Buffer>,
    room: Arc<Room>,
    sent: u32,
    take: &'a mut dyn FnMut(Part) -> bool,
    abandoned: bool,
}

impl<'a> Parts<'a> {
    fn new(room: Arc<Room>, take: &'a mut dyn FnMut(Part) -> bool) -> Self {
        let (hash, small) = (Sha256::new(), Vec::new());
        Self { hash, size: 0, small, large: None, room, sent: 0, take, abandoned: false }
    }

    fn filled(&self) -> usize {
        self.large.as_ref().map_or(self.small.len(), |buffer| buffer.bytes.len())
    }

    fn send(&mut self) -> bool {
        let small = std::mem::take(&mut self.small);
        let bytes = self.large.take().map_or_else(|| small.into(), Bytes::from_owner);
        let part = Part { number: self.sent + 1, sha256: Sha256Digest::of(&bytes), bytes };
        self.sent += 1;
        let taken = (self.take)(part);
        self.abandoned |= !taken;
        taken
    }

    /// The whole file, or `None` if nobody takes it any more.
    fn finish(mut self, compression: Compression) -> io::Result<Option<Packed>> {
        let is_whole = self.sent == 0 && self.filled() <= whole_bytes_max(self.room.part_size_bytes);
        if !is_whole && !self.send() {
            return Ok(None);
        }
        let digest = Sha256Digest(std::mem::take(&mut self.hash).finalize().into());
        let whole =
            if is_whole { Some(Part { number: 1, bytes: self.hold()?, sha256: digest }) } else { None };
        let file = NarFileName { hash: FileHash(digest), extension: compression.extension() };
        let stored = Stored { file, compression, file_size: self.size };
        Ok(Some(Packed { stored, whole, parts: self.sent }))
    }

    /// The file, held until it is sent. Where it may wait for company, others need its buffer meanwhile.
    fn hold(&mut self) -> io::Result<Bytes> {
        if self.filled() >= ALONE_BYTES_MIN
            && let Some(buffer) = self.large.take()
        {
            return Ok(Bytes::from_owner(buffer));
        }
        let permit = self.room.hold(self.filled())?;
        let bytes = match self.large.take() {
            Some(buffer) => buffer.bytes.as_slice().to_vec(),
            None => {
                let mut small = std::mem::take(&mut self.small);
                small.shrink_to_fit();
                small
            }
        };
        Ok(Bytes::from_owner(Held { bytes, _permit: permit }))
    }
}

impl Write for Parts<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.filled() == self.room.part_size_bytes && !self.send() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let taken = bytes.len().min(self.room.part_size_bytes - self.filled());
        if self.large.is_none() && self.small.len() + taken > SMALL_BYTES {
            let mut buffer = self.room.take()?;
            buffer.bytes.append(&mut self.small);
            self.large = Some(buffer);
        }
        let part = self.large.as_mut().map_or(&mut self.small, |buffer| &mut buffer.bytes);
        part.extend_from_slice(&bytes[..taken]);
        self.hash.update(&bytes[..taken]);
        self.size += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Size of each part but the last, unless told: below the limits of common proxies.
pub const PART_SIZE_BYTES: usize = 16 * 1024 * 1024;

/// Largest batch: what the wire allows, and no more than a part.
pub fn batch_bytes_max(part_size_bytes: usize) -> usize {
    part_size_bytes.min(BATCH_SIZE_BYTES_MAX as usize)
}

/// Largest file that fits a batch.
fn whole_bytes_max(part_size_bytes: usize) -> usize {
    batch_bytes_max(part_size_bytes) - FRAME_LINE_BYTES_MAX
}

/// From this size on a file is worth a request of its own, and stays in the buffer that it was made in: copies of such a
/// size are what an allocator keeps for long.
pub const ALONE_BYTES_MIN: usize = 4 * 1024 * 1024;

/// Up to this size a file takes no buffer of the room; most paths of a closure stay below it.
const SMALL_BYTES: usize = 1024 * 1024;

/// What held files are counted in: as many as there are, each takes a whole number of them.
const HELD_PIECE_BYTES: usize = 4 * 1024;

/// From this size on a NAR is compressed by threads of its own. Smaller ones keep processors busy by their number.
const THREADED_NAR_BYTES_MIN: u64 = 32 * 1024 * 1024;

/// Above, each thread would need tens of MiB for itself.
const THREADED_LEVEL_MAX: i32 = 9;

/// What one thread compresses at a time. It bounds memory, and with the level it decides the bytes of the file.
const THREAD_JOB_BYTES: u32 = 2 * 1024 * 1024;

/// More are not kept busy by the one that reads and hashes.
pub const THREADS_MAX: u32 = 4;

/// Above, the window grows beyond what the server takes.
const ZSTD_LEVEL_MAX: i32 = 19;

/// 271 MB/s a core to 35 % of the size, on programs and libraries. Level 1 is 1.7 times as fast and makes files 17 %
/// larger, level 9 is five times as slow and makes them 11 % smaller.
const ZSTD_LEVEL: i32 = 3;

/// That of Nix.
const XZ_LEVEL: i32 = 6;

#[cfg(test)]
mod tests;
