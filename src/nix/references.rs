//! Finds which store paths an archive mentions: `/nix/store/` and 32 characters of Nix base-32.
//!
//! Never decides what is a reference, only what could be one; never holds more than 42 bytes of the archive.

use std::collections::BTreeSet;

use memchr::memmem::Finder;

use super::base32;
use super::store_path::StorePathHash;

/// Most distinct hashes kept. The largest closures have some thousands of paths, one archive far fewer.
pub const FOUND_MAX: usize = 65_536;

/// What an archive mentions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// Each hash once, at most [`FOUND_MAX`].
    pub hashes: BTreeSet<StorePathHash>,
    /// Whether there were more.
    pub truncated: bool,
}

/// Scans one archive as it passes by. What is found does not depend on how it is cut into pieces.
#[derive(Debug)]
pub struct Scanner {
    finder: Finder<'static>,
    /// The last bytes of the earlier pieces: one less than a whole candidate.
    tail: Vec<u8>,
    /// The latest hash: the same one often comes many times in a row.
    latest: [u8; HASH_LEN],
    found: Found,
}

/// Without the slash at its end, which is also its first byte: a needle that could overlap itself would let
/// `/nix/store/nix/store/<hash>` slip through.
const NEEDLE: &[u8] = b"/nix/store";
const HASH_LEN: usize = 32;
const CANDIDATE_LEN: usize = NEEDLE.len() + 1 + HASH_LEN;
const TAIL_LEN: usize = CANDIDATE_LEN - 1;

impl Scanner {
    /// A scanner that has seen nothing.
    pub fn new() -> Self {
        Self {
            finder: Finder::new(NEEDLE),
            tail: Vec::with_capacity(2 * TAIL_LEN),
            latest: [0; HASH_LEN],
            found: Found::default(),
        }
    }

    /// Scans the next piece.
    pub fn push(&mut self, bytes: &[u8]) {
        // Candidates that begin in the tail end within as many bytes of the new piece.
        let mut seam = std::mem::take(&mut self.tail);
        seam.extend_from_slice(&bytes[..bytes.len().min(TAIL_LEN)]);
        self.scan(&seam);
        if bytes.len() >= TAIL_LEN {
            self.scan(bytes);
            seam.clear();
            seam.extend_from_slice(&bytes[bytes.len() - TAIL_LEN..]);
        } else {
            seam.drain(..seam.len().saturating_sub(TAIL_LEN));
        }
        self.tail = seam;
    }

    /// Everything found.
    pub fn finish(self) -> Found {
        self.found
    }

    fn scan(&mut self, bytes: &[u8]) {
        let Self { finder, latest, found, .. } = self;
        for start in finder.find_iter(bytes) {
            if found.truncated {
                return;
            }
            if let Some(symbols) = candidate(&bytes[start + NEEDLE.len()..])
                && symbols != *latest
            {
                *latest = symbols;
                found.insert(symbols);
            }
        }
    }
}

impl Default for Scanner {
    fn default() -> Self {
        Self::new()
    }
}

impl Found {
    fn insert(&mut self, symbols: [u8; HASH_LEN]) {
        let Ok(hash) = StorePathHash::from_symbols(symbols) else { return };
        if self.hashes.len() < FOUND_MAX {
            self.hashes.insert(hash);
        } else if !self.hashes.contains(&hash) {
            self.truncated = true;
        }
    }
}

/// The 32 characters after `/nix/store`, if they are a slash and Nix base-32.
fn candidate(after: &[u8]) -> Option<[u8; HASH_LEN]> {
    let symbols: [u8; HASH_LEN] = after.strip_prefix(b"/")?.get(..HASH_LEN)?.try_into().ok()?;
    symbols.iter().all(|&byte| base32::is_symbol(byte)).then_some(symbols)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "mmjhp110f3wf5kp5q70rc7p49yln4qzy";
    const B: &str = "00000000000000000000000000000000";

    fn found(pieces: &[&[u8]]) -> Vec<String> {
        let mut scanner = Scanner::new();
        for piece in pieces {
            scanner.push(piece);
        }
        let found = scanner.finish();
        assert!(!found.truncated);
        found.hashes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn store_paths_are_found_wherever_they_stand() {
        for (text, hashes) in [
            (format!("/nix/store/{A}"), vec![A]),
            (format!("/nix/store/{A}-name/bin"), vec![A]),
            (format!("x/nix/store/{A}\0/nix/store/{B}-b"), vec![B, A]),
            (format!("/nix/store/{A}:/nix/store/{A}"), vec![A]),
            // A longer run of symbols is found too: what follows the hash is not looked at.
            (format!("/nix/store/{A}0000"), vec![A]),
            (format!("//nix/store/{A}"), vec![A]),
            // Hidden behind an overlap with the beginning.
            (format!("/nix/store/nix/store/{A}"), vec![A]),
            (format!("/nix/store/{}/nix/store/{A}", &B[1..]), vec![A]),
        ] {
            assert_eq!(found(&[text.as_bytes()]), hashes, "{text}");
        }
    }

    #[test]
    fn other_texts_are_not_found() {
        for text in [
            String::new(),
            A.to_owned(),
            "/nix/store/".to_owned(),
            format!("/nix/store{A}"),
            format!("/nix/store//{A}"),
            format!("nix/store/{A}"),
            format!("/nix/stor/{A}"),
            format!("/NIX/STORE/{A}"),
            format!("/nix/store/{}", &A[1..]),
            format!("/nix/store/{}-", &A[1..]),
            format!("/nix/store/e{}", &A[1..]),
            format!("/nix/store/{}", A.to_uppercase()),
            "/nix/store/.links".to_owned(),
        ] {
            assert!(found(&[text.as_bytes()]).is_empty(), "{text}");
        }
    }

    #[test]
    fn a_path_across_pieces_is_found_at_every_cut() {
        let text = format!("...../nix/store/{A}-name and /nix/store/{B}-b.....");
        let bytes = text.as_bytes();

        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                assert_eq!(found(&pieces), [B, A], "cut at {first} and {second}");
            }
        }
        let bytewise: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(found(&bytewise), [B, A]);
    }

    #[test]
    fn pieces_that_are_not_neighbours_are_not_joined() {
        let filler = [b'.'; TAIL_LEN];
        let (start, end) = (b"/nix/store/".as_slice(), A.as_bytes());
        assert!(found(&[start, &filler[..1], end]).is_empty());
        assert!(found(&[start, &filler, end]).is_empty());
    }

    #[test]
    fn beyond_the_limit_truncation_is_recorded() {
        let mut scanner = Scanner::new();
        let path = |number: usize| format!("/nix/store/{number:032}");

        for number in 0..FOUND_MAX {
            scanner.push(path(number).as_bytes());
        }
        scanner.push(path(0).as_bytes());
        assert!(!scanner.found.truncated, "exactly the limit is not beyond it");
        scanner.push(path(FOUND_MAX).as_bytes());

        let found = scanner.finish();
        assert!(found.truncated);
        assert_eq!(found.hashes.len(), FOUND_MAX);
        assert!(!found.hashes.contains(&format!("{FOUND_MAX:032}").parse().unwrap()));
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(
            parts in prop::collection::vec(
                prop_oneof![
                    Just("/nix/store/".to_owned()),
                    Just("/nix/store".to_owned()),
                    Just(A.to_owned()),
                    Just(B.to_owned()),
                    "[0-9a-z/]{0,50}",
                ],
                0..40,
            ),
            sizes in prop::collection::vec(1usize..60, 1..20),
        ) {
            let text = parts.concat();
            let mut pieces = Vec::new();
            let mut rest = text.as_bytes();
            for size in sizes.iter().cycle() {
                if rest.is_empty() { break }
                let (piece, after) = rest.split_at((*size).min(rest.len()));
                pieces.push(piece);
                rest = after;
            }

            let mut expected = BTreeSet::new();
            for window in text.as_bytes().windows(CANDIDATE_LEN) {
                if let Some(after) = window.strip_prefix(NEEDLE) && let Some(symbols) = candidate(after) {
                    expected.insert(StorePathHash::from_symbols(symbols).unwrap().to_string());
                }
            }
            prop_assert_eq!(found(&pieces), expected.into_iter().collect::<Vec<_>>());
        }
    }
}
