//! Signed notes: a text and the lines of those who signed it (c2sp.org/signed-note).
//!
//! Never takes a note's text for true: that is said by [`Note::verify`], of one key that the caller trusts. Never
//! sees a private key: who signs hands in a function that does.

use std::fmt;

use data_encoding::BASE64;

use super::verifier_key::{Algorithm, KeyId, KeyName, VerifierKey};

/// Largest note, in bytes, signatures included: 16 of the largest kind (5 kB, post-quantum), which each reader must
/// accept, in base64, and as much again.
pub const NOTE_SIZE_BYTES_MAX: usize = 256 * 1024;

/// Most signatures on a note, as in the implementation that the format comes from.
pub const SIGNATURES_MAX: usize = 100;

/// What a line of a signature begins with.
const SIGNATURE_START: &str = "— ";

/// Why bytes are not a note, or do not make one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    #[error("note is larger than {NOTE_SIZE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("note is not UTF-8")]
    NotUtf8,
    #[error("note has a control character that is not a line feed")]
    Control,
    #[error("note's text does not end with a line feed")]
    NoLineFeed,
    #[error("note has no empty line between its text and its signatures")]
    NoSignatures,
    #[error("note has more than {SIGNATURES_MAX} signatures")]
    TooManySignatures,
    #[error("note's signature {line} is not `— name base64` with a line feed")]
    SignatureLine { line: usize },
}

/// Why a note does not count as signed by a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("note is not signed by `{name}` ({id})")]
    Unsigned { name: KeyName, id: KeyId },
    #[error("note bears a signature of `{name}` ({id}) that does not verify")]
    Forged { name: KeyName, id: KeyId },
    #[error("the key `{name}` is of another kind than is asked for")]
    Algorithm { name: KeyName },
}

/// Why a note was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError<E: std::error::Error + 'static> {
    #[error(transparent)]
    Note(#[from] NoteError),
    #[error("note was not signed")]
    Sign(#[source] E),
    #[error("what was signed does not verify")]
    Verify(#[from] VerifyError),
}

/// One line below a note: who claims to have signed it, and the bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct NoteSignature {
    pub name: KeyName,
    pub id: KeyId,
    /// At least one byte; what they mean is the matter of the key's algorithm.
    pub bytes: Vec<u8>,
}

impl NoteSignature {
    /// Reads one line, without its line feed.
    fn parse(line: &str) -> Option<Self> {
        let (name, base64) = line.strip_prefix(SIGNATURE_START)?.split_once(' ')?;
        let bytes = super::base64::decode(base64)?;
        let (id, bytes) = bytes.split_first_chunk::<4>()?;
        if bytes.is_empty() {
            return None;
        }
        Some(Self { name: name.parse().ok()?, id: KeyId(*id), bytes: bytes.to_vec() })
    }
}

impl fmt::Display for NoteSignature {
    /// The line, without its line feed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&self.id.0, &self.bytes[..]].concat();
        write!(f, "{SIGNATURE_START}{} {}", self.name, BASE64.encode(&bytes))
    }
}

impl fmt::Debug for NoteSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text with at least one signature, of which nothing is known yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<NoteSignature>,
}

impl Note {
    /// Reads a note; only the exact bytes that [`Note::encode`] writes.
    pub fn parse(bytes: &[u8]) -> Result<Self, NoteError> {
        if bytes.len() > NOTE_SIZE_BYTES_MAX {
            return Err(NoteError::TooLarge);
        }
        let whole = std::str::from_utf8(bytes).map_err(|_| NoteError::NotUtf8)?;
        // The text may have empty lines; the last one of all ends it.
        let (text, signatures) = whole.rsplit_once("\n\n").ok_or(NoteError::NoSignatures)?;
        let text = &whole[..text.len() + 1];
        check_text(text)?;
        let lines: Vec<&str> = signatures.split_inclusive('\n').collect();
        if lines.is_empty() {
            return Err(NoteError::NoSignatures);
        }
        if lines.len() > SIGNATURES_MAX {
            return Err(NoteError::TooManySignatures);
        }
        let parse = |(line, text): (usize, &&str)| {
            let signature = text.strip_suffix('\n').and_then(NoteSignature::parse);
            signature.ok_or(NoteError::SignatureLine { line: line + 1 })
        };
        let signatures = lines.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
        Ok(Self { text: text.to_owned(), signatures })
    }

    /// The note that is `text`, signed with `key` by `sign`, which gets the bytes to sign. Does not give out a
    /// signature that `key` would not verify.
    pub fn sign<E: std::error::Error + 'static>(
        text: String,
        key: &VerifierKey,
        sign: impl FnOnce(&[u8]) -> Result<[u8; 64], E>,
    ) -> Result<Self, SignError<E>> {
        check_text(&text)?;
        let bytes = sign(text.as_bytes()).map_err(SignError::Sign)?.to_vec();
        let signature = NoteSignature { name: key.name().clone(), id: key.id(), bytes };
        let note = Self { text, signatures: vec![signature] };
        note.verify(key)?;
        Ok(note.checked()?)
    }

    /// This note with one more signature; the same if it is there already.
    pub fn with(mut self, signature: NoteSignature) -> Result<Self, NoteError> {
        if !self.signatures.contains(&signature) {
            self.signatures.push(signature);
        }
        self.checked()
    }

    /// The bytes that are published.
    pub fn encode(&self) -> String {
        let lines = self.signatures.iter().map(|signature| format!("{signature}\n"));
        format!("{}\n{}", self.text, lines.collect::<String>())
    }

    /// The text, with its last line feed. Says nothing until a trusted key's signature was verified.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The signatures, in their order.
    pub fn signatures(&self) -> &[NoteSignature] {
        &self.signatures
    }

    /// Whether `key`, which signs texts as they are, signed this. A note with a forged line in its name is refused
    /// even if another line of it verifies.
    pub fn verify(&self, key: &VerifierKey) -> Result<(), VerifyError> {
        if key.algorithm() != Algorithm::Ed25519 {
            return Err(VerifyError::Algorithm { name: key.name().clone() });
        }
        self.each_of(key, |bytes| key.verify(self.text.as_bytes(), bytes.try_into().ok()?).then_some(()))?;
        Ok(())
    }

    /// What `check` makes of each line that bears `key`'s name and id; `None` from it is a forged line.
    pub(super) fn each_of<T>(
        &self,
        key: &VerifierKey,
        check: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, VerifyError> {
        let (name, id) = (key.name(), key.id());
        let own = self.signatures.iter().filter(|signature| signature.name == *name && signature.id == id);
        let checked: Option<Vec<T>> = own.map(|signature| check(&signature.bytes)).collect();
        let checked = checked.ok_or_else(|| VerifyError::Forged { name: name.clone(), id })?;
        if checked.is_empty() { Err(VerifyError::Unsigned { name: name.clone(), id }) } else { Ok(checked) }
    }

    fn checked(self) -> Result<Self, NoteError> {
        if self.signatures.len() > SIGNATURES_MAX {
            return Err(NoteError::TooManySignatures);
        }
        if self.encode().len() > NOTE_SIZE_BYTES_MAX { Err(NoteError::TooLarge) } else { Ok(self) }
    }
}

/// Whether a note can have this text.
fn check_text(text: &str) -> Result<(), NoteError> {
    if text.bytes().any(|byte| byte < b' ' && byte != b'\n') {
        return Err(NoteError::Control);
    }
    if text.ends_with('\n') { Ok(()) } else { Err(NoteError::NoLineFeed) }
}

#[cfg(test)]
mod tests;
