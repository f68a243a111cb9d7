//! `narvault log follow`: new leaves as they come, each checkpoint a continuation of the one before.
//!
//! Never shows a leaf that its checkpoint does not have, and stops for good at a log that contradicts itself.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::super::Context;
use super::super::args::Lifetime;
use super::super::failure::{Exit, Failure};
use super::super::signals::Stop;
use super::super::text::plain;
use super::mirror::forked;
use super::place::{LogPlace, Trust};
use super::reader::{LogReader, contradiction};
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::policy::Policy;
use crate::tlog::tile::TILE_WIDTH;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault log follow --since 0 --json")]
pub struct FollowArgs {
    /// A server, a mirror's address or folder, or a bucket [default: the server in use]
    #[arg(value_name = "URL|FOLDER")]
    from: Option<String>,
    /// The first leaf that is shown, from 0 [default: the next one that comes]
    #[arg(long, value_name = "INDEX")]
    since: Option<u64>,
    /// How long to rest between two looks
    #[arg(long, value_name = "TIME", default_value = "2s")]
    every: Lifetime,
    #[command(flatten)]
    trust: Trust,
}

/// One leaf.
#[derive(Debug, Serialize)]
struct LeafLine<'a> {
    index: u64,
    leaf: &'a str,
}

pub async fn follow(args: FollowArgs, context: &Context) -> Result<(), Failure> {
    let mut stop = Stop::new()?;
    tokio::select! {
        () = stop.asked() => Ok(()),
        failed = follow_on(args, context) => failed,
    }
}

async fn follow_on(args: FollowArgs, context: &Context) -> Result<(), Failure> {
    let place = LogPlace::open(args.from.as_deref(), context).await?;
    let policy = place.policy(&args.trust).await?;
    let pause = Duration::from_secs(args.every.as_seconds());
    let mut seen: Option<Checkpoint> = None;
    let mut next = args.since;
    loop {
        match look(&place, &policy, seen.as_ref(), next, context).await {
            Ok(checkpoint) => {
                next = Some(next.unwrap_or(0).max(checkpoint.size));
                seen = Some(checkpoint);
            }
            // A server that restarts is no reason to stop looking at its log.
            Err(Failure::Told { exit: Exit::Unreachable, error, .. }) if seen.is_some() => {
                context.printer.warning(&error.to_string(), "it is asked again");
            }
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(pause).await;
    }
}

/// One look: the newest checkpoint, which goes on from `seen`, after showing its leaves from `next` on.
async fn look(
    place: &LogPlace,
    policy: &Policy,
    seen: Option<&Checkpoint>,
    next: Option<u64>,
    context: &Context,
) -> Result<Checkpoint, Failure> {
    let (checkpoint, _) = place.checkpoint(policy).await?;
    if seen == Some(&checkpoint) {
        return Ok(checkpoint);
    }
    if let Some(seen) = seen.filter(|seen| checkpoint.size < seen.size) {
        let (new, old) = (checkpoint.size, seen.size);
        let what = format!("the log was rolled back: it has {new} leaves, and had {old} before");
        return Err(Failure::new(Exit::Refused, what));
    }
    let mut reader = LogReader::open(place, &checkpoint).await?.map_err(contradiction)?;
    if let Some(seen) = seen {
        reader.goes_on_from(seen).await?.map_err(|error| forked(seen, error))?;
    }
    if let Some(next) = next.filter(|next| *next < checkpoint.size) {
        show_from(&mut reader, next, context).await?;
    }
    Ok(checkpoint)
}

async fn show_from(reader: &mut LogReader<'_>, first: u64, context: &Context) -> Result<(), Failure> {
    let width = u64::from(TILE_WIDTH);
    let mut next = first / width;
    while next < reader.bundles() {
        let fetched = reader.fetch_bundles(next).await?;
        next = fetched.end;
        for bundle in fetched {
            let entries = reader.entries(bundle).map_err(contradiction)?;
            for (index, entry) in (bundle * width..).zip(&entries).filter(|(index, _)| *index >= first) {
                let leaf = String::from_utf8_lossy(entry);
                context.printer.answer(&LeafLine { index, leaf: &leaf }, people)?;
            }
        }
    }
    Ok(())
}

/// The leaf below its place, and an empty line.
fn people(line: &LeafLine<'_>) -> String {
    let lines = line.leaf.lines().map(|line| format!("{}\n", plain(line)));
    format!("leaf {}\n{}\n", line.index, lines.collect::<String>())
}
