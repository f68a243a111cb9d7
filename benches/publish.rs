//! Signed, logged publications a second against bare commits: `nice cargo bench --bench publish [-- FOLDER]`.
//!
//! Not a test: it prints figures. Sixteen contributors publish tiny paths one at a time, on SQLite in FOLDER (the system's
//! folder for temporary files, if none is named) with `synchronous = FULL`; objects lie in memory, so that storage is out
//! of the picture. Between the rounds one connection commits an UPDATE of one row as fast as it can, on the same disk.

use std::convert::Infallible;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use narvault::access::{Caller, Credential, TokenText};
use narvault::db::{Db, DbSettings};
use narvault::nix::compression::{NarExtension, NarFileName};
use narvault::nix::hash::{FileHash, Sha256Digest};
use narvault::nix::nar::build::Node;
use narvault::nix::store_path::StorePath;
use narvault::service::measure::MeasureLimits;
use narvault::service::{
    Call, ContributorKind, FIRST_CACHE, KeyLimits, Limits, Liveness, OpenSettings, Origin, Service,
    TokenRequest, VaultSettings,
};
use narvault::storage::{DiskSettings, Settings, Storage};
use narvault::time::Clock;
use sqlx::Connection as _;

const PUBLISHERS: u64 = 16;
const PATHS_EACH: u64 = 200;
const ROUNDS: u64 = 5;
const COMMITS: u64 = 2000;

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).map(PathBuf::from);
    let folder = tempfile::tempdir_in(folder.unwrap_or_else(std::env::temp_dir))?;
    let memory = tempfile::tempdir_in("/dev/shm")?;
    let recorder = PrometheusBuilder::new().build_recorder();
    let figures = recorder.handle();
    metrics::set_global_recorder(recorder)?;

    let (service, admin) = open(folder.path(), memory.path()).await?;
    let mut publishers = Vec::new();
    for number in 0..PUBLISHERS {
        publishers.push(publisher(&service, &admin, number).await?);
    }
    println!("{PUBLISHERS} publishers, {PATHS_EACH} paths each a round; a second:");
    println!("bare commits   publications   ratio   log's share");
    for round in 0..ROUNDS {
        let samples: Vec<_> = (0..PUBLISHERS * PATHS_EACH).map(|at| Sample::new(round, at)).collect();
        put_nars(&service, &publishers, &samples).await?;
        let bare = bare_commits(folder.path()).await?;
        let (all, log) = (seconds(&figures, "publish_transaction"), seconds(&figures, "log_append"));
        let published = publish(&service, &publishers, samples).await?;
        let all = seconds(&figures, "publish_transaction") - all;
        let log = seconds(&figures, "log_append") - log;
        println!("{bare:12.0}   {published:12.0}   {:5.2}   {:9.0} %", published / bare, log / all * 100.0);
    }
    service.shut_down().await;
    Ok(())
}

/// A service after its first start, and the admin.
async fn open(folder: &Path, memory: &Path) -> Result<(Service, Call), Failure> {
    let db = Db::open(&DbSettings::Sqlite { path: folder.join("narvault.sqlite") }).await?;
    let disk = Settings::Disk(DiskSettings { root: memory.join("storage") });
    let storage = Storage::open(disk, uuid::Uuid::now_v7()).await?;
    let vault = VaultSettings { default_key_file: folder.join("vault.key"), ..VaultSettings::default() };
    let limits = Limits {
        measure: MeasureLimits::default(),
        narinfo_size_bytes_max: 1 << 20,
        auxiliary_size_bytes_max: 1 << 20,
        upload_memory_bytes: 1 << 30,
        uploads_per_token: 8,
        admission_wait: Duration::from_secs(60),
        upload_min_bytes_per_second: 1,
        unpublished_max: Duration::from_secs(3600),
        upload_session: Duration::from_secs(3600),
        direct_parts: false,
        withdrawn_max: Duration::from_secs(3600),
        narinfo_memory_bytes: 1 << 20,
        keys: KeyLimits::default(),
    };
    let settings = OpenSettings {
        db,
        storage,
        clock: Clock::System,
        limits,
        vault,
        webhooks: narvault::webhook::Allowed::default(),
        witnesses: Vec::new(),
        backups: None,
        rate_per_minute: 10,
    };
    let (service, first) = Service::open(settings).await?;
    service.start_background();
    let nobody = Call { caller: Caller::Anonymous, origin: Origin::default() };
    let claim = first.ok_or("the folder is not empty")?.claim;
    let token = service.claim_admin(&nobody, claim.expose()).await?.text;
    let admin = call(&service, &token).await?;
    Ok((service, admin))
}

async fn call(service: &Service, token: &TokenText) -> Result<Call, Failure> {
    let caller = service.authenticate(&Credential::Token(token.clone()), Liveness::Recent).await?;
    Ok(Call { caller, origin: Origin::default() })
}

async fn publisher(service: &Service, admin: &Call, number: u64) -> Result<Call, Failure> {
    let name = format!("ci-{number}").parse()?;
    service.create_contributor(admin, &name, ContributorKind::Ci, None).await?;
    let scopes = format!("push:{FIRST_CACHE}").parse()?;
    let request = TokenRequest { contributor: name, scopes, lifetime_seconds: None, note: None };
    call(service, &service.issue_token(admin, &request).await?.text).await
}

/// A path of one small file.
struct Sample {
    path: StorePath,
    file: NarFileName,
    nar: Bytes,
    narinfo: String,
}

impl Sample {
    fn new(round: u64, number: u64) -> Self {
        let name = Sha256Digest::of(format!("{round} {number}").as_bytes()).base32();
        let path = StorePath::from_base_name(&format!("{}-tiny", &name[..32])).expect("a store path's name");
        let nar = Bytes::from(Node::file(name.as_str()).to_nar());
        let digest = Sha256Digest::of(&nar);
        let file = NarFileName { hash: FileHash(digest), extension: NarExtension::Nar };
        let narinfo = format!(
            "StorePath: {path}\nURL: nar/{file}\nCompression: none\nNarHash: sha256:{}\nNarSize: {}\nReferences: \n",
            digest.base32(),
            nar.len()
        );
        Self { path, file, nar, narinfo }
    }
}

async fn put_nars(service: &Service, publishers: &[Call], samples: &[Sample]) -> Result<(), Failure> {
    let cache = FIRST_CACHE.parse()?;
    for (at, sample) in samples.iter().enumerate() {
        let body = futures_util::stream::iter([Ok::<_, Infallible>(sample.nar.clone())]);
        let call = &publishers[at % publishers.len()];
        service.put_nar(call, &cache, sample.file, Some(sample.nar.len() as u64), body).await?;
    }
    Ok(())
}

/// All samples, each publisher one after the other.
async fn publish(service: &Service, publishers: &[Call], samples: Vec<Sample>) -> Result<f64, Failure> {
    let (count, samples) = (samples.len(), Arc::new(samples));
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for (first, call) in publishers.iter().cloned().enumerate() {
        let (service, samples, step) = (service.clone(), Arc::clone(&samples), publishers.len());
        tasks.spawn(async move {
            let cache = FIRST_CACHE.parse()?;
            for sample in samples.iter().skip(first).step_by(step) {
                service.put_narinfo(&call, &cache, sample.path.hash(), sample.narinfo.as_bytes()).await?;
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

/// Commits of one row's change, each on the disk before the next begins.
async fn bare_commits(folder: &Path) -> Result<f64, Failure> {
    let url = format!("sqlite://{}?mode=rwc", folder.join("bare.sqlite").display());
    let mut connection = sqlx::AnyConnection::connect(&url).await?;
    for statement in [
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",
        "CREATE TABLE IF NOT EXISTS counter (n INTEGER NOT NULL)",
        "INSERT INTO counter (n) VALUES (0)",
    ] {
        sqlx::query(statement).execute(&mut connection).await?;
    }
    let started = Instant::now();
    for _ in 0..COMMITS {
        sqlx::query("UPDATE counter SET n = n + 1").execute(&mut connection).await?;
    }
    let rate = COMMITS as f64 / started.elapsed().as_secs_f64();
    connection.close().await?;
    Ok(rate)
}

/// The seconds that this histogram has seen in all.
fn seconds(figures: &PrometheusHandle, name: &str) -> f64 {
    figures.run_upkeep();
    let text = figures.render();
    let sum = format!("narvault_{name}_seconds_sum ");
    text.lines().find_map(|line| line.strip_prefix(&sum)?.parse().ok()).unwrap_or(0.0)
}
