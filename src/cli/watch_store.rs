//! `narvault watch-store`: pushes every path that becomes valid in the local store.
//!
//! What it finds it queues first; a server that is down makes it late, not incomplete.

use std::convert::Infallible;
use std::pin::pin;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::sync::watch;

use super::Context;
use super::failure::Failure;
use super::push::HowArgs;
use super::push_queued::Pusher;
use super::queue::{Drainer, QueueArgs, StopArgs, tolerate};
use super::signals::Stop;
use crate::watch::{LocalNix, StoreWatch, Wake};

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault watch-store main")]
pub struct WatchStoreArgs {
    /// The cache's name
    cache: String,
    /// Leave out what came while no watch ran
    #[arg(long)]
    since_now: bool,
    #[command(flatten)]
    stop: StopArgs,
    #[command(flatten)]
    how: HowArgs,
    #[command(flatten)]
    queue: QueueArgs,
}

pub async fn run(args: WatchStoreArgs, context: &Context) -> Result<(), Failure> {
    let mut stop = Stop::new()?;
    let queue = args.queue.open().await?;
    let options = args.how.options()?;
    let nix = LocalNix::new(&options.store);
    let pusher = Pusher::new(context, options)?;
    let drainer = Drainer::new(&queue, &nix, Some(&args.cache), pusher, context);
    // Before the first look: what is written from here on is told of.
    let wake = Wake::of(&nix.database_folder());
    let now = context.clock.now();
    let mut store = StoreWatch::begin(&queue, &nix, &args.cache, args.since_now, now).await?;
    let how = if wake.is_told() { "told of changes" } else { "looking every few seconds" };
    context.printer.note(&format!("watching the store for {}, {how}", args.cache));
    let (stopping, told) = watch::channel(false);
    let mut serving = pin!(drainer.serve(told));
    tokio::select! {
        ended = sweep_for_ever(&mut store, wake, context) => match ended? {},
        ended = &mut serving => return ended.map(drop),
        () = stop.asked() => {}
    }
    // What was built a moment ago is not to wait for the next start.
    store.sweep(context.clock.now()).await?;
    stopping.send_replace(true);
    drainer.stop(serving, &args.stop, &mut stop).await
}

async fn sweep_for_ever(
    store: &mut StoreWatch<'_>,
    mut wake: Wake,
    context: &Context,
) -> Result<Infallible, Failure> {
    loop {
        let began = Instant::now();
        if let Err(error) = store.sweep(context.clock.now()).await {
            tolerate(error, context.printer)?;
        }
        let pause = began.elapsed().saturating_mul(SHARE_OF_TIME).max(PAUSE_MIN);
        tokio::time::sleep(pause).await;
        wake.wait().await;
    }
}

/// Shortest time between two looks: a build writes the database many times in a second.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// Nix names all valid paths at each look. On a large store, looking takes at most a tenth of the time.
const SHARE_OF_TIME: u32 = 9;
