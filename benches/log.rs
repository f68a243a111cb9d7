//! Times what a large signature log costs: `cargo bench --bench log [-- LEAVES]`, a million unless told.
//!
//! Not a test: it prints figures. A log is made by hand and audited by the program itself, pinned to one core by whoever
//! calls this with `taskset -c 0`; then a server with as many leaves in SQLite is asked for proofs.

#[path = "../tests/it/support/log.rs"]
mod log;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use narvault::cli::server::Server;
use narvault::client::{Client, ErrorKind};
use narvault::config::{Config, Flags};
use narvault::nix::hash::Sha256Digest;
use narvault::time::Clock;
use sqlx::Connection as _;

const LEAVES: u64 = 1_000_000;

/// Every so many leaves belong to a path that is asked for.
const STRIDE: u64 = 2_000;

/// Rows of one statement.
const ROWS: u64 = 500;

fn main() {
    let leaves = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(LEAVES);
    let folder = tempfile::tempdir_in("/var/tmp").expect("a folder in /var/tmp");
    audit(&folder.path().join("log"), leaves);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(proofs(&folder.path().join("data"), leaves));
}

/// Seconds and megabytes of an audit of a log in a folder.
fn audit(folder: &Path, leaves: u64) {
    let started = Instant::now();
    let first = log::first_leaves();
    let more = leaves - first.len() as u64;
    log::publish(folder, 1, first.into_iter().chain((0..more).map(log::honest)));
    println!("made a log of {leaves} leaves in {:.1} s", started.elapsed().as_secs_f64());

    for command in ["verify", "audit"] {
        let started = Instant::now();
        let mut child = Command::new(env!("CARGO_BIN_EXE_narvault"))
            .args(["log", command, "--json"])
            .arg(folder)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program");
        let mut peak_kib = 0;
        while child.try_wait().expect("its state").is_none() {
            peak_kib = peak_kib.max(peak(child.id()));
            std::thread::sleep(Duration::from_millis(20));
        }
        let output = child.wait_with_output().expect("its end");
        assert!(output.status.success(), "{output:?}");
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "log {command}: {seconds:.1} s, {:.0} leaves a second, peak {} MiB",
            leaves as f64 / seconds,
            peak_kib >> 10
        );
    }
}

fn peak(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Milliseconds of a proof from a server with so many leaves.
async fn proofs(data: &Path, leaves: u64) {
    let server = start(data).await;
    server.shut_down().await.expect("its end");
    let started = Instant::now();
    let hashes = fill(&data.join("narvault.db"), leaves).await;
    println!("wrote {leaves} leaves into the database in {:.1} s", started.elapsed().as_secs_f64());

    let started = Instant::now();
    let server = start(data).await;
    println!("started with them in {:.1} s", started.elapsed().as_secs_f64());
    let url = format!("http://{}", server.http.address);
    let client = Client::new(url.parse().expect("its address"), None, false).expect("a client");
    let last = hashes.last().expect("some paths").clone();
    while let Err(error) = client.path_proof("main", &last, &Default::default()).await {
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("published them in {:.1} s", started.elapsed().as_secs_f64());
    let mut times = Vec::new();
    for hash in &hashes {
        let started = Instant::now();
        client.path_proof("main", hash, &Default::default()).await.expect("a proof");
        times.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!(
        "{} proofs over HTTP: median {:.2} ms, 99 of 100 below {:.2} ms, slowest {:.2} ms",
        times.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
    server.shut_down().await.expect("its end");
}

async fn start(data: &Path) -> Server {
    let flags = Flags {
        listen: Some("127.0.0.1:0".into()),
        data: Some(data.display().to_string()),
        ..Flags::default()
    };
    let no_file = |_: &Path| Err(std::io::ErrorKind::NotFound.into());
    let config = Config::load(&flags, [], no_file).expect("a configuration");
    Server::start(config, Clock::System).await.expect("a server")
}

/// Appends leaves as a server that does not know the frontier would, and the rows of some of their paths.
async fn fill(database: &Path, leaves: u64) -> Vec<String> {
    let url = format!("sqlite://{}", database.display());
    let mut connection = sqlx::SqliteConnection::connect(&url).await.expect("the database");
    let (cache,): (String,) =
        sqlx::query_as("SELECT id FROM caches").fetch_one(&mut connection).await.expect("a cache");
    let (size,): (i64,) =
        sqlx::query_as("SELECT size FROM log_state").fetch_one(&mut connection).await.expect("a size");
    let mut transaction = connection.begin().await.expect("a transaction");
    let mut hashes = Vec::new();
    let first = size as u64;
    for start in (first..leaves).step_by(ROWS as usize) {
        let rows = (start..leaves.min(start + ROWS)).map(|index| {
            let path = index.is_multiple_of(STRIDE).then(|| format!("path-{index}"));
            serde_json::json!({ "idx": index, "leaf": log::honest(index), "path": path })
        });
        let rows = serde_json::Value::from(rows.collect::<Vec<_>>()).to_string();
        sqlx::query(
            "INSERT INTO log_leaves (idx, event, leaf, path_id) SELECT r.value ->> 'idx', 'sign', \
             r.value ->> 'leaf', r.value ->> 'path' FROM json_each($1) AS r",
        )
        .bind(rows)
        .execute(&mut *transaction)
        .await
        .expect("leaves");
    }
    for index in (first.next_multiple_of(STRIDE)..leaves).step_by(STRIDE as usize) {
        let claim = log::claim(index);
        let base = claim.path.as_str().trim_start_matches("/nix/store/").to_owned();
        let hash = base[..32].to_owned();
        let file = Sha256Digest::of(base.as_bytes()).base32();
        let refs: Vec<String> = (1..=4)
            .map(|back| log::claim(index - back).path.as_str().trim_start_matches("/nix/store/").to_owned())
            .collect();
        sqlx::query(
            "INSERT INTO paths (id, cache_id, hash, state, claim_id, published_at, changed_at) \
             VALUES ($1, $2, $3, 'published', $1, 1, 1)",
        )
        .bind(format!("path-{index}"))
        .bind(&cache)
        .bind(&hash)
        .execute(&mut *transaction)
        .await
        .expect("a path");
        sqlx::query(
            "INSERT INTO claims (id, path_id, claim_sha256, store_path, nar_hash, nar_size, refs, file_hash, ext, \
             compression, file_size, undeclared_refs, unfound_refs, created_at) \
             VALUES ($1, $1, $2, $3, $2, 1, $4, $2, 'nar', 'none', 1, '', '', 1)",
        )
        .bind(format!("path-{index}"))
        .bind(&file)
        .bind(&base)
        .bind(refs.join(" "))
        .execute(&mut *transaction)
        .await
        .expect("a claim");
        sqlx::query("INSERT INTO signatures (claim_id, key_name, sig, leaf) VALUES ($1, $2, $3, $4)")
            .bind(format!("path-{index}"))
            .bind(log::CACHE_KEY)
            .bind(vec![0u8; 64])
            .bind(index as i64)
            .execute(&mut *transaction)
            .await
            .expect("a signature");
        hashes.push(hash);
    }
    sqlx::query("UPDATE log_state SET size = $1")
        .bind(leaves as i64)
        .execute(&mut *transaction)
        .await
        .expect("the size");
    transaction.commit().await.expect("a commit");
    connection.close().await.expect("its end");
    hashes
}
