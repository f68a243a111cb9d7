//! What happens at the same time during a push: NARs are made, batches and parts are sent, paths are published.
//!
//! One task owns the plan and decides; others do one thing each and report. Never makes more than it may hold:
//! a whole push takes the bytes below, however large its files, and some 2 KiB for each of its paths.
//!
//! | what | bytes |
//! |---|---|
//! | parts, and files of 4 MiB or more, that are made or under way: [`PARTS_AT_ONCE`] of 16 MiB, or as told | 48 MiB |
//! | smaller files that wait for a batch, and batches under way: [`HELD_BYTES_MAX`] | 8 MiB |
//! | one NAR of 32 MiB or more, by up to four threads: at most 7 jobs read, 6 made, of 2 MiB each, and tables | 32 MiB |
//! | each other NAR that is made: buffers, the compressor (zstd up to level 3: 4 MiB; xz 6: 94 MiB) | about 6 MiB |

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::error::Error;
use super::super::http::Client;
use super::batch::{self, Gathered, Small};
use super::pack::{PackError, Packed, Part, Room, Source, THREADS_MAX, pack};
use super::plan::{Index, Plan, Stored};
use super::publish::{self, Answered};
use super::upload::{Bucket, Upload};
use super::{Event, FailedPath, News, PushError, PushOptions, Report};
use crate::api::{PUBLISH_PATHS_MAX, Refused};
use crate::nix::claim::Claim;
use crate::nix::hash::NarHash;

/// Parts that are made or under way at once: one fills while one travels and one is verified.
const PARTS_AT_ONCE: usize = 3;

/// Bytes of smaller files that wait or are under way: two batches of those that are worth sending.
const HELD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Batches under way: one travels while another one is verified.
const BATCHES_AT_ONCE: usize = 3;

/// How long a small file waits for company.
const GATHERING: Duration = Duration::from_millis(500);

/// Runs a plan to its end. What is `found` in the server's storage is neither made nor sent.
pub async fn run(
    client: &Client,
    cache: &str,
    options: &PushOptions,
    plan: Plan,
    found: Vec<(Index, Stored)>,
    events: &(dyn Fn(Event) + Send + Sync),
    report: &mut Report,
) -> Result<(), PushError> {
    let (news, heard) = mpsc::unbounded_channel();
    let work = plan.work();
    let shared = Shared {
        client: client.clone(),
        cache: cache.to_owned(),
        options: options.clone(),
        room: Room::new(PARTS_AT_ONCE, options.part_size_bytes, HELD_BYTES_MAX),
        bucket: Arc::default(),
        news,
    };
    let mut pipeline = Pipeline {
        shared: Arc::new(shared),
        heard,
        events,
        report,
        plan,
        work,
        tasks: JoinSet::new(),
        gathered: Gathered::new(options.part_size_bytes),
        gathering_since: None,
        making: 0,
        is_threading: false,
        batches: 0,
        is_publishing: false,
    };
    for (index, stored) in found {
        pipeline.hear(News::Kept(stored.file_size));
        pipeline.stored(&[index], stored);
    }
    pipeline.run().await
}

/// What every task may need.
struct Shared {
    client: Client,
    cache: String,
    options: PushOptions,
    room: Arc<Room>,
    bucket: Arc<Bucket>,
    news: UnboundedSender<News>,
}

/// What a task did.
enum Done {
    /// A NAR's file is made, and small.
    Small(Vec<Index>, Packed),
    /// A NAR's file went out in parts and is stored.
    Large(Vec<Index>, Stored),
    /// There is no file, or the server refused it.
    NoFile(Vec<Index>, Fault),
    Batch(Vec<Small>, Result<Vec<Option<Refused>>, Error>),
    Published(Vec<(Index, Stored)>, Result<Vec<Answered>, Error>),
}

/// Why one path cannot be pushed while others can, or why none can.
enum Fault {
    Path(FailedPath),
    Push(PushError),
}

struct Pipeline<'a> {
    shared: Arc<Shared>,
    heard: UnboundedReceiver<News>,
    events: &'a (dyn Fn(Event) + Send + Sync),
    report: &'a mut Report,
    plan: Plan,
    work: std::collections::VecDeque<Vec<Index>>,
    tasks: JoinSet<Done>,
    gathered: Gathered,
    gathering_since: Option<Instant>,
    /// NARs that are made at the moment.
    making: usize,
    /// Whether one of them is made by threads of its own, which are enough for every processor.
    is_threading: bool,
    batches: usize,
    is_publishing: bool,
}

impl Pipeline<'_> {
    async fn run(&mut self) -> Result<(), PushError> {
        loop {
            self.make();
            self.send_batches();
            self.publish();
            if self.tasks.is_empty() {
                break;
            }
            let patience = self.gathering_since.map(|since| since + GATHERING);
            tokio::select! {
                biased;
                Some(news) = self.heard.recv() => self.hear(news),
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => self.take(done)?,
                    Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
                    Err(_) => {}
                },
                // An instant that has passed is none: nothing can be done about it but wait for a batch to end.
                () = tokio::time::sleep_until(patience.unwrap_or_else(Instant::now)), if self.can_wait(patience) => {}
            }
        }
        while let Ok(news) = self.heard.try_recv() {
            self.hear(news);
        }
        for index in self.plan.open() {
            let path = self.plan.info(index).claim.path.to_string();
            let reason = "its references lead back to it".to_owned();
            self.tell_failed(FailedPath { path, reason, status: None });
        }
        Ok(())
    }

    fn can_wait(&self, patience: Option<Instant>) -> bool {
        patience.is_some_and(|until| until > Instant::now())
    }

    /// Begins as many NARs as may be made at once.
    fn make(&mut self) {
        while self.making < self.shared.options.jobs {
            let Some(mut group) = self.next_work() else { return };
            group.retain(|&index| self.plan.is_wanted(index));
            let Some(&first) = group.first() else { continue };
            self.making += 1;
            self.is_threading |= self.is_threaded(first);
            let info = self.plan.info(first);
            (self.events)(Event::Started {
                path: info.claim.path.to_string(),
                nar_size_bytes: info.claim.nar_size,
            });
            self.tasks.spawn(make(self.shared.clone(), group, info.claim.clone()));
        }
    }

    /// What is to be made next: of those that take threads of their own, one at a time.
    fn next_work(&mut self) -> Option<Vec<Index>> {
        if !self.is_threading {
            return self.work.pop_front();
        }
        let is_threaded = |group: &Vec<Index>| group.first().is_some_and(|&index| self.is_threaded(index));
        let at = self.work.iter().position(|group| !is_threaded(group))?;
        self.work.remove(at)
    }

    fn is_threaded(&self, index: Index) -> bool {
        self.shared.options.packing.is_threaded(self.plan.info(index).claim.nar_size)
    }

    fn send_batches(&mut self) {
        while self.batches < BATCHES_AT_ONCE && !self.gathered.is_empty() {
            let nothing_to_come = self.making == 0 && self.work.is_empty();
            let waited = self.gathering_since.is_some_and(|since| since.elapsed() >= GATHERING);
            if !(self.gathered.is_enough() || nothing_to_come || waited) {
                return;
            }
            let files = self.gathered.take();
            self.gathering_since = (!self.gathered.is_empty()).then(Instant::now);
            self.batches += 1;
            let shared = self.shared.clone();
            self.tasks.spawn(async move {
                let result = batch::send(&shared.client, &shared.cache, &files, &shared.news).await;
                Done::Batch(files, result)
            });
        }
    }

    /// One call at a time: the next one carries all that became ready meanwhile.
    fn publish(&mut self) {
        if self.is_publishing || !self.plan.has_ready() {
            return;
        }
        let size_max = publish::SIZE_BYTES_MAX.min(self.shared.options.part_size_bytes);
        let paths = self.plan.take_ready(PUBLISH_PATHS_MAX, size_max);
        let texts =
            paths.iter().map(|&(index, stored)| publish::narinfo(self.plan.info(index), stored)).collect();
        self.is_publishing = true;
        let shared = self.shared.clone();
        self.tasks.spawn(async move {
            let result = publish::send(&shared.client, &shared.cache, texts, &shared.news).await;
            Done::Published(paths, result)
        });
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Made { threaded } => {
                self.making -= 1;
                self.is_threading &= !threaded;
            }
            News::Read(bytes) => (self.events)(Event::Read { bytes }),
            News::Sent(bytes) => {
                self.report.bytes_sent += bytes;
                (self.events)(Event::Sent { bytes });
            }
            News::Kept(bytes) => {
                self.report.bytes_kept += bytes;
                (self.events)(Event::Kept { bytes });
            }
            News::Retry(retry) => (self.events)(retry.into()),
            News::Rerouted { reason } => (self.events)(Event::Rerouted { reason }),
        }
    }

    fn take(&mut self, done: Done) -> Result<(), PushError> {
        match done {
            Done::Small(group, packed) => {
                self.gathered.push(group, packed);
                self.gathering_since.get_or_insert_with(Instant::now);
            }
            Done::Large(group, stored) => self.stored(&group, stored),
            Done::NoFile(group, Fault::Path(failed)) => self.failed(&group, &failed),
            Done::NoFile(_, Fault::Push(error)) => return Err(error),
            Done::Batch(files, result) => {
                self.batches -= 1;
                for (small, refused) in files.into_iter().zip(result?) {
                    let Small { group, packed, .. } = small;
                    match refused {
                        None => self.stored(&group, packed.stored),
                        Some(refused) => match Fault::of(refused) {
                            Fault::Path(failed) => self.failed(&group, &failed),
                            Fault::Push(error) => return Err(error),
                        },
                    }
                }
            }
            Done::Published(paths, result) => {
                self.is_publishing = false;
                for ((index, _), answered) in paths.into_iter().zip(result?) {
                    self.answered(index, answered)?;
                }
            }
        }
        Ok(())
    }

    fn stored(&mut self, group: &[Index], stored: Stored) {
        for &index in group {
            let path = self.plan.info(index).claim.path.to_string();
            (self.events)(Event::Stored { path, file_size_bytes: stored.file_size });
            self.plan.store(index, stored);
        }
    }

    fn answered(&mut self, index: Index, answered: Answered) -> Result<(), PushError> {
        match answered {
            Answered::Published { new, keys } => {
                let path = self.plan.info(index).claim.path.to_string();
                if new {
                    self.report.new += 1;
                } else {
                    self.report.present += 1;
                }
                self.report.keys.extend(keys.iter().cloned());
                (self.events)(Event::Published { path, new, keys });
                self.plan.publish(index);
            }
            Answered::Refused(refused) => {
                let stands = refused.kind.ends_with(":conflicting-claim");
                match Fault::of(refused) {
                    // Another one stands there: what refers to the path is published all the same, as it would be by
                    // the next push, which finds the path there.
                    Fault::Path(failed) if stands => {
                        self.plan.publish(index);
                        let path = self.plan.info(index).claim.path.to_string();
                        self.tell_failed(FailedPath { path, ..failed });
                    }
                    Fault::Path(failed) => self.failed(&[index], &failed),
                    Fault::Push(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// These paths cannot be pushed, and neither can what refers to them.
    fn failed(&mut self, group: &[Index], failed: &FailedPath) {
        for &index in group {
            let path = self.plan.info(index).claim.path.to_string();
            // It fell with another one of this push, and was told of then.
            if self.report.failed.iter().any(|known| known.path == path) {
                continue;
            }
            let with_it = self.plan.fail(index);
            self.tell_failed(FailedPath { path: path.clone(), ..failed.clone() });
            for referrer in with_it {
                let reason = format!("it refers to {path}, which could not be pushed");
                let path = self.plan.info(referrer).claim.path.to_string();
                self.tell_failed(FailedPath { path, reason, status: failed.status });
            }
        }
    }

    fn tell_failed(&mut self, failed: FailedPath) {
        (self.events)(Event::Failed {
            path: failed.path.clone(),
            reason: failed.reason.clone(),
            status: failed.status,
        });
        self.report.failed.push(failed);
    }
}

impl Fault {
    /// From what the server says about one file or path of many.
    fn of(refused: Refused) -> Self {
        match refused.status {
            // Not this path's fault: the next one would be told the same.
            401 | 403 | 423 | 429 | 500.. => Self::Push(Error::from_refused(refused).into()),
            status => {
                Self::Path(FailedPath { path: String::new(), reason: refused.detail, status: Some(status) })
            }
        }
    }

    /// From a call about one file.
    fn of_call(error: Error) -> Self {
        match (&error, error.status()) {
            (Error::Problem(_), Some(status @ (409 | 413 | 422))) => Self::Path(FailedPath {
                path: String::new(),
                reason: error.to_string(),
                status: Some(status),
            }),
            _ => Self::Push(error.into()),
        }
    }

    fn of_packing(error: &PackError) -> Self {
        let mut reason = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(source) = cause {
            reason = format!("{reason}: {source}");
            cause = source.source();
        }
        Self::Path(FailedPath { path: String::new(), reason, status: None })
    }
}

/// Makes the file of a NAR, and sends it in parts if it is large.
async fn make(shared: Arc<Shared>, group: Vec<Index>, claim: Claim) -> Done {
    let (give, mut parts) = mpsc::channel::<Part>(1);
    let packing = shared.options.packing;
    let nar_hash = claim.nar_hash;
    let inner = shared.clone();
    let making = tokio::task::spawn_blocking(move || {
        let real = inner.options.store.real(&claim.path);
        let progress = |bytes| drop(inner.news.send(News::Read(bytes)));
        let threads = u32::try_from(inner.options.jobs).unwrap_or(THREADS_MAX);
        let source = Source { real: &real, claim: &claim, packing, threads, progress: &progress };
        let made = pack(&source, &inner.room, &mut |part| give.blocking_send(part).is_ok());
        let _ = inner.news.send(News::Made { threaded: packing.is_threaded(claim.nar_size) });
        made
    });
    let mut upload = None;
    let mut refused = None;
    while let Some(part) = parts.recv().await {
        let sent = send_part(&shared, nar_hash, &mut upload, part).await;
        if let Err(error) = sent {
            refused = Some(error);
            break;
        }
    }
    // Whoever makes the rest learns that nobody wants it.
    drop(parts);
    let made = match making.await {
        Ok(made) => made,
        Err(ended) => std::panic::resume_unwind(ended.into_panic()),
    };
    if let Some(error) = refused {
        return Done::NoFile(group, Fault::of_call(error));
    }
    match (made, upload) {
        (Ok(packed), None) => Done::Small(group, packed),
        (Ok(packed), Some(upload)) => match upload.complete(&packed).await {
            Ok(()) => Done::Large(group, packed.stored),
            Err(error) => Done::NoFile(group, Fault::of_call(error)),
        },
        (Err(error), upload) => {
            if let Some(upload) = upload {
                upload.abort().await;
            }
            Done::NoFile(group, Fault::of_packing(&error))
        }
    }
}

async fn send_part(
    shared: &Shared,
    nar_hash: NarHash,
    upload: &mut Option<Upload>,
    part: Part,
) -> Result<(), Error> {
    if upload.is_none() {
        let compression = shared.options.packing.compression();
        let upload_key = (nar_hash, compression, shared.options.part_size_bytes);
        let (bucket, news) = (shared.bucket.clone(), shared.news.clone());
        let opened = Upload::open(&shared.client, &shared.cache, upload_key, bucket, news);
        *upload = Some(opened.await?);
    }
    match upload {
        Some(upload) => upload.send(part).await,
        None => Ok(()),
    }
}
