//! Rotations as people ask for them: begun, looked at with their dates, paused, given up; and the public keys that
//! clients are to trust.

use serde_json::json;

use super::succession::Announcement;
use super::worker::{DAY_SECONDS, publish_ends, wait_ends};
use super::{KeySource, changed, created};
use crate::access::{Action, CacheName};
use crate::db::caches::{self, CacheRow};
use crate::db::key_rotations::{self, Progress, RotationKind, RotationRow, RotationStep};
use crate::db::resigning::{self, UnloggedRow};
use crate::db::signing_keys::{self, KeyRow, KeyState};
use crate::db::{Connection, DbError, Gate, PageBounds, Tx, epoch, restarting};
use crate::nix::signature::{KeyName, PublicKey};
use crate::service::audit::Act;
use crate::service::leaves::AdminEvent;
use crate::service::{Call, Conflict, Error, Rejection, Result, Service};
use crate::time::Timestamp;

/// What a planned rotation is asked for with. `None`: the configuration's, or the only one that there is.
#[derive(Debug, Default)]
pub struct RotationRequest {
    /// The key that goes.
    pub old: Option<KeyName>,
    /// The key that comes: one that was published before, or a new one of this name.
    pub new: Option<KeyName>,
    pub publish_days: Option<u64>,
    pub wait_days: Option<u64>,
}

/// A step of a rotation and its beginning, past or expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepTime {
    pub step: RotationStep,
    /// For a step to come not before this: work that is left takes its time.
    pub at: Timestamp,
    pub has_begun: bool,
}

/// A rotation as it may be shown.
#[derive(Debug, Clone)]
pub struct Rotation {
    pub id: String,
    pub kind: RotationKind,
    pub step: RotationStep,
    pub old_key: Option<String>,
    pub new_key: Option<String>,
    pub paused: bool,
    pub progress: Progress,
    /// What has to happen before the next step, in words; `None` at its end.
    pub waiting_for: Option<String>,
    /// The steps so far, and those to come.
    pub steps: Vec<StepTime>,
    pub started_at: Timestamp,
    pub ended_at: Option<Timestamp>,
}

/// What clients of a cache are to trust.
#[derive(Debug, Clone)]
pub struct PublicKeys {
    pub cache: CacheRow,
    /// Oldest first.
    pub keys: Vec<PublicKey>,
}

/// Longest wait that can be asked for, in days.
const DAYS_MAX: u64 = 3650;

impl Service {
    /// Begins a planned rotation: the new key is published from now on.
    pub async fn rotate_key(
        &self,
        call: &Call,
        cache: &CacheName,
        asked: &RotationRequest,
    ) -> Result<Rotation> {
        self.require(call, &Action::Administer, "key-rotate", cache.as_str()).await?;
        self.require_open()?;
        let limits = &self.inner.limits.keys;
        let publish_days = days("publish_days", asked.publish_days, limits.publish_days)?;
        let wait_days = days("wait_days", asked.wait_days, limits.wait_days)?;
        restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            self.recheck(&mut tx, call, &Action::Administer, now).await?;
            self.recheck_open(&mut tx).await?;
            let cache = caches::by_name(&mut tx, cache).await?.ok_or(Error::NotFound("cache"))?;
            let keys = signing_keys::of_cache(&mut tx, cache.id).await?;
            let old = old_key(&keys, asked.old.as_ref())?;
            let mut acts = Vec::new();
            let standing = asked.new.as_ref().and_then(|name| keys.iter().find(|row| is_named(row, name)));
            let new = match standing {
                Some(row) if row.state == KeyState::Next => row.clone(),
                Some(_) => return Err(Conflict::State("the new key has to be one that is next").into()),
                None => {
                    let source = KeySource::New { name: asked.new.clone() };
                    let state = KeyState::Next;
                    let row = self.insert_cache_key(&mut tx, call, &cache, &source, state, now).await?;
                    acts.push(created(&row, Some(&cache)));
                    row
                }
            };
            let row = RotationRow {
                old_key: Some(old.key.label.id.clone()),
                new_key: Some(new.key.label.id.clone()),
                publish_days,
                wait_days,
                ..new_rotation(self.new_id(now), &cache, RotationKind::Planned, call, now)
            };
            acts.push(begun(&row, &cache, old));
            self.begin_rotation(&mut tx, &row).await?;
            // When the old one retires is told once it does: a rotation may be paused, and clients keep to a date.
            let told = Announcement { cache: &cache, old, new: &new, retire_old: None, now };
            acts.push(self.tell_succession(&mut tx, told).await?);
            self.record(&mut tx, call, acts, now).await?;
            Ok::<_, Error>(tx.commit().await?)
        })
        .await?;
        self.note_change().await;
        self.show_rotation(call, cache).await
    }

    /// Begins to sign everything published with a key that signs already.
    pub async fn resign_with(&self, call: &Call, cache: &CacheName, name: &KeyName) -> Result<Rotation> {
        self.require(call, &Action::Administer, "key-resign", name.as_str()).await?;
        self.begin_for(call, cache, name, RotationKind::Resign).await
    }

    /// Begins to take the signatures of a retired key off everything published.
    pub async fn drop_signatures(&self, call: &Call, cache: &CacheName, name: &KeyName) -> Result<Rotation> {
        self.require(call, &Action::Administer, "key-drop-signatures", name.as_str()).await?;
        self.begin_for(call, cache, name, RotationKind::Drop).await
    }

    async fn begin_for(
        &self,
        call: &Call,
        cache: &CacheName,
        name: &KeyName,
        kind: RotationKind,
    ) -> Result<Rotation> {
        restarting(|| async {
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            let standing = self.standing_key(&mut tx, call, cache, name).await?;
            let now = standing.now;
            let id = Some(standing.key.key.label.id.clone());
            let mut row = new_rotation(self.new_id(now), &standing.cache, kind, call, now);
            if kind == RotationKind::Drop {
                if standing.key.state != KeyState::Retired {
                    return Err(Conflict::State("only a retired key's signatures can be dropped").into());
                }
                self.require_not_alone(&mut tx, &standing).await?;
                row.old_key = id;
            } else {
                if !standing.key.state.signs() {
                    return Err(Conflict::State("the key does not sign").into());
                }
                row.new_key = id;
            }
            row.progress = self.progress_at(&mut tx, &row, row.step).await?;
            self.begin_rotation(&mut tx, &row).await?;
            let act = begun(&row, &standing.cache, &standing.key);
            self.record(&mut tx, call, vec![act], now).await?;
            Ok::<_, Error>(tx.commit().await?)
        })
        .await?;
        self.show_rotation(call, cache).await
    }

    async fn begin_rotation(&self, tx: &mut Tx, row: &RotationRow) -> Result<()> {
        key_rotations::insert(tx, row).await.map_err(|error| match error {
            DbError::Duplicate => Error::from(Conflict::State(
                "a rotation of this cache is under way, which `narvault key schedule` shows",
            )),
            other => other.into(),
        })?;
        Ok(epoch::advance(tx).await?)
    }

    /// The rotation of a cache that is under way, or else the last one.
    pub async fn show_rotation(&self, call: &Call, cache: &CacheName) -> Result<Rotation> {
        self.require(call, &Action::Administer, "key-schedule", cache.as_str()).await?;
        let mut connection = self.inner.db.read().await?;
        let cache = caches::by_name(&mut connection, cache).await?.ok_or(Error::NotFound("cache"))?;
        let row = key_rotations::newest(&mut connection, cache.id).await?;
        self.shown(&mut connection, row.ok_or(Error::NotFound("rotation"))?).await
    }

    /// Pauses the rotation that is under way, or lets it go on.
    pub async fn pause_rotation(&self, call: &Call, cache: &CacheName, paused: bool) -> Result<Rotation> {
        self.require(call, &Action::Administer, "key-rotation-pause", cache.as_str()).await?;
        self.edit_rotation(call, cache, Edit::Pause(paused)).await?;
        self.show_rotation(call, cache).await
    }

    /// Gives the rotation up that is under way. Keys and signatures stay as they are.
    pub async fn abandon_rotation(&self, call: &Call, cache: &CacheName) -> Result<()> {
        self.require(call, &Action::Administer, "key-rotation-abandon", cache.as_str()).await?;
        self.edit_rotation(call, cache, Edit::Abandon).await
    }

    async fn edit_rotation(&self, call: &Call, cache: &CacheName, edit: Edit) -> Result<()> {
        restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            self.recheck(&mut tx, call, &Action::Administer, now).await?;
            let cache = caches::by_name(&mut tx, cache).await?.ok_or(Error::NotFound("cache"))?;
            let row = self.rotation_under_way(&mut tx, &cache).await?;
            let row = row.ok_or(Conflict::State("no rotation of this cache is under way"))?;
            let action = match edit {
                Edit::Pause(paused) if paused == row.paused_at.is_some() => return Ok(()),
                Edit::Pause(true) => "key-rotation-pause",
                Edit::Pause(false) => "key-rotation-resume",
                Edit::Abandon if row.kind == RotationKind::Compromise => {
                    let why = "what a compromised key signed has to be seen to; pause it if it has to wait";
                    return Err(Conflict::State(why).into());
                }
                Edit::Abandon => "key-rotation-abandon",
            };
            match edit {
                Edit::Pause(paused) => {
                    key_rotations::pause(&mut tx, &row.id, paused.then_some(now)).await?;
                }
                Edit::Abandon => {
                    let step = RotationStep::Abandoned;
                    key_rotations::go_on(&mut tx, &row, step, &row.progress, now).await?;
                }
            }
            let act = Act {
                action,
                subject: cache.name.to_string(),
                detail: json!({ "rotation": row.id, "kind": row.kind.as_str(), "step": row.step.as_str() }),
                cache: Some(&cache),
                event: Some(AdminEvent::PolicyChange),
            };
            self.record(&mut tx, call, vec![act], now).await?;
            Ok::<_, Error>(tx.commit().await?)
        })
        .await
    }

    /// A page of the signatures under a key's name that no leaf accounts for.
    pub async fn unlogged_signatures(
        &self,
        call: &Call,
        cache: &CacheName,
        name: &KeyName,
        page: &PageBounds,
    ) -> Result<Vec<UnloggedRow>> {
        self.require(call, &Action::Administer, "key-unlogged", name.as_str()).await?;
        let mut connection = self.inner.db.read().await?;
        let cache = caches::by_name(&mut connection, cache).await?.ok_or(Error::NotFound("cache"))?;
        let key = signing_keys::by_name(&mut connection, cache.id, name).await?;
        let key = key.ok_or(Error::NotFound("key"))?;
        Ok(resigning::unlogged(&mut connection, cache.id, &key.key.label.name, page).await?)
    }

    /// The keys that clients are to trust: a public cache's for anybody.
    pub async fn public_keys(&self, call: &Call, cache: &CacheName) -> Result<PublicKeys> {
        let cache = self.cache_to_pull(call, cache).await?;
        let keys = signing_keys::of_cache(&mut *self.inner.db.read().await?, cache.id).await?;
        let trusted = keys.into_iter().filter(|row| row.state.is_trusted());
        Ok(PublicKeys { keys: trusted.map(|row| row.public_key).collect(), cache: CacheRow::clone(&cache) })
    }

    /// How many paths and realisations are left to be looked at by rotations.
    pub async fn rotations_left(&self) -> Result<u64> {
        let left = key_rotations::left(&mut *self.inner.db.read().await?).await?;
        Ok(u64::try_from(left).unwrap_or(0))
    }

    /// A rotation with its dates, and what it waits for.
    async fn shown(&self, connection: &mut Connection, row: RotationRow) -> Result<Rotation> {
        let keys = signing_keys::of_cache(connection, row.cache).await?;
        let named = |id: &Option<String>| {
            let key = keys.iter().find(|key| Some(&key.key.label.id) == id.as_ref());
            key.map(|key| key.key.label.name.clone())
        };
        let waiting_for = self.waits_for(connection, &row).await?;
        Ok(Rotation {
            old_key: named(&row.old_key),
            new_key: named(&row.new_key),
            waiting_for,
            steps: self.steps(&row),
            id: row.id,
            kind: row.kind,
            step: row.step,
            paused: row.paused_at.is_some(),
            progress: row.progress,
            started_at: row.started_at,
            ended_at: row.ended_at,
        })
    }

    /// What has to happen before the next step.
    async fn waits_for(&self, connection: &mut Connection, row: &RotationRow) -> Result<Option<String>> {
        let Progress { total, done, refused, .. } = row.progress;
        let left = (total - done - refused).max(0);
        let needs_vault = match row.step {
            RotationStep::Publish | RotationStep::Purge | RotationStep::Resign => true,
            // The old key signs once more that it goes.
            RotationStep::Wait => wait_ends(row) <= self.inner.clock.now(),
            _ => false,
        };
        let text = match row.step {
            RotationStep::Abandoned | RotationStep::Done => return Ok(None),
            _ if row.paused_at.is_some() => "somebody to resume it: `narvault key resume`".to_owned(),
            _ if needs_vault && !self.is_open() => "the vault to be unsealed".to_owned(),
            RotationStep::Publish => {
                format!("clients to learn the new public key, until {}", publish_ends(row))
            }
            RotationStep::Purge | RotationStep::Resign | RotationStep::Drop => {
                if self.has_to_catch_up().await? {
                    format!("storage and the published log to catch up; {left} of {total} are left")
                } else {
                    format!("{left} of {total} paths and realisations")
                }
            }
            RotationStep::Release => {
                let waiting = resigning::waiting_for_storage(connection, row.cache, row.step_since).await?;
                format!("{waiting} narinfos and realisations on their way to storage")
            }
            RotationStep::Inspect => {
                format!("storage to be looked through; {done} narinfos and realisations so far")
            }
            RotationStep::Wait => format!(
                "clients to forget narinfos that they remember without the new signature, until {}",
                wait_ends(row)
            ),
        };
        Ok(Some(text))
    }

    /// The steps so far with their times, and those to come as they are expected.
    fn steps(&self, row: &RotationRow) -> Vec<StepTime> {
        let past = row.steps.iter().map(|&(step, at)| StepTime { step, at, has_begun: true });
        let mut steps: Vec<StepTime> = past.collect();
        if row.ended_at.is_some() {
            return steps;
        }
        let order: &[RotationStep] = match row.kind {
            RotationKind::Compromise => &[
                RotationStep::Purge,
                RotationStep::Resign,
                RotationStep::Release,
                RotationStep::Inspect,
                RotationStep::Done,
            ],
            RotationKind::Drop => &[RotationStep::Drop, RotationStep::Release, RotationStep::Done],
            RotationKind::Planned => &[
                RotationStep::Publish,
                RotationStep::Resign,
                RotationStep::Release,
                RotationStep::Wait,
                RotationStep::Done,
            ],
            RotationKind::Resign => &[RotationStep::Resign, RotationStep::Release, RotationStep::Done],
        };
        let Some(here) = order.iter().position(|step| *step == row.step) else { return steps };
        let now = self.inner.clock.now();
        let mut at = now;
        for pair in order[here..].windows(2) {
            let since = if pair[0] == row.step { row.step_since } else { at };
            let ends = match pair[0] {
                RotationStep::Publish => since.plus_seconds(row.publish_days.saturating_mul(DAY_SECONDS)),
                RotationStep::Wait => since.plus_seconds(row.wait_days.saturating_mul(DAY_SECONDS)),
                _ => at,
            };
            at = ends.max(now);
            steps.push(StepTime { step: pair[1], at, has_begun: false });
        }
        steps
    }
}

/// A change by hand of a rotation.
#[derive(Clone, Copy)]
enum Edit {
    Pause(bool),
    Abandon,
}

/// A rotation that begins now, with its first step.
pub(in crate::service) fn new_rotation(
    id: String,
    cache: &CacheRow,
    kind: RotationKind,
    call: &Call,
    now: Timestamp,
) -> RotationRow {
    let step = match kind {
        RotationKind::Compromise => RotationStep::Purge,
        RotationKind::Drop => RotationStep::Drop,
        RotationKind::Planned => RotationStep::Publish,
        RotationKind::Resign => RotationStep::Resign,
    };
    let asked_by = call.caller.token().map(|by| (by.contributor.to_string(), by.token.to_string()));
    RotationRow {
        id,
        cache: cache.id,
        kind,
        old_key: None,
        new_key: None,
        step,
        step_since: now,
        steps: vec![(step, now)],
        publish_days: 0,
        wait_days: 0,
        progress: Progress::begin(0),
        paused_at: None,
        lease_owner: None,
        asked_by,
        reason: None,
        started_at: now,
        ended_at: None,
    }
}

/// The act of a rotation's beginning. Keys that change with it have acts of their own.
fn begun<'a>(row: &RotationRow, cache: &'a CacheRow, key: &KeyRow) -> Act<'a> {
    let detail = json!({
        "rotation": row.id,
        "kind": row.kind.as_str(),
        "publish_days": row.publish_days,
        "wait_days": row.wait_days,
    });
    let action = match row.kind {
        RotationKind::Drop => "key-drop-signatures",
        RotationKind::Resign => "key-resign",
        RotationKind::Compromise | RotationKind::Planned => "key-rotate",
    };
    Act { action, ..changed(key, key.state, cache, detail) }
}

/// The key that a rotation takes out: the one that is named, or the only one that signs.
fn old_key<'a>(keys: &'a [KeyRow], named: Option<&KeyName>) -> Result<&'a KeyRow> {
    if let Some(name) = named {
        let row = keys.iter().find(|row| is_named(row, name)).ok_or(Error::NotFound("key"))?;
        return if row.state == KeyState::Active {
            Ok(row)
        } else {
            Err(Conflict::State("the old key has to be an active one").into())
        };
    }
    let mut active = keys.iter().filter(|row| row.state == KeyState::Active);
    match (active.next(), active.next()) {
        (Some(row), None) => Ok(row),
        (None, _) => Err(Conflict::NoSigningKey.into()),
        (Some(_), Some(_)) => {
            Err(Conflict::State("several keys are active; name the one that goes, with `old`").into())
        }
    }
}

fn is_named(row: &KeyRow, name: &KeyName) -> bool {
    row.public_key.name() == name
}

fn days(field: &'static str, asked: Option<u64>, usual: u64) -> Result<i64> {
    let days = asked.unwrap_or(usual);
    if days > DAYS_MAX {
        return Err(Rejection::value(field, format!("is more than {DAYS_MAX}")).into());
    }
    i64::try_from(days).map_err(|error| Error::Internal(error.into()))
}
