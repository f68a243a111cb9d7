//! Paths signed again a second: `nice cargo bench --bench resign [-- FOLDER]`.
//!
//! Not a test: it prints figures. Each round publishes tiny paths, makes another key and signs everything again with
//! it, batch after batch without the pauses that the rate makes, on SQLite in FOLDER (`/dev/shm` if none is named).
//! Narinfos only enter the outbox, so that storage is out of the picture.

mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use narvault::service::{FIRST_CACHE, KeyLimits, KeySource, RotationStep};
use support::{Failure, Sample};

/// Fewer than may wait for storage before signing again rests, the batch that finds the end among them.
const PATHS: u64 = 1500;
const ROUNDS: u64 = 3;

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
    let keys = KeyLimits { resign_paths_per_second: 100_000, ..KeyLimits::default() };
    let (service, claim) = support::open(folder, folder, keys).await?;
    service.start_background();
    let admin_token = support::claim(&service, claim).await?;
    let admin = support::call(&service, &admin_token).await?;
    let pusher = support::pusher(&service, &admin, "ci").await?;
    for number in 0..PATHS {
        let sample = Sample::new(&number.to_string())?;
        sample.put_nar(&service, &pusher).await?;
        sample.put_narinfo(&service, &pusher).await?;
    }
    while service.outbox_backlog().await?.count > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    service.shut_down().await;

    // Without the work in the background: nobody releases, nobody publishes the log.
    let (service, _) = support::open(folder, folder, keys).await?;
    let admin = support::call(&service, &admin_token).await?;
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

/// What this process has used of all processors so far.
fn processor_seconds() -> Result<f64, Failure> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    // Fields 14 and 15, in hundredths of a second; the first one here is the third.
    let ticks: u64 =
        fields.get(11).ok_or("no time")?.parse::<u64>()? + fields.get(12).ok_or("no time")?.parse::<u64>()?;
    Ok(ticks as f64 / 100.0)
}
