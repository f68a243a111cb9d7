//! The signature log can be read and checked by anybody, and one file proves a signature without a server.

use std::path::PathBuf;

use data_encoding::BASE64;
use futures_util::TryStreamExt as _;
use narvault::client::proved::{NotProved, Proved};
use narvault::nix::nar::build::Node;
use narvault::nix::signature::PublicKey;
use narvault::storage::{Folder, Prefix};
use narvault::tlog::checkpoint::Checkpoint;
use narvault::tlog::leaf::{Event, Leaf};
use narvault::tlog::policy::Policy;
use narvault::tlog::proof_file::ProofFile;
use narvault::tlog::shown_leaf::ShownLeaf;
use narvault::tlog::verifier_key::VerifierKey;

use crate::support::client::{Http, TestPath, hash_part};
use crate::support::nix::{Machine, require_nix};
use crate::support::server::{Backend, Ended, Site, TestServer, on_each_backend};
use crate::support::until;

async fn log_key(server: &TestServer) -> VerifierKey {
    let answer = server.http().get("/api/v1/log/key").await;
    answer.assert_status(200).text().trim_end().parse().unwrap()
}

/// The newest checkpoint, signed by the log.
async fn checkpoint(server: &TestServer) -> Checkpoint {
    let key = log_key(server).await;
    let bytes = until("a checkpoint", async || {
        let answer = server.http().get("/api/v1/log/checkpoint").await;
        (answer.status == 200).then_some(answer.body)
    });
    Checkpoint::open(&bytes.await, &key).unwrap().0
}

fn proof_url(cache: &str, path: &TestPath) -> String {
    format!("/api/v1/caches/{cache}/paths/{}/proof", path.hash())
}

/// The proof file of a path that was just pushed.
async fn proof(http: &Http, cache: &str, path: &TestPath) -> ProofFile {
    let bytes = until("the proof", async || {
        let answer = http.get(&proof_url(cache, path)).await;
        assert!([200, 409].contains(&answer.status), "{answer:?}");
        (answer.status == 200).then_some(answer.body)
    });
    ProofFile::parse(&bytes.await).unwrap()
}

fn keys(server: &TestServer) -> Vec<PublicKey> {
    vec![server.public_key.parse().unwrap()]
}

/// What a command is given as a file, and the folder that it lies in.
fn file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

on_each_backend! {
    async fn a_pushed_path_is_proved_by_one_file_without_a_server(server: TestServer) {
        let ci = server.token("ci", &["push:main"]).await;
        let hello = TestPath::new("hello", "hello");
        let world = TestPath::with_references("world", "world", &[&hello]);
        ci.http.push("main", &hello).await;
        ci.http.push("main", &world).await;
        let policy = Policy::of_log(log_key(&server).await);
        let file = proof(&server.http(), "main", &world).await;
        let contributor = server.admin().contributor("ci").await.unwrap();
        let keys = keys(&server);
        drop(server);

        let proved = Proved::check(&file, &policy, &keys).unwrap();

        assert_eq!(proved.claim.path.to_string(), world.store_path);
        assert_eq!(proved.claim.references.len(), 1);
        assert_eq!(proved.by, Some(contributor.id));
        assert_eq!(proved.token, Some(ci.id));
        let nobodys = Proved::check(&file, &policy, &[]);
        assert!(matches!(nobodys, Err(NotProved::Untrusted { .. })), "{nobodys:?}");
        // Whoever changes the leaf that comes with the proof proves nothing.
        let extra = String::from_utf8(file.extra.clone().unwrap()).unwrap();
        let forged = ProofFile { extra: Some(extra.replace("-world", "-wirld").into_bytes()), ..file };
        assert!(matches!(Proved::check(&forged, &policy, &keys), Err(NotProved::Inclusion(_))));
    }

    async fn the_whole_log_is_read_and_its_root_recomputed(server: TestServer) {
        let ci = server.token("ci", &["push:main"]).await;
        for number in 0..5 {
            ci.http.push("main", &TestPath::new(&format!("path-{number}"), "x")).await;
        }
        let last = TestPath::new("last", "last");
        ci.http.push("main", &last).await;
        let index = proof(&server.http(), "main", &last).await.index;

        let verified = server.narvault(["log", "verify", "--json"]).await;
        assert_eq!(verified.code, Some(0), "{}", verified.stderr);
        let answer: serde_json::Value = serde_json::from_str(&verified.stdout).unwrap();
        assert!(answer["size"].as_u64().unwrap() > index);
        assert_eq!(answer["origin"], checkpoint(&server).await.origin);

        let shown = server.narvault(["log", "show", &index.to_string()]).await;
        assert_eq!(shown.code, Some(0), "{}", shown.stderr);
        let Event::Sign(signed) = Leaf::parse(shown.stdout.as_bytes()).unwrap().event else {
            panic!("{}", shown.stdout)
        };
        assert!(format!("{signed:?}").contains("-last"), "{signed:?}");

        let none = server.narvault(["log", "show", "1000000"]).await;
        assert_eq!(none.code, Some(1));
        assert!(none.stderr.contains("the log has no leaf 1000000 yet"), "{}", none.stderr);
        let stranger = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        let refused = server.narvault(["log", "verify", "--log-key", stranger]).await;
        assert_eq!(refused.code, Some(1));
        assert!(refused.stderr.contains("checkpoint is not believed"), "{}", refused.stderr);
    }

    async fn a_narinfo_is_verified_against_the_log_on_a_machine_that_knows_only_keys(server: TestServer) {
        let ci = server.token("ci", &["push:main"]).await;
        let hello = TestPath::new("hello", "hello");
        ci.http.push("main", &hello).await;
        proof(&server.http(), "main", &hello).await;
        let printed = server.narvault(["log", "proof", "main", &hello.store_path]).await;
        assert_eq!(printed.code, Some(0), "{}", printed.stderr);
        let (_proofs, proof_file) = file("hello.tlog-proof", &printed.stdout);
        let (log_key, trusted) = (log_key(&server).await.to_string(), server.public_key.clone());
        let answer = server.http().get(&format!("/main/{}.narinfo", hello.hash())).await;
        let narinfo = answer.assert_status(200).text().to_owned();
        let verify = async |narinfo: &str, more: &[&str]| {
            let (_folder, path) = file("x.narinfo", narinfo);
            let mut command = crate::support::server::narvault();
            command.arg("verify").arg(path).arg("--proof").arg(&proof_file).args(more);
            crate::support::server::Ended::of(command).await
        };

        let verified = verify(&narinfo, &["--log-key", &log_key, "--trusted-key", &trusted]).await;
        assert_eq!(verified.code, Some(0), "{}", verified.stderr);
        assert!(verified.stdout.contains(&hello.store_path), "{}", verified.stdout);
        let (_policies, policy) = file("log.policy", &format!("log {log_key}\nquorum none\n"));
        let policy = policy.to_str().unwrap();
        let verified = verify(&narinfo, &["--policy", policy, "--trusted-key", &trusted]).await;
        assert_eq!(verified.code, Some(0), "{}", verified.stderr);

        // Without a file the proof is fetched from the server in use, and the log's key is believed as that tells it.
        let (_folder, path) = file("x.narinfo", &narinfo);
        let verified = server.narvault(["verify", path.to_str().unwrap(), "--trusted-key", &trusted]).await;
        assert_eq!(verified.code, Some(0), "{verified:?}");

        let larger = narinfo.replace("NarSize: ", "NarSize: 1");
        let other_key = "main-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
        let unsigned: String = narinfo.lines().filter(|line| !line.starts_with("Sig:")).map(|line| format!("{line}\n")).collect();
        for (narinfo, key, told) in [
            (larger.as_str(), trusted.as_str(), "says something else than was signed"),
            (&unsigned, &trusted, "carries no signature of a trusted key"),
            (&narinfo, other_key, "not among the trusted keys"),
            ("StorePath: x\n", &trusted, "is not a narinfo"),
        ] {
            let refused = verify(narinfo, &["--log-key", &log_key, "--trusted-key", key]).await;
            assert_eq!(refused.code, Some(1), "{told}");
            assert!(refused.stderr.contains(told), "{told}: {}", refused.stderr);
        }
    }

    async fn what_a_private_cache_holds_is_proved_only_to_who_may_pull(server: TestServer) {
        let body = serde_json::from_value(serde_json::json!({ "name": "secret", "public": false })).unwrap();
        server.admin().cache_create(&body).await.unwrap();
        let key = server.admin().key_create("secret", &Default::default()).await.unwrap();
        let ci = server.token("ci", &["push:secret"]).await;
        let reader = server.token("reader", &["pull:secret"]).await;
        let hello = TestPath::new("unheard-of", "hello");
        ci.http.push("secret", &hello).await;

        let file = proof(&reader.http, "secret", &hello).await;

        let policy = Policy::of_log(log_key(&server).await);
        let proved = Proved::check(&file, &policy, &[key.public_key.parse().unwrap()]).unwrap();
        assert_eq!(proved.claim.path.to_string(), hello.store_path);
        server.http().get(&proof_url("secret", &hello)).await.assert_status(401);
        let other = server.token("other", &["push:main"]).await;
        other.http.get(&proof_url("secret", &hello)).await.assert_status(403);
        // In the public log stands only a commitment.
        let shown = ShownLeaf::parse(&file.extra.unwrap()).unwrap();
        assert!(!shown.leaf.contains("unheard-of"), "{}", shown.leaf);
        let size = checkpoint(&server).await.size;
        let bundle = server.http().get(&format!("/api/v1/log/tile/entries/000.p/{size}")).await;
        let text = String::from_utf8_lossy(&bundle.assert_status(200).body).into_owned();
        assert!(text.contains("\nprivate ") && !text.contains("unheard-of"), "{text}");
    }

    async fn what_the_log_has_not_is_not_found(server: TestServer) {
        checkpoint(&server).await;

        for path in ["tile/0/999", "tile/0/0", "tile/8/000", "tile/entries/../checkpoint", "tile/0/000.p/0", "tiles", ""] {
            server.http().get(&format!("/api/v1/log/{path}")).await.assert_status(404);
        }
        let nobody = TestPath::new("never-pushed", "x");
        server.http().get(&proof_url("main", &nobody)).await.assert_status(404);
        server.http().get(&proof_url("none", &nobody)).await.assert_status(401);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_in_the_store_is_verified_with_the_keys_that_nix_trusts() {
    let nix = require_nix!();
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let mut machine = nix.machine();
    if !machine.can_build().await {
        return println!("skipped: no machine of its own can be had here");
    }
    machine.log_in(&server.token("alice", &["push:main"]).await.text);
    let path = machine.add("good", &Node::file("good"), &[]).await;
    let other = machine.add("other", &Node::file("other"), &[]).await;
    machine.push(&server.push_url("main"), &[&path, &other]).await.success();
    let mut proofs = Vec::new();
    for path in [&path, &other] {
        let url = format!("/api/v1/caches/main/paths/{}/proof", hash_part(path));
        proofs.push(
            until("the proof", async || {
                let answer = server.http().get(&url).await;
                (answer.status == 200).then(|| answer.text().to_owned())
            })
            .await,
        );
    }
    let (_proofs, of_other) = file("other.tlog-proof", &proofs[1]);
    let log_key = log_key(&server).await.to_string();
    let verify = async |machine: &Machine, more: &[&str]| {
        let words = [env!("CARGO_BIN_EXE_narvault"), "verify", &path];
        machine.within(words.iter().chain(more)).await
    };
    let from = ["--from", server.url.as_str(), "--log-key", &log_key];

    verify(&machine, &from).await.refused("not among the trusted keys");
    machine.trust(&server.public_key);
    let verified = verify(&machine, &from).await.success();
    assert!(verified.stdout.contains(&path), "{verified:?}");
    let told = verify(&machine, &["--from", &server.url]).await.success();
    assert!(told.stderr.contains("pins it"), "{told:?}");
    let proof = ["--proof", of_other.to_str().unwrap(), "--log-key", &log_key];
    verify(&machine, &proof).await.refused("the proof is of");
    verify(&machine, &["--proof", of_other.to_str().unwrap()]).await.refused("no log is trusted");

    let real = machine.real(&path);
    std::fs::remove_file(&real).unwrap();
    std::fs::write(&real, "gooD").unwrap();
    verify(&machine, &from).await.refused("in this store has NAR hash");
    server.stop().await;
}

/// A server that is gone, and whose storage is left: what a stranger can still prove, who has the log's key.
async fn who_caused_a_signature_is_proved_from_storage_alone(backend: Backend) {
    let Some(mut server) = TestServer::spawn(backend, &[]).await else {
        return println!("skipped: {backend:?} is not here");
    };
    let ci = server.token("ci", &["push:main"]).await;
    let (stays, gone) = (TestPath::new("stays", "stays"), TestPath::new("gone", "gone"));
    ci.http.push("main", &stays).await;
    ci.http.push("main", &gone).await;
    let narinfo = server.http().get(&format!("/main/{}.narinfo", gone.hash())).await.text().to_owned();
    let signature = narinfo.lines().find_map(|line| line.strip_prefix("Sig: ")).unwrap().to_owned();
    let reason = ["path", "quarantine", "main", gone.hash(), "--reason", "under suspicion"];
    assert_eq!(server.narvault(reason).await.code, Some(0));
    let last = TestPath::new("last", "last");
    ci.http.push("main", &last).await;
    crate::recover::everything_is_published(&server, &last).await;
    let (log_key, trusted) = (log_key(&server).await, server.public_key.clone());
    let contributor = server.admin().contributor("ci").await.unwrap().id;

    server
        .restart_after(async |site: &Site| {
            let place =
                site.storage_url().unwrap_or_else(|| site.data().join("storage").display().to_string());
            let key = log_key.to_string();
            let run = async |words: &[&str]| {
                let mut command = site.command(&[]);
                command.args(words).args(["--from", &place, "--log-key", &key]);
                Ended::of(command).await
            };

            // What became of it, in one question: signed by whom, and withdrawn since.
            let shown = run(&["log", "show", gone.hash(), "--json"]).await;
            assert_eq!(shown.code, Some(0), "{shown:?}");
            let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
            let leaves: Vec<&str> =
                shown.as_array().unwrap().iter().map(|one| one["leaf"].as_str().unwrap()).collect();
            assert_eq!(leaves.len(), 2, "{leaves:?}");
            assert!(leaves[0].contains(&format!("\nby {contributor}\ntoken {}\n", ci.id)), "{leaves:?}");
            assert!(leaves[1].contains("\nevent withdraw\n"), "{leaves:?}");
            let shown = run(&["log", "show", &signature]).await;
            assert!(
                shown.stdout.contains(&gone.store_path) && shown.stdout.starts_with("leaf "),
                "{shown:?}"
            );

            for asked in
                [&["log", "proof", "main", gone.hash()][..], &["log", "proof", "--signature", &signature]]
            {
                let printed = run(asked).await;
                assert_eq!(printed.code, Some(0), "{printed:?}");
                let proof = ProofFile::parse(printed.stdout.as_bytes()).unwrap();
                let policy = Policy::of_log(log_key.clone());
                let proved = Proved::check(&proof, &policy, &[trusted.parse().unwrap()]).unwrap();
                assert_eq!(proved.claim.path.to_string(), gone.store_path);
                assert_eq!((proved.by.as_ref(), proved.token.as_ref()), (Some(&contributor), Some(&ci.id)));
                assert_eq!(proved.signature.to_string(), signature);
            }
            let (_folder, kept) = file("kept.narinfo", &narinfo);
            let verified = run(&["verify", kept.to_str().unwrap(), "--trusted-key", &trusted]).await;
            assert_eq!(verified.code, Some(0), "{verified:?}");

            let nobodys = TestPath::new("nobodys", "nobodys");
            for asked in [
                &["log", "proof", "main", nobodys.hash()][..],
                &["log", "proof", "other", gone.hash()],
                &["log", "show", nobodys.hash()],
            ] {
                let refused = run(asked).await;
                assert_eq!(refused.code, Some(1), "{refused:?}");
                assert!(refused.stderr.contains("leaves tells of it"), "{refused:?}");
            }
            let mut command = site.command(&[]);
            let stranger = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
            command.args(["log", "show", gone.hash(), "--from", &place, "--log-key", stranger]);
            let refused = Ended::of(command).await;
            assert!(refused.stderr.contains("checkpoint is not believed"), "{refused:?}");
        })
        .await;
    server.stop().await;
}

mod who_caused_a_signature {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn is_proved_from_a_folder_alone() {
        who_caused_a_signature_is_proved_from_storage_alone(Backend::SQLITE_DISK).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn is_proved_from_a_bucket_alone() {
        who_caused_a_signature_is_proved_from_storage_alone(Backend::SQLITE_S3).await;
    }
}

/// A copy of everything that lies in a bucket, in a folder.
async fn copy_of(site: &Site) -> tempfile::TempDir {
    let (copy, storage) = (tempfile::tempdir().unwrap(), site.storage().await);
    for folder in [Folder::Log, Folder::Cache(Prefix::empty())] {
        let entries: Vec<_> = storage.list(&folder).try_collect().await.unwrap();
        for key in entries.iter().filter_map(|entry| entry.key()) {
            let path = copy.path().join(key.to_string());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, storage.read(&key, 1 << 24).await.unwrap().unwrap()).unwrap();
        }
    }
    copy
}

/// Checks a proof file with the eyes of others: the checkpoint by the crate `signed_note`, the leaf's place under it by
/// `tlog_tiles`. Answers with the leaf.
fn leaf_proved_by_others(proof: &str, log_key: &str) -> String {
    let (head, note) = proof.split_once("\n\n").unwrap();
    let mut lines = head.lines();
    assert_eq!(lines.next(), Some("c2sp.org/tlog-proof@v1"));
    let leaf = lines.next().and_then(|line| line.strip_prefix("extra ")).unwrap();
    let leaf = BASE64.decode(leaf.as_bytes()).unwrap();
    let index = lines.next().and_then(|line| line.strip_prefix("index ")).unwrap().parse().unwrap();
    let hash = |text: &str| tlog_tiles::Hash(BASE64.decode(text.as_bytes()).unwrap().try_into().unwrap());
    let hashes: Vec<_> = lines.map(hash).collect();

    let verifier = signed_note::StandardVerifier::new(log_key).unwrap();
    let known = signed_note::VerifierList::new(vec![Box::new(verifier)]);
    let note = signed_note::Note::from_bytes(note.as_bytes()).unwrap();
    assert_eq!(note.verify(&known).unwrap().0.len(), 1, "the log's key has signed");
    let checkpoint = tlog_tiles::Checkpoint::from_bytes(note.text()).unwrap();
    let place = tlog_tiles::record_hash(&leaf);
    tlog_tiles::check_record(&hashes, checkpoint.size(), *checkpoint.hash(), index, place).unwrap();
    String::from_utf8(leaf).unwrap()
}

async fn a_stranger_with_only_the_bucket_and_the_public_log_key_proves_who_caused_a_signature(
    backend: Backend,
) {
    let Some(server) = TestServer::start(backend).await else {
        return println!("skipped: {backend:?} is not here");
    };
    let (alice, bob) =
        (server.token("alice", &["push:main"]).await, server.token("bob", &["push:main"]).await);
    let (hello, world) = (TestPath::new("hello", "hello"), TestPath::new("world", "world"));
    alice.http.push("main", &hello).await;
    bob.http.push("main", &world).await;
    crate::recover::everything_is_published(&server, &world).await;
    let log_key = log_key(&server).await.to_string();
    let pseudonym = server.admin().contributor("alice").await.unwrap().id;
    let bucket = copy_of(&server.site).await;
    // No server any more, no database, no vault.
    drop(server.stop().await);

    // What a stranger has: this folder, in which nobody's name stands, and the key.
    let (from, home) = (bucket.path().to_str().unwrap(), tempfile::tempdir().unwrap());
    let narinfo = std::fs::read_to_string(bucket.path().join(format!("main/{}.narinfo", hello.hash())));
    let narinfo = narinfo.unwrap();
    let signature = narinfo.lines().find_map(|line| line.strip_prefix("Sig: ")).unwrap().to_owned();
    let run = async |arguments: &[&str], key: &str| {
        let mut command = crate::support::server::narvault();
        command.args(["log"]).args(arguments).args(["--log-key", key]).env("HOME", home.path());
        command.current_dir(home.path());
        Ended::of(command).await
    };

    let shown = run(&["show", &signature, "--from", from, "--json"], &log_key).await;
    assert_eq!(shown.code, Some(0), "{shown:?}");
    let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    let leaf = shown[0]["leaf"].as_str().unwrap();
    assert!(leaf.contains(&format!("\nby {pseudonym}\ntoken {}\n", alice.id)), "{leaf}");
    assert!(!leaf.contains("alice"), "{leaf}");

    // And can prove it to anybody, who needs none of our programs.
    let proof = run(&["proof", "--signature", &signature, "--from", from], &log_key).await;
    assert_eq!(proof.code, Some(0), "{proof:?}");
    let proved = leaf_proved_by_others(&proof.stdout, &log_key);
    assert_eq!(proved, leaf);
    let bytes = signature.split_once(':').unwrap().1;
    for line in [format!("path {}", hello.store_path), format!("sig {bytes}"), format!("by {pseudonym}")] {
        assert!(proved.lines().any(|one| one == line), "{line}: {proved}");
    }
    // The signature is of a key that the same log announced, and every narinfo there has its leaf.
    let audited = run(&["audit", from, "--json"], &log_key).await;
    assert_eq!(audited.code, Some(0), "{audited:?}");
    let answer: serde_json::Value = serde_json::from_str(&audited.stdout).unwrap();
    assert_eq!((&answer["signatures"], &answer["narinfos"]), (&2.into(), &2.into()));

    // Another key, a signature that nobody made, and a bucket in which somebody put the blame on another.
    let stranger = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    let refused = run(&["show", &signature, "--from", from], stranger).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let other = signature.replace(bytes, &BASE64.encode(&[7; 64]));
    let none = run(&["proof", "--signature", &other, "--from", from], &log_key).await;
    assert_eq!(none.code, Some(1), "{none:?}");
    let entries = bucket.path().join("_log/tile/entries/000.p");
    let bundle = std::fs::read_dir(entries)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .max_by_key(|path| path.file_name().and_then(|name| name.to_str()).unwrap().parse::<u64>().unwrap());
    let bundle = bundle.unwrap();
    let sound = std::fs::read(&bundle).unwrap();
    let at = sound.windows(36).position(|window| window == pseudonym.as_bytes()).unwrap();
    let mut blamed = sound;
    blamed[at + 35] ^= 1;
    std::fs::write(&bundle, blamed).unwrap();
    for arguments in
        [&["show", &signature, "--from", from][..], &["proof", "--signature", &signature, "--from", from]]
    {
        let refused = run(arguments, &log_key).await;
        assert_eq!(refused.code, Some(4), "{refused:?}");
    }
}

mod a_stranger_with_only_the_bucket_and_the_public_log_key {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn proves_who_caused_a_signature_of_a_folder() {
        super::a_stranger_with_only_the_bucket_and_the_public_log_key_proves_who_caused_a_signature(
            Backend::SQLITE_DISK,
        )
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn proves_who_caused_a_signature_of_a_bucket() {
        super::a_stranger_with_only_the_bucket_and_the_public_log_key_proves_who_caused_a_signature(
            Backend::POSTGRES_REAL_S3,
        )
        .await;
    }
}
