//! Which nix.conf is edited: the user's, the machine's, or one that was named.
//!
//! Never edits it: [`super`] does.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::failure::{Exit, Failure};
use crate::cli::local_nix::{Places, View, read_leniently};
use crate::client::nix_conf::Line;
use crate::client::text_file::{TextFile, TextFileError};

/// Which file, as `use` and `unuse` take it.
#[derive(Debug, Args)]
pub struct FileArgs {
    /// Edit the machine's nix.conf, which the daemon reads, not the user's
    #[arg(long, group = "which")]
    system: bool,
    /// Edit this file
    #[arg(long, value_name = "FILE", group = "which")]
    file: Option<PathBuf>,
}

/// Who reads the file that is edited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reader {
    /// The user's commands.
    User,
    /// The daemon, and every user's commands.
    Machine,
    /// Whoever is told to.
    Unknown,
}

/// The file to edit, and who reads it.
#[derive(Debug, Clone)]
pub struct Target {
    pub file: TextFile,
    pub reader: Reader,
}

impl Target {
    pub fn choose(args: &FileArgs, places: &Places) -> Result<Self, Failure> {
        let (path, reader) = if let Some(path) = &args.file {
            (path.clone(), Reader::Unknown)
        } else if args.system {
            let custom = custom_of(&places.system, read_leniently(&places.system).as_deref());
            (custom.unwrap_or_else(|| places.system.clone()), Reader::Machine)
        } else {
            let first = places.user.first().cloned().ok_or_else(|| {
                Failure::new(Exit::Usage, "NIX_USER_CONF_FILES is empty: Nix reads no file of the user")
                    .hint("name one there, or add `--system` or `--file FILE`")
            })?;
            (first, Reader::User)
        };
        let path = std::path::absolute(&path)
            .map_err(|error| Failure::caused(format!("cannot use {}", path.display()), error))?;
        let file = TextFile::at(&path).map_err(|error| file_failure(error, &reader))?;
        Ok(Self { file, reader })
    }

    /// The configuration that this file belongs to.
    pub fn view(&self) -> View<'_> {
        match self.reader {
            Reader::User => View::Own,
            Reader::Machine => View::Daemon,
            Reader::Unknown => View::File(&self.file.path),
        }
    }
}

/// `nix.custom.conf` beside a nix.conf that includes it: Determinate's installer owns the first and leaves the second
/// to people.
fn custom_of(path: &Path, text: Option<&str>) -> Option<PathBuf> {
    let included = text?.lines().find_map(|line| match Line::parse(line) {
        Line::Include { path, .. } if Path::new(path).file_name()? == CUSTOM => Some(path.to_owned()),
        _ => None,
    })?;
    Some(path.parent()?.join(included))
}

/// A failure of a file, with what helps.
pub fn file_failure(error: TextFileError, reader: &Reader) -> Failure {
    let denied = |source: &std::io::Error| source.kind() == std::io::ErrorKind::PermissionDenied;
    let hint = match &error {
        TextFileError::Generated { .. } => Some(
            "add the settings to what generates it: `narvault use CACHE --print nixos` or `--print home-manager`"
                .to_owned(),
        ),
        TextFileError::Write { source, .. } | TextFileError::Read { source, .. } if denied(source) => {
            Some(match reader {
                Reader::Machine => "run it with sudo, or see `narvault use CACHE --print nix-conf`".to_owned(),
                _ => "the file or its folder is not yours: see `narvault use CACHE --print nix-conf`".to_owned(),
            })
        }
        TextFileError::Write { source, .. } if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {
            Some("add the settings where they come from: see `narvault use CACHE --print nixos`".to_owned())
        }
        TextFileError::Encoding { .. } => Some("convert it with `iconv -f latin1 -t utf8`".to_owned()),
        _ => None,
    };
    let failure = Failure::Told { exit: Exit::Failure, error: error.into(), hint: None };
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// What Determinate's installer includes.
const CUSTOM: &str = "nix.custom.conf";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_determinate_leaves_to_people_is_found() {
        let path = Path::new("/etc/nix/nix.conf");
        for (text, expected) in [
            ("a = b\n!include nix.custom.conf\n", Some("/etc/nix/nix.custom.conf")),
            ("include /etc/nix/nix.custom.conf # yours\n", Some("/etc/nix/nix.custom.conf")),
            ("!include ./nix.custom.conf\r\n", Some("/etc/nix/./nix.custom.conf")),
            ("# !include nix.custom.conf\n", None),
            ("!include other.conf\n", None),
            ("", None),
        ] {
            assert_eq!(custom_of(path, Some(text)).as_deref(), expected.map(Path::new), "{text:?}");
        }
        assert_eq!(custom_of(path, None), None);
    }
}
