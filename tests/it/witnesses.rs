//! Checkpoints are published with the cosignatures of those witnesses who gave one, and without the others'.

use narvault::tlog::cosignature;
use narvault::tlog::note::Note;
use narvault::tlog::verifier_key::VerifierKey;

use crate::support::client::TestPath;
use crate::support::server::{Backend, Site, TestServer};
use crate::support::until;
use crate::support::witness::{Mood, StockWitness, TestWitness};

const SETTING: &str = "NARVAULT_SIGNATURE_LOG_WITNESSES";

async fn served(server: &TestServer) -> Option<Note> {
    let answer = server.http().get("/api/v1/log/checkpoint").await;
    (answer.status == 200).then(|| Note::parse(&answer.body).unwrap())
}

fn size(note: &Note) -> u64 {
    note.text().lines().nth(1).unwrap().parse().unwrap()
}

/// Waits for a checkpoint of more than `leaves` that all of these cosigned.
async fn cosigned(server: &TestServer, keys: &[&VerifierKey], leaves: u64) -> Note {
    until("a cosigned checkpoint", async || {
        let note = served(server).await.filter(|note| size(note) > leaves)?;
        keys.iter().all(|key| cosignature::verify(&note, key).is_ok()).then_some(note)
    })
    .await
}

async fn started(witnesses: &[&TestWitness]) -> TestServer {
    let setting: Vec<&str> = witnesses.iter().map(|witness| witness.setting.as_str()).collect();
    let setting = setting.join(",");
    TestServer::start_with(Backend::SQLITE_DISK, &[(SETTING, setting.as_str())]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_checkpoint_is_cosigned_by_every_witness_and_kept_with_it() {
    let (one, two) = (TestWitness::start("one.example").await, TestWitness::start("two.example").await);
    let server = started(&[&one, &two]).await;
    let ci = server.token("ci", &["push:main"]).await;
    let mut leaves = 0;
    for number in 0..3 {
        ci.http.push("main", &TestPath::new(&format!("path-{number}"), "x")).await;
        let note = cosigned(&server, &[&one.key, &two.key], leaves).await;
        leaves = size(&note);
        // What is served is what lies in storage, cosignatures and all.
        let stored = server.site.data().join("storage/_log/checkpoint");
        until("the object", async || {
            (std::fs::read(&stored).unwrap() == note.encode().as_bytes()).then_some(())
        })
        .await;
    }
    assert!(one.answers().iter().all(|(_, status)| *status == 200), "{:?}", one.answers());

    // Whoever asks for both finds them in a proof too.
    let key = server.http().get("/api/v1/log/key").await.text().trim().to_owned();
    let policy = format!(
        "log {key}\nwitness one {}\nwitness two {}\ngroup both all one two\nquorum both\n",
        one.key, two.key
    );
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("policy");
    std::fs::write(&path, policy).unwrap();
    let verified = server.narvault(["log", "audit", "--policy", path.to_str().unwrap()]).await;
    assert_eq!(verified.code, Some(0), "{}", verified.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_that_is_away_or_forges_holds_nothing_up() {
    let (one, two) = (TestWitness::start("one.example").await, TestWitness::start("two.example").await);
    one.set_mood(Mood::Away);
    two.set_mood(Mood::Forging);
    let server = started(&[&one, &two]).await;
    let ci = server.token("ci", &["push:main"]).await;
    let hello = TestPath::new("hello", "hello");
    ci.http.push("main", &hello).await;

    let note = cosigned(&server, &[], 3).await;

    assert_eq!(note.signatures().len(), 1, "{note:?}");
    until("the proof", async || {
        let url = format!("/api/v1/caches/main/paths/{}/proof", hello.hash());
        (server.http().get(&url).await.status == 200).then_some(())
    })
    .await;

    // Once they are back, the next checkpoint has them again.
    one.set_mood(Mood::Honest);
    two.set_mood(Mood::Honest);
    let leaves = size(&served(&server).await.unwrap());
    ci.http.push("main", &TestPath::new("world", "world")).await;
    cosigned(&server, &[&one.key, &two.key], leaves).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_that_remembers_another_size_says_so_and_is_shown_the_proof_from_there() {
    let witness = TestWitness::start("one.example").await;
    let site = Site::new(Backend::SQLITE_DISK).await.unwrap();
    let settings = [(SETTING, witness.setting.as_str())];
    let mut server = TestServer::spawn_on(site, &settings).await;
    let ci = server.token("ci", &["push:main"]).await;
    ci.http.push("main", &TestPath::new("hello", "hello")).await;
    cosigned(&server, &[&witness.key], 3).await;
    let before = witness.answers().len();

    // A server that starts again has forgotten what its witnesses saw.
    server.restart_after_kill(&settings).await;
    let leaves = witness.size();
    ci.http.push("main", &TestPath::new("world", "world")).await;
    cosigned(&server, &[&witness.key], leaves).await;

    let answers = witness.answers()[before..].to_vec();
    let statuses: Vec<u16> = answers.iter().map(|(_, status)| *status).collect();
    assert_eq!(statuses[..2], [409, 200], "{answers:?}");

    // One that has seen more than there is does not cosign, and nothing breaks.
    witness.saw(1_000_000);
    let leaves = size(&served(&server).await.unwrap());
    ci.http.push("main", &TestPath::new("more", "more")).await;
    let note = cosigned(&server, &[], leaves).await;
    assert!(cosignature::verify(&note, &witness.key).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_witness_cosigns_the_log_as_it_grows() {
    let site = Site::new(Backend::SQLITE_DISK).await.unwrap();
    let mut server = TestServer::spawn_on(site, &[]).await;
    let key: VerifierKey = server.http().get("/api/v1/log/key").await.text().trim().parse().unwrap();
    let Some(witness) = StockWitness::start(&key).await else {
        println!("skipped: no stock witness is here");
        return;
    };
    let settings = [(SETTING, witness.setting.as_str())];
    server.restart_after_kill(&settings).await;
    let ci = server.token("ci", &["push:main"]).await;
    let mut leaves = 0;
    for number in 0..5 {
        ci.http.push("main", &TestPath::new(&format!("path-{number}"), "x")).await;
        leaves = size(&cosigned(&server, &[&witness.key], leaves).await);
    }
    // It knows what it saw, and this server has forgotten.
    server.restart_after_kill(&settings).await;
    ci.http.push("main", &TestPath::new("after", "x")).await;
    cosigned(&server, &[&witness.key], leaves).await;
}
