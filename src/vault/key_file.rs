//! A slot secret in a file: exactly 32 raw bytes that only this user can read.
//!
//! Never overwrites a file, and never reads one that others may read too: it says the command that mends it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::memory::{LockedBytes, MemoryError, SECRET_BYTES};

/// The content of a key file, checked.
#[derive(Debug)]
pub struct KeyFile(LockedBytes);

impl KeyFile {
    /// Reads `path`. A symbolic link is followed, as mounted secrets are links; the checks are made on the opened
    /// file itself, so that it cannot be exchanged between the check and the read.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        // Without O_NONBLOCK, opening a pipe would wait for its writer.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let failed = |source| KeyFileError::Read { path: path.to_owned(), source };
        let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(KeyFileError::Absent { path: path.to_owned() });
            }
            opened => opened.map_err(failed)?,
        };
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(KeyFileError::NotAFile { path: path.to_owned() });
        }
        check_owner_and_mode(path, metadata.uid(), metadata.mode(), rustix::process::geteuid().as_raw())?;
        if metadata.size() != SECRET_BYTES as u64 {
            return Err(KeyFileError::Length { path: path.to_owned(), found: metadata.size() });
        }

        let mut secret = LockedBytes::zeroed()?;
        file.read_exact(secret.expose_mut()).map_err(failed)?;
        Ok(Self(secret))
    }

    /// Makes `path` with 32 random bytes and mode 0600, on disk before this returns; an existing file is refused.
    pub fn create(path: &Path) -> Result<Self, KeyFileError> {
        let failed = |source| KeyFileError::Create { path: path.to_owned(), source };
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        let secret = LockedBytes::random()?;
        file.write_all(secret.expose()).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        Ok(Self(secret))
    }

    /// The content of a key file that somebody sent.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyFileError> {
        let bytes = bytes.try_into().map_err(|_| KeyFileError::Sent { found: bytes.len() })?;
        Ok(Self(LockedBytes::copy_of(bytes)?))
    }

    /// The slot key: the file's bytes as they are.
    pub(super) fn slot_key(&self) -> Result<LockedBytes, MemoryError> {
        LockedBytes::copy_of(self.0.expose())
    }

    #[cfg(test)]
    pub(super) fn of(bytes: [u8; 32]) -> Self {
        Self(LockedBytes::copy_of(&bytes).unwrap())
    }
}

/// Root may own the file as well: that is how systemd credentials and mounted secrets come.
pub(super) fn check_owner_and_mode(
    path: &Path,
    owner: u32,
    mode: u32,
    user: u32,
) -> Result<(), KeyFileError> {
    if owner != user && owner != 0 {
        return Err(KeyFileError::Owner { path: path.to_owned(), owner, user });
    }
    let mode = mode & 0o7777;
    if mode & !0o600 != 0 {
        return Err(KeyFileError::OpenToOthers { path: path.to_owned(), mode });
    }
    Ok(())
}

/// Why a key file is not used. Each says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("key file {} is absent: put back the file that this vault was made with", path.display())]
    Absent { path: PathBuf },
    #[error("key file {} could not be made", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error(
        "key file {} is {found} bytes, expected exactly {SECRET_BYTES} raw bytes: put back the file that this vault \
         was made with, or, for a new vault, run `(umask 077; head -c 32 /dev/urandom > NEW-FILE)`",
        path.display()
    )]
    Length { path: PathBuf, found: u64 },
    #[error("no page of memory for a secret")]
    Memory(#[from] MemoryError),
    #[error("key file {} is not a regular file", path.display())]
    NotAFile { path: PathBuf },
    #[error("key file {} has mode {mode:04o}, which is more than 0600: run `chmod 600 {}`", path.display(), quoted(path))]
    OpenToOthers { path: PathBuf, mode: u32 },
    #[error("key file {} belongs to user {owner}, not to user {user}: run `chown {user} {}`", path.display(), quoted(path))]
    Owner { path: PathBuf, owner: u32, user: u32 },
    #[error("key file {} could not be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the content of a key file is {found} bytes, expected exactly {SECRET_BYTES} raw bytes")]
    Sent { found: usize },
}

/// The path as one word of a shell command.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+@".contains(&byte)) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file(folder: &Path, bytes: &[u8], mode: u32) -> PathBuf {
        let path = folder.join("vault.key");
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_made_key_file_reads_back_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vault.key");

        let made = KeyFile::create(&path).unwrap();

        assert_eq!(KeyFile::read(&path).unwrap().0.expose(), made.0.expose());
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert!(matches!(KeyFile::create(&path), Err(KeyFileError::Create { .. })));
    }

    #[test]
    fn stricter_modes_and_links_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path(), &[5; 32], 0o400);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();

        assert_eq!(KeyFile::read(&link).unwrap().0.expose(), &[5; 32]);
    }

    #[test]
    fn files_open_to_others_are_refused_with_the_command_that_mends_them() {
        let folder = tempfile::tempdir().unwrap();
        for mode in [0o644, 0o640, 0o604, 0o620, 0o700, 0o666, 0o4600] {
            let path = file(folder.path(), &[5; 32], mode);

            let refusal = KeyFile::read(&path).unwrap_err().to_string();

            assert!(refusal.contains(&format!("{mode:04o}")), "{refusal}");
            assert!(refusal.ends_with(&format!("run `chmod 600 {}`", path.display())), "{refusal}");
        }
    }

    #[test]
    fn files_of_another_user_are_refused_with_the_command_that_mends_them() {
        let path = Path::new("/srv/my vault/key");

        let refusal = check_owner_and_mode(path, 1001, 0o100_600, 1000).unwrap_err().to_string();

        assert!(refusal.ends_with("run `chown 1000 '/srv/my vault/key'`"), "{refusal}");
        assert!(check_owner_and_mode(path, 1000, 0o100_600, 1000).is_ok());
        assert!(check_owner_and_mode(path, 0, 0o100_400, 1000).is_ok());
    }

    #[test]
    fn other_lengths_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for length in [0, 1, 31, 33, 64] {
            let path = file(folder.path(), &vec![65; length], 0o600);

            let refusal = KeyFile::read(&path).unwrap_err().to_string();

            assert!(refusal.contains(&format!("is {length} bytes, expected exactly 32")), "{refusal}");
            assert!(!refusal.contains("AAAA"), "{refusal}");
        }
    }

    #[test]
    fn what_is_not_a_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let absent = folder.path().join("absent");
        assert!(matches!(KeyFile::read(&absent), Err(KeyFileError::Absent { .. })));
        assert!(matches!(KeyFile::read(folder.path()), Err(KeyFileError::NotAFile { .. })));
        assert!(matches!(KeyFile::read(Path::new("/dev/zero")), Err(KeyFileError::NotAFile { .. })));

        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(matches!(KeyFile::read(&pipe), Err(KeyFileError::NotAFile { .. })));
    }

    #[test]
    fn a_key_file_prints_nothing_of_its_content() {
        assert_eq!(format!("{:?}", KeyFile::of([65; 32])), "KeyFile([redacted])");
    }
}
