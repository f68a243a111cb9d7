use proptest::prelude::*;

use super::*;

fn hashes(level: u8, index: u64, width: u16) -> Tile {
    Tile::new(TileKind::Hashes { level }, index, width).unwrap()
}

fn paths(tiles: &[Tile]) -> Vec<String> {
    tiles.iter().map(Tile::to_string).collect()
}

#[test]
fn paths_are_those_of_the_format() {
    for (tile, path) in [
        (hashes(0, 0, 256), "tile/0/000"),
        (hashes(0, 273, 112), "tile/0/273.p/112"),
        (hashes(3, 999, 256), "tile/3/999"),
        (hashes(3, 1_000, 256), "tile/3/x001/000"),
        (hashes(0, 1_234_067, 256), "tile/0/x001/x234/067"),
        (hashes(0, 1_234_067, 8), "tile/0/x001/x234/067.p/8"),
        (Tile::new(TileKind::Entries, 3_057_500, 255).unwrap(), "tile/entries/x003/x057/500.p/255"),
    ] {
        assert_eq!(tile.to_string(), path);
        assert_eq!(path.parse(), Ok(tile));
    }
}

#[test]
fn other_spellings_are_refused() {
    for path in [
        "",
        "tile",
        "tile/",
        "tile/0",
        "tile/0/",
        "tile/0/0",
        "tile/0/00",
        "tile/0/0000",
        "tile/0/x000",
        "tile/0/x000/000",
        "tile/0/001/000",
        "tile/0/x01/000",
        "tile/0/xx001/000",
        "tile/0/x001/x000",
        "tile/0/x001//000",
        "tile/00/000",
        "tile/+0/000",
        "tile/-1/000",
        "tile/0/+00",
        "tile/data/000",
        "tile/1/0/000",
        "tile/0/000/",
        "/tile/0/000",
        "tile/0/000.p",
        "tile/0/000.p/",
        "tile/0/000.p/01",
        "tile/0/000.p/+1",
        "tile/0/000.p/1/",
        "tile/0/000.p/1.p/1",
        "tile/0/../000",
        "tile/0/000.p/99999",
        "tile/entries/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx/000",
    ] {
        assert_eq!(path.parse::<Tile>(), Err(TilePathError::Spelling), "{path}");
    }
}

#[test]
fn tiles_that_no_tree_has_are_refused() {
    for path in [
        "tile/0/000.p/0",
        "tile/0/000.p/257",
        "tile/8/000",
        "tile/63/000",
        "tile/7/000",
        "tile/7/000.p/128",
        "tile/7/001.p/1",
        "tile/0/x036/x028/x797/x018/x963/968.p/1",
        "tile/entries/x036/x028/x797/x018/x963/967",
        "tile/entries/x018/x446/x744/x073/x709/x551/615",
    ] {
        assert_eq!(path.parse::<Tile>(), Err(TilePathError::Outside), "{path}");
    }
    assert_eq!("tile/entries/x036/x028/x797/x018/x963/967.p/255".len(), PATH_LEN_MAX);
    let last: Tile = "tile/entries/x036/x028/x797/x018/x963/967.p/255".parse().unwrap();
    assert_eq!(last.leaves().end, TREE_SIZE_MAX);
    assert!("tile/7/000.p/127".parse::<Tile>().is_ok());
}

#[test]
fn seventy_thousand_leaves_are_in_the_tiles_that_the_format_counts() {
    let tiles = Tile::added(0, 70_000);
    let of = |level: u8| tiles.iter().filter(move |tile| tile.kind() == TileKind::Hashes { level });

    assert_eq!(of(0).filter(|tile| tile.is_full()).count(), 273);
    assert_eq!(of(0).count(), 274);
    assert_eq!(of(1).count(), 2);
    assert_eq!(of(2).count(), 1);
    assert_eq!(tiles.len(), 274 + 2 + 1 + 274);
    assert_eq!(paths(&Tile::edge(70_000)), ["tile/0/273.p/112", "tile/1/001.p/17", "tile/2/000.p/1"]);
}

#[test]
fn a_full_tile_makes_one_hash_of_the_next_level() {
    assert_eq!(paths(&Tile::added(0, 0)), [] as [&str; 0]);
    assert_eq!(paths(&Tile::added(0, 1)), ["tile/0/000.p/1", "tile/entries/000.p/1"]);
    assert_eq!(paths(&Tile::added(0, 256)), ["tile/0/000", "tile/1/000.p/1", "tile/entries/000"]);
    assert_eq!(paths(&Tile::edge(256)), ["tile/1/000.p/1"]);
    assert_eq!(paths(&Tile::edge(0)), [] as [&str; 0]);
}

#[test]
fn a_tree_that_grows_adds_only_what_changed() {
    assert_eq!(paths(&Tile::added(300, 301)), ["tile/0/001.p/45", "tile/entries/001.p/45"]);
    assert_eq!(
        paths(&Tile::added(300, 520)),
        ["tile/0/001", "tile/0/002.p/8", "tile/1/000.p/2", "tile/entries/001", "tile/entries/002.p/8"]
    );
    assert_eq!(paths(&Tile::added(512, 512)), [] as [&str; 0]);
    assert_eq!(paths(&Tile::added(600, 300)), [] as [&str; 0]);
    assert_eq!(paths(&Tile::added(TREE_SIZE_MAX - 1, TREE_SIZE_MAX)).len(), 2);
}

#[test]
fn a_node_is_in_one_tile_at_the_height_below_it() {
    let holding =
        |level, index, size| Tile::holding(Node { level, index }, size).map(|tile| tile.to_string());

    assert_eq!(holding(0, 255, 70_000).as_deref(), Some("tile/0/000"));
    assert_eq!(holding(7, 2, 70_000).as_deref(), Some("tile/0/001"));
    assert_eq!(holding(8, 0, 70_000).as_deref(), Some("tile/1/000"));
    assert_eq!(holding(8, 272, 70_000).as_deref(), Some("tile/1/001.p/17"));
    assert_eq!(holding(16, 0, 70_000).as_deref(), Some("tile/2/000.p/1"));
    assert_eq!(holding(0, 70_000, 70_000), None);
    assert_eq!(holding(16, 1, 70_000), None);
    assert_eq!(holding(255, 0, 70_000), None);
}

#[test]
fn what_is_needed_leads_from_the_nodes_up_to_the_edge() {
    let needed = Tile::needed(&[Node::leaf(3), Node::leaf(69_999), Node::leaf(70_000)], 70_000);

    let expected = ["tile/0/000", "tile/0/273.p/112", "tile/1/000", "tile/1/001.p/17", "tile/2/000.p/1"];
    assert_eq!(paths(&needed.into_iter().collect::<Vec<_>>()), expected);
}

proptest! {
    #[test]
    fn a_path_that_is_read_is_written_alike(
        level in 0u8..9, index in prop_oneof![0u64..2_000, any::<u64>()], width in 0u16..260, entries: bool,
    ) {
        let kind = if entries { TileKind::Entries } else { TileKind::Hashes { level } };
        if let Some(tile) = Tile::new(kind, index, width) {
            prop_assert_eq!(tile.to_string().parse(), Ok(tile));
            prop_assert!(tile.leaves().end <= TREE_SIZE_MAX);
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(path in "(tile/)?([0-9]{1,3}|entries)(/x?[0-9]{0,4}){0,9}(\\.p/[0-9]{0,6})?") {
        if let Ok(tile) = path.parse::<Tile>() {
            prop_assert_eq!(tile.to_string(), path);
        }
    }

    #[test]
    fn no_tree_and_no_node_is_too_large_to_ask_about(size: u64, level: u8, index: u64) {
        let node = Node { level, index };
        if let Some(tile) = Tile::holding(node, size) {
            prop_assert!(tile.hashes_below(node).is_some() == (node.is_in(size)));
        }
        Tile::needed(&[node, Node::leaf(index)], size);
        Tile::added(size, size);
    }

    #[test]
    fn growing_in_steps_adds_what_growing_at_once_adds(steps in proptest::collection::vec(0u64..700, 1..6)) {
        let (mut size, mut in_steps) = (0, BTreeSet::new());
        for step in steps {
            in_steps.extend(Tile::added(size, size + step));
            size += step;
        }
        let at_once: BTreeSet<_> = Tile::added(0, size).into_iter().collect();

        prop_assert!(at_once.is_subset(&in_steps));
        prop_assert!(in_steps.difference(&at_once).all(|tile| !tile.is_full()));
    }
}

#[test]
fn a_partial_tile_is_the_beginning_of_the_full_one() {
    let entries: Vec<String> = (0..256).map(|number| "x".repeat(number)).collect();
    let full = bundle::encode(&entries).unwrap();
    let entries_tile: Tile = "tile/entries/000.p/3".parse().unwrap();
    assert_eq!(narrowed(entries_tile, &full), bundle::encode(&entries[..3]).ok());
    let hashes: Tile = "tile/0/000.p/3".parse().unwrap();
    assert_eq!(narrowed(hashes, &[7; 256 * 32]), Some(vec![7; 3 * 32]));
    assert_eq!(hashes.full().to_string(), "tile/0/000");

    for other in [vec![], vec![7; 3 * 32], vec![7; 257 * 32]] {
        assert_eq!(narrowed(hashes, &other), None, "{}", other.len());
    }
    assert_eq!(narrowed(entries_tile, &full[1..]), None);
}

#[test]
fn what_a_tree_has_only_in_part_is_named() {
    let paths = |size| Tile::partial(size).iter().map(Tile::to_string).collect::<Vec<_>>();

    assert_eq!(paths(0), [] as [String; 0]);
    assert_eq!(paths(3), ["tile/0/000.p/3", "tile/entries/000.p/3"]);
    assert_eq!(paths(256), ["tile/1/000.p/1"]);
    assert_eq!(paths(257), ["tile/0/001.p/1", "tile/1/000.p/1", "tile/entries/001.p/1"]);
}
