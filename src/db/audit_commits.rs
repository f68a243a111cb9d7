//! Commitments to audit rows: which rows each of them covers, in which order, and the hash that came out.
//!
//! Never hashes: what is committed to, and how, is the service's matter.

use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use super::dialect::with_json_rows;
use super::{Connection, Result, corrupt, one_row};
use crate::time::Timestamp;

/// 32 bytes.
type Hash = [u8; 32];

/// One commitment of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditCommit {
    /// Counted from 1, without gaps.
    pub seq: i64,
    /// The index of its leaf.
    pub leaf: Option<i64>,
    pub row_count: i64,
    pub head: Hash,
}

/// An audit row as it is committed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedRow {
    pub id: String,
    /// All of its columns, in their order, as one JSON array.
    pub text: String,
    /// `None` until it is committed to, and once it was erased.
    pub salt: Option<[u8; 16]>,
    /// `None` until it is committed to.
    pub commitment: Option<Hash>,
    pub is_erased: bool,
}

/// What a row gets when it is committed to.
#[derive(Debug, Clone)]
pub struct Seal {
    pub id: String,
    pub salt: [u8; 16],
    pub commitment: Hash,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    at: i64,
    action: String,
    outcome: String,
    contributor_id: Option<String>,
    token_id: Option<String>,
    subject: String,
    address: Option<String>,
    client: Option<String>,
    request_id: Option<String>,
    detail: String,
    salt: Option<String>,
    commitment: Option<String>,
    erased_at: Option<i64>,
}

impl Row {
    fn read(self) -> Result<CommittedRow> {
        let text = json!([
            self.id,
            self.at,
            self.action,
            self.outcome,
            self.contributor_id,
            self.token_id,
            self.subject,
            self.address,
            self.client,
            self.request_id,
            self.detail,
        ]);
        Ok(CommittedRow {
            text: text.to_string(),
            salt: self.salt.as_deref().map(|salt| hex(salt, "salt", &self.id)).transpose()?,
            commitment: self
                .commitment
                .as_deref()
                .map(|hash| hex(hash, "commitment", &self.id))
                .transpose()?,
            is_erased: self.erased_at.is_some(),
            id: self.id,
        })
    }
}

/// Rows before `before` that no commitment covers, at most `limit`, in order.
pub async fn uncommitted(
    connection: &mut Connection,
    before: Timestamp,
    limit: i64,
) -> Result<Vec<CommittedRow>> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, at, action, outcome, contributor_id, token_id, subject, address, client, request_id, detail, \
         salt, commitment, erased_at FROM audit WHERE commit_seq IS NULL AND at < $1 ORDER BY id ASC LIMIT $2",
    )
    .bind(before.0)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(Row::read).collect()
}

/// Rows that the commitment `seq` covers, after the one of id `after`, at most `limit`, in order.
pub async fn committed(
    connection: &mut Connection,
    seq: i64,
    after: &str,
    limit: i64,
) -> Result<Vec<CommittedRow>> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, at, action, outcome, contributor_id, token_id, subject, address, client, request_id, detail, \
         salt, commitment, erased_at FROM audit WHERE commit_seq = $1 AND id > $2 ORDER BY id ASC LIMIT $3",
    )
    .bind(seq)
    .bind(after)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(Row::read).collect()
}

/// How many rows there are that no commitment covers.
pub async fn uncommitted_count(connection: &mut Connection) -> Result<i64> {
    let (count,): (i64,) =
        sqlx::query_as("SELECT COUNT(*) FROM audit WHERE commit_seq IS NULL").fetch_one(connection).await?;
    Ok(count)
}

/// The newest commitment.
pub async fn last(connection: &mut Connection) -> Result<Option<AuditCommit>> {
    let row =
        sqlx::query_as("SELECT seq, leaf, row_count, head FROM audit_commits ORDER BY seq DESC LIMIT 1")
            .fetch_optional(connection)
            .await?;
    row.map(read_commit).transpose()
}

/// Commitments after `after`, at most `limit`, in order.
pub async fn list(connection: &mut Connection, after: i64, limit: i64) -> Result<Vec<AuditCommit>> {
    let rows: Vec<_> = sqlx::query_as(
        "SELECT seq, leaf, row_count, head FROM audit_commits WHERE seq > $1 ORDER BY seq ASC LIMIT $2",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(read_commit).collect()
}

fn read_commit((seq, leaf, row_count, head): (i64, Option<i64>, i64, String)) -> Result<AuditCommit> {
    let head = hex(&head, "head", &seq.to_string())?;
    Ok(AuditCommit { seq, leaf, row_count, head })
}

/// Takes a place for a commitment, before anything of it is written: [`super::DbError::Duplicate`] is another replica
/// that makes the same one.
pub async fn reserve(connection: &mut Connection, commit: &AuditCommit, now: Timestamp) -> Result<()> {
    sqlx::query("INSERT INTO audit_commits (seq, leaf, row_count, head, at) VALUES ($1, $2, $3, $4, $5)")
        .bind(commit.seq)
        .bind(commit.leaf)
        .bind(commit.row_count)
        .bind(HEXLOWER.encode(&commit.head))
        .bind(now.0)
        .execute(connection)
        .await?;
    Ok(())
}

/// Writes down which leaf it became.
pub async fn set_leaf(connection: &mut Connection, seq: i64, leaf: i64) -> Result<()> {
    let result = sqlx::query("UPDATE audit_commits SET leaf = $2 WHERE seq = $1")
        .bind(seq)
        .bind(leaf)
        .execute(connection)
        .await?;
    one_row("audit_commits", result.rows_affected())
}

/// Puts rows under the commitment `seq`: how many were under none.
pub async fn seal(connection: &mut Connection, seq: i64, seals: &[Seal]) -> Result<u64> {
    let statement = with_json_rows!(
        connection,
        "UPDATE audit SET commit_seq = $2, salt = r.value ->> 'salt', commitment = r.value ->> 'commitment'",
        "$1",
        // The plus keeps SQLite from looking through all that are under none, for each of these.
        "WHERE audit.id = r.value ->> 'id' AND +audit.commit_seq IS NULL"
    );
    let rows = seals.iter().map(|seal| {
        let (salt, commitment) = (HEXLOWER.encode(&seal.salt), HEXLOWER.encode(&seal.commitment));
        json!({ "id": seal.id, "salt": salt, "commitment": commitment })
    });
    let rows = Value::from(rows.collect::<Vec<_>>()).to_string();
    let result = sqlx::query(statement).bind(rows).bind(seq).execute(connection).await?;
    Ok(result.rows_affected())
}

fn hex<const LEN: usize>(text: &str, column: &'static str, row: &str) -> Result<[u8; LEN]> {
    let bytes = HEXLOWER.decode(text.as_bytes()).ok();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| corrupt("audit", column, row))
}

/// What somebody with access to the database could do.
#[cfg(test)]
pub(crate) async fn alter(connection: &mut Connection, statement: &'static str) -> Result<u64> {
    Ok(sqlx::query(statement).execute(connection).await?.rows_affected())
}

#[cfg(test)]
mod tests {
    use super::super::audit::{self, NewAudit, Outcome};
    use super::super::testing::{NOON, TestDb, on_each_database};
    use super::super::{DbError, Gate};
    use super::*;

    async fn add(connection: &mut Connection, number: i64) {
        let row = NewAudit {
            id: format!("id-{number}"),
            at: Timestamp(number),
            action: "token-issue",
            outcome: Outcome::Done,
            contributor: None,
            token: None,
            subject: "a \"thing\"",
            address: None,
            client: Some("ü"),
            request_id: None,
            detail: "{\"x\":1}".to_owned(),
        };
        audit::insert(connection, &row).await.unwrap();
    }

    fn sealed(rows: &[CommittedRow]) -> Vec<Seal> {
        rows.iter().map(|row| Seal { id: row.id.clone(), salt: [1; 16], commitment: [2; 32] }).collect()
    }

    on_each_database! {
        async fn a_row_is_committed_to_once(test: &TestDb) {
            let mut tx = test.db.begin(Gate::Around).await.unwrap();
            for number in [3, 1, 2] {
                add(&mut tx, number).await;
            }
            let rows = uncommitted(&mut tx, Timestamp(3), 9).await.unwrap();
            let ids: Vec<_> = rows.iter().map(|row| row.id.as_str()).collect();
            assert_eq!(ids, ["id-1", "id-2"]);
            let text = r#"["id-1",1,"token-issue","done",null,null,"a \"thing\"",null,"ü",null,"{\"x\":1}"]"#;
            assert_eq!(rows[0].text, text);

            assert_eq!(seal(&mut tx, 1, &sealed(&rows)).await.unwrap(), 2);
            assert_eq!(seal(&mut tx, 2, &sealed(&rows)).await.unwrap(), 0);

            assert_eq!(uncommitted_count(&mut tx).await.unwrap(), 1);
            let again = committed(&mut tx, 1, "", 9).await.unwrap();
            assert_eq!((again[1].salt, again[1].commitment), (Some([1; 16]), Some([2; 32])));
            assert_eq!(committed(&mut tx, 1, "id-1", 9).await.unwrap(), again[1..]);
        }

        async fn a_commitment_has_one_maker(test: &TestDb) {
            let commit = AuditCommit { seq: 1, leaf: None, row_count: 2, head: [9; 32] };
            let mut tx = test.db.begin(Gate::Around).await.unwrap();
            assert_eq!(last(&mut tx).await.unwrap(), None);
            reserve(&mut tx, &commit, NOON).await.unwrap();
            set_leaf(&mut tx, 1, 17).await.unwrap();
            let made = AuditCommit { leaf: Some(17), ..commit.clone() };
            assert_eq!(last(&mut tx).await.unwrap(), Some(made.clone()));
            assert_eq!(list(&mut tx, 0, 9).await.unwrap(), [made]);
            assert_eq!(list(&mut tx, 1, 9).await.unwrap(), []);

            let twice = reserve(&mut tx, &commit, NOON).await;

            assert!(matches!(twice, Err(DbError::Duplicate)), "{twice:?}");
        }
    }
}
