//! Tiles: the pieces in which a log is published, and their paths (c2sp.org/tlog-tiles). A tile of hashes is 256
//! neighbours of one height, a bundle 256 entries; only the rightmost ones of a tree are narrower.
//!
//! Never spells where a log's folder is: paths begin at `tile/`.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use super::bundle;
use super::hash::HASH_LEN;
use super::tree::{Node, TREE_SIZE_MAX};

/// Levels of the tree that one tile spans.
pub const TILE_HEIGHT: u8 = 8;

/// Hashes of a full tile, and entries of a full bundle.
pub const TILE_WIDTH: u16 = 1 << TILE_HEIGHT;

/// Highest level of tiles; a tree with more would have more leaves than [`TREE_SIZE_MAX`].
pub const TILE_LEVEL_MAX: u8 = 7;

/// Longest path of a tile: a partial bundle at the end of the largest tree.
const PATH_LEN_MAX: usize = "tile/entries/x036/x028/x797/x018/x963/967.p/255".len();

/// Why a text is not the path of a tile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TilePathError {
    #[error("tile's path is not `tile/<level or entries>/<index>[.p/<width>]` as a log spells it")]
    Spelling,
    #[error("tile's path names one that no tree of at most {TREE_SIZE_MAX} leaves has")]
    Outside,
}

/// What a tile is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TileKind {
    /// Hashes of nodes 8 · `level` above the leaves.
    Hashes { level: u8 },
    /// The leaves' texts.
    Entries,
}

impl TileKind {
    fn level(self) -> u8 {
        match self {
            Self::Hashes { level } => level,
            Self::Entries => 0,
        }
    }
}

/// The name of one tile. There is none that no tree could have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tile {
    kind: TileKind,
    index: u64,
    width: u16,
}

impl Tile {
    /// The tile at `index` of its kind, counted from 0, with `width` hashes or entries, 1 to 256.
    pub fn new(kind: TileKind, index: u64, width: u16) -> Option<Self> {
        if kind.level() > TILE_LEVEL_MAX || index > TREE_SIZE_MAX || !(1..=TILE_WIDTH).contains(&width) {
            return None;
        }
        // Below 2^72 hashes of at most 2^56 leaves each.
        let hashes = u128::from(index) * u128::from(TILE_WIDTH) + u128::from(width);
        let end = hashes << (TILE_HEIGHT * kind.level());
        (end <= u128::from(TREE_SIZE_MAX)).then_some(Self { kind, index, width })
    }

    /// The tile at `index` of its kind as a tree of `size` leaves has it; `None` where it has none there.
    pub fn in_tree(kind: TileKind, index: u64, size: u64) -> Option<Self> {
        let hashes = hashes_at(kind.level(), size);
        let width = hashes.checked_sub(index.checked_mul(u64::from(TILE_WIDTH))?)?.min(TILE_WIDTH.into());
        Self::new(kind, index, width as u16)
    }

    /// The tile of hashes out of which a tree of `size` leaves has `node`; `None` where it is not complete.
    pub fn holding(node: Node, size: u64) -> Option<Self> {
        let level = node.level / TILE_HEIGHT;
        let index = node.index >> (TILE_HEIGHT - node.level % TILE_HEIGHT);
        node.is_in(size).then(|| Self::in_tree(TileKind::Hashes { level }, index, size))?
    }

    /// Every tile of a tree of `size` leaves that one of `old_size` does not have in the same width, bundles
    /// too: what is to be published when it grows.
    pub fn added(old_size: u64, size: u64) -> Vec<Self> {
        let levels = (0..=TILE_LEVEL_MAX).map(|level| TileKind::Hashes { level });
        levels.chain([TileKind::Entries]).flat_map(|kind| Self::added_of(kind, old_size, size)).collect()
    }

    fn added_of(kind: TileKind, old_size: u64, size: u64) -> impl Iterator<Item = Self> {
        let (old, new) = (hashes_at(kind.level(), old_size), hashes_at(kind.level(), size));
        let first = old / u64::from(TILE_WIDTH);
        let end = if old < new { new.div_ceil(TILE_WIDTH.into()) } else { first };
        (first..end).filter_map(move |index| Self::in_tree(kind, index, size))
    }

    /// The partial tiles of hashes on the right edge of a tree of `size` leaves, from the leaves upwards. The
    /// root is made of them alone.
    pub fn edge(size: u64) -> Vec<Self> {
        let partial = |level| {
            let kind = TileKind::Hashes { level };
            let tile = Self::in_tree(kind, hashes_at(level, size) / u64::from(TILE_WIDTH), size)?;
            (!tile.is_full()).then_some(tile)
        };
        (0..=TILE_LEVEL_MAX).filter_map(partial).collect()
    }

    /// The tiles that a tree of `size` leaves has only in part, the bundle too: what a larger tree supersedes.
    pub fn partial(size: u64) -> Vec<Self> {
        let entries = Self::in_tree(TileKind::Entries, size / u64::from(TILE_WIDTH), size);
        Self::edge(size).into_iter().chain(entries).collect()
    }

    /// Every tile that is needed to know `nodes` of a tree of `size` leaves, each checked against the root: the
    /// edge, the tiles that hold them, and those above these. Nodes that the tree does not have are passed over.
    pub fn needed(nodes: &[Node], size: u64) -> BTreeSet<Self> {
        let mut tiles: BTreeSet<Self> = Self::edge(size).into_iter().collect();
        for &node in nodes {
            let mut next = Self::holding(node, size);
            while let Some(tile) = next {
                tiles.insert(tile);
                next = tile.above().and_then(|node| Self::holding(node, size));
            }
        }
        tiles
    }

    /// The tile as wide as it gets.
    pub fn full(&self) -> Self {
        Self { width: TILE_WIDTH, ..*self }
    }

    /// Hashes or entries.
    pub fn kind(&self) -> TileKind {
        self.kind
    }

    /// Which tile of its kind, counted from 0.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// How many hashes or entries, 1 to 256.
    pub fn width(&self) -> u16 {
        self.width
    }

    /// Whether it is as wide as a tile gets, and stays as it is for ever.
    pub fn is_full(&self) -> bool {
        self.width == TILE_WIDTH
    }

    /// The leaves below it.
    pub fn leaves(&self) -> Range<u64> {
        let first = self.index * u64::from(TILE_WIDTH);
        let shift = TILE_HEIGHT * self.kind.level();
        first << shift..(first + u64::from(self.width)) << shift
    }

    /// The node whose hash a full tile of hashes has as a whole: one hash of the tile above.
    pub fn above(&self) -> Option<Node> {
        let TileKind::Hashes { level } = self.kind else { return None };
        self.is_full().then(|| Node { level: TILE_HEIGHT * (level + 1), index: self.index })
    }

    /// The hashes of this tile that are below `node`, if it is the one that holds it.
    pub(super) fn hashes_below(&self, node: Node) -> Option<Range<usize>> {
        let TileKind::Hashes { level } = self.kind else { return None };
        let height = node.level.checked_sub(TILE_HEIGHT * level).filter(|height| *height < TILE_HEIGHT)?;
        let first = node.index.checked_mul(1 << height)?.checked_sub(self.index * u64::from(TILE_WIDTH))?;
        let end = first.checked_add(1 << height)?;
        (end <= u64::from(self.width)).then_some(first as usize..end as usize)
    }
}

/// How many complete nodes a tree of `size` leaves has at the height of tiles of `level`.
fn hashes_at(level: u8, size: u64) -> u64 {
    size >> (TILE_HEIGHT * level)
}

/// The contents of a partial tile, out of those of the full one: a log need not keep what it has outgrown. `None` where
/// `full` is not a full tile's.
pub fn narrowed(tile: Tile, full: &[u8]) -> Option<Vec<u8>> {
    let width = usize::from(tile.width);
    match tile.kind {
        TileKind::Hashes { .. } if full.len() == usize::from(TILE_WIDTH) * HASH_LEN => {
            full.get(..width * HASH_LEN).map(<[u8]>::to_vec)
        }
        TileKind::Hashes { .. } => None,
        TileKind::Entries => {
            let entries = bundle::decode(full, TILE_WIDTH).ok()?;
            bundle::encode(entries.get(..width)?).ok()
        }
    }
}

impl fmt::Display for Tile {
    /// The path. The index is cut into threes, so that no folder has more than 3 000 entries.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            TileKind::Hashes { level } => write!(f, "tile/{level}")?,
            TileKind::Entries => f.write_str("tile/entries")?,
        }
        let mut threes = vec![self.index % 1000];
        let mut rest = self.index / 1000;
        while rest > 0 {
            threes.push(rest % 1000);
            rest /= 1000;
        }
        for (place, three) in threes.iter().enumerate().rev() {
            write!(f, "/{}{three:03}", if place == 0 { "" } else { "x" })?;
        }
        if self.is_full() { Ok(()) } else { write!(f, ".p/{}", self.width) }
    }
}

impl FromStr for Tile {
    type Err = TilePathError;

    fn from_str(path: &str) -> Result<Self, TilePathError> {
        if path.len() > PATH_LEN_MAX {
            return Err(TilePathError::Spelling);
        }
        let (kind, rest) = path
            .strip_prefix("tile/")
            .and_then(|rest| rest.split_once('/'))
            .ok_or(TilePathError::Spelling)?;
        let kind = match kind {
            "entries" => TileKind::Entries,
            level => TileKind::Hashes { level: level.parse().map_err(|_| TilePathError::Spelling)? },
        };
        let (index, width) = match rest.split_once(".p/") {
            Some((index, width)) => (index, width.parse().map_err(|_| TilePathError::Spelling)?),
            None => (rest, TILE_WIDTH),
        };
        let mut number = 0u64;
        for three in index.split('/') {
            let three = three.trim_start_matches('x').parse::<u64>().map_err(|_| TilePathError::Spelling)?;
            number = number
                .checked_mul(1000)
                .and_then(|number| number.checked_add(three))
                .ok_or(TilePathError::Outside)?;
        }
        let tile = Self::new(kind, number, width).ok_or(TilePathError::Outside)?;
        if tile.to_string() == path { Ok(tile) } else { Err(TilePathError::Spelling) }
    }
}

#[cfg(test)]
mod tests;
