//! What goes on with keys by itself: each replica looks every few seconds, and one of them takes the next step of a
//! rotation that is due.
//!
//! Each step is a transaction that begins by locking the rotation's row, so a crash leaves the step before or the
//! step after, and whoever comes next goes on from there.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::resign::{Batch, Workbench};
use super::succession::Announcement;
use super::{KeySource, changed, created};
use crate::access::Action;
use crate::db::caches;
use crate::db::key_rotations::{self, Progress, RotationKind, RotationRow, RotationStep};
use crate::db::signing_keys::{KeyRow, KeyState};
use crate::db::{Connection, Gate, Tx, epoch, outbox, resigning, restarting, signing_keys};
use crate::service::{Call, Error, Result, Service};
use crate::time::Timestamp;

/// How long a replica holds a rotation after its last sign of life. Two that hold it at once do no harm: the row's
/// lock orders them.
pub(super) const LEASE_MILLIS: i64 = 10_000;

/// Between two looks at rotations.
const PAUSE: Duration = Duration::from_secs(2);

/// Between two looks while something has to catch up: storage, or the published log.
const CATCH_UP_PAUSE: Duration = Duration::from_millis(500);

/// Most paths of one batch.
const BATCH_MAX: u64 = 200;

/// Signing again rests while so many objects wait for storage: pushes wait for the same worker.
const OUTBOX_MAX: i64 = 2_000;

/// And while the published log is so many leaves behind: half of what stops all signing.
const BEHIND_LEAVES_MAX: u64 = 5_000;

/// What follows a step.
enum Next {
    /// The next look, after so long.
    After(Duration),
    /// The next batch, as soon as so many paths are paid for.
    Worked(usize),
}

/// A day.
pub(super) const DAY_SECONDS: i64 = 24 * 3600;

impl Service {
    /// Wipes what need not be open, until `stop`. Apart from the rotations, whose steps may take long.
    pub(in crate::service) async fn idle_key_worker(self, stop: CancellationToken) {
        loop {
            let forgotten = tokio::select! {
                () = stop.cancelled() => return,
                forgotten = self.forget_idle_keys() => forgotten,
            };
            if let Err(error) = forgotten {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "cannot tell which keys need not be open; trying again");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// Takes rotations on until `stop`.
    pub(in crate::service) async fn key_worker(self, stop: CancellationToken) {
        loop {
            let wait = tokio::select! {
                () = stop.cancelled() => return,
                advanced = self.advance_rotations() => advanced.unwrap_or_else(|error| {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "cannot look after the rotations of keys; trying again");
                    PAUSE
                }),
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Wipes open seeds of keys that sign no longer, whichever replica changed that.
    pub(super) async fn forget_idle_keys(&self) -> Result<()> {
        // The server's own keys are active as well.
        let signing = signing_keys::ids_of_signing(&mut *self.inner.db.read().await?).await?;
        self.inner.keyring.retain(|id| signing.contains(id));
        Ok(())
    }

    /// Takes each rotation one step on, if that is due and no other replica does. Answers when to look again: however
    /// many caches rotate, this replica changes no more paths in a second than its rate allows.
    pub async fn advance_rotations(&self) -> Result<Duration> {
        let rows = key_rotations::under_way(&mut *self.inner.db.read().await?).await?;
        let (mut wait, mut owed) = (PAUSE, Duration::ZERO);
        for row in rows.into_iter().filter(|row| row.paused_at.is_none()) {
            if !self.lease_rotation(&row).await? {
                continue;
            }
            let held = RotationRow { lease_owner: Some(self.inner.lease_terms.owner.clone()), ..row };
            if caches::by_id(&mut *self.inner.db.read().await?, held.cache).await?.is_none() {
                self.go_on(&held, RotationStep::Abandoned).await?;
                continue;
            }
            match self.advance_rotation(&held).await {
                Ok(Next::After(pause)) => wait = wait.min(pause),
                Ok(Next::Worked(paths)) => {
                    wait = Duration::ZERO;
                    owed += self.time_of(paths);
                }
                // It goes on by itself once the vault is open, which its status says.
                Err(Error::Sealed) => {}
                Err(error) => tracing::warn!(
                    rotation = held.id,
                    error = &error as &dyn std::error::Error,
                    "cannot take a rotation on; it is tried again"
                ),
            }
        }
        Ok(wait.max(owed))
    }

    /// How long so many paths take at the rate that is allowed.
    fn time_of(&self, paths: usize) -> Duration {
        let rate = self.inner.limits.keys.resign_paths_per_second.max(1);
        Duration::from_secs_f64(paths as f64 / rate as f64)
    }

    pub(super) async fn lease_rotation(&self, row: &RotationRow) -> Result<bool> {
        let now = self.inner.clock.now();
        let mut tx = self.inner.db.begin_lazy(Gate::Around).await?;
        let owner = &self.inner.lease_terms.owner;
        let until = now.plus_millis(LEASE_MILLIS);
        let leased = key_rotations::lease(&mut tx, &row.id, owner, until, now).await?;
        tx.commit().await?;
        Ok(leased)
    }

    /// One step, or one batch of it.
    async fn advance_rotation(&self, row: &RotationRow) -> Result<Next> {
        let now = self.inner.clock.now();
        match row.step {
            RotationStep::Publish if now < publish_ends(row) => Ok(Next::After(PAUSE)),
            RotationStep::Publish => {
                self.begin_signing(&Call::host(), row).await?;
                Ok(Next::After(Duration::ZERO))
            }
            RotationStep::Purge => match row.new_key {
                None => {
                    self.make_successor(row).await?;
                    Ok(Next::After(Duration::ZERO))
                }
                Some(_) => self.batch(row, RotationStep::Resign).await,
            },
            RotationStep::Resign | RotationStep::Drop => self.batch(row, RotationStep::Release).await,
            RotationStep::Release => self.end_release(row).await,
            RotationStep::Inspect => {
                match self.inspect(row).await? {
                    Batch::Ended => self.go_on(row, RotationStep::Done).await?,
                    Batch::Looked(_) => {}
                    Batch::Elsewhere => return Ok(Next::After(PAUSE)),
                }
                Ok(Next::After(Duration::ZERO))
            }
            RotationStep::Wait if now < wait_ends(row) => Ok(Next::After(PAUSE)),
            RotationStep::Wait => {
                self.retire_old(&Call::host(), row).await?;
                Ok(Next::After(Duration::ZERO))
            }
            RotationStep::Done | RotationStep::Abandoned => Ok(Next::After(PAUSE)),
        }
    }

    /// A batch of a step that has many, and `next` after the last one.
    async fn batch(&self, row: &RotationRow, next: RotationStep) -> Result<Next> {
        if self.has_to_catch_up().await? {
            return Ok(Next::After(CATCH_UP_PAUSE));
        }
        let batch = match row.step {
            RotationStep::Purge => self.purge_batch(row).await?,
            RotationStep::Drop => self.drop_batch(row).await?,
            _ => self.resign_batch(row).await?,
        };
        match batch {
            Batch::Looked(count) => Ok(Next::Worked(count)),
            Batch::Ended => {
                self.go_on(row, next).await?;
                Ok(Next::After(Duration::ZERO))
            }
            Batch::Elsewhere => Ok(Next::After(PAUSE)),
        }
    }

    /// How many paths, claims or realisations one batch has: what the rate allows in a second, within bounds. An exclusive
    /// gate is held for one batch.
    pub(super) fn batch_size(&self) -> i64 {
        let size = self.inner.limits.keys.resign_paths_per_second.clamp(1, BATCH_MAX);
        i64::try_from(size).unwrap_or(1)
    }

    /// Whether storage or the published log is so far behind that more would be in the way of pushes.
    pub(super) async fn has_to_catch_up(&self) -> Result<bool> {
        if self.inner.log_health.behind_leaves() > BEHIND_LEAVES_MAX {
            return Ok(true);
        }
        let (waiting, _) = outbox::backlog(&mut *self.inner.db.read().await?).await?;
        Ok(waiting > OUTBOX_MAX)
    }

    /// Ends a step that has no key to change.
    pub(super) async fn go_on(&self, row: &RotationRow, next: RotationStep) -> Result<()> {
        restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Shared).await?;
            let Some(row) = locked(&mut tx, row).await? else { return Ok(()) };
            let progress = self.progress_at(&mut tx, &row, next).await?;
            key_rotations::go_on(&mut tx, &row, next, &progress, now).await?;
            // Replicas may remember narinfos as they were.
            epoch::advance(&mut tx).await?;
            tx.commit().await?;
            tracing::info!(rotation = row.id, step = next.as_str(), "a rotation of keys goes on");
            Ok::<_, Error>(())
        })
        .await?;
        self.note_change().await;
        Ok(())
    }

    /// How many paths and realisations that are served the new key has not signed.
    async fn lacking(&self, tx: &mut Tx, row: &RotationRow) -> Result<i64> {
        let keys = signing_keys::of_cache(tx, row.cache).await?;
        let Some(new) = keys.iter().find(|key| Some(&key.key.label.id) == row.new_key.as_ref()) else {
            return Ok(0);
        };
        let new = &new.key.label.name;
        let paths = resigning::unsigned_count(tx, row.cache, new).await?;
        Ok(paths + resigning::unsigned_realisation_count(tx, row.cache, new).await?)
    }

    /// What there is to do in a step, as it begins.
    pub(super) async fn progress_at(
        &self,
        connection: &mut Connection,
        row: &RotationRow,
        step: RotationStep,
    ) -> Result<Progress> {
        let realisations = resigning::realisation_count(connection, row.cache).await?;
        let keys = signing_keys::of_cache(connection, row.cache).await?;
        let named = |id: &Option<String>| {
            keys.iter().find(|key| Some(&key.key.label.id) == id.as_ref()).map(|key| &key.key.label.name)
        };
        let paths = match (step, named(&row.old_key), named(&row.new_key)) {
            (RotationStep::Purge | RotationStep::Drop, Some(old), _) => {
                resigning::signed_count(connection, row.cache, old).await?
            }
            (RotationStep::Resign, _, Some(new)) => {
                resigning::unsigned_count(connection, row.cache, new).await?
            }
            // Another count begins, but what was found before stays to be seen.
            (RotationStep::Inspect, ..) => {
                return Ok(Progress { refused: row.progress.refused, ..Progress::begin(0) });
            }
            // What was done and refused stays to be seen.
            _ => return Ok(row.progress.clone()),
        };
        // What was withdrawn is no longer there to be signed again.
        let refused = if row.step == RotationStep::Purge { row.progress.refused } else { 0 };
        Ok(Progress { refused, ..Progress::begin(paths + realisations + refused) })
    }

    /// Ends the release once storage has all narinfos that the steps before have changed.
    async fn end_release(&self, row: &RotationRow) -> Result<Next> {
        let mut connection = self.inner.db.read().await?;
        let waiting = resigning::waiting_for_storage(&mut connection, row.cache, row.step_since).await?;
        drop(connection);
        if waiting > 0 {
            return Ok(Next::After(CATCH_UP_PAUSE));
        }
        let next = match row.kind {
            RotationKind::Planned => RotationStep::Wait,
            RotationKind::Compromise => RotationStep::Inspect,
            RotationKind::Drop | RotationKind::Resign => RotationStep::Done,
        };
        self.go_on(row, next).await?;
        Ok(Next::After(Duration::ZERO))
    }

    /// Lets the next key sign, beside the old one, which is on its way out from now on.
    pub(super) async fn begin_signing(&self, call: &Call, row: &RotationRow) -> Result<()> {
        self.require_open()?;
        let step = RotationStep::Resign;
        // Before the gate, where a count of all paths would hold everybody up.
        let progress = self.progress_at(&mut *self.inner.db.read().await?, row, step).await?;
        let progress = &progress;
        restarting(|| async {
            let now = self.inner.clock.now();
            // Exclusive: from the commit on, every publication is signed by both.
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            self.recheck_administrator(&mut tx, call, now).await?;
            self.recheck_open(&mut tx).await?;
            let Some(row) = locked(&mut tx, row).await? else { return Ok(()) };
            let Some(bench) = self.change_bench(&mut tx, row, now).await? else { return Ok(()) };
            let (Some(old), Some(new)) =
                (bench.key(bench.rotation.old_key.as_ref()), bench.key(bench.rotation.new_key.as_ref()))
            else {
                return Ok(());
            };
            let mut acts = Vec::new();
            for (key, from, to) in
                [(new, KeyState::Next, KeyState::Active), (old, KeyState::Active, KeyState::Retiring)]
            {
                if key.state == from {
                    self.change_key(&mut tx, call, &bench.cache, key, to, now).await?;
                    acts.push(changed(key, to, &bench.cache, bench.detail()));
                }
            }
            key_rotations::go_on(&mut tx, &bench.rotation, step, progress, now).await?;
            epoch::advance(&mut tx).await?;
            self.record(&mut tx, call, acts, now).await?;
            tx.commit().await?;
            tracing::info!(cache = %bench.cache.name, key = new.key.label.name, "the next key signs from now on");
            Ok::<_, Error>(())
        })
        .await?;
        self.note_change().await;
        Ok(())
    }

    /// Retires the old key at the end of the waiting, unless a path came back meanwhile without the new signature. The
    /// last thing that it signs is that it goes.
    pub(super) async fn retire_old(&self, call: &Call, row: &RotationRow) -> Result<()> {
        self.require_open()?;
        // Before the gate, where a look at all paths would hold everybody up.
        let (owed, lacking) = self.owed(row).await?;
        if owed {
            tracing::warn!(rotation = row.id, "something lacks the new key's signature; it is signed first");
            return self.go_on(row, RotationStep::Resign).await;
        }
        let retired = restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            self.recheck_administrator(&mut tx, call, now).await?;
            self.recheck_open(&mut tx).await?;
            let Some(row) = locked(&mut tx, row).await? else { return Ok(None) };
            // One more came in between: at the next look it is among them.
            if self.lacking(&mut tx, &row).await? > lacking {
                return Ok(None);
            }
            let Some(bench) = self.change_bench(&mut tx, row, now).await? else { return Ok(None) };
            let mut acts = Vec::new();
            let old = bench.key(bench.rotation.old_key.as_ref()).filter(|key| key.state.signs());
            if let Some(old) = old {
                let to = KeyState::Retired;
                if let Some(new) = bench.key(bench.rotation.new_key.as_ref()) {
                    let told = Announcement { cache: &bench.cache, old, new, retire_old: Some(now), now };
                    acts.push(self.tell_succession(&mut tx, told).await?);
                }
                self.change_key(&mut tx, call, &bench.cache, old, to, now).await?;
                acts.push(changed(old, to, &bench.cache, bench.detail()));
            }
            let progress = bench.rotation.progress.clone();
            key_rotations::go_on(&mut tx, &bench.rotation, RotationStep::Done, &progress, now).await?;
            epoch::advance(&mut tx).await?;
            self.record(&mut tx, call, acts, now).await?;
            tx.commit().await?;
            Ok::<_, Error>(old.map(|old| old.key.label.id.clone()))
        })
        .await?;
        if let Some(id) = retired {
            self.inner.keyring.forget(&id);
        }
        self.note_change().await;
        Ok(())
    }

    /// Finds the key that signs in place of a compromised one, or makes one, where the vault was sealed when that was
    /// said, or a recovery found it in the log.
    async fn make_successor(&self, row: &RotationRow) -> Result<()> {
        self.require_open()?;
        restarting(|| async {
            let now = self.inner.clock.now();
            let mut tx = self.inner.db.begin(Gate::Exclusive).await?;
            self.recheck_open(&mut tx).await?;
            let Some(row) = locked(&mut tx, row).await? else { return Ok(()) };
            let Some(bench) = self.change_bench(&mut tx, row, now).await? else { return Ok(()) };
            if let Some(standing) = bench.keys.iter().find(|key| key.state == KeyState::Active) {
                key_rotations::set_new_key(&mut tx, &bench.rotation.id, &standing.key.label.id).await?;
                return Ok(tx.commit().await?);
            }
            let source = KeySource::New { name: None };
            let (call, state) = (Call::host(), KeyState::Active);
            let new = self.insert_cache_key(&mut tx, &call, &bench.cache, &source, state, now).await?;
            key_rotations::set_new_key(&mut tx, &bench.rotation.id, &new.key.label.id).await?;
            epoch::advance(&mut tx).await?;
            self.record(&mut tx, &call, vec![created(&new, Some(&bench.cache))], now).await?;
            tx.commit().await?;
            Ok::<_, Error>(())
        })
        .await?;
        self.note_change().await;
        Ok(())
    }

    /// Cache and keys of a rotation that is locked.
    async fn change_bench(
        &self,
        tx: &mut Tx,
        rotation: RotationRow,
        now: Timestamp,
    ) -> Result<Option<Workbench>> {
        let Some(cache) = caches::by_id(tx, rotation.cache).await? else { return Ok(None) };
        let keys: Vec<KeyRow> = signing_keys::of_cache(tx, cache.id).await?;
        Ok(Some(Workbench { rotation, cache, keys, now }))
    }

    /// Refuses unless the caller may still administer; the service itself always may.
    async fn recheck_administrator(&self, tx: &mut Tx, call: &Call, now: Timestamp) -> Result<()> {
        self.recheck(tx, call, &Action::Administer, now).await
    }
}

/// The row, locked, if it stands at the same step still and is not paused.
async fn locked(tx: &mut Tx, row: &RotationRow) -> Result<Option<RotationRow>> {
    let locked = key_rotations::lock(tx, &row.id).await?;
    Ok(locked.filter(|locked| locked.step == row.step && locked.paused_at.is_none()))
}

/// When the next key may begin to sign.
pub(super) fn publish_ends(row: &RotationRow) -> Timestamp {
    row.step_since.plus_seconds(row.publish_days.saturating_mul(DAY_SECONDS))
}

/// When the old key may retire.
pub(super) fn wait_ends(row: &RotationRow) -> Timestamp {
    row.step_since.plus_seconds(row.wait_days.saturating_mul(DAY_SECONDS))
}
