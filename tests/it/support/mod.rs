//! What tests stand on: servers in this process and in processes of their own, databases, storages, real Nix,
//! and ways to disturb them. Nothing beyond localhost.

pub mod api;
pub mod builder;
pub mod chaos;
pub mod client;
pub mod database;
pub mod desk;
pub mod kms;
pub mod log;
pub mod nix;
pub mod proxy;
pub mod rows;
pub mod s3;
pub mod server;
pub mod storage;
pub mod witness;

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

/// Most time that anything waited for may take; a test that needs it has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the environment says about the machine that tests run on.
#[expect(clippy::disallowed_methods, reason = "tests have no configuration; these are their settings")]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whether `NARVAULT_TEST_REQUIRE` names a real part: no test may go without it then.
pub fn is_required(part: &str) -> bool {
    let required = variable("NARVAULT_TEST_REQUIRE").unwrap_or_default();
    required.split(',').any(|name| name.trim() == part)
}

/// Asks again and again until `found` has something. For what cannot be waited for: the state of another process.
pub async fn until<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    let asking = async {
        loop {
            ticks.tick().await;
            if let Some(found) = found().await {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// What a command said until its end. One that does not end in time is killed, and what it said until then is told.
pub async fn output_of(mut command: Command) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let (mut said, mut told) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let ended = async {
        tokio::try_join!(child.wait(), said.read_to_end(&mut stdout), told.read_to_end(&mut stderr))
    };
    let Ok(ended) = tokio::time::timeout(PATIENCE, ended).await else {
        let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        panic!("it did not end: {:?}\n{stdout}\n{stderr}", command.as_std());
    };
    Output { status: ended.unwrap().0, stdout, stderr }
}

/// Waits until a storage folder holds no temporary file. The publisher of the log has one open now and then, at any time;
/// one that was left would stay.
pub async fn no_temporary_file(storage: &Path) {
    let folder = storage.join("_narvault/tmp");
    until("no temporary file", async || std::fs::read_dir(&folder).unwrap().next().is_none().then_some(()))
        .await;
}

/// Says which real parts the tests ran with, and refuses to go without one that `NARVAULT_TEST_REQUIRE` names:
/// a gate must not pass because a part was silently not there.
#[tokio::test]
async fn the_required_real_parts_are_there() {
    let required = variable("NARVAULT_TEST_REQUIRE").unwrap_or_default();
    let generations = nix::Nix::generations().await;
    let versions: Vec<&str> = generations.iter().map(|nix| nix.version.as_str()).collect();
    let parts = [
        ("postgres", variable("NARVAULT_TEST_POSTGRES").map(|_| "NARVAULT_TEST_POSTGRES".to_owned())),
        ("s3", variable("NARVAULT_TEST_S3_ENDPOINT")),
        ("kms", variable("NARVAULT_TEST_KMS")),
        ("witness", variable("NARVAULT_TEST_WITNESS")),
        ("nix", nix::Nix::host().await.map(|nix| nix.version)),
        ("nix-versions", (versions.len() >= 3).then(|| versions.join(" "))),
    ];

    for (part, found) in &parts {
        println!("{part}: {}", found.as_deref().unwrap_or("not here, tests with it are skipped"));
    }
    for name in required.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let part = parts.iter().find(|(part, _)| *part == name);
        let found = part.unwrap_or_else(|| panic!("NARVAULT_TEST_REQUIRE names {name}, which no test knows"));
        assert!(found.1.is_some(), "NARVAULT_TEST_REQUIRE names {name}, but it is not here");
    }
}
