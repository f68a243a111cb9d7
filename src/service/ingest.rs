//! A NAR on its way in: one pass over the stream measures it and writes it to storage.
//!
//! Nothing is buffered whole. The object becomes visible in storage only after the verdict, and to
//! clients only by the row that is written last.

use std::fmt::Display;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::measure::{self, ChanRead, Chunk, MeasureError, Measurement};
use super::release::Release;
use super::{Call, Conflict, Error, Rejection, Result, Service};
use crate::access::{CacheName, TokenCaller};
use crate::db::caches::CacheRow;
use crate::db::measured::{self, Arrival, FileState, NewMeasured};
use crate::db::{Gate, restarting};
use crate::nix::compression::{Compression, NarExtension, NarFileName};
use crate::storage::{CacheObject, ObjectKey, Prepared, Sealed, Settling, Stage, Upload};

impl Service {
    /// Takes in the NAR file `file` for `cache`, whose body is `stated_size` bytes if the client said so.
    ///
    /// The body is polled only after the caller's right was checked and a place was free. Answers once the
    /// NAR is verified, durable, and known to every replica.
    pub async fn put_nar<B, E>(
        &self,
        call: &Call,
        cache: &CacheName,
        file: NarFileName,
        stated_size: Option<u64>,
        mut body: B,
    ) -> Result<()>
    where
        B: Stream<Item = std::result::Result<Bytes, E>> + Unpin + Send,
        E: Display,
    {
        let pusher = self.pusher(call, cache).await?;
        let cache = self.existing_cache(cache).await?;
        self.require_nar_room(stated_size)?;
        let memory = memory_charge(file.extension) + self.inner.storage.upload_memory_bytes();
        let _place = self.inner.admission.enter(pusher.token, memory).await?;
        let started = std::time::Instant::now();

        let pace = Pace::new(self.inner.limits.upload_min_bytes_per_second);
        let body = received(&mut body);
        let arriving = match stated_size.and_then(|size| usize::try_from(size).ok()) {
            Some(size) if size <= WHOLE_BYTES_MAX => self.receive_whole(file, size, body, pace).await?,
            _ => {
                let key = super::key_of(&cache, CacheObject::Nar(file))?;
                let upload = self.inner.storage.upload(&key).await?;
                let (sealed, measurement) = self.stream_through(Some(upload), file, body, pace).await?;
                let content = sealed.map(Content::Sealed).ok_or(Error::Aborted)?;
                Arriving { file, measurement, content }
            }
        };
        let (size_bytes, nar_size_bytes) = (arriving.measurement.file_size, arriving.measurement.nar_size);
        let results = self.store_measured(call, &cache, &pusher, vec![arriving]).await?;
        results.into_iter().collect::<Result<()>>()?;
        tracing::info!(
            cache = %cache.name,
            file = %file,
            token.id = %pusher.token,
            size_bytes,
            nar_size_bytes,
            duration_ms = started.elapsed().as_millis() as u64,
            "NAR verified and stored"
        );
        metrics::counter!("narvault_nars_stored_total").increment(1);
        metrics::counter!("narvault_upload_bytes_total").increment(size_bytes);
        Ok(())
    }

    /// Refuses a NAR file of `stated_size` bytes where the vault is sealed, or where it is too large: what is told
    /// before its name or anything of its content is looked at.
    pub fn require_nar_room(&self, stated_size: Option<u64>) -> Result<()> {
        self.require_open()?;
        let max = self.inner.limits.measure.file_size_bytes_max;
        if stated_size.is_some_and(|size| size > max) {
            return Err(Error::TooLarge { what: "the uploaded file", max });
        }
        Ok(())
    }

    /// Receives and measures a small file that is held whole: most of a closure's files are, and for those the way
    /// through channels and threads costs more than the work.
    async fn receive_whole<B>(
        &self,
        file: NarFileName,
        stated_size: usize,
        mut body: B,
        mut pace: Pace,
    ) -> Result<Arriving>
    where
        B: Stream<Item = Result<Bytes>> + Unpin + Send,
    {
        let mut bytes = BytesMut::with_capacity(stated_size);
        while let Some(piece) = pace.next(&mut body).await? {
            if bytes.len() + piece.len() > stated_size {
                return Err(Error::Aborted);
            }
            bytes.extend_from_slice(&piece);
        }
        if bytes.len() < stated_size {
            return Err(Error::Aborted);
        }
        let bytes = bytes.freeze();
        match measure::measure(&bytes[..], file.extension, &self.inner.limits.measure) {
            Ok(measurement) if measurement.file_hash == file.hash => {
                Ok(Arriving { file, measurement, content: Content::Whole(bytes) })
            }
            verdict => Err(failure(Ok(()), verdict, file)),
        }
    }

    /// Feeds the body to the verifier, and to storage where it is not there yet, at the speed of the slower one. What
    /// storage got is durable then, and not visible.
    pub(super) async fn stream_through<B>(
        &self,
        mut upload: Option<Upload>,
        file: NarFileName,
        mut body: B,
        mut pace: Pace,
    ) -> Result<(Option<Sealed>, Measurement)>
    where
        B: Stream<Item = Result<Bytes>> + Unpin + Send,
    {
        let (to_verifier, chunks) = mpsc::channel(CHUNKS_IN_FLIGHT);
        let limits = self.inner.limits.measure;
        let verifier = tokio::task::spawn_blocking(move || {
            measure::measure(ChanRead::new(chunks), file.extension, &limits)
        });
        let fed = async {
            loop {
                match pace.next(&mut body).await? {
                    Some(bytes) => {
                        if to_verifier.send(Chunk::Data(bytes.clone())).await.is_err() {
                            // The verifier has its verdict, and it is not a good one.
                            return Ok(());
                        }
                        if let Some(upload) = &mut upload {
                            upload.write(bytes).await?;
                        }
                    }
                    None => {
                        let _ = to_verifier.send(Chunk::End).await;
                        return Ok(());
                    }
                }
            }
        };
        let fed: Result<()> = fed.await;
        drop(to_verifier);
        // The last bytes become durable while they are verified.
        let sealing = async {
            match (upload, &fed) {
                (Some(upload), Ok(())) => upload.seal().await.map(Some),
                (Some(upload), Err(_)) => {
                    upload.abort().await;
                    Ok(None)
                }
                (None, _) => Ok(None),
            }
        };
        let (verdict, sealed) = tokio::join!(verifier, sealing);
        let verdict = verdict.map_err(|panic| Error::Internal(panic.into()))?;
        match (fed, verdict) {
            (Ok(()), Ok(measurement)) if measurement.file_hash == file.hash => Ok((sealed?, measurement)),
            (fed, verdict) => {
                if let Ok(Some(sealed)) = sealed {
                    sealed.abort().await;
                }
                Err(failure(fed, verdict, file))
            }
        }
    }

    /// Puts verified objects in their places, between two rows for each: one that says that it comes, one that it
    /// is there. Each file is there once. Answers with what became of each, in their order; an error means all.
    pub(super) async fn store_measured(
        &self,
        call: &Call,
        cache: &CacheRow,
        pusher: &TokenCaller,
        arriving: Vec<Arriving>,
    ) -> Result<Vec<Result<()>>> {
        let (contents, arriving): (Vec<_>, Vec<_>) = arriving.into_iter().map(Arriving::split).unzip();
        // The rows do not need the bytes to be durable, nor the bytes the rows: only visible they must not be before.
        let preparing = self.prepare(cache, contents);
        let (prepared, generations) = tokio::join!(preparing, self.announce(call, cache, pusher, &arriving));
        let files: Vec<_> = arriving.iter().map(|one| one.file).zip(generations?).collect();
        let (mut results, settling) = self.place(prepared?).await?;
        let placed: Vec<_> =
            files.iter().zip(&results).filter(|(_, result)| result.is_ok()).map(|(file, _)| *file).collect();
        let stored = restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Shared).await?;
            self.recheck_push(&mut tx, call, cache, now).await?;
            let stored = measured::store(&mut tx, cache.id, &placed, pusher.token, now).await?;
            tx.commit().await?;
            Ok::<_, Error>(stored)
        })
        .await;
        // A row without its file, which a power failure may leave before this, is found out by whoever publishes it.
        let settled = settling.end().await;
        if settled.is_err() {
            self.lose(cache, &placed).await;
        }
        // Whatever the reason, nobody acknowledged the others' bytes: they go again, unless they are another's.
        let known = stored.as_ref().ok();
        let unstored = files.iter().map(|(file, _)| *file);
        let unstored = unstored.filter(|file| known.is_none_or(|stored| !stored.contains(file)));
        self.condemn(cache, unstored.collect()).await;
        let stored = stored?;
        settled?;
        for ((file, _), result) in files.iter().zip(&mut results) {
            if result.is_ok() && !stored.contains(file) {
                *result = Err(Conflict::DeletedMeanwhile.into());
            }
        }
        Ok(results)
    }

    /// Does for the objects all that can be done while nobody can see them. A fault of one is told when it is placed.
    async fn prepare(
        &self,
        cache: &CacheRow,
        contents: Vec<(NarFileName, u64, Content)>,
    ) -> Result<Vec<Ready>> {
        let key = |file| super::key_of(cache, CacheObject::Nar(file));
        let mut whole = Vec::new();
        for (file, _, content) in &contents {
            if let Content::Whole(bytes) = content {
                whole.push((key(*file)?, bytes.clone()));
            }
        }
        let mut prepared = self.inner.storage.prepare_all(whole).await.into_iter();
        let mut ready = Vec::with_capacity(contents.len());
        for (file, size_bytes, content) in contents {
            ready.push(match content {
                Content::Sealed(sealed) => Ready::Sealed(sealed),
                Content::Staged(stage) => Ready::Staged { stage, size_bytes, key: key(file)? },
                Content::Whole(_) => Ready::Whole(prepared.next().ok_or(Error::Aborted)?),
            });
        }
        Ok(ready)
    }

    /// Makes the objects visible in storage, whose rows say that they come. Small ones are durable a little later.
    async fn place(&self, ready: Vec<Ready>) -> Result<(Vec<Result<()>>, Settling)> {
        let mut small = Vec::new();
        let mut results = Vec::with_capacity(ready.len());
        for one in ready {
            results.push(match one {
                Ready::Staged { stage, size_bytes, key } => {
                    Some(self.inner.storage.copy_staged(&stage, size_bytes, &key).await.map_err(Error::from))
                }
                Ready::Sealed(sealed) => Some(sealed.complete().await.map_err(Error::from)),
                Ready::Whole(prepared) => {
                    small.push(prepared);
                    None
                }
            });
        }
        let (placed, settling) = self.inner.storage.place_all(small).await;
        let mut placed = placed.into_iter();
        let mut next = || placed.next().map_or(Err(Error::Aborted), |result| result.map_err(Error::from));
        Ok((results.into_iter().map(|result| result.unwrap_or_else(&mut next)).collect(), settling))
    }

    /// Writes down that the objects come, as soon as no DELETE of an earlier one can land any more.
    async fn announce(
        &self,
        call: &Call,
        cache: &CacheRow,
        pusher: &TokenCaller,
        arriving: &[Arrived],
    ) -> Result<Vec<i64>> {
        let found_refs: Vec<String> = arriving.iter().map(|one| found_refs(&one.measurement)).collect();
        loop {
            let arrival = restarting(|| async {
                let now = self.inner.clock.now();
                let mut tx = self.inner.db.begin_lazy(Gate::Shared).await?;
                self.recheck_push(&mut tx, call, cache, now).await?;
                let new = |(Arrived { file, measurement }, found_refs): (&Arrived, _)| {
                    new_measured(self.new_id(now), *file, measurement, found_refs)
                };
                let found_refs = found_refs.iter().map(String::as_str);
                let new: Vec<_> = arriving.iter().zip(found_refs).map(new).collect();
                let arrival = measured::arrive(&mut tx, cache.id, &new, pusher.token, now).await?;
                if matches!(arrival, Arrival::Generations(_)) {
                    tx.commit().await?;
                }
                Ok::<_, Error>(arrival)
            })
            .await?;
            match arrival {
                Arrival::Generations(generations) => return Ok(generations),
                Arrival::Wait(until) => {
                    let wait = until.0.saturating_sub(self.inner.clock.now().0).clamp(1, 60_000);
                    tokio::time::sleep(Duration::from_millis(wait.unsigned_abs())).await;
                }
            }
        }
    }

    /// Has files pushed anew of which nobody knows whether they last.
    pub(super) async fn lose(&self, cache: &CacheRow, files: &[(NarFileName, i64)]) {
        let lost = restarting(|| async {
            let mut tx = self.inner.db.begin(Gate::Shared).await?;
            for (file, generation) in files {
                if let Some(row) = measured::find(&mut tx, cache.id, file).await? {
                    measured::lose(&mut tx, &row.id, *generation).await?;
                }
            }
            Ok::<_, Error>(tx.commit().await?)
        });
        if let Err(error) = lost.await {
            // What is missing is found missing when it is looked for.
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "files are taken for stored that may not last"
            );
        }
    }

    /// Has objects deleted, unless their rows say that somebody else's push stands there.
    async fn condemn(&self, cache: &CacheRow, files: Vec<NarFileName>) {
        for files in files.chunks(CONDEMNED_AT_ONCE) {
            let condemned = restarting(|| async {
                let now = self.inner.clock.now();
                let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
                for file in files {
                    let row = measured::find(&mut tx, cache.id, file).await?;
                    if let Some(row) = row.filter(|row| row.state != FileState::Stored) {
                        measured::doom(&mut tx, &row.id).await?;
                        Release::by_worker(cache, now).object(&mut tx, CacheObject::Nar(*file)).await?;
                    }
                }
                Ok::<_, Error>(tx.commit().await?)
            });
            if let Err(error) = condemned.await {
                // The rows say `arriving`, which the sweeper finds.
                tracing::warn!(
                    files = files.len(),
                    error = &error as &dyn std::error::Error,
                    "bytes of uploads stay for the sweeper"
                );
            }
        }
    }
}

/// A verified file on its way to its place.
pub(super) struct Arriving {
    pub file: NarFileName,
    pub measurement: Measurement,
    pub content: Content,
}

impl Arriving {
    /// The bytes with their name and size, and what was found out about them.
    fn split(self) -> ((NarFileName, u64, Content), Arrived) {
        let Self { file, measurement, content } = self;
        ((file, measurement.file_size, content), Arrived { file, measurement })
    }
}

/// What is known of a file, without its bytes.
struct Arrived {
    file: NarFileName,
    measurement: Measurement,
}

/// Bytes that nobody can see yet.
enum Ready {
    Sealed(Sealed),
    Whole(crate::storage::Result<Prepared>),
    Staged { stage: Stage, size_bytes: u64, key: ObjectKey },
}

/// Where the bytes of a verified file are meanwhile.
pub(super) enum Content {
    /// In storage, not visible yet.
    Sealed(Sealed),
    /// Here.
    Whole(Bytes),
    /// In storage under another name.
    Staged(Stage),
}

/// Store paths that the archive mentions, as the row has them.
pub(super) fn found_refs(measurement: &Measurement) -> String {
    measurement.references.hashes.iter().map(|hash| hash.as_str()).collect::<Vec<_>>().join(" ")
}

/// The row of a measured file, with what [`found_refs`] gives.
pub(super) fn new_measured<'a>(
    id: String,
    file: NarFileName,
    measurement: &Measurement,
    found_refs: &'a str,
) -> NewMeasured<'a> {
    NewMeasured {
        id,
        file,
        compression: measurement.compression,
        file_size: measurement.file_size,
        nar_hash: measurement.nar_hash,
        nar_size: measurement.nar_size,
        found_refs,
        found_refs_truncated: measurement.references.truncated,
        single_file: measurement.single_file.as_ref().map(|file| (file.sha256, file.executable)),
    }
}

/// Which of the two faults to tell: the content's where there is one, else that of the way.
fn failure(
    fed: Result<()>,
    verdict: std::result::Result<Measurement, MeasureError>,
    named: NarFileName,
) -> Error {
    match (fed, verdict) {
        (Ok(()), Ok(measurement)) => {
            let measured = NarFileName { hash: measurement.file_hash, ..named };
            Rejection::FileHash { named, measured }.into()
        }
        (Err(error), Err(MeasureError::Source(_)) | Ok(_)) => error,
        (_, Err(error)) => error.into(),
    }
}

/// A bound of the memory that measuring a file with this ending may take.
pub(super) fn memory_charge(extension: NarExtension) -> u64 {
    let decoder = match extension.compression() {
        Some(compression) => measure::memory_bytes(compression),
        // Plain or gzip: the name does not say which.
        None => measure::memory_bytes(Compression::Gzip).max(measure::memory_bytes(Compression::None)),
    };
    decoder + CHUNKS_IN_FLIGHT as u64 * CHUNK_BYTES
}

/// Pieces of a body on their way to the verifier.
const CHUNKS_IN_FLIGHT: usize = 8;

/// What one piece may hold: the HTTP layer's read buffer is not larger.
const CHUNK_BYTES: u64 = 512 * 1024;

/// A body whose faults are those of its way here.
pub(super) fn received<B, E>(body: &mut B) -> impl Stream<Item = Result<Bytes>> + Unpin + Send
where
    B: Stream<Item = std::result::Result<Bytes, E>> + Unpin + Send,
    E: Display,
{
    body.map(|piece| {
        piece.map_err(|error| {
            tracing::debug!(%error, "the body of an upload broke off");
            Error::Aborted
        })
    })
}

/// Files up to this size are held whole while they are received: less than what the streaming of one takes.
const WHOLE_BYTES_MAX: usize = 256 * 1024;

/// At most so many rows under one exclusive gate.
const CONDEMNED_AT_ONCE: usize = 200;

/// Cuts off a client that sends too slowly. Only time spent waiting for the client counts.
pub(super) struct Pace {
    bytes_min: u64,
    bytes: u64,
    waited: Duration,
}

impl Pace {
    pub fn new(bytes_per_second_min: u64) -> Self {
        Self { bytes_min: bytes_per_second_min * PACE_WINDOW.as_secs(), bytes: 0, waited: Duration::ZERO }
    }

    /// The next piece of what a client sends.
    pub async fn next<B, T>(&mut self, body: &mut B) -> Result<Option<T>>
    where
        B: Stream<Item = Result<T>> + Unpin,
        T: AsRef<[u8]>,
    {
        let asked_at = Instant::now();
        let frame = tokio::time::timeout(PACE_WINDOW.saturating_sub(self.waited), body.next()).await;
        self.waited += asked_at.elapsed();
        let piece = match frame {
            // The window is over while nothing came; where it was good, the next one begins.
            Err(_) => {
                self.end_window()?;
                return Box::pin(self.next(body)).await;
            }
            Ok(None) => return Ok(None),
            Ok(Some(piece)) => piece?,
        };
        self.bytes += piece.as_ref().len() as u64;
        if self.waited >= PACE_WINDOW {
            self.end_window()?;
        }
        Ok(Some(piece))
    }

    fn end_window(&mut self) -> Result<()> {
        if self.bytes < self.bytes_min {
            let bytes_per_second_min = self.bytes_min / PACE_WINDOW.as_secs();
            return Err(Error::TooSlow { bytes_per_second_min });
        }
        self.bytes = 0;
        self.waited = Duration::ZERO;
        Ok(())
    }
}

/// Over which time the least speed is measured.
const PACE_WINDOW: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn trickle(pause: Duration, bytes: usize) -> impl Stream<Item = Result<Bytes>> + Unpin {
        Box::pin(stream::unfold((), move |()| async move {
            tokio::time::sleep(pause).await;
            Some((Ok(Bytes::from(vec![0; bytes])), ()))
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_is_cut_after_a_minute() {
        let mut body = trickle(Duration::from_secs(1), 1000);
        let mut pace = Pace::new(1024);
        let started = Instant::now();

        let end = loop {
            if let Err(error) = pace.next(&mut body).await {
                break error;
            }
        };

        assert!(matches!(end, Error::TooSlow { .. }));
        assert_eq!(started.elapsed().as_secs(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_but_steady_upload_goes_on() {
        let mut body = trickle(Duration::from_secs(50), 61 * 1024);
        let mut pace = Pace::new(1024);

        for _ in 0..100 {
            assert!(pace.next(&mut body).await.is_ok());
        }
    }
}
