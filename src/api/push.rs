//! The JSON of pushing by a client of our own: many NARs in one request, many narinfos in one, large files
//! in parts.
//!
//! A batch of NARs is not JSON: frames follow one another, each a [`NarFrame`] as one line of JSON that
//! ends in LF, then exactly `size_bytes` bytes of the file.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The media type of a batch of NARs.
pub const BATCH_MEDIA_TYPE: &str = "application/vnd.narvault.nars";

/// Largest batch of NARs, in bytes: below the limits of common proxies.
pub const BATCH_SIZE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Most NARs of one batch.
pub const BATCH_FILES_MAX: usize = 1_000;

/// Longest line of a frame, in bytes.
pub const FRAME_LINE_BYTES_MAX: usize = 256;

/// Most narinfos of one call.
pub const PUBLISH_PATHS_MAX: usize = 1_000;

/// Largest call that publishes, in bytes.
pub const PUBLISH_SIZE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Most parts of an upload: S3 has no more.
pub const PARTS_MAX: u32 = 10_000;

/// What stands before each file of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NarFrame {
    /// `<file hash>.nar[.ext]`, as after `nar/` in a narinfo's `URL:`.
    pub file: String,
    /// How many bytes of the file follow the line.
    pub size_bytes: u64,
}

/// What became of a batch, one result for each frame and in their order.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NarsStored {
    pub results: Vec<NarStored>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NarStored {
    pub file: String,
    /// Why the file was refused; absent if it is verified and stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
}

/// Why one thing of many was refused, as a problem of its own would say it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Refused {
    /// `urn:narvault:problem:<slug>`: stable, for programs.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status that a call of its own would have got.
    pub status: u16,
    /// What is wrong, with which thing, and what to do.
    pub detail: String,
    /// How long to wait before it is tried again, where a problem of its own would have said so by `Retry-After`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
}

/// Asks which NARs stand here already: left by a push that was interrupted, or pushed under another name.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StoredRequest {
    /// `sha256:…` of uncompressed NARs, at most 10 000.
    pub nar_hashes: Vec<String>,
}

/// Those that stand here, verified: their paths can be published without sending a byte.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StoredAnswer {
    pub nars: Vec<StoredNar>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StoredNar {
    /// As it was asked for.
    pub nar_hash: String,
    /// `<file hash>.nar[.ext]`, as after `nar/` in a narinfo's `URL:`.
    pub file: String,
    /// As in a narinfo's `Compression:`.
    pub compression: String,
    pub file_size_bytes: u64,
}

/// Narinfos to be published in this order: what is referred to comes first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishRequest {
    /// Whole narinfos, at most 1 000.
    pub narinfos: Vec<String>,
}

/// What became of each narinfo, in the order of the request.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PublishAnswer {
    pub results: Vec<PathPublished>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PathPublished {
    /// `/nix/store/…`, or the empty text where the narinfo could not be read.
    pub store_path: String,
    pub outcome: PublishOutcome,
    /// Names of the keys that the path is signed with here.
    pub keys: Vec<String>,
    /// Why it was refused; absent if it is published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PublishOutcome {
    /// Signed and logged by this call.
    New,
    /// It stood already with the same claim; this call is further evidence.
    Again,
    /// Not published by this call; `refused` says why.
    Refused,
}

/// Opens an upload in parts, or finds the one that this contributor left unfinished.
///
/// An upload is known by its NAR and its compression, not by the file's hash: that is known only when the
/// last byte was made. An interrupted client makes the same bytes again and compares the parts' digests.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UploadOpen {
    /// `sha256:…`, the hash of the uncompressed NAR.
    pub nar_hash: String,
    /// `none`, `xz` or `zstd`.
    pub compression: String,
    /// Size of each part but the last, in bytes: 5 MiB to 64 MiB, 16 MiB unless told. An upload that is found
    /// keeps its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part_size_bytes: Option<u64>,
}

/// An upload that is not complete.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UploadView {
    pub id: String,
    pub part_size_bytes: u64,
    /// Until when it is kept; each part that arrives prolongs it.
    pub expires_at: String,
    /// What is there already, by number.
    pub parts: Vec<UploadPart>,
    /// Whether parts may go straight to the storage by presigned URLs.
    pub direct: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UploadPart {
    /// From 1.
    pub number: u32,
    pub size_bytes: u64,
    /// SHA-256 of the part, in hex.
    pub sha256: String,
}

/// Asks for a URL by which a part goes straight to the storage.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PartUrlRequest {
    pub size_bytes: u64,
    /// SHA-256 of the part, in hex.
    pub sha256: String,
}

/// Where a part goes by one PUT. The URL is a secret of its own.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct PartUrl {
    pub url: String,
    pub expires_at: String,
}

/// Ends an upload: all parts are there, and make this file.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UploadComplete {
    /// `<file hash>.nar[.ext]`, as after `nar/` in a narinfo's `URL:`.
    pub file: String,
    pub file_size_bytes: u64,
    pub parts: u32,
}
