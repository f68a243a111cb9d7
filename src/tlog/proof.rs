//! Proofs that a leaf is in a tree, and that a tree goes on from an older one (RFC 6962, sections 2.1.1 and
//! 2.1.2). Making and checking walk the same way, so that they cannot disagree about its shape.
//!
//! Never says who signed a root: see `checkpoint`.

use std::ops::Range;

use super::hash::NodeHash;
use super::tree::{self, Node};

/// Most hashes of a proof: one for each level of the largest tree, and one more where a consistency proof
/// begins inside it.
pub const PROOF_HASHES_MAX: usize = 64;

/// Why something is not proved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    #[error("leaf {index} is not in a tree of {size} leaves")]
    Outside { index: u64, size: u64 },
    #[error("a tree of {new} leaves does not go on from one of {old}")]
    Shorter { old: u64, new: u64 },
    #[error("proof has {found} hashes, expected {expected}")]
    Length { found: usize, expected: usize },
    #[error("proof leads to another root")]
    Root,
    #[error("proof leads to another root of the older tree")]
    OldRoot,
}

/// Which side of the way up a hash stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

/// What joins the way up from below: the hash over some leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sibling {
    side: Side,
    leaves: Range<u64>,
}

/// Walks down a tree of `size` leaves towards the part for which `goes_left` always answers; gives the
/// siblings from there up to the root, and the leaves of that part.
fn descend(
    size: u64,
    arrived: impl Fn(&Range<u64>) -> bool,
    goes_left: impl Fn(u64) -> bool,
) -> (Vec<Sibling>, Range<u64>) {
    let mut siblings = Vec::new();
    let mut part = 0..size;
    while !arrived(&part) {
        let middle = part.start + tree::split(part.end - part.start);
        if goes_left(middle) {
            siblings.push(Sibling { side: Side::Right, leaves: middle..part.end });
            part.end = middle;
        } else {
            siblings.push(Sibling { side: Side::Left, leaves: part.start..middle });
            part.start = middle;
        }
    }
    siblings.reverse();
    (siblings, part)
}

/// The way from one leaf up to the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inclusion {
    siblings: Vec<Sibling>,
}

impl Inclusion {
    /// The way from the leaf at `index`, counted from 0, in a tree of `size` leaves.
    pub fn new(index: u64, size: u64) -> Result<Self, ProofError> {
        if index >= size {
            return Err(ProofError::Outside { index, size });
        }
        let (siblings, _) = descend(size, |part| part.end - part.start == 1, |middle| index < middle);
        Ok(Self { siblings })
    }

    /// The nodes whose hashes [`Inclusion::prove`] asks for.
    pub fn nodes(&self) -> Vec<Node> {
        self.siblings.iter().flat_map(|sibling| tree::subtrees(sibling.leaves.clone())).collect()
    }

    /// The proof, from the leaf's sibling up to the root's child, out of the hashes that `node` answers.
    pub fn prove<E>(&self, mut node: impl FnMut(Node) -> Result<NodeHash, E>) -> Result<Vec<NodeHash>, E> {
        self.siblings.iter().map(|sibling| tree::hash_of(sibling.leaves.clone(), &mut node)).collect()
    }

    /// The root that `proof` leads to from `leaf`.
    pub fn root(&self, leaf: NodeHash, proof: &[NodeHash]) -> Result<NodeHash, ProofError> {
        let expected = self.siblings.len();
        if proof.len() != expected {
            return Err(ProofError::Length { found: proof.len(), expected });
        }
        Ok(self.siblings.iter().zip(proof).fold(leaf, |below, (sibling, &hash)| match sibling.side {
            Side::Left => NodeHash::pair(hash, below),
            Side::Right => NodeHash::pair(below, hash),
        }))
    }

    /// Whether `proof` leads from `leaf` to `root`.
    pub fn verify(&self, leaf: NodeHash, proof: &[NodeHash], root: NodeHash) -> Result<(), ProofError> {
        if self.root(leaf, proof)? == root { Ok(()) } else { Err(ProofError::Root) }
    }
}

/// The way from the end of an older tree up to the root of the tree that goes on from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consistency {
    /// What both trees have and the way begins with; `None` where it is the whole older tree, whose root
    /// the verifier has.
    common: Option<Range<u64>>,
    siblings: Vec<Sibling>,
    old_size: u64,
}

impl Consistency {
    /// The way from a tree of `old` leaves to one of `new` leaves. From an empty tree nothing is to be
    /// proved, and from a tree to itself neither.
    pub fn new(old: u64, new: u64) -> Result<Self, ProofError> {
        if old > new {
            return Err(ProofError::Shorter { old, new });
        }
        if old == 0 {
            return Ok(Self { common: None, siblings: Vec::new(), old_size: 0 });
        }
        let (siblings, part) = descend(new, |part| part.end == old, |middle| old <= middle);
        let common = (part.start > 0).then_some(part);
        Ok(Self { common, siblings, old_size: old })
    }

    /// The nodes whose hashes [`Consistency::prove`] asks for.
    pub fn nodes(&self) -> Vec<Node> {
        self.rows().flat_map(tree::subtrees).collect()
    }

    /// The proof, out of the hashes that `node` answers.
    pub fn prove<E>(&self, mut node: impl FnMut(Node) -> Result<NodeHash, E>) -> Result<Vec<NodeHash>, E> {
        self.rows().map(|leaves| tree::hash_of(leaves, &mut node)).collect()
    }

    /// Whether `proof` shows that the tree under `new_root` begins with the one under `old_root`.
    pub fn verify(
        &self,
        old_root: NodeHash,
        new_root: NodeHash,
        proof: &[NodeHash],
    ) -> Result<(), ProofError> {
        let expected = self.rows().count();
        if proof.len() != expected {
            return Err(ProofError::Length { found: proof.len(), expected });
        }
        if self.old_size == 0 {
            // Every tree goes on from the empty one.
            return if old_root == NodeHash::empty() { Ok(()) } else { Err(ProofError::OldRoot) };
        }
        let (start, above) = match self.common {
            Some(_) => (proof[0], &proof[1..]),
            None => (old_root, proof),
        };
        let (mut old, mut new) = (start, start);
        for (sibling, &hash) in self.siblings.iter().zip(above) {
            match sibling.side {
                Side::Left => (old, new) = (NodeHash::pair(hash, old), NodeHash::pair(hash, new)),
                // These leaves came later.
                Side::Right => new = NodeHash::pair(new, hash),
            }
        }
        if old != old_root {
            return Err(ProofError::OldRoot);
        }
        if new == new_root { Ok(()) } else { Err(ProofError::Root) }
    }

    /// The leaves under each hash of the proof, in its order.
    fn rows(&self) -> impl Iterator<Item = Range<u64>> {
        self.common.iter().chain(self.siblings.iter().map(|sibling| &sibling.leaves)).cloned()
    }
}

#[cfg(test)]
mod tests;
