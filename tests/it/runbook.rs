//! Each page of `docs/runbook.md`, run as it stands there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use narvault::api::VaultView;
use tokio::process::Command;

use crate::kms::{PASSPHRASE, borrowed, status};
use crate::recover::{everything_is_published, narinfo};
use crate::support::client::TestPath;
use crate::support::database::DatabaseKind;
use crate::support::kms::TestKms;
use crate::support::server::{Backend, Ended, Site, TestServer};
use crate::support::until;

const RUNBOOK: &str = include_str!("../../docs/runbook.md");

/// What every page ends with.
const AT_THE_END: [&str; 2] = ["narvault audit list", "narvault log verify"];

/// Commands within sentences that no test of this file runs, and why.
const NOT_RUN: &[(&str, &str)] = &[
    ("narvault login", "the readers of these pages were logged in before, as it says"),
    ("narvault doctor", "it looks at a Nix, and at its memory: `doctor.rs`"),
    ("--option narinfo-cache-positive-ttl 0", "an option of Nix: `narinfo_trap.rs`"),
    ("ready, read-only", "no command, but what `/readyz` answers: `recover.rs`"),
    ("narvault storage scrub", "it looks at rows and bucket: `scrub.rs`"),
    ("admin claim", "the name of a command that \"A lost administrator\" runs"),
    ("admin add-passphrase", "the name of a command that \"A server that shares open\" runs"),
];

/// The command blocks of each page, by its title.
fn pages() -> BTreeMap<String, Vec<String>> {
    let blocks = |text: &str| {
        let blocks = text.split("```sh\n").skip(1);
        blocks.map(|block| block.split("```").next().unwrap().to_owned()).collect()
    };
    texts().into_iter().map(|(title, text)| (title, blocks(&text))).collect()
}

/// The text of each page, by its title.
fn texts() -> BTreeMap<String, String> {
    let pages = RUNBOOK.split("\n## ").skip(1).map(|page| page.split_once('\n').unwrap());
    pages.map(|(title, text)| (title.to_owned(), text.to_owned())).collect()
}

/// The commands that stand within a text's sentences.
fn inline_commands(text: &str) -> Vec<String> {
    let sentences: Vec<&str> = text.split("```").step_by(2).collect();
    let spans = sentences.iter().flat_map(|part| part.split('`').skip(1).step_by(2));
    spans.filter(|span| span.contains([' ', '\n'])).map(|span| span.replace('\n', " ")).collect()
}

/// Somebody at a page of the runbook, in a shell whose folder and variables stay from block to block.
struct Reader {
    page: String,
    blocks: std::vec::IntoIter<String>,
    environment: Vec<(String, String)>,
    home: tempfile::TempDir,
}

impl Reader {
    fn of(page: &str) -> Self {
        let blocks = pages().remove(page).unwrap_or_else(|| panic!("there is no page {page:?}"));
        let (blocks, home) = (blocks.into_iter(), tempfile::tempdir().unwrap());
        Self { page: page.to_owned(), blocks, environment: Vec::new(), home }
    }

    /// An administrator of a server.
    fn at(page: &str, server: &TestServer) -> Self {
        Self::of(page).with("NARVAULT_URL", &server.url).with("NARVAULT_TOKEN", server.admin_token())
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.set(name, value);
        self
    }

    fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// On the host of a server.
    fn on(&mut self, site: &Site) {
        let command = site.command(&[]);
        for (name, value) in command.as_std().get_envs() {
            if let (Some(value), false) = (value, name == "HOME") {
                self.set(name.to_str().unwrap(), value.to_str().unwrap());
            }
        }
    }

    /// What these lines print; each must succeed.
    async fn types(&self, lines: &str) -> String {
        let mut shell = Command::new("/bin/sh");
        let binaries = Path::new(env!("CARGO_BIN_EXE_narvault")).parent().unwrap().display().to_string();
        shell.args(["-euc", lines]).env_clear().current_dir(self.home.path());
        shell.env("HOME", self.home.path()).env("PATH", format!("{binaries}:/usr/bin:/bin"));
        shell.envs(self.environment.iter().map(|(name, value)| (name, value)));
        shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let ended = Ended::of(shell).await;
        assert_eq!(ended.code, Some(0), "{lines}\n{}\n{}", ended.stdout, ended.stderr);
        ended.stdout
    }

    /// Runs the next block of the page.
    async fn goes_on(&mut self) -> String {
        let block = self.blocks.next().expect("the page has no more blocks");
        self.types(&block).await
    }

    /// Runs a command that stands in a sentence of the page.
    async fn says(&self, command: &str) -> String {
        let text = &texts()[&self.page];
        assert!(inline_commands(text).iter().any(|found| found == command), "{command:?} is not in {text}");
        self.types(command).await
    }

    /// Ends a page as every page ends.
    async fn looks_back(&self) {
        let beginning = RUNBOOK.split("\n## ").next().unwrap();
        for command in AT_THE_END {
            assert!(
                inline_commands(beginning).iter().any(|found| found == command),
                "{command:?} is not there"
            );
            assert!(!self.types(command).await.is_empty(), "{command:?} says nothing");
        }
        self.ends();
    }

    /// Turns to another page, once this one is done.
    fn turns_to(&mut self, page: &str) {
        self.ends();
        self.blocks = Self::of(page).blocks;
        self.page = page.to_owned();
    }

    /// The keys that clients in this shell trust for the cache.
    fn trusted(&self) -> Vec<String> {
        let conf = std::fs::read_to_string(self.file(".config/nix/nix.conf")).unwrap();
        let line = conf.lines().find_map(|line| line.strip_prefix("extra-trusted-public-keys = ")).unwrap();
        line.split(' ').map(|key| key.split(':').next().unwrap().to_owned()).collect()
    }

    /// Nothing of the page is left out.
    fn ends(&self) {
        assert!(self.blocks.as_slice().is_empty(), "{:?}", self.blocks.as_slice());
    }

    fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }
}

async fn server() -> TestServer {
    TestServer::spawn(Backend::SQLITE_DISK, &[]).await.unwrap()
}

/// Name and state of each key of `main`, in the order in which they were made.
async fn keys(server: &TestServer) -> Vec<(String, String)> {
    let keys = server.admin().keys("main", &Default::default()).await.unwrap().items;
    keys.into_iter().map(|key| (key.name, key.state)).collect()
}

async fn only_slot(server: &TestServer) -> String {
    let ended = server.narvault(["vault", "status", "--json"]).await;
    let vault: VaultView = serde_json::from_str(&ended.stdout).unwrap();
    let [slot] = &vault.slots[..] else { panic!("{vault:?}") };
    slot.id.clone()
}

#[test]
fn every_page_has_a_test() {
    let tests = include_str!("runbook.rs");
    let pages = pages();
    assert!(pages.len() >= 8, "{pages:?}");
    for (page, blocks) in pages {
        assert!(!blocks.is_empty(), "{page} has no commands");
        assert!(tests.contains(&format!("\"{page}\"")), "nobody runs {page}");
    }
}

#[test]
fn there_is_a_page_for_each_thing_that_may_have_to_be_done() {
    let pages = pages();
    for title in [
        "Planned rotation",
        "A stolen cache key",
        "A lost KMS key",
        "A lost administrator",
        "A lost machine",
        "A stolen database",
        "A stolen token",
    ] {
        assert!(pages.contains_key(title), "{title} is not among {:?}", pages.keys());
    }
}

#[test]
fn every_command_in_a_sentence_is_run_or_it_is_said_why_not() {
    let tests = include_str!("runbook.rs");
    let beginning = RUNBOOK.split("\n## ").next().unwrap().to_owned();
    let mut seen = 0;
    for (page, text) in texts().into_iter().chain([("the beginning".to_owned(), beginning)]) {
        for command in inline_commands(&text) {
            let is_run =
                tests.contains(&format!("says({command:?})")) || AT_THE_END.contains(&command.as_str());
            let is_excused = NOT_RUN.iter().any(|(not_run, _)| *not_run == command);
            assert!(is_run != is_excused, "{page}: {command:?} is neither run nor excused, or both");
            seen += 1;
        }
    }
    assert!(seen > 12, "{seen}");
    for (command, _) in NOT_RUN {
        assert!(RUNBOOK.contains(&format!("`{command}`")), "{command:?} is in no sentence any more");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_replaced_as_planned() {
    let server = server().await;
    let path = TestPath::new("path", "path");
    server.token("ci", &["push:main"]).await.http.push("main", &path).await;
    let old = keys(&server).await.remove(0).0;
    let mut reader = Reader::at("Planned rotation", &server).with("OLD", &old);
    reader.says("narvault use main").await;

    let lines = reader.goes_on().await;
    let new = keys(&server).await.remove(1).0;
    assert!(lines.contains(&old) && lines.contains(&new), "{lines}");
    reader.set("NEW", &new);
    reader.goes_on().await;
    assert_eq!(reader.trusted(), [old.clone(), new.clone()]);
    assert!(reader.goes_on().await.contains("learn the new public key"));
    assert!(reader.goes_on().await.contains("publish"));
    reader.goes_on().await;
    assert!(reader.goes_on().await.contains("planned"));
    assert_eq!(reader.trusted(), std::slice::from_ref(&new));
    reader.looks_back().await;

    let expected = [(old, "retired".to_owned()), (new.clone(), "active".to_owned())];
    assert_eq!(keys(&server).await, expected);
    let text = narinfo(&server.http(), &path).await;
    assert!(text.contains(&format!("Sig: {new}:")), "{text}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_cache_key_signs_nothing_any_more() {
    let server = server().await;
    let path = TestPath::new("path", "path");
    server.token("ci", &["push:main"]).await.http.push("main", &path).await;
    let stolen = keys(&server).await.remove(0).0;
    let mut reader = Reader::at("Root keys, before anything happens", &server).with("KEY", &stolen);
    let made = reader.goes_on().await;
    for (variable, key) in ["ALICE", "BOB", "CAROL"].into_iter().zip(made.lines()) {
        reader.set(variable, key);
    }
    assert!(reader.goes_on().await.contains("2 of 3"));
    reader.types("narvault use main").await;
    reader.turns_to("A stolen cache key");
    assert!(reader.says("narvault key list main").await.contains(&stolen));

    reader.goes_on().await;
    reader.goes_on().await;
    assert!(reader.goes_on().await.contains("compromise"));
    reader.goes_on().await;
    assert_eq!(reader.trusted(), [keys(&server).await.remove(1).0]);
    let lines = reader.goes_on().await;
    reader.looks_back().await;

    assert!(lines.contains("main-") && !lines.contains(&format!("{stolen}:")), "{lines}");
    assert_eq!(keys(&server).await[0], (stolen.clone(), "destroyed".to_owned()));
    let text = narinfo(&server.http(), &path).await;
    assert!(text.contains("\nSig: ") && !text.contains(&stolen), "{text}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_token_dies_with_what_came_with_it() {
    let server = server().await;
    let alice = server.token("alice", &["push:main"]).await;
    let path = TestPath::new("path", "path");
    alice.http.push("main", &path).await;
    let url = format!("/main/{}.narinfo", path.hash());
    let mut reader = Reader::at("A stolen token", &server).with("TOKEN_ID", &alice.id);
    assert!(reader.says("narvault token list --contributor alice").await.contains(&alice.id));

    reader.goes_on().await;
    assert_eq!(alice.http.get("/push/main/nix-cache-info").await.status, 401);
    reader.goes_on().await;
    assert_eq!(server.http().get(&url).await.status, 404);
    assert!(reader.goes_on().await.contains(path.hash()));
    reader.goes_on().await;
    reader.looks_back().await;

    assert_eq!(server.http().get(&url).await.status, 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_administrator_is_replaced() {
    let server = server().await;
    let tokens = server.admin().tokens(&Default::default()).await.unwrap().items;
    let mut reader = Reader::of("A lost administrator").with("TOKEN_ID", &tokens[0].id);
    reader.on(&server.site);
    reader.set("NARVAULT_PUBLIC_URL", &server.url);

    let said = reader.goes_on().await;
    let line = said.lines().find(|line| line.trim_start().starts_with("narvault login ")).expect("no line");
    reader.types(line).await;
    assert!(reader.says("narvault token list --contributor admin").await.contains(&tokens[0].id));
    assert!(reader.goes_on().await.contains("admin"));
    reader.looks_back().await;

    assert!(server.admin().tokens(&Default::default()).await.is_err(), "the lost token lives");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_machine_is_replaced() {
    let server = server().await;
    let path = TestPath::new("path", "path");
    server.token("ci", &["push:main"]).await.http.push("main", &path).await;
    let mut reader = Reader::of("A lost machine");
    let backup = reader.file("narvault.backup").display().to_string();
    let mut command = server.site.command(&[]);
    command.args(["backup", &backup]);
    assert_eq!(Ended::of(command).await.code, Some(0));
    reader.set("BACKUP", &backup);

    let moved = server
        .restart_elsewhere(DatabaseKind::Sqlite, async |site: &Site| {
            reader.on(site);
            reader.goes_on().await;
            reader.ends();
        })
        .await;

    let server = moved.unwrap();
    narinfo(&server.http(), &path).await;
    reader.set("NARVAULT_URL", &server.url);
    reader.set("NARVAULT_TOKEN", server.admin_token());
    reader.looks_back().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_contradicts_itself_goes_on_once_the_bucket_is_mended() {
    let mut server = server().await;
    let ci = server.token("ci", &["push:main"]).await;
    let path = TestPath::new("path", "path");
    ci.http.push("main", &path).await;
    everything_is_published(&server, &path).await;
    let checkpoint = server.site.data().join("storage/_log/checkpoint");
    let sound = std::fs::read(&checkpoint).unwrap();
    let mut reader = Reader::at("The log contradicts itself", &server);
    reader.on(&server.site);
    std::fs::write(&checkpoint, "somebody else's\n").unwrap();
    // Whoever appends a leaf has the publisher look.
    server.token("other", &["push:main"]).await;
    until("the alarm", async || {
        server.http().get("/metrics").await.text().contains("\nnarvault_log_forked 1\n").then_some(())
    })
    .await;
    let refused = TestPath::new("refused", "x");
    ci.http.put_nar("main", &refused).await.assert_status(201);
    ci.http.put_narinfo("main", &refused).await.assert_refused(423, "contradicts what was published");

    server
        .restart_after(async |_: &Site| {
            std::fs::write(&checkpoint, &sound).unwrap();
            let said = reader.goes_on().await;
            assert!(said.contains("nothing to recover"), "{said}");
            assert!(said.contains("not one that this log's key signed"), "{said}");
        })
        .await;

    ci.http.put_narinfo("main", &refused).await.assert_status(201);
    everything_is_published(&server, &refused).await;
    reader.goes_on().await;
    reader.ends();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_stolen_database_its_secrets_open_nothing_that_counts() {
    let server = server().await;
    let (slot, key) = (only_slot(&server).await, keys(&server).await.remove(0).0);
    let mut reader = Reader::at("A stolen database", &server).with("SLOT", &slot).with("KEY", &key);
    assert!(reader.says("narvault vault status").await.contains(&slot));

    reader.goes_on().await;
    let rotated = reader.goes_on().await;
    assert!(rotated.contains("number 2") && rotated.contains("key-encryption key 2: done"), "{rotated}");
    reader.goes_on().await;
    let new = reader.file("new.key");
    reader.looks_back().await;

    assert_ne!(only_slot(&server).await, slot);
    assert_eq!(keys(&server).await[0], (key, "compromised".to_owned()));
    opens_with(server, &new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_vault_secret_is_replaced_while_the_server_runs() {
    let server = server().await;
    let slot = only_slot(&server).await;
    std::fs::remove_file(server.site.data().join("vault.key")).unwrap();
    let mut reader = Reader::at("A lost vault secret", &server).with("SLOT", &slot);
    assert!(reader.says("narvault vault status").await.contains(&slot));

    reader.goes_on().await;
    let new = reader.file("new.key");
    // With another slot, a server that has no key file at all is opened as well.
    let passphrase = reader.file("passphrase");
    std::fs::write(&passphrase, PASSPHRASE).unwrap();
    reader.set("PASSPHRASE", passphrase.to_str().unwrap());
    reader.types("narvault vault slot add --passphrase-file \"$PASSPHRASE\"").await;
    server.admin().vault_seal().await.unwrap();
    let opened = reader.says("narvault vault unseal --passphrase-file \"$PASSPHRASE\"").await;
    assert!(opened.contains("open"), "{opened}");
    reader.looks_back().await;

    opens_with(server, &new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_kms_key_is_replaced_by_way_of_the_second_slot() {
    for kms in [Some(TestKms::here().await), TestKms::moto().await].into_iter().flatten() {
        let (key, new) = (kms.key().await, kms.key().await);
        let (settings, new_settings) = (kms.settings(&key), kms.settings(&new));
        let site = Site::new(Backend::SQLITE_DISK).await.unwrap();
        let mut server = TestServer::spawn_on(site, &borrowed(&settings)).await;
        let dead = only_slot(&server).await;
        let mut reader = Reader::at("A lost KMS key", &server).with("SLOT", &dead).with("NEW_KEY", &new);
        let file = reader.file("passphrase").display().to_string();
        std::fs::write(&file, PASSPHRASE).unwrap();
        reader.set("PASSPHRASE", &file);
        reader.says("narvault vault slot add --passphrase-file \"$PASSPHRASE\"").await;
        kms.schedule_deletion(&key).await;
        server.restart_after_kill(&borrowed(&settings)).await;
        assert!(
            server.process().stderr().contains("scheduled for deletion"),
            "{}",
            server.process().stderr()
        );
        kms.delete(&key);

        let lines = reader.goes_on().await;
        assert!(lines.contains("sealed") && lines.contains(&key) && lines.contains(&dead), "{lines}");
        assert!(reader.goes_on().await.contains("open"));
        let lines = reader.goes_on().await;
        assert!(lines.contains(&new) && !lines.contains(&key) && !lines.contains("WARNING"), "{lines}");
        reader.on(&server.site);
        for (name, value) in &new_settings {
            reader.set(name, value);
        }
        let lines = reader.goes_on().await;
        assert!(
            lines.contains(&format!("{new} encrypts")) && lines.contains("the configured kms opens"),
            "{lines}"
        );
        reader.looks_back().await;

        server.restart_after_kill(&borrowed(&new_settings)).await;
        assert_eq!(status(&server).await.state, "open");
        crate::kms::signs(&server, "after").await;
        server.stop().await;
    }
}

/// The server signs again after a start with this key file in the place of the former one.
async fn opens_with(mut server: TestServer, key_file: &Path) {
    std::fs::copy(key_file, server.site.data().join("vault.key")).unwrap();
    server.restart_after_kill(&[]).await;
    let path = TestPath::new("after", "after");
    server.token("ci", &["push:main"]).await.http.push("main", &path).await;
    narinfo(&server.http(), &path).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_server_is_opened_by_those_who_have_shares() {
    const PAGE: &str = "A server that shares open";
    let server = server().await;
    let folder = tempfile::tempdir().unwrap();
    let out_dir = folder.path().to_str().unwrap();
    let added =
        server.narvault(["vault", "slot", "add", "--json", "--shares", "2/3", "--out-dir", out_dir]).await;
    let slot: narvault::api::SlotView = serde_json::from_str(&added.stdout).unwrap();
    let share = |number: usize| folder.path().join(format!("share-{number}-of-3")).display().to_string();
    let passphrase = folder.path().join("passphrase");
    std::fs::write(&passphrase, "correct horse battery staple").unwrap();
    let mut readers = Vec::new();
    for (name, number) in [("alice", 1), ("bob", 3)] {
        let token = server.token(name, &["admin"]).await.text;
        let reader = Reader::of(PAGE).with("NARVAULT_URL", &server.url).with("NARVAULT_TOKEN", &token);
        readers.push(reader.with("SHARE", &share(number)));
    }
    let [alice, bob] = &mut readers[..] else { panic!("two keepers") };
    server.admin().vault_seal().await.unwrap();

    let told = alice.goes_on().await;
    assert!(told.contains("1 of 2") && told.contains("by alice"), "{told}");
    bob.goes_on().await;
    assert!(bob.says("narvault audit list --action vault-share").await.contains("vault-share"));
    assert!(bob.says("narvault vault status").await.contains(&slot.id));
    assert_eq!(server.admin().vault().await.unwrap().state, "open");
    server.admin().vault_seal().await.unwrap();
    bob.set("OTHER", &share(2));
    bob.set("PASSPHRASE", passphrase.to_str().unwrap());
    bob.set("SLOT", &slot.id);
    bob.on(&server.site);
    bob.goes_on().await;
    assert_eq!(server.admin().vault().await.unwrap().state, "open");
    bob.goes_on().await;
    bob.looks_back().await;

    let slots = server.admin().vault().await.unwrap().slots;
    assert_eq!(
        slots.iter().map(|slot| slot.kind.as_str()).collect::<Vec<_>>(),
        ["key-file", "passphrase", "shamir"]
    );
    assert!(slots.iter().all(|left| left.id != slot.id) && bob.file("new-shares/share-3-of-3").exists());
    server.stop().await;
}
