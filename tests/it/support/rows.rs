//! A server's own rows, as whoever may write to its database reads and changes them.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _, SqliteConnection};

use super::server::Site;

/// Runs a statement that changes one row.
pub async fn execute(site: &Site, statement: String) {
    let query = AssertSqlSafe(statement);
    let changed = match site.database_url() {
        Some(url) => sqlx::query(query).execute(&mut postgres(&url).await).await.unwrap().rows_affected(),
        None => sqlx::query(query).execute(&mut embedded(site).await).await.unwrap().rows_affected(),
    };
    assert_eq!(changed, 1);
}

/// The one text that a query answers with.
pub async fn text(site: &Site, query: String) -> String {
    let query = AssertSqlSafe(query);
    match site.database_url() {
        Some(url) => sqlx::query(query).fetch_one(&mut postgres(&url).await).await.unwrap().get(0),
        None => sqlx::query(query).fetch_one(&mut embedded(site).await).await.unwrap().get(0),
    }
}

async fn postgres(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

async fn embedded(site: &Site) -> SqliteConnection {
    let url = format!("sqlite://{}", site.data().join("narvault.db").display());
    SqliteConnection::connect(&url).await.unwrap()
}
