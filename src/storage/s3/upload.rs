//! An upload to a bucket: one PutObject if it is small, else parts that travel while it is being written.
//!
//! Never holds more than one part that fills and two that travel. Dropping it aborts it at the server.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use bytes::{Bytes, BytesMut};
use tokio::task::JoinSet;

use super::fault::Fault;
use super::{BufferGauge, Checksums, MARK, PARTS_IN_FLIGHT_MAX, S3};
use crate::storage::error::{Result, StorageError};

/// An object that is being written.
pub(in crate::storage) struct S3Upload {
    target: Target,
    filling: Option<Part>,
    multipart: Option<Multipart>,
}

/// An object whose every byte is at the server, or here if it is small.
pub(in crate::storage) struct S3Sealed {
    target: Target,
    size_bytes: u64,
    whole: Whole,
}

enum Whole {
    Small(Part),
    Parts(Multipart),
}

#[derive(Clone)]
struct Target {
    s3: Arc<S3>,
    path: String,
    content_type: &'static str,
    mark: String,
}

impl S3Upload {
    pub(super) fn new(s3: Arc<S3>, path: String, content_type: &'static str, mark: String) -> Self {
        Self { target: Target { s3, path, content_type, mark }, filling: None, multipart: None }
    }

    pub(in crate::storage) async fn write(&mut self, mut bytes: Bytes) -> Result<()> {
        let part_size_bytes = self.target.s3.part_size_bytes as usize;
        while !bytes.is_empty() {
            let part = self.filling.get_or_insert_with(|| Part::new(&self.target.s3));
            let room = part_size_bytes - part.bytes.len();
            part.bytes.extend_from_slice(&bytes.split_to(room.min(bytes.len())));
            // A part is sent when a byte beyond it is there: what just fills one goes in one request.
            if !bytes.is_empty() {
                self.send_part().await?;
            }
        }
        Ok(())
    }

    /// Sends the part that was being filled; waits until there is room for another.
    async fn send_part(&mut self) -> Result<()> {
        let Some(part) = self.filling.take() else { return Ok(()) };
        let multipart = match &mut self.multipart {
            Some(multipart) => multipart,
            absent => absent.insert(Multipart::create(self.target.clone()).await?),
        };
        while multipart.travelling.len() >= PARTS_IN_FLIGHT_MAX {
            multipart.await_part().await?;
        }
        multipart.send(part);
        Ok(())
    }

    pub(in crate::storage) async fn seal(mut self) -> Result<S3Sealed> {
        let Some(multipart) = &self.multipart else {
            let part = self.filling.take().unwrap_or_else(|| Part::empty(&self.target.s3));
            let size_bytes = part.bytes.len() as u64;
            return Ok(S3Sealed { target: self.target, size_bytes, whole: Whole::Small(part) });
        };
        let last_size_bytes = self.filling.as_ref().map_or(0, |part| part.bytes.len()) as u64;
        let size_bytes = u64::from(multipart.sent) * self.target.s3.part_size_bytes + last_size_bytes;
        self.send_part().await?;
        let mut multipart = self.multipart.take().expect("present: looked at above");
        while !multipart.travelling.is_empty() {
            multipart.await_part().await?;
        }
        multipart.arrived.sort_unstable_by_key(CompletedPart::part_number);
        Ok(S3Sealed { target: self.target, size_bytes, whole: Whole::Parts(multipart) })
    }

    pub(in crate::storage) async fn abort(self) {
        if let Some(multipart) = self.multipart {
            multipart.abort().await;
        }
    }
}

impl S3Sealed {
    pub(in crate::storage) async fn complete(self) -> Result<()> {
        let target = self.target;
        let (fault, multipart) = match self.whole {
            Whole::Small(part) => {
                let bytes = part.bytes.freeze();
                let put = target.s3.put_marked(&target.path, target.content_type, bytes, Some(&target.mark));
                match put.await {
                    Ok(()) => return Ok(()),
                    Err(fault) => (fault, None),
                }
            }
            Whole::Parts(mut multipart) => match multipart.complete().await {
                Ok(()) => {
                    multipart.over = true;
                    return Ok(());
                }
                Err(fault) => (fault, Some(multipart)),
            },
        };
        // The answer may have been lost, and a second try then finds no upload any more: the object knows.
        if target.has_landed(self.size_bytes).await {
            if let Some(mut multipart) = multipart {
                multipart.over = true;
            }
            return Ok(());
        }
        if let Some(multipart) = multipart {
            multipart.abort().await;
        }
        Err(fault.into_error("complete an upload"))
    }

    pub(in crate::storage) async fn abort(self) {
        if let Whole::Parts(multipart) = self.whole {
            multipart.abort().await;
        }
    }
}

impl Target {
    /// Whether the visible object is the one that this upload wrote.
    async fn has_landed(&self, size_bytes: u64) -> bool {
        let request = self.s3.client.head_object().bucket(&self.s3.bucket).key(&self.path);
        request.send().await.is_ok_and(|head| {
            let mark = head.metadata().and_then(|metadata| metadata.get(MARK));
            let length = head.content_length().and_then(|length| u64::try_from(length).ok());
            mark == Some(&self.mark) && length == Some(size_bytes)
        })
    }
}

/// A multipart upload that is open at the server. Dropping it aborts it, unless it is over.
struct Multipart {
    target: Target,
    upload_id: String,
    sent: u32,
    travelling: JoinSet<std::result::Result<CompletedPart, Fault>>,
    arrived: Vec<CompletedPart>,
    over: bool,
}

impl Multipart {
    async fn create(target: Target) -> Result<Self> {
        const ACTION: &str = "begin an upload";
        let s3 = &target.s3;
        let answer = s3
            .client
            .create_multipart_upload()
            .bucket(&s3.bucket)
            .key(&target.path)
            .content_type(target.content_type)
            .metadata(MARK, &target.mark)
            .set_checksum_algorithm(match s3.checksums {
                Checksums::WhenRequired => None,
                Checksums::WhenSupported => Some(ChecksumAlgorithm::Crc32),
            })
            .send()
            .await
            .map_err(|error| Fault::of(error).into_error(ACTION))?;
        let upload_id = answer
            .upload_id
            .ok_or(StorageError::Damaged("the answer does not say how the upload is called"))?;
        Ok(Self { target, upload_id, sent: 0, travelling: JoinSet::new(), arrived: Vec::new(), over: false })
    }

    fn send(&mut self, part: Part) {
        self.sent += 1;
        // `Upload` refuses what needs more than 10 000.
        let number = i32::try_from(self.sent).unwrap_or(i32::MAX);
        let (target, upload_id) = (self.target.clone(), self.upload_id.clone());
        self.travelling.spawn(async move {
            let s3 = &target.s3;
            let Part { bytes, held } = part;
            let request = s3
                .client
                .upload_part()
                .bucket(&s3.bucket)
                .key(&target.path)
                .upload_id(upload_id)
                .part_number(number)
                .content_length(i64::try_from(bytes.len()).unwrap_or(i64::MAX))
                .body(ByteStream::from(bytes.freeze()))
                .customize()
                .config_override(s3.with_body())
                .send();
            let answer = request.await.map_err(Fault::of)?;
            drop(held);
            Ok(CompletedPart::builder()
                .part_number(number)
                .set_e_tag(answer.e_tag)
                .set_checksum_crc32(answer.checksum_crc32)
                .build())
        });
    }

    /// Waits for any part to arrive.
    async fn await_part(&mut self) -> Result<()> {
        const ACTION: &str = "write a part of an upload";
        match self.travelling.join_next().await {
            Some(Ok(Ok(part))) => self.arrived.push(part),
            Some(Ok(Err(fault))) => return Err(fault.into_error(ACTION)),
            Some(Err(ended)) => {
                return Err(StorageError::Unavailable {
                    action: ACTION,
                    retryable: false,
                    source: ended.into(),
                });
            }
            None => {}
        }
        Ok(())
    }

    async fn complete(&mut self) -> std::result::Result<(), Fault> {
        let s3 = &self.target.s3;
        let parts =
            CompletedMultipartUpload::builder().set_parts(Some(std::mem::take(&mut self.arrived))).build();
        s3.client
            .complete_multipart_upload()
            .bucket(&s3.bucket)
            .key(&self.target.path)
            .upload_id(&self.upload_id)
            .multipart_upload(parts)
            .customize()
            .config_override(s3.with_body())
            .send()
            .await
            .map(drop)
            .map_err(Fault::of)
    }

    async fn abort(mut self) {
        self.over = true;
        let travelling = std::mem::take(&mut self.travelling);
        abort(self.target.clone(), std::mem::take(&mut self.upload_id), travelling).await;
    }
}

impl Drop for Multipart {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let travelling = std::mem::take(&mut self.travelling);
        let aborting = abort(self.target.clone(), std::mem::take(&mut self.upload_id), travelling);
        // Without a runtime the process is ending: the upload is stale later.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(aborting);
        }
    }
}

async fn abort(
    target: Target,
    upload_id: String,
    mut travelling: JoinSet<std::result::Result<CompletedPart, Fault>>,
) {
    // First, or a part may arrive after the upload is gone and stay for ever.
    travelling.shutdown().await;
    if let Err(fault) = target.s3.abort(&target.path, &upload_id).await {
        tracing::warn!(object = %target.path, error = %fault, "upload left open, to be swept later");
    }
}

/// Bytes of a part, counted for as long as they are held.
struct Part {
    bytes: BytesMut,
    held: Held,
}

impl Part {
    fn new(s3: &S3) -> Self {
        let size_bytes = s3.part_size_bytes;
        Self {
            held: Held::new(s3.buffered.clone(), size_bytes),
            // Taken as a whole: memory that is not written to is not used, and growing would copy.
            bytes: BytesMut::with_capacity(size_bytes as usize),
        }
    }

    fn empty(s3: &S3) -> Self {
        Self { held: Held::new(s3.buffered.clone(), 0), bytes: BytesMut::new() }
    }
}

struct Held(Arc<BufferGauge>, u64);

impl Held {
    fn new(gauge: Arc<BufferGauge>, size_bytes: u64) -> Self {
        let now = gauge.now.fetch_add(size_bytes, Ordering::Relaxed) + size_bytes;
        gauge.peak.fetch_max(now, Ordering::Relaxed);
        Self(gauge, size_bytes)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.now.fetch_sub(self.1, Ordering::Relaxed);
    }
}
