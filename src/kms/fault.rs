//! What the service's refusals and silences mean, and what to do about each.
//!
//! Never carries a request, or more of an answer than its code and one line.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};

use super::KmsKeyId;
use crate::vault::KmsKeyArn;
use crate::vault::kms::ParseKmsParamsError;
use crate::vault::memory::MemoryError;

/// Why a slot key was not encrypted or decrypted.
#[derive(Debug, thiserror::Error)]
pub enum KmsError {
    #[error("KMS's answer is of no use: {0}")]
    Answer(&'static str),
    #[error("KMS's answer is of no use")]
    AnswerParams(#[from] ParseKmsParamsError),
    /// Also the answer to a slot that was copied from another cluster or under another id: the context differs.
    #[error(
        "KMS does not decrypt this slot's key with {key}: the row was altered, or is that of another slot or cluster"
    )]
    Ciphertext { key: String },
    #[error(
        "KMS does not let this server use {key} ({said}): allow its credentials `kms:Encrypt` and `kms:Decrypt`, in \
         the key's policy or in theirs"
    )]
    Denied { key: String, said: String },
    #[error("KMS key {key} is disabled: enable it, or open the vault by another slot")]
    Disabled { key: String },
    #[error("KMS key {key} does not encrypt: a symmetric key for encryption and decryption is needed")]
    KeyUsage { key: String },
    #[error("no page of memory for a secret")]
    Memory(#[from] MemoryError),
    #[error(
        "no usable AWS credentials were found: give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile, and \
         outside EC2 set AWS_EC2_METADATA_DISABLED=true"
    )]
    NoCredentials,
    #[error("no region is known to ask KMS in: set `vault.kms.region`, or name the key by its ARN")]
    NoRegion,
    #[error(
        "KMS has no key {key} ({said}): look at the name, the region and the account; one that was deleted is gone"
    )]
    NotFound { key: String, said: String },
    #[error(
        "this slot was made with the KMS key {made_with}, and {asked} is another one now: set `vault.kms.key_id` to \
         that ARN, or add a slot of the new key"
    )]
    OtherKey { asked: String, made_with: KmsKeyArn },
    #[error(
        "KMS key {key} is scheduled for deletion: cancel that and enable the key, or open the vault by another slot and \
         remove this one; once deleted, it never decrypts again"
    )]
    PendingDeletion { key: String },
    #[error("KMS refuses: {said}")]
    Refused { said: String },
    #[error("KMS key {key} cannot be used now: {said}")]
    State { key: String, said: String },
    #[error("KMS cannot answer now: {said}")]
    Unavailable { said: String },
    #[error("KMS does not answer: {said}")]
    Unreachable { said: String },
}

impl KmsError {
    /// Whether the service itself is not there: every other key fares the same.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Unreachable { .. })
    }

    /// Whether the same call may succeed later with nothing changed in narvault: a service that comes back, a key that
    /// somebody enables, rights that somebody grants.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Denied { .. }
            | Self::Disabled { .. }
            | Self::NoCredentials
            | Self::NotFound { .. }
            | Self::OtherKey { .. }
            | Self::PendingDeletion { .. }
            | Self::State { .. } => true,
            Self::Unavailable { .. } | Self::Unreachable { .. } => true,
            Self::Answer(_)
            | Self::AnswerParams(_)
            | Self::Ciphertext { .. }
            | Self::KeyUsage { .. }
            | Self::Memory(_)
            | Self::NoRegion
            | Self::Refused { .. } => false,
        }
    }
}

/// A failed call, reduced to what may be shown.
#[derive(Debug)]
pub(super) struct Fault {
    /// The answer's HTTP status, if there was an answer.
    status: Option<u16>,
    code: String,
    said: String,
    is_without_credentials: bool,
}

impl Fault {
    pub(super) fn of<E>(error: SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let status = error.raw_response().map(|answer| answer.status().as_u16());
        let silent = |said: &str| Self {
            status: None,
            code: String::new(),
            said: said.to_owned(),
            is_without_credentials: false,
        };
        if chain(&error).any(|cause| cause.is::<CredentialsError>()) {
            // Its sources may quote files and commands that hold secrets.
            return Self { is_without_credentials: true, ..silent("") };
        }
        match &error {
            SdkError::ServiceError(service) => Self {
                status,
                code: shown(service.err().code().unwrap_or_default()),
                said: shown(service.err().message().unwrap_or_default()),
                is_without_credentials: false,
            },
            SdkError::TimeoutError(_) => silent("no answer in time"),
            SdkError::DispatchFailure(failure) if failure.is_timeout() => {
                silent("no connection or answer in time")
            }
            _ => silent(&chain(&error).last().map(|cause| shown(&cause.to_string())).unwrap_or_default()),
        }
    }

    /// What the failure of a Decrypt means for a slot that was `made_with` a key.
    pub(super) fn into_decrypt_error(self, asked: &KmsKeyId, made_with: &KmsKeyArn) -> KmsError {
        match self.code.as_str() {
            "IncorrectKeyException" => {
                KmsError::OtherKey { asked: asked.to_string(), made_with: made_with.clone() }
            }
            _ => self.into_error(asked),
        }
    }

    pub(super) fn into_error(self, key: &KmsKeyId) -> KmsError {
        let Self { status, code, said, is_without_credentials } = self;
        if is_without_credentials {
            return KmsError::NoCredentials;
        }
        let Some(status) = status else { return KmsError::Unreachable { said } };
        let key = key.to_string();
        let told = match (code.is_empty(), said.is_empty()) {
            (true, _) => format!("status {status} {said}").trim_end().to_owned(),
            (false, true) => code.clone(),
            (false, false) => format!("{code}: {said}"),
        };
        match code.as_str() {
            "AccessDeniedException" | "KMSAccessDeniedException" => KmsError::Denied { key, said: told },
            "DependencyTimeoutException" | "KMSInternalException" | "KeyUnavailableException" => {
                KmsError::Unavailable { said: told }
            }
            "DisabledException" => KmsError::Disabled { key },
            "InvalidCiphertextException" => KmsError::Ciphertext { key },
            "InvalidKeyUsageException" => KmsError::KeyUsage { key },
            // AWS says `… is pending deletion.`
            "KMSInvalidStateException" if said.to_ascii_lowercase().contains("pending deletion") => {
                KmsError::PendingDeletion { key }
            }
            "KMSInvalidStateException" => KmsError::State { key, said: told },
            "NotFoundException" => KmsError::NotFound { key, said: told },
            "ExpiredTokenException"
            | "IncompleteSignature"
            | "InvalidSignatureException"
            | "UnrecognizedClientException" => KmsError::Denied { key, said: told },
            "ThrottlingException" | "LimitExceededException" | "RequestLimitExceeded" => {
                KmsError::Unavailable { said: told }
            }
            _ if status == 429 || status >= 500 => KmsError::Unavailable { said: told },
            _ => KmsError::Refused { said: told },
        }
    }
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}

/// One printable line of bounded length.
fn shown(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(SAID_CHARS_MAX).collect()
}

/// Longest line that is taken over from the service.
const SAID_CHARS_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:kms:eu-central-1:123456789012:key/1";

    fn answer(status: u16, code: &str, said: &str) -> KmsError {
        let (code, said) = (code.to_owned(), said.to_owned());
        let fault = Fault { status: Some(status), code, said, is_without_credentials: false };
        fault.into_decrypt_error(&"alias/a".parse().unwrap(), &ARN.parse().unwrap())
    }

    #[test]
    fn each_refusal_says_what_happened_and_what_to_do() {
        for (code, said, words) in [
            (
                "AccessDeniedException",
                "User is not authorized",
                ["not let this server use alias/a", "kms:Decrypt"],
            ),
            ("DisabledException", "", ["alias/a is disabled", "another slot"]),
            ("IncorrectKeyException", "", [ARN, "`vault.kms.key_id`"]),
            ("InvalidCiphertextException", "", ["row was altered", "another slot or cluster"]),
            ("InvalidKeyUsageException", "", ["does not encrypt", "symmetric"]),
            ("KMSInvalidStateException", "arn:x is pending deletion.", ["scheduled for deletion", "cancel"]),
            (
                "KMSInvalidStateException",
                "arn:x is pending import.",
                ["cannot be used now", "pending import"],
            ),
            ("NotFoundException", "Alias is not found", ["has no key alias/a", "region"]),
            ("UnrecognizedClientException", "bad token", ["not let this server", "bad token"]),
            ("ValidationException", "1 error", ["KMS refuses", "ValidationException: 1 error"]),
        ] {
            let error = answer(400, code, said);
            assert!(!error.is_away(), "{code}");
            for words in words {
                assert!(error.to_string().contains(words), "{words:?} is not in {error}");
            }
        }
    }

    #[test]
    fn what_may_be_otherwise_later_is_told_from_what_may_not() {
        for (status, code, away, may_pass) in [
            (500, "KMSInternalException", true, true),
            (500, "", true, true),
            (503, "", true, true),
            (429, "", true, true),
            (400, "ThrottlingException", true, true),
            (500, "KeyUnavailableException", true, true),
            (400, "DisabledException", false, true),
            (400, "AccessDeniedException", false, true),
            (400, "NotFoundException", false, true),
            (400, "KMSInvalidStateException", false, true),
            (400, "IncorrectKeyException", false, true),
            (400, "InvalidCiphertextException", false, false),
            (400, "InvalidKeyUsageException", false, false),
            (400, "ValidationException", false, false),
            (404, "", false, false),
        ] {
            let error = answer(status, code, "");
            assert_eq!((error.is_away(), error.may_pass()), (away, may_pass), "{status} {code}: {error}");
        }
        let silent =
            Fault { status: None, code: String::new(), said: "x".into(), is_without_credentials: false };
        let error = silent.into_error(&"alias/a".parse().unwrap());
        assert!(error.is_away() && error.may_pass(), "{error}");
    }

    #[test]
    fn the_service_cannot_write_into_our_log() {
        let line = shown(&format!("first\nsecond\u{1b}[31m{}", "x".repeat(1000)));

        assert!(line.starts_with("firstsecond[31m"));
        assert_eq!(line.chars().count(), SAID_CHARS_MAX);
    }
}
