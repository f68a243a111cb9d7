//! Keys: public halves in clear, seeds sealed. Never sees a seed.

use std::collections::HashSet;

use super::{Connection, Result, corrupt, epoch, one_row};
use crate::access::CacheId;
use crate::nix::signature::{KeyName, PublicKey};
use crate::time::Timestamp;
use crate::vault::{KeyLabel, Purpose, Sealed, SealedKey};

/// Where a key stands between its making and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyState {
    /// Published, signs not yet.
    Next,
    /// Signs.
    Active,
    /// Still signs, beside an active one.
    Retiring,
    /// Signs no longer, is still to be trusted.
    Retired,
    /// Not to be trusted.
    Compromised,
    /// Not to be trusted, and its sealed seed was overwritten.
    Destroyed,
}

impl KeyState {
    const ALL: [Self; 6] =
        [Self::Next, Self::Active, Self::Retiring, Self::Retired, Self::Compromised, Self::Destroyed];

    /// The word in the column, in JSON and in leaves.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::Active => "active",
            Self::Retiring => "retiring",
            Self::Retired => "retired",
            Self::Compromised => "compromised",
            Self::Destroyed => "destroyed",
        }
    }

    /// Whether new signatures are made with it.
    pub fn signs(self) -> bool {
        matches!(self, Self::Active | Self::Retiring)
    }

    /// Whether it makes signatures now, or will.
    pub fn may_sign(self) -> bool {
        self == Self::Next || self.signs()
    }

    /// Whether clients should trust it.
    pub fn is_trusted(self) -> bool {
        !matches!(self, Self::Compromised | Self::Destroyed)
    }

    /// Reads what [`KeyState::as_str`] gives.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// A key: what the vault needs of it, and what the service needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRow {
    pub key: SealedKey,
    /// Name and public half, as clients trust them.
    pub public_key: PublicKey,
    pub state: KeyState,
    /// Whether the secret was made elsewhere, and so may be known elsewhere.
    pub imported: bool,
    pub created_at: Timestamp,
}

impl KeyRow {
    /// Whether nothing is left of its seed: it was destroyed, or the log alone knows of the key since a database was
    /// lost.
    pub fn is_erased(&self) -> bool {
        self.key.sealed.is_erased()
    }
}

#[derive(sqlx::FromRow)]
pub(super) struct Row {
    pub(super) id: String,
    purpose: String,
    cache_id: Option<String>,
    pub(super) name: String,
    version: i64,
    public_key: Vec<u8>,
    sealed: Vec<u8>,
    kek_version: i64,
    state: String,
    imported_at: Option<i64>,
    created_at: i64,
}

impl Row {
    pub(super) fn read(self) -> Result<KeyRow> {
        let corrupt = |column| corrupt("signing_keys", column, &self.id);
        let name: KeyName = self.name.parse().map_err(|_| corrupt("name"))?;
        let bytes: [u8; 32] = self.public_key.as_slice().try_into().map_err(|_| corrupt("public_key"))?;
        let key = SealedKey {
            label: KeyLabel {
                id: self.id.clone(),
                name: self.name.clone(),
                version: u32::try_from(self.version).map_err(|_| corrupt("version"))?,
                purpose: self.purpose.parse().map_err(|_| corrupt("purpose"))?,
                cache_id: self.cache_id.clone(),
            },
            public_key: bytes,
            sealed: Sealed::parse(&self.sealed).map_err(|_| corrupt("sealed"))?,
        };
        if i64::from(key.sealed.kek_version()) != self.kek_version {
            return Err(corrupt("kek_version"));
        }
        Ok(KeyRow {
            key,
            public_key: PublicKey::new(name, &bytes).map_err(|_| corrupt("public_key"))?,
            state: KeyState::parse(&self.state).ok_or_else(|| corrupt("state"))?,
            imported: self.imported_at.is_some(),
            created_at: Timestamp(self.created_at),
        })
    }
}

/// The keys that sign for a cache now: active and retiring, oldest first.
pub async fn active_of_cache(connection: &mut Connection, cache: CacheId) -> Result<Vec<KeyRow>> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, purpose, cache_id, name, version, public_key, sealed, kek_version, state, imported_at, \
         created_at FROM signing_keys WHERE cache_id = $1 AND state IN ('active', 'retiring') ORDER BY id ASC",
    )
    .bind(cache.to_string())
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(Row::read).collect()
}

/// Every key that a cache ever had, oldest first.
pub async fn of_cache(connection: &mut Connection, cache: CacheId) -> Result<Vec<KeyRow>> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, purpose, cache_id, name, version, public_key, sealed, kek_version, state, imported_at, \
         created_at FROM signing_keys WHERE cache_id = $1 ORDER BY id ASC",
    )
    .bind(cache.to_string())
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(Row::read).collect()
}

/// Every key of this purpose, oldest first.
pub async fn by_purpose(connection: &mut Connection, purpose: Purpose) -> Result<Vec<KeyRow>> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, purpose, cache_id, name, version, public_key, sealed, kek_version, state, imported_at, \
         created_at FROM signing_keys WHERE purpose = $1 ORDER BY id ASC",
    )
    .bind(purpose.as_str())
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(Row::read).collect()
}

/// The names of all keys that this server ever had: no `Sig:` that bears one is taken over.
pub async fn names(connection: &mut Connection) -> Result<Vec<KeyName>> {
    let rows: Vec<(String,)> =
        sqlx::query_as("SELECT name FROM signing_keys ORDER BY id ASC").fetch_all(connection).await?;
    rows.into_iter().map(|(name,)| name.parse().map_err(|_| corrupt("signing_keys", "name", &name))).collect()
}

/// Writes a new key down, and has every replica forget the keys that it knows. [`super::DbError::Duplicate`]: the name
/// was given before.
pub async fn insert(connection: &mut Connection, row: &KeyRow) -> Result<()> {
    let label = &row.key.label;
    sqlx::query(
        "INSERT INTO signing_keys (id, purpose, cache_id, name, version, public_key, sealed, kek_version, state, \
         imported_at, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(&label.id)
    .bind(label.purpose.as_str())
    .bind(&label.cache_id)
    .bind(&label.name)
    .bind(i64::from(label.version))
    .bind(&row.key.public_key[..])
    .bind(row.key.sealed.as_bytes())
    .bind(i64::from(row.key.sealed.kek_version()))
    .bind(row.state.as_str())
    .bind(row.imported.then_some(row.created_at.0))
    .bind(row.created_at.0)
    .execute(&mut *connection)
    .await?;
    epoch::advance(connection).await
}

/// The key of this name, whosever it is.
pub async fn named(connection: &mut Connection, name: &KeyName) -> Result<Option<KeyRow>> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT id, purpose, cache_id, name, version, public_key, sealed, kek_version, state, imported_at, \
         created_at FROM signing_keys WHERE name = $1",
    )
    .bind(name.as_str())
    .fetch_optional(connection)
    .await?;
    row.map(Row::read).transpose()
}

/// Moves a key from one state to another, and has every replica forget the keys that it knows.
pub async fn change_state(connection: &mut Connection, id: &str, from: KeyState, to: KeyState) -> Result<()> {
    let result = sqlx::query("UPDATE signing_keys SET state = $3 WHERE id = $1 AND state = $2")
        .bind(id)
        .bind(from.as_str())
        .bind(to.as_str())
        .execute(&mut *connection)
        .await?;
    one_row("signing_keys", result.rows_affected())?;
    epoch::advance(connection).await
}

/// The key of a cache under this name.
pub async fn by_name(connection: &mut Connection, cache: CacheId, name: &KeyName) -> Result<Option<KeyRow>> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT id, purpose, cache_id, name, version, public_key, sealed, kek_version, state, imported_at, \
         created_at FROM signing_keys WHERE cache_id = $1 AND name = $2",
    )
    .bind(cache.to_string())
    .bind(name.as_str())
    .fetch_optional(connection)
    .await?;
    row.map(Row::read).transpose()
}

/// The ids of all keys that may be open: those that sign.
pub async fn ids_of_signing(connection: &mut Connection) -> Result<HashSet<String>> {
    let rows: Vec<(String,)> =
        sqlx::query_as("SELECT id FROM signing_keys WHERE state IN ('active', 'retiring')")
            .fetch_all(connection)
            .await?;
    Ok(rows.into_iter().map(|(id,)| id).collect())
}

/// Puts another record in the place of a sealed seed, which is gone then.
pub async fn overwrite_sealed(connection: &mut Connection, id: &str, sealed: &Sealed) -> Result<()> {
    let result = sqlx::query("UPDATE signing_keys SET sealed = $2, kek_version = $3 WHERE id = $1")
        .bind(id)
        .bind(sealed.as_bytes())
        .bind(i64::from(sealed.kek_version()))
        .execute(connection)
        .await?;
    one_row("signing_keys", result.rows_affected())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, TestDb, on_each_database};
    use super::super::{DbError, Gate};
    use super::*;

    on_each_database! {
        async fn a_key_is_read_as_it_was_written(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let cache = testing::cache(&mut tx, "main").await.id;
            let own = testing::key(&mut tx, Purpose::Cache, Some(cache), "main-1", KeyState::Active).await;
            let log = testing::key(&mut tx, Purpose::Log, None, "log", KeyState::Active).await;

            assert_eq!(of_cache(&mut tx, cache).await.unwrap(), [own]);
            assert_eq!(by_purpose(&mut tx, Purpose::Log).await.unwrap(), [log]);
            assert_eq!(by_purpose(&mut tx, Purpose::Token).await.unwrap(), []);
        }

        async fn only_active_and_retiring_keys_sign(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let cache = testing::cache(&mut tx, "main").await.id;
            for state in KeyState::ALL {
                testing::key(&mut tx, Purpose::Cache, Some(cache), state.as_str(), state).await;
            }

            let mut found: Vec<_> =
                active_of_cache(&mut tx, cache).await.unwrap().into_iter().map(|row| row.key.label.name).collect();

            found.sort();
            assert_eq!(found, ["active", "retiring"]);
        }

        async fn a_key_is_found_by_its_name_and_its_seed_overwritten(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let cache = testing::cache(&mut tx, "main").await.id;
            let other = testing::cache(&mut tx, "other").await.id;
            let row = testing::key(&mut tx, Purpose::Cache, Some(cache), "main-1", KeyState::Retired).await;
            let name = row.public_key.name().clone();

            assert_eq!(by_name(&mut tx, cache, &name).await.unwrap(), Some(row.clone()));
            assert_eq!(by_name(&mut tx, other, &name).await.unwrap(), None);
            assert!(ids_of_signing(&mut tx).await.unwrap().is_empty());

            let erased = row.key.sealed.erased();
            overwrite_sealed(&mut tx, &row.key.label.id, &erased).await.unwrap();
            let found = by_name(&mut tx, cache, &name).await.unwrap().unwrap();
            assert_eq!(found.key.sealed, erased);
            assert!(found.is_erased() && !row.is_erased());
            assert_ne!(found.key.sealed, row.key.sealed);
        }

        async fn a_name_is_given_once_and_a_state_left_once(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let row = testing::key(&mut tx, Purpose::Log, None, "log", KeyState::Active).await;
            let id = row.key.label.id.clone();

            change_state(&mut tx, &id, KeyState::Active, KeyState::Retiring).await.unwrap();
            let again = change_state(&mut tx, &id, KeyState::Active, KeyState::Retired).await;
            assert!(matches!(again, Err(DbError::Changed { .. })));

            assert_eq!(names(&mut tx).await.unwrap(), [row.public_key.name().clone()]);
            let mut other = row;
            other.key.label.id = "another".to_owned();
            assert!(matches!(insert(&mut tx, &other).await, Err(DbError::Duplicate)));
        }

        async fn a_row_that_nobody_wrote_is_an_error_and_no_panic(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            testing::key(&mut tx, Purpose::Log, None, "log", KeyState::Active).await;

            for statement in [
                "UPDATE signing_keys SET kek_version = 9",
                "UPDATE signing_keys SET version = -1",
                "UPDATE signing_keys SET state = 'best'",
                "UPDATE signing_keys SET name = 'a b'",
            ] {
                sqlx::query(statement).execute(&mut *tx).await.unwrap();
                let found = sqlx::query_as::<_, Row>(
                    "SELECT id, purpose, cache_id, name, version, public_key, sealed, kek_version, state, \
                     imported_at, created_at FROM signing_keys",
                )
                .fetch_one(&mut *tx)
                .await
                .unwrap()
                .read();
                assert!(matches!(found, Err(DbError::Corrupt { .. })), "{statement}: {found:?}");
            }
        }
    }
}
