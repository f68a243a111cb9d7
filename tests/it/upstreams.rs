//! What an upstream holds need not be stored here, if the cache says so: found out by asking, and believed only with
//! a valid signature.

use narvault::api::{
    CacheCreate, CacheEdit, KeyCreate, MissingAnswer, MissingRequest, Upstream, UpstreamPaths,
};

use serde_json::{Value, json};

use crate::support::client::{TestPath, Token, hash_part, lines};
use crate::support::database::on_each_database;
use crate::support::nix::require_nix;
use crate::support::proxy::{Manners, Proxy};
use crate::support::server::{Backend, Ended, TestServer};

/// Another binary cache, with a key of its own.
struct Elsewhere {
    server: TestServer,
    token: Token,
}

impl Elsewhere {
    async fn start() -> Self {
        let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
        let token = server.token("others", &["push:main"]).await;
        Self { server, token }
    }

    fn upstream(&self) -> Upstream {
        Upstream { url: self.server.pull_url("main"), public_keys: vec![self.server.public_key.clone()] }
    }
}

/// A cache with one key and these upstreams.
async fn cache(server: &TestServer, upstreams: Vec<Upstream>, upstream_paths: UpstreamPaths) -> Token {
    let body = CacheCreate {
        name: "lean".to_owned(),
        public: true,
        priority: None,
        prefix: None,
        upstreams: Some(upstreams),
        upstream_paths: Some(upstream_paths),
        undeclared_references: None,
    };
    server.admin().cache_create(&body).await.unwrap();
    server.admin().key_create("lean", &KeyCreate::default()).await.unwrap();
    server.token("alice", &["push:lean"]).await
}

/// The last line of `narvault push --json`, which went well.
#[track_caller]
fn last_line(ended: &Ended) -> Value {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    serde_json::from_str(ended.stdout.lines().last().unwrap()).unwrap()
}

async fn missing(server: &TestServer, token: &Token, paths: &[&TestPath]) -> MissingAnswer {
    let hashes = paths.iter().map(|path| path.hash().to_owned()).collect();
    server.client(&token.text).missing("lean", &MissingRequest { hashes }).await.unwrap()
}

on_each_database! {
    async fn what_an_upstream_holds_is_neither_missing_nor_served(server: TestServer) {
        let elsewhere = Elsewhere::start().await;
        let (libc, other) = (TestPath::new("libc", "libc"), TestPath::new("other", "nowhere"));
        let app = TestPath::with_references("app", "app", &[&libc]);
        elsewhere.token.http.push("main", &libc).await;
        let alice = cache(&server, vec![elsewhere.upstream()], UpstreamPaths::Skip).await;

        let answer = missing(&server, &alice, &[&app, &libc, &other]).await;

        assert_eq!(answer.missing, [app.hash(), other.hash()]);
        assert_eq!(answer.upstream, [libc.hash()]);
        let seen = alice.http.get(&format!("/push/lean/{}.narinfo", libc.hash())).await;
        assert_eq!(lines(seen.assert_status(200).text(), "StorePath"), [libc.store_path.as_str()]);
        assert_eq!(lines(seen.text(), "Sig").len(), 1, "{}", seen.text());
        alice.http.head(&format!("/push/lean/{}.narinfo", libc.hash())).await.assert_status(200);
        alice.http.get(&format!("/push/lean/{}.narinfo", other.hash())).await.assert_status(404);
        server.http().get(&format!("/lean/{}.narinfo", libc.hash())).await.assert_status(404);
        alice.http.push("lean", &app).await;
        server.http().get(&format!("/lean/{}.narinfo", app.hash())).await.assert_status(200);
        server.stop().await;
    }

    async fn an_upstream_counts_only_by_a_valid_signature_of_a_listed_key(server: TestServer) {
        let (elsewhere, stranger) = (Elsewhere::start().await, Elsewhere::start().await);
        let libc = TestPath::new("libc", "libc");
        let app = TestPath::with_references("app", "app", &[&libc]);
        elsewhere.token.http.push("main", &libc).await;
        let public_keys = vec![stranger.server.public_key.clone()];
        let liar = Upstream { public_keys, ..elsewhere.upstream() };
        let alice = cache(&server, vec![liar], UpstreamPaths::Skip).await;

        assert_eq!(missing(&server, &alice, &[&libc]).await.missing, [libc.hash()]);
        alice.http.get(&format!("/push/lean/{}.narinfo", libc.hash())).await.assert_status(404);
        alice.http.put_nar("lean", &app).await.assert_status(201);
        let refused = alice.http.put_narinfo("lean", &app).await;
        refused.assert_refused(422, "is not published in this cache; push it first");
        server.stop().await;
    }

    async fn what_was_learnt_of_an_upstream_holds_until_its_key_is_no_longer_listed(server: TestServer) {
        let (elsewhere, stranger) = (Elsewhere::start().await, Elsewhere::start().await);
        let libc = TestPath::new("libc", "libc");
        let [first, second] = ["first", "second"].map(|name| TestPath::with_references(name, name, &[&libc]));
        elsewhere.token.http.push("main", &libc).await;
        let mut upstream = elsewhere.upstream();
        let alice = cache(&server, vec![upstream.clone()], UpstreamPaths::Skip).await;
        assert_eq!(missing(&server, &alice, &[&libc]).await.upstream, [libc.hash()]);
        elsewhere.server.stop().await;

        alice.http.push("lean", &first).await;

        upstream.public_keys = vec![stranger.server.public_key.clone()];
        let body = CacheEdit { upstreams: Some(vec![upstream]), ..CacheEdit::default() };
        server.admin().cache_edit("lean", &body).await.unwrap();
        assert_eq!(missing(&server, &alice, &[&libc]).await.missing, [libc.hash()]);
        alice.http.put_nar("lean", &second).await.assert_status(201);
        alice.http.put_narinfo("lean", &second).await.assert_refused(422, "did not answer whether it holds it");
        server.stop().await;
    }

    async fn a_cache_that_stores_everything_asks_nobody(server: TestServer) {
        let elsewhere = Elsewhere::start().await;
        let libc = TestPath::new("libc", "libc");
        let app = TestPath::with_references("app", "app", &[&libc]);
        elsewhere.token.http.push("main", &libc).await;
        let alice = cache(&server, vec![elsewhere.upstream()], UpstreamPaths::Store).await;

        let answer = missing(&server, &alice, &[&libc]).await;

        assert_eq!((answer.missing, answer.upstream), (vec![libc.hash().to_owned()], vec![]));
        alice.http.put_nar("lean", &app).await.assert_status(201);
        let refused = alice.http.put_narinfo("lean", &app).await;
        refused.assert_refused(422, "is not published in this cache; push it first");
        server.stop().await;
    }

    async fn narvault_push_leaves_out_what_an_upstream_holds_and_publishes_what_refers_to_it(server: TestServer) {
        let nix = require_nix!();
        let elsewhere = Elsewhere::start().await;
        let machine = nix.machine();
        let libc = machine.add_text("libc", "libc", &[]).await;
        let libm = machine.add_text("libm", "libm", &[&libc]).await;
        let app = machine.add_text("app", "app", &[&libm]).await;
        let theirs = machine.narvault_push(&elsewhere.server.url, &elsewhere.token.text, ["main", libm.as_str()]);
        assert_eq!(Ended::of(theirs).await.code, Some(0));
        let alice = cache(&server, vec![elsewhere.upstream()], UpstreamPaths::Skip).await;
        let proxy = Proxy::before(&server.url, Manners::default()).await;
        let push = async |more: &[&str]| {
            let arguments = [&["lean", &app], more].concat();
            Ended::of(machine.narvault_push(&proxy.url, &alice.text, arguments)).await
        };

        let dry = push(&["--dry-run"]).await;
        assert_eq!((dry.code, proxy.accepted().len()), (Some(0), 0), "{dry:?}");
        assert!(dry.stdout.starts_with(&format!("{app}\n1 to push, 0 already there, 2 upstream; ")), "{dry:?}");
        let dry = push(&["--dry-run", "--json"]).await;
        let done = last_line(&dry);
        assert_eq!((&done["missing"], &done["upstream"]), (&json!([app]), &json!(2)), "{done}");
        let pushed = push(&[]).await;
        let again = push(&["--json"]).await;

        assert_eq!(pushed.code, Some(0), "{pushed:?}");
        assert!(pushed.stdout.starts_with("1 new, 0 already there, 2 upstream; "), "{pushed:?}");
        let counts = |ended: &Ended| ["new", "present", "upstream", "bytes_sent"].map(|name| last_line(ended)[name].clone());
        assert_eq!(counts(&again), [0, 1, 2, 0].map(Value::from), "{again:?}");
        // One file went over the network, by name and by bytes.
        let view = server.admin().path("lean", hash_part(&app)).await.unwrap();
        assert_eq!((view.state.as_str(), proxy.accepted().len()), ("published", 1));
        assert_eq!(view.references, std::slice::from_ref(&libm));
        let held = server.admin().paths("lean", &Default::default()).await.unwrap().items;
        assert_eq!(held.iter().map(|path| &path.store_path).collect::<Vec<_>>(), [&app]);
        server.http().get(&format!("/lean/{}.narinfo", hash_part(&app))).await.assert_status(200);
        for path in [&libc, &libm] {
            server.http().get(&format!("/lean/{}.narinfo", hash_part(path))).await.assert_status(404);
        }
        server.stop().await;
    }

    async fn narvault_push_sends_what_an_upstream_holds_without_a_valid_signature(server: TestServer) {
        let nix = require_nix!();
        let (elsewhere, stranger) = (Elsewhere::start().await, Elsewhere::start().await);
        let machine = nix.machine();
        let libc = machine.add_text("libc", "libc", &[]).await;
        let app = machine.add_text("app", "app", &[&libc]).await;
        let theirs = machine.narvault_push(&elsewhere.server.url, &elsewhere.token.text, ["main", libc.as_str()]);
        assert_eq!(Ended::of(theirs).await.code, Some(0));
        let liar = Upstream { public_keys: vec![stranger.server.public_key.clone()], ..elsewhere.upstream() };
        let alice = cache(&server, vec![liar], UpstreamPaths::Skip).await;
        let push = async |more: &[&str]| {
            let arguments = [&["lean", &app, "--json"], more].concat();
            Ended::of(machine.narvault_push(&server.url, &alice.text, arguments)).await
        };

        let dry = push(&["--dry-run"]).await;
        let pushed = push(&[]).await;

        let (dry, done) = (last_line(&dry), last_line(&pushed));
        assert_eq!((dry["missing"].as_array().unwrap().len(), &dry["upstream"]), (2, &json!(0)), "{dry}");
        assert_eq!((&done["new"], &done["upstream"]), (&json!(2), &json!(0)), "{done}");
        for path in [&libc, &app] {
            server.http().get(&format!("/lean/{}.narinfo", hash_part(path))).await.assert_status(200);
        }
        server.stop().await;
    }

    async fn stock_nix_leaves_out_what_an_upstream_holds(server: TestServer) {
        let nix = require_nix!();
        let elsewhere = Elsewhere::start().await;
        let builder = nix.machine();
        let libc = builder.add_text("libc", "libc", &[]).await;
        let app = builder.add_text("app", "app", &[&libc]).await;
        builder.log_in(&elsewhere.token.text);
        builder.push(&elsewhere.server.push_url("main"), &[&libc]).await.success();
        let alice = cache(&server, vec![elsewhere.upstream()], UpstreamPaths::Skip).await;
        builder.log_in(&alice.text);

        builder.push(&server.push_url("lean"), &[&app]).await.success();

        let pushed = server.admin().paths("lean", &Default::default()).await.unwrap().items;
        assert_eq!(pushed.iter().map(|path| &path.store_path).collect::<Vec<_>>(), [&app]);
        let mut puller = nix.machine();
        let ours = server.admin().cache("lean").await.unwrap().public_keys.remove(0);
        puller.trust(&format!("{ours} {}", elsewhere.server.public_key));
        let both = format!("{} {}", server.pull_url("lean"), elsewhere.server.pull_url("main"));
        puller.set("substituters", &both);
        puller.run("nix-store", ["-r", app.as_str()]).await.success();
        assert_eq!(puller.nar(&app).await, builder.nar(&app).await);
        assert_eq!(puller.nar(&libc).await, builder.nar(&libc).await);
        server.stop().await;
    }
}
