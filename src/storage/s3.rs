//! Objects in an S3 bucket: AWS, Garage, MinIO, R2, Ceph.
//!
//! Never sends a body of unknown length, never relies on a conditional write, and holds a bounded number
//! of parts in memory. Passing faults are retried with jitter for a bounded time; the rest is an error.

mod fault;
mod read;
mod settings;
mod staging;
mod upload;

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Builder, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use secrecy::ExposeSecret as _;
use url::Url;
use uuid::Uuid;

use self::fault::Fault;
use self::settings::part_size_bytes;
pub use self::settings::{Checksums, Credentials, Patience, S3Settings};
pub(super) use self::upload::{S3Sealed, S3Upload};
use super::error::{Result, StorageError};
use super::key::{Folder, ObjectKey, Prefix};
use super::{Buffered, Entry};

/// Parts under way at once; one more is being filled.
const PARTS_IN_FLIGHT_MAX: usize = 2;

/// Small objects that one call puts at once: enough to hide the way to the bucket, few enough for any server.
pub(super) const PUTS_AT_ONCE: usize = 16;

pub(super) struct S3 {
    client: Client,
    bucket: String,
    prefix: Prefix,
    checksums: Checksums,
    patience: Patience,
    object_size_bytes_max: u64,
    part_size_bytes: u64,
    copy_size_bytes: u64,
    instance: Uuid,
    uploads: AtomicU64,
    buffered: Arc<BufferGauge>,
}

impl S3 {
    pub(super) async fn open(settings: S3Settings, instance: Uuid) -> Result<Arc<Self>> {
        settings.check()?;
        let mut config = match &settings.credentials {
            Some(credentials) => Builder::new()
                .behavior_version(BehaviorVersion::latest())
                .region(Region::new(settings.region.clone()))
                .credentials_provider(aws_credential_types::Credentials::new(
                    &credentials.access_key_id,
                    credentials.secret_access_key.expose_secret(),
                    None,
                    None,
                    "settings",
                )),
            None => Builder::from(
                &aws_config::defaults(BehaviorVersion::latest())
                    .region(Region::new(settings.region.clone()))
                    .load()
                    .await,
            ),
        };
        if let Some(endpoint) = &settings.endpoint {
            config = config.endpoint_url(endpoint.as_str());
        }
        let (request, response) = match settings.checksums {
            Checksums::WhenRequired => {
                (RequestChecksumCalculation::WhenRequired, ResponseChecksumValidation::WhenRequired)
            }
            Checksums::WhenSupported => {
                (RequestChecksumCalculation::WhenSupported, ResponseChecksumValidation::WhenSupported)
            }
        };
        let patience = settings.patience;
        let config = config
            .force_path_style(settings.path_style)
            .request_checksum_calculation(request)
            .response_checksum_validation(response)
            .timeout_config(patience.timeouts(patience.answer))
            .retry_config(
                RetryConfig::standard()
                    .with_max_attempts(patience.attempts_max)
                    .with_initial_backoff(patience.backoff)
                    .with_max_backoff(patience.backoff_max),
            )
            .stalled_stream_protection(
                StalledStreamProtectionConfig::enabled().grace_period(patience.stalled).build(),
            )
            .build();
        Ok(Arc::new(Self {
            client: Client::from_conf(config),
            bucket: settings.bucket,
            prefix: settings.prefix,
            checksums: settings.checksums,
            patience,
            object_size_bytes_max: settings.object_size_bytes_max,
            part_size_bytes: part_size_bytes(settings.object_size_bytes_max),
            copy_size_bytes: settings.copy_size_bytes,
            instance,
            uploads: AtomicU64::new(0),
            buffered: Arc::default(),
        }))
    }

    pub(super) async fn put(&self, key: &ObjectKey, bytes: Bytes) -> Result<()> {
        self.put_marked(&self.path(key), key.content_type(), bytes, None)
            .await
            .map_err(|fault| fault.into_error("write an object"))
    }

    pub(super) async fn put_all(&self, objects: Vec<(ObjectKey, Bytes)>) -> Vec<Result<()>> {
        let puts = objects.into_iter().map(|(key, bytes)| async move { self.put(&key, bytes).await });
        stream::iter(puts).buffered(PUTS_AT_ONCE).collect().await
    }

    /// One PutObject. `mark` becomes metadata of the object, by which it can be recognised.
    async fn put_marked(
        &self,
        path: &str,
        content_type: &str,
        bytes: Bytes,
        mark: Option<&str>,
    ) -> std::result::Result<(), Fault> {
        self.client
            .put_object()
            .bucket(&self.bucket)
            .key(path)
            .content_type(content_type)
            .content_length(i64::try_from(bytes.len()).unwrap_or(i64::MAX))
            .set_metadata(mark.map(|mark| [(MARK.to_owned(), mark.to_owned())].into()))
            .body(ByteStream::from(bytes))
            .customize()
            .config_override(self.with_body())
            .send()
            .await
            .map(drop)
            .map_err(Fault::of)
    }

    pub(super) fn upload(self: &Arc<Self>, key: &ObjectKey) -> S3Upload {
        let number = self.uploads.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{}-{number}", self.instance.simple());
        S3Upload::new(self.clone(), self.path(key), key.content_type(), mark)
    }

    pub(super) async fn size(&self, key: &ObjectKey) -> Result<Option<u64>> {
        match self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(self.path(key))
            .send()
            .await
            .map_err(Fault::of)
        {
            Ok(head) => {
                let length = head.content_length().and_then(|length| u64::try_from(length).ok());
                length.map(Some).ok_or(StorageError::Damaged("the answer does not say how large it is"))
            }
            Err(fault) if fault.is_absent() => Ok(None),
            Err(fault) => Err(fault.into_error("look for an object")),
        }
    }

    pub(super) async fn delete(&self, key: &ObjectKey, timeout: Duration) -> Result<()> {
        const ACTION: &str = "remove an object in time";
        let timeouts = self
            .patience
            .timeouts(self.patience.answer.min(timeout))
            .to_builder()
            .operation_timeout(timeout)
            .operation_attempt_timeout(timeout)
            .build();
        let request = self
            .client
            .delete_object()
            .bucket(&self.bucket)
            .key(self.path(key))
            .customize()
            .config_override(Builder::new().timeout_config(timeouts))
            .send();
        // The SDK's timeout does not cover everything it does, and one of zero must not send at all.
        let answer = match timeout.is_zero() {
            true => None,
            false => tokio::time::timeout(timeout, request).await.ok(),
        };
        match answer.map(|answer| answer.map_err(Fault::of)) {
            Some(Ok(_)) => Ok(()),
            Some(Err(fault)) if fault.is_absent() => Ok(()),
            Some(Err(fault)) => Err(fault.into_error(ACTION)),
            None => Err(Fault::cut(None, "no answer in time").into_error(ACTION)),
        }
    }

    pub(super) fn list(self: &Arc<Self>, folder: Folder) -> BoxStream<'static, Result<Entry>> {
        let root = self.prefix.join("");
        let pages = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(format!("{root}{}", folder.path()))
            .into_paginator()
            .send();
        stream::try_unfold((pages, VecDeque::new()), move |(mut pages, mut entries)| {
            let (root, folder) = (root.clone(), folder.clone());
            async move {
                while entries.is_empty() {
                    let Some(page) = pages.next().await else { return Ok(None) };
                    let page = page.map_err(|error| Fault::of(error).into_error("list a folder"))?;
                    entries.extend(
                        page.contents()
                            .iter()
                            .filter_map(|object| entry(object, &root))
                            .filter(|entry| folder.covers(&entry.name)),
                    );
                }
                Ok(entries.pop_front().map(|entry| (entry, (pages, entries))))
            }
        })
        .boxed()
    }

    pub(super) async fn presign_get(&self, key: &ObjectKey, lifetime: Duration) -> Result<Url> {
        let request = self.client.get_object().bucket(&self.bucket).key(self.path(key));
        let presigned = request.presigned(presigning(lifetime)?).await;
        parse_url(presigned.map_err(|error| Fault::of(error).into_error(SIGN))?.uri())
    }

    pub(super) async fn abort_stale_uploads(&self, older_than: SystemTime) -> Result<u64> {
        let limit = DateTime::from(older_than);
        // Those that go on for days have rows, which say when they end.
        let stale =
            |key: &ObjectKey, begun: &DateTime| !matches!(key, ObjectKey::Staged(_)) && *begun < limit;
        self.abort_uploads("", stale).await
    }

    /// Ends those of our multipart uploads below `folder` that are `stale`, by key and age.
    async fn abort_uploads(
        &self,
        folder: &str,
        stale: impl Fn(&ObjectKey, &DateTime) -> bool,
    ) -> Result<u64> {
        const ACTION: &str = "list unfinished uploads";
        let root = self.prefix.join("");
        let (mut key_marker, mut upload_marker) = (None, None);
        let mut aborted = 0;
        loop {
            let page = self
                .client
                .list_multipart_uploads()
                .bucket(&self.bucket)
                .prefix(format!("{root}{folder}"))
                .set_key_marker(key_marker)
                .set_upload_id_marker(upload_marker)
                .send()
                .await
                .map_err(Fault::of);
            let page = match page {
                Ok(page) => page,
                // Such a server is left to its own rule for unfinished uploads.
                Err(fault) if fault.status == Some(501) => return Ok(aborted),
                Err(fault) => return Err(fault.into_error(ACTION)),
            };
            for upload in page.uploads() {
                let (Some(path), Some(upload_id)) = (upload.key(), upload.upload_id()) else { continue };
                let key = path.strip_prefix(&root).and_then(|name| ObjectKey::from_str(name).ok());
                let ends = |key| upload.initiated().is_some_and(|begun| stale(&key, begun));
                if key.is_some_and(ends) {
                    self.abort(path, upload_id).await.map_err(|fault| fault.into_error("abort an upload"))?;
                    aborted += 1;
                }
            }
            key_marker = page.next_key_marker().map(str::to_owned);
            upload_marker = page.next_upload_id_marker().map(str::to_owned);
            if !page.is_truncated().unwrap_or(false) || key_marker.is_none() {
                return Ok(aborted);
            }
        }
    }

    /// Ends a multipart upload; one that is over already is fine.
    async fn abort(&self, path: &str, upload_id: &str) -> std::result::Result<(), Fault> {
        let request =
            self.client.abort_multipart_upload().bucket(&self.bucket).key(path).upload_id(upload_id);
        match request.send().await.map_err(Fault::of) {
            Err(fault) if !fault.is_no_upload() => Err(fault),
            _ => Ok(()),
        }
    }

    pub(super) fn object_size_bytes_max(&self) -> u64 {
        self.object_size_bytes_max
    }

    pub(super) fn upload_memory_bytes(&self) -> u64 {
        self.part_size_bytes * (PARTS_IN_FLIGHT_MAX as u64 + 1)
    }

    pub(super) fn put_time_max(&self) -> Duration {
        self.patience.total
    }

    pub(super) fn buffered(&self) -> Buffered {
        Buffered {
            now_bytes: self.buffered.now.load(Ordering::Relaxed),
            peak_bytes: self.buffered.peak.load(Ordering::Relaxed),
        }
    }

    /// The object's whole name in the bucket.
    fn path(&self, key: &ObjectKey) -> String {
        self.prefix.join(&key.to_string())
    }

    /// For requests with a large body: until it is sent, no answer can be expected.
    fn with_body(&self) -> Builder {
        Builder::new().timeout_config(self.patience.timeouts(self.patience.attempt))
    }
}

impl fmt::Display for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.prefix)
    }
}

const SIGN: &str = "sign a URL";

fn presigning(lifetime: Duration) -> Result<PresigningConfig> {
    const WRONG: StorageError =
        StorageError::Setting { setting: "lifetime of a URL", problem: "not 1 second to 7 days" };
    if lifetime < Duration::from_secs(1) {
        return Err(WRONG);
    }
    PresigningConfig::expires_in(lifetime).map_err(|_| WRONG)
}

fn parse_url(text: &str) -> Result<Url> {
    Url::parse(text).map_err(|source| StorageError::Unavailable {
        action: SIGN,
        retryable: false,
        source: source.into(),
    })
}

/// One object of a listing, named from `root` on.
fn entry(object: &aws_sdk_s3::types::Object, root: &str) -> Option<Entry> {
    Some(Entry {
        name: object.key()?.strip_prefix(root)?.to_owned(),
        size_bytes: u64::try_from(object.size()?).ok()?,
        modified: SystemTime::try_from(*object.last_modified()?).ok()?,
    })
}

/// Bytes that parts of uploads hold, of all uploads together.
#[derive(Default)]
struct BufferGauge {
    now: AtomicU64,
    peak: AtomicU64,
}

/// Metadata that tells which upload wrote an object, for when the answer to its completion is lost.
const MARK: &str = "narvault-upload";
