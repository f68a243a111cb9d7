//! The text of `nix key generate-secret`, read for import: `name:base64(seed ‖ public key)`.
//!
//! Never repeats any part of the text in an error, and cannot be written back: there is no export.

use std::fmt;

use data_encoding::BASE64;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::memory::{LockedBytes, MemoryError, SECRET_BYTES};

/// Longest text that is looked at: the key is 88 characters, the rest is room for the name.
pub const NIX_KEY_BYTES_MAX: usize = 1024;

/// A Nix secret key whose halves agree.
pub struct NixSecretKey {
    name: String,
    seed: LockedBytes,
    public_key: [u8; 32],
}

impl NixSecretKey {
    /// Reads the text. White space at its end (a file's newline) is dropped; in front it is refused, because Nix takes
    /// it as part of the name and then signs under a name that nobody trusts (`nix:src/libstore/keys.cc`).
    pub fn parse(text: &str) -> Result<Self, ParseNixKeyError> {
        if text.len() > NIX_KEY_BYTES_MAX {
            return Err(ParseNixKeyError::TooLong { found: text.len() });
        }
        if text.starts_with(char::is_whitespace) {
            return Err(ParseNixKeyError::LeadingSpace);
        }
        let (name, base64) = text.trim_end().split_once(':').ok_or(ParseNixKeyError::MissingName)?;
        if name.is_empty() {
            return Err(ParseNixKeyError::MissingName);
        }
        if name.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(ParseNixKeyError::Name);
        }

        let pair = decode(base64.as_bytes())?;
        let (seed, public_key) = pair.split_at(SECRET_BYTES);
        let seed = LockedBytes::copy_of(seed.try_into().expect("32 bytes: split above"))?;
        let derived = ed25519_dalek::SigningKey::from_bytes(seed.expose()).verifying_key().to_bytes();
        if !bool::from(derived.as_slice().ct_eq(public_key)) {
            return Err(ParseNixKeyError::Halves);
        }
        Ok(Self { name: name.to_owned(), seed, public_key: derived })
    }

    /// What stands before the colon: the name that clients trust.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The public half.
    pub fn public_key(&self) -> &[u8; 32] {
        &self.public_key
    }

    pub(super) fn seed(&self) -> &LockedBytes {
        &self.seed
    }
}

impl fmt::Debug for NixSecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NixSecretKey([redacted])")
    }
}

/// Why a text is not a Nix secret key: its shape, never its content.
#[derive(Debug, thiserror::Error)]
pub enum ParseNixKeyError {
    #[error("secret key is not base-64 with padding after the `name:`")]
    Base64,
    #[error("secret key's public half is not the one that its seed makes")]
    Halves,
    #[error("secret key has white space in front, which Nix would take as part of the name")]
    LeadingSpace,
    #[error("no page of memory for a secret")]
    Memory(#[from] MemoryError),
    #[error("secret key has no `name:` in front")]
    MissingName,
    #[error("secret key's name has white space or control characters in it")]
    Name,
    #[error("text is {found} bytes, a secret key is at most {NIX_KEY_BYTES_MAX}")]
    TooLong { found: usize },
    #[error("secret key is {found} bytes, expected 64")]
    WrongLength { found: usize },
}

/// Decodes into memory that is wiped, also when the text turns out bad half way.
fn decode(base64: &[u8]) -> Result<Zeroizing<Vec<u8>>, ParseNixKeyError> {
    let room = BASE64.decode_len(base64.len()).map_err(|_| ParseNixKeyError::Base64)?;
    let mut bytes = Zeroizing::new(vec![0; room]);
    let found = BASE64.decode_mut(base64, &mut bytes).map_err(|_| ParseNixKeyError::Base64)?;
    if found != 2 * SECRET_BYTES {
        return Err(ParseNixKeyError::WrongLength { found });
    }
    // The decoder takes padding in the middle, too, where Nix would end: 64 bytes have one spelling.
    if base64.iter().position(|&byte| byte == b'=') != Some(86) {
        return Err(ParseNixKeyError::Base64);
    }
    bytes.truncate(found);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NIX_KEY: &str = "cache.example-1:uamXrYRALJLi2oaBhwBb9pdqcbKLEyLCrmYNvc8vmmGpulNzUJXvNm28dCiC85srA7yQeiMp34JIK+zqxgwYQw==";

    fn with_key(bytes: &[u8]) -> String {
        format!("main-1:{}", BASE64.encode(bytes))
    }

    #[test]
    fn what_nix_writes_is_read_with_or_without_a_line_end() {
        for end in ["", "\n", "\r\n", " \n"] {
            let key = NixSecretKey::parse(&format!("{NIX_KEY}{end}")).unwrap();

            assert_eq!(key.name(), "cache.example-1");
            assert_eq!(BASE64.encode(key.public_key()), "qbpTc1CV7zZtvHQogvObKwO8kHojKd+CSCvs6sYMGEM=");
        }
    }

    #[test]
    fn other_shapes_are_refused_without_repeating_them() {
        let key = NIX_KEY.strip_prefix("cache.example-1:").unwrap();
        let refusals = [
            (String::new(), "no `name:`"),
            (key.to_owned(), "no `name:`"),
            (format!(":{key}"), "no `name:`"),
            (format!(" {NIX_KEY}"), "white space in front"),
            (format!("\n{NIX_KEY}"), "white space in front"),
            (format!("my cache:{key}"), "white space or control"),
            (format!("main\u{7}:{key}"), "white space or control"),
            (format!("main-1:{}", key.trim_end_matches('=')), "not base-64"),
            (format!("main-1: {key}"), "not base-64"),
            (format!("main-1:{key}{key}"), "is 128 bytes, expected 64"),
            (format!("main-1:{}{}", BASE64.encode(&[7; 31]), BASE64.encode(&[7; 33])), "not base-64"),
            (format!("main-1:{}{}", BASE64.encode(&[7; 1]), BASE64.encode(&[7; 63])), "not base-64"),
            (format!("main-1:{}", key.replace('+', "-")), "not base-64"),
            ("main-1:".to_owned(), "is 0 bytes, expected 64"),
            (with_key(&[7; 32]), "is 32 bytes, expected 64"),
            (with_key(&[7; 63]), "is 63 bytes, expected 64"),
            (with_key(&[7; 65]), "is 65 bytes, expected 64"),
            (with_key(&[7; 66]), "is 66 bytes, expected 64"),
            (with_key(&[7; 64]), "public half"),
            (format!("{}:{key}", "n".repeat(1000)), "at most 1024"),
        ];
        for (text, expected) in refusals {
            let refusal = NixSecretKey::parse(&text).unwrap_err();

            assert!(refusal.to_string().contains(expected), "{refusal} for {text:?}");
            for shown in [refusal.to_string(), format!("{refusal:?}")] {
                assert!(!shown.contains(&key[..8]) && !shown.contains("BwcH"), "{shown}");
            }
        }
    }

    #[test]
    fn a_nix_key_prints_nothing_of_its_content() {
        assert_eq!(format!("{:?}", NixSecretKey::parse(NIX_KEY).unwrap()), "NixSecretKey([redacted])");
    }

    proptest! {
        #[test]
        fn any_seed_with_its_public_half_is_read(seed: [u8; 32]) {
            let pair = ed25519_dalek::SigningKey::from_bytes(&seed).to_keypair_bytes();

            let key = NixSecretKey::parse(&with_key(&pair)).unwrap();

            prop_assert_eq!(key.seed().expose(), &seed);
            prop_assert_eq!(key.public_key().as_slice(), &pair[32..]);
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,120}|[a-z]{1,5}:[A-Za-z0-9+/]{86}==") {
            let _ = NixSecretKey::parse(&text);
        }
    }
}
