//! One connection: statements, transactions, and what is remembered of them.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _};
use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{CachedStatement, ErrorCode, OpenFlags};
use sqlx::any::{AnyArguments, AnyQueryResult, AnyRow, AnyStatement, AnyTypeInfo, AnyTypeInfoKind, AnyValue};
use sqlx::{Any, Describe, Either};
use sqlx_core::any::{AnyColumn, AnyConnectionBackend, AnyValueKind};
use sqlx_core::ext::ustr::UStr;
use sqlx_core::sql_str::SqlStr;
use sqlx_core::transaction::{
    begin_ansi_transaction_sql, commit_ansi_transaction_sql, rollback_ansi_transaction_sql,
};

use super::checkpoint::{self, Checkpoints};
use super::driver::NAME;
use crate::threads::in_place;

/// A connection whose statements run on the thread that awaits them.
pub struct Connection {
    inner: rusqlite::Connection,
    shapes: HashMap<String, Shape>,
    /// Texts of several statements, and those.
    several: HashMap<String, Arc<[String]>>,
    /// How many transactions and savepoints are open, one in the other.
    depth: usize,
    last_commit: Duration,
    checkpoints: Checkpoints,
    /// A transaction could not be ended: the connection must not be used again.
    is_broken: bool,
}

/// What every run of a statement has in common.
struct Shape {
    columns: Vec<AnyColumn>,
    names: Arc<sqlx_core::HashMap<UStr, usize>>,
    /// For each of SQLite's parameters, the argument that it stands for, from 0.
    arguments: Vec<usize>,
    last_run: Duration,
}

impl Connection {
    /// Opens a database that exists.
    pub fn open(path: &Path) -> sqlx::Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let inner = rusqlite::Connection::open_with_flags(path, flags).map_err(failed)?;
        inner.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
        inner.busy_timeout(BUSY_PATIENCE).map_err(failed)?;
        checkpoint::watch(&inner);
        Ok(Self {
            inner,
            shapes: HashMap::new(),
            several: HashMap::new(),
            depth: 0,
            last_commit: Duration::ZERO,
            checkpoints: Checkpoints::new(path),
            is_broken: false,
        })
    }

    /// Runs what one text holds, usually one statement; at most `limit` rows of it.
    fn run(
        &mut self,
        sql: &str,
        arguments: Option<AnyArguments>,
        limit: usize,
    ) -> sqlx::Result<(Vec<AnyRow>, AnyQueryResult)> {
        let arguments = arguments.unwrap_or_default();
        let Some(parts) = self.parts(sql)? else { return self.run_one(sql, &arguments, limit) };
        let (mut all, mut result) = (Vec::new(), AnyQueryResult::default());
        for part in parts.iter() {
            let (rows, one) = self.run_one(part, &arguments, limit - all.len())?;
            all.extend(rows);
            result.extend([one]);
        }
        Ok((all, result))
    }

    /// The statements of a text that holds several.
    fn parts(&mut self, sql: &str) -> sqlx::Result<Option<Arc<[String]>>> {
        if !sql.contains(';') || self.shapes.contains_key(sql) {
            return Ok(None);
        }
        if let Some(parts) = self.several.get(sql) {
            return Ok(Some(Arc::clone(parts)));
        }
        match self.inner.prepare(sql) {
            Err(rusqlite::Error::MultipleStatement) => {}
            Err(error) => return Err(failed(error)),
            Ok(_) => return Ok(None),
        }
        // One that has a semicolon elsewhere does not parse.
        let parts: Arc<[String]> = sql.split(';').map(|part| part.trim().to_owned()).collect();
        self.several.insert(sql.to_owned(), Arc::clone(&parts));
        Ok(Some(parts))
    }

    fn run_one(
        &mut self,
        sql: &str,
        arguments: &AnyArguments,
        limit: usize,
    ) -> sqlx::Result<(Vec<AnyRow>, AnyQueryResult)> {
        let is_long = self.shapes.get(sql).is_some_and(|shape| shape.last_run >= LONG);
        let started = Instant::now();
        let result = aside(is_long, || self.run_here(sql, arguments, limit));
        let took = started.elapsed();
        if let Some(shape) = self.shapes.get_mut(sql) {
            shape.last_run = took;
        }
        if took >= SLOW {
            tracing::warn!(statement = sql, seconds = took.as_secs_f64(), "slow statement");
        }
        result
    }

    fn run_here(
        &mut self,
        sql: &str,
        arguments: &AnyArguments,
        limit: usize,
    ) -> sqlx::Result<(Vec<AnyRow>, AnyQueryResult)> {
        let mut statement = self.inner.prepare_cached(sql).map_err(failed)?;
        if !self.shapes.contains_key(sql) {
            if self.shapes.len() >= SHAPES_KEPT {
                self.shapes.clear();
            }
            self.shapes.insert(sql.to_owned(), Shape::of(&statement)?);
            #[cfg(test)]
            super::plan::check(&self.inner, sql);
        }
        let shape = &self.shapes[sql];
        bind(&mut statement, &shape.arguments, arguments)?;
        let mut rows = statement.raw_query();
        let mut found = Vec::new();
        while found.len() < limit
            && let Some(row) = rows.next().map_err(failed)?
        {
            found.push(shape.row(row)?);
        }
        drop(rows);
        let rows_affected = if statement.readonly() { 0 } else { self.inner.changes() };
        Ok((found, AnyQueryResult { rows_affected, last_insert_id: None }))
    }

    async fn begin(&mut self, statement: Option<SqlStr>) -> sqlx::Result<()> {
        if statement.is_some() && self.depth > 0 {
            return Err(sqlx::Error::InvalidSavePointStatement);
        }
        let statement = statement.unwrap_or_else(|| begin_ansi_transaction_sql(self.depth));
        let until = Instant::now() + BUSY_PATIENCE;
        loop {
            match self.begin_now(statement.as_str()) {
                Err(error)
                    if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                        && Instant::now() < until =>
                {
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                result => break result.map_err(failed)?,
            }
        }
        if self.inner.is_autocommit() {
            return Err(sqlx::Error::BeginFailed);
        }
        self.depth += 1;
        Ok(())
    }

    /// Does not wait for another process's transaction: that would hold up the thread.
    fn begin_now(&self, statement: &str) -> rusqlite::Result<()> {
        self.inner.busy_timeout(Duration::ZERO)?;
        let begun = self.inner.execute_batch(statement);
        self.inner.busy_timeout(BUSY_PATIENCE)?;
        begun
    }

    fn commit(&mut self) -> sqlx::Result<()> {
        if self.depth == 0 {
            return Ok(());
        }
        let statement = commit_ansi_transaction_sql(self.depth);
        let started = Instant::now();
        let committed = aside(self.last_commit >= LONG_COMMIT, || self.end(statement.as_str()));
        self.last_commit = started.elapsed();
        committed?;
        self.depth -= 1;
        self.checkpoints.after_commit();
        Ok(())
    }

    fn rollback(&mut self) -> sqlx::Result<()> {
        if self.depth == 0 {
            return Ok(());
        }
        // A full disk, and the like, ends the transaction by itself.
        if !self.inner.is_autocommit()
            && let Err(error) = self.end(rollback_ansi_transaction_sql(self.depth).as_str())
        {
            self.is_broken = true;
            return Err(error);
        }
        self.depth -= 1;
        Ok(())
    }

    fn end(&self, statement: &str) -> sqlx::Result<()> {
        self.inner
            .prepare_cached(statement)
            .and_then(|mut statement| statement.execute([]))
            .map_err(failed)?;
        Ok(())
    }
}

impl AnyConnectionBackend for Connection {
    fn name(&self) -> &str {
        NAME
    }

    fn close(mut self: Box<Self>) -> BoxFuture<'static, sqlx::Result<()>> {
        let closed = async move {
            self.checkpoints.close().await;
            // The last one to close writes the log back into the database.
            in_place(|| self.inner.close().map_err(|(_, error)| failed(error)))
        };
        closed.boxed()
    }

    fn close_hard(self: Box<Self>) -> BoxFuture<'static, sqlx::Result<()>> {
        AnyConnectionBackend::close(self)
    }

    fn ping(&mut self) -> BoxFuture<'_, sqlx::Result<()>> {
        let usable = if self.is_broken { Err(sqlx::Error::WorkerCrashed) } else { Ok(()) };
        std::future::ready(usable).boxed()
    }

    fn begin(&mut self, statement: Option<SqlStr>) -> BoxFuture<'_, sqlx::Result<()>> {
        self.begin(statement).boxed()
    }

    fn commit(&mut self) -> BoxFuture<'_, sqlx::Result<()>> {
        async move { self.commit() }.boxed()
    }

    fn rollback(&mut self) -> BoxFuture<'_, sqlx::Result<()>> {
        async move { self.rollback() }.boxed()
    }

    fn start_rollback(&mut self) {
        if let Err(error) = self.rollback() {
            tracing::error!(%error, "a transaction could not be rolled back; its connection is given up");
        }
    }

    fn get_transaction_depth(&self) -> usize {
        self.depth
    }

    fn shrink_buffers(&mut self) {}

    fn flush(&mut self) -> BoxFuture<'_, sqlx::Result<()>> {
        std::future::ready(Ok(())).boxed()
    }

    fn should_flush(&self) -> bool {
        false
    }

    fn fetch_many(
        &mut self,
        query: SqlStr,
        _persistent: bool,
        arguments: Option<AnyArguments>,
    ) -> BoxStream<'_, sqlx::Result<Either<AnyQueryResult, AnyRow>>> {
        let all = async move {
            let all = match self.run(query.as_str(), arguments, usize::MAX) {
                Ok((rows, result)) => {
                    rows.into_iter().map(Either::Right).chain([Either::Left(result)]).map(Ok).collect()
                }
                Err(error) => vec![Err(error)],
            };
            stream::iter(all)
        };
        all.flatten_stream().boxed()
    }

    fn fetch_optional(
        &mut self,
        query: SqlStr,
        _persistent: bool,
        arguments: Option<AnyArguments>,
    ) -> BoxFuture<'_, sqlx::Result<Option<AnyRow>>> {
        async move { Ok(self.run(query.as_str(), arguments, 1)?.0.pop()) }.boxed()
    }

    fn prepare_with<'c, 'q: 'c>(
        &'c mut self,
        sql: SqlStr,
        _parameters: &[AnyTypeInfo],
    ) -> BoxFuture<'c, sqlx::Result<AnyStatement>> {
        async move {
            let shape = Shape::of(&*self.inner.prepare_cached(sql.as_str()).map_err(failed)?)?;
            let parameters = Some(Either::Right(shape.arguments.len()));
            Ok(AnyStatement { sql, parameters, column_names: shape.names, columns: shape.columns })
        }
        .boxed()
    }

    fn describe(&mut self, sql: SqlStr) -> BoxFuture<'_, sqlx::Result<Describe<Any>>> {
        async move {
            let shape = Shape::of(&*self.inner.prepare_cached(sql.as_str()).map_err(failed)?)?;
            let parameters = Some(Either::Right(shape.arguments.len()));
            let nullable = vec![None; shape.columns.len()];
            Ok(Describe { columns: shape.columns, parameters, nullable })
        }
        .boxed()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("depth", &self.depth).finish_non_exhaustive()
    }
}

impl Shape {
    fn of(statement: &rusqlite::Statement<'_>) -> sqlx::Result<Self> {
        let names = statement.column_names().into_iter().map(UStr::new);
        let columns = names.enumerate().map(|(ordinal, name)| {
            // SQLite's columns have values of any type; each value says its own.
            AnyColumn { ordinal, name, type_info: AnyTypeInfo { kind: AnyTypeInfoKind::Null } }
        });
        let columns: Vec<_> = columns.collect();
        let names = columns.iter().map(|column| (column.name.clone(), column.ordinal)).collect();
        let mut arguments = Vec::new();
        for parameter in 1..=statement.parameter_count() {
            let number = match statement.parameter_name(parameter) {
                // `$1` is a name to SQLite, numbered as it comes.
                Some(name) => name.strip_prefix('$').and_then(|number| number.parse::<usize>().ok()),
                None => Some(parameter),
            };
            let place = number.and_then(|number| number.checked_sub(1));
            arguments
                .push(place.ok_or_else(|| sqlx::Error::Protocol("a parameter is neither ? nor $1".into()))?);
        }
        Ok(Self { columns, names: Arc::new(names), arguments, last_run: Duration::ZERO })
    }

    fn row(&self, row: &rusqlite::Row<'_>) -> sqlx::Result<AnyRow> {
        let mut values = Vec::with_capacity(self.columns.len());
        for column in &self.columns {
            let kind = match row.get_ref(column.ordinal).map_err(failed)? {
                ValueRef::Null => AnyValueKind::Null(AnyTypeInfoKind::Null),
                ValueRef::Integer(number) => AnyValueKind::BigInt(number),
                ValueRef::Real(number) => AnyValueKind::Double(number),
                ValueRef::Text(text) => {
                    let text = std::str::from_utf8(text).map_err(|source| sqlx::Error::ColumnDecode {
                        index: column.name.to_string(),
                        source: source.into(),
                    })?;
                    AnyValueKind::Text(Arc::new(text.to_owned()))
                }
                ValueRef::Blob(bytes) => AnyValueKind::Blob(Arc::new(bytes.to_vec())),
            };
            values.push(AnyValue { kind });
        }
        Ok(AnyRow { column_names: Arc::clone(&self.names), columns: self.columns.clone(), values })
    }
}

fn bind(statement: &mut CachedStatement<'_>, places: &[usize], arguments: &AnyArguments) -> sqlx::Result<()> {
    let values = &arguments.values.0;
    for (parameter, place) in places.iter().enumerate() {
        let Some(value) = values.get(*place) else {
            let count = values.len();
            return Err(sqlx::Error::Protocol(format!(
                "no argument for parameter {}, of {count}",
                place + 1
            )));
        };
        let value = match value {
            AnyValueKind::Null(_) => ToSqlOutput::Owned(Value::Null),
            AnyValueKind::Bool(is) => ToSqlOutput::Owned(Value::Integer(i64::from(*is))),
            AnyValueKind::SmallInt(number) => ToSqlOutput::Owned(Value::Integer(i64::from(*number))),
            AnyValueKind::Integer(number) => ToSqlOutput::Owned(Value::Integer(i64::from(*number))),
            AnyValueKind::BigInt(number) => ToSqlOutput::Owned(Value::Integer(*number)),
            AnyValueKind::Real(number) => ToSqlOutput::Owned(Value::Real(f64::from(*number))),
            AnyValueKind::Double(number) => ToSqlOutput::Owned(Value::Real(*number)),
            AnyValueKind::Text(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
            AnyValueKind::TextSlice(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
            AnyValueKind::Blob(bytes) => ToSqlOutput::Borrowed(ValueRef::Blob(bytes)),
            other => {
                return Err(sqlx::Error::Protocol(format!("an argument is of no known kind: {other:?}")));
            }
        };
        statement.raw_bind_parameter(parameter + 1, value).map_err(failed)?;
    }
    Ok(())
}

/// Runs `work` here; if it is long, after handing over what else this thread looks after.
fn aside<T>(is_long: bool, work: impl FnOnce() -> T) -> T {
    if is_long { in_place(work) } else { work() }
}

/// SQLite's word for what failed.
#[derive(Debug, thiserror::Error)]
#[error("(code: {code}) {message}")]
struct SqliteError {
    /// The extended code.
    code: i32,
    message: String,
}

impl sqlx::error::DatabaseError for SqliteError {
    fn message(&self) -> &str {
        &self.message
    }

    fn code(&self) -> Option<std::borrow::Cow<'_, str>> {
        Some(self.code.to_string().into())
    }

    fn kind(&self) -> sqlx::error::ErrorKind {
        use rusqlite::ffi;
        match self.code {
            ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY => {
                sqlx::error::ErrorKind::UniqueViolation
            }
            ffi::SQLITE_CONSTRAINT_FOREIGNKEY => sqlx::error::ErrorKind::ForeignKeyViolation,
            ffi::SQLITE_CONSTRAINT_NOTNULL => sqlx::error::ErrorKind::NotNullViolation,
            ffi::SQLITE_CONSTRAINT_CHECK => sqlx::error::ErrorKind::CheckViolation,
            _ => sqlx::error::ErrorKind::Other,
        }
    }

    fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
        self
    }
}

fn failed(error: rusqlite::Error) -> sqlx::Error {
    match error {
        rusqlite::Error::SqliteFailure(cause, message) => {
            let message = message.unwrap_or_else(|| cause.to_string());
            sqlx::Error::Database(Box::new(SqliteError { code: cause.extended_code, message }))
        }
        other => sqlx::Error::Protocol(other.to_string()),
    }
}

/// A statement that took as long as this is told, as sqlx does.
const SLOW: Duration = Duration::from_secs(1);

/// From here on a thread is worth handing over what else it looks after, which takes some ten microseconds.
const LONG: Duration = Duration::from_millis(1);

/// The same for a commit: there is one at a time, so that it holds up one thread at the most.
const LONG_COMMIT: Duration = Duration::from_millis(4);

/// How long another process's transaction is waited for.
const BUSY_PATIENCE: Duration = Duration::from_secs(10);

/// Between two tries of that.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// Prepared statements that a connection keeps: all that this program has.
const STATEMENTS_KEPT: usize = 512;

/// As many, with room for those that are made as they are needed.
const SHAPES_KEPT: usize = 1024;
