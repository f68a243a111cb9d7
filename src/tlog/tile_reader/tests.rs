use std::collections::HashMap;

use super::*;
use crate::tlog::frontier::Frontier;

/// A published log, and the paths that were asked for.
struct Published {
    tiles: HashMap<Tile, Vec<u8>>,
    roots: Vec<NodeHash>,
}

#[derive(Debug, thiserror::Error)]
#[error("not there")]
struct Absent;

fn text(index: u64) -> String {
    format!("leaf {index}")
}

/// Everything that a log publishes which has had each of these sizes.
fn published(sizes: &[u64]) -> Published {
    let (mut edge, mut frontier) = (Edge::new(), Frontier::new());
    let (mut tiles, mut roots) = (HashMap::new(), vec![frontier.root()]);
    for index in 0..*sizes.last().unwrap() {
        let leaf = NodeHash::leaf(text(index).as_bytes());
        frontier.push(leaf);
        roots.push(frontier.root());
        let mut made = edge.push(leaf);
        if sizes.contains(&(index + 1)) {
            made.extend(edge.partial_tiles());
        }
        tiles.extend(made.into_iter().map(|hashes| (hashes.tile(), hashes.encode())));
    }
    for &size in sizes {
        for tile in Tile::added(0, size).into_iter().filter(|tile| tile.kind() == TileKind::Entries) {
            tiles.insert(tile, bundle::encode(tile.leaves().map(text)).unwrap());
        }
    }
    Published { tiles, roots }
}

type Fetched = Result<Vec<u8>, Absent>;

impl Published {
    fn fetch(&self, tile: Tile) -> Fetched {
        self.tiles.get(&tile).cloned().ok_or(Absent)
    }

    fn open(&self, size: u64) -> Result<TileReader<impl FnMut(Tile) -> Fetched>, ReadError<Absent>> {
        TileReader::open(size, self.roots[size as usize], |tile| self.fetch(tile))
    }
}

#[test]
fn every_leaf_is_proved_out_of_tiles_alone() {
    for size in [0, 1, 2, 255, 256, 257, 512, 700] {
        let log = published(&[size]);
        let mut reader = log.open(size).unwrap();

        for index in (0..size).step_by(7).chain(size.checked_sub(1)) {
            let proof = reader.inclusion(index).unwrap();
            let leaf = NodeHash::leaf(text(index).as_bytes());
            let way = Inclusion::new(index, size).unwrap();
            assert_eq!(way.verify(leaf, &proof, log.roots[size as usize]), Ok(()), "{index} {size}");
        }
        for old in (0..=size).step_by(11).chain([size]) {
            let proof = reader.consistency(old).unwrap();
            let way = Consistency::new(old, size).unwrap();
            let verified = way.verify(log.roots[old as usize], log.roots[size as usize], &proof);
            assert_eq!(verified, Ok(()), "{old} {size}");
        }
    }
}

#[test]
fn entries_come_in_order_and_end_with_the_tree() {
    let log = published(&[600]);
    let mut reader = log.open(600).unwrap();

    let entries: Vec<_> = (0..4).flat_map(|index| reader.entries(index).unwrap()).collect();

    assert_eq!(entries.len(), 600);
    assert!(entries.iter().zip(0..).all(|(entry, index)| *entry == text(index).as_bytes()));
}

#[test]
fn three_levels_of_tiles_are_read_and_each_is_fetched_once() {
    let size = 66_000;
    let log = published(&[size]);
    let mut fetched = Vec::new();
    let mut reader = TileReader::open(size, log.roots[size as usize], |tile| {
        fetched.push(tile);
        log.fetch(tile)
    })
    .unwrap();

    for index in [0, 1, 255, 65_535, 65_536, 65_999] {
        let proof = reader.inclusion(index).unwrap();
        let leaf = NodeHash::leaf(text(index).as_bytes());
        let way = Inclusion::new(index, size).unwrap();
        assert_eq!(way.verify(leaf, &proof, log.roots[size as usize]), Ok(()), "{index}");
        assert!(way.nodes().iter().all(|node| Tile::holding(*node, size).is_some()));
    }

    let nodes: Vec<_> = [0, 65_535, 65_536, 65_999].map(Node::leaf).into();
    let mut once = fetched.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), fetched.len(), "{fetched:?}");
    assert_eq!(once, Tile::needed(&nodes, size).into_iter().collect::<Vec<_>>());
}

#[test]
fn any_flipped_bit_of_any_tile_fails() {
    let size = 600;
    let good = published(&[size]);
    let names: Vec<_> = good.tiles.keys().copied().collect();

    for name in names {
        let length = good.tiles[&name].len();
        for (at, bit) in [(0, 0), (length / 2, 3), (length - 1, 7)] {
            let mut log = published(&[size]);
            log.tiles.get_mut(&name).unwrap()[at] ^= 1 << bit;

            let read = log.open(size).and_then(|mut reader| {
                for index in 0..3 {
                    reader.entries(index)?;
                }
                Ok(())
            });

            let refused = matches!(
                read,
                Err(ReadError::Root { size: 600 } | ReadError::Tampered { .. } | ReadError::Bundle { .. })
            );
            assert!(refused, "{name} {at} {bit}: {read:?}");
        }
    }
}

#[test]
fn a_log_under_another_root_or_without_a_tile_is_not_read() {
    let log = published(&[300]);
    let fetch = |tile| log.fetch(tile);

    assert!(matches!(TileReader::open(300, log.roots[299], fetch), Err(ReadError::Root { size: 300 })));
    assert!(matches!(TileReader::open(299, log.roots[299], fetch), Err(ReadError::Fetch { .. })));
    let mut without = published(&[300]);
    without.tiles.retain(|tile, _| !tile.is_full());
    let mut reader = without.open(300).unwrap();
    assert!(matches!(reader.inclusion(3), Err(ReadError::Fetch { tile, source: Absent }) if tile.is_full()));
    // What the edge has is still answered.
    assert!(reader.node(Node::leaf(299)).is_ok());
}

#[test]
fn what_is_not_in_the_tree_is_not_answered() {
    let log = published(&[300]);
    let mut reader = log.open(300).unwrap();

    for node in
        [Node::leaf(300), Node { level: 8, index: 1 }, Node { level: 9, index: 0 }, Node::leaf(u64::MAX)]
    {
        assert!(matches!(reader.node(node), Err(ReadError::Outside { size: 300, .. })), "{node:?}");
    }
    assert!(matches!(reader.inclusion(300), Err(ReadError::Proof(ProofError::Outside { .. }))));
    assert!(matches!(reader.consistency(301), Err(ReadError::Proof(ProofError::Shorter { .. }))));
}

#[test]
fn an_older_size_is_read_from_the_tiles_of_a_newer_one() {
    let log = published(&[100, 256, 300]);

    for size in [100, 256, 300] {
        let mut reader = log.open(size).unwrap();
        assert!(reader.inclusion(99).is_ok(), "{size}");
        assert_eq!(reader.entries(0).unwrap().len() as u64, size.min(256));
    }
}
