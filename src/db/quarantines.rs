//! Quarantines: whose evidence counts no longer, since when, and how far that has been carried through.
//!
//! At most one of each subject stands, which a unique index makes sure of.

use super::{Connection, PageBounds, Result, corrupt, one_row, page_sql};
use crate::access::{ContributorId, ContributorName, TokenId};
use crate::time::Timestamp;

/// Whose evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// What a contributor pushed or signed.
    Contributor(ContributorId),
    /// Everything for one path, by its row's id.
    Path(String),
    /// What came with a token, and with those that it issued.
    Token(TokenId),
}

impl Subject {
    /// The word in the column and in JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Contributor(_) => "contributor",
            Self::Path(_) => "path",
            Self::Token(_) => "token",
        }
    }

    /// The id in the column. Ids of one kind are never those of another.
    pub fn id(&self) -> String {
        match self {
            Self::Contributor(id) => id.to_string(),
            Self::Path(id) => id.clone(),
            Self::Token(id) => id.to_string(),
        }
    }

    fn read(kind: &str, id: &str) -> Option<Self> {
        match kind {
            "contributor" => id.parse().ok().map(Self::Contributor),
            "path" => Some(Self::Path(id.to_owned())),
            "token" => id.parse().ok().map(Self::Token),
            _ => None,
        }
    }
}

/// On whose word something was done.
pub type By = Option<(ContributorId, TokenId)>;

/// A quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantineRow {
    pub id: String,
    pub subject: Subject,
    /// The subject as people name it.
    pub name: String,
    pub since: Timestamp,
    pub reason: String,
    /// Whether tokens that the subject issued are left alone.
    pub keep_issued: bool,
    /// Whether what refers to a withdrawn path is withdrawn too.
    pub dependents: bool,
    pub by: By,
    pub begun_at: Timestamp,
    /// When its tokens were dead.
    pub tokens_dead_at: Option<Timestamp>,
    /// When all was withdrawn.
    pub done_at: Option<Timestamp>,
    pub restoring_at: Option<Timestamp>,
    pub restore_reason: Option<String>,
    pub restorer: By,
    pub restored_at: Option<Timestamp>,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    subject_kind: String,
    subject_id: String,
    subject: String,
    since: i64,
    reason: String,
    keep_issued_at: Option<i64>,
    dependents_at: Option<i64>,
    contributor_id: Option<String>,
    token_id: Option<String>,
    begun_at: i64,
    tokens_dead_at: Option<i64>,
    done_at: Option<i64>,
    restoring_at: Option<i64>,
    restore_reason: Option<String>,
    restorer_contributor_id: Option<String>,
    restorer_token_id: Option<String>,
    restored_at: Option<i64>,
}

impl Row {
    fn read(self) -> Result<QuarantineRow> {
        let corrupt = |column| corrupt("quarantines", column, &self.id);
        let by = |contributor: &Option<String>, token: &Option<String>| match (contributor, token) {
            (Some(contributor), Some(token)) => match (contributor.parse(), token.parse()) {
                (Ok(contributor), Ok(token)) => Ok(Some((contributor, token))),
                _ => Err(corrupt("token_id")),
            },
            _ => Ok(None),
        };
        Ok(QuarantineRow {
            subject: Subject::read(&self.subject_kind, &self.subject_id)
                .ok_or_else(|| corrupt("subject_id"))?,
            by: by(&self.contributor_id, &self.token_id)?,
            restorer: by(&self.restorer_contributor_id, &self.restorer_token_id)?,
            id: self.id,
            name: self.subject,
            since: Timestamp(self.since),
            reason: self.reason,
            keep_issued: self.keep_issued_at.is_some(),
            dependents: self.dependents_at.is_some(),
            begun_at: Timestamp(self.begun_at),
            tokens_dead_at: self.tokens_dead_at.map(Timestamp),
            done_at: self.done_at.map(Timestamp),
            restoring_at: self.restoring_at.map(Timestamp),
            restore_reason: self.restore_reason,
            restored_at: self.restored_at.map(Timestamp),
        })
    }
}

/// The columns of [`Row`], before what else a statement says.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, subject_kind, subject_id, subject, since, reason, keep_issued_at, dependents_at, \
             contributor_id, token_id, begun_at, tokens_dead_at, done_at, restoring_at, restore_reason, \
             restorer_contributor_id, restorer_token_id, restored_at FROM quarantines ",
            $rest
        )
    };
}

/// Writes a new one down.
pub async fn insert(connection: &mut Connection, row: &QuarantineRow) -> Result<()> {
    sqlx::query(
        "INSERT INTO quarantines (id, subject_kind, subject_id, subject, since, reason, keep_issued_at, \
         dependents_at, contributor_id, token_id, begun_at, advanced_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11)",
    )
    .bind(&row.id)
    .bind(row.subject.kind())
    .bind(row.subject.id())
    .bind(&row.name)
    .bind(row.since.0)
    .bind(&row.reason)
    .bind(row.keep_issued.then_some(row.begun_at.0))
    .bind(row.dependents.then_some(row.begun_at.0))
    .bind(row.by.map(|(contributor, _)| contributor.to_string()))
    .bind(row.by.map(|(_, token)| token.to_string()))
    .bind(row.begun_at.0)
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes one that stands wider, or has it look once more: it is not done, and not being restored any more.
pub async fn widen(connection: &mut Connection, row: &QuarantineRow, now: Timestamp) -> Result<()> {
    let result = sqlx::query(
        "UPDATE quarantines SET since = $2, reason = $3, keep_issued_at = $4, dependents_at = $5, \
         contributor_id = $6, token_id = $7, advanced_at = $8, tokens_dead_at = NULL, done_at = NULL, restoring_at = NULL, \
         restore_reason = NULL, restorer_contributor_id = NULL, restorer_token_id = NULL \
         WHERE id = $1 AND restored_at IS NULL",
    )
    .bind(&row.id)
    .bind(row.since.0)
    .bind(&row.reason)
    .bind(row.keep_issued.then_some(now.0))
    .bind(row.dependents.then_some(now.0))
    .bind(row.by.map(|(contributor, _)| contributor.to_string()))
    .bind(row.by.map(|(_, token)| token.to_string()))
    .bind(now.0)
    .execute(connection)
    .await?;
    one_row("quarantines", result.rows_affected())
}

/// Begins to restore one that stands.
pub async fn begin_restore(
    connection: &mut Connection,
    id: &str,
    reason: &str,
    by: By,
    now: Timestamp,
) -> Result<()> {
    let result = sqlx::query(
        "UPDATE quarantines SET restoring_at = $2, restore_reason = $3, restorer_contributor_id = $4, \
         restorer_token_id = $5, advanced_at = $2 WHERE id = $1 AND restored_at IS NULL",
    )
    .bind(id)
    .bind(now.0)
    .bind(reason)
    .bind(by.map(|(contributor, _)| contributor.to_string()))
    .bind(by.map(|(_, token)| token.to_string()))
    .execute(connection)
    .await?;
    one_row("quarantines", result.rows_affected())
}

/// Writes down that somebody is at it.
pub async fn touch(connection: &mut Connection, id: &str, now: Timestamp) -> Result<()> {
    sqlx::query("UPDATE quarantines SET advanced_at = $2 WHERE id = $1")
        .bind(id)
        .bind(now.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Writes down that the tokens are dead.
pub async fn tokens_dead(connection: &mut Connection, id: &str, now: Timestamp) -> Result<()> {
    sqlx::query("UPDATE quarantines SET tokens_dead_at = $2, advanced_at = $2 WHERE id = $1 AND tokens_dead_at IS NULL")
        .bind(id)
        .bind(now.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Writes down that all is withdrawn.
pub async fn done(connection: &mut Connection, id: &str, now: Timestamp) -> Result<()> {
    sqlx::query("UPDATE quarantines SET done_at = $2 WHERE id = $1 AND done_at IS NULL")
        .bind(id)
        .bind(now.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Writes down that all is restored.
pub async fn restored(connection: &mut Connection, id: &str, now: Timestamp) -> Result<()> {
    sqlx::query("UPDATE quarantines SET restored_at = $2 WHERE id = $1 AND restored_at IS NULL")
        .bind(id)
        .bind(now.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Erases the name of a contributor, and the reasons that were given by them, for them and for their tokens.
pub async fn erase(
    connection: &mut Connection,
    contributor: ContributorId,
    name: &ContributorName,
) -> Result<()> {
    sqlx::query(
        "UPDATE quarantines SET subject = CASE WHEN subject_id = $1 THEN $2 ELSE subject END, reason = 'erased', \
         restore_reason = CASE WHEN restore_reason IS NULL THEN NULL ELSE 'erased' END \
         WHERE subject_id = $1 OR contributor_id = $1 OR restorer_contributor_id = $1 \
         OR subject_id IN (SELECT id FROM tokens WHERE contributor_id = $1)",
    )
    .bind(contributor.to_string())
    .bind(name.as_str())
    .execute(connection)
    .await?;
    Ok(())
}

/// The quarantine of this id.
pub async fn by_id(connection: &mut Connection, id: &str) -> Result<Option<QuarantineRow>> {
    let row: Option<Row> =
        sqlx::query_as(select!("WHERE id = $1")).bind(id).fetch_optional(connection).await?;
    row.map(Row::read).transpose()
}

/// The subject's newest quarantine; if one stands, that one.
pub async fn newest_of(connection: &mut Connection, subject: &Subject) -> Result<Option<QuarantineRow>> {
    let row: Option<Row> =
        sqlx::query_as(select!("WHERE subject_kind = $1 AND subject_id = $2 ORDER BY id DESC LIMIT 1"))
            .bind(subject.kind())
            .bind(subject.id())
            .fetch_optional(connection)
            .await?;
    row.map(Row::read).transpose()
}

/// Those that stand and are not being restored, but for `id`.
pub async fn others_standing(connection: &mut Connection, id: &str) -> Result<Vec<QuarantineRow>> {
    let rows: Vec<Row> = sqlx::query_as(select!(
        "WHERE restored_at IS NULL AND restoring_at IS NULL AND id <> $1 ORDER BY id ASC"
    ))
    .bind(id)
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(Row::read).collect()
}

/// Those that are neither done nor restored, or are being restored, and that nobody has been at since `before`.
pub async fn unfinished(connection: &mut Connection, before: Timestamp) -> Result<Vec<String>> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "SELECT id FROM quarantines WHERE restored_at IS NULL AND (done_at IS NULL OR restoring_at IS NOT NULL) \
         AND advanced_at <= $1 ORDER BY id ASC",
    )
    .bind(before.0)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(id,)| id).collect())
}

/// A page of quarantines, by age.
pub async fn list(connection: &mut Connection, page: &PageBounds) -> Result<Vec<QuarantineRow>> {
    let rows: Vec<Row> = sqlx::query_as(page_sql!(
        page,
        "SELECT id, subject_kind, subject_id, subject, since, reason, keep_issued_at, dependents_at, \
         contributor_id, token_id, begun_at, tokens_dead_at, done_at, restoring_at, restore_reason, \
         restorer_contributor_id, restorer_token_id, restored_at FROM quarantines WHERE",
        "id"
    ))
    .bind(page.after.as_deref())
    .bind(page.limit)
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(Row::read).collect()
}
