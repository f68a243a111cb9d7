//! Hostile input: what was written by Nix and by narvault, changed at random, goes through every parser that reads what
//! strangers send. Never a panic; and whatever is accepted is written again as it was, or as something that means the same.
//!
//! `PROPTEST_CASES=1000000 cargo test --lib fuzz::` runs for longer than the few cases of each ordinary run.

use std::fmt::{Debug, Display};
use std::path::Path;
use std::str::FromStr;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::access::{ClaimSecret, Credential, Scopes, TokenText};
use crate::nix::cache_info::CacheInfo;
use crate::nix::claim::parse_references;
use crate::nix::compression::NarFileName;
use crate::nix::content_address::ContentAddress;
use crate::nix::debuginfo::DebugInfo;
use crate::nix::hash::{FileHash, NarHash};
use crate::nix::listing::Listing;
use crate::nix::nar::build::Node;
use crate::nix::nar::{Checker, NarLimits};
use crate::nix::narinfo::{NarInfo, NarInfoText};
use crate::nix::realisation::{Realisation, RealisationKey};
use crate::nix::signature::{KeyName, PublicKey, Signature};
use crate::nix::store_path::{StorePath, StorePathHash};
use crate::nix::{base32, references};
use crate::storage::ObjectKey;
use crate::succession::{Chain, Draft};
use crate::tlog::bundle;
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::leaf::{CacheLine, ClaimLines, Covered as _, Leaf, PathLines};
use crate::tlog::note::Note;
use crate::tlog::policy::Policy;
use crate::tlog::proof_file::ProofFile;
use crate::tlog::shown_leaf::ShownLeaf;
use crate::tlog::tile::Tile;
use crate::tlog::verifier_key::VerifierKey;
use crate::vault::KmsParams;

/// One change to an input.
#[derive(Debug, Clone)]
enum Change {
    /// One byte becomes another.
    Byte(Index, u8),
    /// Some bytes are missing.
    Cut(Index, usize),
    /// Some bytes come twice.
    Repeat(Index, usize),
    /// Something is put in between: marks that mean something somewhere, or the beginning of another input.
    Insert(Index, Vec<u8>),
    /// The input ends early.
    End(Index),
}

impl Change {
    fn apply(&self, input: &mut Vec<u8>) {
        let place = |index: &Index| index.index(input.len() + 1);
        match self {
            Self::Byte(index, byte) => {
                let at = place(index);
                if let Some(found) = input.get_mut(at) {
                    *found = *byte;
                }
            }
            Self::Cut(index, len) => {
                let at = place(index);
                let end = (at + len).min(input.len());
                input.drain(at..end);
            }
            Self::Repeat(index, len) => {
                let at = place(index);
                let end = (at + len).min(input.len());
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
            Self::Insert(index, piece) => {
                let at = place(index);
                input.splice(at..at, piece.iter().copied());
            }
            Self::End(index) => {
                let at = place(index);
                input.truncate(at);
            }
        }
    }
}

/// One of `golden`, changed in up to four places.
fn mutated(golden: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let beginnings = golden.iter().map(|input| input[..input.len().min(40)].to_vec());
    let marks = MARKS.iter().map(|mark| mark.as_bytes().to_vec());
    let pieces: Vec<Vec<u8>> = marks.chain(beginnings).collect();
    let change = prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(index, byte)| Change::Byte(index, byte)),
        (any::<Index>(), 1..40_usize).prop_map(|(index, len)| Change::Cut(index, len)),
        (any::<Index>(), 1..40_usize).prop_map(|(index, len)| Change::Repeat(index, len)),
        (any::<Index>(), select(pieces)).prop_map(|(index, piece)| Change::Insert(index, piece)),
        any::<Index>().prop_map(Change::End),
    ];
    (select(golden), vec(change, 0..=4)).prop_map(|(mut input, changes)| {
        for change in changes {
            change.apply(&mut input);
        }
        input
    })
}

/// What ends, begins or joins something in one of the formats, and values at the edge of what they may be.
const MARKS: &[&str] = &[
    "\n",
    "\r\n",
    "\0",
    " ",
    "  ",
    "/",
    "../",
    "..",
    ".",
    ":",
    ";",
    ",",
    "-",
    "!",
    "=",
    "?",
    "*",
    "\"",
    "\\",
    "{",
    "}",
    "[",
    "]",
    "é",
    "\u{202e}",
    "0",
    "-1",
    "00",
    "18446744073709551616",
    "9223372036854775808",
    "sha256:",
    "sha512:",
    "fixed:r:",
    "/nix/store/",
    ".drv",
    ".narinfo",
    ".nar",
    "\u{1}\0\0\0\0\0\0\0",
    "(\0\0\0\0\0\0\0",
    ")\0\0\0\0\0\0\0",
    "null",
    "true",
];

/// The golden files whose names end like this.
fn files(ending: &str) -> Vec<Vec<u8>> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")];
    let mut paths = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { paths.push(path) }
        }
    }
    paths.sort();
    let named = paths.iter().filter(|path| path.to_string_lossy().ends_with(ending));
    let files: Vec<_> = named.map(|path| std::fs::read(path).unwrap()).collect();
    assert!(!files.is_empty(), "no golden file ends in {ending}");
    files
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// The words of the golden narinfos: hashes, names, sizes, paths, signatures.
fn words() -> Vec<Vec<u8>> {
    let narinfos = files(".narinfo");
    let words = narinfos.iter().flat_map(|narinfo| narinfo.split(|byte| matches!(byte, b' ' | b'\n')));
    words.filter(|word| !word.is_empty()).map(<[u8]>::to_vec).collect()
}

/// Accepts only what it would write itself.
fn exact<T: FromStr + Display>(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string(), text);
    }
}

/// Accepts other spellings too; what it writes, it reads as the same.
fn meaning<T: FromStr + Display + Debug + PartialEq>(input: &[u8])
where
    T::Err: Debug,
{
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string().parse::<T>().unwrap(), value);
    }
}

macro_rules! fuzz {
    ($($name:ident($golden:expr) $check:expr;)+) => {
        proptest! {$(
            #[test]
            fn $name(input in mutated($golden)) {
                let check: fn(&[u8]) = $check;
                check(&input);
            }
        )+}
    };
}

fuzz! {
    narinfo(files(".narinfo")) |input| {
        let Ok(read) = NarInfo::parse(input) else { return };
        let written = NarInfoText {
            claim: &read.claim,
            file: read.file,
            compression: read.compression,
            file_size: read.file_size.unwrap_or(1),
            deriver: read.deriver.as_ref(),
            signatures: &read.signatures,
            ca: read.ca.as_ref(),
        };
        let again = NarInfo::parse(written.to_string().as_bytes()).unwrap();
        assert_eq!(again.claim, read.claim);
        assert_eq!(again.claim.fingerprint(), read.claim.fingerprint());
        assert_eq!((again.file, again.compression), (read.file, read.compression));
        assert_eq!((again.deriver, again.ca), (read.deriver, read.ca));
    };
    nar(nars()) |input| {
        let verdict = judged(&[input]);
        let middle = input.len() / 2;
        assert_eq!(judged(&[&input[..middle], &input[middle..]]), verdict, "it matters how it is cut");
        if verdict {
            // Only one text is the archive of a tree.
            let mut rest = input;
            assert_eq!(token(&mut rest), b"nix-archive-1");
            assert_eq!(node(&mut rest).to_nar(), input);
            assert!(rest.is_empty());
        }
    };
    cache_info(files("nix-cache-info")) |input| {
        let Ok(read) = CacheInfo::parse(input) else { return };
        assert_eq!(CacheInfo::parse(read.to_string().as_bytes()).unwrap(), read);
    };
    listing(files(".ls")) |input| {
        let Ok(read) = Listing::parse(input.to_vec()) else { return };
        assert_eq!(read.as_bytes(), input);
    };
    debuginfo(files(".debug")) |input| {
        let key = || "abcdef0123456789abcdef0123456789abcdef01.debug".parse().unwrap();
        let Ok(read) = DebugInfo::parse(key(), input) else { return };
        assert_eq!(DebugInfo::parse(key(), read.to_json().as_bytes()).unwrap(), read);
    };
    realisation(files(".doi")) |input| {
        for key in REALISATIONS {
            let key: RealisationKey = key.parse().unwrap();
            let Ok(read) = Realisation::parse(key.clone(), input) else { continue };
            let again = Realisation::parse(key, read.to_json().as_bytes()).unwrap();
            assert_eq!(again.to_json(), read.to_json());
            assert_eq!(again.fingerprint(), read.fingerprint());
        }
    };
    leaf(files(".leaf")) |input| {
        let Ok(read) = Leaf::parse(input) else { return };
        assert_eq!(read.encode().unwrap().as_bytes(), input);
    };
    lines_behind_a_commitment(covered_lines()) |input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        if let Ok(read) = ClaimLines::parse(text) {
            assert_eq!(read.text(), text);
        }
        if let Ok(read) = PathLines::parse(text) {
            assert_eq!(read.text(), text);
        }
        if let Ok(read) = CacheLine::parse(text) {
            assert_eq!(read.text(), text);
        }
    };
    note(files("tlog-v1/checkpoint")) |input| {
        let Ok(read) = Note::parse(input) else { return };
        assert_eq!(read.encode().as_bytes(), input);
        if let Ok(checkpoint) = Checkpoint::parse(read.text()) {
            assert_eq!(checkpoint.encode().unwrap(), read.text());
        }
    };
    backup(files(".backup")) |input| {
        let key = crate::vault::KeyFile::from_bytes(&files("backup-v1/vault.key")[0]).unwrap();
        let secret = crate::vault::SlotSecret::KeyFile(key);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let verified = runtime.block_on(crate::service::verify_backup(input, secret));
        assert_eq!(verified.is_ok(), input == files(".backup")[0]);
    };
    share(files("shares-v1/shares.json")[0].split(|byte| *byte == b'"').filter(|text| text.starts_with(b"nvs1-")).map(<[u8]>::to_vec).collect()) |input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        let Ok(read) = crate::vault::Share::parse(text) else { return };
        assert_eq!(secrecy::ExposeSecret::expose_secret(&read.text()), text);
    };
    proof_file(files(".tlog-proof")) |input| {
        let Ok(read) = ProofFile::parse(input) else { return };
        assert_eq!(read.encode().as_bytes(), input);
    };
    shown_leaf(shown_leaves()) |input| {
        let Ok(read) = ShownLeaf::parse(input) else { return };
        assert_eq!(read.encode().as_bytes(), input);
        // Whatever comes beside the leaf has to be what its hashes stand for.
        if read.signed().is_ok() {
            assert!(read.private.is_none() && read.references.is_none());
        }
    };
    key_chain(files("succession-v1/chain")) |input| {
        let Ok(read) = Chain::parse(input) else { return };
        assert_eq!(read.encode().as_bytes(), input);
    };
    key_draft(files("succession-v1/draft")) |input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        let Ok(read) = Draft::parse(text) else { return };
        assert_eq!(read.encode(), text);
    };
    kms_slot(texts(&["$kms$v=1$k=arn:aws:kms:eu-central-1:123456789012:key/1f0e-aB9$AQIDBA"])) exact::<KmsParams>;
    tile(texts(&["tile/0/x001/x234/067.p/8", "tile/7/000.p/127", "tile/entries/999"])) exact::<Tile>;
    verifier_key(files("tlog-v1/vkeys").iter().flat_map(|keys| keys.split(|byte| *byte == b'\n')).map(<[u8]>::to_vec).collect()) exact::<VerifierKey>;
    bundle_of_entries(texts(&["\0\u{3}abc\0\0\0\u{1}x", "\0\0"])) |input| {
        for width in 0..5 {
            let Ok(read) = bundle::decode(input, width) else { continue };
            assert_eq!(bundle::encode(read).unwrap(), input);
        }
    };
    policy(texts(&["log L\nwitness a W\ngroup g any a a\nquorum g # x", "quorum none\nlog log.example/golden+b626aced+AVeI3xpu0yErOzjA8N6y7ChE8s4A1oow6/vZN+hD1RLK"])) |input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        // There is no writer; that it ends, and does not panic, is what is asked.
        let _ = Policy::parse(text);
    };
    store_path(words()) |input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        if let Ok(path) = StorePath::from_absolute(text) {
            assert_eq!(path.to_string(), text);
        }
        if let Ok(path) = StorePath::from_base_name(text) {
            assert_eq!(path.base_name(), text);
        }
        exact::<StorePathHash>(input);
    };
    references_of_a_narinfo(words()) |input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        let Ok(read) = parse_references(text) else { return };
        assert_eq!(parse_references(&crate::nix::claim::references_text(&read)).unwrap(), read);
    };
    base32_text(words()) |input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        if let Ok(bytes) = base32::decode::<32>(text) {
            assert_eq!(base32::encode(&bytes), text);
        }
        if let Ok(bytes) = base32::decode::<20>(text) {
            assert_eq!(base32::encode(&bytes), text);
        }
    };
    hash(words()) |input| {
        meaning::<NarHash>(input);
        meaning::<FileHash>(input);
    };
    content_address(texts(CONTENT_ADDRESSES)) meaning::<ContentAddress>;
    signature(words()) |input| {
        exact::<Signature>(input);
        exact::<PublicKey>(input);
        exact::<KeyName>(input);
    };
    object(texts(OBJECTS)) |input| {
        exact::<ObjectKey>(input);
        exact::<NarFileName>(input);
    };
    scopes(texts(&["push:main", "pull:main push:team-* delete:a", "admin"])) meaning::<Scopes>;
    token_text(texts(TOKENS)) |input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        if let Ok(token) = text.parse::<TokenText>() {
            assert!(token.expose() == text || token.expose() == format!("nvt_{text}"), "another text");
        }
        if let Ok(secret) = text.parse::<ClaimSecret>() {
            assert!(secret.expose() == text, "another text");
        }
    };
    authorization(texts(AUTHORIZATIONS)) |input| {
        if let Credential::Token(token) = Credential::from_headers([input]) {
            assert!(token.expose().parse::<TokenText>().is_ok());
        }
    };
    references_in_a_nar(nars()) |input| {
        let scan = |pieces: &[&[u8]]| {
            let mut scanner = references::Scanner::new();
            pieces.iter().for_each(|piece| scanner.push(piece));
            scanner.finish().hashes
        };
        let middle = input.len() / 2;
        assert_eq!(scan(&[input]), scan(&[&input[..middle], &input[middle..]]), "it matters how it is cut");
    };
}

/// The golden leaves as they stand in proof files: open, since a commitment cannot be met at random.
fn shown_leaves() -> Vec<Vec<u8>> {
    let mut leaves = files(".leaf");
    let with_more: Vec<Vec<u8>> = leaves
        .iter()
        .map(|leaf| [leaf, &b"references a b\nsalt BwcHBwcHBwcHBwcHBwcHBw==\ncache x\n"[..]].concat())
        .collect();
    leaves.extend(with_more);
    leaves
}

/// What the golden leaves say openly, and others would hide.
fn covered_lines() -> Vec<Vec<u8>> {
    let covered = ["cache ", "path ", "nar-hash ", "nar-size ", "references"];
    let lines = files(".leaf").into_iter().map(|leaf| {
        let leaf = String::from_utf8(leaf).unwrap();
        let lines = leaf.lines().filter(|line| covered.iter().any(|key| line.starts_with(key)));
        lines.flat_map(|line| [line, "\n"]).collect::<String>().into_bytes()
    });
    lines.filter(|lines| !lines.is_empty()).collect()
}

/// Small archives with one of everything.
fn nars() -> Vec<Vec<u8>> {
    let path = "/nix/store/7pprv9srdzifgfss2pfhc3i03qyayigx-aaa-1.0/bin/aaa";
    let folder = Node::directory([
        ("a", Node::file("")),
        ("aa", Node::executable(path)),
        ("b", Node::directory([("empty", Node::directory::<&str>([])), ("link", Node::symlink(path))])),
    ]);
    [folder, Node::file(path), Node::symlink("x")].iter().map(Node::to_nar).collect()
}

/// Whether the checker takes these pieces for a whole archive.
fn judged(pieces: &[&[u8]]) -> bool {
    let mut checker = Checker::new(NarLimits::default());
    pieces.iter().all(|piece| checker.push(piece).is_ok()) && checker.finish().is_ok()
}

/// The next token of an archive that the checker took.
fn token<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let (len, after) = rest.split_at(8);
    let len = u64::from_le_bytes(len.try_into().unwrap()) as usize;
    *rest = &after[len.next_multiple_of(8)..];
    &after[..len]
}

/// The next node of an archive that the checker took.
fn node(rest: &mut &[u8]) -> Node {
    assert_eq!((token(rest), token(rest)), (&b"("[..], &b"type"[..]));
    let node = match token(rest) {
        b"regular" => match token(rest) {
            b"executable" => {
                assert_eq!((token(rest), token(rest)), (&b""[..], &b"contents"[..]));
                Node::executable(token(rest))
            }
            _ => Node::file(token(rest)),
        },
        b"symlink" => {
            assert_eq!(token(rest), b"target");
            Node::symlink(token(rest))
        }
        _ => {
            let mut entries = Vec::new();
            while token(rest) == b"entry" {
                assert_eq!((token(rest), token(rest)), (&b"("[..], &b"name"[..]));
                let name = token(rest).to_vec();
                assert_eq!(token(rest), b"node");
                entries.push((name, node(rest)));
                assert_eq!(token(rest), b")");
            }
            // The parenthesis that ended the loop is the directory's own.
            return Node::directory(entries);
        }
    };
    assert_eq!(token(rest), b")");
    node
}

/// The names under which the golden entries were put, and one of the newer generation.
const REALISATIONS: [&str; 3] = [
    "realisations/sha256:0d3afc1656b44d9551db2ba53a7e1d61e538d966b848f781ae98b076fb011dc4!out.doi",
    "realisations/sha256:c18cdd4bb22dded47e0e51273156fca6e98cbc3bbc9bd2db3a439903e3fcb880!out.doi",
    "build-trace-v2/y4ik59is9893a2ia9frqf2530959s6hz-ca-user.drv/out.doi",
];

const CONTENT_ADDRESSES: &[&str] = &[
    "text:sha256:073hsc8a7q3pk73qcgq6rg25cza44y9xzdi8sp49q9hhja941hj7",
    "fixed:sha256:073hsc8a7q3pk73qcgq6rg25cza44y9xzdi8sp49q9hhja941hj7",
    "fixed:r:sha256:073hsc8a7q3pk73qcgq6rg25cza44y9xzdi8sp49q9hhja941hj7",
    "fixed:git:sha1:w4kdw0i2mjhbvcv4bnbyjyz3z9lz0x1h",
];

const OBJECTS: &[&str] = &[
    "nix-cache-info",
    "main/mmjhp110f3wf5kp5q70rc7p49yln4qzy.narinfo",
    "team/main/mmjhp110f3wf5kp5q70rc7p49yln4qzy.ls",
    "073hsc8a7q3pk73qcgq6rg25cza44y9xzdi8sp49q9hhja941hj7.nar.xz",
    "main/nar/073hsc8a7q3pk73qcgq6rg25cza44y9xzdi8sp49q9hhja941hj7.nar",
    "log/mmjhp110f3wf5kp5q70rc7p49yln4qzy-c++?x=1.drv",
    "debuginfo/abcdef0123456789abcdef0123456789abcdef01.debug",
    "main/realisations/sha256:0d3afc1656b44d9551db2ba53a7e1d61e538d966b848f781ae98b076fb011dc4!out.doi",
    "build-trace-v2/y4ik59is9893a2ia9frqf2530959s6hz-ca-user.drv/out.doi",
    "main/key-succession",
    "_narvault/cluster",
    "_log/checkpoint",
];

/// Of the shape that ours have; no server ever made them.
const TOKENS: &[&str] = &[
    "nvt_eyJhbGciOiJFZERTQSIsImtpZCI6ImsifQ.eyJzdWIiOiIwMTk5In0.c2lnbmF0dXJl",
    "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.",
    "nvb_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

const AUTHORIZATIONS: &[&str] = &[
    "Bearer nvt_eyJhbGciOiJFZERTQSIsImtpZCI6ImsifQ.eyJzdWIiOiIwMTk5In0.c2lnbmF0dXJl",
    "Basic YWxpY2U6bnZ0X2V5SmhiR2NpT2lKRlpFUlRRU0o5LmV5SnpkV0lpT2lJd01UazVJbjAuYzJsbg==",
    "basic bnZ0X2V5SmhiR2NpT2lKRlpFUlRRU0o5LmV5SnpkV0lpT2lJd01UazVJbjAuYzJsbjo=",
];
