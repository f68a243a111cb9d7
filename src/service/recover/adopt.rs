//! Paths that were signed since the backup: their narinfos lie in storage, and leaves account for their signatures.
//!
//! A narinfo is believed where a lost leaf has exactly one of its signatures, and after its NAR was measured once more:
//! nothing else of it is under a signature.

use std::collections::HashSet;

use futures_util::{StreamExt as _, TryStreamExt as _};

use super::{Said, SignedLeaf};
use crate::access::{ContributorId, TokenId};
use crate::db::caches::{self, CacheRow};
use crate::db::evidence::{self, NewEvidence, Source};
use crate::db::measured::{self, Arrival, Measured};
use crate::db::paths::{self, MadeSignature, NewPath, PathFilter, PathRow, PathState};
use crate::db::withdrawals::{self, Fate};
use crate::db::{Gate, PageBounds, Tx, log, restarting};
use crate::nix::narinfo::NarInfo;
use crate::nix::store_path::{StorePath, StorePathHash};
use crate::service::ingest::{self, Pace};
use crate::service::publish::Verified;
use crate::service::release::Release;
use crate::service::{Error, Result, Service, takedown};
use crate::storage::{CacheObject, Folder, ObjectKey};
use crate::time::Timestamp;

impl Service {
    /// Looks through the narinfos in storage for what the lost leaves signed.
    pub(super) async fn adopt_signed(&self, said: &mut Said) -> Result<()> {
        let mut after = None;
        loop {
            let page = PageBounds { after, limit: PAGE, descending: false };
            let page = caches::list(&mut *self.inner.db.read().await?, &page).await?;
            for cache in &page {
                self.adopt_in(cache, said).await?;
            }
            match page.last() {
                Some(last) => after = Some(last.id.to_string()),
                None => return Ok(()),
            }
        }
    }

    async fn adopt_in(&self, cache: &CacheRow, said: &mut Said) -> Result<()> {
        let prefix = cache.prefix.parse().map_err(|error| Error::Internal(Box::new(error)))?;
        let entries = self.inner.storage.list(&Folder::Cache(prefix));
        let mut hashes = entries.try_filter_map(|entry| {
            let narinfo = match entry.key() {
                Some(ObjectKey::Cache(prefix, CacheObject::Narinfo(hash)))
                    if prefix.as_str() == cache.prefix =>
                {
                    Some(hash)
                }
                _ => None,
            };
            std::future::ready(Ok(narinfo))
        });
        let mut in_storage = HashSet::new();
        while let Some(hash) = hashes.try_next().await? {
            in_storage.insert(hash);
        }
        for hash in &in_storage {
            let row = paths::find(&mut *self.inner.db.read().await?, cache.id, *hash).await?;
            self.adopt(cache, *hash, row, said).await?;
        }
        if !cache.public && said.hidden_withdrawals > 0 {
            self.withdraw_absent(cache, &in_storage, said).await?;
        }
        Ok(())
    }

    /// Takes in what lies in storage under this hash, if the lost leaves account for it.
    async fn adopt(
        &self,
        cache: &CacheRow,
        hash: StorePathHash,
        row: Option<PathRow>,
        said: &mut Said,
    ) -> Result<()> {
        let key = super::super::key_of(cache, CacheObject::Narinfo(hash))?;
        let max = usize::try_from(self.inner.limits.narinfo_size_bytes_max).unwrap_or(usize::MAX);
        let Some(text) = self.inner.storage.read(&key, max).await? else { return Ok(()) };
        let Ok(narinfo) = NarInfo::parse(&text) else { return Ok(()) };
        if narinfo.claim.path.hash() != hash {
            return Ok(());
        }
        if said.gone.contains(&(cache.name.to_string(), narinfo.claim.path.to_string())) {
            // Its deletion from storage was still to come when the database was lost.
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            Release::by_worker(cache, now).object(&mut tx, CacheObject::Narinfo(hash)).await?;
            return Ok(tx.commit().await?);
        }
        let of_leaves = narinfo.signatures.iter().filter_map(|signature| {
            let leaf = said.signatures.get(&(signature.name.to_string(), signature.bytes))?;
            Some((signature.clone(), leaf.clone()))
        });
        let of_leaves: Vec<_> = of_leaves.collect();
        let Some((_, first)) = of_leaves.first() else { return Ok(()) };
        let path = narinfo.claim.path.clone();
        if !cache.public && said.hidden_withdrawals > 0 && row.is_none() {
            said.recovery.lost.push(format!(
                "{path} of {} was signed since the backup, and may have been withdrawn; push it again",
                cache.name
            ));
            return Ok(());
        }
        let measured = match &row {
            Some(row) if row.state == PathState::Published && row.claim == narinfo.claim => None,
            _ => match self.measure_again(cache, &narinfo, first).await? {
                Some(measured) => Some(measured),
                None => {
                    said.recovery
                        .lost
                        .push(format!("the NAR of {path} is missing or damaged; push it again"));
                    return Ok(());
                }
            },
        };
        let made: Vec<_> =
            of_leaves.iter().map(|(signature, leaf)| (signature.clone(), leaf.index)).collect();
        let adopted = restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            let standing = match (&row, &measured) {
                (Some(row), None) => Some((row.id.clone(), row.claim_id.clone())),
                (row, Some(measured)) => {
                    self.adopt_row(&mut tx, cache, row.as_ref(), &narinfo, measured, first, now).await?
                }
                (None, None) => None,
            };
            let Some((path_id, claim_id)) = standing else { return Ok(false) };
            let made = made.iter().map(|(signature, leaf)| MadeSignature {
                claim_id: claim_id.clone(),
                signature: signature.clone(),
                leaf: *leaf,
            });
            paths::put_signatures(&mut tx, &made.collect::<Vec<_>>()).await?;
            for (_, leaf) in &of_leaves {
                log::name_path(&mut tx, leaf.index, &path_id).await?;
            }
            Release::by_worker(cache, now).object(&mut tx, CacheObject::Narinfo(hash)).await?;
            tx.commit().await?;
            Ok::<_, Error>(measured.is_some())
        })
        .await?;
        said.recovery.paths_adopted += u64::from(adopted);
        Ok(())
    }

    /// Measures the NAR that a narinfo names, and writes that down. `None`: it is not there, or another one.
    async fn measure_again(
        &self,
        cache: &CacheRow,
        narinfo: &NarInfo,
        leaf: &SignedLeaf,
    ) -> Result<Option<Measured>> {
        let key = super::super::key_of(cache, CacheObject::Nar(narinfo.file))?;
        let Some(object) = self.inner.storage.get(&key, None).await? else { return Ok(None) };
        let body = object.body.map(|piece| piece.map_err(Error::from));
        let measurement = match self.stream_through(None, narinfo.file, body, Pace::new(0)).await {
            Ok((_, measurement)) => measurement,
            Err(Error::Rejected(_) | Error::TooLarge { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let now = self.inner.clock.now();
        let token = token_of(leaf, now);
        let found_refs = ingest::found_refs(&measurement);
        let new = ingest::new_measured(self.new_id(now), narinfo.file, &measurement, &found_refs);
        let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
        let Arrival::Generations(generations) =
            measured::arrive(&mut tx, cache.id, &[new], token, now).await?
        else {
            return Ok(None);
        };
        let files: Vec<_> = generations.into_iter().map(|generation| (narinfo.file, generation)).collect();
        measured::store(&mut tx, cache.id, &files, token, now).await?;
        let row = measured::find(&mut tx, cache.id, &narinfo.file).await?;
        tx.commit().await?;
        Ok(row)
    }

    /// The rows of an adopted path: its id and its claim's. `None`: the narinfo is not what was measured.
    #[expect(clippy::too_many_arguments, reason = "the parts of one path")]
    async fn adopt_row(
        &self,
        tx: &mut Tx,
        cache: &CacheRow,
        row: Option<&PathRow>,
        narinfo: &NarInfo,
        measured: &Measured,
        leaf: &SignedLeaf,
        now: Timestamp,
    ) -> Result<Option<(String, String)>> {
        let Ok(verified) = Verified::check(narinfo.clone(), measured.clone()) else { return Ok(None) };
        let claim_id = self.new_id(now);
        let path_id = row.map_or_else(|| self.new_id(now), |row| row.id.clone());
        if row.is_none() {
            let new =
                NewPath { id: path_id.clone(), hash: narinfo.claim.path.hash(), claim_id: claim_id.clone() };
            if !paths::insert(tx, cache.id, &[new], now).await? {
                return Ok(None);
            }
        }
        let new = verified.new_claim(claim_id, path_id.clone(), "", now);
        let ids = paths::insert_claims(tx, &[new]).await?;
        let Some(claim_id) = ids.into_iter().next() else { return Ok(None) };
        match row {
            Some(row) if row.state == PathState::Published => return Ok(None),
            Some(row) => {
                withdrawals::end_of_paths(tx, [&row.id], Fate::Republished, now).await?;
                paths::republish(tx, &row.id, &claim_id, now).await?;
            }
            None => {}
        }
        if let Some(contributor) = leaf.by.as_deref().and_then(|by| by.parse::<ContributorId>().ok()) {
            let source = Source::Contributor(contributor);
            let id = self.new_id(now);
            let new = NewEvidence { id, claim_id: claim_id.clone(), source, token: token_of(leaf, now) };
            evidence::insert_all(tx, &[new], now).await?;
        }
        Ok(Some((path_id, claim_id)))
    }

    /// Withdraws what a private cache's rows say is published, and storage does not have: the leaves of a private cache
    /// do not name what was withdrawn.
    async fn withdraw_absent(
        &self,
        cache: &CacheRow,
        in_storage: &HashSet<StorePathHash>,
        said: &mut Said,
    ) -> Result<()> {
        let mut after = None;
        loop {
            let filter = PathFilter { state: Some(PathState::Published), ..PathFilter::default() };
            let page = PageBounds { after: after.take(), limit: PAGE, descending: false };
            let rows = paths::list(&mut *self.inner.db.read().await?, cache.id, &filter, &page).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some(last.id.clone());
            let absent = rows.iter().filter(|row| {
                let path = StorePath::from_base_name(&row.store_path);
                path.is_ok_and(|path| !in_storage.contains(&path.hash()))
            });
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            let mut hashes = Vec::new();
            for row in absent {
                let (from, to) = (PathState::Published, PathState::Withdrawn);
                if paths::change_state(&mut tx, &row.id, from, to, now).await? {
                    hashes.extend(StorePath::from_base_name(&row.store_path).map(|path| path.hash()));
                    said.recovery.paths_withdrawn += 1;
                }
            }
            let gone = paths::find_all(&mut tx, cache.id, hashes).await?;
            takedown::hide(&mut tx, cache, &gone.iter().collect::<Vec<_>>(), now).await?;
            for path in &gone {
                self.hold_path(&mut tx, said, cache, path, None, now).await?;
            }
            tx.commit().await?;
        }
    }
}

/// The token that the leaf names; one that never was, where it names none.
fn token_of(leaf: &SignedLeaf, now: Timestamp) -> TokenId {
    let named = leaf.token.as_deref().and_then(|token| token.parse().ok());
    named.unwrap_or_else(|| TokenId::new(now, [0; 10]))
}

/// Rows that are read, and changed, at once.
const PAGE: i64 = 200;
