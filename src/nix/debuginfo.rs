//! `debuginfo/<build id>.debug`: where in which NAR a build's debug information lies.
//!
//! Never lets an object point outside `nar/` or to a member of another build id.
//! Format: `nix:src/libstore/binary-cache-store.cc`, `index-debug-info`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::compression::{NarFileName, ParseNarFileNameError};

/// Largest body, in bytes. Nix writes about 160.
pub const DEBUG_INFO_SIZE_BYTES_MAX: usize = 4096;

/// Why a name or a body is refused. The reader's own error is kept aside: it may repeat the body.
#[derive(Debug, thiserror::Error)]
pub enum DebugInfoError {
    #[error("debuginfo name is not 40 lower-case hex characters and `.debug`")]
    Key,
    #[error("debuginfo is larger than {DEBUG_INFO_SIZE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("debuginfo is not the JSON that Nix writes")]
    Json(#[source] serde_json::Error),
    #[error("debuginfo's archive is not `../nar/` and the name of a NAR file")]
    Archive,
    #[error("debuginfo's archive is refused: {0}")]
    ArchiveName(ParseNarFileNameError),
    #[error("debuginfo's member is not `lib/debug/.build-id/` and its build id")]
    Member,
}

/// A build id, as the object's name has it: `<40 hex>.debug`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DebugInfoKey(String);

impl DebugInfoKey {
    /// The file inside the NAR: the first byte of the build id is a folder of its own.
    pub fn member(&self) -> String {
        format!("lib/debug/.build-id/{}/{}.debug", &self.0[..2], &self.0[2..])
    }
}

impl FromStr for DebugInfoKey {
    type Err = DebugInfoError;

    fn from_str(text: &str) -> Result<Self, DebugInfoError> {
        let id = text.strip_suffix(".debug").ok_or(DebugInfoError::Key)?;
        let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if id.len() != 40 || !id.bytes().all(hex) {
            return Err(DebugInfoError::Key);
        }
        Ok(Self(id.to_owned()))
    }
}

impl fmt::Display for DebugInfoKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.debug", self.0)
    }
}

/// One object below `debuginfo/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebugInfo {
    pub key: DebugInfoKey,
    /// The NAR that has the member.
    pub archive: NarFileName,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    archive: String,
    member: String,
}

impl DebugInfo {
    /// Reads the body that was put under `key`.
    pub fn parse(key: DebugInfoKey, body: &[u8]) -> Result<Self, DebugInfoError> {
        if body.len() > DEBUG_INFO_SIZE_BYTES_MAX {
            return Err(DebugInfoError::TooLarge);
        }
        let body: Body = serde_json::from_slice(body).map_err(DebugInfoError::Json)?;
        let file = body.archive.strip_prefix("../nar/").ok_or(DebugInfoError::Archive)?;
        let archive = file.parse().map_err(DebugInfoError::ArchiveName)?;
        if body.member != key.member() {
            return Err(DebugInfoError::Member);
        }
        Ok(Self { key, archive })
    }

    /// The body, as Nix writes it.
    pub fn to_json(&self) -> String {
        let body = Body { archive: format!("../nar/{}", self.archive), member: self.key.member() };
        serde_json::to_string(&body).expect("two strings are JSON")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::compression::NarExtension;
    use super::super::hash::{FileHash, Sha256Digest};
    use super::*;

    const NAME: &str = "abcdef0123456789abcdef0123456789abcdef01.debug";
    const GOLDEN: &str =
        include_str!("../../tests/golden/nix-2.8/abcdef0123456789abcdef0123456789abcdef01.debug");

    fn key() -> DebugInfoKey {
        NAME.parse().unwrap()
    }

    #[test]
    fn what_nix_wrote_is_read_and_written_again() {
        let newer =
            include_str!("../../tests/golden/nix-2.34/abcdef0123456789abcdef0123456789abcdef01.debug");
        for body in [GOLDEN, newer] {
            assert_eq!(DebugInfo::parse(key(), body.as_bytes()).unwrap().to_json(), body);
        }
        assert_eq!(key().to_string(), NAME);
    }

    #[test]
    fn other_names_are_refused() {
        for name in [
            "",
            ".debug",
            "abcdef0123456789abcdef0123456789abcdef01",
            "abcdef0123456789abcdef0123456789abcdef0.debug",
            "abcdef0123456789abcdef0123456789abcdef012.debug",
            "ABCDEF0123456789abcdef0123456789abcdef01.debug",
            "abcdef0123456789abcdef0123456789abcdefgg.debug",
            "../def0123456789abcdef0123456789abcdef01.debug",
        ] {
            assert!(name.parse::<DebugInfoKey>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn other_bodies_are_refused() {
        for (from, to) in [
            ("../nar/", "nar/"),
            ("../nar/", "/nar/"),
            ("../nar/", "https://example.org/nar/"),
            ("../nar/", "../nar/../"),
            (".nar.xz", ".nar.lz4"),
            (".nar.xz", ".nar.xz?x"),
            ("build-id/ab", "build-id/ac"),
            ("lib/debug", "/lib/debug"),
            ("lib/debug", "lib/../lib/debug"),
            ("{", "{\"x\":1,"),
            ("{", "{\"member\":\"\","),
            ("}", "}}"),
            ("\"member\"", "\"members\""),
        ] {
            let body = GOLDEN.replacen(from, to, 1);
            assert!(DebugInfo::parse(key(), body.as_bytes()).is_err(), "{body}");
        }
        let large = format!("{GOLDEN}{}", " ".repeat(DEBUG_INFO_SIZE_BYTES_MAX));
        assert!(matches!(DebugInfo::parse(key(), large.as_bytes()), Err(DebugInfoError::TooLarge)));
    }

    proptest! {
        #[test]
        fn what_is_printed_parses(id in "[0-9a-f]{40}", digest: [u8; 32], extension in 0..5usize) {
            let key: DebugInfoKey = format!("{id}.debug").parse().unwrap();
            let hash = FileHash(Sha256Digest(digest));
            let info = DebugInfo { key, archive: NarFileName { hash, extension: NarExtension::ALL[extension] } };

            let parsed = DebugInfo::parse(info.key.clone(), info.to_json().as_bytes()).unwrap();

            prop_assert_eq!(parsed, info);
        }

        #[test]
        fn no_bytes_panic(body: Vec<u8>, text: String) {
            let _ = DebugInfo::parse(key(), &body);
            let _ = text.parse::<DebugInfoKey>();
        }
    }
}
