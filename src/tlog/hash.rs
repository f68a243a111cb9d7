//! Hashes of the tree's nodes: SHA-256 with one byte in front that tells leaves from inner nodes (RFC 6962,
//! section 2.1), so that no leaf can be taken for a pair of hashes.
//!
//! Never hashes anything but leaves and nodes.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64;
use sha2::{Digest as _, Sha256};

/// Bytes of a hash.
pub const HASH_LEN: usize = 32;

/// Why a text or bytes are not a hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("hash is not 32 bytes of standard base64")]
pub struct ParseHashError;

/// The hash of a leaf, or of all leaves below a node. As text it is standard base64 with padding.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeHash([u8; HASH_LEN]);

impl NodeHash {
    /// The root of a tree without leaves: SHA-256 of nothing.
    pub fn empty() -> Self {
        Self(Sha256::digest([]).into())
    }

    /// The hash of a leaf: SHA-256(0x00 ‖ text).
    pub fn leaf(text: &[u8]) -> Self {
        Self(Sha256::new().chain_update([0]).chain_update(text).finalize().into())
    }

    /// The hash of two neighbours of one height: SHA-256(0x01 ‖ left ‖ right).
    pub fn pair(left: Self, right: Self) -> Self {
        Self(Sha256::new().chain_update([1]).chain_update(left.0).chain_update(right.0).finalize().into())
    }

    /// Takes 32 bytes that were hashed before.
    pub fn from_bytes(bytes: [u8; HASH_LEN]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub fn bytes(&self) -> &[u8; HASH_LEN] {
        &self.0
    }

    /// Hashes one after the other, as frontiers and tiles have them; `None` where the last is cut off.
    pub fn split(bytes: &[u8]) -> Option<Vec<Self>> {
        let (hashes, rest) = bytes.as_chunks::<HASH_LEN>();
        rest.is_empty().then(|| hashes.iter().copied().map(Self).collect())
    }

    /// The opposite of [`NodeHash::split`].
    pub fn join(hashes: &[Self]) -> Vec<u8> {
        hashes.iter().flat_map(|hash| hash.0).collect()
    }

    /// The hash over hashes of one height, a power of two of them.
    pub(super) fn over(hashes: &[Self]) -> Self {
        match hashes {
            [] => Self::empty(),
            [one] => *one,
            more => {
                let (left, right) = more.split_at(more.len() / 2);
                Self::pair(Self::over(left), Self::over(right))
            }
        }
    }
}

impl FromStr for NodeHash {
    type Err = ParseHashError;

    fn from_str(text: &str) -> Result<Self, ParseHashError> {
        let bytes = super::base64::decode(text).ok_or(ParseHashError)?;
        bytes.try_into().map(Self).map_err(|_| ParseHashError)
    }
}

impl fmt::Display for NodeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(&self.0))
    }
}

impl fmt::Debug for NodeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    fn hex(hash: NodeHash) -> String {
        HEXLOWER.encode(hash.bytes())
    }

    // RFC 6962 gives no numbers; these are the first of `certificate-transparency-go:merkletree`'s tests.
    #[test]
    fn known_hashes_come_out() {
        assert_eq!(
            hex(NodeHash::empty()),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(
            hex(NodeHash::leaf(b"")),
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
        );
        assert_eq!(
            hex(NodeHash::leaf(b"\0")),
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
        );
        assert_eq!(
            hex(NodeHash::pair(NodeHash::leaf(b""), NodeHash::leaf(b"\0"))),
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
        );
    }

    #[test]
    fn a_pair_of_hashes_as_a_leaf_is_not_their_node() {
        let (left, right) = (NodeHash::leaf(b"l"), NodeHash::leaf(b"r"));

        assert_ne!(NodeHash::leaf(&NodeHash::join(&[left, right])), NodeHash::pair(left, right));
        assert_ne!(NodeHash::pair(left, right), NodeHash::pair(right, left));
    }

    #[test]
    fn only_the_one_spelling_is_read() {
        let hash = NodeHash::leaf(b"x");
        let text = hash.to_string();

        assert_eq!(text.parse(), Ok(hash));
        for other in [
            String::new(),
            format!("{text}="),
            format!("{text}\n"),
            text.trim_end_matches('=').to_owned(),
            text.replace('=', "A"),
            // The last character before the padding carries two bits that must be zero.
            format!("{}{}=", &text[..42], if text.as_bytes()[42] == b'B' { 'C' } else { 'B' }),
            format!("{}{}", BASE64.encode(&[0; 31]), BASE64.encode(&[0])),
            BASE64.encode(&[0; 31]),
            BASE64.encode(&[0; 33]),
        ] {
            assert_eq!(other.parse::<NodeHash>(), Err(ParseHashError), "{other:?}");
        }
    }

    #[test]
    fn a_cut_row_of_hashes_is_not_split() {
        let hashes = [NodeHash::leaf(b"a"), NodeHash::leaf(b"b")];
        let bytes = NodeHash::join(&hashes);

        assert_eq!(NodeHash::split(&bytes).as_deref(), Some(&hashes[..]));
        assert_eq!(NodeHash::split(&[]).as_deref(), Some(&[][..]));
        assert_eq!(NodeHash::split(&bytes[..63]), None);
    }
}
