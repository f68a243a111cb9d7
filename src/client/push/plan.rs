//! What is to be pushed, and in which order it may be published: what a path refers to comes first.
//!
//! Never sends anything, and never waits: it is told what happened, and says what may come next.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::nix::compression::{Compression, NarFileName};
use crate::nix::hash::NarHash;
use crate::nix::path_info::PathInfo;
use crate::nix::store_path::StorePath;

/// A path's place in the plan.
pub type Index = usize;

/// What stands in the storage of the server, not published yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub file: NarFileName,
    pub compression: Compression,
    pub file_size: u64,
}

/// The paths of a push, each with how far it has come.
pub struct Plan {
    items: Vec<Item>,
    /// What is stored, and refers to nothing that is not published or on its way.
    ready: VecDeque<Index>,
}

struct Item {
    info: PathInfo,
    /// Those that refer to this one.
    referrers: Vec<Index>,
    /// How many of its references are neither published nor in the call that it is in.
    waits_for: usize,
    state: State,
}

impl Item {
    fn is_open(&self) -> bool {
        matches!(self.state, State::Absent | State::Stored(_))
    }

    /// What its narinfo takes within JSON, at most: a name of 245 bytes in each line that has one, 255 and 88 bytes of
    /// each signature, and its references as long as they are.
    fn narinfo_size_max(&self) -> usize {
        let PathInfo { claim, signatures, .. } = &self.info;
        let references: usize = claim.references.iter().map(|path| path.base_name().len() + 1).sum();
        1_500 + references + signatures.len() * 360
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Absent,
    Stored(Stored),
    Published,
    Failed,
}

impl Plan {
    /// A plan for these paths; what they refer to beyond them is taken to be there.
    pub fn new(infos: Vec<PathInfo>) -> Self {
        let places: BTreeMap<StorePath, Index> =
            infos.iter().enumerate().map(|(index, info)| (info.claim.path.clone(), index)).collect();
        let mut items: Vec<Item> = infos
            .into_iter()
            .map(|info| Item { info, referrers: Vec::new(), waits_for: 0, state: State::Absent })
            .collect();
        for index in 0..items.len() {
            let references = &items[index].info.claim.references;
            let inner: Vec<Index> = references
                .iter()
                .filter_map(|path| places.get(path).copied())
                .filter(|&at| at != index)
                .collect();
            items[index].waits_for = inner.len();
            for reference in inner {
                items[reference].referrers.push(index);
            }
        }
        Self { items, ready: VecDeque::new() }
    }

    /// How many paths there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// What the store says of a path.
    pub fn info(&self, index: Index) -> &PathInfo {
        &self.items[index].info
    }

    /// Bytes of the NARs that are to be made: each once, without those that were found stored.
    pub fn size_to_make(&self, found: &[(Index, Stored)]) -> u64 {
        let found: BTreeSet<Index> = found.iter().map(|(index, _)| *index).collect();
        let first = |group: &Vec<Index>| group.first().copied().filter(|index| !found.contains(index));
        self.work().iter().filter_map(first).map(|index| self.info(index).claim.nar_size).sum()
    }

    /// The order in which NARs are made: very large ones at once, so that none is left alone at the end; then
    /// references first, so that what is stored is soon published. Paths with the same NAR stand together, the first
    /// of them is made for all.
    pub fn work(&self) -> VecDeque<Vec<Index>> {
        let mut order = self.references_first();
        let is_large = |index: &Index| self.info(*index).claim.nar_size >= LARGE_BYTES;
        order.sort_by_key(|index| !is_large(index));
        let mut seen: BTreeMap<NarHash, usize> = BTreeMap::new();
        let mut work: VecDeque<Vec<Index>> = VecDeque::new();
        for index in order {
            let place = *seen.entry(self.info(index).claim.nar_hash).or_insert(work.len());
            match work.get_mut(place) {
                Some(same) => same.push(index),
                None => work.push_back(vec![index]),
            }
        }
        work
    }

    fn references_first(&self) -> Vec<Index> {
        let mut waits: Vec<usize> = self.items.iter().map(|item| item.waits_for).collect();
        let mut order: Vec<Index> = (0..self.items.len()).filter(|&index| waits[index] == 0).collect();
        let mut next = 0;
        while let Some(&index) = order.get(next) {
            next += 1;
            for &referrer in &self.items[index].referrers {
                waits[referrer] -= 1;
                if waits[referrer] == 0 {
                    order.push(referrer);
                }
            }
        }
        // A store has no circles; if one had, its paths would be sent, and refused by the server.
        order.extend((0..self.items.len()).filter(|&index| waits[index] > 0));
        order
    }

    /// A path's file is in the storage.
    pub fn store(&mut self, index: Index, stored: Stored) {
        let item = &mut self.items[index];
        if item.state == State::Absent {
            item.state = State::Stored(stored);
            if item.waits_for == 0 {
                self.ready.push_back(index);
            }
        }
    }

    /// Takes paths that can be published by one call, in this order: at most `max`, and of at most `size_bytes_max`
    /// by [`Item::narinfo_size_max`], unless the first one alone is larger.
    pub fn take_ready(&mut self, max: usize, size_bytes_max: usize) -> Vec<(Index, Stored)> {
        let (mut taken, mut size) = (Vec::new(), 0);
        while taken.len() < max {
            let Some(&index) = self.ready.front() else { break };
            size += self.items[index].narinfo_size_max();
            if size > size_bytes_max && !taken.is_empty() {
                break;
            }
            self.ready.pop_front();
            let State::Stored(stored) = self.items[index].state else { continue };
            taken.push((index, stored));
            // Those that waited for this one alone may stand behind it in the same call.
            for referrer in self.items[index].referrers.clone() {
                let referrer_item = &mut self.items[referrer];
                referrer_item.waits_for -= 1;
                if referrer_item.waits_for == 0 && matches!(referrer_item.state, State::Stored(_)) {
                    self.ready.push_back(referrer);
                }
            }
        }
        taken
    }

    /// Whether a call that publishes has something to do.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// A path is published.
    pub fn publish(&mut self, index: Index) {
        self.items[index].state = State::Published;
    }

    /// A path cannot be published. Gives those that fail with it: what refers to it, directly or not.
    pub fn fail(&mut self, index: Index) -> Vec<Index> {
        let mut failed = vec![index];
        let mut next = 0;
        while let Some(&index) = failed.get(next) {
            next += 1;
            self.items[index].state = State::Failed;
            for &referrer in &self.items[index].referrers {
                if self.items[referrer].is_open() && !failed.contains(&referrer) {
                    failed.push(referrer);
                }
            }
        }
        failed.remove(0);
        failed
    }

    /// Whether a path is still to be stored.
    pub fn is_wanted(&self, index: Index) -> bool {
        self.items[index].state == State::Absent
    }

    /// Those that are neither published nor failed.
    pub fn open(&self) -> Vec<Index> {
        (0..self.items.len()).filter(|&index| self.items[index].is_open()).collect()
    }
}

/// From this size of its NAR a path is made before the others: about as long as a second of one processor.
const LARGE_BYTES: u64 = 256 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::claim::Claim;
    use crate::nix::hash::{FileHash, Sha256Digest};

    fn path(name: &str) -> StorePath {
        let hash = Sha256Digest::of(name.as_bytes()).base32();
        StorePath::from_base_name(&format!("{}-{name}", &hash[20..])).unwrap()
    }

    fn info(name: &str, nar: &str, nar_size: u64, references: &[&str]) -> PathInfo {
        let references: BTreeSet<StorePath> = references.iter().map(|name| path(name)).collect();
        let nar_hash = NarHash(Sha256Digest::of(nar.as_bytes()));
        let claim = Claim { path: path(name), nar_hash, nar_size, references };
        PathInfo { claim, deriver: None, ca: None, signatures: Vec::new() }
    }

    /// Paths of little content, by name and references.
    fn plan(paths: &[(&str, &[&str])]) -> Plan {
        Plan::new(paths.iter().map(|(name, references)| info(name, name, 100, references)).collect())
    }

    fn stored() -> Stored {
        let (hash, compression) = (FileHash(Sha256Digest([0; 32])), Compression::Zstd);
        Stored { file: NarFileName { hash, extension: compression.extension() }, compression, file_size: 1 }
    }

    fn taken(plan: &mut Plan, max: usize) -> Vec<Index> {
        plan.take_ready(max, usize::MAX).into_iter().map(|(index, _)| index).collect()
    }

    #[test]
    fn a_path_waits_for_what_it_refers_to() {
        let mut plan = plan(&[
            ("top", &["left", "right", "top"]),
            ("left", &["base"]),
            ("right", &["base"]),
            ("base", &[]),
        ]);

        plan.store(0, stored());
        plan.store(1, stored());
        assert!(!plan.has_ready());

        plan.store(3, stored());
        assert_eq!(taken(&mut plan, 10), [3, 1], "what refers to a path may stand behind it");
        plan.store(2, stored());
        assert_eq!(taken(&mut plan, 10), [2, 0]);
        for index in [3, 1, 2, 0] {
            plan.publish(index);
        }
        assert_eq!(plan.open(), [0; 0]);
    }

    #[test]
    fn a_call_takes_no_more_than_it_may() {
        let mut plan = plan(&[("c", &["b"]), ("b", &["a"]), ("a", &[])]);
        for index in 0..3 {
            plan.store(index, stored());
        }

        assert_eq!(taken(&mut plan, 2), [2, 1]);
        assert_eq!(taken(&mut plan, 2), [0]);
    }

    #[test]
    fn a_call_is_no_larger_than_it_may_be() {
        let mut plan = plan(&[("c", &[]), ("b", &[]), ("a", &[])]);
        for index in 0..3 {
            plan.store(index, stored());
        }

        assert_eq!(plan.take_ready(10, 3_500).len(), 2);
        assert_eq!(plan.take_ready(10, 1).len(), 1, "even the smallest call carries one");
        assert_eq!(plan.take_ready(10, 1).len(), 0);
    }

    #[test]
    fn what_refers_to_a_failed_path_fails_with_it_and_nothing_else() {
        let mut plan =
            plan(&[("top", &["left", "right"]), ("left", &["base"]), ("right", &[]), ("base", &[])]);
        plan.store(1, stored());

        let mut with_it = plan.fail(3);
        with_it.sort_unstable();

        assert_eq!(with_it, [0, 1]);
        assert!(!plan.is_wanted(0) && plan.is_wanted(2));
        plan.store(2, stored());
        plan.store(0, stored());
        assert_eq!(taken(&mut plan, 10), [2]);
        plan.publish(2);
        assert_eq!(plan.open(), [0; 0]);
        assert_eq!(plan.fail(1), [0; 0], "each fails once");
    }

    #[test]
    fn work_begins_with_the_large_and_goes_on_with_references_first() {
        let large = LARGE_BYTES;
        let plan = Plan::new(vec![
            info("a-top", "a-top", 100, &["base", "large"]),
            info("base", "base", 100, &[]),
            info("large", "large", large, &["base"]),
        ]);

        assert_eq!(plan.work(), [vec![2], vec![1], vec![0]]);
        assert_eq!(plan.size_to_make(&[]), large + 200);
        assert_eq!(plan.size_to_make(&[(2, stored())]), 200);
    }

    #[test]
    fn the_same_nar_is_made_once() {
        let plan = Plan::new(vec![info("a", "x", 1, &[]), info("b", "y", 1, &[]), info("c", "x", 1, &["a"])]);

        assert_eq!(plan.work(), [vec![0, 2], vec![1]]);
        assert_eq!(plan.size_to_make(&[]), 2);
    }

    #[test]
    fn a_circle_is_worked_on_and_never_ready() {
        let mut plan = plan(&[("a", &["b"]), ("b", &["a"])]);

        assert_eq!(plan.work().len(), 2);
        plan.store(0, stored());
        plan.store(1, stored());
        assert!(!plan.has_ready());
        assert_eq!(plan.open(), [0, 1]);
    }
}
