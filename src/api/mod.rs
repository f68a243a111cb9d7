//! The JSON of `/api/v1`: request and answer bodies, shared by server and client.
//!
//! Never holds behaviour. Unknown fields of requests are refused; answers may grow fields. Times are
//! RFC 3339 in UTC, sizes are bytes, hashes are spelled as Nix spells them.

pub mod frames;
mod keys;
mod push;
mod successions;
mod takedown;
mod webhooks;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

pub use keys::*;
pub use push::*;
pub use successions::*;
pub use takedown::*;
pub use webhooks::*;

/// An error: RFC 9457 `application/problem+json`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:narvault:problem:<slug>`: stable, for programs.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status's short name.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong, with which thing, and what to do.
    pub detail: String,
    /// Names this request in the server's log.
    pub request_id: String,
}

/// A page of a list. `next` is the cursor of the following page; absent on the last one.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// How every list is paged.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Where to go on: `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items of the page, 1 to 200; 100 unless told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `asc` (oldest first, the default) or `desc`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    Asc,
    Desc,
}

// --- auth ---

/// Spends the one-time secret of the first start (or of `narvault admin claim`).
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClaimRequest {
    /// The `nvb_…` text.
    pub claim: String,
}

/// A new token. The text is shown this once.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenIssued {
    /// The token's `jti`.
    pub id: String,
    /// The secret `nvt_…` text.
    pub token: String,
    pub contributor: String,
    pub scopes: Vec<String>,
    pub expires_at: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Whoami {
    /// The contributor's name.
    pub contributor: String,
    pub token_id: String,
    pub scopes: Vec<String>,
    pub expires_at: String,
}

// --- caches ---

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum UpstreamPaths {
    /// Paths that an upstream has are stored here like any other.
    Store,
    /// Paths that an upstream has count as present.
    Skip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum UndeclaredReferences {
    /// A store path found in a NAR but not claimed as a reference is recorded.
    Record,
    /// Such a NAR's narinfo is refused.
    Refuse,
}

/// Another cache whose signatures count as evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    pub url: String,
    /// `name:base64`, as in `trusted-public-keys`.
    pub public_keys: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CacheCreate {
    /// `[a-z0-9][a-z0-9-]{0,62}`.
    pub name: String,
    /// Whether anyone may pull without a token.
    pub public: bool,
    /// `Priority` of `nix-cache-info`: lower is asked earlier; 41 unless told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Folder in the bucket; the cache's name unless told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// cache.nixos.org unless told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstreams: Option<Vec<Upstream>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_paths: Option<UpstreamPaths>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undeclared_references: Option<UndeclaredReferences>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CacheEdit {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstreams: Option<Vec<Upstream>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_paths: Option<UpstreamPaths>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undeclared_references: Option<UndeclaredReferences>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CacheView {
    pub id: String,
    pub name: String,
    pub public: bool,
    pub priority: u32,
    pub prefix: String,
    pub upstreams: Vec<Upstream>,
    pub upstream_paths: UpstreamPaths,
    pub undeclared_references: UndeclaredReferences,
    /// `name:base64` of every key that clients should trust.
    pub public_keys: Vec<String>,
    /// What goes into nix.conf.
    pub pull_url: String,
    /// What `nix copy --to` gets.
    pub push_url: String,
    /// Published paths.
    pub paths: u64,
    /// The files of the published paths, compressed as stored.
    pub bytes: u64,
    pub created_at: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CacheDeleteQuery {
    /// Also delete every path; without it a cache that holds paths is a conflict.
    #[serde(default)]
    pub purge: bool,
}

// --- keys ---

/// `{}` makes a key, `{name}` makes one of that name, `{import}` takes one over.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyCreate {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The text of `nix key generate-secret`: `name:base64`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub import: Option<String>,
    /// Published, so that clients learn to trust it, and not signing until it is promoted or a rotation begins.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub next: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct KeyView {
    pub id: String,
    pub name: String,
    /// `name:base64`, as in `trusted-public-keys`.
    pub public_key: String,
    /// `next` (published, signs not yet), `active` (signs), `retiring` (still signs), `retired` (signs no longer, is
    /// still to be trusted), `compromised` or `destroyed` (not to be trusted).
    pub state: String,
    /// Whether the secret was made elsewhere.
    pub imported: bool,
    pub created_at: String,
}

// --- contributors ---

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ContributorKind {
    Person,
    Ci,
    Builder,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ContributorCreate {
    pub name: String,
    pub kind: ContributorKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ContributorEdit {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspended: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ContributorView {
    pub id: String,
    pub name: String,
    pub kind: ContributorKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    pub suspended: bool,
    /// Public keys whose `Sig:` lines count as this contributor's evidence.
    pub public_keys: Vec<String>,
    /// Published paths that this contributor pushed.
    pub paths: u64,
    /// Their files' bytes.
    pub bytes: u64,
    pub created_at: String,
}

/// Registers a public key whose `Sig:` lines count as the contributor's evidence.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ContributorKeyAdd {
    /// `name:base64`.
    pub public_key: String,
}

/// What was erased of a contributor.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ContributorErased {
    /// What they are called from now on.
    pub name: String,
    pub audit_rows: u64,
    /// Private particulars of leaves of the signature log, whose commitments stay.
    pub log_details: u64,
}

// --- tokens ---

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenCreate {
    /// The contributor's name.
    pub contributor: String,
    /// Such as `push:main`.
    pub scopes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRenew {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    pub id: String,
    pub contributor: String,
    pub scopes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The token that issued this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued_by: Option<String>,
    pub created_at: String,
    pub expires_at: String,
    /// At most a minute behind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoke_reason: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TokenQuery {
    /// Only tokens of this contributor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contributor: Option<String>,
    /// Only tokens issued by this one, directly or through others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued_by: Option<String>,
    /// Where to go on: `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items of the page, 1 to 200; 100 unless told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `asc` (oldest first, the default) or `desc`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {
    pub reason: String,
    /// Leave alive what the token issued.
    #[serde(default)]
    pub keep_issued: bool,
}

/// Every token that is dead by this call, or was before.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Revoked {
    /// Tokens that this call killed, descendants included.
    pub revoked: Vec<String>,
}

/// A leaked token: whoever holds the text may kill it.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenReport {
    pub token: String,
}

// --- paths ---

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MissingRequest {
    /// 32-character hashes, at most 10 000.
    pub hashes: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MissingAnswer {
    /// Those that are to be pushed, in the order asked.
    pub missing: Vec<String>,
    /// Those that are not published here and need not be: an upstream of this cache has them, with its valid
    /// signature, and the cache says `upstream_paths = skip`.
    #[serde(default)]
    pub upstream: Vec<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PathProofQuery {
    /// The signature of the key of this name; without it, the one that was made last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PathQuery {
    /// Only paths that this contributor (by name) gave evidence for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contributor: Option<String>,
    /// Only paths that this token (by id) gave evidence for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Only paths whose state changed at or after this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// `published`, `withdrawn`, `deleted`, `pending` or `conflict`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Where to go on: `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items of the page, 1 to 200; 100 unless told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `asc` (oldest first, the default) or `desc`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PathSummary {
    /// `/nix/store/…`.
    pub store_path: String,
    pub state: String,
    pub nar_size: u64,
    pub file_size: u64,
    /// Who pushed it first: the contributor's name and id, and the token's id.
    pub contributor: String,
    pub contributor_id: String,
    pub token_id: String,
    /// Names of the keys that signed it here.
    pub keys: Vec<String>,
    pub published_at: String,
    pub changed_at: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PathView {
    pub store_path: String,
    pub state: String,
    pub nar_hash: String,
    pub nar_size: u64,
    pub references: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deriver: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// `nar/<file hash>.nar[.ext]`.
    pub url: String,
    pub file_size: u64,
    pub signatures: Vec<SignatureView>,
    pub evidence: Vec<EvidenceView>,
    /// Other claims for this path that were refused, by whom.
    pub conflicts: Vec<ConflictView>,
    /// What the signature log has about it, oldest first.
    pub history: Vec<PathActView>,
    /// Store paths found in the NAR, published here, and not claimed as references.
    pub undeclared_references: Vec<String>,
    /// Claimed references whose hash does not occur in the NAR.
    pub unfound_references: Vec<String>,
    pub published_at: String,
    pub changed_at: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SignatureView {
    pub key: String,
    /// `name:base64`, as in a `Sig:` line.
    pub signature: String,
    /// Index in the signature log; absent on signatures made elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_index: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct EvidenceView {
    /// `contributor`, `contributor-key` or `upstream`.
    pub kind: String,
    /// The contributor's or upstream key's name.
    pub source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contributor_id: Option<String>,
    /// The token that brought it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_id: Option<String>,
    pub at: String,
    /// Whether a quarantine voided it.
    pub void: bool,
}

/// One act, as the leaf of the log at `log_index` has it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PathActView {
    pub log_index: u64,
    /// Such as `sign`, `conflict` or `delete`.
    pub event: String,
    pub at: String,
    /// The key that signed, where one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The contributor's name and id, and the token's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contributor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contributor_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_id: Option<String>,
    /// Where the call came from. For admins, and gone once the contributor is erased.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// For admins, where one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ConflictView {
    pub contributor: String,
    pub token_id: String,
    pub nar_hash: String,
    pub at: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PathDelete {
    pub reason: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PathDeleted {
    pub store_path: String,
    /// Whether narinfo and bytes are gone from storage already; otherwise the service goes on trying.
    pub gone: bool,
    /// Published paths that have the same file, which therefore stays.
    pub file_shared_with: Vec<String>,
    /// Published paths that refer to the deleted one.
    pub referrers: Vec<String>,
}

// --- signature log ---

/// Which leaves are to be opened.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogOpeningsQuery {
    /// The first leaf, from 0.
    pub first: u64,
    /// How many leaves from there on, 1 to 1000; 1000 unless told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// What stands behind the commitments of leaves, as far as the token may know.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LogOpenings {
    pub items: Vec<LogOpeningView>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LogOpeningView {
    /// The leaf's place in the log.
    pub index: u64,
    /// 16 bytes in base64.
    pub salt: String,
    /// The lines, each with its line feed: what the commitment is to, after the salt.
    pub lines: String,
    /// The references, separated by spaces, where the lines have only the digest of the list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub references: Option<String>,
}

// --- audit ---

#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// Contributor's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contributor: Option<String>,
    /// Token's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Such as `token-issue`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// `done` or `denied`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Only rows of this time or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Only rows from before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// What it was done to, exactly as rows have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The IP address that the call came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Where to go on: `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items of the page, 1 to 200; 100 unless told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `asc` (oldest first, the default) or `desc`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditView {
    pub id: String,
    pub at: String,
    pub action: String,
    pub outcome: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contributor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_id: Option<String>,
    /// What was acted on: a name or an id.
    pub subject: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    pub detail: serde_json::Value,
}

// --- vault ---

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct VaultView {
    /// `open` or `sealed`, on the replica that answers.
    pub state: String,
    /// Whether it was sealed by hand and stays so over restarts.
    pub sealed_by_hand: bool,
    /// While the replica that answers is sealed and asks KMS again and again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kms_wait: Option<KmsWaitView>,
    /// Shares handed in on the replica that answers, for each slot that has some.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<GatheredSharesView>,
    pub slots: Vec<SlotView>,
    /// Counts the root keys: each slot wraps the newest.
    pub root_version: i64,
    /// Counts the key-encryption keys: everything new is sealed with the newest.
    pub kek_version: u32,
    /// Keys and webhooks that are sealed with an older key-encryption key.
    pub rows_behind: u64,
    /// The newest rotation of the key-encryption key, under way or at its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kek_rotation: Option<KekRotationView>,
}

/// KMS did not open the vault, and is asked again until it does.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct KmsWaitView {
    /// The key, as the server's configuration names it.
    pub key: String,
    pub since: String,
    /// Why it did not open the vault the last time.
    pub said: String,
}

/// Keys and webhooks sealed anew under a key-encryption key.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct KekRotationView {
    /// The key-encryption key that they are sealed under.
    pub kek_version: u32,
    /// `rewrap` while it is under way, then `done`, or `superseded` where a later one has taken over.
    pub state: String,
    /// Keys and webhooks that there were to do when it began.
    pub total: u64,
    pub done: u64,
    /// Those that do not open, so that the key-encryption key which they name is kept: `key NAME`, `webhook ID`; at most
    /// 20 of them.
    pub damaged: Vec<String>,
    pub started_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
}

/// What the root key is rotated with: the secret of each slot that shall stay, but for the one that the server itself is
/// configured with.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RootRotate {
    /// Passphrases, in any order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passphrases: Vec<String>,
    /// The 32 bytes of key files, each in base64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key_files: Vec<String>,
    /// The ids of slots that go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drop_slots: Vec<String>,
    /// Seal what is there anew, too, under the key-encryption key that comes with the root key: after a theft.
    #[serde(default)]
    pub with_kek: bool,
}

/// How far a slot is from being opened with shares.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct GatheredSharesView {
    /// The slot's id.
    pub slot: String,
    /// How many different shares open the slot, and how many there are.
    pub needed: ShareCount,
    /// In the order in which they came.
    pub handed_in: Vec<HandedInView>,
    /// When they are forgotten, if not enough have come.
    pub until: String,
}

/// Who handed in a share.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HandedInView {
    pub contributor: String,
    pub at: String,
}

/// How many shares of a slot key there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ShareCount {
    /// How many of them open the slot: at least 2.
    pub threshold: u8,
    /// How many there are: at most 15.
    pub of: u8,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SlotView {
    pub id: String,
    /// `key-file`, `kms`, `passphrase` or `shamir`.
    pub kind: String,
    /// The ARN of the key, of a slot in KMS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kms_key: Option<String>,
    pub created_at: String,
    /// Of a slot that shares open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<ShareCount>,
}

/// A slot that was just added.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct SlotAdded {
    pub id: String,
    /// `key-file`, `kms`, `passphrase` or `shamir`.
    pub kind: String,
    /// The ARN of the key, of a slot in KMS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kms_key: Option<String>,
    pub created_at: String,
    /// Of a slot that shares open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<ShareCount>,
    /// The secret `nvs1-…` texts of all shares, if the slot opens with shares: told this once, and kept nowhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub share_texts: Vec<String>,
}

/// A further secret that opens the vault: exactly one of these.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SlotCreate {
    /// At least 14 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passphrase: Option<String>,
    /// The 32 bytes of a key file, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
    /// A key in KMS, which the server uses with credentials of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kms: Option<KmsSlot>,
    /// The server makes a key and splits it: the answer has the shares.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<ShareCount>,
}

/// A key in AWS KMS, or in what speaks its protocol.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KmsSlot {
    /// Its ARN, its id, or an alias.
    pub key_id: String,
}

/// Another passphrase in the place of one that opens the vault.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PassphraseReplace {
    /// The passphrase that is to end. It tells which slot is meant.
    pub former: String,
    /// At least 14 characters.
    pub new: String,
}

/// `{}` tries what the server's configuration names again, key file, passphrase file and KMS (admin); `{passphrase}` hands
/// one in; `{share}` hands in one share of several (admin).
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UnsealRequest {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passphrase: Option<String>,
    /// `nvs1-…`: one of those that are needed, each handed in by another administrator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<String>,
}

// --- the server itself ---

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct VersionView {
    pub version: String,
    pub cluster_id: String,
}

/// Public keys that verify tokens: RFC 7517 with RFC 8037 keys.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct JwkSet {
    pub keys: Vec<Jwk>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Jwk {
    pub kty: String,
    pub crv: String,
    pub x: String,
    pub kid: String,
    #[serde(rename = "use")]
    pub usage: String,
    pub alg: String,
}
