//! One decompressor for each compression, each with a bound on its memory, each taking several streams in a row.
//!
//! Never decodes without a bound: what needs more is an error that [`is_window`] knows.

use std::io::{self, BufRead, Read};

use brotli::{BrotliDecompressStream, BrotliResult, BrotliState, HeapAlloc, HuffmanCode};

use crate::nix::compression::Compression;

/// Largest zstd window: what levels up to 21 need. Level 22 would need twice as much.
pub const ZSTD_WINDOW_BYTES_MAX: u64 = 1 << ZSTD_WINDOW_LOG_MAX;
const ZSTD_WINDOW_LOG_MAX: u32 = 26;

/// Most memory for an xz decoder: `xz -9` needs 65 MiB.
pub const XZ_MEMORY_BYTES_MAX: u64 = 96 << 20;

/// A decompressor over `file`. [`Compression::None`] passes the bytes through.
pub(super) fn open<'a>(compression: Compression, file: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match compression {
        Compression::None => Box::new(file),
        Compression::Xz => {
            let stream =
                xz2::stream::Stream::new_stream_decoder(XZ_MEMORY_BYTES_MAX, xz2::stream::CONCATENATED)?;
            Box::new(xz2::bufread::XzDecoder::new_stream(file, stream))
        }
        // Nix from 2.35 on writes many frames: the decoder goes on until the file ends.
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(file)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(file)),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Compression::Brotli => Box::new(Brotli::new(file)),
    })
}

/// Whether a decoder gave up because the file needs more memory than it may have.
pub(super) fn is_window(compression: Compression, error: &io::Error) -> bool {
    let Some(cause) = error.get_ref() else { return false };
    match compression {
        Compression::Xz => cause.downcast_ref() == Some(&xz2::stream::Error::MemLimit),
        // The binding keeps only zstd's own words for `ZSTD_error_frameParameter_windowTooLarge`.
        Compression::Zstd => cause.to_string() == "Frame requires too much memory for decoding",
        Compression::Brotli => cause.is::<BrotliWindow>(),
        Compression::None | Compression::Gzip | Compression::Bzip2 => false,
    }
}

/// A brotli decoder for windows of at most 16 MiB, as Nix's own is.
///
/// The crate's ready-made reader takes "large window" files of up to 1 GiB, and cannot tell a cut from damage.
struct Brotli<R> {
    file: R,
    state: BrotliState<HeapAlloc<u8>, HeapAlloc<u32>, HeapAlloc<HuffmanCode>>,
    ended: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("brotli window is larger than 16 MiB")]
struct BrotliWindow;

impl<R> Brotli<R> {
    fn new(file: R) -> Self {
        let state = BrotliState::new_strict(
            HeapAlloc::new(0),
            HeapAlloc::new(0),
            HeapAlloc::new(HuffmanCode::default()),
        );
        Self { file, state, ended: false }
    }
}

impl<R: BufRead> Read for Brotli<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut written = 0;
        while written == 0 && !self.ended && !into.is_empty() {
            let input = self.file.fill_buf()?;
            let at_end = input.is_empty();
            let (mut input_left, mut consumed, mut room, mut total) = (input.len(), 0, into.len(), 0);
            let result = BrotliDecompressStream(
                &mut input_left,
                &mut consumed,
                input,
                &mut room,
                &mut written,
                into,
                &mut total,
                &mut self.state,
            );
            self.file.consume(consumed);
            match result {
                BrotliResult::ResultSuccess => self.ended = true,
                BrotliResult::NeedsMoreInput if at_end && written == 0 => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => {}
                BrotliResult::ResultFailure => return Err(self.failure()),
            }
        }
        Ok(written)
    }
}

impl<R> Brotli<R> {
    fn failure(&self) -> io::Error {
        // `FORMAT_WINDOW_BITS`; the crate does not export the type of the code.
        if self.state.error_code as i32 == -13 {
            io::Error::other(BrotliWindow)
        } else {
            io::ErrorKind::InvalidData.into()
        }
    }
}
