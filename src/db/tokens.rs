//! Tokens: who may act, issued by whom, until when. The text of a token is nowhere.
//!
//! Never trusts a token by its row alone: the caller has checked the signature.

use super::{Connection, PageBounds, Result, corrupt, page_sql};
use crate::access::{ContributorId, ContributorName, Scopes, TokenId};
use crate::time::Timestamp;

/// A token whose row is live: not revoked, not expired, contributor not suspended, key not revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveToken {
    pub token: TokenId,
    pub contributor: ContributorId,
    pub contributor_name: ContributorName,
    pub scopes: Scopes,
    pub expires_at: Timestamp,
    /// The key that signed it.
    pub key_id: String,
}

/// A token's row, live or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    pub id: TokenId,
    pub contributor: ContributorId,
    pub contributor_name: ContributorName,
    pub scopes: Scopes,
    pub issued_by: Option<TokenId>,
    pub note: Option<String>,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    /// No renewal outlives this time; `None`: only the lifetime rules bound it.
    pub renewable_until: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
    pub revoke_reason: Option<String>,
    /// At most a minute behind.
    pub last_used_at: Option<Timestamp>,
}

/// A token to write down.
#[derive(Debug, Clone)]
pub struct NewToken<'a> {
    pub id: TokenId,
    pub contributor: ContributorId,
    pub scopes: &'a Scopes,
    pub issued_by: Option<TokenId>,
    pub key_id: &'a str,
    pub note: Option<&'a str>,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub renewable_until: Option<Timestamp>,
}

/// Which tokens a list shows. With everything `None`: all.
#[derive(Debug, Clone, Default)]
pub struct TokenFilter {
    pub contributor: Option<ContributorId>,
    /// Those issued by this one, directly or through others.
    pub issued_by: Option<TokenId>,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    contributor_id: String,
    contributor_name: String,
    scopes: String,
    issued_by: Option<String>,
    note: Option<String>,
    created_at: i64,
    expires_at: i64,
    renewable_until: Option<i64>,
    revoked_at: Option<i64>,
    revoke_reason: Option<String>,
    last_used_at: Option<i64>,
}

impl Row {
    fn read(self) -> Result<TokenRow> {
        let corrupt = |column| corrupt("tokens", column, &self.id);
        let issued_by = self.issued_by.as_deref().map(str::parse).transpose();
        Ok(TokenRow {
            id: self.id.parse().map_err(|_| corrupt("id"))?,
            contributor: self.contributor_id.parse().map_err(|_| corrupt("contributor_id"))?,
            contributor_name: self.contributor_name.parse().map_err(|_| corrupt("contributor_id"))?,
            scopes: self.scopes.parse().map_err(|_| corrupt("scopes"))?,
            issued_by: issued_by.map_err(|_| corrupt("issued_by"))?,
            note: self.note,
            created_at: Timestamp(self.created_at),
            expires_at: Timestamp(self.expires_at),
            renewable_until: self.renewable_until.map(Timestamp),
            revoked_at: self.revoked_at.map(Timestamp),
            revoke_reason: self.revoke_reason,
            last_used_at: self.last_used_at.map(Timestamp),
        })
    }
}

#[derive(sqlx::FromRow)]
pub(super) struct LiveRow {
    pub contributor_id: String,
    pub contributor_name: String,
    pub scopes: String,
    pub expires_at: i64,
    pub key_id: String,
}

impl LiveRow {
    pub fn read(self, id: TokenId) -> Result<LiveToken> {
        let corrupt = |column| corrupt("tokens", column, &id.to_string());
        Ok(LiveToken {
            token: id,
            contributor: self.contributor_id.parse().map_err(|_| corrupt("contributor_id"))?,
            contributor_name: self.contributor_name.parse().map_err(|_| corrupt("contributor_id"))?,
            scopes: self.scopes.parse().map_err(|_| corrupt("scopes"))?,
            expires_at: Timestamp(self.expires_at),
            key_id: self.key_id,
        })
    }
}

/// Erases what people wrote about the tokens of a contributor.
pub async fn erase_texts(connection: &mut Connection, contributor: ContributorId) -> Result<()> {
    sqlx::query("UPDATE tokens SET note = NULL, revoke_reason = NULL WHERE contributor_id = $1")
        .bind(contributor.to_string())
        .execute(connection)
        .await?;
    Ok(())
}

/// The token, if its row is live at `now`. Behind the gate this stays true until the commit.
pub async fn live(connection: &mut Connection, id: TokenId, now: Timestamp) -> Result<Option<LiveToken>> {
    let row: Option<LiveRow> = sqlx::query_as(
        "SELECT t.contributor_id, c.name AS contributor_name, t.scopes, t.expires_at, t.key_id \
         FROM tokens t JOIN contributors c ON c.id = t.contributor_id JOIN signing_keys k ON k.id = t.key_id \
         WHERE t.id = $1 AND t.revoked_at IS NULL AND t.expires_at > $2 AND c.suspended_at IS NULL \
         AND k.state NOT IN ('compromised', 'destroyed')",
    )
    .bind(id.to_string())
    .bind(now.0)
    .fetch_optional(connection)
    .await?;
    row.map(|row| row.read(id)).transpose()
}

/// Writes a new token down.
pub async fn insert(connection: &mut Connection, new: &NewToken<'_>) -> Result<()> {
    sqlx::query(
        "INSERT INTO tokens (id, contributor_id, scopes, issued_by, key_id, note, created_at, expires_at, \
         renewable_until) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(new.id.to_string())
    .bind(new.contributor.to_string())
    .bind(new.scopes.to_string())
    .bind(new.issued_by.map(|id| id.to_string()))
    .bind(new.key_id)
    .bind(new.note)
    .bind(new.created_at.0)
    .bind(new.expires_at.0)
    .bind(new.renewable_until.map(|time| time.0))
    .execute(connection)
    .await?;
    Ok(())
}

/// Revokes a token. False: it was revoked before, and keeps its first time and reason.
pub async fn revoke(connection: &mut Connection, id: TokenId, reason: &str, now: Timestamp) -> Result<bool> {
    let result = sqlx::query(
        "UPDATE tokens SET revoked_at = $2, revoke_reason = $3 WHERE id = $1 AND revoked_at IS NULL",
    )
    .bind(id.to_string())
    .bind(now.0)
    .bind(reason)
    .execute(connection)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Not revoked tokens that this one issued, directly or through others (revoked ones too), at most
/// `limit`, oldest first. `UNION` drops what was seen, so no chain of rows is followed for ever.
pub async fn descendants(connection: &mut Connection, id: TokenId, limit: i64) -> Result<Vec<TokenId>> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "WITH RECURSIVE family (id) AS (SELECT id FROM tokens WHERE issued_by = $1 \
         UNION SELECT t.id FROM tokens t JOIN family f ON t.issued_by = f.id) \
         SELECT t.id FROM family f JOIN tokens t ON t.id = f.id WHERE t.revoked_at IS NULL \
         ORDER BY t.id ASC LIMIT $2",
    )
    .bind(id.to_string())
    .bind(limit)
    .fetch_all(connection)
    .await?;
    read_ids(rows)
}

/// Not revoked tokens of a contributor, at most `limit`, oldest first.
pub async fn unrevoked_of(
    connection: &mut Connection,
    contributor: ContributorId,
    limit: i64,
) -> Result<Vec<TokenId>> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "SELECT id FROM tokens WHERE contributor_id = $1 AND revoked_at IS NULL ORDER BY id ASC LIMIT $2",
    )
    .bind(contributor.to_string())
    .bind(limit)
    .fetch_all(connection)
    .await?;
    read_ids(rows)
}

/// Not revoked tokens that tokens of this contributor issued to others, directly or through others, at
/// most `limit`, oldest first.
pub async fn descendants_of_contributor(
    connection: &mut Connection,
    contributor: ContributorId,
    limit: i64,
) -> Result<Vec<TokenId>> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "WITH RECURSIVE family (id) AS (SELECT id FROM tokens WHERE contributor_id = $1 \
         UNION SELECT t.id FROM tokens t JOIN family f ON t.issued_by = f.id) \
         SELECT t.id FROM family f JOIN tokens t ON t.id = f.id WHERE t.revoked_at IS NULL \
         ORDER BY t.id ASC LIMIT $2",
    )
    .bind(contributor.to_string())
    .bind(limit)
    .fetch_all(connection)
    .await?;
    read_ids(rows)
}

/// The token of this id, live or not.
pub async fn by_id(connection: &mut Connection, id: TokenId) -> Result<Option<TokenRow>> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT t.id, t.contributor_id, c.name AS contributor_name, t.scopes, t.issued_by, t.note, \
         t.created_at, t.expires_at, t.renewable_until, t.revoked_at, t.revoke_reason, u.last_used_at \
         FROM tokens t JOIN contributors c ON c.id = t.contributor_id \
         LEFT JOIN token_uses u ON u.token_id = t.id WHERE t.id = $1",
    )
    .bind(id.to_string())
    .fetch_optional(connection)
    .await?;
    row.map(Row::read).transpose()
}

/// A page of tokens, by age, live or not.
pub async fn list(
    connection: &mut Connection,
    filter: &TokenFilter,
    page: &PageBounds,
) -> Result<Vec<TokenRow>> {
    let rows: Vec<Row> = sqlx::query_as(page_sql!(
        page,
        "WITH RECURSIVE family (id) AS (SELECT id FROM tokens WHERE issued_by = $4 \
         UNION SELECT t.id FROM tokens t JOIN family f ON t.issued_by = f.id) \
         SELECT t.id, t.contributor_id, c.name AS contributor_name, t.scopes, t.issued_by, t.note, \
         t.created_at, t.expires_at, t.renewable_until, t.revoked_at, t.revoke_reason, u.last_used_at \
         FROM tokens t JOIN contributors c ON c.id = t.contributor_id \
         LEFT JOIN token_uses u ON u.token_id = t.id \
         WHERE ($3 IS NULL OR t.contributor_id = $3) \
         AND ($4 IS NULL OR t.id IN (SELECT id FROM family)) AND",
        "t.id"
    ))
    .bind(page.after.as_deref())
    .bind(page.limit)
    .bind(filter.contributor.map(|id| id.to_string()))
    .bind(filter.issued_by.map(|id| id.to_string()))
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(Row::read).collect()
}

/// Notes when tokens were last used; an older time never replaces a newer one.
pub async fn note_uses(connection: &mut Connection, uses: &[(TokenId, Timestamp)]) -> Result<()> {
    // In one order everywhere, so that two replicas cannot wait for each other.
    let mut uses = uses.to_vec();
    uses.sort_unstable();
    for (token, at) in uses {
        sqlx::query(
            "INSERT INTO token_uses (token_id, last_used_at) VALUES ($1, $2) \
             ON CONFLICT (token_id) DO UPDATE SET last_used_at = excluded.last_used_at \
             WHERE token_uses.last_used_at < excluded.last_used_at",
        )
        .bind(token.to_string())
        .bind(at.0)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

fn read_ids(rows: Vec<(String,)>) -> Result<Vec<TokenId>> {
    rows.into_iter().map(|(id,)| id.parse().map_err(|_| corrupt("tokens", "id", &id))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::signing_keys::{self, KeyState};
    use super::super::testing::{self, NOON, TestDb, on_each_database};
    use super::super::{Gate, contributors};
    use super::*;
    use crate::vault::Purpose;

    fn page(limit: i64, after: Option<TokenId>, descending: bool) -> PageBounds {
        PageBounds { after: after.map(|id| id.to_string()), limit, descending }
    }

    on_each_database! {
        async fn a_token_is_live_until_one_of_four_ends(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let ci = testing::contributor(&mut tx, "ci").await;
            let key = testing::key(&mut tx, Purpose::Token, None, "t-1", KeyState::Active).await;
            let other = testing::key(&mut tx, Purpose::Token, None, "t-2", KeyState::Active).await;
            let first = testing::token(&mut tx, ci.id, &key, None).await;
            let second = testing::token(&mut tx, ci.id, &other, None).await;
            let end = NOON.plus_seconds(3600);

            let found = live(&mut tx, first, end.plus_millis(-1)).await.unwrap().unwrap();
            assert_eq!((found.contributor, found.contributor_name.as_str()), (ci.id, "ci"));
            assert_eq!((found.scopes.to_string(), found.expires_at), ("push:main".to_owned(), end));
            assert_eq!(found.key_id, key.key.label.id);
            assert!(live(&mut tx, first, end).await.unwrap().is_none());

            assert!(revoke(&mut tx, first, "leaked", NOON).await.unwrap());
            assert!(!revoke(&mut tx, first, "again", end).await.unwrap());
            assert!(live(&mut tx, first, NOON).await.unwrap().is_none());
            let row = by_id(&mut tx, first).await.unwrap().unwrap();
            assert_eq!((row.revoked_at, row.revoke_reason.as_deref()), (Some(NOON), Some("leaked")));

            contributors::set_suspended(&mut tx, ci.id, Some(NOON)).await.unwrap();
            assert!(live(&mut tx, second, NOON).await.unwrap().is_none());
            contributors::set_suspended(&mut tx, ci.id, None).await.unwrap();
            assert!(live(&mut tx, second, NOON).await.unwrap().is_some());

            for (from, to, lives) in [
                (KeyState::Active, KeyState::Retired, true),
                (KeyState::Retired, KeyState::Compromised, false),
                (KeyState::Compromised, KeyState::Destroyed, false),
            ] {
                signing_keys::change_state(&mut tx, &other.key.label.id, from, to).await.unwrap();
                assert_eq!(live(&mut tx, second, NOON).await.unwrap().is_some(), lives, "{to:?}");
            }
        }

        async fn descendants_are_found_through_the_dead_and_only_the_living_are_named(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let ci = testing::contributor(&mut tx, "ci").await;
            let other = testing::contributor(&mut tx, "other").await;
            let key = testing::key(&mut tx, Purpose::Token, None, "t-1", KeyState::Active).await;
            let root = testing::token(&mut tx, ci.id, &key, None).await;
            let child = testing::token(&mut tx, other.id, &key, Some(root)).await;
            let grandchild = testing::token(&mut tx, other.id, &key, Some(child)).await;
            let stranger = testing::token(&mut tx, other.id, &key, None).await;
            revoke(&mut tx, child, "first", NOON).await.unwrap();

            assert_eq!(descendants(&mut tx, root, 200).await.unwrap(), [grandchild]);
            assert_eq!(descendants(&mut tx, stranger, 200).await.unwrap(), []);
            let mut of_ci = descendants_of_contributor(&mut tx, ci.id, 200).await.unwrap();
            of_ci.sort();
            let mut expected = [root, grandchild];
            expected.sort();
            assert_eq!(of_ci, expected);
            assert_eq!(unrevoked_of(&mut tx, ci.id, 200).await.unwrap(), [root]);
        }

        async fn a_ring_of_issuers_ends_the_search(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let ci = testing::contributor(&mut tx, "ci").await;
            let key = testing::key(&mut tx, Purpose::Token, None, "t-1", KeyState::Active).await;
            let first = testing::token(&mut tx, ci.id, &key, None).await;
            let second = testing::token(&mut tx, ci.id, &key, Some(first)).await;
            sqlx::query("UPDATE tokens SET issued_by = $1 WHERE id = $2")
                .bind(second.to_string())
                .bind(first.to_string())
                .execute(&mut *tx)
                .await
                .unwrap();

            let mut found = descendants(&mut tx, first, 200).await.unwrap();

            found.sort();
            let mut both = [first, second];
            both.sort();
            assert_eq!(found, both);
        }

        async fn lists_are_paged_and_filtered(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let ci = testing::contributor(&mut tx, "ci").await;
            let other = testing::contributor(&mut tx, "other").await;
            let key = testing::key(&mut tx, Purpose::Token, None, "t-1", KeyState::Active).await;
            let root = testing::token(&mut tx, ci.id, &key, None).await;
            let mut own = vec![root];
            for _ in 0..3 {
                own.push(testing::token(&mut tx, ci.id, &key, Some(root)).await);
            }
            let strange = testing::token(&mut tx, other.id, &key, None).await;
            own.sort();
            let ids = |rows: Vec<TokenRow>| rows.into_iter().map(|row| row.id).collect::<Vec<_>>();
            let of_ci = TokenFilter { contributor: Some(ci.id), issued_by: None };

            let first = ids(list(&mut tx, &of_ci, &page(3, None, false)).await.unwrap());
            assert_eq!(first, own[..3]);
            let rest = ids(list(&mut tx, &of_ci, &page(3, Some(first[2]), false)).await.unwrap());
            assert_eq!(rest, own[3..]);
            let down = ids(list(&mut tx, &of_ci, &page(2, Some(own[3]), true)).await.unwrap());
            assert_eq!(down, [own[2], own[1]]);
            let all = ids(list(&mut tx, &TokenFilter::default(), &page(9, None, false)).await.unwrap());
            assert_eq!(all.len(), 5);
            assert!(all.contains(&strange));
            let issued = TokenFilter { contributor: None, issued_by: Some(root) };
            assert_eq!(list(&mut tx, &issued, &page(9, None, false)).await.unwrap().len(), 3);
            let neither = TokenFilter { contributor: Some(other.id), issued_by: Some(root) };
            assert_eq!(list(&mut tx, &neither, &page(9, None, false)).await.unwrap(), []);
        }

        async fn an_older_use_never_replaces_a_newer_one(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let ci = testing::contributor(&mut tx, "ci").await;
            let key = testing::key(&mut tx, Purpose::Token, None, "t-1", KeyState::Active).await;
            let token = testing::token(&mut tx, ci.id, &key, None).await;
            assert_eq!(by_id(&mut tx, token).await.unwrap().unwrap().last_used_at, None);

            for (used, expected) in [(5, 5), (9, 9), (7, 9)] {
                note_uses(&mut tx, &[(token, Timestamp(used))]).await.unwrap();
                let row = by_id(&mut tx, token).await.unwrap().unwrap();
                assert_eq!(row.last_used_at, Some(Timestamp(expected)));
            }
        }
    }
}
