//! One example of each wire type, made of the type itself, so that none can be wrong in form.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::openapi::{Content, OpenApi, Ref, RefOr};

use crate::api::*;

mod successions;

const CONTRIBUTOR_ID: &str = "0195f2a1-0d5b-7a6e-9c07-5b1f5e2d4c3b";
const TOKEN_ID: &str = "0195f2a1-5c1e-7d43-8a51-2f0c5f6f0b7e";
const CACHE_ID: &str = "0195f29f-e3a2-7b11-b0d4-8f6f1c2a3d4e";
const KEY_ID: &str = "0195f2a0-2a44-7c3d-9e55-6a7b8c9d0e1f";
const AUDIT_ID: &str = "0195f2a3-7788-7e9f-8a0b-1c2d3e4f5a6b";
const PATH_CURSOR: &str = "MDE5NWYyYTItMTEyMi03MzM0LTg0NTUtNjY3Nzg4OTlhYWJi";
const PUBLIC_KEY: &str = "main-k3x7qa-1:wq4pQdbZ6Zl2bY0CqJ6lQk0m1y2c6T6q3T8m5s9XHjY=";
const HELLO: &str = "/nix/store/b9sjp3fmd8wvq3ajsd8rwywl3sxa4pgx-hello-2.12.1";
const GLIBC: &str = "/nix/store/1rm6sr6ixxzipv5358x0cmaw8rs84g2j-glibc-2.38-44";
const NAR_HASH: &str = "sha256:1b1a0v8nkhdlxzyjk2qvpvl3kv5hsrl1lzpvx0k4vzvjqxs6r9hc";

const HELLO_FILE: &str = "0v1qq2b0xx5b9s8y0j3k4l5m6n7p8q9r0s1v2w3x4y5z6a7b8c9d.nar.xz";
const GLIBC_FILE: &str = "1b1a0v8nkhdlxzyjk2qvpvl3kv5hsrl1lzpvx0k4vzvjqxs6r9hc.nar.zst";
const NARINFO: &str = "\
StorePath: /nix/store/1rm6sr6ixxzipv5358x0cmaw8rs84g2j-glibc-2.38-44
URL: nar/1b1a0v8nkhdlxzyjk2qvpvl3kv5hsrl1lzpvx0k4vzvjqxs6r9hc.nar.zst
Compression: zstd
NarHash: sha256:0v1qq2b0xx5b9s8y0j3k4l5m6n7p8q9r0s1v2w3x4y5z6a7b8c9d
NarSize: 29986288
References: 1rm6sr6ixxzipv5358x0cmaw8rs84g2j-glibc-2.38-44
";

/// Puts the examples at every body of a type that has one.
pub(super) fn add(document: &mut OpenApi) {
    let examples = examples();
    for item in document.paths.paths.values_mut() {
        let operations =
            [&mut item.get, &mut item.put, &mut item.post, &mut item.patch, &mut item.delete, &mut item.head];
        for operation in operations.into_iter().flatten() {
            let bodies = operation.request_body.iter_mut().filter_map(|body| match body {
                RefOr::T(body) => Some(body.content.values_mut()),
                RefOr::Ref(_) => None,
            });
            let answers = operation.responses.responses.values_mut().filter_map(|response| match response {
                RefOr::T(response) => Some(response.content.values_mut()),
                RefOr::Ref(_) => None,
            });
            for content in bodies.flatten().chain(answers.flatten()) {
                fill(content, &examples);
            }
        }
    }
}

fn fill(content: &mut RefOr<Content>, examples: &BTreeMap<&'static str, Value>) {
    let RefOr::T(content) = content else { return };
    let Some(RefOr::Ref(Ref { ref_location, .. })) = &content.schema else { return };
    let name = ref_location.rsplit('/').next().unwrap_or_default();
    if content.example.is_none() {
        content.example = examples.get(name).cloned();
    }
}

fn log_openings() -> LogOpenings {
    let lines = format!(
        "cache team\npath {HELLO}\nnar-hash {NAR_HASH}\nnar-size 226560\nreferences {}\n",
        GLIBC.trim_start_matches("/nix/store/")
    );
    let opening =
        LogOpeningView { index: 17, salt: "q83vEjRWeJCrze8SNFZ4kA==".into(), lines, references: None };
    LogOpenings { items: vec![opening] }
}

fn examples() -> BTreeMap<&'static str, Value> {
    let upstream = Upstream {
        url: "https://cache.nixos.org".into(),
        public_keys: vec!["cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=".into()],
    };
    let cache = CacheView {
        id: CACHE_ID.into(),
        name: "main".into(),
        public: true,
        priority: 41,
        prefix: "main".into(),
        upstreams: vec![upstream],
        upstream_paths: UpstreamPaths::Store,
        undeclared_references: UndeclaredReferences::Record,
        public_keys: vec![PUBLIC_KEY.into()],
        pull_url: "https://cache.example.org/main".into(),
        push_url: "https://cache.example.org/push/main".into(),
        paths: 1834,
        bytes: 2_147_483_648,
        created_at: "2026-11-22T13:00:00.000Z".into(),
    };
    let key = KeyView {
        id: KEY_ID.into(),
        name: "main-k3x7qa-1".into(),
        public_key: PUBLIC_KEY.into(),
        state: "active".into(),
        imported: false,
        created_at: "2026-11-22T13:00:01.000Z".into(),
    };
    let contributor = ContributorView {
        id: CONTRIBUTOR_ID.into(),
        name: "alice".into(),
        kind: ContributorKind::Person,
        group: Some("platform".into()),
        suspended: false,
        public_keys: vec![],
        paths: 212,
        bytes: 734_003_200,
        created_at: "2026-11-22T13:05:00.000Z".into(),
    };
    let token = TokenView {
        id: TOKEN_ID.into(),
        contributor: "alice".into(),
        scopes: vec!["push:main".into()],
        note: Some("laptop".into()),
        issued_by: None,
        created_at: "2026-11-22T13:06:00.000Z".into(),
        expires_at: "2027-02-20T13:06:00.000Z".into(),
        last_used_at: Some("2026-11-23T08:12:45.000Z".into()),
        revoked_at: None,
        revoke_reason: None,
    };
    let summary = PathSummary {
        store_path: HELLO.into(),
        state: "published".into(),
        nar_size: 226_560,
        file_size: 50_096,
        contributor: "alice".into(),
        contributor_id: CONTRIBUTOR_ID.into(),
        token_id: TOKEN_ID.into(),
        keys: vec!["main-k3x7qa-1".into()],
        published_at: "2026-11-22T13:10:00.123Z".into(),
        changed_at: "2026-11-22T13:10:00.123Z".into(),
    };
    let audit = AuditView {
        id: AUDIT_ID.into(),
        at: "2026-11-22T13:06:00.000Z".into(),
        action: "token-issue".into(),
        outcome: "done".into(),
        contributor: Some("root".into()),
        token_id: Some(TOKEN_ID.into()),
        subject: TOKEN_ID.into(),
        address: Some("192.0.2.7".into()),
        client: Some("narvault/0.1.0".into()),
        request_id: Some("k3x7qa-1f".into()),
        detail: json!({ "contributor": "alice", "scopes": "push:main" }),
    };
    let rotation = RotationView {
        id: KEY_ID.into(),
        kind: "planned".into(),
        step: "wait".into(),
        old_key: Some("main-k3x7qa-1".into()),
        new_key: Some("main-k3x7qa-2".into()),
        paused: false,
        total: 1834,
        done: 1834,
        refused: 0,
        waiting_for: Some(
            "clients to forget narinfos that they remember without the new signature, until 2026-12-29T13:10:00.000Z"
                .into(),
        ),
        steps: vec![
            rotation_step("publish", "2026-11-22T13:00:00.000Z", true),
            rotation_step("resign", "2026-11-29T13:00:02.000Z", true),
            rotation_step("release", "2026-11-29T13:00:06.000Z", true),
            rotation_step("wait", "2026-11-29T13:10:00.000Z", true),
            rotation_step("done", "2026-12-29T13:10:00.000Z", false),
        ],
        started_at: "2026-11-22T13:00:00.000Z".into(),
        ended_at: None,
    };
    let unlogged = UnloggedSignature {
        place: "storage".into(),
        subject: "b9sjp3fmd8wvq3ajsd8rwywl3sxa4pgx-hello-2.12.1".into(),
        signature: "main-k3x7qa-1:8Qe0…Bw==".into(),
        found_at: "2026-11-22T13:20:00.000Z".into(),
    };
    let page_of_paths = Page { items: vec![summary], next: Some(PATH_CURSOR.into()) };
    let mut examples = BTreeMap::from([
        ("AuditView", value(&audit)),
        ("LogOpenings", value(&log_openings())),
        ("CacheCreate", json!({ "name": "main", "public": true })),
        ("CacheEdit", json!({ "public": false, "priority": 30 })),
        ("CacheView", value(&cache)),
        ("ClaimRequest", value(&ClaimRequest { claim: "nvb_mfrggzdfmztwq2lkmfrggzdfmztwq2lk".into() })),
        (
            "ContributorCreate",
            value(&ContributorCreate {
                name: "alice".into(),
                kind: ContributorKind::Person,
                group: Some("platform".into()),
            }),
        ),
        (
            "ContributorErased",
            value(&ContributorErased {
                name: "erased-5b1f5e2d4c3b".into(),
                audit_rows: 41,
                log_details: 377,
            }),
        ),
        ("ContributorEdit", value(&ContributorEdit { suspended: Some(true), group: None })),
        ("ContributorKeyAdd", value(&ContributorKeyAdd { public_key: "alice-1:0MRGm4…".into() })),
        ("ContributorView", value(&contributor)),
        ("JwkSet", value(&jwks())),
        ("KeyCompromise", value(&KeyCompromise { reason: "the build machine was broken into".into() })),
        ("KeyCreate", json!({})),
        ("KeyView", value(&key)),
        ("MissingAnswer", value(&MissingAnswer { missing: vec![hash(HELLO)], upstream: vec![] })),
        ("MissingRequest", value(&MissingRequest { hashes: vec![hash(HELLO), hash(GLIBC)] })),
        (
            "NarsStored",
            value(&NarsStored {
                results: vec![
                    NarStored { file: HELLO_FILE.into(), refused: None },
                    NarStored { file: GLIBC_FILE.into(), refused: Some(refused()) },
                ],
            }),
        ),
        ("Page_AuditView", value(&page(audit))),
        ("Page_CacheView", value(&page(cache))),
        ("Page_ContributorView", value(&page(contributor))),
        ("Page_KeyView", value(&page(key))),
        ("Page_PathSummary", value(&page_of_paths)),
        ("Page_TokenView", value(&page(token.clone()))),
        ("Page_UnloggedSignature", value(&page(unlogged))),
        (
            "PartUrl",
            value(&PartUrl {
                url: "https://s3.example.org/bucket/…?partNumber=1&uploadId=…&X-Amz-Signature=…".into(),
                expires_at: "2026-11-22T13:25:00.000Z".into(),
            }),
        ),
        ("PartUrlRequest", value(&PartUrlRequest { size_bytes: part().size_bytes, sha256: part().sha256 })),
        ("PathDelete", value(&PathDelete { reason: "holds a password".into() })),
        (
            "PathDeleted",
            value(&PathDeleted {
                store_path: HELLO.into(),
                gone: true,
                file_shared_with: vec![],
                referrers: vec![],
            }),
        ),
        ("PathView", value(&path())),
        ("StoredAnswer", value(&StoredAnswer { nars: vec![stored_nar()] })),
        ("StoredRequest", value(&StoredRequest { nar_hashes: vec![stored_nar().nar_hash] })),
        (
            "PublishAnswer",
            value(&PublishAnswer {
                results: vec![
                    PathPublished {
                        store_path: GLIBC.into(),
                        outcome: PublishOutcome::New,
                        keys: vec!["main-k3x7qa-1".into()],
                        refused: None,
                    },
                    PathPublished {
                        store_path: HELLO.into(),
                        outcome: PublishOutcome::Refused,
                        keys: vec![],
                        refused: Some(refused()),
                    },
                ],
            }),
        ),
        (
            "QuarantineCreate",
            value(&QuarantineCreate {
                reason: "runner broken into".into(),
                since: Some("2026-11-20T00:00:00Z".into()),
                dependents: false,
                keep_issued: false,
            }),
        ),
        ("QuarantineOutcome", value(&quarantine_outcome())),
        ("RestoreCreate", value(&RestoreCreate { reason: "false alarm".into() })),
        (
            "RestoreOutcome",
            value(&RestoreOutcome {
                id: AUDIT_ID.into(),
                kind: "contributor".into(),
                subject: "alice".into(),
                changed: true,
                finished: true,
                paths_left: 0,
                narinfos_left: 0,
                restored: 211,
                left: 1,
                left_paths: vec![LeftPath {
                    cache: "main".into(),
                    store_path: HELLO.into(),
                    why: "superseded".into(),
                }],
            }),
        ),
        ("Page_QuarantineView", value(&page(quarantine()))),
        (
            "Page_WithdrawalView",
            value(&page(WithdrawalView {
                cache: "main".into(),
                store_path: HELLO.into(),
                cause: "evidence".into(),
                withdrawn_at: "2026-11-23T09:00:01.000Z".into(),
                ended: None,
            })),
        ),
        (
            "Page_WithdrawnPath",
            value(&page(WithdrawnPath {
                store_path: HELLO.into(),
                nar_hash: NAR_HASH.into(),
                withdrawn_at: "2026-11-23T09:00:01.000Z".into(),
            })),
        ),
        (
            "PublicKeysView",
            value(&PublicKeysView {
                cache: "main".into(),
                pull_url: "https://cache.example.org/main".into(),
                public_keys: vec![PUBLIC_KEY.into()],
            }),
        ),
        ("PublishRequest", value(&PublishRequest { narinfos: vec![NARINFO.into()] })),
        ("RevokeRequest", value(&RevokeRequest { reason: "laptop lost".into(), keep_issued: false })),
        ("RotationCreate", value(&RotationCreate { wait_days: Some(30), ..RotationCreate::default() })),
        ("RotationEdit", value(&RotationEdit { paused: true })),
        ("RotationView", value(&rotation)),
        ("Revoked", value(&Revoked { revoked: vec![TOKEN_ID.into()] })),
        (
            "TokenCreate",
            value(&TokenCreate {
                contributor: "alice".into(),
                scopes: vec!["push:main".into()],
                expires_in_seconds: Some(7_776_000),
                note: Some("laptop".into()),
            }),
        ),
        (
            "TokenIssued",
            value(&TokenIssued {
                id: TOKEN_ID.into(),
                token: "nvt_eyJhbGciOi….eyJpc3MiOi….MEUCIQDx…".into(),
                contributor: "alice".into(),
                scopes: vec!["push:main".into()],
                expires_at: "2027-02-20T13:06:00.000Z".into(),
            }),
        ),
        ("TokenRenew", value(&TokenRenew { expires_in_seconds: Some(2_592_000) })),
        ("TokenReport", value(&TokenReport { token: "nvt_eyJhbGciOi….eyJpc3MiOi….MEUCIQDx…".into() })),
        ("TokenView", value(&token)),
        (
            "SlotCreate",
            value(&SlotCreate {
                passphrase: Some("correct horse battery staple".into()),
                ..SlotCreate::default()
            }),
        ),
        (
            "PassphraseReplace",
            value(&PassphraseReplace {
                former: "correct horse battery staple".into(),
                new: "another horse with another battery".into(),
            }),
        ),
        (
            "SlotAdded",
            value(&SlotAdded {
                id: KEY_ID.into(),
                kind: "shamir".into(),
                kms_key: None,
                created_at: "2026-11-22T13:00:00.000Z".into(),
                shares: Some(SHARE_COUNT),
                share_texts: vec!["nvs1-agocoaoo…".into(), "nvs1-agocoaoo…".into(), "nvs1-agocoaoo…".into()],
            }),
        ),
        ("ShareCount", value(&SHARE_COUNT)),
        ("GatheredSharesView", value(&gathered_shares())),
        ("HandedInView", value(&gathered_shares().handed_in[0])),
        (
            "UnsealRequest",
            value(&UnsealRequest {
                passphrase: Some("correct horse battery staple".into()),
                ..UnsealRequest::default()
            }),
        ),
        ("SlotView", value(&slot())),
        (
            "UploadComplete",
            value(&UploadComplete { file: HELLO_FILE.into(), file_size_bytes: 20_971_520, parts: 2 }),
        ),
        (
            "UploadOpen",
            value(&UploadOpen {
                nar_hash: NAR_HASH.into(),
                compression: "zstd".into(),
                part_size_bytes: Some(16_777_216),
            }),
        ),
        ("UploadPart", value(&part())),
        (
            "UploadView",
            value(&UploadView {
                id: TOKEN_ID.into(),
                part_size_bytes: 16_777_216,
                expires_at: "2026-11-23T13:10:00.000Z".into(),
                parts: vec![part()],
                direct: false,
            }),
        ),
        (
            "VaultView",
            value(&VaultView {
                state: "open".into(),
                sealed_by_hand: false,
                kms_wait: None,
                shares: Vec::new(),
                slots: vec![slot()],
                root_version: 1,
                kek_version: 2,
                rows_behind: 3,
                kek_rotation: Some(kek_rotation()),
            }),
        ),
        ("KekRotationView", value(&kek_rotation())),
        (
            "KmsWaitView",
            value(&KmsWaitView {
                key: "alias/narvault".into(),
                since: "2026-11-22T13:10:00.000Z".into(),
                said: "KMS cannot answer now: status 503".into(),
            }),
        ),
        (
            "RootRotate",
            value(&RootRotate {
                passphrases: vec!["correct horse battery staple".into()],
                key_files: Vec::new(),
                drop_slots: vec![KEY_ID.into()],
                with_kek: true,
            }),
        ),
        (
            "VersionView",
            value(&VersionView {
                version: env!("CARGO_PKG_VERSION").into(),
                cluster_id: "k3x7qa2m5b9d4f6h".into(),
            }),
        ),
        ("DeliveryView", value(&delivery())),
        ("Page_DeliveryView", value(&page(delivery()))),
        ("Page_WebhookView", value(&page(webhook()))),
        (
            "WebhookCreate",
            value(&WebhookCreate {
                url: "https://hooks.example.org/narvault".into(),
                events: Some(vec!["path.conflict".into(), "token.revoked".into()]),
                note: Some("the team's chat".into()),
            }),
        ),
        (
            "WebhookCreated",
            value(&WebhookCreated {
                webhook: webhook(),
                secret: "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDqKTJYQ9GwXs=".into(),
            }),
        ),
        ("WebhookEdit", value(&WebhookEdit { paused: Some(true), ..WebhookEdit::default() })),
        ("WebhookView", value(&webhook())),
        (
            "Whoami",
            value(&Whoami {
                contributor: "alice".into(),
                token_id: TOKEN_ID.into(),
                scopes: vec!["push:main".into()],
                expires_at: "2027-02-20T13:06:00.000Z".into(),
            }),
        ),
    ]);
    examples.extend(successions::examples());
    examples
}

fn webhook() -> WebhookView {
    WebhookView {
        id: KEY_ID.into(),
        url: "https://hooks.example.org/narvault".into(),
        events: vec!["path.conflict".into(), "token.revoked".into()],
        note: Some("the team's chat".into()),
        paused: false,
        waiting: 0,
        given_up: 0,
        dropped: 0,
        delivered_at: Some("2026-11-22T13:10:01.000Z".into()),
        failing_since: None,
        created_at: "2026-11-22T13:00:00.000Z".into(),
    }
}

fn delivery() -> DeliveryView {
    DeliveryView {
        id: AUDIT_ID.into(),
        event_id: TOKEN_ID.into(),
        event: "path.conflict".into(),
        state: DeliveryState::Waiting,
        attempts: 2,
        status: Some(500),
        error: Some("answered with status 500".into()),
        created_at: "2026-11-22T13:10:00.000Z".into(),
        attempted_at: Some("2026-11-22T13:10:06.000Z".into()),
        next_attempt_at: Some("2026-11-22T13:10:14.000Z".into()),
        finished_at: None,
    }
}

fn quarantine() -> QuarantineView {
    QuarantineView {
        id: AUDIT_ID.into(),
        kind: "contributor".into(),
        subject: "alice".into(),
        state: "standing".into(),
        since: Some("2026-11-20T00:00:00.000Z".into()),
        reason: "runner broken into".into(),
        dependents: false,
        keep_issued: false,
        begun_at: "2026-11-23T09:00:00.000Z".into(),
        restore_reason: None,
        restored_at: None,
    }
}

fn quarantine_outcome() -> QuarantineOutcome {
    let path = |store_path: &str| CachePath { cache: "main".into(), store_path: store_path.into() };
    QuarantineOutcome {
        id: Some(AUDIT_ID.into()),
        kind: "contributor".into(),
        subject: "alice".into(),
        changed: true,
        finished: true,
        paths_left: 0,
        narinfos_left: 0,
        tokens: vec![TOKEN_ID.into()],
        evidence: 214,
        paths: 1,
        withdrawn: vec![path(GLIBC)],
        kept: None,
        dependents: 1,
        dependent_paths: vec![path(HELLO)],
    }
}

fn rotation_step(step: &str, at: &str, has_begun: bool) -> RotationStepView {
    RotationStepView { step: step.into(), at: at.into(), has_begun }
}

fn part() -> UploadPart {
    UploadPart {
        number: 1,
        size_bytes: 16_777_216,
        sha256: "47c240929210269cc8d528b6df9327447d56c4cb063f86c79977e0a310d3701c".into(),
    }
}

fn stored_nar() -> StoredNar {
    StoredNar {
        nar_hash: NAR_HASH.into(),
        file: HELLO_FILE.into(),
        compression: "xz".into(),
        file_size_bytes: 50_264,
    }
}

fn refused() -> Refused {
    Refused {
        kind: "urn:narvault:problem:rejected".into(),
        status: 422,
        detail:
            "the file's SHA-256 is another one than its name says; it was damaged on its way, or misnamed"
                .into(),
        retry_after_seconds: None,
    }
}

fn path() -> PathView {
    PathView {
        store_path: HELLO.into(),
        state: "published".into(),
        nar_hash: NAR_HASH.into(),
        nar_size: 226_560,
        references: vec![GLIBC.into(), HELLO.into()],
        deriver: None,
        ca: None,
        url: format!("nar/{HELLO_FILE}"),
        file_size: 50_096,
        signatures: vec![SignatureView {
            key: "main-k3x7qa-1".into(),
            signature: "main-k3x7qa-1:8Qe0…Bw==".into(),
            log_index: Some(1833),
        }],
        evidence: vec![EvidenceView {
            kind: "contributor".into(),
            source: "alice".into(),
            contributor_id: Some(CONTRIBUTOR_ID.into()),
            token_id: Some(TOKEN_ID.into()),
            at: "2026-11-22T13:10:00.123Z".into(),
            void: false,
        }],
        conflicts: vec![],
        history: vec![PathActView {
            log_index: 1833,
            event: "sign".into(),
            at: "2026-11-22T13:10:00.123Z".into(),
            key: Some("main-k3x7qa-1".into()),
            contributor: Some("alice".into()),
            contributor_id: Some(CONTRIBUTOR_ID.into()),
            token_id: Some(TOKEN_ID.into()),
            address: Some("192.0.2.7".into()),
            client: Some("curl/8.4.0 Nix/2.34.1".into()),
            reason: None,
        }],
        undeclared_references: vec![],
        unfound_references: vec![],
        published_at: "2026-11-22T13:10:00.123Z".into(),
        changed_at: "2026-11-22T13:10:00.123Z".into(),
    }
}

fn jwks() -> JwkSet {
    // The key of RFC 8037, appendix A.
    JwkSet {
        keys: vec![Jwk {
            kty: "OKP".into(),
            crv: "Ed25519".into(),
            x: "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo".into(),
            kid: "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k".into(),
            usage: "sig".into(),
            alg: "EdDSA".into(),
        }],
    }
}

fn page<T>(item: T) -> Page<T> {
    Page { items: vec![item], next: None }
}

fn hash(store_path: &str) -> String {
    let base_name = store_path.rsplit('/').next().unwrap_or_default();
    base_name.split('-').next().unwrap_or_default().to_owned()
}

fn kek_rotation() -> KekRotationView {
    KekRotationView {
        kek_version: 2,
        state: "rewrap".into(),
        total: 12,
        done: 9,
        damaged: Vec::new(),
        started_at: "2026-11-22T13:00:00.000Z".into(),
        ended_at: None,
    }
}

fn slot() -> SlotView {
    SlotView {
        id: KEY_ID.into(),
        kind: "passphrase".into(),
        kms_key: None,
        created_at: "2026-11-22T13:00:00.000Z".into(),
        shares: None,
    }
}

const SHARE_COUNT: ShareCount = ShareCount { threshold: 2, of: 3 };

fn gathered_shares() -> GatheredSharesView {
    let alice = HandedInView { contributor: "alice".into(), at: "2026-11-22T13:06:00.000Z".into() };
    GatheredSharesView {
        slot: KEY_ID.into(),
        needed: SHARE_COUNT,
        handed_in: vec![alice],
        until: "2026-11-22T13:21:00.000Z".into(),
    }
}

fn value(example: &impl Serialize) -> Value {
    serde_json::to_value(example).expect("fields with text names and plain values: declared in `api`")
}
