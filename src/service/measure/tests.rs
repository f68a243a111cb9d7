use std::cell::Cell;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::sync::mpsc;

use super::*;
use crate::nix::nar::build::Node;

const ALL: [Compression; 6] = Compression::ALL;
const REFERENCE: &str = "mmjhp110f3wf5kp5q70rc7p49yln4qzy";

fn encode(compression: Compression, bytes: &[u8]) -> Vec<u8> {
    match compression {
        Compression::None => bytes.to_vec(),
        Compression::Xz => {
            let mut encoder = xz2::write::XzEncoder::new(Vec::new(), 0);
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Zstd => zstd::encode_all(bytes, 1).unwrap(),
        Compression::Bzip2 => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Brotli => {
            let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 1, 22);
            encoder.write_all(bytes).unwrap();
            encoder.into_inner()
        }
    }
}

/// Some entries, a mention of a store path, and contents that do not compress to nothing.
fn nar() -> Vec<u8> {
    let noise = |length: u32| -> Vec<u8> {
        (0..length).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    };
    Node::directory([
        ("bin", Node::directory([("tool", Node::executable(noise(300_000)))])),
        ("link", Node::symlink(format!("/nix/store/{REFERENCE}-dependency/bin/tool"))),
        ("text", Node::file(noise(77))),
    ])
    .to_nar()
}

fn run(compression: Compression, file: &[u8]) -> Result<Measurement, MeasureError> {
    measure(file, compression.extension(), &MeasureLimits::default())
}

/// Gives one byte at a time.
struct Bytewise<'a>(&'a [u8]);

impl Read for Bytewise<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = into.len().min(1);
        self.0.read(&mut into[..length])
    }
}

/// Fails after its bytes.
struct BreaksOff<'a>(&'a [u8]);

impl Read for BreaksOff<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.0.read(into)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            length => Ok(length),
        }
    }
}

/// Counts what is read.
struct Counted<'a, R> {
    source: R,
    count: &'a Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(into)?;
        self.count.set(self.count.get() + length as u64);
        Ok(length)
    }
}

#[test]
fn one_archive_measures_the_same_in_every_compression() {
    let nar = nar();
    for compression in ALL {
        let file = encode(compression, &nar);

        let measurement = run(compression, &file).unwrap();

        assert_eq!(measurement.compression, compression);
        assert_eq!(measurement.file_hash, FileHash(Sha256Digest::of(&file)), "{compression}");
        assert_eq!(measurement.file_size, file.len() as u64, "{compression}");
        assert_eq!(measurement.nar_hash, NarHash(Sha256Digest::of(&nar)), "{compression}");
        assert_eq!(measurement.nar_size, nar.len() as u64, "{compression}");
        assert_eq!(measurement.entries, 5, "{compression}");
        assert_eq!(measurement.single_file, None, "{compression}");
        let found: Vec<String> = measurement.references.hashes.iter().map(ToString::to_string).collect();
        assert_eq!(found, [REFERENCE], "{compression}");

        let bytewise = measure(Bytewise(&file), compression.extension(), &MeasureLimits::default()).unwrap();
        assert_eq!(bytewise, measurement, "{compression}");
    }
}

#[test]
fn a_single_file_is_measured_by_its_contents_too() {
    let nar = Node::executable("#!/bin/sh\n").to_nar();
    for compression in ALL {
        let file = run(compression, &encode(compression, &nar)).unwrap().single_file.unwrap();

        assert_eq!((file.executable, file.size), (true, 10));
        assert_eq!(file.sha256, Sha256Digest::of(b"#!/bin/sh\n"));
    }
}

#[test]
fn several_streams_in_a_row_are_one_archive() {
    let nar = nar();
    for compression in [Compression::Xz, Compression::Zstd, Compression::Bzip2, Compression::Gzip] {
        let file: Vec<u8> = nar.chunks(70_000).flat_map(|piece| encode(compression, piece)).collect();

        let measurement = run(compression, &file).unwrap();

        assert_eq!(measurement.nar_hash, NarHash(Sha256Digest::of(&nar)), "{compression}");
        assert_eq!(measurement.file_hash, FileHash(Sha256Digest::of(&file)), "{compression}");
    }
}

#[test]
fn data_after_the_compressed_stream_is_refused() {
    let nar = nar();
    for compression in ALL {
        let file = encode(compression, &nar);
        for tail in [b"x".as_slice(), b"\0", b"trailing garbage that is long enough", &[0xff; 300_000]] {
            let refusal = run(compression, &[&file, tail].concat()).unwrap_err();
            match compression {
                Compression::None => {
                    assert!(
                        matches!(refusal, MeasureError::Nar(e) if e.fault == NarFault::Trailing),
                        "{refusal}"
                    );
                }
                // Which of the three depends on how far the decoder looks ahead.
                _ => assert!(
                    matches!(
                        refusal,
                        MeasureError::Tail { .. }
                            | MeasureError::Truncated { .. }
                            | MeasureError::Damaged { .. }
                    ),
                    "{compression}: {refusal:?}"
                ),
            }
        }
    }
}

#[test]
fn a_second_archive_in_the_file_is_refused() {
    let nar = nar();
    for compression in ALL {
        let twice = [nar.clone(), nar.clone()].concat();
        let refusal = run(compression, &encode(compression, &twice)).unwrap_err();
        assert!(
            matches!(refusal, MeasureError::Nar(e) if e.fault == NarFault::Trailing),
            "{compression}: {refusal}"
        );

        let file = encode(compression, &nar);
        assert!(run(compression, &[file.clone(), file].concat()).is_err(), "{compression}");
    }
}

#[test]
fn every_cut_off_file_is_refused() {
    let nar = Node::file("hello\n").to_nar();
    for compression in ALL {
        let file = encode(compression, &nar);
        for length in 0..file.len() {
            let refusal = run(compression, &file[..length]).expect_err("cut off");
            match (length, compression) {
                (0, _) => assert!(matches!(refusal, MeasureError::Empty)),
                (1..24, Compression::None) => {
                    assert!(matches!(refusal, MeasureError::Compression(_)), "{refusal:?}")
                }
                (_, Compression::None) => assert!(matches!(refusal, MeasureError::Nar(_)), "{refusal:?}"),
                (7.., Compression::Xz | Compression::Zstd | Compression::Brotli) => {
                    assert!(
                        matches!(refusal, MeasureError::Truncated { .. }),
                        "{compression} {length}: {refusal:?}"
                    );
                }
                _ => {}
            }
        }
    }
}

#[test]
fn the_fault_that_stands_first_is_told() {
    let faulty = Node::directory([("a", Node::symlink("")), ("b", Node::file([7; 500_000]))]).to_nar();
    for compression in ALL {
        let file = encode(compression, &faulty);

        let refusal = run(compression, &file[..file.len() - 1]).unwrap_err();

        let MeasureError::Nar(error) = refusal else { panic!("{compression}: {refusal:?}") };
        assert_eq!(error.fault, NarFault::TargetLength, "{compression}");
    }
}

#[test]
fn an_empty_file_is_refused() {
    for compression in ALL {
        assert!(matches!(run(compression, b""), Err(MeasureError::Empty)), "{compression}");
        assert!(run(compression, &encode(compression, b"")).is_err(), "{compression}");
    }
}

#[test]
fn a_file_that_is_not_what_its_name_says_is_refused() {
    let nar = nar();
    for named in ALL {
        for actual in ALL {
            if named != actual && named.extension() != actual.extension() {
                assert!(run(named, &encode(actual, &nar)).is_err(), "{actual} named {named}");
            }
        }
    }
    let lz4 = [b"\x04\x22\x4d\x18".as_slice(), &nar].concat();
    let refusal = run(Compression::None, &lz4).unwrap_err();
    assert!(refusal.to_string().contains("xz, zstd, bzip2, gzip, br or none"), "{refusal}");
}

#[test]
fn what_is_packed_must_be_a_canonical_archive() {
    for compression in ALL {
        for bytes in [b"<html>not here</html>".to_vec(), vec![0; 100_000], Node::symlink("").to_nar()] {
            let refusal = run(compression, &encode(compression, &bytes)).unwrap_err();
            let told_by_its_start = compression == Compression::None && !bytes.starts_with(&[13]);
            match refusal {
                MeasureError::Nar(_) => assert!(!told_by_its_start),
                MeasureError::Compression(_) => assert!(told_by_its_start),
                other => panic!("{compression}: {other:?}"),
            }
        }
    }
}

#[test]
fn size_limits_hold_to_the_byte() {
    let nar = nar();
    for compression in ALL {
        let file = encode(compression, &nar);
        let limits = MeasureLimits {
            file_size_bytes_max: file.len() as u64,
            nar: NarLimits { nar_size_bytes_max: nar.len() as u64, ..NarLimits::default() },
        };
        assert!(measure(file.as_slice(), compression.extension(), &limits).is_ok(), "{compression}");

        let mut smaller = limits;
        smaller.file_size_bytes_max -= 1;
        let refusal = measure(file.as_slice(), compression.extension(), &smaller).unwrap_err();
        assert!(matches!(refusal, MeasureError::FileTooLarge { .. }), "{compression}: {refusal:?}");
        assert!(refusal.is_too_large());

        let mut smaller = limits;
        smaller.nar.nar_size_bytes_max -= 1;
        let refusal = measure(file.as_slice(), compression.extension(), &smaller).unwrap_err();
        assert!(matches!(refusal, MeasureError::NarTooLarge { .. }), "{compression}: {refusal:?}");
        assert!(refusal.is_too_large());
    }
}

#[test]
fn a_bomb_is_cut_off_at_the_limit() {
    let mut bomb = Node::file("").to_nar();
    bomb.truncate(24 + 16 + 16 + 16 + 16);
    bomb.extend_from_slice(&(1_u64 << 30).to_le_bytes());
    let mut bomb = encode(Compression::Zstd, &bomb);
    bomb.extend(encode(Compression::Zstd, &vec![0; 1 << 24]).repeat(64));
    let limits = MeasureLimits {
        nar: NarLimits { nar_size_bytes_max: 1 << 20, ..NarLimits::default() },
        ..MeasureLimits::default()
    };

    let refusal = measure(bomb.as_slice(), NarExtension::Zst, &limits).unwrap_err();

    assert!(matches!(refusal, MeasureError::NarTooLarge { max: 1_048_576 }), "{refusal:?}");
}

#[test]
fn nothing_is_read_far_beyond_a_limit() {
    const SLACK: u64 = 256 << 10;
    let count = Cell::new(0);
    let limits = MeasureLimits {
        file_size_bytes_max: 1 << 20,
        nar: NarLimits { nar_size_bytes_max: 1 << 20, ..NarLimits::default() },
    };

    // Endless files: empty streams that decompress to nothing, for ever.
    for compression in [Compression::Xz, Compression::Zstd, Compression::Bzip2, Compression::Gzip] {
        let empty = encode(compression, b"");
        let endless = Counted { source: Endless { piece: &empty, at: 0 }, count: &count };
        count.set(0);
        let refusal = measure(endless, compression.extension(), &limits).unwrap_err();
        assert!(matches!(refusal, MeasureError::FileTooLarge { .. }), "{compression}: {refusal:?}");
        assert!(count.get() <= limits.file_size_bytes_max + SLACK, "{compression}: {}", count.get());
    }

    // A long archive in a file that would be allowed to be long.
    let name = |number: u32| format!("{number:08}");
    let long = Node::directory((0..20_000).map(|number| (name(number), Node::file("")))).to_nar();
    for compression in ALL {
        let file: Vec<u8> = match compression {
            Compression::Brotli => encode(compression, &long),
            _ => long.chunks(64 << 10).flat_map(|piece| encode(compression, piece)).collect(),
        };
        let counted = Counted { source: file.as_slice(), count: &count };
        count.set(0);
        let roomy = MeasureLimits { file_size_bytes_max: u64::MAX, ..limits };
        let refusal = measure(counted, compression.extension(), &roomy).unwrap_err();
        assert!(matches!(refusal, MeasureError::NarTooLarge { .. }), "{compression}: {refusal:?}");
        let share = file.len() as u64 * limits.nar.nar_size_bytes_max / long.len() as u64;
        assert!(count.get() <= share + SLACK, "{compression}: {} of {}", count.get(), file.len());
    }
}

struct Endless<'a> {
    piece: &'a [u8],
    at: usize,
}

impl Read for Endless<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        for byte in &mut *into {
            *byte = self.piece[self.at];
            self.at = (self.at + 1) % self.piece.len();
        }
        Ok(into.len())
    }
}

#[test]
fn a_window_beyond_the_limit_is_named() {
    let nar = nar();
    let zstd = |log: u32| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        encoder.write_all(&nar).unwrap();
        encoder.finish().unwrap()
    };
    assert!(run(Compression::Zstd, &zstd(26)).is_ok());
    // The dictionary's size is the fifth byte of the first block's header; its CRC follows the padding.
    let xz = |size: u8| {
        let mut file = encode(Compression::Xz, &nar);
        let header_len = (usize::from(file[12]) + 1) * 4;
        file[12 + 4] = size;
        let mut crc = flate2::Crc::new();
        crc.update(&file[12..12 + header_len - 4]);
        file[12 + header_len - 4..12 + header_len].copy_from_slice(&crc.sum().to_le_bytes());
        file
    };
    assert!(run(Compression::Xz, &xz(28)).is_ok(), "64 MiB, as `xz -9` writes");

    for (compression, file, text) in [
        (Compression::Zstd, zstd(27), "the zstd file needs a window larger than 64 MiB to decompress"),
        (Compression::Xz, xz(30), "the xz file needs more than 96 MiB of memory to decompress"),
        (Compression::Xz, xz(40), "the xz file needs more than 96 MiB of memory to decompress"),
        (
            Compression::Brotli,
            vec![0x11, 30, 0, 0, 0, 0],
            "the br file needs a window larger than 16 MiB to decompress",
        ),
    ] {
        let refusal = run(compression, &file).unwrap_err();
        assert_eq!(refusal.to_string(), text, "{refusal:?}");
    }
}

#[test]
fn an_upload_that_breaks_off_is_not_blamed_on_its_content() {
    let nar = nar();
    for compression in ALL {
        let file = encode(compression, &nar);
        for length in [0, 1, 20, file.len() / 2, file.len() - 1, file.len()] {
            let refusal =
                measure(BreaksOff(&file[..length]), compression.extension(), &MeasureLimits::default())
                    .unwrap_err();
            assert!(matches!(refusal, MeasureError::Source(_)), "{compression} {length}: {refusal:?}");
            assert!(!refusal.is_too_large());
        }
    }
}

/// Runs `nix` with everything it writes below `folder`; `None` without Nix.
fn nix(folder: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("nix")
        .args(arguments)
        .env("NIX_CONFIG", "experimental-features = nix-command")
        .env("XDG_CACHE_HOME", folder.join("cache"))
        .current_dir(folder)
        .output()
        .ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

#[test]
fn what_nix_packs_is_measured_as_its_narinfo_says() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::create_dir_all(folder.join("tree/bin")).unwrap();
    fs::write(folder.join("tree/bin/tool"), [7; 100_000]).unwrap();
    fs::write(folder.join("tree/text"), format!("/nix/store/{REFERENCE}-x")).unwrap();
    let Some(path) = nix(folder, &["store", "add-path", "--store", "./store", "./tree"]) else {
        println!("skipped: no `nix` on PATH");
        return;
    };

    for compression in ALL {
        let cache = format!("cache-{compression}");
        let to = format!("file://{}/{cache}?compression={compression}", folder.display());
        nix(folder, &["copy", "--no-check-sigs", "--store", "./store", "--to", &to, &path]).unwrap();
        let hash = &path["/nix/store/".len()..][..32];
        let narinfo = fs::read_to_string(folder.join(&cache).join(format!("{hash}.narinfo"))).unwrap();
        let line = |key: &str| narinfo.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        let file = fs::File::open(folder.join(&cache).join(line("URL: "))).unwrap();

        let measurement = measure(file, compression.extension(), &MeasureLimits::default()).unwrap();

        assert_eq!(measurement.compression.label(), line("Compression: "));
        assert_eq!(measurement.file_hash.to_string(), line("FileHash: "));
        assert_eq!(measurement.file_size.to_string(), line("FileSize: "));
        assert_eq!(measurement.nar_hash.to_string(), line("NarHash: "));
        assert_eq!(measurement.nar_size.to_string(), line("NarSize: "));
        assert_eq!(measurement.references.hashes.len(), 1);
    }
}

#[test]
fn a_body_through_the_channel_is_measured() {
    let nar = nar();
    let (sender, receiver) = mpsc::channel(nar.len());
    sender.blocking_send(Chunk::Data(Bytes::new())).unwrap();
    for piece in nar.chunks(1000) {
        sender.blocking_send(Chunk::Data(Bytes::copy_from_slice(piece))).unwrap();
    }
    sender.blocking_send(Chunk::End).unwrap();
    drop(sender);

    let measurement = measure(ChanRead::new(receiver), NarExtension::Nar, &MeasureLimits::default()).unwrap();

    assert_eq!(measurement.nar_hash, NarHash(Sha256Digest::of(&nar)));
}

#[test]
fn a_channel_closed_without_its_end_is_no_end() {
    let nar = nar();
    for length in [0, 500, nar.len()] {
        let (sender, receiver) = mpsc::channel(2);
        sender.blocking_send(Chunk::Data(Bytes::copy_from_slice(&nar[..length]))).unwrap();
        drop(sender);

        let refusal =
            measure(ChanRead::new(receiver), NarExtension::Nar, &MeasureLimits::default()).unwrap_err();

        let MeasureError::Source(error) = refusal else { panic!("{length}: {refusal:?}") };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }
}

proptest! {
    #[test]
    fn damaged_files_never_panic_and_never_lie(
        which in 0..ALL.len(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1..=255_u8), 1..4),
    ) {
        let nar = Node::directory([("a", Node::file("some contents")), ("b", Node::symlink("a"))]).to_nar();
        let mut file = encode(ALL[which], &nar);
        for (at, flip) in flips {
            let at = at.index(file.len());
            file[at] ^= flip;
        }

        if let Ok(measurement) = run(ALL[which], &file) {
            prop_assert_eq!(measurement.file_hash, FileHash(Sha256Digest::of(&file)));
            prop_assert_eq!(measurement.file_size, file.len() as u64);
        }
    }

    #[test]
    fn no_bytes_panic(which in 0..ALL.len(), rest: Vec<u8>) {
        let mut file = encode(ALL[which], b"");
        file.truncate(12);
        file.extend(rest);
        let _ = run(ALL[which], &file);
    }
}
