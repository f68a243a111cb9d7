//! Slots and key-encryption keys: what opens the vault, wrapped. Never sees ROOT.

use super::{Connection, Result, corrupt, one_row};
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

/// Puts the record of another ROOT in the place of a slot's. [`super::DbError::Changed`]: the slot is not as it was.
pub async fn rewrap_slot(connection: &mut Connection, before: &SlotRow, after: &SlotRow) -> Result<()> {
    let result = sqlx::query(
        "UPDATE vault_slots SET wrapped_root = $3 WHERE id = $1 AND wrapped_root = $2 AND removed_at IS NULL",
    )
    .bind(&before.id)
    .bind(before.wrapped_root.as_bytes())
    .bind(after.wrapped_root.as_bytes())
    .execute(connection)
    .await?;
    one_row("vault_slots", result.rows_affected())
}

/// The key-encryption keys that something may be sealed with, oldest first.
pub async fn keks(connection: &mut Connection) -> Result<Vec<KekRow>> {
    let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(
        "SELECT version, wrapped FROM vault_keks WHERE state <> 'retired' ORDER BY version ASC",
    )
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

/// Writes a new key-encryption key down: those before it are on their way out from then on.
/// [`super::DbError::Duplicate`]: the version was used before.
pub async fn insert_kek(connection: &mut Connection, kek: &KekRow, now: Timestamp) -> Result<()> {
    sqlx::query("UPDATE vault_keks SET state = 'retiring' WHERE state = 'active'")
        .execute(&mut *connection)
        .await?;
    sqlx::query("INSERT INTO vault_keks (version, wrapped, state, created_at) VALUES ($1, $2, 'active', $3)")
        .bind(i64::from(kek.version))
        .bind(kek.wrapped.as_bytes())
        .bind(now.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Puts the record of another ROOT in the place of a key-encryption key's. [`super::DbError::Changed`]: it is not as it
/// was.
pub async fn rewrap_kek(connection: &mut Connection, before: &KekRow, after: &KekRow) -> Result<()> {
    let result = sqlx::query(
        "UPDATE vault_keks SET wrapped = $3 WHERE version = $1 AND wrapped = $2 AND state <> 'retired'",
    )
    .bind(i64::from(before.version))
    .bind(before.wrapped.as_bytes())
    .bind(after.wrapped.as_bytes())
    .execute(connection)
    .await?;
    one_row("vault_keks", result.rows_affected())
}

/// Ends a key-encryption key that nothing is sealed with any more: what ROOT wrapped is overwritten, for ever.
/// [`super::DbError::Changed`]: it is not on its way out.
pub async fn retire_kek(connection: &mut Connection, kek: &KekRow, now: Timestamp) -> Result<()> {
    let result = sqlx::query(
        "UPDATE vault_keks SET state = 'retired', wrapped = $2, retired_at = $3 \
         WHERE version = $1 AND state = 'retiring'",
    )
    .bind(i64::from(kek.version))
    .bind(kek.wrapped.erased().as_bytes())
    .bind(now.0)
    .execute(connection)
    .await?;
    one_row("vault_keks", result.rows_affected())
}

/// Writes to a record as somebody with the database in hand could.
#[cfg(test)]
pub async fn overwrite_kek(connection: &mut Connection, version: u32, wrapped: &Sealed) {
    sqlx::query("UPDATE vault_keks SET wrapped = $2 WHERE version = $1")
        .bind(i64::from(version))
        .bind(wrapped.as_bytes())
        .execute(connection)
        .await
        .unwrap();
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
        }

        async fn a_version_of_a_kek_is_used_once(test: &TestDb) {
            let kek = KekRow { version: 1, wrapped: sealed() };
            let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
            insert_kek(&mut tx, &kek, NOON).await.unwrap();

            assert!(matches!(insert_kek(&mut tx, &kek, NOON).await, Err(DbError::Duplicate)));
        }

        async fn a_kek_on_its_way_out_is_overwritten_once_and_the_newest_is_not(test: &TestDb) {
            let [first, second] = [1, 2].map(|version| KekRow { version, wrapped: sealed() });
            let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
            insert_kek(&mut tx, &first, NOON).await.unwrap();
            assert!(matches!(retire_kek(&mut tx, &first, NOON).await, Err(DbError::Changed { .. })));
            insert_kek(&mut tx, &second, NOON).await.unwrap();
            assert_eq!(keks(&mut tx).await.unwrap(), [first.clone(), second.clone()]);

            retire_kek(&mut tx, &first, NOON).await.unwrap();

            assert_eq!(keks(&mut tx).await.unwrap(), std::slice::from_ref(&second));
            let (wrapped, retired_at): (Vec<u8>, Option<i64>) =
                sqlx::query_as("SELECT wrapped, retired_at FROM vault_keks WHERE version = 1")
                    .fetch_one(&mut *tx)
                    .await
                    .unwrap();
            assert!(Sealed::parse(&wrapped).unwrap().is_erased());
            assert_eq!(retired_at, Some(NOON.0));
            for refused in [&first, &second] {
                assert!(matches!(retire_kek(&mut tx, refused, NOON).await, Err(DbError::Changed { .. })));
            }
            assert!(matches!(rewrap_kek(&mut tx, &first, &first).await, Err(DbError::Changed { .. })));
        }

        async fn only_what_is_as_it_was_is_rewrapped(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Exclusive).await.unwrap();
            let slot = SlotRow {
                id: "slot".to_owned(),
                kind: SlotKind::KeyFile,
                params: String::new(),
                wrapped_root: sealed(),
                kcv: [9; 32],
            };
            let kek = KekRow { version: 1, wrapped: sealed() };
            insert_slot(&mut tx, &slot, NOON).await.unwrap();
            insert_kek(&mut tx, &kek, NOON).await.unwrap();
            let mut bytes = sealed().as_bytes().to_vec();
            bytes[70] ^= 1;
            let other = Sealed::parse(&bytes).unwrap();
            let (new_slot, new_kek) =
                (SlotRow { wrapped_root: other.clone(), ..slot.clone() }, KekRow { version: 1, wrapped: other });

            rewrap_slot(&mut tx, &slot, &new_slot).await.unwrap();
            rewrap_kek(&mut tx, &kek, &new_kek).await.unwrap();

            assert_eq!(slots(&mut tx).await.unwrap(), [(new_slot.clone(), NOON)]);
            assert_eq!(keks(&mut tx).await.unwrap(), std::slice::from_ref(&new_kek));
            assert!(matches!(rewrap_slot(&mut tx, &slot, &slot).await, Err(DbError::Changed { .. })));
            assert!(matches!(rewrap_kek(&mut tx, &kek, &kek).await, Err(DbError::Changed { .. })));
            remove_slot(&mut tx, "slot", NOON).await.unwrap();
            assert!(matches!(rewrap_slot(&mut tx, &new_slot, &slot).await, Err(DbError::Changed { .. })));
        }
    }
}
