//! One-time secrets that make an administrator. Only their SHA-256 is kept: they are random.

use super::{Connection, Result, corrupt};
use crate::access::ContributorName;
use crate::time::Timestamp;

/// A claim to write down.
#[derive(Debug, Clone)]
pub struct NewAdminClaim<'a> {
    pub id: String,
    pub secret_sha256: [u8; 32],
    /// Who becomes an administrator by spending it.
    pub contributor: &'a ContributorName,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
}

/// A claim that was just spent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpentClaim {
    pub id: String,
    pub contributor: ContributorName,
}

/// Writes a claim down.
pub async fn insert(connection: &mut Connection, new: &NewAdminClaim<'_>) -> Result<()> {
    sqlx::query(
        "INSERT INTO admin_claims (id, secret_sha256, contributor_name, created_at, expires_at) \
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(&new.id)
    .bind(&new.secret_sha256[..])
    .bind(new.contributor.as_str())
    .bind(new.created_at.0)
    .bind(new.expires_at.0)
    .execute(connection)
    .await?;
    Ok(())
}

/// Spends the claim of this secret, if there is one, unspent and not expired. Of two who try at once, one
/// gets it: the condition is in the UPDATE.
pub async fn spend(
    connection: &mut Connection,
    secret_sha256: &[u8; 32],
    now: Timestamp,
) -> Result<Option<SpentClaim>> {
    let row: Option<(String, String)> = sqlx::query_as(
        "UPDATE admin_claims SET spent_at = $2 \
         WHERE secret_sha256 = $1 AND spent_at IS NULL AND expires_at > $2 \
         RETURNING id, contributor_name",
    )
    .bind(&secret_sha256[..])
    .bind(now.0)
    .fetch_optional(connection)
    .await?;
    row.map(|(id, name)| {
        let contributor = name.parse().map_err(|_| corrupt("admin_claims", "contributor_name", &id))?;
        Ok(SpentClaim { id, contributor })
    })
    .transpose()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{NOON, TestDb, on_each_database};
    use super::super::{Db, Gate};
    use super::*;

    async fn claim(db: &Db) -> ContributorName {
        let contributor: ContributorName = "admin".parse().unwrap();
        let mut tx = db.begin(Gate::Shared).await.unwrap();
        let new = NewAdminClaim {
            id: "claim".to_owned(),
            secret_sha256: [1; 32],
            contributor: &contributor,
            created_at: NOON,
            expires_at: NOON.plus_seconds(3600),
        };
        insert(&mut tx, &new).await.unwrap();
        tx.commit().await.unwrap();
        contributor
    }

    on_each_database! {
        async fn a_claim_is_spent_once_and_in_time(test: &TestDb) {
            let contributor = claim(&test.db).await;
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();

            assert_eq!(spend(&mut tx, &[2; 32], NOON).await.unwrap(), None);
            assert_eq!(spend(&mut tx, &[1; 32], NOON.plus_seconds(3600)).await.unwrap(), None);
            let spent = spend(&mut tx, &[1; 32], NOON.plus_seconds(3599)).await.unwrap();
            assert_eq!(spent, Some(SpentClaim { id: "claim".to_owned(), contributor }));
            assert_eq!(spend(&mut tx, &[1; 32], NOON).await.unwrap(), None);
        }

        async fn of_two_who_spend_it_at_once_one_gets_it(test: &TestDb) {
            claim(&test.db).await;
            let spend_once = || async {
                let mut tx = test.db.begin(Gate::Shared).await.unwrap();
                let spent = spend(&mut tx, &[1; 32], NOON).await.unwrap();
                tx.commit().await.unwrap();
                spent.is_some()
            };

            let (first, second) = tokio::join!(spend_once(), spend_once());

            assert!(first ^ second);
        }
    }
}
