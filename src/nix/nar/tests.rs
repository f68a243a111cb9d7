use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::build::Node;
use super::encode::write_token;
use super::*;

fn token(expected: &'static str) -> NarFault {
    NarFault::Token { expected }
}

/// A NAR from a line of words: words are tokens, `''` is the empty one.
fn nar(line: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in line.split_whitespace() {
        write_token(&mut bytes, if word == "''" { b"" } else { word.as_bytes() });
    }
    bytes
}

/// A directory with the entries `name` → empty file.
fn directory(names: &[&[u8]]) -> Vec<u8> {
    let mut bytes = nar("nix-archive-1 ( type directory");
    for name in names {
        bytes.extend(nar("entry ( name"));
        write_token(&mut bytes, name);
        bytes.extend(nar("node ( type regular contents '' ) )"));
    }
    bytes.extend(nar(")"));
    bytes
}

fn link(target: &[u8]) -> Vec<u8> {
    let mut bytes = nar("nix-archive-1 ( type symlink target");
    write_token(&mut bytes, target);
    bytes.extend(nar(")"));
    bytes
}

fn nested(depth: usize) -> Vec<u8> {
    let open = "( type directory entry ( name a node ".repeat(depth - 1);
    nar(&format!("nix-archive-1 {open} ( type regular contents '' ) {}", ") ) ".repeat(depth - 1)))
}

fn with(mut bytes: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    bytes[at] = byte;
    bytes
}

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn check_in(limits: NarLimits, pieces: &[&[u8]]) -> Result<NarSummary, NarError> {
    let mut checker = Checker::new(limits);
    for piece in pieces {
        checker.push(piece)?;
    }
    checker.finish()
}

fn check(bytes: &[u8]) -> Result<NarSummary, NarError> {
    check_in(NarLimits::default(), &[bytes])
}

/// Every fault by name: the archive and what is said about it.
fn faults() -> Vec<(&'static str, Vec<u8>, NarFault)> {
    let hello = Node::file("hello").to_nar();
    let hello_len = hello.len();
    let huge = |line: &str, length: u64| joined(&[&nar(line), &length.to_le_bytes(), b"rest"]);
    let long = |length: usize| vec![b'x'; length];
    vec![
        ("nothing", vec![], NarFault::Truncated),
        ("half a length field", vec![13, 0, 0], NarFault::Truncated),
        ("an html page", b"<!DOCTYPE html><html></html>".to_vec(), NarFault::Magic),
        ("another magic", nar("nix-archive-2 ( type regular contents '' )"), NarFault::Magic),
        ("a shorter magic", nar("nix-archive ( type regular contents '' )"), NarFault::Magic),
        ("an empty magic", nar("'' ( type regular contents '' )"), NarFault::Magic),
        ("a magic of 2^64-1 bytes", u64::MAX.to_le_bytes().to_vec(), NarFault::Magic),
        ("only the magic", nar("nix-archive-1"), NarFault::Truncated),
        ("no (", nar("nix-archive-1 type regular contents '' )"), token("`(`")),
        ("another bracket", nar("nix-archive-1 [ type regular contents '' )"), token("`(`")),
        ("an empty token for (", nar("nix-archive-1 '' type regular contents '' )"), token("`(`")),
        ("a tag of 2^63 bytes", huge("nix-archive-1 (", 1 << 63), token("`type`")),
        ("no type", nar("nix-archive-1 ( regular contents '' )"), token("`type`")),
        ("no type in an empty node", nar("nix-archive-1 ( )"), token("`type`")),
        ("an unknown type", nar("nix-archive-1 ( type fifo )"), NarFault::Type),
        ("an empty type", nar("nix-archive-1 ( type '' )"), NarFault::Type),
        ("a type of 2^40 bytes", huge("nix-archive-1 ( type", 1 << 40), NarFault::Type),
        ("a type in capitals", nar("nix-archive-1 ( type Regular contents '' )"), NarFault::Type),
        (
            "type twice",
            nar("nix-archive-1 ( type regular type regular )"),
            token("`executable` or `contents`"),
        ),
        (
            "a file without contents",
            nar("nix-archive-1 ( type regular )"),
            token("`executable` or `contents`"),
        ),
        (
            "a file with a target",
            nar("nix-archive-1 ( type regular target x )"),
            token("`executable` or `contents`"),
        ),
        (
            "an executable without contents",
            nar("nix-archive-1 ( type regular executable '' )"),
            token("`contents`"),
        ),
        (
            "executable twice",
            nar("nix-archive-1 ( type regular executable '' executable '' contents '' )"),
            token("`contents`"),
        ),
        (
            "executable after contents",
            nar("nix-archive-1 ( type regular contents '' executable '' )"),
            token("`)`"),
        ),
        (
            "executable with a value",
            nar("nix-archive-1 ( type regular executable x contents '' )"),
            NarFault::Executable,
        ),
        (
            "executable of 2^62 bytes",
            huge("nix-archive-1 ( type regular executable", 1 << 62),
            NarFault::Executable,
        ),
        ("contents twice", nar("nix-archive-1 ( type regular contents '' contents '' )"), token("`)`")),
        (
            "contents of 2^64-1 bytes",
            huge("nix-archive-1 ( type regular contents", u64::MAX),
            NarFault::Size { max: 64 << 30 },
        ),
        ("contents cut short", hello[..hello_len - 24 + 4].to_vec(), NarFault::Truncated),
        ("contents without padding", hello[..hello_len - 24 + 5 - 8].to_vec(), NarFault::Truncated),
        ("contents padding of ones", with(hello.clone(), hello_len - 17, 1), NarFault::Padding),
        ("first contents padding byte", with(hello.clone(), hello_len - 19, 0xff), NarFault::Padding),
        ("magic padding", with(hello.clone(), 23, 1), NarFault::Padding),
        ("padding of (", with(hello.clone(), 33, 1), NarFault::Padding),
        ("padding of the last )", with(hello.clone(), hello_len - 1, 1), NarFault::Padding),
        ("no last )", hello[..hello_len - 16].to_vec(), NarFault::Truncated),
        ("half of the last )", hello[..hello_len - 1].to_vec(), NarFault::Truncated),
        ("another word for the last )", nar("nix-archive-1 ( type regular contents '' ("), token("`)`")),
        ("one byte after the end", joined(&[&hello, b"x"]), NarFault::Trailing),
        ("a zero byte after the end", joined(&[&hello, b"\0"]), NarFault::Trailing),
        ("a second archive after the end", joined(&[&hello, &hello]), NarFault::Trailing),
        ("a second ) after the end", joined(&[&hello, &nar(")")]), NarFault::Trailing),
        ("a link without target", nar("nix-archive-1 ( type symlink )"), token("`target`")),
        ("a link with contents", nar("nix-archive-1 ( type symlink contents x )"), token("`target`")),
        ("a link with two targets", nar("nix-archive-1 ( type symlink target x target y )"), token("`)`")),
        ("an executable link", nar("nix-archive-1 ( type symlink target x executable '' )"), token("`)`")),
        ("an empty target", link(b""), NarFault::TargetLength),
        ("a target of 4096 bytes", link(&long(4096)), NarFault::TargetLength),
        (
            "a target of 2^40 bytes",
            huge("nix-archive-1 ( type symlink target", 1 << 40),
            NarFault::TargetLength,
        ),
        ("a target with NUL", link(b"a\0b"), NarFault::TargetByte),
        ("target padding", with(link(b"ab"), 24 + 16 * 2 + 16 + 16 + 8 + 7, 1), NarFault::Padding),
        ("an empty name", directory(&[b""]), NarFault::NameLength),
        ("a name of 256 bytes", directory(&[&long(256)]), NarFault::NameLength),
        (
            "a name of 2^40 bytes",
            huge("nix-archive-1 ( type directory entry ( name", 1 << 40),
            NarFault::NameLength,
        ),
        ("the name .", directory(&[b"."]), NarFault::NameDots),
        ("the name ..", directory(&[b".."]), NarFault::NameDots),
        ("a name with /", directory(&[b"a/b"]), NarFault::NameByte),
        ("an absolute name", directory(&[b"/etc"]), NarFault::NameByte),
        ("a name with NUL", directory(&[b"a\0b"]), NarFault::NameByte),
        ("a name twice", directory(&[b"a", b"a"]), NarFault::NameTwice),
        ("names not sorted", directory(&[b"b", b"a"]), NarFault::NameOrder),
        ("names sorted as signed bytes", directory(&[b"\xff", b"a"]), NarFault::NameOrder),
        ("a longer name first", directory(&[b"ab", b"a"]), NarFault::NameOrder),
        ("a name twice with one between", directory(&[b"a", b"b", b"a"]), NarFault::NameOrder),
        (
            "a directory with contents",
            nar("nix-archive-1 ( type directory contents '' )"),
            token("`entry` or `)`"),
        ),
        (
            "an executable directory",
            nar("nix-archive-1 ( type directory executable '' )"),
            token("`entry` or `)`"),
        ),
        (
            "a node without entry",
            nar("nix-archive-1 ( type directory node ( type directory ) )"),
            token("`entry` or `)`"),
        ),
        ("an entry without (", nar("nix-archive-1 ( type directory entry name a"), token("`(`")),
        (
            "an entry without name",
            nar("nix-archive-1 ( type directory entry ( node ( type directory ) ) )"),
            token("`name`"),
        ),
        ("an entry without node", nar("nix-archive-1 ( type directory entry ( name a ) )"), token("`node`")),
        (
            "node before name",
            nar("nix-archive-1 ( type directory entry ( node ( type directory ) name a ) )"),
            token("`name`"),
        ),
        (
            "an entry with two nodes",
            nar(
                "nix-archive-1 ( type directory entry ( name a node ( type directory ) node ( type directory ) ) )",
            ),
            token("`)`"),
        ),
        (
            "an entry with two names",
            nar("nix-archive-1 ( type directory entry ( name a name b node ( type directory ) ) )"),
            token("`node`"),
        ),
        (
            "an entry that is not closed",
            nar("nix-archive-1 ( type directory entry ( name a node ( type directory ) )"),
            NarFault::Truncated,
        ),
        (
            "an entry after its directory",
            nar("nix-archive-1 ( type directory ) entry ( name a node ( type directory ) )"),
            NarFault::Trailing,
        ),
        ("nesting of 65", nested(65), NarFault::Depth { max: 64 }),
        ("nesting of 5000", nested(5000), NarFault::Depth { max: 64 }),
    ]
}

#[test]
fn every_malformed_archive_is_refused_however_it_is_cut() {
    for (what, bytes, fault) in faults() {
        let whole = check(&bytes).expect_err(what);
        assert_eq!(whole.fault, fault, "{what}");
        assert!(whole.offset <= bytes.len() as u64, "{what}: {whole}");

        for size in [1, 3, 7, 8, 9, 64] {
            let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
            assert_eq!(check_in(NarLimits::default(), &pieces), Err(whole), "{what} in pieces of {size}");
        }
        for cut in 0..bytes.len().min(2000) {
            let (first, second) = bytes.split_at(cut);
            assert_eq!(
                check_in(NarLimits::default(), &[first, b"", second]),
                Err(whole),
                "{what} cut at {cut}"
            );
        }
    }
}

#[test]
fn a_fault_is_located() {
    for (bytes, offset) in [
        (nar("nix-archive-2 ( type regular contents '' )"), 0),
        (nar("nix-archive-1 ( type fifo )"), 24 + 16 + 16),
        (
            with(Node::file("hello").to_nar(), 24 + 16 + 16 + 16 + 16 + 8 + 7, 1),
            24 + 16 + 16 + 16 + 16 + 8 + 5,
        ),
        (joined(&[&Node::file("").to_nar(), b"more"]), Node::file("").to_nar().len() as u64),
    ] {
        assert_eq!(check(&bytes).unwrap_err().offset, offset);
    }
    let text = check(&directory(&[b"b", b"a"])).unwrap_err().to_string();
    assert_eq!(text, "not a canonical NAR: the names of a directory are not sorted, at byte 312");
}

#[test]
fn what_nix_makes_is_measured_as_nix_measures_it() {
    let both = Node::directory([("a", Node::file("x")), ("b", Node::symlink("a"))]);
    for (node, size, entries, hash) in [
        (Node::file("hello\n"), 120, 1, "04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw"),
        (Node::executable("hello\n"), 152, 1, "1yhh619m3cy1mird7f0l7zsmiv9rayqn075zinda2g7rscwn0hv5"),
        (Node::directory::<&str>([]), 96, 1, "0sjjj9z1dhilhpc8pq4154czrb79z9cm044jvn75kxcjv6v5l2m5"),
        (both, 480, 3, "1wj75pz01l7nvwlfdx70p07q1m7fh2pmm7q9hkczjiwz6ddg6bgf"),
    ] {
        let bytes = node.to_nar();

        let summary = check(&bytes).unwrap();

        assert_eq!((summary.size, summary.entries), (size, entries), "{node:?}");
        assert_eq!(Sha256Digest::of(&bytes).base32(), hash, "{node:?}");
    }
}

#[test]
fn odd_but_legal_archives_are_accepted() {
    for bytes in [
        directory(&[b"\xff\xfe", b"\xff\xff"]),
        directory(&[b"a\nb", "\u{e9}".as_bytes()]),
        directory(&[b"A", b"a"]),
        directory(&[b"...", b"..a", b".a"]),
        directory(&[&[b'x'; NAME_LEN_MAX]]),
        directory(&[b"a", b"a~nix~case~hack~1"]),
        link(&[b'x'; TARGET_LEN_MAX]),
        link(b"../../\xff\n"),
        link(b"."),
        nested(64),
        nested(1),
    ] {
        assert!(check(&bytes).is_ok(), "{:?}", check(&bytes));
    }
}

#[test]
fn a_single_file_is_told_with_the_hash_of_its_contents() {
    for length in [0, 1, 7, 8, 9, 100_000] {
        let contents: Vec<u8> = (0..length).map(|index| index as u8).collect();
        for executable in [false, true] {
            let bytes = Node::File { executable, contents: contents.clone() }.to_nar();
            for size in [1, 11, 4096, bytes.len()] {
                let pieces: Vec<&[u8]> = bytes.chunks(size).collect();

                let file = check_in(NarLimits::default(), &pieces).unwrap().single_file;

                let sha256 = Sha256Digest::of(&contents);
                assert_eq!(file, Some(SingleFile { executable, size: length, sha256 }), "{length} by {size}");
            }
        }
    }
    for node in [Node::symlink("a"), Node::directory([("a", Node::file("x"))])] {
        assert_eq!(check(&node.to_nar()).unwrap().single_file, None);
    }
}

#[test]
fn limits_hold_to_the_byte() {
    let bytes = Node::directory([("a", Node::file("hello")), ("b", Node::symlink("a"))]).to_nar();
    let size = bytes.len() as u64;
    let limits = NarLimits { nar_size_bytes_max: size, entries_max: 3, depth_max: 2 };
    let faults_of = |limits: NarLimits, bytes: &[u8]| -> Vec<Result<u64, NarFault>> {
        [1, 5, bytes.len()]
            .map(|cut| check_in(limits, &bytes.chunks(cut).collect::<Vec<_>>()))
            .map(|result| result.map(|summary| summary.size).map_err(|error| error.fault))
            .to_vec()
    };

    assert_eq!(faults_of(limits, &bytes), [Ok(size); 3]);
    let smaller = NarLimits { nar_size_bytes_max: size - 1, ..limits };
    assert_eq!(faults_of(smaller, &bytes), [Err(NarFault::Size { max: size - 1 }); 3]);
    let fewer = NarLimits { entries_max: 2, ..limits };
    assert_eq!(faults_of(fewer, &bytes), [Err(NarFault::Entries { max: 2 }); 3]);
    let flatter = NarLimits { depth_max: 1, ..limits };
    assert_eq!(faults_of(flatter, &bytes), [Err(NarFault::Depth { max: 1 }); 3]);
    assert_eq!(faults_of(limits, &joined(&[&bytes, b"x"])), [Err(NarFault::Trailing); 3]);
}

#[test]
fn contents_beyond_the_limit_are_refused_by_their_stated_length() {
    let limits = NarLimits { nar_size_bytes_max: 1 << 20, ..NarLimits::default() };
    let mut checker = Checker::new(limits);
    let mut start = nar("nix-archive-1 ( type regular contents");
    start.extend_from_slice(&(1_u64 << 20).to_le_bytes());

    assert_eq!(checker.push(&start).unwrap_err().fault, NarFault::Size { max: 1 << 20 });
}

#[test]
fn memory_stays_small_whatever_the_archive() {
    let mut checker = Checker::new(NarLimits::default());
    let mut open = nar("nix-archive-1");
    for _ in 0..63 {
        open.extend(nar("( type directory entry ( name"));
        write_token(&mut open, &[b'x'; NAME_LEN_MAX]);
        open.extend(nar("node"));
    }
    open.extend(nar("( type symlink target"));
    open.extend_from_slice(&(TARGET_LEN_MAX as u64).to_le_bytes());
    open.extend_from_slice(&[b'x'; TARGET_LEN_MAX - 1]);
    for byte in open {
        checker.push(&[byte]).unwrap();
    }

    let names: usize = checker.open.iter().map(Vec::capacity).sum();
    let held = checker.held.capacity() + names + checker.open.capacity() * size_of::<Vec<u8>>();
    assert!(held < 24 << 10, "{held}");
}

/// Whether this machine's Nix unpacks `bytes`; `None` without Nix.
fn nix_restores(bytes: &[u8]) -> Option<bool> {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new("nix-store")
        .arg("--restore")
        .arg(folder.path().join("out"))
        .env("NIX_STATE_DIR", folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut stdin = child.stdin.take().unwrap();
    // Nix stops reading where it refuses.
    let _ = stdin.write_all(bytes);
    drop(stdin);
    Some(child.wait().unwrap().success())
}

#[test]
fn what_nix_refuses_is_refused_and_what_is_accepted_nix_unpacks() {
    if nix_restores(&Node::file("x").to_nar()).is_none() {
        println!("skipped: no `nix-store` on PATH");
        return;
    }
    let samples = [
        Node::file("hello\n"),
        Node::executable(vec![7; 100_000]),
        Node::symlink("nowhere"),
        Node::directory::<&str>([]),
        Node::directory([("a", Node::directory([("b", Node::file("x"))])), ("c", Node::symlink("a"))]),
    ];
    let odd = [directory(&[b"\xff\xfe"]), directory(&[b"a\nb"]), directory(&[b"...", b"..a"]), link(b"\xff")];
    for bytes in samples.iter().map(Node::to_nar).chain(odd) {
        assert!(check(&bytes).is_ok());
        assert_eq!(nix_restores(&bytes), Some(true), "{bytes:?}");
    }

    let mut refused_by_both = 0;
    for (what, bytes, _) in faults() {
        // Older Nix takes some of them; it must never be the stricter one.
        refused_by_both += u32::from(nix_restores(&bytes) == Some(false) && check(&bytes).is_err());
        assert!(check(&bytes).is_err(), "{what}");
    }
    assert!(refused_by_both > 30, "{refused_by_both}: the table hardly meets Nix's own checks");
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![b'a'..=b'e', 1..=b'.', b'0'..=255], 1..12)
        .prop_filter("names that no file system has", |name| name != b"." && name != b"..")
}

fn tree() -> impl Strategy<Value = Node> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    let leaf = prop_oneof![
        (any::<bool>(), bytes()).prop_map(|(executable, contents)| Node::File { executable, contents }),
        prop::collection::vec(1..=255_u8, 1..40).prop_map(Node::symlink),
    ];
    leaf.prop_recursive(5, 60, 6, |node| {
        prop::collection::btree_map(name(), node, 0..6)
            .prop_map(|entries: BTreeMap<_, _>| Node::Directory { entries })
    })
}

fn entries_of(node: &Node) -> u64 {
    match node {
        Node::Directory { entries } => 1 + entries.values().map(entries_of).sum::<u64>(),
        Node::File { .. } | Node::Symlink { .. } => 1,
    }
}

/// Cuts `bytes` into pieces of the given sizes, over and over.
fn cut<'a>(bytes: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let (mut pieces, mut rest) = (Vec::new(), bytes);
    for &size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at(size.min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

proptest! {
    #[test]
    fn every_tree_makes_an_accepted_archive(node in tree(), sizes in prop::collection::vec(1..50_usize, 1..9)) {
        let bytes = node.to_nar();

        let whole = check(&bytes);

        let summary = whole.clone().unwrap();
        prop_assert_eq!((summary.size, summary.entries), (bytes.len() as u64, entries_of(&node)));
        prop_assert_eq!(check_in(NarLimits::default(), &cut(&bytes, &sizes)), whole);
    }

    #[test]
    fn damaged_archives_have_one_verdict_and_never_panic(
        node in tree(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        keep in any::<prop::sample::Index>(),
        sizes in prop::collection::vec(1..50_usize, 1..9),
    ) {
        let mut bytes = node.to_nar();
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= byte;
        }
        bytes.truncate(bytes.len() - keep.index(bytes.len()) % 3);

        prop_assert_eq!(check_in(NarLimits::default(), &cut(&bytes, &sizes)), check(&bytes));
    }

    #[test]
    fn every_cut_off_archive_is_refused(node in tree(), at in any::<prop::sample::Index>()) {
        let bytes = node.to_nar();
        let cut_off = &bytes[..at.index(bytes.len())];
        prop_assert_eq!(check(cut_off).unwrap_err().fault, NarFault::Truncated);
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        let _ = check(&bytes);
        let _ = check(&joined(&[&nar("nix-archive-1 ("), &bytes]));
    }
}
