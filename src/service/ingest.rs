//! A NAR on its way in: one pass over the stream measures it and writes it to storage.
//!
//! Nothing is buffered whole. The object becomes visible in storage only after the verdict, and to
//! clients only by the row that is written last.

use std::fmt::Display;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::measure::{self, ChanRead, Chunk, MeasureError, Measurement};
use super::release::Release;
use super::{Call, Conflict, Error, Rejection, Result, Service};
use crate::access::{Action, CacheName, TokenCaller};
use crate::db::caches::CacheRow;
use crate::db::measured::{self, Arrival, FileState, NewMeasured};
use crate::db::{Gate, restarting};
use crate::nix::compression::{Compression, NarExtension, NarFileName};
use crate::storage::{CacheObject, Sealed, Upload};

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
        body: B,
    ) -> Result<()>
    where
        B: Stream<Item = std::result::Result<Bytes, E>> + Unpin + Send,
        E: Display,
    {
        let pusher = self.pusher(call, cache).await?;
        let cache = self.existing_cache(cache).await?;
        self.require_open()?;
        let limits = &self.inner.limits.measure;
        if stated_size.is_some_and(|size| size > limits.file_size_bytes_max) {
            return Err(Error::TooLarge { what: "the uploaded file", max: limits.file_size_bytes_max });
        }
        let memory = memory_charge(file.extension) + self.inner.storage.upload_memory_bytes();
        let _place = self.inner.admission.enter(pusher.token, memory).await?;
        let started = std::time::Instant::now();

        let key = super::key_of(&cache, CacheObject::Nar(file))?;
        let upload = self.inner.storage.upload(&key).await?;
        let (sealed, measurement) = self.stream_through(upload, file, body).await?;

        let result = self.store_measured(call, &cache, &pusher, file, sealed, &measurement).await;
        if result.is_ok() {
            tracing::info!(
                cache = %cache.name,
                file = %file,
                token.id = %pusher.token,
                size_bytes = measurement.file_size,
                nar_size_bytes = measurement.nar_size,
                duration_ms = started.elapsed().as_millis() as u64,
                "NAR verified and stored"
            );
            metrics::counter!("narvault_nars_stored_total").increment(1);
            metrics::counter!("narvault_upload_bytes_total").increment(measurement.file_size);
        }
        result
    }

    /// Feeds the body to the verifier and to storage at the speed of the slower one.
    async fn stream_through<B, E>(
        &self,
        mut upload: Upload,
        file: NarFileName,
        mut body: B,
    ) -> Result<(Sealed, Measurement)>
    where
        B: Stream<Item = std::result::Result<Bytes, E>> + Unpin + Send,
        E: Display,
    {
        let (to_verifier, chunks) = mpsc::channel(CHUNKS_IN_FLIGHT);
        let limits = self.inner.limits.measure;
        let verifier = tokio::task::spawn_blocking(move || {
            measure::measure(ChanRead::new(chunks), file.extension, &limits)
        });
        let mut pace = Pace::new(self.inner.limits.upload_min_bytes_per_second);
        let fed = async {
            loop {
                match pace.next(&mut body).await? {
                    Some(bytes) => {
                        if to_verifier.send(Chunk::Data(bytes.clone())).await.is_err() {
                            // The verifier has its verdict, and it is not a good one.
                            return Ok(());
                        }
                        upload.write(bytes).await?;
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
        let verdict = verifier.await.map_err(|panic| Error::Internal(panic.into()))?;
        let measurement = match (fed, verdict) {
            (Ok(()), Ok(measurement)) if measurement.file_hash == file.hash => measurement,
            (fed, verdict) => {
                upload.abort().await;
                return Err(failure(fed, verdict, file));
            }
        };
        Ok((upload.seal().await?, measurement))
    }

    /// Puts the object in its place, between two rows: one that says that it comes, one that it is there.
    async fn store_measured(
        &self,
        call: &Call,
        cache: &CacheRow,
        pusher: &TokenCaller,
        file: NarFileName,
        sealed: Sealed,
        measurement: &Measurement,
    ) -> Result<()> {
        let generation = self.announce(call, cache, pusher, file, measurement).await?;
        sealed.complete().await?;
        let stored = restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Shared).await?;
            self.recheck(&mut tx, call, &Action::Push(cache.name.clone()), now).await?;
            self.recheck_cache(&mut tx, cache).await?;
            let stored = measured::store(&mut tx, cache.id, &file, pusher.token, generation, now).await?;
            tx.commit().await?;
            Ok::<_, Error>(stored)
        })
        .await;
        if matches!(stored, Ok(true)) {
            return Ok(());
        }
        // Whatever the reason, nobody acknowledged these bytes: they go again, unless they are another's.
        self.condemn(cache, file).await;
        stored?;
        Err(Conflict::DeletedMeanwhile.into())
    }

    /// Writes down that the object comes, as soon as no DELETE of an earlier one can land any more.
    async fn announce(
        &self,
        call: &Call,
        cache: &CacheRow,
        pusher: &TokenCaller,
        file: NarFileName,
        measurement: &Measurement,
    ) -> Result<i64> {
        let found_refs =
            measurement.references.hashes.iter().map(|hash| hash.as_str()).collect::<Vec<_>>().join(" ");
        loop {
            let arrival = restarting(|| async {
                let now = self.inner.clock.now();
                let mut tx = self.inner.db.begin_lazy(Gate::Shared).await?;
                self.recheck(&mut tx, call, &Action::Push(cache.name.clone()), now).await?;
                self.recheck_cache(&mut tx, cache).await?;
                let new = NewMeasured {
                    id: self.new_id(now),
                    cache: cache.id,
                    file,
                    compression: measurement.compression,
                    file_size: measurement.file_size,
                    nar_hash: measurement.nar_hash,
                    nar_size: measurement.nar_size,
                    found_refs: &found_refs,
                    found_refs_truncated: measurement.references.truncated,
                    single_file: measurement.single_file.as_ref().map(|file| (file.sha256, file.executable)),
                    token: pusher.token,
                    stored_at: now,
                };
                let arrival = measured::arrive(&mut tx, &new).await?;
                tx.commit().await?;
                Ok::<_, Error>(arrival)
            })
            .await?;
            match arrival {
                Arrival::Generation(generation) => return Ok(generation),
                Arrival::Wait(until) => {
                    let wait = until.0.saturating_sub(self.inner.clock.now().0).clamp(1, 60_000);
                    tokio::time::sleep(Duration::from_millis(wait.unsigned_abs())).await;
                }
            }
        }
    }

    /// Has the object deleted, unless its row says that somebody else's push stands there.
    async fn condemn(&self, cache: &CacheRow, file: NarFileName) {
        let condemned = restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            let row = measured::find(&mut tx, cache.id, &file).await?;
            if let Some(row) = row.filter(|row| row.state != FileState::Stored) {
                measured::doom(&mut tx, &row.id).await?;
                Release::by_worker(cache, now).object(&mut tx, CacheObject::Nar(file)).await?;
            }
            Ok::<_, Error>(tx.commit().await?)
        });
        if let Err(error) = condemned.await {
            // The row says `arriving`, which the sweeper finds.
            tracing::warn!(%file, error = &error as &dyn std::error::Error, "an upload's bytes stay for the sweeper");
        }
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
fn memory_charge(extension: NarExtension) -> u64 {
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

/// Cuts off a client that sends too slowly. Only time spent waiting for the client counts.
struct Pace {
    bytes_min: u64,
    bytes: u64,
    waited: Duration,
}

impl Pace {
    fn new(bytes_per_second_min: u64) -> Self {
        Self { bytes_min: bytes_per_second_min * PACE_WINDOW.as_secs(), bytes: 0, waited: Duration::ZERO }
    }

    async fn next<B, E>(&mut self, body: &mut B) -> Result<Option<Bytes>>
    where
        B: Stream<Item = std::result::Result<Bytes, E>> + Unpin,
        E: Display,
    {
        let asked_at = Instant::now();
        let frame = tokio::time::timeout(PACE_WINDOW.saturating_sub(self.waited), body.next()).await;
        self.waited += asked_at.elapsed();
        let bytes = match frame {
            // The window is over while nothing came; where it was good, the next one begins.
            Err(_) => {
                self.end_window()?;
                return Box::pin(self.next(body)).await;
            }
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => {
                tracing::debug!(%error, "the body of an upload broke off");
                return Err(Error::Aborted);
            }
            Ok(Some(Ok(bytes))) => bytes,
        };
        self.bytes += bytes.len() as u64;
        if self.waited >= PACE_WINDOW {
            self.end_window()?;
        }
        Ok(Some(bytes))
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

    fn trickle(
        pause: Duration,
        bytes: usize,
    ) -> impl Stream<Item = std::result::Result<Bytes, &'static str>> + Unpin {
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
