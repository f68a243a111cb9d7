//! Checkpoints: the signed statement of a log that it has so many leaves under this root (c2sp.org/tlog-checkpoint).
//!
//! Never says that two checkpoints belong together: that is proved by `proof::Consistency`.

use std::fmt::Write as _;

use super::hash::NodeHash;
use super::note::{Note, NoteError, VerifyError};
use super::tree::TREE_SIZE_MAX;
use super::verifier_key::VerifierKey;

/// Why a text is not a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    #[error("checkpoint does not have three lines: origin, size, root")]
    Lines,
    #[error("checkpoint has an empty line, or a control character in a line")]
    Line,
    #[error("checkpoint's size is not a decimal of at most {TREE_SIZE_MAX}, without leading zeros")]
    Size,
    #[error("checkpoint's root is not 32 bytes of standard base64")]
    Root,
}

/// Why a signed checkpoint is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("checkpoint is not a signed note")]
    Note(#[from] NoteError),
    #[error("checkpoint is not signed by its log")]
    Signature(#[from] VerifyError),
    #[error("checkpoint is malformed")]
    Checkpoint(#[from] CheckpointError),
    #[error("checkpoint is of the log `{found}`, expected `{expected}`")]
    Origin { found: String, expected: String },
}

/// What a log says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log's name. One line.
    pub origin: String,
    /// How many leaves it has.
    pub size: u64,
    /// The root of their tree.
    pub root: NodeHash,
    /// Lines of the log's own, each of them not empty; narvault writes none.
    pub extensions: Vec<String>,
}

impl Checkpoint {
    /// The text that is signed.
    pub fn encode(&self) -> Result<String, CheckpointError> {
        let lines = [&self.origin].into_iter().chain(&self.extensions);
        if lines.into_iter().any(|line| line.is_empty() || line.bytes().any(|byte| byte < b' ')) {
            return Err(CheckpointError::Line);
        }
        if self.size > TREE_SIZE_MAX { Err(CheckpointError::Size) } else { Ok(self.text()) }
    }

    /// Reads a checkpoint's text; only what [`Checkpoint::encode`] writes.
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let lines: Vec<&str> = text.strip_suffix('\n').ok_or(CheckpointError::Lines)?.split('\n').collect();
        let [origin, size, root, extensions @ ..] = &lines[..] else { return Err(CheckpointError::Lines) };
        let checkpoint = Self {
            origin: (*origin).to_owned(),
            size: size.parse().map_err(|_| CheckpointError::Size)?,
            root: root.parse().map_err(|_| CheckpointError::Root)?,
            extensions: extensions.iter().map(|line| (*line).to_owned()).collect(),
        };
        // Everything else has one spelling only.
        if checkpoint.encode()? == text { Ok(checkpoint) } else { Err(CheckpointError::Size) }
    }

    /// Reads a checkpoint that `log` signed, whose name is the checkpoint's origin, and the note that it came in.
    pub fn open(bytes: &[u8], log: &VerifierKey) -> Result<(Self, Note), OpenError> {
        let note = Note::parse(bytes)?;
        Ok((Self::of(&note, log)?, note))
    }

    /// The same, of a note that was read before.
    pub fn of(note: &Note, log: &VerifierKey) -> Result<Self, OpenError> {
        note.verify(log)?;
        let checkpoint = Self::parse(note.text())?;
        if checkpoint.origin != log.name().as_str() {
            let expected = log.name().to_string();
            return Err(OpenError::Origin { found: checkpoint.origin, expected });
        }
        Ok(checkpoint)
    }

    fn text(&self) -> String {
        let mut text = format!("{}\n{}\n{}\n", self.origin, self.size, self.root);
        for line in &self.extensions {
            writeln!(text, "{line}").expect("writing to a String cannot fail");
        }
        text
    }
}

#[cfg(test)]
mod tests;
