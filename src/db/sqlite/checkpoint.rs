//! Writing what the write-ahead log holds back into the database, beside the transactions that follow.
//!
//! SQLite does that in the commit by which the log has become long, and whoever commits waits for some thousand pages and
//! two flushes. Here a thread that serves no request does it, by a connection of its own; only where it does not keep up does
//! a commit do it, so that the log stays bounded (`https://www.sqlite.org/wal.html`, "Avoiding Excessively Large WAL Files").

use std::cell::Cell;
use std::path::{Path, PathBuf};

use futures_util::FutureExt as _;
use rusqlite::hooks::Wal;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

thread_local! {
    /// Pages in the log after the commit that this thread made last.
    static LOGGED: Cell<u32> = const { Cell::new(0) };
}

/// Has a connection say after each commit how long the log is, and write it back where nobody else keeps up.
pub(super) fn watch(connection: &Connection) {
    connection.wal_hook(Some(committed));
}

fn committed(log: &Wal, pages: i32) -> rusqlite::Result<()> {
    let pages = u32::try_from(pages).unwrap_or(0);
    LOGGED.set(pages);
    if pages >= PAGES_MAX {
        match log.checkpoint() {
            // Busy: it is being written back at this moment.
            Err(error) if error.sqlite_error_code() != Some(ErrorCode::DatabaseBusy) => failed(&error),
            _ => {}
        }
    }
    // An error from here would be taken for one of the commit, which has happened.
    Ok(())
}

fn failed(error: &rusqlite::Error) {
    tracing::warn!(%error, "the database's log could not be written back");
}

/// Writes the log of one database back, once at a time.
pub(super) struct Checkpoints {
    path: PathBuf,
    state: State,
}

enum State {
    Idle(WrittenBack),
    Busy(JoinHandle<WrittenBack>),
}

#[derive(Default)]
struct WrittenBack {
    /// Opened when it is first needed.
    connection: Option<Connection>,
    /// Pages of the log that stand in the database, too.
    pages: u32,
}

impl Checkpoints {
    /// Of the database at `path`.
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), state: State::Idle(WrittenBack::default()) }
    }

    /// Begins to write the log back, if the commit that this thread has just made has left enough of it.
    pub(super) fn after_commit(&mut self) {
        let logged = LOGGED.take();
        if logged < PAGES_WANTED {
            return;
        }
        if let State::Busy(task) = &mut self.state
            && let Some(ended) = task.now_or_never()
        {
            self.state = State::Idle(ended.unwrap_or_default());
        }
        let State::Idle(before) = &mut self.state else { return };
        if before.pages > logged {
            // The log has begun anew.
            before.pages = 0;
        }
        if logged - before.pages < PAGES_WANTED {
            return;
        }
        // Without a runtime there is no other thread: commits do it.
        let Ok(runtime) = Handle::try_current() else { return };
        let (before, path) = (std::mem::take(before), self.path.clone());
        self.state = State::Busy(runtime.spawn_blocking(move || before.write_back(&path)));
    }

    /// Waits for the end. Only then may the writing connection close: the last one of all removes the log.
    pub(super) async fn close(&mut self) {
        if let State::Busy(task) = std::mem::replace(&mut self.state, State::Idle(WrittenBack::default())) {
            let _ = task.await;
        }
    }
}

impl WrittenBack {
    fn write_back(mut self, path: &Path) -> Self {
        match self.try_write_back(path).map(u32::try_from) {
            Ok(Ok(pages)) => self.pages = pages,
            // Busy: a commit, or another process, is at it.
            Ok(Err(_)) => {}
            Err(error) => failed(&error),
        }
        self
    }

    /// Waits for nobody, and nobody waits: what readers still need, and what is committed meanwhile, stays for the next time.
    /// Answers with the pages of the log that stand in the database, -1 where somebody else is at it.
    fn try_write_back(&mut self, path: &Path) -> rusqlite::Result<i64> {
        let connection = match &self.connection {
            Some(connection) => connection,
            None => {
                let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                self.connection.insert(Connection::open_with_flags(path, flags)?)
            }
        };
        connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(2))
    }
}

/// Pages to write back at once, as many as SQLite waits for by itself: 4 MiB.
const PAGES_WANTED: u32 = if cfg!(test) { 100 } else { 1000 };

/// From so many pages on a commit writes the log back itself: 16 MiB. Up to here the file grows once, and a flush of what has
/// grown takes twice as long as one of what is written over.
const PAGES_MAX: u32 = 4 * PAGES_WANTED;

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const PAGE_BYTES: u64 = 4096;

    struct Database {
        folder: TempDir,
        writer: Connection,
        checkpoints: Checkpoints,
    }

    impl Database {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("db");
            let writer = Connection::open(&path).unwrap();
            writer.pragma_update(None, "journal_mode", "WAL").unwrap();
            writer.execute_batch("CREATE TABLE t (bytes BLOB)").unwrap();
            watch(&writer);
            Self { folder, writer, checkpoints: Checkpoints::new(&path) }
        }

        /// Commits so many pages, each for itself.
        fn commit_pages(&mut self, count: u32) {
            for _ in 0..count {
                self.writer.execute("INSERT INTO t VALUES (zeroblob(4000))", []).unwrap();
            }
            self.checkpoints.after_commit();
        }

        fn file_pages(&self, name: &str) -> u64 {
            std::fs::metadata(self.folder.path().join(name)).unwrap().len() / PAGE_BYTES
        }

        fn is_idle(&self) -> bool {
            matches!(self.checkpoints.state, State::Idle(_))
        }
    }

    #[tokio::test]
    async fn a_long_log_is_written_back_beside_the_commits() {
        let mut database = Database::new();

        database.commit_pages(PAGES_WANTED);
        assert!(!database.is_idle());
        database.checkpoints.close().await;

        assert!(database.file_pages("db") >= u64::from(PAGES_WANTED));
    }

    #[tokio::test]
    async fn a_short_log_is_left_alone() {
        let mut database = Database::new();

        database.commit_pages(PAGES_WANTED / 10);

        assert!(database.is_idle());
        assert!(database.file_pages("db") < 4);
    }

    #[tokio::test]
    async fn what_is_written_back_is_not_written_back_again() {
        let mut database = Database::new();
        database.commit_pages(PAGES_WANTED);
        let State::Busy(task) =
            std::mem::replace(&mut database.checkpoints.state, State::Idle(WrittenBack::default()))
        else {
            panic!("nothing was begun");
        };
        let ended = task.await.unwrap();
        assert!(ended.pages >= PAGES_WANTED);
        // A reader keeps the log from beginning anew.
        let reader = Connection::open(&database.checkpoints.path).unwrap();
        reader.execute_batch("BEGIN; SELECT * FROM t").unwrap();
        database.checkpoints.state = State::Idle(ended);

        database.commit_pages(PAGES_WANTED / 10);

        assert!(database.is_idle());
    }

    #[tokio::test]
    async fn a_log_that_is_written_back_in_time_begins_anew() {
        let mut database = Database::new();

        for _ in 0..20 {
            database.commit_pages(PAGES_WANTED);
            if let State::Busy(task) = &mut database.checkpoints.state {
                let ended = task.await.unwrap();
                database.checkpoints.state = State::Idle(ended);
            }
        }

        assert!(database.file_pages("db-wal") < 10 * u64::from(PAGES_WANTED));
    }

    #[test]
    fn a_log_that_nobody_else_writes_back_stays_bounded() {
        let mut database = Database::new();

        for _ in 0..30 {
            database.commit_pages(PAGES_WANTED);
        }

        assert!(database.is_idle());
        assert!(database.file_pages("db") > u64::from(PAGES_MAX));
        assert!(database.file_pages("db-wal") < 3 * u64::from(PAGES_MAX));
    }
}
