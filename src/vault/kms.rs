//! A slot secret that a key management service guards: a random slot key, and what the service made of it, which stands
//! in the slot's row.
//!
//! Never talks to the service: `crate::kms` does, and hands the slot key in and out.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64_NOPAD;

use super::memory::{LockedBytes, MemoryError};

/// Longest parameters of a slot, in bytes. KMS makes some 180 bytes of a slot key, which are 240 in base64, and an ARN
/// takes 80: there is room for services that make more of it.
pub const KMS_PARAMS_BYTES_MAX: usize = 2048;

/// The ARN of a key: which one it is, for ever, whatever aliases lead to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmsKeyArn(String);

impl KmsKeyArn {
    /// `arn:aws:kms:eu-central-1:123456789012:key/…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The region that it lies in.
    pub fn region(&self) -> &str {
        self.part(3)
    }

    /// What stands behind `key/`.
    pub fn id(&self) -> &str {
        self.part(5).strip_prefix("key/").unwrap_or_default()
    }

    /// Whether both name the same key. The copies of a multi-Region key in other regions have its material, and so
    /// decrypt what it encrypted.
    pub fn is_same_key(&self, other: &Self) -> bool {
        let multi_region = self.id().starts_with("mrk-");
        self == other || multi_region && [1, 4, 5].iter().all(|&part| self.part(part) == other.part(part))
    }

    fn part(&self, number: usize) -> &str {
        self.0.split(':').nth(number).unwrap_or_default()
    }
}

impl FromStr for KmsKeyArn {
    type Err = ParseKmsParamsError;

    fn from_str(text: &str) -> Result<Self, ParseKmsParamsError> {
        let parts: Vec<&str> = text.split(':').collect();
        let ["arn", partition, "kms", region, account, resource] = parts[..] else {
            return Err(ParseKmsParamsError::Arn);
        };
        let of = |text: &str, allowed: fn(u8) -> bool| {
            (1..=ARN_PART_BYTES_MAX).contains(&text.len())
                && text.bytes().all(|byte| allowed(byte) || byte == b'-')
        };
        let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let is_key = of(partition, word)
            && of(region, word)
            && account.len() == 12
            && account.bytes().all(|byte| byte.is_ascii_digit())
            && resource.strip_prefix("key/").is_some_and(|id| of(id, |byte| byte.is_ascii_alphanumeric()));
        if is_key { Ok(Self(text.to_owned())) } else { Err(ParseKmsParamsError::Arn) }
    }
}

impl fmt::Display for KmsKeyArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a slot's row says: the key, and the slot key as that one encrypted it. Written
/// `$kms$v=1$k=<ARN>$<base64 without padding>`; each value has exactly one spelling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmsParams {
    key: KmsKeyArn,
    ciphertext: Vec<u8>,
}

impl KmsParams {
    /// Refuses what would not be read again.
    pub fn new(key: KmsKeyArn, ciphertext: Vec<u8>) -> Result<Self, ParseKmsParamsError> {
        if ciphertext.is_empty() {
            return Err(ParseKmsParamsError::Shape);
        }
        let params = Self { key, ciphertext };
        match params.to_string().len() {
            found if found > KMS_PARAMS_BYTES_MAX => Err(ParseKmsParamsError::TooLong { found }),
            _ => Ok(params),
        }
    }

    /// The key that encrypted the slot key.
    pub fn key(&self) -> &KmsKeyArn {
        &self.key
    }

    /// The slot key, encrypted.
    pub fn ciphertext(&self) -> &[u8] {
        &self.ciphertext
    }
}

impl fmt::Display for KmsParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}${}", self.key, BASE64_NOPAD.encode(&self.ciphertext))
    }
}

impl FromStr for KmsParams {
    type Err = ParseKmsParamsError;

    fn from_str(text: &str) -> Result<Self, ParseKmsParamsError> {
        if text.len() > KMS_PARAMS_BYTES_MAX {
            return Err(ParseKmsParamsError::TooLong { found: text.len() });
        }
        let rest = text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('$'));
        let (key, ciphertext) = rest.ok_or(ParseKmsParamsError::Shape)?;
        let ciphertext = BASE64_NOPAD.decode(ciphertext.as_bytes());
        let params = Self::new(key.parse()?, ciphertext.map_err(|_| ParseKmsParamsError::Shape)?)?;
        if params.to_string() == text { Ok(params) } else { Err(ParseKmsParamsError::Shape) }
    }
}

/// Why a slot's parameters are refused, before anybody is asked about them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseKmsParamsError {
    #[error("key is not named by an ARN such as `arn:aws:kms:eu-central-1:123456789012:key/…`")]
    Arn,
    #[error("parameters are not of the form `{PREFIX}ARN$ciphertext`")]
    Shape,
    #[error("parameters are {found} bytes, at most {KMS_PARAMS_BYTES_MAX} are taken")]
    TooLong { found: usize },
}

/// A slot key, and the parameters of the one slot that it is of.
pub struct KmsSecret {
    params: KmsParams,
    slot_key: LockedBytes,
}

impl KmsSecret {
    /// The service has said that `slot_key` is what `params` has encrypted. Random, never chosen.
    pub fn new(params: KmsParams, slot_key: LockedBytes) -> Self {
        Self { params, slot_key }
    }

    /// What the slot's row says.
    pub fn params(&self) -> &KmsParams {
        &self.params
    }

    /// A copy of the slot key; `None`: a slot with these parameters has another one.
    pub(super) fn slot_key(&self, params: &KmsParams) -> Result<Option<LockedBytes>, MemoryError> {
        if self.params != *params {
            return Ok(None);
        }
        LockedBytes::copy_of(self.slot_key.expose()).map(Some)
    }
}

impl fmt::Debug for KmsSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KmsSecret([redacted])")
    }
}

const PREFIX: &str = "$kms$v=1$k=";

/// The longest part of an ARN by far is the key's id, of 36 or 40 characters.
const ARN_PART_BYTES_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ARN: &str = "arn:aws:kms:eu-central-1:123456789012:key/1f0e-aB9";

    fn arn(text: &str) -> KmsKeyArn {
        text.parse().unwrap()
    }

    #[test]
    fn an_arn_of_a_key_is_taken_and_nothing_else() {
        let key = arn(ARN);

        assert_eq!((key.region(), key.id(), key.to_string()), ("eu-central-1", "1f0e-aB9", ARN.to_owned()));
        arn("arn:aws-us-gov:kms:us-gov-west-1:000000000000:key/mrk-12");
        for text in [
            "",
            "1f0e-aB9",
            "alias/narvault",
            "arn:aws:kms:eu-central-1:123456789012:alias/narvault",
            "arn:aws:kms:eu-central-1:123456789012:key/",
            "arn:aws:kms:eu-central-1:123456789012:key/a/b",
            "arn:aws:kms:eu-central-1:123456789012:key/a:b",
            "arn:aws:kms:eu-central-1:12345678901:key/a",
            "arn:aws:kms:eu-central-1:12345678901x:key/a",
            "arn:aws:kms::123456789012:key/a",
            "arn:aws:kms:EU:123456789012:key/a",
            "arn:aws:kms:eu.example:123456789012:key/a",
            "arn::kms:eu-central-1:123456789012:key/a",
            "arn:aws:s3:eu-central-1:123456789012:key/a",
            "arn:aws:kms:eu-central-1:123456789012:key/a$",
            " arn:aws:kms:eu-central-1:123456789012:key/a",
        ] {
            assert_eq!(text.parse::<KmsKeyArn>(), Err(ParseKmsParamsError::Arn), "{text:?}");
        }
    }

    #[test]
    fn only_the_copies_of_a_multi_region_key_are_the_same_key() {
        let one = arn("arn:aws:kms:eu-central-1:123456789012:key/mrk-1");
        for (other, same) in [
            ("arn:aws:kms:eu-central-1:123456789012:key/mrk-1", true),
            ("arn:aws:kms:us-east-1:123456789012:key/mrk-1", true),
            ("arn:aws:kms:us-east-1:123456789012:key/mrk-2", false),
            ("arn:aws:kms:us-east-1:999999999999:key/mrk-1", false),
            ("arn:aws-cn:kms:us-east-1:123456789012:key/mrk-1", false),
        ] {
            assert_eq!(one.is_same_key(&arn(other)), same, "{other}");
        }
        assert!(!arn(ARN).is_same_key(&arn(&ARN.replace("eu-central-1", "us-east-1"))));
    }

    #[test]
    fn parameters_have_one_spelling() {
        let params = KmsParams::new(arn(ARN), vec![1, 2, 3, 4]).unwrap();
        let text = format!("$kms$v=1$k={ARN}$AQIDBA");

        assert_eq!(params.to_string(), text);
        assert_eq!(text.parse(), Ok(params));
        for (refused, error) in [
            (String::new(), ParseKmsParamsError::Shape),
            (text.replace("v=1", "v=2"), ParseKmsParamsError::Shape),
            (text.replace("AQIDBA", ""), ParseKmsParamsError::Shape),
            (text.replace("AQIDBA", "AQIDBA=="), ParseKmsParamsError::Shape),
            // The last character has bits that say nothing: they have to be 0.
            (text.replace("AQIDBA", "AQIDBB"), ParseKmsParamsError::Shape),
            (format!("{text} "), ParseKmsParamsError::Shape),
            (format!("{text}$"), ParseKmsParamsError::Shape),
            (format!(" {text}"), ParseKmsParamsError::Shape),
            (text.replace("arn:aws", "arn:"), ParseKmsParamsError::Arn),
            (
                text.replace("AQIDBA", &"A".repeat(KMS_PARAMS_BYTES_MAX)),
                ParseKmsParamsError::TooLong { found: text.len() - 6 + KMS_PARAMS_BYTES_MAX },
            ),
        ] {
            assert_eq!(refused.parse::<KmsParams>(), Err(error), "{refused}");
        }
    }

    #[test]
    fn what_could_not_be_read_again_is_not_written() {
        assert_eq!(KmsParams::new(arn(ARN), vec![]), Err(ParseKmsParamsError::Shape));
        let refused = KmsParams::new(arn(ARN), vec![0; KMS_PARAMS_BYTES_MAX]);
        assert!(matches!(refused, Err(ParseKmsParamsError::TooLong { .. })));
    }

    #[test]
    fn a_secret_prints_nothing_of_its_content() {
        let params = KmsParams::new(arn(ARN), vec![1]).unwrap();
        let secret = KmsSecret::new(params, LockedBytes::copy_of(&[65; 32]).unwrap());

        assert_eq!(format!("{secret:?}"), "KmsSecret([redacted])");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(ciphertext in proptest::collection::vec(any::<u8>(), 1..600)) {
            let params = KmsParams::new(arn(ARN), ciphertext).unwrap();
            prop_assert_eq!(params.to_string().parse::<KmsParams>(), Ok(params));
        }

        #[test]
        fn no_text_panics(text: String, near in "(\\$kms\\$v=1\\$k=)?arn:aws:kms:[a-z:/$=0-9]{0,80}") {
            for text in [text, near] {
                let _ = (text.parse::<KmsParams>(), text.parse::<KmsKeyArn>());
            }
        }
    }
}
