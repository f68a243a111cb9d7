//! Hashes and entries of a published log, out of its tiles, each checked against a root that somebody signed: the
//! right edge makes the root, and every full tile is one hash of the tile above it.
//!
//! Never fetches: the caller hands in a function that does. Never answers what it has not checked.

use std::collections::BTreeMap;

use super::bundle::{self, BundleError};
use super::edge::Edge;
use super::hash::NodeHash;
use super::proof::{Consistency, Inclusion, ProofError};
use super::tile::{Tile, TileKind};
use super::tile_hashes::{TileHashes, TileHashesError};
use super::tree::Node;

/// Why something could not be read from a log's tiles.
#[derive(Debug, thiserror::Error)]
pub enum ReadError<E: std::error::Error + 'static> {
    #[error("tile `{tile}` was not fetched")]
    Fetch {
        tile: Tile,
        #[source]
        source: E,
    },
    #[error("log's tiles are malformed")]
    Tile(#[from] TileHashesError),
    #[error("log's bundle `{tile}` is malformed")]
    Bundle {
        tile: Tile,
        #[source]
        source: BundleError,
    },
    #[error("the tiles on the right edge do not make the root of the tree of {size} leaves")]
    Root { size: u64 },
    #[error("tile `{tile}` is not the one that the root stands for")]
    Tampered { tile: Tile },
    #[error("a tree of {size} leaves has no node {index} at height {level}", index = .node.index, level = .node.level)]
    Outside { node: Node, size: u64 },
    #[error("log cannot prove it")]
    Proof(#[from] ProofError),
}

impl<E: std::error::Error + 'static> ReadError<E> {
    /// Whether a piece was not to be had, rather than wrong.
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Fetch { .. })
    }
}

/// A published log at one size, read tile by tile.
pub struct TileReader<F> {
    edge: Edge,
    fetch: F,
    /// Full tiles above the leaves: at most one hash for each 255 leaves of the log.
    upper: BTreeMap<Tile, TileHashes>,
    /// The full tile of leaves' hashes that was asked for last.
    lowest: Option<TileHashes>,
}

impl<F, E> TileReader<F>
where
    F: FnMut(Tile) -> Result<Vec<u8>, E>,
    E: std::error::Error + 'static,
{
    /// Begins to read the tree of `size` leaves under `root`. `fetch` gets the bytes of a tile as wide as it is
    /// asked for; where a log has only the wider one left, it cuts that.
    pub fn open(size: u64, root: NodeHash, mut fetch: F) -> Result<Self, ReadError<E>> {
        let edge = Edge::read(size, |tile| {
            let bytes = fetch(tile).map_err(|source| ReadError::Fetch { tile, source })?;
            Ok::<_, ReadError<E>>(TileHashes::decode(tile, &bytes)?)
        })?;
        if edge.root() != root {
            return Err(ReadError::Root { size });
        }
        Ok(Self { edge, fetch, upper: BTreeMap::new(), lowest: None })
    }

    /// How many leaves the tree has.
    pub fn size(&self) -> u64 {
        self.edge.size()
    }

    /// The right edge, for appending to what was read.
    pub fn edge(&self) -> &Edge {
        &self.edge
    }

    /// The hash of a complete subtree.
    pub fn node(&mut self, node: Node) -> Result<NodeHash, ReadError<E>> {
        if let Some(hash) = self.edge.node(node) {
            return Ok(hash);
        }
        let outside = || ReadError::Outside { node, size: self.edge.size() };
        let tile = Tile::holding(node, self.size()).ok_or_else(outside)?;
        self.full_tile(tile)?.node(node).ok_or(ReadError::Tampered { tile })
    }

    /// The proof that the leaf at `index` is in the tree.
    pub fn inclusion(&mut self, index: u64) -> Result<Vec<NodeHash>, ReadError<E>> {
        Inclusion::new(index, self.size())?.prove(|node| self.node(node))
    }

    /// The proof that the tree goes on from the one of the first `old_size` leaves.
    pub fn consistency(&mut self, old_size: u64) -> Result<Vec<NodeHash>, ReadError<E>> {
        Consistency::new(old_size, self.size())?.prove(|node| self.node(node))
    }

    /// The texts of the leaves from `index` · 256 on, up to 256 of them; none behind the last.
    pub fn entries(&mut self, index: u64) -> Result<Vec<Vec<u8>>, ReadError<E>> {
        let Some(tile) = Tile::in_tree(TileKind::Entries, index, self.size()) else { return Ok(Vec::new()) };
        let bytes = (self.fetch)(tile).map_err(|source| ReadError::Fetch { tile, source })?;
        let entries =
            bundle::decode(&bytes, tile.width()).map_err(|source| ReadError::Bundle { tile, source })?;
        for (leaf, text) in tile.leaves().zip(&entries) {
            if self.node(Node::leaf(leaf))? != NodeHash::leaf(text) {
                return Err(ReadError::Tampered { tile });
            }
        }
        Ok(entries.into_iter().map(<[u8]>::to_vec).collect())
    }

    /// A full tile of hashes. At most seven are above it.
    fn full_tile(&mut self, tile: Tile) -> Result<&TileHashes, ReadError<E>> {
        let is_lowest = tile.kind() == TileKind::Hashes { level: 0 };
        let known = match &self.lowest {
            Some(lowest) if is_lowest => lowest.tile() == tile,
            _ => self.upper.contains_key(&tile),
        };
        if !known {
            let bytes = (self.fetch)(tile).map_err(|source| ReadError::Fetch { tile, source })?;
            let hashes = TileHashes::decode(tile, &bytes)?;
            let (above, whole) = hashes.whole().ok_or(ReadError::Tampered { tile })?;
            if self.node(above)? != whole {
                return Err(ReadError::Tampered { tile });
            }
            if is_lowest {
                self.lowest = Some(hashes);
            } else {
                self.upper.insert(tile, hashes);
            }
        }
        let found = if is_lowest { self.lowest.as_ref() } else { self.upper.get(&tile) };
        Ok(found.expect("known, or kept just now"))
    }
}

#[cfg(test)]
mod tests;
