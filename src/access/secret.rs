//! Texts that are worth as much as the right they carry: tokens (`nvt_…`) and one-time claim secrets (`nvb_…`).
//!
//! Never printed: `Debug` says `[redacted]`, there is no `Display`, and the memory is cleared when dropped. The fixed
//! prefixes let secret scanners find leaked ones.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};

/// What a token begins with when it is given out. Accepted without it too.
pub const TOKEN_PREFIX: &str = "nvt_";

/// The longest token text that is looked at, in bytes. Ours are below 1.5 KiB.
pub const TOKEN_LENGTH_MAX: usize = 8 * 1024;

/// What a one-time claim secret begins with.
pub const CLAIM_PREFIX: &str = "nvb_";

/// The random bytes in a claim secret: 160 bits, 32 characters, no spare bits.
pub const CLAIM_SECRET_BYTES: usize = 20;

/// Why a text cannot be a token. Never holds any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenTextError {
    #[error("token is empty")]
    Empty,
    #[error("token is {found} bytes, at most {TOKEN_LENGTH_MAX} are looked at")]
    TooLong { found: usize },
    #[error("token is not three base64url parts with dots between")]
    Shape,
}

/// The text of a token, shaped like a JWT, unverified.
#[derive(Clone)]
pub struct TokenText(SecretString);

impl TokenText {
    /// The whole text, with its prefix: shown once, to the one it was issued for.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// The three parts between the dots: header, claims, signature.
    pub(super) fn parts(&self) -> (&str, &str, &str) {
        let jwt = &self.expose()[TOKEN_PREFIX.len()..];
        let (message, signature) = jwt.rsplit_once('.').expect("two dots: checked when parsed");
        let (header, claims) = message.split_once('.').expect("two dots: checked when parsed");
        (header, claims, signature)
    }

    /// What the signature covers: header, dot, claims.
    pub(super) fn message(&self) -> &str {
        let jwt = &self.expose()[TOKEN_PREFIX.len()..];
        jwt.rsplit_once('.').expect("two dots: checked when parsed").0
    }
}

impl FromStr for TokenText {
    type Err = TokenTextError;

    /// Accepts a JWT's shape with or without `nvt_`. Nothing is trimmed.
    fn from_str(text: &str) -> Result<Self, TokenTextError> {
        if text.is_empty() {
            return Err(TokenTextError::Empty);
        }
        if text.len() > TOKEN_LENGTH_MAX {
            return Err(TokenTextError::TooLong { found: text.len() });
        }
        let jwt = text.strip_prefix(TOKEN_PREFIX).unwrap_or(text);
        let base64url = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        if jwt.split('.').count() != 3 || !jwt.split('.').all(base64url) {
            return Err(TokenTextError::Shape);
        }
        Ok(Self(format!("{TOKEN_PREFIX}{jwt}").into()))
    }
}

impl fmt::Debug for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenText([redacted])")
    }
}

/// Why a text is not a claim secret. Never holds any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("claim secret is not `nvb_` and 32 lower-case base-32 characters")]
pub struct ParseClaimSecretError;

/// A one-time secret that is exchanged for the first admin token. Only its [`ClaimSecret::sha256`] is stored; a
/// fast hash is enough, because 160 random bits cannot be guessed.
#[derive(Clone)]
pub struct ClaimSecret(SecretString);

impl ClaimSecret {
    /// The secret made of `random` bytes.
    pub fn new(random: [u8; CLAIM_SECRET_BYTES]) -> Self {
        Self(format!("{CLAIM_PREFIX}{}", BASE32_NOPAD.encode(&random).to_ascii_lowercase()).into())
    }

    /// The whole text: printed once.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// SHA-256 of the whole text: what is stored and looked up.
    pub fn sha256(&self) -> [u8; 32] {
        Sha256::digest(self.expose()).into()
    }
}

impl FromStr for ClaimSecret {
    type Err = ParseClaimSecretError;

    fn from_str(text: &str) -> Result<Self, ParseClaimSecretError> {
        let random = text.strip_prefix(CLAIM_PREFIX).ok_or(ParseClaimSecretError)?;
        let symbol = |byte: u8| matches!(byte, b'a'..=b'z' | b'2'..=b'7');
        // Eight bits for each eight fifths of a character.
        if random.len() != CLAIM_SECRET_BYTES * 8 / 5 || !random.bytes().all(symbol) {
            return Err(ParseClaimSecretError);
        }
        Ok(Self(text.to_owned().into()))
    }
}

impl fmt::Debug for ClaimSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClaimSecret([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_is_the_same_with_and_without_its_prefix() {
        let bare: TokenText = "aa.bb.cc".parse().unwrap();
        let prefixed: TokenText = "nvt_aa.bb.cc".parse().unwrap();

        assert_eq!(bare.expose(), "nvt_aa.bb.cc");
        assert_eq!(prefixed.expose(), "nvt_aa.bb.cc");
        assert_eq!(prefixed.parts(), ("aa", "bb", "cc"));
        assert_eq!(prefixed.message(), "aa.bb");
    }

    #[test]
    fn a_token_at_the_limit_is_looked_at_and_one_byte_more_is_not() {
        let at_limit = format!("a.b.{}", "c".repeat(TOKEN_LENGTH_MAX - 4));

        assert!(at_limit.parse::<TokenText>().is_ok());
        let found = TOKEN_LENGTH_MAX + 1;
        assert_eq!(
            format!("{at_limit}c").parse::<TokenText>().unwrap_err(),
            TokenTextError::TooLong { found }
        );
    }

    #[test]
    fn secrets_do_not_print_themselves() {
        let token: TokenText = "nvt_aaaa.bbbb.cccc".parse().unwrap();
        let claim = ClaimSecret::new([7; CLAIM_SECRET_BYTES]);

        for text in [format!("{token:?}"), format!("{token:#?}"), format!("{claim:?}"), format!("{claim:#?}")]
        {
            assert!(text.ends_with("([redacted])"), "{text}");
        }
    }

    #[test]
    fn a_claim_secret_is_stored_as_the_hash_of_its_text() {
        let claim = ClaimSecret::new([0; CLAIM_SECRET_BYTES]);

        assert_eq!(claim.expose(), "nvb_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
        assert_eq!(claim.sha256(), <[u8; 32]>::from(Sha256::digest(claim.expose().as_bytes())));
    }

    #[test]
    fn other_claim_secrets_are_refused() {
        let good = "nvb_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
        assert!(good.parse::<ClaimSecret>().is_ok());
        for text in [
            "",
            "nvb_",
            &good[4..],
            &good[..35],
            &format!("{good}a"),
            &format!(" {good}"),
            &format!("{good}\n"),
            &good.to_uppercase(),
            &good.replace("nvb_", "nvt_"),
            &good.replace("aaaa", "1aaa"),
            &good.replace("aa", "é"),
        ] {
            assert!(text.parse::<ClaimSecret>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn claim_secrets_parse_back(random: [u8; CLAIM_SECRET_BYTES]) {
            let claim = ClaimSecret::new(random);
            let parsed: ClaimSecret = claim.expose().parse().unwrap();
            prop_assert_eq!(parsed.sha256(), claim.sha256());
        }

        #[test]
        fn no_text_panics(text: String, near in "(nvt_|nvb_)?[a-z._-]{0,12}") {
            for text in [text, near] {
                if let Ok(token) = text.parse::<TokenText>() {
                    let _ = (token.parts(), token.message());
                }
                let _ = text.parse::<ClaimSecret>();
            }
        }
    }
}
