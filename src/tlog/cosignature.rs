//! Cosignatures: a witness says that at some time it had seen no other tree of a log than one that this checkpoint
//! goes on from (c2sp.org/tlog-cosignature, the Ed25519 kind).
//!
//! Never makes one: narvault is a log, not a witness.

use super::checkpoint::Checkpoint;
use super::note::{Note, VerifyError};
use super::verifier_key::{Algorithm, VerifierKey};

/// What is signed: the text of a checkpoint after a line that no note begins with, and the time.
fn message(timestamp_seconds: u64, text: &str) -> String {
    format!("cosignature/v1\ntime {timestamp_seconds}\n{text}")
}

/// When `witness` cosigned this checkpoint, in seconds of Unix time: the latest, if it did so more than once. A
/// note that has a forged line in its name, or is not a checkpoint, is refused.
pub fn verify(note: &Note, witness: &VerifierKey) -> Result<u64, VerifyError> {
    if witness.algorithm() != Algorithm::Cosignature {
        return Err(VerifyError::Algorithm { name: witness.name().clone() });
    }
    let is_checkpoint = Checkpoint::parse(note.text()).is_ok();
    let times = note.each_of(witness, |bytes| {
        let (timestamp, signature) = bytes.split_first_chunk::<8>()?;
        let seconds = u64::from_be_bytes(*timestamp);
        let in_range = i64::try_from(seconds).is_ok();
        let message = message(seconds, note.text());
        let verifies = witness.verify(message.as_bytes(), signature.try_into().ok()?);
        (is_checkpoint && in_range && verifies).then_some(seconds)
    })?;
    Ok(times.into_iter().max().unwrap_or_default())
}

#[cfg(test)]
mod tests;
