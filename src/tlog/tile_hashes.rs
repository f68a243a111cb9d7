//! What is inside a tile of hashes: 32 bytes after 32 bytes (c2sp.org/tlog-tiles).
//!
//! Never says that the hashes are those of a tree: see `tile_reader`.

use super::hash::{HASH_LEN, NodeHash};
use super::tile::{Tile, TileKind};
use super::tree::Node;

/// Why bytes are not the contents of a tile of hashes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TileHashesError {
    #[error("`{tile}` is not a tile of hashes")]
    Kind { tile: Tile },
    #[error("tile `{tile}` is {found} bytes, expected {expected}")]
    Length { tile: Tile, found: usize, expected: usize },
}

/// A tile of hashes with its contents, as many as its width says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TileHashes {
    tile: Tile,
    hashes: Vec<NodeHash>,
}

impl TileHashes {
    /// Reads the contents of `tile`.
    pub fn decode(tile: Tile, bytes: &[u8]) -> Result<Self, TileHashesError> {
        if !matches!(tile.kind(), TileKind::Hashes { .. }) {
            return Err(TileHashesError::Kind { tile });
        }
        let expected = usize::from(tile.width()) * HASH_LEN;
        match NodeHash::split(bytes) {
            Some(hashes) if bytes.len() == expected => Ok(Self { tile, hashes }),
            _ => Err(TileHashesError::Length { tile, found: bytes.len(), expected }),
        }
    }

    /// The contents of `tile`, out of as many hashes as it is wide.
    pub(super) fn of(tile: Tile, hashes: Vec<NodeHash>) -> Self {
        debug_assert_eq!(usize::from(tile.width()), hashes.len());
        Self { tile, hashes }
    }

    /// The bytes that are published.
    pub fn encode(&self) -> Vec<u8> {
        NodeHash::join(&self.hashes)
    }

    /// Which tile.
    pub fn tile(&self) -> Tile {
        self.tile
    }

    /// The hashes, from left to right.
    pub fn hashes(&self) -> &[NodeHash] {
        &self.hashes
    }

    /// The hash of `node`, if this is the tile that holds it.
    pub fn node(&self, node: Node) -> Option<NodeHash> {
        self.tile.hashes_below(node).map(|below| NodeHash::over(&self.hashes[below]))
    }

    /// The hash of a full tile as a whole, which is one of the tile above.
    pub(super) fn whole(&self) -> Option<(Node, NodeHash)> {
        self.tile.above().map(|node| (node, NodeHash::over(&self.hashes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tile(path: &str) -> Tile {
        path.parse().unwrap()
    }

    #[test]
    fn contents_of_another_width_are_refused() {
        let tile = tile("tile/0/000.p/2");

        for (found, expected) in [(0, 64), (32, 64), (63, 64), (65, 64), (96, 64)] {
            let error = TileHashesError::Length { tile, found, expected };
            assert_eq!(TileHashes::decode(tile, &vec![0; found]), Err(error));
        }
        assert_eq!(TileHashes::decode(tile, &[0; 64]).unwrap().encode(), [0; 64]);
    }

    #[test]
    fn a_bundle_has_no_hashes() {
        let tile = tile("tile/entries/000.p/1");

        assert_eq!(TileHashes::decode(tile, &[0; 32]), Err(TileHashesError::Kind { tile }));
    }

    #[test]
    fn only_the_nodes_of_its_own_are_answered() {
        let hashes: Vec<_> = (0..3u8).map(|leaf| NodeHash::leaf(&[leaf])).collect();
        let tile = TileHashes::decode(tile("tile/1/000.p/3"), &NodeHash::join(&hashes)).unwrap();

        assert_eq!(tile.node(Node { level: 8, index: 2 }), Some(hashes[2]));
        assert_eq!(tile.node(Node { level: 9, index: 0 }), Some(NodeHash::pair(hashes[0], hashes[1])));
        for (level, index) in [(7, 0), (8, 3), (9, 1), (10, 0), (16, 0), (0, 0), (8, u64::MAX), (9, u64::MAX)]
        {
            assert_eq!(tile.node(Node { level, index }), None, "{level} {index}");
        }
    }
}
