//! In which order narinfos that wait come to storage: those that a path refers to before its own.

use std::collections::HashMap;

use crate::nix::store_path::StorePathHash;

/// Paths whose narinfos wait, in an order in which each comes after those that it refers to.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// The paths of a level refer to those of earlier levels alone, and to those that they are together with.
    pub levels: Vec<Vec<StorePathHash>>,
    /// Of paths that refer to each other, the number that they have in common; of others, none.
    together: HashMap<StorePathHash, usize>,
}

impl Order {
    /// Of `paths`, and of all that are named in `references`: the first of a pair refers to the second.
    pub fn of(
        paths: impl IntoIterator<Item = StorePathHash>,
        references: &[(StorePathHash, StorePathHash)],
    ) -> Self {
        let mut numbers = HashMap::new();
        let mut hashes = Vec::new();
        for hash in paths.into_iter().chain(references.iter().flat_map(|&(from, to)| [from, to])) {
            numbers.entry(hash).or_insert_with(|| {
                hashes.push(hash);
                hashes.len() - 1
            });
        }
        let mut graph = vec![Vec::new(); hashes.len()];
        for (from, to) in references {
            graph[numbers[from]].push(numbers[to]);
        }
        let (mut order, mut level_of) = (Self::default(), vec![0; hashes.len()]);
        for (number, members) in components(&graph).into_iter().enumerate() {
            // Those that are in no level yet are members themselves.
            let others = members.iter().flat_map(|&member| &graph[member]);
            let level = others.map(|&other| level_of[other]).max().unwrap_or(0);
            if order.levels.len() == level {
                order.levels.push(Vec::new());
            }
            order.levels[level].extend(members.iter().map(|&member| hashes[member]));
            for &member in &members {
                level_of[member] = level + 1;
                if members.len() > 1 {
                    order.together.insert(hashes[member], number);
                }
            }
        }
        order
    }

    /// Whether two paths refer to each other, be it by way of others. Paths come to do so where one was deleted and
    /// pushed anew with other references.
    pub fn are_together(&self, one: StorePathHash, other: StorePathHash) -> bool {
        self.together.get(&one).is_some_and(|number| self.together.get(&other) == Some(number))
    }
}

/// The strongly connected components of a graph, each after those that its members lead to: Kosaraju's algorithm. It
/// does not recur, for a chain of references is as long as its pusher likes.
fn components(graph: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let (mut ended, mut seen) = (Vec::with_capacity(graph.len()), vec![false; graph.len()]);
    for root in 0..graph.len() {
        let mut way = vec![(root, graph[root].iter())];
        if std::mem::replace(&mut seen[root], true) {
            continue;
        }
        while let Some((node, next)) = way.last_mut() {
            match next.find(|&&to| !std::mem::replace(&mut seen[to], true)) {
                Some(&to) => way.push((to, graph[to].iter())),
                None => {
                    ended.push(*node);
                    way.pop();
                }
            }
        }
    }
    let mut leading_to = vec![Vec::new(); graph.len()];
    for (from, all) in graph.iter().enumerate() {
        for &to in all {
            leading_to[to].push(from);
        }
    }
    let (mut found, mut left) = (Vec::new(), vec![true; graph.len()]);
    while let Some(last) = ended.pop() {
        let (mut members, mut next) = (Vec::new(), vec![last]);
        while let Some(node) = next.pop() {
            if std::mem::take(&mut left[node]) {
                members.push(node);
                next.extend(&leading_to[node]);
            }
        }
        if !members.is_empty() {
            found.push(members);
        }
    }
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn hash(number: usize) -> StorePathHash {
        format!("{number:032}").parse().unwrap()
    }

    fn order(paths: usize, references: &[(usize, usize)]) -> Order {
        let references: Vec<_> = references.iter().map(|&(from, to)| (hash(from), hash(to))).collect();
        Order::of((0..paths).map(hash), &references)
    }

    fn levels(paths: usize, references: &[(usize, usize)]) -> Vec<HashSet<StorePathHash>> {
        order(paths, references).levels.into_iter().map(|level| level.into_iter().collect()).collect()
    }

    fn set(numbers: &[usize]) -> HashSet<StorePathHash> {
        numbers.iter().map(|&number| hash(number)).collect()
    }

    #[test]
    fn what_refers_to_nothing_comes_first() {
        assert_eq!(levels(3, &[]), [set(&[0, 1, 2])]);
        assert_eq!(levels(4, &[(0, 1), (1, 2), (0, 2)]), [set(&[2, 3]), set(&[1]), set(&[0])]);
        assert!(levels(0, &[]).is_empty());
    }

    #[test]
    fn paths_that_refer_to_each_other_come_together() {
        let references = [(0, 1), (1, 2), (2, 0), (2, 3), (4, 0)];
        assert_eq!(levels(5, &references), [set(&[3]), set(&[0, 1, 2]), set(&[4])]);
        let order = order(5, &references);
        assert!(order.are_together(hash(0), hash(2)));
        assert!(!order.are_together(hash(0), hash(3)));
        assert!(!order.are_together(hash(3), hash(4)), "neither refers to the other");
    }

    #[test]
    fn a_chain_may_be_long() {
        let references: Vec<_> = (0..99_999).map(|number| (number, number + 1)).collect();
        assert_eq!(levels(100_000, &references).len(), 100_000);
    }

    proptest! {
        #[test]
        fn each_comes_once_and_after_all_that_it_refers_to(
            references in proptest::collection::vec((0_usize..12, 0_usize..12), 0..40),
        ) {
            let order = order(12, &references);
            let mut reaches: HashSet<_> = references.iter().copied().collect();
            for over in 0..12 {
                for from in 0..12 {
                    for to in 0..12 {
                        if reaches.contains(&(from, over)) && reaches.contains(&(over, to)) {
                            reaches.insert((from, to));
                        }
                    }
                }
            }
            let level = |number| order.levels.iter().position(|level| level.contains(&hash(number))).unwrap();
            prop_assert_eq!(order.levels.iter().map(Vec::len).sum::<usize>(), 12);
            for &(from, to) in references.iter().filter(|(from, to)| from != to) {
                let mutual = reaches.contains(&(to, from));
                prop_assert_eq!(order.are_together(hash(from), hash(to)), mutual);
                let expected = if mutual { Ordering::Equal } else { Ordering::Greater };
                prop_assert_eq!(level(from).cmp(&level(to)), expected);
            }
        }
    }
}
