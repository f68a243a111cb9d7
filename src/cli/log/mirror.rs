//! `narvault log mirror`: a copy of a log in a folder, which any web server can serve, and which remembers: a server
//! whose log is not a continuation of what was copied before has rolled it back or forked it.
//!
//! Never writes what it has not checked, and the checkpoint last: a copy that was interrupted is still whole.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::super::Context;
use super::super::failure::{Exit, Failure};
use super::super::text::Fields;
use super::place::{CHECKPOINT, KEY, LogPlace, Trust, opened};
use super::reader::{LogReader, contradiction};
use crate::client::audit::{Needed, needed};
use crate::tlog::bundle;
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::edge::Edge;
use crate::tlog::hash::NodeHash;
use crate::tlog::leaf::Leaf;
use crate::tlog::tile::{TILE_WIDTH, Tile, TileKind};
use crate::tlog::tile_hashes::TileHashes;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault log mirror ./log --from https://cache.example.org")]
pub struct MirrorArgs {
    /// The folder; made if absent
    folder: PathBuf,
    /// A server, another mirror's address or folder, or a bucket [default: the server in use]
    #[arg(long, value_name = "URL|FOLDER")]
    from: Option<String>,
    #[command(flatten)]
    trust: Trust,
}

/// What a mirror has, and what is new in it.
#[derive(Debug, Serialize)]
struct MirrorAnswer {
    origin: String,
    size: u64,
    root: String,
    /// How many of the leaves were copied by this call.
    copied: u64,
}

pub async fn mirror(args: MirrorArgs, context: &Context) -> Result<(), Failure> {
    let source = LogPlace::open(args.from.as_deref(), context).await?;
    let copy = LogPlace::Folder(args.folder.clone());
    // What the mirror was begun with is believed from then on, not what the server says later.
    let known = copy.file(KEY).await?.is_some();
    let policy = if known { copy.policy(&args.trust).await? } else { source.policy(&args.trust).await? };
    let old = match copy.file(CHECKPOINT).await? {
        Some(bytes) => opened(&bytes, &policy)?.0,
        None => {
            Checkpoint { origin: String::new(), size: 0, root: NodeHash::empty(), extensions: Vec::new() }
        }
    };
    let (new, note) = source.checkpoint(&policy).await?;
    if new.size < old.size {
        let hint = "keep this mirror: it has what is missing there";
        return Err(rolled_back(new.size, old.size).hint(hint));
    }
    let mut reader = LogReader::open(&source, &new).await?.map_err(contradiction)?;
    reader.goes_on_from(&old).await?.map_err(|error| forked(&old, error))?;

    let folder = Folder(args.folder);
    folder.make()?;
    if !known && args.trust.policy.is_none() {
        folder.write(KEY, format!("{}\n", source.key(&args.trust).await?).as_bytes())?;
    }
    let mut edge = own_edge(&copy, &old).await?;
    copy_leaves(&source, &folder, &mut reader, &mut edge).await?;
    if edge.root() != new.root {
        let what = "what was copied does not make the root that the log signed";
        return Err(Failure::new(Exit::Refused, what).hint("begin a new mirror in another folder"));
    }
    folder.settle()?;
    folder.write(CHECKPOINT, note.encode().as_bytes())?;
    folder.remove_superseded(old.size, new.size)?;
    let answer = MirrorAnswer {
        origin: new.origin,
        size: new.size,
        root: new.root.to_string(),
        copied: new.size - old.size,
    };
    context.printer.answer(&answer, |answer| {
        Fields::default()
            .with("log", &answer.origin)
            .with("leaves", answer.size)
            .with("root", &answer.root)
            .with("copied", format!("{} leaves", answer.copied))
            .text()
    })
}

/// The failure that a rollback is, of whoever saw `old` leaves before.
pub fn rolled_back(new: u64, old: u64) -> Failure {
    Failure::new(Exit::Refused, format!("the log was rolled back: it has {new} leaves, and had {old} before"))
}

/// The failure that a fork is, of whoever saw `old` before.
pub fn forked(old: &Checkpoint, error: super::reader::PieceError) -> Failure {
    let what =
        format!("the log was forked: it does not go on from the {} leaves that were seen before", old.size);
    let error = anyhow::Error::new(error).context(what);
    let hint = "keep both checkpoints: together they prove it".to_owned();
    Failure::Told { exit: Exit::Refused, error, hint: Some(hint) }
}

/// The right edge of what was copied before.
async fn own_edge(copy: &LogPlace, old: &Checkpoint) -> Result<Edge, Failure> {
    let damaged = || {
        let what = "this mirror is damaged: its tiles do not make the root of its checkpoint";
        Failure::new(Exit::Failure, what).hint("begin a new mirror in another folder")
    };
    let mut tiles = Vec::new();
    for tile in Tile::edge(old.size) {
        let bytes = copy.tile(tile).await?.ok_or_else(damaged)?;
        tiles.push(TileHashes::decode(tile, &bytes).map_err(|_| damaged())?);
    }
    let mut tiles = tiles.into_iter();
    let edge = Edge::read(old.size, |_| tiles.next().ok_or(())).map_err(|()| damaged())?;
    if edge.root() == old.root { Ok(edge) } else { Err(damaged()) }
}

/// Copies what `edge` does not have yet, which it has afterwards.
async fn copy_leaves(
    source: &LogPlace,
    folder: &Folder,
    reader: &mut LogReader<'_>,
    edge: &mut Edge,
) -> Result<(), Failure> {
    let mut next = edge.size() / u64::from(TILE_WIDTH);
    while next < reader.bundles() && edge.size() < reader.size() {
        let fetched = reader.fetch_bundles(next).await?;
        next = fetched.end;
        for index in fetched {
            let entries = reader.entries(index).map_err(contradiction)?;
            copy_references(source, folder, &entries).await?;
            let tile = Tile::in_tree(TileKind::Entries, index, reader.size());
            let bytes = bundle::encode(&entries);
            if let (Some(tile), Ok(bytes)) = (tile, bytes) {
                folder.write(&tile.to_string(), &bytes)?;
            }
            let first = index * u64::from(TILE_WIDTH);
            // The bundle that the mirror ended in is written anew, its first leaves are in the edge.
            let known = edge.size();
            for (_, entry) in (first..).zip(&entries).filter(|(leaf, _)| *leaf >= known) {
                for full in edge.push(NodeHash::leaf(entry)) {
                    folder.write(&full.tile().to_string(), &full.encode())?;
                }
            }
        }
    }
    for partial in edge.partial_tiles() {
        folder.write(&partial.tile().to_string(), &partial.encode())?;
    }
    Ok(())
}

/// The lists that leaves have only the digests of.
async fn copy_references(source: &LogPlace, folder: &Folder, entries: &[Vec<u8>]) -> Result<(), Failure> {
    for leaf in entries.iter().filter_map(|entry| Leaf::parse(entry).ok()) {
        let Some(Needed::References(digest)) = needed(&leaf) else { continue };
        // One that is missing, or is another, is for an audit to find.
        if let Some(list) = source.references(&digest).await? {
            let name = format!("references/{}", data_encoding::HEXLOWER.encode(&digest));
            folder.write(&name, list.as_bytes())?;
        }
    }
    Ok(())
}

/// The folder of a mirror.
struct Folder(PathBuf);

impl Folder {
    fn make(&self) -> Result<(), Failure> {
        std::fs::create_dir_all(&self.0).map_err(|error| self.failed(&self.0, error))
    }

    /// Writes a file whole: who reads at the same time sees the old one or the new one.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.0.join(name);
        let put = || {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            let temporary = path.with_added_extension("part");
            let mut file = std::fs::File::create(&temporary)?;
            file.write_all(bytes)?;
            if name == CHECKPOINT {
                file.sync_all()?;
            }
            std::fs::rename(&temporary, &path)
        };
        put().map_err(|error| self.failed(&path, error))
    }

    /// Makes durable what was written, before the checkpoint says that it is there.
    fn settle(&self) -> Result<(), Failure> {
        let sync = || rustix::fs::syncfs(std::fs::File::open(&self.0)?).map_err(io::Error::from);
        sync().map_err(|error| self.failed(&self.0, error))
    }

    /// Partial tiles of the checkpoint before, which the new one does not need.
    fn remove_superseded(&self, old: u64, new: u64) -> Result<(), Failure> {
        for tile in Tile::partial(old).into_iter().filter(|tile| !Tile::partial(new).contains(tile)) {
            let path = self.0.join(tile.to_string());
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.failed(&path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn failed(&self, path: &Path, error: io::Error) -> Failure {
        Failure::caused(format!("cannot write the mirror at {}", path.display()), error)
    }
}
