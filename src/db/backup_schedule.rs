//! The one row that says when the newest backup to storage was made, and who is at the next one.

use super::{Connection, Result};
use crate::time::Timestamp;

/// The newest backup to storage that was finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupRow {
    /// When it was begun: it has the rows as they were then.
    pub made_at: Timestamp,
    /// How its object is called.
    pub name: String,
    pub size_bytes: i64,
}

/// The newest one; `None` before the first.
pub async fn newest(connection: &mut Connection) -> Result<Option<BackupRow>> {
    let row: (Option<i64>, Option<String>, Option<i64>) =
        sqlx::query_as("SELECT made_at, name, size FROM backup_schedule WHERE id = 1")
            .fetch_one(connection)
            .await?;
    let (Some(made_at), Some(name), Some(size_bytes)) = row else { return Ok(None) };
    Ok(Some(BackupRow { made_at: Timestamp(made_at), name, size_bytes }))
}

/// Takes the next backup upon oneself until `until`, if the newest one was made at `due` or before and nobody else is
/// at it. False: not now. Times beyond what is possible now are those of a clock that was wrong, and hold nobody up.
pub async fn lease(
    connection: &mut Connection,
    owner: &str,
    due: Timestamp,
    now: Timestamp,
    until: Timestamp,
) -> Result<bool> {
    let result = sqlx::query(
        "UPDATE backup_schedule SET lease_owner = $1, lease_until = $2 \
         WHERE id = 1 AND (made_at IS NULL OR made_at <= $3 OR made_at > $4) \
         AND (lease_until IS NULL OR lease_until <= $4 OR lease_until > $2)",
    )
    .bind(owner)
    .bind(until.0)
    .bind(due.0)
    .bind(now.0)
    .execute(connection)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Notes that a backup is finished. One that took longer than its lease counts too, unless a newer one is there; then
/// whoever has the lease by now keeps it.
pub async fn finish(connection: &mut Connection, owner: &str, row: &BackupRow, now: Timestamp) -> Result<()> {
    sqlx::query(
        "UPDATE backup_schedule SET made_at = $1, name = $2, size = $3 \
         WHERE id = 1 AND (made_at IS NULL OR made_at < $1 OR made_at > $4)",
    )
    .bind(row.made_at.0)
    .bind(&row.name)
    .bind(row.size_bytes)
    .bind(now.0)
    .execute(&mut *connection)
    .await?;
    release(connection, owner).await
}

/// Gives the lease back, if it is held.
pub async fn release(connection: &mut Connection, owner: &str) -> Result<()> {
    sqlx::query(
        "UPDATE backup_schedule SET lease_owner = NULL, lease_until = NULL WHERE id = 1 AND lease_owner = $1",
    )
    .bind(owner)
    .execute(connection)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Gate;
    use super::super::testing::{NOON, TestDb, on_each_database};
    use super::*;

    fn made(hours: i64) -> BackupRow {
        BackupRow { made_at: at(hours), name: format!("backup {hours}"), size_bytes: hours }
    }

    fn at(hours: i64) -> Timestamp {
        NOON.plus_seconds(hours * 3600)
    }

    on_each_database! {
        async fn one_replica_makes_each_backup(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Around).await.unwrap();
            assert_eq!(newest(&mut tx).await.unwrap(), None);

            assert!(lease(&mut tx, "a", at(-6), at(0), at(1)).await.unwrap());
            assert!(!lease(&mut tx, "b", at(-6), at(0), at(1)).await.unwrap());
            finish(&mut tx, "a", &made(0), at(1)).await.unwrap();

            assert_eq!(newest(&mut tx).await.unwrap(), Some(made(0)));
            assert!(!lease(&mut tx, "b", at(-1), at(5), at(6)).await.unwrap(), "it is not due");
            assert!(lease(&mut tx, "b", at(0), at(6), at(7)).await.unwrap());
        }

        async fn a_replica_that_stalls_or_fails_is_followed_by_another(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Around).await.unwrap();
            assert!(lease(&mut tx, "a", at(-6), at(0), at(1)).await.unwrap());

            assert!(lease(&mut tx, "b", at(-5), at(1), at(2)).await.unwrap());
            // Too late: it is somebody else's.
            release(&mut tx, "a").await.unwrap();
            assert!(!lease(&mut tx, "a", at(-4), at(1), at(2)).await.unwrap());
            release(&mut tx, "b").await.unwrap();

            assert!(lease(&mut tx, "a", at(-4), at(1), at(2)).await.unwrap());
        }

        async fn a_clock_that_was_wrong_holds_nobody_up(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Around).await.unwrap();
            assert!(lease(&mut tx, "a", at(9000), at(9006), at(9007)).await.unwrap());

            assert!(lease(&mut tx, "b", at(-6), at(0), at(1)).await.unwrap(), "a lease from the future");
            finish(&mut tx, "b", &made(9006), at(9006)).await.unwrap();
            assert!(lease(&mut tx, "b", at(-6), at(0), at(1)).await.unwrap(), "a backup from the future");
            finish(&mut tx, "b", &made(0), at(1)).await.unwrap();

            assert_eq!(newest(&mut tx).await.unwrap(), Some(made(0)));
        }

        async fn the_newest_stays_the_newest(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Around).await.unwrap();
            finish(&mut tx, "a", &made(2), at(2)).await.unwrap();

            finish(&mut tx, "a", &made(1), at(3)).await.unwrap();

            assert_eq!(newest(&mut tx).await.unwrap(), Some(made(2)));
        }
    }
}
