//! SHA-256 digests, with a type for each thing that is hashed: a NAR is not the file that carries it.
//!
//! Never holds another algorithm: Nix's `NarHash` and `FileHash` in a binary cache are SHA-256.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER_PERMISSIVE;
use sha2::Digest as _;

use super::{base32, base64};

/// Why a text is not a SHA-256 hash in one of the spellings that Nix reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseHashError {
    #[error("hash has no `sha256:` or `sha256-` in front")]
    Algorithm,
    #[error("hash is not 64 hex, 52 Nix base-32 or 44 base-64 characters of SHA-256")]
    Digest,
}

/// 32 bytes of SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256Digest(pub [u8; 32]);

impl Sha256Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// Reads 52 characters of Nix base-32.
    pub fn from_base32(text: &str) -> Result<Self, ParseHashError> {
        base32::decode(text).map(Self).map_err(|_| ParseHashError::Digest)
    }

    /// 52 characters of Nix base-32.
    pub fn base32(&self) -> String {
        base32::encode(&self.0)
    }

    /// 64 characters of lower-case hex.
    pub fn hex(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }

    /// Reads 64 characters of lower-case hex.
    pub fn from_hex(text: &str) -> Result<Self, ParseHashError> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(|_| ParseHashError::Digest)?;
        bytes.try_into().map(Self).map_err(|_| ParseHashError::Digest)
    }

    /// Reads `sha256:` + hex, Nix base-32 or base-64, or SRI `sha256-` + base-64, as Nix does
    /// (`nix:src/libutil/hash.cc`).
    fn parse_prefixed(text: &str) -> Result<Self, ParseHashError> {
        if let Some(sri) = text.strip_prefix("sha256-") {
            return decode_base64(sri);
        }
        let digest = text.strip_prefix("sha256:").ok_or(ParseHashError::Algorithm)?;
        match digest.len() {
            52 => Self::from_base32(digest),
            64 => {
                let bytes =
                    HEXLOWER_PERMISSIVE.decode(digest.as_bytes()).map_err(|_| ParseHashError::Digest)?;
                bytes.try_into().map(Self).map_err(|_| ParseHashError::Digest)
            }
            _ => decode_base64(digest),
        }
    }
}

fn decode_base64(text: &str) -> Result<Sha256Digest, ParseHashError> {
    let bytes = base64::decode(text).ok_or(ParseHashError::Digest)?;
    bytes.try_into().map(Sha256Digest).map_err(|_| ParseHashError::Digest)
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base32())
    }
}

impl fmt::Debug for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{self}")
    }
}

macro_rules! hash_of {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub Sha256Digest);

        impl $name {
            /// Reads the bare 52 characters of Nix base-32, as they stand in file names and columns.
            pub fn from_base32(text: &str) -> Result<Self, ParseHashError> {
                Sha256Digest::from_base32(text).map(Self)
            }

            /// The bare 52 characters of Nix base-32.
            pub fn base32(&self) -> String {
                self.0.base32()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "sha256:{}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseHashError;

            /// Reads every spelling that Nix reads; `Display` prints `sha256:` + Nix base-32.
            fn from_str(text: &str) -> Result<Self, ParseHashError> {
                Sha256Digest::parse_prefixed(text).map(Self)
            }
        }
    };
}

hash_of! {
    /// The hash of an uncompressed NAR: what a signature covers.
    NarHash
}
hash_of! {
    /// The hash of the file that carries a NAR, compressed or not: what names it in the bucket.
    FileHash
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64;
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "47c240929210269cc8d528b6df9327447d56c4cb063f86c79977e0a310d3701c";
    const NIX32: &str = "073hsc8a7q3pk73qcgq6rg25cza44y9xzdi8sp49q9hhja941hj7";

    #[test]
    fn every_spelling_that_nix_reads_is_one_hash() {
        let base64 = BASE64.encode(&HEXLOWER_PERMISSIVE.decode(HEX.as_bytes()).unwrap());
        for text in [
            format!("sha256:{HEX}"),
            format!("sha256:{NIX32}"),
            format!("sha256:{base64}"),
            format!("sha256-{base64}"),
        ] {
            assert_eq!(text.parse::<NarHash>().unwrap().to_string(), format!("sha256:{NIX32}"), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", NIX32, "sha256:", "sha256-", "md5:d41d8cd98f00b204e9800998ecf8427e", "sha512:00"] {
            assert!(text.parse::<NarHash>().is_err(), "{text:?}");
        }
        assert!(format!("sha256:{}", &NIX32[1..]).parse::<FileHash>().is_err());
        assert!(format!("sha256: {NIX32}").parse::<FileHash>().is_err());
    }

    proptest! {
        #[test]
        fn what_is_printed_parses(bytes: [u8; 32]) {
            let hash = FileHash(Sha256Digest(bytes));
            prop_assert_eq!(hash.to_string().parse::<FileHash>(), Ok(hash));
            prop_assert_eq!(FileHash::from_base32(&hash.base32()), Ok(hash));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = text.parse::<NarHash>();
        }
    }
}
