//! What must not be read by others is nowhere but where it belongs: not in files, logs, answers, or the process.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER, HEXUPPER};
use narvault::api::{
    ClaimRequest, KeyCreate, RevokeRequest, ShareCount, SlotCreate, TokenRenew, UnsealRequest,
};
use narvault::client::Client;
use reqwest::Method;
use serde_json::json;
use tokio::process::{Child, Command};

use crate::support::client::{Answer, Http, TestPath};
use crate::support::server::{Backend, Process, Site};
use crate::support::{PATIENCE, until};

/// Made with `nix key generate-secret --key-name imported-1`, for nothing else.
const SEED: [u8; 32] = *b"a seed that nobody may ever see!";

const PASSPHRASE: &str = "correct horse battery staple, and then some";

/// A secret in a spelling in which it could be found.
struct Secret {
    what: &'static str,
    spellings: Vec<Vec<u8>>,
}

impl Secret {
    fn text(what: &'static str, text: &str) -> Self {
        // The second half of a token is its signature, and would do by itself as a leak.
        let end = text.len() - text.len() / 2;
        Self { what, spellings: [spellings(text.as_bytes()), vec![text.as_bytes()[end..].to_vec()]].concat() }
    }

    fn bytes(what: &'static str, bytes: &[u8]) -> Self {
        Self { what, spellings: spellings(bytes) }
    }

    #[track_caller]
    fn assert_absent(&self, place: &str, bytes: &[u8]) {
        for spelling in &self.spellings {
            let found = bytes.windows(spelling.len()).any(|window| window == &spelling[..]);
            assert!(!found, "{} is in {place}", self.what);
        }
    }
}

fn spellings(bytes: &[u8]) -> Vec<Vec<u8>> {
    let texts = [
        HEXLOWER.encode(bytes),
        HEXUPPER.encode(bytes),
        BASE64.encode(bytes).trim_end_matches('=').to_owned(),
        BASE64URL_NOPAD.encode(bytes),
    ];
    std::iter::once(bytes.to_vec()).chain(texts.map(String::into_bytes)).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The process left no way to its memory, and was handed no secret in its environment.
fn closed(process: &Process, secrets: &[Secret]) {
    let proc = PathBuf::from(format!("/proc/{}", process.child.id().unwrap()));
    let limits = std::fs::read_to_string(proc.join("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).collect::<Vec<_>>(), ["0", "0", "bytes"]);
    // Files of a process that cannot be dumped belong to root, whoever runs it: they cannot be read here.
    match std::fs::read(proc.join("environ")) {
        Ok(environment) => {
            assert!(rustix::process::geteuid().is_root(), "the process can be dumped");
            for secret in secrets {
                secret.assert_absent("the environment", &environment);
            }
        }
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied),
    }
}

/// Answers that were given to the one who may not see more, to be searched.
struct Heard(Vec<u8>);

impl Heard {
    fn answer(&mut self, answer: &Answer) {
        self.0.extend_from_slice(&answer.body);
        for value in answer.headers.values() {
            self.0.extend_from_slice(value.as_bytes());
            self.0.push(b'\n');
        }
    }

    fn value(&mut self, value: &impl serde::Serialize) {
        self.0.extend(serde_json::to_vec(value).unwrap());
    }
}

/// Everything that the service does, once, on a server that logs all that it can.
async fn story(site: &Site, settings: &[(&str, &str)], unseal: &UnsealRequest) -> (Process, Vec<Secret>) {
    let settings = [settings, &[("RUST_LOG", "trace")]].concat();
    let process = site.spawn(&settings).await;
    let url = process.url.clone();
    let client =
        |token: &str| Client::new(url.parse().unwrap(), Some(&token.to_owned().into()), false).unwrap();
    let claim = process.told("--claim ").unwrap();
    let anyone = Client::new(url.parse().unwrap(), None, false).unwrap();
    let admin_token = anyone.claim(&ClaimRequest { claim: claim.clone() }).await.unwrap().token;
    let admin = client(&admin_token);
    let seed_and_public =
        [&SEED[..], ed25519_dalek::SigningKey::from_bytes(&SEED).verifying_key().as_bytes()].concat();
    let imported = format!("imported-1:{}", BASE64.encode(&seed_and_public));
    let mut heard = Heard(Vec::new());

    heard.value(
        &admin
            .key_create("main", &KeyCreate { import: Some(imported.clone()), ..KeyCreate::default() })
            .await
            .unwrap(),
    );
    let contributor = serde_json::from_value(json!({ "name": "alice", "kind": "person" })).unwrap();
    heard.value(&admin.contributor_create(&contributor).await.unwrap());
    let body = serde_json::from_value(json!({ "contributor": "alice", "scopes": ["push:main"] })).unwrap();
    let issued = admin.token_issue(&body).await.unwrap();
    let renewed = client(&issued.token).renew(&TokenRenew::default()).await.unwrap();
    let http = Http::new(&url);
    let basic = format!("Basic {}", BASE64.encode(format!("alice:{}", issued.token).as_bytes()));
    for (http, name) in [
        (http.with_token(&issued.token), "bearer"),
        (http.with_authorization(&basic), "basic"),
        (http.with_token(&renewed.token), "renewed"),
    ] {
        let path = TestPath::new(name, name);
        heard.answer(&http.put_nar("main", &path).await);
        heard.answer(&http.put_narinfo("main", &path).await);
        heard.answer(&http.get(&format!("/main/{}.narinfo", path.hash())).await);
        heard.answer(&http.put(&format!("/push/main/{}.narinfo", path.hash()), imported.clone()).await);
        heard.answer(&http.get("/api/v1/auth/whoami").await);
    }
    // Shares, in the answer that tells them and from then on nowhere: one handed in, one that is refused, one that is cut.
    let count = Some(ShareCount { threshold: 2, of: 3 });
    let split = admin.slot_add(&SlotCreate { shares: count, ..SlotCreate::default() }).await.unwrap();
    let [first, second, third] = &split.share_texts[..] else { panic!("{} shares", split.share_texts.len()) };
    // Secrets where they do not belong, and cut, and wrong by a character.
    for authorization in [
        format!("Digest {}", issued.token),
        format!("Bearer {}x", issued.token),
        format!("Bearer {claim}"),
        format!("Basic {}", BASE64.encode(imported.as_bytes())),
    ] {
        heard.answer(&http.with_authorization(&authorization).get("/push/main/nix-cache-info").await);
    }
    let by_admin = http.with_token(&admin_token);
    for (path, body) in [
        ("/api/v1/auth/claim", json!({ "claim": claim })),
        ("/api/v1/auth/claim", json!({ "claim": issued.token })),
        ("/api/v1/caches/main/keys", json!({ "import": imported })),
        ("/api/v1/caches/main/keys", json!({ "import": format!("{imported}x") })),
        ("/api/v1/caches/main/keys", json!({ "secret": imported })),
        ("/api/v1/vault/unseal", json!({ "passphrase": PASSPHRASE, "also": PASSPHRASE })),
        ("/api/v1/vault/unseal", json!({ "passphrase": [PASSPHRASE] })),
        ("/api/v1/vault/unseal", json!({ "passphrase": first })),
        ("/api/v1/vault/unseal", json!({ "share": first, "passphrase": PASSPHRASE })),
        ("/api/v1/vault/unseal", json!({ "share": second })),
        ("/api/v1/vault/unseal", json!({ "share": [third] })),
        ("/api/v1/vault/unseal", json!({ "share": second[..second.len() - 1] })),
    ] {
        let request = by_admin.request(Method::POST, path).header("content-type", "application/json");
        heard.answer(&Answer::of(request.body(body.to_string())).await);
    }
    heard.value(&admin.vault_seal().await.unwrap());
    for share in [first, second] {
        let request = by_admin.request(Method::POST, "/api/v1/vault/unseal");
        let request = request.header("content-type", "application/json");
        heard.answer(&Answer::of(request.body(json!({ "share": share }).to_string())).await);
    }
    heard.value(&admin.vault_unseal(unseal).await.unwrap());
    let body = RevokeRequest { reason: "left".to_owned(), keep_issued: false };
    heard.value(&admin.token_revoke(&issued.id, &body).await.unwrap());
    let report = json!({ "token": renewed.token }).to_string();
    let report = http
        .request(Method::POST, "/api/v1/tokens/report")
        .header("content-type", "application/json")
        .body(report);
    heard.answer(&Answer::of(report).await);
    for path in [
        "/api/v1/audit",
        "/api/v1/tokens",
        "/api/v1/contributors",
        "/api/v1/vault",
        "/api/v1/caches/main/keys",
        "/metrics",
        "/readyz",
        "/.well-known/jwks.json",
        "/api/v1/openapi.json",
        "/docs",
        "/",
        "/main/nix-cache-info",
    ] {
        heard.answer(&by_admin.get(path).await);
    }

    let secrets = vec![
        Secret::text("the claim", &claim),
        Secret::text("the administrator's token", &admin_token),
        Secret::text("a token", &issued.token),
        Secret::text("a renewed token", &renewed.token),
        Secret::text("the passphrase", PASSPHRASE),
        Secret::bytes("the seed of an imported key", &SEED),
        Secret::text("an imported key", &imported[..imported.len() - 44]),
        Secret::text("a share that was handed in", first),
        Secret::text("a share that was refused", second),
        Secret::text("a share", third),
    ];
    for secret in &secrets {
        secret.assert_absent("an answer", &heard.0);
    }
    (process, secrets)
}

/// Neither the log nor any file but `except` holds any of the secrets.
async fn nowhere(site: &Site, mut process: Process, secrets: &[Secret], except: Option<&Path>) {
    closed(&process, secrets);
    let search = || {
        let found = files(&site.data());
        assert!(found.len() > 5, "{found:?}");
        for path in found.iter().filter(|path| Some(path.as_path()) != except) {
            let bytes = std::fs::read(path).unwrap();
            for secret in secrets {
                secret.assert_absent(&path.display().to_string(), &bytes);
            }
        }
    };
    search();

    process.signal("TERM").await;
    assert!(process.ended().await.success(), "{}", process.stderr());

    search();
    let said = process.stderr();
    // The block for people, which names the claim, is not the log: each line of that is an object.
    let log: Vec<&str> = said.lines().filter(|line| line.starts_with('{')).collect();
    assert!(log.iter().any(|line| line.contains("sqlx::query")), "even statements are logged");
    for secret in secrets {
        secret.assert_absent("the log", log.join("\n").as_bytes());
    }
    for secret in &secrets[1..] {
        secret.assert_absent("stderr", said.as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_key_file_no_secret_is_anywhere_else() {
    let site = Site::new(Backend::SQLITE_DISK).await.unwrap();

    let (process, mut secrets) = story(&site, &[], &UnsealRequest::default()).await;

    let key_file = site.data().join("vault.key");
    secrets.push(Secret::bytes("the key file", &std::fs::read(&key_file).unwrap()));
    nowhere(&site, process, &secrets, Some(&key_file)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_passphrase_no_secret_is_anywhere() {
    let site = Site::new(Backend::SQLITE_DISK).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("passphrase");
    std::fs::write(&file, PASSPHRASE).unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let settings = [("NARVAULT_VAULT_PASSPHRASE_FILE", file.to_str().unwrap())];
    let unseal = UnsealRequest { passphrase: Some(PASSPHRASE.to_owned()), ..UnsealRequest::default() };

    let (process, secrets) = story(&site, &settings, &unseal).await;

    assert!(!site.data().join("vault.key").exists());
    nowhere(&site, process, &secrets, None).await;
}

/// Commands that wait for a secret, each with the place where it is told where that comes from: `{}`.
fn waiting() -> Vec<String> {
    let lines = [
        "key import main --file {}",
        "vault slot add --passphrase-file {}",
        "vault unseal --passphrase-file {}",
        "vault unseal --share-file {}",
        "vault passphrase change --former-file {} --new-file {}",
        "root keygen alice --passphrase-file {}",
        "admin add-passphrase --new-passphrase-file {} --share-file {}",
        "backup --passphrase-file {} there",
        "backup verify --passphrase-file {} backup",
        "restore --passphrase-file {} backup",
    ];
    lines.map(str::to_owned).to_vec()
}

/// Starts a command whose secret comes from a pipe that nobody writes to yet.
fn waits(line: &str, home: &Path, change: impl FnOnce(&mut Command)) -> std::io::Result<Child> {
    let pipe = home.join("pipe");
    if !pipe.exists() {
        std::fs::write(home.join("backup"), include_bytes!("../golden/backup-v1/narvault.backup")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o666.into(), 0).unwrap();
        std::fs::set_permissions(&pipe, Permissions::from_mode(0o666)).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_narvault"));
    change(&mut command);
    command.args(line.replace("{}", pipe.to_str().unwrap()).split(' ')).env_clear().current_dir(home);
    command.env("HOME", home).env("NARVAULT_URL", "http://127.0.0.1:9").env("NARVAULT_TOKEN", "nvt_none");
    command.env("NARVAULT_DATA", home.join("data"));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command.spawn()
}

/// It waits for the secret, and has seen to that before.
async fn hardened(line: &str, child: &mut Child) {
    let limits = PathBuf::from(format!("/proc/{}/limits", child.id().unwrap()));
    until(line, async || {
        if let Some(status) = child.try_wait().unwrap() {
            panic!("{line} ended with {status}");
        }
        let limits = std::fs::read_to_string(&limits).ok()?;
        let core = limits.lines().find(|line| line.starts_with("Max core file size"))?;
        (core.split_whitespace().skip(4).collect::<Vec<_>>() == ["0", "0", "bytes"]).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_handed_a_secret_leaves_no_core() {
    let home = tempfile::tempdir().unwrap();
    let by_stdin = ["key import main --file -", "login http://127.0.0.1:9 --claim-stdin"].map(str::to_owned);
    for line in waiting().into_iter().chain(by_stdin) {
        let mut child = waits(&line, home.path(), |_| {}).unwrap();

        hardened(&line, &mut child).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_handed_a_secret_cannot_be_looked_into_by_its_own_user() {
    let home = tempfile::tempdir().unwrap();
    std::fs::set_permissions(home.path(), Permissions::from_mode(0o777)).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    for line in waiting() {
        // Files of a process that cannot be dumped belong to root, whoever runs it: which root cannot tell.
        let started = waits(&line, home.path(), |command| {
            if is_root {
                command.uid(NOBODY).gid(NOBODY);
            }
        });
        let mut child = match started {
            Err(error) if is_root && error.kind() == std::io::ErrorKind::PermissionDenied => {
                return println!("skipped: nobody but root can run the binary");
            }
            started => started.unwrap(),
        };

        hardened(&line, &mut child).await;

        let proc = format!("/proc/{}/environ", child.id().unwrap());
        assert_eq!(std::fs::metadata(proc).unwrap().uid(), 0, "{line}");
    }
}

/// Sends a signal that ends a process with a core dump, where that is not prevented: whether there was one.
async fn dumps(child: &mut Child, signal: &str) -> bool {
    let id = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-s", signal, &id]).status().await.unwrap().success());
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.expect("it did not end").unwrap();
    assert!(status.signal().is_some(), "{status}");
    status.core_dumped()
}

/// A command with no limit for core dumps, that QUIT ends also where whoever runs the tests ignores it.
fn unlimited(program: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "ulimit -c unlimited && exec env --default-signal=QUIT \"$0\" \"$@\"", program]);
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_leaves_no_core_whatever_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = unlimited("/bin/sleep");
    let mut other = command.arg("60").current_dir(folder.path()).kill_on_drop(true).spawn().unwrap();
    until("the program to run", async || {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", other.id()?)).ok()?;
        (name.trim() == "sleep").then_some(())
    })
    .await;
    if !dumps(&mut other, "ABRT").await {
        return println!("skipped: no process leaves a core here");
    }
    let site = Site::new(Backend::SQLITE_DISK).await.unwrap();
    for signal in ["ABRT", "QUIT", "TRAP"] {
        let as_usual = site.command(&[]);
        let as_usual = as_usual.as_std();
        let mut command = unlimited(env!("CARGO_BIN_EXE_narvault"));
        command.args(["serve", "--listen", "127.0.0.1:0"]).env_clear();
        command.envs(as_usual.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let folder = tempfile::tempdir().unwrap();
        command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true);
        let mut process = Process::ready(command).await;
        closed(&process, &[]);
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", process.child.id().unwrap())).unwrap();
        let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap().trim();

        let dumped = dumps(&mut process.child, signal).await;

        assert!(!dumped, "{signal}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{signal}");
        // The root key and the key-encryption key, which may lie in one page.
        let kibibytes: u64 = locked.strip_suffix(" kB").unwrap().parse().unwrap();
        assert!(kibibytes >= 4 || process.stderr().contains("refuses to lock memory"), "{locked}");
    }
}

#[test]
fn what_carries_a_secret_over_the_wire_cannot_be_printed() {
    let mut found = BTreeSet::new();
    for (name, text) in [
        ("api/mod.rs", include_str!("../../src/api/mod.rs")),
        ("api/webhooks.rs", include_str!("../../src/api/webhooks.rs")),
    ] {
        for before in text.split("\npub struct ").collect::<Vec<_>>().windows(2) {
            let [before, after] = before else { unreachable!("windows of two") };
            let (item, _) = after.split_once("\n}").unwrap_or((after, ""));
            let secrets = ["claim", "token", "import", "passphrase", "passphrases", "key_file", "key_files"];
            let more = ["former", "new", "share", "share_texts", "secret"];
            let is_secret = |line: &str| {
                let field = line.trim().strip_prefix("pub ").and_then(|line| line.split_once(": "));
                field.is_some_and(|(field, of)| {
                    let is_text = of.contains("String")
                        && !item.starts_with("PathQuery")
                        && !item.starts_with("AuditQuery");
                    is_text && (secrets.contains(&field) || more.contains(&field))
                })
            };
            if item.lines().any(is_secret) {
                let attributes = before.rsplit("\n}\n").next().unwrap();
                assert!(!attributes.contains("Debug"), "{name}: {}", item.lines().next().unwrap());
                found.insert(item.split([' ', '<']).next().unwrap().to_owned());
            }
        }
    }
    for known in ["ClaimRequest", "TokenIssued", "KeyCreate", "RootRotate", "SlotAdded", "UnsealRequest"] {
        assert!(found.contains(known), "{known} is not among {found:?}");
    }
}

/// A user that owns nothing.
const NOBODY: u32 = 65_534;
