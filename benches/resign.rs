//! Paths signed again a second: `nice cargo bench --bench resign [-- FOLDER]`.
//!
//! Not a test: it prints figures. Each round publishes tiny paths, makes another key and signs everything again with
//! it, batch after batch without the pauses that the rate makes, on SQLite in FOLDER (`/dev/shm` if none is named).
//! Narinfos only enter the outbox, so that storage is out of the picture.

use std::convert::Infallible;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use narvault::access::{Caller, Credential, TokenText};
use narvault::db::{Db, DbSettings};
use narvault::nix::compression::{NarExtension, NarFileName};
use narvault::nix::hash::{FileHash, Sha256Digest};
use narvault::nix::nar::build::Node;
use narvault::nix::store_path::StorePath;
use narvault::service::measure::MeasureLimits;
use narvault::service::{
    Call, ContributorKind, FIRST_CACHE, KeyLimits, KeySource, Limits, Liveness, OpenSettings, Origin,
    RotationStep, Service, TokenRequest, VaultSettings,
};
use narvault::storage::{DiskSettings, Settings, Storage};
use narvault::time::Clock;

/// As many as may wait for storage before signing again rests.
const PATHS: u64 = 2000;
const ROUNDS: u64 = 3;

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let folder = PathBuf::from(folder.unwrap_or_else(|| "/dev/shm".to_owned()));
    println!("load: {}", std::fs::read_to_string("/proc/loadavg")?.trim());
    println!("paths   seconds   a second   a second of processor");
    for _ in 0..ROUNDS {
        let folder = tempfile::tempdir_in(&folder)?;
        round(folder.path()).await?;
    }
    Ok(())
}

async fn round(folder: &Path) -> Result<(), Failure> {
    let nobody = Call { caller: Caller::Anonymous, origin: Origin::default() };
    let (service, claim) = open(folder).await?;
    service.start_background();
    let admin_token = service.claim_admin(&nobody, &claim.ok_or("the folder is not empty")?).await?.text;
    let admin = call(&service, &admin_token).await?;
    let name = "ci".parse()?;
    service.create_contributor(&admin, &name, ContributorKind::Ci, None).await?;
    let scopes = format!("push:{FIRST_CACHE}").parse()?;
    let request = TokenRequest { contributor: name, scopes, lifetime_seconds: None, note: None };
    let pusher = call(&service, &service.issue_token(&admin, &request).await?.text).await?;
    for number in 0..PATHS {
        push(&service, &pusher, number).await?;
    }
    while service.outbox_backlog().await?.count > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    service.shut_down().await;

    // Without the work in the background: nobody releases, nobody publishes the log.
    let (service, _) = open(folder).await?;
    let admin = call(&service, &admin_token).await?;
    let cache = FIRST_CACHE.parse()?;
    let key = service.create_key(&admin, &cache, &KeySource::New { name: None }).await?;
    service.resign_with(&admin, &cache, key.public_key.name()).await?;
    let (started, processor) = (Instant::now(), processor_seconds()?);
    while service.show_rotation(&admin, &cache).await?.step == RotationStep::Resign {
        service.advance_rotations().await?;
    }
    let (wall, processor) = (started.elapsed().as_secs_f64(), processor_seconds()? - processor);
    let paths = PATHS as f64;
    println!("{PATHS:5}   {wall:7.2}   {:8.0}   {:8.0}", paths / wall, paths / processor);
    service.shut_down().await;
    Ok(())
}

/// The service, and at its first start the claim.
async fn open(folder: &Path) -> Result<(Service, Option<String>), Failure> {
    let db = Db::open(&DbSettings::Sqlite { path: folder.join("narvault.sqlite") }).await?;
    let disk = Settings::Disk(DiskSettings { root: folder.join("storage") });
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
        keys: KeyLimits { resign_paths_per_second: 100_000, ..KeyLimits::default() },
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
    Ok((service, first.map(|first| first.claim.expose().to_owned())))
}

async fn call(service: &Service, token: &TokenText) -> Result<Call, Failure> {
    let caller = service.authenticate(&Credential::Token(token.clone()), Liveness::Recent).await?;
    Ok(Call { caller, origin: Origin::default() })
}

/// Publishes a path of one small file.
async fn push(service: &Service, pusher: &Call, number: u64) -> Result<(), Failure> {
    let name = Sha256Digest::of(&number.to_be_bytes()).base32();
    let path = StorePath::from_base_name(&format!("{}-tiny", &name[..32]))?;
    let nar = Bytes::from(Node::file(name.as_str()).to_nar());
    let digest = Sha256Digest::of(&nar);
    let file = NarFileName { hash: FileHash(digest), extension: NarExtension::Nar };
    let narinfo = format!(
        "StorePath: {path}\nURL: nar/{file}\nCompression: none\nNarHash: sha256:{}\nNarSize: {}\nReferences: \n",
        digest.base32(),
        nar.len()
    );
    let cache = FIRST_CACHE.parse()?;
    let body = futures_util::stream::iter([Ok::<_, Infallible>(nar.clone())]);
    service.put_nar(pusher, &cache, file, Some(nar.len() as u64), body).await?;
    service.put_narinfo(pusher, &cache, path.hash(), narinfo.as_bytes()).await?;
    Ok(())
}

/// What this process has used of all processors so far.
fn processor_seconds() -> Result<f64, Failure> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    // Fields 14 and 15, in hundredths of a second; the first one here is the third.
    let ticks: u64 =
        fields.get(11).ok_or("no time")?.parse::<u64>()? + fields.get(12).ok_or("no time")?.parse::<u64>()?;
    Ok(ticks as f64 / 100.0)
}
