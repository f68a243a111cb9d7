//! Uploads in parts as multipart uploads, and copies within the bucket.
//!
//! Never completes one object twice: what is closed already is recognised by its size.

use std::collections::HashSet;
use std::time::SystemTime;

use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart, MetadataDirective};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use uuid::Uuid;

use super::fault::Fault;
use super::{Checksums, S3};
use crate::storage::error::{Result, StorageError};
use crate::storage::key::{Folder, ObjectKey};
use crate::storage::staging::StagedPart;

/// Largest piece that one request copies. The protocol allows 5 GiB, but a server that really copies must answer in time.
const COPIED_AT_ONCE_BYTES: u64 = 512 << 20;

/// Pieces of one object that are copied at once.
const COPIES_AT_ONCE: usize = 4;

impl S3 {
    pub(in crate::storage) async fn begin_staging(&self, key: &ObjectKey) -> Result<String> {
        self.begin_multipart(key).await.map_err(|fault| fault.into_error("begin an upload"))
    }

    async fn begin_multipart(&self, key: &ObjectKey) -> std::result::Result<String, Fault> {
        let request = self.client.create_multipart_upload().bucket(&self.bucket).key(self.path(key));
        let request = request.set_checksum_algorithm(match self.checksums {
            Checksums::WhenRequired => None,
            Checksums::WhenSupported => Some(ChecksumAlgorithm::Crc32),
        });
        let answer = request.content_type(key.content_type()).send().await.map_err(Fault::of)?;
        answer.upload_id.ok_or_else(|| Fault::cut(None, "the answer does not say how the upload is called"))
    }

    pub(in crate::storage) async fn put_part(
        &self,
        key: &ObjectKey,
        upload_id: &str,
        number: u32,
        bytes: Bytes,
    ) -> Result<String> {
        const ACTION: &str = "write a part of an upload";
        let answer = self
            .client
            .upload_part()
            .bucket(&self.bucket)
            .key(self.path(key))
            .upload_id(upload_id)
            .part_number(i32::try_from(number).unwrap_or(i32::MAX))
            .content_length(i64::try_from(bytes.len()).unwrap_or(i64::MAX))
            .body(ByteStream::from(bytes))
            .customize()
            .config_override(self.with_body())
            .send()
            .await
            .map_err(|error| Fault::of(error).into_error(ACTION))?;
        let tag =
            answer.e_tag.ok_or(StorageError::Damaged("the answer does not say what the part is called"))?;
        // Where the upload was begun with checksums, its end wants them again.
        Ok(answer.checksum_crc32.map_or(tag.clone(), |checksum| format!("{tag} {checksum}")))
    }

    pub(in crate::storage) async fn close_staging(
        &self,
        key: &ObjectKey,
        upload_id: &str,
        parts: &[StagedPart],
    ) -> Result<()> {
        let completed = parts.iter().map(|part| {
            let (tag, checksum) =
                part.tag.split_once(' ').map_or((&*part.tag, None), |(tag, sum)| (tag, Some(sum)));
            CompletedPart::builder()
                .part_number(i32::try_from(part.number).unwrap_or(i32::MAX))
                .e_tag(tag)
                .set_checksum_crc32(checksum.map(str::to_owned))
                .build()
        });
        let Err(fault) = self.complete_multipart(key, upload_id, completed.collect()).await else {
            return Ok(());
        };
        // The answer may have been lost, or an earlier try got this far.
        if self.size(key).await? == Some(parts.iter().map(|part| part.size_bytes).sum()) {
            return Ok(());
        }
        Err(fault.into_error("complete an upload"))
    }

    async fn complete_multipart(
        &self,
        key: &ObjectKey,
        upload_id: &str,
        parts: Vec<CompletedPart>,
    ) -> std::result::Result<(), Fault> {
        self.client
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(self.path(key))
            .upload_id(upload_id)
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts)).build())
            .customize()
            .config_override(self.with_body())
            .send()
            .await
            .map(drop)
            .map_err(Fault::of)
    }

    /// Copies an object of `size_bytes` to another name, visible there only when it is whole.
    pub(in crate::storage) async fn copy(
        &self,
        from: &ObjectKey,
        size_bytes: u64,
        to: &ObjectKey,
    ) -> Result<()> {
        let copied = if size_bytes <= COPIED_AT_ONCE_BYTES {
            self.client
                .copy_object()
                .copy_source(self.copy_source(from))
                .bucket(&self.bucket)
                .key(self.path(to))
                .metadata_directive(MetadataDirective::Replace)
                .content_type(to.content_type())
                .customize()
                .config_override(self.with_body())
                .send()
                .await
                .map(drop)
                .map_err(Fault::of)
        } else {
            self.copy_in_pieces(from, size_bytes, to).await
        };
        copied.map_err(|fault| fault.into_error("copy an object"))
    }

    async fn copy_in_pieces(
        &self,
        from: &ObjectKey,
        size_bytes: u64,
        to: &ObjectKey,
    ) -> std::result::Result<(), Fault> {
        let upload_id = &self.begin_multipart(to).await?;
        let starts = (0..size_bytes).step_by(COPIED_AT_ONCE_BYTES as usize);
        let copies = (1..).zip(starts).map(|(number, start)| async move {
            let last = (start + COPIED_AT_ONCE_BYTES).min(size_bytes) - 1;
            let answer = self
                .client
                .upload_part_copy()
                .copy_source(self.copy_source(from))
                .copy_source_range(format!("bytes={start}-{last}"))
                .bucket(&self.bucket)
                .key(self.path(to))
                .upload_id(upload_id)
                .part_number(number)
                .customize()
                .config_override(self.with_body())
                .send()
                .await
                .map_err(Fault::of)?;
            let (tag, checksum) =
                answer.copy_part_result.map_or((None, None), |copied| (copied.e_tag, copied.checksum_crc32));
            let part = CompletedPart::builder().part_number(number).set_e_tag(tag);
            Ok(part.set_checksum_crc32(checksum).build())
        });
        let copied = async {
            let parts = stream::iter(copies).buffered(COPIES_AT_ONCE).try_collect().await?;
            self.complete_multipart(to, upload_id, parts).await
        };
        let copied = copied.await;
        if copied.is_err()
            && let Err(fault) = self.abort(&self.path(to), upload_id).await
        {
            tracing::warn!(object = %to, error = %fault, "copy left open, to be swept later");
        }
        copied
    }

    /// Bucket and name, as the header wants them: all our names are spelled without what it would encode.
    fn copy_source(&self, key: &ObjectKey) -> String {
        format!("{}/{}", self.bucket, self.path(key))
    }

    pub(in crate::storage) async fn remove_staging(&self, key: &ObjectKey, upload_id: &str) -> Result<()> {
        let aborted = self.abort(&self.path(key), upload_id).await;
        aborted.map_err(|fault| fault.into_error("abort an upload"))?;
        self.delete(key, self.patience.answer).await
    }

    /// Ends uploads in parts that nobody knows.
    pub(in crate::storage) async fn abort_staging(
        &self,
        known: &HashSet<Uuid>,
        older_than: SystemTime,
    ) -> Result<u64> {
        let limit = DateTime::from(older_than);
        let stale = |key: &ObjectKey, begun: &DateTime| match key {
            ObjectKey::Staged(id) => *begun < limit && !known.contains(id),
            _ => false,
        };
        self.abort_uploads(&Folder::Uploads.path(), stale).await
    }
}
