//! What `sqlx::Any` asks of a driver beyond its connections.
//!
//! Rows, values and arguments reach this driver as `Any`'s own, so the types that sqlx wants besides have no values.

use std::borrow::Cow;
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use sqlx::any::AnyConnectOptions;
use sqlx::error::BoxDynError;
use sqlx::{Either, Transaction};
use sqlx_core::any::AnyConnectionBackend;
use sqlx_core::any::driver::AnyDriver;
use sqlx_core::column::ColumnIndex;
use sqlx_core::sql_str::SqlStr;
use sqlx_core::transaction::TransactionManager;
use url::Url;

use super::connection::Connection;

/// The driver, for [`sqlx::any::install_drivers`].
pub const DRIVER: AnyDriver = AnyDriver::without_migrate::<InPlace>();

/// What the connections call themselves, as sqlx's own do.
pub const NAME: &str = "SQLite";

/// Not `sqlite`: that is sqlx's own driver.
const SCHEME: &str = "sqlite-in-place";

/// The URL by which the database at `path` is opened with this driver. The file has to be there.
pub fn url(path: &Path) -> String {
    let encoded =
        percent_encoding::percent_encode(path.as_os_str().as_bytes(), percent_encoding::NON_ALPHANUMERIC);
    format!("{SCHEME}:{encoded}")
}

/// The database that is this driver's.
#[derive(Debug)]
pub struct InPlace;

impl sqlx::Database for InPlace {
    type Connection = Connection;
    type TransactionManager = Transactions;
    type Row = Never;
    type QueryResult = Nothing;
    type Column = Never;
    type TypeInfo = Never;
    type Value = Never;
    type ValueRef<'r> = Never;
    type Arguments = Nothing;
    type ArgumentBuffer = ();
    type Statement = Never;

    const NAME: &'static str = NAME;
    const URL_SCHEMES: &'static [&'static str] = &[SCHEME];
}

/// Where a connection leads.
#[derive(Debug, Clone)]
pub struct Options {
    path: PathBuf,
}

impl FromStr for Options {
    type Err = sqlx::Error;

    fn from_str(text: &str) -> sqlx::Result<Self> {
        sqlx::ConnectOptions::from_url(&text.parse().map_err(sqlx::Error::config)?)
    }
}

impl TryFrom<&AnyConnectOptions> for Options {
    type Error = sqlx::Error;

    fn try_from(options: &AnyConnectOptions) -> sqlx::Result<Self> {
        sqlx::ConnectOptions::from_url(&options.database_url)
    }
}

impl sqlx::ConnectOptions for Options {
    type Connection = Connection;

    fn from_url(url: &Url) -> sqlx::Result<Self> {
        let path: Vec<u8> = percent_encoding::percent_decode_str(url.path()).collect();
        Ok(Self { path: std::ffi::OsString::from_vec(path).into() })
    }

    async fn connect(&self) -> sqlx::Result<Connection> {
        Connection::open(&self.path)
    }

    fn log_statements(self, _level: log::LevelFilter) -> Self {
        self
    }

    fn log_slow_statements(self, _level: log::LevelFilter, _duration: Duration) -> Self {
        self
    }
}

impl sqlx::Connection for Connection {
    type Database = InPlace;
    type Options = Options;

    async fn close(self) -> sqlx::Result<()> {
        AnyConnectionBackend::close(Box::new(self)).await
    }

    async fn close_hard(self) -> sqlx::Result<()> {
        AnyConnectionBackend::close(Box::new(self)).await
    }

    async fn ping(&mut self) -> sqlx::Result<()> {
        AnyConnectionBackend::ping(self).await
    }

    async fn begin(&mut self) -> sqlx::Result<Transaction<'_, InPlace>> {
        Transaction::begin(self, None).await
    }

    fn shrink_buffers(&mut self) {}

    async fn flush(&mut self) -> sqlx::Result<()> {
        Ok(())
    }

    fn should_flush(&self) -> bool {
        false
    }
}

/// Begins and ends transactions, as the connection does.
pub struct Transactions;

impl TransactionManager for Transactions {
    type Database = InPlace;

    async fn begin(connection: &mut Connection, statement: Option<SqlStr>) -> sqlx::Result<()> {
        AnyConnectionBackend::begin(connection, statement).await
    }

    async fn commit(connection: &mut Connection) -> sqlx::Result<()> {
        AnyConnectionBackend::commit(connection).await
    }

    async fn rollback(connection: &mut Connection) -> sqlx::Result<()> {
        AnyConnectionBackend::rollback(connection).await
    }

    fn start_rollback(connection: &mut Connection) {
        AnyConnectionBackend::start_rollback(connection);
    }

    fn get_transaction_depth(connection: &Connection) -> usize {
        connection.get_transaction_depth()
    }
}

/// No argument and no result: those are `Any`'s.
#[derive(Debug, Default)]
pub struct Nothing;

impl Extend<Self> for Nothing {
    fn extend<T: IntoIterator<Item = Self>>(&mut self, _others: T) {}
}

impl sqlx::Arguments for Nothing {
    type Database = InPlace;

    fn reserve(&mut self, _additional: usize, _size: usize) {}

    fn add<'t, T>(&mut self, _value: T) -> Result<(), BoxDynError>
    where
        T: sqlx::Encode<'t, InPlace> + sqlx::Type<InPlace>,
    {
        Err("this driver is for sqlx::Any alone".into())
    }

    fn len(&self) -> usize {
        0
    }
}

impl sqlx::IntoArguments<InPlace> for Nothing {
    fn into_arguments(self) -> Self {
        self
    }
}

/// A type without a value.
#[derive(Debug, Clone, PartialEq)]
pub enum Never {}

impl fmt::Display for Never {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

impl sqlx::Row for Never {
    type Database = InPlace;

    fn columns(&self) -> &[Self] {
        match *self {}
    }

    fn try_get_raw<I: ColumnIndex<Self>>(&self, _index: I) -> sqlx::Result<Self> {
        match *self {}
    }
}

impl sqlx::Column for Never {
    type Database = InPlace;

    fn ordinal(&self) -> usize {
        match *self {}
    }

    fn name(&self) -> &str {
        match *self {}
    }

    fn type_info(&self) -> &Self {
        match *self {}
    }
}

impl sqlx::TypeInfo for Never {
    fn is_null(&self) -> bool {
        match *self {}
    }

    fn name(&self) -> &str {
        match *self {}
    }
}

impl sqlx::Value for Never {
    type Database = InPlace;

    fn as_ref(&self) -> Self {
        match *self {}
    }

    fn type_info(&self) -> Cow<'_, Self> {
        match *self {}
    }

    fn is_null(&self) -> bool {
        match *self {}
    }
}

impl sqlx::ValueRef<'_> for Never {
    type Database = InPlace;

    fn to_owned(&self) -> Self {
        match *self {}
    }

    fn type_info(&self) -> Cow<'_, Self> {
        match *self {}
    }

    fn is_null(&self) -> bool {
        match *self {}
    }
}

impl sqlx::Statement for Never {
    type Database = InPlace;

    fn into_sql(self) -> SqlStr {
        match self {}
    }

    fn sql(&self) -> &SqlStr {
        match *self {}
    }

    fn parameters(&self) -> Option<Either<&[Self], usize>> {
        match *self {}
    }

    fn columns(&self) -> &[Self] {
        match *self {}
    }

    sqlx_core::impl_statement_query!(Nothing);
}
