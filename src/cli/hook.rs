//! `narvault hook`: Nix's post-build-hook, and the service that pushes what it queues.
//!
//! The hook never waits for a server and never fails a build.

use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use tokio::sync::watch;

use super::Context;
use super::args::Lifetime;
use super::failure::{Exit, Failure};
use super::output::to_stderr;
use super::push::HowArgs;
use super::push_queued::Pusher;
use super::queue::{Drainer, QueueArgs, StopArgs, Tally};
use super::signals::Stop;
use super::text::{Table, moment};
use crate::access::CacheName;
use crate::client::push::LocalStore;
use crate::config::variable;
use crate::nix::store_path::StorePath;
use crate::queue::{Queue, Status};
use crate::watch::LocalNix;

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Example:\n  narvault hook main --queue /var/lib/narvault-hook/queue.db"
)]
pub struct HookArgs {
    #[command(subcommand)]
    command: Option<HookCommand>,
    /// The cache's name
    #[arg(required = true)]
    cache: Option<String>,
    /// Store that the build was for, such as local?root=FOLDER [default: the one that Nix uses by itself]
    #[arg(long, value_name = "STORE", default_value_t, hide_default_value = true)]
    store: LocalStore,
    /// Push in the background, where no service does
    #[arg(long)]
    push: bool,
    #[command(flatten)]
    queue: QueueArgs,
}

#[derive(Debug, Subcommand)]
pub enum HookCommand {
    /// Push what is queued, and what will be, until stopped
    Run(RunArgs),
    /// Push what is queued now, and say what is left
    Flush(FlushArgs),
    /// Show what waits, and what was not pushed
    Status(StatusArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault hook run --queue /var/lib/narvault-hook/queue.db")]
pub struct RunArgs {
    /// Only what waits for this cache
    #[arg(long, value_name = "NAME")]
    cache: Option<String>,
    /// End when everything was tried once
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    stop: StopArgs,
    #[command(flatten)]
    how: HowArgs,
    #[command(flatten)]
    queue: QueueArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault hook flush --timeout 5m")]
pub struct FlushArgs {
    /// Only what waits for this cache
    #[arg(long, value_name = "NAME")]
    cache: Option<String>,
    /// How long to try
    #[arg(long, value_name = "TIME", default_value = "10m")]
    timeout: Lifetime,
    #[command(flatten)]
    how: HowArgs,
    #[command(flatten)]
    queue: QueueArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault hook status --queue /var/lib/narvault-hook/queue.db")]
pub struct StatusArgs {
    #[command(flatten)]
    queue: QueueArgs,
}

pub async fn run(args: HookArgs, context: &Context) -> Result<(), Failure> {
    match args.command {
        Some(HookCommand::Run(args)) => serve(args, context).await,
        Some(HookCommand::Flush(args)) => flush(args, context).await,
        Some(HookCommand::Status(args)) => status(args, context).await,
        None => built(args, context).await,
    }
}

/// What Nix calls after a build. Only a call that no Nix makes fails.
async fn built(args: HookArgs, context: &Context) -> Result<(), Failure> {
    let out_paths = variable("OUT_PATHS").unwrap_or_default();
    let derivation = variable("DRV_PATH").unwrap_or_default();
    if out_paths.trim().is_empty() && derivation.is_empty() {
        return Err(Failure::new(
            Exit::Usage,
            "neither OUT_PATHS nor DRV_PATH is set, as Nix does for its hook",
        )
        .hint("set this command as `post-build-hook` in nix.conf, or use `narvault push`"));
    }
    let queued = tokio::time::timeout(HOOK_PATIENCE, queue_outputs(&args, &out_paths, &derivation, context));
    let failure = match queued.await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(failure)) => failure.to_string(),
        Err(_) => format!("error: queueing took longer than {} s\n", HOOK_PATIENCE.as_secs()),
    };
    // The build is fine, and stays so.
    to_stderr(&format!("{failure}warning: what {derivation} built is not queued for pushing\n"));
    Ok(())
}

async fn queue_outputs(
    args: &HookArgs,
    out_paths: &str,
    derivation: &str,
    context: &Context,
) -> Result<(), Failure> {
    let cache = args.cache.as_deref().unwrap_or_default();
    cache.parse::<CacheName>().map_err(|error| {
        Failure::new(Exit::Usage, format!("`{cache}` is no cache: {error}")).hint("run `narvault cache list`")
    })?;
    let queue = args.queue.open().await?;
    match outputs(args, out_paths, derivation).await {
        Ok(paths) => queue.add(cache, &paths, context.clock.now()).await?,
        Err(failure) => {
            queue.note(cache, &format!("{derivation}: {failure}"), context.clock.now()).await?;
            return Err(failure);
        }
    }
    if args.push { push_in_background(&queue, args) } else { Ok(()) }
}

/// What was built. Nix 2.8.0 leaves `OUT_PATHS` empty, and has to be asked.
async fn outputs(args: &HookArgs, out_paths: &str, derivation: &str) -> Result<Vec<StorePath>, Failure> {
    let path = |text: &str| {
        StorePath::from_absolute(text)
            .map_err(|error| Failure::new(Exit::Failure, format!("{text}: {error}")))
    };
    if !out_paths.trim().is_empty() {
        return out_paths.split_whitespace().map(path).collect();
    }
    LocalNix::new(args.store.clone())
        .outputs(&path(derivation)?)
        .await
        .map_err(|error| Failure::caused("cannot find out what was built".into(), error))
}

/// Starts a process that outlives this one. Of several at once one pushes and the others end.
fn push_in_background(queue: &Queue, args: &HookArgs) -> Result<(), Failure> {
    let failed = |error| Failure::caused("cannot start pushing in the background".into(), error);
    let mut command = std::process::Command::new(std::env::current_exe().map_err(failed)?);
    command.args(["hook", "run", "--once", "--quiet", "--queue"]).arg(queue.path());
    command.args(["--store", &args.store.to_string()]);
    // Nix waits for the end of the hook's output, and may signal its group.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    std::os::unix::process::CommandExt::process_group(&mut command, 0).spawn().map_err(failed)?;
    Ok(())
}

async fn serve(args: RunArgs, context: &Context) -> Result<(), Failure> {
    let queue = args.queue.open().await?;
    let options = args.how.options()?;
    let nix = LocalNix::new(&options.store);
    let pusher = Pusher::new(context, options)?;
    let drainer = Drainer::new(&queue, &nix, args.cache.as_deref(), pusher, context);
    if args.once {
        let Some(_claim) = queue.claim()? else {
            context.printer.note("another process pushes this queue");
            return Ok(());
        };
        let mut tally = Tally::default();
        drainer.once(&mut tally).await?;
        return end(&tally, queue.waiting(args.cache.as_deref()).await?.0, context);
    }
    let mut stop = Stop::new()?;
    let (stopping, told) = watch::channel(false);
    let mut serving = pin!(drainer.serve(told));
    tokio::select! {
        ended = &mut serving => return ended.map(drop),
        () = stop.asked() => {}
    }
    stopping.send_replace(true);
    drainer.stop(serving, &args.stop, &mut stop).await
}

async fn flush(args: FlushArgs, context: &Context) -> Result<(), Failure> {
    let queue = args.queue.open_existing().await?;
    let options = args.how.options()?;
    let nix = LocalNix::new(&options.store);
    let pusher = Pusher::new(context, options)?;
    let drainer = Drainer::new(&queue, &nix, args.cache.as_deref(), pusher, context);
    let patience = Duration::from_secs(args.timeout.as_seconds());
    let mut tally = Tally::default();
    // What is left when the time is over is told below.
    if let Ok(ended) = tokio::time::timeout(patience, drainer.until_empty(&mut tally)).await {
        ended?;
    }
    end(&tally, queue.waiting(args.cache.as_deref()).await?.0, context)
}

/// What a command that pushed says at its end.
#[derive(Serialize)]
struct Flushed {
    pushed: usize,
    dropped: usize,
    waiting: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

fn end(tally: &Tally, waiting: u64, context: &Context) -> Result<(), Failure> {
    let Tally { pushed, dropped, fault } = tally;
    let error = fault.as_ref().map(|fault| fault.text.clone()).filter(|_| waiting > 0);
    let flushed = Flushed { pushed: *pushed, dropped: *dropped, waiting, error };
    context.printer.answer(&flushed, |flushed| {
        format!("{} pushed, {} dropped, {} waiting\n", flushed.pushed, flushed.dropped, flushed.waiting)
    })?;
    tally.nothing_left(waiting)
}

async fn status(args: StatusArgs, context: &Context) -> Result<(), Failure> {
    let queue = args.queue.open_existing().await?;
    let status = queue.status(NOTES_SHOWN).await?;
    context.printer.answer(&status, people)
}

fn people(status: &Status) -> String {
    if status.caches.is_empty() && status.notes.is_empty() {
        return "nothing waits\n".into();
    }
    let mut text = String::new();
    if !status.caches.is_empty() {
        let mut rows: Vec<Vec<String>> =
            vec![["CACHE", "WAITING", "FAILING", "SINCE", "NEXT TRY", "ERROR"].map(str::to_owned).into()];
        rows.extend(status.caches.iter().map(|cache| {
            let (waiting, failing) = (cache.waiting.to_string(), cache.failing.to_string());
            let error = cache.error.clone().unwrap_or_default();
            vec![
                cache.cache.clone(),
                waiting,
                failing,
                moment(&cache.oldest_at),
                moment(&cache.next_at),
                error,
            ]
        }));
        text.push_str(&Table::default().text(&rows));
    }
    if !status.notes.is_empty() {
        let mut rows: Vec<Vec<String>> =
            vec![["NOT PUSHED", "CACHE", "PATH", "WHY"].map(str::to_owned).into()];
        rows.extend(status.notes.iter().map(|note| {
            let path = note.path.clone().unwrap_or_else(|| "-".into());
            vec![moment(&note.at), note.cache.clone(), path, note.text.clone()]
        }));
        text.push_str(&Table::default().text(&rows));
    }
    text
}

/// Longest that a build waits for its hook: far more than a write to a busy disk takes, and not for ever where a
/// daemon or a lock hangs.
const HOOK_PATIENCE: Duration = Duration::from_secs(30);

/// Notes that `status` shows.
const NOTES_SHOWN: u32 = 20;
