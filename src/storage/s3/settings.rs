//! Which bucket, how to reach it, and how long to wait for it.
//!
//! Never prints a secret, and refuses what could only fail later with a message about something else.

use std::time::Duration;

use aws_sdk_s3::config::timeout::TimeoutConfig;
use secrecy::SecretString;
use url::Url;

use crate::storage::error::{Result, StorageError};
use crate::storage::key::Prefix;

/// Which bucket objects are kept in, and how to reach it.
#[derive(Clone, Debug)]
pub struct S3Settings {
    pub bucket: String,
    /// Where in the bucket everything lies; a listing never leaves it.
    pub prefix: Prefix,
    /// The server, unless it is AWS's own for the region.
    pub endpoint: Option<Url>,
    /// Goes into every signature: it must be the server's.
    pub region: String,
    /// `https://server/bucket/…` instead of `https://bucket.server/…`.
    pub path_style: bool,
    pub checksums: Checksums,
    /// `None`: the usual AWS chain (environment, profile, web identity, container, EC2). Outside EC2 that
    /// may wait for EC2's metadata service unless `AWS_EC2_METADATA_DISABLED=true` is set.
    pub credentials: Option<Credentials>,
    /// The largest object. Parts are 8 MiB, which suffices for 78 GiB; a higher limit makes all parts
    /// of all uploads larger, since some servers (R2) want them equal and there may be 10 000.
    pub object_size_bytes_max: u64,
    /// Largest piece that one request copies within the bucket. The protocol allows 5 GiB, but a server that really
    /// copies must answer within `patience`.
    pub copy_size_bytes: u64,
    pub patience: Patience,
}

/// Whether requests and answers carry checksums besides TLS and the signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Checksums {
    /// Only where S3 demands one. What every server understands.
    #[default]
    WhenRequired,
    /// Wherever S3 knows one: AWS's own default.
    WhenSupported,
}

/// A key pair given in the settings.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub access_key_id: String,
    pub secret_access_key: SecretString,
}

/// How long the bucket is waited for, and how often it is asked again.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For the first byte of an answer, where the request has no large body.
    pub answer: Duration,
    /// For one attempt with its body. 120 s for a part of 8 MiB means 70 KiB/s at least.
    pub attempt: Duration,
    /// For a call with all its attempts.
    pub total: Duration,
    /// Without any byte moving in a body.
    pub stalled: Duration,
    pub attempts_max: u32,
    /// Waiting before the second attempt: a random part of this, doubled for each later one.
    pub backoff: Duration,
    pub backoff_max: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            answer: Duration::from_secs(30),
            attempt: Duration::from_secs(120),
            total: Duration::from_secs(150),
            stalled: Duration::from_secs(20),
            attempts_max: 5,
            backoff: Duration::from_millis(250),
            backoff_max: Duration::from_secs(5),
        }
    }
}

impl S3Settings {
    /// Settings for a bucket, with AWS's defaults for everything else.
    pub fn new(bucket: impl Into<String>, region: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            prefix: Prefix::empty(),
            endpoint: None,
            region: region.into(),
            path_style: false,
            checksums: Checksums::default(),
            credentials: None,
            object_size_bytes_max: 64 << 30,
            copy_size_bytes: 512 << 20,
            patience: Patience::default(),
        }
    }

    /// Refuses what could only fail later, with a message about something else.
    pub(super) fn check(&self) -> Result<()> {
        let wrong = |setting, problem| Err(StorageError::Setting { setting, problem });
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if !(3..=63).contains(&self.bucket.len()) || !self.bucket.bytes().all(plain) {
            return wrong("bucket", "not 3 to 63 characters `A-Z a-z 0-9 . - _`");
        }
        if self.region.is_empty() || !self.region.bytes().all(plain) {
            return wrong("region", "empty, or has other characters than `A-Z a-z 0-9 . - _`");
        }
        if let Some(endpoint) = &self.endpoint {
            if !matches!(endpoint.scheme(), "http" | "https") || !endpoint.has_host() {
                return wrong("endpoint", "not a URL that begins with http:// or https://");
            }
            if !endpoint.username().is_empty() || endpoint.password().is_some() || endpoint.query().is_some()
            {
                return wrong("endpoint", "a URL with credentials or a query");
            }
        }
        // S3 allows parts of 5 GiB, but three of them lie in memory: 128 MiB is for 1.2 TiB already.
        if part_size_bytes(self.object_size_bytes_max) > 128 << 20 {
            return wrong("object_size_bytes_max", "more than 1.2 TiB");
        }
        if !(5 << 20..=5 << 30).contains(&self.copy_size_bytes) {
            return wrong("copy_size_bytes", "not 5 MiB to 5 GiB");
        }
        Ok(())
    }
}

impl Patience {
    pub(super) fn timeouts(&self, answer: Duration) -> TimeoutConfig {
        TimeoutConfig::builder()
            .connect_timeout(self.connect)
            .read_timeout(answer)
            .operation_attempt_timeout(self.attempt)
            .operation_timeout(self.total)
            .build()
    }
}

/// The size of every part but the last: enough for the largest object, in whole MiB.
pub(super) fn part_size_bytes(object_size_bytes_max: u64) -> u64 {
    const MIB: u64 = 1024 * 1024;
    let needed = object_size_bytes_max.div_ceil(PARTS_MAX).div_ceil(MIB).saturating_mul(MIB);
    needed.max(PART_SIZE_BYTES_MIN)
}

/// Smallest part, and what is sent in one request when it is the whole. S3 demands at least 5 MiB.
const PART_SIZE_BYTES_MIN: u64 = 8 * 1024 * 1024;

/// What S3 allows for one upload.
const PARTS_MAX: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> S3Settings {
        S3Settings::new("bucket", "garage")
    }

    #[test]
    fn the_largest_object_fits_into_the_parts() {
        assert_eq!(part_size_bytes(0), PART_SIZE_BYTES_MIN);
        assert_eq!(part_size_bytes(64 << 30), PART_SIZE_BYTES_MIN);
        for limit in [1 << 30, 64 << 30, 79 << 30, 100 << 30, 1 << 40] {
            let part = part_size_bytes(limit);
            assert!(limit.div_ceil(part) <= PARTS_MAX, "{limit}");
            assert!(part.is_multiple_of(1 << 20) && part <= 128 << 20, "{limit}");
        }
    }

    #[test]
    fn settings_that_can_only_fail_later_are_refused() {
        let check = |change: fn(&mut S3Settings)| {
            let mut settings = settings();
            change(&mut settings);
            settings.check().is_ok()
        };
        let endpoint = |text: &str| {
            let endpoint = Some(text.parse().unwrap());
            S3Settings { endpoint, ..settings() }.check().is_ok()
        };

        assert!(settings().check().is_ok());
        assert!(endpoint("http://127.0.0.1:3900"));
        assert!(!check(|settings| settings.bucket = "ab".into()));
        assert!(!check(|settings| settings.bucket = "a/b".into()));
        assert!(!check(|settings| settings.bucket = "a".repeat(64)));
        assert!(!check(|settings| settings.region = String::new()));
        assert!(!check(|settings| settings.region = "eu west".into()));
        assert!(!check(|settings| settings.object_size_bytes_max = u64::MAX));
        assert!(!endpoint("ftp://127.0.0.1"));
        assert!(!endpoint("file:///tmp"));
        assert!(!endpoint("http://user:word@127.0.0.1"));
        assert!(!endpoint("http://127.0.0.1/?key=1"));
    }

    #[test]
    fn a_secret_is_not_printed() {
        let credentials =
            Credentials { access_key_id: "GK1".into(), secret_access_key: SecretString::from("word") };
        let settings = S3Settings { credentials: Some(credentials), ..settings() };

        assert!(!format!("{settings:?}").contains("word"));
    }
}
