//! Pushing from a store on this machine: asks what is missing, sends it, publishes it.
//!
//! [`push`] is for the command and for whatever pushes by itself, such as a hook. Never prints, never signs, and never
//! publishes what its own NAR hash does not vouch for. A push that was interrupted is continued by the next one:
//! all that a push knows is asked of the store and of the server.

mod batch;
mod dump;
mod pack;
mod pipeline;
mod plan;
mod publish;
mod retry;
mod store;
mod upload;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;
use tokio::sync::mpsc::UnboundedSender;

pub use pack::{Packing, PackingError};
pub use store::{LocalStore, ParseStoreError, StoreError};

use self::plan::{Index, Plan, Stored};
use self::retry::{Patience, Retry, persist};
use super::error::Error;
use super::http::Client;
use crate::api::{MissingAnswer, MissingRequest, StoredNar, StoredRequest};
use crate::nix::hash::NarHash;
use crate::nix::path_info::PathInfo;
use crate::nix::store_path::StorePath;

/// What to push, and how.
#[derive(Debug, Clone)]
pub struct PushOptions {
    pub store: LocalStore,
    /// Also all that the paths refer to, directly or not.
    pub closure: bool,
    /// Only find out what would be pushed.
    pub dry_run: bool,
    /// How many NARs are made at once: each takes a processor.
    pub jobs: usize,
    pub packing: Packing,
    /// Size of the parts of large files, from [`PART_SIZE_BYTES_MIN`] to [`PART_SIZE_BYTES_MAX`]; no batch is larger.
    pub part_size_bytes: usize,
}

impl Default for PushOptions {
    fn default() -> Self {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from).min(JOBS_USUAL_MAX);
        let (store, packing) = (LocalStore::default(), Packing::default());
        Self { store, closure: true, dry_run: false, jobs, packing, part_size_bytes: pack::PART_SIZE_BYTES }
    }
}

/// What happens during a push. Each is one line of `narvault push --json`.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// It is known what is missing. Sizes are those of NARs: of all paths, and of those that are read and compressed.
    Planned {
        paths: usize,
        missing: usize,
        present: usize,
        upstream: usize,
        nar_size_bytes: u64,
        nar_size_to_make_bytes: u64,
    },
    /// A NAR is begun; paths with the same one are told of when it is stored.
    Started { path: String, nar_size_bytes: u64 },
    /// So many further bytes of NARs were read and compressed.
    Read { bytes: u64 },
    /// The server took so many further bytes.
    Sent { bytes: u64 },
    /// So many bytes of a file were there already, from a push that was interrupted.
    Kept { bytes: u64 },
    /// A path's file is verified and stored.
    Stored { path: String, file_size_bytes: u64 },
    /// A path is signed and served. `new` unless somebody else's push came first.
    Published { path: String, new: bool, keys: Vec<String> },
    /// A path cannot be pushed; others still are.
    Failed {
        path: String,
        reason: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
    },
    /// Something went wrong that passes by itself.
    Waiting { reason: String, seconds: f64 },
    /// The bucket did not take a part: from now on they go through the server, as without it.
    Rerouted { reason: String },
}

impl From<Retry> for Event {
    fn from(retry: Retry) -> Self {
        Self::Waiting { reason: retry.reason, seconds: retry.wait.as_secs_f64() }
    }
}

/// How a push ended.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// All paths asked about: new, present, upstream, failed, and those that a dry run would push.
    pub paths: usize,
    /// Published by this push.
    pub new: usize,
    /// Published before.
    pub present: usize,
    /// Had by an upstream of the cache, and left to it.
    pub upstream: usize,
    /// Those that a dry run would push.
    pub missing: Vec<String>,
    pub failed: Vec<FailedPath>,
    /// Bytes of files that the server took from this push.
    pub bytes_sent: u64,
    /// Bytes that it had from an interrupted push.
    pub bytes_kept: u64,
    /// Bytes of the NARs of all paths.
    pub nar_size_bytes: u64,
    pub seconds: f64,
    /// Names of the keys that new paths are signed with.
    pub keys: BTreeSet<String>,
}

/// A path that could not be pushed.
#[derive(Debug, Clone, Serialize)]
pub struct FailedPath {
    pub path: String,
    pub reason: String,
    /// As a call of its own would have been answered; absent where the fault is on this side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
}

/// Why nothing more could be pushed. What was published before stays so.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error(transparent)]
    Client(#[from] Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PushError {
    /// The next thing to do, where something helps.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Client(error) => error.hint(),
            Self::Store(StoreError::NoNix) => {
                Some("install Nix, or run this where the paths were built".into())
            }
            Self::Store(StoreError::Outside { .. }) => Some(
                "give a store path, or a link into the store such as ./result; `--store` names another store"
                    .into(),
            ),
            Self::Store(_) => None,
        }
    }
}

/// Pushes store paths, or files and links that lead into the store, to a cache.
///
/// `events` is called from this task, often: it must not block. A path that cannot be pushed does not keep the others
/// back; it stands in [`Report::failed`]. Dropping the future ends the push; the next one goes on there.
pub async fn push(
    client: &Client,
    cache: &str,
    paths: &[PathBuf],
    options: &PushOptions,
    events: &(dyn Fn(Event) + Send + Sync),
) -> Result<Report, PushError> {
    let begun = Instant::now();
    client.require_token()?;
    let roots: BTreeSet<StorePath> =
        paths.iter().map(|path| options.store.resolve(path)).collect::<Result<_, _>>()?;
    let roots: Vec<StorePath> = roots.into_iter().collect();
    let infos = options.store.path_infos(&roots, options.closure).await?;

    let mut report = Report { paths: infos.len(), ..Report::default() };
    report.nar_size_bytes = infos.iter().map(|info| info.claim.nar_size).sum();
    let missing = missing(client, cache, infos, events, &mut report).await?;
    let plan = Plan::new(missing);
    let found = found(client, cache, &plan, events).await?;
    events(Event::Planned {
        paths: report.paths,
        missing: plan.len(),
        present: report.present,
        upstream: report.upstream,
        nar_size_bytes: report.nar_size_bytes,
        nar_size_to_make_bytes: plan.size_to_make(&found),
    });
    if options.dry_run {
        report.missing = (0..plan.len()).map(|index| plan.info(index).claim.path.to_string()).collect();
    } else {
        pipeline::run(client, cache, options, plan, found, events, &mut report).await?;
    }
    report.seconds = begun.elapsed().as_secs_f64();
    Ok(report)
}

/// Those that are to be pushed; the others are counted.
async fn missing(
    client: &Client,
    cache: &str,
    infos: Vec<PathInfo>,
    events: &(dyn Fn(Event) + Send + Sync),
    report: &mut Report,
) -> Result<Vec<PathInfo>, Error> {
    let mut missing = HashSet::new();
    for some in infos.chunks(HASHES_MAX) {
        let hashes = some.iter().map(|info| info.claim.path.hash().to_string()).collect();
        let request = MissingRequest { hashes };
        let ask = || client.missing(cache, &request);
        let (answer, _) = persist(Patience::SHORT, |retry| events(retry.into()), ask).await?;
        let MissingAnswer { missing: some_missing, upstream } = answer;
        report.upstream += upstream.len();
        report.present += some.len().saturating_sub(some_missing.len() + upstream.len());
        missing.extend(some_missing);
    }
    Ok(infos.into_iter().filter(|info| missing.contains(info.claim.path.hash().as_str())).collect())
}

/// Those whose NARs are in the server's storage, though they are not published: most of all from a push that was
/// interrupted.
async fn found(
    client: &Client,
    cache: &str,
    plan: &Plan,
    events: &(dyn Fn(Event) + Send + Sync),
) -> Result<Vec<(Index, Stored)>, Error> {
    let nar_hash = |index| plan.info(index).claim.nar_hash;
    let all: BTreeSet<NarHash> = (0..plan.len()).map(nar_hash).collect();
    let mut found = HashMap::new();
    for some in all.into_iter().collect::<Vec<_>>().chunks(HASHES_MAX) {
        let request = StoredRequest { nar_hashes: some.iter().map(ToString::to_string).collect() };
        let ask = || client.nars_stored(cache, &request);
        let (answer, _) = persist(Patience::LONG, |retry| events(retry.into()), ask).await?;
        for nar in answer.nars {
            let read = |nar: &StoredNar| -> Option<(NarHash, Stored)> {
                let (file, compression) = (nar.file.parse().ok()?, nar.compression.parse().ok()?);
                Some((
                    nar.nar_hash.parse().ok()?,
                    Stored { file, compression, file_size: nar.file_size_bytes },
                ))
            };
            let (nar_hash, stored) = read(&nar).ok_or_else(|| client.answer_of_another_form())?;
            found.insert(nar_hash, stored);
        }
    }
    Ok((0..plan.len()).filter_map(|index| Some((index, *found.get(&nar_hash(index))?))).collect())
}

/// What a task has to say while it goes on.
enum News {
    /// A NAR is made, or failed: its processor is free, and those of its threads.
    Made {
        threaded: bool,
    },
    Read(u64),
    Sent(u64),
    Kept(u64),
    Retry(Retry),
    Rerouted {
        reason: String,
    },
}

impl News {
    fn retry(news: &UnboundedSender<Self>, retry: Retry) {
        // Nobody hears it when the push is over.
        let _ = news.send(Self::Retry(retry));
    }
}

/// Smallest parts: what S3 takes.
pub const PART_SIZE_BYTES_MIN: usize = 5 * 1024 * 1024;

/// Largest parts that a server takes.
pub const PART_SIZE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Most hashes of one question, as the server takes.
const HASHES_MAX: usize = 10_000;

/// More processors than this are not taken unasked: the server verifies with its own meanwhile.
const JOBS_USUAL_MAX: usize = 4;
