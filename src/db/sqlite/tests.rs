use std::time::Duration;

use sqlx::{AnyConnection, Connection as _, Row as _};
use tempfile::TempDir;

use super::super::DbError;
use super::driver::url;
use super::{Shelf, install_drivers};

/// With everything that a URL would change.
const NAME: &str = "a b?c#d%25é.db";

/// A database with `CREATE TABLE t (n INTEGER PRIMARY KEY, text TEXT, bytes BLOB, real REAL)`, and a way to open it again.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        install_drivers();
        let folder = tempfile::tempdir().unwrap();
        let made = rusqlite::Connection::open(folder.path().join(NAME)).unwrap();
        made.pragma_update(None, "journal_mode", "WAL").unwrap();
        made.execute_batch(
            "CREATE TABLE t (n INTEGER PRIMARY KEY, text TEXT NOT NULL, bytes BLOB, real REAL)",
        )
        .unwrap();
        Self(folder)
    }

    async fn open(&self) -> AnyConnection {
        AnyConnection::connect(&url(&self.0.path().join(NAME))).await.unwrap()
    }
}

async fn insert(connection: &mut AnyConnection, n: i64) -> sqlx::Result<u64> {
    let done = sqlx::query("INSERT INTO t (n, text) VALUES ($1, 'x')").bind(n).execute(connection).await?;
    Ok(done.rows_affected())
}

async fn numbers(connection: &mut AnyConnection) -> Vec<i64> {
    let rows: Vec<(i64,)> = sqlx::query_as("SELECT n FROM t ORDER BY n").fetch_all(connection).await.unwrap();
    rows.into_iter().map(|(n,)| n).collect()
}

#[tokio::test]
async fn values_come_back_as_they_were_bound_whatever_the_order_of_their_numbers() {
    let folder = Folder::new();
    let mut connection = folder.open().await;
    let done = sqlx::query("INSERT INTO t (text, n, bytes, real) VALUES ($2, $1, $3, $4)")
        .bind(7_i64)
        .bind("näm\0e")
        .bind(vec![0_u8, 255])
        .bind(0.5_f64)
        .execute(&mut connection)
        .await
        .unwrap();
    assert_eq!(done.rows_affected(), 1);

    let row: (i64, String, Vec<u8>, f64) =
        sqlx::query_as("SELECT n, text, bytes, real FROM t WHERE n = $1 AND $1 < 8 AND $2 IS NULL")
            .bind(7_i32)
            .bind(None::<String>)
            .fetch_one(&mut connection)
            .await
            .unwrap();
    assert_eq!(row, (7, "näm\0e".to_owned(), vec![0, 255], 0.5));
    let row =
        sqlx::query("SELECT text AS name, NULL AS absent FROM t").fetch_one(&mut connection).await.unwrap();
    assert_eq!(row.get::<String, _>("name"), "näm\0e");
    assert_eq!(row.get::<Option<i64>, _>("absent"), None);
    assert!(row.try_get::<String, _>("text").is_err());
    assert!(row.try_get::<i64, _>("name").is_err());
}

#[tokio::test]
async fn an_argument_that_is_missing_or_has_no_number_is_refused() {
    let folder = Folder::new();
    let mut connection = folder.open().await;
    for statement in ["SELECT $1, $2", "SELECT ?, ?", "SELECT :name", "SELECT $0"] {
        let error =
            sqlx::query(statement).bind(1_i64).fetch_one(&mut connection).await.map(|_| ()).unwrap_err();
        assert!(matches!(error, sqlx::Error::Protocol(_)), "{statement}: {error}");
    }
    assert_eq!(insert(&mut connection, 1).await.unwrap(), 1);
}

#[tokio::test]
async fn several_statements_of_one_text_share_its_arguments() {
    let folder = Folder::new();
    let mut connection = folder.open().await;
    let text = "INSERT INTO t (n, text) VALUES ($1, $2); INSERT INTO t (n, text) VALUES ($1 + 1, $2); SELECT n FROM t";
    for start in [1_i64, 3] {
        let query = || sqlx::query_as::<_, (i64,)>(text).bind(start).bind("a;b");
        let found = query().fetch_all(&mut connection).await.unwrap();
        assert_eq!(found.len() as i64, start + 1);
        let again = query().fetch_all(&mut connection).await.unwrap_err();
        assert!(matches!(DbError::from(again), DbError::Duplicate));
    }
    let broken = "DELETE FROM t WHERE text = 'a;b'; DELETE FROM t WHERE text = 'a;b'";
    assert!(sqlx::query(broken).execute(&mut connection).await.is_err());
    let (count,): (i64,) =
        sqlx::query_as("SELECT COUNT(*) FROM t WHERE text = 'a;b'").fetch_one(&mut connection).await.unwrap();
    assert_eq!(count, 4);
}

#[tokio::test]
async fn what_sqlite_refuses_carries_its_code() {
    let folder = Folder::new();
    let mut connection = folder.open().await;
    insert(&mut connection, 1).await.unwrap();
    assert!(matches!(DbError::from(insert(&mut connection, 1).await.unwrap_err()), DbError::Duplicate));
    let null = sqlx::query("INSERT INTO t (text) VALUES (NULL)").execute(&mut connection).await.unwrap_err();
    let kind = null.as_database_error().unwrap().kind();
    assert_eq!(kind, sqlx::error::ErrorKind::NotNullViolation);
    let absent =
        sqlx::query("SELECT 1 FROM absent").fetch_one(&mut connection).await.map(|_| ()).unwrap_err();
    assert!(absent.to_string().contains("no such table: absent"), "{absent}");
    let text = sqlx::query("SELECT CAST(x'ff' AS TEXT)").fetch_one(&mut connection).await.map(|_| ());
    assert!(matches!(text, Err(sqlx::Error::ColumnDecode { .. })));
    assert_eq!(numbers(&mut connection).await, [1]);
}

#[tokio::test]
async fn a_dropped_transaction_never_happened_and_a_committed_one_is_there_for_others() {
    let folder = Folder::new();
    let (mut one, mut other) = (folder.open().await, folder.open().await);
    let mut tx = one.begin_with("BEGIN IMMEDIATE").await.unwrap();
    insert(&mut tx, 1).await.unwrap();
    assert!(numbers(&mut other).await.is_empty());
    drop(tx);
    let mut tx = one.begin_with("BEGIN IMMEDIATE").await.unwrap();
    insert(&mut tx, 2).await.unwrap();
    // A query that was left before its last row holds up no commit.
    sqlx::query("SELECT n FROM t UNION SELECT 9").fetch_optional(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(numbers(&mut other).await, [2]);
}

#[tokio::test]
async fn a_savepoint_ends_by_itself_and_with_what_is_around_it() {
    let folder = Folder::new();
    let mut connection = folder.open().await;
    let mut outer = connection.begin().await.unwrap();
    insert(&mut outer, 1).await.unwrap();
    let mut inner = outer.begin().await.unwrap();
    insert(&mut inner, 2).await.unwrap();
    drop(inner);
    let mut inner = outer.begin().await.unwrap();
    insert(&mut inner, 3).await.unwrap();
    inner.commit().await.unwrap();
    outer.commit().await.unwrap();
    assert_eq!(numbers(&mut connection).await, [1, 3]);
}

#[tokio::test]
async fn the_wait_for_another_writer_holds_up_no_thread() {
    let folder = Folder::new();
    let (mut one, mut other) = (folder.open().await, folder.open().await);
    let mut tx = one.begin_with("BEGIN IMMEDIATE").await.unwrap();
    // On one thread: were it held up, the first transaction would never end.
    let second = async {
        let mut tx = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
        insert(&mut tx, 2).await.unwrap();
        tx.commit().await.unwrap();
    };
    let first = async {
        tokio::task::yield_now().await;
        insert(&mut tx, 1).await.unwrap();
        tx.commit().await.unwrap();
    };
    tokio::join!(second, first);
    assert_eq!(numbers(&mut one).await, [1, 2]);
}

#[tokio::test]
async fn a_transaction_that_the_database_ended_leaves_the_connection_usable() {
    let folder = Folder::new();
    let mut connection = folder.open().await;
    sqlx::query("PRAGMA max_page_count = 3").fetch_one(&mut connection).await.unwrap();
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let full = sqlx::query("INSERT INTO t (text) VALUES (hex(zeroblob(100000)))").execute(&mut *tx).await;
    assert!(DbError::from(full.map(|_| ()).unwrap_err()).is_unavailable());
    drop(tx);
    connection.ping().await.unwrap();
    insert(&mut connection, 1).await.unwrap();
    assert_eq!(numbers(&mut connection).await, [1]);
}

#[tokio::test]
async fn no_file_is_made() {
    install_drivers();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("absent.db");
    let error = AnyConnection::connect(&url(&path)).await.map(|_| ()).unwrap_err();
    assert!(matches!(DbError::from(error), error if error.is_unavailable()));
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_took_long_gives_its_thread_away_the_next_time() {
    let folder = Folder::new();
    let mut connection = folder.open().await;
    let long = "WITH RECURSIVE r (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 200000) SELECT MAX(i) FROM r";
    for _ in 0..3 {
        let (found,): (i64,) = sqlx::query_as(long).fetch_one(&mut connection).await.unwrap();
        assert_eq!(found, 200_000);
    }
}

#[tokio::test(start_paused = true)]
async fn a_shelf_lends_no_more_than_it_has_and_the_same_again() {
    let folder = Folder::new();
    let shelf = Shelf::new(&folder.0.path().join(NAME), 2, false);
    let patience = Duration::from_secs(30);
    let (one, mut two) = (shelf.lend(patience).await.unwrap(), shelf.lend(patience).await.unwrap());
    assert!(matches!(shelf.lend(patience).await.map(|_| ()), Err(sqlx::Error::PoolTimedOut)));
    sqlx::query("CREATE TEMP TABLE mine (n)").execute(&mut *two).await.unwrap();
    let waiting = shelf.lend(patience);
    drop(two);
    let mut again = waiting.await.unwrap();
    sqlx::query("SELECT n FROM mine").fetch_optional(&mut *again).await.unwrap();

    let closed = shelf.clone();
    let closing = tokio::spawn(async move { closed.close().await });
    tokio::task::yield_now().await;
    drop((one, again));
    closing.await.unwrap();
    assert!(matches!(shelf.lend(patience).await.map(|_| ()), Err(sqlx::Error::PoolClosed)));
}

#[tokio::test]
async fn a_lent_reader_refuses_to_write() {
    let folder = Folder::new();
    let shelf = Shelf::new(&folder.0.path().join(NAME), 1, true);
    let mut reader = shelf.lend(Duration::from_secs(1)).await.unwrap();
    assert!(numbers(&mut reader).await.is_empty());
    let refused = insert(&mut reader, 1).await.unwrap_err();
    assert!(refused.to_string().contains("readonly"), "{refused}");
}
