//! Times the measuring of uploads against its parts: `nice cargo bench --bench verify [-- FOLDER]`.
//!
//! Not a test: it prints a table. In brackets: raw, of what hashing twice gives; compressed, of the slower of
//! decompressing and hashing alone. The archive is made of the folder's files, `/usr/lib` if none is named.

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use narvault::nix::compression::NarExtension;
use narvault::nix::nar::build::Node;
use narvault::nix::nar::{Checker, NarLimits};
use narvault::nix::references::Scanner;
use narvault::service::measure::{MeasureLimits, ZSTD_WINDOW_BYTES_MAX, measure};
use sha2::Digest as _;

const ARCHIVE_BYTES: usize = 200 << 20;
const FILE_BYTES_MAX: u64 = 32 << 20;
const SLOW_BYTES: usize = 24 << 20;
const PIECE: usize = 128 << 10;
const ROUNDS: usize = 5;

fn main() -> io::Result<()> {
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let folder = PathBuf::from(folder.unwrap_or_else(|| "/usr/lib".to_owned()));
    let mut left = ARCHIVE_BYTES;
    let nar = read_tree(&folder, &mut left)?.to_nar();
    println!(
        "archive of {}: {} MB; all speeds in MB of archive a second",
        folder.display(),
        nar.len() / 1_000_000
    );

    let hash = Speed::of(nar.len(), || sha256(&nar)).one_core;
    println!("sha-256 once            {hash:7.0}");
    println!("nar grammar alone       {:7.0}", Speed::of(nar.len(), || check(&nar)).one_core);
    println!("store path scan alone   {:7.0}", Speed::of(nar.len(), || scan(&nar)).one_core);
    println!();
    println!("file         size MB   decode  one core        two cores       wall    peak MiB");
    let (speed, peak) = measured(&nar, NarExtension::Nar, nar.len());
    row("raw", nar.len(), f64::INFINITY, &speed, hash / 2.0, peak);
    for codec in CODECS {
        let part = if codec.slow { single(&nar, SLOW_BYTES) } else { nar.clone() };
        let file = (codec.encode)(&part)?;
        let decode = Speed::of(part.len(), || (codec.decode)(&file)).one_core;
        let (speed, peak) = measured(&file, codec.extension, part.len());
        row(codec.name, file.len(), decode, &speed, decode.min(hash), peak);
    }
    Ok(())
}

fn row(name: &str, size: usize, decode: f64, speed: &Speed, bar: f64, peak: u64) {
    let Speed { one_core, two_cores, wall } = speed;
    println!(
        "{name:12} {:7.1}  {decode:7.0}  {one_core:6.0} ({:3.0} %)  {two_cores:6.0} ({:3.0} %)  {wall:6.0}  {peak:8}",
        size as f64 / 1e6,
        one_core / bar * 100.0,
        two_cores / bar * 100.0,
    );
}

/// Megabytes of archive a second. Those by processor time bear a busy machine.
struct Speed {
    /// By the processor time of all threads.
    one_core: f64,
    /// By the processor time of the main thread or of all others, whichever is more.
    two_cores: f64,
    /// By the clock on the wall, the best round.
    wall: f64,
}

impl Speed {
    fn of(nar_len: usize, mut act: impl FnMut()) -> Self {
        let (mut wall, all_before, main_before) = (f64::INFINITY, all_threads(), main_thread());
        for _ in 0..ROUNDS {
            let start = Instant::now();
            act();
            wall = wall.min(start.elapsed().as_secs_f64());
        }
        let (all, main) = (all_threads() - all_before, main_thread() - main_before);
        let speed = |seconds: f64| nar_len as f64 / 1e6 / seconds;
        let round = |seconds: f64| speed(seconds / ROUNDS as f64);
        Self { one_core: round(all.max(main)), two_cores: round(main.max(all - main)), wall: speed(wall) }
    }
}

/// Seconds of processor time, those of ended threads included; the kernel tells hundredths.
fn all_threads() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 =
        after_name.split_whitespace().skip(11).take(2).filter_map(|text| text.parse::<f64>().ok()).sum();
    ticks / 100.0
}

/// Seconds of processor time of the main thread.
fn main_thread() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().next().and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

/// An archive of one file that holds the beginning of `nar`.
fn single(nar: &[u8], length: usize) -> Vec<u8> {
    Node::file(&nar[..nar.len().min(length)]).to_nar()
}

/// The speed, and the memory that came on top, in MiB.
fn measured(file: &[u8], extension: NarExtension, nar_len: usize) -> (Speed, u64) {
    let limits = MeasureLimits::default();
    // Resets the peak that the kernel keeps.
    let _ = fs::write("/proc/self/clear_refs", "5");
    let before = status_kib("VmRSS:");
    let speed = Speed::of(nar_len, || {
        let measurement = measure(file, extension, &limits).expect("made right above");
        assert_eq!(measurement.nar_size, nar_len as u64);
    });
    (speed, status_kib("VmHWM:").saturating_sub(before) >> 10)
}

fn status_kib(key: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

fn sha256(bytes: &[u8]) {
    let mut hash = sha2::Sha256::new();
    for piece in bytes.chunks(PIECE) {
        hash.update(piece);
    }
    black_box(hash.finalize());
}

fn check(nar: &[u8]) {
    let mut checker = Checker::new(NarLimits::default());
    for piece in nar.chunks(PIECE) {
        checker.push(piece).expect("made right above");
    }
    black_box(checker.finish().expect("made right above"));
}

fn scan(nar: &[u8]) {
    let mut scanner = Scanner::new();
    for piece in nar.chunks(PIECE) {
        scanner.push(piece);
    }
    black_box(scanner.finish());
}

struct Codec {
    name: &'static str,
    extension: NarExtension,
    /// Encoded only in part, or the table would take minutes.
    slow: bool,
    encode: fn(&[u8]) -> io::Result<Vec<u8>>,
    decode: fn(&[u8]),
}

const CODECS: [Codec; 7] = [
    Codec {
        name: "zstd -3",
        extension: NarExtension::Zst,
        slow: false,
        encode: |nar| zstd::encode_all(nar, 3),
        decode: decode_zstd,
    },
    Codec {
        name: "zstd frames",
        extension: NarExtension::Zst,
        slow: false,
        encode: |nar| {
            nar.chunks(16 << 20)
                .map(|piece| zstd::encode_all(piece, 3))
                .collect::<Result<Vec<_>, _>>()
                .map(|frames| frames.concat())
        },
        decode: decode_zstd,
    },
    // The largest window that is taken, for the peak of memory.
    Codec {
        name: "zstd 64 MiB",
        extension: NarExtension::Zst,
        slow: false,
        encode: |nar| {
            let mut encoder = zstd::Encoder::new(Vec::new(), 3)?;
            encoder.window_log(ZSTD_WINDOW_BYTES_MAX.ilog2())?;
            encoder.long_distance_matching(true)?;
            encoder.write_all(nar)?;
            encoder.finish()
        },
        decode: decode_zstd,
    },
    Codec {
        name: "gzip -6",
        extension: NarExtension::Nar,
        slow: true,
        encode: |nar| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
            encoder.write_all(nar)?;
            encoder.finish()
        },
        decode: |file| drain(flate2::bufread::MultiGzDecoder::new(file)),
    },
    Codec {
        name: "br -4",
        extension: NarExtension::Br,
        slow: true,
        encode: |nar| {
            let mut encoder = brotli::CompressorWriter::new(Vec::new(), PIECE, 4, 24);
            encoder.write_all(nar)?;
            Ok(encoder.into_inner())
        },
        decode: |file| drain(brotli::Decompressor::new(file, PIECE)),
    },
    Codec {
        name: "xz -9",
        extension: NarExtension::Xz,
        slow: true,
        encode: |nar| {
            let mut encoder = xz2::write::XzEncoder::new(Vec::new(), 9);
            encoder.write_all(nar)?;
            encoder.finish()
        },
        decode: |file| drain(xz2::bufread::XzDecoder::new(file)),
    },
    Codec {
        name: "bzip2 -9",
        extension: NarExtension::Bz2,
        slow: true,
        encode: |nar| {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
            encoder.write_all(nar)?;
            encoder.finish()
        },
        decode: |file| drain(bzip2::bufread::MultiBzDecoder::new(file)),
    },
];

fn decode_zstd(file: &[u8]) {
    let mut decoder = zstd::Decoder::with_buffer(file).expect("memory for a decoder");
    decoder.window_log_max(ZSTD_WINDOW_BYTES_MAX.ilog2()).expect("a window log that zstd knows");
    drain(decoder);
}

fn drain(mut decoder: impl Read) {
    let mut buffer = vec![0; PIECE];
    while decoder.read(&mut buffer).expect("encoded right above") > 0 {
        black_box(&buffer);
    }
}

/// The regular files below `folder` until `left` is used up; what cannot be read is passed over.
fn read_tree(folder: &Path, left: &mut usize) -> io::Result<Node> {
    let mut entries = BTreeMap::new();
    for entry in fs::read_dir(folder)?.flatten() {
        let (Ok(kind), path) = (entry.file_type(), entry.path()) else { continue };
        let node = if kind.is_dir() {
            let Ok(node) = read_tree(&path, left) else { continue };
            node
        } else if kind.is_file() && entry.metadata()?.len() <= FILE_BYTES_MAX {
            let Ok(contents) = fs::read(&path) else { continue };
            if contents.len() > *left {
                continue;
            }
            *left -= contents.len();
            Node::file(contents)
        } else {
            continue;
        };
        entries.insert(entry.file_name().into_encoded_bytes(), node);
    }
    Ok(Node::Directory { entries })
}
