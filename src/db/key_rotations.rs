//! What happens to the keys of a cache over a longer time than a call: one row, one lease, one step after the other.
//!
//! Never decides what comes next: `service` does, with the row locked.

use super::dialect::Dialect;
use super::{Connection, Result, corrupt, one_row};
use crate::access::CacheId;
use crate::time::Timestamp;

/// Why keys change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotationKind {
    /// Whoever holds the old key is no longer to be believed.
    Compromise,
    /// Signatures of a retired key leave the narinfos.
    Drop,
    /// A new key comes, an old one goes.
    Planned,
    /// What is published gets the signature of a key.
    Resign,
}

impl RotationKind {
    const ALL: [Self; 4] = [Self::Compromise, Self::Drop, Self::Planned, Self::Resign];

    /// The word in the column and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Compromise => "compromise",
            Self::Drop => "drop",
            Self::Planned => "planned",
            Self::Resign => "resign",
        }
    }
}

/// Where a rotation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotationStep {
    /// Given up by hand; keys are as they were then.
    Abandoned,
    /// All is done.
    Done,
    /// Signatures of the retired key go.
    Drop,
    /// Storage is looked through for signatures that no leaf accounts for.
    Inspect,
    /// The new key is published and does not sign yet.
    Publish,
    /// What the compromised key signed is signed again, or withdrawn.
    Purge,
    /// Changed narinfos are on their way to storage.
    Release,
    /// What is published gets the new key's signature.
    Resign,
    /// Clients forget narinfos that they remember without the new signature.
    Wait,
}

impl RotationStep {
    const ALL: [Self; 9] = [
        Self::Abandoned,
        Self::Done,
        Self::Drop,
        Self::Inspect,
        Self::Publish,
        Self::Purge,
        Self::Release,
        Self::Resign,
        Self::Wait,
    ];

    /// The word in the column and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Abandoned => "abandoned",
            Self::Done => "done",
            Self::Drop => "drop",
            Self::Inspect => "inspect",
            Self::Publish => "publish",
            Self::Purge => "purge",
            Self::Release => "release",
            Self::Resign => "resign",
            Self::Wait => "wait",
        }
    }

    /// Whether nothing comes after it.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Abandoned | Self::Done)
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.as_str() == text)
    }
}

/// How far a step has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The log's leaves up to this index have been looked at.
    pub log_cursor: i64,
    /// Realisations up to this id have been looked at; of other things that a step goes through, what `service` makes of
    /// it.
    pub realisation_cursor: String,
    /// What there is to do, as counted when the step began.
    pub total: i64,
    pub done: i64,
    /// Left alone, because the log does not account for it.
    pub refused: i64,
}

impl Progress {
    /// At the beginning of a step with so much to do.
    pub fn begin(total: i64) -> Self {
        Self { log_cursor: -1, realisation_cursor: String::new(), total, done: 0, refused: 0 }
    }
}

/// A rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotationRow {
    pub id: String,
    pub cache: CacheId,
    pub kind: RotationKind,
    /// Ids of keys.
    pub old_key: Option<String>,
    pub new_key: Option<String>,
    pub step: RotationStep,
    pub step_since: Timestamp,
    /// Every step so far with its beginning, the present one last.
    pub steps: Vec<(RotationStep, Timestamp)>,
    pub publish_days: i64,
    pub wait_days: i64,
    pub progress: Progress,
    pub paused_at: Option<Timestamp>,
    pub lease_owner: Option<String>,
    /// Ids of the contributor and the token that asked for it; `None`: the host.
    pub asked_by: Option<(String, String)>,
    pub reason: Option<String>,
    pub started_at: Timestamp,
    pub ended_at: Option<Timestamp>,
}

impl RotationRow {
    /// Whether it is about the key of this id.
    pub fn involves(&self, key_id: &str) -> bool {
        [&self.old_key, &self.new_key].into_iter().any(|id| id.as_deref() == Some(key_id))
    }
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    cache_id: String,
    kind: String,
    old_key_id: Option<String>,
    new_key_id: Option<String>,
    step: String,
    step_since: i64,
    steps: String,
    publish_days: i64,
    wait_days: i64,
    log_cursor: i64,
    realisation_cursor: String,
    total: i64,
    done: i64,
    refused: i64,
    paused_at: Option<i64>,
    lease_owner: Option<String>,
    contributor_id: Option<String>,
    token_id: Option<String>,
    reason: Option<String>,
    started_at: i64,
    ended_at: Option<i64>,
}

impl Row {
    fn read(self) -> Result<RotationRow> {
        let corrupt = |column| corrupt("key_rotations", column, &self.id);
        let steps: Vec<(String, i64)> = serde_json::from_str(&self.steps).map_err(|_| corrupt("steps"))?;
        let step = |(step, at): (String, i64)| Some((RotationStep::parse(&step)?, Timestamp(at)));
        let kind = RotationKind::ALL.into_iter().find(|kind| kind.as_str() == self.kind);
        Ok(RotationRow {
            cache: self.cache_id.parse().map_err(|_| corrupt("cache_id"))?,
            kind: kind.ok_or_else(|| corrupt("kind"))?,
            step: RotationStep::parse(&self.step).ok_or_else(|| corrupt("step"))?,
            steps: steps.into_iter().map(step).collect::<Option<_>>().ok_or_else(|| corrupt("steps"))?,
            id: self.id,
            old_key: self.old_key_id,
            new_key: self.new_key_id,
            step_since: Timestamp(self.step_since),
            publish_days: self.publish_days,
            wait_days: self.wait_days,
            progress: Progress {
                log_cursor: self.log_cursor,
                realisation_cursor: self.realisation_cursor,
                total: self.total,
                done: self.done,
                refused: self.refused,
            },
            paused_at: self.paused_at.map(Timestamp),
            lease_owner: self.lease_owner,
            asked_by: self.contributor_id.zip(self.token_id),
            reason: self.reason,
            started_at: Timestamp(self.started_at),
            ended_at: self.ended_at.map(Timestamp),
        })
    }
}

/// Begins a rotation. [`super::DbError::Duplicate`]: the cache has one that is not at its end.
pub async fn insert(connection: &mut Connection, row: &RotationRow) -> Result<()> {
    let (contributor, token) = row.asked_by.clone().unzip();
    let Progress { log_cursor, realisation_cursor, total, done, refused } = &row.progress;
    sqlx::query(
        "INSERT INTO key_rotations (id, cache_id, kind, old_key_id, new_key_id, step, step_since, steps, \
         publish_days, wait_days, log_cursor, realisation_cursor, total, done, refused, contributor_id, \
         token_id, reason, started_at, ended_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)",
    )
    .bind(&row.id)
    .bind(row.cache.to_string())
    .bind(row.kind.as_str())
    .bind(&row.old_key)
    .bind(&row.new_key)
    .bind(row.step.as_str())
    .bind(row.step_since.0)
    .bind(steps_text(&row.steps))
    .bind(row.publish_days)
    .bind(row.wait_days)
    .bind(log_cursor)
    .bind(realisation_cursor)
    .bind(total)
    .bind(done)
    .bind(refused)
    .bind(contributor)
    .bind(token)
    .bind(&row.reason)
    .bind(row.started_at.0)
    .bind(row.ended_at.map(|at| at.0))
    .execute(connection)
    .await?;
    Ok(())
}

fn steps_text(steps: &[(RotationStep, Timestamp)]) -> String {
    let steps: Vec<_> = steps.iter().map(|(step, at)| (step.as_str(), at.0)).collect();
    serde_json::json!(steps).to_string()
}

/// The rotation of a cache that is under way, or else the last one.
pub async fn newest(connection: &mut Connection, cache: CacheId) -> Result<Option<RotationRow>> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT id, cache_id, kind, old_key_id, new_key_id, step, step_since, steps, publish_days, wait_days, \
         log_cursor, realisation_cursor, total, done, refused, paused_at, lease_owner, contributor_id, \
         token_id, reason, started_at, ended_at FROM key_rotations WHERE cache_id = $1 \
         ORDER BY id DESC LIMIT 1",
    )
    .bind(cache.to_string())
    .fetch_optional(connection)
    .await?;
    row.map(Row::read).transpose()
}

/// Every rotation that is under way, oldest first.
pub async fn under_way(connection: &mut Connection) -> Result<Vec<RotationRow>> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, cache_id, kind, old_key_id, new_key_id, step, step_since, steps, publish_days, wait_days, \
         log_cursor, realisation_cursor, total, done, refused, paused_at, lease_owner, contributor_id, \
         token_id, reason, started_at, ended_at FROM key_rotations WHERE ended_at IS NULL ORDER BY id ASC",
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(Row::read).collect()
}

/// Locks a rotation until the end of the transaction, and gives it as it stands then; `None` once it is at its end.
pub async fn lock(connection: &mut Connection, id: &str) -> Result<Option<RotationRow>> {
    macro_rules! select {
        ($lock:literal) => {
            concat!(
                "SELECT id, cache_id, kind, old_key_id, new_key_id, step, step_since, steps, publish_days, \
                 wait_days, log_cursor, realisation_cursor, total, done, refused, paused_at, lease_owner, \
                 contributor_id, token_id, reason, started_at, ended_at FROM key_rotations \
                 WHERE id = $1 AND ended_at IS NULL",
                $lock
            )
        };
    }
    let statement = Dialect::of(connection).pick(select!(" FOR UPDATE"), select!(""));
    let row: Option<Row> = sqlx::query_as(statement).bind(id).fetch_optional(connection).await?;
    row.map(Row::read).transpose()
}

/// Takes a rotation up, or goes on holding it, until `until`. False: another replica works on it.
pub async fn lease(
    connection: &mut Connection,
    id: &str,
    owner: &str,
    until: Timestamp,
    now: Timestamp,
) -> Result<bool> {
    let result = sqlx::query(
        "UPDATE key_rotations SET lease_owner = $2, lease_until = $3 WHERE id = $1 AND ended_at IS NULL \
         AND (lease_owner IS NULL OR lease_owner = $2 OR lease_until < $4)",
    )
    .bind(id)
    .bind(owner)
    .bind(until.0)
    .bind(now.0)
    .execute(connection)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Writes down how far the present step has come, and goes on holding the rotation until `lease_until`.
pub async fn note(
    connection: &mut Connection,
    id: &str,
    progress: &Progress,
    lease_until: Timestamp,
) -> Result<()> {
    let result = sqlx::query(
        "UPDATE key_rotations SET log_cursor = $2, realisation_cursor = $3, total = $4, done = $5, refused = $6, \
         lease_until = $7 WHERE id = $1 AND ended_at IS NULL",
    )
    .bind(id)
    .bind(progress.log_cursor)
    .bind(&progress.realisation_cursor)
    .bind(progress.total)
    .bind(progress.done)
    .bind(progress.refused)
    .bind(lease_until.0)
    .execute(connection)
    .await?;
    one_row("key_rotations", result.rows_affected())
}

/// Begins the next step of a rotation, which may be its end.
pub async fn go_on(
    connection: &mut Connection,
    row: &RotationRow,
    step: RotationStep,
    progress: &Progress,
    now: Timestamp,
) -> Result<()> {
    let mut steps = row.steps.clone();
    // Begun once more, it is the same step still.
    if steps.last().is_none_or(|(last, _)| *last != step) {
        steps.push((step, now));
    }
    let result = sqlx::query(
        "UPDATE key_rotations SET step = $2, step_since = $3, steps = $4, log_cursor = $5, \
         realisation_cursor = $6, total = $7, done = $8, refused = $9, ended_at = $10 \
         WHERE id = $1 AND step = $11 AND ended_at IS NULL",
    )
    .bind(&row.id)
    .bind(step.as_str())
    .bind(now.0)
    .bind(steps_text(&steps))
    .bind(progress.log_cursor)
    .bind(&progress.realisation_cursor)
    .bind(progress.total)
    .bind(progress.done)
    .bind(progress.refused)
    .bind(step.is_end().then_some(now.0))
    .bind(row.step.as_str())
    .execute(connection)
    .await?;
    one_row("key_rotations", result.rows_affected())
}

/// Says which key comes in place of the old one.
pub async fn set_new_key(connection: &mut Connection, id: &str, key_id: &str) -> Result<()> {
    let result = sqlx::query("UPDATE key_rotations SET new_key_id = $2 WHERE id = $1 AND new_key_id IS NULL")
        .bind(id)
        .bind(key_id)
        .execute(connection)
        .await?;
    one_row("key_rotations", result.rows_affected())
}

/// Pauses a rotation, or with `None` lets it go on.
pub async fn pause(connection: &mut Connection, id: &str, at: Option<Timestamp>) -> Result<()> {
    let result = sqlx::query("UPDATE key_rotations SET paused_at = $2 WHERE id = $1 AND ended_at IS NULL")
        .bind(id)
        .bind(at.map(|at| at.0))
        .execute(connection)
        .await?;
    one_row("key_rotations", result.rows_affected())
}

/// How much is left to be signed again, dropped or withdrawn, of all rotations.
pub async fn left(connection: &mut Connection) -> Result<i64> {
    let (left,): (i64,) = sqlx::query_as(
        "SELECT CAST(COALESCE(SUM(CASE WHEN total > done + refused THEN total - done - refused ELSE 0 END), 0) \
         AS BIGINT) FROM key_rotations WHERE ended_at IS NULL AND step IN ('purge', 'resign', 'drop')",
    )
    .fetch_one(connection)
    .await?;
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::super::signing_keys::KeyState;
    use super::super::testing::{self, NOON, TestDb, on_each_database};
    use super::super::{DbError, Gate};
    use super::*;
    use crate::vault::Purpose;

    async fn begun(connection: &mut Connection, cache: CacheId, id: &str) -> RotationRow {
        let old = testing::key(connection, Purpose::Cache, Some(cache), id, KeyState::Active).await;
        let row = RotationRow {
            id: id.to_owned(),
            cache,
            kind: RotationKind::Planned,
            old_key: Some(old.key.label.id),
            new_key: None,
            step: RotationStep::Publish,
            step_since: NOON,
            steps: vec![(RotationStep::Publish, NOON)],
            publish_days: 7,
            wait_days: 30,
            progress: Progress::begin(3),
            paused_at: None,
            lease_owner: None,
            asked_by: Some(("who".to_owned(), "token".to_owned())),
            reason: Some("old".to_owned()),
            started_at: NOON,
            ended_at: None,
        };
        insert(connection, &row).await.unwrap();
        row
    }

    on_each_database! {
        async fn a_rotation_is_read_as_it_was_written_and_a_cache_has_one_at_a_time(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
            let cache = testing::cache(&mut tx, "main").await.id;
            let other = testing::cache(&mut tx, "other").await.id;
            let row = begun(&mut tx, cache, "a").await;
            begun(&mut tx, other, "b").await;

            assert_eq!(newest(&mut tx, cache).await.unwrap(), Some(row.clone()));
            assert_eq!(under_way(&mut tx).await.unwrap().len(), 2);
            tx.commit().await.unwrap();

            let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
            let second = RotationRow { id: "c".to_owned(), ..row };
            assert!(matches!(insert(&mut tx, &second).await, Err(DbError::Duplicate)));
        }

        async fn one_replica_holds_it_until_its_lease_has_ended(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
            let cache = testing::cache(&mut tx, "main").await.id;
            begun(&mut tx, cache, "a").await;
            let until = NOON.plus_seconds(5);

            assert!(lease(&mut tx, "a", "one", until, NOON).await.unwrap());
            assert!(lease(&mut tx, "a", "one", until, NOON).await.unwrap());
            assert!(!lease(&mut tx, "a", "two", until, until).await.unwrap());
            assert!(lease(&mut tx, "a", "two", until.plus_seconds(5), until.plus_millis(1)).await.unwrap());
            assert_eq!(lock(&mut tx, "a").await.unwrap().unwrap().lease_owner.as_deref(), Some("two"));
        }

        async fn steps_follow_one_another_to_the_end(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
            let cache = testing::cache(&mut tx, "main").await.id;
            let row = begun(&mut tx, cache, "a").await;
            let later = NOON.plus_seconds(1);
            let progress = Progress { log_cursor: 7, done: 2, ..Progress::begin(5) };

            go_on(&mut tx, &row, RotationStep::Resign, &Progress::begin(5), later).await.unwrap();
            // Whoever still believes in the step before changes nothing.
            let stale = go_on(&mut tx, &row, RotationStep::Wait, &Progress::begin(0), later).await;
            assert!(matches!(stale, Err(DbError::Changed { .. })));
            note(&mut tx, "a", &progress, later).await.unwrap();
            pause(&mut tx, "a", Some(later)).await.unwrap();

            let found = lock(&mut tx, "a").await.unwrap().unwrap();
            assert_eq!(found.steps, [(RotationStep::Publish, NOON), (RotationStep::Resign, later)]);
            assert_eq!((found.progress.clone(), found.paused_at), (progress, Some(later)));
            assert_eq!(left(&mut tx).await.unwrap(), 3);

            go_on(&mut tx, &found, RotationStep::Done, &Progress::begin(0), later).await.unwrap();
            assert_eq!(lock(&mut tx, "a").await.unwrap(), None);
            assert_eq!(left(&mut tx).await.unwrap(), 0);
            assert_eq!(newest(&mut tx, cache).await.unwrap().unwrap().ended_at, Some(later));
            begun(&mut tx, cache, "b").await;
        }

        async fn a_row_that_nobody_wrote_is_an_error_and_no_panic(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
            let cache = testing::cache(&mut tx, "main").await.id;
            begun(&mut tx, cache, "a").await;

            for statement in [
                "UPDATE key_rotations SET steps = '[[1]]'",
                "UPDATE key_rotations SET steps = '[]', step = 'best'",
                "UPDATE key_rotations SET step = 'wait', kind = 'best'",
            ] {
                sqlx::query(statement).execute(&mut *tx).await.unwrap();
                let found = newest(&mut tx, cache).await;
                assert!(matches!(found, Err(DbError::Corrupt { .. })), "{statement}: {found:?}");
            }
        }
    }
}
