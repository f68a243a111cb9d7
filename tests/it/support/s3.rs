//! An S3 server in this process, on a folder: it behaves as AWS does and checks signatures.

use std::net::SocketAddr;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use narvault::storage::{Credentials, Patience, S3Settings};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tempfile::TempDir;
use tokio::net::TcpListener;

pub const BUCKET: &str = "bucket";
pub const ACCESS_KEY_ID: &str = "AKTEST";
pub const SECRET_ACCESS_KEY: &str = "word-that-must-not-be-printed";

/// Ends with the test's runtime.
pub struct S3Server {
    pub address: SocketAddr,
    folder: TempDir,
}

impl S3Server {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap());
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, SECRET_ACCESS_KEY));
        let service = service.build();

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let server = Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Self { address, folder }
    }

    /// Settings to reach this server at `address`: its own, or that of a proxy before it.
    pub fn settings(address: SocketAddr) -> S3Settings {
        S3Settings {
            endpoint: Some(format!("http://{address}").parse().unwrap()),
            path_style: true,
            credentials: Some(Credentials {
                access_key_id: ACCESS_KEY_ID.to_owned(),
                secret_access_key: SECRET_ACCESS_KEY.into(),
            }),
            patience: Patience { backoff: std::time::Duration::from_millis(5), ..Patience::default() },
            // As small as can be, so that copies in pieces are tried.
            copy_size_bytes: 5 << 20,
            ..S3Settings::new(BUCKET, "us-east-1")
        }
    }

    /// How many multipart uploads are neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        let names = std::fs::read_dir(self.folder.path()).unwrap();
        names
            .filter(|entry| {
                let name = entry.as_ref().unwrap().file_name().into_string().unwrap();
                name.starts_with(".upload-") || name.starts_with(".upload_id-")
            })
            .count()
    }
}
