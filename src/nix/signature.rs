//! Nix's Ed25519 public keys and signatures: `name:base64`, one line each.
//!
//! Never holds a private key; signing is `vault`'s. Format: `nix:src/libstore/keys.cc`,
//! `nix:src/libutil/signature/local-keys.cc`.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64;
use ed25519_dalek::VerifyingKey;

use super::base64;

/// Longest key name, in bytes. Nix has no limit; every name is repeated in every narinfo it signed.
pub const KEY_NAME_LEN_MAX: usize = 255;

/// Most signatures on one narinfo or realisation. Each may cost a verification (about 50 µs); real ones
/// have one to three.
pub const SIGNATURES_MAX: usize = 64;

/// Why a text is not a key's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeyNameError {
    #[error("key name is empty")]
    Empty,
    #[error("key name is {found} bytes, at most {KEY_NAME_LEN_MAX} are accepted")]
    TooLong { found: usize },
    #[error("key name has a character that is not printable ASCII, or a space or a `:`")]
    Character,
}

/// Why a text is not a public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParsePublicKeyError {
    #[error("public key has no `name:` in front")]
    NoName,
    #[error("public key is refused: {0}")]
    Name(ParseKeyNameError),
    #[error("public key is not standard base64 with padding after its name")]
    Base64,
    #[error("public key is {found} bytes, an Ed25519 public key is 32")]
    Length { found: usize },
    #[error("public key is not a point of Ed25519 that can be trusted")]
    Point,
}

/// Why a text is not a signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseSignatureError {
    #[error("signature has no `name:` in front")]
    NoName,
    #[error("signature is refused: {0}")]
    Name(ParseKeyNameError),
    #[error("signature is not standard base64 with padding after its key name")]
    Base64,
    #[error("signature is {found} bytes, an Ed25519 signature is 64")]
    Length { found: usize },
}

/// The name of a key: not empty, printable ASCII without space and `:`, at most 255 bytes.
///
/// Clients look keys up by name, and only the first trusted key of a name counts.
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
        if !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':') {
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

/// A named Ed25519 public key, as it stands in `trusted-public-keys`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PublicKey {
    name: KeyName,
    key: VerifyingKey,
}

impl PublicKey {
    /// Takes 32 bytes that encode a point of Ed25519 canonically and not of small order.
    ///
    /// libsodium refuses the others at each verification; refusing them here says so before anybody
    /// relies on such a key.
    pub fn new(name: KeyName, bytes: &[u8; 32]) -> Result<Self, ParsePublicKeyError> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| ParsePublicKeyError::Point)?;
        let canonical = key.to_edwards().compress().to_bytes() == *bytes;
        if canonical && !key.is_weak() { Ok(Self { name, key }) } else { Err(ParsePublicKeyError::Point) }
    }

    /// The name that its signatures bear.
    pub fn name(&self) -> &KeyName {
        &self.name
    }

    /// The 32 bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }

    /// Whether `signature` bears this key's name and is this key's over `message`.
    ///
    /// Strict, as libsodium is (which Nix verifies with): S below the group order, R not of small
    /// order, the equation without cofactor. Every honest signature passes, none can be altered into
    /// a second one, and what passes here passes in Nix.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> bool {
        let detached = ed25519_dalek::Signature::from_bytes(&signature.bytes);
        self.name == signature.name && self.key.verify_strict(message, &detached).is_ok()
    }
}

/// Whether each of `batch` is its key's signature over its message, at about a third of what asking one by one costs;
/// does not say which is not.
///
/// A signature that only differs by a point of small order from one that [`PublicKey::verify`] takes may pass here: a
/// spelling that nobody but the key's holder can make, and that Nix refuses.
pub fn verify_all<'a>(batch: impl IntoIterator<Item = (&'a PublicKey, &'a [u8], &'a Signature)>) -> bool {
    let (mut messages, mut signatures, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    for (key, message, signature) in batch {
        if key.name != signature.name {
            return false;
        }
        messages.push(message);
        signatures.push(ed25519_dalek::Signature::from_bytes(&signature.bytes));
        keys.push(key.key);
    }
    messages.is_empty() || ed25519_dalek::verify_batch(&messages, &signatures, &keys).is_ok()
}

impl FromStr for PublicKey {
    type Err = ParsePublicKeyError;

    fn from_str(text: &str) -> Result<Self, ParsePublicKeyError> {
        let (name, bytes) = text.split_once(':').ok_or(ParsePublicKeyError::NoName)?;
        let name = name.parse().map_err(ParsePublicKeyError::Name)?;
        let bytes = base64::decode(bytes).ok_or(ParsePublicKeyError::Base64)?;
        let bytes: &[u8; 32] =
            bytes.as_slice().try_into().map_err(|_| ParsePublicKeyError::Length { found: bytes.len() })?;
        Self::new(name, bytes)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, BASE64.encode(self.bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A signature and the name of the key that claims to have made it. Says nothing until
/// [`PublicKey::verify`].
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Signature {
    pub name: KeyName,
    pub bytes: [u8; 64],
}

impl Signature {
    /// Reads the base64 half, as it stands in columns and leaves.
    pub fn from_parts(name: KeyName, bytes: &str) -> Result<Self, ParseSignatureError> {
        let bytes = base64::decode(bytes).ok_or(ParseSignatureError::Base64)?;
        let bytes =
            bytes.as_slice().try_into().map_err(|_| ParseSignatureError::Length { found: bytes.len() })?;
        Ok(Self { name, bytes })
    }

    /// The base64 half.
    pub fn base64(&self) -> String {
        BASE64.encode(&self.bytes)
    }

    /// The printed forms of `signatures`, in Nix's order (bytewise), each once.
    pub(super) fn sorted_texts(signatures: &[Self]) -> std::collections::BTreeSet<String> {
        signatures.iter().map(Self::to_string).collect()
    }
}

impl FromStr for Signature {
    type Err = ParseSignatureError;

    fn from_str(text: &str) -> Result<Self, ParseSignatureError> {
        let (name, base64) = text.split_once(':').ok_or(ParseSignatureError::NoName)?;
        Self::from_parts(name.parse().map_err(ParseSignatureError::Name)?, base64)
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.base64())
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};
    use proptest::prelude::*;

    use super::*;

    // Made by Nix 2.8 with a throwaway key; the second half of the secret file is the public key.
    const SECRET: &str =
        "uamXrYRALJLi2oaBhwBb9pdqcbKLEyLCrmYNvc8vmmGpulNzUJXvNm28dCiC85srA7yQeiMp34JIK+zqxgwYQw==";
    const MESSAGE: &str = "1;/nix/store/mmjhp110f3wf5kp5q70rc7p49yln4qzy-aaa-1.0;\
         sha256:073hsc8a7q3pk73qcgq6rg25cza44y9xzdi8sp49q9hhja941hj7;1072;";
    const SIGNATURE: &str = "cache.example-1:\
         Ym3M6sOHhaUbrW0unj6JYlpecPA/7PQhABjdrWlFwZh+pOOCMwvV77X6qm8Ct5smYPO9zxPWEXAdc6EAoBrQAg==";

    fn example_key() -> PublicKey {
        let secret = BASE64.decode(SECRET.as_bytes()).unwrap();
        PublicKey::new("cache.example-1".parse().unwrap(), secret[32..].try_into().unwrap()).unwrap()
    }

    #[test]
    fn what_nix_signed_verifies_and_is_signed_alike() {
        let secret = BASE64.decode(SECRET.as_bytes()).unwrap();
        let signing = SigningKey::from_bytes(secret[..32].try_into().unwrap());
        let signature: Signature = SIGNATURE.parse().unwrap();

        assert!(example_key().verify(MESSAGE.as_bytes(), &signature));
        assert_eq!(signing.sign(MESSAGE.as_bytes()).to_bytes(), signature.bytes);
        assert_eq!(signature.to_string(), SIGNATURE);
    }

    #[test]
    fn a_changed_message_signature_or_name_does_not_verify() {
        let signature: Signature = SIGNATURE.parse().unwrap();
        let key = example_key();
        let other = PublicKey::new("cache.example-2".parse().unwrap(), key.bytes()).unwrap();

        assert!(!key.verify(format!("{MESSAGE} ").as_bytes(), &signature));
        assert!(!other.verify(MESSAGE.as_bytes(), &signature));
        for bit in 0..512 {
            let mut changed = signature.clone();
            changed.bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.verify(MESSAGE.as_bytes(), &changed), "bit {bit}");
        }
    }

    #[test]
    fn a_batch_is_true_only_if_each_of_it_is() {
        let signed = |seed: u8| {
            let signing = SigningKey::from_bytes(&[seed; 32]);
            let name: KeyName = format!("key-{}", seed % 3).parse().unwrap();
            let key = PublicKey::new(name.clone(), signing.verifying_key().as_bytes()).unwrap();
            let message = vec![seed; usize::from(seed)];
            let signature = Signature { name, bytes: signing.sign(&message).to_bytes() };
            (key, message, signature)
        };
        let batch: Vec<_> = (0..40).map(signed).collect();
        let check = |batch: &[(PublicKey, Vec<u8>, Signature)]| {
            verify_all(batch.iter().map(|(key, message, signature)| (key, &message[..], signature)))
        };

        assert!(check(&[]) && check(&batch[..1]) && check(&batch));
        for change in 0..4 {
            let mut changed = batch.clone();
            match change {
                0 => changed[17].2.bytes[3] ^= 1,
                1 => changed[17].2.bytes[40] ^= 1,
                2 => changed[17].1.push(0),
                _ => changed[17].2.name = "other".parse().unwrap(),
            }
            assert!(!check(&changed), "{change}");
        }
    }

    #[test]
    fn a_signature_whose_scalar_was_raised_by_the_group_order_does_not_verify() {
        const ORDER: [u8; 32] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
        ];
        let mut signature: Signature = SIGNATURE.parse().unwrap();

        let mut carry = 0u16;
        for (byte, order) in signature.bytes[32..].iter_mut().zip(ORDER) {
            let sum = u16::from(*byte) + u16::from(order) + carry;
            *byte = sum as u8;
            carry = sum >> 8;
        }

        assert_eq!(carry, 0);
        assert!(!example_key().verify(MESSAGE.as_bytes(), &signature));
    }

    #[test]
    fn keys_under_which_anything_verifies_are_refused() {
        let mut one = [0; 32];
        one[0] = 1;
        // y = p + 3: the point of y = 3, of large order, spelled a second way.
        let mut second_spelling = [0xff; 32];
        second_spelling[0] = 0xf0;
        second_spelling[31] = 0x7f;
        assert!(VerifyingKey::from_bytes(&second_spelling).is_ok_and(|key| !key.is_weak()));
        // y = 2 is not on the curve.
        let mut off_curve = [0; 32];
        off_curve[0] = 2;

        for bytes in [[0; 32], one, second_spelling, off_curve] {
            let key = PublicKey::new("k".parse().unwrap(), &bytes);
            assert_eq!(key, Err(ParsePublicKeyError::Point), "{bytes:?}");
        }
    }

    #[test]
    fn the_key_of_cache_nixos_org_is_read_and_printed() {
        let text = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
        assert_eq!(text.parse::<PublicKey>().unwrap().to_string(), text);
    }

    #[test]
    fn names_that_would_break_a_line_or_a_list_are_refused() {
        for name in ["", " ", "a b", " a", "a\n", "a\t", "a:b", "ü", "a\u{7f}", &"x".repeat(256)] {
            assert!(name.parse::<KeyName>().is_err(), "{name:?}");
        }
        for name in ["a", "main-1", "cache.nixos.org-1", "!~", &"x".repeat(255)] {
            assert!(name.parse::<KeyName>().is_ok(), "{name:?}");
        }
    }

    #[test]
    fn other_signatures_and_keys_are_refused() {
        let sig = SIGNATURE.split_once(':').unwrap().1;
        let raw = BASE64.decode(sig.as_bytes()).unwrap();
        for text in [
            String::new(),
            // Padding in the middle: a second spelling of the same bytes.
            format!("a:{}{}", BASE64.encode(&raw[..1]), BASE64.encode(&raw[1..])),
            ":".into(),
            "a:".into(),
            sig.into(),
            format!(":{sig}"),
            format!("a: {sig}"),
            format!("a:{sig}\n"),
            format!("a:{}", sig.trim_end_matches('=')),
            format!("a:{}", &sig[4..]),
            format!("a:{sig}{sig}"),
            // Spare bits that are not zero: a second spelling of the same bytes.
            format!("a:{}", sig.replace("Ag==", "Ah==")),
            format!("a:{}", sig.replace('/', "_")),
        ] {
            assert!(text.parse::<Signature>().is_err(), "{text:?}");
            assert!(text.parse::<PublicKey>().is_err(), "{text:?}");
        }
        assert_eq!("a:AAAA".parse::<Signature>(), Err(ParseSignatureError::Length { found: 3 }));
        assert_eq!("a:AAAA".parse::<PublicKey>(), Err(ParsePublicKeyError::Length { found: 3 }));
    }

    proptest! {
        #[test]
        fn what_is_printed_parses(name in "[!-9;-~]{1,255}", seed: [u8; 32], message: Vec<u8>) {
            let signing = SigningKey::from_bytes(&seed);
            let name: KeyName = name.parse().unwrap();
            let key = PublicKey::new(name.clone(), signing.verifying_key().as_bytes()).unwrap();
            let signature = Signature { name, bytes: signing.sign(&message).to_bytes() };

            prop_assert_eq!(key.to_string().parse::<PublicKey>(), Ok(key.clone()));
            prop_assert_eq!(signature.to_string().parse::<Signature>(), Ok(signature.clone()));
            prop_assert!(key.verify(&message, &signature));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = text.parse::<Signature>();
            let _ = text.parse::<PublicKey>();
        }
    }
}
