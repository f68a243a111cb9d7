//! How a command ends: its exit code, and the lines on stderr that say why and what to do next.
//!
//! The numbers are a promise to scripts; they never change.

use std::fmt;
use std::io;
use std::process::ExitCode;

use super::text::plain;
use crate::client::login::LoginError;
use crate::client::{Error as ClientError, ErrorKind};

/// What kind of failure a script sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Something went wrong that has no number of its own.
    Failure = 1,
    /// The command line makes no sense; also clap's number.
    Usage = 2,
    /// No token, a bad one, or one without the right.
    NotAuthorised = 3,
    /// A conflict, a limit or a policy stands against it.
    Refused = 4,
    /// The server does not answer.
    Unreachable = 5,
}

impl From<ErrorKind> for Exit {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::NotAuthorised => Self::NotAuthorised,
            ErrorKind::Refused => Self::Refused,
            ErrorKind::Unreachable => Self::Unreachable,
            ErrorKind::Other => Self::Failure,
        }
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// The reader of stdout has seen enough, as `head` does: no failure at all.
    StdoutClosed,
    /// A command that was run for somebody ended with this number, and has told why itself.
    Command { code: u8 },
    /// To be told, with the next thing to do.
    Told { exit: Exit, error: anyhow::Error, hint: Option<String> },
}

impl Failure {
    /// A failure in one's own words.
    pub fn new(exit: Exit, message: impl fmt::Display + fmt::Debug + Send + Sync + 'static) -> Self {
        Self::Told { exit, error: anyhow::Error::msg(message), hint: None }
    }

    /// A failure of the machine: a file, a terminal.
    pub fn caused(message: String, source: impl Into<anyhow::Error>) -> Self {
        Self::Told { exit: Exit::Failure, error: source.into().context(message), hint: None }
    }

    /// The same failure with another hint.
    #[must_use]
    pub fn hint(mut self, text: impl Into<String>) -> Self {
        if let Self::Told { hint, .. } = &mut self {
            *hint = Some(text.into());
        }
        self
    }

    /// From writing to stdout.
    pub fn stdout(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::StdoutClosed
        } else {
            Self::caused("cannot write to stdout".into(), error)
        }
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::StdoutClosed => ExitCode::SUCCESS,
            Self::Command { code } => ExitCode::from(*code),
            Self::Told { exit, .. } => ExitCode::from(*exit as u8),
        }
    }
}

/// The lines for stderr: `error: …`, then `hint: …` where there is one; nothing if it is told already.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Told { error, hint, .. } = self else { return Ok(()) };
        write!(f, "error: {}", plain(&error.to_string()))?;
        // The layers between say "error sending request", "client error (Connect)": the root says why.
        let root = error.root_cause().to_string();
        if error.chain().len() > 1 && !root.is_empty() {
            write!(f, ": {}", plain(&root))?;
        }
        writeln!(f)?;
        if let Some(hint) = hint {
            writeln!(f, "hint: {}", plain(hint))?;
        }
        Ok(())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let hint = error.hint();
        Self::Told { exit: error.kind().into(), error: error.into(), hint }
    }
}

impl From<LoginError> for Failure {
    fn from(error: LoginError) -> Self {
        let hint = error.hint();
        Self::Told { exit: Exit::Failure, error: error.into(), hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Problem;

    fn problem(status: u16) -> ClientError {
        ClientError::Problem(Box::new(Problem {
            kind: "urn:narvault:problem:x".into(),
            title: "X".into(),
            status,
            detail: "cache \u{1b}[31m`main`\nholds paths".into(),
            request_id: "r-1".into(),
        }))
    }

    #[test]
    fn the_exit_codes_are_those_that_the_manual_promises() {
        let url: crate::client::ServerUrl = "https://a.example".parse().unwrap();
        for (failure, expected) in [
            (Failure::new(Exit::Failure, "x"), 1),
            (Failure::new(Exit::Usage, "x"), 2),
            (problem(401).into(), 3),
            (problem(403).into(), 3),
            (ClientError::NoToken { url: url.clone() }.into(), 3),
            (problem(409).into(), 4),
            (problem(422).into(), 4),
            (ClientError::Foreign { url: url.clone(), status: 502 }.into(), 5),
            (problem(404).into(), 1),
            (problem(500).into(), 1),
            (ClientError::PlainHttp { url: url.clone() }.into(), 1),
            (Failure::stdout(io::ErrorKind::StorageFull.into()), 1),
            (Failure::stdout(io::ErrorKind::BrokenPipe.into()), 0),
        ] {
            assert_eq!(
                format!("{:?}", failure.exit_code()),
                format!("{:?}", ExitCode::from(expected)),
                "{failure}"
            );
        }
    }

    #[test]
    fn a_failure_is_told_in_one_line_and_a_hint() {
        let source = io::Error::from(io::ErrorKind::PermissionDenied);
        let failure = Failure::caused("cannot read key.txt".into(), source).hint("run `x`");

        assert_eq!(failure.to_string(), "error: cannot read key.txt: permission denied\nhint: run `x`\n");
        assert_eq!(Failure::StdoutClosed.to_string(), "");
    }

    #[test]
    fn a_servers_words_cannot_steer_the_terminal() {
        let told = Failure::from(problem(409)).to_string();

        assert_eq!(told, "error: cache \\u{1b}[31m`main`\\nholds paths\n");
    }
}
