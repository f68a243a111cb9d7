//! A signature log made by hand and published in a folder: honest or not, of any size, by a key that the test has.

use std::fs;
use std::path::Path;

use ed25519_dalek::{Signer as _, SigningKey};
use narvault::nix::signature::PublicKey;
use narvault::tlog::bundle;
use narvault::tlog::checkpoint::Checkpoint;
use narvault::tlog::edge::Edge;
use narvault::tlog::hash::NodeHash;
use narvault::tlog::leaf::{
    Basis, CacheLine, ClaimLines, Disclosed, Event, KeyEvent, Leaf, References, SignatureBytes, Signed, Word,
};
use narvault::tlog::note::Note;
use narvault::tlog::tile::{TILE_WIDTH, Tile, TileKind};
use narvault::tlog::tile_hashes::TileHashes;
use narvault::tlog::verifier_key::{Algorithm, VerifierKey};

/// The log's name and the name of its key.
const ORIGIN: &str = "narvault-log-byhand";

/// The name of the key of the cache `main`.
pub const CACHE_KEY: &str = "main-byhand-1";

/// The token that [`first_leaves`] issue.
pub const TOKEN: &str = "0195f2a1-5c1e-7d43-8a51-2f0c5f6f0b7e";

fn word(text: &str) -> Word {
    text.parse().unwrap()
}

fn secret() -> SigningKey {
    SigningKey::from_bytes(&[5; 32])
}

/// The key that signs checkpoints; `seed` tells logs apart that claim to be the same.
pub fn log_key(seed: u8) -> VerifierKey {
    let key = SigningKey::from_bytes(&[seed; 32]).verifying_key();
    VerifierKey::new(ORIGIN.parse().unwrap(), Algorithm::Ed25519, key.as_bytes()).unwrap()
}

/// A leaf's text.
pub fn leaf(event: Event, token: Option<&str>) -> String {
    let time = "2026-11-22T13:10:00.123Z".parse().unwrap();
    Leaf { event, time, by: Some(word("somebody")), token: token.map(word), detail: None }.encode().unwrap()
}

/// What a log begins with: the key of `main`, and a token.
pub fn first_leaves() -> Vec<String> {
    let key = PublicKey::new(CACHE_KEY.parse().unwrap(), secret().verifying_key().as_bytes()).unwrap();
    let key = KeyEvent {
        cache: Disclosed::Open(CacheLine { cache: Some(word("main")) }),
        key: word(CACHE_KEY),
        public_key: Some(word(&key.to_string())),
        state: Some(word("active")),
    };
    vec![leaf(Event::KeyCreate(key), None), leaf(Event::TokenIssue(word(TOKEN)), None)]
}

/// The claim of one of many paths, each with four references.
pub fn claim(number: u64) -> ClaimLines {
    let name = |number: u64| format!("{}-package-{number}-1.0", store_hash(number));
    let references: Vec<String> = (1..=4).map(|back| name(number.saturating_sub(back))).collect();
    ClaimLines {
        cache: word("main"),
        path: word(&format!("/nix/store/{}", name(number))),
        nar_hash: Some(word(&format!("sha256:1b1a0v8nkhdlxzyjk2qv{}", store_hash(number)))),
        nar_size: Some(1000 + number),
        references: References::list(&references.join(" ")).unwrap(),
    }
}

/// 32 characters of Nix's base 32.
fn store_hash(number: u64) -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
    let mut state = number.wrapping_add(1);
    let next = |state: &mut u64| {
        // SplitMix64: other numbers for the next ones, the same on each run.
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        char::from(ALPHABET[(mixed >> 59) as usize])
    };
    (0..32).map(|_| next(&mut state)).collect()
}

/// A leaf that says that `claim` was signed, with the signature of `signed`.
pub fn sign_leaf(claim: ClaimLines, signed: &ClaimLines, token: &str) -> String {
    let sig = secret().sign(signed.fingerprint().unwrap().as_bytes()).to_bytes();
    let basis = Basis { policy: Some(word("direct")), replaces: None };
    let signed =
        Signed { claim: Disclosed::Open(claim), key: word(CACHE_KEY), sig: SignatureBytes(sig), basis };
    leaf(Event::Sign(signed), Some(token))
}

/// An honest leaf about one of many paths.
pub fn honest(number: u64) -> String {
    sign_leaf(claim(number), &claim(number), TOKEN)
}

/// Writes a log of these leaves into `folder`, as a mirror has it, signed by the key of `seed`.
pub fn publish(folder: &Path, seed: u8, leaves: impl IntoIterator<Item = String>) {
    let mut edge = Edge::new();
    let mut waiting: Vec<String> = Vec::new();
    for text in leaves {
        for full in edge.push(NodeHash::leaf(text.as_bytes())) {
            write_hashes(folder, &full);
        }
        waiting.push(text);
        if waiting.len() == usize::from(TILE_WIDTH) {
            write_bundle(folder, edge.size(), &std::mem::take(&mut waiting));
        }
    }
    if !waiting.is_empty() {
        write_bundle(folder, edge.size(), &waiting);
    }
    edge.partial_tiles().iter().for_each(|partial| write_hashes(folder, partial));
    let checkpoint =
        Checkpoint { origin: ORIGIN.into(), size: edge.size(), root: edge.root(), extensions: vec![] };
    let key = SigningKey::from_bytes(&[seed; 32]);
    let sign = |text: &[u8]| Ok::<_, std::convert::Infallible>(key.sign(text).to_bytes());
    let note = Note::sign(checkpoint.encode().unwrap(), &log_key(seed), sign).unwrap();
    write(folder, "checkpoint", note.encode().as_bytes());
    write(folder, "key", format!("{}\n", log_key(seed)).as_bytes());
}

fn write_bundle(folder: &Path, size: u64, leaves: &[String]) {
    let tile = Tile::in_tree(TileKind::Entries, (size - 1) / u64::from(TILE_WIDTH), size).unwrap();
    write(folder, &tile.to_string(), &bundle::encode(leaves).unwrap());
}

fn write_hashes(folder: &Path, hashes: &TileHashes) {
    write(folder, &hashes.tile().to_string(), &hashes.encode());
}

fn write(folder: &Path, name: &str, bytes: &[u8]) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}
