//! Pushing what waits in the queue, round by round.
//!
//! Never gives up because of the server: what could not be pushed stays and is tried again, ever more seldom. A path
//! that is refused by itself does not keep others waiting.

use std::collections::HashMap;

use super::WatchError;
use super::local_nix::LocalNix;
use crate::client::ErrorKind;
use crate::nix::store_path::StorePath;
use crate::queue::{Entry, Queue};
use crate::time::{Clock, Timestamp};

/// What a round is made with.
pub struct Drain<'a> {
    pub queue: &'a Queue,
    pub nix: &'a LocalNix,
    pub clock: &'a Clock,
    /// Only what waits for this cache.
    pub cache: Option<&'a str>,
}

/// Why a push failed.
#[derive(Debug, Clone)]
pub struct Fault {
    pub kind: ErrorKind,
    pub whose: Whose,
    /// What is wrong, and with which thing.
    pub text: String,
    pub hint: Option<String>,
}

/// Whose fault it is, as far as the push could tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Other paths may fare better.
    Path,
    /// Another path would have fared the same: nobody answers, the token is bad, the vault is sealed.
    Cache,
}

/// Those of the paths that were to be pushed that were not, while the others were; each with its reason.
pub type Failed = HashMap<StorePath, Fault>;

/// What became of a round.
#[derive(Debug, Default)]
pub struct Round {
    /// The cache that it was for; `None` if nothing was to be done.
    pub cache: Option<String>,
    /// Paths that are in the cache now, without those of their closures.
    pub pushed: Vec<StorePath>,
    /// Paths that will not be pushed, and why.
    pub dropped: Vec<(StorePath, &'static str)>,
    /// What went wrong; the paths are still in the queue.
    pub faults: Vec<Fault>,
}

impl Drain<'_> {
    /// Pushes what is due of one cache, at most a thousand paths. Called again until it has nothing to do.
    ///
    /// `push` takes a cache and valid paths, and pushes them with their closures.
    pub async fn round(
        &self,
        push: &impl AsyncFn(&str, &[StorePath]) -> Result<Failed, Fault>,
    ) -> Result<Round, WatchError> {
        let due = self.queue.due(self.cache, self.clock.now(), PATHS_PER_ROUND).await?;
        let Some(cache) = due.first().map(|entry| entry.cache.clone()) else { return Ok(Round::default()) };
        let mut round = Round { cache: Some(cache.clone()), ..Round::default() };
        let asked: Vec<&StorePath> = due.iter().map(|entry| &entry.path).collect();
        let invalid = self.nix.invalid(&asked).await?;
        let valid = self.drop_where(due, |entry| invalid.contains(&entry.path), GONE, &mut round).await?;
        if valid.is_empty() {
            return Ok(round);
        }
        let paths: Vec<StorePath> = valid.iter().map(|entry| entry.path.clone()).collect();
        match push(&cache, &paths).await {
            Ok(failed) => self.settle(valid, failed, &mut round).await?,
            Err(fault) if fault.whose == Whose::Cache => self.cache_failed(&valid, fault, &mut round).await?,
            Err(fault) if valid.len() == 1 => self.path_failed(&valid[0], fault, &mut round).await?,
            Err(_) => self.one_by_one(&valid, push, &mut round).await?,
        }
        Ok(round)
    }

    /// One of them may be at fault, and the others must not wait for it.
    async fn one_by_one(
        &self,
        entries: &[Entry],
        push: &impl AsyncFn(&str, &[StorePath]) -> Result<Failed, Fault>,
        round: &mut Round,
    ) -> Result<(), WatchError> {
        let mut same: Vec<String> = Vec::new();
        for (at, entry) in entries.iter().enumerate() {
            match push(&entry.cache, std::slice::from_ref(&entry.path)).await {
                Ok(failed) => self.settle(vec![entry.clone()], failed, round).await?,
                Err(fault) if fault.whose == Whose::Cache => {
                    return self.cache_failed(&entries[at..], fault, round).await;
                }
                Err(fault) => {
                    same.retain(|text| *text == fault.text);
                    same.push(fault.text.clone());
                    if same.len() == SAME_FAULTS_MAX {
                        return self.cache_failed(&entries[at..], fault, round).await;
                    }
                    self.path_failed(entry, fault, round).await?;
                }
            }
        }
        Ok(())
    }

    /// A push came to its end: what did not fail is in the cache.
    async fn settle(
        &self,
        entries: Vec<Entry>,
        mut failed: Failed,
        round: &mut Round,
    ) -> Result<(), WatchError> {
        let (bad, good): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|entry| failed.contains_key(&entry.path));
        self.queue.pushed(&good).await?;
        round.pushed.extend(good.into_iter().map(|entry| entry.path));
        for entry in bad {
            if let Some(fault) = failed.remove(&entry.path) {
                self.path_failed(&entry, fault, round).await?;
            }
        }
        Ok(())
    }

    async fn cache_failed(&self, tried: &[Entry], fault: Fault, round: &mut Round) -> Result<(), WatchError> {
        let attempts = tried.iter().map(|entry| entry.attempts).max().unwrap_or_default();
        let due_at = later(self.clock.now(), attempts, SERVER_WAIT_SECONDS_MAX);
        self.queue.postpone_cache(&tried[0].cache, tried, &fault.text, due_at).await?;
        round.faults.push(fault);
        Ok(())
    }

    async fn path_failed(&self, entry: &Entry, fault: Fault, round: &mut Round) -> Result<(), WatchError> {
        let now = self.clock.now();
        let given_up = entry.added_at.plus_seconds(REFUSED_DAYS * 24 * 60 * 60) <= now;
        if given_up {
            let why = format!("given up after {REFUSED_DAYS} days: {}", fault.text);
            self.queue.dropped(std::slice::from_ref(entry), &why, now).await?;
            round.dropped.push((entry.path.clone(), GIVEN_UP));
        } else {
            let due_at = later(now, entry.attempts, PATH_WAIT_SECONDS_MAX);
            self.queue.postpone(entry, &fault.text, due_at).await?;
        }
        round.faults.push(fault);
        Ok(())
    }

    /// Takes out of the queue what can never be pushed, and gives back the rest.
    async fn drop_where(
        &self,
        entries: Vec<Entry>,
        is_lost: impl Fn(&Entry) -> bool,
        why: &'static str,
        round: &mut Round,
    ) -> Result<Vec<Entry>, WatchError> {
        let (lost, kept): (Vec<_>, Vec<_>) = entries.into_iter().partition(is_lost);
        if !lost.is_empty() {
            self.queue.dropped(&lost, why, self.clock.now()).await?;
            round.dropped.extend(lost.into_iter().map(|entry| (entry.path, why)));
        }
        Ok(kept)
    }
}

/// When to try again what was tried in vain `attempts` times before: after 5 s, 10 s, 20 s, and so on.
fn later(now: Timestamp, attempts: u32, seconds_max: i64) -> Timestamp {
    let seconds = 5_i64.saturating_mul(1 << attempts.min(20));
    now.plus_seconds(seconds.min(seconds_max))
}

/// Paths of one round: bounds the memory, and what a fault in the middle makes to be asked again.
const PATHS_PER_ROUND: usize = 1_000;

/// Longest wait for a server: one call a minute does no harm, and when it is back nobody wants to wait longer.
const SERVER_WAIT_SECONDS_MAX: i64 = 60;

/// Longest wait for a path that is refused by itself, which mends seldom and by somebody's hand.
const PATH_WAIT_SECONDS_MAX: i64 = 60 * 60;

/// So many paths one after the other with the same words: it is not the paths, whose names differ.
const SAME_FAULTS_MAX: usize = 3;

/// How long a path that is refused by itself is tried: a week has a working day in it.
const REFUSED_DAYS: i64 = 7;

const GONE: &str = "not valid any more: collected as garbage, or never built";
const GIVEN_UP: &str = "given up";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_become_seldom_but_never_end() {
        let waits = [0, 1, 2, 3, 4, 31, u32::MAX].map(|attempts| later(Timestamp(0), attempts, 60).0 / 1000);

        assert_eq!(waits, [5, 10, 20, 40, 60, 60, 60]);
        assert_eq!(later(Timestamp(0), 9, PATH_WAIT_SECONDS_MAX).0 / 1000, 2560);
    }
}
