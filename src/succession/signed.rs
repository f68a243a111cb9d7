//! A statement together with the lines of those who signed it (c2sp.org/signed-note), and one that still gathers them.
//!
//! The keys are Ed25519 keys of that format (type 0x01) under the name of the Nix key, in which `+` is written `%2B` and
//! `%` is written `%25`, since such a name has no `+`. So a key's id here follows from what stands in
//! `trusted-public-keys` alone.

use super::lines::ReadError;
use super::roots::{self, Roots, TextDigest, digest};
use super::statement::{self, Statement};
use crate::nix::signature::PublicKey;
use crate::tlog::note::{Note, NoteError, NoteSignature};
use crate::tlog::verifier_key::{Algorithm, KeyName, ParseKeyNameError, ParseVerifierKeyError, VerifierKey};

/// Why a Nix key cannot sign notes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteKeyError {
    #[error("the key's name is too long with each `+` and `%` in it spelled out")]
    Name(#[source] ParseKeyNameError),
    #[error("the key is none that signs notes")]
    Key(#[source] ParseVerifierKeyError),
}

/// A Nix key as signed notes name it.
pub fn note_key(key: &PublicKey) -> Result<VerifierKey, NoteKeyError> {
    let name = key.name().as_str().replace('%', "%25").replace('+', "%2B");
    let name: KeyName = name.parse().map_err(NoteKeyError::Name)?;
    VerifierKey::new(name, Algorithm::Ed25519, key.bytes()).map_err(NoteKeyError::Key)
}

/// A text that is signed.
pub trait Content: Sized {
    /// Reads the text, in its one spelling.
    fn read(text: &str) -> Result<Self, ReadError>;
    /// The text, if it may be signed.
    fn written(&self) -> Result<String, ReadError>;
}

impl Content for Statement {
    fn read(text: &str) -> Result<Self, ReadError> {
        Self::parse(text)
    }

    fn written(&self) -> Result<String, ReadError> {
        self.encode()
    }
}

impl Content for Roots {
    fn read(text: &str) -> Result<Self, ReadError> {
        Self::parse(text)
    }

    fn written(&self) -> Result<String, ReadError> {
        self.encode()
    }
}

/// Either of the two.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "whoever reads or signs one holds one")]
pub enum Document {
    Roots(Roots),
    Succession(Statement),
}

impl Content for Document {
    fn read(text: &str) -> Result<Self, ReadError> {
        match text.split('\n').next() {
            Some(statement::FORMAT) => Statement::parse(text).map(Self::Succession),
            Some(roots::FORMAT) => Roots::parse(text).map(Self::Roots),
            _ => Err(ReadError::Format { expected: "narvault/key-…" }),
        }
    }

    fn written(&self) -> Result<String, ReadError> {
        match self {
            Self::Roots(roots) => roots.encode(),
            Self::Succession(statement) => statement.encode(),
        }
    }
}

/// A text with at least one signature, of which nothing is known yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed<T> {
    content: T,
    note: Note,
}

impl<T: Content> Signed<T> {
    /// Reads a note and its text.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReadError> {
        Self::of(Note::parse(bytes).map_err(ReadError::Note)?)
    }

    /// The same, of a note that was read before.
    pub fn of(note: Note) -> Result<Self, ReadError> {
        Ok(Self { content: T::read(note.text())?, note })
    }

    /// What the text says, whoever signed it.
    pub fn content(&self) -> &T {
        &self.content
    }

    /// The text with its signatures.
    pub fn note(&self) -> &Note {
        &self.note
    }

    /// Whether `key` signed it.
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        note_key(key).is_ok_and(|key| self.note.verify(&key).is_ok())
    }

    /// How many of these root keys signed it, each counted once.
    pub fn signers_among(&self, roots: &Roots) -> u64 {
        roots.keys.iter().filter(|key| self.is_signed_by(key)).count() as u64
    }

    /// Whether enough of these root keys signed it.
    pub fn has_threshold_of(&self, roots: &Roots) -> bool {
        self.signers_among(roots) >= roots.threshold
    }

    /// SHA-256 of the text; a further signature changes nothing of it.
    pub fn digest(&self) -> TextDigest {
        digest(self.note.text())
    }

    /// The same text, with a further signature.
    pub fn with(self, signature: NoteSignature) -> Result<Self, NoteError> {
        Ok(Self { note: self.note.with(signature)?, ..self })
    }
}

/// A text on its way from one signer to the next: as a note, or without a signature yet, then ending in an empty line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    pub content: Document,
    text: String,
    note: Option<Note>,
}

impl Draft {
    /// A text that nobody has signed.
    pub fn new(content: Document) -> Result<Self, ReadError> {
        Ok(Self { text: content.written()?, content, note: None })
    }

    /// Reads what [`Draft::encode`] writes.
    pub fn parse(file: &str) -> Result<Self, ReadError> {
        match file.strip_suffix('\n').filter(|text| text.ends_with('\n')) {
            Some(text) => Self::new(Document::read(text)?),
            None => {
                let note = Note::parse(file.as_bytes()).map_err(ReadError::Note)?;
                let content = Document::read(note.text())?;
                Ok(Self { content, text: note.text().to_owned(), note: Some(note) })
            }
        }
    }

    /// What is signed.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The names of those who claim to have signed.
    pub fn signers(&self) -> Vec<String> {
        let signatures = self.note.iter().flat_map(|note| note.signatures());
        signatures.map(|signature| signature.name.to_string()).collect()
    }

    /// The same, with the signatures of `note`, which is of the same text.
    pub fn with(mut self, note: Note) -> Result<Self, ReadError> {
        if note.text() != self.text {
            return Err(ReadError::Contradiction("the signature is of another text"));
        }
        let mut all = self.note.take();
        for signature in note.signatures() {
            all = match all {
                Some(all) => Some(all.with(signature.clone()).map_err(ReadError::Note)?),
                None => Some(note.clone()),
            };
        }
        Ok(Self { note: all, ..self })
    }

    /// The text of the file.
    pub fn encode(&self) -> String {
        match &self.note {
            Some(note) => note.encode(),
            None => format!("{}\n", self.text),
        }
    }
}

#[cfg(test)]
mod tests;
