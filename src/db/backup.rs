//! Every row as a line of JSON, read in one transaction and written into an empty database. The lines are the same
//! whichever database they come from: numbers as such, bytes as lower-case hex.
//!
//! Never knows what a row means, but for those that a check of a backup looks into ([`look_into`]).

mod tables;

use data_encoding::HEXLOWER;
use futures_util::{Stream, TryStreamExt as _};
use serde::Deserialize;
use sqlx::AssertSqlSafe;

use self::tables::Kind;
pub use self::tables::{TABLES, Table};
use super::dialect::Dialect;
use super::open::{POSTGRES, SQLITE};
use super::signing_keys::KeyState;
use super::{Connection, DbError, Result, Tx, corrupt};
use crate::vault::{KeyLabel, Sealed, SealedKey, SealedWebhook};

/// The newest migration of this binary.
pub fn schema_known() -> i64 {
    // Both databases have the same migrations: a test compares the folders.
    let known = SQLITE.iter().chain(POSTGRES.iter()).map(|migration| migration.version);
    known.max().unwrap_or(0)
}

/// The newest migration of this database: later than [`schema_known`] while a newer replica has begun to run.
pub async fn schema(connection: &mut Connection) -> Result<i64> {
    let (version,): (i64,) =
        sqlx::query_as("SELECT MAX(version) FROM _sqlx_migrations").fetch_one(connection).await?;
    Ok(version)
}

/// The rows of a table in the order of its key, as they come: never all at once in memory.
pub fn rows<'a>(
    connection: &'a mut Connection,
    table: &Table,
) -> impl Stream<Item = Result<String>> + Send + 'a {
    let statement = select(table, Dialect::of(connection));
    // Every word of it is a constant of `tables`.
    let rows = sqlx::query_as::<_, (String,)>(AssertSqlSafe(statement)).persistent(false).fetch(connection);
    rows.map_ok(|(row,)| row).map_err(DbError::from)
}

/// Makes a transaction ready to fill an empty database. It may wait for the backup's next bytes, and rows of one table
/// may refer to rows that come later.
pub async fn prepare(tx: &mut Tx) -> Result<()> {
    each(
        tx,
        &["SET LOCAL idle_in_transaction_session_timeout = '10min'", DEFER_ISSUERS],
        &["PRAGMA defer_foreign_keys = ON"],
    )
    .await
}

/// Checks what [`prepare`] put off. To be called before the commit.
pub async fn settle(tx: &mut Tx) -> Result<()> {
    each(tx, &["SET CONSTRAINTS ALL IMMEDIATE", CHECK_ISSUERS], &[]).await
}

/// The name of a table that has rows, if there is one.
pub async fn occupied(connection: &mut Connection) -> Result<Option<&'static str>> {
    for table in TABLES.iter().filter(|table| !table.is_seeded) {
        let statement = format!(r#"SELECT 1 FROM "{}" LIMIT 1"#, table.name);
        let row = sqlx::query(AssertSqlSafe(statement)).persistent(false).fetch_optional(&mut *connection);
        if row.await?.is_some() {
            return Ok(Some(table.name));
        }
    }
    Ok(None)
}

/// Takes away what migrations put into a table, before a backup's rows come.
pub async fn clear_seed(connection: &mut Connection, table: &Table) -> Result<()> {
    if table.is_seeded {
        let statement = format!(r#"DELETE FROM "{}""#, table.name);
        sqlx::query(AssertSqlSafe(statement)).persistent(false).execute(connection).await?;
    }
    Ok(())
}

/// Inserts rows, a line of JSON each, of which these columns are known. Columns that a row does not have get the default
/// that their migration says: so older backups stay good.
pub async fn insert(
    connection: &mut Connection,
    table: &Table,
    columns: &[String],
    rows: &[String],
) -> Result<()> {
    let statement = insertion(table, columns, Dialect::of(connection));
    let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
    let result = query.bind(format!("[{}]", rows.join(","))).execute(connection).await?;
    if result.rows_affected() == rows.len() as u64 {
        Ok(())
    } else {
        Err(DbError::Changed { table: table.name })
    }
}

/// What a check of a backup needs to see of a row.
#[derive(Debug)]
pub enum Telling {
    Key(Box<SealedKey>),
    Leaf { index: i64, text: String },
    Webhook(SealedWebhook),
}

/// Looks into a line. `None`: there is nothing in it to check, or what was sealed in it was overwritten.
pub fn look_into(table: &Table, line: &str) -> std::result::Result<Option<Telling>, UnreadableRow> {
    match table.name {
        "signing_keys" => {
            let row: KeyLine = read(table, line)?;
            let unreadable = |column| UnreadableRow::Db(corrupt("signing_keys", column, &row.id));
            if KeyState::parse(&row.state) == Some(KeyState::Destroyed) {
                return Ok(None);
            }
            let Some(sealed) = opened_hex(&row.sealed).map_err(|()| unreadable("sealed"))? else {
                return Ok(None);
            };
            // Of a key that a recovery knew from the log alone, which signs nothing. One that signs has to open.
            let signs = KeyState::parse(&row.state).is_none_or(KeyState::may_sign);
            if !signs && sealed == sealed.erased() {
                return Ok(None);
            }
            let public_key =
                HEXLOWER.decode(row.public_key.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
            let key = SealedKey {
                public_key: public_key.ok_or_else(|| unreadable("public_key"))?,
                sealed,
                label: KeyLabel {
                    version: row.version,
                    purpose: row.purpose.parse().map_err(|_| unreadable("purpose"))?,
                    id: row.id,
                    name: row.name,
                    cache_id: row.cache_id,
                },
            };
            Ok(Some(Telling::Key(Box::new(key))))
        }
        "webhooks" => {
            let row: WebhookLine = read(table, line)?;
            let sealed = opened_hex(&row.sealed)
                .map_err(|()| UnreadableRow::Db(corrupt("webhooks", "sealed", &row.id)))?;
            Ok(sealed.map(|sealed| Telling::Webhook(SealedWebhook { id: row.id, sealed })))
        }
        "log_leaves" => {
            let row: LeafLine = read(table, line)?;
            Ok(Some(Telling::Leaf { index: row.idx, text: row.leaf }))
        }
        _ => read::<serde::de::IgnoredAny>(table, line).map(|_| None),
    }
}

/// A line that is no row of its table.
#[derive(Debug, thiserror::Error)]
pub enum UnreadableRow {
    #[error(transparent)]
    Db(DbError),
    #[error("a row of table {table} is unreadable")]
    Json { table: &'static str, source: serde_json::Error },
}

#[derive(Deserialize)]
struct KeyLine {
    id: String,
    purpose: String,
    cache_id: Option<String>,
    name: String,
    version: u32,
    public_key: String,
    sealed: String,
    state: String,
}

#[derive(Deserialize)]
struct WebhookLine {
    id: String,
    sealed: String,
}

#[derive(Deserialize)]
struct LeafLine {
    idx: i64,
    leaf: String,
}

fn read<'a, T: Deserialize<'a>>(table: &Table, line: &'a str) -> std::result::Result<T, UnreadableRow> {
    serde_json::from_str(line).map_err(|source| UnreadableRow::Json { table: table.name, source })
}

/// A sealed record; `None` where it was overwritten with nothing.
fn opened_hex(text: &str) -> std::result::Result<Option<Sealed>, ()> {
    let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| ())?;
    if bytes.is_empty() { Ok(None) } else { Sealed::parse(&bytes).map(Some).map_err(|_| ()) }
}

async fn each(tx: &mut Tx, postgres: &[&'static str], sqlite: &[&'static str]) -> Result<()> {
    let statements = match Dialect::of(tx) {
        Dialect::Postgres => postgres,
        Dialect::Sqlite => sqlite,
    };
    for statement in statements {
        sqlx::query(*statement).execute(&mut **tx).await?;
    }
    Ok(())
}

fn select(table: &Table, dialect: Dialect) -> String {
    let columns = table.kinds().map(|(name, kind)| match (kind, dialect) {
        (Kind::Bytes, Dialect::Postgres) => format!(r#"'{name}', encode("{name}", 'hex')"#),
        // `hex` makes the empty text of NULL.
        (Kind::Bytes, Dialect::Sqlite) => {
            format!(r#"'{name}', CASE WHEN "{name}" IS NULL THEN NULL ELSE lower(hex("{name}")) END"#)
        }
        (Kind::Number | Kind::Text, _) => format!(r#"'{name}', "{name}""#),
    });
    let columns = columns.collect::<Vec<_>>().join(", ");
    let row = match dialect {
        Dialect::Postgres => format!("CAST(json_build_object({columns}) AS TEXT)"),
        Dialect::Sqlite => format!("json_object({columns})"),
    };
    format!(r#"SELECT {row} FROM "{}" ORDER BY {}"#, table.name, quoted(table.key.split(' ')))
}

fn insertion(table: &Table, columns: &[String], dialect: Dialect) -> String {
    let known: Vec<_> =
        table.kinds().filter(|(name, _)| columns.iter().any(|column| column == name)).collect();
    let values = known.iter().map(|(name, kind)| match (kind, dialect) {
        (Kind::Bytes, Dialect::Postgres) => format!("decode(r.value ->> '{name}', 'hex')"),
        (Kind::Bytes, Dialect::Sqlite) => format!("unhex(r.value ->> '{name}')"),
        (Kind::Number, _) => format!("CAST(r.value ->> '{name}' AS BIGINT)"),
        (Kind::Text, _) => format!("r.value ->> '{name}'"),
    });
    let values = values.collect::<Vec<_>>().join(", ");
    let from = dialect.pick("json_array_elements($1::json) AS r (value)", "json_each($1) AS r");
    let names = quoted(known.iter().map(|(name, _)| *name));
    format!(r#"INSERT INTO "{}" ({names}) SELECT {values} FROM {from}"#, table.name)
}

/// Some names are words of SQL too.
fn quoted<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|name| format!(r#""{name}""#)).collect::<Vec<_>>().join(", ")
}

/// The one table whose rows refer to each other. Ids are ordered by the clocks of several machines, so an issuer may
/// come after what it issued.
const DEFER_ISSUERS: &str =
    "ALTER TABLE tokens ALTER CONSTRAINT tokens_issued_by_fkey DEFERRABLE INITIALLY DEFERRED";

const CHECK_ISSUERS: &str = "ALTER TABLE tokens ALTER CONSTRAINT tokens_issued_by_fkey NOT DEFERRABLE";

#[cfg(test)]
mod tests;
