//! The claim that a Nix signature makes: these bytes and these references stand at this store path.
//!
//! Never holds what Nix does not sign (URL, compression, deriver, content address).
//! Format: `nix:src/libstore/path-info.cc`, `ValidPathInfo::fingerprint`.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::hash::{NarHash, Sha256Digest};
use super::store_path::{ParseStorePathError, StorePath};

/// Most references of one path. A narinfo of 1 MiB has room for about 17 000 of usual length (60 bytes).
pub const REFERENCES_MAX: usize = 16_384;

/// Largest size that is accepted, in bytes: what a BIGINT column holds.
pub const SIZE_MAX: u64 = i64::MAX as u64;

/// Why a text is not a list of references.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseReferencesError {
    #[error("reference number {index} is not a base name: {reason}")]
    Reference { index: usize, reason: ParseStorePathError },
    #[error("reference number {index} stands twice")]
    Repeated { index: usize },
    #[error("more than {REFERENCES_MAX} references")]
    TooMany,
}

/// The whole tuple that Nix signs. Two claims for one path with the same NAR hash and other references
/// are different claims.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Claim {
    pub path: StorePath,
    pub nar_hash: NarHash,
    /// Size of the uncompressed NAR, in bytes.
    pub nar_size: u64,
    /// May contain `path` itself.
    pub references: BTreeSet<StorePath>,
}

impl Claim {
    /// The text whose bytes are signed: `1;<path>;sha256:<base-32>;<size>;<path>,<path>…`, without a
    /// line feed.
    pub fn fingerprint(&self) -> String {
        let mut text = format!("1;{};{};{};", self.path, self.nar_hash, self.nar_size);
        for (index, reference) in self.references.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(text, "{comma}{reference}").expect("writing to a String cannot fail");
        }
        text
    }

    /// SHA-256 of the fingerprint's bytes: what identifies the claim in rows.
    pub fn sha256(&self) -> Sha256Digest {
        Sha256Digest::of(self.fingerprint().as_bytes())
    }

    /// The references' base names, sorted, separated by one space: as in a narinfo, a leaf and a column.
    pub fn references_text(&self) -> String {
        references_text(&self.references)
    }

    /// Whether the path refers to itself.
    pub fn has_self_reference(&self) -> bool {
        self.references.contains(&self.path)
    }
}

/// Base names, sorted, separated by one space; nothing for none.
pub fn references_text(references: &BTreeSet<StorePath>) -> String {
    references.iter().map(StorePath::base_name).collect::<Vec<_>>().join(" ")
}

/// Reads what [`references_text`] prints, in any order: base names separated by one space, each once.
pub fn parse_references(text: &str) -> Result<BTreeSet<StorePath>, ParseReferencesError> {
    let mut references = BTreeSet::new();
    if text.is_empty() {
        return Ok(references);
    }
    for (before, base_name) in text.split(' ').enumerate() {
        if before == REFERENCES_MAX {
            return Err(ParseReferencesError::TooMany);
        }
        let index = before + 1;
        let reference = StorePath::from_base_name(base_name)
            .map_err(|reason| ParseReferencesError::Reference { index, reason })?;
        if !references.insert(reference) {
            return Err(ParseReferencesError::Repeated { index });
        }
    }
    Ok(references)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "4kdzpbii0n6sb5gwvc4ybf7ny0rg6sc4-bb.txt";
    const B: &str = "7pprv9srdzifgfss2pfhc3i03qyayigx-aaa-1.0";

    /// Any store path.
    pub fn any_store_path() -> impl Strategy<Value = StorePath> {
        ("[0-9abcdfghijklmnpqrsvwxyz]{32}", "[A-Za-z0-9+_?=][A-Za-z0-9+._?=-]{0,40}")
            .prop_map(|(hash, name)| StorePath::from_base_name(&format!("{hash}-{name}")).unwrap())
    }

    /// Any claim.
    pub fn any_claim() -> impl Strategy<Value = Claim> {
        let references = proptest::collection::btree_set(any_store_path(), 0..6);
        (any_store_path(), any::<[u8; 32]>(), 1..=SIZE_MAX, references).prop_map(
            |(path, digest, nar_size, references)| Claim {
                path,
                nar_hash: NarHash(Sha256Digest(digest)),
                nar_size,
                references,
            },
        )
    }

    fn claim() -> Claim {
        Claim {
            path: StorePath::from_base_name(B).unwrap(),
            nar_hash: "sha256:13mqindg90rwkpgrs66ybvv6ppd32rdzidwnzk0zg6hxwj10dic2".parse().unwrap(),
            nar_size: 2080,
            references: parse_references(&format!("{B} {A}")).unwrap(),
        }
    }

    #[test]
    fn the_fingerprint_is_the_text_that_nix_signs() {
        let mut claim = claim();
        assert_eq!(
            claim.fingerprint(),
            format!(
                "1;/nix/store/{B};sha256:13mqindg90rwkpgrs66ybvv6ppd32rdzidwnzk0zg6hxwj10dic2;2080;\
                 /nix/store/{A},/nix/store/{B}"
            )
        );
        assert!(claim.has_self_reference());

        claim.references.clear();

        assert!(claim.fingerprint().ends_with(";2080;"));
        assert_eq!(claim.sha256(), Sha256Digest::of(claim.fingerprint().as_bytes()));
    }

    #[test]
    fn references_in_another_order_are_the_same_claim() {
        assert_eq!(claim().references_text(), format!("{A} {B}"));
        assert_eq!(parse_references(&format!("{A} {B}")), parse_references(&format!("{B} {A}")));
    }

    #[test]
    fn other_lists_of_references_are_refused() {
        for text in [
            " ".to_owned(),
            format!(" {A}"),
            format!("{A} "),
            format!("{A}  {B}"),
            format!("{A}\t{B}"),
            format!("{A},{B}"),
            format!("{A}\n"),
            format!("/nix/store/{A}"),
            format!("{A} {A}"),
            "-".into(),
        ] {
            assert!(parse_references(&text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn more_references_than_the_limit_are_refused() {
        let list = |count: usize| {
            let names: Vec<String> =
                (0..count).map(|index| format!("{}-{index}", A.split('-').next().unwrap())).collect();
            names.join(" ")
        };

        assert_eq!(parse_references(&list(REFERENCES_MAX)).unwrap().len(), REFERENCES_MAX);
        assert_eq!(parse_references(&list(REFERENCES_MAX + 1)), Err(ParseReferencesError::TooMany));
    }

    proptest! {
        #[test]
        fn what_is_printed_parses(claim in any_claim()) {
            prop_assert_eq!(parse_references(&claim.references_text()), Ok(claim.references));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = parse_references(&text);
        }
    }
}
