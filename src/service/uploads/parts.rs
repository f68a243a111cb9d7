//! The parts of an upload: taken in here, or sent straight to the bucket, and written down.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use uuid::Uuid;

use super::{NewPart, stage, staged};
use crate::access::{Action, CacheName};
use crate::db::uploads::{self, PartRow, UploadRow};
use crate::db::{Gate, restarting};
use crate::nix::hash::Sha256Digest;
use crate::service::ingest::{Pace, received};
use crate::service::{Call, Conflict, Error, Rejection, Result, Service};
use crate::time::Timestamp;

impl Service {
    pub(super) fn takes_direct_parts(&self) -> bool {
        self.inner.limits.direct_parts && self.inner.storage.takes_direct_parts()
    }

    /// Fills in the tags of parts that went straight to the bucket, and drops those that did not.
    pub(super) async fn look_for_promised(&self, upload: &UploadRow, parts: &mut Vec<PartRow>) -> Result<()> {
        if parts.iter().all(|part| part.tag != PROMISED) {
            return Ok(());
        }
        let arrived = self.inner.storage.parts_in_bucket(&stage(upload)).await?;
        for part in parts.iter_mut().filter(|part| part.tag == PROMISED) {
            let same =
                |(number, size, _): &&(u32, u64, String)| (*number, *size) == (part.number, part.size_bytes);
            if let Some((_, _, tag)) = arrived.iter().find(same) {
                part.tag.clone_from(tag);
            }
        }
        parts.retain(|part| part.tag != PROMISED);
        Ok(())
    }

    /// A URL by which a part goes straight to the bucket, and until when. What comes there is believed no more than
    /// what comes here: it is measured when the upload is completed.
    pub async fn part_url(
        &self,
        call: &Call,
        cache: &CacheName,
        id: Uuid,
        part: NewPart,
        size_bytes: u64,
    ) -> Result<(url::Url, Timestamp)> {
        let pusher = self.pusher(call, cache).await?;
        let cache = self.existing_cache(cache).await?;
        let upload = self.own_upload(&cache, &pusher, id).await?;
        self.require_open()?;
        if !self.takes_direct_parts() {
            return Err(Conflict::State(NOT_DIRECT).into());
        }
        let max = upload.part_size_bytes;
        if !(1..=max).contains(&size_bytes) {
            return Err(Rejection::value("size_bytes", format!("is not from 1 to {max}")).into());
        }
        let row = PartRow { number: part.number, size_bytes, sha256: part.sha256, tag: PROMISED.to_owned() };
        let now = restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Shared).await?;
            self.recheck(&mut tx, call, &Action::Push(cache.name.clone()), now).await?;
            self.recheck_cache(&mut tx, &cache).await?;
            if !uploads::prolong(&mut tx, id, self.upload_end(now)).await? {
                return Err(Conflict::State(CLOSED).into());
            }
            uploads::put_part(&mut tx, id, &row).await?;
            tx.commit().await?;
            Ok::<_, Error>(now)
        })
        .await?;
        let url =
            self.inner.storage.presign_part(&stage(&upload), part.number, size_bytes, URL_LIFETIME).await?;
        let url = url.ok_or(Conflict::State(NOT_DIRECT))?;
        Ok((url, now.plus_seconds(i64::try_from(URL_LIFETIME.as_secs()).unwrap_or(0))))
    }

    /// Writes down which of the promised parts arrived, before the bucket's list of them is gone.
    pub(super) async fn keep_promised(&self, upload: &UploadRow) -> Result<()> {
        let mut parts = uploads::parts(&mut *self.inner.db.read().await?, upload.id).await?;
        parts.retain(|part| part.tag == PROMISED);
        self.look_for_promised(upload, &mut parts).await?;
        if parts.is_empty() {
            return Ok(());
        }
        restarting(|| async {
            let mut tx = self.inner.db.begin(Gate::Shared).await?;
            for part in &parts {
                uploads::put_part(&mut tx, upload.id, part).await?;
            }
            tx.commit().await
        })
        .await?;
        Ok(())
    }

    /// Takes in a part, in place of one with this number, and prolongs the upload. Answers once it is durable.
    ///
    /// The body is polled only after the caller's right was checked and a place was free.
    pub async fn put_part<B, E>(
        &self,
        call: &Call,
        cache: &CacheName,
        id: Uuid,
        part: NewPart,
        mut body: B,
    ) -> Result<PartRow>
    where
        B: Stream<Item = std::result::Result<Bytes, E>> + Unpin + Send,
        E: std::fmt::Display,
    {
        let pusher = self.pusher(call, cache).await?;
        let cache = self.existing_cache(cache).await?;
        let upload = self.own_upload(&cache, &pusher, id).await?;
        self.require_open()?;
        let max = upload.part_size_bytes;
        if part.stated_size.is_some_and(|size| size > max) {
            return Err(Error::TooLarge { what: "the part", max });
        }
        if upload.closed {
            return Err(Conflict::State(CLOSED).into());
        }
        let _place = self.inner.admission.enter(pusher.token, max).await?;
        let bytes = self.receive_part(part, max, &mut body).await?;
        let stage = stage(&upload);
        let size_bytes = bytes.len() as u64;
        let tag = self.inner.storage.put_part(&stage, part.number, part.sha256, bytes).await?;
        let row = PartRow { number: part.number, size_bytes, sha256: part.sha256, tag };
        let replaced = restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Shared).await?;
            self.recheck(&mut tx, call, &Action::Push(cache.name.clone()), now).await?;
            self.recheck_cache(&mut tx, &cache).await?;
            if !uploads::prolong(&mut tx, id, self.upload_end(now)).await? {
                return Err(Conflict::State(CLOSED).into());
            }
            let mut before = uploads::parts(&mut tx, id).await?;
            before.retain(|old| old.number == row.number && old.sha256 != row.sha256);
            uploads::put_part(&mut tx, id, &row).await?;
            tx.commit().await?;
            Ok::<_, Error>(before)
        })
        .await?;
        for old in replaced {
            // What cannot be removed now is removed with the upload's other orphans.
            if let Err(error) = self.inner.storage.remove_part(&stage, &staged(old)).await {
                tracing::warn!(upload = %id, error = &error as &dyn std::error::Error, "a replaced part stays");
            }
        }
        Ok(row)
    }

    /// Reads a part whole, and compares its hash.
    async fn receive_part<B, E>(&self, part: NewPart, max: u64, body: &mut B) -> Result<Bytes>
    where
        B: Stream<Item = std::result::Result<Bytes, E>> + Unpin + Send,
        E: std::fmt::Display,
    {
        let mut body = received(body);
        let mut pace = Pace::new(self.inner.limits.upload_min_bytes_per_second);
        // Taken as a whole: memory that is not written to is not used.
        let mut bytes = BytesMut::with_capacity(part.stated_size.unwrap_or(max) as usize);
        while let Some(piece) = pace.next(&mut body).await? {
            if (bytes.len() + piece.len()) as u64 > max {
                return Err(Error::TooLarge { what: "the part", max });
            }
            bytes.extend_from_slice(&piece);
        }
        let bytes = bytes.freeze();
        if bytes.is_empty() {
            return Err(Rejection::UploadPart { number: part.number, why: "it is empty".to_owned() }.into());
        }
        let hashed = bytes.clone();
        let hashing = tokio::task::spawn_blocking(move || Sha256Digest::of(&hashed));
        let measured = hashing.await.map_err(|panic| Error::Internal(panic.into()))?;
        if measured != part.sha256 {
            let why =
                format!("its SHA-256 is {}, not the one stated; it was damaged on its way", measured.hex());
            return Err(Rejection::UploadPart { number: part.number, why }.into());
        }
        Ok(bytes)
    }
}

/// How long a URL works by which a part goes straight to the bucket: a part of 64 MiB at 72 KiB/s.
const URL_LIFETIME: Duration = Duration::from_secs(900);

/// In place of the tag of a part that is to go straight to the bucket, until it is seen there. No bucket gives this.
pub(super) const PROMISED: &str = "promised";

const NOT_DIRECT: &str = "this server takes parts itself; send it there";
const CLOSED: &str = "the upload is being verified or is gone, and takes no parts";
