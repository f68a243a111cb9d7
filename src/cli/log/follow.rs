//! `narvault log follow`: new leaves as they come, each checkpoint a continuation of the one before, also of the one that
//! another call has kept in a file.
//!
//! Never shows a leaf that its checkpoint does not have, and stops for good at a log that contradicts itself. What is kept
//! was shown before: a call that was broken off shows some leaves again, and leaves none out.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::super::Context;
use super::super::args::Lifetime;
use super::super::failure::{Exit, Failure};
use super::super::signals::Stop;
use super::super::text::plain;
use super::mirror::{forked, rolled_back};
use super::place::{LogPlace, Trust};
use super::reader::{LogReader, contradiction};
use super::seen::{Seen, SeenFile};
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::policy::Policy;
use crate::tlog::tile::TILE_WIDTH;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault log follow --state /var/lib/watch/main.seen --json")]
pub struct FollowArgs {
    /// A server, a mirror's address or folder, or a bucket [default: the server in use]
    #[arg(value_name = "URL|FOLDER")]
    from: Option<String>,
    /// The first leaf that is shown, from 0 [default: the first one that the state has not, or the next one that comes]
    #[arg(long, value_name = "INDEX")]
    since: Option<u64>,
    /// Keep the newest checkpoint that was seen in this file, and go on from the one that is there: a log that is not its
    /// continuation is refused. Without one the log is trusted at its first sight
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Look once, and end
    #[arg(long)]
    once: bool,
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
    let mut follower = Follower::begin(args, place, context).await?;
    let pause = Duration::from_secs(follower.args.every.as_seconds());
    let mut looked = false;
    loop {
        match follower.look(context).await {
            Ok(()) => looked = true,
            // A server that restarts is no reason to stop looking at its log.
            Err(Failure::Told { exit: Exit::Unreachable, error, .. }) if looked => {
                context.printer.warning(&error.to_string(), "it is asked again");
            }
            Err(failure) => return Err(failure),
        }
        if follower.args.once {
            return Ok(());
        }
        tokio::time::sleep(pause).await;
    }
}

/// Who looks at a log, and remembers.
struct Follower {
    args: FollowArgs,
    place: LogPlace,
    policy: Policy,
    state: Option<SeenFile>,
    seen: Option<Checkpoint>,
    /// The first leaf that is shown next; `None`: the one that comes next.
    next: Option<u64>,
}

impl Follower {
    /// Believes by the word that was given, or by the key that the state was begun with, or else by the place's own.
    async fn begin(args: FollowArgs, place: LogPlace, context: &Context) -> Result<Self, Failure> {
        let kept = match &args.state {
            Some(path) => Seen::read(path)?,
            None => None,
        };
        let kept_key = kept.as_ref().and_then(|kept| kept.key.clone());
        let key = match (&args.trust.policy, &kept_key) {
            (Some(_), _) => None,
            (None, Some(key)) if !args.trust.is_given() => Some(key.clone()),
            (None, _) => Some(place.key(&args.trust).await?),
        };
        let policy = match &key {
            Some(key) => Policy::of_log(key.clone()),
            None => place.policy(&args.trust).await?,
        };
        let seen = kept.map(|kept| kept.checkpoint(&policy)).transpose()?;
        if let (Some(path), None) = (&args.state, &seen) {
            let key = match (&key, args.trust.is_given()) {
                (Some(key), false) => format!(" by the key {key}, which it tells itself"),
                _ => String::new(),
            };
            let path = path.display();
            context.printer.note(&format!(
                "nothing is known of this log: as it is now it is trusted{key}, and kept in {path}"
            ));
        }
        let key = key.or(kept_key);
        let state = args.state.as_deref().map(|path| SeenFile::new(path, key)).transpose()?;
        let next = args.since.or(seen.as_ref().map(|seen| seen.size));
        Ok(Self { args, place, policy, state, seen, next })
    }

    /// One look: the newest checkpoint, which goes on from what was seen, and its new leaves.
    async fn look(&mut self, context: &Context) -> Result<(), Failure> {
        let (checkpoint, note) = self.place.checkpoint(&self.policy).await?;
        let is_new = self.seen.as_ref() != Some(&checkpoint);
        if let Some(seen) = self.seen.as_ref().filter(|seen| checkpoint.size < seen.size) {
            return Err(
                rolled_back(checkpoint.size, seen.size).hint("keep both checkpoints: together they prove it")
            );
        }
        let first = self.next.unwrap_or(checkpoint.size);
        if is_new || first < checkpoint.size {
            let mut reader = LogReader::open(&self.place, &checkpoint).await?.map_err(contradiction)?;
            if let Some(seen) = &self.seen {
                reader.goes_on_from(seen).await?.map_err(|error| forked(seen, error))?;
            }
            if first < checkpoint.size {
                show_from(&mut reader, first, context).await?;
            }
        }
        self.next = Some(first.max(checkpoint.size));
        if let Some(state) = self.state.as_ref().filter(|_| is_new) {
            state.keep(&note)?;
        }
        self.seen = Some(checkpoint);
        Ok(())
    }
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
