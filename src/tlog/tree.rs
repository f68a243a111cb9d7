//! The shape of the tree: which nodes there are, and which of them a row of leaves is made of (RFC 6962,
//! section 2.1). The caller hands in the nodes' hashes.
//!
//! Never keeps a hash: what holds them is a frontier, tiles, or whatever the caller has.

use std::ops::Range;

use super::hash::NodeHash;

/// Largest tree, in leaves: what a BIGINT column, and the tools written in Go, can count.
pub const TREE_SIZE_MAX: u64 = i64::MAX as u64;

/// A complete subtree: 2^`level` leaves, of which the first is the one at `index` · 2^`level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    /// Height above the leaves; below 64.
    pub level: u8,
    /// Which node of this level, counted from the left, from 0.
    pub index: u64,
}

impl Node {
    /// The leaf at `index`.
    pub fn leaf(index: u64) -> Self {
        Self { level: 0, index }
    }

    /// Whether a tree of `size` leaves has this node complete, which it then has for ever.
    pub fn is_in(&self, size: u64) -> bool {
        u32::from(self.level) < u64::BITS && self.index < size >> self.level
    }
}

/// Where RFC 6962 parts a row of `leaves` in two: the largest power of two below them. At least 2.
pub(super) fn split(leaves: u64) -> u64 {
    1 << (leaves - 1).ilog2()
}

/// The complete subtrees that `leaves` are made of, from left to right, largest first. Only for rows that
/// the parting of a tree yields: the first leaf is a multiple of the largest subtree.
pub(super) fn subtrees(leaves: Range<u64>) -> Vec<Node> {
    let mut first = leaves.start;
    let mut nodes = Vec::new();
    while first < leaves.end {
        let level = (leaves.end - first).ilog2() as u8;
        nodes.push(Node { level, index: first >> level });
        first += 1 << level;
    }
    nodes
}

/// One hash over subtrees from left to right, largest first, as [`subtrees`] lists them.
pub(super) fn fold(hashes: &[NodeHash]) -> NodeHash {
    let folded = hashes.iter().rev().copied().reduce(|right, left| NodeHash::pair(left, right));
    folded.unwrap_or_else(NodeHash::empty)
}

/// The hash over `leaves`, such a row as [`subtrees`] takes, out of the hashes that `node` answers.
pub(super) fn hash_of<E>(
    leaves: Range<u64>,
    node: &mut impl FnMut(Node) -> Result<NodeHash, E>,
) -> Result<NodeHash, E> {
    let hashes = subtrees(leaves).into_iter().map(node).collect::<Result<Vec<_>, E>>()?;
    Ok(fold(&hashes))
}

/// The root of the tree of the first `size` leaves, out of the hashes that `node` answers.
pub fn root<E>(size: u64, mut node: impl FnMut(Node) -> Result<NodeHash, E>) -> Result<NodeHash, E> {
    hash_of(0..size, &mut node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_parted_at_the_largest_power_of_two_below_it() {
        for (leaves, left) in [(2, 1), (3, 2), (4, 2), (5, 4), (8, 4), (9, 8), (u64::MAX, 1 << 63)] {
            assert_eq!(split(leaves), left, "{leaves}");
        }
    }

    #[test]
    fn a_row_is_made_of_its_complete_subtrees() {
        let nodes = |row| subtrees(row).iter().map(|node| (node.level, node.index)).collect::<Vec<_>>();

        assert_eq!(nodes(0..0), []);
        assert_eq!(nodes(0..1), [(0, 0)]);
        assert_eq!(nodes(0..7), [(2, 0), (1, 2), (0, 6)]);
        assert_eq!(nodes(8..12), [(2, 2)]);
        assert_eq!(nodes(0..TREE_SIZE_MAX).len(), 63);
        assert_eq!(nodes(0..u64::MAX).len(), 64);
    }

    #[test]
    fn a_node_is_in_a_tree_once_it_is_complete() {
        let node = Node { level: 2, index: 1 };

        assert!(!node.is_in(7));
        assert!(node.is_in(8));
        assert!(!Node::leaf(0).is_in(0));
        assert!(!Node { level: 64, index: 0 }.is_in(u64::MAX));
    }

    #[test]
    fn an_error_while_reading_a_node_is_handed_on() {
        assert_eq!(
            root(3, |node| if node.level == 0 { Err("away") } else { Ok(NodeHash::empty()) }),
            Err("away")
        );
    }
}
