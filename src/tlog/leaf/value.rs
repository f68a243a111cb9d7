//! The values that stand on the lines of a leaf.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE64, HEXLOWER};
use sha2::{Digest as _, Sha256};

/// Longest [`Word`], in bytes: a store path is at most 255.
pub const WORD_LEN_MAX: usize = 512;

/// A text cannot stand on a line of a leaf.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("word is empty, is `-`, or is longer than {WORD_LEN_MAX} bytes")]
    WordLength,
    #[error("word has a character that is not printable ASCII, or a space")]
    WordCharacter,
    #[error("time is not as `2026-11-22T13:10:00.123Z`")]
    Time,
    #[error("commitment is not 32 bytes of standard base64")]
    Commitment,
    #[error("signature is not 64 bytes of standard base64")]
    Signature,
    #[error("number is not a decimal without sign and leading zeros")]
    Number,
    #[error("hash is not 64 lower-case hex characters")]
    Hex,
}

/// One word: printable ASCII without spaces, not `-` (which stands for nothing known).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Word(String);

impl Word {
    /// The word.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Word {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text.is_empty() || text == "-" || text.len() > WORD_LEN_MAX {
            return Err(ValueError::WordLength);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ValueError::WordCharacter);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The server's clock at the append: RFC 3339 in UTC with milliseconds. Not promised to be monotone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct LeafTime(String);

impl LeafTime {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LeafTime {
    type Err = ValueError;

    /// Checks the shape; which days a month has is the reader's matter.
    fn from_str(text: &str) -> Result<Self, ValueError> {
        const SHAPE: &[u8] = b"0000-00-00T00:00:00.000Z";
        let fits = text.len() == SHAPE.len()
            && text.bytes().zip(SHAPE).all(|(byte, &shape)| match shape {
                b'0' => byte.is_ascii_digit(),
                _ => byte == shape,
            });
        if fits { Ok(Self(text.to_owned())) } else { Err(ValueError::Time) }
    }
}

impl fmt::Display for LeafTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LeafTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// 16 random bytes, one salt for each commitment. Erasing salt and text leaves a leaf that says nothing.
pub type Salt = [u8; 16];

/// SHA-256(salt ‖ text): binds to a text without showing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Commitment([u8; 32]);

impl Commitment {
    /// The commitment to `text`.
    pub fn of(salt: &Salt, text: &[u8]) -> Self {
        Self(Sha256::new().chain_update(salt).chain_update(text).finalize().into())
    }

    /// Whether this is the commitment to `text`.
    pub fn opens(&self, salt: &Salt, text: &[u8]) -> bool {
        *self == Self::of(salt, text)
    }
}

impl FromStr for Commitment {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bytes = BASE64.decode(text.as_bytes()).map_err(|_| ValueError::Commitment)?;
        bytes.try_into().map(Self).map_err(|_| ValueError::Commitment)
    }
}

impl fmt::Display for Commitment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(&self.0))
    }
}

/// 64 bytes of an Ed25519 signature, without the key's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SignatureBytes(pub [u8; 64]);

impl FromStr for SignatureBytes {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bytes = BASE64.decode(text.as_bytes()).map_err(|_| ValueError::Signature)?;
        bytes.try_into().map(Self).map_err(|_| ValueError::Signature)
    }
}

impl fmt::Display for SignatureBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(&self.0))
    }
}

/// The base names that a path refers to, or where they would not fit, what they hash to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum References {
    List(BTreeSet<Word>),
    /// SHA-256 of the text that would stand after `references `; that text is an object of the log's.
    Digest([u8; 32]),
}

impl References {
    /// Reads base names separated by one space, or nothing for none, in any order.
    pub fn list(text: &str) -> Result<Self, ValueError> {
        let words = if text.is_empty() { None } else { Some(text.split(' ')) };
        words.into_iter().flatten().map(str::parse).collect::<Result<_, _>>().map(Self::List)
    }

    /// The digest, and the text that it is of: what is to be kept as an object. `None` for a digest.
    pub fn shortened(&self) -> Option<(Self, String)> {
        let Self::List(words) = self else { return None };
        let text = join(words, " ");
        Some((Self::Digest(Sha256::digest(text.as_bytes()).into()), text))
    }

    /// The list again, if `text` is what the digest is of.
    pub fn resolved(&self, text: &str) -> Option<Self> {
        let list = Self::list(text).ok()?;
        let (digest, _) = list.shortened()?;
        (digest == *self || list == *self).then_some(list)
    }
}

/// `words` with `separator` in between.
pub(super) fn join(words: &BTreeSet<Word>, separator: &str) -> String {
    words.iter().map(Word::as_str).collect::<Vec<_>>().join(separator)
}

/// A decimal number without sign and leading zeros.
pub(super) fn parse_number(text: &str) -> Result<u64, ValueError> {
    let number = text.parse::<u64>().map_err(|_| ValueError::Number)?;
    if number.to_string() == text { Ok(number) } else { Err(ValueError::Number) }
}

/// 32 bytes of lower-case hex.
pub(super) fn parse_hex(text: &str) -> Result<[u8; 32], ValueError> {
    let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| ValueError::Hex)?;
    bytes.try_into().map_err(|_| ValueError::Hex)
}
