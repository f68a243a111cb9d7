//! Rows that are sealed anew under another key-encryption key (KEK): how far that is, and which replica is at it.
//!
//! Never touches what is sealed: [`super::sealed_rows`] does.

use super::dialect::Dialect;
use super::{Connection, Result, corrupt, one_row};
use crate::time::Timestamp;

/// Where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KekRotationState {
    /// Nothing is sealed with an older KEK any more.
    Done,
    /// Rows are sealed anew, one batch after the other.
    Rewrap,
    /// A later KEK came: its rotation has taken over what was left.
    Superseded,
}

impl KekRotationState {
    /// The word in the column and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Rewrap => "rewrap",
            Self::Superseded => "superseded",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Done, Self::Rewrap, Self::Superseded].into_iter().find(|state| state.as_str() == text)
    }
}

/// A rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KekRotationRow {
    /// UUIDv7 text.
    pub id: String,
    /// The KEK that rows are sealed under.
    pub kek_version: u32,
    pub state: KekRotationState,
    pub progress: KekProgress,
    /// When the next batch may come.
    pub due_at: Timestamp,
    pub lease_owner: Option<String>,
    /// Contributor and token of whoever asked for it; `None`: somebody on the host.
    pub asked_by: Option<(String, String)>,
    pub started_at: Timestamp,
    pub ended_at: Option<Timestamp>,
}

/// How far a pass over all rows has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KekProgress {
    /// The id of the last key that was looked at, then of the last webhook; empty as a pass begins.
    pub key_cursor: String,
    pub webhook_cursor: String,
    /// Rows that there were to do at the beginning.
    pub total: i64,
    pub done: i64,
    /// Names of rows that do not open, as this pass found them.
    pub damaged: Vec<String>,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    kek_version: i64,
    state: String,
    key_cursor: String,
    webhook_cursor: String,
    total: i64,
    done: i64,
    damaged: String,
    due_at: i64,
    lease_owner: Option<String>,
    contributor_id: Option<String>,
    token_id: Option<String>,
    started_at: i64,
    ended_at: Option<i64>,
}

impl Row {
    fn read(self) -> Result<KekRotationRow> {
        let corrupt = |column| corrupt("kek_rotations", column, &self.id);
        Ok(KekRotationRow {
            kek_version: u32::try_from(self.kek_version).map_err(|_| corrupt("kek_version"))?,
            state: KekRotationState::parse(&self.state).ok_or_else(|| corrupt("state"))?,
            progress: KekProgress {
                damaged: serde_json::from_str(&self.damaged).map_err(|_| corrupt("damaged"))?,
                key_cursor: self.key_cursor,
                webhook_cursor: self.webhook_cursor,
                total: self.total,
                done: self.done,
            },
            id: self.id,
            due_at: Timestamp(self.due_at),
            lease_owner: self.lease_owner,
            asked_by: self.contributor_id.zip(self.token_id),
            started_at: Timestamp(self.started_at),
            ended_at: self.ended_at.map(Timestamp),
        })
    }
}

/// Begins a rotation, and ends one that was under way: all its rows are this one's now.
pub async fn begin(connection: &mut Connection, row: &KekRotationRow) -> Result<()> {
    sqlx::query("UPDATE kek_rotations SET state = 'superseded', ended_at = $1 WHERE ended_at IS NULL")
        .bind(row.started_at.0)
        .execute(&mut *connection)
        .await?;
    let (contributor, token) = row.asked_by.clone().unzip();
    sqlx::query(
        "INSERT INTO kek_rotations (id, kek_version, state, key_cursor, webhook_cursor, total, done, damaged, due_at, \
         contributor_id, token_id, started_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
    )
    .bind(&row.id)
    .bind(i64::from(row.kek_version))
    .bind(row.state.as_str())
    .bind(&row.progress.key_cursor)
    .bind(&row.progress.webhook_cursor)
    .bind(row.progress.total)
    .bind(row.progress.done)
    .bind(names_text(&row.progress.damaged))
    .bind(row.due_at.0)
    .bind(contributor)
    .bind(token)
    .bind(row.started_at.0)
    .execute(connection)
    .await?;
    Ok(())
}

fn names_text(names: &[String]) -> String {
    serde_json::json!(names).to_string()
}

/// The rotation that is under way, or else the last one.
pub async fn newest(connection: &mut Connection) -> Result<Option<KekRotationRow>> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT id, kek_version, state, key_cursor, webhook_cursor, total, done, damaged, due_at, lease_owner, \
         contributor_id, token_id, started_at, ended_at FROM kek_rotations ORDER BY kek_version DESC LIMIT 1",
    )
    .fetch_optional(connection)
    .await?;
    row.map(Row::read).transpose()
}

/// Locks a rotation until the end of the transaction, and gives it as it stands then; `None` once it is at its end.
pub async fn lock(connection: &mut Connection, id: &str) -> Result<Option<KekRotationRow>> {
    macro_rules! select {
        ($lock:literal) => {
            concat!(
                "SELECT id, kek_version, state, key_cursor, webhook_cursor, total, done, damaged, due_at, \
                 lease_owner, contributor_id, token_id, started_at, ended_at FROM kek_rotations \
                 WHERE id = $1 AND ended_at IS NULL",
                $lock
            )
        };
    }
    let statement = Dialect::of(connection).pick(select!(" FOR UPDATE"), select!(""));
    let row: Option<Row> = sqlx::query_as(statement).bind(id).fetch_optional(connection).await?;
    row.map(Row::read).transpose()
}

/// Takes a rotation up, or goes on holding it, until `until`. False: another replica works on it, or it is at its end. A
/// lease that ends later than one from now would is of a clock that was wrong, and holds nobody up.
pub async fn lease(
    connection: &mut Connection,
    id: &str,
    owner: &str,
    until: Timestamp,
    now: Timestamp,
) -> Result<bool> {
    let result = sqlx::query(
        "UPDATE kek_rotations SET lease_owner = $2, lease_until = $3 WHERE id = $1 AND ended_at IS NULL \
         AND (lease_owner IS NULL OR lease_owner = $2 OR lease_until <= $4 OR lease_until > $3)",
    )
    .bind(id)
    .bind(owner)
    .bind(until.0)
    .bind(now.0)
    .execute(connection)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Writes down how far it is, and when the next batch may come.
pub async fn note(
    connection: &mut Connection,
    id: &str,
    progress: &KekProgress,
    due_at: Timestamp,
) -> Result<()> {
    let result = sqlx::query(
        "UPDATE kek_rotations SET key_cursor = $2, webhook_cursor = $3, total = $4, done = $5, damaged = $6, \
         due_at = $7 WHERE id = $1 AND ended_at IS NULL",
    )
    .bind(id)
    .bind(&progress.key_cursor)
    .bind(&progress.webhook_cursor)
    .bind(progress.total)
    .bind(progress.done)
    .bind(names_text(&progress.damaged))
    .bind(due_at.0)
    .execute(connection)
    .await?;
    one_row("kek_rotations", result.rows_affected())
}

/// Ends a rotation: nothing is sealed with an older KEK any more.
pub async fn finish(connection: &mut Connection, id: &str, now: Timestamp) -> Result<()> {
    let result = sqlx::query(
        "UPDATE kek_rotations SET state = 'done', damaged = '[]', ended_at = $2, lease_owner = NULL, \
         lease_until = NULL WHERE id = $1 AND ended_at IS NULL",
    )
    .bind(id)
    .bind(now.0)
    .execute(connection)
    .await?;
    one_row("kek_rotations", result.rows_affected())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{NOON, TestDb, on_each_database};
    use super::super::{DbError, Gate, Tx, vault};
    use super::*;
    use crate::vault::{KekRow, Sealed};

    fn row(kek_version: u32) -> KekRotationRow {
        KekRotationRow {
            id: format!("rotation-{kek_version}"),
            kek_version,
            state: KekRotationState::Rewrap,
            progress: KekProgress { total: 7, ..KekProgress::default() },
            due_at: NOON,
            lease_owner: None,
            asked_by: Some(("anna".to_owned(), "token".to_owned())),
            started_at: NOON,
            ended_at: None,
        }
    }

    async fn keks(tx: &mut Tx, versions: std::ops::RangeInclusive<u32>) {
        for version in versions {
            let wrapped = Sealed::parse(&[&Sealed::header(0)[..], &[7; 72]].concat()).unwrap();
            vault::insert_kek(tx, &KekRow { version, wrapped }, NOON).await.unwrap();
        }
    }

    on_each_database! {
        async fn a_rotation_is_read_as_it_was_written_and_ends_once(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
            keks(&mut tx, 1..=2).await;
            assert_eq!(newest(&mut tx).await.unwrap(), None);
            begin(&mut tx, &row(2)).await.unwrap();
            assert_eq!(newest(&mut tx).await.unwrap(), Some(row(2)));
            let progress = KekProgress {
                key_cursor: "k".to_owned(),
                webhook_cursor: "w".to_owned(),
                total: 8,
                done: 3,
                damaged: vec!["main-1".to_owned()],
            };

            let later = NOON.plus_seconds(1);
            note(&mut tx, "rotation-2", &progress, later).await.unwrap();

            let locked = lock(&mut tx, "rotation-2").await.unwrap().unwrap();
            assert_eq!((&locked.progress, locked.due_at), (&progress, later));
            finish(&mut tx, "rotation-2", later).await.unwrap();
            let ended = newest(&mut tx).await.unwrap().unwrap();
            assert_eq!((ended.state, ended.ended_at), (KekRotationState::Done, Some(later)));
            assert!(ended.progress.damaged.is_empty());
            assert_eq!(lock(&mut tx, "rotation-2").await.unwrap(), None);
            assert!(matches!(finish(&mut tx, "rotation-2", later).await, Err(DbError::Changed { .. })));
            let noted = note(&mut tx, "rotation-2", &progress, later).await;
            assert!(matches!(noted, Err(DbError::Changed { .. })));
        }

        async fn one_replica_holds_it_at_a_time(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
            keks(&mut tx, 1..=2).await;
            begin(&mut tx, &row(2)).await.unwrap();
            let until = |seconds| NOON.plus_seconds(seconds);

            for (owner, until, now, expected) in [
                ("one", until(10), NOON, true),
                ("two", until(10), NOON, false),
                ("one", until(11), until(1), true),
                ("two", until(20), until(10), false),
                ("two", until(21), until(11), true),
                // By a clock that was wrong, long ahead.
                ("one", until(5), NOON, true),
            ] {
                let leased = lease(&mut tx, "rotation-2", owner, until, now).await.unwrap();
                assert_eq!(leased, expected, "{owner} {until}");
            }
            finish(&mut tx, "rotation-2", NOON).await.unwrap();
            assert!(!lease(&mut tx, "rotation-2", "one", until(99), until(90)).await.unwrap());
        }

        async fn a_later_rotation_takes_over(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
            keks(&mut tx, 1..=3).await;
            begin(&mut tx, &row(2)).await.unwrap();

            begin(&mut tx, &row(3)).await.unwrap();

            assert_eq!(newest(&mut tx).await.unwrap(), Some(row(3)));
            assert_eq!(lock(&mut tx, "rotation-2").await.unwrap(), None);
            assert!(matches!(begin(&mut tx, &row(3)).await, Err(DbError::Duplicate)));
        }
    }
}
