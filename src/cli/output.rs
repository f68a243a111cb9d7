//! Where words go: data to stdout, everything else to stderr.
//!
//! Never panics on a closed pipe, and never colours: what clap colours obeys NO_COLOR by itself.

use std::io::{self, Write};

use serde::Serialize;

use super::failure::Failure;
use super::text::plain;

/// Prints for people, or with `--json` for programs.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    pub json: bool,
    pub quiet: bool,
}

impl Printer {
    /// An answer: with `--json` as the server gave it, on one line; else as `people` puts it, which ends in a line
    /// break or is empty.
    pub fn answer<T: Serialize>(&self, answer: &T, people: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        if !self.json {
            return self.data(&people(answer));
        }
        let mut text = serde_json::to_string(answer)
            .map_err(|error| Failure::caused("cannot print the answer as JSON".into(), error))?;
        text.push('\n');
        self.data(&text)
    }

    /// Text for stdout, as it is.
    pub fn data(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Failure::stdout)
    }

    /// Something good to know; not with `--quiet`.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            to_stderr(&format!("{}\n", plain(text)));
        }
    }

    /// Lines that were made harmless already, such as a table; not with `--quiet`.
    pub fn note_lines(&self, text: &str) {
        if !self.quiet {
            to_stderr(text);
        }
    }

    /// Something that will go wrong unless somebody acts.
    pub fn warning(&self, text: &str, hint: &str) {
        to_stderr(&format!("warning: {}\nhint: {}\n", plain(text), plain(hint)));
    }
}

/// Writes to stderr. When nobody can be told, there is nobody to tell.
pub fn to_stderr(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}
