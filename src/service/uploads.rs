//! Large files in parts: a session in database and storage, none of it in memory, so that any replica goes on with it.
//!
//! A file in parts is as good as one that came in one piece: it is read back whole through the same verifier, and
//! nothing of it is visible before the verdict. Never believes a part's hash for more than that the part came whole.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, TryStreamExt as _};
use uuid::Uuid;

use super::admission::Place;
use super::ingest::{Arriving, Content, Pace, memory_charge, received};
use super::{Call, Conflict, Error, Rejection, Result, Service};
use crate::access::{Action, CacheName, TokenCaller};
use crate::db::caches::CacheRow;
use crate::db::measured::{self, FileState};
use crate::db::uploads::{self, PartRow, UploadKey, UploadRow};
use crate::db::{Gate, restarting};
use crate::nix::compression::{Compression, NarFileName};
use crate::nix::hash::{NarHash, Sha256Digest};
use crate::storage::{CacheObject, Stage, StagedPart, Target};
use crate::time::Timestamp;
use crate::vault::random;

/// An upload in parts that is not complete.
#[derive(Debug, Clone)]
pub struct UploadDetails {
    pub id: Uuid,
    pub part_size_bytes: u64,
    pub expires_at: Timestamp,
    pub parts: Vec<PartRow>,
    /// Whether parts may go straight to the bucket.
    pub direct: bool,
}

/// A part on its way in, as its sender describes it.
#[derive(Debug, Clone, Copy)]
pub struct NewPart {
    pub number: u32,
    pub sha256: Sha256Digest,
    /// If the client said so.
    pub stated_size: Option<u64>,
}

/// What an upload is said to make.
#[derive(Debug, Clone, Copy)]
pub struct WholeFile {
    pub file: NarFileName,
    pub size_bytes: u64,
    pub parts: u32,
}

impl Service {
    /// Opens an upload of this NAR, or finds the one that the same contributor left unfinished, whatever replica and
    /// token it began with. One that is found keeps its part size.
    pub async fn open_upload(
        &self,
        call: &Call,
        cache: &CacheName,
        (nar_hash, compression): (NarHash, Compression),
        part_size_bytes: Option<u64>,
    ) -> Result<UploadDetails> {
        let pusher = self.pusher(call, cache).await?;
        let cache = self.existing_cache(cache).await?;
        self.require_open()?;
        let part_size_bytes = part_size_bytes.unwrap_or(PART_SIZE_BYTES);
        if !(PART_SIZE_BYTES_MIN..=PART_SIZE_BYTES_MAX).contains(&part_size_bytes) {
            let why = format!("is not {PART_SIZE_BYTES_MIN} to {PART_SIZE_BYTES_MAX}");
            return Err(Rejection::value("part_size_bytes", why).into());
        }
        let key = UploadKey { cache: cache.id, contributor: pusher.contributor, nar_hash, compression };
        if let Some(found) = self.resume_upload(call, &cache, &key).await? {
            return Ok(found);
        }
        let stage = self.inner.storage.stage(Uuid::from_bytes(random::bytes())).await?;
        let made = restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Shared).await?;
            self.recheck(&mut tx, call, &Action::Push(cache.name.clone()), now).await?;
            self.recheck_cache(&mut tx, &cache).await?;
            if uploads::count(&mut tx, pusher.contributor).await? >= UNFINISHED_MAX {
                return Err(Conflict::State(TOO_MANY_UNFINISHED).into());
            }
            let row = UploadRow {
                id: stage.id,
                part_size_bytes,
                stage: stage.name.clone(),
                closed: false,
                expires_at: self.upload_end(now),
            };
            let made = uploads::insert(&mut tx, &key, &row, now).await?;
            tx.commit().await?;
            Ok::<_, Error>(made.then_some(row))
        })
        .await;
        if let Ok(Some(row)) = made {
            return self.details(row, Vec::new()).await;
        }
        self.remove_stage(&stage, &[]).await;
        made?;
        // Another call of the same contributor opened it in between.
        self.resume_upload(call, &cache, &key).await?.ok_or(Error::NotFound("upload"))
    }

    async fn resume_upload(
        &self,
        call: &Call,
        cache: &CacheRow,
        key: &UploadKey,
    ) -> Result<Option<UploadDetails>> {
        let found = restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Shared).await?;
            self.recheck(&mut tx, call, &Action::Push(cache.name.clone()), now).await?;
            let Some(row) = uploads::resume(&mut tx, key, self.upload_end(now)).await? else {
                return Ok(None);
            };
            let parts = uploads::parts(&mut tx, row.id).await?;
            tx.commit().await?;
            Ok::<_, Error>(Some((row, parts)))
        })
        .await?;
        match found {
            Some((row, parts)) => self.details(row, parts).await.map(Some),
            None => Ok(None),
        }
    }

    /// An upload of the caller's own.
    pub async fn show_upload(&self, call: &Call, cache: &CacheName, id: Uuid) -> Result<UploadDetails> {
        let pusher = self.pusher(call, cache).await?;
        let cache = self.existing_cache(cache).await?;
        let row = self.own_upload(&cache, &pusher, id).await?;
        let parts = uploads::parts(&mut *self.inner.db.read().await?, id).await?;
        self.details(row, parts).await
    }

    /// The upload with the parts that are there: of those that were to go straight to the bucket, which did.
    async fn details(&self, row: UploadRow, mut parts: Vec<PartRow>) -> Result<UploadDetails> {
        self.look_for_promised(&row, &mut parts).await?;
        Ok(UploadDetails {
            id: row.id,
            part_size_bytes: row.part_size_bytes,
            expires_at: row.expires_at,
            parts,
            direct: self.takes_direct_parts(),
        })
    }

    fn takes_direct_parts(&self) -> bool {
        self.inner.limits.direct_parts && self.inner.storage.takes_direct_parts()
    }

    /// Fills in the tags of parts that went straight to the bucket, and drops those that did not.
    async fn look_for_promised(&self, upload: &UploadRow, parts: &mut Vec<PartRow>) -> Result<()> {
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
    async fn keep_promised(&self, upload: &UploadRow) -> Result<()> {
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

    async fn own_upload(&self, cache: &CacheRow, pusher: &TokenCaller, id: Uuid) -> Result<UploadRow> {
        let mut connection = self.inner.db.read().await?;
        let row = uploads::find(&mut connection, cache.id, pusher.contributor, id).await?;
        row.ok_or(Error::NotFound("upload"))
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

    /// Ends an upload: reads the file back, verifies it as one that came in one piece, and puts it in its place.
    /// Goes on if the caller goes away. A file that is refused takes the upload with it; after any other failure the
    /// same call may be made again, also after one whose answer was lost.
    pub async fn complete_upload(
        &self,
        call: &Call,
        cache: &CacheName,
        id: Uuid,
        whole: WholeFile,
    ) -> Result<()> {
        let pusher = self.pusher(call, cache).await?;
        let cache = self.existing_cache(cache).await?;
        let upload = match self.own_upload(&cache, &pusher, id).await {
            Err(Error::NotFound(thing)) => {
                let row = measured::find(&mut *self.inner.db.read().await?, cache.id, &whole.file).await?;
                let stored = row.is_some_and(|row| row.state == FileState::Stored);
                return if stored { Ok(()) } else { Err(Error::NotFound(thing)) };
            }
            found => found?,
        };
        self.require_open()?;
        let max = self.inner.limits.measure.file_size_bytes_max;
        if whole.size_bytes > max {
            return Err(Error::TooLarge { what: "the uploaded file", max });
        }
        let memory = memory_charge(whole.file.extension) + self.inner.storage.upload_memory_bytes();
        let place = self.inner.admission.enter(pusher.token, memory).await?;
        let (service, call, cache) = (self.clone(), call.clone(), CacheRow::clone(&cache));
        let task = self.inner.tasks.spawn(async move {
            service.complete_in_place(&call, &cache, &pusher, &upload, whole, place).await
        });
        task.await.map_err(|panic| Error::Internal(panic.into()))?
    }

    async fn complete_in_place(
        &self,
        call: &Call,
        cache: &CacheRow,
        pusher: &TokenCaller,
        upload: &UploadRow,
        whole: WholeFile,
        _place: Place,
    ) -> Result<()> {
        let started = std::time::Instant::now();
        self.keep_promised(upload).await?;
        let parts = restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Shared).await?;
            self.recheck(&mut tx, call, &Action::Push(cache.name.clone()), now).await?;
            self.recheck_cache(&mut tx, cache).await?;
            if !uploads::close(&mut tx, upload.id, now, self.upload_end(now)).await? {
                return Err(Error::NotFound("upload"));
            }
            // Read behind the row that was just written: no part is added after this.
            let parts =
                whole_parts(uploads::parts(&mut tx, upload.id).await?, upload.part_size_bytes, whole)?;
            tx.commit().await?;
            Ok::<_, Error>(parts)
        })
        .await?;
        let stage = stage(upload);
        let done = self.verify_staged(call, cache, pusher, &stage, &parts, whole).await;
        match &done {
            Ok(()) => tracing::info!(
                cache = %cache.name,
                file = %whole.file,
                token.id = %pusher.token,
                size_bytes = whole.size_bytes,
                parts = whole.parts,
                duration_ms = started.elapsed().as_millis() as u64,
                "NAR in parts verified and stored"
            ),
            Err(Error::Rejected(_) | Error::TooLarge { .. }) => {}
            Err(_) => return done,
        }
        self.forget_upload(upload.id).await?;
        self.remove_stage(&stage, &parts).await;
        done
    }

    async fn verify_staged(
        &self,
        call: &Call,
        cache: &CacheRow,
        pusher: &TokenCaller,
        stage: &Stage,
        parts: &[StagedPart],
        whole: WholeFile,
    ) -> Result<()> {
        let storage = &self.inner.storage;
        storage.close_staged(stage, parts).await?;
        let key = super::key_of(cache, CacheObject::Nar(whole.file))?;
        let target = match storage.target_of_staged(&key).await? {
            Target::Written(upload) => Some(upload),
            Target::Copied => None,
        };
        let body = storage.read_staged(stage, parts).await?.map_err(Error::from);
        // It is this server that reads: nobody can be blamed for its pace.
        let (written, measurement) = self.stream_through(target, whole.file, body, Pace::new(0)).await?;
        let size_bytes = measurement.file_size;
        let content = match written {
            Some(upload) => Content::Written(upload),
            None => Content::Staged(stage.clone()),
        };
        let arriving = Arriving { file: whole.file, measurement, content };
        let results = self.store_measured(call, cache, pusher, vec![arriving]).await?;
        results.into_iter().collect::<Result<()>>()?;
        metrics::counter!("narvault_nars_stored_total").increment(1);
        metrics::counter!("narvault_upload_bytes_total").increment(size_bytes);
        Ok(())
    }

    /// Gives an upload of the caller's own up, with all that came of it.
    pub async fn abort_upload(&self, call: &Call, cache: &CacheName, id: Uuid) -> Result<()> {
        let pusher = self.pusher(call, cache).await?;
        let cache = self.existing_cache(cache).await?;
        let upload = self.own_upload(&cache, &pusher, id).await?;
        let parts = uploads::parts(&mut *self.inner.db.read().await?, id).await?;
        self.forget_upload(id).await?;
        self.remove_stage(&stage(&upload), &parts.into_iter().map(staged).collect::<Vec<_>>()).await;
        Ok(())
    }

    async fn forget_upload(&self, id: Uuid) -> Result<bool> {
        restarting(|| async {
            let mut tx = self.inner.db.begin(Gate::Shared).await?;
            let removed = uploads::remove(&mut tx, id).await?;
            tx.commit().await?;
            Ok(removed)
        })
        .await
    }

    /// Removes what storage keeps of an upload that has no row any more; what cannot be removed now, the sweeper finds.
    async fn remove_stage(&self, stage: &Stage, parts: &[StagedPart]) {
        if let Err(error) = self.inner.storage.remove_staged(stage, parts).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(upload = %stage.id, error, "parts of an upload stay for the sweeper");
        }
    }

    /// Forgets uploads whose time is over, with what storage keeps of them, and removes what storage has of none.
    pub(super) async fn sweep_uploads(&self, orphans_before: std::time::SystemTime) -> Result<u64> {
        let mut swept = 0;
        loop {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            let mut ended = Vec::new();
            for upload in uploads::expired(&mut tx, now, EXPIRED_AT_ONCE).await? {
                let parts = uploads::parts(&mut tx, upload.id).await?;
                uploads::remove(&mut tx, upload.id).await?;
                ended.push((stage(&upload), parts.into_iter().map(staged).collect::<Vec<_>>()));
            }
            tx.commit().await?;
            for (stage, parts) in &ended {
                self.remove_stage(stage, parts).await;
            }
            swept += ended.len() as u64;
            if ended.len() < EXPIRED_AT_ONCE as usize {
                break;
            }
        }
        let known = uploads::ids(&mut *self.inner.db.read().await?).await?.into_iter().collect();
        Ok(swept + self.inner.storage.sweep_staged(&known, orphans_before).await?)
    }

    /// Until when an upload is kept of which something came now.
    fn upload_end(&self, now: Timestamp) -> Timestamp {
        now.plus_millis(i64::try_from(self.inner.limits.upload_session.as_millis()).unwrap_or(i64::MAX / 4))
    }
}

/// The parts of the whole file: all there, each of its size.
fn whole_parts(mut rows: Vec<PartRow>, part_size_bytes: u64, whole: WholeFile) -> Result<Vec<StagedPart>> {
    let refused = |number, why: String| Error::from(Rejection::UploadPart { number, why });
    if whole.parts == 0 {
        return Err(Rejection::value("parts", "a file has one at least").into());
    }
    rows.retain(|row| row.tag != PROMISED);
    let mut rows = rows.into_iter();
    let mut parts = Vec::new();
    for number in 1..=whole.parts {
        let row = rows.next().filter(|row| row.number == number);
        let row = row.ok_or_else(|| refused(number, "it is missing; send it".to_owned()))?;
        if number < whole.parts && row.size_bytes != part_size_bytes {
            let why = format!(
                "it is {} bytes, and only the last may be less than {part_size_bytes}",
                row.size_bytes
            );
            return Err(refused(number, why));
        }
        parts.push(staged(row));
    }
    let found: u64 = parts.iter().map(|part| part.size_bytes).sum();
    if found != whole.size_bytes {
        let why = format!("the parts are {found} bytes together");
        return Err(Rejection::value("file_size_bytes", why).into());
    }
    Ok(parts)
}

fn stage(row: &UploadRow) -> Stage {
    Stage { id: row.id, name: row.stage.clone() }
}

fn staged(row: PartRow) -> StagedPart {
    StagedPart { number: row.number, size_bytes: row.size_bytes, sha256: row.sha256, tag: row.tag }
}

/// Size of a part unless told: below the limits of common proxies, 32 and 100 MB.
const PART_SIZE_BYTES: u64 = 16 * 1024 * 1024;

/// S3 takes no smaller parts but the last.
const PART_SIZE_BYTES_MIN: u64 = 5 * 1024 * 1024;

/// A part stands in memory whole while it comes in.
const PART_SIZE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Unfinished uploads of one contributor: far more than a machine sends at once.
const UNFINISHED_MAX: i64 = 256;

/// Uploads that end in one transaction of the sweeper.
const EXPIRED_AT_ONCE: i64 = 50;

/// How long a URL works by which a part goes straight to the bucket: a part of 64 MiB at 72 KiB/s.
const URL_LIFETIME: Duration = Duration::from_secs(900);

/// In place of the tag of a part that is to go straight to the bucket, until it is seen there. No bucket gives this.
const PROMISED: &str = "promised";

const NOT_DIRECT: &str = "this server takes parts itself; send it there";
const TOO_MANY_UNFINISHED: &str =
    "256 uploads of this contributor are unfinished; complete or delete some, or wait until they expire";
const CLOSED: &str = "the upload is being verified or is gone, and takes no parts";
