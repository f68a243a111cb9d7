//! What a bucket's refusals and broken connections mean, in a few words.
//!
//! Never carries a request, a header, a URL, or more of the answer than its code and one line.

use std::error::Error;
use std::fmt;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::storage::error::StorageError;

/// Longest line that is taken over from a backend.
const MESSAGE_CHARS_MAX: usize = 200;

/// A failed call, reduced to what may be shown.
#[derive(Debug)]
pub(super) struct Fault {
    /// The answer's HTTP status, if there was an answer.
    pub(super) status: Option<u16>,
    /// S3's word for it, such as `SlowDown`. Answers to HEAD have none.
    pub(super) code: Option<String>,
    message: String,
    /// No answer came, or not a whole one: whether the request was carried out is unknown.
    cut: bool,
}

impl Fault {
    pub(super) fn of<E>(error: SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        if chain(&error).any(|cause| cause.is::<CredentialsError>()) {
            // Its sources may quote files and commands that hold secrets.
            return Self {
                status: None,
                code: Some("Credentials".to_owned()),
                message: "no usable AWS credentials were found; hint: give AWS_ACCESS_KEY_ID and \
                          AWS_SECRET_ACCESS_KEY or a profile, and outside EC2 set AWS_EC2_METADATA_DISABLED=true"
                    .to_owned(),
                cut: false,
            };
        }
        let status = error.raw_response().map(|answer| answer.status().as_u16());
        match &error {
            SdkError::ServiceError(service) => Self {
                status,
                code: service.err().code().map(shown),
                message: shown(service.err().message().unwrap_or_default()),
                cut: false,
            },
            SdkError::TimeoutError(_) => Self::cut(status, "no answer in time"),
            SdkError::DispatchFailure(failure) if failure.is_timeout() => {
                Self::cut(status, "no connection or answer in time")
            }
            SdkError::DispatchFailure(failure) => {
                let cut = !failure.is_user();
                Self { status, code: None, message: innermost(&error), cut }
            }
            SdkError::ResponseError(_) => Self::cut(status, &innermost(&error)),
            _ => Self { status, code: None, message: innermost(&error), cut: false },
        }
    }

    /// A fault without a whole answer.
    pub(super) fn cut(status: Option<u16>, message: &str) -> Self {
        Self { status, code: None, message: message.to_owned(), cut: true }
    }

    /// Whether the answer says that the object is absent. (A HEAD cannot say that the bucket is.)
    pub(super) fn is_absent(&self) -> bool {
        self.status == Some(404)
            && self.code.as_deref().is_none_or(|code| matches!(code, "NoSuchKey" | "NotFound"))
    }

    /// Whether the answer says that there is no such upload (any more).
    pub(super) fn is_no_upload(&self) -> bool {
        self.code.as_deref() == Some("NoSuchUpload")
    }

    pub(super) fn into_error(self, action: &'static str) -> StorageError {
        let code = self.code.as_deref().unwrap_or_default();
        // Garage answers 403 with a sentence about quotas; MinIO and Ceph have codes of their own.
        let full = self.status == Some(507)
            || matches!(
                code,
                "QuotaExceeded" | "XMinioStorageFull" | "XAmzQuotaExceeded" | "InsufficientStorage"
            )
            || (self.status == Some(403) && self.message.to_ascii_lowercase().contains("quota"));
        let retryable = self.cut
            || matches!(self.status, Some(408 | 429 | 500 | 502..=504))
            || matches!(code, "SlowDown" | "RequestTimeout" | "InternalError" | "ServiceUnavailable");
        let source = Box::new(self);
        if full {
            StorageError::Full { action, source }
        } else if retryable {
            StorageError::Unavailable { action, retryable, source }
        } else {
            StorageError::Refused { action, source }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.status, &self.code) {
            (Some(status), Some(code)) => write!(f, "{status} {code}: {}", self.message),
            (Some(status), None) => write!(f, "{status}: {}", self.message),
            (None, _) => f.write_str(&self.message),
        }
    }
}

impl Error for Fault {}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}

/// What the innermost error says: the outer ones only say "dispatch failure".
fn innermost(error: &(dyn Error + 'static)) -> String {
    chain(error).last().map(|cause| shown(&cause.to_string())).unwrap_or_default()
}

/// One printable line of bounded length.
fn shown(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(MESSAGE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, code: &str, message: &str) -> StorageError {
        Fault { status: Some(status), code: Some(code.to_owned()), message: message.to_owned(), cut: false }
            .into_error("write an object")
    }

    #[test]
    fn answers_are_told_apart_by_who_must_act() {
        for (status, code) in
            [(503, "SlowDown"), (500, "InternalError"), (400, "RequestTimeout"), (429, "TooManyRequests")]
        {
            assert!(answer(status, code, "").is_retryable(), "{code}");
        }
        for (status, code) in [
            (403, "AccessDenied"),
            (403, "SignatureDoesNotMatch"),
            (404, "NoSuchBucket"),
            (400, "InvalidRequest"),
            (501, "NotImplemented"),
        ] {
            assert!(matches!(answer(status, code, ""), StorageError::Refused { .. }), "{code}");
        }
        for (status, code, message) in [
            (507, "XMinioStorageFull", ""),
            (403, "AccessDenied", "Bucket size quota is reached"),
            (403, "QuotaExceeded", ""),
        ] {
            assert!(matches!(answer(status, code, message), StorageError::Full { .. }), "{code}");
        }
        assert!(Fault::cut(None, "no answer in time").into_error("write an object").is_retryable());
    }

    #[test]
    fn a_backend_cannot_write_into_our_log() {
        let line = shown(&format!("first\nsecond\u{1b}[31m{}", "x".repeat(1000)));

        assert!(line.starts_with("firstsecond[31m"));
        assert_eq!(line.chars().count(), MESSAGE_CHARS_MAX);
    }
}
