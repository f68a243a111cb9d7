//! The binary cache protocol request by request: the order of newer clients, and what no stock client shows.

use data_encoding::BASE64;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::client::{Answer, Http, Raw, TestPath, base_name, lines};
use crate::support::database::on_each_database;
use crate::support::nix::require_nix;
use crate::support::server::{Backend, TestServer, on_each_backend};

/// A closure whose members come in the order of their references.
fn closure() -> Vec<TestPath> {
    let library = TestPath::new("library", "l".repeat(70_000));
    let tool = TestPath::with_references("tool", "tool", &[&library]);
    let system = TestPath::with_references("system", "system", &[&tool, &library]);
    vec![library, tool, system]
}

/// A request of a token that may push to `main`.
async fn pusher(server: &TestServer) -> Http {
    server.token("alice", &["push:main"]).await.http
}

async fn with_headers(http: &Http, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
    let request = http.request(method, path);
    Answer::of(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))).await
}

on_each_backend! {
    async fn all_nars_may_come_before_all_narinfos(server: TestServer) {
        let alice = pusher(&server).await;
        let closure = closure();

        let nars = join_all(closure.iter().map(|path| alice.put_nar("main", path))).await;

        for nar in nars {
            nar.assert_status(201);
        }
        for path in &closure {
            let nar = path.nar_url();
            alice.head(&format!("/push/main/{nar}")).await.assert_status(200);
            server.http().head(&format!("/main/{nar}")).await.assert_status(404);
        }
        for path in &closure {
            alice.put_narinfo("main", path).await.assert_status(201);
        }
        for path in &closure {
            let nar = server.http().get(&format!("/main/{}", path.nar_url())).await;
            assert!(nar.assert_status(200).body == path.file);
        }
        server.stop().await;
    }

    async fn a_narinfo_before_its_references_is_refused_and_taken_after_them(server: TestServer) {
        let alice = pusher(&server).await;
        let closure = closure();
        for path in &closure {
            alice.put_nar("main", path).await.assert_status(201);
        }

        alice.put_narinfo("main", &closure[1]).await.assert_refused(422, &closure[0].store_path);

        for path in &closure {
            alice.put_narinfo("main", path).await.assert_status(201);
            alice.put_narinfo("main", path).await.assert_status(200);
        }
        server.stop().await;
    }

    async fn the_push_url_and_the_pull_url_give_the_same_signed_narinfo(server: TestServer) {
        let alice = pusher(&server).await;
        let path = TestPath::new("thing", "hello");
        alice.push("main", &path).await;

        let (pulled, pushed) = (
            server.http().get(&format!("/main/{}.narinfo", path.hash())).await,
            alice.get(&format!("/push/main/{}.narinfo", path.hash())).await,
        );

        assert_eq!(pulled.assert_status(200).text(), pushed.assert_status(200).text());
        let key_name = server.public_key.split(':').next().unwrap();
        assert!(lines(pulled.text(), "Sig")[0].starts_with(&format!("{key_name}:")), "{}", pulled.text());
        server.stop().await;
    }

    async fn head_says_what_get_says(server: TestServer) {
        let alice = pusher(&server).await;
        let path = TestPath::new("thing", "hello");
        let listing = json!({ "version": 1, "root": { "type": "regular", "size": 5, "narOffset": 96 } });
        alice.put(&format!("/push/main/{}.ls", path.hash()), listing.to_string()).await.assert_status(201);
        alice.push("main", &path).await;
        let log = format!("{}-thing.drv", path.hash());
        alice.put(&format!("/push/main/log/{log}"), "built\n").await.assert_status(201);
        for object in [
            "nix-cache-info",
            &format!("{}.narinfo", path.hash()),
            &format!("{}.ls", path.hash()),
            &path.nar_url(),
            &format!("log/{log}"),
            "00000000000000000000000000000000.narinfo",
            &format!("nar/{}.nar.xz", "0".repeat(52)),
            "nonsense",
        ] {
            for url in [format!("/main/{object}"), format!("/push/main/{object}")] {
                let (get, head) = (alice.get(&url).await, alice.head(&url).await);

                assert_eq!(head.status, get.status, "{url}");
                let names = ["content-length", "content-type", "cache-control", "etag", "accept-ranges"];
                for name in names {
                    assert_eq!(head.header(name), get.header(name), "{name} of {url}");
                }
                assert_eq!(head.header("content-length"), get.body.len().to_string(), "{url}");
                assert_eq!(get.header("content-encoding"), "", "{url}");
                assert!(head.body.is_empty());
            }
        }
        server.stop().await;
    }

    async fn nars_are_given_by_range_and_only_if_changed(server: TestServer) {
        let alice = pusher(&server).await;
        let path = TestPath::new("thing", "0123456789".repeat(50_000));
        alice.push("main", &path).await;
        let (http, url, size) = (server.http(), format!("/main/{}", path.nar_url()), path.file.len());
        let whole = http.get(&url).await;
        assert_eq!(whole.assert_status(200).header("accept-ranges"), "bytes");
        let etag = whole.header("etag").to_owned();
        for (asked, range) in [
            ("bytes=0-9".to_owned(), 0..10),
            ("bytes=200000-".to_owned(), 200_000..size),
            ("bytes=-7".to_owned(), size - 7..size),
            (format!("bytes=5-{}", size * 2), 5..size),
        ] {
            let part = with_headers(&http, Method::GET, &url, &[("range", &asked)]).await;

            assert!(part.assert_status(206).body == path.file[range.clone()], "{asked}");
            let content_range = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            assert_eq!(part.header("content-range"), content_range);
        }

        let beyond = with_headers(&http, Method::GET, &url, &[("range", &format!("bytes={size}-"))]).await;
        assert_eq!(beyond.assert_status(416).header("content-range"), format!("bytes */{size}"));
        let same = [("range", "bytes=3-5"), ("if-range", etag.as_str())];
        assert_eq!(with_headers(&http, Method::GET, &url, &same).await.assert_status(206).body.len(), 3);
        let other = [("range", "bytes=3-5"), ("if-range", "\"other\"")];
        assert!(with_headers(&http, Method::GET, &url, &other).await.assert_status(200).body == path.file);
        for (asked, status) in [(etag.as_str(), 304), ("*", 304), ("\"other\"", 200)] {
            let answer = with_headers(&http, Method::GET, &url, &[("if-none-match", asked)]).await;
            assert_eq!(answer.assert_status(status).header("etag"), etag);
        }
        server.stop().await;
    }
}

on_each_database! {
    async fn build_traces_are_signed_kept_and_never_replaced(server: TestServer) {
        let alice = pusher(&server).await;
        let (output, other) = (TestPath::new("output", "a"), TestPath::new("other", "b"));
        alice.push("main", &output).await;
        let url = format!("/push/main/build-trace-v2/{}-output.drv/out.doi", "0".repeat(32));
        let entry = |path: &TestPath| {
            json!({ "outPath": base_name(&path.store_path), "signatures": [] }).to_string()
        };
        alice.put(&url, entry(&other)).await.assert_refused(422, &other.store_path);
        alice.put(&url, entry(&output)).await.assert_status(201);
        alice.push("main", &other).await;

        alice.put(&url, entry(&other)).await.assert_refused(409, "the first one stays");

        alice.put(&url, entry(&output)).await.assert_status(201);
        let pulled = server.http().get(&url.replace("/push", "")).await;
        let trace: Value = serde_json::from_slice(&pulled.assert_status(200).body).unwrap();
        assert_eq!(trace["outPath"], base_name(&output.store_path));
        let key_name = server.public_key.split(':').next().unwrap();
        assert_eq!(trace["signatures"][0]["keyName"], key_name, "{trace}");
        server.stop().await;
    }

    async fn names_are_the_same_however_they_are_encoded(server: TestServer) {
        let alice = pusher(&server).await;
        let output = TestPath::new("output", "a");
        alice.push("main", &output).await;
        let hex = "0a".repeat(32);
        let entry = json!({
            "dependentRealisations": {}, "id": format!("sha256:{hex}!out"),
            "outPath": base_name(&output.store_path), "signatures": []
        });
        let hash = "0".repeat(32);
        for (put, get, body) in [
            (
                format!("realisations/sha256:{hex}!out.doi"),
                format!("realisations/sha256%3A{hex}%21out.doi"),
                entry.to_string(),
            ),
            (format!("log/{hash}-c++?x=1.drv"), format!("log/{hash}-c%2B%2B%3Fx=1.drv"), "a log".to_owned()),
            (format!("log/{hash}-d%2b%2b?x%3D2.drv"), format!("log/{hash}-d++?x=2.drv"), "more".to_owned()),
        ] {
            alice.put(&format!("/push/main/{put}"), body).await.assert_status(201);

            let (one, two) =
                (server.http().get(&format!("/main/{put}")).await, server.http().get(&format!("/main/{get}")).await);

            assert_eq!(one.assert_status(200).text(), two.assert_status(200).text());
        }
        for name in ["..%2fmain%2fnix-cache-info", "nar%2f..%2fnix-cache-info", "%00", "%ff", "nix-cache-info%00"] {
            server.http().get(&format!("/main/{name}")).await.assert_refused(404, "no such object");
        }
        server.stop().await;
    }

    async fn a_token_is_taken_in_each_way_that_clients_can_send_it(server: TestServer) {
        let text = server.token("alice", &["push:main"]).await.text;
        let basic = |pair: String| format!("Basic {}", BASE64.encode(pair.as_bytes()));
        for value in [
            format!("Bearer {text}"),
            format!("bearer  {text}"),
            basic(format!("anyone:{text}")),
            basic(format!(":{text}")),
            basic(format!("{text}:")),
        ] {
            let http = server.http().with_authorization(&value);

            http.get("/push/main/nix-cache-info").await.assert_status(200);
        }

        for value in [
            format!("Bearer {}", &text[..text.len() - 1]),
            format!("Bearer {text}x"),
            format!("Token {text}"),
            basic(format!("{text}:x")),
            basic("alice:password".to_owned()),
            basic(":".to_owned()),
            "Basic !".to_owned(),
            "Bearer".to_owned(),
        ] {
            let http = server.http().with_authorization(&value);

            let refused = http.get("/push/main/nix-cache-info").await;

            refused.assert_refused(401, "not a token");
            assert!(refused.header("www-authenticate").starts_with("Basic"));
            http.put("/push/main/nix-cache-info", "x").await.assert_refused(401, "not a token");
            // Nix sends what netrc has to every cache of a host.
            http.get("/main/nix-cache-info").await.assert_status(200);
        }
        server.stop().await;
    }

    async fn refusals_come_in_the_order_credential_right_existence_content(server: TestServer) {
        let (pull, push) = (server.token("bob", &["pull:main"]).await.http, pusher(&server).await);
        let anyone = server.http();
        let object = format!("{}.narinfo", "0".repeat(32));
        for (http, url, status, text) in [
            (&anyone, format!("/push/main/{object}"), 401, "needs a token"),
            (&anyone, format!("/push/nowhere/{object}"), 401, "needs a token"),
            (&anyone, "/push/main/nonsense".to_owned(), 401, "needs a token"),
            (&pull, format!("/push/main/{object}"), 403, "does not allow"),
            (&pull, format!("/push/nowhere/{object}"), 403, "does not allow"),
            (&push, format!("/push/nowhere/{object}"), 403, "does not allow"),
            (&push, "/push/main/nonsense".to_owned(), 404, "no such object"),
            (&push, "/push/main/nar/x.nar".to_owned(), 404, "no such object"),
            (&push, format!("/push/main/nar/{}.nar.lz4", "0".repeat(52)), 422, "use xz, zstd"),
            (&push, format!("/push/main/{object}"), 422, "narinfo"),
        ] {
            http.put(&url, "nonsense").await.assert_refused(status, text);
        }

        let wrong = anyone.put(&format!("/main/{object}"), "x").await;
        wrong.assert_refused(405, &server.push_url("main"));
        assert_eq!(wrong.header("allow"), "GET, HEAD");
        let wrong = with_headers(&push, Method::DELETE, &format!("/push/main/{object}"), &[]).await;
        wrong.assert_refused(405, "GET, HEAD, PUT");
        let large = push.put(&format!("/push/main/{object}"), vec![b'x'; (1 << 20) + 1]).await;
        large.assert_refused(413, "1048576 bytes");
        server.stop().await;
    }

    async fn a_body_is_asked_for_only_of_those_who_may_send_it(server: TestServer) {
        let push = server.token("alice", &["push:main"]).await;
        let pull = server.token("bob", &["pull:main"]).await;
        let path = TestPath::new("thing", "hello");
        let nar = format!("/push/main/{}", path.nar_url());
        for (url, token, size, status) in [
            (nar.as_str(), None, path.file.len(), 401),
            (&nar, Some("nonsense"), path.file.len(), 401),
            (&nar, Some(pull.text.as_str()), path.file.len(), 403),
            ("/push/main/nonsense", Some(push.text.as_str()), 10, 404),
            (&nar.replace(".nar", ".nar.lz4"), Some(push.text.as_str()), 10, 422),
            (&nar, Some(push.text.as_str()), 1 << 40, 413),
            ("/main/nix-cache-info", Some(push.text.as_str()), 10, 405),
        ] {
            let mut raw = Raw::connect(&server.url).await;

            raw.expect_put(url, token, size).await;

            assert_eq!(raw.status().await, status, "{url} {size}");
            let rest = raw.rest().await;
            assert!(!rest.contains("100 Continue"), "{url} {size}: {rest}");
        }

        let mut raw = Raw::connect(&server.url).await;
        raw.expect_put(&nar, Some(&push.text), path.file.len()).await;
        assert_eq!(raw.status().await, 100);
        raw.send(&path.file).await;
        assert_eq!(raw.status().await, 201);
        server.stop().await;
    }

    async fn an_upload_that_breaks_off_leaves_nothing(server: TestServer) {
        let push = server.token("alice", &["push:main"]).await;
        let path = TestPath::new("thing", "hello".repeat(100_000));
        let nar = format!("/push/main/{}", path.nar_url());
        let mut raw = Raw::connect(&server.url).await;
        raw.expect_put(&nar, Some(&push.text), path.file.len()).await;
        assert_eq!(raw.status().await, 100);
        raw.send(&path.file[..path.file.len() / 2]).await;

        drop(raw);

        push.http.head(&nar).await.assert_status(404);
        push.http.put_narinfo("main", &path).await.assert_refused(422, "was not uploaded");
        push.http.push("main", &path).await;
        server.stop().await;
    }
}

/// Servers that redirect: those whose storage can give a URL of its own.
async fn redirecting(settings: &[(&str, &str)]) -> Vec<TestServer> {
    let mut servers = Vec::new();
    for backend in [Backend::SQLITE_S3, Backend::POSTGRES_REAL_S3] {
        let settings: Vec<_> =
            settings.iter().chain(&[("NARVAULT_NARS_DELIVER", "redirect")]).copied().collect();
        servers.extend(TestServer::start_with(backend, &settings).await);
    }
    servers
}

/// A private cache with one path; a token that may read it.
async fn private_cache(server: &TestServer, path: &TestPath) -> Http {
    let private = narvault::api::CacheCreate {
        name: "team".to_owned(),
        public: false,
        priority: None,
        prefix: None,
        upstreams: None,
        upstream_paths: None,
        undeclared_references: None,
    };
    server.admin().cache_create(&private).await.unwrap();
    server.admin().key_create("team", &narvault::api::KeyCreate::default()).await.unwrap();
    let token = server.token("alice", &["push:team", "push:main"]).await;
    token.http.push("team", path).await;
    token.http
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nars_of_public_caches_are_redirected_to_a_url_that_holds_for_a_while() {
    for server in redirecting(&[]).await {
        let alice = pusher(&server).await;
        let path = TestPath::new("thing", "hello");
        alice.push("main", &path).await;
        let url = format!("/main/{}", path.nar_url());

        let redirect = server.http().get(&url).await;

        assert_eq!(redirect.assert_status(302).header("cache-control"), "no-store");
        let location = redirect.header("location");
        assert!(location.contains("X-Amz-Expires=300"), "{location}");
        let fetched =
            reqwest::Client::builder().no_proxy().build().unwrap().get(location).send().await.unwrap();
        assert!(fetched.bytes().await.unwrap() == path.file);
        assert_eq!(server.http().head(&url).await.assert_status(200).header("location"), "");
        alice.get(&format!("/push{url}")).await.assert_status(200);
        server.http().get(&format!("/main/{}.narinfo", path.hash())).await.assert_status(200);
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nars_of_private_caches_are_redirected_only_if_that_is_wanted() {
    for (wanted, status) in [("false", 200), ("true", 302)] {
        for server in redirecting(&[("NARVAULT_NARS_REDIRECT_PRIVATE", wanted)]).await {
            let path = TestPath::new("thing", "hello");
            let alice = private_cache(&server, &path).await;

            alice.get(&format!("/team/{}", path.nar_url())).await.assert_status(status);

            server
                .http()
                .get(&format!("/team/{}", path.nar_url()))
                .await
                .assert_refused(401, "needs a token");
            server.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nar_of_a_private_cache_is_not_found_through_a_public_one() {
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let path = TestPath::new("thing", "hello");
    let alice = private_cache(&server, &path).await;

    for http in [&server.http(), &alice] {
        http.get(&format!("/main/{}", path.nar_url())).await.assert_refused(404, "no such object");
    }
    alice.head(&format!("/push/main/{}", path.nar_url())).await.assert_status(404);
    alice.put_narinfo("main", &path).await.assert_refused(422, "was not uploaded to this cache");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nix_follows_redirects() {
    let nix = require_nix!();
    for server in redirecting(&[]).await {
        let alice = nix.machine();
        alice.log_in(&server.token("alice", &["push:main"]).await.text);
        let path = alice.add_text("thing", "hello", &[]).await;
        alice.push(&server.push_url("main"), &[&path]).await.success();
        let mut bob = nix.machine();
        bob.trust(&server.public_key);

        bob.pull(&server.pull_url("main"), &[&path]).await.success();

        assert_eq!(bob.nar(&path).await, alice.nar(&path).await);
        server.stop().await;
    }
}
