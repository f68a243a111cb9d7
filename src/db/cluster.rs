//! The one row that says which cluster this database is, and whether it was sealed by hand.

use super::{Connection, Result, corrupt, one_row};
use crate::time::Timestamp;
use crate::vault::VaultVersions;

/// The cluster's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterRow {
    pub cluster_id: String,
    /// Counts the seals: a replica is open only if it opened the vault at the present epoch.
    pub seal_epoch: i64,
    /// While this is set, no replica opens the vault by itself.
    pub sealed_by_hand_at: Option<Timestamp>,
    /// Which ROOT its slots wrap, and with which key-encryption key everything new is sealed.
    pub versions: VaultVersions,
    pub created_at: Timestamp,
}

/// The row; `None` before the first start.
pub async fn read(connection: &mut Connection) -> Result<Option<ClusterRow>> {
    let row: Option<(String, i64, Option<i64>, i64, i64, i64)> = sqlx::query_as(
        "SELECT cluster_id, seal_epoch, sealed_by_hand_at, root_version, kek_version, created_at FROM cluster \
         WHERE id = 1",
    )
    .fetch_optional(connection)
    .await?;
    let Some((cluster_id, seal_epoch, sealed_by_hand_at, root, kek, created_at)) = row else {
        return Ok(None);
    };
    Ok(Some(ClusterRow {
        cluster_id,
        seal_epoch,
        sealed_by_hand_at: sealed_by_hand_at.map(Timestamp),
        versions: versions(root, kek)?,
        created_at: Timestamp(created_at),
    }))
}

pub(super) fn versions(root: i64, kek: i64) -> Result<VaultVersions> {
    let kek = u32::try_from(kek).map_err(|_| corrupt("cluster", "kek_version", "1"))?;
    Ok(VaultVersions { root, kek })
}

/// Makes the row, open. False: there is one already.
pub async fn create(connection: &mut Connection, cluster_id: &str, now: Timestamp) -> Result<bool> {
    let result = sqlx::query(
        "INSERT INTO cluster (id, cluster_id, seal_epoch, created_at) VALUES (1, $1, 0, $2) \
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(cluster_id)
    .bind(now.0)
    .execute(connection)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Seals every replica until somebody unseals it, and answers with the new epoch.
pub async fn seal(connection: &mut Connection, now: Timestamp) -> Result<i64> {
    let (epoch,) = sqlx::query_as(
        "UPDATE cluster SET seal_epoch = seal_epoch + 1, sealed_by_hand_at = $1 WHERE id = 1 \
         RETURNING seal_epoch",
    )
    .bind(now.0)
    .fetch_one(connection)
    .await?;
    Ok(epoch)
}

/// Lets replicas open the vault by themselves again, if nobody sealed it after `epoch`.
pub async fn clear_manual(connection: &mut Connection, epoch: i64) -> Result<()> {
    let result = sqlx::query("UPDATE cluster SET sealed_by_hand_at = NULL WHERE id = 1 AND seal_epoch = $1")
        .bind(epoch)
        .execute(connection)
        .await?;
    one_row("cluster", result.rows_affected())
}

/// Says which ROOT and which key-encryption key are used from now on. [`super::DbError::Changed`]: they are not `before`
/// any more.
pub async fn change_versions(
    connection: &mut Connection,
    before: VaultVersions,
    after: VaultVersions,
) -> Result<()> {
    let result = sqlx::query(
        "UPDATE cluster SET root_version = $1, kek_version = $2 \
         WHERE id = 1 AND root_version = $3 AND kek_version = $4",
    )
    .bind(after.root)
    .bind(i64::from(after.kek))
    .bind(before.root)
    .bind(i64::from(before.kek))
    .execute(connection)
    .await?;
    one_row("cluster", result.rows_affected())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{NOON, TestDb, on_each_database};
    use super::super::{DbError, Gate};
    use super::*;

    on_each_database! {
        async fn there_is_one_cluster_and_its_seals_are_counted(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
            assert_eq!(read(&mut tx).await.unwrap(), None);
            assert!(create(&mut tx, "first", NOON).await.unwrap());
            assert!(!create(&mut tx, "second", NOON).await.unwrap());

            assert_eq!(seal(&mut tx, NOON).await.unwrap(), 1);
            assert_eq!(seal(&mut tx, NOON).await.unwrap(), 2);

            let row = read(&mut tx).await.unwrap().unwrap();
            assert_eq!((row.cluster_id.as_str(), row.seal_epoch), ("first", 2));
            assert_eq!(row.sealed_by_hand_at, Some(NOON));
            assert!(matches!(clear_manual(&mut tx, 1).await, Err(DbError::Changed { .. })));
            clear_manual(&mut tx, 2).await.unwrap();
            assert_eq!(read(&mut tx).await.unwrap().unwrap().sealed_by_hand_at, None);
        }

        async fn versions_begin_at_one_and_change_once(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
            create(&mut tx, "c", NOON).await.unwrap();
            let first = VaultVersions { root: 1, kek: 1 };
            assert_eq!(read(&mut tx).await.unwrap().unwrap().versions, first);
            let second = VaultVersions { root: 2, kek: 3 };

            change_versions(&mut tx, first, second).await.unwrap();

            assert_eq!(read(&mut tx).await.unwrap().unwrap().versions, second);
            for stale in [first, VaultVersions { kek: 1, ..second }, VaultVersions { root: 1, ..second }] {
                let refused = change_versions(&mut tx, stale, first).await;
                assert!(matches!(refused, Err(DbError::Changed { .. })), "{stale:?}");
            }
        }
    }
}
