//! All statements of a cache in one document: notes, one after the other, with an empty line between. First the sets of
//! root keys, then the successions, each from the first on.
//!
//! One document, not one for each statement: whoever reads it sees one moment, with no index that lags behind. Reading
//! says nothing about order or signatures: that is [`super::follow`](mod@super::follow)'s.

use super::lines::ReadError;
use super::roots::Roots;
use super::signed::{Content as _, Document, Signed};
use super::statement::Statement;
use crate::tlog::note::Note;

/// Largest document, in bytes: 500 statements, each with three signatures, are below 600 KiB.
pub const CHAIN_SIZE_BYTES_MAX: usize = 1024 * 1024;

/// Most notes of a document.
pub const CHAIN_NOTES_MAX: usize = 1000;

/// Why bytes are not such a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("document is larger than {CHAIN_SIZE_BYTES_MAX} bytes, or has more than {CHAIN_NOTES_MAX} notes")]
    TooLarge,
    #[error("document is not UTF-8")]
    NotUtf8,
    #[error("document does not consist of notes with an empty line between")]
    Shape,
    #[error("note {number} of the document is refused")]
    Note { number: usize, source: ReadError },
}

/// The statements of a cache, as somebody published them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    pub roots: Vec<Signed<Roots>>,
    pub statements: Vec<Signed<Statement>>,
}

impl Chain {
    /// Reads a document; only the exact bytes that [`Chain::encode`] writes. Nothing is a document without notes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ChainError> {
        if bytes.len() > CHAIN_SIZE_BYTES_MAX {
            return Err(ChainError::TooLarge);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| ChainError::NotUtf8)?;
        let mut chain = Self::default();
        let Some(inner) = text.strip_suffix('\n') else {
            return if text.is_empty() { Ok(chain) } else { Err(ChainError::Shape) };
        };
        // No text of ours has an empty line.
        let pieces: Vec<&str> = inner.split("\n\n").collect();
        if pieces.len() > 2 * CHAIN_NOTES_MAX {
            return Err(ChainError::TooLarge);
        }
        if !pieces.len().is_multiple_of(2) {
            return Err(ChainError::Shape);
        }
        for (index, pair) in pieces.chunks(2).enumerate() {
            let refused = |source| ChainError::Note { number: index + 1, source };
            let note = format!("{}\n\n{}\n", pair[0], pair[1]);
            let note = Note::parse(note.as_bytes()).map_err(ReadError::Note).map_err(refused)?;
            match Document::read(note.text()).map_err(refused)? {
                Document::Roots(_) => chain.roots.push(Signed::of(note).map_err(refused)?),
                Document::Succession(_) => chain.statements.push(Signed::of(note).map_err(refused)?),
            }
        }
        if chain.encode() == text { Ok(chain) } else { Err(ChainError::Shape) }
    }

    /// The document.
    pub fn encode(&self) -> String {
        let roots = self.roots.iter().map(Signed::note);
        let notes = roots.chain(self.statements.iter().map(Signed::note));
        notes.map(Note::encode).collect::<Vec<_>>().join("\n")
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty() && self.statements.is_empty()
    }

    /// The number of the newest statement; 0 before the first.
    pub fn head(&self) -> u64 {
        self.statements.last().map_or(0, |last| last.content().seq)
    }
}

#[cfg(test)]
mod tests;
