//! The key-encryption key over 10 000 keys, under load: `nice cargo bench --bench rekey [-- FOLDER]`.
//!
//! Not a test: it prints figures. Each round makes 10 000 keys on SQLite in FOLDER (`/dev/shm` if none is named) and has
//! them sealed under another key-encryption key, by the worker as it is in a server, while contributors push and an
//! administrator issues tokens through a second replica that nobody tells. A request that fails ends the program.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use narvault::db::signing_keys::{KeyRow, KeyState};
use narvault::db::{Db, DbSettings, Gate, caches, cluster, signing_keys, vault};
use narvault::nix::signature::PublicKey;
use narvault::service::{Call, FIRST_CACHE, KekRotationState, KeyLimits, Service, TokenRequest};
use narvault::time::Clock;
use narvault::vault::{KeyFile, KeyLabel, OpenVault, Purpose, SlotSecret};
use support::{Failure, Sample};

const KEYS: u32 = 10_000;
const PUSHERS: usize = 4;
const ROUNDS: u64 = 3;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let folder = PathBuf::from(folder.unwrap_or_else(|| "/dev/shm".to_owned()));
    println!("load: {}", std::fs::read_to_string("/proc/loadavg")?.trim());
    println!("keys    seconds   a second   requests meanwhile   longest of them, ms   failed");
    for _ in 0..ROUNDS {
        let folder = tempfile::tempdir_in(&folder)?;
        round(folder.path()).await?;
    }
    Ok(())
}

async fn round(folder: &Path) -> Result<(), Failure> {
    let (service, claim) = support::open(folder, folder, KeyLimits::default()).await?;
    let admin_token = support::claim(&service, claim).await?;
    let admin = support::call(&service, &admin_token).await?;
    let mut pushers = Vec::new();
    for number in 0..PUSHERS {
        pushers.push(support::pusher(&service, &admin, &format!("ci-{number}")).await?);
    }
    make_keys(folder).await?;
    let (other, _) = support::open(folder, folder, KeyLimits::default()).await?;
    service.start_background();
    other.start_background();
    let stop = Arc::new(AtomicBool::new(false));
    let mut load: Vec<_> = pushers
        .into_iter()
        .enumerate()
        .map(|(lane, call)| tokio::spawn(push(other.clone(), call, lane, stop.clone())))
        .collect();
    load.push(tokio::spawn(mint(other.clone(), admin.clone(), stop.clone())));

    let started = Instant::now();
    service.rotate_kek(&admin).await?;
    loop {
        let rotation = service.vault_status(&admin).await?.kek_rotation.ok_or("no rotation")?;
        if rotation.state == KekRotationState::Done {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let took = started.elapsed().as_secs_f64();
    stop.store(true, Ordering::SeqCst);
    let (mut requests, mut longest) = (0, Duration::ZERO);
    for lane in load {
        let (count, slowest) = lane.await??;
        requests += count;
        longest = longest.max(slowest);
    }
    let a_second = f64::from(KEYS) / took;
    println!("{KEYS:5}   {took:7.2}   {a_second:8.0}   {requests:18}   {:19}   {:6}", longest.as_millis(), 0);
    service.shut_down().await;
    other.shut_down().await;
    Ok(())
}

/// Pushes until it is stopped: how many requests, and the longest of them.
async fn push(
    service: Service,
    call: Call,
    lane: usize,
    stop: Arc<AtomicBool>,
) -> Result<(u64, Duration), Failure> {
    let (mut requests, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::SeqCst) {
        let sample = Sample::new(&format!("{lane} {requests}"))?;
        for narinfo in [false, true] {
            let begun = Instant::now();
            if narinfo {
                sample.put_narinfo(&service, &call).await?;
            } else {
                sample.put_nar(&service, &call).await?;
            }
            longest = longest.max(begun.elapsed());
            requests += 1;
        }
    }
    Ok((requests, longest))
}

/// The same with tokens.
async fn mint(service: Service, admin: Call, stop: Arc<AtomicBool>) -> Result<(u64, Duration), Failure> {
    let (mut requests, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::SeqCst) {
        let request = TokenRequest {
            contributor: "ci-0".parse()?,
            scopes: format!("push:{FIRST_CACHE}").parse()?,
            lifetime_seconds: None,
            note: None,
        };
        let begun = Instant::now();
        service.issue_token(&admin, &request).await?;
        longest = longest.max(begun.elapsed());
        requests += 1;
    }
    Ok((requests, longest))
}

/// Keys of the first cache that do not sign, as rows.
async fn make_keys(folder: &Path) -> Result<(), Failure> {
    let db = Db::open(&DbSettings::Sqlite { path: folder.join("narvault.sqlite") }).await?;
    let mut tx = db.begin(Gate::Exclusive).await?;
    let cluster = cluster::read(&mut tx).await?.ok_or("no cluster")?;
    let slots: Vec<_> = vault::slots(&mut tx).await?.into_iter().map(|(slot, _)| slot).collect();
    let secret = SlotSecret::KeyFile(KeyFile::read(&folder.join("vault.key"))?);
    let open = OpenVault::open(&cluster.cluster_id, &slots, &vault::keks(&mut tx).await?, &secret)?;
    let cache = caches::by_name(&mut tx, &FIRST_CACHE.parse()?).await?.ok_or("no cache")?;
    for number in 0..KEYS {
        let label = KeyLabel {
            id: uuid::Uuid::now_v7().to_string(),
            name: format!("extra-{number}"),
            version: number + 2,
            purpose: Purpose::Cache,
            cache_id: Some(cache.id.to_string()),
        };
        let key = open.seal_new_key(label)?;
        let public_key = PublicKey::new(key.label.name.parse()?, &key.public_key)?;
        let created_at = Clock::System.now();
        let row = KeyRow { key, public_key, state: KeyState::Next, imported: false, created_at };
        signing_keys::insert(&mut tx, &row).await?;
    }
    tx.commit().await?;
    db.close().await;
    Ok(())
}
