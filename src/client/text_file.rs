//! A configuration file that other programs own too: read whole, replaced whole.
//!
//! A reader sees the old text or the new one. Mode and owner stay, links stay links, and what a package manager
//! generates is refused. Never looks at what the text means.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Why a file is not edited. Never says what is in it.
#[derive(Debug, thiserror::Error)]
pub enum TextFileError {
    #[error("{path} is generated: it leads to {target}", path = path.display(), target = target.display())]
    Generated { path: PathBuf, target: PathBuf },
    #[error("{path} is not a file", path = path.display())]
    Kind { path: PathBuf },
    #[error("{path} is larger than {FILE_SIZE_BYTES_MAX} bytes", path = path.display())]
    TooLarge { path: PathBuf },
    #[error("{path} is not UTF-8", path = path.display())]
    Encoding { path: PathBuf },
    #[error("cannot read {path}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}", path = path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secrecy {
    /// Everybody, if the file is new; else whoever may read it already.
    Open,
    /// Its owner alone: it holds tokens. Where somebody else owns it, its group too if that may read it already.
    Secret,
}

/// Who else than its owner may read or write a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Openness {
    /// The bits of the mode.
    pub mode: u32,
    /// Whether whoever runs this owns it, and so decides about its mode.
    pub is_ours: bool,
}

/// The place of a file, whether it is there or not, with links followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextFile {
    /// As it was named.
    pub path: PathBuf,
    real: PathBuf,
}

impl TextFile {
    /// The file at `path`, which must be absolute. Refuses one that a package manager generates: it would be
    /// overwritten, and cannot be written to in the first place.
    pub fn at(path: &Path) -> Result<Self, TextFileError> {
        let mut real = path.to_owned();
        // A link to nowhere is followed too: what is made is its target.
        for _ in 0..LINKS_MAX {
            match fs::read_link(&real) {
                Ok(target) => real = real.parent().unwrap_or(Path::new("/")).join(target),
                Err(_) => break,
            }
        }
        let folder = real.parent().unwrap_or(Path::new("/"));
        if let (Ok(folder), Some(name)) = (folder.canonicalize(), real.file_name()) {
            real = folder.join(name);
        }
        if real.starts_with("/nix/store") {
            return Err(TextFileError::Generated { path: path.to_owned(), target: real });
        }
        Ok(Self { path: path.to_owned(), real })
    }

    /// The text; `None` if there is no such file.
    pub fn read(&self) -> Result<Option<String>, TextFileError> {
        let read = |source| TextFileError::Read { path: self.path.clone(), source };
        let file = match File::open(&self.real) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(read(error)),
        };
        if !file.metadata().map_err(read)?.is_file() {
            return Err(TextFileError::Kind { path: self.path.clone() });
        }
        let mut bytes = Vec::new();
        file.take(FILE_SIZE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(read)?;
        if bytes.len() as u64 > FILE_SIZE_BYTES_MAX {
            return Err(TextFileError::TooLarge { path: self.path.clone() });
        }
        String::from_utf8(bytes).map(Some).map_err(|_| TextFileError::Encoding { path: self.path.clone() })
    }

    /// Who else than its owner may read or write the file; `None` if nobody may, or it is not there.
    pub fn openness(&self) -> Option<Openness> {
        let present = fs::metadata(&self.real).ok()?;
        let mode = present.mode() & 0o777;
        (mode & 0o077 != 0).then_some(Openness { mode, is_ours: is_ours(&present) })
    }

    /// Takes the file from everybody but its owner. To be called under the lock.
    pub fn close(&self) -> Result<(), TextFileError> {
        fs::set_permissions(&self.real, Permissions::from_mode(0o600))
            .map_err(|source| self.write_error(source))
    }

    /// Where [`TextFile::back_up`] puts the text.
    pub fn backup_path(&self) -> PathBuf {
        let mut name = self.real.file_name().unwrap_or_default().to_owned();
        name.push(".before-narvault");
        self.real.with_file_name(name)
    }

    /// Makes the folder, and keeps others who edit this way out until the value is dropped. Fails where nothing could
    /// be written, before anything is done that rests on it.
    pub fn lock(&self) -> Result<File, TextFileError> {
        let folder = self.folder();
        let locked = DirBuilder::new().recursive(true).mode(0o755).create(folder).and_then(|()| {
            rustix::fs::access(folder, rustix::fs::Access::WRITE_OK)?;
            let folder = File::open(folder)?;
            folder.lock()?;
            Ok(folder)
        });
        locked.map_err(|source| self.write_error(source))
    }

    /// Keeps `text` beside the file, with the file's own mode and owner. To be called under the lock.
    pub fn back_up(&self, text: &str, secrecy: Secrecy) -> Result<(), TextFileError> {
        self.put(&self.backup_path(), text, secrecy).map_err(|source| self.write_error(source))
    }

    /// Replaces the file by `text`, or removes it. To be called under the lock.
    pub fn write(&self, text: Option<&str>, secrecy: Secrecy) -> Result<(), TextFileError> {
        let written = match text {
            Some(text) => self.put(&self.real, text, secrecy),
            None => fs::remove_file(&self.real).and_then(|()| File::open(self.folder())?.sync_all()),
        };
        written.map_err(|source| self.write_error(source))
    }

    /// Writes beside the place, then renames.
    fn put(&self, to: &Path, text: &str, secrecy: Secrecy) -> io::Result<()> {
        let present = match fs::metadata(&self.real) {
            Ok(present) => Some(present),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let mode = match (&present, secrecy) {
            (Some(present), Secrecy::Open) => present.permissions().mode() & 0o777,
            // A group that somebody else let in may be what they pull with.
            (Some(present), Secrecy::Secret) if !is_ours(present) => {
                present.permissions().mode() & 0o660 | 0o600
            }
            (None, Secrecy::Open) => 0o644,
            (_, Secrecy::Secret) => 0o600,
        };
        let mut draft = self.real.file_name().unwrap_or_default().to_owned();
        draft.push(".narvault-new");
        let draft = self.real.with_file_name(draft);
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Made anew, so that neither a link nor an older file's mode decides where the text goes.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        let written = (|| {
            if let Some(present) = present {
                let made = file.metadata()?;
                if (made.uid(), made.gid()) != (present.uid(), present.gid()) {
                    std::os::unix::fs::fchown(&file, Some(present.uid()), Some(present.gid()))?;
                }
            }
            file.set_permissions(Permissions::from_mode(mode))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&draft, to)
        })();
        if written.is_err() {
            // What could not be put in place is no use to anybody; that it could not says enough.
            let _ = fs::remove_file(&draft);
        }
        written?;
        File::open(self.folder())?.sync_all()
    }

    /// The folder that it really lies in.
    pub fn folder(&self) -> &Path {
        self.real.parent().unwrap_or(Path::new("/"))
    }

    fn write_error(&self, source: io::Error) -> TextFileError {
        TextFileError::Write { path: self.path.clone(), source }
    }
}

fn is_ours(present: &fs::Metadata) -> bool {
    present.uid() == rustix::process::geteuid().as_raw()
}

/// Largest file that is edited: a nix.conf or netrc of a hundred lines is below 16 KiB.
const FILE_SIZE_BYTES_MAX: u64 = 1024 * 1024;

/// Longest chain of links that is followed, as Linux has it.
const LINKS_MAX: usize = 40;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn write(path: &Path, text: &str, secrecy: Secrecy) {
        let file = TextFile::at(path).unwrap();
        let _lock = file.lock().unwrap();
        file.write(Some(text), secrecy).unwrap();
    }

    #[test]
    fn a_new_file_is_made_with_its_folder() {
        let home = tempfile::tempdir().unwrap();
        let (open, secret) = (home.path().join(".config/nix/nix.conf"), home.path().join("x/netrc"));

        write(&open, "a", Secrecy::Open);
        write(&secret, "b", Secrecy::Secret);

        assert_eq!((fs::read_to_string(&open).unwrap().as_str(), mode(&open)), ("a", 0o644));
        assert_eq!((fs::read_to_string(&secret).unwrap().as_str(), mode(&secret)), ("b", 0o600));
        assert_eq!(fs::read_dir(open.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn the_mode_stays_but_secrets_are_their_owners_alone() {
        for (before, secrecy, expected) in [
            (0o664, Secrecy::Open, 0o664),
            (0o600, Secrecy::Open, 0o600),
            (0o644, Secrecy::Secret, 0o600),
            (0o640, Secrecy::Secret, 0o600),
            (0o444, Secrecy::Secret, 0o600),
            (0o600, Secrecy::Secret, 0o600),
        ] {
            let home = tempfile::tempdir().unwrap();
            let path = home.path().join("file");
            fs::write(&path, "old").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(before)).unwrap();

            write(&path, "new", secrecy);

            assert_eq!(mode(&path), expected, "{before:o} {secrecy:?}");
        }
    }

    #[test]
    fn who_else_may_read_a_file_is_known_and_can_be_ended() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("netrc");
        let file = TextFile::at(&path).unwrap();
        assert_eq!(file.openness(), None);
        for (before, expected) in
            [(0o600, false), (0o400, false), (0o640, true), (0o604, true), (0o620, true)]
        {
            fs::write(&path, "machine a password secret\n").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(before)).unwrap();

            let openness = file.openness();

            assert_eq!(openness, expected.then_some(Openness { mode: before, is_ours: true }), "{before:o}");
            file.close().unwrap();
            assert_eq!((file.openness(), mode(&path)), (None, 0o600), "{before:o}");
            assert_eq!(fs::read_to_string(&path).unwrap(), "machine a password secret\n");
        }
    }

    #[test]
    fn a_group_that_somebody_else_let_in_stays_and_others_do_not() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("netrc");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        // Only root can make a file somebody else's.
        if std::os::unix::fs::chown(&path, Some(1), Some(1)).is_err() {
            return;
        }

        write(&path, "new", Secrecy::Secret);

        let owner = fs::metadata(&path).unwrap();
        assert_eq!((mode(&path), owner.uid(), owner.gid()), (0o640, 1, 1));
        let openness = TextFile::at(&path).unwrap().openness();
        assert_eq!(openness, Some(Openness { mode: 0o640, is_ours: false }));
    }

    #[test]
    fn a_link_stays_a_link() {
        let home = tempfile::tempdir().unwrap();
        let (real, link) = (home.path().join("dotfiles/nix.conf"), home.path().join("nix.conf"));
        fs::create_dir(real.parent().unwrap()).unwrap();
        symlink("dotfiles/nix.conf", &link).unwrap();

        write(&link, "one", Secrecy::Open);
        write(&link, "two", Secrecy::Open);

        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(real).unwrap(), "two");
    }

    #[test]
    fn what_a_package_manager_generates_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let (first, second) = (home.path().join("static"), home.path().join("nix.conf"));
        symlink("/nix/store/mmjhp110f3wf5kp5q70rc7p49yln4qzy-nix.conf", &first).unwrap();
        symlink("static", &second).unwrap();

        let error = TextFile::at(&second).unwrap_err();

        assert!(matches!(error, TextFileError::Generated { .. }), "{error}");
    }

    #[test]
    fn other_files_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let (latin, large) = (home.path().join("latin"), home.path().join("large"));
        fs::write(&latin, b"# \xe9\n").unwrap();
        fs::write(&large, vec![b'#'; FILE_SIZE_BYTES_MAX as usize + 1]).unwrap();

        let read = |path: &Path| TextFile::at(path).unwrap().read().unwrap_err();

        assert!(matches!(read(&latin), TextFileError::Encoding { .. }));
        assert!(matches!(read(&large), TextFileError::TooLarge { .. }));
        assert!(matches!(read(home.path()), TextFileError::Kind { .. }));
        assert_eq!(TextFile::at(&home.path().join("absent")).unwrap().read().unwrap(), None);
    }

    #[test]
    fn a_planted_draft_is_not_followed_and_a_backup_lies_beside() {
        let home = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (home.path().join("netrc"), home.path().join("elsewhere"));
        fs::write(&elsewhere, "untouched").unwrap();
        symlink(&elsewhere, home.path().join("netrc.narvault-new")).unwrap();
        fs::write(&path, "old").unwrap();

        let file = TextFile::at(&path).unwrap();
        file.back_up("old", Secrecy::Secret).unwrap();
        file.write(Some("new"), Secrecy::Secret).unwrap();

        assert_eq!(fs::read_to_string(elsewhere).unwrap(), "untouched");
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        let backup = home.path().join("netrc.before-narvault");
        assert_eq!((fs::read_to_string(&backup).unwrap().as_str(), mode(&backup)), ("old", 0o600));
    }
}
