//! Slots and key-encryption keys: what opens the vault, wrapped. Never sees ROOT.

use super::{Connection, Result, corrupt};
use crate::time::Timestamp;
use crate::vault::{KekRow, Sealed, SlotRow};

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    kind: String,
    params: String,
    wrapped_root: Vec<u8>,
    kcv: Vec<u8>,
    created_at: i64,
}

impl Row {
    fn read(self) -> Result<(SlotRow, Timestamp)> {
        let corrupt = |column| corrupt("vault_slots", column, &self.id);
        let slot = SlotRow {
            kind: self.kind.parse().map_err(|_| corrupt("kind"))?,
            wrapped_root: Sealed::parse(&self.wrapped_root).map_err(|_| corrupt("wrapped_root"))?,
            kcv: self.kcv.as_slice().try_into().map_err(|_| corrupt("kcv"))?,
            id: self.id,
            params: self.params,
        };
        Ok((slot, Timestamp(self.created_at)))
    }
}

/// The slots that open the vault, and when each was made, oldest first.
pub async fn slots(connection: &mut Connection) -> Result<Vec<(SlotRow, Timestamp)>> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, kind, params, wrapped_root, kcv, created_at FROM vault_slots \
         WHERE removed_at IS NULL ORDER BY id ASC",
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(Row::read).collect()
}

/// Writes a new slot down.
pub async fn insert_slot(connection: &mut Connection, slot: &SlotRow, now: Timestamp) -> Result<()> {
    sqlx::query(
        "INSERT INTO vault_slots (id, kind, params, wrapped_root, kcv, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(&slot.id)
    .bind(slot.kind.as_str())
    .bind(&slot.params)
    .bind(slot.wrapped_root.as_bytes())
    .bind(&slot.kcv[..])
    .bind(now.0)
    .execute(connection)
    .await?;
    Ok(())
}

/// Takes a slot away: its secret opens nothing any more, and what it wrapped is overwritten. False: there is no such
/// slot.
pub async fn remove_slot(connection: &mut Connection, id: &str, now: Timestamp) -> Result<bool> {
    let nothing: &[u8] = &[];
    let result = sqlx::query(
        "UPDATE vault_slots SET removed_at = $2, wrapped_root = $3, kcv = $3 \
         WHERE id = $1 AND removed_at IS NULL",
    )
    .bind(id)
    .bind(now.0)
    .bind(nothing)
    .execute(connection)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// The key-encryption keys, oldest first.
pub async fn keks(connection: &mut Connection) -> Result<Vec<KekRow>> {
    let rows: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT version, wrapped FROM vault_keks ORDER BY version ASC")
            .fetch_all(connection)
            .await?;
    rows.into_iter()
        .map(|(version, wrapped)| {
            let corrupt = |column| corrupt("vault_keks", column, &version.to_string());
            Ok(KekRow {
                version: u32::try_from(version).map_err(|_| corrupt("version"))?,
                wrapped: Sealed::parse(&wrapped).map_err(|_| corrupt("wrapped"))?,
            })
        })
        .collect()
}

/// Writes a new key-encryption key down. [`super::DbError::Duplicate`]: the version was used before.
pub async fn insert_kek(connection: &mut Connection, kek: &KekRow, now: Timestamp) -> Result<()> {
    sqlx::query("INSERT INTO vault_keks (version, wrapped, state, created_at) VALUES ($1, $2, 'active', $3)")
        .bind(i64::from(kek.version))
        .bind(kek.wrapped.as_bytes())
        .bind(now.0)
        .execute(connection)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{NOON, TestDb, on_each_database};
    use super::super::{DbError, Gate};
    use super::*;
    use crate::vault::SlotKind;

    fn sealed() -> Sealed {
        let mut bytes = [7; 78];
        bytes[..6].copy_from_slice(&[1, 1, 0, 0, 0, 0]);
        Sealed::parse(&bytes).unwrap()
    }

    on_each_database! {
        async fn slots_and_keks_are_read_as_they_were_written(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
            let slot = SlotRow {
                id: "slot".to_owned(),
                kind: SlotKind::Passphrase,
                params: "params".to_owned(),
                wrapped_root: sealed(),
                kcv: [9; 32],
            };
            let kek = KekRow { version: 1, wrapped: sealed() };

            insert_slot(&mut tx, &slot, NOON).await.unwrap();
            insert_kek(&mut tx, &kek, NOON).await.unwrap();

            assert_eq!(slots(&mut tx).await.unwrap(), [(slot, NOON)]);
            assert_eq!(keks(&mut tx).await.unwrap(), std::slice::from_ref(&kek));
            assert!(remove_slot(&mut tx, "slot", NOON).await.unwrap());
            assert!(!remove_slot(&mut tx, "slot", NOON).await.unwrap());
            assert_eq!(slots(&mut tx).await.unwrap(), []);
            assert!(matches!(insert_kek(&mut tx, &kek, NOON).await, Err(DbError::Duplicate)));
        }
    }
}
