//! `narvault log`: the signature log of a server, each leaf checked against the checkpoint that its key signed.
//!
//! Never believes a server about its log, but for the key where none is given.

mod alarm;
mod audit;
mod follow;
mod mirror;
mod objects;
pub(super) mod place;
pub(super) mod prove;
pub(super) mod reader;
mod seen;

use clap::{Args, Subcommand};
use serde::Serialize;

use self::place::{LogPlace, Trust};
use self::prove::{LeafArg, Wanted};
use self::reader::{LogReader, contradiction};
use super::Context;
use super::args::PathArg;
use super::failure::{Exit, Failure};
use super::text::Fields;
use crate::api::PathProofQuery;
use crate::nix::signature::Signature;
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::frontier::Frontier;
use crate::tlog::hash::NodeHash;
use crate::tlog::tile::TILE_WIDTH;

#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Show leaves: who caused a signature, with which token, when, and what became of a path
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
    #[arg(required_unless_present = "signature")]
    cache: Option<String>,
    /// `/nix/store/…`, its base name, or its 32-character hash
    #[arg(required_unless_present = "signature")]
    path: Option<PathArg>,
    /// The signature of the key of this name [default: the one that was made last]
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    /// This signature, as it stands after `Sig: `, instead of a path's newest
    #[arg(long, value_name = "NAME:BASE64", conflicts_with_all = ["cache", "path", "key"])]
    signature: Option<Signature>,
    /// Make the proof from the log's files, also of a path that is withdrawn: a server, a mirror's address or folder, or a
    /// bucket [default: the server in use makes it]
    #[arg(long, value_name = "URL|FOLDER")]
    from: Option<String>,
    #[command(flatten)]
    trust: Trust,
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

async fn proof(args: ProofArgs, context: &Context) -> Result<(), Failure> {
    let by_server = args.from.is_none() && !args.trust.is_given();
    let proof = match (args.cache, args.path) {
        (Some(cache), Some(path)) if by_server => {
            let query = PathProofQuery { key: args.key };
            let proof = context.client()?.path_proof(&cache, path.0.as_str(), &query).await?;
            String::from_utf8_lossy(&proof).into_owned()
        }
        (cache, path) => {
            let wanted = Wanted { cache, path, key: args.key, signature: args.signature };
            let place = LogPlace::open(args.from.as_deref(), context).await?;
            prove::prove(&place, &args.trust, &wanted).await?.encode()
        }
    };
    context.printer.data(&proof)
}

async fn show(args: ShowArgs, context: &Context) -> Result<(), Failure> {
    let place = LogPlace::open(args.from.as_deref(), context).await?;
    let (checkpoint, _) = place.checkpoint(&place.policy(&args.trust).await?).await?;
    let mut reader = LogReader::open(&place, &checkpoint).await?.map_err(contradiction)?;
    let wanted = match args.leaf {
        LeafArg::Index(index) => return show_one(index, reader, checkpoint, context).await,
        LeafArg::Path(path) => Wanted { path: Some(path), ..Wanted::default() },
        LeafArg::Signature(signature) => Wanted { signature: Some(signature), ..Wanted::default() },
    };
    let found = prove::leaves(&mut reader, &wanted).await?;
    if found.is_empty() {
        return Err(prove::nothing(checkpoint.size));
    }
    let answers: Vec<LeafAnswer> = found
        .into_iter()
        .map(|(index, leaf)| LeafAnswer {
            index,
            leaf: String::from_utf8_lossy(&leaf).into_owned(),
            origin: checkpoint.origin.clone(),
            size: checkpoint.size,
        })
        .collect();
    context.printer.answer(&answers, |answers| {
        let text = |answer: &LeafAnswer| format!("leaf {}\n{}", answer.index, leaf_text(answer));
        answers.iter().map(text).collect::<Vec<_>>().join("\n")
    })
}

async fn show_one(
    index: u64,
    mut reader: LogReader<'_>,
    checkpoint: Checkpoint,
    context: &Context,
) -> Result<(), Failure> {
    if index >= checkpoint.size {
        let what = format!("the log has no leaf {index} yet; it has {}", checkpoint.size);
        return Err(Failure::new(Exit::Failure, what).hint("leaves are counted from 0"));
    }
    let bundle = index / u64::from(TILE_WIDTH);
    reader.fetch_bundles(bundle).await?;
    let entries = reader.entries(bundle).map_err(contradiction)?;
    let leaf = entries.into_iter().nth((index % u64::from(TILE_WIDTH)) as usize).unwrap_or_default();
    let answer = LeafAnswer {
        index,
        leaf: String::from_utf8_lossy(&leaf).into_owned(),
        origin: checkpoint.origin,
        size: checkpoint.size,
    };
    context.printer.answer(&answer, leaf_text)
}

/// The lines of a leaf, as they may be shown on a terminal.
fn leaf_text(answer: &LeafAnswer) -> String {
    answer.leaf.lines().map(|line| format!("{}\n", super::text::plain(line))).collect()
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
