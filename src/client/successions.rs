//! Calls about the succession of keys, and the one document that is asked of a cache's own address.

use reqwest::{Method, RequestBuilder};

use super::error::Error;
use super::http::Client;
use crate::api::{Draft, NoteSubmit, RootKeysView, RootSetDraft, SuccessionDraft, SuccessionView};

impl Client {
    /// The statements about a cache's keys; a public one's need no token.
    pub async fn key_succession(&self, cache: &str) -> Result<SuccessionView, Error> {
        self.answer(self.api(Method::GET, &["caches", cache, "keys", "succession"])?).await
    }

    /// What root keys are to sign after a compromise.
    pub async fn key_succession_draft(&self, cache: &str, body: &SuccessionDraft) -> Result<Draft, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["caches", cache, "keys", "succession", "draft"])?.json(body))
            .await
    }

    /// Hands in what root keys have signed.
    pub async fn key_succession_submit(
        &self,
        cache: &str,
        body: &NoteSubmit,
    ) -> Result<SuccessionView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["caches", cache, "keys", "succession"])?.json(body)).await
    }

    /// The root keys that hold for a cache, or those of the server.
    pub async fn root_keys(&self, cache: Option<&str>) -> Result<RootKeysView, Error> {
        self.answer(self.root_keys_request(Method::GET, cache, &[])?).await
    }

    /// The next set of root keys, to be signed.
    pub async fn root_keys_draft(&self, cache: Option<&str>, body: &RootSetDraft) -> Result<Draft, Error> {
        self.require_token()?;
        self.answer(self.root_keys_request(Method::POST, cache, &["draft"])?.json(body)).await
    }

    /// Hands in a signed set.
    pub async fn root_keys_submit(
        &self,
        cache: Option<&str>,
        body: &NoteSubmit,
    ) -> Result<RootKeysView, Error> {
        self.require_token()?;
        self.answer(self.root_keys_request(Method::POST, cache, &[])?.json(body)).await
    }

    fn root_keys_request(
        &self,
        method: Method,
        cache: Option<&str>,
        rest: &[&str],
    ) -> Result<RequestBuilder, Error> {
        let mut segments = Vec::new();
        if let Some(cache) = cache {
            segments.extend(["caches", cache]);
        }
        segments.push("root-keys");
        segments.extend(rest);
        self.api(method, &segments)
    }

    /// The document of a cache's statements, asked of the cache's own address, be it a server's or a bucket's: status
    /// and body.
    pub async fn succession_document(&self) -> Result<(u16, Vec<u8>), Error> {
        self.status_and_bytes(self.request(Method::GET, &["key-succession"])?).await
    }
}
