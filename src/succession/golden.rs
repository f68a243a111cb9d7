//! A document of version 1 as bytes in `tests/golden/succession-v1/`. It must be read for ever: the files are never made
//! anew, and a later format gets a folder of its own.

use super::testing::{NOON, TestKey, compromise, planned, roots, signed};
use super::{Chain, LogHead, Memory, Statement, follow};
use crate::tlog::hash::NodeHash;

const CHAIN: &[u8] = include_bytes!("../../tests/golden/succession-v1/chain");

/// What the golden document says, written anew.
fn written() -> Chain {
    let set = roots(1, 2, &["alice", "bob", "carol"]);
    let log = LogHead { origin: "narvault-log-golden".into(), size: 7, root: NodeHash::from_bytes([5; 32]) };
    let first = Statement { roots: Some(set.reference()), ..planned(1, "main-1", "main-2") };
    let second = Statement { retire_old: Some(NOON), log: Some(log), ..planned(2, "main-1", "main-2") };
    let third = compromise(3, "main-2", "a+b%-3", &set);
    Chain {
        roots: vec![signed(&set, &["alice", "carol"])],
        statements: vec![
            signed(&first, &["main-1", "main-2"]),
            signed(&second, &["main-1", "main-2"]),
            signed(&third, &["bob", "carol", "a+b%-3"]),
        ],
    }
}

#[test]
fn a_document_of_version_1_is_still_read_and_followed() {
    let chain = Chain::parse(CHAIN).unwrap();

    let followed = follow(&[TestKey::named("main-1").public], &Memory::default(), &chain, NOON).unwrap();

    assert_eq!(followed.trusted, [TestKey::named("a+b%-3").public]);
    assert_eq!((chain.roots.len(), chain.statements.len(), chain.head()), (1, 3, 3));
    assert_eq!(followed.memory.seen.map(|seen| seen.seq), Some(3));
}

#[test]
fn a_document_of_version_1_is_still_written() {
    // Ed25519 signatures of one text are always the same.
    assert_eq!(written().encode(), String::from_utf8_lossy(CHAIN));
}
