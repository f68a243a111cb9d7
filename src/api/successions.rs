//! Which key of a cache comes after which, and root keys: signed notes, with what they say beside them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The statements of a cache.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SuccessionView {
    pub cache: String,
    /// As it stands in the statements.
    pub cache_id: String,
    /// The root keys that hold for it, from the first version on; the last one is in force.
    pub root_sets: Vec<RootSetView>,
    /// From the first one on.
    pub statements: Vec<SuccessionStatementView>,
}

/// One key comes after another.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SuccessionStatementView {
    /// 1 for the first; each further one is one more.
    pub seq: u64,
    /// `name:base64`.
    pub old: String,
    /// `name:base64`.
    pub new: String,
    /// `planned` or `compromise`.
    pub reason: String,
    pub not_before: String,
    /// From when on clients drop the old key; absent as long as that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retire_old: Option<String>,
    pub expires: String,
    /// The text with its signatures, which alone counts.
    pub note: String,
}

/// Sets of root keys.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RootKeysView {
    /// What they are for: `cache <name> <id>`, or `server <cluster id>`.
    pub scope: String,
    /// From the first version on; the last one is in force.
    pub sets: Vec<RootSetView>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RootSetView {
    pub version: u64,
    /// How many of the keys have to sign.
    pub threshold: u64,
    /// `name:base64`.
    pub keys: Vec<String>,
    /// The text with its signatures, which alone counts.
    pub note: String,
}

/// The next set of root keys.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RootSetDraft {
    /// How many of the keys have to sign.
    pub threshold: u64,
    /// `name:base64`, 1 to 15 of them.
    pub keys: Vec<String>,
}

/// A statement after a compromise. Everything may be left out.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SuccessionDraft {
    /// The name of the compromised key; the only one that clients were not told of, unless told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old: Option<String>,
    /// From when on clients drop it; at once, unless told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retire_old: Option<String>,
}

/// A text that is to be signed.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Draft {
    /// The text, then an empty line, behind which signatures go.
    pub draft: String,
}

/// A signed text.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NoteSubmit {
    /// The text, an empty line, and a line for each signature.
    pub note: String,
}
