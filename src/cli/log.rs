//! `narvault log`: the signature log of a server, each leaf checked against the checkpoint that its key signed.
//!
//! Never believes a server about its log, but for the key where none is given.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::Context;
use super::args::PathArg;
use super::failure::{Exit, Failure};
use super::text::Fields;
use crate::api::PathProofQuery;
use crate::client::{Client, Error as ClientError};
use crate::tlog::bundle;
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::frontier::Frontier;
use crate::tlog::hash::NodeHash;
use crate::tlog::tile::{TILE_WIDTH, Tile, TileKind};
use crate::tlog::tile_reader::TileReader;
use crate::tlog::tree::Node;
use crate::tlog::verifier_key::VerifierKey;

#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Show one leaf: who caused a signature, with which token, when
    Show(ShowArgs),
    /// Print the proof that a path's signature is in the log, for `narvault verify`
    Proof(ProofArgs),
    /// Read the whole log and recompute its root
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
pub struct LogKey {
    /// The log's public key, `name+hash+base64`; without it the server is believed about it
    #[arg(long, value_name = "KEY")]
    log_key: Option<VerifierKey>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault log show 17")]
pub struct ShowArgs {
    /// The leaf's place in the log, from 0
    index: u64,
    #[command(flatten)]
    key: LogKey,
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
    #[command(flatten)]
    key: LogKey,
}

pub async fn run(command: LogCommand, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    match command {
        LogCommand::Show(args) => show(args, context, &client).await,
        LogCommand::Proof(args) => {
            let query = PathProofQuery { key: args.key };
            let proof = client.path_proof(&args.cache, args.path.0.as_str(), &query).await?;
            context.printer.data(&String::from_utf8_lossy(&proof))
        }
        LogCommand::Verify(args) => verify(args, context, &client).await,
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

async fn show(args: ShowArgs, context: &Context, client: &Client) -> Result<(), Failure> {
    let checkpoint = checkpoint(client, args.key).await?;
    if args.index >= checkpoint.size {
        let what = format!("the log has no leaf {} yet; it has {}", args.index, checkpoint.size);
        return Err(Failure::new(Exit::Failure, what).hint("leaves are counted from 0"));
    }
    let mut tiles = Tile::needed(&[Node::leaf(args.index)], checkpoint.size);
    let bundle = args.index / u64::from(TILE_WIDTH);
    tiles.extend(Tile::in_tree(TileKind::Entries, bundle, checkpoint.size));
    let mut fetched = BTreeMap::new();
    for tile in tiles {
        fetched.insert(tile, client.log_tile(tile).await?);
    }
    let entries = TileReader::open(checkpoint.size, checkpoint.root, |tile| {
        fetched.get(&tile).cloned().ok_or(std::io::Error::from(std::io::ErrorKind::NotFound))
    })
    .and_then(|mut reader| reader.entries(bundle))
    .map_err(|error| Failure::caused("the log contradicts its checkpoint".into(), error))?;
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

async fn verify(args: VerifyArgs, context: &Context, client: &Client) -> Result<(), Failure> {
    let checkpoint = checkpoint(client, args.key).await?;
    let mut frontier = Frontier::new();
    for index in 0..checkpoint.size.div_ceil(u64::from(TILE_WIDTH)) {
        let Some(tile) = Tile::in_tree(TileKind::Entries, index, checkpoint.size) else { break };
        let bytes = client.log_tile(tile).await?;
        let entries = bundle::decode(&bytes, tile.width())
            .map_err(|error| Failure::caused(format!("the log's `{tile}` is malformed"), error))?;
        entries.into_iter().for_each(|entry| frontier.push(NodeHash::leaf(entry)));
    }
    if frontier.root() != checkpoint.root {
        let what = "the log's leaves do not make the root that its key signed";
        return Err(
            Failure::new(Exit::Failure, what).hint("keep this checkpoint, and ask whoever runs the server")
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

/// The newest checkpoint, signed by the log.
async fn checkpoint(client: &Client, key: LogKey) -> Result<Checkpoint, Failure> {
    let key = match key.log_key {
        Some(key) => key,
        None => server_key(client).await?,
    };
    let bytes = client.log_checkpoint().await?;
    let opened = Checkpoint::open(&bytes, &key);
    opened
        .map(|(checkpoint, _)| checkpoint)
        .map_err(|error| Failure::caused("the server's checkpoint is not believed".into(), error))
}

async fn server_key(client: &Client) -> Result<VerifierKey, Failure> {
    let text = client.log_key().await.map_err(|error: ClientError| Failure::from(error))?;
    let text = String::from_utf8_lossy(&text);
    let key = text.trim_end_matches('\n').parse();
    key.map_err(|error| Failure::caused("the server's log key is malformed".into(), error))
}
