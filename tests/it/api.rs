//! The JSON API over HTTP: who is answered what, in which order requests are refused, and how lists are paged.

use serde_json::{Value, json};

use crate::support::api::{Answer, ApiServer};

const UNKNOWN_ID: &str = "0195f2a1-5c1e-7d43-8a51-2f0c5f6f0b7e";
const UNKNOWN_HASH: &str = "b9sjp3fmd8wvq3ajsd8rwywl3sxa4pgx";

/// A contributor and a token of theirs.
async fn token_of(server: &ApiServer, admin: &str, name: &str, scope: &str) -> (String, String) {
    let body = json!({ "name": name, "kind": "person" });
    server.call("POST", "/api/v1/contributors", Some(admin), Some(body)).await;
    let body = json!({ "contributor": name, "scopes": [scope] });
    let issued = server.call("POST", "/api/v1/tokens", Some(admin), Some(body)).await;
    assert_eq!(issued.status, 201, "{issued:?}");
    let text = |field: &str| issued.body[field].as_str().unwrap().to_owned();
    (text("id"), text("token"))
}

#[tokio::test]
async fn a_claim_works_once_and_makes_an_admin() {
    let server = ApiServer::start().await;
    let admin = server.admin().await;

    let whoami = server.call("GET", "/api/v1/auth/whoami", Some(&admin), None).await;

    assert_eq!(whoami.status, 200);
    assert_eq!(whoami.body["scopes"], json!(["admin"]));
    assert_eq!(whoami.headers["cache-control"], "no-store");
    let other = json!({ "claim": "nvb_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" });
    let refused = server.call("POST", "/api/v1/auth/claim", None, Some(other)).await;
    assert_eq!(refused.refusal(), (401, "unauthenticated"));
    server.stop().await;
}

#[tokio::test]
async fn caches_are_made_shown_edited_and_deleted() {
    let server = ApiServer::start().await;
    let admin = server.admin().await;
    let call = async |method: &str, path: &str, body: Option<Value>| {
        server.call(method, path, Some(&admin), body).await
    };

    let made = call("POST", "/api/v1/caches", Some(json!({ "name": "team", "public": false }))).await;
    let key = call("POST", "/api/v1/caches/team/keys", Some(json!({}))).await;
    let shown = call("GET", "/api/v1/caches/team", None).await;
    let edited = call("PATCH", "/api/v1/caches/team", Some(json!({ "priority": 30 }))).await;
    let keys = call("GET", "/api/v1/caches/team/keys", None).await;
    let again = call("POST", "/api/v1/caches", Some(json!({ "name": "team", "public": true }))).await;
    let deleted = call("DELETE", "/api/v1/caches/team", None).await;
    let gone = call("GET", "/api/v1/caches/team", None).await;

    assert_eq!((made.status, made.body["public_keys"].clone()), (201, json!([])));
    assert_eq!(key.status, 201, "{key:?}");
    assert_eq!(shown.body["public_keys"], json!([key.body["public_key"]]));
    assert!(shown.body["push_url"].as_str().unwrap().ends_with("/push/team"), "{shown:?}");
    assert_eq!(edited.body["priority"], 30);
    assert_eq!(keys.body["items"][0]["state"], "active");
    assert_eq!(again.refusal().0, 409);
    assert_eq!(deleted.status, 204, "{deleted:?}");
    assert_eq!(gone.refusal(), (404, "not-found"));
    server.stop().await;
}

#[tokio::test]
async fn a_revoked_token_is_refused_from_the_next_request() {
    let server = ApiServer::start().await;
    let admin = server.admin().await;
    let (id, token) = token_of(&server, &admin, "alice", "push:main").await;
    assert_eq!(server.call("GET", "/api/v1/auth/whoami", Some(&token), None).await.status, 200);

    let path = format!("/api/v1/tokens/{id}/revoke");
    let revoked = server.call("POST", &path, Some(&admin), Some(json!({ "reason": "left" }))).await;

    assert_eq!(revoked.body, json!({ "revoked": [id] }));
    let refused = server.call("GET", "/api/v1/auth/whoami", Some(&token), None).await;
    assert_eq!(refused.refusal(), (401, "unauthenticated"));
    let again = server.call("POST", &path, Some(&admin), Some(json!({ "reason": "left" }))).await;
    assert_eq!((again.status, again.body), (200, json!({ "revoked": [] })));
    server.stop().await;
}

#[tokio::test]
async fn whoever_finds_a_token_may_kill_it() {
    let server = ApiServer::start().await;
    let admin = server.admin().await;
    let (id, token) = token_of(&server, &admin, "alice", "push:main").await;

    let reported = server.call("POST", "/api/v1/tokens/report", None, Some(json!({ "token": token }))).await;

    assert_eq!((reported.status, reported.body), (200, json!({ "revoked": [id] })));
    assert_eq!(server.call("GET", "/api/v1/auth/whoami", Some(&token), None).await.status, 401);
    server.stop().await;
}

#[tokio::test]
async fn guessing_is_limited_by_address() {
    let server = ApiServer::start().await;
    let guess = json!({ "claim": "nvb_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" });

    let mut limited = None;
    for _ in 0..200 {
        let answer = server.call("POST", "/api/v1/auth/claim", None, Some(guess.clone())).await;
        if answer.status == 429 {
            limited = Some(answer);
            break;
        }
    }

    let limited = limited.expect("a limit");
    assert_eq!(limited.refusal(), (429, "too-many-tries"));
    assert!(limited.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 0);
    server.stop().await;
}

#[tokio::test]
async fn credential_and_right_are_checked_before_the_body_is_looked_at() {
    let server = ApiServer::start().await;
    let admin = server.admin().await;
    let (_, alice) = token_of(&server, &admin, "alice", "push:main").await;

    for (method, path) in [
        ("POST", "/api/v1/caches"),
        ("PATCH", "/api/v1/caches/main"),
        ("POST", "/api/v1/caches/main/keys"),
        ("POST", "/api/v1/contributors"),
        ("PATCH", "/api/v1/contributors/alice"),
        ("POST", "/api/v1/contributors/alice/keys"),
        ("DELETE", "/api/v1/caches/main/paths/b9sjp3fmd8wvq3ajsd8rwywl3sxa4pgx"),
        ("POST", "/api/v1/caches/other/missing"),
        ("POST", "/api/v1/caches/other/nars/stored"),
    ] {
        for body in ["not JSON", "{}"] {
            let request = server.request(method, path).body(body);
            let stranger = Answer::read(request.send().await.unwrap()).await;
            assert_eq!(stranger.refusal().0, 401, "{method} {path}");
            let request = server.request(method, path).bearer_auth(&alice).body(body);
            let without_right = Answer::read(request.send().await.unwrap()).await;
            assert_eq!(without_right.refusal().0, 403, "{method} {path}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn what_is_unknown_and_what_cannot_be_are_answered_alike() {
    let server = ApiServer::start().await;
    let admin = server.admin().await;
    let (_, alice) = token_of(&server, &admin, "alice", "push:main").await;

    for (unknown, impossible) in [
        ("/api/v1/caches/none".to_owned(), "/api/v1/caches/NO_NE".to_owned()),
        ("/api/v1/caches/none/paths".to_owned(), "/api/v1/caches/%FF/paths".to_owned()),
        ("/api/v1/contributors/nobody".to_owned(), "/api/v1/contributors/No%20Body".to_owned()),
        (format!("/api/v1/tokens/{UNKNOWN_ID}"), "/api/v1/tokens/1".to_owned()),
    ] {
        for (token, expected) in [(None, 401), (Some(&alice), 403), (Some(&admin), 404)] {
            let token = token.map(String::as_str);
            let one = server.call("GET", &unknown, token, None).await;
            let other = server.call("GET", &impossible, token, None).await;
            assert_eq!(one.refusal().0, expected, "{unknown}");
            assert_eq!(one.refusal(), other.refusal(), "{impossible}");
            assert_eq!(one.body["detail"], other.body["detail"], "{impossible}");
        }
    }
    let path = format!("/api/v1/caches/main/paths/{UNKNOWN_HASH}");
    assert_eq!(server.call("GET", &path, Some(&admin), None).await.refusal(), (404, "not-found"));
    server.stop().await;
}

#[tokio::test]
async fn bodies_are_read_strictly_and_refusals_name_the_field() {
    let server = ApiServer::start().await;
    let admin = server.admin().await;
    let large = format!(r#"{{"name":"{}","public":true}}"#, "a".repeat(256 * 1024));
    let long_list = json!({ "hashes": vec![UNKNOWN_HASH; 10_001] }).to_string();
    let json_type = "application/json";
    let table = [
        ("/api/v1/caches", "text/plain", r#"{"name":"x","public":true}"#, 415, "application/json"),
        ("/api/v1/caches", "", r#"{"name":"x","public":true}"#, 415, "application/json"),
        ("/api/v1/caches", json_type, "", 400, "JSON"),
        ("/api/v1/caches", json_type, r#"{"name":"x","public":true"#, 400, "JSON"),
        ("/api/v1/caches", json_type, r#"{"name":"x"}"#, 400, "`public`"),
        ("/api/v1/caches", json_type, r#"{"name":"x","public":true,"pubic":1}"#, 400, "`pubic`"),
        ("/api/v1/caches", json_type, r#"{"name":"X","public":true}"#, 422, "name"),
        ("/api/v1/caches", json_type, r#"{"name":"api","public":true}"#, 422, "name"),
        ("/api/v1/caches", json_type, r#"{"name":"x","public":true,"prefix":"../x"}"#, 422, "prefix"),
        ("/api/v1/caches", json_type, &large, 413, "262144"),
        ("/api/v1/tokens", json_type, r#"{"contributor":"admin","scopes":["push"]}"#, 422, "scopes"),
        ("/api/v1/tokens", json_type, r#"{"contributor":"admin","scopes":["push:a push:b"]}"#, 422, "scopes"),
        ("/api/v1/tokens", json_type, r#"{"contributor":"admin","scopes":[]}"#, 422, "scopes"),
        ("/api/v1/tokens", json_type, r#"{"contributor":"","scopes":["admin"]}"#, 422, "contributor"),
        ("/api/v1/caches/main/keys", json_type, r#"{"import":"main:nonsense"}"#, 422, "import"),
        ("/api/v1/caches/main/keys", json_type, r#"{"import":"a:b","name":"c"}"#, 422, "name"),
        ("/api/v1/caches/main/missing", json_type, r#"{"hashes":["../../etc/passwd"]}"#, 422, "hashes"),
        ("/api/v1/caches/main/missing", json_type, &long_list, 422, "10000"),
        ("/api/v1/caches/main/nars/stored", json_type, r#"{"nar_hashes":["md5:x"]}"#, 422, "nar_hashes"),
    ];

    for (path, content_type, body, status, names) in table {
        let mut request = server.request("POST", path).bearer_auth(&admin).body(body.to_owned());
        if !content_type.is_empty() {
            request = request.header("content-type", content_type);
        }
        let refused = Answer::read(request.send().await.unwrap()).await;

        let start = &body[..body.len().min(80)];
        assert_eq!(refused.refusal().0, status, "{path} {start}: {refused:?}");
        let detail = refused.body["detail"].as_str().unwrap();
        assert!(detail.contains(names), "{path} {start}: {detail}");
    }
    server.stop().await;
}

#[tokio::test]
async fn queries_are_read_strictly_and_refusals_name_the_parameter() {
    let server = ApiServer::start().await;
    let admin = server.admin().await;

    for (path, status, names) in [
        ("/api/v1/caches?limt=1", 400, "limt"),
        ("/api/v1/caches?limit=one", 400, "limit"),
        ("/api/v1/caches?limit=1&limit=2", 400, "limit"),
        ("/api/v1/caches?limit=0", 422, "limit"),
        ("/api/v1/caches?limit=201", 422, "limit"),
        ("/api/v1/caches?cursor=!", 422, "cursor"),
        ("/api/v1/caches?order=up", 400, "order"),
        ("/api/v1/audit?outcome=maybe", 422, "outcome"),
        ("/api/v1/audit?since=yesterday", 422, "since"),
        ("/api/v1/tokens?issued_by=me", 422, "issued_by"),
        ("/api/v1/caches/main/paths?state=lost", 422, "state"),
    ] {
        let refused = server.call("GET", path, Some(&admin), None).await;

        assert_eq!(refused.refusal().0, status, "{path}: {refused:?}");
        assert!(refused.body["detail"].as_str().unwrap().contains(names), "{path}: {refused:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn lists_are_paged_without_gap_in_both_orders() {
    let server = ApiServer::start().await;
    let admin = server.admin().await;
    for at in 0..5 {
        let body = json!({ "name": format!("c{at}"), "kind": "ci" });
        assert_eq!(server.call("POST", "/api/v1/contributors", Some(&admin), Some(body)).await.status, 201);
    }

    let mut lists = Vec::new();
    for order in ["asc", "desc"] {
        let mut names = Vec::new();
        let mut cursor = String::new();
        loop {
            let path = format!("/api/v1/contributors?limit=2&order={order}{cursor}");
            let page = server.call("GET", &path, Some(&admin), None).await;
            let items = page.body["items"].as_array().unwrap();
            assert!(items.len() <= 2);
            names.extend(items.iter().map(|item| item["name"].as_str().unwrap().to_owned()));
            let Some(next) = page.body.get("next") else { break };
            cursor = format!("&cursor={}", next.as_str().unwrap());
        }
        lists.push(names);
    }

    assert_eq!(lists[0].len(), 6, "{lists:?}");
    lists[1].reverse();
    assert_eq!(lists[0], lists[1]);
    server.stop().await;
}

#[tokio::test]
async fn a_sealed_server_revokes_and_reads_but_mints_nothing() {
    let server = ApiServer::start().await;
    let admin = server.admin().await;
    let (id, token) = token_of(&server, &admin, "alice", "push:main").await;

    let sealed = server.call("POST", "/api/v1/vault/seal", Some(&admin), None).await;

    assert_eq!(sealed.body["state"], "sealed", "{sealed:?}");
    let ready = server.request("GET", "/readyz").send().await.unwrap();
    assert_eq!((ready.status().as_u16(), ready.text().await.unwrap().as_str()), (200, "ready, sealed\n"));
    for (path, body) in [
        ("/api/v1/tokens", json!({ "contributor": "alice", "scopes": ["push:main"] })),
        ("/api/v1/auth/renew", json!({})),
        ("/api/v1/caches/main/keys", json!({})),
    ] {
        let refused = server.call("POST", path, Some(&admin), Some(body)).await;
        assert_eq!(refused.refusal(), (503, "sealed"), "{path}");
        assert!(refused.headers.contains_key("retry-after"), "{path}");
    }
    let path = format!("/api/v1/tokens/{id}/revoke");
    let revoked = server.call("POST", &path, Some(&admin), Some(json!({ "reason": "leaked" }))).await;
    assert_eq!(revoked.status, 200);
    assert_eq!(server.call("GET", "/api/v1/auth/whoami", Some(&token), None).await.status, 401);
    let unsealed = server.call("POST", "/api/v1/vault/unseal", Some(&admin), Some(json!({}))).await;
    assert_eq!(unsealed.body["state"], "open", "{unsealed:?}");
    server.stop().await;
}

#[tokio::test]
async fn denials_are_in_the_audit_rows() {
    let server = ApiServer::start().await;
    let admin = server.admin().await;
    let (_, alice) = token_of(&server, &admin, "alice", "push:main").await;
    let denied = server.call("POST", "/api/v1/caches", Some(&alice), Some(json!({}))).await;
    assert_eq!(denied.refusal().0, 403);

    let rows = server.call("GET", "/api/v1/audit?outcome=denied&contributor=alice", Some(&admin), None).await;

    let row = &rows.body["items"][0];
    assert_eq!((&row["action"], &row["contributor"]), (&json!("cache-create"), &json!("alice")), "{rows:?}");
    assert_eq!(row["request_id"], denied.body["request_id"]);
    server.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_a_problem_below_api_and_a_line_elsewhere() {
    let server = ApiServer::start().await;
    let admin = server.admin().await;

    for path in ["/api/v1/none", "/api/v2/caches", "/api/x"] {
        assert_eq!(server.call("GET", path, None, None).await.refusal(), (404, "not-found"), "{path}");
    }
    let method = server.call("PUT", "/api/v1/caches", Some(&admin), None).await;
    assert_eq!(method.refusal(), (405, "method"));
    assert!(method.headers["allow"].to_str().unwrap().contains("POST"), "{method:?}");
    let elsewhere = server.request("GET", "/").send().await.unwrap();
    assert_eq!(elsewhere.status(), 404);
    assert!(elsewhere.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
    server.stop().await;
}

#[tokio::test]
async fn operators_and_readers_find_their_pages() {
    let server = ApiServer::start().await;
    let get = async |path: &str| {
        let response = server.request("GET", path).send().await.unwrap();
        let headers = response.headers().clone();
        (response.status().as_u16(), headers, response.text().await.unwrap())
    };

    assert_eq!(get("/livez").await.0, 200);
    assert_eq!(get("/readyz").await.2, "ready\n");
    let (_, _, metrics) = get("/metrics").await;
    assert!(metrics.contains("narvault_vault_open 1"), "{metrics}");
    assert!(metrics.contains("narvault_http_requests_total{"), "{metrics}");
    let (_, _, jwks) = get("/.well-known/jwks.json").await;
    let jwks: Value = serde_json::from_str(&jwks).unwrap();
    assert_eq!((&jwks["keys"][0]["kty"], &jwks["keys"][0]["crv"]), (&json!("OKP"), &json!("Ed25519")));
    assert!(jwks["keys"][0].get("d").is_none());
    let (_, headers, docs) = get("/docs").await;
    assert!(headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    assert!(docs.contains("Revoke a token") && !docs.contains("<script"));
    assert_eq!(get("/api/v1/version").await.0, 200);
    server.stop().await;
}
