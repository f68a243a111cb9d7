//! What happens to keys after they were made: rotations, compromises, and the public halves for clients.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// A planned rotation. Everything may be left out.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotationCreate {
    /// The key that goes; the only active one unless told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old: Option<String>,
    /// The key that comes: one that is `next`, or a name for a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<String>,
    /// Days from publishing the new key to its first signature; `keys.rotation_publish_days` unless told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publish_days: Option<u64>,
    /// Days from the end of the signing to the end of the old key; `keys.rotation_wait_days` unless told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_days: Option<u64>,
}

/// Pauses a rotation, or lets it go on.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotationEdit {
    pub paused: bool,
}

/// A rotation that is under way, or the last one.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RotationView {
    pub id: String,
    /// `planned`, `resign`, `compromise` or `drop`.
    pub kind: String,
    /// `publish`, `purge`, `resign`, `drop`, `release`, `inspect`, `wait`, `done` or `abandoned`.
    pub step: String,
    /// The name of the key that goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old_key: Option<String>,
    /// The name of the key that comes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_key: Option<String>,
    pub paused: bool,
    /// Paths and realisations of this step, or of the last one that had some.
    pub total: u64,
    /// Those that are done.
    pub done: u64,
    /// Those left alone, because the log does not account for their signatures.
    pub refused: u64,
    /// What has to happen before the next step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
    /// The steps so far and those to come, in their order.
    pub steps: Vec<RotationStepView>,
    pub started_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RotationStepView {
    pub step: String,
    /// When it began; for one to come, when it begins at the earliest.
    pub at: String,
    pub has_begun: bool,
}

/// Others may hold the key.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyCompromise {
    pub reason: String,
}

/// A signature under the key's name that no leaf of the log accounts for.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UnloggedSignature {
    /// `storage`: served from the bucket, beside narvault. `rows`: written into the database.
    pub place: String,
    /// The path's base name, or the object of a realisation.
    pub subject: String,
    /// `name:base64`.
    pub signature: String,
    pub found_at: String,
}

/// How public keys are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PublicKeysFormat {
    /// Lines for nix.conf.
    NixConf,
    /// A NixOS module.
    Nixos,
    /// `nixConfig` of a flake.
    Flake,
    /// For programs.
    Json,
}

impl PublicKeysFormat {
    /// The word in the query.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NixConf => "nix-conf",
            Self::Nixos => "nixos",
            Self::Flake => "flake",
            Self::Json => "json",
        }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PublicKeysQuery {
    /// `json` unless told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<PublicKeysFormat>,
}

/// What clients of a cache are to trust.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PublicKeysView {
    pub cache: String,
    /// For `substituters`.
    pub pull_url: String,
    /// For `trusted-public-keys`: `name:base64` of every key that is not compromised or destroyed, oldest first.
    pub public_keys: Vec<String>,
}
