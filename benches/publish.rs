//! Signed, logged publications a second against bare commits: `nice cargo bench --bench publish [-- FOLDER]`.
//!
//! Not a test: it prints figures. Sixteen contributors publish tiny paths one at a time, on SQLite in FOLDER (the system's
//! folder for temporary files, if none is named) with `synchronous = FULL`; objects lie in memory, so that storage is out
//! of the picture. Between the rounds one connection commits an UPDATE of one row as fast as it can, on the same disk.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use narvault::service::{Call, KeyLimits, Service};
use sqlx::Connection as _;
use support::{Failure, Sample};

const PUBLISHERS: u64 = 16;
const PATHS_EACH: u64 = 200;
const ROUNDS: u64 = 5;
const COMMITS: u64 = 2000;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).map(PathBuf::from);
    let folder = tempfile::tempdir_in(folder.unwrap_or_else(std::env::temp_dir))?;
    let memory = tempfile::tempdir_in("/dev/shm")?;
    let recorder = PrometheusBuilder::new().build_recorder();
    let figures = recorder.handle();
    metrics::set_global_recorder(recorder)?;

    let (service, claim) = support::open(folder.path(), memory.path(), KeyLimits::default()).await?;
    service.start_background();
    let admin = support::call(&service, &support::claim(&service, claim).await?).await?;
    let mut publishers = Vec::new();
    for number in 0..PUBLISHERS {
        publishers.push(support::pusher(&service, &admin, &format!("ci-{number}")).await?);
    }
    println!("{PUBLISHERS} publishers, {PATHS_EACH} paths each a round; a second:");
    println!("bare commits   publications   ratio   log's share");
    for round in 0..ROUNDS {
        let samples = (0..PUBLISHERS * PATHS_EACH).map(|at| Sample::new(&format!("{round} {at}")));
        let samples = samples.collect::<Result<Vec<_>, _>>()?;
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

async fn put_nars(service: &Service, publishers: &[Call], samples: &[Sample]) -> Result<(), Failure> {
    for (at, sample) in samples.iter().enumerate() {
        sample.put_nar(service, &publishers[at % publishers.len()]).await?;
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
            for sample in samples.iter().skip(first).step_by(step) {
                sample.put_narinfo(&service, &call).await?;
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
