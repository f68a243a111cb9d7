//! Public keys that verify notes, as one word of text: `name+hash+base64` (c2sp.org/signed-note).
//!
//! Never holds a private key. Two of the assigned algorithms are known: Ed25519 over the note's text, which logs sign
//! with, and the timestamped cosignature of witnesses.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE64, HEXLOWER};
use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest as _, Sha256};

/// Longest name of a key, in bytes. The formats have no limit; every signature line repeats it.
pub const KEY_NAME_LEN_MAX: usize = 255;

/// Why a text is not the name of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeyNameError {
    #[error("key name is empty")]
    Empty,
    #[error("key name is {found} bytes, at most {KEY_NAME_LEN_MAX} are accepted")]
    TooLong { found: usize },
    #[error("key name has a space, a `+` or a control character")]
    Character,
}

/// Why a text is not a verifier key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseVerifierKeyError {
    #[error("verifier key is not `name+hash+base64`")]
    Shape,
    #[error("verifier key has a bad name")]
    Name(#[source] ParseKeyNameError),
    #[error("verifier key's last part is not standard base64 with padding")]
    Base64,
    #[error("verifier key is of algorithm {found}, known are 1 (Ed25519) and 4 (cosignature)")]
    Algorithm { found: u8 },
    #[error("verifier key has {found} bytes after its algorithm, an Ed25519 public key is 32")]
    Length { found: usize },
    #[error("verifier key is not a point of Ed25519 that can be trusted")]
    Point,
    #[error("verifier key's hash is not `{expected}`, that of its name and bytes")]
    Id { expected: KeyId },
}

/// The name of a key: not empty, no space of Unicode, no `+`, at most 255 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyName(String);

impl KeyName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyName {
    type Err = ParseKeyNameError;

    fn from_str(text: &str) -> Result<Self, ParseKeyNameError> {
        if text.is_empty() {
            return Err(ParseKeyNameError::Empty);
        }
        if text.len() > KEY_NAME_LEN_MAX {
            return Err(ParseKeyNameError::TooLong { found: text.len() });
        }
        // A note has no control characters but line feeds.
        if text.chars().any(|char| char.is_whitespace() || char.is_control() || char == '+') {
            return Err(ParseKeyNameError::Character);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The first four bytes of a hash over name, algorithm and public key: tells keys of one name apart. Too short to
/// prove anything; who has the key has the whole of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub [u8; 4]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a key signs, by the number that the format assigns to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Ed25519 over the note's text.
    Ed25519 = 1,
    /// Ed25519 over a time and the text of a checkpoint (c2sp.org/tlog-cosignature).
    Cosignature = 4,
}

/// A named public key.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: KeyName,
    algorithm: Algorithm,
    key: VerifyingKey,
}

impl VerifierKey {
    /// Takes 32 bytes that encode a point of Ed25519 canonically and not of small order; under the others anybody
    /// could sign something.
    pub fn new(name: KeyName, algorithm: Algorithm, bytes: &[u8; 32]) -> Result<Self, ParseVerifierKeyError> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| ParseVerifierKeyError::Point)?;
        let canonical = key.to_edwards().compress().to_bytes() == *bytes;
        if canonical && !key.is_weak() {
            Ok(Self { name, algorithm, key })
        } else {
            Err(ParseVerifierKeyError::Point)
        }
    }

    /// The name that stands on its signatures' lines.
    pub fn name(&self) -> &KeyName {
        &self.name
    }

    /// What it signs.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The 32 bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }

    /// What stands before the bytes of its signatures.
    pub fn id(&self) -> KeyId {
        let hash = Sha256::new()
            .chain_update(self.name.as_str())
            .chain_update([b'\n', self.algorithm as u8])
            .chain_update(self.bytes())
            .finalize();
        KeyId([hash[0], hash[1], hash[2], hash[3]])
    }

    /// Whether these 64 bytes are this key's signature over `message`: strictly, so that a signature has no second
    /// spelling.
    pub(super) fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.key.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
    }
}

impl FromStr for VerifierKey {
    type Err = ParseVerifierKeyError;

    fn from_str(text: &str) -> Result<Self, ParseVerifierKeyError> {
        let (name, rest) = text.split_once('+').ok_or(ParseVerifierKeyError::Shape)?;
        let (id, base64) = rest.split_once('+').ok_or(ParseVerifierKeyError::Shape)?;
        let name = name.parse().map_err(ParseVerifierKeyError::Name)?;
        let bytes = super::base64::decode(base64).ok_or(ParseVerifierKeyError::Base64)?;
        let algorithm = match bytes.first() {
            Some(1) => Algorithm::Ed25519,
            Some(4) => Algorithm::Cosignature,
            Some(&found) => return Err(ParseVerifierKeyError::Algorithm { found }),
            None => return Err(ParseVerifierKeyError::Shape),
        };
        let length = ParseVerifierKeyError::Length { found: bytes.len() - 1 };
        let key = Self::new(name, algorithm, bytes[1..].try_into().map_err(|_| length)?)?;
        let expected = key.id();
        if expected.to_string() == id { Ok(key) } else { Err(ParseVerifierKeyError::Id { expected }) }
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&[self.algorithm as u8], &self.bytes()[..]].concat();
        write!(f, "{}+{}+{}", self.name, self.id(), BASE64.encode(&bytes))
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the documentation of `golang.org/x/mod/sumdb/note`.
    const PETER: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";

    fn check(text: &str, error: ParseVerifierKeyError) {
        assert_eq!(text.parse::<VerifierKey>(), Err(error), "{text}");
    }

    #[test]
    fn a_key_of_others_is_read_and_written_alike() {
        let key: VerifierKey = PETER.parse().unwrap();

        assert_eq!(key.name().as_str(), "PeterNeumann");
        assert_eq!(key.id().to_string(), "c74f20a3");
        assert_eq!(key.algorithm(), Algorithm::Ed25519);
        assert_eq!(key.to_string(), PETER);
    }

    #[test]
    fn the_same_bytes_as_a_witness_are_another_key() {
        let log: VerifierKey = PETER.parse().unwrap();
        let witness = VerifierKey::new(log.name().clone(), Algorithm::Cosignature, log.bytes()).unwrap();

        assert_ne!(witness.id(), log.id());
        assert_eq!(witness.to_string().parse(), Ok(witness.clone()));
        assert_ne!(witness, log);
    }

    #[test]
    fn what_is_not_a_key_is_refused_with_its_reason() {
        let expected = PETER.parse::<VerifierKey>().unwrap().id();
        check("", ParseVerifierKeyError::Shape);
        check("name", ParseVerifierKeyError::Shape);
        check("name+c74f20a3", ParseVerifierKeyError::Shape);
        check("name+c74f20a3+", ParseVerifierKeyError::Shape);
        check(&PETER[12..], ParseVerifierKeyError::Name(ParseKeyNameError::Empty));
        check(&PETER.replace("Neumann", " N"), ParseVerifierKeyError::Name(ParseKeyNameError::Character));
        check(&format!("{PETER}="), ParseVerifierKeyError::Base64);
        check(&format!("{PETER} "), ParseVerifierKeyError::Base64);
        check(&PETER.replace("+ARpc", "+AhpcA"), ParseVerifierKeyError::Base64);
        check(&PETER.replace("+AR", "+Ah"), ParseVerifierKeyError::Algorithm { found: 2 });
        check(&PETER[..PETER.len() - 4], ParseVerifierKeyError::Length { found: 29 });
        check(&PETER.replace("c74f20a3", "C74F20A3"), ParseVerifierKeyError::Id { expected });
        check(&PETER.replace("c74f20a3", "c74f20a4"), ParseVerifierKeyError::Id { expected });
        check(&PETER.replace("c74f20a3", "0c74f20a3"), ParseVerifierKeyError::Id { expected });
    }

    #[test]
    fn a_point_of_small_order_is_refused() {
        for bytes in [
            [0; 32],
            {
                let mut one = [0; 32];
                one[0] = 1;
                one
            },
            [0xff; 32],
        ] {
            let made = VerifierKey::new("log".parse().unwrap(), Algorithm::Ed25519, &bytes);
            assert_eq!(made, Err(ParseVerifierKeyError::Point), "{bytes:?}");
        }
    }

    #[test]
    fn names_that_a_note_cannot_carry_are_refused() {
        for name in ["a b", "a+b", "a\u{a0}b", "a\u{2003}b", "a\tb", "a\nb", "\u{3000}", "a\u{7f}"] {
            assert_eq!(name.parse::<KeyName>(), Err(ParseKeyNameError::Character), "{name:?}");
        }
        let long = "n".repeat(256);
        assert_eq!(long.parse::<KeyName>(), Err(ParseKeyNameError::TooLong { found: 256 }));
        assert_eq!("".parse::<KeyName>(), Err(ParseKeyNameError::Empty));
        assert!(long[1..].parse::<KeyName>().is_ok());
        assert!("narvault-log-è/1".parse::<KeyName>().is_ok());
    }
}
