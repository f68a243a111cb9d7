//! The whole against others: a log that Go's tools wrote (`tests/golden/tlog-v1`), and the crates `tlog_tiles` and
//! `signed_note`.

use std::convert::Infallible;
use std::path::PathBuf;

use ed25519_dalek::{Signer as _, SigningKey};
use signed_note::{Signer as _, Verifier as _};
use tlog_tiles::{HashReader, stored_hash_index};

use super::bundle;
use super::checkpoint::Checkpoint;
use super::cosignature;
use super::edge::Edge;
use super::frontier::Frontier;
use super::hash::NodeHash;
use super::note::Note;
use super::proof::{Consistency, Inclusion};
use super::proof_file::ProofFile;
use super::tile::{Tile, TileKind};
use super::tile_reader::TileReader;
use super::tree::Node;
use super::verifier_key::{Algorithm, VerifierKey};

// --- the log that Go's tools wrote ---

const GOLDEN_SIZE: u64 = 600;

fn golden(name: &str) -> std::io::Result<Vec<u8>> {
    std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tlog-v1").join(name))
}

fn golden_text(name: &str) -> String {
    String::from_utf8(golden(name).unwrap()).unwrap()
}

fn golden_keys() -> Vec<VerifierKey> {
    golden_text("vkeys").lines().map(|line| line.parse().unwrap()).collect()
}

fn golden_leaf(index: u64) -> String {
    format!("leaf {index}\n")
}

fn golden_checkpoint() -> (Checkpoint, Note) {
    Checkpoint::open(&golden("checkpoint").unwrap(), &golden_keys()[0]).unwrap()
}

#[test]
fn a_log_written_by_others_is_read_whole_and_proved() {
    let (checkpoint, note) = golden_checkpoint();
    assert_eq!(checkpoint.size, GOLDEN_SIZE);
    assert_eq!(note.encode().as_bytes(), golden("checkpoint").unwrap());
    let mut reader =
        TileReader::open(checkpoint.size, checkpoint.root, |tile| golden(&tile.to_string())).unwrap();

    let entries: Vec<_> = (0..3).flat_map(|index| reader.entries(index).unwrap()).collect();
    assert_eq!(entries.len() as u64, GOLDEN_SIZE);
    for (entry, index) in entries.iter().zip(0..) {
        assert_eq!(entry, golden_leaf(index).as_bytes());
    }
    for index in [0, 255, 256, 599] {
        let file = golden_text(&format!("{index}.tlog-proof"));
        let proof = ProofFile::parse(file.as_bytes()).unwrap();
        assert_eq!(proof.encode(), file);
        assert_eq!(proof.index, index);
        assert_eq!(proof.hashes, reader.inclusion(index).unwrap(), "{index}");
        assert_eq!(proof.verify(golden_leaf(index).as_bytes(), &golden_keys()[0]).unwrap(), checkpoint);
    }
    for line in golden_text("consistency").lines() {
        let mut words = line.split(' ');
        let old = words.next().unwrap().parse().unwrap();
        let root = words.next().unwrap().parse().unwrap();
        let proof: Vec<NodeHash> = words.map(|hash| hash.parse().unwrap()).collect();
        assert_eq!(reader.consistency(old).unwrap(), proof, "{old}");
        let way = Consistency::new(old, GOLDEN_SIZE).unwrap();
        assert_eq!(way.verify(root, checkpoint.root, &proof), Ok(()), "{old}");
    }
}

#[test]
fn both_witnesses_of_a_log_written_by_others_are_verified() {
    let (_, note) = golden_checkpoint();
    let keys = golden_keys();

    let times: Vec<u64> = keys[1..].iter().map(|key| cosignature::verify(&note, key).unwrap()).collect();

    assert_eq!(times.len(), 2);
    // Between the days on which the format was written and on which the file was.
    assert!(times.iter().all(|time| (1_700_000_000..1_900_000_000).contains(time)), "{times:?}");
    assert!(note.verify(&keys[1]).is_err() && cosignature::verify(&note, &keys[0]).is_err());
}

#[test]
fn the_same_leaves_make_the_same_files() {
    let mut edge = Edge::new();
    let mut made: Vec<(Tile, Vec<u8>)> = Vec::new();
    for index in 0..GOLDEN_SIZE {
        let full = edge.push(NodeHash::leaf(golden_leaf(index).as_bytes()));
        made.extend(full.iter().map(|hashes| (hashes.tile(), hashes.encode())));
    }
    made.extend(edge.partial_tiles().iter().map(|hashes| (hashes.tile(), hashes.encode())));
    for tile in Tile::added(0, GOLDEN_SIZE).into_iter().filter(|tile| tile.kind() == TileKind::Entries) {
        made.push((tile, bundle::encode(tile.leaves().map(golden_leaf)).unwrap()));
    }

    assert_eq!(made.len(), Tile::added(0, GOLDEN_SIZE).len());
    for (tile, bytes) in made {
        assert_eq!(golden(&tile.to_string()).unwrap(), bytes, "{tile}");
    }
    assert_eq!(edge.root(), golden_checkpoint().0.root);
}

// --- the crate `tlog_tiles` ---

/// A tree of the crate: all nodes, in its own order.
struct Stored(Vec<tlog_tiles::Hash>);

impl HashReader for Stored {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<tlog_tiles::Hash>, tlog_tiles::Error> {
        Ok(indexes.iter().map(|&index| self.0[index as usize]).collect())
    }
}

impl Stored {
    fn of(size: u64) -> Self {
        let mut stored = Self(Vec::new());
        for index in 0..size {
            let hashes = tlog_tiles::stored_hashes(index, &index.to_be_bytes(), &stored).unwrap();
            stored.0.extend(hashes);
        }
        stored
    }

    fn node(&self, node: Node) -> Result<NodeHash, Infallible> {
        Ok(ours(self.0[stored_hash_index(node.level, node.index) as usize]))
    }
}

fn ours(hash: tlog_tiles::Hash) -> NodeHash {
    NodeHash::from_bytes(hash.0)
}

fn theirs(hash: NodeHash) -> tlog_tiles::Hash {
    tlog_tiles::Hash(*hash.bytes())
}

/// Sizes up to 3 000 at which something happens, and all small ones.
fn sizes() -> impl Iterator<Item = u64> {
    (1..=300).chain([383, 511, 512, 513, 767, 768, 1_000, 1_023, 1_024, 1_025, 2_047, 2_048, 2_999, 3_000])
}

#[test]
fn roots_are_those_of_the_oracle() {
    let stored = Stored::of(3_000);
    let (mut frontier, mut edge) = (Frontier::new(), Edge::new());

    for size in sizes() {
        while frontier.size() < size {
            let leaf = NodeHash::leaf(&frontier.size().to_be_bytes());
            frontier.push(leaf);
            edge.push(leaf);
        }
        let root = ours(tlog_tiles::tree_hash(size, &stored).unwrap());
        assert_eq!(frontier.root(), root, "{size}");
        assert_eq!(edge.root(), root, "{size}");
        assert_eq!(super::tree::root(size, |node| stored.node(node)), Ok(root), "{size}");
        assert_eq!(Frontier::read(size, |node| stored.node(node)), Ok(frontier.clone()), "{size}");
    }
    assert_eq!(NodeHash::empty(), ours(tlog_tiles::EMPTY_HASH));
}

#[test]
fn inclusion_proofs_are_those_of_the_oracle_and_verify_on_both_sides() {
    let stored = Stored::of(3_000);

    for size in sizes() {
        let root = tlog_tiles::tree_hash(size, &stored).unwrap();
        for index in (0..size).step_by(1 + size as usize / 12).chain([size - 1]) {
            let way = Inclusion::new(index, size).unwrap();
            let proof = way.prove(|node| stored.node(node)).unwrap();
            let leaf = NodeHash::leaf(&index.to_be_bytes());

            let made = tlog_tiles::prove_record(size, index, &stored).unwrap();
            assert_eq!(proof, made.iter().copied().map(ours).collect::<Vec<_>>(), "{index} {size}");
            assert_eq!(way.verify(leaf, &proof, ours(root)), Ok(()));
            let proof: Vec<_> = proof.into_iter().map(theirs).collect();
            assert!(tlog_tiles::check_record(&proof, size, root, index, theirs(leaf)).is_ok());
        }
    }
}

#[test]
fn consistency_proofs_are_those_of_the_oracle_and_verify_on_both_sides() {
    let stored = Stored::of(3_000);

    for size in sizes() {
        let root = tlog_tiles::tree_hash(size, &stored).unwrap();
        for old in (1..=size).step_by(1 + size as usize / 12).chain([size]) {
            let way = Consistency::new(old, size).unwrap();
            let proof = way.prove(|node| stored.node(node)).unwrap();
            let old_root = tlog_tiles::tree_hash(old, &stored).unwrap();

            let made = tlog_tiles::prove_tree(size, old, &stored).unwrap();
            assert_eq!(proof, made.iter().copied().map(ours).collect::<Vec<_>>(), "{old} {size}");
            assert_eq!(way.verify(ours(old_root), ours(root), &proof), Ok(()));
            let proof: Vec<_> = proof.into_iter().map(theirs).collect();
            assert!(tlog_tiles::check_tree(&proof, size, root, old, old_root).is_ok());
        }
    }
}

/// How the crate, which is older than the format, spells the path of a tile of height 8.
fn their_path(tile: Tile) -> String {
    tile.to_string().replace("tile/entries/", "tile/data/").replacen("tile/", "tile/8/", 1)
}

#[test]
fn tiles_and_their_contents_are_those_of_the_oracle() {
    let stored = Stored::of(3_000);
    let mut edge = Edge::new();

    let mut published = 0;
    for size in sizes() {
        let mut made = Vec::new();
        while edge.size() < size {
            made.extend(edge.push(NodeHash::leaf(&edge.size().to_be_bytes())));
        }
        made.extend(edge.partial_tiles());
        let mut added = Tile::added(published, size);
        added.retain(|tile| tile.kind() != TileKind::Entries);

        let new_tiles = tlog_tiles::Tile::new_tiles(8, published, size);
        assert_eq!(
            added.iter().copied().map(their_path).collect::<Vec<_>>(),
            new_tiles.iter().map(tlog_tiles::Tile::path).collect::<Vec<_>>(),
            "{published} {size}"
        );
        for (tile, their_tile) in added.iter().zip(new_tiles) {
            let hashes = made.iter().find(|hashes| hashes.tile() == *tile).unwrap();
            assert_eq!(hashes.encode(), their_tile.read_data(&stored).unwrap(), "{tile}");
        }
        published = size;
    }
}

#[test]
fn paths_of_tiles_are_those_of_the_oracle() {
    for index in [0, 1, 999, 1_000, 1_234_067, 123_456_078, 999_999_999, 36_028_797_018_963_966] {
        for width in [1, 5, 255, 256] {
            for kind in [TileKind::Hashes { level: 0 }, TileKind::Entries] {
                let tile = Tile::new(kind, index, width).unwrap();
                let is_data = kind == TileKind::Entries;
                let their_tile = tlog_tiles::Tile::new(8, 0, index, width.into(), is_data);
                assert_eq!(their_path(tile), their_tile.path());
                assert_eq!(tlog_tiles::Tile::from_path(&their_path(tile)).unwrap(), their_tile);
            }
        }
    }
}

#[test]
fn checkpoints_are_read_and_refused_alike() {
    let root = "TszzRgjTG6xce+z2AG31kAXYKBgQVtCSCE40HmuwBb0=";
    for text in [
        format!("example.com/origin\n123\n{root}\nabc\ndef\n"),
        format!("example.com/origin\n123\n{root}\n"),
        format!("e\n123\n{root}\nabc\ndef\n"),
        format!("\n123\n{root}\nabc\ndef\n"),
        format!("example.com/origin\n0xabcdef\n{root}\nabc\ndef\n"),
        format!("example.com/origin\n18446744073709551616\n{root}\nabc\ndef\n"),
        format!("example.com/origin\n123\n{}\nabc\ndef\n", &root[..43]),
        "example.com/origin\n123\nQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBCg==\nabc\ndef\n".to_owned(),
        format!("example.com/origin\n123\n{root}\nabc\n\n"),
        format!("example.com/origin\n123\n{root}\nabc\ndef"),
        format!("example.com/origin\n0123\n{root}\n"),
        format!("example.com/origin\n+123\n{root}\n"),
    ] {
        let oracle = tlog_tiles::Checkpoint::from_bytes(text.as_bytes());
        let read = Checkpoint::parse(&text);
        assert_eq!(read.is_ok(), oracle.is_ok(), "{text:?}");
        if let (Ok(read), Ok(oracle)) = (read, oracle) {
            assert_eq!(read.encode().unwrap().as_bytes(), oracle.to_bytes());
            assert_eq!((read.origin.as_str(), read.size), (oracle.origin(), oracle.size()));
            assert_eq!(read.root, ours(*oracle.hash()));
        }
    }
}

// --- the crate `signed_note` ---

fn secret_text(name: &str, id: &str, seed: [u8; 32]) -> String {
    let bytes = [&[1], &seed[..]].concat();
    format!("PRIVATE+KEY+{name}+{id}+{}", data_encoding::BASE64.encode(&bytes))
}

#[test]
fn notes_made_by_one_open_in_the_other() {
    for (seed, name, text) in [
        ([1; 32], "log.example/1", "hello\n"),
        ([2; 32], "narvault-log-01997c5c", "a\n\nb\n"),
        ([3; 32], "é", "\n"),
        ([4; 32], "log", "è subito sera.\n— not a signature\n"),
    ] {
        let secret = SigningKey::from_bytes(&seed);
        let bytes = secret.verifying_key().to_bytes();
        let key = VerifierKey::new(name.parse().unwrap(), Algorithm::Ed25519, &bytes).unwrap();
        let verifier = signed_note::StandardVerifier::new(&key.to_string()).unwrap();
        assert_eq!(verifier.key_id().to_be_bytes(), key.id().0);

        let note: Note =
            Note::sign(text.to_owned(), &key, |bytes| Ok::<_, Infallible>(secret.sign(bytes).to_bytes()))
                .unwrap();
        let known = signed_note::VerifierList::new(vec![Box::new(verifier)]);
        let opened = signed_note::Note::from_bytes(note.encode().as_bytes()).unwrap();
        let (verified, unverified) = opened.verify(&known).unwrap();
        assert_eq!((verified.len(), unverified.len()), (1, 0), "{name}");
        assert_eq!(opened.text(), text.as_bytes());

        let signer =
            signed_note::StandardSigner::new(&secret_text(name, &key.id().to_string(), seed)).unwrap();
        let mut made = signed_note::Note::new(text.as_bytes(), &[]).unwrap();
        made.add_sigs(&[&signer]).unwrap();
        assert_eq!(signer.name(), name);
        let read = Note::parse(&made.to_bytes()).unwrap();
        assert_eq!(read.verify(&key), Ok(()));
        assert_eq!(read, note);
    }
}
