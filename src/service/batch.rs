//! Many small NARs in one call: each measured as one that comes alone, their rows written together.
//!
//! Holds the files of one batch in memory, which is charged to admission, and nothing of it reaches storage before
//! the last byte has come: a batch that breaks off leaves nothing.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use tokio::task::JoinSet;

use super::ingest::{Arriving, Content, Pace};
use super::measure::{self, MeasureError, Measurement};
use super::{Call, Error, Rejection, Result, Service};
use crate::access::{CacheName, TokenCaller};
use crate::db::caches::CacheRow;
use crate::nix::compression::{Compression, NarFileName};

/// A piece of a batch as it comes in.
#[derive(Debug)]
pub enum NarPiece {
    /// A file begins, of which `size_bytes` bytes follow.
    File {
        name: String,
        size_bytes: u64,
    },
    Data(Bytes),
}

impl AsRef<[u8]> for NarPiece {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::File { name, .. } => name.as_bytes(),
            Self::Data(bytes) => bytes,
        }
    }
}

/// What became of one file of a batch.
#[derive(Debug)]
pub struct NarOutcome {
    /// As the client called it.
    pub name: String,
    pub result: Result<()>,
}

/// A file whose bytes came in.
struct Received {
    name: String,
    size_bytes: u64,
    bytes: BytesMut,
}

/// What was found out about one file.
struct Verdict {
    name: String,
    result: Result<(NarFileName, Bytes, Measurement)>,
}

impl Service {
    /// Takes in many NAR files for `cache`: a refused one does not sink the others. Answers, in the order in which
    /// they came, once those that are verified are durable and known to every replica.
    ///
    /// `pieces` is polled only after the caller's right was checked and a place was free. Its error, or a revocation
    /// meanwhile, refuses the whole batch.
    pub async fn put_nars<P>(&self, call: &Call, cache: &CacheName, mut pieces: P) -> Result<Vec<NarOutcome>>
    where
        P: Stream<Item = Result<NarPiece>> + Unpin + Send,
    {
        let pusher = self.pusher(call, cache).await?;
        let cache = self.existing_cache(cache).await?;
        self.require_open()?;
        let _place = self.inner.admission.enter(pusher.token, BATCH_MEMORY_BYTES).await?;
        let started = std::time::Instant::now();
        let verdicts = self.measure_batch(&mut pieces).await?;
        let count = verdicts.len();
        let outcomes = self.store_batch(call, &cache, &pusher, verdicts).await?;
        let stored = outcomes.iter().filter(|outcome| outcome.result.is_ok()).count();
        tracing::info!(
            cache = %cache.name,
            token.id = %pusher.token,
            files = count,
            stored,
            duration_ms = started.elapsed().as_millis() as u64,
            "batch of NARs verified and stored"
        );
        Ok(outcomes)
    }

    /// Receives the files and measures them meanwhile, a few at once.
    async fn measure_batch<P>(&self, pieces: &mut P) -> Result<Vec<Verdict>>
    where
        P: Stream<Item = Result<NarPiece>> + Unpin + Send,
    {
        let mut pace = Pace::new(self.inner.limits.upload_min_bytes_per_second);
        let mut measuring = Measuring::default();
        let mut current: Option<Received> = None;
        let mut room = BATCH_SIZE_BYTES_MAX;
        while let Some(piece) = pace.next(pieces).await? {
            match piece {
                NarPiece::File { name, size_bytes } => {
                    let too_large = Error::TooLarge { what: "the batch", max: BATCH_SIZE_BYTES_MAX };
                    room = room.checked_sub(size_bytes).ok_or(too_large)?;
                    let bytes = BytesMut::with_capacity(size_bytes as usize);
                    current = Some(Received { name, size_bytes, bytes });
                }
                NarPiece::Data(bytes) => {
                    let received = current.as_mut().ok_or(Error::Aborted)?;
                    received.bytes.extend_from_slice(&bytes);
                }
            }
            let is_whole = |received: &mut Received| received.bytes.len() as u64 >= received.size_bytes;
            if let Some(received) = current.take_if(is_whole) {
                self.begin_measuring(&mut measuring, received).await?;
            }
        }
        if current.is_some() {
            return Err(Error::Aborted);
        }
        measuring.finish().await
    }

    async fn begin_measuring(&self, measuring: &mut Measuring, received: Received) -> Result<()> {
        let Received { name, bytes, .. } = received;
        let file: NarFileName = match name.parse() {
            Ok(file) => file,
            Err(error) => {
                let result = Err(Rejection::NarName(error).into());
                measuring.verdicts.push(Some(Verdict { name, result }));
                return Ok(());
            }
        };
        let (bytes, limits) = (bytes.freeze(), self.inner.limits.measure);
        measuring.begin(name, move || {
            let measurement =
                measure::measure(&bytes[..], file.extension, &limits).map_err(|error| match error {
                    // There is no way here on which bytes could be lost.
                    MeasureError::Source(source) => Error::Internal(source.into()),
                    error => error.into(),
                })?;
            if measurement.file_hash != file.hash {
                let measured = NarFileName { hash: measurement.file_hash, ..file };
                return Err(Rejection::FileHash { named: file, measured }.into());
            }
            Ok((file, bytes, measurement))
        });
        measuring.make_room().await
    }

    async fn store_batch(
        &self,
        call: &Call,
        cache: &CacheRow,
        pusher: &TokenCaller,
        verdicts: Vec<Verdict>,
    ) -> Result<Vec<NarOutcome>> {
        let mut arriving = Vec::new();
        let mut seen = BTreeSet::new();
        let mut named = Vec::with_capacity(verdicts.len());
        let mut size_bytes = 0;
        for Verdict { name, result } in verdicts {
            let file = result.map(|(file, bytes, measurement)| {
                // The same file once more has the same bytes.
                if seen.insert(file) {
                    size_bytes += measurement.file_size;
                    arriving.push(Arriving { file, measurement, content: Content::Whole(bytes) });
                }
                file
            });
            named.push((name, file));
        }
        let mut failed = BTreeMap::new();
        if !arriving.is_empty() {
            let files: Vec<_> = arriving.iter().map(|one| one.file).collect();
            let results = self.store_measured(call, cache, pusher, arriving).await?;
            for (file, result) in files.into_iter().zip(results) {
                match result {
                    Ok(()) => metrics::counter!("narvault_nars_stored_total").increment(1),
                    Err(error) => drop(failed.insert(file, Some(error))),
                }
            }
            metrics::counter!("narvault_upload_bytes_total").increment(size_bytes);
        }
        let outcome = |(name, file): (String, Result<NarFileName>)| {
            let result = file.and_then(|file| match failed.get_mut(&file) {
                None => Ok(()),
                // A file that came twice is lost twice.
                Some(error) => Err(error.take().unwrap_or_else(|| Rejection::LostNar(file).into())),
            });
            NarOutcome { name, result }
        };
        Ok(named.into_iter().map(outcome).collect())
    }
}

/// Files that are being measured, and what was found out about the others, in the order in which they came.
#[derive(Default)]
struct Measuring {
    verdicts: Vec<Option<Verdict>>,
    tasks: JoinSet<(usize, Verdict)>,
    /// Store paths that the measured files mention, all counted.
    references: usize,
}

impl Measuring {
    fn begin(
        &mut self,
        name: String,
        work: impl FnOnce() -> Result<(NarFileName, Bytes, Measurement)> + Send + 'static,
    ) {
        let at = self.verdicts.len();
        self.verdicts.push(None);
        self.tasks.spawn_blocking(move || (at, Verdict { name, result: work() }));
    }

    /// Waits until another file may be measured.
    async fn make_room(&mut self) -> Result<()> {
        while self.tasks.len() >= MEASURED_AT_ONCE {
            self.join().await?;
        }
        Ok(())
    }

    async fn join(&mut self) -> Result<()> {
        let Some(joined) = self.tasks.join_next().await else { return Ok(()) };
        let (at, mut verdict) = joined.map_err(|panic| Error::Internal(panic.into()))?;
        if let Ok((_, _, measurement)) = &verdict.result {
            self.references += measurement.references.hashes.len();
            if self.references > BATCH_REFERENCES_MAX {
                self.references -= measurement.references.hashes.len();
                verdict.result = Err(Rejection::BatchReferences { max: BATCH_REFERENCES_MAX }.into());
            }
        }
        self.verdicts[at] = Some(verdict);
        Ok(())
    }

    async fn finish(mut self) -> Result<Vec<Verdict>> {
        while !self.tasks.is_empty() {
            self.join().await?;
        }
        Ok(self.verdicts.into_iter().flatten().collect())
    }
}

/// Most bytes of all files of one batch.
pub const BATCH_SIZE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Most store paths that the files of one batch may mention together: 1 000 files of an ordinary closure mention
/// about 10 000.
const BATCH_REFERENCES_MAX: usize = 262_144;

/// Bytes that a mentioned store path takes: its hash, and its place in a row's text before that is written.
const REFERENCE_BYTES: u64 = 160;

/// Files of one batch that are measured at once.
const MEASURED_AT_ONCE: usize = 2;

/// A bound of the memory that a batch may take: its files, what they mention, and the greediest decoders.
const BATCH_MEMORY_BYTES: u64 = BATCH_SIZE_BYTES_MAX
    + BATCH_REFERENCES_MAX as u64 * REFERENCE_BYTES
    + MEASURED_AT_ONCE as u64 * measure::memory_bytes(Compression::Xz);
