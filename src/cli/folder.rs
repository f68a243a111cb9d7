//! A folder of a command's own: a new one that only this user can look into, removed however the command ends.
//!
//! Never removes anything that it did not make: links are removed, not followed.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::vault::random;

/// Gone when dropped, unless it is to be kept.
pub struct TemporaryFolder {
    path: PathBuf,
    keep: bool,
}

impl TemporaryFolder {
    /// Makes a folder below the system's one for temporary files.
    pub fn make(what: &str, keep: bool) -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("narvault-{what}-{}", random::text::<10>()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self { path, keep })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        let removed = make_writable(&self.path).and_then(|()| fs::remove_dir_all(&self.path));
        if let Err(error) = removed {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a temporary folder");
        }
    }
}

/// Lets the owner remove what lies below `folder`: Nix takes the right to write from every folder of a store.
fn make_writable(folder: &Path) -> io::Result<()> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        fs::set_permissions(&folder, Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            // The entry's own type: a link to a folder is a link.
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(folder: &Path) {
        fs::create_dir_all(folder.join("store/inner")).unwrap();
        fs::write(folder.join("store/inner/file"), "x").unwrap();
        fs::set_permissions(folder.join("store/inner"), Permissions::from_mode(0o555)).unwrap();
    }

    #[test]
    fn the_folder_is_private_and_gone_afterwards_with_what_nix_made_read_only() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("precious"), "x").unwrap();
        let folder = TemporaryFolder::make("test", false).unwrap();
        let path = folder.path().to_owned();
        fill(&path);
        std::os::unix::fs::symlink(outside.path(), path.join("link")).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;

        drop(folder);

        assert_eq!(mode, 0o700);
        assert!(!path.exists());
        assert!(outside.path().join("precious").exists());
    }

    #[test]
    fn a_kept_folder_stays() {
        let folder = TemporaryFolder::make("test", true).unwrap();
        let path = folder.path().to_owned();

        drop(folder);

        assert!(path.exists());
        drop(TemporaryFolder { path, keep: false });
    }
}
