//! Signing keys of caches: made or imported, listed, and taken from one state to the next. A secret goes in and never
//! comes out.

mod accounted;
mod inspect;
mod purge;
mod resign;
mod root_sets;
mod rotation;
mod states;
mod succession;
#[cfg(test)]
mod tests;
mod worker;

use serde_json::{Value, json};

pub use self::root_sets::RootSets;
pub(super) use self::rotation::new_rotation;
pub use self::rotation::{PublicKeys, Rotation, RotationRequest, StepTime};
pub(super) use self::succession::chain_of;
pub use self::succession::{Succession, SuccessionRequest};

use super::audit::Act;
use super::contributors::taken;
use super::leaves::AdminEvent;
use super::webhooks::Event;
use super::{Call, Conflict, Error, Rejection, Result, Service};
use crate::access::{Action, CacheName};
use crate::db::caches::{self, CacheRow};
use crate::db::signing_keys::{self, KeyRow, KeyState};
use crate::db::{Connection, Gate, Tx, contributors, restarting};
use crate::nix::signature::{KeyName, PublicKey};
use crate::time::Timestamp;
use crate::vault::{KeyLabel, NixSecretKey, Purpose, SealedKey};

/// What signing again and rotations may cost. Each is a configuration key.
#[derive(Debug, Clone, Copy)]
pub struct KeyLimits {
    /// Most paths signed again in a second, by one replica.
    pub resign_paths_per_second: u64,
    /// How long a new key is published before it signs, unless told.
    pub publish_days: u64,
    /// How long the old key goes on signing after all was signed again, unless told.
    pub wait_days: u64,
}

impl Default for KeyLimits {
    fn default() -> Self {
        Self { resign_paths_per_second: 500, publish_days: 7, wait_days: 30 }
    }
}

/// Where a new key of a cache comes from.
#[derive(Debug)]
pub enum KeySource {
    /// Made here, under this name or the next default one.
    New { name: Option<KeyName> },
    /// Made with `nix key generate-secret`.
    Imported(NixSecretKey),
}

impl KeySource {
    /// The text of `nix key generate-secret`.
    pub fn import(text: &str) -> Result<Self> {
        match NixSecretKey::parse(text) {
            Ok(key) => Ok(Self::Imported(key)),
            Err(error) => Err(Rejection::value("import", error).into()),
        }
    }
}

impl Service {
    /// Makes or imports a signing key; it is active at once, beside those that are.
    pub async fn create_key(&self, call: &Call, cache: &CacheName, source: &KeySource) -> Result<KeyRow> {
        self.make_key(call, cache, source, KeyState::Active).await
    }

    /// Makes or imports a signing key that does not sign yet: clients may learn to trust it.
    pub async fn create_next_key(
        &self,
        call: &Call,
        cache: &CacheName,
        source: &KeySource,
    ) -> Result<KeyRow> {
        self.make_key(call, cache, source, KeyState::Next).await
    }

    async fn make_key(
        &self,
        call: &Call,
        cache: &CacheName,
        source: &KeySource,
        state: KeyState,
    ) -> Result<KeyRow> {
        self.require(call, &Action::Administer, "key-create", cache.as_str()).await?;
        self.require_open()?;
        restarting(|| async {
            let now = self.inner.clock.now();
            // Exclusive: from the commit on, every publication is signed with it.
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            self.recheck(&mut tx, call, &Action::Administer, now).await?;
            self.recheck_open(&mut tx).await?;
            let cache = caches::by_name(&mut tx, cache).await?.ok_or(Error::NotFound("cache"))?;
            let others = signing_keys::of_cache(&mut tx, cache.id).await?;
            let row = self.insert_cache_key(&mut tx, call, &cache, source, state, now).await?;
            let mut acts = vec![created(&row, Some(&cache))];
            acts.extend(self.tell_of_another(&mut tx, &cache, &others, &row, now).await?);
            self.record(&mut tx, call, acts, now).await?;
            tx.commit().await?;
            Ok(row)
        })
        .await
    }

    /// Every key that a cache ever had: a public cache's for anybody.
    pub async fn list_keys(&self, call: &Call, cache: &CacheName) -> Result<Vec<KeyRow>> {
        let row = self.show_cache(call, cache).await?.row;
        Ok(signing_keys::of_cache(&mut *self.inner.db.read().await?, row.id).await?)
    }

    /// The row of a new key of a cache, of which webhooks are told.
    pub(super) async fn insert_cache_key(
        &self,
        tx: &mut Tx,
        call: &Call,
        cache: &CacheRow,
        source: &KeySource,
        state: KeyState,
        now: Timestamp,
    ) -> Result<KeyRow> {
        let standing = signing_keys::of_cache(tx, cache.id).await?;
        let version = standing.iter().map(|row| row.key.label.version).max().unwrap_or(0) + 1;
        let name = match source {
            KeySource::Imported(key) => {
                key.name().parse().map_err(|error| Rejection::value("import", error))?
            }
            KeySource::New { name: Some(name) } => name.clone(),
            KeySource::New { name: None } => self.default_key_name(tx, cache, version).await?,
        };
        if self.is_foreign(tx, &name).await? {
            return Err(Conflict::NameTaken(name.to_string()).into());
        }
        let label = KeyLabel {
            id: self.new_id(now),
            name: name.to_string(),
            version,
            purpose: Purpose::Cache,
            cache_id: Some(cache.id.to_string()),
        };
        let key = self
            .seal_new(tx, |vault| match source {
                KeySource::Imported(imported) => vault.seal_imported_key(label, imported),
                KeySource::New { .. } => vault.seal_new_key(label),
            })
            .await?;
        let imported = matches!(source, KeySource::Imported(_));
        let row = self.insert_key(tx, key, state, imported, now).await?;
        self.emit(tx, call, Event::Key { cache: Some(cache), key: &row, before: None }, now).await?;
        Ok(row)
    }

    /// Takes a key of a cache to another state, of which webhooks are told.
    async fn change_key(
        &self,
        tx: &mut Tx,
        call: &Call,
        cache: &CacheRow,
        key: &KeyRow,
        to: KeyState,
        now: Timestamp,
    ) -> Result<()> {
        signing_keys::change_state(tx, &key.key.label.id, key.state, to).await?;
        let after = KeyRow { state: to, ..key.clone() };
        let event = Event::Key { cache: Some(cache), key: &after, before: Some(key.state) };
        self.emit(tx, call, event, now).await
    }

    /// The row of a new key of the server itself.
    pub(super) async fn insert_server_key(
        &self,
        tx: &mut Tx,
        purpose: Purpose,
        name: String,
        now: Timestamp,
    ) -> Result<KeyRow> {
        let label = KeyLabel { id: self.new_id(now), name, version: 1, purpose, cache_id: None };
        let key = self.seal_new(tx, |vault| vault.seal_new_key(label)).await?;
        self.insert_key(tx, key, KeyState::Active, false, now).await
    }

    async fn insert_key(
        &self,
        tx: &mut Tx,
        key: SealedKey,
        state: KeyState,
        imported: bool,
        now: Timestamp,
    ) -> Result<KeyRow> {
        let refused = |error: &dyn std::error::Error| Rejection::value("name", error);
        let name: KeyName = key.label.name.parse().map_err(|error| refused(&error))?;
        let public_key = PublicKey::new(name, &key.public_key).map_err(|error| refused(&error))?;
        let row = KeyRow { key, public_key, state, imported, created_at: now };
        signing_keys::insert(tx, &row).await.map_err(|error| taken(error, row.public_key.name().as_str()))?;
        Ok(row)
    }

    /// `<cache>-<6 characters of the cluster id>-<n>`: the server's own part keeps two servers' caches of one
    /// name apart, the number two keys of one cache.
    async fn default_key_name(&self, tx: &mut Tx, cache: &CacheRow, version: u32) -> Result<KeyName> {
        let given = signing_keys::names(tx).await?;
        let cluster: String = self.inner.cluster_id.chars().take(6).collect();
        // Somebody may have chosen such a name by hand.
        for number in version..=version.saturating_add(1000) {
            let name: KeyName = format!("{}-{cluster}-{number}", cache.name)
                .parse()
                .map_err(|error| Rejection::value("name", error))?;
            if !given.contains(&name) {
                return Ok(name);
            }
        }
        Err(Conflict::State("every default name of a key is taken; give one").into())
    }

    /// Whether signatures under this name are known as somebody else's.
    async fn is_foreign(&self, connection: &mut Connection, name: &KeyName) -> Result<bool> {
        Ok(contributors::key_name_exists(connection, name).await?
            || caches::upstream_key_exists(connection, name.as_str()).await?)
    }
}

/// The act of a key's first row.
pub(super) fn created<'a>(row: &KeyRow, cache: Option<&'a CacheRow>) -> Act<'a> {
    Act {
        action: "key-create",
        subject: row.public_key.name().to_string(),
        detail: json!({
            "purpose": row.key.label.purpose.as_str(),
            "imported": row.imported,
            "public_key": row.public_key.to_string(),
        }),
        cache,
        event: Some(AdminEvent::KeyCreate {
            public_key: Box::new(row.public_key.clone()),
            state: row.state.as_str(),
        }),
    }
}

/// The act of a key's change to another state.
pub(super) fn changed<'a>(row: &KeyRow, to: KeyState, cache: &'a CacheRow, detail: Value) -> Act<'a> {
    let mut detail = detail;
    if let Value::Object(members) = &mut detail {
        members.insert("from".to_owned(), json!(row.state.as_str()));
        members.insert("to".to_owned(), json!(to.as_str()));
    }
    Act {
        action: "key-state",
        subject: row.public_key.name().to_string(),
        detail,
        cache: Some(cache),
        event: Some(AdminEvent::KeyState {
            public_key: Box::new(row.public_key.clone()),
            state: to.as_str(),
        }),
    }
}
