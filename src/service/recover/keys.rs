//! Keys that the lost leaves tell of: states that they had reached, and keys that were made since the backup.
//!
//! A key whose row is lost is written down again with the public half that its leaf has and without a seed: its name is
//! never given again, clients go on to trust what it signed, and it signs nothing. A compromised key is seen to by a
//! rotation, as after `narvault key compromise`. A cache never loses its last key that signs but by a compromise or a
//! destruction.

use super::Said;
use super::effects::REASON;
use crate::access::CacheId;
use crate::db::caches::{self, CacheRow};
use crate::db::key_rotations::{self, Progress, RotationKind, RotationStep};
use crate::db::signing_keys::{self, KeyRow, KeyState};
use crate::db::{Connection, PageBounds, Tx, resigning};
use crate::nix::signature::{KeyName, PublicKey};
use crate::service::keys::new_rotation;
use crate::service::{Call, Error, Result, Service};
use crate::time::Timestamp;
use crate::tlog::leaf::{CacheLine, Disclosed, KeyEvent};
use crate::vault::{KeyLabel, Purpose, SealedKey};

impl Service {
    /// Writes a key down that was made since the backup, as one that signs nothing.
    pub(super) async fn keep_lost_key(
        &self,
        tx: &mut Tx,
        said: &mut Said,
        event: &KeyEvent,
        at: Timestamp,
    ) -> Result<()> {
        let Ok(name) = event.key.as_str().parse::<KeyName>() else { return Ok(()) };
        if signing_keys::named(tx, &name).await?.is_some() {
            return Ok(());
        }
        let public = event.public_key.as_ref().and_then(|key| key.as_str().parse::<PublicKey>().ok());
        let Some(public) = public.filter(|key| *key.name() == name) else { return Ok(()) };
        let cache = self.cache_of_key(tx, &event.cache, &name).await?;
        let version = match &cache {
            Some(cache) => newest_version(tx, cache.id).await?.saturating_add(1),
            None => 1,
        };
        let label = KeyLabel {
            id: self.new_id(at),
            name: name.to_string(),
            version,
            purpose: Purpose::Cache,
            cache_id: cache.as_ref().map(|cache| cache.id.to_string()),
        };
        // Whatever key there is: of its record the header alone stays, and every database has a log key.
        let like = signing_keys::by_purpose(tx, Purpose::Log).await?;
        let like = like.first().ok_or(Error::NotFound("log key"))?;
        let key = SealedKey { label, public_key: *public.bytes(), sealed: like.key.sealed.erased() };
        let row = KeyRow {
            key,
            public_key: public.clone(),
            state: KeyState::Retired,
            imported: false,
            created_at: at,
        };
        signing_keys::insert(tx, &row).await?;
        said.recovery.keys_changed += 1;
        let trusted = match &cache {
            Some(cache) => {
                format!(
                    "what it signed stays valid, and `narvault key list {}` goes on to name it",
                    cache.name
                )
            }
            None => format!("its cache is not known, so clients have to keep {public} by themselves"),
        };
        said.recovery.lost.push(format!(
            "the secret of the key {name} is lost, and its name is not given again; {trusted}. What only this key signed \
             cannot be signed again: push it again before the key is given up"
        ));
        Ok(())
    }

    /// Brings a key into the state that it had, unless that would let it sign more than it does now.
    pub(super) async fn change_lost_key(
        &self,
        tx: &mut Tx,
        said: &mut Said,
        event: &KeyEvent,
        at: Timestamp,
    ) -> Result<()> {
        let state = event.state.as_ref().and_then(|state| KeyState::parse(state.as_str()));
        let (Some(state), Ok(name)) = (state, event.key.as_str().parse::<KeyName>()) else { return Ok(()) };
        let Some(key) = signing_keys::named(tx, &name).await? else { return Ok(()) };
        let lets_sign = state.may_sign() && !(key.state.signs() && state.signs());
        if key.state == state || lets_sign || !key.state.is_trusted() && state.is_trusted() {
            return Ok(());
        }
        let cache = match key.key.label.cache_id.as_deref().map(str::parse::<CacheId>) {
            Some(Ok(id)) => caches::by_id(tx, id).await?,
            _ => None,
        };
        if let Some(cache) = &cache
            && matches!(state, KeyState::Retiring | KeyState::Retired)
            && is_last_signer(tx, cache, &key).await?
        {
            said.recovery.lost.push(format!(
                "the key {name} was on its way out, and the one that came for it is lost or signs not yet; it goes on \
                 signing for {}: `narvault key rotate {}` puts another one in its place",
                cache.name, cache.name
            ));
            return Ok(());
        }
        signing_keys::change_state(tx, &key.key.label.id, key.state, state).await?;
        said.recovery.keys_changed += 1;
        match (state, &cache) {
            (KeyState::Destroyed, _) => {
                let erased = key.key.sealed.erased();
                signing_keys::overwrite_sealed(tx, &key.key.label.id, &erased).await?;
            }
            (KeyState::Compromised, Some(cache)) => self.begin_purge(tx, cache, &key, at).await?,
            _ => {}
        }
        Ok(())
    }

    /// Begins what sees to everything that a compromised key signed. Its successor is found, or made, once the vault is
    /// open and the service goes on.
    async fn begin_purge(&self, tx: &mut Tx, cache: &CacheRow, key: &KeyRow, at: Timestamp) -> Result<()> {
        if let Some(standing) = self.rotation_under_way(tx, cache).await? {
            let step = RotationStep::Abandoned;
            key_rotations::go_on(tx, &standing, step, &standing.progress, at).await?;
        }
        let mut row = new_rotation(self.new_id(at), cache, RotationKind::Compromise, &Call::host(), at);
        row.old_key = Some(key.key.label.id.clone());
        row.reason = Some(REASON.to_owned());
        row.progress = Progress::begin(resigning::signed_count(tx, cache.id, &key.key.label.name).await?);
        Ok(key_rotations::insert(tx, &row).await?)
    }

    /// The cache of a key that a leaf announced. A private cache's leaf hides which; the default names of keys tell.
    async fn cache_of_key(
        &self,
        tx: &mut Tx,
        cache: &Disclosed<CacheLine>,
        key: &KeyName,
    ) -> Result<Option<CacheRow>> {
        match cache {
            Disclosed::Open(CacheLine { cache: Some(name) }) => match name.as_str().parse() {
                Ok(name) => Ok(caches::by_name(tx, &name).await?),
                Err(_) => Ok(None),
            },
            Disclosed::Open(CacheLine { cache: None }) => Ok(None),
            Disclosed::Private(_) => {
                let cluster: String = self.inner.cluster_id.chars().take(6).collect();
                let is_default = |cache: &CacheRow| {
                    let number = key.as_str().strip_prefix(&format!("{}-{cluster}-", cache.name));
                    number.is_some_and(|number| number.parse::<u32>().is_ok())
                };
                Ok(private_caches(tx).await?.into_iter().find(is_default))
            }
        }
    }
}

/// Whether no other key signs for the cache.
async fn is_last_signer(tx: &mut Tx, cache: &CacheRow, key: &KeyRow) -> Result<bool> {
    let keys = signing_keys::active_of_cache(tx, cache.id).await?;
    Ok(key.state.signs() && keys.iter().all(|other| other.key.label.id == key.key.label.id))
}

async fn newest_version(connection: &mut Connection, cache: CacheId) -> Result<u32> {
    let keys = signing_keys::of_cache(connection, cache).await?;
    Ok(keys.iter().map(|row| row.key.label.version).max().unwrap_or(0))
}

async fn private_caches(connection: &mut Connection) -> Result<Vec<CacheRow>> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = PageBounds { after: after.take(), limit: CACHES_AT_ONCE, descending: false };
        let rows = caches::list(connection, &page).await?;
        let Some(last) = rows.last() else { return Ok(found) };
        after = Some(last.id.to_string());
        found.extend(rows.into_iter().filter(|cache| !cache.public));
    }
}

const CACHES_AT_ONCE: i64 = 200;
