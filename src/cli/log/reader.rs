//! A published log, read piece by piece, each checked against the root that its key signed, and many fetched at once.
//!
//! Never holds more than the pieces of one step and the upper hashes of the tree.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::super::failure::{Exit, Failure};
use super::place::LogPlace;
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::hash::NodeHash;
use crate::tlog::proof::{Consistency, Inclusion};
use crate::tlog::tile::{TILE_WIDTH, Tile, TileKind};
use crate::tlog::tile_reader::{ReadError, TileReader};
use crate::tlog::tree::Node;

/// Bundles, and as many tiles of hashes, that are fetched at once.
pub const BUNDLES_AT_ONCE: u64 = 16;

/// A piece that is not where it belongs.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("it is not there")]
pub struct Absent;

type Fetched = Arc<Mutex<BTreeMap<Tile, Vec<u8>>>>;
type Fetch = Box<dyn FnMut(Tile) -> Result<Vec<u8>, Absent> + Send>;

/// Why a piece cannot be read although its place answers.
pub type PieceError = ReadError<Absent>;

/// A log at the size of one checkpoint.
pub struct LogReader<'a> {
    place: &'a LogPlace,
    reader: TileReader<Fetch>,
    root: NodeHash,
    fetched: Fetched,
}

impl<'a> LogReader<'a> {
    /// Begins to read the log of `checkpoint`. The inner error: its right edge does not make the root.
    pub async fn open(
        place: &'a LogPlace,
        checkpoint: &Checkpoint,
    ) -> Result<Result<Self, PieceError>, Failure> {
        let fetched = Fetched::default();
        fetch(place, &fetched, Tile::edge(checkpoint.size)).await?;
        let source = fetched.clone();
        let take: Fetch = Box::new(move |tile| lock(&source).get(&tile).cloned().ok_or(Absent));
        let opened = TileReader::open(checkpoint.size, checkpoint.root, take);
        Ok(opened.map(|reader| {
            lock(&fetched).clear();
            Self { place, reader, root: checkpoint.root, fetched }
        }))
    }

    /// How many leaves the log has.
    pub fn size(&self) -> u64 {
        self.reader.size()
    }

    /// How many bundles they are in.
    pub fn bundles(&self) -> u64 {
        self.size().div_ceil(TILE_WIDTH.into())
    }

    /// Fetches the bundles from `first` on, as many as are fetched at once, and what proves them.
    pub async fn fetch_bundles(&mut self, first: u64) -> Result<std::ops::Range<u64>, Failure> {
        let bundles = first..self.bundles().min(first.saturating_add(BUNDLES_AT_ONCE));
        let size = self.size();
        let nodes: Vec<Node> =
            bundles.clone().map(|index| Node::leaf(index * u64::from(TILE_WIDTH))).collect();
        let mut tiles = Tile::needed(&nodes, size);
        tiles.extend(bundles.clone().filter_map(|index| Tile::in_tree(TileKind::Entries, index, size)));
        self.fetch(tiles).await?;
        Ok(bundles)
    }

    /// The leaves of a bundle that was fetched, in order.
    pub fn entries(&mut self, bundle: u64) -> Result<Vec<Vec<u8>>, PieceError> {
        self.reader.entries(bundle)
    }

    /// The hashes from a leaf up to the root. The inner error: they are not there, or do not make it.
    pub async fn inclusion(&mut self, index: u64) -> Result<Result<Vec<NodeHash>, PieceError>, Failure> {
        let way = match Inclusion::new(index, self.size()) {
            Ok(way) => way,
            Err(error) => return Ok(Err(error.into())),
        };
        self.fetch(Tile::needed(&way.nodes(), self.size())).await?;
        Ok(self.reader.inclusion(index))
    }

    /// Whether the log goes on from the one under `old`. The inner error: it does not.
    pub async fn goes_on_from(&mut self, old: &Checkpoint) -> Result<Result<(), PieceError>, Failure> {
        let way = match Consistency::new(old.size, self.size()) {
            Ok(way) => way,
            Err(error) => return Ok(Err(error.into())),
        };
        self.fetch(Tile::needed(&way.nodes(), self.size())).await?;
        let proof = self.reader.consistency(old.size);
        Ok(proof.and_then(|proof| Ok(way.verify(old.root, self.root, &proof)?)))
    }

    /// Fetches what is not at hand; upper tiles stay, which are few.
    async fn fetch(&mut self, tiles: BTreeSet<Tile>) -> Result<(), Failure> {
        let is_edge = |tile: &Tile| !tile.is_full() && tile.kind() != TileKind::Entries;
        let new: Vec<Tile> = {
            let mut fetched = lock(&self.fetched);
            fetched.retain(|tile, _| matches!(tile.kind(), TileKind::Hashes { level } if level > 0));
            tiles.into_iter().filter(|tile| !is_edge(tile) && !fetched.contains_key(tile)).collect()
        };
        fetch(self.place, &self.fetched, new).await
    }
}

/// The failure that a contradiction of a log is: what it signed is not what it shows.
pub fn contradiction(error: PieceError) -> Failure {
    let error = anyhow::Error::new(error).context("the log contradicts its checkpoint");
    let hint = "keep the checkpoint, and ask whoever runs the server".to_owned();
    Failure::Told { exit: Exit::Refused, error, hint: Some(hint) }
}

async fn fetch(
    place: &LogPlace,
    fetched: &Fetched,
    tiles: impl IntoIterator<Item = Tile>,
) -> Result<(), Failure> {
    let reads = tiles.into_iter().map(async |tile| Ok::<_, Failure>((tile, place.tile(tile).await?)));
    let read: Vec<_> = stream::iter(reads).buffer_unordered(READS_AT_ONCE).try_collect().await?;
    let found = read.into_iter().filter_map(|(tile, bytes)| Some((tile, bytes?)));
    lock(fetched).extend(found);
    Ok(())
}

fn lock(fetched: &Fetched) -> std::sync::MutexGuard<'_, BTreeMap<Tile, Vec<u8>>> {
    fetched.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Requests under way at once.
const READS_AT_ONCE: usize = 16;
