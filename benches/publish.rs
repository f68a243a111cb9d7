//! Signed, logged publications a second against bare commits: `nice cargo bench --bench publish [-- FOLDER]`.
//!
//! Not a test: it prints figures. Sixteen contributors publish tiny paths on SQLite in FOLDER (the system's folder for
//! temporary files, if none is named) with `synchronous = FULL`: one at a time, as Nix does, and several in a call, as
//! `narvault push` does. Objects lie in memory, so that storage is out of the picture but for its processor time; the time
//! in transactions is without that as well. Before each round one connection commits an UPDATE of one row as fast as it can,
//! on the same disk.

mod support;

use std::path::{Path, PathBuf};
use std::time::Instant;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use narvault::service::{Call, FIRST_CACHE, KeyLimits, Service};
use sqlx::Connection as _;
use support::{Failure, Sample};

const PUBLISHERS: u64 = 16;
const PATHS_EACH: u64 = 200;
/// Paths of a call that publishes several: `narvault push` sends as many as are ready, up to a thousand.
const PATHS_A_CALL: usize = 50;
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
    println!("bare commits   paths a call   published   ratio   in transactions   ratio   log's share");
    for round in 0..ROUNDS {
        let bare = bare_commits(folder.path()).await?;
        for paths_a_call in [1, PATHS_A_CALL] {
            let samples = (0..PUBLISHERS * PATHS_EACH)
                .map(|at| Sample::new(&format!("{round} {paths_a_call} {at}")))
                .collect::<Result<Vec<_>, _>>()?;
            each_publisher(&service, &publishers, &samples, 1, put_nar).await?;
            let (all, log) = (seconds(&figures, "publish_transaction"), seconds(&figures, "log_append"));
            let published = if paths_a_call == 1 {
                each_publisher(&service, &publishers, &samples, 1, put_narinfo).await?
            } else {
                each_publisher(&service, &publishers, &samples, paths_a_call, publish).await?
            };
            let all = seconds(&figures, "publish_transaction") - all;
            let log = seconds(&figures, "log_append") - log;
            // There is one transaction at a time.
            let in_transactions = samples.len() as f64 / all;
            println!(
                "{bare:12.0}   {paths_a_call:12}   {published:9.0}   {:5.2}   {in_transactions:15.0}   {:5.2}   {:9.0} %",
                published / bare,
                in_transactions / bare,
                log / all * 100.0
            );
        }
    }
    service.shut_down().await;
    Ok(())
}

async fn put_nar(service: Service, call: Call, samples: Vec<Sample>) -> Result<(), Failure> {
    for sample in &samples {
        sample.put_nar(&service, &call).await?;
    }
    Ok(())
}

async fn put_narinfo(service: Service, call: Call, samples: Vec<Sample>) -> Result<(), Failure> {
    for sample in &samples {
        sample.put_narinfo(&service, &call).await?;
    }
    Ok(())
}

async fn publish(service: Service, call: Call, samples: Vec<Sample>) -> Result<(), Failure> {
    let narinfos: Vec<String> = samples.iter().map(|sample| sample.narinfo.clone()).collect();
    for outcome in service.publish(&call, &FIRST_CACHE.parse()?, &narinfos).await? {
        outcome.result?;
    }
    Ok(())
}

/// Has each publisher do `work` with its samples, so many at a time, one call after the other: samples a second.
async fn each_publisher<F>(
    service: &Service,
    publishers: &[Call],
    samples: &[Sample],
    at_a_time: usize,
    work: impl Fn(Service, Call, Vec<Sample>) -> F + Clone + Send + 'static,
) -> Result<f64, Failure>
where
    F: Future<Output = Result<(), Failure>> + Send,
{
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for (own, call) in samples.chunks(samples.len() / publishers.len()).zip(publishers) {
        let (service, call, own, work) = (service.clone(), call.clone(), own.to_vec(), work.clone());
        tasks.spawn(async move {
            for some in own.chunks(at_a_time) {
                work(service.clone(), call.clone(), some.to_vec()).await?;
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(samples.len() as f64 / started.elapsed().as_secs_f64())
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
