//! Large files in parts: a session in database and storage, none of it in memory, so that any replica goes on with it.
//!
//! A file in parts is as good as one that came in one piece: it is read back whole through the same verifier, and
//! nothing of it is visible before the verdict. Never believes a part's hash for more than that the part came whole.

mod complete;
mod parts;

use uuid::Uuid;

use super::{Call, Conflict, Error, Rejection, Result, Service};
use crate::access::{Action, CacheName, TokenCaller};
use crate::db::caches::CacheRow;
use crate::db::uploads::{self, PartRow, UploadKey, UploadRow};
use crate::db::{Gate, restarting};
use crate::nix::compression::{Compression, NarFileName};
use crate::nix::hash::{NarHash, Sha256Digest};
use crate::storage::{Stage, StagedPart};
use crate::time::Timestamp;
use crate::vault::random;

/// An upload in parts that is not complete.
#[derive(Debug, Clone)]
pub struct UploadDetails {
    pub id: Uuid,
    pub part_size_bytes: u64,
    pub expires_at: Timestamp,
    pub parts: Vec<PartRow>,
    /// Whether parts may go straight to the bucket.
    pub direct: bool,
}

/// A part on its way in, as its sender describes it.
#[derive(Debug, Clone, Copy)]
pub struct NewPart {
    pub number: u32,
    pub sha256: Sha256Digest,
    /// If the client said so.
    pub stated_size: Option<u64>,
}

/// What an upload is said to make.
#[derive(Debug, Clone, Copy)]
pub struct WholeFile {
    pub file: NarFileName,
    pub size_bytes: u64,
    pub parts: u32,
}

impl Service {
    /// Opens an upload of this NAR, or finds the one that the same contributor left unfinished, whatever replica and
    /// token it began with. One that is found keeps its part size.
    pub async fn open_upload(
        &self,
        call: &Call,
        cache: &CacheName,
        (nar_hash, compression): (NarHash, Compression),
        part_size_bytes: Option<u64>,
    ) -> Result<UploadDetails> {
        let pusher = self.pusher(call, cache).await?;
        let cache = self.existing_cache(cache).await?;
        self.require_open()?;
        let part_size_bytes = part_size_bytes.unwrap_or(PART_SIZE_BYTES);
        if !(PART_SIZE_BYTES_MIN..=PART_SIZE_BYTES_MAX).contains(&part_size_bytes) {
            let why = format!("is not {PART_SIZE_BYTES_MIN} to {PART_SIZE_BYTES_MAX}");
            return Err(Rejection::value("part_size_bytes", why).into());
        }
        let key = UploadKey { cache: cache.id, contributor: pusher.contributor, nar_hash, compression };
        if let Some(found) = self.resume_upload(call, &cache, &key).await? {
            return Ok(found);
        }
        let stage = self.inner.storage.stage(Uuid::from_bytes(random::bytes())).await?;
        let made = restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Shared).await?;
            self.recheck(&mut tx, call, &Action::Push(cache.name.clone()), now).await?;
            self.recheck_cache(&mut tx, &cache).await?;
            if uploads::count(&mut tx, pusher.contributor).await? >= UNFINISHED_MAX {
                return Err(Conflict::State(TOO_MANY_UNFINISHED).into());
            }
            let row = UploadRow {
                id: stage.id,
                part_size_bytes,
                stage: stage.name.clone(),
                closed: false,
                expires_at: self.upload_end(now),
            };
            let made = uploads::insert(&mut tx, &key, &row, now).await?;
            tx.commit().await?;
            Ok::<_, Error>(made.then_some(row))
        })
        .await;
        if let Ok(Some(row)) = made {
            return self.details(row, Vec::new()).await;
        }
        self.remove_stage(&stage, &[]).await;
        made?;
        // Another call of the same contributor opened it in between.
        self.resume_upload(call, &cache, &key).await?.ok_or(Error::NotFound("upload"))
    }

    async fn resume_upload(
        &self,
        call: &Call,
        cache: &CacheRow,
        key: &UploadKey,
    ) -> Result<Option<UploadDetails>> {
        let found = restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Shared).await?;
            self.recheck(&mut tx, call, &Action::Push(cache.name.clone()), now).await?;
            let Some(row) = uploads::resume(&mut tx, key, self.upload_end(now)).await? else {
                return Ok(None);
            };
            let parts = uploads::parts(&mut tx, row.id).await?;
            tx.commit().await?;
            Ok::<_, Error>(Some((row, parts)))
        })
        .await?;
        match found {
            Some((row, parts)) => self.details(row, parts).await.map(Some),
            None => Ok(None),
        }
    }

    /// An upload of the caller's own.
    pub async fn show_upload(&self, call: &Call, cache: &CacheName, id: Uuid) -> Result<UploadDetails> {
        let pusher = self.pusher(call, cache).await?;
        let cache = self.existing_cache(cache).await?;
        let row = self.own_upload(&cache, &pusher, id).await?;
        let parts = uploads::parts(&mut *self.inner.db.read().await?, id).await?;
        self.details(row, parts).await
    }

    /// The upload with the parts that are there: of those that were to go straight to the bucket, which did.
    async fn details(&self, row: UploadRow, mut parts: Vec<PartRow>) -> Result<UploadDetails> {
        self.look_for_promised(&row, &mut parts).await?;
        Ok(UploadDetails {
            id: row.id,
            part_size_bytes: row.part_size_bytes,
            expires_at: row.expires_at,
            parts,
            direct: self.takes_direct_parts(),
        })
    }

    async fn own_upload(&self, cache: &CacheRow, pusher: &TokenCaller, id: Uuid) -> Result<UploadRow> {
        let mut connection = self.inner.db.read().await?;
        let row = uploads::find(&mut connection, cache.id, pusher.contributor, id).await?;
        row.ok_or(Error::NotFound("upload"))
    }

    /// Gives an upload of the caller's own up, with all that came of it.
    pub async fn abort_upload(&self, call: &Call, cache: &CacheName, id: Uuid) -> Result<()> {
        let pusher = self.pusher(call, cache).await?;
        let cache = self.existing_cache(cache).await?;
        let upload = self.own_upload(&cache, &pusher, id).await?;
        let parts = uploads::parts(&mut *self.inner.db.read().await?, id).await?;
        self.forget_upload(id).await?;
        self.remove_stage(&stage(&upload), &parts.into_iter().map(staged).collect::<Vec<_>>()).await;
        Ok(())
    }

    async fn forget_upload(&self, id: Uuid) -> Result<bool> {
        restarting(|| async {
            let mut tx = self.inner.db.begin(Gate::Shared).await?;
            let removed = uploads::remove(&mut tx, id).await?;
            tx.commit().await?;
            Ok(removed)
        })
        .await
    }

    /// Removes what storage keeps of an upload that has no row any more; what cannot be removed now, the sweeper finds.
    async fn remove_stage(&self, stage: &Stage, parts: &[StagedPart]) {
        if let Err(error) = self.inner.storage.remove_staged(stage, parts).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(upload = %stage.id, error, "parts of an upload stay for the sweeper");
        }
    }

    /// Forgets uploads whose time is over, with what storage keeps of them, and removes what storage has of none.
    pub(super) async fn sweep_uploads(&self, orphans_before: std::time::SystemTime) -> Result<u64> {
        let mut swept = 0;
        loop {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            let mut ended = Vec::new();
            for upload in uploads::expired(&mut tx, now, EXPIRED_AT_ONCE).await? {
                let parts = uploads::parts(&mut tx, upload.id).await?;
                uploads::remove(&mut tx, upload.id).await?;
                ended.push((stage(&upload), parts.into_iter().map(staged).collect::<Vec<_>>()));
            }
            tx.commit().await?;
            for (stage, parts) in &ended {
                self.remove_stage(stage, parts).await;
            }
            swept += ended.len() as u64;
            if ended.len() < EXPIRED_AT_ONCE as usize {
                break;
            }
        }
        let known = uploads::ids(&mut *self.inner.db.read().await?).await?.into_iter().collect();
        Ok(swept + self.inner.storage.sweep_staged(&known, orphans_before).await?)
    }

    /// Until when an upload is kept of which something came now.
    fn upload_end(&self, now: Timestamp) -> Timestamp {
        now.plus_millis(i64::try_from(self.inner.limits.upload_session.as_millis()).unwrap_or(i64::MAX / 4))
    }
}

fn stage(row: &UploadRow) -> Stage {
    Stage { id: row.id, name: row.stage.clone() }
}

fn staged(row: PartRow) -> StagedPart {
    StagedPart { number: row.number, size_bytes: row.size_bytes, sha256: row.sha256, tag: row.tag }
}

/// Size of a part unless told: below the limits of common proxies, 32 and 100 MB.
const PART_SIZE_BYTES: u64 = 16 * 1024 * 1024;

/// S3 takes no smaller parts but the last.
const PART_SIZE_BYTES_MIN: u64 = 5 * 1024 * 1024;

/// A part stands in memory whole while it comes in.
const PART_SIZE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Unfinished uploads of one contributor: far more than a machine sends at once.
const UNFINISHED_MAX: i64 = 256;

/// Uploads that end in one transaction of the sweeper.
const EXPIRED_AT_ONCE: i64 = 50;

const TOO_MANY_UNFINISHED: &str =
    "256 uploads of this contributor are unfinished; complete or delete some, or wait until they expire";
