//! Measures an uploaded NAR file in one streaming pass: both hashes, both sizes, grammar, store paths.
//!
//! Never believes a stated length, never holds more than [`memory_bytes`], never goes on past a limit: what
//! the server signs rests on a [`Measurement`] and on nothing that a client said.

mod channel;
mod decoder;
mod file;
mod pipeline;

#[cfg(test)]
mod tests;

use std::io::{self, BufRead as _, Read};

use sha2::Digest as _;

use crate::nix::compression::{Compression, CompressionError, DETECT_BYTES, NarExtension};
use crate::nix::hash::{FileHash, NarHash, Sha256Digest};
use crate::nix::nar::{Checker, NarError, NarFault, NarLimits, SingleFile};
use crate::nix::references::{Found, Scanner};

pub use channel::{ChanRead, Chunk};
pub use decoder::{XZ_MEMORY_BYTES_MAX, ZSTD_WINDOW_BYTES_MAX};
use file::{File, FileFault};
use pipeline::Stop;

/// What one upload may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeasureLimits {
    /// Largest file, as uploaded. A NAR that does not compress makes a slightly larger file.
    pub file_size_bytes_max: u64,
    /// Largest archive, and what it may contain.
    pub nar: NarLimits,
}

impl Default for MeasureLimits {
    fn default() -> Self {
        let nar = NarLimits::default();
        Self { file_size_bytes_max: nar.nar_size_bytes_max + (nar.nar_size_bytes_max >> 6), nar }
    }
}

/// What this server itself found out about a file that holds exactly one canonical NAR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measurement {
    pub file_hash: FileHash,
    /// Bytes of the file as uploaded.
    pub file_size: u64,
    pub nar_hash: NarHash,
    /// Bytes of the archive.
    pub nar_size: u64,
    pub compression: Compression,
    /// The store paths that the archive mentions.
    pub references: Found,
    /// Set where the archive is one regular file, for `text` and flat content addresses.
    pub single_file: Option<SingleFile>,
    /// Files, links and directories in the archive.
    pub entries: u64,
}

/// Why a file was not measured. All but [`MeasureError::Source`] and [`MeasureError::Thread`] are faults of the content.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The client, or the way to it, failed: nothing is known about the content.
    #[error("the upload broke off before its end")]
    Source(#[source] io::Error),
    #[error("the uploaded file is empty")]
    Empty,
    #[error("the uploaded file is larger than {max} bytes")]
    FileTooLarge { max: u64 },
    #[error("the NAR in the uploaded file is larger than {max} bytes")]
    NarTooLarge { max: u64 },
    #[error(transparent)]
    Compression(#[from] CompressionError),
    #[error("the {compression} file needs {} to decompress", bound(*.compression))]
    Window { compression: Compression },
    #[error("the {compression} data is cut short")]
    Truncated { compression: Compression },
    #[error("the {compression} data is damaged")]
    Damaged {
        compression: Compression,
        #[source]
        source: io::Error,
    },
    #[error("the {compression} file holds damaged or further data after the end of its NAR")]
    Tail { compression: Compression },
    #[error(transparent)]
    Nar(NarError),
    /// The server's fault.
    #[error("the server could not start a thread to measure with")]
    Thread(#[source] io::Error),
}

impl MeasureError {
    /// Whether a size limit, not the content, was the reason.
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::FileTooLarge { .. } | Self::NarTooLarge { .. })
    }
}

impl From<NarError> for MeasureError {
    fn from(error: NarError) -> Self {
        match error.fault {
            NarFault::Size { max } => Self::NarTooLarge { max },
            _ => Self::Nar(error),
        }
    }
}

/// Reads `source` to its end and measures it. Blocks, and keeps a core busy, or nearly two where the file is
/// compressed and decompresses fast: call it where that is right. What is short and here already may be measured anywhere.
///
/// `extension` is how the file's name ends; its first bytes must agree.
pub fn measure(
    source: impl Read,
    extension: NarExtension,
    limits: &MeasureLimits,
) -> Result<Measurement, MeasureError> {
    let mut file = File::new(source, limits.file_size_bytes_max);
    let mut nar = NarMeter::new(limits.nar);
    let compression = match file.first(DETECT_BYTES) {
        Ok([]) => return Err(MeasureError::Empty),
        Ok(first) => Compression::of_file(extension, first)?,
        Err(error) => return Err(file_error(&mut file, error)),
    };
    if compression == Compression::None {
        take_raw(&mut file, &mut nar)?;
    } else {
        file.hash_on();
        decompress(&mut file, &mut nar, compression)?;
    }
    let summary = nar.checker.finish()?;
    let nar_hash = Sha256Digest(nar.hash.finalize().into());
    let (file_size, file_hash) = file.finish();
    Ok(Measurement {
        // A raw file is its NAR: hashed once.
        file_hash: FileHash(file_hash.unwrap_or(nar_hash)),
        file_size,
        nar_hash: NarHash(nar_hash),
        nar_size: summary.size,
        compression,
        references: nar.scanner.finish(),
        single_file: summary.single_file,
        entries: summary.entries,
    })
}

/// An upper bound of what [`measure`] holds at once, for admission. Buffers and the most hashes that are kept
/// take less than 8 MiB; the rest is the decoder's, as `benches/verify.rs` sees it, rounded up.
pub const fn memory_bytes(compression: Compression) -> u64 {
    const COMMON: u64 = 8 << 20;
    COMMON
        + match compression {
            Compression::None => 0,
            Compression::Gzip => 1 << 20,
            // 900 kB blocks, four bytes for each byte of a block, and tables.
            Compression::Bzip2 => 8 << 20,
            // A 16 MiB window that grows by copying, and its trees.
            Compression::Brotli => 40 << 20,
            Compression::Zstd => ZSTD_WINDOW_BYTES_MAX + (2 << 20),
            Compression::Xz => XZ_MEMORY_BYTES_MAX,
        }
}

/// The archive as it passes by.
struct NarMeter {
    checker: Checker,
    scanner: Scanner,
    hash: sha2::Sha256,
}

impl NarMeter {
    fn new(limits: NarLimits) -> Self {
        Self { checker: Checker::new(limits), scanner: Scanner::new(), hash: sha2::Sha256::new() }
    }

    /// Checks before it hashes: a bomb is cut off at the first byte too many.
    fn push(&mut self, bytes: &[u8]) -> Result<(), NarError> {
        self.checker.push(bytes)?;
        self.scanner.push(bytes);
        self.hash.update(bytes);
        Ok(())
    }
}

fn take_raw<R: Read>(file: &mut File<R>, nar: &mut NarMeter) -> Result<(), MeasureError> {
    loop {
        let length = match file.fill_buf() {
            Ok([]) => return Ok(()),
            Ok(bytes) => {
                nar.push(bytes)?;
                bytes.len()
            }
            Err(error) => return Err(file_error(file, error)),
        };
        file.consume(length);
    }
}

fn decompress<R: Read>(
    file: &mut File<R>,
    nar: &mut NarMeter,
    compression: Compression,
) -> Result<(), MeasureError> {
    let decoder = decoder::open(compression, &mut *file)
        .map_err(|source| MeasureError::Damaged { compression, source })?;
    match pipeline::run(decoder, |bytes| nar.push(bytes)) {
        Err(Stop::Thread(error)) => Err(MeasureError::Thread(error)),
        Err(Stop::Taker(error)) => Err(error.into()),
        Err(Stop::Decoder(error)) if file.has_fault() => Err(file_error(file, error)),
        Err(Stop::Decoder(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(MeasureError::Truncated { compression })
        }
        Err(Stop::Decoder(error)) if decoder::is_window(compression, &error) => {
            Err(MeasureError::Window { compression })
        }
        Err(Stop::Decoder(_)) if nar.checker.is_complete() => Err(MeasureError::Tail { compression }),
        Err(Stop::Decoder(source)) => Err(MeasureError::Damaged { compression, source }),
        Ok(()) => match file.fill_buf() {
            Ok([]) => Ok(()),
            Ok(_) => Err(MeasureError::Tail { compression }),
            Err(error) => Err(file_error(file, error)),
        },
    }
}

/// The file's own fault; a decoder only passes on that there was one.
fn file_error<R>(file: &mut File<R>, passed_on: io::Error) -> MeasureError {
    match file.fault() {
        Some(FileFault::TooLarge { max }) => MeasureError::FileTooLarge { max },
        Some(FileFault::Source(error)) => MeasureError::Source(error),
        None => MeasureError::Source(passed_on),
    }
}

/// What a file needs whose decoder gave up, in words: the figures are those of the decoders.
fn bound(compression: Compression) -> String {
    match compression {
        Compression::Xz => format!("more than {} MiB of memory", XZ_MEMORY_BYTES_MAX >> 20),
        Compression::Zstd => format!("a window larger than {} MiB", ZSTD_WINDOW_BYTES_MAX >> 20),
        _ => "a window larger than 16 MiB".to_owned(),
    }
}
