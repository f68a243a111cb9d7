//! The queue as commands find it, push it empty, and tell about it.
//!
//! Never drops what waits because a command ends.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use clap::Args;
use tokio::sync::watch;

use super::Context;
use super::args::Lifetime;
use super::failure::{Exit, Failure};
use super::output::Printer;
use super::push_queued::Pusher;
use super::signals::Stop;
use crate::client::ErrorKind;
use crate::nix::store_path::StorePath;
use crate::queue::{Queue, QueueError};
use crate::time::Timestamp;
use crate::watch::{Drain, Fault, LocalNix, Round, WatchError};

/// Where the queue lies.
#[derive(Debug, Clone, Args)]
pub struct QueueArgs {
    /// File of the queue [default: narvault/queue.db in $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, value_name = "FILE")]
    queue: Option<PathBuf>,
    /// Where `narvault/queue.db` lies.
    #[arg(long, hide = true, env = "XDG_STATE_HOME")]
    state_home: Option<PathBuf>,
}

impl QueueArgs {
    /// The file's place.
    pub fn path(&self) -> Result<PathBuf, Failure> {
        if let Some(path) = &self.queue {
            return Ok(path.clone());
        }
        // A relative XDG_STATE_HOME is to be ignored, says the XDG base directory specification.
        let given = self.state_home.clone().filter(|path| path.is_absolute());
        let home =
            || std::env::home_dir().filter(|path| path.is_absolute()).map(|path| path.join(".local/state"));
        given.or_else(home).map(|path| path.join("narvault/queue.db")).ok_or_else(|| {
            Failure::new(Exit::Failure, "no home folder is known to keep the queue in")
                .hint("name a file by `--queue FILE`")
        })
    }

    /// The queue, made if absent.
    pub async fn open(&self) -> Result<Queue, Failure> {
        Ok(Queue::open(&self.path()?).await?)
    }

    /// The queue, which some hook has made.
    pub async fn open_existing(&self) -> Result<Queue, Failure> {
        Ok(Queue::open_existing(&self.path()?).await?)
    }
}

impl From<QueueError> for Failure {
    fn from(error: QueueError) -> Self {
        let hint = error.hint();
        Self::Told { exit: Exit::Failure, error: error.into(), hint }
    }
}

impl From<WatchError> for Failure {
    fn from(error: WatchError) -> Self {
        match error {
            WatchError::Queue(error) => error.into(),
            WatchError::Nix(error) => Self::Told { exit: Exit::Failure, error: error.into(), hint: None },
        }
    }
}

/// How a service ends.
#[derive(Debug, Clone, Args)]
pub struct StopArgs {
    /// How long to push what waits when told to stop; a second signal ends it at once
    #[arg(long, value_name = "TIME", default_value = "30s")]
    flush_timeout: Lifetime,
}

/// What became of several rounds.
#[derive(Debug, Default)]
pub struct Tally {
    pub pushed: usize,
    pub dropped: usize,
    /// The last one.
    pub fault: Option<Fault>,
}

impl Tally {
    fn add(&mut self, round: Round) {
        self.pushed += round.pushed.len();
        self.dropped += round.dropped.len();
        self.fault = round.faults.into_iter().next_back().or(self.fault.take());
    }

    fn add_all(&mut self, earlier: Self) {
        self.pushed += earlier.pushed;
        self.dropped += earlier.dropped;
        self.fault = self.fault.take().or(earlier.fault);
    }

    /// Fails if paths wait still, as the last fault did.
    pub fn nothing_left(&self, waiting: u64) -> Result<(), Failure> {
        if waiting == 0 {
            return Ok(());
        }
        let failure = match &self.fault {
            Some(fault) => Failure::new(fault.kind.into(), fault.text.clone()),
            None => Failure::new(Exit::Failure, counted(waiting, "waiting still")),
        };
        Err(failure.hint("run `narvault hook status` to see what waits, and why"))
    }
}

/// Pushes a queue by rounds, and tells about each.
pub struct Drainer<'a> {
    drain: Drain<'a>,
    pusher: Pusher<'a>,
    printer: Printer,
    /// What was pushed or dropped, where somebody wants to know.
    done: Option<RefCell<HashSet<StorePath>>>,
}

impl<'a> Drainer<'a> {
    pub fn new(
        queue: &'a Queue,
        nix: &'a LocalNix,
        cache: Option<&'a str>,
        pusher: Pusher<'a>,
        context: &'a Context,
    ) -> Self {
        let drain = Drain { queue, nix, clock: &context.clock, cache };
        Self { drain, pusher, printer: context.printer, done: None }
    }

    /// From now on remembers every path that it has done with. Not for a service: this grows.
    pub fn remember(&mut self) {
        self.done = Some(RefCell::default());
    }

    /// What it has done with since [`Drainer::remember`].
    pub fn remembered(&self) -> HashSet<StorePath> {
        self.done.as_ref().map(|done| done.borrow().clone()).unwrap_or_default()
    }

    /// Pushes until nothing is due.
    pub async fn once(&self, tally: &mut Tally) -> Result<(), WatchError> {
        loop {
            let round = self.drain.round(&async |cache, paths| self.pusher.push(cache, paths).await).await?;
            let Some(cache) = round.cache.clone() else { return Ok(()) };
            self.tell(&cache, &round);
            if let Some(done) = &self.done {
                let dropped = round.dropped.iter().map(|(path, _)| path);
                done.borrow_mut().extend(round.pushed.iter().chain(dropped).cloned());
            }
            tally.add(round);
        }
    }

    /// Pushes what waits whenever something does, while no other process does it, until it is told to stop: then what
    /// is under way is brought to its end, and given. `None`: another process pushed all the while. Fails only with an
    /// error of the queue that will not pass.
    pub async fn serve(&self, mut stopping: watch::Receiver<bool>) -> Result<Option<Tally>, Failure> {
        let mut told_of_other = false;
        let _claim = loop {
            if let Some(claim) = self.drain.queue.claim()? {
                break claim;
            }
            if !std::mem::replace(&mut told_of_other, true) {
                self.printer.note("another process pushes this queue; waiting for its end");
            }
            if is_over(&mut stopping, IDLE_WAIT).await {
                return Ok(None);
            }
        };
        loop {
            let mut tally = Tally::default();
            let wait = match self.once(&mut tally).await {
                Ok(()) => IDLE_WAIT,
                Err(error) => {
                    tolerate(error, self.printer)?;
                    TROUBLE_WAIT
                }
            };
            if *stopping.borrow() {
                return Ok(Some(tally));
            }
            if is_over(&mut stopping, wait).await {
                return Ok(Some(Tally::default()));
            }
        }
    }

    /// What a service does when it was told to stop: what is under way in [`Drainer::serve`] comes to its end, then what
    /// waits is pushed, whenever it would have been due, all for a limited time or until another signal. Says how many
    /// are left, and fails if any are.
    pub async fn stop(
        &self,
        serving: Pin<&mut impl Future<Output = Result<Option<Tally>, Failure>>>,
        args: &StopArgs,
        stop: &mut Stop,
    ) -> Result<(), Failure> {
        let patience = Duration::from_secs(args.flush_timeout.as_seconds());
        self.printer.note(&format!("stopping: pushing what waits, for at most {} s", patience.as_secs()));
        let mut tally = Tally::default();
        let mut is_ours = true;
        let flushing = async {
            match serving.await? {
                None => is_ours = false,
                Some(under_way) => {
                    tally.add_all(under_way);
                    self.until_empty(&mut tally).await?;
                }
            }
            Ok::<(), Failure>(())
        };
        let ended = tokio::select! {
            ended = tokio::time::timeout(patience, flushing) => ended.unwrap_or(Ok(())),
            () = stop.asked() => Ok(()),
        };
        let (waiting, _) = self.drain.queue.waiting(self.drain.cache).await?;
        let (pushed, waiting_told) = (counted(tally.pushed as u64, "pushed"), counted(waiting, "waiting"));
        self.printer.note(&format!("stopped; {pushed} meanwhile, {waiting_told}"));
        ended?;
        // What another process pushes is its business.
        if is_ours { tally.nothing_left(waiting) } else { Ok(()) }
    }

    /// Pushes until nothing waits, or only what waiting does not mend; what another process pushes is waited for.
    pub async fn until_empty(&self, tally: &mut Tally) -> Result<(), Failure> {
        let queue = self.drain.queue;
        queue.hurry(self.drain.cache, self.drain.clock.now()).await?;
        let mut claim = None;
        loop {
            if claim.is_none() {
                claim = queue.claim()?;
            }
            if claim.is_some() {
                self.once(tally).await?;
            }
            let (waiting, next_at) = queue.waiting(self.drain.cache).await?;
            let lasting = tally.fault.as_ref().is_some_and(|fault| fault.kind != ErrorKind::Unreachable);
            if waiting == 0 || claim.is_some() && lasting {
                return Ok(());
            }
            tokio::time::sleep(self.wait_until(next_at)).await;
        }
    }

    fn wait_until(&self, next_at: Option<Timestamp>) -> Duration {
        let millis = next_at.map_or(0, |next_at| next_at.0.saturating_sub(self.drain.clock.now().0));
        Duration::from_millis(millis.unsigned_abs()).clamp(Duration::from_millis(100), IDLE_WAIT)
    }

    fn tell(&self, cache: &str, round: &Round) {
        if !round.pushed.is_empty() {
            self.printer.note(&format!("{} to {cache}", counted(round.pushed.len() as u64, "pushed")));
        }
        for (path, why) in &round.dropped {
            self.printer.note(&format!("{path} is not pushed: {why}"));
        }
        for fault in &round.faults {
            let hint = fault.hint.as_deref().unwrap_or("the paths stay queued and are tried again");
            self.printer.warning(&format!("{cache}: {}", fault.text), hint);
        }
    }
}

/// Tells of trouble that may pass, such as a daemon that is restarted, or gives back what will not.
pub fn tolerate(error: WatchError, printer: Printer) -> Result<(), Failure> {
    match error {
        WatchError::Queue(error @ (QueueError::Damaged { .. } | QueueError::Newer { .. })) => {
            Err(error.into())
        }
        error => {
            let Failure::Told { error, .. } = Failure::from(error) else { return Ok(()) };
            printer.warning(&format!("{error:#}"), "trying again");
            Ok(())
        }
    }
}

/// Waits, and says whether it was told to stop meanwhile.
async fn is_over(stopping: &mut watch::Receiver<bool>, wait: Duration) -> bool {
    // Whoever tells lives as long as the service.
    tokio::time::timeout(wait, stopping.wait_for(|stopping| *stopping)).await.is_ok()
}

/// `1 path pushed`, `2 paths waiting`.
pub fn counted(count: u64, what: &str) -> String {
    format!("{count} path{} {what}", if count == 1 { "" } else { "s" })
}

/// How often the queue is looked at: one small query.
const IDLE_WAIT: Duration = Duration::from_secs(2);

/// How long to wait after Nix or the disk failed.
const TROUBLE_WAIT: Duration = Duration::from_secs(10);
