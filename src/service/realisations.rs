//! Build trace entries of content-addressed derivations: signed here, once, if the output is published.

use bytes::Bytes;
use serde_json::json;

use super::leaves::{Leaf, LeafEvent};
use super::release::Release;
use super::{Call, Conflict, Error, Rejection, Result, Service};
use crate::access::CacheName;
use crate::db::caches::CacheRow;
use crate::db::paths::{self, PathState};
use crate::db::realisations::{self, NewRealisation};
use crate::db::{Gate, restarting};
use crate::nix::realisation::{Realisation, RealisationKey};
use crate::nix::signature::Signature;
use crate::storage::CacheObject;

impl Service {
    /// Takes in the entry put under `key`, signs it with every active key of the cache, and publishes it.
    pub async fn put_realisation(
        &self,
        call: &Call,
        cache: &CacheName,
        key: RealisationKey,
        body: &[u8],
    ) -> Result<()> {
        let pusher = self.pusher(call, cache).await?;
        let cache = self.existing_cache(cache).await?;
        self.require_open()?;
        let mut entry = Realisation::parse(key, body).map_err(Rejection::from)?;
        // Whoever signed it before, nobody knows that key here.
        entry.signatures.clear();
        let unsigned = entry.to_json();
        let objects = restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Shared).await?;
            let signers = self.recheck_push(&mut tx, call, &cache, now).await?;
            self.recheck_open(&mut tx).await?;
            let cache = &signers.cache;
            let object = entry.key.to_string();
            let fingerprint = entry.fingerprint();
            if let Some((standing, _)) = realisations::find(&mut tx, cache.id, &object).await? {
                let same = standing == unsigned;
                return if same { Ok(Vec::new()) } else { Err(Conflict::OtherRealisation.into()) };
            }
            if signers.keys.is_empty() {
                return Err(Conflict::NoSigningKey.into());
            }
            let output = paths::find(&mut tx, cache.id, entry.out_path.hash()).await?;
            let output = output
                .filter(|path| path.state == PathState::Published && path.claim.path == entry.out_path)
                .ok_or_else(|| Rejection::RealisationOutput(entry.out_path.clone()))?;
            let mut signatures = Vec::with_capacity(signers.keys.len());
            let mut leaves = Vec::with_capacity(signers.keys.len());
            for key in &signers.keys {
                let signature = self.sign_fingerprint(key, fingerprint.as_bytes())?;
                leaves.push(self.leaf_row(Leaf {
                    call,
                    by: Some(&pusher),
                    cache: Some(cache),
                    path_id: Some(&output.id),
                    event: LeafEvent::Realisation { output: &output.claim, signature: &signature },
                    detail: json!({ "object": object }),
                    now,
                })?);
                signatures.push(signature.to_string());
            }
            let output_hash = entry.out_path.hash();
            let new = NewRealisation {
                id: self.new_id(now),
                cache: cache.id,
                object: &object,
                output_hash: output_hash.as_str(),
                body: &unsigned,
                signatures: &signatures.join(" "),
                contributor: pusher.contributor,
                token: pusher.token,
                now,
            };
            if !realisations::insert(&mut tx, &new).await? {
                // Another push was quicker, or one stands for an output that is no longer published.
                let standing = realisations::find(&mut tx, cache.id, &object).await?;
                let same = standing.is_some_and(|(standing, _)| standing == unsigned);
                return if same { Ok(Vec::new()) } else { Err(Conflict::OtherRealisation.into()) };
            }
            let mut release = Release::new(self, cache, now);
            release.object(&mut tx, CacheObject::Realisation(entry.key.clone())).await?;
            let objects = release.objects;
            super::log::append(&mut tx, &leaves).await?;
            tx.commit().await?;
            Ok::<_, Error>(objects)
        })
        .await?;
        self.release_soon(objects).await;
        Ok(())
    }

    /// The entry that stands under `key`, signed, while its output is published.
    pub async fn realisation(&self, cache: &CacheRow, key: &RealisationKey) -> Result<Option<Bytes>> {
        let mut connection = self.inner.db.read().await?;
        let row = realisations::find(&mut connection, cache.id, &key.to_string()).await?;
        row.map(|row| render(key, &row)).transpose()
    }
}

/// The body with its signatures, from the row.
pub(super) fn render(key: &RealisationKey, (unsigned, signatures): &(String, String)) -> Result<Bytes> {
    let entry = Realisation::parse(key.clone(), unsigned.as_bytes());
    let mut entry = entry.map_err(|error| Error::Internal(error.into()))?;
    for signature in signatures.split(' ') {
        let signature = signature.parse::<Signature>().map_err(|error| Error::Internal(error.into()))?;
        entry.signatures.push(signature);
    }
    Ok(Bytes::from(entry.to_json()))
}
