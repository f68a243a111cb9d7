//! The growing side of a published log: the partial tiles on its right edge. Appends leaves, gives the tiles that
//! become full by it, and starts again from the tiles that were published last.
//!
//! Never has more than 255 hashes of a level; never knows the entries.

use super::hash::NodeHash;
use super::tile::{TILE_HEIGHT, TILE_WIDTH, Tile, TileKind};
use super::tile_hashes::TileHashes;
use super::tree::{self, Node};

/// The partial tiles of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Edge {
    size: u64,
    /// Hashes of the partial tile of each level, from the leaves upwards; may be none.
    levels: Vec<Vec<NodeHash>>,
}

impl Edge {
    /// The edge of a tree without leaves.
    pub fn new() -> Self {
        Self::default()
    }

    /// The edge of a tree of `size` leaves out of the tiles that [`Tile::edge`] names, which `read` fetches. That
    /// it is the right one shows when the root is compared.
    pub fn read<E>(size: u64, mut read: impl FnMut(Tile) -> Result<TileHashes, E>) -> Result<Self, E> {
        let mut levels = Vec::new();
        for tile in Tile::edge(size) {
            let TileKind::Hashes { level } = tile.kind() else { continue };
            levels.resize(usize::from(level), Vec::new());
            levels.push(read(tile)?.hashes().to_vec());
        }
        Ok(Self { size, levels })
    }

    /// Appends a leaf; gives the tiles of hashes that have become full, from the leaves upwards.
    pub fn push(&mut self, leaf: NodeHash) -> Vec<TileHashes> {
        let mut full = Vec::new();
        let mut hash = leaf;
        self.size += 1;
        for level in 0.. {
            if self.levels.len() == level {
                self.levels.push(Vec::new());
            }
            self.levels[level].push(hash);
            if self.levels[level].len() < usize::from(TILE_WIDTH) {
                break;
            }
            let hashes = std::mem::take(&mut self.levels[level]);
            hash = NodeHash::over(&hashes);
            full.extend(self.tile(level, hashes.len()).map(|tile| TileHashes::of(tile, hashes)));
        }
        full
    }

    /// The partial tiles, from the leaves upwards: what is to be published with a checkpoint of this size,
    /// beside all full ones.
    pub fn partial_tiles(&self) -> Vec<TileHashes> {
        let levels = self.levels.iter().enumerate();
        let partial = levels.filter_map(|(level, hashes)| {
            Some(TileHashes::of(self.tile(level, hashes.len())?, hashes.clone()))
        });
        partial.collect()
    }

    /// The rightmost tile of `level`, `width` wide, which it has just now.
    fn tile(&self, level: usize, width: usize) -> Option<Tile> {
        let level = u8::try_from(level).ok()?;
        let end = self.size.checked_shr(u32::from(TILE_HEIGHT) * u32::from(level))?;
        let index = end.checked_sub(width as u64)? / u64::from(TILE_WIDTH);
        Tile::new(TileKind::Hashes { level }, index, u16::try_from(width).ok()?)
    }

    /// How many leaves the tree has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The root of the tree.
    pub fn root(&self) -> NodeHash {
        let hashes: Vec<_> =
            tree::subtrees(0..self.size).into_iter().filter_map(|node| self.node(node)).collect();
        tree::fold(&hashes)
    }

    /// The hash of a node that is in a partial tile.
    pub fn node(&self, node: Node) -> Option<NodeHash> {
        let level = usize::from(node.level / TILE_HEIGHT);
        let hashes = self.levels.get(level)?;
        let below = self.tile(level, hashes.len())?.hashes_below(node)?;
        Some(NodeHash::over(&hashes[below]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tlog::frontier::Frontier;

    fn leaf(index: u64) -> NodeHash {
        NodeHash::leaf(&index.to_be_bytes())
    }

    #[test]
    fn it_has_the_frontiers_root_and_the_tiles_of_its_size_at_every_size() {
        let (mut edge, mut frontier) = (Edge::new(), Frontier::new());
        assert_eq!(edge.root(), NodeHash::empty());
        assert_eq!(edge.partial_tiles(), []);

        for size in 1..=65_800 {
            let full = edge.push(leaf(size - 1));
            frontier.push(leaf(size - 1));
            if size > 600 && size < 65_500 {
                continue;
            }
            let partial = edge.partial_tiles();
            let mut made: Vec<_> = full.iter().chain(&partial).map(TileHashes::tile).collect();
            let mut added = Tile::added(size - 1, size);
            added.retain(|tile| tile.kind() != TileKind::Entries);
            // A partial tile of a higher level was there before, unless the level below has become full.
            made.retain(|tile| added.contains(tile));
            made.sort();
            added.sort();
            assert_eq!(made, added, "{size}");
            assert_eq!(edge.root(), frontier.root(), "{size}");
            assert_eq!(partial.iter().map(TileHashes::tile).collect::<Vec<_>>(), Tile::edge(size), "{size}");
        }
    }

    #[test]
    fn it_goes_on_from_what_was_published() {
        for size in [0, 1, 255, 256, 257, 511, 512, 65_536] {
            let mut edge = Edge::new();
            (0..size).for_each(|index| drop(edge.push(leaf(index))));
            let published = edge.partial_tiles();

            let read = Edge::read(size, |tile| {
                published.iter().find(|published| published.tile() == tile).cloned().ok_or(tile)
            });
            let mut read = read.unwrap();

            assert_eq!(read.root(), edge.root(), "{size}");
            assert_eq!(read.push(leaf(size)), edge.push(leaf(size)), "{size}");
            assert_eq!(read.partial_tiles(), edge.partial_tiles(), "{size}");
        }
    }
}
