//! Contributors, and the public keys whose `Sig:` lines count as their evidence.

use super::{Connection, PageBounds, Result, corrupt, one_row, page_sql};
use crate::access::{ContributorId, ContributorName, GroupName};
use crate::nix::signature::{KeyName, PublicKey};
use crate::time::Timestamp;

/// What a contributor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContributorKind {
    Person,
    Ci,
    Builder,
}

impl ContributorKind {
    /// The word in the column and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Person => "person",
            Self::Ci => "ci",
            Self::Builder => "builder",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Person, Self::Ci, Self::Builder].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// A contributor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContributorRow {
    pub id: ContributorId,
    pub name: ContributorName,
    pub kind: ContributorKind,
    pub group: Option<GroupName>,
    pub suspended_at: Option<Timestamp>,
    pub created_at: Timestamp,
}

/// A registered public key of a contributor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContributorKeyRow {
    pub contributor: ContributorId,
    pub public_key: PublicKey,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    name: String,
    kind: String,
    group_name: Option<String>,
    suspended_at: Option<i64>,
    created_at: i64,
}

impl Row {
    fn read(self) -> Result<ContributorRow> {
        let corrupt = |column| corrupt("contributors", column, &self.id);
        let group = self.group_name.as_deref().map(str::parse).transpose();
        Ok(ContributorRow {
            id: self.id.parse().map_err(|_| corrupt("id"))?,
            name: self.name.parse().map_err(|_| corrupt("name"))?,
            kind: ContributorKind::parse(&self.kind).ok_or_else(|| corrupt("kind"))?,
            group: group.map_err(|_| corrupt("group_name"))?,
            suspended_at: self.suspended_at.map(Timestamp),
            created_at: Timestamp(self.created_at),
        })
    }
}

/// The contributor of this name.
pub async fn by_name(connection: &mut Connection, name: &ContributorName) -> Result<Option<ContributorRow>> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT id, name, kind, group_name, suspended_at, created_at FROM contributors WHERE name = $1",
    )
    .bind(name.as_str())
    .fetch_optional(connection)
    .await?;
    row.map(Row::read).transpose()
}

/// The contributor of this id.
pub async fn by_id(connection: &mut Connection, id: ContributorId) -> Result<Option<ContributorRow>> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT id, name, kind, group_name, suspended_at, created_at FROM contributors WHERE id = $1",
    )
    .bind(id.to_string())
    .fetch_optional(connection)
    .await?;
    row.map(Row::read).transpose()
}

/// A page of contributors, by age.
pub async fn list(connection: &mut Connection, page: &PageBounds) -> Result<Vec<ContributorRow>> {
    let rows: Vec<Row> = sqlx::query_as(page_sql!(
        page,
        "SELECT id, name, kind, group_name, suspended_at, created_at FROM contributors WHERE",
        "id"
    ))
    .bind(page.after.as_deref())
    .bind(page.limit)
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(Row::read).collect()
}

/// Writes a new contributor down. [`super::DbError::Duplicate`]: the name was given before.
pub async fn insert(connection: &mut Connection, contributor: &ContributorRow) -> Result<()> {
    sqlx::query(
        "INSERT INTO contributors (id, name, kind, group_name, suspended_at, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(contributor.id.to_string())
    .bind(contributor.name.as_str())
    .bind(contributor.kind.as_str())
    .bind(contributor.group.as_ref().map(GroupName::as_str))
    .bind(contributor.suspended_at.map(|time| time.0))
    .bind(contributor.created_at.0)
    .execute(connection)
    .await?;
    Ok(())
}

/// Suspends a contributor (`Some`: since when) or lifts that. False: it was so already, and keeps its time.
pub async fn set_suspended(
    connection: &mut Connection,
    id: ContributorId,
    since: Option<Timestamp>,
) -> Result<bool> {
    let statement = if since.is_some() {
        "UPDATE contributors SET suspended_at = $2 WHERE id = $1 AND suspended_at IS NULL"
    } else {
        "UPDATE contributors SET suspended_at = $2 WHERE id = $1 AND suspended_at IS NOT NULL"
    };
    let result = sqlx::query(statement)
        .bind(id.to_string())
        .bind(since.map(|time| time.0))
        .execute(connection)
        .await?;
    Ok(result.rows_affected() == 1)
}

/// Marks a suspended contributor as erased, for good, and takes them out of their group. False: they are erased.
pub async fn mark_erased(connection: &mut Connection, id: ContributorId, now: Timestamp) -> Result<bool> {
    let result = sqlx::query(
        "UPDATE contributors SET erased_at = $2, group_name = NULL \
         WHERE id = $1 AND suspended_at IS NOT NULL AND erased_at IS NULL",
    )
    .bind(id.to_string())
    .bind(now.0)
    .execute(connection)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Whether a contributor was erased.
pub async fn is_erased(connection: &mut Connection, id: ContributorId) -> Result<bool> {
    let row: Option<(String,)> =
        sqlx::query_as("SELECT id FROM contributors WHERE id = $1 AND erased_at IS NOT NULL")
            .bind(id.to_string())
            .fetch_optional(connection)
            .await?;
    Ok(row.is_some())
}

/// Gives an erased contributor the name that is no person's.
pub async fn rename(connection: &mut Connection, id: ContributorId, name: &ContributorName) -> Result<()> {
    let result = sqlx::query("UPDATE contributors SET name = $2 WHERE id = $1 AND erased_at IS NOT NULL")
        .bind(id.to_string())
        .bind(name.as_str())
        .execute(connection)
        .await?;
    one_row("contributors", result.rows_affected())
}

/// Puts a contributor into a group.
pub async fn set_group(connection: &mut Connection, id: ContributorId, group: &GroupName) -> Result<()> {
    let result = sqlx::query("UPDATE contributors SET group_name = $2 WHERE id = $1")
        .bind(id.to_string())
        .bind(group.as_str())
        .execute(connection)
        .await?;
    one_row("contributors", result.rows_affected())
}

#[derive(sqlx::FromRow)]
struct KeyColumns {
    contributor_id: String,
    name: String,
    public_key: Vec<u8>,
}

impl KeyColumns {
    fn read(self) -> Result<ContributorKeyRow> {
        let corrupt = |column| corrupt("contributor_keys", column, &self.name);
        let name: KeyName = self.name.parse().map_err(|_| corrupt("name"))?;
        let bytes = self.public_key.as_slice().try_into().map_err(|_| corrupt("public_key"))?;
        Ok(ContributorKeyRow {
            contributor: self.contributor_id.parse().map_err(|_| corrupt("contributor_id"))?,
            public_key: PublicKey::new(name, bytes).map_err(|_| corrupt("public_key"))?,
        })
    }
}

/// Every registered key of every contributor who is neither suspended nor quarantined.
pub async fn live_keys(connection: &mut Connection) -> Result<Vec<ContributorKeyRow>> {
    let rows: Vec<KeyColumns> = sqlx::query_as(
        "SELECT k.contributor_id, k.name, k.public_key FROM contributor_keys k \
         JOIN contributors c ON c.id = k.contributor_id \
         WHERE k.removed_at IS NULL AND c.suspended_at IS NULL AND NOT EXISTS (SELECT 1 FROM quarantines q \
         WHERE q.subject_kind = 'contributor' AND q.subject_id = c.id AND q.restored_at IS NULL) \
         ORDER BY k.id ASC",
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(KeyColumns::read).collect()
}

/// The registered keys of one contributor, oldest first.
pub async fn keys_of(connection: &mut Connection, id: ContributorId) -> Result<Vec<PublicKey>> {
    let rows: Vec<KeyColumns> = sqlx::query_as(
        "SELECT contributor_id, name, public_key FROM contributor_keys \
         WHERE contributor_id = $1 AND removed_at IS NULL ORDER BY id ASC",
    )
    .bind(id.to_string())
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(|row| row.read().map(|key| key.public_key)).collect()
}

/// Whether any contributor has, or had, a key of this name.
pub async fn key_name_exists(connection: &mut Connection, name: &KeyName) -> Result<bool> {
    let row: Option<(String,)> = sqlx::query_as("SELECT id FROM contributor_keys WHERE name = $1")
        .bind(name.as_str())
        .fetch_optional(connection)
        .await?;
    Ok(row.is_some())
}

/// Registers a key. [`super::DbError::Duplicate`]: a key of that name was registered before.
pub async fn add_key(
    connection: &mut Connection,
    id: &str,
    key: &ContributorKeyRow,
    now: Timestamp,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO contributor_keys (id, contributor_id, name, public_key, created_at) \
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(id)
    .bind(key.contributor.to_string())
    .bind(key.public_key.name().as_str())
    .bind(&key.public_key.bytes()[..])
    .bind(now.0)
    .execute(connection)
    .await?;
    Ok(())
}

/// Takes a key back; it stays as history. False: the contributor has no such key.
pub async fn remove_key(
    connection: &mut Connection,
    contributor: ContributorId,
    name: &KeyName,
    now: Timestamp,
) -> Result<bool> {
    let result = sqlx::query(
        "UPDATE contributor_keys SET removed_at = $3 \
         WHERE contributor_id = $1 AND name = $2 AND removed_at IS NULL",
    )
    .bind(contributor.to_string())
    .bind(name.as_str())
    .bind(now.0)
    .execute(connection)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// How many published paths this contributor pushed, and how many bytes their files have.
pub async fn pushed(connection: &mut Connection, id: ContributorId) -> Result<(u64, u64)> {
    let (paths, bytes): (i64, i64) = sqlx::query_as(
        "SELECT COUNT(*), CAST(COALESCE(SUM(c.file_size), 0) AS BIGINT) \
         FROM claims c JOIN paths p ON p.id = c.path_id AND p.claim_id = c.id \
         WHERE p.state = 'published' AND c.id IN (SELECT claim_id FROM evidence \
         WHERE source_kind = 'contributor' AND source_id = $1 AND void_by IS NULL)",
    )
    .bind(id.to_string())
    .fetch_one(connection)
    .await?;
    Ok((u64::try_from(paths).unwrap_or(0), u64::try_from(bytes).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::super::evidence::{self, Source};
    use super::super::testing::{self, NOON, PUBLIC_KEY, TestDb, on_each_database};
    use super::super::{DbError, Gate};
    use super::*;
    use crate::access::TokenId;

    fn key(contributor: ContributorId, name: &str) -> ContributorKeyRow {
        ContributorKeyRow { contributor, public_key: format!("{name}:{PUBLIC_KEY}").parse().unwrap() }
    }

    on_each_database! {
        async fn a_contributor_is_read_as_it_was_written(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let mut row = testing::contributor(&mut tx, "alice@example.org").await;
            set_group(&mut tx, row.id, &"release".parse().unwrap()).await.unwrap();
            row.group = Some("release".parse().unwrap());

            assert_eq!(by_name(&mut tx, &row.name).await.unwrap(), Some(row.clone()));
            assert_eq!(by_id(&mut tx, row.id).await.unwrap(), Some(row.clone()));
            assert_eq!(by_name(&mut tx, &"bob".parse().unwrap()).await.unwrap(), None);
            let page = PageBounds { after: None, limit: 10, descending: false };
            assert_eq!(list(&mut tx, &page).await.unwrap(), [row.clone()]);
            assert_eq!(pushed(&mut tx, row.id).await.unwrap(), (0, 0));
            let again = ContributorRow { id: ContributorId::new(NOON, [1; 10]), ..row };
            assert!(matches!(insert(&mut tx, &again).await, Err(DbError::Duplicate)));
        }

        async fn what_was_pushed_is_counted_once_for_each_path(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let ci = testing::contributor(&mut tx, "ci").await.id;
            let other = testing::contributor(&mut tx, "other").await.id;
            let cache = testing::cache(&mut tx, "main").await.id;
            let token = TokenId::new(NOON, [1; 10]);
            for number in 0..3 {
                let claim = testing::published_path(&mut tx, cache, number, 10 + number).await;
                let by = if number == 2 { other } else { ci };
                for act in ["first", "again"] {
                    let source = Source::Contributor(by);
                    let id = format!("{number}-{act}");
                    let new = evidence::NewEvidence { id, claim_id: claim.clone(), source, token };
                    evidence::insert_all(&mut tx, &[new], NOON).await.unwrap();
                }
            }

            assert_eq!(pushed(&mut tx, ci).await.unwrap(), (2, 21));
            assert_eq!(pushed(&mut tx, other).await.unwrap(), (1, 12));
        }

        async fn a_suspension_keeps_its_first_time(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let id = testing::contributor(&mut tx, "ci").await.id;

            assert!(!set_suspended(&mut tx, id, None).await.unwrap());
            assert!(set_suspended(&mut tx, id, Some(NOON)).await.unwrap());
            assert!(!set_suspended(&mut tx, id, Some(NOON.plus_seconds(1))).await.unwrap());
            assert_eq!(by_id(&mut tx, id).await.unwrap().unwrap().suspended_at, Some(NOON));
            assert!(set_suspended(&mut tx, id, None).await.unwrap());
            assert_eq!(by_id(&mut tx, id).await.unwrap().unwrap().suspended_at, None);
        }

        async fn removed_keys_and_those_of_the_suspended_do_not_count(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let alice = testing::contributor(&mut tx, "alice").await.id;
            let bob = testing::contributor(&mut tx, "bob").await.id;
            for (id, key) in [("1", key(alice, "alice-1")), ("2", key(alice, "alice-2")), ("3", key(bob, "bob-1"))] {
                add_key(&mut tx, id, &key, NOON).await.unwrap();
            }

            assert_eq!(live_keys(&mut tx).await.unwrap().len(), 3);
            let name = "alice-2".parse().unwrap();
            assert!(!remove_key(&mut tx, bob, &name, NOON).await.unwrap());
            assert!(remove_key(&mut tx, alice, &name, NOON).await.unwrap());
            assert!(!remove_key(&mut tx, alice, &name, NOON).await.unwrap());
            set_suspended(&mut tx, bob, Some(NOON)).await.unwrap();

            assert_eq!(live_keys(&mut tx).await.unwrap(), [key(alice, "alice-1")]);
            assert_eq!(keys_of(&mut tx, alice).await.unwrap(), [key(alice, "alice-1").public_key]);
            assert!(key_name_exists(&mut tx, &name).await.unwrap());
            let again = add_key(&mut tx, "4", &key(bob, "alice-2"), NOON).await;
            assert!(matches!(again, Err(DbError::Duplicate)));
        }
    }
}
