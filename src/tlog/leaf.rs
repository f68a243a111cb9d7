//! One leaf of the signature log: a text of fixed lines that anyone can read and hash.
//!
//! Never shows a person's name or what a private cache holds: those stand behind salted commitments,
//! which can be erased without breaking the tree.

mod event;
mod lines;
mod value;

pub use self::event::{
    Attested, Basis, CacheLine, ClaimLines, Covered, Disclosed, Event, KeyEvent, PathLines, Signed,
    UnknownEvent,
};
use self::lines::{Reader, Writer};
pub use self::value::{
    Commitment, LeafTime, References, Salt, SignatureBytes, ValueError, WORD_LEN_MAX, Word,
};

/// Largest leaf, in bytes. A leaf with more references than fit carries their digest instead.
pub const LEAF_SIZE_BYTES_MAX: usize = 16 * 1024;

/// First line of every leaf of this version.
const HEADER: &str = "narvault/log/v1\n";

/// Why a text is not a leaf, or a leaf cannot be a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    #[error("leaf is larger than {LEAF_SIZE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("leaf is not UTF-8")]
    NotUtf8,
    #[error("leaf does not begin with the line `narvault/log/v1`")]
    Header,
    #[error("leaf's line {line} is not `key value` with one space and a line feed")]
    LineShape { line: usize },
    #[error("leaf's line {line} does not begin with `{key} `")]
    Expected { line: usize, key: &'static str },
    #[error("leaf's line {line} has a bad value for `{key}`")]
    Value {
        line: usize,
        key: &'static str,
        #[source]
        source: ValueError,
    },
    #[error("leaf has more lines than its event, from line {line}")]
    Trailing { line: usize },
    #[error("leaf is not spelled as it would be written")]
    NotCanonical,
}

/// One leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    pub event: Event,
    pub time: LeafTime,
    /// The id of the contributor who caused it.
    pub by: Option<Word>,
    /// The `jti` of the token that was used.
    pub token: Option<Word>,
    /// Commitment to the private JSON that goes with it.
    pub detail: Option<Commitment>,
}

impl Leaf {
    /// The text that is hashed and published.
    pub fn encode(&self) -> Result<String, LeafError> {
        let text = self.text();
        if text.len() > LEAF_SIZE_BYTES_MAX { Err(LeafError::TooLarge) } else { Ok(text) }
    }

    /// This leaf with a digest in place of its references if it would be too large with them, and then
    /// the list, to be kept for ever under its digest. What comes out of here encodes.
    pub fn fitted(mut self) -> (Self, Option<String>) {
        if self.text().len() <= LEAF_SIZE_BYTES_MAX {
            return (self, None);
        }
        let Some(Disclosed::Open(claim)) = self.event.claim_mut() else { return (self, None) };
        let Some((digest, list)) = claim.references.shortened() else { return (self, None) };
        claim.references = digest;
        (self, Some(list))
    }

    /// Reads a leaf; only the exact text that [`Leaf::encode`] writes.
    pub fn parse(text: &[u8]) -> Result<Self, LeafError> {
        if text.len() > LEAF_SIZE_BYTES_MAX {
            return Err(LeafError::TooLarge);
        }
        let text = std::str::from_utf8(text).map_err(|_| LeafError::NotUtf8)?;
        let lines = text.strip_prefix(HEADER).ok_or(LeafError::Header)?;
        let mut reader = Reader::new(lines, 2);

        let name = reader.parse("event")?;
        let time = reader.parse("time")?;
        let mut event = Event::read_own(name, &mut reader)?;
        let by = reader.parse_or_dash("by")?;
        let token = reader.parse_or_dash("token")?;
        event.read_further(&mut reader)?;
        let detail = reader.parse_or_dash("detail")?;
        reader.end()?;

        let leaf = Self { event, time, by, token, detail };
        if leaf.text() == text { Ok(leaf) } else { Err(LeafError::NotCanonical) }
    }

    fn text(&self) -> String {
        let mut writer = Writer { text: HEADER.to_owned() };
        writer.line("event", self.event.name());
        writer.line("time", &self.time);
        self.event.write_own(&mut writer);
        writer.line_or_dash("by", self.by.as_ref());
        writer.line_or_dash("token", self.token.as_ref());
        self.event.write_further(&mut writer);
        writer.line_or_dash("detail", self.detail.as_ref());
        writer.text
    }
}

#[cfg(test)]
mod tests;
