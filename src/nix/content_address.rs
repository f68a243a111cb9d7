//! Content addresses: what a `CA:` line says, and the store path that follows from it.
//!
//! Never reads the content; the digest of what was measured is handed in.
//! Format: `nix:src/libstore/content-address.cc`; paths: `nix:src/libstore/store-api.cc`, `makeFixedOutputPath`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::base32;
use super::hash::{NarHash, Sha256Digest};
use super::store_path::{ParseStorePathError, STORE_DIR, StorePath};

/// Why a text is not a content address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseContentAddressError {
    #[error("content address does not begin with `text:` or `fixed:`")]
    Method,
    #[error("content address's algorithm is not one that its method has")]
    Algorithm,
    #[error("content address's digest is not hex, Nix base-32 or base64 of its algorithm's length")]
    Digest,
}

/// Why no store path follows from a content address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentAddressPathError {
    #[error("content address has a method that narvault does not recompute")]
    NotRecomputed,
    #[error("content address of a flat file allows no references")]
    References,
    #[error("content-addressed path's name is refused: {0}")]
    Name(ParseStorePathError),
}

/// What a `CA:` line says. Only the first three can be recomputed here; the others are well formed and
/// lose their line (a path with a wrong `CA:` makes clients abort).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ContentAddress {
    /// `text:sha256:…`: over the contents of one file, as `builtins.toFile` and `.drv` files have it.
    Text(Sha256Digest),
    /// `fixed:sha256:…`: over the contents of one file.
    Flat(Sha256Digest),
    /// `fixed:r:sha256:…`: over the NAR.
    Recursive(Sha256Digest),
    /// Any other that some Nix reads, as it came: `fixed:md5:…`, `fixed:git:sha1:…` …
    Other(String),
}

/// Algorithms of `fixed:` and the bytes of their digests (`nix:src/libutil/hash.cc`).
const ALGORITHMS: [(&str, usize); 5] =
    [("md5", 16), ("sha1", 20), ("sha256", 32), ("sha512", 64), ("blake3", 32)];

impl ContentAddress {
    /// Whether this method is one whose path [`ContentAddress::store_path`] computes for `path`:
    /// text, flat or recursive SHA-256, without a self-reference.
    pub fn is_recomputed(&self, path: &StorePath, references: &BTreeSet<StorePath>) -> bool {
        !matches!(self, Self::Other(_)) && !references.contains(path)
    }

    /// The store path of content with this address, a name, and references of which none is the path
    /// itself (a self-reference has a hash of its own kind, which is not computed here).
    pub fn store_path(
        &self,
        name: &str,
        references: &BTreeSet<StorePath>,
    ) -> Result<StorePath, ContentAddressPathError> {
        let with_references = |kind: &str| {
            let listed = references.iter().map(|reference| format!(":{reference}"));
            format!("{kind}{}", listed.collect::<String>())
        };
        match self {
            Self::Text(digest) => make_store_path(&with_references("text"), digest, name),
            Self::Recursive(digest) => make_store_path(&with_references("source"), digest, name),
            Self::Flat(_) if !references.is_empty() => Err(ContentAddressPathError::References),
            Self::Flat(digest) => fixed_output_path("sha256", &digest.hex(), name),
            Self::Other(_) => Err(ContentAddressPathError::NotRecomputed),
        }
    }
}

/// The path of a fixed output whose method and algorithm are `method` (`sha256`, `r:sha1` …).
fn fixed_output_path(method: &str, hex: &str, name: &str) -> Result<StorePath, ContentAddressPathError> {
    let inner = Sha256Digest::of(format!("fixed:out:{method}:{hex}:").as_bytes());
    make_store_path("output:out", &inner, name)
}

fn make_store_path(
    kind: &str,
    inner: &Sha256Digest,
    name: &str,
) -> Result<StorePath, ContentAddressPathError> {
    let digest = Sha256Digest::of(format!("{kind}:sha256:{}:{STORE_DIR}:{name}", inner.hex()).as_bytes());
    let mut folded = [0u8; 20];
    for (index, byte) in digest.0.iter().enumerate() {
        folded[index % 20] ^= byte;
    }
    StorePath::from_base_name(&format!("{}-{name}", base32::encode(&folded)))
        .map_err(ContentAddressPathError::Name)
}

/// Whether `text` could spell `bytes` bytes in one of the three spellings that Nix tells apart by length.
fn is_digest(text: &str, bytes: usize) -> bool {
    let all = |allowed: fn(u8) -> bool| text.bytes().all(allowed);
    if text.len() == bytes * 2 {
        all(|byte| byte.is_ascii_hexdigit())
    } else if text.len() == base32::encoded_len(bytes) {
        all(base32::is_symbol)
    } else {
        text.len() == bytes.div_ceil(3) * 4
            && all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'='))
    }
}

impl FromStr for ContentAddress {
    type Err = ParseContentAddressError;

    fn from_str(text: &str) -> Result<Self, ParseContentAddressError> {
        let sha256 = |text: &str| {
            // The SRI spelling is not read here by Nix either.
            let hash = if text.starts_with("sha256:") { text.parse::<NarHash>().ok() } else { None };
            hash.map(|hash| hash.0).ok_or(ParseContentAddressError::Digest)
        };
        if let Some(rest) = text.strip_prefix("text:") {
            let known = rest.starts_with("sha256:");
            return if known {
                sha256(rest).map(Self::Text)
            } else {
                Err(ParseContentAddressError::Algorithm)
            };
        }
        let rest = text.strip_prefix("fixed:").ok_or(ParseContentAddressError::Method)?;
        if rest.starts_with("sha256:") {
            return sha256(rest).map(Self::Flat);
        }
        if let Some(recursive) = rest.strip_prefix("r:").filter(|rest| rest.starts_with("sha256:")) {
            return sha256(recursive).map(Self::Recursive);
        }
        let hash = rest.strip_prefix("r:").or_else(|| rest.strip_prefix("git:")).unwrap_or(rest);
        let (algorithm, digest) = hash.split_once(':').ok_or(ParseContentAddressError::Algorithm)?;
        let (_, bytes) = ALGORITHMS
            .into_iter()
            .find(|(name, _)| *name == algorithm)
            .ok_or(ParseContentAddressError::Algorithm)?;
        if !is_digest(digest, bytes) {
            return Err(ParseContentAddressError::Digest);
        }
        Ok(Self::Other(text.to_owned()))
    }
}

impl fmt::Display for ContentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(digest) => write!(f, "text:sha256:{digest}"),
            Self::Flat(digest) => write!(f, "fixed:sha256:{digest}"),
            Self::Recursive(digest) => write!(f, "fixed:r:sha256:{digest}"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::Digest as _;

    use super::super::claim::tests::any_store_path;
    use super::*;

    fn none() -> BTreeSet<StorePath> {
        BTreeSet::new()
    }

    #[test]
    fn paths_are_those_that_nix_computed() {
        let check = |text: &str, name: &str, references: &[&str], hash: &str| {
            let references = references.iter().map(|base| StorePath::from_base_name(base).unwrap()).collect();
            let path = text.parse::<ContentAddress>().unwrap().store_path(name, &references).unwrap();
            assert_eq!(path.base_name(), format!("{hash}-{name}"), "{text}");
        };
        check(
            "fixed:sha256:1xk2hhjr0f2n4adj1h688wlz59xpl86y1r8bd2pjasg8gy16mikb",
            "flat.txt",
            &[],
            "rkf79g8l9nv68w00j1z80zjn9aw7szx3",
        );
        check(
            "fixed:r:sha256:1wlswh9sx3fy2hr2qc4246gyjjwhlzf2jgi9m5mx9kij9w8zg1q4",
            "dir",
            &[],
            "97sadp0nqqlpncjcyb54xs10p5kakw88",
        );
        check(
            "text:sha256:18f7kls1p2g281n8h8a5al09vy9nbgxw1c0i45q8z47nk2qql1g9",
            "bb.txt",
            &[],
            "4kdzpbii0n6sb5gwvc4ybf7ny0rg6sc4",
        );
        let digest = Sha256Digest::of(b"see /nix/store/4kdzpbii0n6sb5gwvc4ybf7ny0rg6sc4-bb.txt");
        check(
            &ContentAddress::Text(digest).to_string(),
            "aa.txt",
            &["4kdzpbii0n6sb5gwvc4ybf7ny0rg6sc4-bb.txt"],
            "998z88ijg0b0c7610qfnv8msyw9604x6",
        );
    }

    #[test]
    fn the_rule_of_fixed_outputs_is_that_of_nix_for_every_algorithm() {
        let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
        let md5 = base32::decode::<16>("5k3537sv5p3dmsj6l9n59sm9f9").unwrap();
        let sha1 = base32::decode::<20>("w1vpgix2nz62v69li86vgs9xkny9b7wd").unwrap();
        let sha512 = sha2::Sha512::digest(b"flat\n");
        for (method, hex, name, hash) in [
            ("md5", hex(&md5), "flat.txt", "rbbirf40cy83k28qkv5hnc2xbyfvkl9r"),
            ("sha512", hex(&sha512), "flat.txt", "mf9xmvbl2w1zsnb8bd0qxrz1c0wdh6q9"),
            ("r:sha1", hex(&sha1), "dir", "k4vj8c49nxjygmh8xykhj0b46ln7m2ld"),
        ] {
            let path = fixed_output_path(method, &hex, name).unwrap();
            assert_eq!(path.hash().as_str(), hash, "{method}");
        }
    }

    #[test]
    fn other_methods_are_known_but_not_recomputed() {
        let path = StorePath::from_base_name("rbbirf40cy83k28qkv5hnc2xbyfvkl9r-flat.txt").unwrap();
        for text in [
            "fixed:md5:5k3537sv5p3dmsj6l9n59sm9f9",
            "fixed:r:sha1:w1vpgix2nz62v69li86vgs9xkny9b7wd",
            "fixed:git:sha1:w1vpgix2nz62v69li86vgs9xkny9b7wd",
            "fixed:git:sha256:1wlswh9sx3fy2hr2qc4246gyjjwhlzf2jgi9m5mx9kij9w8zg1q4",
            "fixed:md5:d41d8cd98f00b204e9800998ecf8427e",
            "fixed:md5:1B2M2Y8AsgTpgAmY7PhCfg==",
            "fixed:blake3:1wlswh9sx3fy2hr2qc4246gyjjwhlzf2jgi9m5mx9kij9w8zg1q4",
        ] {
            let address: ContentAddress = text.parse().unwrap();
            assert_eq!(address, ContentAddress::Other(text.into()));
            assert_eq!(address.to_string(), text);
            assert!(!address.is_recomputed(&path, &none()), "{text}");
            let refused = address.store_path("a", &none());
            assert_eq!(refused, Err(ContentAddressPathError::NotRecomputed), "{text}");
        }
    }

    #[test]
    fn a_self_reference_is_not_recomputed() {
        let path = StorePath::from_base_name("97sadp0nqqlpncjcyb54xs10p5kakw88-dir").unwrap();
        let address = ContentAddress::Recursive(Sha256Digest([1; 32]));

        assert!(address.is_recomputed(&path, &none()));
        assert!(!address.is_recomputed(&path, &[path.clone()].into()));
    }

    #[test]
    fn a_flat_file_with_references_and_a_bad_name_have_no_path() {
        let path = StorePath::from_base_name("97sadp0nqqlpncjcyb54xs10p5kakw88-dir").unwrap();
        let flat = ContentAddress::Flat(Sha256Digest([1; 32]));

        assert_eq!(flat.store_path("a", &[path].into()), Err(ContentAddressPathError::References));
        for name in ["", "..", "a/b", "a b"] {
            assert!(flat.store_path(name, &none()).is_err(), "{name:?}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        const X: &str = "1wlswh9sx3fy2hr2qc4246gyjjwhlzf2jgi9m5mx9kij9w8zg1q4";
        for text in [
            String::new(),
            "text".into(),
            "text:".into(),
            "fixed:".into(),
            X.into(),
            format!("sha256:{X}"),
            format!("text:{X}"),
            format!("text:md5:{X}"),
            format!("text:r:sha256:{X}"),
            format!("nar:sha256:{X}"),
            format!("fixed:r:r:sha256:{X}"),
            format!("fixed:R:sha256:{X}"),
            format!("fixed:sha256:{}", &X[1..]),
            format!("fixed:sha256-{X}"),
            format!("fixed:sha256:{X} "),
            format!("fixed:sha3:{X}"),
            format!("fixed:md5:{X}"),
            "fixed:md5:".into(),
            "fixed:md5:5k3537sv5p3dmsj6l9n59sm9f\n".into(),
            "fixed:md5:5k3537sv5p3dmsj6l9n59sm9e9".into(),
        ] {
            assert!(text.parse::<ContentAddress>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_parses(digest: [u8; 32]) {
            let digest = Sha256Digest(digest);
            for address in [ContentAddress::Text(digest), ContentAddress::Flat(digest), ContentAddress::Recursive(digest)] {
                prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }

        #[test]
        fn every_reference_changes_the_path(digest: [u8; 32], reference in any_store_path()) {
            let references = BTreeSet::from([reference]);
            for address in [ContentAddress::Text(Sha256Digest(digest)), ContentAddress::Recursive(Sha256Digest(digest))] {
                prop_assert_ne!(address.store_path("a", &none()), address.store_path("a", &references));
            }
        }

        #[test]
        fn no_text_panics(text: String, tail in "(text|fixed):(r:|git:)?(md5|sha1|sha256)?:?[ -~]{0,70}") {
            let _ = text.parse::<ContentAddress>();
            let _ = tail.parse::<ContentAddress>();
        }
    }
}
