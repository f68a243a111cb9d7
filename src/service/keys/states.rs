//! One state of a key after the other: promoted, retired, compromised, destroyed.
//!
//! Never takes away the last key that signs, nor destroys a key whose signature something published still needs.

use serde_json::json;

use super::rotation::new_rotation;
use super::{KeySource, changed, created};
use crate::access::{Action, CacheName};
use crate::db::caches::{self, CacheRow};
use crate::db::key_rotations::{self, Progress, RotationKind, RotationRow, RotationStep};
use crate::db::resigning::{self, RealisationsBy};
use crate::db::signing_keys::{self, KeyRow, KeyState};
use crate::db::{Gate, Tx, epoch, restarting};
use crate::nix::signature::KeyName;
use crate::service::audit::Act;
use crate::service::takedown::check_reason;
use crate::service::{Call, Conflict, Error, Result, Rotation, Service};
use crate::time::Timestamp;

/// What a change of a key's state knows behind the gate.
pub(super) struct Standing {
    pub cache: CacheRow,
    /// Every key of the cache.
    pub keys: Vec<KeyRow>,
    /// The one that is asked about.
    pub key: KeyRow,
    /// The cache's rotation that is under way.
    pub rotation: Option<RotationRow>,
    pub now: Timestamp,
}

impl Standing {
    /// Whether another key than this one signs.
    fn another_signs(&self) -> bool {
        let others = self.keys.iter().filter(|row| row.key.label.id != self.key.key.label.id);
        others.into_iter().any(|row| row.state.signs())
    }

    fn rotation_of_key(&self) -> Option<&RotationRow> {
        self.rotation.as_ref().filter(|rotation| rotation.involves(&self.key.key.label.id))
    }
}

impl Service {
    /// Lets a key sign that is published and does not yet, or that is on its way out.
    pub async fn promote_key(&self, call: &Call, cache: &CacheName, name: &KeyName) -> Result<KeyRow> {
        self.require(call, &Action::Administer, "key-promote", name.as_str()).await?;
        self.require_open()?;
        let due = restarting(|| async {
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            let standing = self.standing_key(&mut tx, call, cache, name).await?;
            self.recheck_open(&mut tx).await?;
            if let Some(rotation) = standing.rotation_of_key() {
                let is_new = rotation.new_key.as_ref() == Some(&standing.key.key.label.id);
                if is_new && rotation.step == RotationStep::Publish && rotation.paused_at.is_none() {
                    return Ok(Some(rotation.clone()));
                }
                return Err(in_rotation().into());
            }
            if !matches!(standing.key.state, KeyState::Next | KeyState::Retiring) {
                return Err(Conflict::State("only a key that is next or retiring can be promoted").into());
            }
            let Standing { cache, keys, key, now, .. } = &standing;
            let told = self.tell_of_another(&mut tx, cache, keys, key, *now).await?;
            self.put_state(&mut tx, call, &standing, KeyState::Active, told).await?;
            tx.commit().await?;
            Ok::<_, Error>(None)
        })
        .await?;
        if let Some(rotation) = due {
            self.begin_signing(call, &rotation).await?;
        }
        self.note_change().await;
        let key = self.key_of_cache(cache, name).await?;
        if !key.state.signs() {
            return Err(
                Conflict::State("its rotation was changed at the same time; look, and try again").into()
            );
        }
        Ok(key)
    }

    /// Ends a key's signing. It is still to be trusted: what it signed keeps its signatures.
    pub async fn retire_key(&self, call: &Call, cache: &CacheName, name: &KeyName) -> Result<KeyRow> {
        self.require(call, &Action::Administer, "key-retire", name.as_str()).await?;
        let (due, id) = restarting(|| async {
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            let standing = self.standing_key(&mut tx, call, cache, name).await?;
            let id = standing.key.key.label.id.clone();
            if let Some(rotation) = standing.rotation_of_key() {
                let is_old = rotation.old_key.as_ref() == Some(&id);
                if is_old && rotation.step == RotationStep::Wait && rotation.paused_at.is_none() {
                    return Ok((Some(rotation.clone()), id));
                }
                return Err(in_rotation().into());
            }
            match standing.key.state {
                KeyState::Next | KeyState::Active | KeyState::Retiring => {}
                _ => return Err(Conflict::State("the key does not sign any more").into()),
            }
            if standing.key.state.signs() && !standing.another_signs() {
                return Err(Conflict::State(
                    "it is the cache's only key that signs; make another one with `narvault key rotate`",
                )
                .into());
            }
            self.put_state(&mut tx, call, &standing, KeyState::Retired, None).await?;
            tx.commit().await?;
            Ok::<_, Error>((None, id))
        })
        .await?;
        if let Some(rotation) = due {
            self.retire_old(call, &rotation).await?;
        }
        self.note_change().await;
        let key = self.key_of_cache(cache, name).await?;
        if key.state.signs() {
            let why = "paths or realisations came back without the new key's signature; they are signed first, which \
                       `narvault key schedule` shows";
            return Err(Conflict::State(why).into());
        }
        self.inner.keyring.forget(&id);
        Ok(key)
    }

    /// Says that others may hold a key: it signs nothing from this call on, another one signs in its place, and what
    /// the log accounts for is signed again. Also of a sealed server, whose new key waits for the vault.
    pub async fn compromise_key(
        &self,
        call: &Call,
        cache: &CacheName,
        name: &KeyName,
        reason: &str,
    ) -> Result<Rotation> {
        self.require(call, &Action::Administer, "key-compromise", name.as_str()).await?;
        check_reason(reason)?;
        // Before the gate, where a count of all paths would hold everybody up.
        let total = self.count_signed(cache, name).await?;
        let id = restarting(|| async {
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            let standing = self.standing_key(&mut tx, call, cache, name).await?;
            if matches!(standing.key.state, KeyState::Compromised | KeyState::Destroyed) {
                return Err(Conflict::State("that is known of this key").into());
            }
            let now = standing.now;
            if let Some(rotation) = &standing.rotation {
                let step = RotationStep::Abandoned;
                key_rotations::go_on(&mut tx, rotation, step, &rotation.progress, now).await?;
            }
            let id = standing.key.key.label.id.clone();
            let to = KeyState::Compromised;
            self.change_key(&mut tx, call, &standing.cache, &standing.key, to, now).await?;
            let detail = json!({ "reason": reason });
            let mut acts = vec![changed(&standing.key, to, &standing.cache, detail)];
            let successor = self.successor(&mut tx, call, &standing, &mut acts).await?;
            let mut row =
                new_rotation(self.new_id(now), &standing.cache, RotationKind::Compromise, call, now);
            row.old_key = Some(id.clone());
            row.new_key = successor;
            row.reason = Some(reason.to_owned());
            row.progress = Progress::begin(total);
            key_rotations::insert(&mut tx, &row).await?;
            epoch::advance(&mut tx).await?;
            self.record(&mut tx, call, acts, now).await?;
            tx.commit().await?;
            Ok::<_, Error>(id)
        })
        .await?;
        self.inner.keyring.forget(&id);
        self.note_change().await;
        tracing::warn!(cache = %cache, key = %name, "a key is compromised; it signs nothing from now on");
        self.show_rotation(call, cache).await
    }

    /// How many claims and realisations there are to look at after a compromise of this key, and of those before it.
    async fn count_signed(&self, cache: &CacheName, name: &KeyName) -> Result<i64> {
        let mut connection = self.inner.db.read().await?;
        let cache = caches::by_name(&mut connection, cache).await?.ok_or(Error::NotFound("cache"))?;
        let mut count = resigning::realisation_count(&mut connection, cache.id).await?;
        for row in signing_keys::of_cache(&mut connection, cache.id).await? {
            if row.state == KeyState::Compromised || row.public_key.name() == name {
                count += resigning::signed_count(&mut connection, cache.id, &row.key.label.name).await?;
            }
        }
        Ok(count)
    }

    /// The key that signs in place of a compromised one: one that does already, or was published to be the next, or was
    /// on its way out, or a new one. `None`: the vault is sealed, and a new one waits for it.
    async fn successor<'a>(
        &self,
        tx: &mut Tx,
        call: &Call,
        standing: &'a Standing,
        acts: &mut Vec<Act<'a>>,
    ) -> Result<Option<String>> {
        let others = || standing.keys.iter().filter(|row| row.key.label.id != standing.key.key.label.id);
        for state in [KeyState::Active, KeyState::Next, KeyState::Retiring] {
            let Some(row) = others().find(|row| row.state == state) else { continue };
            let id = &row.key.label.id;
            if state != KeyState::Active {
                let to = KeyState::Active;
                self.change_key(tx, call, &standing.cache, row, to, standing.now).await?;
                let detail = json!({ "in_place_of": standing.key.key.label.name });
                acts.push(changed(row, to, &standing.cache, detail));
            }
            return Ok(Some(id.clone()));
        }
        if self.recheck_open(tx).await.is_err() {
            return Ok(None);
        }
        let source = KeySource::New { name: None };
        let Standing { cache, now, .. } = standing;
        let new = self.insert_cache_key(tx, call, cache, &source, KeyState::Active, *now).await?;
        acts.push(created(&new, Some(cache)));
        Ok(Some(new.key.label.id))
    }

    /// Overwrites the sealed seed of a retired or compromised key, for ever. Refused while something published is signed
    /// by it alone.
    pub async fn destroy_key(&self, call: &Call, cache: &CacheName, name: &KeyName) -> Result<KeyRow> {
        self.require(call, &Action::Administer, "key-destroy", name.as_str()).await?;
        let id = restarting(|| async {
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            let standing = self.standing_key(&mut tx, call, cache, name).await?;
            if !matches!(standing.key.state, KeyState::Retired | KeyState::Compromised) {
                return Err(Conflict::State("only a retired or compromised key can be destroyed").into());
            }
            if standing.rotation_of_key().is_some() {
                return Err(in_rotation().into());
            }
            self.require_not_alone(&mut tx, &standing).await?;
            let id = standing.key.key.label.id.clone();
            let erased = standing.key.key.sealed.erased();
            signing_keys::overwrite_sealed(&mut tx, &id, &erased).await?;
            self.leave_unserved(&mut tx, &standing).await?;
            self.put_state(&mut tx, call, &standing, KeyState::Destroyed, None).await?;
            tx.commit().await?;
            Ok::<_, Error>(id)
        })
        .await?;
        self.inner.keyring.forget(&id);
        self.note_change().await;
        self.key_of_cache(cache, name).await
    }

    /// Refuses while something published carries the key's signature and no other one of this cache.
    pub(super) async fn require_not_alone(&self, tx: &mut Tx, standing: &Standing) -> Result<()> {
        let name = &standing.key.key.label.name;
        let mut alone = resigning::signed_alone_count(tx, standing.cache.id, name).await?;
        let trusted = |other: &str| {
            let mut keys = standing.keys.iter().filter(|row| row.state.is_trusted());
            other != name && keys.any(|row| row.key.label.name == other)
        };
        let asked = RealisationsBy { key_name: name, signed: true, served: true };
        let mut after = String::new();
        loop {
            let (cache, limit) = (standing.cache.id, REALISATIONS_AT_ONCE);
            let rows = resigning::realisations_by(tx, cache, asked, &after, limit).await?;
            let Some(last) = rows.last() else { break };
            after = last.id.clone();
            for row in &rows {
                let mut signers = row.signatures.split(' ').filter_map(|text| Some(text.split_once(':')?.0));
                alone += i64::from(!signers.any(trusted));
            }
        }
        match u64::try_from(alone) {
            Ok(paths) if paths > 0 => Err(Conflict::SignedAlone { paths }.into()),
            _ => Ok(()),
        }
    }

    /// Takes the signatures of a key that nobody is to trust any more off what is not served: what has no other one must not
    /// come back with it.
    async fn leave_unserved(&self, tx: &mut Tx, standing: &Standing) -> Result<()> {
        let (cache, name) = (standing.cache.id, &standing.key.key.label.name);
        resigning::remove_unserved_signatures(tx, cache, name).await?;
        let asked = RealisationsBy { key_name: name, signed: true, served: false };
        let mut after = String::new();
        loop {
            let rows = resigning::realisations_by(tx, cache, asked, &after, REALISATIONS_AT_ONCE).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.id.clone();
            for row in &rows {
                let is_own = |text: &&str| text.split_once(':').is_some_and(|(signer, _)| signer == name);
                let others: Vec<&str> = row.signatures.split(' ').filter(|text| !is_own(text)).collect();
                if others.is_empty() {
                    resigning::remove_realisation(tx, &row.id).await?;
                } else {
                    resigning::sign_realisation(tx, row, &others.join(" ")).await?;
                }
            }
        }
    }

    /// Behind the gate: the caller's right, the cache, its keys, and the one that is asked about.
    pub(super) async fn standing_key(
        &self,
        tx: &mut Tx,
        call: &Call,
        cache: &CacheName,
        name: &KeyName,
    ) -> Result<Standing> {
        let now = self.inner.clock.now();
        self.recheck(tx, call, &Action::Administer, now).await?;
        let cache = caches::by_name(tx, cache).await?.ok_or(Error::NotFound("cache"))?;
        let keys = signing_keys::of_cache(tx, cache.id).await?;
        let key = keys.iter().find(|row| row.public_key.name() == name).cloned();
        let key = key.ok_or(Error::NotFound("key"))?;
        let rotation = self.rotation_under_way(tx, &cache).await?;
        Ok(Standing { cache, keys, key, rotation, now })
    }

    /// The cache's rotation that is not at its end, locked.
    pub(in crate::service) async fn rotation_under_way(
        &self,
        tx: &mut Tx,
        cache: &CacheRow,
    ) -> Result<Option<RotationRow>> {
        match key_rotations::newest(tx, cache.id).await? {
            Some(newest) => Ok(key_rotations::lock(tx, &newest.id).await?),
            None => Ok(None),
        }
    }

    /// The change itself, with its audit row and its leaf, and what clients were told of it.
    async fn put_state<'a>(
        &self,
        tx: &mut Tx,
        call: &Call,
        standing: &'a Standing,
        to: KeyState,
        told: Option<Act<'a>>,
    ) -> Result<()> {
        let Standing { cache, key, now, .. } = standing;
        self.change_key(tx, call, cache, key, to, *now).await?;
        epoch::advance(tx).await?;
        let acts = std::iter::once(changed(key, to, cache, json!({}))).chain(told).collect();
        self.record(tx, call, acts, *now).await
    }

    /// A key of a cache as it stands now.
    async fn key_of_cache(&self, cache: &CacheName, name: &KeyName) -> Result<KeyRow> {
        let mut connection = self.inner.db.read().await?;
        let cache = caches::by_name(&mut connection, cache).await?.ok_or(Error::NotFound("cache"))?;
        let key = signing_keys::by_name(&mut connection, cache.id, name).await?;
        key.ok_or(Error::NotFound("key"))
    }
}

/// Why a key is left alone.
fn in_rotation() -> Conflict {
    Conflict::State(
        "a rotation of this key is under way, which `narvault key schedule` shows; wait, or abandon it",
    )
}

const REALISATIONS_AT_ONCE: i64 = 500;
