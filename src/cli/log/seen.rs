//! What somebody who follows a log has seen of it, in a file: the checkpoint as it was signed, and the key that it is
//! believed by. A log that comes later has to go on from there.
//!
//! Never goes back: what is written is a continuation of what was read.

use std::path::Path;

use super::super::failure::{Exit, Failure};
use super::place::opened;
use crate::client::text_file::{Secrecy, TextFile};
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::note::Note;
use crate::tlog::policy::Policy;
use crate::tlog::verifier_key::VerifierKey;

/// First line of the file.
const HEADER: &str = "narvault/log-seen/v1";

/// The file, and who believes what is in it.
pub struct SeenFile {
    file: TextFile,
    /// `None`: a policy that is given each time says it.
    key: Option<VerifierKey>,
}

/// What a file says, before anything of it is believed.
pub struct Seen {
    /// The key that the log was followed by first; `None` where a policy was given.
    pub key: Option<VerifierKey>,
    note: String,
}

impl Seen {
    /// What is in the file at `path`; `None` if there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, Failure> {
        let Some(text) = at(path)?.read().map_err(|error| unreadable(path, error))? else { return Ok(None) };
        let damaged = || {
            let what = format!("{} is not what `narvault log follow` keeps there", path.display());
            Failure::new(Exit::Failure, what)
                .hint("name another file; this one is left as it is, for it may be evidence")
        };
        let rest =
            text.strip_prefix(HEADER).and_then(|rest| rest.strip_prefix("\nkey ")).ok_or_else(damaged)?;
        let (key, note) = rest.split_once("\n\n").ok_or_else(damaged)?;
        let key = if key == "-" { None } else { Some(key.parse().map_err(|_| damaged())?) };
        Note::parse(note.as_bytes()).map_err(|_| damaged())?;
        Ok(Some(Self { key, note: note.to_owned() }))
    }

    /// The checkpoint, if `policy` believes it.
    pub fn checkpoint(&self, policy: &Policy) -> Result<Checkpoint, Failure> {
        Ok(opened(self.note.as_bytes(), policy)?.0)
    }
}

impl SeenFile {
    /// The file at `path`, in which checkpoints are kept that `key` signed.
    pub fn new(path: &Path, key: Option<VerifierKey>) -> Result<Self, Failure> {
        Ok(Self { file: at(path)?, key })
    }

    /// Keeps a checkpoint: whoever reads at any moment, after a power failure too, finds the old one or this one.
    pub fn keep(&self, note: &Note) -> Result<(), Failure> {
        let key = self.key.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        let text = format!("{HEADER}\nkey {key}\n\n{}", note.encode());
        let written = self.file.lock().and_then(|_lock| self.file.write(Some(&text), Secrecy::Open));
        written.map_err(|error| Failure::caused("what was seen of the log cannot be kept".into(), error))
    }
}

fn at(path: &Path) -> Result<TextFile, Failure> {
    let absolute = std::path::absolute(path).map_err(|error| unreadable(path, error))?;
    TextFile::at(&absolute).map_err(|error| unreadable(path, error))
}

fn unreadable(path: &Path, error: impl Into<anyhow::Error>) -> Failure {
    Failure::caused(format!("cannot use {}", path.display()), error)
}
