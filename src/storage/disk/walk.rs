//! Listing: every file below a folder, a page at a time.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Dir, FileType};
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::{Disk, open_folder};
use crate::storage::Entry;
use crate::storage::error::{Result, StorageError};
use crate::storage::key::Folder;

impl Disk {
    /// Sends every file in `folder`, a page at a time, until nobody listens.
    pub(super) fn walk(&self, folder: &Folder, pages: &mpsc::Sender<Vec<Result<Entry>>>) {
        let mut walk = Walk { folder, pages, page: Vec::new() };
        let path = folder.path();
        let result = match self.folders(&path, false) {
            Ok(Some((mut folders, _))) => {
                folders.pop().map_or(Ok(true), |deepest| walk.enter(&deepest, &path, 0))
            }
            Ok(None) => Ok(true),
            Err(error) => Err(error),
        };
        if let Err(source) = result {
            walk.page.push(Err(StorageError::from_io("list a folder", source)));
        }
        walk.send();
    }
}

struct Walk<'a> {
    folder: &'a Folder,
    pages: &'a mpsc::Sender<Vec<Result<Entry>>>,
    page: Vec<Result<Entry>>,
}

impl Walk<'_> {
    /// Whether somebody still listens.
    fn send(&mut self) -> bool {
        self.page.is_empty() || self.pages.blocking_send(std::mem::take(&mut self.page)).is_ok()
    }

    fn enter(&mut self, here: &OwnedFd, path: &str, depth: usize) -> io::Result<bool> {
        for entry in Dir::read_from(here)? {
            let entry = entry?;
            let Ok(file_name) = entry.file_name().to_str() else { continue };
            if matches!(file_name, "." | "..") {
                continue;
            }
            let stat = match rustix::fs::statat(here, file_name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                stat => stat?,
            };
            let name = format!("{path}{file_name}");
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory if depth < DEPTH_MAX && self.folder.covers(&format!("{name}/")) => {
                    let inner = match open_folder(here, file_name) {
                        Err(Errno::NOENT | Errno::NOTDIR) => continue,
                        inner => inner?,
                    };
                    if !self.enter(&inner, &format!("{name}/"), depth + 1)? {
                        return Ok(false);
                    }
                }
                FileType::RegularFile => {
                    let since_epoch = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
                    self.page.push(Ok(Entry {
                        name,
                        size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
                        modified: SystemTime::UNIX_EPOCH + since_epoch,
                    }));
                    if self.page.len() >= PAGE_ENTRIES && !self.send() {
                        return Ok(false);
                    }
                }
                _ => {}
            }
        }
        Ok(true)
    }
}

/// How many objects a listing hands over at a time.
const PAGE_ENTRIES: usize = 256;

/// Deepest folder that a listing enters: twice the longest key's.
const DEPTH_MAX: usize = 32;
