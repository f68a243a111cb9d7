//! Listings, build logs and debug-info links: taken in, kept compressed in rows, shown with their path.
//!
//! Never visible before the path that they belong to is published by the same contributor; logs, which
//! belong to a derivation, are visible at once and stay the first one's.

use bytes::Bytes;

use super::release::Release;
use super::{Call, Error, Rejection, Result, Service};
use crate::access::CacheName;
use crate::db::auxiliary::{self, AuxiliaryKind, NewAuxiliary};
use crate::db::caches::CacheRow;
use crate::db::evidence::{self, Source};
use crate::db::paths::{self, PathState};
use crate::db::{Gate, Tx, measured, restarting};
use crate::nix::debuginfo::{DebugInfo, DebugInfoKey};
use crate::nix::listing::Listing;
use crate::nix::store_path::{StorePath, StorePathHash};
use crate::storage::CacheObject;

/// An auxiliary object, by what it belongs to.
#[derive(Debug, Clone)]
pub enum Auxiliary {
    Listing(StorePathHash),
    Log(StorePath),
    DebugInfo(DebugInfoKey),
}

impl Auxiliary {
    fn kind(&self) -> AuxiliaryKind {
        match self {
            Self::Listing(_) => AuxiliaryKind::Listing,
            Self::Log(_) => AuxiliaryKind::Log,
            Self::DebugInfo(_) => AuxiliaryKind::DebugInfo,
        }
    }

    /// The name in the row: what follows the folder in the object's name, without its ending.
    fn name(&self) -> String {
        match self {
            Self::Listing(hash) => hash.to_string(),
            Self::Log(derivation) => derivation.base_name().to_owned(),
            Self::DebugInfo(key) => key.to_string(),
        }
    }
}

impl Service {
    /// Takes in an auxiliary object for `cache`. `body` is decoded from its `Content-Encoding`.
    pub async fn put_auxiliary(
        &self,
        call: &Call,
        cache: &CacheName,
        object: Auxiliary,
        body: Vec<u8>,
    ) -> Result<()> {
        let pusher = self.pusher(call, cache).await?;
        let cache = self.existing_cache(cache).await?;
        self.require_open()?;
        let max = self.inner.limits.auxiliary_size_bytes_max;
        if body.len() as u64 > max {
            return Err(Error::TooLarge { what: "the object", max });
        }
        let checked = object.clone();
        let (subject, compressed) = blocking(move || {
            let (subject, body) = check_body(&checked, body)?;
            // Rows keep bodies small: listings and logs shrink tenfold.
            let compressed = zstd::encode_all(&body[..], COMPRESSION_LEVEL);
            Ok((subject, compressed.map_err(|error| Error::Internal(error.into()))?))
        })
        .await?;
        let object = &object;
        let released = restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Shared).await?;
            let signers = self.recheck_push(&mut tx, call, &cache, now).await?;
            let cache = &signers.cache;
            let kind = object.kind();
            let name = object.name();
            let standing = auxiliary::find(&mut tx, cache.id, kind, &name).await?;
            if standing.as_ref().is_some_and(|row| {
                row.visible
                    && (kind != AuxiliaryKind::Log || row.contributor_id != pusher.contributor.to_string())
            }) {
                // The first one stays. Nix is told that all is well: it would abort the whole push.
                return Ok::<_, Error>(Vec::new());
            }
            let visible = match object {
                Auxiliary::Log(_) => true,
                Auxiliary::Listing(hash) => self.is_published_by(&mut tx, cache, *hash, &pusher).await?,
                Auxiliary::DebugInfo(_) => {
                    let file = subject.parse().map_err(|_| Error::NotFound("NAR"))?;
                    if measured::find(&mut tx, cache.id, &file).await?.is_none() {
                        // Nix sends the link before the NAR it points to; it becomes visible with it.
                        tracing::debug!(%file, "debug-info link for a NAR that is still to come");
                    }
                    false
                }
            };
            let new = NewAuxiliary {
                id: self.new_id(now),
                cache: cache.id,
                kind,
                name: &name,
                subject: &subject,
                body: &compressed,
                contributor: pusher.contributor,
                token: pusher.token,
                now,
                visible,
            };
            if !auxiliary::put(&mut tx, &new).await? {
                return Ok(Vec::new());
            }
            let mut release = Release::new(self, cache, now);
            if visible {
                release.object(&mut tx, object_of(object)).await?;
            }
            let objects = release.objects;
            tx.commit().await?;
            Ok(objects)
        })
        .await?;
        self.release_soon(released).await;
        Ok(())
    }

    /// A visible auxiliary object.
    pub async fn auxiliary(&self, cache: &CacheRow, object: &Auxiliary) -> Result<Option<Bytes>> {
        let mut connection = self.inner.db.read().await?;
        let body = auxiliary::visible_body(&mut connection, cache.id, object.kind(), &object.name()).await?;
        drop(connection);
        match body {
            Some(body) => Ok(Some(decompressed(body).await?)),
            None => Ok(None),
        }
    }

    /// Whether the path is published and this contributor's push supports it.
    async fn is_published_by(
        &self,
        tx: &mut Tx,
        cache: &CacheRow,
        hash: StorePathHash,
        pusher: &crate::access::TokenCaller,
    ) -> Result<bool> {
        let path = paths::find(tx, cache.id, hash).await?;
        let Some(path) = path.filter(|path| path.state == PathState::Published) else { return Ok(false) };
        let source = Source::Contributor(pusher.contributor);
        Ok(evidence::exists(tx, &path.claim_id, &source, pusher.token).await?)
    }
}

/// Refuses what is not of its kind; answers with the subject that makes it visible, and the body to keep.
fn check_body(object: &Auxiliary, body: Vec<u8>) -> std::result::Result<(String, Vec<u8>), Rejection> {
    match object {
        Auxiliary::Listing(hash) => Ok((hash.to_string(), Listing::parse(body)?.into_bytes())),
        Auxiliary::Log(_) => {
            let is_text = std::str::from_utf8(&body).is_ok_and(|text| !text.contains('\0'));
            // Build logs may hold bytes of any encoding; only what no text has is refused.
            if is_text || !body.contains(&0) { Ok((String::new(), body)) } else { Err(Rejection::Log) }
        }
        Auxiliary::DebugInfo(key) => {
            let link = DebugInfo::parse(key.clone(), &body)?;
            Ok((link.archive.to_string(), link.to_json().into_bytes()))
        }
    }
}

fn object_of(object: &Auxiliary) -> CacheObject {
    match object {
        Auxiliary::Listing(hash) => CacheObject::Listing(*hash),
        Auxiliary::Log(derivation) => CacheObject::BuildLog(derivation.clone()),
        Auxiliary::DebugInfo(key) => CacheObject::DebugInfo(key.clone()),
    }
}

/// The object's name below the cache, from its row.
pub(super) fn object_named(kind: AuxiliaryKind, name: &str) -> Option<CacheObject> {
    match kind {
        AuxiliaryKind::Listing => Some(CacheObject::Listing(name.parse().ok()?)),
        AuxiliaryKind::Log => Some(CacheObject::BuildLog(StorePath::from_base_name(name).ok()?)),
        AuxiliaryKind::DebugInfo => Some(CacheObject::DebugInfo(name.parse().ok()?)),
    }
}

/// The body of a row. What stands there was written by [`Service::put_auxiliary`], so its size is bounded already.
pub(super) async fn decompressed(body: Vec<u8>) -> Result<Bytes> {
    blocking(move || {
        let plain = zstd::decode_all(&body[..]);
        Ok(Bytes::from(plain.map_err(|error| Error::Internal(error.into()))?))
    })
    .await
}

/// Bodies of 16 MiB take their time: not on the threads that answer others.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|panic| Error::Internal(panic.into()))?
}

const COMPRESSION_LEVEL: i32 = 3;
