//! The JSON of taking down what rests on somebody's word, and of asking what was taken down.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Voids evidence, and withdraws what rests on it alone.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QuarantineCreate {
    /// For the audit, one line.
    pub reason: String,
    /// Evidence from this time on is void. Needed for a contributor; without it, all evidence of a token. Not for a
    /// path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Also withdraw what refers to a withdrawn path, directly or through others.
    #[serde(default)]
    pub dependents: bool,
    /// Leave alone tokens that the subject issued, and what came with them. Not for a path.
    #[serde(default)]
    pub keep_issued: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct QuarantineQuery {
    /// Only say what would happen.
    #[serde(default)]
    pub dry_run: bool,
}

/// A path of a cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CachePath {
    pub cache: String,
    /// `/nix/store/…`.
    pub store_path: String,
}

/// What a quarantine came to, or would come to.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct QuarantineOutcome {
    /// Absent on a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `contributor`, `token` or `path`.
    pub kind: String,
    /// The contributor's name, the token's id, or cache and path.
    pub subject: String,
    /// Whether this call began a quarantine, or gave the one that stands more to do.
    pub changed: bool,
    /// Whether all of it is carried through; otherwise the server goes on by itself.
    pub finished: bool,
    /// Paths that are still to be withdrawn, as far as can be told while the server is at it; 0 once it is finished.
    pub paths_left: u64,
    /// Narinfos that are still to be removed from storage. They are served by no replica any more.
    pub narinfos_left: u64,
    /// Tokens that died by this call, or would, by their ids; at most 1 000 of a dry run.
    pub tokens: Vec<String>,
    /// Pieces of evidence that are void.
    pub evidence: u64,
    /// Paths that are withdrawn: for want of evidence, and as dependents.
    pub paths: u64,
    /// The first 1 000 of them.
    pub withdrawn: Vec<CachePath>,
    /// Published paths that lost evidence and stay by other evidence; only on a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<u64>,
    /// Published paths that refer to withdrawn ones, directly or through others, and stay published.
    pub dependents: u64,
    /// The first 1 000 of them.
    pub dependent_paths: Vec<CachePath>,
}

/// Ends a quarantine.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreCreate {
    /// For the audit, one line.
    pub reason: String,
}

/// What a restoration came to.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RestoreOutcome {
    /// The quarantine's id.
    pub id: String,
    /// `contributor`, `token` or `path`.
    pub kind: String,
    pub subject: String,
    /// Whether this call began the restoration.
    pub changed: bool,
    /// Whether all of it is carried through; otherwise the server goes on by itself.
    pub finished: bool,
    /// Paths that are still to be brought back, as far as can be told while the server is at it; 0 once it is finished.
    pub paths_left: u64,
    /// Narinfos that are still to be written to storage. Every replica serves them already.
    pub narinfos_left: u64,
    /// Paths that are back as they were.
    pub restored: u64,
    /// Paths that did not come back.
    pub left: u64,
    /// The first 1 000 of those.
    pub left_paths: Vec<LeftPath>,
}

/// A path that a restoration left as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeftPath {
    pub cache: String,
    /// `/nix/store/…`.
    pub store_path: String,
    /// `superseded` (another claim was published there), `deleted`, `held` (by another quarantine) or `lost` (its NAR
    /// is not in storage any more).
    pub why: String,
}

/// A quarantine.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct QuarantineView {
    pub id: String,
    /// `contributor`, `token` or `path`.
    pub kind: String,
    /// The contributor's name, the token's id, or cache and path.
    pub subject: String,
    /// `running`, `standing`, `restoring` or `restored`.
    pub state: String,
    /// Evidence from this time on is void; absent where all is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    pub reason: String,
    pub dependents: bool,
    pub keep_issued: bool,
    pub begun_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored_at: Option<String>,
}

/// A path that a quarantine withdrew.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WithdrawalView {
    pub cache: String,
    /// `/nix/store/…`.
    pub store_path: String,
    /// `evidence` (none was left) or `dependent` (it refers to a withdrawn path).
    pub cause: String,
    pub withdrawn_at: String,
    /// How it ended: `restored`, `republished` (the same claim was pushed anew), `superseded`, `deleted`, `held` or
    /// `lost`; absent while it is withdrawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WithdrawnQuery {
    /// Only what was withdrawn at or after this time; without it, all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Where to go on: `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items of the page, 1 to 200; 100 unless told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `asc` (oldest first, the default) or `desc`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<super::Order>,
}

/// A path that was withdrawn and is not back with that content.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WithdrawnPath {
    /// `/nix/store/…`.
    pub store_path: String,
    /// Of the content that was withdrawn: `sha256:<Nix base-32>`.
    pub nar_hash: String,
    pub withdrawn_at: String,
}
