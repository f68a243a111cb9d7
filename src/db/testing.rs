//! Databases for tests: a SQLite file always, and a Postgres database of its own for each test where
//! `NARVAULT_TEST_POSTGRES` names a server on which databases may be made.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use tempfile::TempDir;
use url::Url;

use super::caches::{self, CacheRow, UndeclaredReferences, Upstream, UpstreamPaths};
use super::contributors::{self, ContributorKind, ContributorRow};
use super::gate::gate_lock_id;
use super::open::sqlite_url;
use super::paths::{self, NewClaim, NewPath};
use super::signing_keys::{self, KeyRow, KeyState};
use super::tokens::{self, NewToken};
use super::{Connection, Db, DbSettings};
use crate::access::{CacheId, ContributorId, TokenId};
use crate::nix::claim::Claim;
use crate::nix::compression::{Compression, NarExtension, NarFileName};
use crate::nix::hash::{FileHash, NarHash, Sha256Digest};
use crate::nix::signature::PublicKey;
use crate::nix::store_path::StorePath;
use crate::time::Timestamp;
use crate::vault::{KeyLabel, Purpose, Sealed, SealedKey};

/// The present moment of these tests.
pub const NOON: Timestamp = Timestamp(1_795_353_000_000);

/// A public key that is a point of the curve.
pub const PUBLIC_KEY: &str = "6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

/// How many commits, or writes, a replica gets to do before it is dead.
pub struct Cut(AtomicUsize);

impl Cut {
    /// It dies before the one after the next `count`.
    pub fn after(&self, count: usize) {
        self.0.store(count, Ordering::SeqCst);
    }

    /// Whether it is dead, or would be before the next one.
    pub fn is_dead(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }

    /// Counts one. The error: it is dead.
    pub fn pass(&self) -> std::result::Result<(), &'static str> {
        let left = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        left.map(drop).map_err(|_| "the replica is dead")
    }
}

impl Default for Cut {
    fn default() -> Self {
        Self(AtomicUsize::new(usize::MAX))
    }
}

/// An empty, migrated database.
pub struct TestDb {
    pub db: Db,
    pub settings: DbSettings,
    /// Room for files beside it.
    pub folder: TempDir,
    made: Option<(Url, String)>,
}

impl TestDb {
    pub async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = DbSettings::Sqlite { path: folder.path().join("narvault.db") };
        Self { db: Db::open(&settings).await.unwrap(), settings, folder, made: None }
    }

    /// `None` where no Postgres is at hand.
    pub async fn postgres() -> Option<Self> {
        let server = postgres_url()?;
        let name = format!("narvault_test_{}", uuid::Uuid::now_v7().simple());
        super::sqlite::install_drivers();
        execute(&server, &format!("CREATE DATABASE {name}")).await;
        let mut url = server.clone();
        url.set_path(&name);
        let settings = DbSettings::Postgres { url, connections_max: 40 };
        let db = Db::open(&settings).await.unwrap();
        Some(Self { db, settings, folder: tempfile::tempdir().unwrap(), made: Some((server, name)) })
    }

    /// Removes the database. One that a failed test leaves behind is for looking at.
    pub async fn finish(self) {
        self.db.close().await;
        if let Some((server, name)) = self.made {
            execute(&server, &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
        }
    }
}

/// Whether nobody has passed the gate and not committed yet.
pub async fn gate_is_free(test: &TestDb) -> bool {
    use sqlx::Connection as _;
    let (connection, is_free) = match &test.settings {
        DbSettings::Sqlite { path } => {
            let mut connection = Connection::connect(&sqlite_url(path, "rw")).await.unwrap();
            sqlx::query("PRAGMA busy_timeout = 0").execute(&mut connection).await.unwrap();
            let is_free = sqlx::query("BEGIN IMMEDIATE").execute(&mut connection).await.is_ok();
            (connection, is_free)
        }
        DbSettings::Postgres { url, .. } => {
            let mut connection = Connection::connect(url.as_str()).await.unwrap();
            let (taken,): (i32,) =
                sqlx::query_as("SELECT CASE WHEN pg_try_advisory_lock($1) THEN 1 ELSE 0 END")
                    .bind(gate_lock_id!().parse::<i64>().unwrap())
                    .fetch_one(&mut connection)
                    .await
                    .unwrap();
            (connection, taken == 1)
        }
    };
    // What it took, it takes with it.
    let _ = connection.close().await;
    is_free
}

#[expect(clippy::disallowed_methods, reason = "tests have no configuration; this is their one setting")]
fn postgres_url() -> Option<Url> {
    std::env::var("NARVAULT_TEST_POSTGRES").ok().map(|url| url.parse().unwrap())
}

async fn execute(server: &Url, statement: &str) {
    use sqlx::Connection as _;
    let mut connection = Connection::connect(server.as_str()).await.unwrap();
    // The name in it was made here.
    sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

/// Runs each test on SQLite, and on Postgres where one is at hand.
macro_rules! on_each_database {
    ($($(#[$attribute:meta])* async fn $name:ident($db:ident: &TestDb) $body:block)*) => {
        $(mod $name {
            use super::*;

            async fn check($db: &TestDb) $body

            $(#[$attribute])*
            #[tokio::test]
            async fn on_sqlite() {
                let db = TestDb::sqlite().await;
                check(&db).await;
                db.finish().await;
            }

            $(#[$attribute])*
            #[tokio::test]
            async fn on_postgres() {
                if let Some(db) = TestDb::postgres().await {
                    check(&db).await;
                    db.finish().await;
                }
            }
        })*
    };
}
pub(crate) use on_each_database;

/// What makes an id of [`NOON`] another one than those before; later ones sort later.
pub fn unique() -> [u8; 10] {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut bytes = [0; 10];
    bytes[6..].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    bytes
}

/// A contributor's row.
pub async fn contributor(connection: &mut Connection, name: &str) -> ContributorRow {
    let row = ContributorRow {
        id: ContributorId::new(NOON, unique()),
        name: name.parse().unwrap(),
        kind: ContributorKind::Ci,
        group: None,
        suspended_at: None,
        created_at: NOON,
    };
    contributors::insert(connection, &row).await.unwrap();
    row
}

/// A key's row; its seed is none.
pub async fn key(
    connection: &mut Connection,
    purpose: Purpose,
    cache: Option<CacheId>,
    name: &str,
    state: KeyState,
) -> KeyRow {
    let public_key: PublicKey = format!("{name}:{PUBLIC_KEY}").parse().unwrap();
    let mut sealed = [7; 78];
    sealed[..6].copy_from_slice(&[1, 1, 0, 0, 0, 1]);
    let label = KeyLabel {
        id: TokenId::new(NOON, unique()).to_string(),
        name: name.to_owned(),
        version: 1,
        purpose,
        cache_id: cache.map(|id| id.to_string()),
    };
    let row = KeyRow {
        key: SealedKey { label, public_key: *public_key.bytes(), sealed: Sealed::parse(&sealed).unwrap() },
        public_key,
        state,
        imported: false,
        created_at: NOON,
    };
    signing_keys::insert(connection, &row).await.unwrap();
    row
}

/// A token's row, good for an hour.
pub async fn token(
    connection: &mut Connection,
    contributor: ContributorId,
    key: &KeyRow,
    issued_by: Option<TokenId>,
) -> TokenId {
    let id = TokenId::new(NOON, unique());
    let new = NewToken {
        id,
        contributor,
        scopes: &"push:main".parse().unwrap(),
        issued_by,
        key_id: &key.key.label.id,
        note: None,
        created_at: NOON,
        expires_at: NOON.plus_seconds(3600),
        renewable_until: None,
    };
    tokens::insert(connection, &new).await.unwrap();
    id
}

/// A cache's row.
pub async fn cache(connection: &mut Connection, name: &str) -> CacheRow {
    let upstream = |url: &str, key: &str| Upstream {
        url: url.to_owned(),
        public_keys: vec![format!("{key}:{PUBLIC_KEY}").parse().unwrap()],
    };
    let row = CacheRow {
        id: CacheId::new(NOON, unique()),
        name: name.parse().unwrap(),
        public: true,
        priority: 41,
        prefix: name.to_owned(),
        upstream_paths: UpstreamPaths::Store,
        undeclared_references: UndeclaredReferences::Record,
        upstreams: vec![upstream("https://b.example", "b-1"), upstream("https://a.example", "a-1")],
        created_at: NOON,
    };
    caches::insert(connection, &row).await.unwrap();
    row
}

/// Writes to a token's row as somebody with the database in hand could.
pub async fn overwrite_token(connection: &mut Connection, id: TokenId, column: &str, value: &str) {
    let statement = match column {
        "scopes" => "UPDATE tokens SET scopes = $2 WHERE id = $1",
        "contributor_id" => "UPDATE tokens SET contributor_id = $2 WHERE id = $1",
        other => panic!("no statement for {other}"),
    };
    sqlx::query(statement).bind(id.to_string()).bind(value).execute(connection).await.unwrap();
}

/// Writes to a realisation's row as somebody with the database in hand could.
pub async fn overwrite_realisation(connection: &mut Connection, object: &str, column: &str, value: &str) {
    let statement = match column {
        "body" => "UPDATE realisations SET body = $2 WHERE object = $1",
        "signatures" => "UPDATE realisations SET signatures = $2 WHERE object = $1",
        other => panic!("no statement for {other}"),
    };
    let result = sqlx::query(statement).bind(object).bind(value).execute(connection).await.unwrap();
    assert_eq!(result.rows_affected(), 1, "{object}");
}

/// Takes the audit table away.
pub async fn remove_audit(connection: &mut Connection) {
    sqlx::query("ALTER TABLE audit RENAME TO audit_gone").execute(connection).await.unwrap();
}

/// Puts it back.
pub async fn put_back_audit(connection: &mut Connection) {
    sqlx::query("ALTER TABLE audit_gone RENAME TO audit").execute(connection).await.unwrap();
}

/// A published path of a cache: `number` tells them apart, `file_size` is that of its file.
pub async fn published_path(
    connection: &mut Connection,
    cache: CacheId,
    number: u64,
    file_size: u64,
) -> String {
    let digest = Sha256Digest::of(&number.to_be_bytes());
    let base_name = format!("{}-path-{number}", &digest.base32()[..32]);
    let claim = Claim {
        path: StorePath::from_base_name(&base_name).unwrap(),
        nar_hash: NarHash(digest),
        nar_size: 1000,
        references: BTreeSet::new(),
    };
    let new_id = || TokenId::new(NOON, unique()).to_string();
    let (path_id, claim_id) = (new_id(), new_id());
    let path = NewPath { id: path_id.clone(), hash: claim.path.hash(), claim_id: claim_id.clone() };
    let made = paths::insert(connection, cache, &[path], NOON).await.unwrap();
    assert!(made, "path {number} is there already");
    let new = NewClaim {
        id: claim_id.clone(),
        path_id,
        claim: &claim,
        claim_sha256: claim.sha256(),
        file: NarFileName { hash: FileHash(digest), extension: NarExtension::Xz },
        compression: Compression::Xz,
        file_size,
        deriver: None,
        ca: None,
        ca_dropped: None,
        undeclared_refs: "",
        unfound_refs: "",
        now: NOON,
    };
    paths::insert_claims(connection, &[new]).await.unwrap().remove(0)
}
