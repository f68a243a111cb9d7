//! Store paths: `/nix/store/<hash>-<name>`.
//!
//! Never accepts a name that some Nix between 2.8 and now refuses. Rules: `nix:src/libstore/path.cc`.

use std::fmt;
use std::str::FromStr;

use super::base32;

/// The one store folder that narvault serves.
pub const STORE_DIR: &str = "/nix/store";

/// Longest name after the hash, in bytes (`nix:src/libstore/path.cc`, `StorePath::MaxPathLen`).
pub const NAME_LEN_MAX: usize = 211;

/// Why a text is not a store path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseStorePathError {
    #[error("store path does not begin with `{STORE_DIR}/`")]
    StoreDir,
    #[error("store path's hash is not 32 characters of Nix base-32")]
    Hash,
    #[error("store path has no `-` after its hash")]
    Separator,
    #[error("store path's name is empty or longer than {NAME_LEN_MAX} characters")]
    NameLength,
    #[error("store path's name has a character outside `A-Z a-z 0-9 + - . _ ? =`")]
    NameCharacter,
    #[error("store path's name is `.` or `..`, or begins with `.-` or `..-`")]
    NameDots,
}

/// The 32-character hash part, by which a binary cache is asked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StorePathHash([u8; 32]);

impl StorePathHash {
    /// The 32 characters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("Nix base-32 is ASCII: checked when parsed")
    }

    /// Takes 32 bytes that are Nix base-32 characters already, as a scanner finds them.
    pub fn from_symbols(symbols: [u8; 32]) -> Result<Self, ParseStorePathError> {
        if symbols.iter().all(|&byte| base32::is_symbol(byte)) {
            Ok(Self(symbols))
        } else {
            Err(ParseStorePathError::Hash)
        }
    }
}

impl FromStr for StorePathHash {
    type Err = ParseStorePathError;

    fn from_str(text: &str) -> Result<Self, ParseStorePathError> {
        let symbols = text.as_bytes().try_into().map_err(|_| ParseStorePathError::Hash)?;
        Self::from_symbols(symbols)
    }
}

impl fmt::Display for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A store path. `Display` is the absolute path; [`StorePath::base_name`] is without the folder.
///
/// Ordered as Nix sorts references: bytewise by base name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StorePath {
    // The base name is kept whole: comparing and printing need no assembly.
    base_name: String,
}

impl StorePath {
    /// Reads `/nix/store/<hash>-<name>`, exactly one component below the store.
    pub fn from_absolute(text: &str) -> Result<Self, ParseStorePathError> {
        let rest = text.strip_prefix(STORE_DIR).ok_or(ParseStorePathError::StoreDir)?;
        Self::from_base_name(rest.strip_prefix('/').ok_or(ParseStorePathError::StoreDir)?)
    }

    /// Reads `<hash>-<name>`.
    pub fn from_base_name(text: &str) -> Result<Self, ParseStorePathError> {
        let hash = text.get(..32).ok_or(ParseStorePathError::Hash)?;
        hash.parse::<StorePathHash>()?;
        let name = text[32..].strip_prefix('-').ok_or(ParseStorePathError::Separator)?;
        check_name(name)?;
        Ok(Self { base_name: text.to_owned() })
    }

    /// `<hash>-<name>`.
    pub fn base_name(&self) -> &str {
        &self.base_name
    }

    /// The hash part.
    pub fn hash(&self) -> StorePathHash {
        self.base_name[..32].parse().expect("checked when parsed")
    }

    /// The name part.
    pub fn name(&self) -> &str {
        &self.base_name[33..]
    }

    /// Whether this is a derivation file.
    pub fn is_derivation(&self) -> bool {
        self.name().ends_with(".drv")
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{STORE_DIR}/{}", self.base_name)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Checks the part after `<hash>-`.
fn check_name(name: &str) -> Result<(), ParseStorePathError> {
    if name.is_empty() || name.len() > NAME_LEN_MAX {
        return Err(ParseStorePathError::NameLength);
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._?=".contains(&byte);
    if !name.bytes().all(allowed) {
        return Err(ParseStorePathError::NameCharacter);
    }
    if name == "." || name == ".." || name.starts_with(".-") || name.starts_with("..-") {
        return Err(ParseStorePathError::NameDots);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "mmjhp110f3wf5kp5q70rc7p49yln4qzy";

    #[test]
    fn a_store_path_is_taken_apart_and_printed_again() {
        let path = StorePath::from_absolute(&format!("/nix/store/{HASH}-aaa-1.0")).unwrap();

        assert_eq!(path.hash().as_str(), HASH);
        assert_eq!(path.name(), "aaa-1.0");
        assert_eq!(path.base_name(), format!("{HASH}-aaa-1.0"));
        assert_eq!(path.to_string(), format!("/nix/store/{HASH}-aaa-1.0"));
    }

    #[test]
    fn names_nix_refuses_are_refused() {
        for name in ["", ".", "..", ".-x", "..-x", "a b", "a/b", "a\n", "ü", "a\0", &"x".repeat(212)] {
            assert!(StorePath::from_base_name(&format!("{HASH}-{name}")).is_err(), "{name:?}");
        }
        for name in [".a", "...", "a", "c++?x=1", &"x".repeat(211)] {
            assert!(StorePath::from_base_name(&format!("{HASH}-{name}")).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn other_shapes_are_refused() {
        for text in [
            "",
            "/nix/store",
            "/nix/store/",
            "/nix/store//x",
            "/nix/store/mmjhp110f3wf5kp5q70rc7p49yln4qzy",
            "/nix/store/mmjhp110f3wf5kp5q70rc7p49yln4qzyx-a",
            "/nix/store/ommjhp110f3wf5kp5q70rc7p49yln4qz-a",
            "/nix/store/mmjhp110f3wf5kp5q70rc7p49yln4qzy-a/bin",
            "/gnu/store/mmjhp110f3wf5kp5q70rc7p49yln4qzy-a",
            "nix/store/mmjhp110f3wf5kp5q70rc7p49yln4qzy-a",
        ] {
            assert!(StorePath::from_absolute(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_parses(name in "[A-Za-z0-9+_?=-][A-Za-z0-9+._?=-]{0,210}") {
            let path = StorePath::from_base_name(&format!("{HASH}-{name}")).unwrap();
            prop_assert_eq!(StorePath::from_absolute(&path.to_string()), Ok(path));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = StorePath::from_absolute(&text);
            let _ = StorePath::from_base_name(&text);
        }
    }
}
