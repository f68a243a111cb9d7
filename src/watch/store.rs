//! Watching a store: each path that becomes valid is queued once.
//!
//! Never looks at files: locks, temporary paths and what a build left behind are not valid, so Nix does not name
//! them.

use std::collections::HashSet;

use super::WatchError;
use super::local_nix::LocalNix;
use crate::nix::store_path::{StorePath, StorePathHash};
use crate::queue::Queue;
use crate::time::Timestamp;

/// A watch of one store for one cache.
pub struct StoreWatch<'a> {
    queue: &'a Queue,
    nix: &'a LocalNix,
    cache: String,
    /// What its state is kept under.
    name: String,
    /// 32 bytes for each valid path, derivations too.
    seen: HashSet<StorePathHash>,
}

impl<'a> StoreWatch<'a> {
    /// Goes on where an earlier watch of this store for this cache ended. One that never ran, or that is to begin
    /// anew, begins now: what is valid already is left alone.
    pub async fn begin(
        queue: &'a Queue,
        nix: &'a LocalNix,
        cache: &str,
        anew: bool,
        now: Timestamp,
    ) -> Result<Self, WatchError> {
        let name = format!("{cache} {}", nix.store());
        let seen = match queue.seen(&name).await? {
            Some(seen) if !anew => seen,
            _ => {
                let present = nix.all().await?.iter().map(StorePath::hash).collect();
                queue.begin_watch(&name, &present, now).await?;
                present
            }
        };
        Ok(Self { queue, nix, cache: cache.to_owned(), name, seen })
    }

    /// Asks Nix once what is valid, and queues what is new. Gives back how many paths that are.
    pub async fn sweep(&mut self, now: Timestamp) -> Result<usize, WatchError> {
        let valid = self.nix.all().await?;
        // A store that is not mounted has no paths. Were they forgotten, all would be new when it is.
        if valid.is_empty() {
            return Ok(0);
        }
        let new: Vec<&StorePath> = valid.iter().filter(|path| !self.seen.contains(&path.hash())).collect();
        let valid_hashes: HashSet<StorePathHash> = valid.iter().map(StorePath::hash).collect();
        let gone: Vec<StorePathHash> = self.seen.difference(&valid_hashes).copied().collect();
        if new.is_empty() && gone.is_empty() {
            return Ok(0);
        }
        let new_hashes: Vec<StorePathHash> = new.iter().map(|path| path.hash()).collect();
        let pushed: Vec<StorePath> = new.into_iter().filter(|path| !path.is_derivation()).cloned().collect();
        self.queue.observe(&self.name, &self.cache, &new_hashes, &pushed, &gone, now).await?;
        self.seen = valid_hashes;
        Ok(pushed.len())
    }
}
