use std::convert::Infallible;

use data_encoding::HEXLOWER;
use proptest::prelude::*;

use super::*;
use crate::tlog::frontier::Frontier;
use crate::tlog::tree::TREE_SIZE_MAX;

/// The leaves that Certificate Transparency's implementations test themselves with.
const KNOWN_LEAVES: [&str; 8] =
    ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];

/// A tree whose nodes are hashed anew from its leaves at each question.
struct Leaves(Vec<NodeHash>);

impl Leaves {
    fn known() -> Self {
        let leaf = |hex: &&str| NodeHash::leaf(&HEXLOWER.decode(hex.as_bytes()).unwrap());
        Self(KNOWN_LEAVES.iter().map(leaf).collect())
    }

    fn numbered(size: u64) -> Self {
        Self((0..size).map(|index| NodeHash::leaf(&index.to_be_bytes())).collect())
    }

    fn node(&self, node: Node) -> Result<NodeHash, Infallible> {
        let first = (node.index << node.level) as usize;
        Ok(NodeHash::over(&self.0[first..first + (1 << node.level)]))
    }

    fn root(&self, size: u64) -> NodeHash {
        let mut frontier = Frontier::new();
        self.0[..size as usize].iter().for_each(|leaf| frontier.push(*leaf));
        frontier.root()
    }

    fn inclusion(&self, index: u64, size: u64) -> Vec<NodeHash> {
        Inclusion::new(index, size).unwrap().prove(|node| self.node(node)).unwrap()
    }

    fn consistency(&self, old: u64, new: u64) -> Vec<NodeHash> {
        Consistency::new(old, new).unwrap().prove(|node| self.node(node)).unwrap()
    }

    fn check_inclusion(&self, index: u64, size: u64, proof: &[NodeHash]) -> Result<(), ProofError> {
        Inclusion::new(index, size)?.verify(self.0[index as usize], proof, self.root(size))
    }

    fn check_consistency(&self, old: u64, new: u64, proof: &[NodeHash]) -> Result<(), ProofError> {
        Consistency::new(old, new)?.verify(self.root(old), self.root(new), proof)
    }
}

fn hex(hashes: &[NodeHash]) -> Vec<String> {
    hashes.iter().map(|hash| HEXLOWER.encode(hash.bytes())).collect()
}

#[test]
fn known_inclusion_proofs_come_out() {
    let tree = Leaves::known();

    assert_eq!(hex(&tree.inclusion(0, 1)), [] as [&str; 0]);
    assert_eq!(
        hex(&tree.inclusion(0, 8)),
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ]
    );
    assert_eq!(
        hex(&tree.inclusion(5, 8)),
        [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ]
    );
    assert_eq!(
        hex(&tree.inclusion(2, 3)),
        ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]
    );
    assert_eq!(
        hex(&tree.inclusion(1, 5)),
        [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ]
    );
}

#[test]
fn known_consistency_proofs_come_out() {
    let tree = Leaves::known();

    assert_eq!(hex(&tree.consistency(1, 1)), [] as [&str; 0]);
    assert_eq!(
        hex(&tree.consistency(1, 8)),
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ]
    );
    assert_eq!(
        hex(&tree.consistency(6, 8)),
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ]
    );
    assert_eq!(
        hex(&tree.consistency(2, 5)),
        [
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ]
    );
}

#[test]
fn every_leaf_and_every_older_tree_of_small_trees_is_proved() {
    let tree = Leaves::numbered(40);

    for size in 1..=40 {
        for index in 0..size {
            assert_eq!(
                tree.check_inclusion(index, size, &tree.inclusion(index, size)),
                Ok(()),
                "{index} {size}"
            );
        }
        for old in 0..=size {
            assert_eq!(
                tree.check_consistency(old, size, &tree.consistency(old, size)),
                Ok(()),
                "{old} {size}"
            );
        }
    }
}

#[test]
fn what_cannot_be_is_not_asked_for() {
    assert_eq!(Inclusion::new(0, 0), Err(ProofError::Outside { index: 0, size: 0 }));
    assert_eq!(Inclusion::new(5, 5), Err(ProofError::Outside { index: 5, size: 5 }));
    assert_eq!(Inclusion::new(u64::MAX, 5), Err(ProofError::Outside { index: u64::MAX, size: 5 }));
    assert_eq!(Consistency::new(6, 5), Err(ProofError::Shorter { old: 6, new: 5 }));
}

#[test]
fn a_proof_of_the_largest_tree_has_its_stated_length() {
    let longest = |way: Consistency| way.rows().count();

    assert_eq!(Inclusion::new(0, TREE_SIZE_MAX).unwrap().siblings.len(), PROOF_HASHES_MAX - 1);
    assert_eq!(longest(Consistency::new((1 << 62) + 1, TREE_SIZE_MAX).unwrap()), PROOF_HASHES_MAX);
}

#[test]
fn every_tree_goes_on_from_the_empty_one_and_from_itself() {
    let tree = Leaves::numbered(5);
    let (empty, root) = (NodeHash::empty(), tree.root(5));

    assert_eq!(Consistency::new(0, 5).unwrap().verify(empty, root, &[]), Ok(()));
    assert_eq!(Consistency::new(0, 5).unwrap().verify(root, root, &[]), Err(ProofError::OldRoot));
    assert_eq!(Consistency::new(5, 5).unwrap().verify(root, root, &[]), Ok(()));
    assert_eq!(Consistency::new(5, 5).unwrap().verify(root, empty, &[]), Err(ProofError::Root));
    let long = ProofError::Length { found: 1, expected: 0 };
    assert_eq!(Consistency::new(5, 5).unwrap().verify(root, root, &[root]), Err(long.clone()));
    assert_eq!(Consistency::new(0, 5).unwrap().verify(empty, root, &[root]), Err(long));
}

#[test]
fn a_fork_is_not_consistent() {
    let (tree, mut fork) = (Leaves::numbered(9), Leaves::numbered(12));
    fork.0[6] = NodeHash::leaf(b"another");

    for old in 7..=9 {
        let proof = fork.consistency(old, 12);
        let verified = Consistency::new(old, 12).unwrap().verify(tree.root(old), fork.root(12), &proof);
        assert!(verified.is_err(), "{old}");
    }
    let proof = fork.consistency(6, 12);
    assert_eq!(Consistency::new(6, 12).unwrap().verify(tree.root(6), fork.root(12), &proof), Ok(()));
}

fn flipped(hash: NodeHash, bit: usize) -> NodeHash {
    let mut bytes = *hash.bytes();
    bytes[bit / 8] ^= 1 << (bit % 8);
    NodeHash::from_bytes(bytes)
}

proptest! {
    #[test]
    fn any_flipped_bit_of_an_inclusion_proof_fails(
        (size, index) in (1u64..200).prop_flat_map(|size| (Just(size), 0..size)),
        at in any::<prop::sample::Index>(), bit in 0usize..256,
    ) {
        let tree = Leaves::numbered(size);
        let proof = tree.inclusion(index, size);
        let (way, leaf, root) = (Inclusion::new(index, size).unwrap(), tree.0[index as usize], tree.root(size));
        prop_assert_eq!(way.verify(leaf, &proof, root), Ok(()));
        prop_assert_eq!(way.nodes().len() >= proof.len(), true);

        prop_assert_eq!(way.verify(flipped(leaf, bit), &proof, root), Err(ProofError::Root));
        prop_assert_eq!(way.verify(leaf, &proof, flipped(root, bit)), Err(ProofError::Root));
        if !proof.is_empty() {
            let (mut bad, at) = (proof.clone(), at.index(proof.len()));
            bad[at] = flipped(bad[at], bit);
            prop_assert_eq!(way.verify(leaf, &bad, root), Err(ProofError::Root));
            let short = ProofError::Length { found: proof.len() - 1, expected: proof.len() };
            prop_assert_eq!(way.verify(leaf, &proof[1..], root), Err(short));
        }
    }

    #[test]
    fn an_inclusion_proof_proves_no_other_leaf(
        (size, index, other) in (2u64..300).prop_flat_map(|size| (Just(size), 0..size, 0..size)),
    ) {
        prop_assume!(index != other);
        let tree = Leaves::numbered(size);

        let verified = Inclusion::new(other, size).unwrap().verify(
            tree.0[index as usize], &tree.inclusion(index, size), tree.root(size));

        prop_assert!(verified.is_err());
    }

    #[test]
    fn any_flipped_bit_of_a_consistency_proof_fails(
        (new, old) in (2u64..200).prop_flat_map(|new| (Just(new), 1..new)),
        at in any::<prop::sample::Index>(), bit in 0usize..256,
    ) {
        let tree = Leaves::numbered(new);
        let proof = tree.consistency(old, new);
        let (way, old_root, new_root) = (Consistency::new(old, new).unwrap(), tree.root(old), tree.root(new));
        prop_assert_eq!(way.verify(old_root, new_root, &proof), Ok(()));

        let (mut bad, at) = (proof.clone(), at.index(proof.len()));
        bad[at] = flipped(bad[at], bit);
        prop_assert!(way.verify(old_root, new_root, &bad).is_err());
        prop_assert!(way.verify(flipped(old_root, bit), new_root, &proof).is_err());
        prop_assert_eq!(way.verify(old_root, flipped(new_root, bit), &proof), Err(ProofError::Root));
        let short = ProofError::Length { found: proof.len() - 1, expected: proof.len() };
        prop_assert_eq!(way.verify(old_root, new_root, &proof[1..]), Err(short));
    }
}
