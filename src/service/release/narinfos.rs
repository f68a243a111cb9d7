//! Narinfos as the rows say, each after those that it refers to.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::order::Order;
use super::{FreshNarInfo, named, unreadable};
use crate::access::CacheId;
use crate::db::Connection;
use crate::db::outbox::{self, Leased};
use crate::db::paths::{self, PathRow, PathState, SignatureRow};
use crate::nix::store_path::StorePathHash;
use crate::service::{Error, Result, Service};
use crate::storage::{CacheObject, ObjectKey};

impl Service {
    /// Writes narinfos of one cache, whose writes begin at once.
    pub(super) async fn release_narinfos(&self, leased: Vec<Leased>, order: &Order) -> Together {
        let rendered = self.render_narinfos(&leased, order).await;
        let (mut writing, mut puts, mut left) = (Vec::new(), Vec::new(), Vec::new());
        for (leased, rendered) in leased.into_iter().zip(rendered) {
            match rendered {
                Ok(Rendered::Write(key, body)) if self.lasts(&leased) => {
                    puts.push((key, body));
                    writing.push(leased);
                }
                _ => left.push(leased),
            }
        }
        let mut written = 0;
        for (leased, put) in writing.into_iter().zip(self.inner.storage.put_all(puts).await) {
            match put {
                Ok(()) => {
                    self.inner.finishing.add(leased);
                    written += 1;
                }
                Err(error) => self.give_back(&leased, &error.into()).await,
            }
        }
        Together { written, left }
    }

    /// Whether none of its references still waits.
    pub(super) async fn may_be_written(&self, leased: &Leased, fresh: &FreshNarInfo) -> Result<bool> {
        if fresh.references.is_empty() {
            return Ok(true);
        }
        let mut connection = self.inner.db.read().await?;
        let references = fresh.references.iter().copied();
        let waiting = outbox::waiting_narinfos(&mut connection, &leased.cache_id, references).await?;
        Ok(waiting.values().all(|object| self.inner.finishing.holds(object)))
    }

    /// Narinfos of one cache as the rows say now, each by its lease: what is to be done for it. Those that are together
    /// in `order` do not wait for each other.
    pub(super) async fn render_narinfos(&self, leased: &[Leased], order: &Order) -> Vec<Result<Rendered>> {
        let rows = async {
            let Some(first) = leased.first() else { return Ok(NarInfoRows::default()) };
            let (cache, _) = named(first)?;
            let hashes = leased.iter().filter_map(|leased| leased.subject.parse().ok()).collect();
            NarInfoRows::read(&mut *self.inner.db.read().await?, cache, &first.cache_id, hashes).await
        };
        let rows: NarInfoRows = match rows.await {
            Ok(rows) => rows,
            Err(error) => {
                let told = error.to_string();
                let first = std::iter::once(Err(error));
                let others = leased.iter().skip(1).map(|_| Err(Error::Internal(told.clone().into())));
                return first.chain(others).collect();
            }
        };
        leased.iter().map(|leased| self.render_narinfo(leased, &rows, order)).collect()
    }

    /// A narinfo as the rows say, unless it has to wait for those of its references.
    fn render_narinfo(&self, leased: &Leased, rows: &NarInfoRows, order: &Order) -> Result<Rendered> {
        let (_, key) = named(leased)?;
        let ObjectKey::Cache(_, CacheObject::Narinfo(hash)) = key else { return Err(unreadable(leased)) };
        let Some(path) = rows.published.get(&hash) else { return Ok(Rendered::Delete) };
        let mut others = path.claim.references.iter().map(|path| path.hash()).filter(|other| *other != hash);
        let waits = |other| {
            let object = rows.waiting.get(&other).filter(|_| !order.are_together(hash, other));
            object.is_some_and(|object| !self.inner.finishing.holds(object))
        };
        if others.any(waits) {
            return Ok(Rendered::Later);
        }
        let signatures = rows.signatures.get(&path.claim_id).map(Vec::as_slice).unwrap_or_default();
        Ok(Rendered::Write(key, crate::service::read::render_narinfo(path, signatures)?.text))
    }
}

/// What became of narinfos that were released together.
pub(super) struct Together {
    pub written: usize,
    /// One by one they are waited for, deleted, tried again or given back, whatever they need: under their leases still.
    pub left: Vec<Leased>,
}

/// What is to be done for a narinfo.
pub(super) enum Rendered {
    Write(ObjectKey, Bytes),
    Delete,
    /// A reference still waits.
    Later,
}

/// Narinfos, as the rows say at one moment.
#[derive(Default)]
struct NarInfoRows {
    published: HashMap<StorePathHash, PathRow>,
    signatures: HashMap<String, Vec<SignatureRow>>,
    /// Of all that these refer to: what still waits, as objects.
    waiting: HashMap<StorePathHash, String>,
}

impl NarInfoRows {
    async fn read(
        connection: &mut Connection,
        cache: CacheId,
        cache_id: &str,
        hashes: Vec<StorePathHash>,
    ) -> Result<Self> {
        let paths = paths::find_all(connection, cache, hashes).await?;
        let published = paths.into_iter().filter(|path| path.state == PathState::Published);
        let published: HashMap<_, _> = published.map(|path| (path.claim.path.hash(), path)).collect();
        let references = || published.values().flat_map(|path| path.claim.references.iter());
        let waiting = if references().next().is_some() {
            let hashes: HashSet<_> = references().map(|path| path.hash()).collect();
            outbox::waiting_narinfos(connection, cache_id, hashes).await?
        } else {
            HashMap::new()
        };
        let claims = published.values().map(|path| path.claim_id.as_str());
        let signatures = paths::signatures_of(connection, claims).await?;
        Ok(Self { published, signatures, waiting })
    }
}
