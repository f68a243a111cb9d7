//! The end of an upload in parts: read back whole, verified as a file that came in one piece, put in its place.

use futures_util::TryStreamExt as _;
use uuid::Uuid;

use super::parts::PROMISED;
use super::{WholeFile, stage, staged};
use crate::access::{Action, CacheName, TokenCaller};
use crate::db::caches::CacheRow;
use crate::db::measured::{self, FileState};
use crate::db::uploads::{self, PartRow, UploadRow};
use crate::db::{Gate, restarting};
use crate::service::admission::Place;
use crate::service::ingest::{Arriving, Content, Pace, memory_charge};
use crate::service::{Call, Error, Rejection, Result, Service, key_of};
use crate::storage::{CacheObject, Stage, StagedPart, Target};

impl Service {
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
        let key = key_of(cache, CacheObject::Nar(whole.file))?;
        let target = match storage.target_of_staged(&key).await? {
            Target::Written(upload) => Some(*upload),
            Target::Copied => None,
        };
        let body = storage.read_staged(stage, parts).await?.map_err(Error::from);
        // It is this server that reads: nobody can be blamed for its pace.
        let (written, measurement) = self.stream_through(target, whole.file, body, Pace::new(0)).await?;
        let size_bytes = measurement.file_size;
        let content = match written {
            Some(sealed) => Content::Sealed(sealed),
            None => Content::Staged(stage.clone()),
        };
        let arriving = Arriving { file: whole.file, measurement, content };
        let results = self.store_measured(call, cache, pusher, vec![arriving]).await?;
        results.into_iter().collect::<Result<()>>()?;
        metrics::counter!("narvault_nars_stored_total").increment(1);
        metrics::counter!("narvault_upload_bytes_total").increment(size_bytes);
        Ok(())
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
