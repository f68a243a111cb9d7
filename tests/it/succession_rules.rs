//! What somebody with a bucket, or with an old key, can put before a client, and what the client makes of it: the real
//! command on real files, with keys that the test itself holds.

use std::path::PathBuf;
use std::sync::LazyLock;

use data_encoding::BASE64;
use ed25519_dalek::{Signer as _, SigningKey};
use narvault::nix::signature::PublicKey;
use narvault::succession::signed::Content;
use narvault::succession::{CacheRef, Chain, Reason, RootScope, Roots, Signed, Statement, note_key};
use narvault::time::{Clock, Timestamp};
use narvault::tlog::note::Note;
use serde_json::Value;

use crate::support::server::{Ended, narvault};

const DAY_SECONDS: i64 = 24 * 3600;

fn secret(name: &str) -> SigningKey {
    let mut seed = [9; 32];
    seed[..name.len()].copy_from_slice(name.as_bytes());
    SigningKey::from_bytes(&seed)
}

fn key(name: &str) -> PublicKey {
    PublicKey::new(name.parse().unwrap(), secret(name).verifying_key().as_bytes()).unwrap()
}

fn signed<T: Content>(content: &T, names: &[&str]) -> Signed<T> {
    let text = content.written().unwrap();
    let mut notes = names.iter().map(|name| {
        let sign = |bytes: &[u8]| Ok::<_, std::convert::Infallible>(secret(name).sign(bytes).to_bytes());
        Note::sign(text.clone(), &note_key(&key(name)).unwrap(), sign).unwrap()
    });
    let first = Signed::of(notes.next().unwrap()).unwrap();
    notes.fold(first, |signed, note| signed.with(note.signatures()[0].clone()).unwrap())
}

/// The same moment throughout: a statement that is written twice is the same statement.
fn now() -> Timestamp {
    static BEGINNING: LazyLock<Timestamp> = LazyLock::new(|| Clock::System.now());
    *BEGINNING
}

fn cache() -> CacheRef {
    CacheRef { name: "main".into(), id: "0199a1b2-0000-7000-8000-000000000001".into() }
}

fn planned(seq: u64, old: &str, new: &str) -> Statement {
    Statement {
        cache: cache(),
        seq,
        old: key(old),
        new: key(new),
        reason: Reason::Planned,
        roots: None,
        not_before: now().plus_seconds(-DAY_SECONDS),
        retire_old: None,
        expires: now().plus_seconds(DAY_SECONDS),
        log: None,
    }
}

fn roots(threshold: u64, names: &[&str]) -> Roots {
    let keys = names.iter().map(|name| key(name)).collect();
    Roots { scope: RootScope::Cache(cache()), version: 1, threshold, keys }
}

/// A bucket, and a machine whose nix.conf asks it and trusts `main-1`.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(machine.file("bucket")).unwrap();
        machine.trusts(&["main-1"]);
        machine
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn trusts(&self, names: &[&str]) {
        let keys: Vec<String> = names.iter().map(|name| key(name).to_string()).collect();
        let conf = format!(
            "max-jobs = 4\n# narvault: begin\n# Written by `narvault use` as a whole; `narvault unuse` takes it out.\n\
             extra-substituters = file://{}\nextra-trusted-public-keys = {}\n# narvault: end\n",
            self.file("bucket").display(),
            keys.join(" ")
        );
        std::fs::write(self.file("nix.conf"), conf).unwrap();
    }

    fn publish(&self, chain: &Chain) {
        std::fs::write(self.file("bucket/key-succession"), chain.encode()).unwrap();
    }

    fn state(&self) -> [Option<Vec<u8>>; 2] {
        ["nix.conf", "nix.conf.narvault-seen"].map(|name| std::fs::read(self.file(name)).ok())
    }

    /// The names of the trusted keys.
    fn trusted(&self) -> Vec<String> {
        let conf = std::fs::read_to_string(self.file("nix.conf")).unwrap();
        let line = conf.lines().find_map(|line| line.strip_prefix("extra-trusted-public-keys = ")).unwrap();
        line.split(' ').map(|key| key.split(':').next().unwrap().to_owned()).collect()
    }

    async fn refresh(&self) -> Ended {
        let mut command = narvault();
        command.args(["use", "--refresh", "--file", "nix.conf", "--json"]);
        command.env("HOME", self.0.path()).current_dir(self.0.path());
        Ended::of(command).await
    }

    /// The outcome of the one cache.
    async fn follows(&self, chain: &Chain) -> Value {
        self.publish(chain);
        let ended = self.refresh().await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        serde_json::from_str::<Value>(&ended.stdout).unwrap()["caches"][0].clone()
    }

    async fn refuses(&self, chain: &Chain, text: &str) {
        self.publish(chain);
        self.refuses_what_is_there(text).await;
    }

    async fn refuses_what_is_there(&self, text: &str) {
        let before = self.state();
        let ended = self.refresh().await;
        assert_eq!(ended.code, Some(4), "{text}: {}", ended.stderr);
        assert!(ended.stderr.contains(text), "{text}: {}", ended.stderr);
        assert!(ended.stderr.contains("\nhint: ") && ended.stderr.contains("its keys stay as they are"));
        let told: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!((&told["changed"], &told["caches"][0]["result"]), (&false.into(), &"refused".into()));
        assert_eq!(self.state(), before, "{text}");
    }
}

fn chain(statements: Vec<Signed<Statement>>) -> Chain {
    Chain { roots: Vec::new(), statements }
}

/// Signed by both of its keys.
fn both(statement: &Statement) -> Signed<Statement> {
    signed(statement, &[statement.old.name().as_str(), statement.new.name().as_str()])
}

#[tokio::test]
async fn a_chain_is_followed_and_other_lines_are_left_alone() {
    let machine = Machine::new();
    let retired = Statement { retire_old: Some(now().plus_seconds(-1)), ..planned(2, "main-1", "main-2") };

    let first = machine.follows(&chain(vec![both(&planned(1, "main-1", "main-2"))])).await;
    assert_eq!(
        (&first["result"], machine.trusted()),
        (&"changed".into(), vec!["main-1".into(), "main-2".into()])
    );
    let second = machine.follows(&chain(vec![both(&planned(1, "main-1", "main-2")), both(&retired)])).await;

    assert_eq!((&second["seq"], machine.trusted()), (&2.into(), vec!["main-2".to_owned()]));
    let conf = std::fs::read_to_string(machine.file("nix.conf")).unwrap();
    assert!(conf.starts_with("max-jobs = 4\n# narvault: begin\n"), "{conf}");
    assert_eq!(std::fs::read_to_string(machine.file("nix.conf.before-narvault")).unwrap(), "max-jobs = 4\n");
}

#[tokio::test]
async fn gaps_forks_and_ends_are_refused() {
    let machine = Machine::new();
    let first = || both(&planned(1, "main-1", "main-2"));
    let ended = Statement { expires: now().plus_seconds(-5), ..planned(1, "main-1", "main-2") };
    let stranger = planned(1, "evil-1", "evil-2");

    machine
        .refuses(&chain(vec![first(), both(&planned(3, "main-2", "main-3"))]), "statement 2 is missing")
        .await;
    machine.refuses(&chain(vec![both(&planned(2, "main-1", "main-2"))]), "statement 1 is missing").await;
    machine
        .refuses(
            &chain(vec![first(), both(&planned(1, "main-1", "main-3"))]),
            "two statements with the number 1",
        )
        .await;
    machine.refuses(&chain(vec![both(&ended)]), "statement 1 ended at").await;
    machine.refuses(&chain(vec![both(&stranger)]), "none of the keys that are trusted here").await;
    let by_new = signed(&planned(1, "main-1", "evil-2"), &["evil-2"]);
    machine.refuses(&chain(vec![by_new]), "not signed by the old key").await;
    let by_old = signed(&planned(1, "main-1", "main-2"), &["main-1"]);
    machine.refuses(&chain(vec![by_old]), "not signed by the new key").await;
    std::fs::write(machine.file("bucket/key-succession"), "<html>\n").unwrap();
    machine.refuses_what_is_there("cannot be read").await;
}

#[tokio::test]
async fn what_was_seen_cannot_be_taken_back() {
    let machine = Machine::new();
    let first = || both(&planned(1, "main-1", "main-2"));
    machine.follows(&chain(vec![first(), both(&planned(2, "main-2", "main-3"))])).await;

    machine.refuses(&chain(vec![first()]), "the newest statement is 1, but 2 was seen before").await;
    machine
        .refuses(
            &chain(vec![first(), both(&planned(2, "main-2", "evil-3"))]),
            "two statements with the number 2",
        )
        .await;
    machine.refuses(&Chain::default(), "the newest statement is 0, but 2 was seen before").await;
    std::fs::remove_file(machine.file("bucket/key-succession")).unwrap();
    machine.refuses_what_is_there("the newest statement is 0").await;
    let other =
        Statement { cache: CacheRef { id: "another".into(), ..cache() }, ..planned(1, "main-1", "main-2") };
    machine.refuses(&chain(vec![both(&other)]), "not of 0199a1b2").await;
}

#[tokio::test]
async fn root_keys_count_only_where_they_were_known_before() {
    let set = roots(2, &["root-a", "root-b", "root-c"]);
    let signed_set = signed(&set, &["root-a", "root-b"]);
    let named = Statement { roots: Some(set.reference()), ..planned(1, "main-1", "main-2") };
    let stolen = |seq, old, new| Statement {
        reason: Reason::Compromise,
        roots: Some(set.reference()),
        retire_old: Some(now().plus_seconds(-1)),
        ..planned(seq, old, new)
    };
    let with = |statements| Chain { roots: vec![signed_set.clone()], statements };

    // Somebody with the bucket alone: a set of their own, and what it signs.
    let machine = Machine::new();
    let planted = with(vec![signed(&stolen(1, "main-1", "evil-2"), &["root-a", "root-b", "evil-2"])]);
    machine.refuses(&planted, "no root keys are known here").await;

    // Named by a key that was trusted, they count from then on.
    machine.follows(&with(vec![both(&named)])).await;
    let few = signed(&stolen(2, "main-2", "main-3"), &["root-a", "main-2", "main-3"]);
    machine.refuses(&with(vec![both(&named), few]), "signed by 1 root keys, 2 are needed").await;
    let other_set = signed(&roots(1, &["root-a"]), &["root-a"]);
    let swapped = Chain { roots: vec![other_set], statements: vec![both(&named)] };
    machine.refuses(&swapped, "others than those that were seen before").await;
    let enough = signed(&stolen(2, "main-2", "main-3"), &["root-a", "root-c", "main-3"]);
    let outcome = machine.follows(&with(vec![both(&named), enough])).await;
    assert_eq!(
        (&outcome["seq"], machine.trusted()),
        (&2.into(), vec!["main-1".to_owned(), "main-3".to_owned()])
    );
}

#[tokio::test]
async fn nixs_own_signature_by_a_trusted_key_is_no_statement() {
    // Whoever can have a key sign store paths has it sign `1;…`, which no statement begins with.
    let machine = Machine::new();
    let statement = planned(1, "main-1", "evil-2").encode().unwrap();
    let fingerprint = format!("1;{statement}");
    let signature = BASE64.encode(&secret("main-1").sign(fingerprint.as_bytes()).to_bytes());
    let id = note_key(&key("main-1")).unwrap().id();
    let line = BASE64.encode(&[&id.0[..], &BASE64.decode(signature.as_bytes()).unwrap()].concat());
    let by_new = signed(&planned(1, "main-1", "evil-2"), &["evil-2"]).note().encode();
    let forged = format!("{}\u{2014} main-1 {line}\n", by_new);
    std::fs::write(machine.file("bucket/key-succession"), forged).unwrap();

    machine.refuses_what_is_there("not signed by the old key").await;
}
