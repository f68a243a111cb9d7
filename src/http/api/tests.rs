use super::*;

/// What clients rely on. Operations are added to this list, never taken from it.
const OPERATIONS: &[(&str, &str)] = &[
    ("post", "/api/v1/auth/claim"),
    ("get", "/api/v1/auth/whoami"),
    ("post", "/api/v1/auth/renew"),
    ("post", "/api/v1/caches"),
    ("get", "/api/v1/caches"),
    ("get", "/api/v1/caches/{cache}"),
    ("patch", "/api/v1/caches/{cache}"),
    ("delete", "/api/v1/caches/{cache}"),
    ("post", "/api/v1/caches/{cache}/keys"),
    ("get", "/api/v1/caches/{cache}/keys"),
    ("post", "/api/v1/caches/{cache}/missing"),
    ("post", "/api/v1/caches/{cache}/nars"),
    ("post", "/api/v1/caches/{cache}/nars/stored"),
    ("post", "/api/v1/caches/{cache}/publish"),
    ("post", "/api/v1/caches/{cache}/uploads"),
    ("get", "/api/v1/caches/{cache}/uploads/{id}"),
    ("delete", "/api/v1/caches/{cache}/uploads/{id}"),
    ("put", "/api/v1/caches/{cache}/uploads/{id}/parts/{number}"),
    ("post", "/api/v1/caches/{cache}/uploads/{id}/parts/{number}/url"),
    ("post", "/api/v1/caches/{cache}/uploads/{id}/complete"),
    ("get", "/api/v1/caches/{cache}/paths"),
    ("get", "/api/v1/caches/{cache}/paths/{hash}"),
    ("delete", "/api/v1/caches/{cache}/paths/{hash}"),
    ("post", "/api/v1/contributors"),
    ("get", "/api/v1/contributors"),
    ("get", "/api/v1/contributors/{name}"),
    ("patch", "/api/v1/contributors/{name}"),
    ("post", "/api/v1/contributors/{name}/keys"),
    ("delete", "/api/v1/contributors/{name}/keys/{key}"),
    ("post", "/api/v1/contributors/{name}/revoke-tokens"),
    ("post", "/api/v1/contributors/{name}/quarantine"),
    ("post", "/api/v1/contributors/{name}/restore"),
    ("post", "/api/v1/tokens/{id}/quarantine"),
    ("post", "/api/v1/tokens/{id}/restore"),
    ("post", "/api/v1/caches/{cache}/paths/{hash}/quarantine"),
    ("post", "/api/v1/caches/{cache}/paths/{hash}/restore"),
    ("get", "/api/v1/caches/{cache}/withdrawn"),
    ("get", "/api/v1/quarantines"),
    ("get", "/api/v1/quarantines/{quarantine}/paths"),
    ("post", "/api/v1/tokens"),
    ("get", "/api/v1/tokens"),
    ("get", "/api/v1/tokens/{id}"),
    ("post", "/api/v1/tokens/{id}/revoke"),
    ("post", "/api/v1/tokens/report"),
    ("get", "/api/v1/audit"),
    ("get", "/api/v1/vault"),
    ("post", "/api/v1/vault/unseal"),
    ("post", "/api/v1/vault/seal"),
    ("get", "/api/v1/version"),
    ("get", "/api/v1/openapi.json"),
    ("get", "/livez"),
    ("get", "/readyz"),
    ("get", "/metrics"),
    ("get", "/.well-known/jwks.json"),
];

#[test]
fn every_promised_operation_is_routed_and_documented() {
    // Two handlers at one address would panic here.
    let _ = router();

    let document = serde_json::to_value(openapi()).unwrap();

    for (method, path) in OPERATIONS {
        assert!(document["paths"][path].get(method).is_some(), "{method} {path}");
    }
}
