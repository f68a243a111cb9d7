//! Other binary caches, asked over the network whether they hold a path: the one room that reads somebody else's
//! cache.
//!
//! Never believes an answer: a narinfo counts only with a valid signature under a key that the caller names. Never
//! waits long, and leaves a cache that does not answer alone for a while.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use tokio::sync::Semaphore;

use crate::nix::narinfo::{NARINFO_SIZE_BYTES_MAX, SignedClaim};
use crate::nix::signature::{PublicKey, Signature};
use crate::nix::store_path::StorePathHash;

/// What a cache says of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It holds the path, by a narinfo that a trusted key signed: the claim, with that one signature.
    Holds(SignedClaim),
    /// It does not, or only with signatures that nobody here trusts.
    Lacks,
    /// Nobody knows: no answer, or none that is a binary cache's.
    Silent,
}

/// Asks other caches, so many at once. Holds no state but who was silent a moment ago.
pub struct Upstreams {
    http: reqwest::Client,
    places: Semaphore,
    silent_until: Mutex<HashMap<String, Instant>>,
}

impl Upstreams {
    /// Opens no connection yet.
    pub fn new() -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("narvault/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::limited(REDIRECTS_MAX))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .build()?;
        Ok(Self { http, places: Semaphore::new(QUESTIONS_AT_ONCE), silent_until: Mutex::default() })
    }

    /// Asks the cache at `url` for a path. Only signatures under `keys` count.
    pub async fn ask(&self, url: &str, keys: &[PublicKey], hash: StorePathHash) -> Answer {
        if self.is_silent(url) {
            return Answer::Silent;
        }
        let Ok(_place) = self.places.acquire().await else { return Answer::Silent };
        match self.narinfo(url, hash).await {
            Ok(None) => Answer::Lacks,
            Ok(Some(body)) => match trusted(&body, keys, hash) {
                Some(signed) => Answer::Holds(signed),
                None => Answer::Lacks,
            },
            Err(error) => {
                tracing::warn!(url, error = &error as &dyn std::error::Error, "an upstream does not answer");
                if error.is_connect() || error.is_timeout() {
                    let mut silent = self.silent_until.lock().unwrap_or_else(PoisonError::into_inner);
                    silent.insert(url.to_owned(), Instant::now() + LEFT_ALONE);
                }
                Answer::Silent
            }
        }
    }

    /// Whether the cache did not answer a moment ago: then a whole closure need not wait for it path by path.
    fn is_silent(&self, url: &str) -> bool {
        let mut silent = self.silent_until.lock().unwrap_or_else(PoisonError::into_inner);
        silent.retain(|_, until| *until > Instant::now());
        silent.contains_key(url)
    }

    /// The narinfo's text; `None` if the cache says that there is none.
    async fn narinfo(&self, url: &str, hash: StorePathHash) -> Result<Option<Vec<u8>>, reqwest::Error> {
        let url = format!("{}/{hash}.narinfo", url.trim_end_matches('/'));
        let mut response = self.http.get(url).send().await?;
        // A bucket that may not be listed says 403 for what is absent.
        if matches!(response.status(), StatusCode::NOT_FOUND | StatusCode::FORBIDDEN | StatusCode::GONE) {
            return Ok(None);
        }
        response = response.error_for_status()?;
        let mut body = Vec::new();
        while let Some(bytes) = response.chunk().await? {
            if body.len() + bytes.len() > NARINFO_SIZE_BYTES_MAX {
                return Ok(None);
            }
            body.extend_from_slice(&bytes);
        }
        Ok(Some(body))
    }
}

/// What the narinfo claims, with the first signature that a trusted key made.
fn trusted(body: &[u8], keys: &[PublicKey], hash: StorePathHash) -> Option<SignedClaim> {
    let SignedClaim { claim, signatures } = SignedClaim::parse(body).ok()?;
    if claim.path.hash() != hash {
        return None;
    }
    let fingerprint = claim.fingerprint();
    let valid = |signature: &Signature| {
        keys.iter().any(|key| *key.name() == signature.name && key.verify(fingerprint.as_bytes(), signature))
    };
    let signature = signatures.into_iter().find(valid)?;
    Some(SignedClaim { claim, signatures: vec![signature] })
}

/// A cache in front of a content network may send its readers on, once or twice.
const REDIRECTS_MAX: usize = 3;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// One narinfo, at most 1 MiB.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Questions under way: Nix itself asks 25 at once.
const QUESTIONS_AT_ONCE: usize = 64;

/// How long a cache is not asked that could not be reached.
const LEFT_ALONE: Duration = Duration::from_secs(10);
