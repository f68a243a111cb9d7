//! Keys and signatures mean the same here and in every generation of Nix: a key that one made signs here what it signs
//! there, what is signed here verifies there, and while a key is replaced each of them pulls everything.

use narvault::api::{RotationCreate, RotationView};
use narvault::nix::nar::build::Node;
use narvault::nix::narinfo::SignedClaim;
use narvault::nix::signature::{PublicKey, Signature};
use serde_json::{Value, json};

use crate::support::client::{hash_part, lines};
use crate::support::nix::{Machine, Nix, Ran};
use crate::support::server::{Backend, TestServer};
use crate::support::until;

/// Every Nix at hand; says which these are.
async fn generations() -> Vec<Nix> {
    let generations = Nix::generations().await;
    let versions: Vec<_> = generations.iter().map(|nix| nix.version.as_str()).collect();
    println!("Nix at hand: {}", versions.join(" "));
    generations
}

/// A word that tells this Nix from the others, of characters that names may have.
fn word(nix: &Nix) -> String {
    format!("nix-{}", nix.version.replace('.', "-"))
}

fn trusting(nix: &Nix, key: &str) -> Machine {
    let mut machine = nix.machine();
    machine.trust(key);
    machine
}

async fn verify(machine: &Machine, url: &str, path: &str) -> Ran {
    machine.run_bare("nix", ["store", "verify", "--store", url, path]).await
}

async fn reaches(server: &TestServer, step: &str) -> RotationView {
    until(&format!("step {step}"), async || {
        let rotation = server.admin().key_rotation("main").await.unwrap();
        (rotation.step == step).then_some(rotation)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_any_nix_is_taken_over_and_signs_as_it_did_there() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    for nix in generations().await {
        let (cache, owner) = (word(&nix), nix.machine());
        assert_eq!(server.narvault(["cache", "create", &cache, "--public"]).await.code, Some(0));
        let (file, public_key) = owner.make_key(&format!("{cache}-1")).await;

        let imported = server.narvault(["key", "import", &cache, "--file", &file]).await;

        assert_eq!(imported.code, Some(0), "{}", imported.stderr);
        assert_eq!(imported.stdout.trim(), public_key);
        let listed = server.narvault(["key", "list", &cache]).await;
        assert!(
            listed.stdout.contains(&public_key) && listed.stdout.contains("imported"),
            "{}",
            listed.stdout
        );
        // The same path, signed by its owner there, and by the server here.
        let tree = Node::directory([("text", Node::file(nix.version.as_str()))]);
        let path = owner.add("thing", &tree, &[]).await;
        owner.nix(["store", "sign", "--key-file", &file, &path]).await.success();
        let pusher = nix.machine();
        pusher.log_in(&server.token("alice", &["push:*"]).await.text);
        assert_eq!(pusher.add("thing", &tree, &[]).await, path);
        pusher.push(&server.push_url(&cache), &[&path]).await.success();
        let narinfo = server.http().get(&format!("/{cache}/{}.narinfo", hash_part(&path))).await;
        let narinfo = narinfo.assert_status(200).text();
        let theirs = owner.path_info(&path).await["signatures"].clone();
        assert_eq!(json!(lines(narinfo, "Sig")), theirs, "on {}", nix.version);
        // Each takes the other's for good.
        let (key, claim) =
            (public_key.parse::<PublicKey>().unwrap(), SignedClaim::parse(narinfo.as_bytes()).unwrap());
        let theirs: Signature = theirs[0].as_str().unwrap().parse().unwrap();
        assert!(key.verify(claim.claim.fingerprint().as_bytes(), &theirs));
        let url = server.pull_url(&cache);
        verify(&trusting(&nix, &public_key), &url, &path).await.success();
        let (_, stranger) = owner.make_key("stranger-1").await;
        verify(&trusting(&nix, &stranger), &url, &path).await.refused("untrusted");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_texts_of_public_keys_are_read_by_every_nix() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let created = server.narvault(["key", "create", "main", "--next"]).await;
    let keys = json!([server.public_key, created.stdout.trim()]);
    let url = server.pull_url("main");
    let mut texts = Vec::new();
    for format in ["nix-conf", "nixos", "flake", "json"] {
        let printed = server.narvault(["key", "public", "main", "--format", format]).await;
        assert_eq!(printed.code, Some(0), "{}", printed.stderr);
        let fetched = server.http().get(&format!("/api/v1/caches/main/public-keys?format={format}")).await;
        assert_eq!(printed.stdout.trim_end(), fetched.assert_status(200).text().trim_end(), "{format}");
        texts.push(printed.stdout);
    }
    for nix in generations().await {
        let mut machine = nix.machine();
        let evaluate = async |file: &str, text: &str, expression: &str| -> Value {
            std::fs::write(machine.file(file), text).unwrap();
            let expression = expression.replace("FILE", &machine.file(file).display().to_string());
            let ran = machine.nix(["eval", "--impure", "--json", "--expr", &expression]).await;
            serde_json::from_str(&ran.success().stdout).unwrap()
        };

        let module = evaluate("module.nix", &texts[1], "(import FILE).nix.settings").await;
        let flake = evaluate("flake.nix", &texts[2], "(import FILE).nixConfig").await;
        let json = evaluate("keys.json", &texts[3], "builtins.fromJSON (builtins.readFile FILE)").await;

        assert_eq!((&module["substituters"], &module["trusted-public-keys"]), (&json!([url]), &keys));
        assert_eq!(
            (&flake["extra-substituters"], &flake["extra-trusted-public-keys"]),
            (&json!([url]), &keys)
        );
        assert_eq!(json["public_keys"], keys, "{json}");
        for line in texts[0].lines() {
            let (name, value) = line.split_once(" = ").unwrap();
            machine.set(name, value);
        }
        let show: &[&str] = if nix.is_since((2, 20)) { &["config", "show"] } else { &["show-config"] };
        let shown = machine.run_bare("nix", show.iter().copied().chain(["--json"])).await.success().stdout;
        let shown: Value = serde_json::from_str(&shown).unwrap();
        for key in keys.as_array().unwrap() {
            let trusted = shown["trusted-public-keys"]["value"].as_array().unwrap();
            assert!(trusted.contains(key), "{key} is not in {trusted:?} on {}", nix.version);
        }
        assert!(shown["substituters"]["value"].as_array().unwrap().contains(&json!(url)));
    }
    server.stop().await;
}

/// A derivation whose output is only known once it was built.
fn derivation(name: &str) -> String {
    format!(
        r#"derivation {{
            name = "{name}"; system = builtins.currentSystem; builder = "/bin/sh";
            args = [ "-c" "echo {name} > $out" ];
            __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";
        }}"#
    )
}

/// What one Nix has pushed: a path with a reference, and a derivation with its realisation, where it can build.
struct Pushed {
    nix: Nix,
    library: String,
    tool: String,
    built: Option<String>,
}

impl Pushed {
    async fn by(nix: &Nix, server: &TestServer, name: &str) -> Self {
        let machine = nix.machine();
        machine.log_in(&server.token("alice", &["push:main"]).await.text);
        let name = format!("{name}-{}", word(nix));
        let library = machine.add_text(&format!("{name}-library"), &name, &[]).await;
        let tool = machine.add_text(&name, "uses", &[&library]).await;
        machine.push(&server.push_url("main"), &[&tool]).await.success();
        let mut built = None;
        if machine.can_build().await {
            std::fs::write(machine.file("ca.nix"), derivation(&name)).unwrap();
            machine.within(["nix-build", "--no-out-link", "ca.nix"]).await.success();
            let url = server.push_url("main");
            machine.within(["nix", "copy", "--to", &url, "--file", "ca.nix"]).await.success();
            built = Some(name);
        } else {
            println!("{} builds nothing here: no realisation by it", nix.version);
        }
        Self { nix: nix.clone(), library, tool, built }
    }

    /// Everything comes to a new machine that trusts this key alone: the paths to every Nix, the realisation to the one
    /// that pushed it.
    async fn comes(&self, to: &[Nix], url: &str, key: &str) {
        for nix in to {
            let machine = trusting(nix, key);
            machine.pull(url, &[&self.library, &self.tool]).await.success();
        }
        if let Some(name) = &self.built {
            let (machine, ran) = self.substitute(url, key).await;
            let out = ran.success().stdout.trim().to_owned();
            assert_eq!(std::fs::read_to_string(machine.real(&out)).unwrap(), format!("{name}\n"));
        }
    }

    /// The paths do not. (Of a realisation that Nix substitutes it asks for no signature, and a content-addressed path needs
    /// none.)
    async fn stays_away(&self, from: &[Nix], url: &str, key: &str) {
        for nix in from {
            trusting(nix, key).pull(url, &[&self.tool]).await.refused("signature");
        }
    }

    /// Asks for the derivation's output on a machine that builds nothing.
    async fn substitute(&self, url: &str, key: &str) -> (Machine, Ran) {
        let mut machine = trusting(&self.nix, key);
        std::fs::write(machine.file("ca.nix"), derivation(self.built.as_deref().unwrap())).unwrap();
        machine.set("substituters", url);
        machine.set("max-jobs", "0");
        let ran = machine.within(["nix-build", "--no-out-link", "ca.nix"]).await;
        (machine, ran)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_nix_pulls_everything_by_either_key_while_one_is_replaced() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let (generations, url) = (generations().await, server.pull_url("main"));
    let mut before = Vec::new();
    for nix in &generations {
        before.push(Pushed::by(nix, &server, "before").await);
    }
    let old = server.public_key.clone();
    let asked = RotationCreate { publish_days: Some(0), wait_days: Some(30), ..RotationCreate::default() };
    let rotation = server.admin().key_rotate("main", &asked).await.unwrap();
    let keys = server.admin().keys("main", &Default::default()).await.unwrap().items;
    let new = keys.into_iter().find(|key| Some(&key.name) == rotation.new_key.as_ref()).unwrap().public_key;
    let waits = reaches(&server, "wait").await;
    assert_eq!(waits.refused, 0);
    let during = match generations.first() {
        Some(nix) => Pushed::by(nix, &server, "during").await,
        None => return println!("skipped: there is no Nix here"),
    };

    for key in [&old, &new] {
        for pushed in before.iter().chain([&during]) {
            pushed.comes(&generations, &url, key).await;
        }
    }
    let old_name = old.split(':').next().unwrap();
    server.admin().key_retire("main", old_name).await.unwrap();
    let after = Pushed::by(&generations[0], &server, "after").await;
    for pushed in before.iter().chain([&during, &after]) {
        pushed.comes(&generations[..1], &url, &new).await;
    }
    before[0].comes(&generations[..1], &url, &old).await;
    after.stays_away(&generations, &url, &old).await;
    // Once the signatures of the old key are gone, nobody needs it any more, and it is of no use to anybody.
    server.admin().key_drop_signatures("main", old_name).await.unwrap();
    reaches(&server, "done").await;
    server.admin().key_destroy("main", old_name).await.unwrap();
    for pushed in before.iter().chain([&during, &after]) {
        pushed.comes(&generations[..1], &url, &new).await;
    }
    before[0].stays_away(&generations, &url, &old).await;
    server.stop().await;
}
