//! `narvault log`: the signature log of a server, each leaf checked against the checkpoint that its key signed.
//!
//! Never believes a server about its log, but for the key where none is given.

mod alarm;
mod audit;
mod follow;
mod mirror;
mod objects;
pub(super) mod place;
pub(super) mod reader;
mod seen;

use clap::{Args, Subcommand};
use serde::Serialize;

use self::place::{LogPlace, Trust};
use self::reader::{LogReader, contradiction};
use super::Context;
use super::args::PathArg;
use super::failure::{Exit, Failure};
use super::text::Fields;
use crate::api::PathProofQuery;
use crate::tlog::frontier::Frontier;
use crate::tlog::hash::NodeHash;
use crate::tlog::tile::TILE_WIDTH;

#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Show one leaf: who caused a signature, with which token, when
    Show(ShowArgs),
    /// Show new leaves as they come
    Follow(follow::FollowArgs),
    /// Print the proof that a path's signature is in the log, for `narvault verify`
    Proof(ProofArgs),
    /// Read the whole log and recompute its root
    Verify(VerifyArgs),
    /// Check every signature of the log, by which right it was made, and that caches serve what was signed
    Audit(audit::AuditArgs),
    /// Copy the log into a folder, and notice when the server's is not its continuation
    Mirror(mirror::MirrorArgs),
    /// Let a server sign again after a fork alarm, on its own host
    ClearAlarm(alarm::ClearAlarmArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault log show mmjhp110f3wf5kp5q70rc7p49yln4qzy --from ./log")]
pub struct ShowArgs {
    /// The leaf's place in the log, from 0; a store path or its hash, for all leaves that name it; or a signature,
    /// `name:base64`
    #[arg(value_name = "INDEX|PATH|SIGNATURE")]
    leaf: LeafArg,
    /// A server, a mirror's address or folder, or a bucket [default: the server in use]
    #[arg(long, value_name = "URL|FOLDER")]
    from: Option<String>,
    #[command(flatten)]
    trust: Trust,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  narvault log proof main mmjhp110f3wf5kp5q70rc7p49yln4qzy > hello.tlog-proof"
)]
pub struct ProofArgs {
    /// The cache's name
    cache: String,
    /// `/nix/store/…`, its base name, or its 32-character hash
    path: PathArg,
    /// The signature of the key of this name [default: the one that was made last]
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault log verify")]
pub struct VerifyArgs {
    /// A server, a mirror's address or folder, or a bucket [default: the server in use]
    #[arg(value_name = "URL|FOLDER")]
    from: Option<String>,
    #[command(flatten)]
    trust: Trust,
}

pub async fn run(command: LogCommand, context: &Context) -> Result<(), Failure> {
    match command {
        LogCommand::Show(args) => show(args, context).await,
        LogCommand::Follow(args) => follow::follow(args, context).await,
        LogCommand::Proof(args) => proof(args, context).await,
        LogCommand::Verify(args) => verify(args, context).await,
        LogCommand::Audit(args) => audit::audit(args, context).await,
        LogCommand::Mirror(args) => mirror::mirror(args, context).await,
        LogCommand::ClearAlarm(args) => alarm::clear(args, context).await,
    }
}

/// A leaf and what it stands under.
#[derive(Debug, Serialize)]
struct LeafAnswer {
    index: u64,
    leaf: String,
    origin: String,
    size: u64,
}

async fn show(args: ShowArgs, context: &Context) -> Result<(), Failure> {
    let place = LogPlace::open(args.from.as_deref(), context).await?;
    let (checkpoint, _) = place.checkpoint(&place.policy(&args.trust).await?).await?;
    if args.index >= checkpoint.size {
        let what = format!("the log has no leaf {} yet; it has {}", args.index, checkpoint.size);
        return Err(Failure::new(Exit::Failure, what).hint("leaves are counted from 0"));
    }
    let mut reader = LogReader::open(&place, &checkpoint).await?.map_err(contradiction)?;
    let bundle = args.index / u64::from(TILE_WIDTH);
    reader.fetch_bundles(bundle).await?;
    let entries = reader.entries(bundle).map_err(contradiction)?;
    let leaf = entries.into_iter().nth((args.index % u64::from(TILE_WIDTH)) as usize).unwrap_or_default();
    let answer = LeafAnswer {
        index: args.index,
        leaf: String::from_utf8_lossy(&leaf).into_owned(),
        origin: checkpoint.origin,
        size: checkpoint.size,
    };
    context.printer.answer(&answer, |answer| {
        answer.leaf.lines().map(|line| format!("{}\n", super::text::plain(line))).collect()
    })
}

/// What was found in a whole log.
#[derive(Debug, Serialize)]
struct LogAnswer {
    origin: String,
    size: u64,
    root: String,
}

async fn verify(args: VerifyArgs, context: &Context) -> Result<(), Failure> {
    let place = LogPlace::open(args.from.as_deref(), context).await?;
    let (checkpoint, _) = place.checkpoint(&place.policy(&args.trust).await?).await?;
    let mut reader = LogReader::open(&place, &checkpoint).await?.map_err(contradiction)?;
    let mut frontier = Frontier::new();
    let mut next = 0;
    while next < reader.bundles() {
        let fetched = reader.fetch_bundles(next).await?;
        next = fetched.end;
        for bundle in fetched {
            let entries = reader.entries(bundle).map_err(contradiction)?;
            entries.iter().for_each(|entry| frontier.push(NodeHash::leaf(entry)));
        }
    }
    if frontier.root() != checkpoint.root {
        let what = "the log's leaves do not make the root that its key signed";
        return Err(
            Failure::new(Exit::Refused, what).hint("keep this checkpoint, and ask whoever runs the server")
        );
    }
    let answer =
        LogAnswer { origin: checkpoint.origin, size: checkpoint.size, root: checkpoint.root.to_string() };
    context.printer.answer(&answer, |answer| {
        Fields::default()
            .with("log", &answer.origin)
            .with("leaves", answer.size)
            .with("root", &answer.root)
            .with("verified", "every leaf")
            .text()
    })
}
