//! Shares on the command line: made, handed out, and handed in.
//!
//! Never writes over a file, and makes the files before it asks for the shares: those are told once.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret as _, SecretString};

use crate::api::{self, SlotAdded, SlotCreate, VaultView};
use crate::cli::Context;
use crate::cli::ask;
use crate::cli::failure::{Exit, Failure};
use crate::cli::text::moment;
use crate::client::Client;
use crate::service::SHARES_MINUTES;
use crate::vault::{Share, ShareCount};

/// Adds a slot that shares open, and hands these out: to stdout, or each to a file of its own.
pub async fn add_slot(
    count: ShareCount,
    folder: Option<&Path>,
    client: &Client,
    context: &Context,
) -> Result<(), Failure> {
    let files = folder.map(|folder| ShareFiles::make(folder, count)).transpose()?;
    let (threshold, of) = (count.threshold(), count.of());
    let wanted = SlotCreate { shares: Some(api::ShareCount { threshold, of }), ..SlotCreate::default() };
    let mut added = client.slot_add(&wanted).await?;
    let paths = match files {
        None => None,
        Some(files) => {
            let texts = std::mem::take(&mut added.share_texts);
            let written = files.fill(&texts.into_iter().map(SecretString::from).collect::<Vec<_>>());
            Some(written.map_err(|failure| {
                failure.hint(format!(
                    "its shares are lost; remove the slot: `narvault vault slot remove {} --yes`",
                    added.id
                ))
            })?)
        }
    };
    context.printer.answer(&added, |added| handed_out(added, paths.as_deref(), of))?;
    context.printer.note(&format!(
        "give each share to another person, who keeps it in private: they are shown this once and stored nowhere. Any \
         {threshold} of the {of} open the vault, {} may be lost; fewer than {threshold} say nothing of the key",
        of - threshold
    ));
    Ok(())
}

/// The slot, then where its shares are, or the shares themselves.
fn handed_out(added: &SlotAdded, paths: Option<&[PathBuf]>, of: u8) -> String {
    let mut text = format!("{} {}, since {}\n", added.kind, added.id, moment(&added.created_at));
    let shares: Vec<String> = match paths {
        Some(paths) => paths.iter().map(|path| path.display().to_string()).collect(),
        None => added.share_texts.clone(),
    };
    for (number, share) in (1..).zip(shares) {
        text.push_str(&format!("share {number} of {of}: {share}\n"));
    }
    text
}

/// Empty files that only this user can read, removed again unless they are filled.
struct ShareFiles {
    files: Vec<(PathBuf, File)>,
    filled: bool,
}

impl ShareFiles {
    /// `share-1-of-5` and so on in `folder`, which is made if it is not there. Refuses where one is there already.
    fn make(folder: &Path, count: ShareCount) -> Result<Self, Failure> {
        let failed = |path: &Path, error| Failure::caused(format!("cannot make {}", path.display()), error);
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(folder, error)),
            _ => {}
        }
        let mut made = Self { files: Vec::new(), filled: false };
        for number in 1..=count.of() {
            let path = folder.join(format!("share-{number}-of-{}", count.of()));
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            let file = file.map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => {
                    Failure::new(Exit::Failure, format!("{} is there already", path.display()))
                        .hint("name another folder; nothing was changed")
                }
                _ => failed(&path, error),
            })?;
            made.files.push((path, file));
        }
        Ok(made)
    }

    /// Writes a share to each, on disk before this returns.
    fn fill(mut self, shares: &[SecretString]) -> Result<Vec<PathBuf>, Failure> {
        if shares.len() != self.files.len() {
            let message = format!("the server sent {} shares, not {}", shares.len(), self.files.len());
            return Err(Failure::new(Exit::Failure, message));
        }
        for ((path, file), share) in self.files.iter_mut().zip(shares) {
            let written = file
                .write_all(share.expose_secret().as_bytes())
                .and_then(|()| file.write_all(b"\n"))
                .and_then(|()| file.sync_all());
            written.map_err(|error| Failure::caused(format!("cannot write {}", path.display()), error))?;
        }
        self.filled = true;
        Ok(self.files.iter().map(|(path, _)| path.clone()).collect())
    }
}

impl Drop for ShareFiles {
    fn drop(&mut self) {
        for (path, _) in self.files.iter().filter(|_| !self.filled) {
            // Whether a half-written share stays makes no difference: its slot is to be removed.
            let _ = fs::remove_file(path);
        }
    }
}

/// The share that somebody hands in: out of a file, or typed. Looked at here, so that a slip costs no try.
pub fn given(file: Option<&Path>) -> Result<SecretString, Failure> {
    let text = match file {
        Some(file) => ask::secret_from_file(file, "share")?,
        None if ask::is_attended() => ask::prompt_secret("Share, not shown")?,
        None => {
            return Err(
                Failure::new(Exit::Usage, "nobody is there to type a share").hint("add `--share-file FILE`")
            );
        }
    };
    let text: SecretString = text.expose_secret().trim().into();
    Share::parse(text.expose_secret()).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    Ok(text)
}

/// What a slot needs, and what may be lost.
pub fn needs(count: api::ShareCount) -> String {
    let api::ShareCount { threshold, of } = count;
    let spare = spare(count);
    let lost = match spare {
        0 => "none may be lost".to_owned(),
        _ => format!("{spare} may be lost, one more and it opens nothing"),
    };
    format!("any {threshold} of its {of} shares, each handed in by another administrator; {lost}")
}

/// How many shares may be lost.
pub fn spare(count: api::ShareCount) -> u8 {
    count.of.saturating_sub(count.threshold)
}

/// How far the shares are that were handed in, if some were.
pub fn progress(vault: &VaultView) -> Option<String> {
    let sets = vault.shares.iter().map(|set| {
        let by: Vec<_> =
            set.handed_in.iter().map(|one| format!("{} at {}", one.contributor, moment(&one.at))).collect();
        format!(
            "{} of {} for slot {}, by {}; forgotten at {}, {SHARES_MINUTES} minutes after the first",
            by.len(),
            set.needed.threshold,
            set.slot,
            by.join(", "),
            moment(&set.until)
        )
    });
    let sets: Vec<String> = sets.collect();
    (!sets.is_empty()).then(|| sets.join("; "))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::api::{GatheredSharesView, HandedInView};

    fn files(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn shares_are_written_to_private_files_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let into = folder.path().join("shares");
        let made = ShareFiles::make(&into, "2/3".parse().unwrap()).unwrap();

        let paths = made.fill(&["a", "b", "c"].map(SecretString::from)).unwrap();

        assert_eq!(files(&into), ["share-1-of-3", "share-2-of-3", "share-3-of-3"]);
        assert_eq!(fs::metadata(&into).unwrap().permissions().mode() & 0o777, 0o700);
        for (path, text) in paths.iter().zip(["a\n", "b\n", "c\n"]) {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(fs::read_to_string(path).unwrap(), text);
        }
    }

    #[test]
    fn what_is_there_stays_and_what_is_not_filled_goes() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("share-2-of-3"), "somebody's").unwrap();

        let refused = ShareFiles::make(folder.path(), "2/3".parse().unwrap());

        assert!(refused.is_err());
        assert_eq!(files(folder.path()), ["share-2-of-3"]);
        assert_eq!(fs::read_to_string(folder.path().join("share-2-of-3")).unwrap(), "somebody's");
        let made = ShareFiles::make(folder.path(), "2/2".parse().unwrap()).unwrap();
        assert_eq!(files(folder.path()).len(), 3);
        assert!(made.fill(&[SecretString::from("a")]).is_err());
        assert_eq!(files(folder.path()), ["share-2-of-3"]);
    }

    #[test]
    fn the_words_say_what_is_needed_what_may_be_lost_and_how_far_it_is() {
        let count = |threshold, of| api::ShareCount { threshold, of };
        assert_eq!(
            needs(count(3, 5)),
            "any 3 of its 5 shares, each handed in by another administrator; 2 may be lost, one more and it opens \
             nothing"
        );
        assert!(needs(count(2, 2)).ends_with("; none may be lost"));

        let one =
            |name: &str| HandedInView { contributor: name.into(), at: "2026-11-22T13:06:00.000Z".into() };
        let set = GatheredSharesView {
            slot: "019a".into(),
            needed: count(3, 5),
            handed_in: vec![one("alice"), one("bob")],
            until: "2026-11-22T13:21:00.000Z".into(),
        };
        let mut vault = VaultView {
            state: "sealed".into(),
            sealed_by_hand: false,
            kms_wait: None,
            shares: vec![set],
            slots: Vec::new(),
            root_version: 1,
            kek_version: 1,
            rows_behind: 0,
            kek_rotation: None,
        };
        assert_eq!(
            progress(&vault).unwrap(),
            "2 of 3 for slot 019a, by alice at 2026-11-22T13:06:00Z, bob at 2026-11-22T13:06:00Z; forgotten at \
             2026-11-22T13:21:00Z, 15 minutes after the first"
        );
        vault.shares.clear();
        assert_eq!(progress(&vault), None);
    }
}
