//! A database for a server under test: the embedded one, or a new one on the Postgres that `NARVAULT_TEST_POSTGRES`
//! names (the URL of a role that may make databases).

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _};
use url::Url;
use uuid::Uuid;

use super::variable;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseKind {
    Sqlite,
    Postgres,
}

/// Runs each test on a server with each kind of database, its objects on disk.
macro_rules! on_each_database {
    ($($(#[$attribute:meta])* async fn $name:ident($server:ident: TestServer) $body:block)+) => {$(
        mod $name {
            use super::*;

            async fn promise($server: $crate::support::server::TestServer) $body

            $(#[$attribute])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_sqlite() {
                $crate::support::server::Backend::SQLITE_DISK.run(promise).await;
            }

            $(#[$attribute])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres() {
                $crate::support::server::Backend::POSTGRES_DISK.run(promise).await;
            }
        }
    )+};
}
pub(crate) use on_each_database;

/// A database made for one test, and dropped with it. One that a failed test leaves behind is for looking at.
pub struct TestDatabase {
    made: Option<(Url, String)>,
}

impl TestDatabase {
    /// The one that a server makes by itself.
    pub fn embedded() -> Self {
        Self { made: None }
    }

    /// `None` where no Postgres is at hand.
    pub async fn postgres() -> Option<Self> {
        let server: Url = variable("NARVAULT_TEST_POSTGRES")?.parse().unwrap();
        let name = format!("narvault_it_{}", Uuid::now_v7().simple());
        execute(&server, format!("CREATE DATABASE {name}")).await;
        Some(Self { made: Some((server, name)) })
    }

    /// For `database.url`; `None`: the default.
    pub fn url(&self) -> Option<String> {
        let (server, name) = self.made.as_ref()?;
        let mut url = server.clone();
        url.set_path(name);
        Some(url.into())
    }
}

impl TestDatabase {
    /// Keeps a copy as it is now, while no server runs on it. The embedded one is files, which the site copies.
    pub async fn back_up(&self) {
        if let Some((server, name)) = &self.made {
            execute(server, format!("CREATE DATABASE {name}_backup TEMPLATE {name}")).await;
        }
    }

    /// Puts the copy in its place, while no server runs on it.
    pub async fn restore(&self) {
        if let Some((server, name)) = &self.made {
            execute(server, format!("DROP DATABASE {name} WITH (FORCE)")).await;
            execute(server, format!("ALTER DATABASE {name}_backup RENAME TO {name}")).await;
        }
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let Some((server, name)) = self.made.take() else { return };
        if std::thread::panicking() {
            println!("the database {name} is left for looking at");
            return;
        }
        // A thread of its own: this one may be within a runtime already.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(execute(&server, format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")));
        });
        dropping.join().unwrap();
    }
}

async fn execute(server: &Url, statement: String) {
    let mut connection = PgConnection::connect(server.as_str()).await.unwrap();
    // The name in it was made here.
    sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}
