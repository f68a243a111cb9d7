//! Key management services: one in this process, and the protocol server moto where `NARVAULT_TEST_KMS` names it. Both
//! stand behind a door that can be told to misbehave, and that is as strict about disabled and deleted keys as AWS is,
//! which moto is not.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use aws_sdk_kms::config::{BehaviorVersion, Builder, Region};
use aws_sdk_kms::types::KeyState;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use data_encoding::BASE64;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::variable;

/// Runs each test with each service on each database.
macro_rules! on_each_kms {
    ($(async fn $name:ident($kms:ident: TestKms, $site:ident: Site) $body:block)+) => {$(
        mod $name {
            use super::*;
            use crate::support::server::Backend;

            async fn promise($kms: TestKms, $site: Site) $body

            async fn run(kms: Option<TestKms>, backend: Backend) {
                let (Some(kms), Some(site)) = (kms, Site::new(backend).await) else {
                    println!("skipped: {backend:?} or the KMS is not here");
                    return;
                };
                promise(kms, site).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn here_on_sqlite() {
                run(Some(TestKms::here().await), Backend::SQLITE_DISK).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn here_on_postgres() {
                run(Some(TestKms::here().await), Backend::POSTGRES_DISK).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn moto_on_sqlite() {
                run(TestKms::moto().await, Backend::SQLITE_DISK).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn moto_on_postgres() {
                run(TestKms::moto().await, Backend::POSTGRES_DISK).await;
            }
        }
    )+};
}
pub(crate) use on_each_kms;

/// How the door behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mood {
    Open,
    /// Answers 503, as a service that is overloaded does.
    Away,
    /// Takes requests and never answers.
    Silent,
    /// Refuses with this code and message.
    Refusing(&'static str, &'static str),
    /// Decrypts everything to other bytes of this length.
    Lying(usize),
}

/// A service and its door.
pub struct TestKms {
    /// For `vault.kms.endpoint`.
    pub endpoint: String,
    door: Arc<Door>,
}

struct Door {
    service: Service,
    mood: Mutex<Mood>,
    /// Keys that are gone for good.
    deleted: Mutex<Vec<String>>,
    /// What was encrypted, in clear.
    heard: Mutex<Vec<Vec<u8>>>,
}

enum Service {
    Here(Mutex<Keys>),
    Moto { url: String, client: aws_sdk_kms::Client },
}

#[derive(Default)]
struct Keys {
    states: BTreeMap<String, KeyState>,
    aliases: BTreeMap<String, String>,
}

impl TestKms {
    /// One in this process.
    pub async fn here() -> Self {
        Self::before(Service::Here(Mutex::default())).await
    }

    /// The real one; `None` where there is none.
    pub async fn moto() -> Option<Self> {
        let url = variable("NARVAULT_TEST_KMS")?;
        let credentials = aws_credential_types::Credentials::new("test", "test", None, None, "test");
        let config = Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .credentials_provider(credentials)
            .endpoint_url(&url);
        let client = aws_sdk_kms::Client::from_conf(config.build());
        Some(Self::before(Service::Moto { url, client }).await)
    }

    async fn before(service: Service) -> Self {
        let door = Arc::new(Door {
            service,
            mood: Mutex::new(Mood::Open),
            deleted: Mutex::default(),
            heard: Mutex::default(),
        });
        let router = Router::new().fallback(answer).with_state(door.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { endpoint, door }
    }

    pub fn set_mood(&self, mood: Mood) {
        *self.door.mood.lock().unwrap() = mood;
    }

    /// A new key; its ARN.
    pub async fn key(&self) -> String {
        match &self.door.service {
            Service::Here(keys) => {
                let arn = format!("arn:aws:kms:{REGION}:123456789012:key/{}", Uuid::now_v7());
                keys.lock().unwrap().states.insert(arn.clone(), KeyState::Enabled);
                arn
            }
            Service::Moto { client, .. } => {
                client.create_key().send().await.unwrap().key_metadata.unwrap().arn.unwrap()
            }
        }
    }

    /// Lets an alias lead to a key, wherever it led before.
    pub async fn alias(&self, alias: &str, key: &str) {
        match &self.door.service {
            Service::Here(keys) => {
                keys.lock().unwrap().aliases.insert(alias.to_owned(), key.to_owned());
            }
            Service::Moto { client, .. } => {
                let _ = client.delete_alias().alias_name(alias).send().await;
                client.create_alias().alias_name(alias).target_key_id(key).send().await.unwrap();
            }
        }
    }

    pub async fn disable(&self, key: &str) {
        match &self.door.service {
            Service::Here(keys) => keys.lock().unwrap().set(key, KeyState::Disabled),
            Service::Moto { client, .. } => {
                client.disable_key().key_id(id(key)).send().await.unwrap();
            }
        }
    }

    pub async fn enable(&self, key: &str) {
        match &self.door.service {
            Service::Here(keys) => keys.lock().unwrap().set(key, KeyState::Enabled),
            Service::Moto { client, .. } => {
                client.enable_key().key_id(id(key)).send().await.unwrap();
            }
        }
    }

    pub async fn schedule_deletion(&self, key: &str) {
        match &self.door.service {
            Service::Here(keys) => keys.lock().unwrap().set(key, KeyState::PendingDeletion),
            Service::Moto { client, .. } => {
                let asked = client.schedule_key_deletion().key_id(id(key)).pending_window_in_days(7);
                asked.send().await.unwrap();
            }
        }
    }

    /// As when the waiting time is over.
    pub fn delete(&self, key: &str) {
        self.door.deleted.lock().unwrap().push(key.to_owned());
    }

    /// What it was asked to encrypt so far, in clear.
    pub fn heard(&self) -> Vec<Vec<u8>> {
        self.door.heard.lock().unwrap().clone()
    }

    /// Settings of a server that opens its vault by `key`.
    pub fn settings(&self, key: &str) -> Vec<(&'static str, String)> {
        vec![
            ("NARVAULT_VAULT_KMS_KEY_ID", key.to_owned()),
            ("NARVAULT_VAULT_KMS_ENDPOINT", self.endpoint.clone()),
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
            ("AWS_REGION", REGION.to_owned()),
        ]
    }
}

impl Keys {
    fn set(&mut self, key: &str, state: KeyState) {
        self.states.insert(key.to_owned(), state);
    }

    fn find(&self, key_id: &str) -> Option<(String, KeyState)> {
        let target = self.aliases.get(key_id).map_or(key_id, String::as_str);
        let found =
            self.states.iter().find(|(arn, _)| *arn == target || arn.ends_with(&format!("/{target}")));
        found.map(|(arn, state)| (arn.clone(), state.clone()))
    }
}

impl Door {
    /// Which key is meant, and how it stands.
    async fn find(&self, key_id: &str) -> Option<(String, KeyState)> {
        let (arn, state) = match &self.service {
            Service::Here(keys) => keys.lock().unwrap().find(key_id)?,
            Service::Moto { client, .. } => {
                let described = client.describe_key().key_id(key_id).send().await.ok()?;
                let metadata = described.key_metadata?;
                (metadata.arn?, metadata.key_state?)
            }
        };
        (!self.deleted.lock().unwrap().contains(&arn)).then_some((arn, state))
    }
}

/// moto takes no ARN where the state of a key changes.
fn id(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap()
}

async fn answer(State(door): State<Arc<Door>>, headers: HeaderMap, body: Bytes) -> Response {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
    let asked: Value = serde_json::from_slice(&body).unwrap();
    let mood = door.mood.lock().unwrap().clone();
    match mood {
        Mood::Open | Mood::Lying(_) => {}
        Mood::Away => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Mood::Silent => std::future::pending().await,
        Mood::Refusing(code, message) => return refused(code, message),
    }
    if let Some(plaintext) = asked["Plaintext"].as_str() {
        door.heard.lock().unwrap().push(BASE64.decode(plaintext.as_bytes()).unwrap());
    }
    let key_id = asked["KeyId"].as_str().expect("no key is named");
    assert_eq!(asked["EncryptionContext"]["app"], "narvault", "{asked}");
    let (arn, state) = match door.find(key_id).await {
        None => return refused("NotFoundException", &format!("Key '{key_id}' does not exist")),
        Some(found) => found,
    };
    match state {
        KeyState::Enabled => {}
        KeyState::Disabled => return refused("DisabledException", &format!("{arn} is disabled.")),
        KeyState::PendingDeletion => {
            return refused("KMSInvalidStateException", &format!("{arn} is pending deletion."));
        }
        other => panic!("{other:?}"),
    }
    if let (Mood::Lying(length), "TrentService.Decrypt") = (mood, target) {
        let plaintext = BASE64.encode(&vec![7; length]);
        return axum::Json(json!({ "Plaintext": plaintext, "KeyId": arn })).into_response();
    }
    match &door.service {
        Service::Here(_) => answer_here(target, &arn, &asked),
        Service::Moto { url, .. } => forwarded(url, headers, body).await,
    }
}

async fn forwarded(url: &str, mut headers: HeaderMap, body: Bytes) -> Response {
    headers.remove("host");
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = http.post(url).headers(headers).body(body).send().await.unwrap();
    let status = answer.status();
    (status, [("content-type", "application/x-amz-json-1.1")], answer.bytes().await.unwrap()).into_response()
}

/// A ciphertext here is what was asked, with a hash that tells whether it was altered.
fn answer_here(target: &str, arn: &str, asked: &Value) -> Response {
    let context: HashMap<String, String> =
        serde_json::from_value(asked["EncryptionContext"].clone()).unwrap();
    let context: BTreeMap<_, _> = context.into_iter().collect();
    match target {
        "TrentService.Encrypt" => {
            let sealed = json!([arn, context, asked["Plaintext"]]).to_string();
            let blob = [Sha256::digest(&sealed).as_slice(), sealed.as_bytes()].concat();
            axum::Json(json!({ "CiphertextBlob": BASE64.encode(&blob), "KeyId": arn })).into_response()
        }
        "TrentService.Decrypt" => {
            let blob = BASE64.decode(asked["CiphertextBlob"].as_str().unwrap().as_bytes()).unwrap();
            let Some((hash, sealed)) = blob.split_at_checked(32) else {
                return refused("InvalidCiphertextException", "");
            };
            if Sha256::digest(sealed).as_slice() != hash {
                return refused("InvalidCiphertextException", "");
            }
            let sealed: Value = serde_json::from_slice(sealed).unwrap();
            if sealed[0] != arn {
                return refused("IncorrectKeyException", "The key ID in the request does not identify a CMK");
            }
            if sealed[1] != json!(context) {
                return refused("InvalidCiphertextException", "");
            }
            axum::Json(json!({ "Plaintext": sealed[2], "KeyId": arn })).into_response()
        }
        other => panic!("{other} is not asked by narvault"),
    }
}

fn refused(code: &str, message: &str) -> Response {
    let body = json!({ "__type": code, "message": message }).to_string();
    (StatusCode::BAD_REQUEST, [("content-type", "application/x-amz-json-1.1")], body).into_response()
}

const REGION: &str = "us-east-1";
