//! A storage to test with, of each kind: a folder, an S3 server in this process, and a real one if the
//! environment names it (`NARVAULT_TEST_S3_ENDPOINT`, `_BUCKET`, `_REGION`, `_ACCESS_KEY`, `_SECRET_KEY`).

use std::ops::Deref;
use std::path::PathBuf;

use narvault::storage::{Credentials, DiskSettings, ObjectKey, Prefix, S3Settings, Settings, Storage};
use tempfile::TempDir;
use uuid::Uuid;

use super::client::TestPath;
use super::s3::S3Server;

/// An object by its name.
pub fn key(object: &str) -> ObjectKey {
    object.parse().unwrap()
}

/// A small object that is there, as text.
pub async fn read(storage: &Storage, object: &str) -> String {
    let bytes = storage.read(&key(object), 1 << 20).await.unwrap().unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The object of a path's narinfo.
pub fn narinfo(cache: &str, path: &TestPath) -> String {
    format!("{cache}/{}.narinfo", path.hash())
}

/// Runs each test on every kind of storage.
macro_rules! on_each_storage {
    ($(async fn $name:ident($storage:ident: TestStorage) $body:block)+) => {$(
        mod $name {
            use super::*;

            async fn promise($storage: $crate::support::storage::TestStorage) $body

            #[tokio::test]
            async fn disk() {
                promise($crate::support::storage::TestStorage::disk().await).await;
            }

            #[tokio::test]
            async fn s3() {
                promise($crate::support::storage::TestStorage::s3().await).await;
            }

            #[tokio::test]
            async fn real_s3() {
                if let Some(storage) = $crate::support::storage::TestStorage::real_s3().await {
                    promise(storage).await;
                }
            }
        }
    )+};
}
pub(crate) use on_each_storage;

/// An empty storage, gone with the test (but for the objects in a real bucket, each under a new prefix).
pub struct TestStorage {
    pub storage: Storage,
    pub settings: Settings,
    kept: Kept,
}

/// What must live as long as the storage.
enum Kept {
    Folder(TempDir),
    Server(S3Server),
    Nothing,
}

impl TestStorage {
    pub async fn disk() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings::Disk(DiskSettings::new(folder.path().join("cache")));
        Self::open(settings, Kept::Folder(folder)).await
    }

    pub async fn s3() -> Self {
        let server = S3Server::start().await;
        let settings =
            S3Settings { prefix: "in/here".parse().unwrap(), ..S3Server::settings(server.address) };
        Self::open(Settings::S3(settings.into()), Kept::Server(server)).await
    }

    /// `None` where the environment names none.
    pub async fn real_s3() -> Option<Self> {
        #[expect(clippy::disallowed_methods, reason = "names the server to test with, if any")]
        let variable = |name| std::env::var(format!("NARVAULT_TEST_S3_{name}")).ok();
        let prefix: Prefix = format!("test-{}", Uuid::now_v7().simple()).parse().unwrap();
        let settings = S3Settings {
            endpoint: Some(variable("ENDPOINT")?.parse().unwrap()),
            prefix,
            path_style: true,
            credentials: Some(Credentials {
                access_key_id: variable("ACCESS_KEY")?,
                secret_access_key: variable("SECRET_KEY")?.into(),
            }),
            // As small as can be, so that copies in pieces are tried.
            copy_size_bytes: 5 << 20,
            ..S3Settings::new(variable("BUCKET")?, variable("REGION")?)
        };
        Some(Self::open(Settings::S3(settings.into()), Kept::Nothing).await)
    }

    async fn open(settings: Settings, kept: Kept) -> Self {
        let storage = Storage::open(settings.clone(), Uuid::now_v7()).await.unwrap();
        Self { storage, settings, kept }
    }

    /// The same folder or bucket, as another process opens it.
    pub async fn open_again(&self) -> Storage {
        Storage::open(self.settings.clone(), Uuid::now_v7()).await.unwrap()
    }

    /// The folder of a disk storage.
    pub fn root(&self) -> PathBuf {
        match &self.kept {
            Kept::Folder(folder) => folder.path().join("cache"),
            _ => panic!("not on disk"),
        }
    }

    /// How many multipart uploads are open, where that can be seen.
    pub fn open_uploads(&self) -> usize {
        match &self.kept {
            Kept::Server(server) => server.open_uploads(),
            Kept::Folder(_) => std::fs::read_dir(self.root().join("_narvault/tmp")).unwrap().count(),
            Kept::Nothing => 0,
        }
    }
}

impl Deref for TestStorage {
    type Target = Storage;

    fn deref(&self) -> &Storage {
        &self.storage
    }
}
