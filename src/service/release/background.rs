//! Releasing what is handed in, piece after piece, in a task of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Wanted;
use crate::service::Service;

/// Objects that are being released in the background.
pub(in crate::service) struct Releasing(Releases);

/// Where to hand in objects that are to be released in the background.
#[derive(Clone)]
pub(in crate::service) struct Releases {
    queue: mpsc::UnboundedSender<(Vec<Wanted>, Instant)>,
    wait: Duration,
    task: Arc<Mutex<ReleaseTask>>,
}

type Waiting = mpsc::UnboundedReceiver<(Vec<Wanted>, Instant)>;

/// Begun with the first object: another thread would have to be woken for a task that only waits.
enum ReleaseTask {
    Needed(Service, Waiting),
    Begun(JoinHandle<bool>),
    Awaited,
}

impl Releases {
    /// Hands in objects that do not wait for one another. They are released also if nobody waits for the end.
    pub fn add(&self, objects: Vec<Wanted>) {
        // Fails only if the task is gone with its runtime: then their leases run out by themselves.
        let _ = self.queue.send((objects, Instant::now() + self.wait));
        let mut task = self.task();
        *task = match std::mem::replace(&mut *task, ReleaseTask::Awaited) {
            ReleaseTask::Needed(service, waiting) => {
                ReleaseTask::Begun(service.inner.tasks.spawn(service.clone().release_all(waiting)))
            }
            other => other,
        };
    }

    fn task(&self) -> MutexGuard<'_, ReleaseTask> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Releasing {
    /// Where to hand objects in.
    pub fn releases(&self) -> Releases {
        self.0.clone()
    }

    /// Waits for the end of all, once nobody can hand in more. True: nothing is left.
    pub async fn end(self) -> bool {
        let task = std::mem::replace(&mut *self.0.task(), ReleaseTask::Awaited);
        let Releases { queue, wait, .. } = self.0;
        drop(queue);
        match task {
            ReleaseTask::Begun(task) => matches!(tokio::time::timeout(wait, task).await, Ok(Ok(true))),
            // Nothing was handed in.
            ReleaseTask::Needed(..) | ReleaseTask::Awaited => true,
        }
    }
}

impl Service {
    /// Releases `objects` now, for at most `wait`; what is left then is the worker's. True: nothing is left.
    ///
    /// Runs in a task of its own: a client that goes away must not leave a lease behind.
    pub(in crate::service) async fn release_within(&self, objects: Vec<Wanted>, wait: Duration) -> bool {
        if objects.is_empty() {
            return true;
        }
        let releasing = self.begin_releasing(wait);
        releasing.0.add(objects);
        releasing.end().await
    }

    /// The same for the time that a push may wait.
    pub(in crate::service) async fn release_soon(&self, objects: Vec<Wanted>) {
        self.release_within(objects, RELEASE_WAIT).await;
    }

    /// Releases what is handed in, in that order; `wait` is for each that is handed in, and for the end.
    pub(in crate::service) fn begin_releasing(&self, wait: Duration) -> Releasing {
        let (queue, waiting) = mpsc::unbounded_channel();
        let task = Arc::new(Mutex::new(ReleaseTask::Needed(self.clone(), waiting)));
        Releasing(Releases { queue, wait, task })
    }

    async fn release_all(self, mut waiting: Waiting) -> bool {
        let mut all_done = true;
        while let Some((objects, deadline)) = waiting.recv().await {
            for object in self.release_together(objects).await {
                all_done &= self.release_until(object, deadline).await;
            }
        }
        all_done
    }
}

/// How long a push waits for its narinfo to reach storage before it answers anyway.
pub(in crate::service) const RELEASE_WAIT: Duration = Duration::from_secs(5);
