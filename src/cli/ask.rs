//! Asking whoever runs the command: confirmations, and secrets that are not arguments.
//!
//! Never echoes a secret, and never waits for an answer where nobody can give one.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;

use secrecy::SecretString;

use super::failure::{Exit, Failure};
use super::hardening::harden;
use super::output::to_stderr;

/// What happens without a terminal and without `--yes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unattended {
    /// Go on: the act is urgent, or can be undone.
    Proceed,
    /// Refuse: the act destroys something.
    Refuse,
}

/// Whether somebody sits there who can answer.
pub fn is_attended() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks `question` on a terminal, unless `yes` was given.
pub fn confirm(question: &str, yes: bool, unattended: Unattended) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !is_attended() {
        return match unattended {
            Unattended::Proceed => Ok(()),
            Unattended::Refuse => Err(Failure::new(Exit::Usage, "nobody is there to confirm this")
                .hint("add `--yes` if it is meant")),
        };
    }
    to_stderr(&format!("{question} [y/N] "));
    let mut answer = String::new();
    io::stdin()
        .read_line(&mut answer)
        .map_err(|error| Failure::caused("cannot read the answer".into(), error))?;
    if is_yes(&answer) { Ok(()) } else { Err(Failure::new(Exit::Failure, "not confirmed, nothing was done")) }
}

/// A secret typed at a terminal, without echo.
pub fn prompt_secret(question: &str) -> Result<SecretString, Failure> {
    harden()?;
    let text = rpassword::prompt_password(format!("{question}: "))
        .map_err(|error| Failure::caused("cannot read from the terminal".into(), error))?;
    Ok(text.trim().into())
}

/// A secret of one line on stdin, without the space around it.
pub fn secret_from_stdin(what: &str) -> Result<SecretString, Failure> {
    harden()?;
    let text = read_secret(io::stdin().lock(), what)?;
    Ok(text.trim().into())
}

/// A secret from a file, or from stdin if that is `-`, with one line break at the end dropped.
pub fn secret_from_file(path: &Path, what: &str) -> Result<SecretString, Failure> {
    harden()?;
    let text = if path == Path::new("-") {
        read_secret(io::stdin().lock(), what)?
    } else {
        let file = File::open(path)
            .map_err(|error| Failure::caused(format!("cannot read {}", path.display()), error))?;
        read_secret(file, what)?
    };
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).into())
}

fn read_secret(from: impl Read, what: &str) -> Result<String, Failure> {
    let mut text = String::new();
    let length = from
        .take(SECRET_SIZE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| Failure::caused(format!("cannot read the {what}"), error))?;
    if text.trim().is_empty() {
        return Err(Failure::new(Exit::Usage, format!("the {what} is empty")));
    }
    if length as u64 > SECRET_SIZE_BYTES_MAX {
        return Err(Failure::new(
            Exit::Usage,
            format!("the {what} is longer than {SECRET_SIZE_BYTES_MAX} bytes"),
        ));
    }
    Ok(text)
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

/// Largest secret that is read: a token is below 1 KiB, a signing key 120 bytes.
const SECRET_SIZE_BYTES_MAX: u64 = 16 * 1024;

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn only_a_clear_yes_confirms() {
        for answer in ["y\n", "Y", "yes\r\n", " YES "] {
            assert!(is_yes(answer), "{answer:?}");
        }
        for answer in ["", "\n", "n", "no", "yep", "y y", "ja"] {
            assert!(!is_yes(answer), "{answer:?}");
        }
    }

    #[test]
    fn a_passphrase_loses_one_line_break_and_no_space() {
        for (text, expected) in
            [("a b \n", "a b "), ("a\r\n", "a"), ("a\n\n", "a\n"), (" a", " a"), ("a\r", "a")]
        {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("passphrase");
            std::fs::write(&path, text).unwrap();

            let secret = secret_from_file(&path, "passphrase").unwrap();

            assert_eq!(secret.expose_secret(), expected, "{text:?}");
        }
    }

    #[test]
    fn secrets_have_a_size() {
        let largest = vec![b'a'; SECRET_SIZE_BYTES_MAX as usize];
        let too_large = [&largest[..], b"a"].concat();

        assert!(read_secret(&largest[..], "token").is_ok());
        for refused in [&b""[..], b" \n", &too_large, b"\xff"] {
            assert!(read_secret(refused, "token").is_err());
        }
    }
}
