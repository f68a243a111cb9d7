//! What can go wrong with the queue's file.

use std::io;
use std::path::PathBuf;

/// Why the queue cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    #[error("there is no queue at {}", path.display())]
    Absent { path: PathBuf },
    #[error("cannot open the queue {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the queue {} is damaged, or is no queue", path.display())]
    Damaged { path: PathBuf, source: sqlx::Error },
    #[error("the queue {} was made by a newer narvault (version {version})", path.display())]
    Newer { path: PathBuf, version: i64 },
    #[error("the queue {} failed", path.display())]
    Failed { path: PathBuf, source: sqlx::Error },
}

impl QueueError {
    pub(super) fn of(path: PathBuf, source: sqlx::Error) -> Self {
        if is_damage(&source) { Self::Damaged { path, source } } else { Self::Failed { path, source } }
    }

    /// The next thing to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Damaged { path, .. } => Some(format!(
                "move {} away, and what lies beside it under that name; a new one is made",
                path.display()
            )),
            Self::Absent { .. } => Some("name the file that the hook writes by `--queue`".into()),
            Self::File { .. } => Some("name a file in a folder that is yours by `--queue`".into()),
            Self::Newer { .. } => Some("run that version, or a later one".into()),
            Self::Failed { .. } => None,
        }
    }
}

/// SQLite's primary codes 11 (malformed) and 26 (not a database), under any extended code; or a row that no version
/// writes.
fn is_damage(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => {
            let code = error.code().and_then(|code| code.parse::<u32>().ok()).unwrap_or_default();
            matches!(code & 0xff, 11 | 26)
        }
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => true,
        _ => false,
    }
}
