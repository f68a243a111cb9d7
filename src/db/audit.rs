//! Acts and denials: who did, or tried, what, from where.
//!
//! Never holds a token, claim or passphrase in any form. Rows are added and read, never changed.

use std::net::IpAddr;

use super::{Connection, PageBounds, Result, corrupt, page_sql};
use crate::access::{ContributorId, ContributorName, TokenId};
use crate::time::Timestamp;

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Denied,
}

impl Outcome {
    /// The word in the column and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Denied => "denied",
        }
    }

    /// Reads what [`Outcome::as_str`] gives.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Done, Self::Denied].into_iter().find(|outcome| outcome.as_str() == text)
    }
}

/// A row to add. Ids are UUIDv7, so that they sort by time.
#[derive(Debug, Clone)]
pub struct NewAudit<'a> {
    pub id: String,
    pub at: Timestamp,
    pub action: &'a str,
    pub outcome: Outcome,
    pub contributor: Option<ContributorId>,
    pub token: Option<TokenId>,
    /// What was acted on: a name or an id.
    pub subject: &'a str,
    pub address: Option<String>,
    pub client: Option<&'a str>,
    pub request_id: Option<&'a str>,
    /// A JSON object.
    pub detail: String,
}

/// A row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    pub id: String,
    pub at: Timestamp,
    pub action: String,
    pub outcome: Outcome,
    /// The contributor's name.
    pub contributor: Option<String>,
    pub token: Option<String>,
    pub subject: String,
    pub address: Option<String>,
    pub client: Option<String>,
    pub request_id: Option<String>,
    pub detail: String,
}

/// Which rows a list shows. With everything `None`: all.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    pub contributor: Option<ContributorId>,
    pub token: Option<TokenId>,
    pub action: Option<String>,
    pub outcome: Option<Outcome>,
    pub since: Option<Timestamp>,
    /// Before this moment.
    pub until: Option<Timestamp>,
    /// What it was done to, exactly.
    pub subject: Option<String>,
    /// Where the call came from.
    pub address: Option<IpAddr>,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    at: i64,
    action: String,
    outcome: String,
    contributor: Option<String>,
    token_id: Option<String>,
    subject: String,
    address: Option<String>,
    client: Option<String>,
    request_id: Option<String>,
    detail: String,
}

impl Row {
    fn read(self) -> Result<AuditRow> {
        Ok(AuditRow {
            outcome: Outcome::parse(&self.outcome).ok_or_else(|| corrupt("audit", "outcome", &self.id))?,
            id: self.id,
            at: Timestamp(self.at),
            action: self.action,
            contributor: self.contributor,
            token: self.token_id,
            subject: self.subject,
            address: self.address,
            client: self.client,
            request_id: self.request_id,
            detail: self.detail,
        })
    }
}

/// Adds a row.
pub async fn insert(connection: &mut Connection, new: &NewAudit<'_>) -> Result<()> {
    sqlx::query(
        "INSERT INTO audit (id, at, action, outcome, contributor_id, token_id, subject, address, client, \
         request_id, detail) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(&new.id)
    .bind(new.at.0)
    .bind(new.action)
    .bind(new.outcome.as_str())
    .bind(new.contributor.map(|id| id.to_string()))
    .bind(new.token.map(|id| id.to_string()))
    .bind(new.subject)
    .bind(new.address.as_deref())
    .bind(new.client)
    .bind(new.request_id)
    .bind(&new.detail)
    .execute(connection)
    .await?;
    Ok(())
}

/// Erases what at most `limit` rows say of a contributor: all that is private of what they did, and in what others did
/// whatever has their name or id, or is about a token of theirs or about a quarantine of either. How many rows that were. Salts go too, so that nobody can guess what stood there.
pub async fn erase(
    connection: &mut Connection,
    contributor: ContributorId,
    name: &ContributorName,
    now: Timestamp,
    limit: i64,
) -> Result<u64> {
    let result = sqlx::query(
        "UPDATE audit SET erased_at = $4, salt = NULL, detail = '{}', \
         address = CASE WHEN contributor_id = $1 THEN NULL ELSE address END, \
         client = CASE WHEN contributor_id = $1 THEN NULL ELSE client END, \
         request_id = CASE WHEN contributor_id = $1 THEN NULL ELSE request_id END, \
         subject = CASE WHEN subject = $2 THEN $1 ELSE subject END \
         WHERE id IN (SELECT id FROM audit WHERE erased_at IS NULL \
         AND (contributor_id = $1 OR subject = $2 OR subject = $1 AND action <> 'contributor-erase' \
         OR subject IN (SELECT id FROM tokens WHERE contributor_id = $1) \
         OR detail LIKE $3 ESCAPE '!' OR detail LIKE $6 ESCAPE '!' \
         OR EXISTS (SELECT 1 FROM quarantines q WHERE (q.subject_id = $1 \
         OR q.subject_id IN (SELECT id FROM tokens WHERE contributor_id = $1)) \
         AND audit.detail LIKE '%\"' || q.id || '\"%')) LIMIT $5)",
    )
    .bind(contributor.to_string())
    .bind(name.as_str())
    .bind(containing_string(name.as_str()))
    .bind(now.0)
    .bind(limit)
    .bind(containing_string(&contributor.to_string()))
    .execute(connection)
    .await?;
    Ok(result.rows_affected())
}

/// A pattern for `LIKE … ESCAPE '!'` that finds JSON with this string in it.
pub(super) fn containing_string(text: &str) -> String {
    let mut pattern = "%\"".to_owned();
    for character in text.chars() {
        if "!%_".contains(character) {
            pattern.push('!');
        }
        pattern.push(character);
    }
    pattern + "\"%"
}

/// A page of rows, by age.
pub async fn list(
    connection: &mut Connection,
    filter: &AuditFilter,
    page: &PageBounds,
) -> Result<Vec<AuditRow>> {
    let rows: Vec<Row> = sqlx::query_as(page_sql!(
        page,
        "SELECT a.id, a.at, a.action, a.outcome, c.name AS contributor, a.token_id, a.subject, a.address, \
         a.client, a.request_id, a.detail FROM audit a LEFT JOIN contributors c ON c.id = a.contributor_id \
         WHERE ($3 IS NULL OR a.contributor_id = $3) AND ($4 IS NULL OR a.token_id = $4) \
         AND ($5 IS NULL OR a.action = $5) AND ($6 IS NULL OR a.outcome = $6) \
         AND ($7 IS NULL OR a.at >= $7) AND ($8 IS NULL OR a.at < $8) AND ($9 IS NULL OR a.subject = $9) \
         AND ($10 IS NULL OR a.address = $10) AND",
        "a.id"
    ))
    .bind(page.after.as_deref())
    .bind(page.limit)
    .bind(filter.contributor.map(|id| id.to_string()))
    .bind(filter.token.map(|id| id.to_string()))
    .bind(filter.action.as_deref())
    .bind(filter.outcome.map(Outcome::as_str))
    .bind(filter.since.map(|time| time.0))
    .bind(filter.until.map(|time| time.0))
    .bind(filter.subject.as_deref())
    .bind(filter.address.map(|address| address.to_string()))
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(Row::read).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Gate;
    use super::super::testing::{self, NOON, TestDb, on_each_database};
    use super::*;

    on_each_database! {
        async fn rows_are_found_by_who_what_how_and_when(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Shared).await.unwrap();
            let ci = testing::contributor(&mut tx, "ci").await.id;
            let token = TokenId::new(NOON, [5; 10]);
            for (number, action, outcome, contributor, token) in [
                (1, "token-issue", Outcome::Done, Some(ci), Some(token)),
                (2, "token-issue", Outcome::Denied, Some(ci), None),
                (3, "vault-seal", Outcome::Done, None, None),
            ] {
                let row = NewAudit {
                    id: format!("id-{number}"),
                    at: Timestamp(number),
                    action,
                    outcome,
                    contributor,
                    token,
                    subject: &format!("subject-{number}"),
                    address: Some(format!("203.0.113.{number}")),
                    client: Some("nix"),
                    request_id: Some("r"),
                    detail: "{}".to_owned(),
                };
                insert(&mut tx, &row).await.unwrap();
            }
            let page = PageBounds { after: None, limit: 10, descending: false };

            let none = AuditFilter::default;
            for (filter, expected) in [
                (none(), "123"),
                (AuditFilter { contributor: Some(ci), ..none() }, "12"),
                (AuditFilter { token: Some(token), ..none() }, "1"),
                (AuditFilter { action: Some("token-issue".into()), ..none() }, "12"),
                (AuditFilter { outcome: Some(Outcome::Denied), ..none() }, "2"),
                (AuditFilter { since: Some(Timestamp(2)), ..none() }, "23"),
                (AuditFilter { since: Some(Timestamp(2)), until: Some(Timestamp(3)), ..none() }, "2"),
                (AuditFilter { until: Some(Timestamp(1)), ..none() }, ""),
                (AuditFilter { subject: Some("subject-3".into()), ..none() }, "3"),
                (AuditFilter { subject: Some("subject".into()), ..none() }, ""),
                (AuditFilter { address: Some([203, 0, 113, 2].into()), ..none() }, "2"),
                (AuditFilter { address: Some([203, 0, 113, 9].into()), ..none() }, ""),
                (AuditFilter { contributor: Some(ci), since: Some(Timestamp(3)), ..none() }, ""),
            ] {
                let rows = list(&mut tx, &filter, &page).await.unwrap();
                let found: String = rows.iter().filter_map(|row| row.id.strip_prefix("id-")).collect();
                assert_eq!(found, expected, "{filter:?}");
            }
            let page = PageBounds { after: Some("id-3".to_owned()), limit: 1, descending: true };
            let rows = list(&mut tx, &none(), &page).await.unwrap();
            assert_eq!((rows[0].id.as_str(), rows[0].contributor.as_deref()), ("id-2", Some("ci")));
        }
    }
}
