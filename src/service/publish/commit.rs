//! Many publishers, one transaction: what comes while another group commits goes together in the next one.
//!
//! The log has one right edge and the disk one flush at a time, so publishers that each committed alone would stand in
//! line for both. Who comes alone waits for nobody.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use super::{Candidate, GROUP_FOUND_REFS_BYTES_MAX, GROUP_PATHS_MAX, Standing};
use crate::access::TokenCaller;
use crate::db::caches::CacheRow;
use crate::db::restarting;
use crate::nix::store_path::StorePathHash;
use crate::service::release::Releases;
use crate::service::{Call, Error, Result, Service};

/// Paths of one call that are to be published together, none of them twice.
pub(super) struct Job {
    pub call: Call,
    pub cache: Arc<CacheRow>,
    pub pusher: TokenCaller,
    pub candidates: Vec<Candidate>,
    /// Where what is to be released goes after the commit.
    pub releases: Releases,
    /// The request's, for what is told of the paths.
    pub span: tracing::Span,
    pub answer: oneshot::Sender<Result<Vec<Result<Standing>>>>,
}

/// What waits to be published by this replica.
#[derive(Default)]
pub(in crate::service) struct Committing {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Job>,
    /// Whether somebody takes from it.
    attended: bool,
    #[cfg(test)]
    handed_in: usize,
}

impl Committing {
    /// Hands a job in. True: somebody has to attend to the queue from now on.
    fn add(&self, job: Job) -> bool {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.waiting.push_back(job);
        #[cfg(test)]
        {
            queue.handed_in += 1;
        }
        !std::mem::replace(&mut queue.attended, true)
    }

    /// The jobs of the next transaction: the oldest one, and others of its cache that fit. `None`: nothing waits, and
    /// nobody attends any longer.
    fn next(&self) -> Option<Vec<Job>> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let mut group = Together::default();
        let mut later = VecDeque::new();
        while let Some(job) = queue.waiting.pop_front() {
            // Nobody waits for it any more: it is as if it had never come.
            if job.answer.is_closed() {
                continue;
            }
            if let Some(job) = group.join(job) {
                later.push_back(job);
                if later.len() >= LOOKED_AT_MAX {
                    break;
                }
            }
        }
        later.append(&mut queue.waiting);
        queue.waiting = later;
        queue.attended = !group.jobs.is_empty();
        (!group.jobs.is_empty()).then_some(group.jobs)
    }

    /// How many jobs ever came.
    #[cfg(test)]
    pub fn handed_in(&self) -> usize {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).handed_in
    }

    /// Ends the attendance without looking.
    fn leave(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.attended = false;
        // Their senders learn that nobody will answer, and may come again.
        queue.waiting.clear();
    }
}

/// Jobs that fit into one transaction.
#[derive(Default)]
struct Together {
    jobs: Vec<Job>,
    paths: HashSet<StorePathHash>,
    found_refs_bytes: u64,
}

impl Together {
    /// Takes a job in, or gives it back where it does not fit.
    fn join(&mut self, job: Job) -> Option<Job> {
        let hashes = || job.candidates.iter().map(|candidate| candidate.verified.claim().path.hash());
        let more: u64 = job.candidates.iter().map(Candidate::found_refs_bytes).sum();
        let fits = self.jobs.first().is_none_or(|first| {
            first.cache.id == job.cache.id
                && self.paths.len() + job.candidates.len() <= GROUP_PATHS_MAX
                && self.found_refs_bytes + more <= GROUP_FOUND_REFS_BYTES_MAX
                && !hashes().any(|hash| self.paths.contains(&hash))
        });
        if !fits {
            return Some(job);
        }
        self.paths.extend(hashes());
        self.found_refs_bytes += more;
        self.jobs.push(job);
        None
    }
}

/// Whoever takes from the queue. A panic in between must not leave the queue unattended and taken for attended.
struct Attendance(Service);

impl Drop for Attendance {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.inner.committing.leave();
        }
    }
}

impl Service {
    /// Publishes a job's candidates in one transaction, with those of others where they come at the same time.
    pub(super) async fn publish_job(
        &self,
        new: impl FnOnce(oneshot::Sender<Result<Vec<Result<Standing>>>>) -> Job,
    ) -> Result<Vec<Result<Standing>>> {
        let (answer, answered) = oneshot::channel();
        if self.inner.committing.add(new(answer)) {
            // In a task of its own: the client whose request it is may go away, and the others' jobs with it.
            let attendance = Attendance(self.clone());
            self.inner.tasks.spawn(async move {
                while let Some(jobs) = attendance.0.inner.committing.next() {
                    attendance.0.commit(jobs).await;
                }
            });
        }
        answered.await.unwrap_or(Err(Error::Aborted))
    }

    /// Publishes jobs together; where that fails, each by itself, so that nobody fails for another's sake.
    async fn commit(&self, mut jobs: Vec<Job>) {
        match self.publish_jobs(&jobs).await {
            Ok(results) => jobs.into_iter().zip(results).for_each(|(job, result)| job.tell(result)),
            Err(error) if jobs.len() == 1 => {
                if let Some(job) = jobs.pop() {
                    job.tell(Err(error));
                }
            }
            Err(error) => {
                tracing::debug!(jobs = jobs.len(), %error, "a group is taken apart");
                for job in jobs {
                    let results = self.publish_jobs(std::slice::from_ref(&job)).await;
                    job.tell(results.and_then(|mut results| results.pop().unwrap_or(Err(Error::Aborted))));
                }
            }
        }
    }

    async fn publish_jobs(&self, jobs: &[Job]) -> Result<Vec<Result<Vec<Result<Standing>>>>> {
        loop {
            // Given up where another replica made one of the paths meanwhile: the next try meets its row.
            if let Some(results) = restarting(|| self.publish_once(jobs)).await? {
                return Ok(results);
            }
        }
    }
}

impl Job {
    fn tell(self, result: Result<Vec<Result<Standing>>>) {
        // Whoever is gone is told nothing.
        let _ = self.answer.send(result);
    }
}

/// Jobs that are passed over when a group is put together.
const LOOKED_AT_MAX: usize = 256;
