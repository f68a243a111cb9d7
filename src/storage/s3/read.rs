//! Reading an object, taken up again where a connection broke off.
//!
//! Never joins two versions of an object, and never ends early as if all had come.

use std::ops::Range;
use std::sync::Arc;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;

use super::S3;
use super::fault::Fault;
use crate::storage::error::{Result, StorageError};
use crate::storage::key::ObjectKey;
use crate::storage::{Object, check_range};

/// How often a read that broke off is taken up again without having got further than this.
const RESUMES_MAX: u32 = 4;
const RESUME_PROGRESS_BYTES: u64 = 8 * 1024 * 1024;

impl S3 {
    pub(in crate::storage) async fn get(
        self: &Arc<Self>,
        key: &ObjectKey,
        range: Option<Range<u64>>,
    ) -> Result<Option<Object>> {
        let path = self.path(key);
        // HTTP cannot spell an empty range, and servers differ about numbers that no object reaches.
        let unspeakable = |range: &&Range<u64>| range.is_empty() || i64::try_from(range.end).is_err();
        if let Some(range) = range.as_ref().filter(unspeakable) {
            let Some(size_bytes) = self.size(key).await? else { return Ok(None) };
            return check_range(range, size_bytes).map(|()| None);
        }
        let answer = match self.open_body(&path, range.clone(), None).await {
            Ok(answer) => answer,
            Err(fault) if fault.is_absent() => return Ok(None),
            Err(fault) if fault.status == Some(416) => {
                let Some(size_bytes) = self.size(key).await? else { return Ok(None) };
                let range = range.unwrap_or(0..0);
                return Err(StorageError::Range { start: range.start, end: range.end, size_bytes });
            }
            Err(fault) => return Err(fault.into_error(READ)),
        };
        let length_bytes = answer.content_length().and_then(|length| u64::try_from(length).ok());
        let size_bytes = match &range {
            None => length_bytes,
            Some(_) => answer.content_range().and_then(|text| text.rsplit_once('/')?.1.parse().ok()),
        };
        let size_bytes =
            size_bytes.ok_or(StorageError::Damaged("the answer does not say how large it is"))?;
        if let Some(range) = &range {
            check_range(range, size_bytes)?;
        }
        let range = range.unwrap_or(0..size_bytes);
        let reading = Reading {
            s3: self.clone(),
            path,
            etag: answer.e_tag().map(str::to_owned),
            next: range.start,
            end: range.end,
            body: answer.body,
            resumes: 0,
            resumed_at: range.start,
        };
        Ok(Some(Object { size_bytes, body: stream::try_unfold(reading, Reading::step).boxed() }))
    }

    /// Asks for an object's bytes. `etag`: only if it is still that version.
    async fn open_body(
        &self,
        path: &str,
        range: Option<Range<u64>>,
        etag: Option<&str>,
    ) -> std::result::Result<GetObjectOutput, Fault> {
        self.client
            .get_object()
            .bucket(&self.bucket)
            .key(path)
            .set_range(range.map(|range| format!("bytes={}-{}", range.start, range.end.saturating_sub(1))))
            .set_if_match(etag.map(str::to_owned))
            .send()
            .await
            .map_err(Fault::of)
    }
}

/// An object's body on its way to us.
struct Reading {
    s3: Arc<S3>,
    path: String,
    etag: Option<String>,
    next: u64,
    end: u64,
    body: ByteStream,
    resumes: u32,
    resumed_at: u64,
}

impl Reading {
    /// The next bytes, and what is left to read.
    async fn step(mut self) -> Result<Option<(Bytes, Self)>> {
        while self.next < self.end {
            match self.body.next().await {
                Some(Ok(bytes)) if bytes.len() as u64 > self.end - self.next => {
                    return Err(StorageError::Damaged("more bytes came than were asked for"));
                }
                Some(Ok(bytes)) => {
                    self.next += bytes.len() as u64;
                    return Ok(Some((bytes, self)));
                }
                Some(Err(_)) | None => self.resume().await?,
            }
        }
        Ok(None)
    }

    /// Opens the body again where it broke off, if it is still the same object.
    async fn resume(&mut self) -> Result<()> {
        if self.next - self.resumed_at >= RESUME_PROGRESS_BYTES {
            self.resumes = 0;
        }
        if self.resumes == RESUMES_MAX {
            return Err(Fault::cut(None, "the body broke off again and again").into_error(READ));
        }
        self.resumes += 1;
        self.resumed_at = self.next;
        let answer = self.s3.open_body(&self.path, Some(self.next..self.end), self.etag.as_deref()).await;
        match answer {
            Ok(answer) if answer.content_range().is_some() && answer.e_tag() == self.etag.as_deref() => {
                self.body = answer.body;
                Ok(())
            }
            Ok(_) => Err(CHANGED),
            Err(fault) if fault.is_absent() || fault.status == Some(412) => Err(CHANGED),
            Err(fault) => Err(fault.into_error(READ)),
        }
    }
}

const READ: &str = "read an object";

const CHANGED: StorageError = StorageError::Damaged("it was replaced or removed while it was read");
