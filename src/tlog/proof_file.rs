//! Proof files: that a leaf is in a log, in one file that needs nothing but the log's public key
//! (c2sp.org/tlog-proof).
//!
//! Never vouches for its extra data: nobody signed that. What is hashed is what counts.

use std::fmt::Write as _;

use data_encoding::BASE64;

use super::checkpoint::{Checkpoint, OpenError};
use super::hash::NodeHash;
use super::note::{NOTE_SIZE_BYTES_MAX, Note, NoteError};
use super::proof::{Inclusion, PROOF_HASHES_MAX, ProofError};
use super::tree::TREE_SIZE_MAX;
use super::verifier_key::VerifierKey;

/// First line of every proof file of this version.
const HEADER: &str = "c2sp.org/tlog-proof@v1\n";

/// Largest extra data, in bytes: some leaves with what they leave out.
pub const EXTRA_SIZE_BYTES_MAX: usize = 1024 * 1024;

/// Largest proof file, in bytes: extra data in base64, hashes, checkpoint.
pub const PROOF_FILE_SIZE_BYTES_MAX: usize =
    EXTRA_SIZE_BYTES_MAX.div_ceil(3) * 4 + NOTE_SIZE_BYTES_MAX + 64 * PROOF_HASHES_MAX;

/// Why bytes are not a proof file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofFileError {
    #[error("proof file is larger than {PROOF_FILE_SIZE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("proof file is not UTF-8")]
    NotUtf8,
    #[error("proof file does not begin with the line `c2sp.org/tlog-proof@v1`")]
    Header,
    #[error("proof file's `extra` is not at most {EXTRA_SIZE_BYTES_MAX} bytes of standard base64")]
    Extra,
    #[error("proof file's `index` is not a decimal below {TREE_SIZE_MAX}, without leading zeros")]
    Index,
    #[error("proof file has more than {PROOF_HASHES_MAX} hashes, or no empty line after them")]
    Hashes,
    #[error("proof file's hash {line} is not 32 bytes of standard base64")]
    Hash { line: usize },
    #[error("proof file's checkpoint is not a signed note")]
    Checkpoint(#[from] NoteError),
}

/// Why a proof file does not prove a leaf.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyProofError {
    #[error("proof's checkpoint is not believed")]
    Checkpoint(#[from] OpenError),
    #[error("leaf {index} is not proved")]
    Proof {
        index: u64,
        #[source]
        source: ProofError,
    },
}

/// That some leaf is at an index of the tree under a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProofFile {
    /// What the reader may need to make the leaf, such as its text. Not to be believed before the leaf is proved.
    pub extra: Option<Vec<u8>>,
    /// Which leaf, counted from 0.
    pub index: u64,
    /// From the leaf's sibling up to the root's child.
    pub hashes: Vec<NodeHash>,
    /// The signed checkpoint, with what witnesses added.
    pub checkpoint: Note,
}

impl ProofFile {
    /// The bytes of the file, which is named `….tlog-proof`.
    pub fn encode(&self) -> String {
        let mut text = HEADER.to_owned();
        let mut line = |text_of_line: &str| {
            writeln!(text, "{text_of_line}").expect("writing to a String cannot fail");
        };
        if let Some(extra) = &self.extra {
            line(&format!("extra {}", BASE64.encode(extra)));
        }
        line(&format!("index {}", self.index));
        self.hashes.iter().for_each(|hash| line(&hash.to_string()));
        line("");
        text + &self.checkpoint.encode()
    }

    /// Reads a proof file; only the exact bytes that [`ProofFile::encode`] writes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ProofFileError> {
        if bytes.len() > PROOF_FILE_SIZE_BYTES_MAX {
            return Err(ProofFileError::TooLarge);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| ProofFileError::NotUtf8)?;
        let rest = text.strip_prefix(HEADER).ok_or(ProofFileError::Header)?;
        let (extra, rest) = match rest.strip_prefix("extra ") {
            Some(rest) => {
                let (base64, rest) = rest.split_once('\n').ok_or(ProofFileError::Extra)?;
                (Some(parse_extra(base64)?), rest)
            }
            None => (None, rest),
        };
        let (index, rest) = rest
            .strip_prefix("index ")
            .and_then(|rest| rest.split_once('\n'))
            .ok_or(ProofFileError::Index)?;
        let index = parse_index(index)?;
        let (hashes, checkpoint) = parse_hashes(rest)?;
        Ok(Self { extra, index, hashes, checkpoint: Note::parse(checkpoint.as_bytes())? })
    }

    /// Whether the file proves that `log` has this text as its leaf at the index; then the checkpoint that it is
    /// under.
    pub fn verify(&self, leaf: &[u8], log: &VerifierKey) -> Result<Checkpoint, VerifyProofError> {
        let checkpoint = Checkpoint::of(&self.checkpoint, log)?;
        self.proves(leaf, &checkpoint)?;
        Ok(checkpoint)
    }

    /// The same under a checkpoint that is believed already: the one that [`ProofFile::checkpoint`] holds.
    pub fn proves(&self, leaf: &[u8], checkpoint: &Checkpoint) -> Result<(), VerifyProofError> {
        Inclusion::new(self.index, checkpoint.size)
            .and_then(|way| way.verify(NodeHash::leaf(leaf), &self.hashes, checkpoint.root))
            .map_err(|source| VerifyProofError::Proof { index: self.index, source })
    }
}

fn parse_extra(base64: &str) -> Result<Vec<u8>, ProofFileError> {
    let extra = super::base64::decode(base64).ok_or(ProofFileError::Extra)?;
    if extra.len() > EXTRA_SIZE_BYTES_MAX { Err(ProofFileError::Extra) } else { Ok(extra) }
}

fn parse_index(text: &str) -> Result<u64, ProofFileError> {
    let index = text.parse::<u64>().map_err(|_| ProofFileError::Index)?;
    if index < TREE_SIZE_MAX && index.to_string() == text { Ok(index) } else { Err(ProofFileError::Index) }
}

/// The hashes up to the empty line, and what comes after it.
fn parse_hashes(mut rest: &str) -> Result<(Vec<NodeHash>, &str), ProofFileError> {
    let mut hashes = Vec::new();
    loop {
        let (line, after) = rest.split_once('\n').ok_or(ProofFileError::Hashes)?;
        rest = after;
        if line.is_empty() {
            return Ok((hashes, rest));
        }
        if hashes.len() == PROOF_HASHES_MAX {
            return Err(ProofFileError::Hashes);
        }
        let bad = ProofFileError::Hash { line: hashes.len() + 1 };
        hashes.push(line.parse().map_err(|_| bad)?);
    }
}

#[cfg(test)]
mod tests;
