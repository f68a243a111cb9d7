//! `narvault watch-exec`: runs a command, and pushes what it built.
//!
//! Nix itself says what that is, by a post-build-hook that this command sets for its child. Never changes the child's
//! exit code, and pushes nothing that somebody else built meanwhile unless told to.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::sync::watch;

use super::Context;
use super::args::Lifetime;
use super::child::Child;
use super::failure::{Exit, Failure};
use super::folder::TemporaryFolder;
use super::output::to_stderr;
use super::push::HowArgs;
use super::push_queued::Pusher;
use super::queue::{Drainer, Tally, counted, tolerate};
use super::signals::Stop;
use crate::config::variable;
use crate::nix::store_path::StorePath;
use crate::queue::Queue;
use crate::time::Timestamp;
use crate::watch::{Fault, LocalNix, WatchError};

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault watch-exec main -- nix build .#hello")]
pub struct WatchExecArgs {
    /// The cache's name
    cache: String,
    /// Whether a push that fails makes this command fail
    #[arg(long, value_enum, default_value_t = PushFailures::Warn, value_name = "WHAT")]
    push_failures: PushFailures,
    /// How long to go on pushing after the command's end
    #[arg(long, value_name = "TIME", default_value = "10m")]
    timeout: Lifetime,
    /// Push whatever was built on this machine meanwhile, by anybody: for users whom the Nix daemon does not trust
    #[arg(long)]
    from_store: bool,
    #[command(flatten)]
    how: HowArgs,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

// Not documentation, which clap would print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PushFailures {
    Fatal,
    Warn,
}

pub async fn run(args: WatchExecArgs, context: &Context) -> Result<(), Failure> {
    let options = args.how.options()?;
    let nix = LocalNix::new(&options.store);
    let prepared = async {
        let session = Session::prepare(&args, &nix).await?;
        let pusher = Pusher::new(context, options)?;
        Ok((session, pusher))
    };
    let (session, pusher) = match (prepared.await, args.push_failures) {
        (Ok(prepared), _) => prepared,
        (Err(failure), PushFailures::Fatal) => return Err(failure),
        (Err(failure), PushFailures::Warn) => {
            warn(&failure);
            return Child::start(&args.command, &[])?.end().await;
        }
    };
    let watched = Watched { args: &args, nix: &nix, session: &session, context };
    let mut child = Child::start(&args.command, &[("NIX_CONFIG", session.nix_config())])?;
    let (tell, ended) = watch::channel(false);
    let running = async {
        let result = child.end().await;
        // Nobody to tell is no failure: the pushing ended before.
        let _ = tell.send(true);
        result
    };
    let (result, pushed) = tokio::join!(running, watched.push(pusher, ended));
    match (result, pushed) {
        (Ok(()), Err(failure)) if args.push_failures == PushFailures::Fatal => Err(failure),
        (result, Err(failure)) => {
            warn(&failure);
            result
        }
        (result, Ok(())) => result,
    }
}

/// The hook of one command, and the queue that it fills.
struct Session {
    queue: Queue,
    hook: PathBuf,
    /// What was valid before the command began.
    before: HashSet<StorePath>,
    // Gone last.
    _folder: TemporaryFolder,
}

impl Session {
    async fn prepare(args: &WatchExecArgs, nix: &LocalNix) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::caused("cannot prepare the hook".into(), error);
        let folder = TemporaryFolder::make("exec", false).map_err(failed)?;
        let hook = folder.path().join("hook");
        // In nix.conf, space would be folded and a number sign begins a comment.
        if hook.to_string_lossy().contains(|mark: char| mark.is_whitespace() || mark == '#') {
            return Err(Failure::new(
                Exit::Failure,
                format!("Nix cannot run a hook in {}", folder.path().display()),
            )
            .hint("set TMPDIR to a folder without space in its name"));
        }
        let queue = Queue::open(&folder.path().join("queue.db")).await?;
        let configured = nix.post_build_hook().await.unwrap_or_default();
        let program = std::env::current_exe().map_err(failed)?;
        let text = hook_text(&program, queue.path(), &args.cache, nix.store(), configured.as_deref());
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o700).open(&hook).map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        drop(file);
        let before = nix.all().await.map_err(WatchError::from)?.into_iter().collect();
        Ok(Self { queue, hook, before, _folder: folder })
    }

    /// The child's NIX_CONFIG: what it would have had, and the hook.
    fn nix_config(&self) -> OsString {
        let before = variable("NIX_CONFIG").unwrap_or_default();
        format!("{before}\npost-build-hook = {}", self.hook.display()).into()
    }
}

/// A command that runs, and what is pushed of it.
struct Watched<'a> {
    args: &'a WatchExecArgs,
    nix: &'a LocalNix,
    session: &'a Session,
    context: &'a Context,
}

impl Watched<'_> {
    /// Pushes what is built while the command runs, and the rest when it has ended. Fails if something is left.
    async fn push(&self, pusher: Pusher<'_>, ended: watch::Receiver<bool>) -> Result<(), Failure> {
        let queue = &self.session.queue;
        let mut drainer = Drainer::new(queue, self.nix, None, pusher, self.context);
        drainer.remember();
        let mut tally = Tally::default();
        let mut limit = ended.clone();
        let over = async {
            // The sender lives until the command has ended.
            let _ = limit.wait_for(|ended| *ended).await;
            let mut stop = Stop::new()?;
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(self.args.timeout.as_seconds())) => {}
                () = stop.asked() => {}
            }
            Ok::<(), Failure>(())
        };
        tokio::select! {
            pushed = self.push_all(&drainer, ended, &mut tally) => pushed?,
            over = over => over?,
        }
        let (waiting, _) = queue.waiting(None).await?;
        if waiting > 0 { Err(self.left(waiting, tally.fault).await?) } else { Ok(()) }
    }

    async fn push_all(
        &self,
        drainer: &Drainer<'_>,
        mut ended: watch::Receiver<bool>,
        tally: &mut Tally,
    ) -> Result<(), Failure> {
        while !*ended.borrow() {
            if let Err(error) = drainer.once(tally).await {
                tolerate(error, self.context.printer)?;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = ended.changed() => {}
            }
        }
        let untold = self.untold(drainer).await?;
        if self.args.from_store {
            self.session.queue.add(&self.args.cache, &untold, self.context.clock.now()).await?;
        } else if !untold.is_empty() {
            let built =
                counted(untold.len() as u64, "built on this machine meanwhile, and Nix did not tell of it");
            let hint = "if this command built it, Nix does not trust you with a hook: add `--from-store`";
            self.context.printer.warning(&built, hint);
        }
        // As often as `narvault push` tries: whoever waits for this command must not wait for a server that is down.
        self.session.queue.hurry(None, self.context.clock.now()).await?;
        Ok(drainer.once(tally).await?)
    }

    /// What was built on this machine since the command began, and is not known from the hook.
    async fn untold(&self, drainer: &Drainer<'_>) -> Result<Vec<StorePath>, Failure> {
        let mut known = drainer.remembered();
        let never = Timestamp(i64::MAX);
        let waiting = self.session.queue.due(None, never, usize::MAX).await?;
        known.extend(waiting.into_iter().map(|entry| entry.path));
        let valid = self.nix.all().await.map_err(WatchError::from)?;
        let is_new = |path: &&StorePath| {
            !path.is_derivation() && !self.session.before.contains(*path) && !known.contains(*path)
        };
        let new: Vec<&StorePath> = valid.iter().filter(is_new).collect();
        let built = self.nix.built_here(&new).await.map_err(WatchError::from)?;
        // In Nix's order, so that two runs tell and push the same.
        Ok(new.into_iter().filter(|path| built.contains(*path)).cloned().collect())
    }

    /// The failure that names what was not pushed.
    async fn left(&self, waiting: u64, fault: Option<Fault>) -> Result<Failure, Failure> {
        let left = self.session.queue.due(None, Timestamp(i64::MAX), PATHS_TOLD).await?;
        let left: Vec<String> = left.iter().map(|entry| entry.path.to_string()).collect();
        let more = if waiting > left.len() as u64 { " …" } else { "" };
        let (exit, why) = match fault {
            Some(fault) => (fault.kind.into(), fault.text),
            None => (Exit::Failure, "the time for it is over".to_owned()),
        };
        Ok(Failure::new(exit, format!("{}: {why}", counted(waiting, "not pushed"))).hint(format!(
            "later: `narvault push {} {}{more}`",
            self.args.cache,
            left.join(" ")
        )))
    }
}

/// The hook's text: queues what was built, then does what the machine's own hook does.
fn hook_text(program: &Path, queue: &Path, cache: &str, store: &str, own: Option<&str>) -> String {
    let mut words = vec![quoted(&program.to_string_lossy()), "hook".into()];
    words.extend(["--queue".into(), quoted(&queue.to_string_lossy())]);
    words.extend(["--store".into(), quoted(store), "--".into(), quoted(cache)]);
    // A hook that fails would fail the build.
    let mut text = format!("#!/bin/sh\n{} || true\n", words.join(" "));
    if let Some(own) = own {
        text.push_str(&format!("exec {}\n", quoted(own)));
    }
    text
}

/// One word for a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn warn(failure: &Failure) {
    to_stderr(&failure.to_string().replacen("error: ", "warning: ", 1));
}

/// How often the queue is looked at while the command runs.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Paths that a failure names.
const PATHS_TOLD: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hook_queues_and_then_does_what_the_machines_own_does() {
        let (program, queue) = (Path::new("/it's/narvault"), Path::new("/t/queue.db"));

        let alone = hook_text(program, queue, "main", "auto", None);
        let both = hook_text(program, queue, "main", "local?root=/x", Some("/etc/nix/hook"));

        assert_eq!(
            alone,
            "#!/bin/sh\n'/it'\\''s/narvault' hook --queue '/t/queue.db' --store 'auto' -- 'main' || true\n"
        );
        assert_eq!(
            both,
            "#!/bin/sh\n'/it'\\''s/narvault' hook --queue '/t/queue.db' --store 'local?root=/x' -- 'main' || true\n\
             exec '/etc/nix/hook'\n"
        );
    }
}
