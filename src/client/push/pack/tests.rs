use std::collections::BTreeSet;
use std::io::Read as _;

use super::*;
use crate::nix::nar::build::Node;
use crate::nix::store_path::StorePath;

/// Bytes that do not compress.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(size).collect()
}

fn claim_of(nar: &[u8]) -> Claim {
    let path = StorePath::from_base_name("mmjhp110f3wf5kp5q70rc7p49yln4qzy-thing").unwrap();
    let nar_hash = NarHash(Sha256Digest::of(nar));
    Claim { path, nar_hash, nar_size: nar.len() as u64, references: BTreeSet::new() }
}

/// Packs a file of these contents; gives the parts too.
async fn packed(contents: Vec<u8>, claim: Claim, packing: Packing) -> (Result<Packed, PackError>, Vec<Part>) {
    packed_by(1, contents, claim, packing).await
}

/// The same by so many threads.
async fn packed_by(
    threads: u32,
    contents: Vec<u8>,
    claim: Claim,
    packing: Packing,
) -> (Result<Packed, PackError>, Vec<Part>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), contents).unwrap();
    tokio::task::spawn_blocking(move || {
        let room = Room::new(3, PART_SIZE_BYTES, HELD);
        let real = folder.path().join("file");
        let source = Source { real: &real, claim: &claim, packing, threads, progress: &|_| () };
        let mut parts = Vec::new();
        let mut take = |part| {
            parts.push(part);
            true
        };
        let result = pack(&source, &room, &mut take);
        (result, parts)
    })
    .await
    .unwrap()
}

/// Bytes of whole files: the largest one, and a little.
const HELD: usize = PART_SIZE_BYTES + 4096;

fn none() -> Packing {
    Packing::new(Compression::None, None).unwrap()
}

#[test]
fn levels_are_those_that_every_server_reads() {
    for (compression, level, fits) in [
        (Compression::Zstd, None, true),
        (Compression::Zstd, Some(19), true),
        (Compression::Zstd, Some(20), false),
        (Compression::Zstd, Some(0), false),
        (Compression::Xz, Some(0), true),
        (Compression::Xz, Some(10), false),
        (Compression::None, None, true),
        (Compression::None, Some(1), false),
        (Compression::Gzip, None, false),
        (Compression::Brotli, Some(1), false),
    ] {
        assert_eq!(Packing::new(compression, level).is_ok(), fits, "{compression} {level:?}");
    }
    assert_eq!(Packing::new(Compression::Zstd, None), Ok(Packing::default()));
}

#[tokio::test]
async fn a_small_file_is_given_out_whole_and_reads_back() {
    let contents = b"text ".repeat(100_000);
    let nar = Node::file(contents.clone()).to_nar();
    for compression in [Compression::Zstd, Compression::Xz, Compression::None] {
        let packing = Packing::new(compression, None).unwrap();

        let (result, parts) = packed(contents.clone(), claim_of(&nar), packing).await;

        let made = result.unwrap();
        let whole = made.whole.unwrap();
        assert!(parts.is_empty() && made.parts == 0);
        assert_eq!(made.stored.file.hash, FileHash(Sha256Digest::of(&whole.bytes)));
        assert_eq!((made.stored.file_size, made.stored.compression), (whole.bytes.len() as u64, compression));
        let mut read = Vec::new();
        match compression {
            Compression::Zstd => read = zstd::decode_all(&whole.bytes[..]).unwrap(),
            Compression::Xz => {
                xz2::read::XzDecoder::new(&whole.bytes[..]).read_to_end(&mut read).map(drop).unwrap();
            }
            _ => read.extend_from_slice(&whole.bytes),
        }
        assert!(read == nar, "{compression}");
    }
}

#[tokio::test]
async fn a_large_file_goes_out_in_parts_that_are_the_same_each_time() {
    let contents = noise(PART_SIZE_BYTES * 2 + 1000);
    let nar = Node::file(contents.clone()).to_nar();

    let (result, parts) = packed(contents.clone(), claim_of(&nar), Packing::default()).await;
    let (_, again) = packed(contents, claim_of(&nar), Packing::default()).await;

    let made = result.unwrap();
    assert!(made.whole.is_none() && made.parts == 3 && parts.len() == 3);
    let sizes: Vec<usize> = parts.iter().map(|part| part.bytes.len()).collect();
    assert_eq!(sizes[..2], [PART_SIZE_BYTES; 2]);
    let file = parts.iter().flat_map(|part| part.bytes.to_vec()).collect::<Vec<u8>>();
    assert_eq!(made.stored.file.hash, FileHash(Sha256Digest::of(&file)));
    assert_eq!(made.stored.file_size, file.len() as u64);
    assert!(zstd::decode_all(&file[..]).unwrap() == nar);
    let digests = |parts: &[Part]| parts.iter().map(|part| (part.number, part.sha256)).collect::<Vec<_>>();
    assert_eq!(digests(&parts), digests(&again));
}

#[tokio::test]
async fn the_largest_whole_file_fits_a_batch() {
    let overhead = Node::file(noise(8)).to_nar().len() - 8;
    let whole_max = whole_bytes_max(PART_SIZE_BYTES);
    for (size, parts_expected) in [(whole_max, 0), (whole_max + 8, 1), (PART_SIZE_BYTES + 8, 2)] {
        let contents = noise(size - overhead);
        let nar = Node::file(contents.clone()).to_nar();
        assert_eq!(nar.len(), size);

        let (result, parts) = packed(contents, claim_of(&nar), none()).await;

        assert_eq!(parts.len(), parts_expected, "{size}");
        assert_eq!(result.unwrap().whole.is_some(), parts_expected == 0, "{size}");
    }
}

#[tokio::test]
async fn another_nar_than_the_stores_is_refused() {
    let nar = Node::file("good!").to_nar();
    for (contents, expected) in
        [("evil!", "and the store's database says"), ("", "NAR of"), ("evil, and longer", "larger than")]
    {
        let (result, _) = packed(contents.into(), claim_of(&nar), none()).await;

        let error = result.err().unwrap();
        assert!(error.to_string().contains(expected), "{contents}: {error}");
    }
}

#[tokio::test]
async fn what_nobody_takes_is_abandoned() {
    let folder = tempfile::tempdir().unwrap();
    let contents = noise(PART_SIZE_BYTES * 2);
    let claim = claim_of(&Node::file(contents.clone()).to_nar());
    std::fs::write(folder.path().join("file"), contents).unwrap();
    let result = tokio::task::spawn_blocking(move || {
        let (room, real) = (Room::new(1, PART_SIZE_BYTES, HELD), folder.path().join("file"));
        let source = Source { real: &real, claim: &claim, packing: none(), threads: 1, progress: &|_| () };
        pack(&source, &room, &mut |_| false)
    });

    assert!(matches!(result.await.unwrap(), Err(PackError::Abandoned)));
}

#[tokio::test]
async fn a_very_large_nar_makes_the_same_file_by_however_many_threads() {
    let size = usize::try_from(THREADED_NAR_BYTES_MIN).unwrap();
    // Half of it compresses, so that jobs end at different times.
    let contents = [noise(size / 2), b"text ".repeat(size / 8)].concat();
    let nar = Node::file(contents.clone()).to_nar();
    assert!(Packing::default().is_threaded(nar.len() as u64));
    let mut files = Vec::new();

    for threads in [1, 2, 4, 64] {
        let (result, parts) = packed_by(threads, contents.clone(), claim_of(&nar), Packing::default()).await;
        let file = parts.iter().flat_map(|part| part.bytes.to_vec()).collect::<Vec<u8>>();
        assert_eq!(result.unwrap().stored.file.hash, FileHash(Sha256Digest::of(&file)), "{threads}");
        files.push(file);
    }

    assert!(zstd::decode_all(&files[0][..]).unwrap() == nar);
    assert!(files.iter().all(|file| *file == files[0]));
}

#[test]
fn only_the_size_and_the_level_decide_whether_threads_are_used() {
    let with = |compression, level| Packing::new(compression, Some(level)).unwrap();
    let (min, most) = (THREADED_NAR_BYTES_MIN, u64::MAX);

    assert!(Packing::default().is_threaded(min) && with(Compression::Zstd, 9).is_threaded(most));
    assert!(!Packing::default().is_threaded(min - 1) && !with(Compression::Zstd, 10).is_threaded(most));
    assert!(!with(Compression::Xz, 1).is_threaded(most) && !none().is_threaded(most));
}

/// Makes one file of so many bytes after the other, by the same room.
fn packer(room: &Arc<Room>, size: usize) -> impl Fn() -> tokio::task::JoinHandle<Bytes> {
    let contents = noise(size);
    let claim = claim_of(&Node::file(contents.clone()).to_nar());
    let folder = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(folder.path().join("file"), contents).unwrap();
    let room = room.clone();
    move || {
        let (room, folder, claim) = (room.clone(), folder.clone(), claim.clone());
        tokio::task::spawn_blocking(move || {
            let real = folder.path().join("file");
            let source =
                Source { real: &real, claim: &claim, packing: none(), threads: 1, progress: &|_| () };
            pack(&source, &room, &mut |_| true).unwrap().whole.unwrap().bytes
        })
    }
}

#[tokio::test]
async fn files_that_wait_for_company_take_no_more_than_the_room_has() {
    let room = Room::new(1, PART_SIZE_BYTES, HELD);
    let free = || room.held.available_permits() * HELD_PIECE_BYTES;
    let pack_one = packer(&room, 3 << 20);

    let mut held = Vec::new();
    while free() >= 4 << 20 {
        held.push(pack_one().await.unwrap());
        // Others are made meanwhile.
        assert_eq!(room.buffers.available_permits(), 1);
    }
    let next = pack_one();
    let first = held.remove(0);
    let copy = first.clone();
    drop(first);
    // Somebody still sends it.
    assert!(free() < 4 << 20, "{}", free());
    drop(copy);

    held.push(next.await.unwrap());
    drop(held);
    assert_eq!(free(), HELD);
    assert_eq!(room.buffers.available_permits(), 1);
}

#[tokio::test]
async fn a_file_that_goes_alone_stays_in_the_buffer_that_it_was_made_in() {
    let room = Room::new(2, PART_SIZE_BYTES, HELD);
    let pack_one = packer(&room, ALONE_BYTES_MIN);

    let first = pack_one().await.unwrap();
    let second = pack_one().await.unwrap();
    assert_eq!(
        (room.buffers.available_permits(), room.held.available_permits()),
        (0, HELD / HELD_PIECE_BYTES)
    );
    let third = pack_one();
    drop(first);

    drop((second, third.await.unwrap()));
    assert_eq!(room.buffers.available_permits(), 2);
    assert_eq!(room.free.lock().unwrap().len(), 2);
}
