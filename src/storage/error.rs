//! What can go wrong with objects, in terms that a caller can act on.
//!
//! Never carries a credential, a signed URL, or a whole answer of the backend.

use std::error::Error;
use std::io;

/// Why an object could not be written, read, removed or listed.
///
/// An absent object is no error: reads answer `None`, removing it succeeds.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The backend did not do it. Faults that pass by themselves have been retried inside already.
    #[error("storage is unavailable: could not {action}")]
    Unavailable {
        action: &'static str,
        /// Whether the same call may succeed a little later with nothing changed by anybody.
        retryable: bool,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// No room, or a quota is spent.
    #[error("storage is full: could not {action}")]
    Full {
        action: &'static str,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The backend knows us and says no, or knows no such bucket. Somebody must change something.
    #[error("storage refuses to {action}")]
    Refused {
        action: &'static str,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// What stands in the object's place cannot be what was written there.
    #[error("stored object is damaged: {0}")]
    Damaged(&'static str),
    /// Bytes that the object does not have were asked for.
    #[error("range {start}..{end} is not within the object's {size_bytes} bytes")]
    Range { start: u64, end: u64, size_bytes: u64 },
    /// The object would need more parts than a multipart upload may have.
    #[error("object is larger than {size_bytes_max} bytes, the most that this storage takes")]
    TooLarge { size_bytes_max: u64 },
    /// Another narvault writes to this bucket or folder.
    #[error("bucket or folder belongs to cluster {found}, not to {expected}")]
    OtherCluster { found: String, expected: String },
    /// The settings cannot describe a bucket or folder.
    #[error("storage setting {setting} is {problem}")]
    Setting { setting: &'static str, problem: &'static str },
}

/// A result whose error is a [`StorageError`].
pub type Result<T> = std::result::Result<T, StorageError>;

impl StorageError {
    /// Whether the same call may succeed a little later with nothing changed by anybody.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { retryable: true, .. })
    }

    /// A fault of the file system. Nothing on a local disk passes by itself but an interruption.
    pub(super) fn from_io(action: &'static str, source: io::Error) -> Self {
        use io::ErrorKind::{
            Interrupted, IsADirectory, NotADirectory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem,
            ResourceBusy, StorageFull, TimedOut,
        };
        if source.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
            return Self::Damaged("a symbolic link stands where a file or folder was expected");
        }
        match source.kind() {
            StorageFull | QuotaExceeded => Self::Full { action, source: source.into() },
            PermissionDenied | ReadOnlyFilesystem => Self::Refused { action, source: source.into() },
            IsADirectory | NotADirectory => Self::Damaged("a file and a folder are in each other's place"),
            kind => Self::Unavailable {
                action,
                retryable: matches!(kind, Interrupted | ResourceBusy | TimedOut),
                source: source.into(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn faults_of_the_file_system_are_told_apart() {
        let of = |errno: Errno| StorageError::from_io("write", errno.into());

        assert!(matches!(of(Errno::NOSPC), StorageError::Full { .. }));
        assert!(matches!(of(Errno::DQUOT), StorageError::Full { .. }));
        assert!(matches!(of(Errno::ROFS), StorageError::Refused { .. }));
        assert!(matches!(of(Errno::ACCESS), StorageError::Refused { .. }));
        assert!(matches!(of(Errno::LOOP), StorageError::Damaged(_)));
        assert!(matches!(of(Errno::ISDIR), StorageError::Damaged(_)));
        assert!(!of(Errno::IO).is_retryable());
        assert!(of(Errno::BUSY).is_retryable());
    }
}
