//! Machines that were set up with a cache's first key go on to the ones after it by themselves: through planned
//! rotations, through a theft, from a server or from its bucket alone.

use std::path::{Path, PathBuf};

use narvault::api::{CacheEdit, KeyCompromise, RotationCreate, RotationView};
use narvault::succession::Chain;
use serde_json::{Value, json};

use crate::recover::{everything_is_published, recover};
use crate::support::client::{Answer, TestPath};
use crate::support::desk::Desk;
use crate::support::nix::require_nix;
use crate::support::server::{Backend, Ended, Site, TestServer, narvault, on_each_backend};
use crate::support::until;

const CONF: &str = "home/.config/nix/nix.conf";

/// At once to signing, and from there to the end of the waiting by hand.
fn at_once() -> RotationCreate {
    RotationCreate { publish_days: Some(0), wait_days: Some(30), ..RotationCreate::default() }
}

async fn reaches(server: &TestServer, step: &str) -> RotationView {
    until(&format!("step {step}"), async || {
        let rotation = server.admin().key_rotation("main").await.unwrap();
        (rotation.step == step).then_some(rotation)
    })
    .await
}

/// Name of a key that is given as `name:base64`.
fn name(key: &str) -> &str {
    key.split(':').next().unwrap()
}

/// The public key of this name, `name:base64`.
async fn public_key(server: &TestServer, name: &str) -> String {
    let keys = server.admin().keys("main", &Default::default()).await.unwrap().items;
    keys.into_iter().find(|key| key.name == name).unwrap().public_key
}

/// The keys that narvault's part of a nix.conf has.
fn keys_in(conf: &str) -> Vec<String> {
    let line = conf.lines().find_map(|line| line.strip_prefix("extra-trusted-public-keys = "));
    line.unwrap_or_default().split(' ').map(str::to_owned).collect()
}

/// The statements as they lie in the bucket, once there are so many.
async fn stored(server: &TestServer, statements: u64) -> Chain {
    let storage = server.site.storage().await;
    until("the statements to be in storage", async || {
        let bytes = storage.read(&"main/key-succession".parse().unwrap(), 1 << 20).await.unwrap()?;
        let chain = Chain::parse(&bytes).unwrap();
        (chain.head() >= statements).then_some(chain)
    })
    .await
}

/// Somebody without Nix, with a nix.conf of their own.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn conf(&self) -> String {
        std::fs::read_to_string(self.file("nix.conf")).unwrap()
    }

    /// Runs narvault here, as nobody that a server knows.
    async fn narvault(&self, server: &TestServer, arguments: &[&str]) -> Ended {
        let mut command = narvault();
        command.args(arguments).env("HOME", self.0.path()).current_dir(self.0.path());
        command.env("NARVAULT_URL", &server.url);
        Ended::of(command).await
    }

    async fn succeeds(&self, server: &TestServer, arguments: &[&str]) -> Value {
        let ended = self.narvault(server, &[arguments, &["--json"]].concat()).await;
        assert_eq!(ended.code, Some(0), "{arguments:?}\n{}\n{}", ended.stdout, ended.stderr);
        serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {}", ended.stdout))
    }

    /// What `use --refresh` says, which refuses; and nothing is changed.
    async fn refuses(&self, server: &TestServer, arguments: &[&str], text: &str) {
        let files = || ["nix.conf", "nix.conf.narvault-seen"].map(|name| std::fs::read(self.file(name)).ok());
        let before = files();
        let all = [&["use", "--refresh", "main", "--file", "nix.conf"], arguments].concat();

        let ended = self.narvault(server, &all).await;

        assert_eq!(ended.code, Some(4), "{}\n{}", ended.stdout, ended.stderr);
        assert!(ended.stderr.contains(text) && ended.stderr.contains("\nhint: "), "{text}: {}", ended.stderr);
        assert_eq!(files(), before);
    }
}

/// An administrator's files: root keys, drafts.
struct Office<'a> {
    server: &'a TestServer,
    home: Home,
}

impl Office<'_> {
    async fn types(&self, arguments: &[&str]) -> Ended {
        let mut command = narvault();
        command.args(arguments).env("HOME", self.home.0.path()).current_dir(self.home.0.path());
        command.env("NARVAULT_URL", &self.server.url).env("NARVAULT_TOKEN", self.server.admin_token());
        Ended::of(command).await
    }

    async fn succeeds(&self, arguments: &[&str]) -> String {
        let ended = self.types(arguments).await;
        assert_eq!(ended.code, Some(0), "{arguments:?}\n{}\n{}", ended.stdout, ended.stderr);
        ended.stdout
    }

    /// Root keys alice, bob and carol, two of which are needed; bob's is sealed.
    async fn set_roots(&self, target: &str) {
        std::fs::write(self.home.file("words"), "correct horse battery\n").unwrap();
        let mut keys = Vec::new();
        for name in ["alice", "bob", "carol"] {
            let mut arguments = vec!["root", "keygen", name];
            if name == "bob" {
                arguments.extend(["--passphrase-file", "words"]);
            }
            keys.push(self.succeeds(&arguments).await.trim().to_owned());
        }
        let mut arguments = vec!["root", "set", target, "--threshold", "2", "--output", "roots"];
        arguments.extend(keys.iter().map(String::as_str));
        self.succeeds(&arguments).await;
        self.sign("roots", "alice").await;
        let early = self.types(&["root", "submit", "roots"]).await;
        assert_eq!(early.code, Some(4), "{}", early.stderr);
        assert!(early.stderr.contains("1 of its own keys have signed, 2 are needed"), "{}", early.stderr);
        self.sign("roots", "bob").await;
        self.succeeds(&["root", "submit", "roots"]).await;
    }

    async fn sign(&self, draft: &str, name: &str) {
        let key = format!("{name}.key");
        let mut arguments = vec!["root", "sign", draft, "--key", &key, "--yes"];
        if name == "bob" {
            arguments.extend(["--passphrase-file", "words"]);
        }
        self.succeeds(&arguments).await;
    }
}

on_each_backend! {
    async fn nix_goes_from_the_first_key_to_the_second_by_itself(server: TestServer) {
        let nix = require_nix!();
        let mut desk = Desk::new(&nix);
        desk.set("NARVAULT_URL", &server.url);
        let alice = server.token("alice", &["push:main"]).await.http;
        let old = server.public_key.clone();
        let before = TestPath::new("before", "before");
        alice.push("main", &before).await;
        desk.narvault_ok(&["use", "main"]).await;
        assert_eq!(keys_in(&desk.read(CONF).unwrap()), std::slice::from_ref(&old));

        let rotation = server.admin().key_rotate("main", &at_once()).await.unwrap();
        let new = public_key(&server, &rotation.new_key.unwrap()).await;
        let report = desk.narvault_json(&["doctor", "main"]).await;
        let of_it = report["checks"].as_array().unwrap().iter().find(|check| check["part"] == "succession");
        let of_it = of_it.unwrap_or_else(|| panic!("{report}"));
        assert_eq!(of_it["status"], json!("warn"), "{of_it}");
        assert!(of_it["hint"].as_str().unwrap().contains("narvault use --refresh"), "{of_it}");
        let begun = desk.narvault_json(&["use", "--refresh"]).await;
        assert_eq!(begun["caches"][0]["added"], json!([new]), "{begun}");
        assert_eq!(keys_in(&desk.read(CONF).unwrap()), [old.clone(), new.clone()]);
        reaches(&server, "wait").await;
        server.admin().key_retire("main", name(&old)).await.unwrap();
        let ended = desk.narvault_json(&["use", "--refresh"]).await;
        assert_eq!((&ended["changed"], &ended["caches"][0]["removed"]), (&json!(true), &json!([old])), "{ended}");
        assert_eq!(keys_in(&desk.read(CONF).unwrap()), std::slice::from_ref(&new));
        let after = TestPath::new("after", "after");
        alice.push("main", &after).await;

        desk.pull(&after.store_path).await.success();
        desk.pull(&before.store_path).await.success();
        let again = desk.narvault_json(&["use", "--refresh"]).await;
        assert_eq!((&again["changed"], &again["caches"][0]["result"]), (&json!(false), &json!("current")));
        // The bucket says the same as the server does.
        let document = server.http().get("/main/key-succession").await;
        assert_eq!(stored(&server, 2).await.encode(), document.text());
        desk.narvault_ok(&["unuse", "main"]).await;
        assert_eq!(std::fs::read_dir(desk.file("home/.config/nix")).unwrap().count(), 0);
        server.stop().await;
    }

    async fn two_of_three_root_keys_replace_a_stolen_one(server: TestServer) {
        let office = Office { server: &server, home: Home::new() };
        let client = Home::new();
        let stolen = server.public_key.clone();
        office.set_roots("main").await;
        client.succeeds(&server, &["use", "main", "--file", "nix.conf"]).await;
        let early = Home::new();
        early.succeeds(&server, &["use", "main", "--file", "nix.conf"]).await;
        let body = KeyCompromise { reason: "the host was broken into".to_owned() };
        let rotation = server.admin().key_compromise("main", name(&stolen), &body).await.unwrap();
        let new = public_key(&server, &rotation.new_key.unwrap()).await;

        office.succeeds(&["key", "succession", "main", "--prepare", "--output", "draft"]).await;
        let shown = office.types(&["root", "sign", "draft", "--key", "alice.key"]).await;
        assert_eq!(shown.code, Some(2), "nobody was there to confirm: {}", shown.stderr);
        for part in [stolen.as_str(), new.as_str(), "others may hold the old key"] {
            assert!(shown.stderr.contains(part), "{part} is not in {}", shown.stderr);
        }
        office.sign("draft", "carol").await;
        let early_submit = office.types(&["root", "submit", "draft"]).await;
        assert!(early_submit.stderr.contains("1 root keys have signed, 2 are needed"), "{}", early_submit.stderr);
        client.succeeds(&server, &["use", "--refresh", "--file", "nix.conf"]).await;
        assert_eq!(keys_in(&client.conf()), std::slice::from_ref(&stolen), "nothing is told yet");
        office.sign("draft", "bob").await;
        let told = office.succeeds(&["root", "submit", "draft"]).await;
        assert!(told.contains("compromise"), "{told}");

        let refreshed = client.succeeds(&server, &["use", "--refresh", "--file", "nix.conf"]).await;
        assert_eq!(refreshed["caches"][0]["removed"], json!([stolen]), "{refreshed}");
        assert_eq!(keys_in(&client.conf()), std::slice::from_ref(&new));
        // Who never knew any root keys believes none that come along.
        std::fs::remove_file(early.file("nix.conf.narvault-seen")).unwrap();
        early.refuses(&server, &[], "no root keys are known here").await;
        server.stop().await;
    }

    async fn the_document_is_for_whoever_may_read_the_cache(server: TestServer) {
        let http = server.http();
        http.get("/main/key-succession").await.assert_status(404);
        server.admin().key_rotate("main", &at_once()).await.unwrap();

        let document = http.get("/main/key-succession").await;
        assert_eq!(Chain::parse(document.assert_status(200).text().as_bytes()).unwrap().head(), 1);
        assert_eq!(document.header("cache-control"), "public, max-age=60");
        for url in ["/main/key-succession", "/api/v1/caches/main/keys/succession"] {
            let answer = http.get(url).await;
            let again = http.request(reqwest::Method::GET, url);
            let again = Answer::of(again.header("if-none-match", answer.assert_status(200).header("etag"))).await;
            assert_eq!(again.assert_status(304).body.len(), 0);
        }
        let told = server.admin().key_succession("main").await.unwrap();
        assert_eq!((told.statements.len(), told.root_sets.len()), (1, 0));
        assert!(document.text().contains(&told.statements[0].note));
        let alice = server.token("alice", &["push:main"]).await.http;
        alice.put("/push/main/key-succession", "mine").await.assert_status(405);

        let private = CacheEdit { public: Some(false), ..Default::default() };
        server.admin().cache_edit("main", &private).await.unwrap();
        for url in ["/main/key-succession", "/api/v1/caches/main/keys/succession", "/api/v1/caches/main/root-keys"] {
            http.get(url).await.assert_status(401);
            let stranger = server.token("bob", &["pull:other"]).await.http;
            stranger.get(url).await.assert_status(403);
            let puller = server.token("carl", &["pull:main"]).await.http;
            puller.get(url).await.assert_status(200);
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_root_keys_hold_for_a_cache_without_its_own() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let office = Office { server: &server, home: Home::new() };

    office.set_roots("--server").await;

    let shown = office.succeeds(&["root", "show", "main"]).await;
    assert!(shown.contains("server ") && shown.contains("2 of 3") && shown.contains("alice:"), "{shown}");
    let chain = {
        let storage = server.site.storage().await;
        until("the set to be in storage", async || {
            let bytes = storage.read(&"main/key-succession".parse().unwrap(), 1 << 20).await.unwrap()?;
            Some(Chain::parse(&bytes).unwrap())
        })
        .await
    };
    assert_eq!(chain.roots.len(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_bucket_is_enough() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let client = Home::new();
    let old = server.public_key.clone();
    client.succeeds(&server, &["use", "main", "--file", "nix.conf"]).await;
    let rotation = server.admin().key_rotate("main", &at_once()).await.unwrap();
    let new = public_key(&server, &rotation.new_key.unwrap()).await;
    stored(&server, 1).await;
    let bucket = server.site.data().join("storage/main");
    let url = format!("file://{}", bucket.display());

    let refreshed =
        client.succeeds(&server, &["use", "--refresh", "main", "--from", &url, "--file", "nix.conf"]).await;

    assert_eq!(refreshed["caches"][0]["added"], json!([new]), "{refreshed}");
    assert_eq!(keys_in(&client.conf()), [old, new]);
    // From no server at all, and with a line that names the bucket itself.
    let _site = server.stop().await;
    let conf = client.conf();
    let url_line = conf.lines().find(|line| line.starts_with("extra-substituters")).unwrap();
    std::fs::write(client.file("nix.conf"), conf.replace(url_line, &format!("extra-substituters = {url}")))
        .unwrap();
    let mut command = narvault();
    command.args(["use", "--refresh", "--file", "nix.conf", "--json"]);
    command.env("HOME", client.0.path()).current_dir(client.0.path());
    let ended = Ended::of(command).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let refreshed: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(
        (&refreshed["caches"][0]["result"], &refreshed["caches"][0]["seq"]),
        (&json!("current"), &json!(1))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_does_not_answer_is_told_as_such() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let client = Home::new();
    client.succeeds(&server, &["use", "main", "--file", "nix.conf"]).await;
    let before = client.conf();

    let nothing = ["use", "--refresh", "main", "--from", "http://127.0.0.1:9", "--file", "nix.conf"];
    let ended = client.narvault(&server, &nothing).await;
    assert_eq!((ended.code, client.conf()), (Some(5), before.clone()), "{}", ended.stderr);
    let unknown = client.narvault(&server, &["use", "--refresh", "other", "--file", "nix.conf"]).await;
    assert_eq!(unknown.code, Some(1), "{}", unknown.stderr);
    assert!(unknown.stderr.contains("no cache other stands"), "{}", unknown.stderr);
    let dry = client.narvault(&server, &["use", "--refresh", "--dry-run", "--file", "nix.conf"]).await;
    assert_eq!((dry.code, client.conf()), (Some(0), before));
    let none = Home::new().narvault(&server, &["use", "--refresh", "--file", "nix.conf"]).await;
    assert_eq!(none.code, Some(0), "{}", none.stderr);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_rolled_back_is_refused_and_recovers_what_it_told() {
    let mut server = TestServer::spawn(Backend::SQLITE_DISK, &[]).await.unwrap();
    let client = Home::new();
    let old = server.public_key.clone();
    client.succeeds(&server, &["use", "main", "--file", "nix.conf"]).await;
    let rotation = server.admin().key_rotate("main", &at_once()).await.unwrap();
    let new = public_key(&server, &rotation.new_key.unwrap()).await;
    reaches(&server, "wait").await;
    server.restart_after(async |site: &Site| site.back_up_database().await).await;
    server.admin().key_retire("main", name(&old)).await.unwrap();
    stored(&server, 2).await;
    client.succeeds(&server, &["use", "--refresh", "--file", "nix.conf"]).await;
    assert_eq!(keys_in(&client.conf()), std::slice::from_ref(&new));
    let last = TestPath::new("last", "last");
    server.token("ci", &["push:main"]).await.http.push("main", &last).await;
    everything_is_published(&server, &last).await;

    server.restart_after(async |site: &Site| site.restore_database().await).await;
    client.refuses(&server, &[], "the newest statement is 1, but 2 was seen before").await;

    let recovered = std::sync::Mutex::new(None);
    server.restart_after(async |site: &Site| *recovered.lock().unwrap() = Some(recover(site).await)).await;
    let recovered = recovered.into_inner().unwrap().unwrap();
    assert_eq!(recovered.code, Some(0), "{}", recovered.stderr);
    let answer: Value = serde_json::from_str(&recovered.stdout).unwrap();
    assert_eq!(answer["successions_adopted"], 1, "{answer}");
    client.succeeds(&server, &["use", "--refresh", "--file", "nix.conf"]).await;
    assert_eq!(keys_in(&client.conf()), [new]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_key_file_is_its_holders_alone() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let office = Office { server: &server, home: Home::new() };
    office.succeeds(&["root", "keygen", "alice"]).await;
    let file = office.home.file("alice.key");
    let mode = |path: &Path| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode(&file), 0o600);

    for (arguments, code, text) in [
        (&["root", "keygen", "alice"][..], 1, "could not be made"),
        (&["root", "keygen", "a b", "--file", "x"], 2, "space"),
        (&["root", "set", "alice:AAAA", "--threshold", "1"], 2, "no cache is named"),
        (&["root", "set", "main", "alice:AAAA", "--threshold", "1"], 2, "public key is"),
        (&["root", "sign", "absent", "--key", "alice.key", "--yes"], 1, "there is no absent"),
        (&["root", "sign", "alice.key", "--key", "alice.key", "--yes"], 1, "is no draft"),
        (&["root", "submit", "alice.key"], 1, "is no draft"),
        (&["key", "succession", "main", "--prepare"], 4, "no key is compromised"),
    ] {
        let ended = office.types(arguments).await;
        assert_eq!(ended.code, Some(code), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(text), "{arguments:?}: {}", ended.stderr);
    }
    let text = std::fs::read_to_string(&file).unwrap();
    let secret = text.lines().find_map(|line| line.strip_prefix("secret ")).unwrap();
    let refused = office.types(&["root", "submit", "alice.key"]).await;
    assert!(!format!("{refused:?}").contains(secret));
    server.stop().await;
}
