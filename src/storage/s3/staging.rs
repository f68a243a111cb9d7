//! Uploads in parts as multipart uploads, and copies within the bucket.
//!
//! Never completes one object twice: what is closed already is recognised by its size.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart, MetadataDirective};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use url::Url;
use uuid::Uuid;

use super::fault::Fault;
use super::{Checksums, S3, SIGN, parse_url, presigning};
use crate::storage::error::{Result, StorageError};
use crate::storage::key::{Folder, ObjectKey};
use crate::storage::staging::StagedPart;

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

    pub(in crate::storage) async fn presign_part(
        &self,
        key: &ObjectKey,
        upload_id: &str,
        number: u32,
        size_bytes: u64,
        lifetime: Duration,
    ) -> Result<Url> {
        let request = self
            .client
            .upload_part()
            .bucket(&self.bucket)
            .key(self.path(key))
            .upload_id(upload_id)
            .part_number(i32::try_from(number).unwrap_or(i32::MAX))
            .content_length(i64::try_from(size_bytes).unwrap_or(i64::MAX));
        let presigned = request.presigned(presigning(lifetime)?).await;
        parse_url(presigned.map_err(|error| Fault::of(error).into_error(SIGN))?.uri())
    }

    pub(in crate::storage) async fn list_parts(
        &self,
        key: &ObjectKey,
        upload_id: &str,
    ) -> Result<Vec<(u32, u64, String)>> {
        let request = self.client.list_parts().bucket(&self.bucket).key(self.path(key)).upload_id(upload_id);
        let mut parts = request.into_paginator().items().send();
        let mut found = Vec::new();
        while let Some(part) = parts.next().await {
            let part = match part.map_err(Fault::of) {
                Ok(part) => part,
                Err(fault) if fault.is_no_upload() => return Ok(Vec::new()),
                Err(fault) => return Err(fault.into_error("list the parts of an upload")),
            };
            let number = part.part_number().and_then(|number| u32::try_from(number).ok());
            let size_bytes = part.size().and_then(|size| u64::try_from(size).ok());
            if let (Some(number), Some(size_bytes), Some(tag)) = (number, size_bytes, part.e_tag()) {
                let checksum = part.checksum_crc32().map_or(String::new(), |checksum| format!(" {checksum}"));
                found.push((number, size_bytes, format!("{tag}{checksum}")));
            }
        }
        Ok(found)
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
        let copied = if size_bytes <= self.copy_size_bytes {
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
        let starts = (0..size_bytes).step_by(self.copy_size_bytes as usize);
        let copies = (1..).zip(starts).map(|(number, start)| async move {
            let last = (start + self.copy_size_bytes).min(size_bytes) - 1;
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
        // What is closed is an object, and no upload any more.
        if self.size(key).await?.is_some() {
            return self.delete(key, self.patience.answer).await;
        }
        let aborted = self.abort(&self.path(key), upload_id).await;
        aborted.map_err(|fault| fault.into_error("abort an upload"))
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
