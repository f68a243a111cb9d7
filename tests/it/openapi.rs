//! The API's document: it is what is committed, its examples fit its schemas, and what it says of tokens is true.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::api::ApiServer;

/// Where the document lies, for readers of the repository and generators of clients.
const COMMITTED: &str = "docs/openapi.json";

/// Set to write the document anew.
const BLESS: &str = "NARVAULT_TEST_BLESS";

const METHODS: [&str; 6] = ["get", "head", "post", "put", "patch", "delete"];

fn document() -> Value {
    serde_json::to_value(narvault::http::openapi()).unwrap()
}

/// Method, path and operation of everything in the document.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in METHODS {
            if let Some(operation) = item.get(method) {
                found.push((method.to_uppercase(), path.clone(), operation.clone()));
            }
        }
    }
    found
}

/// Whether the document says that a token is needed.
fn needs_token(operation: &Value) -> bool {
    let requirements = operation["security"].as_array().cloned().unwrap_or_default();
    !requirements.is_empty() && requirements.iter().all(|requirement| requirement != &json!({}))
}

#[test]
fn the_committed_document_is_the_one_that_is_served() {
    let text = format!("{}\n", serde_json::to_string_pretty(&document()).unwrap());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(COMMITTED);
    #[expect(clippy::disallowed_methods, reason = "tests have no configuration; this is their one setting")]
    let bless = std::env::var_os(BLESS).is_some();
    if bless {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }

    let committed = std::fs::read_to_string(&path).unwrap_or_default();

    let differs = committed.lines().zip(text.lines()).position(|(old, new)| old != new);
    assert!(
        committed == text,
        "{COMMITTED} differs from the code from line {} on; if that is meant, run `{BLESS}=1 cargo test openapi` \
         and commit it",
        differs.unwrap_or(committed.lines().count().min(text.lines().count())) + 1,
    );
}

#[test]
fn every_operation_is_described_and_named_once() {
    let document = document();
    let mut ids = std::collections::BTreeSet::new();

    for (method, path, operation) in operations(&document) {
        let id = operation["operationId"].as_str().unwrap();
        assert!(ids.insert(id.to_owned()), "{id} twice");
        assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{method} {path}");
        let tags = operation["tags"].as_array().unwrap();
        let known = document["tags"].as_array().unwrap();
        assert_eq!(tags.len(), 1, "{id}");
        assert!(known.iter().any(|tag| tag["name"] == tags[0]), "{id}: {} is no tag", tags[0]);
        if needs_token(&operation) {
            assert!(operation["responses"].get("401").is_some(), "{id} says nothing of 401");
            assert!(operation["responses"].get("503").is_some(), "{id} says nothing of 503");
        }
        if operation.get("requestBody").is_some() && path.starts_with("/api/") {
            for status in ["400", "413", "415", "422"] {
                assert!(operation["responses"].get(status).is_some(), "{id} says nothing of {status}");
            }
        }
    }
}

#[test]
fn nothing_in_the_document_refers_to_what_is_not_there() {
    fn visit(whole: &Value, part: &Value) {
        if let Some(reference) = part.get("$ref").and_then(Value::as_str) {
            assert!(whole.pointer(&reference[1..]).is_some(), "{reference}");
        }
        match part {
            Value::Object(members) => members.values().for_each(|member| visit(whole, member)),
            Value::Array(items) => items.iter().for_each(|item| visit(whole, item)),
            _ => {}
        }
    }
    let document = document();

    visit(&document, &document);
}

#[test]
fn every_json_body_has_an_example_that_fits_its_schema() {
    let document = document();
    let mut count = 0;

    for (method, path, operation) in operations(&document) {
        let request = operation.get("requestBody").into_iter();
        let answers = operation["responses"].as_object().unwrap().values();
        for content in request.chain(answers).filter_map(|holder| holder.get("content")) {
            for (kind, content) in content.as_object().unwrap() {
                if !kind.ends_with("json") || content["schema"].get("$ref").is_none() {
                    continue;
                }
                let example = content.get("example").unwrap_or_else(|| panic!("{method} {path}: no example"));
                let schema = json!({
                    "$ref": content["schema"]["$ref"],
                    "components": document["components"],
                });
                let validator = jsonschema::validator_for(&schema).unwrap();
                let faults: Vec<_> = validator.iter_errors(example).map(|fault| fault.to_string()).collect();
                assert!(faults.is_empty(), "{method} {path}: {faults:?}");
                count += 1;
            }
        }
    }

    assert!(count > 60, "{count} examples");
}

#[tokio::test]
async fn a_stranger_gets_401_wherever_a_token_is_needed() {
    let server = ApiServer::start().await;
    let document = document();
    let mut count = 0;

    for (method, path, operation) in operations(&document) {
        if !needs_token(&operation) {
            continue;
        }
        for body in ["", "{", "{}"] {
            let path = path.replace("{cache}", "main").replace(['{', '}'], "");
            let request =
                server.request(&method, &path).body(body).header("content-type", "application/json");
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 401, "{method} {path} {body:?}");
            assert!(
                response.headers()["www-authenticate"]
                    .to_str()
                    .unwrap()
                    .starts_with("Basic realm=\"narvault\""),
                "{method} {path}"
            );
            if path.starts_with("/api/") {
                assert_eq!(response.headers()["content-type"], "application/problem+json", "{method} {path}");
            }
        }
        count += 1;
    }

    assert!(count > 20, "{count} operations");
    server.stop().await;
}

#[tokio::test]
async fn a_bad_token_gets_401_also_where_none_is_needed() {
    let server = ApiServer::start().await;

    for (method, path, operation) in operations(&document()) {
        let path = path.replace("{cache}", "main");
        if !path.starts_with("/api/") || path.ends_with("/version") || path.ends_with("/openapi.json") {
            continue;
        }
        let path = path.replace(['{', '}'], "");
        for credential in ["Bearer nonsense", "Basic bm9ib2R5Om5vbnNlbnNl", "Digest x", "Bearer nvt_a.b.c"] {
            let request = server.request(&method, &path).header("authorization", credential);
            let status = request.send().await.unwrap().status();
            assert_eq!(status, 401, "{credential}: {method} {path} ({})", operation["operationId"]);
        }
    }

    server.stop().await;
}
