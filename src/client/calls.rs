//! Every call of `/api/v1`, one function each, in the order of the router.
//!
//! Never decides anything: what a call means, and who may make it, is the server's business.

use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use futures_util::stream;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use reqwest::{Body, Method, RequestBuilder};

use super::error::Error;
use super::http::{Client, FirstByte};
use crate::api::{
    AuditQuery, AuditView, BATCH_MEDIA_TYPE, CacheCreate, CacheDeleteQuery, CacheEdit, CacheView,
    ClaimRequest, ContributorCreate, ContributorEdit, ContributorErased, ContributorKeyAdd, ContributorView,
    DeliveryQuery, DeliveryView, JwkSet, KeyCompromise, KeyCreate, KeyView, LogOpenings, LogOpeningsQuery,
    MissingAnswer, MissingRequest, NarsStored, Page, PageQuery, PartUrl, PartUrlRequest, PassphraseReplace,
    PathDelete, PathDeleted, PathProofQuery, PathQuery, PathSummary, PathView, PublicKeysQuery,
    PublishAnswer, PublishRequest, QuarantineCreate, QuarantineOutcome, QuarantineQuery, QuarantineView,
    RestoreCreate, RestoreOutcome, RevokeRequest, Revoked, RootRotate, RotationCreate, RotationEdit,
    RotationView, SlotAdded, SlotCreate, SlotView, StoredAnswer, StoredRequest, TokenCreate, TokenIssued,
    TokenQuery, TokenRenew, TokenReport, TokenView, UnloggedSignature, UnsealRequest, UploadComplete,
    UploadOpen, UploadPart, UploadView, VaultView, VersionView, WebhookCreate, WebhookCreated, WebhookEdit,
    WebhookView, Whoami, WithdrawalView, WithdrawnPath, WithdrawnQuery,
};
use crate::nix::hash::Sha256Digest;

impl Client {
    // --- auth ---

    /// Spends a one-time claim; needs no token.
    pub async fn claim(&self, body: &ClaimRequest) -> Result<TokenIssued, Error> {
        self.require_secrecy()?;
        self.answer(self.api(Method::POST, &["auth", "claim"])?.json(body)).await
    }

    /// Who the token's holder is.
    pub async fn whoami(&self) -> Result<Whoami, Error> {
        self.require_token()?;
        self.answer(self.api(Method::GET, &["auth", "whoami"])?).await
    }

    /// A new token of the same scopes. The old one stays alive until its end or its revocation.
    pub async fn renew(&self, body: &TokenRenew) -> Result<TokenIssued, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["auth", "renew"])?.json(body)).await
    }

    // --- caches ---

    pub async fn cache_create(&self, body: &CacheCreate) -> Result<CacheView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["caches"])?.json(body)).await
    }

    pub async fn caches(&self, query: &PageQuery) -> Result<Page<CacheView>, Error> {
        self.require_token()?;
        self.answer(self.api(Method::GET, &["caches"])?.query(query)).await
    }

    /// One cache; a public one needs no token.
    pub async fn cache(&self, cache: &str) -> Result<CacheView, Error> {
        self.answer(self.api(Method::GET, &["caches", cache])?).await
    }

    pub async fn cache_edit(&self, cache: &str, body: &CacheEdit) -> Result<CacheView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::PATCH, &["caches", cache])?.json(body)).await
    }

    pub async fn cache_delete(&self, cache: &str, query: &CacheDeleteQuery) -> Result<(), Error> {
        self.require_token()?;
        self.done(self.api(Method::DELETE, &["caches", cache])?.query(query)).await
    }

    // --- keys ---

    pub async fn key_create(&self, cache: &str, body: &KeyCreate) -> Result<KeyView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["caches", cache, "keys"])?.json(body)).await
    }

    /// The keys of a cache; those of a public one need no token.
    pub async fn keys(&self, cache: &str, query: &PageQuery) -> Result<Page<KeyView>, Error> {
        self.answer(self.api(Method::GET, &["caches", cache, "keys"])?.query(query)).await
    }

    pub async fn key_promote(&self, cache: &str, key: &str) -> Result<KeyView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["caches", cache, "keys", key, "promote"])?).await
    }

    pub async fn key_retire(&self, cache: &str, key: &str) -> Result<KeyView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["caches", cache, "keys", key, "retire"])?).await
    }

    pub async fn key_compromise(
        &self,
        cache: &str,
        key: &str,
        body: &KeyCompromise,
    ) -> Result<RotationView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["caches", cache, "keys", key, "compromise"])?.json(body)).await
    }

    pub async fn key_destroy(&self, cache: &str, key: &str) -> Result<KeyView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["caches", cache, "keys", key, "destroy"])?).await
    }

    /// Signs everything published with a key.
    pub async fn key_resign(&self, cache: &str, key: &str) -> Result<RotationView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["caches", cache, "keys", key, "resign"])?).await
    }

    /// Takes a retired key's signatures off everything published.
    pub async fn key_drop_signatures(&self, cache: &str, key: &str) -> Result<RotationView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["caches", cache, "keys", key, "drop-signatures"])?).await
    }

    /// Signatures under the key's name that no leaf accounts for.
    pub async fn key_unlogged(
        &self,
        cache: &str,
        key: &str,
        query: &PageQuery,
    ) -> Result<Page<UnloggedSignature>, Error> {
        self.require_token()?;
        self.answer(self.api(Method::GET, &["caches", cache, "keys", key, "unlogged"])?.query(query)).await
    }

    /// Begins a planned rotation.
    pub async fn key_rotate(&self, cache: &str, body: &RotationCreate) -> Result<RotationView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["caches", cache, "rotation"])?.json(body)).await
    }

    /// The rotation that is under way, or the last one.
    pub async fn key_rotation(&self, cache: &str) -> Result<RotationView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::GET, &["caches", cache, "rotation"])?).await
    }

    pub async fn key_rotation_edit(&self, cache: &str, body: &RotationEdit) -> Result<RotationView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::PATCH, &["caches", cache, "rotation"])?.json(body)).await
    }

    pub async fn key_rotation_abandon(&self, cache: &str) -> Result<(), Error> {
        self.require_token()?;
        self.done(self.api(Method::DELETE, &["caches", cache, "rotation"])?).await
    }

    /// The keys that clients are to trust, as a text; a public cache's need no token.
    pub async fn public_keys(&self, cache: &str, query: &PublicKeysQuery) -> Result<Vec<u8>, Error> {
        self.bytes(self.api(Method::GET, &["caches", cache, "public-keys"])?.query(query)).await
    }

    // --- signature log ---

    /// The proof file of a path's signature; for a public cache without a token.
    pub async fn path_proof(
        &self,
        cache: &str,
        hash: &str,
        query: &PathProofQuery,
    ) -> Result<Vec<u8>, Error> {
        let request = self.api(Method::GET, &["caches", cache, "paths", hash, "proof"])?;
        self.bytes(request.query(query)).await
    }

    /// A file of the server's published signature log, such as `checkpoint`; `None` where there is none.
    pub async fn log_file(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        let segments: Vec<&str> = ["log"].into_iter().chain(path.split('/')).collect();
        self.file_or_none(self.api(Method::GET, &segments)?, &[404]).await
    }

    /// A file below the address of this client, which is any web server's.
    pub async fn web_file(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        let segments: Vec<&str> = path.split('/').collect();
        // A bucket that may not be listed does not tell what it does not have.
        self.file_or_none(self.request(Method::GET, &segments)?, &[403, 404]).await
    }

    /// An object of a cache as it is served; `None` where there is none. The error is of the kind
    /// [`NotAuthorised`](super::ErrorKind::NotAuthorised) where the cache is private and this client may not pull from it.
    pub async fn cache_file(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        let segments: Vec<&str> = path.split('/').collect();
        self.file_or_none(self.request(Method::GET, &segments)?, &[404]).await
    }

    async fn file_or_none(&self, request: RequestBuilder, absent: &[u16]) -> Result<Option<Vec<u8>>, Error> {
        match self.status_and_bytes(request).await? {
            (200, bytes) => Ok(Some(bytes)),
            (status, _) if absent.contains(&status) => Ok(None),
            (status, _) => Err(Error::Foreign { url: self.url().clone(), status }),
        }
    }

    /// What stands behind the commitments of leaves, of caches that the token may pull from.
    pub async fn log_openings(&self, query: &LogOpeningsQuery) -> Result<LogOpenings, Error> {
        self.require_token()?;
        self.answer(self.api(Method::GET, &["log", "openings"])?.query(query)).await
    }

    // --- contributors ---

    pub async fn contributor_create(&self, body: &ContributorCreate) -> Result<ContributorView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["contributors"])?.json(body)).await
    }

    pub async fn contributors(&self, query: &PageQuery) -> Result<Page<ContributorView>, Error> {
        self.require_token()?;
        self.answer(self.api(Method::GET, &["contributors"])?.query(query)).await
    }

    pub async fn contributor(&self, name: &str) -> Result<ContributorView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::GET, &["contributors", name])?).await
    }

    pub async fn contributor_edit(
        &self,
        name: &str,
        body: &ContributorEdit,
    ) -> Result<ContributorView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::PATCH, &["contributors", name])?.json(body)).await
    }

    /// Erases what is private of a suspended contributor, for good.
    pub async fn contributor_erase(&self, name: &str) -> Result<ContributorErased, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["contributors", name, "erase"])?).await
    }

    pub async fn contributor_key_add(
        &self,
        name: &str,
        body: &ContributorKeyAdd,
    ) -> Result<ContributorView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["contributors", name, "keys"])?.json(body)).await
    }

    pub async fn contributor_key_remove(&self, name: &str, key_name: &str) -> Result<(), Error> {
        self.require_token()?;
        self.done(self.api(Method::DELETE, &["contributors", name, "keys", key_name])?).await
    }

    /// Revokes every token of a contributor.
    pub async fn contributor_revoke_tokens(
        &self,
        name: &str,
        body: &RevokeRequest,
    ) -> Result<Revoked, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["contributors", name, "revoke-tokens"])?.json(body)).await
    }

    // --- tokens ---

    pub async fn token_issue(&self, body: &TokenCreate) -> Result<TokenIssued, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["tokens"])?.json(body)).await
    }

    pub async fn tokens(&self, query: &TokenQuery) -> Result<Page<TokenView>, Error> {
        self.require_token()?;
        self.answer(self.api(Method::GET, &["tokens"])?.query(query)).await
    }

    pub async fn token(&self, id: &str) -> Result<TokenView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::GET, &["tokens", id])?).await
    }

    pub async fn token_revoke(&self, id: &str, body: &RevokeRequest) -> Result<Revoked, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["tokens", id, "revoke"])?.json(body)).await
    }

    /// Kills a leaked token; needs no other right than to hold its text.
    pub async fn token_report(&self, body: &TokenReport) -> Result<(), Error> {
        self.require_secrecy()?;
        self.done(self.api(Method::POST, &["tokens", "report"])?.json(body)).await
    }

    // --- paths ---

    /// Which of at most 10 000 hashes are not published in the cache.
    pub async fn missing(&self, cache: &str, body: &MissingRequest) -> Result<MissingAnswer, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["caches", cache, "missing"])?.json(body)).await
    }

    /// Uploads many NARs: frames as [`crate::api::frames`] reads them, in pieces of any size.
    pub async fn nars(&self, cache: &str, batch: Vec<Bytes>) -> Result<NarsStored, Error> {
        self.require_token()?;
        let request = self.api(Method::POST, &["caches", cache, "nars"])?;
        let request = request.header(CONTENT_TYPE, BATCH_MEDIA_TYPE).timeout(UPLOAD_TIMEOUT);
        self.answer(with_pieces(request, batch)).await
    }

    /// Which of at most 10 000 NARs stand in the cache already, whatever they were pushed as.
    pub async fn nars_stored(&self, cache: &str, body: &StoredRequest) -> Result<StoredAnswer, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["caches", cache, "nars", "stored"])?.json(body)).await
    }

    /// Whether the cache holds this file, verified; `file` is `<file hash>.nar[.ext]`.
    pub async fn has_nar(&self, cache: &str, file: &str) -> Result<bool, Error> {
        self.require_token()?;
        let request = self.request(Method::HEAD, &["push", cache, "nar", file])?;
        Ok(self.status_and_text(request).await?.0 == 200)
    }

    /// Publishes paths in the order of their references.
    pub async fn publish(&self, cache: &str, body: &PublishRequest) -> Result<PublishAnswer, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["caches", cache, "publish"])?.json(body)).await
    }

    pub async fn paths(&self, cache: &str, query: &PathQuery) -> Result<Page<PathSummary>, Error> {
        self.require_token()?;
        self.answer(self.api(Method::GET, &["caches", cache, "paths"])?.query(query)).await
    }

    pub async fn path(&self, cache: &str, hash: &str) -> Result<PathView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::GET, &["caches", cache, "paths", hash])?).await
    }

    pub async fn path_delete(
        &self,
        cache: &str,
        hash: &str,
        body: &PathDelete,
    ) -> Result<PathDeleted, Error> {
        self.require_token()?;
        self.answer(self.api(Method::DELETE, &["caches", cache, "paths", hash])?.json(body)).await
    }

    // --- taking down ---

    /// Quarantines a contributor, or says what that would do.
    pub async fn contributor_quarantine(
        &self,
        name: &str,
        body: &QuarantineCreate,
        query: &QuarantineQuery,
    ) -> Result<QuarantineOutcome, Error> {
        self.require_token()?;
        let request = self.api(Method::POST, &["contributors", name, "quarantine"])?;
        self.answer(request.query(query).json(body)).await
    }

    /// Ends a contributor's quarantine.
    pub async fn contributor_restore(
        &self,
        name: &str,
        body: &RestoreCreate,
    ) -> Result<RestoreOutcome, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["contributors", name, "restore"])?.json(body)).await
    }

    /// Quarantines a token, or says what that would do.
    pub async fn token_quarantine(
        &self,
        id: &str,
        body: &QuarantineCreate,
        query: &QuarantineQuery,
    ) -> Result<QuarantineOutcome, Error> {
        self.require_token()?;
        let request = self.api(Method::POST, &["tokens", id, "quarantine"])?;
        self.answer(request.query(query).json(body)).await
    }

    /// Ends a token's quarantine.
    pub async fn token_restore(&self, id: &str, body: &RestoreCreate) -> Result<RestoreOutcome, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["tokens", id, "restore"])?.json(body)).await
    }

    /// Quarantines a path, or says what that would do.
    pub async fn path_quarantine(
        &self,
        cache: &str,
        hash: &str,
        body: &QuarantineCreate,
        query: &QuarantineQuery,
    ) -> Result<QuarantineOutcome, Error> {
        self.require_token()?;
        let request = self.api(Method::POST, &["caches", cache, "paths", hash, "quarantine"])?;
        self.answer(request.query(query).json(body)).await
    }

    /// Ends a path's quarantine.
    pub async fn path_restore(
        &self,
        cache: &str,
        hash: &str,
        body: &RestoreCreate,
    ) -> Result<RestoreOutcome, Error> {
        self.require_token()?;
        let request = self.api(Method::POST, &["caches", cache, "paths", hash, "restore"])?;
        self.answer(request.json(body)).await
    }

    /// Quarantines, restored ones too.
    pub async fn quarantines(&self, query: &PageQuery) -> Result<Page<QuarantineView>, Error> {
        self.require_token()?;
        self.answer(self.api(Method::GET, &["quarantines"])?.query(query)).await
    }

    /// What a quarantine withdrew.
    pub async fn quarantine_paths(&self, id: &str, query: &PageQuery) -> Result<Page<WithdrawalView>, Error> {
        self.require_token()?;
        self.answer(self.api(Method::GET, &["quarantines", id, "paths"])?.query(query)).await
    }

    /// What was withdrawn from a cache and is not back; of a public one without a token.
    pub async fn withdrawn(&self, cache: &str, query: &WithdrawnQuery) -> Result<Page<WithdrawnPath>, Error> {
        self.answer(self.api(Method::GET, &["caches", cache, "withdrawn"])?.query(query)).await
    }

    // --- uploads in parts ---

    /// Opens an upload in parts, or finds the one that was left unfinished.
    pub async fn upload_open(&self, cache: &str, body: &UploadOpen) -> Result<UploadView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["caches", cache, "uploads"])?.json(body)).await
    }

    pub async fn upload(&self, cache: &str, id: &str) -> Result<UploadView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::GET, &["caches", cache, "uploads", id])?).await
    }

    /// Sends a part, whose hash is known, through the server; parts count from 1.
    pub async fn upload_part(
        &self,
        cache: &str,
        id: &str,
        number: u32,
        sha256: Sha256Digest,
        part: Bytes,
    ) -> Result<UploadPart, Error> {
        self.require_token()?;
        let number = number.to_string();
        let digest = format!("sha-256=:{}:", BASE64.encode(&sha256.0));
        let request = self.api(Method::PUT, &["caches", cache, "uploads", id, "parts", &number])?;
        let request =
            request.header(CONTENT_TYPE, "application/octet-stream").header("content-digest", digest);
        self.answer(request.timeout(UPLOAD_TIMEOUT).body(part)).await
    }

    /// Asks where a part may go straight to the storage.
    pub async fn upload_part_url(
        &self,
        cache: &str,
        id: &str,
        number: u32,
        body: &PartUrlRequest,
    ) -> Result<PartUrl, Error> {
        self.require_token()?;
        let number = number.to_string();
        let request = self.api(Method::POST, &["caches", cache, "uploads", id, "parts", &number, "url"])?;
        self.answer(request.json(body)).await
    }

    /// Sends a part straight to the storage, of an upload that says `direct`.
    pub async fn upload_part_direct(
        &self,
        cache: &str,
        id: &str,
        number: u32,
        sha256: Sha256Digest,
        part: Bytes,
    ) -> Result<(), Error> {
        let body = PartUrlRequest { size_bytes: part.len() as u64, sha256: sha256.hex() };
        let place = self.upload_part_url(cache, id, number, &body).await?;
        self.put_elsewhere(&place.url, part).await
    }

    /// Ends an upload: the server verifies the whole file before it answers.
    pub async fn upload_complete(&self, cache: &str, id: &str, body: &UploadComplete) -> Result<(), Error> {
        self.require_token()?;
        let request = self.api(Method::POST, &["caches", cache, "uploads", id, "complete"])?;
        self.done(request.timeout(UPLOAD_TIMEOUT).json(body)).await
    }

    /// Gives an upload up.
    pub async fn upload_abort(&self, cache: &str, id: &str) -> Result<(), Error> {
        self.require_token()?;
        self.done(self.api(Method::DELETE, &["caches", cache, "uploads", id])?).await
    }

    // --- webhooks ---

    pub async fn webhook_create(&self, body: &WebhookCreate) -> Result<WebhookCreated, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["webhooks"])?.json(body)).await
    }

    pub async fn webhooks(&self, query: &PageQuery) -> Result<Page<WebhookView>, Error> {
        self.require_token()?;
        self.answer(self.api(Method::GET, &["webhooks"])?.query(query)).await
    }

    pub async fn webhook(&self, id: &str) -> Result<WebhookView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::GET, &["webhooks", id])?).await
    }

    pub async fn webhook_edit(&self, id: &str, body: &WebhookEdit) -> Result<WebhookView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::PATCH, &["webhooks", id])?.json(body)).await
    }

    pub async fn webhook_remove(&self, id: &str) -> Result<(), Error> {
        self.require_token()?;
        self.done(self.api(Method::DELETE, &["webhooks", id])?).await
    }

    pub async fn webhook_test(&self, id: &str) -> Result<DeliveryView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["webhooks", id, "test"])?).await
    }

    pub async fn webhook_deliveries(
        &self,
        id: &str,
        query: &DeliveryQuery,
    ) -> Result<Page<DeliveryView>, Error> {
        self.require_token()?;
        self.answer(self.api(Method::GET, &["webhooks", id, "deliveries"])?.query(query)).await
    }

    // --- audit, vault, the server itself ---

    pub async fn audit(&self, query: &AuditQuery) -> Result<Page<AuditView>, Error> {
        self.require_token()?;
        self.answer(self.api(Method::GET, &["audit"])?.query(query)).await
    }

    pub async fn vault(&self) -> Result<VaultView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::GET, &["vault"])?).await
    }

    /// Opens the vault of the replica that answers. A passphrase is right enough by itself; `{}` and a share need a token.
    pub async fn vault_unseal(&self, body: &UnsealRequest) -> Result<VaultView, Error> {
        if body.passphrase.is_some() || body.share.is_some() {
            self.require_secrecy()?;
        }
        if body.passphrase.is_none() {
            self.require_token()?;
        }
        self.answer(self.api(Method::POST, &["vault", "unseal"])?.json(body)).await
    }

    /// Makes the replica that answers forget the shares that were handed in.
    pub async fn vault_shares_cancel(&self) -> Result<VaultView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::DELETE, &["vault", "unseal"])?).await
    }

    /// Adds a secret that opens the vault. The answer may have shares, which are told this once.
    pub async fn slot_add(&self, body: &SlotCreate) -> Result<SlotAdded, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["vault", "slots"])?.json(body)).await
    }

    /// Takes away one of the secrets that open the vault.
    pub async fn slot_remove(&self, id: &str) -> Result<(), Error> {
        self.require_token()?;
        self.done(self.api(Method::DELETE, &["vault", "slots", id])?).await
    }

    /// Puts another passphrase in the place of one that opens the vault.
    pub async fn passphrase_change(&self, body: &PassphraseReplace) -> Result<SlotView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["vault", "passphrase"])?.json(body)).await
    }

    /// Has everything sealed with another key-encryption key.
    pub async fn vault_rotate_kek(&self) -> Result<VaultView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["vault", "rotate-kek"])?).await
    }

    /// Puts another root key in the place of the vault's, with the secrets of all slots that stay.
    pub async fn vault_rotate_root(&self, body: &RootRotate) -> Result<VaultView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["vault", "rotate-root"])?.json(body)).await
    }

    /// Closes the vault of every replica, until an unseal.
    pub async fn vault_seal(&self) -> Result<VaultView, Error> {
        self.require_token()?;
        self.answer(self.api(Method::POST, &["vault", "seal"])?).await
    }

    pub async fn version(&self) -> Result<VersionView, Error> {
        self.answer(self.api(Method::GET, &["version"])?).await
    }

    /// The public keys that verify tokens.
    pub async fn jwks(&self) -> Result<JwkSet, Error> {
        self.answer(self.request(Method::GET, &[".well-known", "jwks.json"])?).await
    }

    /// Whether the server takes requests, and its own words about that, such as `ready, sealed`.
    pub async fn ready(&self) -> Result<(bool, String), Error> {
        let (status, text) = self.status_and_text(self.request(Method::GET, &["readyz"])?).await?;
        Ok((status == 200, text))
    }

    /// The server's `Date`, if it sends one.
    pub async fn date(&self) -> Result<Option<String>, Error> {
        self.header(self.request(Method::GET, &["livez"])?, "date").await
    }

    // --- a binary cache, by the client of its pull URL ---

    /// Status and body of what tells Nix that this is a cache.
    pub async fn cache_info(&self) -> Result<(u16, Vec<u8>), Error> {
        self.status_and_bytes(self.request(Method::GET, &["nix-cache-info"])?).await
    }

    /// Status and body of a path's narinfo.
    pub async fn narinfo(&self, hash: &str) -> Result<(u16, Vec<u8>), Error> {
        self.status_and_bytes(self.request(Method::GET, &[&format!("{hash}.narinfo")])?).await
    }

    /// Whether the first byte of a path's NAR can be read; `file` is `<file hash>.nar[.ext]`.
    pub async fn nar_begins(&self, file: &str) -> Result<FirstByte, Error> {
        self.first_byte(self.request(Method::GET, &["nar", file])?).await
    }

    pub(super) fn api(&self, method: Method, segments: &[&str]) -> Result<RequestBuilder, Error> {
        let mut all = vec!["api", "v1"];
        all.extend(segments);
        self.request(method, &all)
    }
}

/// A body of known length that is sent piece by piece, without being copied together.
fn with_pieces(request: RequestBuilder, pieces: Vec<Bytes>) -> RequestBuilder {
    let size_bytes: usize = pieces.iter().map(Bytes::len).sum();
    let body = stream::iter(pieces.into_iter().map(Ok::<_, std::convert::Infallible>));
    request.header(CONTENT_LENGTH, size_bytes).body(Body::wrap_stream(body))
}

/// The largest part of 64 MiB takes half an hour at 36 KiB/s, beside two minutes that the server may let it wait.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(30 * 60);
