//! How long it takes to undo a bad contributor: `nice cargo bench --bench takedown [-- FOLDER]`.
//!
//! Not a test: it prints figures. One contributor publishes ten thousand tiny paths, on SQLite and disk in FOLDER (the
//! system's folder for temporary files, if none is named). Then one call takes them down and another brings them back;
//! each answers when storage has followed, or after a minute. Counted are the narinfos in the folder, before and after.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use narvault::service::{Call, FIRST_CACHE, KeyLimits, QuarantineRequest, Service, TakedownTarget};
use support::{Failure, Sample};

const PATHS: usize = 10_000;

/// Calls under way while the cache is filled: they share their commits.
const AT_ONCE: usize = 16;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).map(PathBuf::from);
    let folder = tempfile::tempdir_in(folder.unwrap_or_else(std::env::temp_dir))?;
    let (service, claim) = support::open(folder.path(), folder.path(), KeyLimits::default()).await?;
    service.start_background();
    let admin = support::call(&service, &support::claim(&service, claim).await?).await?;
    let pusher = support::pusher(&service, &admin, "mallory").await?;
    let cache = folder.path().join("storage").join(FIRST_CACHE);

    println!("load: {}", std::fs::read_to_string("/proc/loadavg")?.trim());
    let started = Instant::now();
    publish(&service, &pusher).await?;
    while service.outbox_backlog().await?.count > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    println!("published  {PATHS} paths   {:6.2} s   {} narinfos", seconds(started), narinfos(&cache)?);

    let target = TakedownTarget::Contributor("mallory".parse()?);
    let request = QuarantineRequest { reason: "a benchmark".to_owned(), ..QuarantineRequest::default() };
    let started = Instant::now();
    let taken = service.quarantine(&admin, &target, &request).await?;
    let took = seconds(started);
    println!("withdrawn  {PATHS} paths   {took:6.2} s   {} narinfos", narinfos(&cache)?);
    if taken.narinfos_left > 0 {
        println!("           {} narinfos were still to be removed after that", taken.narinfos_left);
    }

    let started = Instant::now();
    let restored = service.restore(&admin, &target, "it was one").await?;
    println!("restored   {PATHS} paths   {:6.2} s   {} narinfos", seconds(started), narinfos(&cache)?);
    if restored.narinfos_left > 0 {
        println!("           {} narinfos were still to be written after that", restored.narinfos_left);
    }
    service.shut_down().await;
    Ok(())
}

async fn publish(service: &Service, pusher: &Call) -> Result<(), Failure> {
    let samples = (0..PATHS).map(|at| Sample::new(&at.to_string())).collect::<Result<Vec<_>, _>>()?;
    let samples = Arc::new(samples);
    let mut tasks = tokio::task::JoinSet::new();
    for first in 0..AT_ONCE {
        let (service, call, samples) = (service.clone(), pusher.clone(), Arc::clone(&samples));
        tasks.spawn(async move {
            for sample in samples.iter().skip(first).step_by(AT_ONCE) {
                sample.put_nar(&service, &call).await?;
                sample.put_narinfo(&service, &call).await?;
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// How many narinfos a reader of the folder finds.
fn narinfos(cache: &Path) -> Result<usize, Failure> {
    let mut count = 0;
    for entry in std::fs::read_dir(cache)? {
        count += usize::from(entry?.path().extension().is_some_and(|extension| extension == "narinfo"));
    }
    Ok(count)
}

fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}
