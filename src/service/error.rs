//! What can be wrong with a call. No status codes: `http` maps these, exhaustively, in one place.

use crate::access::Denied;
use crate::db::{DbError, Restartable};
use crate::kms::KmsError;
use crate::nix::claim::Claim;
use crate::nix::compression::{NarFileName, ParseNarFileNameError};
use crate::nix::debuginfo::DebugInfoError;
use crate::nix::hash::NarHash;
use crate::nix::listing::ListingError;
use crate::nix::narinfo::NarInfoError;
use crate::nix::realisation::ParseRealisationError;
use crate::nix::store_path::{StorePath, StorePathHash};
use crate::service::SigningStopped;
use crate::service::measure::MeasureError;
use crate::storage::StorageError;
use crate::vault::VaultError;

/// Why an operation did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No credential, or a bad one.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// A live token without the right; says nothing about whether the thing exists.
    #[error("this token does not allow that")]
    Forbidden,
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// The vault is sealed: what needs a secret has to wait for `narvault vault unseal`.
    #[error("narvault is sealed: reads and revocations go on, uploads wait until an operator unseals it")]
    Sealed,
    /// The database is older than what was published from it, or has another history.
    #[error(
        "narvault only reads: its database has {leaves} leaves of the signature log, and not all of the {published} that \
         were published; an operator has to run `narvault recover` on the server's host"
    )]
    RolledBack { leaves: i64, published: i64 },
    /// The vault is open, but what would be signed could not be proved.
    #[error("narvault signs nothing now: {0}")]
    Stopped(#[from] SigningStopped),
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The content, or the request's values, are refused.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    #[error("{what} is larger than {max} bytes")]
    TooLarge { what: &'static str, max: u64 },
    /// Too many tries from one address.
    #[error("too many tries; wait {retry_after_seconds} seconds")]
    TooMany { retry_after_seconds: u64 },
    /// The upload did not arrive whole: nobody may be left to hear this.
    #[error("the upload broke off before its end")]
    Aborted,
    /// The upload came too slowly.
    #[error("the upload came in more slowly than {bytes_per_second_min} bytes a second and was cut")]
    TooSlow { bytes_per_second_min: u64 },
    /// No place was free in time.
    #[error("too many uploads are under way; push again later, or fewer at once")]
    Busy,
    #[error("storage is full; nothing was kept of this, push again once there is room")]
    StorageFull(#[source] StorageError),
    #[error("storage cannot take or give objects now")]
    Storage(#[source] StorageError),
    #[error("the database does not answer now")]
    Database(#[source] DbError),
    /// The key management service did not encrypt or decrypt a slot key.
    #[error(transparent)]
    Kms(KmsError),
    /// A key that does not open, or a fault of ours. The log has the cause.
    #[error("the vault failed")]
    Vault(#[from] VaultError),
    #[error("an internal error; the server's log has it")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What stands in the way of an act that is otherwise right.
#[derive(Debug, thiserror::Error)]
pub enum Conflict {
    #[error(
        "{path} is published here with another content (NarHash {standing}, yours {claimed}); \
         the first one stays, and this is recorded as a conflict"
    )]
    OtherContent { path: StorePath, standing: NarHash, claimed: NarHash },
    #[error(
        "{path} is published here with other references; the first ones stay, and this is recorded as a conflict"
    )]
    OtherReferences { path: StorePath },
    #[error("this cache has no signing key yet; an admin makes one with `narvault key create`")]
    NoSigningKey,
    #[error("the NAR was deleted while it was uploaded; push again")]
    DeletedMeanwhile,
    #[error("another realisation of this output is published here; the first one stays")]
    OtherRealisation,
    #[error("the name {0:?} was given before, and a name is never given twice")]
    NameTaken(String),
    #[error("the prefix {0:?} lies within that of another cache, or around it")]
    PrefixOverlaps(String),
    #[error("the cache holds {paths} paths; delete them first, or purge")]
    CacheNotEmpty { paths: u64 },
    #[error(
        "{paths} published paths and realisations are signed by this key alone; sign them again first, with \
         `narvault key resign`"
    )]
    SignedAlone { paths: u64 },
    #[error(
        "the root key was not rotated: slot {slots} would open nothing any more; bring the secret of each that shall \
         stay, and name each that shall go to be dropped"
    )]
    SlotsWithoutSecret { slots: String },
    #[error("{0}")]
    State(&'static str),
}

/// What is wrong with the content of a request. Each is a sentence that Nix can show.
#[derive(Debug, thiserror::Error)]
pub enum Rejection {
    #[error(transparent)]
    Measure(MeasureError),
    #[error(
        "the file's SHA-256 is {measured}, but its name says {named}; it was damaged on its way, or misnamed"
    )]
    FileHash { named: NarFileName, measured: NarFileName },
    #[error(transparent)]
    NarName(#[from] ParseNarFileNameError),
    #[error("the files of this batch mention more than {max} store paths together; send this one by itself")]
    BatchReferences { max: usize },
    /// A body of many things that is not put together as it has to be: `what` is wrong with it.
    #[error("{0}")]
    Frames(String),
    #[error("part {number} of the upload: {why}")]
    UploadPart { number: u32, why: String },
    #[error(transparent)]
    NarInfo(#[from] NarInfoError),
    #[error("narinfo of {stated} was put under the hash {asked}")]
    OtherHash { asked: StorePathHash, stated: StorePath },
    #[error(
        "nar/{0} was not uploaded to this cache, or is gone; run the push again, with `nix --refresh copy`"
    )]
    UnknownNar(NarFileName),
    #[error("nar/{0} is missing from storage; push the path again, with `nix --refresh copy`")]
    LostNar(NarFileName),
    #[error("narinfo's {field} is {claimed}, but the uploaded NAR's is {measured}")]
    Mismatch { field: &'static str, claimed: String, measured: String },
    #[error(
        "{missing} is referred to by {path} but is not published in this cache; push it first, \
         with `nix --refresh copy` if Nix believes that it is here"
    )]
    MissingReference { path: StorePath, missing: StorePath },
    #[error(
        "{missing}, to which {path} refers, is not published in this cache, and the upstream {url} did not \
         answer whether it holds it; push again later, or push that path too"
    )]
    UpstreamSilent { path: StorePath, missing: StorePath, url: String },
    #[error("the NAR of {path} mentions {found}, which is published here and not among its references")]
    UndeclaredReference { path: StorePath, found: StorePath },
    #[error("narinfo's CA does not fit: that content would be {computed}, not {path}")]
    ContentAddress { path: StorePath, computed: StorePath },
    #[error("narinfo's CA does not fit the NAR of {path}: {why}")]
    ContentAddressKind { path: StorePath, why: &'static str },
    #[error(transparent)]
    Listing(#[from] ListingError),
    #[error(transparent)]
    DebugInfo(#[from] DebugInfoError),
    #[error("build log is not UTF-8 text without NUL characters")]
    Log,
    #[error(transparent)]
    Realisation(#[from] ParseRealisationError),
    #[error("the realisation's output {0} is not published in this cache; push it first")]
    RealisationOutput(StorePath),
    /// A value of a JSON request; `field` names it.
    #[error("{field}: {why}")]
    Value { field: &'static str, why: String },
}

impl Error {
    /// Says of a reference that is missing here that it may well be at an upstream, if one was `silent`.
    pub(super) fn of_silent_upstream(self, silent: Option<String>) -> Self {
        match (self, silent) {
            (Self::Rejected(Rejection::MissingReference { path, missing }), Some(url)) => {
                Rejection::UpstreamSilent { path, missing, url }.into()
            }
            (error, _) => error,
        }
    }
}

impl Rejection {
    /// A refused value of a request's field.
    pub fn value(field: &'static str, why: impl ToString) -> Self {
        Self::Value { field, why: why.to_string() }
    }
}

impl Conflict {
    /// How `claim` differs from the one that stands.
    pub fn between(standing: &Claim, claim: &Claim) -> Self {
        let path = claim.path.clone();
        if standing.nar_hash == claim.nar_hash {
            Self::OtherReferences { path }
        } else {
            Self::OtherContent { path, standing: standing.nar_hash, claimed: claim.nar_hash }
        }
    }
}

impl From<MeasureError> for Error {
    fn from(error: MeasureError) -> Self {
        match error {
            MeasureError::Source(_) => Self::Aborted,
            MeasureError::FileTooLarge { max } => Self::TooLarge { what: "the uploaded file", max },
            MeasureError::NarTooLarge { max } => Self::TooLarge { what: "the NAR", max },
            other => Rejection::Measure(other).into(),
        }
    }
}

impl From<DbError> for Error {
    fn from(error: DbError) -> Self {
        if error.is_unavailable() { Self::Database(error) } else { Self::Internal(error.into()) }
    }
}

impl From<StorageError> for Error {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Full { .. } => Self::StorageFull(error),
            StorageError::TooLarge { size_bytes_max } => {
                Self::TooLarge { what: "the uploaded file", max: size_bytes_max }
            }
            _ => Self::Storage(error),
        }
    }
}

impl From<Denied> for Error {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Unauthenticated => Self::Unauthenticated("this needs a token"),
            Denied::Forbidden => Self::Forbidden,
        }
    }
}

impl Restartable for Error {
    fn is_restartable(&self) -> bool {
        matches!(self, Self::Database(error) if error.is_restartable())
    }
}
