//! What a thread that looks after many tasks may do that takes its time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, RuntimeFlavor};

/// Does what may take its time without holding up the tasks, and the network, that this thread looks after, and without
/// the way to another thread and back, which on an idle machine takes longer than most such work.
pub fn in_place<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        // A thread of its own, or a runtime that has no other thread to hand them to.
        _ => work(),
    }
}

/// Work of one kind that is short on most machines, such as a flush of the disk: [`in_place`] hands over what a thread
/// looks after, and whoever takes it has to be woken.
///
/// Never holds up more than one thread: while one does such work, others hand theirs over first, and so do all while it
/// has turned out to be long.
#[derive(Debug, Default)]
pub struct Short {
    busy: AtomicBool,
    was_long: AtomicBool,
}

impl Short {
    /// Does such work.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let done = if self.was_long.load(Ordering::Relaxed) || self.busy.swap(true, Ordering::Acquire) {
            in_place(work)
        } else {
            let _busy = Busy(&self.busy);
            work()
        };
        self.was_long.store(started.elapsed() >= LONG, Ordering::Relaxed);
        done
    }
}

/// That a thread is held up, until it is dropped.
struct Busy<'a>(&'a AtomicBool);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// From here on work is long: other tasks have waited for about as long as a request takes.
const LONG: Duration = Duration::from_millis(4);

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::mpsc::{self, Receiver};
    use std::thread;

    use super::*;

    /// Whether another task has run while `work` went on, on a runtime whose one thread is lost to whoever does not hand
    /// over what it looks after.
    fn others_run_during(work: impl FnOnce(&Receiver<()>) -> bool + Send + 'static) -> bool {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        runtime.block_on(async {
            let working = tokio::spawn(async move {
                let (sender, receiver) = mpsc::channel();
                tokio::spawn(async move { sender.send(()) });
                work(&receiver)
            });
            working.await.unwrap()
        })
    }

    fn comes(message: &Receiver<()>) -> bool {
        message.recv_timeout(Duration::from_secs(60)).is_ok()
    }

    fn came(message: &Receiver<()>) -> bool {
        message.try_recv().is_ok()
    }

    #[test]
    fn what_is_short_is_done_where_it_is() {
        let short = Short::default();
        assert!(!others_run_during(move |message| short.run(|| came(message))));
    }

    #[test]
    fn what_has_turned_out_to_be_long_holds_nobody_up() {
        let short = Short::default();
        short.run(|| thread::sleep(LONG));
        assert!(others_run_during(move |message| short.run(|| comes(message))));
    }

    #[test]
    fn what_is_short_again_is_done_where_it_is_again() {
        let short = Short::default();
        short.run(|| thread::sleep(LONG));
        short.run(|| ());
        assert!(!others_run_during(move |message| short.run(|| came(message))));
    }

    #[test]
    fn only_one_thread_is_held_up_at_once() {
        let short = Short::default();
        // By another one.
        short.busy.store(true, Ordering::Relaxed);
        assert!(others_run_during(move |message| short.run(|| comes(message))));
    }

    #[test]
    fn a_panic_leaves_no_thread_taken_for_held_up() {
        let short = Short::default();
        catch_unwind(AssertUnwindSafe(|| short.run(|| panic!("on purpose")))).unwrap_err();
        assert!(!others_run_during(move |message| short.run(|| came(message))));
    }
}
