//! The right edge of the tree: one hash for each complete subtree, from left to right, largest first. All that
//! is needed to append a leaf and to know the root.
//!
//! Never remembers a leaf: a tree of 3 000 leaves has a frontier of 7 hashes, 224 bytes.

use super::hash::{HASH_LEN, NodeHash};
use super::tree::{self, Node, TREE_SIZE_MAX};

/// Why stored bytes are not the frontier of a tree of that size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrontierError {
    #[error("frontier of {size} leaves is {found} bytes, expected {expected}")]
    Length { size: u64, found: usize, expected: usize },
    #[error("tree of {size} leaves is larger than {TREE_SIZE_MAX}")]
    TooLarge { size: u64 },
}

/// The right edge of a tree of a known size.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontier {
    size: u64,
    /// As many as `size` has one-bits.
    hashes: Vec<NodeHash>,
}

impl Frontier {
    /// The frontier of a tree without leaves.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads what [`Frontier::encode`] wrote for a tree of `size` leaves. That the hashes are right shows
    /// only when the root is compared.
    pub fn decode(size: u64, bytes: &[u8]) -> Result<Self, FrontierError> {
        if size > TREE_SIZE_MAX {
            return Err(FrontierError::TooLarge { size });
        }
        let expected = size.count_ones() as usize * HASH_LEN;
        match NodeHash::split(bytes) {
            Some(hashes) if bytes.len() == expected => Ok(Self { size, hashes }),
            _ => Err(FrontierError::Length { size, found: bytes.len(), expected }),
        }
    }

    /// The hashes one after the other. The size is kept beside them.
    pub fn encode(&self) -> Vec<u8> {
        NodeHash::join(&self.hashes)
    }

    /// The frontier of the first `size` leaves, out of the hashes that `node` answers.
    pub fn read<E>(size: u64, node: impl FnMut(Node) -> Result<NodeHash, E>) -> Result<Self, E> {
        let hashes = tree::subtrees(0..size).into_iter().map(node).collect::<Result<_, E>>()?;
        Ok(Self { size, hashes })
    }

    /// Appends a leaf.
    pub fn push(&mut self, leaf: NodeHash) {
        // Each one-bit from the right is a subtree of the height that has just become complete.
        let complete = self.hashes.len() - self.size.trailing_ones() as usize;
        let hash = self.hashes.drain(complete..).rev().fold(leaf, |right, left| NodeHash::pair(left, right));
        self.hashes.push(hash);
        self.size += 1;
    }

    /// How many leaves the tree has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The root of the tree.
    pub fn root(&self) -> NodeHash {
        tree::fold(&self.hashes)
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    use super::*;

    /// The eight leaves and roots that Certificate Transparency's implementations test themselves with
    /// (`certificate-transparency-go:merkletree`, `trillian`, and others).
    const LEAVES: [&str; 8] =
        ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
    const ROOTS: [&str; 8] = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];

    fn tree_of(leaves: usize) -> Frontier {
        let mut frontier = Frontier::new();
        (0..leaves).for_each(|leaf| frontier.push(NodeHash::leaf(leaf.to_string().as_bytes())));
        frontier
    }

    #[test]
    fn known_roots_come_out() {
        let mut frontier = Frontier::new();
        assert_eq!(frontier.root(), NodeHash::empty());

        for (leaf, root) in LEAVES.iter().zip(ROOTS) {
            frontier.push(NodeHash::leaf(&HEXLOWER.decode(leaf.as_bytes()).unwrap()));

            assert_eq!(HEXLOWER.encode(frontier.root().bytes()), root, "{}", frontier.size());
        }
    }

    #[test]
    fn three_thousand_leaves_take_224_bytes() {
        assert_eq!(tree_of(3_000).encode().len(), 224);
    }

    #[test]
    fn bytes_of_another_size_are_refused() {
        let bytes = tree_of(3).encode();

        for (size, found, expected) in [(4, 64, 32), (0, 64, 0), (7, 64, 96)] {
            let error = FrontierError::Length { size, found, expected };
            assert_eq!(Frontier::decode(size, &bytes), Err(error));
        }
        let cut = FrontierError::Length { size: 3, found: 63, expected: 64 };
        assert_eq!(Frontier::decode(3, &bytes[..63]), Err(cut));
        let size = TREE_SIZE_MAX + 1;
        assert_eq!(Frontier::decode(size, &bytes[..32]), Err(FrontierError::TooLarge { size }));
    }

    proptest! {
        #[test]
        fn a_stored_frontier_goes_on_where_it_stood(before in 0usize..200, after in 0usize..40) {
            let mut frontier = tree_of(before);
            prop_assert_eq!(frontier.size(), before as u64);

            frontier = Frontier::decode(frontier.size(), &frontier.encode()).unwrap();
            for leaf in before..before + after {
                frontier.push(NodeHash::leaf(leaf.to_string().as_bytes()));
            }

            prop_assert_eq!(frontier, tree_of(before + after));
        }
    }
}
