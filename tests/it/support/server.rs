//! A whole server under test, on a backend of the matrix: within this process, or as the real binary where a test
//! must kill it, signal it, measure it, or run several on one database.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use narvault::api::{ClaimRequest, ContributorCreate, ContributorKind, TokenCreate};
use narvault::cli::server::Server;
use narvault::client::Client;
use narvault::config::{Config, Flags, StorageUrl};
use narvault::storage::{self, Credentials, DiskSettings, S3Settings, Storage};
use narvault::time::Clock;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use url::Url;
use uuid::Uuid;

use super::client::{Http, Token};
use super::database::{DatabaseKind, TestDatabase};
use super::s3::{self, S3Server};
use super::{PATIENCE, output_of, until, variable};

/// Runs each test on servers with each combination of database and storage that is worth the time.
macro_rules! on_each_backend {
    ($($(#[$attribute:meta])* async fn $name:ident($server:ident: TestServer) $body:block)+) => {$(
        mod $name {
            use super::*;

            async fn promise($server: $crate::support::server::TestServer) $body

            $(#[$attribute])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_sqlite_and_disk() {
                $crate::support::server::Backend::SQLITE_DISK.run(promise).await;
            }

            $(#[$attribute])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_sqlite_and_s3() {
                $crate::support::server::Backend::SQLITE_S3.run(promise).await;
            }

            $(#[$attribute])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres_and_real_s3() {
                $crate::support::server::Backend::POSTGRES_REAL_S3.run(promise).await;
            }
        }
    )+};
}
pub(crate) use on_each_backend;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageKind {
    Disk,
    /// A server in this process.
    S3,
    /// The one that `NARVAULT_TEST_S3_ENDPOINT`, `_BUCKET`, `_REGION`, `_ACCESS_KEY` and `_SECRET_KEY` name.
    RealS3,
}

/// What a server keeps its state in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    pub database: DatabaseKind,
    pub storage: StorageKind,
}

impl Backend {
    pub const SQLITE_DISK: Self = Self { database: DatabaseKind::Sqlite, storage: StorageKind::Disk };
    pub const SQLITE_S3: Self = Self { database: DatabaseKind::Sqlite, storage: StorageKind::S3 };
    pub const POSTGRES_DISK: Self = Self { database: DatabaseKind::Postgres, storage: StorageKind::Disk };
    pub const POSTGRES_S3: Self = Self { database: DatabaseKind::Postgres, storage: StorageKind::S3 };
    pub const POSTGRES_REAL_S3: Self =
        Self { database: DatabaseKind::Postgres, storage: StorageKind::RealS3 };

    /// Runs a test on a new server with this backend; says so where a part of it is not here.
    pub async fn run<F: Future<Output = ()>>(self, promise: impl FnOnce(TestServer) -> F) {
        match TestServer::start(self).await {
            Some(server) => promise(server).await,
            None => println!("skipped: {self:?} is not here"),
        }
    }
}

/// The state of a server, or of several replicas: folder, database and bucket, all new, gone with the test.
/// (Objects in a real bucket stay, each test's under a prefix of its own.)
pub struct Site {
    pub backend: Backend,
    folder: TempDir,
    database: TestDatabase,
    bucket: Bucket,
}

enum Bucket {
    None,
    Here(S3Server),
    Real { url: String, access_key: String, secret_key: String },
}

impl Site {
    /// `None` where a part of the backend is not at hand.
    pub async fn new(backend: Backend) -> Option<Self> {
        let bucket = match backend.storage {
            StorageKind::Disk => Bucket::None,
            StorageKind::S3 => Bucket::Here(S3Server::start().await),
            StorageKind::RealS3 => Bucket::real()?,
        };
        let database = match backend.database {
            DatabaseKind::Sqlite => TestDatabase::embedded(),
            DatabaseKind::Postgres => TestDatabase::postgres().await?,
        };
        Some(Self { backend, folder: tempfile::tempdir().unwrap(), database, bucket })
    }

    /// Another database, data folder and cluster on the bucket of `self`.
    pub async fn intruder(&self) -> Self {
        let bucket = match &self.bucket {
            Bucket::None => Bucket::None,
            Bucket::Here(server) => Bucket::Real {
                url: s3_url(server),
                access_key: s3::ACCESS_KEY_ID.to_owned(),
                secret_key: s3::SECRET_ACCESS_KEY.to_owned(),
            },
            Bucket::Real { url, access_key, secret_key } => Bucket::Real {
                url: url.clone(),
                access_key: access_key.clone(),
                secret_key: secret_key.clone(),
            },
        };
        let database = TestDatabase::embedded();
        Self { backend: self.backend, folder: tempfile::tempdir().unwrap(), database, bucket }
    }

    /// What is left when the machine is lost: the same bucket and what opens the vault, on a new machine with an empty
    /// database of this kind. `None` where there is none.
    pub async fn on_another_machine(self, database: DatabaseKind) -> Option<Self> {
        let (folder, data) = (tempfile::tempdir().unwrap(), self.data());
        let new_database = match database {
            DatabaseKind::Sqlite => TestDatabase::embedded(),
            DatabaseKind::Postgres => TestDatabase::postgres().await?,
        };
        let new_data = folder.path().join("narvault");
        std::fs::DirBuilder::new().mode(0o700).create(&new_data).unwrap();
        for kept in ["vault.key", "storage"] {
            if data.join(kept).exists() {
                std::fs::rename(data.join(kept), new_data.join(kept)).unwrap();
            }
        }
        let backend = Backend { database, ..self.backend };
        Some(Self { backend, folder, database: new_database, bucket: self.bucket })
    }

    /// The server's `data`.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("narvault")
    }

    /// `database.url`, where it is not the default.
    pub fn database_url(&self) -> Option<String> {
        self.database.url()
    }

    /// `storage.url`, where it is not the default.
    pub fn storage_url(&self) -> Option<String> {
        match &self.bucket {
            Bucket::None => None,
            Bucket::Here(server) => Some(s3_url(server)),
            Bucket::Real { url, .. } => Some(url.clone()),
        }
    }

    /// Where the bucket's server listens.
    pub fn storage_endpoint(&self) -> SocketAddr {
        let endpoint = self.s3_settings().unwrap().endpoint.unwrap();
        endpoint.socket_addrs(|| None).unwrap()[0]
    }

    /// `storage.url` with another address for its endpoint: that of a proxy before it.
    pub fn storage_url_at(&self, address: SocketAddr) -> String {
        let mut url: Url = self.storage_url().unwrap().parse().unwrap();
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let others = pairs.iter().filter(|(name, _)| name != "endpoint");
        let endpoint = format!("http://{address}");
        url.query_pairs_mut().clear().extend_pairs(others).append_pair("endpoint", &endpoint);
        url.into()
    }

    /// Keeps a copy of the database as it is now, while no server runs.
    pub async fn back_up_database(&self) {
        self.database.back_up().await;
        if self.backend.database == DatabaseKind::Sqlite {
            std::fs::copy(self.data().join("narvault.db"), self.data().join("backup")).unwrap();
        }
    }

    /// Puts that copy in the database's place, while no server runs.
    pub async fn restore_database(&self) {
        self.database.restore().await;
        if self.backend.database == DatabaseKind::Sqlite {
            for rest in ["narvault.db-wal", "narvault.db-shm"] {
                let _ = std::fs::remove_file(self.data().join(rest));
            }
            std::fs::rename(self.data().join("backup"), self.data().join("narvault.db")).unwrap();
        }
    }

    /// The storage itself, past every proxy.
    pub async fn storage(&self) -> Storage {
        let settings = match self.s3_settings() {
            None => storage::Settings::Disk(DiskSettings::new(self.data().join("storage"))),
            Some(settings) => storage::Settings::S3(settings.into()),
        };
        Storage::open(settings, Uuid::now_v7()).await.unwrap()
    }

    /// How to reach the bucket, where there is one.
    pub fn s3_settings(&self) -> Option<S3Settings> {
        let StorageUrl::S3(place) = self.storage_url()?.parse().unwrap() else { return None };
        let (access_key_id, secret_access_key) = match &self.bucket {
            Bucket::None => return None,
            Bucket::Here(_) => (s3::ACCESS_KEY_ID, s3::SECRET_ACCESS_KEY),
            Bucket::Real { access_key, secret_key, .. } => (access_key.as_str(), secret_key.as_str()),
        };
        let secret_access_key = secret_access_key.into();
        Some(S3Settings {
            prefix: place.prefix.parse().unwrap(),
            endpoint: place.endpoint.map(|endpoint| endpoint.parse().unwrap()),
            path_style: place.path_style,
            credentials: Some(Credentials { access_key_id: access_key_id.to_owned(), secret_access_key }),
            ..S3Settings::new(place.bucket, place.region.unwrap())
        })
    }

    /// The `NARVAULT_…` variables of a server that works here.
    pub fn settings(&self) -> Vec<(String, String)> {
        let settings = [
            ("NARVAULT_DATA", Some(self.data().display().to_string())),
            ("NARVAULT_DATABASE_URL", self.database_url()),
            ("NARVAULT_STORAGE_URL", self.storage_url()),
        ];
        settings.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }

    /// A server within this process. Only for disk storage: credentials of S3 come by a process's environment.
    pub async fn start_here(&self, clock: Clock, settings: &[(&str, &str)]) -> Server {
        assert_eq!(self.backend.storage, StorageKind::Disk, "S3 needs `Site::spawn`");
        let flags = Flags { listen: Some("127.0.0.1:0".to_owned()), ..Flags::default() };
        let more = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let no_file = |_: &Path| Err(std::io::ErrorKind::NotFound.into());
        let config = Config::load(&flags, self.settings().into_iter().chain(more), no_file).unwrap();
        Server::start(config, clock).await.unwrap()
    }

    /// `narvault serve` in a process of its own, once it takes requests.
    pub async fn spawn(&self, settings: &[(&str, &str)]) -> Process {
        let mut command = self.command(settings);
        command.args(["serve", "--listen", "127.0.0.1:0"]);
        Process::ready(command).await
    }

    /// As [`Site::spawn`], on a known address: that of one that was killed.
    pub async fn spawn_at(&self, address: &str, settings: &[(&str, &str)]) -> Process {
        let mut command = self.command(settings);
        command.args(["serve", "--listen", address]);
        Process::ready(command).await
    }

    /// The binary with the settings of a server that works here, and nothing else of this process's environment.
    pub fn command(&self, settings: &[(&str, &str)]) -> Command {
        let mut command = narvault();
        command.current_dir(self.folder.path()).env("HOME", self.folder.path()).envs(self.settings());
        let (access_key, secret_key) = match &self.bucket {
            Bucket::None => return with(command, settings),
            Bucket::Here(_) => (s3::ACCESS_KEY_ID, s3::SECRET_ACCESS_KEY),
            Bucket::Real { access_key, secret_key, .. } => (access_key.as_str(), secret_key.as_str()),
        };
        command.env("AWS_ACCESS_KEY_ID", access_key).env("AWS_SECRET_ACCESS_KEY", secret_key);
        with(command, settings)
    }
}

impl Bucket {
    fn real() -> Option<Self> {
        let setting = |name: &str| variable(&format!("NARVAULT_TEST_S3_{name}"));
        let (bucket, prefix) = (setting("BUCKET")?, Uuid::now_v7().simple());
        let query = [("endpoint", setting("ENDPOINT")?), ("region", setting("REGION")?)];
        let query = serde_urlencoded::to_string(query).unwrap();
        Some(Self::Real {
            url: format!("s3://{bucket}/it-{prefix}?{query}&path_style=true"),
            access_key: setting("ACCESS_KEY")?,
            secret_key: setting("SECRET_KEY")?,
        })
    }
}

fn s3_url(server: &S3Server) -> String {
    let query = [("endpoint", format!("http://{}", server.address))];
    let query = serde_urlencoded::to_string(query).unwrap();
    format!("s3://{}/in/here?{query}&region=us-east-1&path_style=true", s3::BUCKET)
}

fn with(mut command: Command, settings: &[(&str, &str)]) -> Command {
    command.envs(settings.iter().copied());
    command
}

/// The binary under test, with an empty environment.
pub fn narvault() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_narvault"));
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    // No test's server may ask a cloud who it is.
    command.env("AWS_EC2_METADATA_DISABLED", "true");
    command
}

/// A run of the binary that came to its end.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Waits for the end of a command that ends by itself.
    pub async fn of(command: Command) -> Self {
        let output = output_of(command).await;
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// `narvault serve` in a process of its own, killed with this value.
pub struct Process {
    pub child: Child,
    /// `http://127.0.0.1:port`.
    pub url: String,
    said: Said,
}

type Said = Arc<Mutex<String>>;

impl Process {
    /// Starts it, and waits until it takes requests.
    pub async fn ready(mut command: Command) -> Self {
        // For the address in the log.
        command.env("NARVAULT_LOG_FORMAT", "json");
        let mut child = command.spawn().unwrap();
        let said = Said::default();
        tokio::spawn(listen(child.stderr.take().unwrap(), said.clone()));
        let address = until("the server to listen", async || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the server ended with {status}: {}", said.lock().unwrap());
            }
            listening(&said.lock().unwrap())
        })
        .await;
        let process = Self { child, url: format!("http://{address}"), said };
        let http = Http::new(&process.url);
        until("/readyz", async || (http.get("/readyz").await.status == 200).then_some(())).await;
        process
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    /// All that it wrote to stderr so far.
    pub fn stderr(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// What follows `before` on stderr, up to white space.
    pub fn told(&self, before: &str) -> Option<String> {
        let said = self.stderr();
        let rest = &said[said.find(before)? + before.len()..];
        rest.split_whitespace().next().map(str::to_owned)
    }

    /// Sends a signal by its name, such as `TERM`.
    pub async fn signal(&self, name: &str) {
        let id = self.child.id().unwrap().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status().await.unwrap();
        assert!(status.success());
    }

    /// Ends it as a power cut would.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("the server did not end").unwrap()
    }
}

async fn listen(stderr: impl tokio::io::AsyncRead + Unpin, said: Said) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut said = said.lock().unwrap();
        said.push_str(&line);
        said.push('\n');
    }
}

/// The address in the log line that says where it listens.
fn listening(log: &str) -> Option<String> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut listening = lines.filter(|line| line["message"] == "listening");
    listening.next()?["address"].as_str().map(str::to_owned)
}

/// A server, its first administrator, and the state that it works on.
pub struct TestServer {
    /// `http://127.0.0.1:port`.
    pub url: String,
    /// Of the cache `main`: what clients trust.
    pub public_key: String,
    admin: Client,
    admin_token: String,
    // In this order: the server ends before its state goes.
    running: Running,
    pub site: Site,
}

enum Running {
    Here(Box<Server>),
    Process(Box<Process>),
}

impl TestServer {
    /// Within this process where that can be. `None` where a part of the backend is not at hand.
    pub async fn start(backend: Backend) -> Option<Self> {
        Self::start_with(backend, &[]).await
    }

    /// As [`TestServer::start`], with settings as environment variables.
    pub async fn start_with(backend: Backend, settings: &[(&str, &str)]) -> Option<Self> {
        if backend.storage == StorageKind::Disk {
            let site = Site::new(backend).await?;
            let server = site.start_here(Clock::System, settings).await;
            Some(Self::of_server(site, server).await)
        } else {
            Self::spawn(backend, settings).await
        }
    }

    /// SQLite and disk, within this process, at a time of the test's choice.
    pub async fn at(clock: Clock) -> Self {
        let site = Site::new(Backend::SQLITE_DISK).await.unwrap();
        let server = site.start_here(clock, &[]).await;
        Self::of_server(site, server).await
    }

    /// In a process of its own.
    pub async fn spawn(backend: Backend, settings: &[(&str, &str)]) -> Option<Self> {
        Some(Self::spawn_on(Site::new(backend).await?, settings).await)
    }

    /// In a process of its own, the first one on this site.
    pub async fn spawn_on(site: Site, settings: &[(&str, &str)]) -> Self {
        let process = site.spawn(settings).await;
        let claim = process.told("--claim ").expect("a first start prints a claim");
        let url = process.url.clone();
        Self::claimed(site, url, &claim, Running::Process(Box::new(process))).await
    }

    async fn of_server(site: Site, server: Server) -> Self {
        let url = format!("http://{}", server.http.address);
        let claim = server.first.as_ref().expect("this is a first start").claim.expose().to_owned();
        Self::claimed(site, url, &claim, Running::Here(Box::new(server))).await
    }

    async fn claimed(site: Site, url: String, claim: &str, running: Running) -> Self {
        let anyone = Client::new(url.parse().unwrap(), None, false).unwrap();
        let admin_token = anyone.claim(&ClaimRequest { claim: claim.to_owned() }).await.unwrap().token;
        let admin = Client::new(url.parse().unwrap(), Some(&admin_token.clone().into()), false).unwrap();
        let public_key = admin.cache("main").await.unwrap().public_keys.remove(0);
        Self { url, public_key, admin, admin_token, running, site }
    }

    /// The calls of the first administrator.
    pub fn admin(&self) -> &Client {
        &self.admin
    }

    /// The text of the first administrator's token.
    pub fn admin_token(&self) -> &str {
        &self.admin_token
    }

    /// The calls of whoever holds `token`.
    pub fn client(&self, token: &str) -> Client {
        Client::new(self.url.parse().unwrap(), Some(&token.to_owned().into()), false).unwrap()
    }

    /// Requests of a stranger.
    pub fn http(&self) -> Http {
        Http::new(&self.url)
    }

    /// What goes into nix.conf.
    pub fn pull_url(&self, cache: &str) -> String {
        format!("{}/{cache}", self.url)
    }

    /// What `nix copy --to` gets.
    pub fn push_url(&self, cache: &str) -> String {
        format!("{}/push/{cache}", self.url)
    }

    /// A new token of a contributor, who is made if there is none of that name.
    pub async fn token(&self, contributor: &str, scopes: &[&str]) -> Token {
        if self.admin.contributor(contributor).await.is_err() {
            let name = contributor.to_owned();
            let body = ContributorCreate { name, kind: ContributorKind::Ci, group: None };
            self.admin.contributor_create(&body).await.unwrap();
        }
        let body = TokenCreate {
            contributor: contributor.to_owned(),
            scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
            expires_in_seconds: None,
            note: None,
        };
        let issued = self.admin.token_issue(&body).await.unwrap();
        Token { id: issued.id, http: self.http().with_token(&issued.token), text: issued.token }
    }

    /// The process, of a server that has one of its own.
    pub fn process(&mut self) -> &mut Process {
        match &mut self.running {
            Running::Process(process) => process,
            Running::Here(_) => panic!("this server runs within the test's process"),
        }
    }

    /// Ends it as a power cut would, and starts it again at the same address.
    pub async fn restart_after_kill(&mut self, settings: &[(&str, &str)]) {
        let process = self.process();
        process.kill().await;
        let address = process.address().to_owned();
        let process = self.site.spawn_at(&address, settings).await;
        self.running = Running::Process(Box::new(process));
    }

    /// Ends it in order, and starts it again at the same address after `meanwhile`.
    pub async fn restart_after(&mut self, meanwhile: impl AsyncFnOnce(&Site)) {
        let process = self.process();
        process.signal("TERM").await;
        assert!(process.ended().await.success(), "{}", process.stderr());
        let address = process.address().to_owned();
        meanwhile(&self.site).await;
        let process = self.site.spawn_at(&address, &[]).await;
        self.running = Running::Process(Box::new(process));
    }

    /// Loses its machine as a fire would, and starts it again on another one after `meanwhile`. `None` where the other
    /// machine's database is not at hand.
    pub async fn restart_elsewhere(
        mut self,
        database: DatabaseKind,
        meanwhile: impl AsyncFnOnce(&Site),
    ) -> Option<Self> {
        self.process().kill().await;
        let site = self.site.on_another_machine(database).await?;
        meanwhile(&site).await;
        let process = site.spawn(&[]).await;
        let url = process.url.clone();
        let admin = Client::new(url.parse().unwrap(), Some(&self.admin_token.clone().into()), false).unwrap();
        let running = Running::Process(Box::new(process));
        Some(Self { url, public_key: self.public_key, admin, admin_token: self.admin_token, running, site })
    }

    /// Runs a client command of the binary against this server, as its administrator.
    pub async fn narvault<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Ended {
        let home = tempfile::tempdir().unwrap();
        let mut command = narvault();
        command.args(arguments).env("HOME", home.path()).current_dir(home.path());
        command.env("NARVAULT_URL", &self.url).env("NARVAULT_TOKEN", &self.admin_token);
        Ended::of(command).await
    }

    /// Stops it in order. Without this it just ends with the test.
    pub async fn stop(self) -> Site {
        match self.running {
            Running::Here(server) => server.shut_down().await.unwrap(),
            Running::Process(mut process) => {
                process.signal("TERM").await;
                assert!(process.ended().await.success(), "{}", process.stderr());
            }
        }
        self.site
    }
}
